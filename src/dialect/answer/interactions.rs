//! Gemini's Interactions, whole and streamed.

use super::{Facts, error};
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::usage;

/// Reads a whole interaction.
pub(super) fn whole(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"id" => facts.answer_id(c.string()),
        b"model" => facts.model(c.string()),
        b"status" => {
            facts.answers();
            facts.finish(c.string());
        }
        b"usage" if c.peek() == b'{' => facts.usage(&usage::interactions(c)),
        b"steps" | b"outputs" => {
            c.array(|c| step(c, facts));
        }
        b"error" if c.peek() == b'{' => error::error(c, facts),
        _ => {}
    });
}

/// A step, whole or at its start; older versions have its contents in its place.
fn step(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut whole = *cursor;
    let (mut kind, mut name, mut content): (Option<Str<'_>>, _, _) = (None, None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"name" => name = c.string(),
        b"content" if c.peek() == b'[' => content = Some(c.lay_aside()),
        _ => {}
    });
    let Some(kind) = kind else { return };
    if kind.is("function_call") {
        facts.tool_call(name);
    } else if kind.is("text") {
        text(&mut whole, facts);
    } else if kind.is("model_output")
        && let Some(mut content) = content
    {
        content.array(|c| text(c, facts));
    }
}

/// A content of a step.
fn text(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let (mut kind, mut text): (Option<Str<'_>>, _) = (None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"text" => text = c.string(),
        _ => {}
    });
    if kind.is_some_and(|k| k.is("text")) {
        facts.text(text);
    }
}

/// Reads an event of a stream.
pub(super) fn event(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut kind: Option<Str<'_>> = None;
    let (mut delta, mut status) = (None, None);
    cursor.object(|key, c| match key {
        b"event_type" => kind = c.string(),
        b"interaction" => {
            facts.answers();
            let (mut model, mut ended) = (None, None);
            c.object(|key, c| match key {
                b"id" => facts.answer_id(c.string()),
                b"model" => model = c.string(),
                b"status" => ended = c.string(),
                b"usage" if c.peek() == b'{' => facts.usage(&usage::interactions(c)),
                b"error" if c.peek() == b'{' => error::error(c, facts),
                _ => {}
            });
            facts.model(model);
            status = ended;
        }
        b"status" => status = c.string(),
        b"step" | b"content" => step(c, facts),
        b"delta" => delta = Some(c.lay_aside()),
        b"error" if c.peek() == b'{' => error::error(c, facts),
        _ => {}
    });
    // That it goes on is no reason for its end.
    facts.finish(status.filter(|s| !s.is("in_progress")));
    if let Some(mut delta) = delta {
        let (mut kind, mut text, mut hidden): (Option<Str<'_>>, _, _) = (None, None, None);
        delta.object(|key, c| match key {
            b"type" => kind = c.string(),
            b"text" => text = c.string(),
            b"arguments" => hidden = c.string(),
            _ => {}
        });
        if kind.is_some_and(|k| k.is("text")) {
            facts.text(text);
        } else {
            facts.hidden(text);
        }
        facts.hidden(hidden);
    }
    facts.said_end |= kind.is_some_and(|k| k.is("interaction.completed") || k.is("interaction.complete"));
}
