//! One signed POST with a deadline.

use std::error::Error;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER, TRANSFER_ENCODING, USER_AGENT,
};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sha2::Sha256;
use tokio::time::timeout;

use super::{Target, TargetKind};
use crate::tls::{self, ExtraRoots};
use crate::types::time::Wall;

/// Longest pause that a receiver may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// What is read of an answer, in bytes.
const ANSWER_MAX: usize = 4096;
/// What of an answer is shown, in bytes.
const WORD_MAX: usize = 64;
/// How long the body of an answer is waited for.
const BODY_WAIT: Duration = Duration::from_secs(1);
/// How long a connection is kept for the next notice.
const IDLE: Duration = Duration::from_secs(30);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What came of one attempt. Texts name the host at most, never the URL or a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A status of 2xx.
    Delivered,
    /// It may work later; `after` is what the receiver asked for.
    Again {
        /// Why it failed.
        why: String,
        /// No earlier than this.
        after: Option<Duration>,
    },
    /// It will never work.
    Refused {
        /// Why.
        why: String,
    },
}

/// A target that was understood: where to send, with what.
#[derive(Debug)]
pub(super) struct Endpoint {
    uri: Uri,
    host: String,
    headers: HeaderMap,
    key: Option<SigningKey>,
    timeout: Duration,
    slack: bool,
}

/// How to reach endpoints: a small pool of connections with its TLS settings.
pub(super) type Link = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

impl Endpoint {
    /// Understands a target.
    ///
    /// # Errors
    /// What is wrong with its URL, secret or headers, without showing them.
    pub(super) fn new(target: &Target) -> Result<Self, String> {
        let (uri, credentials) = address(target.url.expose())?;
        let host = uri.host().unwrap_or_default().to_owned();
        let mut headers = HeaderMap::new();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("fusebox/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(credentials) = credentials {
            let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(credentials)))
                .map_err(|_| "the URL's user name or password cannot be sent".to_owned())?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut key = None;
        if let TargetKind::Webhook {
            secret,
            headers: further,
        } = &target.kind
        {
            for (name, value) in further {
                if is_ours(name) {
                    return Err(format!("headers: `{name}` is set by fusebox itself; remove it"));
                }
                let mut value = HeaderValue::try_from(value.expose())
                    .map_err(|_| format!("headers: the value of `{name}` cannot be sent in a header"))?;
                value.set_sensitive(true);
                headers.insert(name.clone(), value);
            }
            key = secret
                .as_ref()
                .map(|s| SigningKey::parse(s.expose()))
                .transpose()?;
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(Self {
            uri,
            host,
            headers,
            key,
            timeout: target.timeout,
            slack: target.kind == TargetKind::Slack,
        })
    }

    /// Sends `body` once. `id` stays the same over attempts, `at` is the time of this one.
    pub(super) async fn post(&self, link: &Link, id: &str, at: Wall, body: Bytes) -> Outcome {
        let request = match self.request(id, at, body) {
            Ok(request) => request,
            Err(why) => return Outcome::Refused { why },
        };
        let response = match timeout(self.timeout, link.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(e)) => {
                return Outcome::Again {
                    why: format!("{}: {}", self.host, innermost(&e)),
                    after: None,
                };
            }
            Err(_) => {
                return Outcome::Again {
                    why: format!("{}: no answer within {:?}", self.host, self.timeout),
                    after: None,
                };
            }
        };
        self.judge(response, at).await
    }

    fn request(&self, id: &str, at: Wall, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let id_value =
            HeaderValue::try_from(id).map_err(|_| "the notice's id cannot be sent in a header".to_owned())?;
        let seconds = at.unix_millis().div_euclid(1000);
        let signature = self
            .key
            .as_ref()
            .map(|key| HeaderValue::try_from(key.sign(id, seconds, &body)))
            .transpose()
            .map_err(|_| "the signature cannot be sent in a header".to_owned())?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(WEBHOOK_ID, id_value);
        headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(seconds));
        if let Some(signature) = signature {
            headers.insert(WEBHOOK_SIGNATURE, signature);
        }
        Ok(request)
    }

    async fn judge(&self, response: Response<Incoming>, at: Wall) -> Outcome {
        let (parts, body) = response.into_parts();
        let status = parts.status;
        // The status decides. A body that does not come must not turn a delivery into a second page.
        let answer = timeout(BODY_WAIT.min(self.timeout), beginning(body))
            .await
            .unwrap_or_default();
        if status.is_success() {
            return Outcome::Delivered;
        }
        let word = if self.slack { slack_word(&answer) } else { None };
        let word = word.map(|w| format!(" ({w})")).unwrap_or_default();
        let why = format!("{} answered {}{word}", self.host, status.as_u16());
        if status.is_server_error()
            || [
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::TOO_EARLY,
            ]
            .contains(&status)
        {
            let after = parts.headers.get(RETRY_AFTER).and_then(|v| pause(v, at));
            Outcome::Again { why, after }
        } else if status.is_redirection() {
            Outcome::Refused {
                why: format!("{why}; redirects are not followed, configure the final URL"),
            }
        } else {
            Outcome::Refused { why }
        }
    }
}

/// Makes a link with the system's roots and those of `ca_files`. Reads files.
///
/// # Errors
/// The file that cannot be used.
pub(super) fn link(ca_files: &[std::path::PathBuf]) -> Result<Link, String> {
    let tls = ExtraRoots::read(ca_files)
        .and_then(|extra| tls::client(extra, &[]))
        .map_err(|e| e.to_string())?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .build();
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(1)
        .build(connector))
}

