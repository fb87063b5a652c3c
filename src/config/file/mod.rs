//! The configuration file as it is written, key by key; the doc comments are what `fusebox schema` tells editors.

mod access;
mod alerts;
mod conduct;
mod failover;
mod rules;
mod steps;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::at::{At, Opt};
use super::units::{DurationText, SizeText};

pub(super) use access::{AdminFile, AdminTokenFile, RoleWord};
pub(super) use alerts::{AlertFile, AlertFormatWord, AlertKindWord, GroupFile, NotificationWebhooksFile};
pub(super) use conduct::{AutomationFile, DayWord, GoodVersionFile, IncidentsFile, MaintenanceFile};
pub(super) use failover::{BreakerFile, CredentialsFile, FAILURES, RetriesFile, RetryOnText, StreamsFile};
pub(super) use rules::{GroupByWord, ModeWord, RuleFile, SeverityWord};
pub(super) use steps::{
    ActionFile, ApprovalWord, BlastRadiusFile, CapConcurrencyFile, CapOutputFile, ContainFile, DowngradeFile,
    EscalateFile, ExtendTimeoutsFile, Kind, LevelFile, NotifyFile, OnFailureWord, OnTimeoutWord,
    ParameterValue, ReduceBatchFile, RerouteFile, RollbackByWord, RollbackFile, RunWebhookFile, STEP_NAMES,
    StepFile, StepMap, SuccessWord, ThrottleFile,
};

/// The configuration of fusebox. Every key has a default; an empty file is a working configuration with the three built-in rules.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    /// Where agents reach fusebox. Default: one at 127.0.0.1:4310.
    pub(super) listeners: Opt<Vec<At<ListenerFile>>>,
    /// The admin listener: health, metrics, status, the API and reloads.
    pub(super) admin: AdminFile,
    /// The URL by which people reach the admin listener, for links in notices and pages for approvals, as https://fusebox.example.
    pub(super) external_url: Opt<String>,
    /// The LLM APIs that requests are forwarded to. Default: the public API of each known vendor.
    pub(super) upstreams: Opt<Vec<At<UpstreamFile>>>,
    /// How many further attempts failover may make.
    pub(super) retries: RetriesFile,
    /// When an answer that is being streamed is ended by fusebox.
    pub(super) streams: StreamsFile,
    /// The agent behind this fusebox, for requests that do not name one.
    pub(super) agent: Opt<String>,
    /// The version of that agent.
    pub(super) agent_version: Opt<String>,
    /// How agents, their versions and executions are told apart.
    pub(super) identity: IdentityFile,
    /// Bounds on what requests may take.
    pub(super) limits: LimitsFile,
    /// Whether answers are read at all. Off only to measure what reading costs: rules then see nothing.
    pub(super) metering: Opt<bool>,
    /// Prices that replace or extend the built-in ones, by model (a trailing * matches the rest), in US dollars per million tokens.
    pub(super) prices: BTreeMap<At<String>, At<PriceFile>>,
    /// What replaces or extends the built-in table of models.
    pub(super) models: ModelsFile,
    /// Whom to tell about incidents.
    pub(super) alerts: Vec<At<AlertFile>>,
    /// Where requests to the admin API may have notices sent to (notification_webhook).
    pub(super) notification_webhooks: NotificationWebhooksFile,
    /// Where a record of each exchange is written.
    pub(super) observations: ObservationsFile,
    /// The ledger: what outlives the process. Without a path, incidents, leases and approvals end with it.
    pub(super) ledger: LedgerFile,
    /// How and what to log.
    pub(super) log: LogFile,
    /// How long requests in flight may take to end when fusebox is asked to stop.
    pub(super) drain_deadline: Opt<DurationText>,
    /// Worker threads; 0 is one for each core.
    #[schemars(range(max = 1024))]
    pub(super) workers: Opt<u64>,
    /// Whether the directory of this file is watched, and the file loaded again when it changes (Kubernetes ConfigMaps included).
    pub(super) watch: Opt<bool>,
    /// When something is an incident, and what is done about it. Default: the three built-in rules; [] for none.
    pub(super) agent_incident_rules: Option<Vec<At<RuleFile>>>,
    /// Chains of steps that rules name as their action: new ones, or others in place of the built-in throttle_and_alert, escalate_to_on_call, rollback_and_notify, scale_down, contain_and_escalate and notify_only.
    pub(super) actions: BTreeMap<At<String>, At<ActionFile>>,
    /// How incidents are put together, brought back and kept quiet.
    pub(super) incidents: IncidentsFile,
    /// Bounds on what is done without a human.
    pub(super) automation: AutomationFile,
    /// Bounds on what the engine keeps.
    pub(super) engine: EngineFile,
}

