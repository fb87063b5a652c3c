//! Whom an incident tells what, and how often.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Case, Outcome, StepRun};
use crate::incident::record::IncidentState;
use crate::incident::rule::Level;
use crate::incident::tell;
use crate::types::ids::{AgentVersion, ApprovalId, SilenceId};
use crate::types::notice::{ApprovalAsk, Notice, NoticeEvent, RemediationAsk, Severity};
use crate::types::time::Now;

/// The on-call, told until somebody acknowledges.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Escalation {
    levels: Vec<Level>,
    every: Duration,
    began: Now,
    /// When the levels reached so far are told again.
    next: Now,
    /// Levels reached.
    reached: usize,
}

impl Escalation {
    /// Goes on in another process.
    pub(super) fn rebase(&mut self, now: Now) {
        self.began = self.began.rebased(now);
        self.next = self.next.rebased(now);
    }
}

impl Case {
    /// Tells those whom the steps that were just taken name, all at once, so that each hears of all steps. Of an opening
    /// hear those who are to be told in any case as well, and everyone where nobody is named.
    pub(crate) fn tell_taken(&mut self, opening: bool, now: Now, outcome: &mut Outcome) {
        let mut sets: Vec<(Vec<String>, bool)> = Vec::new();
        let asked = opening && !self.targets.is_empty();
        let any_case = asked.then(|| (self.targets.clone(), false));
        for (targets, critical) in std::mem::take(&mut outcome.tells).into_iter().chain(any_case) {
            match sets.iter_mut().find(|(t, _)| *t == targets) {
                Some((_, known)) => *known |= critical,
                None => sets.push((targets, critical)),
            }
        }
        if opening && sets.is_empty() {
            sets.push((Vec::new(), false));
        }
        // Questions come after the news of what they are about.
        let questions = std::mem::take(&mut outcome.notices);
        for (targets, critical) in sets {
            self.tell_more(targets, critical, now, outcome);
        }
        outcome.notices.extend(questions);
    }

    /// Tells those who were told of the opening that something has changed.
    pub(crate) fn tell_update(&mut self, now: Now, outcome: &mut Outcome) {
        self.tell_all(NoticeEvent::Updated, now, outcome);
    }

    /// Somebody takes charge.
    pub(crate) fn acknowledge(&mut self, by: &str, now: Now, outcome: &mut Outcome) {
        self.acknowledged = Some((by.to_owned(), now));
        self.note(now, "acknowledged", format!("by {by}"));
        outcome.changed = true;
        self.tell_all(NoticeEvent::Acknowledged, now, outcome);
    }

    /// The next level of the on-call is told now.
    pub(crate) fn escalate(&mut self, by: &str, now: Now, outcome: &mut Outcome) {
        self.note(now, "escalated", format!("by {by}"));
        self.acknowledged = None;
        self.tell_on_call(now, outcome);
    }

    /// Tells the on-call again where nobody took charge, and the next level when its time has come.
    pub(crate) fn keep_telling(&mut self, now: Now, outcome: &mut Outcome) {
        if self.life.state() != IncidentState::Open || self.acknowledged.is_some() {
            return;
        }
        let mut due: Vec<(Vec<String>, u8)> = Vec::new();
        for escalation in &mut self.escalations {
            let lasted = now.mono.since(escalation.began.mono);
            let again = escalation.next.mono <= now.mono;
            if again {
                escalation.next = now.after(escalation.every);
            }
            for (number, level) in escalation.levels.iter().enumerate() {
                let reached = number < escalation.reached;
                let new = !reached && level.after <= lasted;
                if new {
                    escalation.reached = number + 1;
                }
                if new || (reached && again) {
                    due.push((level.targets.clone(), u8::try_from(number).unwrap_or(u8::MAX)));
                }
            }
        }
        for (targets, level) in due {
            self.tell(
                NoticeEvent::Escalated,
                Severity::Critical,
                targets,
                level,
                now,
                outcome,
            );
        }
    }

    /// Keeps its notices back, or no longer; says whether that has changed.
    pub(crate) fn silence(&mut self, by: Option<&SilenceId>, now: Now) -> bool {
        if self.silenced.as_ref() == by {
            return false;
        }
        match by {
            Some(id) => self.note(now, "silenced", format!("notices are kept back by {id}")),
            None => self.note(now, "silenced", "no longer".to_owned()),
        }
        self.silenced = by.cloned();
        true
    }

    pub(super) fn tell_all(&mut self, event: NoticeEvent, now: Now, outcome: &mut Outcome) {
        let told = if self.told.is_empty() {
            vec![Vec::new()]
        } else {
            self.told.clone()
        };
        for targets in told {
            self.tell(event, self.severity, targets, 0, now, outcome);
        }
    }

