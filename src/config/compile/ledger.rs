//! The ledger: where it is and how much it keeps.

use std::path::PathBuf;
use std::time::Duration;

use super::super::at::At;
use super::super::check::Check;
use super::super::file::{LedgerFile, LedgerIncidentsFile, LedgerObservationsFile};
use super::super::{Overrides, defaults};
use crate::store::LedgerOptions;

/// The shortest and the longest time that anything is kept.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3_650 * 86_400);

pub(super) fn ledger(
    file: LedgerFile,
    overrides: &Overrides,
    check: &mut Check<'_>,
) -> Option<LedgerOptions> {
    let LedgerFile {
        path,
        observations: LedgerObservationsFile { keep, max_bytes },
        incidents: LedgerIncidentsFile { keep: incidents },
    } = file;
    let keep_observations = check.duration(
        "keep",
        keep,
        defaults::LEDGER_KEEP_OBSERVATIONS,
        SHORTEST..=LONGEST,
    );
    let max_bytes = check.size(
        "max_bytes",
        max_bytes,
        defaults::LEDGER_MAX_BYTES,
        1 << 20..=1 << 44,
    );
    let keep_incidents = check.duration(
        "keep",
        incidents,
        defaults::LEDGER_KEEP_INCIDENTS,
        SHORTEST..=LONGEST,
    );
    let path = match (&overrides.ledger, path) {
        // The command line speaks of the directory it was given in.
        (Some(path), _) => PathBuf::from(checked(&super::by_flag("--ledger", path.clone()), check)?),
        (None, Some(path)) => {
            checked(&path, check)?;
            check.path("path", &path)
        }
        (None, None) => return None,
    };
    Some(LedgerOptions {
        path,
        keep_observations,
        max_bytes,
        keep_incidents,
    })
}

/// The path as text, when it can be that of a file.
fn checked<'a>(path: &'a At<String>, check: &mut Check<'_>) -> Option<&'a str> {
    let text = path.value.trim();
    let fault = match text {
        "" => "the path of the ledger is empty",
        "-" => "the ledger cannot be standard output",
        _ if text.ends_with('/') => "the path of the ledger is that of a directory",
        _ => return Some(text),
    };
    let hint = "write the path of a file, as /var/lib/fusebox/ledger.db, or remove it to keep nothing";
    check.problem(path.place, fault, hint);
    None
}
