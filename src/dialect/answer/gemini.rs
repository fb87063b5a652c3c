//! Gemini and Vertex generateContent: a whole answer and every piece of a stream have the same shape.

use super::{Facts, NAME, error, put};
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::usage;

/// Reads an answer or a piece of one.
pub(super) fn read(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    cursor.object(|key, c| match key {
        b"candidates" => {
            let mut place = 0;
            c.array(|c| {
                candidate(c, place, facts);
                place += 1;
            });
        }
        b"modelVersion" => facts.model(c.string()),
        b"usageMetadata" => {
            let usage = usage::gemini(c);
            facts.usage(&usage);
        }
        b"promptFeedback" => {
            c.object(|key, c| {
                if key == b"blockReason"
                    && let Some(reason) = word(c)
                {
                    facts.finish_detail = Some(reason);
                }
            });
        }
        b"error" if c.peek() == b'{' => error::error(c, facts),
        _ => {}
    });
}

fn candidate(cursor: &mut Cursor<'_>, place: u64, facts: &mut Facts) {
    let mut index = place;
    let (mut content, mut reason) = (None, None);
    cursor.object(|key, c| match key {
        b"index" => index = c.count().unwrap_or(place),
        b"content" => content = Some(c.lay_aside()),
        b"finishReason" => reason = word(c),
        _ => {}
    });
    if index == 0 {
        facts.answers();
        if reason.is_some() {
            facts.finish_reason = reason;
        }
    }
    if let Some(mut content) = content {
        content.object(|key, c| {
            if key == b"parts" {
                c.array(|c| part(c, index == 0, facts));
            }
        });
    }
}

fn part(cursor: &mut Cursor<'_>, first: bool, facts: &mut Facts) {
    let (mut text, mut thought): (Option<Str<'_>>, _) = (None, false);
    // The call, and in it the name: streamed arguments come as calls without one.
    let mut call: Option<Option<Str<'_>>> = None;
    cursor.object(|key, c| match key {
        b"text" => text = c.string(),
        b"thought" => thought = c.truth(),
        b"functionCall" => {
            let mut name = None;
            c.object(|key, c| {
                if key == b"name" {
                    name = c.string();
                }
            });
            call = Some(name);
        }
        _ => {}
    });
    if thought || !first {
        facts.hidden(text);
    } else {
        facts.text(text);
    }
    if let Some(name) = call.filter(|_| first) {
        facts.call(name.map(|name| name.text(NAME)));
    }
}

/// A word of an enumeration, or its number where numbers were asked for.
fn word(cursor: &mut Cursor<'_>) -> Option<String> {
    if cursor.peek() == b'"' {
        let mut held = None;
        put(&mut held, cursor.string().filter(|w| !w.is_empty())?);
        return held;
    }
    let number = cursor.number()?;
    Some(String::from_utf8_lossy(number.get(..number.len().min(NAME))?).into_owned())
}
