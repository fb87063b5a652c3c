//! Reads an event that is like the one before it but for its text, by comparing bytes instead of parsing JSON.
//!
//! Nearly all events of a stream are of that kind. What else such an event says was said by the one before it, and
//! saying it again changes nothing: the last model, reason or count is the same one. So it is exact, not a guess, as
//! long as the very last event was read in full or by this template, and that is seen to.

use std::ops::Range;

use memchr::memchr2;
use smallvec::SmallVec;

use crate::dialect::cursor::{Cursor, Str};

/// Longest event that becomes a template, in bytes.
const LONGEST: usize = 768;
/// Events in a row that differ in more than their text, after which templates are made less often.
const PATIENCE: u8 = 8;

/// The constant parts of an event, and what stands between them.
#[derive(Debug, Default)]
pub(super) struct Template {
    constants: Vec<u8>,
    /// Where each constant ends, and what comes then; the last one is the end.
    holes: SmallVec<[(u16, Hole); 4]>,
    valid: bool,
    /// The event ended with a brace, which is not among the constants.
    closed: bool,
    misses: u8,
    seen: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hole {
    /// The string that is the text.
    Text,
    /// A string that nobody reads.
    Word,
    /// A number that nobody reads.
    Digits,
}

/// Top-level keys whose values differ from event to event and are read by nobody.
fn unread(key: &[u8]) -> bool {
    matches!(key, b"sequence_number" | b"obfuscation" | b"created_at" | b"p")
}

impl Template {
    /// The text of an event that differs from the template in nothing else (but unread values).
    #[inline]
    pub(super) fn text<'a>(&self, event: &'a [u8]) -> Option<Str<'a>> {
        let (text, end, last) = self.compare::<false>(event)?;
        (tail(end) == last).then_some(text)
    }

    /// The same for the server-sent event that `bytes` begin with, found without looking for the ends of its lines;
    /// also gives what comes after it. An event of more than `limit` bytes, one that is named `error` and one that is
    /// not whole are left to others.
    #[inline]
    pub(super) fn framed<'a>(&self, bytes: &'a [u8], limit: usize) -> Option<(Str<'a>, &'a [u8])> {
        if !(self.valid && self.closed) || limit < LONGEST {
            return None;
        }
        let event = data_line(bytes)?;
        let (text, end, last) = self.compare::<true>(event)?;
        let after = end.strip_prefix(last)?.strip_prefix(b"}")?;
        if event.len() - after.len() > limit {
            return None;
        }
        let after = after
            .strip_prefix(b"\n\n")
            .or_else(|| after.strip_prefix(b"\r\n\r\n"))?;
        Some((text, after))
    }

    /// Compares `event` with the template up to its last hole: gives the text, what comes after that hole, and what
    /// has to. `LINE`: no string may go beyond the end of a line.
    #[inline]
    fn compare<'a, const LINE: bool>(&self, event: &'a [u8]) -> Option<(Str<'a>, &'a [u8], &[u8])> {
        if !self.valid {
            return None;
        }
        let mut text = None;
        let (mut at, mut from) = (0, 0);
        for (end, hole) in &self.holes {
            let end = usize::from(*end);
            let constant = self.constants.get(from..end)?;
            from = end;
            let rest = event.get(at..)?;
            if !rest.starts_with(constant) {
                return None;
            }
            at += constant.len();
            match hole {
                Hole::Text | Hole::Word => {
                    if event.get(at) != Some(&b'"') {
                        return None;
                    }
                    let mut cursor = Cursor::starting(event, at);
                    let string = cursor.string()?;
                    if LINE && has_line_end(string.raw()) {
                        return None;
                    }
                    at = cursor.at();
                    if *hole == Hole::Text {
                        text = Some(string);
                    }
                }
                Hole::Digits => {
                    let digits = event.get(at..)?.iter().take_while(|b| b.is_ascii_digit()).count();
                    if digits == 0 {
                        return None;
                    }
                    at += digits;
                }
            }
        }
        Some((text?, event.get(at..)?, self.constants.get(from..)?))
    }

    /// An event was read by the template.
    #[inline]
    pub(super) fn hit(&mut self) {
        self.misses = 0;
    }

    /// An event was read in full: the template no longer says what the last event was.
    pub(super) fn miss(&mut self) {
        self.valid = false;
        self.misses = self.misses.saturating_add(1);
    }

    /// Makes the template of an event that was read in full and whose only lasting effect was that a text was added;
    /// `text`: the address of that text.
    pub(super) fn learn(&mut self, event: &[u8], text: &Range<usize>) {
        self.seen = self.seen.wrapping_add(1);
        if event.len() > LONGEST || (self.misses > PATIENCE && !self.seen.is_multiple_of(32)) {
            return;
        }
        let Some(place) = place(event, text) else { return };
        let mut holes: SmallVec<[(usize, usize, Hole); 4]> = SmallVec::new();
        holes.push((place.start - 1, place.end + 1, Hole::Text));
        let read = Cursor::new(event).object(|key, c| {
            if unread(key) {
                let first = c.peek();
                let start = c.at();
                c.skip();
                match first {
                    b'"' => holes.push((start, c.at(), Hole::Word)),
                    b'0'..=b'9' => holes.push((start, c.at(), Hole::Digits)),
                    _ => {}
                }
            }
        });
        holes.sort_unstable_by_key(|h| h.0);
        self.constants.clear();
        self.holes.clear();
        let mut at = 0;
        for (start, end, hole) in holes {
            let (Some(constant), Ok(length)) = (
                event.get(at..start),
                u16::try_from(self.constants.len() + start.saturating_sub(at)),
            ) else {
                return;
            };
            self.constants.extend_from_slice(constant);
            self.holes.push((length, hole));
            at = end;
        }
        let end = event.get(at..).unwrap_or_default();
        self.constants.extend_from_slice(tail(end));
        self.closed = end.last() == Some(&b'}');
        self.valid = read;
    }
}

