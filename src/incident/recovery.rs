//! The way back to normal: how long an incident is on probation, and what an order becomes meanwhile.

use std::time::Duration;

use super::lifecycle::Stage;
use super::rule::Rule;
use crate::types::directive::Order;

/// How long a metric must stay back before its incident is over: half the window, at least the rule's `for`, at least
/// two seconds.
pub(crate) fn probation(rule: &Rule) -> Duration {
    const LEAST: Duration = Duration::from_secs(2);
    (rule.window / 2).max(rule.hold).max(LEAST)
}

/// What an order becomes at a stage; `None`: it is lifted.
pub(crate) fn relax(order: &Order, stage: Stage) -> Option<Order> {
    let factor = match stage {
        Stage::Full => return Some(order.clone()),
        Stage::Eased => 2,
        Stage::Light => 4,
    };
    match order {
        Order::Throttle {
            requests_per_minute,
            tokens_per_minute,
        } => Some(Order::Throttle {
            requests_per_minute: requests_per_minute.map(|n| n.saturating_mul(factor)),
            tokens_per_minute: tokens_per_minute.map(|n| n.saturating_mul(factor)),
        }),
        Order::CapConcurrency { max_in_flight } => Some(Order::CapConcurrency {
            max_in_flight: max_in_flight.saturating_mul(factor),
        }),
        Order::ReduceBatch {
            max_inputs,
            max_choices,
        } => Some(Order::ReduceBatch {
            max_inputs: max_inputs.saturating_mul(factor),
            max_choices: max_choices.map(|n| n.saturating_mul(factor)),
        }),
        Order::CapOutput {
            max_tokens,
            cut_streams,
        } => Some(Order::CapOutput {
            max_tokens: max_tokens.saturating_mul(factor),
            cut_streams: *cut_streams,
        }),
        Order::DowngradeModel { .. } | Order::SetParameters { .. } => {
            (stage == Stage::Eased).then(|| order.clone())
        }
        // Back in steps: what was sick gets half of the executions first, and then most of them.
        Order::Reroute { to, share_percent } => Some(Order::Reroute {
            to: to.clone(),
            share_percent: (u32::from(*share_percent) / (factor * factor / 2)).max(1) as u8,
        }),
        // These do no harm when they are no longer needed, and the next failure may be near.
        Order::ExtendTimeouts { .. } => Some(order.clone()),
        Order::RestoreVersion { .. } | Order::Contain { .. } => Some(order.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::rule::Metric;
    use crate::incident::testing::rule;

    #[test]
    fn orders_are_relaxed_step_by_step() {
        let throttle = |requests_per_minute, tokens_per_minute| Order::Throttle {
            requests_per_minute,
            tokens_per_minute,
        };
        let cap = |max_in_flight| Order::CapConcurrency { max_in_flight };
        let model = Order::DowngradeModel { to: None };
        let reroute = |share_percent| Order::Reroute {
            to: "backup".into(),
            share_percent,
        };
        let contain = || Order::Contain {
            reason: String::new(),
        };
        let table = [
            (
                throttle(Some(10), None),
                Stage::Full,
                Some(throttle(Some(10), None)),
            ),
            (
                throttle(Some(10), Some(7)),
                Stage::Eased,
                Some(throttle(Some(20), Some(14))),
            ),
            (
                throttle(None, Some(u32::MAX)),
                Stage::Light,
                Some(throttle(None, Some(u32::MAX))),
            ),
            (cap(3), Stage::Eased, Some(cap(6))),
            (cap(3), Stage::Light, Some(cap(12))),
            (model.clone(), Stage::Full, Some(model.clone())),
            (model.clone(), Stage::Eased, Some(model.clone())),
            (model.clone(), Stage::Light, None),
            (reroute(100), Stage::Eased, Some(reroute(50))),
            (reroute(100), Stage::Light, Some(reroute(12))),
            (reroute(3), Stage::Light, Some(reroute(1))),
            (contain(), Stage::Light, Some(contain())),
        ];
        for (order, stage, expected) in table {
            assert_eq!(relax(&order, stage), expected, "{order:?} {stage:?}");
        }
    }

    #[test]
    fn probation_follows_the_window() {
        let mut r = rule("r", Metric::ErrorRate);
        for (window, hold, expected) in [(300, 0, 150), (300, 200, 200), (1, 0, 2)] {
            r.window = Duration::from_secs(window);
            r.hold = Duration::from_secs(hold);
            assert_eq!(probation(&r).as_secs(), expected);
        }
    }
}
