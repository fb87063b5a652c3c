//! The framing of an answer's body (RFC 9112 §6, §7): which bytes of what was read are the content.

use std::ops::Range;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use http_body::SizeHint;

use super::Http1Error;

/// Longest line with the size of a chunk, in bytes; all beyond the digits is an extension that nobody reads.
const MAX_SIZE_LINE: usize = 4 * 1024;

/// Most bytes of chunk extensions in one body.
const MAX_EXTENSIONS: usize = 16 * 1024;

/// Largest trailer section, and most fields in it.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;

/// Takes a body apart as it comes.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    extensions: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes are left.
    Length(u64),
    UntilClose,
    /// A line with the size of a chunk comes next.
    Size,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    /// The end of line behind a chunk comes next.
    ChunkEnd,
    Trailers,
    Ended,
}

/// What was made of the bytes at hand.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    /// Where the content stands in the buffer.
    pub(super) data: Range<usize>,
    /// How many bytes from the front are done with; not less than the end of `data`.
    pub(super) used: usize,
    /// Never together with data.
    pub(super) trailers: Option<HeaderMap>,
}

impl Decoder {
    pub(super) fn length(length: u64) -> Self {
        Self::new(match length {
            0 => State::Ended,
            n => State::Length(n),
        })
    }

    pub(super) fn chunked() -> Self {
        Self::new(State::Size)
    }

    pub(super) fn until_close() -> Self {
        Self::new(State::UntilClose)
    }

    fn new(state: State) -> Self {
        Self { state, extensions: 0 }
    }

    pub(super) fn is_until_close(&self) -> bool {
        self.state == State::UntilClose
    }

    /// Whether nothing more belongs to this body.
    pub(crate) fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// How long what is left of the body is, as far as that is known.
    pub(crate) fn size_hint(&self) -> SizeHint {
        match self.state {
            State::Length(left) => SizeHint::with_exact(left),
            State::Ended => SizeHint::with_exact(0),
            _ => SizeHint::default(),
        }
    }

    /// Finds the content in what was read. The contents of all chunks in `read` are moved together, so that they go
    /// on as one piece: what the upstream sent at once is written at once.
    ///
    /// # Errors
    /// When the bytes break the framing.
    pub(super) fn decode(&mut self, read: &mut [u8]) -> Result<Decoded, Http1Error> {
        match self.state {
            State::Ended => Ok(Decoded::default()),
            State::Length(left) => {
                let taken = least(left, read.len());
                self.state = match left - taken as u64 {
                    0 => State::Ended,
                    left => State::Length(left),
                };
                Ok(plain(taken))
            }
            State::UntilClose => Ok(plain(read.len())),
            _ => self.dechunk(read),
        }
    }

    fn dechunk(&mut self, read: &mut [u8]) -> Result<Decoded, Http1Error> {
        let mut data = 0..0;
        let mut used = 0;
        loop {
            let rest = read.get(used..).unwrap_or_default();
            match self.state {
                State::Size => {
                    let Some(line) = size_line(rest)? else { break };
                    used += line.len;
                    self.extensions += line.extension;
                    if self.extensions > MAX_EXTENSIONS {
                        return Err(Http1Error::Body("too many chunk extensions"));
                    }
                    self.state = match line.size {
                        0 => State::Trailers,
                        size => State::Chunk(size),
                    };
                }
                State::Chunk(left) => {
                    let taken = least(left, rest.len());
                    if taken == 0 {
                        break;
                    }
                    if data.is_empty() {
                        data = used..used + taken;
                    } else {
                        read.copy_within(used..used + taken, data.end);
                        data.end += taken;
                    }
                    used += taken;
                    self.state = match left - taken as u64 {
                        0 => State::ChunkEnd,
                        left => State::Chunk(left),
                    };
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(Http1Error::Body("chunk is longer than its size")),
                },
                State::Trailers => match rest {
                    [b'\r', b'\n', ..] => {
                        used += 2;
                        self.state = State::Ended;
                    }
                    // They are a frame of their own.
                    _ if !data.is_empty() => break,
                    _ => {
                        let Some((len, trailers)) = trailers(rest)? else {
                            break;
                        };
                        self.state = State::Ended;
                        return Ok(Decoded {
                            data: 0..0,
                            used: used + len,
                            trailers: Some(trailers),
                        });
                    }
                },
                State::Ended | State::Length(_) | State::UntilClose => break,
            }
        }
        Ok(Decoded {
            data,
            used,
            trailers: None,
        })
    }

