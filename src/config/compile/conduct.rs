//! How incidents are put together, brought back and kept quiet.

use std::time::Duration;

use super::value_or;
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::file::{DayWord, GoodVersionFile, IncidentsFile, MaintenanceFile};
use crate::incident::rule::{Conduct, GoodVersion, Maintenance};
use crate::incident::silence::Matcher;

/// The section `incidents`.
pub(super) fn conduct(file: IncidentsFile, check: &mut Check<'_>) -> Conduct {
    let IncidentsFile {
        correlate,
        reopen_within,
        flaps_after,
        good_version,
        maintenance,
    } = file;
    let d = Conduct::default();
    let day = Duration::from_secs(86_400);
    let flaps = check.count("flaps_after", flaps_after, u64::from(d.flaps_after), 1..=1000);
    Conduct {
        correlate: value_or(correlate, d.correlate),
        reopen_within: check.duration(
            "reopen_within",
            reopen_within,
            d.reopen_within,
            Duration::ZERO..=day,
        ),
        flaps_after: u32::try_from(flaps).unwrap_or(d.flaps_after),
        good_version: good(good_version, check),
        maintenance: windows(maintenance, check),
    }
}

fn good(file: GoodVersionFile, check: &mut Check<'_>) -> GoodVersion {
    let GoodVersionFile {
        min_exchanges,
        min_age,
        max_error_rate,
    } = file;
    let d = GoodVersion::default();
    let month = Duration::from_secs(30 * 86_400);
    GoodVersion {
        min_exchanges: check.count("min_exchanges", min_exchanges, d.min_exchanges, 1..=1_000_000_000),
        min_age: check.duration("min_age", min_age, d.min_age, Duration::ZERO..=month),
        max_error_rate: check.share("max_error_rate", max_error_rate, d.max_error_rate, 0.0..=1.0),
    }
}

fn windows(list: Vec<At<MaintenanceFile>>, check: &mut Check<'_>) -> Vec<Maintenance> {
    let mut windows: Vec<Maintenance> = Vec::with_capacity(list.len());
    for At { value, place } in list {
        let MaintenanceFile {
            name,
            rules,
            agents,
            days,
            from,
            lasts,
        } = value;
        for (key, absent, hint) in [
            (
                "name",
                name.is_none(),
                "a short word: incidents that are not opened say it",
            ),
            (
                "from",
                from.is_none(),
                "when it begins in UTC, as from: \"22:00\"",
            ),
            ("lasts", lasts.is_none(), "how long it lasts, as lasts: 4h"),
        ] {
            if absent {
                check.missing(place, key, hint);
            }
        }
        let name = name.filter(|n| check.name("name", n));
        if let Some(n) = name
            .as_ref()
            .filter(|n| windows.iter().any(|w| w.name == n.value))
        {
            let text = format!(
                "two maintenance windows named `{}`",
                check.quote(n.place, &n.value)
            );
            check.problem(n.place, text, "names are unique; rename one of them");
        }
        let minute = Duration::from_secs(60);
        let length = lasts.map(|l| check.duration("lasts", Some(l), minute, minute..=super::LONGEST));
        let from = from.and_then(|f| time_of_day(f, check));
        let matcher = Matcher {
            rules: check.names("rules", rules),
            agents: check.names("agents", agents),
            max_severity: None,
        };
        let mut on = [days.is_empty(); 7];
        for day in &days {
            if let Some(slot) = on.get_mut(number(day.value)) {
                *slot = true;
            }
        }
        if let (Some(name), Some(from), Some(length)) = (name, from, length) {
            windows.push(Maintenance {
                name: name.value,
                matcher,
                days: on,
                from,
                length,
            });
        }
    }
    windows
}

/// Monday is 0.
const fn number(day: DayWord) -> usize {
    match day {
        DayWord::Mon => 0,
        DayWord::Tue => 1,
        DayWord::Wed => 2,
        DayWord::Thu => 3,
        DayWord::Fri => 4,
        DayWord::Sat => 5,
        DayWord::Sun => 6,
    }
}

/// `22:00` in seconds of the day.
fn time_of_day(given: At<String>, check: &mut Check<'_>) -> Option<u32> {
    let text = given.value.trim();
    let part = |digits: &str, below: u32| {
        let two = digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|n: &u32| two && *n < below)
    };
    let seconds = text
        .split_once(':')
        .and_then(|(hour, minute)| Some(part(hour, 24)? * 3_600 + part(minute, 60)? * 60));
    if seconds.is_none() {
        let quoted = check.quote(given.place, text);
        check.problem(
            given.place,
            format!("`{quoted}` is not a time of day"),
            "write hours and minutes in UTC, as \"22:00\"",
        );
    }
    seconds
}

/// The bound on automation, and whether it is stopped.
pub(super) fn automation(
    per_hour: Opt<u64>,
    brake: Opt<bool>,
    default: u32,
    check: &mut Check<'_>,
) -> (u32, bool) {
    let most = check.count(
        "max_actions_per_hour",
        per_hour,
        u64::from(default),
        0..=1_000_000,
    );
    (u32::try_from(most).unwrap_or(default), value_or(brake, false))
}
