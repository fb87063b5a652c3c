//! Settings of a request (output limit, answers at once, sampling) by one name in all APIs: read, set, lowered, removed.

use std::collections::BTreeMap;

use serde_json::Value;

use super::edit::{self, EditError, Path};
use super::json::{self, Object};
use super::table::{Api, Route};

/// Least `max_output_tokens` that OpenAI's Responses take; less is an error there.
const LEAST_OF_RESPONSES: u64 = 16;
/// Least thinking budget that Anthropic takes.
const LEAST_THINKING: u64 = 1024;
/// Longest text that is kept of a sampling parameter, in bytes.
const MAX_TEXT: usize = 64;

/// Names that no order may set: they are what is asked, not how.
const NO_PARAMETERS: [&str; 16] = [
    "contents",
    "functions",
    "input",
    "inputs",
    "instructions",
    "message",
    "messages",
    "model",
    "prompt",
    "requests",
    "stream",
    "stream_options",
    "system",
    "systemInstruction",
    "system_instruction",
    "tools",
];

/// The sampling parameters that make up a version of an agent (together with its model), by their common names.
pub const SAMPLING: [&str; 6] = [
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
    "reasoning_effort",
];

/// Why a setting was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unchanged {
    /// The body could not be changed for certain.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The API has nothing of the kind.
    #[error("{0} has no {1}")]
    NoField(&'static str, String),
    /// It names what is asked and not how it is answered.
    #[error("{0} is no parameter")]
    NoParameter(String),
    /// Only numbers, texts, true, false and null are set.
    #[error("the value of {0} is an object or a list")]
    NoScalar(String),
    /// What the client sent is no number.
    #[error("{0} is no number")]
    NoNumber(&'static str),
    /// It is absent, and what the API does then cannot be bettered by saying it.
    #[error("{0}")]
    Absent(&'static str),
    /// Anthropic's thinking needs more output than that.
    #[error("thinking needs more than {0} output tokens")]
    Thinking(u64),
}

/// A body in which a number was lowered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lowered {
    /// The new body.
    pub body: Vec<u8>,
    /// What was asked; `None` when nothing was.
    pub from: Option<u64>,
    /// What is asked now.
    pub to: u64,
}

/// Where the bound of the output stands in an API.
struct OutputField {
    /// Every field that bounds it; a request may have several.
    fields: &'static [&'static Path<'static>],
    /// The field to add when there is none, or why none is added.
    add: Result<&'static Path<'static>, &'static str>,
    least: u64,
}

const MAX_TOKENS: &Path<'static> = &[&["max_tokens"]];
const MAX_COMPLETION_TOKENS: &Path<'static> = &[&["max_completion_tokens"]];
const MAX_OUTPUT_TOKENS: &Path<'static> = &[&["max_output_tokens"]];
const GEMINI_OUTPUT: &Path<'static> = &[
    &["generationConfig", "generation_config"],
    &["maxOutputTokens", "max_output_tokens"],
];
const INTERACTIONS_OUTPUT: &Path<'static> = &[&["generation_config"], &["max_output_tokens"]];
const OLLAMA_OUTPUT: &Path<'static> = &[&["options"], &["num_predict"]];
const CONVERSE_OUTPUT: &Path<'static> = &[&["inferenceConfig"], &["maxTokens"]];
const THINKING_BUDGET: &Path<'static> = &[&["thinking"], &["budget_tokens"]];

