//! Protocol switches (WebSockets): agreed on with the upstream, then bytes are relayed both ways, unread.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::time::timeout;

use super::arrive::Head;
use super::cut::note_contained;
use super::drain::Drain;
use super::emit::Account;
use super::forward::Outgoing;
use super::headers::strip_answer;
use super::observe::Answer;
use super::reply::Problem;
use super::upstream::connect_http1;
use super::watched::InFlight;
use super::worker::Worker;
use crate::types::observation::Outcome;

/// Largest answer of an upstream that refuses to switch, in bytes.
const MAX_REFUSAL: usize = 1 << 20;

/// The upstream's half of an agreed switch, until the client's half is free.
pub(super) struct Switched {
    upstream: TokioIo<Upgraded>,
    account: Box<Account>,
    _in_flight: InFlight,
}

/// What came of asking the upstream to switch.
pub(super) enum Asked {
    /// It agreed: this is the answer for the client, and what is to be relayed after it.
    Agreed(Response<()>, Upgraded),
    /// It answered otherwise.
    Declined(Response<Bytes>),
}

/// Whether the client asks for a WebSocket over this connection (RFC 6455 §4.1), which only HTTP/1.1 can. Any other
/// upgrade (`h2c`) is an offer that may be left alone: the request then goes on as what it is.
pub(super) fn is_asked(head: &Head) -> bool {
    let headers = &head.parts.headers;
    head.parts.version == Version::HTTP_11
        && head.parts.method == Method::GET
        && has_token(headers, &UPGRADE, "websocket")
        && has_token(headers, &CONNECTION, "upgrade")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values
        .flat_map(|v| v.split(','))
        .any(|t| t.trim().eq_ignore_ascii_case(token))
}

/// Asks the upstream to switch, over a connection of its own.
pub(super) async fn ask(worker: &Worker, head: &Head) -> Result<Asked, Problem> {
    let upstream = &head.upstream;
    let headers = &head.parts.headers;
    let protocol = headers
        .get(UPGRADE)
        .cloned()
        .unwrap_or(HeaderValue::from_static("websocket"));
    let outgoing = Outgoing::new(
        &worker.snapshot().policy,
        upstream,
        head.parts.method.clone(),
        head.path(),
        head.parts.uri.query(),
        headers.clone(),
    )?;
    let mut request: Request<Full<Bytes>> = outgoing.request(upstream, false, Full::default());
    switch_headers(request.headers_mut(), protocol);
    let io = connect_http1(upstream).await.map_err(Problem::Connect)?;
    let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(|e| Problem::Upstream(e.into()))?;
    drop(tokio::task::spawn_local(connection.with_upgrades()));
    let first_byte = upstream.timeouts.first_byte;
    let answer = timeout(first_byte, send.send_request(request))
        .await
        .map_err(|_| Problem::UpstreamTimeout(first_byte))?
        .map_err(|e| Problem::Upstream(e.into()))?;
    let (mut parts, body) = answer.into_parts();
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        strip_answer(&mut parts.headers);
        #[expect(clippy::disallowed_methods, reason = "bounded by Limited")]
        let body = timeout(upstream.timeouts.idle, Limited::new(body, MAX_REFUSAL).collect())
            .await
            .map_err(|_| Problem::UpstreamSilent(upstream.timeouts.idle))?
            .map_err(|e| Problem::BadRefusal(e.to_string()))?;
        return Ok(Asked::Declined(Response::from_parts(parts, body.to_bytes())));
    }
    let mut answer = Response::new(());
    *answer.status_mut() = parts.status;
    let protocol = parts
        .headers
        .get(UPGRADE)
        .cloned()
        .unwrap_or(HeaderValue::from_static("websocket"));
    *answer.headers_mut() = std::mem::take(&mut parts.headers);
    strip_answer(answer.headers_mut());
    switch_headers(answer.headers_mut(), protocol);
    let upgraded = hyper::upgrade::on(Response::from_parts(parts, ()))
        .await
        .map_err(|e| Problem::Upstream(e.into()))?;
    Ok(Asked::Agreed(answer, upgraded))
}

fn switch_headers(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

impl Switched {
    pub(super) fn new(upstream: Upgraded, account: Box<Account>, in_flight: InFlight) -> Self {
        Self {
            upstream: TokioIo::new(upstream),
            account,
            _in_flight: in_flight,
        }
    }

    /// Relays until both sides are done; `first` is what the client sent right after its request.
    pub(super) async fn relay(
        mut self,
        mut client: impl AsyncRead + AsyncWrite + Unpin,
        first: Bytes,
        drain: &Drain,
    ) {
        let relayed = async {
            self.upstream.write_all(&first).await?;
            copy_bidirectional(&mut client, &mut self.upstream).await
        };
        let account = &self.account;
        let unless_contained = async {
            match &account.flight {
                Some(flight) => {
                    let sender = account.identity.sender();
                    flight.unless_contained(&account.worker, sender, relayed).await
                }
                None => Ok(relayed.await),
            }
        };
        let (outcome, contained) = tokio::select! {
            biased;
            () = drain.over() => (Outcome::Cut, None),
            ended = unless_contained => match ended {
                // Either side may leave without a closing frame; which one it was cannot be told from here.
                Ok(_) => (Outcome::Complete, None),
                Err(problem) => (Outcome::Cut, Some(problem)),
            },
        };
        if let Some(Problem::Contained(by)) = contained {
            note_contained(&mut self.account, &by);
        }
        self.account.ended(outcome);
    }
}

/// The client's answer when the upstream did not switch.
pub(super) fn decline(response: Response<Bytes>, in_flight: InFlight) -> Response<Answer> {
    response.map(|body| Answer::Own {
        body: Full::new(body),
        _in_flight: in_flight,
    })
}

/// The client's answer when the upstream switched.
pub(super) fn agree(
    connection: &Rc<super::connection::Connection>,
    response: Response<()>,
    upgraded: Upgraded,
    account: Box<Account>,
    in_flight: InFlight,
) -> Response<Answer> {
    let relaying = in_flight.again();
    *connection.switched.borrow_mut() = Some(Switched::new(upgraded, account, in_flight));
    response.map(|()| Answer::Own {
        body: Full::default(),
        _in_flight: relaying,
    })
}
