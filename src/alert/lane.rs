//! One target: the task that delivers what waits for it.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::delivery::{DeadLetter, Delivery, Fate, Settled, SettledHook};
use super::destination::Guard;
use super::endpoint::{Endpoint, Link, Outcome, link};
use super::queue::TargetStatus;
use super::waiting::{Next, State, Waiting};
use super::{Target, payload};
use crate::clock::Clock;
use crate::telemetry::metrics::Metrics;
use crate::types::notice::Notice;
use crate::types::time::Now;

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
            room: 4096,
        }
    }
}

/// What lanes share.
#[derive(Debug, Clone)]
pub(super) struct Means {
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) pace: Pace,
    pub(super) hook: Hook,
}

/// Whoever wants to hear what became of deliveries.
#[derive(Clone)]
pub(super) struct Hook(pub(super) Option<SettledHook>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hook" } else { "none" })
    }
}

impl Hook {
    pub(super) fn tell(&self, settled: &[Settled]) {
        if let Some(hook) = &self.0 {
            settled.iter().for_each(|s| hook(s));
        }
    }
}

/// One target and what waits for it.
#[derive(Debug)]
pub(super) struct Lane {
    name: String,
    guard: Guard,
    means: Means,
    state: Mutex<State>,
    /// Something waits.
    bell: Notify,
    /// A pause after a failure is over before its time.
    resume: Notify,
    /// Nothing waits any more.
    empty: Notify,
    stop: CancellationToken,
}