/// A place where agents reach fusebox.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["listen"]))]
pub(super) struct ListenerFile {
    /// HOST:PORT or unix:PATH.
    pub(super) listen: Opt<String>,
    /// Certificate and key, when agents reach it by https.
    pub(super) tls: Opt<ListenerTlsFile>,
    /// The agent behind this listener, for requests that do not name one.
    pub(super) agent: Opt<String>,
}

/// Certificate and key of a listener; read again when the files change.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["certificate_file", "key_file"]))]
pub(super) struct ListenerTlsFile {
    /// PEM file with the certificate chain, leaf first.
    pub(super) certificate_file: Opt<String>,
    /// PEM file with the private key.
    pub(super) key_file: Opt<String>,
}

/// An LLM API that requests are forwarded to.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name", "url"]))]
pub(super) struct UpstreamFile {
    /// Its name in metrics, observations and rules.
    pub(super) name: Opt<String>,
    /// https://HOST[:PORT][/PATH]. The client's path is put behind PATH.
    pub(super) url: Opt<String>,
    /// Whose API it is; default by the host name.
    pub(super) provider: Opt<String>,
    /// The dialects it serves; [] means all. Default: all when it is the only upstream, else those of the provider.
    pub(super) families: Option<Vec<At<FamilyWord>>>,
    /// Client paths under this prefix go here, with the prefix removed.
    pub(super) path_prefix: Opt<String>,
    /// Whether to ask chat streams for their usage on behalf of clients who did not; the extra chunk is hidden from them.
    pub(super) include_usage: Opt<IncludeUsageWord>,
    /// What to do upstream when a client leaves mid-answer: cancel, or read on for the usage for at most so long, as {drain: 30s}.
    pub(super) on_client_abort: Opt<OnClientAbortWord>,
    /// How long each part of an exchange may take.
    pub(super) timeouts: TimeoutsFile,
    /// TLS beyond the system's trusted roots.
    pub(super) tls: UpstreamTlsFile,
    /// Outbound proxy: none, environment (HTTPS_PROXY, HTTP_PROXY, NO_PROXY) or http://[USER:PASSWORD@]HOST:PORT.
    pub(super) proxy: Opt<String>,
    /// HTTP/2: auto (as the server offers), never, or prior_knowledge.
    pub(super) http2: Opt<Http2Word>,
    /// Idle connections kept by each worker.
    #[schemars(range(max = 10_000))]
    pub(super) max_idle_connections: Opt<u64>,
    /// Upstreams tried in this order when it fails before anything was sent to the client; all of the same dialect, at most three, those of their own included.
    pub(super) failover: Vec<At<String>>,
    /// What counts as failed, for failover and the breaker.
    pub(super) retry_on: Option<Vec<At<RetryOnText>>>,
    /// When it is left alone for a while.
    pub(super) breaker: BreakerFile,
    /// What models are called here, by the name that was asked for (a trailing * matches the rest); for requests that were rerouted to it.
    pub(super) model_map: BTreeMap<At<String>, At<String>>,
    /// How it gets a key of its own. Default: the client's own passes on.
    pub(super) credentials: CredentialsFile,
}

