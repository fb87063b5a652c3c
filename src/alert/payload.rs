//! Notice → bytes for each kind of target; no I/O.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::TargetKind;
use crate::types::notice::{Notice, NoticeEvent, Severity};
use crate::types::time::Wall;

/// What a generic webhook receives, in the shape that Standard Webhooks recommend.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct WebhookBody<'a> {
    /// What happened, as `incident.opened`.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// When it happened.
    pub timestamp: Wall,
    /// The notice itself.
    pub data: &'a Notice,
}

/// Slack's bounds, in UTF-16 units.
const HEADER_MAX: usize = 150;
const SECTION_MAX: usize = 3000;
const FIELD_MAX: usize = 2000;
const FIELDS_MAX: usize = 10;
/// Our own bound on field sections: with them a message has 8 blocks at most, and Slack takes 50.
const FIELD_SECTIONS_MAX: usize = 5;

/// The body for this kind of target. It holds the notice's own fields and nothing else.
///
/// # Errors
/// Never in practice: a notice is made of text and numbers.
pub(super) fn body(kind: &TargetKind, notice: &Notice) -> serde_json::Result<Vec<u8>> {
    match kind {
        TargetKind::Webhook { .. } => serde_json::to_vec(&WebhookBody {
            kind: notice.event.wire_name(),
            timestamp: notice.at,
            data: notice,
        }),
        TargetKind::Slack => serde_json::to_vec(&slack(notice)),
    }
}

fn slack(notice: &Notice) -> Value {
    let mark = mark(notice);
    let headline = format!("{mark} {}: {}", event_word(notice.event), notice.rule);
    let mut blocks = vec![
        json!({"type": "header", "text": plain(&headline, HEADER_MAX)}),
        json!({"type": "section", "text": mrkdwn(&[&notice.title], SECTION_MAX)}),
    ];
    let own = [
        ("Subject", notice.subject.as_str()),
        ("Severity", notice.severity.name()),
    ];
    let facts = notice.facts.iter().map(|f| (f.name.as_str(), f.value.as_str()));
    let fields: Vec<Value> = own
        .into_iter()
        .chain(facts)
        .map(|(name, value)| field(name, value))
        .collect();
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
    json!({
        "text": escaped(&[&headline, " · ", &notice.title], SECTION_MAX),
        "blocks": blocks,
        "unfurl_links": false,
        "unfurl_media": false,
    })
}

fn mark(notice: &Notice) -> &'static str {
    match (notice.event, notice.severity) {
        (NoticeEvent::Resolved, _) => "🟢",
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
        NoticeEvent::Resolved => "Resolved",
        NoticeEvent::Test => "Test",
    }
}

fn plain(text: &str, max: usize) -> Value {
    json!({"type": "plain_text", "text": escaped(&[text], max), "emoji": false})
}

/// `verbatim` keeps Slack from turning names and addresses inside our text into mentions and links.
fn mrkdwn(parts: &[&str], max: usize) -> Value {
    json!({"type": "mrkdwn", "text": escaped(parts, max), "verbatim": true})
}

fn field(name: &str, value: &str) -> Value {
    let value = if value.is_empty() { "–" } else { value };
    mrkdwn(&["*", name, "*\n", value], FIELD_MAX)
}

