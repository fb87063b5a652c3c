//! One target: its queue, its memory of what it was told, and the task that delivers.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::queue::{TargetStatus, kind};
use super::webhook::{Endpoint, Link, Outcome, link};
use super::{Target, payload};
use crate::clock::Clock;
use crate::telemetry::metrics::Metrics;
use crate::types::ids::IncidentId;
use crate::types::notice::{Notice, NoticeEvent};
use crate::types::time::{Mono, Wall};

/// Notices and incidents that a target remembers, so that none is told twice and every end is told.
const REMEMBERED: usize = 1024;
/// Longest pause between attempts while a drain waits.
const HURRIED: Duration = Duration::from_millis(500);

/// How fast and how much; tests have their own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Ceiling of the first pause; it doubles with every failure in a row.
    pub(super) base: Duration,
    /// Ceiling of all pauses.
    pub(super) cap: Duration,
    /// Notices that may wait for one target.
    pub(super) room: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            base: Duration::from_secs(2),
            cap: Duration::from_secs(120),
            room: 256,
        }
    }
}

/// One target and what waits for it.
#[derive(Debug)]
pub(super) struct Lane {
    name: String,
    kind: &'static str,
    clock: Clock,
    metrics: Arc<Metrics>,
    pace: Pace,
    state: Mutex<State>,
    /// Something waits.
    bell: Notify,
    /// A pause after a failure is over before its time.
    resume: Notify,
    /// Nothing waits any more.
    empty: Notify,
    stop: CancellationToken,
}

#[derive(Debug)]
struct State {
    target: Arc<Target>,
    queue: VecDeque<Waiting>,
    in_flight: bool,
    hurry: bool,
    told: Memory<String>,
    open: Memory<IncidentId>,
    delivered: u64,
    failed_attempts: u64,
    dropped: u64,
    last_error: Option<String>,
    last_delivered: Option<Wall>,
}

#[derive(Debug)]
struct Waiting {
    notice: Arc<Notice>,
    since: Mono,
    attempts: u32,
}

/// The last so many of something.
#[derive(Debug)]
struct Memory<T> {
    order: VecDeque<T>,
    known: HashSet<T>,
}

impl Lane {
    pub(super) fn new(target: Target, clock: Clock, metrics: Arc<Metrics>, pace: Pace) -> Self {
        let last_error = Endpoint::new(&target).err();
        if let Some(why) = &last_error {
            tracing::error!(target = %target.name, error = %why, "alert target cannot be used");
        }
        Self {
            name: target.name.clone(),
            kind: kind(&target),
            clock,
            metrics,
            pace,
            state: Mutex::new(State {
                target: Arc::new(target),
                queue: VecDeque::new(),
                in_flight: false,
                hurry: false,
                told: Memory::default(),
                open: Memory::default(),
                delivered: 0,
                failed_attempts: 0,
                dropped: 0,
                last_error,
                last_delivered: None,
            }),
            bell: Notify::new(),
            resume: Notify::new(),
            empty: Notify::new(),
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Takes the notice, if this target wants it and has not got it yet.
    pub(super) fn offer(&self, notice: &Arc<Notice>, now: Mono) {
        let mut state = self.state();
        if !state.wants(notice, &self.name) {
            return;
        }
        let lost = state.make_room(notice, self.pace.room);
        let took = state.queue.len() + usize::from(state.in_flight) < self.pace.room;
        if took {
            state.queue.push_back(Waiting {
                notice: Arc::clone(notice),
                since: now,
                attempts: 0,
            });
        }
        if lost || !took {
            state.dropped += 1;
            state.last_error = Some("no room: too many notices wait".to_owned());
        }
        drop(state);
        if lost || !took {
            self.metrics.notice(&self.name, "dropped");
            tracing::error!(target = %self.name, "an alert was dropped: too many wait for this target");
        }
        self.bell.notify_one();
    }

    /// Other settings for the same target. An attempt under way ends with the old ones.
    pub(super) fn retarget(&self, target: Target) {
        let problem = Endpoint::new(&target).err();
        {
            let mut state = self.state();
            // Extra roots may have been rewritten in place, so only settings without files can be told to be the same.
            if *state.target == target && target.ca_files.is_empty() {
                return;
            }
            state.target = Arc::new(target);
            state.last_error = problem;
        }
        self.resume.notify_one();
    }

    /// Short pauses from now on.
    pub(super) fn hurry(&self) {
        self.state().hurry = true;
        self.resume.notify_one();
    }

    /// Waits until nothing waits and nothing is under way, or the lane was stopped.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.empty.notified();
            if self.state().is_idle() || self.stop.is_cancelled() {
                return;
            }
            emptied.await;
        }
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
        self.empty.notify_waiters();
    }

