//! Puts a value into a JSON text, takes one out, or finds one, by a path of keys; every other byte stays.

use std::ops::Range;

use super::json::{self, Fault, Object};

/// The keys that lead to a value. Each has the spellings under which an API takes it, the usual one first.
pub(super) type Path<'a> = [&'a [&'a str]];

/// Why a text was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is no JSON object.
    #[error("its body cannot be read")]
    Unreadable,
    /// A key stands twice, so that it cannot be told which one counts.
    #[error("a key that would be changed stands twice")]
    Twice,
    /// What should hold the value is no object.
    #[error("what should hold the value is no object")]
    NoObject,
}

impl From<Fault> for EditError {
    fn from(_: Fault) -> Self {
        Self::Unreadable
    }
}

/// Where a value stands, or would have to be put.
enum Place {
    /// It is there; and what has to go when it goes, its key and a comma included.
    Found { value: Range<usize>, cut: Range<usize> },
    /// Before the closing brace at `at`, as the first member or not; so many keys of the path are there.
    Missing { at: usize, first: bool, depth: usize },
    /// `null` stands where an object should.
    Null { value: Range<usize>, depth: usize },
}

/// Where the value at `path` stands; `None` when there is none.
pub(super) fn place(body: &[u8], path: &Path<'_>) -> Result<Option<Range<usize>>, EditError> {
    Ok(match find(body, path)? {
        Place::Found { value, .. } => Some(value),
        Place::Missing { .. } | Place::Null { .. } => None,
    })
}

/// The value at `path`; `None` when there is none.
pub(super) fn get<'a>(body: &'a [u8], path: &Path<'_>) -> Result<Option<&'a [u8]>, EditError> {
    Ok(place(body, path)?.map(|range| json::slice(body, range)))
}

/// The text with `value` at `path`: in the place of what stands there, else as the last member of its object, with the
/// objects around it where they are missing.
pub(super) fn put(body: &[u8], path: &Path<'_>, value: &[u8]) -> Result<Vec<u8>, EditError> {
    Ok(match find(body, path)? {
        Place::Found { value: range, .. } => json::splice(body, range, value),
        Place::Missing { at, first, depth } => {
            let mut new = Vec::with_capacity(value.len() + 64);
            if !first {
                new.push(b',');
            }
            nest(&mut new, path.get(depth..).unwrap_or_default(), value);
            json::splice(body, at..at, &new)
        }
        Place::Null { value: range, depth } => {
            let mut new = vec![b'{'];
            nest(&mut new, path.get(depth..).unwrap_or_default(), value);
            new.push(b'}');
            json::splice(body, range, &new)
        }
    })
}

/// The text without the member at `path`; `None` when there is none.
pub(super) fn take_out(body: &[u8], path: &Path<'_>) -> Result<Option<Vec<u8>>, EditError> {
    Ok(match find(body, path)? {
        Place::Found { cut, .. } => Some(json::splice(body, cut, b"")),
        Place::Missing { .. } | Place::Null { .. } => None,
    })
}

/// Writes `"a":{"b":value}` for the keys that are missing.
fn nest(out: &mut Vec<u8>, keys: &Path<'_>, value: &[u8]) {
    let mut open = 0;
    let mut left = keys.iter().filter_map(|spellings| spellings.first()).peekable();
    while let Some(key) = left.next() {
        // Writing a string cannot fail.
        out.extend_from_slice(&serde_json::to_vec(key).unwrap_or_default());
        out.push(b':');
        if left.peek().is_some() {
            out.push(b'{');
            open += 1;
        }
    }
    out.extend_from_slice(value);
    out.extend(std::iter::repeat_n(b'}', open));
}

/// Where `path` leads. All of the text is gone over, so that a key that stands twice is seen.
fn find(body: &[u8], path: &Path<'_>) -> Result<Place, EditError> {
    let mut offset = 0;
    let mut text = body;
    let mut found = None;
    for (depth, spellings) in path.iter().enumerate() {
        if depth > 0 && text == b"null" {
            let value = offset..offset + text.len();
            return Ok(Place::Null { value, depth });
        }
        let not_this = if depth == 0 {
            EditError::Unreadable
        } else {
            EditError::NoObject
        };
        let mut object = Object::open(text).ok_or(not_this)?;
        found = None;
        let mut first = true;
        while let Some(key) = object.key()? {
            let fits = is_one_of(&json::key_name(key), spellings);
            let (before, start) = (object.before_key(), object.key_start());
            let value = object.value(&mut ())?;
            if fits {
                // With the comma before it; as the first member, with the comma behind it.
                let cut = if first {
                    let comma = json::blanks(text, value.end);
                    match text.get(comma) {
                        Some(b',') => start..json::blanks(text, comma + 1),
                        _ => start..value.end,
                    }
                } else {
                    before..value.end
                };
                let shift = |r: Range<usize>| r.start + offset..r.end + offset;
                let there = Place::Found {
                    value: shift(value),
                    cut: shift(cut),
                };
                if found.replace(there).is_some() {
                    return Err(EditError::Twice);
                }
            }
            first = false;
        }
        if depth == 0 && !object.is_whole() {
            return Err(EditError::Unreadable);
        }
        match &found {
            Some(Place::Found { value, .. }) => {
                offset = value.start;
                text = json::slice(body, value.clone());
            }
            _ => {
                let at = offset + object.close();
                return Ok(Place::Missing { at, first, depth });
            }
        }
    }
    found.ok_or(EditError::Unreadable)
}

