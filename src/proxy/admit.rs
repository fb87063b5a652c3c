//! Whether a request may go on now: within its directives, after a short wait, or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::sleep;

use super::flights::Boarded;
use super::reply::Problem;
use super::worker::Worker;
use crate::enforce::gate::{Permit, Verdict, admit};
use crate::enforce::slots::AgentSlot;
use crate::enforce::snapshot::Snapshot;
use crate::types::directive::Sender;
use crate::types::time::Mono;

/// Leave to go on, and how long it took to get it.
pub(super) struct Admitted {
    pub(super) permit: Permit,
    pub(super) held: Duration,
    /// When it was got.
    pub(super) at: Mono,
}

/// Asks the gate, and waits for a little while when that is all it takes; `started`: now.
///
/// While a request waits its directives may change; it is then judged by the new ones.
pub(super) async fn pass(
    worker: &Worker,
    snapshot: &mut Arc<Snapshot>,
    slot: &Arc<AgentSlot>,
    sender: Sender<'_>,
    flight: Option<&Boarded>,
    estimate: u64,
    started: Mono,
) -> Result<Admitted, Problem> {
    let shared = &worker.shared;
    // What was published while the body came in is obeyed as well: whoever is contained then was not found among
    // those on their way.
    *snapshot = worker.snapshot();
    let limits = &snapshot.policy.limits;
    let (max_wait, max_waiting) = (limits.max_admission_wait, limits.max_waiting);
    let mut waiting = None;
    let mut now = started;
    loop {
        let held = now.since(started);
        let directives = snapshot.directives.of(sender, now);
        let why = match admit(slot, directives, &shared.clock, estimate) {
            Verdict::Open(permit) => {
                return Ok(Admitted {
                    permit,
                    held,
                    at: now,
                });
            }
            Verdict::Contained(by) => return Err(Problem::Contained(by)),
            Verdict::Refused(why) => return Err(Problem::Limited(Box::new(why))),
            Verdict::Wait(why) => why,
        };
        if held + why.retry_after > max_wait {
            return Err(Problem::Limited(Box::new(why)));
        }
        if waiting.is_none() {
            waiting = Some(Waiting::begin(&shared.waiting, max_waiting).ok_or(Problem::Overloaded)?);
        }
        let pause = sleep(why.retry_after.max(Duration::from_millis(1)));
        match flight {
            Some(flight) => flight.unless_contained(worker, sender, pause).await?,
            None => pause.await,
        }
        *snapshot = worker.snapshot();
        now = shared.clock.mono();
    }
}

/// One of the bounded number of requests that are held back.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize, max: usize) -> Option<Self> {
        if count.fetch_add(1, Ordering::Relaxed) < max {
            Some(Self(count))
        } else {
            count.fetch_sub(1, Ordering::Relaxed);
            None
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
