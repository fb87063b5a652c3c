//! Endings and error events, API by API: as bytes, and as the meter reads them again.

use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::dialect::error_body::{Refusal, RefusalKind};
use crate::dialect::eventstream::tests::frame;
use crate::dialect::meter::{AnswerHead, Ended, Meter, MeterOptions};

const SSE: &str = "text/event-stream";
const AWS: &str = "application/vnd.amazon.eventstream";

fn meter(api: Api, content_type: &str) -> Meter {
    let mut headers = HeaderMap::new();
    headers.insert(
        HeaderName::from_static("content-type"),
        HeaderValue::from_str(content_type).unwrap(),
    );
    let head = AnswerHead {
        api,
        status: 200,
        headers: &headers,
        stream_asked: true,
    };
    let options = MeterOptions {
        max_inspect_bytes: 1 << 20,
        keep_text: true,
    };
    Meter::new(&head, options)
}

/// A stream: its API, content type, pieces, and after how many of them it is watched.
struct Case {
    api: Api,
    content_type: &'static str,
    pieces: Vec<Vec<u8>>,
}

fn case<B: AsRef<[u8]>>(api: Api, content_type: &'static str, pieces: impl IntoIterator<Item = B>) -> Case {
    Case {
        api,
        content_type,
        pieces: pieces.into_iter().map(|p| p.as_ref().to_vec()).collect(),
    }
}

fn spent(asked: bool) -> Spent {
    Spent {
        input: 7,
        output: 0,
        asked,
        began: 1_700_000_000,
    }
}

impl Case {
    /// The ending after all pieces, when it is watched from piece `from` on; and what the meter makes of all of it.
    fn end(&self, from: usize, asked: bool) -> Option<(String, Meter)> {
        let mut meter = meter(self.api, self.content_type);
        for (i, piece) in self.pieces.iter().enumerate() {
            if i == from {
                meter.watch(false);
            }
            meter.see(piece);
        }
        let end = meter.end_early(spent(asked))?;
        let measured = meter.finish(Ended::BrokenOff);
        assert!(measured.finish_reason.is_some(), "{:?}", self.api);
        // What a client reads: everything, from the beginning.
        let mut reads = self::meter(self.api, self.content_type);
        for piece in &self.pieces {
            reads.see(piece);
        }
        reads.see(&end);
        Some((String::from_utf8_lossy(&end).into_owned(), reads))
    }
}

/// The data of server-sent events, as JSON.
fn data(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|l| l.strip_prefix("data: "));
    lines
        .map(|l| serde_json::from_str(l).unwrap_or_else(|_| json!(l)))
        .collect()
}

fn names(text: &str) -> Vec<&str> {
    text.lines().filter_map(|l| l.strip_prefix("event: ")).collect()
}

fn chunk(more: &str) -> String {
    format!(
        "data: {{\"id\":\"c-1\",\"object\":\"chat.completion.chunk\",\"created\":9,\"model\":\"gpt-4o\",{more}}}\n\n"
    )
}

fn chat(n: u64) -> Case {
    let mut pieces = vec![chunk(
        "\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]",
    )];
    for i in 0..n {
        pieces.push(chunk(&format!(
            "\"choices\":[{{\"index\":{i},\"delta\":{{\"content\":\"eight ch\"}},\"finish_reason\":null}}]"
        )));
    }
    case(Api::OpenAiChat, SSE, pieces)
}

#[test]
fn chat_ends_every_choice_that_is_open() {
    let (end, reads) = chat(1).end(0, false).unwrap();
    let events = data(&end);
    assert_eq!(
        events,
        [
            json!({"id": "c-1", "object": "chat.completion.chunk", "created": 9, "model": "gpt-4o",
                "choices": [{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}]}),
            json!("[DONE]"),
        ]
    );
    assert!(end.ends_with("data: [DONE]\n\n") && reads.said_end());
    assert_eq!(
        reads.finish(Ended::Whole).finish_reason.as_deref(),
        Some("length")
    );

    let mut three = chat(3);
    three
        .pieces
        .push(chunk("\"choices\":[{\"index\":1,\"delta\":{},\"finish_reason\":\"stop\"}]").into_bytes());
    let (end, _) = three.end(0, true).unwrap();
    let events = data(&end);
    let ended: Vec<_> = events
        .iter()
        .filter_map(|e| e["choices"][0]["index"].as_u64())
        .collect();
    assert_eq!(ended, [0, 2]);
    assert_eq!(
        events[2]["usage"],
        json!({"prompt_tokens": 7, "completion_tokens": 6, "total_tokens": 13})
    );
    assert_eq!(events[2]["choices"], json!([]));
    assert_eq!(events[3], "[DONE]");
}

