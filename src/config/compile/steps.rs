//! What each step does, with its settings judged.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::alert::{Target, TargetKind};
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::defaults;
use crate::config::file::{
    CapConcurrencyFile, CapOutputFile, ContainFile, DowngradeFile, EscalateFile, ExtendTimeoutsFile, Kind,
    LevelFile, NotifyFile, ParameterValue, ReduceBatchFile, RerouteFile, RollbackByWord, RollbackFile,
    RunWebhookFile, STEP_NAMES, StepMap, ThrottleFile,
};
use crate::config::problem::Place;
use crate::incident::rule::{Level, RollbackBy, StepKind};
use crate::types::ids::UpstreamName;

/// Levels of an escalation, the first one included.
const MAX_LEVELS: usize = 10;
/// Parameters that one step sets.
const MAX_PARAMETERS: usize = 32;

/// What steps may name.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// Alert targets.
    pub(super) targets: &'a [Target],
    /// Upstreams.
    pub(super) upstreams: &'a [String],
}

/// What a step does: exactly one kind.
pub(super) fn kind(map: StepMap, place: Place, known: Known<'_>, check: &mut Check<'_>) -> Option<StepKind> {
    let StepMap {
        throttle,
        cap_concurrency,
        reduce_batch,
        cap_output,
        downgrade_model,
        reroute,
        extend_timeouts,
        set_parameters,
        rollback,
        contain,
        run_webhook,
        notify,
        escalate,
        // Settings of every step are read before.
        approval: _,
        approval_timeout: _,
        on_timeout: _,
        lease: _,
        verify_after: _,
        success: _,
        on_failure: _,
        blast_radius: _,
    } = map;
    let mut kinds: Vec<Option<StepKind>> = Vec::new();
    if let Kind::Given(ThrottleFile {
        requests_per_minute,
        tokens_per_minute,
    }) = throttle
    {
        kinds.push(Some(StepKind::Throttle {
            requests_per_minute: positive("requests_per_minute", requests_per_minute, check),
            tokens_per_minute: positive("tokens_per_minute", tokens_per_minute, check),
        }));
    }
    if let Kind::Given(CapConcurrencyFile { max_in_flight }) = cap_concurrency {
        let bound = needed(
            place,
            "max_in_flight",
            max_in_flight,
            "as cap_concurrency: {max_in_flight: 2}",
            check,
        );
        let max_in_flight = positive("max_in_flight", bound, check).unwrap_or(1);
        kinds.push(Some(StepKind::CapConcurrency { max_in_flight }));
    }
    if let Kind::Given(ReduceBatchFile {
        max_inputs,
        max_choices,
        max_in_flight,
    }) = reduce_batch
    {
        let d = defaults::BATCH;
        kinds.push(Some(StepKind::ReduceBatch {
            max_inputs: positive("max_inputs", max_inputs, check).unwrap_or(d.0),
            max_choices: Some(positive("max_choices", max_choices, check).unwrap_or(d.1)),
            max_in_flight: positive("max_in_flight", max_in_flight, check),
        }));
    }
    if let Kind::Given(CapOutputFile {
        max_tokens,
        cut_streams,
    }) = cap_output
    {
        let bound = needed(
            place,
            "max_tokens",
            max_tokens,
            "as cap_output: {max_tokens: 2000}",
            check,
        );
        kinds.push(Some(StepKind::CapOutput {
            max_tokens: positive("max_tokens", bound, check).unwrap_or(1),
            cut_streams: cut_streams.is_some_and(|c| c.value),
        }));
    }
    if let Kind::Given(DowngradeFile { to }) = downgrade_model {
        kinds.push(Some(StepKind::DowngradeModel {
            to: check.maybe_name("to", to),
        }));
    }
    if let Kind::Given(RerouteFile { to }) = reroute {
        let to = needed(
            place,
            "to",
            to,
            "the name of an upstream, as reroute: {to: backup}",
            check,
        );
        let to = to.and_then(|to| upstream(to, known, check));
        kinds.push(to.map(|to| StepKind::Reroute { to }));
    }
    if let Kind::Given(ExtendTimeoutsFile { factor }) = extend_timeouts {
        let factor = check.number("factor", factor, defaults::TIMEOUT_FACTOR, 1.0..=10.0);
        // From 100 to 1000.
        let percent = (factor * 100.0).round() as u16;
        kinds.push(Some(StepKind::ExtendTimeouts { percent }));
    }
    if let Kind::Given(set) = set_parameters {
        kinds.push(parameters(set, place, check).map(|set| StepKind::SetParameters { set }));
    }
    if let Kind::Given(file) = rollback {
        kinds.push(rolled_back(file, place, known, check).map(|by| StepKind::Rollback { by }));
    }
    if let Kind::Given(ContainFile {}) = contain {
        kinds.push(Some(StepKind::Contain));
    }
    if let Kind::Given(RunWebhookFile { target, action }) = run_webhook {
        let hint = "as run_webhook: {target: deployer, action: restart_workers}";
        let target = needed(place, "target", target, hint, check);
        let action = needed(place, "action", action, hint, check);
        let target = target.and_then(|t| webhook(t, known, check));
        let action = check.maybe_name("action", action);
        let call = target.zip(action);
        kinds.push(call.map(|(target, action)| StepKind::RunWebhook { target, action }));
    }
    if let Kind::Given(NotifyFile { targets }) = notify {
        kinds.push(Some(StepKind::Notify {
            targets: named(targets, known, check),
        }));
    }
    if let Kind::Given(file) = escalate {
        kinds.push(Some(escalation(file, known, check)));
    }
    match (kinds.pop(), kinds.pop()) {
        (Some(kind), None) => kind,
        (Some(_), Some(_)) => {
            check.problem(
                place,
                "a step of several kinds",
                "write each kind as a step of its own, with its own `- `",
            );
            None
        }
        (None, _) => {
            if !check.told_within(place) {
                let hint = format!("one of {}", STEP_NAMES.join(", "));
                check.problem(place, "a step that does nothing", hint);
            }
            None
        }
    }
}

