//! What a rule measures and where it says "too much", resolved to numbers; judges the totals of a window.
//!
//! - Metrics of executions: the value of a subject is the statistic (the mean, unless the rule says otherwise) over its
//!   executions active in the window, each with all it has used so far, so that a runaway counts before it ends.
//!   `min_samples` counts the exchanges of those executions, not the executions: a single execution that loops is
//!   judged. Where the subject is one execution, its value is that execution's.
//! - A quantile breaches an upper threshold when more than its share of values lies above, which is counted exactly;
//!   the value shown comes from bins and is within 0.4 %. `max` and `min` are quantiles at the ends.
//! - Rates and silence can be told without traffic. A rate is judged "too low" only for a subject that has been
//!   followed for a whole window and was seen `min_samples` times.

use super::metric::Shape;
use super::rule::{Baseline, Metric, Rule, Statistic, Threshold};
use super::window::{Marks, Span, Totals, Window};
use crate::types::time::Mono;

/// A rule's measure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Gauge {
    /// What.
    pub(crate) metric: Metric,
    /// How values become one.
    pub(crate) statistic: Statistic,
    /// How values come about.
    pub(crate) shape: Shape,
    /// How time is cut.
    pub(crate) span: Span,
    /// What is counted beside sums; only for statistics of order.
    pub(crate) marks: Option<Marks>,
    /// In the metric's unit.
    pub(crate) baseline: Option<f64>,
    /// In the metric's unit.
    pub(crate) upper: Option<f64>,
    /// In the metric's unit.
    pub(crate) lower: Option<f64>,
    /// `ok`, or why it is not evaluated, whole or in part.
    pub(crate) evaluation: String,
    /// Whether it is evaluated at all.
    pub(crate) live: bool,
    /// Whether reported counts are kept apart from estimates.
    pub(crate) tells_estimates_apart: bool,
    rank: Rank,
    steps: f64,
    hysteresis: f64,
    min_samples: u64,
    window_nanos: u64,
}

/// Which side of its range a value left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub(crate) enum Side {
    /// Above the upper threshold.
    Upper,
    /// Below the lower threshold.
    Lower,
}

/// What a window says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// Nothing: there is no sample in it.
    Nothing,
    /// Too little to be judged.
    TooFew,
    /// Within the thresholds.
    Within,
    /// Beyond one.
    Beyond(Side),
}

/// What is known of a subject beside its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Followed {
    /// When it was seen first.
    pub(crate) first: Mono,
    /// When it was seen last.
    pub(crate) last: Mono,
    /// Exchanges since then.
    pub(crate) seen: u64,
}

/// Which of the ordered values is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    Smallest,
    Largest,
    /// In hundred-thousandths.
    Share(u64),
    /// Order does not matter.
    None,
}

const WHOLE: u64 = 100_000;

