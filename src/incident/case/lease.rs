//! What an incident has ordered: leases, each with what is needed to renew, relax and restore it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::directive::{Directive, Order, Subject};
use crate::types::ids::{IncidentId, LeaseId, RuleName};
use crate::types::time::{Mono, Now};

/// A lease is renewed when half of it has passed, and no later than this before its end.
const RENEW_BEFORE: Duration = Duration::from_secs(3);

/// One lease.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Lease {
    /// The place of its step in the plan.
    pub(super) step: usize,
    /// What was ordered; the directive may be relaxed.
    pub(super) order: Order,
    pub(super) directive: Arc<Directive>,
    /// Whether it is renewed while the incident is open.
    pub(super) renewed: bool,
    /// Lifted for a while otherwise.
    pub(super) in_force: bool,
    length: Duration,
}

/// Where a lease comes from.
pub(super) struct Giver<'a> {
    pub(super) lease: LeaseId,
    pub(super) incident: &'a IncidentId,
    pub(super) rule: &'a RuleName,
    pub(super) step: usize,
}

impl Lease {
    pub(super) fn give(
        giver: Giver<'_>,
        subject: Subject,
        order: Order,
        length: Duration,
        renewed: bool,
        now: Now,
    ) -> Self {
        let end = now.after(length);
        Self {
            step: giver.step,
            directive: Arc::new(Directive {
                lease: giver.lease,
                incident: giver.incident.clone(),
                rule: giver.rule.clone(),
                subject,
                order: order.clone(),
                since: now.wall,
                expires: end.wall,
                until: end.mono,
            }),
            order,
            renewed,
            in_force: true,
            length,
        }
    }

    /// In force as `order`, for its length from `now` on where it is renewed, else for what is left of it.
    pub(super) fn hold(&mut self, order: Order, now: Now) {
        self.in_force = true;
        let mut directive = Directive::clone(&self.directive);
        directive.order = order;
        if self.renewed {
            let end = now.after(self.length);
            (directive.until, directive.expires) = (end.mono, end.wall);
        }
        self.directive = Arc::new(directive);
    }

    /// Whether it has to be renewed now.
    pub(super) fn is_due(&self, now: Mono) -> bool {
        self.renewed && self.in_force && self.directive.until.since(now) < (self.length / 2).max(RENEW_BEFORE)
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self, now: Mono) -> bool {
        !self.renewed && self.directive.until <= now
    }

    /// Goes on in another process, which has another monotonic time.
    pub(super) fn rebase(&mut self, now: Now) {
        let end = Now {
            mono: Mono::ZERO,
            wall: self.directive.expires,
        };
        let mut directive = Directive::clone(&self.directive);
        directive.until = end.rebased(now).mono;
        self.directive = Arc::new(directive);
    }
}
