//! Which execution an answer belongs to, so that a request that goes on from it (`previous_response_id`) is of that one.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::types::ids::{AgentId, ExecutionId};
use crate::types::time::Mono;

/// Answers remembered, all agents together; the oldest leaves first. About 10 MB at the most.
const MAX_ANSWERS: usize = 64 << 10;

/// How long an answer is remembered. Each link of a chain is remembered by itself, so a chain may be longer.
const AGE: Duration = Duration::from_secs(3600);

/// Parts with a lock each, so that workers seldom meet. A power of two.
const SHARDS: usize = 16;

/// The executions of answers that a later request may go on from.
///
/// Touched only by exchanges of APIs that have such a thing. Ids are kept as 128 bits of a keyed hash together with
/// the agent: another agent's answer is nobody's, and two ids share their bits with a chance of 1 in 10^29.
pub struct Chains {
    shards: [Mutex<Shard>; SHARDS],
    /// Holds nothing but the secret keys by which ids are hashed.
    keys: RandomState,
}

#[derive(Default)]
struct Shard {
    executions: HashMap<u128, Link>,
    /// By age, oldest first.
    order: VecDeque<u128>,
}

struct Link {
    execution: ExecutionId,
    since: Mono,
}

impl Chains {
    /// An answer to `agent` that was of this execution; one that is known stays with the execution it had.
    pub fn remember(&self, agent: &AgentId, answer: &str, execution: &ExecutionId, now: Mono) {
        let key = self.key(agent.as_str(), answer);
        let mut shard = self.shard(key);
        shard.let_go(now);
        if shard.executions.contains_key(&key) {
            return;
        }
        let link = Link {
            execution: execution.clone(),
            since: now,
        };
        shard.executions.insert(key, link);
        shard.order.push_back(key);
    }

    /// The execution of an answer to `agent`; `None` when it is not (or no longer) known.
    pub fn execution(&self, agent: &AgentId, answer: &str, now: Mono) -> Option<ExecutionId> {
        let key = self.key(agent.as_str(), answer);
        let shard = self.shard(key);
        let link = shard.executions.get(&key)?;
        (now.since(link.since) <= AGE).then(|| link.execution.clone())
    }

    /// The execution of a chain whose beginning is not known: named after the answer it goes on from, in at most `max`
    /// bytes, so that all who go on from that answer are of one execution.
    pub fn named_after(&self, answer: &str, max: usize) -> ExecutionId {
        let plain = answer.len() <= max && answer.trim() == answer && !answer.chars().any(char::is_control);
        if plain && !answer.is_empty() {
            return ExecutionId::from(answer);
        }
        // Cut short it might be another's: gateways begin all of their ids alike.
        let mut name = format!("chain-{:032x}", self.key("", answer));
        name.truncate(max);
        ExecutionId::from(name)
    }

    /// Answers that are remembered.
    pub fn len(&self) -> usize {
        let lengths = self.shards.iter().map(|shard| lock(shard).executions.len());
        lengths.sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn key(&self, agent: &str, answer: &str) -> u128 {
        let half = |which: u8| u128::from(self.keys.hash_one((which, agent, answer)));
        half(0) << 64 | half(1)
    }

    fn shard(&self, key: u128) -> MutexGuard<'_, Shard> {
        let [first, rest @ ..] = &self.shards;
        let at = (key % SHARDS as u128) as usize;
        lock(at.checked_sub(1).and_then(|at| rest.get(at)).unwrap_or(first))
    }
}

impl Shard {
    /// Lets go of what is too old, and of the oldest when there is no room for one more.
    fn let_go(&mut self, now: Mono) {
        while let Some(oldest) = self.order.front() {
            let stays = self.executions.len() < MAX_ANSWERS / SHARDS
                && self
                    .executions
                    .get(oldest)
                    .is_some_and(|link| now.since(link.since) <= AGE);
            if stays {
                return;
            }
            self.executions.remove(oldest);
            self.order.pop_front();
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    // What a panic left behind is as good as any other state: a link is there or is not.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for Chains {
    fn default() -> Self {
        Self {
            shards: Default::default(),
            keys: RandomState::new(),
        }
    }
}

impl fmt::Debug for Chains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chains").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Mono {
        Mono::from_millis(second * 1000)
    }

    #[test]
    fn an_answer_is_of_the_execution_it_was_remembered_with() {
        let chains = Chains::default();
        let (a, b) = (AgentId::from("a"), AgentId::from("b"));
        let (first, other) = (ExecutionId::from("first"), ExecutionId::from("other"));
        chains.remember(&a, "resp_1", &first, at(1));
        chains.remember(&a, "resp_1", &other, at(2));
        assert_eq!(chains.execution(&a, "resp_1", at(3)), Some(first));
        assert_eq!(chains.execution(&a, "resp_2", at(3)), None);
        assert_eq!(chains.execution(&b, "resp_1", at(3)), None, "another agent's");
        assert_eq!(chains.len(), 1);
    }

    #[test]
    fn what_is_old_leaves() {
        let chains = Chains::default();
        let agent = AgentId::from("a");
        for n in 0..1000 {
            chains.remember(&agent, &format!("r{n}"), &ExecutionId::from("e"), at(0));
        }
        let hour = AGE.as_secs();
        assert!(chains.execution(&agent, "r7", at(hour)).is_some());
        assert!(chains.execution(&agent, "r7", at(hour + 1)).is_none());
        for n in 0..1000 {
            chains.remember(&agent, &format!("s{n}"), &ExecutionId::from("e"), at(hour + 1));
        }
        assert_eq!(chains.len(), 1000);
        assert!(chains.execution(&agent, "s7", at(hour + 2)).is_some());
    }

    #[test]
    fn their_number_is_bounded_and_the_oldest_leaves() {
        let chains = Chains::default();
        let agent = AgentId::from("a");
        let total = 3 * MAX_ANSWERS;
        for n in 0..total {
            let execution = ExecutionId::from("e");
            chains.remember(&agent, &format!("r{n}"), &execution, at(n as u64 / 100));
        }
        assert!(chains.len() <= MAX_ANSWERS, "{}", chains.len());
        let now = at(total as u64 / 100);
        assert!(chains.execution(&agent, "r0", now).is_none());
        assert!(
            chains
                .execution(&agent, &format!("r{}", total - 1), now)
                .is_some()
        );
    }

    #[test]
    fn a_chain_without_a_beginning_is_named_after_where_it_goes_on() {
        let chains = Chains::default();
        assert_eq!(chains.named_after("resp_1", 128).as_str(), "resp_1");
        let long = |end: &str| format!("resp_{}{end}", "x".repeat(200));
        let (one, two) = (
            chains.named_after(&long("1"), 128),
            chains.named_after(&long("2"), 128),
        );
        assert_ne!(one, two);
        assert_eq!(one, chains.named_after(&long("1"), 128));
        for odd in ["", " a", "a\nb"] {
            let name = chains.named_after(odd, 20);
            assert!(
                name.as_str().starts_with("chain-") && name.as_str().len() == 20,
                "{name}"
            );
        }
    }
}
