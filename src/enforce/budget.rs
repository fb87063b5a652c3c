//! A rate over governor that may be overdrawn and is paid back: what governor itself, which fixes a cost before the call, cannot do.

use std::num::NonZeroU32;
use std::ops::Add;
use std::time::Duration;

use governor::clock::{Clock as GovernorClock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::clock::Clock;
use crate::types::time::Mono;

/// A budget of cells (requests or tokens) that a governor limiter refills.
///
/// governor decides: nothing passes while it refuses one cell. Two numbers beside it make up for what it cannot say:
/// `owed`, cells that were used but not yet taken from the limiter, and `spare`, cells that were taken but not used.
/// Together they are one bucket whose level is `limiter + spare − owed`: it never rises above the burst, and falls
/// below zero when a request turns out larger than what was there.
///
/// - Something passes when nothing is owed and at least one cell is there. It then takes all of its estimate; what
///   the limiter cannot give is owed. Asking for the whole estimate first would let small requests starve a large one
///   for ever: they would keep the bucket from filling up.
/// - The limiter pays what is owed before anything else, as much as it has, at each call. Its own burst must not make
///   an idle agent lose the time in which it could have paid: cells that came while the limiter was full and
///   something was owed are counted as paid.
///
/// So over any span of time no more than `rate × time + burst` is taken by requests before the last one, and nobody
/// waits longer than `(owed + 1) / rate`.
#[derive(Debug)]
pub(super) struct Budget {
    limiter: Limiter,
    clock: Clock,
    /// Nanoseconds in which one cell comes.
    per_cell: u64,
    burst: NonZeroU32,
    /// What the limiter could give at `at`, in nanoseconds of its refill, since it does not tell.
    saved: u64,
    at: Mono,
    owed: u64,
    /// What flowed over while something was owed and is no whole cell yet, in nanoseconds.
    over: u64,
    spare: u64,
}

/// There is not one cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Short {
    /// When there will be one, unless somebody else takes it.
    pub(super) retry_after: Duration,
}

type Limiter = RateLimiter<NotKeyed, InMemoryState, Source, NoOpMiddleware<Tick>>;

impl Budget {
    /// A full budget of `per_minute` cells a minute that holds at most `burst` (less where that would take a century
    /// to come together).
    pub(super) fn new(per_minute: NonZeroU32, burst: NonZeroU32, clock: Clock) -> Self {
        const MINUTE: u64 = 60_000_000_000;
        // Rounded up: the rate is never above the quota (and below it by at most a 14th, at 4 billion a minute).
        let per_cell = MINUTE.div_ceil(u64::from(per_minute.get()));
        // governor counts in nanoseconds and does not look out for overflow.
        let most = u32::try_from((u64::MAX / 4) / per_cell).unwrap_or(u32::MAX);
        let burst = NonZeroU32::new(burst.get().min(most)).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(Duration::from_nanos(per_cell))
            .unwrap_or(Quota::per_minute(per_minute))
            .allow_burst(burst);
        Self {
            limiter: RateLimiter::direct_with_clock(quota, Source(clock.clone())),
            per_cell,
            burst,
            saved: per_cell.saturating_mul(u64::from(burst.get())),
            at: clock.mono(),
            clock,
            owed: 0,
            over: 0,
            spare: 0,
        }
    }

    /// Takes `cells` (at least one) if anything is left, and owes what is not there.
    pub(super) fn take(&mut self, cells: u64) -> Result<(), Short> {
        self.catch_up();
        if self.owed > 0 {
            let wait = self
                .per_cell
                .saturating_mul(self.owed.saturating_add(1))
                .saturating_sub(self.saved);
            return Err(Short {
                retry_after: Duration::from_nanos(wait),
            });
        }
        if self.spare > 0 {
            self.spare -= 1;
        } else if let Err(not_until) = self.limiter.check() {
            return Err(Short {
                retry_after: not_until.wait_time_from(Tick(self.at.as_nanos())),
            });
        } else {
            self.saved = self.saved.saturating_sub(self.per_cell);
        }
        self.owe(cells.saturating_sub(1));
        Ok(())
    }

