//! The state as a screen of text, for `fusebox status` and people with curl.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};

use crate::control::handle::{AgentView, ReloadReport, StatusView};
use crate::incident::record::{IncidentRecord, IncidentState};
use crate::types::directive::{Directive, Order};

/// Agents shown.
const TOP: usize = 10;
/// Incidents shown.
const MAX_INCIDENTS: usize = 50;
/// Width of the names on the left.
const LABEL: usize = 11;

/// The whole screen; ends with a line end. Holds no control characters but line ends, whatever agents call themselves.
pub(super) fn screen(status: &StatusView, agents: &[AgentView], incidents: &[IncidentRecord]) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    write(&mut out, status, agents, incidents).ok();
    out
}

fn write(
    out: &mut String,
    status: &StatusView,
    agents: &[AgentView],
    incidents: &[IncidentRecord],
) -> fmt::Result {
    let health = if status.degraded.is_empty() {
        "all well"
    } else {
        "DEGRADED"
    };
    writeln!(
        out,
        "fusebox {} · up {} · {health}",
        clean(&status.version),
        Span(status.uptime_seconds)
    )?;
    for reason in &status.degraded {
        line(out, "degraded", clean(reason))?;
    }
    line(out, "config", clean(&status.config))?;
    line(out, "reload", reload(status.last_reload.as_ref()))?;
    for listener in &status.listeners {
        line(out, "listening", clean(listener))?;
    }
    for up in &status.upstreams {
        let breaker = match up.breaker.as_deref() {
            None | Some("closed") => String::new(),
            Some(state) => format!(" · breaker {state}"),
        };
        let text = format!("{}  {}  ({}){breaker}", up.name, up.url, up.provider);
        line(out, "upstream", clean(&text))?;
    }
    let t = &status.totals;
    let traffic = format!(
        "{} requests · {} refused · {} errors · {} in flight · {} tokens in · {} tokens out · ${:.2}",
        Count(t.requests),
        Count(t.refused),
        Count(t.errors),
        Count(t.in_flight),
        Count(t.input_tokens),
        Count(t.output_tokens),
        t.cost_usd,
    );
    line(out, "traffic", traffic)?;
    let mut observed = format!(
        "{} observations · {} not seen by the engine",
        Count(status.observations),
        Count(status.observations_dropped)
    );
    if status.observations_unwritten > 0 {
        write!(
            observed,
            " · {} not written",
            Count(status.observations_unwritten)
        )?;
    }
    line(out, "engine", observed)?;
    write_agents(out, status, agents)?;
    write_rules(out, status)?;
    write_incidents(out, status, incidents)?;
    write_alerts(out, status)
}

fn write_agents(out: &mut String, status: &StatusView, agents: &[AgentView]) -> fmt::Result {
    let mut text = format!("{} seen", Count(status.agents));
    if status.agents_turned_away > 0 {
        write!(
            text,
            " · {} without a slot of their own",
            Count(status.agents_turned_away)
        )?;
    }
    line(out, "agents", text)?;
    let rate = |a: &AgentView| a.status.as_ref().map_or(0.0, |s| s.tokens_per_minute);
    let mut busiest: Vec<&AgentView> = agents.iter().collect();
    busiest.sort_by(|a, b| {
        rate(b)
            .total_cmp(&rate(a))
            .then_with(|| b.totals.requests.cmp(&a.totals.requests))
            .then_with(|| a.agent.cmp(&b.agent))
    });
    for agent in busiest.iter().take(TOP) {
        write!(
            out,
            "  {:<28} {} requests",
            clean(&agent.agent),
            Count(agent.totals.requests)
        )?;
        if let Some(s) = &agent.status {
            write!(
                out,
                " · {}/min · {} tokens/min",
                Number(s.requests_per_minute),
                Number(s.tokens_per_minute)
            )?;
            for directive in &s.directives {
                write!(out, " · {}", directive.order.name())?;
            }
        }
        out.push('\n');
    }
    if busiest.len() > TOP {
        writeln!(out, "  … and {} more: GET /agents", busiest.len() - TOP)?;
    }
    Ok(())
}

