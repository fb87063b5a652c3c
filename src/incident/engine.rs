//! Owns windows and incidents; folds one input after the other into effects.

use std::sync::Arc;
use std::time::Duration;

use super::casebook::Casebook;
use super::detect::Watch;
use super::effect::Effect;
use super::execution::Executions;
use super::input::Input;
use super::metric::Shape;
use super::names::{Names, OVERFLOW};
use super::observe::Told;
use super::pace::Pace;
use super::record::{
    AgentStatus, ApprovalRecord, BrakeRecord, IncidentRecord, LeaseRecord, RuleStatus, SilenceRecord,
};
use super::rule::{GroupBy, Rulebook};
use super::silence::Silences;
use super::version::Versions;
use crate::types::ids::{AgentId, ApprovalId, IncidentId, ModelName, SilenceId, UpstreamName};
use crate::types::observation::Observation;
use crate::types::time::{Mono, Now, Wall};

/// An agent without traffic for this long makes room for another when the table is full.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(3600);
/// How often room is made at most.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Bounds of what the engine keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Subjects (agents, and so on) per rule; the rest share one.
    pub max_subjects: usize,
    /// Executions followed at once, all agents together; the longest idle one makes room.
    pub max_executions: usize,
    /// An execution without traffic for this long (seconds) is over.
    pub execution_idle_seconds: u64,
    /// Closed incidents kept to be shown.
    pub max_closed_incidents: usize,
}

impl Bounds {
    /// After how long without traffic an execution, and an exchange that was running, is over; at least a second.
    pub(super) fn execution_idle(&self) -> Duration {
        Duration::from_secs(self.execution_idle_seconds.max(1))
    }
}

/// The engine. No I/O, no clock, no randomness: the same inputs give the same effects.
#[derive(Debug)]
pub struct Engine {
    pub(super) book: Arc<Rulebook>,
    pub(super) bounds: Bounds,
    /// Rules at work, numbered as in the rulebook.
    pub(super) watches: Vec<Watch>,
    pub(super) agents: Names<AgentId>,
    pub(super) models: Names<ModelName>,
    pub(super) upstreams: Names<UpstreamName>,
    /// By the agents' numbers.
    pub(super) seen: Vec<AgentSeen>,
    pub(super) executions: Executions,
    pub(super) casebook: Casebook,
    pub(super) silences: Silences,
    pub(super) brake: BrakeRecord,
    pub(super) needs: Needs,
    now: Mono,
    swept: Mono,
}

/// What is known of an agent apart from rules.
#[derive(Debug, Clone, Default)]
pub(super) struct AgentSeen {
    pub(super) pace: Pace,
    /// When it was seen last; `None` when it has not been.
    pub(super) last: Option<(Mono, Wall)>,
    pub(super) versions: Versions,
    /// The upstream it used last.
    pub(super) upstream: Option<UpstreamName>,
    /// The upstream at which it failed last: not the one that stands in, when others are tried.
    pub(super) failed_at: Option<UpstreamName>,
    /// Which of [`Needs::lists`] holds the rules that cover it, once that was found.
    pub(super) rules: Option<u16>,
}

/// What has to be looked up for the rules in force, so that the rest costs nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// The numbers of the rules that are evaluated.
    pub(super) live: Vec<u16>,
    /// Those of them that cover an agent, for each set of them that some agent has.
    pub(super) lists: Vec<Arc<[u16]>>,
    pub(super) models: bool,
    pub(super) upstreams: bool,
    pub(super) executions: bool,
    /// Even an execution of one exchange is a subject.
    pub(super) every_execution: bool,
}

impl Engine {
    /// An engine with these rules and nothing seen.
    pub fn new(rules: Arc<Rulebook>, bounds: Bounds) -> Self {
        let watches = watches(&rules);
        Self {
            needs: Needs::of(&watches),
            watches,
            book: rules,
            bounds,
            agents: Names::new(bounds.max_subjects),
            models: Names::new(bounds.max_subjects),
            upstreams: Names::new(bounds.max_subjects),
            seen: Vec::new(),
            executions: Executions::new(bounds.max_executions),
            casebook: Casebook::new(bounds.max_closed_incidents),
            silences: Silences::default(),
            brake: BrakeRecord::default(),
            now: Mono::ZERO,
            swept: Mono::ZERO,
        }
    }

