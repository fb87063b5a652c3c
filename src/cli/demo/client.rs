//! An HTTP client that behaves as the official SDKs do: one connection kept alive, two retries, `retry-after` obeyed.

use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{HeaderMap, HeaderName, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tokio::time::timeout;

/// Tries after the first one, as in the official SDKs.
const RETRIES: u32 = 2;
/// The longest wait that the server may ask for; beyond it the client waits as it likes.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);
/// Largest answer that is read.
const MAX_ANSWER: usize = 8 << 20;
/// How long one try may take.
const TRY_LIMIT: Duration = Duration::from_secs(60);

/// Whose SDK it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Chat,
    Responses,
    Messages,
    Embeddings,
}

/// One call of an API.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) shape: Shape,
    pub(super) model: String,
    pub(super) prompt: String,
    pub(super) max_output: u64,
    pub(super) stream: bool,
    pub(super) execution: String,
}

/// What came of one try.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Model that the answer names.
    pub(super) model: String,
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    /// Text of the answer, or of the error.
    pub(super) text: String,
    /// What the proxy says that it did: `name: value` of its own headers.
    pub(super) notes: Vec<String>,
    /// How long to wait before the next try; `None` when it is not to be retried.
    retry: Option<Retry>,
}

/// When the next try is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// The server said when.
    After(Duration),
    /// The client's own back-off.
    BackOff,
}

/// What the caller is told while a call is under way.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Told {
    /// A try was refused with 429; the next one follows after the wait, if there is one.
    RateLimited { wait: Option<Duration>, message: String },
}

/// A client of one agent. Sends one call at a time.
pub(super) struct Sdk {
    address: String,
    agent: String,
    /// The agent's version, told in each request.
    pub(super) version: Option<&'static str>,
    /// Status of the last answer; 0 before the first one, and after a try without an answer.
    pub(super) last_status: u16,
    rng: fastrand::Rng,
    connection: Option<Connection>,
}

struct Connection {
    send: SendRequest<Full<Bytes>>,
    driving: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driving.abort();
    }
}

impl Sdk {
    /// A client that calls `address` (`host:port`) as `agent`, with the API key `sk-demo-{agent}`.
    pub(super) fn new(address: String, agent: &str, seed: u64) -> Self {
        Self {
            address,
            agent: agent.to_owned(),
            version: None,
            last_status: 0,
            rng: fastrand::Rng::with_seed(seed),
            connection: None,
        }
    }

    /// Calls, with retries; `told` hears of every refusal on the way.
    ///
    /// # Errors
    /// One line for a person, when there was no answer at all.
    pub(super) async fn call(&mut self, call: &Call, mut told: impl FnMut(Told)) -> Result<Answer, String> {
        let mut tries = 0;
        loop {
            let result = self.once(call).await;
            let retry = match &result {
                Ok(answer) => answer.retry,
                Err(_) => Some(Retry::BackOff),
            };
            let wait = retry
                .filter(|_| tries < RETRIES)
                .map(|retry| retry.wait(tries, self.rng.f64()));
            if let Ok(answer) = &result
                && answer.status == 429
            {
                let message = answer.text.clone();
                told(Told::RateLimited { wait, message });
            }
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return result,
            }
            tries += 1;
        }
    }

    /// Calls once.
    ///
    /// # Errors
    /// One line for a person, when there was no answer.
    pub(super) async fn once(&mut self, call: &Call) -> Result<Answer, String> {
        let tried = timeout(TRY_LIMIT, self.exchange(call)).await;
        let result = tried.unwrap_or_else(|_| Err(format!("no answer within {} s", TRY_LIMIT.as_secs())));
        if result.is_err() {
            self.connection = None;
        }
        self.last_status = result.as_ref().map_or(0, |answer| answer.status);
        result
    }

    async fn exchange(&mut self, call: &Call) -> Result<Answer, String> {
        let request = self.request(call)?;
        if self.connection.as_ref().is_none_or(|c| c.send.is_closed()) {
            self.connection = Some(connect(&self.address).await?);
        }
        let Some(connection) = &mut self.connection else {
            return Err("no connection".to_owned());
        };
        connection.send.ready().await.map_err(|e| e.to_string())?;
        let response = connection
            .send
            .send_request(request)
            .await
            .map_err(|e| format!("no answer: {e}"))?;
        let (head, body) = response.into_parts();
        #[expect(clippy::disallowed_methods, reason = "bounded by Limited")]
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|e| format!("the answer broke off: {e}"))?
            .to_bytes();
        Ok(read(call.shape, head.status, &head.headers, &body))
    }

    fn request(&self, call: &Call) -> Result<Request<Full<Bytes>>, String> {
        let key = format!("sk-demo-{}", self.agent);
        let (path, body) = call.body();
        let mut request = Request::post(path)
            .header(HOST, &self.address)
            .header(CONTENT_TYPE, "application/json")
            .header("accept", "application/json")
            .header("user-agent", "fusebox-demo-agent/1.0")
            .header("x-agent-id", &self.agent)
            .header("x-execution-id", &call.execution);
        if let Some(version) = self.version {
            request = request.header("x-agent-version", version);
        }
        request = if call.shape == Shape::Messages {
            request
                .header("x-api-key", key)
                .header("anthropic-version", "2023-06-01")
        } else {
            request.header(AUTHORIZATION, format!("Bearer {key}"))
        };
        request
            .body(Full::from(body.to_string()))
            .map_err(|e| e.to_string())
    }
}

