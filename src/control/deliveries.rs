//! Deliveries that are under way: what the ledger holds of each follows what becomes of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::keeper;
use crate::alert::{Delivery, Fate, Settled, SettledHook};
use crate::store::{Ledger, Record};

/// Deliveries that are under way, by their ids.
#[derive(Debug)]
pub struct Deliveries {
    ledger: Ledger,
    under_way: Mutex<HashMap<String, Delivery>>,
}

impl Deliveries {
    /// None yet.
    pub fn new(ledger: Ledger) -> Arc<Self> {
        Arc::new(Self {
            ledger,
            under_way: Mutex::default(),
        })
    }

    /// What has to be told what became of each.
    pub fn hook(self: &Arc<Self>) -> SettledHook {
        let deliveries = Arc::clone(self);
        Arc::new(move |settled| deliveries.settled(settled))
    }

    /// Takes note of one that is to be made; gives back its row.
    pub(super) fn begin(&self, delivery: &Delivery) -> Record {
        self.under_way().insert(delivery.id.clone(), delivery.clone());
        keeper::delivery(delivery)
    }

    /// Takes note of one that is in the ledger already.
    pub(super) fn know(&self, delivery: &Delivery) {
        self.under_way().insert(delivery.id.clone(), delivery.clone());
    }

    fn settled(&self, settled: &Settled) {
        let row = {
            let mut under_way = self.under_way();
            match (&settled.fate, under_way.get_mut(&settled.id)) {
                (_, None) => return,
                (Fate::Failed { attempts, .. }, Some(delivery)) => {
                    delivery.attempts = *attempts;
                    Some(keeper::settled(delivery, settled))
                }
                (Fate::Delivered | Fate::Dead { .. }, Some(_)) => under_way
                    .remove(&settled.id)
                    .map(|delivery| keeper::settled(&delivery, settled)),
            }
        };
        // Nobody waits for it: a restart before it is durable tells once more, and receivers know the id.
        drop(row.map(|row| self.ledger.record(vec![row])));
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<String, Delivery>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