fn is_one_of(key: &[u8], spellings: &[&str]) -> bool {
    spellings.iter().any(|s| s.as_bytes() == key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const DEEP: &[&[&str]] = &[&["a", "A"], &["b"]];
    const FLAT: &[&[&str]] = &[&["a", "A"]];

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn one_value_is_put_in_its_place() {
        for (body, path, want) in [
            (
                r#"{ "x" : [1, 2] , "a" : 5 }"#,
                FLAT,
                r#"{ "x" : [1, 2] , "a" : 9 }"#,
            ),
            ("{ \"x\":1 }\n", FLAT, "{ \"x\":1 ,\"a\":9}\n"),
            ("{}", FLAT, r#"{"a":9}"#),
            ("{ }", DEEP, r#"{ "a":{"b":9}}"#),
            (r#"{"A":{"c":1}}"#, DEEP, r#"{"A":{"c":1,"b":9}}"#),
            (r#"{"\u0061":{ "b" : null}}"#, DEEP, r#"{"\u0061":{ "b" : 9}}"#),
            (r#"{"a":null,"z":1}"#, DEEP, r#"{"a":{"b":9},"z":1}"#),
            (
                r#"{"m":{"a":{"b":1}}}"#,
                DEEP,
                r#"{"m":{"a":{"b":1}},"a":{"b":9}}"#,
            ),
        ] {
            assert_eq!(
                put(body.as_bytes(), path, b"9").map(text),
                Ok(want.to_owned()),
                "{body}"
            );
        }
    }

    #[test]
    fn one_member_is_taken_out() {
        for (body, path, want) in [
            (r#"{"a":1}"#, FLAT, Some("{}")),
            (r#"{ "a" : 1 , "b":2}"#, FLAT, Some(r#"{ "b":2}"#)),
            (r#"{"b":2 , "a" :1 }"#, FLAT, Some(r#"{"b":2 }"#)),
            (
                r#"{"x":0,"a":{"c":1, "b":[2],"d":3}}"#,
                DEEP,
                Some(r#"{"x":0,"a":{"c":1,"d":3}}"#),
            ),
            (r#"{"b":1}"#, FLAT, None),
            (r#"{"a":null}"#, DEEP, None),
        ] {
            let got = take_out(body.as_bytes(), path).unwrap().map(text);
            assert_eq!(got.as_deref(), want, "{body}");
        }
    }

    #[test]
    fn what_is_not_certain_is_left() {
        for (body, path, want) in [
            (r#"{"a":1,"A":2}"#, FLAT, EditError::Twice),
            (r#"{"a":{"b":1,"b":1}}"#, DEEP, EditError::Twice),
            (r#"{"a":[1]}"#, DEEP, EditError::NoObject),
            (r#"{"a":1"#, FLAT, EditError::Unreadable),
            (r#"{"a":1} {}"#, FLAT, EditError::Unreadable),
            ("[]", FLAT, EditError::Unreadable),
            ("", FLAT, EditError::Unreadable),
            ("\u{1f}\u{8b}", FLAT, EditError::Unreadable),
        ] {
            assert_eq!(put(body.as_bytes(), path, b"9"), Err(want), "{body}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            r#"[a-z"\\é]{0,6}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 20, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map("[abc]", inner, 0..4).prop_map(|m| json!(m)),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_result_is_what_a_parser_would_make(body in any_json(), pretty in any::<bool>(), deep in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) };
            let text = text.unwrap();
            let path = if deep { DEEP } else { FLAT };
            let Ok(new) = put(text.as_bytes(), path, b"[9]") else {
                let holder = if deep { body.get("a") } else { Some(&body) };
                prop_assert!(!body.is_object() || holder.is_some_and(|h| !h.is_object() && !h.is_null()));
                return Ok(());
            };
            let mut want = body.clone();
            if deep {
                if want["a"].is_null() {
                    want["a"] = json!({});
                }
                want["a"]["b"] = json!([9]);
            } else {
                want["a"] = json!([9]);
            }
            prop_assert_eq!(&serde_json::from_slice::<Value>(&new).unwrap(), &want);
            prop_assert_eq!(get(&new, path).unwrap(), Some(&b"[9]"[..]));
            let gone = take_out(&new, path).unwrap().unwrap();
            let holder = if deep { want["a"].as_object_mut() } else { want.as_object_mut() };
            holder.unwrap().remove(if deep { "b" } else { "a" });
            prop_assert_eq!(&serde_json::from_slice::<Value>(&gone).unwrap(), &want);
            prop_assert_eq!(take_out(&gone, path).unwrap(), None);
        }

        #[test]
        fn nothing_panics(text in r#"[{}\[\]",:ab1 \\]{0,40}"#) {
            put(text.as_bytes(), DEEP, b"1").ok();
            take_out(text.as_bytes(), FLAT).ok();
        }
    }
}
