//! Well-formed endings for streams that are ended early: what has to be known of a stream for it, and the events.

use serde_json::{Map, Value, json};
use smallvec::SmallVec;

use super::eventstream;
use super::table::Api;

/// Largest event that is looked at, in bytes.
const LARGEST: usize = 256 << 10;
/// How much of an output is kept to be said again at the end of a response, in bytes.
const KEPT: usize = 256 << 10;
/// Most choices, blocks or items that are kept apart.
const MANY: usize = 128;

/// What a stream has said of itself, as far as its end has to agree with it.
#[derive(Debug)]
pub(super) struct Trail {
    api: Api,
    /// The members that every event of this stream repeats (`id`, `model`, …).
    head: Map<String, Value>,
    /// Choices or candidates: which, and whether it is finished.
    choices: SmallVec<[(u64, bool); 1]>,
    /// The block that is open: its index, and what closes it.
    open: Option<(u64, &'static str)>,
    /// The stream's own end has begun.
    over: bool,
    /// The old shape of an API that has two (Cohere).
    old: bool,
    /// Reasons are numbers (Gemini, when asked for them).
    numbers: bool,
    response: Option<Box<Response>>,
}

/// A response (OpenAI's Responses), as far as it was told.
#[derive(Debug, Default)]
struct Response {
    /// The object of `response.created`.
    object: Option<Value>,
    /// The last `sequence_number`.
    sequence: Option<u64>,
    /// Items: index, the item so far, and whether it is done.
    items: Vec<(u64, Value, bool)>,
    kept: usize,
    /// Something of the output is not known here, so that it is not said again.
    partial: bool,
}

/// What a stream used, as far as it is known when it is ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// Input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// The client asked for a count at the end of the stream.
    pub asked: bool,
    /// When the answer began, in seconds since 1970: for streams that were not seen to say so.
    pub began: u64,
}

/// How a stream is framed, where it is put an end to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// Server-sent events.
    Events,
    /// One document a line.
    Lines,
    /// Elements of an array: whether one came already, and whether the next one was announced by a comma.
    Elements {
        /// There was one.
        any: bool,
        /// A comma came after it.
        comma: bool,
    },
    /// Messages of AWS.
    Aws,
}

/// The end of a stream: its bytes, and the word it gives for the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// What is sent.
    pub bytes: Vec<u8>,
    /// Why it stopped, in the API's own words.
    pub reason: &'static str,
}

impl Trail {
    /// Nothing was said yet, or nobody listened until now.
    pub(super) fn new(api: Api) -> Self {
        Self {
            api,
            head: Map::new(),
            choices: SmallVec::new(),
            open: None,
            over: false,
            old: false,
            numbers: false,
            response: (api == Api::OpenAiResponses).then(Box::default),
        }
    }

    /// Sees an event; `name`: where it stands outside of the data (AWS).
    pub(super) fn event(&mut self, name: &[u8], data: &[u8]) {
        if data.len() > LARGEST {
            if let Some(response) = &mut self.response {
                response.partial = true;
            }
            return;
        }
        let Ok(event) = serde_json::from_slice::<Value>(data) else {
            return;
        };
        match self.api {
            Api::OpenAiChat | Api::OpenAiCompletions => self.chat(&event),
            Api::OpenAiResponses => {
                if let Some(response) = &mut self.response {
                    self.over |= response.event(event);
                }
            }
            Api::AnthropicMessages => self.anthropic(&event),
            Api::GeminiGenerateContent => self.gemini(&event),
            Api::OllamaChat | Api::OllamaGenerate => {
                self.keep(&event, &["model", "created_at"]);
                self.over |= event["done"] == true;
            }
            Api::CohereChat => self.cohere(&event),
            Api::BedrockConverse => self.converse(name, &event),
            _ => {}
        }
    }

    /// Remembers members of the first event that has them; some vendors leave them empty at first.
    fn keep(&mut self, event: &Value, names: &[&str]) {
        for name in names {
            let known = self.head.get(*name).is_some_and(|v| *v != "" && *v != 0);
            if !known && let Some(value) = event.get(*name).filter(|v| !v.is_object() && !v.is_null()) {
                self.head.insert((*name).to_owned(), value.clone());
            }
        }
    }

