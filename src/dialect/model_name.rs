//! The names that models go by: one table entry answers to all spellings of its model.

use std::collections::HashMap;

/// Longest name that is looked up, in bytes.
const MAX_NAME: usize = 128;
/// Endings that are taken off before a name is given up.
const MAX_ENDINGS: usize = 8;

/// Values by model. A name is looked up as it stands, then without the vendor before it and the date behind it, so
/// that `us.anthropic.claude-sonnet-4-20250514-v1:0` and `anthropic/claude-sonnet-4` find `claude-sonnet-4`, while
/// `gpt-4o-mini` never finds `gpt-4o`: only dates, versions and the like are taken off.
///
/// Case and underscores do not matter, nor do dots in the names of Claude (`claude-3.5-haiku` is `claude-3-5-haiku`).
#[derive(Clone, PartialEq, Eq)]
pub(super) struct NameMap<T> {
    exact: HashMap<Box<[u8]>, T>,
    /// Patterns that end in `*`, without it, longest first.
    prefixes: Vec<(Box<[u8]>, T)>,
}

impl<T> std::fmt::Debug for NameMap<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "NameMap({} names, {} patterns)",
            self.exact.len(),
            self.prefixes.len()
        )
    }
}

impl<T> Default for NameMap<T> {
    fn default() -> Self {
        Self {
            exact: HashMap::new(),
            prefixes: Vec::new(),
        }
    }
}

impl<T> NameMap<T> {
    /// Sets the value of a name, or of all names that begin with it when it ends in `*`.
    pub(super) fn insert(&mut self, name: &str, value: T) {
        match name.strip_suffix('*') {
            None => {
                self.exact.insert(same_spelling(name), value);
            }
            Some(prefix) => {
                let prefix = same_spelling(prefix);
                self.prefixes.retain(|(p, _)| *p != prefix);
                let place = self.prefixes.partition_point(|(p, _)| p.len() >= prefix.len());
                self.prefixes.insert(place, (prefix, value));
            }
        }
    }

    /// The value of the entry that `name` belongs to. Without allocation.
    pub(super) fn get(&self, name: &str) -> Option<&T> {
        let mut buffer = [0; MAX_NAME];
        let full = buffer.get_mut(..name.len())?;
        for (to, from) in full.iter_mut().zip(name.bytes()) {
            *to = spell(from);
        }
        if let Some(found) = self.exact.get(&*full) {
            return Some(found);
        }
        let bare = full.len() - without_vendor(full).len();
        for candidate in [full.get(..)?, full.get(bare..)?] {
            let hit = self.prefixes.iter().find(|(p, _)| candidate.starts_with(p));
            if let Some((_, found)) = hit {
                return Some(found);
            }
        }
        let bare = full.get_mut(bare..)?;
        // A file of a local model is not the model that a vendor sells under its name.
        if bare.ends_with(b".gguf") {
            return None;
        }
        if bare.starts_with(b"claude") {
            bare.iter_mut().filter(|b| **b == b'.').for_each(|b| *b = b'-');
        }
        let mut candidate = &*bare;
        for _ in 0..MAX_ENDINGS {
            if let Some(found) = self.exact.get(candidate) {
                return Some(found);
            }
            candidate = without_ending(candidate)?;
        }
        None
    }
}

fn same_spelling(name: &str) -> Box<[u8]> {
    name.bytes().map(spell).collect()
}

const fn spell(byte: u8) -> u8 {
    match byte {
        b'_' => b'-',
        other => other.to_ascii_lowercase(),
    }
}

/// Without the parts before the name: `openai/`, `models/`, an ARN, Bedrock's `us.anthropic.`.
fn without_vendor(name: &[u8]) -> &[u8] {
    const REGIONS: [&str; 11] = [
        "us-gov.", "global.", "apac.", "us.", "eu.", "ap.", "jp.", "au.", "ca.", "sa.", "me.",
    ];
    const VENDORS: [&str; 9] = [
        "anthropic.",
        "amazon.",
        "meta.",
        "mistral.",
        "cohere.",
        "openai.",
        "ai21.",
        "qwen.",
        "google.",
    ];
    let mut name = name.rsplit(|b| *b == b'/').next().unwrap_or(name);
    for list in [&REGIONS[..], &VENDORS[..]] {
        if let Some(rest) = list.iter().find_map(|p| name.strip_prefix(p.as_bytes())) {
            name = rest;
        }
    }
    name
}

