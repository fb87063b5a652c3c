//! The story of an incident for a review: what was seen, what was done and by whom, how long it took; as Markdown and as data.

use std::fmt::Write;

use schemars::JsonSchema;
use serde::Serialize;

use super::metric::{Unit, number};
use super::record::{
    ApprovalRecord, IncidentRecord, IncidentState, Origin, PaceRecord, StepRecord, StepState, TimelineEntry,
    Verdict,
};
use super::rule::Metric;
use crate::types::time::Wall;

/// Longest text of one cell or line; what is longer is cut.
const LONGEST: usize = 500;

/// What a review of an incident needs.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PostMortem {
    /// One line that says what it was.
    pub title: String,
    /// How long what took.
    pub spans: Spans,
    /// How the steps came out.
    pub steps: StepCounts,
    /// Who decided what, oldest first.
    pub decisions: Vec<Decision>,
    /// The incident as it is shown elsewhere.
    pub incident: IncidentRecord,
}

/// How long what took, in seconds since the opening; null where it did not happen, or is not known.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, JsonSchema)]
pub struct Spans {
    /// From the beginning of the breach to the opening: the time that the rule asks a breach to last. Null where the
    /// record does not say when it began.
    pub detection: Option<f64>,
    /// To the first step in force.
    pub mitigation: Option<f64>,
    /// Until somebody took charge.
    pub acknowledgement: Option<f64>,
    /// Until the metric was back for the last time.
    pub recovery: Option<f64>,
    /// Until it was over.
    pub total: Option<f64>,
}

/// How the steps of the last plan came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, JsonSchema)]
pub struct StepCounts {
    /// Worked.
    pub worked: u64,
    /// Did not work, reverted ones included.
    pub failed: u64,
    /// Nobody can say.
    pub inconclusive: u64,
    /// Were not taken: by a human's word, for want of an answer, or for another reason.
    pub not_taken: u64,
}

/// Something that a human decided, or that was decided for want of one.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Decision {
    /// When.
    pub at: Wall,
    /// Who; `nobody` when time decided.
    pub by: String,
    /// What, for a person.
    pub what: String,
}

impl PostMortem {
    /// The story of an incident, over or not. `began` is when its breach began, where that is known.
    pub fn of(incident: IncidentRecord, began: Option<Wall>) -> Self {
        let spans = spans(&incident, began);
        let mut steps = StepCounts::default();
        for step in &incident.plan {
            match step.state {
                StepState::Worked => steps.worked += 1,
                StepState::Failed | StepState::Reverted => steps.failed += 1,
                StepState::Inconclusive => steps.inconclusive += 1,
                StepState::Skipped | StepState::Denied | StepState::Expired | StepState::Superseded => {
                    steps.not_taken += 1;
                }
                StepState::Pending | StepState::Waiting | StepState::InForce | StepState::Told => {}
            }
        }
        Self {
            title: format!(
                "{}: {} {} ({})",
                incident.rule,
                incident.subject_kind,
                incident.subject,
                incident.severity.name()
            ),
            spans,
            steps,
            decisions: decisions(&incident),
            incident,
        }
    }

    /// As JSON, for other systems.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// As Markdown, for people. Texts that came from outside cannot break its form.
    pub fn to_markdown(&self) -> String {
        let mut page = Page(String::new());
        page.line(&format!("# {}", plain(&self.title)));
        self.summary(&mut page);
        self.cause(&mut page);
        self.course(&mut page);
        self.plan(&mut page);
        self.people(&mut page);
        self.pace(&mut page);
        page.section("Timeline");
        page.table(&["when", "what", "detail"]);
        for TimelineEntry { at, event, detail } in &self.incident.timeline {
            page.row(&[&at.to_string(), event, detail]);
        }
        page.0
    }