    fn choice(&mut self, index: u64, finished: bool) {
        if let Some(choice) = self.choices.iter_mut().find(|c| c.0 == index) {
            choice.1 |= finished;
        } else if self.choices.len() < MANY {
            self.choices.push((index, finished));
        }
    }

    fn finished(&self) -> bool {
        self.over || (!self.choices.is_empty() && self.choices.iter().all(|c| c.1))
    }

    fn chat(&mut self, event: &Value) {
        self.keep(
            event,
            &[
                "id",
                "object",
                "created",
                "model",
                "system_fingerprint",
                "service_tier",
                "provider",
            ],
        );
        for (place, choice) in (0..).zip(event["choices"].as_array().into_iter().flatten()) {
            let index = choice["index"].as_u64().unwrap_or(place);
            self.choice(
                index,
                choice["finish_reason"].as_str().is_some_and(|r| !r.is_empty()),
            );
        }
    }

    fn anthropic(&mut self, event: &Value) {
        let index = event["index"].as_u64();
        match event["type"].as_str() {
            Some("content_block_start" | "content_block_delta") => {
                self.open = index.map(|i| (i, "content_block_stop"));
            }
            Some("content_block_stop") => self.open = None,
            Some("message_delta" | "message_stop" | "error") => self.over = true,
            _ => {}
        }
    }

    fn gemini(&mut self, event: &Value) {
        self.keep(event, &["modelVersion", "responseId"]);
        for (place, candidate) in (0..).zip(event["candidates"].as_array().into_iter().flatten()) {
            let reason = &candidate["finishReason"];
            self.numbers |= reason.is_number();
            let given = reason.as_u64().is_some_and(|n| n > 0)
                || reason
                    .as_str()
                    .is_some_and(|r| !matches!(r, "" | "FINISH_REASON_UNSPECIFIED"));
            self.choice(candidate["index"].as_u64().unwrap_or(place), given);
        }
    }

    fn cohere(&mut self, event: &Value) {
        self.old |= event.get("event_type").is_some();
        let kind = event["type"].as_str().or(event["event_type"].as_str());
        self.keep(event, &["generation_id"]);
        let index = event["index"].as_u64().unwrap_or(0);
        match kind {
            Some("content-start" | "content-delta") => self.open = Some((index, "content-end")),
            Some("tool-call-start" | "tool-call-delta") => self.open = Some((index, "tool-call-end")),
            Some("content-end" | "tool-call-end") => self.open = None,
            Some("message-end" | "stream-end") => self.over = true,
            _ => {}
        }
    }

    fn converse(&mut self, name: &[u8], event: &Value) {
        let index = event["contentBlockIndex"].as_u64().unwrap_or(0);
        match name {
            b"contentBlockStart" | b"contentBlockDelta" => self.open = Some((index, "contentBlockStop")),
            b"contentBlockStop" => self.open = None,
            b"messageStop" | b"metadata" => self.over = true,
            _ => {}
        }
    }

