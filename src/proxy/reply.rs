//! Every answer that fusebox makes itself, in the error shape of the API that was called.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::observe::Answer;
use super::upstream::{ConnectError, LinkError};
use super::watched::InFlight;
use crate::dialect::error_body::{Refusal, RefusalKind, render};
use crate::dialect::table::Api;
use crate::enforce::gate::{Limited, Why};
use crate::types::directive::{Directive, Order};
use crate::types::ids::RequestId;

/// The code of what is refused, or stopped, because its sender is contained.
pub(super) const CONTAINED: &str = "fusebox_contained";

/// Why fusebox answers in the upstream's place. Two messages each: one for the client, one for the log.
#[derive(Debug)]
pub(super) enum Problem {
    /// No configured upstream serves this API.
    NoUpstream,
    /// A method that is not forwarded.
    Method,
    /// No `Host`, more than one, or an impossible one.
    Host,
    /// `Content-Length` and `Transfer-Encoding` together, or a length that has more than one reading.
    TwoLengths,
    /// The path cannot be sent to the upstream.
    Path,
    /// The request body is too large.
    TooLarge {
        /// The bound in bytes.
        limit: u64,
    },
    /// The client took too long over its request body.
    TooSlow,
    /// The client broke off its request body.
    ClientGone,
    /// A directive holds the agent back.
    Limited(Box<Why>),
    /// This directive contains the sender: nothing of it is sent.
    Contained(Arc<Directive>),
    /// Too many requests are held back already.
    Overloaded,
    /// A directive has to change the request, and it cannot be changed.
    CannotRewrite(String),
    /// A batch was sent in parts, and the answers do not make one.
    CannotMerge(String),
    /// The upstream could not be reached.
    Connect(ConnectError),
    /// The upstream broke before it answered.
    Upstream(LinkError),
    /// The upstream did not begin to answer in time.
    UpstreamTimeout(Duration),
    /// The upstream fell silent inside an answer of which the client has nothing yet.
    UpstreamSilent(Duration),
    /// The upstream took nothing of the request body for so long.
    UploadStalled(Duration),
    /// The exchange took longer than it may as a whole.
    TooLong,
    /// The upstream did not switch protocols, and what it said instead cannot be passed on.
    BadRefusal(String),
}

/// What is said about a problem, apart from its numbers.
struct Words {
    status: u16,
    kind: RefusalKind,
    code: &'static str,
    message: String,
}

