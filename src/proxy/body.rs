//! Request bodies on their way to an upstream: whole, or passed on as they come, and bounded either way.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep, timeout};

use crate::clock::Clock;
use crate::types::time::Mono;

/// A request body.
pub(crate) enum RequestBody {
    /// Known in full; `None` once it was handed on.
    Whole(Option<Bytes>),
    /// Known in full, with trailers behind it.
    Trailed(Box<Trailed>),
    /// Passed on as it comes, up to a bound; rare, and large.
    Passing(Box<Passing>),
}

/// A whole body and its trailers; each is taken out when it is handed on.
pub(crate) struct Trailed {
    bytes: Option<Bytes>,
    trailers: Option<HeaderMap>,
}

/// A body that is passed on as it comes.
pub(crate) struct Passing {
    inner: Incoming,
    left: u64,
    seen: Rc<Seen>,
    clock: Clock,
    /// How long the client may pause, and since when it does.
    idle: Duration,
    pause: Option<Pin<Box<Sleep>>>,
}

/// What became of a body that was passed on.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) too_large: Cell<bool>,
    pub(crate) too_slow: Cell<bool>,
    pub(crate) client_failed: Cell<bool>,
    progress: Cell<Progress>,
    /// Who wants to know when the body is complete.
    waiting: RefCell<Option<Waker>>,
}

/// How far a body that is passed on has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A part was handed on then; the next is waited for by nobody yet.
    Moved(Mono),
    /// The client pauses since then, and may for so long.
    Paused(Mono, Duration),
    /// All of it was handed on by then.
    Complete(Mono),
}

impl Default for Progress {
    fn default() -> Self {
        Self::Moved(Mono::ZERO)
    }
}

impl Seen {
    /// How far the body has come.
    pub(crate) fn progress(&self) -> Progress {
        self.progress.get()
    }

    /// Wakes `cx` when the body is complete.
    pub(crate) fn wake_at_end(&self, cx: &Context<'_>) {
        if matches!(self.progress.get(), Progress::Complete(_)) {
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        if waiting.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            *waiting = Some(cx.waker().clone());
        }
    }

    fn complete(&self, now: Mono) {
        if !matches!(self.progress.get(), Progress::Complete(_)) {
            self.progress.set(Progress::Complete(now));
            if let Some(waker) = self.waiting.take() {
                waker.wake();
            }
        }
    }
}

/// Why a request body could not be read whole.
#[derive(Debug)]
pub(crate) enum ReadError {
    TooLarge,
    TooSlow,
    Broken,
}

/// Why a passed-on body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PassError {
    #[error("request body is larger than allowed")]
    TooLarge,
    #[error("client paused for too long")]
    TooSlow,
    #[error("client broke off its request body: {0}")]
    Client(#[source] hyper::Error),
}

impl RequestBody {
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }

    /// A whole body with whatever trailers it came with.
    pub(crate) fn trailed(bytes: Bytes, trailers: Option<HeaderMap>) -> Self {
        match trailers {
            None => Self::whole(bytes),
            trailers => Self::Trailed(Box::new(Trailed {
                bytes: (!bytes.is_empty()).then_some(bytes),
                trailers,
            })),
        }
    }

    /// A whole body of other bytes, with the trailers of this one.
    pub(crate) fn holding(&self, bytes: Bytes) -> Self {
        match self {
            Self::Trailed(trailed) => Self::trailed(bytes, trailed.trailers.clone()),
            Self::Whole(_) | Self::Passing(_) => Self::whole(bytes),
        }
    }

    /// How long it is, where a `Content-Length` may say so: trailers come only after chunks (RFC 9112 §7.1.2).
    pub(crate) fn length(&self) -> Option<usize> {
        match self {
            Self::Whole(bytes) => Some(bytes.as_ref().map_or(0, Bytes::len)),
            Self::Trailed(_) | Self::Passing(_) => None,
        }
    }

    /// The trailers that are known to follow.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Trailed(trailed) => trailed.trailers.as_ref(),
            Self::Whole(_) | Self::Passing(_) => None,
        }
    }

    pub(crate) fn passing(inner: Incoming, max: u64, idle: Duration, clock: Clock) -> (Self, Rc<Seen>) {
        let seen = Rc::new(Seen::default());
        let passing = Passing {
            inner,
            left: max,
            seen: Rc::clone(&seen),
            clock,
            idle,
            pause: None,
        };
        (Self::Passing(Box::new(passing)), seen)
    }
}

/// Reads a body of at most `max` bytes and its trailers; a body that came in one piece is not copied.
pub(crate) async fn read_whole(
    body: &mut Incoming,
    max: u64,
    idle: Duration,
) -> Result<(Bytes, Option<HeaderMap>), ReadError> {
    if body.size_hint().lower() > max {
        return Err(ReadError::TooLarge);
    }
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    let mut length: u64 = 0;
    let mut trailers = None;
    while !body.is_end_stream() {
        let frame = match timeout(idle, body.frame()).await {
            Err(_) => return Err(ReadError::TooSlow),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(ReadError::Broken),
            Ok(Some(Ok(frame))) => frame,
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok();
                continue;
            }
        };
        length += data.len() as u64;
        if length > max {
            return Err(ReadError::TooLarge);
        }
        match &mut rest {
            Some(rest) => rest.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let expected = usize::try_from(body.size_hint().lower())
                    .unwrap_or(0)
                    .min(8 << 20);
                let mut all = BytesMut::with_capacity(first.len() + data.len() + expected);
                all.extend_from_slice(&first);
                all.extend_from_slice(&data);
                rest = Some(all);
            }
        }
    }
    Ok((rest.map_or(first, BytesMut::freeze), trailers))
}

impl Passing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, PassError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let idle = self.idle;
            if self.pause.is_none() {
                self.seen.progress.set(Progress::Paused(self.clock.mono(), idle));
            }
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(idle)));
            ready!(pause.as_mut().poll(cx));
            self.seen.too_slow.set(true);
            return Poll::Ready(Some(Err(PassError::TooSlow)));
        };
        self.pause = None;
        let now = self.clock.mono();
        if frame.is_none() || self.inner.is_end_stream() {
            self.seen.complete(now);
        } else {
            self.seen.progress.set(Progress::Moved(now));
        }
        Poll::Ready(match frame {
            None => None,
            Some(Err(e)) => {
                self.seen.client_failed.set(true);
                Some(Err(PassError::Client(e)))
            }
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |d| d.len() as u64);
                match self.left.checked_sub(length) {
                    Some(left) => {
                        self.left = left;
                        Some(Ok(frame))
                    }
                    None => {
                        self.seen.too_large.set(true);
                        Some(Err(PassError::TooLarge))
                    }
                }
            }
        })
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = PassError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PassError>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Trailed(trailed) => Poll::Ready(match trailed.bytes.take() {
                Some(bytes) => Some(Ok(Frame::data(bytes))),
                None => trailed.trailers.take().map(|t| Ok(Frame::trailers(t))),
            }),
            Self::Passing(passing) => passing.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Trailed(trailed) => trailed.bytes.is_none() && trailed.trailers.is_none(),
            Self::Passing(passing) => passing.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            // An exact size would be sent as the length, and the trailers left out.
            Self::Trailed(_) => SizeHint::default(),
            Self::Passing(passing) => passing.inner.size_hint(),
        }
    }
}
