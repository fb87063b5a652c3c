//! From what a request asks to be done to the steps of a chain: the named chain, with its settings put in their place.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::body::Length;
use super::error::Fault;
use crate::config::nearest_word;
use crate::incident::rule::{Action, RollbackBy, Step, StepKind};
use crate::types::ids::ActionName;

/// A lease where neither the request nor the chain says.
const LEASE: Duration = Duration::from_secs(900);
/// The same for what outlasts the incident.
const LASTING_LEASE: Duration = Duration::from_secs(86_400);
/// Shortest and longest lease, in seconds.
pub(super) const LEASES: std::ops::RangeInclusive<u64> = 5..=7 * 86_400;
/// After how long a step may be judged, in seconds.
const VERIFY: std::ops::RangeInclusive<u64> = 1..=86_400;
/// Where people who are told of it look.
const REMEDIATION: &str = "/remediation";

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["action"]))]
pub(super) struct Remediation {
    /// The name of a chain of the configuration (built-in ones included), or a kind of step.
    #[schemars(length(min = 1, max = 200))]
    pub(super) action: Option<String>,
    /// The model to switch to.
    #[schemars(length(min = 1, max = 200))]
    pub(super) new_model: Option<String>,
    /// Inputs in one embedding call.
    #[schemars(range(min = 1, max = 100_000))]
    pub(super) batch_size: Option<u32>,
    /// Tokens a minute.
    #[schemars(range(min = 1, max = 4_000_000_000_u32))]
    pub(super) tokens_per_minute: Option<u32>,
    /// Requests a minute.
    #[schemars(range(min = 1, max = 4_000_000_000_u32))]
    pub(super) requests_per_minute: Option<u32>,
    /// Exchanges in flight.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_in_flight: Option<u32>,
    /// Output tokens of one exchange.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(super) max_output_tokens: Option<u32>,
    /// The upstream to send requests to.
    #[schemars(length(min = 1, max = 200))]
    pub(super) upstream: Option<String>,
    /// How many times the configured patience with the upstream.
    #[schemars(range(min = 1, max = 10))]
    pub(super) timeout_factor: Option<f64>,
    /// Parameters of requests, by their names in the API.
    #[schemars(length(min = 1, max = 32))]
    pub(super) parameters: Option<BTreeMap<String, Value>>,
    /// How long each step holds at most.
    pub(super) lease: Option<Length>,
    /// After how long each step is judged, and the next one taken.
    pub(super) verify_after: Option<Length>,
}

/// What is known to the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) actions: &'a BTreeMap<ActionName, Action>,
    pub(super) upstreams: &'a [String],
}

/// The steps, and those of the chain that are not among them.
#[derive(Debug, PartialEq)]
pub(super) struct Planned {
    pub(super) steps: Vec<Step>,
    /// Kind and reason.
    pub(super) left_out: Vec<(&'static str, &'static str)>,
}

/// A setting of the request, and the kind of step that it belongs to.
struct Setting {
    field: &'static str,
    kind: StepKind,
}

/// Puts the settings of a request into the chain that it names. What is wrong goes to `faults`.
pub(super) fn plan(wanted: &Remediation, known: Known<'_>, faults: &mut Vec<Fault>) -> Option<Planned> {
    let at = |field: &str| format!("{REMEDIATION}/{field}");
    let lease = wanted
        .lease
        .as_ref()
        .and_then(|l| l.within(LEASES, &at("lease"), faults));
    let verify = wanted
        .verify_after
        .as_ref()
        .and_then(|v| v.within(VERIFY, &at("verify_after"), faults));
    if let Some(to) = &wanted.upstream
        && !known.upstreams.contains(to)
    {
        let names: Vec<&str> = known.upstreams.iter().map(String::as_str).collect();
        faults.push(unknown("upstream", to, &names, &at("upstream")));
    }
    let settings = settings(wanted);
    let action = wanted.action.as_deref()?;
    let mut planned = match known.actions.get(action) {
        Some(chain) => in_chain(chain, settings),
        None => match alone(action, settings, faults) {
            Some(step) => Planned {
                steps: vec![step],
                left_out: Vec::new(),
            },
            None => {
                if !KINDS.contains(&action) {
                    let chains = known.actions.keys().map(ActionName::as_str);
                    let names: Vec<&str> = chains.chain(KINDS).collect();
                    faults.push(unknown("action", action, &names, &at("action")));
                }
                return None;
            }
        },
    };
    for step in planned.steps.iter_mut().filter(|s| !is_told(&s.kind)) {
        step.lease = lease.unwrap_or(step.lease);
        step.verify_after = verify.or(step.verify_after);
    }
    Some(planned)
}

