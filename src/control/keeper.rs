//! What has to outlive the process: rows for the ledger as the engine changes, and the engine as the rows say it was.

use std::collections::HashMap;
use std::time::Duration;

use super::resume::Undelivered;
use crate::alert::{DeadLetter, Delivery, Fate, Settled};
use crate::enforce::versions::KnownVersion;
use crate::incident::engine::Engine;
use crate::incident::record::{ApprovalRecord, IncidentRecord, SilenceRecord, TimelineEntry};
use crate::incident::restore::Remains;
use crate::store::{
    ApprovalRow, DeliveryRow, DeliveryState, IncidentFilter, IncidentRow, LeaseRow, LeaseState, Ledger,
    LedgerError, ObservationFilter, Reader, Record, SilenceRow, StateRow, TimelineRow, VersionRow,
};
use crate::types::directive::Directive;
use crate::types::ids::{IncidentId, LeaseId};
use crate::types::notice::Notice;
use crate::types::observation::Observation;
use crate::types::time::{Now, Wall};

/// The key of what the engine keeps beside its incidents.
const ENGINE: &str = "engine";
/// The key of where ad-hoc alert targets are.
const ADHOC: &str = "adhoc_targets";
/// The key of what versions of agents are made of.
const KNOWN: &str = "known_versions";
/// The key of what signs links to approvals.
const LINKS: &str = "link_key";
/// Closed incidents that are taken back.
const CLOSED: usize = 1_000;
/// Past observations that are taken back, at most this old and this many.
const PAST: Duration = Duration::from_secs(3_600);
const MOST_PAST: usize = 500_000;

/// Turns what changes into rows; knows what was written of each incident.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    open: HashMap<IncidentId, Written>,
}

/// What was written of an incident.
#[derive(Debug, Default)]
struct Written {
    /// The entry of its timeline that was written last; timelines lose entries when they grow long.
    last: Option<TimelineEntry>,
    /// The place of the next one.
    seq: u64,
    leases: HashMap<LeaseId, Directive>,
}

/// What a ledger gives back at the start.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    /// For the engine.
    pub(super) remains: Remains,
    /// For alert targets.
    pub(super) undelivered: Undelivered,
    /// Where ad-hoc alert targets are, by name.
    pub(super) adhoc: HashMap<String, String>,
    /// What versions of agents are made of.
    pub(super) known: Vec<KnownVersion>,
    /// What signs links, if it was ever made.
    pub(super) link_key: Option<String>,
    /// What was seen shortly before, oldest first.
    pub(super) past: Vec<Observation>,
    /// What could not be read.
    pub(super) unreadable: Vec<String>,
}

impl Keeper {
    /// Rows of an incident that has changed.
    pub(super) fn incident(
        &mut self,
        engine: &Engine,
        record: &IncidentRecord,
        now: Wall,
        rows: &mut Vec<Record>,
    ) {
        let text = |value: serde_json::Result<String>| value.unwrap_or_else(|_| "null".to_owned());
        rows.push(Record::Incident(IncidentRow {
            id: record.id.to_string(),
            rule: record.rule.to_string(),
            subject_kind: record.subject_kind.clone(),
            subject: record.subject.clone(),
            agent: record.agent.as_ref().map(ToString::to_string),
            state: record.state.name().to_owned(),
            severity: record.severity.name().to_owned(),
            opened: record.opened,
            changed: now,
            resolved: record.resolved,
            record: text(serde_json::to_string(record)),
            live: engine.live(&record.id),
        }));
        let written = self.open.entry(record.id.clone()).or_default();
        let from = written
            .last
            .as_ref()
            .and_then(|last| record.timeline.iter().rposition(|e| e == last))
            .map_or(0, |at| at + 1);
        for entry in record.timeline.iter().skip(from) {
            rows.push(Record::Timeline(TimelineRow {
                incident: record.id.to_string(),
                seq: written.seq,
                at: entry.at,
                event: entry.event.clone(),
                detail: entry.detail.clone(),
            }));
            written.seq += 1;
        }
        written.last = record.timeline.last().cloned();
        let mut before = std::mem::take(&mut written.leases);
        for directive in &record.directives {
            let known = before.remove(&directive.lease);
            if known.as_ref() != Some(directive) {
                rows.push(lease(directive, LeaseState::Active));
            }
            written.leases.insert(directive.lease.clone(), directive.clone());
        }
        for gone in before.into_values() {
            let state = if gone.expires <= now {
                LeaseState::Expired
            } else {
                LeaseState::Lifted
            };
            rows.push(lease(&gone, state));
        }
        if record.resolved.is_some() {
            self.open.remove(&record.id);
        }
    }

