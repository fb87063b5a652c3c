//! What can go wrong with the ledger, with the place and the remedy.

use std::path::PathBuf;
use std::sync::Arc;

/// Why a ledger cannot be opened, read, exported or imported.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A later fusebox wrote it; it was not touched.
    #[error(
        "the ledger {path} has format {found}, this fusebox knows up to {known}; run the later fusebox, or give another path"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The latest format known.
        known: u32,
    },
    /// It is an SQLite database of something else; it was not touched.
    #[error("{path} is a database of another program; give another path for the ledger")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another process has it open for writing.
    #[error("the ledger {path} is in use by another fusebox; stop that one, or give another path")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// There is no such file.
    #[error("there is no ledger at {path}; give the path of one, as `ledger.path` names it")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path}: cannot {what}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// SQLite refused.
    #[error("the ledger: cannot {what}: {source}")]
    Sql {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: rusqlite::Error,
    },
    /// A row does not hold what it should.
    #[error("the ledger: a row of `{table}` is damaged ({what}); `fusebox ledger check` tells more")]
    Damaged {
        /// The table.
        table: &'static str,
        /// What of it.
        what: String,
    },
    /// A line that cannot be imported; nothing was.
    #[error("line {number}: {why}; nothing was imported")]
    Line {
        /// Counted from 1.
        number: u64,
        /// What is wrong with it.
        why: String,
    },
    /// What was queued could not be written before the end.
    #[error("the ledger was closed with {records} records unwritten: {why}")]
    Unwritten {
        /// How many.
        records: usize,
        /// Why.
        why: Arc<str>,
    },
}

impl LedgerError {
    /// For `map_err`: SQLite refused to do `what`.
    pub(super) fn sql(what: &'static str) -> impl Fn(rusqlite::Error) -> Self {
        move |source| Self::Sql { what, source }
    }

    /// Whether a look at the file says that its content is to blame, rather than the disk or the caller.
    pub(super) fn is_corruption(&self) -> bool {
        match self {
            // What it cannot make sense of in a schema or a head is a plain error to SQLite.
            Self::Sql { source, .. } => {
                is_corrupt(source) || source.sqlite_error_code() == Some(rusqlite::ffi::ErrorCode::Unknown)
            }
            Self::Damaged { .. } => true,
            _ => false,
        }
    }
}

/// Whether SQLite says that the file is no database, or a broken one.
pub(super) fn is_corrupt(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Why records are not durable (yet).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotDurable {
    /// They are kept in memory and written as soon as the disk allows; go on.
    #[error("the ledger cannot write ({why}); the record is kept in memory until it can")]
    Degraded {
        /// Why it cannot.
        why: Arc<str>,
    },
    /// More is kept in memory than may be; some of them were dropped and counted.
    #[error("the ledger cannot write and its memory is full; records were dropped")]
    Dropped,
    /// The ledger is closed.
    #[error("the ledger is closed")]
    Closed,
}
