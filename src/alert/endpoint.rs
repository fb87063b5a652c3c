//! One signed POST with a deadline, to each URL of a target.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    TRANSFER_ENCODING, USER_AGENT,
};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Uri};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{Told, judge};
use super::destination::{Guard, GuardedResolver};
use super::refresh::Refresh;
use super::signing::SigningKey;
use super::{Target, TargetKind, WebhookFormat, payload, redact};
use crate::types::notice::Notice;
use crate::types::secret::Secret;
use crate::types::time::{Mono, Wall};

/// Where Alertmanager takes alerts, below its base URL.
const ALERTMANAGER_PATH: &str = "/api/v2/alerts";

/// How long a connection is kept for the next notice.
const IDLE: Duration = Duration::from_secs(30);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");

/// What came of one attempt. Texts name the host at most, never the URL or a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A status of 2xx, of one member of a cluster at least.
    Delivered {
        /// What went wrong with others.
        partly: Option<String>,
    },
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
        /// The receiver said that it is gone for good.
        gone: bool,
    },
}

/// A target that was understood: where to send, with what.
#[derive(Debug)]
pub(super) struct Endpoint {
    doors: Vec<Door>,
    headers: HeaderMap,
    key: Option<SigningKey>,
    timeout: Duration,
    told: Told,
    /// Whether the receiver knows the headers of Standard Webhooks.
    standard: bool,
}

/// One URL of a target.
#[derive(Debug, Clone)]
struct Door {
    uri: Uri,
    host: String,
    authorization: Option<HeaderValue>,
}

/// How to reach endpoints: a small pool of connections with its TLS settings.
pub(super) type Link = Client<HttpsConnector<HttpConnector<GuardedResolver>>, Full<Bytes>>;

impl Outcome {
    /// It will never work.
    pub(super) fn refused(why: impl Into<String>) -> Self {
        Self::Refused {
            why: why.into(),
            gone: false,
        }
    }
}

