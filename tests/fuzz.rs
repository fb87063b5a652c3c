//! Bounded fuzzing of everything that reads what strangers write: answers, events, requests, the configuration.
//!
//! It starts from the fixtures and mutates them by chance, for `FUSEBOX_FUZZ_SECONDS` (5 by default) for each target,
//! on the stable toolchain. `FUSEBOX_FUZZ_SEED` repeats a run. A failure prints its seed and input.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test ends where it cannot go on"
)]

#[path = "it/support/chance.rs"]
mod chance;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fusebox::clock::Clock;
use fusebox::config::{self, Overrides};
use fusebox::dialect::fingerprint::{agent_fingerprint, prefix_key};
use fusebox::dialect::include_usage::{Hider, inject, refusal_names_stream_options};
use fusebox::dialect::meter::{AnswerHead, Ended, Measured, Meter, MeterOptions};
use fusebox::dialect::request;
use fusebox::dialect::rewrite::replace_model;
use fusebox::dialect::table::{Api, route};
use serde_json::Value;

use crate::chance::{Chance, Cut, cut};

/// Words that mean something to one of the readers; mutations put them where they do not belong.
const WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\\",
    "\\u",
    "\\ud83d",
    "null",
    "true",
    "-1",
    "1e999",
    "0",
    "18446744073709551616",
    "\r\n",
    "\n\n",
    "\r",
    "data:",
    "data: ",
    "event: ",
    "id: 1\n",
    ": ",
    "[DONE]",
    "data: [DONE]\n\n",
    "\"usage\":null",
    "\"usage\":{",
    "\"choices\":[]",
    "\"model\":\"m\"",
    "\"model\":",
    "\"prompt_tokens\":7",
    "\"stream\":true",
    "\"stream_options\":{}",
    "\"content\":\"",
    "\u{feff}",
    "\u{1f600}",
    "message_stop",
    "event: error\n",
    "- ",
    "  ",
    "#",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "|\n",
    ">\n",
    "? ",
    "${HOME}",
    "${",
    "5m",
    "2x",
    "+40%",
];

#[test]
fn answers_are_read_the_same_however_they_are_cut() {
    let apis = [
        Api::OpenAiChat,
        Api::OpenAiResponses,
        Api::OpenAiCompletions,
        Api::OpenAiEmbeddings,
        Api::OpenAiAudio,
        Api::AnthropicMessages,
        Api::AnthropicCountTokens,
        Api::GeminiGenerateContent,
        Api::GeminiInteractions,
        Api::OllamaChat,
        Api::OllamaGenerate,
        Api::CohereChat,
        Api::BedrockConverse,
        Api::BedrockInvoke,
        Api::Other,
    ];
    let types = [
        None,
        Some("text/event-stream"),
        Some("application/json"),
        Some("application/x-ndjson"),
        Some("application/stream+json"),
        Some("application/vnd.amazon.eventstream"),
        Some("text/plain"),
    ];
    fuzz("answers", &seeds("tests/fixtures"), |chance, input| {
        let mut headers = http::HeaderMap::new();
        if let Some(kind) = types[chance.below(types.len())] {
            headers.insert("content-type", kind.parse().unwrap());
        }
        if chance.below(12) == 0 {
            let coding = ["gzip", "deflate", "br", "zstd", "what"][chance.below(5)];
            headers.insert("content-encoding", coding.parse().unwrap());
        }
        let head = AnswerHead {
            api: apis[chance.below(apis.len())],
            status: [200, 200, 200, 400, 429, 500][chance.below(6)],
            headers: &headers,
            stream_asked: chance.below(2) == 0,
        };
        let options = MeterOptions {
            max_inspect_bytes: [64, 4 << 10, 1 << 20][chance.below(3)],
            keep_text: chance.below(2) == 0,
        };
        let ended = [Ended::Whole, Ended::BrokenOff][chance.below(2)];
        let read = |how: Cut| -> Measured {
            let mut meter = Meter::new(&head, options);
            for piece in cut(input, how) {
                meter.see(&piece);
                meter.said_end();
                meter.output_so_far();
            }
            meter.finish(ended)
        };
        let whole = read(Cut::Whole);
        assert_eq!(
            read(Cut::Random(chance.next())),
            whole,
            "another reading when cut"
        );
        if input.len() < 2_000 {
            assert_eq!(read(Cut::EveryByte), whole, "another reading byte by byte");
        }
    });
}

