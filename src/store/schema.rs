//! The tables, as steps from one format to the next; `user_version` says how many were taken.

use rusqlite::{Connection, TransactionBehavior};

/// Marks the file as a ledger (`fuse`).
pub(super) const APPLICATION_ID: i32 = 0x6675_7365;

/// The latest format.
pub(super) const LATEST: u32 = MIGRATIONS.len() as u32;

/// Tables of records, each with the order in which it is exported.
pub(super) const RECORD_TABLES: [&str; 9] = [
    "incidents",
    "timeline",
    "leases",
    "approvals",
    "silences",
    "versions",
    "deliveries",
    "audit",
    "state",
];

/// What each step does. A step that was released is never changed; a new one is put behind it. Every statement may
/// be run again on a file that has it already: a damaged `user_version` then does no harm.
const MIGRATIONS: [&str; 3] = [
    r#"
    CREATE TABLE IF NOT EXISTS incidents (
        id TEXT NOT NULL PRIMARY KEY, rule TEXT NOT NULL, subject_kind TEXT NOT NULL, subject TEXT NOT NULL,
        agent TEXT, state TEXT NOT NULL, severity TEXT NOT NULL, opened INTEGER NOT NULL, changed INTEGER NOT NULL,
        resolved INTEGER, record TEXT NOT NULL, live TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS incidents_opened ON incidents (opened, id);
    CREATE INDEX IF NOT EXISTS incidents_live ON incidents (opened, id) WHERE live IS NOT NULL;
    CREATE INDEX IF NOT EXISTS incidents_resolved ON incidents (resolved) WHERE resolved IS NOT NULL;
    CREATE TABLE IF NOT EXISTS timeline (
        incident TEXT NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, detail TEXT NOT NULL,
        PRIMARY KEY (incident, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS leases (
        id TEXT NOT NULL PRIMARY KEY, incident TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
        "order" TEXT NOT NULL, since INTEGER NOT NULL, expires INTEGER NOT NULL, state TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS leases_incident ON leases (incident);
    CREATE INDEX IF NOT EXISTS leases_active ON leases (expires) WHERE state = 'active';
    CREATE TABLE IF NOT EXISTS approvals (
        id TEXT NOT NULL PRIMARY KEY, incident TEXT NOT NULL, step TEXT NOT NULL, state TEXT NOT NULL,
        requested INTEGER NOT NULL, expires INTEGER NOT NULL, decided INTEGER, "by" TEXT, via TEXT, reason TEXT,
        document TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS approvals_incident ON approvals (incident);
    CREATE TABLE IF NOT EXISTS silences (
        id TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL, starts INTEGER NOT NULL, ends INTEGER NOT NULL,
        "by" TEXT NOT NULL, comment TEXT NOT NULL, ended INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS versions (
        agent TEXT NOT NULL, version TEXT NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
        document TEXT NOT NULL, PRIMARY KEY (agent, version)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS deliveries (
        id TEXT NOT NULL PRIMARY KEY, target TEXT NOT NULL, incident TEXT, created INTEGER NOT NULL,
        state TEXT NOT NULL, attempts INTEGER NOT NULL, next_attempt INTEGER, document TEXT NOT NULL, last_error TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS deliveries_incident ON deliveries (incident);
    CREATE INDEX IF NOT EXISTS deliveries_queued ON deliveries (created, id) WHERE state = 'queued';
    CREATE TABLE IF NOT EXISTS audit (
        at INTEGER NOT NULL, who TEXT NOT NULL, via TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL,
        PRIMARY KEY (at, who, via, what, detail)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS state (key TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL) STRICT;
    "#,
    r#"
    CREATE TABLE IF NOT EXISTS names (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE IF NOT EXISTS observations (
        id INTEGER PRIMARY KEY, agent INTEGER NOT NULL, execution INTEGER, row BLOB NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS observations_agent ON observations (agent);
    CREATE INDEX IF NOT EXISTS observations_execution ON observations (execution) WHERE execution IS NOT NULL;
    "#,
    r#"
    CREATE TABLE IF NOT EXISTS sums (
        span INTEGER NOT NULL, start INTEGER NOT NULL, agent TEXT NOT NULL, model TEXT NOT NULL,
        upstream TEXT NOT NULL, requests INTEGER NOT NULL, errors INTEGER NOT NULL, input_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, cost_nanos INTEGER NOT NULL,
        duration_us INTEGER NOT NULL, PRIMARY KEY (span, start, agent, model, upstream)
    ) STRICT, WITHOUT ROWID;
    "#,
];

/// The format of a file.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Takes the steps that are left, all or none.
pub(super) fn migrate(connection: &mut Connection, from: u32) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for step in MIGRATIONS
        .iter()
        .skip(usize::try_from(from).unwrap_or(usize::MAX))
    {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", LATEST)?;
    transaction.commit()
}
