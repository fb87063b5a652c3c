//! One request for each dialect, and what doubles answer to it.

use http::HeaderName;

use crate::dialect::table::Family;

/// The dialects that a drill speaks, the most common first.
pub(super) const FAMILIES: [Family; 6] = [
    Family::OpenAi,
    Family::Anthropic,
    Family::Gemini,
    Family::Ollama,
    Family::Cohere,
    Family::Bedrock,
];

/// Whether the dialect streams events that can be looked at.
pub(super) const fn streams(family: Family) -> bool {
    matches!(
        family,
        Family::OpenAi | Family::Anthropic | Family::Gemini | Family::Cohere
    )
}

/// Where a request of the dialect goes.
pub(super) const fn path(family: Family) -> &'static str {
    match family {
        Family::Anthropic => "/v1/messages",
        Family::Gemini => "/v1beta/models/drill:streamGenerateContent?alt=sse",
        Family::Ollama => "/api/chat",
        Family::Cohere => "/v2/chat",
        Family::Bedrock => "/model/drill/converse",
        _ => "/v1/chat/completions",
    }
}

/// Its body.
pub(super) fn body(family: Family, stream: bool) -> String {
    match family {
        Family::Gemini => r#"{"contents":[{"parts":[{"text":"drill"}]}]}"#.to_owned(),
        Family::Bedrock => r#"{"messages":[{"role":"user","content":[{"text":"drill"}]}]}"#.to_owned(),
        _ => format!(
            r#"{{"model":"drill","max_tokens":1,"messages":[{{"role":"user","content":"drill"}}],"stream":{stream}}}"#
        ),
    }
}

/// An event stream that is an answer.
pub(super) const fn answer(family: Family) -> &'static str {
    match family {
        Family::Anthropic => "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n",
        Family::Gemini => "data: {\"candidates\":[]}\n\n",
        Family::Cohere => "event: message-start\ndata: {\"type\":\"message-start\"}\n\n",
        _ => "data: {\"choices\":[]}\n\ndata: [DONE]\n\n",
    }
}

/// An event stream that begins with an error of the upstream's own.
pub(super) const fn error(family: Family) -> &'static str {
    match family {
        Family::Anthropic => {
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"drill\"}}\n\n"
        }
        Family::Gemini => {
            "data: {\"error\":{\"code\":503,\"status\":\"UNAVAILABLE\",\"message\":\"drill\"}}\n\n"
        }
        _ => "data: {\"error\":{\"type\":\"server_error\",\"message\":\"drill\"}}\n\n",
    }
}

/// The key that its clients send.
pub(super) const fn key(family: Family) -> (HeaderName, &'static str) {
    match family {
        Family::Anthropic => (HeaderName::from_static("x-api-key"), "drill"),
        Family::Gemini => (HeaderName::from_static("x-goog-api-key"), "drill"),
        _ => (http::header::AUTHORIZATION, "Bearer drill"),
    }
}
