//! Compiled rules: a condition over a window of one metric, and the action it calls for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::ids::{ActionName, Generation, RuleName, UpstreamName};
use crate::types::notice::Severity;

/// All rules and actions in force; immutable, replaced by a reload.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rulebook {
    /// Which publication this is.
    pub generation: Generation,
    /// In the order of the configuration. Names are unique.
    pub rules: Vec<Arc<Rule>>,
    /// The chains that rules name, built-in ones included. Every `Rule::action` is a key of it.
    pub actions: BTreeMap<ActionName, Action>,
    /// Actions that may be started in one hour, all rules together, before every step waits for a human.
    pub max_actions_per_hour: u32,
    /// Whether automation is stopped by the configuration: every step waits for a human.
    pub brake: bool,
    /// How incidents are put together, brought back and kept quiet.
    pub conduct: Conduct,
}

/// How incidents are put together, brought back and kept quiet.
#[derive(Debug, Clone, PartialEq)]
pub struct Conduct {
    /// Whether agents that fail at the same upstream at the same time become one incident about the upstream.
    pub correlate: bool,
    /// A breach that comes back this soon after its incident was resolved reopens it.
    pub reopen_within: Duration,
    /// So many relapses and reopenings within an hour mean that the incident flaps.
    pub flaps_after: u32,
    /// What a version must have shown to be a good one.
    pub good_version: GoodVersion,
    /// Windows that come again every week.
    pub maintenance: Vec<Maintenance>,
}

impl Default for Conduct {
    fn default() -> Self {
        Self {
            correlate: true,
            reopen_within: Duration::from_secs(600),
            flaps_after: 3,
            good_version: GoodVersion::default(),
            maintenance: Vec::new(),
        }
    }
}

/// What a version must have shown to be a good one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GoodVersion {
    /// Exchanges that it answered.
    pub min_exchanges: u64,
    /// Over how long at least.
    pub min_age: Duration,
    /// Largest share (0 to 1) of exchanges that failed.
    pub max_error_rate: f64,
}

impl Default for GoodVersion {
    fn default() -> Self {
        Self {
            min_exchanges: 50,
            min_age: Duration::from_secs(600),
            max_error_rate: 0.05,
        }
    }
}

/// A window that comes again every week, in UTC, in which nothing is opened for those it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maintenance {
    /// Its name.
    pub name: String,
    /// Whom it covers.
    pub matcher: super::silence::Matcher,
    /// Days on which it begins, Monday first.
    pub days: [bool; 7],
    /// When it begins, in seconds of the day.
    pub from: u32,
    /// How long it lasts.
    pub length: Duration,
}

/// A condition on one metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name; incidents and windows survive a reload by it.
    pub name: RuleName,
    /// Off rules keep their place but are not evaluated.
    pub enabled: bool,
    /// How far it may go.
    pub mode: Mode,
    /// How bad a breach is.
    pub severity: Severity,
    /// What is measured.
    pub metric: Metric,
    /// How the values of a window become one.
    pub statistic: Statistic,
    /// What is normal.
    pub baseline: Baseline,
    /// A breach is a value above this.
    pub threshold_upper: Option<Threshold>,
    /// A breach is a value below this.
    pub threshold_lower: Option<Threshold>,
    /// Over how long it is measured.
    pub window: Duration,
    /// How long the breach must last before it is a finding.
    pub hold: Duration,
    /// How many samples the window must hold before it is judged.
    pub min_samples: u64,
    /// How long after the end of an incident no new one is opened for the same subject.
    pub cooldown: Duration,
    /// The value must come back past the threshold by this share of it (0 to 1) to count as recovered.
    pub hysteresis: f64,
    /// Only these agents (`*` and `?` match); empty means all.
    pub agents: Vec<String>,
    /// Only these models asked for (`*` and `?` match); empty means all.
    pub models: Vec<String>,
    /// Only these upstreams (`*` and `?` match); empty means all.
    pub upstreams: Vec<String>,
    /// What the subject is.
    pub group_by: GroupBy,
    /// Whether estimated counts may lead to actions, not only to notices.
    pub act_on_estimates: bool,
    /// The chain to run.
    pub action: ActionName,
}

/// How far a rule may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Mode {
    /// Counted, nobody is told.
    Shadow,
    /// People are told, nothing is done.
    Warn,
    /// Every step waits for a human.
    Approve,
    /// Steps run as they say.
    #[default]
    Enforce,
}

