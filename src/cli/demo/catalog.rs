//! The models that the simulated provider serves: dated names and speeds.

use std::time::Duration;

/// A model of the simulated provider.
#[derive(Debug, Clone, Copy)]
pub(super) struct Model {
    /// Names that begin so are this model.
    prefix: &'static str,
    /// Added to an undated name in answers; empty for models that have no dated name.
    date: &'static str,
    /// Milliseconds to the first token of a short prompt.
    first_token_ms: u64,
    /// Microseconds for each token after it.
    token_us: u64,
}

/// Longer prefixes come before the shorter ones that they begin with. Speeds are of the order that vendors show.
const MODELS: &[Model] = &[
    model("gpt-4o-mini", "2024-07-18", 260, 8_000),
    model("gpt-4o", "2024-08-06", 420, 14_000),
    model("gpt-4.1-nano", "2025-04-14", 220, 6_000),
    model("gpt-4.1-mini", "2025-04-14", 280, 8_500),
    model("gpt-4.1", "2025-04-14", 450, 14_000),
    model("gpt-", "", 600, 16_000),
    model("chatgpt-", "", 450, 14_000),
    model("o1", "", 1_200, 12_000),
    model("o3", "", 1_200, 12_000),
    model("o4", "", 900, 10_000),
    model("claude-haiku-4-5", "20251001", 320, 7_500),
    model("claude-sonnet-4-5", "20250929", 600, 15_000),
    model("claude-", "", 600, 15_000),
    model("text-embedding-", "", 90, 0),
];

const fn model(prefix: &'static str, date: &'static str, first_token_ms: u64, token_us: u64) -> Model {
    Model {
        prefix,
        date,
        first_token_ms,
        token_us,
    }
}

/// The model that requests call `name`.
pub(super) fn find(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|m| name.starts_with(m.prefix))
}

/// A few names for the list of models.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    MODELS
        .iter()
        .filter(|m| !m.date.is_empty())
        .map(|m| m.prefix)
        .chain(["text-embedding-3-small"])
}

impl Model {
    /// The name that an answer bears when `asked` was asked for: dated, as the vendors do.
    pub(super) fn served(&self, asked: &str) -> String {
        if asked == self.prefix && !self.date.is_empty() {
            format!("{asked}-{}", self.date)
        } else {
            asked.to_owned()
        }
    }

    /// Time to the first token after a prompt of `input` tokens.
    pub(super) fn first_token(&self, input: u64) -> Duration {
        // Reading the prompt takes about 15 µs a token on top of the fixed part.
        Duration::from_millis(self.first_token_ms) + Duration::from_micros(input.saturating_mul(15))
    }

    /// Time for `tokens` more tokens.
    pub(super) fn tokens(&self, tokens: u64) -> Duration {
        Duration::from_micros(self.token_us.saturating_mul(tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dated_once() {
        for (asked, served) in [
            ("gpt-4o", "gpt-4o-2024-08-06"),
            ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
            ("gpt-4o-2024-05-13", "gpt-4o-2024-05-13"),
            ("claude-sonnet-4-5", "claude-sonnet-4-5-20250929"),
            ("gpt-4-mini", "gpt-4-mini"),
            ("text-embedding-3-small", "text-embedding-3-small"),
        ] {
            assert_eq!(find(asked).map(|m| m.served(asked)).as_deref(), Some(served));
        }
        assert!(find("llama-7b").is_none());
    }

    #[test]
    fn no_prefix_hides_a_longer_one() {
        for (i, m) in MODELS.iter().enumerate() {
            assert_eq!(
                MODELS.iter().position(|o| m.prefix.starts_with(o.prefix)),
                Some(i),
                "{} is never found",
                m.prefix
            );
        }
    }

    #[test]
    fn smaller_models_are_faster() {
        let time = |name| find(name).map(|m| m.first_token(1000) + m.tokens(200));
        assert!(time("gpt-4o-mini") < time("gpt-4o"));
        assert!(time("claude-haiku-4-5") < time("claude-sonnet-4-5"));
    }
}
