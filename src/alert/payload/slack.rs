//! The message for a Slack incoming webhook.

use serde_json::{Value, json};

use super::text::{Markup, fitted};
use super::{facts, headline, offers};
use crate::types::notice::Notice;

/// Slack's bounds, in UTF-16 units.
pub(super) const HEADER_MAX: usize = 150;
pub(super) const SECTION_MAX: usize = 3000;
pub(super) const FIELD_MAX: usize = 2000;
pub(super) const FIELDS_MAX: usize = 10;
pub(super) const URL_MAX: usize = 3000;
/// Our own bound on the name in a field.
const NAME_MAX: usize = 200;
/// Our own bound on field sections: with them a message has 9 blocks at most, and Slack takes 50.
const FIELD_SECTIONS_MAX: usize = 5;

pub(super) fn message(notice: &Notice) -> Value {
    let headline = headline(notice);
    let mut blocks = vec![
        json!({"type": "header", "text": plain(&headline, HEADER_MAX)}),
        json!({"type": "section", "text": mrkdwn(fitted(Markup::SlackFormatted, &[&notice.title], SECTION_MAX))}),
    ];
    let all = facts(notice);
    let fields: Vec<Value> = all.iter().map(|(name, value)| field(name, value)).collect();
    let room = FIELDS_MAX * FIELD_SECTIONS_MAX;
    for some in fields.chunks(FIELDS_MAX).take(FIELD_SECTIONS_MAX) {
        blocks.push(json!({"type": "section", "fields": some}));
    }
    let at = notice.at.to_string();
    let mut last = format!("incident {} · {at}", notice.incident);
    if fields.len() > room {
        last.push_str(&format!(" · {} more facts not shown", fields.len() - room));
    }
    blocks.push(json!({"type": "context", "elements": [plain(&last, SECTION_MAX)]}));
    let buttons: Vec<Value> = offers(notice, URL_MAX)
        .iter()
        .map(|o| {
            let mut button = json!({
                "type": "button",
                "text": {"type": "plain_text", "text": o.title, "emoji": false},
                "action_id": o.id,
                "url": o.url,
            });
            if o.id == "decide" {
                button["style"] = "primary".into();
            }
            button
        })
        .collect();
    if !buttons.is_empty() {
        blocks.push(json!({"type": "actions", "elements": buttons}));
    }
    json!({
        "text": fitted(Markup::SlackFormatted, &[&headline, " · ", &notice.title], SECTION_MAX),
        "blocks": blocks,
        "unfurl_links": false,
        "unfurl_media": false,
    })
}

fn plain(text: &str, max: usize) -> Value {
    json!({"type": "plain_text", "text": fitted(Markup::Slack, &[text], max), "emoji": false})
}

/// `verbatim` keeps Slack from turning names and addresses inside our text into mentions and links.
fn mrkdwn(text: String) -> Value {
    json!({"type": "mrkdwn", "text": text, "verbatim": true})
}

fn field(name: &str, value: &str) -> Value {
    let name = fitted(Markup::SlackFormatted, &[name], NAME_MAX);
    let value = fitted(Markup::SlackFormatted, &[value], FIELD_MAX - NAME_MAX - 3);
    mrkdwn(format!("*{name}*\n{value}"))
}