    fn summary(&self, page: &mut Page) {
        let i = &self.incident;
        let state = match (i.state, i.verdict) {
            (IncidentState::Open, _) => "still open",
            (IncidentState::Recovering, _) => "recovering",
            (IncidentState::Resolved, Some(Verdict::FalseAlarm)) => "over; judged a false alarm",
            (IncidentState::Resolved, Some(Verdict::Confirmed)) => "over; confirmed",
            (IncidentState::Resolved, None) => "over",
        };
        page.line("");
        page.item("Incident", i.id.as_str());
        page.item("State", state);
        page.item("Opened", &i.opened.to_string());
        if let Some(resolved) = i.resolved {
            page.item("Resolved", &resolved.to_string());
        }
        let agents: Vec<&str> = i.agents.iter().map(|a| a.as_str()).collect();
        if !agents.is_empty() {
            page.item("Agents", &agents.join(", "));
        }
        if i.returns > 0 {
            let flaps = if i.flapping { ", flapping" } else { "" };
            page.item("Came back", &format!("{} times{flaps}", i.returns));
        }
        if let Some(other) = &i.merged_into {
            page.item("Became a part of", other.as_str());
        }
    }

    fn cause(&self, page: &mut Page) {
        let i = &self.incident;
        page.section("What was seen, and why it fired");
        let first = i.timeline.iter().find(|e| e.event == "opened");
        if let Some(first) = first {
            page.line(&plain(&first.detail));
            page.line("");
        }
        let found = match i.origin {
            Origin::Rule => format!("Rule {} found it.", plain(i.rule.as_str())),
            Origin::Request => "Somebody asked for a response.".to_owned(),
            Origin::Fusebox => "It is about fusebox itself.".to_owned(),
        };
        page.line(&found);
        if i.metric.is_empty() {
            return;
        }
        page.line("");
        page.table(&["measure", "value"]);
        page.row(&["metric", &i.metric]);
        page.row(&["at the opening", &self.value(i.value)]);
        page.row(&["worst", &self.value(i.worst)]);
        let last = i.current.map_or("no traffic".to_owned(), |v| self.value(v));
        page.row(&["at the end", &last]);
        page.row(&["limit", &self.value(i.threshold)]);
        if let Some(baseline) = i.baseline {
            page.row(&["normal", &self.value(baseline)]);
        }
        page.row(&["samples", &number(i.samples as f64)]);
    }

    fn course(&self, page: &mut Page) {
        let Spans {
            detection,
            mitigation,
            acknowledgement,
            recovery,
            total,
        } = self.spans;
        page.section("How long it took");
        page.table(&["until", "after the opening"]);
        let mut row = |what: &str, seconds: Option<f64>, not: &str| {
            page.row(&[what, &seconds.map_or(not.to_owned(), lasted)]);
        };
        row("detection (since the breach began)", detection, "not known");
        row(
            "mitigation (first step in force)",
            mitigation,
            "no step was in force",
        );
        row("somebody took charge", acknowledgement, "nobody did");
        row("recovery (the metric was back)", recovery, "not yet");
        row("the end", total, "not yet");
    }

    fn plan(&self, page: &mut Page) {
        page.section("What was done");
        if self.incident.plan.is_empty() {
            page.line("Nothing.");
            return;
        }
        page.table(&["step", "outcome", "what", "before", "after", "why"]);
        for step in &self.incident.plan {
            let StepRecord {
                step: name,
                state,
                what,
                why,
                before,
                after,
                ..
            } = step;
            let value = |v: &Option<f64>| v.map_or(String::new(), |v| self.value(v));
            page.row(&[
                name,
                &state.name().replace('_', " "),
                what,
                &value(before),
                &value(after),
                why,
            ]);
        }
    }

    fn people(&self, page: &mut Page) {
        page.section("Who decided what");
        if self.decisions.is_empty() {
            page.line("Nobody had to decide anything.");
            return;
        }
        page.table(&["when", "who", "what"]);
        for Decision { at, by, what } in &self.decisions {
            page.row(&[&at.to_string(), by, what]);
        }
    }

    fn pace(&self, page: &mut Page) {
        let m = &self.incident.measures;
        let all = [
            ("in a usual minute before", m.usual),
            ("in the minute before the opening", m.at_opening),
            ("in the minute before the end", m.at_close),
        ];
        if all.iter().all(|(_, pace)| pace.is_none()) {
            return;
        }
        page.section("How the agent went");
        page.table(&["", "requests a minute", "tokens a minute"]);
        for (when, pace) in all {
            let shown = |value: fn(&PaceRecord) -> f64| {
                pace.as_ref().map_or("–".to_owned(), |p| number(value(p).round()))
            };
            page.row(&[
                when,
                &shown(|p| p.requests_per_minute),
                &shown(|p| p.tokens_per_minute),
            ]);
        }
    }

