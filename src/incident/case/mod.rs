//! One incident: its evidence, its life, what it has ordered, and everything that happened to it.

mod chain;
mod lease;
mod notices;
mod step;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::lease::Lease;
use self::notices::Escalation;
pub(crate) use self::step::{Effect, StepRun};
use super::approval::Question;
use super::gauge::Side;
use super::input::Respond;
use super::lifecycle::{Event, Life, Move};
use super::metric::Unit;
use super::pace::Rate;
use super::record::{
    ApprovalRecord, IncidentRecord, IncidentState, LeaseRecord, Measures, Origin, TimelineEntry, Verdict,
};
use super::recovery;
use super::rule::{Metric, Rule, Statistic, Step};
use super::tell;
use crate::types::directive::{Directive, Subject};
use crate::types::ids::{ActionName, AgentId, ApprovalId, IncidentId, RuleName, SilenceId};
use crate::types::notice::{Notice, NoticeEvent, Severity};
use crate::types::time::{Mono, Now};

/// Entries of a timeline; later ones push out those after the opening.
const MAX_TIMELINE: usize = 200;
/// Entries from the opening that always stay.
const KEPT_FROM_START: usize = 50;
/// A worse value is worth a line when it is worse by this much.
const WORSE: f64 = 1.5;
/// Returns are counted over this long, to tell whether an incident flaps.
const FLAP_WINDOW: Duration = Duration::from_secs(3600);
/// Agents that one incident takes in.
const MAX_MEMBERS: usize = 1000;

/// What the subject of an incident is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Agent,
    Execution,
    Model,
    Upstream,
    Fleet,
    Fusebox,
}

/// Whom an incident is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// What it is.
    pub(crate) kind: Kind,
    /// Its name.
    pub(crate) name: String,
    /// The agent behind it, where there is one.
    pub(crate) agent: Option<AgentId>,
}

/// A subject of a rule that an incident takes in. The first one is the incident's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// The subject's name.
    pub(crate) name: String,
    /// The agent that directives bind, where there is one.
    pub(crate) agent: Option<AgentId>,
    /// The subject's number in the incident's rule; [`NOWHERE`] when it has none.
    #[serde(skip, default = "nowhere")]
    pub(crate) number: u32,
}

/// The number of what is not followed.
pub(crate) const NOWHERE: u32 = u32::MAX;
/// The number of no rule.
pub(crate) const NO_WATCH: u16 = u16::MAX;

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Evidence {
    /// What is measured; `None`: it is not about a metric.
    pub(crate) metric: Option<(Metric, Statistic)>,
    /// Over how long.
    pub(crate) window: Duration,
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
    /// In words, where there is no metric.
    pub(crate) words: String,
}

impl Evidence {
    /// What is told in words alone: it is not about a metric.
    pub(crate) fn in_words(words: String) -> Self {
        Self {
            metric: None,
            window: Duration::from_secs(60),
            side: Side::Upper,
            value: 0.0,
            threshold: 0.0,
            baseline: None,
            samples: 0,
            words,
        }
    }
}

/// What an incident begins with.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) id: IncidentId,
    pub(crate) origin: Origin,
    pub(crate) rule: RuleName,
    pub(crate) severity: Severity,
    pub(crate) about: About,
    /// The rule's number in the rulebook in force.
    pub(crate) watch: u16,
    pub(crate) members: Vec<Member>,
    pub(crate) evidence: Evidence,
    pub(crate) action: ActionName,
    pub(crate) probation: Duration,
    /// Alert targets that are told in any case.
    pub(crate) targets: Vec<String>,
    /// So many returns within the hour mean that it flaps.
    pub(crate) flaps_after: u32,
}

