//! The file format as users meet it: the mission's rules, the example, every kind of problem, mutated files.

use std::time::Duration;

use super::*;
use crate::dialect::table::Family;
use crate::enforce::policy::{Http2, OnClientAbort};
use crate::incident::rule::{
    Approval, Baseline, Conduct, Level, Mode, OnFailure, OnTimeout, RollbackBy, Statistic, Step, StepKind,
    Success, Threshold,
};
use crate::types::notice::Severity;

const EXAMPLE: &str = include_str!("../../../config/fusebox.example.yaml");
const MINIMAL: &str = include_str!("../../../config/minimal.yaml");

/// The user's own words; must load letter for letter.
const MISSION: &str = "\
agent_incident_rules:
  - name: token_explosion_detection
    metric: tokens_per_execution
    baseline: 2500
    threshold_upper: 5000
    window: 5m
    action: throttle_and_alert

  - name: latency_creep
    metric: p95_response_time
    baseline: 2.5s
    threshold_upper: 8s
    window: 15m
    action: escalate_to_on_call

  - name: output_quality_drop
    metric: semantic_similarity_to_baseline
    baseline: 0.87
    threshold_lower: 0.65
    window: 10m
    action: rollback_and_notify
";

fn env(name: &str) -> Option<String> {
    match name {
        "SET" => Some("value-of-set".to_owned()),
        "NUMBER" => Some("7".to_owned()),
        "HIDDEN" => Some("hidden-value".to_owned()),
        "HTTPS_PROXY" => Some("http://user:pw@proxy.example:3128".to_owned()),
        "NO_PROXY" => Some("internal.example, .svc".to_owned()),
        _ => None,
    }
}

fn with(text: &str, overrides: &Overrides) -> Result<Compiled, Problems> {
    compile("f.yaml", text, overrides, &env)
}

#[track_caller]
fn good(text: &str) -> Compiled {
    match with(text, &Overrides::default()) {
        Ok(c) => c,
        Err(p) => panic!("{p}"),
    }
}

#[track_caller]
fn bad(text: &str) -> Vec<String> {
    match with(text, &Overrides::default()) {
        Ok(_) => panic!("no problem found in:\n{text}"),
        Err(p) => {
            assert!(!p.is_empty());
            p.to_string();
            p.lines()
                .iter()
                .map(|l| l.strip_prefix("f.yaml:").unwrap_or(l).to_owned())
                .collect()
        }
    }
}

fn shown(c: &Compiled) -> String {
    format!("{c:#?}")
}

#[test]
fn the_rules_of_the_mission_load_letter_for_letter() {
    let c = good(MISSION);
    let [tokens, latency, quality] = c.rulebook.rules.as_slice() else {
        panic!("{:?}", c.rulebook.rules)
    };
    assert_eq!(tokens.name.as_str(), "token_explosion_detection");
    assert_eq!(tokens.metric, crate::incident::rule::Metric::TokensPerExecution);
    assert_eq!(tokens.baseline, Baseline::Fixed(2500.0));
    assert_eq!(tokens.threshold_upper, Some(Threshold::Fixed(5000.0)));
    assert_eq!(tokens.threshold_lower, None);
    assert_eq!(tokens.window, Duration::from_secs(300));
    assert_eq!(tokens.action.as_str(), "throttle_and_alert");
    assert_eq!(
        (tokens.mode, tokens.severity, tokens.enabled),
        (Mode::Enforce, Severity::Warning, true)
    );
    assert_eq!(latency.metric, crate::incident::rule::Metric::ResponseTime);
    assert_eq!(latency.statistic, Statistic::Quantile(0.95));
    assert_eq!(latency.baseline, Baseline::Fixed(2.5));
    assert_eq!(latency.threshold_upper, Some(Threshold::Fixed(8.0)));
    assert_eq!((latency.severity, latency.min_samples), (Severity::Critical, 10));
    assert_eq!(
        quality.metric,
        crate::incident::rule::Metric::SemanticSimilarityToBaseline
    );
    assert_eq!(quality.threshold_lower, Some(Threshold::Fixed(0.65)));
    assert_eq!(quality.window, Duration::from_secs(600));
}

