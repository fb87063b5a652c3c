//! What is no longer in memory: read from the ledger, on a thread that may block.

use crate::control::handle::Handle;
use crate::incident::record::{ApprovalRecord, IncidentRecord, TimelineEntry, VersionRecord};
use crate::store::{IncidentFilter, LedgerError, Reader};
use serde::de::DeserializeOwned;

use super::error::Problem;

/// A part of the incidents that the ledger holds.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) records: Vec<IncidentRecord>,
    /// Whether there are more after the last one.
    pub(super) next: Option<String>,
}

/// Incidents, newest first; none without a ledger.
pub(super) async fn incidents(handle: &Handle, filter: IncidentFilter) -> Result<Page, Problem> {
    let page = read(handle, move |reader| {
        let page = reader.incidents(&filter)?;
        Ok(Page {
            records: page.rows.iter().filter_map(|row| parsed(&row.record)).collect(),
            next: page.next,
        })
    })
    .await?;
    Ok(page.unwrap_or_default())
}

/// One incident.
pub(super) async fn incident(handle: &Handle, id: &str) -> Result<Option<IncidentRecord>, Problem> {
    let id = id.to_owned();
    let row = read(handle, move |reader| reader.incident(&id)).await?;
    Ok(row.flatten().and_then(|row| parsed(&row.record)))
}

/// The whole timeline of an incident; empty without a ledger.
pub(super) async fn timeline(handle: &Handle, id: &str) -> Result<Vec<TimelineEntry>, Problem> {
    let id = id.to_owned();
    let rows = read(handle, move |reader| reader.timeline(&id)).await?;
    let entry = |row: crate::store::TimelineRow| TimelineEntry {
        at: row.at,
        event: row.event,
        detail: row.detail,
    };
    Ok(rows.unwrap_or_default().into_iter().map(entry).collect())
}

/// Questions, oldest first.
pub(super) async fn approvals(handle: &Handle) -> Result<Vec<ApprovalRecord>, Problem> {
    let rows = read(handle, |reader| reader.approvals(None)).await?;
    let rows = rows.unwrap_or_default();
    Ok(rows.iter().filter_map(|row| parsed(&row.document)).collect())
}

/// Versions; of one agent where that is given.
pub(super) async fn versions(handle: &Handle, agent: Option<String>) -> Result<Vec<VersionRecord>, Problem> {
    let rows = read(handle, move |reader| reader.versions(agent.as_deref())).await?;
    let rows = rows.unwrap_or_default();
    Ok(rows.iter().filter_map(|row| parsed(&row.document)).collect())
}

/// Reads from the ledger; `None` where there is none.
pub(super) async fn read<T: Send + 'static>(
    handle: &Handle,
    work: impl FnOnce(&Reader) -> Result<T, LedgerError> + Send + 'static,
) -> Result<Option<T>, Problem> {
    let Some(ledger) = handle.ledger().cloned() else {
        return Ok(None);
    };
    let reading = tokio::task::spawn_blocking(move || ledger.reader().and_then(|reader| work(&reader)));
    match reading.await {
        Ok(Ok(read)) => Ok(Some(read)),
        Ok(Err(e)) => Err(Problem::ledger(e)),
        Err(e) => Err(Problem::ledger(e)),
    }
}

/// A document of ours; one that a later version wrote may not be readable.
fn parsed<T: DeserializeOwned>(document: &str) -> Option<T> {
    serde_json::from_str(document).ok()
}
