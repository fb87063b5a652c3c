//! The ledger as its users meet it: what is put is read back, over restarts, broken files and full disks.

mod broken;
mod exchange;
mod rows;
mod trouble;

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::clock::Clock;
use crate::telemetry::metrics::Metrics;
use crate::types::observation::Observation;
use crate::types::time::{Mono, Now, Wall};

/// 2026-01-01T00:00:00Z.
const START: i64 = 1_767_225_600_000;

/// A directory in memory where there is one: hundreds of files are synced here, and no power is lost.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn wall(seconds: i64) -> Wall {
    Wall::from_unix_millis(START + seconds * 1000)
}

fn clock() -> Clock {
    Clock::manual(Now {
        mono: Mono::from_millis(1_000),
        wall: wall(0),
    })
}

fn open_with(options: LedgerOptions) -> (Ledger, Opened) {
    Ledger::open(options, clock(), Arc::new(Metrics::new(100))).unwrap_or_else(|e| panic!("{e}"))
}

fn open(path: &Path) -> (Ledger, Opened) {
    open_with(LedgerOptions::at(path))
}

fn incident(id: &str) -> IncidentRow {
    IncidentRow {
        id: id.to_owned(),
        rule: "token_explosion".to_owned(),
        subject_kind: "agent".to_owned(),
        subject: "billing".to_owned(),
        agent: Some("billing".to_owned()),
        state: "enforced".to_owned(),
        severity: "warning".to_owned(),
        opened: wall(1),
        changed: wall(2),
        resolved: None,
        record: r#"{"id":1}"#.to_owned(),
        live: Some(r#"{"step": 2}"#.to_owned()),
    }
}

fn lease(id: &str, incident: &str) -> LeaseRow {
    LeaseRow {
        id: id.to_owned(),
        incident: incident.to_owned(),
        kind: "throttle".to_owned(),
        subject: "billing".to_owned(),
        order: "{}".to_owned(),
        since: wall(1),
        expires: wall(600),
        state: LeaseState::Active,
    }
}

fn state(key: &str, document: &str) -> Record {
    Record::State(StateRow {
        key: key.to_owned(),
        document: document.to_owned(),
    })
}

fn observation(agent: &str, execution: &str, at: Wall) -> Observation {
    let line = format!(
        r#"{{"request_id":"r","time":"{at}","agent":"{agent}","agent_source":"header","agent_version":null,"execution":"{execution}","execution_source":"header","upstream":"openai","provider":"openai","api":"openai.chat","model_requested":"gpt-4o","model_served":"gpt-4o-2024","status":200,"stream":true,"outcome":"complete","usage_source":"reported","input_tokens":900,"output_tokens":200,"total_tokens":1100,"cached_input_tokens":100,"input_total":900,"output_total":200,"finish_reason":"stop","error_type":null,"error_code":null,"tool_calls":["a",null],"output_chars":800,"ttfb_ms":210.25,"ttft_ms":230.1,"duration_ms":1800.0,"overhead_us":30,"cost_usd":0.004,"actions":[{{"kind":"delayed","ms":5}}]}}"#
    );
    serde_json::from_str(&line).unwrap()
}

fn all(reader: &Reader) -> Vec<Observation> {
    let all: Result<Vec<_>, _> = reader.observations(ObservationFilter::default()).collect();
    all.unwrap()
}

/// Waits for something that another thread does.
#[track_caller]
fn eventually(what: &str, mut true_at_last: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if true_at_last() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    panic!("not within ten seconds: {what}");
}
