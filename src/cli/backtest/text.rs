//! A report of a backtest for people.

use std::fmt::Write;

use super::obey::Done;
use super::report::{Comparison, IncidentLine, Report, Run};

/// Incidents of a list that are shown; `--output json` has all.
const SHOWN: usize = 50;

/// The report on a few screens at most.
pub(super) fn shown(report: &Report) -> String {
    let mut out = String::new();
    let r = &report.record;
    let span = match (r.from, r.until) {
        (Some(from), Some(until)) => format!(", {from} to {until}"),
        _ => String::new(),
    };
    line(
        &mut out,
        &format!(
            "{}: {} of {}, {} tokens, ${:.2}{span}",
            r.path,
            some(r.exchanges, "exchange"),
            some(r.agents, "agent"),
            count(r.tokens),
            r.cost_usd
        ),
    );
    if r.refused_then > 0 {
        line(
            &mut out,
            &format!(
                "  {} of them were refused when they were recorded: what they would have used is not known",
                count(r.refused_then)
            ),
        );
    }
    if r.out_of_order > 0 {
        line(
            &mut out,
            &format!(
                "  {} are out of order and taken as at the time of the one before",
                count(r.out_of_order)
            ),
        );
    }
    run(&mut out, &report.rules);
    if let Some(against) = &report.against {
        run(&mut out, against);
    }
    if let Some(c) = &report.comparison {
        let names = (
            report.rules.file.as_str(),
            report.against.as_ref().map_or("", |a| a.file.as_str()),
        );
        compared(&mut out, c, names);
    }
    out
}

fn run(out: &mut String, run: &Run) {
    line(out, &format!("\n{}", run.file));
    let width = run
        .by_rule
        .iter()
        .map(|r| r.rule.chars().count())
        .max()
        .unwrap_or(0)
        .max(5);
    for r in &run.by_rule {
        let fired = match (r.incidents, r.findings) {
            (0, 0) => "never".to_owned(),
            (0, n) => format!("{} breaches and no incident (mode {})", count(n), r.mode),
            (n, _) => format!(
                "{} on {}, {}{}",
                some(n, "incident"),
                some(r.agents, "agent"),
                minutes(r.minutes),
                done(&r.done)
            ),
        };
        line(out, &format!("  {:<width$}  {fired}", r.rule));
    }
    let t = &run.totals;
    line(
        out,
        &format!(
            "  {:<width$}  {}, {}{}",
            "all",
            some(t.incidents, "incident"),
            minutes(t.minutes),
            done(&t.done)
        ),
    );
    list(out, "incidents", &run.incidents);
}

fn compared(out: &mut String, c: &Comparison, (rules, against): (&str, &str)) {
    line(out, &format!("\n{rules} compared with {against}"));
    line(out, &format!("  {} in both", some(c.in_both, "incident")));
    list(out, &format!("only with {rules}"), &c.only_rules);
    list(out, &format!("only with {against}"), &c.only_against);
    line(
        out,
        &format!(
            "  {:+.1} min under incident, {:+} requests refused, {:+} tokens and {:+.2} dollars saved",
            c.more_minutes, c.more_refused, c.more_tokens_saved, c.more_cost_saved_usd
        ),
    );
}

fn list(out: &mut String, what: &str, incidents: &[IncidentLine]) {
    if incidents.is_empty() {
        return;
    }
    line(out, &format!("  {what}:"));
    for i in incidents.iter().take(SHOWN) {
        let open = if i.resolved.is_none() {
            ", open at the end"
        } else {
            ""
        };
        line(
            out,
            &format!(
                "    {}  {}  {} {}  {}{open}, worst {} (limit {}); {}{}",
                i.opened,
                i.rule,
                i.subject_kind,
                i.subject,
                minutes(i.minutes),
                number(i.worst),
                number(i.threshold),
                i.steps.join(", "),
                done(&i.done)
            ),
        );
    }
    if incidents.len() > SHOWN {
        line(
            out,
            &format!("    and {} more", count((incidents.len() - SHOWN) as u64)),
        );
    }
}

fn done(d: &Done) -> String {
    let mut text = String::new();
    let parts = [
        (d.refused, "refused"),
        (d.delayed, "held back"),
        (d.downgraded, "downgraded"),
        (d.changed, "changed otherwise"),
    ];
    for (n, what) in parts.into_iter().filter(|(n, _)| *n > 0) {
        add(&mut text, &format!("; {} {what}", count(n)));
        if what == "refused" {
            add(
                &mut text,
                &format!(
                    " of {} bound ({:.0} %)",
                    count(d.bound),
                    n as f64 * 100.0 / d.bound.max(1) as f64
                ),
            );
        }
    }
    if d.tokens_saved > 0 || d.cost_saved_usd != 0.0 {
        add(
            &mut text,
            &format!(
                "; saved {} tokens, ${:.2}",
                count(d.tokens_saved),
                d.cost_saved_usd
            ),
        );
    }
    text
}

fn minutes(minutes: f64) -> String {
    if minutes >= 120.0 {
        return format!("{:.1} h", minutes / 60.0);
    }
    format!("{minutes:.1} min")
}

fn some(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 {
        return count(value.round() as u64);
    }
    format!("{value:.3}")
        .trim_end_matches('0')
        .trim_end_matches('.')
        .to_owned()
}

fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn line(out: &mut String, text: &str) {
    add(out, text);
    out.push('\n');
}

fn add(out: &mut String, text: &str) {
    // Writing to a text cannot fail.
    write!(out, "{text}").ok();
}
