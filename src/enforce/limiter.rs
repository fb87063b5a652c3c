//! The rate limiters of one subject: one budget for each directive and kind of rate, kept over renewals of its lease.

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::budget::Budget;
use super::gate::Limited;
use crate::clock::Clock;
use crate::types::directive::Directive;
use crate::types::ids::{IncidentId, LeaseId};

/// The rate limiters of one agent, or of the fleet. Takes no room until a directive asks for a rate.
///
/// The lock is short (arithmetic and at most three calls of governor) and never held across an await.
#[derive(Debug, Default)]
pub(super) struct Limiters(Mutex<Cells>);

#[derive(Debug, Default)]
struct Cells {
    cells: Vec<Cell>,
    last: u64,
}

#[derive(Debug)]
struct Cell {
    id: CellId,
    lease: LeaseId,
    incident: IncidentId,
    kind: Limited,
    quota: NonZeroU32,
    budget: Budget,
}

/// Finds a budget again, to settle with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CellId(u64);

/// A rate that a directive asks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rate<'a> {
    pub(super) directive: &'a Directive,
    pub(super) kind: Limited,
    pub(super) quota: NonZeroU32,
}

impl Limiters {
    /// Takes `amount` of `rate`. `bound` holds every directive that binds the request: what belongs to none of them
    /// may be forgotten.
    ///
    /// # Errors
    /// How long until it is worth asking again.
    pub(super) fn take<'a>(
        &self,
        rate: Rate<'_>,
        amount: u64,
        bound: impl Iterator<Item = &'a Directive> + Clone,
        clock: &Clock,
    ) -> Result<CellId, Duration> {
        let mut cells = self.lock();
        let Some(cell) = cells.of(rate, bound, clock) else {
            return Err(Duration::from_secs(1));
        };
        match cell.budget.take(amount) {
            Ok(()) => Ok(cell.id),
            Err(short) => Err(short.retry_after),
        }
    }

    /// Corrects `reserved` to what was `used`. Nothing happens when the budget is gone: so is its directive.
    pub(super) fn settle(&self, id: CellId, reserved: u64, used: u64) {
        if reserved == used {
            return;
        }
        if let Some(cell) = self.lock().cells.iter_mut().find(|c| c.id == id) {
            if used > reserved {
                cell.budget.charge(used - reserved);
            } else {
                cell.budget.put_back(reserved - used);
            }
        }
    }

    /// Whether anything is owed to one of them.
    pub(super) fn owe(&self) -> bool {
        self.lock().cells.iter_mut().any(|cell| cell.budget.owes())
    }

    /// Most that the budget holds; `None` when it is gone.
    pub(super) fn burst(&self, id: CellId) -> Option<u64> {
        let cells = self.lock();
        let cell = cells.cells.iter().find(|c| c.id == id)?;
        Some(cell.budget.burst())
    }

    fn lock(&self) -> MutexGuard<'_, Cells> {
        // Numbers only: whatever a panic left behind is as good as any other state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cells {
    /// The cell of a rate: that of its lease, else one that the same incident left behind (a lease that is renewed
    /// or changed step by step must not hand out a fresh burst each time, nor forget what is owed), else a new one.
    fn of<'a>(
        &mut self,
        rate: Rate<'_>,
        bound: impl Iterator<Item = &'a Directive> + Clone,
        clock: &Clock,
    ) -> Option<&mut Cell> {
        let Rate {
            directive,
            kind,
            quota,
        } = rate;
        let in_force = |cell: &Cell| bound.clone().any(|d| d.lease == cell.lease);
        let found = self
            .cells
            .iter()
            .position(|c| c.kind == kind && c.lease == directive.lease)
            .or_else(|| {
                self.cells
                    .iter()
                    .position(|c| c.kind == kind && c.incident == directive.incident && !in_force(c))
            });
        let index = if let Some(index) = found {
            index
        } else {
            self.cells.retain(in_force);
            self.last += 1;
            self.cells.push(Cell {
                id: CellId(self.last),
                lease: directive.lease.clone(),
                incident: directive.incident.clone(),
                kind,
                quota,
                budget: Budget::new(quota, burst(kind, quota), clock.clone()),
            });
            self.cells.len() - 1
        };
        let cell = self.cells.get_mut(index)?;
        if cell.lease != directive.lease {
            cell.lease = directive.lease.clone();
        }
        if cell.quota != quota {
            cell.quota = quota;
            cell.budget.change(quota, burst(kind, quota));
        }
        Some(cell)
    }
}

