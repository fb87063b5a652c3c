//! The wire shapes of the simulated provider: requests read, answers and errors written as the vendors write them.

use std::time::Duration;

use serde_json::{Value, json};

use super::catalog::Model;
use super::filler::{tokens_of, tokens_of_chars};

/// An API of the simulated provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Api {
    Chat,
    Responses,
    Embeddings,
    Messages,
}

impl Api {
    /// The API that a path belongs to; told by its end, since base paths differ.
    pub(super) fn of(path: &str) -> Option<Self> {
        [
            ("/chat/completions", Self::Chat),
            ("/responses", Self::Responses),
            ("/embeddings", Self::Embeddings),
            ("/messages", Self::Messages),
        ]
        .into_iter()
        .find_map(|(end, api)| path.ends_with(end).then_some(api))
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) api: Api,
    pub(super) model: String,
    /// Tokens of all its text.
    pub(super) input: u64,
    /// Tokens that the prompt itself asks for ("… in about 120 tokens").
    pub(super) wanted: Option<u64>,
    /// The most that the answer may have.
    pub(super) max_output: Option<u64>,
    pub(super) stream: bool,
    /// Whether a chat stream is to end with its usage.
    pub(super) include_usage: bool,
    /// Texts to embed.
    pub(super) inputs: usize,
    pub(super) dimensions: usize,
    pub(super) base64: bool,
}

