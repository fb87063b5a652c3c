//! What happens when an upstream fails, compiled: when it counts as failed, how it is left alone, and what is sent elsewhere.

use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderName, HeaderValue};

use crate::dialect::table::Family;
use crate::types::usage::Cost;

/// What counts as a failure of an upstream, for failover and its breaker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryOn {
    /// No connection was made (name not found, refused, timed out, TLS failed).
    pub connect_error: bool,
    /// The head of the answer did not come in time.
    pub first_byte_timeout: bool,
    /// The first event of a stream is an error.
    pub first_event_error: bool,
    /// Statuses of the answer (400 to 599), in rising order.
    pub statuses: Vec<u16>,
    /// How long the head of the answer may take while another upstream is left to be asked; `None` as long as
    /// `timeouts.first_byte` says, and never longer.
    pub first_byte_within: Option<Duration>,
}

impl RetryOn {
    /// Nothing counts as a failure.
    pub const NOTHING: Self = Self {
        connect_error: false,
        first_byte_timeout: false,
        first_event_error: false,
        statuses: Vec::new(),
        first_byte_within: None,
    };

    /// Whether an answer with this status is a failure.
    pub fn is_failure(&self, status: u16) -> bool {
        self.statuses.binary_search(&status).is_ok()
    }
}

/// When an upstream is left alone for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Failures that open it; at least 1.
    pub failures: u32,
    /// Within how long.
    pub within: Duration,
    /// How long it stays open before one request may try.
    pub open_for: Duration,
}

/// How many further attempts the requests of one agent may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudget {
    /// Further attempts in a hundred requests (0 to 100) of the last minute.
    pub percent: f64,
    /// Further attempts in a minute that are allowed in any case.
    pub min_per_minute: u32,
}

/// What models are called at an upstream, by the name that was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelMap {
    /// Whole names and beginnings of names (without their `*`), the longest first.
    entries: Vec<(String, bool, String)>,
}

impl ModelMap {
    /// From pairs of a name (a trailing `*` matches the rest) and the name at the upstream.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut entries: Vec<(String, bool, String)> = pairs
            .into_iter()
            .map(|(from, to)| match from.strip_suffix('*') {
                Some(begin) => (begin.to_owned(), true, to),
                None => (from, false, to),
            })
            .collect();
        entries.sort_by(|a, b| (a.1, b.0.len(), &a.0).cmp(&(b.1, a.0.len(), &b.0)));
        Self { entries }
    }

    /// The name at the upstream; `None` when it is called the same there.
    pub fn get(&self, asked: &str) -> Option<&str> {
        self.entries
            .iter()
            .find(|(from, begins, _)| from == asked || (*begins && asked.starts_with(from.as_str())))
            .map(|(_, _, to)| to.as_str())
    }

    /// Whether every model is called the same.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// An upstream's own key, in the place of the client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    header: KeyHeader,
    /// Both are marked as sensitive, so that nothing prints them.
    bare: HeaderValue,
    bearer: HeaderValue,
}

/// Where an API looks for its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyHeader {
    /// As the dialect has it: `x-api-key` (Anthropic), `x-goog-api-key` (Gemini), else `authorization`.
    ByDialect,
    /// `authorization: Bearer`, whatever the dialect.
    Bearer,
    /// `api-key`, and `x-api-key` for the Anthropic dialect.
    Azure,
    /// This header.
    Named(HeaderName),
}

impl KeyHeader {
    /// Where the API of a provider looks for its key.
    pub fn of_provider(provider: &str) -> Self {
        match provider {
            "azure" => Self::Azure,
            "openrouter" | "vertex" | "bedrock" | "databricks" | "snowflake" => Self::Bearer,
            _ => Self::ByDialect,
        }
    }
}

impl Credentials {
    /// Request headers in which clients carry keys; all of them are removed before an own key is put in. (Gemini also
    /// takes one as `key` in the query.)
    pub const OF_CLIENTS: [HeaderName; 4] = [
        AUTHORIZATION,
        HeaderName::from_static("x-api-key"),
        HeaderName::from_static("api-key"),
        HeaderName::from_static("x-goog-api-key"),
    ];

