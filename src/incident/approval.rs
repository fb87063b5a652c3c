//! A question to a human about one step: asked once, answered once, void after its time.

use serde::{Deserialize, Serialize};

use super::record::ApprovalState;
use super::rule::{OnTimeout, Step};
use crate::types::ids::ApprovalId;
use crate::types::time::Now;

/// A question and what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Question {
    /// Its name.
    pub(crate) id: ApprovalId,
    /// The place of the step in its plan.
    pub(crate) step: usize,
    /// The kind of step.
    pub(crate) kind: String,
    /// What would be done.
    pub(crate) what: String,
    /// Why it is asked for.
    pub(crate) why: String,
    /// When it was asked.
    pub(crate) asked: Now,
    /// When it is void.
    pub(crate) expires: Now,
    /// What that means.
    pub(crate) on_timeout: OnTimeout,
    answer: Option<Answer>,
    state: ApprovalState,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// When.
    pub(crate) at: Now,
    /// Who.
    pub(crate) by: String,
    /// By which way.
    pub(crate) via: String,
    /// Why.
    pub(crate) reason: Option<String>,
}

/// What comes of time or of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decided {
    /// The step is taken.
    Take,
    /// The step is not taken.
    Leave,
    /// The question is asked again.
    AskAgain,
}

impl Question {
    /// Asks.
    pub(crate) fn ask(
        id: ApprovalId,
        place: usize,
        step: &Step,
        what: String,
        why: String,
        now: Now,
    ) -> Self {
        Self {
            id,
            step: place,
            kind: step.kind.name().to_owned(),
            what,
            why,
            asked: now,
            expires: now.after(step.approval_timeout),
            on_timeout: step.on_timeout,
            answer: None,
            state: ApprovalState::Needed,
        }
    }

    /// Takes an answer; the first one counts. `Err` is what it is already.
    pub(crate) fn decide(&mut self, approve: bool, answer: Answer) -> Result<Decided, ApprovalState> {
        if self.state != ApprovalState::Needed {
            return Err(self.state);
        }
        self.answer = Some(answer);
        self.state = if approve {
            ApprovalState::Given
        } else {
            ApprovalState::Denied
        };
        Ok(if approve { Decided::Take } else { Decided::Leave })
    }

    /// What time makes of it; `None` while it stands.
    pub(crate) fn pass(&mut self, now: Now) -> Option<Decided> {
        if self.state != ApprovalState::Needed || now.mono < self.expires.mono {
            return None;
        }
        let length = self.expires.mono.since(self.asked.mono);
        match self.on_timeout {
            OnTimeout::Keep => {
                self.asked = now;
                self.expires = now.after(length);
                Some(Decided::AskAgain)
            }
            OnTimeout::Deny | OnTimeout::Approve => {
                self.state = ApprovalState::Expired;
                self.answer = Some(Answer {
                    at: now,
                    by: "nobody".to_owned(),
                    via: "timeout".to_owned(),
                    reason: None,
                });
                Some(if self.on_timeout == OnTimeout::Approve {
                    Decided::Take
                } else {
                    Decided::Leave
                })
            }
        }
    }

    /// The step is no longer to be taken; whether that changes anything.
    pub(crate) fn supersede(&mut self) -> bool {
        let open = self.state == ApprovalState::Needed;
        if open {
            self.state = ApprovalState::Superseded;
        }
        open
    }

    /// What became of it.
    pub(crate) fn state(&self) -> ApprovalState {
        self.state
    }

    /// The answer, where there is one.
    pub(crate) fn answer(&self) -> Option<&Answer> {
        self.answer.as_ref()
    }

    /// Goes on in another process.
    pub(crate) fn rebase(&mut self, now: Now) {
        self.asked = self.asked.rebased(now);
        self.expires = self.expires.rebased(now);
        if let Some(answer) = &mut self.answer {
            answer.at = answer.at.rebased(now);
        }
    }
}

impl ApprovalState {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Needed => "needed",
            Self::Given => "given",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Superseded => "superseded",
        }
    }
}

impl OnTimeout {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Approve => "approve",
            Self::Keep => "keep",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::incident::rule::StepKind;
    use crate::types::time::Mono;

    fn at(seconds: u64) -> Now {
        Now::default().after(Duration::from_secs(seconds))
    }

    fn question(on_timeout: OnTimeout) -> Question {
        let step = Step {
            on_timeout,
            approval_timeout: Duration::from_secs(60),
            ..Step::new(StepKind::Contain, Duration::from_secs(60))
        };
        Question::ask(
            "apr-1".into(),
            0,
            &step,
            "contain".to_owned(),
            "why".to_owned(),
            at(100),
        )
    }

    fn answer() -> Answer {
        Answer {
            at: at(110),
            by: "ann".to_owned(),
            via: "api".to_owned(),
            reason: None,
        }
    }

    #[test]
    fn every_state_and_every_event() {
        use ApprovalState::{Denied, Expired, Given, Needed, Superseded};
        let made = |state| Question {
            state,
            ..question(OnTimeout::Deny)
        };
        for state in [Needed, Given, Denied, Expired, Superseded] {
            let open = state == Needed;
            for (approve, then, says) in [(true, Given, Decided::Take), (false, Denied, Decided::Leave)] {
                let mut q = made(state);
                assert_eq!(
                    q.decide(approve, answer()),
                    if open { Ok(says) } else { Err(state) }
                );
                assert_eq!(q.state(), if open { then } else { state });
            }
            let mut q = made(state);
            assert_eq!(q.pass(at(159)), None);
            assert_eq!(q.pass(at(160)), open.then_some(Decided::Leave), "{state:?}");
            assert_eq!(q.state(), if open { Expired } else { state });
            let mut q = made(state);
            assert_eq!(q.supersede(), open);
            assert_eq!(q.state(), if open { Superseded } else { state });
        }
    }

    #[test]
    fn what_silence_means() {
        let mut q = question(OnTimeout::Approve);
        assert_eq!(q.pass(at(160)), Some(Decided::Take));
        assert_eq!(
            (q.state(), q.answer().map(|a| a.via.as_str())),
            (ApprovalState::Expired, Some("timeout"))
        );
        let mut q = question(OnTimeout::Keep);
        assert_eq!(q.pass(at(161)), Some(Decided::AskAgain));
        assert_eq!(
            (q.state(), q.expires.mono),
            (ApprovalState::Needed, Mono::from_millis(221_000))
        );
    }
}
