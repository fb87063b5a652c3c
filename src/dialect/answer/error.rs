//! Error bodies of all APIs (WIRE: error body shapes to recognise).

use super::{Facts, NAME, put};
use crate::dialect::cursor::Cursor;

/// Reads the error out of a body, or of an event that is one.
pub(super) fn body(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    facts.failed = true;
    // Gemini answers an array of one where it was asked for a stream of an array.
    if cursor.peek() == b'[' {
        let mut first = true;
        cursor.array(|c| {
            if std::mem::take(&mut first) {
                object(c, facts);
            }
        });
    } else {
        object(cursor, facts);
    }
}

fn object(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    let (mut kind, mut code, mut nested) = (None, None, false);
    cursor.object(|key, c| match key {
        b"error" if c.peek() == b'{' => {
            nested = true;
            error(c, facts);
        }
        b"type" => kind = c.string(),
        b"code" => code = Some(c.lay_aside()),
        _ => {}
    });
    if nested {
        return;
    }
    // That an event is an error does not say which one.
    if let Some(kind) = kind.filter(|k| !k.is("error")) {
        put(&mut facts.error_type, kind);
    }
    if let Some(mut code) = code {
        self::code(&mut code, facts);
    }
}

/// Reads an error object: OpenAI's and Anthropic's with `type`, Google's with `status`.
pub(super) fn error(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    facts.failed = true;
    let (mut kind, mut status) = (None, None);
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"status" => status = c.string(),
        b"code" => code(c, facts),
        _ => {}
    });
    if let Some(kind) = kind.or(status) {
        put(&mut facts.error_type, kind);
    }
}

/// Reads an error code, which is a string or a number.
pub(super) fn code(cursor: &mut Cursor<'_>, facts: &mut Facts) {
    if cursor.peek() == b'"' {
        if let Some(code) = cursor.string() {
            put(&mut facts.error_code, code);
        }
    } else if let Some(number) = cursor.number() {
        let number = number.get(..number.len().min(NAME)).unwrap_or_default();
        facts.error_code = Some(String::from_utf8_lossy(number).into_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape() {
        let table = [
            (
                r#"{"error":{"message":"m","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#,
                "requests",
                "rate_limit_exceeded",
            ),
            (
                r#"{"error":{"message":"m","code":429,"metadata":{"type":"x"}}}"#,
                "-",
                "429",
            ),
            (r#"{"error":{"code":null,"type":"t"}}"#, "t", "-"),
            (r#"{"error":"text"}"#, "-", "-"),
            (
                r#"{"code":"invalid-argument","error":"text"}"#,
                "-",
                "invalid-argument",
            ),
            (
                r#"{"type":"error","error":{"type":"rate_limit_error","message":"m"},"request_id":"r"}"#,
                "rate_limit_error",
                "-",
            ),
            (
                r#"{"error":{"type":"overloaded_error"},"type":"error"}"#,
                "overloaded_error",
                "-",
            ),
            (
                r#"{"object":"error","message":"m","type":"invalid_model","code":"1500","raw_status_code":400}"#,
                "invalid_model",
                "1500",
            ),
            (
                r#"{"object":"error","message":"m","type":"","code":40301}"#,
                "",
                "40301",
            ),
            (
                r#"{"type":"error","code":"server_error","message":"m"}"#,
                "-",
                "server_error",
            ),
            (r#"{"detail":"text"}"#, "-", "-"),
            (r#"{"detail":[{"type":"missing"}]}"#, "-", "-"),
            (r#"{"message":"m"}"#, "-", "-"),
            (
                r#"[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"code":1}]}}]"#,
                "RESOURCE_EXHAUSTED",
                "429",
            ),
            ("upstream connect error", "-", "-"),
            ("<html>", "-", "-"),
            ("", "-", "-"),
        ];
        for (json, kind, code) in table {
            let mut facts = Facts::default();
            body(&mut Cursor::new(json.as_bytes()), &mut facts);
            assert_eq!(facts.error_type.as_deref().unwrap_or("-"), kind, "{json}");
            assert_eq!(facts.error_code.as_deref().unwrap_or("-"), code, "{json}");
            assert!(facts.failed);
        }
    }
}
