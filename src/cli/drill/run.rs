//! One scene of a drill: fusebox with doubles in the place of its upstreams, requests through it, and who answered them.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Response};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::double::{Double, discard};
use super::sample;
use crate::app::{self, Running, Source};
use crate::clock::Clock;
use crate::config::{self, Compiled, Overrides};
use crate::dialect::table::Family;
use crate::enforce::policy::{Bind, Http2, Listener, Upstream, UpstreamTls, UpstreamUrl};
use crate::incident::rule::{Action, Approval, Rulebook, Step, Threshold};

/// How long a double that does not answer is waited for.
const FIRST_BYTE: Duration = Duration::from_millis(300);
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// There is no connection.
    Connect,
    /// This status.
    Status(u16),
    /// No answer in time.
    FirstByte,
    /// A stream that begins with an error.
    FirstEvent,
}

/// A running fusebox and its doubles.
pub(super) struct Scene {
    fusebox: Running,
    doubles: Vec<(String, Double)>,
    family: Family,
    prefix: String,
    stream: bool,
}

impl Way {
    /// The ways that count as a failure of this upstream; without any, one that would if it were configured, so that its
    /// lack is seen.
    pub(super) fn of(upstream: &Upstream, streams: bool) -> Vec<Self> {
        let on = &upstream.retry_on;
        let mut ways = Vec::new();
        if on.connect_error {
            ways.push(Self::Connect);
        }
        ways.extend(on.statuses.iter().copied().map(Self::Status));
        if on.first_byte_timeout {
            ways.push(Self::FirstByte);
        }
        if on.first_event_error && streams {
            ways.push(Self::FirstEvent);
        }
        if ways.is_empty() {
            ways.push(Self::Status(503));
        }
        ways
    }

    /// Whether `upstream` counts it as a failure; the first one of a plan is asked about what [`Way::of`] gave.
    pub(super) fn counts_for(self, upstream: &Upstream) -> bool {
        Self::of(upstream, true).contains(&self)
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect_error"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::FirstByte => f.write_str("first_byte_timeout"),
            Self::FirstEvent => f.write_str("first_event_error"),
        }
    }
}

impl Scene {
    /// The first `failing` upstreams of the plan fail in this way; the one after them answers, and none after that is
    /// there to be asked.
    ///
    /// # Errors
    /// One line for a person when something cannot be started.
    pub(super) async fn failing(
        compiled: &Compiled,
        plan: &[Arc<Upstream>],
        failing: usize,
        way: Way,
        family: Family,
    ) -> Result<Self, String> {
        let mut compiled = alone(compiled);
        compiled.rulebook = Arc::new(Rulebook {
            rules: Vec::new(),
            ..Rulebook::clone(&compiled.rulebook)
        });
        let stream = way == Way::FirstEvent;
        let fails = |at: usize| (at < failing).then_some(way);
        Self::start(compiled, plan, &fails, family, stream).await
    }

    /// Nobody fails, and a rule that everything breaks orders the step.
    ///
    /// # Errors
    /// One line for a person when something cannot be started.
    pub(super) async fn rerouted(
        compiled: &Compiled,
        pair: &[Arc<Upstream>],
        step: &Step,
        family: Family,
    ) -> Result<Self, String> {
        let mut compiled = alone(compiled);
        compiled.rulebook = Arc::new(book(&compiled.rulebook, step)?);
        Self::start(compiled, pair, &|_| None, family, false).await
    }

    async fn start(
        mut compiled: Compiled,
        plan: &[Arc<Upstream>],
        fails: &dyn Fn(usize) -> Option<Way>,
        family: Family,
        stream: bool,
    ) -> Result<Self, String> {
        let mut doubles = Vec::with_capacity(plan.len());
        let mut upstreams = Vec::with_capacity(plan.len());
        for (at, upstream) in plan.iter().enumerate() {
            let double = Double::start(fails(at), family).await?;
            upstreams.push(Arc::new(played_by(upstream, double.address)));
            doubles.push((upstream.name.as_str().to_owned(), double));
        }
        // Only these, in this order: whatever else is configured, requests begin at the first.
        compiled.policy.upstreams = upstreams;
        let prefix = plan
            .first()
            .and_then(|u| u.path_prefix.clone())
            .unwrap_or_default();
        let fusebox = app::start(compiled, Source::Fixed, Clock::system()).await?;
        Ok(Self {
            fusebox,
            doubles,
            family,
            prefix,
            stream,
        })
    }

    /// Sends one request, which `target` has to answer after all before it were asked once.
    ///
    /// # Errors
    /// What happened instead.
    pub(super) async fn play(self, target: &str) -> Result<(), String> {
        let result = self.answered_by(target).await.map(|_| ());
        self.end().await;
        result
    }

