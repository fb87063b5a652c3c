//! Rules as they are written.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::config::at::{At, Opt};
use crate::config::units::{BaselineText, DurationText, ThresholdText};
use crate::incident::rule::Metric;

/// When something is an incident, and what is done about it.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "metric", "action"]))]
pub(in crate::config) struct RuleFile {
    /// Its name; incidents and windows survive a reload by it.
    pub(in crate::config) name: Opt<String>,
    /// Off rules keep their place but are not evaluated.
    pub(in crate::config) enabled: Opt<bool>,
    /// How far it may go: shadow, warn, approve or enforce.
    pub(in crate::config) mode: Opt<ModeWord>,
    /// How bad a breach is. Default: critical when its action escalates, else warning.
    pub(in crate::config) severity: Opt<SeverityWord>,
    /// What is measured.
    #[schemars(schema_with = "metric_schema")]
    pub(in crate::config) metric: Opt<String>,
    /// How the values of a window become one: mean, max, min, sum, or a quantile as p95. Default by metric.
    #[schemars(extend("pattern" = "^(mean|max|min|sum|median|p[0-9]{1,2}(\\.[0-9]+)?)$|\\$\\{"))]
    pub(in crate::config) statistic: Opt<String>,
    /// What is normal. Default: the threshold itself.
    pub(in crate::config) baseline: Opt<BaselineText>,
    /// A breach is a value above this.
    pub(in crate::config) threshold_upper: Opt<ThresholdText>,
    /// A breach is a value below this.
    pub(in crate::config) threshold_lower: Opt<ThresholdText>,
    /// Over how long it is measured.
    pub(in crate::config) window: Opt<DurationText>,
    /// How long a breach must last before it is an incident.
    #[serde(rename = "for")]
    pub(in crate::config) hold: Opt<DurationText>,
    /// How many samples a window must hold before it is judged. Default: 10 for quantiles and shares; 1 for max, min and sum, for silence and for what executions use; 5 otherwise.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in crate::config) min_samples: Opt<u64>,
    /// How long after the end of an incident no new one is opened for the same subject.
    pub(in crate::config) cooldown: Opt<DurationText>,
    /// How far past the threshold, as a share of it, the value must come back to count as recovered.
    #[schemars(range(min = 0, max = 0.9))]
    pub(in crate::config) hysteresis: Opt<f64>,
    /// Only these agents (* and ? match). Default: all.
    pub(in crate::config) agents: Vec<At<String>>,
    /// Only these models asked for (* and ? match). Default: all.
    pub(in crate::config) models: Vec<At<String>>,
    /// Only these upstreams (* and ? match). Default: all.
    pub(in crate::config) upstreams: Vec<At<String>>,
    /// What the subject is.
    pub(in crate::config) group_by: Opt<GroupByWord>,
    /// Whether estimated counts may lead to actions, not only to notices.
    pub(in crate::config) act_on_estimates: Opt<bool>,
    /// The chain of steps to take: a built-in one or one of `actions`.
    pub(in crate::config) action: Opt<String>,
}

fn metric_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "description": "What is measured. Metrics of time may begin with a quantile, as p95_response_time.",
        "anyOf": [
            {"enum": Metric::all_names()},
            {"type": "string", "pattern": "^p[0-9]{1,2}(\\.[0-9]+)?_[a-z_]+$|\\$\\{"}
        ]
    })
}

/// How far a rule may go.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ModeWord {
    /// Counted, nobody is told.
    Shadow,
    /// People are told, nothing is done.
    Warn,
    /// Every step waits for a human.
    Approve,
    /// Steps run as they say.
    Enforce,
}

/// How bad something is.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum SeverityWord {
    /// Worth knowing.
    Info,
    /// Worth a look in working hours.
    Warning,
    /// Worth a look now.
    Error,
    /// Worth waking somebody.
    Critical,
}

/// What a rule's subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum GroupByWord {
    /// Each agent.
    Agent,
    /// Each execution.
    Execution,
    /// Each model asked for.
    Model,
    /// Each upstream.
    Upstream,
    /// All traffic together.
    Fleet,
}
