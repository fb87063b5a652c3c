//! Chains and their steps as they are written.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor, value};

use crate::config::at::{At, Opt};
use crate::config::units::{DurationText, ShareText};

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
    "reduce_batch",
    "cap_output",
    "downgrade_model",
    "reroute",
    "extend_timeouts",
    "set_parameters",
    "rollback",
    "contain",
    "run_webhook",
    "notify",
    "escalate",
];

/// One step with its settings: exactly one kind.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct StepMap {
    /// Keep the agent within these rates; those left out are derived from its rate before the incident.
    pub(in crate::config) throttle: Kind<ThrottleFile>,
    /// At most so many exchanges in flight.
    pub(in crate::config) cap_concurrency: Kind<CapConcurrencyFile>,
    /// Split embedding calls with many inputs, and ask for fewer answers at once.
    pub(in crate::config) reduce_batch: Kind<ReduceBatchFile>,
    /// Bound the output tokens of one exchange.
    pub(in crate::config) cap_output: Kind<CapOutputFile>,
    /// Answer with a cheaper model.
    pub(in crate::config) downgrade_model: Kind<DowngradeFile>,
    /// Send requests to another upstream.
    pub(in crate::config) reroute: Kind<RerouteFile>,
    /// Wait longer for the upstream.
    pub(in crate::config) extend_timeouts: Kind<ExtendTimeoutsFile>,
    /// Use these parameters in the place of the agent's, by their names in the API, as {temperature: 0}.
    pub(in crate::config) set_parameters: Kind<BTreeMap<At<String>, At<ParameterValue>>>,
    /// Return to the last known good version of the agent.
    pub(in crate::config) rollback: Kind<RollbackFile>,
    /// Stop the agent: nothing is sent, and what is on its way is cancelled.
    pub(in crate::config) contain: Kind<ContainFile>,
    /// Ask another system to do something, by a signed call to an alert target.
    pub(in crate::config) run_webhook: Kind<RunWebhookFile>,
    /// Tell the alert targets.
    pub(in crate::config) notify: Kind<NotifyFile>,
    /// Tell the on-call with critical severity, again and again until somebody acknowledges or the incident is over.
    pub(in crate::config) escalate: Kind<EscalateFile>,
    /// Whether a human must agree first. Default: required for downgrade_model, reroute, set_parameters and contain; automatic otherwise.
    pub(in crate::config) approval: Opt<ApprovalWord>,
    /// How long the question to a human stands.
    pub(in crate::config) approval_timeout: Opt<DurationText>,
    /// What it means when nobody answered: deny, approve, or keep asking.
    pub(in crate::config) on_timeout: Opt<OnTimeoutWord>,
    /// How long its effect lasts at most; renewed while the incident is open, lifted when it closes. A rollback and a containment outlast the incident and are not renewed. Default: 15m; 1d for these two.
    pub(in crate::config) lease: Opt<DurationText>,
    /// After how long it is judged; the steps behind it wait, and are taken only if it did not work. Default: they are taken at once, and it is judged after a window of the rule.
    pub(in crate::config) verify_after: Opt<DurationText>,
    /// What counts as success: within_threshold, or better by a share as {improved_by: 30%}.
    pub(in crate::config) success: Opt<SuccessWord>,
    /// What happens when it did not work: next, revert or escalate.
    pub(in crate::config) on_failure: Opt<OnFailureWord>,
    /// How many agents it may bind before a human has to agree. Default: any number.
    pub(in crate::config) blast_radius: BlastRadiusFile,
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

/// Smaller batches.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ReduceBatchFile {
    /// Inputs in one call upstream; calls with more are split. Default: 16.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub(in crate::config) max_inputs: Opt<u64>,
    /// Answers asked for at once (n). Default: 1.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub(in crate::config) max_choices: Opt<u64>,
    /// Exchanges in flight. Default: as many as there are.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub(in crate::config) max_in_flight: Opt<u64>,
}

/// Shorter answers.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["max_tokens"]))]
pub(in crate::config) struct CapOutputFile {
    /// Output tokens of one exchange.
    #[schemars(range(min = 1, max = 4_294_967_295u32))]
    pub(in crate::config) max_tokens: Opt<u64>,
    /// Whether a stream that has written more is ended. Default: false.
    pub(in crate::config) cut_streams: Opt<bool>,
}

