//! What the configuration asks of every request, compiled: nothing left to resolve, nothing optional that means "default".

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::failover::{Breaker, Credentials, ModelMap, RetryBudget, RetryOn, StreamLimits};
use crate::dialect::models::ModelTable;
use crate::dialect::price::PriceTable;
use crate::dialect::table::Family;
use crate::types::ids::{AgentId, AgentVersion, Generation, UpstreamName};
use crate::types::secret::Secret;

/// All that a request needs to know of the configuration. Immutable; a reload publishes another.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Which publication this is.
    pub generation: Generation,
    /// How agents, versions and executions are told apart.
    pub identity: IdentityPolicy,
    /// Where requests go; never empty. Tried in order by [`Upstream::serves`]; the first is the default.
    pub upstreams: Vec<Arc<Upstream>>,
    /// Bounds on what a request may take.
    pub limits: Limits,
    /// What models cost.
    pub prices: PriceTable,
    /// What models can do and which cheaper one stands in for each.
    pub models: ModelTable,
    /// Whether answers are read at all; off only to measure what reading costs.
    pub metering: bool,
    /// How many further attempts the requests of one agent may take.
    pub retries: RetryBudget,
    /// When an answer that is being streamed is ended by us.
    pub streams: StreamLimits,
}

/// How agents, versions and executions are told apart. Every list is in order of preference.
#[derive(Debug, Clone)]
pub struct IdentityPolicy {
    /// Where the agent is looked for; first hit wins.
    pub agent_order: Vec<AgentSource>,
    /// Headers that name an agent (lower case).
    pub agent_headers: Vec<http::HeaderName>,
    /// Keys of `baggage` that name an agent.
    pub agent_baggage_keys: Vec<String>,
    /// Keys of the body's `metadata` that name an agent.
    pub agent_metadata_keys: Vec<String>,
    /// Headers that name the agent's version.
    pub version_headers: Vec<http::HeaderName>,
    /// Headers that name an execution.
    pub execution_headers: Vec<http::HeaderName>,
    /// Keys of the body's `metadata` that name an execution.
    pub execution_metadata_keys: Vec<String>,
    /// The agent of this sidecar, when the configuration names one.
    pub agent: Option<AgentId>,
    /// The version of that agent, when the configuration names one.
    pub agent_version: Option<AgentVersion>,
    /// Who it is when nothing says so.
    pub default_agent: AgentId,
    /// Key of the hash that turns an API key into an agent name; random for each process unless configured.
    pub api_key_salt: Secret,
    /// Headers removed before a request goes to an upstream, since they are for us alone.
    pub strip_headers: Vec<http::HeaderName>,
    /// An agent, execution or version longer than this (in bytes) is cut.
    pub max_name_bytes: usize,
}

/// A place where the agent's name may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AgentSource {
    /// `/agents/{id}/` (or `/a/{id}/`) before the API's own path.
    Path,
    /// One of the agent headers.
    Header,
    /// One of the baggage keys.
    Baggage,
    /// One of the metadata keys of the body.
    Metadata,
    /// The listener's or the configuration's agent.
    Config,
    /// A keyed hash of the API key.
    ApiKey,
    /// The default agent.
    Default,
}

/// An LLM API that requests are forwarded to.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Its name in the configuration, in metrics and in observations.
    pub name: UpstreamName,
    /// Whose API it is (`openai`, `anthropic`, …), `unknown` when neither configured nor told by the host name.
    pub provider: Arc<str>,
    /// Scheme, host and port, and the path before the API's own (no trailing slash).
    pub url: UpstreamUrl,
    /// The dialects it serves; empty means all.
    pub families: Vec<Family>,
    /// Client paths under this prefix go here, with the prefix removed. No trailing slash.
    pub path_prefix: Option<String>,
    /// Whether to ask chat streams for their usage on behalf of clients who did not.
    pub include_usage: IncludeUsage,
    /// What to do upstream when a client leaves.
    pub on_client_abort: OnClientAbort,
    /// How long each part of an exchange may take.
    pub timeouts: Timeouts,
    /// TLS beyond the system's roots.
    pub tls: UpstreamTls,
    /// An outbound HTTP proxy to go through (`CONNECT` for TLS upstreams).
    pub proxy: Option<OutboundProxy>,
    /// Which HTTP version to speak.
    pub http2: Http2,
    /// Idle connections kept per worker.
    pub max_idle_connections: usize,
    /// Upstreams tried in this order when it fails before anything was sent to the client; at most three, never itself,
    /// all in the policy. Those of the listed ones are in the list already.
    pub failover: Vec<UpstreamName>,
    /// What counts as failed, for failover and the breaker.
    pub retry_on: RetryOn,
    /// When it is left alone for a while; `None` never.
    pub breaker: Option<Breaker>,
    /// What models are called here, for requests that were rerouted to it.
    pub model_map: ModelMap,
    /// Its own key in the place of the client's; `None` passes the client's on.
    pub credentials: Option<Credentials>,
    /// TLS settings made from `tls` and `http2`; `None` until the policy is prepared, and for plain upstreams.
    pub tls_client: Option<Arc<rustls::ClientConfig>>,
}