#[test]
fn without_the_key_the_rules_of_the_mission_hold_and_an_empty_list_turns_them_off() {
    assert_eq!(good("").rulebook, good(MISSION).rulebook);
    assert!(good("agent_incident_rules: []").rulebook.rules.is_empty());
    assert_eq!(
        bad("agent_incident_rules:\n"),
        [
            "1:1: `agent_incident_rules` is empty (write [] for no rules, or remove the key for the three built-in ones)"
        ]
    );
}

#[test]
fn built_in_texts_have_no_problems() {
    for text in [defaults::RULES, defaults::ACTIONS] {
        good(text);
    }
}

#[test]
fn built_in_chains() {
    let c = good("");
    let kinds = |name: &str| {
        let steps = &c.rulebook.actions[name].steps;
        steps
            .iter()
            .map(|s| format!("{:?} {:?}", s.kind, s.approval))
            .collect::<Vec<_>>()
            .join("; ")
    };
    let throttle = "Throttle { requests_per_minute: None, tokens_per_minute: None } Automatic";
    let downgrade = "DowngradeModel { to: None } Automatic";
    let notify = "Notify { targets: [] } Automatic";
    assert_eq!(
        kinds("throttle_and_alert"),
        format!("{throttle}; {downgrade}; {notify}")
    );
    assert_eq!(
        kinds("escalate_to_on_call"),
        "Escalate { levels: [Level { after: 0ns, targets: [] }], repeat_every: 900s } Automatic"
    );
    assert_eq!(
        kinds("rollback_and_notify"),
        format!("Rollback {{ by: Restore }} Automatic; {notify}")
    );
    assert_eq!(
        kinds("scale_down"),
        format!(
            "ReduceBatch {{ max_inputs: 16, max_choices: Some(1), max_in_flight: None }} Automatic; {throttle}; \
             DowngradeModel {{ to: None }} Required; {notify}"
        )
    );
    assert!(kinds("contain_and_escalate").starts_with("Contain Required; Escalate"));
    assert_eq!(kinds("notify_only"), notify);
    let throttling = &c.rulebook.actions["throttle_and_alert"].steps;
    // Both are taken at once: neither waits for how the one before did.
    assert!(throttling.iter().all(|s| s.verify_after.is_none()));
    let rollback = &c.rulebook.actions["rollback_and_notify"].steps[0];
    assert_eq!(rollback.verify_after, Some(Duration::from_secs(600)));
    assert_eq!(rollback.on_failure, OnFailure::Escalate);
    assert_eq!(rollback.lease, Duration::from_secs(86_400));
    let contain = &c.rulebook.actions["contain_and_escalate"].steps[0];
    assert_eq!(contain.on_timeout, OnTimeout::Keep);
}

#[test]
fn the_example_says_what_an_empty_file_says() {
    let (example, empty) = (good(EXAMPLE), good(""));
    assert_eq!(shown(&example), shown(&empty));
    assert_eq!(example.policy.prices, empty.policy.prices);
    assert_eq!(example.policy.models, empty.policy.models);
}

