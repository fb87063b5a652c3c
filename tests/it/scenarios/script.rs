//! The scenario file as it is written, and its timeline unrolled into single events.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A scenario.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scenario {
    /// What happens.
    pub(super) title: String,
    /// Which complaint of the field it answers.
    pub(super) lesson: String,
    /// A configuration, as YAML.
    pub(super) config: String,
    pub(super) timeline: Vec<Entry>,
}

/// One entry of a timeline: a time, and one thing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    at: String,
    /// An exchange that ended.
    observe: Option<Seen>,
    /// An exchange that is still running.
    progress: Option<Seen>,
    /// How often, and for how long (the end not included).
    every: Option<String>,
    r#for: Option<String>,
    /// What an operator does, and the refusal that is expected, if one is.
    act: Option<Value>,
    refused: Option<String>,
    /// Another configuration; with `restart`, that of the next process.
    reload: Option<String>,
    /// The process ends and another one goes on with what it wrote down, `down` later.
    restart: Option<bool>,
    down: Option<String>,
    /// Something is wrong with fusebox itself; without detail it is well again.
    trouble: Option<Trouble>,
    expect: Option<Box<Expectation>>,
}

/// An exchange. `{n}` in texts counts the exchanges of an entry; several agents take turns.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Seen {
    pub(super) agent: Option<Value>,
    pub(super) version: Option<String>,
    pub(super) execution: Option<String>,
    pub(super) request: Option<String>,
    pub(super) model: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) outcome: Option<Value>,
    pub(super) usage: Option<Value>,
    pub(super) input: Option<u64>,
    pub(super) output: Option<u64>,
    pub(super) cost_usd: Option<f64>,
    pub(super) ttft_ms: Option<f64>,
    pub(super) duration_ms: Option<f64>,
    pub(super) finish_reason: Option<String>,
    pub(super) tool_calls: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Trouble {
    pub(super) what: String,
    pub(super) detail: Option<String>,
}

/// What must be so. What is left out is not looked at.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Expectation {
    /// How many are not resolved.
    pub(super) open: Option<usize>,
    /// All of them, over or not, in order of opening.
    pub(super) incidents: Option<Vec<IncidentWanted>>,
    /// What binds an agent (`a`), one of its versions (`a@v2`) or one of its executions (`a/run-1`), in order.
    pub(super) directives: BTreeMap<String, Vec<String>>,
    /// What was told since the last time this was asked, in order: `opened chat`, `escalated pager (critical)`.
    pub(super) notices: Option<Vec<String>>,
    /// All questions, in order of asking: `throttle needed`, `throttle given by ann via api`.
    pub(super) approvals: Option<Vec<String>>,
    /// Versions of an agent, newest first: `v2`, `v1 good`.
    pub(super) versions: BTreeMap<String, Vec<String>>,
    /// How many leases are in force.
    pub(super) leases: Option<usize>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IncidentWanted {
    pub(super) rule: Option<String>,
    pub(super) subject: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) state: Option<String>,
    pub(super) severity: Option<String>,
    pub(super) origin: Option<String>,
    pub(super) agents: Option<Vec<String>>,
    /// Each step with what became of it: `throttle in_force`.
    pub(super) steps: Option<Vec<String>>,
    /// A part of why some step is as it is.
    pub(super) why: Option<String>,
    pub(super) acknowledged_by: Option<String>,
    pub(super) verdict: Option<String>,
    pub(super) returns: Option<u32>,
    pub(super) flapping: Option<bool>,
    pub(super) silenced: Option<bool>,
    pub(super) merged: Option<bool>,
    pub(super) plan_generation: Option<u32>,
    /// Words of the timeline that come in this order, with or without others between them.
    pub(super) timeline: Option<Vec<String>>,
    /// Words that do not occur in it.
    pub(super) never: Option<Vec<String>>,
    /// A part of some line of the timeline.
    pub(super) says: Option<String>,
}

/// One thing that happens.
#[derive(Debug, Clone)]
pub(super) enum Doing {
    Observe(Seen, u64),
    Progress(Seen, u64),
    Act(Value, Option<String>),
    Reload(String),
    Stop,
    /// With another configuration, where one is given.
    Start(Option<String>),
    Trouble(Trouble),
    Expect(Box<Expectation>),
}

/// Every single thing with its millisecond, in order; at one time, in the order of the file.
pub(super) fn unrolled(timeline: &[Entry]) -> Result<Vec<(u64, Doing)>, String> {
    let mut all = Vec::new();
    for entry in timeline {
        let at = millis(&entry.at)?;
        let seen = entry
            .observe
            .as_ref()
            .map(|s| (s, Doing::Observe as fn(Seen, u64) -> Doing));
        let seen = seen.or(entry
            .progress
            .as_ref()
            .map(|s| (s, Doing::Progress as fn(Seen, u64) -> Doing)));
        if let Some((seen, make)) = seen {
            let every = entry.every.as_deref().map_or(Ok(1000), millis)?.max(1);
            let length = entry.r#for.as_deref().map_or(Ok(1), millis)?;
            let times = (0..length.div_ceil(every)).map(|n| (at + n * every, make(seen.clone(), n)));
            all.extend(times);
        } else if let Some(act) = &entry.act {
            all.push((at, Doing::Act(act.clone(), entry.refused.clone())));
        } else if entry.restart == Some(true) {
            let down = entry.down.as_deref().map_or(Ok(0), millis)?;
            all.push((at, Doing::Stop));
            all.push((at + down, Doing::Start(entry.reload.clone())));
        } else if let Some(text) = &entry.reload {
            all.push((at, Doing::Reload(text.clone())));
        } else if let Some(trouble) = &entry.trouble {
            all.push((at, Doing::Trouble(trouble.clone())));
        } else if let Some(expectation) = &entry.expect {
            all.push((at, Doing::Expect(expectation.clone())));
        } else {
            return Err(format!("  the entry at {} does nothing", entry.at));
        }
    }
    all.sort_by_key(|(at, _)| *at);
    Ok(all)
}

/// Milliseconds of `1h2m3.5s`.
pub(super) fn millis(text: &str) -> Result<u64, String> {
    let bad = || format!("  `{text}` is no time: write it as 1m20s");
    let (mut total, mut rest) = (0.0, text);
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let (unit, left) = match rest {
            _ if rest.starts_with("ms") => (1.0, &rest[2..]),
            _ if rest.starts_with('s') => (1000.0, &rest[1..]),
            _ if rest.starts_with('m') => (60_000.0, &rest[1..]),
            _ if rest.starts_with('h') => (3_600_000.0, &rest[1..]),
            _ if rest.starts_with('d') => (86_400_000.0, &rest[1..]),
            _ => return Err(bad()),
        };
        total += number * unit;
        rest = left;
    }
    Ok(total as u64)
}

/// A time for people.
pub(super) fn shown(at: u64) -> String {
    let (hours, minutes, seconds) = (at / 3_600_000, at / 60_000 % 60, at as f64 / 1000.0 % 60.0);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, m) => format!("{m}m{seconds}s"),
        (h, m) => format!("{h}h{m}m{seconds}s"),
    }
}
