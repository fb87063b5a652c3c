//! Ollama's own chat and generate: a whole answer and every line of a stream have the same shape.

use super::{Facts, error};
use crate::dialect::cursor::Cursor;
use crate::dialect::usage;
use crate::types::usage::Usage;

/// Reads an answer or a line of one.
pub(super) fn read(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut usage = Usage::default();
    cursor.object(|key, c| match key {
        b"model" => facts.model(c.string()),
        b"message" if c.peek() == b'{' => {
            facts.answers();
            c.object(|key, c| match key {
                b"content" => facts.text(c.string()),
                b"thinking" => facts.hidden(c.string()),
                b"tool_calls" => {
                    c.array(|c| call(c, facts));
                }
                _ => {}
            });
        }
        b"response" => facts.text(c.string()),
        b"thinking" => facts.hidden(c.string()),
        b"done" => facts.said_end |= c.truth(),
        b"done_reason" => facts.finish(c.string()),
        b"prompt_eval_count" => usage.input_tokens = c.count(),
        b"eval_count" => usage.output_tokens = c.count(),
        b"error" => {
            facts.failed = true;
            if c.peek() == b'{' {
                error::error(c, facts);
            }
        }
        _ => {}
    });
    if usage::reported(&usage) {
        facts.usage(&usage);
    }
}

fn call(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| {
        if key == b"function" {
            c.object(|key, c| {
                if key == b"name" {
                    facts.tool_call(c.string());
                }
            });
        }
    });
}
