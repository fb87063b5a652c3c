//! One exchange from head to tail; the only file that knows the order of the steps.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;

use super::alarm::Alarm;
use super::arrive::{self, Head};
use super::connection::Connection;
use super::emit::{Account, Times};
use super::forward::{Forwarded, Outgoing, forward, peek};
use super::headers::strip_answer;
use super::hops;
use super::identify::{Clues, identify};
use super::observe::{Answer, Relay};
use super::orders::{self, Changes};
use super::reply::{Problem, refuse};
use super::rewrite::{Prepared, prepare};
use super::upstream::AnswerBody;
use super::watched::InFlight;
use super::{admit, batch, identify::Identity, switch};
use crate::dialect::include_usage::{Hider, refusal_names_stream_options};
use crate::dialect::meter::{AnswerHead, Meter, MeterOptions};
use crate::dialect::request::RequestFacts;
use crate::enforce::policy::Timeouts;
use crate::enforce::snapshot::Snapshot;
use crate::types::ids::RequestId;
use crate::types::observation::{ActionTaken, Outcome};

/// Largest error answer that is read to see whether it is about the usage that we asked for.
const MAX_OBJECTION: usize = 64 * 1024;

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Answers one request: arrive, identify, admit, rewrite, forward, observe. Each step takes what the one before
/// gave. From `identify` on an [`Account`] is kept; dropping it, wherever that happens, is the last step: emit.
pub(super) async fn serve(connection: Rc<Connection>, request: Request<Incoming>) -> Response<Answer> {
    let in_flight = connection.begin();
    let worker = Rc::clone(&connection.worker);
    let clock = &worker.shared.clock;
    let started = clock.mono();
    let mut snapshot = worker.snapshot();

    // Arrive.
    let (mut head, incoming, fault) = arrive::head(&snapshot.policy, request);
    let request_id = request_id(&head, &worker.shared.request_ids);
    let fault = fault.or_else(|| {
        (head.parts.version < Version::HTTP_2 && connection.framing_conflicts())
            .then_some(Problem::TwoLengths)
    });
    let content = match fault {
        Some(problem) => Err(problem),
        None => arrive::content(&snapshot.policy, clock, &mut head, incoming).await,
    };
    let nothing = RequestFacts::default();
    let (facts, bytes) = content
        .as_ref()
        .map_or((&nothing, None), |c| (&c.facts, c.bytes.as_ref()));

    // Identify.
    let identity = identify(
        &connection,
        &snapshot.policy,
        &Clues {
            headers: &head.parts.headers,
            path_agent: head.path_agent.as_deref(),
            facts,
            route: &head.route,
            body: bytes,
            upstream: &head.upstream,
            request_id: &request_id,
        },
    );
    let complete = content.as_ref().map_or_else(|_| clock.mono(), |c| c.complete);
    let mut account = open_account(
        &worker, &snapshot, request_id, identity, &head, facts, started, complete,
    );
    worker.noted.look(
        &worker.shared,
        &account.identity,
        &head.route,
        facts,
        bytes.map(|b| &**b),
        complete,
    );
    let content = match content {
        Ok(content) => content,
        Err(problem) => return answer_problem(account, problem, in_flight),
    };

    // Admit.
    let slot = Arc::clone(&account.identity.slot);
    let mut estimate = slot.expected_tokens(content.facts.estimated_input, content.facts.max_output);
    if head.route.api.generates() {
        // A body that cannot be read is not free: what it really uses is settled afterwards.
        estimate = estimate.max(1);
    }
    let sender = account.identity.sender();
    let flight = account.flight.as_ref();
    let now = match admit::pass(&worker, &mut snapshot, &slot, sender, flight, estimate, complete).await {
        Ok(admitted) => {
            account.permit = Some(admitted.permit);
            if admitted.held > Duration::from_millis(1) {
                account.times.held = admitted.held;
                let ms = u64::try_from(admitted.held.as_millis()).unwrap_or(u64::MAX);
                account.actions.push(ActionTaken::Delayed { ms });
            }
            admitted.at
        }
        Err(problem) => return answer_problem(account, problem, in_flight),
    };
    if !Arc::ptr_eq(&account.snapshot, &snapshot) {
        account.snapshot = Arc::clone(&snapshot);
    }

    // Elsewhere than it was meant for, if that is asked for; and where else, if that fails.
    let hops = hops::plan(&worker, &snapshot, &mut account, &mut head, &content, estimate);

    if switch::is_asked(&head) {
        return Box::pin(switch_protocol(&connection, account, &head, in_flight)).await;
    }

    // Rewrite.
    let seen = content.seen.clone();
    let mut prepared = match prepare(
        &worker,
        &snapshot,
        account.identity.sender(),
        now,
        &head,
        content,
        &mut account.actions,
    ) {
        Ok(prepared) => prepared,
        Err(problem) => return answer_problem(account, problem, in_flight),
    };

    // Forward.
    let sender = account.identity.sender();
    let timeouts = orders::timeouts(
        &snapshot,
        sender,
        now,
        head.upstream.timeouts,
        &mut account.actions,
    );
    if let Some(split) = prepared.split.take() {
        let parts = batch::Parts {
            head,
            prepared,
            split,
            timeouts,
        };
        return Box::pin(batch::serve(&connection, account, parts, in_flight)).await;
    }
    let whole = timeouts.total.map(|t| started.after(t));
    let mut alarm = Alarm::new(
        clock.clone(),
        Rc::clone(&connection.spare_timer),
        timeouts.first_byte,
        whole,
    );
    if let Some(seen) = &seen {
        alarm.mind(Rc::clone(seen), timeouts.idle);
    }
    account.times.forwarded = Some(alarm.last_heard());
    let sent = match hops {
        None => {
            let sending = send(&worker, &snapshot, head, prepared, &mut alarm);
            unless_contained(&account, sending).await
        }
        // Only those that can be sent on carry what that takes.
        Some(hops) => {
            let whose = account.identity.whose();
            let flight = account.flight.take();
            let sending =
                Box::pin(hops.send(&worker, &mut snapshot, &mut account, head, prepared, &mut alarm));
            let sent = match &flight {
                Some(flight) => flight.unless_contained(&worker, whose.sender(), sending).await,
                None => Ok(sending.await),
            };
            account.flight = flight;
            sent
        }
    };
    let (head, changes, sent) = match sent {
        Ok(sent) => sent,
        Err(problem) => return answer_problem(account, problem, in_flight),
    };
    let sent = match sent {
        Ok(sent) => sent,
        Err(problem) => {
            let problem = match seen {
                Some(seen) if seen.too_large.get() => Problem::TooLarge {
                    limit: snapshot.policy.limits.max_request_bytes,
                },
                Some(seen) if seen.too_slow.get() => Problem::TooSlow,
                Some(seen) if seen.client_failed.get() => Problem::ClientGone,
                _ => problem,
            };
            return answer_problem(account, problem, in_flight);
        }
    };

    // Observe.
    if !sent.usage_asked {
        account.actions.retain(|a| *a != ActionTaken::UsageRequested);
    }
    let mut response = observe(account, sent, alarm, changes.as_deref(), timeouts, in_flight);
    hops::say(&mut response, &head);
    response
}

