//! Incidents, rules and agents as they are shown: by the admin API, in notices, in the demo.

use schemars::JsonSchema;
use serde::Serialize;

use crate::types::directive::Directive;
use crate::types::ids::{ActionName, AgentId, IncidentId, RuleName};
use crate::types::notice::Severity;
use crate::types::time::Wall;

/// An incident as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct IncidentRecord {
    /// Unique.
    pub id: IncidentId,
    /// The rule that opened it.
    pub rule: RuleName,
    /// How bad it is.
    pub severity: Severity,
    /// What the subject is: `agent`, `execution`, `model`, `upstream`, `fleet`.
    pub subject_kind: String,
    /// The subject's name.
    pub subject: String,
    /// The agent that directives bind, where there is one.
    pub agent: Option<AgentId>,
    /// Where it is on its way: `open`, `recovering`, `resolved`.
    pub state: IncidentState,
    /// The metric in breach, as in the rule.
    pub metric: String,
    /// Its value when the incident was opened, in the metric's unit.
    pub value: f64,
    /// The worst value since.
    pub worst: f64,
    /// Its value now (or when it closed).
    pub current: Option<f64>,
    /// What is normal.
    pub baseline: Option<f64>,
    /// What it must not pass.
    pub threshold: f64,
    /// Samples behind the value.
    pub samples: u64,
    /// The chain that was run.
    pub action: ActionName,
    /// What is in force for it now.
    pub directives: Vec<Directive>,
    /// When it was opened.
    pub opened: Wall,
    /// When it was resolved.
    pub resolved: Option<Wall>,
    /// Everything that happened, oldest first, bounded.
    pub timeline: Vec<TimelineEntry>,
}

/// Where an incident is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// The metric is in breach; what the chain orders is in force.
    Open,
    /// The metric is back; it has to stay so for a while.
    Recovering,
    /// Over: nothing of it is in force.
    Resolved,
}

/// One thing that happened to an incident.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TimelineEntry {
    /// When.
    pub at: Wall,
    /// A stable word: `opened`, `step_applied`, `step_waiting`, `step_skipped`, `worsened`, `recovering`, `relapsed`,
    /// `lifted`, `resolved`, `operator`, `told`.
    pub event: String,
    /// What and why, for a person.
    pub detail: String,
}

/// A rule with what it sees.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RuleStatus {
    /// Its name.
    pub name: RuleName,
    /// Whether it is on.
    pub enabled: bool,
    /// `shadow`, `warn`, `approve`, `enforce`.
    pub mode: String,
    /// Metric with statistic, as in the configuration.
    pub metric: String,
    /// Whether it is evaluated: `ok`, or why not (`not yet evaluated: …`).
    pub evaluation: String,
    /// What is normal, when it is a number.
    pub baseline: Option<f64>,
    /// Upper threshold, resolved.
    pub threshold_upper: Option<f64>,
    /// Lower threshold, resolved.
    pub threshold_lower: Option<f64>,
    /// Window in seconds.
    pub window_seconds: f64,
    /// Subjects followed.
    pub subjects: u64,
    /// Breaches found since the start.
    pub findings: u64,
    /// Incidents open now.
    pub open_incidents: u64,
    /// The subjects closest to (or furthest past) a threshold, worst first, at most ten.
    pub worst: Vec<SubjectStatus>,
}

/// What a rule sees of one subject.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct SubjectStatus {
    /// Its name.
    pub subject: String,
    /// Value now; null with fewer samples than needed.
    pub value: Option<f64>,
    /// Samples in the window.
    pub samples: u64,
    /// Whether it is in breach.
    pub breach: bool,
    /// What it waits for, when it is in breach without an incident (`for`, `cooldown`, …).
    pub waiting_on: Option<String>,
}

/// What the engine sees of one agent.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AgentStatus {
    /// Its name.
    pub agent: AgentId,
    /// When it was seen last.
    pub last_seen: Wall,
    /// Tokens a minute over the last minute.
    pub tokens_per_minute: f64,
    /// Requests a minute over the last minute.
    pub requests_per_minute: f64,
    /// Open incidents.
    pub incidents: Vec<IncidentId>,
    /// What it must obey.
    pub directives: Vec<Directive>,
    /// The version seen last.
    pub version: Option<String>,
}
