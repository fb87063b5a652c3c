//! What the admin API answers when it cannot do what was asked: one shape for every status.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode, Uri};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::handle::Unavailable;
use crate::incident::input::NotActed;

/// How long to wait after too many attempts, in seconds.
const ATTEMPT_PAUSE: u32 = 5;

/// A refusal: `{"error":{"code","message","hint"}}`, with `problems` beside it where a body has several.
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    message: Box<str>,
    hint: Box<str>,
    challenge: Option<&'static str>,
    retry_after: Option<u32>,
    reason: Option<&'static str>,
    faults: Box<[Fault]>,
}

/// One thing that is wrong with a body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct Fault {
    /// Where, as a JSON pointer (RFC 6901).
    pub(super) pointer: String,
    /// What is wrong.
    pub(super) message: String,
    /// What to do about it.
    pub(super) hint: String,
}

impl Fault {
    pub(super) fn new(pointer: &str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            pointer: pointer.to_owned(),
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// What every refusal looks like.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ProblemBody {
    /// What is wrong.
    error: ProblemText,
    /// What is not as it should be; of `/healthz` only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    reasons: Vec<&'static str>,
    /// Everything that is wrong with the body.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(default)]
    problems: Vec<Fault>,
}

/// What is wrong, in a word, in a sentence, and what to do about it.
#[derive(Debug, Serialize, JsonSchema)]
struct ProblemText {
    /// A stable word.
    code: &'static str,
    /// For a person.
    message: String,
    /// What to do about it.
    hint: String,
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
            message: message.into().into(),
            hint: hint.into().into(),
            challenge: None,
            retry_after: None,
            reason: None,
            faults: Box::default(),
        }
    }

    /// A body with everything that is wrong with it.
    pub(super) fn faulty(faults: Vec<Fault>) -> Self {
        let (message, hint) = match faults.first() {
            Some(first) if faults.len() == 1 => (
                format!("`{}` {}", first.pointer, first.message),
                first.hint.clone(),
            ),
            _ => (
                format!("{} things are wrong with the body", faults.len()),
                "`problems` names each by its place".to_owned(),
            ),
        };
        let mut problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_body", message, hint);
        problem.faults = faults.into();
        problem
    }

    /// Too many wrong tokens or links from one place.
    pub(super) fn too_many_attempts() -> Self {
        Self {
            retry_after: Some(ATTEMPT_PAUSE),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too_many_attempts",
                "too many wrong tokens or links came from here",
                "wait a moment and try again with the right one",
            )
        }
    }

    /// A link that we did not make.
    pub(super) fn bad_link() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "bad_link",
            "this link is not genuine",
            "use the link of the notice as it is, or `fusebox approvals`",
        )
    }

    /// Whether it is about a token or a link that was wrong.
    pub(super) fn is_wrong_credential(&self) -> bool {
        matches!(self.code, "unauthorized" | "bad_link")
    }

    /// This token allows to look only.
    pub(super) fn not_an_operator() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "not_an_operator",
            "this token allows to look, not to act",
            "use a token whose role is operator",
        )
    }

    /// Nothing is kept beyond the process.
    pub(super) fn no_ledger() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_ledger",
            "there is no ledger, so nothing of this is kept",
            "set `ledger` in the configuration, or start with --ledger",
        )
    }

    /// The ledger does not answer.
    pub(super) fn ledger(error: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "ledger_unavailable",
            format!("the ledger cannot be read: {error}"),
            "what is in memory is still shown without a cursor; look at the log",
        )
    }

    /// The status, the word and the sentence, for a page.
    pub(super) fn parts(&self) -> (StatusCode, &str, &str) {
        (self.status, &self.message, &self.hint)
    }

    /// With `reasons` beside `error`.
    pub(super) fn because(mut self, reason: &'static str) -> Self {
        self.reason = Some(reason);
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
                "send `authorization: Bearer` with a token of `admin.token` or `admin.tokens`",
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

impl From<NotActed> for Problem {
    fn from(why: NotActed) -> Self {
        let text = why.to_string();
        match why {
            NotActed::Unknown { what, id } => Self::not_found(what, &id, &format!("/{what}s")),
            NotActed::Over { what, .. } => Self::new(
                StatusCode::CONFLICT,
                match what {
                    "incident" => "not_open",
                    "approval" => "not_pending",
                    _ => "over",
                },
                text,
                "nothing is left to do",
            ),
            NotActed::Refused(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "refused",
                text,
                "ask for something else",
            ),
        }
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
        let body = ProblemBody {
            error: ProblemText {
                code: self.code,
                message: self.message.into(),
                hint: self.hint.into(),
            },
            reasons: self.reason.into_iter().collect(),
            problems: self.faults.into(),
        };
        let mut response = (self.status, Json(body)).into_response();
        if let Some(challenge) = self.challenge {
            let challenge = HeaderValue::from_static(challenge);
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