#[test]
fn the_example_shows_every_key() {
    let schema = schema();
    let mut keys = Vec::new();
    let mut types: Vec<&serde_json::Value> = vec![&schema];
    types.extend(schema["$defs"].as_object().unwrap().values());
    for t in types {
        keys.extend(
            t["properties"]
                .as_object()
                .into_iter()
                .flat_map(|p| p.keys().cloned()),
        );
    }
    assert!(keys.len() > 120, "{}", keys.len());
    let missing: Vec<_> = keys.iter().filter(|k| !EXAMPLE.contains(k.as_str())).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn what_the_example_shows_behind_a_sharp_loads_too() {
    let mut text = String::new();
    for line in EXAMPLE.lines() {
        let (indent, setting) = match line.trim_start().strip_prefix('#') {
            Some(s) if !s.starts_with(' ') || s.starts_with("  ") => {
                (line.len() - line.trim_start().len(), s)
            }
            _ => (0, line),
        };
        if !setting.contains("_file: /run") {
            text.push_str(&format!("{}{setting}\n", " ".repeat(indent)));
        }
    }
    // `prices: {}` and the like are followed by their entries now.
    for empty in [
        "prices: {}",
        "alerts: []",
        "observations: {}",
        "tokens: []",
        "model_map: {}",
        "credentials: {}",
        "blast_radius: {}",
        "levels: []",
        "maintenance: []",
    ] {
        text = text.replacen(empty, empty.split(' ').next().unwrap(), 1);
    }
    let lookup = |n: &str| {
        Some(match n {
            "ALERT_URL" => "https://hooks.example/x".to_owned(),
            "ON_CALL_TOKEN" => "token-of-the-on-call".to_owned(),
            _ => "0123456789abcdef".to_owned(),
        })
    };
    let c =
        compile("f.yaml", &text, &Overrides::default(), &lookup).unwrap_or_else(|p| panic!("{p}\n{text}"));
    let kinds: Vec<&str> = c.targets.iter().map(|t| t.kind.name()).collect();
    assert_eq!(
        kinds,
        ["webhook", "slack", "pagerduty", "alertmanager", "webhook"]
    );
    assert_eq!(c.policy.upstreams[0].path_prefix.as_deref(), Some("/eu"));
    assert!(c.rulebook.actions.contains_key("my_chain"));
    assert!(c.wiring.admin.token.is_some() && c.wiring.observations.is_some());
}

#[test]
fn the_minimal_file_is_one_agent_and_one_upstream() {
    let c = good(MINIMAL);
    assert_eq!(c.policy.identity.agent.as_ref().unwrap().as_str(), "my-agent");
    let [u] = c.policy.upstreams.as_slice() else {
        panic!()
    };
    assert!(u.families.is_empty() && *u.provider == *"openai");
    assert_eq!(c.rulebook.rules.len(), 3);
}

#[test]
fn the_environment_stands_for_text_numbers_and_switches() {
    let c = good(
        "agent: a-${SET}\nlimits: {max_agents: '${NUMBER}'}\nwatch: ${W:-true}\ndrain_deadline: ${NUMBER}s\n",
    );
    assert_eq!(c.policy.identity.agent.unwrap().as_str(), "a-value-of-set");
    assert_eq!(c.wiring.max_agents, 7);
    assert!(c.wiring.watch);
    assert_eq!(c.wiring.drain_deadline, Duration::from_secs(7));
}

#[test]
fn secrets_are_read_from_files_beside_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tok"), " s3cret\n").unwrap();
    std::fs::write(
        dir.path().join("c.yaml"),
        "admin: {listen: '0.0.0.0:1', token_file: tok}\n",
    )
    .unwrap();
    let c = load(Some(&dir.path().join("c.yaml")), &Overrides::default()).unwrap();
    assert_eq!(c.wiring.admin.token.unwrap().expose(), "s3cret");
    let missing = load(Some(&dir.path().join("nope.yaml")), &Overrides::default()).unwrap_err();
    assert!(
        missing.lines()[0].contains("nope.yaml: cannot be read"),
        "{missing}"
    );
    assert!(load(Some(dir.path()), &Overrides::default()).is_err());
}

#[test]
fn upstreams_are_compiled() {
    let c = good(
        "upstreams:\n  - {name: o, url: 'https://api.openai.com/v1/', on_client_abort: {drain: 5s}, proxy: environment, http2: never, timeouts: {total: 1h}}\n\
         \x20 - {name: a, url: 'https://api.anthropic.com'}\n  - {name: x, url: 'http://internal.example:8080', proxy: environment, path_prefix: /x/}\n  - {name: y, url: 'http://[::1]:8080'}\n",
    );
    let [o, a, x, y] = c.policy.upstreams.as_slice() else {
        panic!()
    };
    assert_eq!(
        (&*o.provider, o.families.as_slice()),
        ("openai", &[Family::OpenAi][..])
    );
    assert_eq!(o.url.base_path, "/v1");
    assert_eq!(o.on_client_abort, OnClientAbort::Drain(Duration::from_secs(5)));
    assert_eq!(o.http2, Http2::Never);
    assert_eq!(o.timeouts.total, Some(Duration::from_secs(3600)));
    let proxy = o.proxy.as_ref().unwrap();
    assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
    assert_eq!(
        proxy.authorization.as_ref().unwrap().expose(),
        "Basic dXNlcjpwdw=="
    );
    assert_eq!(a.families, [Family::Anthropic]);
    assert_eq!((x.proxy.as_ref(), x.path_prefix.as_deref()), (None, Some("/x")));
    assert_eq!(
        (&*y.provider, y.families.len(), y.url.host.as_str()),
        ("unknown", 0, "::1")
    );
}

