//! Documents in export lines: an object stands there as an object, every other text as a string; both come back exactly.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// The object that a text spells, when writing it as one loses nothing.
fn object(text: &str) -> Option<&RawValue> {
    let plain = text.starts_with('{') && text.ends_with('}') && !text.contains(['\n', '\r']);
    if plain {
        serde_json::from_str(text).ok()
    } else {
        None
    }
}

fn put<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
    match object(text) {
        Some(raw) => raw.serialize(to),
        None => text.serialize(to),
    }
}

fn take<E: serde::de::Error>(raw: &RawValue) -> Result<String, E> {
    let text = raw.get();
    match text.as_bytes().first() {
        Some(b'{') => Ok(text.to_owned()),
        Some(b'"') => serde_json::from_str(text).map_err(E::custom),
        _ => Err(E::custom("a document is an object or a string")),
    }
}

/// A document.
pub(super) mod text {
    use super::{Deserialize, Deserializer, RawValue, Serializer};

    pub(in crate::store) fn serialize<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
        super::put(text, to)
    }

    pub(in crate::store) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        super::take(&raw)
    }
}

/// A document that may be missing.
pub(super) mod maybe {
    use super::{Deserialize, Deserializer, RawValue, Serializer};

    pub(in crate::store) fn serialize<S: Serializer>(
        text: &Option<String>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match text {
            Some(text) => super::put(text, to),
            None => to.serialize_none(),
        }
    }

    pub(in crate::store) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<String>, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        if raw.get() == "null" {
            return Ok(None);
        }
        super::take(&raw).map(Some)
    }
}
