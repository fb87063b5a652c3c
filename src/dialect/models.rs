//! What models can do and which cheaper one stands in for each.

use std::borrow::Cow;

use serde::Deserialize;

use super::model_name::NameMap;
use super::price::{Price, PriceTable};

const BUILTIN: &str = include_str!("../../config/models.json");

/// Longest chain of stand-ins that is followed.
const MAX_STEPS: usize = 6;

/// Capabilities and cheaper stand-ins of models, looked up by the name that requests use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelTable {
    models: NameMap<Model>,
    /// Stand-ins that the configuration names.
    configured: NameMap<Box<str>>,
}

/// What a request needs of a model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Tool calls.
    pub tools: bool,
    /// Structured output.
    pub json_schema: bool,
    /// Images, audio or documents.
    pub vision: bool,
    /// Room for this many input tokens.
    pub context_tokens: u64,
    /// Room for this many output tokens.
    pub max_output: Option<u64>,
}

/// Why no cheaper model stands in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// The table does not know the model.
    #[error("no cheaper model is known for {0}")]
    Unknown(String),
    /// The stand-in is not cheaper.
    #[error("{to} is not cheaper than {from}")]
    NotCheaper {
        /// What was asked for.
        from: String,
        /// What would stand in.
        to: String,
    },
    /// The stand-in lacks something.
    #[error("{to} cannot do what the request needs: {lacks}")]
    Lacks {
        /// What would stand in.
        to: String,
        /// What it lacks.
        lacks: &'static str,
    },
}

/// One model of the table.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    /// Filled from the key.
    #[serde(skip)]
    name: Box<str>,
    vendor: Box<str>,
    /// None: it is the cheapest of its kind.
    stand_in: Option<Box<str>>,
    context: u64,
    max_output: u64,
    #[serde(default)]
    tools: bool,
    #[serde(default)]
    json_schema: bool,
    #[serde(default)]
    vision: bool,
    id: Option<Box<str>>,
    bedrock: Option<Box<str>>,
    vertex: Option<Box<str>>,
    slash: Option<Box<str>>,
}

#[derive(Deserialize)]
struct ModelFile {
    models: std::collections::BTreeMap<String, Model>,
}

impl ModelTable {
    /// The built-in table (`config/models.json`), dated.
    pub fn builtin() -> Self {
        // A test reads the file; a build in which it cannot be read knows no models.
        let file =
            serde_json::from_str::<ModelFile>(BUILTIN).map_or_else(|_| Default::default(), |f| f.models);
        let mut models = NameMap::default();
        for (name, mut model) in file {
            model.name = name.as_str().into();
            models.insert(&name, model);
        }
        Self {
            models,
            configured: NameMap::default(),
        }
    }

    /// This table with `to` as the stand-in of `from` (an exact name, or a prefix ending in `*`).
    #[must_use]
    pub fn with_downgrade(mut self, from: &str, to: &str) -> Self {
        self.configured.insert(from, to.into());
        self
    }

