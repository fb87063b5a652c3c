//! What a scenario expects, against what there is.

use fusebox::incident::record::{ApprovalState, IncidentRecord};
use serde::Serialize;

use super::script::{Expectation, IncidentWanted};
use super::world::{self, World};

/// Everything that is otherwise, one line each.
pub(super) fn compare(wanted: &Expectation, world: &mut World) -> Vec<String> {
    let mut wrong = Wrong(Vec::new());
    let Expectation {
        open,
        incidents,
        directives,
        notices,
        approvals,
        versions,
        leases,
    } = wanted;
    if let Some(open) = open {
        wrong.unless("open", open, &world::open(world.engine()));
    }
    if let Some(incidents) = incidents {
        let mut all = world.engine().incidents();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        wrong.unless("incidents", &incidents.len(), &all.len());
        for (n, (wanted, is)) in incidents.iter().zip(&all).enumerate() {
            incident(&format!("incidents[{n}]"), wanted, is, &mut wrong);
        }
    }
    for (whom, orders) in directives {
        wrong.unless(&format!("directives of {whom}"), orders, &world.orders(whom));
    }
    if let Some(notices) = notices {
        wrong.unless("notices", notices, &world.take_told());
    }
    if let Some(approvals) = approvals {
        let mut all = world.engine().approvals();
        all.sort_by_key(|a| (a.requested, a.id.clone()));
        let is: Vec<String> = all
            .iter()
            .map(|a| {
                let decided = match (&a.by, &a.via) {
                    (Some(by), Some(via)) if a.state != ApprovalState::Needed => {
                        format!(" by {by} via {via}")
                    }
                    _ => String::new(),
                };
                format!("{} {}{decided}", a.step, word(&a.state))
            })
            .collect();
        wrong.unless("approvals", approvals, &is);
    }
    for (agent, versions) in versions {
        let all = world.engine().agents(world.now());
        let known = all.iter().find(|a| a.agent.as_str() == agent);
        let is: Vec<String> = known
            .into_iter()
            .flat_map(|a| &a.versions)
            .map(|v| format!("{}{}", v.version, if v.good { " good" } else { "" }))
            .collect();
        wrong.unless(&format!("versions of {agent}"), versions, &is);
    }
    if let Some(leases) = leases {
        wrong.unless("leases", leases, &world.engine().leases().len());
    }
    wrong.0
}

fn incident(at: &str, wanted: &IncidentWanted, is: &IncidentRecord, wrong: &mut Wrong) {
    let IncidentWanted {
        rule,
        subject,
        kind,
        state,
        severity,
        origin,
        agents,
        steps,
        why,
        acknowledged_by,
        verdict,
        returns,
        flapping,
        silenced,
        merged,
        plan_generation,
        timeline,
        never,
        says,
    } = wanted;
    let mut same = |name: &str, wanted: &Option<String>, is: String| {
        if let Some(wanted) = wanted {
            wrong.unless(&format!("{at}.{name}"), wanted, &is);
        }
    };
    same("rule", rule, is.rule.to_string());
    same("subject", subject, is.subject.clone());
    same("kind", kind, is.subject_kind.clone());
    same("state", state, word(&is.state));
    same("severity", severity, word(&is.severity));
    same("origin", origin, word(&is.origin));
    same(
        "acknowledged_by",
        acknowledged_by,
        is.acknowledged_by.clone().unwrap_or_default(),
    );
    same(
        "verdict",
        verdict,
        is.verdict.map(|v| word(&v)).unwrap_or_default(),
    );
    same("returns", &returns.map(|n| n.to_string()), is.returns.to_string());
    same(
        "flapping",
        &flapping.map(|b| b.to_string()),
        is.flapping.to_string(),
    );
    same(
        "silenced",
        &silenced.map(|b| b.to_string()),
        is.silenced_by.is_some().to_string(),
    );
    same(
        "merged",
        &merged.map(|b| b.to_string()),
        is.merged_into.is_some().to_string(),
    );
    same(
        "plan_generation",
        &plan_generation.map(|n| n.to_string()),
        is.plan_generation.to_string(),
    );
    if let Some(agents) = agents {
        let mut all: Vec<String> = is.agents.iter().map(ToString::to_string).collect();
        all.sort();
        wrong.unless(&format!("{at}.agents"), agents, &all);
    }
    if let Some(steps) = steps {
        let all: Vec<String> = is
            .plan
            .iter()
            .map(|s| format!("{} {}", s.step, s.state.name()))
            .collect();
        wrong.unless(&format!("{at}.steps"), steps, &all);
    }
    if let Some(why) = why
        && !is.plan.iter().any(|s| s.why.contains(why))
    {
        wrong.0.push(format!("{at}.why: no step says `{why}`"));
    }
    let words: Vec<&str> = is.timeline.iter().map(|e| e.event.as_str()).collect();
    if let Some(timeline) = timeline {
        let mut rest = words.iter();
        if let Some(missing) = timeline.iter().find(|w| !rest.any(|r| r == w)) {
            wrong.0.push(format!(
                "{at}.timeline: `{missing}` is not there in this order: expected {timeline:?}, is {words:?}"
            ));
        }
    }
    for word in never.iter().flatten() {
        if words.contains(&word.as_str()) {
            wrong.0.push(format!("{at}.never: the timeline has `{word}`"));
        }
    }
    if let Some(says) = says
        && !is.timeline.iter().any(|e| e.detail.contains(says))
    {
        wrong
            .0
            .push(format!("{at}.says: no line of the timeline says `{says}`"));
    }
}

struct Wrong(Vec<String>);

impl Wrong {
    fn unless<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, wanted: &T, is: &T) {
        if wanted != is {
            self.0.push(format!("{what}: expected {wanted:?}, is {is:?}"));
        }
    }
}

fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|v| v.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}
