//! Every body against the documented limits of whoever takes it, for any notice.

use std::sync::LazyLock;

use jsonschema::Validator;
use proptest::prelude::*;
use serde_json::json;

use super::super::refresh::Refresh;
use super::super::tests::approval;
use super::*;
use crate::types::secret::Secret;
use crate::types::time::Mono;

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
        ..nothing()
    }
}

fn webhook(format: WebhookFormat) -> TargetKind {
    TargetKind::Webhook {
        secret: Some(Secret::new("do not print")),
        headers: Vec::new(),
        format,
    }
}

fn alertmanager() -> TargetKind {
    TargetKind::Alertmanager {
        others: Vec::new(),
        resend_every: std::time::Duration::from_secs(60),
        labels: vec![("team".to_owned(), "sre".to_owned())],
        headers: Vec::new(),
    }
}

/// Every shape of body, with the schema of its limits.
static SHAPES: LazyLock<Vec<(TargetKind, Validator)>> = LazyLock::new(|| {
    let cloudevents = WebhookFormat::CloudEvents {
        source: "/fusebox/prod/pod-1".to_owned(),
    };
    let pagerduty = TargetKind::PagerDuty {
        routing_key: Secret::new("R0UT1NGKEY"),
    };
    let shape = |kind: TargetKind, text: &str| {
        let schema: Value = serde_json::from_str(text).unwrap();
        (kind, jsonschema::validator_for(&schema).unwrap())
    };
    macro_rules! limits {
        ($name:literal) => {
            include_str!(concat!(
                "../../../tests/alerts/limits/",
                $name,
                ".schema.json"
            ))
        };
    }
    vec![
        shape(webhook(WebhookFormat::Standard), limits!("webhook")),
        shape(webhook(cloudevents), limits!("cloudevents")),
        shape(
            webhook(WebhookFormat::Alertmanager),
            limits!("alertmanager_webhook"),
        ),
        shape(TargetKind::Slack, limits!("slack")),
        shape(pagerduty, limits!("pagerduty")),
        shape(alertmanager(), limits!("alertmanager")),
        shape(TargetKind::Teams, limits!("teams")),
        shape(TargetKind::Discord, limits!("discord")),
    ]
});

fn bytes(kind: &TargetKind, notice: &Notice) -> Vec<u8> {
    if matches!(kind, TargetKind::Alertmanager { .. }) {
        let notice = Arc::new(notice.clone());
        let known = Refresh::new(std::time::Duration::from_secs(60)).learn(&notice, Mono::ZERO);
        return reminder(kind, &[known], notice.at).unwrap();
    }
    body(kind, notice).unwrap()
}

fn sent(kind: &TargetKind, notice: &Notice) -> Value {
    serde_json::from_slice(&bytes(kind, notice)).unwrap()
}

fn units(text: &Value) -> usize {
    text.as_str().unwrap().encode_utf16().count()
}

fn strings<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => map.values().for_each(|v| strings(v, out)),
        Value::Array(list) => list.iter().for_each(|v| strings(v, out)),
        Value::String(text) => out.push(text),
        _ => {}
    }
}

/// Everything that is documented of a shape.
fn within_limits(kind: &TargetKind, limits: &Validator, notice: &Notice) -> Result<(), String> {
    let raw = bytes(kind, notice);
    let sent: Value = serde_json::from_slice(&raw).map_err(|e| e.to_string())?;
    let name = kind.name();
    if let Err(e) = limits.validate(&sent) {
        return Err(format!("{name}: {e} at {}", e.instance_path()));
    }
    let ok = match kind {
        TargetKind::PagerDuty { .. } => raw.len() <= pagerduty::EVENT_MAX,
        TargetKind::Teams => raw.len() <= teams::MESSAGE_MAX,
        TargetKind::Discord => {
            let embed = &sent["embeds"][0];
            let fields = embed["fields"].as_array().unwrap();
            let of_fields: usize = fields
                .iter()
                .map(|f| units(&f["name"]) + units(&f["value"]))
                .sum();
            let total = of_fields
                + units(&embed["title"])
                + units(&embed["description"])
                + units(&embed["footer"]["text"]);
            let each = |f: &Value| {
                units(&f["name"]) <= discord::NAME_MAX && units(&f["value"]) <= discord::VALUE_MAX
            };
            total <= discord::TOTAL_MAX
                && fields.len() <= discord::FIELDS_MAX
                && units(&embed["title"]) <= discord::TITLE_MAX
                && units(&embed["description"]) <= discord::DESCRIPTION_MAX
                && units(&embed["footer"]["text"]) <= discord::FOOTER_MAX
                && fields.iter().all(each)
        }
        TargetKind::Slack => sent["blocks"].as_array().unwrap().iter().all(|block| {
            let most = if block["type"] == "header" {
                slack::HEADER_MAX
            } else {
                slack::SECTION_MAX
            };
            let head = block.get("text").is_none_or(|t| units(&t["text"]) <= most);
            let fields = block
                .get("fields")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default();
            head && fields.len() <= slack::FIELDS_MAX
                && fields.iter().all(|f| units(&f["text"]) <= slack::FIELD_MAX)
        }),
        _ => true,
    };
    if !ok {
        return Err(format!("{name}: too long: {sent}"));
    }
    // Only what a webhook is sent is raw: a program reads it.
    if !matches!(kind, TargetKind::Webhook { .. }) {
        let mut all = Vec::new();
        strings(&sent, &mut all);
        if let Some(bad) = all
            .iter()
            .find(|s| s.chars().any(|c| c.is_control() && c != '\n'))
        {
            return Err(format!("{name}: a control character in {bad:?}"));
        }
    }
    Ok(())
}

