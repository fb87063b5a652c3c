//! Finds the events of a server-sent event stream in pieces of any size: bounded, and borrowing where a piece holds a whole event.

use memchr::memchr2;

/// Scratch space that is kept from one event to the next, in bytes.
const KEPT: usize = 512;

/// What a line may have beside its value, in bytes: the name of the field, a colon, a space.
const NAME: usize = 16;

/// An event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event<'a> {
    /// Its data lines, joined.
    pub(super) data: &'a [u8],
    /// It is named `error`.
    pub(super) error: bool,
}

/// Where an event stream is being read.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// A line of which the end has not come yet.
    line: Vec<u8>,
    /// Data lines of an event of which the end has not come yet.
    data: Vec<u8>,
    has_data: bool,
    error: bool,
    /// The last byte was a CR; an LF right after it belongs to it.
    after_cr: bool,
    begun: bool,
    /// The event at hand is larger than the limit and is left out.
    too_long: bool,
}

impl Scanner {
    /// Whether the last event is over and nothing of the next one has come.
    #[inline]
    pub(super) fn is_between_events(&self) -> bool {
        self.begun && self.line.is_empty() && !(self.has_data || self.error || self.after_cr || self.too_long)
    }

    /// Takes a piece and calls `each` with every event that ends in it; events of more than `limit` bytes are left out.
    pub(super) fn push(&mut self, piece: &[u8], limit: usize, each: &mut dyn FnMut(Event<'_>)) {
        let mut rest = piece;
        // The data of an event that lies in this piece as one line; most do.
        let mut borrowed: Option<&[u8]> = None;
        while !rest.is_empty() {
            if self.after_cr {
                self.after_cr = false;
                if let Some((b'\n', tail)) = rest.split_first() {
                    rest = tail;
                    continue;
                }
            }
            let Some(end) = memchr2(b'\n', b'\r', rest) else {
                self.hold(rest, limit);
                break;
            };
            let (head, tail) = rest.split_at(end);
            self.after_cr = tail.first() == Some(&b'\r');
            rest = tail.get(1..).unwrap_or_default();
            if self.line.is_empty() {
                self.line_ended(head, &mut borrowed, limit, each);
            } else {
                self.hold(head, limit);
                let line = std::mem::take(&mut self.line);
                if let Some(data) = borrowed.take() {
                    self.keep(data, limit);
                }
                let mut own = None;
                self.line_ended(&line, &mut own, limit, each);
                if let Some(data) = own {
                    self.keep(data, limit);
                }
                self.line = reuse(line);
            }
        }
        if let Some(data) = borrowed {
            self.keep(data, limit);
        }
    }

    /// Whether what came so far ends with an event, or before the data of the next one. After a CR it is not known.
    pub(super) fn is_between(&self) -> bool {
        self.line.is_empty() && !self.has_data && !self.too_long && !self.after_cr
    }

    /// The stream ended: gives the event that lacks only its blank line.
    pub(super) fn end(&mut self, limit: usize, each: &mut dyn FnMut(Event<'_>)) {
        let line = std::mem::take(&mut self.line);
        let mut borrowed = None;
        if !line.is_empty() {
            self.line_ended(&line, &mut borrowed, limit, each);
        }
        self.dispatch(borrowed, limit, each);
    }

    #[inline]
    fn line_ended<'p>(
        &mut self,
        line: &'p [u8],
        borrowed: &mut Option<&'p [u8]>,
        limit: usize,
        each: &mut dyn FnMut(Event<'_>),
    ) {
        let line = if self.begun {
            line
        } else {
            self.begun = true;
            line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line)
        };
        if line.is_empty() {
            self.dispatch(borrowed.take(), limit, each);
        } else if line.len() > limit + NAME {
            self.too_long = true;
        } else if let Some(value) = field(line, b"data") {
            if !self.has_data && borrowed.is_none() {
                *borrowed = Some(value);
            } else {
                if let Some(first) = borrowed.take() {
                    self.keep(first, limit);
                }
                self.keep(value, limit);
            }
        } else if let Some(value) = field(line, b"event") {
            self.error = value == b"error";
        }
    }

    #[inline]
    fn dispatch(&mut self, borrowed: Option<&[u8]>, limit: usize, each: &mut dyn FnMut(Event<'_>)) {
        let error = std::mem::take(&mut self.error);
        let too_long = std::mem::take(&mut self.too_long);
        if let Some(data) = borrowed {
            if !too_long && data.len() <= limit {
                each(Event { data, error });
            }
        } else if std::mem::take(&mut self.has_data) {
            let data = std::mem::take(&mut self.data);
            if !too_long {
                each(Event { data: &data, error });
            }
            self.data = reuse(data);
        }
    }

    fn keep(&mut self, value: &[u8], limit: usize) {
        if self.has_data {
            self.data.push(b'\n');
        }
        self.has_data = true;
        if self.data.len() + value.len() > limit {
            self.too_long = true;
            self.data = Vec::new();
        } else if !self.too_long {
            self.data.extend_from_slice(value);
        }
    }

    fn hold(&mut self, part: &[u8], limit: usize) {
        if self.line.len() + part.len() > limit + NAME {
            self.too_long = true;
            // What the line was called stays, so that its end is still seen as the end of a line that is not empty.
            self.line.truncate(8);
            self.line.shrink_to_fit();
            if self.line.is_empty() {
                self.line.push(b':');
            }
        } else {
            self.line.extend_from_slice(part);
        }
    }
}

/// The value of a line when its field has that name.
#[inline]
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(name)?;
    match rest.split_first() {
        None => Some(rest),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}

/// An empty buffer for the next time; large ones are given back.
fn reuse(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEPT {
        return Vec::new();
    }
    buffer.clear();
    buffer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events(pieces: &[&[u8]], limit: usize) -> Vec<(String, bool)> {
        let mut got = Vec::new();
        let mut each = |e: Event<'_>| got.push((String::from_utf8_lossy(e.data).into_owned(), e.error));
        let mut scanner = Scanner::default();
        for piece in pieces {
            scanner.push(piece, limit, &mut each);
        }
        scanner.end(limit, &mut each);
        got
    }

    fn whole(stream: &str) -> Vec<(String, bool)> {
        events(&[stream.as_bytes()], 1000)
    }

    fn plain(data: &str) -> (String, bool) {
        (data.to_owned(), false)
    }

    #[test]
    fn every_spelling_of_a_line_end_and_a_field() {
        for stream in [
            "data: a\n\ndata: b\n\n",
            "data:a\r\n\r\ndata:b\r\n\r\n",
            "data: a\r\rdata: b\r\r",
            "\u{FEFF}data: a\n\n: comment\n\n:\nid: 7\nretry: 1\ndata: b\n\n",
            "event: x\ndata: a\n\nevent: y\n\ndata: b",
            "\n\n\ndata: a\n\nnonsense\ndata: b\n",
        ] {
            assert_eq!(whole(stream), [plain("a"), plain("b")], "{stream:?}");
        }
    }

    #[test]
    fn data_lines_are_joined_and_errors_known_by_name() {
        assert_eq!(whole("data: a\ndata: b\ndata\n\n"), [plain("a\nb\n")]);
        assert_eq!(
            whole("event: error\ndata: x\n\ndata: y\n\n"),
            [("x".to_owned(), true), plain("y")]
        );
        assert_eq!(whole("database: x\n\n"), []);
    }

    #[test]
    fn an_event_over_the_limit_is_left_out_and_the_next_is_read() {
        let stream = format!("data: {}\n\ndata: b\n\n", "x".repeat(5000));
        for size in [1, 7, 100, 4096, 10_000] {
            let pieces: Vec<&[u8]> = stream.as_bytes().chunks(size).collect();
            let got = events(&pieces, 1000);
            assert_eq!(got.last(), Some(&plain("b")), "pieces of {size}");
        }
        let mut scanner = Scanner::default();
        for _ in 0..10_000 {
            scanner.push(&[b'x'; 1000], 64 << 10, &mut |_| {});
        }
        assert!(scanner.line.capacity() <= 256 << 10);
    }

    proptest! {
        #[test]
        fn the_split_does_not_matter(
            stream in proptest::collection::vec(prop::sample::select(b"da\r\n\r\n\n\n: etverno x".to_vec()), 0..120),
            lines in any::<bool>(),
            cuts in proptest::collection::vec(1..20_usize, 1..20),
        ) {
            let stream = if lines {
                String::from_utf8_lossy(&stream).replace('d', "data: d").into_bytes()
            } else {
                stream
            };
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (a, b) = rest.split_at((*cut).min(rest.len()));
                pieces.push(a);
                rest = b;
            }
            prop_assert_eq!(events(&pieces, 1000), events(&[&stream], 1000));
        }
    }
}
