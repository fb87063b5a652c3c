//! How the steps of a chain follow each other: judged, asked about, lifted, handed to people.

use std::sync::Arc;
use std::time::Duration;

use super::{calm, explosion, wild};
use crate::incident::input::{Acted, Input, NotActed, OperatorAct, Respond};
use crate::incident::record::{ApprovalState, IncidentState, Origin, StepState, Verdict};
use crate::incident::restore::Remains;
use crate::incident::rule::{Approval, Metric, OnFailure, OnTimeout, Rule, Step, StepKind};
use crate::incident::silence::Matcher;
use crate::incident::testing::{Driven, book, observation, rule, step, tokens};
use crate::types::directive::Subject;
use crate::types::notice::{NoticeEvent, Severity};
use crate::types::observation::{Observation, Outcome};

fn held(kind: StepKind, on_failure: OnFailure) -> Step {
    Step {
        verify_after: Some(Duration::from_secs(20)),
        on_failure,
        ..step(kind)
    }
}

fn throttle() -> StepKind {
    StepKind::Throttle {
        requests_per_minute: Some(60),
        tokens_per_minute: Some(10_000),
    }
}

fn notify() -> Step {
    step(StepKind::Notify {
        targets: vec!["chat".to_owned()],
    })
}

fn with(steps: Vec<Step>) -> Driven {
    let mut b = book([explosion()]);
    b.actions.get_mut("act").expect("there").steps = steps;
    Driven::new(b)
}

fn states(d: &Driven) -> Vec<StepState> {
    d.last().plan.iter().map(|s| s.state).collect()
}

fn act(d: &mut Driven, act: OperatorAct) -> Result<Acted, NotActed> {
    d.operate(act)
}

fn by() -> String {
    "ann".to_owned()
}

#[test]
fn the_next_step_waits_for_the_judgement_of_the_one_before() {
    use StepState::{Failed, InForce, Pending, Told};
    let downgrade = || step(StepKind::DowngradeModel { to: None });
    for (on_failure, orders, first) in [
        (OnFailure::Next, 2, Failed),
        (OnFailure::Revert, 1, StepState::Reverted),
        (OnFailure::Escalate, 1, Failed),
    ] {
        let mut d = with(vec![held(throttle(), on_failure), downgrade(), notify()]);
        d.run(15, wild("a"));
        assert_eq!(states(&d), [InForce, Pending, Told], "people hear at once");
        d.run(25, wild("a"));
        let second = match on_failure {
            OnFailure::Escalate => StepState::Superseded,
            _ => InForce,
        };
        assert_eq!(states(&d), [first, second, Told], "{on_failure:?}");
        assert_eq!(d.orders("a").len(), orders, "{on_failure:?}");
        let told = d.notices.iter().any(|n| n.event == NoticeEvent::Escalated);
        assert_eq!(told, on_failure == OnFailure::Escalate);
    }
}

fn slow_rule(hold: u64, steps: Vec<Step>) -> Driven {
    let mut b = book([Rule {
        window: Duration::from_secs(600),
        hold: Duration::from_secs(hold),
        ..explosion()
    }]);
    b.actions.get_mut("act").expect("there").steps = steps;
    Driven::new(b)
}

#[test]
fn a_step_that_works_is_the_last_one() {
    let downgrade = step(StepKind::DowngradeModel { to: None });
    let mut d = slow_rule(60, vec![held(throttle(), OnFailure::Next), downgrade]);
    d.run(62, wild("a"));
    // Calm from now on: what was seen since the step was taken is fine, whatever is left in the window.
    d.run(45, calm("a"));
    assert_eq!(states(&d), [StepState::Worked, StepState::Pending]);
    let record = d.last();
    assert_eq!(
        record.state,
        IncidentState::Open,
        "the window is still full of what was before"
    );
    assert!(record.plan[0].after < record.plan[0].before, "{:?}", record.plan);
    d.run(1500, calm("a"));
    assert_eq!(d.last().state, IncidentState::Resolved);
    assert_eq!(states(&d), [StepState::Worked, StepState::Superseded]);
}

