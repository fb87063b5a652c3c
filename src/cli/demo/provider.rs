//! A simulated LLM provider: an HTTP/1.1 server in this process that speaks the real wire shapes and takes its time.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Sleep;

use super::catalog;
use super::filler::{first_tokens, lognormal, text, tokens_of};
use super::ledger::{Bill, Ledger, Tab};
use super::stream::{Step, steps};
use super::weather::Weather;
use super::wire::{Answer, Api, Asked, Fault, durations, read};
use crate::clock::Clock;
use crate::types::time::Mono;

/// Largest request body that is read.
const MAX_BODY: usize = 32 << 20;
/// Connections served at once; more wait.
const MAX_CONNECTIONS: usize = 1024;
/// Limits that are told in the rate-limit headers; they are not enforced.
const REQUESTS_PER_MINUTE: u64 = 10_000;
const TOKENS_PER_MINUTE: u64 = 30_000_000;
/// Longest answer that is generated.
const MAX_OUTPUT: u64 = 16_384;

/// A running provider; it stops when dropped.
#[derive(Debug)]
pub struct Provider {
    /// Where it listens: a free port of 127.0.0.1.
    pub addr: SocketAddr,
    state: Arc<State>,
    accepting: AbortHandle,
}

#[derive(Debug)]
struct State {
    clock: Clock,
    seed: u64,
    speed: f64,
    requests: AtomicU64,
    ledger: Arc<Ledger>,
    weather: Weather,
}

impl Provider {
    /// Starts one on the current tokio runtime. Answers are a function of `seed` and the request's bytes; with `speed`
    /// 2.0 it answers twice as fast as models of its names do (clamped to 0.01 to 10 000).
    ///
    /// # Errors
    /// When it cannot listen on 127.0.0.1.
    pub async fn start(seed: u64, speed: f64, clock: Clock) -> Result<Self, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(|e| format!("the simulated provider cannot listen on 127.0.0.1: {e}"))?;
        let addr = listener
            .local_addr()
            .map_err(|e| format!("the simulated provider has no address: {e}"))?;
        let speed = if speed.is_finite() {
            speed.clamp(0.01, 1e4)
        } else {
            1.0
        };
        let state = Arc::new(State {
            ledger: Arc::new(Ledger::new(clock.clone())),
            clock,
            seed,
            speed,
            requests: AtomicU64::new(0),
            weather: Weather::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&state))).abort_handle();
        Ok(Self {
            addr,
            state,
            accepting,
        })
    }

    /// How it is; to be changed while it runs.
    pub(super) fn weather(&self) -> &Weather {
        &self.state.weather
    }

    /// Requests that came in, faulty ones included.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }

    /// Tokens of the exchanges that ended in the last minute, by model as asked for.
    pub fn tokens_per_minute(&self) -> BTreeMap<String, u64> {
        let since = self.state.clock.mono().before(Duration::from_secs(60));
        let mut sums = BTreeMap::new();
        for bill in self.bills(since) {
            let tokens = bill.tokens();
            *sums.entry(bill.model).or_default() += tokens;
        }
        sums
    }

    /// Bills of exchanges that ended after `since`, oldest first.
    pub fn bills(&self, since: Mono) -> Vec<Bill> {
        self.state.ledger.since(since)
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropped with this task, and every connection with it.
    let mut connections = JoinSet::new();
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: give others the time to return some.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Small writes of a stream go out at once; without it they only go out later.
        stream.set_nodelay(true).ok();
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = service_fn(|request| serve(Arc::clone(&state), request));
            // An error here is a client that broke off, which is the client's to notice.
            hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await
                .ok();
            drop(place);
        });
    }
}

type Reply = Response<Either<Full<Bytes>, Paced>>;

async fn serve(state: Arc<State>, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let number = state.requests.fetch_add(1, Ordering::Relaxed);
    let from = state.clock.mono();
    let id = format!("req_{:016x}{number:08x}", state.seed);
    let api = Api::of(request.uri().path());
    let mut reply = match exchange(&state, request, api, from, number).await {
        Ok(reply) => reply,
        Err(fault) => {
            let status = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::BAD_REQUEST);
            json_reply(status, &fault.body(api, &id))
        }
    };
    state.tell_limits(reply.headers_mut(), api, &id);
    Ok(reply)
}

