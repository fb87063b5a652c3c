//! Finds values in JSON by their bytes and replaces one in place; nothing is parsed that is not looked at.

use std::borrow::Cow;
use std::ops::Range;

use memchr::{memchr, memchr2};

/// How deep containers may nest; what is deeper counts as unreadable.
pub const MAX_DEPTH: u32 = 128;

/// The bytes are not JSON, or nest too deeply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault;

/// Told what stands inside a value while it is passed over. Every method does nothing unless written.
pub trait Visit {
    /// A key at `depth` (1 is the value itself), as written between its quotes, and the first byte of its value.
    fn key(&mut self, _raw: &[u8], _first: u8, _depth: u32) {}
    /// A string that is no key, as written between its quotes.
    fn string(&mut self, _raw: &[u8]) {}
    /// A number, `true`, `false` or `null`.
    fn scalar(&mut self, _raw: &[u8]) {}
}

impl Visit for () {}

/// Goes over the members of an object in the order in which they stand: [`Object::key`], then [`Object::value`] for
/// its value, again and again.
#[derive(Debug, Clone)]
pub struct Object<'a> {
    bytes: &'a [u8],
    pos: usize,
    first: bool,
    key_start: usize,
    before_key: usize,
}

/// Goes over the elements of an array.
#[derive(Debug, Clone)]
pub struct Array<'a> {
    bytes: &'a [u8],
    pos: usize,
    first: bool,
}

impl<'a> Object<'a> {
    /// The object that `bytes` begins with, after blanks; `None` when it is none.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let pos = blanks(bytes, 0);
        (bytes.get(pos) == Some(&b'{')).then_some(Self {
            bytes,
            pos: pos + 1,
            first: true,
            key_start: pos + 1,
            before_key: pos + 1,
        })
    }

    /// The next key as written between its quotes; `None` after the last, when the object is closed.
    ///
    /// # Errors
    /// When the bytes are no JSON.
    #[inline]
    pub fn key(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        self.before_key = self.pos;
        let mut pos = blanks(self.bytes, self.pos);
        match self.bytes.get(pos) {
            Some(b'}') => {
                self.pos = pos;
                return Ok(None);
            }
            Some(b',') if !self.first => pos = blanks(self.bytes, pos + 1),
            Some(b'"') if self.first => {}
            _ => return Err(Fault),
        }
        self.first = false;
        self.key_start = pos;
        let end = string(self.bytes, pos)?;
        let raw = inside(self.bytes, pos, end);
        pos = blanks(self.bytes, end);
        if self.bytes.get(pos) != Some(&b':') {
            return Err(Fault);
        }
        self.pos = blanks(self.bytes, pos + 1);
        Ok(Some(raw))
    }

    /// Passes over the value that belongs to the last key, and returns where it stands.
    ///
    /// # Errors
    /// When the bytes are no JSON or nest too deeply.
    #[inline]
    pub fn value<V: Visit>(&mut self, visit: &mut V) -> Result<Range<usize>, Fault> {
        let start = self.pos;
        self.pos = value(self.bytes, start, visit)?;
        Ok(start..self.pos)
    }

    /// First byte of the value that belongs to the last key.
    #[inline]
    pub fn peek(&self) -> u8 {
        self.bytes.get(self.pos).copied().unwrap_or(0)
    }

    /// How far it has come: after [`Object::key`] to the value, after [`Object::value`] past it.
    pub const fn at(&self) -> usize {
        self.pos
    }

    /// Where the last key begins (its quote).
    pub const fn key_start(&self) -> usize {
        self.key_start
    }

    /// Where the value before the last key ends, or where the object begins.
    pub const fn before_key(&self) -> usize {
        self.before_key
    }

    /// Where the closing brace stands, after [`Object::key`] said that there are no more.
    pub const fn close(&self) -> usize {
        self.pos
    }

    /// Whether nothing but blanks follows the closing brace.
    pub fn is_whole(&self) -> bool {
        self.bytes.get(self.pos) == Some(&b'}') && blanks(self.bytes, self.pos + 1) == self.bytes.len()
    }
}

