//! Who sent a request, as what version, in which execution; each with the place where it was read, never guessed.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use sha2::Sha256;

use super::connection::Connection;
use crate::dialect::fingerprint::{agent_fingerprint, prefix_key};
use crate::dialect::price::Price;
use crate::dialect::request::{BodyHints, RequestFacts};
use crate::dialect::table::{Api, Route};
use crate::enforce::policy::{AgentSource, IdentityPolicy, Policy, Upstream};
use crate::enforce::slots::AgentSlot;
use crate::telemetry::metrics::{ExchangeLabels, ExchangeMetrics};
use crate::types::directive::Sender;
use crate::types::ids::{AgentId, AgentVersion, ExecutionId, Generation, ModelName, RequestId};
use crate::types::observation::IdentitySource;

static BAGGAGE: HeaderName = HeaderName::from_static("baggage");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Where API keys stand.
static API_KEYS: [HeaderName; 4] = [
    AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Who sent a request.
pub(super) struct Identity {
    pub(super) agent: AgentId,
    pub(super) agent_source: IdentitySource,
    pub(super) version: Option<AgentVersion>,
    pub(super) execution: ExecutionId,
    pub(super) execution_source: IdentitySource,
    pub(super) slot: Arc<AgentSlot>,
    pub(super) kind: Rc<Kind>,
}

impl Identity {
    /// Whose directives bind it, to be kept apart.
    pub(super) fn whose(&self) -> Whose {
        Whose {
            agent: self.agent.clone(),
            execution: self.execution.clone(),
            version: self.version.clone(),
        }
    }

    /// The names alone.
    pub(super) fn names(&self) -> Names {
        Names {
            agent: self.agent.clone(),
            execution: self.execution.clone(),
            version: self.version.clone(),
        }
    }

    /// Whose directives bind it.
    pub(super) fn sender(&self) -> Sender<'_> {
        Sender {
            agent: self.agent.as_str(),
            execution: self.execution.as_str(),
            version: self.version.as_ref().map(AgentVersion::as_str),
        }
    }
}

/// The names that directives go by, for work that outlives the rest.
pub(super) struct Names {
    agent: AgentId,
    execution: ExecutionId,
    version: Option<AgentVersion>,
}

impl Names {
    /// Whose directives bind it.
    pub(super) fn sender(&self) -> Sender<'_> {
        Sender {
            agent: self.agent.as_str(),
            execution: self.execution.as_str(),
            version: self.version.as_ref().map(AgentVersion::as_str),
        }
    }
}

/// Whose directives bind an exchange, while the rest of it is in other hands.
pub(super) struct Whose {
    agent: AgentId,
    execution: ExecutionId,
    version: Option<AgentVersion>,
}

impl Whose {
    /// As it is looked up.
    pub(super) fn sender(&self) -> Sender<'_> {
        Sender {
            agent: self.agent.as_str(),
            execution: self.execution.as_str(),
            version: self.version.as_ref().map(AgentVersion::as_str),
        }
    }
}

/// What the exchange before resolved to; the next one of a connection is mostly like it.
#[derive(Default)]
pub(super) struct Memory {
    agent: Option<(AgentId, Arc<AgentSlot>)>,
    kind: Option<Rc<Kind>>,
    version: Option<(u64, AgentVersion)>,
    /// The key that was seen last and the name made of it, and by which policy.
    api_key: Option<(HeaderValue, Generation, String)>,
}

/// Exchanges of one agent that ask for one model of one API: what is the same for all of them is worked out once.
pub(super) struct Kind {
    agent: AgentId,
    /// The model that is asked for.
    pub(super) model: Option<ModelName>,
    api: Api,
    upstream: Arc<Upstream>,
    pub(super) metrics: Arc<ExchangeMetrics>,
    /// What the answer before named as its model.
    served: RefCell<Option<Served>>,
}

/// A model that answered, and what it costs.
#[derive(Clone)]
struct Served {
    model: Option<ModelName>,
    price: Option<Price>,
    /// Of the policy that the price is from.
    generation: Generation,
}

impl Kind {
    /// The same at another upstream.
    pub(super) fn at(&self, upstream: &Arc<Upstream>, metrics: Arc<ExchangeMetrics>) -> Rc<Self> {
        Rc::new(Self {
            agent: self.agent.clone(),
            model: self.model.clone(),
            api: self.api,
            upstream: Arc::clone(upstream),
            metrics,
            served: RefCell::default(),
        })
    }

