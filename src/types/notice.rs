//! What a human is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ids::{AgentId, IncidentId, RuleName};
use super::time::Wall;

/// What a human is told about an incident. Holds no content of any exchange.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Notice {
    /// Unique: the same over retries of its delivery.
    pub id: String,
    /// What happened.
    pub event: NoticeEvent,
    /// The case; also the key by which receivers put notices together.
    pub incident: IncidentId,
    /// The rule that opened it.
    pub rule: RuleName,
    /// How bad it is.
    pub severity: Severity,
    /// Whom it is about: an agent, an execution, a model, an upstream or the fleet.
    pub subject: String,
    /// One line for a person.
    pub title: String,
    /// Evidence and measures as name and value, in order of interest.
    pub facts: Vec<Fact>,
    /// When it happened.
    pub at: Wall,
    /// Names of the alert targets to tell; empty means all.
    #[serde(default)]
    pub targets: Vec<String>,
    /// The agents it concerns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<AgentId>,
    /// The incident's page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// What a human is asked to decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<ApprovalAsk>,
    /// What another system is asked to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remediation: Option<RemediationAsk>,
    /// Level of the on-call that is told; 0 is the first.
    #[serde(default, skip_serializing_if = "is_first")]
    pub level: u8,
    /// Who has taken charge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged_by: Option<String>,
}

/// A question to a human.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalAsk {
    /// Its name, for the answer.
    pub id: String,
    /// What would be done.
    pub what: String,
    /// Why it is asked for.
    pub why: String,
    /// When the question is void.
    pub expires: Wall,
    /// What happens then: `deny`, `approve` or `keep`.
    pub on_timeout: String,
    /// Where it is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
}

/// What another system is asked to do (a deployment, a job).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemediationAsk {
    /// `rollback`, or the name that the step gives it.
    pub action: String,
    /// The version that is to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_version: Option<String>,
    /// The version that is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_version: Option<String>,
}

fn is_first(level: &u8) -> bool {
    *level == 0
}

/// One named value of a notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// Its value with the unit.
    pub value: String,
}

/// What a notice announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NoticeEvent {
    /// An incident was opened.
    Opened,
    /// Something about it changed.
    Updated,
    /// Nobody acknowledged it: the next level is told.
    Escalated,
    /// Somebody has taken charge of it.
    Acknowledged,
    /// It came back soon after it was over.
    Reopened,
    /// A human is asked to decide about a step.
    ApprovalRequested,
    /// The question was decided, or is void.
    ApprovalDecided,
    /// Another system is asked to do something.
    RemediationRequested,
    /// It is over.
    Resolved,
    /// Not about an incident: a trial of the target.
    Test,
}

impl NoticeEvent {
    /// The event's name on the wire, as `incident.opened`.
    pub const fn wire_name(self) -> &'static str {
        match self {
            Self::Opened => "incident.opened",
            Self::Updated => "incident.updated",
            Self::Escalated => "incident.escalated",
            Self::Acknowledged => "incident.acknowledged",
            Self::Reopened => "incident.reopened",
            Self::ApprovalRequested => "approval.requested",
            Self::ApprovalDecided => "approval.decided",
            Self::RemediationRequested => "remediation.requested",
            Self::Resolved => "incident.resolved",
            Self::Test => "notice.test",
        }
    }
}

/// How bad something is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Worth a look in working hours.
    #[default]
    Warning,
    /// Worth a look now.
    Error,
    /// Worth waking somebody.
    Critical,
}

impl Severity {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
        }
    }
}
