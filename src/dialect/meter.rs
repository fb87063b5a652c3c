//! Reads an answer as it passes: usage, model, finish reason, text, tool calls, errors.

use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName};

use super::answer::{Facts, Reader, Watch};
use super::decode::Decoder;
use super::ending::{Ending, Spent, Trail};
use super::error_body::Refusal;
use super::framing::{ContentType, Expected, Framing};
use super::interruption::interruption;
use super::repetition::Tail;
use super::table::Api;
use super::usage;
use crate::types::usage::{Normalised, Usage, UsageSource};

/// What the head of an answer says.
#[derive(Debug)]
pub struct AnswerHead<'a> {
    /// The API that was spoken.
    pub api: Api,
    /// Status.
    pub status: u16,
    /// Headers (content type and encoding, usage headers of Bedrock, error type headers).
    pub headers: &'a http::HeaderMap,
    /// Whether the request asked for a stream.
    pub stream_asked: bool,
}

/// How an answer is read.
#[derive(Debug, Clone, Copy)]
pub struct MeterOptions {
    /// How much of a whole (not streamed) body is kept to be read, decoded, in bytes; and the bound of one event.
    pub max_inspect_bytes: usize,
    /// Keep the output text (for scoring and tests); it is only counted otherwise.
    pub keep_text: bool,
}

/// Reads one answer. Never fails: what it cannot read it does not know.
///
/// It is held as long as its stream is open, by thousands at a time: what is large or rare lies behind a pointer.
#[derive(Debug)]
pub struct Meter {
    expected: Expected,
    framing: Framing,
    decoder: Option<Box<Decoder>>,
    reader: Reader,
    facts: Facts,
    /// The error type that a header names.
    header_error: Option<Box<str>>,
}

/// What one piece of an answer brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// The first token of a stream (text, reasoning or tool call) is in this piece or came before it.
    pub first_token: bool,
}

/// How the body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The upstream ended it.
    Whole,
    /// It broke off, or was left.
    BrokenOff,
}

/// What an answer said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// It was a stream.
    pub stream: bool,
    /// How the counts are known.
    pub usage_source: UsageSource,
    /// Counts as reported.
    pub usage: Usage,
    /// Counts made comparable. Where usage is estimated, `output_total` is the estimate and `input_total` is `None`.
    pub normalised: Normalised,
    /// The model that the answer names.
    pub model_served: Option<String>,
    /// By what a later request names this answer (`id` of a response or an interaction), at most 512 bytes.
    pub answer_id: Option<String>,
    /// Why it stopped.
    pub finish_reason: Option<String>,
    /// More about that.
    pub finish_detail: Option<String>,
    /// Type of the error, from the body or from an event.
    pub error_type: Option<String>,
    /// Its code.
    pub error_code: Option<String>,
    /// Names of tools called, in order, of the first choice; `None` for a call that gives no name.
    pub tool_calls: Vec<Option<String>>,
    /// Unicode scalar values of output text; `None` when there was none.
    pub output_chars: Option<u64>,
    /// The output text, when it was to be kept.
    pub output_text: Option<String>,
    /// The refusal text, when it was to be kept.
    pub refusal_text: Option<String>,
}

impl Measured {
    /// This answer and a later one to the same request: counts together, the model that the first one names, the rest
    /// of the later one.
    #[must_use]
    pub fn and(self, later: Self) -> Self {
        Self {
            usage_source: self.usage_source.with(later.usage_source),
            usage: self.usage.plus(later.usage),
            normalised: self.normalised.plus(later.normalised),
            model_served: self.model_served.or(later.model_served),
            ..later
        }
    }
}

static INPUT_COUNT: HeaderName = HeaderName::from_static("x-amzn-bedrock-input-token-count");
static OUTPUT_COUNT: HeaderName = HeaderName::from_static("x-amzn-bedrock-output-token-count");
/// Length of the shorter of the two names; hardly any header has so long a one.
const COUNT_NAME: usize = 32;
static ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// Characters that one token is taken to be, where an answer reports no count.
const CHARS_PER_TOKEN: u64 = 4;

