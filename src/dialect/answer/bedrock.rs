//! Bedrock Converse, whole and streamed, and Nova's own shape, which is the same with the event's name as a key.

use super::{Facts, error};
use crate::dialect::cursor::Cursor;
use crate::dialect::usage;

/// Reads a whole answer.
pub(super) fn whole(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| member(key, c, facts));
}

/// Reads a member of an answer, or of an event that holds its like.
pub(super) fn member(key: &[u8], cursor: &mut Cursor<'_>, facts: &mut Facts) {
    match key {
        b"output" if cursor.peek() == b'{' => {
            cursor.object(|key, c| {
                if key == b"message" {
                    c.object(|key, c| {
                        if key == b"content" {
                            facts.answers();
                            c.array(|c| block(c, facts));
                        }
                    });
                }
            });
        }
        b"stopReason" => facts.finish(cursor.string()),
        b"usage" if cursor.peek() == b'{' => facts.usage(&usage::converse(cursor)),
        _ => {}
    }
}

/// A content block, or the start or a delta of one.
fn block(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"text" => facts.text(c.string()),
        b"toolUse" => {
            c.object(|key, c| match key {
                b"name" => facts.tool_call(c.string()),
                b"input" if c.peek() == b'"' => facts.hidden(c.string()),
                _ => {}
            });
        }
        b"reasoningContent" => reasoning(c, facts),
        _ => {}
    });
}

fn reasoning(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"text" => facts.hidden(c.string()),
        b"reasoningText" => {
            c.object(|key, c| {
                if key == b"text" {
                    facts.hidden(c.string());
                }
            });
        }
        _ => {}
    });
}

/// Reads an event of a stream by its name.
pub(super) fn event(name: &[u8], cursor: &mut Cursor<'_>, facts: &mut Facts) {
    facts.answers();
    match name {
        b"contentBlockDelta" | b"contentBlockStart" => {
            cursor.object(|key, c| {
                if matches!(key, b"delta" | b"start") {
                    block(c, facts);
                }
            });
        }
        b"messageStop" => {
            whole(cursor, facts);
            facts.said_end = true;
        }
        b"metadata" => whole(cursor, facts),
        _ => {}
    }
}

/// Reads an event whose name is its only key.
pub(super) fn keyed(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"error" if c.peek() == b'{' => error::error(c, facts),
        _ if c.peek() == b'{' => event(key, c, facts),
        _ => {}
    });
}