#[test]
fn the_ledger_is_off_without_a_path() {
    let c = good("ledger: {observations: {keep: 1d}}");
    assert_eq!(c.wiring.ledger, None);
    assert_eq!(good("").wiring.ledger, None);
    let c = good(
        "ledger: {path: state/l.db, observations: {keep: 1d, max_bytes: 10MiB}, incidents: {keep: 3650d}}",
    );
    let ledger = c.wiring.ledger.unwrap();
    assert_eq!(ledger.path, std::path::Path::new("state/l.db"));
    assert_eq!(ledger.keep_observations, Duration::from_secs(86_400));
    assert_eq!(ledger.max_bytes, 10 << 20);
    assert_eq!(ledger.keep_incidents, Duration::from_secs(3_650 * 86_400));
    let defaults = good("ledger: {path: /x/l.db}").wiring.ledger.unwrap();
    assert_eq!(defaults, crate::store::LedgerOptions::at("/x/l.db"));
}

#[test]
fn the_command_line_wins() {
    let overrides = Overrides {
        listen: vec!["127.0.0.1:0".into(), "unix:/tmp/x.sock".into()],
        admin_listen: Some("127.0.0.1:0".into()),
        upstream: Some("http://127.0.0.1:9".into()),
        observations: Some("-".into()),
        ledger: Some("here.db".into()),
        log_level: Some("debug".into()),
    };
    let file = "listeners: [{listen: '127.0.0.1:1', agent: a}]\nupstreams: [{name: z, url: 'https://z'}]\nagent_incident_rules: [{name: r, metric: tokens_per_minute, threshold_upper: 1, action: notify_only, upstreams: [z]}]\n";
    let c = with(file, &overrides).unwrap();
    assert_eq!(c.wiring.listeners.len(), 2);
    assert_eq!(c.wiring.listeners[0].agent, None);
    let [u] = c.policy.upstreams.as_slice() else {
        panic!()
    };
    assert_eq!((u.name.as_str(), u.families.len(), u.url.port), ("default", 0, 9));
    assert_eq!(c.wiring.observations, Some(ObservationSink::Stdout));
    assert_eq!(c.wiring.log_filter, "debug");
    assert_eq!(c.wiring.ledger.unwrap().path, std::path::Path::new("here.db"));
    let wrong = Overrides {
        listen: vec!["x".into()],
        admin_listen: Some("0.0.0.0:1".into()),
        upstream: Some("https://me:hunter2@x".into()),
        observations: Some(String::new()),
        ledger: Some("-".into()),
        log_level: Some("loud".into()),
    };
    let problems = with("", &wrong).unwrap_err();
    let mut flags: Vec<String> = problems
        .lines()
        .iter()
        .map(|l| l.split(':').next().unwrap().to_owned())
        .collect();
    flags.sort();
    assert_eq!(
        flags,
        [
            "--admin-listen",
            "--ledger",
            "--listen",
            "--log-level",
            "--observations",
            "--upstream"
        ]
    );
    assert!(!problems.to_string().contains("hunter2"));
}

#[test]
fn actions_are_compiled_and_replace_built_in_ones() {
    let c = good(
        "alerts: [{name: ops, url: 'https://h', secret: whsec_x, headers: {X-Team: a}}]\n\
         actions:\n  throttle_and_alert:\n    steps:\n      - throttle: {requests_per_minute: 30}\n        lease: 2m\n      - cap_concurrency: {max_in_flight: 2}\n\
         \x20     - downgrade_model: {to: gpt-5-nano}\n      - throttle:\n      - rollback:\n      - notify: {targets: [ops]}\n",
    );
    let steps = &c.rulebook.actions["throttle_and_alert"].steps;
    assert_eq!(
        steps[0].kind,
        StepKind::Throttle {
            requests_per_minute: Some(30),
            tokens_per_minute: None
        }
    );
    assert_eq!(steps[0].lease, Duration::from_secs(120));
    assert_eq!(steps[1].kind, StepKind::CapConcurrency { max_in_flight: 2 });
    assert_eq!(
        steps[2].kind,
        StepKind::DowngradeModel {
            to: Some("gpt-5-nano".into())
        }
    );
    assert_eq!(steps[2].approval, Approval::Required);
    assert_eq!(
        steps[3].kind,
        StepKind::Throttle {
            requests_per_minute: None,
            tokens_per_minute: None
        }
    );
    assert_eq!(
        steps[4].kind,
        StepKind::Rollback {
            by: RollbackBy::Restore
        }
    );
    assert_eq!(
        steps[5].kind,
        StepKind::Notify {
            targets: vec!["ops".into()]
        }
    );
    assert!(c.rulebook.actions.contains_key("scale_down"));
}

