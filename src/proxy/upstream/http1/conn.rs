//! One HTTP/1.1 connection to an upstream and the exchange on it, driven by whoever waits for the answer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::Http1Error;
use super::body::Decoder;
use super::head::{self, Head};
use super::known::Known;
use super::spare::{Spare, make_room};
use super::write::{self, Encoding};
use crate::proxy::body::RequestBody;

/// Content up to this size is copied out of the buffer it was read into, so that a client that does not take it
/// holds back little memory.
const COPIED: usize = 1024;

/// The first write is of no more than this: what fits in one TLS record. When it fails, no part of the request can
/// have been understood by the upstream.
const ONE_RECORD: usize = 16_000;

/// One connection.
///
/// Dropping it at any moment closes it; that is how an exchange is broken off. It holds no buffer while it waits.
pub(crate) struct Conn<T> {
    io: T,
    spare: Rc<Spare>,
    known: Rc<RefCell<Known>>,
    /// Read and not used yet; lent by `spare` while something is at hand.
    read: BytesMut,
    /// The request, as long as it is not written to its end.
    out: Option<Box<Out>>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing goes on, and another exchange may begin.
    Idle,
    /// An exchange goes on; whether the connection may be kept after it.
    Busy { keep: bool },
    /// Of no more use.
    Spent,
}

/// What is being written.
struct Out {
    /// Written first: the head, or what frames a chunk.
    front: Vec<u8>,
    written: usize,
    /// Content behind it.
    data: Bytes,
    /// Behind that.
    back: &'static [u8],
    /// Where more comes from.
    body: Option<RequestBody>,
    encoding: Encoding,
}

/// Why there is no answer, and the request when nothing of it was sent.
pub(crate) struct Failure {
    pub(crate) error: Http1Error,
    pub(crate) unsent: Option<Box<Request<RequestBody>>>,
}

