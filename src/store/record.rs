//! The rows of the ledger: columns to search by, and a document made by whoever writes the row.

use serde::{Deserialize, Serialize};

use super::row::row;
use crate::types::time::Wall;

/// Something that has to last: written at once, told when it is durable.
///
/// Each is an upsert by the key of its row, so that writing the same twice is the same as once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// An incident as it is now.
    Incident(IncidentRow),
    /// One line of an incident's timeline.
    Timeline(TimelineRow),
    /// A lease as it is now.
    Lease(LeaseRow),
    /// An approval as it is now.
    Approval(ApprovalRow),
    /// A silence or maintenance window.
    Silence(SilenceRow),
    /// A version of an agent.
    Version(VersionRow),
    /// A notice on its way to a target.
    Delivery(DeliveryRow),
    /// An act of an operator.
    Audit(AuditRow),
    /// A value by its key.
    State(StateRow),
    /// Takes out the row with this key, if there is one.
    Forget(Key),
}

/// What tells one row of the ledger from another.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// By id.
    Incident(String),
    /// By incident and place in its timeline.
    Timeline(String, u64),
    /// By id.
    Lease(String),
    /// By id.
    Approval(String),
    /// By id.
    Silence(String),
    /// By agent and version.
    Version(String, String),
    /// By id.
    Delivery(String),
    /// By key.
    State(String),
}

row! {
    /// An incident.
    IncidentRow in "incidents" by 1 {
        /// Unique.
        id: String,
        /// The rule that opened it.
        rule: String,
        /// What it is about: `agent`, `upstream`, …
        subject_kind: String,
        /// Which one.
        subject: String,
        /// The agent behind the subject, where there is one.
        agent: Option<String>,
        /// In the caller's words.
        state: String,
        /// In the caller's words.
        severity: String,
        /// When it was opened.
        opened: Wall,
        /// When it last changed.
        changed: Wall,
        /// When it was closed. Incidents without are kept for ever.
        resolved: Option<Wall>,
        /// JSON as the API shows it.
        #[serde(with = "super::document::text")]
        record: String,
        /// JSON by which the engine goes on after a restart; null once there is nothing to go on with.
        #[serde(with = "super::document::maybe")]
        live: Option<String>,
    }
}

row! {
    /// One line of an incident's timeline.
    TimelineRow in "timeline" by 2 {
        /// The incident.
        incident: String,
        /// Place in its timeline; at most `i64::MAX`.
        seq: u64,
        /// When.
        at: Wall,
        /// What kind of thing happened.
        event: String,
        /// What happened.
        detail: String,
    }
}

row! {
    /// A lease: the life of a directive.
    LeaseRow in "leases" by 1 {
        /// Unique.
        id: String,
        /// Its owner.
        incident: String,
        /// What kind of directive it holds.
        kind: String,
        /// Whom it binds.
        subject: String,
        /// JSON of the directive.
        #[serde(with = "super::document::text")]
        order: String,
        /// In force since.
        since: Wall,
        /// In force until.
        expires: Wall,
        /// Whether it is in force.
        state: LeaseState,
    }
}

row! {
    /// A question to a human, and the answer.
    ApprovalRow in "approvals" by 1 {
        /// Unique.
        id: String,
        /// What it belongs to.
        incident: String,
        /// What is asked for.
        step: String,
        /// In the caller's words.
        state: String,
        /// When it was asked.
        requested: Wall,
        /// When it is too late.
        expires: Wall,
        /// When it was answered.
        decided: Option<Wall>,
        /// By whom.
        by: Option<String>,
        /// On which way: CLI, API, link.
        via: Option<String>,
        /// Why.
        reason: Option<String>,
        /// JSON.
        #[serde(with = "super::document::text")]
        document: String,
    }
}

row! {
    /// A silence or maintenance window.
    SilenceRow in "silences" by 1 {
        /// Unique.
        id: String,
        /// JSON.
        #[serde(with = "super::document::text")]
        document: String,
        /// Holds from.
        starts: Wall,
        /// Holds until.
        ends: Wall,
        /// Who made it.
        by: String,
        /// Why.
        comment: String,
        /// Whether it was ended before its time.
        ended: bool,
    }
}