    /// The end of this stream, where an API has one that can be told from its own by nobody; `None` where it has not,
    /// or where the stream's own end has begun.
    pub(super) fn end(&mut self, frame: Frame, spent: Spent) -> Option<Ending> {
        if self.finished() {
            return None;
        }
        let (events, reason) = match (self.api, frame) {
            (Api::OpenAiChat | Api::OpenAiCompletions, Frame::Events) => (self.end_chat(spent), "length"),
            (Api::OpenAiResponses, Frame::Events) => (self.response.take()?.end(spent), "incomplete"),
            (Api::AnthropicMessages, Frame::Events) => (self.end_anthropic(spent), "max_tokens"),
            (Api::GeminiGenerateContent, Frame::Events | Frame::Elements { .. }) => {
                (vec![("", self.end_gemini(spent))], "MAX_TOKENS")
            }
            (Api::OllamaChat | Api::OllamaGenerate, Frame::Lines) => {
                (vec![("", self.end_ollama(spent))], "length")
            }
            (Api::CohereChat, Frame::Events) if !self.old => (self.end_cohere(spent), "MAX_TOKENS"),
            (Api::BedrockConverse, Frame::Aws) => (self.end_converse(spent), "max_tokens"),
            _ => return None,
        };
        let mut bytes = Vec::with_capacity(512);
        for (name, event) in &events {
            write(&mut bytes, self.api, frame, name, event);
        }
        match (self.api, frame) {
            (Api::OpenAiChat | Api::OpenAiCompletions, _) => bytes.extend_from_slice(b"data: [DONE]\n\n"),
            (_, Frame::Elements { .. }) => bytes.extend_from_slice(b"]"),
            _ => {}
        }
        Some(Ending { bytes, reason })
    }

    fn with(&self, more: Value) -> Value {
        let mut event = self.head.clone();
        if let Value::Object(more) = more {
            event.extend(more);
        }
        Value::Object(event)
    }

    fn end_chat(&mut self, spent: Spent) -> Vec<(&'static str, Value)> {
        let completions = self.api == Api::OpenAiCompletions;
        let object = if completions {
            "text_completion"
        } else {
            "chat.completion.chunk"
        };
        for (name, value) in [
            ("id", json!("")),
            ("object", json!(object)),
            ("created", json!(spent.began)),
            ("model", json!("")),
        ] {
            self.head.entry(name).or_insert(value);
        }
        if self.choices.is_empty() {
            self.choices.push((0, false));
        }
        let open = self.choices.iter().filter(|c| !c.1);
        let mut events: Vec<_> = open
            .map(|(index, _)| {
                let mut choice = json!({"index": index, "logprobs": null, "finish_reason": "length"});
                if completions {
                    choice["text"] = json!("");
                } else {
                    choice["delta"] = json!({});
                }
                ("", self.with(json!({"choices": [choice]})))
            })
            .collect();
        if spent.asked {
            let usage = json!({
                "prompt_tokens": spent.input,
                "completion_tokens": spent.output,
                "total_tokens": spent.input.saturating_add(spent.output),
            });
            events.push(("", self.with(json!({"choices": [], "usage": usage}))));
        }
        events
    }

    fn end_anthropic(&self, spent: Spent) -> Vec<(&'static str, Value)> {
        let mut events = Vec::with_capacity(3);
        if let Some((index, name)) = self.open {
            events.push((name, json!({"type": name, "index": index})));
        }
        events.push((
            "message_delta",
            json!({
                "type": "message_delta",
                "delta": {"stop_reason": "max_tokens", "stop_sequence": null},
                "usage": {"output_tokens": spent.output},
            }),
        ));
        events.push(("message_stop", json!({"type": "message_stop"})));
        events
    }

    fn end_gemini(&mut self, spent: Spent) -> Value {
        if self.choices.is_empty() {
            self.choices.push((0, false));
        }
        let reason = if self.numbers {
            json!(2)
        } else {
            json!("MAX_TOKENS")
        };
        let open = self.choices.iter().filter(|c| !c.1);
        let candidates: Vec<Value> = open
            .map(|(index, _)| {
                json!({
                    "content": {"parts": [{"text": ""}], "role": "model"},
                    "finishReason": reason,
                    "index": index,
                })
            })
            .collect();
        self.with(json!({
            "candidates": candidates,
            "usageMetadata": {
                "promptTokenCount": spent.input,
                "candidatesTokenCount": spent.output,
                "totalTokenCount": spent.input.saturating_add(spent.output),
            },
        }))
    }

    fn end_ollama(&self, spent: Spent) -> Value {
        let mut end = json!({
            "done": true,
            "done_reason": "length",
            "total_duration": 0,
            "load_duration": 0,
            "prompt_eval_count": spent.input,
            "prompt_eval_duration": 0,
            "eval_count": spent.output,
            "eval_duration": 0,
        });
        if self.api == Api::OllamaChat {
            end["message"] = json!({"role": "assistant", "content": ""});
        } else {
            end["response"] = json!("");
        }
        self.with(end)
    }

