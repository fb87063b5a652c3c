//! Reading the ledger: on a connection of its own, beside the writer, from a thread that may block.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use super::error::LedgerError;
use super::file::open_to_read;
use super::packed::{Names, unpack};
use super::record::{
    ApprovalRow, AuditRow, DeliveryRow, IncidentRow, LeaseRow, SilenceRow, StateRow, TimelineRow, VersionRow,
};
use super::row::{Column, Row, select};
use super::schema;
use super::sums::{Span, SumRow, VALUES};
use super::tables::{hashed, id_at, time_of};
use crate::types::observation::Observation;
use crate::types::time::Wall;

/// Rows of a page, unless asked otherwise, and at the most.
const PAGE: usize = 100;
const MOST: usize = 1_000;
/// Observations read at a time (about 1 MB).
const CHUNK: usize = 1_024;

/// Reads one ledger. Rows that are damaged are passed over, logged and counted.
#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    path: PathBuf,
    names: RefCell<NameCache>,
    damaged: Cell<u64>,
}

/// Which incidents to read. Empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IncidentFilter {
    /// In this state.
    pub state: Option<String>,
    /// About this agent.
    pub agent: Option<String>,
    /// Of this rule.
    pub rule: Option<String>,
    /// Opened then or later.
    pub since: Option<Wall>,
    /// At most so many; 0 is 100, and never more than 1,000.
    pub limit: usize,
    /// From [`Page::next`].
    pub cursor: Option<String>,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<R> {
    /// The rows.
    pub rows: Vec<R>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<String>,
}

/// Which observations to read. Empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObservationFilter {
    /// Ended then or later.
    pub from: Option<Wall>,
    /// Ended before.
    pub until: Option<Wall>,
    /// Of this agent.
    pub agent: Option<String>,
    /// Of this execution of several exchanges; an exchange that is an execution of its own is not found by it.
    pub execution: Option<String>,
}

/// What a ledger holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Its format.
    pub format: u32,
    /// Bytes of the file.
    pub bytes: u64,
    /// Rows of each table.
    pub rows: Vec<(&'static str, u64)>,
    /// When the oldest and the newest observation ended.
    pub observed: Option<(Wall, Wall)>,
}