impl Gauge {
    /// Resolves a rule.
    pub(crate) fn new(rule: &Rule) -> Self {
        let metric = rule.metric;
        let statistic = if metric.takes(rule.statistic) {
            rule.statistic
        } else {
            metric.default_statistic()
        };
        let shape = metric.shape();
        let steps = metric.unit().steps();
        let baseline = match rule.baseline {
            Baseline::Fixed(value) => Some(value),
            Baseline::Learned | Baseline::Fleet => None,
        };
        let upper = resolve(rule.threshold_upper, rule.baseline);
        let lower = resolve(rule.threshold_lower, rule.baseline);
        let rank = match statistic {
            Statistic::Max => Rank::Largest,
            Statistic::Min => Rank::Smallest,
            Statistic::Quantile(q) => Rank::Share(((q * WHOLE as f64).round() as u64).clamp(1, WHOLE - 1)),
            Statistic::Mean | Statistic::Sum | Statistic::Ratio => Rank::None,
        };
        let (upper_value, lower_value) = (upper.ok().flatten(), lower.ok().flatten());
        let marks = (rank != Rank::None).then(|| Marks {
            above: upper_value.map_or(u64::MAX, |v| (v * steps).floor() as u64),
            below: lower_value.map_or(0, |v| (v * steps).ceil() as u64),
        });
        let any = upper_value.is_some() || lower_value.is_some();
        Self {
            metric,
            statistic,
            shape,
            span: Span::new(rule.window),
            marks,
            baseline,
            upper: upper_value,
            lower: lower_value,
            evaluation: evaluation(rule, upper, lower),
            live: rule.enabled && metric.not_measured().is_none() && any,
            tells_estimates_apart: metric.counts_tokens() && !rule.act_on_estimates,
            rank,
            steps,
            hysteresis: if rule.hysteresis.is_finite() {
                rule.hysteresis.clamp(0.0, 0.99)
            } else {
                0.0
            },
            min_samples: rule.min_samples.max(1),
            window_nanos: u64::try_from(rule.window.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    /// Judges totals; cheap enough to be asked for every exchange.
    #[inline]
    pub(crate) fn judge(&self, t: &Totals, followed: &Followed, now: Mono) -> Judgement {
        let judged = match self.shape {
            Shape::Silence => followed.seen >= self.min_samples,
            Shape::Rate { .. } => t.samples >= self.min_samples || self.may_be_low(followed, now),
            Shape::Sample | Shape::Execution | Shape::Ratio => {
                if t.samples == 0 {
                    return Judgement::Nothing;
                }
                t.samples >= self.min_samples
            }
        };
        if !judged {
            return Judgement::TooFew;
        }
        match self.beyond(t, followed, now) {
            Some(side) => Judgement::Beyond(side),
            None => Judgement::Within,
        }
    }

    /// Whether totals are beyond a threshold, however few the samples.
    #[inline]
    pub(crate) fn beyond(&self, t: &Totals, followed: &Followed, now: Mono) -> Option<Side> {
        if self.rank != Rank::None {
            let rank = self.rank_of(t.count);
            return if self.upper.is_some() && t.over > t.count.saturating_sub(rank) {
                Some(Side::Upper)
            } else if self.lower.is_some() && t.count > 0 && t.under >= rank {
                Some(Side::Lower)
            } else {
                None
            };
        }
        let value = self.plain_value(t, followed, now)?;
        if self.upper.is_some_and(|upper| value > upper) {
            return Some(Side::Upper);
        }
        let low = self.lower.is_some_and(|lower| value < lower);
        (low && (!matches!(self.shape, Shape::Rate { .. }) || self.may_be_low(followed, now)))
            .then_some(Side::Lower)
    }

    /// The value of a window at `now`, in the metric's unit; `None` when nothing is in it.
    pub(crate) fn value(&self, window: &Window, followed: &Followed, now: Mono) -> Option<f64> {
        let tick = self.span.tick(now);
        let t = window.totals_at(tick);
        if self.rank == Rank::None {
            return self.plain_value(&t, followed, now);
        }
        let value = window.at_rank(tick, self.rank_of(t.count))? / self.steps;
        // Bins are coarser than the count that decides: what is shown agrees with what was decided.
        Some(match (self.beyond(&t, followed, now), self.upper, self.lower) {
            (Some(Side::Upper), Some(upper), _) => value.max(upper),
            (Some(Side::Lower), _, Some(lower)) => value.min(lower),
            _ => value,
        })
    }

    /// The value at `now` of what was seen since `since` (to a bucket), in the metric's unit, and whether it is within
    /// the threshold of `side`; `None` when too little was seen since then.
    pub(crate) fn value_since(
        &self,
        window: &Window,
        followed: &Followed,
        side: Side,
        since: Mono,
        now: Mono,
    ) -> Option<(f64, bool)> {
        let (tick, after) = (self.span.tick(now), self.span.tick(since));
        let t = window.totals_since(tick, after);
        let value = match self.shape {
            Shape::Silence => self.plain_value(&t, followed, now)?,
            _ if t.samples < self.min_samples => return None,
            Shape::Rate { per_seconds } => {
                // What came in the rest of the first bucket is left out, and so is its time.
                let begun = Mono::from_nanos(
                    after
                        .saturating_add(1)
                        .saturating_mul(u64::try_from(self.span.width().as_nanos()).unwrap_or(u64::MAX)),
                );
                let seconds = now.since(begun).as_secs_f64().min(self.span.covered_seconds(now));
                if seconds <= 0.0 {
                    return None;
                }
                t.sum as f64 / self.steps * per_seconds / seconds
            }
            _ if self.rank == Rank::None => self.plain_value(&t, followed, now)?,
            _ => window.at_rank_since(tick, after, self.rank_of(t.count))? / self.steps,
        };
        let within = match side {
            Side::Upper => self.upper.is_none_or(|upper| value <= upper),
            Side::Lower => self.lower.is_none_or(|lower| value >= lower),
        };
        Some((value, within))
    }

    /// Whether a value is back: inside the threshold of `side` by the rule's hysteresis.
    pub(crate) fn is_back(&self, value: f64, side: Side) -> bool {
        match side {
            Side::Upper => self
                .upper
                .is_none_or(|upper| value <= upper - upper.abs() * self.hysteresis),
            Side::Lower => self
                .lower
                .is_none_or(|lower| value >= lower + lower.abs() * self.hysteresis),
        }
    }

    /// The threshold of a side.
    pub(crate) fn threshold(&self, side: Side) -> Option<f64> {
        match side {
            Side::Upper => self.upper,
            Side::Lower => self.lower,
        }
    }

    /// How near totals are to a threshold: 1 is there, more is beyond. Only for putting subjects in order.
    pub(crate) fn closeness(&self, t: &Totals, followed: &Followed, now: Mono) -> f64 {
        if self.rank != Rank::None {
            let rank = self.rank_of(t.count);
            let allowed = t.count.saturating_sub(rank);
            let upper = t.over as f64 / (allowed as f64 + 1.0);
            let lower = t.under as f64 / (rank as f64).max(1.0);
            return upper.max(if self.lower.is_some() { lower } else { 0.0 });
        }
        let Some(value) = self.plain_value(t, followed, now) else {
            return 0.0;
        };
        let upper = self.upper.map_or(0.0, |upper| share(value, upper));
        let lower = self.lower.map_or(0.0, |lower| share(lower, value));
        upper.max(lower)
    }

    /// Whether time alone changes the value, so that a subject has to be looked at without traffic for good.
    pub(crate) fn moves_without_traffic(&self) -> bool {
        match self.shape {
            Shape::Silence => true,
            Shape::Rate { .. } => self.lower.is_some(),
            Shape::Sample | Shape::Execution | Shape::Ratio => false,
        }
    }

    /// Whether the value of a window changes though nothing comes into it or leaves it: rates are told over the time
    /// that is covered, which grows within a bucket.
    pub(crate) fn moves_between_samples(&self) -> bool {
        matches!(self.shape, Shape::Silence | Shape::Rate { .. })
    }

    fn may_be_low(&self, followed: &Followed, now: Mono) -> bool {
        self.lower.is_some()
            && followed.seen >= self.min_samples
            && now.as_nanos().saturating_sub(followed.first.as_nanos()) >= self.window_nanos
    }

    #[inline]
    fn plain_value(&self, t: &Totals, followed: &Followed, now: Mono) -> Option<f64> {
        match self.shape {
            Shape::Silence => (followed.seen > 0).then(|| now.since(followed.last).as_secs_f64()),
            Shape::Rate { per_seconds } => {
                Some(t.sum as f64 / self.steps * per_seconds / self.span.covered_seconds(now))
            }
            Shape::Ratio => (t.whole > 0).then(|| t.sum as f64 / t.whole as f64),
            Shape::Sample | Shape::Execution if t.count == 0 => None,
            Shape::Sample | Shape::Execution => {
                let sum = t.sum as f64 / self.steps;
                Some(if self.statistic == Statistic::Sum {
                    sum
                } else {
                    sum / t.count as f64
                })
            }
        }
    }

    /// The rank, from 1, of the meant one among `count` values.
    #[inline]
    fn rank_of(&self, count: u64) -> u64 {
        match self.rank {
            Rank::Smallest => 1,
            Rank::Largest | Rank::None => count.max(1),
            Rank::Share(share) => count.saturating_mul(share).div_ceil(WHOLE).max(1),
        }
    }
}

fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 {
        part / whole
    } else if part > whole {
        f64::MAX
    } else {
        0.0
    }
}

const NO_LEARNED: &str = "learned baselines are not available yet";
const NO_FLEET: &str = "fleet baselines are not available yet";

fn resolve(threshold: Option<Threshold>, baseline: Baseline) -> Result<Option<f64>, &'static str> {
    match (threshold, baseline) {
        (None, _) => Ok(None),
        (Some(Threshold::Fixed(value)), _) => Ok(value.is_finite().then_some(value)),
        (Some(Threshold::TimesBaseline(times)), Baseline::Fixed(value)) => {
            Ok(Some(times * value).filter(|v| v.is_finite()))
        }
        (Some(Threshold::TimesBaseline(_)), Baseline::Learned) => Err(NO_LEARNED),
        (Some(Threshold::TimesBaseline(_)), Baseline::Fleet) => Err(NO_FLEET),
    }
}

type Resolved = Result<Option<f64>, &'static str>;

fn evaluation(rule: &Rule, upper: Resolved, lower: Resolved) -> String {
    if !rule.enabled {
        return "off".to_owned();
    }
    if let Some(why) = rule.metric.not_measured() {
        return format!("not yet evaluated: {why}");
    }
    let missing = match rule.baseline {
        Baseline::Learned => NO_LEARNED,
        Baseline::Fleet => NO_FLEET,
        Baseline::Fixed(_) => "the rule has no threshold",
    };
    match (upper, lower) {
        (Err(why), Ok(None) | Err(_)) | (Ok(None), Err(why)) => {
            format!("not yet evaluated: {why}, and the threshold is relative to one")
        }
        (Err(why), Ok(Some(_))) => format!("ok (threshold_upper is not yet evaluated: {why})"),
        (Ok(Some(_)), Err(why)) => format!("ok (threshold_lower is not yet evaluated: {why})"),
        (Ok(None), Ok(None)) => format!("not yet evaluated: {missing}"),
        (Ok(_), Ok(_)) => "ok".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::incident::measure::Reading;
    use crate::incident::testing::rule;

    const WINDOW: Duration = Duration::from_secs(60);

    fn at(seconds: u64) -> Mono {
        Mono::from_millis(seconds * 1000)
    }

    fn followed(seen: u64) -> Followed {
        Followed {
            first: at(1000),
            last: at(1000),
            seen,
        }
    }

    fn judge(gauge: &Gauge, values: &[u64], now: u64) -> Judgement {
        let mut window = Window::default();
        for v in values {
            let tick = gauge.span.tick(at(1000));
            window.add(tick, Reading { value: *v, whole: 1 }, 1, gauge.marks);
        }
        let tick = gauge.span.tick(at(now));
        window.roll(tick);
        gauge.judge(window.totals(), &followed(values.len() as u64), at(now))
    }

    fn gauge(metric: Metric, statistic: Statistic, upper: Option<f64>, lower: Option<f64>) -> Gauge {
        let mut r = rule("r", metric);
        r.statistic = statistic;
        r.threshold_upper = upper.map(Threshold::Fixed);
        r.threshold_lower = lower.map(Threshold::Fixed);
        r.window = WINDOW;
        r.min_samples = 3;
        Gauge::new(&r)
    }

    /// Metric, statistic, upper, lower, values, seconds after them, judgement.
    type Row = (
        Metric,
        Statistic,
        Option<f64>,
        Option<f64>,
        &'static [u64],
        u64,
        Judgement,
    );

    #[test]
    fn judgements() {
        use Judgement::{Beyond, Nothing, TooFew, Within};
        let tokens = Metric::TokensPerRequest;
        let (mean, max, min) = (Statistic::Mean, Statistic::Max, Statistic::Min);
        let median = Statistic::Quantile(0.5);
        #[rustfmt::skip]
        let table: &[Row] = &[
            (tokens, mean, Some(10.0), None, &[], 0, Nothing),
            (tokens, mean, Some(10.0), None, &[50, 50], 0, TooFew),
            (tokens, mean, Some(10.0), None, &[10, 10, 10], 0, Within),
            (tokens, mean, Some(10.0), None, &[10, 10, 11], 0, Beyond(Side::Upper)),
            (tokens, mean, Some(10.0), None, &[10, 10, 11], 60, Nothing),
            (tokens, mean, None, Some(10.0), &[10, 10, 9], 0, Beyond(Side::Lower)),
            (tokens, mean, None, Some(10.0), &[10, 10, 10], 0, Within),
            (tokens, Statistic::Sum, Some(10.0), None, &[3, 3, 4], 0, Within),
            (tokens, Statistic::Sum, Some(10.0), None, &[3, 4, 4], 0, Beyond(Side::Upper)),
            (tokens, max, Some(10.0), None, &[1, 10, 1], 0, Within),
            (tokens, max, Some(10.0), None, &[1, 11, 1], 0, Beyond(Side::Upper)),
            (tokens, max, None, Some(10.0), &[1, 10, 1], 0, Within),
            (tokens, max, None, Some(10.0), &[1, 9, 1], 0, Beyond(Side::Lower)),
            (tokens, min, Some(10.0), None, &[11, 12, 10], 0, Within),
            (tokens, min, Some(10.0), None, &[11, 12, 11], 0, Beyond(Side::Upper)),
            (tokens, min, None, Some(10.0), &[11, 12, 9], 0, Beyond(Side::Lower)),
            (tokens, median, Some(10.0), None, &[1, 1, 99, 99], 0, Within),
            (tokens, median, Some(10.0), None, &[1, 99, 99], 0, Beyond(Side::Upper)),
            (Metric::ErrorRate, Statistic::Ratio, Some(0.5), None, &[0, 1, 1], 0, Beyond(Side::Upper)),
            (Metric::ErrorRate, Statistic::Ratio, Some(0.5), None, &[0, 1, 1, 0], 0, Within),
            // 180 tokens in 59 s are 183 a minute.
            (Metric::TokensPerMinute, Statistic::Ratio, Some(182.0), None, &[60, 60, 60], 0, Beyond(Side::Upper)),
            (Metric::TokensPerMinute, Statistic::Ratio, Some(184.0), None, &[60, 60, 60], 0, Within),
            (Metric::TokensPerMinute, Statistic::Ratio, Some(9.0), None, &[60, 60], 0, TooFew),
            (Metric::RequestsPerMinute, Statistic::Ratio, None, Some(2.0), &[1, 1, 1], 30, Within),
            (Metric::RequestsPerMinute, Statistic::Ratio, None, Some(2.0), &[1, 1, 1], 60, Beyond(Side::Lower)),
            (Metric::RequestsPerMinute, Statistic::Ratio, None, Some(2.0), &[1, 1], 60, TooFew),
            (Metric::Silence, Statistic::Ratio, Some(90.0), None, &[1, 1, 1], 90, Within),
            (Metric::Silence, Statistic::Ratio, Some(90.0), None, &[1, 1, 1], 91, Beyond(Side::Upper)),
            (Metric::Silence, Statistic::Ratio, Some(90.0), None, &[1, 1], 91, TooFew),
        ];
        for (i, (metric, statistic, upper, lower, values, later, expected)) in table.iter().enumerate() {
            let gauge = gauge(*metric, *statistic, *upper, *lower);
            assert_eq!(judge(&gauge, values, 1000 + later), *expected, "row {i}");
        }
    }

    #[test]
    fn a_quantile_is_decided_by_an_exact_count() {
        // p90 of ten values above 100: breached by the second value above, not by the first, whatever the float.
        for (q, n, allowed) in [
            (0.9, 10, 1),
            (0.95, 20, 1),
            (0.95, 100, 5),
            (0.99, 100, 1),
            (0.5, 4, 2),
        ] {
            let gauge = gauge(
                Metric::TokensPerRequest,
                Statistic::Quantile(q),
                Some(100.0),
                None,
            );
            for over in 0..=n {
                let mut values = vec![100_u64; n - over];
                values.extend(std::iter::repeat_n(101, over));
                let beyond = judge(&gauge, &values, 1000) == Judgement::Beyond(Side::Upper);
                assert_eq!(beyond, over > allowed, "p{q} of {n} with {over} above");
            }
        }
    }

    #[test]
    fn back_by_hysteresis() {
        let mut r = rule("r", Metric::TokensPerRequest);
        r.threshold_upper = Some(Threshold::Fixed(100.0));
        r.threshold_lower = Some(Threshold::Fixed(10.0));
        r.hysteresis = 0.1;
        let gauge = Gauge::new(&r);
        let table = [
            (91.0, Side::Upper, false),
            (90.0, Side::Upper, true),
            (10.5, Side::Lower, false),
            (11.0, Side::Lower, true),
        ];
        for (value, side, back) in table {
            assert_eq!(gauge.is_back(value, side), back, "{value}");
        }
    }

    #[test]
    fn what_is_evaluated_and_why_not() {
        use Threshold::{Fixed, TimesBaseline};
        let table = [
            (
                Baseline::Fixed(100.0),
                Some(TimesBaseline(2.0)),
                None,
                "ok",
                Some(200.0),
            ),
            (Baseline::Learned, Some(Fixed(7.0)), None, "ok", Some(7.0)),
            (
                Baseline::Learned,
                Some(Fixed(7.0)),
                Some(TimesBaseline(0.5)),
                "ok (threshold_lower is not yet evaluated: learned baselines are not available yet)",
                Some(7.0),
            ),
            (
                Baseline::Learned,
                Some(TimesBaseline(2.0)),
                None,
                "not yet evaluated: learned baselines are not available yet, and the threshold is relative to one",
                None,
            ),
            (
                Baseline::Fleet,
                Some(TimesBaseline(2.0)),
                None,
                "not yet evaluated: fleet baselines are not available yet, and the threshold is relative to one",
                None,
            ),
            (
                Baseline::Learned,
                None,
                None,
                "not yet evaluated: learned baselines are not available yet",
                None,
            ),
        ];
        for (baseline, upper, lower, evaluation, resolved) in table {
            let mut r = rule("r", Metric::TokensPerRequest);
            r.baseline = baseline;
            r.threshold_upper = upper;
            r.threshold_lower = lower;
            let gauge = Gauge::new(&r);
            assert_eq!(gauge.evaluation, evaluation);
            assert_eq!(gauge.upper, resolved);
            assert_eq!(gauge.live, evaluation.starts_with("ok"));
        }
        let mut r = rule("r", Metric::SemanticSimilarityToBaseline);
        r.threshold_lower = Some(Fixed(0.65));
        assert!(Gauge::new(&r).evaluation.starts_with("not yet evaluated: "));
        assert!(!Gauge::new(&r).live);
        r.enabled = false;
        assert_eq!(Gauge::new(&r).evaluation, "off");
    }
}
