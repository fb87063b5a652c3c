//! What survives: restarts, receivers in trouble, full queues, dead letters.

use super::*;
use crate::alert::waiting::{Next, State};
use crate::alert::{DeadLetter, Delivery, Fate, Settled};
use crate::types::time::{Mono, Now};

/// Everything that the hook was told, and what a ledger would make of it.
#[derive(Default, Clone)]
struct Ledger {
    told: Arc<Mutex<Vec<Settled>>>,
    kept: Arc<Mutex<Vec<Delivery>>>,
}

impl Ledger {
    fn hook(&self) -> SettledHook {
        let ledger = self.clone();
        Arc::new(move |s: &Settled| {
            ledger.told.lock().unwrap().push(s.clone());
            let mut kept = ledger.kept.lock().unwrap();
            match &s.fate {
                Fate::Delivered | Fate::Dead { .. } => kept.retain(|d| d.id != s.id),
                Fate::Failed {
                    attempts,
                    next_attempt,
                    ..
                } => {
                    for d in kept.iter_mut().filter(|d| d.id == s.id) {
                        (d.attempts, d.next_attempt) = (*attempts, *next_attempt);
                    }
                }
            }
        })
    }

    /// As control does it: kept first, then passed on.
    fn tell(&self, alerts: &Alerts, notice: &Notice) {
        let deliveries = alerts.route(notice);
        self.kept.lock().unwrap().extend(deliveries.clone());
        alerts.deliver(deliveries);
    }

