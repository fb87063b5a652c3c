//! What is counted of exchanges: one set of atomic numbers for each combination of labels, written out at a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use dashmap::{DashMap, Entry};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::histogram::{Histogram, Sums};
use crate::types::observation::{ActionTaken, Observation, Outcome};
use crate::types::usage::Cost;

/// Label values of one kind of exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExchangeLabels<'a> {
    /// Agent.
    pub agent: &'a str,
    /// Model asked for.
    pub model: Option<&'a str>,
    /// Provider.
    pub provider: &'a str,
    /// API.
    pub api: &'static str,
    /// Upstream.
    pub upstream: &'a str,
}

/// Handles of one kind of exchange: resolved once, then recorded without a lookup or an allocation.
#[derive(Debug)]
pub struct ExchangeMetrics {
    labels: Labels,
    requests: [[AtomicU64; STATUS_CLASSES.len()]; OUTCOMES.len()],
    tokens: [AtomicU64; TOKEN_TYPES.len()],
    cost_nanos: AtomicU64,
    unpriced: AtomicU64,
    upstream_duration: Histogram<{ UPSTREAM_DURATION.len() }>,
    first_token: Histogram<{ FIRST_TOKEN.len() }>,
    overhead: Histogram<{ OVERHEAD.len() }>,
}

/// All kinds of exchanges that were seen: a bounded number.
#[derive(Debug)]
pub(super) struct Exchanges {
    max: usize,
    count: AtomicUsize,
    overflowed: AtomicU64,
    by_labels: DashMap<Box<str>, Arc<ExchangeMetrics>>,
}

/// In the order of the derived comparison, sets come out agent by agent.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    agent: Box<str>,
    model: Box<str>,
    provider: Box<str>,
    api: &'static str,
    upstream: Box<str>,
}

/// Takes the place of agent and model when there is no room for another combination.
const OVERFLOW: &str = "overflow";
/// Stands for a model that the request does not name.
const UNKNOWN: &str = "unknown";
/// Label values are cut at so many bytes: models are what clients say they are.
const MAX_MODEL: usize = 100;
const MAX_NAME: usize = 200;

const OUTCOMES: [&str; 7] = [
    "complete",
    "truncated",
    "client_abort",
    "cut",
    "timeout",
    "upstream_error",
    "refused",
];
const STATUS_CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
const TOKEN_TYPES: [&str; 5] = ["input", "output", "cached_input", "cache_write", "reasoning"];

// Upper bounds in microseconds.
/// Answers take from tens of milliseconds (embeddings) to ten minutes (the longest default timeout of a client).
const UPSTREAM_DURATION: [u64; 14] = [
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    20_000_000,
    40_000_000,
    80_000_000,
    160_000_000,
    320_000_000,
    600_000_000,
];
const FIRST_TOKEN: [u64; 13] = [
    50_000, 100_000, 200_000, 300_000, 500_000, 750_000, 1_000_000, 1_500_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];
const OVERHEAD: [u64; 12] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 100_000, 1_000_000,
];

impl ExchangeMetrics {
    fn new(labels: Labels) -> Self {
        Self {
            labels,
            requests: Default::default(),
            tokens: Default::default(),
            cost_nanos: AtomicU64::new(0),
            unpriced: AtomicU64::new(0),
            upstream_duration: Histogram::new(&UPSTREAM_DURATION),
            first_token: Histogram::new(&FIRST_TOKEN),
            overhead: Histogram::new(&OVERHEAD),
        }
    }

