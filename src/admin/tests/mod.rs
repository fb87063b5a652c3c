//! The admin API over real sockets, with a driver that answers from a table.

mod walk;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{answer, incident, report, status};
use super::*;
use crate::incident::record::IncidentState;
use crate::telemetry::metrics::Metrics;
use crate::types::secret::Secret;

const PATIENCE: Duration = Duration::from_secs(20);

/// A served admin API.
struct Served {
    address: String,
    handle: Handle,
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

/// An answer, taken apart.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn code(&self) -> String {
        let json = self.json();
        let error = &json["error"];
        assert!(
            error["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{self:?}"
        );
        assert!(error["hint"].as_str().is_some_and(|m| !m.is_empty()), "{self:?}");
        error["code"].as_str().unwrap().to_owned()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (n, v) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }
}

fn wiring(bind: Bind) -> AdminWiring {
    AdminWiring {
        bind,
        token: None,
        tokens: Vec::new(),
        allowed_hosts: vec!["fusebox.example".to_owned()],
        open_metrics: false,
        external_url: None,
        user_header: None,
    }
}

fn loopback() -> AdminWiring {
    wiring(Bind::Tcp("127.0.0.1:0".parse().unwrap()))
}

/// Serves; `driver` answers questions, or nobody does.
async fn served(wiring: AdminWiring, driver: bool) -> Served {
    let (handle, mut asks, mut reloads) = Handle::for_test(Arc::new(Metrics::new(100)));
    tokio::spawn(async move {
        let mut incidents = vec![
            incident("inc-1", IncidentState::Open),
            incident("inc-2", IncidentState::Resolved),
        ];
        let mut held = Vec::new();
        let mut reloaded = 0;
        loop {
            tokio::select! {
                Some(ask) = asks.recv() => {
                    if driver { answer(ask, &mut incidents) } else { held.push(ask) }
                }
                Some(reload) = reloads.recv() => {
                    reloaded += 1;
                    reload.send(report(reloaded == 1)).ok();
                }
                else => return,
            }
        }
    });
    let (listener, address) = AdminListener::bind(&wiring).await.unwrap();
    let stop = CancellationToken::new();
    let ended = tokio::spawn(serve(listener, wiring, handle.clone(), stop.clone()));
    Served {
        address: address.map(|a| a.to_string()).unwrap_or_default(),
        handle,
        stop,
        ended,
    }
}