    /// The name of the model that answered, and the price that the exchange is billed at.
    pub(super) fn served(
        &self,
        policy: &Policy,
        model: Option<String>,
    ) -> (Option<ModelName>, Option<Price>) {
        let mut known = self.served.borrow_mut();
        match &*known {
            Some(known)
                if known.generation == policy.generation
                    && known.model.as_ref().map(ModelName::as_str) == model.as_deref() =>
            {
                (known.model.clone(), known.price)
            }
            _ => {
                let asked = self.model.as_ref().map(ModelName::as_str);
                let price = policy.prices.of_exchange(self.api, model.as_deref(), asked);
                let model = model.map(ModelName::from);
                *known = Some(Served {
                    model: model.clone(),
                    price,
                    generation: policy.generation,
                });
                (model, price)
            }
        }
    }
}

/// What identification may look at.
pub(super) struct Clues<'a> {
    pub(super) headers: &'a HeaderMap,
    pub(super) path_agent: Option<&'a str>,
    pub(super) facts: &'a RequestFacts,
    pub(super) route: &'a Route,
    pub(super) body: Option<&'a Bytes>,
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) request_id: &'a RequestId,
}

/// Takes the agent out of `/agents/{id}/…` or `/a/{id}/…` and returns it with the rest of the path.
pub(super) fn split_path(path: &str) -> Option<(&str, &str)> {
    let rest = path
        .strip_prefix("/agents/")
        .or_else(|| path.strip_prefix("/a/"))?;
    let slash = rest.find('/')?;
    let (agent, rest) = rest.split_at(slash);
    (!agent.is_empty()).then_some((agent, rest))
}

/// Finds out who sent a request.
pub(super) fn identify(connection: &Connection, policy: &Policy, clues: &Clues<'_>) -> Identity {
    let generation = policy.generation;
    let policy = &policy.identity;
    let mut memory = connection.memory.borrow_mut();
    let Memory {
        agent,
        kind: known_kind,
        version: known_version,
        api_key,
    } = &mut *memory;
    let said = Said::of(clues.headers, policy);
    let (name, agent_source) = agent_name(connection, api_key, (policy, generation), clues, said.agent);
    let (agent, slot) = slot(agent, connection, &name);
    let version = version(known_version, policy, clues, said.version);
    let (execution, execution_source) = execution(connection, &agent, policy, clues, said.execution);
    let kind = kind(known_kind, connection, &agent, clues);
    Identity {
        agent,
        agent_source,
        version,
        execution,
        execution_source,
        slot,
        kind,
    }
}

fn slot(
    known: &mut Option<(AgentId, Arc<AgentSlot>)>,
    connection: &Connection,
    name: &str,
) -> (AgentId, Arc<AgentSlot>) {
    if let Some((agent, slot)) = known
        && agent.as_str() == name
    {
        return (agent.clone(), Arc::clone(slot));
    }
    let slot = connection.worker.shared.slots.slot(&AgentId::from(name));
    // Beyond the bound the slot is a shared one, and so is the name: everything that is kept by agent is bounded
    // by the bound of the slots.
    let agent = slot.agent().clone();
    *known = (agent.as_str() == name).then(|| (agent.clone(), Arc::clone(&slot)));
    (agent, slot)
}

fn kind(
    known: &mut Option<Rc<Kind>>,
    connection: &Connection,
    agent: &AgentId,
    clues: &Clues<'_>,
) -> Rc<Kind> {
    let api = clues.route.api;
    let model = clues.facts.model.as_deref();
    if let Some(kind) = known
        && kind.agent == *agent
        && kind.model.as_ref().map(ModelName::as_str) == model
        && kind.api == api
        && Arc::ptr_eq(&kind.upstream, clues.upstream)
    {
        return Rc::clone(kind);
    }
    let metrics = connection.worker.shared.metrics.handles(&ExchangeLabels {
        agent: agent.as_str(),
        model,
        provider: &clues.upstream.provider,
        api: api.name(),
        upstream: clues.upstream.name.as_str(),
    });
    let kind = Rc::new(Kind {
        agent: agent.clone(),
        model: model.map(ModelName::from),
        api,
        upstream: Arc::clone(clues.upstream),
        metrics,
        served: RefCell::default(),
    });
    *known = Some(Rc::clone(&kind));
    kind
}

/// What the headers say of who sent a request: for each kind the value of the header that is preferred.
#[derive(Default)]
struct Said<'a> {
    agent: Option<Cow<'a, str>>,
    version: Option<Cow<'a, str>>,
    execution: Option<Cow<'a, str>>,
}

