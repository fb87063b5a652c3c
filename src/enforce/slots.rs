//! What is known of each agent on the requests' side: limiters, in-flight count, totals; bounded, outlives reloads.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::{DashMap, Entry};

use super::limiter::Limiters;
use super::retry::Attempts;
use crate::types::ids::AgentId;
use crate::types::observation::{Observation, Outcome};
use crate::types::time::Mono;
use crate::types::usage::{Cost, UsageSource};

/// All agents; at most `max` and one overflow slot.
///
/// An agent keeps its slot while it is there, and an hour longer; then it may make room for another. One that is bound
/// by a directive or owes tokens stays, however long it is silent: else a client could shake off a throttle by inventing
/// names.
#[derive(Debug)]
pub struct Slots {
    max: usize,
    count: AtomicUsize,
    by_agent: DashMap<AgentId, Arc<AgentSlot>>,
    overflow: Arc<AgentSlot>,
    overflowed: AtomicU64,
    turned_away: TurnedAway,
    /// What agents used whose slots made room.
    gone: Mutex<TotalsView>,
    fleet: Arc<Fleet>,
}

/// Agents that found no room, told apart by 64 bits of a keyed hash of their names; at most [`MAX_TURNED_AWAY`].
#[derive(Debug, Default)]
struct TurnedAway {
    names: Mutex<HashSet<u64>>,
    keys: RandomState,
}

/// One agent.
#[derive(Debug)]
pub struct AgentSlot {
    agent: AgentId,
    /// What it used so far.
    pub totals: Totals,
    /// What its requests took of the retry budget.
    pub attempts: Attempts,
    in_flight: AtomicU64,
    limiters: Limiters,
    fleet: Arc<Fleet>,
}

/// What all agents share, for directives that bind the fleet as a whole.
#[derive(Debug, Default)]
struct Fleet {
    in_flight: AtomicU64,
    limiters: Limiters,
}

/// How many exchanges are in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    pub(super) agent: u64,
    pub(super) fleet: u64,
}

/// Sums since the start, kept by the request side so that nothing spent is lost when an observation is.
#[derive(Debug)]
pub struct Totals {
    requests: AtomicU64,
    refused: AtomicU64,
    errors: AtomicU64,
    input_tokens: AtomicU64,
    output_tokens: AtomicU64,
    cost_nanos: AtomicU64,
    /// Moving average of the tokens that an answer of this agent has, times [`SCALE`].
    usual_output: AtomicU64,
    /// When the last exchange ended, in nanoseconds of the monotonic clock.
    last: AtomicU64,
}

/// Totals at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, schemars::JsonSchema)]
pub struct TotalsView {
    /// Exchanges, refused ones included.
    pub requests: u64,
    /// Exchanges that fusebox refused.
    pub refused: u64,
    /// Exchanges that failed upstream.
    pub errors: u64,
    /// Input tokens, cached ones included.
    pub input_tokens: u64,
    /// Output tokens, reasoning included.
    pub output_tokens: u64,
    /// US dollars.
    pub cost_usd: f64,
    /// Exchanges in flight.
    pub in_flight: u64,
}

/// Output tokens expected of an agent that has not answered yet: a little above the mean answer of public traces of
/// chat traffic (Azure 2023: 204). Being wrong costs little: every exchange is settled, and the average follows.
const DEFAULT_OUTPUT: u64 = 256;

/// How much one answer moves the average, as a power of two: 1/8 forgets half of the past in five answers.
const SMOOTHING: u32 = 3;

/// Fixed point of the average, so that small steps are not lost.
const SCALE: u64 = 256;

/// An answer beyond this is taken for this (a million tokens; no model answers as much).
const MAX_OUTPUT: u64 = 1 << 20;

/// An agent without an exchange for so long may make room for another.
const IDLE: Duration = Duration::from_secs(3600);

/// Most agents without a slot that are told apart (half a megabyte).
const MAX_TURNED_AWAY: usize = 64 << 10;

impl TotalsView {
    /// The sum of both.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            refused: self.refused.saturating_add(other.refused),
            errors: self.errors.saturating_add(other.errors),
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            cost_usd: self.cost_usd + other.cost_usd,
            in_flight: self.in_flight.saturating_add(other.in_flight),
        }
    }
}

