//! Reads JSON in place: a cursor that takes one value after the other and never fails, allocates or recurses.

use memchr::{memchr, memchr2, memchr3};

/// A place in a JSON text. On broken JSON it moves to the end, where every question is answered with nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// A JSON string as it is spelt, without its quotes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Str<'a> {
    raw: &'a [u8],
    escaped: bool,
}

/// A piece of a decoded string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Bytes that stand for themselves.
    Plain(&'a [u8]),
    /// A UTF-16 code unit from an escape; halves of a pair come one by one.
    Unit(u16),
}

impl<'a> Cursor<'a> {
    /// At the start of `bytes`.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// At that place in `bytes`.
    pub(super) const fn starting(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    /// How far it has come.
    pub(super) const fn at(&self) -> usize {
        self.at
    }

    /// The first byte of the next value; 0 at the end.
    #[inline]
    pub(super) fn peek(&mut self) -> u8 {
        self.space();
        self.byte()
    }

    /// Calls `each` with the key (as it is spelt) of every member of the object that comes next. A value that `each`
    /// leaves is skipped. Something else than an object is skipped as a whole.
    #[inline]
    pub(super) fn object(&mut self, mut each: impl FnMut(&'a [u8], &mut Self)) -> bool {
        if self.peek() != b'{' {
            self.skip();
            return false;
        }
        self.at += 1;
        loop {
            match self.peek() {
                b'"' => {}
                b'}' => {
                    self.at += 1;
                    return true;
                }
                _ => return self.give_up(),
            }
            let Some(key) = self.take_string() else {
                return false;
            };
            if self.peek() != b':' {
                return self.give_up();
            }
            self.at += 1;
            self.space();
            let before = self.at;
            each(key.raw, self);
            if self.at == before {
                self.skip();
            }
            match self.peek() {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return true;
                }
                _ => return self.give_up(),
            }
        }
    }

    /// Calls `each` before every element of the array that comes next. An element that `each` leaves is skipped.
    /// Something else than an array is skipped as a whole.
    #[inline]
    pub(super) fn array(&mut self, mut each: impl FnMut(&mut Self)) -> bool {
        if self.peek() != b'[' {
            self.skip();
            return false;
        }
        self.at += 1;
        if self.peek() == b']' {
            self.at += 1;
            return true;
        }
        loop {
            self.space();
            let before = self.at;
            each(self);
            if self.at == before {
                self.skip();
            }
            match self.peek() {
                b',' => self.at += 1,
                b']' => {
                    self.at += 1;
                    return true;
                }
                _ => return self.give_up(),
            }
        }
    }

    /// Takes the next value when it is a string; skips it otherwise.
    #[inline]
    pub(super) fn string(&mut self) -> Option<Str<'a>> {
        if self.peek() == b'"' {
            self.take_string()
        } else {
            self.skip();
            None
        }
    }

    /// Takes the next value when it is a number that counts something (not negative, whole); skips it otherwise.
    #[inline]
    pub(super) fn count(&mut self) -> Option<u64> {
        self.space();
        if let Some((n, end)) = self.plain_number() {
            self.at = end;
            return Some(n);
        }
        let text = self.number()?;
        if let Some(n) = digits(text) {
            return Some(n);
        }
        let value: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
        // Whole numbers up to 2^53 are exact in an f64.
        ((0.0..9_007_199_254_740_992.0).contains(&value) && value.fract() == 0.0).then_some(value as u64)
    }

    /// The number that begins here when it is written in few digits and nothing else, and where it ends: nearly every
    /// count is.
    #[inline]
    fn plain_number(&self) -> Option<(u64, usize)> {
        let text = self.bytes.get(self.at..)?;
        let mut n = 0_u64;
        for (length, b) in text.iter().take(19).enumerate() {
            let digit = b.wrapping_sub(b'0');
            if digit <= 9 {
                n = n * 10 + u64::from(digit);
            } else if length > 0 && matches!(b, b',' | b'}' | b']') {
                return Some((n, self.at + length));
            } else {
                return None;
            }
        }
        None
    }

