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
use super::flights::Flights;
use super::noted::Noted;
use super::upstream::Pools;
use crate::clock::Clock;
use crate::enforce::breaker::Breakers;
use crate::enforce::chains::Chains;
use crate::enforce::slots::Slots;
use crate::enforce::snapshot::{CachedReader, Reader, Snapshot};
use crate::enforce::versions::Versions;
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
    /// What versions of agents are made of.
    pub versions: Arc<Versions>,
    /// How well the upstreams do that others stand in for.
    pub breakers: Arc<Breakers>,
    /// Upstreams that refused to report usage in streams when asked.
    pub unwilling: Unwilling,
    /// Names for exchanges whose client gave none.
    pub request_ids: RequestIds,
}

/// One worker: a thread with connections and upstream connections of its own.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) pools: Pools,
    /// Versions that were looked at lately.
    pub(super) noted: Noted,
    /// Exchanges that are on their way.
    pub(super) flights: Rc<Flights>,
    reader: RefCell<CachedReader>,
}

/// Upstreams that refused `include_usage` once; they are not asked again until a restart.
#[derive(Debug, Default)]
pub struct Unwilling(ArcSwap<HashSet<UpstreamName>>);

/// Characters of a request id that are the same for all of a process, and those of its count.
const PREFIX: usize = 20;
const COUNT: u32 = 8;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Makes request ids: a random prefix for the process and a count.
pub struct RequestIds {
    /// An id with a count of zero.
    zero: [u8; PREFIX + COUNT as usize],
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
            noted: Noted::default(),
            flights: Rc::default(),
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
        let mut zero = [b'0'; PREFIX + COUNT as usize];
        for (place, byte) in zero.iter_mut().zip(format!("req_{random:016x}").bytes()) {
            *place = byte;
        }
        Self {
            zero,
            next: AtomicU64::new(1),
        }
    }

    pub(super) fn next(&self) -> RequestId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        // Written in place: one piece of memory for each id.
        let mut id = self.zero;
        for (place, at) in id.iter_mut().skip(PREFIX).zip((0..COUNT).rev()) {
            let nibble = (count >> (4 * at)) & 15;
            *place = HEX.get(nibble as usize).copied().unwrap_or(b'0');
        }
        RequestId::from(std::str::from_utf8(&id).unwrap_or_default())
    }
}

impl Default for RequestIds {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RequestIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.zero))
    }
}
