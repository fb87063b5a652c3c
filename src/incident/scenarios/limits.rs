//! What holds the engine back, and what a reload changes.

use std::sync::Arc;
use std::time::Duration;

use super::{SWITCHED, THROTTLED, calm, explosion, wild};
use crate::incident::input::{Input, NotActed, OperatorAct};
use crate::incident::record::{IncidentRecord, StepRecord};
use crate::incident::rule::{
    Approval, Metric, Mode, RollbackBy, Rule, Rulebook, Statistic, StepKind, Threshold,
};
use crate::incident::testing::{Driven, book, rule, step, tokens};
use crate::types::ids::Generation;
use crate::types::notice::{NoticeEvent, Severity};
use crate::types::usage::UsageSource;

#[test]
fn modes() {
    // mode; incidents, findings, directives, notices
    let table = [
        (Mode::Shadow, 0, 1, 0, 0),
        (Mode::Warn, 1, 1, 0, 1),
        // It was opened, and two steps are asked about.
        (Mode::Approve, 1, 1, 0, 3),
        (Mode::Enforce, 1, 1, 2, 1),
    ];
    for (mode, incidents, findings, directives, notices) in table {
        let mut r = explosion();
        r.mode = mode;
        let mut d = Driven::new(book([r]));
        d.run(20, wild("a"));
        assert_eq!(d.open(), incidents, "{mode:?}");
        assert_eq!(d.engine.rules(d.now())[0].findings, findings, "{mode:?}");
        assert_eq!(d.orders("a").len(), directives, "{mode:?}");
        assert_eq!(d.notices.len(), notices, "{mode:?}");
        if mode == Mode::Approve {
            let waiting: Vec<String> = d
                .last()
                .timeline
                .into_iter()
                .filter(|e| e.event == "step_waiting")
                .map(|e| e.detail)
                .collect();
            assert_eq!(
                waiting,
                [
                    "throttle: mode approve: every step is asked for",
                    "downgrade_model: mode approve: every step is asked for"
                ]
            );
        }
    }
}

#[test]
fn steps_that_cannot_be_done_are_said() {
    let mut b = book([explosion()]);
    let act = b.actions.get_mut("act").expect("there");
    act.steps[0].approval = Approval::Required;
    act.steps[1] = step(StepKind::Rollback {
        by: RollbackBy::Restore,
    });
    act.steps.truncate(2);
    let mut d = Driven::new(b);
    d.run(20, wild("a"));
    assert_eq!(
        d.events()[..4],
        ["opened", "step_waiting", "step_skipped", "told"]
    );
    assert!(
        d.notices[0].targets.is_empty(),
        "nobody is named: everyone is told"
    );
    let facts = &d.notices[0].facts;
    assert!(
        facts
            .iter()
            .any(|f| f.name == "step rollback" && f.value.starts_with("not done: ")),
        "{facts:?}"
    );
    assert!(
        facts
            .iter()
            .any(|f| f.name == "step throttle" && f.value.starts_with("waiting: "))
    );
}

#[test]
fn estimates_only_warn_until_they_are_reported() {
    let mut d = Driven::new(book([explosion()]));
    let estimated = |n: u64| {
        let mut o = tokens("a", &format!("e{n}"), 9000);
        o.usage_source = UsageSource::Estimated;
        o
    };
    d.run(10, estimated);
    assert_eq!(d.open(), 1);
    assert!(d.orders("a").is_empty());
    let why = d
        .last()
        .timeline
        .iter()
        .any(|e| e.event == "step_skipped" && e.detail.contains("estimates"));
    assert!(why, "{:?}", d.last().timeline);
    d.run(3, wild("a"));
    assert_eq!(d.orders("a"), [THROTTLED, SWITCHED]);
    assert_eq!(d.notices.len(), 2);

    // Reported numbers alone are fine: estimates beside them do not lead to actions.
    let mut d = Driven::new(book([explosion()]));
    d.run(10, calm("a"));
    d.run(20, estimated);
    assert_eq!(d.open(), 1);
    assert!(d.orders("a").is_empty());

    let mut r = explosion();
    r.act_on_estimates = true;
    let mut d = Driven::new(book([r]));
    d.run(10, estimated);
    assert_eq!(d.orders("a").len(), 2);
}

#[test]
fn automation_has_a_limit() {
    let mut b = book([explosion()]);
    b.max_actions_per_hour = 2;
    let mut d = Driven::new(b);
    for agent in ["a", "b", "c"] {
        d.run(2, wild(agent));
    }
    assert_eq!(d.open(), 3);
    assert_eq!(d.orders("b").len(), 2);
    assert!(d.orders("c").is_empty());
    let said = d
        .last()
        .timeline
        .iter()
        .any(|e| e.detail.contains("limit of 2 actions"));
    assert!(said, "{:?}", d.last().timeline);
    d.wait(3700);
    d.run(2, wild("c"));
    assert_eq!(d.orders("c").len(), 2);
}

