//! Executions under way: what each has used so far, bounded by number and by idleness.

use smallvec::SmallVec;

use super::measure::{LARGEST, Spent};
use super::names::{Fingerprint, Numbers};
use crate::types::ids::{ExecutionId, RequestId};
use crate::types::time::Mono;

/// Exchanges of one execution whose running use is followed at once; more are counted when they end.
const MAX_RUNNING: usize = 16;
/// Rule and subject pairs that one execution counts for.
const MAX_SHARES: usize = 64;
const NONE: u32 = u32::MAX;

/// How far the order of executions may lag behind their last use: moving one to the front touches its neighbours, so
/// that it is not done for every exchange. In nanoseconds.
const ORDER_LAG: u64 = 1_000_000_000;

/// All executions under way, most recently active first (within a second).
#[derive(Debug)]
pub(crate) struct Executions {
    numbers: Numbers,
    slab: Vec<Execution>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
    max: usize,
}

/// One execution. There are many, each touched seldom, so that what it takes in memory is what it costs.
#[derive(Debug)]
pub(crate) struct Execution {
    /// Whose it is.
    pub(crate) agent: u32,
    newer: u32,
    older: u32,
    /// Nanoseconds from when it was put to the front of the order until it did something last: less than the lag.
    lag: u32,
    /// When it did something last.
    pub(crate) last: Mono,
    key: Fingerprint,
    /// Its name.
    pub(crate) id: ExecutionId,
    #[expect(
        clippy::box_collection,
        reason = "most executions have none, and there are many of them"
    )]
    running: Option<Box<Vec<Running>>>,
    shares: SmallVec<[Share; 1]>,
}

/// What one execution counts for one subject of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Which rule.
    pub(crate) rule: u16,
    /// Which of its subjects.
    pub(crate) subject: u32,
    /// In which bucket of the subject's window it stands.
    pub(crate) tick: u64,
    /// Everything.
    pub(crate) all: Tally,
    /// What was reported by the upstream, estimates left out.
    pub(crate) reported: Tally,
}

/// A sum over exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// The sum, in steps of the metric's unit.
    pub(crate) value: u64,
    /// Exchanges in it.
    pub(crate) samples: u32,
}

/// What an exchange that is still running has used so far.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    request: RequestId,
    /// When it said so.
    at: Mono,
    /// So far.
    pub(crate) spent: Spent,
    /// Whether that is an estimate.
    pub(crate) estimate: bool,
}

impl Executions {
    /// None yet, and room for `max` (at least one).
    pub(crate) fn new(max: usize) -> Self {
        Self {
            numbers: Numbers::default(),
            slab: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
            max: max.clamp(1, NONE as usize - 1),
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.numbers.len() == 0
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// What stands for an agent's execution.
    #[inline]
    pub(crate) fn key(&self, agent: u32, id: &ExecutionId) -> Fingerprint {
        self.numbers.fingerprint((agent, id.as_str()))
    }

    /// The number of an execution that is known, which becomes one of the most recently active.
    #[inline]
    pub(crate) fn find(&mut self, key: Fingerprint, now: Mono) -> Option<u32> {
        let number = self.numbers.get(key)?;
        let e = self.slab.get_mut(number as usize)?;
        let lag = now
            .as_nanos()
            .saturating_sub(e.last.as_nanos())
            .saturating_add(e.lag.into());
        e.last = now;
        if lag < ORDER_LAG {
            e.lag = lag as u32;
        } else {
            e.lag = 0;
            self.unlink(number);
            self.link_newest(number);
        }
        Some(number)
    }

    /// The one that must be removed before another can be taken in.
    pub(crate) fn in_the_way(&self) -> Option<u32> {
        (self.numbers.len() >= self.max && self.oldest != NONE).then_some(self.oldest)
    }

    /// The longest idle one, when it did nothing since `point`.
    pub(crate) fn idle_since(&self, point: Mono) -> Option<u32> {
        let oldest = self.slab.get(self.oldest as usize)?;
        (oldest.last < point).then_some(self.oldest)
    }

    /// Takes in an execution that is not known.
    pub(crate) fn insert(&mut self, agent: u32, id: &ExecutionId, key: Fingerprint, now: Mono) -> u32 {
        let execution = Execution {
            agent,
            newer: NONE,
            older: NONE,
            lag: 0,
            last: now,
            key,
            id: id.clone(),
            running: None,
            shares: SmallVec::new(),
        };
        let number = match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.slab.get_mut(number as usize) {
                    *place = execution;
                }
                number
            }
            None => {
                self.slab.push(execution);
                (self.slab.len() - 1) as u32
            }
        };
        self.numbers.insert(key, number);
        self.link_newest(number);
        number
    }

