//! What counts as a failure of an upstream while its client has nothing yet, and what the first event of a stream says.

use std::fmt;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};

use super::alarm::Alarm;
use super::emit::Account;
use super::exchange::Sent;
use super::reply::Problem;
use crate::dialect::meter::{AnswerHead, Ended, Measured, Meter, MeterOptions};
use crate::enforce::breaker::Unfit;
use crate::enforce::failover::RetryOn;
use crate::enforce::policy::Upstream;
use crate::types::time::Wall;

/// Most of a stream that is held back to see its first event, in bytes.
const MAX_FIRST_EVENT: usize = 64 * 1024;

/// Words in which APIs say that a request is at fault and not they: no other upstream would do better.
const OF_CLIENTS: [&str; 14] = [
    "invalid_request_error",
    "invalid_request",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "insufficient_quota",
    "context_length_exceeded",
    "content_filter",
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
];

/// Words in which APIs say that there were too many requests.
const OF_RATES: [&str; 4] = [
    "rate_limit_error",
    "rate_limit_exceeded",
    "too_many_requests",
    "RESOURCE_EXHAUSTED",
];

/// What was wrong with an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was not asked.
    Unfit(Unfit),
    /// There was no connection.
    Connect,
    /// It did not begin to answer in time.
    FirstByte,
    /// It answered with a status that counts as a failure.
    Status(u16),
    /// Its stream began with an error, or broke before its first event.
    FirstEvent(String),
}

impl Failure {
    /// The word for it in metrics.
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::Unfit(_) => "breaker",
            Self::Connect => "connect_error",
            Self::FirstByte => "first_byte_timeout",
            Self::Status(_) => "status",
            Self::FirstEvent(_) => "first_event_error",
        }
    }

    /// Whether the upstream may have worked on the request.
    pub(super) const fn may_have_cost(&self) -> bool {
        matches!(self, Self::FirstByte | Self::FirstEvent(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unfit(unfit) => f.write_str(unfit.words()),
            Self::Connect => f.write_str("no connection"),
            Self::FirstByte => f.write_str("no answer in time"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::FirstEvent(what) => write!(f, "first event: {what}"),
        }
    }
}

/// Whether what kept an upstream from answering counts as a failure of it that another may make good. A connection that
/// broke after the request was on its way does not: it may have been obeyed.
pub(super) fn of_problem(on: &RetryOn, problem: &Problem) -> Option<Failure> {
    match problem {
        Problem::Connect(_) if on.connect_error => Some(Failure::Connect),
        Problem::UpstreamTimeout(_) if on.first_byte_timeout => Some(Failure::FirstByte),
        _ => None,
    }
}

/// Whether an answer counts as a failure: by its status, or by the first event of a stream, which is looked at when
/// `more` upstreams are left. With the problem that takes its place where it cannot be passed on any more.
pub(super) async fn of_answer(
    upstream: &Upstream,
    account: &Account,
    sent: &mut Sent,
    more: bool,
    alarm: &mut Alarm,
) -> Option<(Failure, Option<Problem>)> {
    let on = &upstream.retry_on;
    let status = sent.forwarded.head.status;
    if on.is_failure(status.as_u16()) {
        return Some((Failure::Status(status.as_u16()), None));
    }
    if !more || !on.first_event_error || !status.is_success() || !is_readable_stream(sent) {
        return None;
    }
    let idle = upstream.timeouts.idle;
    let silence = on.first_byte_within.map_or(idle, |within| within.min(idle));
    alarm.allow(silence);
    if let Err(problem) = first_event(sent, alarm, silence).await {
        let failure = match &problem {
            Problem::UpstreamSilent(_) => Failure::FirstByte,
            _ => Failure::FirstEvent("the stream broke".to_owned()),
        };
        return Some((failure, Some(problem)));
    }
    let head = AnswerHead {
        api: account.api,
        status: status.as_u16(),
        headers: &sent.forwarded.head.headers,
        stream_asked: account.stream_asked,
    };
    let options = MeterOptions {
        max_inspect_bytes: MAX_FIRST_EVENT,
        keep_text: false,
    };
    let mut meter = Meter::new(&head, options);
    meter.see(&sent.forwarded.prefix);
    let what = error_of(on, meter.finish(Ended::BrokenOff))?;
    Some((Failure::FirstEvent(what), None))
}

/// How long the upstream wants to be left alone: seconds, milliseconds (`retry-after-ms`) or a date.
pub(super) fn retry_after(sent: &Sent, now: Wall) -> Option<Duration> {
    wait_of(&sent.forwarded.head.headers, now)
}

fn wait_of(headers: &HeaderMap, now: Wall) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim);
    if let Some(ms) = text("retry-after-ms").and_then(|t| t.parse::<f64>().ok()) {
        return Duration::try_from_secs_f64(ms / 1e3).ok();
    }
    let value = text(RETRY_AFTER.as_str())?;
    if let Ok(seconds) = value.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    let left = date
        .timestamp()
        .as_millisecond()
        .saturating_sub(now.unix_millis());
    u64::try_from(left).ok().map(Duration::from_millis)
}

