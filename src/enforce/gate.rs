//! Whether a request may go on under the directives of its agent: now, after a wait, or not.

use std::iter::once;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::limiter::{CellId, Limiters, Rate};
use super::slots::{AgentSlot, Crowd};
use crate::clock::Clock;
use crate::types::directive::{Directive, Order, Subject};
use crate::types::ids::{IncidentId, RuleName};

/// When to ask again after there were too many exchanges in flight: nobody knows when one of them ends.
const CROWDED_RETRY: Duration = Duration::from_millis(50);

/// What the gate says.
#[derive(Debug)]
pub enum Verdict {
    /// Go on; keep the permit until the exchange ends.
    Open(Permit),
    /// Not yet; `retry_after` says when to ask again.
    Wait(Why),
    /// No, and waiting on our side does not help.
    Refused(Why),
    /// No, and no retry helps: this directive contains the sender.
    Contained(Arc<Directive>),
}

/// Which limit stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limited {
    /// Requests a minute.
    RequestRate,
    /// Tokens a minute.
    TokenRate,
    /// Requests at once.
    Concurrency,
}

/// Why a request has to wait or is refused.
#[derive(Debug, Clone)]
pub struct Why {
    /// Which limit.
    pub kind: Limited,
    /// The incident behind it.
    pub incident: IncidentId,
    /// The rule behind that.
    pub rule: RuleName,
    /// The limit.
    pub limit: u64,
    /// What is left of it now.
    pub remaining: u64,
    /// When it is worth asking again.
    pub retry_after: Duration,
}

/// Leave to go on: counts as in flight until dropped, and holds reserved tokens until settled.
///
/// Dropped without a word it keeps its reservations: what is not known to be unused counts as used.
#[derive(Debug)]
pub struct Permit {
    slot: Arc<AgentSlot>,
    /// Empty, and without memory of its own, when no rate binds the agent.
    held: Vec<Held>,
}

/// What was taken from one budget.
#[derive(Debug, Clone, Copy)]
struct Held {
    fleet: bool,
    cell: CellId,
    kind: Limited,
    amount: u64,
}

/// The directive among `directives` that contains whom they bind.
pub fn containing<'a>(mut directives: impl Iterator<Item = &'a Arc<Directive>>) -> Option<Arc<Directive>> {
    directives
        .find(|d| matches!(d.order, Order::Contain { .. }))
        .map(Arc::clone)
}

/// Asks whether a request of `estimate` tokens may go on.
///
/// All directives apply: it goes on when each of them lets it, and takes nothing when one does not. An estimate of
/// zero is one that has nothing to do with tokens; it is not held to token rates.
pub fn admit<'a>(
    slot: &Arc<AgentSlot>,
    mut directives: impl Iterator<Item = &'a Arc<Directive>>,
    clock: &Clock,
    estimate: u64,
) -> Verdict {
    let (permit, before) = Permit::enter(slot);
    let Some(first) = directives.next() else {
        return Verdict::Open(permit);
    };
    let mut bound: SmallVec<[&Directive; 4]> = SmallVec::new();
    for directive in once(first).chain(directives) {
        // Before all limits: who is contained does not even count against one.
        if let Order::Contain { .. } = directive.order {
            return Verdict::Contained(Arc::clone(directive));
        }
        bound.push(directive);
    }
    permit.obey(&bound, before, clock, estimate)
}

impl Permit {
    /// Counts a request as in flight; also returns how many there were before it.
    fn enter(slot: &Arc<AgentSlot>) -> (Self, Crowd) {
        let before = slot.enter();
        let permit = Self {
            slot: Arc::clone(slot),
            held: Vec::new(),
        };
        (permit, before)
    }

    fn obey(mut self, bound: &[&Directive], before: Crowd, clock: &Clock, estimate: u64) -> Verdict {
        if let Some(why) = bound.iter().find_map(|d| crowded(d, before)) {
            return Verdict::Wait(why);
        }
        let mut worst: Option<Why> = None;
        for &directive in bound {
            for (kind, quota, amount) in rates(&directive.order, estimate) {
                let rate = Rate {
                    directive,
                    kind,
                    quota,
                };
                let fleet = directive.subject == Subject::Fleet;
                let taken = self
                    .limiters(fleet)
                    .take(rate, amount, bound.iter().copied(), clock);
                match taken {
                    Ok(cell) => self.held.push(Held {
                        fleet,
                        cell,
                        kind,
                        amount,
                    }),
                    // All are asked, so that the longest wait is known at once.
                    Err(retry_after) => {
                        if worst.as_ref().is_none_or(|w| retry_after > w.retry_after) {
                            worst = Some(Why::new(kind, directive, quota.get(), retry_after));
                        }
                    }
                }
            }
        }
        match worst {
            None => Verdict::Open(self),
            Some(why) => {
                self.give_back();
                Verdict::Wait(why)
            }
        }
    }

