//! What an observation does: to its agent, its execution, and the windows of every rule that covers it.

use std::sync::Arc;

use smallvec::SmallVec;

use super::detect::Look;
use super::effect::Effect;
use super::engine::{AgentSeen, Engine};
use super::execution::{Running, Share};
use super::gauge::Side;
use super::measure::{self, Reading, Spent};
use super::metric::Shape;
use super::names::OVERFLOW;
use super::rule::{GroupBy, Metric};
use crate::types::ids::ModelName;
use crate::types::observation::{IdentitySource, Observation, Outcome};
use crate::types::time::{Mono, Now};

/// The name under which exchanges go whose model is not known.
const UNKNOWN_MODEL: &str = "unknown";

/// Different sets of rules that are remembered; agents beyond that have theirs found for each exchange.
const MAX_LISTS: usize = 1024;

const SECOND: u64 = 1_000_000_000;

/// A breach that has lasted: rule, subject, side, and since when.
type Found = (u16, u32, Side, Mono);

/// What is told of an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It ended.
    Ended,
    /// It is running.
    Running,
    /// It ended before the process began.
    Past,
}

/// The numbers of what an exchange belongs to.
#[derive(Debug, Clone, Copy)]
struct Place {
    agent: u32,
    model: u32,
    upstream: u32,
    execution: Option<u32>,
}

/// What an exchange changes in its execution.
#[derive(Debug)]
struct Change {
    /// What it has used.
    spent: Spent,
    /// Whether that is an estimate.
    estimate: bool,
    /// What was counted of it before, while it ran.
    before: Option<Running>,
    /// Where the share of the next rule is looked for first.
    next_share: usize,
}

impl Engine {
    /// Takes in an exchange: one that ended, one that is still running and has used so much so far, or one that ended
    /// before the process began.
    pub(super) fn observe(&mut self, now: Now, o: &Observation, told: Told, out: &mut Vec<Effect>) {
        let running = told == Told::Running;
        let agent = self.agents.number(&o.agent);
        self.see_agent(agent, o, running, now);
        let execution = self.execution_of(agent, o, running, now, out);
        let place = Place {
            agent,
            model: self.model_of(o),
            upstream: if self.needs.upstreams {
                self.upstreams.number(&o.upstream)
            } else {
                0
            },
            execution,
        };
        let mut change = Change {
            spent: Spent::of(o),
            estimate: measure::is_estimate(o),
            before: None,
            next_share: 0,
        };
        let stale = now.mono.before(self.bounds.execution_idle());
        if let Some(e) = execution.and_then(|n| self.executions.get_mut(n)) {
            if running {
                let noted = e.progress(&o.request_id, change.spent, change.estimate, now.mono, stale);
                let Some(before) = noted else { return };
                change.before = before;
            } else {
                change.before = e.ended(&o.request_id, stale);
            }
        }
        let mut found: SmallVec<[Found; 4]> = SmallVec::new();
        let rules = self.rules_for(agent, o);
        for &index in rules.iter() {
            if let Some((number, Look::Finding { side, since })) =
                self.feed(index, o, running, place, &mut change, now)
            {
                found.push((index, number, side, since));
            }
        }
        if told == Told::Past {
            // What was found then was dealt with then.
            return;
        }
        for (index, number, side, since) in found {
            self.open(index, number, side, since, now, out);
        }
    }

    /// Lets one rule see the exchange; gives back the subject and what came of it.
    #[inline]
    fn feed(
        &mut self,
        index: u16,
        o: &Observation,
        running: bool,
        place: Place,
        change: &mut Change,
        now: Now,
    ) -> Option<(u32, Look)> {
        let watch = self.watches.get_mut(usize::from(index))?;
        // That it covers the agent is known; see `rules_for`.
        let covered = (watch.models.is_open() || watch.models.wants(place.model, model_name(o)))
            && (watch.upstreams.is_open() || watch.upstreams.wants(place.upstream, o.upstream.as_str()));
        if !covered {
            return None;
        }
        let number = match watch.rule.group_by {
            GroupBy::Agent => place.agent,
            GroupBy::Execution => place.execution?,
            GroupBy::Model => place.model,
            GroupBy::Upstream => place.upstream,
            GroupBy::Fleet => 0,
        };
        let metric = watch.gauge.metric;
        if watch.gauge.shape == Shape::Execution {
            if o.outcome == Outcome::Refused || !change.counts_for(metric) {
                return None;
            }
            let tick = watch.tick(now.mono);
            let (gauge, subject) = watch.subject(number, now.mono)?;
            subject.touch(now.mono, 1);
            match place.execution.and_then(|n| self.executions.get_mut(n)) {
                Some(execution) => {
                    let (share, new) = execution.share(index, number, &mut change.next_share)?;
                    let old = (share.tick, share.all, share.reported);
                    change.apply(share, new, metric);
                    share.tick = tick;
                    subject.replace(gauge, tick, old, (share.all, share.reported));
                }
                // An execution of one exchange that nobody has to remember.
                None => {
                    let reading = Reading::of(change.spent.counted_by(metric)?);
                    subject.add(gauge, tick, reading, change.estimate);
                }
            }
        } else if running {
            watch.hear(number, now.mono)?;
        } else {
            let reading = measure::reading(metric, o)?;
            let tick = watch.tick(now.mono);
            let (gauge, subject) = watch.subject(number, now.mono)?;
            subject.touch(now.mono, 1);
            subject.add(gauge, tick, reading, change.estimate);
        }
        Some((number, watch.look(number, now.mono)))
    }