    /// Counts an exchange.
    pub fn record(&self, observation: &Observation) {
        let requests = self
            .requests
            .get(outcome_index(observation.outcome))
            .and_then(|classes| classes.get(class_index(observation.status)));
        if let Some(requests) = requests {
            requests.fetch_add(1, Ordering::Relaxed);
        }
        let (usage, normalised) = (&observation.usage, &observation.normalised);
        let counts = [
            normalised.input_total,
            normalised.output_total,
            usage.cached_input_tokens,
            usage.cache_write_tokens,
            usage.reasoning_tokens,
        ];
        for (total, count) in self.tokens.iter().zip(counts) {
            if let Some(count) = count.filter(|c| *c > 0) {
                total.fetch_add(count, Ordering::Relaxed);
            }
        }
        match observation.cost_usd {
            Some(cost) => {
                self.cost_nanos.fetch_add(cost.nanos(), Ordering::Relaxed);
            }
            None if normalised.total().is_some_and(|t| t > 0) => {
                self.unpriced.fetch_add(1, Ordering::Relaxed);
            }
            None => {}
        }
        if observation.outcome == Outcome::Refused {
            return;
        }
        let held: u64 = observation.actions.iter().map(held_us).sum();
        let ours = observation.overhead_us.saturating_add(held);
        self.overhead.observe(observation.overhead_us);
        self.upstream_duration
            .observe(micros(observation.duration_ms).saturating_sub(ours));
        if let Some(ttft) = observation.ttft_ms {
            self.first_token.observe(micros(ttft));
        }
    }
}

fn held_us(action: &ActionTaken) -> u64 {
    match action {
        ActionTaken::Delayed { ms } => ms.saturating_mul(1000),
        _ => 0,
    }
}

/// Microseconds of so many milliseconds; what is no number, or below zero, is none.
fn micros(millis: f64) -> u64 {
    (millis * 1e3) as u64
}

const fn outcome_index(outcome: Outcome) -> usize {
    match outcome {
        Outcome::Complete => 0,
        Outcome::Truncated => 1,
        Outcome::ClientAbort => 2,
        Outcome::Cut => 3,
        Outcome::Timeout => 4,
        Outcome::UpstreamError => 5,
        Outcome::Refused => 6,
    }
}

const fn class_index(status: u16) -> usize {
    match status / 100 {
        class @ 1..=5 => class as usize,
        _ => 0,
    }
}

impl Exchanges {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            count: AtomicUsize::new(0),
            overflowed: AtomicU64::new(0),
            by_labels: DashMap::new(),
        }
    }

    pub(super) fn handles(&self, labels: &ExchangeLabels<'_>) -> Arc<ExchangeMetrics> {
        let found = Labels::of(labels);
        let key = found.key();
        if let Some(known) = self.by_labels.get(&*key) {
            return Arc::clone(&known);
        }
        if self.count.load(Ordering::Relaxed) < self.max {
            match self.by_labels.entry(key) {
                Entry::Occupied(known) => return Arc::clone(known.get()),
                Entry::Vacant(vacant) => {
                    if self.count.fetch_add(1, Ordering::Relaxed) < self.max {
                        let made = Arc::new(ExchangeMetrics::new(found));
                        vacant.insert(Arc::clone(&made));
                        return made;
                    }
                    self.count.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        self.overflowed.fetch_add(1, Ordering::Relaxed);
        // Providers, APIs and upstreams are few and none of them is a client's to name: these need no bound.
        let found = Labels {
            agent: OVERFLOW.into(),
            model: OVERFLOW.into(),
            ..found
        };
        match self.by_labels.entry(found.key()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(vacant) => {
                let made = Arc::new(ExchangeMetrics::new(found));
                vacant.insert(Arc::clone(&made));
                made
            }
        }
    }

    fn sorted(&self) -> Vec<Arc<ExchangeMetrics>> {
        let mut all: Vec<_> = self.by_labels.iter().map(|set| Arc::clone(&set)).collect();
        all.sort_unstable_by(|a, b| a.labels.cmp(&b.labels));
        all
    }
}

impl Labels {
    fn of(labels: &ExchangeLabels<'_>) -> Self {
        Self {
            agent: clean(labels.agent, MAX_NAME),
            model: clean(labels.model.unwrap_or(UNKNOWN), MAX_MODEL),
            provider: clean(labels.provider, MAX_NAME),
            api: labels.api,
            upstream: clean(labels.upstream, MAX_NAME),
        }
    }

    /// One text for all of them; no two sets have the same, since none holds a control character.
    fn key(&self) -> Box<str> {
        [
            &*self.agent,
            &*self.model,
            &*self.provider,
            self.api,
            &*self.upstream,
        ]
        .join("\n")
        .into()
    }

    fn pairs(&self) -> [(&'static str, &str); 5] {
        [
            ("agent", &*self.agent),
            ("model", &*self.model),
            ("provider", &*self.provider),
            ("api", self.api),
            ("upstream", &*self.upstream),
        ]
    }
}

/// A label value: no control characters, at most `max` bytes, never empty.
fn clean(text: &str, max: usize) -> Box<str> {
    let mut out = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        if out.len() + c.len_utf8() > max {
            break;
        }
        out.push(if c.is_control() { '_' } else { c });
    }
    if out.is_empty() {
        out.push_str(UNKNOWN);
    }
    out.into_boxed_str()
}

impl Collector for Exchanges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let sets = self.sorted();
        let encoder = &mut encoder;
        encode_requests(encoder, &sets)?;
        encode_tokens(encoder, &sets)?;
        encode_money(encoder, &sets)?;
        encode_times(encoder, &sets)?;
        let overflowed = self.overflowed.load(Ordering::Relaxed);
        let help = "Times that a kind of exchange was counted as overflow for want of room.";
        let mut family =
            encoder.encode_descriptor("fusebox_label_overflow", help, None, MetricType::Counter)?;
        counter(&mut family, overflowed)
    }
}