/// `None` where nothing is written.
fn output_field(route: &Route, provider: &str, model: Option<&str>) -> Option<OutputField> {
    let one = |path| OutputField {
        fields: match path {
            MAX_OUTPUT_TOKENS => &[MAX_OUTPUT_TOKENS],
            GEMINI_OUTPUT => &[GEMINI_OUTPUT],
            INTERACTIONS_OUTPUT => &[INTERACTIONS_OUTPUT],
            OLLAMA_OUTPUT => &[OLLAMA_OUTPUT],
            CONVERSE_OUTPUT => &[CONVERSE_OUTPUT],
            _ => &[MAX_TOKENS],
        },
        add: Ok(path),
        least: 1,
    };
    Some(match route.api {
        Api::OpenAiChat => OutputField {
            fields: &[MAX_TOKENS, MAX_COMPLETION_TOKENS],
            add: Ok(if takes_completion_tokens(provider, model) {
                MAX_COMPLETION_TOKENS
            } else {
                MAX_TOKENS
            }),
            least: 1,
        },
        Api::OpenAiCompletions => OutputField {
            // 16 is OpenAI's own default: a larger bound would raise it.
            add: Err("max_tokens is absent and the API's own default may be lower"),
            ..one(MAX_TOKENS)
        },
        Api::AnthropicMessages => OutputField {
            add: Err("max_tokens, which the API requires, is absent"),
            ..one(MAX_TOKENS)
        },
        Api::OpenAiResponses => OutputField {
            least: LEAST_OF_RESPONSES,
            ..one(MAX_OUTPUT_TOKENS)
        },
        Api::GeminiGenerateContent => one(GEMINI_OUTPUT),
        Api::GeminiInteractions => one(INTERACTIONS_OUTPUT),
        Api::OllamaChat | Api::OllamaGenerate => one(OLLAMA_OUTPUT),
        Api::CohereChat => one(MAX_TOKENS),
        Api::BedrockConverse => one(CONVERSE_OUTPUT),
        Api::BedrockInvoke => OutputField {
            fields: &[
                MAX_TOKENS,
                &[&["max_tokens_to_sample"]],
                &[&["max_gen_len"]],
                &[&["textGenerationConfig"], &["maxTokenCount"]],
                &[&["inferenceConfig"], &["maxTokens"]],
                &[&["inferenceConfig"], &["max_new_tokens"]],
            ],
            add: Err("the request bounds its output in no known way"),
            least: 1,
        },
        _ => return None,
    })
}

/// OpenAI's own reasoning models refuse `max_tokens`; many who speak its dialect know no other.
fn takes_completion_tokens(provider: &str, model: Option<&str>) -> bool {
    if matches!(provider, "openai" | "azure") {
        return true;
    }
    let Some(model) = model else { return false };
    let name = model.rsplit('/').next().unwrap_or(model);
    let reasons = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    name.starts_with("gpt-5") || name.strip_prefix('o').is_some_and(reasons)
}

/// Lets the model write at most `max` tokens. Only ever lowers what the client asked; where it asked for nothing, the
/// bound is added if the API allows it. `Ok(None)`: it asks for no more than that.
///
/// # Errors
/// When it cannot be done for certain; the request is then as it was.
pub fn cap_output(
    route: &Route,
    provider: &str,
    model: Option<&str>,
    body: &[u8],
    max: u64,
) -> Result<Option<Lowered>, Unchanged> {
    let Some(field) = output_field(route, provider, model) else {
        return Err(Unchanged::NoField(
            route.api.name(),
            "bound of its output".to_owned(),
        ));
    };
    let max = max.max(field.least);
    let number = max.to_string();
    let (mut new, mut from, mut bounded) = (None::<Vec<u8>>, None, false);
    for path in field.fields {
        let current = new.as_deref().unwrap_or(body);
        let Some(value) = edit::get(current, path)?.filter(|v| *v != b"null") else {
            continue;
        };
        bounded = true;
        let asked = json::as_u64(value);
        let negative = value.starts_with(b"-");
        match asked {
            Some(asked) if asked <= max => continue,
            // Ollama's -1 and -2 are no bound at all.
            None if !negative && !larger(value, max) => return Err(Unchanged::NoNumber(last_key(path))),
            _ => {}
        }
        from = from.max(asked);
        new = Some(edit::put(current, path, number.as_bytes())?);
    }
    if !bounded {
        let path = field.add.map_err(Unchanged::Absent)?;
        new = Some(edit::put(body, path, number.as_bytes())?);
    }
    let Some(new) = new else { return Ok(None) };
    Ok(Some(Lowered {
        body: within_thinking(route, new, max)?,
        from,
        to: max,
    }))
}

