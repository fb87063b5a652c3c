//! A recorded past played to the engine of production, with time taken from the record.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::obey::Gate;
use crate::config::Compiled;
use crate::incident::effect::Effect;
use crate::incident::engine::{Bounds, Engine};
use crate::incident::input::{Input, OperatorAct};
use crate::incident::record::{ApprovalState, IncidentRecord, RuleStatus};
use crate::incident::rule::{Baseline, Metric, Rulebook, Threshold};
use crate::types::directive::DirectiveSet;
use crate::types::ids::{AgentId, ApprovalId};
use crate::types::observation::{Observation, Outcome};
use crate::types::time::{Mono, Now, Wall};

/// Incidents that a replay remembers.
const MOST_INCIDENTS: usize = 100_000;
/// Monotonic time of the first observation: late enough that nothing before it is cut off.
const ORIGIN: u64 = 90 * 86_400_000;
const SECOND: i64 = 1_000;
/// Pause between ticks in a gap in which only what is open can change.
const COARSE: i64 = 60_000;
/// What is looked at in a gap beyond what rules look back at.
const MARGIN: Duration = Duration::from_secs(60);

/// A replay through one rulebook.
#[derive(Debug)]
pub(super) struct Replay {
    engine: Engine,
    pub(super) gate: Gate,
    set: Arc<DirectiveSet>,
    approve: bool,
    /// After so many milliseconds without an exchange nothing but open incidents can change.
    settles: i64,
    out: Vec<Effect>,
    /// Milliseconds since the epoch: of the first exchange, of the last, and of the last tick.
    first: i64,
    last: i64,
    ticked: i64,
    pub(super) seen: Seen,
}

/// What the record held.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Seen {
    /// Exchanges.
    pub(super) exchanges: u64,
    /// Exchanges that were refused by fusebox when they were recorded.
    pub(super) refused_then: u64,
    /// Exchanges whose time is before that of the one before; they are taken as at the same time.
    pub(super) out_of_order: u64,
    /// Input and output tokens.
    pub(super) tokens: u64,
    /// US dollars, where known.
    pub(super) cost_usd: f64,
    /// Who sent them.
    pub(super) agents: HashSet<AgentId>,
}

impl Replay {
    /// A replay through the rules of a configuration. With `approve` every question is answered with yes at once;
    /// without it nobody answers.
    pub(super) fn new(compiled: &Compiled, approve: bool) -> Self {
        let bounds = Bounds {
            max_closed_incidents: MOST_INCIDENTS,
            ..compiled.wiring.bounds
        };
        Self {
            engine: Engine::new(Arc::clone(&compiled.rulebook), bounds),
            gate: Gate::new(&compiled.policy),
            set: Arc::default(),
            approve,
            settles: settles(&compiled.rulebook),
            out: Vec::new(),
            first: 0,
            last: 0,
            ticked: 0,
            seen: Seen::default(),
        }
    }

    /// Takes in the next exchange.
    pub(super) fn take(&mut self, o: &Observation) {
        let mut at = o.time.unix_millis();
        if self.seen.exchanges == 0 {
            (self.first, self.last, self.ticked) = (at, at, at);
        }
        if at < self.last {
            self.seen.out_of_order += 1;
            at = self.last;
        }
        self.pass_to(at);
        self.last = at;
        let seen = &mut self.seen;
        seen.exchanges += 1;
        seen.refused_then += u64::from(o.outcome == Outcome::Refused);
        seen.tokens = seen.tokens.saturating_add(o.normalised.total().unwrap_or(0));
        seen.cost_usd += o.cost_usd.map_or(0.0, |c| c.usd());
        if !seen.agents.contains(&o.agent) {
            seen.agents.insert(o.agent.clone());
        }
        let now = self.now(at);
        let instead = self.gate.apply(&self.set, o, now.mono);
        self.engine
            .observed(now, instead.as_ref().unwrap_or(o), &mut self.out);
        self.perform(now);
    }

    /// When the record begins and ends; `None` when it is empty.
    pub(super) fn span(&self) -> Option<(Wall, Wall)> {
        let of = Wall::from_unix_millis;
        (self.seen.exchanges > 0).then(|| (of(self.first), of(self.last)))
    }

    /// Incidents in order of opening; those that became a part of another one are in that one.
    pub(super) fn incidents(&self) -> Vec<IncidentRecord> {
        let mut all = self.engine.incidents();
        all.retain(|i| i.merged_into.is_none());
        all.sort_by(|a, b| a.id.cmp(&b.id));
        all
    }

    /// Rules, with what each has found.
    pub(super) fn rules(&self) -> Vec<RuleStatus> {
        self.engine.rules(self.now(self.last))
    }

    /// Lets time pass, with a tick each second as far as anything can change.
    fn pass_to(&mut self, at: i64) {
        let mut next = whole(self.ticked) + SECOND;
        while next <= at {
            self.tick(next);
            let settled = next - self.last > self.settles;
            if settled && self.engine.open_incidents() == 0 {
                break;
            }
            next += if settled { COARSE } else { SECOND };
        }
        if whole(at) > self.ticked {
            self.tick(whole(at));
        }
    }

    fn tick(&mut self, at: i64) {
        self.ticked = at;
        let now = self.now(at);
        self.engine.step(now, Input::Tick, &mut self.out);
        self.perform(now);
    }

    fn now(&self, at: i64) -> Now {
        let since = u64::try_from(at.saturating_sub(self.first)).unwrap_or(0);
        Now {
            mono: Mono::from_millis(ORIGIN.saturating_add(since)),
            wall: Wall::from_unix_millis(at),
        }
    }

    fn perform(&mut self, now: Now) {
        // An answer may lead to another question.
        while !self.out.is_empty() {
            let mut asked: Vec<ApprovalId> = Vec::new();
            for effect in self.out.drain(..) {
                match effect {
                    Effect::Publish(set) => self.set = set,
                    Effect::Asked(id) if self.approve => asked.push(id),
                    _ => {}
                }
            }
            for approval in asked {
                let open = self.engine.approval(&approval);
                if open.is_none_or(|a| a.state != ApprovalState::Needed) {
                    continue;
                }
                let yes = OperatorAct::Decide {
                    approval,
                    approve: true,
                    by: "backtest".to_owned(),
                    via: "cli".to_owned(),
                    reason: None,
                };
                // It was open a moment ago, and nobody else answers.
                drop(self.engine.operate(now, yes, &mut self.out));
            }
        }
    }
}

fn whole(millis: i64) -> i64 {
    millis.div_euclid(SECOND) * SECOND
}

/// How long rules look back, or wait, at most.
fn settles(book: &Rulebook) -> i64 {
    let silence = |threshold: Option<Threshold>, baseline| match (threshold, baseline) {
        (Some(Threshold::Fixed(seconds)), _) => seconds,
        (Some(Threshold::TimesBaseline(times)), Baseline::Fixed(seconds)) => times * seconds,
        _ => 0.0,
    };
    let looks_back = book.rules.iter().map(|rule| {
        let silent = match rule.metric {
            Metric::Silence => silence(rule.threshold_upper, rule.baseline),
            _ => 0.0,
        };
        let silent = Duration::try_from_secs_f64(silent.max(0.0)).unwrap_or_default();
        rule.window + rule.hold + silent
    });
    let longest = looks_back.max().unwrap_or_default() + MARGIN;
    i64::try_from(longest.as_millis()).unwrap_or(i64::MAX)
}
