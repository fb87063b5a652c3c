//! What the engine is told.

use std::sync::Arc;

use super::rule::Rulebook;
use crate::types::ids::{AgentId, IncidentId};
use crate::types::observation::Observation;

/// One thing that happened. Time comes beside it, as a [`crate::types::time::Now`].
#[derive(Debug, Clone)]
pub enum Input {
    /// An exchange ended.
    Observation(Box<Observation>),
    /// An execution's stream is still running and has used so much so far (tokens, estimated or partial).
    Progress(Box<Observation>),
    /// Time passed; sent about once a second.
    Tick,
    /// The configuration changed.
    Rules(Arc<Rulebook>),
    /// An operator did something.
    Operator(OperatorAct),
}

/// What an operator may do to an incident.
#[derive(Debug, Clone)]
pub enum OperatorAct {
    /// Close this incident and lift what it ordered.
    Resolve {
        /// Which.
        incident: IncidentId,
        /// Who says so.
        by: String,
    },
    /// Forget an agent's windows.
    Forget {
        /// Whom.
        agent: AgentId,
    },
}
