//! What every test needs: a scripted upstream, plain clients, the started program, and patience with a deadline.

pub(crate) mod chance;
pub(crate) mod client;
pub(crate) mod fusebox;
pub(crate) mod h2;
pub(crate) mod http1;
pub(crate) mod inside;
pub(crate) mod path;
pub(crate) mod schema;
pub(crate) mod tls;
pub(crate) mod upstream;

use std::time::Duration;

use ::fusebox::clock::Clock;

/// How long a condition may take to become true on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// Polls `probe` until it gives something; fails loudly with `what` when that takes too long.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    match waited.await {
        Ok(found) => found,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// Waits for `work`; fails loudly when it takes longer than [`PATIENCE`].
pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

/// How long `work` took, and what came of it.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let clock = Clock::system();
    let begun = clock.mono();
    let done = work.await;
    (done, clock.mono().since(begun))
}