impl Call {
    fn body(&self) -> (&'static str, Value) {
        let mut body = match self.shape {
            Shape::Chat => json!({
                "model": self.model,
                "messages": [{"role": "user", "content": self.prompt}],
                "max_tokens": self.max_output,
            }),
            Shape::Messages => json!({
                "model": self.model,
                "max_tokens": self.max_output,
                "messages": [{"role": "user", "content": self.prompt}],
            }),
            Shape::Responses => {
                json!({"model": self.model, "input": self.prompt, "max_output_tokens": self.max_output})
            }
            Shape::Embeddings => json!({"model": self.model, "input": [self.prompt], "dimensions": 256}),
        };
        if self.stream
            && let Value::Object(fields) = &mut body
        {
            fields.insert("stream".to_owned(), Value::Bool(true));
            if self.shape == Shape::Chat {
                fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
            }
        }
        let path = match self.shape {
            Shape::Chat => "/v1/chat/completions",
            Shape::Responses => "/v1/responses",
            Shape::Messages => "/v1/messages",
            Shape::Embeddings => "/v1/embeddings",
        };
        (path, body)
    }
}

async fn connect(address: &str) -> Result<Connection, String> {
    let stream = TcpStream::connect(address)
        .await
        .map_err(|e| format!("cannot connect to {address}: {e}"))?;
    stream.set_nodelay(true).ok();
    let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| format!("{address} does not speak HTTP: {e}"))?;
    let driving = tokio::spawn(connection).abort_handle();
    Ok(Connection { send, driving })
}

/// Reads an answer, whole or streamed.
fn read(shape: Shape, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Answer {
    let mut answer = Answer {
        status: status.as_u16(),
        model: String::new(),
        input: None,
        output: None,
        text: String::new(),
        notes: notes(headers),
        retry: retry(status, headers),
    };
    let streamed = headers
        .get(CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"text/event-stream"));
    if streamed {
        let text = String::from_utf8_lossy(body);
        for data in text.lines().filter_map(|line| line.strip_prefix("data:")) {
            if let Ok(event) = serde_json::from_str(data.trim_start()) {
                take(&mut answer, shape, &event);
            }
        }
    } else if let Ok(whole) = serde_json::from_slice(body) {
        take(&mut answer, shape, &whole);
    }
    if answer.output.is_none() && shape == Shape::Embeddings && answer.input.is_some() {
        answer.output = Some(0);
    }
    answer
}

/// Headers that only fusebox sends.
fn notes(headers: &HeaderMap) -> Vec<String> {
    headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-fusebox-"))
        .filter_map(|(name, value)| Some(format!("{name}: {}", value.to_str().ok()?)))
        .take(8)
        .collect()
}

/// Adds what a body or an event says.
fn take(answer: &mut Answer, shape: Shape, value: &Value) {
    let inner = match shape {
        Shape::Responses => value.get("response").unwrap_or(value),
        Shape::Messages => value.get("message").unwrap_or(value),
        Shape::Chat | Shape::Embeddings => value,
    };
    if let Some(model) = inner.get("model").and_then(Value::as_str)
        && !model.is_empty()
    {
        model.clone_into(&mut answer.model);
    }
    let usage = inner.get("usage");
    let count = |names: [&str; 2]| names.iter().find_map(|n| usage?.get(n)?.as_u64());
    if let Some(n) = count(["prompt_tokens", "input_tokens"]) {
        answer.input = Some(n);
    }
    if let Some(n) = count(["completion_tokens", "output_tokens"]) {
        answer.output = Some(n);
    }
    for place in [
        "/choices/0/message/content",
        "/choices/0/delta/content",
        "/content/0/text",
        "/delta/text",
        "/error/message",
    ] {
        if let Some(text) = value.pointer(place).and_then(Value::as_str) {
            answer.text.push_str(text);
        }
    }
    if let Some(text) = inner.pointer("/output/0/content/0/text").and_then(Value::as_str) {
        answer.text.push_str(text);
    }
}

/// Whether an answer is to be retried, and when.
fn retry(status: StatusCode, headers: &HeaderMap) -> Option<Retry> {
    let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let wanted = match text(HeaderName::from_static("x-should-retry")) {
        Some("true") => true,
        Some("false") => false,
        _ => matches!(status.as_u16(), 408 | 409 | 429 | 500..),
    };
    if !wanted {
        return None;
    }
    let exact = text(HeaderName::from_static("retry-after-ms"))
        .and_then(|v| v.parse::<f64>().ok())
        .and_then(|ms| Duration::try_from_secs_f64(ms / 1e3).ok());
    let seconds = text(RETRY_AFTER)
        .and_then(|v| v.parse::<f64>().ok())
        .and_then(|s| Duration::try_from_secs_f64(s).ok());
    let asked = exact
        .or(seconds)
        .filter(|d| *d > Duration::ZERO && *d <= LONGEST_RETRY_AFTER);
    Some(asked.map_or(Retry::BackOff, Retry::After))
}

