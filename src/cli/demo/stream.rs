//! Streams of the simulated provider: the events of an answer, each with its time.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::wire::{Answer, Api, Asked};

/// One write of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Pause after the step before.
    pub(super) pause: Duration,
    pub(super) bytes: Bytes,
    /// Tokens generated when it was written.
    pub(super) output: u64,
}

/// The events of `answer`: the first text after `to_first`, the rest spread evenly over `rest`.
pub(super) fn steps(asked: &Asked, answer: &Answer, to_first: Duration, rest: Duration) -> Vec<Step> {
    let pieces = pieces(&answer.text);
    let mut script = Script {
        steps: Vec::with_capacity(pieces.len() + 8),
        pause: to_first,
        output: 0,
        sequence: 0,
    };
    let total = answer.text.chars().count().max(1);
    match asked.api {
        Api::Chat => chat_head(&mut script, asked, answer),
        Api::Responses => responses_head(&mut script, answer),
        Api::Messages => messages_head(&mut script, answer),
        Api::Embeddings => {}
    }
    let mut chars = 0;
    for piece in pieces {
        let length = piece.chars().count();
        chars += length;
        script.output = super::filler::tokens_of_chars(chars);
        match asked.api {
            Api::Chat => {
                script.data(&chunk(asked, answer, &json!({"content": piece}), None));
            }
            Api::Responses => script.response_event(
                "response.output_text.delta",
                json!({
                    "item_id": format!("msg_{}", answer.id), "output_index": 0, "content_index": 0,
                    "delta": piece, "logprobs": [],
                }),
            ),
            Api::Messages => script.named(
                "content_block_delta",
                &json!({
                    "type": "content_block_delta", "index": 0,
                    "delta": {"type": "text_delta", "text": piece},
                }),
            ),
            Api::Embeddings => {}
        }
        script.pause = rest.mul_f64(length as f64 / total as f64);
    }
    match asked.api {
        Api::Chat => chat_tail(&mut script, asked, answer),
        Api::Responses => responses_tail(&mut script, answer),
        Api::Messages => messages_tail(&mut script, answer),
        Api::Embeddings => {}
    }
    script.steps
}

/// Cuts a text into words, each with the blank before it, as tokens come.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest
            .char_indices()
            .skip(1)
            .find(|(_, c)| *c == ' ')
            .map(|(at, _)| at);
        let (piece, after) = end.and_then(|at| rest.split_at_checked(at)).unwrap_or((rest, ""));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

struct Script {
    steps: Vec<Step>,
    pause: Duration,
    output: u64,
    sequence: u64,
}

impl Script {
    fn push(&mut self, text: String) {
        self.steps.push(Step {
            pause: std::mem::take(&mut self.pause),
            bytes: Bytes::from(text),
            output: self.output,
        });
    }

    fn data(&mut self, value: &Value) {
        self.push(format!("data: {value}\n\n"));
    }

    fn named(&mut self, event: &str, value: &Value) {
        self.push(format!("event: {event}\ndata: {value}\n\n"));
    }

    fn response_event(&mut self, event: &str, mut value: Value) {
        if let Value::Object(fields) = &mut value {
            fields.insert("type".to_owned(), json!(event));
            fields.insert("sequence_number".to_owned(), json!(self.sequence));
        }
        self.sequence += 1;
        self.named(event, &value);
    }
}

fn chunk(asked: &Asked, answer: &Answer, delta: &Value, finish: Option<&str>) -> Value {
    let choices = json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}]);
    bare_chunk(asked, answer, &choices, &Value::Null)
}

fn bare_chunk(asked: &Asked, answer: &Answer, choices: &Value, usage: &Value) -> Value {
    let mut value = json!({
        "id": format!("chatcmpl-{}", answer.id),
        "object": "chat.completion.chunk",
        "created": answer.created,
        "model": answer.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
        "choices": choices,
    });
    if asked.include_usage
        && let Value::Object(fields) = &mut value
    {
        fields.insert("usage".to_owned(), usage.clone());
    }
    value
}

fn chat_head(script: &mut Script, asked: &Asked, answer: &Answer) {
    let role = json!({"role": "assistant", "content": "", "refusal": null});
    script.data(&chunk(asked, answer, &role, None));
}

fn chat_tail(script: &mut Script, asked: &Asked, answer: &Answer) {
    script.data(&chunk(asked, answer, &json!({}), Some(answer.stop(false))));
    if asked.include_usage {
        script.data(&bare_chunk(asked, answer, &json!([]), &answer.chat_usage()));
    }
    script.push("data: [DONE]\n\n".to_owned());
}

fn responses_head(script: &mut Script, answer: &Answer) {
    for event in ["response.created", "response.in_progress"] {
        script.response_event(event, json!({"response": answer.response(false)}));
    }
    script.response_event(
        "response.output_item.added",
        json!({"output_index": 0, "item": answer.output_item(false)}),
    );
    script.response_event("response.content_part.added", part(answer, false));
}

fn responses_tail(script: &mut Script, answer: &Answer) {
    script.response_event(
        "response.output_text.done",
        json!({
            "item_id": format!("msg_{}", answer.id), "output_index": 0, "content_index": 0,
            "text": answer.text, "logprobs": [],
        }),
    );
    script.response_event("response.content_part.done", part(answer, true));
    script.response_event(
        "response.output_item.done",
        json!({"output_index": 0, "item": answer.output_item(true)}),
    );
    let end = if answer.cut {
        "response.incomplete"
    } else {
        "response.completed"
    };
    script.response_event(end, json!({"response": answer.response(true)}));
}

fn part(answer: &Answer, full: bool) -> Value {
    json!({
        "item_id": format!("msg_{}", answer.id), "output_index": 0, "content_index": 0,
        "part": answer.output_part(full),
    })
}