impl<'a> Array<'a> {
    /// The array that `bytes` begins with, after blanks; `None` when it is none.
    pub fn open(bytes: &'a [u8]) -> Option<Self> {
        let pos = blanks(bytes, 0);
        (bytes.get(pos) == Some(&b'[')).then_some(Self {
            bytes,
            pos: pos + 1,
            first: true,
        })
    }

    /// The bytes from the next element on, which is not passed over; `None` after the last.
    pub fn upcoming(&self) -> Option<&'a [u8]> {
        let mut pos = blanks(self.bytes, self.pos);
        if self.bytes.get(pos) == Some(&b',') {
            pos += 1;
        }
        self.bytes.get(pos..)
    }

    /// The next element, whole; `None` after the last.
    ///
    /// # Errors
    /// When the bytes are no JSON or nest too deeply.
    pub fn element(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        Ok(self.element_range()?.map(|range| slice(self.bytes, range)))
    }

    /// Where the next element stands; `None` after the last.
    ///
    /// # Errors
    /// When the bytes are no JSON or nest too deeply.
    pub fn element_range(&mut self) -> Result<Option<Range<usize>>, Fault> {
        let mut pos = blanks(self.bytes, self.pos);
        match self.bytes.get(pos) {
            Some(b']') => return Ok(None),
            Some(b',') if !self.first => pos = blanks(self.bytes, pos + 1),
            Some(_) if self.first => {}
            _ => return Err(Fault),
        }
        self.first = false;
        self.pos = value(self.bytes, pos, &mut ())?;
        Ok(Some(pos..self.pos))
    }
}

/// The bytes of `range`; nothing when it does not fit.
#[inline]
pub fn slice(bytes: &[u8], range: Range<usize>) -> &[u8] {
    bytes.get(range).unwrap_or_default()
}

/// A key or string as it is meant, from how it is written between its quotes: escapes undone. `None` when it is no
/// valid UTF-8 or has an impossible escape.
#[inline]
pub fn unescape(raw: &[u8]) -> Option<Cow<'_, str>> {
    if memchr(b'\\', raw).is_none() {
        return std::str::from_utf8(raw).ok().map(Cow::Borrowed);
    }
    let mut quoted = Vec::with_capacity(raw.len() + 2);
    quoted.push(b'"');
    quoted.extend_from_slice(raw);
    quoted.push(b'"');
    serde_json::from_slice::<String>(&quoted).ok().map(Cow::Owned)
}

/// A key for comparing: as written when it has no escapes, else as it is meant.
#[inline]
pub fn key_name(raw: &[u8]) -> Cow<'_, [u8]> {
    // Keys are short: a plain loop beats a call.
    if !raw.contains(&b'\\') {
        return Cow::Borrowed(raw);
    }
    match unescape(raw) {
        Some(name) => Cow::Owned(name.into_owned().into_bytes()),
        None => Cow::Borrowed(raw),
    }
}

/// The text of a string value, quotes included; `None` when it is no string.
pub fn as_text(value: &[u8]) -> Option<Cow<'_, str>> {
    match value {
        [b'"', raw @ .., b'"'] => unescape(raw),
        _ => None,
    }
}

/// A number that is a whole one from 0 up (`8`, `8.0`, `8e2`).
pub fn as_u64(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    if let Ok(n) = text.parse() {
        return Some(n);
    }
    let n: f64 = text.parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the range is checked"
    )]
    (n.fract() == 0.0 && (0.0..9e15).contains(&n)).then_some(n as u64)
}

/// The value of the first member of that name in an object; `None` when there is none (or no object).
pub fn member<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut members = Object::open(object)?;
    while let Ok(Some(key)) = members.key() {
        let found = *key_name(key) == *name.as_bytes();
        let range = members.value(&mut ()).ok()?;
        if found {
            return Some(slice(object, range));
        }
    }
    None
}

