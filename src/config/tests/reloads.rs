//! Every key of the file changed once: a reload says truly whether it is in force or needs a restart.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{EXAMPLE, with};
use crate::config::schema::keys;
use crate::config::{Compiled, Overrides, diff, restart, schema};

/// Something in every list and under every name of the user's. `DIR` stands for a directory of files with secrets.
fn base() -> Value {
    json!({
        "listeners": [{"listen": "127.0.0.1:1", "tls": {"certificate_file": "c", "key_file": "k"}}],
        "admin": {"listen": "127.0.0.1:2", "tokens": [{"name": "t", "token": "0123456789abcdef-t"}]},
        "upstreams": [{"name": "u", "url": "https://u.example"}],
        "alerts": [{"name": "a", "url": "https://a.example"}],
        "agent_incident_rules": [
            {"name": "r", "metric": "response_time", "baseline": "2s", "threshold_upper": "8s", "action": "x"}
        ],
        "actions": {"x": {"steps": [{"throttle": {}}]}},
        "prices": {"m": {"input": 1, "output": 2}},
        "incidents": {"maintenance": [{"name": "m", "from": "22:00", "lasts": "4h"}]},
    })
}

/// What a key needs beside it to mean anything.
fn beside(key: &str) -> Vec<(&'static str, Value)> {
    let alert = |kind: &str| json!([{"name": "a", "kind": kind, "url": "https://a.example"}]);
    match key {
        "alerts[].group.max" | "alerts[].group.more_than" | "alerts[].group.wait" => {
            vec![("alerts", alert("slack"))]
        }
        "alerts[].labels" | "alerts[].resend_every" | "alerts[].urls" => {
            vec![("alerts", alert("alertmanager"))]
        }
        "alerts[].routing_key" | "alerts[].routing_key_file" => vec![
            ("alerts", alert("pagerduty")),
            ("alerts[].routing_key", json!("0123456789abcdef0123456789abcdef")),
        ],
        "alerts[].source" => vec![("alerts[].format", json!("cloudevents"))],
        "ledger.incidents.keep" | "ledger.observations.keep" | "ledger.observations.max_bytes" => {
            vec![("ledger.path", json!("ledger.db"))]
        }
        "upstreams[].credentials.api_key_file" | "upstreams[].credentials.header" => {
            vec![("upstreams[].credentials.api_key", json!("k"))]
        }
        "upstreams[].failover" => vec![(
            "upstreams",
            json!([
                {"name": "u", "url": "https://u.example", "families": []},
                {"name": "v", "url": "https://v.example", "families": []},
            ]),
        )],
        _ => Vec::new(),
    }
}

