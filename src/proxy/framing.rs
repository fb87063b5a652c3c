//! Follows the messages of an HTTP/1 connection, to see every head that gives its body's length in two ways.

use memchr::memchr;

/// How much is kept of a line that comes in pieces: enough for the headers that matter, with some blanks.
const LINE: usize = 64;

/// Where the messages of one connection begin and end.
///
/// hyper obeys `Transfer-Encoding` and drops `Content-Length` before anybody else sees it, which is safe for us and
/// hides that the client may have meant something else. So the bytes are followed beside it: heads line by line,
/// bodies by their length alone. Where hyper is stricter it refuses the request itself, and what is thought here does
/// not matter any more.
#[derive(Debug, Default)]
pub(super) struct Framing {
    at: At,
    /// The beginning of a line that is not complete yet, cut to [`LINE`].
    line: Vec<u8>,
    length: Option<u64>,
    chunked: bool,
    unclear: bool,
    /// Heads that were complete.
    heads: u64,
    conflict: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a request line; blank lines do not count.
    #[default]
    Start,
    Head,
    /// So many bytes are left.
    Body(u64),
    ChunkSize,
    /// So many bytes are left, the line end after them included.
    Chunk(u64),
    Trailers,
    /// Nothing that comes now will be read as a request.
    Over,
}

impl Framing {
    /// Whether head number `n` of the connection, counted from 1, gives its body's length in two ways, or where it
    /// begins is not certain.
    pub(super) fn conflicts(&self, n: u64) -> bool {
        self.conflict == Some(n)
    }

    /// Whether a head has begun and is not complete.
    pub(super) fn is_inside_head(&self) -> bool {
        self.at == At::Head || (self.at == At::Start && !self.line.is_empty())
    }

    /// Takes the next bytes of the connection.
    pub(super) fn see(&mut self, mut read: &[u8]) {
        while !read.is_empty() {
            match self.at {
                At::Over => return,
                At::Body(left) => {
                    let (left, rest) = pass(left, read);
                    self.at = if left == 0 { At::Start } else { At::Body(left) };
                    read = rest;
                }
                At::Chunk(left) => {
                    let (left, rest) = pass(left, read);
                    self.at = if left == 0 { At::ChunkSize } else { At::Chunk(left) };
                    read = rest;
                }
                At::Start | At::Head | At::ChunkSize | At::Trailers => {
                    let Some(end) = memchr(b'\n', read) else {
                        return self.keep(read);
                    };
                    let (line, rest) = read.split_at_checked(end).unwrap_or((read, &[]));
                    if self.line.is_empty() {
                        self.line_is(line, false);
                    } else {
                        self.keep(line);
                        let line = std::mem::take(&mut self.line);
                        self.line_is(&line, line.len() == LINE);
                    }
                    read = rest.get(1..).unwrap_or_default();
                }
            }
        }
    }

    fn keep(&mut self, part: &[u8]) {
        let room = LINE.saturating_sub(self.line.len()).min(part.len());
        self.line.extend_from_slice(part.get(..room).unwrap_or_default());
    }

    /// `cut`: there may be more of the line.
    fn line_is(&mut self, line: &[u8], cut: bool) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match self.at {
            At::Start if !line.is_empty() => self.at = At::Head,
            At::Head if line.is_empty() => self.head_is_over(),
            At::Head => self.header(line, cut),
            At::ChunkSize => self.chunk(line, cut),
            At::Trailers if line.is_empty() => self.at = At::Start,
            _ => {}
        }
    }

    fn header(&mut self, line: &[u8], cut: bool) {
        // Most headers begin with another letter.
        match line.first() {
            Some(b'c' | b'C') => {
                if let Some(value) = value(line, "content-length:") {
                    match number(value).filter(|_| !cut) {
                        Some(length) => self.length = Some(length),
                        None => self.unclear = true,
                    }
                }
            }
            Some(b't' | b'T') => self.chunked |= value(line, "transfer-encoding:").is_some(),
            _ => {}
        }
    }

    fn head_is_over(&mut self) {
        self.heads += 1;
        let (length, chunked) = (self.length.take(), std::mem::take(&mut self.chunked));
        if self.unclear || (chunked && length.is_some()) {
            // Such a request ends its connection.
            self.conflict = Some(self.heads);
            self.at = At::Over;
            return;
        }
        self.at = match length {
            _ if chunked => At::ChunkSize,
            None | Some(0) => At::Start,
            Some(length) => At::Body(length),
        };
    }

    fn chunk(&mut self, line: &[u8], cut: bool) {
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let size = line
            .get(..digits)
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u64::from_str_radix(d, 16).ok())
            .filter(|_| !cut || digits < line.len());
        self.at = match size {
            Some(0) => At::Trailers,
            Some(size) => At::Chunk(size.saturating_add(2)),
            None => {
                // Where the next head begins is not known: should there be one, it cannot be trusted.
                self.conflict = Some(self.heads + 1);
                At::Over
            }
        };
    }
}

