//! What the engine is told, and what it says to an operator's act.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::rule::{Rulebook, Step};
use super::silence::Matcher;
use crate::types::directive::Subject;
use crate::types::ids::{ActionName, AgentId, ApprovalId, IncidentId, LeaseId, SilenceId};
use crate::types::observation::Observation;
use crate::types::time::Wall;

/// One thing that happened. Time comes beside it, as a [`crate::types::time::Now`].
#[derive(Debug, Clone)]
pub enum Input {
    /// An exchange ended.
    Observation(Box<Observation>),
    /// An execution's stream is still running and has used so much so far (tokens, estimated or partial).
    Progress(Box<Observation>),
    /// An exchange that ended before the process began: it fills the windows and is not judged.
    Past(Box<Observation>),
    /// Time passed; sent about once a second.
    Tick,
    /// The configuration changed.
    Rules(Arc<Rulebook>),
    /// An operator did something.
    Operator(OperatorAct),
    /// Something is wrong with fusebox itself, or no longer.
    Trouble(Trouble),
}

/// Something that is wrong with fusebox itself: an incident of its own, without steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// A stable word for it, as `ledger`; the incident's rule is `fusebox_` and this.
    pub what: &'static str,
    /// What it is, for a person; `None`: it is over.
    pub detail: Option<String>,
}

/// What an operator may do. `by` is who does it, for the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum OperatorAct {
    /// Close this incident and lift what it ordered.
    Resolve {
        /// Which.
        incident: IncidentId,
        /// Who says so.
        by: String,
    },
    /// Close this incident: it was none.
    FalseAlarm {
        /// Which.
        incident: IncidentId,
        /// Who says so.
        by: String,
        /// Why, for what is learned from it.
        reason: Option<String>,
    },
    /// Take charge: nobody is told again and again.
    Acknowledge {
        /// Which.
        incident: IncidentId,
        /// Who.
        by: String,
    },
    /// Tell the next level of the on-call now.
    Escalate {
        /// Which.
        incident: IncidentId,
        /// Who asks.
        by: String,
    },
    /// Answer a question.
    Decide {
        /// Which.
        approval: ApprovalId,
        /// Yes or no.
        approve: bool,
        /// Who answers.
        by: String,
        /// By which way: `api`, `cli`, `link`.
        via: String,
        /// Why.
        reason: Option<String>,
    },
    /// Lift one lease before its time.
    Lift {
        /// Which.
        lease: LeaseId,
        /// Who.
        by: String,
    },
    /// Keep notices back, or open nothing, for a while.
    Silence {
        /// What it covers.
        matcher: Matcher,
        /// With `true` nothing is opened for what it covers.
        maintenance: bool,
        /// When it begins; `None`: now.
        starts: Option<Wall>,
        /// How long it lasts.
        length: Duration,
        /// Who.
        by: String,
        /// Why.
        comment: String,
    },
    /// End a silence before its time.
    EndSilence {
        /// Which.
        silence: SilenceId,
        /// Who.
        by: String,
    },
    /// Stop automation, or let it go on: while the brake is on, every step waits for a human.
    Brake {
        /// On or off.
        on: bool,
        /// Who.
        by: String,
        /// Why.
        reason: Option<String>,
    },
    /// Respond to an incident that somebody else found: one incident for each agent, with this plan.
    Respond(Respond),
    /// Forget an agent's windows.
    Forget {
        /// Whom.
        agent: AgentId,
    },
}

/// A response that somebody asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Respond {
    /// The type of incident, in the words of whoever asks. Where it is the name of a rule, or says what a rule measures
    /// (as `token_overrun`), the incident is about that rule's metric.
    pub incident_type: String,
    /// Whom it binds; agents that were not seen yet are bound from their first request.
    pub subjects: Vec<Subject>,
    /// The name of the chain.
    pub action: ActionName,
    /// Its steps.
    pub steps: Vec<Step>,
    /// Alert targets to be told beside those of the steps.
    pub targets: Vec<String>,
    /// Who asks.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
}

/// What came of an operator's act.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acted {
    /// It is done.
    Done,
    /// These incidents were opened, or have a new plan now.
    Incidents(Vec<IncidentId>),
    /// This silence was made.
    Silence(SilenceId),
}

/// Why an operator's act was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotActed {
    /// There is no such incident, question, lease or silence.
    #[error("there is no {what} {id}")]
    Unknown {
        /// `incident`, `approval`, `lease` or `silence`.
        what: &'static str,
        /// The name that was given.
        id: String,
    },
    /// It is over, decided or ended already.
    #[error("{what} {id} is {state} already")]
    Over {
        /// `incident`, `approval`, `lease` or `silence`.
        what: &'static str,
        /// The name that was given.
        id: String,
        /// What it is, in one word.
        state: &'static str,
    },
    /// It cannot be done as it was asked.
    #[error("{0}")]
    Refused(String),
}

impl OperatorAct {
    /// The word for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resolve { .. } => "resolve",
            Self::FalseAlarm { .. } => "false_alarm",
            Self::Acknowledge { .. } => "acknowledge",
            Self::Escalate { .. } => "escalate",
            Self::Decide { approve: true, .. } => "approve",
            Self::Decide { .. } => "deny",
            Self::Lift { .. } => "lift",
            Self::Silence { .. } => "silence",
            Self::EndSilence { .. } => "end_silence",
            Self::Brake { .. } => "brake",
            Self::Respond(_) => "respond",
            Self::Forget { .. } => "forget",
        }
    }

    /// Who does it; `""` where that is not said.
    pub fn by(&self) -> &str {
        match self {
            Self::Resolve { by, .. }
            | Self::FalseAlarm { by, .. }
            | Self::Acknowledge { by, .. }
            | Self::Escalate { by, .. }
            | Self::Decide { by, .. }
            | Self::Lift { by, .. }
            | Self::Silence { by, .. }
            | Self::EndSilence { by, .. }
            | Self::Brake { by, .. }
            | Self::Respond(Respond { by, .. }) => by,
            Self::Forget { .. } => "",
        }
    }
}
