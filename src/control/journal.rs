//! The observations file: a thread that writes each observation as one JSON line, so that a slow disk delays nobody.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use crate::types::observation::Observation;

/// Observations that may wait for a slow writer (about 32 MB at the most).
const QUEUE: usize = 65_536;

/// Writes observations. Dropping it writes what is queued and ends the thread.
#[derive(Debug)]
pub struct Journal {
    queue: Option<SyncSender<Box<Observation>>>,
    thread: Option<JoinHandle<()>>,
    failing: Arc<AtomicBool>,
}

impl Journal {
    /// Appends to the file at `path`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn to_file(path: &Path) -> io::Result<Self> {
        let file: File = OpenOptions::new().create(true).append(true).open(path)?;
        Self::start(file)
    }

    /// Writes to standard output.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn to_stdout() -> io::Result<Self> {
        Self::start(io::stdout())
    }

    fn start(to: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(QUEUE);
        let failing = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&failing);
        let thread = std::thread::Builder::new()
            .name("fusebox-journal".to_owned())
            .spawn(move || write_all(&waiting, BufWriter::with_capacity(64 * 1024, to), &told))?;
        Ok(Self {
            queue: Some(queue),
            thread: Some(thread),
            failing,
        })
    }

    /// Queues a line; `false` when there was no room.
    pub fn write(&self, observation: Box<Observation>) -> bool {
        let Some(queue) = &self.queue else { return false };
        !matches!(
            queue.try_send(observation),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_))
        )
    }

    /// Whether the last line could not be written.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Writes until the queue is closed; flushes whenever it is empty, so that a line is there as soon as its exchange
/// ended and a burst still leaves in few writes.
fn write_all(waiting: &Receiver<Box<Observation>>, mut to: BufWriter<impl Write>, failing: &AtomicBool) {
    let mut line = Vec::with_capacity(1024);
    while let Ok(first) = waiting.recv() {
        let mut next = Some(first);
        let mut result = Ok(());
        while let Some(observation) = next {
            line.clear();
            if serde_json::to_writer(&mut line, &observation).is_ok() {
                line.push(b'\n');
                result = result.and(to.write_all(&line));
            }
            next = waiting.try_recv().ok();
        }
        report(result.and(to.flush()), failing);
    }
}

/// Says once that lines are lost, and once that they no longer are.
fn report(result: io::Result<()>, failing: &AtomicBool) {
    match result {
        Ok(()) => {
            if failing.swap(false, Ordering::Relaxed) {
                tracing::info!("observations are written again");
            }
        }
        Err(e) => {
            if !failing.swap(true, Ordering::Relaxed) {
                tracing::error!(error = %e, "observations cannot be written; traffic goes on");
            }
        }
    }
}