/// What is measured. A closed set; `parse` and `name` are inverse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Metric {
    /// Input and output tokens of one execution so far.
    TokensPerExecution,
    /// Input tokens of one execution so far.
    InputTokensPerExecution,
    /// Output tokens of one execution so far.
    OutputTokensPerExecution,
    /// Input and output tokens of one exchange.
    TokensPerRequest,
    /// Input tokens of one exchange.
    InputTokensPerRequest,
    /// Output tokens of one exchange.
    OutputTokensPerRequest,
    /// Tokens a minute over the window.
    TokensPerMinute,
    /// Requests a minute over the window.
    RequestsPerMinute,
    /// Dollars a minute over the window.
    CostPerMinute,
    /// Dollars an hour over the window.
    CostPerHour,
    /// Dollars of one execution so far.
    CostPerExecution,
    /// Exchanges of one execution so far.
    RequestsPerExecution,
    /// Seconds from request to end of the answer.
    ResponseTime,
    /// Seconds from request to first token.
    TimeToFirstToken,
    /// Output tokens a second after the first token.
    OutputSpeed,
    /// Share of exchanges that failed.
    ErrorRate,
    /// Share of exchanges that timed out.
    TimeoutRate,
    /// Share of exchanges that the upstream answered with 429.
    RateLimitedRate,
    /// Share of answers cut off by a length limit or a broken stream.
    TruncationRate,
    /// Share of answers that the model or a filter refused.
    RefusalRate,
    /// Share of whole answers with neither text nor tool call.
    EmptyRate,
    /// Share of answers that are not what was asked for (structured output that is no JSON).
    InvalidOutputRate,
    /// Share of exchanges whose tool calls failed or could not be read.
    ToolErrorRate,
    /// Share of exchanges that repeat the one before.
    Repetition,
    /// Cosine similarity of outputs to the agent's usual ones (0 to 1).
    SemanticSimilarityToBaseline,
    /// Share of input tokens read from a prompt cache.
    CacheHitRatio,
    /// Seconds since the subject's last exchange.
    Silence,
}

/// How the values of a window become one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Statistic {
    /// Arithmetic mean.
    Mean,
    /// Largest.
    Max,
    /// Smallest.
    Min,
    /// Sum.
    Sum,
    /// Quantile between 0 and 1, within 1 % of its true value.
    Quantile(f64),
    /// A share or a rate: given by the metric itself.
    Ratio,
}

/// What is normal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Baseline {
    /// This value, in the metric's unit (tokens, dollars, seconds, shares).
    Fixed(f64),
    /// Learned from the subject's own past.
    Learned,
    /// Learned from all subjects of the fleet.
    Fleet,
}

/// Where a breach begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Threshold {
    /// This value, in the metric's unit.
    Fixed(f64),
    /// This many times the baseline: `2x` is 2, `+40%` is 1.4.
    TimesBaseline(f64),
}

/// What a rule's subject is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GroupBy {
    /// Each agent.
    #[default]
    Agent,
    /// Each execution.
    Execution,
    /// Each model asked for.
    Model,
    /// Each upstream.
    Upstream,
    /// All traffic together.
    Fleet,
}

/// A named chain of steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Action {
    /// In the order they are taken.
    pub steps: Vec<Step>,
}

/// One step of a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What is done.
    pub kind: StepKind,
    /// Whether a human must agree first.
    pub approval: Approval,
    /// How long a question to a human stands.
    pub approval_timeout: Duration,
    /// What its end means.
    pub on_timeout: OnTimeout,
    /// How long its directive lives at most; it is renewed while the incident is open and lifted when it closes.
    pub lease: Duration,
    /// After how long the step is judged; the next step waits for that. `None`: the next step is taken at once, and the
    /// step is judged after a whole window of the rule.
    pub verify_after: Option<Duration>,
    /// What counts as success.
    pub success: Success,
    /// What happens when it did not work.
    pub on_failure: OnFailure,
    /// How many may be bound without asking.
    pub blast_radius: BlastRadius,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Rates that the agent must keep within. `None`: derived from its rate before the incident.
    Throttle {
        /// Requests a minute.
        requests_per_minute: Option<u32>,
        /// Tokens a minute.
        tokens_per_minute: Option<u32>,
    },
    /// At most so many exchanges in flight.
    CapConcurrency {
        /// The bound.
        max_in_flight: u32,
    },
    /// Smaller embedding calls, fewer answers at once.
    ReduceBatch {
        /// Inputs in one upstream call.
        max_inputs: u32,
        /// Answers asked for at once (`n`); `None` leaves them alone.
        max_choices: Option<u32>,
        /// Exchanges in flight; `None` leaves them alone.
        max_in_flight: Option<u32>,
    },
    /// Shorter answers.
    CapOutput {
        /// Output tokens of one exchange.
        max_tokens: u32,
        /// Whether a stream that has written more is ended.
        cut_streams: bool,
    },
    /// A cheaper model.
    DowngradeModel {
        /// A fixed target; `None` asks the model table.
        to: Option<String>,
    },
    /// Another upstream.
    Reroute {
        /// Which.
        to: UpstreamName,
    },
    /// More patience with the upstream.
    ExtendTimeouts {
        /// In hundredths of the configured times.
        percent: u16,
    },
    /// Other parameters.
    SetParameters {
        /// Name and value.
        set: BTreeMap<String, serde_json::Value>,
    },
    /// Back to the last version that was good.
    Rollback {
        /// How it is done.
        by: RollbackBy,
    },
    /// Send nothing at all.
    Contain,
    /// Ask another system to do something: a signed call to an alert target.
    RunWebhook {
        /// The target's name.
        target: String,
        /// What it is asked to do.
        action: String,
    },
    /// Tell these alert targets; empty means all.
    Notify {
        /// Names of targets.
        targets: Vec<String>,
    },
    /// Tell the on-call: a notice of critical severity, repeated until somebody acknowledges or the incident is over.
    Escalate {
        /// Who is told at each level; an empty list of names means all targets.
        levels: Vec<Level>,
        /// Pause between repetitions.
        repeat_every: Duration,
    },
}