    /// Takes `cells` whether they are there or not: they are used already.
    pub(super) fn charge(&mut self, cells: u64) {
        self.catch_up();
        self.owe(cells);
    }

    /// Gives back `cells` that were taken and not used.
    pub(super) fn put_back(&mut self, cells: u64) {
        self.catch_up();
        let paid = cells.min(self.owed);
        self.owed -= paid;
        self.spare = self.spare.saturating_add(cells - paid).min(self.room());
    }

    /// Cells that could be taken now without owing any.
    pub(super) fn left(&mut self) -> u64 {
        self.catch_up();
        self.saved / self.per_cell + self.spare
    }

    /// Whether any cells are owed.
    pub(super) fn owes(&mut self) -> bool {
        self.catch_up();
        self.owed > 0
    }

    /// Most that the budget holds.
    pub(super) fn burst(&self) -> u64 {
        self.burst.get().into()
    }

    /// Another rate from now on. What is left (as far as the new burst goes) and what is owed stay.
    pub(super) fn change(&mut self, per_minute: NonZeroU32, burst: NonZeroU32) {
        let left = self.left().min(burst.get().into());
        let owed = self.owed;
        *self = Self::new(per_minute, burst, self.clock.clone());
        let surplus = self.burst().saturating_sub(left);
        self.draw(surplus);
        self.owed = owed;
    }

    /// Brings the books to the present time.
    fn catch_up(&mut self) {
        let now = self.clock.mono();
        let passed = now.as_nanos().saturating_sub(self.at.as_nanos());
        self.at = self.at.max(now);
        let full = self.per_cell.saturating_mul(self.burst());
        let saved = self.saved.saturating_add(passed);
        self.saved = saved.min(full);
        // While something is owed the limiter was emptied, so what flowed over would have been paid.
        if self.owed > 0 {
            let over = self.over.saturating_add(saved - self.saved);
            self.owed = self.owed.saturating_sub(over / self.per_cell);
            self.over = over % self.per_cell;
        } else if saved >= full {
            self.over = 0;
        }
        self.pay();
        self.spare = self.spare.min(self.room());
    }

    fn owe(&mut self, cells: u64) {
        let from_spare = cells.min(self.spare);
        self.spare -= from_spare;
        self.owed = self.owed.saturating_add(cells - from_spare);
        self.pay();
    }

    fn pay(&mut self) {
        if self.owed > 0 {
            self.owed -= self.draw(self.owed);
        }
    }

    /// Takes up to `cells` from the limiter: as many as it has. Returns how many.
    fn draw(&mut self, cells: u64) -> u64 {
        let mut want = cells.min(self.saved / self.per_cell);
        // A second time only if the limiter's reading of the clock and ours disagree by a hair.
        for _ in 0..2 {
            let Some(n) = u32::try_from(want).ok().and_then(NonZeroU32::new) else {
                return 0;
            };
            match self.limiter.check_n(n) {
                Ok(Ok(())) => {
                    self.saved = self.saved.saturating_sub(want.saturating_mul(self.per_cell));
                    return want;
                }
                Ok(Err(not_until)) => {
                    let wait = not_until.wait_time_from(Tick(self.at.as_nanos()));
                    let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
                    want = want.saturating_sub(wait.div_ceil(self.per_cell).max(1));
                }
                // More than the burst, which `saved` never is.
                Err(_) => return 0,
            }
        }
        0
    }

    /// How many spare cells fit beside what the limiter has.
    fn room(&self) -> u64 {
        self.burst().saturating_sub(self.saved.div_ceil(self.per_cell))
    }
}

/// Our clock, as governor wants it.
#[derive(Debug, Clone)]
struct Source(Clock);

/// A point of our monotonic clock, as governor wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Tick(u64);

impl GovernorClock for Source {
    type Instant = Tick;

    fn now(&self) -> Tick {
        Tick(self.0.mono().as_nanos())
    }
}

impl Reference for Tick {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.checked_sub(duration.as_u64()).unwrap_or(self.0))
    }
}

impl Add<Nanos> for Tick {
    type Output = Self;

