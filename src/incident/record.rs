//! Incidents, rules and agents as they are shown: by the admin API, in notices, in the demo.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::types::directive::Directive;
use crate::types::ids::{ActionName, AgentId, AgentVersion, ApprovalId, IncidentId, RuleName, SilenceId};
use crate::types::notice::Severity;
use crate::types::time::Wall;

/// An incident as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct IncidentRecord {
    /// Unique.
    pub id: IncidentId,
    /// Where it comes from.
    pub origin: Origin,
    /// The rule that opened it; for a request the type of incident that it named.
    pub rule: RuleName,
    /// How bad it is.
    pub severity: Severity,
    /// What the subject is: `agent`, `execution`, `model`, `upstream`, `fleet`, `fusebox`.
    pub subject_kind: String,
    /// The subject's name.
    pub subject: String,
    /// The agent that directives bind, where there is one.
    pub agent: Option<AgentId>,
    /// Every agent that it takes in.
    pub agents: Vec<AgentId>,
    /// Where it is on its way: `open`, `recovering`, `resolved`.
    pub state: IncidentState,
    /// The metric in breach, as in the rule; empty where it is not about one.
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
    /// The steps of the chain, in order, and what became of each.
    pub plan: Vec<StepRecord>,
    /// Counts the plans made for it; a later one replaces the one before.
    pub plan_generation: u32,
    /// What is in force for it now.
    pub directives: Vec<Directive>,
    /// Questions to humans, oldest first.
    pub approvals: Vec<ApprovalRecord>,
    /// When it was opened.
    pub opened: Wall,
    /// When it was resolved.
    pub resolved: Option<Wall>,
    /// Who took charge of it.
    pub acknowledged_by: Option<String>,
    /// When somebody took charge of it.
    pub acknowledged: Option<Wall>,
    /// What a human said of it in the end.
    pub verdict: Option<Verdict>,
    /// How often it came back: relapses and reopenings.
    pub returns: u32,
    /// Whether it goes to and fro, so that people are told less.
    pub flapping: bool,
    /// The silence that keeps its notices back.
    pub silenced_by: Option<SilenceId>,
    /// The incident that it became a part of.
    pub merged_into: Option<IncidentId>,
    /// How the agent went before, when it was opened, and when it closed.
    pub measures: Measures,
    /// Everything that happened, oldest first, bounded.
    pub timeline: Vec<TimelineEntry>,
}

/// Where an incident comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A rule was breached.
    Rule,
    /// Somebody asked for an incident response.
    Request,
    /// Something is wrong with fusebox itself.
    Fusebox,
}

/// What a human said of an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was one.
    Confirmed,
    /// It was none.
    FalseAlarm,
}

/// How an agent went: requests and tokens a minute.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Measures {
    /// In a usual minute before; null when none was seen.
    pub usual: Option<PaceRecord>,
    /// In the minute before it was opened.
    pub at_opening: Option<PaceRecord>,
    /// In the minute before it closed.
    pub at_close: Option<PaceRecord>,
}

/// How fast an agent went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PaceRecord {
    /// Requests a minute.
    pub requests_per_minute: f64,
    /// Tokens a minute.
    pub tokens_per_minute: f64,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct StepRecord {
    /// Its kind, as in the configuration.
    pub step: String,
    /// What became of it.
    pub state: StepState,
    /// What it does, for a person; empty before that is known.
    pub what: String,
    /// Why it is as it is, for a person.
    pub why: String,
    /// The question to a human, where there is one.
    pub approval: Option<ApprovalId>,
    /// When it was taken.
    pub taken: Option<Wall>,
    /// When it is judged, while that is to come.
    pub verify_at: Option<Wall>,
    /// The metric when it was taken.
    pub before: Option<f64>,
    /// The metric when it was judged, measured since it was taken.
    pub after: Option<f64>,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// Its turn has not come.
    Pending,
    /// A human is asked.
    Waiting,
    /// It was taken and is not judged yet.
    InForce,
    /// It was taken and worked.
    Worked,
    /// It was taken and did not work.
    Failed,
    /// It was taken, and there was too little traffic to judge it.
    Inconclusive,
    /// It was taken and lifted again, since it did not work.
    Reverted,
    /// People or another system were told; nothing to judge.
    Told,
    /// It was not taken, for a reason that is no human's decision.
    Skipped,
    /// A human said no.
    Denied,
    /// Nobody answered in time.
    Expired,
    /// Another plan, or the end of the incident, made it void.
    Superseded,
}

impl StepState {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Waiting => "waiting",
            Self::InForce => "in_force",
            Self::Worked => "worked",
            Self::Failed => "failed",
            Self::Inconclusive => "inconclusive",
            Self::Reverted => "reverted",
            Self::Told => "told",
            Self::Skipped => "skipped",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
        }
    }
}