/// Keys that are in force after a reload, with another value. Of a step, the whole step.
fn reloaded() -> BTreeMap<&'static str, Value> {
    [
        (
            "actions.*.steps[].approval",
            json!({"throttle": {}, "approval": "required"}),
        ),
        (
            "actions.*.steps[].approval_timeout",
            json!({"throttle": {}, "approval_timeout": "1m"}),
        ),
        (
            "actions.*.steps[].blast_radius.max_agents",
            json!({"throttle": {}, "blast_radius": {"max_agents": 3}}),
        ),
        (
            "actions.*.steps[].blast_radius.max_share",
            json!({"throttle": {}, "blast_radius": {"max_share": "30%"}}),
        ),
        (
            "actions.*.steps[].cap_concurrency.max_in_flight",
            json!({"cap_concurrency": {"max_in_flight": 3}}),
        ),
        (
            "actions.*.steps[].cap_output.cut_streams",
            json!({"cap_output": {"max_tokens": 9, "cut_streams": true}}),
        ),
        (
            "actions.*.steps[].cap_output.max_tokens",
            json!({"cap_output": {"max_tokens": 9}}),
        ),
        ("actions.*.steps[].contain", json!("contain")),
        (
            "actions.*.steps[].downgrade_model.to",
            json!({"downgrade_model": {"to": "gpt-5-mini"}}),
        ),
        (
            "actions.*.steps[].escalate.levels[].after",
            json!({"escalate": {"levels": [{"after": "9m"}]}}),
        ),
        (
            "actions.*.steps[].escalate.levels[].targets",
            json!({"escalate": {"levels": [{"after": "9m", "targets": ["a"]}]}}),
        ),
        (
            "actions.*.steps[].escalate.repeat_every",
            json!({"escalate": {"repeat_every": "1m"}}),
        ),
        (
            "actions.*.steps[].escalate.targets",
            json!({"escalate": {"targets": ["a"]}}),
        ),
        (
            "actions.*.steps[].extend_timeouts.factor",
            json!({"extend_timeouts": {"factor": 3}}),
        ),
        ("actions.*.steps[].lease", json!({"throttle": {}, "lease": "1m"})),
        (
            "actions.*.steps[].notify.targets",
            json!({"notify": {"targets": ["a"]}}),
        ),
        (
            "actions.*.steps[].on_failure",
            json!({"throttle": {}, "on_failure": "revert"}),
        ),
        (
            "actions.*.steps[].on_timeout",
            json!({"throttle": {}, "on_timeout": "keep"}),
        ),
        (
            "actions.*.steps[].reduce_batch.max_choices",
            json!({"reduce_batch": {"max_choices": 3}}),
        ),
        (
            "actions.*.steps[].reduce_batch.max_in_flight",
            json!({"reduce_batch": {"max_in_flight": 3}}),
        ),
        (
            "actions.*.steps[].reduce_batch.max_inputs",
            json!({"reduce_batch": {"max_inputs": 3}}),
        ),
        ("actions.*.steps[].reroute.to", json!({"reroute": {"to": "u"}})),
        (
            "actions.*.steps[].rollback.by",
            json!({"rollback": {"by": "restore"}}),
        ),
        (
            "actions.*.steps[].rollback.target",
            json!({"rollback": {"by": "webhook", "target": "a"}}),
        ),
        (
            "actions.*.steps[].rollback.to",
            json!({"rollback": {"by": "reroute", "to": "u"}}),
        ),
        (
            "actions.*.steps[].run_webhook.action",
            json!({"run_webhook": {"target": "a", "action": "x"}}),
        ),
        (
            "actions.*.steps[].run_webhook.target",
            json!({"run_webhook": {"target": "a", "action": "x"}}),
        ),
        (
            "actions.*.steps[].set_parameters",
            json!({"set_parameters": {"temperature": 0}}),
        ),
        (
            "actions.*.steps[].success.improved_by",
            json!({"throttle": {}, "success": {"improved_by": "30%"}}),
        ),
        (
            "actions.*.steps[].throttle.requests_per_minute",
            json!({"throttle": {"requests_per_minute": 9}}),
        ),
        (
            "actions.*.steps[].throttle.tokens_per_minute",
            json!({"throttle": {"tokens_per_minute": 9}}),
        ),
        (
            "actions.*.steps[].verify_after",
            json!({"throttle": {}, "verify_after": "1m"}),
        ),
        ("agent", json!("other")),
        ("agent_incident_rules[].act_on_estimates", json!(true)),
        ("agent_incident_rules[].action", json!("notify_only")),
        ("agent_incident_rules[].agents", json!(["x"])),
        ("agent_incident_rules[].baseline", json!("learned")),
        ("agent_incident_rules[].cooldown", json!("1m")),
        ("agent_incident_rules[].enabled", json!(false)),
        ("agent_incident_rules[].for", json!("1m")),
        ("agent_incident_rules[].group_by", json!("fleet")),
        ("agent_incident_rules[].hysteresis", json!(0.5)),
        ("agent_incident_rules[].metric", json!("time_to_first_token")),
        ("agent_incident_rules[].min_samples", json!(77)),
        ("agent_incident_rules[].mode", json!("warn")),
        ("agent_incident_rules[].models", json!(["m"])),
        ("agent_incident_rules[].name", json!("q")),
        ("agent_incident_rules[].severity", json!("info")),
        ("agent_incident_rules[].statistic", json!("p50")),
        ("agent_incident_rules[].threshold_lower", json!("1s")),
        ("agent_incident_rules[].threshold_upper", json!("9s")),
        ("agent_incident_rules[].upstreams", json!(["u"])),
        ("agent_incident_rules[].window", json!("1m")),
        ("agent_version", json!("2")),
        ("alerts[].ca_files", json!(["x.pem"])),
        ("alerts[].format", json!("cloudevents")),
        ("alerts[].give_up_after", json!("2m")),
        ("alerts[].group.max", json!(7)),
        ("alerts[].group.more_than", json!(7)),
        ("alerts[].group.wait", json!("7s")),
        ("alerts[].headers", json!({"x-a": "b"})),
        ("alerts[].kind", json!("slack")),
        ("alerts[].labels", json!({"a": "b"})),
        ("alerts[].min_severity", json!("critical")),
        ("alerts[].name", json!("b")),
        ("alerts[].resend_every", json!("7s")),
        ("alerts[].routing_key", json!("abcdef0123456789abcdef0123456789")),
        ("alerts[].routing_key_file", json!("DIR/secret")),
        ("alerts[].secret", json!("0123456789abcdef0123456789")),
        ("alerts[].secret_file", json!("DIR/secret")),
        ("alerts[].source", json!("/x")),
        ("alerts[].spacing", json!("7s")),
        ("alerts[].timeout", json!("3s")),
        ("alerts[].url", json!("https://b.example")),
        ("alerts[].url_file", json!("DIR/secret")),
        ("alerts[].urls", json!(["https://b.example", "https://c.example"])),
        ("automation.brake", json!(true)),
        ("automation.max_actions_per_hour", json!(1)),
        ("identity.agent_baggage_keys", json!(["x"])),
        ("identity.agent_headers", json!(["x-x"])),
        ("identity.agent_metadata_keys", json!(["x"])),
        ("identity.agent_order", json!(["default"])),
        ("identity.api_key_salt", json!("0123456789abcdef0123456789")),
        ("identity.api_key_salt_file", json!("DIR/secret")),
        ("identity.default_agent", json!("x")),
        ("identity.execution_headers", json!(["x-x"])),
        ("identity.execution_metadata_keys", json!(["x"])),
        ("identity.max_name_bytes", json!(99)),
        ("identity.strip_headers", json!(["x-x"])),
        ("identity.version_headers", json!(["x-x"])),
        ("incidents.correlate", json!(false)),
        ("incidents.flaps_after", json!(7)),
        ("incidents.good_version.max_error_rate", json!("7%")),
        ("incidents.good_version.min_age", json!("7m")),
        ("incidents.good_version.min_exchanges", json!(7)),
        ("incidents.maintenance[].agents", json!(["x"])),
        ("incidents.maintenance[].days", json!(["sun"])),
        ("incidents.maintenance[].from", json!("23:00")),
        ("incidents.maintenance[].lasts", json!("5h")),
        ("incidents.maintenance[].name", json!("n")),
        ("incidents.maintenance[].rules", json!(["r"])),
        ("incidents.reopen_within", json!("7m")),
        ("limits.body_idle_timeout", json!("3s")),
        ("limits.header_timeout", json!("3s")),
        ("limits.keep_alive_timeout", json!("3s")),
        ("limits.max_admission_wait", json!("1s")),
        ("limits.max_header_bytes", json!("32KiB")),
        ("limits.max_inspect_bytes", json!("1MiB")),
        ("limits.max_request_bytes", json!("1MiB")),
        ("limits.max_waiting", json!(7)),
        ("metering", json!(false)),
        ("models.downgrade", json!({"x": "y"})),
        ("notification_webhooks.hosts", json!(["x.example"])),
        ("notification_webhooks.plain_http", json!(true)),
        ("notification_webhooks.public", json!(false)),
        ("prices.*.cache_write", json!(7)),
        ("prices.*.cached_input", json!(7)),
        ("prices.*.input", json!(7)),
        ("prices.*.output", json!(7)),
        ("retries.budget_percent", json!(7)),
        ("retries.min_per_minute", json!(7)),
        ("streams.cut_repetition", json!(true)),
        ("streams.max_cost_usd", json!(7)),
        ("streams.max_output_tokens", json!(7)),
        ("upstreams[].breaker.failures", json!(7)),
        ("upstreams[].breaker.open_for", json!("7s")),
        ("upstreams[].breaker.within", json!("7s")),
        ("upstreams[].credentials.api_key", json!("k")),
        ("upstreams[].credentials.api_key_file", json!("DIR/secret")),
        ("upstreams[].credentials.header", json!("x-k")),
        ("upstreams[].failover", json!(["v"])),
        ("upstreams[].families", json!(["anthropic"])),
        ("upstreams[].http2", json!("never")),
        ("upstreams[].include_usage", json!("never")),
        ("upstreams[].max_idle_connections", json!(7)),
        ("upstreams[].model_map", json!({"m": "n"})),
        ("upstreams[].name", json!("v")),
        ("upstreams[].on_client_abort.drain", json!("3s")),
        ("upstreams[].path_prefix", json!("/p")),
        ("upstreams[].provider", json!("azure")),
        ("upstreams[].proxy", json!("http://p.example:1")),
        ("upstreams[].retry_on", json!([503])),
        ("upstreams[].timeouts.connect", json!("3s")),
        ("upstreams[].timeouts.first_byte", json!("3s")),
        ("upstreams[].timeouts.idle", json!("3s")),
        ("upstreams[].timeouts.total", json!("3h")),
        ("upstreams[].tls.ca_files", json!(["x.pem"])),
        ("upstreams[].tls.server_name", json!("x.example")),
        ("upstreams[].url", json!("https://v.example")),
    ]
    .into()
}