    /// A value in the metric's unit.
    fn value(&self, value: f64) -> String {
        let unit: Option<Unit> = Metric::parse(&self.incident.metric).map(|(metric, _)| metric.unit());
        unit.map_or_else(|| number(value), |unit| unit.format(value))
    }
}

fn spans(i: &IncidentRecord, began: Option<Wall>) -> Spans {
    let since =
        |at: Wall| Some((at.unix_millis().saturating_sub(i.opened.unix_millis())).max(0) as f64 / 1000.0);
    let recovered = i
        .timeline
        .iter()
        .rev()
        .take_while(|e| !matches!(e.event.as_str(), "relapsed" | "reopened"));
    let recovered = recovered.filter(|e| e.event == "recovering").last();
    let closed = i.resolved.filter(|_| i.state == IncidentState::Resolved);
    Spans {
        detection: began
            .map(|b| (i.opened.unix_millis().saturating_sub(b.unix_millis())).max(0) as f64 / 1000.0),
        // Those that only tell people put nothing in force.
        mitigation: i
            .timeline
            .iter()
            .find(|e| e.event == "step_applied")
            .and_then(|e| since(e.at)),
        acknowledgement: i.acknowledged.and_then(since),
        recovery: recovered.and_then(|e| since(e.at)),
        total: closed.and_then(since),
    }
}

fn decisions(i: &IncidentRecord) -> Vec<Decision> {
    let mut all: Vec<Decision> = i.approvals.iter().filter_map(decided).collect();
    if let (Some(by), Some(at)) = (&i.acknowledged_by, i.acknowledged) {
        all.push(Decision {
            at,
            by: by.clone(),
            what: "took charge".to_owned(),
        });
    }
    // Acts of operators have no record of their own.
    let acts = i.timeline.iter().filter(|e| e.event == "operator");
    all.extend(acts.map(|e| Decision {
        at: e.at,
        by: "an operator".to_owned(),
        what: e.detail.clone(),
    }));
    all.sort_by_key(|d| d.at);
    all
}

fn decided(a: &ApprovalRecord) -> Option<Decision> {
    let state = a.state.name();
    let reason = a.reason.as_ref().map_or(String::new(), |r| format!(" ({r})"));
    Some(Decision {
        at: a.decided?,
        by: a.by.clone().unwrap_or_else(|| "nobody".to_owned()),
        what: format!(
            "{}: {state}{reason}",
            if a.what.is_empty() { &a.step } else { &a.what }
        ),
    })
}

