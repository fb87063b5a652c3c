//! All targets: which of them want a notice, and who takes charge of its deliveries.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::delivery::{DeadLetter, DeadLetterView, Delivery, Fate, Settled, SettledHook};
use super::destination::{AllowedDestinations, Destination, Guard};
use super::lane::{Hook, Lane, Means, Pace};
use super::{Grouping, Target, TargetKind, WebhookFormat, redact};
use crate::clock::Clock;
use crate::telemetry::metrics::Metrics;
use crate::types::notice::{Notice, Severity};
use crate::types::time::Wall;

/// Ad-hoc targets at a time; idle ones give way.
const ADHOC_MAX: usize = 32;
/// How long one attempt to an ad-hoc target may take.
const ADHOC_TIMEOUT: Duration = Duration::from_secs(10);
/// How long delivery to an ad-hoc target is tried.
const ADHOC_GIVE_UP: Duration = Duration::from_secs(3600);

/// Delivers notices. Cheap to clone; delivery ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Alerts {
    shared: Arc<Shared>,
}

/// What delivery needs from its surroundings.
#[derive(Clone)]
pub struct Options {
    /// Reads time.
    pub clock: Clock,
    /// Counts deliveries.
    pub metrics: Arc<Metrics>,
    /// Told what became of each attempt.
    pub settled: Option<SettledHook>,
    /// Where ad-hoc targets may be.
    pub destinations: AllowedDestinations,
}

#[derive(Debug)]
struct Shared {
    means: Means,
    runtime: Handle,
    lanes: Mutex<Lanes>,
}

#[derive(Debug)]
struct Lanes {
    /// Targets of the configuration, in its order.
    configured: Vec<Arc<Lane>>,
    /// Targets that requests named, oldest first.
    adhoc: Vec<Arc<Lane>>,
    destinations: AllowedDestinations,
}

/// What became of a target's notices.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct TargetStatus {
    /// Its name.
    pub name: String,
    /// `webhook`, `slack`, `pagerduty`, `alertmanager`, `teams` or `discord`.
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
    /// Why nothing more is sent there: it said that it is gone.
    pub disabled: Option<String>,
    /// The last notices given up; they can be sent again.
    pub dead_letters: Vec<DeadLetterView>,
}

impl Alerts {
    /// Starts delivery to `targets` on the current tokio runtime (multi-thread or current-thread).
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(targets: Vec<Target>, options: Options) -> Self {
        Self::paced(targets, options, Pace::default())
    }

    pub(super) fn paced(targets: Vec<Target>, options: Options, pace: Pace) -> Self {
        let alerts = Self {
            shared: Arc::new(Shared {
                means: Means {
                    clock: options.clock,
                    metrics: options.metrics,
                    pace,
                    hook: Hook(options.settled),
                },
                runtime: Handle::current(),
                lanes: Mutex::new(Lanes {
                    configured: Vec::new(),
                    adhoc: Vec::new(),
                    destinations: options.destinations,
                }),
            }),
        };
        alerts.replace(targets);
        alerts
    }

    /// Which targets want the notice, and what each would be sent. Nothing is sent: pass the deliveries on to
    /// [`Alerts::deliver`], once they are kept where a restart finds them.
    pub fn route(&self, notice: &Notice) -> Vec<Delivery> {
        let lanes = self.shared.lanes().configured.clone();
        let wanting: Vec<&Arc<Lane>> = lanes.iter().filter(|lane| lane.wants(notice)).collect();
        if wanting.is_empty() {
            return Vec::new();
        }
        let now = self.shared.means.clock.wall();
        let notice = Arc::new(redact::notice(notice));
        wanting
            .into_iter()
            .map(|lane| Delivery::new(&notice, lane.name(), now))
            .collect()
    }

    /// Takes charge of deliveries, new ones and those left over from before a restart. Never waits. One that is known
    /// by its id is ignored; one for a target that is no more is dead at once. Pass them in the order in which they were
    /// made: it is that of each incident. A full queue gives up its oldest delivery that is not about an end (`resolved`
    /// is always kept).
    pub fn deliver(&self, deliveries: Vec<Delivery>) {
        let now = self.shared.means.clock.now();
        for delivery in deliveries {
            let lane = match delivery.url.is_some() {
                true => self.adhoc(&delivery),
                false => self
                    .shared
                    .configured(&delivery.target)
                    .ok_or_else(|| "no alert target of this name is configured any more".to_owned()),
            };
            match lane {
                Ok(lane) => lane.take(delivery, now),
                Err(why) => {
                    tracing::error!(delivery = %delivery.id, error = %why, "an alert was given up");
                    self.shared.means.hook.tell(&[Settled {
                        id: delivery.id,
                        target: delivery.target,
                        at: now.wall,
                        fate: Fate::Dead { why },
                    }]);
                }
            }
        }
    }

    /// Queues a notice for every target that wants it, for whoever keeps no ledger. Never waits.
    pub fn tell(&self, notice: &Notice) {
        self.deliver(self.route(notice));
    }

    /// Incidents that are open since before a restart, each by its last notice: who has to be reminded of them is, and
    /// whoever was told of their beginning hears of their end. Nothing is told by this itself.
    pub fn resume(&self, open: &[Notice]) {
        let lanes = self.shared.lanes().configured.clone();
        let now = self.shared.means.clock.now();
        for notice in open {
            let notice = Arc::new(redact::notice(notice));
            lanes.iter().for_each(|lane| lane.resume(&notice, now));
        }
    }

    /// Dead letters from before a restart, to be seen in the status and sent again on demand.
    pub fn restore_dead(&self, letters: Vec<DeadLetter>) {
        for letter in letters {
            if let Some(lane) = self.shared.lane(&letter.delivery.target) {
                lane.lay(letter);
            }
        }
    }