    /// Removes one; its number may be given to another.
    pub(crate) fn remove(&mut self, number: u32) {
        let Some(e) = self.slab.get_mut(number as usize) else {
            return;
        };
        if std::mem::replace(&mut e.agent, NONE) == NONE {
            return;
        }
        self.numbers.remove(e.key);
        e.running = None;
        e.shares = SmallVec::new();
        self.unlink(number);
        self.free.push(number);
    }

    /// One, by number.
    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut Execution> {
        self.slab.get_mut(number as usize)
    }

    /// One, by number.
    pub(crate) fn get(&self, number: u32) -> Option<&Execution> {
        self.slab.get(number as usize)
    }

    /// The numbers of the executions of certain agents, most recent first; walks all of them.
    pub(crate) fn of_agents(&self, which: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut found = Vec::new();
        let mut at = self.newest;
        while let Some(e) = self.slab.get(at as usize) {
            if which(e.agent) {
                found.push(at);
            }
            at = e.older;
        }
        found
    }

    /// Keeps shares of rules that go on under another number (`None`: no longer); walks all executions.
    pub(crate) fn renumber_rules(&mut self, new_number: &[Option<u16>]) {
        for e in &mut self.slab {
            e.shares
                .retain(|share| match new_number.get(usize::from(share.rule)) {
                    Some(Some(number)) => {
                        share.rule = *number;
                        true
                    }
                    _ => false,
                });
        }
    }

