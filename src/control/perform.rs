//! Makes effects real: directives published, notices queued, incidents counted and logged.

use std::collections::HashMap;
use std::sync::Arc;

use crate::alert::Alerts;
use crate::enforce::snapshot::Publisher;
use crate::incident::effect::Effect;
use crate::incident::engine::Engine;
use crate::incident::record::{IncidentRecord, IncidentState, TimelineEntry};
use crate::telemetry::metrics::Metrics;
use crate::types::directive::DirectiveSet;
use crate::types::ids::IncidentId;
use crate::types::notice::Severity;

/// What effects act on.
pub(super) struct Performer {
    publisher: Arc<Publisher>,
    alerts: Alerts,
    metrics: Arc<Metrics>,
    /// Incidents that are not over, with how much of their timeline was logged.
    open: HashMap<IncidentId, Followed>,
    /// Directives as of the last publication.
    in_force: Arc<DirectiveSet>,
}

struct Followed {
    severity: Severity,
    /// The entry that was logged last; timelines lose entries when they grow long, so a count would not do.
    logged: Option<TimelineEntry>,
}

impl Performer {
    pub(super) fn new(publisher: Arc<Publisher>, alerts: Alerts, metrics: Arc<Metrics>) -> Self {
        Self {
            publisher,
            alerts,
            metrics,
            open: HashMap::new(),
            in_force: Arc::default(),
        }
    }

    /// Directives in force as of the last publication.
    pub(super) fn directives(&self) -> u64 {
        self.in_force.iter().count() as u64
    }

    /// Directives as of the last publication.
    pub(super) fn in_force(&self) -> &DirectiveSet {
        &self.in_force
    }

    /// Makes one effect real. None of this waits.
    pub(super) fn perform(&mut self, engine: &Engine, effect: Effect) {
        match effect {
            Effect::Publish(directives) => {
                self.in_force = Arc::clone(&directives);
                self.publisher.publish_directives(directives);
            }
            Effect::Tell(notice) => self.alerts.tell(&notice),
            Effect::Changed(id) => {
                if let Some(record) = engine.incident(&id) {
                    self.follow(&record);
                }
            }
        }
    }

    fn follow(&mut self, record: &IncidentRecord) {
        let known = self.open.get(&record.id);
        let last = known.and_then(|f| f.logged.as_ref());
        let from = last
            .and_then(|last| record.timeline.iter().rposition(|e| e == last))
            .map_or(0, |i| i + 1);
        if known.is_none() && record.state != IncidentState::Resolved {
            self.metrics
                .incident_opened(record.rule.as_str(), record.severity);
        }
        for entry in record.timeline.iter().skip(from) {
            self.count(record, &entry.event);
            let (incident, rule, subject) = (&record.id, &record.rule, &record.subject);
            let (event, detail) = (entry.event.as_str(), entry.detail.as_str());
            if event == "opened" || event == "relapsed" || event == "worsened" {
                tracing::warn!(%incident, %rule, %subject, event, "{detail}");
            } else {
                tracing::info!(%incident, %rule, %subject, event, "{detail}");
            }
        }
        if record.state == IncidentState::Resolved {
            self.open.remove(&record.id);
        } else {
            let followed = Followed {
                severity: record.severity,
                logged: record.timeline.last().cloned(),
            };
            self.open.insert(record.id.clone(), followed);
        }
        for severity in [
            Severity::Info,
            Severity::Warning,
            Severity::Error,
            Severity::Critical,
        ] {
            let open = self.open.values().filter(|f| f.severity == severity).count();
            self.metrics.incidents_open(severity, open as u64);
        }
    }

    fn count(&self, record: &IncidentRecord, event: &str) {
        let result = match event {
            "step_applied" => "applied",
            "step_waiting" => "waiting",
            "step_skipped" => "skipped",
            "lifted" => "lifted",
            _ => return,
        };
        self.metrics.remediation(record.action.as_str(), result);
    }
}
