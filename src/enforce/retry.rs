//! The retry budget of one agent: how many further attempts its requests of the last minute may take.

use std::sync::atomic::{AtomicU64, Ordering};

use super::failover::RetryBudget;
use crate::types::time::Mono;

/// Parts of the last minute, and how long one is in nanoseconds.
const PARTS: usize = 6;
const PART: u64 = 10_000_000_000;

/// What one part can count at most.
const MOST: u64 = (1 << 20) - 1;

/// Requests of one agent in the last minute (50 to 60 seconds), and how many attempts they took beyond the first: its
/// own client's, as far as that says so, and ours.
///
/// Written only by requests that may be sent to another upstream.
#[derive(Debug, Default)]
pub struct Attempts {
    /// Which part of time (24 bits), requests (20), further attempts (20).
    parts: [AtomicU64; PARTS],
}

impl Attempts {
    /// A request came; `again` when its client says that it sent it before.
    pub fn request(&self, again: bool, now: Mono) {
        self.add(1, again.into(), now);
    }

    /// Takes one further attempt from the budget; `false` when nothing is left of it.
    pub fn take(&self, budget: &RetryBudget, now: Mono) -> bool {
        // Taken first and given back if it was too much: of those who come at once none is counted too low.
        self.add(0, 1, now);
        let (requests, further) = self.sums(now);
        let allowed = (requests as f64 * budget.percent.clamp(0.0, 100.0) / 100.0) as u64;
        if further <= allowed.max(budget.min_per_minute.into()) {
            return true;
        }
        self.part(now, |(requests, further)| (requests, further.saturating_sub(1)));
        false
    }

    fn add(&self, requests: u64, further: u64, now: Mono) {
        self.part(now, |(r, f)| ((r + requests).min(MOST), (f + further).min(MOST)));
    }

    /// Changes the counts of the part of time that `now` is in.
    fn part(&self, now: Mono, change: impl Fn((u64, u64)) -> (u64, u64)) {
        let time = time(now);
        let Some(part) = self.parts.get(time as usize % PARTS) else {
            return;
        };
        let new = |old: u64| {
            let counts = if old >> 40 == time { counts(old) } else { (0, 0) };
            let (requests, further) = change(counts);
            time << 40 | requests << 20 | further
        };
        let mut old = part.load(Ordering::Relaxed);
        while let Err(now) = part.compare_exchange_weak(old, new(old), Ordering::Relaxed, Ordering::Relaxed) {
            old = now;
        }
    }

    fn sums(&self, now: Mono) -> (u64, u64) {
        let time = time(now);
        self.parts
            .iter()
            .map(|part| part.load(Ordering::Relaxed))
            .filter(|part| time.wrapping_sub(part >> 40) & ((1 << 24) - 1) < PARTS as u64)
            .map(counts)
            .fold((0, 0), |(r, f), (requests, further)| (r + requests, f + further))
    }
}

fn time(now: Mono) -> u64 {
    // Wraps round after five years.
    (now.as_nanos() / PART) & ((1 << 24) - 1)
}

fn counts(part: u64) -> (u64, u64) {
    (part >> 20 & MOST, part & MOST)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const BUDGET: RetryBudget = RetryBudget {
        percent: 20.0,
        min_per_minute: 3,
    };

    fn at(second: u64) -> Mono {
        Mono::from_millis((1_000_000 + second) * 1000)
    }

    fn taken(attempts: &Attempts, now: Mono) -> u64 {
        (0..1000).filter(|_| attempts.take(&BUDGET, now)).count() as u64
    }

    #[test]
    fn a_share_of_the_last_minute_and_a_floor() {
        let attempts = Attempts::default();
        assert_eq!(taken(&attempts, at(0)), 3, "the floor");
        for second in 0..50 {
            attempts.request(false, at(second));
            attempts.request(false, at(second));
        }
        assert_eq!(taken(&attempts, at(49)), 17, "20 of 100, less 3");
        assert_eq!(
            taken(&attempts, at(120)),
            3,
            "a minute later nothing is left of it"
        );
    }

    #[test]
    fn what_the_clients_own_library_sends_again_counts() {
        let attempts = Attempts::default();
        for _ in 0..100 {
            attempts.request(false, at(0));
        }
        for _ in 0..15 {
            attempts.request(true, at(1));
        }
        assert_eq!(taken(&attempts, at(2)), 8, "20 % of 115, less 15");
    }

    #[test]
    fn no_budget_is_none() {
        let none = RetryBudget {
            percent: 0.0,
            min_per_minute: 0,
        };
        let attempts = Attempts::default();
        (0..100).for_each(|_| attempts.request(false, at(0)));
        assert!(!attempts.take(&none, at(0)));
    }

    #[test]
    fn nobody_gets_more_when_many_come_at_once() {
        let attempts = Attempts::default();
        (0..100).for_each(|_| attempts.request(false, at(0)));
        let total: u64 = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4).map(|_| s.spawn(|| taken(&attempts, at(1)))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).sum()
        });
        assert!((16..=20).contains(&total), "{total}");
    }

    proptest! {
        /// Never more further attempts in any fifty seconds than the share of a minute's requests and the floor.
        #[test]
        fn the_bound_holds(steps in prop::collection::vec((0..4_u64, any::<bool>()), 0..300)) {
            let attempts = Attempts::default();
            let mut now = at(0);
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (wait, retry) in steps {
                now = now.after(Duration::from_secs(wait));
                if retry {
                    if attempts.take(&BUDGET, now) {
                        retries.push(now);
                    }
                } else {
                    attempts.request(false, now);
                    requests.push(now);
                }
                let lately = |all: &[Mono], seconds| {
                    all.iter().filter(|t| now.since(**t) < Duration::from_secs(seconds)).count() as u64
                };
                // What was allowed by requests that are forgotten since may still be counted.
                let allowed = (lately(&requests, 120) / 5).max(3);
                prop_assert!(lately(&retries, 50) <= allowed);
            }
        }
    }
}
