//! What the admin side may read and do: questions to the one task that owns the engine, each with its answer.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::events::{Events, Listening};
use super::links::Links;
use crate::alert::{Alerts, TargetStatus};
use crate::enforce::slots::TotalsView;
use crate::incident::engine::Engine;
use crate::incident::input::{Acted, NotActed, OperatorAct};
use crate::incident::record::{AgentStatus, IncidentRecord, RuleStatus};
use crate::store::Ledger;
use crate::telemetry::metrics::Metrics;
use crate::types::ids::IncidentId;
#[cfg(test)]
use crate::types::secret::Secret;
use crate::types::time::{Now, Wall};

/// Somebody's look at the engine.
pub(crate) type Look = Box<dyn FnOnce(&Engine, Now) + Send>;

/// A question to the driver, with where to answer it.
pub enum Ask {
    /// All incidents, open ones first.
    Incidents(oneshot::Sender<Vec<IncidentRecord>>),
    /// One incident.
    Incident(IncidentId, oneshot::Sender<Option<IncidentRecord>>),
    /// All rules.
    Rules(oneshot::Sender<Vec<RuleStatus>>),
    /// All agents.
    Agents(oneshot::Sender<Vec<AgentView>>),
    /// The whole state in short.
    Status(oneshot::Sender<StatusView>),
    /// Let somebody look at the engine, who answers for himself.
    Look(Look),
    /// Do what an operator asks.
    Operate {
        /// What.
        act: OperatorAct,
        /// By which way it came: `api`, `cli`, `link`.
        via: String,
        /// The answer, once it is durable.
        to: oneshot::Sender<Result<Acted, NotActed>>,
    },
    /// Remember a URL as an alert target; answers its name, or why nothing is sent there.
    Target(String, oneshot::Sender<Result<String, String>>),
}

/// A way to the driver and to the reload. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    /// Questions go here.
    pub(crate) asks: mpsc::Sender<Ask>,
    /// Reloads are asked for here.
    pub(crate) reloads: mpsc::Sender<oneshot::Sender<ReloadReport>>,
    /// Metrics, to be scraped.
    pub(crate) metrics: Arc<Metrics>,
    /// Whether new requests are taken.
    pub(crate) ready: Arc<std::sync::atomic::AtomicBool>,
    /// What happens.
    pub(crate) events: Events,
    /// Links in notices.
    pub(crate) links: Links,
    /// What is kept beyond the process.
    pub(crate) ledger: Option<Ledger>,
    /// Alert targets; none in tests.
    pub(crate) alerts: Option<Alerts>,
}

/// The driver does not answer: it is overloaded or gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the engine does not answer")]
pub struct Unavailable;

/// An agent as it is shown: what the requests' side counted and what the engine sees.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct AgentView {
    /// Its name.
    pub agent: String,
    /// Sums since it was first seen, or seen again after it had made room for another.
    pub totals: TotalsView,
    /// What the engine sees; null when it has not seen it yet.
    pub status: Option<AgentStatus>,
}

/// What a reload came to.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ReloadReport {
    /// Whether the new configuration is in force.
    pub ok: bool,
    /// When.
    pub at: Wall,
    /// What changed, or that nothing did.
    pub changes: Vec<String>,
    /// Every problem, as `file:line:column: text (hint)`; empty when `ok`.
    pub problems: Vec<String>,
    /// Settings that changed but need a restart; they keep their old value.
    pub needs_restart: Vec<String>,
}

/// The whole state in short.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct StatusView {
    /// Version of fusebox.
    pub version: String,
    /// Seconds since the start.
    pub uptime_seconds: f64,
    /// Where clients are served.
    pub listeners: Vec<String>,
    /// Names and URLs (without credentials) of the upstreams.
    pub upstreams: Vec<UpstreamView>,
    /// Where the configuration comes from.
    pub config: String,
    /// The last reload; null when there was none.
    pub last_reload: Option<ReloadReport>,
    /// Agents seen; one that was silent for an hour may have made room for another.
    pub agents: u64,
    /// Agents that share one slot for want of room (`limits.max_agents`), as far as seen in the last minutes: what is
    /// ordered for the fleet binds them, what is ordered for one agent does not.
    pub agents_turned_away: u64,
    /// Open incidents.
    pub open_incidents: u64,
    /// Directives in force.
    pub directives: u64,
    /// Observations the engine took.
    pub observations: u64,
    /// Observations the engine did not get because its queue was full; their tokens are in the agents' totals.
    pub observations_dropped: u64,
    /// Observations that are missing in the observations file because its writer was too slow.
    pub observations_unwritten: u64,
    /// Reports of exchanges still running that found the queue full; nothing is lost by it.
    pub progress_reports_dropped: u64,
    /// Sums over all agents since the start, those that made room included.
    pub totals: TotalsView,
    /// Alert targets.
    pub alerts: Vec<TargetStatus>,
    /// Every rule in one line each: name, and `ok` or why it is not evaluated.
    pub rules: Vec<RuleLine>,
    /// What is not as it should be; empty when all is well.
    pub degraded: Vec<String>,
}