impl<'a> Said<'a> {
    /// The headers are gone over once: a request has fewer of them than there are names to look for. Most are passed
    /// over by the length of their name.
    fn of(headers: &'a HeaderMap, policy: &IdentityPolicy) -> Self {
        let lists = [
            &policy.agent_headers,
            &policy.version_headers,
            &policy.execution_headers,
        ];
        let bit = |name: &HeaderName| 1_u64 << (name.as_str().len() & 63);
        let lengths = lists
            .iter()
            .flat_map(|names| names.iter())
            .fold(0, |all, n| all | bit(n));
        let mut found: [Option<(usize, Cow<'a, str>)>; 3] = [None, None, None];
        for (name, value) in headers {
            if lengths & bit(name) == 0 {
                continue;
            }
            for (found, names) in found.iter_mut().zip(lists) {
                let Some(rank) = names.iter().position(|n| n == name) else {
                    continue;
                };
                if found.as_ref().is_some_and(|(best, _)| *best <= rank) {
                    continue;
                }
                let value = std::str::from_utf8(value.as_bytes())
                    .ok()
                    .and_then(|v| cleaned(v.into(), policy.max_name_bytes));
                if let Some(value) = value {
                    *found = Some((rank, value));
                }
            }
        }
        let [agent, version, execution] = found.map(|found| found.map(|(_, value)| value));
        Self {
            agent,
            version,
            execution,
        }
    }
}

fn agent_name<'a>(
    connection: &'a Connection,
    known_key: &'a mut Option<(HeaderValue, Generation, String)>,
    (policy, generation): (&'a IdentityPolicy, Generation),
    clues: &Clues<'a>,
    mut header: Option<Cow<'a, str>>,
) -> (Cow<'a, str>, IdentitySource) {
    let mut by_key = false;
    for source in &policy.agent_order {
        let found = match source {
            AgentSource::Path => clues.path_agent.and_then(|agent| {
                let agent = percent_decode_str(agent).decode_utf8().ok()?;
                cleaned(agent, policy.max_name_bytes).map(|a| (a, IdentitySource::Path))
            }),
            AgentSource::Header => header.take().map(|a| (a, IdentitySource::Header)),
            AgentSource::Baggage => baggage(clues.headers, &policy.agent_baggage_keys, policy)
                .map(|a| (a, IdentitySource::Baggage)),
            AgentSource::Metadata => metadata(&clues.facts.hints, &policy.agent_metadata_keys, policy)
                .map(|a| (a, IdentitySource::Body)),
            AgentSource::Config => connection
                .agent
                .as_deref()
                .or(policy.agent.as_ref())
                .map(|a| (Cow::Borrowed(a.as_str()), IdentitySource::Config)),
            AgentSource::ApiKey => {
                by_key = recall_key_name(known_key, clues.headers, policy, generation);
                if by_key {
                    break;
                }
                None
            }
            AgentSource::Default => Some((
                Cow::Borrowed(policy.default_agent.as_str()),
                IdentitySource::Default,
            )),
        };
        if let Some(found) = found {
            return found;
        }
    }
    if let (true, Some((_, _, name))) = (by_key, known_key) {
        return (Cow::Borrowed(name), IdentitySource::ApiKey);
    }
    (
        Cow::Borrowed(policy.default_agent.as_str()),
        IdentitySource::Default,
    )
}

fn version(
    known: &mut Option<(u64, AgentVersion)>,
    policy: &IdentityPolicy,
    clues: &Clues<'_>,
    declared: Option<Cow<'_, str>>,
) -> Option<AgentVersion> {
    if let Some(declared) = declared {
        return Some(AgentVersion::from(&*declared));
    }
    if let Some(version) = &policy.agent_version {
        return Some(version.clone());
    }
    let body = clues.body?;
    // A body that could not be read whole may still tell.
    let key = clues.facts.agent_key.or_else(|| prefix_key(clues.route, body))?;
    if let Some((known, version)) = known
        && *known == key
    {
        return Some(version.clone());
    }
    let version = AgentVersion::from(agent_fingerprint(clues.route, body)?);
    *known = Some((key, version.clone()));
    Some(version)
}

fn execution(
    connection: &Connection,
    agent: &AgentId,
    policy: &IdentityPolicy,
    clues: &Clues<'_>,
    header: Option<Cow<'_, str>>,
) -> (ExecutionId, IdentitySource) {
    if let Some(id) = header {
        return (ExecutionId::from(&*id), IdentitySource::Header);
    }
    if let Some(id) = metadata(&clues.facts.hints, &policy.execution_metadata_keys, policy) {
        return (ExecutionId::from(&*id), IdentitySource::Body);
    }
    if let Some(id) = clues
        .facts
        .hints
        .execution()
        .and_then(|id| cleaned(id.into(), policy.max_name_bytes))
    {
        return (ExecutionId::from(&*id), IdentitySource::Body);
    }
    if let Some(answer) = clues.facts.hints.previous_answer() {
        let shared = &connection.worker.shared;
        let now = shared.clock.mono();
        let known = shared.chains.execution(agent, answer, now);
        return (
            known.unwrap_or_else(|| shared.chains.named_after(answer, policy.max_name_bytes)),
            IdentitySource::Chain,
        );
    }
    if let Some(id) = trace_id(clues.headers) {
        return (ExecutionId::from(id), IdentitySource::Trace);
    }
    (clues.request_id.as_execution(), IdentitySource::Exchange)
}

/// An entry of the W3C `baggage` header.
fn baggage<'a>(headers: &'a HeaderMap, keys: &[String], policy: &IdentityPolicy) -> Option<Cow<'a, str>> {
    headers
        .get_all(&BAGGAGE)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|entry| {
            let (key, value) = entry.split(';').next()?.split_once('=')?;
            if !keys.iter().any(|k| k == key.trim()) {
                return None;
            }
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            cleaned(value, policy.max_name_bytes)
        })
}

