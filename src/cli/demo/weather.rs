//! How the simulated provider is at the moment: well, slow, or failing.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What a demo does to a provider while it runs; well at first.
#[derive(Debug, Default)]
pub(super) struct Weather {
    failing: AtomicBool,
    /// Percent of time added to each answer.
    slower: AtomicU32,
}

impl Weather {
    /// Answers 503 to everything from now on, or no longer.
    pub(super) fn fail(&self, on: bool) {
        self.failing.store(on, Ordering::Relaxed);
    }

    /// Takes `factor` times as long for answers that begin from now on; 1 is as usual.
    pub(super) fn slow(&self, factor: u32) {
        let slower = factor.clamp(1, 1_000).saturating_sub(1).saturating_mul(100);
        self.slower.store(slower, Ordering::Relaxed);
    }

    /// Whether it fails.
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// How many times as long answers take.
    pub(super) fn factor(&self) -> f64 {
        1.0 + f64::from(self.slower.load(Ordering::Relaxed)) / 100.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_changes_and_is_well_again() {
        let weather = Weather::default();
        assert!(!weather.is_failing() && (weather.factor() - 1.0).abs() < 1e-9);
        weather.fail(true);
        weather.slow(12);
        assert!(weather.is_failing() && (weather.factor() - 12.0).abs() < 1e-9);
        weather.fail(false);
        weather.slow(0);
        assert!(!weather.is_failing() && (weather.factor() - 1.0).abs() < 1e-9);
    }
}
