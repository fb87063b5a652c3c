//! Compiled rules: a condition over a window of one metric, and the action it calls for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::types::ids::{ActionName, Generation, RuleName};
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
    /// Actions that may be started in one hour, all rules together, before automation stops and only tells.
    pub max_actions_per_hour: u32,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
#[derive(Debug, Clone, Copy, PartialEq)]
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
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Action {
    /// In the order they are taken.
    pub steps: Vec<Step>,
}

/// One step of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What is done.
    pub kind: StepKind,
    /// Whether a human must agree first.
    pub approval: Approval,
    /// How long its directive lives at most; it is renewed while the incident is open and lifted when it closes.
    pub lease: Duration,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq)]
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
    /// A cheaper model.
    DowngradeModel {
        /// A fixed target; `None` asks the model table.
        to: Option<String>,
    },
    /// Tell these alert targets; empty means all.
    Notify {
        /// Names of targets.
        targets: Vec<String>,
    },
    /// Tell the on-call: a notice of critical severity, repeated until the incident is over.
    Escalate {
        /// Names of targets.
        targets: Vec<String>,
        /// Pause between repetitions.
        repeat_every: Duration,
    },
    /// A step that this version knows by name but cannot carry out yet: reported as such, never silently skipped.
    NotYetAvailable {
        /// The step's name in the configuration.
        name: String,
    },
}

/// Whether a human must agree to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Approval {
    /// It runs by itself.
    #[default]
    Automatic,
    /// It waits for a human.
    Required,
}
