//! `fusebox check`: judges a configuration file without starting anything.

use std::path::PathBuf;

use serde_json::json;

use super::{OK, UNUSABLE, print_bytes, say};
use crate::config::{self, Compiled, ObservationSink, Overrides, Problems};
use crate::incident::rule::{Baseline, Metric, Rule};

/// Arguments of `fusebox check`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file.
    file: PathBuf,
    /// How the outcome is told.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object on stdout.
    Json,
}

pub(super) fn run(args: &Args) -> u8 {
    let name = args.file.display().to_string();
    let (text, code) = match (config::load(Some(&args.file), &Overrides::default()), args.output) {
        (Ok(compiled), Output::Text) => (summary(&name, &compiled), OK),
        (Ok(compiled), Output::Json) => (as_json(&compiled), OK),
        (Err(problems), Output::Text) => {
            say(&problems.to_string());
            return UNUSABLE;
        }
        (Err(problems), Output::Json) => (problems_as_json(&problems), UNUSABLE),
    };
    print_bytes(text.as_bytes()).max(code)
}

/// What is in force with this file, on one screen.
fn summary(name: &str, c: &Compiled) -> String {
    let mut out = format!("{name} is good\n");
    let mut line = |label: &str, text: String| {
        let label = if label.is_empty() {
            String::new()
        } else {
            format!("{label}:")
        };
        out.push_str(&format!("  {label:<13} {text}\n"));
    };
    for l in &c.wiring.listeners {
        let scheme = if l.tls.is_some() { " (TLS)" } else { "" };
        let agent = l
            .agent
            .as_ref()
            .map_or_else(String::new, |a| format!(" for agent {a}"));
        line(
            "listener",
            format!("{}{scheme}{agent}", config::show_bind(&l.bind)),
        );
    }
    let token = match c.wiring.admin.all_tokens().len() {
        0 => String::new(),
        1 => " (token)".to_owned(),
        n => format!(" ({n} tokens)"),
    };
    line(
        "admin",
        format!("{}{token}", config::show_bind(&c.wiring.admin.bind)),
    );
    for u in &c.policy.upstreams {
        let scheme = if u.url.tls { "https" } else { "http" };
        let families = match (&u.path_prefix, u.families.is_empty()) {
            (Some(prefix), _) => format!("paths under {prefix}/"),
            (None, true) => "every dialect".to_owned(),
            (None, false) => u
                .families
                .iter()
                .map(|f| format!("{f:?}").to_lowercase())
                .collect::<Vec<_>>()
                .join(", "),
        };
        let authority = u.url.authority.to_str().unwrap_or_default();
        let name = &u.name;
        line(
            "upstream",
            format!(
                "{name} {scheme}://{authority}{} ({}; {families})",
                u.url.base_path, u.provider
            ),
        );
    }
    if let Some(sink) = &c.wiring.observations {
        line(
            "observations",
            match sink {
                ObservationSink::Stdout => "standard output".to_owned(),
                ObservationSink::File(path) => path.display().to_string(),
            },
        );
    }
    line(
        "ledger",
        match &c.wiring.ledger {
            None => "none: state is in memory only".to_owned(),
            Some(ledger) => ledger.path.display().to_string(),
        },
    );
    for t in &c.targets {
        line(
            "alert",
            format!("{} ({} and worse)", t.name, t.min_severity.name()),
        );
    }
    if c.targets.is_empty() {
        line("alert", "nobody: notices are only logged".to_owned());
    }
    if c.rulebook.rules.is_empty() {
        line("rule", "none".to_owned());
    }
    for r in &c.rulebook.rules {
        let off = if r.enabled { "" } else { " (off)" };
        line("rule", format!("{}{off}", r.name));
        line("", config::show_rule(r));
        for note in notes(r) {
            line("", note);
        }
    }
    for note in config::notes(c) {
        line("note", note);
    }
    out
}