/// Anthropic refuses a thinking budget that is not below the bound of the output: half of the bound is left for it.
fn within_thinking(route: &Route, body: Vec<u8>, max: u64) -> Result<Vec<u8>, Unchanged> {
    if route.api != Api::AnthropicMessages {
        return Ok(body);
    }
    // Where `thinking` is of another shape it has no budget.
    let budget = match edit::get(&body, THINKING_BUDGET) {
        Ok(value) => value.and_then(json::as_u64),
        Err(EditError::NoObject) => None,
        Err(e) => return Err(e.into()),
    };
    if budget.is_none_or(|budget| budget < max) {
        return Ok(body);
    }
    if max / 2 < LEAST_THINKING {
        return Err(Unchanged::Thinking(max));
    }
    Ok(edit::put(
        &body,
        THINKING_BUDGET,
        (max / 2).to_string().as_bytes(),
    )?)
}

/// Asks for at most `max` answers at once. `Ok(None)`: it asks for no more than that, as every request of an API does
/// that gives one answer only.
///
/// # Errors
/// When it cannot be done for certain; the request is then as it was.
pub fn cap_choices(route: &Route, body: &[u8], max: u64) -> Result<Option<Lowered>, Unchanged> {
    let Some(path) = field(route.api, "n") else {
        return Ok(None);
    };
    let max = max.max(1);
    let Some(value) = edit::get(body, path)?.filter(|v| *v != b"null") else {
        return Ok(None);
    };
    let from = json::as_u64(value);
    match from {
        Some(n) if n <= max => return Ok(None),
        None if !larger(value, max) => return Err(Unchanged::NoNumber(last_key(path))),
        _ => {}
    }
    Ok(Some(Lowered {
        body: edit::put(body, path, max.to_string().as_bytes())?,
        from,
        to: max,
    }))
}

/// Sets a parameter. `Ok(None)`: it has that value already.
///
/// `name` is one of the common names ([`SAMPLING`], `seed`, `n`, and `max_tokens` in any of its spellings), put where
/// the API has it; or the API's own name, in which dots lead into objects (`thinking.budget_tokens`).
///
/// # Errors
/// When the API has no such thing or it cannot be done for certain; the request is then as it was.
pub fn set(
    route: &Route,
    provider: &str,
    model: Option<&str>,
    body: &[u8],
    name: &str,
    value: &Value,
) -> Result<Option<Vec<u8>>, Unchanged> {
    if value.is_object() || value.is_array() {
        return Err(Unchanged::NoScalar(name.to_owned()));
    }
    // Writing a scalar cannot fail.
    let written = serde_json::to_vec(value).unwrap_or_default();
    let put = |path: &Path<'_>| -> Result<Option<Vec<u8>>, Unchanged> {
        if edit::get(body, path)?.is_some_and(|now| same(now, value)) {
            return Ok(None);
        }
        Ok(Some(edit::put(body, path, &written)?))
    };
    let none = || Unchanged::NoField(route.api.name(), name.to_owned());
    if is_output(name) {
        let field = output_field(route, provider, model).ok_or_else(none)?;
        for path in field.fields {
            if edit::get(body, path)?.is_some() {
                return put(path);
            }
        }
        return put(field
            .add
            .unwrap_or(field.fields.first().copied().unwrap_or(MAX_TOKENS)));
    }
    if is_common(name) {
        return put(field(route.api, name).ok_or_else(none)?);
    }
    let keys: Vec<&str> = name.split('.').collect();
    if keys.iter().any(|k| k.is_empty()) || keys.first().is_none_or(|k| NO_PARAMETERS.contains(k)) {
        return Err(Unchanged::NoParameter(name.to_owned()));
    }
    let spellings: Vec<&[&str]> = keys.iter().map(std::slice::from_ref).collect();
    put(&spellings)
}

/// Takes a common parameter out of the request; `Ok(None)` when it has none.
///
/// # Errors
/// When it cannot be done for certain.
pub fn remove(route: &Route, body: &[u8], name: &str) -> Result<Option<Vec<u8>>, Unchanged> {
    match field(route.api, name) {
        Some(path) => Ok(edit::take_out(body, path)?),
        None => Ok(None),
    }
}