/// A refusal, before it has a shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) code: Option<&'static str>,
    pub(super) param: Option<&'static str>,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn invalid(message: impl Into<String>, param: Option<&'static str>) -> Self {
        Self {
            status: 400,
            kind: "invalid_request_error",
            code: None,
            param,
            message: message.into(),
        }
    }

    pub(super) fn not_found(message: String) -> Self {
        Self {
            status: 404,
            ..Self::invalid(message, None)
        }
    }

    /// The body, in the shape of the API that was called.
    pub(super) fn body(&self, api: Option<Api>, request_id: &str) -> Value {
        if api == Some(Api::Messages) {
            let kind = match self.status {
                404 => "not_found_error",
                413 => "request_too_large",
                _ => self.kind,
            };
            json!({"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id})
        } else {
            json!({"error": {
                "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
            }})
        }
    }
}

/// Reads a request body.
///
/// # Errors
/// What the vendor would say about it.
pub(super) fn read(api: Api, body: &[u8]) -> Result<Asked, Fault> {
    let body: Value = serde_json::from_slice(body).map_err(|e| {
        Fault::invalid(
            format!("We could not parse the JSON body of your request: {e}"),
            None,
        )
    })?;
    let model = match body.get("model").and_then(Value::as_str) {
        Some(model) if !model.is_empty() => model.to_owned(),
        _ if api == Api::Messages => {
            return Err(Fault::invalid("model: Field required", None));
        }
        _ => return Err(Fault::invalid("you must provide a model parameter", None)),
    };
    let count = |name: &str| body.get(name).and_then(Value::as_u64);
    let mut text = Gathered::default();
    let mut inputs = 0;
    let (prompt, missing) = match api {
        Api::Chat => ("messages", "Missing required parameter: 'messages'."),
        Api::Messages => ("messages", "messages: Field required"),
        Api::Responses | Api::Embeddings => ("input", "Missing required parameter: 'input'."),
    };
    match body.get(prompt) {
        None | Some(Value::Null) => return Err(Fault::invalid(missing, Some(prompt))),
        Some(value) if api == Api::Embeddings => {
            inputs = match value {
                Value::Array(list) if list.first().is_some_and(|v| !v.is_number()) => list.len(),
                _ => 1,
            };
            text.take(value);
        }
        Some(value) => text.take(value),
    }
    for beside in ["system", "instructions"] {
        if let Some(value) = body.get(beside) {
            text.take(value);
        }
    }
    if let Some(tools) = body.get("tools") {
        text.chars += tools.to_string().len();
    }
    let max_output = match api {
        Api::Chat => count("max_completion_tokens").or_else(|| count("max_tokens")),
        Api::Responses => count("max_output_tokens"),
        Api::Messages => match count("max_tokens") {
            Some(n) => Some(n),
            None => return Err(Fault::invalid("max_tokens: Field required", None)),
        },
        Api::Embeddings => Some(0),
    };
    Ok(Asked {
        api,
        model,
        input: text.tokens(),
        wanted: text.wanted,
        max_output,
        stream: api != Api::Embeddings && body.get("stream").and_then(Value::as_bool).unwrap_or(false),
        include_usage: body
            .pointer("/stream_options/include_usage")
            .and_then(Value::as_bool)
            .unwrap_or(false),
        inputs,
        dimensions: count("dimensions")
            .and_then(|n| usize::try_from(n).ok())
            .map_or(1536, |n| n.clamp(1, 3072)),
        base64: body.get("encoding_format").and_then(Value::as_str) == Some("base64"),
    })
}

/// The text of a prompt, summed up.
#[derive(Debug, Default)]
struct Gathered {
    chars: usize,
    ids: u64,
    wanted: Option<u64>,
}

impl Gathered {
    /// Adds all text of `value`: strings, lists of them, and the `text` and `content` of messages and parts.
    /// A list of numbers is a text that is cut into tokens already.
    fn take(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                self.chars += text.chars().count();
                self.wanted = wanted(text).or(self.wanted);
            }
            Value::Number(_) => self.ids += 1,
            Value::Array(list) => list.iter().for_each(|v| self.take(v)),
            Value::Object(object) => {
                for name in ["content", "text", "input", "output", "arguments"] {
                    if let Some(inner) = object.get(name) {
                        self.take(inner);
                    }
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn tokens(&self) -> u64 {
        tokens_of_chars(self.chars).saturating_add(self.ids)
    }
}

/// The length that a prompt asks for: a simulated model does as it is told.
fn wanted(prompt: &str) -> Option<u64> {
    let (_, after) = prompt.rsplit_once("in about ")?;
    let (number, _) = after.split_once(" tokens")?;
    number.parse().ok()
}

/// An answer, before it has a shape.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    /// Makes its ids unique.
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: i64,
    /// Model, as the answer names it.
    pub(super) model: String,
    pub(super) input: u64,
    pub(super) text: String,
    /// Whether it was ended by the limit on its length.
    pub(super) cut: bool,
}

impl Answer {
    pub(super) fn output(&self) -> u64 {
        tokens_of(&self.text)
    }

    fn finish(&self) -> &'static str {
        if self.cut { "length" } else { "stop" }
    }

    fn stop_reason(&self) -> &'static str {
        if self.cut { "max_tokens" } else { "end_turn" }
    }

    /// The usage object of Chat Completions.
    pub(super) fn chat_usage(&self) -> Value {
        json!({
            "prompt_tokens": self.input,
            "completion_tokens": self.output(),
            "total_tokens": self.input + self.output(),
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": 0, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        })
    }

    /// The answer as one JSON body.
    pub(super) fn whole(&self, asked: &Asked, rng: &mut fastrand::Rng) -> Value {
        match asked.api {
            Api::Chat => json!({
                "id": format!("chatcmpl-{}", self.id),
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": [{
                    "index": 0,
                    "message": {"role": "assistant", "content": self.text, "refusal": null, "annotations": []},
                    "logprobs": null,
                    "finish_reason": self.finish(),
                }],
                "usage": self.chat_usage(),
                "service_tier": "default",
                "system_fingerprint": "fp_simulated",
            }),
            Api::Responses => self.response(true),
            Api::Messages => json!({
                "id": format!("msg_{}", self.id),
                "type": "message",
                "role": "assistant",
                "model": self.model,
                "content": [{"type": "text", "text": self.text}],
                "stop_reason": self.stop_reason(),
                "stop_sequence": null,
                "usage": {
                    "input_tokens": self.input,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 0,
                    "output_tokens": self.output(),
                    "service_tier": "standard",
                },
            }),
            Api::Embeddings => {
                let data: Vec<Value> = (0..asked.inputs)
                    .map(|i| json!({"object": "embedding", "index": i, "embedding": embedding(asked, rng)}))
                    .collect();
                json!({
                    "object": "list",
                    "data": data,
                    "model": self.model,
                    "usage": {"prompt_tokens": self.input, "total_tokens": self.input},
                })
            }
        }
    }

    /// The `response` object of Responses, as it is at the start or at the end.
    pub(super) fn response(&self, ended: bool) -> Value {
        let (status, output) = match (ended, self.cut) {
            (false, _) => ("in_progress", json!([])),
            (true, false) => ("completed", json!([self.output_item(true)])),
            (true, true) => ("incomplete", json!([self.output_item(true)])),
        };
        json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": (ended && self.cut).then(|| json!({"reason": "max_output_tokens"})),
            "instructions": null,
            "max_output_tokens": null,
            "metadata": {},
            "model": self.model,
            "output": output,
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": true,
            "temperature": 1.0,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "truncation": "disabled",
            "usage": ended.then(|| json!({
                "input_tokens": self.input,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.output(),
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.input + self.output(),
            })),
        })
    }

    /// The only output item of a response, empty or full.
    pub(super) fn output_item(&self, full: bool) -> Value {
        let (status, content) = match (full, self.cut) {
            (false, _) => ("in_progress", json!([])),
            (true, false) => ("completed", json!([self.output_part(true)])),
            (true, true) => ("incomplete", json!([self.output_part(true)])),
        };
        json!({
            "id": format!("msg_{}", self.id),
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        })
    }

    /// The only part of that item, empty or full.
    pub(super) fn output_part(&self, full: bool) -> Value {
        let text = if full { self.text.as_str() } else { "" };
        json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
    }

    pub(super) fn stop(&self, messages: bool) -> &'static str {
        if messages {
            self.stop_reason()
        } else {
            self.finish()
        }
    }
}