/// Does `work` unless the sender of the exchange is contained in the meantime.
async fn unless_contained<F: Future>(account: &Account, work: F) -> Result<F::Output, Problem> {
    match &account.flight {
        Some(flight) => {
            let sender = account.identity.sender();
            flight.unless_contained(&account.worker, sender, work).await
        }
        None => Ok(work.await),
    }
}

/// Answers a request for another protocol: what comes after it is relayed and not read.
async fn switch_protocol(
    connection: &Rc<Connection>,
    mut account: Box<Account>,
    head: &Head,
    in_flight: InFlight,
) -> Response<Answer> {
    let clock = &connection.worker.shared.clock;
    account.times.forwarded = Some(clock.mono());
    let asked = unless_contained(&account, switch::ask(&connection.worker, head))
        .await
        .and_then(|asked| asked);
    account.times.first_byte = Some(clock.mono());
    match asked {
        Err(problem) => answer_problem(account, problem, in_flight),
        Ok(switch::Asked::Declined(response)) => {
            account.status = response.status().as_u16();
            account.ended(Outcome::Complete);
            switch::decline(response, in_flight)
        }
        Ok(switch::Asked::Agreed(response, upgraded)) => {
            account.status = response.status().as_u16();
            switch::agree(connection, response, upgraded, account, in_flight)
        }
    }
}

/// An answer whose head is there.
pub(super) struct Sent {
    pub(super) forwarded: Forwarded,
    pub(super) incoming: AnswerBody,
    /// Usage was asked for on the client's behalf and has to be taken out of the answer.
    pub(super) usage_asked: bool,
    /// The answer is a JSON document and no stream.
    pub(super) document: bool,
}