    /// Notes that the upstream closed its side.
    ///
    /// # Errors
    /// When more was to come.
    pub(super) fn closed(&mut self) -> Result<(), Http1Error> {
        match self.state {
            State::Ended | State::UntilClose => {
                self.state = State::Ended;
                Ok(())
            }
            _ => Err(Http1Error::Truncated),
        }
    }
}

fn plain(taken: usize) -> Decoded {
    Decoded {
        data: 0..taken,
        used: taken,
        trailers: None,
    }
}

fn least(left: u64, here: usize) -> usize {
    usize::try_from(left).map_or(here, |left| left.min(here))
}

struct SizeLine {
    size: u64,
    /// Of the whole line with its end.
    len: usize,
    extension: usize,
}

/// The line with the size of a chunk, at the front of `rest`; `None` when it is not complete. An end of line is a
/// carriage return and a line feed here, never one of them alone: those who differ on that can be made to differ on
/// where a chunk ends.
fn size_line(rest: &[u8]) -> Result<Option<SizeLine>, Http1Error> {
    const MALFORMED: Http1Error = Http1Error::Body("malformed chunk size");
    let mut size: u64 = 0;
    let mut digits = 0;
    for b in rest {
        let digit = match b {
            b'0'..=b'9' => b - b'0',
            b'a'..=b'f' => b - b'a' + 10,
            b'A'..=b'F' => b - b'A' + 10,
            _ => break,
        };
        digits += 1;
        if digits > 15 {
            return Err(Http1Error::Body("chunk is too large"));
        }
        size = size << 4 | u64::from(digit);
    }
    let line = |extension: usize| SizeLine {
        size,
        len: digits + extension + 2,
        extension,
    };
    let behind = rest.get(digits..).unwrap_or_default();
    if digits == 0 && !behind.is_empty() {
        return Err(MALFORMED);
    }
    match behind {
        [b'\r', b'\n', ..] => Ok(Some(line(0))),
        [] | [b'\r'] => Ok(None),
        [b';' | b' ' | b'\t', ..] => {
            let end = memchr::memchr2(b'\r', b'\n', behind);
            let space = behind.iter().take_while(|b| matches!(b, b' ' | b'\t')).count();
            match behind.get(space) {
                None | Some(b';' | b'\r') => {}
                Some(_) => return Err(MALFORMED),
            }
            match end.map(|end| (end, behind.get(end..).unwrap_or_default())) {
                Some((end, [b'\r', b'\n', ..])) if end <= MAX_SIZE_LINE => Ok(Some(line(end))),
                None | Some((_, [b'\r'])) if behind.len() <= MAX_SIZE_LINE => Ok(None),
                _ => Err(MALFORMED),
            }
        }
        _ => Err(MALFORMED),
    }
}

