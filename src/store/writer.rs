//! The one thread that writes: takes what is queued, writes it in one transaction, and says so; keeps what it cannot write.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::TransactionBehavior;
use rusqlite::ffi::ErrorCode;
use tokio::sync::oneshot;

use super::error::{LedgerError, NotDurable, is_corrupt};
use super::file::OpenFile;
use super::health::Status;
use super::pending::Pending;
use super::prune::{self, Retention};
use super::record::Record;
use super::tables::{Log, write_record};
use crate::clock::Clock;
use crate::telemetry::ledger::{OBSERVATIONS, RECORDS};
use crate::telemetry::metrics::Metrics;
use crate::types::observation::Observation;
use crate::types::time::Mono;

/// Observations that may wait (about 50 MB at the most).
pub(super) const QUEUE: usize = 65_536;
/// So many of them wake the writer before their time.
const WAKE: usize = 4_096;
/// How long an observation may wait for others before it is written.
const GATHER: Duration = Duration::from_millis(200);
/// How often the writer looks around when there is nothing to write.
const IDLE: Duration = Duration::from_secs(5);
/// How often it looks for what is old.
const PRUNE: Duration = Duration::from_secs(10);
/// How long it rests between two steps of that.
const STEP: Duration = Duration::from_millis(20);
/// First and longest pause between two attempts to write.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

type Reply = oneshot::Sender<Result<(), NotDurable>>;

/// What is queued, and how writing goes.
#[derive(Debug)]
pub(super) struct Inbox {
    state: Mutex<Queued>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Queued {
    #[expect(
        clippy::vec_box,
        reason = "they come boxed, and a queue of pointers is small when it is idle"
    )]
    observations: Vec<Box<Observation>>,
    records: Pending,
    replies: Vec<Reply>,
    /// Why nothing can be written at present.
    trouble: Option<Arc<str>>,
    closing: bool,
    closed: bool,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queued> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an observation; `false` when there was no room.
    pub(super) fn observe(&self, observation: Box<Observation>) -> bool {
        let mut queued = self.lock();
        if queued.observations.len() >= QUEUE || queued.closing {
            return false;
        }
        queued.observations.push(observation);
        let wake = matches!(queued.observations.len(), 1 | WAKE);
        drop(queued);
        if wake {
            self.wake.notify_one();
        }
        true
    }

    /// Queues records; how many had no room, and what will tell that the rest is durable.
    pub(super) fn record(&self, records: Vec<Record>) -> (u64, oneshot::Receiver<Result<(), NotDurable>>) {
        let (reply, receipt) = oneshot::channel();
        let mut queued = self.lock();
        if queued.closing {
            reply.send(Err(NotDurable::Closed)).ok();
            return (0, receipt);
        }
        let mut dropped = 0;
        for record in records {
            dropped += u64::from(!queued.records.push(record));
        }
        let answer = match &queued.trouble {
            _ if dropped > 0 => Some(NotDurable::Dropped),
            Some(why) => Some(NotDurable::Degraded { why: Arc::clone(why) }),
            None => None,
        };
        match answer {
            Some(why) => {
                reply.send(Err(why)).ok();
            }
            None => queued.replies.push(reply),
        }
        drop(queued);
        self.wake.notify_one();
        (dropped, receipt)
    }

    /// Asks the writer to write what is queued and to end.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_one();
    }

    /// From now on records are answered at once with `why`, or no longer.
    pub(super) fn trouble(&self, why: Option<Arc<str>>) {
        self.lock().trouble = why;
    }
}

/// Says that nobody writes any more, whatever ended the thread.
struct Farewell(Arc<Inbox>);

impl Drop for Farewell {
    fn drop(&mut self) {
        let mut queued = self.0.lock();
        queued.closing = true;
        queued.closed = true;
        queued.observations = Vec::new();
        for reply in queued.replies.drain(..) {
            reply.send(Err(NotDurable::Closed)).ok();
        }
    }
}

