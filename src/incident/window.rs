//! A sliding window of one subject: a ring of buckets with totals that are kept up as samples come and go.
//!
//! A window is 60 buckets wide. A sample counts for at most the window and for at least the window less one bucket:
//! it goes out when its bucket does. Only buckets that hold something take room, so a long pause costs nothing and
//! clears all. Sums are of whole numbers, so what is added is taken off again exactly.

use std::collections::VecDeque;
use std::time::Duration;

use super::measure::Reading;
use super::sketch::{self, Count};
use crate::types::time::Mono;

/// Buckets in a window.
pub(crate) const BUCKETS: u64 = 60;

/// How time is cut into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    width: u64,
}

impl Span {
    /// Buckets for a window of this length (at least 60 ms).
    pub(crate) fn new(window: Duration) -> Self {
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            width: (nanos / BUCKETS).max(1_000_000),
        }
    }

    /// The number of the bucket that is filled at `now`.
    #[inline]
    pub(crate) fn tick(self, now: Mono) -> u64 {
        now.as_nanos() / self.width
    }

    /// How wide a bucket is.
    pub(crate) fn width(self) -> Duration {
        Duration::from_nanos(self.width)
    }

    /// Seconds that the buckets of a window cover at `now`: the last one is not full yet.
    #[inline]
    pub(crate) fn covered_seconds(self, now: Mono) -> f64 {
        let last = now.as_nanos() % self.width;
        ((BUCKETS - 1).saturating_mul(self.width).saturating_add(last)) as f64 / 1e9
    }
}

/// What is counted of every value beside the sums, for statistics that depend on the order of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Values above this are counted.
    pub(crate) above: u64,
    /// Values below this are counted.
    pub(crate) below: u64,
}

/// Sums over a window. Sums wrap around where absurd values add up to more than 64 bits hold, so that what is taken
/// off leaves exactly what was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    /// Values: exchanges, or executions where the metric is of executions.
    pub(crate) count: u64,
    /// Exchanges behind them.
    pub(crate) samples: u64,
    /// Values above the upper mark.
    pub(crate) over: u64,
    /// Values below the lower mark.
    pub(crate) under: u64,
    /// Sum of values.
    pub(crate) sum: u64,
    /// Sum of wholes.
    pub(crate) whole: u64,
}

/// The window. What every sample touches lies together; the rest is touched when a bucket is full or too old.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    totals: Totals,
    /// When the oldest bucket goes; never, when the window is empty.
    expires: u64,
    /// The bucket that is filled now; there is none when the window is empty.
    current: Bucket,
    /// The buckets before it, oldest first.
    older: VecDeque<Bucket>,
    /// Bins of the values, one bucket's after the other's; each bucket knows how many are its own.
    points: VecDeque<Count>,
    /// When the current bucket has more points than this, equal bins are put together.
    crowded: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    tick: u64,
    sum: u64,
    whole: u64,
    count: u32,
    samples: u32,
    over: u32,
    under: u32,
    points: u32,
}

const CROWD: u32 = 64;
const NEVER: u64 = Window::NEVER;

impl Default for Window {
    fn default() -> Self {
        Self {
            totals: Totals::default(),
            expires: NEVER,
            current: Bucket::default(),
            older: VecDeque::new(),
            points: VecDeque::new(),
            crowded: CROWD,
        }
    }
}

impl Window {
    /// When an empty window loses something.
    pub(crate) const NEVER: u64 = u64::MAX;

    /// The tick at which it loses something next, as of the last roll; what is added later does not bring it forward.
    pub(crate) fn expires(&self) -> u64 {
        self.expires
    }

    /// Lets go of what is too old at `tick`.
    #[inline]
    pub(crate) fn roll(&mut self, tick: u64) {
        if self.expires <= tick {
            self.expire(tick);
        }
    }

    /// Adds a value at `tick`, which is not before any earlier one; the window has been rolled to it.
    #[inline]
    pub(crate) fn add(&mut self, tick: u64, reading: Reading, samples: u32, marks: Option<Marks>) {
        if self.current.tick < tick || self.is_empty() {
            self.turn(tick);
        }
        let bucket = &mut self.current;
        let before = *bucket;
        bucket.count = bucket.count.saturating_add(1);
        bucket.samples = bucket.samples.saturating_add(samples);
        bucket.sum = bucket.sum.wrapping_add(reading.value);
        bucket.whole = bucket.whole.wrapping_add(reading.whole);
        if let Some(marks) = marks {
            bucket.over = bucket.over.saturating_add(u32::from(reading.value > marks.above));
            bucket.under = bucket
                .under
                .saturating_add(u32::from(reading.value < marks.below));
            bucket.points += 1;
            self.points.push_back(Count {
                bin: sketch::bin(reading.value),
                count: 1,
            });
        }
        self.totals.change(&before, bucket);
        if bucket.points > self.crowded {
            self.thin();
        }
    }

