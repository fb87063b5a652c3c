//! What the mock upstream serves, and what the load generator checks it against.
use std::fmt::Write;

pub const MODEL: &str = "gpt-4o-mini-2024-07-18";

/// System-wide monotonic clock: comparable between processes of one machine.
pub fn mono_ns() -> u64 {
    let mut ts = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: ts is a valid out pointer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut ts) };
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

const WORDS: [&str; 16] = [
    " the", " proxy", " counts", " tokens", " while", " bytes", " flow", " through", " without", " being",
    " copied", " twice", " over", " a", " single", " core",
];

pub fn chat_body() -> String {
    let mut content = String::new();
    for i in 0..110 {
        content.push_str(WORDS[i * 7 % 16]);
    }
    format!(
        r#"{{"id":"chatcmpl-C9tQe4b1XkzJ7mVnS0fRwYh2LpUaD","object":"chat.completion","created":1760000000,"model":"{MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":129,"completion_tokens":112,"total_tokens":241,"prompt_tokens_details":{{"cached_tokens":64,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}}},"service_tier":"default","system_fingerprint":"fp_34a54ae93c"}}"#,
        content.trim_start()
    )
}

pub fn embeddings_body() -> String {
    let mut s = String::from(r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":["#);
    let mut x: u32 = 12345;
    for i in 0..1536 {
        x = x.wrapping_mul(1664525).wrapping_add(1013904223);
        if i > 0 {
            s.push(',');
        }
        let v = (x as f64 / u32::MAX as f64 - 0.5) * 0.1;
        let _ = write!(s, "{v:.8}");
    }
    s.push_str(r#"]}],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}"#);
    s
}

fn event(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-C9tQe4b1XkzJ7mVnS0fRwYh2LpUaD\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"{MODEL}\",\"system_fingerprint\":\"fp_34a54ae93c\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
    )
}

pub fn content_of(i: usize) -> &'static str {
    WORDS[i * 7 % 16]
}

/// `ts`: when given, the content is `t` and 19 digits of monotonic ns.
pub fn content_event(i: usize, ts: Option<u64>) -> String {
    match ts {
        None => event(&format!("{{\"content\":\"{}\"}}", content_of(i)), "null"),
        Some(t) => event(&format!("{{\"content\":\"t{t:019}\"}}"), "null"),
    }
}

pub fn first_event() -> String {
    event(r#"{"role":"assistant","content":"","refusal":null}"#, "null")
}

/// The three closing events: finish reason, usage, [DONE].
pub fn closing_events(n: usize) -> [String; 3] {
    [
        event("{}", "\"stop\""),
        format!(
            "data: {{\"id\":\"chatcmpl-C9tQe4b1XkzJ7mVnS0fRwYh2LpUaD\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,\"model\":\"{MODEL}\",\"system_fingerprint\":\"fp_34a54ae93c\",\"choices\":[],\"usage\":{{\"prompt_tokens\":129,\"completion_tokens\":{n},\"total_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":64,\"audio_tokens\":0}},\"completion_tokens_details\":{{\"reasoning_tokens\":0,\"audio_tokens\":0,\"accepted_prediction_tokens\":0,\"rejected_prediction_tokens\":0}}}}}}\n\n",
            n + 129
        ),
        "data: [DONE]\n\n".to_string(),
    ]
}

/// Number of SSE events in a stream of `n` content chunks.
pub fn events_in(n: usize) -> usize {
    n + 4
}

/// The whole SSE body (without HTTP chunk framing), untimed.
pub fn sse_body(n: usize) -> Vec<u8> {
    let mut v = first_event().into_bytes();
    for i in 0..n {
        v.extend_from_slice(content_event(i, None).as_bytes());
    }
    for e in closing_events(n) {
        v.extend_from_slice(e.as_bytes());
    }
    v
}

/// One HTTP/1.1 chunk around `data`.
pub fn framed(data: &[u8]) -> Vec<u8> {
    let mut v = format!("{:x}\r\n", data.len()).into_bytes();
    v.extend_from_slice(data);
    v.extend_from_slice(b"\r\n");
    v
}

/// Request body. The knobs ride in the prompt because gateways drop unknown headers.
pub fn request_body(model: &str, stream: bool, knobs: &str) -> String {
    let mut filler = String::new();
    for i in 0..60 {
        filler.push_str(WORDS[i * 5 % 16]);
    }
    let tail = if stream {
        r#","stream":true,"stream_options":{"include_usage":true}"#
    } else {
        ""
    };
    format!(
        r#"{{"model":"{model}","messages":[{{"role":"system","content":"You are a helpful assistant."}},{{"role":"user","content":"Explain how{filler} [[mock {knobs}]]"}}],"temperature":0.7,"max_tokens":256{tail}}}"#
    )
}
