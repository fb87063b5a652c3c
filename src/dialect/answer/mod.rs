//! What answers say: one reader per API, all of which write down the same facts.

mod anthropic;
mod bedrock;
mod chat;
mod cohere;
mod error;
mod gemini;
mod interactions;
mod invoke;
mod ollama;
mod plain;
mod responses;
mod template;
#[cfg(test)]
mod tests;
mod text;

use std::ops::Range;

use self::template::Template;
use self::text::Text;
use super::cursor::{Cursor, Str};
use super::ending::Trail;
use super::eventstream::Message;
use super::hints::MAX_ANSWER_ID;
use super::repetition::Tail;
use super::sse::Event;
use super::table::Api;
use super::usage;
use crate::types::usage::Usage;

/// Longest name (of a model, a tool, a reason, an error) that is kept, in bytes.
const NAME: usize = 512;
/// Most tool calls of one answer whose names are kept.
const TOOL_CALLS: usize = 256;

/// Room for an event that is kept for the next one, in bytes.
const SCRATCH: usize = 4 << 10;

/// What an answer said so far.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) usage: Usage,
    /// The output count so far was taken before there was an output (Anthropic's `message_start`).
    pub(super) output_open: bool,
    pub(super) model: Option<String>,
    /// By what a later request names this answer, where an API has such a thing.
    pub(super) answer_id: Option<String>,
    pub(super) finish_reason: Option<String>,
    pub(super) finish_detail: Option<String>,
    pub(super) error_type: Option<String>,
    pub(super) error_code: Option<String>,
    pub(super) tool_calls: Vec<Option<String>>,
    /// The output text, when this is an answer that has one (be it empty).
    pub(super) text: Option<Text>,
    pub(super) refusal: Option<Text>,
    /// Characters that were put out but are no output text: reasoning, tool arguments, further choices.
    pub(super) hidden_chars: u64,
    /// Text, reasoning or a tool call was put out.
    pub(super) first_token: bool,
    /// The answer said that it is over.
    pub(super) said_end: bool,
    /// An error was told.
    pub(super) failed: bool,
    /// The body at hand is a whole answer.
    whole: bool,
    /// What the event at hand put out.
    puts: Puts,
    /// How much text is kept, in bytes; 0 when it is only counted.
    pub(super) keep: usize,
    /// For streams that may be ended early.
    pub(super) watch: Option<Box<Watch>>,
}

/// What is kept of a stream that may be ended early.
#[derive(Debug)]
pub(super) struct Watch {
    /// What its end has to agree with.
    pub(super) trail: Trail,
    /// The end of its output, where it is looked at.
    pub(super) tail: Option<Tail>,
}

/// What an event put out, for [`Template`].
#[derive(Debug, Default)]
pub(super) struct Puts {
    /// How often it put out something.
    times: u32,
    /// Where its text stands in memory, when it put out text.
    text: Range<usize>,
    hidden: bool,
}

impl Facts {
    /// Nothing yet; `keep`: how much text is kept, in bytes.
    pub(super) fn new(keep: usize) -> Self {
        Self {
            keep,
            ..Self::default()
        }
    }

    fn put_out(&mut self, text: &Str<'_>, hidden: bool) {
        self.first_token = true;
        self.puts.times += 1;
        self.puts.text = text.address();
        self.puts.hidden = hidden;
    }

    fn model(&mut self, name: Option<Str<'_>>) {
        // In a stream an empty name stands for none; a whole answer is taken at its word.
        if let Some(name) = name.filter(|n| self.whole || !n.is_empty()) {
            put(&mut self.model, name);
        }
    }

    /// The answer's id; one that is too long is left out, since half of it would be another.
    fn answer_id(&mut self, id: Option<Str<'_>>) {
        if let Some(id) = id.filter(|id| !id.is_empty() && id.raw().len() <= MAX_ANSWER_ID) {
            put(&mut self.answer_id, id);
        }
    }

    fn finish(&mut self, reason: Option<Str<'_>>) {
        if let Some(reason) = reason.filter(|r| !r.is_empty()) {
            put(&mut self.finish_reason, reason);
        }
    }

    #[inline]
    fn follow(&mut self, text: &Str<'_>) {
        if let Some(watch) = &mut self.watch
            && let Some(tail) = &mut watch.tail
        {
            tail.push(text.raw());
        }
    }

    /// This is an answer with an output text.
    fn answers(&mut self) {
        self.text.get_or_insert_default();
    }

