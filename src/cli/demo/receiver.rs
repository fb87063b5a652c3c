//! The demo's on-call: a small HTTP server that receives the alert webhook and checks its signature.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

/// Largest body that is read.
const MAX_BODY: usize = 256 << 10;
/// Connections at once.
const MAX_CONNECTIONS: usize = 16;

/// A notice, as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Received {
    /// As `incident.opened`.
    pub(super) event: String,
    /// One line for a person.
    pub(super) title: String,
    pub(super) severity: String,
    /// Whether the signature is right.
    pub(super) signed: bool,
}

/// A running receiver; it stops when dropped.
#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) addr: SocketAddr,
    accepting: AbortHandle,
}

impl Receiver {
    /// Starts one; what arrives goes to `arrived` (and is left out when that is full).
    ///
    /// # Errors
    /// When it cannot listen on 127.0.0.1.
    pub(super) async fn start(secret: &str, arrived: mpsc::Sender<Received>) -> Result<Self, String> {
        let failed = |e: std::io::Error| format!("the webhook receiver cannot listen on 127.0.0.1: {e}");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        let key: Arc<[u8]> = key(secret).into();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                while connections.len() >= MAX_CONNECTIONS {
                    connections.join_next().await;
                }
                while connections.try_join_next().is_some() {}
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let (key, arrived) = (Arc::clone(&key), arrived.clone());
                connections.spawn(async move {
                    let service = service_fn(|request| receive(request, &key, &arrived));
                    hyper::server::conn::http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        })
        .abort_handle();
        Ok(Self { addr, accepting })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn receive(
    request: Request<Incoming>,
    key: &[u8],
    arrived: &mpsc::Sender<Received>,
) -> Result<Response<Empty<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    #[expect(clippy::disallowed_methods, reason = "bounded by Limited")]
    let body = Limited::new(body, MAX_BODY).collect().await;
    let received = body
        .ok()
        .and_then(|body| read(key, &head.headers, &body.to_bytes()));
    let mut response = Response::new(Empty::new());
    *response.status_mut() = match received {
        Some(received) => {
            arrived.try_send(received).ok();
            StatusCode::NO_CONTENT
        }
        None => StatusCode::BAD_REQUEST,
    };
    Ok(response)
}

fn read(key: &[u8], headers: &HeaderMap, body: &[u8]) -> Option<Received> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let data = value.get("data").unwrap_or(&value);
    let text = |value: &Value, name: &str| {
        let text = value.get(name).and_then(Value::as_str).unwrap_or_default();
        text.chars().take(300).collect::<String>()
    };
    Some(Received {
        event: text(&value, "type"),
        title: text(data, "title"),
        severity: text(data, "severity"),
        signed: signed(key, headers, body),
    })
}

/// Checks the signature as Standard Webhooks say: HMAC-SHA256 over `id.timestamp.body`.
fn signed(key: &[u8], headers: &HeaderMap, body: &[u8]) -> bool {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let (Some(id), Some(stamp), Some(signatures)) = (
        text("webhook-id"),
        text("webhook-timestamp"),
        text("webhook-signature"),
    ) else {
        return false;
    };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return false;
    };
    for part in [id.as_bytes(), b".", stamp.as_bytes(), b".", body] {
        mac.update(part);
    }
    signatures
        .split(' ')
        .filter_map(|s| STANDARD.decode(s.strip_prefix("v1,")?).ok())
        .any(|signature| mac.clone().verify_slice(&signature).is_ok())
}

/// The key in a secret: base64 after `whsec_`, else the text itself.
fn key(secret: &str) -> Vec<u8> {
    secret
        .strip_prefix("whsec_")
        .and_then(|rest| STANDARD.decode(rest).ok())
        .unwrap_or_else(|| secret.as_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn a_signature_is_checked() {
        let body = br#"{"type":"incident.opened","data":{"title":"t","severity":"error"}}"#;
        let key = key("whsec_c2VjcmV0");
        assert_eq!(key, b"secret");
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(b"m1.17.");
        mac.update(body);
        let signature = STANDARD.encode(mac.finalize().into_bytes());
        let headers = |signature: &str| -> HeaderMap {
            [
                ("webhook-id", "m1"),
                ("webhook-timestamp", "17"),
                ("webhook-signature", signature),
            ]
            .into_iter()
            .map(|(n, v)| {
                (
                    http::HeaderName::from_static(n),
                    HeaderValue::from_str(v).unwrap(),
                )
            })
            .collect()
        };
        let good = read(&key, &headers(&format!("v1,AAAA v1,{signature}")), body).unwrap();
        let expected = Received {
            event: "incident.opened".to_owned(),
            title: "t".to_owned(),
            severity: "error".to_owned(),
            signed: true,
        };
        assert_eq!(good, expected);
        assert!(!read(&key, &headers("v1,AAAA"), body).unwrap().signed);
        assert!(
            !read(b"other", &headers(&format!("v1,{signature}")), body)
                .unwrap()
                .signed
        );
        assert!(!read(&key, &HeaderMap::new(), body).unwrap().signed);
        assert!(read(&key, &HeaderMap::new(), b"no json").is_none());
    }

    #[test]
    fn a_notice_arrives_over_a_socket() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let (arrived, mut got) = mpsc::channel(4);
                let receiver = Receiver::start("s", arrived).await.unwrap();
                for (body, status) in [(r#"{"type":"incident.resolved"}"#, "204"), ("x", "400")] {
                    let mut stream = tokio::net::TcpStream::connect(receiver.addr).await.unwrap();
                    let request = format!(
                        "POST /hook HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).await.unwrap();
                    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
                }
                assert_eq!(got.recv().await.unwrap().event, "incident.resolved");
            });
    }
}