    /// An incident that was taken back: what is written of it already.
    fn know(&mut self, record: &IncidentRecord, seq: u64) {
        let leases = record.directives.iter().map(|d| (d.lease.clone(), d.clone()));
        self.open.insert(
            record.id.clone(),
            Written {
                last: record.timeline.last().cloned(),
                seq,
                leases: leases.collect(),
            },
        );
    }

    /// Reads what a ledger holds. Blocks: call it outside of a runtime's tasks.
    pub(super) fn recover(&mut self, ledger: &Ledger, now: Wall) -> Result<Recovered, LedgerError> {
        let reader = ledger.reader()?;
        let mut recovered = Recovered::default();
        let mut bad = Vec::new();
        for row in reader.live_incidents()? {
            if let Ok(record) = serde_json::from_str::<IncidentRecord>(&row.record) {
                let seq = reader.timeline(&row.id)?.last().map_or(0, |t| t.seq + 1);
                self.know(&record, seq);
            }
            recovered.remains.live.extend(row.live);
            let mut told = Vec::new();
            if let Some(last) = reader.deliveries_of(&row.id)?.last() {
                read::<Delivery>(&last.document, &mut told, &mut bad);
            }
            let notices = told.into_iter().map(|d| Notice::clone(&d.notice));
            recovered.undelivered.last_notices.extend(notices);
        }
        recovered.remains.closed = closed(&reader, &mut bad)?;
        for row in reader
            .silences()?
            .into_iter()
            .filter(|s| !s.ended && s.ends > now)
        {
            read(&row.document, &mut recovered.remains.silences, &mut bad);
        }
        for row in reader.versions(None)? {
            read(&row.document, &mut recovered.remains.versions, &mut bad);
        }
        for row in reader.queued_deliveries()? {
            read(&row.document, &mut recovered.undelivered.queued, &mut bad);
        }
        for row in reader.dead_deliveries()? {
            let mut delivery = Vec::new();
            read(&row.document, &mut delivery, &mut bad);
            recovered
                .undelivered
                .dead
                .extend(delivery.into_iter().map(|delivery| DeadLetter {
                    delivery,
                    why: row.last_error.clone().unwrap_or_default(),
                    at: row.created,
                }));
        }
        recovered.remains.kept = reader.state(ENGINE)?;
        recovered.link_key = reader
            .state(LINKS)?
            .and_then(|text| serde_json::from_str(&text).ok());
        if let Some(text) = reader.state(KNOWN)? {
            recovered.known = serde_json::from_str(&text).unwrap_or_default();
        }
        if let Some(text) = reader.state(ADHOC)? {
            recovered.adhoc = serde_json::from_str(&text).unwrap_or_default();
        }
        recovered.past = past(&reader, now)?;
        recovered.unreadable = bad;
        Ok(recovered)
    }
}

/// The row of a question.
pub(super) fn approval(record: &ApprovalRecord) -> Record {
    Record::Approval(ApprovalRow {
        id: record.id.to_string(),
        incident: record.incident.to_string(),
        step: record.step.clone(),
        state: record.state.name().to_owned(),
        requested: record.requested,
        expires: record.expires,
        decided: record.decided,
        by: record.by.clone(),
        via: record.via.clone(),
        reason: record.reason.clone(),
        document: document(record),
    })
}

/// The row of a silence.
pub(super) fn silence(record: &SilenceRecord, now: Wall) -> Record {
    Record::Silence(SilenceRow {
        id: record.id.to_string(),
        document: document(record),
        starts: record.starts,
        ends: record.ends,
        by: record.by.clone(),
        comment: record.comment.clone(),
        ended: record.ends <= now,
    })
}

/// The row of what the engine keeps beside its incidents.
pub(super) fn kept(engine: &Engine) -> Record {
    state(ENGINE, engine.kept())
}

/// The row of where ad-hoc alert targets are.
pub(super) fn adhoc(targets: &HashMap<String, String>) -> Record {
    state(ADHOC, document(targets))
}