    /// Sends requests until the first upstream is no longer asked.
    ///
    /// # Errors
    /// That it is still asked.
    pub(super) async fn opens(self, failures: u32) -> Result<(), String> {
        let mut result = Ok(());
        for _ in 0..failures {
            result = self.ask().await.map(|_| ());
        }
        let metric = |text: &str| {
            let failed = text
                .lines()
                .filter(|l| l.starts_with("fusebox_upstream_failures_total"));
            failed
                .filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok())
                .sum::<u64>()
        };
        let before = metric(&self.fusebox.handle.metrics_text());
        let last = self.ask().await;
        let after = metric(&self.fusebox.handle.metrics_text());
        let refused = self.refused();
        self.end().await;
        result?;
        last?;
        match refused {
            Some(why) => Err(format!("only {before} attempts were sent on: {why}")),
            None if after > before => Err(format!("it was still asked after {before} failures")),
            None => Ok(()),
        }
    }

    /// Sends requests until one is answered by `target`.
    ///
    /// # Errors
    /// That none was.
    pub(super) async fn wait_for(self, target: &str) -> Result<(), String> {
        let waited = timeout(PATIENCE, async {
            loop {
                if let Ok(answer) = self.ask().await
                    && upstream_of(&answer) == Some(target)
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        let result = waited
            .await
            .map_err(|_| format!("no request went there within {PATIENCE:?}"));
        self.end().await;
        result
    }

    async fn answered_by(&self, target: &str) -> Result<Response<()>, String> {
        let answer = self.ask().await?;
        let by = upstream_of(&answer).unwrap_or("the first upstream").to_owned();
        if !answer.status().is_success() || by != target {
            let why = self.refused().map_or_else(String::new, |why| format!(" ({why})"));
            return Err(format!("answered {} by {by}{why}", answer.status().as_u16()));
        }
        let twice = self.doubles.iter().find(|(_, double)| double.asked() > 1);
        match twice {
            Some((name, _)) => Err(format!("{name} was asked more than once")),
            None => Ok(answer),
        }
    }

    /// Why a failed request was not sent on, in the words of the metrics.
    fn refused(&self) -> Option<String> {
        let text = self.fusebox.handle.metrics_text();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("fusebox_failovers_refused_total{why=\""))?;
        Some(match line.split('"').next()? {
            "budget" => "the retry budget does not allow it: see retries".to_owned(),
            "limited" => "a limit does not allow it".to_owned(),
            "bound" => "such requests stay where they are".to_owned(),
            other => other.to_owned(),
        })
    }

    async fn ask(&self) -> Result<Response<()>, String> {
        timeout(PATIENCE, self.exchange())
            .await
            .map_err(|_| format!("no answer within {PATIENCE:?}"))?
    }

    async fn exchange(&self) -> Result<Response<()>, String> {
        let address = self.fusebox.listeners.first().ok_or("fusebox listens nowhere")?;
        let io = TcpStream::connect(address)
            .await
            .map_err(|e| format!("cannot connect to {address}: {e}"))?;
        let broken = |e: hyper::Error| format!("the exchange broke: {e}");
        let (mut send, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        let driving = tokio::spawn(connection);
        let (name, key) = sample::key(self.family);
        let request = Request::post(format!("{}{}", self.prefix, sample::path(self.family)))
            .header(HOST, "fusebox.drill")
            .header(CONTENT_TYPE, "application/json")
            .header(name, key)
            .body(Full::new(Bytes::from(sample::body(self.family, self.stream))))
            .map_err(|e| e.to_string())?;
        let answer = send.send_request(request).await.map_err(broken)?;
        let (parts, body) = answer.into_parts();
        discard(body).await.map_err(broken)?;
        drop(send);
        driving.abort();
        Ok(Response::from_parts(parts, ()))
    }

    async fn end(self) {
        let stopped = self.fusebox.stop(Duration::from_secs(1), std::future::pending());
        Box::pin(stopped).await.ok();
    }
}

fn upstream_of(answer: &Response<()>) -> Option<&str> {
    answer.headers().get("x-fusebox-upstream")?.to_str().ok()
}

/// The configuration without all that reaches beyond this process.
fn alone(compiled: &Compiled) -> Compiled {
    let mut compiled = compiled.clone();
    let any = Bind::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let wiring = &mut compiled.wiring;
    wiring.listeners = vec![Listener {
        bind: any.clone(),
        tls: None,
        agent: None,
    }];
    wiring.admin.bind = any;
    wiring.workers = 1;
    wiring.observations = None;
    wiring.ledger = None;
    wiring.watch = false;
    compiled.targets = Vec::new();
    compiled
}

/// The same upstream, at another address.
fn played_by(upstream: &Upstream, address: SocketAddr) -> Upstream {
    let mut double = upstream.clone();
    let authority = http::HeaderValue::from_str(&address.to_string());
    double.url = UpstreamUrl {
        tls: false,
        host: address.ip().to_string(),
        port: address.port(),
        base_path: upstream.url.base_path.clone(),
        authority: authority.unwrap_or_else(|_| http::HeaderValue::from_static("localhost")),
    };
    double.tls = UpstreamTls::default();
    double.tls_client = None;
    double.proxy = None;
    double.http2 = Http2::Never;
    double.timeouts.first_byte = double.timeouts.first_byte.min(FIRST_BYTE);
    double
}

/// A book with one rule, which everything breaks, and the step as the whole of its action.
fn book(book: &Rulebook, step: &Step) -> Result<Rulebook, String> {
    let text = "agent_incident_rules:\n  - {name: drill, metric: requests_per_minute, baseline: 1, threshold_upper: 2, \
                window: 2s, action: throttle_and_alert}\n";
    let own = config::compile("drill", text, &Overrides::default(), &|_| None).map_err(|p| p.to_string())?;
    let mut rules = own.rulebook.rules.clone();
    let mut actions = book.actions.clone();
    for rule in &mut rules {
        let rule = Arc::make_mut(rule);
        rule.threshold_upper = Some(Threshold::Fixed(0.5));
        rule.min_samples = 1;
        let mut step = step.clone();
        step.approval = Approval::Automatic;
        actions.insert(rule.action.clone(), Action { steps: vec![step] });
    }
    Ok(Rulebook {
        rules,
        actions,
        ..own.rulebook.as_ref().clone()
    })
}
