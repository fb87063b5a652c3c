//! Whether the ledger writes, and since when not.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::clock::Clock;
use crate::telemetry::ledger::LedgerMetrics;
use crate::types::time::Wall;

/// Whether the ledger writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ok,
    /// It cannot: records are kept in memory and tried again, at least every two seconds.
    Degraded {
        /// Since when.
        since: Wall,
        /// Why, for a person.
        why: Arc<str>,
        /// How many records are kept.
        kept: usize,
    },
}

/// What the writer tells and everybody may read.
#[derive(Debug)]
pub(super) struct Status {
    health: Mutex<Health>,
    renewals: AtomicU64,
    clock: Clock,
}

impl Status {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            health: Mutex::new(Health::Ok),
            renewals: AtomicU64::new(0),
            clock,
        }
    }

    pub(super) fn health(&self) -> Health {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often the file was replaced while running.
    pub(super) fn renewals(&self) -> u64 {
        self.renewals.load(Ordering::Acquire)
    }

    pub(super) fn renewed(&self) {
        self.renewals.fetch_add(1, Ordering::AcqRel);
    }

    /// It cannot write: said once in the log, kept up to date here.
    pub(super) fn degraded(&self, why: &Arc<str>, kept: usize, metrics: &LedgerMetrics) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let since = match &*health {
            Health::Degraded { since, why: old, .. } => {
                if old != why {
                    tracing::warn!(why = &**why, "the ledger still cannot write");
                }
                *since
            }
            Health::Ok => {
                tracing::error!(
                    why = &**why,
                    "the ledger cannot write; traffic goes on, records are kept in memory and tried again"
                );
                self.clock.wall()
            }
        };
        metrics.degraded(true);
        *health = Health::Degraded {
            since,
            why: Arc::clone(why),
            kept,
        };
    }

    /// It writes (again).
    pub(super) fn fine(&self, metrics: &LedgerMetrics) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if *health != Health::Ok {
            tracing::info!("the ledger writes again");
            metrics.degraded(false);
            *health = Health::Ok;
        }
    }
}