const EVENTS: [NoticeEvent; 9] = [
    NoticeEvent::Opened,
    NoticeEvent::Updated,
    NoticeEvent::Escalated,
    NoticeEvent::Acknowledged,
    NoticeEvent::ApprovalRequested,
    NoticeEvent::ApprovalDecided,
    NoticeEvent::Resolved,
    NoticeEvent::Reopened,
    NoticeEvent::Test,
];

#[test]
fn webhook_body_is_the_notice_with_type_and_time() {
    let sent = sent(&webhook(WebhookFormat::Standard), &notice());
    assert_eq!(sent["type"], "incident.opened");
    assert_eq!(sent["timestamp"], "2023-11-14T22:13:20.123Z");
    assert_eq!(sent["data"], serde_json::to_value(notice()).unwrap());
    assert_eq!(sent.as_object().unwrap().len(), 3);
}

#[test]
fn webhook_bodies_have_a_schema() {
    let schema = serde_json::to_value(schemars::schema_for!(WebhookBody<'static>)).unwrap();
    assert_eq!(schema["required"], json!(["type", "timestamp", "data"]));
    let schema = serde_json::to_value(schemars::schema_for!(CloudEventBody<'static>)).unwrap();
    assert_eq!(schema["properties"]["type"]["type"], "string");
}

#[test]
fn every_event_in_every_shape() {
    for event in EVENTS {
        for (kind, limits) in SHAPES.iter() {
            let mut n = notice();
            n.event = event;
            n.link = Some("https://fusebox.example/incidents/inc_1".to_owned());
            n.approval = Some(approval());
            n.level = 2;
            n.acknowledged_by = Some("ada".to_owned());
            within_limits(kind, limits, &n).unwrap_or_else(|e| panic!("{event:?}: {e}"));
        }
    }
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
fn chats_offer_the_pages_that_there_are() {
    let mut n = notice();
    n.event = NoticeEvent::ApprovalRequested;
    n.approval = Some(approval());
    n.link = Some("https://fusebox.example/incidents/inc_1".to_owned());
    let slack = sent(&TargetKind::Slack, &n);
    let buttons = slack["blocks"].as_array().unwrap().last().unwrap()["elements"].clone();
    assert_eq!(buttons[0]["text"]["text"], "Review and decide");
    assert_eq!(
        buttons[0]["url"],
        "https://fusebox.example/approvals/apr_1?t=token"
    );
    assert_eq!(buttons[1]["url"], "https://fusebox.example/incidents/inc_1");
    let teams = sent(&TargetKind::Teams, &n);
    assert_eq!(
        teams["attachments"][0]["content"]["actions"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
    let discord = sent(&TargetKind::Discord, &n);
    let text = discord["embeds"][0]["description"].as_str().unwrap();
    assert!(
        text.contains("[Review and decide](<https://fusebox.example/approvals/apr_1?t=token>)"),
        "{text}"
    );
    for bad in [
        "javascript:alert(1)",
        "https://",
        "not a url",
        &format!("https://h/{}", "a".repeat(4000)),
    ] {
        n.approval = None;
        n.link = Some(bad.to_owned());
        assert!(
            !sent(&TargetKind::Slack, &n).to_string().contains("actions"),
            "{bad}"
        );
    }
}

#[test]
fn what_a_client_calls_itself_stays_text() {
    let evil =
        "<!channel> & <https://evil.example|click> **@everyone** [x](https://evil.example) {{DATE(1)}}";
    let mut n = notice();
    n.subject = evil.to_owned();
    n.title = evil.to_owned();
    let slack = sent(&TargetKind::Slack, &n).to_string();
    assert!(
        !slack.contains("<!channel>") && !slack.contains("<https"),
        "{slack}"
    );
    let discord = sent(&TargetKind::Discord, &n).to_string();
    assert!(
        !discord.contains("@everyone") && !discord.contains("](https") && !discord.contains("https://evil"),
        "{discord}"
    );
    let teams = sent(&TargetKind::Teams, &n).to_string();
    assert!(
        !teams.contains("{{DATE") && teams.contains("RichTextBlock") && !teams.contains("TextBlock\",\"text"),
        "{teams}"
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
    let slack = sent(&TargetKind::Slack, &n);
    let blocks = slack["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 8);
    let last = blocks[7]["elements"][0]["text"].as_str().unwrap();
    assert!(last.ends_with("52 more facts not shown"), "{last}");
    let discord = sent(&TargetKind::Discord, &n);
    assert_eq!(
        discord["embeds"][0]["fields"][24]["value"],
        "78 more facts not shown"
    );
    let teams = sent(&TargetKind::Teams, &n).to_string();
    assert!(teams.contains("72 more facts not shown"), "{teams}");
}

#[test]
fn an_event_too_large_for_pagerduty_goes_without_details() {
    let mut n = notice();
    n.facts = (0..400)
        .map(|i| Fact {
            name: format!("f{i}"),
            value: "🔴".repeat(2000),
        })
        .collect();
    let (kind, limits) = &SHAPES[4];
    within_limits(kind, limits, &n).unwrap();
    let sent = sent(kind, &n);
    assert!(sent["payload"].get("custom_details").is_none());
    assert_eq!(sent["payload"]["severity"], "critical");
    n.incident = "i".repeat(400).into();
    within_limits(kind, limits, &n).unwrap();
}

#[test]
fn labels_are_identity_only() {
    let identity = |n: &Notice| sent(&alertmanager(), n)[0]["labels"].clone();
    let mut later = notice();
    later.event = NoticeEvent::Updated;
    later.title = "other".to_owned();
    later.facts.clear();
    later.at = Wall::from_unix_millis(1_700_000_999_000);
    later.level = 3;
    assert_eq!(identity(&notice()), identity(&later));
    assert_eq!(
        identity(&later),
        json!({"alertname": "token_explosion_detection", "incident": "inc_1", "severity": "critical",
               "source": "fusebox", "subject": "agent-prod-01", "team": "sre"})
    );
    let group = |n: &Notice| sent(&webhook(WebhookFormat::Alertmanager), n);
    later.event = NoticeEvent::Resolved;
    later.severity = Severity::Info;
    let (one, end) = (group(&notice()), group(&later));
    assert_eq!(one["alerts"][0]["fingerprint"], end["alerts"][0]["fingerprint"]);
    assert_eq!(
        (&one["status"], &end["status"]),
        (&json!("firing"), &json!("resolved"))
    );
    assert_eq!(one["alerts"][0]["endsAt"], NEVER);
    assert_eq!(one["groupKey"], "{}:{incident=\"inc_1\"}");
}

const NEVER: &str = "0001-01-01T00:00:00Z";

#[test]
fn a_storm_says_how_many_and_names_some() {
    let many: Vec<Arc<Notice>> = (0..30)
        .map(|i| {
            let mut n = notice();
            n.incident = format!("inc_{i:02}").into();
            n.subject = format!("agent-{i:02}");
            n.severity = if i == 7 {
                Severity::Critical
            } else {
                Severity::Warning
            };
            Arc::new(n)
        })
        .collect();
    let all: Vec<&Arc<Notice>> = many.iter().collect();
    let one = storm(&all, 3);
    assert_eq!(one.title, "30 subjects, same rule: token_explosion_detection");
    assert_eq!(one.subject, "agent-00, agent-01, agent-02 and 27 more");
    assert_eq!(one.facts[0].value, "inc_00, inc_01, inc_02 and 27 more");
    assert_eq!(one.severity, Severity::Critical);
    assert_eq!(storm(&[], 3).title, "");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn limits_hold_for_any_notice(
        title in "(?s).{0,4500}",
        subject in "(?s).{0,2100}",
        rule in "[a-z<>&@*{]{0,400}",
        incident in "[a-z0-9]{1,300}",
        facts in proptest::collection::vec(("(?s).{0,300}", "(?s).{0,1200}"), 0..70),
        long in "[<&🔴a*{@]{0,6500}",
        event in proptest::sample::select(&EVENTS[..]),
        link in "(https://[a-z]{1,20}/[ -~]{0,40})|.{0,20}",
        asked in proptest::bool::ANY,
    ) {
        let mut n = notice();
        n.event = event;
        n.title = title;
        n.subject = subject;
        n.rule = rule.into();
        n.incident = incident.into();
        n.link = Some(link);
        n.acknowledged_by = Some(long.clone());
        if asked {
            let mut ask = approval();
            ask.what.clone_from(&long);
            ask.on_timeout.clone_from(&long);
            n.approval = Some(ask);
        }
        let facts = facts.into_iter().chain([(String::new(), long)]);
        n.facts = facts.map(|(name, value)| Fact { name, value }).collect();
        for (kind, limits) in SHAPES.iter() {
            let held = within_limits(kind, limits, &n);
            prop_assert!(held.is_ok(), "{:?}", held);
        }
    }
}
