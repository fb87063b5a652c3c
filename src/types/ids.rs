//! Names of things: cheap to clone, compared by text, each a type of its own so that none is taken for another.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        #[schemars(with = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<Arc<str>> for $name {
            fn from(text: Arc<str>) -> Self {
                Self(text)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
    };
}

name!(
    /// Who sends the traffic.
    AgentId
);
name!(
    /// What an agent is made of now: a declared version, else a fingerprint.
    AgentVersion
);
name!(
    /// One run of an agent.
    ExecutionId
);
name!(
    /// A model, as asked for or as served.
    ModelName
);
name!(
    /// An upstream of the configuration.
    UpstreamName
);
name!(
    /// A rule of the configuration.
    RuleName
);
name!(
    /// A named chain of remediation steps.
    ActionName
);
name!(
    /// An incident: unique, sortable by time of opening.
    IncidentId
);
name!(
    /// A lease: the life of one directive.
    LeaseId
);
name!(
    /// A question to a human: may this step be taken?
    ApprovalId
);
name!(
    /// A silence or a maintenance window.
    SilenceId
);
name!(
    /// One exchange, as the client or fusebox named it.
    RequestId
);

impl RequestId {
    /// The execution that consists of this exchange alone; shares the text.
    pub fn as_execution(&self) -> ExecutionId {
        ExecutionId(Arc::clone(&self.0))
    }
}

impl AgentId {
    /// The slot that takes every agent beyond the bound of the registry.
    pub const OVERFLOW: &'static str = "overflow";
}

/// Counts publications of a policy or of a set of directives; a later one is larger.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The next generation.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}
