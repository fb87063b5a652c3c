//! The life of an incident: one struct for each state; a transition consumes the state it leaves.
//!
//! ```text
//!            back, or nothing left                still back after the probation
//!   Open ───────────────────────────▶ Recovering ───────────────────────────────▶ Resolved
//!    ▲                                    │                                        │ ▲
//!    ├────────── beyond again ────────────┘            closed (by anyone) ─────────┼─┘
//!    └──────────────────────── beyond again soon after ────────────────────────────┘
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::record::IncidentState;
use crate::types::time::Now;

/// Where an incident is on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Life {
    /// In breach.
    Open(Open),
    /// Back, on probation.
    Recovering(Recovering),
    /// Over.
    Resolved(Resolved),
}

/// In breach; everything that was ordered is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Open {
    relapses: u32,
}

/// Back; what was ordered is relaxed step by step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Recovering {
    since: Now,
    stage: Stage,
    relapses: u32,
}

/// Over; nothing of it is in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resolved {
    relapses: u32,
}

/// How far orders are relaxed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Stage {
    /// Not at all.
    Full,
    /// First half of the probation: limits doubled.
    Eased,
    /// Second half: limits doubled again, the model as asked for.
    Light,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The metric is beyond its threshold.
    Beyond,
    /// It is neither beyond nor back by the hysteresis.
    Between,
    /// It is back.
    Back,
    /// Nothing is left to be measured.
    NoTraffic,
    /// It is to end now: an operator said so, or its rule is gone.
    Close,
    /// Its rule found its subject again, soon after it was over.
    Return,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// Nothing.
    Stays,
    /// It began to recover.
    Recovers,
    /// It goes on recovering, less bound.
    Relaxes,
    /// It is in breach again.
    Relapses,
    /// It is over.
    Ends,
    /// It is not over after all.
    Reopens,
}

impl Life {
    /// A new incident.
    pub(crate) fn open() -> Self {
        Self::Open(Open { relapses: 0 })
    }

    /// What becomes of it. `probation` is how long it must stay back the first time; with `held` it does not end by
    /// itself, since something is in force that must not be lifted because the metric is back.
    pub(crate) fn on(self, event: Event, now: Now, probation: Duration, held: bool) -> (Self, Move) {
        match self {
            Self::Open(open) => open.on(event, now),
            Self::Recovering(recovering) => recovering.on(event, now, probation, held),
            Self::Resolved(resolved) => resolved.on(event),
        }
    }

    /// How often it came back.
    pub(crate) fn relapses(&self) -> u32 {
        match self {
            Self::Open(Open { relapses })
            | Self::Recovering(Recovering { relapses, .. })
            | Self::Resolved(Resolved { relapses }) => *relapses,
        }
    }

    /// Goes on in another process.
    pub(crate) fn rebase(&mut self, now: Now) {
        if let Self::Recovering(recovering) = self {
            recovering.since = recovering.since.rebased(now);
        }
    }

    /// As it is shown.
    pub(crate) fn state(&self) -> IncidentState {
        match self {
            Self::Open(_) => IncidentState::Open,
            Self::Recovering(_) => IncidentState::Recovering,
            Self::Resolved(_) => IncidentState::Resolved,
        }
    }

    /// How far orders are relaxed.
    pub(crate) fn stage(&self) -> Stage {
        match self {
            Self::Open(_) | Self::Resolved(_) => Stage::Full,
            Self::Recovering(r) => r.stage,
        }
    }
}

impl Open {
    fn on(self, event: Event, now: Now) -> (Life, Move) {
        match event {
            Event::Beyond | Event::Between | Event::Return => (Life::Open(self), Move::Stays),
            Event::Back | Event::NoTraffic => (Life::Recovering(self.recover(now)), Move::Recovers),
            Event::Close => (Life::Resolved(self.end()), Move::Ends),
        }
    }

    fn end(self) -> Resolved {
        Resolved {
            relapses: self.relapses,
        }
    }

    fn recover(self, now: Now) -> Recovering {
        Recovering {
            since: now,
            stage: Stage::Eased,
            relapses: self.relapses,
        }
    }
}

impl Recovering {
    fn on(mut self, event: Event, now: Now, probation: Duration, held: bool) -> (Life, Move) {
        match event {
            Event::Beyond | Event::Return => (Life::Open(self.relapse()), Move::Relapses),
            Event::Between => {
                // Not back: what has passed of this stage does not count.
                self.since = now;
                (Life::Recovering(self), Move::Stays)
            }
            Event::Back | Event::NoTraffic => self.hold_out(now, probation, held),
            Event::Close => (Life::Resolved(self.end()), Move::Ends),
        }
    }

    fn end(self) -> Resolved {
        Resolved {
            relapses: self.relapses,
        }
    }

    fn relapse(self) -> Open {
        Open {
            relapses: self.relapses.saturating_add(1),
        }
    }

    fn hold_out(mut self, now: Now, probation: Duration, held: bool) -> (Life, Move) {
        // Each relapse doubles the next probation (at most 8 times), so that a limit that hides its own cause
        // does not swing for ever.
        let half = probation.saturating_mul(1 << self.relapses.min(3)) / 2;
        if now.mono.since(self.since.mono) < half {
            return (Life::Recovering(self), Move::Stays);
        }
        match self.stage {
            Stage::Full | Stage::Eased => {
                self.since = now;
                self.stage = Stage::Light;
                (Life::Recovering(self), Move::Relaxes)
            }
            Stage::Light if held => (Life::Recovering(self), Move::Stays),
            Stage::Light => (Life::Resolved(self.end()), Move::Ends),
        }
    }
}

