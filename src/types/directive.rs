//! What requests of a subject must obey now, each for a limited time and on behalf of one incident.

use std::collections::HashMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ids::{AgentId, Generation, IncidentId, LeaseId, RuleName};
use super::time::{Mono, Wall};

/// One thing that requests must obey, as a lease: it has an owner and ends by itself.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Directive {
    /// The lease.
    pub lease: LeaseId,
    /// The incident that owns it.
    pub incident: IncidentId,
    /// The rule that opened the incident.
    pub rule: RuleName,
    /// Whom it binds.
    pub subject: Subject,
    /// What it asks.
    pub order: Order,
    /// From when it holds.
    pub since: Wall,
    /// Until when it holds, for people.
    pub expires: Wall,
    /// Until when it holds, for the gate.
    #[serde(skip)]
    pub until: Mono,
}

/// Whom a directive binds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// One agent.
    Agent(AgentId),
    /// Every agent.
    Fleet,
}

/// What a directive asks of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Order {
    /// Keep within these rates. `None` leaves that rate alone. Both, when given, are at least 1.
    Throttle {
        /// Requests a minute.
        requests_per_minute: Option<u32>,
        /// Tokens a minute, input and output together.
        tokens_per_minute: Option<u32>,
    },
    /// Have at most this many exchanges in flight (at least 1).
    CapConcurrency {
        /// The bound.
        max_in_flight: u32,
    },
    /// Use a cheaper model: the given one, else the one that the model table names.
    DowngradeModel {
        /// A fixed target for every model; `None` asks the model table.
        to: Option<String>,
    },
}

impl Order {
    /// The word for it in headers, metrics and the API.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Throttle { .. } => "throttle",
            Self::CapConcurrency { .. } => "cap_concurrency",
            Self::DowngradeModel { .. } => "downgrade_model",
        }
    }
}

/// All directives in force, found by agent without a search.
#[derive(Debug, Clone, Default)]
pub struct DirectiveSet {
    generation: Generation,
    fleet: Vec<Arc<Directive>>,
    by_agent: HashMap<AgentId, Vec<Arc<Directive>>>,
}

impl DirectiveSet {
    /// The set of `directives`, published as `generation`.
    pub fn new(generation: Generation, directives: impl IntoIterator<Item = Arc<Directive>>) -> Self {
        let mut set = Self {
            generation,
            ..Self::default()
        };
        for d in directives {
            match &d.subject {
                Subject::Fleet => set.fleet.push(d),
                Subject::Agent(a) => set.by_agent.entry(a.clone()).or_default().push(d),
            }
        }
        set
    }

    /// Which publication this is.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Whether nothing is asked of anyone: the common case, told in a glance.
    pub fn is_empty(&self) -> bool {
        self.fleet.is_empty() && self.by_agent.is_empty()
    }

    /// Directives that bind `agent` at `now`: its own first, then those of the fleet.
    pub fn of<'a>(&'a self, agent: &str, now: Mono) -> impl Iterator<Item = &'a Arc<Directive>> + use<'a> {
        let own = self.by_agent.get(agent).map_or(&[][..], Vec::as_slice);
        own.iter().chain(&self.fleet).filter(move |d| d.until > now)
    }

    /// Whether a directive binds `agent` by name at `now`; those of the fleet aside.
    pub fn binds(&self, agent: &AgentId, now: Mono) -> bool {
        self.by_agent
            .get(agent)
            .is_some_and(|own| own.iter().any(|d| d.until > now))
    }

    /// Every directive, expired ones included.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Directive>> {
        self.fleet.iter().chain(self.by_agent.values().flatten())
    }
}
