//! The one snapshot that a request reads: policy and directives together, published whole.

use std::fmt;
use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};
use tokio::sync::watch;

use super::policy::Policy;
use crate::types::directive::DirectiveSet;

/// Policy and directives as of one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The configuration's part.
    pub policy: Arc<Policy>,
    /// The incidents' part.
    pub directives: Arc<DirectiveSet>,
}

/// Publishes snapshots; there is one.
#[derive(Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<Snapshot>>,
    told: watch::Sender<()>,
}

/// Reads snapshots; as many as there are workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    current: Arc<ArcSwap<Snapshot>>,
    told: watch::Receiver<()>,
}

/// Tells one thread that other directives are in force.
#[derive(Debug)]
pub struct Changes(watch::Receiver<()>);

/// A reader that remembers what it read (arc_swap::cache): reading an unchanged snapshot costs one atomic load.
///
/// What it hands out is a copy of its own, made when something was published: threads that count references of one
/// `Arc` for every request would pass its cache line to and fro.
pub struct CachedReader {
    cache: Cache<Arc<ArcSwap<Snapshot>>, Arc<Snapshot>>,
    /// The published snapshot that `own` is a copy of.
    seen: Arc<Snapshot>,
    own: Arc<Snapshot>,
}

impl Publisher {
    /// A publisher of `policy` with no directives, and its reader.
    pub fn new(policy: Arc<Policy>) -> (Self, Reader) {
        let current = Arc::new(ArcSwap::from_pointee(Snapshot {
            policy,
            directives: Arc::default(),
        }));
        let (told, heard) = watch::channel(());
        let reader = Reader {
            current: Arc::clone(&current),
            told: heard,
        };
        (Self { current, told }, reader)
    }

    /// Puts another policy in force; the directives stay.
    pub fn publish_policy(&self, policy: Arc<Policy>) {
        // Read, copy, update: the two halves are published by different tasks and neither may undo the other.
        self.current.rcu(|now| Snapshot {
            policy: Arc::clone(&policy),
            directives: Arc::clone(&now.directives),
        });
    }

    /// Puts other directives in force; the policy stays.
    pub fn publish_directives(&self, directives: Arc<DirectiveSet>) {
        self.current.rcu(|now| Snapshot {
            policy: Arc::clone(&now.policy),
            directives: Arc::clone(&directives),
        });
        self.told.send_replace(());
    }
}

impl Reader {
    /// What is in force.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Hears of every publication of directives from now on.
    pub fn changes(&self) -> Changes {
        let mut told = self.told.clone();
        told.mark_unchanged();
        Changes(told)
    }

    /// A reader for one thread.
    pub fn cached(&self) -> CachedReader {
        let mut cache = Cache::new(Arc::clone(&self.current));
        let seen = Arc::clone(cache.load());
        let own = Arc::new(Snapshot::clone(&seen));
        CachedReader { cache, seen, own }
    }
}

