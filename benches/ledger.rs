//! What the ledger costs: observations a second in and out, and how long a record takes to be durable.
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot be set up has nothing to measure"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use fusebox::clock::Clock;
use fusebox::store::{Ledger, LedgerOptions, ObservationFilter, Reader, Record, StateRow};
use fusebox::telemetry::metrics::Metrics;
use fusebox::types::observation::Observation;
use fusebox::types::time::Wall;

/// Observations of one measured batch; no more may be queued at once.
const BATCH: usize = 50_000;

#[expect(clippy::vec_box, reason = "as the ledger takes them")]
fn observations(first: usize) -> Vec<Box<Observation>> {
    let now = Clock::system().wall().unix_millis();
    (first..first + BATCH)
        .map(|n| {
            let time = Wall::from_unix_millis(now + n as i64 / 10);
            let line = format!(
                r#"{{"request_id":"0190f3b2-{n:012x}","time":"{time}","agent":"agent-{}","agent_source":"header","agent_version":"v{}","execution":"e-{}","execution_source":"header","upstream":"openai","provider":"openai","api":"openai.chat","model_requested":"gpt-4o","model_served":"gpt-4o-2024-08-06","status":200,"stream":true,"outcome":"complete","usage_source":"reported","input_tokens":900,"output_tokens":200,"total_tokens":1100,"cached_input_tokens":12,"input_total":900,"output_total":200,"finish_reason":"stop","error_type":null,"error_code":null,"tool_calls":["search"],"output_chars":800,"ttfb_ms":210.125,"ttft_ms":230.5,"duration_ms":1800.25,"overhead_us":30,"cost_usd":0.004,"actions":[]}}"#,
                n % 100,
                n % 3,
                n / 4
            );
            Box::new(serde_json::from_str(&line).expect("a valid observation"))
        })
        .collect()
}

fn state(n: u64) -> Record {
    Record::State(StateRow {
        key: "bench".to_owned(),
        document: format!("{{\"n\":{n}}}"),
    })
}

fn ledger(c: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ledger.db");
    let open = || {
        Ledger::open(
            LedgerOptions::at(&path),
            Clock::system(),
            Arc::new(Metrics::new(10)),
        )
        .expect("a ledger")
        .0
    };
    let mut group = c.benchmark_group("ledger");
    group.sample_size(10);

    let writer = open();
    let mut n = 0;
    group.bench_function("a record until it is durable", |b| {
        b.iter(|| {
            n += 1;
            writer.record(vec![state(n)]).wait().expect("it is durable");
        });
    });
    group.throughput(Throughput::Elements(BATCH as u64));
    let mut first = 0;
    group.bench_function("observations written, 100 agents", |b| {
        b.iter_batched(
            || {
                first += BATCH;
                observations(first)
            },
            |batch| {
                for observation in batch {
                    assert!(writer.observe(observation), "the queue is full");
                }
                n += 1;
                writer.record(vec![state(n)]).wait().expect("it is durable");
            },
            BatchSize::PerIteration,
        );
    });
    drop(writer);

    let reader = Reader::open(&path).expect("a ledger");
    let count = reader.observations(ObservationFilter::default()).count();
    group.throughput(Throughput::Elements(count as u64));
    group.bench_function("observations read", |b| {
        b.iter(|| {
            let mut tokens = 0_u64;
            for observation in reader.observations(ObservationFilter::default()) {
                let observation = observation.expect("it is whole");
                tokens += observation.normalised.total().unwrap_or(0);
                black_box(&observation);
            }
            tokens
        });
    });
    group.finish();
    let info = reader.info().expect("it can be read");
    let bytes = info.bytes / count.max(1) as u64;
    println!("{count} observations, {bytes} bytes each in the file");
}

criterion_group!(benches, ledger);
criterion_main!(benches);
