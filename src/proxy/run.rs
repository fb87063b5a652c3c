//! One worker: a thread with a runtime of its own, its share of every listener, and its own upstream connections.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::time::sleep;

use super::accept::{self, Listening};
use super::flights;
use super::worker::{Shared, Worker};

/// How often idle upstream connections are looked at.
const SWEEP: Duration = Duration::from_secs(10);

/// Serves `listeners` on this thread until the drain is over.
///
/// One single-threaded runtime per core with listeners and upstream connections of its own: no request ever crosses
/// threads, and what handles it needs no lock.
///
/// # Errors
/// When the runtime or a socket cannot be set up.
pub fn run_worker(shared: Arc<Shared>, listeners: Vec<Listening>) -> io::Result<()> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    let drain = shared.drain.clone();
    runtime.block_on(async move {
        let worker = Worker::new(shared);
        let mut accepting = Vec::with_capacity(listeners.len());
        for listening in listeners {
            accepting.push(tokio::task::spawn_local(accept::run(
                Rc::clone(&worker),
                listening,
            )));
        }
        let sweeping = {
            let worker = Rc::clone(&worker);
            tokio::task::spawn_local(async move {
                loop {
                    sleep(SWEEP).await;
                    let policy = Arc::clone(&worker.snapshot().policy);
                    worker.pools.sweep(&policy.upstreams);
                    let is_known = |name: &_| policy.upstreams.iter().any(|u| u.name == *name);
                    worker.shared.breakers.retain(is_known);
                }
            })
        };
        let changes = worker.shared.reader.changes();
        let watching = tokio::task::spawn_local(flights::watch(Rc::clone(&worker), changes));
        let mut failed = None;
        for task in accepting {
            match task.await {
                Ok(Ok(())) => {}
                Ok(Err(e)) => failed = Some(e),
                Err(e) => failed = Some(io::Error::other(e)),
            }
        }
        tokio::select! {
            () = drain.finished() => {}
            () = drain.over() => {
                // A moment for connections to notice, so that their exchanges are accounted for.
                tokio::time::timeout(Duration::from_millis(200), drain.finished()).await.ok();
            }
        }
        sweeping.abort();
        watching.abort();
        failed.map_or(Ok(()), Err)
    })
}
