//! OpenAI's Responses, whole and streamed.

use super::{Facts, error, put};
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::usage;

/// Reads a whole answer.
pub(super) fn whole(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    response(cursor, facts);
}

/// Reads an event of a stream. Deltas are counted only: the terminal event repeats the whole output.
pub(super) fn event(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let mut kind: Option<Str<'_>> = None;
    let (mut delta, mut inner, mut item, mut failure, mut code) = (None, None, None, None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"delta" => delta = c.string(),
        b"response" => inner = Some(c.lay_aside()),
        b"item" => item = Some(c.lay_aside()),
        b"error" => failure = Some(c.lay_aside()),
        b"code" => code = Some(c.lay_aside()),
        _ => {}
    });
    let Some(kind) = kind else { return };
    facts.answers();
    match kind.raw() {
        b"response.output_text.delta" => facts.text(delta),
        b"response.refusal.delta" => facts.refusal(delta),
        b"response.output_item.done" => {
            if let Some(mut item) = item {
                // Its text came in deltas.
                self::item(&mut item, false, facts);
            }
        }
        b"response.completed" | b"response.incomplete" | b"response.failed" | b"response.done" => {
            if let Some(mut inner) = inner {
                facts.said_end = true;
                response(&mut inner, facts);
            }
        }
        b"error" => {
            facts.failed = true;
            if let Some(mut failure) = failure {
                error::error(&mut failure, facts);
            } else if let Some(mut code) = code {
                error::code(&mut code, facts);
            }
        }
        _ => {
            facts.hidden(delta);
            if let Some(mut inner) = inner {
                inner.object(|key, c| match key {
                    b"id" => facts.answer_id(c.string()),
                    b"model" => facts.model(c.string()),
                    _ => {}
                });
            }
        }
    }
}

/// Reads a response object; an output that it holds goes before what came in pieces.
fn response(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"id" => facts.answer_id(c.string()),
        b"model" => facts.model(c.string()),
        b"status" => {
            facts.answers();
            facts.finish(c.string());
        }
        b"usage" if c.peek() == b'{' => facts.usage(&usage::common(c)),
        b"error" if c.peek() == b'{' => error::error(c, facts),
        b"incomplete_details" => {
            c.object(|key, c| {
                if key == b"reason"
                    && let Some(reason) = c.string().filter(|r| !r.is_empty())
                {
                    put(&mut facts.finish_detail, reason);
                }
            });
        }
        b"output" => {
            facts.answers();
            let mut first = true;
            c.array(|c| {
                if std::mem::take(&mut first) {
                    facts.text = Some(Default::default());
                    facts.refusal = None;
                    facts.tool_calls.clear();
                }
                item(c, true, facts);
            });
        }
        _ => {}
    });
}

/// An item of an output; `text`: its text counts.
fn item(cursor: &mut Cursor<'_>, text: bool, facts: &mut Facts) {
    let (mut kind, mut name, mut content): (Option<Str<'_>>, _, _) = (None, None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"name" => name = c.string(),
        b"content" if c.peek() == b'[' => content = Some(c.lay_aside()),
        _ => {}
    });
    let Some(kind) = kind else { return };
    match kind.raw() {
        b"function_call" | b"custom_tool_call" => facts.tool_call(name),
        b"message" if text => {
            if let Some(mut content) = content {
                content.array(|c| part(c, facts));
            }
        }
        _ => {}
    }
}

fn part(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let (mut kind, mut text, mut refusal): (Option<Str<'_>>, _, _) = (None, None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"text" => text = c.string(),
        b"refusal" => refusal = c.string(),
        _ => {}
    });
    if kind.is_some_and(|k| k.is("output_text")) {
        facts.text(text);
    }
    facts.refusal(refusal);
}
