//! Finds the JSON documents of a stream that is no event stream: one a line, or the elements of one array.

use memchr::memchr;

const KEPT: usize = 512;

/// Reads one document a line (NDJSON).
#[derive(Debug, Default)]
pub(super) struct Lines {
    held: Vec<u8>,
    too_long: bool,
}

/// Reads the elements of an array that are objects.
#[derive(Debug, Default)]
pub(super) struct Elements {
    held: Vec<u8>,
    /// How deep in objects and arrays; the array itself counts.
    depth: usize,
    in_string: bool,
    escaped: bool,
    too_long: bool,
    /// There was an element.
    any: bool,
    /// A comma came after it.
    comma: bool,
}

impl Lines {
    /// Whether what came so far ends with a line.
    pub(super) fn is_between(&self) -> bool {
        self.held.is_empty() && !self.too_long
    }

    /// Takes a piece and calls `each` with every line that ends in it; lines of more than `limit` bytes are left out.
    pub(super) fn push(&mut self, piece: &[u8], limit: usize, each: &mut dyn FnMut(&[u8])) {
        let mut rest = piece;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, tail) = rest.split_at(end);
            rest = tail.get(1..).unwrap_or_default();
            if self.held.is_empty() && !self.too_long {
                if line.len() <= limit {
                    each(line);
                }
            } else {
                hold(&mut self.held, line, limit, &mut self.too_long);
                self.end(each);
            }
        }
        hold(&mut self.held, rest, limit, &mut self.too_long);
    }

    /// The stream ended: gives the line that has no end.
    pub(super) fn end(&mut self, each: &mut dyn FnMut(&[u8])) {
        let too_long = std::mem::take(&mut self.too_long);
        if !too_long && !self.held.is_empty() {
            each(&self.held);
        }
        reuse(&mut self.held);
    }
}

impl Elements {
    /// Whether an element came and a comma after it; `None` inside of one, and outside of the array.
    pub(super) fn between(&self) -> Option<(bool, bool)> {
        (self.depth == 1 && !self.in_string).then_some((self.any, self.comma))
    }

    /// Takes a piece and calls `each` with every element that ends in it; those of more than `limit` bytes are left out.
    pub(super) fn push(&mut self, piece: &[u8], limit: usize, each: &mut dyn FnMut(&[u8])) {
        let mut start = 0;
        let mut i = 0;
        while let Some(&b) = piece.get(i) {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                    i += 1;
                } else if let Some(n) = piece.get(i..).and_then(|p| memchr::memchr2(b'"', b'\\', p)) {
                    i += n + 1;
                    self.in_string = piece.get(i - 1) != Some(&b'"');
                    self.escaped = self.in_string;
                } else {
                    break;
                }
                continue;
            }
            match b {
                b'"' => self.in_string = true,
                b'{' | b'[' => {
                    if self.depth == 1 {
                        start = i;
                    }
                    self.depth += 1;
                }
                b',' if self.depth == 1 => self.comma = true,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 1 {
                        (self.any, self.comma) = (true, false);
                        let element = piece.get(start..=i).unwrap_or_default();
                        if self.held.is_empty() && !self.too_long {
                            if element.len() <= limit {
                                each(element);
                            }
                        } else {
                            hold(&mut self.held, element, limit, &mut self.too_long);
                            if !std::mem::take(&mut self.too_long) {
                                each(&self.held);
                            }
                            reuse(&mut self.held);
                        }
                    }
                }
                _ => {}
            }
            i += 1;
        }
        if self.depth > 1 {
            hold(
                &mut self.held,
                piece.get(start..).unwrap_or_default(),
                limit,
                &mut self.too_long,
            );
        }
    }
}

fn hold(held: &mut Vec<u8>, part: &[u8], limit: usize, too_long: &mut bool) {
    if *too_long || held.len() + part.len() > limit {
        *too_long = true;
        *held = Vec::new();
    } else {
        held.extend_from_slice(part);
    }
}

fn reuse(held: &mut Vec<u8>) {
    if held.capacity() > KEPT {
        *held = Vec::new();
    } else {
        held.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(stream: &[u8], size: usize, limit: usize) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        let mut lines = Lines::default();
        for piece in stream.chunks(size) {
            lines.push(piece, limit, &mut |l| got.push(l.to_vec()));
        }
        lines.end(&mut |l| got.push(l.to_vec()));
        got.retain(|l| !l.is_empty());
        got
    }

    fn elements(stream: &[u8], size: usize, limit: usize) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        let mut elements = Elements::default();
        for piece in stream.chunks(size) {
            elements.push(piece, limit, &mut |l| got.push(l.to_vec()));
        }
        got
    }

    #[test]
    fn lines_and_elements_do_not_depend_on_the_split() {
        let ndjson = b"{\"a\":1}\n{\"b\":2}\n\n{\"c\":3}";
        let array = b"[{\n \"a\": \"]}\\\"{\"\n}\n,\n{\"b\":[{},[1]]}\r\n, {}]\n";
        for size in 1..60 {
            assert_eq!(
                lines(ndjson, size, 100),
                [&b"{\"a\":1}"[..], b"{\"b\":2}", b"{\"c\":3}"],
                "{size}"
            );
            let expected = [&b"{\n \"a\": \"]}\\\"{\"\n}"[..], b"{\"b\":[{},[1]]}", b"{}"];
            assert_eq!(elements(array, size, 100), expected, "{size}");
        }
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let long = "x".repeat(500);
        for size in [1, 50, 5000] {
            let ndjson = format!("{long}\nb\n{long}\nc\n");
            assert_eq!(lines(ndjson.as_bytes(), size, 100), [b"b", b"c"], "{size}");
            let array = format!("[{{\"a\":\"{long}\"}},{{}},{{\"{long}\":1}},{{}}]");
            assert_eq!(elements(array.as_bytes(), size, 100), [b"{}", b"{}"], "{size}");
        }
    }

    #[test]
    fn a_depth_bomb_is_held_up_to_the_limit_only() {
        let mut elements = Elements::default();
        for _ in 0..1000 {
            elements.push(&[b'['; 4096], 64 << 10, &mut |_| {});
        }
        assert!(elements.held.capacity() <= 256 << 10);
    }
}