impl Meter {
    /// A meter for the answer with this head.
    pub fn new(head: &AnswerHead<'_>, options: MeterOptions) -> Self {
        let ok = (200..300).contains(&head.status);
        let decoder = decoder(head.headers);
        let length = count(head.headers, &CONTENT_LENGTH).filter(|_| decoder.is_none());
        let expected = Expected {
            api: head.api,
            content: ContentType::of(head.headers),
            ok,
            stream_asked: head.stream_asked,
            length: length.and_then(|n| usize::try_from(n).ok()),
            limit: options.max_inspect_bytes,
        };
        let mut facts = Facts::new(if options.keep_text {
            options.max_inspect_bytes
        } else {
            0
        });
        if ok && head.headers.keys().any(|n| n.as_str().len() >= COUNT_NAME) {
            facts.usage.header_input_tokens = count(head.headers, &INPUT_COUNT);
            facts.usage.header_output_tokens = count(head.headers, &OUTPUT_COUNT);
        }
        Self {
            framing: Framing::new(&expected),
            decoder,
            reader: Reader::for_api(head.api),
            facts,
            header_error: if ok { None } else { header_error(head.headers) },
            expected,
        }
    }

    /// Sees a piece of the body as it came over the wire (compressed where the answer is).
    pub fn see(&mut self, piece: &[u8]) -> Seen {
        if let Some(decoder) = &mut self.decoder {
            decoder.push(piece, &mut |bytes| {
                self.framing
                    .push(bytes, &self.expected, &mut self.reader, &mut self.facts);
            });
        } else {
            self.framing
                .push(piece, &self.expected, &mut self.reader, &mut self.facts);
        }
        Seen {
            first_token: self.facts.first_token && self.is_stream(),
        }
    }

    /// Whether the stream said that it is over (`[DONE]`, `message_stop`, a terminal event), whatever its connection does.
    pub fn said_end(&self) -> bool {
        self.facts.said_end && self.is_stream()
    }

    /// Whether it is a stream.
    pub fn is_stream(&self) -> bool {
        self.framing.is_stream(&self.expected)
    }

    /// Output characters so far (streams), for judging an answer that is still running: text, refusals, reasoning and
    /// the arguments of tool calls.
    pub fn output_so_far(&self) -> u64 {
        self.facts.chars()
    }

    /// By what a later request names this answer, as soon as a stream said so.
    pub fn answer_id(&self) -> Option<&str> {
        self.facts.answer_id.as_deref()
    }

    /// Output tokens so far: as reported, else estimated from the characters.
    pub fn output_tokens_so_far(&self) -> u64 {
        let facts = &self.facts;
        let reported = facts.usage.output_tokens.filter(|_| !facts.output_open);
        match reported {
            Some(_) => usage::normalise(self.expected.api, &facts.usage).output_total,
            None => None,
        }
        .unwrap_or_else(|| facts.chars().div_ceil(CHARS_PER_TOKEN))
    }

    /// Input tokens, once the answer said how many.
    pub fn input_tokens_so_far(&self) -> Option<u64> {
        usage::normalise(self.expected.api, &self.facts.usage).input_total
    }

    /// Sees to it that the stream can be ended early; `repetition`: looks whether its output goes round in circles.
    /// From its first piece on, what it said is said again at its end; later there is less to say.
    pub fn watch(&mut self, repetition: bool) {
        let api = self.expected.api;
        let watch = self.facts.watch.get_or_insert_with(|| {
            Box::new(Watch {
                trail: Trail::new(api),
                tail: None,
            })
        });
        if repetition {
            watch.tail.get_or_insert_default();
        }
    }

    /// Whether the output goes round in circles; only where that is looked at.
    pub fn repeats(&self) -> bool {
        let tail = self.facts.watch.as_ref().and_then(|w| w.tail.as_ref());
        tail.is_some_and(Tail::circles)
    }

    /// Whether it is a stream that is read as it passes, so that something of ours could stand in it.
    pub fn is_open_stream(&self) -> bool {
        self.decoder.is_none() && self.is_stream()
    }

    /// The model that the answer named so far.
    pub fn model_so_far(&self) -> Option<&str> {
        self.facts.model.as_deref()
    }

    /// Counts reported so far.
    pub fn usage_so_far(&self) -> &Usage {
        &self.facts.usage
    }

    /// Whether what was seen so far ends with an event and can be read, so that an event of ours could follow.
    pub fn is_between_events(&self) -> bool {
        self.decoder.is_none() && self.framing.between(&self.expected).is_some()
    }

    /// Sees as much of a piece as belongs to the event that is under way, and tells how much that is; `None` when the
    /// event goes on after all of it. Slow: byte by byte.
    pub fn see_event_end(&mut self, piece: &[u8]) -> Option<usize> {
        for (at, byte) in piece.iter().enumerate() {
            self.see(std::slice::from_ref(byte));
            if self.is_between_events() {
                return Some(at + 1);
            }
        }
        None
    }

