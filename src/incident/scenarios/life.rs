//! How incidents open, change and end.

use std::time::Duration;

use super::{SWITCHED, THROTTLED, calm, explosion, wild};
use crate::incident::input::{Input, OperatorAct};
use crate::incident::record::IncidentState;
use crate::incident::rule::{Level, StepKind};
use crate::incident::testing::{Driven, book, step, tokens};
use crate::types::notice::{NoticeEvent, Severity};

#[test]
fn an_explosion_is_caught_throttled_and_released() {
    let mut d = Driven::new(book([explosion()]));
    d.run(120, calm("agent-prod-01"));
    assert_eq!(d.engine.incidents().len(), 0);
    assert_eq!(d.published, 0);

    d.run(30, wild("agent-prod-01"));
    let incident = d.last();
    assert_eq!(incident.state, IncidentState::Open);
    assert_eq!(incident.id.as_str(), "inc-20261125T101718-0001");
    assert_eq!(incident.subject, "agent-prod-01");
    assert!(
        incident.value > 5000.0 && incident.value < 5167.0,
        "{}",
        incident.value
    );
    assert_eq!((incident.threshold, incident.baseline), (5000.0, Some(2500.0)));
    assert_eq!(d.orders("agent-prod-01"), [THROTTLED, SWITCHED]);
    assert!(d.orders("agent-prod-02").is_empty());
    let leases: Vec<String> = incident.directives.iter().map(|l| l.lease.to_string()).collect();
    assert_eq!(
        leases,
        ["inc-20261125T101718-0001-1", "inc-20261125T101718-0001-2"]
    );
    assert!(d.set.iter().all(|l| l.until > d.now().mono));

    assert_eq!(d.notices.len(), 1, "{:?}", d.notices);
    let notice = &d.notices[0];
    assert_eq!(notice.event, NoticeEvent::Opened);
    assert_eq!(notice.targets, ["chat"]);
    assert_eq!(
        notice.title,
        "token_explosion_detection: agent-prod-01 at 5,051 tokens per execution (limit 5,000)"
    );
    let facts: Vec<&str> = notice.facts.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(
        facts,
        [
            "agent",
            "metric",
            "value",
            "threshold (upper)",
            "baseline",
            "samples",
            "window",
            "action",
            "step throttle",
            "step downgrade_model",
            "in force throttle",
            "in force downgrade_model"
        ]
    );

    // Calm again: it is back when 15 wild executions are left in the window, then two stages of 15 s each.
    d.run(50, calm("agent-prod-01"));
    assert_eq!(d.last().state, IncidentState::Recovering);
    assert_eq!(
        d.orders("agent-prod-01"),
        ["throttle to 120 requests/min and 20,000 tokens/min", SWITCHED]
    );
    d.run(12, calm("agent-prod-01"));
    assert_eq!(
        d.orders("agent-prod-01"),
        ["throttle to 240 requests/min and 40,000 tokens/min"]
    );
    d.run(15, calm("agent-prod-01"));
    let incident = d.last();
    assert_eq!(incident.state, IncidentState::Resolved);
    assert!(incident.resolved.is_some());
    assert!(incident.directives.is_empty());
    assert!(incident.worst > 6000.0);
    assert!(d.set.is_empty());
    let resolved = d.notices.last().expect("told");
    assert_eq!(resolved.event, NoticeEvent::Resolved);
    assert!(
        resolved
            .title
            .starts_with("token_explosion_detection: agent-prod-01 resolved after 1 min 2"),
        "{}",
        resolved.title
    );
    assert_eq!(d.notices.len(), 2);
    let expected = [
        "opened",
        "step_applied",
        "step_applied",
        "told",
        "recovering",
        "step_worked",
        "step_worked",
        "lifted",
        "recovering",
        "lifted",
        "lifted",
        "lifted",
        "resolved",
        "told",
    ];
    assert_eq!(d.events(), expected);
}

#[test]
fn what_gets_worse_is_noted_once_for_each_half_more() {
    let mut d = Driven::new(book([explosion()]));
    d.run(20, |_| tokens("a", "loop", 1000));
    // 6,000 when it was found; 9,000 is not half more, 10,000 is, and 16,000.
    let worse: Vec<String> = d
        .last()
        .timeline
        .into_iter()
        .filter(|e| e.event == "worsened")
        .map(|e| e.detail)
        .collect();
    assert_eq!(
        worse,
        [
            "10,000 tokens per execution (limit 5,000 tokens)",
            "16,000 tokens per execution (limit 5,000 tokens)"
        ]
    );
    assert_eq!(d.last().worst, 20_000.0);
    assert_eq!(d.last().current, Some(20_000.0));
}

#[test]
fn one_incident_a_subject_then_cooldown() {
    let mut d = Driven::new(book([explosion()]));
    d.run(30, wild("a"));
    d.run(5, wild("b"));
    assert_eq!(d.open(), 2);
    // Silence: what was measured leaves the window, and so the incidents end.
    d.wait(60 + 32);
    assert_eq!(d.open(), 0);
    let no_traffic = d.last().timeline.iter().any(|e| e.detail.contains("no traffic"));
    assert!(no_traffic, "{:?}", d.last().timeline);
    d.run(30, wild("a"));
    assert_eq!(d.open(), 0);
    let seen = d.engine.rules(d.now())[0].worst[0].clone();
    assert!(
        seen.waiting_on
            .as_deref()
            .is_some_and(|w| w.starts_with("cooldown: ")),
        "{seen:?}"
    );
    d.run(120, wild("a"));
    assert_eq!(d.open(), 1);
    assert_eq!(d.engine.incidents().len(), 3);
}

