//! One incident: its evidence, its life, what it has ordered, and everything that happened to it.

use std::sync::Arc;
use std::time::Duration;

use super::gauge::Side;
use super::lifecycle::{Event, Life, Move, Stage};
use super::metric::Unit;
use super::plan::{self, Decision, Planned};
use super::record::{IncidentRecord, IncidentState, TimelineEntry};
use super::recovery;
use super::rule::{Metric, Rule, Statistic};
use super::tell;
use crate::types::directive::{Directive, Order, Subject};
use crate::types::ids::{ActionName, AgentId, IncidentId, LeaseId, RuleName};
use crate::types::notice::{Notice, NoticeEvent, Severity};
use crate::types::time::{Mono, Now, Wall};

/// Entries of a timeline; later ones push out those after the opening.
const MAX_TIMELINE: usize = 200;
/// Entries from the opening that always stay.
const KEPT_FROM_START: usize = 50;
/// A lease is renewed when half of it has passed, and no later than this before its end.
const RENEW_BEFORE: Duration = Duration::from_secs(3);
/// A worse value is worth a line when it is worse by this much.
const WORSE: f64 = 1.5;

/// Whom an incident is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct About {
    /// `agent`, `execution`, `model`, `upstream`, `fleet`.
    pub(crate) kind: &'static str,
    /// Its name.
    pub(crate) name: String,
    /// The agent behind it, where there is one.
    pub(crate) agent: Option<AgentId>,
}

/// What was found.
#[derive(Debug, Clone)]
pub(crate) struct Evidence {
    /// Which threshold was passed.
    pub(crate) side: Side,
    /// The value, in the metric's unit.
    pub(crate) value: f64,
    /// What it must not pass.
    pub(crate) threshold: f64,
    /// What is normal.
    pub(crate) baseline: Option<f64>,
    /// Samples behind the value.
    pub(crate) samples: u64,
}

/// One incident.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name.
    pub(crate) id: IncidentId,
    /// Whom it is about.
    pub(crate) about: About,
    /// The rule's number in the rulebook in force.
    pub(crate) watch: u16,
    /// The subject's number in that rule.
    pub(crate) subject: u32,
    /// What was found when it was opened.
    pub(crate) evidence: Evidence,
    /// Why directives were not given at once, while that may change.
    pub(crate) held_back: bool,
    /// When to look at its metric next.
    pub(crate) next_look: Mono,
    pub(super) rule: RuleName,
    pub(super) severity: Severity,
    pub(super) metric: Metric,
    pub(super) statistic: Statistic,
    pub(super) window: Duration,
    pub(super) action: ActionName,
    pub(super) steps: Vec<(String, String)>,
    pub(super) opened: Wall,
    pub(super) worst: f64,
    pub(super) current: Option<f64>,
    worst_told: f64,
    life: Life,
    probation: Duration,
    leases: Vec<Lease>,
    leases_given: u32,
    notices: u32,
    told: Vec<Vec<String>>,
    repeats: Vec<Repeat>,
    timeline: Vec<TimelineEntry>,
    resolved: Option<Wall>,
}

/// A directive with what is needed to renew, relax and restore it.
#[derive(Debug)]
struct Lease {
    order: Order,
    length: Duration,
    directive: Arc<Directive>,
    /// Lifted for a while otherwise.
    in_force: bool,
}

#[derive(Debug)]
struct Repeat {
    targets: Vec<String>,
    every: Duration,
    next: Mono,
}

/// What has changed outside because of an incident.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Directives are no longer what they were.
    pub(crate) directives: bool,
    /// There is something new to be recorded.
    pub(crate) changed: bool,
    /// It is over.
    pub(crate) ended: bool,
    /// People to be told.
    pub(crate) notices: Vec<Notice>,
}

