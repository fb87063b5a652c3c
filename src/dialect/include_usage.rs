//! Asks chat streams for their usage on behalf of clients who did not, and hides it from them again.

use std::fmt;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::{memchr2, memchr2_iter, memmem};

use super::json::{self, Array, Object};
use super::request::RequestFacts;
use super::table::{Api, Route};

/// Largest event that is held back until it is complete, in bytes; a larger one passes as it is.
const MAX_EVENT: usize = 1024 * 1024;

/// The body with `stream_options.include_usage` added; `None` where it must not or need not be asked.
pub fn inject(route: &Route, facts: &RequestFacts, body: &[u8]) -> Option<Vec<u8>> {
    let asks = matches!(route.api, Api::OpenAiChat | Api::OpenAiCompletions);
    if !asks || !facts.stream || facts.include_usage {
        return None;
    }
    let mut options = None;
    let mut object = Object::open(body)?;
    while let Some(key) = object.key().ok()? {
        let found = *json::key_name(key) == *b"stream_options";
        let range = object.value(&mut ()).ok()?;
        if found && options.replace(range).is_some() {
            return None;
        }
    }
    if !object.is_whole() {
        return None;
    }
    match options {
        None => {
            let close = object.close();
            Some(json::splice(
                body,
                close..close,
                br#","stream_options":{"include_usage":true}"#,
            ))
        }
        Some(range) => {
            let (inner, with) = options_with_usage(json::slice(body, range.clone()))?;
            let place = range.start + inner.start..range.start + inner.end;
            Some(json::splice(body, place, with))
        }
    }
}

/// What to replace within the value of `stream_options`, and by what.
fn options_with_usage(value: &[u8]) -> Option<(Range<usize>, &'static [u8])> {
    if value == b"null" {
        return Some((0..value.len(), br#"{"include_usage":true}"#));
    }
    let mut options = Object::open(value)?;
    let (mut members, mut place) = (0, None);
    while let Some(key) = options.key().ok()? {
        members += 1;
        let found = *json::key_name(key) == *b"include_usage";
        let range = options.value(&mut ()).ok()?;
        if found && place.replace(range).is_some() {
            return None;
        }
    }
    let close = options.close();
    Some(match place {
        Some(range) => (range, b"true"),
        None if members == 0 => (close..close, br#""include_usage":true"#),
        None => (close..close, br#","include_usage":true"#),
    })
}

/// Whether a 400 or 422 answer objects to `stream_options` or `include_usage`.
pub fn refusal_names_stream_options(status: u16, body: &[u8]) -> bool {
    matches!(status, 400 | 422)
        && (memmem::find(body, b"stream_options").is_some() || memmem::find(body, b"include_usage").is_some())
}

/// Takes what an injected `include_usage` adds to a stream out of it again, whole events at a time: the extra chunk
/// with `choices: []` and usage, and `"usage":null` on the others. All other bytes pass as they came.
///
/// Usage beside choices stays: vendors who send it there send it unasked as well. At most 1 MiB is held back.
pub struct Hider {
    lines: Lines,
    /// The beginning of an event whose end has not come yet.
    held: BytesMut,
    /// How much of `held` was searched for the end.
    searched: usize,
    /// The event under way is too large and passes as it is.
    passing: bool,
    /// The last event was taken out and ended in CR: a LF that follows belongs to it.
    swallow_lf: bool,
    usage: memmem::Finder<'static>,
}

impl fmt::Debug for Hider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hider")
            .field("held", &self.held.len())
            .field("passing", &self.passing)
            .finish_non_exhaustive()
    }
}

impl Default for Hider {
    fn default() -> Self {
        Self {
            lines: Lines {
                blank: true,
                after_cr: false,
            },
            held: BytesMut::new(),
            searched: 0,
            passing: false,
            swallow_lf: false,
            usage: memmem::Finder::new(b"\"usage\""),
        }
    }
}

impl Hider {
    /// A hider at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a piece of the stream; calls `out` with what the client gets, at most twice for each piece.
    pub fn push(&mut self, mut piece: Bytes, out: &mut dyn FnMut(Bytes)) {
        if piece.is_empty() {
            return;
        }
        if self.passing {
            let Some(end) = self.lines.event_end(&piece, 0) else {
                out(piece);
                return;
            };
            self.passing = false;
            out(piece.split_to(end));
            if piece.is_empty() {
                return;
            }
        }
        if self.held.is_empty() {
            self.fresh(piece, out);
            return;
        }
        self.held.extend_from_slice(&piece);
        match self.lines.event_end(&self.held, self.searched) {
            Some(end) => {
                let bytes = std::mem::take(&mut self.held).freeze();
                self.take(bytes, 0, Some(end), out);
            }
            None => self.keep_waiting(out),
        }
    }

    /// Whether what it gave out so far ends with an event.
    pub fn is_between_events(&self) -> bool {
        !self.passing
    }

    /// The stream ended: gives out what was held back.
    pub fn end(&mut self, out: &mut dyn FnMut(Bytes)) {
        let rest = std::mem::take(&mut self.held);
        if !rest.is_empty() {
            out(rest.freeze());
        }
    }

    /// Begins with bytes at the beginning of an event.
    fn fresh(&mut self, bytes: Bytes, out: &mut dyn FnMut(Bytes)) {
        // The other half of the CRLF that ended the last event.
        let half = bytes.first() == Some(&b'\n') && std::mem::take(&mut self.lines.after_cr);
        let from = usize::from(half);
        let first = self.lines.event_end(&bytes, from);
        self.take(bytes, from, first, out);
    }

    /// Gives out the complete events of `bytes`, of which the first begins at `done` and ends at `end`, and keeps the
    /// rest.
    fn take(
        &mut self,
        mut bytes: Bytes,
        mut done: usize,
        mut end: Option<usize>,
        out: &mut dyn FnMut(Bytes),
    ) {
        let mut cuts = Cuts::default();
        if std::mem::take(&mut self.swallow_lf) && done == 1 {
            cuts.add(0..1);
        }
        while let Some(until) = end {
            let event = json::slice(&bytes, done..until);
            self.swallow_lf = false;
            if event.len() <= MAX_EVENT && self.usage.find(event).is_some() {
                match verdict(event) {
                    Some(Verdict::Drop) => {
                        cuts.add(done..until);
                        self.swallow_lf = self.lines.after_cr;
                    }
                    Some(Verdict::Cut(range)) => cuts.add(done + range.start..done + range.end),
                    None => {}
                }
            }
            done = until;
            end = self.lines.event_end(&bytes, done);
        }
        let rest = bytes.split_off(done);
        if !bytes.is_empty() {
            let kept = cuts.apply(bytes);
            if !kept.is_empty() {
                out(kept);
            }
        }
        if !rest.is_empty() {
            self.held = rest
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&*shared));
            self.keep_waiting(out);
        }
    }

    /// The event in `held` goes on; it is let pass when it is too large.
    fn keep_waiting(&mut self, out: &mut dyn FnMut(Bytes)) {
        self.searched = self.held.len();
        if self.held.len() > MAX_EVENT {
            self.passing = true;
            out(std::mem::take(&mut self.held).freeze());
        }
    }
}