/// How much may come at once.
///
/// Requests: ten seconds' worth. An agent that sends a few calls in a row and then thinks is not held up, and a
/// provider that counts requests by the minute sees at most a sixth above the quota.
///
/// Tokens: fifteen seconds' worth. Requests differ in size by a factor of a hundred, so that less would make most of
/// them overdraw, and more would let an explosion go on for longer after it was found.
fn burst(kind: Limited, per_minute: NonZeroU32) -> NonZeroU32 {
    let part = match kind {
        Limited::TokenRate => 4,
        Limited::RequestRate | Limited::Concurrency => 6,
    };
    NonZeroU32::new(per_minute.get() / part).unwrap_or(NonZeroU32::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::directive::{Order, Subject};
    use crate::types::ids::AgentId;
    use crate::types::time::{Mono, Now, Wall};

    fn directive(lease: &str, incident: &str) -> Directive {
        Directive {
            lease: lease.into(),
            incident: incident.into(),
            rule: "r".into(),
            subject: Subject::Agent(AgentId::from("a")),
            order: Order::CapConcurrency { max_in_flight: 1 },
            since: Wall::default(),
            expires: Wall::default(),
            until: Mono::FAR,
        }
    }

    fn rate(directive: &Directive, quota: u32) -> Rate<'_> {
        Rate {
            directive,
            kind: Limited::TokenRate,
            quota: NonZeroU32::new(quota).unwrap(),
        }
    }

    fn clock() -> Clock {
        Clock::manual(Now {
            mono: Mono::from_millis(1),
            wall: Wall::default(),
        })
    }

    fn take(
        limiters: &Limiters,
        d: &Directive,
        quota: u32,
        amount: u64,
        clock: &Clock,
    ) -> Result<CellId, Duration> {
        limiters.take(rate(d, quota), amount, std::iter::once(d), clock)
    }

    #[test]
    fn bursts_are_never_nothing() {
        for (kind, quota, want) in [
            (Limited::RequestRate, 1, 1),
            (Limited::RequestRate, 60, 10),
            (Limited::TokenRate, 3, 1),
            (Limited::TokenRate, 4000, 1000),
        ] {
            assert_eq!(burst(kind, NonZeroU32::new(quota).unwrap()).get(), want);
        }
    }

    #[test]
    fn a_debt_outlives_a_new_lease_and_a_new_quota_of_its_incident() {
        let clock = clock();
        let limiters = Limiters::default();
        let first = take(&limiters, &directive("l1", "i1"), 600, 1150, &clock).unwrap();
        // 1000 owed, at ten a second.
        let renewed = directive("l2", "i1");
        assert_eq!(
            take(&limiters, &renewed, 600, 1, &clock),
            Err(Duration::from_millis(100_100))
        );
        assert_eq!(
            take(&limiters, &renewed, 6000, 1, &clock),
            Err(Duration::from_millis(10_010))
        );
        // What was reserved under the first lease settles with the same budget.
        limiters.settle(first, 1150, 0);
        assert_eq!(take(&limiters, &renewed, 6000, 1, &clock), Ok(first));
    }

    #[test]
    fn what_is_owed_is_known_until_it_is_paid() {
        let clock = clock();
        let limiters = Limiters::default();
        assert!(!limiters.owe());
        // 1000 owed beyond the burst of 150, at ten a second.
        take(&limiters, &directive("l1", "i1"), 600, 1150, &clock).unwrap();
        assert!(limiters.owe());
        clock.advance(std::time::Duration::from_secs(99));
        assert!(limiters.owe());
        clock.advance(std::time::Duration::from_secs(2));
        assert!(!limiters.owe());
    }

    #[test]
    fn another_incident_starts_afresh_and_what_ended_is_forgotten() {
        let clock = clock();
        let limiters = Limiters::default();
        let old = take(&limiters, &directive("l1", "i1"), 600, 9999, &clock).unwrap();
        let new = take(&limiters, &directive("l2", "i2"), 600, 1, &clock).unwrap();
        assert_ne!(old, new);
        assert_eq!(limiters.burst(old), None);
        assert_eq!(limiters.burst(new), Some(150));
        limiters.settle(old, 9999, 0);
    }
}
