//! An embedding call that is sent in parts, one after the other, and answered as one.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::Full;

use super::alarm::Alarm;
use super::arrive::Head;
use super::connection::Connection;
use super::emit::Account;
use super::exchange::{Sent, answer_problem, observe};
use super::forward::{Forwarded, Outgoing, forward, peek};
use super::headers::strip_answer;
use super::observe::Answer;
use super::reply::Problem;
use super::rewrite::Prepared;
use super::upstream::AnswerBody;
use super::watched::InFlight;
use crate::dialect::batch::{Split, decoded};
use crate::dialect::meter::{AnswerHead, Ended, Meter, MeterOptions};
use crate::enforce::policy::Timeouts;
use crate::types::observation::{ActionTaken, Outcome};

/// Most bytes of answers that are held to be put together.
const MAX_ANSWERS: usize = 128 << 20;

/// A request that is sent in parts.
pub(super) struct Parts {
    pub(super) head: Box<Head>,
    pub(super) prepared: Prepared,
    pub(super) split: Box<Split>,
    pub(super) timeouts: Timeouts,
}

/// The heads of the answers, as one.
#[derive(Default)]
struct Heads {
    first: Option<(StatusCode, HeaderMap)>,
}

/// How sending the parts ended.
enum Outcomes {
    /// The answer to the whole.
    Merged(Heads, Vec<u8>),
    /// The upstream answered one of them with an error, which is the answer to the whole.
    Refused(Forwarded, AnswerBody),
}

/// Sends the parts and answers. When the client leaves, this is dropped and no further part is sent.
pub(super) async fn serve(
    connection: &Rc<Connection>,
    mut account: Box<Account>,
    mut parts: Parts,
    in_flight: InFlight,
) -> Response<Answer> {
    let started = account.times.started;
    let timeouts = parts.timeouts;
    let mut alarm = Alarm::new(
        connection.worker.shared.clock.clone(),
        Rc::clone(&connection.spare_timer),
        timeouts.first_byte,
        timeouts.total.map(|t| started.after(t)),
    );
    account.times.forwarded = Some(alarm.last_heard());
    account.actions.push(ActionTaken::BatchSplit {
        inputs: parts.split.inputs() as u64,
        calls: 0,
    });
    let changes = parts.prepared.changes.take();
    match send(&mut account, &mut parts, &mut alarm).await {
        Err(problem) => answer_problem(account, problem, in_flight),
        Ok(Outcomes::Refused(forwarded, incoming)) => {
            let sent = Sent {
                forwarded,
                incoming,
                usage_asked: false,
                document: false,
            };
            observe(account, sent, alarm, changes.as_deref(), timeouts, in_flight)
        }
        Ok(Outcomes::Merged(heads, body)) => {
            let (status, mut headers) = heads.whole(body.len());
            if let Some(changes) = changes {
                changes.say(&mut headers, &account.request_id);
            }
            account.status = status.as_u16();
            account.ended(Outcome::Complete);
            let mut response = Response::new(Answer::Own {
                body: Full::new(Bytes::from(body)),
                _in_flight: in_flight,
            });
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            response
        }
    }
}

