//! Tree → the types of the file by serde, gathering every problem: what cannot be read is told and left out.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use super::at::PLACED;
use super::problem::{MAX_PROBLEMS, Place, Problem};
use super::suggest;
use super::tree::{Node, Value};

/// Reads a `T` from `root` without the nodes `left_out`. Keys that `T` does not know, values of a wrong type and
/// duplicate keys become problems; the bytes of what stands behind a misspelt key of a secret are added to `secrets`.
pub(super) fn read<T: DeserializeOwned + Default>(
    root: &Node,
    left_out: Vec<usize>,
    problems: &mut Vec<Problem>,
    secrets: &mut Vec<Range<usize>>,
) -> T {
    let mut dead: HashSet<usize> = left_out.into_iter().collect();
    duplicates(root, &mut dead, problems);
    for _ in 0..=MAX_PROBLEMS {
        match T::deserialize(De {
            node: root,
            dead: &dead,
        }) {
            Ok(value) => return value,
            Err(e) => {
                let Some((id, place, key)) = e.at else { break };
                let problem = e.what.problem(place, key);
                if problem.key.as_deref().is_some_and(|k| SECRETS.contains(&k))
                    && let Some(Place::File { start, end, .. }) = root.find(id).map(|n| n.place)
                {
                    secrets.push(start..end);
                }
                problems.push(problem);
                if id == root.id || !dead.insert(id) {
                    break;
                }
            }
        }
    }
    T::default()
}

/// Keys whose values are, or may be, secrets.
const SECRETS: [&str; 16] = [
    "token",
    "token_file",
    "token_sha256",
    "tokens",
    "api_key",
    "api_key_file",
    "credentials",
    "secret",
    "secret_file",
    "api_key_salt",
    "url",
    "urls",
    "routing_key",
    "routing_key_file",
    "headers",
    "proxy",
];

/// Tells and leaves out the second of two equal keys.
fn duplicates(root: &Node, dead: &mut HashSet<usize>, problems: &mut Vec<Problem>) {
    root.each_map(&mut Vec::new(), &mut |_, entries| {
        let mut seen = std::collections::HashMap::new();
        for (key, value) in entries {
            let Some(text) = key.text() else { continue };
            if let Some(first) = seen.insert(text, key.place) {
                dead.insert(value.id);
                problems.push(Problem {
                    place: key.place,
                    text: format!("`{text}` is given twice"),
                    hint: Some(match first {
                        Place::File { line, .. } => {
                            format!("the first one is in line {line}; keep one of them")
                        }
                        _ => "keep one of them".to_owned(),
                    }),
                    key: Some(text.to_owned()),
                });
                seen.insert(text, first);
            }
        }
    });
}

/// What went wrong, and in which node.
#[derive(Debug)]
struct Fault {
    what: What,
    at: Option<(usize, Place, Option<String>)>,
}

#[derive(Debug)]
enum What {
    /// A key that is not known here.
    Key {
        word: String,
        known: &'static [&'static str],
    },
    /// A word that is not one of the choices.
    Word {
        word: String,
        known: &'static [&'static str],
    },
    /// Another type than the wanted one.
    Type { wanted: String, found: &'static str },
    /// Something else.
    Other(String),
}

impl What {
    fn problem(self, place: Place, key: Option<String>) -> Problem {
        match self {
            Self::Key { word, known } => Problem {
                place,
                text: format!("unknown key `{}`", clipped(&word)),
                hint: suggest::hint(&word, known.iter().copied()),
                key: suggest::nearest(&word, known.iter().copied()).map(str::to_owned),
            },
            Self::Word { word, known } => Problem {
                place,
                text: match &key {
                    Some(key) => format!("unknown value for `{key}`"),
                    None => "unknown value".to_owned(),
                },
                hint: suggest::hint(&word, known.iter().copied()),
                key,
            },
            Self::Type { wanted, found } => Problem {
                place,
                text: match &key {
                    Some(key) => format!("`{key}` must be {wanted}, not {found}"),
                    None => format!("this must be {wanted}, not {found}"),
                },
                hint: hint_for(&wanted),
                key,
            },
            Self::Other(text) => Problem {
                place,
                text,
                hint: None,
                key,
            },
        }
    }
}

