//! What is seen, and what is found in it.

use std::sync::Arc;
use std::time::Duration;

use super::{calm, explosion, wild};
use crate::incident::engine::Bounds;
use crate::incident::input::Input;
use crate::incident::rule::{GroupBy, Metric, Threshold};
use crate::incident::testing::{Driven, book, observation, rule, tokens};
use crate::types::directive::Subject;
use crate::types::observation::{IdentitySource, Outcome};
use crate::types::usage::UsageSource;

#[test]
fn a_runaway_execution_is_seen_before_it_ends() {
    let mut r = explosion();
    r.min_samples = 10;
    let mut d = Driven::new(book([r]));
    // One execution that loops: each call is small, the sum is not, and ten calls are samples enough.
    d.run(9, |_| tokens("a", "loop", 700));
    assert_eq!(d.open(), 0);
    d.run(1, |_| tokens("a", "loop", 700));
    assert_eq!(d.open(), 1);
    assert_eq!(d.last().value, 7000.0);
    assert_eq!(d.last().samples, 10);
}

#[test]
fn running_streams_count_until_their_end_replaces_them() {
    let mut r = explosion();
    r.act_on_estimates = true;
    let mut d = Driven::new(book([r]));
    let progress = |request: &str, output: u64| {
        let mut o = tokens("a", "e", 1000);
        o.request_id = request.into();
        o.normalised.output_total = Some(output);
        o.usage_source = UsageSource::Estimated;
        Box::new(o)
    };
    let value = |d: &Driven| d.engine.rules(d.now())[0].worst[0].value;
    d.step(Input::Progress(progress("r1", 1000)));
    d.step(Input::Progress(progress("r1", 2500)));
    assert_eq!(value(&d), Some(3500.0));
    d.step(Input::Progress(progress("r2", 0)));
    assert_eq!(value(&d), Some(4500.0));
    let mut end = tokens("a", "e", 1000);
    end.request_id = "r1".into();
    end.normalised.output_total = Some(2800);
    d.see(end);
    assert_eq!(value(&d), Some(4800.0));
    d.step(Input::Progress(progress("r2", 400)));
    assert_eq!(d.open(), 1);
    assert_eq!(d.last().value, 5200.0);
    // An end that does not say what was used leaves what was counted.
    let mut end = tokens("a", "e", 0);
    end.request_id = "r2".into();
    end.normalised = Default::default();
    end.outcome = Outcome::ClientAbort;
    d.see(end);
    assert_eq!(value(&d), Some(5200.0));
    // A window later it is forgotten.
    d.wait(61);
    assert_eq!(value(&d), None);
}

#[test]
fn streams_whose_end_was_lost_make_room_for_others() {
    let mut d = Driven::new(book([explosion()]));
    let progress = |request: &str, output: u64| {
        let mut o = tokens("a", "e", 0);
        o.request_id = request.into();
        o.normalised.output_total = Some(output);
        o.usage_source = UsageSource::Estimated;
        o
    };
    let value = |d: &Driven| d.engine.rules(d.now())[0].worst[0].value;
    for n in 0..16 {
        d.step(Input::Progress(Box::new(progress(&format!("lost-{n}"), 1))));
    }
    d.step(Input::Progress(Box::new(progress("waits", 100))));
    assert_eq!(value(&d), Some(16.0), "it is not followed: sixteen are");
    // The execution goes on, but nothing more is heard of those.
    for _ in 0..61 {
        d.wait(10);
        d.see(progress("other", 0));
    }
    d.step(Input::Progress(Box::new(progress("new", 100))));
    assert_eq!(value(&d), Some(116.0));
    // A request that goes by the name of a lost one is another.
    d.see(progress("lost-3", 10));
    assert_eq!(value(&d), Some(126.0));
}

#[test]
fn fleet_rules_act_on_agents_without_a_slot_too() {
    let mut r = rule("fleet", Metric::TokensPerMinute);
    r.group_by = GroupBy::Fleet;
    r.threshold_upper = Some(Threshold::Fixed(100_000.0));
    let mut d = Driven::new(book([r]));
    d.run(30, |n| tokens("overflow", &format!("e{n}"), 9000));
    assert_eq!(d.last().subject_kind, "fleet");
    assert_eq!(d.set.iter().next().unwrap().subject, Subject::Fleet);
    assert!(!d.orders("overflow").is_empty() && !d.orders("anyone").is_empty());
}