/// A unit vector, as numbers or as the base64 of their little-endian bytes, whichever was asked for.
fn embedding(asked: &Asked, rng: &mut fastrand::Rng) -> Value {
    let raw: Vec<f32> = (0..asked.dimensions).map(|_| rng.f32() - 0.5).collect();
    let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::EPSILON);
    if asked.base64 {
        use base64::Engine;
        let bytes: Vec<u8> = raw.iter().flat_map(|x| (x / length).to_le_bytes()).collect();
        Value::String(base64::engine::general_purpose::STANDARD.encode(bytes))
    } else {
        json!(raw.iter().map(|x| x / length).collect::<Vec<_>>())
    }
}

/// How long the whole answer takes: to its first token, and from that to its end.
pub(super) fn durations(model: &Model, asked: &Asked, output: u64) -> (Duration, Duration) {
    (model.first_token(asked.input), model.tokens(output))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(api: Api, body: &str) -> Result<Asked, Fault> {
        read(api, body.as_bytes())
    }

    #[test]
    fn the_end_of_the_path_tells_the_api() {
        for (path, api) in [
            ("/v1/chat/completions", Some(Api::Chat)),
            ("/openai/v1/responses", Some(Api::Responses)),
            ("/v1/embeddings", Some(Api::Embeddings)),
            ("/v1/messages", Some(Api::Messages)),
            ("/v1/models", None),
            ("/", None),
        ] {
            assert_eq!(Api::of(path), api, "{path}");
        }
    }

    #[test]
    fn prompts_are_counted_wherever_their_text_stands() {
        for (api, body, input, max_output) in [
            (
                Api::Chat,
                r#"{"model":"m","messages":[{"role":"user","content":"12345678"}]}"#,
                2,
                None,
            ),
            (
                Api::Chat,
                r#"{"model":"m","max_tokens":5,"messages":[{"content":[{"type":"text","text":"1234"}]},{"content":"1"}]}"#,
                2,
                Some(5),
            ),
            (
                Api::Chat,
                r#"{"model":"m","max_tokens":5,"max_completion_tokens":6,"messages":[]}"#,
                0,
                Some(6),
            ),
            (
                Api::Responses,
                r#"{"model":"m","instructions":"1234","max_output_tokens":9,"input":"5678"}"#,
                2,
                Some(9),
            ),
            (
                Api::Responses,
                r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"12345678"}]}]}"#,
                2,
                None,
            ),
            (
                Api::Messages,
                r#"{"model":"m","max_tokens":7,"system":[{"type":"text","text":"1234"}],"messages":[{"content":"5678"}]}"#,
                2,
                Some(7),
            ),
            (
                Api::Embeddings,
                r#"{"model":"m","input":["12345678","1234"]}"#,
                3,
                Some(0),
            ),
            (
                Api::Embeddings,
                r#"{"model":"m","input":[1,2,3,4,5]}"#,
                5,
                Some(0),
            ),
        ] {
            let asked = ask(api, body).unwrap();
            assert_eq!((asked.input, asked.max_output), (input, max_output), "{body}");
        }
    }

    #[test]
    fn the_last_wish_for_a_length_is_heard() {
        for (prompt, tokens) in [
            ("answer in about 40 tokens", Some(40)),
            ("in about 40 tokens. No: in about 60 tokens.", Some(60)),
            ("in about a while", None),
            ("", None),
        ] {
            assert_eq!(wanted(prompt), tokens, "{prompt}");
        }
    }

    #[test]
    fn faults_have_the_shape_of_the_api() {
        let fault = ask(Api::Chat, r#"{"messages":[]}"#).unwrap_err();
        let body = fault.body(Some(Api::Chat), "req_1");
        assert_eq!(fault.status, 400);
        assert_eq!(body["error"]["type"], "invalid_request_error");
        assert_eq!(body["error"]["message"], "you must provide a model parameter");

        let fault = ask(Api::Messages, r#"{"model":"m","messages":[]}"#).unwrap_err();
        let body = fault.body(Some(Api::Messages), "req_2");
        assert_eq!(body["type"], "error");
        assert_eq!(body["error"]["message"], "max_tokens: Field required");
        assert_eq!(body["request_id"], "req_2");

        for body in [
            "",
            "{",
            "[]",
            "7",
            r#"{"model":7,"messages":[]}"#,
            r#"{"model":"m"}"#,
        ] {
            assert_eq!(ask(Api::Chat, body).unwrap_err().status, 400, "{body}");
        }
    }

    #[test]
    fn whole_answers_add_up() {
        let answer = Answer {
            id: "1".to_owned(),
            created: 1,
            model: "m".to_owned(),
            input: 10,
            text: "12345678".to_owned(),
            cut: true,
        };
        let mut rng = fastrand::Rng::with_seed(1);
        let mut whole = |api, body: &str| answer.whole(&ask(api, body).unwrap(), &mut rng);

        let chat = whole(Api::Chat, r#"{"model":"m","messages":[]}"#);
        assert_eq!(chat["usage"]["total_tokens"], 12);
        assert_eq!(chat["choices"][0]["finish_reason"], "length");

        let response = whole(Api::Responses, r#"{"model":"m","input":""}"#);
        assert_eq!(response["status"], "incomplete");
        assert_eq!(response["output"][0]["content"][0]["text"], "12345678");
        assert_eq!(response["usage"]["total_tokens"], 12);

        let message = whole(Api::Messages, r#"{"model":"m","messages":[],"max_tokens":2}"#);
        assert_eq!(message["stop_reason"], "max_tokens");
        assert_eq!(message["usage"]["output_tokens"], 2);

        let list = whole(
            Api::Embeddings,
            r#"{"model":"m","input":["a","b"],"dimensions":8}"#,
        );
        assert_eq!(list["data"][1]["embedding"].as_array().map(Vec::len), Some(8));
        let list = whole(
            Api::Embeddings,
            r#"{"model":"m","input":"a","dimensions":3,"encoding_format":"base64"}"#,
        );
        assert_eq!(list["data"][0]["embedding"].as_str().map(str::len), Some(16));
    }
}
