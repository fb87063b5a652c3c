//! `fusebox ledger`: what a ledger holds, whether it is whole, and its content as JSON lines.

use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use super::{FAILED, OK, print_bytes, say};
use crate::clock::Clock;
use crate::store::{self, LedgerError, Reader};

/// Arguments of `fusebox ledger`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Write a ledger to standard output, one JSON object a line; a running fusebox may have it open.
    Export {
        /// The ledger.
        path: PathBuf,
        /// Only this table; may be given several times. `observations` alone is an observations file.
        #[arg(long, value_name = "NAME", value_parser = TABLES)]
        table: Vec<String>,
    },
    /// Read JSON lines into a ledger: all of them or, when one is bad, none. Doing it twice changes nothing more.
    Import {
        /// The ledger; made when it is missing. No running fusebox may have it open.
        path: PathBuf,
        /// An export or an observations file; `-` is standard input.
        #[arg(default_value = "-", value_name = "FILE|-")]
        file: PathBuf,
    },
    /// Read all of a ledger and tell what is wrong with it.
    Check {
        /// The ledger.
        path: PathBuf,
    },
    /// Tell what a ledger holds.
    Info {
        /// The ledger.
        path: PathBuf,
    },
}

const TABLES: [&str; 11] = [
    "incidents",
    "timeline",
    "leases",
    "approvals",
    "silences",
    "versions",
    "deliveries",
    "audit",
    "state",
    "observations",
    "sums",
];

pub(super) fn run(args: &Args) -> u8 {
    let done = match &args.command {
        Command::Export { path, table } => export(path, table),
        Command::Import { path, file } => import(path, file),
        Command::Check { path } => check(path),
        Command::Info { path } => info(path),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            say(&format!("error: {error}"));
            FAILED
        }
    }
}

fn export(path: &Path, tables: &[String]) -> Result<u8, LedgerError> {
    let reader = Reader::open(path)?;
    let mut out = BufWriter::with_capacity(256 * 1024, io::stdout().lock());
    match store::export(&reader, tables, &mut out) {
        // A reader that left is no failure.
        Err(LedgerError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => return Ok(OK),
        result => result?,
    };
    if reader.damaged() > 0 {
        say(&format!(
            "warning: {} damaged rows were left out; `fusebox ledger check` tells more",
            reader.damaged()
        ));
        return Ok(FAILED);
    }
    Ok(OK)
}

fn import(path: &Path, file: &Path) -> Result<u8, LedgerError> {
    let now = Clock::system().wall();
    let done = if file.as_os_str() == "-" {
        store::import(path, now, io::stdin().lock())?
    } else {
        let open = File::open(file).map_err(|source| LedgerError::Io {
            path: file.to_owned(),
            what: "read it",
            source,
        })?;
        store::import(path, now, BufReader::with_capacity(256 * 1024, open))?
    };
    say(&format!(
        "{} lines: {} records, {} new observations, {} known",
        done.lines, done.records, done.observations, done.known
    ));
    Ok(OK)
}

fn check(path: &Path) -> Result<u8, LedgerError> {
    let wrong = Reader::open(path)?.check()?;
    if wrong.is_empty() {
        return Ok(print_bytes(format!("{}: whole\n", path.display()).as_bytes()));
    }
    for line in wrong {
        say(&format!("{}: {line}", path.display()));
    }
    Ok(FAILED)
}

fn info(path: &Path) -> Result<u8, LedgerError> {
    let info = Reader::open(path)?.info()?;
    let mut text = format!(
        "{}\n  format         {}\n  size           {} bytes\n",
        path.display(),
        info.format,
        info.bytes
    );
    for (table, rows) in &info.rows {
        text.push_str(&format!("  {table:<14} {rows}\n"));
    }
    if let Some((oldest, newest)) = info.observed {
        text.push_str(&format!("  observed       {oldest} to {newest}\n"));
    }
    Ok(print_bytes(text.as_bytes()))
}
