//! The file format as users meet it: the mission's rules, the example, every kind of problem, mutated files.

use std::time::Duration;

use super::*;
use crate::dialect::table::Family;
use crate::enforce::policy::{Http2, OnClientAbort};
use crate::incident::rule::{Approval, Baseline, Mode, Statistic, StepKind, Threshold};
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
    let later = |name: &str| format!("NotYetAvailable {{ name: \"{name}\" }} Automatic");
    assert_eq!(
        kinds("throttle_and_alert"),
        format!("{throttle}; {downgrade}; {notify}")
    );
    assert_eq!(
        kinds("escalate_to_on_call"),
        "Escalate { targets: [], repeat_every: 900s } Automatic"
    );
    assert_eq!(
        kinds("rollback_and_notify"),
        format!("{}; {notify}", later("rollback"))
    );
    assert_eq!(
        kinds("scale_down"),
        format!("{throttle}; {downgrade}; {}; {notify}", later("reduce_batch"))
    );
    assert_eq!(kinds("notify_only"), notify);
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
    for empty in ["prices: {}", "alerts: []", "observations: {}"] {
        text = text.replacen(empty, empty.split(' ').next().unwrap(), 1);
    }
    let lookup = |n: &str| {
        Some(match n {
            "ALERT_URL" => "https://hooks.example/x".to_owned(),
            _ => "0123456789abcdef".to_owned(),
        })
    };
    let c =
        compile("f.yaml", &text, &Overrides::default(), &lookup).unwrap_or_else(|p| panic!("{p}\n{text}"));
    assert_eq!(c.targets.len(), 1);
    assert_eq!(c.policy.upstreams[0].path_prefix.as_deref(), Some("/eu"));
    assert!(c.rulebook.actions.contains_key("my_cap"));
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
fn the_command_line_wins() {
    let overrides = Overrides {
        listen: vec!["127.0.0.1:0".into(), "unix:/tmp/x.sock".into()],
        admin_listen: Some("127.0.0.1:0".into()),
        upstream: Some("http://127.0.0.1:9".into()),
        observations: Some("-".into()),
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
    let wrong = Overrides {
        listen: vec!["x".into()],
        admin_listen: Some("0.0.0.0:1".into()),
        upstream: Some("https://me:hunter2@x".into()),
        observations: Some(String::new()),
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
         \x20     - downgrade_model: {to: gpt-5-nano}\n      - throttle:\n      - reroute: {to: backup}\n      - notify: {targets: [ops]}\n",
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
        StepKind::NotYetAvailable {
            name: "reroute".into()
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
