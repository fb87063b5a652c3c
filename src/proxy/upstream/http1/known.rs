//! Heads of answers that were read before: an upstream says nearly the same each time, so only what differs is read.

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use super::Http1Error;
use super::head::{Field, MAX_HEAD, part};

/// Heads larger than this are not remembered.
const MAX_RAW: usize = 4 * 1024;

/// How many heads are remembered: an upstream has one for streams, one for whole answers, one for refusals.
const MAX_KNOWN: usize = 4;

/// The heads that the answers of one upstream had last, one of each kind.
#[derive(Debug, Default)]
pub(crate) struct Known {
    heads: SmallVec<[Box<Model>; MAX_KNOWN]>,
    /// Which one is given up next for another.
    oldest: usize,
}

/// A head that another may be like: the same status line and the same names in the same order.
#[derive(Debug)]
struct Model {
    raw: Vec<u8>,
    /// Where the status line ends.
    start: usize,
    lines: Vec<Line>,
    status: StatusCode,
    minor: u8,
    /// With one value for each line, in the order of the lines.
    headers: HeaderMap,
}

/// A field of the model, as it stands in its `raw`.
#[derive(Debug, Clone, Copy)]
struct Line {
    from: usize,
    /// Behind the colon.
    named: usize,
    /// Behind the end of line.
    to: usize,
}

/// What was read of a head.
pub(super) struct Read {
    pub(super) status: StatusCode,
    pub(super) minor: u8,
    pub(super) headers: HeaderMap,
}

impl Known {
    /// Takes a head from the front of `read` if it is complete and like one that is known.
    ///
    /// # Errors
    /// When it is, and the value of a field has a character that no value may have.
    pub(super) fn take(&self, read: &mut BytesMut) -> Result<Option<Read>, Http1Error> {
        for model in &self.heads {
            if let Some((len, changed)) = model.compare(read) {
                return model.apply(&read.split_to(len).freeze(), &changed).map(Some);
            }
        }
        Ok(None)
    }

    /// Remembers a head with its fields at `places`. The values are copied, so that `block` is not held.
    pub(super) fn learn(&mut self, block: &[u8], places: &[Field], read: &Read) {
        let headers = &read.headers;
        let plain = places.len() == headers.keys_len() && places.len() == headers.len();
        let plain = plain && block.len() <= MAX_RAW && block.ends_with(b"\r\n\r\n");
        let Some(first) = places.first().filter(|_| plain) else {
            return;
        };
        let mut own = HeaderMap::with_capacity(headers.len());
        for (name, value) in headers {
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else {
                return;
            };
            own.insert(name.clone(), value);
        }
        let ends = places.iter().skip(1).map(|next| next.name.0);
        let lines = places.iter().zip(ends.chain([block.len().saturating_sub(2)]));
        let model = Box::new(Model {
            raw: block.to_vec(),
            start: first.name.0,
            lines: lines
                .map(|(place, to)| Line {
                    from: place.name.0,
                    named: place.name.1 + 1,
                    to,
                })
                .collect(),
            status: read.status,
            minor: read.minor,
            headers: own,
        });
        if self.heads.len() < MAX_KNOWN {
            self.heads.push(model);
        } else if let Some(place) = self.heads.get_mut(self.oldest) {
            *place = model;
            self.oldest = (self.oldest + 1) % MAX_KNOWN;
        }
    }
}

/// The lines that differ from the model's, and where their values are.
type Changed = SmallVec<[(usize, (usize, usize)); 8]>;

impl Model {
    /// The length of the head at the front of `read` and where it differs, if it is like this one.
    fn compare(&self, read: &[u8]) -> Option<(usize, Changed)> {
        let mut changed = Changed::new();
        let status = self.raw.get(..self.start)?;
        let mut at = self.start;
        if !read.starts_with(status) {
            return None;
        }
        for (i, line) in self.lines.iter().enumerate() {
            let rest = read.get(at..)?;
            if rest.starts_with(self.raw.get(line.from..line.to)?) {
                at += line.to - line.from;
                continue;
            }
            if !rest.starts_with(self.raw.get(line.from..line.named)?) {
                return None;
            }
            let named = line.named - line.from;
            let rest = rest.get(named..)?;
            let end = memchr::memchr(b'\n', rest)?;
            let value = rest.get(..end)?.strip_suffix(b"\r")?;
            let space = |b: &&u8| matches!(**b, b' ' | b'\t');
            let before = value.iter().take_while(space).count();
            let after = value.iter().rev().take_while(space).count();
            let from = at + named + before;
            changed.push((
                i,
                (from, (at + named + value.len()).saturating_sub(after).max(from)),
            ));
            at += named + end + 1;
        }
        if at + 2 > MAX_HEAD || !read.get(at..)?.starts_with(b"\r\n") {
            return None;
        }
        Some((at + 2, changed))
    }