impl Retry {
    /// The wait before try number `tries` + 2; `chance` is between 0 and 1.
    fn wait(self, tries: u32, chance: f64) -> Duration {
        match self {
            Self::After(wait) => wait,
            Self::BackOff => {
                let seconds = (0.5 * f64::from(2_u32.saturating_pow(tries))).min(8.0);
                Duration::from_secs_f64(seconds * (1.0 - 0.25 * chance.clamp(0.0, 1.0)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    #[test]
    fn retries_as_the_official_clients_do() {
        let after = |ms| Some(Retry::After(Duration::from_millis(ms)));
        for (status, sent, expected) in [
            (200, &[][..], None),
            (400, &[], None),
            (404, &[("retry-after", "1")], None),
            (408, &[], Some(Retry::BackOff)),
            (429, &[], Some(Retry::BackOff)),
            (503, &[], Some(Retry::BackOff)),
            (429, &[("retry-after", "7")], after(7_000)),
            (
                429,
                &[("retry-after", "7"), ("retry-after-ms", "6200")],
                after(6_200),
            ),
            (429, &[("retry-after", "61")], Some(Retry::BackOff)),
            (429, &[("retry-after", "0")], Some(Retry::BackOff)),
            (429, &[("retry-after", "-3")], Some(Retry::BackOff)),
            (429, &[("retry-after", "soon")], Some(Retry::BackOff)),
            (429, &[("x-should-retry", "false"), ("retry-after", "7")], None),
            (400, &[("x-should-retry", "true")], Some(Retry::BackOff)),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(retry(status, &headers(sent)), expected, "{status} {sent:?}");
        }
    }

    #[test]
    fn back_off_doubles_up_to_eight_seconds() {
        for (tries, chance, ms) in [
            (0, 0.0, 500),
            (1, 0.0, 1000),
            (0, 1.0, 375),
            (9, 0.0, 8000),
            (99, 0.0, 8000),
        ] {
            assert_eq!(Retry::BackOff.wait(tries, chance), Duration::from_millis(ms));
        }
        let asked = Retry::After(Duration::from_secs(3));
        assert_eq!(asked.wait(1, 0.5), Duration::from_secs(3));
    }

    #[test]
    fn errors_are_read_for_their_message() {
        let body = br#"{"error":{"message":"slow down","type":"tokens","code":"rate_limit_exceeded"}}"#;
        let answer = read(
            Shape::Chat,
            StatusCode::TOO_MANY_REQUESTS,
            &headers(&[("retry-after", "2")]),
            body,
        );
        assert_eq!((answer.status, answer.text.as_str()), (429, "slow down"));
        assert_eq!(answer.retry, Some(Retry::After(Duration::from_secs(2))));
    }

    /// Answers each connection's first request with the next of `answers`.
    async fn server(answers: Vec<&'static str>) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut got = Vec::new();
                while !got.ends_with(b"}") {
                    stream.read_buf(&mut got).await.unwrap();
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        address
    }

    fn call() -> Call {
        Call {
            shape: Shape::Chat,
            model: "gpt-4o".to_owned(),
            prompt: "hello".to_owned(),
            max_output: 5,
            stream: false,
            execution: "e".to_owned(),
        }
    }

    const REFUSED: &str = "HTTP/1.1 429 Too Many Requests\r\nconnection: close\r\nretry-after-ms: 20\r\n\
         content-length: 30\r\n\r\n{\"error\":{\"message\":\"too fast\"}";
    const FINE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test)
    }

    #[test]
    fn a_refusal_is_retried_twice_and_no_more() {
        run(async {
            let mut told = Vec::new();
            let mut sdk = Sdk::new(server(vec![REFUSED, FINE]).await, "a", 1);
            let answer = sdk.call(&call(), |t| told.push(t)).await.unwrap();
            assert_eq!((answer.status, told.len()), (200, 1));

            let mut sdk = Sdk::new(server(vec![REFUSED; 3]).await, "a", 1);
            told.clear();
            let answer = sdk.call(&call(), |t| told.push(t)).await.unwrap();
            assert_eq!((answer.status, told.len()), (429, 3));
            let waits: Vec<_> = told
                .iter()
                .map(|Told::RateLimited { wait, .. }| wait.map(|w| w.as_millis()))
                .collect();
            assert_eq!(waits, [Some(20), Some(20), None]);
        });
    }

    #[test]
    fn nobody_there_is_an_error() {
        run(async {
            let mut sdk = Sdk::new("127.0.0.1:1".to_owned(), "a", 1);
            assert!(sdk.once(&call()).await.unwrap_err().contains("cannot connect"));
        });
    }
}
