//! What the ledger counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type Label = [(&'static str, &'static str); 1];
type Level = Gauge<u64, AtomicU64>;

/// Counters and gauges of the ledger.
#[derive(Debug, Default)]
pub struct LedgerMetrics {
    transactions: Family<Label, Counter>,
    rows: Family<Label, Counter>,
    lost: Family<Label, Counter>,
    queued: Family<Label, Level>,
    bytes: Level,
    degraded: Level,
}

/// The two ways into the ledger, as label values.
pub const OBSERVATIONS: &str = "observations";
/// See [`OBSERVATIONS`].
pub const RECORDS: &str = "records";

impl LedgerMetrics {
    pub(super) fn registered(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for result in ["ok", "failed"] {
            drop(metrics.transactions.get_or_create(&[("result", result)]));
        }
        for kind in [OBSERVATIONS, RECORDS] {
            drop(metrics.rows.get_or_create(&[("kind", kind)]));
            drop(metrics.lost.get_or_create(&[("kind", kind)]));
            drop(metrics.queued.get_or_create(&[("kind", kind)]));
        }
        registry.register(
            "fusebox_ledger_transactions",
            "Transactions of the ledger by how they ended; rows divided by these is the size of a batch",
            metrics.transactions.clone(),
        );
        registry.register(
            "fusebox_ledger_rows",
            "Rows written to the ledger",
            metrics.rows.clone(),
        );
        registry.register(
            "fusebox_ledger_lost",
            "What the ledger did not take because its queue was full",
            metrics.lost.clone(),
        );
        registry.register(
            "fusebox_ledger_queued",
            "What waits to be written to the ledger",
            metrics.queued.clone(),
        );
        registry.register(
            "fusebox_ledger_file_bytes",
            "Size of the ledger's file",
            metrics.bytes.clone(),
        );
        registry.register(
            "fusebox_ledger_degraded",
            "1 while the ledger cannot write, else 0",
            metrics.degraded.clone(),
        );
        metrics
    }

    /// A transaction ended well or badly.
    pub fn transaction(&self, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.transactions.get_or_create(&[("result", result)]).inc();
    }

    /// So many rows of a kind are durable.
    pub fn written(&self, kind: &'static str, count: u64) {
        self.rows.get_or_create(&[("kind", kind)]).inc_by(count);
    }

    /// So many of a kind were not taken.
    pub fn lost(&self, kind: &'static str, count: u64) {
        self.lost.get_or_create(&[("kind", kind)]).inc_by(count);
    }

    /// So many of a kind wait.
    pub fn queued(&self, kind: &'static str, count: usize) {
        self.queued.get_or_create(&[("kind", kind)]).set(count as u64);
    }

    /// The size of the file.
    pub fn file_bytes(&self, bytes: u64) {
        self.bytes.set(bytes);
    }

    /// Whether it cannot write.
    pub fn degraded(&self, degraded: bool) {
        self.degraded.set(degraded.into());
    }
}