/// A stream whose events can be told apart without undoing a compression.
fn is_readable_stream(sent: &Sent) -> bool {
    let headers = &sent.forwarded.head.headers;
    let events = headers.get(CONTENT_TYPE).is_some_and(|v| {
        v.as_bytes()
            .to_ascii_lowercase()
            .starts_with(b"text/event-stream")
    });
    events && !headers.contains_key(CONTENT_ENCODING)
}

/// Reads a stream until its first event is whole, or it ended, or too much of it is there.
async fn first_event(sent: &mut Sent, alarm: &mut Alarm, silence: Duration) -> Result<(), Problem> {
    let Sent {
        forwarded, incoming, ..
    } = sent;
    let mut read = BytesMut::from(&forwarded.prefix[..]);
    while !forwarded.ended && read.len() < MAX_FIRST_EVENT && !has_event(&read) {
        let frame = poll_fn(|cx| match forwarded.lease.link.poll_frame(incoming, cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => alarm.poll(cx).map(Err),
        })
        .await;
        match frame {
            Err(()) if alarm.is_over() => return Err(Problem::TooLong),
            Err(()) => return Err(Problem::UpstreamSilent(silence)),
            Ok(None) => forwarded.ended = true,
            Ok(Some(Err(e))) => return Err(Problem::Upstream(e)),
            Ok(Some(Ok(frame))) => {
                alarm.heard();
                if let Some(data) = frame.data_ref() {
                    read.extend_from_slice(data);
                }
            }
        }
    }
    forwarded.prefix = read.freeze();
    Ok(())
}

/// Whether the beginning of a stream holds a whole event with data (comments and names alone are none).
fn has_event(bytes: &[u8]) -> bool {
    let mut data = false;
    let mut rest = bytes;
    while let Some(end) = memchr::memchr2(b'\n', b'\r', rest) {
        let (line, tail) = rest.split_at(end);
        let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        if line.is_empty() {
            if data {
                return true;
            }
        } else if line.starts_with(b"data") {
            data = true;
        }
        rest = tail
            .strip_prefix(b"\r\n")
            .or_else(|| tail.get(1..))
            .unwrap_or_default();
    }
    false
}

/// What a stream that began with an error says, unless the request is at fault.
fn error_of(on: &RetryOn, measured: Measured) -> Option<String> {
    let (kind, code) = (measured.error_type, measured.error_code);
    let words = [kind.as_deref(), code.as_deref()];
    let mut said = words.iter().flatten().copied().peekable();
    said.peek()?;
    for word in said {
        let status = word.parse::<u16>().ok();
        let rate = OF_RATES.contains(&word) || status == Some(429);
        let client = OF_CLIENTS.contains(&word)
            || status.is_some_and(|s| (400..500).contains(&s) && s != 408 && s != 429);
        if client || (rate && !on.is_failure(429)) {
            return None;
        }
    }
    kind.or(code)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn events_are_found_whatever_their_line_ends() {
        for (text, want) in [
            ("", false),
            (": hello\n\n", false),
            ("event: ping\n\n", false),
            ("data: x\n", false),
            ("data: x\n\n", true),
            ("event: a\r\ndata: x\r\n\r\n", true),
            ("event: a\r\ndata: x\r\n\r", true),
            (": c\r\rdata:x\r\r", true),
            ("\u{feff}data: x\n\n", true),
        ] {
            assert_eq!(has_event(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn an_upstream_says_how_long_it_wants_to_be_left_alone() {
        let now = Wall::from_unix_millis(1_445_412_480_000);
        for (name, value, want) in [
            ("retry-after", "7", Some(7_000)),
            ("retry-after", "0.5", Some(500)),
            ("retry-after-ms", "250", Some(250)),
            ("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT", Some(30_000)),
            ("retry-after", "Wed, 21 Oct 2015 07:00:00 GMT", None),
            ("retry-after", "-1", None),
            ("retry-after", "NaN", None),
            ("retry-after", "soon", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(
                wait_of(&headers, now).map(|d| d.as_millis()),
                want,
                "{name}: {value}"
            );
        }
    }

    #[test]
    fn what_the_request_is_to_blame_for_is_no_failure() {
        let on = RetryOn {
            statuses: vec![503],
            ..RetryOn::NOTHING
        };
        let with_429 = RetryOn {
            statuses: vec![429],
            ..RetryOn::NOTHING
        };
        for (kind, code, plain, with) in [
            (None, None, false, false),
            (Some("overloaded_error"), None, true, true),
            (Some("server_error"), Some("500"), true, true),
            (Some("invalid_request_error"), None, false, false),
            (Some("x"), Some("400"), false, false),
            (None, Some("502"), true, true),
            (Some("rate_limit_error"), None, false, true),
            (None, Some("429"), false, true),
        ] {
            let measured = || Measured {
                error_type: kind.map(str::to_owned),
                error_code: code.map(str::to_owned),
                ..Measured::default()
            };
            assert_eq!(error_of(&on, measured()).is_some(), plain, "{kind:?} {code:?}");
            assert_eq!(
                error_of(&with_429, measured()).is_some(),
                with,
                "{kind:?} {code:?}"
            );
        }
    }
}
