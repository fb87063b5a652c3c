//! Export and import: every row as one JSON line; an observation exactly as in the observations file.

use std::io::{BufRead, Read, Write};
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior, params};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::LedgerError;
use super::file::OpenFile;
use super::reader::{ObservationFilter, Reader};
use super::record::Record;
use super::sums::{MOST, SumRow, upsert_sql};
use super::tables::{Log, write_record};
use crate::types::observation::Observation;
use crate::types::time::Wall;

/// Longest line that is read.
const LINE: u64 = 16 << 20;

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Imported {
    /// Lines read.
    pub lines: u64,
    /// Records and sums among them; those that were there already are replaced.
    pub records: u64,
    /// Observations that the ledger did not have.
    pub observations: u64,
    /// Observations that it had.
    pub known: u64,
}

/// Writes the ledger as JSON lines, as it is at one moment; only the tables named, or all for none. How many lines.
///
/// # Errors
/// When the ledger cannot be read, or `to` cannot be written (as [`LedgerError::Io`]).
pub fn export(reader: &Reader, tables: &[String], to: &mut dyn Write) -> Result<u64, LedgerError> {
    let _moment = reader.as_of_now()?;
    let wanted = |table: &str| tables.is_empty() || tables.iter().any(|t| t == table);
    let mut line = Vec::with_capacity(4096);
    let mut lines = 0;
    let mut put = |table: Option<&str>, row: &dyn super::reader::erased::Line| {
        line.clear();
        let start = table.map(|table| format!("{{\"table\":\"{table}\","));
        let mut object = Vec::new();
        row.write(&mut object)
            .map_err(std::io::Error::from)
            .map_err(write_error)?;
        match (start, object.split_first()) {
            (Some(start), Some((b'{', rest))) => {
                line.extend_from_slice(start.as_bytes());
                line.extend_from_slice(rest);
            }
            _ => line.append(&mut object),
        }
        line.push(b'\n');
        lines += 1;
        to.write_all(&line).map_err(write_error)
    };
    reader.each_record(|table, row| {
        if wanted(table) {
            put(Some(table), row)
        } else {
            Ok(())
        }
    })?;
    if wanted("observations") {
        for observation in reader.observations(ObservationFilter::default()) {
            put(None, &observation?)?;
        }
    }
    if wanted("sums") {
        reader.each_sum("ORDER BY span, start, agent, model, upstream", &[], |sum| {
            put(Some("sums"), &sum)
        })?;
    }
    to.flush().map_err(write_error)?;
    Ok(lines)
}

/// Reads JSON lines into the ledger at `path`, which is made when missing: all of them or, when one is bad, none.
/// Twice is the same as once. A record of the file replaces the one with its key; of a sum, the larger value stays.
///
/// # Errors
/// The first bad line with its number, or that the ledger cannot be opened (a running fusebox has it) or written.
pub fn import(path: &Path, now: Wall, mut from: impl BufRead) -> Result<Imported, LedgerError> {
    let (mut file, _) = OpenFile::open(path, now, false)?;
    let write = LedgerError::sql("write to it");
    let transaction = file
        .connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(&write)?;
    transaction
        .execute_batch(
            "CREATE TEMP TABLE claimed (id INTEGER PRIMARY KEY);
             CREATE TEMP TABLE later (line TEXT NOT NULL);",
        )
        .map_err(&write)?;
    let mut log = Log::read(&transaction).map_err(&write)?;
    let mut done = Imported::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        let number = done.lines + 1;
        let bad = |why: String| LedgerError::Line { number, why };
        let length = from
            .by_ref()
            .take(LINE)
            .read_until(b'\n', &mut line)
            .map_err(|e| bad(format!("cannot be read: {e}")))?;
        if length == 0 {
            break;
        }
        if length as u64 == LINE && line.last() != Some(&b'\n') {
            return Err(bad(format!("is longer than {LINE} bytes")));
        }
        done.lines = number;
        let text = std::str::from_utf8(&line).map_err(|_| bad("is not UTF-8".to_owned()))?;
        if text.trim().is_empty() {
            continue;
        }
        match read(text).map_err(bad)? {
            Line::Record(record) => {
                write_record(&transaction, &record).map_err(&write)?;
                done.records += 1;
            }
            Line::Sum(_) => {
                // After all observations, which add to the sums themselves.
                transaction
                    .prepare_cached("INSERT INTO temp.later (line) VALUES (?)")
                    .and_then(|mut insert| insert.execute([text]))
                    .map_err(&write)?;
                done.records += 1;
            }
            Line::Observation(observation) => {
                let new = log.import(&transaction, &observation).map_err(&write)?;
                done.observations += u64::from(new);
                done.known += u64::from(!new);
            }
        }
    }
    log.finish_import(&transaction).map_err(&write)?;
    sums(&transaction)?;
    transaction
        .execute_batch("DROP TABLE temp.claimed; DROP TABLE temp.later;")
        .map_err(&write)?;
    transaction.commit().map_err(&write)?;
    Ok(done)
}