async fn exchange(
    state: &Arc<State>,
    request: Request<Incoming>,
    api: Option<Api>,
    from: Mono,
    number: u64,
) -> Result<Reply, Fault> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if head.method == Method::GET && path.ends_with("/models") {
        return Ok(models());
    }
    let Some(api) = api else {
        return Err(Fault::not_found(format!("Invalid URL ({} {path})", head.method)));
    };
    if head.method != Method::POST {
        return Err(Fault {
            status: 405,
            ..Fault::invalid(format!("Not allowed to {} on {path}.", head.method), None)
        });
    }
    #[expect(clippy::disallowed_methods, reason = "bounded by Limited")]
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => {
            return Err(Fault {
                status: 413,
                ..Fault::invalid("The request body is too large or broke off.", None)
            });
        }
    };
    if state.weather.is_failing() {
        return Err(Fault {
            status: 503,
            ..Fault::invalid("The server is overloaded or not ready yet.", None)
        });
    }
    let asked = read(api, &body)?;
    let Some(model) = catalog::find(&asked.model) else {
        return Err(Fault {
            code: Some("model_not_found"),
            ..Fault::not_found(format!("The model `{}` does not exist.", asked.model))
        });
    };
    let mut rng = fastrand::Rng::with_seed(state.seed ^ fingerprint(&body));
    let answer = answer(state, &asked, &mut rng, number, model.served(&asked.model));
    let mut tab = Tab {
        ledger: Arc::clone(&state.ledger),
        from,
        account: account(&head.headers),
        model: asked.model.clone(),
        input: asked.input,
        output: 0,
    };
    let jitter = 0.85 + 0.3 * rng.f64();
    let (to_first, rest) = durations(model, &asked, answer.output());
    let scale = |d: Duration| d.mul_f64(jitter * state.weather.factor() / state.speed);
    if asked.stream {
        let steps = steps(&asked, &answer, scale(to_first), scale(rest));
        let mut reply = Response::new(Either::Right(Paced::new(steps, tab)));
        let headers = reply.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream; charset=utf-8"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(reply)
    } else {
        tokio::time::sleep(scale(to_first) + scale(rest)).await;
        tab.output = if api == Api::Embeddings {
            0
        } else {
            answer.output()
        };
        let whole = answer.whole(&asked, &mut rng);
        Ok(json_reply(StatusCode::OK, &whole))
    }
}

fn answer(state: &State, asked: &Asked, rng: &mut fastrand::Rng, number: u64, model: String) -> Answer {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a small positive range"
    )]
    let usual = || lognormal(&mut rng.clone(), 130.0, 0.7).clamp(8.0, 900.0) as u64;
    let wanted = asked.wanted.unwrap_or_else(usual).min(MAX_OUTPUT);
    let max = asked.max_output.unwrap_or(u64::MAX);
    let text = if asked.api == Api::Embeddings {
        String::new()
    } else {
        first_tokens(text(rng, wanted), max)
    };
    Answer {
        id: format!("{:016x}{number:08x}", rng.u64(..)),
        created: state.clock.wall().unix_millis() / 1000,
        model,
        input: asked.input,
        cut: tokens_of(&text) < wanted,
        text,
    }
}

