//! Many notices at once: chats get one message, whoever has keys gets each.

use super::*;
use crate::alert::Grouping;

fn chat(url: &str) -> Target {
    let mut t = target("chat", url);
    t.kind = TargetKind::Slack;
    t.group = Some(Grouping {
        wait: Duration::from_millis(100),
        more_than: 3,
        list: 5,
    });
    t
}

fn about(i: usize, event: NoticeEvent) -> Notice {
    let mut n = notice(&format!("{event:?}{i}"), event, &format!("inc{i}"));
    n.subject = format!("agent-{i:02}");
    n.agents = vec![n.subject.as_str().into()];
    n
}

fn text(got: &Got) -> String {
    got.json()["text"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_storm_is_one_message_in_a_chat_and_one_event_each_elsewhere() {
    let mut slack = Receiver::start(None, []).await;
    let mut hook = Receiver::start(None, []).await;
    let alerts = start(vec![chat(&slack.url), target("hook", &hook.url)]);
    for i in 0..12 {
        alerts.tell(&about(i, NoticeEvent::Opened));
    }
    let got = slack.next().await;
    assert_eq!(text(&got), "🟠 Opened: rule · 12 agents, same rule: rule");
    let fields = got.json()["blocks"][2]["fields"].to_string();
    assert!(
        fields.contains("agent-00, agent-01, agent-02, agent-03, agent-04 and 7 more"),
        "{fields}"
    );
    for i in 0..12 {
        assert_eq!(hook.next().await.header("webhook-id"), format!("Opened{i}"));
    }
    for i in 0..12 {
        alerts.tell(&about(i, NoticeEvent::Resolved));
    }
    assert_eq!(
        text(&slack.next().await),
        "🟢 Resolved: rule · 12 agents, same rule: rule"
    );
    let now = until(&alerts, |s| s.delivered == 24).await;
    assert_eq!((now.queued, now.dropped), (0, 0));
    slack.nothing_more();
}

#[tokio::test]
async fn a_few_stay_single_and_sorts_do_not_mix() {
    let mut slack = Receiver::start(None, []).await;
    let alerts = start(vec![chat(&slack.url)]);
    for i in 0..3 {
        alerts.tell(&about(i, NoticeEvent::Opened));
        let mut other = about(i + 10, NoticeEvent::Opened);
        other.rule = "other".into();
        alerts.tell(&other);
    }
    let mut ask = about(20, NoticeEvent::ApprovalRequested);
    ask.approval = Some(approval());
    alerts.tell(&ask);
    let mut texts = Vec::new();
    for _ in 0..7 {
        texts.push(text(&slack.next().await));
    }
    slack.nothing_more();
    assert!(texts.iter().all(|t| !t.contains("same rule")), "{texts:?}");
    assert!(
        texts[0].contains("Approval needed"),
        "it waits for nobody: {texts:?}"
    );
}

#[tokio::test]
async fn a_storm_that_fails_is_tried_again_as_one() {
    let mut slack = Receiver::start(None, [Reply::Status(500)]).await;
    let alerts = start(vec![chat(&slack.url)]);
    for i in 0..6 {
        alerts.tell(&about(i, NoticeEvent::Opened));
        alerts.tell(&about(i, NoticeEvent::Resolved));
    }
    assert!(text(&slack.next().await).contains("6 agents, same rule"));
    assert!(text(&slack.next().await).contains("Opened: rule · 6 agents"));
    assert!(text(&slack.next().await).contains("Resolved: rule · 6 agents"));
    let now = until(&alerts, |s| s.delivered == 12).await;
    assert_eq!(now.failed_attempts, 1);
    slack.nothing_more();
}

#[tokio::test]
async fn messages_keep_their_distance() {
    let mut slack = Receiver::start(None, []).await;
    let mut t = chat(&slack.url);
    t.group = None;
    t.spacing = Duration::from_millis(150);
    let alerts = start(vec![t]);
    let clock = Clock::system();
    let before = clock.mono();
    for i in 0..4 {
        alerts.tell(&about(i, NoticeEvent::Opened));
    }
    for _ in 0..4 {
        slack.next().await;
    }
    assert!(clock.mono().since(before) >= Duration::from_millis(440));
}
