//! What one exchange did, as a record without content.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ids::{AgentId, AgentVersion, ExecutionId, ModelName, RequestId, UpstreamName};
use super::time::{Mono, Wall};
use super::usage::{Cost, Normalised, Usage, UsageSource};

/// What one exchange did: who sent it, what was asked and served, what it used, how long it took and how it ended.
///
/// Serialised, this is one line of the observations file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Observation {
    /// The client's `x-request-id` when it sent one, else made by fusebox.
    pub request_id: RequestId,
    /// When the exchange ended.
    pub time: Wall,
    /// Who sent it.
    pub agent: AgentId,
    /// Where `agent` was read.
    pub agent_source: IdentitySource,
    /// Declared version or fingerprint of the agent; null when neither is known.
    pub agent_version: Option<AgentVersion>,
    /// The run it belongs to.
    pub execution: ExecutionId,
    /// Where `execution` was read; `exchange` when this exchange is an execution of its own.
    pub execution_source: IdentitySource,
    /// The configured upstream that answered, or would have.
    pub upstream: UpstreamName,
    /// Whose API it is: `openai`, `anthropic`, `azure`, … or `unknown`.
    pub provider: Arc<str>,
    /// Which API was spoken, by the shape of its bodies: `openai.chat`, `anthropic.messages`, …, `other`.
    pub api: Cow<'static, str>,
    /// The model the client asked for.
    pub model_requested: Option<ModelName>,
    /// The model the answer names.
    pub model_served: Option<ModelName>,
    /// The status the client got; 0 when it left before there was one.
    pub status: u16,
    /// Whether the answer was a stream.
    pub stream: bool,
    /// How the exchange ended.
    pub outcome: Outcome,
    /// How the counts are known.
    pub usage_source: UsageSource,
    /// Counts as reported.
    #[serde(flatten)]
    pub usage: Usage,
    /// Counts made comparable.
    #[serde(flatten)]
    pub normalised: Normalised,
    /// Why the model stopped, in the API's own words; a number where the API said a number (Gemini, when asked to).
    #[serde(default, with = "word_or_number")]
    #[schemars(with = "Option<WordOrNumber>")]
    pub finish_reason: Option<String>,
    /// More about the reason, where the API says more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_detail: Option<String>,
    /// Type of the error that was answered or found inside a stream.
    pub error_type: Option<String>,
    /// Code of that error.
    pub error_code: Option<String>,
    /// Names of the tools that were called, in order; null for a call that gave no name.
    pub tool_calls: Vec<Option<String>>,
    /// Unicode scalar values of output text; null when there was no text.
    pub output_chars: Option<u64>,
    /// Milliseconds until the first byte of the answer reached us.
    pub ttfb_ms: Option<f64>,
    /// Milliseconds until the first token (streams only).
    pub ttft_ms: Option<f64>,
    /// Milliseconds from the request's head to the end of the exchange.
    pub duration_ms: f64,
    /// Microseconds of `duration_ms` that fusebox itself added before forwarding (shaping waits excluded).
    pub overhead_us: u64,
    /// What it cost by the price table; null when the model has no price.
    pub cost_usd: Option<Cost>,
    /// Whether later exchanges may join its execution by naming its answer (`previous_response_id`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_continue: bool,
    /// What fusebox did to this exchange, in order.
    #[serde(default)]
    pub actions: Vec<ActionTaken>,
    /// When it ended, on the monotonic clock; not part of the line.
    #[serde(skip)]
    pub ended: Mono,
}

/// A word of an API, or its number in the API's enumeration.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum WordOrNumber {
    Word(String),
    Number(u64),
}

/// Text that is written as the number it stands for, where it stands for one.
mod word_or_number {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::WordOrNumber;

    pub(super) fn serialize<S: Serializer>(text: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
        match text.as_deref() {
            None => to.serialize_none(),
            Some(text) => match text.parse::<u64>() {
                Ok(number) => number.serialize(to),
                Err(_) => text.serialize(to),
            },
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
        Ok(
            Option::<WordOrNumber>::deserialize(from)?.map(|value| match value {
                WordOrNumber::Word(word) => word,
                WordOrNumber::Number(number) => number.to_string(),
            }),
        )
    }
}

/// What the way of a request tells the way of an incident.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// An exchange ended.
    Ended(Box<Observation>),
    /// An exchange is still running; the observation says what it used so far.
    Running(Box<Observation>),
}

