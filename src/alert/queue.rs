//! Bounded queues, one for each target, and the tasks that empty them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::lane::{Lane, Pace};
use super::{Target, TargetKind};
use crate::clock::Clock;
use crate::telemetry::metrics::Metrics;
use crate::types::notice::Notice;
use crate::types::time::Wall;

/// Delivers notices. Cheap to clone; delivery ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Alerts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    metrics: Arc<Metrics>,
    pace: Pace,
    runtime: Handle,
    lanes: Mutex<Vec<Arc<Lane>>>,
}

/// What became of a target's notices.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TargetStatus {
    /// Its name.
    pub name: String,
    /// `webhook` or `slack`.
    pub kind: String,
    /// Notices that wait.
    pub queued: u64,
    /// Notices delivered.
    pub delivered: u64,
    /// Attempts that failed.
    pub failed_attempts: u64,
    /// Notices given up: too old, refused for good, or no room.
    pub dropped: u64,
    /// The last failure, without secrets.
    pub last_error: Option<String>,
    /// When the last notice was delivered.
    pub last_delivered: Option<Wall>,
}

impl Alerts {
    /// Starts delivery to `targets` on the current tokio runtime (multi-thread or current-thread).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(targets: Vec<Target>, clock: Clock, metrics: Arc<Metrics>) -> Self {
        Self::paced(targets, clock, metrics, Pace::default())
    }

    pub(super) fn paced(targets: Vec<Target>, clock: Clock, metrics: Arc<Metrics>, pace: Pace) -> Self {
        let alerts = Self {
            shared: Arc::new(Shared {
                clock,
                metrics,
                pace,
                runtime: Handle::current(),
                lanes: Mutex::new(Vec::new()),
            }),
        };
        alerts.replace(targets);
        alerts
    }

    /// Queues a notice for every target that wants it. Never waits; a full queue drops its oldest notice that is not
    /// about an end (`resolved` is always kept) and counts it.
    pub fn tell(&self, notice: &Notice) {
        let lanes = self.shared.lanes().clone();
        if lanes.is_empty() {
            return;
        }
        let now = self.shared.clock.mono();
        let notice = Arc::new(notice.clone());
        for lane in lanes {
            lane.offer(&notice, now);
        }
    }

    /// Other targets from now on; what is queued for a target that stays (same name and kind) is kept.
    pub fn replace(&self, targets: Vec<Target>) {
        let mut lanes = self.shared.lanes();
        let mut old = std::mem::take(&mut *lanes);
        for target in targets {
            let stays = old
                .iter()
                .position(|lane| lane.name() == target.name && lane.kind() == kind(&target));
            match stays {
                Some(at) => {
                    let lane = old.swap_remove(at);
                    lane.retarget(target);
                    lanes.push(lane);
                }
                None => {
                    let lane = Arc::new(Lane::new(
                        target,
                        self.shared.clock.clone(),
                        Arc::clone(&self.shared.metrics),
                        self.shared.pace,
                    ));
                    drop(self.shared.runtime.spawn(Arc::clone(&lane).run()));
                    lanes.push(lane);
                }
            }
        }
        for gone in old {
            gone.stop();
        }
    }

    /// What became of each target's notices.
    pub fn status(&self) -> Vec<TargetStatus> {
        let lanes = self.shared.lanes().clone();
        lanes.iter().map(|lane| lane.status()).collect()
    }

    /// Tries to empty the queues within `limit`; `true` when they are. Pauses after failures are short from now on:
    /// there is no later for which to wait.
    pub async fn drain(&self, limit: Duration) -> bool {
        let lanes = self.shared.lanes().clone();
        for lane in &lanes {
            lane.hurry();
        }
        let emptied = async {
            for lane in &lanes {
                lane.emptied().await;
            }
        };
        timeout(limit, emptied).await.is_ok()
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, Vec<Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for lane in self.lanes().iter() {
            lane.stop();
        }
    }
}

/// The word for a target's kind.
pub(super) const fn kind(target: &Target) -> &'static str {
    match target.kind {
        TargetKind::Webhook { .. } => "webhook",
        TargetKind::Slack => "slack",
    }
}
