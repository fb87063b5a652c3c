//! A request as it is written: the head, and how the length of its body is told.

use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{Uri, request};

use super::head::digits;
use crate::proxy::body::RequestBody;

/// A whole body up to this size is copied behind the head, so that both leave in one write from one buffer.
pub(super) const SMALL: usize = 8 * 1024;

/// How the length of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    /// So many bytes are left to be written.
    Length(u64),
    Chunked,
}

/// Writes the head of a request behind what `out` holds.
pub(super) fn head(parts: &request::Parts, body: &RequestBody, out: &mut Vec<u8>) -> Encoding {
    let headers = &parts.headers;
    let (encoding, own) = encoding(headers, body);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target(&parts.uri).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        if *name == TRANSFER_ENCODING || (own.is_some() && *name == CONTENT_LENGTH) {
            continue;
        }
        field(name, value.as_bytes(), out);
    }
    match own {
        Some(Encoding::Length(n)) => field(&CONTENT_LENGTH, n.to_string().as_bytes(), out),
        Some(Encoding::Chunked) => field(&TRANSFER_ENCODING, b"chunked", out),
        None => {}
    }
    out.extend_from_slice(b"\r\n");
    encoding
}

fn target(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", |target| target.as_str())
}

fn field(name: &HeaderName, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// How the length of the body is told, and what has to be said in place of what the headers say.
fn encoding(headers: &HeaderMap, body: &RequestBody) -> (Encoding, Option<Encoding>) {
    let said = said_length(headers);
    match body {
        RequestBody::Whole(bytes) => {
            let length = bytes.as_ref().map_or(0, |b| b.len() as u64);
            let encoding = Encoding::Length(length);
            let right = match said {
                Said::Length(said) => said == length,
                Said::Nothing => length == 0,
                Said::Nonsense => false,
            };
            (encoding, (!right).then_some(encoding))
        }
        _ => match said {
            Said::Length(length) => (Encoding::Length(length), None),
            Said::Nothing | Said::Nonsense => (Encoding::Chunked, Some(Encoding::Chunked)),
        },
    }
}

enum Said {
    Nothing,
    Length(u64),
    Nonsense,
}

fn said_length(headers: &HeaderMap) -> Said {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    match (values.next(), values.next()) {
        (None, _) => Said::Nothing,
        (Some(one), None) => digits(one.as_bytes()).map_or(Said::Nonsense, Said::Length),
        (Some(_), Some(_)) => Said::Nonsense,
    }
}

/// Writes the line before a chunk of `length` bytes.
pub(super) fn chunk_size(length: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
}

/// Writes the end of a chunked body.
pub(super) fn last_chunk(trailers: &HeaderMap, out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        if may_trail(name) {
            field(name, value.as_bytes(), out);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a field may stand behind a body: not what frames, routes or authenticates a message (RFC 9110 §6.5.1).
fn may_trail(name: &HeaderName) -> bool {
    !matches!(
        name.as_str(),
        "authorization"
            | "cache-control"
            | "connection"
            | "content-encoding"
            | "content-length"
            | "content-range"
            | "content-type"
            | "host"
            | "max-forwards"
            | "set-cookie"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;

    use super::*;

    fn written(
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &'static str,
    ) -> (String, Encoding) {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let mut out = Vec::new();
        let encoding = head(&parts, &RequestBody::whole(Bytes::from(body)), &mut out);
        (String::from_utf8(out).unwrap(), encoding)
    }

    #[test]
    fn a_head_says_what_it_was_given() {
        for (method, target, fields, body, want) in [
            (
                "GET",
                "/v1/models?a=b",
                &[("host", "h"), ("X-A", "1"), ("x-a", "2")][..],
                "",
                "GET /v1/models?a=b HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nx-a: 2\r\n\r\n",
            ),
            (
                "POST",
                "/",
                &[("content-length", "3"), ("host", "h")],
                "abc",
                "POST / HTTP/1.1\r\ncontent-length: 3\r\nhost: h\r\n\r\n",
            ),
            (
                "POST",
                "/",
                &[("content-length", "0")],
                "",
                "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
            ),
            (
                "POST",
                "/",
                &[("host", "h")],
                "abc",
                "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\n",
            ),
            // Whatever the headers say, the length is that of the body.
            (
                "POST",
                "/",
                &[("content-length", "9")],
                "abc",
                "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n",
            ),
            (
                "POST",
                "/",
                &[("content-length", "3"), ("content-length", "3")],
                "abc",
                "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n",
            ),
            (
                "POST",
                "/",
                &[("transfer-encoding", "chunked")],
                "abc",
                "POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\n",
            ),
        ] {
            let (got, encoding) = written(method, target, fields, body);
            assert_eq!(got, want);
            assert_eq!(encoding, Encoding::Length(body.len() as u64));
        }
    }

    #[test]
    fn trailers_do_not_reframe() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "1".parse().unwrap());
        trailers.insert("content-length", "7".parse().unwrap());
        let mut out = Vec::new();
        chunk_size(300, &mut out);
        last_chunk(&trailers, &mut out);
        assert_eq!(out, b"12c\r\n0\r\nx-sum: 1\r\n\r\n");
    }
}
