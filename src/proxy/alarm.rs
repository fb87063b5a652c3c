//! The one timer of an exchange: for the first byte, then between parts, and for the whole.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::clock::Clock;
use crate::types::time::Mono;

/// Rings when the upstream was silent for too long, or when the exchange took too long as a whole.
///
/// The timer is made when something has to be waited for, and is only moved when it fires: a part of an answer that
/// comes costs it one reading of the clock.
pub(super) struct Alarm {
    clock: Clock,
    timer: Option<Pin<Box<Sleep>>>,
    last_heard: Mono,
    silence: Duration,
    whole: Mono,
}

impl Alarm {
    /// Rings after `silence`, or at `whole` if that is earlier.
    pub(super) fn new(clock: Clock, silence: Duration, whole: Option<Mono>) -> Self {
        let last_heard = clock.mono();
        Self {
            clock,
            timer: None,
            last_heard,
            silence,
            whole: whole.unwrap_or(Mono::FAR),
        }
    }

    /// From now on this much silence is allowed.
    pub(super) fn allow(&mut self, silence: Duration) {
        // A timer that fires early is moved on; one that would fire late has to be made anew.
        if silence < self.silence {
            self.timer = None;
        }
        self.silence = silence;
        self.heard();
    }

    /// Something came.
    pub(super) fn heard(&mut self) {
        self.last_heard = self.clock.mono();
    }

    /// When something came last.
    pub(super) fn last_heard(&self) -> Mono {
        self.last_heard
    }

    /// Ready when the alarm rings.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(timer) = &mut self.timer else {
                let left = self.left();
                self.timer = Some(Box::pin(sleep(left)));
                continue;
            };
            ready!(timer.as_mut().poll(cx));
            let left = self.left();
            if left.is_zero() {
                return Poll::Ready(());
            }
            // `left` is taken from our clock, which tests may drive; the timer only decides when to look again.
            self.timer = Some(Box::pin(sleep(left)));
        }
    }

    fn left(&self) -> Duration {
        let now = self.clock.mono();
        self.last_heard.after(self.silence).min(self.whole).since(now)
    }
}