    fn add(self, by: Nanos) -> Self {
        Self(self.0.saturating_add(by.as_u64()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::time::Now;

    fn clock() -> Clock {
        Clock::manual(Now {
            mono: Mono::from_millis(1000),
            ..Now::default()
        })
    }

    fn nz(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    fn wait(result: Result<(), Short>) -> Option<Duration> {
        result.err().map(|s| s.retry_after)
    }

    #[test]
    fn gives_its_burst_then_its_rate() {
        let clock = clock();
        let mut b = Budget::new(nz(60), nz(10), clock.clone());
        for _ in 0..10 {
            assert_eq!(b.take(1), Ok(()));
        }
        assert_eq!(wait(b.take(1)), Some(Duration::from_secs(1)));
        clock.advance(Duration::from_millis(400));
        assert_eq!(wait(b.take(1)), Some(Duration::from_millis(600)));
        clock.advance(Duration::from_millis(600));
        assert_eq!(b.take(1), Ok(()));
        assert!(b.take(1).is_err());
    }

    #[test]
    fn what_is_larger_than_the_burst_passes_and_is_paid_off() {
        let clock = clock();
        let mut b = Budget::new(nz(600), nz(100), clock.clone());
        assert_eq!(b.take(1000), Ok(()));
        // 900 are owed at 10 a second; then one cell.
        assert_eq!(wait(b.take(1)), Some(Duration::from_millis(90_100)));
        // Nobody asks meanwhile: the time counts all the same.
        clock.advance(Duration::from_millis(90_100));
        assert_eq!(b.take(500), Ok(()));
        assert_eq!(wait(b.take(1)), Some(Duration::from_millis(50_000)));
        // Whoever asks too early waits for no more than one cell longer.
        clock.advance(Duration::from_millis(49_999));
        assert!(wait(b.take(1)) <= Some(Duration::from_millis(100)));
    }

    #[test]
    fn a_surplus_is_owed_and_an_overestimate_is_given_back() {
        let clock = clock();
        let mut b = Budget::new(nz(600), nz(100), clock.clone());
        b.take(40).unwrap();
        b.charge(100);
        assert_eq!(wait(b.take(1)), Some(Duration::from_millis(4100)));
        b.put_back(90);
        assert_eq!(b.left(), 50);
        b.take(50).unwrap();
        assert_eq!(wait(b.take(1)), Some(Duration::from_millis(100)));
    }

    #[test]
    fn what_is_given_back_does_not_raise_the_burst() {
        let clock = clock();
        let mut b = Budget::new(nz(600), nz(100), clock.clone());
        b.take(100).unwrap();
        b.put_back(100);
        assert_eq!(b.left(), 100);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(b.left(), 100);
        b.put_back(1_000_000);
        b.take(100).unwrap();
        assert!(b.take(1).is_err());
    }

    #[test]
    fn a_change_of_rate_keeps_the_account() {
        let clock = clock();
        let mut b = Budget::new(nz(600), nz(100), clock.clone());
        b.take(70).unwrap();
        b.change(nz(6000), nz(1000));
        assert_eq!(b.left(), 30);
        b.charge(130);
        b.change(nz(60), nz(10));
        assert_eq!(wait(b.take(1)), Some(Duration::from_secs(101)));
        b.put_back(1000);
        b.change(nz(60), nz(5));
        assert_eq!(b.left(), 5);
    }

    #[test]
    fn extremes_do_not_overflow() {
        for (rate, burst) in [(1, 1), (1, u32::MAX), (u32::MAX, u32::MAX), (u32::MAX, 1)] {
            let clock = clock();
            let mut b = Budget::new(nz(rate), nz(burst), clock.clone());
            for _ in 0..3 {
                let _verdict = b.take(u64::MAX);
                b.charge(u64::MAX);
                clock.advance(Duration::from_secs(1 << 31));
                let _left = b.left();
                b.put_back(u64::MAX);
                b.change(nz(burst), nz(rate));
            }
        }
    }

    /// What may happen to a budget.
    #[derive(Debug, Clone)]
    enum Event {
        Pass { millis: u64 },
        Take { estimate: u64 },
        Settle { which: usize, real: u64 },
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let tokens = prop_oneof![4 => 1..500u64, 1 => 500..20_000u64];
        let event = prop_oneof![
            3 => prop_oneof![5 => 0..2_000u64, 1 => 0..600_000u64].prop_map(|millis| Event::Pass { millis }),
            4 => tokens.clone().prop_map(|estimate| Event::Take { estimate }),
            3 => (any::<usize>(), prop_oneof![1 => Just(0), 9 => tokens])
                .prop_map(|(which, real)| Event::Settle { which, real }),
        ];
        proptest::collection::vec(event, 1..200)
    }

    /// The same bucket in one signed number of nanoseconds of refill, without governor.
    struct Model {
        level: i128,
        full: i128,
        per_cell: i128,
    }

    impl Model {
        fn pass(&mut self, by: Duration) {
            let by = i128::try_from(by.as_nanos()).unwrap();
            self.level = (self.level + by).min(self.full);
        }

        fn add(&mut self, cells: i128) {
            self.level = (self.level + cells * self.per_cell).min(self.full);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Over any interleaving of admissions and settlements, with any number in flight: what was taken stays
        /// within the quota, its burst and what was in flight at once; and who waits is let in when it was told.
        #[test]
        fn keeps_the_rate_and_locks_nobody_out(
            rate in 1..200_000u32,
            burst in 1..50_000u32,
            events in events(),
        ) {
            let clock = clock();
            let started = clock.mono();
            let mut budget = Budget::new(nz(rate), nz(burst), clock.clone());
            let per_cell = 60_000_000_000u64.div_ceil(u64::from(rate));
            let full = i128::from(per_cell) * i128::from(burst);
            let mut model = Model { level: full, full, per_cell: per_cell.into() };
            // Estimates of what is in flight; cells used or reserved so far; the bound on what is used in the end.
            let mut in_flight: Vec<u64> = Vec::new();
            let mut booked = 0u64;

            for event in events {
                match event {
                    Event::Pass { millis } => {
                        clock.advance(Duration::from_millis(millis));
                        model.pass(Duration::from_millis(millis));
                    }
                    Event::Take { estimate } => {
                        let since = u128::from(clock.mono().as_nanos() - started.as_nanos());
                        let allowed = u64::from(burst)
                            + u64::try_from(since * u128::from(rate) / 60_000_000_000).unwrap();
                        match budget.take(estimate) {
                            Ok(()) => {
                                // Before this one everything was within the bound; after it, by itself alone above.
                                prop_assert!(booked <= allowed, "{booked} booked, {allowed} allowed");
                                prop_assert!(model.level >= 0, "let in with {} ns owed", -model.level);
                                in_flight.push(estimate);
                                booked += estimate;
                                model.add(-i128::from(estimate));
                            }
                            Err(short) => {
                                // Refused only when there is not one cell, and for no longer than until there is.
                                let until = model.per_cell - model.level;
                                prop_assert!(until > -model.per_cell, "refused with {} ns saved", model.level);
                                let told = i128::try_from(short.retry_after.as_nanos()).unwrap();
                                prop_assert!(told > 0);
                                prop_assert!(told <= until.max(0) + 2 * model.per_cell, "told {told}, due {until}");
                                // Whoever waits that long is let in, whatever its size.
                                clock.advance(short.retry_after);
                                model.pass(short.retry_after);
                                prop_assert_eq!(budget.take(estimate), Ok(()));
                                in_flight.push(estimate);
                                booked += estimate;
                                model.add(-i128::from(estimate));
                            }
                        }
                    }
                    Event::Settle { which, real } => {
                        if in_flight.is_empty() {
                            continue;
                        }
                        let estimate = in_flight.swap_remove(which % in_flight.len());
                        if real > estimate {
                            budget.charge(real - estimate);
                        } else {
                            budget.put_back(estimate - real);
                        }
                        booked = booked - estimate + real;
                        model.add(i128::from(estimate) - i128::from(real));
                    }
                }
                // The level is that of the model to within the cell that is not whole yet and the spare one it may
                // displace.
                let level = i128::from(budget.left()) - i128::from(budget.owed);
                let want = model.level.div_euclid(model.per_cell);
                prop_assert!((level - want).abs() <= 2, "level {level}, model {want}");
            }
        }
    }
}