/// The parts in one, with `&`, `<` and `>` as Slack wants them, cut to `max` UTF-16 units between two characters and
/// never inside an entity. Slack refuses an empty text, so there is always something.
fn escaped(parts: &[&str], max: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    let mut end_of_room = 0;
    let mut utf8 = [0; 4];
    for c in parts.iter().flat_map(|p| p.chars()) {
        let piece: &str = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '\n' => "\n",
            c if c.is_control() => " ",
            c => c.encode_utf8(&mut utf8),
        };
        let size: usize = piece.chars().map(char::len_utf16).sum();
        if used + size > max {
            out.truncate(end_of_room);
            out.push('…');
            return out;
        }
        out.push_str(piece);
        used += size;
        if used < max {
            // Up to here there is room left for the ellipsis.
            end_of_room = out.len();
        }
    }
    if out.trim().is_empty() {
        out.push('–');
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::notice::Fact;
    use crate::types::secret::Secret;

    fn notice() -> Notice {
        Notice {
            id: "msg_1".to_owned(),
            event: NoticeEvent::Opened,
            incident: "inc_1".into(),
            rule: "token_explosion_detection".into(),
            severity: Severity::Critical,
            subject: "agent-prod-01".to_owned(),
            title: "agent-prod-01 used 9000 tokens per execution, the limit is 5000".to_owned(),
            facts: vec![Fact {
                name: "tokens_per_execution".to_owned(),
                value: "9000 tokens".to_owned(),
            }],
            at: Wall::from_unix_millis(1_700_000_000_123),
            targets: Vec::new(),
        }
    }

    fn sent(kind: &TargetKind, notice: &Notice) -> Value {
        serde_json::from_slice(&body(kind, notice).unwrap()).unwrap()
    }

    #[test]
    fn webhook_body_is_the_notice_with_type_and_time() {
        let kind = TargetKind::Webhook {
            secret: Some(Secret::new("do not print")),
            headers: Vec::new(),
        };
        let sent = sent(&kind, &notice());
        assert_eq!(sent["type"], "incident.opened");
        assert_eq!(sent["timestamp"], "2023-11-14T22:13:20.123Z");
        assert_eq!(sent["data"], serde_json::to_value(notice()).unwrap());
        assert_eq!(sent.as_object().unwrap().len(), 3);
    }

    #[test]
    fn webhook_body_has_a_schema() {
        let schema = serde_json::to_value(schemars::schema_for!(WebhookBody<'static>)).unwrap();
        assert_eq!(schema["required"], json!(["type", "timestamp", "data"]));
    }

    #[test]
    fn slack_message_reads_well() {
        let sent = sent(&TargetKind::Slack, &notice());
        assert_eq!(
            sent["text"],
            "🔴 Opened: token_explosion_detection · agent-prod-01 used 9000 tokens per execution, the limit is 5000"
        );
        assert_eq!(
            sent["blocks"][0]["text"]["text"],
            "🔴 Opened: token_explosion_detection"
        );
        let fields = sent["blocks"][2]["fields"].as_array().unwrap();
        let texts: Vec<_> = fields.iter().map(|f| f["text"].as_str().unwrap()).collect();
        assert_eq!(
            texts,
            [
                "*Subject*\nagent-prod-01",
                "*Severity*\ncritical",
                "*tokens_per_execution*\n9000 tokens"
            ]
        );
        assert_eq!(
            sent["blocks"][3]["elements"][0]["text"],
            "incident inc_1 · 2023-11-14T22:13:20.123Z"
        );
    }

    #[test]
    fn slack_control_sequences_of_a_client_stay_text() {
        let mut n = notice();
        n.subject = "<!channel> & <https://evil.example|click>".to_owned();
        let sent = sent(&TargetKind::Slack, &n);
        let all = sent.to_string();
        assert!(!all.contains("<!channel>"), "{all}");
        assert_eq!(
            sent["blocks"][2]["fields"][0]["text"],
            "*Subject*\n&lt;!channel&gt; &amp; &lt;https://evil.example|click&gt;"
        );
    }

    #[test]
    fn facts_beyond_the_bound_are_counted() {
        let mut n = notice();
        n.facts = (0..100)
            .map(|i| Fact {
                name: format!("f{i}"),
                value: i.to_string(),
            })
            .collect();
        let sent = sent(&TargetKind::Slack, &n);
        let blocks = sent["blocks"].as_array().unwrap();
        assert_eq!(blocks.len(), 8);
        let last = blocks[7]["elements"][0]["text"].as_str().unwrap();
        assert!(last.ends_with("52 more facts not shown"), "{last}");
    }

    #[test]
    fn cut_leaves_whole_entities() {
        let cases = [
            ("abc", 3, "abc"),
            ("abcd", 3, "ab…"),
            ("a&b", 4, "a…"),
            ("a&b", 7, "a&amp;b"),
            ("&", 4, "…"),
            ("🔴🔴", 4, "🔴🔴"),
            ("🔴🔴", 3, "🔴…"),
            ("", 5, "–"),
            ("\u{1b}[31m", 9, " [31m"),
        ];
        for (text, max, want) in cases {
            assert_eq!(escaped(&[text], max), want, "{text:?} in {max}");
        }
    }

    fn lengths(value: &Value, out: &mut Vec<(String, usize)>) {
        match value {
            Value::Object(map) => {
                if let (Some(Value::String(kind)), Some(Value::String(text))) =
                    (map.get("type"), map.get("text"))
                {
                    out.push((kind.clone(), text.encode_utf16().count()));
                }
                map.values().for_each(|v| lengths(v, out));
            }
            Value::Array(list) => list.iter().for_each(|v| lengths(v, out)),
            _ => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn slack_bounds_hold_for_any_notice(
            title in ".{0,3100}",
            subject in "\\PC{0,2100}",
            rule in "[a-z<>&]{0,400}",
            facts in proptest::collection::vec((".{0,20}", ".{0,60}"), 0..70), long in "[<&🔴a]{0,2500}",
        ) {
            let mut n = notice();
            n.title = title;
            n.subject = subject;
            n.rule = rule.into();
            let facts = facts.into_iter().chain([(String::new(), long)]);
            n.facts = facts.map(|(name, value)| Fact { name, value }).collect();
            let sent = sent(&TargetKind::Slack, &n);
            let blocks = sent["blocks"].as_array().unwrap();
            prop_assert!(blocks.len() <= 50);
            prop_assert!(blocks[0]["text"]["text"].as_str().unwrap().encode_utf16().count() <= HEADER_MAX);
            for block in blocks {
                if let Some(fields) = block.get("fields").and_then(Value::as_array) {
                    prop_assert!(!fields.is_empty() && fields.len() <= FIELDS_MAX);
                    for f in fields {
                        prop_assert!(f["text"].as_str().unwrap().encode_utf16().count() <= FIELD_MAX);
                    }
                }
            }
            let mut all = Vec::new();
            lengths(&sent, &mut all);
            for (kind, length) in all {
                prop_assert!((1..=SECTION_MAX).contains(&length), "{} of {}", kind, length);
            }
        }
    }
}