async fn send(account: &mut Account, parts: &mut Parts, alarm: &mut Alarm) -> Result<Outcomes, Problem> {
    let worker = Rc::clone(&account.worker);
    let Parts {
        head,
        prepared,
        split,
        timeouts,
    } = parts;
    let headers = std::mem::take(&mut head.parts.headers);
    let path = prepared.path.as_deref().unwrap_or(head.path());
    let mut outgoing = Outgoing::new(
        &account.snapshot.policy,
        &head.upstream,
        head.parts.method.clone(),
        path,
        head.parts.uri.query(),
        headers,
    )?;
    // What is compressed would have to be taken apart again.
    outgoing.accept_identity();
    let mut merge = split.merge();
    let mut heads = Heads::default();
    for at in 0..split.calls() {
        let Some(body) = split.part(at) else { break };
        let body = prepared.body.holding(body);
        let mut outgoing = outgoing.clone();
        outgoing.frame(&body, true);
        count_call(&mut account.actions);
        alarm.allow(timeouts.first_byte);
        let (mut forwarded, mut incoming) = forward(&worker, &head.upstream, outgoing, body, alarm).await?;
        alarm.allow(timeouts.idle);
        account.times.first_byte.get_or_insert(alarm.last_heard());
        if !forwarded.head.status.is_success() {
            return Ok(Outcomes::Refused(forwarded, incoming));
        }
        let room = MAX_ANSWERS.saturating_sub(merge.held());
        peek(&mut forwarded, &mut incoming, room, alarm, timeouts.idle).await?;
        if !forwarded.ended {
            let why = format!("they are larger than {MAX_ANSWERS} bytes together");
            return Err(Problem::CannotMerge(why));
        }
        let answer = std::mem::take(&mut forwarded.prefix);
        meter(account, &forwarded, &answer);
        let encoding = forwarded.head.headers.get(CONTENT_ENCODING);
        let encoding = encoding.and_then(|e| e.to_str().ok()).unwrap_or_default();
        merge
            .add(&decoded(encoding, answer))
            .map_err(|e| Problem::CannotMerge(e.to_string()))?;
        heads.add(forwarded.head.status, forwarded.head.headers);
        forwarded.lease.give_back(worker.shared.clock.mono());
    }
    let merged = merge.finish().map_err(|e| Problem::CannotMerge(e.to_string()))?;
    Ok(Outcomes::Merged(heads, merged))
}

/// Counts what a part used towards the whole.
fn meter(account: &mut Account, forwarded: &Forwarded, answer: &[u8]) {
    let policy = &account.snapshot.policy;
    if !policy.metering {
        return;
    }
    let head = AnswerHead {
        api: account.api,
        status: forwarded.head.status.as_u16(),
        headers: &forwarded.head.headers,
        stream_asked: false,
    };
    let options = MeterOptions {
        max_inspect_bytes: policy.limits.max_inspect_bytes,
        keep_text: false,
    };
    let mut meter = Meter::new(&head, options);
    meter.see(answer);
    account.add_earlier(meter.finish(Ended::Whole));
}

fn count_call(actions: &mut [ActionTaken]) {
    for action in actions {
        if let ActionTaken::BatchSplit { calls, .. } = action {
            *calls += 1;
        }
    }
}

impl Heads {
    /// The first one counts, but for what is left of a rate limit: there the last one does.
    fn add(&mut self, status: StatusCode, later: HeaderMap) {
        let Some((_, headers)) = &mut self.first else {
            self.first = Some((status, later));
            return;
        };
        let rates = |name: &HeaderName| {
            let name = name.as_str();
            name.contains("ratelimit") || name.contains("rate-limit") || name == "retry-after"
        };
        for name in later.keys().filter(|name| rates(name)) {
            headers.remove(name);
            for value in later.get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
    }

    fn whole(self, length: usize) -> (StatusCode, HeaderMap) {
        let (status, mut headers) = self.first.unwrap_or_default();
        strip_answer(&mut headers);
        // These are about the bytes of the first answer alone.
        headers.remove(CONTENT_ENCODING);
        headers.remove(ETAG);
        headers.remove("content-md5");
        headers.remove("digest");
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        (status, headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_head_counts_and_the_last_rate_limits() {
        let map = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
            pairs
                .iter()
                .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
                .collect()
        };
        let mut heads = Heads::default();
        heads.add(
            StatusCode::OK,
            map(&[
                ("x-request-id", "1"),
                ("x-ratelimit-remaining-tokens", "90"),
                ("transfer-encoding", "chunked"),
                ("content-encoding", "gzip"),
                ("etag", "w"),
            ]),
        );
        heads.add(
            StatusCode::OK,
            map(&[
                ("x-request-id", "2"),
                ("x-ratelimit-remaining-tokens", "80"),
                ("retry-after", "3"),
            ]),
        );
        let (status, headers) = heads.whole(12);
        assert_eq!(status, StatusCode::OK);
        let want = map(&[
            ("x-request-id", "1"),
            ("x-ratelimit-remaining-tokens", "80"),
            ("retry-after", "3"),
            ("content-length", "12"),
        ]);
        assert_eq!(headers, want);
    }
}