    /// An end for the stream in its API's own shape, as if the model had written as much as it may; only between two
    /// events. `None` where that cannot be done, and where the stream's own end has begun. `spent.input` and
    /// `spent.output` are replaced by what is known better.
    pub fn end_early(&mut self, spent: Spent) -> Option<Vec<u8>> {
        if self.decoder.is_some() || self.facts.said_end || self.facts.failed {
            return None;
        }
        let frame = self.framing.between(&self.expected)?;
        let spent = Spent {
            input: self.input_tokens_so_far().unwrap_or(spent.input),
            output: self.output_tokens_so_far(),
            ..spent
        };
        let watch = self.facts.watch.as_mut()?;
        let Ending { bytes, reason } = watch.trail.end(frame, spent)?;
        self.facts.finish_reason = Some(reason.to_owned());
        if self.expected.api == Api::OpenAiResponses {
            self.facts.finish_detail = Some("max_output_tokens".to_owned());
        }
        Some(bytes)
    }

    /// The event that tells `refusal` inside the stream; only between two events. `None` where there is none.
    pub fn interruption(&self, azure: bool, refusal: &Refusal) -> Option<Vec<u8>> {
        if self.decoder.is_some() {
            return None;
        }
        let frame = self.framing.between(&self.expected)?;
        interruption(self.expected.api, azure, frame, refusal)
    }

    /// What the answer said.
    pub fn finish(mut self, ended: Ended) -> Measured {
        if let Some(decoder) = &mut self.decoder {
            decoder.end(&mut |bytes| {
                self.framing
                    .push(bytes, &self.expected, &mut self.reader, &mut self.facts);
            });
        }
        let stream = self
            .framing
            .end(&self.expected, &mut self.reader, &mut self.facts);
        let (usage_source, normalised) = self.usage(ended, stream);
        let Facts {
            usage,
            model,
            answer_id,
            finish_reason,
            finish_detail,
            error_type,
            error_code,
            tool_calls,
            text,
            refusal,
            keep,
            ..
        } = self.facts;
        Measured {
            stream,
            usage_source,
            usage,
            normalised,
            model_served: model,
            answer_id,
            finish_reason,
            finish_detail,
            error_type: error_type.or(self.header_error.map(String::from)),
            error_code,
            tool_calls,
            output_chars: text.as_ref().map(|t| t.chars()),
            output_text: text.filter(|_| keep > 0).map(|t| t.into_kept()),
            refusal_text: refusal.filter(|_| keep > 0).map(|t| t.into_kept()),
        }
    }

    fn usage(&self, ended: Ended, stream: bool) -> (UsageSource, Normalised) {
        let api = self.expected.api;
        let facts = &self.facts;
        if !self.expected.ok {
            return (UsageSource::None, Normalised::default());
        }
        let mut normalised = usage::normalise(api, &facts.usage);
        if normalised != Normalised::default() {
            // A stream whose finish reason came with its last counts lacks nothing that matters. Gemini may give a
            // reason with every piece.
            let reason = facts.finish_reason.is_some() && api != Api::GeminiGenerateContent;
            let whole = ended == Ended::Whole || (stream && (facts.said_end || reason));
            if facts.output_open {
                normalised.output_total = None;
            }
            return if whole && !facts.output_open {
                (UsageSource::Reported, normalised)
            } else {
                (UsageSource::Partial, normalised)
            };
        }
        let chars = facts.chars();
        if api.generates() && chars > 0 {
            normalised.output_total = Some(chars.div_ceil(CHARS_PER_TOKEN));
            return (UsageSource::Estimated, normalised);
        }
        (UsageSource::None, normalised)
    }
}

fn decoder(headers: &HeaderMap) -> Option<Box<Decoder>> {
    let mut encodings = headers.get_all(http::header::CONTENT_ENCODING).iter();
    let first = encodings.next()?.to_str().unwrap_or("?");
    // Several encodings on top of each other are not undone.
    let encoding = if encodings.next().is_some() { "?" } else { first };
    Decoder::for_encoding(encoding).map(Box::new)
}

