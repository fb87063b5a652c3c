//! A step at work: taken, judged on what was seen since, kept, lifted or followed by the next.

use serde::{Deserialize, Serialize};

use crate::incident::record::{StepRecord, StepState};
use crate::incident::rule::{Step, StepKind};
use crate::types::ids::{AgentVersion, ApprovalId};
use crate::types::time::Now;

/// Times that a step is judged again for want of traffic.
pub(super) const MAX_TRIES: u8 = 3;

/// One step of a plan, and what became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StepRun {
    /// The step.
    pub(crate) step: Step,
    /// What became of it.
    pub(crate) state: StepState,
    /// A human has agreed to it.
    pub(crate) cleared: bool,
    /// When it was taken.
    pub(crate) taken: Option<Now>,
    /// When it is judged.
    pub(crate) due: Option<Now>,
    /// The version that another system was asked to bring back.
    pub(crate) awaits: Option<AgentVersion>,
    pub(super) what: String,
    pub(super) why: String,
    pub(super) approval: Option<ApprovalId>,
    pub(super) before: Option<f64>,
    pub(super) after: Option<f64>,
    pub(super) tries: u8,
}

/// What was seen since a step was taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Effect {
    /// It is as it should be.
    Worked(Option<f64>),
    /// It is not.
    Failed(Option<f64>),
    /// Too little was seen.
    Unknown,
}

impl StepRun {
    pub(super) fn new(step: Step) -> Self {
        Self {
            step,
            state: StepState::Pending,
            cleared: false,
            taken: None,
            due: None,
            awaits: None,
            what: String::new(),
            why: String::new(),
            approval: None,
            before: None,
            after: None,
            tries: 0,
        }
    }

    /// Its kind, as in the configuration.
    pub(crate) fn name(&self) -> &'static str {
        self.step.kind.name()
    }

    /// Whether the next step waits for what becomes of this one.
    pub(super) fn holds_up(&self) -> bool {
        self.step.verify_after.is_some()
            && matches!(
                self.state,
                StepState::Waiting | StepState::InForce | StepState::Worked | StepState::Inconclusive
            )
    }

    /// Whether it is told to people whatever becomes of the others: they are told at once.
    pub(super) fn is_notify(&self) -> bool {
        matches!(self.step.kind, StepKind::Notify { .. })
    }

    /// The alert targets that it names, where it tells them.
    pub(super) fn notifies(&self) -> Option<&Vec<String>> {
        match &self.step.kind {
            StepKind::Notify { targets } => Some(targets),
            _ => None,
        }
    }

    /// Its name and what became of it, for people; `None` where that is not worth a line.
    pub(super) fn in_words(&self) -> Option<(&'static str, String)> {
        let words = match self.state {
            StepState::Pending | StepState::Told => return None,
            StepState::InForce => self.what.clone(),
            StepState::Worked => format!("{} (worked)", self.what),
            StepState::Failed => format!("{} (did not work)", self.what),
            StepState::Inconclusive => format!("{} (too little traffic to judge it)", self.what),
            StepState::Reverted => format!("{} (lifted: it did not work)", self.what),
            StepState::Waiting => format!("waiting: {} ({})", self.what, self.why),
            StepState::Skipped | StepState::Denied | StepState::Expired | StepState::Superseded => {
                format!("not done: {}", self.why)
            }
        };
        Some((self.name(), words))
    }

    pub(super) fn record(&self) -> StepRecord {
        StepRecord {
            step: self.name().to_owned(),
            state: self.state,
            what: self.what.clone(),
            why: self.why.clone(),
            approval: self.approval.clone(),
            taken: self.taken.map(|t| t.wall),
            verify_at: self
                .due
                .filter(|_| self.state == StepState::InForce)
                .map(|d| d.wall),
            before: self.before,
            after: self.after,
        }
    }

    /// Goes on in another process.
    pub(super) fn rebase(&mut self, now: Now) {
        for point in [&mut self.taken, &mut self.due].into_iter().flatten() {
            *point = point.rebased(now);
        }
    }
}
