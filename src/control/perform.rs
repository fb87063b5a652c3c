//! Makes effects real: directives published, incidents recorded, counted and logged, people told once it is durable.

use std::collections::HashMap;
use std::sync::Arc;

use super::announce::{Announcement, Announcer};
use super::deliveries::Deliveries;
use super::keeper::{self, Keeper};
use super::links::Links;
use crate::alert::{Alerts, AllowedDestinations, Delivery, Destination};
use crate::enforce::snapshot::Publisher;
use crate::incident::effect::Effect;
use crate::incident::engine::Engine;
use crate::incident::record::{IncidentRecord, IncidentState, TimelineEntry};
use crate::store::{AuditRow, Ledger, Record};
use crate::telemetry::metrics::Metrics;
use crate::types::directive::DirectiveSet;
use crate::types::ids::IncidentId;
use crate::types::notice::{Notice, Severity};
use crate::types::time::{Now, Wall};

/// Ad-hoc alert targets that are remembered; the oldest makes room.
const MAX_ADHOC: usize = 256;
/// How names of ad-hoc alert targets begin.
const ADHOC: &str = "adhoc:";

/// Makes effects real.
pub(super) struct Performer {
    pub(super) means: Means,
    /// Incidents that are not over, with how much of their timeline was logged.
    open: HashMap<IncidentId, Followed>,
    /// What was published last.
    in_force: Arc<DirectiveSet>,
}

/// What is kept beyond the process.
pub(super) struct Kept {
    pub(super) ledger: Ledger,
    pub(super) keeper: Keeper,
    pub(super) deliveries: Arc<Deliveries>,
}

/// What effects act on.
pub(super) struct Means {
    pub(super) publisher: Arc<Publisher>,
    pub(super) alerts: Alerts,
    pub(super) metrics: Arc<Metrics>,
    pub(super) announcer: Announcer,
    pub(super) links: Links,
    pub(super) memory: Option<Kept>,
    pub(super) destinations: AllowedDestinations,
    /// Where ad-hoc alert targets are, by name.
    pub(super) adhoc: HashMap<String, String>,
}

struct Followed {
    severity: Severity,
    /// The entry that was logged last; timelines lose entries when they grow long, so a count would not do.
    logged: Option<TimelineEntry>,
}

/// An operator's act, for the record.
pub(super) struct Audit {
    pub(super) by: String,
    pub(super) via: String,
    pub(super) what: String,
    pub(super) detail: String,
}

impl Performer {
    pub(super) fn new(means: Means) -> Self {
        Self {
            means,
            open: HashMap::new(),
            in_force: Arc::default(),
        }
    }

    /// Directives in force as of the last publication.
    pub(super) fn directives(&self) -> u64 {
        self.in_force.iter().count() as u64
    }

    /// What was published last.
    pub(super) fn in_force(&self) -> &DirectiveSet {
        &self.in_force
    }

    /// Makes effects real. None of this waits: what is to be told is told, and `then` is done, once the rest is durable.
    pub(super) fn perform(
        &mut self,
        engine: &Engine,
        effects: impl Iterator<Item = Effect>,
        audit: Option<Audit>,
        then: Option<Box<dyn FnOnce() + Send>>,
        now: Now,
    ) {
        let mut rows: Vec<Record> = Vec::new();
        let mut notices: Vec<Notice> = Vec::new();
        let mut happened = Vec::new();
        let mut changed: Vec<IncidentId> = Vec::new();
        let mut counts = false;
        for effect in effects {
            match effect {
                Effect::Publish(directives) => {
                    self.in_force = Arc::clone(&directives);
                    self.means.publisher.publish_directives(directives);
                    let in_force: Vec<_> = self.in_force.iter().collect();
                    happened.push(("directives", json(&in_force)));
                    counts = true;
                }
                Effect::Tell(notice) => notices.push(*notice),
                Effect::Changed(id) => {
                    if !changed.contains(&id) {
                        changed.push(id);
                    }
                }
                Effect::Asked(id) => {
                    if let Some(record) = engine.approval(&id) {
                        happened.push(("approval", json(&record)));
                        rows.push(keeper::approval(&record));
                    }
                }
                Effect::Silenced(id) => {
                    if let Some(record) = engine.silence(&id) {
                        happened.push(("silence", json(&record)));
                        rows.push(keeper::silence(&record, now.wall));
                    }
                }
                Effect::Kept => {
                    happened.push(("brake", json(engine.brake())));
                    counts = true;
                }
            }
        }
        for id in &changed {
            let Some(record) = engine.incident(id) else {
                continue;
            };
            self.follow(&record);
            happened.push(("incident", json(&record)));
            if let Some(kept) = &mut self.means.memory {
                kept.keeper.incident(engine, &record, now.wall, &mut rows);
            }
        }
        counts |= !changed.is_empty();
        let deliveries = self.route(notices, now.wall);
        let durable = match &mut self.means.memory {
            None => None,
            Some(kept) => {
                if counts {
                    rows.push(keeper::kept(engine));
                }
                rows.extend(audit.map(|a| a.row(now.wall)));
                rows.extend(deliveries.iter().map(|d| kept.deliveries.begin(d)));
                (!rows.is_empty()).then(|| kept.ledger.record(rows))
            }
        };
        let announcement = Announcement {
            durable,
            deliveries,
            happened,
            then: then.into_iter().collect(),
        };
        if !announcement.is_empty() {
            self.means.announcer.announce(announcement);
        }
    }

