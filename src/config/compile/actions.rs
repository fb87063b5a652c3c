//! Chains of steps: the built-in ones, and those of the file in addition or in their place.

use std::collections::BTreeMap;
use std::time::Duration;

use super::builtin;
use super::steps::{Known, kind};
use crate::alert::Target;
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::defaults;
use crate::config::file::{
    ActionFile, ApprovalWord, BlastRadiusFile, OnFailureWord, OnTimeoutWord, StepFile, SuccessWord,
};
use crate::incident::rule::{Action, Approval, BlastRadius, OnFailure, OnTimeout, Step, StepKind, Success};
use crate::types::ids::ActionName;

/// Longest lease.
const LONGEST_LEASE: Duration = Duration::from_secs(7 * 86_400);

/// All chains by name.
pub(super) fn actions(
    given: BTreeMap<At<String>, At<ActionFile>>,
    targets: &[Target],
    upstreams: &[String],
    check: &mut Check<'_>,
) -> BTreeMap<ActionName, Action> {
    let known = Known { targets, upstreams };
    let no_env = |_: &str| None;
    let mut of_builtin = Check::new("built-in", defaults::ACTIONS, &no_env, Vec::new());
    let mut all = BTreeMap::new();
    for (name, action) in builtin(defaults::ACTIONS).actions {
        all.insert(
            ActionName::from(name.value),
            chain(action, known, &mut of_builtin),
        );
    }
    for (name, action) in given {
        let named = check.name("the name of an action", &name);
        let action = chain(action, known, check);
        if named {
            all.insert(ActionName::from(name.value), action);
        }
    }
    all
}

fn chain(given: At<ActionFile>, known: Known<'_>, check: &mut Check<'_>) -> Action {
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
            .filter_map(|s| step(s, known, check))
            .collect(),
    }
}

fn step(given: At<StepFile>, known: Known<'_>, check: &mut Check<'_>) -> Option<Step> {
    let At {
        value: StepFile(mut map),
        place,
    } = given;
    let approval = map.approval.take();
    let approval_timeout = map.approval_timeout.take();
    let on_timeout = map.on_timeout.take();
    let lease = map.lease.take();
    let verify_after = map.verify_after.take();
    let success = map.success.take();
    let on_failure = map.on_failure.take();
    let radius = std::mem::take(&mut map.blast_radius);
    let given = [
        ("lease", lease.as_ref().map(|a| a.place)),
        ("verify_after", verify_after.as_ref().map(|a| a.place)),
        ("success", success.as_ref().map(|a| a.place)),
        ("on_failure", on_failure.as_ref().map(|a| a.place)),
        ("approval", approval.as_ref().map(|a| a.place)),
        ("approval_timeout", approval_timeout.as_ref().map(|a| a.place)),
        ("on_timeout", on_timeout.as_ref().map(|a| a.place)),
    ];
    let kind = kind(map, place, known, check);
    // What is told cannot be lifted or judged, and nobody is asked whether to be told.
    let (without, why) = match &kind {
        Some(StepKind::Notify { .. } | StepKind::Escalate { .. }) => (7, "a step that only tells people"),
        Some(StepKind::RunWebhook { .. }) => (4, "a call, which cannot be lifted or judged"),
        _ => (0, ""),
    };
    for (key, place) in given.into_iter().take(without) {
        if let Some(place) = place {
            check.problem(place, format!("`{key}` means nothing for {why}"), "remove it");
        }
    }
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    let usual = match &kind {
        Some(StepKind::Rollback { .. } | StepKind::Contain) => defaults::LASTING_LEASE,
        _ => defaults::LEASE,
    };
    let lease = check.duration("lease", lease, usual, second..=LONGEST_LEASE);
    let timeout = check.duration(
        "approval_timeout",
        approval_timeout,
        Step::APPROVAL_TIMEOUT,
        10 * second..=7 * day,
    );
    let verify_after = verify_after.map(|v| check.duration("verify_after", Some(v), second, second..=day));
    let success = measure(success, check);
    let blast_radius = blast_radius(radius, check);
    let mut step = Step::new(kind?, lease);
    step.approval_timeout = timeout;
    step.verify_after = verify_after;
    step.success = success;
    step.blast_radius = blast_radius;
    match approval.map(|a| a.value) {
        Some(ApprovalWord::Automatic) => step.approval = Approval::Automatic,
        Some(ApprovalWord::Required) => step.approval = Approval::Required,
        None => {}
    }
    match on_timeout.map(|w| w.value) {
        Some(OnTimeoutWord::Deny) => step.on_timeout = OnTimeout::Deny,
        Some(OnTimeoutWord::Approve) => step.on_timeout = OnTimeout::Approve,
        Some(OnTimeoutWord::Keep) => step.on_timeout = OnTimeout::Keep,
        None => {}
    }
    match on_failure.map(|w| w.value) {
        Some(OnFailureWord::Next) => step.on_failure = OnFailure::Next,
        Some(OnFailureWord::Revert) => step.on_failure = OnFailure::Revert,
        Some(OnFailureWord::Escalate) => step.on_failure = OnFailure::Escalate,
        None => {}
    }
    Some(step)
}

fn measure(given: Opt<SuccessWord>, check: &mut Check<'_>) -> Success {
    match given.map(|w| w.value) {
        None => Success::default(),
        Some(SuccessWord::WithinThreshold) => Success::WithinThreshold,
        Some(SuccessWord::ImprovedBy(share)) => {
            Success::ImprovedBy(check.share("improved_by", Some(share), 0.3, 0.01..=1.0))
        }
    }
}

fn blast_radius(file: BlastRadiusFile, check: &mut Check<'_>) -> BlastRadius {
    let BlastRadiusFile {
        max_agents,
        max_share,
    } = file;
    let agents = max_agents.map(|n| check.count("max_agents", Some(n), 1, 1..=1_000_000));
    BlastRadius {
        max_agents: agents.and_then(|n| u32::try_from(n).ok()),
        max_share: max_share.map(|s| check.share("max_share", Some(s), 1.0, 0.01..=1.0)),
    }
}