fn write_rules(out: &mut String, status: &StatusView) -> fmt::Result {
    line(out, "rules", status.rules.len())?;
    for rule in &status.rules {
        write!(out, "  {:<28} {}", clean(&rule.name), clean(&rule.evaluation))?;
        if rule.open_incidents > 0 {
            write!(out, " · {} open", rule.open_incidents)?;
        }
        out.push('\n');
    }
    Ok(())
}

fn write_incidents(out: &mut String, status: &StatusView, incidents: &[IncidentRecord]) -> fmt::Result {
    let open = format!(
        "{} open · {} in force",
        status.open_incidents,
        Many(status.directives, "directive")
    );
    line(out, "incidents", open)?;
    let live: Vec<_> = incidents
        .iter()
        .filter(|i| i.state != IncidentState::Resolved)
        .collect();
    for i in live.iter().take(MAX_INCIDENTS) {
        let state = match i.state {
            IncidentState::Open => "open",
            IncidentState::Recovering => "recovering",
            IncidentState::Resolved => "resolved",
        };
        writeln!(
            out,
            "  {}  {state} · {} · {} {} · {} · since {}",
            clean(i.id.as_str()),
            i.severity.name(),
            clean(&i.subject_kind),
            clean(&i.subject),
            clean(i.rule.as_str()),
            i.opened
        )?;
        write!(
            out,
            "    {} {} (limit {}, worst {}",
            clean(&i.metric),
            Number(i.current.unwrap_or(i.value)),
            Number(i.threshold),
            Number(i.worst)
        )?;
        if let Some(baseline) = i.baseline {
            write!(out, ", normal {}", Number(baseline))?;
        }
        out.push_str(")\n");
        for directive in &i.directives {
            writeln!(out, "    {}", Ordered(directive))?;
        }
    }
    if live.len() > MAX_INCIDENTS {
        writeln!(out, "  … and {} more: GET /incidents", live.len() - MAX_INCIDENTS)?;
    }
    Ok(())
}

fn write_alerts(out: &mut String, status: &StatusView) -> fmt::Result {
    if status.alerts.is_empty() {
        return line(out, "alerts", "no targets");
    }
    line(out, "alerts", status.alerts.len())?;
    for a in &status.alerts {
        write!(
            out,
            "  {:<28} {} · {} delivered · {} waiting · {} failed attempts · {} dropped",
            clean(&a.name),
            a.kind,
            Count(a.delivered),
            Count(a.queued),
            Count(a.failed_attempts),
            Count(a.dropped)
        )?;
        if let Some(at) = a.last_delivered {
            write!(out, " · last {at}")?;
        }
        if let Some(error) = &a.last_error {
            write!(out, " · last error: {}", clean(error))?;
        }
        if a.disabled.is_some() {
            write!(out, " · stopped: it said that it is gone")?;
        }
        out.push('\n');
    }
    Ok(())
}

fn reload(last: Option<&ReloadReport>) -> String {
    let Some(report) = last else {
        return "none yet".to_owned();
    };
    let mut text = if report.ok {
        format!(
            "ok at {} · {}",
            report.at,
            Many(report.changes.len() as u64, "change")
        )
    } else {
        let mut text = format!("FAILED at {}; the old configuration is in force", report.at);
        for problem in &report.problems {
            text.push_str(&format!("\n  {}", clean(problem)));
        }
        text
    };
    if !report.needs_restart.is_empty() {
        let waiting = clean(&report.needs_restart.join(", ")).into_owned();
        text.push_str(&format!("\n  needs a restart: {waiting}"));
    }
    text
}

fn line(out: &mut String, label: &str, text: impl Display) -> fmt::Result {
    writeln!(out, "{label:<LABEL$} {text}")
}