/// The sampling parameters of a request by their common names, those that are numbers, short texts or truths; `None`
/// when the body cannot be read.
pub fn sampling(route: &Route, body: &[u8]) -> Option<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    let mut object = Object::open(body)?;
    while let Some(key) = object.key().ok()? {
        let key = json::key_name(key);
        let value = json::slice(body, object.value(&mut ()).ok()?);
        for name in SAMPLING {
            let Some((first, inner)) = field(route.api, name).and_then(|path| path.split_first()) else {
                continue;
            };
            if !first.iter().any(|f| f.as_bytes() == &*key) {
                continue;
            }
            let value = match inner {
                [] => Some(value),
                inner => match edit::get(value, inner) {
                    Ok(value) => value,
                    // What should hold it is of another shape, or absent.
                    Err(EditError::Unreadable | EditError::NoObject) => None,
                    Err(EditError::Twice) => return None,
                },
            };
            if let Some(value) = value.filter(|v| *v != b"null")
                && found.insert(name.to_owned(), scalar(value)?).is_some()
            {
                return None;
            }
        }
    }
    object.is_whole().then_some(found)
}

fn scalar(value: &[u8]) -> Option<Value> {
    let short = value.len() <= MAX_TEXT;
    let value = short.then(|| serde_json::from_slice(value).ok()).flatten()?;
    (!matches!(value, Value::Object(_) | Value::Array(_))).then_some(value)
}

fn is_output(name: &str) -> bool {
    matches!(
        name,
        "max_tokens"
            | "max_completion_tokens"
            | "max_output_tokens"
            | "maxOutputTokens"
            | "maxTokens"
            | "num_predict"
    )
}

fn is_common(name: &str) -> bool {
    SAMPLING.contains(&name) || matches!(name, "seed" | "n")
}

/// Where a parameter of that common name stands in an API; `None` where it has none.
fn field(api: Api, name: &str) -> Option<&'static Path<'static>> {
    use Api::{
        AnthropicMessages as Anthropic, BedrockConverse as Converse, CohereChat as Cohere,
        GeminiGenerateContent as Gemini, GeminiInteractions as Interactions, OllamaChat, OllamaGenerate,
        OpenAiChat as Chat, OpenAiCompletions as Completions, OpenAiImages as Images,
        OpenAiResponses as Responses,
    };
    const GENERATION: &[&str] = &["generationConfig", "generation_config"];
    let path: &'static Path<'static> = match (name, api) {
        ("temperature", Chat | Completions | Responses | Anthropic | Cohere) => &[&["temperature"]],
        ("temperature", Gemini) => &[GENERATION, &["temperature"]],
        ("temperature", Interactions) => &[&["generation_config"], &["temperature"]],
        ("temperature", OllamaChat | OllamaGenerate) => &[&["options"], &["temperature"]],
        ("temperature", Converse) => &[&["inferenceConfig"], &["temperature"]],

        ("top_p", Chat | Completions | Responses | Anthropic) => &[&["top_p"]],
        ("top_p", Cohere) => &[&["p"]],
        ("top_p", Gemini) => &[GENERATION, &["topP", "top_p"]],
        ("top_p", Interactions) => &[&["generation_config"], &["top_p"]],
        ("top_p", OllamaChat | OllamaGenerate) => &[&["options"], &["top_p"]],
        ("top_p", Converse) => &[&["inferenceConfig"], &["topP"]],

        ("top_k", Anthropic) => &[&["top_k"]],
        ("top_k", Cohere) => &[&["k"]],
        ("top_k", Gemini) => &[GENERATION, &["topK", "top_k"]],
        ("top_k", OllamaChat | OllamaGenerate) => &[&["options"], &["top_k"]],

        ("frequency_penalty", Chat | Completions | Cohere) => &[&["frequency_penalty"]],
        ("frequency_penalty", Gemini) => &[GENERATION, &["frequencyPenalty", "frequency_penalty"]],
        ("frequency_penalty", OllamaChat | OllamaGenerate) => &[&["options"], &["frequency_penalty"]],

        ("presence_penalty", Chat | Completions | Cohere) => &[&["presence_penalty"]],
        ("presence_penalty", Gemini) => &[GENERATION, &["presencePenalty", "presence_penalty"]],
        ("presence_penalty", OllamaChat | OllamaGenerate) => &[&["options"], &["presence_penalty"]],

        ("reasoning_effort", Chat) => &[&["reasoning_effort"]],
        ("reasoning_effort", Responses) => &[&["reasoning"], &["effort"]],

        ("seed", Chat | Completions | Cohere) => &[&["seed"]],
        ("seed", Gemini) => &[GENERATION, &["seed"]],
        ("seed", OllamaChat | OllamaGenerate) => &[&["options"], &["seed"]],

        ("n", Chat | Completions | Images) => &[&["n"]],
        ("n", Gemini) => &[GENERATION, &["candidateCount", "candidate_count"]],
        _ => return None,
    };
    Some(path)
}

