//! Anthropic Messages, whole and streamed.

use super::{Facts, error};
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::usage;

/// Reads a whole message.
pub(super) fn whole(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    message(cursor, facts, true);
}

/// Reads a message; that of `message_start` reports an output count that is not the output's.
fn message(cursor: &mut Cursor<'_>, facts: &mut Facts, complete: bool) {
    cursor.object(|key, c| match key {
        b"model" => facts.model(c.string()),
        // At the start of a stream it is empty, or repeats what was called before.
        b"content" if complete && c.peek() == b'[' => {
            facts.answers();
            c.array(|c| {
                block(c, facts);
            });
        }
        b"stop_reason" => facts.finish(c.string()),
        b"usage" if c.peek() == b'{' => {
            facts.usage(&usage::common(c));
            facts.output_open = !complete;
        }
        b"error" if c.peek() == b'{' => error::error(c, facts),
        _ => {}
    });
}

/// A content block, whole or at its start.
fn block(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let (mut kind, mut text, mut name, mut thinking) = (None, None, None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"text" => text = c.string(),
        b"name" => name = c.string(),
        b"thinking" => thinking = c.string(),
        _ => {}
    });
    let Some(kind) = kind else { return };
    if kind.is("text") {
        facts.text(text);
    } else if kind.is("tool_use") {
        facts.tool_call(name);
    } else if kind.is("thinking") {
        facts.hidden(thinking);
    }
}

#[derive(Default)]
struct Delta<'a> {
    kind: Option<Str<'a>>,
    text: Option<Str<'a>>,
    hidden: Option<Str<'a>>,
    stop: Option<Str<'a>>,
}

/// Reads an event of a stream.
pub(super) fn event(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut kind: Option<Str<'_>> = None;
    let mut delta = Delta::default();
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"delta" => {
            c.object(|key, c| match key {
                b"type" => delta.kind = c.string(),
                b"text" => delta.text = c.string(),
                b"thinking" | b"partial_json" => delta.hidden = c.string(),
                b"stop_reason" => delta.stop = c.string(),
                _ => {}
            });
        }
        b"message" if c.peek() == b'{' => {
            facts.answers();
            message(c, facts, false);
        }
        b"content_block" => block(c, facts),
        b"usage" if c.peek() == b'{' => facts.usage(&usage::common(c)),
        b"error" if c.peek() == b'{' => error::error(c, facts),
        _ => {}
    });
    if delta.kind.is_none_or(|k| k.is("text_delta")) {
        facts.text(delta.text);
    }
    facts.hidden(delta.hidden);
    facts.finish(delta.stop);
    facts.said_end |= kind.is_some_and(|k| k.is("message_stop"));
}
