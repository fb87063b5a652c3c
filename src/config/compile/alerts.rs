//! Alert targets.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::value_or;
use crate::alert::{AllowedDestinations, Grouping, Target, TargetKind, WebhookFormat};
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::file::{
    AlertFile, AlertFormatWord, AlertKindWord, GroupFile, NotificationWebhooksFile, SeverityWord,
};
use crate::config::problem::Place;
use crate::config::{defaults, url};
use crate::types::notice::Severity;
use crate::types::secret::Secret;

/// The alert targets.
pub(super) fn targets(list: Vec<At<AlertFile>>, check: &mut Check<'_>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::with_capacity(list.len());
    for item in list {
        let name = item.value.name.clone();
        if let Some(name) = name.filter(|n| targets.iter().any(|t| t.name == n.value)) {
            let text = format!(
                "two alert targets named `{}`",
                check.quote(name.place, &name.value)
            );
            check.problem(name.place, text, "names are unique; rename one of them");
        }
        targets.extend(target(item, check));
    }
    targets
}

fn target(item: At<AlertFile>, check: &mut Check<'_>) -> Option<Target> {
    let At { value, place } = item;
    let AlertFile {
        name,
        kind,
        url,
        url_file,
        urls,
        routing_key,
        routing_key_file,
        secret,
        secret_file,
        headers,
        format,
        source,
        labels,
        resend_every,
        spacing,
        group,
        min_severity,
        timeout,
        give_up_after,
        ca_files,
    } = value;
    if name.is_none() {
        check.missing(
            place,
            "name",
            "a short word, as on-call: steps and status name the target by it",
        );
    }
    let name = name.filter(|n| check.name("name", n));
    let word = value_or(kind, AlertKindWord::Webhook);
    // What is only for some kinds, where it stands, and for which.
    let webhook: &[AlertKindWord] = &[AlertKindWord::Webhook];
    let alertmanager: &[AlertKindWord] = &[AlertKindWord::Alertmanager];
    let pagerduty: &[AlertKindWord] = &[AlertKindWord::Pagerduty];
    let with_headers: &[AlertKindWord] = &[AlertKindWord::Webhook, AlertKindWord::Alertmanager];
    for (key, at, kinds) in [
        ("secret", secret.as_ref().map(|s| s.place), webhook),
        ("secret_file", secret_file.as_ref().map(|s| s.place), webhook),
        ("format", format.as_ref().map(|f| f.place), webhook),
        ("source", source.as_ref().map(|s| s.place), webhook),
        (
            "headers",
            headers.first_key_value().map(|(k, _)| k.place),
            with_headers,
        ),
        (
            "labels",
            labels.first_key_value().map(|(k, _)| k.place),
            alertmanager,
        ),
        (
            "resend_every",
            resend_every.as_ref().map(|r| r.place),
            alertmanager,
        ),
        ("urls", urls.as_ref().map(|u| u.place), alertmanager),
        ("routing_key", routing_key.as_ref().map(|r| r.place), pagerduty),
        (
            "routing_key_file",
            routing_key_file.as_ref().map(|r| r.place),
            pagerduty,
        ),
        ("group", group.as_ref().map(|g| g.place), CHATS),
    ] {
        if let Some(at) = at
            && !kinds.contains(&word)
        {
            let kinds: Vec<&str> = kinds.iter().map(|k| kind_name(*k)).collect();
            check.problem(
                at,
                format!("`{key}` is not for kind: {}", kind_name(word)),
                format!("remove it; it is for kind: {}", kinds.join(", ")),
            );
        }
    }
    let urls = addresses(place, url, url_file, urls, word, check);
    let secret = check.secret("secret", secret, secret_file).map(|s| s.value);
    let headers: Vec<_> = headers
        .into_iter()
        .filter_map(|(name, value)| header(&name, value, check))
        .collect();
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    let resend_every = check.duration(
        "resend_every",
        resend_every,
        defaults::ALERT_RESEND,
        second..=60 * 60 * second,
    );
    let labels = labels
        .into_iter()
        .filter_map(|(name, value)| label(&name, value, check))
        .collect();
    let no_key = word == AlertKindWord::Pagerduty && routing_key.is_none() && routing_key_file.is_none();
    let routing_key = check
        .secret("routing_key", routing_key, routing_key_file)
        .map(|k| k.value);
    if no_key {
        check.missing(
            place,
            "routing_key",
            "the integration key of a service with an Events API v2 integration; or routing_key_file",
        );
    }
    let format = webhook_format(format, source, check);
    let (first, others) = match urls {
        Some(urls) => {
            let mut urls = urls.into_iter();
            (urls.next(), urls.collect())
        }
        None => (None, Vec::new()),
    };
    let kind = match word {
        AlertKindWord::Webhook => TargetKind::Webhook {
            secret,
            headers,
            format,
        },
        AlertKindWord::Slack => TargetKind::Slack,
        AlertKindWord::Pagerduty => TargetKind::PagerDuty {
            routing_key: routing_key.unwrap_or_else(|| Secret::new("")),
        },
        AlertKindWord::Alertmanager => TargetKind::Alertmanager {
            others,
            resend_every,
            labels,
            headers,
        },
        AlertKindWord::Teams => TargetKind::Teams,
        AlertKindWord::Discord => TargetKind::Discord,
    };
    let group = kind.is_chat().then(|| grouping(group, check));
    Some(Target {
        min_severity: min_severity.map_or(Severity::Info, |s| severity(s.value)),
        timeout: check.duration("timeout", timeout, defaults::ALERT_TIMEOUT, second..=120 * second),
        give_up_after: check.duration(
            "give_up_after",
            give_up_after,
            defaults::ALERT_GIVE_UP,
            second..=7 * day,
        ),
        spacing: check.duration("spacing", spacing, kind.spacing(), Duration::ZERO..=60 * second),
        group,
        ca_files: ca_files.iter().map(|f| check.path("ca_files", f)).collect(),
        kind,
        url: first?,
        name: name?.value,
    })
}