#[test]
fn every_step_is_compiled_with_its_settings() {
    let c = good(
        "alerts: [{name: ops, url: 'https://h'}]\nactions:\n  x:\n    steps:\n      - reduce_batch\n      - reduce_batch: {max_inputs: 4, max_choices: 2, max_in_flight: 3}\n\
         \x20     - cap_output: {max_tokens: 100, cut_streams: true}\n      - reroute: {to: openai}\n      - extend_timeouts: {factor: 1.5}\n      - extend_timeouts\n\
         \x20     - set_parameters: {temperature: 0, top_p: 0.5, service_tier: flex, logprobs: false}\n      - rollback: {by: reroute, to: anthropic}\n\
         \x20     - rollback: {by: webhook, target: ops}\n      - contain\n      - run_webhook: {target: ops, action: drain}\n\
         \x20     - escalate: {targets: [ops], repeat_every: 5m, levels: [{after: 15m}, {after: 1h, targets: [ops]}]}\n\
         \x20     - {throttle: {}, approval: required, approval_timeout: 1h, on_timeout: approve, lease: 2h, verify_after: 3m, success: {improved_by: 30%}, on_failure: revert, blast_radius: {max_agents: 5, max_share: 50%}}\n",
    );
    let steps = &c.rulebook.actions["x"].steps;
    let batch = |max_inputs, n, max_in_flight| StepKind::ReduceBatch {
        max_inputs,
        max_choices: Some(n),
        max_in_flight,
    };
    let set = [
        ("temperature", 0.into()),
        ("top_p", 0.5.into()),
        ("service_tier", "flex".into()),
        ("logprobs", false.into()),
    ];
    let level = |seconds, names: &[&str]| Level {
        after: Duration::from_secs(seconds),
        targets: names.iter().map(ToString::to_string).collect(),
    };
    let want = [
        batch(16, 1, None),
        batch(4, 2, Some(3)),
        StepKind::CapOutput {
            max_tokens: 100,
            cut_streams: true,
        },
        StepKind::Reroute { to: "openai".into() },
        StepKind::ExtendTimeouts { percent: 150 },
        StepKind::ExtendTimeouts { percent: 200 },
        StepKind::SetParameters {
            set: set.map(|(name, value)| (name.to_owned(), value)).into(),
        },
        StepKind::Rollback {
            by: RollbackBy::Reroute {
                to: "anthropic".into(),
            },
        },
        StepKind::Rollback {
            by: RollbackBy::Webhook { target: "ops".into() },
        },
        StepKind::Contain,
        StepKind::RunWebhook {
            target: "ops".into(),
            action: "drain".into(),
        },
        StepKind::Escalate {
            levels: vec![level(0, &["ops"]), level(900, &[]), level(3600, &["ops"])],
            repeat_every: Duration::from_secs(300),
        },
    ];
    for (step, want) in steps.iter().zip(want) {
        let lasting = matches!(want, StepKind::Rollback { .. } | StepKind::Contain);
        let lease = Duration::from_secs(if lasting { 86_400 } else { 900 });
        // What is not said is as for any other step.
        assert_eq!(*step, Step::new(want, lease));
    }
    let last = steps.last().unwrap();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    assert_eq!(
        (last.approval, last.approval_timeout, last.on_timeout, last.lease),
        (Approval::Required, minutes(60), OnTimeout::Approve, minutes(120))
    );
    assert_eq!(
        (last.verify_after, last.success, last.on_failure),
        (Some(minutes(3)), Success::ImprovedBy(0.3), OnFailure::Revert)
    );
    let radius = last.blast_radius;
    assert_eq!((radius.max_agents, radius.max_share), (Some(5), Some(0.5)));
}

#[test]
fn parameters_from_the_environment_are_what_they_spell() {
    let c = good(
        "actions: {x: {steps: [{set_parameters: {a: '${NUMBER}', b: '${SET}', c: '${W:-true}', d: '7'}}]}}\n",
    );
    let StepKind::SetParameters { set } = &c.rulebook.actions["x"].steps[0].kind else {
        panic!()
    };
    let want = serde_json::json!({"a": 7, "b": "value-of-set", "c": true, "d": "7"});
    assert_eq!(serde_json::json!(set), want);
}

