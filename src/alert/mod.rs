//! Tells people: a bounded queue for each target, retries with back-off, payloads without I/O.

mod lane;
mod payload;
mod queue;
#[cfg(test)]
mod tests;
mod webhook;

use std::time::Duration;

use crate::types::notice::Severity;
use crate::types::secret::Secret;

pub use payload::WebhookBody;
pub use queue::{Alerts, TargetStatus};

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
    /// PEM files of further trusted roots.
    pub ca_files: Vec<std::path::PathBuf>,
}

/// What receives notices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetKind {
    /// Any HTTP endpoint: the notice as JSON, signed as Standard Webhooks say when there is a secret.
    Webhook {
        /// The signing secret (`whsec_` and base64, or plain text).
        secret: Option<Secret>,
        /// Further headers, as name and value.
        headers: Vec<(http::HeaderName, Secret)>,
    },
    /// A Slack incoming webhook.
    Slack,
}

impl Target {
    /// Looks for what would keep every notice from being delivered: a URL, secret or header that cannot be used.
    /// No I/O; CA files are read at the first delivery.
    ///
    /// # Errors
    /// What is wrong, beginning with the setting's name, without showing its value.
    pub fn check(&self) -> Result<(), String> {
        webhook::Endpoint::new(self).map(|_| ())
    }
}
