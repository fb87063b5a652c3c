//! What is written in one transaction: records, observations, and the sums that go with them.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, params, params_from_iter};

use super::packed::{Numbers, pack};
use super::record::{
    ApprovalRow, DeliveryRow, IncidentRow, Key, LeaseRow, Record, SilenceRow, StateRow, TimelineRow,
    VersionRow,
};
use super::row::{Row, delete, upsert};
use super::sums::Sums;
use crate::types::observation::Observation;
use crate::types::time::Wall;

/// Bits of an observation's id below its time in milliseconds: so many may end in the same one.
pub(super) const ID_BITS: u32 = 20;
/// The last millisecond that an id can hold.
const LAST_MILLIS: i64 = (1 << (63 - ID_BITS)) - 1;
/// Names that are numbered; they come from clients. Beyond, and when longer, they are written out.
const MAX_NAMES: u32 = 65_536;
const MAX_NAME_BYTES: usize = 128;

/// The first id of a time.
pub(super) fn id_at(time: Wall) -> i64 {
    time.unix_millis().clamp(0, LAST_MILLIS) << ID_BITS
}

/// The time in an id.
pub(super) fn time_of(id: i64) -> Wall {
    Wall::from_unix_millis(id >> ID_BITS)
}

/// A text as a number by which it is searched; two texts may share one. FNV-1a, which is the same everywhere.
pub(super) fn hashed(text: &str) -> i64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.cast_signed()
}

/// Writes a record; whether it changed anything.
pub(super) fn write_record(connection: &Connection, record: &Record) -> rusqlite::Result<bool> {
    match record {
        Record::Incident(row) => put(connection, row),
        Record::Timeline(row) => put(connection, row),
        Record::Lease(row) => put(connection, row),
        Record::Approval(row) => put(connection, row),
        Record::Silence(row) => put(connection, row),
        Record::Version(row) => put(connection, row),
        Record::Delivery(row) => put(connection, row),
        Record::Audit(row) => put(connection, row),
        Record::State(row) => put(connection, row),
        Record::Forget(key) => forget(connection, key),
    }
}

fn put<R: Row>(connection: &Connection, row: &R) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached(&upsert::<R>())?;
    Ok(statement.execute(params_from_iter(row.values()))? > 0)
}

fn forget(connection: &Connection, key: &Key) -> rusqlite::Result<bool> {
    let one = |sql: &str, id: &str| connection.prepare_cached(sql)?.execute([id]);
    let changed = match key {
        Key::Incident(id) => one(&delete::<IncidentRow>(), id),
        Key::Lease(id) => one(&delete::<LeaseRow>(), id),
        Key::Approval(id) => one(&delete::<ApprovalRow>(), id),
        Key::Silence(id) => one(&delete::<SilenceRow>(), id),
        Key::Delivery(id) => one(&delete::<DeliveryRow>(), id),
        Key::State(key) => one(&delete::<StateRow>(), key),
        Key::Timeline(incident, seq) => connection
            .prepare_cached(&delete::<TimelineRow>())?
            .execute(params![incident, i64::try_from(*seq).unwrap_or(i64::MAX)]),
        Key::Version(agent, version) => connection
            .prepare_cached(&delete::<VersionRow>())?
            .execute([agent, version]),
    }?;
    Ok(changed > 0)
}

/// What the writer remembers about the observations in the file.
#[derive(Debug, Default)]
pub(super) struct Log {
    names: NameTable,
    last: i64,
    sums: Sums,
    row: Vec<u8>,
}