/// The bytes with those of `range` replaced.
pub fn splice(bytes: &[u8], range: Range<usize>, with: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + with.len());
    out.extend_from_slice(slice(bytes, 0..range.start));
    out.extend_from_slice(with);
    out.extend_from_slice(slice(bytes, range.end..bytes.len()));
    out
}

/// The position of the first byte from `pos` on that is no blank.
#[inline]
pub fn blanks(bytes: &[u8], mut pos: usize) -> usize {
    while let Some(b' ' | b'\n' | b'\r' | b'\t') = bytes.get(pos) {
        pos += 1;
    }
    pos
}

#[inline]
fn inside(bytes: &[u8], start: usize, end: usize) -> &[u8] {
    slice(bytes, start + 1..end.saturating_sub(1))
}

/// Past the string whose quote is at `pos`.
#[inline]
fn string(bytes: &[u8], pos: usize) -> Result<usize, Fault> {
    if bytes.get(pos) != Some(&b'"') {
        return Err(Fault);
    }
    let mut at = pos + 1;
    loop {
        let rest = bytes.get(at..).ok_or(Fault)?;
        let found = quote_or_escape(rest).ok_or(Fault)?;
        if rest.get(found) == Some(&b'"') {
            return Ok(at + found + 1);
        }
        at += found + 2;
    }
}

/// Where the first quote or backslash stands. Most strings are short: a few words are looked at in place before the
/// long-distance search is called.
#[inline]
fn quote_or_escape(bytes: &[u8]) -> Option<usize> {
    const WORDS: usize = 4;
    let mut rest = bytes;
    for word in 0..WORDS {
        let Some((head, tail)) = rest.split_first_chunk::<8>() else {
            let found = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
            return Some(word * 8 + found);
        };
        let head = u64::from_le_bytes(*head);
        let hits = zero_bytes(head ^ each(b'"')) | zero_bytes(head ^ each(b'\\'));
        if hits != 0 {
            return Some(word * 8 + (hits.trailing_zeros() / 8) as usize);
        }
        rest = tail;
    }
    memchr2(b'"', b'\\', rest).map(|found| WORDS * 8 + found)
}

/// Eight times the same byte.
const fn each(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// The top bit of the first zero byte, and perhaps of later ones; 0 when there is none.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(each(1)) & !word & each(0x80)
}