    /// Tells these of it: of the opening where they have not heard of it, else of the change.
    fn tell_more(&mut self, targets: Vec<String>, critical: bool, now: Now, outcome: &mut Outcome) {
        let known = self.told.contains(&targets);
        let severity = if critical {
            Severity::Critical
        } else {
            self.severity
        };
        let event = match (known, self.life.relapses()) {
            (true, _) => NoticeEvent::Updated,
            (false, 0) => NoticeEvent::Opened,
            (false, _) => NoticeEvent::Reopened,
        };
        if !known {
            self.told.push(targets.clone());
        }
        self.tell(event, severity, targets, 0, now, outcome);
    }

    pub(super) fn begin_escalation(
        &mut self,
        mut levels: Vec<Level>,
        every: Duration,
        now: Now,
        outcome: &mut Outcome,
    ) {
        if levels.is_empty() {
            levels.push(Level {
                after: Duration::ZERO,
                targets: Vec::new(),
            });
        }
        levels.sort_by_key(|l| l.after);
        let reached = levels.iter().take_while(|l| l.after.is_zero()).count();
        let at_once: Vec<Vec<String>> = levels.iter().take(reached).map(|l| l.targets.clone()).collect();
        self.escalations.push(Escalation {
            levels,
            every,
            began: now,
            next: now.after(every),
            reached,
        });
        outcome
            .tells
            .extend(at_once.into_iter().map(|targets| (targets, true)));
    }

    /// It is in breach again: the on-call has just been told.
    pub(super) fn escalate_later(&mut self, now: Now) {
        for escalation in &mut self.escalations {
            escalation.next = now.after(escalation.every);
        }
    }

    /// People are needed now: the next level of each escalation, else everyone.
    pub(super) fn tell_on_call(&mut self, now: Now, outcome: &mut Outcome) {
        let mut whom: Vec<(Vec<String>, u8)> = Vec::new();
        for escalation in &mut self.escalations {
            escalation.reached = (escalation.reached + 1).min(escalation.levels.len());
            escalation.next = now.after(escalation.every);
            let number = escalation.reached.saturating_sub(1);
            if let Some(level) = escalation.levels.get(number) {
                whom.push((level.targets.clone(), u8::try_from(number).unwrap_or(u8::MAX)));
            }
        }
        if whom.is_empty() {
            whom.push((Vec::new(), 1));
        }
        for (targets, level) in whom {
            self.tell(
                NoticeEvent::Escalated,
                Severity::Critical,
                targets,
                level,
                now,
                outcome,
            );
        }
    }

    pub(super) fn tell_question(
        &mut self,
        event: NoticeEvent,
        id: &ApprovalId,
        now: Now,
        outcome: &mut Outcome,
    ) {
        // Whom the plan names, even where its turn to tell them has not come: a question cannot wait for that.
        let mut told = self.told.clone();
        let named = self.steps.iter().filter_map(StepRun::notifies).cloned();
        for targets in named.chain((!self.targets.is_empty()).then(|| self.targets.clone())) {
            if !told.contains(&targets) {
                told.push(targets);
            }
        }
        if told.is_empty() {
            told.push(Vec::new());
        }
        for targets in told {
            self.tell(event, self.severity, targets, 0, now, outcome);
            let ask = self.questions.iter().find(|q| q.id == *id).map(|q| ApprovalAsk {
                id: q.id.to_string(),
                what: q.what.clone(),
                why: q.why.clone(),
                expires: q.expires.wall,
                on_timeout: q.on_timeout.name().to_owned(),
                link: None,
            });
            if let (Some(notice), Some(ask)) = (outcome.notices.last_mut(), ask) {
                notice.title = tell::question(self, event, id);
                notice.approval = Some(ask);
            }
        }
    }

    pub(super) fn call(
        &mut self,
        target: String,
        action: String,
        from: Option<AgentVersion>,
        to: Option<AgentVersion>,
        now: Now,
        outcome: &mut Outcome,
    ) {
        self.tell(
            NoticeEvent::RemediationRequested,
            self.severity,
            vec![target],
            0,
            now,
            outcome,
        );
        if let Some(notice) = outcome.notices.last_mut() {
            notice.remediation = Some(RemediationAsk {
                action,
                from_version: from.map(|v| v.to_string()),
                to_version: to.map(|v| v.to_string()),
            });
        }
    }

    fn tell(
        &mut self,
        event: NoticeEvent,
        severity: Severity,
        targets: Vec<String>,
        level: u8,
        now: Now,
        outcome: &mut Outcome,
    ) {
        self.notices = self.notices.saturating_add(1);
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
            agents: self.agents(),
            link: None,
            approval: None,
            remediation: None,
            level,
            acknowledged_by: self.acknowledged.as_ref().map(|(by, _)| by.clone()),
        });
    }
}