#[expect(
    clippy::too_many_arguments,
    reason = "each is one field of the account, and this is the one place"
)]
fn open_account(
    worker: &Rc<super::worker::Worker>,
    snapshot: &Arc<Snapshot>,
    request_id: RequestId,
    identity: Identity,
    head: &Head,
    facts: &RequestFacts,
    started: crate::types::time::Mono,
    complete: crate::types::time::Mono,
) -> Box<Account> {
    Box::new(Account {
        worker: Rc::clone(worker),
        snapshot: Arc::clone(snapshot),
        request_id,
        identity,
        api: head.route.api,
        upstream: Arc::clone(&head.upstream),
        stream_asked: facts.stream,
        usage_asked: facts.include_usage,
        azure: head.route.azure,
        flight: Some(worker.flights.board()),
        estimated_input: facts.estimated_input,
        permit: None,
        meter: None,
        earlier: None,
        status: 0,
        outcome: None,
        error: None,
        may_continue: false,
        actions: Vec::new(),
        times: Times {
            started,
            complete,
            held: Duration::ZERO,
            forwarded: None,
            first_byte: None,
            first_token: None,
            next_progress: crate::types::time::Mono::ZERO,
        },
    })
}

/// Sends what was prepared. When the upstream objects to being asked for usage, it is remembered and the client's
/// own request is sent in its place: the client never sees an error of our making.
pub(super) async fn send(
    worker: &super::worker::Worker,
    snapshot: &Snapshot,
    mut head: Box<Head>,
    prepared: Prepared,
    alarm: &mut Alarm,
) -> (Box<Head>, Option<Box<Changes>>, Result<Sent, Problem>) {
    let Prepared {
        body,
        path,
        changed,
        without_usage,
        changes,
        split: _,
    } = prepared;
    let headers = std::mem::take(&mut head.parts.headers);
    let query = head.parts.uri.query();
    let method = head.parts.method.clone();
    let path = path.as_deref().unwrap_or(head.path());
    let outgoing = Outgoing::new(&snapshot.policy, &head.upstream, method, path, query, headers);
    let mut outgoing = match outgoing {
        Ok(outgoing) => outgoing,
        Err(problem) => return (head, changes, Err(problem)),
    };
    outgoing.frame(&body, changed);
    let result = async {
        let spare = without_usage.is_some().then(|| outgoing.clone());
        if spare.is_some() {
            // What we add has to be taken out again, which cannot be done to a compressed stream.
            outgoing.accept_identity();
        }
        let (mut forwarded, mut incoming) = forward(worker, &head.upstream, outgoing, body, alarm).await?;
        let Some((original, mut outgoing)) = without_usage.zip(spare) else {
            return Ok(Sent { forwarded, incoming, usage_asked: false, document: false });
        };
        let status = forwarded.head.status;
        let silence = head.upstream.timeouts.idle;
        if !matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY) {
            let mut document = false;
            let headers = &forwarded.head.headers;
            if status.is_success() && is_called_json(headers) && !headers.contains_key(CONTENT_ENCODING) {
                // Some call their streams JSON: the first byte tells.
                peek(&mut forwarded, &mut incoming, 1, alarm, silence).await?;
                document = matches!(forwarded.prefix.first(), None | Some(b'{' | b'[' | b' ' | b'\t' | b'\r' | b'\n'));
            }
            return Ok(Sent { forwarded, incoming, usage_asked: true, document });
        }
        peek(&mut forwarded, &mut incoming, MAX_OBJECTION, alarm, silence).await?;
        if !refusal_names_stream_options(status.as_u16(), &forwarded.prefix) {
            return Ok(Sent { forwarded, incoming, usage_asked: false, document: false });
        }
        if forwarded.ended {
            forwarded.lease.give_back(worker.shared.clock.mono());
        }
        outgoing.frame(&original, true);
        // Rare, and as large as the first time: not part of what every exchange needs.
        let (forwarded, incoming) =
            Box::pin(forward(worker, &head.upstream, outgoing, original, alarm)).await?;
        // Only now is it certain that our asking was what the upstream objected to.
        if forwarded.head.status.is_success() {
            worker.shared.unwilling.insert(&head.upstream.name);
            tracing::info!(upstream = %head.upstream.name, "upstream does not report usage in streams; not asking again");
        }
        Ok(Sent { forwarded, incoming, usage_asked: false, document: false })
    }
    .await;
    (head, changes, result)
}

