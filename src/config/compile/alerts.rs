//! Alert targets.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::value_or;
use crate::alert::{Target, TargetKind};
use crate::config::at::At;
use crate::config::check::Check;
use crate::config::file::{AlertFile, AlertKindWord, SeverityWord};
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
        url: given_url,
        url_file,
        secret,
        secret_file,
        headers,
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
    let named = given_url.is_some() || url_file.is_some();
    let target_url = check.secret("url", given_url, url_file);
    if !named {
        check.missing(place, "url", "set `url`, or `url_file` to a file that holds it");
    }
    // The URL often is the credential itself: nothing of it is told.
    let target_url = target_url.filter(|u| match url::target(u.value.expose()) {
        Ok(()) => true,
        Err((why, hint)) => {
            check.problem(u.place, format!("`url`: {why}"), hint);
            false
        }
    });
    let secret_place = secret.as_ref().or(secret_file.as_ref()).map(|s| s.place);
    let secret = check.secret("secret", secret, secret_file).map(|s| s.value);
    let headers_place = headers.first_key_value().map(|(k, _)| k.place);
    let headers = headers
        .into_iter()
        .filter_map(|(name, value)| header(&name, value, check))
        .collect();
    let kind = match value_or(kind, AlertKindWord::Webhook) {
        AlertKindWord::Webhook => TargetKind::Webhook { secret, headers },
        AlertKindWord::Slack => {
            if let Some(place) = secret_place {
                check.problem(
                    place,
                    "Slack takes no signature",
                    "remove `secret`, or set kind: webhook",
                );
            }
            if let Some(place) = headers_place {
                check.problem(
                    place,
                    "Slack takes no further headers",
                    "remove `headers`, or set kind: webhook",
                );
            }
            TargetKind::Slack
        }
    };
    let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
    Some(Target {
        kind,
        min_severity: min_severity.map_or(Severity::Info, |s| severity(s.value)),
        timeout: check.duration("timeout", timeout, defaults::ALERT_TIMEOUT, second..=120 * second),
        give_up_after: check.duration(
            "give_up_after",
            give_up_after,
            defaults::ALERT_GIVE_UP,
            second..=7 * day,
        ),
        ca_files: ca_files.iter().map(|f| check.path("ca_files", f)).collect(),
        url: target_url?.value,
        name: name?.value,
    })
}

fn header(name: &At<String>, value: At<String>, check: &mut Check<'_>) -> Option<(HeaderName, Secret)> {
    // What the delivery itself says about its body cannot be said twice.
    const OURS: [&str; 6] = [
        "host",
        "content-length",
        "content-type",
        "transfer-encoding",
        "connection",
        "webhook-id",
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
