//! Tasks of one worker: what hyper wants spawned stays on the thread of its connection.

use std::future::Future;

/// Spawns onto the worker that runs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, task: F) {
        drop(tokio::task::spawn_local(task));
    }
}