    /// What is in the file, as bytes would have it.
    fn left(&self) -> Vec<Delivery> {
        let text = serde_json::to_string(&*self.kept.lock().unwrap()).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn fates(&self, id: &str) -> Vec<String> {
        let told = self.told.lock().unwrap();
        told.iter()
            .filter(|s| s.id == id)
            .map(|s| match &s.fate {
                Fate::Delivered => "delivered".to_owned(),
                Fate::Failed { attempts, .. } => format!("failed {attempts}"),
                Fate::Dead { .. } => "dead".to_owned(),
            })
            .collect()
    }
}

#[tokio::test]
async fn a_restart_sends_what_was_not_taken_and_nothing_else() {
    let mut receiver = Receiver::start(None, []).await;
    let ledger = Ledger::default();
    let first = Alerts::paced(
        vec![target("up", &receiver.url), target("down", &nobody().await)],
        options(Some(ledger.hook())),
        FAST,
    );
    ledger.tell(&first, &notice("n1", NoticeEvent::Opened, "a"));
    ledger.tell(&first, &notice("n2", NoticeEvent::Resolved, "a"));
    assert_eq!(receiver.next().await.header("webhook-id"), "n1");
    assert_eq!(receiver.next().await.header("webhook-id"), "n2");
    let waiting = async {
        while ledger.left().len() != 2 || ledger.left()[0].attempts < 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .expect("two are left");
    drop(first);
    let left = ledger.left();
    assert_eq!(
        left.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(),
        ["n1/down", "n2/down"]
    );

    // A new life: the other target is back.
    let second = Alerts::paced(
        vec![target("up", &receiver.url), target("down", &receiver.url)],
        options(Some(ledger.hook())),
        FAST,
    );
    second.deliver(left.clone());
    second.deliver(left);
    assert!(second.drain(PATIENCE).await);
    assert_eq!(receiver.next().await.header("webhook-id"), "n1");
    assert_eq!(receiver.next().await.header("webhook-id"), "n2");
    receiver.nothing_more();
    assert!(ledger.left().is_empty());
    assert_eq!(ledger.fates("n1/up"), ["delivered"]);
    let down = ledger.fates("n1/down");
    assert_eq!(down[..2], ["failed 1", "failed 2"]);
    assert_eq!(down.last().unwrap(), "delivered");
}

#[test]
fn how_old_a_delivery_is_does_not_hang_on_where_this_process_begins_to_count() {
    let mut t = target("ops", "https://ops.example/");
    t.give_up_after = Duration::from_secs(3600);
    let minutes = |n: u64| Duration::from_secs(n * 60);
    // Minutes that it has waited before this process, minutes that it waits here, whether it is given up.
    let table = [
        (0, 0, false),
        (0, 59, false),
        (0, 61, true),
        (50, 5, false),
        (50, 11, true),
        (100_000, 0, true),
    ];
    for origin in [Duration::ZERO, minutes(1), minutes(40 * 24 * 60)] {
        for (before, here, given_up) in table {
            let start = Now {
                mono: Mono::ZERO.after(origin),
                wall: Wall::from_unix_millis(1_700_000_000_000),
            };
            let made = start.wall.unix_millis() - i64::try_from(minutes(before).as_millis()).unwrap();
            let made = Wall::from_unix_millis(made);
            let n = Arc::new(notice("n1", NoticeEvent::Opened, "a"));
            let mut state = State::new(t.clone(), 8);
            assert_eq!(
                state.take(Delivery::new(&n, "ops", made), start),
                Some(Vec::new())
            );
            let now = start.after(minutes(here));
            let Next::Send(batch, _) = state.next(now.mono) else {
                panic!("it is to be sent");
            };
            let told = state.failed(batch, "no", Duration::from_secs(1), now);
            let dead = matches!(told[0].fate, Fate::Dead { .. });
            assert_eq!(dead, given_up, "{origin:?} {before} {here}");
        }
    }
}

#[tokio::test]
async fn who_was_told_of_the_beginning_before_a_restart_hears_of_the_end() {
    let mut receiver = Receiver::start(None, []).await;
    let mut t = target("ops", &receiver.url);
    t.min_severity = Severity::Error;
    let alerts = start(vec![t]);
    let mut mild = notice("n0", NoticeEvent::Opened, "mild");
    mild.severity = Severity::Warning;
    alerts.resume(&[notice("n1", NoticeEvent::Opened, "bad"), mild]);
    for (id, incident) in [("end-mild", "mild"), ("end-bad", "bad")] {
        let mut end = notice(id, NoticeEvent::Resolved, incident);
        end.severity = Severity::Info;
        alerts.tell(&end);
    }
    assert!(alerts.drain(PATIENCE).await);
    assert_eq!(receiver.next().await.header("webhook-id"), "end-bad");
    receiver.nothing_more();
}

#[tokio::test]
async fn a_delivery_for_a_target_that_is_no_more_is_dead() {
    let ledger = Ledger::default();
    let alerts = Alerts::paced(
        vec![target("ops", &nobody().await)],
        options(Some(ledger.hook())),
        FAST,
    );
    let mut deliveries = alerts.route(&notice("n1", NoticeEvent::Opened, "a"));
    deliveries[0].target = "gone".to_owned();
    deliveries[0].id = "n1/gone".to_owned();
    alerts.deliver(deliveries);
    assert_eq!(ledger.fates("n1/gone"), ["dead"]);
    alerts.tell(&notice("n2", NoticeEvent::Opened, "a"));
    until(&alerts, |s| s.failed_attempts >= 1).await;
    alerts.replace(Vec::new());
    assert_eq!(ledger.fates("n2/ops").last().unwrap(), "dead");
}

#[tokio::test]
async fn dead_letters_are_seen_and_sent_again() {
    let script = [Reply::Status(400)];
    let mut receiver = Receiver::start(None, script).await;
    let ledger = Ledger::default();
    let alerts = Alerts::paced(
        vec![target("ops", &receiver.url)],
        options(Some(ledger.hook())),
        FAST,
    );
    alerts.tell(&notice("n1", NoticeEvent::Opened, "a"));
    let now = until(&alerts, |s| s.dropped == 1).await;
    assert_eq!(receiver.next().await.header("webhook-id"), "n1");
    let letter = &now.dead_letters[0];
    assert_eq!(
        (
            letter.id.as_str(),
            letter.title.as_str(),
            letter.why.as_str(),
            letter.event.as_str()
        ),
        ("n1/ops", "title", "localhost answered 400", "incident.opened")
    );
    assert!(alerts.retry_dead("nobody").is_none());
    let again = alerts.retry_dead("ops").unwrap();
    assert_eq!((again.len(), again[0].attempts), (1, 0));
    assert_eq!(receiver.next().await.header("webhook-id"), "n1");
    let now = until(&alerts, |s| s.delivered == 1).await;
    assert!(now.dead_letters.is_empty());
    // The end is told though the beginning had died.
    alerts.tell(&notice("n2", NoticeEvent::Resolved, "a"));
    assert_eq!(receiver.next().await.header("webhook-id"), "n2");

    let letter = DeadLetter {
        delivery: again[0].clone(),
        why: "of an earlier life".to_owned(),
        at: Wall::default(),
    };
    alerts.restore_dead(vec![letter]);
    assert_eq!(status(&alerts).dead_letters[0].why, "of an earlier life");
}

#[tokio::test]
async fn dead_letters_are_bounded() {
    let alerts = start(vec![target("ops", "no url")]);
    for i in 0..200 {
        alerts.tell(&notice(&format!("n{i}"), NoticeEvent::Opened, &format!("i{i}")));
    }
    let now = until(&alerts, |s| s.dropped == 200).await;
    assert_eq!(now.dead_letters.len(), 64);
    assert_eq!(now.dead_letters[63].id, "n199/ops");
}

#[tokio::test]
async fn gone_is_gone_until_somebody_says_otherwise() {
    let script = [Reply::Status(410)];
    let mut receiver = Receiver::start(None, script).await;
    let mut t = target("ops", &receiver.url);
    let alerts = start(vec![t.clone()]);
    alerts.tell(&notice("n1", NoticeEvent::Opened, "a"));
    let now = until(&alerts, |s| s.dropped == 1).await;
    assert!(now.disabled.unwrap().starts_with("localhost answered 410"));
    receiver.next().await;
    alerts.tell(&notice("n2", NoticeEvent::Opened, "b"));
    assert_eq!(until(&alerts, |s| s.dropped == 2).await.queued, 0);
    receiver.nothing_more();
    alerts.retry_dead("ops").unwrap();
    assert_eq!(receiver.next().await.header("webhook-id"), "n1");
    assert_eq!(receiver.next().await.header("webhook-id"), "n2");
    receiver.script.lock().unwrap().push_back(Reply::Status(410));
    alerts.tell(&notice("n3", NoticeEvent::Opened, "c"));
    until(&alerts, |s| s.disabled.is_some()).await;
    receiver.next().await;
    t.timeout = Duration::from_secs(9);
    alerts.replace(vec![t]);
    alerts.tell(&notice("n4", NoticeEvent::Opened, "d"));
    assert_eq!(receiver.next().await.header("webhook-id"), "n4");
}

#[tokio::test]
async fn ends_are_told_however_full_the_queue_is() {
    let mut t = target("ops", &nobody().await);
    let pace = Pace { room: 4, ..FAST };
    let alerts = Alerts::paced(vec![t.clone()], options(None), pace);
    for i in 0..40 {
        alerts.tell(&notice(&format!("o{i}"), NoticeEvent::Opened, &format!("i{i}")));
    }
    for i in 0..40 {
        alerts.tell(&notice(&format!("r{i}"), NoticeEvent::Resolved, &format!("i{i}")));
    }
    let mut receiver = Receiver::start(None, []).await;
    t.url = Secret::new(&*receiver.url);
    alerts.replace(vec![t]);
    assert!(alerts.drain(PATIENCE).await);
    let mut ends = 0;
    while let Ok(got) = receiver.got.try_recv() {
        ends += usize::from(got.header("webhook-id").starts_with('r'));
    }
    assert_eq!(ends, 40);
}

#[tokio::test]
async fn one_in_trouble_delays_no_other() {
    let mut good = Receiver::start(None, []).await;
    let silent = Receiver::start(None, std::iter::repeat_with(|| Reply::Never).take(10)).await;
    let alerts = start(vec![
        target("silent", &silent.url),
        target("dead", &nobody().await),
        target("good", &good.url),
    ]);
    for i in 0..50 {
        alerts.tell(&notice(&format!("n{i}"), NoticeEvent::Opened, &format!("i{i}")));
    }
    for i in 0..50 {
        assert_eq!(good.next().await.header("webhook-id"), format!("n{i}"));
    }
}

#[tokio::test]
async fn an_adhoc_target_is_judged_again_when_it_is_connected_to() {
    let mut receiver = Receiver::start(None, []).await;
    let ledger = Ledger::default();
    let open = AllowedDestinations {
        hosts: vec!["localhost".to_owned()],
        public: false,
        schemes: vec!["http".to_owned()],
    };
    let alerts = Alerts::paced(
        Vec::new(),
        Options {
            destinations: open.clone(),
            ..options(Some(ledger.hook()))
        },
        FAST,
    );
    let at = Clock::system().wall();
    let delivery = |id: &str, allowed: &AllowedDestinations| {
        Delivery::adhoc(&notice(id, NoticeEvent::Opened, "a"), &receiver.url, allowed, at).unwrap()
    };
    let (one, two) = (delivery("n1", &open), delivery("n2", &open));
    let name = one.target.clone();
    alerts.deliver(vec![one]);
    assert_eq!(receiver.next().await.header("webhook-id"), "n1");
    until(&alerts, |s| s.delivered == 1).await;
    assert_eq!(status(&alerts).name, name);

    // Allowed by its name when it was given, and by now only if its address is public: it is not.
    let public = AllowedDestinations {
        hosts: Vec::new(),
        public: true,
        schemes: vec!["http".to_owned()],
    };
    alerts.allow(public);
    alerts.deliver(vec![two.clone()]);
    let failed = async {
        while ledger.fates(&two.id).is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, failed).await.expect("it fails");
    receiver.nothing_more();
    let told = ledger.told.lock().unwrap().clone();
    let Fate::Failed { error, .. } = &told.iter().find(|s| s.id == two.id).unwrap().fate else {
        panic!("{told:?}");
    };
    assert!(
        error.contains("not on the public internet") && !error.contains("secret-path"),
        "{error}"
    );

    alerts.allow(AllowedDestinations {
        public: false,
        ..AllowedDestinations::default()
    });
    let three = Delivery {
        id: "n3".to_owned(),
        ..two
    };
    alerts.deliver(vec![three]);
    assert_eq!(ledger.fates("n3"), ["dead"]);
}

#[tokio::test]
async fn a_crowd_of_adhoc_targets_is_bounded() {
    let open = AllowedDestinations {
        hosts: vec!["*".to_owned()],
        public: true,
        schemes: vec!["http".to_owned()],
    };
    let alerts = Alerts::paced(
        Vec::new(),
        Options {
            destinations: open.clone(),
            ..options(None)
        },
        FAST,
    );
    let base = nobody().await;
    for i in 0..100 {
        let n = notice("n1", NoticeEvent::Opened, "a");
        alerts.deliver(vec![
            Delivery::adhoc(&n, &format!("{base}/{i}"), &open, Wall::default()).unwrap(),
        ]);
    }
    assert_eq!(alerts.status().len(), 32);
}

#[tokio::test]
async fn nothing_secret_leaves() {
    let canary = "sk-canary-0123456789abcdef";
    let mut receiver = Receiver::start(None, []).await;
    let ledger = Ledger::default();
    let mut chat = target("chat", &receiver.url);
    chat.kind = TargetKind::Discord;
    let alerts = Alerts::paced(
        vec![target("hook", &receiver.url), chat],
        options(Some(ledger.hook())),
        FAST,
    );
    let mut n = notice("n1", NoticeEvent::Opened, "a");
    n.title = format!("calls https://me:{canary}@h.example/x?key={canary} with Bearer {canary}");
    n.subject = canary.to_owned();
    for d in alerts.route(&n) {
        assert!(!serde_json::to_string(&d).unwrap().contains("canary"));
    }
    alerts.tell(&n);
    for _ in 0..2 {
        let body = String::from_utf8(receiver.next().await.body.to_vec()).unwrap();
        assert!(!body.contains("canary"), "{body}");
    }
}

#[tokio::test]
async fn a_thousand_incidents_reach_a_bad_receiver_over_a_restart() {
    let mut luck = 7_u32;
    let script = std::iter::repeat_with(move || {
        luck = luck.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match luck >> 28 {
            0 => Reply::Status(500),
            1 => Reply::Status(503),
            2 => Reply::With(429, "retry-after", "0".to_owned(), ""),
            _ => Reply::Status(200),
        }
    });
    let mut receiver = Receiver::start(None, script.take(3000)).await;
    let ledger = Ledger::default();
    let pace = Pace {
        base: Duration::from_millis(1),
        cap: Duration::from_millis(2),
        room: Pace::default().room,
    };
    let t = target("ops", &receiver.url);
    let first = Alerts::paced(vec![t.clone()], options(Some(ledger.hook())), pace);
    for i in 0..1000 {
        ledger.tell(
            &first,
            &notice(&format!("o{i}"), NoticeEvent::Opened, &format!("i{i}")),
        );
        ledger.tell(
            &first,
            &notice(&format!("r{i}"), NoticeEvent::Resolved, &format!("i{i}")),
        );
    }
    let mut order: Vec<String> = Vec::new();
    while order.len() < 400 {
        order.push(receiver.next().await.header("webhook-id").to_owned());
    }
    drop(first);
    let second = Alerts::paced(vec![t], options(Some(ledger.hook())), pace);
    second.deliver(ledger.left());
    let all = async {
        while !ledger.kept.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE * 3, all)
        .await
        .expect("some are left");
    while let Ok(got) = receiver.got.try_recv() {
        order.push(got.header("webhook-id").to_owned());
    }
    let told = ledger.told.lock().unwrap();
    let delivered = told.iter().filter(|s| s.fate == Fate::Delivered).count();
    let failed = told
        .iter()
        .filter(|s| matches!(s.fate, Fate::Failed { .. }))
        .count();
    assert_eq!(delivered, 2000);
    assert!(failed > 100, "{failed}");
    // What was under way when the first life ended may come twice; nothing else does.
    assert!(order.len() <= 2000 + failed + 1, "{} came", order.len());
    let mut last = std::collections::HashMap::new();
    for (at, id) in order.iter().enumerate() {
        last.insert(id.as_str(), at);
    }
    for i in 0..1000 {
        assert!(
            last[format!("o{i}").as_str()] < last[format!("r{i}").as_str()],
            "{i}"
        );
    }
}