/// Keys that need a restart, with another value.
fn restarted() -> BTreeMap<&'static str, Value> {
    [
        ("listeners[].listen", json!("127.0.0.1:9")),
        ("listeners[].tls.certificate_file", json!("other")),
        ("listeners[].tls.key_file", json!("other")),
        ("listeners[].agent", json!("x")),
        ("admin.listen", json!("127.0.0.1:9")),
        ("admin.token", json!("0123456789abcdef")),
        ("admin.token_file", json!("DIR/secret")),
        ("admin.tokens[].name", json!("u")),
        ("admin.tokens[].role", json!("operator")),
        ("admin.tokens[].token", json!("0123456789abcdef")),
        ("admin.tokens[].token_file", json!("DIR/secret")),
        ("admin.tokens[].token_sha256", json!("0a".repeat(32))),
        ("admin.allowed_hosts", json!(["x.example"])),
        ("admin.user_header", json!("x-forwarded-user")),
        ("admin.open_metrics", json!(false)),
        ("admin.max_label_sets", json!(77)),
        ("external_url", json!("https://fusebox.example")),
        ("limits.max_agents", json!(7)),
        ("limits.max_connections", json!(7)),
        ("observations.file", json!("x.jsonl")),
        ("ledger.path", json!("ledger.db")),
        ("ledger.observations.keep", json!("9d")),
        ("ledger.observations.max_bytes", json!("3GiB")),
        ("ledger.incidents.keep", json!("9d")),
        ("log.format", json!("json")),
        ("log.level", json!("debug")),
        ("drain_deadline", json!("3s")),
        ("workers", json!(77)),
        ("watch", json!(true)),
        ("engine.observation_queue", json!(77)),
        ("engine.max_subjects", json!(77)),
        ("engine.max_executions", json!(77)),
        ("engine.execution_idle", json!("3s")),
        ("engine.max_closed_incidents", json!(77)),
    ]
    .into()
}