    /// The cheaper model that stands in for `from`; equal to `from` when that is the cheapest of its kind already.
    ///
    /// A stand-in of the configuration comes first and is judged as by [`ModelTable::fits`]. The built-in ones are
    /// followed until one can do what the request needs. The name keeps the form of `from`: a region on Bedrock, a
    /// date on Vertex, a `vendor/` before it.
    ///
    /// # Errors
    /// Why there is none.
    pub fn stand_in<'a>(
        &'a self,
        prices: &PriceTable,
        from: &'a str,
        need: &Need,
    ) -> Result<Cow<'a, str>, Skip> {
        if let Some(to) = self.configured.get(from) {
            return self.judge(prices, from, to, need, false);
        }
        let unknown = || Skip::Unknown(from.to_owned());
        let own = self.models.get(from).ok_or_else(unknown)?;
        let mut model = own;
        let mut why = None;
        for _ in 0..MAX_STEPS {
            let Some(next) = model.stand_in.as_deref().and_then(|name| self.models.get(name)) else {
                break;
            };
            model = next;
            let Some(to) = in_form_of(from, model) else {
                continue;
            };
            let lacks = lacks(model, need).map(|lacks| Skip::Lacks {
                to: to.clone(),
                lacks,
            });
            // Where a price is not known, the order of the table vouches for it.
            let dearer = is_dearer(prices.price(&to), prices.price(from)).then(|| Skip::NotCheaper {
                from: from.to_owned(),
                to: to.clone(),
            });
            match lacks.or(dearer) {
                None => return Ok(Cow::Owned(to)),
                Some(skip) => {
                    why.get_or_insert(skip);
                }
            }
        }
        match why {
            Some(skip) => Err(skip),
            None if own.stand_in.is_none() => Ok(Cow::Borrowed(from)),
            None => Err(unknown()),
        }
    }

    /// Whether `to` may stand in for `from`: not dearer, not too small, not another vendor's. Returns `to`, or `from`
    /// when both name the same model.
    ///
    /// `to` was named by a human, so what the tables do not know is not held against it: prices are compared when
    /// both are known, capabilities when `to` is known, vendors when both can be told (and no `vendor/` says that a
    /// gateway sorts them out).
    ///
    /// # Errors
    /// Why not.
    pub fn fits<'a>(
        &'a self,
        prices: &PriceTable,
        from: &'a str,
        to: &'a str,
        need: &Need,
    ) -> Result<Cow<'a, str>, Skip> {
        self.judge(prices, from, to, need, true)
    }

    fn judge<'a>(
        &'a self,
        prices: &PriceTable,
        from: &'a str,
        to: &'a str,
        need: &Need,
        same_vendor: bool,
    ) -> Result<Cow<'a, str>, Skip> {
        let (own, other) = (self.models.get(from), self.models.get(to));
        if from == to || own.zip(other).is_some_and(|(a, b)| a.name == b.name) {
            return Ok(Cow::Borrowed(from));
        }
        let refuse = |lacks| {
            Err(Skip::Lacks {
                to: to.to_owned(),
                lacks,
            })
        };
        if same_vendor && !from.contains('/') && !to.contains('/') {
            let vendor =
                |model: Option<&'a Model>, name| model.map(|m| &*m.vendor).or_else(|| vendor_of(name));
            if vendor(own, from)
                .zip(vendor(other, to))
                .is_some_and(|(a, b)| a != b)
            {
                return refuse("it is another vendor's model");
            }
        }
        if let Some(lacks) = other.and_then(|model| lacks(model, need)) {
            return refuse(lacks);
        }
        if is_dearer(prices.price(to), prices.price(from)) {
            return Err(Skip::NotCheaper {
                from: from.to_owned(),
                to: to.to_owned(),
            });
        }
        Ok(Cow::Borrowed(to))
    }
}

/// What a model lacks of what a request needs.
fn lacks(model: &Model, need: &Need) -> Option<&'static str> {
    if need.tools && !model.tools {
        Some("tool calls")
    } else if need.json_schema && !model.json_schema {
        Some("structured output")
    } else if need.vision && !model.vision {
        Some("images, audio or documents")
    } else if need.context_tokens > model.context {
        Some("room for the input")
    } else if need.max_output.is_some_and(|n| n > model.max_output) {
        Some("room for the output")
    } else {
        None
    }
}

/// Whether both prices are known and the first is higher for input or for output.
fn is_dearer(price: Option<Price>, than: Option<Price>) -> bool {
    price
        .zip(than)
        .is_some_and(|(a, b)| a.input > b.input || a.output > b.output)
}

/// The name of `model` written as `from` is; `None` where it is not known by such a name.
fn in_form_of(from: &str, model: &Model) -> Option<String> {
    let plain = model.id.as_ref().unwrap_or(&model.name);
    if let Some((before, last)) = from.rsplit_once('/') {
        // An ARN names a place and an account as well.
        if from.starts_with("arn:") {
            return None;
        }
        if last.contains(['@', ':']) {
            return None;
        }
        let name = model
            .slash
            .as_ref()
            .filter(|_| before != "models")
            .unwrap_or(plain);
        return Some(format!("{before}/{name}"));
    }
    if from.contains('@') {
        return model.vertex.as_deref().map(str::to_owned);
    }
    match on_bedrock(from) {
        Some(region) => model.bedrock.as_deref().map(|id| format!("{region}{id}")),
        None => Some(plain.to_string()),
    }
}

/// The region of a Bedrock name (`us.` of `us.anthropic.…`, often empty); `None` for other names.
fn on_bedrock(name: &str) -> Option<&str> {
    const VENDORS: [&str; 8] = [
        "anthropic",
        "amazon",
        "meta",
        "mistral",
        "cohere",
        "openai",
        "deepseek",
        "ai21",
    ];
    let (first, rest) = name.split_once('.')?;
    if VENDORS.contains(&first) {
        return Some("");
    }
    let (second, _) = rest.split_once('.')?;
    VENDORS
        .contains(&second)
        .then(|| name.get(..=first.len()))
        .flatten()
}