/// How a value of that type is written.
fn hint_for(wanted: &str) -> Option<String> {
    let hint = match wanted {
        "a list" => "write each entry in a line of its own after `- `, or [a, b]",
        "a map of keys" => "write its keys in the lines below, further to the right, as KEY: VALUE",
        "text" => "write one value behind the colon",
        "true or false" => "write true or false, without quotes",
        "a whole number from 0 up" => "write digits only, without quotes or a unit, as 4",
        "a number" => "write a number without quotes or a unit, as 0.5",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The beginning of a word that may be very long.
pub(super) fn clipped(word: &str) -> String {
    match word.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", word.get(..cut).unwrap_or_default()),
        None => word.to_owned(),
    }
}

impl Fault {
    /// Fills in where it happened, unless something within said so already.
    fn at(mut self, node: &Node, place: Place, key: Option<&Node>) -> Self {
        self.at = match self.at {
            None => Some((node.id, place, key.and_then(|k| k.text()).map(str::to_owned))),
            Some((id, place, None)) if id == node.id => {
                Some((id, place, key.and_then(|k| k.text()).map(str::to_owned)))
            }
            known => known,
        };
        self
    }

    fn of(node: &Node, wanted: &str) -> Self {
        let found = match &node.value {
            Value::Null => "empty",
            Value::Bool(..) => "true or false",
            Value::Int(i, _) if *i < 0 => "a negative number",
            Value::Int(..) => "a whole number",
            Value::Float(..) => "a number",
            Value::Text(_) | Value::FromEnv(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a map of keys",
        };
        Self {
            what: What::Type {
                wanted: wanted.to_owned(),
                found,
            },
            at: Some((node.id, node.place, None)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(msg: T) -> Self {
        Self {
            what: What::Other(msg.to_string()),
            at: None,
        }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let what = What::Key {
            word: field.to_owned(),
            known: expected,
        };
        Self { what, at: None }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let what = What::Word {
            word: variant.to_owned(),
            known: expected,
        };
        Self { what, at: None }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match unexpected {
            Unexpected::Bool(_) => "true or false",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a whole number",
            Unexpected::Float(_) => "a number",
            Unexpected::Str(_) | Unexpected::Char(_) | Unexpected::Bytes(_) => "text",
            Unexpected::Unit | Unexpected::Option => "empty",
            Unexpected::Seq => "a list",
            Unexpected::Map => "a map of keys",
            _ => "something else",
        };
        let what = What::Type {
            wanted: expected.to_string(),
            found,
        };
        Self { what, at: None }
    }
}

/// Reads one node.
#[derive(Clone, Copy)]
struct De<'a> {
    node: &'a Node,
    dead: &'a HashSet<usize>,
}

impl<'a> De<'a> {
    fn entries(self) -> Result<Entries<'a>, Fault> {
        match &self.node.value {
            Value::Map(entries) => Ok(Entries {
                rest: entries.iter(),
                value: None,
                dead: self.dead,
            }),
            Value::Null => Ok(Entries {
                rest: [].iter(),
                value: None,
                dead: self.dead,
            }),
            _ => Err(Fault::of(self.node, "a map of keys")),
        }
    }

    fn items(self) -> Result<Items<'a>, Fault> {
        match &self.node.value {
            Value::List(items) => Ok(Items {
                rest: items.iter(),
                dead: self.dead,
            }),
            Value::Null => Ok(Items {
                rest: [].iter(),
                dead: self.dead,
            }),
            _ => Err(Fault::of(self.node, "a list")),
        }
    }

    fn text<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        let text = self.node.text().ok_or_else(|| Fault::of(self.node, "text"))?;
        visitor.visit_str(text)
    }
}

impl<'de> Deserializer<'de> for De<'_> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => v.visit_unit(),
            Value::Bool(b, _) => v.visit_bool(*b),
            Value::Int(i, _) => match i64::try_from(*i) {
                Ok(i) => v.visit_i64(i),
                Err(_) => v.visit_f64(*i as f64),
            },
            Value::Float(f, _) => v.visit_f64(*f),
            Value::Text(t) | Value::FromEnv(t) => v.visit_str(t),
            Value::List(_) => v.visit_seq(self.items()?),
            Value::Map(_) => v.visit_map(self.entries()?),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Bool(b, _) => v.visit_bool(*b),
            Value::FromEnv(t) if t == "true" || t == "false" => v.visit_bool(t == "true"),
            _ => Err(Fault::of(self.node, "true or false")),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        let number = match &self.node.value {
            Value::Int(i, _) => u64::try_from(*i).ok(),
            Value::FromEnv(t) => t.trim().parse().ok(),
            _ => None,
        };
        match number {
            Some(n) => v.visit_u64(n),
            None => Err(Fault::of(self.node, "a whole number from 0 up")),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        let number = match &self.node.value {
            Value::Int(i, _) => Some(*i as f64),
            Value::Float(f, _) => Some(*f),
            Value::FromEnv(t) => t.trim().parse().ok(),
            _ => None,
        };
        match number.filter(|n| n.is_finite()) {
            Some(n) => v.visit_f64(n),
            None => Err(Fault::of(self.node, "a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        self.text(v)
    }

    fn deserialize_string<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        self.text(v)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        self.text(v)
    }

    fn deserialize_option<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => v.visit_none(),
            _ => v.visit_some(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        v.visit_seq(self.items()?)
    }

    fn deserialize_map<V: Visitor<'de>>(self, v: V) -> Result<V::Value, Fault> {
        v.visit_map(self.entries()?)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Fault> {
        v.visit_map(self.entries()?)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, v: V) -> Result<V::Value, Fault> {
        v.visit_newtype_struct(self)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: usize,
        v: V,
    ) -> Result<V::Value, Fault> {
        if name == PLACED {
            v.visit_seq(Placed { de: self, given: 0 })
        } else {
            v.visit_seq(self.items()?)
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Map(entries) => match entries.as_slice() {
                [(key, value)] => v.visit_enum(Choice {
                    word: key,
                    value: Some(Self {
                        node: value,
                        dead: self.dead,
                    }),
                }),
                _ => Err(Fault::of(self.node, "one word, or one word with its value")),
            },
            _ if self.node.text().is_some() => v.visit_enum(Choice {
                word: self.node,
                value: None,
            }),
            _ => Err(Fault::of(self.node, "one word")),
        }
    }

    serde::forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 char bytes byte_buf unit unit_struct tuple ignored_any
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, (Node, Node)>,
    value: Option<(&'a Node, &'a Node)>,
    dead: &'a HashSet<usize>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        for (key, value) in self.rest.by_ref() {
            if self.dead.contains(&value.id) {
                continue;
            }
            self.value = Some((key, value));
            // The whole entry goes when its key cannot be used.
            return match seed.deserialize(De {
                node: key,
                dead: self.dead,
            }) {
                Ok(k) => Ok(Some(k)),
                Err(mut e) => {
                    e.at = Some((value.id, key.place, None));
                    Err(e)
                }
            };
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some((key, value)) = self.value.take() else {
            return Err(de::Error::custom("a value without a key"));
        };
        seed.deserialize(De {
            node: value,
            dead: self.dead,
        })
        .map_err(|e| e.at(value, value.place, Some(key)))
    }
}

struct Items<'a> {
    rest: std::slice::Iter<'a, Node>,
    dead: &'a HashSet<usize>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        for node in self.rest.by_ref() {
            if !self.dead.contains(&node.id) {
                let item = seed.deserialize(De {
                    node,
                    dead: self.dead,
                });
                return item.map(Some).map_err(|e| e.at(node, node.place, None));
            }
        }
        Ok(None)
    }
}