    /// Corrects the reservation to what was really used. `None` (not known) keeps the reservation, as far as the
    /// limiter could ever have given it at once: a guess at a request of many megabytes that failed must not shut an
    /// agent out for an hour.
    pub fn settle(&mut self, tokens: Option<u64>) {
        for at in 0..self.held.len() {
            let Some(&held) = self.held.get(at) else { continue };
            if held.kind != Limited::TokenRate {
                continue;
            }
            let limiters = self.limiters(held.fleet);
            let used = match tokens {
                Some(tokens) => tokens,
                None => held.amount.min(limiters.burst(held.cell).unwrap_or(u64::MAX)),
            };
            limiters.settle(held.cell, held.amount, used);
            // Settling again corrects again, from here.
            if let Some(held) = self.held.get_mut(at) {
                held.amount = used;
            }
        }
    }

    /// Nothing was sent: gives the reservation back.
    pub fn give_back(self) {
        for held in &self.held {
            self.limiters(held.fleet).settle(held.cell, held.amount, 0);
        }
    }

    fn limiters(&self, fleet: bool) -> &Limiters {
        if fleet {
            self.slot.fleet_limiters()
        } else {
            self.slot.limiters()
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.slot.leave();
    }
}

impl Why {
    fn new(kind: Limited, directive: &Directive, limit: u32, retry_after: Duration) -> Self {
        Self {
            kind,
            incident: directive.incident.clone(),
            rule: directive.rule.clone(),
            limit: limit.into(),
            // There is not one left, else nothing would stand in the way.
            remaining: 0,
            retry_after,
        }
    }
}

fn crowded(directive: &Directive, before: Crowd) -> Option<Why> {
    let Order::CapConcurrency { max_in_flight } = directive.order else {
        return None;
    };
    let in_flight = match directive.subject {
        // An execution or a version is bound by what its agent has in flight: nothing narrower is counted.
        Subject::Agent(_) | Subject::Execution { .. } | Subject::Version { .. } => before.agent,
        Subject::Fleet => before.fleet,
    };
    (in_flight >= u64::from(max_in_flight.max(1)))
        .then(|| Why::new(Limited::Concurrency, directive, max_in_flight, CROWDED_RETRY))
}

/// The rates that an order asks for, with how much a request of `estimate` tokens takes of each.
fn rates(order: &Order, estimate: u64) -> impl Iterator<Item = (Limited, NonZeroU32, u64)> {
    let (requests, tokens) = match *order {
        Order::Throttle {
            requests_per_minute,
            tokens_per_minute,
        } => (requests_per_minute, tokens_per_minute),
        _ => (None, None),
    };
    [
        (Limited::RequestRate, requests, 1),
        (Limited::TokenRate, tokens, estimate),
    ]
    .into_iter()
    .filter_map(|(kind, quota, amount)| {
        let quota = NonZeroU32::new(quota?.max(1))?;
        (amount > 0).then_some((kind, quota, amount))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::enforce::slots::Slots;
    use crate::types::ids::AgentId;
    use crate::types::time::{Mono, Now, Wall};

    struct Rig {
        clock: Clock,
        slots: Slots,
    }

    impl Rig {
        fn new() -> Self {
            Self {
                clock: Clock::manual(Now {
                    mono: Mono::from_millis(1000),
                    wall: Wall::default(),
                }),
                slots: Slots::new(10),
            }
        }

        fn slot(&self, agent: &str) -> Arc<AgentSlot> {
            self.slots.slot(&AgentId::from(agent))
        }

        fn admit(&self, agent: &str, directives: &[Arc<Directive>], estimate: u64) -> Verdict {
            admit(&self.slot(agent), directives.iter(), &self.clock, estimate)
        }

        fn open(&self, agent: &str, directives: &[Arc<Directive>], estimate: u64) -> Permit {
            match self.admit(agent, directives, estimate) {
                Verdict::Open(permit) => permit,
                other => panic!("{other:?}"),
            }
        }

        fn wait(&self, agent: &str, directives: &[Arc<Directive>], estimate: u64) -> Why {
            match self.admit(agent, directives, estimate) {
                Verdict::Wait(why) => why,
                other => panic!("{other:?}"),
            }
        }

        fn in_flight(&self, agent: &str) -> u64 {
            self.slot(agent).view().in_flight
        }
    }

    fn directive(name: &str, subject: Subject, order: Order) -> Arc<Directive> {
        Arc::new(Directive {
            lease: format!("lease-{name}").into(),
            incident: format!("incident-{name}").into(),
            rule: format!("rule-{name}").into(),
            subject,
            order,
            since: Wall::default(),
            expires: Wall::default(),
            until: Mono::FAR,
        })
    }

    fn own(name: &str, order: Order) -> Arc<Directive> {
        directive(name, Subject::Agent(AgentId::from("a")), order)
    }

    fn throttle(requests: impl Into<Option<u32>>, tokens: impl Into<Option<u32>>) -> Order {
        Order::Throttle {
            requests_per_minute: requests.into(),
            tokens_per_minute: tokens.into(),
        }
    }

    fn cap(max_in_flight: u32) -> Order {
        Order::CapConcurrency { max_in_flight }
    }

    #[test]
    fn without_directives_it_only_counts() {
        let rig = Rig::new();
        let one = rig.open("a", &[], u64::MAX);
        let mut two = rig.open("a", &[], 1);
        two.settle(Some(5));
        assert_eq!(rig.in_flight("a"), 2);
        one.give_back();
        assert_eq!(rig.in_flight("a"), 1);
        drop(two);
        assert_eq!(rig.in_flight("a"), 0);
        let other = own("d", Order::DowngradeModel { to: None });
        drop(rig.open("a", &[other], 1));
        assert_eq!(rig.in_flight("a"), 0);
    }

    #[test]
    fn who_is_contained_is_told_so_before_any_limit() {
        let rig = Rig::new();
        let spent = own("t", throttle(6, None));
        let contain = own(
            "k",
            Order::Contain {
                reason: "stopped".to_owned(),
            },
        );
        drop(rig.open("a", std::slice::from_ref(&spent), 1));
        rig.wait("a", std::slice::from_ref(&spent), 1);
        for all in [
            vec![contain.clone()],
            vec![spent.clone(), contain.clone()],
            vec![contain.clone(), spent.clone()],
            vec![own("c", cap(1)), spent.clone(), contain.clone()],
        ] {
            match rig.admit("a", &all, 1) {
                Verdict::Contained(by) => assert_eq!(by.rule.as_str(), "rule-k"),
                other => panic!("{other:?}"),
            }
            assert_eq!(containing(all.iter()).unwrap().rule.as_str(), "rule-k");
        }
        assert!(containing([spent].iter()).is_none());
        assert_eq!(rig.in_flight("a"), 0);
    }

    #[test]
    fn request_rates_are_kept() {
        let rig = Rig::new();
        let d = [own("t", throttle(60, None))];
        for _ in 0..10 {
            drop(rig.open("a", &d, 1_000_000));
        }
        let why = rig.wait("a", &d, 1);
        assert_eq!(
            (why.kind, why.limit, why.remaining, why.retry_after),
            (Limited::RequestRate, 60, 0, Duration::from_secs(1))
        );
        assert_eq!(
            (why.rule.as_str(), why.incident.as_str()),
            ("rule-t", "incident-t")
        );
        rig.clock.advance(why.retry_after);
        rig.open("a", &d, 1).give_back();
        drop(rig.open("a", &d, 1));
        rig.wait("a", &d, 1);
        // Other agents are not bound by it (they would not be given the directive), and those refused are not counted.
        assert_eq!(rig.in_flight("a"), 0);
    }

    #[test]
    fn token_rates_are_settled_with_the_truth() {
        let rig = Rig::new();
        let d = [own("t", throttle(None, 6000))];
        // 1500 at once, 100 a second.
        let mut permit = rig.open("a", &d, 500);
        permit.settle(Some(2500));
        assert_eq!(rig.wait("a", &d, 1).retry_after, Duration::from_millis(10_010));
        // Settling once more corrects, it does not add.
        permit.settle(Some(1600));
        assert_eq!(rig.wait("a", &d, 1).retry_after, Duration::from_millis(1010));
        drop(permit);
        rig.clock.advance(Duration::from_millis(1010));
        let permit = rig.open("a", &d, 700);
        let why = rig.wait("a", &d, 700);
        assert_eq!(why.retry_after, Duration::from_secs(7));
        assert_eq!((why.kind, why.limit), (Limited::TokenRate, 6000));
        permit.give_back();
        drop(rig.open("a", &d, 1));
    }

    #[test]
    fn what_is_not_known_counts_as_used() {
        let rig = Rig::new();
        for settle in [false, true] {
            let d = [own(&format!("t{settle}"), throttle(None, 6000))];
            let mut permit = rig.open("a", &d, 1500);
            if settle {
                permit.settle(None);
            }
            drop(permit);
            assert_eq!(rig.wait("a", &d, 1).retry_after, Duration::from_millis(10));
        }
        // A wild guess about something that then failed costs no more than a burst.
        let d = [own("wild", throttle(None, 6000))];
        let mut permit = rig.open("a", &d, 1_000_000);
        rig.wait("a", &d, 1);
        permit.settle(None);
        assert_eq!(rig.wait("a", &d, 1).retry_after, Duration::from_millis(10));
    }

    #[test]
    fn an_estimate_of_nothing_is_held_to_request_rates_alone() {
        let rig = Rig::new();
        let d = [own("t", throttle(60, 60))];
        drop(rig.open("a", &d, 1000));
        rig.wait("a", &d, 1);
        drop(rig.open("a", &d, 0));
    }

    #[test]
    fn concurrency_is_capped_by_what_is_in_flight_already() {
        let rig = Rig::new();
        let before = rig.open("a", &[], 1);
        let d = [own("c", cap(2))];
        let second = rig.open("a", &d, 1);
        let why = rig.wait("a", &d, 1);
        assert_eq!((why.kind, why.limit, why.remaining), (Limited::Concurrency, 2, 0));
        assert_eq!(why.retry_after, CROWDED_RETRY);
        assert_eq!(rig.in_flight("a"), 2);
        drop(before);
        let third = rig.open("a", &d, 1);
        rig.wait("a", &d, 1);
        drop((second, third));
        // No less than one may go on, whatever is asked.
        drop(rig.open("a", &[own("c", cap(0))], 1));
    }

    #[test]
    fn the_strictest_applies_and_what_was_taken_is_given_back() {
        let rig = Rig::new();
        let wide = own("wide", throttle(6000, None));
        let narrow = own("narrow", throttle(6, None));
        let tokens = own("tokens", throttle(None, 60));
        let all = [wide.clone(), narrow.clone(), tokens.clone()];
        drop(rig.open("a", &all, 1015));
        // 1000 tokens are owed at one a second; the longer wait is told.
        for _ in 0..1000 {
            let why = rig.wait("a", &all, 1);
            assert_eq!(why.kind, Limited::TokenRate);
            assert_eq!(why.retry_after, Duration::from_secs(1001));
        }
        // A thousand refusals used up nothing of the wide one.
        for _ in 0..999 {
            drop(rig.open("a", std::slice::from_ref(&wide), 1));
        }
        rig.wait("a", std::slice::from_ref(&wide), 1);
    }

    #[test]
    fn the_fleet_is_bound_as_a_whole() {
        let rig = Rig::new();
        let d = [directive("f", Subject::Fleet, throttle(12, None))];
        drop(rig.open("a", &d, 1));
        drop(rig.open("b", &d, 1));
        assert_eq!(rig.wait("c", &d, 1).retry_after, Duration::from_secs(5));
        // One of its own beside it is kept apart.
        let both = [own("t", throttle(60, None)), d[0].clone()];
        rig.wait("a", &both, 1);
        rig.clock.advance(Duration::from_secs(5));
        drop(rig.open("a", &both, 1));

        let d = [directive("c", Subject::Fleet, cap(2))];
        let held = (rig.open("a", &[], 1), rig.open("b", &d, 1));
        rig.wait("c", &d, 1);
        drop(held);
        drop(rig.open("c", &d, 1));
    }

    #[test]
    fn agents_without_a_slot_are_bound_with_the_fleet() {
        let rig = Rig {
            slots: Slots::new(1),
            ..Rig::new()
        };
        let d = [directive("f", Subject::Fleet, throttle(12, None))];
        drop(rig.open("a", &d, 1));
        drop(rig.open("b", &d, 1));
        assert_eq!(rig.slots.turned_away(), 1);
        rig.wait("c", &d, 1);
        rig.wait("a", &d, 1);
    }

    #[test]
    fn a_slot_that_owes_tokens_is_kept_for_its_agent() {
        let rig = Rig {
            slots: Slots::new(1),
            ..Rig::new()
        };
        // 60 a minute, so 10,000 are owed for hours.
        drop(rig.open("a", &[own("t", throttle(None, 60))], 10_000));
        rig.clock.advance(Duration::from_secs(2 * 3600));
        assert_eq!(rig.slots.make_room(rig.clock.mono(), |_| false), 0);
        rig.clock.advance(Duration::from_secs(3600));
        assert_eq!(rig.slots.make_room(rig.clock.mono(), |_| false), 1);
    }

    #[test]
    fn a_cap_holds_when_many_come_at_once() {
        let rig = Rig::new();
        let d = [own("c", cap(3))];
        let opened = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..5000 {
                        if let Verdict::Open(permit) = rig.admit("a", &d, 1) {
                            opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            std::thread::yield_now();
                            drop(permit);
                        }
                    }
                });
            }
        });
        assert!(opened.into_inner() > 0);
        assert_eq!(rig.in_flight("a"), 0);
        let held: Vec<_> = (0..3).map(|_| rig.open("a", &d, 1)).collect();
        rig.wait("a", &d, 1);
        drop(held);
    }

    proptest! {
        /// Whatever agents do under throttles of their own and of the fleet: what they really used stays within each
        /// quota, its burst and what was in flight when the last of them was let in, and a wait is never told too
        /// long.
        #[test]
        fn usage_stays_within_every_quota(
            own_quota in 60..60_000u32,
            fleet_quota in 60..60_000u32,
            steps in proptest::collection::vec(
                (0..5_000u64, 0..2usize, 1..5_000u64, 0..5_000u64, any::<bool>()), 1..150),
        ) {
            let rig = Rig::new();
            let start = rig.clock.mono();
            let fleet = directive("f", Subject::Fleet, throttle(None, fleet_quota));
            let a = [own("t", throttle(None, own_quota)), fleet.clone()];
            let b = [fleet];
            let bound = |quota: u32| {
                let minutes = rig.clock.mono().since(start).as_secs_f64() / 60.0;
                f64::from(quota) * minutes + f64::from(quota / 4) + 1.0
            };
            let mut flying: Vec<(usize, u64, u64, Permit)> = Vec::new();
            // By agent: used for good.
            let mut used = [0u64; 2];
            for (pause, agent, estimate, real, finish) in steps {
                rig.clock.advance(Duration::from_millis(pause));
                let (name, directives) = if agent == 0 { ("a", &a[..]) } else { ("b", &b[..]) };
                let booked = |who: usize, used: &[u64; 2], flying: &[(usize, u64, u64, Permit)]| {
                    used[who] + flying.iter().filter(|f| f.0 == who).map(|f| f.1).sum::<u64>()
                };
                let of_a = booked(0, &used, &flying);
                let of_both = of_a + booked(1, &used, &flying);
                match rig.admit(name, directives, estimate) {
                    Verdict::Open(permit) => {
                        if agent == 0 {
                            prop_assert!(of_a as f64 <= bound(own_quota));
                        }
                        prop_assert!(of_both as f64 <= bound(fleet_quota));
                        flying.push((agent, estimate, real, permit));
                    }
                    Verdict::Wait(why) => {
                        let (booked, quota) = if why.rule.as_str() == "rule-f" {
                            (of_both, fleet_quota)
                        } else {
                            (of_a, own_quota)
                        };
                        // Had nothing ever flowed over, the wait would be exactly what is booked beyond the bound.
                        let due = booked as f64 + 3.0;
                        let told = why.retry_after.as_secs_f64() / 60.0 * f64::from(quota);
                        prop_assert!(told <= due, "told {told} cells, {due} were ever booked");
                    }
                    Verdict::Refused(why) => prop_assert!(false, "{why:?}"),
                    Verdict::Contained(by) => prop_assert!(false, "{by:?}"),
                }
                if finish && !flying.is_empty() {
                    let (agent, _, real, mut permit) = flying.swap_remove(0);
                    permit.settle(Some(real));
                    used[agent] += real;
                }
            }
            drop(flying);
            prop_assert_eq!(rig.in_flight("a") + rig.in_flight("b"), 0);
        }
    }
}
