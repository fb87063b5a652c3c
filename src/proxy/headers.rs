//! Headers on their way through: what belongs to one hop stays there (RFC 9110 §7.6.1), the rest is untouched.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE};
use smallvec::SmallVec;

/// Takes away what belongs to the client's hop. `te: trailers` is asked for anew, since we pass trailers on.
pub(super) fn strip_request(headers: &mut HeaderMap, strip: &[HeaderName]) {
    let trailers = headers.get(TE).is_some_and(|te| {
        te.as_bytes()
            .to_ascii_lowercase()
            .windows(8)
            .any(|w| w == b"trailers")
    });
    strip_named(headers, |name| {
        belongs_to_hop(name)
            || matches!(name.as_str(), "expect" | "proxy-authorization")
            || strip.contains(name)
    });
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes away what belongs to the upstream's hop.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    strip_named(headers, belongs_to_hop);
}

/// By their text: most names are told apart from all of these by their length.
fn belongs_to_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "te" | "transfer-encoding" | "upgrade" | "keep-alive" | "proxy-connection"
    )
}

/// Removes what `goes` names, and what `Connection` names. Mostly there is nothing, so the names are gone over once
/// instead of being looked up one by one.
fn strip_named(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let mut going: SmallVec<[HeaderName; 8]> = SmallVec::new();
    for name in headers.keys() {
        if *name == CONNECTION {
            let tokens = headers.get_all(CONNECTION).iter().filter_map(|v| v.to_str().ok());
            let named = tokens
                .flat_map(|v| v.split(','))
                .filter_map(|n| n.trim().parse().ok());
            // A client that names these wants to hide them from us, or to break the framing.
            going.extend(
                named.filter(|n: &HeaderName| *n != HOST && *n != CONTENT_LENGTH && *n != CONTENT_TYPE),
            );
        }
        if goes(name) {
            going.push(name.clone());
        }
    }
    for name in going {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect()
    }

    #[test]
    fn only_the_hops_own_headers_go() {
        let mut headers = map(&[
            ("connection", "close, x-mine, Host"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "Trailers, deflate"),
            ("host", "h"),
            ("expect", "100-continue"),
            ("x-fusebox-agent", "a"),
            ("authorization", "Bearer x"),
            ("accept-encoding", "gzip"),
        ]);
        strip_request(&mut headers, &[HeaderName::from_static("x-fusebox-agent")]);
        let mut left: Vec<_> = headers
            .iter()
            .map(|(k, v)| (k.as_str(), v.to_str().unwrap()))
            .collect();
        left.sort_unstable();
        assert_eq!(
            left,
            [
                ("accept-encoding", "gzip"),
                ("authorization", "Bearer x"),
                ("host", "h"),
                ("te", "trailers")
            ]
        );
    }
}