#[test]
fn hiding_usage_does_not_depend_on_cuts() {
    fuzz("hiding", &seeds("tests/fixtures/openai.chat"), |chance, input| {
        let hide = |how: Cut| {
            let (mut hider, mut out) = (Hider::new(), Vec::new());
            for piece in cut(input, how) {
                hider.push(Bytes::from(piece), &mut |b| out.extend_from_slice(&b));
            }
            hider.end(&mut |b| out.extend_from_slice(&b));
            out
        };
        let whole = hide(Cut::Whole);
        assert_eq!(hide(Cut::Random(chance.next())), whole, "another answer when cut");
        assert_eq!(hide(Cut::EveryByte), whole, "another answer byte by byte");
        assert!(whole.len() <= input.len(), "hiding adds nothing");
        if !input.windows(5).any(|w| w == b"usage") && !input.contains(&b'\\') {
            assert_eq!(whole, input, "nothing to hide, nothing to change");
        }
    });
}

#[test]
fn requests_are_read_and_changed_in_place() {
    let mut all = seeds("tests/fixtures");
    for text in [
        "{\"model\":\"gpt-4o\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"a \\u00e9 \\\"model\\\":\"}]}",
        " {\"tools\":[{\"function\":{\"parameters\":{\"model\":\"x\"}}}],\"stream_options\":{\"a\":1},\"stream\":true,\"model\" : \"m\"} ",
        "{\"contents\":[{\"parts\":[{\"text\":\"a\"},{\"inline_data\":{}}]}]}",
        "{\"metadata\":{\"session_id\":\"s\",\"agent\":\"a\"},\"max_tokens\":5,\"model\":\"claude\",\"system\":\"x\"}",
        "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n--b--\r\n",
    ] {
        all.push(text.as_bytes().to_vec());
    }
    let targets = [
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/openai/deployments/d%20x/chat/completions",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        "/model/anthropic.x%3A0/converse",
        "/api/chat",
        "/v2/chat",
        "/v1/audio/transcriptions",
        "/x/%zz/models//:generateContent",
    ];
    fuzz("requests", &all, |chance, input| {
        let path = targets[chance.below(targets.len())];
        let route = route(&http::Method::POST, path, None);
        let kind = [
            None,
            Some("application/json"),
            Some("multipart/form-data; boundary=b"),
        ][chance.below(3)];
        let facts = request::read(&route, kind, input);
        let _ = (facts.hints.metadata("agent"), facts.hints.execution());
        let key = prefix_key(&route, input);
        assert_eq!(prefix_key(&route, input), key);
        let _ = agent_fingerprint(&route, input);
        let _ = refusal_names_stream_options(400, input);
        let before: Option<Value> = serde_json::from_slice(input).ok();
        // What was no JSON before need not be any after; what was, is.
        if let (Some(asking), Some(mut before)) = (inject(&route, &facts, input), before.clone()) {
            let mut after: Value = serde_json::from_slice(&asking).expect("what was JSON stays JSON");
            assert_eq!(
                after.pointer("/stream_options/include_usage"),
                Some(&Value::Bool(true))
            );
            for side in [&mut after, &mut before] {
                side.as_object_mut().unwrap().remove("stream_options");
            }
            assert_eq!(after, before, "only stream_options changes");
        }
        // A model that cannot be told is not replaced: the proxy does not get this far. Where the path decides, what
        // the body says beside it does not matter.
        if facts.model.is_some()
            && route.path_model.is_none()
            && let Ok(changed) = replace_model(&route, &facts, path, input, "cheap-\u{e9}\"1")
            && let (Some(body), Some(mut before)) = (changed.body, before)
        {
            let mut after: Value = serde_json::from_slice(&body).expect("what was JSON stays JSON");
            assert_eq!(after["model"], "cheap-\u{e9}\"1", "{path}, {kind:?}");
            after["model"].take();
            before["model"].take();
            assert_eq!(after, before, "only the model changes");
        }
    });
}

