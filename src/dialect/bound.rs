//! Which requests only the upstream can answer that they were meant for, because they lean on what it keeps.

use memchr::memmem;

use super::json::{self, Object};
use super::table::{Family, Route};

/// Members of a body that name what an upstream keeps, at the top level.
const KEPT: [(&[u8], &str); 9] = [
    (b"previous_response_id", "previous_response_id"),
    (b"previous_interaction_id", "previous_interaction_id"),
    (b"conversation", "conversation"),
    (b"container", "container"),
    (b"cached_content", "cached_content"),
    (b"cachedContent", "cachedContent"),
    (b"assistant_id", "assistant_id"),
    (b"thread_id", "thread_id"),
    (b"prompt_id", "prompt_id"),
];

/// Members anywhere in a body that name what an upstream keeps.
const NAMED: [(&[u8], &str); 6] = [
    (b"\"file_id\"", "file_id"),
    (b"\"vector_store_ids\"", "vector_store_ids"),
    (b"\"item_reference\"", "item_reference"),
    (b"\"fileUri\"", "fileUri"),
    (b"\"file_uri\"", "file_uri"),
    (b"\"container_id\"", "container_id"),
];

/// Members that only whoever made them can read: signed thoughts and sealed reasoning.
const SEALED: [(&[u8], &str); 4] = [
    (b"\"signature\"", "signed thinking"),
    (b"\"redacted_thinking\"", "redacted thinking"),
    (b"\"encrypted_content\"", "encrypted reasoning"),
    (b"\"thoughtSignature\"", "signed thoughts"),
];

/// Why a request cannot be answered by another upstream; `None` when it can. `stranger`: the other one belongs to
/// somebody else, or is asked for another model, so that it cannot read what was sealed by the first.
///
/// A body that is no JSON (a form, an image) leans on nothing. Names are searched for as they are written; a text that
/// is nothing but such a name is taken for one, which only keeps the request where it is.
pub fn bound(route: &Route, body: &[u8], stranger: bool) -> Option<&'static str> {
    if route.api.family() == Family::Other {
        return Some(
            "only the upstream itself can answer it: it is about what is kept there, or is not known",
        );
    }
    let mut members = Object::open(body)?;
    while let Ok(Some(key)) = members.key() {
        let name = json::key_name(key);
        let Ok(range) = members.value(&mut ()) else { break };
        let value = json::slice(body, range);
        if matches!(value, b"null" | b"false" | b"\"\"") {
            continue;
        }
        if let Some((_, what)) = KEPT.iter().find(|(kept, _)| *kept == &*name) {
            return Some(what);
        }
        if *name == *b"background" && value == b"true" {
            return Some("background");
        }
        // A stored prompt; a text (Completions) is none.
        if *name == *b"prompt" && json::member(value, "id").is_some() {
            return Some("prompt.id");
        }
    }
    let sealed = SEALED.iter().filter(|_| stranger);
    NAMED
        .iter()
        .chain(sealed)
        .find(|(name, _)| holds(body, name))
        .map(|(_, what)| *what)
}

/// Whether `name` stands in the body as a key or a whole text (within a longer text its quotes are escaped).
fn holds(body: &[u8], name: &[u8]) -> bool {
    memmem::find_iter(body, name).any(|at| at.checked_sub(1).and_then(|b| body.get(b)) != Some(&b'\\'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::table::route;

    fn why(path: &str, body: &str, stranger: bool) -> Option<&'static str> {
        bound(&route(&http::Method::POST, path, None), body.as_bytes(), stranger)
    }

    #[test]
    fn what_leans_on_an_upstream_stays_there() {
        let (chat, responses) = ("/v1/chat/completions", "/v1/responses");
        let gemini = "/v1beta/models/g:generateContent";
        for (path, body, want) in [
            (chat, r#"{"model":"m","messages":[]}"#, None),
            (chat, "--form", None),
            (responses, r#"{"input":"x","previous_response_id":null}"#, None),
            (
                responses,
                r#"{"input":"x","previous_response_id":"resp_1"}"#,
                Some("previous_response_id"),
            ),
            (
                responses,
                r#"{"prev\u0069ous_response_id":"resp_1"}"#,
                Some("previous_response_id"),
            ),
            (responses, r#"{"conversation":{"id":"c"}}"#, Some("conversation")),
            (responses, r#"{"background":true}"#, Some("background")),
            (responses, r#"{"background":false}"#, None),
            (responses, r#"{"prompt":{"id":"pmpt"}}"#, Some("prompt.id")),
            ("/v1/completions", r#"{"prompt":"id"}"#, None),
            (
                responses,
                r#"{"input":[{"content":[{"type":"input_file","file_id" : "f"}]}]}"#,
                Some("file_id"),
            ),
            (
                chat,
                r#"{"messages":[{"content":"what is a \"file_id\"?"}]}"#,
                None,
            ),
            (gemini, r#"{"cachedContent":"c"}"#, Some("cachedContent")),
            ("/v1/messages", r#"{"container":"c"}"#, Some("container")),
        ] {
            assert_eq!(why(path, body, false), want, "{body}");
        }
        for path in ["/v1/files", "/v1/batches", "/v1/threads/t/runs", "/v1/assistants"] {
            assert!(why(path, "{}", false).is_some(), "{path}");
        }
    }

    #[test]
    fn what_is_sealed_is_for_whoever_sealed_it() {
        let body = r#"{"messages":[{"content":[{"type":"thinking","signature":"s"}]}]}"#;
        assert_eq!(why("/v1/messages", body, false), None);
        assert_eq!(why("/v1/messages", body, true), Some("signed thinking"));
    }
}