/// Finds the ends of events: blank lines, whatever ends a line.
#[derive(Debug)]
struct Lines {
    /// Nothing stands in this line yet.
    blank: bool,
    /// The byte before was CR: a LF now belongs to it.
    after_cr: bool,
}

impl Lines {
    /// The position behind the first event that ends at `from` or later; `None` when all bytes were looked at.
    fn event_end(&mut self, bytes: &[u8], from: usize) -> Option<usize> {
        let mut pos = from;
        loop {
            let byte = *bytes.get(pos)?;
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                pos += 1;
                continue;
            }
            if matches!(byte, b'\n' | b'\r') {
                pos += 1;
                self.after_cr = byte == b'\r';
                if std::mem::replace(&mut self.blank, true) {
                    if self.after_cr && bytes.get(pos) == Some(&b'\n') {
                        self.after_cr = false;
                        pos += 1;
                    }
                    return Some(pos);
                }
            } else {
                self.blank = false;
                pos += memchr2(b'\n', b'\r', bytes.get(pos..)?)?;
            }
        }
    }
}

/// What is taken out of an event.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All of it.
    Drop,
    /// This part.
    Cut(Range<usize>),
}

/// Judges an event that has `"usage"` in it somewhere; `None` keeps it.
fn verdict(event: &[u8]) -> Option<Verdict> {
    let (mut start, mut data) = (0, None);
    for end in memchr2_iter(b'\n', b'\r', event).chain([event.len()]) {
        let line = json::slice(event, start..end);
        if let Some(value) = line.strip_prefix(b"data:")
            && data.replace((start + 5, value)).is_some()
        {
            // Data on several lines: nobody sends chunks so, and the JSON would have to be put together.
            return None;
        }
        start = end + 1;
    }
    let (offset, data) = data?;
    if let Some(range) = last_member_null(data) {
        return Some(Verdict::Cut(offset + range.start..offset + range.end));
    }
    let mut chunk = Object::open(data)?;
    let (mut empty_choices, mut usage) = (false, None);
    let mut first = true;
    while let Some(key) = chunk.key().ok()? {
        let name = json::key_name(key);
        let before = if first { None } else { Some(chunk.before_key()) };
        first = false;
        let start = chunk.key_start();
        let range = chunk.value(&mut ()).ok()?;
        match &*name {
            b"choices" => {
                let value = json::slice(data, range);
                empty_choices = Array::open(value).is_some_and(|mut a| a.element() == Ok(None));
            }
            b"usage" if usage.replace((before, start, range)).is_some() => return None,
            _ => {}
        }
    }
    let (before, start, range) = usage.filter(|_| chunk.is_whole())?;
    let value = json::slice(data, range.clone());
    if value == b"null" {
        // With the comma before it; as the first member, with the comma behind it.
        let cut = match before {
            Some(before) => before..range.end,
            None => {
                let comma = json::blanks(data, range.end);
                if data.get(comma) == Some(&b',') {
                    start..json::blanks(data, comma + 1)
                } else {
                    start..range.end
                }
            }
        };
        return Some(Verdict::Cut(offset + cut.start..offset + cut.end));
    }
    (empty_choices && value.starts_with(b"{")).then_some(Verdict::Drop)
}