#[test]
fn without_traffic_nothing_is_known() {
    let downgrade = step(StepKind::DowngradeModel { to: None });
    let mut d = slow_rule(0, vec![held(throttle(), OnFailure::Next), downgrade]);
    d.see(tokens("a", "e", 9000));
    assert_eq!(d.open(), 1);
    d.wait(45);
    assert_eq!(states(&d)[0], StepState::InForce, "it is looked at again");
    d.wait(20);
    assert_eq!(states(&d), [StepState::Inconclusive, StepState::Pending]);
    let told = d
        .notices
        .iter()
        .filter(|n| n.event == NoticeEvent::Updated)
        .count();
    assert_eq!(told, 1, "and people are told");
}

#[test]
fn a_question_is_answered_once() {
    let asks = Step {
        approval: Approval::Required,
        ..step(StepKind::DowngradeModel { to: None })
    };
    let mut d = with(vec![asks.clone(), notify()]);
    d.run(20, wild("a"));
    assert!(d.orders("a").is_empty());
    let question = d.engine.approvals().remove(0);
    assert_eq!(question.state, ApprovalState::Needed);
    let asked = d
        .notices
        .iter()
        .find(|n| n.event == NoticeEvent::ApprovalRequested)
        .expect("asked");
    assert_eq!(
        asked.approval.as_ref().map(|a| a.id.as_str()),
        Some(question.id.as_str())
    );
    assert_eq!(asked.targets, ["chat"]);
    let decide = |approve| OperatorAct::Decide {
        approval: question.id.clone(),
        approve,
        by: by(),
        via: "api".to_owned(),
        reason: Some("go".to_owned()),
    };
    assert_eq!(act(&mut d, decide(true)), Ok(Acted::Done));
    assert_eq!(d.orders("a").len(), 1);
    assert!(matches!(
        act(&mut d, decide(false)),
        Err(NotActed::Over { state: "given", .. })
    ));
    assert_eq!(d.engine.approvals()[0].by.as_deref(), Some("ann"));

    let mut d = with(vec![asks, notify()]);
    d.run(20, wild("a"));
    let id = d.engine.approvals()[0].id.clone();
    let no = OperatorAct::Decide {
        approval: id,
        approve: false,
        by: by(),
        via: "link".to_owned(),
        reason: None,
    };
    assert_eq!(act(&mut d, no), Ok(Acted::Done));
    assert_eq!(states(&d), [StepState::Denied, StepState::Told]);
    assert!(d.orders("a").is_empty());
}

#[test]
fn silence_is_no_answer_unless_it_is_said_to_be_one() {
    for (on_timeout, state, orders) in [
        (OnTimeout::Deny, StepState::Expired, 0),
        (OnTimeout::Approve, StepState::InForce, 1),
        (OnTimeout::Keep, StepState::Waiting, 0),
    ] {
        let asks = Step {
            approval: Approval::Required,
            approval_timeout: Duration::from_secs(15),
            on_timeout,
            ..step(throttle())
        };
        let mut d = with(vec![asks, notify()]);
        d.run(30, wild("a"));
        assert_eq!(states(&d)[0], state, "{on_timeout:?}");
        assert_eq!(d.orders("a").len(), orders, "{on_timeout:?}");
    }
}

#[test]
fn the_brake_makes_every_step_ask() {
    let mut d = with(vec![step(throttle()), notify()]);
    let brake = |on| OperatorAct::Brake {
        on,
        by: by(),
        reason: Some("deploy".to_owned()),
    };
    act(&mut d, brake(true)).expect("done");
    d.run(20, wild("a"));
    assert_eq!(states(&d), [StepState::Waiting, StepState::Told]);
    assert!(d.last().plan[0].why.contains("brake"), "{:?}", d.last().plan);
    act(&mut d, brake(false)).expect("done");
    assert!(!d.engine.brake().on);
}