fn encode_requests(encoder: &mut DescriptorEncoder<'_>, sets: &[Arc<ExchangeMetrics>]) -> fmt::Result {
    let help = "Exchanges by how they ended and the class of the status that the client got.";
    let mut family = encoder.encode_descriptor("fusebox_requests", help, None, MetricType::Counter)?;
    for set in sets {
        let [agent, model, provider, api, upstream] = set.labels.pairs();
        for (outcome, classes) in OUTCOMES.iter().zip(&set.requests) {
            for (class, count) in STATUS_CLASSES.iter().zip(classes) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    let outcome = ("outcome", *outcome);
                    let class = ("status_class", *class);
                    let labels = [agent, model, provider, api, upstream, outcome, class];
                    counter(&mut family.encode_family(&labels)?, count)?;
                }
            }
        }
    }
    Ok(())
}

fn encode_tokens(encoder: &mut DescriptorEncoder<'_>, sets: &[Arc<ExchangeMetrics>]) -> fmt::Result {
    let help = "Tokens; input has cached_input and cache_write in it, output has reasoning in it: do not add them up.";
    let mut family = encoder.encode_descriptor("fusebox_tokens", help, None, MetricType::Counter)?;
    for set in sets {
        let [agent, model, provider, api, upstream] = set.labels.pairs();
        for (at, (kind, count)) in TOKEN_TYPES.iter().zip(&set.tokens).enumerate() {
            let count = count.load(Ordering::Relaxed);
            // The two that everybody asks for are there from the start, the others when they occur.
            if count > 0 || at < 2 {
                let labels = [agent, model, provider, api, upstream, ("type", kind)];
                counter(&mut family.encode_family(&labels)?, count)?;
            }
        }
    }
    Ok(())
}

fn encode_money(encoder: &mut DescriptorEncoder<'_>, sets: &[Arc<ExchangeMetrics>]) -> fmt::Result {
    let help = "Cost in US dollars by the price table; what has no price is in fusebox_unpriced_requests.";
    let mut family = encoder.encode_descriptor("fusebox_cost_usd", help, None, MetricType::Counter)?;
    for set in sets {
        let cost = Cost::from_nanos(set.cost_nanos.load(Ordering::Relaxed)).usd();
        let labels = set.labels.pairs();
        let mut metric = family.encode_family(&labels)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&cost, None)?;
    }
    let help = "Exchanges that used tokens of a model without a price.";
    let mut family =
        encoder.encode_descriptor("fusebox_unpriced_requests", help, None, MetricType::Counter)?;
    for set in sets {
        let count = set.unpriced.load(Ordering::Relaxed);
        if count > 0 {
            let labels = set.labels.pairs();
            counter(&mut family.encode_family(&labels)?, count)?;
        }
    }
    Ok(())
}

