//! What happens when an upstream fails: plans for failover without a circle, breakers, own keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::{model_pattern, value_or};
use crate::config::at::At;
use crate::config::check::Check;
use crate::config::defaults;
use crate::config::file::{BreakerFile, CredentialsFile, FAILURES, RetriesFile, RetryOnText, StreamsFile};
use crate::config::problem::Place;
use crate::config::suggest;
use crate::enforce::failover::{
    Breaker, Credentials, KeyHeader, ModelMap, RetryBudget, RetryOn, StreamLimits,
};
use crate::enforce::policy::Upstream;
use crate::types::ids::UpstreamName;
use crate::types::usage::Cost;

/// Further attempts of one request at most.
const MAX_HOPS: usize = 3;

/// Headers that say something about the request itself.
const NOT_FOR_KEYS: [&str; 8] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "content-encoding",
    "accept-encoding",
    "transfer-encoding",
    "te",
];

/// The names that an upstream gives for its failover, with their places.
pub(super) type Wanted = (UpstreamName, Vec<At<String>>);

/// Fills in the plans of all upstreams: which are tried, in order, those of the listed ones included.
pub(super) fn plans(upstreams: &mut [Arc<Upstream>], wanted: &[Wanted], check: &mut Check<'_>) {
    let mut sound = true;
    for (from, list) in wanted {
        let Some(own) = upstreams.iter().find(|u| u.name == *from).cloned() else {
            continue;
        };
        for (at, name) in list.iter().enumerate() {
            let others: Vec<&str> = upstreams
                .iter()
                .map(|u| u.name.as_str())
                .filter(|n| *n != from.as_str())
                .collect();
            if name.value == from.as_str() {
                check.problem(
                    name.place,
                    "an upstream cannot stand in for itself",
                    "name another upstream",
                );
                sound = false;
                continue;
            }
            if !check.known("upstream", "upstreams", name, &others) {
                sound = false;
                continue;
            }
            if list.iter().take(at).any(|n| n.value == name.value) {
                let text = format!("`{}` is listed twice", check.quote(name.place, &name.value));
                check.problem(name.place, text, "remove one of them");
                sound = false;
            }
            let to = upstreams.iter().find(|u| u.name.as_str() == name.value);
            if let Some(to) = to.filter(|to| !share_a_dialect(&own, to)) {
                check.problem(
                    name.place,
                    format!("`{}` serves no dialect that `{from}` serves", to.name),
                    "name an upstream of the same dialect; set `families` where it serves more than is told here",
                );
                sound = false;
            }
        }
    }
    if !sound {
        return;
    }
    for (from, list) in wanted {
        let mut plan = Vec::new();
        let mut path = vec![from.as_str()];
        if let Err(circle) = follow(list, wanted, &mut path, &mut plan) {
            let place = list.first().map_or(Place::Whole, |n| n.place);
            check.problem(
                place,
                format!("failover goes round in a circle: {circle}"),
                "remove one of these links: a request must come to an end",
            );
            continue;
        }
        if let Some(beyond) = plan.get(MAX_HOPS) {
            let place = list.last().map_or(Place::Whole, |n| n.place);
            check.problem(
                place,
                format!(
                    "failover would try {} upstreams (`{beyond}` is one too many)",
                    plan.len()
                ),
                format!("at most {MAX_HOPS}, those of the listed ones included"),
            );
            continue;
        }
        if let Some(upstream) = upstreams.iter_mut().find(|u| u.name == *from) {
            Arc::make_mut(upstream).failover = plan.into_iter().map(UpstreamName::from).collect();
        }
    }
}

/// Whether some dialect is served by both, as far as is told.
fn share_a_dialect(a: &Upstream, b: &Upstream) -> bool {
    a.families.is_empty() || b.families.is_empty() || a.families.iter().any(|f| b.families.contains(f))
}

/// Adds the listed ones to the plan, each followed by its own; `Err` is a circle in words.
fn follow<'a>(
    list: &'a [At<String>],
    wanted: &'a [Wanted],
    path: &mut Vec<&'a str>,
    plan: &mut Vec<&'a str>,
) -> Result<(), String> {
    for name in list {
        let name = name.value.as_str();
        if let Some(at) = path.iter().position(|n| *n == name) {
            let circle: Vec<&str> = path.iter().skip(at).copied().chain([name]).collect();
            return Err(circle.join(" → "));
        }
        if plan.contains(&name) {
            continue;
        }
        plan.push(name);
        if let Some((_, more)) = wanted.iter().find(|(n, _)| n.as_str() == name) {
            path.push(name);
            follow(more, wanted, path, plan)?;
            path.pop();
        }
    }
    Ok(())
}