    fn text(&mut self, text: Option<Str<'_>>) {
        if let Some(text) = text {
            if !text.is_empty() {
                self.put_out(&text, false);
                self.follow(&text);
            }
            let keep = self.keep;
            self.text.get_or_insert_default().push(text, keep);
        }
    }

    fn refusal(&mut self, text: Option<Str<'_>>) {
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            self.put_out(&text, false);
            self.puts.times += 1;
            let keep = self.keep;
            self.refusal.get_or_insert_default().push(text, keep);
        }
    }

    /// Something was put out that is no output text.
    fn hidden(&mut self, text: Option<Str<'_>>) {
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            self.put_out(&text, true);
            self.follow(&text);
            self.hidden_chars = self.hidden_chars.saturating_add(text.chars());
        }
    }

    fn tool_call(&mut self, name: Option<Str<'_>>) {
        if let Some(name) = name {
            self.call(Some(name.text(NAME)));
        }
    }

    /// A call by this name, or one that gives none.
    fn call(&mut self, name: Option<String>) {
        // Never like the one before it.
        self.puts.times += 2;
        self.first_token = true;
        if self.tool_calls.len() < TOOL_CALLS {
            self.tool_calls.push(name);
        }
    }

    fn usage(&mut self, newer: &Usage) {
        usage::merge(&mut self.usage, newer);
        self.output_open &= newer.output_tokens.is_none();
    }

    /// Characters put out so far.
    pub(super) fn chars(&self) -> u64 {
        let text = self.text.as_ref().map_or(0, Text::chars);
        let refusal = self.refusal.as_ref().map_or(0, Text::chars);
        text.saturating_add(refusal).saturating_add(self.hidden_chars)
    }
}

/// Replaces what is held unless it is the same, as it is on every chunk of a stream.
fn put(held: &mut Option<String>, new: Str<'_>) {
    if held.as_ref().is_none_or(|h| h.as_bytes() != new.raw()) {
        *held = Some(new.text(NAME));
    }
}

/// Reads the answer of one API.
#[derive(Debug)]
pub(super) struct Reader {
    shape: Shape,
    template: Template,
    /// The decoded event of Bedrock's that is at hand.
    scratch: Vec<u8>,
}

/// How the answers of an API are shaped, and where one is being read.
#[derive(Debug)]
enum Shape {
    Chat(chat::Chat),
    Responses,
    Anthropic,
    Gemini,
    Interactions,
    Ollama,
    Cohere,
    Converse,
    Invoke(invoke::Invoke),
    Plain(Api),
}

impl Reader {
    pub(super) fn for_api(api: Api) -> Self {
        let shape = match api {
            Api::OpenAiChat => Shape::Chat(chat::Chat::default()),
            Api::OpenAiCompletions => Shape::Chat(chat::Chat::completions()),
            Api::OpenAiResponses => Shape::Responses,
            Api::AnthropicMessages => Shape::Anthropic,
            Api::GeminiGenerateContent => Shape::Gemini,
            Api::GeminiInteractions => Shape::Interactions,
            Api::OllamaChat | Api::OllamaGenerate => Shape::Ollama,
            Api::CohereChat => Shape::Cohere,
            Api::BedrockConverse => Shape::Converse,
            Api::BedrockInvoke => Shape::Invoke(invoke::Invoke::default()),
            Api::OpenAiEmbeddings
            | Api::OpenAiImages
            | Api::OpenAiAudio
            | Api::OpenAiModerations
            | Api::Models
            | Api::AnthropicCountTokens
            | Api::GeminiCountTokens
            | Api::GeminiEmbed
            | Api::OllamaEmbed
            | Api::Other => Shape::Plain(api),
        };
        Self {
            shape,
            template: Template::default(),
            scratch: Vec::new(),
        }
    }

    /// Reads a whole body; `ok`: its status is one of success.
    pub(super) fn whole(&mut self, body: &[u8], ok: bool, facts: &mut Facts) {
        let mut cursor = Cursor::new(body);
        facts.whole = true;
        if !ok {
            error::body(&mut cursor, facts);
            return;
        }
        match &mut self.shape {
            Shape::Chat(chat) => chat.read(&mut cursor, false, facts),
            Shape::Responses => responses::whole(&mut cursor, facts),
            Shape::Anthropic => anthropic::whole(&mut cursor, facts),
            Shape::Gemini => gemini::read(&mut cursor, facts),
            Shape::Interactions => interactions::whole(&mut cursor, facts),
            Shape::Ollama => ollama::read(&mut cursor, facts),
            Shape::Cohere => cohere::whole(&mut cursor, facts),
            Shape::Converse => bedrock::whole(&mut cursor, facts),
            Shape::Invoke(invoke) => invoke.read(&mut cursor, false, facts),
            Shape::Plain(api) => plain::whole(*api, &mut cursor, facts),
        }
    }

