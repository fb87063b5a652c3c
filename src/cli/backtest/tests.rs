//! Backtests of small records, from files and from a ledger.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::*;

/// A configuration of one rule; `limit` in tokens of an execution.
fn rules(limit: u32, steps: &str) -> String {
    format!(
        "agent_incident_rules:\n  - {{name: explosion, metric: tokens_per_execution, baseline: 2500, threshold_upper: {limit}, \
         window: 1m, cooldown: 1m, action: act}}\nactions:\n  act:\n    steps:\n{steps}"
    )
}

const THROTTLE: &str = "      - throttle: {requests_per_minute: 60, tokens_per_minute: 12000}\n";
const DOWNGRADE: &str = "      - downgrade_model: {to: gpt-4o-mini}\n        approval: required\n";

/// One exchange a second of each agent for `seconds`; agent `wild` uses 12,000 tokens from 60 s to 120 s.
fn record(seconds: u64) -> String {
    let mut text = String::new();
    for second in 0..seconds {
        for agent in ["calm", "wild"] {
            let tokens = if agent == "wild" && (60..120).contains(&second) {
                12_000
            } else {
                1_000
            };
            let (hours, minutes, rest) = (10 + second / 3600, second / 60 % 60, second % 60);
            writeln!(
                text,
                r#"{{"request_id":"{agent}-{second}","time":"2026-11-25T{hours}:{minutes:02}:{rest:02}Z","agent":"{agent}","agent_source":"header","agent_version":null,"execution":"{agent}-{second}","execution_source":"exchange","upstream":"openai","provider":"openai","api":"openai.chat","model_requested":"gpt-4o","model_served":"gpt-4o","status":200,"stream":true,"outcome":"complete","usage_source":"reported","input_tokens":{tokens},"output_tokens":0,"total_tokens":{tokens},"input_total":{tokens},"output_total":0,"finish_reason":"stop","error_type":null,"error_code":null,"tool_calls":[],"output_chars":8,"ttfb_ms":210.0,"ttft_ms":230.0,"duration_ms":900.0,"overhead_us":30,"cost_usd":{},"actions":[]}}"#,
                f64::from(tokens) * 2.5e-6
            )
            .expect("text");
        }
    }
    text
}

struct Case {
    _dir: tempfile::TempDir,
    args: Args,
}

fn case(record: &str, rules: &str, against: Option<&str>) -> Case {
    let dir = tempfile::tempdir().expect("a directory");
    let put = |name: &str, text: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    };
    let args = Args {
        record: put("record.ndjson", record),
        rules: put("rules.yaml", rules),
        against: against.map(|text| put("against.yaml", text)),
        from: None,
        until: None,
        agent: None,
        approve: false,
        fail_on: None,
        output: Output::Text,
    };
    Case { _dir: dir, args }
}

