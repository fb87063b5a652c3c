//! Chat Completions and Completions, of OpenAI and all who imitate them; whole and streamed.

use smallvec::SmallVec;

use super::{Facts, TOOL_CALLS, error};
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::usage;
use crate::types::usage::Usage;

/// Where a chat answer is being read.
#[derive(Debug, Default)]
pub(in crate::dialect) struct Chat {
    /// Text stands in `text` beside the choice's index, not in a message.
    completions: bool,
    /// The streamed tool calls so far: index and a hash of the id.
    calls: SmallVec<[(u64, u64); 1]>,
    function_called: bool,
}

/// The message or delta of a choice.
#[derive(Default)]
struct Said<'a> {
    content: Option<Str<'a>>,
    parts: Option<Cursor<'a>>,
    refusal: Option<Str<'a>>,
    reasoning: Option<Str<'a>>,
    tool_calls: Option<Cursor<'a>>,
    function: Option<Cursor<'a>>,
}

impl Chat {
    /// For Completions.
    pub(super) fn completions() -> Self {
        Self {
            completions: true,
            ..Self::default()
        }
    }

    /// Reads a whole answer, or a chunk of a stream.
    pub(super) fn read(&mut self, cursor: &mut Cursor<'_>, chunk: bool, facts: &mut Facts) {
        // Some report usage elsewhere; where it stands in its own place too, that holds.
        let (mut usage, mut elsewhere) = (None, None);
        cursor.object(|key, c| match key {
            b"choices" => {
                let mut place = 0;
                c.array(|c| {
                    self.choice(c, place, chunk, facts, &mut elsewhere);
                    place += 1;
                });
            }
            b"model" => facts.model(c.string()),
            b"usage" if c.peek() == b'{' => usage = Some(usage::common(c)),
            b"x_groq" => {
                c.object(|key, c| {
                    if key == b"usage" && c.peek() == b'{' {
                        elsewhere = Some(usage::common(c));
                    }
                });
            }
            b"error" if c.peek() == b'{' => error::error(c, facts),
            _ => {}
        });
        for usage in [elsewhere, usage].into_iter().flatten() {
            facts.usage(&usage);
        }
    }

    fn choice(
        &mut self,
        cursor: &mut Cursor<'_>,
        place: u64,
        chunk: bool,
        facts: &mut Facts,
        elsewhere: &mut Option<Usage>,
    ) {
        let mut index = place;
        let mut said = None;
        let (mut text, mut reason, mut other_reason) = (None, None, None);
        let wanted: &[u8] = if chunk { b"delta" } else { b"message" };
        cursor.object(|key, c| match key {
            b"index" => index = c.count().unwrap_or(place),
            b"finish_reason" => reason = c.string(),
            b"stop_reason" if self.completions => other_reason = c.string(),
            b"text" if self.completions => text = c.string(),
            b"usage" if c.peek() == b'{' => *elsewhere = Some(usage::common(c)),
            key if key == wanted => said = Some(Said::read(c)),
            _ => {}
        });
        let said = said.unwrap_or_default();
        if index != 0 {
            for text in [said.content, said.refusal, said.reasoning, text] {
                facts.hidden(text);
            }
            return;
        }
        facts.answers();
        facts.finish(reason.or(other_reason));
        facts.text(text.or(said.content));
        facts.refusal(said.refusal);
        facts.hidden(said.reasoning);
        if let Some(mut parts) = said.parts {
            parts.array(|c| part(c, facts));
        }
        if let Some(mut calls) = said.tool_calls {
            calls.array(|c| self.call(c, chunk, facts));
        }
        if let Some(mut function) = said.function {
            let (mut name, mut arguments) = (None, None);
            function.object(|key, c| match key {
                b"name" => name = c.string().filter(|n| !n.is_empty()),
                b"arguments" => arguments = c.string(),
                _ => {}
            });
            if name.is_some() && !std::mem::replace(&mut self.function_called, true) {
                facts.tool_call(name);
            }
            facts.hidden(arguments);
        }
    }

    /// A tool call of a message, or a piece of one.
    fn call(&mut self, cursor: &mut Cursor<'_>, chunk: bool, facts: &mut Facts) {
        let (mut index, mut id, mut name, mut arguments) = (None, None, None, None);
        cursor.object(|key, c| match key {
            b"index" => index = c.count(),
            b"id" => id = c.string().filter(|i| !i.is_empty()),
            b"function" | b"custom" => {
                c.object(|key, c| match key {
                    b"name" => name = c.string().filter(|n| !n.is_empty()),
                    b"arguments" | b"input" => arguments = c.string(),
                    _ => {}
                });
            }
            _ => {}
        });
        facts.hidden(arguments);
        let Some(name) = name else { return };
        if let Some(index) = index
            && chunk
        {
            // A name that comes again for the same call is not another call.
            let id = id.map_or(0, |id| hash(id.raw()));
            match self.calls.iter_mut().find(|call| call.0 == index) {
                Some(call) if id == 0 || call.1 == id => return,
                Some(call) => call.1 = id,
                None => self.calls.push((index, id)),
            }
            self.calls.truncate(TOOL_CALLS);
        }
        facts.tool_call(Some(name));
    }
}

impl<'a> Said<'a> {
    #[inline]
    fn read(cursor: &mut Cursor<'a>) -> Self {
        let mut said = Self::default();
        cursor.object(|key, c| match key {
            b"content" if c.peek() == b'[' => said.parts = Some(c.lay_aside()),
            b"content" => said.content = c.string(),
            b"refusal" => said.refusal = c.string(),
            b"reasoning_content" | b"reasoning" => said.reasoning = c.string().or(said.reasoning),
            b"tool_calls" if c.peek() == b'[' => said.tool_calls = Some(c.lay_aside()),
            b"function_call" if c.peek() == b'{' => said.function = Some(c.lay_aside()),
            _ => {}
        });
        said
    }
}

/// A typed part of a content list.
fn part(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let (mut kind, mut text, mut refusal) = (None, None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"text" => text = c.string(),
        b"refusal" => refusal = c.string(),
        b"thinking" => {
            c.array(|c| {
                c.object(|key, c| {
                    if key == b"text" {
                        facts.hidden(c.string());
                    }
                });
            });
        }
        _ => {}
    });
    if kind.is_none_or(|k| k.is("text") || k.is("output_text")) {
        facts.text(text);
    }
    facts.refusal(refusal);
}

/// FNV-1a: ids only have to be told apart within an answer.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3)
    })
}
