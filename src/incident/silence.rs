//! What keeps people from being told, or incidents from being opened: silences, and maintenance windows.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::glob::Glob;
use super::record::SilenceRecord;
use super::rule::Maintenance;
use crate::types::ids::{AgentId, SilenceId};
use crate::types::notice::Severity;
use crate::types::time::{Now, Wall};

/// Silences at a time, ended ones not counted.
const MAX_SILENCES: usize = 1000;
/// Longest time that a silence may last.
const LONGEST: Duration = Duration::from_secs(90 * 86_400);

/// What a silence covers: an incident that fits all of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Matcher {
    /// Names of rules (`*` and `?` match); empty means all.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Names of agents or of other subjects (`*` and `?` match); empty means all.
    #[serde(default)]
    pub agents: Vec<String>,
    /// Only incidents that are not worse than this; none means all.
    #[serde(default)]
    pub max_severity: Option<Severity>,
}

impl Matcher {
    /// Whether it covers an incident of `rule` about `subject` and `agents`. An incident about several agents is
    /// covered when all of them are.
    pub fn covers(&self, rule: &str, subject: &str, agents: &[AgentId], severity: Severity) -> bool {
        let one_of = |patterns: &[String], name: &str| {
            patterns.is_empty() || patterns.iter().any(|p| Glob::new(p).matches(name))
        };
        let whom = if agents.is_empty() {
            one_of(&self.agents, subject)
        } else {
            agents.iter().all(|a| one_of(&self.agents, a.as_str()))
        };
        whom && one_of(&self.rules, rule) && self.max_severity.is_none_or(|max| severity <= max)
    }
}

/// Whom a question about silences is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whom<'a> {
    /// The rule.
    pub(crate) rule: &'a str,
    /// The subject.
    pub(crate) subject: &'a str,
    /// The agents taken in.
    pub(crate) agents: &'a [AgentId],
    /// How bad it is.
    pub(crate) severity: Severity,
}

/// All silences and maintenance windows that were made by people.
#[derive(Debug, Default)]
pub(crate) struct Silences {
    all: BTreeMap<SilenceId, SilenceRecord>,
    made: u64,
}

impl Silences {
    /// Makes one.
    ///
    /// # Errors
    /// When it would last for no time or too long, or there are too many.
    pub(crate) fn add(
        &mut self,
        make: impl FnOnce(SilenceId, Wall, Wall) -> SilenceRecord,
        starts: Option<Wall>,
        length: Duration,
        now: Now,
    ) -> Result<SilenceId, String> {
        if length.is_zero() || length > LONGEST {
            return Err("a silence lasts between one second and 90 days".to_owned());
        }
        self.sweep(now);
        if self.all.len() >= MAX_SILENCES {
            return Err(format!(
                "there are {MAX_SILENCES} silences already; end some of them"
            ));
        }
        let starts = starts.unwrap_or(now.wall);
        let ends = starts.after(length);
        if ends <= now.wall {
            return Err("the silence would be over already".to_owned());
        }
        self.made += 1;
        let id = SilenceId::from(format!(
            "sil-{}-{:04}",
            super::casebook::stamp(now.wall),
            self.made
        ));
        self.all.insert(id.clone(), make(id.clone(), starts, ends));
        Ok(id)
    }

    /// Ends one; `Err` says what it is instead of in force.
    pub(crate) fn end(&mut self, id: &SilenceId, now: Now) -> Result<(), Option<&'static str>> {
        let silence = self.all.get_mut(id).ok_or(None)?;
        if silence.ends <= now.wall {
            return Err(Some("over"));
        }
        silence.ends = now.wall;
        Ok(())
    }

    /// The one that covers an incident now: a silence, or a maintenance window.
    pub(crate) fn covering(&self, maintenance: bool, whom: Whom<'_>, now: Now) -> Option<&SilenceId> {
        self.all
            .values()
            .filter(|s| s.maintenance == maintenance && s.starts <= now.wall && now.wall < s.ends)
            .find(|s| {
                s.matcher
                    .covers(whom.rule, whom.subject, whom.agents, whom.severity)
            })
            .map(|s| &s.id)
    }

    /// One of them.
    pub(crate) fn get(&self, id: &SilenceId) -> Option<&SilenceRecord> {
        self.all.get(id)
    }

    /// Those that are not over, by name.
    pub(crate) fn records(&self, now: Wall) -> Vec<SilenceRecord> {
        self.all.values().filter(|s| s.ends > now).cloned().collect()
    }

    /// Takes back what was written down.
    pub(crate) fn restore(&mut self, silences: Vec<SilenceRecord>) {
        for silence in silences {
            let number = silence
                .id
                .as_str()
                .rsplit('-')
                .next()
                .and_then(|n| n.parse().ok());
            self.made = self.made.max(number.unwrap_or(0));
            self.all.insert(silence.id.clone(), silence);
        }
    }

    fn sweep(&mut self, now: Now) {
        self.all.retain(|_, s| s.ends > now.wall);
    }
}

