//! What a request body says: model, stream, hints for identity, and what the model must be able to do.

use super::fingerprint::KeyMaker;
pub use super::hints::BodyHints;
use super::hints::HintReader;
use super::json::{self, Fault, Object};
use super::multipart;
use super::table::{Api, Family, Route};
use super::tally::Tally;

/// Longest name of a model that is taken for one, in bytes.
const MAX_MODEL: usize = 1024;
/// Bytes of text taken for one token.
const BYTES_PER_TOKEN: u64 = 4;

/// What a request body says, as far as it has to be known.
#[derive(Debug, Clone, Default)]
pub struct RequestFacts {
    /// The model that is asked for: the body's, else the path's.
    pub model: Option<String>,
    /// Why `model` cannot be trusted or rewritten.
    pub model_problem: Option<ModelProblem>,
    /// Whether the body could not be read: what else is said here about it is then a default and no fact.
    pub unread: bool,
    /// Whether a stream is asked for.
    pub stream: bool,
    /// Whether the client itself asked for usage in the stream.
    pub include_usage: bool,
    /// Whether tools are offered.
    pub tools: bool,
    /// Whether structured output (a JSON schema) is asked for.
    pub json_schema: bool,
    /// Whether there are images, audio or documents.
    pub media: bool,
    /// Largest number of output tokens asked for.
    pub max_output: Option<u64>,
    /// Tokens of input, estimated from the size of the text.
    pub estimated_input: u64,
    /// What tells who sends it.
    pub hints: BodyHints,
    /// What [`super::fingerprint::prefix_key`] gives for the body; `None` also where it was not read.
    pub agent_key: Option<u64>,
}

/// Why the model of a body cannot be trusted or rewritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelProblem {
    /// The body is no JSON object (or not read: compressed, too deep, invalid UTF-8).
    Unreadable,
    /// `model` stands twice.
    Duplicate,
    /// `model` is no string.
    NotAString,
}

impl RequestFacts {
    /// The model that the upstream will use: the path's where the path decides (Azure deployments, Gemini, Bedrock),
    /// whatever the body says.
    pub fn decisive_model<'a>(&'a self, route: &'a Route) -> Option<&'a str> {
        route.path_model.as_deref().or(self.model.as_deref())
    }
}

/// Reads a body.
///
/// One pass over the top level; what is not needed is passed over at the speed of a memory search. A body that cannot
/// be read gives what [`unread`] gives.
pub fn read(route: &Route, content_type: Option<&str>, body: &[u8]) -> RequestFacts {
    if matches!(route.api, Api::Other | Api::Models) {
        return RequestFacts {
            model: route.path_model.clone(),
            stream: route.path_stream,
            ..RequestFacts::default()
        };
    }
    if content_type.is_some_and(is_multipart) {
        return read_form(route, body);
    }
    // Checked once for the whole, so that no part of it can surprise later.
    let readable = std::str::from_utf8(body).is_ok();
    match readable.then(|| read_object(route, body)) {
        Some(Ok(facts)) => facts,
        _ => unread(route),
    }
}

/// The facts of a body that is not read (compressed): what the path says, and a model problem where the body decides.
pub fn unread(route: &Route) -> RequestFacts {
    let silent = matches!(route.api, Api::Other | Api::Models);
    RequestFacts {
        model: route.path_model.clone(),
        model_problem: (route.path_model.is_none() && !silent).then_some(ModelProblem::Unreadable),
        unread: !silent,
        stream: route.path_stream,
        ..RequestFacts::default()
    }
}

fn is_multipart(content_type: &str) -> bool {
    content_type
        .as_bytes()
        .get(..10)
        .is_some_and(|head| head.eq_ignore_ascii_case(b"multipart/"))
}

fn read_object(route: &Route, body: &[u8]) -> Result<RequestFacts, Fault> {
    let mut reader = Reader {
        route,
        body,
        facts: RequestFacts::default(),
        models: 0,
        stream: None,
        tally: Tally::new(route.api),
        structure: 0,
        hints: HintReader::default(),
        key: KeyMaker::default(),
    };
    let mut object = Object::open(body).ok_or(Fault)?;
    while let Some(key) = object.key()? {
        reader.top_member(&json::key_name(key), &mut object)?;
    }
    if object.is_whole() {
        Ok(reader.finish())
    } else {
        Err(Fault)
    }
}