/// What is left of `left` bytes after `read`, and of `read` after them.
fn pass(left: u64, read: &[u8]) -> (u64, &[u8]) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
    (left - taken as u64, read.get(taken..).unwrap_or_default())
}

/// The value of the header `name` (with its colon, lower case), if that is what stands in `line`.
fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start
        .eq_ignore_ascii_case(name.as_bytes())
        .then_some(value.trim_ascii())
}

/// A length as RFC 9110 §8.6 has it: digits alone.
fn number(value: &[u8]) -> Option<u64> {
    if !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::Framing;

    /// The numbers of the heads in conflict, however the bytes are split.
    fn conflict(bytes: &str, heads: u64) -> Option<u64> {
        let found = |framing: &Framing| (1..=heads + 1).find(|n| framing.conflicts(*n));
        let mut whole = Framing::default();
        whole.see(bytes.as_bytes());
        for size in 1..=bytes.len() {
            let mut framing = Framing::default();
            bytes.as_bytes().chunks(size).for_each(|piece| framing.see(piece));
            assert_eq!(found(&framing), found(&whole), "{bytes:?} in pieces of {size}");
            assert_eq!(framing.heads, whole.heads, "{bytes:?} in pieces of {size}");
        }
        assert_eq!(whole.heads, heads, "{bytes:?}");
        found(&whole)
    }

    const BOTH: &str =
        "POST /b HTTP/1.1\r\ncontent-LENGTH: 3\r\nHost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";

    #[test]
    fn two_lengths_are_seen_in_every_head() {
        let get = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        let sized = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nab\r\n\n";
        let empty = "POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\na\n\n\r\nA\r\n0123456789\r\n0\r\nx-t: 1\r\n\r\n";
        for before in [
            vec![],
            vec![get],
            vec![sized],
            vec![empty],
            vec![chunked],
            vec!["\r\n\n\r\n"],
            vec![sized, "\r\n", chunked, get, empty],
        ] {
            let heads = before.iter().filter(|m| m.trim() != "").count() as u64;
            let all = before.concat();
            if !all.is_empty() {
                assert_eq!(conflict(&all, heads), None, "{before:?}");
            }
            assert_eq!(
                conflict(&(all + BOTH), heads + 1),
                Some(heads + 1),
                "after {before:?}"
            );
        }
    }

    #[test]
    fn what_only_looks_like_two_lengths_is_none() {
        for (bytes, heads) in [
            (
                "POST / HTTP/1.1\r\nX-Content-Length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
                1,
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\ntransfer-encoding: chunked\r\n\r\n",
                1,
            ),
            (
                "POST / HTTP/1.1\nTransfer-Encoding: chunked\nA: b\n\n0\n\nGET / HTTP/1.1\n\n",
                2,
            ),
            (
                "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 3\r\n\r\nGET / HTTP/1.1\r\n\r\n",
                2,
            ),
        ] {
            assert_eq!(conflict(bytes, heads), None, "{bytes}");
        }
    }

    #[test]
    fn what_cannot_be_followed_is_not_trusted() {
        for (bytes, heads, n) in [
            ("POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n", 1, 1),
            ("POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n", 1, 1),
            (
                "POST / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
                1,
                1,
            ),
            (
                "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                1,
                2,
            ),
        ] {
            assert_eq!(conflict(bytes, heads), Some(n), "{bytes}");
        }
        // A size that is longer than what is kept of a line in pieces.
        let zeros = "0".repeat(200);
        let mut framing = Framing::default();
        framing.see(format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{zeros}").as_bytes());
        framing.see(b"5\r\nabcde\r\n");
        assert!(framing.conflicts(2));
    }

    proptest::proptest! {
        /// Whatever comes, in whatever pieces: it is read as in one, unless a line was too long to be kept.
        #[test]
        fn pieces_do_not_matter(
            lines in proptest::collection::vec(
                "(POST / HTTP/1.1|content-length: [0-9]{1,3}|Transfer-Encoding:chunked|[0-9a-f]{1,2}(;x)?|[ -~]{0,9}|)(\r)?\n",
                0..24,
            ),
            size in 1_usize..20,
        ) {
            let bytes = lines.concat();
            let (mut whole, mut pieces) = (Framing::default(), Framing::default());
            whole.see(bytes.as_bytes());
            bytes.as_bytes().chunks(size).for_each(|piece| pieces.see(piece));
            proptest::prop_assert_eq!((whole.heads, whole.conflict), (pieces.heads, pieces.conflict));
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            Framing::default().see(&bytes);
        }
    }

    #[test]
    fn little_is_kept_of_endless_lines() {
        let mut framing = Framing::default();
        framing.see(b"GET / HTTP/1.1\r\nx: ");
        for _ in 0..1_000 {
            framing.see(&[b'a'; 1_000]);
        }
        assert!(framing.line.capacity() <= 2 * super::LINE && framing.is_inside_head());
    }
}