/// Kinds that an action may name. What needs more than the fields of a request is only to be had in a chain.
const KINDS: [&str; 12] = [
    "throttle",
    "cap_concurrency",
    "reduce_batch",
    "cap_output",
    "downgrade_model",
    "reroute",
    "extend_timeouts",
    "set_parameters",
    "rollback",
    "contain",
    "notify",
    "escalate",
];

/// The kind of step that each setting asks for.
fn settings(wanted: &Remediation) -> Vec<Setting> {
    let mut all = Vec::new();
    let mut add = |field, kind: Option<StepKind>| all.extend(kind.map(|kind| Setting { field, kind }));
    add(
        "batch_size",
        wanted.batch_size.map(|max_inputs| StepKind::ReduceBatch {
            max_inputs,
            max_choices: None,
            max_in_flight: None,
        }),
    );
    let rates = (wanted.requests_per_minute, wanted.tokens_per_minute);
    let field = match rates {
        (Some(_), _) => "requests_per_minute",
        _ => "tokens_per_minute",
    };
    add(
        field,
        (rates != (None, None)).then_some(StepKind::Throttle {
            requests_per_minute: rates.0,
            tokens_per_minute: rates.1,
        }),
    );
    add(
        "max_in_flight",
        wanted
            .max_in_flight
            .map(|max_in_flight| StepKind::CapConcurrency { max_in_flight }),
    );
    add(
        "max_output_tokens",
        wanted.max_output_tokens.map(|max_tokens| StepKind::CapOutput {
            max_tokens,
            cut_streams: true,
        }),
    );
    add(
        "new_model",
        wanted
            .new_model
            .clone()
            .map(|to| StepKind::DowngradeModel { to: Some(to) }),
    );
    add(
        "upstream",
        wanted
            .upstream
            .as_deref()
            .map(|to| StepKind::Reroute { to: to.into() }),
    );
    add(
        "timeout_factor",
        wanted.timeout_factor.map(|factor| StepKind::ExtendTimeouts {
            // Between 100 and 1000: the schema holds the factor between 1 and 10.
            percent: (factor * 100.0).clamp(100.0, 1000.0) as u16,
        }),
    );
    add(
        "parameters",
        wanted
            .parameters
            .clone()
            .map(|set| StepKind::SetParameters { set }),
    );
    all
}

/// A chain with these settings: put into the step of that kind, or added before people are told.
fn in_chain(chain: &Action, settings: Vec<Setting>) -> Planned {
    let mut steps = chain.steps.clone();
    let mut left_out = Vec::new();
    if !settings.is_empty() {
        let named = |kind: &StepKind| settings.iter().any(|s| s.kind.name() == kind.name());
        let mut first = true;
        steps.retain(|step| {
            // Rates that nobody gave would be guessed; whoever says what to do does not ask for that.
            let guessed = matches!(
                step.kind,
                StepKind::Throttle {
                    requests_per_minute: None,
                    tokens_per_minute: None
                }
            );
            let keep = first || !guessed || named(&step.kind);
            first = false;
            if !keep {
                left_out.push((
                    step.kind.name(),
                    "no rates were given; name tokens_per_minute or requests_per_minute to have it",
                ));
            }
            keep
        });
    }
    let usual = steps.iter().find(|s| !is_told(&s.kind)).map(|s| s.lease);
    for Setting { kind, .. } in settings {
        match steps.iter_mut().find(|s| s.kind.name() == kind.name()) {
            Some(step) => step.kind = merged(&step.kind, kind),
            None => {
                let place = steps.iter().position(|s| is_told(&s.kind)).unwrap_or(steps.len());
                steps.insert(place, Step::new(kind, usual.unwrap_or(LEASE)));
            }
        }
    }
    Planned { steps, left_out }
}