/// Puts `value` where the key stands in `file`.
fn put(file: &mut Value, key: &str, value: Value) {
    if let Some((steps, _)) = key.split_once("steps[].") {
        return put(file, &format!("{steps}steps"), json!([value]));
    }
    let mut at = file;
    let parts: Vec<&str> = key.split('.').collect();
    let (last, above) = parts.split_last().unwrap();
    for part in above {
        at = match (*part, part.strip_suffix("[]")) {
            ("*", _) => at.as_object_mut().unwrap().values_mut().next().unwrap(),
            (_, Some(list)) => &mut at[list][0],
            (part, None) => {
                if at[part].is_null() {
                    at[part] = json!({});
                }
                &mut at[part]
            }
        };
    }
    // One way to say it, not two.
    let twin = match *last {
        "certificate_file" | "key_file" => None,
        "urls" => Some("url"),
        "token_sha256" => Some("token"),
        other => other.strip_suffix("_file"),
    };
    if let Some(twin) = twin {
        at.as_object_mut().unwrap().remove(twin);
    }
    at[*last] = value;
}

fn compiled(file: &Value, dir: &str) -> Compiled {
    let text = serde_json::to_string_pretty(file)
        .unwrap()
        .replace("DIR/", &format!("{dir}/"));
    with(&text, &Overrides::default()).unwrap_or_else(|p| panic!("{p}\nin {text}"))
}

