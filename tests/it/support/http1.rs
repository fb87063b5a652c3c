//! HTTP/1.1 on raw bytes, written apart from any HTTP library so that it sees exactly what is on the wire.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// Names (lower case) and values in the order of the wire.
pub(crate) type Headers = Vec<(String, Vec<u8>)>;

/// A message as it was read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Message {
    /// The request line or status line, without its line end.
    pub(crate) start: String,
    /// Headers.
    pub(crate) headers: Headers,
    /// The body, without its framing.
    pub(crate) body: Vec<u8>,
    /// Lengths of its chunks, when it was chunked.
    pub(crate) chunks: Vec<usize>,
    /// Trailers.
    pub(crate) trailers: Headers,
    /// The message ended as its framing says; otherwise the connection broke off inside the body.
    pub(crate) complete: bool,
}

impl Message {
    /// The first value of a header, as text.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        find(&self.headers, name)
    }

    /// All values of a header, as text.
    pub(crate) fn all(&self, name: &str) -> Vec<String> {
        let found = self.headers.iter().filter(|(n, _)| n == name);
        found
            .map(|(_, v)| String::from_utf8_lossy(v).into_owned())
            .collect()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }

    /// The status of an answer.
    pub(crate) fn status(&self) -> u16 {
        let code = self.start.split(' ').nth(1).unwrap_or_default();
        code.parse()
            .unwrap_or_else(|_| panic!("no status in {:?}", self.start))
    }

    /// The method of a request.
    pub(crate) fn method(&self) -> &str {
        self.start.split(' ').next().unwrap_or_default()
    }

    /// The target of a request.
    pub(crate) fn target(&self) -> &str {
        self.start.split(' ').nth(1).unwrap_or_default()
    }
}

/// The first value of a header, as text.
pub(crate) fn find(headers: &Headers, name: &str) -> Option<String> {
    let found = headers.iter().find(|(n, _)| n == name);
    found.map(|(_, v)| String::from_utf8_lossy(v).into_owned())
}

/// Reads messages from a connection.
pub(crate) struct Reader<R> {
    io: R,
    buffer: Vec<u8>,
    ended: bool,
}

/// What is known about the body before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Requests have no body unless they say so.
    Request,
    /// Answers to this kind of request.
    Answer {
        /// The request was `HEAD`.
        to_head: bool,
    },
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Reads from `io`.
    pub(crate) fn new(io: R) -> Self {
        Self {
            io,
            buffer: Vec::new(),
            ended: false,
        }
    }

    /// Reads more; `false` at the end of the connection.
    async fn fill(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let n = self.io.read_buf(&mut self.buffer).await?;
        self.ended = n == 0;
        Ok(n > 0)
    }

    /// Waits for the end of the connection and returns what came before it.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        while self.fill().await.unwrap_or(false) {}
        std::mem::take(&mut self.buffer)
    }

    /// Waits until the other side closes or breaks the connection; bytes that come are kept.
    pub(crate) async fn gone(&mut self) {
        while self.fill().await.unwrap_or(false) {}
    }

    /// The head of the next message; `None` when the connection ended before it began.
    pub(crate) async fn head(&mut self) -> io::Result<Option<Message>> {
        let end = loop {
            if let Some(at) = position(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(broken("inside a head"))
                };
            }
        };
        let head: Vec<u8> = self.buffer.drain(..end + 4).collect();
        let mut lines = head
            .split(|b| *b == b'\n')
            .map(|l| l.strip_suffix(b"\r").unwrap_or(l));
        let start = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
        let headers = lines.filter(|l| !l.is_empty()).map(header_line).collect();
        Ok(Some(Message {
            start,
            headers,
            ..Message::default()
        }))
    }

    /// One piece of a chunked body: its bytes, or `None` at its end, with the trailers then read into `message`.
    pub(crate) async fn chunk(&mut self, message: &mut Message) -> io::Result<Option<Vec<u8>>> {
        let size = self.line().await?;
        let size = size.split(';').next().unwrap_or_default().trim().to_owned();
        let size = usize::from_str_radix(&size, 16).map_err(|_| broken(&format!("chunk size {size:?}")))?;
        if size > 0 {
            let data = self.exactly(size).await?;
            if self.line().await?.is_empty() {
                return Ok(Some(data));
            }
            return Err(broken("chunk longer than it says"));
        }
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(None);
            }
            message.trailers.push(header_line(line.as_bytes()));
        }
    }

    async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = position(&self.buffer, b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                return Ok(String::from_utf8_lossy(line.strip_suffix(b"\r\n").unwrap_or(&line)).into_owned());
            }
            if !self.fill().await? {
                return Err(broken("inside a line of the framing"));
            }
        }
    }

    async fn exactly(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < len {
            if !self.fill().await? {
                return Err(broken("inside a body"));
            }
        }
        Ok(self.buffer.drain(..len).collect())
    }

    /// The next message with its body; `None` when the connection ended before it began.
    pub(crate) async fn message(&mut self, side: Side) -> io::Result<Option<Message>> {
        let Some(mut message) = self.head().await? else {
            return Ok(None);
        };
        self.body(&mut message, side).await?;
        Ok(Some(message))
    }

    /// The body of a message whose head was read. A body that breaks off is kept and marked as incomplete.
    pub(crate) async fn body(&mut self, message: &mut Message, side: Side) -> io::Result<()> {
        let without = match side {
            Side::Request => false,
            Side::Answer { to_head } => to_head || matches!(message.status(), 100..=199 | 204 | 304),
        };
        if without {
            message.complete = true;
        } else if message.header("transfer-encoding").is_some() {
            loop {
                match self.chunk(message).await {
                    Ok(Some(data)) => {
                        message.chunks.push(data.len());
                        message.body.extend_from_slice(&data);
                    }
                    Ok(None) => {
                        message.complete = true;
                        break;
                    }
                    Err(e) if e.kind() == io::ErrorKind::InvalidData && self.ended => break,
                    Err(e) if e.kind() == io::ErrorKind::ConnectionReset => break,
                    Err(e) => return Err(e),
                }
            }
        } else if let Some(length) = message.header("content-length") {
            let length = length.parse().map_err(|_| broken("content-length"))?;
            while self.buffer.len() < length && self.fill().await.unwrap_or(false) {}
            let have = self.buffer.len().min(length);
            message.body = self.buffer.drain(..have).collect();
            message.complete = have == length;
        } else if side != Side::Request {
            message.body = self.rest().await;
            message.complete = true;
        } else {
            message.complete = true;
        }
        Ok(())
    }
}

fn header_line(line: &[u8]) -> (String, Vec<u8>) {
    let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
    let (name, value) = line.split_at(colon);
    let value = value.strip_prefix(b":").unwrap_or(value).trim_ascii();
    (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec())
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the connection broke: {what}"),
    )
}