fn messages_head(script: &mut Script, answer: &Answer) {
    script.named(
        "message_start",
        &json!({"type": "message_start", "message": {
            "id": format!("msg_{}", answer.id), "type": "message", "role": "assistant",
            "model": answer.model, "content": [], "stop_reason": null, "stop_sequence": null,
            "usage": {
                "input_tokens": answer.input, "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0, "output_tokens": 1, "service_tier": "standard",
            },
        }}),
    );
    script.named(
        "content_block_start",
        &json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    );
    script.named("ping", &json!({"type": "ping"}));
}

fn messages_tail(script: &mut Script, answer: &Answer) {
    script.named(
        "content_block_stop",
        &json!({"type": "content_block_stop", "index": 0}),
    );
    script.named(
        "message_delta",
        &json!({
            "type": "message_delta",
            "delta": {"stop_reason": answer.stop(true), "stop_sequence": null},
            "usage": {"output_tokens": answer.output()},
        }),
    );
    script.named("message_stop", &json!({"type": "message_stop"}));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::wire::read;

    fn stream(api: Api, body: &str) -> (Answer, Vec<Step>) {
        let asked = read(api, body.as_bytes()).unwrap();
        let answer = Answer {
            id: "7".to_owned(),
            created: 1,
            model: "m".to_owned(),
            input: 3,
            text: "The first answer, ünd more of it".to_owned(),
            cut: false,
        };
        let steps = steps(
            &asked,
            &answer,
            Duration::from_millis(80),
            Duration::from_millis(320),
        );
        (answer, steps)
    }

    /// Event names (where there are any) and parsed data.
    fn events(steps: &[Step]) -> Vec<(String, Value)> {
        steps
            .iter()
            .map(|step| {
                let text = std::str::from_utf8(&step.bytes).unwrap();
                assert!(text.ends_with("\n\n"));
                let (name, data) = match text.strip_prefix("event: ") {
                    Some(rest) => rest.split_once('\n').unwrap(),
                    None => ("", text),
                };
                let data = data.strip_prefix("data: ").unwrap().trim_end();
                let data = if data == "[DONE]" {
                    json!("done")
                } else {
                    serde_json::from_str(data).unwrap()
                };
                (name.to_owned(), data)
            })
            .collect()
    }

    #[test]
    fn a_chat_stream_has_role_text_finish_usage_and_end() {
        let body = r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
        let (answer, steps) = stream(Api::Chat, body);
        let events = events(&steps);
        let text: String = events
            .iter()
            .filter_map(|(_, e)| e.pointer("/choices/0/delta/content")?.as_str())
            .collect();
        assert_eq!(text, answer.text);
        assert_eq!(events[0].1["choices"][0]["delta"]["role"], "assistant");
        assert!(events[0].1["usage"].is_null() && events[0].1.get("usage").is_some());
        let last: Vec<_> = events.iter().rev().take(3).map(|(_, e)| e.clone()).collect();
        assert_eq!(last[0], "done");
        assert_eq!(last[1]["choices"], json!([]));
        assert_eq!(last[1]["usage"]["completion_tokens"], answer.output());
        assert_eq!(last[2]["choices"][0]["finish_reason"], "stop");
    }

    #[test]
    fn usage_is_only_told_to_those_who_ask() {
        let (_, steps) = stream(Api::Chat, r#"{"model":"m","messages":[],"stream":true}"#);
        assert!(events(&steps).iter().all(|(_, e)| e.get("usage").is_none()));
    }

    #[test]
    fn a_responses_stream_ends_with_the_whole_response() {
        let (answer, steps) = stream(Api::Responses, r#"{"model":"m","input":"a","stream":true}"#);
        let events = events(&steps);
        for (i, (name, event)) in events.iter().enumerate() {
            assert_eq!(event["type"], name.as_str());
            assert_eq!(event["sequence_number"], i);
        }
        let (name, end) = events.last().unwrap();
        assert_eq!(name, "response.completed");
        assert_eq!(
            end.pointer("/response/usage/output_tokens"),
            Some(&json!(answer.output()))
        );
        assert_eq!(
            end.pointer("/response/output/0/content/0/text"),
            Some(&json!(answer.text))
        );
    }

    #[test]
    fn a_messages_stream_starts_with_input_and_ends_with_output() {
        let body = r#"{"model":"m","messages":[],"max_tokens":99,"stream":true}"#;
        let (answer, steps) = stream(Api::Messages, body);
        let events = events(&steps);
        assert!(events.iter().all(|(name, e)| e["type"] == name.as_str()));
        assert_eq!(events[0].1["message"]["usage"]["input_tokens"], 3);
        assert_eq!(
            events[events.len() - 2].1["usage"]["output_tokens"],
            answer.output()
        );
        assert_eq!(events[events.len() - 1].0, "message_stop");
    }

    #[test]
    fn steps_are_paced_and_count_up() {
        let (answer, steps) = stream(Api::Chat, r#"{"model":"m","messages":[],"stream":true}"#);
        let total: Duration = steps.iter().map(|s| s.pause).sum();
        assert_eq!(steps[0].pause, Duration::from_millis(80));
        assert!(
            total > Duration::from_millis(395) && total <= Duration::from_millis(400),
            "{total:?}"
        );
        assert!(steps.is_sorted_by_key(|s| s.output));
        assert_eq!(steps.last().map(|s| s.output), Some(answer.output()));
    }

    #[test]
    fn pieces_lose_nothing() {
        for text in ["", "a", "a b", " a  b ", "ü é", "  "] {
            assert_eq!(pieces(text).concat(), text);
        }
    }
}
