//! YAML text → a tree in which every key and value knows its place: the only file that knows the YAML crate.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{DuplicateKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Spanned};

use super::problem::{Place, Problem};

/// Longest file read, in bytes.
pub(super) const MAX_BYTES: usize = 4 << 20;
/// Deepest nesting; ours needs seven levels.
const MAX_DEPTH: usize = 48;

/// A value and its place.
#[derive(Debug)]
pub(super) struct Node {
    /// Unique in its tree.
    pub(super) id: usize,
    /// Where it stands; for lists and maps from their first entry to the end of the last.
    pub(super) place: Place,
    /// What it is.
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Debug)]
pub(super) enum Value {
    /// Nothing.
    Null,
    /// A boolean, with its spelling.
    Bool(bool, String),
    /// A whole number, with its spelling.
    Int(i128, String),
    /// Another number, with its spelling.
    Float(f64, String),
    /// Text.
    Text(String),
    /// Text that holds the value of an environment variable, and so may stand for a number or a boolean.
    FromEnv(String),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in the order of the file, duplicate keys included.
    Map(Vec<(Node, Node)>),
}

/// Takes a map and the names of the keys above it.
type EachMap<'a, 'f> = dyn FnMut(&[&'a str], &'a [(Node, Node)]) + 'f;

impl Node {
    /// The text of a scalar as it was written (or as the environment says).
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Bool(_, t)
            | Value::Int(_, t)
            | Value::Float(_, t)
            | Value::Text(t)
            | Value::FromEnv(t) => Some(t),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Calls `f` with every map of the tree and the names of the keys above it.
    pub(super) fn each_map<'a>(&'a self, above: &mut Vec<&'a str>, f: &mut EachMap<'a, '_>) {
        match &self.value {
            Value::Map(entries) => {
                f(above, entries);
                for (key, value) in entries {
                    above.push(key.text().unwrap_or_default());
                    value.each_map(above, f);
                    above.pop();
                }
            }
            Value::List(items) => items.iter().for_each(|i| i.each_map(above, f)),
            _ => {}
        }
    }

    /// Calls `f` with every scalar that is a value, to be changed, and with the key above it.
    pub(super) fn each_value(&mut self, key: Option<&str>, f: &mut dyn FnMut(Option<&str>, &mut Self)) {
        match &mut self.value {
            Value::Map(entries) => entries.iter_mut().for_each(|(k, v)| v.each_value(k.text(), f)),
            Value::List(items) => items.iter_mut().for_each(|i| i.each_value(key, f)),
            _ => f(key, self),
        }
    }

    /// The node with that id.
    pub(super) fn find(&self, id: usize) -> Option<&Self> {
        match &self.value {
            _ if self.id == id => Some(self),
            Value::Map(entries) => entries
                .iter()
                .find_map(|(k, v)| k.find(id).or_else(|| v.find(id))),
            Value::List(items) => items.iter().find_map(|i| i.find(id)),
            _ => None,
        }
    }
}

/// Reads `source`.
///
/// # Errors
/// The one problem that keeps it from being YAML.
pub(super) fn parse(source: &str) -> Result<Node, Problem> {
    if source.len() > MAX_BYTES {
        return Err(whole(format!("longer than {} MiB", MAX_BYTES >> 20)));
    }
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: 200_000,
            max_aliases: 1_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 50_000,
            max_replay_stack_depth: 4,
        },
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(source, options) {
        Ok(root) => Ok(Builder { source, next_id: 0 }.node(root, 0..source.len())),
        Err(e) => {
            let text = e.render_with_formatter(&serde_saphyr::UserMessageFormatter);
            let text = first_line(&text);
            Err(match e.location() {
                Some(l) if l != Location::UNKNOWN => Problem {
                    place: place(&l, source).0,
                    text: format!("not YAML: {text}"),
                    hint: Some("check indentation, quotes and brackets just before this place".to_owned()),
                    key: None,
                },
                _ => whole(format!("not YAML: {text}")),
            })
        }
    }
}

fn whole(text: String) -> Problem {
    Problem {
        place: Place::Whole,
        text,
        hint: None,
        key: None,
    }
}

/// The message without the place that the YAML crate puts before or after it.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(" at line ").next().unwrap_or(line);
    let line = line.strip_prefix("error: ").unwrap_or(line);
    line.trim_end_matches('.').trim_end_matches(':').to_owned()
}

/// A place from the YAML crate's, and the bytes it covers.
fn place(l: &Location, source: &str) -> (Place, Range<usize>) {
    let span = l.span();
    let byte = |b: Option<u64>| b.and_then(|b| usize::try_from(b).ok());
    let start = byte(span.byte_offset()).unwrap_or(0).min(source.len());
    let end = start
        .saturating_add(byte(span.byte_len()).unwrap_or(0))
        .min(source.len());
    // Block scalars and empty values reach into the lines below: what is shown is the text itself.
    let end = match source.get(start..end) {
        Some(s) => start + s.trim_end().len(),
        None => end,
    };
    let place = Place::File {
        start,
        end,
        line: u32::try_from(l.line()).unwrap_or(u32::MAX),
        column: u32::try_from(l.column()).unwrap_or(u32::MAX),
    };
    (place, start..end)
}

/// A tree as the YAML crate gives it.
enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<Self>, Spanned<Self>)>),
}

struct Builder<'a> {
    source: &'a str,
    next_id: usize,
}