/// The weekly window of the configuration that covers an incident now.
pub(crate) fn weekly<'a>(windows: &'a [Maintenance], whom: Whom<'_>, now: Wall) -> Option<&'a str> {
    const DAY: i64 = 86_400;
    let seconds = now.unix_millis().div_euclid(1000);
    let (day, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    windows
        .iter()
        .filter(|w| {
            w.matcher
                .covers(whom.rule, whom.subject, whom.agents, whom.severity)
        })
        .find(|w| {
            // One that began on any of the last seven days may still last.
            (0..=7).any(|back| {
                // 1970-01-01 was a Thursday.
                let weekday = (day - back + 3).rem_euclid(7);
                let begun = back * DAY + second - i64::from(w.from);
                let length = i64::try_from(w.length.as_secs()).unwrap_or(i64::MAX);
                w.days.get(usize::try_from(weekday).unwrap_or(0)) == Some(&true)
                    && (0..length).contains(&begun)
            })
        })
        .map(|w| w.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::time::Mono;

    fn matcher(rules: &[&str], agents: &[&str], max_severity: Option<Severity>) -> Matcher {
        let all = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        Matcher {
            rules: all(rules),
            agents: all(agents),
            max_severity,
        }
    }

    #[test]
    fn what_a_matcher_covers() {
        let both: Vec<AgentId> = vec!["a-1".into(), "b-1".into()];
        let table = [
            (matcher(&[], &[], None), true, true),
            (matcher(&["latency_*"], &[], None), true, true),
            (matcher(&["token_*"], &[], None), false, false),
            (matcher(&[], &["a-?"], None), true, false),
            (matcher(&[], &["a-?", "b-*"], None), true, true),
            (matcher(&[], &[], Some(Severity::Warning)), false, false),
            (matcher(&[], &[], Some(Severity::Critical)), true, true),
        ];
        for (m, one, two) in table {
            let covers = |agents: &[AgentId]| m.covers("latency_creep", "a-1", agents, Severity::Error);
            assert_eq!((covers(&both[..1]), covers(&both)), (one, two), "{m:?}");
        }
        assert!(matcher(&[], &["up-*"], None).covers("r", "up-1", &[], Severity::Info));
    }

    #[test]
    fn weekly_windows() {
        // 2026-11-25 is a Wednesday.
        let at = |text: &str| -> Wall { serde_json::from_str(&format!("\"{text}\"")).expect("a time") };
        let mut days = [false; 7];
        days[1] = true;
        let windows = [Maintenance {
            name: "patching".to_owned(),
            matcher: Matcher::default(),
            days,
            from: 22 * 3600,
            length: Duration::from_secs(4 * 3600),
        }];
        let whom = Whom {
            rule: "r",
            subject: "a",
            agents: &[],
            severity: Severity::Warning,
        };
        let table = [
            ("2026-11-24T21:59:59Z", None),
            ("2026-11-24T22:00:00Z", Some("patching")),
            ("2026-11-25T01:59:59Z", Some("patching")),
            ("2026-11-25T02:00:00Z", None),
            ("2026-11-25T22:30:00Z", None),
        ];
        for (time, expected) in table {
            assert_eq!(weekly(&windows, whom, at(time)), expected, "{time}");
        }
    }

    #[test]
    fn a_silence_begins_and_ends() {
        let now = |seconds: i64| Now {
            mono: Mono::ZERO,
            wall: Wall::from_unix_millis(seconds * 1000),
        };
        let make = |id, starts, ends| SilenceRecord {
            id,
            matcher: Matcher::default(),
            maintenance: false,
            starts,
            ends,
            by: "me".to_owned(),
            comment: String::new(),
        };
        let whom = Whom {
            rule: "r",
            subject: "a",
            agents: &[],
            severity: Severity::Warning,
        };
        let mut silences = Silences::default();
        let id = silences
            .add(make, Some(now(100).wall), Duration::from_secs(50), now(10))
            .expect("a silence");
        let covered = |s: &Silences, at| s.covering(false, whom, now(at)).is_some();
        let seen: Vec<bool> = [99, 100, 149, 150]
            .into_iter()
            .map(|at| covered(&silences, at))
            .collect();
        assert_eq!(seen, [false, true, true, false]);
        assert!(silences.covering(true, whom, now(120)).is_none());
        assert_eq!(silences.end(&id, now(120)), Ok(()));
        assert!(!covered(&silences, 121));
        assert_eq!(silences.end(&id, now(121)), Err(Some("over")));
        assert_eq!(silences.end(&"x".into(), now(121)), Err(None));
        assert!(silences.add(make, None, Duration::ZERO, now(1)).is_err());
        assert!(
            silences
                .add(make, Some(now(1).wall), Duration::from_secs(1), now(5))
                .is_err()
        );
    }
}