    fn unlink(&mut self, number: u32) {
        let Some(e) = self.slab.get_mut(number as usize) else {
            return;
        };
        let (newer, older) = (e.newer, e.older);
        e.newer = NONE;
        e.older = NONE;
        match self.slab.get_mut(newer as usize) {
            Some(n) => n.older = older,
            None => self.newest = older,
        }
        match self.slab.get_mut(older as usize) {
            Some(o) => o.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link_newest(&mut self, number: u32) {
        let second = self.newest;
        if let Some(e) = self.slab.get_mut(number as usize) {
            e.older = second;
            e.newer = NONE;
        }
        match self.slab.get_mut(second as usize) {
            Some(s) => s.newer = number,
            None => self.oldest = number,
        }
        self.newest = number;
    }
}

impl Execution {
    /// Notes what a running exchange has used so far; gives back what it had before. `None` beyond the bound: then
    /// it is not to be counted before it ends.
    ///
    /// One that was not heard of since `stale` runs no longer: word of its end was lost. What was counted of it stays
    /// counted, and it makes room.
    pub(crate) fn progress(
        &mut self,
        request: &RequestId,
        spent: Spent,
        estimate: bool,
        now: Mono,
        stale: Mono,
    ) -> Option<Option<Running>> {
        let now = Running {
            request: request.clone(),
            at: now,
            spent,
            estimate,
        };
        let running = self.running.get_or_insert_default();
        running.retain(|r| r.at >= stale);
        if let Some(r) = running.iter_mut().find(|r| r.request == *request) {
            return Some(Some(std::mem::replace(r, now)));
        }
        if running.len() >= MAX_RUNNING {
            return None;
        }
        running.push(now);
        Some(None)
    }

    /// An exchange has ended: what was noted of it while it ran. What was not heard of since `stale` is forgotten, lest
    /// another request by the same name be taken for it.
    #[inline]
    pub(crate) fn ended(&mut self, request: &RequestId, stale: Mono) -> Option<Running> {
        let running = self.running.as_mut()?;
        running.retain(|r| r.at >= stale);
        let at = running.iter().position(|r| r.request == *request);
        let ended = at.map(|at| running.swap_remove(at));
        if running.is_empty() {
            self.running = None;
        }
        ended
    }

    /// The share of a subject of a rule, with whether it is new. `next` is where it is looked for first, and then the
    /// place after it: rules come in the same order each time.
    #[inline]
    pub(crate) fn share(&mut self, rule: u16, subject: u32, next: &mut usize) -> Option<(&mut Share, bool)> {
        let is = |s: &Share| s.rule == rule && s.subject == subject;
        let found = match self.shares.get(*next) {
            Some(share) if is(share) => Some(*next),
            _ => self.shares.iter().position(is),
        };
        let (at, new) = match found {
            Some(at) => (at, false),
            None if self.shares.len() >= MAX_SHARES => return None,
            None => {
                self.shares.push(Share {
                    rule,
                    subject,
                    tick: 0,
                    all: Tally::default(),
                    reported: Tally::default(),
                });
                (self.shares.len() - 1, true)
            }
        };
        *next = at + 1;
        self.shares.get_mut(at).map(|s| (s, new))
    }
}

impl Tally {
    /// With one more exchange.
    #[inline]
    pub(crate) fn plus(&mut self, value: u64) {
        self.value = self.value.saturating_add(value).min(LARGEST);
        self.samples = self.samples.saturating_add(1);
    }

    /// Without an exchange that was added before.
    #[inline]
    pub(crate) fn less(&mut self, value: u64) {
        self.value = self.value.saturating_sub(value);
        self.samples = self.samples.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u64) -> ExecutionId {
        format!("e{n}").into()
    }

    fn find(all: &mut Executions, agent: u32, name: u64, now: Mono) -> Option<u32> {
        all.find(all.key(agent, &id(name)), now)
    }

    fn insert(all: &mut Executions, agent: u32, name: u64, now: Mono) -> u32 {
        let key = all.key(agent, &id(name));
        all.insert(agent, &id(name), key, now)
    }

    #[test]
    fn executions_are_two_cache_lines() {
        assert!(size_of::<Execution>() <= 128, "{}", size_of::<Execution>());
    }

    #[test]
    fn the_longest_idle_makes_room() {
        let mut all = Executions::new(2);
        let at = |second: u64| Mono::from_millis(second * 1000);
        let a = insert(&mut all, 0, 1, at(1));
        let b = insert(&mut all, 0, 2, at(2));
        assert_eq!(all.in_the_way(), Some(a));
        assert_eq!(find(&mut all, 0, 1, at(3)), Some(a));
        assert_eq!(all.in_the_way(), Some(b));
        assert_eq!(find(&mut all, 1, 1, at(3)), None, "another agent's");
        all.remove(b);
        all.remove(b);
        assert_eq!(all.in_the_way(), None);
        assert_eq!(insert(&mut all, 1, 1, at(4)), b);
        assert_eq!(all.of_agents(|a| a == 1), [b]);
        assert_eq!(all.idle_since(at(3)), None);
        assert_eq!(all.idle_since(at(4)), Some(a));
    }

    #[test]
    fn running_use_is_replaced() {
        let mut all = Executions::new(9);
        let n = insert(&mut all, 0, 1, Mono::ZERO);
        let e = all.get_mut(n).expect("just inserted");
        let request = RequestId::from("r");
        let spent = |output| Spent {
            output: Some(output),
            ..Spent::default()
        };
        let at = |second: u64| Mono::from_millis(second * 1000);
        let mut progress =
            |request: &str, n, now, stale| e.progress(&request.into(), spent(n), true, at(now), at(stale));
        assert!(matches!(progress("r", 1, 1, 0), Some(None)));
        let before = progress("r", 5, 1, 0).flatten().expect("before");
        assert_eq!(before.spent.output, Some(1));
        for i in 1..MAX_RUNNING {
            assert!(progress(&format!("r{i}"), 1, 2, 0).is_some());
        }
        assert!(
            progress("one more", 1, 3, 2).is_some(),
            "the first is heard of no more"
        );
        assert!(progress("yet one more", 1, 3, 2).is_none());
        assert!(e.ended(&request, at(2)).is_none(), "it left");
        assert_eq!(
            e.ended(&"r1".into(), at(2)).map(|r| r.spent.output),
            Some(Some(1))
        );
        assert!(e.ended(&"r1".into(), at(2)).is_none());
        assert!(e.ended(&"r2".into(), at(3)).is_none(), "too old to be the same");
        assert!(e.ended(&"one more".into(), at(3)).is_some());
    }

    proptest! {
        #[test]
        fn order_is_that_of_last_use(uses in proptest::collection::vec((0_u64..12, any::<bool>()), 1..200)) {
            let mut all = Executions::new(6);
            let mut model: Vec<u64> = Vec::new();
            for (time, (name, drop)) in uses.into_iter().enumerate() {
                let now = Mono::from_millis(time as u64 * 1000);
                let found = find(&mut all, 0, name, now);
                prop_assert_eq!(found.is_some(), model.contains(&name));
                model.retain(|n| *n != name);
                match (found, drop) {
                    (Some(n), true) => all.remove(n),
                    (Some(_), false) => model.push(name),
                    (None, _) => {
                        if let Some(old) = all.in_the_way() {
                            all.remove(old);
                            model.remove(0);
                        }
                        insert(&mut all, 0, name, now);
                        model.push(name);
                    }
                }
                let order: Vec<String> = all.of_agents(|a| a == 0).iter().rev()
                    .map(|n| all.get(*n).expect("listed").id.to_string()).collect();
                let expected: Vec<String> = model.iter().map(|n| id(*n).to_string()).collect();
                prop_assert_eq!(order, expected);
                prop_assert_eq!(all.len(), model.len());
            }
        }
    }
}
