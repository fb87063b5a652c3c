//! What holds when the file does not say otherwise. `config/fusebox.example.yaml` shows the same; a test compares.

use std::time::Duration;

use crate::dialect::table::Family;
use crate::enforce::failover::{Breaker, RetryBudget, RetryOn};
use crate::enforce::policy::{AgentSource, Limits, Timeouts};
use crate::incident::engine::Bounds;
use crate::incident::metric::Unit;
use crate::incident::rule::{Metric, Statistic};

/// The listener of agents.
pub(super) const LISTEN: &str = "127.0.0.1:4310";
/// The admin listener.
pub(super) const ADMIN_LISTEN: &str = "127.0.0.1:4311";
/// Label combinations kept in metrics.
pub(super) const MAX_LABEL_SETS: usize = 2_000;
/// How long requests in flight may take to end.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(30);
/// What is logged.
pub(super) const LOG_LEVEL: &str = "info";
/// Observations that may wait for the engine.
pub(super) const OBSERVATION_QUEUE: usize = 65_536;
/// Bounds of the engine.
pub(super) const BOUNDS: Bounds = Bounds {
    max_subjects: 10_000,
    max_executions: 100_000,
    execution_idle_seconds: 600,
    max_closed_incidents: 1_000,
};
/// How long the ledger keeps observations.
pub(super) const LEDGER_KEEP_OBSERVATIONS: Duration = Duration::from_secs(7 * 86_400);
/// The size at which the ledger's oldest observations go.
pub(super) const LEDGER_MAX_BYTES: u64 = 2 << 30;
/// How long the ledger keeps closed incidents.
pub(super) const LEDGER_KEEP_INCIDENTS: Duration = Duration::from_secs(90 * 86_400);
/// Actions that may be started in one hour.
pub(super) const MAX_ACTIONS_PER_HOUR: u32 = 60;

/// Agents told apart.
pub(super) const MAX_AGENTS: usize = 10_000;
/// Client connections at once.
pub(super) const MAX_CONNECTIONS: usize = 10_000;

/// Bounds on what requests may take.
pub(super) const LIMITS: Limits = Limits {
    max_request_bytes: 64 << 20,
    max_header_bytes: 64 << 10,
    max_inspect_bytes: 4 << 20,
    header_timeout: Duration::from_secs(30),
    body_idle_timeout: Duration::from_secs(60),
    keep_alive_timeout: Duration::from_secs(120),
    max_admission_wait: Duration::from_secs(2),
    max_waiting: 1_024,
};

/// How long each part of an exchange may take. Official clients wait ten minutes; models that think take their time.
pub(super) const TIMEOUTS: Timeouts = Timeouts {
    connect: Duration::from_secs(10),
    first_byte: Duration::from_secs(600),
    idle: Duration::from_secs(300),
    total: None,
};
/// Idle connections kept per worker and upstream.
pub(super) const MAX_IDLE_CONNECTIONS: usize = 64;

/// When an upstream is left alone.
pub(super) const BREAKER: Breaker = Breaker {
    failures: 5,
    within: Duration::from_secs(30),
    open_for: Duration::from_secs(30),
};
/// How many further attempts requests may take.
pub(super) const RETRIES: RetryBudget = RetryBudget {
    percent: 20.0,
    min_per_minute: 10,
};

/// What counts as a failure: what says nothing about the request, and would hit the next one as well.
pub(super) fn retry_on() -> RetryOn {
    RetryOn {
        connect_error: true,
        first_byte_timeout: true,
        first_event_error: true,
        statuses: vec![502, 503, 504, 529],
        first_byte_within: None,
    }
}

/// The upstreams when none is configured: name, URL, dialects.
pub(super) const UPSTREAMS: [(&str, &str, &[Family]); 5] = [
    ("openai", "https://api.openai.com", &[Family::OpenAi]),
    ("anthropic", "https://api.anthropic.com", &[Family::Anthropic]),
    (
        "gemini",
        "https://generativelanguage.googleapis.com",
        &[Family::Gemini],
    ),
    ("ollama", "http://127.0.0.1:11434", &[Family::Ollama]),
    ("cohere", "https://api.cohere.com", &[Family::Cohere]),
];
/// The name of the upstream that the command line gives.
pub(super) const UPSTREAM_NAME: &str = "default";

/// The dialects of a provider, where it is known to speak these only; empty means all.
pub(super) fn families_of(provider: &str) -> &'static [Family] {
    match provider {
        "openai" | "azure" | "groq" | "mistral" | "xai" | "together" | "cerebras" | "sambanova"
        | "novita" | "venice" | "writer" | "huggingface" | "github-models" | "copilot" | "chatgpt"
        | "doubleword" => &[Family::OpenAi],
        "anthropic" => &[Family::Anthropic],
        "openrouter" | "deepseek" | "zai" | "vercel-gateway" | "bedrock-mantle" => {
            &[Family::OpenAi, Family::Anthropic]
        }
        "gemini" => &[Family::Gemini, Family::OpenAi],
        "ollama" => &[Family::Ollama, Family::OpenAi],
        "cohere" => &[Family::Cohere],
        "bedrock" => &[Family::Bedrock],
        _ => &[],
    }
}