/// Another upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["to"]))]
pub(in crate::config) struct RerouteFile {
    /// The name of an upstream.
    pub(in crate::config) to: Opt<String>,
}

/// More patience.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ExtendTimeoutsFile {
    /// How many times as long. Default: 2.
    #[schemars(range(min = 1, max = 10))]
    pub(in crate::config) factor: Opt<f64>,
}

/// Settings of a containment: there are none.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ContainFile {}

/// Back to a good version.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RollbackFile {
    /// How: restore (default), reroute or webhook.
    pub(in crate::config) by: Opt<RollbackByWord>,
    /// The upstream that serves the good version, for reroute.
    pub(in crate::config) to: Opt<String>,
    /// The alert target that is asked to do it, for webhook.
    pub(in crate::config) target: Opt<String>,
}

/// How an agent is brought back to a good version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RollbackByWord {
    /// Model and parameters of the good version are put into requests.
    Restore,
    /// Requests go to the upstream that serves the good version.
    Reroute,
    /// A deployment system is asked to do it.
    Webhook,
}

/// Another system to be asked.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["target", "action"]))]
pub(in crate::config) struct RunWebhookFile {
    /// The name of an alert target.
    pub(in crate::config) target: Opt<String>,
    /// What it is asked to do, as restart_workers.
    pub(in crate::config) action: Opt<String>,
}

/// The value of a parameter.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::config) struct ParameterValue(pub(in crate::config) serde_json::Value);

impl<'de> Deserialize<'de> for ParameterValue {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = ParameterValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, text, true or false")
            }

            fn visit_bool<E: Error>(self, v: bool) -> Result<ParameterValue, E> {
                Ok(ParameterValue(v.into()))
            }

            fn visit_i64<E: Error>(self, v: i64) -> Result<ParameterValue, E> {
                Ok(ParameterValue(v.into()))
            }

            fn visit_u64<E: Error>(self, v: u64) -> Result<ParameterValue, E> {
                Ok(ParameterValue(v.into()))
            }

            fn visit_f64<E: Error>(self, v: f64) -> Result<ParameterValue, E> {
                let number = serde_json::Number::from_f64(v);
                number
                    .map(|n| ParameterValue(n.into()))
                    .ok_or_else(|| E::custom("this is not a number that can be sent"))
            }

            fn visit_str<E: Error>(self, v: &str) -> Result<ParameterValue, E> {
                Ok(ParameterValue(v.into()))
            }
        }
        d.deserialize_any(V)
    }
}

impl JsonSchema for ParameterValue {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ParameterValue".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": ["number", "string", "boolean"]})
    }
}

/// Whom to wake, and how often.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct EscalateFile {
    /// Names of `alerts` that are told at once. Default: all.
    pub(in crate::config) targets: Vec<At<String>>,
    /// Pause between repetitions. Default: 15m.
    pub(in crate::config) repeat_every: Opt<DurationText>,
    /// Who else is told later, while nobody has acknowledged.
    pub(in crate::config) levels: Vec<At<LevelFile>>,
}

/// A level of the on-call.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["after"]))]
pub(in crate::config) struct LevelFile {
    /// How long after the escalation began it is told; each level later than the one before.
    pub(in crate::config) after: Opt<DurationText>,
    /// Names of `alerts`. Default: all.
    pub(in crate::config) targets: Vec<At<String>>,
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

/// What it means when nobody answered.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum OnTimeoutWord {
    /// The step is not taken.
    Deny,
    /// The step is taken.
    Approve,
    /// The question stands, and people are told again.
    Keep,
}

/// What counts as success.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum SuccessWord {
    /// The metric is within its threshold.
    WithinThreshold,
    /// The metric is better by this share of what it was.
    ImprovedBy(At<ShareText>),
}

/// What happens when a step did not work.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum OnFailureWord {
    /// It stays in force and the next step is taken.
    Next,
    /// It is lifted and the next step is taken.
    Revert,
    /// It stays in force, the on-call is told, and no further step is taken.
    Escalate,
}

/// How many agents may be bound without asking.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct BlastRadiusFile {
    /// Agents bound by steps of this kind, all incidents together.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(in crate::config) max_agents: Opt<u64>,
    /// Share of the agents seen in the last hour.
    pub(in crate::config) max_share: Opt<ShareText>,
}
