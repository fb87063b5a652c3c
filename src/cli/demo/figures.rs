//! Rates and money, computed from what the simulated provider billed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ledger::Bill;
use crate::dialect::price::PriceTable;
use crate::types::time::Mono;

/// Sum of `value` over bills between two points, for each minute. What a call used is spread evenly over the time it
/// took, since it was billed at its end.
pub(super) fn per_minute<'a>(
    bills: impl IntoIterator<Item = &'a Bill>,
    from: Mono,
    to: Mono,
    value: impl Fn(&Bill) -> f64,
) -> f64 {
    let seconds = to.since(from).as_secs_f64();
    if seconds <= 0.0 {
        return 0.0;
    }
    let sum: f64 = bills
        .into_iter()
        .map(|bill| {
            let length = bill.to.since(bill.from).as_secs_f64().max(0.001);
            let inside = bill.to.min(to).since(bill.from.max(from)).as_secs_f64();
            let instant = bill.to == bill.from && bill.from >= from && bill.to < to;
            value(bill) * if instant { 1.0 } else { (inside / length).min(1.0) }
        })
        .sum();
    sum * 60.0 / seconds
}

/// Tokens a minute in columns of `step`, smoothed over `smooth` columns (an odd number).
pub(super) fn columns(bills: &[Bill], from: Mono, to: Mono, step: Duration, smooth: usize) -> Vec<f64> {
    let count = (to.since(from).as_secs_f64() / step.as_secs_f64().max(0.001)).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a small positive range"
    )]
    let count = count.clamp(0.0, 400.0) as usize;
    let mut start = from;
    let mut raw = Vec::with_capacity(count);
    for _ in 0..count {
        let end = start.after(step);
        raw.push(per_minute(bills, start, end.min(to), tokens));
        start = end;
    }
    let half = smooth / 2;
    (0..raw.len())
        .map(|i| {
            let near = raw
                .get(i.saturating_sub(half)..(i + half + 1).min(raw.len()))
                .unwrap_or(&[]);
            near.iter().sum::<f64>() / near.len().max(1) as f64
        })
        .collect()
}

/// Input and output tokens of a bill.
pub(super) fn tokens(bill: &Bill) -> f64 {
    bill.tokens() as f64
}

/// US dollars of a bill by the price table; `None` when the model has no price.
pub(super) fn dollars(prices: &PriceTable, bill: &Bill) -> Option<f64> {
    let price = prices.price(&bill.model)?;
    Some((bill.input as f64 * price.input + bill.output as f64 * price.output) / 1e6)
}

/// What the throttled part of the story cost, and would have cost at the rate before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Money {
    /// Dollars a minute before the directives were in force.
    pub(super) rate_before: f64,
    /// Dollars a minute under them.
    pub(super) rate_under: f64,
    /// Minutes under them.
    pub(super) minutes: f64,
}

impl Money {
    /// Compares the time before `acted` with that between `acted` and `fixed`.
    pub(super) fn compare(
        prices: &PriceTable,
        bills: &[Bill],
        before: Mono,
        acted: Mono,
        fixed: Mono,
    ) -> Self {
        let cost = |bill: &Bill| dollars(prices, bill).unwrap_or(0.0);
        Self {
            rate_before: per_minute(bills, before, acted, cost),
            rate_under: per_minute(bills, acted, fixed, cost),
            minutes: fixed.since(acted).as_secs_f64() / 60.0,
        }
    }

    /// What was not spent.
    pub(super) fn saved(&self) -> f64 {
        ((self.rate_before - self.rate_under) * self.minutes).max(0.0)
    }
}

/// Calls by model, most first.
pub(super) fn by_model<'a>(bills: impl IntoIterator<Item = &'a Bill>) -> Vec<(&'a str, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for bill in bills {
        *counts.entry(&bill.model).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    counts
}

/// The middle of some durations.
pub(super) fn median(mut values: Vec<Duration>) -> Option<Duration> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bill(from_ms: u64, to_ms: u64, tokens: u64) -> Bill {
        Bill {
            from: Mono::from_millis(from_ms),
            to: Mono::from_millis(to_ms),
            account: "research".to_owned(),
            model: "gpt-4o".to_owned(),
            input: tokens,
            output: 0,
        }
    }

    #[test]
    fn a_call_is_spread_over_its_time() {
        let at = Mono::from_millis;
        for (bill, from, to, expected) in [
            (bill(0, 1000, 100), 0, 1000, 6000.0),
            (bill(0, 1000, 100), 0, 60_000, 100.0),
            (bill(0, 1000, 100), 500, 1000, 6000.0),
            (bill(0, 2000, 100), 1000, 61_000, 50.0),
            (bill(0, 1000, 100), 1000, 2000, 0.0),
            (bill(500, 500, 100), 0, 60_000, 100.0),
            (bill(0, 1000, 100), 1000, 1000, 0.0),
        ] {
            let got = per_minute([&bill], at(from), at(to), tokens);
            assert!((got - expected).abs() < 1e-6, "{bill:?} {from} {to}: {got}");
        }
    }

    #[test]
    fn columns_keep_the_mean() {
        let bills = [bill(0, 4000, 400), bill(4000, 5000, 900)];
        let step = Duration::from_secs(1);
        let raw = columns(&bills, Mono::ZERO, Mono::from_millis(5000), step, 1);
        assert_eq!(raw, vec![6000.0, 6000.0, 6000.0, 6000.0, 54_000.0]);
        let smooth = columns(&bills, Mono::ZERO, Mono::from_millis(5000), step, 3);
        assert_eq!(smooth, vec![6000.0, 6000.0, 6000.0, 22_000.0, 30_000.0]);
        assert!(columns(&bills, Mono::ZERO, Mono::ZERO, step, 3).is_empty());
    }

    #[test]
    fn saving_is_the_difference_of_the_rates() {
        let money = Money {
            rate_before: 1.2,
            rate_under: 0.2,
            minutes: 0.5,
        };
        assert!((money.saved() - 0.5).abs() < 1e-9);
        let dearer = Money {
            rate_under: 2.0,
            ..money
        };
        assert!(dearer.saved().abs() < 1e-9);
    }

    #[test]
    fn middles_and_counts() {
        let ms = Duration::from_millis;
        assert_eq!(median(vec![ms(9), ms(1), ms(5)]), Some(ms(5)));
        assert_eq!(median(Vec::new()), None);
        let mut bills = vec![bill(0, 1, 1), bill(0, 1, 1), bill(0, 1, 1)];
        bills[0].model = "gpt-4o-mini".to_owned();
        assert_eq!(by_model(&bills), vec![("gpt-4o", 2), ("gpt-4o-mini", 1)]);
    }
}
