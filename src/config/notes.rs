//! What a good configuration may still get wrong: plans that cannot be carried out, links that are missing.

use super::{Compiled, defaults};
use crate::dialect::table::Family;
use crate::enforce::policy::Upstream;
use crate::incident::rule::{Approval, StepKind};

/// One line for each thing worth a second look, in the order of the file.
pub(super) fn notes(c: &Compiled) -> Vec<String> {
    let mut notes = Vec::new();
    let named = |name: &str| c.policy.upstreams.iter().find(|u| u.name.as_str() == name);
    let mut any_plan = false;
    for upstream in &c.policy.upstreams {
        let name = &upstream.name;
        for to in upstream.failover.iter().filter_map(|to| named(to.as_str())) {
            any_plan = true;
            not_served(upstream, to, &mut notes);
            if (&to.url.host, to.url.port) == (&upstream.url.host, upstream.url.port) {
                notes.push(format!(
                    "upstream {name}: failover to {} goes to the same host: what takes one down takes both",
                    to.name
                ));
            }
        }
        if upstream.failover.is_empty() {
            continue;
        }
        let on = &upstream.retry_on;
        if !on.connect_error && !on.first_byte_timeout && !on.first_event_error && on.statuses.is_empty() {
            notes.push(format!(
                "upstream {name}: failover cannot trigger, since retry_on is empty"
            ));
        } else if upstream.breaker.is_none() {
            notes.push(format!(
                "upstream {name}: its breaker is off, so every request waits for it to fail before another is tried"
            ));
        }
        let (first_byte, total) = (upstream.timeouts.first_byte, upstream.timeouts.total);
        if on.first_byte_timeout && total.is_some_and(|total| total <= first_byte) {
            notes.push(format!(
                "upstream {name}: failover cannot trigger on first_byte_timeout, since timeouts.total ends first"
            ));
        }
    }
    let retries = c.policy.retries;
    if any_plan && retries.percent == 0.0 && retries.min_per_minute == 0 {
        notes.push("failover cannot trigger, since retries allows no further attempt".to_owned());
    }
    of_actions(c, &mut notes);
    notes
}

/// Dialects of `from` that a request cannot be sent on with.
fn not_served(from: &Upstream, to: &Upstream, notes: &mut Vec<String>) {
    let (ours, theirs) = (told(from), told(to));
    if theirs.is_empty() {
        return;
    }
    let (name, to) = (&from.name, &to.name);
    let words = |families: &[Family]| {
        let words: Vec<String> = families.iter().map(|f| format!("{f:?}").to_lowercase()).collect();
        words.join(", ")
    };
    if ours.is_empty() {
        let only = words(theirs);
        notes.push(format!(
            "upstream {name}: failover to {to} is for requests of {only} only"
        ));
        return;
    }
    let missing: Vec<Family> = ours.iter().filter(|f| !theirs.contains(f)).copied().collect();
    if !missing.is_empty() {
        notes.push(format!(
            "upstream {name}: failover to {to} cannot trigger for {}, which {to} does not serve",
            words(&missing)
        ));
    }
}

/// The dialects that an upstream serves as far as is told; by its provider where the file does not say.
fn told(upstream: &Upstream) -> &[Family] {
    if upstream.families.is_empty() {
        defaults::families_of(&upstream.provider)
    } else {
        &upstream.families
    }
}

/// What the chains that rules name cannot do.
fn of_actions(c: &Compiled, notes: &mut Vec<String>) {
    let mut asks = None;
    for (name, action) in &c.rulebook.actions {
        if !c.rulebook.rules.iter().any(|r| r.enabled && r.action == *name) {
            continue;
        }
        for step in &action.steps {
            let tells = matches!(step.kind, StepKind::Notify { .. } | StepKind::Escalate { .. });
            if step.approval == Approval::Required && !tells {
                asks.get_or_insert(name);
            }
            if let StepKind::Reroute { to } = &step.kind
                && c.policy.upstreams.iter().all(|u| u.name == *to)
            {
                notes.push(format!(
                    "action {name}: reroute to {to} changes nothing, since it is the only upstream"
                ));
            }
        }
    }
    if let (Some(name), None) = (asks, &c.wiring.admin.external_url) {
        notes.push(format!(
            "action {name} asks a human, but external_url is not set: notices hold no link to answer by"
        ));
    }
    if c.rulebook.brake {
        notes.push("automation.brake is on: every step waits for a human".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Overrides, compile};

    fn notes(text: &str) -> Vec<String> {
        let compiled = compile("f", text, &Overrides::default(), &|_| None).unwrap_or_else(|p| panic!("{p}"));
        super::notes(&compiled)
    }

    #[test]
    fn a_plan_that_cannot_trigger_is_told() {
        let pair = |more: &str, other: &str| {
            format!(
                "upstreams:\n  - {{name: a, url: 'https://a', failover: [b]{more}}}\n  - {{name: b, url: 'https://b'{other}}}\n"
            )
        };
        for (text, want) in [
            (pair("", ""), None),
            (
                pair(", breaker: {failures: 0}", ""),
                Some("upstream a: its breaker is off"),
            ),
            (
                pair(", retry_on: []", ""),
                Some("upstream a: failover cannot trigger, since retry_on is empty"),
            ),
            (
                pair(", timeouts: {total: 30s}", ""),
                Some("cannot trigger on first_byte_timeout"),
            ),
            (
                pair(", families: [openai, anthropic]", ", families: [openai]"),
                Some("cannot trigger for anthropic"),
            ),
            (
                pair(", provider: anthropic", ", provider: openai"),
                Some("serves no dialect"),
            ),
            (
                pair("", ", families: [openai]"),
                Some("is for requests of openai only"),
            ),
            (
                pair("", "").replace("//b", "//a/v2"),
                Some("goes to the same host"),
            ),
            (
                pair("", "") + "retries: {budget_percent: 0, min_per_minute: 0}",
                Some("retries allows no further"),
            ),
        ] {
            let got = match compile("f", &text, &Overrides::default(), &|_| None) {
                Ok(c) => super::notes(&c),
                Err(p) => p.lines(),
            };
            match want {
                None => assert_eq!(got, [""; 0], "{text}"),
                Some(want) => assert!(
                    matches!(got.as_slice(), [one] if one.contains(want)),
                    "{text}\n{got:?}"
                ),
            }
        }
    }

    #[test]
    fn chains_that_rules_name_are_looked_at() {
        assert_eq!(notes(""), [""; 0]);
        let rule = "agent_incident_rules: [{name: r, metric: error_rate, threshold_upper: 5%, action: x}]\n";
        let asks = format!("{rule}actions: {{x: {{steps: [contain]}}}}\n");
        assert!(notes(&asks)[0].contains("action x asks a human, but external_url is not set"));
        assert_eq!(
            notes(&format!("{asks}external_url: 'https://f.example'\n")),
            [""; 0]
        );
        let alone = format!(
            "{rule}upstreams: [{{name: a, url: 'https://a'}}]\nactions: {{x: {{steps: [{{reroute: {{to: a}}, approval: automatic}}]}}}}\n"
        );
        assert!(notes(&alone)[0].contains("since it is the only upstream"));
        assert!(notes("automation: {brake: true}")[0].contains("brake is on"));
    }
}
