//! What the admin API answers when it cannot do what was asked: one shape for every status.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};

use crate::control::handle::Unavailable;

/// A refusal: `{"error":{"code","message","hint"}}`.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
    hint: String,
    challenge: Option<&'static str>,
    reasons: Vec<&'static str>,
}

impl Problem {
    /// A refusal with what is wrong and what to do about it.
    pub(super) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self {
            status,
            code,
            message: message.into(),
            hint: hint.into(),
            challenge: None,
            reasons: Vec::new(),
        }
    }

    /// With `reasons` beside `error`.
    pub(super) fn because(mut self, reason: &'static str) -> Self {
        self.reasons.push(reason);
        self
    }

    pub(super) fn bad_parameter(name: &str, message: &str, allowed: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "bad_parameter",
            format!("parameter `{name}`: {message}"),
            format!("allowed: {allowed}"),
        )
    }

    pub(super) fn bad_body(message: impl Into<String>, hint: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_body", message, hint)
    }

    pub(super) fn not_found(what: &str, name: &str, list: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no {what} `{name}`"),
            format!("GET {list} lists those there are"),
        )
    }

    pub(super) fn no_such_path(uri: &Uri) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_such_path",
            format!("there is nothing at `{}`", uri.path()),
            "GET / lists the endpoints",
        )
    }

    pub(super) fn wrong_method(method: &Method, uri: &Uri) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            format!("`{}` does not take {method}", uri.path()),
            "the `allow` header names the methods it takes",
        )
    }

    pub(super) fn unauthorized(message: &str, challenge: &'static str) -> Self {
        Self {
            challenge: Some(challenge),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                message,
                "send `authorization: Bearer` with the token of `admin.token`",
            )
        }
    }

    pub(super) fn overloaded() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "too many requests are under way",
            "try again in a moment",
        )
    }

    pub(super) fn too_slow() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "too_slow",
            "the request took too long",
            "try again; if it stays so, look at GET /healthz and at the log",
        )
    }
}

impl From<Unavailable> for Problem {
    fn from(e: Unavailable) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "engine_unavailable",
            e.to_string(),
            "requests still pass; it is overloaded or stopping: try again, and look at the log",
        )
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "error": {"code": self.code, "message": self.message, "hint": self.hint}
        });
        if let (false, Value::Object(members)) = (self.reasons.is_empty(), &mut body) {
            members.insert("reasons".to_owned(), self.reasons.into());
        }
        let mut response = (self.status, Json(body)).into_response();
        if let Some(challenge) = self.challenge {
            let challenge = HeaderValue::from_static(challenge);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