impl Case {
    /// Opens an incident; its plan is carried out by [`Case::carry_out`].
    pub(crate) fn open(
        id: IncidentId,
        rule: &Rule,
        about: About,
        place: (u16, u32),
        evidence: Evidence,
        now: Now,
    ) -> Self {
        let mut case = Self {
            id,
            about,
            watch: place.0,
            subject: place.1,
            held_back: false,
            next_look: now.mono,
            rule: rule.name.clone(),
            severity: rule.severity,
            metric: rule.metric,
            statistic: rule.statistic,
            window: rule.window,
            action: rule.action.clone(),
            steps: Vec::new(),
            opened: now.wall,
            worst: evidence.value,
            current: Some(evidence.value),
            worst_told: evidence.value,
            life: Life::open(),
            probation: recovery::probation(rule),
            leases: Vec::new(),
            leases_given: 0,
            notices: 0,
            told: Vec::new(),
            repeats: Vec::new(),
            timeline: Vec::new(),
            resolved: None,
            evidence,
        };
        let detail = tell::evidence(&case);
        case.note(now, "opened", detail);
        case
    }

    /// Carries out a plan, directives first. With `tell`, people are told that the incident was opened: those that the
    /// plan names, or everyone where it names nobody.
    pub(crate) fn carry_out(&mut self, plan: &[Planned], tell: bool, now: Now, outcome: &mut Outcome) {
        outcome.changed = true;
        self.steps.clear();
        for planned in plan {
            match &planned.decision {
                Decision::Order {
                    subject,
                    order,
                    lease,
                } => {
                    self.order(subject.clone(), order.clone(), *lease, now);
                    outcome.directives = true;
                    let what = plan::describe(order);
                    self.note(now, "step_applied", format!("{}: {what}", planned.name));
                    self.steps.push((planned.name.clone(), what));
                }
                Decision::Waits { why } => {
                    self.note(now, "step_waiting", format!("{} {why}", planned.name));
                    self.steps.push((planned.name.clone(), format!("waiting: {why}")));
                }
                Decision::Skipped { why } => {
                    self.note(now, "step_skipped", format!("{}: {why}", planned.name));
                    self.steps
                        .push((planned.name.clone(), format!("not done: {why}")));
                }
                Decision::Tell { .. } => {}
            }
        }
        if tell {
            self.tell_opening(plan, now, outcome);
        }
    }

    /// Takes in what its metric says now.
    pub(crate) fn on(&mut self, event: Event, value: Option<f64>, now: Now, outcome: &mut Outcome) {
        if let Some(value) = value {
            self.current = Some(value);
            self.remember_worst(value, now, outcome);
        } else if event == Event::NoTraffic {
            self.current = None;
        }
        let life = std::mem::replace(&mut self.life, Life::open());
        let (life, moved) = life.on(event, now.mono, self.probation);
        self.life = life;
        match moved {
            Move::Stays => {}
            Move::Recovers => {
                let why = match event {
                    Event::NoTraffic => "no traffic: nothing is left in the window".to_owned(),
                    _ => format!("the metric is back: {}", self.reading()),
                };
                self.note(now, "recovering", why);
                self.restate(now, outcome);
            }
            Move::Relaxes => {
                self.note(
                    now,
                    "recovering",
                    "still back: limits are relaxed further".to_owned(),
                );
                self.restate(now, outcome);
            }
            Move::Relapses => {
                let detail = format!("beyond the threshold again: {}", self.reading());
                self.note(now, "relapsed", detail);
                self.restate(now, outcome);
                for targets in self.told.clone() {
                    self.tell(NoticeEvent::Updated, self.severity, targets, now, outcome);
                }
                for repeat in &mut self.repeats {
                    repeat.next = now.mono.after(repeat.every);
                }
            }
            Move::Ends => self.end("the metric stayed back".to_owned(), now, outcome),
        }
    }

    /// Ends it whatever its metric says.
    pub(crate) fn close(&mut self, why: &str, by: Option<&str>, now: Now, outcome: &mut Outcome) {
        let life = std::mem::replace(&mut self.life, Life::open());
        let (life, moved) = life.on(Event::Close, now.mono, self.probation);
        self.life = life;
        if moved == Move::Ends {
            if let Some(by) = by {
                self.note(now, "operator", format!("resolved by {by}"));
            }
            self.end(why.to_owned(), now, outcome);
        }
    }

