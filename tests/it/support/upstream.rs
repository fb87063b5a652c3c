//! A scripted upstream: records every request as it came over the wire and answers as the script says.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use super::chance::{Cut, cut};
use super::eventually;
use super::http1::{Message, Reader, Side};

/// A request as the upstream saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The message.
    pub(crate) message: Message,
    /// It came over HTTP/2.
    pub(crate) h2: bool,
}

impl Seen {
    /// The first value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.message.header(name)
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        self.message.text()
    }
}

/// One step of an answer's body.
#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// Sends bytes (one chunk where the answer is chunked).
    Bytes(Vec<u8>),
    /// Sends each byte as a chunk of its own, written together.
    Atoms(Vec<u8>),
    /// Waits.
    Wait(Duration),
    /// Waits until the test opens the gate by one.
    Gate(Arc<Semaphore>),
    /// Says nothing for ever; ends when the other side leaves.
    Hang,
    /// Closes the connection as it is, inside the body where that is framed.
    Close,
}

/// How the length of an answer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// By `content-length`.
    Length,
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    Close,
    /// Not at all: no body.
    Nothing,
}

/// An answer to be given.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// Status.
    pub(crate) status: u16,
    /// Headers, without those that frame the body.
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    /// How the length is told.
    pub(crate) framing: Framing,
    /// The body, step by step.
    pub(crate) pieces: Vec<Piece>,
    /// Trailers, for chunked answers.
    pub(crate) trailers: Vec<(String, String)>,
    /// Steps before the head is sent.
    pub(crate) before: Vec<Piece>,
}

impl Reply {
    /// An answer with a length.
    pub(crate) fn new(status: u16, content_type: &str, body: impl AsRef<[u8]>) -> Self {
        Self {
            status,
            headers: vec![("content-type".to_owned(), content_type.as_bytes().to_vec())],
            framing: Framing::Length,
            pieces: vec![Piece::Bytes(body.as_ref().to_vec())],
            trailers: Vec::new(),
            before: Vec::new(),
        }
    }

    /// A JSON answer.
    pub(crate) fn json(body: impl AsRef<[u8]>) -> Self {
        Self::new(200, "application/json", body)
    }

    /// A chunked stream of server-sent events, one chunk each.
    pub(crate) fn events<B: AsRef<[u8]>>(events: impl IntoIterator<Item = B>) -> Self {
        let pieces = events
            .into_iter()
            .map(|e| Piece::Bytes(e.as_ref().to_vec()))
            .collect();
        Self::new(200, "text/event-stream", "").chunked().pieces(pieces)
    }

    /// With another status.
    pub(crate) fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// With one more header.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// Chunked.
    pub(crate) fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// Framed in another way.
    pub(crate) fn framed(mut self, framing: Framing) -> Self {
        self.framing = framing;
        self
    }

    /// With these steps as the body.
    pub(crate) fn pieces(mut self, pieces: Vec<Piece>) -> Self {
        self.pieces = pieces;
        self
    }

    /// With a step before the head.
    pub(crate) fn after(mut self, piece: Piece) -> Self {
        self.before.push(piece);
        self
    }

    /// With one more step.
    pub(crate) fn then(mut self, piece: Piece) -> Self {
        self.pieces.push(piece);
        self
    }

    /// With the body cut in another way.
    pub(crate) fn cut(mut self, how: Cut) -> Self {
        let body = self.length_or_whole();
        self.pieces = match how {
            Cut::EveryByte => vec![Piece::Atoms(body)],
            how => cut(&body, how).into_iter().map(Piece::Bytes).collect(),
        };
        self
    }

    fn length_or_whole(&self) -> Vec<u8> {
        let mut body = Vec::new();
        for piece in &self.pieces {
            if let Piece::Bytes(b) | Piece::Atoms(b) = piece {
                body.extend_from_slice(b);
            }
        }
        body
    }

    fn head(&self, to_head: bool) -> Vec<u8> {
        let mut out = format!("HTTP/1.1 {} Whatever\r\n", self.status).into_bytes();
        for (name, value) in &self.headers {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        match self.framing {
            Framing::Length => {
                let length = self.length_or_whole().len();
                out.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
            }
            Framing::Chunked if !to_head => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Framing::Close => out.extend_from_slice(b"connection: close\r\n"),
            Framing::Chunked | Framing::Nothing => {}
        }
        out.extend_from_slice(b"\r\n");
        out
    }
}

/// Gives the answer to a request.
pub(crate) type Script = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// What is kept of what happened.
#[derive(Default)]
pub(super) struct Record {
    seen: Mutex<Vec<Seen>>,
    /// Exchanges whose client left before the answer was complete.
    left: AtomicUsize,
    connections: AtomicUsize,
}

impl Record {
    pub(super) fn saw(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
    }

    pub(super) fn client_left(&self) {
        self.left.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }
}

/// A running upstream. It stops with the runtime of the test.
#[derive(Clone)]
pub(crate) struct Upstream {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// `http` or `https`.
    scheme: &'static str,
    pub(super) record: Arc<Record>,
}

impl Upstream {
    /// Starts one that speaks HTTP/1.1.
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_with(Arc::new(script), None, false).await
    }