impl From<Http1Error> for Failure {
    fn from(error: Http1Error) -> Self {
        Self { error, unsent: None }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Conn<T> {
    pub(crate) fn new(io: T, spare: Rc<Spare>, known: Rc<RefCell<Known>>) -> Self {
        Self {
            io,
            spare,
            known,
            read: BytesMut::new(),
            out: None,
            state: State::Idle,
        }
    }

    /// Whether another exchange may begin, as far as is known without a look at the socket.
    pub(crate) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Whether another exchange may begin; looks at the socket, so that a connection that the upstream closed, or on
    /// which it said something unasked, is seen.
    pub(crate) async fn is_alive(&mut self) -> bool {
        self.is_idle() && poll_fn(|cx| Poll::Ready(self.fill(cx).is_pending())).await
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Decoder>, Failure> {
        if !self.is_idle() {
            return Err(Failure {
                error: Http1Error::NoAnswer,
                unsent: Some(Box::new(request)),
            });
        }
        self.state = State::Busy { keep: false };
        let method = request.method().clone();
        self.begin(request).await?;
        let mut looked = 0;
        let head = poll_fn(|cx| self.poll_head(&method, &mut looked, cx)).await?;
        if let State::Busy { keep } = &mut self.state {
            *keep = head.keep;
        }
        if head.body.is_ended() {
            self.end();
        }
        let mut answer = Response::new(head.body);
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
        Ok(answer)
    }

    /// Writes the beginning of a request. Until a byte of it is written the request can still be given back.
    async fn begin(&mut self, request: Request<RequestBody>) -> Result<(), Failure> {
        let (parts, body) = request.into_parts();
        let mut front = self.spare.take_write();
        let encoding = write::head(&parts, &body, &mut front);
        let whole = match &body {
            RequestBody::Whole(bytes) => bytes.clone().unwrap_or_default(),
            _ => Bytes::new(),
        };
        let small = whole.len() <= write::SMALL;
        if small {
            front.extend_from_slice(&whole);
        }
        let one_record = front.get(..front.len().min(ONE_RECORD)).unwrap_or_default();
        let first = poll_fn(|cx| match Pin::new(&mut self.io).poll_write(cx, one_record) {
            // The upstream may be done with us before it has read anything.
            Poll::Pending if self.read.is_empty() => match self.fill(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(n)) if n > 0 => Poll::Ready(Ok(0)),
                Poll::Ready(_) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            },
            other => other,
        })
        .await;
        let written = match first {
            Ok(written) => written,
            Err(e) => {
                self.spare.give_write(front);
                return Err(Failure {
                    error: Http1Error::Io(e),
                    unsent: Some(Box::new(Request::from_parts(parts, body))),
                });
            }
        };
        let body = match body {
            RequestBody::Whole(_) => None,
            streamed => Some(streamed),
        };
        let data = if small { Bytes::new() } else { whole };
        if written == front.len() && data.is_empty() && body.is_none() {
            let flushed = poll_fn(|cx| Poll::Ready(Pin::new(&mut self.io).poll_flush(cx))).await;
            if flushed.is_ready() {
                // The usual case: all of it is on its way. Had it failed, the read would say so.
                self.spare.give_write(front);
                return Ok(());
            }
        }
        self.out = Some(Box::new(Out {
            front,
            written,
            data,
            back: &[],
            body,
            encoding,
        }));
        Ok(())
    }

    /// `looked` is how much of what is at hand was seen to be no complete head.
    fn poll_head(
        &mut self,
        method: &Method,
        looked: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, Http1Error>> {
        self.write_on(cx)?;
        loop {
            let new = self.read.get(*looked..).unwrap_or_default();
            // A head that comes byte by byte is gone over once for each of its lines, not for each byte.
            if *looked == 0 || self.read.len() >= head::MAX_HEAD || memchr::memchr(b'\n', new).is_some() {
                let head = head::take(&mut self.read, method, &mut self.known.borrow_mut())?;
                if let Some(head) = head {
                    self.rest();
                    return Poll::Ready(Ok(head));
                }
            }
            *looked = self.read.len();
            match ready!(self.fill(cx)) {
                Ok(0) => return Poll::Ready(Err(Http1Error::NoAnswer)),
                Ok(_) => {}
                Err(e) => return Poll::Ready(Err(Http1Error::Io(e))),
            }
        }
    }

    /// The next frame of the answer.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut Decoder,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        if body.is_ended() {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_content(body, cx));
        if let Err(e) = frame {
            self.spend();
            return Poll::Ready(Some(Err(e)));
        }
        if body.is_ended() {
            self.end();
        }
        Poll::Ready(frame.transpose())
    }

    fn poll_content(
        &mut self,
        body: &mut Decoder,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Frame<Bytes>>, Http1Error>> {
        self.write_on(cx)?;
        loop {
            if !self.read.is_empty() {
                let found = body.decode(&mut self.read)?;
                if let Some(trailers) = found.trailers {
                    self.read.advance(found.used);
                    self.rest();
                    return Poll::Ready(Ok(Some(Frame::trailers(trailers))));
                }
                let (start, end) = (found.data.start, found.data.end);
                if start < end {
                    let data = self.content(start, end, found.used);
                    self.rest();
                    return Poll::Ready(Ok(Some(Frame::data(data))));
                }
                self.read.advance(found.used);
                if body.is_ended() {
                    self.rest();
                    return Poll::Ready(Ok(None));
                }
            }
            match ready!(self.fill(cx)) {
                Ok(0) => {
                    body.closed()?;
                    return Poll::Ready(Ok(None));
                }
                Ok(_) => {}
                Err(e) => return Poll::Ready(Err(Http1Error::Io(e))),
            }
        }
    }

    /// Takes the content at `start..end` out of what was read, of which `used` bytes are done with.
    fn content(&mut self, start: usize, end: usize, used: usize) -> Bytes {
        let len = end - start;
        if len <= COPIED {
            let data = Bytes::copy_from_slice(self.read.get(start..end).unwrap_or_default());
            self.read.advance(used);
            data
        } else {
            self.read.advance(start);
            let data = self.read.split_to(len).freeze();
            self.read.advance(used - end);
            data
        }
    }

    /// Reads once, behind what is at hand.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.read.is_empty() {
            self.read = self.spare.take_read();
        } else if self.read.len() == self.read.capacity() {
            // A half that was kept while we waited.
            let mut block = self.spare.take_read();
            block.extend_from_slice(&self.read);
            self.read = block;
        } else {
            make_room(&mut self.read);
        }
        let got = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        if got.is_pending() {
            if self.read.is_empty() {
                self.rest();
            } else {
                // What waits for its other half keeps no more memory than it needs.
                let half = BytesMut::from(&*self.read);
                self.spare.give_read(std::mem::replace(&mut self.read, half));
            }
        }
        got
    }

    /// Gives the buffer back when there is nothing in it.
    fn rest(&mut self) {
        if self.read.is_empty() {
            self.spare.give_read(std::mem::take(&mut self.read));
        }
    }

    /// Writes what is left of the request, as far as it goes. An upstream that takes no more of it may still answer,
    /// so that is no failure; a request that breaks off on our side is.
    fn write_on(&mut self, cx: &mut Context<'_>) -> Result<(), Http1Error> {
        let Some(out) = &mut self.out else { return Ok(()) };
        match out.poll(&mut self.io, cx) {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => {
                if let Some(out) = self.out.take() {
                    self.spare.give_write(out.front);
                }
            }
            Poll::Ready(Err(Http1Error::Io(_))) => {
                self.out = None;
                self.state = State::Spent;
            }
            Poll::Ready(Err(e)) => {
                self.spend();
                return Err(e);
            }
        }
        Ok(())
    }

    /// The answer was read to its end.
    fn end(&mut self) {
        self.state = match self.state {
            // More than the answer, or an answer before the request was complete: nobody knows what comes next.
            State::Busy { keep: true } if self.read.is_empty() && self.out.is_none() => State::Idle,
            _ => State::Spent,
        };
    }

    fn spend(&mut self) {
        self.state = State::Spent;
        self.out = None;
        self.read = BytesMut::new();
    }
}

impl Out {
    fn poll<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Http1Error>> {
        loop {
            while !self.is_written() {
                ready!(self.poll_write(io, cx)).map_err(Http1Error::Io)?;
            }
            let Some(body) = &mut self.body else {
                return Pin::new(io).poll_flush(cx).map_err(Http1Error::Io);
            };
            match Pin::new(body).poll_frame(cx) {
                Poll::Pending => {
                    // What waits in a TLS session leaves before we wait.
                    ready!(Pin::new(io).poll_flush(cx)).map_err(Http1Error::Io)?;
                    return Poll::Pending;
                }
                Poll::Ready(None) => self.last(&http::HeaderMap::new())?,
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(Http1Error::Request(e))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.more(data)?,
                    Err(frame) => self.last(&frame.into_trailers().unwrap_or_default())?,
                },
            }
        }
    }

