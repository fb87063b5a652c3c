//! What a step comes to for one incident: ordered, told, asked about or left out, with why.

use std::time::Duration;

use super::metric::{Unit, number};
use super::pace::Rate;
use super::rule::{Approval, Level, Mode, RollbackBy, Step, StepKind};
use crate::types::directive::{Order, Subject};
use crate::types::ids::{AgentId, AgentVersion};

/// Rates that a derived throttle never goes below: an agent is slowed, not choked.
pub(crate) const LEAST: Rate = Rate {
    requests: 6.0,
    tokens: 1000.0,
};

/// Why a step is left out while counts are not reported.
pub(crate) const ESTIMATES: &str = "the counts are estimates, and the rule acts on reported counts only";

/// A directive never lives for less: it is renewed by ticks a second apart.
pub(crate) const SHORTEST_LEASE: Duration = Duration::from_secs(5);
/// A notice is never repeated faster.
const SHORTEST_REPEAT: Duration = Duration::from_secs(10);

/// What is done about a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// Requests must obey this.
    Order {
        /// Whom it binds.
        subjects: Vec<Subject>,
        /// What.
        orders: Vec<Order>,
        /// For how long at a time.
        lease: Duration,
        /// Whether it is renewed while the incident is open.
        renewed: bool,
    },
    /// People are told.
    Tell {
        /// Which targets; empty means all.
        targets: Vec<String>,
    },
    /// The on-call is told until somebody acknowledges.
    Escalate {
        /// Whom at which level.
        levels: Vec<Level>,
        /// Pause between repetitions.
        repeat_every: Duration,
    },
    /// Another system is asked to do something.
    Call {
        /// The target's name.
        target: String,
        /// What it is asked to do.
        action: String,
        /// The version that is to go.
        from_version: Option<AgentVersion>,
        /// The version that is wanted.
        to_version: Option<AgentVersion>,
    },
    /// A human must agree.
    Ask {
        /// What would be done.
        what: String,
        /// Why it is asked for.
        why: String,
    },
    /// Not done.
    Skip {
        /// Why.
        why: String,
    },
}

/// What a decision depends on.
#[derive(Debug, Clone)]
pub(crate) struct Circumstances {
    /// How far the rule may go.
    pub(crate) mode: Mode,
    /// Whom directives bind, or why nobody.
    pub(crate) binds: Result<Vec<Subject>, &'static str>,
    /// Why nothing may be done now, not even by a human.
    pub(crate) held_back: Option<String>,
    /// Why automation has to ask, whatever the step: the brake, or its limit.
    pub(crate) must_ask: Option<String>,
    /// How fast the agent (or the fleet, for one agent on average) goes now.
    pub(crate) pace: Rate,
    /// How fast it went before the incident.
    pub(crate) usual: Option<Rate>,
    /// The unit of the metric in breach; `None` where it is not about one.
    pub(crate) unit: Option<Unit>,
    /// How many times its normal value the metric has now.
    pub(crate) excess: f64,
    /// Agents seen in the last hour.
    pub(crate) agents: usize,
    /// Agents that other incidents bind, by the kind of order.
    pub(crate) bound: Vec<(&'static str, AgentId)>,
    /// Whether what is ordered is renewed while the incident is open: only a metric can say when it is no longer needed.
    pub(crate) renews: bool,
    /// Why somebody asked for it.
    pub(crate) reason: Option<String>,
    /// The version in use.
    pub(crate) version: Option<AgentVersion>,
    /// The last version that was good, when it is not the one in use; or why there is none.
    pub(crate) good_version: Result<AgentVersion, String>,
}

/// What is done about a step; `cleared`: a human has agreed to it.
pub(crate) fn decide(step: &Step, cleared: bool, c: &Circumstances) -> Decision {
    match &step.kind {
        StepKind::Notify { targets } => {
            return Decision::Tell {
                targets: targets.clone(),
            };
        }
        StepKind::Escalate { levels, repeat_every } => {
            return Decision::Escalate {
                levels: levels.clone(),
                repeat_every: (*repeat_every).max(SHORTEST_REPEAT),
            };
        }
        _ => {}
    }
    let skip = |why: String| Decision::Skip { why };
    if matches!(c.mode, Mode::Shadow | Mode::Warn) {
        return skip("the rule only warns (mode warn)".to_owned());
    }
    let wanted = match wanted(step, c) {
        Ok(wanted) => wanted,
        Err(why) => return skip(why),
    };
    if let Some(why) = &c.held_back {
        return skip(why.clone());
    }
    let why_ask = (!cleared).then(|| must_ask(step, &wanted, c)).flatten();
    match (why_ask, wanted) {
        (Some(why), wanted) => Decision::Ask {
            what: wanted.describe(),
            why,
        },
        (None, Wanted::Orders { subjects, orders }) => {
            // What outlasts the recovery must end by itself.
            let renewed = c.renews && !orders.iter().any(Order::outlasts_recovery);
            Decision::Order {
                subjects,
                orders,
                lease: step.lease.max(SHORTEST_LEASE),
                renewed,
            }
        }
        (
            None,
            Wanted::Call {
                target,
                action,
                from_version,
                to_version,
            },
        ) => Decision::Call {
            target,
            action,
            from_version,
            to_version,
        },
    }
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
        Order::ReduceBatch {
            max_inputs,
            max_choices,
        } => {
            let choices = max_choices.map_or(String::new(), |n| format!(", at most {n} answers (n)"));
            format!("batches of at most {max_inputs} inputs{choices}")
        }
        Order::CapOutput {
            max_tokens,
            cut_streams,
        } => {
            let cut = if *cut_streams {
                ", longer streams are cut"
            } else {
                ""
            };
            format!("at most {} output tokens{cut}", number(f64::from(*max_tokens)))
        }
        Order::DowngradeModel { to: Some(to) } => format!("model switched to {to}"),
        Order::DowngradeModel { to: None } => "model switched to a cheaper one by the model table".to_owned(),
        Order::Reroute {
            to,
            share_percent: 100,
        } => format!("requests go to upstream {to}"),
        Order::Reroute { to, share_percent } => {
            format!("{share_percent} % of executions go to upstream {to}")
        }
        Order::ExtendTimeouts { percent } => {
            format!(
                "timeouts are {} times as long",
                number(f64::from(*percent) / 100.0)
            )
        }
        Order::SetParameters { set } => {
            let parts: Vec<String> = set
                .iter()
                .map(|(name, value)| format!("{name} = {value}"))
                .collect();
            format!("parameters set: {}", parts.join(", "))
        }
        Order::RestoreVersion { version } => format!("as version {version} again"),
        Order::Contain { .. } => "contained: nothing is sent".to_owned(),
    }
}