/// A question to a human.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalRecord {
    /// Unique.
    pub id: ApprovalId,
    /// The incident that it belongs to.
    pub incident: IncidentId,
    /// The rule of that.
    pub rule: RuleName,
    /// Whom the step would bind.
    pub subject: String,
    /// The kind of step.
    pub step: String,
    /// What would be done.
    pub what: String,
    /// Why it is asked for.
    pub why: String,
    /// What became of the question.
    pub state: ApprovalState,
    /// When it was asked.
    pub requested: Wall,
    /// When it is void.
    pub expires: Wall,
    /// What happens then: `deny`, `approve`, `keep`.
    pub on_timeout: String,
    /// When it was decided.
    pub decided: Option<Wall>,
    /// Who decided.
    pub by: Option<String>,
    /// By which way: `api`, `cli`, `link`, `timeout`.
    pub via: Option<String>,
    /// What was said about it.
    pub reason: Option<String>,
}

/// What became of a question to a human.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalState {
    /// It waits for an answer.
    Needed,
    /// A human said yes.
    Given,
    /// A human said no.
    Denied,
    /// Nobody answered in time.
    Expired,
    /// The step is no longer to be taken.
    Superseded,
}

/// A lease as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseRecord {
    /// What is in force.
    #[serde(flatten)]
    pub directive: Directive,
    /// Whether it is renewed while its incident is open.
    pub renewed: bool,
}

/// A silence or a maintenance window as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SilenceRecord {
    /// Unique.
    pub id: SilenceId,
    /// What it covers.
    pub matcher: super::silence::Matcher,
    /// With `true` nothing is opened for what it covers; with `false` only notices are kept back.
    pub maintenance: bool,
    /// When it begins.
    pub starts: Wall,
    /// When it ends.
    pub ends: Wall,
    /// Who made it.
    pub by: String,
    /// Why.
    pub comment: String,
}

/// Whether automation is stopped, by whom and why.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BrakeRecord {
    /// Whether it is on: no step is taken without a human.
    pub on: bool,
    /// Who set it last.
    pub by: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// When.
    pub since: Option<Wall>,
}

/// What is known of one version of an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VersionRecord {
    /// The agent.
    pub agent: AgentId,
    /// The version.
    pub version: AgentVersion,
    /// When it was seen first.
    pub first_seen: Wall,
    /// When it was seen last.
    pub last_seen: Wall,
    /// Exchanges that went upstream.
    pub exchanges: u64,
    /// Exchanges that failed.
    pub errors: u64,
    /// Input and output tokens.
    pub tokens: u64,
    /// Incidents opened while it was the one in use.
    pub incidents: u64,
    /// The model that it asks for.
    pub model: Option<String>,
    /// Whether it has shown enough healthy traffic.
    pub good: bool,
}

/// Where an incident is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// The metric is in breach; what the chain orders is in force.
    Open,
    /// The metric is back; it has to stay so for a while.
    Recovering,
    /// Over: nothing of it is in force.
    Resolved,
}

impl IncidentState {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Recovering => "recovering",
            Self::Resolved => "resolved",
        }
    }
}

/// One thing that happened to an incident.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimelineEntry {
    /// When.
    pub at: Wall,
    /// A stable word: `opened`, `reopened`, `joined`, `merged`, `plan`, `step_applied`, `step_waiting`, `step_skipped`,
    /// `step_worked`, `step_failed`, `step_inconclusive`, `step_reverted`, `approved`, `denied`, `expired`,
    /// `superseded`, `worsened`, `recovering`, `relapsed`, `flapping`, `lifted`, `lease_ended`, `acknowledged`,
    /// `escalated`, `silenced`, `operator`, `told`, `resolved`.
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
    /// Versions seen, newest first, bounded.
    pub versions: Vec<VersionRecord>,
}

#[cfg(test)]
impl IncidentRecord {
    /// An open incident about an agent `a`, for tests that are about some of it.
    pub(crate) fn sample() -> Self {
        Self {
            id: "inc-1".into(),
            origin: Origin::Rule,
            rule: "token_explosion_detection".into(),
            severity: Severity::Warning,
            subject_kind: "agent".to_owned(),
            subject: "a".to_owned(),
            agent: Some("a".into()),
            agents: vec!["a".into()],
            state: IncidentState::Open,
            metric: "tokens_per_execution".to_owned(),
            value: 7000.0,
            worst: 7000.0,
            current: None,
            baseline: Some(2500.0),
            threshold: 5000.0,
            samples: 4,
            action: "throttle_and_alert".into(),
            plan: Vec::new(),
            plan_generation: 1,
            directives: Vec::new(),
            approvals: Vec::new(),
            opened: Wall::from_unix_millis(1000),
            resolved: None,
            acknowledged_by: None,
            acknowledged: None,
            verdict: None,
            returns: 0,
            flapping: false,
            silenced_by: None,
            merged_into: None,
            measures: Measures::default(),
            timeline: Vec::new(),
        }
    }
}
