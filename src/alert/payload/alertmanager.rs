//! What Alertmanager is told, and what it would tell its own receivers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::refresh::Known;
use super::text::{Markup, fitted};
use super::{event_word, facts, offers};
use crate::types::notice::{Notice, NoticeEvent, Severity};
use crate::types::time::Wall;

/// Our own bounds, in UTF-16 units.
const LABEL_MAX: usize = 512;
const ANNOTATION_MAX: usize = 4096;
const FACTS_MAX: usize = 40;
const URL_MAX: usize = 2048;
/// Reminders that may be lost before the receiver takes an alert for over.
const LOST: u32 = 4;
/// The time that stands for none.
const NEVER: &str = "0001-01-01T00:00:00Z";

type Texts = BTreeMap<String, String>;

/// Alerts of the API v2. What is open ends a few reminders from now, so that it ends by itself when fusebox is gone.
pub(super) fn alerts(known: &[Known], more: &[(String, String)], every: Duration, now: Wall) -> Vec<Value> {
    let mut all = Vec::with_capacity(known.len());
    for k in known {
        let lapse = i64::try_from(every.saturating_mul(LOST).as_millis()).unwrap_or(i64::MAX);
        let ends = k
            .ended
            .unwrap_or_else(|| Wall::from_unix_millis(now.unix_millis().saturating_add(lapse)));
        if let Some(was) = k.was {
            all.push(alert(k, was, more, k.ended.unwrap_or(k.notice.at)));
        }
        all.push(alert(k, k.severity, more, ends));
    }
    all
}

fn alert(known: &Known, severity: Severity, more: &[(String, String)], ends: Wall) -> Value {
    let notice = &known.notice;
    let mut labels = labels(notice, severity);
    for (name, value) in more {
        labels
            .entry(name.clone())
            .or_insert_with(|| fitted(Markup::None, &[value], LABEL_MAX));
    }
    let mut alert = json!({
        "labels": labels,
        "annotations": annotations(notice),
        "startsAt": known.began.min(ends),
        "endsAt": ends,
    });
    if let Some(page) = offers(notice, URL_MAX).iter().find(|o| o.id == "open_incident") {
        alert["generatorURL"] = page.url.into();
    }
    alert
}

/// What makes the alert this one and no other: nothing in it changes while the incident is open, but the severity,
/// and whoever tells of another one ends the former.
fn labels(notice: &Notice, severity: Severity) -> Texts {
    let mut labels = Texts::new();
    let mut set = |name: &str, value: &str| {
        labels.insert(name.to_owned(), fitted(Markup::None, &[value], LABEL_MAX));
    };
    set("alertname", notice.rule.as_str());
    set("incident", notice.incident.as_str());
    set("severity", severity.name());
    set("source", "fusebox");
    set("subject", &notice.subject);
    labels
}

fn annotations(notice: &Notice) -> Texts {
    let mut texts = Texts::new();
    texts.insert(
        "summary".to_owned(),
        fitted(Markup::None, &[&notice.title], ANNOTATION_MAX),
    );
    let mut lines = vec![event_word(notice.event).to_owned()];
    lines.extend(
        facts(notice)
            .iter()
            .take(FACTS_MAX)
            .map(|(name, value)| format!("{name}: {value}")),
    );
    let lines = lines.join("\n");
    texts.insert(
        "description".to_owned(),
        fitted(Markup::None, &[&lines], ANNOTATION_MAX),
    );
    if let Some(decide) = offers(notice, URL_MAX).iter().find(|o| o.id == "decide") {
        texts.insert("approval_url".to_owned(), decide.url.to_owned());
    }
    texts
}

/// The body that Alertmanager sends to its webhook receivers, version 4: one incident is one group of one alert.
pub(super) fn group(notice: &Notice) -> Value {
    let ended = notice.event == NoticeEvent::Resolved;
    let status = if ended { "resolved" } else { "firing" };
    let labels = labels(notice, notice.severity);
    let annotations = annotations(notice);
    let id = fitted(Markup::None, &[notice.incident.as_str()], LABEL_MAX);
    let quoted = Value::from(id.as_str());
    let ends = if ended {
        notice.at.to_string()
    } else {
        NEVER.to_owned()
    };
    let page = offers(notice, URL_MAX)
        .into_iter()
        .find(|o| o.id == "open_incident")
        .map(|o| o.url)
        .unwrap_or_default();
    json!({
        "version": "4",
        "groupKey": format!("{{}}:{{incident={quoted}}}"),
        "truncatedAlerts": 0,
        "status": status,
        "receiver": "fusebox",
        "groupLabels": {"incident": id},
        "commonLabels": labels,
        "commonAnnotations": annotations,
        "externalURL": page,
        "alerts": [{
            "status": status,
            "labels": labels,
            "annotations": annotations,
            "startsAt": notice.at,
            "endsAt": ends,
            "generatorURL": page,
            "fingerprint": fingerprint(&labels),
        }],
    })
}

/// Sixteen hexadecimal digits of the labels, as many as Alertmanager's own.
fn fingerprint(labels: &Texts) -> String {
    let mut hash = Sha256::new();
    for (name, value) in labels {
        // The severity may change, the alert stays.
        if name != "severity" {
            hash.update(name);
            hash.update([0xff]);
            hash.update(value);
            hash.update([0xff]);
        }
    }
    hash.finalize()
        .iter()
        .take(8)
        .map(|b| format!("{b:02x}"))
        .collect()
}