/// A level of the on-call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Level {
    /// How long after the escalation began it is told.
    pub after: Duration,
    /// Names of targets; empty means all.
    pub targets: Vec<String>,
}

/// How an agent is brought back to a good version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RollbackBy {
    /// Its model and parameters are put into its requests.
    Restore,
    /// Its requests go to the upstream that serves the good version.
    Reroute {
        /// Which.
        to: UpstreamName,
    },
    /// A deployment system is asked to do it, by a signed call to an alert target.
    Webhook {
        /// The target's name.
        target: String,
    },
}

/// What counts as success of a step, on what was seen since it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Success {
    /// The metric is within its threshold.
    #[default]
    WithinThreshold,
    /// The metric is better by this share (0 to 1) of what it was when the step was taken.
    ImprovedBy(f64),
}

/// What happens when a step did not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It stays in force and the next step is taken.
    #[default]
    Next,
    /// It is lifted and the next step is taken.
    Revert,
    /// It stays in force, the on-call is told, and no further step is taken.
    Escalate,
}

/// What the end of a question means when nobody answered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// The step is not taken.
    #[default]
    Deny,
    /// The step is taken.
    Approve,
    /// The question stands, and people are told again.
    Keep,
}

/// How many agents a step may bind, together with what binds agents by the same kind of step already, before a human
/// has to agree.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct BlastRadius {
    /// Agents.
    pub max_agents: Option<u32>,
    /// Share (0 to 1) of the agents seen in the last hour.
    pub max_share: Option<f64>,
}

/// Whether a human must agree to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Approval {
    /// It runs by itself.
    #[default]
    Automatic,
    /// It waits for a human.
    Required,
}

impl StepKind {
    /// Its name in the configuration.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Throttle { .. } => "throttle",
            Self::CapConcurrency { .. } => "cap_concurrency",
            Self::ReduceBatch { .. } => "reduce_batch",
            Self::CapOutput { .. } => "cap_output",
            Self::DowngradeModel { .. } => "downgrade_model",
            Self::Reroute { .. } => "reroute",
            Self::ExtendTimeouts { .. } => "extend_timeouts",
            Self::SetParameters { .. } => "set_parameters",
            Self::Rollback { .. } => "rollback",
            Self::Contain => "contain",
            Self::RunWebhook { .. } => "run_webhook",
            Self::Notify { .. } => "notify",
            Self::Escalate { .. } => "escalate",
        }
    }

    /// Whether a human has to agree where the configuration does not say: what changes answers or stops an agent.
    pub const fn usual_approval(&self) -> Approval {
        match self {
            Self::DowngradeModel { .. }
            | Self::Reroute { .. }
            | Self::SetParameters { .. }
            | Self::Contain => Approval::Required,
            _ => Approval::Automatic,
        }
    }
}

impl Step {
    /// How long a question to a human stands where the configuration does not say.
    pub const APPROVAL_TIMEOUT: Duration = Duration::from_secs(900);

    /// A step of a kind with everything else as it is where the configuration does not say.
    pub fn new(kind: StepKind, lease: Duration) -> Self {
        Self {
            approval: kind.usual_approval(),
            kind,
            approval_timeout: Self::APPROVAL_TIMEOUT,
            on_timeout: OnTimeout::default(),
            lease,
            verify_after: None,
            success: Success::default(),
            on_failure: OnFailure::default(),
            blast_radius: BlastRadius::default(),
        }
    }
}