    fn end_cohere(&self, spent: Spent) -> Vec<(&'static str, Value)> {
        let mut events = Vec::with_capacity(2);
        if let Some((index, name)) = self.open {
            events.push((name, json!({"type": name, "index": index})));
        }
        let tokens = json!({"input_tokens": spent.input, "output_tokens": spent.output});
        events.push((
            "message-end",
            json!({
                "type": "message-end",
                "delta": {"finish_reason": "MAX_TOKENS", "usage": {"billed_units": tokens, "tokens": tokens}},
            }),
        ));
        events
    }

    fn end_converse(&self, spent: Spent) -> Vec<(&'static str, Value)> {
        let mut events = Vec::with_capacity(3);
        if let Some((index, name)) = self.open {
            events.push((name, json!({"contentBlockIndex": index})));
        }
        events.push(("messageStop", json!({"stopReason": "max_tokens"})));
        events.push((
            "metadata",
            json!({
                "usage": {
                    "inputTokens": spent.input,
                    "outputTokens": spent.output,
                    "totalTokens": spent.input.saturating_add(spent.output),
                },
                "metrics": {"latencyMs": 0},
            }),
        ));
        events
    }
}

impl Response {
    /// Sees an event; `true` when it is one of the last.
    fn event(&mut self, mut event: Value) -> bool {
        if let Some(sequence) = event["sequence_number"].as_u64() {
            self.sequence = Some(sequence);
        }
        let at = event["output_index"].as_u64().unwrap_or(0);
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        match kind.as_str() {
            "response.created" | "response.in_progress" => {
                self.object = event.get_mut("response").map(Value::take);
            }
            "response.output_item.added" => {
                let item = event.get_mut("item").map(Value::take).unwrap_or_default();
                if self.items.len() < MANY && self.room(&item.to_string()) {
                    self.items.push((at, item, false));
                }
            }
            "response.output_item.done" => {
                let item = event.get_mut("item").map(Value::take).unwrap_or_default();
                match self.items.iter_mut().find(|i| i.0 == at) {
                    Some(held) => (held.1, held.2) = (item, true),
                    None => self.partial = true,
                }
            }
            "response.content_part.added" => {
                let part = event.get_mut("part").map(Value::take).unwrap_or_default();
                if self.room(&part.to_string())
                    && let Some(content) = self.item(at).and_then(|i| i.get_mut("content")?.as_array_mut())
                {
                    content.push(part);
                }
            }
            "response.output_text.delta" => self.add(at, &event, "text"),
            "response.refusal.delta" => self.add(at, &event, "refusal"),
            "response.function_call_arguments.delta" => self.append(at, &event, "arguments"),
            "response.custom_tool_call_input.delta" => self.append(at, &event, "input"),
            "response.completed" | "response.incomplete" | "response.failed" | "response.done" | "error" => {
                return true;
            }
            _ => {}
        }
        false
    }

    fn room(&mut self, text: &str) -> bool {
        self.kept = self.kept.saturating_add(text.len());
        self.partial |= self.kept > KEPT;
        !self.partial
    }

    fn item(&mut self, at: u64) -> Option<&mut Value> {
        let found = self.items.iter().position(|i| i.0 == at);
        // Nobody listened when it began.
        self.partial |= found.is_none();
        self.items.get_mut(found?).map(|i| &mut i.1)
    }

    /// Adds to the text of a part.
    fn add(&mut self, at: u64, event: &Value, name: &str) {
        let Some(delta) = event["delta"].as_str() else {
            return;
        };
        if !self.room(delta) {
            return;
        }
        let place = usize::try_from(event["content_index"].as_u64().unwrap_or(0)).unwrap_or(usize::MAX);
        let part = self.item(at).and_then(|i| i.get_mut("content")?.get_mut(place));
        match part.and_then(Value::as_object_mut) {
            Some(part) => push(part, name, delta),
            None => self.partial = true,
        }
    }

