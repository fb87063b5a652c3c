//! Circuit breakers: an upstream that failed often is left alone for a while, tried by one request, and taken back by and by.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

use super::failover::Breaker;
use crate::types::ids::UpstreamName;
use crate::types::time::Mono;

/// The longest that an upstream is left alone because it asked for it (`Retry-After`).
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The share of executions that goes back to an upstream at least, as soon as one request to it went well.
const FIRST_SHARE: u64 = 10;

/// The health of all upstreams that belong to a failover plan, by name; it outlives reloads.
///
/// Reading it takes no lock: it is replaced as a whole when an upstream is asked for the first time.
#[derive(Default)]
pub struct Breakers(ArcSwap<HashMap<UpstreamName, Arc<Health>>>);

/// How well one upstream does; shared by all workers.
#[derive(Debug, Default)]
pub struct Health {
    /// Zero while closed, else until when it is open, in nanoseconds. Beyond that time one request at a time may try.
    open_until: AtomicU64,
    /// A request is trying.
    trying: AtomicBool,
    /// Since when executions go back to it, and over how long, in nanoseconds; zero when all do.
    back_since: AtomicU64,
    back_over: AtomicU64,
    /// The upstream asked not to be asked before.
    not_before: AtomicU64,
    window: Window,
    opened: AtomicU64,
}

/// Failures since the first one in a window, and successes beside them: milliseconds (32 bits, they may wrap round),
/// failures (16), successes (16). Zero while there was no failure, so that a healthy upstream costs one load.
#[derive(Debug, Default)]
struct Window(AtomicU64);

/// Why an upstream is not asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// It failed often.
    Open,
    /// It failed often, and another request is trying it.
    Tried,
    /// It is coming back, and this execution is not among the first.
    Returning,
    /// It asked to be left alone (`Retry-After`).
    AskedToWait,
}

/// Leave to ask an upstream. What came of it is said by [`Permit::succeeded`] or [`Permit::failed`]; dropped without a
/// word (the client left) it says nothing about the upstream and makes room for the next one to try.
#[derive(Debug)]
pub struct Permit {
    health: Arc<Health>,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usual,
    /// The one that tries whether it works again.
    Trial,
    /// Asked because nobody else is left: it cannot open anything.
    LastResort,
}

/// What a breaker is shown as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Asked like any other.
    Closed,
    /// Coming back: a part of the executions is sent to it.
    Returning,
    /// Not asked, but by one request at a time to see whether it works.
    HalfOpen,
    /// Not asked.
    Open,
}

/// A breaker, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerView {
    /// The upstream.
    pub upstream: UpstreamName,
    /// Its state.
    pub state: State,
    /// How often it opened since the start.
    pub opened: u64,
}

impl Breakers {
    /// The health of an upstream, made when it is asked for the first time.
    pub fn of(&self, upstream: &UpstreamName) -> Arc<Health> {
        if let Some(health) = self.0.load().get(upstream) {
            return Arc::clone(health);
        }
        let new = Arc::new(Health::default());
        self.0.rcu(|known| {
            let mut known = HashMap::clone(known);
            known.entry(upstream.clone()).or_insert_with(|| Arc::clone(&new));
            known
        });
        self.0.load().get(upstream).map_or(new, Arc::clone)
    }

    /// Forgets the upstreams that `is_known` does not know.
    pub fn retain(&self, is_known: impl Fn(&UpstreamName) -> bool) {
        if self.0.load().keys().all(&is_known) {
            return;
        }
        self.0.rcu(|all| {
            let mut all = HashMap::clone(all);
            all.retain(|name, _| is_known(name));
            all
        });
    }

    /// All of them, by name.
    pub fn view(&self, now: Mono) -> Vec<BreakerView> {
        let mut all: Vec<BreakerView> = self
            .0
            .load()
            .iter()
            .map(|(name, health)| BreakerView {
                upstream: name.clone(),
                state: health.state(now),
                opened: health.opened.load(Ordering::Relaxed),
            })
            .collect();
        all.sort_by(|a, b| a.upstream.cmp(&b.upstream));
        all
    }
}

