//! Rules and actions as they are written.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor, value};

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

/// A named chain of steps.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["steps"]))]
pub(in crate::config) struct ActionFile {
    /// In the order they are taken.
    pub(in crate::config) steps: Option<Vec<At<StepFile>>>,
}

/// One step: its name alone, or its name with settings.
#[derive(Debug)]
pub(in crate::config) struct StepFile(pub(in crate::config) StepMap);

impl<'de> Deserialize<'de> for StepFile {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = StepFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a step, or a step with its settings")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<StepFile, E> {
                StepMap::deserialize(value::MapDeserializer::new(std::iter::once((word, ())))).map(StepFile)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<StepFile, A::Error> {
                StepMap::deserialize(value::MapAccessDeserializer::new(map)).map(StepFile)
            }
        }
        d.deserialize_any(V)
    }
}

impl JsonSchema for StepFile {
    fn schema_name() -> Cow<'static, str> {
        "Step".into()
    }

    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        let map = g.subschema_for::<StepMap>();
        json_schema!({
            "description": "One step: its name alone, or its name with settings.",
            "anyOf": [{"enum": STEP_NAMES}, map]
        })
    }
}

/// Every step that a chain may hold.
pub(in crate::config) const STEP_NAMES: [&str; 13] = [
    "throttle",
    "cap_concurrency",
    "downgrade_model",
    "notify",
    "escalate",
    "reduce_batch",
    "cap_output",
    "reroute",
    "extend_timeouts",
    "rollback",
    "set_parameters",
    "contain",
    "run_webhook",
];

/// One step with its settings: exactly one kind.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct StepMap {
    /// Keep the agent within these rates; those left out are derived from its rate before the incident.
    pub(in crate::config) throttle: Kind<ThrottleFile>,
    /// At most so many exchanges in flight.
    pub(in crate::config) cap_concurrency: Kind<CapConcurrencyFile>,
    /// Answer with a cheaper model.
    pub(in crate::config) downgrade_model: Kind<DowngradeFile>,
    /// Tell the alert targets.
    pub(in crate::config) notify: Kind<NotifyFile>,
    /// Tell the on-call with critical severity, again and again until the incident is over.
    pub(in crate::config) escalate: Kind<EscalateFile>,
    /// Split batches of inputs (not yet available in this version).
    pub(in crate::config) reduce_batch: Kind<Anything>,
    /// Bound the output tokens (not yet available in this version).
    pub(in crate::config) cap_output: Kind<Anything>,
    /// Send to another upstream (not yet available in this version).
    pub(in crate::config) reroute: Kind<Anything>,
    /// Wait longer for the upstream (not yet available in this version).
    pub(in crate::config) extend_timeouts: Kind<Anything>,
    /// Return to the last known good version of the agent (not yet available in this version).
    pub(in crate::config) rollback: Kind<Anything>,
    /// Set request parameters (not yet available in this version).
    pub(in crate::config) set_parameters: Kind<Anything>,
    /// Stop the agent (not yet available in this version).
    pub(in crate::config) contain: Kind<Anything>,
    /// Call a webhook that does something (not yet available in this version).
    pub(in crate::config) run_webhook: Kind<Anything>,
    /// Whether a human must agree first. Default: required for downgrade_model, automatic otherwise.
    pub(in crate::config) approval: Opt<ApprovalWord>,
    /// How long its effect lasts at most; renewed while the incident is open, lifted when it closes.
    pub(in crate::config) lease: Opt<DurationText>,
}

/// Settings of a kind of step; a kind may be named without any.
#[derive(Debug, Default)]
pub(in crate::config) enum Kind<T> {
    /// The step is of another kind.
    #[default]
    Absent,
    /// The step is of this kind.
    Given(T),
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Kind<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Option::<T>::deserialize(d).map(|t| Self::Given(t.unwrap_or_default()))
    }
}

impl<T: JsonSchema> JsonSchema for Kind<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn json_schema(g: &mut SchemaGenerator) -> Schema {
        g.subschema_for::<Option<T>>()
    }
}

/// Settings that this version does not read.
#[derive(Debug, Default)]
pub(in crate::config) struct Anything;

impl<'de> Deserialize<'de> for Anything {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(d).map(|_| Self)
    }
}

impl JsonSchema for Anything {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Anything".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!(true)
    }
}

/// Rates to keep within.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ThrottleFile {
    /// Requests a minute.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub(in crate::config) requests_per_minute: Opt<u64>,
    /// Tokens a minute, input and output together.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub(in crate::config) tokens_per_minute: Opt<u64>,
}

/// A bound on exchanges in flight.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["max_in_flight"]))]
pub(in crate::config) struct CapConcurrencyFile {
    /// The bound.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub(in crate::config) max_in_flight: Opt<u64>,
}

/// A cheaper model.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct DowngradeFile {
    /// The model to use. Default: as the table of models says.
    pub(in crate::config) to: Opt<String>,
}

/// Whom to tell.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct NotifyFile {
    /// Names of `alerts`. Default: all.
    pub(in crate::config) targets: Vec<At<String>>,
}

/// Whom to wake, and how often.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct EscalateFile {
    /// Names of `alerts`. Default: all.
    pub(in crate::config) targets: Vec<At<String>>,
    /// Pause between repetitions.
    pub(in crate::config) repeat_every: Opt<DurationText>,
}

/// Whether a human must agree.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum ApprovalWord {
    /// It runs by itself.
    Automatic,
    /// It waits for a human.
    Required,
}
