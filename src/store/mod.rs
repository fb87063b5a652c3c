//! The ledger: what lasts beyond the process, in one SQLite file beside it.
//!
//! Two ways in, and neither waits. [`Ledger::observe`] takes an observation as long as there is room; what does not fit
//! is counted. [`Ledger::record`] takes [`Record`]s, each an upsert by its key, and gives a [`Receipt`] that resolves
//! when all of them are on the disk (`synchronous = FULL`). One thread owns the connection that writes; what comes
//! while it syncs goes into its next transaction. [`Reader`]s have connections of their own.
//!
//! | table | key | holds |
//! |---|---|---|
//! | `incidents` | `id` | columns to search by, `record` as the API shows it, `live` by which an engine goes on |
//! | `timeline` | `incident, seq` | what happened to an incident |
//! | `leases` | `id` | `order` of a directive, since, expires, `active`, `lifted` or `expired` |
//! | `approvals` | `id` | questions to humans, and answers |
//! | `silences` | `id` | silences and maintenance windows |
//! | `versions` | `agent, version` | what is known of an agent's versions |
//! | `deliveries` | `id` | notices `queued`, `delivered` or `dead` |
//! | `audit` | all columns | acts of operators |
//! | `state` | `key` | anything else by its key: brake, standing orders, the engine's own state |
//! | `observations` | `id` | what exchanges did: `id` is milliseconds since 1970 times 2^20 plus a running number, so that the file is in order of time; `agent` and `execution` are FNV-1a hashes to search by (null for an execution of one exchange); `row` is packed (`packed.rs`) |
//! | `names` | `id` | texts that packed rows name by number, 65,536 at the most |
//! | `sums` | `span, start, agent, model, upstream` | what was used by the minute (35 days) and by the day (400 days) |
//!
//! Times are milliseconds since 1970. `user_version` is the format; an earlier one is migrated, a later one refused.
//!
//! While the file cannot be written, records are kept in memory, the latest of each key, at most 100,000 and 64 MiB (twice
//! that for what is in force), tried again at least every two seconds, and answered at once with
//! [`NotDurable::Degraded`]. A broken file is renamed to `NAME.corrupt-TIME`, never deleted; tables of records that are
//! whole are carried over. A file `NAME.lock` keeps two processes from writing; the kernel lets go of it with the process.

mod document;
mod error;
mod exchange;
mod file;
mod health;
mod ledger;
mod packed;
mod pending;
mod prune;
mod reader;
mod record;
mod row;
mod schema;
mod sums;
mod tables;
mod writer;

pub use error::{LedgerError, NotDurable};
pub use exchange::{Imported, export, import};
pub use file::Opened;
pub use health::Health;
pub use ledger::{Ledger, LedgerOptions, Receipt};
pub use reader::{IncidentFilter, Info, ObservationFilter, Observations, Page, Reader};
pub use record::{
    ApprovalRow, AuditRow, DeliveryRow, DeliveryState, IncidentRow, Key, LeaseRow, LeaseState, Record,
    SilenceRow, StateRow, TimelineRow, VersionRow,
};
pub use sums::{Span, SumRow};

#[cfg(test)]
mod tests;