    /// Takes off a value that was added at `tick`; nothing happens when its bucket is gone.
    #[inline]
    pub(crate) fn remove(&mut self, tick: u64, reading: Reading, samples: u32, marks: Option<Marks>) {
        if self.is_empty() {
            return;
        }
        // What is replaced was mostly added a moment ago.
        let at = if self.current.tick == tick {
            None
        } else {
            match self.find(tick) {
                Some(at) => Some(at),
                None => return,
            }
        };
        if marks.is_some() {
            self.remove_point(at, sketch::bin(reading.value));
        }
        let bucket = match at {
            None => &mut self.current,
            Some(at) => match self.older.get_mut(at) {
                Some(bucket) => bucket,
                None => return,
            },
        };
        let before = *bucket;
        bucket.count = bucket.count.saturating_sub(1);
        bucket.samples = bucket.samples.saturating_sub(samples);
        bucket.sum = bucket.sum.wrapping_sub(reading.value);
        bucket.whole = bucket.whole.wrapping_sub(reading.whole);
        if let Some(marks) = marks {
            bucket.over = bucket.over.saturating_sub(u32::from(reading.value > marks.above));
            bucket.under = bucket
                .under
                .saturating_sub(u32::from(reading.value < marks.below));
        }
        self.totals.change(&before, bucket);
    }

    /// Whether nothing is in it, as of the last roll.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.expires == NEVER
    }

    /// The sums, as of the last roll.
    #[inline]
    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The sums at `tick`, without letting go of anything.
    pub(crate) fn totals_at(&self, tick: u64) -> Totals {
        let mut totals = self.totals;
        for old in self.old(tick) {
            totals.change(old, &Bucket::default());
        }
        totals
    }

    /// The value of the `rank`-th smallest (from 1) at `tick`, in steps, within 0.4 %.
    pub(crate) fn at_rank(&self, tick: u64, rank: u64) -> Option<f64> {
        let gone: usize = self.old(tick).map(|b| b.points as usize).sum();
        let mut counts: Vec<Count> = self
            .points
            .range(gone.min(self.points.len())..)
            .copied()
            .collect();
        let left = sketch::merge(&mut counts);
        counts.truncate(left);
        sketch::at_rank(&counts, rank)
    }

    /// The sums at `tick` of what was added after bucket `after`.
    pub(crate) fn totals_since(&self, tick: u64, after: u64) -> Totals {
        let mut totals = Totals::default();
        for bucket in self.since(tick, after) {
            totals.change(&Bucket::default(), bucket);
        }
        totals
    }

    /// The value of the `rank`-th smallest (from 1) at `tick` of what was added after bucket `after`, in steps.
    pub(crate) fn at_rank_since(&self, tick: u64, after: u64, rank: u64) -> Option<f64> {
        let own: usize = self.since(tick, after).map(|b| b.points as usize).sum();
        let from = self.points.len().saturating_sub(own);
        let mut counts: Vec<Count> = self.points.range(from..).copied().collect();
        let left = sketch::merge(&mut counts);
        counts.truncate(left);
        sketch::at_rank(&counts, rank)
    }

    /// Buckets after `after` that are not too old at `tick`; they are the last ones.
    fn since(&self, tick: u64, after: u64) -> impl Iterator<Item = &Bucket> {
        self.older
            .iter()
            .chain((!self.is_empty()).then_some(&self.current))
            .filter(move |b| b.tick > after && b.tick.saturating_add(BUCKETS) > tick)
    }

    /// Counts again what lies beyond the marks, which have moved; values are then known to 0.4 % only.
    pub(crate) fn remark(&mut self, marks: Marks) {
        let mut points = self.points.iter();
        self.totals.over = 0;
        self.totals.under = 0;
        for bucket in self.older.iter_mut().chain([&mut self.current]) {
            bucket.over = 0;
            bucket.under = 0;
            for point in points.by_ref().take(bucket.points as usize) {
                let value = sketch::middle(point.bin);
                if value > marks.above as f64 {
                    bucket.over = bucket.over.saturating_add(point.count);
                }
                if value < marks.below as f64 {
                    bucket.under = bucket.under.saturating_add(point.count);
                }
            }
            self.totals.over += u64::from(bucket.over);
            self.totals.under += u64::from(bucket.under);
        }
    }

    #[cold]
    fn expire(&mut self, tick: u64) {
        let mut points = 0;
        while let Some(front) = self.older.front() {
            if front.tick.saturating_add(BUCKETS) > tick {
                break;
            }
            points += front.points as usize;
            self.totals.change(front, &Bucket::default());
            self.older.pop_front();
        }
        if self.older.is_empty() && self.current.tick.saturating_add(BUCKETS) <= tick {
            let capacity = (self.older.capacity(), self.points.capacity());
            *self = Self::default();
            // A subject that goes on keeps its room, unless it was a lot.
            self.older.reserve(capacity.0.min(8));
            self.points.reserve(capacity.1.min(8));
            return;
        }
        self.points.drain(..points.min(self.points.len()));
        let oldest = self.older.front().unwrap_or(&self.current);
        self.expires = oldest.tick.saturating_add(BUCKETS);
    }

    /// Begins a new bucket.
    #[cold]
    fn turn(&mut self, tick: u64) {
        if self.is_empty() {
            self.expires = tick.saturating_add(BUCKETS).min(NEVER - 1);
        } else {
            self.older.push_back(self.current);
        }
        self.crowded = CROWD;
        self.current = Bucket {
            tick,
            ..Bucket::default()
        };
    }

    fn find(&self, tick: u64) -> Option<usize> {
        self.older.binary_search_by_key(&tick, |b| b.tick).ok()
    }

    fn old(&self, tick: u64) -> impl Iterator<Item = &Bucket> {
        self.older
            .iter()
            .chain((!self.is_empty()).then_some(&self.current))
            .take_while(move |b| b.tick.saturating_add(BUCKETS) <= tick)
    }

    /// Puts equal bins of the current bucket together.
    #[cold]
    fn thin(&mut self) {
        let start = self.points.len().saturating_sub(self.current.points as usize);
        let all = self.points.make_contiguous();
        let left = all.get_mut(start..).map_or(0, sketch::merge);
        self.points.truncate(start + left);
        self.current.points = u32::try_from(left).unwrap_or(u32::MAX);
        self.crowded = self.current.points.saturating_mul(2).max(CROWD);
    }

    /// Takes a point off the bucket at a place among the older ones, or off the current one.
    fn remove_point(&mut self, bucket: Option<usize>, bin: u16) {
        let before = bucket.unwrap_or(self.older.len());
        let start: usize = self.older.iter().take(before).map(|b| b.points as usize).sum();
        let own = bucket.map_or(Some(&self.current), |at| self.older.get(at));
        let len = own.map_or(0, |b| b.points as usize);
        let mut points = self.points.iter_mut().skip(start).take(len);
        if let Some(point) = points.find(|p| p.bin == bin && p.count > 0) {
            point.count -= 1;
        }
    }
}

