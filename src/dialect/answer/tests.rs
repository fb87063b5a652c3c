//! Every recorded exchange, against what is known of it, however its bytes are split.

use std::io::Read as _;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use crate::dialect::meter::{AnswerHead, Ended, Measured, Meter, MeterOptions};
use crate::dialect::table::Api;
use crate::types::usage::UsageSource;

const APIS: [Api; 20] = [
    Api::OpenAiChat,
    Api::OpenAiResponses,
    Api::OpenAiCompletions,
    Api::OpenAiEmbeddings,
    Api::OpenAiImages,
    Api::OpenAiAudio,
    Api::OpenAiModerations,
    Api::Models,
    Api::AnthropicMessages,
    Api::AnthropicCountTokens,
    Api::GeminiGenerateContent,
    Api::GeminiCountTokens,
    Api::GeminiEmbed,
    Api::GeminiInteractions,
    Api::OllamaChat,
    Api::OllamaGenerate,
    Api::OllamaEmbed,
    Api::CohereChat,
    Api::BedrockConverse,
    Api::BedrockInvoke,
];

struct Exchange {
    record: Value,
    api: Api,
    headers: HeaderMap,
    body: Vec<u8>,
}

/// All recorded exchanges that are read; `None` where there is no corpus.
fn exchanges() -> Option<Vec<Exchange>> {
    let given = std::env::var_os("FUSEBOX_CORPUS").map(PathBuf::from);
    let place = given.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"));
    let mut all = Vec::new();
    let files = std::fs::read_dir(&place).ok().into_iter().flatten().flatten();
    for file in files {
        let name = file.file_name().to_string_lossy().into_owned();
        if !name.starts_with("traffic-") {
            continue;
        }
        let mut text = String::new();
        let open = std::fs::File::open(file.path()).unwrap();
        if name.ends_with(".gz") {
            flate2::read::GzDecoder::new(open)
                .read_to_string(&mut text)
                .unwrap();
        } else {
            std::io::BufReader::new(open).read_to_string(&mut text).unwrap();
        }
        all.extend(text.lines().filter_map(exchange));
    }
    if all.is_empty() {
        eprintln!(
            "SKIPPED: no recorded traffic in {}; set FUSEBOX_CORPUS",
            place.display()
        );
        return None;
    }
    Some(all)
}

fn exchange(line: &str) -> Option<Exchange> {
    let record: Value = serde_json::from_str(line).unwrap();
    let api = APIS.into_iter().find(|api| record["api"] == api.name())?;
    let response = &record["response"];
    let body = match response["body_text"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(response["body_b64"].as_str().unwrap()).unwrap(),
    };
    let mut headers = HeaderMap::new();
    for (name, value) in response["headers"].as_object().unwrap() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        headers.append(
            HeaderName::try_from(name.as_str()).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    Some(Exchange {
        record,
        api,
        headers,
        body,
    })
}

impl Exchange {
    fn meter(&self) -> Meter {
        let request = &self.record["request"];
        let asked = request["body_text"]
            .as_str()
            .and_then(|b| serde_json::from_str::<Value>(b).ok())
            .is_some_and(|b| b["stream"] == true);
        let head = AnswerHead {
            api: self.api,
            status: u16::try_from(self.record["response"]["status"].as_u64().unwrap()).unwrap(),
            headers: &self.headers,
            stream_asked: asked || request["path"].as_str().unwrap_or_default().contains("stream"),
        };
        let options = MeterOptions {
            max_inspect_bytes: 8 << 20,
            keep_text: true,
        };
        Meter::new(&head, options)
    }

    fn measured<'a>(&'a self, pieces: impl Iterator<Item = &'a [u8]>) -> Measured {
        let mut meter = self.meter();
        for piece in pieces {
            meter.see(piece);
        }
        meter.finish(Ended::Whole)
    }

    /// What differs from what is known.
    fn differences(&self, measured: &Measured) -> Vec<String> {
        let text = |v: &Option<String>| v.clone().map_or(Value::Null, Value::String);
        let count = |v: Option<u64>| v.map_or(Value::Null, Value::from);
        let usage = &measured.usage;
        let got = [
            ("model_served", text(&measured.model_served)),
            ("input_tokens", count(usage.input_tokens)),
            ("output_tokens", count(usage.output_tokens)),
            ("total_tokens", count(usage.total_tokens)),
            ("cached_input_tokens", count(usage.cached_input_tokens)),
            ("cache_write_tokens", count(usage.cache_write_tokens)),
            ("reasoning_tokens", count(usage.reasoning_tokens)),
            ("input_audio_tokens", count(usage.input_audio_tokens)),
            ("output_audio_tokens", count(usage.output_audio_tokens)),
            ("tool_use_input_tokens", count(usage.tool_use_input_tokens)),
            ("header_input_tokens", count(usage.header_input_tokens)),
            ("header_output_tokens", count(usage.header_output_tokens)),
            ("finish_reason", text(&measured.finish_reason)),
            ("finish_detail", text(&measured.finish_detail)),
            ("output_text", text(&measured.output_text)),
            ("refusal_text", text(&measured.refusal_text)),
            ("error_type", text(&measured.error_type)),
            ("error_code", text(&measured.error_code)),
            ("tool_calls", Value::from(measured.tool_calls.clone())),
        ];
        let expect = &self.record["expect"];
        let mut differences = Vec::new();
        let mut differ = |name: &str, got: &Value, expected: &Value| {
            if got != expected {
                differences.push(format!("{name}: got {got}, expected {expected}"));
            }
        };
        for (name, got) in got {
            let expected = match (name, &expect[name]) {
                // Reasons may be numbers; no tool call may be null or an empty list.
                ("finish_reason", Value::Number(n)) => Value::from(n.to_string()),
                ("tool_calls", Value::Null) => Value::from(Vec::<String>::new()),
                (_, value) => value.clone(),
            };
            differ(name, &got, &expected);
        }
        differ(
            "stream",
            &measured.stream.into(),
            &self.record["response"]["stream"],
        );
        let chars = expect["output_text"].as_str().map(|t| t.chars().count() as u64);
        differ("output_chars", &count(measured.output_chars), &count(chars));
        differences
    }
}