/// A step of the chain with the setting of the request; what the request does not say stays.
fn merged(old: &StepKind, new: StepKind) -> StepKind {
    match (old, new) {
        (
            StepKind::ReduceBatch {
                max_choices,
                max_in_flight,
                ..
            },
            StepKind::ReduceBatch { max_inputs, .. },
        ) => StepKind::ReduceBatch {
            max_inputs,
            max_choices: *max_choices,
            max_in_flight: *max_in_flight,
        },
        (StepKind::CapOutput { cut_streams, .. }, StepKind::CapOutput { max_tokens, .. }) => {
            StepKind::CapOutput {
                max_tokens,
                cut_streams: *cut_streams,
            }
        }
        (_, new) => new,
    }
}

/// The one step of an action that is a kind of step.
fn alone(action: &str, settings: Vec<Setting>, faults: &mut Vec<Fault>) -> Option<Step> {
    let kind = *KINDS.iter().find(|k| **k == action)?;
    let mut own = None;
    for setting in settings {
        if setting.kind.name() == kind {
            own = Some(setting.kind);
        } else {
            faults.push(Fault::new(
                &format!("{REMEDIATION}/{}", setting.field),
                format!("is no setting of {kind}"),
                format!(
                    "it belongs to {}: name a chain as the action to have both",
                    setting.kind.name()
                ),
            ));
        }
    }
    let needed = |field: &'static str, faults: &mut Vec<Fault>| {
        faults.push(Fault::new(
            &format!("{REMEDIATION}/{field}"),
            "is missing",
            format!("{kind} needs it"),
        ));
        None
    };
    let kind = match (own, kind) {
        (Some(kind), _) => kind,
        (None, "throttle") => StepKind::Throttle {
            requests_per_minute: None,
            tokens_per_minute: None,
        },
        (None, "downgrade_model") => StepKind::DowngradeModel { to: None },
        (None, "rollback") => StepKind::Rollback {
            by: RollbackBy::Restore,
        },
        (None, "contain") => StepKind::Contain,
        (None, "notify") => StepKind::Notify { targets: Vec::new() },
        (None, "escalate") => StepKind::Escalate {
            levels: vec![crate::incident::rule::Level {
                after: Duration::ZERO,
                targets: Vec::new(),
            }],
            repeat_every: Duration::from_secs(900),
        },
        (None, "reduce_batch") => return needed("batch_size", faults),
        (None, "cap_concurrency") => return needed("max_in_flight", faults),
        (None, "cap_output") => return needed("max_output_tokens", faults),
        (None, "reroute") => return needed("upstream", faults),
        (None, "extend_timeouts") => return needed("timeout_factor", faults),
        (None, _) => return needed("parameters", faults),
    };
    let lease = match kind {
        StepKind::Contain | StepKind::Rollback { .. } => LASTING_LEASE,
        _ => LEASE,
    };
    Some(Step::new(kind, lease))
}

fn is_told(kind: &StepKind) -> bool {
    matches!(
        kind,
        StepKind::Notify { .. } | StepKind::Escalate { .. } | StepKind::RunWebhook { .. }
    )
}