    fn is_written(&self) -> bool {
        self.written >= self.front.len() && self.data.is_empty() && self.back.is_empty()
    }

    fn poll_write<T: AsyncWrite + Unpin>(
        &mut self,
        io: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let front = self.front.get(self.written..).unwrap_or_default();
        let slices = [
            IoSlice::new(front),
            IoSlice::new(&self.data),
            IoSlice::new(self.back),
        ];
        let skip = usize::from(front.is_empty());
        let slices = slices.get(skip..).unwrap_or_default();
        let mut n = ready!(Pin::new(io).poll_write_vectored(cx, slices))?;
        if n == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let first = n.min(front.len());
        self.written += first;
        n -= first;
        let second = n.min(self.data.len());
        self.data.advance(second);
        self.back = self.back.get(n - second..).unwrap_or_default();
        Poll::Ready(Ok(()))
    }

    fn more(&mut self, data: Bytes) -> Result<(), Http1Error> {
        if data.is_empty() {
            return Ok(());
        }
        self.front.clear();
        self.written = 0;
        match &mut self.encoding {
            Encoding::Length(left) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or(Http1Error::RequestLength)?;
            }
            Encoding::Chunked => {
                write::chunk_size(data.len(), &mut self.front);
                self.back = b"\r\n";
            }
        }
        self.data = data;
        Ok(())
    }

    fn last(&mut self, trailers: &http::HeaderMap) -> Result<(), Http1Error> {
        self.body = None;
        self.front.clear();
        self.written = 0;
        match self.encoding {
            Encoding::Length(0) => Ok(()),
            Encoding::Length(_) => Err(Http1Error::RequestLength),
            Encoding::Chunked => {
                write::last_chunk(trailers, &mut self.front);
                Ok(())
            }
        }
    }
}