#[test]
fn an_exchange_without_an_execution_is_one() {
    let mut d = Driven::new(book([explosion()]));
    let alone = |n: u64| {
        let mut o = tokens("a", &format!("own-{n}"), 3000);
        o.execution_source = IdentitySource::Exchange;
        o.request_id = format!("r{n}").into();
        o
    };
    d.run(20, alone);
    assert_eq!(d.engine.rules(d.now())[0].worst[0].value, Some(3000.0));
    // Seen while it ran, it is not counted twice.
    d.step(Input::Progress(Box::new(alone(99))));
    d.see(alone(99));
    assert_eq!(d.engine.rules(d.now())[0].worst[0].samples, 21);
    assert_eq!(d.engine.rules(d.now())[0].worst[0].value, Some(3000.0));
}

#[test]
fn an_execution_that_others_may_join_is_remembered_from_its_first_exchange() {
    let mut d = Driven::new(book([explosion()]));
    let link = |source: IdentitySource| {
        let mut o = tokens("a", "first", 3000);
        o.execution_source = source;
        o.may_continue = true;
        o
    };
    d.see(link(IdentitySource::Exchange));
    assert_eq!(d.engine.rules(d.now())[0].worst[0].value, Some(3000.0));
    d.see(link(IdentitySource::Chain));
    assert_eq!(d.last().value, 6000.0);
}

#[test]
fn latency_by_quantile() {
    let mut r = rule("latency_creep", Metric::ResponseTime);
    r.threshold_upper = Some(Threshold::Fixed(8.0));
    r.min_samples = 20;
    let mut d = Driven::new(book([r]));
    let timed = |ms: f64| {
        let mut o = observation("a", "e");
        o.duration_ms = ms;
        o
    };
    d.run(19, |_| timed(1000.0));
    d.run(1, |_| timed(9000.0));
    assert_eq!(d.open(), 0, "one in twenty is not more than 5 %");
    d.run(2, |_| timed(9000.0));
    assert_eq!(d.open(), 1);
    let value = d.last().value;
    assert!((value - 9.0).abs() < 0.09, "{value}");
    assert!(
        d.notices[0].title.contains("a at p95 response time 9"),
        "{}",
        d.notices[0].title
    );
    assert!(d.notices[0].title.ends_with("(limit 8 s)"));
}

#[test]
fn a_breach_must_last() {
    let mut r = explosion();
    r.hold = Duration::from_secs(10);
    r.window = Duration::from_secs(20);
    let mut d = Driven::new(book([r]));
    d.run(30, calm("a"));
    let mut seconds = 0;
    while d.open() == 0 && seconds < 60 {
        d.run(1, wild("a"));
        seconds += 1;
        let seen = &d.engine.rules(d.now())[0].worst[0];
        if d.open() == 0 && seen.breach {
            assert!(
                seen.waiting_on.as_deref().is_some_and(|w| w.starts_with("for: ")),
                "{seen:?}"
            );
        }
    }
    // The mean passes the limit after 7 of 20; then ten seconds more.
    assert!((16..=18).contains(&seconds), "{seconds}");
    // A breach that ends in time is none.
    let mut r = explosion();
    r.hold = Duration::from_secs(30);
    r.window = Duration::from_secs(20);
    let mut d = Driven::new(book([r]));
    d.run(30, calm("a"));
    d.run(10, wild("a"));
    d.run(60, calm("a"));
    assert_eq!(d.engine.incidents().len(), 0);
    assert_eq!(d.engine.rules(d.now())[0].findings, 0);
}

#[test]
fn time_alone_finds_what_lasts() {
    let mut r = explosion();
    r.hold = Duration::from_secs(10);
    let mut d = Driven::new(book([r]));
    d.see(tokens("a", "e", 9000));
    d.wait(9);
    assert_eq!(d.open(), 0);
    d.wait(1);
    assert_eq!(d.open(), 1, "no further exchange was needed");
}