    /// The numbers of the rules that are evaluated and cover an agent; found once an agent and book of rules.
    #[inline]
    fn rules_for(&mut self, number: u32, o: &Observation) -> Arc<[u16]> {
        let known = self.seen.get(number as usize).and_then(|s| s.rules);
        if let Some(list) = known.and_then(|at| self.needs.lists.get(usize::from(at))) {
            return Arc::clone(list);
        }
        self.find_rules(number, o)
    }

    #[cold]
    fn find_rules(&mut self, number: u32, o: &Observation) -> Arc<[u16]> {
        let watches = &mut self.watches;
        let covers = |index: &u16| {
            watches
                .get_mut(usize::from(*index))
                .is_some_and(|w| w.agents.wants(number, o.agent.as_str()))
        };
        let list: Arc<[u16]> = self.needs.live.iter().copied().filter(covers).collect();
        // The shared number stands for many names.
        if number == OVERFLOW {
            return list;
        }
        let lists = &mut self.needs.lists;
        let at = lists.iter().position(|l| *l == list).or_else(|| {
            let room = lists.len() < MAX_LISTS;
            room.then(|| {
                lists.push(Arc::clone(&list));
                lists.len() - 1
            })
        });
        if let Some(seen) = self.seen.get_mut(number as usize) {
            seen.rules = at.and_then(|at| u16::try_from(at).ok());
        }
        list
    }

    fn see_agent(&mut self, number: u32, o: &Observation, running: bool, now: Now) {
        let at = number as usize;
        if self.seen.len() <= at {
            self.seen.resize_with(at + 1, AgentSeen::default);
        }
        let Some(seen) = self.seen.get_mut(at) else {
            return;
        };
        let first_of_second = seen
            .last
            .is_none_or(|(at, _)| at.as_nanos() / SECOND != now.mono.as_nanos() / SECOND);
        seen.last = Some((now.mono, now.wall));
        if !running && o.outcome != Outcome::Refused {
            seen.pace.add(now.mono, o.normalised.total().unwrap_or(0));
            seen.versions.count(o, now);
        }
        // An upstream changes seldom: comparing texts once a second is enough.
        if first_of_second && seen.upstream.as_ref() != Some(&o.upstream) {
            seen.upstream = Some(o.upstream.clone());
        }
        if o.outcome != Outcome::Refused && o.is_error() && seen.failed_at.as_ref() != Some(&o.upstream) {
            seen.failed_at = Some(o.upstream.clone());
        }
    }

    fn model_of(&mut self, o: &Observation) -> u32 {
        match &o.model_requested {
            _ if !self.needs.models => 0,
            Some(model) => self.models.number(model),
            None => self.models.number(&ModelName::from(UNKNOWN_MODEL)),
        }
    }

    /// The execution's number, where some rule needs to remember it.
    fn execution_of(
        &mut self,
        agent: u32,
        o: &Observation,
        running: bool,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Option<u32> {
        if !self.needs.executions {
            return None;
        }
        // An exchange that is an execution of its own, and that none can join, is remembered only from when it is seen
        // running.
        let alone = o.execution_source == IdentitySource::Exchange
            && !o.may_continue
            && !running
            && !self.needs.every_execution;
        if alone && self.executions.is_empty() {
            return None;
        }
        let key = self.executions.key(agent, &o.execution);
        if let Some(number) = self.executions.find(key, now.mono) {
            return Some(number);
        }
        if alone || (o.outcome == Outcome::Refused && !running) {
            return None;
        }
        if let Some(number) = self.executions.in_the_way() {
            self.drop_execution(number, now, out);
        }
        Some(self.executions.insert(agent, &o.execution, key, now.mono))
    }
}

impl Change {
    /// Whether it changes anything for a metric of executions.
    fn counts_for(&self, metric: Metric) -> bool {
        let before = self.before.as_ref().and_then(|r| r.spent.counted_by(metric));
        self.spent.counted_by(metric).or(before).is_some()
    }

    /// Puts what an exchange has used in the place of what was counted while it ran. Where its end does not say what
    /// it used, what was counted while it ran stays.
    fn apply(&self, share: &mut Share, new: bool, metric: Metric) {
        let before = self.before.as_ref().filter(|_| !new);
        let old = before.and_then(|r| Some((r.spent.counted_by(metric)?, r.estimate)));
        let now = self.spent.counted_by(metric).map(|value| (value, self.estimate));
        let Some((value, estimate)) = now else { return };
        if let Some((old, was_estimate)) = old {
            share.all.less(old);
            if !was_estimate {
                share.reported.less(old);
            }
        }
        share.all.plus(value);
        if !estimate {
            share.reported.plus(value);
        }
    }
}

fn model_name(o: &Observation) -> &str {
    o.model_requested
        .as_ref()
        .map_or(UNKNOWN_MODEL, ModelName::as_str)
}
