//! The chain of an incident at work: the next step, what is done about it, what became of it, and who was asked.

use std::time::Duration;

use super::lease::{Giver, Lease};
use super::step::MAX_TRIES;
use super::{Case, Effect, Outcome, StepRun};
use crate::incident::approval::{Answer, Decided, Question};
use crate::incident::lifecycle::Stage;
use crate::incident::plan::{self, Decision};
use crate::incident::record::{ApprovalState, IncidentState, StepState};
use crate::incident::recovery;
use crate::incident::rule::{OnFailure, Step, StepKind, Success};
use crate::types::directive::{Order, Subject};
use crate::types::ids::{AgentId, AgentVersion, ApprovalId, LeaseId};
use crate::types::notice::NoticeEvent;
use crate::types::time::Now;

/// A step without a time of its own is judged after a whole window, between these.
const JUDGED_AFTER: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));

impl Case {
    /// Makes a plan of these steps, in the place of the one there was.
    pub(crate) fn plan(&mut self, steps: &[Step], now: Now, outcome: &mut Outcome) {
        self.supersede("another plan", now, outcome);
        self.steps = steps.iter().cloned().map(StepRun::new).collect();
        self.plan_generation = self.plan_generation.saturating_add(1);
        self.restless = true;
        outcome.changed = true;
    }

    /// The place of the step whose turn it is; `None`: there is none, or the one before is not judged yet.
    pub(crate) fn next_step(&self) -> Option<usize> {
        let up_to = self.steps.iter().position(StepRun::holds_up);
        let is_next = |at: usize, run: &StepRun| {
            run.state == StepState::Pending && (up_to.is_none_or(|held| at < held) || run.is_notify())
        };
        self.steps
            .iter()
            .enumerate()
            .find(|(at, run)| is_next(*at, run))
            .map(|(at, _)| at)
    }

    /// A step.
    pub(crate) fn step(&self, at: usize) -> Option<&StepRun> {
        self.steps.get(at)
    }

    /// Steps that were left out as long as counts were estimates have their turn again.
    pub(crate) fn take_up_again(&mut self) {
        for run in &mut self.steps {
            if run.state == StepState::Skipped && run.why == plan::ESTIMATES {
                run.state = StepState::Pending;
                run.why.clear();
            }
        }
    }

    /// Whether everything that was asked for is done, and nothing of it is in force any more.
    pub(crate) fn is_spent(&self) -> bool {
        let acts =
            |run: &StepRun| !matches!(run.step.kind, StepKind::Notify { .. } | StepKind::Escalate { .. });
        let to_come = |run: &StepRun| matches!(run.state, StepState::Pending | StepState::Waiting);
        self.evidence.metric.is_none()
            && !self.has_directives()
            && self.steps.iter().any(acts)
            && !self.steps.iter().any(to_come)
    }

    /// Does what was decided about a step.
    pub(crate) fn take(&mut self, at: usize, decision: Decision, now: Now, outcome: &mut Outcome) {
        outcome.changed = true;
        match decision {
            Decision::Order {
                subjects,
                orders,
                lease,
                renewed,
            } => self.give_orders(at, &subjects, &orders, (lease, renewed), now, outcome),
            Decision::Tell { targets } => {
                self.set(at, StepState::Told, "people are told");
                outcome.tells.push((targets, false));
            }
            Decision::Escalate { levels, repeat_every } => {
                self.set(
                    at,
                    StepState::Told,
                    "the on-call is told until somebody acknowledges",
                );
                self.begin_escalation(levels, repeat_every, now, outcome);
            }
            Decision::Call {
                target,
                action,
                from_version,
                to_version,
            } => {
                let waited_for = matches!(
                    self.steps.get(at).map(|r| &r.step.kind),
                    Some(StepKind::Rollback { .. })
                );
                let version = to_version.as_ref().map(|v| format!(" (version {v})"));
                let what = format!("{target} is asked for {action}{}", version.unwrap_or_default());
                self.note(now, "step_applied", format!("{}: {what}", self.name_of(at)));
                let due = now.after(self.judged_after(at));
                if let Some(run) = self.steps.get_mut(at) {
                    run.what = what;
                    run.taken = Some(now);
                    run.state = if waited_for {
                        StepState::InForce
                    } else {
                        StepState::Told
                    };
                    run.due = waited_for.then_some(due);
                    run.awaits = to_version.clone().filter(|_| waited_for);
                }
                self.call(target, action, from_version, to_version, now, outcome);
            }
            Decision::Ask { what, why } => self.ask(at, what, why, now, outcome),
            Decision::Skip { why } => {
                self.note(now, "step_skipped", format!("{}: {why}", self.name_of(at)));
                self.set(at, StepState::Skipped, &why);
            }
        }
    }

