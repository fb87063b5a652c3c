//! Notice → bytes for each kind of target; no I/O.

mod alertmanager;
mod discord;
mod pagerduty;
mod slack;
mod teams;
#[cfg(test)]
mod tests;
mod text;
mod webhook;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;

use super::refresh::Known;
use super::{TargetKind, WebhookFormat};
use crate::types::notice::{Fact, Notice, NoticeEvent, Severity};
use crate::types::time::Wall;

pub use webhook::{CloudEventBody, WebhookBody};

/// Alerts that one reminder holds.
pub(super) const REMINDER_MAX: usize = 200;

/// The body for this kind of target. It holds the notice's own fields and nothing else.
///
/// # Errors
/// Never in practice: a notice is made of text and numbers.
pub(super) fn body(kind: &TargetKind, notice: &Notice) -> serde_json::Result<Vec<u8>> {
    match kind {
        TargetKind::Webhook { format, .. } => match format {
            WebhookFormat::Standard => serde_json::to_vec(&WebhookBody::new(notice)),
            WebhookFormat::CloudEvents { source } => serde_json::to_vec(&CloudEventBody::new(notice, source)),
            WebhookFormat::Alertmanager => serde_json::to_vec(&alertmanager::group(notice)),
        },
        TargetKind::Slack => serde_json::to_vec(&slack::message(notice)),
        TargetKind::PagerDuty { routing_key } => pagerduty::event(notice, routing_key.expose()),
        TargetKind::Teams => teams::message(notice),
        TargetKind::Discord => serde_json::to_vec(&discord::message(notice)),
        // What it is sent depends on what it was told before: see `reminder`.
        TargetKind::Alertmanager { .. } => serde_json::to_vec(&Value::Array(Vec::new())),
    }
}

/// The body for Alertmanager: every one of `known` as it is at `now`.
///
/// # Errors
/// As [`body`].
pub(super) fn reminder(kind: &TargetKind, known: &[Known], now: Wall) -> serde_json::Result<Vec<u8>> {
    let alerts = match kind {
        TargetKind::Alertmanager {
            labels, resend_every, ..
        } => alertmanager::alerts(known, labels, *resend_every, now),
        _ => Vec::new(),
    };
    serde_json::to_vec(&alerts)
}

/// One notice in place of many about the same rule: whom it is about, at most `list` of them by name.
pub(super) fn storm(many: &[&Arc<Notice>], list: usize) -> Notice {
    let agents: BTreeSet<&str> = many.iter().flat_map(|n| &n.agents).map(|a| a.as_str()).collect();
    let (what, names) = if agents.is_empty() {
        (
            "subjects",
            many.iter().map(|n| n.subject.as_str()).collect::<BTreeSet<_>>(),
        )
    } else {
        ("agents", agents)
    };
    let mut listed = names.iter().take(list).copied().collect::<Vec<_>>().join(", ");
    if names.len() > list {
        listed.push_str(&format!(" and {} more", names.len() - list));
    }
    let Some(first) = many.first() else {
        return nothing();
    };
    let worst = many.iter().map(|n| n.severity).max().unwrap_or_default();
    let begun = many.iter().map(|n| n.at).min().unwrap_or_default();
    let mut facts = vec![Fact {
        name: "Incidents".to_owned(),
        value: incidents(many, list),
    }];
    if let Some(example) = many.iter().find(|n| n.severity == worst) {
        facts.push(Fact {
            name: "For example".to_owned(),
            value: example.title.clone(),
        });
    }
    Notice {
        id: first.id.clone(),
        event: first.event,
        incident: first.incident.clone(),
        rule: first.rule.clone(),
        severity: worst,
        subject: listed,
        title: format!("{} {what}, same rule: {}", names.len(), first.rule),
        facts,
        at: begun,
        targets: Vec::new(),
        agents: Vec::new(),
        link: None,
        approval: None,
        remediation: None,
        level: many.iter().map(|n| n.level).max().unwrap_or_default(),
        acknowledged_by: None,
    }
}