#[test]
fn acknowledging_and_judging_by_a_human() {
    let mut d = with(vec![step(throttle()), notify()]);
    d.run(20, wild("a"));
    let id = d.last().id;
    let ack = OperatorAct::Acknowledge {
        incident: id.clone(),
        by: by(),
    };
    act(&mut d, ack).expect("done");
    assert_eq!(d.last().acknowledged_by.as_deref(), Some("ann"));
    assert_eq!(d.notices.last().map(|n| n.event), Some(NoticeEvent::Acknowledged));
    let false_alarm = OperatorAct::FalseAlarm {
        incident: id.clone(),
        by: by(),
        reason: Some("a load test".to_owned()),
    };
    act(&mut d, false_alarm.clone()).expect("done");
    assert_eq!(
        (d.last().state, d.last().verdict),
        (IncidentState::Resolved, Some(Verdict::FalseAlarm))
    );
    assert!(d.orders("a").is_empty());
    assert_eq!(act(&mut d, false_alarm), Ok(Acted::Done), "said again");
    let unknown = OperatorAct::Resolve {
        incident: "inc-x".into(),
        by: by(),
    };
    assert!(matches!(
        act(&mut d, unknown),
        Err(NotActed::Unknown { what: "incident", .. })
    ));
}

#[test]
fn what_comes_back_is_as_the_configuration_says_now() {
    for until in [IncidentState::Recovering, IncidentState::Resolved] {
        let mut b = book([Rule {
            cooldown: Duration::from_secs(1),
            ..explosion()
        }]);
        b.conduct.reopen_within = Duration::from_secs(600);
        let mut d = Driven::new(b);
        d.run(30, wild("a"));
        for _ in 0..400 {
            if d.last().state != until {
                d.run(1, calm("a"));
            }
        }
        assert_eq!(d.last().state, until);
        let mut b = book([Rule {
            cooldown: Duration::from_secs(1),
            severity: Severity::Critical,
            ..explosion()
        }]);
        b.conduct.reopen_within = Duration::from_secs(600);
        b.conduct.flaps_after = 1;
        d.step(Input::Rules(Arc::new(b)));
        d.run(30, wild("a"));
        let last = d.last();
        assert_eq!(
            (last.returns, last.flapping, last.severity),
            (1, true, Severity::Critical),
            "{until:?}"
        );
    }
}

#[test]
fn what_comes_back_soon_is_the_same_incident() {
    let mut b = book([Rule {
        cooldown: Duration::from_secs(1),
        ..explosion()
    }]);
    b.conduct.reopen_within = Duration::from_secs(600);
    let mut d = Driven::new(b);
    for round in 0..4_usize {
        d.run(30, wild("a"));
        assert_eq!(d.open(), 1, "round {round}");
        // Each relapse doubles the probation.
        d.run(400, calm("a"));
        assert_eq!(d.open(), 0, "round {round}");
    }
    assert_eq!(d.engine.incidents().len(), 1);
    assert_eq!((d.last().returns, d.last().flapping), (3, true));
    let reopened = d
        .notices
        .iter()
        .filter(|n| n.event == NoticeEvent::Opened)
        .count();
    assert_eq!(reopened, 1);
}

fn errors() -> Rule {
    Rule {
        baseline: crate::incident::rule::Baseline::Fixed(0.01),
        threshold_upper: Some(crate::incident::rule::Threshold::Fixed(0.2)),
        min_samples: 5,
        ..rule("errors", Metric::ErrorRate)
    }
}

fn failed(agent: &str) -> Observation {
    Observation {
        status: 502,
        outcome: Outcome::UpstreamError,
        ..observation(agent, "e")
    }
}