/// The name without its last ending, when that is a date, a version or a word that does not make another model.
fn without_ending(name: &[u8]) -> Option<&[u8]> {
    let at = name.iter().rposition(|b| matches!(b, b'-' | b':' | b'@'))?;
    let (rest, ending) = name.split_at_checked(at)?;
    let (mark, word) = ending.split_first()?;
    let digits = |w: &[u8]| !w.is_empty() && w.iter().all(u8::is_ascii_digit);
    let fits = match mark {
        // Bedrock's revision, Vertex' date, OpenRouter's variants of the same model.
        b':' => {
            digits(word)
                || matches!(
                    word,
                    b"beta" | b"nitro" | b"floor" | b"online" | b"thinking" | b"extended"
                )
        }
        b'@' => digits(word) || word == b"default" || word == b"latest",
        _ => {
            matches!(word, b"latest" | b"preview" | b"exp" | b"experimental")
                || (digits(word) && word.len() >= 2)
                || word.strip_prefix(b"v").is_some_and(digits)
        }
    };
    (fits && !rest.is_empty()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> NameMap<&'static str> {
        let mut map = NameMap::default();
        for name in [
            "gpt-4o",
            "gpt-4o-mini",
            "gpt-4",
            "gpt-4-0125-preview",
            "gpt-4.1",
            "claude-sonnet-4",
            "claude-sonnet-4-5",
            "claude-3-5-haiku",
            "gemini-2.5-flash",
            "nova-lite",
            "mistral-large",
            "deepseek-r1",
            "llama-3.3-70b-versatile",
        ] {
            map.insert(name, name);
        }
        map
    }

    #[test]
    fn every_spelling_finds_its_model_and_no_other() {
        let map = map();
        for (name, want) in [
            ("gpt-4o", Some("gpt-4o")),
            ("GPT-4o", Some("gpt-4o")),
            ("gpt-4o-2024-08-06", Some("gpt-4o")),
            ("openai/gpt-4o", Some("gpt-4o")),
            ("gpt-4o-mini-2024-07-18", Some("gpt-4o-mini")),
            ("gpt-4o-audio-preview", None),
            ("gpt-4o-minimal", None),
            ("gpt-4.1-mini", None),
            ("gpt-4.1-2025-04-14", Some("gpt-4.1")),
            ("gpt-4-0613", Some("gpt-4")),
            ("gpt-4-0125-preview", Some("gpt-4-0125-preview")),
            ("gpt-4-32k", None),
            ("claude-sonnet-4-20250514", Some("claude-sonnet-4")),
            ("claude-sonnet-4-5-20250929", Some("claude-sonnet-4-5")),
            ("claude-sonnet-4-6", None),
            (
                "us.anthropic.claude-sonnet-4-20250514-v1:0",
                Some("claude-sonnet-4"),
            ),
            (
                "global.anthropic.claude-sonnet-4-5-20250929-v1:0",
                Some("claude-sonnet-4-5"),
            ),
            (
                "anthropic.claude-3-5-haiku-20241022-v1:0",
                Some("claude-3-5-haiku"),
            ),
            ("anthropic/claude-3.5-haiku", Some("claude-3-5-haiku")),
            ("anthropic/claude-3.5-haiku:beta", Some("claude-3-5-haiku")),
            ("claude-3-5-haiku@20241022", Some("claude-3-5-haiku")),
            ("models/gemini-2.5-flash-preview-05-20", Some("gemini-2.5-flash")),
            ("gemini-2.5-flash-001", Some("gemini-2.5-flash")),
            ("gemini-2.5-flash-lite", None),
            ("gemini-2.5-flash-image", None),
            ("us.amazon.nova-lite-v1:0", Some("nova-lite")),
            (
                "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-lite-v1:0",
                Some("nova-lite"),
            ),
            ("mistral-large-latest", Some("mistral-large")),
            ("deepseek-r1:14b-qwen-distill-q8_0", None),
            ("deepseek-r1:14b", None),
            ("/models/deepseek-r1.gguf", None),
            ("llama-3.3-70b-versatile", Some("llama-3.3-70b-versatile")),
            ("gpt-5.4-nano", None),
            ("gpt-4.10", None),
            ("mistral.mistral-large-2402-v1:0", Some("mistral-large")),
            ("gpt-4o_2024-08-06", Some("gpt-4o")),
            ("", None),
            ("-", None),
        ] {
            assert_eq!(map.get(name).copied(), want, "{name}");
        }
        assert_eq!(map.get(&"x".repeat(500)), None);
    }

    #[test]
    fn patterns_serve_what_no_entry_does() {
        let mut map = map();
        map.insert("my-*", "mine");
        map.insert("my-big-*", "big");
        map.insert("ft:gpt-4o*", "tuned");
        for (name, want) in [
            ("my-model", Some("mine")),
            ("my-big-model-2025-01-01", Some("big")),
            ("vendor/my-model", Some("mine")),
            ("ft:gpt-4o-mini:org", Some("tuned")),
            ("your-model", None),
        ] {
            assert_eq!(map.get(name).copied(), want, "{name}");
        }
        map.insert("my-*", "changed");
        assert_eq!(map.get("my-model").copied(), Some("changed"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(name in ".{0,160}|[-:@/.a0]{0,30}") {
            let _ = map().get(&name);
        }
    }
}
