//! The scenarios of the demo beside the first one: what is configured, what happens when, and what must come of it.

/// What `--scenario` chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scenario {
    TokenExplosion,
    UpstreamOutage,
    RunawayLoop,
    LatencyCreep,
    BadDeploy,
}

/// What happens at a second of a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// The main provider answers 503, or no longer.
    Fail(bool),
    /// The main provider takes so many times as long; 1 is as usual.
    Slow(u32),
    /// One execution of an agent does not end any more.
    Loop,
    /// An agent is deployed anew: as v2, which is broken, or as v3, which is not.
    Deploy(Version),
}

/// A version of the agent that is deployed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Broken,
    Mended,
}

/// One scenario.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) title: &'static str,
    /// The part of the configuration that the scene is about.
    pub(super) yaml: &'static str,
    /// More of the first upstream's settings, as one more `key: value` of a flow mapping.
    pub(super) upstream: &'static str,
    /// Seconds, what happens then, and how it is told.
    pub(super) acts: &'static [(u64, Act, &'static str)],
    /// What must be read in the timeline of an incident at the end.
    pub(super) must: &'static [&'static str],
    /// What an incident must be about: kind and name.
    pub(super) subject: &'static str,
}

/// The agent that loops.
pub(super) const LOOPING: &str = "research";
/// The agent that is deployed anew.
pub(super) const DEPLOYED: &str = "billing";
/// A model that no provider serves: what v2 asks for.
pub(super) const WRONG_MODEL: &str = "preview-gpt-4o-turbo";

impl Scenario {
    /// The scenario of a name.
    ///
    /// # Errors
    /// The names there are.
    pub(super) fn parse(name: &str) -> Result<Self, String> {
        match name {
            "token-explosion" => Ok(Self::TokenExplosion),
            "upstream-outage" => Ok(Self::UpstreamOutage),
            "runaway-loop" => Ok(Self::RunawayLoop),
            "latency-creep" => Ok(Self::LatencyCreep),
            "bad-deploy" => Ok(Self::BadDeploy),
            "quality-drop" => Err("output quality is not measured by this version yet".to_owned()),
            _ => Err(
                "expected token-explosion, upstream-outage, runaway-loop, latency-creep or bad-deploy"
                    .to_owned(),
            ),
        }
    }

    /// Its scene; `None` for the first one, which has a story of its own.
    pub(super) const fn scene(self) -> Option<&'static Scene> {
        match self {
            Self::TokenExplosion => None,
            Self::UpstreamOutage => Some(&OUTAGE),
            Self::RunawayLoop => Some(&LOOP),
            Self::LatencyCreep => Some(&CREEP),
            Self::BadDeploy => Some(&DEPLOY),
        }
    }
}

static LOOP: Scene = Scene {
    title: "an execution loops, is slowed down in vain, and is stopped",
    yaml: "\
agent_incident_rules:
  - name: runaway_loop
    metric: requests_per_execution
    group_by: execution
    baseline: 3
    threshold_upper: 15
    window: 10s
    for: 1s
    action: slow_down_then_stop
actions:
  slow_down_then_stop:
    steps:
      - {throttle: {requests_per_minute: 20}, verify_after: 8s}
      - {contain: {}, approval: automatic, lease: 20s}   # 1d by default
      - notify
",
    upstream: "",
    acts: &[(
        8,
        Act::Loop,
        "an execution of research does not end any more: the same call, over and over",
    )],
    must: &["step_applied", "step_failed", "resolved"],
    subject: "execution research-loop",
};

static OUTAGE: Scene = Scene {
    title: "the provider fails, several agents suffer, and the backup carries their traffic",
    yaml: "\
agent_incident_rules:
  - name: upstream_errors
    metric: error_rate
    baseline: 0.01
    threshold_upper: 0.1
    window: 8s
    min_samples: 4
    action: carry_over
actions:
  carry_over:
    steps:
      - {reroute: {to: backup}, approval: automatic, verify_after: 8s, on_failure: escalate}
      - notify
retries: {budget_percent: 0, min_per_minute: 1}   # small, so that the outage is felt at all
",
    upstream: "failover: [backup], breaker: {failures: 60, within: 10s, open_for: 5s}",
    acts: &[
        (10, Act::Fail(true), "the main provider answers 503 to everything"),
        (17, Act::Fail(false), "the main provider is back"),
    ],
    must: &["step_applied", "step_worked", "resolved"],
    subject: "upstream main",
};

static CREEP: Scene = Scene {
    title: "the provider gets slower and slower, and agents are moved to the backup",
    yaml: "\
agent_incident_rules:
  - name: latency_creep
    metric: p95_response_time
    baseline: 300ms
    threshold_upper: 1500ms
    window: 10s
    for: 1s
    min_samples: 4
    action: move_away
actions:
  move_away:
    steps:
      - {reroute: {to: backup}, approval: automatic, verify_after: 20s, on_failure: escalate}
      - notify
",
    upstream: "",
    acts: &[
        (10, Act::Slow(5), "the main provider gets slow: 5 times as long"),
        (
            14,
            Act::Slow(12),
            "the main provider gets slower: 12 times as long",
        ),
        (28, Act::Slow(1), "the main provider is as fast as before"),
    ],
    must: &["step_applied", "step_worked", "resolved"],
    subject: "upstream main",
};

static DEPLOY: Scene = Scene {
    title: "a new version of an agent fails, and is taken back to what the last good one did",
    yaml: "\
agent_incident_rules:
  - name: bad_deploy
    metric: error_rate
    baseline: 0.01
    threshold_upper: 0.2
    window: 10s
    for: 1s
    min_samples: 4
    action: take_back
actions:
  take_back:
    steps:
      - {rollback: {by: restore}, verify_after: 12s, on_failure: escalate}
      - notify
incidents:
  good_version: {min_exchanges: 10, min_age: 5s, max_error_rate: 5%}   # 50 and 10m by default
",
    upstream: "",
    acts: &[
        (
            12,
            Act::Deploy(Version::Broken),
            "billing v2 is deployed: it asks for a model that the provider does not have",
        ),
        (
            32,
            Act::Deploy(Version::Mended),
            "billing v3 is deployed: it is mended",
        ),
    ],
    must: &["step_applied", "step_worked", "resolved"],
    subject: "agent billing",
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_told() {
        for name in ["upstream-outage", "runaway-loop", "latency-creep", "bad-deploy"] {
            let scene = Scenario::parse(name).unwrap().scene().unwrap();
            assert!(scene.acts.is_sorted_by_key(|(at, _, _)| *at), "{name}");
        }
        assert_eq!(
            Scenario::parse("token-explosion")
                .unwrap()
                .scene()
                .map(|s| s.title),
            None
        );
        assert!(
            Scenario::parse("quality-drop")
                .unwrap_err()
                .contains("not measured")
        );
        assert!(Scenario::parse("x").unwrap_err().contains("bad-deploy"));
    }
}
