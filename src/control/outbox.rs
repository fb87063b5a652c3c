//! Where requests leave what they have to tell the engine: never waits, and counts what found no room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::telemetry::metrics::Metrics;
use crate::types::observation::Report;

/// Leaves reports in the queue of the driver.
#[derive(Debug)]
pub struct Outbox {
    queue: Sender<Report>,
    dropped: Arc<Dropped>,
    metrics: Arc<Metrics>,
}

/// What the queue had no room for, since the start.
#[derive(Debug, Default)]
pub struct Dropped {
    observations: AtomicU64,
    progress: AtomicU64,
}

impl Outbox {
    /// An outbox before `queue`, and its count of what was dropped.
    pub fn new(queue: Sender<Report>, metrics: Arc<Metrics>) -> (Self, Arc<Dropped>) {
        let dropped = Arc::new(Dropped::default());
        let outbox = Self {
            queue,
            dropped: Arc::clone(&dropped),
            metrics,
        };
        (outbox, dropped)
    }

    /// Leaves a report, or drops it when the queue is full.
    pub fn leave(&self, report: Report) {
        // Without a driver fusebox is at its end, and nobody counts any more.
        match self.queue.try_send(report) {
            Ok(()) | Err(TrySendError::Closed(_)) => {}
            Err(TrySendError::Full(Report::Ended(_))) => {
                self.dropped.observations.fetch_add(1, Ordering::Relaxed);
                self.metrics.observation_dropped();
            }
            // Harmless: the next one says more, and the end says all.
            Err(TrySendError::Full(Report::Running(_))) => {
                self.dropped.progress.fetch_add(1, Ordering::Relaxed);
                self.metrics.progress_dropped();
            }
        }
    }
}

impl Dropped {
    /// Exchanges that ended and that the engine did not hear of.
    pub fn observations(&self) -> u64 {
        self.observations.load(Ordering::Relaxed)
    }

    /// Reports of exchanges under way; each was to be replaced by a later one.
    pub fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::observation::Observation;

    fn observation() -> Box<Observation> {
        let value = serde_json::json!({
            "request_id": "r", "time": "2026-01-01T00:00:00Z", "agent": "a", "agent_source": "header",
            "agent_version": null, "execution": "e", "execution_source": "exchange", "upstream": "u",
            "provider": "openai", "api": "openai.chat", "model_requested": null, "model_served": null,
            "status": 200, "stream": false, "outcome": "complete", "usage_source": "none",
            "finish_reason": null, "error_type": null, "error_code": null, "tool_calls": [],
            "output_chars": null, "ttfb_ms": null, "ttft_ms": null, "duration_ms": 1.0, "overhead_us": 1,
            "cost_usd": null
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_lost_report_of_progress_is_no_lost_observation() {
        let (queue, told) = tokio::sync::mpsc::channel(1);
        let metrics = Arc::new(Metrics::new(10));
        let (outbox, dropped) = Outbox::new(queue, Arc::clone(&metrics));
        outbox.leave(Report::Ended(observation()));
        outbox.leave(Report::Running(observation()));
        outbox.leave(Report::Running(observation()));
        assert_eq!((dropped.observations(), dropped.progress()), (0, 2));
        outbox.leave(Report::Ended(observation()));
        assert_eq!((dropped.observations(), dropped.progress()), (1, 2));
        let text = metrics.encode();
        for line in [
            "fusebox_observations_dropped_total 1\n",
            "fusebox_progress_reports_dropped_total 2\n",
        ] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
        drop(told);
        outbox.leave(Report::Ended(observation()));
        assert_eq!(dropped.observations(), 1);
    }
}