impl Health {
    /// Asks whether a request may go to the upstream. `key` stands for its execution: while the upstream is coming
    /// back, one that was sent to it once is sent to it again.
    ///
    /// # Errors
    /// Why it may not.
    pub fn ask(self: &Arc<Self>, now: Mono, key: u64) -> Result<Permit, Unfit> {
        if self.not_before.load(Ordering::Relaxed) > now.as_nanos() {
            return Err(Unfit::AskedToWait);
        }
        let until = self.open_until.load(Ordering::Acquire);
        if until == 0 {
            return if key % 100 < self.share(now) {
                Ok(self.permit(Kind::Usual))
            } else {
                Err(Unfit::Returning)
            };
        }
        if now.as_nanos() < until {
            return Err(Unfit::Open);
        }
        if self.trying.swap(true, Ordering::AcqRel) {
            return Err(Unfit::Tried);
        }
        let permit = self.permit(Kind::Trial);
        // The one before may have said in the meantime how its try went.
        match self.open_until.load(Ordering::Acquire) {
            0 => {
                drop(permit);
                Ok(self.permit(Kind::Usual))
            }
            until if now.as_nanos() < until => Err(Unfit::Open),
            _ => Ok(permit),
        }
    }

    /// Asks it because nobody else is left: refused by nothing.
    pub fn last_resort(self: &Arc<Self>) -> Permit {
        self.permit(Kind::LastResort)
    }

    /// The upstream asked to be left alone for `wait`; at most ten minutes are granted.
    pub fn wait(&self, wait: Duration, now: Mono) {
        let until = now.after(wait.min(LONGEST_WAIT)).as_nanos();
        self.not_before.fetch_max(until, Ordering::Relaxed);
    }

    /// How it stands.
    pub fn state(&self, now: Mono) -> State {
        match self.open_until.load(Ordering::Acquire) {
            0 if self.share(now) < 100 => State::Returning,
            0 => State::Closed,
            until if now.as_nanos() < until => State::Open,
            _ => State::HalfOpen,
        }
    }

    fn permit(self: &Arc<Self>, kind: Kind) -> Permit {
        Permit {
            health: Arc::clone(self),
            kind,
        }
    }