/// The trailer section with the empty line behind it; `None` when it is not complete.
fn trailers(rest: &[u8]) -> Result<Option<(usize, HeaderMap)>, Http1Error> {
    const MALFORMED: Http1Error = Http1Error::Body("malformed trailers");
    let mut fields = [httparse::EMPTY_HEADER; MAX_TRAILER_FIELDS];
    match httparse::parse_headers(rest, &mut fields) {
        Err(_) => Err(MALFORMED),
        Ok(httparse::Status::Partial) if rest.len() < MAX_TRAILERS => Ok(None),
        Ok(httparse::Status::Partial) => Err(Http1Error::Body("too many trailers")),
        Ok(httparse::Status::Complete((len, fields))) => {
            let mut trailers = HeaderMap::with_capacity(fields.len());
            for field in fields {
                let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| MALFORMED)?;
                let value = HeaderValue::from_bytes(field.value).map_err(|_| MALFORMED)?;
                trailers.append(name, value);
            }
            Ok(Some((len, trailers)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The content, the trailers, what was left over, and whether it ended.
    type Ran = (Vec<u8>, Option<HeaderMap>, Vec<u8>, bool);

    /// Feeds `wire` in pieces.
    fn run(mut decoder: Decoder, wire: &[u8], sizes: &[usize], close: bool) -> Result<Ran, String> {
        let (mut read, mut content, mut trailers) = (Vec::new(), Vec::new(), None);
        let mut sizes = sizes.iter().copied().cycle();
        let mut wire = wire;
        while !wire.is_empty() || !read.is_empty() {
            let taken = sizes.next().unwrap().min(wire.len());
            read.extend_from_slice(&wire[..taken]);
            wire = &wire[taken..];
            loop {
                let got = decoder.decode(&mut read).map_err(|e| e.to_string())?;
                assert!(got.used >= got.data.end && got.used <= read.len());
                content.extend_from_slice(&read[got.data.clone()]);
                read.drain(..got.used);
                let idle = got.data.is_empty() && got.trailers.is_none();
                trailers = trailers.or(got.trailers);
                if idle {
                    break;
                }
            }
            if wire.is_empty() {
                break;
            }
        }
        if close {
            decoder.closed().map_err(|e| e.to_string())?;
        }
        Ok((content, trailers, read, decoder.is_ended()))
    }

    #[test]
    fn chunks_are_read_in_any_pieces() {
        for (wire, content, left) in [
            ("3\r\nabc\r\n0\r\n\r\n", "abc", ""),
            ("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nHTTP", "abcde", "HTTP"),
            ("0\r\n\r\n", "", ""),
            ("000\r\n\r\n", "", ""),
            ("A\r\n0123456789\r\n0\r\n\r\n", "0123456789", ""),
            ("a;x=\"y;z\"\r\n0123456789\r\n0;last\r\n\r\n", "0123456789", ""),
            ("1 ;x\r\na\r\n1 \r\nb\r\n1\t;y\r\nc\r\n0\r\n\r\n", "abc", ""),
            ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", ""),
        ] {
            for size in 1..=wire.len() {
                let got = run(Decoder::chunked(), wire.as_bytes(), &[size], true).unwrap();
                let want = (content.as_bytes().to_vec(), None, left.as_bytes().to_vec(), true);
                assert_eq!(got, want, "{wire:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn what_came_together_is_one_piece() {
        let mut read = b"3\r\nabc\r\n2\r\nde\r\n4\r\nfg".to_vec();
        let mut decoder = Decoder::chunked();
        let got = decoder.decode(&mut read).unwrap();
        assert_eq!(&read[got.data], b"abcdefg");
        assert_eq!(got.used, read.len());
        let got = decoder.decode(&mut b"hi\r\n0\r\n\r\n".to_vec()).unwrap();
        assert_eq!((got.data, got.used), (0..2, 9));
        assert!(decoder.is_ended());
    }

    #[test]
    fn trailers_are_handed_on() {
        let wire = b"1\r\na\r\n0\r\nX-Sum: 1\r\nx-sum: 2\r\n\r\nleft";
        for size in 1..=wire.len() {
            let (content, trailers, left, ended) = run(Decoder::chunked(), wire, &[size], true).unwrap();
            assert_eq!((&content[..], &left[..], ended), (&b"a"[..], &b"left"[..], true));
            let all: Vec<_> = trailers.unwrap().get_all("x-sum").iter().cloned().collect();
            assert_eq!(all, ["1", "2"]);
        }
    }

    #[test]
    fn broken_chunks_are_refused_in_any_pieces() {
        let endless = format!("1;{}", "x".repeat(2 * MAX_SIZE_LINE));
        let fields = format!("0\r\n{}", "a: b\r\n".repeat(MAX_TRAILERS));
        let extensions = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(20);
        for wire in [
            "\r\n",
            ";x\r\na\r\n",
            " 1\r\na\r\n",
            "g\r\n",
            "-1\r\n",
            "0x1\r\na\r\n",
            "1\na\r\n",
            "1\rxa\r\n",
            "1 2\r\na\r\n",
            "1;a\nb\r\na\r\n",
            "1;a\rb\r\na\r\n",
            "1\r\nab\r\n",
            "1\r\na\n0\r\n\r\n",
            "1\r\na\rx",
            "1000000000000000\r\n",
            "fffffffffffffffff\r\n",
            "0\r\n: x\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\na b: c\r\n\r\n",
            &endless,
            &fields,
            &extensions,
        ] {
            let sizes = if wire.len() > 1000 {
                vec![wire.len(), 1000]
            } else {
                (1..=wire.len()).collect()
            };
            for size in sizes {
                let got = run(Decoder::chunked(), wire.as_bytes(), &[size], false);
                assert!(
                    got.is_err(),
                    "{:?} in pieces of {size}: {got:?}",
                    wire.get(..40).unwrap_or(wire)
                );
            }
        }
    }

    #[test]
    fn an_end_that_comes_too_early_is_seen() {
        for wire in [
            "",
            "3",
            "3\r\nab",
            "3\r\nabc",
            "3\r\nabc\r\n",
            "0\r\n",
            "0\r\na: b\r\n",
        ] {
            assert!(
                run(Decoder::chunked(), wire.as_bytes(), &[100], true).is_err(),
                "{wire:?}"
            );
        }
        assert!(run(Decoder::length(3), b"ab", &[100], true).is_err());
        let (content, _, left, ended) = run(Decoder::length(3), b"abcd", &[2], true).unwrap();
        assert_eq!((&content[..], &left[..], ended), (&b"abc"[..], &b"d"[..], true));
        let (content, .., ended) = run(Decoder::until_close(), b"abcd", &[3], true).unwrap();
        assert_eq!((&content[..], ended), (&b"abcd"[..], true));
        assert!(Decoder::length(0).is_ended());
    }

    /// A chunked body of these parts, and its content.
    fn body() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let chunk = (
            prop::collection::vec(any::<u8>(), 1..400),
            "(;[a-z]{0,4}(=[a-z\"]{0,3})?)?",
            0..3_usize,
        );
        prop::collection::vec(chunk, 0..12).prop_map(|chunks| {
            let (mut wire, mut content) = (Vec::new(), Vec::new());
            for (data, extension, zeros) in chunks {
                let zeros = "0".repeat(zeros);
                wire.extend_from_slice(format!("{zeros}{:X}{extension}\r\n", data.len()).as_bytes());
                wire.extend_from_slice(&data);
                wire.extend_from_slice(b"\r\n");
                content.extend_from_slice(&data);
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            (wire, content)
        })
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_content(
            (wire, content) in body(),
            sizes in prop::collection::vec(1..60_usize, 1..20),
            left in prop::collection::vec(any::<u8>(), 0..9),
        ) {
            let all = [&wire[..], &left[..]].concat();
            let got = run(Decoder::chunked(), &all, &sizes, true).unwrap();
            prop_assert_eq!(got, (content, None, left, true));
        }

        #[test]
        fn any_bytes_end_the_same_way_in_any_pieces(
            start in prop::sample::select(vec!["", "1\r\na\r\n", "2;x\r\nab", "0\r\n"]),
            bytes in prop::collection::vec(prop::sample::select(b"01aF;: \r\n\tx".to_vec()), 0..40),
            sizes in prop::collection::vec(1..9_usize, 1..9),
        ) {
            let wire = [start.as_bytes(), &bytes[..]].concat();
            let whole = run(Decoder::chunked(), &wire, &[wire.len().max(1)], false);
            let split = run(Decoder::chunked(), &wire, &sizes, false);
            match (whole, split) {
                (Ok(whole), Ok(split)) => prop_assert_eq!(whole, split),
                (whole, split) => prop_assert_eq!(whole.is_err(), split.is_err()),
            }
        }
    }
}