/// Every URL of a target; `None` when there is none that can be used.
fn addresses(
    place: Place,
    url: Opt<String>,
    url_file: Opt<String>,
    urls: Opt<Vec<At<String>>>,
    kind: AlertKindWord,
    check: &mut Check<'_>,
) -> Option<Vec<Secret>> {
    let named = url.is_some() || url_file.is_some();
    let one = check.secret("url", url, url_file);
    let all = match urls {
        Some(list) if named => {
            check.problem(list.place, "both `url` and `urls` are given", "keep one of them");
            return None;
        }
        Some(list) => {
            if list.value.is_empty() {
                check.problem(
                    list.place,
                    "`urls` is empty",
                    "list the base URL of each member, or set `url`",
                );
            }
            list.value
                .into_iter()
                .map(|u| At {
                    value: Secret::new(u.value.trim()),
                    place: u.place,
                })
                .collect()
        }
        None if !named && kind == AlertKindWord::Pagerduty => {
            return Some(vec![Secret::new(defaults::PAGERDUTY_URL)]);
        }
        None if !named => {
            check.missing(place, "url", "set `url`, or `url_file` to a file that holds it");
            return None;
        }
        None => Vec::from_iter(one),
    };
    // The URL often is the credential itself: nothing of it is told.
    let mut good = Vec::with_capacity(all.len());
    for u in all {
        match url::target(u.value.expose()) {
            Ok(()) => good.push(u.value),
            Err((why, hint)) => check.problem(u.place, format!("`url`: {why}"), hint),
        }
    }
    (!good.is_empty()).then_some(good)
}

fn webhook_format(format: Opt<AlertFormatWord>, source: Opt<String>, check: &mut Check<'_>) -> WebhookFormat {
    let word = value_or(format, AlertFormatWord::Standard);
    if let Some(source) = &source {
        if word != AlertFormatWord::Cloudevents {
            check.problem(
                source.place,
                "`source` is for CloudEvents",
                "remove it, or set format: cloudevents",
            );
        } else if source.value.trim().is_empty() || source.value.contains(char::is_whitespace) {
            check.problem(
                source.place,
                "`source` is no URI reference",
                "write it as /fusebox/NAMESPACE/POD, without blanks",
            );
        }
    }
    match word {
        AlertFormatWord::Standard => WebhookFormat::Standard,
        AlertFormatWord::Alertmanager => WebhookFormat::Alertmanager,
        AlertFormatWord::Cloudevents => WebhookFormat::CloudEvents {
            source: source.map_or_else(
                || defaults::CLOUDEVENTS_SOURCE.to_owned(),
                |s| s.value.trim().to_owned(),
            ),
        },
    }
}