impl Changes {
    /// Waits until directives were published since the last time; several publications may be told as one. `false`
    /// when there will be none any more.
    pub async fn next(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

impl CachedReader {
    /// What is in force.
    #[inline]
    pub fn load(&mut self) -> Arc<Snapshot> {
        let published = self.cache.load();
        if !Arc::ptr_eq(published, &self.seen) {
            self.seen = Arc::clone(published);
            self.own = Arc::new(Snapshot::clone(published));
        }
        Arc::clone(&self.own)
    }
}

impl fmt::Debug for CachedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedReader").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::enforce::policy::{IdentityPolicy, Limits};
    use crate::types::ids::{AgentId, Generation};
    use crate::types::secret::Secret;

    fn policy(generation: u64) -> Arc<Policy> {
        Arc::new(Policy {
            generation: Generation(generation),
            identity: IdentityPolicy {
                agent_order: vec![],
                agent_headers: vec![],
                agent_baggage_keys: vec![],
                agent_metadata_keys: vec![],
                version_headers: vec![],
                execution_headers: vec![],
                execution_metadata_keys: vec![],
                agent: None,
                agent_version: None,
                default_agent: AgentId::from("default"),
                api_key_salt: Secret::new(""),
                strip_headers: vec![],
                max_name_bytes: 100,
            },
            upstreams: vec![],
            limits: Limits {
                max_request_bytes: 0,
                max_header_bytes: 0,
                max_inspect_bytes: 0,
                header_timeout: Duration::ZERO,
                body_idle_timeout: Duration::ZERO,
                keep_alive_timeout: Duration::ZERO,
                max_admission_wait: Duration::ZERO,
                max_waiting: 0,
            },
            prices: Default::default(),
            models: Default::default(),
            metering: true,
            retries: crate::enforce::failover::RetryBudget {
                percent: 0.0,
                min_per_minute: 0,
            },
            streams: Default::default(),
        })
    }

    fn directives(generation: u64) -> Arc<DirectiveSet> {
        Arc::new(DirectiveSet::new(Generation(generation), []))
    }

    fn generations(snapshot: &Snapshot) -> (u64, u64) {
        (snapshot.policy.generation.0, snapshot.directives.generation().0)
    }

    #[test]
    fn each_half_is_published_without_the_other() {
        let (publisher, reader) = Publisher::new(policy(1));
        let mut cached = reader.cached();
        assert_eq!(generations(&reader.load()), (1, 0));
        publisher.publish_directives(directives(7));
        assert_eq!(generations(&reader.load()), (1, 7));
        assert_eq!(generations(&cached.load()), (1, 7));
        publisher.publish_policy(policy(2));
        assert_eq!(generations(&reader.load()), (2, 7));
        assert_eq!(generations(&cached.load()), (2, 7));
    }

    #[test]
    fn whoever_waits_hears_of_directives() {
        let (publisher, reader) = Publisher::new(policy(1));
        publisher.publish_directives(directives(1));
        let mut changes = reader.changes();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let quiet = Duration::from_millis(1);
            assert!(tokio::time::timeout(quiet, changes.next()).await.is_err());
            publisher.publish_policy(policy(2));
            assert!(tokio::time::timeout(quiet, changes.next()).await.is_err());
            publisher.publish_directives(directives(2));
            assert!(changes.next().await);
            drop(publisher);
            assert!(!changes.next().await);
        });
    }

    #[test]
    fn what_a_request_holds_stays_as_it_was() {
        let (publisher, reader) = Publisher::new(policy(1));
        let mut cached = reader.cached();
        let held = cached.load();
        publisher.publish_policy(policy(2));
        assert_eq!(generations(&held), (1, 0));
        assert_eq!(generations(&cached.load()), (2, 0));
    }

    #[test]
    fn an_unchanged_snapshot_is_not_copied_again() {
        let (_publisher, reader) = Publisher::new(policy(1));
        let mut cached = reader.cached();
        assert!(Arc::ptr_eq(&cached.load(), &cached.load()));
    }

    #[test]
    fn two_publishers_do_not_undo_each_other() {
        const LAST: u64 = 2000;
        let (publisher, reader) = Publisher::new(policy(0));
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            let policies = s.spawn(|| (1..=LAST).for_each(|g| publisher.publish_policy(policy(g))));
            let sets = s.spawn(|| (1..=LAST).for_each(|g| publisher.publish_directives(directives(g))));
            s.spawn(|| {
                let mut cached = reader.cached();
                let mut last = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    let now = generations(&cached.load());
                    assert!(now.0 >= last.0 && now.1 >= last.1, "{last:?} then {now:?}");
                    last = now;
                }
            });
            policies.join().unwrap();
            sets.join().unwrap();
            done.store(true, Ordering::Relaxed);
        });
        assert_eq!(generations(&reader.load()), (LAST, LAST));
    }
}