row! {
    /// A version of an agent.
    VersionRow in "versions" by 2 {
        /// The agent.
        agent: String,
        /// The version.
        version: String,
        /// When its first exchange ended.
        first_seen: Wall,
        /// When its last exchange ended.
        last_seen: Wall,
        /// JSON.
        #[serde(with = "super::document::text")]
        document: String,
    }
}

row! {
    /// A notice on its way to a target.
    DeliveryRow in "deliveries" by 1 {
        /// Unique.
        id: String,
        /// Whom to tell.
        target: String,
        /// What about.
        incident: Option<String>,
        /// When it was queued.
        created: Wall,
        /// How far it is.
        state: DeliveryState,
        /// Attempts made.
        attempts: u32,
        /// When to try (again).
        next_attempt: Option<Wall>,
        /// JSON.
        #[serde(with = "super::document::text")]
        document: String,
        /// What went wrong last.
        last_error: Option<String>,
    }
}

row! {
    /// An act of an operator. Two that agree in everything are one.
    AuditRow in "audit" by 5 {
        /// When.
        at: Wall,
        /// Who.
        who: String,
        /// On which way.
        via: String,
        /// What was done.
        what: String,
        /// More about it.
        detail: String,
    }
}

row! {
    /// A value by its key.
    StateRow in "state" by 1 {
        /// Its name.
        key: String,
        /// JSON.
        #[serde(with = "super::document::text")]
        document: String,
    }
}

/// Whether a lease is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// It is.
    Active,
    /// It was taken back.
    Lifted,
    /// Its time ran out.
    Expired,
}

impl LeaseState {
    pub(super) const ALL: [(Self, &str); 3] = [
        (Self::Active, "active"),
        (Self::Lifted, "lifted"),
        (Self::Expired, "expired"),
    ];
}

/// How far a delivery is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Still to be delivered.
    Queued,
    /// Delivered.
    Delivered,
    /// Given up.
    Dead,
}

impl DeliveryState {
    pub(super) const ALL: [(Self, &str); 3] = [
        (Self::Queued, "queued"),
        (Self::Delivered, "delivered"),
        (Self::Dead, "dead"),
    ];
}

impl Record {
    /// What the record replaces; `None` for an act, which replaces nothing.
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Self::Incident(row) => Key::Incident(row.id.clone()),
            Self::Timeline(row) => Key::Timeline(row.incident.clone(), row.seq),
            Self::Lease(row) => Key::Lease(row.id.clone()),
            Self::Approval(row) => Key::Approval(row.id.clone()),
            Self::Silence(row) => Key::Silence(row.id.clone()),
            Self::Version(row) => Key::Version(row.agent.clone(), row.version.clone()),
            Self::Delivery(row) => Key::Delivery(row.id.clone()),
            Self::Audit(_) => return None,
            Self::State(row) => Key::State(row.key.clone()),
            Self::Forget(key) => key.clone(),
        })
    }

    /// Whether what happens next depends on it; history does not.
    pub(super) fn is_vital(&self) -> bool {
        !matches!(self, Self::Timeline(_) | Self::Audit(_) | Self::Version(_))
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn weight(&self) -> usize {
        let text = match self {
            Self::Incident(row) => row.record.len() + row.live.as_ref().map_or(0, String::len),
            Self::Timeline(row) => row.detail.len(),
            Self::Lease(row) => row.order.len(),
            Self::Approval(row) => row.document.len(),
            Self::Silence(row) => row.document.len(),
            Self::Version(row) => row.document.len(),
            Self::Delivery(row) => row.document.len(),
            Self::Audit(row) => row.detail.len(),
            Self::State(row) => row.document.len(),
            Self::Forget(_) => 0,
        };
        // The row itself, its short texts, and its key.
        text.saturating_add(512)
    }
}
