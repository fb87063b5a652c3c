//! How often something happened that should not: since the start, and in the last five minutes.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::time::{Mono, Now, Wall};

/// How long something counts as recent.
const RECENT: Duration = Duration::from_secs(300);

/// Times this near to each other are kept as one, so that at most 31 are kept.
const GRAIN: Duration = Duration::from_secs(10);

/// Follows a count that only grows.
#[derive(Debug, Default)]
pub(super) struct Recent {
    total: u64,
    last: Wall,
    /// When, and how many, oldest first.
    parts: VecDeque<(Mono, u64)>,
}

impl Recent {
    /// The count is `total` at this moment.
    pub(super) fn update(&mut self, total: u64, now: Now) {
        while self
            .parts
            .front()
            .is_some_and(|(at, _)| now.mono.since(*at) > RECENT)
        {
            self.parts.pop_front();
        }
        let more = total.saturating_sub(self.total);
        if more == 0 {
            return;
        }
        self.total = total;
        self.last = now.wall;
        match self.parts.back_mut() {
            Some((at, count)) if now.mono.since(*at) < GRAIN => *count = count.saturating_add(more),
            _ => self.parts.push_back((now.mono, more)),
        }
    }

    /// Whether it happened in the last five minutes (ten seconds more or less).
    pub(super) fn is_recent(&self) -> bool {
        !self.parts.is_empty()
    }

    /// `12 observations were dropped in the last 5 min (last at …), 40 since the start`; `None` when it did not happen
    /// lately. `what` goes on from the number.
    pub(super) fn tell(&self, what: &str) -> Option<String> {
        let lately: u64 = self
            .parts
            .iter()
            .fold(0, |sum, (_, count)| sum.saturating_add(*count));
        self.is_recent().then(|| {
            format!(
                "{lately} {what} in the last 5 min (last at {}), {} since the start",
                self.last, self.total
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Now {
        Now {
            mono: Mono::from_millis(second * 1000),
            wall: Wall::from_unix_millis(1_767_225_600_000 + second as i64 * 1000),
        }
    }

    #[test]
    fn it_is_told_for_five_minutes_and_then_no_more() {
        let mut recent = Recent::default();
        recent.update(0, at(1));
        assert_eq!(recent.tell("were lost"), None);
        recent.update(3, at(10));
        recent.update(3, at(100));
        recent.update(5, at(200));
        let told = recent.tell("were lost").unwrap();
        assert_eq!(
            told,
            "5 were lost in the last 5 min (last at 2026-01-01T00:03:20.000Z), 5 since the start"
        );
        recent.update(5, at(311));
        let told = recent.tell("were lost").unwrap();
        assert!(
            told.starts_with("2 were lost") && told.ends_with("5 since the start"),
            "{told}"
        );
        recent.update(5, at(501));
        assert_eq!(recent.tell("were lost"), None);
        recent.update(6, at(502));
        assert!(recent.tell("were lost").unwrap().starts_with("1 were lost"));
    }

    #[test]
    fn few_parts_are_kept() {
        let mut recent = Recent::default();
        for second in 0..10_000 {
            recent.update(second, at(second));
            assert!(recent.parts.len() <= 31, "{}", recent.parts.len());
        }
        let told = recent.tell("").unwrap();
        let lately: u64 = told.split(' ').next().unwrap().parse().unwrap();
        assert!((290..=310).contains(&lately), "{told}");
    }
}
