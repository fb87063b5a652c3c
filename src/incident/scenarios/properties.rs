//! Made-up inputs: whatever comes, the engine stands, agrees with a recount and with itself.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::explosion;
use crate::incident::effect::Effect;
use crate::incident::engine::{Bounds, Engine};
use crate::incident::input::{Input, OperatorAct};
use crate::incident::record::IncidentState;
use crate::incident::rule::{GroupBy, Metric, Statistic, Threshold};
use crate::incident::testing::{Driven, book, rule, tokens};
use crate::types::time::{Mono, Now, Wall};
use crate::types::usage::UsageSource;

fn any_input() -> impl Strategy<Value = (u64, u8, u8, u8, u64, f64)> {
    (
        prop_oneof![0..3000_u64, Just(u64::MAX), 0..100_000_000_u64],
        0..5_u8,
        0..5_u8,
        0..40_u8,
        prop_oneof![0..20_000_u64, Just(u64::MAX)],
        prop_oneof![0.0..20_000.0, Just(f64::NAN), Just(f64::INFINITY), Just(-1.0)],
    )
}

/// Runs made-up inputs through an engine; gives back everything that came of it, as text.
fn fold(inputs: &[(u64, u8, u8, u8, u64, f64)]) -> String {
    let mut rules = Vec::new();
    for (i, metric) in [
        Metric::TokensPerExecution,
        Metric::ResponseTime,
        Metric::TokensPerMinute,
        Metric::Silence,
        Metric::CacheHitRatio,
    ]
    .into_iter()
    .enumerate()
    {
        let mut r = rule(&format!("rule-{i}"), metric);
        r.threshold_lower = Some(Threshold::Fixed(1.0));
        r.threshold_upper = Some(Threshold::Fixed(if i == 1 { 3.0 } else { 5000.0 }));
        r.cooldown = Duration::from_secs(i as u64);
        r.group_by = [GroupBy::Agent, GroupBy::Execution, GroupBy::Model][i % 3];
        rules.push(r);
    }
    let mut quantile = rule("q", Metric::TokensPerExecution);
    quantile.statistic = Statistic::Quantile(0.9);
    rules.push(quantile);
    let bounds = Bounds {
        max_subjects: 3,
        max_executions: 4,
        execution_idle_seconds: 40,
        max_closed_incidents: 3,
    };
    let mut engine = Engine::new(Arc::new(book(rules.clone())), bounds);
    let mut out: Vec<Effect> = Vec::new();
    let mut text = String::new();
    for (millis, agent, execution, kind, count, ms) in inputs {
        let now = Now {
            mono: Mono::from_millis(*millis),
            wall: Wall::from_unix_millis(*millis as i64),
        };
        let mut o = tokens(&format!("a{agent}"), &format!("e{execution}"), *count);
        o.request_id = format!("r{}", kind % 3).into();
        o.duration_ms = *ms;
        o.ttft_ms = Some(*ms / 2.0);
        o.usage.cached_input_tokens = Some(count / 2);
        if kind % 4 == 0 {
            o.usage_source = UsageSource::Estimated;
        }
        let input = match kind {
            0..10 => Input::Tick,
            10..15 => Input::Progress(Box::new(o)),
            15 => Input::Operator(OperatorAct::Forget { agent: o.agent }),
            16 => Input::Operator(OperatorAct::Resolve {
                incident: engine.incidents().first().map_or("none".into(), |i| i.id.clone()),
                by: "x".to_owned(),
            }),
            17 => {
                rules.rotate_left(1);
                let some = rules.iter().take(4 + usize::from(*agent) % 2).cloned();
                Input::Rules(Arc::new(book(some)))
            }
            _ => Input::Observation(Box::new(o)),
        };
        engine.step(now, input, &mut out);
        for effect in out.drain(..) {
            match effect {
                Effect::Publish(set) => {
                    let mut all: Vec<String> = set.iter().map(|d| format!("{d:?}")).collect();
                    all.sort();
                    text.push_str(&all.join("\n"));
                }
                other => text.push_str(&format!("{other:?}\n")),
            }
        }
        let shown = (engine.rules(now), engine.agents(now), engine.incidents());
        assert!(shown.1.len() <= 4);
        assert!(shown.2.iter().all(|i| i.value.is_finite() && i.worst.is_finite()));
        let open = shown
            .2
            .iter()
            .filter(|i| i.state != IncidentState::Resolved)
            .count();
        let told_by_rules: u64 = shown.0.iter().map(|r| r.open_incidents).sum();
        assert_eq!(open as u64, told_by_rules);
        text.push_str(&format!("{shown:?}\n"));
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_same_inputs_give_the_same_effects(inputs in proptest::collection::vec(any_input(), 1..120)) {
        prop_assert_eq!(fold(&inputs), fold(&inputs));
    }

    #[test]
    fn windows_of_executions_agree_with_a_recount(
        calls in proptest::collection::vec((0_u64..4, 0_u8..6, 1_u64..3000), 1..150),
    ) {
        let mut r = explosion();
        r.threshold_upper = Some(Threshold::Fixed(1e12));
        let mut d = Driven::new(book([r]));
        let mut all: Vec<(u64, u8, u64)> = Vec::new();
        for (pause, execution, used) in calls {
            d.millis += pause * 1000;
            d.see(tokens("a", &format!("e{execution}"), used));
            all.push((d.millis, execution, used));
        }
        let at = d.millis / 1000;
        let (mut sum, mut n, mut samples) = (0, 0, 0);
        for execution in 0..6 {
            let calls: Vec<_> = all.iter().filter(|c| c.1 == execution).collect();
            if calls.last().is_some_and(|c| c.0 / 1000 + 60 > at) {
                n += 1;
                samples += calls.len() as u64;
                sum += calls.iter().map(|c| c.2).sum::<u64>();
            }
        }
        let seen = d.engine.rules(d.now())[0].worst[0].clone();
        prop_assert_eq!(seen.samples, samples);
        prop_assert_eq!(seen.value, Some(sum as f64 / f64::from(n)));
    }
}
