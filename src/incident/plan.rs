//! What the chain of an action comes to for one incident: each step ordered, told, left waiting or skipped, with why.

use std::time::Duration;

use super::metric::{Unit, number};
use super::pace::Rate;
use super::rule::{Action, Approval, Mode, Step, StepKind};
use crate::types::directive::{Order, Subject};

/// Rates that a derived throttle never goes below: an agent is slowed, not choked.
pub(crate) const LEAST: Rate = Rate {
    requests: 6.0,
    tokens: 1000.0,
};

/// A directive never lives for less: it is renewed by ticks a second apart.
pub(crate) const SHORTEST_LEASE: Duration = Duration::from_secs(5);
/// A notice is never repeated faster.
const SHORTEST_REPEAT: Duration = Duration::from_secs(10);

/// One step of a plan.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Planned {
    /// The step's name, as in the configuration.
    pub(crate) name: String,
    /// What is done about it.
    pub(crate) decision: Decision,
}

/// What is done about a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Requests must obey this.
    Order {
        /// Whom it binds.
        subject: Subject,
        /// What.
        order: Order,
        /// For how long at a time.
        lease: Duration,
    },
    /// People are told.
    Tell {
        /// Which targets; empty means all.
        targets: Vec<String>,
        /// Pause between repetitions, where it is repeated.
        repeat_every: Option<Duration>,
    },
    /// A human must agree.
    Waits {
        /// Why.
        why: String,
    },
    /// Not done.
    Skipped {
        /// Why.
        why: String,
    },
}

/// What a plan depends on.
#[derive(Debug, Clone)]
pub(crate) struct Circumstances {
    /// How far the rule may go.
    pub(crate) mode: Mode,
    /// Whom directives bind, or why nobody.
    pub(crate) binds: Result<Subject, &'static str>,
    /// Why no directive may be given now, whoever it binds.
    pub(crate) held_back: Option<String>,
    /// How fast the agent (or the fleet, for one agent on average) goes now.
    pub(crate) pace: Rate,
    /// How fast it went before the incident.
    pub(crate) usual: Option<Rate>,
    /// The unit of the metric in breach.
    pub(crate) unit: Unit,
    /// How many times its normal value the metric has now.
    pub(crate) excess: f64,
}

/// The plan for one incident.
pub(crate) fn plan(action: &Action, circumstances: &Circumstances) -> Vec<Planned> {
    action
        .steps
        .iter()
        .map(|step| Planned {
            name: name(step),
            decision: decide(step, circumstances),
        })
        .collect()
}

/// An order for people.
pub(crate) fn describe(order: &Order) -> String {
    match order {
        Order::Throttle {
            requests_per_minute,
            tokens_per_minute,
        } => {
            let requests = requests_per_minute.map(|n| format!("{} requests/min", number(f64::from(n))));
            let tokens = tokens_per_minute.map(|n| format!("{} tokens/min", number(f64::from(n))));
            let parts: Vec<String> = [requests, tokens].into_iter().flatten().collect();
            format!("throttle to {}", parts.join(" and "))
        }
        Order::CapConcurrency { max_in_flight } => format!("at most {max_in_flight} requests in flight"),
        Order::DowngradeModel { to: Some(to) } => format!("model switched to {to}"),
        Order::DowngradeModel { to: None } => "model switched to a cheaper one by the model table".to_owned(),
    }
}

fn name(step: &Step) -> String {
    match &step.kind {
        StepKind::Throttle { .. } => "throttle",
        StepKind::CapConcurrency { .. } => "cap_concurrency",
        StepKind::DowngradeModel { .. } => "downgrade_model",
        StepKind::Notify { .. } => "notify",
        StepKind::Escalate { .. } => "escalate",
        StepKind::NotYetAvailable { name } => name,
    }
    .to_owned()
}

fn decide(step: &Step, c: &Circumstances) -> Decision {
    let order = match &step.kind {
        StepKind::Notify { targets } => {
            return Decision::Tell {
                targets: targets.clone(),
                repeat_every: None,
            };
        }
        StepKind::Escalate {
            targets,
            repeat_every,
        } => {
            return Decision::Tell {
                targets: targets.clone(),
                repeat_every: Some((*repeat_every).max(SHORTEST_REPEAT)),
            };
        }
        StepKind::NotYetAvailable { .. } => {
            return Decision::Skipped {
                why: "this version knows the step but cannot carry it out yet".to_owned(),
            };
        }
        StepKind::Throttle {
            requests_per_minute,
            tokens_per_minute,
        } => throttle(*requests_per_minute, *tokens_per_minute, c),
        StepKind::CapConcurrency { max_in_flight } => Order::CapConcurrency {
            max_in_flight: (*max_in_flight).max(1),
        },
        StepKind::DowngradeModel { to } => Order::DowngradeModel { to: to.clone() },
    };
    let skipped = |why: String| Decision::Skipped { why };
    let waits = |why: &str| Decision::Waits { why: why.to_owned() };
    let subject = match (&c.binds, c.mode) {
        (_, Mode::Shadow | Mode::Warn) => return skipped("the rule only warns (mode warn)".to_owned()),
        (Err(why), _) => return skipped((*why).to_owned()),
        (Ok(subject), Mode::Approve | Mode::Enforce) => subject.clone(),
    };
    if let Some(why) = &c.held_back {
        return skipped(why.clone());
    }
    match (c.mode, step.approval) {
        (Mode::Approve, _) => waits("needs approval (mode approve)"),
        (_, Approval::Required) => waits("needs approval (the step asks for it)"),
        (_, Approval::Automatic) => Decision::Order {
            subject,
            order,
            lease: step.lease.max(SHORTEST_LEASE),
        },
    }
}