/// What a reload says when this key changed: what is in force, what needs a restart.
fn told(key: &str, value: &Value, dir: &str) -> (Vec<String>, Vec<String>) {
    let mut old = base();
    for (other, value) in beside(key) {
        put(&mut old, other, value);
    }
    let mut new = old.clone();
    put(&mut new, key, value.clone());
    let diff = diff(&compiled(&old, dir), &compiled(&new, dir));
    (diff.changes, diff.needs_restart)
}

#[test]
fn a_new_key_has_to_be_put_into_one_of_the_lists() {
    let all: BTreeSet<String> = keys(&schema()).into_iter().map(|(key, _)| key).collect();
    assert!(all.len() > 100, "{}", all.len());
    let (reloaded, restarted) = (reloaded(), restarted());
    let listed: BTreeSet<String> = reloaded
        .keys()
        .chain(restarted.keys())
        .map(|k| (*k).to_owned())
        .collect();
    let missing: Vec<_> = all.symmetric_difference(&listed).collect();
    assert!(
        missing.is_empty(),
        "listed nowhere, or no key any more: {missing:?}"
    );
    assert_eq!(listed.len(), reloaded.len() + restarted.len(), "listed twice");
    let needed: BTreeSet<&str> = restart::NEEDED.into();
    assert!(
        needed.iter().eq(restarted.keys()),
        "config/restart.rs says otherwise"
    );
}

#[test]
fn a_reload_tells_the_truth_about_every_key() {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("secret", "https://0123456789abcdef.example/"),
        ("key", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
        ("other-key", "HxECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
    ] {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    let path = dir.path().display().to_string();
    for (key, value) in reloaded() {
        let (changes, needs_restart) = told(key, &value, &path);
        assert!(
            !changes.is_empty() && needs_restart.is_empty(),
            "{key}: {changes:?} {needs_restart:?}"
        );
    }
    for (key, value) in restarted() {
        let (changes, needs_restart) = told(key, &value, &path);
        let [line] = needs_restart.as_slice() else {
            panic!("{key}: {needs_restart:?}")
        };
        assert!(
            changes.is_empty() && key.starts_with(line.as_str()),
            "{key}: {changes:?} {line}"
        );
    }
}

#[test]
fn the_example_marks_what_needs_a_restart_and_nothing_else() {
    let mut marks: BTreeMap<String, bool> = BTreeMap::new();
    let mut above: Vec<(usize, String)> = Vec::new();
    let mut comment: Option<bool> = None;
    let mut marked = false;
    // The first lines say what the mark means.
    for line in EXAMPLE.lines().skip_while(|l| !l.is_empty()) {
        let text = line.trim_start().trim_start_matches("- ");
        if text.is_empty() {
            comment = Some(false);
            continue;
        }
        if text.starts_with("# ") && !text.starts_with("#  ") {
            comment = Some(comment.unwrap_or(false) || text.contains("[restart]"));
            continue;
        }
        let setting = text.trim_start_matches('#');
        let setting = setting.trim_start().trim_start_matches("- ");
        let indent = line.len() - setting.len() - usize::from(text.starts_with('#'));
        let Some((key, _)) = setting.split_once(':') else {
            continue;
        };
        // A key without a comment of its own goes with the one before it.
        marked = comment.take().unwrap_or(marked);
        above.retain(|(i, _)| *i < indent);
        above.push((indent, key.to_owned()));
        let path: Vec<&str> = above.iter().map(|(_, k)| k.as_str()).collect();
        marks.entry(path.join(".")).or_insert(marked);
    }
    let plain = |key: &str| key.replace("[]", "");
    for key in restart::NEEDED {
        assert_eq!(marks.get(&plain(key)), Some(&true), "{key}");
    }
    let mut seen = 0;
    for key in reloaded().keys() {
        let mark = marks.get(&plain(key));
        seen += usize::from(mark.is_some());
        assert_ne!(mark, Some(&true), "{key}");
    }
    assert!(seen > 50, "{seen}");
}
