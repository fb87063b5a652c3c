//! A client of the admin API, for the subcommands that talk to a running fusebox.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::either::Either;

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

/// How to reach the admin API.
#[derive(Debug, Clone, Args)]
pub(super) struct Admin {
    /// Address of the admin listener: host and port, or `unix:` and the path of its socket.
    #[arg(
        long = "admin",
        value_name = "ADDR",
        default_value = "127.0.0.1:4311",
        env = "FUSEBOX_ADMIN"
    )]
    address: String,
    /// Bearer token, when the admin listener asks for one.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "FUSEBOX_ADMIN_TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
    /// How long to wait for an answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    timeout: u64,
}

/// An answer of the admin API.
pub(super) struct Answered {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

impl Answered {
    /// What the admin API said was wrong, for a person.
    pub(super) fn problem(&self) -> String {
        let answer: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let text = |name: &str| answer.pointer(&format!("/error/{name}")).and_then(|v| v.as_str());
        match (text("message"), text("hint")) {
            (Some(message), Some(hint)) => format!("{message} ({}); {hint}", self.status),
            _ => format!("the admin API answered {}", self.status),
        }
    }
}

impl Admin {
    /// Sends a request without a body and reads the answer.
    ///
    /// # Errors
    /// One line for a person: nobody there, no answer in time, or an answer that breaks off.
    pub(super) fn ask(&self, method: Method, path: &str, accept: &str) -> Result<Answered, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start: {e}"))?;
        let limit = Duration::from_secs(self.timeout.max(1));
        runtime
            .block_on(async { timeout(limit, self.exchange(method, path, accept)).await })
            .unwrap_or_else(|_| {
                Err(format!(
                    "{} did not answer within {}s",
                    self.address, self.timeout
                ))
            })
    }

    async fn exchange(&self, method: Method, path: &str, accept: &str) -> Result<Answered, String> {
        let address = self
            .address
            .strip_prefix("http://")
            .unwrap_or(&self.address)
            .trim_end_matches('/');
        let (stream, host) = match address.strip_prefix("unix:") {
            Some(path) => {
                let stream = UnixStream::connect(path).await;
                (stream.map(Either::Right), "localhost")
            }
            None => (TcpStream::connect(address).await.map(Either::Left), address),
        };
        let stream = stream.map_err(|e| {
            format!("cannot reach the admin API at {address}: {e}; is fusebox running, and is this its --admin-listen?")
        })?;
        let (mut send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| format!("{address} does not speak HTTP: {e}"))?;
        let driving = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host)
            .header("accept", accept)
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request
            .body(Full::<Bytes>::default())
            .map_err(|e| e.to_string())?;
        let response = send
            .send_request(request)
            .await
            .map_err(|e| format!("no answer from {address}: {e}"))?;
        let status = response.status().as_u16();
        #[expect(clippy::disallowed_methods, reason = "bounded by Limited")]
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| format!("the answer of {address} broke off: {e}"))?
            .to_bytes()
            .to_vec();
        driving.abort();
        Ok(Answered { status, body })
    }
}