/// Past the number or word at `pos`.
#[inline]
fn scalar(bytes: &[u8], pos: usize) -> Result<usize, Fault> {
    let rest = bytes.get(pos..).unwrap_or_default();
    let end = rest
        .iter()
        .position(|b| matches!(b, b',' | b']' | b'}' | b' ' | b'\n' | b'\r' | b'\t'))
        .unwrap_or(rest.len());
    let word = rest.get(..end).unwrap_or_default();
    let fits = match word.first() {
        Some(b't') => word == b"true",
        Some(b'f') => word == b"false",
        Some(b'n') => word == b"null",
        Some(b'-' | b'0'..=b'9') => word
            .iter()
            .all(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')),
        _ => false,
    };
    if fits { Ok(pos + end) } else { Err(Fault) }
}

/// Past the key at `pos` and its colon, to its value.
#[inline]
fn inner_key<V: Visit>(bytes: &[u8], pos: usize, depth: u32, visit: &mut V) -> Result<usize, Fault> {
    let end = string(bytes, pos)?;
    let colon = blanks(bytes, end);
    if bytes.get(colon) != Some(&b':') {
        return Err(Fault);
    }
    let start = blanks(bytes, colon + 1);
    let first = bytes.get(start).copied().ok_or(Fault)?;
    visit.key(inside(bytes, pos, end), first, depth);
    Ok(start)
}

/// Past the value at `pos`. Iterative: one bit a level remembers whether it is an object.
fn value<V: Visit>(bytes: &[u8], mut pos: usize, visit: &mut V) -> Result<usize, Fault> {
    let mut depth: u32 = 0;
    let mut objects: u128 = 0;
    loop {
        match bytes.get(pos) {
            Some(b'"') => {
                let end = string(bytes, pos)?;
                visit.string(inside(bytes, pos, end));
                pos = end;
            }
            Some(open @ (b'{' | b'[')) => {
                if depth == MAX_DEPTH {
                    return Err(Fault);
                }
                depth += 1;
                let object = *open == b'{';
                objects = (objects << 1) | u128::from(object);
                pos = blanks(bytes, pos + 1);
                let close = if object { b'}' } else { b']' };
                if bytes.get(pos) != Some(&close) {
                    if object {
                        pos = inner_key(bytes, pos, depth, visit)?;
                    }
                    continue;
                }
                pos += 1;
                depth -= 1;
                objects >>= 1;
            }
            Some(_) => {
                let end = scalar(bytes, pos)?;
                visit.scalar(slice(bytes, pos..end));
                pos = end;
            }
            None => return Err(Fault),
        }
        // A value ended: close what ends with it, or go on to the next.
        loop {
            if depth == 0 {
                return Ok(pos);
            }
            let object = objects & 1 == 1;
            pos = blanks(bytes, pos);
            match bytes.get(pos) {
                Some(b',') => {
                    pos = blanks(bytes, pos + 1);
                    if object {
                        pos = inner_key(bytes, pos, depth, visit)?;
                    }
                    break;
                }
                Some(b'}') if object => {}
                Some(b']') if !object => {}
                _ => return Err(Fault),
            }
            pos += 1;
            depth -= 1;
            objects >>= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn members(bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>, Fault> {
        let mut object = Object::open(bytes).ok_or(Fault)?;
        let mut out = Vec::new();
        while let Some(key) = object.key()? {
            let name = unescape(key).ok_or(Fault)?.into_owned();
            out.push((name, object.value(&mut ())?));
        }
        if object.is_whole() { Ok(out) } else { Err(Fault) }
    }

    #[test]
    fn members_are_found_where_they_stand() {
        let body = br#" { "a\u0062" : [1, {"ab": "}"}, "\\\""] ,"c":"\"x" , "d" : -1.5e3 } "#;
        let found = members(body).unwrap();
        let text = |r: &Range<usize>| std::str::from_utf8(slice(body, r.clone())).unwrap();
        let found: Vec<_> = found.iter().map(|(k, r)| (k.as_str(), text(r))).collect();
        assert_eq!(
            found,
            [
                ("ab", r#"[1, {"ab": "}"}, "\\\""]"#),
                ("c", r#""\"x""#),
                ("d", "-1.5e3")
            ]
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for bad in [
            "",
            "[]",
            "{",
            "{,}",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"a":1,}"#,
            r#"{"a":1 "b":2}"#,
            r#"{"a":[1}}"#,
            r#"{"a":tru}"#,
            r#"{"a":"x}"#,
            r#"{"a":1}x"#,
            r#"{a:1}"#,
            r#"{"a":[1,]}"#,
            r#"{"a":"\"#,
        ] {
            assert_eq!(members(bad.as_bytes()), Err(Fault), "{bad}");
        }
        let deep = |n: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(n), "]".repeat(n));
        assert!(members(deep(MAX_DEPTH as usize).as_bytes()).is_ok());
        assert_eq!(members(deep(MAX_DEPTH as usize + 1).as_bytes()), Err(Fault));
        assert_eq!(members("[".repeat(1 << 20).as_bytes()), Err(Fault));
    }

    #[test]
    fn arrays_are_gone_over() {
        let mut array = Array::open(br#" [ {"a":1} , "x",3 ] "#).unwrap();
        let mut out = Vec::new();
        while let Some(e) = array.element().unwrap() {
            out.push(std::str::from_utf8(e).unwrap().to_owned());
        }
        assert_eq!(out, [r#"{"a":1}"#, r#""x""#, "3"]);
        assert_eq!(Array::open(b"[]").unwrap().element(), Ok(None));
        assert_eq!(Array::open(b"[").unwrap().element(), Err(Fault));
        assert_eq!(Array::open(b"[,1]").unwrap().element(), Err(Fault));
    }

    #[test]
    fn numbers_are_read() {
        for (text, want) in [
            ("12", Some(12)),
            ("12.0", Some(12)),
            ("1e3", Some(1000)),
            ("-1", None),
            ("1.5", None),
            ("1e300", None),
            ("\"1\"", None),
            ("null", None),
        ] {
            assert_eq!(as_u64(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn one_value_is_replaced() {
        assert_eq!(splice(b"{\"a\":1}", 5..6, b"\"x\""), b"{\"a\":\"x\"}");
        assert_eq!(member(br#"{"x":{"a":1},"a":2}"#, "a"), Some(&b"2"[..]));
        assert_eq!(member(b"[1]", "a"), None);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i16>().prop_map(|n| Value::from(f64::from(n) / 4.0)),
            ".{0,40}".prop_map(Value::from),
            r#"[\\"{}\[\],:a ]{0,80}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 60, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(r#"[\\"{}a-cé]{0,4}"#, inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    struct Count {
        strings: usize,
        keys: usize,
        scalars: usize,
    }

    impl Visit for Count {
        fn key(&mut self, _: &[u8], _: u8, depth: u32) {
            assert!(depth >= 1);
            self.keys += 1;
        }
        fn string(&mut self, raw: &[u8]) {
            assert!(unescape(raw).is_some());
            self.strings += 1;
        }
        fn scalar(&mut self, _: &[u8]) {
            self.scalars += 1;
        }
    }

    fn count(v: &Value, to: &mut Count) {
        match v {
            Value::String(_) => to.strings += 1,
            Value::Array(a) => a.iter().for_each(|v| count(v, to)),
            Value::Object(o) => o.values().for_each(|v| {
                to.keys += 1;
                count(v, to);
            }),
            _ => to.scalars += 1,
        }
    }

    proptest! {
        #[test]
        fn spans_are_those_of_serde_json(
            doc in proptest::collection::btree_map(r#"[\\"{}a-cé]{0,4}"#, json(), 0..6),
            pretty in any::<bool>(),
        ) {
            let value = Value::Object(doc.into_iter().collect());
            let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
            let found = members(&text).map_err(|_| TestCaseError::fail("refused"))?;
            let want = value.as_object().unwrap();
            prop_assert_eq!(found.len(), want.len());
            for ((name, range), (key, member)) in found.iter().zip(want) {
                prop_assert_eq!(name, key);
                let got: Value = serde_json::from_slice(slice(&text, range.clone())).unwrap();
                prop_assert_eq!(&got, member);
                let mut seen = Count { strings: 0, keys: 0, scalars: 0 };
                prop_assert_eq!(super::value(&text, range.start, &mut seen), Ok(range.end));
                let mut wanted = Count { strings: 0, keys: 0, scalars: 0 };
                count(member, &mut wanted);
                prop_assert_eq!((seen.strings, seen.keys, seen.scalars), (wanted.strings, wanted.keys, wanted.scalars));
            }
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in r#"[{}\[\]",:\\ a1tn]{0,60}"#) {
            for bytes in [&bytes[..], text.as_bytes()] {
                let ours = members(bytes);
                // What serde_json takes for an object, we take for one as well.
                if serde_json::from_slice::<Value>(bytes).is_ok_and(|v| v.is_object()) {
                    prop_assert!(ours.is_ok());
                }
                if let Some(mut a) = Array::open(bytes) {
                    while let Ok(Some(_)) = a.element() {}
                }
                let _ = (as_text(bytes), as_u64(bytes), unescape(bytes), member(bytes, "a"));
            }
        }
    }
}