impl Builder<'_> {
    fn node(&mut self, raw: Spanned<Raw>, within: Range<usize>) -> Node {
        let id = self.next_id;
        self.next_id += 1;
        let (mut at, _) = place(&raw.referenced, self.source);
        let (_, defined) = place(&raw.defined, self.source);
        let spelling = || self.source.get(defined.clone()).unwrap_or_default().to_owned();
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(b) => Value::Bool(b, spelling()),
            Raw::Int(i) => Value::Int(i, spelling()),
            Raw::Float(f) => Value::Float(f, spelling()),
            Raw::Text(t) => Value::Text(t),
            Raw::List(items) => {
                Value::List(items.into_iter().map(|i| self.node(i, within.clone())).collect())
            }
            Raw::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(k, v)| (self.node(k, within.clone()), self.node(v, within.clone())))
                    .collect(),
            ),
        };
        let last = match &value {
            Value::List(items) => items.iter().filter_map(|n| end_of(n.place)).max(),
            Value::Map(entries) => entries
                .iter()
                .flat_map(|(k, v)| [end_of(k.place), end_of(v.place)])
                .flatten()
                .max(),
            _ => None,
        };
        if let (Place::File { start, end, .. }, Some(last)) = (&mut at, last) {
            *end = last.max(*start);
        }
        Node { id, place: at, value }
    }
}

const fn end_of(place: Place) -> Option<usize> {
    match place {
        Place::File { end, .. } => Some(end),
        _ => None,
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_unit<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }

            fn visit_none<E>(self) -> Result<Raw, E> {
                Ok(Raw::Null)
            }

            fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
                Raw::deserialize(d)
            }

            fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<Raw, D::Error> {
                Raw::deserialize(d)
            }

            fn visit_bool<E>(self, v: bool) -> Result<Raw, E> {
                Ok(Raw::Bool(v))
            }

            fn visit_i64<E>(self, v: i64) -> Result<Raw, E> {
                Ok(Raw::Int(v.into()))
            }

            fn visit_u64<E>(self, v: u64) -> Result<Raw, E> {
                Ok(Raw::Int(v.into()))
            }

            fn visit_i128<E>(self, v: i128) -> Result<Raw, E> {
                Ok(Raw::Int(v))
            }

            fn visit_u128<E>(self, v: u128) -> Result<Raw, E> {
                Ok(i128::try_from(v).map_or(Raw::Float(v as f64), Raw::Int))
            }

            fn visit_f64<E>(self, v: f64) -> Result<Raw, E> {
                Ok(Raw::Float(v))
            }

            fn visit_str<E>(self, v: &str) -> Result<Raw, E> {
                Ok(Raw::Text(v.to_owned()))
            }

            fn visit_string<E>(self, v: String) -> Result<Raw, E> {
                Ok(Raw::Text(v))
            }

            fn visit_bytes<E>(self, v: &[u8]) -> Result<Raw, E> {
                Ok(Raw::Text(String::from_utf8_lossy(v).into_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Raw::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Raw::Map(entries))
            }
        }
        d.deserialize_any(V)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(node: &'a Node, key: &str) -> &'a Node {
        let Value::Map(entries) = &node.value else {
            panic!("no map")
        };
        &entries.iter().find(|(k, _)| k.text() == Some(key)).unwrap().1
    }

    fn at(place: Place) -> (u32, u32) {
        match place {
            Place::File { line, column, .. } => (line, column),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_value_knows_its_place_and_spelling() {
        let source = "a: 1.10\nb:\n  - x: 5m\n    y: \"q\"\n  - 7\nc: &k {z: yes}\nd: *k\ne:\n";
        let root = parse(source).unwrap();
        assert_eq!(find(&root, "a").text(), Some("1.10"));
        let Value::List(items) = &find(&root, "b").value else {
            panic!()
        };
        assert_eq!(at(items[0].place), (3, 5));
        assert_eq!(at(find(&items[0], "y").place), (4, 8));
        assert_eq!(find(&items[0], "x").text(), Some("5m"));
        assert_eq!(at(items[1].place), (5, 5));
        assert!(find(&items[0], "y").place.within(items[0].place));
        assert_eq!(find(find(&root, "d"), "z").text(), Some("yes"));
        assert!(matches!(find(&root, "e").value, Value::Null));
    }

    #[test]
    fn duplicates_are_kept() {
        let Value::Map(entries) = parse("a: 1\na: 2\n").unwrap().value else {
            panic!()
        };
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn broken_text_has_one_problem_with_its_place() {
        for (source, line) in [
            ("a: [1, 2\nb: 3\n", 2),
            ("a: 1\n b: 2\n", 2),
            ("a: \"x\n", 2),
            ("a: *nope\n", 1),
        ] {
            let p = parse(source).unwrap_err();
            assert!(p.text.starts_with("not YAML: "), "{p:?}");
            assert!(
                matches!(p.place, Place::File { line: l, .. } if l <= line + 1),
                "{source:?}: {p:?}"
            );
        }
        for (source, what) in [("---\na: 1\n---\nb: 2\n", "document"), (&"[".repeat(2_000), "")] {
            let p = parse(source).unwrap_err();
            assert!(p.text.contains(what), "{p:?}");
        }
    }

    #[test]
    fn aliases_that_pile_up_are_refused_before_the_stack_or_the_memory_ends() {
        let (open, shut) = ("[".repeat(40), "]".repeat(40));
        let mut deep = format!("a0: &a0 {open}1{shut}\n");
        let mut wide = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
        for i in 1..200 {
            let before = i - 1;
            deep.push_str(&format!("a{i}: &a{i} {open}*a{before}{shut}\n"));
            wide.push_str(&format!(
                "a{i}: &a{i} [*a{before}, *a{before}, *a{before}, *a{before}]\n"
            ));
        }
        for source in [deep, wide] {
            parse(&source).unwrap_err();
        }
    }

    #[test]
    fn nothing_is_a_null() {
        for source in ["", "\n", "# only a comment\n", "---\n"] {
            assert!(matches!(parse(source).unwrap().value, Value::Null), "{source:?}");
        }
    }
}