/// A setting without which the step means nothing.
fn needed<T>(place: Place, key: &str, given: Opt<T>, hint: &str, check: &mut Check<'_>) -> Opt<T> {
    if given.is_none() {
        check.missing(place, key, hint);
    }
    given
}

fn positive(key: &str, given: Opt<u64>, check: &mut Check<'_>) -> Option<u32> {
    let given = given?;
    let number = check.count(key, Some(given), 1, 1..=u64::from(u32::MAX));
    u32::try_from(number).ok()
}

fn upstream(name: At<String>, known: Known<'_>, check: &mut Check<'_>) -> Option<UpstreamName> {
    let names: Vec<&str> = known.upstreams.iter().map(String::as_str).collect();
    let exists = check.known("upstream", "upstreams", &name, &names);
    exists.then(|| UpstreamName::from(name.value))
}

fn target<'a>(name: &At<String>, known: Known<'a>, check: &mut Check<'_>) -> Option<&'a Target> {
    let names: Vec<&str> = known.targets.iter().map(|t| t.name.as_str()).collect();
    check.known("alert target", "alerts", name, &names);
    known.targets.iter().find(|t| t.name == name.value)
}

/// The named targets, each of which must exist.
fn named(names: Vec<At<String>>, known: Known<'_>, check: &mut Check<'_>) -> Vec<String> {
    for name in &names {
        target(name, known, check);
    }
    names.into_iter().map(|n| n.value).collect()
}

/// A target that can be asked to do something.
fn webhook(name: At<String>, known: Known<'_>, check: &mut Check<'_>) -> Option<String> {
    let target = target(&name, known, check)?;
    if matches!(target.kind, TargetKind::Webhook { .. }) {
        return Some(name.value);
    }
    check.problem(
        name.place,
        "only a webhook can be asked to do something",
        "name an alert target of kind webhook",
    );
    None
}

fn rolled_back(
    file: RollbackFile,
    place: Place,
    known: Known<'_>,
    check: &mut Check<'_>,
) -> Option<RollbackBy> {
    let RollbackFile { by, to, target } = file;
    let by = by.map_or(RollbackByWord::Restore, |b| b.value);
    for (given, key, of, word) in [
        (&to, "to", RollbackByWord::Reroute, "reroute"),
        (&target, "target", RollbackByWord::Webhook, "webhook"),
    ] {
        if let Some(at) = given.as_ref().filter(|_| by != of) {
            check.problem(
                at.place,
                format!("`{key}` is for a rollback by {word}"),
                format!("set by: {word}, or remove it"),
            );
        }
    }
    match by {
        RollbackByWord::Restore => Some(RollbackBy::Restore),
        RollbackByWord::Reroute => {
            let hint = "the upstream that serves the good version, as rollback: {by: reroute, to: stable}";
            let to = needed(place, "to", to, hint, check)?;
            Some(RollbackBy::Reroute {
                to: upstream(to, known, check)?,
            })
        }
        RollbackByWord::Webhook => {
            let hint = "the alert target that is asked, as rollback: {by: webhook, target: deployer}";
            let target = needed(place, "target", target, hint, check)?;
            Some(RollbackBy::Webhook {
                target: webhook(target, known, check)?,
            })
        }
    }
}