fn metadata<'a>(hints: &'a BodyHints, keys: &[String], policy: &IdentityPolicy) -> Option<Cow<'a, str>> {
    keys.iter()
        .find_map(|key| cleaned(hints.metadata(key)?.into(), policy.max_name_bytes))
}

/// The trace id of a valid `traceparent` (W3C Trace Context §3.2).
fn trace_id(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(&TRACEPARENT)?.to_str().ok()?;
    let mut parts = value.split('-');
    let (version, trace) = (parts.next()?, parts.next()?);
    let hex = |s: &str| {
        s.bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let valid = version.len() == 2
        && hex(version)
        && version != "ff"
        && trace.len() == 32
        && hex(trace)
        && trace.bytes().any(|b| b != b'0');
    valid.then_some(trace)
}

/// Sees to it that `known` holds the name for whoever holds the API key of a request; mostly it does already. `false`
/// when there is no key that names anybody.
fn recall_key_name(
    known: &mut Option<(HeaderValue, Generation, String)>,
    headers: &HeaderMap,
    policy: &IdentityPolicy,
    generation: Generation,
) -> bool {
    let Some(value) = API_KEYS.iter().find_map(|name| headers.get(name)) else {
        return false;
    };
    if let Some((key, of, _)) = known
        && key == value
        && *of == generation
    {
        return true;
    }
    let Some(name) = api_key_name(value.as_bytes(), policy) else {
        return false;
    };
    *known = Some((value.clone(), generation, name));
    true
}

/// A name for whoever holds an API key: a keyed hash, so that the name tells nothing about the key.
fn api_key_name(key: &[u8], policy: &IdentityPolicy) -> Option<String> {
    let key = key.strip_prefix(b"Bearer ").unwrap_or(key).trim_ascii();
    // A signature differs from call to call: it names nobody.
    if key.is_empty() || key.starts_with(b"AWS4-HMAC") {
        return None;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(policy.api_key_salt.expose().as_bytes()).ok()?;
    mac.update(key);
    let digest = mac.finalize().into_bytes();
    let mut name = String::with_capacity(16);
    name.push_str("key-");
    for byte in digest.iter().take(6) {
        for nibble in [byte >> 4, byte & 15] {
            name.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
    }
    Some(name)
}

/// A name as it is kept: trimmed, without control characters, at most `max` bytes; `None` when nothing is left.
fn cleaned(name: Cow<'_, str>, max: usize) -> Option<Cow<'_, str>> {
    let trimmed = name.trim();
    if trimmed.is_empty() {
        return None;
    }
    let plain = trimmed.len() <= max && !trimmed.chars().any(char::is_control);
    if plain && trimmed.len() == name.len() {
        return Some(name);
    }
    let mut out = String::with_capacity(trimmed.len().min(max));
    for c in trimmed.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(c);
    }
    (!out.is_empty()).then_some(Cow::Owned(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split() {
        for (path, want) in [
            (
                "/agents/billing/v1/chat/completions",
                Some(("billing", "/v1/chat/completions")),
            ),
            ("/a/b/v1", Some(("b", "/v1"))),
            ("/agents//v1", None),
            ("/agents/x", None),
            ("/v1/agents/x/y", None),
        ] {
            assert_eq!(split_path(path), want, "{path}");
        }
    }

    #[test]
    fn names_are_cleaned() {
        let clean = |s: &str| cleaned(Cow::Owned(s.to_owned()), 8).map(Cow::into_owned);
        assert_eq!(clean("  a b "), Some("a b".into()));
        assert_eq!(clean("\u{7}\n"), None);
        assert_eq!(clean("ünïcödé"), Some("ünïcö".into()));
        assert_eq!(clean("a\u{0}b"), Some("ab".into()));
        assert_eq!(clean(""), None);
    }

    #[test]
    fn only_valid_traces_name_an_execution() {
        let id = |v: &'static str| {
            let mut h = HeaderMap::new();
            h.insert("traceparent", http::HeaderValue::from_static(v));
            trace_id(&h).map(str::to_owned)
        };
        let ok = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(
            id("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").as_deref(),
            Some(ok)
        );
        assert_eq!(
            id("00-00000000000000000000000000000000-b7ad6b7169203331-01"),
            None
        );
        assert_eq!(
            id("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            None
        );
        assert_eq!(id("nonsense"), None);
    }
}
