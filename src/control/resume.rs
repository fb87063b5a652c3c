//! The start after an end: the engine goes on with what the ledger holds.

use std::collections::HashMap;
use std::sync::Arc;

use super::deliveries::Deliveries;
use super::keeper::{self, Keeper, Recovered};
use crate::alert::Alerts;
use crate::clock::Clock;
use crate::enforce::snapshot::Publisher;
use crate::enforce::versions::KnownVersion;
use crate::incident::effect::Effect;
use crate::incident::engine::Engine;
use crate::incident::input::Input;
use crate::store::Ledger;
use crate::types::secret::Secret;
use crate::types::time::{Mono, Now};

/// What the driver needs to go on.
#[derive(Debug)]
pub struct Memory {
    pub(super) ledger: Ledger,
    pub(super) deliveries: Arc<Deliveries>,
    pub(super) keeper: Keeper,
    /// Where ad-hoc alert targets are, by name.
    pub(super) adhoc: HashMap<String, String>,
    /// What versions of agents are made of; for the requests' side.
    pub known: Vec<KnownVersion>,
    /// What was decided while going on.
    pub(super) effects: Vec<Effect>,
    /// Signs links; the same over restarts, so that links stay good.
    pub link_key: Secret,
}

/// Lets `engine` go on with what `ledger` holds: directives are in force again when this returns.
///
/// # Errors
/// When the ledger cannot be read, for a person.
pub async fn resume(
    engine: &mut Engine,
    ledger: Ledger,
    deliveries: Arc<Deliveries>,
    publisher: &Publisher,
    clock: &Clock,
    fresh_key: impl FnOnce() -> String,
) -> Result<(Memory, Undelivered), String> {
    let now = clock.now();
    let (keeper, recovered) = {
        let ledger = ledger.clone();
        let read = tokio::task::spawn_blocking(move || {
            let mut keeper = Keeper::default();
            let recovered = keeper.recover(&ledger, now.wall)?;
            Ok::<_, crate::store::LedgerError>((keeper, recovered))
        });
        read.await
            .map_err(|e| format!("the ledger could not be read: {e}"))?
            .map_err(|e| format!("the ledger could not be read: {e}"))?
    };
    let Recovered {
        remains,
        undelivered,
        adhoc,
        known,
        link_key,
        past,
        mut unreadable,
    } = recovered;
    let mut effects = Vec::new();
    let seen = past.len();
    for mut observation in past {
        let at = Now {
            mono: Mono::ZERO,
            wall: observation.time,
        }
        .rebased(now);
        observation.ended = at.mono;
        engine.step(at, Input::Past(Box::new(observation)), &mut effects);
    }
    effects.clear();
    let open = remains.live.len();
    unreadable.extend(engine.restore(remains, now, &mut effects));
    for why in &unreadable {
        tracing::error!(error = %why, "a row of the ledger could not be understood and was left out");
    }
    for effect in &effects {
        if let Effect::Publish(directives) = effect {
            publisher.publish_directives(Arc::clone(directives));
        }
    }
    undelivered.queued.iter().for_each(|d| deliveries.know(d));
    tracing::info!(
        open_incidents = open,
        observations = seen,
        undelivered = undelivered.queued.len(),
        "went on from the ledger"
    );
    let link_key = match link_key {
        Some(key) => key,
        None => {
            let key = fresh_key();
            // Waited for: a link that a restart makes void would be worse than a slow start.
            ledger.record(vec![keeper::link_key(&key)]).await.ok();
            key
        }
    };
    let memory = Memory {
        ledger,
        deliveries,
        keeper,
        adhoc,
        known,
        effects,
        link_key: Secret::new(link_key),
    };
    Ok((memory, undelivered))
}

impl Undelivered {
    /// Deliveries and reminders from before the restart go on.
    pub fn tell(self, alerts: &Alerts) {
        alerts.restore_dead(self.dead);
        alerts.resume(&self.last_notices);
        alerts.deliver(self.queued);
    }
}

/// What alert targets have not heard yet.
#[derive(Debug, Default)]
pub struct Undelivered {
    pub(super) queued: Vec<crate::alert::Delivery>,
    pub(super) dead: Vec<crate::alert::DeadLetter>,
    pub(super) last_notices: Vec<crate::types::notice::Notice>,
}