impl Totals {
    #[inline]
    fn change(&mut self, before: &Bucket, after: &Bucket) {
        let add =
            |sum: &mut u64, before: u64, after: u64| *sum = sum.wrapping_add(after.wrapping_sub(before));
        add(&mut self.count, before.count.into(), after.count.into());
        add(&mut self.samples, before.samples.into(), after.samples.into());
        add(&mut self.over, before.over.into(), after.over.into());
        add(&mut self.under, before.under.into(), after.under.into());
        add(&mut self.sum, before.sum, after.sum);
        add(&mut self.whole, before.whole, after.whole);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::incident::measure::LARGEST;

    const MARKS: Marks = Marks {
        above: 1000,
        below: 10,
    };

    fn one(value: u64) -> Reading {
        Reading { value, whole: 1 }
    }

    #[test]
    fn a_sample_counts_for_the_window_less_one_bucket_at_least() {
        let span = Span::new(Duration::from_secs(60));
        // (added at, asked at, both in ms; still there)
        let table = [
            (0, 0, true),
            (0, 58_999, true),
            (0, 59_999, true),
            (0, 60_000, false),
            (999, 59_999, true),
            (999, 60_000, false),
            (1000, 60_999, true),
            (1000, 61_000, false),
            (500, 9_000_000, false),
        ];
        for (added, asked, there) in table {
            let mut window = Window::default();
            window.add(span.tick(Mono::from_millis(added)), one(7), 1, None);
            let tick = span.tick(Mono::from_millis(asked));
            assert_eq!(
                window.totals_at(tick).count == 1,
                there,
                "{added} at {asked}, read"
            );
            window.roll(tick);
            assert_eq!(window.totals().count == 1, there, "{added} at {asked}, rolled");
            assert_eq!(window.totals().sum == 7, there);
        }
    }

    #[test]
    fn covered_time_is_the_window_but_for_the_open_bucket() {
        let span = Span::new(Duration::from_secs(60));
        assert_eq!(span.covered_seconds(Mono::from_millis(120_000)), 59.0);
        assert_eq!(span.covered_seconds(Mono::from_millis(120_750)), 59.75);
        let tiny = Span::new(Duration::ZERO);
        assert!(tiny.covered_seconds(Mono::ZERO) > 0.0);
    }

    #[test]
    fn many_equal_values_take_little_room() {
        let mut window = Window::default();
        for i in 0..100_000_u64 {
            window.add(5, one(i % 50), 1, Some(MARKS));
        }
        assert!(
            window.points.len() <= 2 * CROWD as usize,
            "{}",
            window.points.len()
        );
        assert_eq!(window.at_rank(5, 50_000), Some(24.0));
        assert_eq!(window.totals().under, 20_000);
    }

    #[test]
    fn sums_of_absurd_values_come_off_again() {
        let mut window = Window::default();
        for _ in 0..3 {
            window.add(
                0,
                Reading {
                    value: u64::MAX,
                    whole: u64::MAX,
                },
                u32::MAX,
                Some(MARKS),
            );
        }
        window.add(100, one(1), 1, Some(MARKS));
        window.roll(100);
        assert_eq!(
            window.totals(),
            &Totals {
                count: 1,
                samples: 1,
                over: 0,
                under: 1,
                sum: 1,
                whole: 1
            }
        );
    }

    proptest! {
        #[test]
        fn totals_equal_a_recount(
            steps in proptest::collection::vec((0_u64..40, 0..=LARGEST, 1_u32..4), 1..300),
            end in 0_u64..200,
        ) {
            let mut window = Window::default();
            let mut all = Vec::new();
            let mut tick = 0;
            for (pause, value, samples) in steps {
                tick += pause / 4;
                window.roll(tick);
                window.add(tick, one(value), samples, Some(MARKS));
                all.push((tick, value, samples));
                prop_assert_eq!(*window.totals(), recount(&all, tick));
            }
            let end = tick + end;
            prop_assert_eq!(window.totals_at(end), recount(&all, end));
            window.roll(end);
            prop_assert_eq!(*window.totals(), recount(&all, end));
            let points: u64 = window.points.iter().map(|p| u64::from(p.count)).sum();
            prop_assert_eq!(points, window.totals().count);
        }

        #[test]
        fn what_is_removed_was_never_there(
            values in proptest::collection::vec((0_u64..90, 0_u64..5000, any::<bool>()), 1..200),
        ) {
            let mut window = Window::default();
            let mut plain = Window::default();
            let mut tick = 0;
            for &(pause, value, stays) in &values {
                tick += pause / 30;
                window.add(tick, one(value), 2, Some(MARKS));
                if stays {
                    plain.add(tick, one(value), 2, Some(MARKS));
                } else {
                    window.remove(tick, one(value), 2, Some(MARKS));
                }
            }
            prop_assert_eq!(window.totals(), plain.totals());
            for rank in 1..=plain.totals().count {
                prop_assert_eq!(window.at_rank(tick, rank), plain.at_rank(tick, rank));
            }
            window.roll(tick + 30);
            plain.roll(tick + 30);
            prop_assert_eq!(window.totals(), plain.totals());
        }

        #[test]
        fn a_quantile_is_within_one_percent(
            mut values in proptest::collection::vec(1..=LARGEST, 1..400),
            q in 1_u64..100,
        ) {
            let mut window = Window::default();
            for (i, v) in values.iter().enumerate() {
                window.add(i as u64 / 10, one(*v), 1, Some(MARKS));
            }
            values.sort_unstable();
            let rank = (q * values.len() as u64).div_ceil(100).max(1);
            let truth = values[rank as usize - 1] as f64;
            let got = window.at_rank(values.len() as u64 / 10, rank).expect("a value");
            prop_assert!((got - truth).abs() <= truth * 0.01, "{got} for {truth}");
        }

        #[test]
        fn marks_may_move(values in proptest::collection::vec(0_u64..200, 1..100), above in 0_u64..200) {
            let mut window = Window::default();
            for v in &values {
                window.add(0, one(*v), 1, Some(MARKS));
            }
            window.remark(Marks { above, below: above });
            let over = values.iter().filter(|v| **v > above).count() as u64;
            let under = values.iter().filter(|v| **v < above).count() as u64;
            prop_assert_eq!((window.totals().over, window.totals().under), (over, under));
        }
    }

    fn recount(all: &[(u64, u64, u32)], tick: u64) -> Totals {
        let mut t = Totals::default();
        for (at, value, samples) in all.iter().filter(|(at, _, _)| at + BUCKETS > tick) {
            let _ = at;
            t.count += 1;
            t.samples += u64::from(*samples);
            t.over += u64::from(*value > MARKS.above);
            t.under += u64::from(*value < MARKS.below);
            t.sum += *value;
            t.whole += 1;
        }
        t
    }
}
