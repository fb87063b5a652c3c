//! Tells the world what was decided, in order, once it is durable.

use std::sync::Arc;

use tokio::sync::mpsc::{self, error::TrySendError};

use super::events::Events;
use crate::alert::{Alerts, Delivery};
use crate::store::Receipt;
use crate::types::time::Wall;

/// Announcements that may wait for the disk.
const ROOM: usize = 4_096;

/// Something to be told once it is durable.
pub(super) struct Announcement {
    /// Resolves when it is.
    pub(super) durable: Option<Receipt>,
    /// For alert targets.
    pub(super) deliveries: Vec<Delivery>,
    /// For those who look on.
    pub(super) happened: Vec<(&'static str, serde_json::Value)>,
    /// For whoever waits for it.
    pub(super) then: Vec<Box<dyn FnOnce() + Send>>,
}

/// Tells announcements one after the other.
pub(super) struct Announcer {
    queue: mpsc::Sender<Announcement>,
    means: Arc<Means>,
}

struct Means {
    alerts: Alerts,
    events: Events,
    clock: crate::clock::Clock,
}

impl Announcer {
    /// Starts telling, on the current runtime; ends when the announcer is dropped and all is told.
    pub(super) fn start(
        alerts: Alerts,
        events: Events,
        clock: crate::clock::Clock,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, mut queued) = mpsc::channel::<Announcement>(ROOM);
        let means = Arc::new(Means {
            alerts,
            events,
            clock,
        });
        let task = tokio::spawn({
            let means = Arc::clone(&means);
            async move {
                while let Some(mut announcement) = queued.recv().await {
                    if let Some(receipt) = announcement.durable.take() {
                        // What cannot be made durable is told all the same: silence would be worse.
                        receipt.await.ok();
                    }
                    means.tell(announcement);
                }
            }
        });
        (Self { queue, means }, task)
    }

    /// Tells it when its turn comes. Never waits: when too many wait for the disk, it is told at once.
    pub(super) fn announce(&self, announcement: Announcement) {
        if let Err(TrySendError::Full(announcement) | TrySendError::Closed(announcement)) =
            self.queue.try_send(announcement)
        {
            self.means.tell(announcement);
        }
    }
}

impl Announcement {
    /// Whether there is nothing to tell.
    pub(super) fn is_empty(&self) -> bool {
        self.deliveries.is_empty() && self.happened.is_empty() && self.then.is_empty()
    }
}

impl Means {
    fn tell(&self, announcement: Announcement) {
        let Announcement {
            deliveries,
            happened,
            then,
            ..
        } = announcement;
        let now: Wall = self.clock.wall();
        for (kind, document) in happened {
            self.events.tell(now, kind, &document);
        }
        if !deliveries.is_empty() {
            self.alerts.deliver(deliveries);
        }
        for then in then {
            then();
        }
    }
}