/// The state of the thread.
pub(super) struct Writer {
    pub(super) path: PathBuf,
    pub(super) keep: Retention,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: Arc<Status>,
    pub(super) inbox: Arc<Inbox>,
    /// `None` while it cannot be opened.
    pub(super) file: Option<OpenFile>,
    pub(super) batch: Batch,
}

/// What is being written, kept over attempts.
#[derive(Default)]
pub(super) struct Batch {
    #[expect(
        clippy::vec_box,
        reason = "they come boxed, and a queue of pointers is small when it is idle"
    )]
    observations: Vec<Box<Observation>>,
    records: Pending,
    replies: Vec<Reply>,
    /// What is known about the observations in the file; `None` has to be read.
    log: Option<Log>,
    pause: Option<Duration>,
    /// SQLite said that the file is broken.
    broken: bool,
    next_prune: Mono,
    /// There is more to prune.
    more: bool,
}

impl Batch {
    /// A batch of a ledger that could not be opened.
    pub(super) fn in_trouble() -> Self {
        Self {
            pause: Some(FIRST_PAUSE),
            ..Self::default()
        }
    }
}

impl Writer {
    /// Writes until the inbox is closed; `Err` says what stayed unwritten.
    pub(super) fn run(mut self) -> Result<(), LedgerError> {
        let _farewell = Farewell(Arc::clone(&self.inbox));
        loop {
            let closing = self.take();
            let failed = self.attempt().err();
            if closing && self.batch_is_closed() {
                let records = self.batch.records.len();
                return match failed {
                    Some(why) if records > 0 => Err(LedgerError::Unwritten { records, why }),
                    _ => Ok(()),
                };
            }
        }
    }

    /// Whether nothing came after what was taken last; then nothing comes any more.
    fn batch_is_closed(&self) -> bool {
        let queued = self.inbox.lock();
        queued.closing && queued.records.is_empty() && queued.observations.is_empty()
    }

    /// Waits for work, for an observation to gather company, or for the next attempt; takes what is there.
    fn take(&mut self) -> bool {
        let inbox = Arc::clone(&self.inbox);
        let mut queued = inbox.lock();
        let wait = |queued, time, on: fn(&mut Queued) -> bool| {
            let (queued, _) = inbox
                .wake
                .wait_timeout_while(queued, time, on)
                .unwrap_or_else(PoisonError::into_inner);
            queued
        };
        if let Some(pause) = self.batch.pause {
            queued = wait(queued, pause, |q| !q.closing);
        } else {
            let idle = if self.batch.more { STEP } else { IDLE };
            queued = wait(queued, idle, |q| {
                q.replies.is_empty() && q.observations.is_empty() && !q.closing
            });
            if !queued.observations.is_empty() {
                queued = wait(queued, GATHER, |q| {
                    q.replies.is_empty() && q.observations.len() < WAKE && !q.closing
                });
            }
        }
        if self.batch.observations.is_empty() {
            std::mem::swap(&mut self.batch.observations, &mut queued.observations);
        }
        let dropped = self.batch.records.append(&mut queued.records);
        self.batch.replies.append(&mut queued.replies);
        let closing = queued.closing;
        let waiting = queued.observations.len();
        drop(queued);
        let counts = self.metrics.ledger();
        if dropped > 0 {
            counts.lost(RECORDS, dropped);
        }
        counts.queued(OBSERVATIONS, self.batch.observations.len() + waiting);
        counts.queued(RECORDS, self.batch.records.len());
        closing
    }

