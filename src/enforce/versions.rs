//! What the versions of agents were made of (model and sampling parameters), so that a request can be made like a good one.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::types::ids::{AgentId, AgentVersion};
use crate::types::time::Wall;

/// Versions kept of one agent; the one longest unseen makes room.
const MAX_VERSIONS: usize = 8;
/// Longest name of a model that is kept, in bytes.
const MAX_MODEL: usize = 256;
/// Parts with a lock each, so that workers seldom meet. A power of two.
const SHARDS: usize = 16;

/// The name under which a model that is not always the same stands in [`KnownVersion::varies`].
pub const MODEL: &str = "model";

/// What one version of an agent sends to one API: settings alone, nothing that was said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KnownVersion {
    /// The agent.
    pub agent: AgentId,
    /// Its version.
    pub version: AgentVersion,
    /// The API (`openai.chat`): an agent may ask several, each in its own way.
    pub api: String,
    /// The model; `None` when requests named none.
    pub model: Option<String>,
    /// Sampling parameters by their common names. One that is not here and does not vary was not sent.
    pub parameters: BTreeMap<String, Value>,
    /// Names (and `model`) that were not the same in all requests that were looked at.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub varies: BTreeSet<String>,
    /// When a request of it was looked at last.
    pub last_seen: Wall,
}

/// A request as it was sent by its agent.
#[derive(Debug, Clone, PartialEq)]
pub struct Sighting {
    /// The API.
    pub api: &'static str,
    /// The model.
    pub model: Option<String>,
    /// Sampling parameters by their common names.
    pub parameters: BTreeMap<String, Value>,
}

/// All known versions: at most eight of each of so many agents. About 1 kB each.
pub struct Versions {
    shards: [Mutex<Shard>; SHARDS],
    max_agents: usize,
    keys: RandomState,
}

type Shard = HashMap<AgentId, Vec<KnownVersion>>;

impl Versions {
    /// Room for the versions of `max_agents` agents (roughly: in parts of a sixteenth each).
    pub fn new(max_agents: usize) -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            max_agents: max_agents.div_ceil(SHARDS).max(1),
            keys: RandomState::new(),
        }
    }

    /// A number for agent, version and API together, for remembering what was noted lately. Not the same in another
    /// process.
    pub fn key(&self, agent: &AgentId, version: &AgentVersion, api: &'static str) -> u64 {
        self.keys.hash_one((agent.as_str(), version.as_str(), api))
    }

    /// Notes what a request of `version` was made of. What is not as it was before is known to vary from then on.
    pub fn note(&self, agent: &AgentId, version: &AgentVersion, sighting: Sighting, now: Wall) {
        let Sighting {
            api,
            model,
            parameters,
        } = sighting;
        let model = model.filter(|m| m.len() <= MAX_MODEL);
        let mut shard = self.shard(agent);
        if let Some(known) = find(&mut shard, agent, version, api) {
            known.last_seen = now;
            known.compare(model, &parameters);
            return;
        }
        self.insert(
            &mut shard,
            KnownVersion {
                agent: agent.clone(),
                version: version.clone(),
                api: api.to_owned(),
                model,
                parameters,
                varies: BTreeSet::new(),
                last_seen: now,
            },
        );
    }

    /// What is known of a version; asking for it counts as seeing it, so that a version that is held to stays known.
    pub fn known(
        &self,
        agent: &AgentId,
        version: &AgentVersion,
        api: &str,
        now: Wall,
    ) -> Option<KnownVersion> {
        let mut shard = self.shard(agent);
        let known = find(&mut shard, agent, version, api)?;
        known.last_seen = known.last_seen.max(now);
        Some(known.clone())
    }

    /// All that is known, to be written down.
    pub fn export(&self) -> Vec<KnownVersion> {
        let mut all: Vec<KnownVersion> = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).values().flatten().cloned());
        }
        all
    }

    /// Takes back what was written down; what was seen since then stays as it was seen.
    pub fn import(&self, mut all: Vec<KnownVersion>) {
        // The newest last, so that it is the one that finds room.
        all.sort_by_key(|known| known.last_seen);
        for known in all {
            let mut shard = self.shard(&known.agent);
            if find(&mut shard, &known.agent, &known.version, &known.api).is_none() {
                self.insert(&mut shard, known);
            }
        }
    }

    fn insert(&self, shard: &mut Shard, new: KnownVersion) {
        if !shard.contains_key(&new.agent) && shard.len() >= self.max_agents {
            let last_seen = |versions: &Vec<KnownVersion>| versions.iter().map(|v| v.last_seen).max();
            let oldest = shard.iter().min_by_key(|(_, versions)| last_seen(versions));
            if let Some(agent) = oldest.map(|(agent, _)| agent.clone()) {
                shard.remove(&agent);
            }
        }
        let versions = shard.entry(new.agent.clone()).or_default();
        let is_new = versions.iter().all(|v| v.version != new.version);
        let names: BTreeSet<&AgentVersion> = versions.iter().map(|v| &v.version).collect();
        if is_new && names.len() >= MAX_VERSIONS {
            // A version is seen when it is seen at any API.
            let seen = |name: &AgentVersion| {
                let of_it = versions.iter().filter(|v| v.version == *name);
                of_it.map(|v| v.last_seen).max()
            };
            let oldest = names.into_iter().min_by_key(|name| seen(name)).cloned();
            versions.retain(|v| Some(&v.version) != oldest.as_ref());
        }
        versions.push(new);
    }

    fn shard(&self, agent: &AgentId) -> MutexGuard<'_, Shard> {
        let [first, rest @ ..] = &self.shards;
        let at = (self.keys.hash_one(agent.as_str()) % SHARDS as u64) as usize;
        lock(at.checked_sub(1).and_then(|at| rest.get(at)).unwrap_or(first))
    }
}