#[test]
fn a_relapse_returns_to_the_last_step() {
    let mut d = Driven::new(book([explosion()]));
    d.run(30, wild("a"));
    d.run(65, calm("a"));
    assert_eq!(d.last().state, IncidentState::Recovering);
    assert_eq!(
        d.orders("a").len(),
        1,
        "eased, then light: {:?}",
        d.last().timeline
    );
    let before = d.notices.len();
    d.run(6, |n| tokens("a", &format!("worse-{n}"), 60_000));
    assert_eq!(d.last().state, IncidentState::Open);
    assert_eq!(d.orders("a"), [THROTTLED, SWITCHED]);
    assert_eq!(d.engine.incidents().len(), 1, "the same incident");
    assert!(d.events().contains(&"relapsed".to_owned()));
    assert_eq!(d.notices.len(), before + 1);
    assert_eq!(d.notices.last().map(|n| n.event), Some(NoticeEvent::Updated));
    let recovering = |d: &Driven| d.last().state == IncidentState::Recovering;
    let mut waited = 0;
    while !recovering(&d) {
        d.run(1, calm("a"));
    }
    while recovering(&d) {
        d.run(1, calm("a"));
        waited += 1;
    }
    assert!(
        (59..=61).contains(&waited),
        "twice the probation after a relapse: {waited}"
    );
}

#[test]
fn leases_are_renewed_and_end_by_themselves() {
    let mut d = Driven::new(book([explosion()]));
    d.run(1, wild("a"));
    let published = d.published;
    d.run(400, wild("a"));
    assert!(
        (2..=4).contains(&(d.published - published)),
        "{}",
        d.published - published
    );
    assert_eq!(d.orders("a").len(), 2);
    let ids: Vec<String> = d.last().directives.iter().map(|l| l.lease.to_string()).collect();
    assert!(ids[0].ends_with("-1") && ids[1].ends_with("-2"), "{ids:?}");
    // The engine stops: what it ordered ends.
    d.millis += 301_000;
    assert!(d.orders("a").is_empty());
}

#[test]
fn on_call_is_told_again_until_it_is_over() {
    let mut b = book([explosion()]);
    b.actions.get_mut("act").expect("there").steps = vec![
        step(StepKind::Notify {
            targets: vec!["chat".to_owned()],
        }),
        step(StepKind::Escalate {
            levels: vec![Level {
                after: Duration::ZERO,
                targets: vec!["pager".to_owned()],
            }],
            repeat_every: Duration::from_secs(20),
        }),
    ];
    let mut d = Driven::new(b);
    d.run(45, wild("a"));
    d.wait(100);
    let told: Vec<(NoticeEvent, &str, Severity)> = d
        .notices
        .iter()
        .map(|n| (n.event, n.targets[0].as_str(), n.severity))
        .collect();
    use NoticeEvent::{Escalated, Opened, Resolved};
    assert_eq!(
        told,
        [
            (Opened, "chat", Severity::Warning),
            (Opened, "pager", Severity::Critical),
            (Escalated, "pager", Severity::Critical),
            (Escalated, "pager", Severity::Critical),
            (Escalated, "pager", Severity::Critical),
            (Escalated, "pager", Severity::Critical),
            (Escalated, "pager", Severity::Critical),
            (Resolved, "chat", Severity::Warning),
            (Resolved, "pager", Severity::Warning),
        ]
    );
    let mut ids: Vec<&str> = d.notices.iter().map(|n| n.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), d.notices.len());
}

#[test]
fn derived_throttles_follow_the_agents_past() {
    let mut b = book([explosion()]);
    b.actions.get_mut("act").expect("there").steps = vec![step(StepKind::Throttle {
        requests_per_minute: None,
        tokens_per_minute: None,
    })];
    let mut d = Driven::new(b);
    d.run(300, calm("a"));
    d.run(60, wild("a"));
    let orders = d.orders("a");
    assert_eq!(orders.len(), 1);
    // 60 requests of 2,000 tokens a minute.
    assert_eq!(orders[0], "throttle to 60 requests/min and 120,000 tokens/min");
}

#[test]
fn operators_close_and_forget() {
    let mut d = Driven::new(book([explosion()]));
    d.run(10, wild("a"));
    let id = d.last().id;
    d.step(Input::Operator(OperatorAct::Resolve {
        incident: id.clone(),
        by: "kim".to_owned(),
    }));
    let incident = d.engine.incident(&id).expect("kept");
    assert_eq!(incident.state, IncidentState::Resolved);
    assert!(d.set.is_empty());
    assert!(d.events().contains(&"operator".to_owned()));
    assert_eq!(d.notices.last().map(|n| n.event), Some(NoticeEvent::Resolved));
    d.run(100, wild("a"));
    assert_eq!(d.open(), 0, "cooldown");
    let notices = d.notices.len();
    d.step(Input::Operator(OperatorAct::Resolve {
        incident: id,
        by: "kim".to_owned(),
    }));
    assert_eq!(d.notices.len(), notices, "it is closed already");

    d.step(Input::Operator(OperatorAct::Forget { agent: "a".into() }));
    d.step(Input::Operator(OperatorAct::Forget {
        agent: "nobody".into(),
    }));
    assert_eq!(d.engine.rules(d.now())[0].worst[0].samples, 0);
    assert_eq!(d.engine.agents(d.now())[0].tokens_per_minute, 0.0);
    d.run(200, calm("a"));
    assert_eq!(d.open(), 0);
}
