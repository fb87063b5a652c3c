//! Bedrock InvokeModel: every model family answers in its own shape, told apart by its keys.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::chat::Chat;
use super::{Facts, anthropic, bedrock, cohere};
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::usage;
use crate::types::usage::Usage;

/// Where an answer is being read.
#[derive(Debug)]
pub(in crate::dialect) struct Invoke {
    chat: Chat,
}

impl Default for Invoke {
    fn default() -> Self {
        // Some of OpenAI's imitators (DeepSeek) answer in the shape of Completions here.
        Self {
            chat: Chat::completions(),
        }
    }
}

/// Decodes a `chunk` of a stream, an event in base64, into `event`; false when there is none.
pub(super) fn chunk(payload: &[u8], event: &mut Vec<u8>) -> bool {
    let mut bytes: Option<Str<'_>> = None;
    Cursor::new(payload).object(|key, c| {
        if key == b"bytes" {
            bytes = c.string();
        }
    });
    event.clear();
    bytes.is_some_and(|bytes| STANDARD.decode_vec(bytes.raw(), event).is_ok())
}

/// A shape of body.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Anthropic,
    AnthropicLegacy,
    Nova,
    Titan,
    Llama,
    Mistral,
    Cohere,
    CohereCommandR,
    Ai21,
    OpenAi,
    Embedding,
}

impl Invoke {
    /// Reads a whole answer, or an event of a stream.
    pub(super) fn read(&mut self, cursor: &mut Cursor<'_>, event: bool, facts: &mut Facts) {
        let mut metrics = None;
        let mut family = None;
        let mut look = *cursor;
        look.object(|key, c| match key {
            b"amazon-bedrock-invocationMetrics" => metrics = Some(usage::invocation_metrics(c)),
            _ => family = family.or_else(|| family_of(key, c, event)),
        });
        match family {
            Some(Family::Anthropic) if event => anthropic::event(cursor, facts),
            Some(Family::Anthropic) => anthropic::whole(cursor, facts),
            Some(Family::Nova) if event => bedrock::keyed(cursor, facts),
            Some(Family::Nova) => bedrock::whole(cursor, facts),
            Some(Family::CohereCommandR) => {
                // Its own counts include a prompt of Cohere's that Bedrock does not count.
                let usage = facts.usage;
                if event {
                    cohere::event(cursor, facts);
                } else {
                    cohere::whole(cursor, facts);
                }
                facts.usage = usage;
            }
            Some(Family::OpenAi) => self.chat.read(cursor, event, facts),
            Some(Family::AnthropicLegacy) => {
                cursor.object(|key, c| match key {
                    b"completion" => facts.text(c.string()),
                    b"stop_reason" => facts.finish(c.string()),
                    _ => {}
                });
            }
            Some(Family::Titan | Family::Embedding) => titan(cursor, facts),
            Some(Family::Llama) => llama(cursor, facts),
            Some(Family::Mistral | Family::Cohere) => listed(cursor, facts),
            Some(Family::Ai21) => ai21(cursor, facts),
            None => {}
        }
        if let Some(mut usage) = metrics {
            // Bedrock's own count, on the last event, fills what the family did not report.
            usage::merge(&mut usage, &facts.usage);
            facts.usage(&usage);
            facts.said_end = true;
        }
    }
}

/// The family that a top-level key belongs to.
fn family_of(key: &[u8], cursor: &mut Cursor<'_>, event: bool) -> Option<Family> {
    Some(match key {
        b"choices" => Family::OpenAi,
        b"completion" => Family::AnthropicLegacy,
        b"generation" => Family::Llama,
        b"outputs" => Family::Mistral,
        b"generations" => Family::Cohere,
        b"completions" => Family::Ai21,
        b"results" | b"outputText" => Family::Titan,
        b"event_type" | b"is_finished" | b"response_id" | b"chat_history" => Family::CohereCommandR,
        b"inputTextTokenCount" | b"embedding" | b"embeddings" | b"embeddingsByType" => Family::Embedding,
        b"output" if cursor.peek() == b'{' => Family::Nova,
        b"messageStart" | b"contentBlockStart" | b"contentBlockDelta" | b"contentBlockStop"
        | b"messageStop" | b"metadata"
            if cursor.peek() == b'{' =>
        {
            Family::Nova
        }
        b"content" if cursor.peek() == b'[' => Family::Anthropic,
        b"type" if event => {
            let kind = cursor.string()?;
            if kind.is("completion") {
                Family::AnthropicLegacy
            } else {
                Family::Anthropic
            }
        }
        _ => return None,
    })
}

fn titan(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut usage = Usage::default();
    let mut place = 0;
    cursor.object(|key, c| match key {
        b"inputTextTokenCount" => usage.input_tokens = c.count(),
        b"totalOutputTextTokenCount" => usage.output_tokens = c.count(),
        b"outputText" => facts.text(c.string()),
        b"completionReason" => facts.finish(c.string()),
        b"results" => {
            facts.answers();
            c.array(|c| {
                let first = place == 0;
                place += 1;
                if first {
                    c.object(|key, c| match key {
                        b"tokenCount" => usage.output_tokens = c.count(),
                        b"outputText" => facts.text(c.string()),
                        b"completionReason" => facts.finish(c.string()),
                        _ => {}
                    });
                }
            });
        }
        _ => {}
    });
    facts.usage(&usage);
}

fn llama(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut usage = Usage::default();
    cursor.object(|key, c| match key {
        b"generation" => facts.text(c.string()),
        b"prompt_token_count" => usage.input_tokens = c.count(),
        b"generation_token_count" => usage.output_tokens = c.count(),
        b"stop_reason" => facts.finish(c.string()),
        _ => {}
    });
    facts.usage(&usage);
}

/// Mistral's `outputs` and Cohere's `generations`: the first one counts.
fn listed(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut place = 0;
    cursor.object(|key, c| match key {
        b"outputs" | b"generations" => {
            facts.answers();
            c.array(|c| {
                let first = place == 0;
                place += 1;
                if first {
                    c.object(|key, c| match key {
                        b"text" => facts.text(c.string()),
                        b"stop_reason" | b"finish_reason" => facts.finish(c.string()),
                        _ => {}
                    });
                }
            });
        }
        _ => {}
    });
}

fn ai21(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut place = 0;
    cursor.object(|key, c| {
        if key != b"completions" {
            return;
        }
        facts.answers();
        c.array(|c| {
            let first = place == 0;
            place += 1;
            if first {
                c.object(|key, c| match key {
                    b"data" => {
                        c.object(|key, c| {
                            if key == b"text" {
                                facts.text(c.string());
                            }
                        });
                    }
                    b"finishReason" => {
                        c.object(|key, c| {
                            if key == b"reason" {
                                facts.finish(c.string());
                            }
                        });
                    }
                    _ => {}
                });
            }
        });
    });
}
