//! Rules and steps from the text of a scenario: by the compiler of the configuration, which is asked first.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fusebox::config::{self, Overrides};
use fusebox::incident::rule::{
    Action, Approval, BlastRadius, Level, OnFailure, OnTimeout, RollbackBy, Rulebook, Step, StepKind, Success,
};
use serde_json::{Map, Value, json};

use super::script::millis;

/// The rules of a configuration.
///
/// Scenarios are written in the whole grammar of actions and incidents; as far as the compiler does not know it, it is
/// read here.
pub(super) fn rulebook(text: &str) -> Result<Arc<Rulebook>, String> {
    let compile = |text: &str| config::compile("config", text, &Overrides::default(), &|_| None);
    let told = match compile(text) {
        Ok(compiled) => return Ok(compiled.rulebook),
        Err(problems) => problems.to_string(),
    };
    let mut file: Value = serde_saphyr::from_str(text).map_err(|e| format!("  config: {e}"))?;
    let object = file.as_object_mut().ok_or("  config: no mapping")?;
    let incidents = object.remove("incidents");
    let mut actions = BTreeMap::new();
    if let Some(Value::Object(given)) = object.get_mut("actions") {
        for (name, action) in given {
            let steps = action
                .get("steps")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            let escalates = steps
                .iter()
                .any(|s| s == "escalate" || s.get("escalate").is_some());
            *action = json!({"steps": [if escalates { "escalate" } else { "notify" }]});
            actions.insert(
                name.clone(),
                steps.iter().map(step).collect::<Result<Vec<_>, _>>()?,
            );
        }
    }
    let plain = serde_json::to_string(&file).unwrap_or_default();
    let compiled = compile(&plain)
        .map_err(|problems| format!("  config: {told}\n  and without its actions: {problems}"))?;
    let mut book = Rulebook::clone(&compiled.rulebook);
    for (name, steps) in actions {
        book.actions.insert(name.as_str().into(), Action { steps });
    }
    for (key, value) in incidents
        .as_ref()
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let conduct = &mut book.conduct;
        match key.as_str() {
            "correlate" => conduct.correlate = value.as_bool().ok_or("  correlate")?,
            "reopen_within" => conduct.reopen_within = time(value)?,
            "flaps_after" => conduct.flaps_after = number(value)?,
            "good_version" => {
                for (key, value) in value.as_object().into_iter().flatten() {
                    match key.as_str() {
                        "min_exchanges" => conduct.good_version.min_exchanges = number(value)?.into(),
                        "min_age" => conduct.good_version.min_age = time(value)?,
                        "max_error_rate" => conduct.good_version.max_error_rate = share(value)?,
                        other => return Err(format!("  incidents.good_version.{other} is not known")),
                    }
                }
            }
            other => return Err(format!("  incidents.{other} is not known")),
        }
    }
    Ok(Arc::new(book))
}

/// One step as a configuration has it.
pub(super) fn step(given: &Value) -> Result<Step, String> {
    let empty = Map::new();
    if let Some(name) = given.as_str() {
        return Ok(Step::new(kind(name, &empty)?, Duration::from_secs(900)));
    }
    let map = given.as_object().ok_or("  a step is a name or a mapping")?;
    let settings = |v: &Value| v.as_object().cloned().unwrap_or_default();
    let kinds: Vec<StepKind> = map
        .iter()
        .filter_map(|(k, v)| kind(k, &settings(v)).ok())
        .collect();
    let [kind] = kinds.as_slice() else {
        return Err(format!("  {given} is not a step of one kind that is known"));
    };
    let outlasts = matches!(kind, StepKind::Rollback { .. } | StepKind::Contain);
    let mut step = Step::new(
        kind.clone(),
        Duration::from_secs(if outlasts { 86_400 } else { 900 }),
    );
    for (key, value) in map {
        let word = value.as_str().unwrap_or_default();
        match key.as_str() {
            name if name == kind.name() => {}
            "approval" if word == "required" => step.approval = Approval::Required,
            "approval" if word == "automatic" => step.approval = Approval::Automatic,
            "approval_timeout" => step.approval_timeout = time(value)?,
            "on_timeout" => step.on_timeout = read::<OnTimeout>(value)?,
            "lease" => step.lease = time(value)?,
            "verify_after" => step.verify_after = Some(time(value)?),
            "success" if word == "within_threshold" => step.success = Success::WithinThreshold,
            "success" => {
                step.success = Success::ImprovedBy(share(value.get("improved_by").unwrap_or(&Value::Null))?)
            }
            "on_failure" => step.on_failure = read::<OnFailure>(value)?,
            "blast_radius" => {
                step.blast_radius = BlastRadius {
                    max_agents: value.get("max_agents").map(number).transpose()?,
                    max_share: value.get("max_share").map(share).transpose()?,
                };
            }
            other => return Err(format!("  a step does not know `{other}: {value}`")),
        }
    }
    Ok(step)
}

