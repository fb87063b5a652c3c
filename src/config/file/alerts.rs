//! Alert targets as they are written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::SeverityWord;
use crate::config::at::{At, Opt};
use crate::config::units::DurationText;

/// Whom to tell about incidents.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub(in crate::config) struct AlertFile {
    /// Its name, for steps and status.
    pub(in crate::config) name: Opt<String>,
    /// What receives the notice.
    pub(in crate::config) kind: Opt<AlertKindWord>,
    /// Where notices are posted to. Default for pagerduty: its Events API in the US.
    pub(in crate::config) url: Opt<String>,
    /// File that holds the URL.
    pub(in crate::config) url_file: Opt<String>,
    /// Base URLs of all members of an Alertmanager cluster, in place of url.
    pub(in crate::config) urls: Opt<Vec<At<String>>>,
    /// Integration key of a PagerDuty service (Events API v2).
    pub(in crate::config) routing_key: Opt<String>,
    /// File that holds the integration key.
    pub(in crate::config) routing_key_file: Opt<String>,
    /// Key that notices to a webhook are signed with, as Standard Webhooks say (whsec_ and base64, or plain text).
    pub(in crate::config) secret: Opt<String>,
    /// File that holds the key.
    pub(in crate::config) secret_file: Opt<String>,
    /// Further request headers, for a webhook or Alertmanager.
    pub(in crate::config) headers: BTreeMap<At<String>, At<String>>,
    /// Shape of the body, for a webhook.
    pub(in crate::config) format: Opt<AlertFormatWord>,
    /// Who says it, in a CloudEvent.
    pub(in crate::config) source: Opt<String>,
    /// Labels that every alert gets, for Alertmanager.
    pub(in crate::config) labels: BTreeMap<At<String>, At<String>>,
    /// Time between two reminders of what is open, for Alertmanager.
    pub(in crate::config) resend_every: Opt<DurationText>,
    /// Shortest time between two messages. Default: 1s for Slack, Teams and Discord, 100ms for PagerDuty, else 0s.
    pub(in crate::config) spacing: Opt<DurationText>,
    /// How a storm becomes one message, for Slack, Teams and Discord.
    pub(in crate::config) group: Opt<GroupFile>,
    /// Notices below this severity are not sent.
    pub(in crate::config) min_severity: Opt<SeverityWord>,
    /// How long one attempt may take.
    pub(in crate::config) timeout: Opt<DurationText>,
    /// How long delivery is tried before a notice is given up.
    pub(in crate::config) give_up_after: Opt<DurationText>,
    /// PEM files of further trusted roots.
    pub(in crate::config) ca_files: Vec<At<String>>,
}

/// When notices of one rule about many subjects become one message.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct GroupFile {
    /// How long a notice waits for others of its sort; 0s turns grouping off.
    pub(in crate::config) wait: Opt<DurationText>,
    /// More than so many become one.
    pub(in crate::config) more_than: Opt<u64>,
    /// Subjects that the one message names.
    pub(in crate::config) max: Opt<u64>,
}

/// What receives notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum AlertKindWord {
    /// Any HTTP endpoint: the notice as JSON.
    Webhook,
    /// A Slack incoming webhook.
    Slack,
    /// PagerDuty, by Events API v2.
    Pagerduty,
    /// Alertmanager, by its API v2.
    Alertmanager,
    /// A workflow of Microsoft Teams.
    Teams,
    /// A Discord webhook.
    Discord,
}

/// Shape of what a webhook receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum AlertFormatWord {
    /// type, timestamp and data, as Standard Webhooks recommend.
    Standard,
    /// CloudEvents 1.0, structured mode.
    Cloudevents,
    /// What Alertmanager sends to its webhook receivers, version 4.
    Alertmanager,
}

/// Where requests to the admin API may have notices sent to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct NotificationWebhooksFile {
    /// Hosts that may be used whatever address they have (* stands for any run of characters).
    pub(in crate::config) hosts: Vec<At<String>>,
    /// Whether any other host may be used, as long as its addresses are public.
    pub(in crate::config) public: Opt<bool>,
    /// Whether http:// may be used beside https://.
    pub(in crate::config) plain_http: Opt<bool>,
}