/// Seconds for a person.
fn lasted(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match (whole / 3600, whole / 60 % 60, whole % 60) {
        (0, 0, _) => format!("{} s", number((seconds * 10.0).round() / 10.0)),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// A text on one line that means nothing to Markdown or HTML.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (n, c) in text.chars().enumerate() {
        if n >= LONGEST {
            out.push('…');
            break;
        }
        match c {
            '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '|' | '~' | '!' => {
                out.push('\\');
                out.push(c);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn section(&mut self, title: &str) {
        // Writing to a text cannot fail.
        write!(self.0, "\n## {title}\n\n").ok();
    }

    fn item(&mut self, name: &str, value: &str) {
        self.line(&format!("- **{name}:** {}", plain(value)));
    }

    fn table(&mut self, heads: &[&str]) {
        self.line(&format!("| {} |", heads.join(" | ")));
        self.line(&format!("|{}", " --- |".repeat(heads.len())));
    }

    fn row(&mut self, cells: &[&str]) {
        let cells: Vec<String> = cells.iter().map(|c| plain(c)).collect();
        self.line(&format!("| {} |", cells.join(" | ")));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::incident::input::OperatorAct;
    use crate::incident::rule::{Approval, Step, StepKind};
    use crate::incident::testing::{Driven, book, rule, step, tokens};
    use crate::types::observation::Observation;

    fn story(agent: &str) -> Driven {
        let mut b = book([rule("explosion", Metric::TokensPerExecution)]);
        let throttle = StepKind::Throttle {
            requests_per_minute: Some(60),
            tokens_per_minute: None,
        };
        let asks = Step {
            approval: Approval::Required,
            approval_timeout: Duration::from_secs(600),
            ..step(StepKind::DowngradeModel { to: None })
        };
        b.actions.get_mut("act").expect("there").steps = vec![step(throttle), asks];
        let mut d = Driven::new(b);
        let wild = |n: u64| -> Observation { tokens(agent, &format!("w-{n}"), 12_000) };
        let calm = |n: u64| -> Observation { tokens(agent, &format!("c-{n}"), 2_000) };
        d.run(300, calm);
        d.run(30, wild);
        let incident = d.last().id;
        let approval = d.engine.approvals()[0].id.clone();
        let by = || "ann <on call>".to_owned();
        d.operate(OperatorAct::Acknowledge { incident, by: by() })
            .expect("done");
        d.operate(OperatorAct::Decide {
            approval,
            approve: false,
            by: by(),
            via: "api".to_owned(),
            reason: Some("not | now".to_owned()),
        })
        .expect("done");
        d.run(200, calm);
        d
    }

    #[test]
    fn it_tells_the_whole_story() {
        let record = story("a").last();
        let began = Wall::from_unix_millis(record.opened.unix_millis() - 5_000);
        let told = PostMortem::of(record.clone(), Some(began));
        assert_eq!(told.spans.detection, Some(5.0));
        assert_eq!(told.spans.mitigation, Some(0.0));
        let (acknowledged, recovery, total) = (
            told.spans.acknowledgement.expect("acknowledged"),
            told.spans.recovery.expect("recovered"),
            told.spans.total.expect("over"),
        );
        assert!(acknowledged < recovery && recovery < total, "{:?}", told.spans);
        assert_eq!(
            (told.steps.worked, told.steps.failed, told.steps.not_taken),
            (1, 0, 1)
        );
        let what: Vec<&str> = told.decisions.iter().map(|d| d.what.as_str()).collect();
        assert_eq!(what.len(), 2, "{what:?}");
        assert!(
            what.contains(&"took charge") && what.iter().any(|w| w.contains("denied (not | now)")),
            "{what:?}"
        );
        let page = told.to_markdown();
        for part in [
            "# explosion: agent a (warning)",
            "- **State:** over",
            "## What was seen, and why it fired",
            "| limit | 5,000 tokens |",
            "## How long it took",
            "| detection (since the breach began) | 5 s |",
            "| throttle | worked | throttle to 60 requests/min |",
            "| downgrade\\_model | denied |",
            "ann &lt;on call&gt;",
            "not \\| now",
            "## How the agent went",
            "in a usual minute before | 60 | 120,000 |",
            "## Timeline",
            "| resolved |",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
        let json = told.to_json();
        assert_eq!(
            json.pointer("/incident/id").and_then(|v| v.as_str()),
            Some(record.id.as_str())
        );
        assert!(
            json.pointer("/spans/total")
                .is_some_and(serde_json::Value::is_f64)
        );
    }

    #[test]
    fn it_is_told_while_it_goes_on() {
        let mut d = Driven::new(book([rule("explosion", Metric::TokensPerExecution)]));
        d.run(10, |n| tokens("a", &format!("w-{n}"), 12_000));
        let told = PostMortem::of(d.last(), None);
        assert_eq!(
            (told.spans.total, told.spans.recovery, told.spans.detection),
            (None, None, None)
        );
        let page = told.to_markdown();
        for part in [
            "still open",
            "| the end | not yet |",
            "Nobody had to decide anything.",
        ] {
            assert!(page.contains(part), "{part}\n{page}");
        }
    }

    #[test]
    fn names_cannot_break_the_page() {
        let evil = "x|y\n# <script>alert(1)</script> `rm` [a](b)";
        let page = PostMortem::of(story(evil).last(), None).to_markdown();
        assert!(
            !page.contains("<script>") && !page.contains("\n# <") && !page.contains(" [a]("),
            "{page}"
        );
        let mut in_table = page.lines().filter(|l| l.starts_with("| in the minute"));
        assert!(in_table.all(|l| l.matches(" | ").count() == 2));
        assert!(plain(&"x".repeat(10_000)).chars().count() <= LONGEST + 1);
    }

    #[test]
    fn spans_for_people() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (4.25, "4.3 s"),
            (75.0, "1 min 15 s"),
            (3_720.0, "1 h 2 min"),
        ] {
            assert_eq!(lasted(seconds), text);
        }
    }
}
