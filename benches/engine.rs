//! What judging costs: observations per second through the engine, by number of agents and of rules.
#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot be set up has nothing to measure"
)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fusebox::config::{self, Overrides};
use fusebox::incident::engine::Engine;
use fusebox::incident::input::Input;
use fusebox::incident::metric::Unit;
use fusebox::incident::rule::Metric;
use fusebox::types::observation::Observation;
use fusebox::types::time::{Mono, Now, Wall};

/// Observations of one measured batch.
const BATCH: usize = 20_000;

fn observation(agent: usize, execution: usize) -> Observation {
    let line = format!(
        r#"{{"request_id":"r","time":"2026-01-01T00:00:00Z","agent":"agent-{agent}","agent_source":"header","agent_version":null,"execution":"e-{execution}","execution_source":"header","upstream":"openai","provider":"openai","api":"openai.chat","model_requested":"gpt-4o","model_served":"gpt-4o","status":200,"stream":true,"outcome":"complete","usage_source":"reported","input_tokens":900,"output_tokens":200,"total_tokens":1100,"input_total":900,"output_total":200,"finish_reason":"stop","error_type":null,"error_code":null,"tool_calls":[],"output_chars":800,"ttfb_ms":210.0,"ttft_ms":230.0,"duration_ms":1800.0,"overhead_us":30,"cost_usd":0.004,"actions":[]}}"#
    );
    serde_json::from_str(&line).expect("a valid observation")
}

/// Exchanges of so many agents, two to an execution, one after the other.
fn inputs(next: &mut usize, agents: usize) -> Vec<Input> {
    (0..BATCH)
        .map(|_| {
            *next += 1;
            Input::Observation(Box::new(observation(*next / 2 % agents, *next / 2)))
        })
        .collect()
}

/// Fifty rules over 200 agents: all metrics that are measured, one in four for some agents only and one in eight for
/// none of them, and one that twenty agents break, so that twenty incidents are open.
fn fifty_rules() -> String {
    let metrics = Metric::all_names().into_iter().filter(|name| {
        Metric::parse(name)
            .is_some_and(|(metric, _)| metric.not_measured().is_none() && metric != Metric::Silence)
    });
    let mut text = String::from(
        "agent_incident_rules:\n  - {name: broken, metric: tokens_per_request, baseline: 500, \
         threshold_upper: 1000, window: 5m, agents: ['agent-1?', 'agent-10?'], action: throttle_and_alert}\n",
    );
    for (i, metric) in metrics.cycle().take(49).enumerate() {
        let agents = match i % 8 {
            0 | 4 => format!(", agents: ['agent-{}*']", i % 10),
            1 => ", agents: ['other-*']".to_owned(),
            _ => String::new(),
        };
        let window = ["1m", "5m", "15m"][i % 3];
        let threshold = threshold(&metric);
        text.push_str(&format!(
            "  - {{name: r{i}, metric: {metric}, threshold_upper: {threshold}, window: {window}{agents}, \
             action: throttle_and_alert}}\n"
        ));
    }
    text
}

/// One that no exchange of the benchmark breaks.
fn threshold(metric: &str) -> &'static str {
    match Metric::parse(metric).map(|(metric, _)| metric.unit()) {
        Some(Unit::Seconds) => "900s",
        Some(Unit::Share) => "1.0",
        _ => "1000000000",
    }
}

fn engine(c: &mut Criterion) {
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.sample_size(20);
    let fifty = fifty_rules();
    for (rules, text, agents) in [
        ("three built-in rules", "{}", 1),
        ("three built-in rules", "{}", 100),
        ("three built-in rules", "{}", 10_000),
        ("fifty rules, twenty incidents", fifty.as_str(), 200),
    ] {
        let compiled =
            config::compile("bench", text, &Overrides::default(), &|_| None).expect("a valid configuration");
        let mut engine = Engine::new(compiled.rulebook.clone(), compiled.wiring.bounds);
        let mut effects = Vec::new();
        let mut millis = 1_000_u64;
        let mut next = 0_usize;
        group.bench_function(format!("{rules}, {agents} agents"), |b| {
            b.iter_batched(
                || inputs(&mut next, agents),
                |inputs| {
                    for (i, mut input) in inputs.into_iter().enumerate() {
                        // A thousand observations to a simulated second, with the tick that the driver sends.
                        millis += 1;
                        let now = Now {
                            mono: Mono::from_millis(millis),
                            wall: Wall::from_unix_millis(1_767_225_600_000 + millis as i64),
                        };
                        if let Input::Observation(observation) = &mut input {
                            observation.ended = now.mono;
                        }
                        engine.step(now, input, &mut effects);
                        if i % 1000 == 0 {
                            engine.step(now, Input::Tick, &mut effects);
                        }
                        effects.clear();
                    }
                },
                BatchSize::PerIteration,
            )
        });
    }
    // The part of the figures above that is not the engine's: an observation owns eleven blocks of memory, and whoever
    // takes it has to give them back.
    let mut next = 0_usize;
    group.bench_function("dropping the observations, no engine", |b| {
        b.iter_batched(
            || inputs(&mut next, 10_000),
            |inputs| inputs.into_iter().for_each(|input| drop(black_box(input))),
            BatchSize::PerIteration,
        )
    });
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