/// One incident.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Case {
    /// Its name.
    pub(crate) id: IncidentId,
    /// Where it comes from.
    pub(crate) origin: Origin,
    /// Whom it is about.
    pub(crate) about: About,
    /// The rule's number in the rulebook in force.
    #[serde(skip, default = "no_watch")]
    pub(crate) watch: u16,
    /// The subjects that it takes in.
    pub(crate) members: Vec<Member>,
    /// What was found when it was opened.
    pub(crate) evidence: Evidence,
    /// Why directives were not given at once, while that may change.
    pub(crate) held_back: bool,
    /// When to look at its metric next.
    #[serde(skip)]
    pub(crate) next_look: Mono,
    /// The steps have to be looked at: one may be due.
    pub(crate) restless: bool,
    /// Nothing was seen by this process before: an empty window says nothing until then.
    #[serde(skip)]
    pub(crate) blind_until: Mono,
    /// How the agent went.
    pub(crate) measures: Measures,
    /// How fast the agent went before.
    pub(crate) usual: Option<Rate>,
    /// Whom a request asked to bind.
    pub(crate) bound: Option<Subject>,
    /// Why a request was made.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    pub(super) rule: RuleName,
    pub(super) severity: Severity,
    pub(super) action: ActionName,
    pub(super) opened: Now,
    pub(super) worst: f64,
    pub(super) current: Option<f64>,
    pub(super) acknowledged: Option<(String, Now)>,
    steps: Vec<StepRun>,
    plan_generation: u32,
    questions: Vec<Question>,
    worst_told: f64,
    life: Life,
    probation: Duration,
    leases: Vec<Lease>,
    leases_given: u32,
    notices: u32,
    targets: Vec<String>,
    pub(crate) flaps_after: u32,
    told: Vec<Vec<String>>,
    escalations: Vec<Escalation>,
    returns: Vec<Now>,
    flapping: bool,
    silenced: Option<SilenceId>,
    verdict: Option<Verdict>,
    merged_into: Option<IncidentId>,
    timeline: Vec<TimelineEntry>,
    resolved: Option<Now>,
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
    /// Questions that were asked, answered or made void.
    pub(crate) asked: Vec<ApprovalId>,
    /// Alert targets to be told of the opening or the change once all is done, and whether it is critical to them.
    pub(crate) tells: Vec<(Vec<String>, bool)>,
}

impl Case {
    /// Opens an incident; its plan is made by [`Case::plan`].
    pub(crate) fn open(opening: Opening, now: Now) -> Self {
        let Opening {
            id,
            origin,
            rule,
            severity,
            about,
            watch,
            members,
            evidence,
            action,
            probation,
            targets,
            flaps_after,
        } = opening;
        let mut case = Self {
            id,
            origin,
            about,
            watch,
            members,
            held_back: false,
            next_look: now.mono,
            restless: true,
            blind_until: Mono::ZERO,
            measures: Measures::default(),
            usual: None,
            bound: None,
            reason: None,
            rule,
            severity,
            action,
            opened: now,
            worst: evidence.value,
            current: evidence.metric.map(|_| evidence.value),
            acknowledged: None,
            steps: Vec::new(),
            plan_generation: 0,
            questions: Vec::new(),
            worst_told: evidence.value,
            life: Life::open(),
            probation,
            leases: Vec::new(),
            leases_given: 0,
            notices: 0,
            targets,
            flaps_after,
            told: Vec::new(),
            escalations: Vec::new(),
            returns: Vec::new(),
            flapping: false,
            silenced: None,
            verdict: None,
            merged_into: None,
            timeline: Vec::new(),
            resolved: None,
            evidence,
        };
        let detail = tell::evidence(&case);
        case.note(now, "opened", detail);
        case
    }

    /// Takes in what its metric says now.
    pub(crate) fn on(&mut self, event: Event, value: Option<f64>, now: Now, outcome: &mut Outcome) {
        if let Some(value) = value {
            self.current = Some(value);
            self.remember_worst(value, now, outcome);
        } else if event == Event::NoTraffic {
            self.current = None;
        }
        match self.live(event, now) {
            Move::Stays | Move::Reopens => {}
            Move::Recovers => {
                let why = match event {
                    Event::NoTraffic => "no traffic: nothing is left in the window".to_owned(),
                    _ => format!("the metric is back: {}", self.reading()),
                };
                self.note(now, "recovering", why);
                self.steps_worked(now);
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
                self.judge_again(now);
                let told = self.returned(now);
                if told {
                    self.tell_update(now, outcome);
                }
                self.escalate_later(now);
            }
            Move::Ends => self.end("the metric stayed back".to_owned(), now, outcome),
        }
    }

    /// Its rule found its subject again, soon after it was over.
    pub(crate) fn reopen(&mut self, evidence: Evidence, now: Now, outcome: &mut Outcome) {
        if self.live(Event::Return, now) != Move::Reopens {
            return;
        }
        self.current = Some(evidence.value);
        self.evidence = evidence;
        self.resolved = None;
        self.verdict = None;
        // They heard that it is over: to them it is news.
        self.told.clear();
        let detail = tell::evidence(self);
        self.note(now, "reopened", detail);
        outcome.changed = true;
        self.returned(now);
    }

    /// Ends it whatever its metric says.
    pub(crate) fn close(&mut self, why: &str, by: Option<&str>, now: Now, outcome: &mut Outcome) {
        if self.live(Event::Close, now) == Move::Ends {
            if let Some(by) = by {
                self.note(now, "operator", format!("resolved by {by}"));
            }
            self.end(why.to_owned(), now, outcome);
        }
    }