/// Text without control characters: names may come from clients, and a terminal obeys some of them.
fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        Cow::Owned(
            text.chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect(),
        )
    } else {
        Cow::Borrowed(text)
    }
}

/// A directive in one line.
struct Ordered<'a>(&'a Directive);

impl Display for Ordered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.order.name())?;
        match &self.0.order {
            Order::Throttle {
                requests_per_minute,
                tokens_per_minute,
            } => {
                if let Some(n) = requests_per_minute {
                    write!(f, " {} requests/min", Count(u64::from(*n)))?;
                }
                if let Some(n) = tokens_per_minute {
                    write!(f, " {} tokens/min", Count(u64::from(*n)))?;
                }
            }
            Order::CapConcurrency { max_in_flight } => write!(f, " {max_in_flight} in flight")?,
            Order::DowngradeModel { to: Some(model) } => write!(f, " to {}", clean(model))?,
            Order::DowngradeModel { to: None } => f.write_str(" by the model table")?,
            Order::ReduceBatch { max_inputs, .. } => write!(f, " {max_inputs} inputs")?,
            Order::CapOutput { max_tokens, .. } => write!(f, " {} tokens", Count(u64::from(*max_tokens)))?,
            Order::Reroute { to, share_percent } => {
                write!(f, " {share_percent} % to {}", clean(to.as_str()))?
            }
            Order::ExtendTimeouts { percent } => write!(f, " {percent} %")?,
            Order::SetParameters { set } => {
                for name in set.keys() {
                    write!(f, " {}", clean(name))?;
                }
            }
            Order::RestoreVersion { version } => write!(f, " to {}", clean(version.as_str()))?,
            Order::Contain { .. } => {}
        }
        write!(f, " until {}", self.0.expires)
    }
}

/// A count with its thousands apart.
struct Count(u64);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::with_capacity(digits.len() * 4 / 3);
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// A count of things.
struct Many(u64, &'static str);

impl Display for Many {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.0 == 1 { "" } else { "s" };
        write!(f, "{} {}{end}", Count(self.0), self.1)
    }
}

/// A measure: whole when it is large, else with what matters of its fraction.
struct Number(f64);

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size >= 100.0 || self.0.fract() == 0.0 {
            write!(f, "{:.0}", self.0)
        } else if size >= 1.0 {
            write!(f, "{:.1}", self.0)
        } else {
            write!(f, "{:.3}", self.0)
        }
    }
}

/// A span of time in its two largest units.
struct Span(f64);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Saturates: a negative or endless uptime is shown as its bound.
        let seconds = self.0 as u64;
        let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds}s"),
            (0, 0, m) => write!(f, "{m}m {}s", seconds % 60),
            (0, h, m) => write!(f, "{h}h {m}m"),
            (d, h, _) => write!(f, "{d}d {h}h"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(Count(0).to_string(), "0");
        assert_eq!(Count(999).to_string(), "999");
        assert_eq!(Count(1_234_567).to_string(), "1,234,567");
        let spans = [
            (0.4, "0s"),
            (61.0, "1m 1s"),
            (7260.0, "2h 1m"),
            (90_000.0, "1d 1h"),
            (-1.0, "0s"),
        ];
        for (seconds, want) in spans {
            assert_eq!(Span(seconds).to_string(), want);
        }
        for (value, want) in [
            (9000.4, "9000"),
            (2.54, "2.5"),
            (0.8712, "0.871"),
            (3.0, "3"),
            (0.0, "0"),
        ] {
            assert_eq!(Number(value).to_string(), want);
        }
    }

    #[test]
    fn a_terminal_is_not_obeyed() {
        assert_eq!(clean("a\u{1b}[2Jb\r\n\u{9b}"), "a?[2Jb???");
        assert_eq!(clean("agent-prod-01"), "agent-prod-01");
    }
}