#[test]
fn a_stream_that_ends_by_itself_is_not_ended() {
    let mut done = chat(1);
    done.pieces
        .push(chunk("\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]").into_bytes());
    assert!(done.end(0, true).is_none());
    let mut failed = chat(1);
    failed
        .pieces
        .push(b"data: {\"error\":{\"message\":\"m\",\"type\":\"t\"}}\n\n".to_vec());
    assert!(failed.end(0, true).is_none());
    let mut inside = chat(1);
    inside.pieces.push(b"data: {\"choices\":[".to_vec());
    assert!(inside.end(0, true).is_none());
    assert!(chat(1).end(99, true).is_none(), "nobody watched it");
}

#[test]
fn completions_end_with_a_text() {
    let piece = "data: {\"id\":\"x\",\"object\":\"text_completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"text\":\"abcd\",\"index\":0,\"finish_reason\":null}]}\n\n";
    let (end, reads) = case(Api::OpenAiCompletions, SSE, [piece]).end(0, false).unwrap();
    assert_eq!(
        data(&end)[0],
        json!({"id": "x", "object": "text_completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "text": "", "logprobs": null, "finish_reason": "length"}]})
    );
    assert_eq!(reads.finish(Ended::Whole).output_text.as_deref(), Some("abcd"));
}

const MESSAGE: [&str; 4] = [
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"claude\",\"content\":[],\"stop_reason\":null,\"usage\":{\"input_tokens\":11,\"output_tokens\":1}}}\n\n",
    "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
    "event: ping\ndata: {\"type\":\"ping\"}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello you\"}}\n\n",
];

#[test]
fn messages_close_their_block_and_say_why() {
    for from in [0, 3] {
        let (end, reads) = case(Api::AnthropicMessages, SSE, MESSAGE)
            .end(from, false)
            .unwrap();
        assert_eq!(
            names(&end),
            ["content_block_stop", "message_delta", "message_stop"]
        );
        let events = data(&end);
        assert_eq!(events[0], json!({"type": "content_block_stop", "index": 0}));
        assert_eq!(
            events[1]["delta"],
            json!({"stop_reason": "max_tokens", "stop_sequence": null})
        );
        assert_eq!(events[1]["usage"], json!({"output_tokens": 3}));
        assert!(reads.said_end());
        let m = reads.finish(Ended::Whole);
        assert_eq!(m.normalised.total(), Some(14));
        assert_eq!(m.output_text.as_deref(), Some("Hello you"));
    }
    let stop = "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n";
    let closed = MESSAGE.into_iter().chain([stop]);
    let (end, _) = case(Api::AnthropicMessages, SSE, closed).end(0, false).unwrap();
    assert_eq!(names(&end), ["message_delta", "message_stop"]);
    let delta = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":3}}\n\n";
    let over = MESSAGE.into_iter().chain([stop, delta]);
    assert!(case(Api::AnthropicMessages, SSE, over).end(0, false).is_none());
}

fn response(kind: &str, sequence: u64, more: &str) -> String {
    format!("event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":{sequence},{more}}}\n\n")
}

fn responses() -> Vec<String> {
    let object = "{\"id\":\"resp_1\",\"object\":\"response\",\"created_at\":5,\"status\":\"in_progress\",\"model\":\"gpt-4o\",\"output\":[],\"usage\":null,\"tools\":[],\"metadata\":{\"a\":\"b\"}}";
    vec![
        response("response.created", 0, &format!("\"response\":{object}")),
        response("response.in_progress", 1, &format!("\"response\":{object}")),
        response(
            "response.output_item.added",
            2,
            "\"output_index\":0,\"item\":{\"id\":\"fc\",\"type\":\"function_call\",\"name\":\"f\",\"call_id\":\"k\",\"arguments\":\"\",\"status\":\"in_progress\"}",
        ),
        response(
            "response.function_call_arguments.delta",
            3,
            "\"output_index\":0,\"item_id\":\"fc\",\"delta\":\"{}\"",
        ),
        response(
            "response.output_item.done",
            4,
            "\"output_index\":0,\"item\":{\"id\":\"fc\",\"type\":\"function_call\",\"name\":\"f\",\"call_id\":\"k\",\"arguments\":\"{}\",\"status\":\"completed\"}",
        ),
        response(
            "response.output_item.added",
            5,
            "\"output_index\":1,\"item\":{\"id\":\"ms\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"status\":\"in_progress\"}",
        ),
        response(
            "response.content_part.added",
            6,
            "\"output_index\":1,\"content_index\":0,\"item_id\":\"ms\",\"part\":{\"type\":\"output_text\",\"text\":\"\",\"annotations\":[]}",
        ),
        response(
            "response.output_text.delta",
            7,
            "\"output_index\":1,\"content_index\":0,\"item_id\":\"ms\",\"delta\":\"Good \"",
        ),
        response(
            "response.output_text.delta",
            8,
            "\"output_index\":1,\"content_index\":0,\"item_id\":\"ms\",\"delta\":\"day\"",
        ),
    ]
}

#[test]
fn a_response_is_incomplete_and_repeats_its_output() {
    let (end, reads) = case(Api::OpenAiResponses, SSE, responses())
        .end(0, false)
        .unwrap();
    assert_eq!(
        names(&end),
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete"
        ]
    );
    let events = data(&end);
    let numbers: Vec<_> = events
        .iter()
        .map(|e| e["sequence_number"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [9, 10, 11, 12]);
    assert_eq!(events[0]["text"], "Good day");
    assert_eq!(
        (&events[0]["item_id"], &events[0]["output_index"]),
        (&json!("ms"), &json!(1))
    );
    assert_eq!(events[1]["part"]["text"], "Good day");
    assert_eq!(events[2]["item"]["status"], "incomplete");
    let last = &events[3]["response"];
    assert_eq!(
        (
            &last["id"],
            &last["status"],
            &last["incomplete_details"]["reason"],
            &last["metadata"]["a"]
        ),
        (
            &json!("resp_1"),
            &json!("incomplete"),
            &json!("max_output_tokens"),
            &json!("b")
        )
    );
    assert_eq!(last["output"][0]["arguments"], "{}");
    assert_eq!(last["output"][1]["content"][0]["text"], "Good day");
    assert_eq!(last["usage"]["total_tokens"], 10);
    let m = reads.finish(Ended::Whole);
    assert_eq!(m.output_text.as_deref(), Some("Good day"));
    assert_eq!(m.finish_reason.as_deref(), Some("incomplete"));
    assert_eq!(m.finish_detail.as_deref(), Some("max_output_tokens"));
    assert_eq!(m.tool_calls, [Some("f".to_owned())]);
}

#[test]
fn a_response_that_was_not_seen_from_its_beginning_repeats_nothing() {
    let pieces = responses();
    let (end, reads) = case(Api::OpenAiResponses, SSE, &pieces).end(8, false).unwrap();
    assert_eq!(names(&end), ["response.incomplete"]);
    let last = &data(&end)[0];
    assert_eq!(last["sequence_number"], 9);
    assert_eq!(last["response"]["output"], json!([]));
    assert_eq!(last["response"]["created_at"], 1_700_000_000);
    assert_eq!(
        reads.finish(Ended::Whole).output_text.as_deref(),
        Some("Good day")
    );

    // Too much to be kept.
    let mut long = pieces;
    let piece = "x".repeat(9000);
    for i in 0..40 {
        long.push(response(
            "response.output_text.delta",
            9 + i,
            &format!("\"output_index\":1,\"content_index\":0,\"item_id\":\"ms\",\"delta\":\"{piece}\""),
        ));
    }
    let (end, _) = case(Api::OpenAiResponses, SSE, long).end(0, false).unwrap();
    assert_eq!(names(&end), ["response.incomplete"]);
    assert_eq!(data(&end)[0]["response"]["id"], "resp_1");
}

#[test]
fn gemini_ends_as_events_and_as_an_array() {
    let element = "{\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"abcdefgh\"}],\"role\":\"model\"}}],\"modelVersion\":\"g\",\"responseId\":\"r\"}";
    let events = format!("data: {element}\r\n\r\n");
    let (end, reads) = case(Api::GeminiGenerateContent, SSE, [&events, &events])
        .end(0, false)
        .unwrap();
    assert!(end.starts_with("data: ") && end.ends_with("\r\n\r\n"));
    let last = &data(&end)[0];
    assert_eq!(last["candidates"][0]["finishReason"], "MAX_TOKENS");
    assert_eq!(
        (&last["modelVersion"], &last["responseId"]),
        (&json!("g"), &json!("r"))
    );
    assert_eq!(
        last["usageMetadata"],
        json!({"promptTokenCount": 7, "candidatesTokenCount": 4, "totalTokenCount": 11})
    );
    assert_eq!(
        reads.finish(Ended::Whole).finish_reason.as_deref(),
        Some("MAX_TOKENS")
    );

    for between in ["", "\n", ",\n", " ,\r\n"] {
        let pieces = [format!("[{element}\n,\n"), format!("{element}{between}")];
        let json = "application/json; charset=UTF-8";
        let (end, _) = case(Api::GeminiGenerateContent, json, &pieces)
            .end(0, false)
            .unwrap();
        let all: Value = serde_json::from_str(&(pieces.concat() + &end)).unwrap();
        assert_eq!(all.as_array().unwrap().len(), 3, "{between:?}");
        assert_eq!(all[2]["candidates"][0]["finishReason"], "MAX_TOKENS");
    }
    let number = element.replace("}}],\"model", "},\"finishReason\":0}],\"model");
    let (end, _) = case(Api::GeminiGenerateContent, SSE, [format!("data: {number}\n\n")])
        .end(0, false)
        .unwrap();
    assert_eq!(data(&end)[0]["candidates"][0]["finishReason"], 2);
}

#[test]
fn ollama_is_done() {
    for (api, part) in [
        (
            Api::OllamaChat,
            "\"message\":{\"role\":\"assistant\",\"content\":\"abcd\"}",
        ),
        (Api::OllamaGenerate, "\"response\":\"abcd\""),
    ] {
        let line =
            format!("{{\"model\":\"l\",\"created_at\":\"2026-01-01T00:00:00Z\",{part},\"done\":false}}\n");
        let (end, reads) = case(api, "application/x-ndjson", [&line, &line])
            .end(0, false)
            .unwrap();
        let last: Value = serde_json::from_str(&end).unwrap();
        assert!(end.ends_with("}\n"));
        assert_eq!(
            (&last["done"], &last["done_reason"]),
            (&json!(true), &json!("length"))
        );
        assert_eq!(
            (&last["eval_count"], &last["created_at"]),
            (&json!(2), &json!("2026-01-01T00:00:00Z"))
        );
        let m = reads.finish(Ended::Whole);
        assert_eq!(m.output_text.as_deref(), Some("abcdabcd"));
        assert_eq!(m.normalised.total(), Some(9));
    }
}

#[test]
fn cohere_ends_its_message() {
    let pieces = [
        "event: message-start\ndata: {\"type\":\"message-start\",\"id\":\"x\",\"delta\":{\"message\":{\"role\":\"assistant\",\"content\":[]}}}\n\n",
        "event: content-start\ndata: {\"type\":\"content-start\",\"index\":0,\"delta\":{\"message\":{\"content\":{\"type\":\"text\",\"text\":\"\"}}}}\n\n",
        "event: content-delta\ndata: {\"type\":\"content-delta\",\"index\":0,\"delta\":{\"message\":{\"content\":{\"text\":\"Bonjour!\"}}}}\n\n",
    ];
    let (end, reads) = case(Api::CohereChat, SSE, pieces).end(0, false).unwrap();
    assert_eq!(names(&end), ["content-end", "message-end"]);
    assert_eq!(
        data(&end)[1]["delta"]["usage"]["tokens"],
        json!({"input_tokens": 7, "output_tokens": 2})
    );
    let m = reads.finish(Ended::Whole);
    assert_eq!(m.finish_reason.as_deref(), Some("MAX_TOKENS"));
    let old = "{\"event_type\":\"text-generation\",\"text\":\"a\",\"is_finished\":false}\n";
    assert!(
        case(Api::CohereChat, "application/stream+json", [old])
            .end(0, false)
            .is_none()
    );
}

fn aws(name: &str, payload: &str) -> Vec<u8> {
    frame(
        &[(":event-type", name), (":message-type", "event")],
        payload.as_bytes(),
    )
}

#[test]
fn converse_ends_with_its_own_messages() {
    let pieces = [
        aws("messageStart", "{\"role\":\"assistant\"}"),
        aws(
            "contentBlockDelta",
            "{\"contentBlockIndex\":0,\"delta\":{\"text\":\"abcdefgh\"}}",
        ),
    ];
    let converse = case(Api::BedrockConverse, AWS, pieces);
    let (_, reads) = converse.end(0, false).unwrap();
    let m = reads.finish(Ended::Whole);
    assert_eq!(m.finish_reason.as_deref(), Some("max_tokens"));
    assert_eq!(m.normalised.total(), Some(9));
    let invoke = case(Api::BedrockInvoke, AWS, [aws("chunk", "{\"bytes\":\"e30=\"}")]);
    assert!(invoke.end(0, false).is_none(), "its family is not known");
}

#[test]
fn messages_of_aws_bear_their_checksums() {
    let mut out = Vec::new();
    eventstream::write(&mut out, &[(":event-type", "x")], b"{}");
    let be = |at: usize| u32::from_be_bytes(out[at..at + 4].try_into().unwrap());
    assert_eq!(be(0) as usize, out.len());
    assert_eq!(be(8), crc32fast::hash(&out[..8]));
    assert_eq!(be(out.len() - 4), crc32fast::hash(&out[..out.len() - 4]));
}

fn refusal() -> Refusal {
    let mut refusal = Refusal::new(
        403,
        RefusalKind::Contained,
        "fusebox_contained",
        "stopped \"now\"".into(),
        "req-9",
    );
    refusal.incident = Some("inc-1".into());
    refusal.rule = Some("r".into());
    refusal
}

/// What is sent after `pieces` when the sender is contained.
fn interrupted(api: Api, content_type: &str, pieces: &[&str]) -> Option<String> {
    let mut meter = meter(api, content_type);
    for piece in pieces {
        meter.see(piece.as_bytes());
    }
    let bytes = meter.interruption(false, &refusal())?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // Nothing ends after it that did not end before, and the meter sees the error.
    meter.see(&bytes);
    let m = meter.finish(Ended::BrokenOff);
    let told = m.error_type.is_some() || m.error_code.is_some() || m.finish_reason.is_some();
    assert!(told || api == Api::OllamaChat, "{api:?}: {text}");
    Some(text)
}

#[test]
fn each_api_tells_of_its_own_error() {
    let event = |text: Option<String>| data(&text.unwrap()).remove(0);
    for api in [Api::OpenAiChat, Api::OpenAiCompletions] {
        let text = interrupted(api, SSE, &[&chunk("\"choices\":[]")]).unwrap();
        assert!(text.starts_with("data: {\"error\":") && text.ends_with("}\n\n") && !text.contains("[DONE]"));
        let error = &data(&text)[0]["error"];
        assert_eq!(
            (&error["code"], &error["type"]),
            (&json!("fusebox_contained"), &json!("permission_error"))
        );
        assert!(error["message"].as_str().unwrap().contains("inc-1"));
    }
    let text = interrupted(Api::OpenAiResponses, SSE, &[&responses()[0]]).unwrap();
    assert_eq!(names(&text), ["error"]);
    let error = &data(&text)[0];
    assert_eq!(
        (&error["type"], &error["code"]),
        (&json!("error"), &json!("fusebox_contained"))
    );
    assert_eq!(error["error"]["fusebox"]["incident"], "inc-1");
    let text = interrupted(Api::AnthropicMessages, SSE, &[MESSAGE[0]]).unwrap();
    assert_eq!(names(&text), ["error"]);
    assert_eq!(data(&text)[0]["error"]["type"], "permission_error");
    assert!(!text.contains("message_stop"));
    let gemini = interrupted(
        Api::GeminiGenerateContent,
        SSE,
        &["data: {\"candidates\":[]}\r\n\r\n"],
    );
    assert!(gemini.as_ref().unwrap().ends_with("\r\n\r\n"));
    let error = event(gemini);
    assert_eq!(
        (&error["error"]["code"], &error["error"]["status"]),
        (&json!(403), &json!("PERMISSION_DENIED"))
    );
    let cohere = interrupted(
        Api::CohereChat,
        SSE,
        &["event: message-start\ndata: {\"type\":\"message-start\"}\n\n"],
    );
    assert_eq!(event(cohere)["delta"]["finish_reason"], "ERROR");
    let ollama = interrupted(
        Api::OllamaChat,
        "application/x-ndjson",
        &["{\"model\":\"l\",\"done\":false}\n"],
    );
    let ollama: Value = serde_json::from_str(&ollama.unwrap()).unwrap();
    assert!(ollama["error"].as_str().unwrap().contains("inc-1"));
    for (sent, elements) in [
        ("[{\"candidates\":[]}\n", 2),
        ("[{\"candidates\":[]}\n,\n", 2),
        ("[", 1),
    ] {
        let array = interrupted(Api::GeminiGenerateContent, "application/json", &[sent]).unwrap();
        let all: Value = serde_json::from_str(&(sent.to_owned() + &array)).unwrap();
        assert_eq!(all.as_array().unwrap().len(), elements, "{sent}");
        assert_eq!(all[elements - 1]["error"]["code"], 403);
    }
    let text = interrupted(Api::BedrockConverse, AWS, &[]).unwrap();
    assert!(text.contains("accessDeniedException") && text.contains("exception"));
    assert!(interrupted(Api::Other, SSE, &["data: x\n\n"]).is_none());
    assert!(
        interrupted(Api::OpenAiChat, SSE, &["data: {\"cho"]).is_none(),
        "inside of an event"
    );
}

#[test]
fn before_the_first_byte_an_error_can_be_told() {
    assert!(interrupted(Api::OpenAiChat, SSE, &[]).is_some());
    assert!(interrupted(Api::OllamaChat, "application/x-ndjson", &[]).is_some());
    assert!(interrupted(Api::OpenAiChat, "application/json", &[]).is_none());
}

#[test]
fn the_end_of_an_event_is_found_within_a_piece() {
    for (api, content_type, sent, piece, end) in [
        (Api::OpenAiChat, SSE, "data: {\"a\"", ":1}\n\ndata: {}\n\n", 5),
        (Api::OpenAiChat, SSE, "data: {}\n", "\nrest", 1),
        (Api::GeminiGenerateContent, SSE, "data: {", "}\r\n\r\ndata", 5),
        (Api::OllamaChat, "application/x-ndjson", "{\"a\"", ":1}\n{", 4),
        (
            Api::GeminiGenerateContent,
            "application/json",
            "[{\"a\":\"}",
            "\"}\n,{}",
            2,
        ),
    ] {
        let mut meter = meter(api, content_type);
        meter.see(sent.as_bytes());
        assert!(!meter.is_between_events(), "{sent}");
        assert_eq!(meter.see_event_end(piece.as_bytes()), Some(end), "{sent}|{piece}");
    }
    let mut meter = meter(Api::OpenAiChat, SSE);
    assert_eq!(meter.see_event_end(b"data: {}\n"), None);
}

proptest! {
    /// Whatever a stream says, its ending is one that can be read, or there is none.
    #[test]
    fn any_stream_gets_a_readable_end_or_none(
        api in prop::sample::select(vec![Api::OpenAiChat, Api::OpenAiResponses, Api::AnthropicMessages, Api::GeminiGenerateContent, Api::CohereChat]),
        events in proptest::collection::vec("(\\{\"(type|choices|index|item|delta|response|object)\":(1|null|\"response.output_item.added\"|\"content_block_start\"|\\{\\}|\\[\\]|\\[\\{\"index\":[0-9]\\}\\])\\}|[ -~]{0,20})", 0..8),
    ) {
        let mut meter = meter(api, SSE);
        meter.watch(true);
        for event in &events {
            meter.see(format!("data: {event}\n\n").as_bytes());
        }
        if let Some(end) = meter.end_early(spent(true)) {
            let text = String::from_utf8(end).unwrap();
            prop_assert!(text.ends_with("\n\n") || text.ends_with("\r\n\r\n"));
            for line in text.lines().filter_map(|l| l.strip_prefix("data: ")) {
                prop_assert!(line == "[DONE]" || serde_json::from_str::<Value>(line).is_ok(), "{}", line);
            }
        }
    }
}