/// A word, alone or with a value.
struct Choice<'a> {
    word: &'a Node,
    value: Option<De<'a>>,
}

impl<'de, 'a> EnumAccess<'de> for Choice<'a> {
    type Error = Fault;
    type Variant = ChoiceValue<'a>;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, ChoiceValue<'a>), Fault> {
        let word = seed.deserialize(self.word.text().unwrap_or_default().into_deserializer())?;
        Ok((
            word,
            ChoiceValue {
                word: self.word,
                value: self.value,
            },
        ))
    }
}

struct ChoiceValue<'a> {
    word: &'a Node,
    value: Option<De<'a>>,
}

impl<'de> VariantAccess<'de> for ChoiceValue<'_> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.value {
            None => Ok(()),
            Some(_) => Err(de::Error::custom(format!(
                "`{}` takes no value",
                self.word.text().unwrap_or_default()
            ))),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        match self.value {
            Some(de) => seed.deserialize(de),
            None => {
                let word = self.word.text().unwrap_or_default();
                Err(de::Error::custom(format!("`{word}` needs a value: {word}: …")))
            }
        }
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom("not a choice"))
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom("not a choice"))
    }
}

/// Gives the place first, then the value.
struct Placed<'a> {
    de: De<'a>,
    given: u8,
}

impl<'de> SeqAccess<'de> for Placed<'_> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        self.given += 1;
        if self.given > 1 {
            return seed.deserialize(self.de).map(Some);
        }
        let parts = match self.de.node.place {
            Place::File {
                start,
                end,
                line,
                column,
            } => [start as u64, end as u64, line.into(), column.into()],
            _ => [0; 4],
        };
        seed.deserialize(de::value::SeqDeserializer::new(parts.into_iter()))
            .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::config::at::{At, Opt};
    use crate::config::tree::parse;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Outer {
        name: Opt<String>,
        count: Opt<u64>,
        share: Opt<f64>,
        on: Opt<bool>,
        pick: Opt<Pick>,
        list: Vec<At<Inner>>,
        map: BTreeMap<At<String>, At<u64>>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        deep: Opt<u64>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Pick {
        Left,
        Right(u64),
    }

    fn run(text: &str) -> (Outer, Vec<String>) {
        let mut problems = Vec::new();
        let value = read(&parse(text).unwrap(), Vec::new(), &mut problems, &mut Vec::new());
        let shown = problems
            .into_iter()
            .map(|p| match p.place {
                Place::File { line, column, .. } => {
                    format!("{line}:{column} {} | {}", p.text, p.hint.unwrap_or_default())
                }
                other => format!("{other:?}"),
            })
            .collect();
        (value, shown)
    }

    #[test]
    fn reads_what_is_right() {
        let (v, problems) = run(
            "name: 1.10\ncount: 3\nshare: 2\non: true\npick: {right: 4}\nlist: [{deep: 1}]\nmap: {a: 1}\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(v.name.unwrap().value, "1.10");
        assert_eq!(v.count.unwrap().value, 3);
        assert_eq!(v.share.unwrap().value, 2.0);
        assert!(v.on.unwrap().value);
        assert_eq!(v.pick.unwrap().value, Pick::Right(4));
        assert_eq!(v.list[0].value.deep.unwrap().value, 1);
        assert!(matches!(
            v.list[0].place,
            Place::File {
                line: 6,
                column: 8,
                ..
            }
        ));
        assert_eq!(v.map.len(), 1);
    }

    #[test]
    fn tells_all_that_is_wrong_and_reads_the_rest() {
        let text = "nmae: x\ncount: -3\nshare: [1]\non: 5\npick: lfet\nlist:\n  - deep: x\n  - {depp: 1}\n  - {deep: 9}\nmap: {a: b, c: 2}\nmap: {}\n";
        let (v, mut problems) = run(text);
        problems.sort_by_key(|p| p.split(':').next().unwrap().parse::<u32>().unwrap());
        assert_eq!(
            problems,
            [
                "1:1 unknown key `nmae` | did you mean `name`?",
                "2:8 `count` must be a whole number from 0 up, not a negative number | write digits only, without quotes or a unit, as 4",
                "3:8 `share` must be a number, not a list | write a number without quotes or a unit, as 0.5",
                "4:5 `on` must be true or false, not a whole number | write true or false, without quotes",
                "5:7 unknown value for `pick` | did you mean `left`?",
                "7:11 `deep` must be a whole number from 0 up, not text | write digits only, without quotes or a unit, as 4",
                "8:6 unknown key `depp` | did you mean `deep`?",
                "10:10 `a` must be a whole number from 0 up, not text | write digits only, without quotes or a unit, as 4",
                "11:1 `map` is given twice | the first one is in line 10; keep one of them",
            ]
        );
        assert_eq!(v.list.len(), 3);
        assert_eq!(v.list[2].value.deep.unwrap().value, 9);
        assert_eq!(v.map.len(), 1);
    }

    #[test]
    fn a_file_that_is_no_map_is_told() {
        assert_eq!(
            run("- 1\n").1,
            ["Whole"].map(|_| "1:1 this must be a map of keys, not a list | write its keys in the lines below, further to the right, as KEY: VALUE".to_owned())
        );
    }
}
