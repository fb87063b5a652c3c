//! The end of a proxy: first no new work, then no work at all.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// Tells every connection of every worker when to finish and when to stop.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    begun: CancellationToken,
    over: CancellationToken,
    connections: TaskTracker,
}

impl Drain {
    /// Stops accepting; connections finish what is in flight.
    pub fn begin(&self) {
        self.begun.cancel();
        self.connections.close();
    }

    /// Cuts whatever is still in flight.
    pub fn end(&self) {
        self.over.cancel();
    }

    /// Waits until every connection is closed; only after [`Drain::begin`].
    pub async fn finished(&self) {
        self.connections.wait().await;
    }

    /// Connections that are still open.
    pub fn open_connections(&self) -> usize {
        self.connections.len()
    }

    /// Waits until [`Drain::begin`] was called.
    pub async fn begun(&self) {
        self.begun.cancelled().await;
    }

    /// Whether [`Drain::begin`] was called.
    pub fn is_begun(&self) -> bool {
        self.begun.is_cancelled()
    }

    pub(super) async fn over(&self) {
        self.over.cancelled().await;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    pub(super) fn open(&self) -> TaskTrackerToken {
        self.connections.token()
    }
}