impl KnownVersion {
    fn compare(&mut self, model: Option<String>, parameters: &BTreeMap<String, Value>) {
        if self.model != model && !self.varies.contains(MODEL) {
            self.varies.insert(MODEL.to_owned());
            self.model = None;
        }
        let names: BTreeSet<String> = self.parameters.keys().chain(parameters.keys()).cloned().collect();
        for name in names {
            if self.parameters.get(&name) != parameters.get(&name) {
                self.parameters.remove(&name);
                self.varies.insert(name);
            }
        }
    }
}

impl fmt::Debug for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Versions")
            .field("max_agents", &self.max_agents)
            .finish_non_exhaustive()
    }
}

fn find<'a>(
    shard: &'a mut Shard,
    agent: &AgentId,
    version: &AgentVersion,
    api: &str,
) -> Option<&'a mut KnownVersion> {
    let versions = shard.get_mut(agent)?;
    versions
        .iter_mut()
        .find(|v| v.version == *version && v.api == api)
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const CHAT: &str = "openai.chat";

    fn sighting(model: &str, parameters: Value) -> Sighting {
        Sighting {
            api: CHAT,
            model: Some(model.to_owned()),
            parameters: serde_json::from_value(parameters).unwrap(),
        }
    }

    fn at(seconds: i64) -> Wall {
        Wall::from_unix_millis(seconds * 1000)
    }

    fn a() -> AgentId {
        AgentId::from("a")
    }

    fn v(name: &str) -> AgentVersion {
        AgentVersion::from(name)
    }

    #[test]
    fn a_version_is_what_its_requests_have_in_common() {
        let versions = Versions::new(10);
        let note = |model, parameters| versions.note(&a(), &v("1"), sighting(model, parameters), at(1));
        note("m", json!({"temperature": 0.2, "top_p": 1}));
        note("m", json!({"temperature": 0.2, "top_p": 1}));
        let known = || versions.known(&a(), &v("1"), CHAT, at(2)).unwrap();
        assert_eq!((known().model.as_deref(), known().varies.len()), (Some("m"), 0));
        assert_eq!(json!(known().parameters), json!({"temperature": 0.2, "top_p": 1}));
        // One that differs, one that is missing, one that is new, another model.
        note("m", json!({"temperature": 0.3, "top_k": 5}));
        note("other", json!({}));
        note("m", json!({"temperature": 0.2, "top_p": 1}));
        assert_eq!(known().model, None);
        assert!(known().parameters.is_empty());
        assert_eq!(
            json!(known().varies),
            json!(["model", "temperature", "top_k", "top_p"])
        );
        assert_eq!(versions.known(&a(), &v("1"), "anthropic.messages", at(2)), None);
        assert_eq!(versions.known(&a(), &v("2"), CHAT, at(2)), None);
        assert_eq!(versions.known(&AgentId::from("b"), &v("1"), CHAT, at(2)), None);
    }

    #[test]
    fn the_version_longest_unseen_makes_room() {
        let versions = Versions::new(10);
        let note = |name: &str, time| versions.note(&a(), &v(name), sighting("m", json!({})), at(time));
        for n in 0..MAX_VERSIONS {
            note(&n.to_string(), n as i64);
        }
        // Noted again, and asked for.
        note("0", 100);
        assert!(versions.known(&a(), &v("1"), CHAT, at(101)).is_some());
        note("new", 102);
        let kept: BTreeSet<String> = versions.export().iter().map(|k| k.version.to_string()).collect();
        let want = ["0", "1", "3", "4", "5", "6", "7", "new"];
        assert_eq!(kept, want.map(str::to_owned).into());
    }

    #[test]
    fn agents_are_bounded() {
        let versions = Versions::new(32);
        for n in 0..1000 {
            let agent = AgentId::from(format!("agent-{n}"));
            versions.note(&agent, &v("1"), sighting("m", json!({})), at(n));
        }
        assert!(versions.export().len() <= 32);
        let last = AgentId::from("agent-999");
        assert!(versions.known(&last, &v("1"), CHAT, at(1000)).is_some());
    }

    #[test]
    fn what_is_written_down_comes_back() {
        let versions = Versions::new(10);
        versions.note(&a(), &v("1"), sighting("m", json!({"temperature": 0.2})), at(1));
        versions.note(&a(), &v("1"), sighting("m", json!({"temperature": 0.3})), at(2));
        let text = serde_json::to_string(&versions.export()).unwrap();
        let other = Versions::new(10);
        other.note(&a(), &v("2"), sighting("n", json!({})), at(5));
        other.import(serde_json::from_str(&text).unwrap());
        assert_eq!(
            other.known(&a(), &v("1"), CHAT, at(1)),
            versions.known(&a(), &v("1"), CHAT, at(1))
        );
        assert!(other.known(&a(), &v("2"), CHAT, at(1)).is_some());
        // Twice is once.
        other.import(serde_json::from_str(&text).unwrap());
        assert_eq!(other.export().len(), 2);
    }

    #[test]
    fn long_names_of_models_are_not_kept() {
        let versions = Versions::new(10);
        versions.note(&a(), &v("1"), sighting(&"m".repeat(300), json!({})), at(1));
        assert_eq!(versions.known(&a(), &v("1"), CHAT, at(1)).unwrap().model, None);
    }
}