/// Makes the client's answer of the upstream's.
pub(super) fn observe(
    mut account: Box<Account>,
    sent: Sent,
    mut alarm: Alarm,
    changes: Option<&Changes>,
    timeouts: Timeouts,
    in_flight: InFlight,
) -> Response<Answer> {
    let Sent {
        mut forwarded,
        incoming,
        usage_asked,
        document,
    } = sent;
    alarm.allow(timeouts.idle);
    account.times.first_byte.get_or_insert(alarm.last_heard());
    let policy = &account.snapshot.policy;
    let status = forwarded.head.status;
    account.status = status.as_u16();
    if policy.metering {
        let options = MeterOptions {
            max_inspect_bytes: policy.limits.max_inspect_bytes,
            keep_text: false,
        };
        let head = AnswerHead {
            api: account.api,
            status: status.as_u16(),
            headers: &forwarded.head.headers,
            stream_asked: account.stream_asked,
        };
        account.meter = Some(Meter::new(&head, options));
    }
    // The head is taken out; what is left of `forwarded` goes on with the body.
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = std::mem::take(&mut forwarded.head.headers);
    let headers = response.headers_mut();
    strip_answer(headers);
    // A compressed stream passes with the usage in it: its client reads what it did not ask for, unharmed.
    let hide = usage_asked && !document && status.is_success() && !headers.contains_key(CONTENT_ENCODING);
    if hide {
        headers.remove(CONTENT_LENGTH);
    }
    if let Some(changes) = changes {
        changes.say(headers, &account.request_id);
    }
    let hider = hide.then(Hider::new);
    let relay = Relay::new(forwarded, incoming, account, alarm, hider, in_flight);
    response.map(|()| Answer::Relay(relay))
}

/// Whether an answer says of itself that it is a JSON document.
fn is_called_json(headers: &http::HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/json"))
}

/// Answers in the upstream's place, in the shape of the API that was asked.
pub(super) fn answer_problem(
    mut account: Box<Account>,
    problem: Problem,
    in_flight: InFlight,
) -> Response<Answer> {
    let (response, code) = refuse(
        &problem,
        account.api,
        account.azure,
        &account.request_id,
        in_flight,
    );
    log(&account, &problem, code);
    account.status = match problem {
        // It left before there was a status, and does not see this one.
        Problem::ClientGone => 0,
        _ => response.status().as_u16(),
    };
    account.error = Some(("fusebox".to_owned(), code.to_owned()));
    account.ended(match &problem {
        Problem::UpstreamTimeout(_)
        | Problem::UpstreamSilent(_)
        | Problem::UploadStalled(_)
        | Problem::TooLong => Outcome::Timeout,
        Problem::Connect(super::upstream::ConnectError::Timeout(_)) => Outcome::Timeout,
        Problem::Connect(_) | Problem::Upstream(_) | Problem::BadRefusal(_) | Problem::CannotMerge(_) => {
            Outcome::UpstreamError
        }
        Problem::ClientGone => Outcome::ClientAbort,
        _ => Outcome::Refused,
    });
    if let Problem::Contained(by) = &problem {
        let rule = by.rule.to_string();
        account.actions.push(ActionTaken::Contained { rule });
    }
    if let Problem::Limited(why) = &problem {
        let rule = why.rule.to_string();
        account.actions.push(match why.kind {
            crate::enforce::gate::Limited::Concurrency => ActionTaken::ConcurrencyCapped { rule },
            _ => ActionTaken::Throttled { rule },
        });
    }
    response
}

fn log(account: &Account, problem: &Problem, code: &'static str) {
    let (agent, upstream) = (&account.identity.agent, &account.upstream.name);
    match problem {
        Problem::Connect(e) => {
            tracing::warn!(%agent, %upstream, code, error = %e, "cannot reach the upstream");
        }
        Problem::Upstream(e) => tracing::warn!(%agent, %upstream, code, error = %e, "upstream failed"),
        Problem::CannotMerge(why) => {
            tracing::warn!(%agent, %upstream, code, why, "a batch in parts failed");
        }
        Problem::BadRefusal(why) => tracing::warn!(%agent, %upstream, code, why, "upstream failed"),
        Problem::UpstreamTimeout(_)
        | Problem::UpstreamSilent(_)
        | Problem::UploadStalled(_)
        | Problem::TooLong => tracing::warn!(%agent, %upstream, code, "upstream timed out"),
        _ => tracing::debug!(%agent, %upstream, code, "refused"),
    }
}

/// The client's own id when it gave a usable one.
fn request_id(head: &Head, ids: &super::worker::RequestIds) -> RequestId {
    const MAX: usize = 200;
    match head
        .parts
        .headers
        .get(&X_REQUEST_ID)
        .and_then(|v| v.to_str().ok())
    {
        Some(id) if !id.is_empty() && id.len() <= MAX => RequestId::from(id),
        _ => ids.next(),
    }
}
