//! A client connection with its stopwatch: who waits for whom since when, so that slow clients can be cut.

use std::cell::{Cell, RefCell};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::clock::Clock;
use crate::types::time::Mono;

/// What a client connection is doing.
#[derive(Debug)]
pub(crate) struct Activity {
    clock: Clock,
    in_flight: Cell<u32>,
    idle_since: Cell<Mono>,
    framing: RefCell<HeadFraming>,
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
    pub(crate) fn new(clock: Clock) -> Rc<Self> {
        let now = clock.mono();
        Rc::new(Self {
            clock,
            in_flight: Cell::new(0),
            idle_since: Cell::new(now),
            framing: RefCell::default(),
            head_since: Cell::new(None),
            write_blocked_since: Cell::new(None),
        })
    }

    pub(crate) fn begin(self: &Rc<Self>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        self.head_since.set(None);
        InFlight(Rc::clone(self))
    }

    /// Whether the head that was read last gives its body's length in two ways, of which only one can be true
    /// (RFC 9112 §6.3): what other software would make of it cannot be known.
    pub(crate) fn framing_conflicts(&self) -> bool {
        self.framing.borrow().conflicts()
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

/// Looks at the lines of a request head for the two headers that say how long its body is.
///
/// hyper obeys `Transfer-Encoding` and drops `Content-Length` before anybody else sees it, which is safe for us and
/// hides that the client may have meant something else.
#[derive(Debug, Default)]
struct HeadFraming {
    /// The beginning of the line that is being read; a name may come in pieces.
    line: LineStart,
    over: bool,
    length: bool,
    chunked: bool,
}

/// Long enough for the longer of the two names and its colon.
const NAME: usize = "transfer-encoding:".len();

#[derive(Debug, Default)]
struct LineStart {
    bytes: [u8; NAME],
    len: usize,
}

impl HeadFraming {
    fn conflicts(&self) -> bool {
        self.length && self.chunked
    }

    fn see(&mut self, mut read: &[u8]) {
        while !self.over && !read.is_empty() {
            let end = memchr::memchr(b'\n', read);
            let (part, rest) = match end {
                Some(end) => (
                    read.get(..end).unwrap_or_default(),
                    read.get(end + 1..).unwrap_or_default(),
                ),
                None => (read, &[][..]),
            };
            let line = &mut self.line;
            if line.len == 0 && end.is_some() {
                self.line_is(part);
            } else {
                let room = NAME - line.len;
                let taken = part.get(..room.min(part.len())).unwrap_or_default();
                if let Some(into) = line.bytes.get_mut(line.len..line.len + taken.len()) {
                    into.copy_from_slice(taken);
                }
                line.len += taken.len();
                if end.is_some() {
                    let line = std::mem::take(&mut self.line);
                    self.line_is(line.bytes.get(..line.len).unwrap_or_default());
                }
            }
            read = rest;
        }
    }

    fn line_is(&mut self, line: &[u8]) {
        let named = |name: &str| {
            line.get(..name.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        };
        match line.first() {
            None => self.over = true,
            Some(b'\r') if line.len() == 1 => self.over = true,
            Some(b'c' | b'C') => self.length |= named("content-length:"),
            Some(b't' | b'T') => self.chunked |= named("transfer-encoding:"),
            Some(_) => {}
        }
    }
}

impl InFlight {
    /// Another mark on the same connection.
    pub(crate) fn again(&self) -> Self {
        self.0.begin()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.0;
        activity.in_flight.set(activity.in_flight.get().saturating_sub(1));
        if activity.in_flight.get() == 0 {
            activity.idle_since.set(activity.clock.mono());
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
        if !read.is_empty() && activity.in_flight.get() == 0 {
            if activity.head_since.get().is_none() {
                activity.head_since.set(Some(activity.clock.mono()));
                activity.framing.replace(HeadFraming::default());
            }
            activity.framing.borrow_mut().see(read);
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

#[cfg(test)]
mod tests {
    use super::HeadFraming;

    #[test]
    fn two_lengths_are_seen_however_the_head_is_split() {
        for (head, conflict) in [
            ("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n", false),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", false),
            (
                "POST / HTTP/1.1\r\ncontent-LENGTH: 3\r\ntransfer-encoding: chunked\r\n\r\n",
                true,
            ),
            (
                "POST / HTTP/1.1\nTransfer-Encoding: chunked\nA: b\nContent-Length: 3\n\n",
                true,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\ntransfer-encoding: chunked\r\n",
                false,
            ),
            (
                "POST / HTTP/1.1\r\nX-Content-Length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
                false,
            ),
        ] {
            for size in 1..=head.len() {
                let mut framing = HeadFraming::default();
                head.as_bytes().chunks(size).for_each(|piece| framing.see(piece));
                assert_eq!(framing.conflicts(), conflict, "{head:?} in pieces of {size}");
            }
        }
    }
}
