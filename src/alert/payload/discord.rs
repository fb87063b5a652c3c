//! The message for a Discord webhook.

use serde_json::{Value, json};

use super::text::{Markup, fitted};
use super::{facts, headline, offers};
use crate::types::notice::{Notice, NoticeEvent, Severity};

/// Discord's bounds, in UTF-16 units at most.
pub(super) const TITLE_MAX: usize = 256;
pub(super) const DESCRIPTION_MAX: usize = 4096;
pub(super) const FIELDS_MAX: usize = 25;
pub(super) const NAME_MAX: usize = 256;
pub(super) const VALUE_MAX: usize = 1024;
pub(super) const FOOTER_MAX: usize = 2048;
/// All text of all embeds of a message together.
pub(super) const TOTAL_MAX: usize = 6000;
/// Our own bounds, which leave room for facts.
const OWN_DESCRIPTION_MAX: usize = 1500;
const OWN_FOOTER_MAX: usize = 200;
const URL_MAX: usize = 1000;

pub(super) fn message(notice: &Notice) -> Value {
    let title = fitted(Markup::Discord, &[&headline(notice)], TITLE_MAX);
    let mut description = fitted(
        Markup::Discord,
        &[&notice.title],
        OWN_DESCRIPTION_MAX.min(DESCRIPTION_MAX),
    );
    let links = offers(notice, URL_MAX);
    // Webhooks have no buttons, but a description has links.
    for o in links
        .iter()
        .filter(|o| !o.url.contains([')', '(', '>', '<', ' ']))
    {
        description.push_str(&format!("\n[{}](<{}>)", o.title, o.url));
    }
    let footer = format!("incident {} · {}", notice.incident, notice.at);
    let footer = fitted(Markup::None, &[&footer], OWN_FOOTER_MAX.min(FOOTER_MAX));
    let mut left = TOTAL_MAX
        .saturating_sub(units(&title))
        .saturating_sub(units(&description))
        .saturating_sub(units(&footer))
        // For the line that says how many facts are not shown.
        .saturating_sub(100);
    let all = facts(notice);
    let mut fields = Vec::new();
    for (name, value) in all.iter().take(FIELDS_MAX - 1) {
        let name = fitted(Markup::Discord, &[name], NAME_MAX);
        let value = fitted(Markup::Discord, &[value], VALUE_MAX);
        let size = units(&name) + units(&value);
        if size > left {
            break;
        }
        left -= size;
        let inline = units(&value) <= 40;
        fields.push(json!({"name": name, "value": value, "inline": inline}));
    }
    let hidden = all.len() - fields.len();
    if hidden > 0 {
        let value = format!("{hidden} more facts not shown");
        fields.push(json!({"name": "…", "value": value, "inline": false}));
    }
    let mut embed = json!({
        "title": title,
        "description": description,
        "color": color(notice),
        "fields": fields,
        "footer": {"text": footer},
        "timestamp": notice.at,
    });
    if let Some(page) = links.iter().find(|o| o.id == "open_incident") {
        embed["url"] = page.url.into();
    }
    json!({
        "username": "fusebox",
        "embeds": [embed],
        "allowed_mentions": {"parse": []},
    })
}

fn units(text: &str) -> usize {
    text.chars().map(char::len_utf16).sum()
}

const fn color(notice: &Notice) -> u32 {
    match (notice.event, notice.severity) {
        (NoticeEvent::Resolved, _) => 0x2e_a0_43,
        (_, Severity::Critical) => 0xd1_24_2f,
        (_, Severity::Error) => 0xe1_6f_24,
        (_, Severity::Warning) => 0xd4_a7_2c,
        (_, Severity::Info) => 0x2f_81_f7,
    }
}