    /// Renews leases, and repeats what has to be repeated while the metric is in breach.
    pub(crate) fn keep_up(&mut self, now: Now, outcome: &mut Outcome) {
        for lease in self.leases.iter_mut().filter(|l| l.in_force) {
            if lease.directive.until.since(now.mono) < (lease.length / 2).max(RENEW_BEFORE) {
                lease.hold(lease.directive.order.clone(), now);
                outcome.directives = true;
            }
        }
        if self.life.state() != IncidentState::Open {
            return;
        }
        for i in 0..self.repeats.len() {
            let Some(repeat) = self.repeats.get_mut(i).filter(|r| r.next <= now.mono) else {
                continue;
            };
            repeat.next = now.mono.after(repeat.every);
            let targets = repeat.targets.clone();
            self.tell(NoticeEvent::Escalated, Severity::Critical, targets, now, outcome);
        }
    }

    /// Lifts every directive, for a reason.
    pub(crate) fn lift(&mut self, why: &str, now: Now, outcome: &mut Outcome) {
        let orders: Vec<String> = self
            .leases
            .drain(..)
            .filter(|l| l.in_force)
            .map(|l| plan::describe(&l.order))
            .collect();
        if !orders.is_empty() {
            outcome.directives = true;
            self.note(now, "lifted", format!("{} ({why})", orders.join(", ")));
        }
    }

    /// Goes on under a changed rule.
    pub(crate) fn adopt(&mut self, rule: &Rule) {
        self.severity = rule.severity;
        self.action = rule.action.clone();
        self.probation = recovery::probation(rule);
    }

    /// Whether it orders anything now.
    pub(crate) fn has_directives(&self) -> bool {
        self.leases.iter().any(|l| l.in_force)
    }

    /// What it orders now.
    pub(crate) fn directives(&self) -> impl Iterator<Item = &Arc<Directive>> {
        self.leases.iter().filter(|l| l.in_force).map(|l| &l.directive)
    }

    /// Where it is on its way.
    pub(crate) fn state(&self) -> IncidentState {
        self.life.state()
    }

    /// As it is shown.
    pub(crate) fn record(&self) -> IncidentRecord {
        IncidentRecord {
            id: self.id.clone(),
            rule: self.rule.clone(),
            severity: self.severity,
            subject_kind: self.about.kind.to_owned(),
            subject: self.about.name.clone(),
            agent: self.about.agent.clone(),
            state: self.life.state(),
            metric: self.metric.name(self.statistic),
            value: self.evidence.value,
            worst: self.worst,
            current: self.current,
            baseline: self.evidence.baseline,
            threshold: self.evidence.threshold,
            samples: self.evidence.samples,
            action: self.action.clone(),
            directives: self.directives().map(|d| Directive::clone(d)).collect(),
            opened: self.opened,
            resolved: self.resolved,
            timeline: self.timeline.clone(),
        }
    }

    /// Writes a line into the timeline.
    pub(crate) fn note(&mut self, now: Now, event: &str, detail: String) {
        if self.timeline.len() >= MAX_TIMELINE {
            self.timeline.remove(KEPT_FROM_START);
        }
        self.timeline.push(TimelineEntry {
            at: now.wall,
            event: event.to_owned(),
            detail,
        });
    }

    fn order(&mut self, subject: Subject, order: Order, length: Duration, now: Now) {
        self.leases_given += 1;
        let lease = LeaseId::from(format!("{}-{}", self.id, self.leases_given));
        let directive = Directive {
            lease,
            incident: self.id.clone(),
            rule: self.rule.clone(),
            subject,
            order: order.clone(),
            since: now.wall,
            expires: later(now.wall, length),
            until: now.mono.after(length),
        };
        self.leases.push(Lease {
            order,
            length,
            directive: Arc::new(directive),
            in_force: true,
        });
    }

    /// Brings every directive to what the stage of recovery says.
    fn restate(&mut self, now: Now, outcome: &mut Outcome) {
        let stage = self.life.stage();
        let mut lines = Vec::new();
        for lease in &mut self.leases {
            let wanted = recovery::relax(&lease.order, stage);
            if wanted.as_ref() == Some(&lease.directive.order).filter(|_| lease.in_force) {
                continue;
            }
            lines.push(match &wanted {
                Some(order) if stage == Stage::Full => ("step_applied", plan::describe(order)),
                Some(order) => ("lifted", format!("in part: {}", plan::describe(order))),
                None => ("lifted", plan::describe(&lease.order)),
            });
            match wanted {
                Some(order) => lease.hold(order, now),
                None => lease.in_force = false,
            }
            outcome.directives = true;
        }
        for (event, detail) in lines {
            self.note(now, event, detail);
        }
        outcome.changed = true;
    }