    /// Ends it: it goes on as a part of another one.
    pub(crate) fn merge_into(&mut self, other: &IncidentId, now: Now, outcome: &mut Outcome) {
        if self.live(Event::Close, now) == Move::Ends {
            self.merged_into = Some(other.clone());
            self.note(now, "merged", format!("it goes on as a part of {other}"));
            self.end(format!("merged into {other}"), now, outcome);
        }
    }

    /// What a human says of it.
    pub(crate) fn judge_by_human(&mut self, verdict: Verdict, by: &str, reason: Option<&str>, now: Now) {
        self.verdict = Some(verdict);
        let word = match verdict {
            Verdict::Confirmed => "confirmed",
            Verdict::FalseAlarm => "a false alarm",
        };
        let reason = reason.map_or(String::new(), |r| format!(": {r}"));
        self.note(now, "operator", format!("{word}, says {by}{reason}"));
    }

    /// Takes in another subject of its rule.
    ///
    /// It is bound by what is in force, by each step as far as `may_bind` does not say why not.
    pub(crate) fn join(
        &mut self,
        member: Member,
        may_bind: impl Fn(&Step, &AgentId) -> Option<String>,
        now: Now,
        outcome: &mut Outcome,
    ) {
        if self.members.len() >= MAX_MEMBERS || self.members.iter().any(|m| m.name == member.name) {
            return;
        }
        self.note(now, "joined", format!("{} fails as well", member.name));
        outcome.changed = true;
        let agent = member.agent.clone();
        self.members.push(member);
        if let Some(agent) = agent {
            self.extend_orders(&agent, may_bind, now, outcome);
        }
    }

    /// Somebody asks for a response: from now on it is about that.
    pub(crate) fn ask_for(&mut self, respond: &Respond, subject: Subject) {
        self.origin = Origin::Request;
        self.action = respond.action.clone();
        self.bound = Some(subject);
        self.reason.clone_from(&respond.reason);
        for target in &respond.targets {
            if !self.targets.contains(target) {
                self.targets.push(target.clone());
            }
        }
    }

    /// When it was opened.
    pub(crate) fn opened_at(&self) -> Now {
        self.opened
    }

    /// Goes on under a changed rule.
    pub(crate) fn adopt(&mut self, rule: &Rule) {
        self.severity = rule.severity;
        self.action = rule.action.clone();
        self.probation = recovery::probation(rule);
    }

    /// Goes on in another process: every point in time gets the monotonic time of this one.
    pub(crate) fn rebase(&mut self, now: Now) {
        self.opened = self.opened.rebased(now);
        self.life.rebase(now);
        self.resolved = self.resolved.map(|r| r.rebased(now));
        self.blind_until = now.mono.after(self.evidence.window);
        for at in &mut self.returns {
            *at = at.rebased(now);
        }
        self.steps.iter_mut().for_each(|s| s.rebase(now));
        self.questions.iter_mut().for_each(|q| q.rebase(now));
        self.leases.iter_mut().for_each(|l| l.rebase(now));
        self.escalations.iter_mut().for_each(|e| e.rebase(now));
    }

    /// Whether it orders anything now.
    pub(crate) fn has_directives(&self) -> bool {
        self.leases.iter().any(|l| l.in_force)
    }

    /// What it orders now.
    pub(crate) fn directives(&self) -> impl Iterator<Item = &Arc<Directive>> {
        self.leases.iter().filter(|l| l.in_force).map(|l| &l.directive)
    }

    /// What it orders now, as it is shown.
    pub(crate) fn lease_records(&self) -> impl Iterator<Item = LeaseRecord> {
        self.leases.iter().filter(|l| l.in_force).map(|l| LeaseRecord {
            directive: Directive::clone(&l.directive),
            renewed: l.renewed,
        })
    }

    /// Where it is on its way.
    pub(crate) fn state(&self) -> IncidentState {
        self.life.state()
    }

    /// The rule that it is of.
    pub(crate) fn rule(&self) -> &RuleName {
        &self.rule
    }

    /// How bad it is.
    pub(crate) fn severity(&self) -> Severity {
        self.severity
    }

    /// When it was over; `None` while it is not.
    pub(crate) fn resolved(&self) -> Option<Now> {
        self.resolved
    }

    /// The agents that it takes in.
    pub(crate) fn agents(&self) -> Vec<AgentId> {
        let mut agents: Vec<AgentId> = self.members.iter().filter_map(|m| m.agent.clone()).collect();
        agents.dedup();
        agents
    }

