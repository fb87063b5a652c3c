//! The one timer of an exchange: for the request's way up, for the first byte, then between parts, and for the whole.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use super::body::{Progress, Seen};
use super::reply::Problem;
use crate::clock::Clock;
use crate::types::time::Mono;

/// Rings when the upstream was silent for too long, or when the exchange took too long as a whole.
///
/// The timer is made when something has to be waited for, and is only moved when it fires. It is handed on from one
/// exchange of a connection to the next, since nearly all of them end long before it fires. Parts that come in one go
/// have one time: the clock is read when they have to be waited for again, and after every [`TOGETHER`] of them.
pub(super) struct Alarm {
    clock: Clock,
    timer: Option<Timer>,
    spare: Rc<Spare>,
    last_heard: Mono,
    /// What was heard since.
    unread: u8,
    silence: Duration,
    whole: Mono,
    /// A request body that is still on its way, and how long the upstream may take none of it.
    upload: Option<(Rc<Seen>, Duration)>,
}

/// Parts that may have the time of one of them.
const TOGETHER: u8 = 16;

/// The timer of a connection while no exchange needs it.
#[derive(Default)]
pub(super) struct Spare(Cell<Option<Timer>>);

struct Timer {
    sleep: Pin<Box<Sleep>>,
    /// When it fires, at the latest.
    fires: Mono,
}

impl Alarm {
    /// Rings after `silence`, or at `whole` if that is earlier.
    pub(super) fn new(clock: Clock, spare: Rc<Spare>, silence: Duration, whole: Option<Mono>) -> Self {
        let last_heard = clock.mono();
        let timer = spare.0.take();
        Self {
            clock,
            timer,
            spare,
            last_heard,
            unread: 0,
            silence,
            whole: whole.unwrap_or(Mono::FAR),
            upload: None,
        }
    }

    /// Minds a request body: while it is on its way the upstream may be silent as long as it takes some of it at
    /// least every `stall`; its time to answer begins when it has all of it.
    pub(super) fn mind(&mut self, upload: Rc<Seen>, stall: Duration) {
        self.upload = Some((upload, stall));
    }

    /// What it has rung for.
    pub(super) fn problem(&self) -> Problem {
        if self.clock.mono() >= self.whole {
            return Problem::TooLong;
        }
        match &self.upload {
            Some((seen, stall)) if !matches!(seen.progress(), Progress::Complete(_)) => {
                Problem::UploadStalled(*stall)
            }
            _ => Problem::UpstreamTimeout(self.silence),
        }
    }

    /// Whether the exchange took as long as it may as a whole.
    pub(super) fn is_over(&self) -> bool {
        self.clock.mono() >= self.whole
    }

    fn rings(&self) -> Mono {
        let (since, allowed) = match &self.upload {
            None => (self.last_heard, self.silence),
            Some((seen, stall)) => match seen.progress() {
                Progress::Complete(at) => (at, self.silence),
                Progress::Moved(at) => (at, *stall),
                // The client's own pause ends first.
                Progress::Paused(at, pause) => (at, pause.saturating_add(*stall)),
            },
        };
        since.max(self.last_heard).after(allowed).min(self.whole)
    }

    /// From now on this much silence is allowed.
    pub(super) fn allow(&mut self, silence: Duration) {
        self.silence = silence;
        self.read_clock();
    }

    /// Something came.
    #[inline]
    pub(super) fn heard(&mut self) {
        self.unread += 1;
        if self.unread >= TOGETHER {
            self.read_clock();
        }
    }

    /// When something came last, as of the last reading of the clock.
    pub(super) fn last_heard(&self) -> Mono {
        self.last_heard
    }

    /// Reads the clock for what came since that was done.
    pub(super) fn read_clock(&mut self) {
        self.unread = 0;
        self.last_heard = self.clock.mono();
    }

    /// Ready when the alarm rings.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some((seen, _)) = &self.upload {
            seen.wake_at_end(cx);
        }
        if self.unread > 0 {
            self.read_clock();
        }
        loop {
            let rings = self.rings();
            // A timer that fires early is moved on then; one that would fire late has to be made anew.
            let timer = match &mut self.timer {
                Some(timer) if timer.fires <= rings => timer,
                _ => self
                    .timer
                    .insert(Timer::new(rings.since(self.clock.mono()), rings)),
            };
            ready!(timer.sleep.as_mut().poll(cx));
            // An upload may have gone on without anybody asking here.
            let rings = self.rings();
            let left = rings.since(self.clock.mono());
            if left.is_zero() {
                return Poll::Ready(());
            }
            // `left` is taken from our clock, which tests may drive; the timer only decides when to look again.
            self.timer = Some(Timer::new(left, rings));
        }
    }
}

impl Timer {
    fn new(after: Duration, fires: Mono) -> Self {
        Self {
            sleep: Box::pin(sleep(after)),
            fires,
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.spare.0.set(self.timer.take());
    }
}