    fn remember_worst(&mut self, value: f64, now: Now, outcome: &mut Outcome) {
        let worse_than = |than: f64, by: f64| match self.evidence.side {
            Side::Upper => value > than * by,
            Side::Lower => value * by < than,
        };
        if worse_than(self.worst, 1.0) {
            self.worst = value;
        }
        if worse_than(self.worst_told, WORSE) {
            self.worst_told = value;
            self.note(now, "worsened", self.reading());
            outcome.changed = true;
        }
    }

    fn end(&mut self, why: String, now: Now, outcome: &mut Outcome) {
        self.resolved = Some(now.wall);
        self.lift("the incident is over", now, outcome);
        self.repeats.clear();
        self.note(now, "resolved", why);
        outcome.changed = true;
        outcome.ended = true;
        let told = if self.told.is_empty() {
            vec![Vec::new()]
        } else {
            self.told.clone()
        };
        for targets in told {
            self.tell(NoticeEvent::Resolved, self.severity, targets, now, outcome);
        }
    }

    /// One notice for each set of targets: critical where the plan escalates to them.
    fn tell_opening(&mut self, plan: &[Planned], now: Now, outcome: &mut Outcome) {
        let mut sets: Vec<(Vec<String>, bool)> = Vec::new();
        for planned in plan {
            let Decision::Tell {
                targets,
                repeat_every,
            } = &planned.decision
            else {
                continue;
            };
            if let Some(every) = repeat_every {
                self.repeats.push(Repeat {
                    targets: targets.clone(),
                    every: *every,
                    next: now.mono.after(*every),
                });
            }
            match sets.iter_mut().find(|(t, _)| t == targets) {
                Some((_, critical)) => *critical |= repeat_every.is_some(),
                None => sets.push((targets.clone(), repeat_every.is_some())),
            }
        }
        if sets.is_empty() {
            sets.push((Vec::new(), false));
        }
        for (targets, critical) in sets {
            let severity = if critical {
                Severity::Critical
            } else {
                self.severity
            };
            self.told.push(targets.clone());
            self.tell(NoticeEvent::Opened, severity, targets, now, outcome);
        }
    }

    /// Tells those who were told of the opening that something has changed.
    pub(crate) fn tell_update(&mut self, now: Now, outcome: &mut Outcome) {
        for targets in self.told.clone() {
            self.tell(NoticeEvent::Updated, self.severity, targets, now, outcome);
        }
    }

    fn tell(
        &mut self,
        event: NoticeEvent,
        severity: Severity,
        targets: Vec<String>,
        now: Now,
        outcome: &mut Outcome,
    ) {
        self.notices = self.notices.saturating_add(1);
        let to = if targets.is_empty() {
            "all targets".to_owned()
        } else {
            targets.join(", ")
        };
        self.note(now, "told", format!("{} to {to}", event.wire_name()));
        outcome.changed = true;
        outcome.notices.push(Notice {
            id: format!("{}-n{}", self.id, self.notices),
            event,
            incident: self.id.clone(),
            rule: self.rule.clone(),
            severity,
            subject: self.about.name.clone(),
            title: tell::title(self, event, now),
            facts: tell::facts(self, event, now),
            at: now.wall,
            targets,
        });
    }

    pub(super) fn unit(&self) -> Unit {
        self.metric.unit()
    }

    /// The value now, in words.
    pub(super) fn reading(&self) -> String {
        match self.current {
            Some(value) => format!(
                "{} (limit {})",
                self.metric.describe(self.statistic, value),
                self.unit().format(self.evidence.threshold)
            ),
            None => "no traffic".to_owned(),
        }
    }
}

impl Lease {
    /// In force, as `order`, for its length from `now` on.
    fn hold(&mut self, order: Order, now: Now) {
        self.in_force = true;
        self.directive = Arc::new(Directive {
            order,
            until: now.mono.after(self.length),
            expires: later(now.wall, self.length),
            ..Directive::clone(&self.directive)
        });
    }
}

fn later(wall: Wall, by: Duration) -> Wall {
    Wall::from_unix_millis(
        wall.unix_millis()
            .saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
    )
}