/// What counts as failed.
pub(super) fn retry_on(given: Option<Vec<At<RetryOnText>>>, check: &mut Check<'_>) -> RetryOn {
    let Some(list) = given else {
        return defaults::retry_on();
    };
    let mut on = RetryOn::NOTHING;
    for At { value, place } in list {
        let text = value.0.text();
        let status = text.parse::<u16>().ok().filter(|s| (400..600).contains(s));
        match (text.as_ref(), status) {
            (_, Some(status)) => on.statuses.push(status),
            ("connect_error", _) => on.connect_error = true,
            ("first_byte_timeout", _) => on.first_byte_timeout = true,
            ("first_event_error", _) => on.first_event_error = true,
            (word, None) => {
                let quoted = check.quote(place, word);
                let hint = match suggest::nearest(word, FAILURES) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("one of {}, or a status from 400 to 599", FAILURES.join(", ")),
                };
                check.problem(place, format!("`{quoted}` is not a failure"), hint);
            }
        }
    }
    on.statuses.sort_unstable();
    on.statuses.dedup();
    on
}

/// When it is left alone.
pub(super) fn breaker(file: BreakerFile, check: &mut Check<'_>) -> Option<Breaker> {
    let BreakerFile {
        failures,
        within,
        open_for,
    } = file;
    let d = defaults::BREAKER;
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3_600));
    let failures = check.count("failures", failures, u64::from(d.failures), 0..=1_000_000);
    let breaker = Breaker {
        failures: u32::try_from(failures).unwrap_or(d.failures),
        within: check.duration("within", within, d.within, second..=hour),
        open_for: check.duration("open_for", open_for, d.open_for, second..=hour),
    };
    (breaker.failures > 0).then_some(breaker)
}

/// What models are called there.
pub(super) fn model_map(given: BTreeMap<At<String>, At<String>>, check: &mut Check<'_>) -> ModelMap {
    let mut pairs = Vec::with_capacity(given.len());
    for (from, to) in given {
        let sound = model_pattern(&from, check) & check.name("model", &to);
        if to.value.contains('*') {
            check.problem(
                to.place,
                "a model is called by one name, not by a pattern",
                "write the name of a model",
            );
        } else if sound {
            pairs.push((from.value, to.value));
        }
    }
    ModelMap::new(pairs)
}

/// Its own key.
pub(super) fn credentials(
    file: CredentialsFile,
    provider: &str,
    check: &mut Check<'_>,
) -> Option<Credentials> {
    let CredentialsFile {
        api_key,
        api_key_file,
        header,
    } = file;
    let given = api_key.is_some() || api_key_file.is_some();
    let key = check.secret("api_key", api_key, api_key_file);
    let named = match header {
        None => KeyHeader::of_provider(provider),
        Some(header) => {
            if !given && !check.told_about(header.place, &["api_key", "api_key_file"]) {
                check.problem(
                    header.place,
                    "a header for a key that is not given",
                    "set api_key or api_key_file, or remove `header`",
                );
            }
            match header.value.trim().to_ascii_lowercase().parse::<HeaderName>() {
                Ok(name) if NOT_FOR_KEYS.contains(&name.as_str()) => {
                    check.problem(
                        header.place,
                        format!("`{name}` cannot hold a key"),
                        "name the header that the API expects its key in, as x-api-key",
                    );
                    return None;
                }
                Ok(name) => KeyHeader::Named(name),
                Err(_) => {
                    let quoted = check.quote(header.place, &header.value);
                    check.problem(
                        header.place,
                        format!("`{quoted}` is not the name of a header"),
                        "letters, digits and - only, as x-api-key",
                    );
                    return None;
                }
            }
        }
    };
    let key = key?;
    match Credentials::new(key.value.expose(), named) {
        Ok(credentials) => Some(credentials),
        Err(_) => {
            check.problem(
                key.place,
                "`api_key` holds what no header may hold",
                "put it into one line, without control characters",
            );
            None
        }
    }
}

/// The bound on further attempts.
pub(super) fn retries(file: RetriesFile, check: &mut Check<'_>) -> RetryBudget {
    let RetriesFile {
        budget_percent,
        min_per_minute,
    } = file;
    let d = defaults::RETRIES;
    let least = check.count(
        "min_per_minute",
        min_per_minute,
        u64::from(d.min_per_minute),
        0..=1_000_000,
    );
    RetryBudget {
        percent: check.number("budget_percent", budget_percent, d.percent, 0.0..=100.0),
        min_per_minute: u32::try_from(least).unwrap_or(d.min_per_minute),
    }
}

/// When streams are ended.
pub(super) fn streams(file: StreamsFile, check: &mut Check<'_>) -> StreamLimits {
    let StreamsFile {
        cut_repetition,
        max_output_tokens,
        max_cost_usd,
    } = file;
    StreamLimits {
        cut_repetition: value_or(cut_repetition, false),
        max_output_tokens: max_output_tokens
            .map(|t| check.count("max_output_tokens", Some(t), 1, 1..=1_000_000_000)),
        max_cost: max_cost_usd.map(|c| {
            let usd = check.number("max_cost_usd", Some(c), 1.0, 1e-6..=1e6);
            Cost::from_nanos((usd * 1e9).round() as u64)
        }),
    }
}