#[test]
fn one_outage_of_an_upstream_is_one_incident() {
    let mut d = Driven::new(book([errors()]));
    d.run(30, |n| failed(["a", "b", "c"][n as usize % 3]));
    let open: Vec<_> = d
        .engine
        .incidents()
        .into_iter()
        .filter(|i| i.state != IncidentState::Resolved)
        .collect();
    assert_eq!(open.len(), 1, "{open:?}");
    assert_eq!(
        (open[0].subject_kind.as_str(), open[0].subject.as_str()),
        ("upstream", "main")
    );
    let mut agents: Vec<String> = open[0].agents.iter().map(ToString::to_string).collect();
    agents.sort();
    assert_eq!(agents, ["a", "b", "c"]);
    assert!(["a", "b", "c"].iter().all(|a| !d.orders(a).is_empty()));
    let merged = d
        .engine
        .incidents()
        .into_iter()
        .find(|i| i.merged_into.is_some())
        .expect("merged");
    assert_eq!(merged.merged_into.as_ref(), Some(&open[0].id));
    // All well again: one end for all.
    d.run(200, |n| observation(["a", "b", "c"][n as usize % 3], "e"));
    assert_eq!(d.open(), 0);
    assert!(d.set.is_empty());

    let mut b = book([errors()]);
    b.conduct.correlate = false;
    let mut d = Driven::new(b);
    d.run(30, |n| failed(["a", "b", "c"][n as usize % 3]));
    assert_eq!(d.open(), 3);
}

#[test]
fn silences_keep_notices_back_and_maintenance_keeps_incidents_back() {
    let silence = |maintenance| OperatorAct::Silence {
        matcher: Matcher {
            agents: vec!["a*".to_owned()],
            ..Matcher::default()
        },
        maintenance,
        starts: None,
        length: Duration::from_secs(if maintenance { 40 } else { 400 }),
        by: by(),
        comment: "load test".to_owned(),
    };
    let mut d = with(vec![step(throttle()), notify()]);
    assert!(matches!(act(&mut d, silence(false)), Ok(Acted::Silence(_))));
    d.run(20, wild("a"));
    assert_eq!((d.open(), d.notices.len(), d.orders("a").len()), (1, 0, 1));
    assert!(d.last().silenced_by.is_some());
    d.run(200, calm("a"));
    let told: Vec<NoticeEvent> = d.notices.iter().map(|n| n.event).collect();
    assert_eq!(told, [NoticeEvent::Resolved], "the end is always told");

    let mut d = with(vec![step(throttle()), notify()]);
    act(&mut d, silence(true)).expect("made");
    d.run(38, wild("a"));
    assert_eq!(d.open(), 0);
    d.run(10, wild("a"));
    assert_eq!(d.open(), 1, "the window is over");
}

fn respond(steps: Vec<Step>) -> OperatorAct {
    OperatorAct::Respond(Respond {
        incident_type: "token_overrun".to_owned(),
        subjects: vec![Subject::Agent("new".into()), Subject::Agent("a".into())],
        action: "scale_down".into(),
        steps,
        targets: vec!["adhoc".to_owned()],
        by: by(),
        reason: None,
    })
}

#[test]
fn a_response_that_somebody_asks_for() {
    let mut d = with(vec![notify()]);
    d.run(20, calm("a"));
    let batch = StepKind::ReduceBatch {
        max_inputs: 5,
        max_choices: None,
        max_in_flight: None,
    };
    let asks = Step {
        approval: Approval::Required,
        ..step(StepKind::DowngradeModel {
            to: Some("gpt-4-mini".to_owned()),
        })
    };
    let Ok(Acted::Incidents(ids)) = act(&mut d, respond(vec![step(batch), asks])) else {
        panic!("incidents");
    };
    assert_eq!(ids.len(), 2);
    assert_eq!(
        d.orders("new"),
        ["batches of at most 5 inputs"],
        "not seen yet, and bound from the first request"
    );
    let record = d.engine.incident(&ids[0]).expect("there");
    assert_eq!(
        (record.origin, record.rule.as_str()),
        (Origin::Request, "token_overrun")
    );
    assert_eq!(record.plan[1].state, StepState::Waiting);
    assert!(
        d.notices
            .iter()
            .any(|n| n.targets == ["adhoc"] && n.event == NoticeEvent::Opened)
    );
    // The same again: a new plan for the same incidents.
    let Ok(Acted::Incidents(again)) = act(&mut d, respond(vec![step(throttle())])) else {
        panic!("incidents");
    };
    assert_eq!(again, ids);
    assert_eq!(d.engine.incident(&ids[1]).expect("there").plan_generation, 2);
    assert_eq!(d.engine.approvals()[0].state, ApprovalState::Superseded);
    assert!(
        d.orders("new")[0].starts_with("throttle"),
        "{:?}",
        d.orders("new")
    );
    // No metric can say when it is no longer needed: it ends with its lease.
    d.wait(310);
    assert!(d.orders("new").is_empty());
    let of_new = again
        .iter()
        .find_map(|id| d.engine.incident(id).filter(|r| r.subject == "new"));
    assert_eq!(of_new.map(|r| r.state), Some(IncidentState::Resolved));
}