    /// Takes one input at `now` and says what has to be done about it, in order. Effects go to `out`, which is reused
    /// by the caller so that the common case (nothing to do) allocates nothing.
    ///
    /// A time before the last one is taken as the last one. Directives are published before anyone is told.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Vec<Effect>) {
        let now = self.at(now);
        let start = out.len();
        match input {
            Input::Observation(o) => self.observe(now, &o, Told::Ended, out),
            Input::Progress(o) => self.observe(now, &o, Told::Running, out),
            Input::Tick => self.tick(now, out),
            Input::Rules(book) => self.adopt(book, now, out),
            Input::Past(o) => self.observe(now, &o, Told::Past, out),
            // A replay has no one to tell why it was refused; it was refused then as well.
            Input::Operator(act) => drop(self.act(act, now, out)),
            Input::Trouble(trouble) => self.trouble(trouble, now, out),
        }
        self.publish(start, out);
    }

    /// As [`Engine::step`] with [`Input::Observation`], for an exchange that others look at as well.
    pub fn observed(&mut self, now: Now, o: &Observation, out: &mut Vec<Effect>) {
        let now = self.at(now);
        let start = out.len();
        self.observe(now, o, Told::Ended, out);
        self.publish(start, out);
    }

    /// How many incidents are not over.
    pub fn open_incidents(&self) -> usize {
        self.casebook.iter().count()
    }

    /// The time, which does not go back.
    pub(super) fn at(&mut self, now: Now) -> Now {
        self.now = self.now.max(now.mono);
        Now {
            mono: self.now,
            ..now
        }
    }

    /// Directives that have changed are published before anything else that was decided since `start`.
    pub(super) fn publish(&mut self, start: usize, out: &mut Vec<Effect>) {
        if let Some(set) = self.casebook.publication() {
            out.insert(start.min(out.len()), Effect::Publish(set));
        }
    }

    /// Open incidents, then closed ones, newest first.
    pub fn incidents(&self) -> Vec<IncidentRecord> {
        self.casebook.records()
    }

    /// One incident.
    pub fn incident(&self, id: &IncidentId) -> Option<IncidentRecord> {
        self.casebook.record(id)
    }

    /// Questions to humans: open ones first.
    pub fn approvals(&self) -> Vec<ApprovalRecord> {
        self.casebook.approvals()
    }

    /// One question.
    pub fn approval(&self, id: &ApprovalId) -> Option<ApprovalRecord> {
        self.casebook.approval(id)
    }

    /// Everything that is in force.
    pub fn leases(&self) -> Vec<LeaseRecord> {
        self.casebook
            .iter()
            .flat_map(|(_, case)| case.lease_records())
            .collect()
    }

    /// Silences and maintenance windows that are not over.
    pub fn silences(&self, now: Now) -> Vec<SilenceRecord> {
        self.silences.records(now.wall)
    }

    /// One silence.
    pub fn silence(&self, id: &SilenceId) -> Option<SilenceRecord> {
        self.silences.get(id).cloned()
    }

    /// Whether an operator has stopped automation.
    pub fn brake(&self) -> &BrakeRecord {
        &self.brake
    }

    /// Whether automation is stopped, by an operator or by the configuration: for people, not for the ledger.
    pub fn brake_in_force(&self) -> BrakeRecord {
        if self.book.brake && !self.brake.on {
            return BrakeRecord {
                on: true,
                by: Some("the configuration".to_owned()),
                ..BrakeRecord::default()
            };
        }
        self.brake.clone()
    }

    /// The rules in force.
    pub fn rulebook(&self) -> &Arc<Rulebook> {
        &self.book
    }

    /// Every rule with what it sees, at `now`.
    pub fn rules(&self, now: Now) -> Vec<RuleStatus> {
        self.rule_views(self.now.max(now.mono))
    }

    /// What the engine sees of each agent, at `now`, by name.
    pub fn agents(&self, now: Now) -> Vec<AgentStatus> {
        self.agent_views(self.now.max(now.mono))
    }

    fn tick(&mut self, now: Now, out: &mut Vec<Effect>) {
        let idle = self.bounds.execution_idle();
        while let Some(number) = self.executions.idle_since(now.mono.before(idle)) {
            self.drop_execution(number, now, out);
        }
        let mut numbers = Vec::new();
        for i in 0..self.needs.live.len() {
            let Some(&index) = self.needs.live.get(i) else {
                break;
            };
            let Some(watch) = self.watches.get_mut(usize::from(index)) else {
                continue;
            };
            numbers.clear();
            watch.take_waiting(&mut numbers);
            watch.due(now.mono, &mut numbers);
            for &number in &numbers {
                self.look(index, number, now, out);
            }
        }
        self.follow_cases(now, out);
        self.make_room(now, out);
    }

    /// Agents that are long gone leave the table when others found no room in it.
    fn make_room(&mut self, now: Now, out: &mut Vec<Effect>) {
        if now.mono.since(self.swept) < SWEEP_EVERY || !self.agents.take_turned_away() {
            return;
        }
        self.swept = now.mono;
        let gone_before = now.mono.before(FORGOTTEN_AFTER);
        let mut gone: Vec<bool> = self
            .seen
            .iter()
            .map(|s| s.last.is_some_and(|(at, _)| at < gone_before))
            .collect();
        if let Some(shared) = gone.get_mut(OVERFLOW as usize) {
            *shared = false;
        }
        for (_, case) in self.casebook.iter() {
            for agent in case.members.iter().filter_map(|m| m.agent.as_ref()) {
                let number = self.agents.known(agent.as_str());
                if let Some(place) = number.and_then(|n| gone.get_mut(n as usize)) {
                    *place = false;
                }
            }
        }
        let is_gone = |number: u32| gone.get(number as usize).copied().unwrap_or(false);
        for execution in self.executions.of_agents(is_gone) {
            self.drop_execution(execution, now, out);
        }
        for number in (0..).zip(&gone).filter_map(|(n, gone)| gone.then_some(n)) {
            for watch in &mut self.watches {
                watch.agents.forget(number);
                if watch.group_by() == GroupBy::Agent {
                    watch.drop_subject(number);
                }
            }
            if let Some(seen) = self.seen.get_mut(number as usize) {
                *seen = AgentSeen::default();
            }
            self.agents.forget(number);
        }
    }

    pub(super) fn forget(&mut self, agent: &AgentId, now: Now, out: &mut Vec<Effect>) {
        let Some(number) = self.agents.known(agent.as_str()) else {
            return;
        };
        for execution in self.executions.of_agents(|a| a == number) {
            self.drop_execution(execution, now, out);
        }
        for watch in self.watches.iter_mut().filter(|w| w.group_by() == GroupBy::Agent) {
            if let Some(subject) = watch.known_mut(number) {
                subject.clear(now.mono);
            }
        }
        if let Some(seen) = self.seen.get_mut(number as usize) {
            seen.pace = Pace::default();
        }
    }
}

/// Every rule of a book, at work with nothing seen.
pub(super) fn watches(book: &Rulebook) -> Vec<Watch> {
    book.rules
        .iter()
        .take(usize::from(u16::MAX))
        .map(|rule| Watch::new(Arc::clone(rule)))
        .collect()
}

impl Needs {
    /// What these rules need.
    pub(super) fn of(watches: &[Watch]) -> Self {
        let mut needs = Self::default();
        for (index, watch) in (0_u16..).zip(watches).filter(|(_, w)| w.gauge.live) {
            needs.live.push(index);
            needs.models |= !watch.models.is_open() || watch.group_by() == GroupBy::Model;
            needs.upstreams |= !watch.upstreams.is_open() || watch.group_by() == GroupBy::Upstream;
            needs.every_execution |= watch.group_by() == GroupBy::Execution;
            needs.executions |= watch.gauge.shape == Shape::Execution || needs.every_execution;
        }
        needs
    }
}
