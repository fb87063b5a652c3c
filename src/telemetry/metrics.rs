//! Counters, gauges and histograms with closed names and bounded labels, in the OpenMetrics text format.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::exchange::Exchanges;
pub use super::exchange::{ExchangeLabels, ExchangeMetrics};
use super::failover::FailoverMetrics;
use super::ledger::LedgerMetrics;
use crate::types::notice::Severity;
use crate::types::time::Wall;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    exchanges: Arc<Exchanges>,
    process: Arc<Process>,
    observations_dropped: Counter,
    progress_reports_dropped: Counter,
    overflowed: Counter,
    turned_away: Level,
    reloads: Family<[Label; 1], Counter>,
    last_reload_successful: Level,
    incidents_opened: Family<[Label; 2], Counter>,
    incidents: Family<[Label; 1], Level>,
    remediations: Family<[Label; 2], Counter>,
    notices: Family<[Label; 2], Counter>,
    agents: Level,
    directives: Level,
    connections: Level,
    waiting: Level,
    ledger: LedgerMetrics,
    failover: FailoverMetrics,
}

/// A label of something that happens rarely; its values come from the configuration or from the code.
type Label = (&'static str, String);

type Level = Gauge<u64, AtomicU64>;

/// When the process started, once that is said.
#[derive(Debug, Default)]
struct Process {
    started_ms: AtomicI64,
}

const SEVERITIES: [Severity; 4] = [
    Severity::Info,
    Severity::Warning,
    Severity::Error,
    Severity::Critical,
];

impl Metrics {
    /// Metrics that keep at most `max_label_sets` combinations of labels; beyond, agent and model become `overflow`
    /// and `fusebox_label_overflow_total` counts.
    pub fn new(max_label_sets: usize) -> Self {
        let metrics = Self {
            registry: Registry::default(),
            exchanges: Arc::new(Exchanges::new(max_label_sets)),
            process: Arc::default(),
            observations_dropped: Counter::default(),
            progress_reports_dropped: Counter::default(),
            overflowed: Counter::default(),
            turned_away: Level::default(),
            reloads: Family::default(),
            last_reload_successful: Level::default(),
            incidents_opened: Family::default(),
            incidents: Family::default(),
            remediations: Family::default(),
            notices: Family::default(),
            agents: Level::default(),
            directives: Level::default(),
            connections: Level::default(),
            waiting: Level::default(),
            ledger: LedgerMetrics::default(),
            failover: FailoverMetrics::default(),
        };
        // What can be named now is there with zero from the start: alerts on its increase then see the first one.
        for severity in SEVERITIES {
            metrics.incidents_open(severity, 0);
        }
        for ok in [true, false] {
            drop(metrics.reloads.get_or_create(&reload_labels(ok)));
        }
        // Whoever is there to ask runs on a good configuration.
        metrics.last_reload_successful.set(1);
        metrics.registered()
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register_collector(Box::new(Arc::clone(&self.exchanges)));
        r.register_collector(Box::new(Arc::clone(&self.process)));
        r.register(
            "fusebox_observations_dropped",
            "Observations that the engine did not get because its queue was full",
            self.observations_dropped.clone(),
        );
        r.register(
            "fusebox_progress_reports_dropped",
            "Reports of exchanges still running that found the engine's queue full; nothing is lost by it",
            self.progress_reports_dropped.clone(),
        );
        r.register(
            "fusebox_agent_overflow",
            "Times that an agent was put into the shared slot for want of room (limits.max_agents)",
            self.overflowed.clone(),
        );
        r.register(
            "fusebox_agents_turned_away",
            "Agents that share a slot for want of room, as far as seen in the last minutes",
            self.turned_away.clone(),
        );
        r.register(
            "fusebox_config_reloads",
            "Reloads of the configuration by how they ended",
            self.reloads.clone(),
        );
        r.register(
            "fusebox_config_last_reload_successful",
            "1 when the last reload of the configuration ended well, else 0",
            self.last_reload_successful.clone(),
        );
        r.register(
            "fusebox_incidents_opened",
            "Incidents opened",
            self.incidents_opened.clone(),
        );
        r.register("fusebox_incidents", "Incidents open now", self.incidents.clone());
        r.register(
            "fusebox_remediations",
            "Remediation steps by what became of them",
            self.remediations.clone(),
        );
        r.register(
            "fusebox_notices",
            "Notices to alert targets by how their delivery went",
            self.notices.clone(),
        );
        r.register(
            "fusebox_agents",
            "Agents that have a slot of their own",
            self.agents.clone(),
        );
        r.register(
            "fusebox_directives",
            "Directives in force",
            self.directives.clone(),
        );
        r.register(
            "fusebox_connections",
            "Connections of clients open",
            self.connections.clone(),
        );
        r.register(
            "fusebox_requests_waiting",
            "Requests held back by throttles",
            self.waiting.clone(),
        );
        r.register(
            "fusebox_build",
            "What is running",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        self.failover = FailoverMetrics::registered(r);
        self.ledger = LedgerMetrics::registered(r);
        self
    }

    /// Handles for these labels.
    pub fn handles(&self, labels: &ExchangeLabels<'_>) -> Arc<ExchangeMetrics> {
        self.exchanges.handles(labels)
    }

    /// The process started then; shown as `process_start_time_seconds`.
    pub fn started(&self, at: Wall) {
        self.process.started_ms.store(at.unix_millis(), Ordering::Relaxed);
    }

    /// Observations that the engine did not get because its queue was full.
    pub fn observation_dropped(&self) {
        self.observations_dropped.inc();
    }

    /// A report of an exchange still running found the queue full.
    pub fn progress_dropped(&self) {
        self.progress_reports_dropped.inc();
    }

    /// Agents that share a slot for want of room now, and how often that happened since the start.
    pub fn overflow(&self, agents: u64, times: u64) {
        self.turned_away.set(agents);
        self.overflowed
            .inc_by(times.saturating_sub(self.overflowed.get()));
    }

    /// A reload ended well or badly.
    pub fn reloaded(&self, ok: bool) {
        self.reloads.get_or_create(&reload_labels(ok)).inc();
        self.last_reload_successful.set(ok.into());
    }

    /// An incident of this rule was opened.
    pub fn incident_opened(&self, rule: &str, severity: Severity) {
        let labels = [
            ("rule", rule.to_owned()),
            ("severity", severity.name().to_owned()),
        ];
        self.incidents_opened.get_or_create(&labels).inc();
    }

    /// Incidents open now, by severity.
    pub fn incidents_open(&self, severity: Severity, count: u64) {
        let labels = [("severity", severity.name().to_owned())];
        self.incidents.get_or_create(&labels).set(count);
    }

    /// A remediation step was `applied`, `lifted`, `failed`, `skipped` or is `waiting`.
    pub fn remediation(&self, action: &str, result: &'static str) {
        let labels = [("action", action.to_owned()), ("result", result.to_owned())];
        self.remediations.get_or_create(&labels).inc();
    }

    /// A notice to a target was `delivered`, `failed` (will be tried again) or `dropped`.
    pub fn notice(&self, target: &str, result: &'static str) {
        let labels = [("target", target.to_owned()), ("result", result.to_owned())];
        self.notices.get_or_create(&labels).inc();
    }

    /// Agents with a slot, directives in force, connections open, requests held back.
    pub fn gauges(&self, agents: u64, directives: u64, connections: u64, waiting: u64) {
        self.agents.set(agents);
        self.directives.set(directives);
        self.connections.set(connections);
        self.waiting.set(waiting);
    }

    /// What is counted of upstreams that others stand in for.
    pub fn failover(&self) -> &FailoverMetrics {
        &self.failover
    }

    /// What the ledger counts.
    pub fn ledger(&self) -> &LedgerMetrics {
        &self.ledger
    }

    /// The text for a scrape, in OpenMetrics 1.0.
    pub fn encode(&self) -> String {
        let mut text = String::with_capacity(16 * 1024);
        if let Err(error) = encode(&mut text, &self.registry) {
            // Writing to memory does not fail; a scrape without its end mark is refused as a whole, as it should be.
            tracing::error!(%error, "cannot write metrics");
        }
        text
    }
}

fn reload_labels(ok: bool) -> [Label; 1] {
    [("result", if ok { "ok" } else { "failed" }.to_owned())]
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let started = self.started_ms.load(Ordering::Relaxed);
        if started == 0 {
            return Ok(());
        }
        encoder
            .encode_descriptor(
                "process_start_time",
                "When the process started, in seconds since 1970.",
                Some(&Unit::Seconds),
                MetricType::Gauge,
            )?
            .encode_gauge(&(started as f64 / 1e3))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use serde_json::json;

    use super::*;
    use crate::types::observation::Observation;

    /// Samples of an exposition by name and sorted labels; fails on whatever OpenMetrics does not allow.
    fn parse(text: &str) -> HashMap<String, f64> {
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut samples = HashMap::new();
        let mut types: HashMap<&str, &str> = HashMap::new();
        let mut family = "";
        let mut closed = HashSet::new();
        for line in text.lines() {
            if line == "# EOF" {
                continue;
            }
            if let Some(meta) = line.strip_prefix("# ") {
                let mut words = meta.splitn(3, ' ');
                let (what, name, rest) = (
                    words.next().unwrap(),
                    words.next().unwrap(),
                    words.next().unwrap(),
                );
                assert!(["HELP", "TYPE", "UNIT"].contains(&what), "{line}");
                if name != family {
                    assert!(closed.insert(name), "{name} comes twice");
                    family = name;
                }
                if what == "TYPE" {
                    types.insert(name, rest);
                }
                if what == "UNIT" {
                    assert!(name.ends_with(&format!("_{rest}")), "{line}");
                }
                continue;
            }
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match series.split_once('{') {
                Some((name, rest)) => (name, parse_labels(rest.strip_suffix('}').unwrap())),
                None => (series, BTreeMap::new()),
            };
            let suffix = name
                .strip_prefix(family)
                .unwrap_or_else(|| panic!("{line} in {family}"));
            let allowed: &[&str] = match types[family] {
                "counter" => &["_total"],
                "gauge" => &[""],
                "info" => &["_info"],
                "histogram" => &["_sum", "_count", "_bucket"],
                other => panic!("{other}"),
            };
            assert!(allowed.contains(&suffix), "{line}");
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            let key = format!("{name}{{{}}}", labels.join(","));
            assert!(
                samples.insert(key, value.parse().unwrap()).is_none(),
                "twice: {line}"
            );
        }
        samples
    }

    fn parse_labels(text: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        let mut chars = text.chars().peekable();
        while chars.peek().is_some() {
            let name: String = chars.by_ref().take_while(|c| *c != '=').collect();
            assert_eq!(chars.next(), Some('"'), "{text}");
            let mut value = String::new();
            loop {
                match chars.next().unwrap_or_else(|| panic!("no end: {text}")) {
                    '\\' => value.push(match chars.next().unwrap() {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("\\{c}"),
                    }),
                    '"' => break,
                    c => value.push(c),
                }
            }
            assert!(labels.insert(name, value).is_none(), "{text}");
            if let Some(c) = chars.next() {
                assert_eq!(c, ',', "{text}");
            }
        }
        labels
    }

    fn observation(change: serde_json::Value) -> Observation {
        let mut value = json!({
            "request_id": "r", "time": "2026-01-01T00:00:00Z", "agent": "a", "agent_source": "header",
            "agent_version": null, "execution": "e", "execution_source": "exchange", "upstream": "u",
            "provider": "openai", "api": "openai.chat", "model_requested": null, "model_served": null,
            "status": 200, "stream": false, "outcome": "complete", "usage_source": "none",
            "finish_reason": null, "error_type": null, "error_code": null, "tool_calls": [],
            "output_chars": null, "ttfb_ms": null, "ttft_ms": null, "duration_ms": 1.0, "overhead_us": 1,
            "cost_usd": null
        });
        for (key, field) in change.as_object().unwrap() {
            value[key] = field.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn labels<'a>(agent: &'a str, model: Option<&'a str>) -> ExchangeLabels<'a> {
        ExchangeLabels {
            agent,
            model,
            provider: "openai",
            api: "openai.chat",
            upstream: "u",
        }
    }

    #[test]
    fn an_idle_process_shows_what_can_be_named() {
        let metrics = Metrics::new(10);
        let samples = parse(&metrics.encode());
        let version = format!("fusebox_build_info{{version={}}}", env!("CARGO_PKG_VERSION"));
        for (series, want) in [
            (version.as_str(), 1.0),
            ("fusebox_incidents{severity=critical}", 0.0),
            ("fusebox_incidents{severity=info}", 0.0),
            ("fusebox_config_reloads_total{result=failed}", 0.0),
            ("fusebox_config_last_reload_successful{}", 1.0),
            ("fusebox_observations_dropped_total{}", 0.0),
            ("fusebox_progress_reports_dropped_total{}", 0.0),
            ("fusebox_agent_overflow_total{}", 0.0),
            ("fusebox_agents_turned_away{}", 0.0),
            ("fusebox_label_overflow_total{}", 0.0),
            ("fusebox_agents{}", 0.0),
        ] {
            assert_eq!(samples.get(series), Some(&want), "{series}");
        }
        assert!(!samples.contains_key("process_start_time_seconds{}"));
    }

    #[test]
    fn events_are_counted() {
        let metrics = Metrics::new(10);
        metrics.started(Wall::from_unix_millis(1_767_225_600_500));
        metrics.reloaded(false);
        metrics.incident_opened("token_explosion", Severity::Critical);
        metrics.incidents_open(Severity::Critical, 2);
        metrics.remediation("throttle", "applied");
        metrics.remediation("throttle", "applied");
        metrics.notice("pager \"one\"", "failed");
        metrics.observation_dropped();
        metrics.gauges(1, 2, 3, 4);
        metrics.overflow(5, 7);
        metrics.overflow(6, 9);
        let samples = parse(&metrics.encode());
        for (series, want) in [
            ("process_start_time_seconds{}", 1_767_225_600.5),
            ("fusebox_config_reloads_total{result=failed}", 1.0),
            ("fusebox_config_last_reload_successful{}", 0.0),
            (
                "fusebox_incidents_opened_total{rule=token_explosion,severity=critical}",
                1.0,
            ),
            ("fusebox_incidents{severity=critical}", 2.0),
            ("fusebox_remediations_total{action=throttle,result=applied}", 2.0),
            ("fusebox_notices_total{result=failed,target=pager \"one\"}", 1.0),
            ("fusebox_observations_dropped_total{}", 1.0),
            ("fusebox_agent_overflow_total{}", 9.0),
            ("fusebox_agents_turned_away{}", 6.0),
            ("fusebox_agents{}", 1.0),
            ("fusebox_directives{}", 2.0),
            ("fusebox_connections{}", 3.0),
            ("fusebox_requests_waiting{}", 4.0),
        ] {
            assert_eq!(samples.get(series), Some(&want), "{series}");
        }
        metrics.reloaded(true);
        let samples = parse(&metrics.encode());
        assert_eq!(samples["fusebox_config_last_reload_successful{}"], 1.0);
    }

    #[test]
    fn exchanges_are_counted_by_their_labels() {
        let metrics = Metrics::new(10);
        let handles = metrics.handles(&labels("a", Some("gpt-4o")));
        handles.record(&observation(json!({
            "input_total": 100, "output_total": 20, "cached_input_tokens": 60, "reasoning_tokens": 5,
            "cost_usd": 0.25, "ttft_ms": 120.0, "duration_ms": 2101.0, "overhead_us": 1000,
            "actions": [{"kind": "delayed", "ms": 100}]
        })));
        handles.record(&observation(json!({
            "outcome": "refused", "status": 429, "overhead_us": 5, "duration_ms": 100_000.0
        })));
        handles.record(&observation(json!({
            "outcome": "upstream_error", "status": 502, "overhead_us": 20, "duration_ms": 1e9, "input_total": 3
        })));
        let other = metrics.handles(&labels("b\n\"\\", None));
        other.record(&observation(json!({"status": 0, "outcome": "client_abort"})));
        let samples = parse(&metrics.encode());
        let a = "agent=a,api=openai.chat";
        let rest = "provider=openai";
        for (series, want) in [
            (
                format!(
                    "fusebox_requests_total{{{a},model=gpt-4o,outcome=complete,{rest},status_class=2xx,upstream=u}}"
                ),
                1.0,
            ),
            (
                format!(
                    "fusebox_requests_total{{{a},model=gpt-4o,outcome=refused,{rest},status_class=4xx,upstream=u}}"
                ),
                1.0,
            ),
            (
                format!(
                    "fusebox_requests_total{{{a},model=gpt-4o,outcome=upstream_error,{rest},status_class=5xx,upstream=u}}"
                ),
                1.0,
            ),
            (
                format!(
                    "fusebox_requests_total{{agent=b_\"\\,api=openai.chat,model=unknown,outcome=client_abort,{rest},status_class=none,upstream=u}}"
                ),
                1.0,
            ),
            (
                format!("fusebox_tokens_total{{{a},model=gpt-4o,{rest},type=input,upstream=u}}"),
                103.0,
            ),
            (
                format!("fusebox_tokens_total{{{a},model=gpt-4o,{rest},type=output,upstream=u}}"),
                20.0,
            ),
            (
                format!("fusebox_tokens_total{{{a},model=gpt-4o,{rest},type=cached_input,upstream=u}}"),
                60.0,
            ),
            (
                format!("fusebox_tokens_total{{{a},model=gpt-4o,{rest},type=reasoning,upstream=u}}"),
                5.0,
            ),
            (
                format!("fusebox_cost_usd_total{{{a},model=gpt-4o,{rest},upstream=u}}"),
                0.25,
            ),
            (
                format!("fusebox_unpriced_requests_total{{{a},model=gpt-4o,{rest},upstream=u}}"),
                1.0,
            ),
            (
                format!("fusebox_upstream_duration_seconds_count{{{a},model=gpt-4o,{rest},upstream=u}}"),
                2.0,
            ),
            // 2101 ms less 1 ms of ours and 100 ms on purpose.
            (
                format!(
                    "fusebox_upstream_duration_seconds_bucket{{{a},le=1.0,model=gpt-4o,{rest},upstream=u}}"
                ),
                0.0,
            ),
            (
                format!(
                    "fusebox_upstream_duration_seconds_bucket{{{a},le=2.5,model=gpt-4o,{rest},upstream=u}}"
                ),
                1.0,
            ),
            (
                format!(
                    "fusebox_upstream_duration_seconds_bucket{{{a},le=+Inf,model=gpt-4o,{rest},upstream=u}}"
                ),
                2.0,
            ),
            (
                format!("fusebox_time_to_first_token_seconds_sum{{{a},model=gpt-4o,{rest},upstream=u}}"),
                0.12,
            ),
            // That of all agents together.
            (
                format!("fusebox_overhead_seconds_count{{api=openai.chat,{rest},upstream=u}}"),
                3.0,
            ),
            (
                format!("fusebox_overhead_seconds_sum{{api=openai.chat,{rest},upstream=u}}"),
                0.001_021,
            ),
            (
                format!("fusebox_overhead_seconds_bucket{{api=openai.chat,le=0.001,{rest},upstream=u}}"),
                3.0,
            ),
        ] {
            let got = samples.get(&series).copied();
            assert!(
                got.is_some_and(|v| (v - want).abs() < 1e-9),
                "{series}: {got:?}, not {want}"
            );
        }
        let absent = format!("fusebox_tokens_total{{{a},model=gpt-4o,{rest},type=cache_write,upstream=u}}");
        assert!(!samples.contains_key(&absent));
    }

    #[test]
    fn what_is_no_number_harms_nothing() {
        let metrics = Metrics::new(10);
        let handles = metrics.handles(&labels("a", None));
        let mut broken = observation(json!({}));
        for value in [f64::NAN, f64::INFINITY, -1.0] {
            broken.duration_ms = value;
            broken.ttft_ms = Some(value);
            handles.record(&broken);
        }
        let samples = parse(&metrics.encode());
        assert_eq!(
            samples["fusebox_upstream_duration_seconds_count{agent=a,api=openai.chat,model=unknown,provider=openai,upstream=u}"],
            3.0
        );
    }

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = Metrics::new(5);
        for i in 0..100 {
            let model = format!("m{i}");
            metrics
                .handles(&labels("a", Some(&model)))
                .record(&observation(json!({})));
        }
        let samples = parse(&metrics.encode());
        assert_eq!(samples["fusebox_label_overflow_total{}"], 95.0);
        let requests: Vec<_> = samples
            .iter()
            .filter(|(k, _)| k.starts_with("fusebox_requests_total"))
            .collect();
        assert_eq!(requests.len(), 6);
        let overflow = requests
            .iter()
            .find(|(k, _)| k.contains("agent=overflow,") && k.contains("model=overflow,"));
        assert_eq!(overflow.map(|(_, v)| **v), Some(95.0));
    }
}
