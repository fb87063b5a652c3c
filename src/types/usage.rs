//! What an exchange used: token counts as reported, how they are known, and money.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Token counts exactly as the answer reported them: absent is not zero, nothing is added up or made comparable.
///
/// How the counts of different APIs relate (whether input includes cached tokens, output includes reasoning) is
/// said by [`Normalised`], which stands beside this in every observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Usage {
    /// Input (prompt) tokens.
    pub input_tokens: Option<u64>,
    /// Output (completion) tokens.
    pub output_tokens: Option<u64>,
    /// Total, when the API reports one.
    pub total_tokens: Option<u64>,
    /// Input tokens that were read from a prompt cache.
    pub cached_input_tokens: Option<u64>,
    /// Input tokens that were written to a prompt cache.
    pub cache_write_tokens: Option<u64>,
    /// Output tokens spent on reasoning.
    pub reasoning_tokens: Option<u64>,
    /// Input tokens that were audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input_audio_tokens: Option<u64>,
    /// Output tokens that were audio.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_audio_tokens: Option<u64>,
    /// Input tokens of tool-use prompts (Gemini).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_use_input_tokens: Option<u64>,
    /// Input tokens by response header (Bedrock InvokeModel).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_input_tokens: Option<u64>,
    /// Output tokens by response header (Bedrock InvokeModel).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_output_tokens: Option<u64>,
}

impl Usage {
    /// What two answers used together; absent counts as nothing beside what is there.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            input_tokens: sum(self.input_tokens, other.input_tokens),
            output_tokens: sum(self.output_tokens, other.output_tokens),
            total_tokens: sum(self.total_tokens, other.total_tokens),
            cached_input_tokens: sum(self.cached_input_tokens, other.cached_input_tokens),
            cache_write_tokens: sum(self.cache_write_tokens, other.cache_write_tokens),
            reasoning_tokens: sum(self.reasoning_tokens, other.reasoning_tokens),
            input_audio_tokens: sum(self.input_audio_tokens, other.input_audio_tokens),
            output_audio_tokens: sum(self.output_audio_tokens, other.output_audio_tokens),
            tool_use_input_tokens: sum(self.tool_use_input_tokens, other.tool_use_input_tokens),
            header_input_tokens: sum(self.header_input_tokens, other.header_input_tokens),
            header_output_tokens: sum(self.header_output_tokens, other.header_output_tokens),
        }
    }
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    }
}

/// The two comparable totals of an exchange, whatever API it spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Normalised {
    /// All input tokens, cached ones included.
    pub input_total: Option<u64>,
    /// All output tokens, reasoning included.
    pub output_total: Option<u64>,
}

impl Normalised {
    /// What two answers used together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            input_total: sum(self.input_total, other.input_total),
            output_total: sum(self.output_total, other.output_total),
        }
    }

    /// Input plus output; `None` when neither is known.
    pub fn total(self) -> Option<u64> {
        match (self.input_total, self.output_total) {
            (None, None) => None,
            (i, o) => Some(i.unwrap_or(0).saturating_add(o.unwrap_or(0))),
        }
    }
}

/// How the counts of an exchange are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// The answer said so, to its end.
    Reported,
    /// The answer said part of it before it ended early; the rest is unknown.
    Partial,
    /// Derived from the number of bytes, since the answer did not say.
    Estimated,
    /// Nothing was used, or nothing can be said.
    #[default]
    None,
}

impl UsageSource {
    /// How the counts of two answers together are known.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, known) | (known, Self::None) => known,
            (Self::Reported, Self::Reported) => Self::Reported,
            (Self::Estimated, Self::Estimated) => Self::Estimated,
            _ => Self::Partial,
        }
    }
}

/// Money, in billionths of a US dollar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Cost(u64);

impl Cost {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// That many billionths of a dollar.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Billionths of a dollar.
    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Dollars.
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The sum, stopping at the largest value.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "${:.6}", self.usd())
    }
}

impl Serialize for Cost {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(self.usd())
    }
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let usd = f64::deserialize(d)?;
        if usd.is_finite() && (0.0..1e9).contains(&usd) {
            Ok(Self((usd * 1e9).round() as u64))
        } else {
            Err(serde::de::Error::custom("a cost is between 0 and 1e9 dollars"))
        }
    }
}

impl JsonSchema for Cost {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "CostUsd".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "number", "minimum": 0, "description": "US dollars"})
    }
}
