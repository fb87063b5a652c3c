//! Request bodies on their way to an upstream: whole, or passed on as they come, and bounded either way.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Sleep, sleep, timeout};

use std::time::Duration;

/// A request body.
pub(crate) enum RequestBody {
    /// Known in full; `None` once it was handed on.
    Whole(Option<Bytes>),
    /// Passed on as it comes, up to a bound; rare, and large.
    Passing(Box<Passing>),
}

/// A body that is passed on as it comes.
pub(crate) struct Passing {
    inner: Incoming,
    left: u64,
    seen: Rc<Seen>,
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

    pub(crate) fn passing(inner: Incoming, max: u64, idle: Duration) -> (Self, Rc<Seen>) {
        let seen = Rc::new(Seen::default());
        let passing = Passing {
            inner,
            left: max,
            seen: Rc::clone(&seen),
            idle,
            pause: None,
        };
        (Self::Passing(Box::new(passing)), seen)
    }
}

/// Reads a body of at most `max` bytes; a body that came in one piece is not copied.
pub(crate) async fn read_whole(body: &mut Incoming, max: u64, idle: Duration) -> Result<Bytes, ReadError> {
    if body.size_hint().lower() > max {
        return Err(ReadError::TooLarge);
    }
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    let mut length: u64 = 0;
    while !body.is_end_stream() {
        let frame = match timeout(idle, body.frame()).await {
            Err(_) => return Err(ReadError::TooSlow),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(ReadError::Broken),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
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
    Ok(rest.map_or(first, BytesMut::freeze))
}

impl Passing {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, PassError>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) else {
            let idle = self.idle;
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(idle)));
            ready!(pause.as_mut().poll(cx));
            self.seen.too_slow.set(true);
            return Poll::Ready(Some(Err(PassError::TooSlow)));
        };
        self.pause = None;
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
            Self::Passing(passing) => passing.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_none(),
            Self::Passing(passing) => passing.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Passing(passing) => passing.inner.size_hint(),
        }
    }
}