#[test]
fn incidents_and_automation_are_compiled() {
    assert_eq!(good("").rulebook.conduct, Conduct::default());
    let c = good(
        "incidents: {correlate: false, reopen_within: 0, flaps_after: 5, good_version: {min_exchanges: 9, min_age: 1h, max_error_rate: 0.1},\n\
         \x20 maintenance: [{name: w, rules: [a*], agents: [b], days: [sat, sun], from: 22:30, lasts: 4h}, {name: all, from: '00:00', lasts: 1m}]}\n\
         automation: {max_actions_per_hour: 3, brake: true}\n",
    );
    let conduct = &c.rulebook.conduct;
    assert_eq!(
        (conduct.correlate, conduct.reopen_within, conduct.flaps_after),
        (false, Duration::ZERO, 5)
    );
    assert_eq!(conduct.good_version.min_exchanges, 9);
    assert_eq!(conduct.good_version.min_age, Duration::from_secs(3600));
    assert_eq!(conduct.good_version.max_error_rate, 0.1);
    let [weekend, nightly] = conduct.maintenance.as_slice() else {
        panic!()
    };
    assert_eq!((weekend.from, weekend.length.as_secs()), (81_000, 14_400));
    assert_eq!(weekend.days, [false, false, false, false, false, true, true]);
    assert_eq!(
        (
            weekend.matcher.rules.as_slice(),
            weekend.matcher.agents.as_slice()
        ),
        (&["a*".to_owned()][..], &["b".to_owned()][..])
    );
    assert_eq!((nightly.from, nightly.days), (0, [true; 7]));
    assert!(c.rulebook.brake && !good("").rulebook.brake);
    assert_eq!(c.rulebook.max_actions_per_hour, 3);
}

#[test]
fn of_admin_tokens_only_a_digest_stays() {
    let hash = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let c = good(&format!(
        "admin:\n  listen: 0.0.0.0:1\n  tokens:\n    - {{name: a, token: '${{SET}}', role: operator}}\n    - {{name: b, token_sha256: {hash}}}\n\
         external_url: https://fusebox.example/ops/\n"
    ));
    let admin = &c.wiring.admin;
    let [a, b] = admin.tokens.as_slice() else { panic!() };
    assert_eq!((a.name.as_str(), a.role), ("a", Role::Operator));
    assert_eq!(a.digest, TokenDigest::of("value-of-set"));
    assert_eq!((b.name.as_str(), b.role), ("b", Role::Viewer));
    assert_eq!(b.digest, TokenDigest::of("test"));
    assert!(!shown(&c).contains("value-of-set"));
    assert_eq!(admin.external_url.as_deref(), Some("https://fusebox.example/ops"));
    let both = good("admin: {token: x, tokens: [{name: a, token: y}]}")
        .wiring
        .admin;
    let all = both.all_tokens();
    assert_eq!(all.len(), 2);
    assert_eq!(
        (all[0].role, &all[0].digest),
        (Role::Operator, &TokenDigest::of("x"))
    );
    assert!(good("").wiring.admin.all_tokens().is_empty());
}