    /// Starts one; `tls` with its ALPN names decides what is spoken, else `h2` does.
    pub(crate) async fn start_with(script: Script, tls: Option<Arc<rustls::ServerConfig>>, h2: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let record = Arc::new(Record::default());
        let upstream = Self {
            address,
            scheme: if tls.is_some() { "https" } else { "http" },
            record: Arc::clone(&record),
        };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).ok();
                let (script, record, tls) = (Arc::clone(&script), Arc::clone(&record), tls.clone());
                tokio::spawn(async move {
                    record.connected();
                    let Some(tls) = tls else {
                        if h2 {
                            return super::h2::serve(stream, script, record).await;
                        }
                        return serve(stream, script, record).await;
                    };
                    let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else {
                        return;
                    };
                    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                        super::h2::serve(stream, script, record).await;
                    } else {
                        serve(stream, script, record).await;
                    }
                });
            }
        });
        upstream
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        match self.scheme {
            "https" => format!("https://localhost:{}", self.address.port()),
            _ => format!("http://{}", self.address),
        }
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.record.seen.lock().unwrap().clone()
    }

    /// How many requests so far.
    pub(crate) fn count(&self) -> usize {
        self.record.seen.lock().unwrap().len()
    }

    /// How many connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.record.connections.load(Ordering::SeqCst)
    }

    /// How many exchanges were left by their client before the answer was complete.
    pub(crate) fn left(&self) -> usize {
        self.record.left.load(Ordering::SeqCst)
    }

    /// The only request, once it is there.
    pub(crate) async fn the_one(&self) -> Seen {
        let seen = eventually("one request at the upstream", async || self.seen().pop()).await;
        assert_eq!(
            self.count(),
            1,
            "more than one request at the upstream: {:?}",
            self.seen()
        );
        seen
    }
}

/// Serves HTTP/1.1 on one connection.
async fn serve<S>(stream: S, script: Script, record: Arc<Record>)
where
    S: AsyncRead + AsyncWrite,
{
    let (read, mut write) = tokio::io::split(stream);
    let mut reader = Reader::new(read);
    loop {
        let Ok(Some(mut message)) = reader.head().await else {
            return;
        };
        if message.header("expect").is_some() {
            write.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.ok();
        }
        if reader.body(&mut message, Side::Request).await.is_err() || !message.complete {
            record.client_left();
            return;
        }
        let to_head = message.method() == "HEAD";
        let seen = Seen { message, h2: false };
        let reply = script(&seen);
        record.saw(seen);
        let close = reply.framing == Framing::Close;
        let mut steps: VecDeque<Step> = reply.before.iter().cloned().map(Step::Piece).collect();
        steps.push_back(Step::Raw(reply.head(to_head)));
        if !to_head {
            let chunked = reply.framing == Framing::Chunked;
            steps.extend(reply.pieces.iter().cloned().map(|p| Step::Body(p, chunked)));
            if chunked {
                let mut end = b"0\r\n".to_vec();
                for (name, value) in &reply.trailers {
                    end.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
                }
                end.extend_from_slice(b"\r\n");
                steps.push_back(Step::Raw(end));
            }
        }
        for step in steps {
            // Nobody pipelines here: an end of the connection before the answer is complete means that the client left.
            let outcome = tokio::select! {
                biased;
                outcome = take(step, &mut write) => outcome,
                () = reader.gone() => Next::Left,
            };
            match outcome {
                Next::Go => {}
                Next::Left => return record.client_left(),
                Next::Close => {
                    write.shutdown().await.ok();
                    return;
                }
            }
        }
        if close {
            write.shutdown().await.ok();
            return;
        }
    }
}

enum Step {
    Raw(Vec<u8>),
    Piece(Piece),
    Body(Piece, bool),
}

enum Next {
    Go,
    Left,
    Close,
}

async fn take(step: Step, write: &mut (impl AsyncWrite + Unpin)) -> Next {
    let bytes = match step {
        Step::Raw(bytes) => bytes,
        Step::Body(Piece::Bytes(bytes), false)
        | Step::Body(Piece::Atoms(bytes), false)
        | Step::Piece(Piece::Bytes(bytes) | Piece::Atoms(bytes)) => bytes,
        Step::Body(Piece::Bytes(bytes), true) if bytes.is_empty() => return Next::Go,
        Step::Body(Piece::Bytes(bytes), true) => chunk(&bytes),
        Step::Body(Piece::Atoms(bytes), true) => bytes.iter().flat_map(|b| chunk(&[*b])).collect(),
        Step::Body(piece, _) | Step::Piece(piece) => {
            match piece {
                Piece::Wait(time) => tokio::time::sleep(time).await,
                Piece::Gate(gate) => {
                    if let Ok(permit) = gate.acquire().await {
                        permit.forget();
                    }
                }
                Piece::Hang => std::future::pending::<()>().await,
                Piece::Close => return Next::Close,
                Piece::Bytes(_) | Piece::Atoms(_) => {}
            }
            return Next::Go;
        }
    };
    let written = async {
        write.write_all(&bytes).await?;
        write.flush().await
    };
    if written.await.is_err() {
        Next::Left
    } else {
        Next::Go
    }
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    let mut out = format!("{:x}\r\n", bytes.len()).into_bytes();
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
    out
}
