//! What the admin side may read and do: questions to the one task that owns the engine, each with its answer.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::alert::TargetStatus;
use crate::enforce::slots::TotalsView;
use crate::incident::record::{AgentStatus, IncidentRecord, RuleStatus};
use crate::telemetry::metrics::Metrics;
use crate::types::ids::IncidentId;
use crate::types::time::Wall;

/// A question to the driver, with where to answer it.
#[derive(Debug)]
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
    /// Close an incident; answers whether it was open.
    Resolve(IncidentId, String, oneshot::Sender<bool>),
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

    /// Closes an incident and lifts what it ordered; `false` when it was not open.
    ///
    /// # Errors
    /// When the driver does not answer.
    pub async fn resolve(&self, id: IncidentId, by: String) -> Result<bool, Unavailable> {
        self.ask(|answer| Ask::Resolve(id, by, answer)).await
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
        };
        (handle, asked, reload_asked)
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Unavailable> {
        let (answer, answered) = oneshot::channel();
        self.asks.send(ask(answer)).await.map_err(|_| Unavailable)?;
        answered.await.map_err(|_| Unavailable)
    }
}