fn grouping(given: Opt<GroupFile>, check: &mut Check<'_>) -> Grouping {
    let GroupFile { wait, more_than, max } = given.map(|g| g.value).unwrap_or_default();
    let default = Grouping::DEFAULT;
    Grouping {
        wait: check.duration(
            "wait",
            wait,
            default.wait,
            Duration::ZERO..=Duration::from_secs(60),
        ),
        more_than: check.length("more_than", more_than, default.more_than, 1..=1000),
        list: check.length("max", max, default.list, 1..=100),
    }
}

/// A label of Alertmanager's.
fn label(name: &At<String>, value: At<String>, check: &mut Check<'_>) -> Option<(String, String)> {
    // What makes one alert differ from another is ours to say.
    const OURS: [&str; 5] = ["alertname", "incident", "severity", "source", "subject"];
    let mut letters = name.value.chars();
    let good = letters
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && letters.all(|c| c.is_ascii_alphanumeric() || c == '_');
    if !good {
        let quoted = check.quote(name.place, &name.value);
        check.problem(
            name.place,
            format!("`{quoted}` is not the name of a label"),
            "letters, digits and _ only, and no digit first",
        );
        return None;
    }
    if OURS.contains(&name.value.as_str()) {
        let text = format!("label `{}` is set by fusebox", name.value);
        check.problem(name.place, text, "remove it");
        return None;
    }
    Some((name.value.clone(), value.value))
}

/// Where ad-hoc targets may be.
pub(super) fn destinations(given: NotificationWebhooksFile, check: &mut Check<'_>) -> AllowedDestinations {
    let NotificationWebhooksFile {
        hosts,
        public,
        plain_http,
    } = given;
    let mut schemes = vec!["https".to_owned()];
    if value_or(plain_http, false) {
        schemes.push("http".to_owned());
    }
    for host in &hosts {
        if host.value.trim().is_empty() || host.value.contains(['/', '@', ' ']) {
            let quoted = check.quote(host.place, &host.value);
            check.problem(
                host.place,
                format!("`{quoted}` is not a host"),
                "write a host name without scheme and port, as hooks.slack.com or *.corp.example",
            );
        }
    }
    AllowedDestinations {
        hosts: hosts.into_iter().map(|h| h.value).collect(),
        public: value_or(public, true),
        schemes,
    }
}

const CHATS: &[AlertKindWord] = &[AlertKindWord::Slack, AlertKindWord::Teams, AlertKindWord::Discord];

const fn kind_name(word: AlertKindWord) -> &'static str {
    match word {
        AlertKindWord::Webhook => "webhook",
        AlertKindWord::Slack => "slack",
        AlertKindWord::Pagerduty => "pagerduty",
        AlertKindWord::Alertmanager => "alertmanager",
        AlertKindWord::Teams => "teams",
        AlertKindWord::Discord => "discord",
    }
}

fn header(name: &At<String>, value: At<String>, check: &mut Check<'_>) -> Option<(HeaderName, Secret)> {
    // What the delivery itself says about its body cannot be said twice.
    const OURS: [&str; 8] = [
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ];
    let parsed = name.value.to_ascii_lowercase().parse::<HeaderName>();
    let Ok(header) = parsed else {
        let quoted = check.quote(name.place, &name.value);
        check.problem(
            name.place,
            format!("`{quoted}` is not the name of a header"),
            "letters, digits and - only",
        );
        return None;
    };
    if OURS.contains(&header.as_str()) {
        check.problem(name.place, format!("`{header}` is set by fusebox"), "remove it");
        return None;
    }
    if HeaderValue::from_str(value.value.trim()).is_err() {
        check.problem(
            value.place,
            format!("the value of header `{header}` holds control characters"),
            "put it into one line",
        );
        return None;
    }
    Some((header, Secret::new(value.value.trim())))
}

/// The severity that a word stands for.
pub(super) const fn severity(word: SeverityWord) -> Severity {
    match word {
        SeverityWord::Info => Severity::Info,
        SeverityWord::Warning => Severity::Warning,
        SeverityWord::Error => Severity::Error,
        SeverityWord::Critical => Severity::Critical,
    }
}
