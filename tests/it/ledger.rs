//! The ledger of a process that is killed, whose disk is full, and as the command line shows it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fusebox::clock::Clock;
use fusebox::store::{
    ApprovalRow, DeliveryRow, DeliveryState, Health, IncidentRow, LeaseRow, LeaseState, Ledger,
    LedgerOptions, ObservationFilter, Opened, Reader, Record, StateRow, TimelineRow,
};
use fusebox::telemetry::metrics::Metrics;
use fusebox::types::observation::Observation;
use fusebox::types::time::Wall;

use crate::support::fusebox::{finished, program};

/// Set for the process that is to be killed.
const PATH: &str = "FUSEBOX_TEST_LEDGER";
/// How many threads of it record.
const THREADS: u64 = 3;
const ROUNDS: u32 = 200;

fn open(path: &Path) -> (Ledger, Opened) {
    Ledger::open(
        LedgerOptions::at(path),
        Clock::system(),
        Arc::new(Metrics::new(100)),
    )
    .unwrap_or_else(|e| panic!("{e}"))
}

fn at(n: u64) -> Wall {
    Wall::from_unix_millis(1_900_000_000_000 + n as i64)
}

fn observation(n: u64) -> Box<Observation> {
    let time = at(n);
    let line = format!(
        r#"{{"request_id":"r{n}","time":"{time}","agent":"agent-{}","agent_source":"header","agent_version":null,"execution":"e{}","execution_source":"header","upstream":"openai","provider":"openai","api":"openai.chat","model_requested":"gpt-4o","model_served":"gpt-4o","status":200,"stream":true,"outcome":"complete","usage_source":"reported","input_tokens":900,"output_tokens":200,"total_tokens":1100,"input_total":900,"output_total":200,"finish_reason":"stop","error_type":null,"error_code":null,"tool_calls":[],"output_chars":800,"ttfb_ms":210.0,"ttft_ms":230.0,"duration_ms":1800.0,"overhead_us":30,"cost_usd":0.004,"actions":[]}}"#,
        n % 10,
        n / 3
    );
    serde_json::from_str(&line).unwrap()
}

/// Everything that one transition of an incident leaves behind.
fn transition(n: u64) -> Vec<Record> {
    let (id, step) = (format!("i{n}"), n % 5);
    let document = format!("{{\"n\":{n}}}");
    vec![
        Record::Incident(IncidentRow {
            id: id.clone(),
            rule: "rule".to_owned(),
            subject_kind: "agent".to_owned(),
            subject: "billing".to_owned(),
            agent: None,
            state: "enforced".to_owned(),
            severity: "warning".to_owned(),
            opened: at(n),
            changed: at(n),
            resolved: None,
            record: document.clone(),
            live: Some(document.clone()),
        }),
        Record::Timeline(TimelineRow {
            incident: id.clone(),
            seq: step,
            at: at(n),
            event: "step".to_owned(),
            detail: document.clone(),
        }),
        Record::Lease(LeaseRow {
            id: format!("l{n}"),
            incident: id.clone(),
            kind: "throttle".to_owned(),
            subject: "billing".to_owned(),
            order: document.clone(),
            since: at(n),
            expires: at(n + 1),
            state: LeaseState::Active,
        }),
        Record::Approval(ApprovalRow {
            id: format!("a{n}"),
            incident: id.clone(),
            step: "downgrade".to_owned(),
            state: "needed".to_owned(),
            requested: at(n),
            expires: at(n + 1),
            decided: None,
            by: None,
            via: None,
            reason: None,
            document: document.clone(),
        }),
        Record::Delivery(DeliveryRow {
            id: format!("d{n}"),
            target: "slack".to_owned(),
            incident: Some(id),
            created: at(n),
            state: DeliveryState::Queued,
            attempts: 0,
            next_attempt: None,
            document: document.clone(),
            last_error: None,
        }),
        Record::State(StateRow {
            key: format!("contain/{n}"),
            document,
        }),
    ]
}

/// Not a test by itself: what the process does that is killed. It says each transition that it was told is durable.
#[test]
fn child_that_is_killed() {
    let Some(path) = std::env::var_os(PATH) else {
        return;
    };
    let (ledger, opened) = open(Path::new(&path));
    assert!(
        opened.set_aside.is_none() && opened.degraded.is_none(),
        "{opened:?}"
    );
    let first: u64 = std::env::var("FUSEBOX_TEST_FIRST").unwrap().parse().unwrap();
    say(&format!(
        "ready {}",
        ledger.reader().unwrap().live_incidents().unwrap().len()
    ));
    let observer = ledger.clone();
    std::thread::spawn(move || {
        for n in first.. {
            observer.observe(observation(n));
            if n % 50 == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let ledger = &ledger;
            scope.spawn(move || {
                for n in (first + thread..).step_by(THREADS as usize) {
                    ledger.record(transition(n)).wait().unwrap();
                    say(&format!("durable {n}"));
                }
            });
        }
    });
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").unwrap();
    out.flush().unwrap();
}

