//! A client connection with its stopwatch: who waits for whom since when, so that slow clients can be cut.

use std::cell::{Cell, RefCell};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::Framing;
use crate::clock::Clock;
use crate::types::time::Mono;

/// What a client connection is doing.
#[derive(Debug)]
pub(crate) struct Activity {
    clock: Clock,
    in_flight: Cell<u32>,
    idle_since: Cell<Mono>,
    /// Requests that were begun, and where they lie in what was read; the latter for HTTP/1 alone.
    begun: Cell<u64>,
    framing: RefCell<Option<Framing>>,
    head_since: Cell<Option<Mono>>,
    write_blocked_since: Cell<Option<Mono>>,
}

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For a request head, from its first byte.
    pub(crate) head: Duration,
    /// Between requests.
    pub(crate) idle: Duration,
    /// To take what is written to it.
    pub(crate) write: Duration,
}

/// A connection whose reads and writes are noted in an [`Activity`].
pub(crate) struct Watched<T> {
    io: T,
    /// Bytes that were read to learn the protocol, to be read again.
    again: Vec<u8>,
    activity: Rc<Activity>,
}

/// Marks one exchange of a connection as in flight until dropped.
pub(crate) struct InFlight(Rc<Activity>);

impl Activity {
    pub(crate) fn new(clock: Clock, http1: bool) -> Rc<Self> {
        let now = clock.mono();
        Rc::new(Self {
            clock,
            in_flight: Cell::new(0),
            idle_since: Cell::new(now),
            begun: Cell::new(0),
            framing: RefCell::new(http1.then(Framing::default)),
            head_since: Cell::new(None),
            write_blocked_since: Cell::new(None),
        })
    }

    /// Begins the exchange of the next request.
    pub(crate) fn begin(self: &Rc<Self>) -> InFlight {
        self.begun.set(self.begun.get() + 1);
        self.mark()
    }

    fn mark(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        self.head_since.set(None);
        InFlight(Rc::clone(self))
    }

    /// Whether the request that was begun last gives its body's length in two ways, of which only one can be true
    /// (RFC 9112 §6.3): what other software would make of it cannot be known.
    pub(crate) fn framing_conflicts(&self) -> bool {
        let framing = self.framing.borrow();
        framing.as_ref().is_some_and(|f| f.conflicts(self.begun.get()))
    }

    /// What comes now is no HTTP any more.
    pub(crate) fn stop_following(&self) {
        self.framing.replace(None);
    }

    /// Zero when the client used up its patience, else how long it may still take at least.
    pub(crate) fn remaining(&self, patience: Patience) -> Duration {
        let now = self.clock.mono();
        let left = |since: Mono, limit: Duration| limit.saturating_sub(now.since(since));
        let mut least = patience.idle.min(patience.head);
        if self.in_flight.get() == 0 {
            least = left(self.idle_since.get(), patience.idle).min(least);
            if let Some(since) = self.head_since.get() {
                least = least.min(left(since, patience.head));
            }
        }
        if let Some(since) = self.write_blocked_since.get() {
            least = least.min(left(since, patience.write));
        }
        least
    }
}

impl InFlight {
    /// Another mark on the same connection.
    pub(crate) fn again(&self) -> Self {
        self.0.mark()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.0;
        activity.in_flight.set(activity.in_flight.get().saturating_sub(1));
        if activity.in_flight.get() == 0 {
            let now = activity.clock.mono();
            activity.idle_since.set(now);
            let framing = activity.framing.borrow();
            if framing.as_ref().is_some_and(Framing::is_inside_head) {
                // It came with the request before; its time begins now.
                activity.head_since.set(Some(now));
            }
        }
    }
}

impl<T> Watched<T> {
    pub(crate) fn new(io: T, again: Vec<u8>, activity: Rc<Activity>) -> Self {
        Self { io, again, activity }
    }

    fn noted<R>(&self, result: Poll<R>) -> Poll<R> {
        let blocked = &self.activity.write_blocked_since;
        match (&result, blocked.get()) {
            (Poll::Pending, None) => blocked.set(Some(self.activity.clock.mono())),
            (Poll::Ready(_), Some(_)) => blocked.set(None),
            _ => {}
        }
        result
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if this.again.is_empty() {
            let result = Pin::new(&mut this.io).poll_read(cx, buf);
            if result.is_pending() {
                return result;
            }
            if let Poll::Ready(Err(_)) = &result {
                return result;
            }
        } else {
            let n = this.again.len().min(buf.remaining());
            buf.put_slice(&this.again[..n]);
            this.again.drain(..n);
            if this.again.is_empty() {
                this.again = Vec::new();
                // With what came behind it, in the same read: after a short one hyper doubles its buffer.
                if let Poll::Ready(Err(e)) = Pin::new(&mut this.io).poll_read(cx, buf) {
                    return Poll::Ready(Err(e));
                }
            }
        }
        let activity = &this.activity;
        let read = buf.filled().get(before..).unwrap_or_default();
        if read.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if activity.in_flight.get() == 0 && activity.head_since.get().is_none() {
            activity.head_since.set(Some(activity.clock.mono()));
        }
        if let Some(framing) = &mut *activity.framing.borrow_mut() {
            framing.see(read);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.noted(result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.noted(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