/// What a step would do, before anyone is asked.
enum Wanted {
    Orders {
        subjects: Vec<Subject>,
        orders: Vec<Order>,
    },
    Call {
        target: String,
        action: String,
        from_version: Option<AgentVersion>,
        to_version: Option<AgentVersion>,
    },
}

impl Wanted {
    fn describe(&self) -> String {
        match self {
            Self::Orders { orders, .. } => orders.iter().map(describe).collect::<Vec<_>>().join("; "),
            Self::Call {
                target,
                action,
                to_version: Some(version),
                ..
            } => format!("{target} is asked for {action} to version {version}"),
            Self::Call { target, action, .. } => format!("{target} is asked for {action}"),
        }
    }
}

fn wanted(step: &Step, c: &Circumstances) -> Result<Wanted, String> {
    let order = match &step.kind {
        StepKind::Throttle {
            requests_per_minute,
            tokens_per_minute,
        } => throttle(*requests_per_minute, *tokens_per_minute, c),
        StepKind::CapConcurrency { max_in_flight } => Order::CapConcurrency {
            max_in_flight: (*max_in_flight).max(1),
        },
        StepKind::ReduceBatch {
            max_inputs,
            max_choices,
            max_in_flight,
        } => {
            let batch = Order::ReduceBatch {
                max_inputs: (*max_inputs).max(1),
                max_choices: max_choices.map(|n| n.max(1)),
            };
            let cap = max_in_flight.map(|n| Order::CapConcurrency {
                max_in_flight: n.max(1),
            });
            return orders(c, [batch].into_iter().chain(cap).collect());
        }
        StepKind::CapOutput {
            max_tokens,
            cut_streams,
        } => Order::CapOutput {
            max_tokens: (*max_tokens).max(1),
            cut_streams: *cut_streams,
        },
        StepKind::DowngradeModel { to } => Order::DowngradeModel { to: to.clone() },
        StepKind::Reroute { to } => Order::Reroute {
            to: to.clone(),
            share_percent: 100,
        },
        StepKind::ExtendTimeouts { percent } => Order::ExtendTimeouts {
            percent: (*percent).clamp(100, 1000),
        },
        StepKind::SetParameters { set } => Order::SetParameters { set: set.clone() },
        StepKind::Contain => Order::Contain {
            reason: match &c.reason {
                Some(reason) => reason.clone(),
                None => "an incident response stopped this agent".to_owned(),
            },
        },
        StepKind::Rollback { by } => return rollback(by, c),
        StepKind::RunWebhook { target, action } => {
            return Ok(Wanted::Call {
                target: target.clone(),
                action: action.clone(),
                from_version: c.version.clone(),
                to_version: c.good_version.clone().ok(),
            });
        }
        StepKind::Notify { .. } | StepKind::Escalate { .. } => return Err(String::new()),
    };
    orders(c, vec![order])
}