#[test]
fn two_hundred_kills_lose_nothing_that_was_said_to_be_durable() {
    // In memory where that is possible: a kill takes nothing from the kernel, and more happens before it.
    let directory = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap();
    let path = directory.path().join("ledger.db");
    let mut durable: HashMap<u64, ()> = HashMap::new();
    let mut first = 0;
    let (mut observed, mut slowest) = (0, Duration::ZERO);
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "ledger::child_that_is_killed",
                "--nocapture",
                "--quiet",
            ])
            .env(PATH, &path)
            .env("FUSEBOX_TEST_FIRST", first.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A moment between its start and well into its work.
        let ready = lines.by_ref().find(|l| l.as_ref().unwrap().starts_with("ready"));
        assert!(ready.is_some(), "round {round} of seed {seed}: it did not start");
        for _ in 0..random.u32(0..3) {
            if let Some(n) = lines
                .next()
                .and_then(|l| l.unwrap().strip_prefix("durable ").map(str::to_owned))
            {
                durable.insert(n.parse().unwrap(), ());
            }
        }
        std::thread::sleep(Duration::from_micros(random.u64(0..30_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in lines {
            if let Some(n) = line.unwrap().strip_prefix("durable ") {
                durable.insert(n.parse().unwrap(), ());
            }
        }
        first += 1_000_000;

        #[expect(clippy::disallowed_methods, reason = "how long a restart takes is a promise")]
        let start = Instant::now();
        let (ledger, opened) = open(&path);
        slowest = slowest.max(start.elapsed());
        assert_eq!(
            opened,
            Opened {
                fresh: false,
                ..Opened::default()
            },
            "round {round} of seed {seed}"
        );
        // All at the end, and the last ones after each kill.
        if round % 20 == 19 {
            observed = verify(
                &ledger.reader().unwrap(),
                &durable,
                &format!("round {round} of seed {seed}"),
            );
        }
        ledger.close().unwrap();
    }
    assert!(
        durable.len() > 200,
        "only {} transitions in all rounds",
        durable.len()
    );
    assert_eq!(Reader::open(&path).unwrap().check().unwrap(), [""; 0]);
    eprintln!(
        "{ROUNDS} kills, {} transitions durable, {observed} observations, slowest start {slowest:?}",
        durable.len()
    );
}

/// Each durable transition is there whole, and no other in part.
fn verify(reader: &Reader, durable: &HashMap<u64, ()>, what: &str) -> usize {
    let mut parts: HashMap<u64, Vec<Record>> = HashMap::new();
    let mut put = |n: &str, record| parts.entry(n.parse().unwrap()).or_default().push(record);
    for row in reader.live_incidents().unwrap() {
        let line = reader.timeline(&row.id).unwrap();
        assert_eq!(line.len(), 1, "{what}: {}", row.id);
        put(&row.id.clone()[1..], Record::Incident(row));
        for line in line {
            put(&line.incident.clone()[1..], Record::Timeline(line));
        }
    }
    for row in reader.active_leases().unwrap() {
        put(&row.id.clone()[1..], Record::Lease(row));
    }
    for row in reader.approvals(Some("needed")).unwrap() {
        put(&row.id.clone()[1..], Record::Approval(row));
    }
    for row in reader.queued_deliveries().unwrap() {
        put(&row.id.clone()[1..], Record::Delivery(row));
    }
    for row in reader.states("contain/").unwrap() {
        put(&row.key.clone()[8..], Record::State(row));
    }
    for n in durable.keys() {
        assert!(
            parts.contains_key(n),
            "{what}: transition {n} was durable and is gone"
        );
    }
    for (n, rows) in parts {
        assert_eq!(rows, transition(n), "{what}");
    }
    let mut observed = 0;
    for found in reader.observations(ObservationFilter::default()) {
        let found = found.unwrap();
        let n = found.request_id.as_str()[1..].parse().unwrap();
        assert_eq!(found, *observation(n), "{what}");
        observed += 1;
    }
    observed
}

/// A small file system of its own, where that may be made.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(directory.path())
            .stderr(Stdio::null())
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Self(directory)),
            _ => {
                eprintln!("skipped: a file system cannot be mounted here");
                None
            }
        }
    }

    fn remount(&self, how: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{how}")])
            .arg(self.0.path())
            .status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(self.0.path()).status().ok();
    }
}