    pub(super) fn status(&self) -> TargetStatus {
        let state = self.state();
        TargetStatus {
            name: self.name.clone(),
            kind: self.kind.to_owned(),
            queued: (state.queue.len() + usize::from(state.in_flight)) as u64,
            delivered: state.delivered,
            failed_attempts: state.failed_attempts,
            dropped: state.dropped,
            last_error: state.last_error.clone(),
            last_delivered: state.last_delivered,
        }
    }

    /// Delivers until stopped.
    pub(super) async fn run(self: Arc<Self>) {
        let stop = self.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.deliver_all() => {}
        }
    }

    async fn deliver_all(&self) {
        let mut road = None;
        // Failures in a row, of whichever notice: what they say is that the target is in trouble.
        let mut failures = 0;
        loop {
            let Some((mut waiting, target)) = self.next() else {
                self.bell.notified().await;
                continue;
            };
            waiting.attempts += 1;
            let outcome = self.attempt(&mut road, &target, &waiting.notice).await;
            match outcome {
                Outcome::Delivered => {
                    failures = 0;
                    self.settle_delivered();
                }
                Outcome::Refused { why } => {
                    failures = 0;
                    self.settle_dropped(&waiting, why);
                }
                Outcome::Again { why, after } => {
                    let pause = self
                        .backoff(&waiting.notice.id, failures)
                        .max(after.unwrap_or_default());
                    failures += 1;
                    self.settle_failed(waiting, &target, why, pause);
                    self.pause(pause, after).await;
                }
            }
        }
    }

    async fn attempt(&self, road: &mut Option<Road>, target: &Arc<Target>, notice: &Notice) -> Outcome {
        if road.as_ref().is_none_or(|r| !Arc::ptr_eq(&r.target, target)) {
            *road = None;
            match Road::make(target).await {
                Ok(made) => *road = Some(made),
                Err(outcome) => return outcome,
            }
        }
        let Some(road) = road else {
            return Outcome::Refused {
                why: "cannot be used".to_owned(),
            };
        };
        match payload::body(&target.kind, notice) {
            Ok(body) => {
                road.endpoint
                    .post(&road.link, &notice.id, self.clock.wall(), Bytes::from(body))
                    .await
            }
            Err(e) => Outcome::Refused { why: e.to_string() },
        }
    }

    /// The notice to try now: of those tried least often the oldest, but never one before an older one of the same
    /// incident. So a notice that the target chokes on holds up nobody else's.
    fn next(&self) -> Option<(Waiting, Arc<Target>)> {
        let mut state = self.state();
        let mut seen = HashSet::new();
        let at = state
            .queue
            .iter()
            .enumerate()
            .filter(|(_, w)| seen.insert(&w.notice.incident))
            .min_by_key(|(_, w)| w.attempts)
            .map(|(at, _)| at)?;
        let waiting = state.queue.remove(at)?;
        state.in_flight = true;
        Some((waiting, Arc::clone(&state.target)))
    }

    fn settle_delivered(&self) {
        let mut state = self.state();
        state.in_flight = false;
        state.delivered += 1;
        state.last_delivered = Some(self.clock.wall());
        let idle = state.is_idle();
        drop(state);
        self.metrics.notice(&self.name, "delivered");
        self.tell_if(idle);
    }

    fn settle_dropped(&self, waiting: &Waiting, why: String) {
        tracing::error!(target = %self.name, notice = %waiting.notice.id, error = %why, "an alert was refused");
        let mut state = self.state();
        state.in_flight = false;
        state.failed_attempts += 1;
        state.dropped += 1;
        state.last_error = Some(why);
        let idle = state.is_idle();
        drop(state);
        self.metrics.notice(&self.name, "dropped");
        self.tell_if(idle);
    }

    fn settle_failed(&self, waiting: Waiting, target: &Target, why: String, pause: Duration) {
        let id = waiting.notice.id.clone();
        let age = self.clock.mono().since(waiting.since);
        let too_old = age.saturating_add(pause) >= target.give_up_after;
        if too_old {
            tracing::error!(target = %self.name, notice = %id, error = %why, "an alert was given up");
        } else {
            tracing::warn!(target = %self.name, notice = %id, error = %why, "an alert will be tried again");
        }
        let mut state = self.state();
        state.in_flight = false;
        state.failed_attempts += 1;
        state.last_error = Some(why);
        if too_old {
            state.dropped += 1;
        } else {
            // It had been the first of its incident, so the front is a right place.
            state.queue.push_front(waiting);
        }
        let idle = state.is_idle();
        drop(state);
        self.metrics
            .notice(&self.name, if too_old { "dropped" } else { "failed" });
        self.tell_if(idle);
    }

    fn tell_if(&self, idle: bool) {
        if idle {
            self.empty.notify_waiters();
        }
    }

    /// Waits `pause`: less when a drain is in a hurry (but as long as the receiver `asked`), and no longer when other
    /// settings came, which may help.
    async fn pause(&self, pause: Duration, asked: Option<Duration>) {
        let pause = if self.state().hurry {
            pause.min(HURRIED).max(asked.unwrap_or_default())
        } else {
            pause
        };
        timeout(pause, self.resume.notified()).await.ok();
    }

    /// Between a half and the whole of a ceiling that doubles with every failure. The jitter comes from the notice, so
    /// that many sidecars that failed at the same time do not come back at the same time.
    fn backoff(&self, id: &str, failures: u32) -> Duration {
        let ceiling = self
            .pace
            .base
            .saturating_mul(2u32.saturating_pow(failures))
            .min(self.pace.cap);
        let mut hasher = DefaultHasher::new();
        (id, failures).hash(&mut hasher);
        let share = (hasher.finish() % 1000) as u32;
        ceiling / 2 + ceiling / 2 * share / 1000
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A target's endpoint with the connections to it.
struct Road {
    target: Arc<Target>,
    endpoint: Endpoint,
    link: Link,
}

impl Road {
    async fn make(target: &Arc<Target>) -> Result<Self, Outcome> {
        let endpoint = Endpoint::new(target).map_err(|why| Outcome::Refused { why })?;
        // Reads the system's roots and the files: not on a thread that serves others. A missing file may come yet.
        let files = target.ca_files.clone();
        let link = tokio::task::spawn_blocking(move || link(&files))
            .await
            .unwrap_or_else(|_| Err("TLS could not be prepared".to_owned()))
            .map_err(|why| Outcome::Again { why, after: None })?;
        Ok(Self {
            target: Arc::clone(target),
            endpoint,
            link,
        })
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.in_flight
    }

    /// Whether the notice is for this target; remembers it if so.
    fn wants(&mut self, notice: &Notice, name: &str) -> bool {
        if !notice.targets.is_empty() && !notice.targets.iter().any(|t| t == name) {
            return false;
        }
        let bad_enough = notice.severity >= self.target.min_severity;
        let wanted = match notice.event {
            NoticeEvent::Test => true,
            // Who heard of the beginning hears of the end, whatever its severity is by then.
            NoticeEvent::Resolved => self.open.forget(&notice.incident) || bad_enough,
            NoticeEvent::Opened | NoticeEvent::Updated | NoticeEvent::Escalated => bad_enough,
        };
        if !wanted || !self.told.remember(notice.id.clone()) {
            return false;
        }
        if !matches!(notice.event, NoticeEvent::Resolved | NoticeEvent::Test) {
            self.open.remember(notice.incident.clone());
        }
        true
    }

    /// Makes room for `new` when there is none; `true` when a notice was lost for it.
    fn make_room(&mut self, new: &Notice, room: usize) -> bool {
        if self.queue.len() + usize::from(self.in_flight) < room {
            return false;
        }
        let oldest = self
            .queue
            .iter()
            .position(|w| w.notice.event != NoticeEvent::Resolved)
            // Only ends wait. The bound is a bound, but an end gives way to nothing but another end.
            .or_else(|| (new.event == NoticeEvent::Resolved && !self.queue.is_empty()).then_some(0));
        oldest.and_then(|at| self.queue.remove(at)).is_some()
    }
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            known: HashSet::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Memory<T> {
    /// `false` when it was known.
    fn remember(&mut self, item: T) -> bool {
        if !self.known.insert(item.clone()) {
            return false;
        }
        self.order.push_back(item);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    /// `true` when it was known.
    fn forget(&mut self, item: &T) -> bool {
        let known = self.known.remove(item);
        if known {
            self.order.retain(|i| i != item);
        }
        known
    }
}