fn unknown(what: &str, given: &str, names: &[&str], at: &str) -> Fault {
    let hint = nearest_word(given, names).map_or_else(
        || format!("one of {}", names.join(", ")),
        |near| format!("did you mean `{near}`?"),
    );
    let given: String = given.chars().filter(|c| !c.is_control()).take(60).collect();
    Fault::new(at, format!("there is no {what} `{given}`"), hint)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::incident::rule::Approval;

    fn actions() -> BTreeMap<ActionName, Action> {
        let step = |kind| Step::new(kind, Duration::from_secs(600));
        let throttle = StepKind::Throttle {
            requests_per_minute: None,
            tokens_per_minute: None,
        };
        let batch = StepKind::ReduceBatch {
            max_inputs: 16,
            max_choices: Some(1),
            max_in_flight: None,
        };
        let notify = StepKind::Notify { targets: Vec::new() };
        let down = StepKind::DowngradeModel { to: None };
        [
            (
                "scale_down",
                vec![batch, throttle.clone(), down.clone(), notify.clone()],
            ),
            ("throttle_and_alert", vec![throttle, down, notify.clone()]),
            ("notify_only", vec![notify]),
        ]
        .map(|(name, kinds)| {
            let steps = kinds.into_iter().map(step).collect();
            (name.into(), Action { steps })
        })
        .into()
    }

    fn planned(wanted: Value) -> Result<Planned, Vec<String>> {
        let wanted: Remediation = serde_json::from_value(wanted).unwrap();
        let mut faults = Vec::new();
        let actions = actions();
        let upstreams = ["main".to_owned(), "backup".to_owned()];
        let known = Known {
            actions: &actions,
            upstreams: &upstreams,
        };
        let planned = plan(&wanted, known, &mut faults);
        match planned {
            Some(planned) if faults.is_empty() => Ok(planned),
            _ => Err(faults
                .iter()
                .map(|f| format!("{} {} ({})", f.pointer, f.message, f.hint))
                .collect()),
        }
    }

    fn names(planned: &Planned) -> Vec<&'static str> {
        planned.steps.iter().map(|s| s.kind.name()).collect()
    }

    #[test]
    fn settings_take_their_place_in_the_chain() {
        let p = planned(json!({"action": "scale_down", "new_model": "gpt-4-mini", "batch_size": 5})).unwrap();
        assert_eq!(names(&p), ["reduce_batch", "downgrade_model", "notify"]);
        assert_eq!(p.left_out.len(), 1);
        assert_eq!(
            p.steps[0].kind,
            StepKind::ReduceBatch {
                max_inputs: 5,
                max_choices: Some(1),
                max_in_flight: None
            }
        );
        assert_eq!(p.steps[1].approval, Approval::Required);
        assert_eq!(
            p.steps[1].kind,
            StepKind::DowngradeModel {
                to: Some("gpt-4-mini".to_owned())
            }
        );
        let p = planned(json!({"action": "scale_down"})).unwrap();
        assert_eq!(
            names(&p),
            ["reduce_batch", "throttle", "downgrade_model", "notify"]
        );
        let p = planned(json!({"action": "throttle_and_alert", "new_model": "m"})).unwrap();
        assert_eq!(names(&p), ["throttle", "downgrade_model", "notify"]);
        let p =
            planned(json!({"action": "notify_only", "max_in_flight": 2, "lease": "1h", "verify_after": 60}))
                .unwrap();
        assert_eq!(names(&p), ["cap_concurrency", "notify"]);
        assert_eq!(p.steps[0].lease.as_secs(), 3600);
        assert_eq!(p.steps[0].verify_after, Some(Duration::from_secs(60)));
        let p = planned(json!({"action": "extend_timeouts", "timeout_factor": 2.5})).unwrap();
        assert_eq!(p.steps[0].kind, StepKind::ExtendTimeouts { percent: 250 });
        assert_eq!(
            names(&planned(json!({"action": "contain"})).unwrap()),
            ["contain"]
        );
    }

    #[test]
    fn what_cannot_be_done_is_told() {
        let table = [
            (
                json!({"action": "scale_dwon"}),
                "/remediation/action there is no action `scale_dwon` (did you mean `scale_down`?)",
            ),
            (
                json!({"action": "reroute"}),
                "/remediation/upstream is missing (reroute needs it)",
            ),
            (
                json!({"action": "reroute", "upstream": "bakcup"}),
                "/remediation/upstream there is no upstream `bakcup` (did you mean `backup`?)",
            ),
            (
                json!({"action": "throttle", "batch_size": 5}),
                "/remediation/batch_size is no setting of throttle",
            ),
            (
                json!({"action": "throttle", "lease": "soon"}),
                "/remediation/lease is no length of time",
            ),
            (
                json!({"action": "throttle", "lease": "90d"}),
                "/remediation/lease must be from 5s to 7d",
            ),
            (
                json!({"action": "set_parameters"}),
                "/remediation/parameters is missing",
            ),
        ];
        for (wanted, want) in table {
            let told = planned(wanted.clone()).unwrap_err();
            assert!(told[0].starts_with(want), "{wanted}: {told:?}");
        }
    }
}