impl Slots {
    /// Room for `max` agents.
    pub fn new(max: usize) -> Self {
        let fleet = Arc::new(Fleet::default());
        Self {
            max,
            count: AtomicUsize::new(0),
            by_agent: DashMap::new(),
            overflow: AgentSlot::new(AgentId::from(AgentId::OVERFLOW), &fleet),
            overflowed: AtomicU64::new(0),
            turned_away: TurnedAway::default(),
            gone: Mutex::default(),
            fleet,
        }
    }

    /// The slot of an agent, made when it is new; the overflow slot when there is no room.
    pub fn slot(&self, agent: &AgentId) -> Arc<AgentSlot> {
        if let Some(slot) = self.by_agent.get(agent) {
            return Arc::clone(&slot);
        }
        if agent.as_str() == AgentId::OVERFLOW {
            return Arc::clone(&self.overflow);
        }
        // When all are taken, told without the lock that making one needs.
        if self.count.load(Ordering::Relaxed) < self.max {
            match self.by_agent.entry(agent.clone()) {
                Entry::Occupied(known) => return Arc::clone(known.get()),
                Entry::Vacant(vacant) => {
                    if self.count.fetch_add(1, Ordering::Relaxed) < self.max {
                        let slot = AgentSlot::new(agent.clone(), &self.fleet);
                        vacant.insert(Arc::clone(&slot));
                        return slot;
                    }
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        self.turned_away.add(agent);
        Arc::clone(&self.overflow)
    }

    /// Frees the slots of agents that did nothing for an hour, unless there is room enough: a small fleet keeps what it
    /// saw. Nobody loses a slot who holds it (an exchange in flight, a connection that is open), who owes tokens, or whom
    /// `is_bound` says to keep. What they used stays in [`Slots::totals`]. Returns how many were freed.
    pub fn make_room(&self, now: Mono, is_bound: impl Fn(&AgentId) -> bool) -> usize {
        let scarce = self.max - self.max / 4;
        if self.count.load(Ordering::Relaxed) < scarce {
            return 0;
        }
        let before = now.before(IDLE).as_nanos();
        let mut gone = self.gone();
        let mut freed = 0;
        self.by_agent.retain(|agent, slot| {
            // Held by nobody else, and nobody can come to hold it as long as the map is locked here.
            let is_free = Arc::get_mut(slot).is_some_and(|slot| {
                slot.totals.last.load(Ordering::Relaxed) < before && !slot.limiters.owe() && !is_bound(agent)
            });
            if is_free {
                *gone = gone.plus(&slot.view());
                freed += 1;
            }
            !is_free
        });
        self.count.fetch_sub(freed, Ordering::Relaxed);
        freed
    }

    /// Sums over all agents since the start, those included that have no slot any more.
    pub fn totals(&self) -> TotalsView {
        // Held until all are added up, so that none is counted twice or not at all.
        let gone = self.gone();
        let all = self.all();
        all.iter().fold(*gone, |sum, slot| sum.plus(&slot.view()))
    }

    fn gone(&self) -> MutexGuard<'_, TotalsView> {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slot of an agent that was seen.
    pub fn get(&self, agent: &str) -> Option<Arc<AgentSlot>> {
        if agent == AgentId::OVERFLOW {
            return self.overflow.is_used().then(|| Arc::clone(&self.overflow));
        }
        self.by_agent.get(agent).map(|slot| Arc::clone(&slot))
    }

    /// Every slot, in no order; the overflow slot when it was used.
    pub fn all(&self) -> Vec<Arc<AgentSlot>> {
        let mut all: Vec<_> = self.by_agent.iter().map(|slot| Arc::clone(&slot)).collect();
        if self.overflow.is_used() {
            all.push(Arc::clone(&self.overflow));
        }
        all
    }

    /// Agents that have a slot of their own.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed).min(self.max)
    }

    /// How often an agent was put into the overflow slot for want of room: about once for each of their requests.
    pub fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// How many agents those were, since they were forgotten last; 65,536 stands for any number beyond.
    pub fn turned_away(&self) -> usize {
        self.turned_away.names().len()
    }

    /// Begins to count agents without a slot anew.
    pub fn forget_turned_away(&self) {
        *self.turned_away.names() = HashSet::new();
    }
}

impl TurnedAway {
    fn add(&self, agent: &AgentId) {
        let name = self.keys.hash_one(agent.as_str());
        let mut names = self.names();
        if names.len() < MAX_TURNED_AWAY {
            names.insert(name);
        }
    }

    fn names(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AgentSlot {
    fn new(agent: AgentId, fleet: &Arc<Fleet>) -> Arc<Self> {
        Arc::new(Self {
            agent,
            totals: Totals::default(),
            attempts: Attempts::default(),
            in_flight: AtomicU64::new(0),
            limiters: Limiters::default(),
            fleet: Arc::clone(fleet),
        })
    }

    /// Whose it is.
    pub fn agent(&self) -> &AgentId {
        &self.agent
    }

    /// Tokens that the next request is likely to use: learned from what requests of this agent really used, not from
    /// `max_tokens`, and never more than `max_output` allows.
    ///
    /// The input is known by the size of the body; the output is the moving average of the answers that reported
    /// theirs. Over many exchanges an average that is neither high nor low keeps what is owed and what is spare
    /// small, which is all that a limiter needs of it. A request without input (a list of models) is expected to use
    /// nothing.
    pub fn expected_tokens(&self, estimated_input: u64, max_output: Option<u64>) -> u64 {
        if estimated_input == 0 {
            return 0;
        }
        let output = self.totals.usual_output.load(Ordering::Relaxed) / SCALE;
        estimated_input.saturating_add(output.min(max_output.unwrap_or(u64::MAX)))
    }

    /// Totals now.
    pub fn view(&self) -> TotalsView {
        let totals = &self.totals;
        TotalsView {
            requests: totals.requests.load(Ordering::Relaxed),
            refused: totals.refused.load(Ordering::Relaxed),
            errors: totals.errors.load(Ordering::Relaxed),
            input_tokens: totals.input_tokens.load(Ordering::Relaxed),
            output_tokens: totals.output_tokens.load(Ordering::Relaxed),
            cost_usd: Cost::from_nanos(totals.cost_nanos.load(Ordering::Relaxed)).usd(),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }

    /// One more in flight; returns how many there were before. The counts order nothing else, so relaxed will do;
    /// two that come at once are told different numbers.
    pub(super) fn enter(&self) -> Crowd {
        Crowd {
            agent: self.in_flight.fetch_add(1, Ordering::Relaxed),
            fleet: self.fleet.in_flight.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// One less in flight.
    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.fleet.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn limiters(&self) -> &Limiters {
        &self.limiters
    }

    pub(super) fn fleet_limiters(&self) -> &Limiters {
        &self.fleet.limiters
    }

    fn is_used(&self) -> bool {
        self.totals.requests.load(Ordering::Relaxed) > 0 || self.in_flight.load(Ordering::Relaxed) > 0
    }
}

impl Default for Totals {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            requests: zero(),
            refused: zero(),
            errors: zero(),
            input_tokens: zero(),
            output_tokens: zero(),
            cost_nanos: zero(),
            usual_output: AtomicU64::new(DEFAULT_OUTPUT * SCALE),
            last: zero(),
        }
    }
}

impl Totals {
    /// Adds an exchange, and learns from it how long the answers of this agent are if it reported that.
    pub fn add(&self, observation: &Observation) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.last.store(observation.ended.as_nanos(), Ordering::Relaxed);
        if observation.outcome == Outcome::Refused {
            self.refused.fetch_add(1, Ordering::Relaxed);
        } else if observation.is_error() {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        for (total, amount) in [
            (&self.input_tokens, observation.normalised.input_total),
            (&self.output_tokens, observation.normalised.output_total),
            (&self.cost_nanos, observation.cost_usd.map(Cost::nanos)),
        ] {
            if let Some(amount) = amount.filter(|a| *a > 0) {
                total.fetch_add(amount, Ordering::Relaxed);
            }
        }
        if observation.usage_source == UsageSource::Reported
            && let Some(output) = observation.normalised.output_total
        {
            self.learn(output);
        }
    }

    fn learn(&self, output: u64) {
        let sample = output.min(MAX_OUTPUT) * SCALE;
        let old = self.usual_output.load(Ordering::Relaxed);
        let new = old - (old >> SMOOTHING) + (sample >> SMOOTHING);
        // Of two answers that end at once one may be forgotten: it is an average.
        self.usual_output.store(new, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn observation(change: serde_json::Value) -> Observation {
        let mut value = json!({
            "request_id": "r", "time": "2026-01-01T00:00:00Z", "agent": "a", "agent_source": "header",
            "agent_version": null, "execution": "e", "execution_source": "exchange", "upstream": "u",
            "provider": "openai", "api": "openai.chat", "model_requested": null, "model_served": null,
            "status": 200, "stream": false, "outcome": "complete", "usage_source": "none",
            "finish_reason": null, "error_type": null, "error_code": null, "tool_calls": [],
            "output_chars": null, "ttfb_ms": null, "ttft_ms": null, "duration_ms": 1.0, "overhead_us": 1,
            "cost_usd": null
        });
        for (key, field) in change.as_object().unwrap() {
            value[key] = field.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn id(name: impl Into<String>) -> AgentId {
        AgentId::from(name.into())
    }

    #[test]
    fn agents_beyond_the_bound_share_a_slot() {
        let slots = Slots::new(2);
        let a = slots.slot(&id("a"));
        slots.slot(&id("b"));
        assert!(Arc::ptr_eq(&a, &slots.slot(&id("a"))));
        assert!(slots.get("c").is_none());
        let c = slots.slot(&id("c"));
        assert_eq!(c.agent().as_str(), AgentId::OVERFLOW);
        assert!(Arc::ptr_eq(&c, &slots.slot(&id("d"))));
        assert_eq!((slots.count(), slots.overflowed()), (2, 2));
        assert!(slots.get("c").is_none() && slots.get("a").is_some());
        // Those that have a slot keep it.
        assert!(Arc::ptr_eq(&a, &slots.slot(&id("a"))));
    }

    #[test]
    fn the_overflow_slot_is_shown_once_it_is_used() {
        let slots = Slots::new(1);
        slots.slot(&id("a"));
        assert!(slots.get(AgentId::OVERFLOW).is_none());
        assert_eq!(slots.all().len(), 1);
        // An agent that calls itself so takes nobody's place.
        let o = slots.slot(&id(AgentId::OVERFLOW));
        assert_eq!(slots.overflowed(), 0);
        o.totals.add(&observation(json!({})));
        assert!(slots.get(AgentId::OVERFLOW).is_some());
        assert_eq!(slots.all().len(), 2);
    }

    #[test]
    fn the_bound_holds_when_many_come_at_once() {
        const MAX: usize = 100;
        let slots = Slots::new(MAX);
        std::thread::scope(|s| {
            for t in 0..4 {
                let slots = &slots;
                s.spawn(move || (0..200).for_each(|i| drop(slots.slot(&id(format!("{t}-{i}"))))));
            }
        });
        assert_eq!(slots.count(), MAX);
        assert_eq!(slots.all().len(), MAX);
        assert_eq!(slots.overflowed(), 800 - MAX as u64);
    }

    fn used(slots: &Slots, agent: &str, at: Mono) -> Arc<AgentSlot> {
        let slot = slots.slot(&id(agent));
        let mut o = observation(json!({"input_total": 10, "cost_usd": 0.5}));
        o.ended = at;
        slot.totals.add(&o);
        slot
    }

    #[test]
    fn agents_that_are_gone_make_room_and_what_they_used_stays() {
        let slots = Slots::new(4);
        let (start, later) = (Mono::from_millis(1000), Mono::from_millis(1001).after(IDLE));
        for agent in ["a", "b", "c"] {
            used(&slots, agent, start);
        }
        used(&slots, "d", later);
        assert_eq!(used(&slots, "e", later).agent().as_str(), AgentId::OVERFLOW);
        let before = slots.totals();
        assert_eq!((before.requests, before.input_tokens), (5, 50));
        assert_eq!(
            slots.make_room(start.after(IDLE), |_| false),
            0,
            "an hour is not over"
        );
        assert_eq!(slots.make_room(later, |agent| agent.as_str() == "b"), 2);
        assert!(slots.get("a").is_none() && slots.get("b").is_some() && slots.get("d").is_some());
        assert_eq!((slots.count(), slots.totals()), (2, before));
        // A new agent has a slot now; one that comes back begins anew.
        assert_eq!(slots.slot(&id("e")).agent().as_str(), "e");
        assert_eq!(slots.slot(&id("a")).view().requests, 0);
        assert_eq!(slots.totals().requests, 5);
    }

    #[test]
    fn with_room_to_spare_none_has_to_go() {
        let slots = Slots::new(4);
        used(&slots, "a", Mono::ZERO);
        used(&slots, "b", Mono::ZERO);
        assert_eq!(slots.make_room(Mono::FAR, |_| false), 0);
        assert_eq!(slots.count(), 2);
    }

    #[test]
    fn a_slot_that_is_held_stays() {
        let slots = Slots::new(1);
        let held = used(&slots, "a", Mono::ZERO);
        assert_eq!(slots.make_room(Mono::FAR, |_| false), 0);
        assert!(Arc::ptr_eq(&held, &slots.slot(&id("a"))));
        drop(held);
        assert_eq!(slots.make_room(Mono::FAR, |_| false), 1);
        assert_eq!(slots.count(), 0);
    }

    #[test]
    fn agents_turned_away_are_counted_once_each() {
        let slots = Slots::new(1);
        slots.slot(&id("a"));
        for agent in ["b", "c", "b", "a", "c"] {
            slots.slot(&id(agent));
        }
        assert_eq!((slots.turned_away(), slots.overflowed()), (2, 4));
        slots.forget_turned_away();
        assert_eq!((slots.turned_away(), slots.overflowed()), (0, 4));
    }

    #[test]
    fn nothing_is_lost_while_agents_come_and_go() {
        let slots = Slots::new(8);
        std::thread::scope(|s| {
            let workers: Vec<_> = (0..3)
                .map(|t| {
                    let slots = &slots;
                    s.spawn(move || {
                        for i in 0..2000_u64 {
                            used(slots, &format!("{t}-{}", i % 50), Mono::ZERO);
                        }
                    })
                })
                .collect();
            let mut last = 0;
            while workers.iter().any(|w| !w.is_finished()) {
                slots.make_room(Mono::FAR, |_| false);
                let now = slots.totals().requests;
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        });
        assert!(slots.count() <= 8);
        assert_eq!(slots.totals().requests, 6000);
    }

    #[test]
    fn totals_count_what_is_known() {
        let slot = Slots::new(1).slot(&id("a"));
        for (change, requests, refused, errors, input, output, cost) in [
            (
                json!({"usage_source": "reported", "input_total": 100, "output_total": 20, "cost_usd": 0.25}),
                1,
                0,
                0,
                100,
                20,
                0.25,
            ),
            (json!({"status": 500}), 2, 0, 1, 100, 20, 0.25),
            (
                json!({"outcome": "refused", "status": 429}),
                3,
                1,
                1,
                100,
                20,
                0.25,
            ),
            (
                json!({"outcome": "truncated", "usage_source": "partial", "input_total": 7}),
                4,
                1,
                2,
                107,
                20,
                0.25,
            ),
            (
                json!({"outcome": "client_abort", "status": 0}),
                5,
                1,
                2,
                107,
                20,
                0.25,
            ),
        ] {
            slot.totals.add(&observation(change));
            assert_eq!(
                slot.view(),
                TotalsView {
                    requests,
                    refused,
                    errors,
                    input_tokens: input,
                    output_tokens: output,
                    cost_usd: cost,
                    in_flight: 0,
                }
            );
        }
    }

    #[test]
    fn answers_are_learned_from_reports_alone() {
        let slot = Slots::new(1).slot(&id("a"));
        assert_eq!(slot.expected_tokens(1000, None), 1000 + DEFAULT_OUTPUT);
        assert_eq!(slot.expected_tokens(1000, Some(16)), 1016);
        assert_eq!(slot.expected_tokens(0, None), 0);
        for source in ["estimated", "partial", "none"] {
            let guess = json!({"usage_source": source, "output_total": 100_000});
            slot.totals.add(&observation(guess));
        }
        slot.totals.add(&observation(json!({"usage_source": "reported"})));
        assert_eq!(slot.expected_tokens(1000, None), 1000 + DEFAULT_OUTPUT);
        for _ in 0..60 {
            let told = json!({"usage_source": "reported", "output_total": 2000});
            slot.totals.add(&observation(told));
        }
        let learned = slot.expected_tokens(1000, None);
        assert!((2990..=3000).contains(&learned), "{learned}");
        assert_eq!(slot.expected_tokens(1000, Some(100)), 1100);
        for _ in 0..100 {
            let told = json!({"usage_source": "reported", "output_total": 0});
            slot.totals.add(&observation(told));
        }
        let learned = slot.expected_tokens(1000, None);
        assert!((1000..=1001).contains(&learned), "{learned}");
        slot.totals.add(&observation(
            json!({"usage_source": "reported", "output_total": u64::MAX}),
        ));
        assert!(slot.expected_tokens(u64::MAX, None) == u64::MAX);
    }
}