fn count(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Bedrock's `x-amzn-ErrorType`, up to the colon.
fn header_error(headers: &HeaderMap) -> Option<Box<str>> {
    let value = headers.get(&ERROR_TYPE)?.to_str().ok()?;
    value
        .split(':')
        .next()
        .map(str::trim)
        .filter(|t| !t.is_empty() && t.len() <= 128)
        .map(Box::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use base64::Engine as _;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;
    use crate::dialect::eventstream::tests::frame;

    const LIMIT: usize = 64 << 10;

    fn meter(api: Api, status: u16, headers: &[(&str, &str)], stream_asked: bool) -> Meter {
        let headers: HeaderMap = headers
            .iter()
            .map(|(n, v)| {
                (
                    HeaderName::try_from(*n).unwrap(),
                    HeaderValue::from_str(v).unwrap(),
                )
            })
            .collect();
        let head = AnswerHead {
            api,
            status,
            headers: &headers,
            stream_asked,
        };
        let options = MeterOptions {
            max_inspect_bytes: LIMIT,
            keep_text: true,
        };
        Meter::new(&head, options)
    }

    fn sse(api: Api, pieces: &[&str], ended: Ended) -> Measured {
        let mut meter = meter(
            api,
            200,
            &[("content-type", "text/event-stream; charset=utf-8")],
            true,
        );
        for piece in pieces {
            meter.see(piece.as_bytes());
        }
        meter.finish(ended)
    }

    const CHAT: [&str; 4] = [
        "data: {\"model\":\"m-1\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n",
        "data: {\"model\":\"m-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi \\ud83d\\ude00\"}}]}\n\n",
        "data: {\"model\":\"m-1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"model\":\"\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3,\"total_tokens\":12}}\n\ndata: [DONE]\n\n",
    ];

    #[test]
    fn a_chat_stream_to_its_end() {
        let m = sse(Api::OpenAiChat, &CHAT, Ended::Whole);
        assert!(m.stream);
        assert_eq!(m.usage_source, UsageSource::Reported);
        assert_eq!(m.normalised.total(), Some(12));
        assert_eq!(m.model_served.as_deref(), Some("m-1"));
        assert_eq!(m.finish_reason.as_deref(), Some("stop"));
        assert_eq!(
            (m.output_text.as_deref(), m.output_chars),
            (Some("Hi 😀"), Some(4))
        );
        // Its connection may do as it likes after that.
        assert_eq!(sse(Api::OpenAiChat, &CHAT, Ended::BrokenOff), m);
    }

    #[test]
    fn a_chat_stream_cut_or_without_usage_is_estimated() {
        for ended in [Ended::Whole, Ended::BrokenOff] {
            let m = sse(Api::OpenAiChat, &CHAT[..3], ended);
            assert_eq!(m.usage_source, UsageSource::Estimated);
            assert_eq!(
                (m.normalised.input_total, m.normalised.output_total),
                (None, Some(1))
            );
        }
        let m = sse(Api::OpenAiChat, &CHAT[..1], Ended::BrokenOff);
        assert_eq!(m.usage_source, UsageSource::None);
    }

    #[test]
    fn the_first_token_and_the_end_are_seen_when_they_come() {
        let mut meter = meter(
            Api::OpenAiChat,
            200,
            &[("content-type", "text/event-stream")],
            true,
        );
        assert!(meter.is_stream());
        let seen: Vec<(bool, u64, bool)> = CHAT
            .iter()
            .map(|c| {
                (
                    meter.see(c.as_bytes()).first_token,
                    meter.output_so_far(),
                    meter.said_end(),
                )
            })
            .collect();
        assert_eq!(
            seen,
            [
                (false, 0, false),
                (true, 4, false),
                (true, 4, false),
                (true, 4, true)
            ]
        );
        let calls = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"name\":\"f\"}}]}}]}\n\n";
        let thoughts = "data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n";
        for first in [calls, thoughts] {
            let mut meter = self::meter(Api::OpenAiChat, 200, &[], true);
            assert!(meter.see(first.as_bytes()).first_token, "{first}");
        }
    }

    #[test]
    fn what_a_later_request_calls_the_answer_is_known_as_soon_as_it_is_said() {
        let created = "data: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"status\":\"in_progress\"}}\n\n";
        let mut stream = meter(
            Api::OpenAiResponses,
            200,
            &[("content-type", "text/event-stream")],
            true,
        );
        assert_eq!(stream.answer_id(), None);
        stream.see(created.as_bytes());
        assert_eq!(stream.answer_id(), Some("resp_1"));
        assert_eq!(
            stream.finish(Ended::BrokenOff).answer_id.as_deref(),
            Some("resp_1")
        );
        let long = format!(r#"{{"id":"{}","status":"completed"}}"#, "x".repeat(600));
        for (api, status, body, want) in [
            (
                Api::OpenAiResponses,
                200,
                r#"{"id":"resp_2","status":"completed"}"#,
                Some("resp_2"),
            ),
            (Api::OpenAiResponses, 200, long.as_str(), None),
            (Api::OpenAiResponses, 400, r#"{"id":"resp_3","error":{}}"#, None),
            (
                Api::GeminiInteractions,
                200,
                r#"{"id":"v1_a","status":"completed"}"#,
                Some("v1_a"),
            ),
            (Api::OpenAiChat, 200, r#"{"id":"chatcmpl-1","choices":[]}"#, None),
        ] {
            let mut m = meter(api, status, &[("content-type", "application/json")], false);
            m.see(body.as_bytes());
            assert_eq!(m.finish(Ended::Whole).answer_id.as_deref(), want, "{body}");
        }
    }

    #[test]
    fn an_anthropic_stream_cut_after_its_start_knows_no_output() {
        let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"c\",\"content\":[],\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n";
        let text = "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n";
        let delta = "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":7}}\n\n";
        for ended in [Ended::Whole, Ended::BrokenOff] {
            let m = sse(Api::AnthropicMessages, &[start, text], ended);
            assert_eq!(m.usage_source, UsageSource::Partial);
            assert_eq!(m.usage.output_tokens, Some(1));
            assert_eq!(
                (m.normalised.input_total, m.normalised.output_total),
                (Some(15), None)
            );
            let m = sse(Api::AnthropicMessages, &[start, text, delta], ended);
            assert_eq!(m.usage_source, UsageSource::Reported);
            assert_eq!(
                (m.normalised.input_total, m.normalised.output_total),
                (Some(15), Some(7))
            );
        }
    }

    #[test]
    fn a_cumulative_stream_that_broke_off_is_partial() {
        let piece = "data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"a\"}]}}],\"usageMetadata\":{\"promptTokenCount\":4,\"candidatesTokenCount\":1,\"totalTokenCount\":5}}\r\n\r\n";
        let m = sse(Api::GeminiGenerateContent, &[piece], Ended::BrokenOff);
        assert_eq!(
            (m.usage_source, m.normalised.output_total),
            (UsageSource::Partial, Some(1))
        );
        let m = sse(Api::GeminiGenerateContent, &[piece], Ended::Whole);
        assert_eq!(m.usage_source, UsageSource::Reported);
    }

    #[test]
    fn errors_inside_a_stream_of_success() {
        let table = [
            (
                Api::OpenAiChat,
                "event: error\ndata: {\"error\":{\"type\":\"t\",\"code\":\"c\"}}\n\n",
                "t",
                "c",
            ),
            (
                Api::OpenAiChat,
                "data: {\"error\":{\"code\":502},\"choices\":[{\"delta\":{},\"finish_reason\":\"error\"}]}\n\n",
                "-",
                "502",
            ),
            (
                Api::AnthropicMessages,
                "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n",
                "overloaded_error",
                "-",
            ),
            (
                Api::OpenAiResponses,
                "event: error\ndata: {\"type\":\"error\",\"code\":\"c\",\"message\":\"m\"}\n\n",
                "-",
                "c",
            ),
            (
                Api::OpenAiResponses,
                "data: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\",\"error\":{\"code\":\"c\"}}}\n\n",
                "-",
                "c",
            ),
        ];
        for (api, stream, kind, code) in table {
            let m = sse(api, &[stream], Ended::Whole);
            assert_eq!(m.error_type.as_deref().unwrap_or("-"), kind, "{stream}");
            assert_eq!(m.error_code.as_deref().unwrap_or("-"), code, "{stream}");
        }
    }

    #[test]
    fn bedrock_streams_and_their_exceptions() {
        let mut stream = frame(
            &[(":event-type", "contentBlockDelta"), (":message-type", "event")],
            b"{\"delta\":{\"text\":\"Hi\"}}",
        );
        let mut meter = meter(Api::BedrockConverse, 200, &[], true);
        stream.extend(frame(
            &[
                (":message-type", "exception"),
                (":exception-type", "throttlingException"),
            ],
            b"{}",
        ));
        assert!(meter.see(&stream).first_token);
        let m = meter.finish(Ended::Whole);
        assert!(m.stream);
        assert_eq!(m.error_type.as_deref(), Some("throttlingException"));
        assert_eq!(
            (m.output_text.as_deref(), m.usage_source),
            (Some("Hi"), UsageSource::Estimated)
        );

        let event = |json: &str| {
            let bytes = base64::engine::general_purpose::STANDARD.encode(json);
            frame(
                &[(":event-type", "chunk")],
                format!("{{\"p\":\"abc\",\"bytes\":\"{bytes}\"}}").as_bytes(),
            )
        };
        let mut meter = self::meter(
            Api::BedrockInvoke,
            200,
            &[("content-type", "application/vnd.amazon.eventstream")],
            true,
        );
        meter.see(&event("{\"outputs\":[{\"text\":\"Hi\",\"stop_reason\":null}]}"));
        meter.see(&event("{\"outputs\":[{\"text\":\"\",\"stop_reason\":\"stop\"}],\"amazon-bedrock-invocationMetrics\":{\"inputTokenCount\":8,\"outputTokenCount\":2}}"));
        assert!(meter.said_end());
        let m = meter.finish(Ended::Whole);
        assert_eq!((m.usage.input_tokens, m.usage.output_tokens), (Some(8), Some(2)));
        assert_eq!(m.finish_reason.as_deref(), Some("stop"));
    }

    #[test]
    fn framing_is_judged_from_the_bytes_too() {
        let event = CHAT.concat();
        let json = "{\"model\":\"m\",\"choices\":[]}";
        let ndjson = "{\"model\":\"m\",\"message\":{\"content\":\"a\"},\"done\":false}\n{\"model\":\"m\",\"done\":true}\n";
        let table = [
            (Api::OpenAiChat, "application/json", event.as_str(), true),
            (Api::OpenAiChat, "", event.as_str(), true),
            (Api::OpenAiChat, "", ": ping\n\n", true),
            (Api::OpenAiChat, "text/event-stream", json, false),
            (
                Api::OpenAiChat,
                "application/json",
                "\n\n   \n{\"choices\":[]}",
                false,
            ),
            (Api::OpenAiChat, "text/html", "<html>data:</html>", false),
            (Api::OpenAiChat, "text/plain", "data", false),
            (Api::OllamaChat, "application/x-ndjson", ndjson, true),
            (Api::OllamaChat, "", ndjson, true),
            (Api::OllamaChat, "application/json", ndjson, true),
            (
                Api::OllamaChat,
                "application/json",
                "{\"model\":\"m\",\"done\":true}\n",
                false,
            ),
            (
                Api::GeminiGenerateContent,
                "application/json",
                "[{\"candidates\":[]}]",
                true,
            ),
            (
                Api::GeminiGenerateContent,
                "application/json",
                "{\"candidates\":[]}",
                false,
            ),
            (Api::OpenAiAudio, "audio/mpeg", "data: not\n\n", false),
        ];
        for (api, content, body, stream) in table {
            let headers: &[(&str, &str)] = if content.is_empty() {
                &[]
            } else {
                &[("content-type", content)]
            };
            for size in [1, 3, 1000] {
                let mut meter = meter(api, 200, headers, true);
                for piece in body.as_bytes().chunks(size) {
                    meter.see(piece);
                }
                assert_eq!(
                    meter.finish(Ended::Whole).stream,
                    stream,
                    "{content} {body} in pieces of {size}"
                );
            }
        }
    }

    #[test]
    fn errors_use_nothing() {
        let body = "{\"message\":\"slow down\",\"usage\":{\"inputTokens\":3}}";
        let headers = [
            ("x-amzn-errortype", "ThrottlingException:http://x"),
            ("content-type", "application/json"),
        ];
        let mut meter = meter(Api::BedrockConverse, 429, &headers, true);
        meter.see(body.as_bytes());
        let m = meter.finish(Ended::Whole);
        assert!(!m.stream);
        assert_eq!(m.error_type.as_deref(), Some("ThrottlingException"));
        assert_eq!(
            (m.usage_source, m.normalised, m.output_chars),
            (UsageSource::None, Normalised::default(), None)
        );
    }

    #[test]
    fn a_whole_answer_that_is_compressed() {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(b"{\"choices\":[{\"message\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}").unwrap();
        let mut meter = meter(Api::OpenAiChat, 200, &[("content-encoding", "gzip")], false);
        meter.see(&gzip.finish().unwrap());
        assert_eq!(meter.finish(Ended::Whole).normalised.total(), Some(3));
    }

    #[test]
    fn endless_and_nested_bodies_are_survived_in_bounded_memory() {
        for api in [
            Api::OpenAiChat,
            Api::GeminiGenerateContent,
            Api::OllamaChat,
            Api::BedrockInvoke,
        ] {
            for start in ["", "data: ", "{\"choices\":", "[", "{\"a\":\""] {
                for fill in [b'[', b'{', b'"', b'\\', b'1', 0xFF] {
                    let mut meter = meter(api, 200, &[], true);
                    meter.see(start.as_bytes());
                    for _ in 0..64 {
                        meter.see(&[fill; 16 << 10]);
                    }
                    meter.finish(Ended::BrokenOff);
                }
            }
        }
    }

    #[test]
    fn an_event_of_64_mib_blinds_to_itself_only() {
        let mut meter = meter(
            Api::OpenAiChat,
            200,
            &[("content-type", "text/event-stream")],
            true,
        );
        meter.see(b"data: {\"choices\":[{\"delta\":{\"content\":\"");
        for _ in 0..1024 {
            meter.see(&[b'x'; 64 << 10]);
        }
        meter.see(b"\"}}]}\n\n");
        for piece in CHAT {
            meter.see(piece.as_bytes());
        }
        let m = meter.finish(Ended::Whole);
        assert_eq!((m.output_chars, m.usage_source), (Some(4), UsageSource::Reported));
    }

    #[test]
    fn it_stays_small() {
        assert!(size_of::<Meter>() <= 1024, "{}", size_of::<Meter>());
    }

    const ALL: [Api; 8] = [
        Api::OpenAiChat,
        Api::OpenAiResponses,
        Api::AnthropicMessages,
        Api::GeminiGenerateContent,
        Api::GeminiInteractions,
        Api::OllamaChat,
        Api::CohereChat,
        Api::BedrockInvoke,
    ];

    /// Words that streams are made of, for mixing.
    const WORDS: [&str; 24] = [
        "data: ",
        "event: error\n",
        "\n\n",
        "\r\n\r\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"choices\":[{\"delta\":{\"content\":\"x\"}}]",
        "\"usage\":{\"prompt_tokens\":1,\"output_tokens\":2}",
        "\"type\":\"message_start\"",
        "\"message\":{\"content\":\"y\"}",
        "\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"\\ud83d\"}]}}]",
        "\"type\":\"response.output_text.delta\",\"delta\":\"\\ude00\"",
        "\"event_type\":\"text-generation\",\"text\":\"z\"",
        "\"done\":true",
        "[DONE]",
        "null",
        "\"",
        "\\",
        "\u{FEFF}",
        "1e999",
    ];

    /// Events of a chat stream, without their last brace.
    const ALIKE: [&str; 10] = [
        r#"{"model":"m","choices":[{"index":0,"delta":{"content":"a"}}]"#,
        r#"{"model":"m","choices":[{"index":0,"delta":{"content":"bc\ud83d"}}]"#,
        r#"{"model":"m","choices":[{"index":0,"delta":{"content":"\ude00\n"}}]"#,
        r#"{"model":"m","choices":[{"index":0,"delta":{"content":""}}]"#,
        r#"{"model":"n","choices":[{"index":0,"delta":{"content":"d"}}]"#,
        r#"{"model":"m","choices":[{"index":1,"delta":{"content":"e"}}]"#,
        r#"{"model":"m","choices":[{"index":0,"delta":{"content":"f","refusal":"g"}}]"#,
        r#"{"model":"m","choices":[{"index":0,"delta":{"content":null,"reasoning":"h"}}]"#,
        r#"{"model":"m","choices":[{"index":0,"delta":{"content":"i"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1}"#,
        r#"{"model":"m","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"x"}}]}}]"#,
    ];

    fn measured(api: Api, headers: &[(&str, &str)], pieces: &[&[u8]]) -> Measured {
        let mut meter = meter(api, 200, headers, true);
        for piece in pieces {
            meter.see(piece);
        }
        meter.finish(Ended::Whole)
    }

    fn split<'a>(mut rest: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = tail;
        }
        pieces
    }

    proptest! {
        /// Whole events that are like the one before them are read without looking for lines and values; the same
        /// bytes one by one never are.
        #[test]
        fn the_short_way_through_a_stream_says_what_the_long_one_does(
            events in proptest::collection::vec((0..9_usize, r#"[a-z\\"\n\r\x00 {}:,é😀]{0,24}"#, any::<bool>()), 1..16),
            broken in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            eol in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            name in prop_oneof![Just(""), Just("event: delta"), Just("event:error"), Just("event: error"), Just("id: 7")],
            together in 1..5_usize,
        ) {
            let mut stream: Vec<Vec<u8>> = Vec::new();
            for (kind, text, raw) in &events {
                let text = if *raw { format!("\"{text}\"") } else { serde_json::to_string(text).unwrap() };
                let name = if name.is_empty() { String::new() } else { format!("{name}{eol}") };
                let padding = if *kind == 3 { " " } else { "" };
                let event = match kind {
                    7 => format!(": ping{eol}{eol}"),
                    8 => format!("data: [DONE]{eol}{eol}"),
                    6 => format!("{name}data:{{\"model\":\"m\",\"choices\":[{{\"delta\":{{\"reasoning\":{text}}}}}]}}{eol}{eol}"),
                    5 => format!("data: {{\"usage\":{{\"prompt_tokens\":3}},\"error\":{{\"type\":{text}}}}}{eol}{eol}"),
                    _ => format!("{name}data: {{\"p\":{text},\"model\":\"m\",\"choices\":[{{\"delta\":{{\"content\":{text}}}}}]{padding}}}{eol}{eol}"),
                };
                stream.push(event.into_bytes());
            }
            let whole = stream.concat();
            let mut bytes = whole.clone();
            for (at, byte) in &broken {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            let headers = [("content-type", "text/event-stream")];
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = &bytes[..];
            for part in stream.chunks(together) {
                let (piece, after) = rest.split_at(part.iter().map(Vec::len).sum());
                pieces.push(piece);
                rest = after;
            }
            let read = |pieces: &[&[u8]]| {
                let mut meter = meter(Api::OpenAiChat, 200, &headers, true);
                let mut seen = Vec::new();
                for piece in pieces {
                    meter.see(piece);
                    seen.push(meter.output_so_far());
                }
                (meter.finish(Ended::Whole), seen.last().copied())
            };
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(read(&pieces), read(&single));
        }

        #[test]
        fn any_words_in_any_split_read_the_same(
            words in proptest::collection::vec(prop::sample::select(WORDS.to_vec()), 0..30),
            cuts in proptest::collection::vec(1..12_usize, 1..10),
            api in prop::sample::select(ALL.to_vec()),
            content in prop::sample::select(vec!["text/event-stream", "application/json", "application/x-ndjson", "x/y"]),
        ) {
            let body = words.concat();
            let headers = [("content-type", content)];
            let whole = measured(api, &headers, &[body.as_bytes()]);
            prop_assert_eq!(&measured(api, &headers, &split(body.as_bytes(), &cuts)), &whole);
            let length = body.len().to_string();
            let told = [("content-type", content), ("content-length", length.as_str())];
            prop_assert_eq!(&measured(api, &told, &[body.as_bytes()]), &whole);
        }

        #[test]
        fn events_that_are_alike_are_read_as_in_full(
            picks in proptest::collection::vec((0..ALIKE.len(), 1..4_usize), 0..20),
        ) {
            // A member that differs each time keeps the second stream from being read by comparison.
            let (mut plain, mut told_apart, mut i) = (String::new(), String::new(), 0);
            for (pick, times) in picks {
                for _ in 0..times {
                    let event = ALIKE.get(pick).unwrap();
                    i += 1;
                    plain += &format!("data: {event}}}\n\n");
                    told_apart += &format!("data: {event},\"told_apart\":{i}}}\n\n");
                }
            }
            let plain = sse(Api::OpenAiChat, &[&plain], Ended::Whole);
            prop_assert_eq!(plain, sse(Api::OpenAiChat, &[&told_apart], Ended::Whole));
        }

        #[test]
        fn any_bytes_are_survived(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            cuts in proptest::collection::vec(1..40_usize, 1..10),
            api in prop::sample::select(ALL.to_vec()),
            encoding in prop::sample::select(vec!["", "gzip", "deflate", "br", "zstd"]),
        ) {
            let headers = [("content-encoding", encoding)];
            let whole = measured(api, &headers, &[&bytes]);
            prop_assert_eq!(measured(api, &headers, &split(&bytes, &cuts)), whole);
        }

        #[test]
        fn a_stream_cut_anywhere_is_survived(cut in 0..600_usize) {
            let stream = CHAT.concat();
            let cut = stream.as_bytes().get(..cut).unwrap_or(stream.as_bytes());
            let mut meter = meter(Api::OpenAiChat, 200, &[], true);
            meter.see(cut);
            meter.finish(Ended::BrokenOff);
        }
    }
}
