//! What judging costs: observations per second through the engine, at one to ten thousand agents, three rules on.
#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot be set up has nothing to measure"
)]

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fusebox::config::{self, Overrides};
use fusebox::incident::engine::Engine;
use fusebox::incident::input::Input;
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

fn engine(c: &mut Criterion) {
    let compiled =
        config::compile("bench", "{}", &Overrides::default(), &|_| None).expect("the defaults compile");
    let mut group = c.benchmark_group("engine, three built-in rules");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.sample_size(20);
    for agents in [1, 100, 10_000] {
        let mut engine = Engine::new(compiled.rulebook.clone(), compiled.wiring.bounds);
        let mut effects = Vec::new();
        let mut millis = 1_000_u64;
        let mut next = 0_usize;
        group.bench_function(format!("{agents} agents"), |b| {
            b.iter_batched(
                || {
                    (0..BATCH)
                        .map(|_| {
                            next += 1;
                            // Two exchanges to an execution.
                            Input::Observation(Box::new(observation(next / 2 % agents, next / 2)))
                        })
                        .collect::<Vec<_>>()
                },
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
    group.finish();
}

criterion_group!(benches, engine);
criterion_main!(benches);