/// The usual case, told without going over the chunk: what stands before the last brace of an object is a member of
/// that object, and it is the only one of the name.
fn last_member_null(data: &[u8]) -> Option<Range<usize>> {
    const LAST: &[u8] = br#","usage":null"#;
    let before = data.strip_suffix(b"}")?.strip_suffix(LAST)?;
    let object = before.trim_ascii_start().starts_with(b"{");
    let only = object && memmem::find(before, b"\"usage\"").is_none();
    only.then_some(before.len()..before.len() + LAST.len())
}

/// Ranges to be taken out, in order.
#[derive(Default)]
struct Cuts(smallvec::SmallVec<[Range<usize>; 8]>);

impl Cuts {
    fn add(&mut self, range: Range<usize>) {
        self.0.push(range);
    }

    /// The bytes without the ranges; as they came when there are none, without a copy when only an end is cut.
    fn apply(self, mut bytes: Bytes) -> Bytes {
        match &*self.0 {
            [] => bytes,
            [all] if *all == (0..bytes.len()) => Bytes::new(),
            [tail] if tail.end == bytes.len() => bytes.split_to(tail.start),
            [head] if head.start == 0 => bytes.split_off(head.end),
            ranges => {
                let mut kept = Vec::with_capacity(bytes.len());
                let mut from = 0;
                for range in ranges {
                    kept.extend_from_slice(json::slice(&bytes, from..range.start));
                    from = range.end;
                }
                kept.extend_from_slice(json::slice(&bytes, from..bytes.len()));
                Bytes::from(kept)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::request::read;
    use crate::dialect::table::route;
    use proptest::prelude::*;

    fn injected(path: &str, body: &str) -> Option<String> {
        let route = route(&http::Method::POST, path, None);
        let facts = read(&route, None, body.as_bytes());
        inject(&route, &facts, body.as_bytes()).map(|b| String::from_utf8(b).unwrap())
    }

    #[test]
    fn usage_is_asked_for_where_it_would_be_missing() {
        let chat = "/v1/chat/completions";
        for (path, body, want) in [
            (
                chat,
                "{\"stream\":true, \"model\":\"m\" }\n",
                Some("{\"stream\":true, \"model\":\"m\" ,\"stream_options\":{\"include_usage\":true}}\n"),
            ),
            (
                "/v1/completions",
                r#"{"stream":true}"#,
                Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
            ),
            (
                chat,
                r#"{"stream_options":null,"stream":true}"#,
                Some(r#"{"stream_options":{"include_usage":true},"stream":true}"#),
            ),
            (
                chat,
                r#"{"stream_options":{ },"stream":true}"#,
                Some(r#"{"stream_options":{ "include_usage":true},"stream":true}"#),
            ),
            (
                chat,
                r#"{"stream_options":{"a":{}},"stream":true}"#,
                Some(r#"{"stream_options":{"a":{},"include_usage":true},"stream":true}"#),
            ),
            (
                chat,
                r#"{"stream_options":{"include_usage":false,"a":1},"stream":true}"#,
                Some(r#"{"stream_options":{"include_usage":true,"a":1},"stream":true}"#),
            ),
            (
                chat,
                r#"{"stream_options":{"include_usage":true},"stream":true}"#,
                None,
            ),
            (chat, r#"{"stream_options":[],"stream":true}"#, None),
            (
                chat,
                r#"{"stream_options":{},"stream_options":{},"stream":true}"#,
                None,
            ),
            (chat, r#"{"stream":false}"#, None),
            (chat, "{}", None),
            (chat, r#"{"stream":true"#, None),
            ("/v1/responses", r#"{"stream":true}"#, None),
            ("/v1/messages", r#"{"stream":true}"#, None),
            ("/v2/chat", r#"{"stream":true}"#, None),
        ] {
            assert_eq!(injected(path, body).as_deref(), want, "{path} {body}");
        }
    }

    #[test]
    fn objections_are_recognised() {
        assert!(refusal_names_stream_options(
            400,
            br#"{"error":"Unknown field: stream_options"}"#
        ));
        assert!(refusal_names_stream_options(
            422,
            b"include_usage: extra fields not permitted"
        ));
        assert!(!refusal_names_stream_options(400, b"bad model"));
        assert!(!refusal_names_stream_options(500, b"stream_options"));
    }

    /// What a client gets of a stream that comes in pieces of the given sizes, and in how many pieces.
    fn hidden(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, usize) {
        let mut hider = Hider::new();
        let (mut got, mut pieces) = (Vec::new(), 0);
        let mut out = |b: Bytes| {
            assert!(!b.is_empty());
            pieces += 1;
            got.extend_from_slice(&b);
        };
        let mut rest = Bytes::copy_from_slice(stream);
        let mut sizes = cuts.iter().cycle();
        while !rest.is_empty() {
            let size = sizes.next().map_or(rest.len(), |s| (*s).clamp(1, rest.len()));
            hider.push(rest.split_to(size), &mut out);
        }
        hider.end(&mut out);
        (got, pieces)
    }

    #[test]
    fn only_what_was_added_is_taken_out() {
        let plain = r#"data: {"choices":[{"delta":{"content":"usage"}}]}"#;
        for (event, want) in [
            (plain, Some(plain)),
            (
                r#"data: {"id":"a","choices":[{}],"usage":null}"#,
                Some(r#"data: {"id":"a","choices":[{}]}"#),
            ),
            (
                r#"data: {"id":"a", "usage": null , "choices":[{}]}"#,
                Some(r#"data: {"id":"a" , "choices":[{}]}"#),
            ),
            (
                r#"data:{"usage":null,"choices":[{}]}"#,
                Some(r#"data:{"choices":[{}]}"#),
            ),
            (r#"data: {"usage":null}"#, Some("data: {}")),
            (
                r#"data: {"id":"a","choices":[],"usage":{"total_tokens":1}}"#,
                None,
            ),
            (
                r#"data: {"id":"a","usage":{"total_tokens":1},"choices":[ ] }"#,
                None,
            ),
            // Azure's first chunk; usage beside choices; usage that is nested; two data lines; no JSON.
            (
                r#"data: {"choices":[],"prompt_filter_results":[{"usage":null}],"usage":null}"#,
                Some(r#"data: {"choices":[],"prompt_filter_results":[{"usage":null}]}"#),
            ),
            (
                r#"data: {"choices":[],"a":"usage"}"#,
                Some(r#"data: {"choices":[],"a":"usage"}"#),
            ),
            (
                r#"data: {"choices":[{}],"usage":{"total_tokens":1}}"#,
                Some(r#"data: {"choices":[{}],"usage":{"total_tokens":1}}"#),
            ),
            (
                r#"data: {"choices":[{"usage":null}],"x_groq":{"usage":null}}"#,
                Some(r#"data: {"choices":[{"usage":null}],"x_groq":{"usage":null}}"#),
            ),
            (
                "data: {\ndata: \"usage\":null}",
                Some("data: {\ndata: \"usage\":null}"),
            ),
            (r#"data: "usage":null"#, Some(r#"data: "usage":null"#)),
            ("data: [DONE]", Some("data: [DONE]")),
            (": comment \"usage\"", Some(": comment \"usage\"")),
        ] {
            for eol in ["\n", "\r\n", "\r"] {
                let lines = |e: &str| format!("{}{eol}{eol}", e.replace('\n', eol));
                let stream = lines(plain) + &lines(event) + &lines("data: [DONE]");
                let wanted = lines(plain) + &want.map(lines).unwrap_or_default() + &lines("data: [DONE]");
                for cut in 1..stream.len() {
                    let (got, _) = hidden(stream.as_bytes(), &[cut]);
                    assert_eq!(String::from_utf8(got).unwrap(), wanted, "{event} {eol:?} {cut}");
                }
            }
        }
    }

    #[test]
    fn untouched_pieces_pass_without_a_copy() {
        let piece = Bytes::from_static(b"data: {\"choices\":[{}]}\n\ndata: {}\n\n");
        let mut got = Vec::new();
        let mut hider = Hider::new();
        hider.push(piece.clone(), &mut |b| got.push(b));
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].as_ptr(), piece.as_ptr());
        // Of an incomplete event nothing is given out before its end.
        hider.push(Bytes::from_static(b"data: {\"choices\""), &mut |_| {
            panic!("too early")
        });
        let mut rest = Vec::new();
        hider.end(&mut |b| rest.push(b));
        assert_eq!(rest, [Bytes::from_static(b"data: {\"choices\"")]);
    }

    #[test]
    fn too_large_an_event_passes() {
        let large = format!("data: {{\"a\":\"{}\",\"usage\":null}}\n\n", "x".repeat(MAX_EVENT));
        let after = "data: {\"choices\":[{}],\"usage\":null}\n\n";
        let want = format!("{large}{}", after.replace(",\"usage\":null", ""));
        for size in [1 << 14, 1 << 22] {
            let (got, _) = hidden((large.clone() + after).as_bytes(), &[size]);
            assert!(got == want.as_bytes(), "{size}");
        }
    }

    proptest! {
        #[test]
        fn a_client_sees_the_stream_that_it_asked_for(
            chunks in proptest::collection::vec((r#"[a-z\\"\n {}é]{0,30}"#, 0usize..4, any::<bool>()), 0..12),
            eol in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            cuts in proptest::collection::vec(1usize..60, 1..20),
            done in any::<bool>(),
        ) {
            let (mut asked, mut unasked) = (String::new(), String::new());
            for (text, kind, first) in &chunks {
                let content = serde_json::to_string(text).unwrap();
                let chunk = match kind {
                    0 => format!(r#""choices":[{{"delta":{{"content":{content}}}}}]"#),
                    1 => format!(r#""choices":[],"prompt_filter_results":[{content},{{"usage":null}}]"#),
                    2 => format!(r#""a":{{"usage":{content}}}"#),
                    _ => {
                        for stream in [&mut asked, &mut unasked] {
                            *stream += &format!(": ping {}{eol}{eol}", content.len());
                        }
                        continue;
                    }
                };
                unasked += &format!("data: {{{chunk}}}{eol}{eol}");
                asked += &if *first {
                    format!(r#"data: {{"usage":null,{chunk}}}{eol}{eol}"#)
                } else {
                    format!(r#"data: {{{chunk},"usage":null}}{eol}{eol}"#)
                };
            }
            asked += &format!(r#"data: {{"choices":[],"usage":{{"total_tokens":3}}}}{eol}{eol}"#);
            if done {
                for stream in [&mut asked, &mut unasked] {
                    *stream += &format!("data: [DONE]{eol}{eol}");
                }
            }
            let (got, pieces) = hidden(asked.as_bytes(), &cuts);
            prop_assert_eq!(String::from_utf8(got).unwrap(), unasked);
            prop_assert!(pieces <= asked.len());
        }

        #[test]
        fn any_bytes_come_out_alike_however_they_are_split(
            bytes in proptest::collection::vec(
                prop_oneof![
                    any::<u8>().prop_map(|b| vec![b]),
                    Just(b"\n".to_vec()), Just(b"\r".to_vec()), Just(b"data:".to_vec()), Just(b"{\"usage\":null}".to_vec()),
                    Just(b"{\"choices\":[],\"usage\":{}}".to_vec()),
                    Just(b"data:{\"choices\":[],\"usage\":{}}".to_vec()), Just(b"\r\n\r\n".to_vec()), Just(b"\r\r".to_vec()),
                    Just(b"data:{\"a\":1,\"usage\":null}".to_vec()),
                ],
                0..40,
            ),
            cuts in proptest::collection::vec(1usize..9, 1..20),
        ) {
            let bytes = bytes.concat();
            let whole = hidden(&bytes, &[usize::MAX]).0;
            prop_assert_eq!(&hidden(&bytes, &cuts).0, &whole);
            prop_assert_eq!(&hidden(&bytes, &[1]).0, &whole);
            prop_assert!(whole.len() <= bytes.len());
        }
    }
}
