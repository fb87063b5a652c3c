//! Observations, rules and a driven engine for tests.

use std::sync::Arc;
use std::time::Duration;

use super::effect::Effect;
use super::engine::{Bounds, Engine};
use super::input::{Acted, Input, NotActed, OperatorAct};
use super::record::{IncidentRecord, IncidentState};
use super::restore::Remains;
use super::rule::{
    Action, Approval, Baseline, Conduct, GroupBy, Metric, Mode, Rule, Rulebook, Step, StepKind, Threshold,
};
use crate::types::directive::{DirectiveSet, Sender};
use crate::types::ids::Generation;
use crate::types::notice::{Notice, Severity};
use crate::types::observation::{IdentitySource, Observation, Outcome};
use crate::types::time::{Mono, Now, Wall};
use crate::types::usage::{Normalised, Usage, UsageSource};

/// 2026-11-25T10:15:00Z.
const START: i64 = 1_795_601_700_000;

/// A whole, streamed answer of 100 tokens in and 50 out, in one second.
pub(crate) fn observation(agent: &str, execution: &str) -> Observation {
    Observation {
        request_id: "r".into(),
        time: Wall::default(),
        agent: agent.into(),
        agent_source: IdentitySource::Header,
        agent_version: None,
        execution: execution.into(),
        execution_source: IdentitySource::Header,
        upstream: "main".into(),
        provider: "openai".into(),
        api: "openai.chat".into(),
        model_requested: Some("gpt-4o".into()),
        model_served: None,
        status: 200,
        stream: true,
        outcome: Outcome::Complete,
        usage_source: UsageSource::Reported,
        usage: Usage::default(),
        normalised: Normalised {
            input_total: Some(100),
            output_total: Some(50),
        },
        finish_reason: Some("stop".into()),
        finish_detail: None,
        error_type: None,
        error_code: None,
        tool_calls: Vec::new(),
        output_chars: Some(200),
        ttfb_ms: Some(150.0),
        ttft_ms: Some(200.0),
        duration_ms: 1000.0,
        overhead_us: 50,
        cost_usd: None,
        may_continue: false,
        actions: Vec::new(),
        ended: Mono::ZERO,
    }
}

/// An observation of so many input tokens.
pub(crate) fn tokens(agent: &str, execution: &str, tokens: u64) -> Observation {
    let mut o = observation(agent, execution);
    o.normalised = Normalised {
        input_total: Some(tokens),
        output_total: Some(0),
    };
    o
}

/// An enforced rule with baseline 2,500, limit 5,000, a window of one minute and the action `act`.
pub(crate) fn rule(name: &str, metric: Metric) -> Rule {
    Rule {
        name: name.into(),
        enabled: true,
        mode: Mode::Enforce,
        severity: Severity::Warning,
        metric,
        statistic: metric.default_statistic(),
        baseline: Baseline::Fixed(2500.0),
        threshold_upper: Some(Threshold::Fixed(5000.0)),
        threshold_lower: None,
        window: Duration::from_secs(60),
        hold: Duration::ZERO,
        min_samples: 1,
        cooldown: Duration::from_secs(120),
        hysteresis: 0.1,
        agents: Vec::new(),
        models: Vec::new(),
        upstreams: Vec::new(),
        group_by: GroupBy::Agent,
        act_on_estimates: false,
        action: "act".into(),
    }
}

/// A step that runs by itself, for five minutes at a time.
pub(crate) fn step(kind: StepKind) -> Step {
    Step {
        approval: Approval::Automatic,
        ..Step::new(kind, Duration::from_secs(300))
    }
}