enum Line {
    Record(Box<Record>),
    Observation(Box<Observation>),
    Sum(Box<SumRow>),
}

fn read(text: &str) -> Result<Line, String> {
    #[derive(Deserialize)]
    struct Head {
        table: Option<String>,
    }
    fn row<R: DeserializeOwned>(text: &str) -> Result<R, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }
    let record = |record| Line::Record(Box::new(record));
    let Head { table } = row(text)?;
    Ok(match table.as_deref() {
        None | Some("observations") => Line::Observation(row(text)?),
        Some("incidents") => record(Record::Incident(row(text)?)),
        Some("timeline") => record(Record::Timeline(row(text)?)),
        Some("leases") => record(Record::Lease(row(text)?)),
        Some("approvals") => record(Record::Approval(row(text)?)),
        Some("silences") => record(Record::Silence(row(text)?)),
        Some("versions") => record(Record::Version(row(text)?)),
        Some("deliveries") => record(Record::Delivery(row(text)?)),
        Some("audit") => record(Record::Audit(row(text)?)),
        Some("state") => record(Record::State(row(text)?)),
        Some("sums") => Line::Sum(row(text)?),
        Some(other) => return Err(format!("there is no table `{other}`")),
    })
}

/// Puts the sums that were set apart over those in the tables.
fn sums(connection: &Connection) -> Result<(), LedgerError> {
    let write = LedgerError::sql("write to it");
    let sql = upsert_sql(|v| format!("max({v}, excluded.{v})"));
    let mut lines = connection
        .prepare("SELECT line FROM temp.later")
        .map_err(&write)?;
    let mut lines = lines.query([]).map_err(&write)?;
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX).min(MOST);
    while let Some(line) = lines.next().map_err(&write)? {
        let text: String = line.get(0).map_err(&write)?;
        let Ok(Line::Sum(sum)) = read(&text) else { continue };
        let SumRow {
            span,
            start,
            agent,
            model,
            upstream,
            requests,
            errors,
            input_tokens,
            output_tokens,
            cached_tokens,
            cost_nanos,
            duration_us,
        } = *sum;
        connection
            .prepare_cached(&sql)
            .and_then(|mut insert| {
                insert.execute(params![
                    span.seconds(),
                    start.unix_millis(),
                    agent,
                    model,
                    upstream,
                    number(requests),
                    number(errors),
                    number(input_tokens),
                    number(output_tokens),
                    number(cached_tokens),
                    number(cost_nanos),
                    number(duration_us),
                ])
            })
            .map_err(&write)?;
    }
    Ok(())
}

fn write_error(source: std::io::Error) -> LedgerError {
    LedgerError::Io {
        path: "the export".into(),
        what: "write it",
        source,
    }
}