struct Reader<'a> {
    route: &'a Route,
    body: &'a [u8],
    facts: RequestFacts,
    models: u32,
    stream: Option<bool>,
    tally: Tally,
    /// Bytes of tools and the like, which count with their keys and braces.
    structure: u64,
    hints: HintReader,
    key: KeyMaker,
}

impl<'a> Reader<'a> {
    fn top_member(&mut self, name: &[u8], object: &mut Object<'_>) -> Result<(), Fault> {
        let start = object.at();
        self.member(name, object)?;
        self.key.member(name, json::slice(self.body, start..object.at()));
        Ok(())
    }

    fn member(&mut self, name: &[u8], object: &mut Object<'_>) -> Result<(), Fault> {
        match name {
            b"model" => {
                let value = self.skip(object)?;
                self.model(value);
            }
            b"messages" | b"input" | b"contents" | b"content" | b"prompt" | b"requests" | b"chat_history"
            | b"image" | b"images" | b"texts" | b"inputText" => {
                self.tally.begin(name, true);
                object.value(&mut self.tally)?;
            }
            // Texts that hold no media, or none that a model would have to look at.
            b"system"
            | b"systemInstruction"
            | b"system_instruction"
            | b"instructions"
            | b"message"
            | b"preamble"
            | b"documents"
            | b"suffix"
            | b"inputs"
            | b"template"
            | b"query" => {
                self.tally.begin(name, false);
                object.value(&mut self.tally)?;
            }
            b"tools" | b"functions" | b"toolConfig" | b"tool_config" => {
                let value = self.skip(object)?;
                self.structure += value.len() as u64;
                let bedrock = self.route.api.family() == Family::Bedrock;
                // Gemini's toolConfig only says how the tools are to be used.
                self.facts.tools |= if matches!(name, b"toolConfig" | b"tool_config") {
                    bedrock && json::member(value, "tools").is_some_and(has_elements)
                } else {
                    has_elements(value)
                };
            }
            b"stream" => {
                let value = self.skip(object)?;
                self.stream = Some(value == b"true");
            }
            b"stream_options" => {
                let value = self.skip(object)?;
                self.facts.include_usage = json::member(value, "include_usage") == Some(b"true");
            }
            b"max_tokens"
            | b"max_completion_tokens"
            | b"max_output_tokens"
            | b"max_tokens_to_sample"
            | b"max_gen_len" => {
                let value = self.skip(object)?;
                self.max_output(json::as_u64(value));
            }
            b"generationConfig"
            | b"generation_config"
            | b"inferenceConfig"
            | b"options"
            | b"textGenerationConfig" => {
                let value = self.skip(object)?;
                self.generation_config(value);
            }
            b"response_format" | b"text" | b"format" | b"output_format" | b"output_config"
            | b"outputConfig" => {
                let value = self.skip(object)?;
                self.facts.json_schema |= wants_schema(value);
            }
            _ if HintReader::wants(name) => {
                let value = self.skip(object)?;
                self.hints.member(name, value);
            }
            _ => {
                object.value(&mut ())?;
            }
        }
        Ok(())
    }