/// A family of dialects.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum FamilyWord {
    /// Chat Completions, Responses, Completions, Embeddings and relatives, whoever serves them.
    #[serde(rename = "openai")]
    OpenAi,
    /// Messages and count_tokens.
    Anthropic,
    /// generateContent and relatives.
    Gemini,
    /// Ollama's own API.
    Ollama,
    /// Cohere's own API.
    Cohere,
    /// Converse and InvokeModel.
    Bedrock,
    /// Everything else.
    Other,
}

/// Whether to ask for usage.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum IncludeUsageWord {
    /// Ask until the upstream refuses it.
    Auto,
    /// Never ask.
    Never,
}

/// What to do upstream when a client leaves.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnClientAbortWord {
    /// Close the upstream exchange at once.
    Cancel,
    /// Read on for the usage, for at most this long.
    Drain(At<DurationText>),
}

/// Which HTTP version to speak.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Http2Word {
    /// As the server offers over TLS; HTTP/1.1 otherwise.
    Auto,
    /// HTTP/1.1 only.
    Never,
    /// HTTP/2 at once, without asking.
    PriorKnowledge,
}

/// How long each part of an exchange may take.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TimeoutsFile {
    /// To have a connection, TLS included.
    pub(super) connect: Opt<DurationText>,
    /// From the end of the request to the head of the answer; a body on its way has until then what `idle` says.
    pub(super) first_byte: Opt<DurationText>,
    /// Between two parts of the answer, and between two parts of a request body that is passed on.
    pub(super) idle: Opt<DurationText>,
    /// The whole exchange; without it there is no limit.
    pub(super) total: Opt<DurationText>,
}

/// TLS to an upstream.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UpstreamTlsFile {
    /// PEM files of further trusted roots.
    pub(super) ca_files: Vec<At<String>>,
    /// Name to verify in place of the URL's host.
    pub(super) server_name: Opt<String>,
}

/// How agents, their versions and executions are told apart. Lists are in order of preference; giving one replaces the default.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct IdentityFile {
    /// Where the agent is looked for; the first hit wins. Without `path`, paths of `/agents/ID/` go on as they are.
    pub(super) agent_order: Option<Vec<At<AgentSourceWord>>>,
    /// Request headers that name an agent.
    pub(super) agent_headers: Option<Vec<At<String>>>,
    /// Keys of the baggage header that name an agent.
    pub(super) agent_baggage_keys: Option<Vec<At<String>>>,
    /// Keys of the body's metadata that name an agent.
    pub(super) agent_metadata_keys: Option<Vec<At<String>>>,
    /// Request headers that name the agent's version.
    pub(super) version_headers: Option<Vec<At<String>>>,
    /// Request headers that name an execution.
    pub(super) execution_headers: Option<Vec<At<String>>>,
    /// Keys of the body's metadata that name an execution.
    pub(super) execution_metadata_keys: Option<Vec<At<String>>>,
    /// The agent of requests that name none.
    pub(super) default_agent: Opt<String>,
    /// Key of the hash that makes agent names from API keys. Default: another one in each process.
    pub(super) api_key_salt: Opt<String>,
    /// File that holds that key.
    pub(super) api_key_salt_file: Opt<String>,
    /// Request headers that are for fusebox alone: removed before a request is forwarded.
    pub(super) strip_headers: Option<Vec<At<String>>>,
    /// Longer names are cut to this many bytes.
    #[schemars(range(min = 8, max = 4096))]
    pub(super) max_name_bytes: Opt<u64>,
}

/// A place where the agent's name may stand.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum AgentSourceWord {
    /// /agents/ID/ (or /a/ID/) before the API's own path.
    Path,
    /// One of agent_headers.
    Header,
    /// One of agent_baggage_keys.
    Baggage,
    /// One of agent_metadata_keys.
    Metadata,
    /// The agent of the listener, or of this file.
    Config,
    /// A keyed hash of the API key.
    ApiKey,
    /// default_agent.
    Default,
}

