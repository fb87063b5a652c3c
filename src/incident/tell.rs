//! What people are told of an incident, in words and figures.

use super::case::{Case, Kind};
use super::gauge::Side;
use super::plan;
use crate::types::ids::ApprovalId;
use crate::types::notice::{Fact, NoticeEvent};
use crate::types::time::{Now, Wall};

/// One line: `token_explosion_detection: agent-prod-01 at 9,812 tokens per execution (limit 5,000)`.
pub(crate) fn title(case: &Case, event: NoticeEvent, now: Now) -> String {
    let (rule, who) = (&case.rule, who(case));
    let limited = |value: Option<f64>| match (value, case.evidence.metric) {
        (Some(value), Some(_)) => format!(" at {} (limit {})", case.describe(value), limit(case)),
        _ => String::new(),
    };
    match event {
        NoticeEvent::Resolved => {
            let state = match (case.current, case.evidence.metric) {
                (_, None) => String::new(),
                (Some(value), _) => format!(", now {} (limit {})", case.describe(value), limit(case)),
                (None, _) => format!(", no traffic (limit {})", limit(case)),
            };
            format!(
                "{rule}: {who} resolved after {}{state}",
                lasted(case.opened.wall, now.wall)
            )
        }
        NoticeEvent::Escalated => {
            let still = limited(Some(case.current.unwrap_or(case.worst)));
            format!(
                "{rule}: {who} still{still} after {}",
                lasted(case.opened.wall, now.wall)
            )
        }
        NoticeEvent::Updated => format!(
            "{rule}: {who} now{}",
            limited(Some(case.current.unwrap_or(case.worst)))
        ),
        NoticeEvent::Acknowledged => {
            let by = case.acknowledged.as_ref().map_or("nobody", |(by, _)| by);
            format!("{rule}: {who} acknowledged by {by}")
        }
        NoticeEvent::Reopened => format!("{rule}: {} again", evidence(case)),
        NoticeEvent::RemediationRequested => format!("{rule}: {who} needs a remediation"),
        NoticeEvent::Opened
        | NoticeEvent::Test
        | NoticeEvent::ApprovalRequested
        | NoticeEvent::ApprovalDecided => format!("{rule}: {}", evidence(case)),
    }
}

/// One line about a question: `token_explosion_detection: may agent-prod-01 be bound by "model switched to gpt-4o-mini"?`.
pub(crate) fn question(case: &Case, event: NoticeEvent, id: &ApprovalId) -> String {
    let (rule, who) = (&case.rule, who(case));
    let Some(question) = case.approval(id) else {
        return format!("{rule}: {who}");
    };
    let by = question.by.as_deref().filter(|by| *by != "nobody");
    let by = by.map_or(String::new(), |by| format!(" by {by}"));
    match (event, question.state) {
        (NoticeEvent::ApprovalRequested, _) => format!("{rule}: approve for {who}: {}?", question.what),
        (_, state) => format!(
            "{rule}: {} for {who}: approval {}{by}",
            question.what,
            state.name()
        ),
    }
}

/// `agent-prod-01 at 9,812 tokens per execution (limit 5,000)`.
pub(crate) fn evidence(case: &Case) -> String {
    if case.evidence.metric.is_none() {
        return format!("{}: {}", who(case), case.evidence.words);
    }
    format!(
        "{} at {} (limit {})",
        who(case),
        case.describe(case.evidence.value),
        limit(case)
    )
}

/// Evidence and measures, in order of interest.
pub(crate) fn facts(case: &Case, event: NoticeEvent, now: Now) -> Vec<Fact> {
    let e = &case.evidence;
    let mut facts = vec![fact(case.about.kind.name(), &case.about.name)];
    if let Some(agent) = case
        .about
        .agent
        .as_ref()
        .filter(|_| case.about.kind != Kind::Agent)
    {
        facts.push(fact("agent", agent.as_str()));
    }
    if case.members.len() > 1 {
        let names: Vec<&str> = case.members.iter().take(SHOWN).map(|m| m.name.as_str()).collect();
        let more = case.members.len().saturating_sub(SHOWN);
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        facts.push(fact(
            "agents",
            &format!("{}: {}{more}", case.members.len(), names.join(", ")),
        ));
    }
    if let Some(unit) = case.unit() {
        facts.push(fact("metric", &case.metric_name()));
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
        facts.push(fact("window", &duration(e.window.as_secs())));
    }
    facts.push(fact("action", case.action.as_str()));
    if event == NoticeEvent::Resolved {
        facts.push(fact("lasted", &lasted(case.opened.wall, now.wall)));
    } else {
        for (name, what) in case.steps() {
            facts.push(fact(&format!("step {name}"), &what));
        }
    }
    for lease in case.lease_records() {
        let renewed = if lease.renewed {
            ", renewed while the incident is open"
        } else {
            ""
        };
        let directive = &lease.directive;
        let held = format!(
            "{} until {}{renewed}",
            plan::describe(&directive.order),
            directive.expires
        );
        let name = format!("in force {}", directive.order.name());
        if !facts.iter().any(|f: &Fact| f.name == name) {
            facts.push(fact(&name, &held));
        }
    }
    facts
}

/// Members of an incident that are named.
const SHOWN: usize = 10;

fn who(case: &Case) -> String {
    match (case.about.kind, &case.about.agent) {
        (Kind::Agent, _) => case.about.name.clone(),
        (Kind::Execution, Some(agent)) => format!("execution {} of {agent}", case.about.name),
        (Kind::Fleet, _) => "the fleet".to_owned(),
        (Kind::Fusebox, _) => "fusebox".to_owned(),
        (kind, _) => format!("{} {}", kind.name(), case.about.name),
    }
}

fn limit(case: &Case) -> String {
    use super::metric::Unit;
    let Some(unit) = case.unit() else {
        return String::new();
    };
    let text = unit.format(case.evidence.threshold);
    match unit {
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
