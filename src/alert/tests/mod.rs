//! Alerts over real sockets: a receiver that records what it gets and answers as a test wants.

mod cluster;
mod durable;
mod storms;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::lane::Pace;
use super::{
    Alerts, AllowedDestinations, Options, SettledHook, Target, TargetKind, TargetStatus, WebhookFormat,
};
use crate::clock::Clock;
use crate::telemetry::metrics::Metrics;
use crate::types::notice::{ApprovalAsk, Notice, NoticeEvent, Severity};
use crate::types::secret::Secret;
use crate::types::time::Wall;

const PATIENCE: Duration = Duration::from_secs(20);
const FAST: Pace = Pace {
    base: Duration::from_millis(5),
    cap: Duration::from_millis(20),
    room: 256,
};

/// What a receiver got.
struct Got {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

enum Reply {
    Status(u16),
    With(u16, &'static str, String, &'static str),
    Never,
}

/// A receiver: answers as its script says, then with 200.
struct Receiver {
    url: String,
    script: Arc<Mutex<VecDeque<Reply>>>,
    got: mpsc::Receiver<Got>,
}

impl Receiver {
    async fn start(tls: Option<TlsAcceptor>, script: impl IntoIterator<Item = Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let script: Arc<Mutex<VecDeque<Reply>>> = Arc::new(Mutex::new(script.into_iter().collect()));
        let (tell, got) = mpsc::channel(8192);
        let shared = Arc::clone(&script);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                let script = Arc::clone(&shared);
                let tls = tls.clone();
                tokio::spawn(async move {
                    let service =
                        service_fn(move |request| answer(request, tell.clone(), Arc::clone(&script)));
                    let http = hyper::server::conn::http1::Builder::new();
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                http.serve_connection(TokioIo::new(stream), service).await.ok();
                            }
                        }
                        None => {
                            http.serve_connection(TokioIo::new(stream), service).await.ok();
                        }
                    }
                });
            }
        });
        Self {
            url: format!("{scheme}://localhost:{port}/hook/T000/secret-path"),
            script,
            got,
        }
    }

    async fn next(&mut self) -> Got {
        tokio::time::timeout(PATIENCE, self.got.recv())
            .await
            .expect("nothing came")
            .unwrap()
    }

    fn nothing_more(&mut self) {
        assert!(self.got.try_recv().is_err(), "more came than should");
    }
}

async fn answer(
    request: Request<Incoming>,
    tell: mpsc::Sender<Got>,
    script: Arc<Mutex<VecDeque<Reply>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    #[expect(clippy::disallowed_methods, reason = "a test's own small body")]
    let body = body.collect().await.unwrap().to_bytes();
    let got = Got {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        headers: parts.headers,
        body,
    };
    tell.send(got).await.unwrap();
    let reply = script.lock().unwrap().pop_front().unwrap_or(Reply::Status(200));
    let response = match reply {
        Reply::Status(status) => Response::builder().status(status).body(Full::default()),
        Reply::With(status, name, value, body) => Response::builder()
            .status(status)
            .header(name, value)
            .body(Full::from(body)),
        Reply::Never => std::future::pending().await,
    };
    Ok(response.unwrap())
}

fn target(name: &str, url: &str) -> Target {
    Target {
        name: name.to_owned(),
        kind: TargetKind::Webhook {
            secret: None,
            headers: Vec::new(),
            format: WebhookFormat::Standard,
        },
        url: Secret::new(url),
        min_severity: Severity::Info,
        timeout: Duration::from_secs(10),
        give_up_after: Duration::from_secs(600),
        spacing: Duration::ZERO,
        group: None,
        ca_files: Vec::new(),
    }
}

/// What a human is asked.
pub(super) fn approval() -> ApprovalAsk {
    ApprovalAsk {
        id: "apr_1".to_owned(),
        what: "switch agent-prod-01 from gpt-4o to gpt-4o-mini".to_owned(),
        why: "the rule asks before a model switch".to_owned(),
        expires: Wall::from_unix_millis(1_700_000_900_000),
        on_timeout: "deny".to_owned(),
        link: Some("https://fusebox.example/approvals/apr_1?t=token".to_owned()),
    }
}

pub(super) fn notice(id: &str, event: NoticeEvent, incident: &str) -> Notice {
    Notice {
        id: id.to_owned(),
        event,
        incident: incident.into(),
        rule: "rule".into(),
        severity: Severity::Error,
        subject: "agent".to_owned(),
        title: "title".to_owned(),
        facts: Vec::new(),
        at: Wall::from_unix_millis(1_700_000_000_000),
        targets: Vec::new(),
        agents: Vec::new(),
        link: None,
        approval: None,
        remediation: None,
        level: 0,
        acknowledged_by: None,
    }
}

