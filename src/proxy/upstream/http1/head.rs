//! The head of an answer: read, checked, and what it says about the length of the body.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode};
use httparse::{ParserConfig, Status};
use smallvec::SmallVec;

use super::Http1Error;
use super::body::Decoder;
use super::known::{Known, Read};

/// Largest head of an answer, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;

/// Most fields in the head of an answer.
const MAX_FIELDS: usize = 128;

/// Most interim answers before a final one.
const MAX_INTERIM: usize = 16;

pub(super) const BAD_VALUE: Http1Error = Http1Error::Head("field value with a control character");

/// The head of a final answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Decoder,
    /// Whether the connection may carry another exchange after this.
    pub(super) keep: bool,
}

/// Where a field stands in the head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field {
    pub(super) name: (usize, usize),
    pub(super) value: (usize, usize),
}

/// Mostly there are no more than this many.
type Places = SmallVec<[Field; 24]>;

/// Takes the head of a final answer from the front of `read`; `None` when more has to be read first. Interim answers
/// (100, 102, 103) before it are taken away and forgotten.
///
/// # Errors
/// When it is no HTTP/1 head, too large, or contradicts itself about the body.
pub(super) fn take(
    read: &mut BytesMut,
    method: &Method,
    known: &mut Known,
) -> Result<Option<Head>, Http1Error> {
    if let Some(alike) = known.take(read)? {
        return finish(alike, method).map(Some);
    }
    for _ in 0..MAX_INTERIM {
        if read.is_empty() {
            return Ok(None);
        }
        let mut places = Places::new();
        let Some(found) = find(read, &mut places)? else {
            if read.len() >= MAX_HEAD {
                return Err(Http1Error::Head("too large"));
            }
            return Ok(None);
        };
        let block = read.split_to(found.len).freeze();
        if found.len > MAX_HEAD {
            return Err(Http1Error::Head("too large"));
        }
        match found.status.as_u16() {
            // Nobody asked for another protocol.
            101 => return Err(Http1Error::Head("switches to a protocol that was not asked for")),
            100..=199 => continue,
            _ => {}
        }
        let mut headers = HeaderMap::with_capacity(places.len());
        for place in &places {
            let name = block.get(place.name.0..place.name.1).unwrap_or_default();
            let name = HeaderName::from_bytes(name).map_err(|_| Http1Error::Head("malformed field name"))?;
            let value = HeaderValue::from_maybe_shared(part(&block, place.value)).map_err(|_| BAD_VALUE)?;
            headers.append(name, value);
        }
        let all = Read {
            status: found.status,
            minor: found.minor,
            headers,
        };
        known.learn(&block, &places, &all);
        return finish(all, method).map(Some);
    }
    Err(Http1Error::Head("too many interim answers"))
}

fn finish(read: Read, method: &Method) -> Result<Head, Http1Error> {
    let Read {
        status,
        minor,
        headers,
    } = read;
    let body = framing(&headers, status, method, minor)?;
    let keep = keeps(&headers, minor) && !body.is_until_close();
    Ok(Head {
        status,
        headers,
        body,
        keep,
    })
}

/// What was found at the front of a buffer.
struct Found {
    len: usize,
    status: StatusCode,
    /// HTTP/1.x
    minor: u8,
}

fn find(read: &[u8], places: &mut Places) -> Result<Option<Found>, Http1Error> {
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = ParserConfig::default().parse_response_with_uninit_headers(&mut answer, read, &mut fields);
    let len = match parsed {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(e) => return Err(Http1Error::HeadSyntax(e)),
    };
    let status = StatusCode::from_u16(answer.code.unwrap_or_default())
        .map_err(|_| Http1Error::Head("impossible status"))?;
    let start = read.as_ptr() as usize;
    let place = |bytes: &[u8]| {
        let at = bytes.as_ptr() as usize - start;
        (at, at + bytes.len())
    };
    places.extend(answer.headers.iter().map(|field| Field {
        name: place(field.name.as_bytes()),
        // An empty value need not point into the buffer.
        value: if field.value.is_empty() {
            (0, 0)
        } else {
            place(field.value)
        },
    }));
    Ok(Some(Found {
        len,
        status,
        minor: answer.version.unwrap_or_default(),
    }))
}