/// Rates that were given, each at least 1. When none was given, both are derived: what the agent did in usual minutes
/// before the incident where the breach is one of volume (tokens, requests, money), never more than it does now; else
/// its present rate, divided by how many times too much the metric is (by two where volume is not what is too much).
fn throttle(requests: Option<u32>, tokens: Option<u32>, c: &Circumstances) -> Order {
    if requests.is_some() || tokens.is_some() {
        return Order::Throttle {
            requests_per_minute: requests.map(|n| n.max(1)),
            tokens_per_minute: tokens.map(|n| n.max(1)),
        };
    }
    let volume = matches!(c.unit, Unit::Tokens | Unit::Requests | Unit::Dollars);
    let divisor = if volume && c.excess.is_finite() {
        c.excess.max(1.0)
    } else {
        2.0
    };
    let usual = c.usual.filter(|_| volume);
    let derive = |now: f64, usual: Option<f64>, least: f64| {
        let rate = usual.map_or(now / divisor, |u| u.min(now));
        Some(rate.max(least).ceil().min(f64::from(u32::MAX)) as u32)
    };
    Order::Throttle {
        requests_per_minute: derive(c.pace.requests, usual.map(|u| u.requests), LEAST.requests),
        tokens_per_minute: derive(c.pace.tokens, usual.map(|u| u.tokens), LEAST.tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circumstances() -> Circumstances {
        Circumstances {
            mode: Mode::Enforce,
            binds: Ok(Subject::Agent("a".into())),
            held_back: None,
            pace: Rate {
                requests: 120.0,
                tokens: 400_000.0,
            },
            usual: Some(Rate {
                requests: 60.0,
                tokens: 50_000.0,
            }),
            unit: Unit::Tokens,
            excess: 8.0,
        }
    }

    fn step(kind: StepKind) -> Step {
        Step {
            kind,
            approval: Approval::Automatic,
            lease: Duration::from_secs(600),
        }
    }

    fn only(kind: StepKind, c: &Circumstances) -> Decision {
        let action = Action {
            steps: vec![step(kind)],
        };
        plan(&action, c).remove(0).decision
    }

    fn derived(c: &Circumstances) -> (Option<u32>, Option<u32>) {
        let kind = StepKind::Throttle {
            requests_per_minute: None,
            tokens_per_minute: None,
        };
        match only(kind, c) {
            Decision::Order {
                order:
                    Order::Throttle {
                        requests_per_minute,
                        tokens_per_minute,
                    },
                ..
            } => (requests_per_minute, tokens_per_minute),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn derived_rates() {
        let mut c = circumstances();
        assert_eq!(derived(&c), (Some(60), Some(50_000)), "as usual");
        c.usual = None;
        assert_eq!(derived(&c), (Some(15), Some(50_000)), "an eighth of now");
        c.unit = Unit::Seconds;
        c.usual = circumstances().usual;
        assert_eq!(derived(&c), (Some(60), Some(200_000)), "half of now");
        c.unit = Unit::Tokens;
        c.usual = Some(Rate {
            requests: 500.0,
            tokens: 900_000.0,
        });
        assert_eq!(derived(&c), (Some(120), Some(400_000)), "usual was more than now");
        c.pace = Rate::default();
        c.usual = None;
        assert_eq!(derived(&c), (Some(6), Some(1000)), "the floor");
        c.excess = f64::NAN;
        c.pace.tokens = f64::MAX;
        assert_eq!(derived(&c).1, Some(u32::MAX));
    }

    #[test]
    fn given_rates_stand_alone() {
        let c = circumstances();
        let kind = StepKind::Throttle {
            requests_per_minute: Some(0),
            tokens_per_minute: None,
        };
        let Decision::Order { order, lease, .. } = only(kind, &c) else {
            panic!()
        };
        assert_eq!(
            order,
            Order::Throttle {
                requests_per_minute: Some(1),
                tokens_per_minute: None
            }
        );
        assert_eq!(lease, Duration::from_secs(600));
        assert_eq!(describe(&order), "throttle to 1 requests/min");
    }

    #[test]
    fn who_decides() {
        let cap = || StepKind::CapConcurrency { max_in_flight: 0 };
        let mut c = circumstances();
        assert!(matches!(
            only(cap(), &c),
            Decision::Order {
                order: Order::CapConcurrency { max_in_flight: 1 },
                ..
            }
        ));
        c.mode = Mode::Approve;
        assert_eq!(
            only(cap(), &c),
            Decision::Waits {
                why: "needs approval (mode approve)".to_owned()
            }
        );
        c.held_back = Some("why".to_owned());
        assert!(matches!(only(cap(), &c), Decision::Skipped { why } if why == "why"));
        c.mode = Mode::Warn;
        assert!(matches!(only(cap(), &c), Decision::Skipped { why } if why.contains("mode warn")));
        assert!(matches!(
            only(StepKind::Notify { targets: vec![] }, &c),
            Decision::Tell {
                repeat_every: None,
                ..
            }
        ));
        let mut c = circumstances();
        c.binds = Err("nobody");
        assert!(matches!(only(cap(), &c), Decision::Skipped { why } if why == "nobody"));
        let unknown = StepKind::NotYetAvailable {
            name: "rollback".to_owned(),
        };
        assert!(matches!(only(unknown, &c), Decision::Skipped { .. }));
        let mut required = step(cap());
        required.approval = Approval::Required;
        let action = Action {
            steps: vec![required],
        };
        let planned = plan(&action, &circumstances());
        assert!(matches!(
            planned.first(),
            Some(Planned {
                decision: Decision::Waits { .. },
                ..
            })
        ));
    }
}