impl Log {
    /// As the file has it.
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut log = Self::default();
        let mut statement = connection.prepare("SELECT id, text FROM names")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, text): (u32, String) = (row.get(0)?, row.get(1)?);
            log.names.last = log.names.last.max(id);
            log.names.numbers.insert(text.into(), id);
        }
        log.last = connection.query_row("SELECT coalesce(max(id), 0) FROM observations", [], |r| r.get(0))?;
        Ok(log)
    }

    /// Writes the observations inside a transaction. After an error the log has to be read again.
    pub(super) fn write<'a>(
        &mut self,
        connection: &Connection,
        observations: impl Iterator<Item = &'a Observation>,
    ) -> rusqlite::Result<()> {
        self.sums.clear();
        {
            let mut insert = connection.prepare_cached(INSERT)?;
            for observation in observations {
                self.pack(observation);
                let id = self.next_id(connection, observation.time)?;
                let (agent, execution) = searched(observation);
                insert.execute(params![id, agent, execution, self.row])?;
                self.sums.add(observation);
            }
        }
        self.names.write_new(connection)?;
        self.sums.write(connection)
    }

    /// Packs an observation into `row`.
    fn pack(&mut self, observation: &Observation) {
        self.row.clear();
        let millis = observation.time.unix_millis();
        let timed = (0..=LAST_MILLIS).contains(&millis);
        pack(observation, timed, &mut self.names, &mut self.row);
    }

    /// An id of its own for that time.
    fn next_id(&mut self, connection: &Connection, time: Wall) -> rusqlite::Result<i64> {
        let first = id_at(time);
        let id = if first > self.last {
            first
        } else if self.last >> ID_BITS == first >> ID_BITS {
            self.last + 1
        } else {
            // Late: behind those of its millisecond.
            let end = first | ((1 << ID_BITS) - 1);
            let mut statement =
                connection.prepare_cached("SELECT max(id) FROM observations WHERE id BETWEEN ? AND ?")?;
            let found: Option<i64> = statement.query_row([first, end], |row| row.get(0))?;
            found.map_or(first, |id| id + 1)
        };
        self.last = self.last.max(id);
        Ok(id)
    }

    /// Writes an observation unless the file has it; the import's `claimed` keeps two that agree in everything apart.
    pub(super) fn import(
        &mut self,
        connection: &Connection,
        observation: &Observation,
    ) -> rusqlite::Result<bool> {
        self.pack(observation);
        self.names.write_new(connection)?;
        let first = id_at(observation.time);
        let end = first | ((1 << ID_BITS) - 1);
        let (agent, execution) = searched(observation);
        let found: Option<i64> = connection
            .prepare_cached(
                "SELECT min(id) FROM observations WHERE id BETWEEN ? AND ? AND agent = ? AND row = ?
                 AND id NOT IN (SELECT id FROM temp.claimed)",
            )?
            .query_row(params![first, end, agent, self.row], |row| row.get(0))?;
        let id = match found {
            Some(id) => id,
            None => {
                let id = self.next_id(connection, observation.time)?;
                connection
                    .prepare_cached(INSERT)?
                    .execute(params![id, agent, execution, self.row])?;
                self.sums.add(observation);
                id
            }
        };
        connection
            .prepare_cached("INSERT INTO temp.claimed (id) VALUES (?)")?
            .execute([id])?;
        Ok(found.is_none())
    }

    /// Writes the sums of what was imported.
    pub(super) fn finish_import(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        self.sums.write(connection)?;
        self.sums.clear();
        Ok(())
    }
}

const INSERT: &str = "INSERT INTO observations (id, agent, execution, row) VALUES (?, ?, ?, ?)";

/// The numbers by which an observation is found: an execution of its own is found by its request.
fn searched(observation: &Observation) -> (i64, Option<i64>) {
    let alone = observation.execution.as_str() == observation.request_id.as_str();
    let execution = (!alone).then(|| hashed(observation.execution.as_str()));
    (hashed(observation.agent.as_str()), execution)
}

/// Names by number. New ones are collected and written with the batch that uses them.
#[derive(Debug, Default)]
struct NameTable {
    numbers: HashMap<Arc<str>, u32>,
    last: u32,
    new: Vec<(u32, Arc<str>)>,
}

impl NameTable {
    fn write_new(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        if self.new.is_empty() {
            return Ok(());
        }
        let mut insert = connection.prepare_cached("INSERT INTO names (id, text) VALUES (?, ?)")?;
        for (id, text) in self.new.drain(..) {
            insert.execute(params![id, &*text])?;
        }
        Ok(())
    }
}

impl Numbers for NameTable {
    fn number(&mut self, name: &str) -> Option<u32> {
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        if self.last >= MAX_NAMES || name.len() > MAX_NAME_BYTES {
            return None;
        }
        self.last += 1;
        let text: Arc<str> = name.into();
        self.numbers.insert(Arc::clone(&text), self.last);
        self.new.push((self.last, text));
        Some(self.last)
    }
}