/// Bounds on what requests may take.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LimitsFile {
    /// Largest request body; more is answered with 413.
    pub(super) max_request_bytes: Opt<SizeText>,
    /// Largest request head; more is answered with 431.
    pub(super) max_header_bytes: Opt<SizeText>,
    /// How much of an answer's body is kept to be read; beyond it only its tail is.
    pub(super) max_inspect_bytes: Opt<SizeText>,
    /// Agents told apart; one that is silent for an hour makes room when room is short, the rest share one slot.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub(super) max_agents: Opt<u64>,
    /// Client connections at once; more wait, in the kernel's queue, until others leave. Each needs two open files.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(super) max_connections: Opt<u64>,
    /// How long a client may take to send a request head.
    pub(super) header_timeout: Opt<DurationText>,
    /// How long a client may pause inside a request body.
    pub(super) body_idle_timeout: Opt<DurationText>,
    /// How long a client connection may be idle between requests.
    pub(super) keep_alive_timeout: Opt<DurationText>,
    /// How long a throttled request is held back before it is refused instead.
    pub(super) max_admission_wait: Opt<DurationText>,
    /// Requests held back at once, all agents together.
    #[schemars(range(max = 1_000_000))]
    pub(super) max_waiting: Opt<u64>,
}

/// Prices of one model in US dollars per million tokens.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["input", "output"]))]
pub(super) struct PriceFile {
    /// Input tokens.
    #[schemars(range(min = 0))]
    pub(super) input: Opt<f64>,
    /// Output tokens, reasoning included.
    #[schemars(range(min = 0))]
    pub(super) output: Opt<f64>,
    /// Input tokens read from a cache; default: as input.
    #[schemars(range(min = 0))]
    pub(super) cached_input: Opt<f64>,
    /// Input tokens written to a cache; default: as input.
    #[schemars(range(min = 0))]
    pub(super) cache_write: Opt<f64>,
}

/// What replaces or extends the built-in table of models.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ModelsFile {
    /// The cheaper model that stands in for another, by the name of the other (a trailing * matches the rest).
    pub(super) downgrade: BTreeMap<At<String>, At<String>>,
}

/// Where a record of each exchange is written.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ObservationsFile {
    /// File to append to, one JSON line for each exchange; - is standard output. Default: none.
    pub(super) file: Opt<String>,
}

/// The ledger: incidents, leases, approvals, alerts to be delivered and observations, in one SQLite file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LedgerFile {
    /// The file; made when it is missing. Default: none.
    pub(super) path: Opt<String>,
    /// How many observations are kept in it.
    pub(super) observations: LedgerObservationsFile,
    /// How long incidents are kept in it.
    pub(super) incidents: LedgerIncidentsFile,
}

/// How many observations the ledger keeps; whichever bound is reached first.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LedgerObservationsFile {
    /// For so long.
    pub(super) keep: Opt<DurationText>,
    /// While the file is no larger; beyond, the oldest go.
    pub(super) max_bytes: Opt<SizeText>,
}

/// How long the ledger keeps incidents.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LedgerIncidentsFile {
    /// Closed incidents and what belongs to them, for so long; open ones stay.
    pub(super) keep: Opt<DurationText>,
}

/// How and what to log.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LogFile {
    /// text, json, or auto: text on a terminal, JSON otherwise.
    pub(super) format: Opt<LogFormatWord>,
    /// error, warn, info, debug or trace; or one for each part, as info,fusebox::proxy=debug.
    pub(super) level: Opt<String>,
}

/// How logs look.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LogFormatWord {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Bounds on what the engine keeps.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EngineFile {
    /// Observations that may wait for the engine; beyond it they only count in totals.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(super) observation_queue: Opt<u64>,
    /// Subjects (agents, executions, …) followed by each rule; the rest share one.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(super) max_subjects: Opt<u64>,
    /// Executions followed at once; the longest idle one makes room.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub(super) max_executions: Opt<u64>,
    /// An execution without traffic for this long is over.
    pub(super) execution_idle: Opt<DurationText>,
    /// Closed incidents kept to be shown.
    #[schemars(range(max = 1_000_000))]
    pub(super) max_closed_incidents: Opt<u64>,
}