impl Lane {
    pub(super) fn new(target: Target, guard: Guard, means: Means) -> Self {
        let name = target.name.clone();
        let mut state = State::new(target, means.pace.room);
        state.last_error = Endpoint::new(&state.target).err();
        if let Some(why) = &state.last_error {
            tracing::error!(target = %name, error = %why, "alert target cannot be used");
        }
        Self {
            name,
            guard,
            means,
            state: Mutex::new(state),
            bell: Notify::new(),
            resume: Notify::new(),
            empty: Notify::new(),
            stop: CancellationToken::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn guard(&self) -> Guard {
        self.guard
    }

    /// Whether the notice is for this target.
    pub(super) fn wants(&self, notice: &Notice) -> bool {
        self.state().wants(notice)
    }

    /// Takes charge of a delivery, unless it was taken before.
    pub(super) fn take(&self, delivery: Delivery, now: Now) {
        let settled = self.state().take(delivery, now).unwrap_or_default();
        self.announce(&settled);
        self.bell.notify_one();
    }

    /// Learns what is open without telling anybody.
    pub(super) fn resume(&self, notice: &Arc<Notice>, now: Now) {
        self.state().resume(notice, now.mono);
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
            state.retarget(target);
            state.last_error = problem;
        }
        self.resume.notify_one();
        self.bell.notify_one();
    }

    /// Puts a dead letter of an earlier life where it can be seen and sent again.
    pub(super) fn lay(&self, letter: DeadLetter) {
        self.state().lay(letter);
    }

    /// Queues all dead letters again.
    pub(super) fn revive(&self) -> Vec<Delivery> {
        let revived = self.state().revive(self.means.clock.now());
        self.resume.notify_one();
        self.bell.notify_one();
        revived
    }

    /// Short pauses from now on.
    pub(super) fn hurry(&self) {
        self.state().hurry = true;
        self.resume.notify_one();
        self.bell.notify_one();
    }

    pub(super) fn is_idle(&self) -> bool {
        self.state().is_idle()
    }

    /// Waits until nothing waits and nothing is under way, or the lane was stopped.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.empty.notified();
            if self.is_idle() || self.stop.is_cancelled() {
                return;
            }
            emptied.await;
        }
    }

    pub(super) fn stop(&self) {
        self.stop.cancel();
        self.empty.notify_waiters();
    }

    /// Stops a lane whose target is no more: what waits is dead.
    pub(super) fn abandon(&self, why: &str) {
        self.stop();
        let settled = self.state().abandon(why, self.means.clock.wall());
        self.announce(&settled);
    }

    pub(super) fn status(&self) -> TargetStatus {
        self.state().status()
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
            let now = self.means.clock.now();
            let next = self.state().next(now.mono);
            match next {
                Next::Send(batch, target) => {
                    if let Some((pause, asked)) = self.send(&mut road, batch, &target, &mut failures).await {
                        self.pause(pause, asked).await;
                    }
                }
                Next::Remind(target) => self.remind(&mut road, &target).await,
                Next::Later(at) => {
                    timeout(at.since(now.mono), self.bell.notified()).await.ok();
                }
                Next::Nothing => self.bell.notified().await,
            }
        }
    }

    /// Sends one message; when the target is in trouble, how long to leave it alone, and what it asked for itself.
    async fn send(
        &self,
        road: &mut Option<Road>,
        batch: Vec<Waiting>,
        target: &Arc<Target>,
        failures: &mut u32,
    ) -> Option<(Duration, Option<Duration>)> {
        let id = batch.first().map(|w| w.delivery.id.clone()).unwrap_or_default();
        let outcome = self.attempt(road, target, &batch).await;
        let now = self.means.clock.now();
        let (settled, pause) = match outcome {
            Outcome::Delivered { partly } => {
                *failures = 0;
                (self.state().delivered(batch, partly, now.wall), None)
            }
            Outcome::Refused { why, gone } => {
                *failures = 0;
                (self.state().refused(batch, &why, gone, now.wall), None)
            }
            Outcome::Again { why, after } => {
                let pause = self.backoff(&id, *failures).max(after.unwrap_or_default());
                *failures = failures.saturating_add(1);
                (self.state().failed(batch, &why, pause, now), Some((pause, after)))
            }
        };
        self.announce(&settled);
        if self.is_idle() {
            self.empty.notify_waiters();
        }
        pause
    }

    async fn attempt(&self, road: &mut Option<Road>, target: &Arc<Target>, batch: &[Waiting]) -> Outcome {
        let notices: Vec<&Arc<Notice>> = batch.iter().map(|w| &w.delivery.notice).collect();
        let body = match (notices.as_slice(), &target.group) {
            ([], _) => return Outcome::Delivered { partly: None },
            ([one], _) => {
                let now = self.means.clock.now();
                let known = self.state().refresh.as_mut().map(|r| r.learn(one, now.mono));
                match known {
                    Some(known) => payload::reminder(&target.kind, &[known], now.wall),
                    None => payload::body(&target.kind, one),
                }
            }
            (many, group) => payload::body(&target.kind, &payload::storm(many, group.map_or(20, |g| g.list))),
        };
        // Receivers tell repetitions by the notice's own id.
        let id = notices.first().map(|n| n.id.as_str()).unwrap_or_default();
        self.post(road, target, id, body).await
    }

    async fn post(
        &self,
        road: &mut Option<Road>,
        target: &Arc<Target>,
        id: &str,
        body: serde_json::Result<Vec<u8>>,
    ) -> Outcome {
        if road.as_ref().is_none_or(|r| !Arc::ptr_eq(&r.target, target)) {
            *road = None;
            match Road::make(target, self.guard).await {
                Ok(made) => *road = Some(made),
                Err(outcome) => return outcome,
            }
        }
        match (road, body) {
            (Some(road), Ok(body)) => {
                road.endpoint
                    .post(&road.link, id, self.means.clock.wall(), Bytes::from(body))
                    .await
            }
            (None, _) => Outcome::refused("cannot be used"),
            (_, Err(e)) => Outcome::refused(e.to_string()),
        }
    }

    /// Tells the receiver again what is open. Nobody waits for this: a failure is told in the status and tried again.
    async fn remind(&self, road: &mut Option<Road>, target: &Arc<Target>) {
        let now = self.means.clock.now();
        let known = match &mut self.state().refresh {
            Some(refresh) => refresh.remind(now.mono),
            None => return,
        };
        for some in known.chunks(payload::REMINDER_MAX) {
            let body = payload::reminder(&target.kind, some, now.wall);
            match self.post(road, target, "reminder", body).await {
                Outcome::Delivered { partly: None } => {}
                Outcome::Delivered { partly: Some(why) } | Outcome::Refused { why, .. } => {
                    self.state().last_error = Some(why);
                }
                Outcome::Again { why, after } => {
                    let soon = self.means.pace.base.max(after.unwrap_or_default());
                    let mut state = self.state();
                    state.last_error = Some(why);
                    if let Some(refresh) = &mut state.refresh {
                        refresh.again(now.mono, soon);
                    }
                    return;
                }
            }
        }
    }

    /// Counts, logs and passes on what became of deliveries.
    fn announce(&self, settled: &[Settled]) {
        for s in settled {
            let (target, delivery) = (&self.name, &s.id);
            let result = match &s.fate {
                Fate::Delivered => "delivered",
                Fate::Failed { error, attempts, .. } => {
                    tracing::warn!(%target, %delivery, attempts, %error, "an alert will be tried again");
                    "failed"
                }
                Fate::Dead { why } => {
                    tracing::error!(%target, %delivery, error = %why, "an alert was given up");
                    "dropped"
                }
            };
            let label = match self.guard {
                Guard::Any if !self.name.starts_with("adhoc:") => self.name.as_str(),
                _ => "adhoc",
            };
            self.means.metrics.notice(label, result);
        }
        self.means.hook.tell(settled);
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
            .means
            .pace
            .base
            .saturating_mul(2u32.saturating_pow(failures))
            .min(self.means.pace.cap);
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
    async fn make(target: &Arc<Target>, guard: Guard) -> Result<Self, Outcome> {
        let endpoint = Endpoint::new(target).map_err(Outcome::refused)?;
        // Reads the system's roots and the files: not on a thread that serves others. A missing file may come yet.
        let files = target.ca_files.clone();
        let link = tokio::task::spawn_blocking(move || link(&files, guard))
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