impl Resolved {
    fn on(self, event: Event) -> (Life, Move) {
        match event {
            Event::Return => (
                Life::Open(Open {
                    relapses: self.relapses.saturating_add(1),
                }),
                Move::Reopens,
            ),
            Event::Beyond | Event::Between | Event::Back | Event::NoTraffic | Event::Close => {
                (Life::Resolved(self), Move::Stays)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBATION: Duration = Duration::from_secs(20);

    fn at(seconds: u64) -> Now {
        Now::default().after(Duration::from_secs(seconds))
    }

    fn recovering(stage: Stage, relapses: u32) -> Life {
        Life::Recovering(Recovering {
            since: at(100),
            stage,
            relapses,
        })
    }

    #[test]
    fn every_state_and_every_event() {
        use Event::{Back, Between, Beyond, Close, NoTraffic, Return};
        use IncidentState as S;
        use Move::{Ends, Recovers, Relapses, Relaxes, Reopens, Stays};
        let open = || Life::Open(Open { relapses: 1 });
        let over = || Life::Resolved(Resolved { relapses: 1 });
        let eased = || recovering(Stage::Eased, 0);
        let light = || recovering(Stage::Light, 0);
        // state, event, seconds, state after, stage after, move
        let table = [
            (open(), Beyond, 100, S::Open, Stage::Full, Stays),
            (open(), Between, 100, S::Open, Stage::Full, Stays),
            (open(), Back, 100, S::Recovering, Stage::Eased, Recovers),
            (open(), NoTraffic, 100, S::Recovering, Stage::Eased, Recovers),
            (open(), Close, 100, S::Resolved, Stage::Full, Ends),
            (open(), Return, 100, S::Open, Stage::Full, Stays),
            (eased(), Beyond, 105, S::Open, Stage::Full, Relapses),
            (eased(), Between, 199, S::Recovering, Stage::Eased, Stays),
            (eased(), Back, 109, S::Recovering, Stage::Eased, Stays),
            (eased(), Back, 110, S::Recovering, Stage::Light, Relaxes),
            (eased(), NoTraffic, 110, S::Recovering, Stage::Light, Relaxes),
            (eased(), Back, 50, S::Recovering, Stage::Eased, Stays),
            (eased(), Close, 100, S::Resolved, Stage::Full, Ends),
            (eased(), Return, 100, S::Open, Stage::Full, Relapses),
            (light(), Beyond, 110, S::Open, Stage::Full, Relapses),
            (light(), Between, 110, S::Recovering, Stage::Light, Stays),
            (light(), Back, 109, S::Recovering, Stage::Light, Stays),
            (light(), Back, 110, S::Resolved, Stage::Full, Ends),
            (light(), NoTraffic, 110, S::Resolved, Stage::Full, Ends),
            (light(), Close, 100, S::Resolved, Stage::Full, Ends),
            (light(), Return, 100, S::Open, Stage::Full, Relapses),
            (
                recovering(Stage::Eased, 1),
                Back,
                119,
                S::Recovering,
                Stage::Eased,
                Stays,
            ),
            (
                recovering(Stage::Eased, 1),
                Back,
                120,
                S::Recovering,
                Stage::Light,
                Relaxes,
            ),
            (
                recovering(Stage::Eased, 99),
                Back,
                180,
                S::Recovering,
                Stage::Light,
                Relaxes,
            ),
            (over(), Beyond, 100, S::Resolved, Stage::Full, Stays),
            (over(), Between, 100, S::Resolved, Stage::Full, Stays),
            (over(), Back, 100, S::Resolved, Stage::Full, Stays),
            (over(), NoTraffic, 100, S::Resolved, Stage::Full, Stays),
            (over(), Close, 100, S::Resolved, Stage::Full, Stays),
            (over(), Return, 100, S::Open, Stage::Full, Reopens),
        ];
        for (i, (life, event, seconds, state, stage, expected)) in table.into_iter().enumerate() {
            let (after, moved) = life.on(event, at(seconds), PROBATION, false);
            assert_eq!(
                (after.state(), after.stage(), moved),
                (state, stage, expected),
                "row {i}: {event:?}"
            );
        }
    }

    #[test]
    fn between_starts_the_stage_again() {
        let (life, _) = recovering(Stage::Eased, 0).on(Event::Between, at(109), PROBATION, false);
        let (life, moved) = life.on(Event::Back, at(118), PROBATION, false);
        assert_eq!(moved, Move::Stays);
        assert_eq!(life.on(Event::Back, at(119), PROBATION, false).1, Move::Relaxes);
    }

    #[test]
    fn a_relapse_is_remembered() {
        let (life, _) = recovering(Stage::Light, 0).on(Event::Beyond, at(101), PROBATION, false);
        let (life, _) = life.on(Event::Back, at(102), PROBATION, false);
        assert_eq!(
            life,
            Life::Recovering(Recovering {
                since: at(102),
                stage: Stage::Eased,
                relapses: 1
            })
        );
    }

    #[test]
    fn what_is_held_does_not_end_by_itself() {
        let light = || recovering(Stage::Light, 0);
        for event in [Event::Back, Event::NoTraffic] {
            let (life, moved) = light().on(event, at(1000), PROBATION, true);
            assert_eq!((life, moved), (light(), Move::Stays), "{event:?}");
        }
        assert_eq!(light().on(Event::Close, at(1000), PROBATION, true).1, Move::Ends);
        assert_eq!(
            light().on(Event::Beyond, at(1000), PROBATION, true).1,
            Move::Relapses
        );
    }
}