    fn apply(&self, block: &Bytes, changed: &Changed) -> Result<Read, Http1Error> {
        let mut headers = self.headers.clone();
        let mut changed = changed.iter().copied();
        let mut next = changed.next();
        for (i, value) in headers.values_mut().enumerate() {
            let Some((_, place)) = next.filter(|(at, _)| *at == i) else {
                continue;
            };
            *value =
                HeaderValue::from_maybe_shared(part(block, place)).map_err(|_| super::head::BAD_VALUE)?;
            next = changed.next();
        }
        Ok(Read {
            status: self.status,
            minor: self.minor,
            headers,
        })
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use proptest::prelude::*;

    use super::*;
    use crate::proxy::upstream::http1::head::take;

    /// What is made of each of `texts`, one after the other, with what was learned of those before and without.
    fn compare(texts: &[Vec<u8>]) -> Result<(), TestCaseError> {
        let mut known = Known::default();
        for text in texts {
            let told = |known: &mut Known| {
                let mut read = BytesMut::from(&text[..]);
                let head = take(&mut read, &Method::GET, known).map_err(|e| {
                    // What is refused is refused either way; which fault is named first may differ.
                    drop(e);
                });
                head.map(|h| {
                    (
                        h.map(|h| (h.status, h.headers, format!("{:?}", h.body), h.keep)),
                        read,
                    )
                })
            };
            prop_assert_eq!(
                told(&mut known),
                told(&mut Known::default()),
                "{:?}",
                String::from_utf8_lossy(text)
            );
        }
        Ok(())
    }

    #[test]
    fn what_is_known_changes_nothing() {
        let head = "HTTP/1.1 200 OK\r\ndate: Mon\r\nContent-Length: 3\r\nx-id: \t a b \r\n\r\nabc";
        let others = [
            head.replace("Mon", "Tue"),
            head.replace("date: Mon", "date:"),
            head.replace("date: Mon", "date:  \t "),
            head.replace("date: Mon", "date: M\u{7f}n"),
            head.replace("date: Mon", "date: M\rn"),
            head.replace("date: Mon", "date: M\0n"),
            head.replace("date: Mon\r\n", "date: Mon\n"),
            head.replace("date: Mon\r\n", "date: Mon\r\n folded\r\n"),
            head.replace("date: Mon\r\n", "date: Mon\r\ndate: Mon\r\n"),
            head.replace("date: Mon\r\n", ""),
            head.replace("date:", "date :"),
            head.replace("date:", "Date:"),
            head.replace("date:", "dater:"),
            head.replace("Length: 3", "Length: 4"),
            head.replace("Length: 3", "Length: -4"),
            head.replace("x-id: \t a b \r\n", "x-id: \t a b \r\nx: y\r\n"),
            head.replace("x-id: \t a b \r\n", "x-id: \t a b \r\n\tfolded\r\n"),
            head.replace("\r\n\r\n", "\n\n"),
            head.replace("\r\n\r\n", "\r\n\n"),
            head.replace("200 OK", "200 OKAY"),
            head.replace("HTTP/1.1 200", "HTTP/1.0 200"),
        ];
        for other in &others {
            for texts in [[head, other, head], [other, head, other], [head, head, other]] {
                compare(&texts.map(|t| t.as_bytes().to_vec())).unwrap();
            }
        }
        for cut in 0..head.len() {
            compare(&[head.into(), head.as_bytes()[..cut].to_vec()]).unwrap();
        }
    }

    #[test]
    fn a_head_that_is_like_another_is_read_by_it() {
        let mut known = Known::default();
        let text = "HTTP/1.1 204 No\r\na: 1\r\nb: 2\r\n\r\nrest";
        take(&mut BytesMut::from(text), &Method::GET, &mut known).unwrap();
        let mut read = BytesMut::from(&*text.replace("b: 2", "b: three"));
        let got = known.take(&mut read).unwrap().unwrap();
        assert_eq!(
            (&got.headers["a"], &got.headers["b"]),
            (&"1".parse().unwrap(), &"three".parse().unwrap())
        );
        assert_eq!(&read[..], b"rest");
        for i in 0..20 {
            let text = format!("HTTP/1.1 204 No\r\na{i}: 1\r\n\r\n");
            take(&mut BytesMut::from(&*text), &Method::GET, &mut known).unwrap();
        }
        assert_eq!(known.heads.len(), MAX_KNOWN);
    }

    proptest! {
        #[test]
        fn what_is_known_changes_nothing_whatever_comes(
            heads in prop::collection::vec(
                (0..3_usize, prop::collection::vec((prop::sample::select(vec!["a", "bb", "C-c", "set-cookie"]),
                    prop::sample::select(vec![": 1", ":2", ":  x y ", ": \u{1}", ":", " : 1", ": a\r\n b"]),
                    prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\n"])), 0..4), any::<prop::sample::Index>()),
                1..8),
        ) {
            let texts: Vec<Vec<u8>> = heads.iter().map(|(status, fields, cut)| {
                let mut text = ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 404 No\r\n", "HTTP/1.0 200 OK\r\n"][*status].to_owned();
                for (name, value, end) in fields {
                    text += name;
                    text += value;
                    text += end;
                }
                text += "\r\nleft";
                // Mostly whole, now and then cut off.
                let cut = cut.index(text.len() * 4).min(text.len());
                text.as_bytes()[..cut].to_vec()
            }).collect();
            compare(&texts)?;
        }
    }
}
