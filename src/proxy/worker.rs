//! What all workers share, and what one worker keeps for itself.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio::sync::Semaphore;

use super::drain::Drain;
use super::upstream::Pools;
use crate::clock::Clock;
use crate::enforce::chains::Chains;
use crate::enforce::slots::Slots;
use crate::enforce::snapshot::{CachedReader, Reader, Snapshot};
use crate::telemetry::metrics::Metrics;
use crate::types::ids::{RequestId, UpstreamName};
use crate::types::observation::Report;

/// What all workers share.
pub struct Shared {
    /// Where the time comes from.
    pub clock: Clock,
    /// Policy and directives in force.
    pub reader: Reader,
    /// What is known of each agent on this side.
    pub slots: Arc<Slots>,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Takes each finished exchange, and long ones while they run; must not wait.
    pub observer: Box<dyn Fn(Report) + Send + Sync>,
    /// When to finish and when to stop.
    pub drain: Drain,
    /// Bounds the connections of all listeners together.
    pub connections: Arc<Semaphore>,
    /// Requests that are held back at this moment.
    pub waiting: Arc<AtomicUsize>,
    /// Which execution an answer belongs to, for the requests that go on from it.
    pub chains: Chains,
    /// Upstreams that refused to report usage in streams when asked.
    pub unwilling: Unwilling,
    /// Names for exchanges whose client gave none.
    pub request_ids: RequestIds,
}

/// One worker: a thread with connections and upstream connections of its own.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) pools: Pools,
    reader: RefCell<CachedReader>,
}

/// Upstreams that refused `include_usage` once; they are not asked again until a restart.
#[derive(Debug, Default)]
pub struct Unwilling(ArcSwap<HashSet<UpstreamName>>);

/// Makes request ids: a random prefix for the process and a count.
pub struct RequestIds {
    prefix: String,
    next: AtomicU64,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>) -> Rc<Self> {
        let reader = RefCell::new(shared.reader.cached());
        Rc::new(Self {
            pools: Pools::new(shared.clock.clone()),
            shared,
            reader,
        })
    }

    /// Policy and directives as of now; one request asks once.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.reader.borrow_mut().load()
    }
}

impl Unwilling {
    pub(super) fn contains(&self, upstream: &UpstreamName) -> bool {
        let known = self.0.load();
        !known.is_empty() && known.contains(upstream)
    }

    pub(super) fn insert(&self, upstream: &UpstreamName) {
        self.0.rcu(|known| {
            let mut known = HashSet::clone(known);
            known.insert(upstream.clone());
            known
        });
    }
}

impl RequestIds {
    /// Ids that no other process makes, as far as 64 random bits can tell.
    pub fn new() -> Self {
        let random = uuid::Uuid::now_v7().as_u64_pair().1;
        Self {
            prefix: format!("req_{random:016x}"),
            next: AtomicU64::new(1),
        }
    }

    pub(super) fn next(&self) -> RequestId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let mut id = String::with_capacity(self.prefix.len() + 16);
        id.push_str(&self.prefix);
        for nibble in (0..8).rev().map(|i| (count >> (4 * i)) & 15) {
            id.push(char::from_digit(u32::try_from(nibble).unwrap_or(0), 16).unwrap_or('0'));
        }
        RequestId::from(id)
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RequestIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)
    }
}
