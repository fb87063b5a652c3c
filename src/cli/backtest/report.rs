//! What came of a replay, and of two side by side, as plain data.

use serde::Serialize;

use super::obey::Done;
use super::replay::Replay;
use crate::incident::record::{IncidentRecord, IncidentState};
use crate::types::time::Wall;

/// A replay, or two.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// What was replayed.
    pub(super) record: Record,
    /// What came of it with the rules that are tried.
    pub(super) rules: Run,
    /// What came of it with the others.
    pub(super) against: Option<Run>,
    /// How they differ.
    pub(super) comparison: Option<Comparison>,
}

/// What was replayed.
#[derive(Debug, Serialize)]
pub(super) struct Record {
    pub(super) path: String,
    pub(super) from: Option<Wall>,
    pub(super) until: Option<Wall>,
    pub(super) exchanges: u64,
    pub(super) agents: u64,
    pub(super) tokens: u64,
    pub(super) cost_usd: f64,
    pub(super) refused_then: u64,
    pub(super) out_of_order: u64,
}

/// What came of the rules of one file.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) file: String,
    pub(super) totals: Totals,
    pub(super) by_rule: Vec<RuleLine>,
    pub(super) incidents: Vec<IncidentLine>,
}

/// Sums over all rules.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Totals {
    pub(super) incidents: u64,
    pub(super) minutes: f64,
    #[serde(flatten)]
    pub(super) done: Done,
}

/// What one rule did.
#[derive(Debug, Serialize)]
pub(super) struct RuleLine {
    pub(super) rule: String,
    pub(super) mode: String,
    /// Breaches found, also by a rule in mode shadow.
    pub(super) findings: u64,
    pub(super) incidents: u64,
    pub(super) minutes: f64,
    pub(super) agents: u64,
    #[serde(flatten)]
    pub(super) done: Done,
}

/// One incident.
#[derive(Debug, Clone, Serialize)]
pub(super) struct IncidentLine {
    pub(super) rule: String,
    pub(super) subject_kind: String,
    pub(super) subject: String,
    pub(super) agents: Vec<String>,
    pub(super) opened: Wall,
    /// Null: it was open when the record ended.
    pub(super) resolved: Option<Wall>,
    pub(super) minutes: f64,
    pub(super) value: f64,
    pub(super) worst: f64,
    pub(super) threshold: f64,
    /// Each step with what became of it.
    pub(super) steps: Vec<String>,
    #[serde(flatten)]
    pub(super) done: Done,
}

/// How two runs differ; what is positive is more with the rules that are tried.
#[derive(Debug, Serialize)]
pub(super) struct Comparison {
    pub(super) only_rules: Vec<IncidentLine>,
    pub(super) only_against: Vec<IncidentLine>,
    pub(super) in_both: u64,
    pub(super) more_minutes: f64,
    pub(super) more_refused: i64,
    pub(super) more_tokens_saved: i64,
    pub(super) more_cost_saved_usd: f64,
}

impl Run {
    /// What came of a replay.
    pub(super) fn of(file: String, replay: &Replay) -> Self {
        let end = replay.span().map_or(Wall::default(), |(_, end)| end);
        let incidents: Vec<IncidentLine> = replay
            .incidents()
            .iter()
            .map(|i| line(i, replay.gate.done.get(&i.id).copied().unwrap_or_default(), end))
            .collect();
        let by_rule = replay
            .rules()
            .into_iter()
            .map(|rule| {
                let own = || incidents.iter().filter(|i| i.rule == rule.name.as_str());
                let mut agents: Vec<&String> = own().flat_map(|i| &i.agents).collect();
                agents.sort_unstable();
                agents.dedup();
                let totals = Totals::of(own());
                RuleLine {
                    mode: rule.mode,
                    findings: rule.findings,
                    incidents: totals.incidents,
                    minutes: totals.minutes,
                    agents: agents.len() as u64,
                    done: totals.done,
                    rule: rule.name.to_string(),
                }
            })
            .collect();
        Self {
            file,
            totals: Totals::of(incidents.iter()),
            by_rule,
            incidents,
        }
    }
}

impl Totals {
    fn of<'a>(incidents: impl Iterator<Item = &'a IncidentLine>) -> Self {
        let mut totals = Self {
            incidents: 0,
            minutes: 0.0,
            done: Done::default(),
        };
        for incident in incidents {
            totals.incidents += 1;
            totals.minutes += incident.minutes;
            totals.done.add(&incident.done);
        }
        totals
    }
}

impl Comparison {
    /// Compares what two rule files made of one record. Incidents are the same when rule and subject are, and their
    /// times overlap.
    pub(super) fn of(rules: &Run, against: &Run) -> Self {
        let only = |here: &Run, there: &Run| -> Vec<IncidentLine> {
            let known = |i: &&IncidentLine| !there.incidents.iter().any(|other| same(i, other));
            here.incidents.iter().filter(known).cloned().collect()
        };
        let only_rules = only(rules, against);
        let (a, b) = (&rules.totals, &against.totals);
        let more = |a: u64, b: u64| i64::try_from(i128::from(a) - i128::from(b)).unwrap_or(i64::MAX);
        Self {
            in_both: (rules.incidents.len() - only_rules.len()) as u64,
            only_rules,
            only_against: only(against, rules),
            more_minutes: a.minutes - b.minutes,
            more_refused: more(a.done.refused, b.done.refused),
            more_tokens_saved: more(a.done.tokens_saved, b.done.tokens_saved),
            more_cost_saved_usd: a.done.cost_saved_usd - b.done.cost_saved_usd,
        }
    }
}

fn same(a: &IncidentLine, b: &IncidentLine) -> bool {
    let ends = |i: &IncidentLine| i.resolved.unwrap_or(Wall::from_unix_millis(i64::MAX));
    a.rule == b.rule
        && a.subject_kind == b.subject_kind
        && a.subject == b.subject
        && a.opened <= ends(b)
        && b.opened <= ends(a)
}

fn line(i: &IncidentRecord, done: Done, end: Wall) -> IncidentLine {
    let resolved = i.resolved.filter(|_| i.state == IncidentState::Resolved);
    let until = resolved.unwrap_or(end).unix_millis();
    let lasted = until.saturating_sub(i.opened.unix_millis()).max(0);
    let step = |s: &crate::incident::record::StepRecord| format!("{} {}", s.step, s.state.name());
    IncidentLine {
        rule: i.rule.to_string(),
        subject_kind: i.subject_kind.clone(),
        subject: i.subject.clone(),
        agents: i.agents.iter().map(ToString::to_string).collect(),
        opened: i.opened,
        resolved,
        minutes: lasted as f64 / 60_000.0,
        value: i.value,
        worst: i.worst,
        threshold: i.threshold,
        steps: i.plan.iter().map(step).collect(),
        done,
    }
}
