//! Parts of a body that tell who sends it and to which execution it belongs.

use super::json::{self, Object};

/// Pairs of metadata that are kept.
const MAX_PAIRS: usize = 16;
/// Longest key or value that is kept, in bytes; longer ones are left out.
const MAX_VALUE: usize = 256;
/// Longest `metadata.user_id` that is searched for a session, in bytes.
const MAX_USER_ID: usize = 4096;
/// Longest id of an answer that is kept, in bytes: gateways put what they know into theirs.
pub(super) const MAX_ANSWER_ID: usize = 512;

/// Parts of a body that tell who sends it and to which execution it belongs.
#[derive(Debug, Clone, Default)]
pub struct BodyHints {
    metadata: Vec<(String, String)>,
    execution: Option<String>,
    previous: Option<String>,
}

impl BodyHints {
    /// The string value of `metadata.{key}`. At most 16 pairs of at most 256 bytes are kept of each body.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata
            .iter()
            .find_map(|(k, v)| (k == key).then_some(v.as_str()))
    }

    /// The execution that the body names outside `metadata` (`prompt_cache_key`, `conversation`, session ids of known
    /// clients).
    pub fn execution(&self) -> Option<&str> {
        self.execution.as_deref()
    }

    /// The id of the answer that this request goes on from (`previous_response_id`, `previous_interaction_id`); at
    /// most 512 bytes.
    pub fn previous_answer(&self) -> Option<&str> {
        self.previous.as_deref()
    }
}

/// Gathers hints while a body is read.
#[derive(Debug, Default)]
pub(super) struct HintReader {
    hints: BodyHints,
    /// How sure the execution is; a surer one takes its place.
    rank: u8,
}

impl HintReader {
    /// Whether the top-level member `name` is of use.
    pub(super) fn wants(name: &[u8]) -> bool {
        matches!(
            name,
            b"metadata"
                | b"client_metadata"
                | b"requestMetadata"
                | b"labels"
                | b"conversation"
                | b"session_id"
                | b"prompt_cache_key"
                | b"previous_response_id"
                | b"previous_interaction_id"
        )
    }

    /// Takes a member that is wanted.
    pub(super) fn member(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"metadata" => {
                self.pairs(value);
                if let Some(id) = json::member(value, "user_id").filter(|v| v.len() <= MAX_USER_ID)
                    && let Some(id) = json::as_text(id)
                    && let Some(session) = claude_session(&id)
                {
                    self.execution(session, 9);
                }
            }
            // Bedrock's and Vertex' own words for metadata.
            b"requestMetadata" | b"labels" => self.pairs(value),
            b"client_metadata" => {
                for key in ["session_id", "thread_id"] {
                    if let Some(id) = json::member(value, key).and_then(json::as_text) {
                        self.execution(&id, 8);
                    }
                }
            }
            b"conversation" => {
                let id = json::as_text(value).or_else(|| json::member(value, "id").and_then(json::as_text));
                if let Some(id) = id {
                    self.execution(&id, 7);
                }
            }
            b"previous_response_id" | b"previous_interaction_id" => {
                self.hints.previous = json::as_text(value)
                    .filter(|id| !id.is_empty() && id.len() <= MAX_ANSWER_ID)
                    .map(std::borrow::Cow::into_owned);
            }
            _ => {
                let rank = if name == b"session_id" { 6 } else { 5 };
                if let Some(id) = json::as_text(value) {
                    self.execution(&id, rank);
                }
            }
        }
    }

    pub(super) fn finish(self) -> BodyHints {
        self.hints
    }

    fn execution(&mut self, id: &str, rank: u8) {
        if rank > self.rank && !id.is_empty() && id.len() <= MAX_VALUE {
            self.rank = rank;
            self.hints.execution = Some(id.to_owned());
        }
    }

    fn pairs(&mut self, value: &[u8]) {
        let Some(mut members) = Object::open(value) else {
            return;
        };
        while let Ok(Some(key)) = members.key() {
            let Ok(range) = members.value(&mut ()) else { return };
            if self.hints.metadata.len() == MAX_PAIRS {
                return;
            }
            if key.len() > MAX_VALUE || range.len() > 6 * MAX_VALUE {
                continue;
            }
            if let (Some(key), Some(text)) = (json::unescape(key), json::as_text(json::slice(value, range)))
                && text.len() <= MAX_VALUE
            {
                self.hints.metadata.push((key.into_owned(), text.into_owned()));
            }
        }
    }
}

