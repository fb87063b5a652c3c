//! What tokens cost, by model, from a dated table.

use serde::Deserialize;

use super::model_name::NameMap;
use super::table::{Api, Family};
use crate::types::usage::{Cost, Normalised, Usage};

const BUILTIN: &str = include_str!("../../config/prices.json");

/// Prices by model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PriceTable {
    entries: NameMap<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    price: Price,
    /// Given by the configuration, and so true of models that run at home as well.
    configured: bool,
}

/// Prices of one model in US dollars per million tokens.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Input tokens.
    pub input: f64,
    /// Output tokens, reasoning included.
    #[serde(default)]
    pub output: f64,
    /// Input tokens read from a cache; `None`: as `input`.
    #[serde(default)]
    pub cached_input: Option<f64>,
    /// Input tokens written to a cache; `None`: as `input`.
    #[serde(default)]
    pub cache_write: Option<f64>,
}

#[derive(Deserialize)]
struct PriceFile {
    models: std::collections::BTreeMap<String, Price>,
}

impl PriceTable {
    /// The built-in table (`config/prices.json`).
    pub fn builtin() -> Self {
        // A test reads the file; a build in which it cannot be read has no prices.
        let models =
            serde_json::from_str::<PriceFile>(BUILTIN).map_or_else(|_| Default::default(), |f| f.models);
        let mut entries = NameMap::default();
        for (name, price) in models {
            entries.insert(
                &name,
                Entry {
                    price,
                    configured: false,
                },
            );
        }
        Self { entries }
    }

    /// The date that the built-in prices were collected on, `YYYY-MM-DD`.
    pub fn builtin_date() -> &'static str {
        const MARK: &str = "\"date\": \"";
        BUILTIN
            .split_once(MARK)
            .and_then(|(_, rest)| rest.split_once('"'))
            .map_or("unknown", |(date, _)| date)
    }

    /// This table with the price of `model` (an exact name, or a prefix ending in `*`) set or replaced.
    #[must_use]
    pub fn with(mut self, model: &str, price: Price) -> Self {
        self.entries.insert(
            model,
            Entry {
                price,
                configured: true,
            },
        );
        self
    }

    /// The price of a model by the name that requests or answers use (dated names and vendor prefixes included).
    pub fn price(&self, model: &str) -> Option<Price> {
        self.entries.get(model).map(|e| e.price)
    }

    /// What an exchange cost; `None` when neither model has a price or nothing is known to have been used.
    pub fn cost(
        &self,
        api: Api,
        served: Option<&str>,
        asked: Option<&str>,
        usage: &Usage,
        normalised: &Normalised,
    ) -> Option<Cost> {
        self.of_exchange(api, served, asked)?.cost(usage, normalised)
    }

    /// The price that an exchange is billed at; `None` when neither model has one.
    ///
    /// The model that was served counts, else the one that was asked for. Counting tokens costs nothing; models at home
    /// (Ollama) have no price unless one is configured.
    pub fn of_exchange(&self, api: Api, served: Option<&str>, asked: Option<&str>) -> Option<Price> {
        if matches!(
            api,
            Api::AnthropicCountTokens
                | Api::GeminiCountTokens
                | Api::OpenAiModerations
                | Api::Models
                | Api::Other
        ) {
            return None;
        }
        let at_home = api.family() == Family::Ollama || served.is_some_and(|m| m.ends_with(".gguf"));
        let entry = [served, asked]
            .into_iter()
            .flatten()
            .filter_map(|model| self.entries.get(model))
            .find(|entry| entry.configured || !at_home)?;
        Some(entry.price)
    }
}

impl Price {
    /// What so much costs; `None` when nothing is known to have been used.
    ///
    /// Cached and cache-writing input is priced apart; `normalised` has all input and all output, so it does not matter
    /// whether the API counts them within its input.
    pub fn cost(&self, usage: &Usage, normalised: &Normalised) -> Option<Cost> {
        normalised.total()?;
        let input = normalised.input_total.unwrap_or(0);
        let cached = usage.cached_input_tokens.unwrap_or(0).min(input);
        let written = usage.cache_write_tokens.unwrap_or(0).min(input - cached);
        let parts = [
            (input - cached - written, self.input),
            (cached, self.cached_input.unwrap_or(self.input)),
            (written, self.cache_write.unwrap_or(self.input)),
            (normalised.output_total.unwrap_or(0), self.output),
        ];
        let millionths: u128 = parts
            .into_iter()
            .map(|(tokens, dollars)| u128::from(tokens) * u128::from(picodollars(dollars)))
            .sum();
        let nanos = u64::try_from((millionths + 500) / 1000).unwrap_or(u64::MAX);
        Some(Cost::from_nanos(nanos))
    }
}