    /// How many executions in a hundred may be sent to it while it is closed.
    fn share(&self, now: Mono) -> u64 {
        let since = self.back_since.load(Ordering::Relaxed);
        if since == 0 {
            return 100;
        }
        let over = self.back_over.load(Ordering::Relaxed).max(1);
        let gone = now.as_nanos().saturating_sub(since);
        if gone >= over {
            // Whoever comes first puts an end to it; it may have begun anew for somebody else.
            self.back_since
                .compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed)
                .ok();
            return 100;
        }
        (u128::from(gone) * 100 / u128::from(over)).max(FIRST_SHARE.into()) as u64
    }

    fn open(&self, breaker: &Breaker, now: Mono) {
        let until = now.after(breaker.open_for).as_nanos().max(1);
        self.window.clear();
        self.back_since.store(0, Ordering::Relaxed);
        self.open_until.store(until, Ordering::Release);
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn close(&self, breaker: Option<&Breaker>, now: Mono) {
        let over = breaker.map_or(Duration::ZERO, |b| b.open_for);
        self.window.clear();
        self.back_over.store(
            u64::try_from(over.as_nanos()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
        self.back_since.store(now.as_nanos().max(1), Ordering::Relaxed);
        self.open_until.store(0, Ordering::Release);
    }
}

impl Permit {
    /// It answered, whatever it said about the request.
    pub fn succeeded(self, breaker: Option<&Breaker>, now: Mono) {
        let health = &self.health;
        let is_open = health.open_until.load(Ordering::Acquire) != 0;
        match self.kind {
            Kind::Trial => health.close(breaker, now),
            Kind::LastResort if is_open => health.close(breaker, now),
            // One that was on its way when it opened says nothing new.
            _ if is_open => {}
            _ => {
                if let Some(breaker) = breaker {
                    health.window.success(breaker.within, now);
                }
            }
        }
    }

    /// It failed. The breaker opens when so many did within the time, and no fewer than went well beside them.
    pub fn failed(self, breaker: Option<&Breaker>, now: Mono) {
        let Some(breaker) = breaker else { return };
        let health = &self.health;
        match self.kind {
            Kind::Trial => health.open(breaker, now),
            Kind::Usual if health.open_until.load(Ordering::Acquire) == 0 => {
                if health.window.failure(breaker, now) {
                    health.open(breaker, now);
                }
            }
            Kind::Usual | Kind::LastResort => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.kind == Kind::Trial {
            self.health.trying.store(false, Ordering::Release);
        }
    }
}

impl Window {
    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Counts a failure; `true` when the breaker has to open.
    fn failure(&self, breaker: &Breaker, now: Mono) -> bool {
        let new = |old: u64| {
            let (start, failures, successes) = unpack(old);
            if old == 0 || is_over(start, breaker.within, now) {
                pack(millis(now), 1, 0)
            } else {
                pack(start, failures.saturating_add(1), successes)
            }
        };
        let mut old = self.0.load(Ordering::Relaxed);
        while let Err(now) = self
            .0
            .compare_exchange_weak(old, new(old), Ordering::Relaxed, Ordering::Relaxed)
        {
            old = now;
        }
        let (_, failures, successes) = unpack(new(old));
        u32::from(failures) >= breaker.failures.clamp(1, u16::MAX.into()) && failures >= successes
    }

    /// Counts a success beside failures. When two come at once one may be lost: it is a share that they are counted for.
    fn success(&self, within: Duration, now: Mono) {
        let old = self.0.load(Ordering::Relaxed);
        if old == 0 {
            return;
        }
        let (start, failures, successes) = unpack(old);
        let new = if is_over(start, within, now) {
            0
        } else {
            pack(start, failures, successes.saturating_add(1))
        };
        self.0
            .compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed)
            .ok();
    }
}

fn millis(now: Mono) -> u32 {
    // Wraps round after 49 days; only differences are looked at.
    (now.as_nanos() / 1_000_000) as u32
}

fn is_over(start: u32, within: Duration, now: Mono) -> bool {
    u128::from(millis(now).wrapping_sub(start)) > within.as_millis()
}

fn pack(start: u32, failures: u16, successes: u16) -> u64 {
    u64::from(start) << 32 | u64::from(failures) << 16 | u64::from(successes)
}

fn unpack(packed: u64) -> (u32, u16, u16) {
    ((packed >> 32) as u32, (packed >> 16) as u16, packed as u16)
}

impl Unfit {
    /// In words, for observations.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Open => "it failed often and is left alone",
            Self::Tried => "it failed often and is being tried",
            Self::Returning => "it is coming back and takes a part of the executions",
            Self::AskedToWait => "it asked to be left alone (retry-after)",
        }
    }
}

impl State {
    /// The word for it in the status.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Returning => "returning",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }

    /// The number for it in metrics.
    pub const fn level(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Returning => 1,
            Self::HalfOpen => 2,
            Self::Open => 3,
        }
    }
}

