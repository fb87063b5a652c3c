//! Follows the incidents of a running fusebox, and says what is new about them.

use std::collections::{BTreeSet, HashMap};

use super::chart::si;
use super::plan::RUNAWAY;
use super::setup::RULE;
use super::timeline::Tag;
use crate::incident::record::{IncidentRecord, IncidentState, TimelineEntry};
use crate::types::directive::{Directive, Order};
use crate::types::ids::{IncidentId, LeaseId};
use crate::types::time::Wall;

/// What is known of all incidents so far.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: HashMap<IncidentId, Seen>,
    /// What the story is about.
    pub(super) case: Case,
    /// Incidents that the story is not about.
    pub(super) others: u64,
}

#[derive(Debug, Default)]
struct Seen {
    entries: usize,
    leases: BTreeSet<LeaseId>,
}

/// The case of the runaway agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Case {
    /// The first incident about it.
    pub(super) incident: Option<IncidentId>,
    /// When that was opened.
    pub(super) opened: Option<Wall>,
    /// From when the first directive holds.
    pub(super) acted: Option<Wall>,
    /// A throttle was in force.
    pub(super) throttled: bool,
    /// A downgrade was in force.
    pub(super) downgraded: bool,
    /// When it was resolved with nothing left in force.
    pub(super) resolved: Option<Wall>,
}

/// A line to be told.
pub(super) type News = (Tag, String);

impl Watch {
    /// Takes all incidents as they are now, and says what is new.
    pub(super) fn look(&mut self, records: &[IncidentRecord]) -> Vec<News> {
        let mut news = Vec::new();
        // Oldest first, so that the story is told in its order.
        let mut records: Vec<&IncidentRecord> = records.iter().collect();
        records.sort_by_key(|r| r.opened);
        for record in records {
            let first = !self.seen.contains_key(&record.id);
            let ours = is_about_the_runaway(record);
            if first && !ours {
                self.others += 1;
            }
            let seen = self.seen.entry(record.id.clone()).or_default();
            for entry in record.timeline.iter().skip(seen.entries) {
                news.extend(tell(record, entry));
            }
            seen.entries = record.timeline.len();
            for directive in &record.directives {
                // When it is relaxed later, the timeline says so.
                if seen.leases.insert(directive.lease.clone()) {
                    news.push((Tag::Directive, describe(directive)));
                }
            }
            if ours {
                self.case.follow(record);
            }
        }
        news
    }
}

impl Case {
    fn follow(&mut self, record: &IncidentRecord) {
        if self.incident.is_none() {
            self.incident = Some(record.id.clone());
            self.opened = Some(record.opened);
        }
        for directive in &record.directives {
            self.acted = self.acted.or(Some(directive.since));
            match directive.order {
                Order::Throttle { .. } => self.throttled = true,
                Order::DowngradeModel { .. } => self.downgraded = true,
                _ => {}
            }
        }
        // A relapse may open another incident: the case is closed when the last one is.
        if record.state == IncidentState::Resolved && record.directives.is_empty() {
            self.resolved = self.resolved.max(record.resolved);
        } else {
            self.resolved = None;
        }
    }
}

fn is_about_the_runaway(record: &IncidentRecord) -> bool {
    let agent = record.agent.as_ref().map(|a| a.as_str());
    record.rule.as_str() == RULE && agent.unwrap_or(&record.subject) == RUNAWAY
}

/// A line for an entry of an incident's timeline; nothing for what is told otherwise.
fn tell(record: &IncidentRecord, entry: &TimelineEntry) -> Option<News> {
    let tag = match entry.event.as_str() {
        // The webhook's receiver tells it when it arrives.
        "told" => return None,
        // Its directive has a line of its own.
        "step_applied" if !record.directives.is_empty() => return None,
        "step_applied" | "step_waiting" | "step_skipped" => Tag::Directive,
        "lifted" | "resolved" => Tag::Released,
        _ => Tag::Incident,
    };
    let word = entry.event.replace('_', " ");
    let text = if entry.event == "opened" {
        format!("opened by {}: {}", record.rule, entry.detail)
    } else {
        format!("{word}: {}", entry.detail)
    };
    Some((tag, text))
}