#[test]
fn failover_and_streams_are_compiled() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("key"), "sk-of-c\n").unwrap();
    let file = dir.path().join("c.yaml");
    std::fs::write(
        &file,
        "upstreams:\n  - {name: a, url: 'https://a', failover: [b, c], retry_on: [529, 429, connect_error], breaker: {failures: 0}}\n\
         \x20 - {name: b, url: 'https://b', failover: [c, d], credentials: {api_key: hunter2}, model_map: {gpt-5*: eu-gpt-5}}\n\
         \x20 - {name: c, url: 'https://api.anthropic.com', families: [], credentials: {api_key_file: key}}\n  - {name: d, url: 'https://d'}\n\
         retries: {budget_percent: 5, min_per_minute: 1}\nstreams: {cut_repetition: true, max_output_tokens: 9, max_cost_usd: 0.5}\n",
    )
    .unwrap();
    let c = load(Some(&file), &Overrides::default()).unwrap_or_else(|p| panic!("{p}"));
    let [a, b, third, _] = c.policy.upstreams.as_slice() else {
        panic!()
    };
    let plan = |u: &crate::enforce::policy::Upstream| -> Vec<String> {
        u.failover.iter().map(ToString::to_string).collect()
    };
    // Each is followed by its own, and none is tried twice.
    assert_eq!(
        (plan(a), plan(b)),
        (
            vec!["b".into(), "c".into(), "d".into()],
            vec!["c".into(), "d".into()]
        )
    );
    assert!(a.retry_on.connect_error && !a.retry_on.first_byte_timeout && !a.retry_on.first_event_error);
    assert_eq!(a.retry_on.statuses, [429, 529]);
    assert_eq!((a.breaker, b.breaker), (None, Some(defaults::BREAKER)));
    assert_eq!(b.retry_on, defaults::retry_on());
    assert_eq!(b.model_map.get("gpt-5-mini"), Some("eu-gpt-5"));
    let header =
        |u: &crate::enforce::policy::Upstream, family| u.credentials.as_ref().unwrap().header(family);
    assert_eq!(header(b, Family::OpenAi).1, "Bearer hunter2");
    assert_eq!(header(third, Family::Anthropic).0, "x-api-key");
    assert!(a.credentials.is_none());
    assert_eq!(
        (c.policy.retries.percent, c.policy.retries.min_per_minute),
        (5.0, 1)
    );
    let streams = c.policy.streams;
    assert_eq!(
        (streams.max_output_tokens, streams.max_cost.map(|c| c.usd())),
        (Some(9), Some(0.5))
    );
    assert!(streams.cut_repetition && good("").policy.streams.is_off());
    let all = shown(&c);
    assert!(!all.contains("hunter2") && !all.contains("sk-of-c"));
}

#[test]
fn thresholds_and_baselines_in_every_form() {
    let one = |lines: &str| {
        let c = good(&format!(
            "agent_incident_rules:\n  - name: r\n    action: notify_only\n{lines}"
        ));
        c.rulebook.rules[0].clone()
    };
    let r = one("    metric: p99_time_to_first_token\n    baseline: learned\n    threshold_upper: 2x\n");
    assert_eq!(
        (r.baseline, r.threshold_upper),
        (Baseline::Learned, Some(Threshold::TimesBaseline(2.0)))
    );
    assert_eq!(r.statistic, Statistic::Quantile(0.99));
    let r = one(
        "    metric: cost_per_hour\n    baseline: fleet\n    threshold_upper: +40%\n    threshold_lower: -30%\n",
    );
    assert_eq!(r.baseline, Baseline::Fleet);
    assert_eq!(
        (r.threshold_upper, r.threshold_lower),
        (
            Some(Threshold::TimesBaseline(1.4)),
            Some(Threshold::TimesBaseline(0.7))
        )
    );
    let r = one("    metric: error_rate\n    threshold_upper: 5%\n    group_by: fleet\n");
    assert_eq!(
        (r.threshold_upper, r.baseline, r.min_samples),
        (Some(Threshold::Fixed(0.05)), Baseline::Fixed(0.05), 10)
    );
    let r = one(
        "    metric: tokens_per_execution\n    threshold_upper: 1_000\n    group_by: execution\n    for: 1m\n",
    );
    assert_eq!(
        (r.threshold_upper, r.min_samples, r.hold),
        (Some(Threshold::Fixed(1000.0)), 1, Duration::from_secs(60))
    );
}

#[test]
fn more_problems_than_anyone_reads_are_counted() {
    let text: String = (0..500).map(|i| format!("k{i}: 1\n")).collect();
    assert!(with(&text, &Overrides::default()).unwrap_err().len() >= 100);
}

mod problems;
mod reloads;

mod mutated {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn no_text_makes_it_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..40, "(?s).{0,6}|[\\-:\\[\\]{}#&*!|>'\"%@\n ]{1,4}"), 1..6)) {
            let mut text: Vec<char> = EXAMPLE.chars().collect();
            for (at, len, new) in edits {
                let from = at.index(text.len());
                let to = (from + len).min(text.len());
                text.splice(from..to, new.chars());
            }
            let text: String = text.into_iter().collect();
            if let Err(p) = with(&text, &Overrides::default()) {
                prop_assert!(!p.is_empty());
                p.to_string();
                p.lines();
            }
        }

        #[test]
        fn nor_does_any_other(text in "(?s).{0,200}") {
            if let Err(p) = with(&text, &Overrides::default()) {
                p.to_string();
            }
        }
    }
}