/// FNV-1a of a request body: the same request gets the same answer.
fn fingerprint(body: &[u8]) -> u64 {
    body.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The name in the API key, whichever header bears it.
fn account(headers: &HeaderMap) -> String {
    let key = headers.get(AUTHORIZATION).or_else(|| headers.get("x-api-key"));
    key.and_then(|v| v.to_str().ok())
        .and_then(|v| v.rsplit_once("sk-demo-"))
        .map_or_else(|| "other".to_owned(), |(_, name)| name.chars().take(64).collect())
}

fn models() -> Reply {
    let data: Vec<_> = catalog::names()
        .map(|name| json!({"id": name, "object": "model", "created": 1_715_367_049, "owned_by": "simulated"}))
        .collect();
    json_reply(StatusCode::OK, &json!({"object": "list", "data": data}))
}

fn json_reply(status: StatusCode, body: &serde_json::Value) -> Reply {
    let mut reply = Response::new(Either::Left(Full::from(body.to_string())));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

impl State {
    /// Adds the request id and the rate-limit headers, under the names of the API's vendor.
    fn tell_limits(&self, headers: &mut HeaderMap, api: Option<Api>, id: &str) {
        let now = self.clock.mono();
        let since = now.before(Duration::from_secs(60));
        let (requests, tokens) = self.ledger.sum_since(since);
        let mut set = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        let left_requests = REQUESTS_PER_MINUTE.saturating_sub(requests + 1);
        let left_tokens = TOKENS_PER_MINUTE.saturating_sub(tokens);
        if api == Some(Api::Messages) {
            let wall = self.clock.wall().unix_millis();
            let reset = crate::types::time::Wall::from_unix_millis(wall.saturating_add(60_000) / 1000 * 1000);
            set("request-id", id.to_owned());
            for (limit, remaining, at, most, left) in [
                (
                    "anthropic-ratelimit-requests-limit",
                    "anthropic-ratelimit-requests-remaining",
                    "anthropic-ratelimit-requests-reset",
                    REQUESTS_PER_MINUTE,
                    left_requests,
                ),
                (
                    "anthropic-ratelimit-tokens-limit",
                    "anthropic-ratelimit-tokens-remaining",
                    "anthropic-ratelimit-tokens-reset",
                    TOKENS_PER_MINUTE,
                    left_tokens,
                ),
            ] {
                set(limit, most.to_string());
                set(remaining, left.to_string());
                set(at, reset.to_string());
            }
        } else {
            set("x-request-id", id.to_owned());
            set("openai-version", "2020-10-01".to_owned());
            set("x-ratelimit-limit-requests", REQUESTS_PER_MINUTE.to_string());
            set("x-ratelimit-remaining-requests", left_requests.to_string());
            set("x-ratelimit-limit-tokens", TOKENS_PER_MINUTE.to_string());
            set("x-ratelimit-remaining-tokens", left_tokens.to_string());
            let used = |left: u64, most: u64| format!("{}ms", (most - left) * 60_000 / most);
            set(
                "x-ratelimit-reset-requests",
                used(left_requests, REQUESTS_PER_MINUTE),
            );
            set("x-ratelimit-reset-tokens", used(left_tokens, TOKENS_PER_MINUTE));
        }
    }
}

/// A body that writes each step when its time has come.
struct Paced {
    steps: std::vec::IntoIter<Step>,
    next: Option<Step>,
    sleep: Pin<Box<Sleep>>,
    tab: Option<Tab>,
}

impl Paced {
    fn new(steps: Vec<Step>, tab: Tab) -> Self {
        let mut steps = steps.into_iter();
        let next = steps.next();
        let pause = next.as_ref().map_or(Duration::ZERO, |s| s.pause);
        Self {
            steps,
            next,
            sleep: Box::pin(tokio::time::sleep(pause)),
            tab: Some(tab),
        }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.next.is_none() {
            self.tab = None;
            return Poll::Ready(None);
        }
        ready!(self.sleep.as_mut().poll(cx));
        let step = self.next.take();
        self.next = self.steps.next();
        // Counted from when the last one was due, so that lateness does not add up.
        if let Some(next) = &self.next {
            let due = self.sleep.deadline() + next.pause;
            self.sleep.as_mut().reset(due);
        }
        if let (Some(tab), Some(step)) = (&mut self.tab, &step) {
            tab.output = step.output;
        }
        Poll::Ready(step.map(|s| Ok(Frame::data(s.bytes))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::client::{Call, Sdk, Shape};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test)
    }

    async fn provider() -> Provider {
        Provider::start(7, 1000.0, Clock::system()).await.unwrap()
    }

    /// Sends a request that asks for the end of the connection, and reads until that.
    async fn raw(addr: SocketAddr, method: &str, path: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn every_shape_is_served_and_billed() {
        run(async {
            let provider = provider().await;
            let mut sdk = Sdk::new(provider.addr.to_string(), "tester", 1);
            let mut expected = 0;
            for (shape, model, stream) in [
                (Shape::Chat, "gpt-4o", false),
                (Shape::Chat, "gpt-4o-mini", true),
                (Shape::Responses, "gpt-4.1", false),
                (Shape::Responses, "gpt-4.1", true),
                (Shape::Messages, "claude-sonnet-4-5", false),
                (Shape::Messages, "claude-sonnet-4-5", true),
                (Shape::Embeddings, "text-embedding-3-small", false),
            ] {
                let call = Call {
                    shape,
                    model: model.to_owned(),
                    prompt: format!("{} Answer in about 25 tokens.", "word ".repeat(40)),
                    max_output: 100,
                    stream,
                    execution: "e".to_owned(),
                };
                let answer = sdk.once(&call).await.unwrap();
                assert_eq!(answer.status, 200, "{shape:?} {stream}");
                assert!(
                    answer.model.starts_with(model),
                    "{} {shape:?} {stream}",
                    answer.model
                );
                let output = if shape == Shape::Embeddings { 0 } else { 25 };
                assert_eq!(answer.output, Some(output), "{shape:?} {stream}");
                assert_eq!(answer.input, Some(57), "{shape:?} {stream}");
                expected += 57 + output;
            }
            let bills = provider.bills(Mono::ZERO);
            assert_eq!(bills.iter().map(Bill::tokens).sum::<u64>(), expected);
            assert!(bills.iter().all(|b| b.account == "tester" && b.from <= b.to));
            assert_eq!(provider.requests(), 7);
            assert_eq!(provider.tokens_per_minute().values().sum::<u64>(), expected);
        });
    }

    #[test]
    fn the_limit_on_the_answer_is_kept() {
        run(async {
            let provider = provider().await;
            let mut sdk = Sdk::new(provider.addr.to_string(), "tester", 1);
            let call = Call {
                shape: Shape::Chat,
                model: "gpt-4o".to_owned(),
                prompt: "Answer in about 500 tokens.".to_owned(),
                max_output: 12,
                stream: true,
                execution: "e".to_owned(),
            };
            assert_eq!(sdk.once(&call).await.unwrap().output, Some(12));
        });
    }

    #[test]
    fn the_same_request_gets_the_same_answer() {
        run(async {
            let provider = provider().await;
            let body = r#"{"model":"gpt-4o","messages":[{"role":"user","content":"hello"}]}"#;
            let text = |answer: &str| {
                let (_, body) = answer.split_once("\r\n\r\n").unwrap();
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                body["choices"][0]["message"]["content"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            let one = raw(provider.addr, "POST", "/v1/chat/completions", body).await;
            let two = raw(provider.addr, "POST", "/v1/chat/completions", body).await;
            assert_eq!(text(&one), text(&two));
            let other = body.replace("hello", "hello!");
            let three = raw(provider.addr, "POST", "/v1/chat/completions", &other).await;
            assert_ne!(text(&one), text(&three));
        });
    }

    #[test]
    fn faults_are_answered_in_the_shape_of_the_api() {
        run(async {
            let provider = provider().await;
            for (method, path, body, status, needle) in [
                (
                    "POST",
                    "/v1/nothing",
                    "{}",
                    404,
                    r#""type":"invalid_request_error""#,
                ),
                ("POST", "/v1/chat/completions", "{", 400, "could not parse"),
                ("POST", "/v1/chat/completions", "{}", 400, "model parameter"),
                ("GET", "/v1/chat/completions", "", 405, "Not allowed"),
                (
                    "POST",
                    "/v1/chat/completions",
                    r#"{"model":"none","messages":[]}"#,
                    404,
                    r#""code":"model_not_found""#,
                ),
                ("POST", "/v1/messages", "{}", 400, r#""request_id":"req_"#),
                ("GET", "/v1/models", "", 200, r#""id":"gpt-4o""#),
            ] {
                let answer = raw(provider.addr, method, path, body).await;
                assert!(
                    answer.starts_with(&format!("HTTP/1.1 {status} ")),
                    "{path}: {answer}"
                );
                assert!(answer.contains(needle), "{path}: {answer}");
                assert!(answer.contains("request-id: req_"), "{answer}");
            }
        });
    }

    #[test]
    fn a_client_that_leaves_is_billed_for_what_it_got() {
        run(async {
            // Slow enough that the answer cannot have ended when the client leaves.
            let provider = Provider::start(7, 5.0, Clock::system()).await.unwrap();
            let body = r#"{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"in about 9000 tokens"}]}"#;
            let mut stream = TcpStream::connect(provider.addr).await.unwrap();
            let head = format!(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut got = Vec::new();
            while !String::from_utf8_lossy(&got).contains(r#""delta":{"content":" "#) {
                assert!(stream.read_buf(&mut got).await.unwrap() > 0);
            }
            drop(stream);
            let billed = tokio::time::timeout(Duration::from_secs(10), async {
                loop {
                    if let Some(bill) = provider.bills(Mono::ZERO).pop() {
                        return bill;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            let bill = billed.await.unwrap();
            assert!((1..9000).contains(&bill.output), "{bill:?}");
        });
    }

    #[test]
    fn it_stops_when_dropped() {
        run(async {
            let provider = provider().await;
            let addr = provider.addr;
            drop(provider);
            let gone = tokio::time::timeout(Duration::from_secs(10), async {
                while TcpStream::connect(addr).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            assert!(gone.await.is_ok());
        });
    }
}