fn describe(directive: &Directive) -> String {
    let order = match &directive.order {
        Order::Throttle {
            requests_per_minute,
            tokens_per_minute,
        } => {
            let rates: Vec<String> = [(requests_per_minute, "requests"), (tokens_per_minute, "tokens")]
                .into_iter()
                .filter_map(|(rate, of)| Some(format!("{} {of}/min", si(f64::from((*rate)?)))))
                .collect();
            format!("at most {}", rates.join(" and "))
        }
        Order::CapConcurrency { max_in_flight } => format!("at most {max_in_flight} calls at once"),
        Order::DowngradeModel { to: Some(to) } => format!("{to} in place of the model asked for"),
        Order::DowngradeModel { to: None } => "a cheaper model in place of the one asked for".to_owned(),
        other => other.name().replace('_', " "),
    };
    let subject = &directive.subject;
    let lease = (directive.expires.unix_millis() - directive.since.unix_millis()) / 1000;
    format!("in force for {subject}: {order} (ends by itself after {lease} s unless renewed)")
}

/// Incidents for tests.
#[cfg(test)]
pub(super) mod sample {
    use super::*;
    use crate::types::directive::Subject;
    use crate::types::ids::{ActionName, AgentId, RuleName};
    use crate::types::notice::Severity;
    use crate::types::time::Mono;

    pub(in crate::cli::demo) fn record(
        id: &str,
        agent: &str,
        state: IncidentState,
        events: &[&str],
    ) -> IncidentRecord {
        IncidentRecord {
            id: IncidentId::from(id),
            rule: RuleName::from(RULE),
            severity: Severity::Error,
            subject_kind: "agent".to_owned(),
            subject: agent.to_owned(),
            agent: Some(AgentId::from(agent)),
            state,
            metric: "tokens_per_execution".to_owned(),
            value: 7000.0,
            worst: 7000.0,
            current: None,
            baseline: Some(2500.0),
            threshold: 5000.0,
            samples: 4,
            action: ActionName::from("throttle_and_alert"),
            directives: Vec::new(),
            opened: Wall::from_unix_millis(1000),
            resolved: (state == IncidentState::Resolved).then(|| Wall::from_unix_millis(9000)),
            timeline: events
                .iter()
                .map(|event| TimelineEntry {
                    at: Wall::from_unix_millis(1000),
                    event: (*event).to_owned(),
                    detail: "detail".to_owned(),
                })
                .collect(),
            ..IncidentRecord::sample()
        }
    }

    pub(in crate::cli::demo) fn directive(order: Order) -> Directive {
        Directive {
            lease: LeaseId::from(order.name()),
            incident: IncidentId::from("i1"),
            rule: RuleName::from(RULE),
            subject: Subject::Agent(AgentId::from(RUNAWAY)),
            order,
            since: Wall::from_unix_millis(1500),
            expires: Wall::from_unix_millis(61_500),
            until: Mono::FAR,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::sample::{directive, record};
    use super::*;

    #[test]
    fn everything_is_told_once() {
        let mut watch = Watch::default();
        let open = record("i1", RUNAWAY, IncidentState::Open, &["opened", "told"]);
        let news = watch.look(std::slice::from_ref(&open));
        assert_eq!(news.len(), 1);
        assert!(
            news[0]
                .1
                .starts_with("opened by token_explosion_detection: detail")
        );
        assert!(watch.look(&[open]).is_empty());

        let mut acted = record(
            "i1",
            RUNAWAY,
            IncidentState::Open,
            &["opened", "told", "step_applied"],
        );
        acted.directives = vec![
            directive(Order::Throttle {
                requests_per_minute: None,
                tokens_per_minute: Some(60_000),
            }),
            directive(Order::DowngradeModel { to: None }),
        ];
        let news = watch.look(&[acted]);
        assert_eq!(news.len(), 2);
        assert!(
            news[0]
                .1
                .contains("at most 60.0k tokens/min (ends by itself after 60 s"),
            "{news:?}"
        );
        assert_eq!(watch.case.acted, Some(Wall::from_unix_millis(1500)));
        assert!(watch.case.throttled && watch.case.downgraded);
        assert_eq!(watch.case.resolved, None);
    }

    #[test]
    fn the_case_is_closed_when_the_last_incident_is() {
        let mut watch = Watch::default();
        let done = record("i1", RUNAWAY, IncidentState::Resolved, &["opened", "resolved"]);
        watch.look(std::slice::from_ref(&done));
        assert_eq!(watch.case.resolved, Some(Wall::from_unix_millis(9000)));
        let mut again = record("i2", RUNAWAY, IncidentState::Open, &["opened"]);
        again.opened = Wall::from_unix_millis(9500);
        watch.look(&[again, done]);
        assert_eq!(watch.case.resolved, None);
        assert_eq!(watch.case.incident, Some(IncidentId::from("i1")));
    }

    #[test]
    fn others_are_counted_apart() {
        let mut watch = Watch::default();
        let news = watch.look(&[record("i9", "billing", IncidentState::Open, &["opened"])]);
        assert_eq!((news.len(), watch.others), (1, 1));
        assert_eq!(watch.case, Case::default());
    }
}