fn incidents(many: &[&Arc<Notice>], list: usize) -> String {
    let ids: BTreeSet<&str> = many.iter().map(|n| n.incident.as_str()).collect();
    let mut text = ids.iter().take(list).copied().collect::<Vec<_>>().join(", ");
    if ids.len() > list {
        text.push_str(&format!(" and {} more", ids.len() - list));
    }
    text
}

fn nothing() -> Notice {
    Notice {
        id: String::new(),
        event: NoticeEvent::Test,
        incident: "".into(),
        rule: "".into(),
        severity: Severity::Info,
        subject: String::new(),
        title: String::new(),
        facts: Vec::new(),
        at: Wall::default(),
        targets: Vec::new(),
        agents: Vec::new(),
        link: None,
        approval: None,
        remediation: None,
        level: 0,
        acknowledged_by: None,
    }
}

/// One line that says what happened.
fn headline(notice: &Notice) -> String {
    format!("{} {}: {}", mark(notice), event_word(notice.event), notice.rule)
}

fn mark(notice: &Notice) -> &'static str {
    match (notice.event, notice.severity) {
        (NoticeEvent::Resolved, _) => "🟢",
        (NoticeEvent::ApprovalRequested, _) => "✋",
        (NoticeEvent::Test, _) | (_, Severity::Info) => "🔵",
        (_, Severity::Warning) => "🟡",
        (_, Severity::Error) => "🟠",
        (_, Severity::Critical) => "🔴",
    }
}

const fn event_word(event: NoticeEvent) -> &'static str {
    match event {
        NoticeEvent::Opened => "Opened",
        NoticeEvent::Updated => "Updated",
        NoticeEvent::Escalated => "Escalated",
        NoticeEvent::Acknowledged => "Acknowledged",
        NoticeEvent::ApprovalRequested => "Approval needed",
        NoticeEvent::ApprovalDecided => "Approval decided",
        NoticeEvent::Resolved => "Resolved",
        NoticeEvent::Reopened => "Reopened",
        NoticeEvent::RemediationRequested => "Remediation requested",
        NoticeEvent::Test => "Test",
    }
}

/// Everything beside headline and title, as name and value in order of interest.
fn facts(notice: &Notice) -> Vec<(&str, Cow<'_, str>)> {
    let mut all: Vec<(&str, Cow<'_, str>)> = vec![
        ("Subject", notice.subject.as_str().into()),
        ("Severity", notice.severity.name().into()),
    ];
    if let Some(ask) = &notice.approval {
        all.push(("What", ask.what.as_str().into()));
        all.push(("Why", ask.why.as_str().into()));
        all.push(("Decide before", ask.expires.to_string().into()));
        all.push(("Without an answer", ask.on_timeout.as_str().into()));
    }
    if let Some(who) = &notice.acknowledged_by {
        all.push(("Acknowledged by", who.as_str().into()));
    }
    if notice.level > 0 {
        all.push(("On-call level", notice.level.to_string().into()));
    }
    let more = notice
        .facts
        .iter()
        .map(|f| (f.name.as_str(), f.value.as_str().into()));
    all.extend(more);
    all
}

/// A link that a message offers.
struct Offer<'a> {
    id: &'static str,
    title: &'static str,
    url: &'a str,
}

/// The pages that the notice leads to, the most urgent first; those with a URL that cannot be used are left out.
fn offers(notice: &Notice, max: usize) -> Vec<Offer<'_>> {
    let decide = notice.approval.as_ref().and_then(|a| a.link.as_deref());
    let all = [
        ("decide", "Review and decide", decide),
        ("open_incident", "Open incident", notice.link.as_deref()),
    ];
    all.into_iter()
        .filter_map(|(id, title, url)| url.map(|url| Offer { id, title, url }))
        .filter(|o| o.url.len() <= max && is_link(o.url))
        .collect()
}

fn is_link(url: &str) -> bool {
    let web = url.starts_with("https://") || url.starts_with("http://");
    web && url
        .parse::<http::Uri>()
        .is_ok_and(|u| u.host().is_some_and(|h| !h.is_empty()))
}