    /// Steps that are to be judged now, with when they were taken.
    pub(crate) fn due_steps(&self, now: Now) -> Vec<(usize, Now)> {
        self.steps
            .iter()
            .enumerate()
            .filter(|(_, r)| r.state == StepState::InForce && r.due.is_some_and(|d| d.mono <= now.mono))
            .filter_map(|(at, r)| Some((at, r.taken?)))
            .collect()
    }

    /// What was seen since a step was taken, by its own measure of success. `value` is the metric since then, and
    /// whether that is within the threshold.
    pub(crate) fn effect(&self, at: usize, value: Option<(f64, bool)>) -> Effect {
        let Some((value, within)) = value else {
            return Effect::Unknown;
        };
        let Some(run) = self.steps.get(at) else {
            return Effect::Unknown;
        };
        let worked = match (run.step.success, run.before) {
            (Success::ImprovedBy(share), Some(before)) => match self.evidence.side {
                crate::incident::gauge::Side::Upper => value <= before * (1.0 - share),
                crate::incident::gauge::Side::Lower => value >= before * (1.0 + share),
            },
            _ => within,
        };
        if worked {
            Effect::Worked(Some(value))
        } else {
            Effect::Failed(Some(value))
        }
    }

    /// Judges a step.
    pub(crate) fn judge(&mut self, at: usize, effect: Effect, now: Now, outcome: &mut Outcome) {
        let name = self.name_of(at);
        let again = now.after(self.judged_after(at));
        let Some(run) = self.steps.get_mut(at) else { return };
        outcome.changed = true;
        match effect {
            Effect::Worked(value) => {
                run.after = value;
                run.state = StepState::Worked;
                let how = self.compared(at);
                self.note(now, "step_worked", format!("{name}{how}"));
            }
            Effect::Unknown if run.tries + 1 < MAX_TRIES => {
                run.tries += 1;
                run.due = Some(again);
                outcome.changed = false;
            }
            Effect::Unknown => {
                run.state = StepState::Inconclusive;
                "too little traffic since it was taken".clone_into(&mut run.why);
                self.note(
                    now,
                    "step_inconclusive",
                    format!("{name}: too little traffic to judge it"),
                );
                if self.evidence.metric.is_some() {
                    self.tell_update(now, outcome);
                }
            }
            Effect::Failed(value) => {
                run.after = value;
                run.state = StepState::Failed;
                let on_failure = run.step.on_failure;
                let how = self.compared(at);
                self.note(now, "step_failed", format!("{name}{how}"));
                self.failed(at, on_failure, now, outcome);
            }
        }
        self.restless = true;
    }