/// Where in `event` a string at that address stands, when it does, in quotes.
fn place(event: &[u8], text: &Range<usize>) -> Option<Range<usize>> {
    let start = text.start.checked_sub(event.as_ptr() as usize)?;
    let end = start.checked_add(text.len())?;
    let quoted = event.get(start.checked_sub(1)?) == Some(&b'"') && event.get(end) == Some(&b'"');
    quoted.then_some(start..end)
}

/// Without leaving early: texts are short, and so many bytes are looked at in one step.
#[inline]
fn has_line_end(text: &[u8]) -> bool {
    text.iter()
        .fold(false, |found, b| found | matches!(b, b'\n' | b'\r'))
}

/// What follows `data:` in a server-sent event that has one line of data and perhaps a name before it.
#[inline]
fn data_line(bytes: &[u8]) -> Option<&[u8]> {
    /// Longest line with a name, in bytes.
    const LONG: usize = 128;
    let line = match bytes.strip_prefix(b"event:") {
        None => bytes,
        Some(named) => {
            let (line, rest) = named.split_at(memchr2(b'\n', b'\r', named.get(..LONG).unwrap_or(named))?);
            if line.strip_prefix(b" ").unwrap_or(line) == b"error" {
                return None;
            }
            rest.strip_prefix(b"\n").or_else(|| rest.strip_prefix(b"\r\n"))?
        }
    };
    let value = line.strip_prefix(b"data:")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// The end of an event without the blanks that some put before the last brace as padding.
#[inline]
fn tail(end: &[u8]) -> &[u8] {
    match end.split_last() {
        Some((b'}', rest)) => rest.trim_ascii_end(),
        _ => end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text<'a>(event: &'a str, key: &str) -> Str<'a> {
        let mut found = None;
        Cursor::new(event.as_bytes()).object(|k, c| {
            if k == key.as_bytes() {
                found = c.string();
            }
        });
        found.unwrap()
    }

    #[test]
    fn only_the_text_and_what_nobody_reads_may_differ() {
        let first =
            r#"{"type":"d","sequence_number":9,"delta":"one","n":1,"obfuscation":"ab","x":{"y":"z"}}"#;
        let mut template = Template::default();
        template.learn(first.as_bytes(), &text(first, "delta").address());
        for (event, same) in [
            (first, Some("one")),
            (
                r#"{"type":"d","sequence_number":10,"delta":"t\"wo","n":1,"obfuscation":"","x":{"y":"z"}}"#,
                Some("t\"wo"),
            ),
            (
                r#"{"type":"d","sequence_number":10,"delta":"","n":1,"obfuscation":"","x":{"y":"z"}   }"#,
                Some(""),
            ),
            (
                r#"{"type":"d","sequence_number":10,"delta":"two","n":2,"obfuscation":"","x":{"y":"z"}}"#,
                None,
            ),
            (
                r#"{"type":"e","sequence_number":10,"delta":"two","n":1,"obfuscation":"","x":{"y":"z"}}"#,
                None,
            ),
            (
                r#"{"type":"d","sequence_number":"1","delta":"two","n":1,"obfuscation":"","x":{"y":"z"}}"#,
                None,
            ),
            (
                r#"{"type":"d","sequence_number":10,"delta":null,"n":1,"obfuscation":"","x":{"y":"z"}}"#,
                None,
            ),
            (
                r#"{"type":"d","sequence_number":10,"delta":"two","n":1,"obfuscation":"","x":{"y":"z "}}"#,
                None,
            ),
            (
                r#"{"type":"d","sequence_number":10,"delta":"two","n":1,"obfuscation":"","x":{"y":"z"}},"#,
                None,
            ),
            (r#"{"type":"d","sequence_number":10,"delta":"two"#, None),
            ("", None),
        ] {
            let got = template.text(event.as_bytes()).map(|t| t.text(100));
            assert_eq!(got.as_deref(), same, "{event}");
        }
        template.miss();
        assert!(template.text(first.as_bytes()).is_none());
    }

    #[test]
    fn streams_without_two_alike_events_are_not_learnt_for_ever() {
        let mut template = Template::default();
        let mut learnt = 0;
        for i in 0..1000 {
            let event = format!(r#"{{"n":{i},"delta":"x"}}"#);
            template.miss();
            template.learn(event.as_bytes(), &text(&event, "delta").address());
            learnt += u32::from(template.valid);
        }
        assert!(learnt < 50, "{learnt}");
    }
}