    fn skip(&self, object: &mut Object<'_>) -> Result<&'a [u8], Fault> {
        Ok(json::slice(self.body, object.value(&mut ())?))
    }

    fn model(&mut self, value: &[u8]) {
        self.models += 1;
        match json::as_text(value) {
            Some(text) if text.len() <= MAX_MODEL => self.facts.model = Some(text.into_owned()),
            _ => self.facts.model_problem = Some(ModelProblem::NotAString),
        }
    }

    fn max_output(&mut self, tokens: Option<u64>) {
        self.facts.max_output = self.facts.max_output.max(tokens);
    }

    fn generation_config(&mut self, value: &[u8]) {
        let Some(mut members) = Object::open(value) else {
            return;
        };
        while let Ok(Some(key)) = members.key() {
            let Ok(range) = members.value(&mut ()) else { return };
            let inner = json::slice(value, range);
            match &*json::key_name(key) {
                b"maxOutputTokens" | b"max_output_tokens" | b"maxTokens" | b"max_new_tokens"
                | b"num_predict" | b"maxTokenCount" => self.max_output(json::as_u64(inner)),
                b"responseSchema" | b"response_schema" | b"responseJsonSchema" | b"response_json_schema" => {
                    self.facts.json_schema |= inner != b"null";
                }
                _ => {}
            }
        }
    }

    fn finish(mut self) -> RequestFacts {
        let route = self.route;
        let api = route.api;
        let facts = &mut self.facts;
        if self.models > 1 {
            facts.model_problem = Some(ModelProblem::Duplicate);
        }
        if facts.model_problem.is_some() {
            facts.model = None;
        }
        if let Some(model) = &route.path_model {
            // The path decides: nothing the body says can stand in the way.
            facts.model_problem = None;
            facts.model.get_or_insert_with(|| model.clone());
        }
        facts.stream = match api {
            Api::OllamaChat | Api::OllamaGenerate => self.stream.unwrap_or(true),
            Api::BedrockConverse | Api::BedrockInvoke | Api::GeminiGenerateContent => route.path_stream,
            _ => self.stream.unwrap_or(route.path_stream),
        };
        facts.media = self.tally.media;
        facts.estimated_input = (self.tally.text + self.structure) / BYTES_PER_TOKEN;
        facts.hints = self.hints.finish();
        facts.agent_key = self.key.finish(route);
        self.facts
    }
}

/// Whether an array (or object) holds anything.
fn has_elements(value: &[u8]) -> bool {
    let inner = json::blanks(value, 1);
    matches!(value.first(), Some(b'[' | b'{')) && !matches!(value.get(inner), None | Some(b']' | b'}'))
}

/// Whether a wish for a format is one for a schema: OpenAI's `{"type":"json_schema"}`, the same below `format`,
/// Cohere's `{"schema":…}`, or a schema itself (Ollama).
fn wants_schema(value: &[u8]) -> bool {
    let Some(mut members) = Object::open(value) else {
        return false;
    };
    while let Ok(Some(key)) = members.key() {
        let Ok(range) = members.value(&mut ()) else {
            return false;
        };
        let inner = json::slice(value, range);
        let found = match &*json::key_name(key) {
            b"type" => inner == br#""json_schema""# || inner == br#""object""#,
            b"schema" | b"json_schema" | b"properties" | b"$ref" | b"anyOf" => inner != b"null",
            b"format" | b"textFormat" => wants_schema_shallow(inner),
            _ => false,
        };
        if found {
            return true;
        }
    }
    false
}

fn wants_schema_shallow(value: &[u8]) -> bool {
    json::member(value, "type") == Some(br#""json_schema""#)
}

fn read_form(route: &Route, body: &[u8]) -> RequestFacts {
    let mut facts = RequestFacts {
        stream: route.path_stream,
        ..RequestFacts::default()
    };
    let (mut models, mut text) = (0, 0);
    for part in multipart::parts(body) {
        let content = json::slice(body, part.content);
        if part.file {
            facts.media = true;
            continue;
        }
        text += content.len() as u64;
        match part.name {
            b"model" => {
                models += 1;
                match std::str::from_utf8(content) {
                    Ok(name) if name.len() <= MAX_MODEL => facts.model = Some(name.to_owned()),
                    _ => facts.model_problem = Some(ModelProblem::NotAString),
                }
            }
            b"stream" => facts.stream = content.eq_ignore_ascii_case(b"true"),
            _ => {}
        }
    }
    if models > 1 {
        facts.model_problem = Some(ModelProblem::Duplicate);
    }
    if facts.model_problem.is_some() {
        facts.model = None;
    }
    if let Some(model) = &route.path_model {
        facts.model_problem = None;
        facts.model.get_or_insert_with(|| model.clone());
    }
    facts.estimated_input = text / BYTES_PER_TOKEN;
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::fingerprint::prefix_key;
    use crate::dialect::table::{refine, route};
    use std::io::BufRead;

    fn facts_of(path: &str, body: &str) -> RequestFacts {
        read(
            &route(&http::Method::POST, path, None),
            Some("application/json"),
            body.as_bytes(),
        )
    }

    const CHAT: &str = "/v1/chat/completions";

    #[test]
    fn the_model_is_read_at_the_top_level_only() {
        for (body, model, problem) in [
            (r#"{"model":"a"}"#, Some("a"), None),
            (
                r#"{"messages":[{"model":"x"}],"tools":[{"model":"y"}],"model":"a\"b"}"#,
                Some("a\"b"),
                None,
            ),
            (r#"{"mod\u0065l":"a"}"#, Some("a"), None),
            (
                r#"{"mod\u0065l":"a","model":"b"}"#,
                None,
                Some(ModelProblem::Duplicate),
            ),
            (
                r#"{"model":"a","model":"a"}"#,
                None,
                Some(ModelProblem::Duplicate),
            ),
            (r#"{"model":3}"#, None, Some(ModelProblem::NotAString)),
            (r#"{"model":null}"#, None, Some(ModelProblem::NotAString)),
            (r#"{"model":"\ud800"}"#, None, Some(ModelProblem::NotAString)),
            (r#"{"messages":[]}"#, None, None),
            (r#"[{"model":"a"}]"#, None, Some(ModelProblem::Unreadable)),
            (r#"{"model":"a""#, None, Some(ModelProblem::Unreadable)),
            (r#"{"model":"a"} {}"#, None, Some(ModelProblem::Unreadable)),
            ("", None, Some(ModelProblem::Unreadable)),
        ] {
            let facts = facts_of(CHAT, body);
            assert_eq!(
                (facts.model.as_deref(), facts.model_problem),
                (model, problem),
                "{body}"
            );
        }
        let deep = format!(r#"{{"model":"a","x":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        assert_eq!(
            facts_of(CHAT, &deep).model_problem,
            Some(ModelProblem::Unreadable)
        );
        let chat = route(&http::Method::POST, CHAT, None);
        let facts = read(&chat, None, b"{\"model\":\"a\",\"x\":\"\xff\"}");
        assert_eq!(facts.model_problem, Some(ModelProblem::Unreadable));
        let long = format!(r#"{{"model":"{}"}}"#, "m".repeat(MAX_MODEL + 1));
        assert_eq!(
            facts_of(CHAT, &long).model_problem,
            Some(ModelProblem::NotAString)
        );
    }

    #[test]
    fn the_path_decides_where_it_names_the_model() {
        let azure = "/openai/deployments/dep/chat/completions";
        for (path, body, model, problem, decisive) in [
            (azure, r#"{"model":"m"}"#, Some("m"), None, Some("dep")),
            (azure, r#"{"model":1}"#, Some("dep"), None, Some("dep")),
            (azure, "nonsense", Some("dep"), None, Some("dep")),
            (
                "/v1beta/models/g:generateContent",
                "{}",
                Some("g"),
                None,
                Some("g"),
            ),
            (CHAT, r#"{"model":"m"}"#, Some("m"), None, Some("m")),
        ] {
            let facts = facts_of(path, body);
            let route = route(&http::Method::POST, path, None);
            assert_eq!(
                (facts.model.as_deref(), facts.model_problem),
                (model, problem),
                "{path} {body}"
            );
            assert_eq!(facts.decisive_model(&route), decisive);
        }
        assert!(facts_of(azure, "nonsense").unread && facts_of(azure, "").unread);
        assert!(!facts_of(azure, r#"{"model":1}"#).unread);
        let compressed = unread(&route(&http::Method::POST, azure, None));
        assert!(compressed.unread);
        assert_eq!(
            (compressed.model.as_deref(), compressed.model_problem),
            (Some("dep"), None)
        );
        let compressed = unread(&route(&http::Method::POST, CHAT, None));
        assert_eq!(compressed.model_problem, Some(ModelProblem::Unreadable));
        assert_eq!(
            unread(&route(&http::Method::GET, "/v1/models", None)).model_problem,
            None
        );
    }

    #[test]
    fn streams_are_told() {
        let body = r#"{"stream":true}"#;
        for (path, body, want) in [
            (CHAT, body, true),
            (CHAT, "{}", false),
            (CHAT, r#"{"stream":"true"}"#, false),
            (CHAT, r#"{"messages":[{"stream":true}]}"#, false),
            ("/api/chat", "{}", true),
            ("/api/chat", r#"{"stream":false}"#, false),
            ("/api/embed", "{}", false),
            ("/v1beta/models/g:streamGenerateContent", "{}", true),
            ("/v1beta/models/g:generateContent", body, false),
            ("/model/m/converse-stream", "{}", true),
            ("/model/m/invoke", body, false),
        ] {
            assert_eq!(facts_of(path, body).stream, want, "{path} {body}");
        }
        assert!(facts_of(CHAT, r#"{"stream_options":{"include_usage": true}}"#).include_usage);
        assert!(!facts_of(CHAT, r#"{"stream_options":{"include_usage":false}}"#).include_usage);
        assert!(!facts_of(CHAT, r#"{"stream_options":null}"#).include_usage);
    }

    #[test]
    fn needs_are_told() {
        let gemini = "/v1beta/models/g:generateContent";
        let converse = "/model/m/converse";
        // Columns: path, body, tools, schema, media.
        for (path, body, want) in [
            (CHAT, r#"{"tools":[]}"#, [false; 3]),
            (CHAT, r#"{"tools":[{"type":"function"}]}"#, [true, false, false]),
            (
                CHAT,
                r#"{"tools":[{"properties":{"image_url":{"type":"image"}}}]}"#,
                [true, false, false],
            ),
            (gemini, r#"{"toolConfig":{"mode":"ANY"}}"#, [false; 3]),
            (
                converse,
                r#"{"toolConfig":{"tools":[{"toolSpec":{}}]}}"#,
                [true, false, false],
            ),
            (CHAT, r#"{"response_format":{"type":"json_object"}}"#, [false; 3]),
            (
                CHAT,
                r#"{"response_format":{"type":"json_schema","json_schema":{}}}"#,
                [false, true, false],
            ),
            (
                "/v1/responses",
                r#"{"text":{"format":{"type":"json_schema"}}}"#,
                [false, true, false],
            ),
            (
                "/v1/responses",
                r#"{"text":{"format":{"type":"text"}}}"#,
                [false; 3],
            ),
            ("/api/chat", r#"{"format":"json"}"#, [false; 3]),
            (
                "/api/chat",
                r#"{"format":{"type":"object","properties":{}}}"#,
                [false, true, false],
            ),
            (
                gemini,
                r#"{"generationConfig":{"responseSchema":{}}}"#,
                [false, true, false],
            ),
            (
                "/v1/messages",
                r#"{"output_config":{"format":{"type":"json_schema"}}}"#,
                [false, true, false],
            ),
            (
                CHAT,
                r#"{"messages":[{"content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
                [false, false, true],
            ),
            (
                CHAT,
                r#"{"messages":[{"content":"type image_url","image_url":null}]}"#,
                [false; 3],
            ),
            (
                CHAT,
                r#"{"messages":[{"content":"{\"type\":\"image\"}"}]}"#,
                [false; 3],
            ),
            (
                "/v1/responses",
                r#"{"input":[{"content":[{"type":"input_image"}]}]}"#,
                [false, false, true],
            ),
            (
                "/v1/messages",
                r#"{"messages":[{"content":[{"type":"document"}]}]}"#,
                [false, false, true],
            ),
            (
                "/v1/messages",
                r#"{"messages":[{"content":[{"type":"tool_use","input":{"type":"image","a":[{"type":"file"}]}},{"type":"text"}]}]}"#,
                [false; 3],
            ),
            (
                "/v1/messages",
                r#"{"messages":[{"content":[{"input":{"type":"image"}},{"type":"image"}]}]}"#,
                [false, false, true],
            ),
            (
                "/v2/chat",
                r#"{"messages":[{"content":[{"type":"document","document":{"data":"x"}}]}]}"#,
                [false; 3],
            ),
            (
                gemini,
                r#"{"contents":[{"parts":[{"inlineData":{"data":""}}]}]}"#,
                [false, false, true],
            ),
            (
                converse,
                r#"{"messages":[{"content":[{"image":{"source":{}}}]}]}"#,
                [false, false, true],
            ),
            (
                "/api/chat",
                r#"{"messages":[{"images":["iVBOR"]}]}"#,
                [false, false, true],
            ),
            ("/api/chat", r#"{"messages":[{"images":[]}]}"#, [false; 3]),
        ] {
            let facts = facts_of(path, body);
            assert_eq!(
                [facts.tools, facts.json_schema, facts.media],
                want,
                "{path} {body}"
            );
        }
    }

    #[test]
    fn the_largest_output_is_read() {
        for (path, body, want) in [
            (CHAT, r#"{"max_tokens":10}"#, Some(10)),
            (CHAT, r#"{"max_tokens":10,"max_completion_tokens":20}"#, Some(20)),
            (CHAT, r#"{"max_tokens":null}"#, None),
            ("/v1/responses", r#"{"max_output_tokens":5}"#, Some(5)),
            (
                "/v1beta/models/g:generateContent",
                r#"{"generationConfig":{"maxOutputTokens":7}}"#,
                Some(7),
            ),
            (
                "/model/m/converse",
                r#"{"inferenceConfig":{"maxTokens":8}}"#,
                Some(8),
            ),
            ("/api/chat", r#"{"options":{"num_predict":9}}"#, Some(9)),
            ("/api/chat", r#"{"options":{"num_predict":-1}}"#, None),
        ] {
            assert_eq!(facts_of(path, body).max_output, want, "{body}");
        }
    }

    #[test]
    fn input_is_estimated_from_text() {
        let text = "word ".repeat(80);
        let base64 = "iVBORw0KGgo".repeat(4000);
        for (path, body, want) in [
            (
                CHAT,
                format!(r#"{{"messages":[{{"role":"x","content":"{text}"}}]}}"#),
                100,
            ),
            (
                CHAT,
                format!(
                    r#"{{"messages":[{{"content":[{{"type":"text","text":"{text}"}}]}}],"user":"{text}"}}"#
                ),
                100,
            ),
            (
                CHAT,
                format!(
                    r#"{{"messages":[{{"content":[{{"image_url":{{"url":"data:image/png;base64,{base64}"}}}},"{text}"]}}]}}"#
                ),
                100,
            ),
            (
                "/v1/messages",
                format!(
                    r#"{{"system":"{text}","messages":[{{"content":[{{"type":"image","source":{{"data":"{base64}"}}}}]}}]}}"#
                ),
                100,
            ),
            // Long runs without a blank are text where no data is expected.
            (
                CHAT,
                format!(r#"{{"messages":[{{"content":"{}"}}]}}"#, "x".repeat(4000)),
                1000,
            ),
            ("/v1/embeddings", r#"{"input":[1,2,3]}"#.to_owned(), 3),
            (CHAT, format!(r#"{{"tools":[{}]}}"#, "1,".repeat(199) + "1"), 100),
        ] {
            let got = facts_of(path, &body).estimated_input;
            assert!(got.abs_diff(want) <= 1, "{got} {want} {path}");
        }
    }

    #[test]
    fn forms_are_read() {
        let route = route(&http::Method::POST, "/v1/audio/transcriptions", None);
        let form = |fields: &[(&str, &str)]| {
            let mut body = String::new();
            for (name, value) in fields {
                body += &format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
            }
            read(
                &route,
                Some("Multipart/Form-Data; boundary=b"),
                (body + "--b--\r\n").as_bytes(),
            )
        };
        let facts = form(&[("stream", "true"), ("model", "whisper-1")]);
        assert_eq!((facts.model.as_deref(), facts.stream), (Some("whisper-1"), true));
        let facts = form(&[("model", "a"), ("model", "b")]);
        assert_eq!(
            (facts.model, facts.model_problem),
            (None, Some(ModelProblem::Duplicate))
        );
        assert_eq!(form(&[]).model_problem, None);
    }

    #[test]
    fn hints_are_gathered() {
        let facts = facts_of(
            CHAT,
            r#"{"metadata":{"agent":"a"},"prompt_cache_key":"k","user":"u"}"#,
        );
        assert_eq!(facts.hints.metadata("agent"), Some("a"));
        assert_eq!(facts.hints.execution(), Some("k"));
        assert_eq!(facts_of(CHAT, r#"{"user":"u"}"#).hints.execution(), None);
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200), cut in 0usize..400) {
            let body = br#"{"model":"a","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}],"metadata":{"a":"b\u00e9"},"stream_options":{"include_usage":true},"tools":[{"x":[1,2]}],"text":{"format":{"type":"json_schema"}}}"#;
            for path in [CHAT, "/api/chat", "/v1/messages", "/model/m/converse", "/v1beta/models/g:countTokens", "/x"] {
                let route = route(&http::Method::POST, path, None);
                let mut damaged = body[..cut.min(body.len())].to_vec();
                damaged.extend(&bytes);
                for body in [&damaged, &bytes] {
                    let key = read(&route, None, body).agent_key;
                    assert!(key.is_none() || key == prefix_key(&route, body));
                    read(&route, Some("multipart/form-data"), body);
                }
            }
        }
    }

    #[test]
    fn the_key_of_the_agent_is_found_on_the_way() {
        for (path, body) in [
            (
                CHAT,
                r#"{"messages":[{"role":"system","content":"s"},{"role":"user"}],"mod\u0065l":"a","tools":[{}]}"#,
            ),
            (CHAT, r#"{"messages":[{"role":"user"}],"stream":true}"#),
            (
                "/v1/messages",
                r#"{"system":[{"text":"S"}],"thinking":{},"system":"T"}"#,
            ),
            ("/model/m/converse", "{}"),
            ("/v1/embeddings", r#"{"model":"m"}"#),
            ("/x", r#"{"model":"m"}"#),
        ] {
            let route = route(&http::Method::POST, path, None);
            assert_eq!(
                read(&route, None, body.as_bytes()).agent_key,
                prefix_key(&route, body.as_bytes()),
                "{body}"
            );
        }
    }

    /// Every recorded exchange is told apart and its model read, as the people who recorded it labelled it.
    #[test]
    fn recorded_requests_are_understood() {
        let dir = std::env::var("FUSEBOX_CORPUS")
            .unwrap_or_else(|_| format!("{}/../shared/corpus", env!("CARGO_MANIFEST_DIR")));
        let files: Vec<_> = std::fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
            .filter(|p| {
                p.file_name()
                    .is_some_and(|n| n.to_string_lossy().starts_with("traffic-"))
            })
            .collect();
        if files.is_empty() {
            eprintln!("SKIPPED: no recorded traffic in {dir}; set FUSEBOX_CORPUS");
            return;
        }
        let (mut seen, mut wrong) = (0, Vec::new());
        for file in files {
            let reader = std::io::BufReader::new(flate2::read::MultiGzDecoder::new(
                std::fs::File::open(file).unwrap(),
            ));
            for line in reader.lines() {
                let exchange: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                seen += 1;
                wrong.extend(judge(&exchange));
            }
        }
        assert!(seen > 1000, "{seen} exchanges");
        assert!(wrong.is_empty(), "{} of {seen}: {wrong:#?}", wrong.len());
    }

    fn judge(exchange: &serde_json::Value) -> Option<String> {
        use base64::Engine as _;
        let request = &exchange["request"];
        let text = |v: &serde_json::Value| v.as_str().map(str::to_owned);
        let path = text(&request["path"])?;
        let method: http::Method = request["method"].as_str()?.parse().ok()?;
        let mut route = route(&method, &path, request["query"].as_str());
        let body = match (text(&request["body_text"]), text(&request["body_b64"])) {
            (Some(body), _) => Some(body.into_bytes()),
            (_, Some(body)) => Some(base64::engine::general_purpose::STANDARD.decode(body).unwrap()),
            _ => None,
        };
        refine(&mut route, &path, body.as_deref().unwrap_or_default());
        let api = exchange["api"].as_str()?;
        if route.api.name() != api {
            return Some(format!("{method} {path}: {} for {api}", route.api.name()));
        }
        let body = body?;
        if api == "other" {
            return None;
        }
        let facts = read(&route, request["headers"]["content-type"].as_str(), &body);
        let want = exchange["expect"]["model_requested"].as_str();
        if facts.model.as_deref() != want {
            return Some(format!("{path}: model {:?} for {want:?}", facts.model));
        }
        let status = exchange["response"]["status"].as_u64()?;
        let streamed = exchange["response"]["stream"].as_bool()?;
        // Some recordings are of made-up servers that stream unasked.
        if status == 200 && facts.stream && !streamed {
            return Some(format!(
                "{path} {}: stream {} for {streamed}",
                exchange["id"], facts.stream
            ));
        }
        let tag = |t: &str| {
            exchange["tags"]
                .as_array()
                .is_some_and(|a| a.iter().any(|x| x == t))
        };
        for (name, got) in [("include_usage", facts.include_usage), ("tools", facts.tools)] {
            if got != tag(name) {
                return Some(format!("{path} {}: {name} is {got}", exchange["id"]));
            }
        }
        None
    }
}