impl Upstream {
    /// Whether requests of this dialect go here when no path prefix says otherwise.
    pub fn serves(&self, family: Family) -> bool {
        self.path_prefix.is_none() && (self.families.is_empty() || self.families.contains(&family))
    }

    /// Stands for "no upstream" where one has to be named; nothing is ever sent to it.
    pub fn nowhere() -> Arc<Self> {
        Arc::new(Self {
            name: UpstreamName::from("none"),
            provider: "unknown".into(),
            url: UpstreamUrl {
                tls: false,
                host: String::new(),
                port: 0,
                base_path: String::new(),
                authority: http::HeaderValue::from_static("none"),
            },
            families: Vec::new(),
            path_prefix: None,
            include_usage: IncludeUsage::Never,
            on_client_abort: OnClientAbort::Cancel,
            timeouts: Timeouts {
                connect: Duration::ZERO,
                first_byte: Duration::ZERO,
                idle: Duration::ZERO,
                total: None,
            },
            tls: UpstreamTls::default(),
            proxy: None,
            http2: Http2::Never,
            max_idle_connections: 0,
            failover: Vec::new(),
            retry_on: RetryOn::NOTHING,
            breaker: None,
            model_map: ModelMap::default(),
            credentials: None,
            tls_client: None,
        })
    }

    /// Whether a connection made for `self` serves `other` just as well.
    pub fn reached_like(&self, other: &Self) -> bool {
        // Files of roots may have been rewritten in place; settings made of the same roots are the same settings.
        let same_roots = match (&self.tls_client, &other.tls_client) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        same_roots
            && self.url == other.url
            && self.tls == other.tls
            && self.proxy == other.proxy
            && self.http2 == other.http2
    }
}

/// The parts of an upstream's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// TLS or not.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path before the API's own, without a trailing slash; often empty.
    pub base_path: String,
    /// `host[:port]` for the `Host` header; the port only when it is not the scheme's default.
    pub authority: http::HeaderValue,
}

/// Whether to ask for usage in chat streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IncludeUsage {
    /// Ask until the upstream refuses it once, then stop asking.
    Auto,
    /// Never ask.
    Never,
}

/// What to do upstream when the client leaves mid-answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnClientAbort {
    /// Close the upstream exchange at once.
    Cancel,
    /// Read the answer to its end for its usage, for at most this long.
    Drain(Duration),
}

/// How long each part of an exchange may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To have a connection, TLS included.
    pub connect: Duration,
    /// From the request's last byte to the head of the answer.
    pub first_byte: Duration,
    /// Between two parts of the answer.
    pub idle: Duration,
    /// The whole exchange.
    pub total: Option<Duration>,
}

/// TLS to an upstream, beyond the system's roots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// PEM files of further trusted roots.
    pub ca_files: Vec<PathBuf>,
    /// Name to verify instead of the URL's host.
    pub server_name: Option<String>,
}

/// An outbound HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundProxy {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Value of `Proxy-Authorization`, if any.
    pub authorization: Option<Secret>,
}

/// Which HTTP version to speak to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Http2 {
    /// As ALPN says (over TLS); HTTP/1.1 otherwise.
    Auto,
    /// HTTP/1.1 only.
    Never,
    /// HTTP/2 at once, without asking.
    PriorKnowledge,
}

/// Bounds on what requests may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest request body in bytes; more is answered with 413.
    pub max_request_bytes: u64,
    /// Largest request head in bytes; more is answered with 431.
    pub max_header_bytes: usize,
    /// How much of an answer's body (decoded) is kept to be read, in bytes; beyond it only its tail is.
    pub max_inspect_bytes: usize,
    /// How long a client may take to send a request head.
    pub header_timeout: Duration,
    /// How long a client may pause inside a request body.
    pub body_idle_timeout: Duration,
    /// How long a client connection may be idle between requests.
    pub keep_alive_timeout: Duration,
    /// How long a throttled request is held back before it is refused instead.
    pub max_admission_wait: Duration,
    /// Requests held back at once by throttles, all agents together.
    pub max_waiting: usize,
}

/// Where clients are served; fixed at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub bind: Bind,
    /// TLS, if any.
    pub tls: Option<ListenerTls>,
    /// The agent behind this listener, if it has one.
    pub agent: Option<AgentId>,
}

/// An address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bind {
    /// TCP. Port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket; a stale one is replaced.
    Unix(PathBuf),
}

/// Certificate and key of a listener; read again when the files change.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ListenerTls {
    /// PEM chain, leaf first.
    pub certificate_file: PathBuf,
    /// PEM key.
    pub key_file: PathBuf,
}
