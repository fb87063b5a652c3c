//! The event for PagerDuty's Events API v2.

use serde_json::{Map, Value, json};

use super::text::{Markup, fitted};
use super::{event_word, facts, offers};
use crate::types::notice::{Notice, NoticeEvent};

/// PagerDuty's bounds, in characters and bytes.
pub(super) const SUMMARY_MAX: usize = 1024;
pub(super) const KEY_MAX: usize = 255;
pub(super) const EVENT_MAX: usize = 512 * 1024;
/// Our own bounds.
const NAME_MAX: usize = 255;
const VALUE_MAX: usize = 4096;
const URL_MAX: usize = 2048;

/// The event. When it is too large it goes without its details: the page counts more than they do.
pub(super) fn event(notice: &Notice, routing_key: &str) -> serde_json::Result<Vec<u8>> {
    let mut event = json!({
        "routing_key": routing_key,
        "event_action": action(notice.event),
        "dedup_key": key(notice.incident.as_str()),
    });
    if let ("trigger", Some(fields)) = (action(notice.event), event.as_object_mut()) {
        fields.insert("payload".to_owned(), payload(notice));
        fields.insert("client".to_owned(), "fusebox".into());
        let links: Vec<Value> = offers(notice, URL_MAX)
            .iter()
            .map(|o| json!({"href": o.url, "text": o.title}))
            .collect();
        if let Some(link) = offers(notice, URL_MAX).iter().find(|o| o.id == "open_incident") {
            fields.insert("client_url".to_owned(), link.url.into());
        }
        if !links.is_empty() {
            fields.insert("links".to_owned(), links.into());
        }
    }
    let bytes = serde_json::to_vec(&event)?;
    if bytes.len() <= EVENT_MAX {
        return Ok(bytes);
    }
    if let Some(payload) = event.get_mut("payload").and_then(Value::as_object_mut) {
        payload.remove("custom_details");
    }
    serde_json::to_vec(&event)
}

const fn action(event: NoticeEvent) -> &'static str {
    match event {
        NoticeEvent::Acknowledged => "acknowledge",
        NoticeEvent::Resolved => "resolve",
        NoticeEvent::Opened
        | NoticeEvent::Updated
        | NoticeEvent::Escalated
        | NoticeEvent::ApprovalRequested
        | NoticeEvent::ApprovalDecided
        | NoticeEvent::Reopened
        | NoticeEvent::RemediationRequested
        | NoticeEvent::Test => "trigger",
    }
}

/// The incident's id, by which PagerDuty puts events together.
fn key(incident: &str) -> String {
    fitted(Markup::None, &[incident], KEY_MAX)
}

fn payload(notice: &Notice) -> Value {
    let mut details = Map::new();
    for (name, value) in facts(notice) {
        details.insert(
            fitted(Markup::None, &[name], NAME_MAX),
            fitted(Markup::None, &[&value], VALUE_MAX).into(),
        );
    }
    let word = event_word(notice.event);
    let summary: Vec<&str> = match notice.event {
        NoticeEvent::Opened => vec![&notice.title],
        _ => vec![word, ": ", &notice.title],
    };
    json!({
        "summary": fitted(Markup::None, &summary, SUMMARY_MAX),
        "source": fitted(Markup::None, &[&notice.subject], NAME_MAX),
        "severity": notice.severity.name(),
        "timestamp": notice.at,
        "component": fitted(Markup::None, &[&notice.subject], NAME_MAX),
        "group": "fusebox",
        "class": fitted(Markup::None, &[notice.rule.as_str()], NAME_MAX),
        "custom_details": details,
    })
}