/// Where the agent is looked for.
pub(super) const AGENT_ORDER: [AgentSource; 7] = [
    AgentSource::Path,
    AgentSource::Header,
    AgentSource::Baggage,
    AgentSource::Metadata,
    AgentSource::Config,
    AgentSource::ApiKey,
    AgentSource::Default,
];
/// Headers that name an agent.
pub(super) const AGENT_HEADERS: [&str; 4] = [
    "x-agent-id",
    "x-fusebox-agent",
    "x-litellm-agent-id",
    "helicone-property-agent",
];
/// Baggage keys that name an agent.
pub(super) const AGENT_BAGGAGE_KEYS: [&str; 3] = ["gen_ai.agent.id", "gen_ai.agent.name", "agent.id"];
/// Metadata keys that name an agent.
pub(super) const AGENT_METADATA_KEYS: [&str; 3] = ["agent_id", "agent_name", "agent"];
/// Headers that name a version.
pub(super) const VERSION_HEADERS: [&str; 2] = ["x-agent-version", "x-fusebox-agent-version"];
/// Headers that name an execution.
pub(super) const EXECUTION_HEADERS: [&str; 11] = [
    "x-execution-id",
    "x-fusebox-run-id",
    "x-claude-code-session-id",
    "session-id",
    "thread-id",
    "helicone-session-id",
    "x-litellm-session-id",
    "x-litellm-trace-id",
    "x-portkey-trace-id",
    "langfuse_session_id",
    "x-session-id",
];
/// Metadata keys that name an execution.
pub(super) const EXECUTION_METADATA_KEYS: [&str; 5] = [
    "execution_id",
    "run_id",
    "session_id",
    "thread_id",
    "conversation_id",
];
/// Headers that are for us alone.
pub(super) const STRIP_HEADERS: [&str; 3] =
    ["x-fusebox-agent", "x-fusebox-agent-version", "x-fusebox-run-id"];
/// The agent of requests that name none.
pub(super) const DEFAULT_AGENT: &str = "default";
/// Longer names are cut.
pub(super) const MAX_NAME_BYTES: usize = 128;

/// How long one delivery attempt may take.
pub(super) const ALERT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two reminders of what is open.
pub(super) const ALERT_RESEND: Duration = Duration::from_secs(60);
/// PagerDuty's Events API in the US.
pub(super) const PAGERDUTY_URL: &str = "https://events.pagerduty.com/v2/enqueue";
/// Who says what a CloudEvent says.
pub(super) const CLOUDEVENTS_SOURCE: &str = "/fusebox";
/// How long delivery is tried.
pub(super) const ALERT_GIVE_UP: Duration = Duration::from_secs(3_600);

/// Over how long a rule measures.
pub(super) const WINDOW: Duration = Duration::from_secs(300);
/// How long after an incident no new one is opened for its subject.
pub(super) const COOLDOWN: Duration = Duration::from_secs(300);
/// How far past the threshold a value must come back.
pub(super) const HYSTERESIS: f64 = 0.1;
/// How long the effect of a step lasts at most.
pub(super) const LEASE: Duration = Duration::from_secs(900);
/// As [`LEASE`], for what outlasts the incident and is not renewed: rollback and contain.
pub(super) const LASTING_LEASE: Duration = Duration::from_secs(86_400);
/// Inputs in one call upstream, and answers asked for at once, of a step that says neither.
pub(super) const BATCH: (u32, u32) = (16, 1);
/// How many times as long timeouts are.
pub(super) const TIMEOUT_FACTOR: f64 = 2.0;
/// Pause between two calls to the on-call.
pub(super) const REPEAT_EVERY: Duration = Duration::from_secs(900);

/// How many samples a window must hold before it is judged: enough that a rate or a quantile means something, few
/// enough that an agent with little traffic is seen at all. What one execution used is judged from its first exchange:
/// a runaway may never have a second execution.
pub(super) fn min_samples(metric: Metric, statistic: Statistic, per_execution: bool) -> u64 {
    let of_execution = matches!(
        metric,
        Metric::TokensPerExecution
            | Metric::InputTokensPerExecution
            | Metric::OutputTokensPerExecution
            | Metric::CostPerExecution
            | Metric::RequestsPerExecution
    );
    match statistic {
        _ if metric == Metric::Silence || per_execution => 1,
        Statistic::Max | Statistic::Min | Statistic::Sum => 1,
        Statistic::Quantile(_) => 10,
        Statistic::Ratio if metric.unit() == Unit::Share => 10,
        Statistic::Mean if of_execution => 1,
        Statistic::Ratio | Statistic::Mean => 5,
    }
}

/// The rules that hold when the file has no `agent_incident_rules`.
pub(super) const RULES: &str = "\
agent_incident_rules:
  - name: token_explosion_detection
    metric: tokens_per_execution
    baseline: 2500
    threshold_upper: 5000
    window: 5m
    action: throttle_and_alert

  - name: latency_creep
    metric: p95_response_time
    baseline: 2.5s
    threshold_upper: 8s
    window: 15m
    action: escalate_to_on_call

  - name: output_quality_drop
    metric: semantic_similarity_to_baseline
    baseline: 0.87
    threshold_lower: 0.65
    window: 10m
    action: rollback_and_notify
";

/// The chains that rules may name without defining them.
pub(super) const ACTIONS: &str = "\
actions:
  throttle_and_alert:
    steps:
      - throttle
      - {downgrade_model: {}, approval: automatic, on_failure: escalate}
      - notify
  escalate_to_on_call:
    steps: [escalate]
  rollback_and_notify:
    steps:
      - {rollback: {}, verify_after: 10m, on_failure: escalate}
      - notify
  scale_down:
    steps:
      - reduce_batch
      - throttle
      - {downgrade_model: {}, verify_after: 5m, on_failure: escalate}
      - notify
  contain_and_escalate:
    steps:
      - {contain: {}, on_timeout: keep}
      - escalate
  notify_only:
    steps: [notify]
";
