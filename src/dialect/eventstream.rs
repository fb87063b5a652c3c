//! Finds the messages of an AWS event stream (`application/vnd.amazon.eventstream`) in pieces of any size.

/// Bytes before the headers: two lengths and their checksum.
const PRELUDE: usize = 12;
/// Bytes around the headers and the payload.
const FRAME: usize = PRELUDE + 4;
const KEPT: usize = 1024;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Message<'a> {
    /// `:event-type`, else `:exception-type` or `:error-code`.
    pub(super) name: &'a [u8],
    /// `:message-type` is `exception` or `error`.
    pub(super) exception: bool,
    /// The payload.
    pub(super) payload: &'a [u8],
}

/// Where an event stream is being read. Checksums are not looked at: TLS keeps the bytes, and the lengths are checked.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    held: Vec<u8>,
    /// Bytes of a message over the limit that are still to be passed over.
    skip: usize,
    blind: bool,
}

impl Scanner {
    /// Takes a piece and calls `each` with every message that ends in it; messages of more than `limit` bytes are left
    /// out. After lengths that cannot be, nothing is read any more.
    pub(super) fn push(&mut self, piece: &[u8], limit: usize, each: &mut dyn FnMut(Message<'_>)) {
        let mut rest = piece;
        while !rest.is_empty() && !self.blind {
            if self.skip > 0 {
                let n = self.skip.min(rest.len());
                self.skip -= n;
                rest = rest.get(n..).unwrap_or_default();
                continue;
            }
            if !self.held.is_empty() {
                let wanted = total(&self.held).unwrap_or(PRELUDE);
                let n = wanted.saturating_sub(self.held.len()).min(rest.len());
                let (head, tail) = rest.split_at(n);
                self.held.extend_from_slice(head);
                rest = tail;
                if self.held.len() < PRELUDE {
                    continue;
                }
                let held = std::mem::take(&mut self.held);
                match self.one(&held, limit, each) {
                    Found::Message(_) => self.held = reuse(held),
                    Found::TooLong(total) => self.skip = total.saturating_sub(held.len()),
                    Found::Part => self.held = held,
                    Found::Nonsense => self.blind = true,
                }
                continue;
            }
            match self.one(rest, limit, each) {
                Found::Message(used) => rest = rest.get(used..).unwrap_or_default(),
                Found::TooLong(total) => self.skip = total,
                Found::Part => {
                    self.held.extend_from_slice(rest);
                    rest = &[];
                }
                Found::Nonsense => self.blind = true,
            }
        }
    }

    /// Whether what came so far ends with a message.
    pub(super) fn is_between(&self) -> bool {
        self.held.is_empty() && self.skip == 0 && !self.blind
    }

    /// Whether it gave up.
    #[cfg(test)]
    pub(super) const fn is_blind(&self) -> bool {
        self.blind
    }

    /// Reads the message that `bytes` begin with.
    fn one(&self, bytes: &[u8], limit: usize, each: &mut dyn FnMut(Message<'_>)) -> Found {
        let (Some(total), Some(headers)) = (total(bytes), be32(bytes, 4)) else {
            return Found::Part;
        };
        if total < FRAME || headers > total - FRAME {
            return Found::Nonsense;
        }
        if total > limit {
            return Found::TooLong(total);
        }
        let (Some(head), Some(payload)) = (
            bytes.get(PRELUDE..PRELUDE + headers),
            bytes.get(PRELUDE + headers..total - 4),
        ) else {
            return Found::Part;
        };
        if bytes.len() < total {
            return Found::Part;
        }
        each(read(head, payload));
        Found::Message(total)
    }
}

/// Writes a message whose headers are texts of less than 64 KiB.
pub(super) fn write(out: &mut Vec<u8>, headers: &[(&str, &str)], payload: &[u8]) {
    let mut head = Vec::with_capacity(128);
    for (name, value) in headers {
        let (Ok(named), Ok(valued)) = (u8::try_from(name.len()), u16::try_from(value.len())) else {
            continue;
        };
        head.push(named);
        head.extend_from_slice(name.as_bytes());
        head.push(7);
        head.extend_from_slice(&valued.to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let start = out.len();
    let be = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&be(FRAME + head.len() + payload.len()));
    out.extend_from_slice(&be(head.len()));
    let sum = crc32fast::hash(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
    let sum = crc32fast::hash(out.get(start..).unwrap_or_default());
    out.extend_from_slice(&sum.to_be_bytes());
}

/// What bytes begin with.
enum Found {
    /// A message of this length.
    Message(usize),
    /// A message of this length, over the limit.
    TooLong(usize),
    /// Not all of a message.
    Part,
    /// No message.
    Nonsense,
}

/// An empty buffer for the next time; large ones are given back.
fn reuse(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEPT {
        return Vec::new();
    }
    buffer.clear();
    buffer
}

/// The length of the message that `bytes` begin with, once the lengths are there.
fn total(bytes: &[u8]) -> Option<usize> {
    if bytes.len() < PRELUDE {
        None
    } else {
        be32(bytes, 0)
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_be_bytes(four)).ok()
}

fn read<'a>(mut headers: &'a [u8], payload: &'a [u8]) -> Message<'a> {
    let mut message = Message {
        payload,
        ..Message::default()
    };
    let mut fallback: &[u8] = &[];
    while let Some((name, value, rest)) = header(headers) {
        headers = rest;
        match name {
            b":event-type" => message.name = value,
            b":exception-type" | b":error-code" => fallback = value,
            b":message-type" => message.exception = value != b"event",
            _ => {}
        }
    }
    if message.name.is_empty() {
        message.name = fallback;
    }
    message
}

/// The first header: its name, its value (of strings and byte arrays; empty for all other types), and the rest.
fn header(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (&length, rest) = bytes.split_first()?;
    let name = rest.get(..usize::from(length))?;
    let (&kind, rest) = rest.get(usize::from(length)..)?.split_first()?;
    let fixed = match kind {
        0 | 1 => 0,
        2 => 1,
        3 => 2,
        4 => 4,
        5 | 8 => 8,
        9 => 16,
        6 | 7 => {
            let two: [u8; 2] = rest.get(..2)?.try_into().ok()?;
            let length = usize::from(u16::from_be_bytes(two));
            return Some((name, rest.get(2..2 + length)?, rest.get(2 + length..)?));
        }
        _ => return None,
    };
    Some((name, &[], rest.get(fixed..)?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A message with string headers; its checksums are zero.
    pub(crate) fn frame(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
        let mut head = Vec::new();
        for (name, value) in headers {
            head.push(name.len() as u8);
            head.extend_from_slice(name.as_bytes());
            head.push(7);
            head.extend_from_slice(&(value.len() as u16).to_be_bytes());
            head.extend_from_slice(value.as_bytes());
        }
        let total = (FRAME + head.len() + payload.len()) as u32;
        let mut out = total.to_be_bytes().to_vec();
        out.extend_from_slice(&(head.len() as u32).to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&head);
        out.extend_from_slice(payload);
        out.extend_from_slice(&[0; 4]);
        out
    }

    fn messages(stream: &[u8], size: usize, limit: usize) -> (Vec<(String, bool, Vec<u8>)>, bool) {
        let mut got = Vec::new();
        let mut scanner = Scanner::default();
        for piece in stream.chunks(size) {
            scanner.push(piece, limit, &mut |m| {
                got.push((
                    String::from_utf8_lossy(m.name).into_owned(),
                    m.exception,
                    m.payload.to_vec(),
                ));
            });
        }
        (got, scanner.is_blind())
    }

    #[test]
    fn messages_do_not_depend_on_the_split() {
        let mut stream = frame(
            &[(":event-type", "messageStop"), (":message-type", "event")],
            b"{}",
        );
        stream.extend(frame(&[("x", "y"), (":event-type", "big")], &[b'x'; 400]));
        stream.extend(frame(
            &[
                (":message-type", "exception"),
                (":exception-type", "throttlingException"),
            ],
            b"{\"message\":\"slow\"}",
        ));
        for size in 1..stream.len() + 1 {
            let (got, blind) = messages(&stream, size, 300);
            assert!(!blind);
            assert_eq!(
                got,
                [
                    ("messageStop".to_owned(), false, b"{}".to_vec()),
                    (
                        "throttlingException".to_owned(),
                        true,
                        b"{\"message\":\"slow\"}".to_vec()
                    ),
                ],
                "{size}"
            );
            assert_eq!(messages(&stream, size, 1000).0.len(), 3, "{size}");
        }
    }

    #[test]
    fn lengths_that_cannot_be_blind_it() {
        for stream in [[0_u8; 40], [0xFF; 40]] {
            for size in [1, 5, 40] {
                let (got, blind) = messages(&stream, size, 1000);
                assert!(got.is_empty());
                assert!(blind || stream[0] == 0xFF);
            }
        }
        let mut stream = frame(&[], b"{}");
        stream[7] = 200;
        assert!(messages(&stream, 3, 1000).1);
    }
}