/// Pieces of 1 to `most` bytes, the same ones every time.
fn pieces(body: &[u8], mut seed: u64, most: u64) -> impl Iterator<Item = &[u8]> {
    let mut rest = body;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let size = usize::try_from((seed >> 33) % most + 1).unwrap().min(rest.len());
        let (piece, tail) = rest.split_at(size);
        rest = tail;
        Some(piece)
    })
}

fn report(failed: &[String], of: usize) {
    for failure in failed.iter().take(60) {
        eprintln!("{failure}");
    }
    assert!(failed.is_empty(), "{} of {of} exchanges differ", failed.len());
}

#[test]
fn every_exchange_is_read_as_it_is_known() {
    let Some(all) = exchanges() else { return };
    let mut failed = Vec::new();
    for exchange in &all {
        let measured = exchange.measured(std::iter::once(&exchange.body[..]));
        let differences = exchange.differences(&measured);
        if !differences.is_empty() {
            let cut: Vec<String> = differences
                .iter()
                .map(|d| d.chars().take(300).collect())
                .collect();
            failed.push(format!(
                "{} {} {}\n    {}",
                exchange.record["id"],
                exchange.api.name(),
                exchange.record["source"],
                cut.join("\n    ")
            ));
        }
    }
    report(&failed, all.len());
}

#[test]
fn the_split_does_not_matter() {
    let Some(all) = exchanges() else { return };
    let mut failed = Vec::new();
    for (i, exchange) in all.iter().enumerate() {
        let whole = exchange.measured(std::iter::once(&exchange.body[..]));
        for (seed, most) in [(1, 40), (2, 700), (3, 8000)] {
            if exchange.measured(pieces(&exchange.body, seed + i as u64, most)) != whole {
                failed.push(format!("{} in pieces of up to {most}", exchange.record["id"]));
            }
        }
        let sample = i % 3 == 0 && exchange.body.len() < 40_000;
        if sample && exchange.measured(exchange.body.chunks(1)) != whole {
            failed.push(format!("{} byte by byte", exchange.record["id"]));
        }
    }
    report(&failed, all.len());
}

/// Beyond what is recorded: what must hold between the fields of any answer.
#[test]
fn what_is_measured_is_consistent() {
    let Some(all) = exchanges() else { return };
    let mut failed = Vec::new();
    for exchange in &all {
        let measured = exchange.measured(std::iter::once(&exchange.body[..]));
        let ok = exchange.record["response"]["status"].as_u64().unwrap() < 300;
        let usage = &measured.usage;
        let counted = usage.input_tokens.is_some() || usage.output_tokens.is_some();
        let free = matches!(exchange.api, Api::AnthropicCountTokens | Api::GeminiCountTokens);
        let mut wrong = |what: &str| failed.push(format!("{}: {what}: {measured:?}", exchange.record["id"]));
        if ok && counted && !free && measured.usage_source != UsageSource::Reported {
            wrong("counts, but not reported");
        }
        if (!ok || free) && measured.usage_source != UsageSource::None {
            wrong("use of an error");
        }
        let normalised = measured.normalised;
        let (i, o) = (
            normalised.input_total.unwrap_or(0),
            normalised.output_total.unwrap_or(0),
        );
        // One recorded stream drops a count from its last chunk, which leaves it out of the total too.
        let drops = exchange.record["tags"]
            .as_array()
            .is_some_and(|t| t.iter().any(|t| t == "usage_last_chunk_drops_field"));
        if let Some(total) = usage.total_tokens
            && ok
            && !drops
            && !free
            && counted
            && i + o != total
        {
            wrong(&format!("{i} + {o} is not the total of {total}"));
        }
        if measured.usage_source == UsageSource::Estimated && o == 0 {
            wrong("estimated nothing");
        }
    }
    report(&failed, all.len());
}