#[test]
fn it_says_when_on_whom_how_long_and_what_it_saved() {
    let case = case(&record(400), &rules(5000, THROTTLE), None);
    let report = backtest(&case.args).expect("a report");
    assert_eq!((report.record.exchanges, report.record.agents), (800, 2));
    assert_eq!(report.rules.incidents.len(), 1, "{:?}", report.rules.incidents);
    let incident = &report.rules.incidents[0];
    assert_eq!(
        (incident.rule.as_str(), incident.subject.as_str()),
        ("explosion", "wild")
    );
    assert!(
        incident.opened.to_string().starts_with("2026-11-25T10:01:2"),
        "{}",
        incident.opened
    );
    assert!(incident.resolved.is_some());
    assert!(
        incident.minutes > 0.5 && incident.minutes < 4.0,
        "{}",
        incident.minutes
    );
    let done = report.rules.totals.done;
    // 12,000 a minute, and a quarter of that at once: most of what is wild is refused.
    assert!(done.refused > 20 && done.refused < done.bound, "{done:?}");
    assert!(
        done.tokens_saved >= 12_000 * 20 && done.cost_saved_usd > 0.5,
        "{done:?}"
    );
    let text = text::shown(&report);
    for part in [
        "800 exchanges of 2 agents",
        "1 incident on 1 agent",
        "refused",
        "saved",
        "agent wild",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(
        serde_json::to_value(&report)
            .expect("json")
            .pointer("/rules/incidents/0/refused")
            .is_some()
    );
}

#[test]
fn two_files_side_by_side() {
    let mut case = case(
        &record(400),
        &rules(5000, THROTTLE),
        Some(&rules(50_000, THROTTLE)),
    );
    case.args.fail_on = Some(FailOn::MoreIncidents);
    let report = backtest(&case.args).expect("a report");
    let comparison = report.comparison.as_ref().expect("two files");
    assert_eq!(
        (
            comparison.only_rules.len(),
            comparison.only_against.len(),
            comparison.in_both
        ),
        (1, 0, 0)
    );
    assert!(comparison.more_refused > 0 && comparison.more_minutes > 0.0);
    assert_eq!(run(&case.args), FAILED);
    assert!(text::shown(&report).contains("only with"));
    std::mem::swap(&mut case.args.rules, case.args.against.as_mut().expect("given"));
    assert_eq!(run(&case.args), OK);
    case.args.against = Some(case.args.rules.clone());
    let same = backtest(&case.args)
        .expect("a report")
        .comparison
        .expect("two files");
    assert!(same.only_rules.is_empty() && same.only_against.is_empty() && same.more_minutes == 0.0);
}

#[test]
fn a_question_is_answered_by_nobody_unless_it_is_said() {
    let mut case = case(&record(400), &rules(5000, DOWNGRADE), None);
    let silent = backtest(&case.args).expect("a report").rules.totals.done;
    assert_eq!(silent.downgraded, 0);
    case.args.approve = true;
    let approved = backtest(&case.args).expect("a report").rules.totals.done;
    assert!(approved.downgraded > 20, "{approved:?}");
    assert!(
        approved.cost_saved_usd > 0.1 && approved.tokens_saved == 0,
        "{approved:?}"
    );
}

#[test]
fn only_a_part_is_replayed() {
    let mut case = case(&record(400), &rules(5000, THROTTLE), None);
    case.args.fail_on = Some(FailOn::Incidents);
    assert_eq!(run(&case.args), FAILED);
    case.args.agent = Some("calm".to_owned());
    assert_eq!(run(&case.args), OK);
    assert_eq!(backtest(&case.args).expect("a report").record.exchanges, 400);
    case.args.agent = None;
    case.args.until = Some(time("2026-11-25T10:01:00Z").expect("a time"));
    assert_eq!(backtest(&case.args).expect("a report").record.exchanges, 120);
    case.args.from = Some(time("2026-11-25").expect("a day"));
    assert_eq!(run(&case.args), OK);
    case.args.from = case.args.until;
    assert_eq!(run(&case.args), UNUSABLE);
    assert!(time("soon").is_err());
}

#[test]
fn what_cannot_be_used_is_told_with_place_and_remedy() {
    let told = |case: &Case| backtest(&case.args).expect_err("a problem");
    let bad = record(2000) + "{\"request_id\": 5}\n" + &record(10);
    let wrong = told(&case(&bad, &rules(5000, THROTTLE), None));
    assert!(
        wrong.contains("record.ndjson:4001: ") && wrong.contains("fusebox schema"),
        "{wrong}"
    );
    let wrong = told(&case("", &rules(5000, THROTTLE), None));
    assert!(wrong.contains("no exchange to replay"), "{wrong}");
    let wrong = told(&case(&record(5), "agent_incident_rules: [{}]\n", None));
    assert!(wrong.contains("rules.yaml"), "{wrong}");
    let mut missing = case(&record(5), &rules(5000, THROTTLE), None);
    missing.args.record = Path::new("/nowhere/ledger.db").to_owned();
    assert!(told(&missing).contains("cannot be read"));
    missing.args.fail_on = Some(FailOn::MoreMinutes);
    assert!(told(&missing).contains("--against"));
    assert_eq!(run(&missing.args), UNUSABLE);
}

#[test]
fn long_gaps_are_passed_over_and_end_what_was_open() {
    let first = record(100);
    let later = record(20).replace("2026-11-25T10", "2027-06-01T10");
    let case = case(&(first + &later), &rules(5000, THROTTLE), None);
    let report = backtest(&case.args).expect("a report");
    let incident = &report.rules.incidents[0];
    assert!(
        incident.resolved.is_some() && incident.minutes < 10.0,
        "{incident:?}"
    );
}

#[test]
fn a_ledger_is_replayed_like_its_lines() {
    let mut case = case(&record(300), &rules(5000, THROTTLE), None);
    let of_lines = serde_json::to_value(backtest(&case.args).expect("a report").rules).expect("json");
    let ledger = case._dir.path().join("ledger.db");
    let lines = record(300);
    crate::store::import(&ledger, Wall::default(), lines.as_bytes()).expect("imported");
    case.args.record = ledger;
    let of_ledger = serde_json::to_value(backtest(&case.args).expect("a report").rules).expect("json");
    assert_eq!(of_ledger, of_lines);
}
