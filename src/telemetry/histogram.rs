//! A histogram of times that is recorded with two additions and without a lock.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// Counts times in microseconds by fixed upper bounds.
///
/// The one of `prometheus-client` takes a lock for each value, which all workers would pass from one to the other.
#[derive(Debug)]
pub(super) struct Histogram<const N: usize> {
    bounds: &'static [u64; N],
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    sum: AtomicU64,
}

/// What a histogram holds at one moment; can be added up.
#[derive(Debug, Default)]
pub(super) struct Sums {
    /// Upper bound in seconds, and how many are at most that and more than the bound before.
    buckets: Vec<(f64, u64)>,
    micros: u64,
}

impl<const N: usize> Histogram<N> {
    /// `bounds` are in microseconds and ascend.
    pub(super) fn new(bounds: &'static [u64; N]) -> Self {
        Self {
            bounds,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            beyond: AtomicU64::new(0),
            sum: AtomicU64::new(0),
        }
    }

    pub(super) fn observe(&self, micros: u64) {
        let at = self.bounds.iter().position(|bound| micros <= *bound);
        let count = at.and_then(|at| self.counts.get(at)).unwrap_or(&self.beyond);
        count.fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(micros, Ordering::Relaxed);
    }

    pub(super) fn sums(&self) -> Sums {
        let within = self.bounds.iter().zip(&self.counts);
        let mut buckets: Vec<_> = within
            .map(|(bound, count)| (*bound as f64 / 1e6, count.load(Ordering::Relaxed)))
            .collect();
        buckets.push((f64::INFINITY, self.beyond.load(Ordering::Relaxed)));
        Sums {
            buckets,
            micros: self.sum.load(Ordering::Relaxed),
        }
    }
}

impl Sums {
    /// How many values there were.
    pub(super) fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }

    /// Adds those of a histogram with the same bounds.
    pub(super) fn add(&mut self, other: &Self) {
        if self.buckets.is_empty() {
            self.buckets.clone_from(&other.buckets);
        } else {
            for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
                mine.1 += theirs.1;
            }
        }
        self.micros = self.micros.saturating_add(other.micros);
    }

    /// Writes it out.
    pub(super) fn encode(&self, metric: &mut MetricEncoder<'_>) -> fmt::Result {
        let seconds = self.micros as f64 / 1e6;
        metric.encode_histogram::<NoLabelSet>(seconds, self.count(), &self.buckets, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_upper_bound() {
        let h = Histogram::new(&[10, 100]);
        for v in [0, 10, 11, 100, 101, 5000] {
            h.observe(v);
        }
        let mut sums = h.sums();
        assert_eq!(sums.buckets, [(1e-5, 2), (1e-4, 2), (f64::INFINITY, 2)]);
        assert_eq!((sums.count(), sums.micros), (6, 5222));
        sums.add(&h.sums());
        assert_eq!((sums.count(), sums.micros), (12, 10444));
        let mut empty = Sums::default();
        empty.add(&sums);
        assert_eq!(empty.count(), 12);
    }
}