fn orders(c: &Circumstances, orders: Vec<Order>) -> Result<Wanted, String> {
    Ok(Wanted::Orders {
        subjects: c.binds.clone().map_err(ToOwned::to_owned)?,
        orders,
    })
}

/// Back to the good version. Only requests of the version in use are bound, so that a new one is let through.
fn rollback(by: &RollbackBy, c: &Circumstances) -> Result<Wanted, String> {
    let good = c.good_version.clone()?;
    let order = match by {
        RollbackBy::Webhook { target } => {
            return Ok(Wanted::Call {
                target: target.clone(),
                action: "rollback".to_owned(),
                from_version: c.version.clone(),
                to_version: Some(good),
            });
        }
        RollbackBy::Restore => Order::RestoreVersion { version: good },
        RollbackBy::Reroute { to } => Order::Reroute {
            to: to.clone(),
            share_percent: 100,
        },
    };
    let subjects = c.binds.clone().map_err(ToOwned::to_owned)?;
    let subjects = subjects
        .into_iter()
        .map(|subject| match (subject, &c.version) {
            (Subject::Agent(agent), Some(version)) => Subject::Version {
                agent,
                version: version.clone(),
            },
            (subject, _) => subject,
        })
        .collect();
    Ok(Wanted::Orders {
        subjects,
        orders: vec![order],
    })
}

/// Why a human has to agree; `None`: nobody has to.
fn must_ask(step: &Step, wanted: &Wanted, c: &Circumstances) -> Option<String> {
    if c.mode == Mode::Approve {
        return Some("mode approve: every step is asked for".to_owned());
    }
    if step.approval == Approval::Required {
        return Some("the step asks for approval".to_owned());
    }
    if let Some(why) = &c.must_ask {
        return Some(why.clone());
    }
    match wanted {
        Wanted::Orders { subjects, .. } => beyond_radius(step, subjects, &c.bound, c.agents),
        Wanted::Call { .. } => None,
    }
}

