//! Versions of agents as their traffic shows them: which is in use, and which was the last good one.

use super::engine::Engine;
use super::record::VersionRecord;
use super::rule::GoodVersion;
use crate::types::ids::{AgentId, AgentVersion, ModelName};
use crate::types::observation::{Observation, Outcome};
use crate::types::time::{Mono, Now};

/// Versions remembered of one agent; the longest unseen makes room.
const MAX_VERSIONS: usize = 8;
/// Agents seen within this time make up the fleet.
const FLEET: std::time::Duration = std::time::Duration::from_secs(3600);

/// The versions of one agent, the one in use last.
#[derive(Debug, Clone, Default)]
pub(crate) struct Versions {
    all: Vec<Seen>,
}

/// One version.
#[derive(Debug, Clone)]
struct Seen {
    version: AgentVersion,
    model: Option<ModelName>,
    first: Now,
    last: Now,
    exchanges: u64,
    errors: u64,
    tokens: u64,
    incidents: u64,
    /// Since the last incident, or since it was seen first.
    well: Stretch,
}

/// A stretch of traffic without an incident.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    since: Mono,
    exchanges: u64,
    errors: u64,
}

impl Versions {
    /// Counts an exchange that ended.
    #[inline]
    pub(crate) fn count(&mut self, o: &Observation, now: Now) {
        let Some(version) = &o.agent_version else { return };
        if matches!(o.outcome, Outcome::Refused | Outcome::ClientAbort) {
            return;
        }
        if self.all.last().is_none_or(|seen| seen.version != *version) {
            self.turn_to(version, o, now);
        }
        let Some(seen) = self.all.last_mut() else { return };
        let error = u64::from(o.is_error());
        seen.last = now;
        seen.exchanges = seen.exchanges.saturating_add(1);
        seen.errors = seen.errors.saturating_add(error);
        seen.tokens = seen.tokens.saturating_add(o.normalised.total().unwrap_or(0));
        seen.well.exchanges = seen.well.exchanges.saturating_add(1);
        seen.well.errors = seen.well.errors.saturating_add(error);
    }

    /// An incident was opened while the last one was in use.
    pub(crate) fn count_incident(&mut self, now: Mono) {
        if let Some(seen) = self.all.last_mut() {
            seen.incidents = seen.incidents.saturating_add(1);
            seen.well = Stretch {
                since: now,
                exchanges: 0,
                errors: 0,
            };
        }
    }

    /// The one in use.
    pub(crate) fn in_use(&self) -> Option<&AgentVersion> {
        self.all.last().map(|seen| &seen.version)
    }

    /// The one in use, if it was used since `since`.
    pub(crate) fn used_since(&self, since: Mono) -> Option<&AgentVersion> {
        let seen = self.all.last().filter(|seen| seen.last.mono > since)?;
        Some(&seen.version)
    }

    /// The one used last among those that have shown enough healthy traffic, other than `current`.
    pub(crate) fn last_good(
        &self,
        current: &AgentVersion,
        must: &GoodVersion,
    ) -> Result<AgentVersion, String> {
        let mut others = self.all.iter().filter(|s| s.version != *current).peekable();
        if others.peek().is_none() {
            return Err("no version before this one was seen".to_owned());
        }
        others
            .filter(|seen| seen.is_good(must))
            .max_by_key(|seen| seen.last.mono)
            .map(|seen| seen.version.clone())
            .ok_or_else(|| {
                format!(
                    "no version before this one has shown {} healthy exchanges over {} s",
                    must.min_exchanges,
                    must.min_age.as_secs()
                )
            })
    }

    /// Whether one of them has shown enough healthy traffic.
    pub(crate) fn is_good(&self, version: &AgentVersion, must: &GoodVersion) -> bool {
        self.all
            .iter()
            .any(|seen| seen.version == *version && seen.is_good(must))
    }

    /// All of them, newest first.
    pub(crate) fn records(&self, agent: &AgentId, must: &GoodVersion) -> Vec<VersionRecord> {
        let record = |seen: &Seen| VersionRecord {
            agent: agent.clone(),
            version: seen.version.clone(),
            first_seen: seen.first.wall,
            last_seen: seen.last.wall,
            exchanges: seen.exchanges,
            errors: seen.errors,
            tokens: seen.tokens,
            incidents: seen.incidents,
            model: seen.model.as_ref().map(ToString::to_string),
            good: seen.is_good(must),
        };
        self.all.iter().rev().map(record).collect()
    }