/// An answer for `problem`, and the type and code that it names.
pub(super) fn refuse(
    problem: &Problem,
    api: Api,
    azure: bool,
    request_id: &RequestId,
    in_flight: InFlight,
) -> (Response<Answer>, &'static str) {
    let mut refusal = if let Problem::Contained(by) = problem {
        containment(by, request_id)
    } else {
        let words = words(problem);
        Refusal::new(
            words.status,
            words.kind,
            words.code,
            words.message,
            request_id.as_str(),
        )
    };
    let code = refusal.code;
    if let Problem::Limited(why) = problem {
        refusal.retry_after = Some(spread(why.retry_after, request_id));
        refusal.incident = Some(why.incident.to_string());
        refusal.rule = Some(why.rule.to_string());
        refusal.limit = Some(why.limit);
        refusal.remaining = Some(why.remaining);
    }
    if let Problem::Overloaded = problem {
        refusal.retry_after = Some(Duration::from_secs(1));
    }
    let rendered = render(api, azure, &refusal);
    let body = Full::new(Bytes::from(rendered.body));
    let mut response = Response::new(Answer::Own {
        body,
        _in_flight: in_flight,
    });
    *response.status_mut() =
        StatusCode::from_u16(rendered.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
        .headers_mut()
        .extend(rendered.headers.into_iter().map(|(k, v)| (Some(k), v)));
    if matches!(
        problem,
        Problem::TwoLengths | Problem::TooLarge { .. } | Problem::TooSlow | Problem::UploadStalled(_)
    ) {
        // What is left of the body will not be read, so nothing after it can be.
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    (response, code)
}

/// What is told to whoever is contained, before an answer or in the middle of one.
pub(super) fn containment(by: &Directive, request_id: &RequestId) -> Refusal {
    let reason = match &by.order {
        Order::Contain { reason } => reason.as_str(),
        _ => "",
    };
    let (subject, incident, rule) = (&by.subject, &by.incident, &by.rule);
    let message =
        format!("fusebox has contained {subject} because of incident {incident} (rule {rule}): {reason}");
    let mut refusal = Refusal::new(
        403,
        RefusalKind::Contained,
        CONTAINED,
        message,
        request_id.as_str(),
    );
    refusal.incident = Some(incident.to_string());
    refusal.rule = Some(rule.to_string());
    refusal
}

fn words(problem: &Problem) -> Words {
    let words = |status, kind, code, message: String| Words {
        status,
        kind,
        code,
        message,
    };
    match problem {
        Problem::NoUpstream => words(
            404,
            RefusalKind::NotFound,
            "fusebox_no_upstream",
            "fusebox has no upstream for this API; add one under `upstreams` or give `--upstream`".into(),
        ),
        Problem::Method => words(
            405,
            RefusalKind::BadRequest,
            "fusebox_method_not_allowed",
            "fusebox is a reverse proxy and does not tunnel; use it as base URL".into(),
        ),
        Problem::Host => words(
            400,
            RefusalKind::BadRequest,
            "fusebox_bad_host",
            "the request needs exactly one valid Host header".into(),
        ),
        Problem::TwoLengths => words(
            400,
            RefusalKind::BadRequest,
            "fusebox_two_lengths",
            "the request gives the length of its body in more than one way; \
             send either Transfer-Encoding or one plain Content-Length"
                .into(),
        ),
        Problem::Path => words(
            400,
            RefusalKind::BadRequest,
            "fusebox_bad_path",
            "the path of the request, put behind that of the upstream's URL, is too long or not a valid one; \
             shorten or encode it"
                .into(),
        ),
        Problem::TooLarge { limit } => words(
            413,
            RefusalKind::TooLarge,
            "fusebox_request_too_large",
            format!(
                "the request body is larger than the {limit} bytes that fusebox allows (limits.max_request_bytes)"
            ),
        ),
        Problem::TooSlow => words(
            408,
            RefusalKind::BadRequest,
            "fusebox_request_too_slow",
            "the request body paused for longer than fusebox allows (limits.body_idle_timeout)".into(),
        ),
        Problem::ClientGone => words(
            400,
            RefusalKind::BadRequest,
            "fusebox_request_broken",
            "the request body ended before it was complete".into(),
        ),
        Problem::Limited(why) => {
            let (kind, code, what) = match why.kind {
                Limited::RequestRate => (
                    RefusalKind::RateRequests,
                    "fusebox_request_rate",
                    "requests a minute",
                ),
                Limited::TokenRate => (RefusalKind::RateTokens, "fusebox_token_rate", "tokens a minute"),
                Limited::Concurrency => (
                    RefusalKind::Concurrency,
                    "fusebox_concurrency",
                    "requests at once",
                ),
            };
            words(
                429,
                kind,
                code,
                format!(
                    "fusebox holds this agent to {} {what} because of incident {} (rule {})",
                    why.limit, why.incident, why.rule
                ),
            )
        }
        Problem::Contained(by) => words(
            403,
            RefusalKind::Contained,
            CONTAINED,
            format!("fusebox has contained {}", by.subject),
        ),
        Problem::Overloaded => words(
            503,
            RefusalKind::Overloaded,
            "fusebox_overloaded",
            "fusebox holds back as many requests as it may (limits.max_waiting)".into(),
        ),
        Problem::CannotRewrite(why) => words(
            400,
            RefusalKind::BadRequest,
            "fusebox_cannot_rewrite",
            format!(
                "an incident response requires another model, but this request cannot be changed: {why}; \
                 send it uncompressed with one `model` that is a string"
            ),
        ),
        Problem::CannotMerge(why) => words(
            502,
            RefusalKind::UpstreamUnreachable,
            "fusebox_cannot_merge",
            format!("fusebox sent this batch in parts because of an incident and cannot put the answers together: {why}"),
        ),
        Problem::Connect(ConnectError::Timeout(limit)) => words(
            504,
            RefusalKind::UpstreamTimeout,
            "fusebox_upstream_connect_timeout",
            format!("fusebox had no connection to the upstream after {limit:?} (timeouts.connect)"),
        ),
        Problem::Connect(_) => words(
            502,
            RefusalKind::UpstreamUnreachable,
            "fusebox_upstream_unreachable",
            "fusebox could not connect to the upstream; its log says why".into(),
        ),
        Problem::Upstream(_) => words(
            502,
            RefusalKind::UpstreamUnreachable,
            "fusebox_upstream_broke",
            "the upstream broke the connection before it answered; try again".into(),
        ),
        Problem::UpstreamTimeout(limit) => words(
            504,
            RefusalKind::UpstreamTimeout,
            "fusebox_upstream_timeout",
            format!("the upstream did not begin to answer within {limit:?} (timeouts.first_byte)"),
        ),
        Problem::UpstreamSilent(limit) => words(
            504,
            RefusalKind::UpstreamTimeout,
            "fusebox_upstream_silent",
            format!("the upstream began to answer and was then silent for {limit:?} (timeouts.idle)"),
        ),
        Problem::UploadStalled(limit) => words(
            504,
            RefusalKind::UpstreamTimeout,
            "fusebox_upload_stalled",
            format!("the upstream took nothing of the request body for {limit:?} (timeouts.idle)"),
        ),
        Problem::TooLong => words(
            504,
            RefusalKind::UpstreamTimeout,
            "fusebox_too_long",
            "the exchange took longer than it may as a whole (timeouts.total)".into(),
        ),
        Problem::BadRefusal(why) => words(
            502,
            RefusalKind::UpstreamUnreachable,
            "fusebox_upstream_refusal_unreadable",
            format!("the upstream did not switch protocols, and its answer cannot be passed on: {why}"),
        ),
    }
}

/// Up to a quarter more than `wait`, so that clients which were refused together do not return together.
fn spread(wait: Duration, request_id: &RequestId) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::OnceLock;
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let share = KEY.get_or_init(RandomState::new).hash_one(request_id.as_str()) % 256;
    wait + wait.mul_f64(share as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message says what is wrong and what can be done about it, and blames an incident only where one is the cause.
    #[test]
    fn each_problem_is_named_with_its_remedy() {
        let limit = Duration::from_secs(7);
        for (problem, status, names) in [
            (Problem::NoUpstream, 404, &["upstreams", "--upstream"][..]),
            (Problem::Method, 405, &["base URL"]),
            (Problem::Host, 400, &["Host"]),
            (Problem::TwoLengths, 400, &["Transfer-Encoding", "Content-Length"]),
            (Problem::Path, 400, &["path", "shorten"]),
            (
                Problem::TooLarge { limit: 9 },
                413,
                &["9 bytes", "limits.max_request_bytes"],
            ),
            (Problem::TooSlow, 408, &["limits.body_idle_timeout"]),
            (Problem::ClientGone, 400, &["before it was complete"]),
            (Problem::Overloaded, 503, &["limits.max_waiting"]),
            (
                Problem::CannotRewrite("it names no model".into()),
                400,
                &["incident", "it names no model", "send it"],
            ),
            (
                Problem::Connect(ConnectError::Timeout(limit)),
                504,
                &["7s", "timeouts.connect"],
            ),
            (
                Problem::Connect(ConnectError::NoAddress),
                502,
                &["could not connect"],
            ),
            (
                Problem::UpstreamTimeout(limit),
                504,
                &["7s", "timeouts.first_byte"],
            ),
            (Problem::UpstreamSilent(limit), 504, &["7s", "timeouts.idle"]),
            (
                Problem::UploadStalled(limit),
                504,
                &["7s", "timeouts.idle", "request body"],
            ),
            (Problem::TooLong, 504, &["timeouts.total"]),
            (
                Problem::CannotMerge("too few".into()),
                502,
                &["incident", "in parts", "too few"],
            ),
            (
                Problem::BadRefusal("too much".into()),
                502,
                &["switch protocols", "too much"],
            ),
        ] {
            let words = words(&problem);
            assert_eq!(words.status, status, "{problem:?}");
            for name in names {
                assert!(words.message.contains(name), "{problem:?}: {}", words.message);
            }
            assert_eq!(
                words.message.contains("incident"),
                matches!(problem, Problem::CannotRewrite(_) | Problem::CannotMerge(_)),
                "{problem:?}: {}",
                words.message
            );
        }
    }
}
