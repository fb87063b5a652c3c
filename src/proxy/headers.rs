//! Headers on their way through: what belongs to one hop stays there (RFC 9110 §7.6.1), the rest is untouched.

use http::header::{CONNECTION, EXPECT, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");

/// Takes away what belongs to the client's hop. `te: trailers` is asked for anew, since we pass trailers on.
pub(super) fn strip_request(headers: &mut HeaderMap, strip: &[HeaderName]) {
    let trailers = headers.get(TE).is_some_and(|te| {
        te.as_bytes()
            .to_ascii_lowercase()
            .windows(8)
            .any(|w| w == b"trailers")
    });
    strip_hop(headers);
    headers.remove(EXPECT);
    headers.remove(PROXY_AUTHORIZATION);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    for name in strip {
        headers.remove(name);
    }
}

/// Takes away what belongs to the upstream's hop.
pub(super) fn strip_answer(headers: &mut HeaderMap) {
    strip_hop(headers);
}

fn strip_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|n| n.trim().parse().ok())
            // A client that names these wants to hide them from us, or to break the framing.
            .filter(|n: &HeaderName| !matches!(n.as_str(), "host" | "content-length" | "content-type"))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(TE);
    headers.remove(TRANSFER_ENCODING);
    headers.remove(UPGRADE);
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