    /// Adds to a member of an item.
    fn append(&mut self, at: u64, event: &Value, name: &str) {
        let Some(delta) = event["delta"].as_str() else {
            return;
        };
        if self.room(delta)
            && let Some(item) = self.item(at).and_then(Value::as_object_mut)
        {
            push(item, name, delta);
        }
    }

    fn end(mut self, spent: Spent) -> Vec<(&'static str, Value)> {
        let mut events = Vec::new();
        let mut sequence = self.sequence;
        let mut put = |name: &'static str, mut event: Value| {
            event["type"] = json!(name);
            if let Some(last) = sequence {
                let next = last.saturating_add(1);
                event["sequence_number"] = json!(next);
                sequence = Some(next);
            }
            events.push((name, event));
        };
        let partial = self.partial;
        for (at, item, done) in self.items.iter_mut().filter(|_| !partial) {
            if std::mem::replace(done, true) {
                continue;
            }
            let id = item["id"].clone();
            for (place, part) in (0_u64..).zip(item["content"].as_array().into_iter().flatten()) {
                let (name, member) = match part["type"].as_str() {
                    Some("output_text") => ("response.output_text.done", "text"),
                    Some("refusal") => ("response.refusal.done", "refusal"),
                    _ => continue,
                };
                let mut event = json!({"item_id": id, "output_index": at, "content_index": place});
                event[member] = part[member].clone();
                if member == "text" {
                    event["logprobs"] = json!([]);
                }
                put(name, event);
                put(
                    "response.content_part.done",
                    json!({"item_id": id, "output_index": at, "content_index": place, "part": part}),
                );
            }
            item["status"] = json!("incomplete");
            put(
                "response.output_item.done",
                json!({"output_index": at, "item": item}),
            );
        }
        self.items.sort_by_key(|i| i.0);
        let output: Vec<Value> = if partial {
            Vec::new()
        } else {
            self.items.into_iter().map(|i| i.1).collect()
        };
        let mut response = self.object.filter(Value::is_object).unwrap_or_else(|| {
            json!({"object": "response", "created_at": spent.began, "error": null, "parallel_tool_calls": true,
                "tool_choice": "auto", "tools": []})
        });
        response["status"] = json!("incomplete");
        response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        response["output"] = Value::Array(output);
        response["usage"] = json!({
            "input_tokens": spent.input,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": spent.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": spent.input.saturating_add(spent.output),
        });
        put("response.incomplete", json!({"response": response}));
        events
    }
}

fn push(object: &mut Map<String, Value>, name: &str, delta: &str) {
    match object.get_mut(name) {
        Some(Value::String(text)) => text.push_str(delta),
        _ => {
            object.insert(name.to_owned(), json!(delta));
        }
    }
}

/// Writes an event as the stream has them.
pub(super) fn write(out: &mut Vec<u8>, api: Api, frame: Frame, name: &str, event: &Value) {
    // Writing to memory cannot fail.
    let data = serde_json::to_vec(event).unwrap_or_default();
    let newline: &[u8] = if api == Api::GeminiGenerateContent {
        b"\r\n"
    } else {
        b"\n"
    };
    match frame {
        Frame::Events => {
            if !name.is_empty() {
                out.extend_from_slice(b"event: ");
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(newline);
            }
            out.extend_from_slice(b"data: ");
            out.extend_from_slice(&data);
            out.extend_from_slice(newline);
            out.extend_from_slice(newline);
        }
        Frame::Lines => {
            out.extend_from_slice(&data);
            out.push(b'\n');
        }
        Frame::Elements { any, comma } => {
            if any && !comma {
                out.push(b',');
            }
            out.extend_from_slice(&data);
            out.push(b'\n');
        }
        Frame::Aws => eventstream::write(
            out,
            &[
                (":event-type", name),
                (":content-type", "application/json"),
                (":message-type", "event"),
            ],
            &data,
        ),
    }
}

#[cfg(test)]
mod tests;
