//! One HTTP connection to an upstream; an HTTP/1.1 one is driven by whoever waits on it, not by a task of its own.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::connect::{ConnectError, Connected};
use super::http1::{Conn, Decoder, Failure, Http1Error, Known, Spare};
use super::io::UpstreamIo;
use crate::proxy::body::RequestBody;
use crate::proxy::local::LocalExecutor;

/// What one HTTP/2 answer may have on its way to us, in bytes.
const STREAM_WINDOW: u32 = 256 * 1024;

/// How often an HTTP/2 connection with exchanges on it is asked whether it is still there, and for how long.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// One HTTP connection to an upstream.
///
/// The response body polls an HTTP/1.1 connection itself (through [`Link::poll_frame`]): frames that arrived
/// together are then handed on together and leave in one write, where a task of its own for the connection would
/// cost one wake-up and one write for each.
pub(crate) enum Link {
    H1(Box<Conn<UpstreamIo>>),
    H2 {
        send: http2::SendRequest<RequestBody>,
        /// How many exchanges the upstream allows at once.
        allowed: Rc<Cell<usize>>,
    },
}

/// The body of an upstream's answer; its frames come out of [`Link::poll_frame`].
pub(crate) enum AnswerBody {
    Http1(Decoder),
    Http2(Incoming),
}

/// Why an exchange with an upstream failed after there was a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error(transparent)]
    Http1(#[from] Http1Error),
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
}

/// Why there is no answer, and the request when nothing of it was sent.
pub(crate) struct SendError {
    pub(crate) error: LinkError,
    pub(crate) unsent: Option<Box<Request<RequestBody>>>,
}

/// What the HTTP/1.1 connections of one upstream share: buffers with all of their worker, what heads look like among
/// themselves.
#[derive(Clone, Default)]
pub(super) struct Common {
    pub(super) spare: Rc<Spare>,
    pub(super) known: Rc<RefCell<Known>>,
}

impl Link {
    pub(super) async fn handshake(
        connected: Connected,
        prior_knowledge: bool,
        common: &Common,
    ) -> Result<Self, ConnectError> {
        if !connected.h2 && !prior_knowledge {
            let Common { spare, known } = common.clone();
            return Ok(Self::H1(Box::new(Conn::new(connected.io, spare, known))));
        }
        let (mut send, mut connection) = http2::Builder::new(LocalExecutor)
            // One client that does not read must not hold up the others of the connection, so the connection
            // has room for many full streams.
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(64 * STREAM_WINDOW)
            // A peer that vanished is noticed, and the next exchange opens another connection.
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .handshake(TokioIo::new(connected.io))
            .await
            .map_err(ConnectError::Http)?;
        let allowed = Rc::new(Cell::new(usize::MAX));
        // Many exchanges share it, so none can drive it alone.
        drop(tokio::task::spawn_local({
            let allowed = Rc::clone(&allowed);
            poll_fn(move |cx| {
                let ended = Pin::new(&mut connection).poll(cx);
                allowed.set(connection.current_max_send_streams());
                ended
            })
        }));
        send.ready().await.map_err(ConnectError::Http)?;
        Ok(Self::H2 { send, allowed })
    }

    /// A second handle on the same HTTP/2 connection; `None` for HTTP/1.1.
    pub(super) fn share(&self) -> Option<Self> {
        match self {
            Self::H1(_) => None,
            Self::H2 { send, allowed } => Some(Self::H2 {
                send: send.clone(),
                allowed: Rc::clone(allowed),
            }),
        }
    }

    /// How many exchanges at once the upstream allows on this connection.
    pub(super) fn allowed(&self) -> usize {
        match self {
            Self::H1(_) => 1,
            Self::H2 { allowed, .. } => allowed.get(),
        }
    }

    pub(crate) fn is_h2(&self) -> bool {
        matches!(self, Self::H2 { .. })
    }

    /// Whether another exchange may begin; looks at the socket of an HTTP/1.1 connection, so that one that was closed
    /// while idle is seen.
    pub(super) async fn is_alive(&mut self) -> bool {
        match self {
            Self::H1(conn) => conn.is_alive().await,
            Self::H2 { send, .. } => !send.is_closed(),
        }
    }

    /// Whether another exchange may begin after the one before, as far as that one tells.
    pub(super) fn is_idle(&self) -> bool {
        match self {
            Self::H1(conn) => conn.is_idle(),
            Self::H2 { send, .. } => !send.is_closed(),
        }
    }

    /// Sends a request and waits for the head of its answer. The error holds the request when nothing of it was
    /// sent.
    pub(crate) async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, SendError> {
        match self {
            Self::H1(conn) => match conn.send(request).await {
                Ok(answer) => Ok(answer.map(AnswerBody::Http1)),
                Err(Failure { error, unsent }) => Err(SendError {
                    error: error.into(),
                    unsent,
                }),
            },
            Self::H2 { send, .. } => match send.try_send_request(request).await {
                Ok(answer) => Ok(answer.map(AnswerBody::Http2)),
                Err(mut e) => Err(SendError {
                    unsent: e.take_message().map(Box::new),
                    error: e.into_error().into(),
                }),
            },
        }
    }

    /// The next frame of an answer that came over this connection.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut AnswerBody,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, LinkError>>> {
        match (self, body) {
            (Self::H1(conn), AnswerBody::Http1(decoder)) => conn
                .poll_frame(decoder, cx)
                .map(|frame| frame.map(|f| f.map_err(LinkError::Http1))),
            (_, AnswerBody::Http2(incoming)) => Pin::new(incoming)
                .poll_frame(cx)
                .map(|frame| frame.map(|f| f.map_err(LinkError::Hyper))),
            // A body is read over the connection that it came over.
            (Self::H2 { .. }, AnswerBody::Http1(_)) => Poll::Ready(None),
        }
    }
}

impl AnswerBody {
    /// Whether nothing more will come.
    pub(crate) fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(decoder) => decoder.is_ended(),
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    /// How long what is left is, as far as that is known.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(decoder) => decoder.size_hint(),
            Self::Http2(incoming) => incoming.size_hint(),
        }
    }
}