/// What of a rule this version does not do yet.
fn notes(rule: &Rule) -> Vec<String> {
    let mut notes = Vec::new();
    let why = match (rule.metric, rule.baseline) {
        (Metric::SemanticSimilarityToBaseline, _) => Some("the metric is not measured by this version"),
        (_, Baseline::Learned | Baseline::Fleet) => Some("baselines are not learned by this version"),
        _ => None,
    };
    notes.extend(why.map(|why| format!("not yet evaluated: {why}")));
    notes
}

fn as_json(c: &Compiled) -> String {
    let rules: Vec<_> = c
        .rulebook
        .rules
        .iter()
        .map(|r| {
            json!({
                "name": r.name,
                "enabled": r.enabled,
                "condition": config::show_rule(r),
                "action": r.action,
                "notes": notes(r),
            })
        })
        .collect();
    let upstreams: Vec<_> = c
        .policy
        .upstreams
        .iter()
        .map(|u| json!({"name": u.name, "provider": u.provider, "host": u.url.host, "port": u.url.port, "tls": u.url.tls}))
        .collect();
    let listeners: Vec<_> = c
        .wiring
        .listeners
        .iter()
        .map(|l| config::show_bind(&l.bind))
        .collect();
    let outcome = json!({
        "ok": true,
        "listeners": listeners,
        "admin": config::show_bind(&c.wiring.admin.bind),
        "upstreams": upstreams,
        "alerts": c.targets.iter().map(|t| &t.name).collect::<Vec<_>>(),
        "rules": rules,
        "notes": config::notes(c),
        "problems": [],
    });
    format!("{outcome:#}\n")
}

fn problems_as_json(problems: &Problems) -> String {
    let list: Vec<_> = problems.iter().collect();
    format!("{:#}\n", json!({"ok": false, "problems": list}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, output: Output) -> (Result<Compiled, Problems>, u8) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.yaml");
        std::fs::write(&file, text).unwrap();
        (
            config::load(Some(&file), &Overrides::default()),
            run(&Args { file, output }),
        )
    }

    #[test]
    fn a_good_file_is_shown_on_one_screen() {
        for output in [Output::Text, Output::Json] {
            let (compiled, code) = check("", output);
            assert_eq!(code, OK);
            let text = summary("f.yaml", &compiled.unwrap());
            assert!(text.lines().count() <= 24, "{text}");
            for part in [
                "f.yaml is good",
                "listener:     127.0.0.1:4310",
                "admin:        127.0.0.1:4311",
                "upstream:     anthropic https://api.anthropic.com (anthropic; anthropic)",
                "mean of tokens_per_execution > 5000 (baseline 2500) over 5m, 1+ samples → throttle_and_alert",
                "p95_response_time > 8s (baseline 2.5s) over 15m, 10+ samples → escalate_to_on_call",
                "not yet evaluated: the metric is not measured by this version",
            ] {
                assert!(text.contains(part), "{part}\n{text}");
            }
        }
    }

    #[test]
    fn a_plan_that_cannot_trigger_is_noted() {
        let text = "upstreams: [{name: a, url: 'https://a', failover: [b]}, {name: b, url: 'https://a/b'}]\n";
        let (compiled, code) = check(text, Output::Text);
        let compiled = compiled.unwrap();
        assert_eq!(code, OK);
        let shown = summary("f.yaml", &compiled);
        assert!(
            shown.contains("note:         upstream a: failover to b goes to the same host"),
            "{shown}"
        );
        let json: serde_json::Value = serde_json::from_str(&as_json(&compiled)).unwrap();
        assert!(
            json.pointer("/notes/0")
                .is_some_and(|n| n.as_str().is_some_and(|n| n.contains("same host")))
        );
    }

    #[test]
    fn a_bad_file_is_unusable() {
        for output in [Output::Text, Output::Json] {
            let (problems, code) = check("workers: x\n", output);
            assert_eq!(code, UNUSABLE);
            let json: serde_json::Value =
                serde_json::from_str(&problems_as_json(&problems.unwrap_err())).unwrap();
            assert_eq!(json.pointer("/problems/0/line"), Some(&1.into()));
            assert_eq!(json.pointer("/problems/0/column"), Some(&10.into()));
        }
    }
}