/// These rules; `act` throttles to 60 requests and 10,000 tokens a minute, takes a cheaper model, and notifies `chat`.
pub(crate) fn book(rules: impl IntoIterator<Item = Rule>) -> Rulebook {
    let act = Action {
        steps: vec![
            step(StepKind::Throttle {
                requests_per_minute: Some(60),
                tokens_per_minute: Some(10_000),
            }),
            step(StepKind::DowngradeModel { to: None }),
            step(StepKind::Notify {
                targets: vec!["chat".to_owned()],
            }),
        ],
    };
    Rulebook {
        generation: Generation(1),
        rules: rules.into_iter().map(Arc::new).collect(),
        actions: [("act".into(), act)].into(),
        max_actions_per_hour: 100,
        brake: false,
        // What comes back is another incident; tests of what reopens one say so.
        conduct: Conduct {
            reopen_within: Duration::ZERO,
            ..Conduct::default()
        },
    }
}

/// An engine whose time is driven by hand.
pub(crate) struct Driven {
    pub(crate) engine: Engine,
    pub(crate) millis: u64,
    pub(crate) set: Arc<DirectiveSet>,
    pub(crate) published: u32,
    pub(crate) notices: Vec<Notice>,
    calls: u64,
    out: Vec<Effect>,
}

impl Driven {
    pub(crate) fn new(book: Rulebook) -> Self {
        Self::bounded(
            book,
            Bounds {
                max_subjects: 1000,
                max_executions: 1000,
                execution_idle_seconds: 600,
                max_closed_incidents: 10,
            },
        )
    }

    pub(crate) fn bounded(book: Rulebook, bounds: Bounds) -> Self {
        Self {
            engine: Engine::new(Arc::new(book), bounds),
            millis: 1_000_000,
            set: Arc::default(),
            published: 0,
            notices: Vec::new(),
            calls: 0,
            out: Vec::new(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        Now {
            mono: Mono::from_millis(self.millis),
            wall: Wall::from_unix_millis(START + self.millis as i64 - 1_000_000),
        }
    }

    pub(crate) fn step(&mut self, input: Input) {
        self.engine.step(self.now(), input, &mut self.out);
        self.perform();
    }

    pub(crate) fn operate(&mut self, act: OperatorAct) -> Result<Acted, NotActed> {
        let acted = self.engine.operate(self.now(), act, &mut self.out);
        self.perform();
        acted
    }

    pub(crate) fn restore(&mut self, remains: Remains) -> Vec<String> {
        let unreadable = self.engine.restore(remains, self.now(), &mut self.out);
        self.perform();
        unreadable
    }

    fn perform(&mut self) {
        for effect in self.out.drain(..) {
            match effect {
                Effect::Publish(set) => {
                    assert!(set.generation() > self.set.generation());
                    self.set = set;
                    self.published += 1;
                }
                Effect::Tell(notice) => self.notices.push(*notice),
                _ => {}
            }
        }
    }

    pub(crate) fn see(&mut self, o: Observation) {
        self.step(Input::Observation(Box::new(o)));
    }

    /// Time passes, with a tick each second.
    pub(crate) fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.millis += 1000;
            self.step(Input::Tick);
        }
    }

    /// Each second for so long: what `each` says (of the number of the call), then a tick.
    pub(crate) fn run(&mut self, seconds: u64, mut each: impl FnMut(u64) -> Observation) {
        for _ in 0..seconds {
            let o = each(self.calls);
            self.calls += 1;
            self.see(o);
            self.wait(1);
        }
    }

    /// The newest incident.
    pub(crate) fn last(&self) -> IncidentRecord {
        let mut all = self.engine.incidents();
        all.sort_by(|a, b| b.id.cmp(&a.id));
        all.into_iter().next().expect("an incident")
    }

    pub(crate) fn open(&self) -> usize {
        self.engine
            .incidents()
            .iter()
            .filter(|i| i.state != IncidentState::Resolved)
            .count()
    }

    /// Words of the newest incident's timeline, in order.
    pub(crate) fn events(&self) -> Vec<String> {
        self.last().timeline.into_iter().map(|e| e.event).collect()
    }

    /// What an agent must obey, in words.
    pub(crate) fn orders(&self, agent: &str) -> Vec<String> {
        self.set
            .of(
                Sender {
                    agent,
                    execution: "",
                    version: None,
                },
                self.now().mono,
            )
            .map(|d| super::plan::describe(&d.order))
            .collect()
    }
}