fn escalation(file: EscalateFile, known: Known<'_>, check: &mut Check<'_>) -> StepKind {
    let EscalateFile {
        targets,
        repeat_every,
        levels: later,
    } = file;
    let (minute, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
    let mut levels = vec![Level {
        after: Duration::ZERO,
        targets: named(targets, known, check),
    }];
    if let Some(beyond) = later.get(MAX_LEVELS - 1) {
        check.problem(
            beyond.place,
            format!("more than {MAX_LEVELS} levels"),
            "the first one is `targets`; tell several targets at one level",
        );
    }
    for At { value, place } in later {
        let LevelFile { after, targets } = value;
        let after = needed(
            place,
            "after",
            after,
            "how long after the escalation began, as 15m",
            check,
        );
        let targets = named(targets, known, check);
        let Some(after) = after else { continue };
        let at = after.place;
        let after = check.duration("after", Some(after), minute, minute..=day);
        if levels.last().is_some_and(|before| before.after >= after) && !check.told_within(at) {
            check.problem(
                at,
                "a level that is not later than the one before",
                "write levels in the order of their time, each later than the one before",
            );
        }
        levels.push(Level { after, targets });
    }
    StepKind::Escalate {
        levels,
        repeat_every: check.duration("repeat_every", repeat_every, defaults::REPEAT_EVERY, minute..=day),
    }
}

/// Parameters by their names in the API. What holds content, or what clients rely on, cannot be set.
fn parameters(
    given: BTreeMap<At<String>, At<ParameterValue>>,
    place: Place,
    check: &mut Check<'_>,
) -> Option<BTreeMap<String, serde_json::Value>> {
    if given.is_empty() && !check.told_within(place) {
        check.problem(
            place,
            "set_parameters without any parameter",
            "as set_parameters: {temperature: 0}",
        );
        return None;
    }
    if given.len() > MAX_PARAMETERS {
        check.problem(
            place,
            format!("more than {MAX_PARAMETERS} parameters"),
            "set only what the response needs",
        );
    }
    let mut set = BTreeMap::new();
    for (name, value) in given {
        let text = name.value.as_str();
        let plain = text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        let quoted = check.quote(name.place, text);
        if !plain {
            check.problem(
                name.place,
                format!("`{quoted}` is not the name of a parameter"),
                "letters, digits and _ only, as temperature",
            );
        } else if let Some(hint) = untouchable(text) {
            check.problem(name.place, format!("`{quoted}` cannot be set"), hint);
        } else {
            let value = from_environment(value, check);
            set.insert(name.value, value);
        }
    }
    Some(set)
}

/// The environment gives text alone: what it spells is meant.
fn from_environment(given: At<ParameterValue>, check: &Check<'_>) -> serde_json::Value {
    let At {
        value: ParameterValue(value),
        place,
    } = given;
    match value.as_str() {
        Some(text) if check.quote(place, text).contains("${") => match serde_json::from_str(text.trim()) {
            Ok(spelt @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => spelt,
            _ => value,
        },
        _ => value,
    }
}

/// Why a parameter cannot be set, as a hint what to do instead.
fn untouchable(name: &str) -> Option<&'static str> {
    Some(match name {
        "model" | "modelId" => "use the step downgrade_model",
        "messages" | "input" | "inputs" | "prompt" | "contents" | "system" | "instructions" | "message"
        | "system_instruction" | "systemInstruction" | "chat_history" | "preamble" | "documents"
        | "suffix" => "content is never changed",
        "stream" | "stream_options" => "the client reads the answer as it asked for it; remove it",
        "tools" | "functions" | "response_format" | "text" | "format" | "encoding_format" | "modalities" => {
            "the client reads the answer as it asked for it; remove it"
        }
        "n" | "candidateCount" => "use the step reduce_batch: {max_choices: 1}",
        "previous_response_id"
        | "conversation"
        | "store"
        | "background"
        | "metadata"
        | "user"
        | "keep_alive" => "it ties the request to others, or names who sends it; remove it",
        _ => return None,
    })
}