fn options(settled: Option<SettledHook>) -> Options {
    Options {
        clock: Clock::system(),
        metrics: Arc::new(Metrics::new(100)),
        settled,
        destinations: AllowedDestinations::default(),
    }
}

fn start(targets: Vec<Target>) -> Alerts {
    Alerts::paced(targets, options(None), FAST)
}

fn status(alerts: &Alerts) -> TargetStatus {
    alerts.status().remove(0)
}

/// A URL at which nobody listens.
async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}/hook/secret-path", listener.local_addr().unwrap())
}

/// Waits until `done` says so.
async fn until(alerts: &Alerts, done: impl Fn(&TargetStatus) -> bool) -> TargetStatus {
    let waiting = async {
        loop {
            let now = status(alerts);
            if done(&now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("still {:?}", status(alerts)))
}

#[tokio::test]
async fn delivers_once_signed_and_in_order() {
    let mut receiver = Receiver::start(None, []).await;
    let mut t = target("ops", &receiver.url);
    t.kind = TargetKind::Webhook {
        secret: Some(Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")),
        headers: vec![(http::HeaderName::from_static("x-team"), Secret::new("sre"))],
        format: WebhookFormat::Standard,
    };
    let alerts = start(vec![t]);
    let opened = notice("msg_1", NoticeEvent::Opened, "inc");
    alerts.tell(&opened);
    alerts.tell(&opened);
    alerts.tell(&notice("msg_2", NoticeEvent::Resolved, "inc"));
    assert!(alerts.drain(PATIENCE).await);

    let first = receiver.next().await;
    assert_eq!(
        (first.method.as_str(), first.path.as_str()),
        ("POST", "/hook/T000/secret-path")
    );
    assert_eq!(first.header("content-type"), "application/json");
    assert_eq!(
        first.header("user-agent"),
        concat!("fusebox/", env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(first.header("x-team"), "sre");
    assert_eq!(first.header("webhook-id"), "msg_1");
    assert_eq!(first.json()["type"], "incident.opened");
    let stamp: i64 = first.header("webhook-timestamp").parse().unwrap();
    assert!((Clock::system().wall().unix_millis() / 1000 - stamp).abs() < 60);
    assert_eq!(
        first.header("webhook-signature"),
        recomputed("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", &first)
    );
    let second = receiver.next().await;
    assert_eq!(second.header("webhook-id"), "msg_2");
    receiver.nothing_more();
    let now = status(&alerts);
    assert_eq!(
        (now.delivered, now.failed_attempts, now.dropped, now.queued),
        (2, 0, 0, 0)
    );
    assert!(now.last_delivered.is_some() && now.last_error.is_none());
}

/// The signature as a receiver computes it, from the definition of HMAC alone.
fn recomputed(key: &str, got: &Got) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};
    let mut block = STANDARD.decode(key).unwrap();
    block.resize(64, 0);
    let pad = |with: u8| block.iter().map(|b| b ^ with).collect::<Vec<u8>>();
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(got.header("webhook-id"))
        .chain_update(".")
        .chain_update(got.header("webhook-timestamp"))
        .chain_update(".")
        .chain_update(&got.body)
        .finalize();
    let outer = Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize();
    format!("v1,{}", STANDARD.encode(outer))
}

#[tokio::test]
async fn retries_keep_the_id_until_delivered() {
    let script = [503, 500, 429, 408].map(Reply::Status);
    let mut receiver = Receiver::start(None, script).await;
    let alerts = start(vec![target("ops", &receiver.url)]);
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    let mut bodies = Vec::new();
    for _ in 0..5 {
        let got = receiver.next().await;
        assert_eq!(got.header("webhook-id"), "msg_1");
        assert_eq!(got.header("webhook-signature"), "");
        bodies.push(got.body);
    }
    assert!(bodies.windows(2).all(|w| w[0] == w[1]));
    let now = until(&alerts, |s| s.delivered == 1).await;
    assert_eq!((now.failed_attempts, now.dropped), (4, 0));
    assert_eq!(now.last_error.as_deref(), Some("localhost answered 408"));
    receiver.nothing_more();
}

#[tokio::test]
async fn refusals_are_final_and_tell_only_the_host() {
    for code in [400, 401, 403, 404, 410, 413, 302] {
        let script = [Reply::With(
            code,
            "location",
            "http://localhost:1/".to_owned(),
            "secret-path",
        )];
        let mut receiver = Receiver::start(None, script).await;
        let alerts = start(vec![target("ops", &receiver.url)]);
        alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
        let now = until(&alerts, |s| s.dropped == 1).await;
        assert_eq!(
            (now.delivered, now.failed_attempts, now.queued),
            (0, 1, 0),
            "{code}"
        );
        let error = now.last_error.unwrap();
        assert!(
            error.starts_with(&format!("localhost answered {code}")),
            "{error}"
        );
        assert!(!error.contains("secret-path"), "{error}");
        receiver.next().await;
        receiver.nothing_more();
    }
}

#[tokio::test]
async fn slack_says_why_it_refuses() {
    let script = [Reply::With(
        404,
        "content-type",
        "text/plain".to_owned(),
        "no_service",
    )];
    let mut receiver = Receiver::start(None, script).await;
    let mut t = target("chat", &receiver.url);
    t.kind = TargetKind::Slack;
    let alerts = start(vec![t]);
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    let now = until(&alerts, |s| s.dropped == 1).await;
    assert_eq!(now.kind, "slack");
    assert_eq!(
        now.last_error.as_deref(),
        Some("localhost answered 404 (no_service)")
    );
    assert!(receiver.next().await.json()["blocks"].is_array());
}

#[tokio::test]
async fn waits_as_long_as_the_receiver_asks() {
    let script = [Reply::With(429, "retry-after", "1".to_owned(), "")];
    let mut receiver = Receiver::start(None, script).await;
    let alerts = start(vec![target("ops", &receiver.url)]);
    let clock = Clock::system();
    let before = clock.mono();
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    receiver.next().await;
    receiver.next().await;
    assert!(clock.mono().since(before) > Duration::from_millis(950));
}

#[tokio::test]
async fn a_silent_receiver_costs_one_timeout_an_attempt() {
    let mut receiver = Receiver::start(None, [Reply::Never]).await;
    let mut t = target("ops", &receiver.url);
    t.timeout = Duration::from_millis(50);
    let alerts = start(vec![t]);
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    receiver.next().await;
    assert_eq!(receiver.next().await.header("webhook-id"), "msg_1");
    let now = until(&alerts, |s| s.delivered >= 1).await;
    assert!(now.last_error.unwrap().contains("no answer within 50ms"));
}

#[tokio::test]
async fn gives_up_after_its_time_and_goes_on_with_the_next() {
    let clock = Clock::manual(Default::default());
    let mut t = target("ops", &nobody().await);
    t.give_up_after = Duration::from_secs(60);
    let alerts = Alerts::paced(
        vec![t.clone()],
        Options {
            clock: clock.clone(),
            ..options(None)
        },
        FAST,
    );
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    let now = until(&alerts, |s| s.failed_attempts >= 2).await;
    assert_eq!((now.queued, now.dropped), (1, 0));
    let error = now.last_error.unwrap();
    assert!(
        error.starts_with("127.0.0.1: ") && !error.contains("secret-path"),
        "{error}"
    );
    clock.advance(Duration::from_secs(61));
    until(&alerts, |s| s.dropped == 1 && s.queued == 0).await;

    let mut receiver = Receiver::start(None, []).await;
    t.url = Secret::new(&*receiver.url);
    alerts.replace(vec![t]);
    alerts.tell(&notice("msg_2", NoticeEvent::Opened, "inc2"));
    assert_eq!(receiver.next().await.header("webhook-id"), "msg_2");
}

#[tokio::test]
async fn replace_keeps_the_queue_of_those_that_stay() {
    let mut receiver = Receiver::start(None, []).await;
    let dead = nobody().await;
    let alerts = start(vec![target("stays", &dead), target("goes", &dead)]);
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    until(&alerts, |s| s.failed_attempts >= 1).await;
    alerts.replace(vec![target("stays", &receiver.url), target("new", &receiver.url)]);
    assert_eq!(receiver.next().await.header("webhook-id"), "msg_1");
    assert!(alerts.drain(PATIENCE).await);
    let names: Vec<_> = alerts
        .status()
        .into_iter()
        .map(|s| (s.name, s.delivered))
        .collect();
    assert_eq!(names, [("stays".to_owned(), 1), ("new".to_owned(), 0)]);
    receiver.nothing_more();
}

#[tokio::test]
async fn a_notice_that_chokes_the_receiver_holds_up_nobody_else() {
    let script = [Reply::Status(500), Reply::Status(200), Reply::Status(500)];
    let mut receiver = Receiver::start(None, script).await;
    let mut t = target("ops", &nobody().await);
    let alerts = start(vec![t.clone()]);
    alerts.tell(&notice("a1", NoticeEvent::Opened, "a"));
    until(&alerts, |s| s.failed_attempts >= 1).await;
    alerts.tell(&notice("a2", NoticeEvent::Resolved, "a"));
    alerts.tell(&notice("b1", NoticeEvent::Opened, "b"));
    t.url = Secret::new(&*receiver.url);
    alerts.replace(vec![t]);
    assert!(alerts.drain(PATIENCE).await);
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(receiver.next().await.header("webhook-id").to_owned());
    }
    receiver.nothing_more();
    assert_eq!(
        ids.iter().filter(|i| *i == "b1").count() + ids.iter().filter(|i| *i == "a1").count(),
        4
    );
    assert_eq!(ids.last().unwrap(), "a2", "{ids:?}");
}

#[tokio::test]
async fn filters_by_severity_and_name_and_tells_every_end() {
    let mut receiver = Receiver::start(None, []).await;
    let mut t = target("ops", &receiver.url);
    t.min_severity = Severity::Error;
    let alerts = start(vec![t]);
    let tell = |id: &str, event, incident: &str, severity, targets: &[&str]| {
        let mut n = notice(id, event, incident);
        n.severity = severity;
        n.targets = targets.iter().map(|&t| t.to_owned()).collect();
        alerts.tell(&n);
    };
    tell("mild", NoticeEvent::Opened, "a", Severity::Warning, &[]);
    tell("mild-end", NoticeEvent::Resolved, "a", Severity::Warning, &[]);
    tell("others", NoticeEvent::Opened, "b", Severity::Critical, &["other"]);
    tell(
        "bad",
        NoticeEvent::Opened,
        "c",
        Severity::Error,
        &["other", "ops"],
    );
    tell("bad-end", NoticeEvent::Resolved, "c", Severity::Info, &[]);
    tell("bad-end-again", NoticeEvent::Resolved, "c", Severity::Info, &[]);
    tell("trial", NoticeEvent::Test, "none", Severity::Info, &[]);
    assert!(alerts.drain(PATIENCE).await);
    for want in ["bad", "bad-end", "trial"] {
        assert_eq!(receiver.next().await.header("webhook-id"), want);
    }
    receiver.nothing_more();
}

#[tokio::test]
async fn a_full_queue_keeps_the_ends() {
    let mut t = target("ops", &nobody().await);
    let pace = Pace { room: 4, ..FAST };
    let alerts = Alerts::paced(vec![t.clone()], options(None), pace);
    for i in 0..3 {
        alerts.tell(&notice(
            &format!("end{i}"),
            NoticeEvent::Resolved,
            &format!("e{i}"),
        ));
    }
    for i in 0..5 {
        alerts.tell(&notice(
            &format!("open{i}"),
            NoticeEvent::Opened,
            &format!("o{i}"),
        ));
    }
    let now = until(&alerts, |s| s.queued == 4).await;
    assert_eq!(now.dropped, 4);
    let mut receiver = Receiver::start(None, []).await;
    t.url = Secret::new(&*receiver.url);
    alerts.replace(vec![t]);
    assert!(alerts.drain(PATIENCE).await);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(receiver.next().await.header("webhook-id").to_owned());
    }
    ids.sort();
    assert_eq!(ids[..3], ["end0", "end1", "end2"]);
}

#[tokio::test]
async fn drain_says_when_it_could_not() {
    let alerts = start(vec![target("ops", &nobody().await)]);
    assert!(alerts.drain(Duration::ZERO).await, "nothing waits");
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    assert!(!alerts.drain(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn an_unusable_target_says_so_before_the_first_notice() {
    let mut t = target("ops", "hooks.example/secret-path");
    let why = t.check().unwrap_err();
    assert!(why.starts_with("url: ") && !why.contains("secret-path"), "{why}");
    let alerts = start(vec![t.clone()]);
    assert_eq!(status(&alerts).last_error, Some(why));
    t.url = Secret::new("https://hooks.example/");
    t.ca_files = vec![PathBuf::from("/does/not/exist.pem")];
    let alerts = start(vec![t]);
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    let now = until(&alerts, |s| s.failed_attempts >= 1).await;
    assert!(
        now.last_error
            .unwrap()
            .starts_with("ca_files: /does/not/exist.pem: ")
    );
}

#[tokio::test]
async fn https_with_a_root_of_its_own() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut receiver = Receiver::start(Some(TlsAcceptor::from(Arc::new(tls))), []).await;
    let mut t = target("ops", &receiver.url);
    let alerts = start(vec![t.clone()]);
    alerts.tell(&notice("msg_1", NoticeEvent::Opened, "inc"));
    let now = until(&alerts, |s| s.failed_attempts >= 1).await;
    let error = now.last_error.unwrap();
    assert!(error.contains("certificate"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    t.ca_files = vec![ca];
    alerts.replace(vec![t]);
    assert_eq!(receiver.next().await.header("webhook-id"), "msg_1");
    until(&alerts, |s| s.delivered == 1).await;
}

#[test]
fn delivery_ends_with_the_last_clone() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let receiver = Receiver::start(None, []).await;
        let alerts = start(vec![target("ops", &receiver.url)]);
        let metrics = tokio::runtime::Handle::current().metrics();
        let with = metrics.num_alive_tasks();
        drop(alerts.clone());
        drop(alerts);
        let ended = async {
            while metrics.num_alive_tasks() >= with {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ended)
            .await
            .expect("a task stayed");
        receiver.script.lock().unwrap().clear();
    });
}
