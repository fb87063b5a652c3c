//! What the driver of the tests knows, and how it answers.

use std::sync::Arc;

use crate::alert::TargetStatus;
use crate::control::handle::{AgentView, Ask, ReloadReport, RuleLine, StatusView, UpstreamView};
use crate::enforce::slots::TotalsView;
use crate::incident::engine::{Bounds, Engine};
use crate::incident::input::{Acted, NotActed, OperatorAct};
use crate::incident::record::{AgentStatus, IncidentRecord, IncidentState, RuleStatus, TimelineEntry};
use crate::incident::rule::Rulebook;
use crate::types::directive::{Directive, Order, Subject};
use crate::types::notice::Severity;
use crate::types::time::{Mono, Now, Wall};

const AT: Wall = Wall::from_unix_millis(1_700_000_000_000);

pub(super) fn answer(ask: Ask, incidents: &mut [IncidentRecord]) {
    match ask {
        Ask::Incidents(to) => drop(to.send(incidents.to_vec())),
        Ask::Incident(id, to) => drop(to.send(incidents.iter().find(|i| i.id == id).cloned())),
        Ask::Rules(to) => drop(to.send(vec![rule()])),
        Ask::Agents(to) => drop(to.send(agents())),
        Ask::Status(to) => drop(to.send(status())),
        Ask::Look(look) => {
            let bounds = Bounds {
                max_subjects: 10,
                max_executions: 10,
                execution_idle_seconds: 60,
                max_closed_incidents: 10,
            };
            let now = Now {
                mono: Mono::ZERO,
                wall: AT,
            };
            look(&Engine::new(Arc::new(Rulebook::default()), bounds), now);
        }
        Ask::Target(url, to) => drop(to.send(Err(format!("nothing is sent to {url}")))),
        Ask::Operate {
            act: OperatorAct::Resolve { incident: id, by },
            to,
            ..
        } => {
            let open = incidents
                .iter_mut()
                .find(|i| i.id == id && i.state != IncidentState::Resolved);
            let was_open = open.is_some();
            if let Some(incident) = open {
                incident.state = IncidentState::Resolved;
                incident.timeline.push(TimelineEntry {
                    at: AT,
                    event: "operator".to_owned(),
                    detail: by,
                });
            }
            let (what, id) = ("incident", id.to_string());
            let known = incidents.iter().any(|i| i.id.as_str() == id);
            to.send(match (was_open, known) {
                (true, _) => Ok(Acted::Done),
                (false, true) => Err(NotActed::Over {
                    what,
                    id,
                    state: "resolved",
                }),
                (false, false) => Err(NotActed::Unknown { what, id }),
            })
            .ok();
        }
        Ask::Operate { to, .. } => {
            to.send(Ok(Acted::Done)).ok();
        }
    }
}

fn directive() -> Directive {
    Directive {
        lease: "lease-1".into(),
        incident: "inc-1".into(),
        rule: "token_explosion_detection".into(),
        subject: Subject::Agent("a/b c".into()),
        order: Order::Throttle {
            requests_per_minute: Some(30),
            tokens_per_minute: Some(2500),
        },
        since: AT,
        expires: Wall::from_unix_millis(1_700_000_600_000),
        until: Mono::FAR,
    }
}

pub(super) fn incident(id: &str, state: IncidentState) -> IncidentRecord {
    IncidentRecord {
        id: id.into(),
        rule: "token_explosion_detection".into(),
        severity: Severity::Critical,
        subject_kind: "agent".to_owned(),
        subject: "a/b c".to_owned(),
        agent: Some("a/b c".into()),
        state,
        metric: "tokens_per_execution".to_owned(),
        value: 9000.0,
        worst: 12000.0,
        current: Some(8000.0),
        baseline: Some(2500.0),
        threshold: 5000.0,
        samples: 12,
        action: "throttle_and_alert".into(),
        directives: vec![directive()],
        opened: AT,
        ..IncidentRecord::sample()
    }
}

fn rule() -> RuleStatus {
    RuleStatus {
        name: "token_explosion_detection".into(),
        enabled: true,
        mode: "enforce".to_owned(),
        metric: "tokens_per_execution".to_owned(),
        evaluation: "ok".to_owned(),
        baseline: Some(2500.0),
        threshold_upper: Some(5000.0),
        threshold_lower: None,
        window_seconds: 300.0,
        subjects: 1,
        findings: 1,
        open_incidents: 1,
        worst: Vec::new(),
    }
}

fn agents() -> Vec<AgentView> {
    ["quiet", "a/b c", "\u{1b}[2Jevil"]
        .map(|name| AgentView {
            agent: name.to_owned(),
            totals: TotalsView {
                requests: 1234,
                ..TotalsView::default()
            },
            status: (name == "a/b c").then(|| AgentStatus {
                agent: name.into(),
                last_seen: AT,
                tokens_per_minute: 9000.0,
                requests_per_minute: 12.0,
                incidents: vec!["inc-1".into()],
                directives: vec![directive()],
                version: None,
                versions: Vec::new(),
            }),
        })
        .to_vec()
}

pub(super) fn report(ok: bool) -> ReloadReport {
    ReloadReport {
        ok,
        at: AT,
        changes: Vec::new(),
        problems: if ok {
            Vec::new()
        } else {
            vec!["fusebox.yaml:3:5: no".to_owned()]
        },
        needs_restart: Vec::new(),
    }
}

pub(super) fn status() -> StatusView {
    StatusView {
        version: "0.1.0".to_owned(),
        uptime_seconds: 3661.0,
        listeners: vec!["127.0.0.1:4310".to_owned()],
        upstreams: vec![UpstreamView {
            name: "default".to_owned(),
            url: "https://api.example".to_owned(),
            provider: "openai".to_owned(),
            breaker: None,
        }],
        config: "built-in".to_owned(),
        last_reload: Some(report(false)),
        agents: 3,
        agents_turned_away: 0,
        open_incidents: 1,
        directives: 1,
        observations: 3000,
        observations_dropped: 2,
        observations_unwritten: 0,
        progress_reports_dropped: 5,
        totals: TotalsView {
            requests: 3702,
            input_tokens: 1_234_567,
            cost_usd: 4.125,
            ..TotalsView::default()
        },
        alerts: vec![TargetStatus {
            name: "ops".to_owned(),
            kind: "webhook".to_owned(),
            queued: 1,
            delivered: 2,
            failed_attempts: 3,
            dropped: 4,
            last_error: Some("hooks.example answered 503".to_owned()),
            last_delivered: Some(AT),
            disabled: None,
            dead_letters: Vec::new(),
        }],
        rules: vec![RuleLine {
            name: "output_quality_drop".to_owned(),
            evaluation: "not yet evaluated: needs the detector".to_owned(),
            open_incidents: 0,
        }],
        degraded: vec!["last reload failed".to_owned()],
    }
}
