//! Requests that go elsewhere: sent on after each kind of failure, rerouted by a directive, and never more often than allowed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use fusebox::app::{self, Running, Source};
use fusebox::clock::Clock;
use fusebox::config::{self, Compiled, Overrides};
use fusebox::enforce::failover::{Breaker, Credentials, KeyHeader, ModelMap, RetryBudget};
use fusebox::enforce::policy;
use fusebox::incident::rule::{Approval, Rulebook, Step, StepKind};
use fusebox::types::ids::UpstreamName;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::support::client::{Ask, Client};
use crate::support::eventually;
use crate::support::fusebox::read_observations;
use crate::support::http1::Message;
use crate::support::upstream::{Piece, Reply, Seen, Upstream};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";

/// fusebox in this process, so that a policy can be put together without a file.
struct Rig {
    running: Running,
    directory: TempDir,
}

impl Rig {
    /// Upstreams `a`, `b`, … at these URLs; `a` fails over to all others in their order.
    async fn start(urls: &[String], change: impl FnOnce(&mut Compiled)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut compiled = compiled(directory.path(), urls);
        let names = names(urls.len());
        edit(&mut compiled, "a", |a| {
            a.failover = names
                .iter()
                .skip(1)
                .map(|n| UpstreamName::from(n.as_str()))
                .collect();
        });
        compiled.policy.retries = RetryBudget {
            percent: 100.0,
            min_per_minute: 10_000,
        };
        change(&mut compiled);
        let running = app::start(compiled, Source::Fixed, Clock::system())
            .await
            .unwrap();
        Self { running, directory }
    }

    async fn ask(&self, ask: &Ask) -> Message {
        self.client().await.ask(ask).await
    }

    async fn client(&self) -> Client<tokio::net::TcpStream> {
        Client::connect(&self.running.listeners[0]).await
    }

    async fn observation(&self, request_id: &str) -> Value {
        eventually(&format!("the observation of {request_id}"), async || {
            read_observations(&self.directory.path().join("observations.jsonl"))
                .into_iter()
                .find(|o| o["request_id"] == request_id)
        })
        .await
    }