/// Why `subjects` may not be bound by a step without asking: with those that are `bound` by its kind already, they would
/// be too many of the `agents` there are.
pub(crate) fn beyond_radius(
    step: &Step,
    subjects: &[Subject],
    bound: &[(&'static str, AgentId)],
    agents: usize,
) -> Option<String> {
    let (kind, radius) = (step.kind.name(), step.blast_radius);
    let known = agents.max(1);
    let mut agents: Vec<&AgentId> = bound.iter().filter(|(k, _)| *k == kind).map(|(_, a)| a).collect();
    let mut fleet = false;
    for subject in subjects {
        match subject.agent() {
            Some(agent) => agents.push(agent),
            None => fleet = true,
        }
    }
    agents.sort_unstable();
    agents.dedup();
    let count = if fleet { known } else { agents.len() };
    let share = count as f64 / known as f64;
    if let Some(max) = radius.max_agents.filter(|max| count > *max as usize) {
        return Some(format!(
            "blast radius: it would bind {count} agents (limit {max})"
        ));
    }
    // One agent is never too large a share: a fleet of one would always have to ask.
    let max = radius.max_share.filter(|max| count > 1 && share > *max)?;
    Some(format!(
        "blast radius: it would bind {count} of {known} agents (limit {} %)",
        number(max * 100.0)
    ))
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
    let volume = matches!(c.unit, Some(Unit::Tokens | Unit::Requests | Unit::Dollars));
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
    use super::super::rule::BlastRadius;
    use super::*;

    fn circumstances() -> Circumstances {
        Circumstances {
            mode: Mode::Enforce,
            binds: Ok(vec![Subject::Agent("a".into())]),
            held_back: None,
            must_ask: None,
            pace: Rate {
                requests: 120.0,
                tokens: 400_000.0,
            },
            usual: Some(Rate {
                requests: 60.0,
                tokens: 50_000.0,
            }),
            unit: Some(Unit::Tokens),
            excess: 8.0,
            agents: 4,
            bound: Vec::new(),
            renews: true,
            reason: None,
            version: Some("v2".into()),
            good_version: Ok("v1".into()),
        }
    }

    fn step(kind: StepKind) -> Step {
        Step {
            approval: Approval::Automatic,
            ..Step::new(kind, Duration::from_secs(600))
        }
    }

    fn only(kind: StepKind, c: &Circumstances) -> Decision {
        decide(&step(kind), false, c)
    }

    fn one_order(decision: Decision) -> (Vec<Subject>, Order, bool) {
        match decision {
            Decision::Order {
                subjects,
                mut orders,
                renewed,
                ..
            } if orders.len() == 1 => (subjects, orders.remove(0), renewed),
            other => panic!("{other:?}"),
        }
    }

    fn derived(c: &Circumstances) -> (Option<u32>, Option<u32>) {
        let kind = StepKind::Throttle {
            requests_per_minute: None,
            tokens_per_minute: None,
        };
        match one_order(only(kind, c)).1 {
            Order::Throttle {
                requests_per_minute,
                tokens_per_minute,
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
        c.unit = Some(Unit::Seconds);
        c.usual = circumstances().usual;
        assert_eq!(derived(&c), (Some(60), Some(200_000)), "half of now");
        c.unit = Some(Unit::Tokens);
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
        let decision = only(kind, &c);
        assert!(matches!(&decision, Decision::Order { lease, renewed: true, .. } if lease.as_secs() == 600));
        let (_, order, _) = one_order(decision);
        assert_eq!(
            order,
            Order::Throttle {
                requests_per_minute: Some(1),
                tokens_per_minute: None
            }
        );
        assert_eq!(describe(&order), "throttle to 1 requests/min");
    }

    fn asked(decision: &Decision) -> Option<&str> {
        match decision {
            Decision::Ask { why, .. } => Some(why),
            _ => None,
        }
    }

    #[test]
    fn who_decides() {
        let cap = || step(StepKind::CapConcurrency { max_in_flight: 0 });
        let mut c = circumstances();
        let (_, order, _) = one_order(decide(&cap(), false, &c));
        assert_eq!(order, Order::CapConcurrency { max_in_flight: 1 });
        c.must_ask = Some("the brake is on".to_owned());
        assert_eq!(asked(&decide(&cap(), false, &c)), Some("the brake is on"));
        assert!(matches!(decide(&cap(), true, &c), Decision::Order { .. }));
        let mut required = cap();
        required.approval = Approval::Required;
        assert_eq!(
            asked(&decide(&required, false, &circumstances())),
            Some("the step asks for approval")
        );
        c.mode = Mode::Approve;
        assert_eq!(
            asked(&decide(&cap(), false, &c)),
            Some("mode approve: every step is asked for")
        );
        c.held_back = Some("why".to_owned());
        assert!(matches!(decide(&cap(), true, &c), Decision::Skip { why } if why == "why"));
        c.mode = Mode::Warn;
        assert!(matches!(decide(&cap(), true, &c), Decision::Skip { why } if why.contains("mode warn")));
        let notify = step(StepKind::Notify { targets: vec![] });
        assert!(matches!(decide(&notify, false, &c), Decision::Tell { .. }));
        let mut c = circumstances();
        c.binds = Err("nobody");
        assert!(matches!(decide(&cap(), false, &c), Decision::Skip { why } if why == "nobody"));
    }

    #[test]
    fn how_far_a_step_may_reach() {
        let mut limited = step(StepKind::CapConcurrency { max_in_flight: 1 });
        let mut c = circumstances();
        limited.blast_radius.max_share = Some(0.25);
        assert_eq!(
            asked(&decide(&limited, false, &c)),
            None,
            "one agent may always be bound"
        );
        c.bound = vec![
            ("cap_concurrency", "a".into()),
            ("cap_concurrency", "b".into()),
            ("throttle", "c".into()),
        ];
        assert_eq!(
            asked(&decide(&limited, false, &c)),
            Some("blast radius: it would bind 2 of 4 agents (limit 25 %)")
        );
        limited.blast_radius = BlastRadius {
            max_agents: Some(3),
            max_share: None,
        };
        assert_eq!(asked(&decide(&limited, false, &c)), None);
        c.binds = Ok(vec![Subject::Fleet]);
        assert_eq!(
            asked(&decide(&limited, false, &c)),
            Some("blast radius: it would bind 4 agents (limit 3)")
        );
    }

    #[test]
    fn back_to_a_good_version() {
        let roll = |by| StepKind::Rollback { by };
        let mut c = circumstances();
        let (subjects, order, renewed) = one_order(only(roll(RollbackBy::Restore), &c));
        assert_eq!(
            subjects,
            [Subject::Version {
                agent: "a".into(),
                version: "v2".into()
            }]
        );
        assert_eq!(
            (order, renewed),
            (Order::RestoreVersion { version: "v1".into() }, false)
        );
        let call = only(
            roll(RollbackBy::Webhook {
                target: "argo".to_owned(),
            }),
            &c,
        );
        assert!(
            matches!(&call, Decision::Call { target, action, to_version: Some(v), .. } if target == "argo" && action == "rollback" && v.as_str() == "v1"),
            "{call:?}"
        );
        c.good_version = Err("no other version was seen".to_owned());
        assert!(
            matches!(only(roll(RollbackBy::Restore), &c), Decision::Skip { why } if why.contains("no other"))
        );
    }
}