fn encode_times(encoder: &mut DescriptorEncoder<'_>, sets: &[Arc<ExchangeMetrics>]) -> fmt::Result {
    let seconds = Some(&Unit::Seconds);
    let mut family = encoder.encode_descriptor(
        "fusebox_upstream_duration",
        "Time from the request's head to the end of the answer, without what fusebox added to it.",
        seconds,
        MetricType::Histogram,
    )?;
    for set in sets {
        let labels = set.labels.pairs();
        set.upstream_duration
            .sums()
            .encode(&mut family.encode_family(&labels)?)?;
    }
    let mut family = encoder.encode_descriptor(
        "fusebox_time_to_first_token",
        "Time from the request's head to the first token of a stream.",
        seconds,
        MetricType::Histogram,
    )?;
    for set in sets {
        let sums = set.first_token.sums();
        if sums.count() > 0 {
            let labels = set.labels.pairs();
            sums.encode(&mut family.encode_family(&labels)?)?;
        }
    }
    // What fusebox adds depends on the shape of the traffic, not on who sends it: fewer series.
    let mut overhead: BTreeMap<[(&str, &str); 3], Sums> = BTreeMap::new();
    for set in sets {
        let [_, _, provider, api, upstream] = set.labels.pairs();
        overhead
            .entry([provider, api, upstream])
            .or_default()
            .add(&set.overhead.sums());
    }
    let mut family = encoder.encode_descriptor(
        "fusebox_overhead",
        "Time that fusebox added to an exchange before it was forwarded, waits on purpose left out.",
        seconds,
        MetricType::Histogram,
    )?;
    for (labels, sums) in &overhead {
        sums.encode(&mut family.encode_family(labels)?)?;
    }
    Ok(())
}

fn counter(metric: &mut MetricEncoder<'_>, value: u64) -> fmt::Result {
    metric.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_clean_and_bounded() {
        assert_eq!(&*clean("gpt-4o\n\u{7}", 100), "gpt-4o__");
        assert_eq!(&*clean("", 100), UNKNOWN);
        assert_eq!(&*clean("ünï", 3), "ün");
        assert_eq!(clean(&"é".repeat(200), 99).len(), 98);
    }

    #[test]
    fn every_outcome_has_its_own_word() {
        for outcome in [
            Outcome::Complete,
            Outcome::Truncated,
            Outcome::ClientAbort,
            Outcome::Cut,
            Outcome::Timeout,
            Outcome::UpstreamError,
            Outcome::Refused,
        ] {
            let word = serde_json::to_value(outcome).unwrap();
            assert_eq!(word, OUTCOMES[outcome_index(outcome)]);
        }
        for (status, want) in [
            (0, "none"),
            (200, "2xx"),
            (199, "1xx"),
            (599, "5xx"),
            (600, "none"),
        ] {
            assert_eq!(STATUS_CLASSES[class_index(status)], want);
        }
    }

    #[test]
    fn beyond_the_bound_agent_and_model_are_folded() {
        let exchanges = Exchanges::new(2);
        let labels = |agent, model| ExchangeLabels {
            agent,
            model: Some(model),
            provider: "p",
            api: "openai.chat",
            upstream: "u",
        };
        let a = exchanges.handles(&labels("a", "m"));
        exchanges.handles(&labels("a", "n"));
        assert!(Arc::ptr_eq(&a, &exchanges.handles(&labels("a", "m"))));
        let o = exchanges.handles(&labels("a", "o"));
        assert!(Arc::ptr_eq(&o, &exchanges.handles(&labels("b", "p"))));
        assert_eq!((&*o.labels.agent, &*o.labels.model), (OVERFLOW, OVERFLOW));
        assert_eq!(&*o.labels.upstream, "u");
        assert_eq!(exchanges.overflowed.load(Ordering::Relaxed), 2);
        assert_eq!(exchanges.sorted().len(), 3);
    }
}
