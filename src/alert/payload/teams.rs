//! The adaptive card for a workflow of Microsoft Teams.

use serde_json::{Value, json};

use super::text::{Markup, fitted};
use super::{facts, headline, offers};
use crate::types::notice::{Notice, NoticeEvent, Severity};

/// What Teams takes, in bytes: 28 KB, of which we leave some for what the workflow adds.
pub(super) const MESSAGE_MAX: usize = 26 * 1024;
/// Our own bounds, in UTF-16 units.
const TITLE_MAX: usize = 1000;
const NAME_MAX: usize = 100;
const VALUE_MAX: usize = 1000;
const FACTS_MAX: usize = 30;
const URL_MAX: usize = 2048;

/// The message, with as many facts as fit.
pub(super) fn message(notice: &Notice) -> serde_json::Result<Vec<u8>> {
    let all = facts(notice);
    let mut shown = all.len().min(FACTS_MAX);
    loop {
        let some = all.get(..shown).unwrap_or_default();
        let bytes = serde_json::to_vec(&card(notice, some, all.len() - shown))?;
        if bytes.len() <= MESSAGE_MAX || shown == 0 {
            return Ok(bytes);
        }
        shown /= 2;
    }
}

fn card(notice: &Notice, facts: &[(&str, std::borrow::Cow<'_, str>)], hidden: usize) -> Value {
    let headline = headline(notice);
    let mut body = vec![
        json!({"type": "RichTextBlock", "inlines": [run(&headline, TITLE_MAX, json!({
            "weight": "bolder", "size": "large", "color": color(notice),
        }))]}),
        json!({"type": "RichTextBlock", "inlines": [run(&notice.title, TITLE_MAX, json!({}))]}),
    ];
    for (name, value) in facts {
        body.push(json!({"type": "RichTextBlock", "spacing": "small", "inlines": [
            run(&format!("{}: ", fitted(Markup::None, &[name], NAME_MAX)), NAME_MAX + 2, json!({"weight": "bolder"})),
            run(value, VALUE_MAX, json!({})),
        ]}));
    }
    let mut last = format!("incident {} · {}", notice.incident, notice.at);
    if hidden > 0 {
        last.push_str(&format!(" · {hidden} more facts not shown"));
    }
    body.push(
        json!({"type": "RichTextBlock", "inlines": [run(&last, TITLE_MAX, json!({
            "size": "small", "isSubtle": true,
        }))]}),
    );
    let actions: Vec<Value> = offers(notice, URL_MAX)
        .iter()
        .map(|o| json!({"type": "Action.OpenUrl", "title": o.title, "url": o.url}))
        .collect();
    json!({
        "type": "message",
        "summary": fitted(Markup::Card, &[&headline], TITLE_MAX),
        "attachments": [{
            "contentType": "application/vnd.microsoft.card.adaptive",
            "contentUrl": null,
            "content": {
                "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                "type": "AdaptiveCard",
                "version": "1.2",
                "fallbackText": fitted(Markup::Card, &[&headline], TITLE_MAX),
                "body": body,
                "actions": actions,
                "msteams": {"width": "full"},
            },
        }],
    })
}

/// A run of text: unlike a text block it knows no markdown, so names stay names.
fn run(text: &str, max: usize, more: Value) -> Value {
    let mut run = json!({"type": "TextRun", "text": fitted(Markup::Card, &[text], max)});
    if let (Some(run), Value::Object(more)) = (run.as_object_mut(), more) {
        run.extend(more);
    }
    run
}

const fn color(notice: &Notice) -> &'static str {
    match (notice.event, notice.severity) {
        (NoticeEvent::Resolved, _) => "good",
        (_, Severity::Critical | Severity::Error) => "attention",
        (_, Severity::Warning) => "warning",
        (_, Severity::Info) => "accent",
    }
}
