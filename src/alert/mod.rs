//! Tells people: a queue for each target that outlives restarts, retries with back-off, payloads without I/O.

mod answer;
mod delivery;
mod destination;
mod endpoint;
mod lane;
mod payload;
mod queue;
mod redact;
mod refresh;
mod signing;
#[cfg(test)]
mod tests;
mod waiting;

use std::time::Duration;

use crate::types::notice::Severity;
use crate::types::secret::Secret;

pub use delivery::{AdhocUrl, DeadLetter, DeadLetterView, Delivery, Fate, Settled, SettledHook};
pub use destination::{AllowedDestinations, Destination};
pub use endpoint::send_once;
pub use payload::{CloudEventBody, WebhookBody};
pub use queue::{Alerts, Options, TargetStatus};

/// Where notices go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name in the configuration.
    pub name: String,
    /// What it is.
    pub kind: TargetKind,
    /// Its URL; secret, since webhook URLs often are credentials.
    pub url: Secret,
    /// Notices below this severity are not sent.
    pub min_severity: Severity,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How long delivery is tried before a notice is given up.
    pub give_up_after: Duration,
    /// Shortest time between two messages.
    pub spacing: Duration,
    /// How a storm becomes one message; `None` for kinds whose receivers group by key themselves.
    pub group: Option<Grouping>,
    /// PEM files of further trusted roots.
    pub ca_files: Vec<std::path::PathBuf>,
}

/// When notices of one rule about many subjects become one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grouping {
    /// How long a notice waits for others of its sort; zero turns grouping off.
    pub wait: Duration,
    /// More than so many become one.
    pub more_than: usize,
    /// Subjects that the one message names.
    pub list: usize,
}

/// What receives notices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetKind {
    /// Any HTTP endpoint, signed as Standard Webhooks say when there is a secret.
    Webhook {
        /// The signing secret (`whsec_` and base64, or plain text).
        secret: Option<Secret>,
        /// Further headers, as name and value.
        headers: Vec<(http::HeaderName, Secret)>,
        /// The shape of the body.
        format: WebhookFormat,
    },
    /// A Slack incoming webhook.
    Slack,
    /// PagerDuty, by Events API v2.
    PagerDuty {
        /// The integration key of a service.
        routing_key: Secret,
    },
    /// Alertmanager, by its API v2: told again and again while an incident is open.
    Alertmanager {
        /// Base URLs of the other members of the cluster; each is sent everything.
        others: Vec<Secret>,
        /// Time between two reminders of what is open.
        resend_every: Duration,
        /// Labels that every alert gets, as name and value.
        labels: Vec<(String, String)>,
        /// Further headers, as name and value.
        headers: Vec<(http::HeaderName, Secret)>,
    },
    /// A workflow of Microsoft Teams.
    Teams,
    /// A Discord webhook.
    Discord,
}

/// The shape of what a webhook receives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum WebhookFormat {
    /// `type`, `timestamp` and `data`, as Standard Webhooks recommend.
    #[default]
    Standard,
    /// CloudEvents 1.0, structured mode.
    CloudEvents {
        /// Who says it, as `/fusebox/NAMESPACE/POD`.
        source: String,
    },
    /// What Alertmanager sends to its webhook receivers, version 4.
    Alertmanager,
}

impl Target {
    /// Looks for what would keep every notice from being delivered: a URL, secret or header that cannot be used.
    /// No I/O; CA files are read at the first delivery.
    ///
    /// # Errors
    /// What is wrong, beginning with the setting's name, without showing its value.
    pub fn check(&self) -> Result<(), String> {
        endpoint::Endpoint::new(self).map(|_| ())
    }
}

impl TargetKind {
    /// The word for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Webhook { .. } => "webhook",
            Self::Slack => "slack",
            Self::PagerDuty { .. } => "pagerduty",
            Self::Alertmanager { .. } => "alertmanager",
            Self::Teams => "teams",
            Self::Discord => "discord",
        }
    }

    /// Whether people read each message as it comes: such targets get one message for a storm.
    pub const fn is_chat(&self) -> bool {
        matches!(self, Self::Slack | Self::Teams | Self::Discord)
    }

    /// Whether the receiver keeps a state for each incident, which an end has to clear.
    pub const fn keeps_state(&self) -> bool {
        matches!(self, Self::PagerDuty { .. } | Self::Alertmanager { .. })
    }

    /// Shortest time between two messages that the receiver puts up with.
    pub const fn spacing(&self) -> Duration {
        match self {
            Self::Slack | Self::Teams | Self::Discord => Duration::from_secs(1),
            Self::PagerDuty { .. } => Duration::from_millis(100),
            Self::Webhook { .. } | Self::Alertmanager { .. } => Duration::ZERO,
        }
    }
}

impl Grouping {
    /// As used for chats when nothing else is said.
    pub const DEFAULT: Self = Self {
        wait: Duration::from_secs(2),
        more_than: 3,
        list: 20,
    };
}