impl Endpoint {
    /// Understands a target.
    ///
    /// # Errors
    /// What is wrong with its URL, secret or headers, without showing them.
    pub(super) fn new(target: &Target) -> Result<Self, String> {
        let (path, others): (&str, &[Secret]) = match &target.kind {
            TargetKind::Alertmanager { others, .. } => (ALERTMANAGER_PATH, others),
            _ => ("", &[]),
        };
        let doors = std::iter::once(&target.url)
            .chain(others)
            .map(|url| Door::new(url.expose(), path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut headers = HeaderMap::new();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("fusebox/", env!("CARGO_PKG_VERSION"))),
        );
        let mut content_type = "application/json";
        let (further, key): (&[(HeaderName, Secret)], _) = match &target.kind {
            TargetKind::Webhook {
                secret,
                headers,
                format,
            } => {
                if matches!(format, WebhookFormat::CloudEvents { .. }) {
                    content_type = "application/cloudevents+json; charset=UTF-8";
                }
                let key = secret.as_ref().map(|s| SigningKey::parse(s.expose()));
                (headers, key.transpose()?)
            }
            TargetKind::Alertmanager { headers, .. } => (headers, None),
            TargetKind::PagerDuty { routing_key } if routing_key.expose().trim().is_empty() => {
                return Err("routing_key: is empty; copy it from the service's integrations".to_owned());
            }
            _ => (&[], None),
        };
        for (name, value) in further {
            if is_ours(name) {
                return Err(format!("headers: `{name}` is set by fusebox itself; remove it"));
            }
            let mut value = HeaderValue::try_from(value.expose())
                .map_err(|_| format!("headers: the value of `{name}` cannot be sent in a header"))?;
            value.set_sensitive(true);
            headers.insert(name.clone(), value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        Ok(Self {
            doors,
            headers,
            key,
            timeout: target.timeout,
            told: match target.kind {
                TargetKind::Slack => Told::Slack,
                TargetKind::PagerDuty { .. } => Told::PagerDuty,
                TargetKind::Discord => Told::Discord,
                _ => Told::Nothing,
            },
            standard: matches!(target.kind, TargetKind::Webhook { .. }),
        })
    }

    /// Sends `body` once, to every URL at the same time. `id` stays the same over attempts, `at` is the time of this
    /// one.
    pub(super) async fn post(&self, link: &Link, id: &str, at: Wall, body: Bytes) -> Outcome {
        let mut sending = JoinSet::new();
        for door in &self.doors {
            let request = match self.request(door, id, at, body.clone()) {
                Ok(request) => request,
                Err(why) => return Outcome::refused(why),
            };
            let attempt = attempt(
                link.clone(),
                request,
                door.host.clone(),
                self.timeout,
                self.told,
                at,
            );
            sending.spawn(attempt);
        }
        let mut outcomes = Vec::with_capacity(self.doors.len());
        while let Some(done) = sending.join_next().await {
            outcomes.push(done.unwrap_or_else(|_| Outcome::Again {
                why: "the attempt broke off".to_owned(),
                after: None,
            }));
        }
        together(outcomes)
    }

    fn request(&self, door: &Door, id: &str, at: Wall, body: Bytes) -> Result<Request<Full<Bytes>>, String> {
        let seconds = at.unix_millis().div_euclid(1000);
        let signature = self
            .key
            .as_ref()
            .map(|key| HeaderValue::try_from(key.sign(id, seconds, &body)))
            .transpose()
            .map_err(|_| "the signature cannot be sent in a header".to_owned())?;
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = door.uri.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        if let Some(credentials) = &door.authorization {
            headers.insert(AUTHORIZATION, credentials.clone());
        }
        if self.standard {
            let id = HeaderValue::try_from(id)
                .map_err(|_| "the notice's id cannot be sent in a header".to_owned())?;
            headers.insert(WEBHOOK_ID, id);
            headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(seconds));
        }
        if let Some(signature) = signature {
            headers.insert(WEBHOOK_SIGNATURE, signature);
        }
        Ok(request)
    }
}

/// Sends a notice to a target once and waits for the answer: a trial, without a queue.
///
/// # Errors
/// What is wrong with the target or went wrong on the way, without secrets.
pub async fn send_once(target: &Target, notice: &Notice, at: Wall) -> Result<(), String> {
    let endpoint = Endpoint::new(target)?;
    let link = link(&target.ca_files, Guard::Any)?;
    let notice = Arc::new(redact::notice(notice));
    let body = match &target.kind {
        kind @ TargetKind::Alertmanager { resend_every, .. } => {
            let known = Refresh::new(*resend_every).learn(&notice, Mono::ZERO);
            payload::reminder(kind, &[known], at)
        }
        kind => payload::body(kind, &notice),
    };
    let body = Bytes::from(body.map_err(|e| e.to_string())?);
    match endpoint.post(&link, &notice.id, at, body).await {
        Outcome::Delivered { partly: None } => Ok(()),
        Outcome::Delivered { partly: Some(why) }
        | Outcome::Again { why, .. }
        | Outcome::Refused { why, .. } => Err(why),
    }
}

async fn attempt(
    link: Link,
    request: Request<Full<Bytes>>,
    host: String,
    limit: Duration,
    told: Told,
    at: Wall,
) -> Outcome {
    match timeout(limit, link.request(request)).await {
        Ok(Ok(response)) => judge(response, &host, limit, told, at).await,
        Ok(Err(e)) => Outcome::Again {
            why: format!("{host}: {}", innermost(&e)),
            after: None,
        },
        Err(_) => Outcome::Again {
            why: format!("{host}: no answer within {limit:?}"),
            after: None,
        },
    }
}

/// What became of a message to all members of a cluster: it is told when one of them took it.
fn together(outcomes: Vec<Outcome>) -> Outcome {
    let mut took = false;
    let mut later: Option<(String, Option<Duration>)> = None;
    let mut never: Option<(String, bool)> = None;
    for outcome in outcomes {
        match outcome {
            Outcome::Delivered { .. } => took = true,
            Outcome::Again { why, after } => {
                let longest = after.max(later.as_ref().and_then(|(_, a)| *a));
                later = Some((why, longest));
            }
            Outcome::Refused { why, gone } => never = Some((why, gone)),
        }
    }
    match (took, later, never) {
        (true, later, never) => Outcome::Delivered {
            partly: later.map(|(why, _)| why).or(never.map(|(why, _)| why)),
        },
        (false, Some((why, after)), _) => Outcome::Again { why, after },
        (false, None, Some((why, gone))) => Outcome::Refused { why, gone },
        (false, None, None) => Outcome::refused("there is no URL to send to"),
    }
}

impl Door {
    fn new(url: &str, path: &str) -> Result<Self, String> {
        let (uri, credentials) = address(url)?;
        let uri = if path.is_empty() { uri } else { below(uri, path)? };
        let authorization = credentials
            .map(|c| HeaderValue::try_from(format!("Basic {}", STANDARD.encode(c))))
            .transpose()
            .map_err(|_| "url: its user name or password cannot be sent".to_owned())?
            .map(|mut v| {
                v.set_sensitive(true);
                v
            });
        Ok(Self {
            host: uri.host().unwrap_or_default().to_owned(),
            uri,
            authorization,
        })
    }
}

/// The URL with `path` at the end of its own, unless it ends so already.
fn below(uri: Uri, path: &str) -> Result<Uri, String> {
    let base = uri.path().trim_end_matches('/');
    if base.ends_with(path) {
        return Ok(uri);
    }
    let full = format!("{base}{path}");
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(
        full.parse()
            .map_err(|_| "url: its path cannot be used".to_owned())?,
    );
    Uri::from_parts(parts).map_err(|_| "url: cannot be used".to_owned())
}

/// Makes a link with the system's roots and those of `ca_files`. Reads files.
///
/// # Errors
/// The file that cannot be used.
pub(super) fn link(ca_files: &[std::path::PathBuf], guard: Guard) -> Result<Link, String> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let system = SYSTEM.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        // What could be read is used; an empty store fails every handshake with a clear error.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    });
    let mut roots = Arc::clone(system);
    for path in ca_files {
        add_roots(Arc::make_mut(&mut roots), path)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("TLS settings refused: {e}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut tcp = HttpConnector::new_with_resolver(GuardedResolver::new(guard));
    // Whether a scheme may be used was decided before.
    tcp.enforce_http(false);
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(1)
        .build(connector))
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), String> {
    let refused = |why: String| format!("ca_files: {}: {why}", path.display());
    let mut found = false;
    for cert in CertificateDer::pem_file_iter(path).map_err(|e| refused(e.to_string()))? {
        let cert = cert.map_err(|e| refused(e.to_string()))?;
        roots.add(cert).map_err(|e| refused(e.to_string()))?;
        found = true;
    }
    if found {
        Ok(())
    } else {
        Err(refused("holds no certificate".to_owned()))
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
}
