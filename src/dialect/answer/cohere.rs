//! Cohere chat: version 2 (event streams) and version 1 (a document a line), whole and streamed.

use super::Facts;
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::usage;

/// Reads a whole answer of either version.
pub(super) fn whole(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"message" if c.peek() == b'{' => {
            facts.answers();
            message(c, facts);
        }
        b"text" => facts.text(c.string()),
        b"tool_calls" => calls(c, facts),
        b"finish_reason" => facts.finish(c.string()),
        b"usage" | b"meta" => facts.usage(&usage::cohere(c)),
        b"model" => facts.model(c.string()),
        _ => {}
    });
}

/// A message of version 2, or a delta of one: lists become single objects in deltas.
fn message(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"content" if c.peek() == b'[' => {
            c.array(|c| content(c, facts));
        }
        b"content" if c.peek() == b'{' => content(c, facts),
        b"tool_plan" => facts.hidden(c.string()),
        b"tool_calls" => calls(c, facts),
        _ => {}
    });
}

fn content(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"text" => facts.text(c.string()),
        b"thinking" => facts.hidden(c.string()),
        _ => {}
    });
}

fn calls(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    if cursor.peek() == b'[' {
        cursor.array(|c| call(c, facts));
    } else if cursor.peek() == b'{' {
        call(cursor, facts);
    }
}

/// A tool call of version 2 (`function.name`) or 1 (`name`), or a delta of its arguments.
fn call(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"name" => facts.tool_call(c.string()),
        b"function" => {
            c.object(|key, c| match key {
                b"name" => facts.tool_call(c.string()),
                b"arguments" => facts.hidden(c.string()),
                _ => {}
            });
        }
        _ => {}
    });
}

/// Reads an event of version 2, or a line of version 1.
pub(super) fn event(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let (mut kind, mut text, mut finish): (Option<Str<'_>>, _, _) = (None, None, None);
    let (mut delta, mut tools, mut response, mut bare) = (None, None, None, false);
    cursor.object(|key, c| match key {
        b"type" | b"event_type" => kind = c.string(),
        b"text" => text = c.string(),
        b"finish_reason" => finish = c.string(),
        b"delta" => delta = Some(c.lay_aside()),
        b"tool_calls" => tools = Some(c.lay_aside()),
        b"response" => response = Some(c.lay_aside()),
        b"is_finished" => bare = true,
        _ => {}
    });
    // The oldest models name no kind of event.
    let kind = kind.unwrap_or_default();
    if kind.is_empty() && !bare {
        return;
    }
    facts.answers();
    facts.finish(finish);
    facts.said_end |= kind.is("message-end") || kind.is("stream-end");
    if kind.is("text-generation") || kind.is_empty() {
        facts.text(text);
    } else if kind.is("tool-calls-generation")
        && let Some(mut tools) = tools
    {
        calls(&mut tools, facts);
    }
    if let Some(mut response) = response {
        // It repeats text and tools; what is new are the counts.
        response.object(|key, c| match key {
            b"meta" => facts.usage(&usage::cohere(c)),
            b"finish_reason" => facts.finish(c.string()),
            _ => {}
        });
    }
    if let Some(mut delta) = delta {
        delta.object(|key, c| match key {
            b"message" => message(c, facts),
            b"finish_reason" => facts.finish(c.string()),
            b"usage" => facts.usage(&usage::cohere(c)),
            b"error" => facts.failed |= c.string().is_some(),
            _ => {}
        });
    }
}