    /// The key in the header.
    ///
    /// # Errors
    /// When the key holds what no header may hold.
    pub fn new(key: &str, header: KeyHeader) -> Result<Self, http::header::InvalidHeaderValue> {
        let sensitive = |text: &str| {
            let mut value = HeaderValue::from_str(text)?;
            value.set_sensitive(true);
            Ok(value)
        };
        Ok(Self {
            header,
            bare: sensitive(key)?,
            bearer: sensitive(&format!("Bearer {key}"))?,
        })
    }

    /// The header that a request of this dialect carries the key in, and its value. Copies no text.
    pub fn header(&self, family: Family) -> (HeaderName, HeaderValue) {
        let bare = |name: &'static str| (HeaderName::from_static(name), self.bare.clone());
        match (&self.header, family) {
            (KeyHeader::ByDialect | KeyHeader::Azure, Family::Anthropic) => bare("x-api-key"),
            (KeyHeader::ByDialect, Family::Gemini) => bare("x-goog-api-key"),
            (KeyHeader::Azure, _) => bare("api-key"),
            (KeyHeader::Named(name), _) if *name != AUTHORIZATION => (name.clone(), self.bare.clone()),
            _ => (AUTHORIZATION, self.bearer.clone()),
        }
    }
}

/// When an answer that is being streamed is ended by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamLimits {
    /// Whether an answer that repeats itself over and over is ended.
    pub cut_repetition: bool,
    /// Output tokens after which an answer is ended; at least 1.
    pub max_output_tokens: Option<u64>,
    /// Money after which an answer is ended, where its model has a price; above nothing.
    pub max_cost: Option<Cost>,
}

impl StreamLimits {
    /// Whether no answer is ever ended.
    pub fn is_off(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_go_by_their_whole_name_first_then_by_the_longest_beginning() {
        let pairs = [
            ("gpt-5*", "a"),
            ("gpt-5-mini*", "b"),
            ("gpt-5-mini", "c"),
            ("*", "d"),
        ];
        let map = ModelMap::new(pairs.map(|(f, t)| (f.to_owned(), t.to_owned())));
        for (asked, want) in [
            ("gpt-5", "a"),
            ("gpt-5-nano", "a"),
            ("gpt-5-mini", "c"),
            ("gpt-5-mini-2026", "b"),
            ("o3", "d"),
        ] {
            assert_eq!(map.get(asked), Some(want), "{asked}");
        }
        assert_eq!(ModelMap::default().get("o3"), None);
        assert!(!map.is_empty() && ModelMap::default().is_empty());
    }

    #[test]
    fn keys_go_where_the_api_expects_them_and_are_never_shown() {
        for (provider, family, name, value) in [
            ("openai", Family::OpenAi, "authorization", "Bearer hunter2"),
            ("anthropic", Family::Anthropic, "x-api-key", "hunter2"),
            ("gemini", Family::Gemini, "x-goog-api-key", "hunter2"),
            ("gemini", Family::OpenAi, "authorization", "Bearer hunter2"),
            ("azure", Family::OpenAi, "api-key", "hunter2"),
            ("azure", Family::Anthropic, "x-api-key", "hunter2"),
            ("openrouter", Family::Anthropic, "authorization", "Bearer hunter2"),
            ("vertex", Family::Gemini, "authorization", "Bearer hunter2"),
        ] {
            let c = Credentials::new("hunter2", KeyHeader::of_provider(provider)).unwrap();
            let (header, text) = c.header(family);
            assert_eq!(
                (header.as_str(), text.to_str().unwrap()),
                (name, value),
                "{provider}"
            );
            assert!(text.is_sensitive() && !format!("{c:?}").contains("hunter2"));
        }
        let own = |name: &'static str| KeyHeader::Named(HeaderName::from_static(name));
        let header = |name| Credentials::new("k", own(name)).unwrap().header(Family::Other);
        assert_eq!(
            header("x-key"),
            (HeaderName::from_static("x-key"), HeaderValue::from_static("k"))
        );
        assert_eq!(header("authorization").1, "Bearer k");
        assert!(Credentials::new("a\nb", KeyHeader::Bearer).is_err());
    }

    #[test]
    fn statuses_are_found() {
        let on = RetryOn {
            statuses: vec![502, 529],
            ..RetryOn::NOTHING
        };
        assert!(on.is_failure(529) && !on.is_failure(503) && !RetryOn::NOTHING.is_failure(502));
    }
}