/// Whether what is written is the same value: `1.0` is 1.
fn same(written: &[u8], value: &Value) -> bool {
    match value {
        Value::Number(n) => std::str::from_utf8(written)
            .ok()
            .and_then(|t| t.parse::<f64>().ok())
            .is_some_and(|w| n.as_f64() == Some(w)),
        _ => serde_json::from_slice::<Value>(written).is_ok_and(|w| w == *value),
    }
}

/// Whether a number that is no whole one is larger than `max`.
fn larger(value: &[u8], max: u64) -> bool {
    let number = std::str::from_utf8(value)
        .ok()
        .and_then(|t| t.parse::<f64>().ok());
    number.is_some_and(|n| n > max as f64)
}

fn last_key(path: &Path<'static>) -> &'static str {
    path.last().and_then(|k| k.first()).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::dialect::table::route;

    const CHAT: &str = "/v1/chat/completions";
    const GEMINI: &str = "/v1beta/models/g:generateContent";

    fn at(path: &str) -> Route {
        route(&http::Method::POST, path, None)
    }

    fn capped(
        path: &str,
        provider: &str,
        body: &str,
        max: u64,
    ) -> Result<Option<(String, Option<u64>)>, Unchanged> {
        let model = json::member(body.as_bytes(), "model").and_then(json::as_text);
        let got = cap_output(&at(path), provider, model.as_deref(), body.as_bytes(), max)?;
        Ok(got.map(|l| (String::from_utf8(l.body).unwrap(), l.from)))
    }

    #[test]
    fn output_is_capped_where_each_api_bounds_it() {
        for (path, provider, body, want, from) in [
            (
                CHAT,
                "x",
                r#"{"max_tokens" : 900 ,"a":1}"#,
                r#"{"max_tokens" : 100 ,"a":1}"#,
                Some(900),
            ),
            (
                CHAT,
                "x",
                r#"{"max_completion_tokens":900}"#,
                r#"{"max_completion_tokens":100}"#,
                Some(900),
            ),
            (
                CHAT,
                "x",
                r#"{"max_completion_tokens":900,"max_tokens":800}"#,
                r#"{"max_completion_tokens":100,"max_tokens":100}"#,
                Some(900),
            ),
            (
                CHAT,
                "x",
                r#"{"max_tokens":9e2}"#,
                r#"{"max_tokens":100}"#,
                Some(900),
            ),
            (
                CHAT,
                "x",
                "{\"model\":\"m\"}\n",
                "{\"model\":\"m\",\"max_tokens\":100}\n",
                None,
            ),
            (
                CHAT,
                "x",
                r#"{"model":"a/o3-mini"}"#,
                r#"{"model":"a/o3-mini","max_completion_tokens":100}"#,
                None,
            ),
            (
                CHAT,
                "x",
                r#"{"model":"gpt-5"}"#,
                r#"{"model":"gpt-5","max_completion_tokens":100}"#,
                None,
            ),
            (
                CHAT,
                "x",
                r#"{"model":"olmo"}"#,
                r#"{"model":"olmo","max_tokens":100}"#,
                None,
            ),
            (CHAT, "openai", "{}", r#"{"max_completion_tokens":100}"#, None),
            (CHAT, "x", r#"{"max_tokens":null}"#, r#"{"max_tokens":100}"#, None),
            (
                "/v1/responses",
                "openai",
                r#"{"input":"x"}"#,
                r#"{"input":"x","max_output_tokens":100}"#,
                None,
            ),
            (
                "/v1/responses",
                "openai",
                r#"{"max_output_tokens":101}"#,
                r#"{"max_output_tokens":100}"#,
                Some(101),
            ),
            (
                "/v1/completions",
                "x",
                r#"{"max_tokens":101}"#,
                r#"{"max_tokens":100}"#,
                Some(101),
            ),
            (
                "/v1/messages",
                "anthropic",
                r#"{"max_tokens":4096}"#,
                r#"{"max_tokens":100}"#,
                Some(4096),
            ),
            (
                GEMINI,
                "x",
                r#"{"contents":[]}"#,
                r#"{"contents":[],"generationConfig":{"maxOutputTokens":100}}"#,
                None,
            ),
            (
                GEMINI,
                "x",
                r#"{"generation_config":{"topK":1,"max_output_tokens":200}}"#,
                r#"{"generation_config":{"topK":1,"max_output_tokens":100}}"#,
                Some(200),
            ),
            (
                "/api/chat",
                "x",
                r#"{"options":{"num_predict":-1}}"#,
                r#"{"options":{"num_predict":100}}"#,
                None,
            ),
            (
                "/api/generate",
                "x",
                "{}",
                r#"{"options":{"num_predict":100}}"#,
                None,
            ),
            ("/v2/chat", "x", "{}", r#"{"max_tokens":100}"#, None),
            (
                "/model/m/converse",
                "x",
                "{}",
                r#"{"inferenceConfig":{"maxTokens":100}}"#,
                None,
            ),
            (
                "/model/m/invoke",
                "x",
                r#"{"max_gen_len":512}"#,
                r#"{"max_gen_len":100}"#,
                Some(512),
            ),
            (
                "/model/m/invoke",
                "x",
                r#"{"textGenerationConfig":{"maxTokenCount":512}}"#,
                r#"{"textGenerationConfig":{"maxTokenCount":100}}"#,
                Some(512),
            ),
        ] {
            let got = capped(path, provider, body, 100);
            assert_eq!(got, Ok(Some((want.to_owned(), from))), "{path} {body}");
        }
        let least = capped("/v1/responses", "openai", "{}", 1);
        assert_eq!(least, Ok(Some((r#"{"max_output_tokens":16}"#.to_owned(), None))));
    }

    #[test]
    fn output_is_never_raised() {
        for (path, body) in [
            (CHAT, r#"{"max_tokens":100}"#),
            (CHAT, r#"{"max_completion_tokens":1}"#),
            ("/v1/messages", r#"{"max_tokens":100.0}"#),
            (GEMINI, r#"{"generationConfig":{"maxOutputTokens":5}}"#),
            ("/api/chat", r#"{"options":{"num_predict":0}}"#),
        ] {
            assert_eq!(capped(path, "x", body, 100), Ok(None), "{path} {body}");
        }
    }

    #[test]
    fn what_cannot_be_capped_says_why() {
        let edit = Unchanged::Edit;
        for (path, body, want) in [
            (CHAT, "[]", edit(EditError::Unreadable)),
            (
                CHAT,
                r#"{"max_tokens":5,"max_tokens":900}"#,
                edit(EditError::Twice),
            ),
            (CHAT, r#"{"max_tokens":"900"}"#, Unchanged::NoNumber("max_tokens")),
            (GEMINI, r#"{"generationConfig":7}"#, edit(EditError::NoObject)),
            (
                "/v1/embeddings",
                "{}",
                Unchanged::NoField("openai.embeddings", "bound of its output".to_owned()),
            ),
            (
                "/v1/messages",
                r#"{"max_tokens":9000,"thinking":{"budget_tokens":8000}}"#,
                Unchanged::Thinking(100),
            ),
        ] {
            assert_eq!(capped(path, "x", body, 100), Err(want), "{path} {body}");
        }
        for (path, body) in [
            ("/v1/completions", "{}"),
            ("/v1/messages", "{}"),
            ("/model/m/invoke", "{}"),
        ] {
            assert!(
                matches!(capped(path, "x", body, 100), Err(Unchanged::Absent(_))),
                "{path}"
            );
        }
    }

    #[test]
    fn thinking_keeps_below_the_cap() {
        let body = r#"{"thinking":{"type":"enabled","budget_tokens":10000},"max_tokens":16000}"#;
        let want = r#"{"thinking":{"type":"enabled","budget_tokens":2000},"max_tokens":4000}"#;
        assert_eq!(
            capped("/v1/messages", "x", body, 4000),
            Ok(Some((want.to_owned(), Some(16000))))
        );
        let body = r#"{"thinking":{"type":"enabled","budget_tokens":1024},"max_tokens":16000}"#;
        let want = body.replace("16000", "4000");
        assert_eq!(
            capped("/v1/messages", "x", body, 4000),
            Ok(Some((want, Some(16000))))
        );
    }

    #[test]
    fn choices_are_capped() {
        for (path, body, want) in [
            (CHAT, r#"{"n":5}"#, Ok(Some((r#"{"n":2}"#, Some(5))))),
            (CHAT, r#"{"n":2}"#, Ok(None)),
            (CHAT, r#"{"n":null}"#, Ok(None)),
            (CHAT, "{}", Ok(None)),
            (CHAT, r#"{"n":"5"}"#, Err(Unchanged::NoNumber("n"))),
            (
                "/v1/images/generations",
                r#"{"n":3}"#,
                Ok(Some((r#"{"n":2}"#, Some(3)))),
            ),
            (
                GEMINI,
                r#"{"generationConfig":{"candidateCount":4}}"#,
                Ok(Some((r#"{"generationConfig":{"candidateCount":2}}"#, Some(4)))),
            ),
            ("/v1/messages", r#"{"n":5}"#, Ok(None)),
        ] {
            let got = cap_choices(&at(path), body.as_bytes(), 2);
            let got = got.map(|l| l.map(|l| (String::from_utf8(l.body).unwrap(), l.from)));
            assert_eq!(
                got,
                want.map(|w| w.map(|(b, f)| (b.to_owned(), f))),
                "{path} {body}"
            );
        }
    }

    fn setting(path: &str, body: &str, name: &str, value: Value) -> Result<Option<String>, Unchanged> {
        let got = set(&at(path), "x", None, body.as_bytes(), name, &value)?;
        Ok(got.map(|b| String::from_utf8(b).unwrap()))
    }

    #[test]
    fn parameters_are_set_by_their_common_or_own_names() {
        for (path, body, name, value, want) in [
            (
                CHAT,
                r#"{ "temperature":1.5, "a":1}"#,
                "temperature",
                json!(0.2),
                Some(r#"{ "temperature":0.2, "a":1}"#),
            ),
            (CHAT, "{}", "temperature", json!(0), Some(r#"{"temperature":0}"#)),
            (CHAT, r#"{"temperature":1}"#, "temperature", json!(1.0), None),
            (
                GEMINI,
                "{}",
                "top_p",
                json!(0.5),
                Some(r#"{"generationConfig":{"topP":0.5}}"#),
            ),
            (
                GEMINI,
                r#"{"generation_config":{"top_p":1}}"#,
                "top_p",
                json!(0.5),
                Some(r#"{"generation_config":{"top_p":0.5}}"#),
            ),
            ("/v1/messages", "{}", "top_k", json!(5), Some(r#"{"top_k":5}"#)),
            ("/v2/chat", "{}", "top_p", json!(0.5), Some(r#"{"p":0.5}"#)),
            (
                "/api/chat",
                "{}",
                "seed",
                json!(7),
                Some(r#"{"options":{"seed":7}}"#),
            ),
            (
                "/v1/responses",
                "{}",
                "reasoning_effort",
                json!("low"),
                Some(r#"{"reasoning":{"effort":"low"}}"#),
            ),
            (
                "/v1/responses",
                "{}",
                "max_tokens",
                json!(50),
                Some(r#"{"max_output_tokens":50}"#),
            ),
            (
                CHAT,
                r#"{"max_completion_tokens":9}"#,
                "max_tokens",
                json!(50),
                Some(r#"{"max_completion_tokens":50}"#),
            ),
            (
                "/model/m/converse",
                "{}",
                "temperature",
                json!(1),
                Some(r#"{"inferenceConfig":{"temperature":1}}"#),
            ),
            (
                CHAT,
                "{}",
                "verbosity",
                json!("low"),
                Some(r#"{"verbosity":"low"}"#),
            ),
            (
                "/v1/messages",
                r#"{"thinking":{"type":"enabled"}}"#,
                "thinking.budget_tokens",
                json!(2048),
                Some(r#"{"thinking":{"type":"enabled","budget_tokens":2048}}"#),
            ),
        ] {
            assert_eq!(
                setting(path, body, name, value),
                Ok(want.map(str::to_owned)),
                "{path} {body} {name}"
            );
        }
        assert_eq!(
            setting("/v1/messages", "{}", "seed", json!(1)),
            Err(Unchanged::NoField("anthropic.messages", "seed".to_owned()))
        );
        for name in ["model", "messages", "system", "stream", "", "a..b", "tools.x"] {
            assert_eq!(
                setting(CHAT, "{}", name, json!("x")),
                Err(Unchanged::NoParameter(name.to_owned()))
            );
        }
        assert_eq!(
            setting(CHAT, "{}", "reasoning", json!({"effort": "low"})),
            Err(Unchanged::NoScalar("reasoning".to_owned()))
        );
    }

    #[test]
    fn sampling_is_read_and_removed_by_the_same_names() {
        let body =
            r#"{"temperature":0.5,"generationConfig":{"temperature":1,"topK":40,"maxOutputTokens":5}}"#;
        let read = sampling(&at(GEMINI), body.as_bytes()).unwrap();
        assert_eq!(json!(read), json!({"temperature": 1, "top_k": 40}));
        let gone = remove(&at(GEMINI), body.as_bytes(), "temperature")
            .unwrap()
            .unwrap();
        let want = r#"{"temperature":0.5,"generationConfig":{"topK":40,"maxOutputTokens":5}}"#;
        assert_eq!(String::from_utf8(gone).unwrap(), want);
        assert_eq!(remove(&at(GEMINI), b"{}", "temperature"), Ok(None));
        assert_eq!(sampling(&at(CHAT), b"nonsense"), None);
        assert_eq!(sampling(&at(CHAT), br#"{"temperature":[1]}"#), None);
    }

    proptest! {
        #[test]
        fn a_cap_holds_and_changes_nothing_else(
            asked in proptest::option::of(0u64..10_000),
            max in 1u64..10_000,
            text in r#"[a-z"\\ {}é]{0,20}"#,
            which in 0usize..4,
        ) {
            let (path, outer, inner) = [
                (CHAT, None, "max_tokens"),
                (GEMINI, Some("generationConfig"), "maxOutputTokens"),
                ("/api/chat", Some("options"), "num_predict"),
                ("/v2/chat", None, "max_tokens"),
            ][which];
            let mut body = json!({"x": text, "temperature": 0.5});
            if let Some(asked) = asked {
                match outer {
                    Some(outer) => body[outer] = json!({inner: asked, "y": 1}),
                    None => body[inner] = json!(asked),
                }
            }
            let text = body.to_string();
            match cap_output(&at(path), "x", None, text.as_bytes(), max).unwrap() {
                None => prop_assert!(asked.is_some_and(|a| a <= max)),
                Some(lowered) => {
                    prop_assert!(asked.is_none_or(|a| a > max));
                    prop_assert_eq!((lowered.from, lowered.to), (asked, max));
                    match outer {
                        Some(outer) => body[outer][inner] = json!(max),
                        None => body[inner] = json!(max),
                    }
                    prop_assert_eq!(serde_json::from_slice::<Value>(&lowered.body).unwrap(), body);
                }
            }
        }
    }
}
