//! What a receiver's answer means, and what of it may be shown.

use std::time::Duration;

use http::header::{HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::endpoint::Outcome;
use super::redact;
use crate::types::time::Wall;

/// Longest pause that a receiver may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// What is read of an answer, in bytes.
const ANSWER_MAX: usize = 4096;
/// What of an answer is shown, in bytes.
const WORD_MAX: usize = 64;
/// What of PagerDuty's explanations is shown, in characters.
const ERRORS_MAX: usize = 200;
/// How long the body of an answer is waited for.
const BODY_WAIT: Duration = Duration::from_secs(1);

/// Who tells why it refuses, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    Nothing,
    /// One word.
    Slack,
    /// A list of errors, as JSON.
    PagerDuty,
    /// When to come back, as JSON.
    Discord,
}

/// What an answer means.
pub(super) async fn judge(
    response: Response<Incoming>,
    host: &str,
    limit: Duration,
    told: Told,
    at: Wall,
) -> Outcome {
    let (parts, body) = response.into_parts();
    let status = parts.status;
    // The status decides. A body that does not come must not turn a delivery into a second page.
    let answer = timeout(BODY_WAIT.min(limit), beginning(body))
        .await
        .unwrap_or_default();
    if status.is_success() {
        return Outcome::Delivered { partly: None };
    }
    let word = match told {
        Told::Slack => slack_word(&answer).map(str::to_owned),
        Told::PagerDuty => pagerduty_errors(&answer),
        Told::Nothing | Told::Discord => None,
    };
    let word = word.map(|w| format!(" ({w})")).unwrap_or_default();
    let why = format!("{host} answered {}{word}", status.as_u16());
    if status.is_server_error()
        || [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_EARLY,
        ]
        .contains(&status)
    {
        let asked = parts.headers.get(RETRY_AFTER).and_then(|v| pause(v, at));
        let in_body = if told == Told::Discord {
            discord_pause(&answer)
        } else {
            None
        };
        Outcome::Again {
            why,
            after: asked.max(in_body),
        }
    } else if status.is_redirection() {
        Outcome::refused(format!(
            "{why}; redirects are not followed, configure the final URL"
        ))
    } else {
        Outcome::Refused {
            why,
            gone: status == StatusCode::GONE,
        }
    }
}

/// At most `ANSWER_MAX` bytes of an answer. One that breaks off gives what there was: the status has been heard.
async fn beginning(mut body: Incoming) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        let room = ANSWER_MAX.saturating_sub(read.len());
        read.extend(data.iter().take(room));
        if read.len() >= ANSWER_MAX {
            break;
        }
    }
    read
}

/// Slack explains a refusal by one word, as `invalid_payload`. Anything else might hold what must not be shown.
fn slack_word(answer: &[u8]) -> Option<&str> {
    let word = std::str::from_utf8(answer).ok()?.trim();
    let is_word = !word.is_empty()
        && word.len() <= WORD_MAX
        && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_word.then_some(word)
}

/// PagerDuty explains a refusal in `errors`: a few sentences about our own fields.
fn pagerduty_errors(answer: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    let errors = answer.get("errors")?.as_array()?;
    let said: Vec<&str> = errors.iter().filter_map(|e| e.as_str()).take(3).collect();
    let said: String = redact::text(&said.join("; "))
        .chars()
        .filter(|c| !c.is_control())
        .take(ERRORS_MAX)
        .collect();
    (!said.is_empty()).then_some(said)
}

/// Discord says in its answer when to come back, in seconds.
fn discord_pause(answer: &[u8]) -> Option<Duration> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    let seconds = answer.get("retry_after")?.as_f64()?;
    let asked = Duration::try_from_secs_f64(seconds).unwrap_or(RETRY_AFTER_MAX);
    Some(asked.min(RETRY_AFTER_MAX))
}

/// What `retry-after` asks for: seconds, or a date.
fn pause(value: &HeaderValue, at: Wall) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let asked = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new()
                .parse_timestamp(text)
                .ok()?;
            let millis = date.as_millisecond().saturating_sub(at.unix_millis());
            Duration::from_millis(u64::try_from(millis).unwrap_or(0))
        }
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let at = Wall::from_unix_millis(784_111_777_000);
        let cases = [
            ("0", Some(0)),
            ("7", Some(7)),
            ("86400", Some(300)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Mon, 07 Nov 1994 08:49:00 GMT", Some(300)),
            ("-3", None),
            ("soon", None),
        ];
        for (text, want) in cases {
            let got = pause(&HeaderValue::from_static(text), at);
            assert_eq!(got, want.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn only_words_of_slack_are_shown() {
        assert_eq!(slack_word(b"invalid_payload\n"), Some("invalid_payload"));
        for hidden in [&b""[..], b"No such URL /T000/B000", b"\xff", &[b'a'; 65]] {
            assert_eq!(slack_word(hidden), None);
        }
    }
}