/// Sends `text` as it is and reads to the end of the connection.
async fn raw(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &[u8]) -> Answer {
    let exchange = async {
        stream.write_all(text).await.ok();
        let mut read = Vec::new();
        stream.read_to_end(&mut read).await.ok();
        read
    };
    let read = timeout(PATIENCE, exchange).await.expect("no end");
    let text = String::from_utf8(read).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Answer {
        status: head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

impl Served {
    async fn send(&self, method: &str, path: &str, headers: &[&str], body: &str) -> Answer {
        let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers
            .iter()
            .any(|h| h.to_ascii_lowercase().starts_with("host:"))
        {
            text.push_str(&format!("host: {}\r\n", self.address));
        }
        for header in headers {
            text.push_str(&format!("{header}\r\n"));
        }
        if !body.is_empty() {
            text.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        text.push_str(&format!("\r\n{body}"));
        let stream = TcpStream::connect(&self.address).await.unwrap();
        raw(stream, text.as_bytes()).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }
}

#[tokio::test]
async fn probes() {
    let s = served(loopback(), true).await;
    let live = s.get("/livez").await;
    assert_eq!((live.status, live.body.as_str()), (200, "ok"));
    assert_eq!(s.get("/readyz").await.status, 200);
    s.handle.ready.store(false, Ordering::Relaxed);
    let unready = s.get("/readyz").await;
    assert_eq!((unready.status, unready.code().as_str()), (503, "not_ready"));
    let health = s.get("/healthz").await;
    assert_eq!(health.status, 200);
    assert_eq!(
        health.json(),
        json!({"status": "degraded", "reasons": ["last reload failed"]})
    );

    let s = served(loopback(), false).await;
    assert_eq!(s.get("/livez").await.status, 200);
    let health = s.get("/healthz").await;
    assert_eq!(health.status, 503);
    assert_eq!(
        health.json()["reasons"],
        json!(["the engine did not answer in time"])
    );
    assert_eq!(health.code(), "engine_unavailable");
}

#[tokio::test]
async fn metrics_are_openmetrics() {
    let s = served(loopback(), true).await;
    let got = s.get("/metrics").await;
    assert_eq!(
        got.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(got.body.ends_with("# EOF\n"), "{got:?}");
}

#[tokio::test]
async fn agents_by_their_encoded_name() {
    let s = served(loopback(), true).await;
    let all = s.get("/agents").await.json();
    let names: Vec<_> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["agent"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["\u{1b}[2Jevil", "a/b c", "quiet"]);
    let one = s.get("/agents/a%2Fb%20c").await;
    assert_eq!(one.json()["status"]["tokens_per_minute"], 9000.0);
    let none = s.get("/agents/nobody").await;
    assert_eq!((none.status, none.code().as_str()), (404, "not_found"));
    let bad = s.get("/agents/%ff").await;
    assert_eq!((bad.status, bad.code().as_str()), (400, "bad_parameter"));
}

#[tokio::test]
async fn incidents_are_filtered_by_what_can_be_filtered() {
    let s = served(loopback(), true).await;
    let table = [
        ("", 2),
        ("?state=open", 1),
        ("?state=recovering", 0),
        ("?agent=a%2Fb+c&rule=token_explosion_detection", 2),
        ("?agent=other", 0),
        ("?rule=other", 0),
    ];
    for (query, want) in table {
        let got = s.get(&format!("/incidents{query}")).await;
        assert_eq!(got.json().as_array().unwrap().len(), want, "{query}");
    }
    for (query, named, allowed) in [
        ("?state=closed", "`state`", "open, recovering, resolved"),
        ("?sate=open", "`sate`", "state, agent, rule, since, limit, cursor"),
        ("?state=open&state=open", "`state`", "once"),
    ] {
        let got = s.get(&format!("/incidents{query}")).await;
        assert_eq!(
            (got.status, got.code().as_str()),
            (400, "bad_parameter"),
            "{query}"
        );
        let error = &got.json()["error"];
        assert!(error["message"].as_str().unwrap().contains(named), "{error}");
        assert!(error["hint"].as_str().unwrap().contains(allowed), "{error}");
    }
    let one = s.get("/incidents/inc-1").await.json();
    assert_eq!(one["directives"][0]["order"]["kind"], "throttle");
    assert_eq!(s.get("/incidents/none").await.status, 404);
    assert_eq!(s.get("/rules").await.json()[0]["evaluation"], "ok");
}

#[tokio::test]
async fn an_operator_closes_an_incident_once() {
    let s = served(loopback(), true).await;
    let path = "/incidents/inc-1/resolve";
    let json_type = "content-type: application/json; charset=utf-8";
    for (body, want) in [
        ("{\"by\": 7}", "invalid_body"),
        ("{\"who\": \"me\"}", "invalid_body"),
        ("{\"by\": \"\"}", "invalid_body"),
        ("{\"by\": \"a\\u001b\"}", "invalid_body"),
        ("{", "bad_body"),
    ] {
        let got = s.send("POST", path, &[json_type], body).await;
        let status = if want == "bad_body" { 400 } else { 422 };
        assert_eq!((got.status, got.code().as_str()), (status, want), "{body}");
    }
    let form = s
        .send("POST", path, &["content-type: text/plain"], "{\"by\":\"evil\"}")
        .await;
    assert_eq!((form.status, form.code().as_str()), (415, "not_json"));
    let untyped = s.send("POST", path, &[], "{\"by\":\"evil\"}").await;
    assert_eq!((untyped.status, untyped.code().as_str()), (415, "not_json"));
    let done = s.send("POST", path, &[json_type], "{\"by\":\"ada\"}").await;
    assert_eq!(done.status, 200);
    let done = done.json();
    assert_eq!(
        (&done["state"], &done["timeline"][0]["detail"]),
        (&json!("resolved"), &json!("ada"))
    );
    let again = s.send("POST", path, &[], "").await;
    assert_eq!((again.status, again.code().as_str()), (409, "not_open"));
    let none = s.send("POST", "/incidents/none/resolve", &[], "").await;
    assert_eq!((none.status, none.code().as_str()), (404, "not_found"));
}

#[tokio::test]
async fn reload_says_what_came_of_it() {
    let s = served(loopback(), true).await;
    let good = s
        .send("POST", "/-/reload", &["content-type: application/json"], "")
        .await;
    assert_eq!((good.status, &good.json()["ok"]), (200, &json!(true)));
    let bad = s.send("POST", "/-/reload", &[], "").await;
    assert_eq!(bad.status, 422);
    assert_eq!(bad.json()["problems"], json!(["fusebox.yaml:3:5: no"]));
}

#[tokio::test]
async fn refusals_have_one_shape() {
    let s = served(loopback(), true).await;
    let missing = s.get("/nothing/here").await;
    assert_eq!((missing.status, missing.code().as_str()), (404, "no_such_path"));
    let wrong = s.send("DELETE", "/agents", &[], "").await;
    assert_eq!((wrong.status, wrong.code().as_str()), (405, "method_not_allowed"));
    assert_eq!(wrong.header("allow"), Some("GET,HEAD"));
    let wrong = s.get("/-/reload").await;
    assert_eq!((wrong.status, wrong.header("allow")), (405, Some("POST")));

    let large = format!("{{\"by\":\"{}\"}}", "a".repeat(1 << 20));
    let json_type = "content-type: application/json";
    let got = s
        .send("POST", "/incidents/inc-1/resolve", &[json_type], &large)
        .await;
    assert_eq!((got.status, got.code().as_str()), (413, "body_too_large"));
    let chunk = format!("{:x}\r\n{large}\r\n0\r\n\r\n", large.len());
    let head = format!(
        "POST /-/reload HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{json_type}\r\ntransfer-encoding: chunked\r\n\r\n{chunk}"
    );
    let stream = TcpStream::connect(&s.address).await.unwrap();
    let got = raw(stream, head.as_bytes()).await;
    assert_eq!((got.status, got.code().as_str()), (413, "body_too_large"));
}

#[tokio::test]
async fn pages_of_strangers_are_kept_out() {
    let s = served(loopback(), true).await;
    let rebound = s.send("GET", "/agents", &["host: evil.example"], "").await;
    assert_eq!(
        (rebound.status, rebound.code().as_str()),
        (421, "host_not_allowed")
    );
    for method in ["GET", "POST"] {
        let page = s
            .send(method, "/-/reload", &["origin: http://evil.example"], "")
            .await;
        assert_eq!((page.status, page.code().as_str()), (403, "origin_not_allowed"));
    }
    let own = format!("origin: http://{}", s.address);
    assert_eq!(s.send("POST", "/-/reload", &[&own], "").await.status, 200);
    assert_eq!(
        s.send("GET", "/agents", &["host: fusebox.example"], "")
            .await
            .status,
        200
    );
}

#[tokio::test]
async fn the_token_guards_all_but_the_probes() {
    let mut w = loopback();
    w.token = Some(Secret::new("right"));
    let s = served(w.clone(), true).await;
    for path in ["/", "/status", "/metrics", "/agents", "/nothing"] {
        let got = s.get(path).await;
        assert_eq!((got.status, got.code().as_str()), (401, "unauthorized"), "{path}");
        assert!(got.header("www-authenticate").unwrap().starts_with("Bearer"));
        assert_eq!(got.header("cache-control"), Some("no-store"));
    }
    for path in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(s.get(path).await.status, 200, "{path}");
    }
    assert_eq!(
        s.send("GET", "/agents", &["authorization: Bearer right"], "")
            .await
            .status,
        200
    );
    let wrong = s
        .send("GET", "/agents", &["authorization: Bearer wrong"], "")
        .await;
    assert!(
        wrong
            .header("www-authenticate")
            .unwrap()
            .contains("invalid_token")
    );
    w.open_metrics = true;
    let s = served(w, true).await;
    assert_eq!(s.get("/metrics").await.status, 200);
    assert_eq!(s.get("/agents").await.status, 401);
}

#[tokio::test]
async fn status_as_json_and_as_a_screen() {
    let s = served(loopback(), true).await;
    let json = s.get("/status").await;
    assert_eq!(json.header("content-type"), Some("application/json"));
    assert_eq!(json.json(), serde_json::to_value(status()).unwrap());
    let text = s.send("GET", "/status", &["accept: text/plain"], "").await;
    assert_eq!(text.header("content-type"), Some("text/plain; charset=utf-8"));
    let want = "\
fusebox 0.1.0 · up 1h 1m · DEGRADED
degraded    last reload failed
config      built-in
reload      FAILED at 2023-11-14T22:13:20.000Z; the old configuration is in force
  fusebox.yaml:3:5: no
listening   127.0.0.1:4310
upstream    default  https://api.example  (openai)
traffic     3,702 requests · 0 refused · 0 errors · 0 in flight · 1,234,567 tokens in · 0 tokens out · $4.12
engine      3,000 observations · 2 not seen by the engine
agents      3 seen
  a/b c                        1,234 requests · 12/min · 9000 tokens/min · throttle
  ?[2Jevil                     1,234 requests
  quiet                        1,234 requests
rules       1
  output_quality_drop          not yet evaluated: needs the detector
incidents   1 open · 1 directive in force
  inc-1  open · critical · agent a/b c · token_explosion_detection · since 2023-11-14T22:13:20.000Z
    tokens_per_execution 8000 (limit 5000, worst 12000, normal 2500)
    throttle 30 requests/min 2,500 tokens/min until 2023-11-14T22:23:20.000Z
alerts      1
  ops                          webhook · 2 delivered · 1 waiting · 3 failed attempts · 4 dropped · last 2023-11-14T22:13:20.000Z · last error: hooks.example answered 503
";
    assert_eq!(text.body, want);
}

#[tokio::test]
async fn a_unix_socket_is_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let w = wiring(Bind::Unix(path.clone()));
    let s = served(w.clone(), true).await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = b"GET /agents HTTP/1.1\r\nhost: anything.example\r\nconnection: close\r\n\r\n";
    let got = raw(UnixStream::connect(&path).await.unwrap(), text).await;
    assert_eq!(got.status, 200);

    let taken = AdminListener::bind(&w).await.unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    s.stop.cancel();
    timeout(PATIENCE, s.ended).await.unwrap().unwrap();
    assert!(path.exists(), "a stale socket is the point of what follows");
    AdminListener::bind(&w).await.unwrap();

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let refused = AdminListener::bind(&wiring(Bind::Unix(file.clone())))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[tokio::test]
async fn beyond_loopback_a_token_is_needed() {
    let mut w = wiring(Bind::Tcp("0.0.0.0:0".parse().unwrap()));
    let refused = AdminListener::bind(&w).await.unwrap_err();
    assert!(refused.to_string().contains("admin.token"), "{refused}");
    w.token = Some(Secret::new("t"));
    AdminListener::bind(&w).await.unwrap();
}

#[tokio::test]
async fn stopping_ends_idle_connections_at_once() {
    let s = served(loopback(), true).await;
    let mut idle = TcpStream::connect(&s.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        .await
        .unwrap();
    let mut some = [0; 64];
    assert!(idle.read(&mut some).await.unwrap() > 0);
    s.stop.cancel();
    // Less than the grace that a request under way would have.
    timeout(Duration::from_secs(4), s.ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_flood_leaves_the_probes_alone() {
    // Nobody answers, so every request for the status is under way until its deadline.
    let s = served(loopback(), false).await;
    let mut waiting = Vec::new();
    for _ in 0..80 {
        let mut stream = TcpStream::connect(&s.address).await.unwrap();
        stream
            .write_all(b"GET /status HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        waiting.push(stream);
    }
    assert_eq!(s.get("/livez").await.status, 200);
    let mut codes = std::collections::BTreeMap::new();
    for stream in waiting {
        let got = raw(stream, b"").await;
        assert_eq!(got.status, 503);
        *codes.entry(got.code()).or_insert(0) += 1;
    }
    assert!(
        codes["overloaded"] > 0 && codes["engine_unavailable"] > 0,
        "{codes:?}"
    );
    assert_eq!(codes.values().sum::<i32>(), 80, "{codes:?}");
}
