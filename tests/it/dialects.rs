//! The fixtures of `tests/fixtures/<api>/`, read whole, cut at every byte, byte by byte, and compressed.
//!
//! A fixture is a body and a `.expect.json` beside it: the head of the answer, and what the body says, in the words
//! of an observation. A new API is a row of the table and a fixture here.

use std::io::Write;
use std::path::{Path, PathBuf};

use fusebox::dialect::meter::{AnswerHead, Ended, Measured, Meter, MeterOptions};
use fusebox::dialect::table::Api;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

/// An answer and what is to be read of it.
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) api: Api,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) stream_asked: bool,
    pub(crate) stream: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) expect: Value,
}

/// Every fixture there is.
pub(crate) fn fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut all = Vec::new();
    for directory in paths(&root) {
        let api = directory.file_name().unwrap().to_string_lossy().into_owned();
        for body in paths(&directory) {
            if !body.to_string_lossy().ends_with(".expect.json") {
                all.push(Fixture::read(&api, &body));
            }
        }
    }
    assert!(all.len() >= 12, "only {} fixtures", all.len());
    all
}

fn paths(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("the fixtures are there");
    let mut all: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

fn api(name: &str) -> Api {
    const ALL: [Api; 21] = [
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
        Api::Other,
    ];
    ALL.into_iter()
        .find(|a| a.name() == name)
        .unwrap_or_else(|| panic!("no API is called {name}"))
}

impl Fixture {
    fn read(api_name: &str, path: &Path) -> Self {
        let expect = std::fs::read_to_string(path.with_extension("expect.json"))
            .unwrap_or_else(|e| panic!("{}: no .expect.json: {e}", path.display()));
        let mut said: Value = serde_json::from_str(&expect).unwrap();
        let mut headers = HeaderMap::new();
        for (name, value) in said["headers"].as_object().unwrap() {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.as_str().unwrap().parse().unwrap());
        }
        Self {
            name: format!("{api_name}/{}", path.file_stem().unwrap().to_string_lossy()),
            api: api(api_name),
            status: u16::try_from(said["status"].as_u64().unwrap()).unwrap(),
            headers,
            stream_asked: said["stream_asked"] == true,
            stream: said["stream"] == true,
            body: std::fs::read(path).unwrap(),
            expect: said["expect"].take(),
        }
    }

    fn meter(&self, headers: &HeaderMap) -> Meter {
        let head = AnswerHead {
            api: self.api,
            status: self.status,
            headers,
            stream_asked: self.stream_asked,
        };
        let options = MeterOptions {
            max_inspect_bytes: 1 << 20,
            keep_text: true,
        };
        Meter::new(&head, options)
    }

    /// What is read of the body when it comes in these pieces.
    pub(crate) fn read_in<'a>(
        &self,
        headers: &HeaderMap,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Measured {
        let mut meter = self.meter(headers);
        for piece in pieces {
            meter.see(piece);
        }
        meter.finish(Ended::Whole)
    }

    fn check(&self, how: &str, measured: &Measured) {
        let said = json!({
            "model_served": measured.model_served,
            "input_tokens": measured.usage.input_tokens,
            "output_tokens": measured.usage.output_tokens,
            "total_tokens": measured.usage.total_tokens,
            "cached_input_tokens": measured.usage.cached_input_tokens,
            "cache_write_tokens": measured.usage.cache_write_tokens,
            "reasoning_tokens": measured.usage.reasoning_tokens,
            "finish_reason": measured.finish_reason,
            "finish_detail": measured.finish_detail,
            "tool_calls": measured.tool_calls,
            "error_type": measured.error_type,
            "error_code": measured.error_code,
        });
        let name = &self.name;
        for (field, got) in said.as_object().unwrap() {
            let want = match &self.expect[field] {
                Value::Number(n) if field == "finish_reason" => json!(n.to_string()),
                want => want.clone(),
            };
            assert_eq!(*got, want, "{name}, {how}: {field}");
        }
        let text = self.expect["output_text"].as_str().unwrap_or_default();
        assert_eq!(
            measured.output_text.as_deref().unwrap_or_default(),
            text,
            "{name}, {how}: output_text"
        );
        assert_eq!(
            measured.output_chars.unwrap_or(0),
            text.chars().count() as u64,
            "{name}, {how}: output_chars"
        );
        assert_eq!(measured.stream, self.stream, "{name}, {how}: stream");
    }
}

#[test]
fn fixtures_are_read_whole() {
    for fixture in fixtures() {
        fixture.check("whole", &fixture.read_in(&fixture.headers, [&fixture.body[..]]));
    }
}

#[test]
fn fixtures_are_read_cut_at_every_byte() {
    for fixture in fixtures() {
        let body = &fixture.body;
        for at in 0..=body.len() {
            let (a, b) = body.split_at(at);
            fixture.check(
                &format!("cut at {at}"),
                &fixture.read_in(&fixture.headers, [a, b]),
            );
        }
        fixture.check("byte by byte", &fixture.read_in(&fixture.headers, body.chunks(1)));
        fixture.check("by threes", &fixture.read_in(&fixture.headers, body.chunks(3)));
    }
}

#[test]
fn fixtures_are_read_compressed() {
    for fixture in fixtures() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&fixture.body).unwrap();
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(&fixture.body).unwrap();
        let mut raw = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
        raw.write_all(&fixture.body).unwrap();
        // Servers mean either of two things by `deflate`.
        for (coding, bytes) in [
            ("gzip", gzip.finish().unwrap()),
            ("deflate", zlib.finish().unwrap()),
            ("deflate", raw.finish().unwrap()),
        ] {
            let mut headers = fixture.headers.clone();
            headers.insert("content-encoding", HeaderValue::from_static(coding));
            fixture.check(coding, &fixture.read_in(&headers, [&bytes[..]]));
            fixture.check(coding, &fixture.read_in(&headers, bytes.chunks(1)));
            for at in (0..bytes.len()).step_by(7) {
                let (a, b) = bytes.split_at(at);
                fixture.check(
                    &format!("{coding} cut at {at}"),
                    &fixture.read_in(&headers, [a, b]),
                );
            }
        }
    }
}

#[test]
fn a_stream_that_is_cut_anywhere_claims_no_more_than_it_said() {
    for fixture in fixtures().iter().filter(|f| f.stream) {
        let whole = fixture.read_in(&fixture.headers, [&fixture.body[..]]);
        for at in 0..fixture.body.len() {
            let mut meter = fixture.meter(&fixture.headers);
            meter.see(&fixture.body[..at]);
            let cut = meter.finish(Ended::BrokenOff);
            assert!(
                cut.output_chars <= whole.output_chars,
                "{} cut at {at}",
                fixture.name
            );
            assert!(
                whole.tool_calls.starts_with(&cut.tool_calls),
                "{} cut at {at}: {:?}",
                fixture.name,
                cut.tool_calls
            );
        }
    }
}