pub(super) fn part(block: &Bytes, (from, to): (usize, usize)) -> Bytes {
    if from < to && to <= block.len() {
        block.slice(from..to)
    } else {
        Bytes::new()
    }
}

/// Which bytes belong to the body (RFC 9112 §6.3), stricter where a lenient reading could differ from another's: the
/// two kinds of length together, a length that contradicts another, and codings other than `chunked` are refused.
fn framing(
    headers: &HeaderMap,
    status: StatusCode,
    method: &Method,
    minor: u8,
) -> Result<Decoder, Http1Error> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    let length = length(headers)?;
    if let Some(coding) = coding {
        if minor == 0 {
            return Err(Http1Error::Head("transfer-encoding in HTTP/1.0"));
        }
        if length.is_some() {
            return Err(Http1Error::Head("both content-length and transfer-encoding"));
        }
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Http1Error::Head("transfer-encoding other than chunked"));
        }
    }
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) || *method == Method::HEAD {
        return Ok(Decoder::length(0));
    }
    Ok(match (coding, length) {
        (Some(_), _) => Decoder::chunked(),
        (None, Some(length)) => Decoder::length(length),
        (None, None) => Decoder::until_close(),
    })
}

/// The content length, said any number of times but never two different ones.
fn length(headers: &HeaderMap) -> Result<Option<u64>, Http1Error> {
    let mut found = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for number in value.as_bytes().split(|b| *b == b',') {
            let number = digits(number.trim_ascii()).ok_or(Http1Error::Head("malformed content-length"))?;
            if found.is_some_and(|before| before != number) {
                return Err(Http1Error::Head("two different content-lengths"));
            }
            found = Some(number);
        }
    }
    Ok(found)
}

/// A number of digits alone: no sign, no space, nothing that overflows or that hyper keeps for itself.
pub(super) fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let number = text.iter().try_fold(0_u64, |sum, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })?;
    (number < u64::MAX - 2).then_some(number)
}

