//! The ledger as its users see it: observations and records go in without waiting, receipts say when they are durable.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::{LedgerError, NotDurable};
use super::file::{OpenFile, Opened};
use super::health::{Health, Status};
use super::prune::Retention;
use super::reader::Reader;
use super::record::Record;
use super::writer::{Batch, Inbox, Writer};
use crate::clock::Clock;
use crate::telemetry::ledger::{OBSERVATIONS, RECORDS};
use crate::telemetry::metrics::Metrics;
use crate::types::observation::Observation;

/// Where a ledger is, and how much it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerOptions {
    /// The file; its directory is made when missing.
    pub path: PathBuf,
    /// How long observations are kept.
    pub keep_observations: Duration,
    /// Beyond this size of the file in bytes the oldest observations go before their time.
    pub max_bytes: u64,
    /// How long closed incidents and what belongs to them, acts and idle versions are kept.
    pub keep_incidents: Duration,
}

impl LedgerOptions {
    /// A ledger at `path` that keeps as much as the configuration does by default.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            keep_observations: Duration::from_secs(7 * 86_400),
            max_bytes: 2 << 30,
            keep_incidents: Duration::from_secs(90 * 86_400),
        }
    }
}

/// The durable record of observations, incidents and decisions. Cheap to clone; the last clone to go closes it.
#[derive(Debug, Clone)]
pub struct Ledger(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    inbox: Arc<Inbox>,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    thread: Mutex<Option<JoinHandle<Result<(), LedgerError>>>>,
}

impl Ledger {
    /// Opens the ledger, or makes one. A broken file is set aside and a new one begun; a file that cannot be written
    /// at present is tried again while records are kept in memory: [`Opened`] says all of that.
    ///
    /// Blocks for as long as the file is checked.
    ///
    /// # Errors
    /// When a later fusebox or another program made the file, when another process has it open, when the path leads to
    /// something other than a file, or when no thread can be started. Nothing was touched then.
    pub fn open(
        options: LedgerOptions,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<(Self, Opened), LedgerError> {
        let LedgerOptions {
            path,
            keep_observations,
            max_bytes,
            keep_incidents,
        } = options;
        let status = Arc::new(Status::new(clock.clone()));
        let inbox = Arc::new(Inbox::new());
        let (file, opened, batch) = match OpenFile::open(&path, clock.wall(), false) {
            Ok((file, opened)) => (Some(file), opened, Batch::default()),
            Err(error) if refuses(&error) => return Err(error),
            Err(error) => {
                let why: Arc<str> = error.to_string().into();
                status.degraded(&why, 0, metrics.ledger());
                inbox.trouble(Some(Arc::clone(&why)));
                let opened = Opened {
                    degraded: Some(why),
                    ..Opened::default()
                };
                (None, opened, Batch::in_trouble())
            }
        };
        let writer = Writer {
            path: path.clone(),
            keep: Retention {
                observations: keep_observations,
                bytes: max_bytes,
                incidents: keep_incidents,
            },
            clock,
            metrics: Arc::clone(&metrics),
            status: Arc::clone(&status),
            inbox: Arc::clone(&inbox),
            file,
            batch,
        };
        let thread = std::thread::Builder::new()
            .name("fusebox-ledger".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| LedgerError::Io {
                path: path.clone(),
                what: "start its thread",
                source,
            })?;
        let inner = Inner {
            path,
            inbox,
            status,
            metrics,
            thread: Mutex::new(Some(thread)),
        };
        Ok((Self(Arc::new(inner)), opened))
    }

    /// Queues an observation. Never waits; `false` when there was no room, which is counted.
    pub fn observe(&self, observation: Box<Observation>) -> bool {
        let taken = self.0.inbox.observe(observation);
        if !taken {
            self.0.metrics.ledger().lost(OBSERVATIONS, 1);
        }
        taken
    }

    /// Queues records, to be written together. Never waits; they are written whether or not the receipt is.
    pub fn record(&self, records: Vec<Record>) -> Receipt {
        let (dropped, receipt) = self.0.inbox.record(records);
        if dropped > 0 {
            self.0.metrics.ledger().lost(RECORDS, dropped);
        }
        Receipt(receipt)
    }

    /// Whether it writes.
    pub fn health(&self) -> Health {
        self.0.status.health()
    }

    /// How often the file was lost while running and a new one begun. When this grows, whoever has state that lasts
    /// records it once more.
    pub fn renewals(&self) -> u64 {
        self.0.status.renewals()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A reader with a connection of its own, for one blocking thread.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn reader(&self) -> Result<Reader, LedgerError> {
        Reader::open(&self.0.path)
    }

    /// Writes all that is queued and closes the file. Blocks until then; what comes later is refused.
    ///
    /// # Errors
    /// How many records could not be written, and why.
    pub fn close(&self) -> Result<(), LedgerError> {
        self.0.close()
    }
}

impl Inner {
    fn close(&self) -> Result<(), LedgerError> {
        self.inbox.close();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            None => Ok(()),
            Some(Ok(result)) => result,
            Some(Err(_)) => Err(LedgerError::Unwritten {
                records: 0,
                why: "its thread panicked".into(),
            }),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::error!(%error, "the ledger was left");
        }
    }
}

/// Whether trying again could do harm, or is pointless.
fn refuses(error: &LedgerError) -> bool {
    match error {
        LedgerError::Newer { .. } | LedgerError::Foreign { .. } | LedgerError::InUse { .. } => true,
        LedgerError::Io { source, .. } => source.kind() == std::io::ErrorKind::InvalidInput,
        _ => false,
    }
}

/// Resolves when the records are durable, or with the reason why they are not.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<(), NotDurable>>);

impl Receipt {
    /// Waits, outside of a runtime.
    ///
    /// # Errors
    /// Why the records are not durable.
    pub fn wait(self) -> Result<(), NotDurable> {
        self.0.blocking_recv().unwrap_or(Err(NotDurable::Closed))
    }
}

impl Future for Receipt {
    type Output = Result<(), NotDurable>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0)
            .poll(context)
            .map(|result| result.unwrap_or(Err(NotDurable::Closed)))
    }
}