/// Dollars per million tokens as picodollars per token: whole numbers for every price that vendors publish.
fn picodollars(dollars: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the conversion saturates, and no price is negative"
    )]
    let pico = (dollars * 1e6).round() as u64;
    pico
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(input: u64, output: u64, cached: Option<u64>, written: Option<u64>) -> (Usage, Normalised) {
        (
            Usage {
                cached_input_tokens: cached,
                cache_write_tokens: written,
                ..Usage::default()
            },
            Normalised {
                input_total: Some(input),
                output_total: Some(output),
            },
        )
    }

    fn table() -> PriceTable {
        PriceTable::default().with(
            "m",
            Price {
                input: 3.0,
                output: 15.0,
                cached_input: Some(0.3),
                cache_write: Some(3.75),
            },
        )
    }

    #[test]
    fn the_builtin_table_is_whole() {
        let file: serde_json::Value = serde_json::from_str(BUILTIN).unwrap();
        assert_eq!(file["date"], PriceTable::builtin_date());
        let date: Vec<_> = PriceTable::builtin_date().split('-').map(str::len).collect();
        assert_eq!(date, [4, 2, 2]);
        let models = serde_json::from_str::<PriceFile>(BUILTIN).unwrap().models;
        assert!(models.len() > 100);
        let table = PriceTable::builtin();
        for (name, price) in &models {
            assert_eq!(table.price(name), Some(*price), "{name}");
            for part in [
                Some(price.input),
                Some(price.output),
                price.cached_input,
                price.cache_write,
            ] {
                assert!(part.is_none_or(|p| (0.0..1000.0).contains(&p)), "{name}");
            }
            assert!(price.cached_input.is_none_or(|c| c <= price.input), "{name}");
        }
    }

    #[test]
    fn names_of_all_kinds_have_prices() {
        let table = PriceTable::builtin();
        for (name, like) in [
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("openai/gpt-4o-mini", "gpt-4o-mini"),
            ("gpt-4.1-nano-2025-04-14", "gpt-4.1-nano"),
            ("gpt-35-turbo", "gpt-3.5-turbo"),
            (
                "us.anthropic.claude-sonnet-4-5-20250929-v1:0",
                "claude-sonnet-4-5",
            ),
            ("anthropic/claude-haiku-4.5", "claude-haiku-4-5"),
            ("claude-3-7-sonnet@20250219", "claude-3-7-sonnet"),
            ("models/gemini-2.5-flash", "gemini-2.5-flash"),
            ("amazon.nova-micro-v1:0", "nova-micro"),
            ("mistral-large-latest", "mistral-large"),
            ("text-embedding-3-small", "text-embedding-3-small"),
        ] {
            assert!(table.price(name).is_some(), "{name}");
            assert_eq!(table.price(name), table.price(like), "{name}");
        }
        assert_ne!(table.price("gpt-4o"), table.price("gpt-4o-mini"));
        for unknown in [
            "gpt-4o-mini-tts-9",
            "my-model",
            "gemini-2.5-flash-image-x",
            "llama3.2:1b",
        ] {
            assert_eq!(table.price(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn each_kind_of_token_has_its_price() {
        let table = table();
        let cost = |api, (usage, normalised): (Usage, Normalised)| {
            table
                .cost(api, Some("m"), None, &usage, &normalised)
                .map(Cost::nanos)
        };
        for (input, output, cached, written, want) in [
            (1_000_000, 0, None, None, 3_000_000_000),
            (0, 1_000_000, None, None, 15_000_000_000),
            (
                1000,
                10,
                Some(400),
                Some(100),
                500 * 3000 + 400 * 300 + 100 * 3750 + 10 * 15_000,
            ),
            // More cached than there was: never below zero.
            (100, 0, Some(400), Some(100), 100 * 300),
            (0, 0, None, None, 0),
            (u64::MAX, u64::MAX, None, None, u64::MAX),
        ] {
            assert_eq!(
                cost(Api::AnthropicMessages, used(input, output, cached, written)),
                Some(want)
            );
        }
        assert_eq!(cost(Api::AnthropicCountTokens, used(5, 0, None, None)), None);
        assert_eq!(cost(Api::OpenAiChat, Default::default()), None);
        // Fractions of a nanodollar are rounded once, at the end.
        let table = PriceTable::default().with(
            "m",
            Price {
                input: 0.0375,
                output: 0.0,
                cached_input: None,
                cache_write: None,
            },
        );
        let (usage, normalised) = used(3, 0, None, None);
        assert_eq!(
            table.cost(Api::OpenAiChat, None, Some("m"), &usage, &normalised),
            Some(Cost::from_nanos(113))
        );
    }

    #[test]
    fn the_served_model_counts_and_models_at_home_are_unpriced() {
        let table = PriceTable::builtin().with(
            "mine",
            Price {
                input: 1.0,
                output: 1.0,
                cached_input: None,
                cache_write: None,
            },
        );
        let (usage, normalised) = used(1_000_000, 0, None, None);
        let cost = |api, served, asked| {
            table
                .cost(api, served, asked, &usage, &normalised)
                .map(|c| c.nanos() / 1_000_000)
        };
        for (api, served, asked, want) in [
            (
                Api::OpenAiChat,
                Some("gpt-4o-2024-08-06"),
                Some("gpt-4o-mini"),
                Some(2500),
            ),
            (Api::OpenAiChat, Some("unheard-of"), Some("gpt-4o"), Some(2500)),
            (Api::OpenAiChat, None, None, None),
            (Api::OpenAiChat, Some("/models/x.gguf"), Some("gpt-4o"), None),
            (Api::OllamaChat, Some("gpt-4o"), Some("gpt-4o"), None),
            (Api::OllamaChat, Some("mine"), None, Some(1000)),
        ] {
            assert_eq!(cost(api, served, asked), want, "{served:?} {asked:?}");
        }
    }
}
