//! One client connection: which HTTP it speaks, who is behind it, and when it has to end.

use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::accept::ClientIo;
use super::alarm::Spare;
use super::exchange;
use super::identify::Memory;
use super::local::LocalExecutor;
use super::switch::Switched;
use super::watched::{Activity, InFlight, Patience, Watched};
use super::worker::Worker;
use crate::types::ids::AgentId;

/// What an HTTP/2 client sends first (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much of a request may be read ahead, and how much of an answer may wait to be written to one client (to one
/// stream of it, with HTTP/2), in bytes. It is what a client that does not read costs, and enough for a fast one: more
/// is written as soon as some of it was taken.
const BUFFER: usize = 64 * 1024;

/// How much a write may stall behind a client that does not read.
const WRITE_PATIENCE: Duration = Duration::from_secs(120);

/// A client that may speak HTTP now.
pub(super) struct Client {
    pub(super) io: ClientIo,
    /// Whether ALPN chose HTTP/2; `None` when nothing was negotiated.
    pub(super) h2: Option<bool>,
}

/// What the exchanges of one connection share.
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    /// The agent behind the listener, if it has one.
    pub(super) agent: Option<Rc<AgentId>>,
    /// What was resolved for the exchange before: mostly the next one is like it.
    pub(super) memory: RefCell<Memory>,
    /// A protocol switch that was agreed on; the connection is no longer HTTP once its answer was sent.
    pub(super) switched: RefCell<Option<Switched>>,
    /// The timer that the exchange before left.
    pub(super) spare_timer: Rc<Spare>,
    activity: Rc<Activity>,
}

impl Connection {
    pub(super) fn begin(&self) -> InFlight {
        self.activity.begin()
    }

    /// Whether the client gave two lengths for the body of its request.
    pub(super) fn framing_conflicts(&self) -> bool {
        self.activity.framing_conflicts()
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, client: Client, agent: Option<Rc<AgentId>>) {
    let limits = worker.snapshot().policy.limits.clone();
    let mut io = client.io;
    let (h2, again) = tokio::select! {
        biased;
        // Nobody has asked for anything yet, so there is nothing to finish.
        () = worker.shared.drain.begun() => return,
        found = timeout(limits.header_timeout, preface(&mut io, client.h2)) => match found {
            Ok(Some(found)) => found,
            Ok(None) | Err(_) => return,
        },
    };
    let activity = Activity::new(worker.shared.clock.clone(), !h2);
    let patience = Patience {
        head: limits.header_timeout,
        idle: limits.keep_alive_timeout,
        write: WRITE_PATIENCE,
    };
    let io = TokioIo::new(Watched::new(io, again, Rc::clone(&activity)));
    let connection = Rc::new(Connection {
        worker,
        agent,
        memory: RefCell::default(),
        switched: RefCell::default(),
        spare_timer: Rc::default(),
        activity: Rc::clone(&activity),
    });
    let drain = connection.worker.shared.drain.clone();
    let service = {
        let connection = Rc::clone(&connection);
        service_fn(move |request: Request<Incoming>| {
            let connection = Rc::clone(&connection);
            // Boxed, so that what an exchange needs until its answer begins is given back then, and is not held for
            // the life of a stream or of an idle connection.
            Box::pin(async move { Ok::<_, Infallible>(exchange::serve(connection, request).await) })
        })
    };
    if h2 {
        let served = http2::Builder::new(LocalExecutor)
            .max_header_list_size(u32::try_from(limits.max_header_bytes).unwrap_or(u32::MAX))
            .auto_date_header(false)
            .adaptive_window(true)
            .max_send_buf_size(BUFFER)
            .serve_connection(io, service);
        // Boxed, here and below, so that neither kind of connection holds room for the other.
        Box::pin(until_done(
            served,
            |c| c.graceful_shutdown(),
            &drain,
            &activity,
            patience,
        ))
        .await;
    } else {
        let served = http1::Builder::new()
            .auto_date_header(false)
            .max_header_size(limits.max_header_bytes)
            .max_buf_size(limits.max_header_bytes.max(BUFFER))
            .serve_connection(io, service);
        let mut served = Box::new(KeepingIo(served));
        let ended = until_done(
            &mut *served,
            |c| Pin::new(&mut c.get_mut().0).graceful_shutdown(),
            &drain,
            &activity,
            patience,
        )
        .await;
        if !ended {
            return;
        }
        let parts = served.0.into_parts();
        let mut io = parts.io.into_inner();
        match connection.switched.take() {
            Some(switched) => {
                activity.stop_following();
                Box::pin(switched.relay(io, parts.read_buf, &drain)).await;
            }
            // A client that is gone has nothing to be told.
            None => drop(io.shutdown().await),
        }
    }
}

/// An HTTP/1.1 connection whose socket outlives it, for what comes after a protocol switch.
struct KeepingIo<T, S: HttpService<Incoming>>(http1::Connection<T, S>);

impl<T, S, B> Future for KeepingIo<T, S>
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Future: Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: hyper::body::Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Output = Result<(), hyper::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.get_mut().0.poll_without_shutdown(cx)
    }
}

/// Polls a connection until it ends, has to, or has tried our patience; `true` when it ended by itself.
async fn until_done<C, E>(
    served: C,
    shut: impl Fn(Pin<&mut C>),
    drain: &super::drain::Drain,
    activity: &Activity,
    patience: Patience,
) -> bool
where
    C: Future<Output = Result<(), E>>,
    E: std::fmt::Display,
{
    let mut served = pin!(served);
    let mut begun = pin!(drain.begun());
    let mut over = pin!(drain.over());
    let mut draining = false;
    let mut look = pin!(sleep(patience.head));
    loop {
        tokio::select! {
            biased;
            result = &mut served => {
                if let Err(e) = &result {
                    tracing::debug!(error = %e, "client connection ended");
                }
                return result.is_ok();
            }
            () = &mut over => return false,
            () = &mut begun, if !draining => {
                draining = true;
                shut(served.as_mut());
            }
            () = &mut look => {
                let left = activity.remaining(patience);
                if left.is_zero() {
                    tracing::debug!("client connection was idle or slow for too long");
                    return false;
                }
                // The timer is only looked at when it fires, so exchanges cost it nothing.
                let next = look.deadline() + left.max(Duration::from_millis(10));
                look.as_mut().reset(next);
            }
        }
    }
}

/// Reads until it is clear whether the client speaks HTTP/2 from the start, and returns what was read; where that was
/// `agreed` on already, until it says something. `None` when it left without a word.
async fn preface(io: &mut ClientIo, agreed: Option<bool>) -> Option<(bool, Vec<u8>)> {
    let mut read = Vec::with_capacity(H2_PREFACE.len());
    loop {
        let mut chunk = [0; H2_PREFACE.len()];
        let room = H2_PREFACE.len() - read.len();
        let n = io.read(chunk.get_mut(..room)?).await.ok()?;
        if n == 0 {
            return None;
        }
        read.extend_from_slice(chunk.get(..n)?);
        if let Some(h2) = agreed {
            return Some((h2, read));
        }
        if !H2_PREFACE.starts_with(&read) {
            return Some((false, read));
        }
        if read.len() == H2_PREFACE.len() {
            return Some((true, read));
        }
    }
}