#[test]
fn samples_that_go_out_may_make_a_breach() {
    let mut d = Driven::new(book([explosion()]));
    d.run(20, |n| tokens("a", &format!("small-{n}"), 10));
    d.run(1, |_| tokens("a", "large", 9000));
    assert_eq!(d.open(), 0);
    d.wait(59);
    assert_eq!(d.open(), 1, "only the large one is left");
}

#[test]
fn subjects_of_every_kind() {
    let table = [
        (GroupBy::Agent, "agent", "a", Some("a"), 2),
        (GroupBy::Execution, "execution", "wild-0", Some("a"), 2),
        (GroupBy::Model, "model", "gpt-4o", None, 0),
        (GroupBy::Upstream, "upstream", "main", None, 0),
        (GroupBy::Fleet, "fleet", "fleet", None, 2),
    ];
    for (group_by, kind, name, agent, directives) in table {
        let mut r = explosion();
        r.group_by = group_by;
        let mut d = Driven::new(book([r]));
        d.run(1, wild("a"));
        let incident = d.last();
        assert_eq!(
            (incident.subject_kind.as_str(), incident.subject.as_str()),
            (kind, name)
        );
        assert_eq!(incident.agent.as_ref().map(|a| a.as_str()), agent, "{kind}");
        assert_eq!(incident.directives.len(), directives, "{kind}");
        if group_by == GroupBy::Fleet {
            assert!(d.set.iter().all(|l| l.subject == Subject::Fleet));
            assert_eq!(d.orders("anyone").len(), 2);
            assert_eq!(d.engine.agents(d.now())[0].directives.len(), 2);
        }
        // And it ends, also where the execution ends first.
        d.wait(700);
        assert_eq!(d.open(), 0, "{kind}");
        assert!(d.set.is_empty());
    }
}

#[test]
fn filters() {
    let mut r = explosion();
    r.agents = vec!["prod-*".to_owned()];
    r.models = vec!["gpt-4?".to_owned()];
    r.upstreams = vec!["main".to_owned()];
    let mut d = Driven::new(book([r]));
    d.run(5, wild("dev-1"));
    d.run(5, |n| {
        let mut o = wild("prod-1")(n);
        o.model_requested = Some("gpt-4o-mini".into());
        o
    });
    d.run(5, |n| {
        let mut o = wild("prod-1")(n);
        o.upstream = "other".into();
        o
    });
    d.run(5, |n| {
        let mut o = wild("prod-1")(n);
        o.model_requested = None;
        o
    });
    assert_eq!(d.open(), 0);
    d.run(1, wild("prod-1"));
    assert_eq!(d.open(), 1);
}

#[test]
fn refusals_of_ours_are_no_evidence() {
    let mut rules = Vec::new();
    for metric in [
        Metric::ErrorRate,
        Metric::RateLimitedRate,
        Metric::ResponseTime,
        Metric::TokensPerExecution,
        Metric::RequestsPerExecution,
        Metric::EmptyRate,
    ] {
        let mut r = rule(&metric.name(metric.default_statistic()), metric);
        r.threshold_upper = Some(Threshold::Fixed(0.0));
        rules.push(r);
    }
    let mut d = Driven::new(book(rules));
    d.run(20, |n| {
        let mut o = tokens("a", &format!("e{n}"), 9000);
        o.outcome = Outcome::Refused;
        o.status = 429;
        o.output_chars = None;
        o
    });
    assert_eq!(d.engine.incidents().len(), 0);
    assert_eq!(d.engine.agents(d.now()).len(), 1);
    assert_eq!(d.engine.agents(d.now())[0].requests_per_minute, 0.0);
}

#[test]
fn silence_is_heard() {
    let mut r = rule("silence", Metric::Silence);
    r.threshold_upper = Some(Threshold::Fixed(30.0));
    r.min_samples = 5;
    let mut d = Driven::new(book([r]));
    d.run(4, calm("a"));
    d.wait(100);
    assert_eq!(d.open(), 0, "hardly known");
    d.run(1, calm("a"));
    d.wait(29);
    assert_eq!(d.open(), 0);
    d.wait(3);
    assert_eq!(d.open(), 1);
    d.run(40, calm("a"));
    assert_eq!(d.open(), 0);
}

