//! What is old goes, a little at a time, so that a record never waits long behind it.

use std::time::Duration;

use rusqlite::Connection;

use super::tables::id_at;
use crate::types::time::Wall;

/// Rows that go in one step.
const STEP: i64 = 2_000;
/// Incidents that go in one step; each takes its timeline, leases, approvals and deliveries along.
const INCIDENTS: i64 = 50;
/// Pages that go back to the disk in one step.
const PAGES: i64 = 1_000;
/// How long sums by the minute and by the day are kept.
const MINUTES: Duration = Duration::from_secs(35 * 86_400);
const DAYS: Duration = Duration::from_secs(400 * 86_400);

/// How long and how much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Retention {
    pub(super) observations: Duration,
    pub(super) bytes: u64,
    pub(super) incidents: Duration,
}

/// Takes one step; whether there is more to do.
pub(super) fn step(connection: &mut Connection, keep: &Retention, now: Wall) -> rusqlite::Result<bool> {
    let transaction = connection.transaction()?;
    let mut more = observations(&transaction, keep, now)?;
    more |= incidents(&transaction, before(now, keep.incidents))?;
    for (span, kept) in [(60, MINUTES), (86_400, DAYS)] {
        let sql = "DELETE FROM sums WHERE (span, start, agent, model, upstream) IN
                   (SELECT span, start, agent, model, upstream FROM sums WHERE span = ? AND start < ? LIMIT ?)";
        more |= delete(&transaction, sql, &[span, before(now, kept), STEP])?;
    }
    transaction.commit()?;
    Ok(more | give_back(connection)?)
}

/// Gives free pages back to the disk, but for a tenth of the file, which is soon used again; whether there are more.
fn give_back(connection: &Connection) -> rusqlite::Result<bool> {
    let sql = "SELECT page_count, freelist_count FROM pragma_page_count, pragma_freelist_count";
    let (pages, free): (i64, i64) = connection
        .prepare_cached(sql)?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let surplus = free - (pages / 10).max(64);
    if surplus <= 0 {
        return Ok(false);
    }
    let mut vacuum = connection.prepare(&format!("PRAGMA incremental_vacuum({})", surplus.min(PAGES)))?;
    let mut steps = vacuum.query([])?;
    // One page at each step.
    while steps.next()?.is_some() {}
    Ok(surplus > PAGES)
}

/// Bytes of the file that hold something.
pub(super) fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let sql = "SELECT (page_count - freelist_count) * page_size
               FROM pragma_page_count, pragma_freelist_count, pragma_page_size";
    let bytes: i64 = connection.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

fn observations(connection: &Connection, keep: &Retention, now: Wall) -> rusqlite::Result<bool> {
    let old = id_at(Wall::from_unix_millis(before(now, keep.observations)));
    let sql =
        "DELETE FROM observations WHERE id IN (SELECT id FROM observations WHERE id < ? ORDER BY id LIMIT ?)";
    if delete(connection, sql, &[old, STEP])? {
        return Ok(true);
    }
    if used_bytes(connection)? <= keep.bytes {
        return Ok(false);
    }
    delete(connection, sql, &[i64::MAX, STEP])
}

fn incidents(connection: &Connection, old: i64) -> rusqlite::Result<bool> {
    let gone = "(SELECT id FROM incidents WHERE resolved < ?1 ORDER BY resolved LIMIT ?2)";
    for table in ["timeline", "leases", "approvals", "deliveries"] {
        let sql = format!("DELETE FROM {table} WHERE incident IN {gone}");
        connection.prepare_cached(&sql)?.execute([old, INCIDENTS])?;
    }
    let sql = format!("DELETE FROM incidents WHERE id IN {gone}");
    let mut more = connection.prepare_cached(&sql)?.execute([old, INCIDENTS])? > 0;
    for (table, what) in [
        ("leases", "state <> 'active' AND expires < ?1"),
        ("deliveries", "state <> 'queued' AND created < ?1"),
        ("silences", "ends < ?1"),
        ("versions", "last_seen < ?1"),
    ] {
        let sql =
            format!("DELETE FROM {table} WHERE rowid IN (SELECT rowid FROM {table} WHERE {what} LIMIT ?2)");
        more |= connection.prepare_cached(&sql)?.execute([old, STEP])? > 0;
    }
    let sql = "DELETE FROM audit WHERE (at, who, via, what, detail) IN
               (SELECT at, who, via, what, detail FROM audit WHERE at < ?1 LIMIT ?2)";
    more |= connection.prepare_cached(sql)?.execute([old, STEP])? > 0;
    Ok(more)
}

/// Deletes; whether as many went as may in one step.
fn delete(connection: &Connection, sql: &str, values: &[i64]) -> rusqlite::Result<bool> {
    let gone = connection
        .prepare_cached(sql)?
        .execute(rusqlite::params_from_iter(values))?;
    Ok(i64::try_from(gone).unwrap_or(i64::MAX) >= STEP)
}

fn before(now: Wall, kept: Duration) -> i64 {
    let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
    now.unix_millis().saturating_sub(kept)
}