/// A rule in the status.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct RuleLine {
    /// Its name.
    pub name: String,
    /// `ok`, `off`, or `not yet evaluated: …`.
    pub evaluation: String,
    /// Open incidents of this rule.
    pub open_incidents: u64,
}

/// An upstream in the status.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct UpstreamView {
    /// Its name.
    pub name: String,
    /// Its URL.
    pub url: String,
    /// Whose API it is.
    pub provider: String,
    /// Whether it is asked: `closed` (as usual), `open` (left alone), `half_open` (tried by one request at a time),
    /// `returning` (a growing part of the executions); null for one that no other stands in for, or that was not asked
    /// yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<String>,
}

impl Handle {
    /// All incidents, open ones first.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub async fn incidents(&self) -> Result<Vec<IncidentRecord>, Unavailable> {
        self.ask(Ask::Incidents).await
    }

    /// One incident.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub async fn incident(&self, id: IncidentId) -> Result<Option<IncidentRecord>, Unavailable> {
        self.ask(|answer| Ask::Incident(id, answer)).await
    }

    /// All rules.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub async fn rules(&self) -> Result<Vec<RuleStatus>, Unavailable> {
        self.ask(Ask::Rules).await
    }

    /// All agents.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub async fn agents(&self) -> Result<Vec<AgentView>, Unavailable> {
        self.ask(Ask::Agents).await
    }

    /// The whole state in short.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub async fn status(&self) -> Result<StatusView, Unavailable> {
        self.ask(Ask::Status).await
    }

    /// What `look` sees of the engine. It runs on the engine's task: it must be quick.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Engine, Now) -> T + Send + 'static,
    ) -> Result<T, Unavailable> {
        self.ask(|answer| {
            Ask::Look(Box::new(move |engine, now| {
                // Whoever asked may have left.
                answer.send(look(engine, now)).ok();
            }))
        })
        .await
    }

    /// Does what an operator asks; `via` says by which way it came: `api`, `cli`, `link`. When this returns it is in
    /// force and, where there is a ledger that can be written, durable.
    ///
    /// # Errors
    /// When the driver does not answer. Inside: why it was not done.
    pub async fn operate(&self, act: OperatorAct, via: &str) -> Result<Result<Acted, NotActed>, Unavailable> {
        let via = via.to_owned();
        self.ask(|to| Ask::Operate { act, via, to }).await
    }

    /// Remembers a URL as an alert target, so that incidents can name it.
    ///
    /// # Errors
    /// When the driver does not answer. Inside: why nothing is sent there.
    pub async fn target(&self, url: String) -> Result<Result<String, String>, Unavailable> {
        self.ask(|to| Ask::Target(url, to)).await
    }

    /// What happens, from `after` on.
    pub fn listen(&self, after: Option<u64>) -> Listening {
        self.events.listen(after)
    }

    /// Links in notices, to be told from others.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The ledger, where there is one: what is no longer in memory is read there.
    pub fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Alert targets: to try one out, or to send again what was given up.
    pub fn alerts(&self) -> Option<&Alerts> {
        self.alerts.as_ref()
    }

    /// Reads the configuration again.
    ///
    /// # Errors
    /// When fusebox is stopping.
    pub async fn reload(&self) -> Result<ReloadReport, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.reloads.send(answer).await.map_err(|_| Unavailable)?;
        answered.await.map_err(|_| Unavailable)
    }

    /// The text for a scrape.
    pub fn metrics_text(&self) -> String {
        self.metrics.encode()
    }

    /// Whether new requests are taken.
    pub fn is_ready(&self) -> bool {
        self.ready.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// A handle whose questions a test answers itself; it starts out ready.
    #[cfg(test)]
    pub(crate) fn for_test(
        metrics: Arc<Metrics>,
    ) -> (
        Self,
        mpsc::Receiver<Ask>,
        mpsc::Receiver<oneshot::Sender<ReloadReport>>,
    ) {
        let (asks, asked) = mpsc::channel(16);
        let (reloads, reload_asked) = mpsc::channel(1);
        let handle = Self {
            asks,
            reloads,
            metrics,
            ready: Arc::new(std::sync::atomic::AtomicBool::new(true)),
            events: Events::new(),
            links: Links::new(Some("https://fusebox.example"), Secret::new("test")),
            ledger: None,
            alerts: None,
        };
        (handle, asked, reload_asked)
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| Unavailable)?;
        answered.await.map_err(|_| Unavailable)
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Incidents(_) => "Incidents",
            Self::Incident(..) => "Incident",
            Self::Rules(_) => "Rules",
            Self::Agents(_) => "Agents",
            Self::Status(_) => "Status",
            Self::Look(_) => "Look",
            Self::Operate { .. } => "Operate",
            Self::Target(..) => "Target",
        })
    }
}