#[test]
fn any_configuration_is_compiled_or_told_why_not() {
    let mut all = Vec::new();
    for name in ["config/fusebox.example.yaml", "config/minimal.yaml"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        all.extend(std::fs::read(path));
    }
    all.push(
        b"listeners:\n  - {listen: \"127.0.0.1:1\", agent: a}\nupstreams:\n  - name: a\n    url: https://a.example/v1\n    timeouts: {connect: 1s}\n\
          agent_incident_rules:\n  - name: r\n    metric: p95_response_time\n    baseline: 2.5s\n    threshold_upper: 2x\n    window: 15m\n    action: x\n\
          actions:\n  x:\n    steps:\n      - throttle: {requests_per_minute: 5}\n      - notify\n"
            .to_vec(),
    );
    fuzz("configuration", &all, |_, input| {
        let text = String::from_utf8_lossy(input);
        let env = |name: &str| (name == "HOME").then(|| "/home/a".to_owned());
        if let Err(problems) = config::compile("fuzz.yaml", &text, &Overrides::default(), &env) {
            assert!(!problems.is_empty(), "refused without a reason");
            assert_eq!(problems.lines().len(), problems.len());
            assert!(!problems.to_string().is_empty());
        }
    });
}

/// Every file below `directory` of the package.
fn seeds(directory: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut open = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(directory)];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(&at).expect("the fixtures are there") {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if !path.to_string_lossy().ends_with(".expect.json") {
                all.push(std::fs::read(&path).unwrap());
            }
        }
    }
    all.sort();
    all
}

/// Runs `target` on the seeds and on mutations of them until the time is up.
fn fuzz(name: &str, seeds: &[Vec<u8>], target: impl Fn(&mut Chance, &[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let limit = Duration::from_secs(number("FUSEBOX_FUZZ_SECONDS").unwrap_or(5));
    let clock = Clock::system();
    let begun = clock.mono();
    let first = number("FUSEBOX_FUZZ_SEED");
    let mut seed =
        first.unwrap_or_else(|| Chance::named(name).next() ^ clock.wall().unix_millis().unsigned_abs());
    let mut runs = 0_u64;
    while runs < seeds.len() as u64 || clock.mono().since(begun) < limit {
        let mut chance = Chance::new(seed);
        let input = match seeds.get(usize::try_from(runs).unwrap_or(usize::MAX)) {
            Some(whole) if first.is_none() => whole.clone(),
            _ => mutated(&mut chance, seeds),
        };
        let ran = catch_unwind(AssertUnwindSafe(|| target(&mut chance, &input)));
        if ran.is_err() {
            let shown = String::from_utf8_lossy(&input);
            panic!(
                "{name}: seed {seed} (run {runs}), input of {} bytes:\n{}\n{shown:?}",
                input.len(),
                input.escape_ascii()
            );
        }
        runs += 1;
        seed = seed.wrapping_add(1);
        if first.is_some() {
            break;
        }
    }
    eprintln!("fuzz {name}: {runs} inputs, no failure");
}

/// One of the seeds, changed in a few places.
fn mutated(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(6) {
        let at = chance.below(input.len() + 1);
        let to = (at + chance.below(40)).min(input.len());
        match chance.below(8) {
            0 => drop(input.drain(at..to)),
            1 => input.truncate(at),
            2 => {
                let copy = input[at..to].to_vec();
                let put = chance.below(input.len() + 1);
                drop(input.splice(put..put, copy));
            }
            3 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = (chance.next() & 0xff) as u8;
                }
            }
            4 => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len() + 1);
                let until = (from + chance.below(300)).min(other.len());
                let part = other[from..until].to_vec();
                drop(input.splice(at..at, part));
            }
            5 => {
                let deep = ["[", "{\"a\":", "]", "}"][chance.below(4)].repeat(1 << chance.below(12));
                drop(input.splice(at..at, deep.into_bytes()));
            }
            _ => {
                let word = WORDS[chance.below(WORDS.len())];
                drop(input.splice(at..at, word.bytes()));
            }
        }
    }
    input
}
