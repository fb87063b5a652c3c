//! What reading costs: requests, whole answers, streams by event, and hiding what was not asked for.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fusebox::dialect::include_usage::{Hider, inject};
use fusebox::dialect::meter::{AnswerHead, Ended, Meter, MeterOptions};
use fusebox::dialect::request;
use fusebox::dialect::table::{Api, route};
use http::{HeaderMap, HeaderValue, Method};

const OPTIONS: MeterOptions = MeterOptions {
    max_inspect_bytes: 1 << 20,
    keep_text: false,
};

fn headers(content_type: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))])
}

fn request_body() -> String {
    let text = "Explain how a proxy counts tokens while bytes flow through. ".repeat(7);
    format!(
        r#"{{"model":"gpt-4o-mini","messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"{text}"}}],"temperature":0.7,"max_tokens":256,"stream":true}}"#
    )
}

fn chat_answer() -> String {
    let text = "the proxy counts tokens while bytes flow through ".repeat(12);
    format!(
        r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini-2024-07-18","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":129,"completion_tokens":112,"total_tokens":241,"prompt_tokens_details":{{"cached_tokens":64,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0}}}},"service_tier":"default"}}"#
    )
}

fn embeddings_answer() -> String {
    let vector: Vec<String> = (0..1536)
        .map(|i| format!("{:.8}", f64::from(i) * 0.000_013))
        .collect();
    format!(
        r#"{{"object":"list","data":[{{"object":"embedding","index":0,"embedding":[{}]}}],"model":"text-embedding-3-small","usage":{{"prompt_tokens":8,"total_tokens":8}}}}"#,
        vector.join(",")
    )
}

fn chat_events(usage_null: bool) -> Vec<Bytes> {
    let null = if usage_null { r#","usage":null"# } else { "" };
    let event = |delta: &str, finish: &str| {
        Bytes::from(format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"gpt-4o-mini-2024-07-18\",\"system_fingerprint\":\"fp_34a54ae93c\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]{null}}}\n\n"
        ))
    };
    let mut events = vec![event(r#"{"role":"assistant","content":""}"#, "null")];
    events.extend((0..200).map(|_| event(r#"{"content":" tokens"}"#, "null")));
    events.push(event("{}", "\"stop\""));
    events.push(Bytes::from_static(
        b"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"choices\":[],\"usage\":{\"prompt_tokens\":129,\"completion_tokens\":200,\"total_tokens\":329}}\n\n",
    ));
    events.push(Bytes::from_static(b"data: [DONE]\n\n"));
    events
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    let body = request_body();
    let route_of = || route(&Method::POST, "/v1/chat/completions", None);
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("route", |b| b.iter(|| black_box(route_of())));
    let chat = route_of();
    group.bench_function("read 600 B", |b| {
        b.iter(|| black_box(request::read(&chat, Some("application/json"), body.as_bytes())))
    });
    let facts = request::read(&chat, Some("application/json"), body.as_bytes());
    group.bench_function("inject include_usage", |b| {
        b.iter(|| black_box(inject(&chat, &facts, body.as_bytes())))
    });
    group.finish();
}

fn whole_answers(c: &mut Criterion) {
    let mut group = c.benchmark_group("whole answer");
    for (name, api, body) in [
        ("chat 1.2 KB", Api::OpenAiChat, chat_answer()),
        ("embeddings 18 KB", Api::OpenAiEmbeddings, embeddings_answer()),
    ] {
        let headers = headers("application/json");
        let head = AnswerHead {
            api,
            status: 200,
            headers: &headers,
            stream_asked: false,
        };
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut meter = Meter::new(&head, OPTIONS);
                meter.see(body.as_bytes());
                black_box(meter.finish(Ended::Whole))
            })
        });
    }
    group.finish();
}

fn streams(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream of 204 events");
    let events = chat_events(false);
    let coalesced: Vec<Bytes> = events.chunks(16).map(|c| Bytes::from(c.concat())).collect();
    let headers = headers("text/event-stream");
    let head = AnswerHead {
        api: Api::OpenAiChat,
        status: 200,
        headers: &headers,
        stream_asked: true,
    };
    group.throughput(Throughput::Elements(events.len() as u64));
    for (name, pieces) in [
        ("meter, one event a piece", &events),
        ("meter, 16 events a piece", &coalesced),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut meter = Meter::new(&head, OPTIONS);
                for piece in pieces {
                    meter.see(piece);
                }
                black_box(meter.finish(Ended::Whole))
            })
        });
    }
    let asked = chat_events(true);
    group.bench_function("hide usage, one event a piece", |b| {
        b.iter(|| {
            let mut hider = Hider::new();
            let mut length = 0;
            for piece in &asked {
                hider.push(piece.clone(), &mut |out| length += out.len());
            }
            hider.end(&mut |out| length += out.len());
            black_box(length)
        })
    });
    group.finish();
}

criterion_group!(benches, requests, whole_answers, streams);
criterion_main!(benches);