/// The key of Standard Webhooks signatures.
struct SigningKey(Vec<u8>);

impl SigningKey {
    fn parse(text: &str) -> Result<Self, String> {
        let key = match text.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded.trim()).map_err(|_| {
                "secret: what follows `whsec_` is no base64; copy it again, or use plain text".to_owned()
            })?,
            None => text.as_bytes().to_vec(),
        };
        if key.is_empty() {
            return Err("secret: is empty; remove it, or set it".to_owned());
        }
        Ok(Self(key))
    }

    /// `v1,` and the signature of `id.seconds.body`.
    fn sign(&self, id: &str, seconds: i64, body: &[u8]) -> String {
        // An HMAC takes a key of any length, so there is no error to speak of.
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return String::new();
        };
        let mac = mac
            .chain_update(id)
            .chain_update(format!(".{seconds}."))
            .chain_update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

fn is_ours(name: &HeaderName) -> bool {
    [
        CONTENT_LENGTH,
        CONTENT_TYPE,
        TRANSFER_ENCODING,
        CONNECTION,
        HOST,
        WEBHOOK_ID,
        WEBHOOK_TIMESTAMP,
        WEBHOOK_SIGNATURE,
    ]
    .contains(name)
}

/// The URL without credentials, and `user:password` when it had some.
fn address(url: &str) -> Result<(Uri, Option<Vec<u8>>), String> {
    let uri: Uri = url
        .trim()
        .parse()
        .map_err(|_| "url: is no URL; write it as https://host/path".to_owned())?;
    let mut parts = uri.into_parts();
    if ![Some(&Scheme::HTTP), Some(&Scheme::HTTPS)].contains(&parts.scheme.as_ref()) {
        return Err("url: must begin with https:// or http://".to_owned());
    }
    let mut credentials = None;
    if let Some(authority) = &parts.authority
        && let Some((user, host)) = authority.as_str().rsplit_once('@')
    {
        credentials = Some(percent_encoding::percent_decode_str(user).collect());
        let host = Authority::try_from(host).map_err(|_| "url: its host cannot be read".to_owned())?;
        parts.authority = Some(host);
    }
    if parts.authority.as_ref().is_none_or(|a| a.host().is_empty()) {
        return Err("url: names no host".to_owned());
    }
    let uri = Uri::from_parts(parts).map_err(|_| "url: cannot be used".to_owned())?;
    Ok((uri, credentials))
}

/// At most `ANSWER_MAX` bytes of an answer. One that breaks off gives what there was: the status has been heard.
async fn beginning(mut body: Incoming) -> Vec<u8> {
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        let room = ANSWER_MAX.saturating_sub(read.len());
        read.extend(data.iter().take(room));
        if read.len() >= ANSWER_MAX {
            break;
        }
    }
    read
}

/// Slack explains a refusal by one word, as `invalid_payload`. Anything else might hold what must not be shown.
fn slack_word(answer: &[u8]) -> Option<&str> {
    let word = std::str::from_utf8(answer).ok()?.trim();
    let is_word = !word.is_empty()
        && word.len() <= WORD_MAX
        && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    is_word.then_some(word)
}

/// What `retry-after` asks for: seconds, or a date.
fn pause(value: &HeaderValue, at: Wall) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    let asked = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = jiff::fmt::rfc2822::DateTimeParser::new()
                .parse_timestamp(text)
                .ok()?;
            let millis = date.as_millisecond().saturating_sub(at.unix_millis());
            Duration::from_millis(u64::try_from(millis).unwrap_or(0))
        }
    };
    Some(asked.min(RETRY_AFTER_MAX))
}

/// The root of an error: outer levels of the client say little, and could say too much.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_of_the_published_example() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = key.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(format!("{key:?}"), "[secret]");
    }

    #[test]
    fn secrets() {
        assert_eq!(SigningKey::parse("plain text").unwrap().0, b"plain text");
        for bad in ["", "whsec_", "whsec_%%%"] {
            let why = SigningKey::parse(bad).unwrap_err();
            assert!(why.starts_with("secret: "), "{why}");
        }
    }

    #[test]
    fn addresses() {
        let (uri, credentials) = address("https://us%40er:p:w@hooks.example:8443/a?b=c").unwrap();
        assert_eq!(uri, "https://hooks.example:8443/a?b=c");
        assert_eq!(credentials.unwrap(), b"us@er:p:w");
        let (uri, credentials) = address("http://[::1]:80/x").unwrap();
        assert_eq!(
            (uri.to_string().as_str(), credentials),
            ("http://[::1]:80/x", None)
        );
        for bad in [
            "",
            "hooks.example/x",
            "ftp://hooks.example/",
            "/x",
            "https://",
            "no url at all",
        ] {
            let why = address(bad).unwrap_err();
            assert!(why.starts_with("url: "), "{bad}: {why}");
        }
    }

    #[test]
    fn retry_after_in_both_forms() {
        let at = Wall::from_unix_millis(784_111_777_000);
        let cases = [
            ("0", Some(0)),
            ("7", Some(7)),
            ("86400", Some(300)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Mon, 07 Nov 1994 08:49:00 GMT", Some(300)),
            ("-3", None),
            ("soon", None),
        ];
        for (text, want) in cases {
            let got = pause(&HeaderValue::from_static(text), at);
            assert_eq!(got, want.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn only_words_of_slack_are_shown() {
        assert_eq!(slack_word(b"invalid_payload\n"), Some("invalid_payload"));
        for hidden in [&b""[..], b"No such URL /T000/B000", b"\xff", &[b'a'; 65]] {
            assert_eq!(slack_word(hidden), None);
        }
    }
}