#[test]
fn a_kill_switch_holds_until_its_lease_ends_or_a_human_lifts_it() {
    let contain = Step {
        lease: Duration::from_secs(100),
        approval: Approval::Automatic,
        ..step(StepKind::Contain)
    };
    let mut d = with(vec![contain, notify()]);
    d.run(20, wild("a"));
    d.run(60, calm("a"));
    assert_eq!(d.orders("a"), ["contained: nothing is sent"]);
    let lease = d.engine.leases().remove(0).directive.lease;
    let mut other = with(vec![]);
    std::mem::swap(&mut d, &mut other);
    let mut d = other;
    d.wait(60);
    assert!(d.orders("a").is_empty(), "the lease ended");
    let lift = OperatorAct::Lift { lease, by: by() };
    assert!(matches!(
        act(&mut d, lift),
        Err(NotActed::Unknown { what: "lease", .. })
    ));
}

#[test]
fn what_outlives_the_process() {
    let asks = Step {
        approval: Approval::Required,
        ..step(StepKind::DowngradeModel { to: None })
    };
    let contain = Step {
        approval: Approval::Automatic,
        lease: Duration::from_secs(3600),
        ..step(StepKind::Contain)
    };
    let mut d = with(vec![step(throttle()), asks, contain, notify()]);
    d.run(20, wild("a"));
    let before = d.last();
    let remains = Remains {
        kept: Some(d.engine.kept()),
        live: vec![d.engine.live(&before.id).expect("open")],
        ..Remains::default()
    };
    let mut after = with(vec![step(throttle())]);
    after.millis = d.millis + 30_000;
    let unreadable = after.restore(remains);
    assert!(unreadable.is_empty(), "{unreadable:?}");
    let record = after.last();
    assert_eq!(
        (&record.id, &record.plan, &record.timeline),
        (&before.id, &before.plan, &before.timeline)
    );
    assert_eq!(after.orders("a").len(), 2, "leases go on");
    assert_eq!(after.engine.approvals()[0].state, ApprovalState::Needed);
    // An empty window right after the start says nothing.
    after.wait(20);
    assert_eq!(after.last().state, IncidentState::Open);
    after.run(20, wild("a"));
    assert_eq!(
        (after.open(), after.engine.incidents().len()),
        (1, 1),
        "found again: the same incident"
    );
    let question = after.engine.approvals()[0].id.clone();
    let decide = OperatorAct::Decide {
        approval: question,
        approve: true,
        by: by(),
        via: "cli".to_owned(),
        reason: None,
    };
    assert_eq!(act(&mut after, decide), Ok(Acted::Done));
    assert_eq!(after.orders("a").len(), 3);
    // A new incident does not take the name of an old one.
    after.run(30, wild("b"));
    assert_eq!(after.engine.incidents().len(), 2);
}

#[test]
fn trouble_of_fusebox_is_an_incident() {
    use crate::incident::input::Trouble;
    let mut d = with(vec![]);
    let trouble = |detail: Option<&str>| {
        Input::Trouble(Trouble {
            what: "ledger",
            detail: detail.map(ToOwned::to_owned),
        })
    };
    d.step(trouble(Some("the disk is full")));
    d.step(trouble(Some("the disk is still full")));
    assert_eq!((d.open(), d.last().rule.as_str()), (1, "fusebox_ledger"));
    assert!(d.notices[0].title.contains("the disk is full"), "{:?}", d.notices);
    d.step(trouble(None));
    assert_eq!(d.open(), 0);
}