impl Reader {
    /// Opens the ledger at `path` to read it, whether or not a fusebox has it open.
    ///
    /// # Errors
    /// When there is none, when it is not a ledger, or when a later fusebox made it.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let connection = open_to_read(path)?;
        connection
            .pragma_update(None, "cache_size", -8192)
            .map_err(LedgerError::sql("open it"))?;
        Ok(Self {
            connection,
            path: path.to_owned(),
            names: RefCell::default(),
            damaged: Cell::new(0),
        })
    }

    /// Incidents that an engine goes on with, oldest first.
    ///
    /// # Errors
    /// When the file cannot be read; so everywhere below.
    pub fn live_incidents(&self) -> Result<Vec<IncidentRow>, LedgerError> {
        self.list("WHERE live IS NOT NULL ORDER BY opened, id", vec![])
    }

    /// Incidents, newest first.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn incidents(&self, filter: &IncidentFilter) -> Result<Page<IncidentRow>, LedgerError> {
        let IncidentFilter {
            state,
            agent,
            rule,
            since,
            limit,
            cursor,
        } = filter;
        let limit = if *limit == 0 { PAGE } else { (*limit).min(MOST) };
        let mut conditions = vec!["true".to_owned()];
        let mut values: Vec<ToSqlOutput<'_>> = Vec::new();
        for (column, value) in [("state", state), ("agent", agent), ("rule", rule)] {
            if let Some(value) = value {
                conditions.push(format!("{column} = ?"));
                values.push(value.put());
            }
        }
        if let Some(since) = since {
            conditions.push("opened >= ?".to_owned());
            values.push(since.put());
        }
        // A cursor that we did not make ends the list.
        let place = cursor.as_deref().map(|c| c.split_once('.').unwrap_or_default());
        let place = place.map(|(opened, id)| (opened.parse().unwrap_or(i64::MIN), id.to_owned()));
        if let Some((opened, id)) = &place {
            conditions.push("(opened, id) < (?, ?)".to_owned());
            values.push(ToSqlOutput::from(*opened));
            values.push(id.put());
        }
        let rest = format!(
            "WHERE {} ORDER BY opened DESC, id DESC LIMIT {}",
            conditions.join(" AND "),
            limit + 1
        );
        let mut rows: Vec<IncidentRow> = self.list(&rest, values)?;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = match rows.last() {
            Some(last) if more => Some(format!("{}.{}", last.opened.unix_millis(), last.id)),
            _ => None,
        };
        Ok(Page { rows, next })
    }

    /// One incident.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn incident(&self, id: &str) -> Result<Option<IncidentRow>, LedgerError> {
        let found = self.list("WHERE id = ?", vec![ToSqlOutput::from(id)])?;
        Ok(found.into_iter().next())
    }

    /// The timeline of an incident, in order.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn timeline(&self, incident: &str) -> Result<Vec<TimelineRow>, LedgerError> {
        self.list(
            "WHERE incident = ? ORDER BY seq",
            vec![ToSqlOutput::from(incident)],
        )
    }

    /// Leases in force, first to expire first. One that expired while nobody looked is among them.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn active_leases(&self) -> Result<Vec<LeaseRow>, LedgerError> {
        self.list("WHERE state = 'active' ORDER BY expires, id", vec![])
    }

    /// All leases of an incident.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn leases_of(&self, incident: &str) -> Result<Vec<LeaseRow>, LedgerError> {
        self.list(
            "WHERE incident = ? ORDER BY since, id",
            vec![ToSqlOutput::from(incident)],
        )
    }

    /// Approvals, oldest first; of one state where that is given.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn approvals(&self, state: Option<&str>) -> Result<Vec<ApprovalRow>, LedgerError> {
        let rest = "WHERE ?1 IS NULL OR state = ?1 ORDER BY requested, id";
        self.list(rest, vec![state.map(str::to_owned).put()])
    }

    /// Approvals of an incident.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn approvals_of(&self, incident: &str) -> Result<Vec<ApprovalRow>, LedgerError> {
        self.list(
            "WHERE incident = ? ORDER BY requested, id",
            vec![ToSqlOutput::from(incident)],
        )
    }

    /// Silences and maintenance windows, past ones too, by their beginning.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn silences(&self) -> Result<Vec<SilenceRow>, LedgerError> {
        self.list("ORDER BY starts, id", vec![])
    }

    /// Versions by agent and first sight; of one agent where that is given.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn versions(&self, agent: Option<&str>) -> Result<Vec<VersionRow>, LedgerError> {
        let rest = "WHERE ?1 IS NULL OR agent = ?1 ORDER BY agent, first_seen, version";
        self.list(rest, vec![agent.map(str::to_owned).put()])
    }

    /// Deliveries that are still to be made, oldest first.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn queued_deliveries(&self) -> Result<Vec<DeliveryRow>, LedgerError> {
        self.list("WHERE state = 'queued' ORDER BY created, id", vec![])
    }

    /// Deliveries that were given up, newest first; at most 1,000.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn dead_deliveries(&self) -> Result<Vec<DeliveryRow>, LedgerError> {
        self.list(
            &format!("WHERE state = 'dead' ORDER BY created DESC, id DESC LIMIT {MOST}"),
            vec![],
        )
    }

    /// Deliveries about an incident, oldest first.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn deliveries_of(&self, incident: &str) -> Result<Vec<DeliveryRow>, LedgerError> {
        self.list(
            "WHERE incident = ? ORDER BY created, id",
            vec![ToSqlOutput::from(incident)],
        )
    }

    /// The last acts of operators, newest first; at most `limit`, 0 is 100, and never more than 1,000.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn audit(&self, limit: usize) -> Result<Vec<AuditRow>, LedgerError> {
        let limit = if limit == 0 { PAGE } else { limit.min(MOST) };
        self.list(
            &format!("ORDER BY at DESC, who DESC, via DESC, what DESC LIMIT {limit}"),
            vec![],
        )
    }

    /// The value of a key.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn state(&self, key: &str) -> Result<Option<String>, LedgerError> {
        let found: Vec<StateRow> = self.list("WHERE key = ?", vec![ToSqlOutput::from(key)])?;
        Ok(found.into_iter().next().map(|row| row.document))
    }

    /// All keys that begin with `prefix`, in order.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn states(&self, prefix: &str) -> Result<Vec<StateRow>, LedgerError> {
        let rest = "WHERE substr(key, 1, length(?1)) = ?1 ORDER BY key";
        self.list(rest, vec![ToSqlOutput::from(prefix)])
    }

    /// Sums of one span that begin at `from` or later and before `until`, by start.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn sums(&self, span: Span, from: Wall, until: Wall) -> Result<Vec<SumRow>, LedgerError> {
        let mut sums = Vec::new();
        self.each_sum(
            "WHERE span = ? AND start >= ? AND start < ? ORDER BY start, agent, model, upstream",
            &[span.seconds(), from.unix_millis(), until.unix_millis()],
            |sum| {
                sums.push(sum);
                Ok(())
            },
        )?;
        Ok(sums)
    }

    /// Observations in the order of their time. They are read a thousand at a time, so that the writer is not held
    /// up; those that come meanwhile are among them, those that go meanwhile are not.
    pub fn observations(&self, filter: ObservationFilter) -> Observations<'_> {
        let from = filter.from.map_or(0, id_at);
        let until = filter.until.map_or(i64::MAX, id_at);
        Observations {
            reader: self,
            next: from,
            until,
            filter,
            chunk: Vec::new().into_iter(),
            ended: false,
        }
    }

    /// What the ledger holds.
    ///
    /// # Errors
    /// See [`Reader::live_incidents`].
    pub fn info(&self) -> Result<Info, LedgerError> {
        let read = LedgerError::sql("read it");
        let mut rows = Vec::new();
        for table in schema::RECORD_TABLES.into_iter().chain(["observations", "sums"]) {
            let sql = format!("SELECT count(*) FROM \"{table}\"");
            let count: i64 = self
                .connection
                .query_row(&sql, [], |row| row.get(0))
                .map_err(&read)?;
            rows.push((table, u64::try_from(count).unwrap_or(0)));
        }
        let ends = |sql| {
            self.connection
                .query_row(sql, [], |row| row.get::<_, Option<i64>>(0))
        };
        let oldest = ends("SELECT min(id) FROM observations").map_err(&read)?;
        let newest = ends("SELECT max(id) FROM observations").map_err(&read)?;
        Ok(Info {
            format: schema::version(&self.connection).map_err(&read)?,
            bytes: std::fs::metadata(&self.path).map_or(0, |m| m.len()),
            rows,
            observed: oldest.map(time_of).zip(newest.map(time_of)),
        })
    }

    /// Reads all of the file; what is wrong with it, nothing when all is well.
    ///
    /// # Errors
    /// When the file cannot be read at all.
    pub fn check(&self) -> Result<Vec<String>, LedgerError> {
        let read = LedgerError::sql("check it");
        let mut statement = self.connection.prepare("PRAGMA integrity_check").map_err(&read)?;
        let said = statement
            .query_map([], |row| row.get::<_, String>(0))
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(&read)?;
        let mut wrong: Vec<String> = said.into_iter().filter(|line| line != "ok").collect();
        if !wrong.is_empty() {
            return Ok(wrong);
        }
        let before = self.damaged.get();
        self.each_record(|_, _| Ok(()))?;
        self.each_sum("", &[], |_| Ok(()))?;
        for observation in self.observations(ObservationFilter::default()) {
            observation?;
        }
        let damaged = self.damaged.get() - before;
        if damaged > 0 {
            wrong.push(format!(
                "{damaged} rows do not hold what they should; the log names them"
            ));
        }
        Ok(wrong)
    }

    /// How many damaged rows were passed over.
    pub fn damaged(&self) -> u64 {
        self.damaged.get()
    }

    /// Hands over every record as a line for export, table by table.
    pub(super) fn each_record(
        &self,
        mut take: impl FnMut(&'static str, &dyn erased::Line) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        self.each::<IncidentRow>("ORDER BY opened, id", vec![], |row| {
            take(IncidentRow::TABLE, &row)
        })?;
        self.each::<TimelineRow>("ORDER BY incident, seq", vec![], |row| {
            take(TimelineRow::TABLE, &row)
        })?;
        self.each::<LeaseRow>("ORDER BY since, id", vec![], |row| take(LeaseRow::TABLE, &row))?;
        self.each::<ApprovalRow>("ORDER BY requested, id", vec![], |row| {
            take(ApprovalRow::TABLE, &row)
        })?;
        self.each::<SilenceRow>("ORDER BY starts, id", vec![], |row| take(SilenceRow::TABLE, &row))?;
        self.each::<VersionRow>("ORDER BY agent, version", vec![], |row| {
            take(VersionRow::TABLE, &row)
        })?;
        self.each::<DeliveryRow>("ORDER BY created, id", vec![], |row| {
            take(DeliveryRow::TABLE, &row)
        })?;
        self.each::<AuditRow>("ORDER BY at, who, via, what, detail", vec![], |row| {
            take(AuditRow::TABLE, &row)
        })?;
        self.each::<StateRow>("ORDER BY key", vec![], |row| take(StateRow::TABLE, &row))
    }

    /// Hands over every sum that `rest` selects.
    pub(super) fn each_sum(
        &self,
        rest: &str,
        values: &[i64],
        mut take: impl FnMut(SumRow) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let read = LedgerError::sql("read it");
        let sql = format!(
            "SELECT span, start, agent, model, upstream, {} FROM sums {rest}",
            VALUES.join(", ")
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(&read)?;
        let mut rows = statement.query(params_from_iter(values)).map_err(&read)?;
        while let Some(row) = rows.next().map_err(&read)? {
            match sum(row) {
                Some(sum) => take(sum)?,
                None => self.pass_over("sums", "a value"),
            }
        }
        Ok(())
    }

    /// Reads everything that follows as of one moment, whatever is written meanwhile.
    pub(super) fn as_of_now(&self) -> Result<rusqlite::Transaction<'_>, LedgerError> {
        self.connection
            .unchecked_transaction()
            .map_err(LedgerError::sql("read it"))
    }

    fn list<R: Row>(&self, rest: &str, values: Vec<ToSqlOutput<'_>>) -> Result<Vec<R>, LedgerError> {
        let mut rows = Vec::new();
        self.each(rest, values, |row| {
            rows.push(row);
            Ok(())
        })?;
        Ok(rows)
    }

    fn each<R: Row>(
        &self,
        rest: &str,
        values: Vec<ToSqlOutput<'_>>,
        mut take: impl FnMut(R) -> Result<(), LedgerError>,
    ) -> Result<(), LedgerError> {
        let read = LedgerError::sql("read it");
        let mut statement = self
            .connection
            .prepare_cached(&select::<R>(rest))
            .map_err(&read)?;
        let mut rows = statement.query(params_from_iter(values)).map_err(&read)?;
        while let Some(row) = rows.next().map_err(&read)? {
            match R::read(row) {
                Ok(row) => take(row)?,
                Err(what) => self.pass_over(R::TABLE, what),
            }
        }
        Ok(())
    }

    fn pass_over(&self, table: &'static str, what: &str) {
        tracing::error!(table, what, "a row of the ledger is damaged and passed over");
        self.damaged.set(self.damaged.get() + 1);
    }

    /// The next observations of a range, by id.
    fn chunk(&self, from: i64, until: i64, filter: &ObservationFilter) -> Result<Chunk, LedgerError> {
        let read = LedgerError::sql("read it");
        let mut sql = "SELECT id, row FROM observations WHERE id >= ? AND id < ?".to_owned();
        let mut values = vec![from, until];
        for (column, text) in [("agent", &filter.agent), ("execution", &filter.execution)] {
            if let Some(text) = text {
                sql.push_str(&format!(" AND {column} = ?"));
                values.push(hashed(text));
            }
        }
        sql.push_str(&format!(" ORDER BY id LIMIT {CHUNK}"));
        let mut statement = self.connection.prepare_cached(&sql).map_err(&read)?;
        let mut rows = statement.query(params_from_iter(values)).map_err(&read)?;
        let mut names = self.names.borrow_mut();
        let mut chunk = Chunk {
            observations: Vec::with_capacity(CHUNK),
            next: None,
        };
        let mut seen = 0;
        while let Some(row) = rows.next().map_err(&read)? {
            let id = row.get(0).map_err(&read)?;
            seen += 1;
            chunk.next = (seen == CHUNK).then_some(id + 1);
            let bytes = row
                .get_ref(1)
                .ok()
                .and_then(|v| v.as_blob().ok())
                .unwrap_or_default();
            let mut names = Known {
                names: &mut names,
                connection: &self.connection,
            };
            match unpack(bytes, time_of(id), &mut names) {
                // Two texts may have one hash.
                Ok(o) if filter.agent.as_ref().is_some_and(|a| a != o.agent.as_str()) => {}
                Ok(o)
                    if filter
                        .execution
                        .as_ref()
                        .is_some_and(|e| e != o.execution.as_str()) => {}
                Ok(observation) => chunk.observations.push(observation),
                Err(what) => self.pass_over("observations", what),
            }
        }
        Ok(chunk)
    }
}

