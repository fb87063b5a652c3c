//! What a human is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ids::{IncidentId, RuleName};
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