    /// Takes an answer to a question.
    pub(crate) fn decide(
        &mut self,
        id: &ApprovalId,
        approve: bool,
        answer: Answer,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<(), ApprovalState> {
        let Some(question) = self.questions.iter_mut().find(|q| q.id == *id) else {
            return Ok(());
        };
        let says = format!(
            "{} by {} ({}){}",
            question.kind,
            answer.by,
            answer.via,
            answer.reason.as_ref().map_or(String::new(), |r| format!(": {r}"))
        );
        let decided = question.decide(approve, answer)?;
        let at = question.step;
        self.note(now, if approve { "approved" } else { "denied" }, says);
        self.answered(id.clone(), at, decided, StepState::Denied, now, outcome);
        Ok(())
    }

    /// What time makes of questions and leases.
    pub(crate) fn pass_time(&mut self, now: Now, outcome: &mut Outcome) {
        let passed: Vec<(ApprovalId, usize, Decided)> = self
            .questions
            .iter_mut()
            .filter_map(|q| Some((q.pass(now)?, q.id.clone(), q.step)))
            .map(|(decided, id, step)| (id, step, decided))
            .collect();
        for (id, at, decided) in passed {
            let then = match decided {
                Decided::Take => "nobody answered in time, and it is taken as configured",
                Decided::Leave => "nobody answered in time, and it is not taken",
                Decided::AskAgain => "nobody answered in time: the question stands",
            };
            self.note(now, "expired", format!("{}: {then}", self.name_of(at)));
            self.answered(id, at, decided, StepState::Expired, now, outcome);
        }
        self.end_leases(now, outcome);
        self.renew_leases(now, outcome);
    }

    /// Lifts one lease before its time; `false` when it is not one of its own or not in force.
    pub(crate) fn lift_one(&mut self, lease: &LeaseId, by: &str, now: Now, outcome: &mut Outcome) -> bool {
        let Some(at) = self
            .leases
            .iter()
            .position(|l| l.in_force && l.directive.lease == *lease)
        else {
            return false;
        };
        let lease = self.leases.remove(at);
        outcome.directives = true;
        outcome.changed = true;
        self.note(
            now,
            "lifted",
            format!("{} (by {by})", plan::describe(&lease.order)),
        );
        self.step_without_leases(lease.step, "lifted by an operator");
        true
    }

    /// Versions of agents that are bound by something which only a human or a new version lifts.
    pub(crate) fn bound_versions(&self) -> Vec<(LeaseId, AgentId, AgentVersion)> {
        let lasting = self
            .leases
            .iter()
            .filter(|l| l.in_force && l.order.outlasts_recovery());
        lasting
            .filter_map(|l| match &l.directive.subject {
                Subject::Version { agent, version } => {
                    Some((l.directive.lease.clone(), agent.clone(), version.clone()))
                }
                _ => None,
            })
            .collect()
    }

    /// Lifts every directive, for a reason.
    pub(crate) fn lift_all(&mut self, why: &str, now: Now, outcome: &mut Outcome) {
        let orders: Vec<String> = distinct(self.leases.drain(..).filter(|l| l.in_force));
        if !orders.is_empty() {
            outcome.directives = true;
            self.note(now, "lifted", format!("{} ({why})", orders.join(", ")));
        }
    }

    /// Makes void what is still to be decided or done.
    pub(super) fn supersede(&mut self, why: &str, now: Now, outcome: &mut Outcome) {
        let void: Vec<ApprovalId> = self
            .questions
            .iter_mut()
            .filter_map(|q| q.supersede().then(|| q.id.clone()))
            .collect();
        if !void.is_empty() {
            self.note(now, "superseded", format!("open questions are void: {why}"));
        }
        outcome.asked.extend(void);
        for run in &mut self.steps {
            match run.state {
                StepState::Pending | StepState::Waiting => {
                    run.state = StepState::Superseded;
                    why.clone_into(&mut run.why);
                }
                StepState::InForce => {
                    run.due = None;
                }
                _ => {}
            }
        }
    }

    /// The metric is back while steps are in force: they worked.
    pub(super) fn steps_worked(&mut self, now: Now) {
        for at in 0..self.steps.len() {
            let current = self.current;
            let Some(run) = self.steps.get_mut(at) else { break };
            if run.state != StepState::InForce || run.awaits.is_some() {
                continue;
            }
            if current.is_none() {
                // Without traffic nobody can say what it was that helped.
                continue;
            }
            run.after = current;
            run.state = StepState::Worked;
            let how = self.compared(at);
            self.note(now, "step_worked", format!("{}{how}", self.name_of(at)));
        }
    }

    /// It is in breach again: what worked has to show it once more.
    pub(super) fn judge_again(&mut self, now: Now) {
        for at in 0..self.steps.len() {
            let due = now.after(self.judged_after(at));
            if let Some(run) = self.steps.get_mut(at).filter(|r| r.state == StepState::Worked) {
                run.state = StepState::InForce;
                run.taken = Some(now);
                run.due = Some(due);
                run.tries = 0;
            }
        }
        self.restless = true;
    }

    /// Binds one more agent by what is in force.
    pub(super) fn extend_orders(
        &mut self,
        agent: &AgentId,
        may_bind: impl Fn(&Step, &AgentId) -> Option<String>,
        now: Now,
        outcome: &mut Outcome,
    ) {
        let mut orders: Vec<(usize, Order, Duration, bool)> = Vec::new();
        for lease in self.leases.iter().filter(|l| l.in_force) {
            let bound_one_by_one = matches!(lease.directive.subject, Subject::Agent(_));
            if bound_one_by_one
                && !orders
                    .iter()
                    .any(|(step, o, ..)| *step == lease.step && *o == lease.order)
            {
                let length = self
                    .steps
                    .get(lease.step)
                    .map_or(plan::SHORTEST_LEASE, |r| r.step.lease);
                orders.push((lease.step, lease.order.clone(), length, lease.renewed));
            }
        }
        for (step, order, length, renewed) in orders {
            let why_not = self.steps.get(step).and_then(|run| may_bind(&run.step, agent));
            if let Some(why) = why_not {
                let what = plan::describe(&order);
                self.note(
                    now,
                    "joined",
                    format!("{agent} is not bound by \"{what}\": {why}"),
                );
                continue;
            }
            self.give(step, Subject::Agent(agent.clone()), order, (length, renewed), now);
            outcome.directives = true;
        }
        let stage = self.life.stage();
        if stage != Stage::Full {
            self.restate(now, outcome);
        }
    }

    /// Brings every directive to what the stage of recovery says.
    pub(super) fn restate(&mut self, now: Now, outcome: &mut Outcome) {
        let stage = self.life.stage();
        let mut lines: Vec<(&str, String)> = Vec::new();
        for lease in &mut self.leases {
            let wanted = recovery::relax(&lease.order, stage);
            if wanted.as_ref() == Some(&lease.directive.order).filter(|_| lease.in_force) {
                continue;
            }
            let line = match &wanted {
                Some(order) if stage == Stage::Full => ("step_applied", plan::describe(order)),
                Some(order) => ("lifted", format!("in part: {}", plan::describe(order))),
                None => ("lifted", plan::describe(&lease.order)),
            };
            if !lines.contains(&line) {
                lines.push(line);
            }
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

    fn give_orders(
        &mut self,
        at: usize,
        subjects: &[Subject],
        orders: &[Order],
        (lease, renewed): (Duration, bool),
        now: Now,
        outcome: &mut Outcome,
    ) {
        for order in orders {
            for subject in subjects {
                self.give(at, subject.clone(), order.clone(), (lease, renewed), now);
            }
        }
        outcome.directives = true;
        let what = orders.iter().map(plan::describe).collect::<Vec<_>>().join("; ");
        self.note(now, "step_applied", format!("{}: {what}", self.name_of(at)));
        let due = now.after(self.judged_after(at));
        let before = self.current;
        if let Some(run) = self.steps.get_mut(at) {
            run.state = StepState::InForce;
            run.what = what;
            run.why.clear();
            run.taken = Some(now);
            run.due = Some(due);
            run.before = before;
        }
    }

    fn give(
        &mut self,
        step: usize,
        subject: Subject,
        order: Order,
        (length, renewed): (Duration, bool),
        now: Now,
    ) {
        self.leases_given += 1;
        let giver = Giver {
            lease: LeaseId::from(format!("{}-{}", self.id, self.leases_given)),
            incident: &self.id,
            rule: &self.rule,
            step,
        };
        self.leases
            .push(Lease::give(giver, subject, order, length, renewed, now));
    }

    fn ask(&mut self, at: usize, what: String, why: String, now: Now, outcome: &mut Outcome) {
        let number = self.questions.len() + 1;
        let id = ApprovalId::from(format!(
            "apr-{}-{number}",
            self.id.as_str().trim_start_matches("inc-")
        ));
        self.note(now, "step_waiting", format!("{}: {why}", self.name_of(at)));
        let Some(run) = self.steps.get_mut(at) else { return };
        run.state = StepState::Waiting;
        run.what.clone_from(&what);
        run.why.clone_from(&why);
        run.approval = Some(id.clone());
        let question = Question::ask(id.clone(), at, &run.step, what, why, now);
        self.questions.push(question);
        outcome.asked.push(id.clone());
        self.tell_question(NoticeEvent::ApprovalRequested, &id, now, outcome);
    }

    fn answered(
        &mut self,
        id: ApprovalId,
        at: usize,
        decided: Decided,
        left: StepState,
        now: Now,
        outcome: &mut Outcome,
    ) {
        outcome.changed = true;
        outcome.asked.push(id.clone());
        self.restless = true;
        match decided {
            Decided::Take => {
                if let Some(run) = self.steps.get_mut(at).filter(|r| r.state == StepState::Waiting) {
                    run.cleared = true;
                    run.state = StepState::Pending;
                }
            }
            Decided::Leave => {
                let why = match left {
                    StepState::Denied => "a human said no",
                    _ => "nobody answered in time",
                };
                self.set(at, left, why);
            }
            Decided::AskAgain => {
                self.tell_question(NoticeEvent::ApprovalRequested, &id, now, outcome);
                return;
            }
        }
        self.tell_question(NoticeEvent::ApprovalDecided, &id, now, outcome);
    }

    fn failed(&mut self, at: usize, on_failure: OnFailure, now: Now, outcome: &mut Outcome) {
        match on_failure {
            OnFailure::Next => {}
            OnFailure::Revert => {
                let (gone, stay): (Vec<Lease>, Vec<Lease>) =
                    self.leases.drain(..).partition(|l| l.step == at);
                self.leases = stay;
                let orders = distinct(gone.into_iter().filter(|l| l.in_force));
                outcome.directives |= !orders.is_empty();
                self.note(now, "step_reverted", orders.join(", "));
                self.set(at, StepState::Reverted, "it did not work");
            }
            OnFailure::Escalate => {
                self.supersede("a step did not work, and people take over", now, outcome);
                self.tell_on_call(now, outcome);
                return;
            }
        }
        let more = self.steps.iter().any(|r| {
            matches!(
                r.state,
                StepState::Pending | StepState::Waiting | StepState::InForce
            ) && !r.is_notify()
        });
        if !more && self.life.state() == IncidentState::Open {
            self.note(
                now,
                "plan",
                "no step is left and the metric is still in breach: a person is needed".to_owned(),
            );
            self.tell_update(now, outcome);
        }
    }

    /// Leases that are not renewed end by themselves.
    fn end_leases(&mut self, now: Now, outcome: &mut Outcome) {
        let (over, stay): (Vec<Lease>, Vec<Lease>) = self.leases.drain(..).partition(|l| l.is_over(now.mono));
        self.leases = stay;
        if over.is_empty() {
            return;
        }
        outcome.directives = true;
        outcome.changed = true;
        let steps: Vec<usize> = over.iter().map(|l| l.step).collect();
        self.note(now, "lease_ended", distinct(over.into_iter()).join(", "));
        for step in steps {
            self.step_without_leases(step, "its lease ended");
        }
    }

    fn renew_leases(&mut self, now: Now, outcome: &mut Outcome) {
        for lease in self.leases.iter_mut().filter(|l| l.is_due(now.mono)) {
            lease.hold(lease.directive.order.clone(), now);
            outcome.directives = true;
            outcome.changed = true;
        }
    }

    fn step_without_leases(&mut self, at: usize, why: &str) {
        if self.leases.iter().any(|l| l.step == at) {
            return;
        }
        if let Some(run) = self.steps.get_mut(at) {
            run.due = None;
            if run.state == StepState::InForce {
                run.state = StepState::Superseded;
            }
            why.clone_into(&mut run.why);
        }
    }

    fn judged_after(&self, at: usize) -> Duration {
        let own = self.steps.get(at).and_then(|r| r.step.verify_after);
        let (least, most) = JUDGED_AFTER;
        own.unwrap_or_else(|| self.evidence.window.clamp(least, most))
    }

    fn name_of(&self, at: usize) -> &'static str {
        self.steps.get(at).map_or("step", StepRun::name)
    }

    fn set(&mut self, at: usize, state: StepState, why: &str) {
        if let Some(run) = self.steps.get_mut(at) {
            run.state = state;
            why.clone_into(&mut run.why);
        }
    }

    /// `: 9,812 tokens per execution before, 2,511 since`.
    fn compared(&self, at: usize) -> String {
        let Some(run) = self.steps.get(at) else {
            return String::new();
        };
        match (run.before, run.after) {
            (Some(before), Some(after)) => {
                format!(
                    ": {} before, {} since",
                    self.describe(before),
                    self.describe(after)
                )
            }
            (None, Some(after)) => format!(": {} since", self.describe(after)),
            _ => String::new(),
        }
    }
}

/// Orders of leases in words, each once.
fn distinct(leases: impl Iterator<Item = Lease>) -> Vec<String> {
    let mut orders: Vec<String> = Vec::new();
    for lease in leases {
        let what = plan::describe(&lease.order);
        if !orders.contains(&what) {
            orders.push(what);
        }
    }
    orders
}
