//! What requests of a subject must obey now, each for a limited time and on behalf of one incident.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ids::{
    AgentId, AgentVersion, ExecutionId, Generation, IncidentId, LeaseId, RuleName, UpstreamName,
};
use super::time::{Mono, Wall};

/// One thing that requests must obey, as a lease: it has an owner and ends by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// One run of an agent.
    Execution {
        /// The agent.
        agent: AgentId,
        /// The run.
        execution: ExecutionId,
    },
    /// One version of an agent.
    Version {
        /// The agent.
        agent: AgentId,
        /// The version.
        version: AgentVersion,
    },
    /// Every agent.
    Fleet,
}

impl Subject {
    /// The agent it is about; `None` for the fleet.
    pub fn agent(&self) -> Option<&AgentId> {
        match self {
            Self::Agent(agent) | Self::Execution { agent, .. } | Self::Version { agent, .. } => Some(agent),
            Self::Fleet => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(agent) => write!(f, "{agent}"),
            Self::Execution { agent, execution } => write!(f, "execution {execution} of {agent}"),
            Self::Version { agent, version } => write!(f, "version {version} of {agent}"),
            Self::Fleet => f.write_str("every agent"),
        }
    }
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
    /// Ask for less at once: more inputs of an embedding call are sent in several, and more answers asked for (`n`) are
    /// not asked for.
    ReduceBatch {
        /// Inputs in one upstream call (at least 1).
        max_inputs: u32,
        /// Answers asked for at once (`n`, at least 1); `None` leaves them alone.
        max_choices: Option<u32>,
    },
    /// Let the model write at most this much.
    CapOutput {
        /// Output tokens of one exchange (at least 1).
        max_tokens: u32,
        /// Whether a stream that has written more is ended by us.
        cut_streams: bool,
    },
    /// Use a cheaper model: the given one, else the one that the model table names.
    DowngradeModel {
        /// A fixed target for every model; `None` asks the model table.
        to: Option<String>,
    },
    /// Send requests to another upstream.
    Reroute {
        /// Which one; it must serve the API that the request speaks, else the request stays where it was.
        to: UpstreamName,
        /// How many executions in a hundred (1 to 100); an execution stays where it was sent first.
        share_percent: u8,
    },
    /// Wait longer for an upstream than it is configured to.
    ExtendTimeouts {
        /// In hundredths of the configured times (100 to 1000).
        percent: u16,
    },
    /// Use these parameters in the place of the client's (as `temperature`), by their names in the API.
    SetParameters {
        /// Name and value.
        set: BTreeMap<String, serde_json::Value>,
    },
    /// Be as a version that was good: its model and parameters; prompts stay the client's.
    RestoreVersion {
        /// The version to be like.
        version: AgentVersion,
    },
    /// Send nothing; what is on its way is cancelled.
    Contain {
        /// Why, for whoever is refused.
        reason: String,
    },
}

impl Order {
    /// The word for it in headers, metrics and the API.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Throttle { .. } => "throttle",
            Self::CapConcurrency { .. } => "cap_concurrency",
            Self::ReduceBatch { .. } => "reduce_batch",
            Self::CapOutput { .. } => "cap_output",
            Self::DowngradeModel { .. } => "downgrade_model",
            Self::Reroute { .. } => "reroute",
            Self::ExtendTimeouts { .. } => "extend_timeouts",
            Self::SetParameters { .. } => "set_parameters",
            Self::RestoreVersion { .. } => "rollback",
            Self::Contain { .. } => "contain",
        }
    }

    /// Whether it stays in force when the metric is back: lifting it would bring back what was wrong, so that only a
    /// human, a new version of the agent or the end of the lease does.
    pub const fn outlasts_recovery(&self) -> bool {
        matches!(self, Self::RestoreVersion { .. } | Self::Contain { .. })
    }
}

/// Who sends a request, for finding what binds it.
#[derive(Debug, Clone, Copy)]
pub struct Sender<'a> {
    /// The agent.
    pub agent: &'a str,
    /// The run it belongs to.
    pub execution: &'a str,
    /// The version, where it is known.
    pub version: Option<&'a str>,
}

/// All directives in force, found by agent without a search.
#[derive(Debug, Clone, Default)]
pub struct DirectiveSet {
    generation: Generation,
    fleet: Vec<Arc<Directive>>,
    by_agent: HashMap<AgentId, Vec<Arc<Directive>>>,
    contains: bool,
}

impl DirectiveSet {
    /// The set of `directives`, published as `generation`.
    pub fn new(generation: Generation, directives: impl IntoIterator<Item = Arc<Directive>>) -> Self {
        let mut set = Self {
            generation,
            ..Self::default()
        };
        for d in directives {
            set.contains |= matches!(d.order, Order::Contain { .. });
            match d.subject.agent() {
                None => set.fleet.push(d),
                Some(agent) => set.by_agent.entry(agent.clone()).or_default().push(d),
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

    /// Whether anyone is contained, so that exchanges on their way have to be looked at.
    pub fn contains_anyone(&self) -> bool {
        self.contains
    }

    /// Directives that bind what `sender` sends at `now`: its own first, then those of the fleet.
    pub fn of<'a, 's>(
        &'a self,
        sender: Sender<'s>,
        now: Mono,
    ) -> impl Iterator<Item = &'a Arc<Directive>> + use<'a, 's> {
        let own = self.by_agent.get(sender.agent).map_or(&[][..], Vec::as_slice);
        own.iter()
            .chain(&self.fleet)
            .filter(move |d| d.until > now && d.subject.covers(sender))
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

impl Subject {
    /// Whether it takes in `sender`, whose agent is known to be the same.
    fn covers(&self, sender: Sender<'_>) -> bool {
        match self {
            Self::Agent(_) | Self::Fleet => true,
            Self::Execution { execution, .. } => execution.as_str() == sender.execution,
            Self::Version { version, .. } => sender.version == Some(version.as_str()),
        }
    }
}
