//! A client of the admin API, for the subcommands that talk to a running fusebox.

use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::either::Either;

/// Largest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// How long a stream of events may be silent: three of its heartbeats.
const SILENT: Duration = Duration::from_secs(30);

/// How to reach the admin API.
#[derive(Debug, Clone, Args)]
pub(super) struct Admin {
    /// Address of the admin listener: host and port, or `unix:` and the path of its socket.
    #[arg(
        long = "admin",
        value_name = "ADDR",
        default_value = "127.0.0.1:4311",
        env = "FUSEBOX_ADMIN",
        global = true
    )]
    address: String,
    /// Bearer token, when the admin listener asks for one.
    #[arg(
        long,
        value_name = "TOKEN",
        env = "FUSEBOX_ADMIN_TOKEN",
        hide_env_values = true,
        global = true
    )]
    token: Option<String>,
    /// How long to wait for an answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, global = true)]
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
        let problems = answer.pointer("/problems").and_then(|p| p.as_array());
        let lines: String = problems
            .into_iter()
            .flatten()
            .map(|p| {
                let text = |name: &str| p.get(name).and_then(|v| v.as_str()).unwrap_or_default();
                format!("\n  {} {} ({})", text("pointer"), text("message"), text("hint"))
            })
            .collect();
        match (text("message"), text("hint")) {
            (Some(message), Some(hint)) => format!("{message} ({}); {hint}{lines}", self.status),
            _ => format!("the admin API answered {}", self.status),
        }
    }
}

impl Admin {
    /// Sends a request without a body and reads the answer.
    ///
    /// # Errors
    /// As [`Admin::send`].
    pub(super) fn ask(&self, method: Method, path: &str, accept: &str) -> Result<Answered, String> {
        self.send(method, path, accept, Bytes::new())
    }

    /// Sends a request with a JSON body (or none) and reads the answer.
    ///
    /// # Errors
    /// One line for a person: nobody there, no answer in time, or an answer that breaks off.
    pub(super) fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Answered, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start: {e}"))?;
        let limit = Duration::from_secs(self.timeout.max(1));
        runtime
            .block_on(async { timeout(limit, self.exchange(method, path, accept, body)).await })
            .unwrap_or_else(|_| {
                Err(format!(
                    "{} did not answer within {}s",
                    self.address, self.timeout
                ))
            })
    }

    /// Follows events; each block of lines goes to `each`, which says whether to go on. Comes back when the stream ends.
    ///
    /// # Errors
    /// One line for a person: nobody there, or an answer that is no stream of events.
    pub(super) fn follow(&self, path: &str, mut each: impl FnMut(&str) -> bool) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| format!("cannot start: {e}"))?;
        runtime.block_on(async {
            let limit = Duration::from_secs(self.timeout.max(1));
            let opened = timeout(
                limit,
                self.open(Method::GET, path, "text/event-stream", Bytes::new()),
            );
            let (response, driving) = opened
                .await
                .map_err(|_| format!("{} did not answer within {}s", self.address, self.timeout))??;
            if response.status() != http::StatusCode::OK {
                return Err(whole(response).await?.problem());
            }
            let mut body = response.into_body();
            let mut text = String::new();
            // A line comes every few seconds; when none does, nobody is there any more.
            while let Ok(Some(Ok(frame))) = timeout(SILENT, body.frame()).await {
                let Ok(data) = frame.into_data() else { continue };
                text.push_str(&String::from_utf8_lossy(&data));
                while let Some((block, rest)) = text.split_once("\n\n") {
                    let go_on = each(block);
                    text = rest.to_owned();
                    if !go_on {
                        return Ok(());
                    }
                }
                if text.len() > MAX_ANSWER {
                    return Err("an event is too large".to_owned());
                }
            }
            driving.abort();
            Ok(())
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<Answered, String> {
        let (response, driving) = self.open(method, path, accept, body).await?;
        let answered = whole(response)
            .await
            .map_err(|e| format!("the answer of {} broke off: {e}", self.address));
        driving.abort();
        answered
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, JoinHandle<Result<(), hyper::Error>>), String> {
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
            .header(USER_AGENT, concat!("fusebox-cli/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        let response = send
            .send_request(request)
            .await
            .map_err(|e| format!("no answer from {address}: {e}"))?;
        Ok((response, driving))
    }
}

async fn whole(response: Response<Incoming>) -> Result<Answered, String> {
    let status = response.status().as_u16();
    #[expect(clippy::disallowed_methods, reason = "bounded by Limited")]
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|e| e.to_string())?
        .to_bytes()
        .to_vec();
    Ok(Answered { status, body })
}