    /// As it is shown.
    pub(crate) fn record(&self) -> IncidentRecord {
        IncidentRecord {
            id: self.id.clone(),
            origin: self.origin,
            rule: self.rule.clone(),
            severity: self.severity,
            subject_kind: self.about.kind.name().to_owned(),
            subject: self.about.name.clone(),
            agent: self.about.agent.clone(),
            agents: self.agents(),
            state: self.life.state(),
            metric: self.metric_name(),
            value: self.evidence.value,
            worst: self.worst,
            current: self.current,
            baseline: self.evidence.baseline,
            threshold: self.evidence.threshold,
            samples: self.evidence.samples,
            action: self.action.clone(),
            plan: self.steps.iter().map(StepRun::record).collect(),
            plan_generation: self.plan_generation,
            directives: self.directives().map(|d| Directive::clone(d)).collect(),
            approvals: self.questions.iter().map(|q| self.approval_record(q)).collect(),
            opened: self.opened.wall,
            resolved: self.resolved.map(|r| r.wall),
            acknowledged_by: self.acknowledged.as_ref().map(|(by, _)| by.clone()),
            acknowledged: self.acknowledged.as_ref().map(|(_, at)| at.wall),
            verdict: self.verdict,
            returns: self.life.relapses(),
            flapping: self.flapping,
            silenced_by: self.silenced.clone(),
            merged_into: self.merged_into.clone(),
            measures: self.measures,
            timeline: self.timeline.clone(),
        }
    }

    /// A question as it is shown.
    pub(crate) fn approval(&self, id: &ApprovalId) -> Option<ApprovalRecord> {
        let question = self.questions.iter().find(|q| q.id == *id)?;
        Some(self.approval_record(question))
    }

    fn approval_record(&self, q: &Question) -> ApprovalRecord {
        ApprovalRecord {
            id: q.id.clone(),
            incident: self.id.clone(),
            rule: self.rule.clone(),
            subject: self.about.name.clone(),
            step: q.kind.clone(),
            what: q.what.clone(),
            why: q.why.clone(),
            state: q.state(),
            requested: q.asked.wall,
            expires: q.expires.wall,
            on_timeout: q.on_timeout.name().to_owned(),
            decided: q.answer().map(|a| a.at.wall),
            by: q.answer().map(|a| a.by.clone()),
            via: q.answer().map(|a| a.via.clone()),
            reason: q.answer().and_then(|a| a.reason.clone()),
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

    fn live(&mut self, event: Event, now: Now) -> Move {
        let held = self
            .leases
            .iter()
            .any(|l| l.in_force && l.order.outlasts_recovery());
        let life = std::mem::replace(&mut self.life, Life::open());
        let (life, moved) = life.on(event, now, self.probation, held);
        self.life = life;
        moved
    }

    /// It came back; says whether people are to be told: those who have heard it three times know that it flaps.
    fn returned(&mut self, now: Now) -> bool {
        self.returns.retain(|at| now.mono.since(at.mono) < FLAP_WINDOW);
        self.returns.push(now);
        let was = self.flapping;
        self.flapping = self.returns.len() >= self.flaps_after.max(1) as usize;
        if self.flapping && !was {
            let times = self.returns.len();
            self.note(
                now,
                "flapping",
                format!("it came back {times} times within the hour"),
            );
        }
        !was
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
        self.resolved = Some(now);
        self.supersede("the incident is over", now, outcome);
        self.lift_all("the incident is over", now, outcome);
        self.escalations.clear();
        self.note(now, "resolved", why);
        outcome.changed = true;
        outcome.ended = true;
        self.tell_all(NoticeEvent::Resolved, now, outcome);
    }

    /// The unit of its metric.
    pub(crate) fn unit(&self) -> Option<Unit> {
        self.evidence.metric.map(|(metric, _)| metric.unit())
    }

    pub(super) fn metric_name(&self) -> String {
        self.evidence
            .metric
            .map_or(String::new(), |(metric, statistic)| metric.name(statistic))
    }

    /// A value of its metric, in words.
    pub(super) fn describe(&self, value: f64) -> String {
        self.evidence.metric.map_or(String::new(), |(metric, statistic)| {
            metric.describe(statistic, value)
        })
    }

    /// The value now, in words.
    pub(super) fn reading(&self) -> String {
        match (self.current, self.unit()) {
            (Some(value), Some(unit)) => format!(
                "{} (limit {})",
                self.describe(value),
                unit.format(self.evidence.threshold)
            ),
            _ => "no traffic".to_owned(),
        }
    }

    /// What the steps of the plan come to, for people: the step's name and what became of it.
    pub(super) fn steps(&self) -> impl Iterator<Item = (&'static str, String)> + '_ {
        self.steps.iter().filter_map(StepRun::in_words)
    }
}

impl Kind {
    /// The word for it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Execution => "execution",
            Self::Model => "model",
            Self::Upstream => "upstream",
            Self::Fleet => "fleet",
            Self::Fusebox => "fusebox",
        }
    }
}

fn nowhere() -> u32 {
    NOWHERE
}

fn no_watch() -> u16 {
    NO_WATCH
}