    /// Takes back what was written down; what was good then is taken to be good still.
    pub(crate) fn restore(&mut self, record: &VersionRecord, now: Now) {
        let at = |wall| {
            Now {
                mono: Mono::ZERO,
                wall,
            }
            .rebased(now)
        };
        let seen = Seen {
            version: record.version.clone(),
            model: record.model.as_deref().map(ModelName::from),
            first: at(record.first_seen),
            last: at(record.last_seen),
            exchanges: record.exchanges,
            errors: record.errors,
            tokens: record.tokens,
            incidents: record.incidents,
            well: if record.good {
                Stretch {
                    since: at(record.first_seen).mono,
                    exchanges: record.exchanges,
                    errors: record.errors,
                }
            } else {
                Stretch {
                    since: at(record.last_seen).mono,
                    exchanges: 0,
                    errors: 0,
                }
            },
        };
        self.all.retain(|s| s.version != seen.version);
        self.all.push(seen);
        self.all.sort_by_key(|s| s.last.wall);
        self.make_room();
    }

    #[cold]
    fn turn_to(&mut self, version: &AgentVersion, o: &Observation, now: Now) {
        let known = self.all.iter().position(|s| s.version == *version);
        let seen = match known {
            Some(at) => self.all.remove(at),
            None => Seen {
                version: version.clone(),
                model: o.model_requested.clone(),
                first: now,
                last: now,
                exchanges: 0,
                errors: 0,
                tokens: 0,
                incidents: 0,
                well: Stretch {
                    since: now.mono,
                    exchanges: 0,
                    errors: 0,
                },
            },
        };
        self.all.push(seen);
        self.make_room();
    }

    fn make_room(&mut self) {
        while self.all.len() > MAX_VERSIONS {
            let newest = self.all.len() - 1;
            let oldest = self
                .all
                .iter()
                .take(newest)
                .enumerate()
                .min_by_key(|(_, s)| s.last.mono);
            match oldest.map(|(at, _)| at) {
                Some(at) => drop(self.all.remove(at)),
                None => return,
            }
        }
    }
}

impl Seen {
    fn is_good(&self, must: &GoodVersion) -> bool {
        let errors = self.well.errors as f64;
        self.well.exchanges >= must.min_exchanges.max(1)
            && self.last.mono.since(self.well.since) >= must.min_age
            && errors <= self.well.exchanges as f64 * must.max_error_rate
    }
}

impl Engine {
    /// The version that an agent uses.
    pub(super) fn version_in_use(&self, agent: &AgentId) -> Option<AgentVersion> {
        self.versions(agent)?.in_use().cloned()
    }

    /// Whether a version of an agent has shown enough healthy traffic.
    pub(super) fn is_good(&self, agent: &AgentId, version: &AgentVersion) -> bool {
        let must = &self.book.conduct.good_version;
        self.versions(agent).is_some_and(|v| v.is_good(version, must))
    }

    /// The version that an agent has used since.
    pub(super) fn version_of(&self, agent: &AgentId, since: Mono) -> Option<AgentVersion> {
        self.versions(agent)?.used_since(since).cloned()
    }

    /// The last good version of an agent that is not the one in use, or why there is none.
    pub(super) fn good_version(
        &self,
        agent: Option<&AgentId>,
        current: Option<&AgentVersion>,
    ) -> Result<AgentVersion, String> {
        let agent = agent.ok_or("a rollback is about one agent, and this incident is not")?;
        let current = current.ok_or("the agent's version is not known")?;
        self.versions(agent)
            .ok_or_else(|| "the agent was not seen yet".to_owned())?
            .last_good(current, &self.book.conduct.good_version)
    }

    /// An incident about an agent was opened.
    pub(super) fn count_incident(&mut self, agent: &AgentId, now: Mono) {
        let number = self.agents.known(agent.as_str());
        if let Some(seen) = number.and_then(|n| self.seen.get_mut(n as usize)) {
            seen.versions.count_incident(now);
        }
    }

    /// Agents that make up the fleet now.
    pub(super) fn agents_seen(&self, now: Mono) -> usize {
        let recent = |at: &Mono| now.since(*at) < FLEET;
        self.seen
            .iter()
            .filter_map(|s| s.last.map(|(at, _)| at))
            .filter(recent)
            .count()
    }

    fn versions(&self, agent: &AgentId) -> Option<&Versions> {
        let number = self.agents.known(agent.as_str())?;
        self.seen.get(number as usize).map(|s| &s.versions)
    }
}