/// The row of what versions of agents are made of.
pub(super) fn known(versions: &[KnownVersion]) -> Record {
    state(KNOWN, document(&versions))
}

/// The row of what signs links.
pub(super) fn link_key(key: &str) -> Record {
    state(LINKS, document(&key))
}

/// Rows of versions that were in use since `since`.
pub(super) fn versions(engine: &Engine, since: Wall, now: Now) -> Vec<Record> {
    engine
        .agents(now)
        .into_iter()
        .filter(|agent| agent.last_seen >= since)
        .flat_map(|agent| agent.versions)
        .filter(|version| version.last_seen >= since)
        .map(|version| {
            Record::Version(VersionRow {
                agent: version.agent.to_string(),
                version: version.version.to_string(),
                first_seen: version.first_seen,
                last_seen: version.last_seen,
                document: document(&version),
            })
        })
        .collect()
}

/// The row of a delivery that is to be made.
pub(super) fn delivery(delivery: &Delivery) -> Record {
    Record::Delivery(row_of(
        delivery,
        DeliveryState::Queued,
        Some(delivery.next_attempt),
        None,
    ))
}

/// The row of a delivery after an attempt.
pub(super) fn settled(delivery: &Delivery, settled: &Settled) -> Record {
    let mut tried = delivery.clone();
    Record::Delivery(match &settled.fate {
        Fate::Delivered => row_of(&tried, DeliveryState::Delivered, None, None),
        Fate::Failed {
            attempts,
            next_attempt,
            error,
        } => {
            tried.attempts = *attempts;
            tried.next_attempt = *next_attempt;
            row_of(
                &tried,
                DeliveryState::Queued,
                Some(*next_attempt),
                Some(error.clone()),
            )
        }
        Fate::Dead { why } => row_of(&tried, DeliveryState::Dead, None, Some(why.clone())),
    })
}

fn row_of(
    delivery: &Delivery,
    state: DeliveryState,
    next_attempt: Option<Wall>,
    last_error: Option<String>,
) -> DeliveryRow {
    DeliveryRow {
        id: delivery.id.clone(),
        target: delivery.target.clone(),
        incident: Some(delivery.notice.incident.to_string()),
        created: delivery.created,
        state,
        attempts: delivery.attempts,
        next_attempt,
        document: document(delivery),
        last_error,
    }
}

fn lease(directive: &Directive, state: LeaseState) -> Record {
    Record::Lease(LeaseRow {
        id: directive.lease.to_string(),
        incident: directive.incident.to_string(),
        kind: directive.order.name().to_owned(),
        subject: directive.subject.to_string(),
        order: document(directive),
        since: directive.since,
        expires: directive.expires,
        state,
    })
}

fn state(key: &str, document: String) -> Record {
    Record::State(StateRow {
        key: key.to_owned(),
        document,
    })
}

fn document(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

fn read<T: serde::de::DeserializeOwned>(document: &str, to: &mut Vec<T>, bad: &mut Vec<String>) {
    match serde_json::from_str(document) {
        Ok(value) => to.push(value),
        Err(e) => bad.push(e.to_string()),
    }
}

/// Incidents that are over, oldest first.
fn closed(reader: &Reader, bad: &mut Vec<String>) -> Result<Vec<IncidentRecord>, LedgerError> {
    let filter = IncidentFilter {
        state: Some("resolved".to_owned()),
        limit: CLOSED,
        ..IncidentFilter::default()
    };
    let mut records = Vec::new();
    for row in reader.incidents(&filter)?.rows {
        read(&row.record, &mut records, bad);
    }
    records.sort_by_key(|r: &IncidentRecord| r.opened);
    Ok(records)
}

fn past(reader: &Reader, now: Wall) -> Result<Vec<Observation>, LedgerError> {
    let from = now
        .unix_millis()
        .saturating_sub(i64::try_from(PAST.as_millis()).unwrap_or(0));
    let filter = ObservationFilter {
        from: Some(Wall::from_unix_millis(from)),
        ..ObservationFilter::default()
    };
    let mut seen = std::collections::VecDeque::new();
    for observation in reader.observations(filter) {
        if seen.len() >= MOST_PAST {
            seen.pop_front();
        }
        seen.push_back(observation?);
    }
    Ok(seen.into())
}