#[test]
fn the_brake_of_the_configuration_is_lifted_by_the_configuration_alone() {
    let mut b = book([explosion()]);
    b.brake = true;
    let mut d = Driven::new(b);
    d.run(2, wild("a"));
    assert_eq!(d.open(), 1);
    assert!(d.orders("a").is_empty());
    let waits = |r: &IncidentRecord| {
        let brake = |s: &StepRecord| s.why.contains("the brake is on (by the configuration)");
        r.plan.iter().any(brake)
    };
    assert!(waits(&d.last()), "{:?}", d.last().plan);
    assert!(d.engine.brake_in_force().on);
    let act = |on| OperatorAct::Brake {
        on,
        by: "ops".to_owned(),
        reason: None,
    };
    let release = |d: &mut Driven| {
        let now = d.now();
        d.engine.act(act(false), now, &mut Vec::new())
    };
    assert!(matches!(release(&mut d), Err(NotActed::Refused(why)) if why.contains("automation.brake")));
    // An operator's own brake is another one, and stays when the configuration's goes.
    d.step(Input::Operator(act(true)));
    d.step(Input::Rules(Arc::new(Rulebook {
        generation: Generation(2),
        ..book([explosion()])
    })));
    assert_eq!(d.engine.brake_in_force().by.as_deref(), Some("ops"));
    assert!(release(&mut d).is_ok());
    assert!(!d.engine.brake_in_force().on);
    d.run(2, wild("b"));
    assert_eq!(d.orders("b").len(), 2);
}

#[test]
fn reload() {
    type Change = fn(&mut Rule);
    // change; open incidents after it, directives after it, samples kept
    let table: &[(&str, Change, usize, usize, bool)] = &[
        ("nothing", |_| {}, 1, 2, true),
        ("severity", |r| r.severity = Severity::Critical, 1, 2, true),
        (
            "threshold up",
            |r| r.threshold_upper = Some(Threshold::Fixed(100_000.0)),
            1,
            2,
            true,
        ),
        ("threshold gone", |r| r.threshold_upper = None, 0, 0, true),
        ("mode warn", |r| r.mode = Mode::Warn, 1, 0, true),
        ("mode shadow", |r| r.mode = Mode::Shadow, 0, 0, true),
        ("mode approve", |r| r.mode = Mode::Approve, 1, 0, true),
        ("off", |r| r.enabled = false, 0, 0, true),
        ("renamed", |r| r.name = "other".into(), 0, 0, false),
        ("window", |r| r.window = Duration::from_secs(90), 0, 0, false),
        ("statistic", |r| r.statistic = Statistic::Max, 0, 0, false),
        (
            "no longer covered",
            |r| r.agents = vec!["b*".to_owned()],
            0,
            0,
            false,
        ),
        ("other action", |r| r.action = "nothing".into(), 1, 0, true),
    ];
    for (name, change, open, directives, kept) in table {
        let mut d = Driven::new(book([rule("first", Metric::ErrorRate), explosion()]));
        d.run(20, wild("a"));
        assert_eq!(d.open(), 1);
        let mut r = explosion();
        change(&mut r);
        // The other rule is gone, so numbers change as well.
        d.step(Input::Rules(Arc::new(book([r]))));
        d.wait(1);
        assert_eq!(d.open(), *open, "{name}: {:?}", d.last().timeline);
        assert_eq!(d.orders("a").len(), *directives, "{name}");
        let samples = d.engine.rules(d.now())[0].worst.first().map_or(0, |s| s.samples);
        assert_eq!(samples > 0, *kept, "{name}");
        if *open == 0 {
            assert_eq!(
                d.notices.last().map(|n| n.event),
                Some(NoticeEvent::Resolved),
                "{name}"
            );
        }
        // And it goes on without harm.
        d.run(100, calm("a"));
        d.run(100, |n| tokens("a", &format!("e{}", n % 7), 50));
    }
}

#[test]
fn a_reload_judges_anew() {
    let mut r = explosion();
    r.threshold_upper = Some(Threshold::Fixed(50_000.0));
    let mut quantile = rule("p90", Metric::TokensPerRequest);
    quantile.statistic = Statistic::Quantile(0.9);
    quantile.threshold_upper = Some(Threshold::Fixed(50_000.0));
    let mut d = Driven::new(book([r, quantile.clone()]));
    d.run(20, wild("a"));
    assert_eq!(d.open(), 0);
    quantile.threshold_upper = Some(Threshold::Fixed(11_000.0));
    d.step(Input::Rules(Arc::new(book([explosion(), quantile]))));
    d.wait(2);
    assert_eq!(d.open(), 2);
}