/// Where an identity was read; part of every observation so that nobody has to guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdentitySource {
    /// A path prefix `/agents/{id}/`.
    Path,
    /// A request header.
    Header,
    /// An entry of the `baggage` header.
    Baggage,
    /// A field of the request body.
    Body,
    /// The `agent:` of the listener or of the configuration.
    Config,
    /// A keyed hash of the API key.
    ApiKey,
    /// The trace id of `traceparent`.
    Trace,
    /// The answer that the request goes on from (`previous_response_id`).
    Chain,
    /// Nothing said so: the default agent.
    Default,
    /// Nothing said so: this exchange is an execution of its own.
    Exchange,
}

/// How an exchange ended; exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Answered to its end (whatever the status), or left by the client after the end of the stream was said.
    Complete,
    /// The upstream broke off its answer.
    Truncated,
    /// The client left before the end.
    ClientAbort,
    /// fusebox ended the answer.
    Cut,
    /// The upstream stayed silent past a limit.
    Timeout,
    /// The upstream could not be reached, or broke before it answered.
    UpstreamError,
    /// fusebox answered in the upstream's place.
    Refused,
}

/// One thing that fusebox did to an exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ActionTaken {
    /// Held back for a while before it was forwarded.
    Delayed {
        /// For how long, in milliseconds.
        ms: u64,
    },
    /// Refused by a limit.
    Throttled {
        /// The rule behind the directive.
        rule: String,
    },
    /// Refused because too many exchanges of the agent were in flight.
    ConcurrencyCapped {
        /// The rule behind the directive.
        rule: String,
    },
    /// Sent to a cheaper model.
    ModelDowngraded {
        /// What was asked.
        from: String,
        /// What was sent instead.
        to: String,
    },
    /// A downgrade was due but there is no cheaper model that can do what the request needs.
    DowngradeSkipped {
        /// Why.
        why: String,
    },
    /// Usage of the stream was asked for on the client's behalf, and hidden again.
    UsageRequested,
    /// Refused, or cancelled on its way: the agent is contained.
    Contained {
        /// The rule behind the directive.
        rule: String,
    },
    /// The inputs of an embedding call were sent in several calls, and the answers merged.
    BatchSplit {
        /// Inputs asked for.
        inputs: u64,
        /// Upstream calls made.
        calls: u64,
    },
    /// Fewer answers were asked for than the client wanted (`n`).
    ChoicesReduced {
        /// What was asked.
        from: u64,
        /// What was sent instead.
        to: u64,
    },
    /// The model was told to write less.
    OutputCapped {
        /// What was asked; null when nothing was.
        from: Option<u64>,
        /// What was sent instead.
        to: u64,
    },
    /// Parameters were set in the place of the client's.
    ParametersSet {
        /// Their names.
        names: Vec<String>,
    },
    /// Model and parameters of a good version were used.
    VersionRestored {
        /// The version.
        version: String,
    },
    /// The upstream was given more time.
    TimeoutsExtended {
        /// In hundredths of the configured times.
        percent: u64,
    },
    /// Sent to another upstream because a directive asked for it.
    Rerouted {
        /// The upstream that it was meant for.
        from: String,
        /// The upstream that it was sent to.
        to: String,
    },
    /// Sent to another upstream because the first one failed before anything reached the client.
    FailedOver {
        /// The upstream that failed.
        from: String,
        /// The upstream that it was sent to.
        to: String,
        /// What was wrong.
        why: String,
    },
    /// The stream was ended by fusebox.
    StreamCut {
        /// Why.
        why: String,
    },
    /// Something that was due was left out.
    StepSkipped {
        /// The kind of order.
        step: String,
        /// Why.
        why: String,
    },
}

impl Observation {
    /// Whether the answer was an error of the upstream or of the way to it (refusals of fusebox are none).
    pub fn is_error(&self) -> bool {
        match self.outcome {
            Outcome::UpstreamError | Outcome::Timeout | Outcome::Truncated => true,
            Outcome::Refused | Outcome::ClientAbort | Outcome::Cut => false,
            Outcome::Complete => self.status >= 400 || self.error_type.is_some(),
        }
    }

    /// Duration of the exchange.
    pub fn duration(&self) -> Duration {
        Duration::try_from_secs_f64(self.duration_ms / 1e3).unwrap_or_default()
    }
}
