//! Who makes which call of a trace, in which execution, and what the rule must hold for that traffic.

use std::time::Duration;

use super::client::Shape;
use super::trace::Row;

/// An agent of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Agent {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) model: &'static str,
    pub(super) stream: bool,
    /// Share of the calls with long and with short answers that are its own, in tenths.
    shares: (u8, u8),
}

/// The agent that explodes.
pub(super) const RUNAWAY: &str = "research";

/// The agents of the demo; the shares add up to ten.
pub(super) const AGENTS: [Agent; 5] = [
    agent("billing", Shape::Chat, "gpt-4o", false, (3, 1)),
    agent("support", Shape::Messages, "claude-sonnet-4-5", true, (3, 1)),
    agent(RUNAWAY, Shape::Chat, "gpt-4o", true, (4, 1)),
    agent("coder", Shape::Responses, "gpt-4.1", true, (0, 5)),
    agent(
        "indexer",
        Shape::Embeddings,
        "text-embedding-3-small",
        false,
        (0, 2),
    ),
];

const fn agent(
    name: &'static str,
    shape: Shape,
    model: &'static str,
    stream: bool,
    shares: (u8, u8),
) -> Agent {
    Agent {
        name,
        shape,
        model,
        stream,
        shares,
    }
}

/// Answers below this many tokens are short: coding agents have many of them.
const SHORT: u64 = 45;
/// Most tokens of an execution of more than one call.
const SMALL_EXECUTION: u64 = 4_500;

/// One call that an agent is going to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) at: Duration,
    /// Numbered for each agent.
    pub(super) execution: u32,
    pub(super) input: u64,
    pub(super) output: u64,
}

/// Hands the calls of a trace to the agents, in the order of [`AGENTS`]. One to three calls in a row of an agent are an
/// execution, as long as it stays small.
pub(super) fn share(rows: &[Row], seed: u64) -> [Vec<Planned>; 5] {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5a5e);
    let mut plans: [Vec<Planned>; 5] = Default::default();
    let mut left = [0_u8; 5];
    let mut tokens = [0_u64; 5];
    for row in rows {
        let chosen = chosen(row.output < SHORT, rng.u8(0..10));
        let (Some(plan), Some(left), Some(tokens)) = (
            plans.get_mut(chosen),
            left.get_mut(chosen),
            tokens.get_mut(chosen),
        ) else {
            continue;
        };
        let these = row.input + row.output;
        let last = plan.last().map_or(0, |p| p.execution);
        let goes_on = *left > 0 && *tokens + these <= SMALL_EXECUTION;
        if goes_on {
            *left -= 1;
            *tokens += these;
        } else {
            *left = rng.u8(0..3);
            *tokens = these;
        }
        plan.push(Planned {
            at: row.at,
            execution: if goes_on { last } else { last + 1 },
            input: row.input,
            output: row.output,
        });
    }
    plans
}

/// Which agent the `tenth` tenth of the calls belongs to.
fn chosen(short: bool, tenth: u8) -> usize {
    let mut sum = 0;
    AGENTS
        .iter()
        .position(|a| {
            sum += if short { a.shares.1 } else { a.shares.0 };
            tenth < sum
        })
        .unwrap_or(0)
}

/// The numbers of the rule: what an execution normally uses, and what it must not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) baseline: u64,
    pub(super) threshold: u64,
}

/// The mission's own numbers.
pub(super) const MISSION: Bounds = Bounds {
    baseline: 2_500,
    threshold: 5_000,
};

impl Bounds {
    /// Numbers that a recorded trace stays within: its mean execution, and a bit more than its largest.
    pub(super) fn around(plans: &[Vec<Planned>]) -> Self {
        let executions: Vec<u64> = plans
            .iter()
            .flat_map(|plan| plan.chunk_by(|a, b| a.execution == b.execution))
            .map(|calls| calls.iter().map(|c| c.input + c.output).sum())
            .collect();
        let count = u64::try_from(executions.len()).unwrap_or(u64::MAX).max(1);
        let mean = executions.iter().sum::<u64>() / count;
        let most = executions.iter().copied().max().unwrap_or(0);
        Self {
            baseline: mean.max(100).next_multiple_of(100),
            threshold: (most + most / 6).max(MISSION.threshold).next_multiple_of(500),
        }
    }

    /// How much larger than the mission's they are; at least 1.
    pub(super) fn scale(&self) -> f64 {
        self.threshold.max(MISSION.threshold) as f64 / MISSION.threshold as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::trace::invented;

    fn invented_plans() -> [Vec<Planned>; 5] {
        share(&invented(3, Duration::from_secs(300), 120.0), 3)
    }

    #[test]
    fn shares_add_up() {
        for short in [false, true] {
            let sum: u8 = AGENTS
                .iter()
                .map(|a| if short { a.shares.1 } else { a.shares.0 })
                .sum();
            assert_eq!(sum, 10);
        }
        assert!(AGENTS.iter().any(|a| a.name == RUNAWAY));
    }

    #[test]
    fn every_call_is_made_by_somebody() {
        let rows = invented(3, Duration::from_secs(300), 120.0);
        let plans = share(&rows, 3);
        assert_eq!(plans.iter().map(Vec::len).sum::<usize>(), rows.len());
        for plan in &plans {
            assert!(plan.len() > 10);
            assert!(plan.is_sorted_by_key(|p| (p.at, p.execution)));
        }
    }

    #[test]
    fn calm_executions_stay_below_the_missions_threshold() {
        for plan in &invented_plans() {
            for calls in plan.chunk_by(|a, b| a.execution == b.execution) {
                let tokens: u64 = calls.iter().map(|c| c.input + c.output).sum();
                assert!(calls.len() <= 3 && tokens < MISSION.threshold, "{calls:?}");
            }
        }
    }

    #[test]
    fn bounds_hold_the_trace() {
        let planned = |execution, input| Planned {
            at: Duration::ZERO,
            execution,
            input,
            output: 0,
        };
        let plans = [
            vec![planned(1, 1000), planned(1, 2000), planned(2, 9000)],
            vec![planned(1, 500)],
        ];
        let bounds = Bounds::around(&plans);
        assert_eq!(
            bounds,
            Bounds {
                baseline: 4200,
                threshold: 10_500
            }
        );
        assert!((bounds.scale() - 2.1).abs() < 1e-9);
        assert_eq!(Bounds::around(&[]).threshold, MISSION.threshold);
    }
}