    /// Reads an event, a line, or an element of a streamed array.
    pub(super) fn event(&mut self, event: Event<'_>, facts: &mut Facts) {
        if event.data.starts_with(b"[DONE]") {
            facts.said_end = true;
            return;
        }
        if event.error {
            self.template.miss();
        }
        if let Some(watch) = &mut facts.watch {
            watch.trail.event(b"", event.data);
        }
        self.alike(event.data, facts, Self::known);
        if event.error && !facts.failed {
            error::body(&mut Cursor::new(event.data), facts);
        }
    }

    /// Reads server-sent events from the start of one on, as long as each is like the one before it and lies whole in
    /// the piece, without looking for the ends of lines; gives back the rest of the piece.
    #[inline]
    pub(super) fn events_alike<'p>(&mut self, piece: &'p [u8], limit: usize, facts: &mut Facts) -> &'p [u8] {
        if facts.watch.is_some() {
            // A stream that may be ended early is followed event by event.
            return piece;
        }
        let mut rest = piece;
        while let Some((text, after)) = self.template.framed(rest, limit) {
            self.hit(text, facts);
            rest = after;
        }
        rest
    }

    #[inline]
    fn hit(&mut self, text: Str<'_>, facts: &mut Facts) {
        self.template.hit();
        if facts.puts.hidden {
            facts.hidden(Some(text));
        } else {
            facts.text(Some(text));
        }
    }

    /// Reads an event: by the template when it is like the last one, by `read` when it is not.
    #[inline]
    fn alike(&mut self, event: &[u8], facts: &mut Facts, read: impl FnOnce(&mut Self, &[u8], &mut Facts)) {
        if let Some(text) = self.template.text(event) {
            self.hit(text, facts);
            return;
        }
        self.template.miss();
        facts.puts = Puts::default();
        read(self, event, facts);
        if facts.puts.times == 1 {
            self.template.learn(event, &facts.puts.text);
        }
    }

    /// Reads an event in the shape that the API is known to send.
    fn known(&mut self, data: &[u8], facts: &mut Facts) {
        let mut cursor = Cursor::new(data);
        match &mut self.shape {
            Shape::Chat(chat) => chat.read(&mut cursor, true, facts),
            Shape::Responses => responses::event(&mut cursor, facts),
            Shape::Anthropic => anthropic::event(&mut cursor, facts),
            Shape::Gemini => gemini::read(&mut cursor, facts),
            Shape::Interactions => interactions::event(&mut cursor, facts),
            Shape::Ollama => ollama::read(&mut cursor, facts),
            Shape::Cohere => cohere::event(&mut cursor, facts),
            Shape::Converse => bedrock::keyed(&mut cursor, facts),
            Shape::Invoke(invoke) => invoke.read(&mut cursor, true, facts),
            Shape::Plain(api) => plain::event(*api, &mut cursor, facts),
        }
    }

    /// Reads a message of an AWS event stream.
    pub(super) fn message(&mut self, message: Message<'_>, facts: &mut Facts) {
        if message.exception {
            facts.failed = true;
            facts.error_type = Some(String::from_utf8_lossy(message.name).chars().take(NAME).collect());
            return;
        }
        if let Some(watch) = &mut facts.watch {
            watch.trail.event(message.name, message.payload);
        }
        match self.shape {
            Shape::Converse if message.name == b"contentBlockDelta" => {
                self.alike(message.payload, facts, |_, payload, facts| {
                    bedrock::event(b"contentBlockDelta", &mut Cursor::new(payload), facts);
                });
            }
            Shape::Converse => {
                self.template.miss();
                bedrock::event(message.name, &mut Cursor::new(message.payload), facts);
            }
            Shape::Invoke(_) => {
                let mut scratch = std::mem::take(&mut self.scratch);
                if invoke::chunk(message.payload, &mut scratch) {
                    self.alike(&scratch, facts, Self::known);
                }
                if scratch.capacity() <= SCRATCH {
                    self.scratch = scratch;
                }
            }
            _ => {}
        }
    }
}