    /// Writes the batch and tells whoever waits; `Err` says why it could not.
    fn attempt(&mut self) -> Result<(), Arc<str>> {
        match self.write() {
            Ok(()) => {
                self.batch.pause = None;
                self.inbox.trouble(None);
                self.status.fine(self.metrics.ledger());
                for reply in self.batch.replies.drain(..) {
                    reply.send(Ok(())).ok();
                }
                Ok(())
            }
            Err(error) => {
                let why: Arc<str> = error.to_string().into();
                self.metrics.ledger().transaction(false);
                let pause = self.batch.pause.map_or(FIRST_PAUSE, |p| p * 2);
                self.batch.pause = Some(pause.min(LONGEST_PAUSE));
                self.inbox.trouble(Some(Arc::clone(&why)));
                // Before anybody is told, so that whoever is can ask.
                self.status
                    .degraded(&why, self.batch.records.len(), self.metrics.ledger());
                for reply in self.batch.replies.drain(..) {
                    reply
                        .send(Err(NotDurable::Degraded {
                            why: Arc::clone(&why),
                        }))
                        .ok();
                }
                Err(why)
            }
        }
    }

    fn write(&mut self) -> Result<(), LedgerError> {
        self.reopen()?;
        let result = self.write_open();
        if let Err(LedgerError::Sql { source, .. }) = &result {
            // What a failed attempt left in memory is not what the file has.
            self.batch.log = None;
            self.batch.broken |= is_corrupt(source);
            let passing = matches!(
                source.sqlite_error_code(),
                Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
            );
            if !passing {
                self.file = None;
            }
        }
        result
    }

    /// Opens the file when it is not open, or is no longer where it was.
    fn reopen(&mut self) -> Result<(), LedgerError> {
        if let Some(file) = &self.file {
            if file.is_at(&self.path) {
                return Ok(());
            }
            tracing::error!(path = %self.path.display(), "the ledger was taken away; a new one begins");
            self.file = None;
        }
        self.batch.log = None;
        let (file, opened) = OpenFile::open(&self.path, self.clock.wall(), self.batch.broken)?;
        self.batch.broken = false;
        self.file = Some(file);
        if opened.fresh {
            self.status.renewed();
        }
        Ok(())
    }

    fn write_open(&mut self) -> Result<(), LedgerError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let batch = &mut self.batch;
        let counts = self.metrics.ledger();
        let sql = LedgerError::sql("write to it");
        if batch.log.is_none() {
            batch.log = Some(Log::read(&file.connection).map_err(&sql)?);
        }
        // In trouble, records first: they matter more, and take less room.
        let apart = batch.pause.is_some();
        let begin = TransactionBehavior::Immediate;
        if !batch.records.is_empty() || !batch.observations.is_empty() {
            let mut transaction = file.connection.transaction_with_behavior(begin).map_err(&sql)?;
            for record in batch.records.records() {
                write_record(&transaction, record).map_err(&sql)?;
            }
            if apart && !batch.records.is_empty() {
                transaction.commit().map_err(&sql)?;
                counts.transaction(true);
                counts.written(RECORDS, batch.records.len() as u64);
                batch.records.clear();
                transaction = file.connection.transaction_with_behavior(begin).map_err(&sql)?;
            }
            if let Some(log) = &mut batch.log {
                let observations = batch.observations.iter().map(|o| &**o);
                log.write(&transaction, observations).map_err(&sql)?;
            }
            transaction.commit().map_err(&sql)?;
            counts.transaction(true);
            counts.written(RECORDS, batch.records.len() as u64);
            counts.written(OBSERVATIONS, batch.observations.len() as u64);
            batch.records.clear();
            batch.observations.clear();
        } else if apart {
            // Nothing to write but to find out whether it could be.
            let try_out = "PRAGMA user_version = ";
            let sql_text = format!("{try_out}{}", super::schema::LATEST);
            file.connection.execute_batch(&sql_text).map_err(&sql)?;
        }
        let now = self.clock.mono();
        if now >= batch.next_prune {
            let more = prune::step(&mut file.connection, &self.keep, self.clock.wall()).map_err(&sql)?;
            batch.more = more;
            if !more {
                batch.next_prune = now.after(PRUNE);
            }
            counts.file_bytes(std::fs::metadata(&self.path).map_or(0, |m| m.len()));
        }
        Ok(())
    }
}