#[track_caller]
fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "measures the promise")]
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_full_disk_is_told_and_survived() {
    let Some(disk) = Disk::mount() else { return };
    let path = disk.0.path().join("ledger.db");
    let (ledger, _) = open(&path);
    ledger.record(transition(0)).wait().unwrap();
    let filler = disk.0.path().join("filler");
    let fill = || {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(&filler)
            .unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    };
    fill();
    let mut last = 0;
    within(Duration::from_secs(30), "it is full", || {
        last += 1;
        fill();
        ledger.observe(observation(last));
        ledger.record(transition(last)).wait().is_err()
    });
    let Health::Degraded { why, .. } = ledger.health() else {
        panic!("it is not told")
    };
    assert!(why.contains("full"), "{why}");
    for n in last + 1..last + 50 {
        assert!(ledger.record(transition(n)).wait().is_err());
    }
    std::fs::remove_file(&filler).unwrap();
    within(Duration::from_secs(5), "it writes again", || {
        ledger.health() == Health::Ok
    });
    let durable = (0..last + 50).map(|n| (n, ())).collect();
    verify(&ledger.reader().unwrap(), &durable, "after the disk was full");
    ledger.close().unwrap();
    assert_eq!(Reader::open(&path).unwrap().check().unwrap(), [""; 0]);
}

#[test]
fn a_disk_that_becomes_read_only_is_told_and_survived() {
    let Some(disk) = Disk::mount() else { return };
    let path = disk.0.path().join("ledger.db");
    let (ledger, _) = open(&path);
    ledger.record(transition(0)).wait().unwrap();
    ledger.close().unwrap();
    disk.remount("ro");
    let (ledger, opened) = open(&path);
    assert!(opened.degraded.is_some(), "{opened:?}");
    assert!(ledger.record(transition(1)).wait().is_err());
    disk.remount("rw");
    within(Duration::from_secs(5), "it writes again", || {
        ledger.health() == Health::Ok
    });
    verify(
        &ledger.reader().unwrap(),
        &HashMap::from([(0, ()), (1, ())]),
        "after read-only",
    );
}

#[test]
fn the_command_line_exports_imports_checks_and_informs() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one.db"), directory.path().join("two.db"));
    let (ledger, _) = open(&one);
    for n in 0..50 {
        ledger.observe(observation(n));
    }
    ledger.record(transition(1)).wait().unwrap();
    let run = |args: &[&str]| {
        let output = finished(program().arg("ledger").args(args));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (path, copy) = (one.display().to_string(), two.display().to_string());
    // While it is open.
    let (code, lines, _) = run(&["export", &path]);
    assert_eq!(code, Some(0));
    assert_eq!(
        lines.lines().filter(|l| l.starts_with("{\"request_id\"")).count(),
        50
    );
    let (code, _, said) = run(&["import", &path, "/dev/null"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("is in use by another fusebox"), "{said}");
    ledger.close().unwrap();

    let file = directory.path().join("export.ndjson");
    std::fs::write(&file, &lines).unwrap();
    let file = file.display().to_string();
    for new in ["50 new observations, 0 known", "0 new observations, 50 known"] {
        let (code, _, said) = run(&["import", &copy, &file]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains(new), "{said}");
    }
    assert_eq!(run(&["export", &copy]).1, lines);
    let (_, observations, _) = run(&["export", &copy, "--table", "observations"]);
    assert_eq!(observations.lines().count(), 50);
    assert_eq!(
        run(&["check", &copy]),
        (Some(0), format!("{copy}: whole\n"), String::new())
    );
    let (code, info, _) = run(&["info", &copy]);
    assert_eq!(code, Some(0));
    assert!(
        info.contains("observations   50") && info.contains("leases         1"),
        "{info}"
    );
    let (code, _, said) = run(&["info", "/nowhere/l.db"]);
    assert_eq!(
        (code, said.as_str()),
        (
            Some(1),
            "error: there is no ledger at /nowhere/l.db; give the path of one, as `ledger.path` names it\n"
        )
    );
    std::fs::write(
        &file,
        "{\"table\":\"state\",\"key\":\"k\",\"document\":{}}\nnonsense\n",
    )
    .unwrap();
    let (code, _, said) = run(&["import", &copy, &file]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("line 2: ") && said.contains("nothing was imported"),
        "{said}"
    );
    assert_eq!(run(&["export", &copy]).1, lines);
}
