//! What people are told of an incident, in words and figures.

use super::case::Case;
use super::gauge::Side;
use super::plan;
use crate::types::notice::{Fact, NoticeEvent};
use crate::types::time::{Now, Wall};

/// One line: `token_explosion_detection: agent-prod-01 at 9,812 tokens per execution (limit 5,000)`.
pub(crate) fn title(case: &Case, event: NoticeEvent, now: Now) -> String {
    let (rule, who) = (&case.rule, who(case));
    match event {
        NoticeEvent::Resolved => {
            let state = match case.current {
                Some(value) => format!("now {}", case.metric.describe(case.statistic, value)),
                None => "no traffic".to_owned(),
            };
            format!(
                "{rule}: {who} resolved after {}, {state} (limit {})",
                lasted(case.opened, now.wall),
                limit(case)
            )
        }
        NoticeEvent::Escalated => format!(
            "{rule}: {who} still at {} after {} (limit {})",
            value(case, case.current.unwrap_or(case.worst)),
            lasted(case.opened, now.wall),
            limit(case)
        ),
        NoticeEvent::Updated => format!(
            "{rule}: {who} now at {} (limit {})",
            value(case, case.current.unwrap_or(case.worst)),
            limit(case)
        ),
        NoticeEvent::Opened | NoticeEvent::Test => format!("{rule}: {}", evidence(case)),
    }
}

/// `agent-prod-01 at 9,812 tokens per execution (limit 5,000)`.
pub(crate) fn evidence(case: &Case) -> String {
    format!(
        "{} at {} (limit {})",
        who(case),
        value(case, case.evidence.value),
        limit(case)
    )
}

/// Evidence and measures, in order of interest.
pub(crate) fn facts(case: &Case, event: NoticeEvent, now: Now) -> Vec<Fact> {
    let unit = case.unit();
    let e = &case.evidence;
    let mut facts = vec![fact(case.about.kind, &case.about.name)];
    if let Some(agent) = case.about.agent.as_ref().filter(|_| case.about.kind != "agent") {
        facts.push(fact("agent", agent.as_str()));
    }
    facts.push(fact("metric", &case.metric.name(case.statistic)));
    facts.push(fact("value", &unit.format(e.value)));
    if event != NoticeEvent::Opened {
        facts.push(fact("worst", &unit.format(case.worst)));
        facts.push(fact(
            "now",
            &case.current.map_or("no traffic".to_owned(), |v| unit.format(v)),
        ));
    }
    let side = match e.side {
        Side::Upper => "threshold (upper)",
        Side::Lower => "threshold (lower)",
    };
    facts.push(fact(side, &unit.format(e.threshold)));
    if let Some(baseline) = e.baseline {
        facts.push(fact("baseline", &unit.format(baseline)));
    }
    facts.push(fact("samples", &e.samples.to_string()));
    facts.push(fact("window", &duration(case.window.as_secs())));
    facts.push(fact("action", case.action.as_str()));
    if event == NoticeEvent::Resolved {
        facts.push(fact("lasted", &lasted(case.opened, now.wall)));
    } else {
        for (name, what) in &case.steps {
            facts.push(fact(&format!("step {name}"), what));
        }
    }
    for directive in case.directives() {
        let held = format!(
            "{} until {}, renewed while the incident is open",
            plan::describe(&directive.order),
            directive.expires
        );
        facts.push(fact(&format!("in force {}", directive.order.name()), &held));
    }
    facts
}

fn who(case: &Case) -> String {
    match (case.about.kind, &case.about.agent) {
        ("agent", _) => case.about.name.clone(),
        ("execution", Some(agent)) => format!("execution {} of {agent}", case.about.name),
        ("fleet", _) => "the fleet".to_owned(),
        (kind, _) => format!("{kind} {}", case.about.name),
    }
}

fn value(case: &Case, value: f64) -> String {
    case.metric.describe(case.statistic, value)
}

fn limit(case: &Case) -> String {
    use super::metric::Unit;
    let text = case.unit().format(case.evidence.threshold);
    match case.unit() {
        // The unit stands right before it already.
        Unit::Tokens | Unit::Requests | Unit::PerSecond => text
            .split_once(' ')
            .map_or(text.clone(), |(number, _)| number.to_owned()),
        Unit::Dollars | Unit::Seconds | Unit::Share => text,
    }
}

fn lasted(from: Wall, to: Wall) -> String {
    let millis = to.unix_millis().saturating_sub(from.unix_millis());
    duration(u64::try_from(millis / 1000).unwrap_or(0))
}

fn duration(seconds: u64) -> String {
    match (seconds / 3600, seconds % 3600 / 60, seconds % 60) {
        (0, 0, s) => format!("{s} s"),
        (0, m, 0) => format!("{m} min"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, 0, _) => format!("{h} h"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

fn fact(name: &str, value: &str) -> Fact {
    Fact {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_for_people() {
        let table = [
            (0, "0 s"),
            (59, "59 s"),
            (300, "5 min"),
            (310, "5 min 10 s"),
            (3600, "1 h"),
            (5400, "1 h 30 min"),
        ];
        for (seconds, text) in table {
            assert_eq!(duration(seconds), text);
        }
        let at = Wall::from_unix_millis;
        assert_eq!(lasted(at(5000), at(1000)), "0 s");
        assert_eq!(
            lasted(at(i64::MIN), at(i64::MAX)),
            duration((i64::MAX / 1000) as u64)
        );
    }
}
