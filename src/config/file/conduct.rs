//! How incidents are put together, kept quiet and acted on, as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::at::{At, Opt};
use crate::config::units::{DurationText, ShareText};

/// How incidents are put together, brought back and kept quiet.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct IncidentsFile {
    /// Whether agents that fail at the same upstream at the same time become one incident about the upstream.
    pub(in crate::config) correlate: Opt<bool>,
    /// A breach that comes back this soon after its incident was resolved reopens it; 0 for a new incident each time.
    pub(in crate::config) reopen_within: Opt<DurationText>,
    /// So many relapses and reopenings within an hour mean that the incident flaps: people are told less.
    #[schemars(range(min = 1, max = 1000))]
    pub(in crate::config) flaps_after: Opt<u64>,
    /// What a version of an agent must have shown to be one that rollbacks return to.
    pub(in crate::config) good_version: GoodVersionFile,
    /// Windows that come again every week, in which nothing is opened for those they cover.
    pub(in crate::config) maintenance: Vec<At<MaintenanceFile>>,
}

/// What a version must have shown to be a good one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct GoodVersionFile {
    /// Exchanges that it answered at least. Default: 50.
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub(in crate::config) min_exchanges: Opt<u64>,
    /// Over how long at least. Default: 10m.
    pub(in crate::config) min_age: Opt<DurationText>,
    /// Largest share of exchanges that failed. Default: 5%.
    pub(in crate::config) max_error_rate: Opt<ShareText>,
}

/// A window that comes again every week.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "from", "lasts"]))]
pub(in crate::config) struct MaintenanceFile {
    /// Its name.
    pub(in crate::config) name: Opt<String>,
    /// Only these rules (* and ? match). Default: all.
    pub(in crate::config) rules: Vec<At<String>>,
    /// Only these agents (* and ? match). Default: all.
    pub(in crate::config) agents: Vec<At<String>>,
    /// Days on which it begins. Default: all.
    pub(in crate::config) days: Vec<At<DayWord>>,
    /// When it begins, as 22:00, in UTC.
    #[schemars(extend("pattern" = "^\\s*([01][0-9]|2[0-3]):[0-5][0-9]\\s*$|\\$\\{"))]
    pub(in crate::config) from: Opt<String>,
    /// How long it lasts.
    pub(in crate::config) lasts: Opt<DurationText>,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum DayWord {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

/// Bounds on what is done without a human.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct AutomationFile {
    /// Actions that may be started in one hour, all rules together; beyond it every step waits for a human. 0: always.
    #[schemars(range(max = 1_000_000))]
    pub(in crate::config) max_actions_per_hour: Opt<u64>,
    /// Whether automation is stopped: every step waits for a human. An operator's brake stops it as well.
    pub(in crate::config) brake: Opt<bool>,
}