#[test]
fn an_agent_that_stops_is_too_slow() {
    let mut r = rule("stopped", Metric::RequestsPerMinute);
    r.threshold_upper = None;
    r.threshold_lower = Some(Threshold::Fixed(10.0));
    let mut d = Driven::new(book([r]));
    d.run(30, calm("a"));
    assert_eq!(d.open(), 0, "too young to be judged slow");
    d.run(60, calm("a"));
    d.wait(60);
    assert_eq!(d.open(), 1);
    assert!(d.last().value < 10.0);
    d.run(60, calm("a"));
    assert_eq!(d.open(), 0);
}

#[test]
fn bounds_hold() {
    let mut b = book([explosion()]);
    let mut execution = rule("per_execution", Metric::TokensPerExecution);
    execution.group_by = GroupBy::Execution;
    b.rules.push(Arc::new(execution));
    let mut d = Driven::bounded(
        b,
        Bounds {
            max_subjects: 3,
            max_executions: 5,
            execution_idle_seconds: 30,
            max_closed_incidents: 4,
        },
    );
    for n in 0..50 {
        d.see(tokens(&format!("agent-{n}"), &format!("e{n}"), 9000));
    }
    d.wait(1);
    let rules = d.engine.rules(d.now());
    assert_eq!(rules[0].subjects, 4, "three and the one for the rest");
    assert_eq!(rules[1].subjects, 5);
    assert!(
        d.orders("overflow").is_empty(),
        "many agents are not throttled for one"
    );
    assert!(d.engine.incidents().len() <= 4 + 4 + 5);
    assert_eq!(d.engine.agents(d.now()).len(), 4);
    // Those that are long gone make room.
    d.wait(3700);
    d.see(tokens("new", "e", 1));
    d.wait(60);
    d.see(tokens("new", "e", 1));
    let agents: Vec<String> = d
        .engine
        .agents(d.now())
        .iter()
        .map(|a| a.agent.to_string())
        .collect();
    assert!(agents.contains(&"new".to_owned()), "{agents:?}");
}

#[test]
fn many_rules_at_once() {
    let all = [
        Metric::TokensPerRequest,
        Metric::InputTokensPerExecution,
        Metric::OutputTokensPerExecution,
        Metric::TokensPerMinute,
        Metric::RequestsPerMinute,
        Metric::CostPerMinute,
        Metric::CostPerHour,
        Metric::CostPerExecution,
        Metric::RequestsPerExecution,
        Metric::ResponseTime,
        Metric::TimeToFirstToken,
        Metric::OutputSpeed,
        Metric::ErrorRate,
        Metric::TimeoutRate,
        Metric::RateLimitedRate,
        Metric::TruncationRate,
        Metric::RefusalRate,
        Metric::EmptyRate,
        Metric::CacheHitRatio,
    ];
    let rules = all.map(|metric| {
        let mut r = rule(&metric.name(metric.default_statistic()), metric);
        r.threshold_upper = Some(Threshold::Fixed(1e-7));
        r
    });
    let mut d = Driven::new(book(rules));
    d.run(10, |n| {
        let mut o = observation("a", "e");
        o.cost_usd = Some(crate::types::usage::Cost::from_nanos(5_000));
        o.usage.cached_input_tokens = Some(10);
        match n {
            0 => o.outcome = Outcome::Timeout,
            1 => o.status = 429,
            2 => o.finish_reason = Some("length".into()),
            3 => o.finish_reason = Some("content_filter".into()),
            4 => o.output_chars = Some(0),
            _ => {}
        }
        o
    });
    let silent: Vec<String> = d
        .engine
        .rules(d.now())
        .into_iter()
        .filter(|r| r.open_incidents != 1)
        .map(|r| r.name.to_string())
        .collect();
    assert!(silent.is_empty(), "{silent:?}");
    // Several incidents about one agent: all of their directives are in force.
    assert_eq!(d.orders("a").len(), 2 * all.len());
    assert_eq!(d.engine.agents(d.now())[0].incidents.len(), all.len());
}