    /// A sample of the metrics.
    fn sample(&self, series: &str) -> u64 {
        let text = self.running.handle.metrics_text();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    async fn breaker(&self, name: &str) -> Option<String> {
        let status = self.running.handle.status().await.unwrap();
        let upstream = status.upstreams.into_iter().find(|u| u.name == name).unwrap();
        upstream.breaker
    }

    async fn stop(self) {
        let stopped = self.running.stop(Duration::from_secs(5), std::future::pending());
        Box::pin(stopped).await.unwrap();
    }
}

fn names(count: usize) -> Vec<String> {
    ('a'..='z').take(count).map(String::from).collect()
}

fn compiled(directory: &Path, urls: &[String]) -> Compiled {
    let upstreams: String = names(urls.len())
        .iter()
        .zip(urls)
        .map(|(name, url)| format!("  - {{name: {name}, url: \"{url}\", families: [], proxy: none}}\n"))
        .collect();
    let text = format!(
        "listeners: [{{listen: 127.0.0.1:0}}]\nadmin: {{listen: 127.0.0.1:0}}\nworkers: 1\nupstreams:\n{upstreams}\
         observations: {{file: {}}}\n\
         agent_incident_rules:\n  - {{name: busy, metric: requests_per_minute, baseline: 1, threshold_upper: 1000000, \
         window: 2s, action: throttle_and_alert}}\n",
        directory.join("observations.jsonl").display()
    );
    config::compile("test", &text, &Overrides::default(), &|_| None).unwrap_or_else(|p| panic!("{p}"))
}

fn edit(compiled: &mut Compiled, name: &str, change: impl FnOnce(&mut policy::Upstream)) {
    let all = &mut compiled.policy.upstreams;
    let upstream = all.iter_mut().find(|u| u.name.as_str() == name).unwrap();
    change(Arc::make_mut(upstream));
}

/// A port on which nobody listens.
async fn nowhere() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A good answer of an API.
fn good(path: &str, stream: bool) -> Reply {
    let chat = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
    match (path, stream) {
        (CHAT, false) => Reply::json(
            r#"{"model":"m","choices":[{"message":{"content":"Hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}"#,
        ),
        (CHAT, true) => Reply::events([chat, "data: [DONE]\n\n"]),
        (MESSAGES, false) => Reply::json(
            r#"{"type":"message","model":"m","content":[{"type":"text","text":"Hi"}],"stop_reason":"end_turn","usage":{"input_tokens":1,"output_tokens":1}}"#,
        ),
        (MESSAGES, true) => Reply::events([
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n",
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ]),
        (_, false) => Reply::json(r#"{"id":"resp_1","status":"completed","output":[]}"#),
        (_, true) => Reply::events([
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"status\":\"in_progress\"}}\n\n",
        ]),
    }
}

/// A stream of an API that begins with an error.
fn begins_badly(path: &str, kind: &str) -> Reply {
    let error = match path {
        CHAT => format!("data: {{\"error\":{{\"message\":\"x\",\"type\":\"{kind}\"}}}}\n\n"),
        MESSAGES => {
            format!(
                "event: error\ndata: {{\"type\":\"error\",\"error\":{{\"type\":\"{kind}\",\"message\":\"x\"}}}}\n\n"
            )
        }
        _ => format!("event: error\ndata: {{\"type\":\"error\",\"code\":\"{kind}\",\"message\":\"x\"}}\n\n"),
    };
    Reply::events([": hello\n\n", &error])
}

fn call(path: &str, stream: bool, nonce: &str) -> Ask {
    let body = format!(
        "{{\"model\":\"m\",\"messages\":[],\"stream\":{stream},\"stream_options\":{{\"include_usage\":true}},\"user\":\"{nonce}\"}}"
    );
    Ask::post(path, body)
        .header("x-request-id", nonce)
        .header("x-execution-id", nonce)
        .header("x-agent-id", "agent")
}

/// How often each request came to a double.
fn ledger(upstream: &Upstream) -> HashMap<String, usize> {
    let mut seen = HashMap::new();
    for request in upstream.seen() {
        let nonce = request.header("x-request-id").unwrap();
        assert!(request.text().contains(&nonce), "the body of another request");
        *seen.entry(nonce).or_default() += 1;
    }
    seen
}

fn went(observation: &Value) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let actions = observation["actions"].as_array().unwrap();
    actions
        .iter()
        .filter(|a| a["kind"] == "failed_over")
        .map(|a| (text(&a["from"]), text(&a["to"])))
        .collect()
}

#[tokio::test]
async fn each_kind_of_failure_is_made_good_in_each_shape() {
    for (path, stream) in [
        (CHAT, false),
        (CHAT, true),
        (MESSAGES, false),
        (MESSAGES, true),
        (RESPONSES, false),
        (RESPONSES, true),
    ] {
        let mut failures = vec![
            ("no connection", None),
            ("status 503", Some(Reply::json("{}").status(503))),
            ("status 529", Some(Reply::json("{}").status(529))),
            ("no answer in time", Some(Reply::json("{}").after(Piece::Hang))),
        ];
        if stream {
            let error = "first event: overloaded_error";
            failures.push((error, Some(begins_badly(path, "overloaded_error"))));
            let broken = Reply::events([": hello\n\n"]).then(Piece::Close);
            failures.push(("first event: the stream broke", Some(broken)));
            let silent = Reply::events([": hello\n\n"]).then(Piece::Hang);
            failures.push(("no answer in time", Some(silent)));
        }
        for (why, reply) in failures {
            let what = format!("{why} at {path}, stream {stream}");
            let a = match reply.clone() {
                Some(reply) => Some(Upstream::start(move |_| reply.clone()).await),
                None => None,
            };
            let b = Upstream::start(move |_| good(path, stream)).await;
            let url = match &a {
                Some(a) => a.url(),
                None => nowhere().await,
            };
            let rig = Rig::start(&[url, b.url()], |c| {
                edit(c, "a", |a| {
                    a.retry_on.first_byte_within = Some(Duration::from_millis(200))
                });
            })
            .await;
            let answer = rig.ask(&call(path, stream, "n-1")).await;
            assert_eq!(answer.status(), 200, "{what}: {}", answer.text());
            assert_eq!(
                answer.header("x-fusebox-upstream").as_deref(),
                Some("b"),
                "{what}"
            );
            assert_eq!(
                answer.header("x-fusebox-action").as_deref(),
                Some("failover"),
                "{what}"
            );
            assert!(answer.complete && !answer.text().contains("error"), "{what}");
            let seen = rig.observation("n-1").await;
            assert_eq!(seen["upstream"], "b", "{what}");
            assert_eq!(seen["outcome"], "complete", "{what}");
            let want = json!([{"kind": "failed_over", "from": "a", "to": "b", "why": why}]);
            assert_eq!(seen["actions"], want, "{what}");
            let once = HashMap::from([("n-1".to_owned(), 1)]);
            assert_eq!(ledger(&b), once, "{what}");
            if let Some(a) = &a {
                assert_eq!(ledger(a), once, "{what}");
            }
            assert_eq!(
                read_observations(&rig.directory.path().join("observations.jsonl")).len(),
                1,
                "one observation: {what}"
            );
            rig.stop().await;
        }
    }
}

#[tokio::test]
async fn what_the_request_is_to_blame_for_is_passed_on() {
    let kill = Reply::json("{}").after(Piece::Close);
    let mut cases: Vec<(Reply, bool, u16)> = [400, 401, 403, 404, 408, 413, 422, 429, 500, 501]
        .map(|status| (Reply::json("{}").status(status), false, status))
        .to_vec();
    cases.push((begins_badly(CHAT, "invalid_request_error"), true, 200));
    // It may have been obeyed before the connection broke.
    cases.push((kill, false, 502));
    for (reply, stream, status) in cases {
        let a = Upstream::start(move |_| reply.clone()).await;
        let b = Upstream::start(|_| good(CHAT, false)).await;
        let rig = Rig::start(&[a.url(), b.url()], |_| {}).await;
        let answer = rig.ask(&call(CHAT, stream, "n")).await;
        assert_eq!(answer.status(), status);
        assert_eq!((a.count(), b.count()), (1, 0), "{status}");
        assert_eq!(answer.header("x-fusebox-upstream"), None);
        assert_eq!(rig.observation("n").await["upstream"], "a");
        rig.stop().await;
    }
}

#[tokio::test]
async fn once_the_client_has_a_byte_nothing_is_sent_again() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let first = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
    let a = Upstream::start(move |_| {
        Reply::events([first])
            .then(Piece::Gate(Arc::clone(&opened)))
            .then(Piece::Close)
    })
    .await;
    let b = Upstream::start(|_| good(CHAT, true)).await;
    let rig = Rig::start(&[a.url(), b.url()], |_| {}).await;
    let mut client = rig.client().await;
    client.send(&call(CHAT, true, "n")).await;
    // The first event is here while the rest of the stream is held back.
    let mut answer = client.head().await;
    assert_eq!(
        client.chunk(&mut answer).await.unwrap().unwrap(),
        first.as_bytes()
    );
    gate.add_permits(1);
    assert!(client.chunk(&mut answer).await.is_err(), "the cut is visible");
    let seen = rig.observation("n").await;
    assert_eq!(
        (seen["outcome"].as_str(), seen["upstream"].as_str()),
        (Some("truncated"), Some("a"))
    );
    assert_eq!((a.count(), b.count()), (1, 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_hop_has_the_keys_names_and_paths_of_its_upstream() {
    let a = Upstream::start(|_| Reply::json("{}").status(503)).await;
    let b = Upstream::start(|_| Reply::json("{}").status(502)).await;
    let c = Upstream::start(|_| good(CHAT, false)).await;
    let urls = [a.url(), b.url(), format!("{}/deep/v1", c.url())];
    let rig = Rig::start(&urls, |compiled| {
        edit(compiled, "b", |b| b.provider = "other".into());
        edit(compiled, "c", |c| {
            c.provider = "azure".into();
            c.credentials = Some(Credentials::new("own-key", KeyHeader::Azure).unwrap());
            c.model_map = ModelMap::new([("gpt-*".to_owned(), "deployed".to_owned())]);
        });
    })
    .await;
    let body = "{ \"model\" :\t\"gpt-4o\", \"messages\":[], \"x\":1.0 }";
    let ask = Ask::post(CHAT, body)
        .header("authorization", "Bearer of-the-client")
        .header("openai-organization", "org")
        .header("x-request-id", "n");
    assert_eq!(rig.ask(&ask).await.status(), 200);
    let (a, b, c) = (a.the_one().await, b.the_one().await, c.the_one().await);
    assert_eq!(a.header("authorization").as_deref(), Some("Bearer of-the-client"));
    assert_eq!((a.text(), b.text()), (body.to_owned(), body.to_owned()));
    // Another provider does not get the client's key, nor does whoever is asked after it.
    for seen in [&b, &c] {
        assert_eq!(seen.header("authorization"), None);
        assert_eq!(seen.header("openai-organization"), None);
    }
    assert_eq!(c.header("api-key").as_deref(), Some("own-key"));
    assert_eq!(c.message.target(), "/deep/v1/chat/completions");
    assert_eq!(c.text(), body.replace("gpt-4o", "deployed"));
    let length = c.text().len().to_string();
    assert_eq!(c.header("content-length"), Some(length));
    let seen = rig.observation("n").await;
    let hops = [("a", "b"), ("b", "c")].map(|(f, t)| (f.to_owned(), t.to_owned()));
    assert_eq!(went(&seen), hops);
    assert_eq!(seen["model_requested"], "gpt-4o");
    rig.stop().await;
}

#[tokio::test]
async fn an_upstreams_own_key_takes_the_place_of_the_clients_always() {
    let a = Upstream::start(|_| good(CHAT, false)).await;
    let rig = Rig::start(&[a.url()], |compiled| {
        edit(compiled, "a", |a| {
            a.credentials = Some(Credentials::new("own-key", KeyHeader::Bearer).unwrap());
        });
    })
    .await;
    let ask = Ask::get("/v1/models?key=of-the-client&x=1").header("x-api-key", "of-the-client");
    rig.ask(&ask).await;
    let seen = a.the_one().await;
    assert_eq!(seen.header("authorization").as_deref(), Some("Bearer own-key"));
    assert_eq!(seen.header("x-api-key"), None);
    assert_eq!(seen.message.target(), "/v1/models?x=1");
    rig.stop().await;
}

#[tokio::test]
async fn the_last_failure_is_told_when_all_fail() {
    let fail =
        |status: u16| Upstream::start(move |_| Reply::json(format!("{{\"s\":{status}}}")).status(status));
    let all = [
        fail(502).await,
        fail(503).await,
        fail(504).await,
        fail(529).await,
        fail(503).await,
    ];
    let urls: Vec<String> = all.iter().map(Upstream::url).collect();
    let rig = Rig::start(&urls, |_| {}).await;
    let answer = rig.ask(&call(CHAT, false, "n")).await;
    assert_eq!((answer.status(), answer.text()), (529, "{\"s\":529}".to_owned()));
    let counts: Vec<usize> = all.iter().map(Upstream::count).collect();
    assert_eq!(counts, [1, 1, 1, 1, 0], "three hops at most");
    assert_eq!(went(&rig.observation("n").await).len(), 3);
    rig.stop().await;
}

#[tokio::test]
async fn an_agent_has_a_budget_which_its_own_library_uses_too() {
    let a = Upstream::start(|_| Reply::json("{}").status(503)).await;
    let b = Upstream::start(|_| good(CHAT, false)).await;
    let rig = Rig::start(&[a.url(), b.url()], |compiled| {
        compiled.policy.retries = RetryBudget {
            percent: 0.0,
            min_per_minute: 3,
        };
        edit(compiled, "a", |a| a.breaker = None);
    })
    .await;
    let mut statuses = Vec::new();
    for (n, again) in ["0", "1", "0", "2", "0"].iter().enumerate() {
        let ask = call(CHAT, false, &format!("n-{n}")).header("x-stainless-retry-count", again);
        statuses.push(rig.ask(&ask).await.status());
    }
    // Ours, theirs (and then ours), and nothing is left.
    assert_eq!(statuses, [200, 200, 503, 503, 503]);
    let last = rig.observation("n-4").await;
    let why = "the retry budget of the agent is spent";
    assert_eq!(
        last["actions"],
        json!([{"kind": "step_skipped", "step": "failover", "why": why}])
    );
    // Another agent has its own.
    let other = call(CHAT, false, "x");
    let other = Ask::post(CHAT, r#"{"model":"m","messages":[]}"#)
        .header("x-agent-id", "other")
        .body(other.bytes().rsplit(|b| *b == b'\n').next().unwrap());
    assert_eq!(rig.ask(&other).await.status(), 200);
    assert_eq!(rig.sample("fusebox_failovers_refused_total{why=\"budget\"}"), 3);
    rig.stop().await;
}

#[tokio::test]
async fn an_upstream_that_failed_often_is_left_alone_and_comes_back() {
    let sick = Arc::new(AtomicBool::new(true));
    let is_sick = Arc::clone(&sick);
    let a = Upstream::start(move |_| match is_sick.load(Ordering::SeqCst) {
        true => Reply::json("{}").status(503),
        false => good(CHAT, false),
    })
    .await;
    let b = Upstream::start(|_| good(CHAT, false)).await;
    let open_for = Duration::from_millis(600);
    let rig = Rig::start(&[a.url(), b.url()], |compiled| {
        edit(compiled, "a", |a| {
            a.breaker = Some(Breaker {
                failures: 3,
                within: Duration::from_secs(10),
                open_for,
            });
        });
    })
    .await;
    for n in 0..8 {
        assert_eq!(rig.ask(&call(CHAT, false, &format!("n-{n}"))).await.status(), 200);
    }
    assert_eq!((a.count(), b.count()), (3, 8), "asked three times, then no more");
    assert_eq!(rig.breaker("a").await.as_deref(), Some("open"));
    let seen = rig.observation("n-7").await;
    assert_eq!(seen["actions"][0]["why"], "it failed often and is left alone");
    sick.store(false, Ordering::SeqCst);
    let n = AtomicUsize::new(8);
    eventually("the upstream is asked again, for all", async || {
        let n = n.fetch_add(1, Ordering::SeqCst);
        rig.ask(&call(CHAT, false, &format!("n-{n}"))).await;
        (rig.breaker("a").await.as_deref() == Some("closed")).then_some(())
    })
    .await;
    let before = b.count();
    for _ in 0..5 {
        let n = n.fetch_add(1, Ordering::SeqCst);
        rig.ask(&call(CHAT, false, &format!("n-{n}"))).await;
    }
    assert_eq!(b.count(), before);
    eventually("the gauge", async || {
        (rig.sample("fusebox_breaker_state{upstream=\"a\"}") == 0).then_some(())
    })
    .await;
    assert_eq!(
        rig.sample("fusebox_upstream_failures_total{upstream=\"a\",why=\"status\"}"),
        3
    );
    rig.stop().await;
}

#[tokio::test]
async fn an_upstream_that_asks_to_be_left_alone_is() {
    let a = Upstream::start(|_| Reply::json("{}").status(503).header("retry-after", "60")).await;
    let b = Upstream::start(|_| good(CHAT, false)).await;
    let rig = Rig::start(&[a.url(), b.url()], |_| {}).await;
    for n in 0..3 {
        assert_eq!(rig.ask(&call(CHAT, false, &format!("n-{n}"))).await.status(), 200);
    }
    assert_eq!((a.count(), b.count()), (1, 3));
    rig.stop().await;
}

#[tokio::test]
async fn what_leans_on_an_upstream_stays_there() {
    let a = Upstream::start(|_| Reply::json("{}").status(503)).await;
    let b = Upstream::start(|_| good(RESPONSES, false)).await;
    let rig = Rig::start(&[a.url(), b.url()], |_| {}).await;
    let signed = "AWS4-HMAC-SHA256 Credential=x";
    for ask in [
        Ask::post(RESPONSES, r#"{"model":"m","previous_response_id":"resp_0"}"#),
        Ask::post(RESPONSES, r#"{"model":"m","conversation":"conv_0"}"#),
        Ask::post("/v1/files", "x"),
        Ask::post("/v1/batches", "{}"),
        Ask::get("/v1/models"),
        Ask::post(CHAT, r#"{"model":"m"}"#).header("authorization", signed),
        Ask::post(CHAT, r#"{"model":"m"}"#).header("content-encoding", "gzip"),
    ] {
        assert_eq!(rig.ask(&ask).await.status(), 503, "{ask:?}");
    }
    assert_eq!((a.count(), b.count()), (7, 0));
    rig.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_says_nothing_about_the_upstream() {
    let hang = Arc::new(AtomicBool::new(true));
    let hangs = Arc::clone(&hang);
    let a = Upstream::start(move |_| match hangs.load(Ordering::SeqCst) {
        true => Reply::json("{}").after(Piece::Hang),
        false => good(CHAT, false),
    })
    .await;
    let b = Upstream::start(|_| good(CHAT, false)).await;
    let rig = Rig::start(&[a.url(), b.url()], |_| {}).await;
    for n in 0..10 {
        let mut client = rig.client().await;
        client.send(&call(CHAT, false, &format!("n-{n}"))).await;
        eventually("the request is there", async || (a.count() > n).then_some(())).await;
        drop(client);
    }
    eventually("all were left", async || (a.left() == 10).then_some(())).await;
    hang.store(false, Ordering::SeqCst);
    assert_eq!(rig.ask(&call(CHAT, false, "n-x")).await.status(), 200);
    assert_eq!((a.count(), b.count()), (11, 0));
    assert_eq!(rig.breaker("a").await.as_deref(), Some("closed"));
    rig.stop().await;
}

#[tokio::test]
async fn under_random_trouble_nothing_is_sent_twice_but_by_rule() {
    let chance = Arc::new(AtomicUsize::new(0));
    let next = Arc::clone(&chance);
    let trouble = move |_: &Seen| {
        // A fixed sequence that looks like chance.
        let n = next.fetch_add(1, Ordering::SeqCst);
        match n.wrapping_mul(2_654_435_761) >> 7 & 7 {
            0 => Reply::json("{}").after(Piece::Close),
            1 => Reply::json("{\"model\"").then(Piece::Close),
            2 => Reply::json("{}").status(503),
            3 => Reply::json("{}").status(400),
            _ => good(CHAT, false),
        }
    };
    let a = Upstream::start(trouble).await;
    let b = Upstream::start(|_| good(CHAT, false)).await;
    let rig = Rig::start(&[a.url(), b.url()], |c| edit(c, "a", |a| a.breaker = None)).await;
    for n in 0..400 {
        let mut client = rig.client().await;
        client.send(&call(CHAT, false, &format!("n-{n}"))).await;
        client.try_answer().await;
    }
    let (at_a, at_b) = (ledger(&a), ledger(&b));
    assert_eq!(at_a.len(), 400);
    assert!(at_a.values().chain(at_b.values()).all(|times| *times == 1));
    let allowed = rig.sample("fusebox_failovers_total{from=\"a\",to=\"b\",why=\"status\"}");
    assert!(allowed > 20, "{allowed}");
    assert_eq!(
        at_b.len() as u64,
        allowed,
        "what came twice is what the counter says"
    );
    rig.stop().await;
}

/// A book in which the built-in chain does nothing but reroute, as soon as an agent asks twice.
fn reroute_to(compiled: &mut Compiled, to: &str) {
    let mut book = Rulebook::clone(&compiled.rulebook);
    for rule in &mut book.rules {
        let rule = Arc::make_mut(rule);
        rule.threshold_upper = Some(fusebox::incident::rule::Threshold::Fixed(2.0));
        rule.min_samples = 1;
    }
    for action in book.actions.values_mut() {
        let kind = StepKind::Reroute { to: to.into() };
        let mut step = Step::new(kind, Duration::from_secs(60));
        step.approval = Approval::Automatic;
        action.steps = vec![step];
    }
    compiled.rulebook = Arc::new(book);
}

#[tokio::test]
async fn a_directive_sends_requests_elsewhere() {
    let a = Upstream::start(|seen: &Seen| good(seen.message.target(), false)).await;
    let b = Upstream::start(|seen: &Seen| good(seen.message.target(), false)).await;
    let rig = Rig::start(&[a.url(), b.url()], |compiled| {
        edit(compiled, "a", |a| a.failover = Vec::new());
        edit(compiled, "b", |b| {
            b.credentials = Some(Credentials::new("own-key", KeyHeader::ByDialect).unwrap());
            b.model_map = ModelMap::new([("m".to_owned(), "m-there".to_owned())]);
        });
        reroute_to(compiled, "b");
    })
    .await;
    let n = AtomicUsize::new(0);
    let answer = eventually("a request goes elsewhere", async || {
        let n = n.fetch_add(1, Ordering::SeqCst);
        let answer = rig.ask(&call(CHAT, false, &format!("n-{n}"))).await;
        (b.count() > 0).then_some(answer)
    })
    .await;
    assert_eq!(answer.header("x-fusebox-action").as_deref(), Some("reroute"));
    assert_eq!(answer.header("x-fusebox-upstream").as_deref(), Some("b"));
    assert!(answer.header("x-fusebox-incident").is_some());
    let seen = b.the_one().await;
    assert_eq!(seen.header("authorization").as_deref(), Some("Bearer own-key"));
    assert_eq!(seen.message.json()["model"], "m-there");
    let nonce = seen.header("x-request-id").unwrap();
    let observation = rig.observation(&nonce).await;
    assert_eq!(observation["upstream"], "b");
    assert_eq!(
        observation["actions"],
        json!([{"kind": "rerouted", "from": "a", "to": "b"}])
    );
    // What leans on the first one stays there, and says so.
    let before = b.count();
    let bound = Ask::post(RESPONSES, r#"{"model":"m","previous_response_id":"resp_0"}"#)
        .header("x-agent-id", "agent")
        .header("x-request-id", "bound");
    assert_eq!(rig.ask(&bound).await.status(), 200);
    assert_eq!(b.count(), before);
    let observation = rig.observation("bound").await;
    let skipped = json!({"kind": "step_skipped", "step": "reroute", "why": "previous_response_id"});
    assert_eq!(observation["actions"], json!([skipped]));
    rig.stop().await;
}