impl fmt::Debug for Breakers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.0.load().iter().map(|(n, h)| (n.as_str(), h)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use proptest::prelude::*;

    use super::*;

    const BREAKER: Breaker = Breaker {
        failures: 3,
        within: Duration::from_secs(10),
        open_for: Duration::from_secs(20),
    };
    const B: Option<&Breaker> = Some(&BREAKER);

    fn at(second: u64) -> Mono {
        Mono::from_millis(1_000_000 + second * 1000)
    }

    fn health() -> Arc<Health> {
        Arc::default()
    }

    fn fail(health: &Arc<Health>, now: Mono) {
        health.ask(now, 0).unwrap().failed(B, now);
    }

    fn unfit(health: &Arc<Health>, now: Mono, key: u64) -> Option<Unfit> {
        health.ask(now, key).err()
    }

    fn opened() -> Arc<Health> {
        let health = health();
        (0..3).for_each(|_| fail(&health, at(0)));
        assert_eq!(unfit(&health, at(0), 0), Some(Unfit::Open));
        health
    }

    #[test]
    fn it_opens_is_tried_by_one_and_comes_back_by_and_by() {
        let health = opened();
        assert_eq!(unfit(&health, at(19), 0), Some(Unfit::Open));
        assert_eq!(health.state(at(20)), State::HalfOpen);
        let trial = health.ask(at(20), 99).unwrap();
        assert_eq!(unfit(&health, at(20), 0), Some(Unfit::Tried));
        trial.failed(B, at(21));
        assert_eq!(unfit(&health, at(40), 0), Some(Unfit::Open), "open anew");
        health.ask(at(41), 0).unwrap().succeeded(B, at(41));
        // Ten in a hundred, then a growing share, then all; an execution that is back stays.
        for (second, back) in [(41, 10), (45, 20), (51, 50), (60, 95), (61, 100)] {
            let n = (0..100)
                .filter(|k| unfit(&health, at(second), *k).is_none())
                .count();
            assert_eq!(n, back, "{second}");
        }
        assert_eq!(health.state(at(60)), State::Closed);
    }

    #[test]
    fn old_failures_and_few_among_many_do_not_open_it() {
        let health = health();
        fail(&health, at(0));
        fail(&health, at(1));
        fail(&health, at(12));
        assert_eq!(health.state(at(12)), State::Closed);
        let busy = self::health();
        fail(&busy, at(0));
        for _ in 0..50 {
            busy.ask(at(1), 0).unwrap().succeeded(B, at(1));
        }
        for _ in 0..20 {
            fail(&busy, at(2));
        }
        assert_eq!(busy.state(at(2)), State::Closed, "21 of 71");
        for _ in 0..29 {
            fail(&busy, at(3));
        }
        assert_eq!(busy.state(at(3)), State::Open, "50 of 100");
    }

    #[test]
    fn without_a_breaker_only_retry_after_holds() {
        let health = health();
        for _ in 0..100 {
            health.ask(at(0), 0).unwrap().failed(None, at(0));
        }
        assert_eq!(health.state(at(0)), State::Closed);
        health.wait(Duration::from_secs(5), at(0));
        health.wait(Duration::from_secs(1), at(0));
        assert_eq!(unfit(&health, at(4), 0), Some(Unfit::AskedToWait));
        assert_eq!(unfit(&health, at(5), 0), None);
        health.wait(Duration::from_secs(1_000_000), at(5));
        assert_eq!(unfit(&health, at(606), 0), None);
    }

    #[test]
    fn the_last_resort_is_always_asked_opens_nothing_and_may_close_it() {
        let health = health();
        for _ in 0..100 {
            health.last_resort().failed(B, at(0));
        }
        assert_eq!(health.state(at(0)), State::Closed);
        let health = opened();
        health.last_resort().failed(B, at(1));
        assert_eq!(health.state(at(1)), State::Open);
        health.last_resort().succeeded(B, at(2));
        assert_eq!(health.state(at(2)), State::Returning);
    }

    #[test]
    fn ten_thousand_trials_that_were_given_up_leak_nothing() {
        let health = opened();
        for n in 0..10_000 {
            let permit = health.ask(at(30), n).unwrap();
            assert_eq!(unfit(&health, at(30), n), Some(Unfit::Tried));
            drop(permit);
        }
        assert_eq!(health.state(at(30)), State::HalfOpen);
        assert_eq!(Arc::strong_count(&health), 1);
    }

    #[test]
    fn ten_thousand_aborted_futures_leak_nothing() {
        let health = opened();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for n in 0..10_000_u64 {
                let asking = Arc::clone(&health);
                let task = tokio::spawn(async move {
                    let _permit = asking.ask(at(30), n).unwrap();
                    std::future::pending::<()>().await;
                });
                while !health.trying.load(Ordering::Acquire) {
                    tokio::task::yield_now().await;
                }
                task.abort();
                assert!(task.await.unwrap_err().is_cancelled());
            }
        });
        assert_eq!(unfit(&health, at(30), 0), None);
        assert_eq!(Arc::strong_count(&health), 1);
    }

    #[test]
    fn of_many_who_come_at_once_one_tries() {
        for _ in 0..200 {
            let health = opened();
            let (tries, barrier) = (AtomicUsize::new(0), std::sync::Barrier::new(4));
            std::thread::scope(|s| {
                for _ in 0..4 {
                    s.spawn(|| {
                        barrier.wait();
                        let permit = health.ask(at(20), 0);
                        tries.fetch_add(usize::from(permit.is_ok()), Ordering::SeqCst);
                        barrier.wait();
                        drop(permit);
                    });
                }
            });
            assert_eq!(tries.load(Ordering::SeqCst), 1);
        }
    }

    #[test]
    fn health_outlives_what_is_forgotten_beside_it() {
        let breakers = Breakers::default();
        let (a, b) = (UpstreamName::from("a"), UpstreamName::from("b"));
        let first = breakers.of(&a);
        assert!(Arc::ptr_eq(&first, &breakers.of(&a)));
        (0..3).for_each(|_| fail(&breakers.of(&b), at(0)));
        let view = breakers.view(at(0));
        assert_eq!(
            view.iter()
                .map(|v| (v.upstream.as_str(), v.state, v.opened))
                .collect::<Vec<_>>(),
            [("a", State::Closed, 0), ("b", State::Open, 1)]
        );
        breakers.retain(|name| *name == a);
        assert!(Arc::ptr_eq(&first, &breakers.of(&a)));
        assert_eq!(breakers.view(at(0)).len(), 1);
    }

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Wait(u64),
        Ask(u64),
        Resort,
        Succeed(usize),
        Fail(usize),
        Leave(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0..30_u64).prop_map(Act::Wait),
            (0..100_u64).prop_map(Act::Ask),
            Just(Act::Resort),
            (0..8_usize).prop_map(Act::Succeed),
            (0..8_usize).prop_map(Act::Fail),
            (0..8_usize).prop_map(Act::Leave),
        ]
    }

    proptest! {
        /// Whatever happens: one trial at a time, none before its time, and after silence it lets requests pass again.
        #[test]
        fn it_never_shuts_for_good(acts in prop::collection::vec(act(), 0..200)) {
            let health = health();
            let mut now = at(0);
            let mut held: Vec<Permit> = Vec::new();
            for act in acts {
                match act {
                    Act::Wait(seconds) => now = now.after(Duration::from_secs(seconds)),
                    Act::Ask(key) => {
                        let state = health.state(now);
                        match health.ask(now, key) {
                            Ok(permit) => {
                                prop_assert!(state != State::Open);
                                prop_assert_eq!(permit.kind == Kind::Trial, state == State::HalfOpen);
                                held.push(permit);
                            }
                            Err(why) => prop_assert!(state != State::Closed, "{:?}", why),
                        }
                        let trials = held.iter().filter(|p| p.kind == Kind::Trial).count();
                        prop_assert!(trials <= 1);
                        prop_assert_eq!(trials == 1, health.trying.load(Ordering::Relaxed));
                    }
                    Act::Resort => held.push(health.last_resort()),
                    Act::Succeed(n) if n < held.len() => held.swap_remove(n).succeeded(B, now),
                    Act::Fail(n) if n < held.len() => held.swap_remove(n).failed(B, now),
                    Act::Leave(n) if n < held.len() => drop(held.swap_remove(n)),
                    Act::Succeed(_) | Act::Fail(_) | Act::Leave(_) => {}
                }
            }
            held.clear();
            let later = now.after(BREAKER.open_for);
            prop_assert!(health.ask(later, 0).is_ok());
            prop_assert_eq!(Arc::strong_count(&health), 1);
        }

        #[test]
        fn the_window_is_packed_without_loss(start: u32, failures: u16, successes: u16) {
            prop_assert_eq!(unpack(pack(start, failures, successes)), (start, failures, successes));
        }
    }
}
