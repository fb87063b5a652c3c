//! What happens when an upstream fails, streams that run away, and what is kept of prompts, as it is written.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use crate::config::at::Opt;
use crate::config::units::{DurationText, Scalar};

/// How an upstream gets a key of its own. Default: the client's own passes on.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct CredentialsFile {
    /// The key, put in the place of the client's.
    pub(in crate::config) api_key: Opt<String>,
    /// File that holds the key.
    pub(in crate::config) api_key_file: Opt<String>,
    /// The header it is put into (after Bearer where that is authorization). Default: the one that the API expects.
    pub(in crate::config) header: Opt<String>,
}

/// When an upstream is left alone for a while.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct BreakerFile {
    /// Failures (as of retry_on) that open it; 0 turns it off. Default: 5.
    #[schemars(range(max = 1_000_000))]
    pub(in crate::config) failures: Opt<u64>,
    /// Within how long. Default: 30s.
    pub(in crate::config) within: Opt<DurationText>,
    /// How long it stays open before one request may try. Default: 30s.
    pub(in crate::config) open_for: Opt<DurationText>,
}

/// A failure after which the next upstream is tried.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(in crate::config) struct RetryOnText(pub(in crate::config) Scalar);

/// The failures that are not statuses.
pub(in crate::config) const FAILURES: [&str; 3] =
    ["connect_error", "first_byte_timeout", "first_event_error"];

impl JsonSchema for RetryOnText {
    fn schema_name() -> Cow<'static, str> {
        "RetryOn".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A failure: connect_error, first_byte_timeout, first_event_error, or a status of the answer.",
            "anyOf": [
                {"enum": FAILURES},
                {"type": "integer", "minimum": 400, "maximum": 599},
                {"type": "string", "pattern": "\\$\\{"}
            ]
        })
    }
}

/// Bound on further attempts, for each agent.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RetriesFile {
    /// Further attempts in a hundred requests of the last minute.
    #[schemars(range(min = 0, max = 100))]
    pub(in crate::config) budget_percent: Opt<f64>,
    /// Further attempts in a minute that are allowed in any case.
    #[schemars(range(max = 1_000_000))]
    pub(in crate::config) min_per_minute: Opt<u64>,
}

/// When an answer that is being streamed is ended by fusebox.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct StreamsFile {
    /// Whether an answer that repeats itself over and over is ended.
    pub(in crate::config) cut_repetition: Opt<bool>,
    /// Output tokens after which an answer is ended. Default: any number.
    #[schemars(range(min = 1, max = 1_000_000_000u32))]
    pub(in crate::config) max_output_tokens: Opt<u64>,
    /// US dollars after which an answer is ended, where its model has a price. Default: any sum.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub(in crate::config) max_cost_usd: Opt<f64>,
}
