//! One HTTP connection to an upstream; an HTTP/1.1 one is driven by whoever waits on it, not by a task of its own.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use hyper::body::{Body, Incoming};
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};

use super::connect::{ConnectError, Connected};
use super::io::UpstreamIo;
use crate::proxy::body::RequestBody;
use crate::proxy::local::LocalExecutor;

/// How much of an answer may be read ahead of a client that takes its time, and so the largest head of one, in bytes.
const BUFFER: usize = 64 * 1024;

/// What one HTTP/2 answer may have on its way to us, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;

/// How often an HTTP/2 connection with exchanges on it is asked whether it is still there, and for how long.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_PATIENCE: Duration = Duration::from_secs(10);

type Driver = Pin<Box<http1::Connection<TokioIo<UpstreamIo>, RequestBody>>>;

/// One HTTP connection to an upstream.
///
/// The response body polls an HTTP/1.1 connection itself (through [`Link::poll_frame`]): frames that arrived
/// together are then handed on together and leave in one write, where a task of its own for the connection would
/// cost one wake-up and one write for each.
pub(crate) enum Link {
    H1 {
        send: http1::SendRequest<RequestBody>,
        driver: Option<Driver>,
    },
    H2 {
        send: http2::SendRequest<RequestBody>,
    },
}

impl Link {
    pub(super) async fn handshake(connected: Connected, prior_knowledge: bool) -> Result<Self, ConnectError> {
        let io = TokioIo::new(connected.io);
        if connected.h2 || prior_knowledge {
            let (send, connection) = http2::Builder::new(LocalExecutor)
                // One client that does not read must not hold up the others of the connection, so the connection
                // has room for many full streams.
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(64 * STREAM_WINDOW)
                // A peer that vanished is noticed, and the next exchange opens another connection.
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_PATIENCE)
                .handshake(io)
                .await
                .map_err(ConnectError::Http)?;
            // Many exchanges share it, so none can drive it alone.
            drop(tokio::task::spawn_local(connection));
            Ok(Self::H2 { send })
        } else {
            let (send, connection) = http1::Builder::new()
                .max_buf_size(BUFFER)
                .handshake(io)
                .await
                .map_err(ConnectError::Http)?;
            Ok(Self::H1 {
                send,
                driver: Some(Box::pin(connection)),
            })
        }
    }

    pub(super) fn is_h2(&self) -> bool {
        matches!(self, Self::H2 { .. })
    }

    /// A second handle on the same HTTP/2 connection; `None` for HTTP/1.1.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::H1 { .. } => None,
            Self::H2 { send } => Some(Self::H2 { send: send.clone() }),
        }
    }

    /// Waits until the first request can be sent.
    pub(super) async fn ready(&mut self) -> bool {
        match self {
            Self::H1 { send, driver } => poll_fn(|cx| drive(driver, cx, |cx| send.poll_ready(cx)))
                .await
                .is_ok(),
            Self::H2 { send } => !send.is_closed() && poll_fn(|cx| send.poll_ready(cx)).await.is_ok(),
        }
    }

    /// Whether another request can be sent at once; looks at the socket, so that a connection closed while idle is
    /// seen. One that is still busy with what came before is no use either: waiting for it could take for ever.
    pub(super) async fn ready_again(&mut self) -> bool {
        match self {
            Self::H1 { send, driver } => {
                // The first look is what tells hyper that more is wanted, the second sees what it made of that.
                poll_fn(|cx| {
                    for _ in 0..2 {
                        if let Poll::Ready(ready) = drive(driver, cx, |cx| send.poll_ready(cx)) {
                            return Poll::Ready(ready.is_ok() && driver.is_some());
                        }
                    }
                    Poll::Ready(false)
                })
                .await
            }
            Self::H2 { .. } => self.ready().await,
        }
    }

    /// Sends a request and waits for the head of its answer. The error holds the request when nothing of it was
    /// sent.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, TrySendError<Request<RequestBody>>> {
        match self {
            Self::H1 { send, driver } => {
                let mut answer = pin!(send.try_send_request(request));
                poll_fn(|cx| drive(driver, cx, |cx| answer.as_mut().poll(cx))).await
            }
            Self::H2 { send } => send.try_send_request(request).await,
        }
    }

    /// The next frame of an answer that came over this connection.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self {
            Self::H1 { driver, .. } => drive(driver, cx, |cx| Pin::new(&mut *body).poll_frame(cx)),
            Self::H2 { .. } => Pin::new(body).poll_frame(cx),
        }
    }
}

/// Polls `wanted`, and the connection when that is not ready. A connection that ended is forgotten; `wanted` then
/// says so itself.
fn drive<T>(
    driver: &mut Option<Driver>,
    cx: &mut Context<'_>,
    mut wanted: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    if let Poll::Ready(value) = wanted(cx) {
        return Poll::Ready(value);
    }
    let Some(connection) = driver else {
        return Poll::Pending;
    };
    if connection.as_mut().poll(cx).is_ready() {
        *driver = None;
    }
    wanted(cx)
}