/// Whether the upstream leaves the connection open (RFC 9112 §9.3).
fn keeps(headers: &HeaderMap, minor: u8) -> bool {
    let mut keep = minor >= 1;
    for value in headers.get_all(CONNECTION) {
        for token in value.as_bytes().split(|b| *b == b',') {
            let token = token.trim_ascii();
            if token.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keep |= token.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keep
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str, method: &Method) -> Result<Option<(u16, String, bool, usize)>, String> {
        let mut read = BytesMut::from(text);
        let head = take(&mut read, method, &mut Known::default()).map_err(|e| e.to_string())?;
        Ok(head.map(|h| (h.status.as_u16(), format!("{:?}", h.body), h.keep, read.len())))
    }

    #[test]
    fn the_framing_is_what_the_head_says() {
        let length = |n| format!("{:?}", Decoder::length(n));
        let (chunked, close) = (
            format!("{:?}", Decoder::chunked()),
            format!("{:?}", Decoder::until_close()),
        );
        for (text, method, want) in [
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
                Method::POST,
                (200, length(3), true, 3),
            ),
            (
                "HTTP/1.1 200\r\nContent-Length: 3, 3\r\ncontent-length: 3\r\n\r\n",
                Method::GET,
                (200, length(3), true, 0),
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
                Method::POST,
                (200, chunked.clone(), true, 0),
            ),
            (
                "HTTP/1.1 200 OK\n\nrest",
                Method::POST,
                (200, close.clone(), false, 4),
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: x, Close\r\n\r\n",
                Method::POST,
                (200, length(0), false, 0),
            ),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n",
                Method::POST,
                (200, length(1), false, 0),
            ),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n",
                Method::POST,
                (200, length(1), true, 0),
            ),
            ("HTTP/1.1 204 No\r\n\r\n", Method::POST, (204, length(0), true, 0)),
            (
                "HTTP/1.1 304 No\r\ncontent-length: 12\r\n\r\n",
                Method::GET,
                (304, length(0), true, 0),
            ),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n",
                Method::HEAD,
                (200, length(0), true, 0),
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                Method::HEAD,
                (200, length(0), true, 0),
            ),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: a\r\n\r\nHTTP/1.1 500 \r\ncontent-length: 2\r\n\r\nno",
                Method::POST,
                (500, length(2), true, 2),
            ),
        ] {
            assert_eq!(whole(text, &method), Ok(Some(want)), "{text:?}");
        }
    }

    #[test]
    fn what_can_be_read_two_ways_is_refused() {
        for (head, why) in [
            ("content-length: 3\r\ncontent-length: 4", "two different"),
            ("content-length: 3, 4", "two different"),
            ("content-length: +3", "malformed content-length"),
            ("content-length: 3 3", "malformed content-length"),
            ("content-length: 0x3", "malformed content-length"),
            ("content-length:", "malformed content-length"),
            ("content-length: 3,", "malformed content-length"),
            ("content-length: 18446744073709551615", "malformed content-length"),
            ("content-length: 99999999999999999999", "malformed content-length"),
            ("content-length: 3\r\ntransfer-encoding: chunked", "both"),
            ("transfer-encoding: gzip, chunked", "other than chunked"),
            (
                "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
                "other than chunked",
            ),
            ("transfer-encoding: identity", "other than chunked"),
            ("a: b\r\n c: d", "invalid"),
            ("a b: c", "invalid"),
            ("a : c", "invalid"),
            (": c", "invalid"),
            ("a: b\0c", "invalid"),
            ("no colon", "invalid"),
        ] {
            let got = whole(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n"), &Method::POST);
            assert!(got.as_ref().is_err_and(|e| e.contains(why)), "{head:?}: {got:?}");
        }
        for text in [
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 000 OK\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "\u{1}",
        ] {
            assert!(whole(text, &Method::POST).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_head_is_bounded() {
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(MAX_HEAD));
        assert!(whole(&long, &Method::POST).is_err());
        assert!(whole(&format!("{long}\r\n\r\n"), &Method::POST).is_err());
        let many = |n| format!("HTTP/1.1 204 OK\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert!(whole(&many(MAX_FIELDS), &Method::POST).is_ok_and(|h| h.is_some()));
        assert!(whole(&many(MAX_FIELDS + 1), &Method::POST).is_err());
    }

    proptest! {
        #[test]
        fn a_head_that_comes_in_pieces_is_the_same_head(
            fields in prop::collection::vec(("[A-Za-z0-9-]{1,12}", "[ -~]{0,20}"), 0..12),
            rest in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let mut text = b"HTTP/1.1 200 OK\r\n".to_vec();
            for (name, value) in &fields {
                text.extend_from_slice(format!("x{name}: {value}\r\n").as_bytes());
            }
            text.extend_from_slice(b"\r\n");
            let end = text.len();
            text.extend_from_slice(&rest);
            let mut read = BytesMut::new();
            for (at, byte) in text.iter().enumerate() {
                read.extend_from_slice(&[*byte]);
                if at + 1 < end {
                    prop_assert!(take(&mut read, &Method::GET, &mut Known::default()).unwrap().is_none());
                }
                if at + 1 == end {
                    let head = take(&mut read, &Method::GET, &mut Known::default()).unwrap().unwrap();
                    prop_assert_eq!(head.headers.len(), fields.len());
                    for (name, value) in &fields {
                        let all: Vec<_> = head.headers.get_all(format!("x{name}").to_lowercase()).iter().collect();
                        prop_assert!(all.iter().any(|v| v.as_bytes() == value.trim().as_bytes()));
                    }
                }
            }
            prop_assert_eq!(&read[..], &rest[..]);
        }

        #[test]
        fn nothing_makes_it_fail_otherwise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut read = BytesMut::from(&bytes[..]);
            take(&mut read, &Method::GET, &mut Known::default()).ok();
            let mut read = BytesMut::from(&[b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat()[..]);
            take(&mut read, &Method::GET, &mut Known::default()).ok();
        }
    }
}