/// The session in the `user_id` of Claude Code: a JSON text with `session_id`, in older versions
/// `user_…_account_…_session_{uuid}`.
fn claude_session(user_id: &str) -> Option<&str> {
    if user_id.starts_with('{') {
        let value = json::member(user_id.as_bytes(), "session_id")?;
        let raw = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
        return std::str::from_utf8(raw).ok().filter(|id| !id.contains('\\'));
    }
    let (_, session) = user_id.rsplit_once("_session_")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    (!session.is_empty() && session.bytes().all(plain)).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(members: &[(&str, &str)]) -> BodyHints {
        let mut reader = HintReader::default();
        for (name, value) in members {
            assert!(HintReader::wants(name.as_bytes()), "{name}");
            reader.member(name.as_bytes(), value.as_bytes());
        }
        reader.finish()
    }

    #[test]
    fn metadata_is_kept_within_bounds() {
        let hints = read(&[(
            "metadata",
            r#"{"agent":"a\u0062","n":1,"o":{"agent":"x"},"run id":"r"}"#,
        )]);
        assert_eq!(hints.metadata("agent"), Some("ab"));
        assert_eq!(hints.metadata("run id"), Some("r"));
        assert_eq!((hints.metadata("n"), hints.metadata("o")), (None, None));
        let many: Vec<_> = (0..40).map(|i| format!(r#""k{i}":"v""#)).collect();
        let long = "x".repeat(257);
        let hints = read(&[("metadata", &format!(r#"{{"long":"{long}",{}}}"#, many.join(",")))]);
        assert_eq!(hints.metadata.len(), MAX_PAIRS);
        assert_eq!(hints.metadata("long"), None);
        assert_eq!(read(&[("metadata", "[]"), ("labels", "null")]).metadata.len(), 0);
        assert_eq!(
            read(&[("requestMetadata", r#"{"a":"b"}"#)]).metadata("a"),
            Some("b")
        );
    }

    #[test]
    fn the_surest_execution_wins() {
        for (members, want) in [
            (vec![("prompt_cache_key", r#""k""#)], Some("k")),
            (
                vec![("conversation", r#""conv_1""#), ("prompt_cache_key", r#""k""#)],
                Some("conv_1"),
            ),
            (
                vec![
                    ("prompt_cache_key", r#""k""#),
                    ("conversation", r#"{"id":"conv_2"}"#),
                ],
                Some("conv_2"),
            ),
            (vec![("previous_response_id", r#""resp_1""#)], None),
            (
                vec![
                    ("session_id", r#""s""#),
                    ("client_metadata", r#"{"session_id":"t"}"#),
                ],
                Some("t"),
            ),
            (
                vec![("metadata", r#"{"user_id":"user_1_account__session_0a-b"}"#)],
                Some("0a-b"),
            ),
            (
                vec![(
                    "metadata",
                    r#"{"user_id":"{\"device_id\":\"d\",\"session_id\":\"s-1\"}"}"#,
                )],
                Some("s-1"),
            ),
            (vec![("metadata", r#"{"user_id":"someone"}"#)], None),
        ] {
            assert_eq!(read(&members).execution(), want, "{members:?}");
        }
    }

    #[test]
    fn the_answer_before_is_no_name_of_an_execution() {
        let long = format!("\"{}\"", "x".repeat(MAX_ANSWER_ID + 1));
        for (name, value, want) in [
            ("previous_response_id", r#""resp_1""#, Some("resp_1")),
            ("previous_interaction_id", r#""v1_a""#, Some("v1_a")),
            ("previous_response_id", "null", None),
            ("previous_response_id", "\"\"", None),
            ("previous_response_id", long.as_str(), None),
        ] {
            let hints = read(&[(name, value)]);
            assert_eq!(
                (hints.previous_answer(), hints.execution()),
                (want, None),
                "{value}"
            );
        }
    }
}