    /// Remembers a place that a request wants to be told, and gives it a name.
    ///
    /// # Errors
    /// Why nothing is told there.
    pub(super) fn remember_target(&mut self, url: &str) -> Result<String, String> {
        let name = Destination::check(url, &self.means.destinations)?.target_name();
        if self.means.adhoc.contains_key(&name) {
            return Ok(name);
        }
        if self.means.adhoc.len() >= MAX_ADHOC {
            // One that no open incident names, if there is one.
            let any = self.means.adhoc.keys().next().cloned();
            any.and_then(|key| self.means.adhoc.remove(&key));
        }
        self.means.adhoc.insert(name.clone(), url.trim().to_owned());
        if let Some(kept) = &self.means.memory {
            drop(kept.ledger.record(vec![keeper::adhoc(&self.means.adhoc)]));
        }
        Ok(name)
    }

    /// Everything once more, for a ledger that was begun anew.
    pub(super) fn write_again(&mut self, engine: &Engine, now: Now) {
        let Some(kept) = &mut self.means.memory else {
            return;
        };
        kept.keeper = Keeper::default();
        let mut rows = vec![keeper::kept(engine), keeper::adhoc(&self.means.adhoc)];
        for record in engine.incidents().into_iter().rev() {
            kept.keeper.incident(engine, &record, now.wall, &mut rows);
        }
        rows.extend(engine.approvals().iter().map(keeper::approval));
        rows.extend(engine.silences(now).iter().map(|s| keeper::silence(s, now.wall)));
        drop(kept.ledger.record(rows));
    }

    /// What each target that wants to hear is to be told.
    fn route(&self, notices: Vec<Notice>, now: Wall) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        for mut notice in notices {
            self.means.links.put(&mut notice);
            deliveries.extend(self.means.alerts.route(&notice));
            for name in notice.targets.iter().filter(|n| n.starts_with(ADHOC)) {
                let Some(url) = self.means.adhoc.get(name) else {
                    continue;
                };
                match Delivery::adhoc(&notice, url, &self.means.destinations, now) {
                    Ok(delivery) => deliveries.push(delivery),
                    Err(why) => tracing::warn!(target = %name, error = %why, "an alert cannot be sent there"),
                }
            }
        }
        deliveries
    }

    fn follow(&mut self, record: &IncidentRecord) {
        let known = self.open.get(&record.id);
        let last = known.and_then(|f| f.logged.as_ref());
        let from = last
            .and_then(|last| record.timeline.iter().rposition(|e| e == last))
            .map_or(0, |i| i + 1);
        if known.is_none() && record.state != IncidentState::Resolved {
            self.means
                .metrics
                .incident_opened(record.rule.as_str(), record.severity);
        }
        for entry in record.timeline.iter().skip(from) {
            self.count(record, &entry.event);
            let (incident, rule, subject) = (&record.id, &record.rule, &record.subject);
            let (event, detail) = (entry.event.as_str(), entry.detail.as_str());
            if matches!(
                event,
                "opened" | "reopened" | "relapsed" | "worsened" | "step_failed"
            ) {
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
            self.means.metrics.incidents_open(severity, open as u64);
        }
    }

    /// An incident that goes on from before a restart: its opening was counted and logged then.
    pub(super) fn know(&mut self, record: &IncidentRecord) {
        let followed = Followed {
            severity: record.severity,
            logged: record.timeline.last().cloned(),
        };
        self.open.insert(record.id.clone(), followed);
    }

    fn count(&self, record: &IncidentRecord, event: &str) {
        let result = match event {
            "step_applied" => "applied",
            "step_waiting" => "waiting",
            "step_skipped" => "skipped",
            "step_worked" => "worked",
            "step_failed" => "failed",
            "step_inconclusive" => "inconclusive",
            "step_reverted" => "reverted",
            "lifted" => "lifted",
            _ => return,
        };
        self.means.metrics.remediation(record.action.as_str(), result);
    }
}

impl Audit {
    fn row(self, at: Wall) -> Record {
        Record::Audit(AuditRow {
            at,
            who: self.by,
            via: self.via,
            what: self.what,
            detail: self.detail,
        })
    }
}

fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}