    /// Takes the next value when it is a number, as it is spelt; skips it otherwise.
    pub(super) fn number(&mut self) -> Option<&'a [u8]> {
        let numeric = matches!(self.peek(), b'0'..=b'9' | b'-');
        let start = self.at;
        self.skip();
        if numeric {
            self.bytes.get(start..self.at)
        } else {
            None
        }
    }

    /// Takes the next value when it is `true`; skips it otherwise.
    pub(super) fn truth(&mut self) -> bool {
        let yes = self.peek() == b't';
        self.skip();
        yes
    }

    /// Skips the next value and gives a cursor that stands before it.
    #[inline]
    pub(super) fn lay_aside(&mut self) -> Self {
        self.space();
        let before = *self;
        self.skip();
        before
    }

    /// Skips the next value.
    #[inline]
    pub(super) fn skip(&mut self) {
        match self.peek() {
            b'"' => {
                self.take_string();
            }
            b'{' | b'[' => self.skip_nested(),
            _ => {
                while !matches!(self.byte(), 0..=b' ' | b',' | b'}' | b']' | b':' | b'"') {
                    self.at += 1;
                }
            }
        }
    }

    fn skip_nested(&mut self) {
        let mut depth = 0_usize;
        while let Some(&b) = self.bytes.get(self.at) {
            match b {
                b'"' => {
                    if self.take_string().is_none() {
                        return;
                    }
                    continue;
                }
                b'{' => depth += 1,
                b'[' => {
                    if let Some(end) = self.end_of_numbers() {
                        self.at = end;
                    }
                    depth += 1;
                    if self.byte() == b']' {
                        continue;
                    }
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        self.at += 1;
                        return;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// Where the array of plain numbers that begins here ends: vectors are long, and need not be walked through.
    fn end_of_numbers(&self) -> Option<usize> {
        let inner = self.bytes.get(self.at + 1..)?;
        let first = inner.iter().take(64).find(|b| **b > b' ')?;
        if !matches!(first, b'0'..=b'9' | b'-') {
            return None;
        }
        let end = memchr3(b']', b'[', b'"', inner)?;
        let numbers = inner.get(..end)?;
        (inner.get(end) == Some(&b']') && memchr2(b'{', b'}', numbers).is_none()).then_some(self.at + 1 + end)
    }

    #[inline]
    fn take_string(&mut self) -> Option<Str<'a>> {
        let start = self.at + 1;
        // Keys and names are short and have no escapes: they need no more than a few words to be looked at.
        let text = self.bytes.get(start..)?;
        if let Some(end) = quote_or_backslash(text)
            && text.get(end) == Some(&b'"')
        {
            self.at = start + end + 1;
            return text.get(..end).map(|raw| Str { raw, escaped: false });
        }
        self.take_escaped_string(start)
    }

    fn take_escaped_string(&mut self, start: usize) -> Option<Str<'a>> {
        let mut i = start;
        let mut escaped = false;
        loop {
            let Some(n) = self.bytes.get(i..).and_then(quote_or_backslash) else {
                self.give_up();
                return None;
            };
            i += n;
            if self.bytes.get(i) == Some(&b'"') {
                self.at = i + 1;
                return self.bytes.get(start..i).map(|raw| Str { raw, escaped });
            }
            escaped = true;
            i += 2;
        }
    }

    #[inline]
    fn byte(&self) -> u8 {
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    #[inline]
    fn space(&mut self) {
        while matches!(self.byte(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }

    #[cold]
    fn give_up(&mut self) -> bool {
        self.at = self.bytes.len();
        false
    }
}

impl<'a> Str<'a> {
    /// Whether it is `text`.
    #[inline]
    pub(super) fn is(&self, text: &str) -> bool {
        self.raw == text.as_bytes()
    }

    /// Whether there is nothing in it.
    pub(super) const fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// What it says, when all of its bytes stand for themselves.
    #[inline]
    pub(super) fn plain(&self) -> Option<&'a [u8]> {
        (!self.escaped).then_some(self.raw)
    }

    /// As it is spelt.
    pub(super) const fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Where in memory it stands (without its quotes), to be found again in what it was read from.
    pub(super) fn address(&self) -> std::ops::Range<usize> {
        let start = self.raw.as_ptr() as usize;
        start..start + self.raw.len()
    }

    /// Its pieces, decoded.
    #[inline]
    pub(super) fn pieces(&self, mut each: impl FnMut(Piece<'a>)) {
        let mut rest = self.raw;
        if self.escaped {
            while let Some(n) = memchr(b'\\', rest) {
                let (plain, escape) = rest.split_at(n);
                if !plain.is_empty() {
                    each(Piece::Plain(plain));
                }
                let (unit, used) = unit(escape);
                each(Piece::Unit(unit));
                rest = escape.get(used..).unwrap_or_default();
            }
        }
        if !rest.is_empty() {
            each(Piece::Plain(rest));
        }
    }

    /// Unicode scalar values in it; half a surrogate pair counts as one.
    #[inline]
    pub(super) fn chars(&self) -> u64 {
        if !self.escaped {
            return scalars(self.raw);
        }
        let mut chars = 0;
        let mut high = false;
        self.pieces(|piece| match piece {
            Piece::Plain(bytes) => {
                chars += scalars(bytes);
                high = false;
            }
            Piece::Unit(u) => {
                let second = high && (0xDC00..0xE000).contains(&u);
                chars += u64::from(!second);
                high = (0xD800..0xDC00).contains(&u);
            }
        });
        chars
    }

    /// Decoded, cut at `limit` bytes.
    pub(super) fn text(&self, limit: usize) -> String {
        let mut text = String::new();
        let mut units: Vec<u16> = Vec::new();
        self.pieces(|piece| match piece {
            Piece::Plain(bytes) if text.len() < limit => {
                flush_units(&mut units, &mut text);
                let rest = limit - text.len();
                text.push_str(&String::from_utf8_lossy(bytes.get(..rest).unwrap_or(bytes)));
            }
            Piece::Unit(u) if text.len() + units.len() < limit => units.push(u),
            _ => {}
        });
        flush_units(&mut units, &mut text);
        text
    }
}

fn flush_units(units: &mut Vec<u16>, text: &mut String) {
    text.extend(char::decode_utf16(units.drain(..)).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)));
}

/// Unicode scalar values in UTF-8 text.
#[inline]
pub(super) fn scalars(bytes: &[u8]) -> u64 {
    if let Ok(word) = <[u8; 8]>::try_from(bytes.get(..8).unwrap_or_default())
        && bytes.len() < 16
    {
        // Short, as most deltas are: the bytes that go on a scalar are counted in one step.
        let word = u64::from_le_bytes(word);
        let going_on = (word >> 7) & !(word >> 6) & ONES;
        let rest = bytes.get(8..).unwrap_or_default();
        let rest = rest.iter().filter(|b| **b & 0xC0 != 0x80).count() as u64;
        return 8 - (going_on.wrapping_mul(ONES) >> 56) + rest;
    }
    if bytes.len() < 8 {
        return bytes.iter().filter(|b| **b & 0xC0 != 0x80).count() as u64;
    }
    // Bytes that begin a scalar, summed in bytes so that sixteen and more are done at a time.
    let begun = |chunk: &[u8]| {
        chunk
            .iter()
            .map(|b| u8::from(b & 0xC0 != 0x80))
            .fold(0, u8::wrapping_add)
    };
    bytes.chunks(192).map(|chunk| u64::from(begun(chunk))).sum()
}

/// The code unit of the escape that `bytes` begin with, and how long it is.
fn unit(bytes: &[u8]) -> (u16, usize) {
    let plain = |b: u8| (u16::from(b), 2);
    match bytes.get(1) {
        Some(b'n') => plain(b'\n'),
        Some(b't') => plain(b'\t'),
        Some(b'r') => plain(b'\r'),
        Some(b'b') => plain(8),
        Some(b'f') => plain(12),
        Some(b'u') => {
            let hex = bytes.get(2..6).and_then(|h| std::str::from_utf8(h).ok());
            match hex.and_then(|h| u16::from_str_radix(h, 16).ok()) {
                Some(u) => (u, 6),
                None => (0xFFFD, 2),
            }
        }
        Some(b) if b.is_ascii() => plain(*b),
        // No escape of JSON; what follows the backslash stands for itself.
        _ => (0xFFFD, 1),
    }
}

/// Plain digits as a number.
#[inline]
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    let mut n = 0_u64;
    for b in text {
        let d = b.wrapping_sub(b'0');
        if d > 9 {
            return None;
        }
        n = n * 10 + u64::from(d);
    }
    Some(n)
}

/// The first quote or backslash. Most strings are short: eight bytes at a time first, then as memchr does it.
#[inline]
fn quote_or_backslash(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    for done in [0, 8, 16, 24, 32, 40] {
        let Some((word, tail)) = rest.split_first_chunk::<8>() else {
            let n = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
            return Some(done + n);
        };
        let word = u64::from_le_bytes(*word);
        let hit = zero_bytes(word ^ QUOTES) | zero_bytes(word ^ SLASHES);
        if hit != 0 {
            return Some(done + (hit.trailing_zeros() / 8) as usize);
        }
        rest = tail;
    }
    memchr2(b'"', b'\\', rest).map(|n| 48 + n)
}

const ONES: u64 = 0x0101_0101_0101_0101;
const TOPS: u64 = 0x8080_8080_8080_8080;
const QUOTES: u64 = ONES * b'"' as u64;
const SLASHES: u64 = ONES * b'\\' as u64;

/// The top bit of the first zero byte, and perhaps of later ones; 0 when there is none.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & TOPS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(json: &str, key: &str) -> Option<String> {
        let mut got = None;
        Cursor::new(json.as_bytes()).object(|k, c| {
            if k == key.as_bytes() {
                got = c.string().map(|s| s.text(1000));
            }
        });
        got
    }

    #[test]
    fn members_are_found_at_their_depth_only() {
        let json = r#" { "a" : {"x":"no"}, "b":["x",{"x":"no"}], "n":-1.5e3, "t":true , "x" : "yes\n\"\ud83d\ude00" } "#;
        assert_eq!(found(json, "x").as_deref(), Some("yes\n\"😀"));
        assert_eq!(found(json, "y"), None);
    }

    #[test]
    fn a_value_that_was_looked_at_and_left_is_skipped() {
        let json = b"{\"a\" : null , \"b\": [ 1, {} ]}";
        let mut keys = 0;
        let ended = Cursor::new(json).object(|_, c| {
            keys += 1;
            c.peek();
        });
        assert!(ended && keys == 2);
    }

    #[test]
    fn counts() {
        for (json, n) in [
            ("12", Some(12)),
            ("0", Some(0)),
            ("12.0", Some(12)),
            ("1e3", Some(1000)),
            ("-1", None),
            ("1.5", None),
            ("null", None),
            ("\"12\"", None),
            ("18446744073709551615", None),
            ("", None),
            ("[1]", None),
        ] {
            assert_eq!(Cursor::new(json.as_bytes()).count(), n, "{json}");
        }
    }

    #[test]
    fn arrays_of_numbers_are_jumped_over() {
        let json = r#"{"v":[[ 1.5,-2e-3],[3]],"w":[1,{"a":2},"]"],"e":[],"x":"y"}"#;
        assert_eq!(found(json, "x").as_deref(), Some("y"));
    }

    #[test]
    fn deep_and_broken_texts_end() {
        let deep = "[".repeat(1 << 20);
        Cursor::new(deep.as_bytes()).skip();
        let deep = "{\"a\":".repeat(1 << 18);
        assert!(!Cursor::new(deep.as_bytes()).object(|_, _| {}));
        for json in [
            "{",
            "{\"a",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{a:1}",
            "[1 2]",
            "{\"a\":\"\\",
        ] {
            let mut c = Cursor::new(json.as_bytes());
            assert!(!c.object(|_, _| {}), "{json}");
        }
    }

    #[test]
    fn chars_are_unicode_scalar_values() {
        for (spelt, n) in [
            ("", 0),
            ("aé😀", 3),
            (r"\n\u00e9\ud83d\ude00", 3),
            (r"\ud83d", 1),
            (r"\ude00x", 2),
            (r"a\\u00e9", 7),
        ] {
            let json = format!("\"{spelt}\"");
            let s = Cursor::new(json.as_bytes()).string().unwrap();
            assert_eq!(s.chars(), n, "{spelt}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut c = Cursor::new(&bytes);
            c.object(|_, c| { c.array(|c| { c.string(); }); });
            c.skip();
            c.count();
        }

        #[test]
        fn strings_are_read_as_serde_reads_them(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let s = Cursor::new(json.as_bytes()).string().unwrap();
            prop_assert_eq!(s.text(usize::MAX), text.as_str());
            prop_assert_eq!(s.chars(), text.chars().count() as u64);
        }
    }
}
