//! A plain HTTP/1.1 client that sends exactly the bytes it is given.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream};

use super::http1::{Message, Reader, Side};
use super::soon;

/// A connection to the program.
pub(crate) struct Client<S> {
    reader: Reader<ReadHalf<S>>,
    writer: WriteHalf<S>,
    last_was_head: bool,
}

/// A request to be written.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    method: String,
    target: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<Vec<u8>>,
}

impl Ask {
    /// A request without a body.
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: None,
        }
    }

    /// `GET`.
    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `POST` of JSON.
    pub(crate) fn post(target: &str, body: impl AsRef<[u8]>) -> Self {
        Self::new("POST", target)
            .header("content-type", "application/json")
            .body(body.as_ref())
    }

    /// With one more header.
    pub(crate) fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// With a body and its length.
    pub(crate) fn body(mut self, body: &[u8]) -> Self {
        self.body = Some(body.to_vec());
        self
    }

    /// The bytes on the wire. `host` and `content-length` are added.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut out = format!("{} {} HTTP/1.1\r\n", self.method, self.target).into_bytes();
        if !self.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("host")) {
            out.extend_from_slice(b"host: fusebox.test\r\n");
        }
        for (name, value) in &self.headers {
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b": ");
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
        if let Some(body) = &self.body {
            out.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.body.as_deref().unwrap_or_default());
        out
    }
}

impl Client<TcpStream> {
    /// A TCP connection.
    pub(crate) async fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).await;
        let stream = stream.unwrap_or_else(|e| panic!("cannot connect to {address}: {e}"));
        stream.set_nodelay(true).unwrap();
        Self::over(stream)
    }
}

impl Client<UnixStream> {
    /// A connection over a Unix socket.
    pub(crate) async fn unix(path: &std::path::Path) -> Self {
        Self::over(UnixStream::connect(path).await.expect("the Unix socket is there"))
    }
}

impl<S: AsyncRead + AsyncWrite> Client<S> {
    /// A client over a connection that is there already.
    pub(crate) fn over(stream: S) -> Self {
        let (read, writer) = tokio::io::split(stream);
        Self {
            reader: Reader::new(read),
            writer,
            last_was_head: false,
        }
    }

    /// Writes bytes as they are.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await
    }

    /// Writes a request.
    pub(crate) async fn send(&mut self, ask: &Ask) {
        self.last_was_head = ask.method == "HEAD";
        self.write(&ask.bytes())
            .await
            .expect("the request can be written");
    }

    /// Reads the head of an answer; interim answers (1xx but 101) are skipped.
    pub(crate) async fn head(&mut self) -> Message {
        loop {
            let head = soon("the head of an answer", self.reader.head()).await;
            let head = head
                .expect("an answer")
                .expect("an answer before the connection ends");
            if !matches!(head.status(), 100 | 102..=199) {
                return head;
            }
        }
    }

    /// The next piece of a chunked answer; `None` at its end.
    pub(crate) async fn chunk(&mut self, answer: &mut Message) -> io::Result<Option<Vec<u8>>> {
        soon("a piece of an answer", self.reader.chunk(answer)).await
    }

    /// Reads a whole answer.
    pub(crate) async fn answer(&mut self) -> Message {
        let mut message = self.head().await;
        let side = Side::Answer {
            to_head: self.last_was_head,
        };
        let read = soon("the body of an answer", self.reader.body(&mut message, side)).await;
        read.unwrap_or_else(|e| panic!("{e} in the body of {message:?}"));
        message
    }

    /// Reads a whole answer; `None` when the connection ends before there is one.
    pub(crate) async fn try_answer(&mut self) -> Option<Message> {
        let side = Side::Answer {
            to_head: self.last_was_head,
        };
        soon("an answer or an end", self.reader.message(side))
            .await
            .ok()
            .flatten()
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn ask(&mut self, ask: &Ask) -> Message {
        self.send(ask).await;
        self.answer().await
    }

    /// Waits until the other side closes the connection.
    pub(crate) async fn gone(&mut self) {
        soon("the other side closes", self.reader.gone()).await;
    }
}

/// One request over a connection of its own.
pub(crate) async fn ask(address: &str, request: &Ask) -> Message {
    Client::connect(address).await.ask(request).await
}
