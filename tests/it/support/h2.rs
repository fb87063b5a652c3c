//! HTTP/2 by hyper: the upstream's side of the script, and a client.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

use super::http1::{Headers, Message};
use super::soon;
use super::upstream::{Piece, Record, Reply, Script, Seen};

/// Serves HTTP/2 on one connection.
pub(super) async fn serve<S>(stream: S, script: Script, record: Arc<Record>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (script, record) = (Arc::clone(&script), Arc::clone(&record));
        async move {
            let (parts, body) = request.into_parts();
            let (body, trailers) = read(body).await;
            let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
            let mut headers = wire_headers(&parts.headers);
            if let Some(authority) = parts.uri.authority() {
                headers.push((":authority".to_owned(), authority.as_str().as_bytes().to_vec()));
            }
            let seen = Seen {
                message: Message {
                    start: format!("{} {target} HTTP/2", parts.method),
                    headers,
                    body,
                    trailers,
                    complete: true,
                    ..Message::default()
                },
                h2: true,
            };
            let reply = script(&seen);
            record.saw(seen);
            for piece in reply.before.clone() {
                wait(piece).await;
            }
            Ok::<_, Infallible>(response(reply, record))
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

fn response(reply: Reply, record: Arc<Record>) -> Response<Scripted> {
    let mut response = Response::new(());
    *response.status_mut() = reply.status.try_into().expect("a status");
    for (name, value) in &reply.headers {
        let name: HeaderName = name.parse().expect("a header name");
        response
            .headers_mut()
            .append(name, HeaderValue::from_bytes(value).expect("a header value"));
    }
    let mut trailers = HeaderMap::new();
    for (name, value) in &reply.trailers {
        let name: HeaderName = name.parse().expect("a header name");
        trailers.append(name, value.parse().expect("a header value"));
    }
    response.map(|()| Scripted {
        pieces: reply.pieces.into(),
        waiting: None,
        trailers: (!trailers.is_empty()).then_some(trailers),
        record,
        ended: false,
    })
}

/// A body that follows a script.
struct Scripted {
    pieces: VecDeque<Piece>,
    waiting: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    trailers: Option<HeaderMap>,
    record: Arc<Record>,
    ended: bool,
}

async fn wait(piece: Piece) {
    match piece {
        Piece::Wait(time) => tokio::time::sleep(time).await,
        Piece::Gate(gate) => {
            if let Ok(permit) = gate.acquire().await {
                permit.forget();
            }
        }
        Piece::Hang => std::future::pending::<()>().await,
        Piece::Bytes(_) | Piece::Atoms(_) | Piece::Close => {}
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                std::task::ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
            }
            match self.pieces.pop_front() {
                Some(Piece::Bytes(bytes)) => return Poll::Ready(Some(Ok(Frame::data(Bytes::from(bytes))))),
                Some(Piece::Atoms(mut bytes)) => {
                    if bytes.is_empty() {
                        continue;
                    }
                    let rest = bytes.split_off(1);
                    self.pieces.push_front(Piece::Atoms(rest));
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from(bytes)))));
                }
                Some(Piece::Close) => return Poll::Ready(Some(Err(std::io::Error::other("scripted end")))),
                Some(piece) => self.waiting = Some(Box::pin(wait(piece))),
                None => {
                    self.ended = true;
                    return Poll::Ready(self.trailers.take().map(|t| Ok(Frame::trailers(t))));
                }
            }
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        if !self.ended && !self.pieces.is_empty() {
            self.record.client_left();
        }
    }
}

fn wire_headers(headers: &HeaderMap) -> Headers {
    let pairs = headers.iter();
    pairs
        .map(|(n, v)| (n.as_str().to_owned(), v.as_bytes().to_vec()))
        .collect()
}

/// Reads a body to its end; test bodies are small.
async fn read(mut body: Incoming) -> (Vec<u8>, Headers) {
    let (mut bytes, mut trailers) = (Vec::new(), Headers::new());
    while let Some(Ok(frame)) = body.frame().await {
        match frame.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => {
                if let Ok(found) = frame.into_trailers() {
                    trailers = wire_headers(&found);
                }
            }
        }
    }
    (bytes, trailers)
}

/// An HTTP/2 client on one connection.
#[derive(Clone)]
pub(crate) struct H2Client {
    send: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    scheme: &'static str,
}

impl H2Client {
    /// Speaks HTTP/2 over `stream` at once.
    pub(crate) async fn over<S>(stream: S, scheme: &'static str) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (send, connection) = soon("an HTTP/2 handshake", handshake)
            .await
            .expect("HTTP/2 is spoken");
        tokio::spawn(async move {
            connection.await.ok();
        });
        Self { send, scheme }
    }

    /// Sends a request and gives the answer as it comes.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}://fusebox.test{target}", self.scheme));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).expect("a request");
        soon("the head of an answer", self.send.send_request(request))
            .await
            .expect("an answer")
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn ask(
        &mut self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Message {
        let response = self.send(method, target, headers, body).await;
        let (parts, body) = response.into_parts();
        let (body, trailers) = soon("the body of an answer", read(body)).await;
        Message {
            start: format!("HTTP/2 {}", parts.status.as_u16()),
            headers: wire_headers(&parts.headers),
            body,
            trailers,
            complete: true,
            ..Message::default()
        }
    }
}