fn kind(name: &str, s: &Map<String, Value>) -> Result<StepKind, String> {
    let count = |key: &str| s.get(key).map(number).transpose();
    let text = |key: &str| s.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
    let must = |key: &str| text(key).ok_or_else(|| format!("  {name} needs `{key}`"));
    let targets = |of: Option<&Value>| -> Vec<String> {
        let list = of.and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
    };
    Ok(match name {
        "throttle" => StepKind::Throttle {
            requests_per_minute: count("requests_per_minute")?,
            tokens_per_minute: count("tokens_per_minute")?,
        },
        "cap_concurrency" => StepKind::CapConcurrency {
            max_in_flight: count("max_in_flight")?.unwrap_or(1),
        },
        "reduce_batch" => StepKind::ReduceBatch {
            max_inputs: count("max_inputs")?.unwrap_or(16),
            max_choices: count("max_choices")?.or(Some(1)),
            max_in_flight: count("max_in_flight")?,
        },
        "cap_output" => StepKind::CapOutput {
            max_tokens: count("max_tokens")?.unwrap_or(1),
            cut_streams: s.get("cut_streams").and_then(Value::as_bool).unwrap_or(false),
        },
        "downgrade_model" => StepKind::DowngradeModel { to: text("to") },
        "reroute" => StepKind::Reroute {
            to: must("to")?.as_str().into(),
        },
        "extend_timeouts" => StepKind::ExtendTimeouts {
            percent: (s.get("factor").and_then(Value::as_f64).unwrap_or(2.0) * 100.0) as u16,
        },
        "set_parameters" => StepKind::SetParameters {
            set: s.clone().into_iter().collect(),
        },
        "rollback" => StepKind::Rollback {
            by: match text("by").as_deref() {
                None | Some("restore") => RollbackBy::Restore,
                Some("reroute") => RollbackBy::Reroute {
                    to: must("to")?.as_str().into(),
                },
                Some("webhook") => RollbackBy::Webhook {
                    target: must("target")?,
                },
                Some(other) => return Err(format!("  rollback by {other} is not known")),
            },
        },
        "contain" => StepKind::Contain,
        "run_webhook" => StepKind::RunWebhook {
            target: must("target")?,
            action: must("action")?,
        },
        "notify" => StepKind::Notify {
            targets: targets(s.get("targets")),
        },
        "escalate" => {
            let mut levels = vec![Level {
                after: Duration::ZERO,
                targets: targets(s.get("targets")),
            }];
            for level in s.get("levels").and_then(Value::as_array).into_iter().flatten() {
                levels.push(Level {
                    after: time(level.get("after").unwrap_or(&Value::Null))?,
                    targets: targets(level.get("targets")),
                });
            }
            StepKind::Escalate {
                levels,
                repeat_every: s.get("repeat_every").map_or(Ok(Duration::from_secs(900)), time)?,
            }
        }
        other => return Err(format!("  there is no step `{other}`")),
    })
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, String> {
    serde_json::from_value(value.clone()).map_err(|e| format!("  {value}: {e}"))
}

fn number(value: &Value) -> Result<u32, String> {
    value
        .as_u64()
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| format!("  {value} is no count"))
}

pub(super) fn time(value: &Value) -> Result<Duration, String> {
    match value.as_u64() {
        Some(0) => Ok(Duration::ZERO),
        _ => Ok(Duration::from_millis(millis(value.as_str().unwrap_or("?"))?)),
    }
}

fn share(value: &Value) -> Result<f64, String> {
    let percent = || value.as_str()?.strip_suffix('%')?.parse::<f64>().ok();
    value
        .as_f64()
        .or_else(|| Some(percent()? / 100.0))
        .ok_or_else(|| format!("  {value} is no share"))
}
