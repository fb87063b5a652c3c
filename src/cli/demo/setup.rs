//! The configuration of the demo: the mission's rules, with times short enough to be watched.

use std::net::SocketAddr;

use super::plan::{AGENTS, Bounds, MISSION, Planned, RUNAWAY};
use crate::config::{self, Compiled, Overrides};

/// The rule that the story is about.
pub(super) const RULE: &str = "token_explosion_detection";
/// Key of the webhook's signatures.
pub(super) const SECRET: &str = "whsec_ZnVzZWJveC1kZW1vLXNlY3JldA==";

/// What the configuration depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup {
    /// Numbers of the rule.
    pub(super) bounds: Bounds,
    /// What the throttle allows.
    pub(super) tokens_per_minute: u64,
    /// The simulated provider.
    pub(super) provider: SocketAddr,
    /// The webhook receiver.
    pub(super) receiver: SocketAddr,
}

/// A throttle that the runaway agent's ordinary work stays within: one and a half times of what is planned for it. And
/// one that lets a call of the runaway pass every six seconds or so, so that its effect on them is seen.
pub(super) fn throttle_for(plans: &[Vec<Planned>], minutes: f64, scale: f64) -> u64 {
    let planned: u64 = AGENTS
        .iter()
        .zip(plans)
        .filter(|(agent, _)| agent.name == RUNAWAY)
        .flat_map(|(_, plan)| plan)
        .map(|call| call.input + call.output)
        .sum();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to a small positive range"
    )]
    let rate = (planned as f64 / minutes.max(0.1) * 1.5).clamp(80e3 * scale.clamp(1.0, 20.0), 4e6) as u64;
    rate.next_multiple_of(10_000)
}

impl Setup {
    /// The rules and actions, as they are shown to the user.
    pub(super) fn rules(&self) -> String {
        let Bounds { baseline, threshold } = self.bounds;
        let tokens = self.tokens_per_minute;
        let fitted = if self.bounds == MISSION {
            String::new()
        } else {
            format!(
                "      # {} and {} in the mission; fitted to the trace",
                MISSION.baseline, MISSION.threshold
            )
        };
        format!(
            "\
agent_incident_rules:
  - name: {RULE}
    metric: tokens_per_execution
    baseline: {baseline}{fitted}
    threshold_upper: {threshold}
    window: 10s          # 5m in the mission
    for: 2s
    cooldown: 10s
    min_samples: 3
    action: throttle_and_alert
  - {{name: latency_creep, metric: p95_response_time, baseline: 2.5s, threshold_upper: 8s, window: 15m, \
action: escalate_to_on_call}}
  - {{name: output_quality_drop, metric: semantic_similarity_to_baseline, baseline: 0.87, \
threshold_lower: 0.65, window: 10m, action: rollback_and_notify}}
actions:
  throttle_and_alert:
    steps:
      - throttle: {{tokens_per_minute: {tokens}}}
      - downgrade_model:
        approval: automatic   # else a human is asked first
      - notify
"
        )
    }

    /// The whole file.
    pub(super) fn yaml(&self) -> String {
        format!(
            "\
upstreams:
  - {{name: simulated, url: \"http://{}\", provider: openai, families: [], proxy: none}}
limits:
  max_admission_wait: 2s
alerts:
  - {{name: on-call, kind: webhook, url: \"http://{}/on-call\", secret: {SECRET}}}
workers: 1
{}",
            self.provider,
            self.receiver,
            self.rules()
        )
    }

    /// Compiled, with free ports of 127.0.0.1 for clients and admin.
    ///
    /// # Errors
    /// Every problem of it; there should be none.
    pub(super) fn compile(&self) -> Result<Compiled, String> {
        let overrides = Overrides {
            listen: vec!["127.0.0.1:0".to_owned()],
            admin_listen: Some("127.0.0.1:0".to_owned()),
            ..Overrides::default()
        };
        config::compile("demo", &self.yaml(), &overrides, &|_| None)
            .map_err(|problems| format!("the demo's own configuration has problems:\n{problems}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_throttle_leaves_room_for_ordinary_work() {
        let call = Planned {
            at: Duration::ZERO,
            execution: 1,
            input: 900,
            output: 100,
        };
        let plans: Vec<Vec<Planned>> = AGENTS.iter().map(|_| vec![call; 100]).collect();
        assert_eq!(throttle_for(&plans, 1.0, 1.0), 150_000);
        assert_eq!(throttle_for(&[], 1.0, 1.0), 80_000);
        assert_eq!(throttle_for(&[], 1.0, 2.0), 160_000);
    }

    #[test]
    fn the_configuration_has_no_problems() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let setup = Setup {
            bounds: MISSION,
            tokens_per_minute: 60_000,
            provider: addr,
            receiver: addr,
        };
        let compiled = setup.compile().unwrap();
        assert_eq!(compiled.rulebook.rules.len(), 3);
        assert_eq!(compiled.targets.len(), 1);
    }

    #[test]
    fn the_missions_numbers_are_the_default() {
        let addr = SocketAddr::from(([127, 0, 0, 1], 1));
        let setup = |bounds| Setup {
            bounds,
            tokens_per_minute: 60_000,
            provider: addr,
            receiver: addr,
        };
        let rules = setup(MISSION).rules();
        assert!(rules.contains("baseline: 2500\n") && rules.contains("threshold_upper: 5000\n"));
        let other = setup(Bounds {
            baseline: 1300,
            threshold: 16_000,
        });
        assert!(
            other
                .rules()
                .contains("baseline: 1300      # 2500 and 5000 in the mission")
        );
    }
}
