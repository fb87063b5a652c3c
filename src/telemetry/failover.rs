//! What is counted of upstreams that others stand in for; its labels come from the configuration and the code.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Labels<const N: usize> = [(&'static str, String); N];

/// Counters and gauges of failover.
#[derive(Debug, Default)]
pub struct FailoverMetrics {
    failures: Family<Labels<2>, Counter>,
    failovers: Family<Labels<3>, Counter>,
    rerouted: Family<Labels<2>, Counter>,
    refused: Family<Labels<1>, Counter>,
    open: Family<Labels<1>, Gauge<u64, AtomicU64>>,
}

impl FailoverMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "fusebox_upstream_failures",
            "Attempts that failed at an upstream that others stand in for, by what was wrong",
            metrics.failures.clone(),
        );
        registry.register(
            "fusebox_failovers",
            "Requests sent to another upstream before anything reached the client",
            metrics.failovers.clone(),
        );
        registry.register(
            "fusebox_rerouted",
            "Requests sent to another upstream because a directive asked for it",
            metrics.rerouted.clone(),
        );
        registry.register(
            "fusebox_failovers_refused",
            "Failed requests that were not sent to another upstream, by why not",
            metrics.refused.clone(),
        );
        registry.register(
            "fusebox_breaker_state",
            "Whether an upstream is asked: 0 closed, 1 returning, 2 half open, 3 open",
            metrics.open.clone(),
        );
        metrics
    }

    /// An attempt failed.
    pub fn failed(&self, upstream: &str, why: &'static str) {
        let labels = [("upstream", upstream.to_owned()), ("why", why.to_owned())];
        self.failures.get_or_create(&labels).inc();
    }

    /// A request was sent to another upstream because the first one failed.
    pub fn failed_over(&self, from: &str, to: &str, why: &'static str) {
        let labels = [
            ("from", from.to_owned()),
            ("to", to.to_owned()),
            ("why", why.to_owned()),
        ];
        self.failovers.get_or_create(&labels).inc();
    }

    /// A request was sent to another upstream because a directive asked for it.
    pub fn rerouted(&self, from: &str, to: &str) {
        let labels = [("from", from.to_owned()), ("to", to.to_owned())];
        self.rerouted.get_or_create(&labels).inc();
    }

    /// A failed request was not sent to another upstream.
    pub fn refused(&self, why: &'static str) {
        self.refused.get_or_create(&[("why", why.to_owned())]).inc();
    }

    /// The breaker of an upstream stands so.
    pub fn breaker(&self, upstream: &str, state: u64) {
        self.open
            .get_or_create(&[("upstream", upstream.to_owned())])
            .set(state);
    }
}