    /// Queues the dead letters of a target again, and lets one that said it is gone try once more. What was queued is
    /// given back, to be kept again. `None` when there is no such target.
    pub fn retry_dead(&self, target: &str) -> Option<Vec<Delivery>> {
        self.shared.lane(target).map(|lane| lane.revive())
    }

    /// Other targets from now on; what is queued for a target that stays (same name) is kept.
    pub fn replace(&self, targets: Vec<Target>) {
        let gone = {
            let mut lanes = self.shared.lanes();
            let mut old = std::mem::take(&mut lanes.configured);
            for target in targets {
                let stays = old.iter().position(|lane| lane.name() == target.name);
                let lane = match stays {
                    Some(at) => {
                        let lane = old.swap_remove(at);
                        lane.retarget(target);
                        lane
                    }
                    None => self.shared.open(target, Guard::Any),
                };
                lanes.configured.push(lane);
            }
            old
        };
        for lane in gone {
            lane.abandon("its target is no longer configured");
        }
    }

    /// Other bounds on ad-hoc targets from now on.
    pub fn allow(&self, destinations: AllowedDestinations) {
        self.shared.lanes().destinations = destinations;
    }

    /// What became of each target's notices.
    pub fn status(&self) -> Vec<TargetStatus> {
        self.shared.all().iter().map(|lane| lane.status()).collect()
    }

    /// Tries to empty the queues within `limit`; `true` when they are. Pauses after failures are short from now on:
    /// there is no later for which to wait.
    pub async fn drain(&self, limit: Duration) -> bool {
        let lanes = self.shared.all();
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

    /// The lane of an ad-hoc target: the one there is, or a new one.
    fn adhoc(&self, delivery: &Delivery) -> Result<Arc<Lane>, String> {
        let url = delivery
            .url
            .as_ref()
            .map(|u| u.secret().expose())
            .unwrap_or_default();
        let mut lanes = self.shared.lanes();
        let destination = Destination::check(url, &lanes.destinations)?;
        let known = lanes.adhoc.iter().find(|l| l.name() == delivery.target);
        if let Some(lane) = known.filter(|l| l.guard() == destination.guard()) {
            return Ok(Arc::clone(lane));
        }
        if lanes.adhoc.len() >= ADHOC_MAX {
            let idle = lanes.adhoc.iter().position(|l| l.is_idle());
            let idle = idle.ok_or("notices for too many ad-hoc targets wait")?;
            lanes.adhoc.remove(idle).stop();
        }
        let lane = self
            .shared
            .open(adhoc_target(&delivery.target, &destination), destination.guard());
        lanes.adhoc.push(Arc::clone(&lane));
        Ok(lane)
    }
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Lane>> {
        let lanes = self.lanes();
        lanes.configured.iter().chain(&lanes.adhoc).cloned().collect()
    }

    fn configured(&self, name: &str) -> Option<Arc<Lane>> {
        self.lanes().configured.iter().find(|l| l.name() == name).cloned()
    }

    fn lane(&self, name: &str) -> Option<Arc<Lane>> {
        self.all().into_iter().find(|l| l.name() == name)
    }

    fn open(&self, target: Target, guard: Guard) -> Arc<Lane> {
        let lane = Arc::new(Lane::new(target, guard, self.means.clone()));
        drop(self.runtime.spawn(Arc::clone(&lane).run()));
        lane
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for lane in self.all() {
            lane.stop();
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("settled", &self.settled.is_some())
            .field("destinations", &self.destinations)
            .finish_non_exhaustive()
    }
}

/// What is at a URL that a request named: told from the host, so that a chat gets what it can show.
fn adhoc_target(name: &str, destination: &Destination) -> Target {
    let kind = adhoc_kind(destination);
    Target {
        name: name.to_owned(),
        url: destination.url().clone(),
        min_severity: Severity::Info,
        timeout: ADHOC_TIMEOUT,
        give_up_after: ADHOC_GIVE_UP,
        spacing: kind.spacing(),
        group: kind.is_chat().then_some(Grouping::DEFAULT),
        ca_files: Vec::new(),
        kind,
    }
}

fn adhoc_kind(destination: &Destination) -> TargetKind {
    let host = destination.host();
    let path = destination.url().expose();
    let ends = |end: &str| {
        host.strip_suffix(end)
            .is_some_and(|h| h.is_empty() || h.ends_with('.'))
    };
    if host == "hooks.slack.com" || host == "hooks.slack-gov.com" {
        TargetKind::Slack
    } else if ends("webhook.office.com")
        || ends("logic.azure.com")
        || ends("environment.api.powerplatform.com")
    {
        TargetKind::Teams
    } else if (ends("discord.com") || ends("discordapp.com")) && path.contains("/api/webhooks/") {
        TargetKind::Discord
    } else {
        TargetKind::Webhook {
            secret: None,
            headers: Vec::new(),
            format: WebhookFormat::Standard,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_adhoc_targets() {
        let allowed = AllowedDestinations::default();
        for (url, want) in [
            ("https://hooks.slack.com/services/a", "slack"),
            ("https://acme.webhook.office.com/webhookb2/x", "teams"),
            (
                "https://prod-1.westeurope.logic.azure.com:443/workflows/x",
                "teams",
            ),
            ("https://discord.com/api/webhooks/1/x", "discord"),
            ("https://discord.com/other", "webhook"),
            ("https://yourslack.webhook", "webhook"),
            ("https://evilhooks.slack.com.example/x", "webhook"),
            ("https://notdiscord.com/api/webhooks/1/x", "webhook"),
        ] {
            let destination = Destination::check(url, &allowed).unwrap();
            assert_eq!(adhoc_kind(&destination).name(), want, "{url}");
        }
    }
}