/// A row that can be written as a line of export, whatever its table.
pub(super) mod erased {
    /// See the module.
    pub(in crate::store) trait Line {
        /// Writes it as a JSON object.
        fn write(&self, to: &mut Vec<u8>) -> serde_json::Result<()>;
    }

    impl<R: serde::Serialize> Line for R {
        fn write(&self, to: &mut Vec<u8>) -> serde_json::Result<()> {
            serde_json::to_writer(to, self)
        }
    }
}

struct Chunk {
    observations: Vec<Observation>,
    /// Where the rest begins; `None` when there is none.
    next: Option<i64>,
}

/// Observations of a [`Reader`], in the order of their time.
#[derive(Debug)]
pub struct Observations<'a> {
    reader: &'a Reader,
    next: i64,
    until: i64,
    filter: ObservationFilter,
    chunk: std::vec::IntoIter<Observation>,
    ended: bool,
}

impl Iterator for Observations<'_> {
    type Item = Result<Observation, LedgerError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(observation) = self.chunk.next() {
                return Some(Ok(observation));
            }
            if self.ended {
                return None;
            }
            match self.reader.chunk(self.next, self.until, &self.filter) {
                Ok(Chunk { observations, next }) => {
                    self.chunk = observations.into_iter();
                    match next {
                        Some(next) => self.next = next,
                        None => self.ended = true,
                    }
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Names by number, as far as they were needed.
#[derive(Debug, Default)]
struct NameCache(Vec<Option<Arc<str>>>);

struct Known<'a> {
    names: &'a mut NameCache,
    connection: &'a Connection,
}

impl Names for Known<'_> {
    fn name(&mut self, number: u32) -> Option<Arc<str>> {
        let at = usize::try_from(number).ok()?;
        if let Some(Some(name)) = self.names.0.get(at) {
            return Some(Arc::clone(name));
        }
        let mut statement = self
            .connection
            .prepare_cached("SELECT text FROM names WHERE id = ?")
            .ok()?;
        let text: Option<String> = statement.query_row([number], |row| row.get(0)).optional().ok()?;
        let text: Arc<str> = text?.into();
        if self.names.0.len() <= at {
            self.names.0.resize(at + 1, None);
        }
        if let Some(place) = self.names.0.get_mut(at) {
            *place = Some(Arc::clone(&text));
        }
        Some(text)
    }
}

fn sum(row: &rusqlite::Row<'_>) -> Option<SumRow> {
    let text = |at: usize| row.get::<_, String>(at).ok();
    let count = |at: usize| row.get::<_, i64>(at).ok().and_then(|n| u64::try_from(n).ok());
    Some(SumRow {
        span: Span::of(row.get(0).ok()?)?,
        start: Wall::from_unix_millis(row.get(1).ok()?),
        agent: text(2)?,
        model: text(3)?,
        upstream: text(4)?,
        requests: count(5)?,
        errors: count(6)?,
        input_tokens: count(7)?,
        output_tokens: count(8)?,
        cached_tokens: count(9)?,
        cost_nanos: count(10)?,
        duration_us: count(11)?,
    })
}
