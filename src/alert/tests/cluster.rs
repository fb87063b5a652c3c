//! Alertmanager: every member is told, again and again while an incident is open, and of its end.

use serde_json::Value;

use super::*;

fn alertmanager(urls: &[&str], every: Duration) -> Target {
    let mut t = target("am", urls[0]);
    t.kind = TargetKind::Alertmanager {
        others: urls[1..].iter().map(|&u| Secret::new(u)).collect(),
        resend_every: every,
        labels: vec![("team".to_owned(), "sre".to_owned())],
        headers: Vec::new(),
    };
    t
}

fn labels(alert: &Value) -> Value {
    alert["labels"].clone()
}

fn time(alert: &Value, key: &str) -> jiff::Timestamp {
    alert[key].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn every_member_is_told_and_reminded_with_the_same_labels() {
    let mut one = Receiver::start(None, []).await;
    let mut two = Receiver::start(None, []).await;
    let every = Duration::from_millis(80);
    let alerts = start(vec![alertmanager(&[&one.url, &two.url], every)]);
    alerts.tell(&notice("n1", NoticeEvent::Opened, "inc"));
    let mut first = Value::Null;
    for round in 0..3 {
        for member in [&mut one, &mut two] {
            let got = member.next().await;
            assert_eq!(got.path, "/hook/T000/secret-path/api/v2/alerts");
            assert_eq!(got.header("webhook-id"), "");
            let sent = got.json();
            assert_eq!(sent.as_array().unwrap().len(), 1);
            if round == 0 {
                first = labels(&sent[0]);
            }
            assert_eq!(labels(&sent[0]), first);
            assert!(time(&sent[0], "endsAt") > jiff::Timestamp::now(), "it is open");
        }
    }
    assert_eq!(first["incident"], "inc");
    assert_eq!(first["team"], "sre");
    let mut end = notice("n2", NoticeEvent::Resolved, "inc");
    end.severity = Severity::Info;
    end.at = Clock::system().wall();
    alerts.tell(&end);
    for member in [&mut one, &mut two] {
        loop {
            let sent = member.next().await.json();
            assert_eq!(labels(&sent[0]), first, "an end is that of the beginning");
            if time(&sent[0], "endsAt") <= jiff::Timestamp::now() {
                break;
            }
        }
    }
    assert_eq!(until(&alerts, |s| s.delivered == 2).await.failed_attempts, 0);
}

#[tokio::test]
async fn a_member_that_is_away_delays_nothing() {
    let mut up = Receiver::start(None, []).await;
    let away = nobody().await;
    let alerts = start(vec![alertmanager(&[&away, &up.url], Duration::from_secs(60))]);
    alerts.tell(&notice("n1", NoticeEvent::Opened, "inc"));
    up.next().await;
    let now = until(&alerts, |s| s.delivered == 1).await;
    assert!(now.last_error.unwrap().starts_with("127.0.0.1: "));
    up.nothing_more();
}

#[tokio::test]
async fn what_is_open_since_before_a_restart_is_reminded_of() {
    let mut up = Receiver::start(None, []).await;
    let alerts = start(vec![alertmanager(&[&up.url], Duration::from_millis(50))]);
    alerts.resume(&[notice("n1", NoticeEvent::Updated, "inc")]);
    let sent = up.next().await.json();
    assert_eq!(sent[0]["labels"]["incident"], "inc");
    assert_eq!(status(&alerts).delivered, 0);
}

#[tokio::test]
async fn a_worse_severity_ends_the_milder_alert() {
    let mut up = Receiver::start(None, []).await;
    let alerts = start(vec![alertmanager(&[&up.url], Duration::from_secs(60))]);
    alerts.tell(&notice("n1", NoticeEvent::Opened, "inc"));
    up.next().await;
    let mut worse = notice("n2", NoticeEvent::Escalated, "inc");
    worse.severity = Severity::Critical;
    alerts.tell(&worse);
    let sent = up.next().await.json();
    let found: Vec<_> = sent
        .as_array()
        .unwrap()
        .iter()
        .map(|a| {
            (
                a["labels"]["severity"].as_str().unwrap(),
                time(a, "endsAt") > jiff::Timestamp::now(),
            )
        })
        .collect();
    assert_eq!(found, [("error", false), ("critical", true)]);
}

#[tokio::test]
async fn discord_says_when_to_come_back() {
    let script = [Reply::With(
        429,
        "content-type",
        "application/json".to_owned(),
        "{\"message\":\"slow\",\"retry_after\":0.6,\"global\":false}",
    )];
    let mut receiver = Receiver::start(None, script).await;
    let mut t = target("chat", &receiver.url);
    t.kind = TargetKind::Discord;
    let alerts = start(vec![t]);
    let clock = Clock::system();
    let before = clock.mono();
    alerts.tell(&notice("n1", NoticeEvent::Opened, "inc"));
    receiver.next().await;
    receiver.next().await;
    assert!(clock.mono().since(before) > Duration::from_millis(550));
}

#[tokio::test]
async fn pagerduty_says_why_it_refuses() {
    let script = [Reply::With(
        400,
        "content-type",
        "application/json".to_owned(),
        "{\"status\":\"invalid event\",\"errors\":[\"'severity' is invalid\",\"key https://x/y?z\"]}",
    )];
    let mut receiver = Receiver::start(None, script).await;
    let mut t = target("pager", &receiver.url);
    t.kind = TargetKind::PagerDuty {
        routing_key: Secret::new("R0"),
    };
    let alerts = start(vec![t]);
    alerts.tell(&notice("n1", NoticeEvent::Opened, "inc"));
    let now = until(&alerts, |s| s.dropped == 1).await;
    assert_eq!(
        now.last_error.as_deref(),
        Some("localhost answered 400 ('severity' is invalid; key https://x/[redacted])")
    );
    assert_eq!(receiver.next().await.json()["event_action"], "trigger");
    // Nothing of it can be told by an event.
    alerts.tell(&notice("n2", NoticeEvent::ApprovalDecided, "inc"));
    alerts.tell(&notice("n3", NoticeEvent::Acknowledged, "inc"));
    assert_eq!(receiver.next().await.json()["event_action"], "acknowledge");
    alerts.tell(&notice("n4", NoticeEvent::Resolved, "inc"));
    let end = receiver.next().await.json();
    assert_eq!(
        (&end["event_action"], &end["dedup_key"]),
        (&"resolve".into(), &"inc".into())
    );
    assert!(end.get("payload").is_none());
}