/// Whose model it is, judged by how its name begins.
fn vendor_of(name: &str) -> Option<&'static str> {
    [
        ("gpt-", "openai"),
        ("o1", "openai"),
        ("o3", "openai"),
        ("o4", "openai"),
        ("chatgpt", "openai"),
        ("claude", "anthropic"),
        ("gemini", "google"),
        ("models/gemini", "google"),
        ("mistral-", "mistral"),
        ("ministral", "mistral"),
        ("magistral", "mistral"),
        ("codestral", "mistral"),
        ("deepseek", "deepseek"),
        ("grok", "xai"),
        ("command", "cohere"),
    ]
    .into_iter()
    .find_map(|(prefix, vendor)| name.starts_with(prefix).then_some(vendor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tables() -> (ModelTable, PriceTable) {
        (ModelTable::builtin(), PriceTable::builtin())
    }

    #[test]
    fn the_builtin_table_is_whole() {
        let models = serde_json::from_str::<ModelFile>(BUILTIN).unwrap().models;
        assert!(models.len() > 80);
        let (table, prices) = tables();
        for (name, model) in &models {
            assert_eq!(&*table.models.get(name).unwrap().name, name, "{name}");
            assert!(prices.price(name).is_some(), "{name} has no price");
            if let Some(to) = &model.stand_in {
                let target = models.get(&**to).unwrap_or_else(|| panic!("{to} of {name}"));
                assert!(!is_dearer(prices.price(to), prices.price(name)), "{name} to {to}");
                assert_eq!(target.vendor, model.vendor, "{name} to {to}");
                let id = target.id.as_deref().unwrap_or(to);
                assert_eq!(&*table.models.get(id).unwrap().name, &**to, "{id}");
            }
            for id in [&model.bedrock, &model.vertex, &model.slash]
                .into_iter()
                .flatten()
            {
                assert_eq!(&*table.models.get(id).unwrap().name, name, "{id}");
            }
        }
    }

    #[test]
    fn every_model_has_its_stand_in() {
        let (table, prices) = tables();
        for (from, want) in [
            ("gpt-4o", "gpt-4o-mini"),
            ("gpt-4o-2024-08-06", "gpt-4o-mini"),
            ("gpt-4o-mini", "gpt-4o-mini"),
            ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18"),
            ("gpt-4", "gpt-4o-mini"),
            ("gpt-4.1", "gpt-4.1-mini"),
            ("gpt-4.1-mini", "gpt-4.1-nano"),
            ("gpt-5", "gpt-5-mini"),
            ("gpt-5.4-2026-03-05", "gpt-5.4-mini"),
            ("o3", "o4-mini"),
            ("claude-opus-4-8", "claude-sonnet-5"),
            ("claude-sonnet-4-5-20250929", "claude-haiku-4-5"),
            ("claude-haiku-4-5", "claude-haiku-4-5"),
            ("gemini-2.5-pro", "gemini-2.5-flash"),
            ("models/gemini-2.5-flash", "models/gemini-2.5-flash-lite"),
            ("mistral-large-latest", "mistral-small-latest"),
            ("command-r-plus-08-2024", "command-r-08-2024"),
            ("deepseek-reasoner", "deepseek-chat"),
            ("openai/gpt-4o", "openai/gpt-4o-mini"),
            ("anthropic/claude-sonnet-4.5", "anthropic/claude-haiku-4.5"),
            (
                "us.anthropic.claude-sonnet-4-20250514-v1:0",
                "us.anthropic.claude-haiku-4-5-20251001-v1:0",
            ),
            (
                "anthropic.claude-3-7-sonnet-20250219-v1:0",
                "anthropic.claude-haiku-4-5-20251001-v1:0",
            ),
            ("amazon.nova-pro-v1:0", "amazon.nova-lite-v1:0"),
            ("claude-3-7-sonnet@20250219", "claude-haiku-4-5@20251001"),
            // The next one has no known name there, the one after it has.
            ("claude-opus-4-8@20260101", "claude-haiku-4-5@20251001"),
        ] {
            let got = table.stand_in(&prices, from, &Need::default());
            assert_eq!(got.as_deref(), Ok(want), "{from}");
        }
        for unknown in [
            "palmyra-x4",
            "",
            "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0",
            "mistral.mistral-large-2402-v1:0",
        ] {
            let got = table.stand_in(&prices, unknown, &Need::default());
            assert!(matches!(got, Err(Skip::Unknown(_))), "{unknown}: {got:?}");
        }
    }

    #[test]
    fn a_stand_in_can_do_what_the_request_needs() {
        let (table, prices) = tables();
        let need = |f: fn(&mut Need)| {
            let mut need = Need::default();
            f(&mut need);
            need
        };
        for (from, need, want) in [
            ("gpt-4o", need(|n| n.vision = true), Ok("gpt-4o-mini")),
            (
                "gpt-4o",
                need(|n| n.context_tokens = 200_000),
                Err("room for the input"),
            ),
            (
                "gpt-4o",
                need(|n| n.max_output = Some(20_000)),
                Err("room for the output"),
            ),
            (
                "amazon.nova-lite-v1:0",
                need(|n| n.vision = true),
                Err("images, audio or documents"),
            ),
            (
                "amazon.nova-pro-v1:0",
                need(|n| n.vision = true),
                Ok("amazon.nova-lite-v1:0"),
            ),
            (
                "llama-3.3-70b-versatile",
                need(|n| n.json_schema = true),
                Err("structured output"),
            ),
            ("llama3-70b-instruct", need(|n| n.tools = true), Err("tool calls")),
            (
                "deepseek-v4-pro",
                need(|n| n.tools = true),
                Ok("deepseek-v4-flash"),
            ),
        ] {
            match (table.stand_in(&prices, from, &need), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want),
                (Err(Skip::Lacks { lacks, .. }), Err(want)) => assert_eq!(lacks, want, "{from}"),
                other => panic!("{from}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_a_human_names_is_held_to_what_is_known() {
        let (table, prices) = tables();
        let none = Need::default();
        let vision = Need { vision: true, ..none };
        // The mission's own target is in no table.
        for (from, to, need) in [
            ("gpt-4", "gpt-4-mini", none),
            ("gpt-4", "gpt-4-mini", vision),
            ("gpt-4o", "gpt-4o-mini", vision),
            ("my-finetune", "gpt-4o-mini", none),
            ("deployment-1", "deployment-2", none),
            ("anthropic/claude-opus-5", "openai/gpt-4o-mini", none),
        ] {
            assert_eq!(
                table.fits(&prices, from, to, &need).as_deref(),
                Ok(to),
                "{from} to {to}"
            );
        }
        for same in [("gpt-4o-mini-2024-07-18", "gpt-4o-mini"), ("x", "x")] {
            assert_eq!(table.fits(&prices, same.0, same.1, &none).as_deref(), Ok(same.0));
        }
        let dear = table.fits(&prices, "gpt-4o-mini", "gpt-4o", &none);
        assert!(matches!(dear, Err(Skip::NotCheaper { .. })), "{dear:?}");
        let blind = table.fits(&prices, "gpt-4-turbo", "gpt-3.5-turbo", &vision);
        assert!(matches!(blind, Err(Skip::Lacks { .. })), "{blind:?}");
        let foreign = table.fits(&prices, "claude-sonnet-4-5", "gpt-4-mini", &none);
        assert!(matches!(foreign, Err(Skip::Lacks { .. })), "{foreign:?}");
    }

    #[test]
    fn the_configuration_comes_first() {
        let (table, prices) = tables();
        let table = table
            .with_downgrade("gpt-4o", "gpt-5-nano")
            .with_downgrade("prod-*", "gpt-4o-mini")
            .with_downgrade("claude-opus-5", "gpt-4o-mini")
            .with_downgrade("gpt-4o-mini", "gpt-4o");
        let none = Need::default();
        for (from, to) in [
            ("gpt-4o-2024-08-06", "gpt-5-nano"),
            ("prod-chat", "gpt-4o-mini"),
            ("claude-opus-5", "gpt-4o-mini"),
        ] {
            assert_eq!(table.stand_in(&prices, from, &none).as_deref(), Ok(to), "{from}");
        }
        let dear = table.stand_in(&prices, "gpt-4o-mini", &none);
        assert!(matches!(dear, Err(Skip::NotCheaper { .. })), "{dear:?}");
    }
}
