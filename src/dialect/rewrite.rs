//! Puts another model into a request, changing that one value in place.

use std::ops::Range;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::json::{self, Object};
use super::multipart;
use super::request::{ModelProblem, RequestFacts};
use super::table::{Api, Family, Route, split_model};

/// What is percent-encoded in a path: all but unreserved characters and `@`, which Vertex' models have. A colon is
/// encoded, as Google's paths have one of their own behind the model.
const IN_PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'@');

/// A request with another model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewritten {
    /// The new path, where the path names the model.
    pub path: Option<String>,
    /// The new body, where the body names it.
    pub body: Option<Vec<u8>>,
}

/// Why a request cannot be given another model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RewriteError {
    /// The model cannot be read.
    #[error("its model cannot be read ({0:?})")]
    Model(ModelProblem),
    /// There is no model to replace.
    #[error("it names no model")]
    NoModel,
}

/// Puts model `to` into the request; `path` is the client's path as sent to the upstream.
///
/// Where the path names the model, the path is changed; a `model` that stands in Gemini's body as well is changed
/// with it, since the two must agree. Elsewhere one value of the body is replaced and every other byte stays.
///
/// # Errors
/// When the model cannot be found for certain.
///
/// Whether a signature covers what would be changed is for the caller to see: the body does not tell.
pub fn replace_model(
    route: &Route,
    facts: &RequestFacts,
    path: &str,
    body: &[u8],
    to: &str,
) -> Result<Rewritten, RewriteError> {
    if let Some(problem) = facts.model_problem {
        return Err(RewriteError::Model(problem));
    }
    if to.is_empty() {
        return Err(RewriteError::NoModel);
    }
    if route.path_model.is_none() {
        let (range, form) = match model_value(body) {
            Some(range) => (range, false),
            None => (form_value(body).ok_or(RewriteError::NoModel)?, true),
        };
        let value = if form { to.as_bytes().to_vec() } else { quoted(to) };
        return Ok(Rewritten {
            path: None,
            body: Some(json::splice(body, range, &value)),
        });
    }
    let split = split_model(route.api, path).ok_or(RewriteError::NoModel)?;
    let google = route.api.family() == Family::Gemini;
    let bare = if google {
        to.strip_prefix("models/").unwrap_or(to)
    } else {
        to
    };
    let encoded = utf8_percent_encode(bare, IN_PATH);
    Ok(Rewritten {
        path: Some(format!("{}{encoded}{}", split.before, split.after)),
        body: google.then(|| gemini_body(route.api, body, bare)).flatten(),
    })
}

/// Gemini's body with its own `model` replaced, where it has one that is a string.
fn gemini_body(api: Api, body: &[u8], to: &str) -> Option<Vec<u8>> {
    if api != Api::GeminiGenerateContent {
        return None;
    }
    let range = model_value(body)?;
    let old = json::as_text(json::slice(body, range.clone()))?;
    let new = if old.starts_with("models/") {
        format!("models/{to}")
    } else {
        to.to_owned()
    };
    Some(json::splice(body, range, &quoted(&new)))
}

/// Where the value of the top-level `model` stands, when it is a string.
fn model_value(body: &[u8]) -> Option<Range<usize>> {
    let mut object = Object::open(body)?;
    while let Ok(Some(key)) = object.key() {
        let found = *json::key_name(key) == *b"model" && object.peek() == b'"';
        let range = object.value(&mut ()).ok()?;
        if found {
            return Some(range);
        }
    }
    None
}

/// Where the field `model` of a form stands.
fn form_value(body: &[u8]) -> Option<Range<usize>> {
    multipart::parts(body)
        .find(|p| p.name == b"model" && !p.file)
        .map(|p| p.content)
}

fn quoted(text: &str) -> Vec<u8> {
    // Writing a string cannot fail.
    serde_json::to_vec(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::request::read;
    use crate::dialect::table::route;

    fn replace(path: &str, body: &str, to: &str) -> Result<(String, String), RewriteError> {
        let route = route(&http::Method::POST, path, None);
        let multipart = body.starts_with("--").then_some("multipart/form-data");
        let facts = read(&route, multipart, body.as_bytes());
        let new = replace_model(&route, &facts, path, body.as_bytes(), to)?;
        let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
        Ok((
            new.path.unwrap_or_else(|| path.to_owned()),
            new.body.map_or_else(|| body.to_owned(), text),
        ))
    }

    #[test]
    fn one_value_changes_and_nothing_else() {
        for (path, body, to, new_path, new_body) in [
            (
                "/v1/chat/completions",
                "{ \"messages\" : [{\"model\":\"x\"}] ,\"mod\\u0065l\" :\t\"a\" , \"n\":1.0e0 }\n",
                "q\"\\é",
                "/v1/chat/completions",
                "{ \"messages\" : [{\"model\":\"x\"}] ,\"mod\\u0065l\" :\t\"q\\\"\\\\é\" , \"n\":1.0e0 }\n",
            ),
            (
                "/v1beta/models/gemini-2.5-pro:streamGenerateContent",
                r#"{"contents":[]}"#,
                "models/gemini-2.5-flash",
                "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
                r#"{"contents":[]}"#,
            ),
            (
                "/v1beta/models/gemini-2.0-flash:generateContent",
                r#"{"model":"models/gemini-2.0-flash","contents":[]}"#,
                "gemini-x:1",
                "/v1beta/models/gemini-x%3A1:generateContent",
                r#"{"model":"models/gemini-x:1","contents":[]}"#,
            ),
            (
                "/v1/publishers/anthropic/models/claude-3-7-sonnet@20250219:rawPredict",
                "{}",
                "claude-haiku-4-5@20251001",
                "/v1/publishers/anthropic/models/claude-haiku-4-5@20251001:rawPredict",
                "{}",
            ),
            (
                "/bedrock/model/us.anthropic.claude-v2%3A1/converse",
                "{}",
                "us.x-v1:0",
                "/bedrock/model/us.x-v1%3A0/converse",
                "{}",
            ),
            (
                "//openai/deployments/big/chat/completions",
                r#"{"model":"whatever"}"#,
                "small one/2",
                "//openai/deployments/small%20one%2F2/chat/completions",
                r#"{"model":"whatever"}"#,
            ),
            (
                "/v1/audio/transcriptions",
                "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nbig\r\n--b--\r\n",
                "small",
                "/v1/audio/transcriptions",
                "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nsmall\r\n--b--\r\n",
            ),
        ] {
            assert_eq!(
                replace(path, body, to),
                Ok((new_path.to_owned(), new_body.to_owned())),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_not_certain_is_refused() {
        let chat = "/v1/chat/completions";
        for (body, want) in [
            (
                r#"{"model":"a","model":"b"}"#,
                RewriteError::Model(ModelProblem::Duplicate),
            ),
            (r#"{"model":1}"#, RewriteError::Model(ModelProblem::NotAString)),
            (r#"{"model":"a""#, RewriteError::Model(ModelProblem::Unreadable)),
            (r#"{"messages":[]}"#, RewriteError::NoModel),
        ] {
            assert_eq!(replace(chat, body, "x"), Err(want), "{body}");
        }
        assert_eq!(replace(chat, r#"{"model":"a"}"#, ""), Err(RewriteError::NoModel));
    }
}
