//! Chains of steps: the built-in ones, and those of the file in addition or in their place.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{builtin, value_or};
use crate::alert::Target;
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::file::{
    ActionFile, ApprovalWord, CapConcurrencyFile, DowngradeFile, EscalateFile, Kind, NotifyFile, STEP_NAMES,
    StepFile, StepMap, ThrottleFile,
};
use crate::config::{defaults, suggest};
use crate::incident::rule::{Action, Approval, Step, StepKind};
use crate::types::ids::ActionName;

/// Longest lease.
const LONGEST_LEASE: Duration = Duration::from_secs(86_400);

/// All chains by name.
pub(super) fn actions(
    given: BTreeMap<At<String>, At<ActionFile>>,
    targets: &[Target],
    check: &mut Check<'_>,
) -> BTreeMap<ActionName, Action> {
    let no_env = |_: &str| None;
    let mut of_builtin = Check::new("built-in", defaults::ACTIONS, &no_env, Vec::new());
    let mut all = BTreeMap::new();
    for (name, action) in builtin(defaults::ACTIONS).actions {
        all.insert(
            ActionName::from(name.value),
            chain(action, targets, &mut of_builtin),
        );
    }
    for (name, action) in given {
        let named = check.name("the name of an action", &name);
        let action = chain(action, targets, check);
        if named {
            all.insert(ActionName::from(name.value), action);
        }
    }
    all
}

fn chain(given: At<ActionFile>, targets: &[Target], check: &mut Check<'_>) -> Action {
    let At {
        value: ActionFile { steps },
        place,
    } = given;
    match &steps {
        None => check.missing(place, "steps", "a list, as steps: [throttle, notify]"),
        Some(list) if list.is_empty() && !check.told_within(place) => {
            check.problem(place, "an action without steps", "give at least one, as notify");
        }
        Some(_) => {}
    }
    Action {
        steps: steps
            .unwrap_or_default()
            .into_iter()
            .filter_map(|s| step(s, targets, check))
            .collect(),
    }
}

fn step(given: At<StepFile>, targets: &[Target], check: &mut Check<'_>) -> Option<Step> {
    let At {
        value: StepFile(map),
        place,
    } = given;
    let StepMap {
        throttle,
        cap_concurrency,
        downgrade_model,
        notify,
        escalate,
        reduce_batch,
        cap_output,
        reroute,
        extend_timeouts,
        rollback,
        set_parameters,
        contain,
        run_webhook,
        approval,
        lease,
    } = map;
    let mut kinds = Vec::new();
    if let Kind::Given(ThrottleFile {
        requests_per_minute,
        tokens_per_minute,
    }) = throttle
    {
        kinds.push(StepKind::Throttle {
            requests_per_minute: positive("requests_per_minute", requests_per_minute, check),
            tokens_per_minute: positive("tokens_per_minute", tokens_per_minute, check),
        });
    }
    if let Kind::Given(CapConcurrencyFile { max_in_flight }) = cap_concurrency {
        if max_in_flight.is_none() {
            check.missing(place, "max_in_flight", "as cap_concurrency: {max_in_flight: 2}");
        }
        let max_in_flight = positive("max_in_flight", max_in_flight, check).unwrap_or(1);
        kinds.push(StepKind::CapConcurrency { max_in_flight });
    }
    if let Kind::Given(DowngradeFile { to }) = downgrade_model {
        kinds.push(StepKind::DowngradeModel {
            to: check.maybe_name("to", to),
        });
    }
    if let Kind::Given(NotifyFile { targets: names }) = notify {
        kinds.push(StepKind::Notify {
            targets: known(names, targets, check),
        });
    }
    if let Kind::Given(EscalateFile {
        targets: names,
        repeat_every,
    }) = escalate
    {
        let range = Duration::from_secs(60)..=Duration::from_secs(86_400);
        kinds.push(StepKind::Escalate {
            targets: known(names, targets, check),
            repeat_every: check.duration("repeat_every", repeat_every, defaults::REPEAT_EVERY, range),
        });
    }
    for (name, kind) in [
        ("reduce_batch", reduce_batch),
        ("cap_output", cap_output),
        ("reroute", reroute),
        ("extend_timeouts", extend_timeouts),
        ("rollback", rollback),
        ("set_parameters", set_parameters),
        ("contain", contain),
        ("run_webhook", run_webhook),
    ] {
        if let Kind::Given(_) = kind {
            kinds.push(StepKind::NotYetAvailable {
                name: name.to_owned(),
            });
        }
    }
    let lease = check.duration(
        "lease",
        lease,
        defaults::LEASE,
        Duration::from_secs(1)..=LONGEST_LEASE,
    );
    let kind = match (kinds.pop(), kinds.pop()) {
        (Some(kind), None) => kind,
        (Some(_), Some(_)) => {
            check.problem(
                place,
                "a step of several kinds",
                "write each kind as a step of its own, with its own `- `",
            );
            return None;
        }
        (None, _) => {
            if !check.told_within(place) {
                let hint = format!("one of {}", STEP_NAMES.join(", "));
                check.problem(place, "a step that does nothing", hint);
            }
            return None;
        }
    };
    let usual = match kind {
        // A cheaper model changes what the agent can do: people decide, unless the chain says otherwise.
        StepKind::DowngradeModel { .. } => ApprovalWord::Required,
        _ => ApprovalWord::Automatic,
    };
    let approval = match value_or(approval, usual) {
        ApprovalWord::Automatic => Approval::Automatic,
        ApprovalWord::Required => Approval::Required,
    };
    Some(Step {
        kind,
        approval,
        lease,
    })
}

fn positive(key: &str, given: Opt<u64>, check: &mut Check<'_>) -> Option<u32> {
    let given = given?;
    let number = check.count(key, Some(given), 1, 1..=u64::from(u32::MAX));
    u32::try_from(number).ok()
}

/// The named targets, each of which must exist.
fn known(names: Vec<At<String>>, targets: &[Target], check: &mut Check<'_>) -> Vec<String> {
    for name in &names {
        if !targets.iter().any(|t| t.name == name.value) {
            let quoted = check.quote(name.place, &name.value);
            let hint = if targets.is_empty() {
                "define it under `alerts`".to_owned()
            } else {
                suggest::hint(&name.value, targets.iter().map(|t| t.name.as_str())).unwrap_or_default()
            };
            check.problem(name.place, format!("unknown alert target `{quoted}`"), hint);
        }
    }
    names.into_iter().map(|n| n.value).collect()
}
