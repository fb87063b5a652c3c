//! What is put is read back, the latest by its key, over restarts.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::packed::{Names, Numbers, pack, unpack};
use crate::types::observation::{ActionTaken, IdentitySource, Outcome};
use crate::types::usage::{Cost, Normalised, Usage, UsageSource};

#[test]
fn what_was_recorded_is_there_after_a_restart() {
    let directory = place();
    let path = directory.path().join("deep/er/ledger.db");
    let (ledger, opened) = open(&path);
    assert!(opened.fresh && opened.set_aside.is_none() && opened.degraded.is_none());
    let receipt = ledger.record(vec![
        Record::Incident(incident("i1")),
        Record::Lease(lease("l1", "i1")),
        state("brake", "{}"),
    ]);
    receipt.wait().unwrap();
    assert!(ledger.observe(Box::new(observation("a", "e", wall(3)))));
    ledger.close().unwrap();
    assert_eq!(ledger.record(vec![]).wait(), Err(NotDurable::Closed));
    assert!(!ledger.observe(Box::new(observation("a", "e", wall(3)))));

    let (ledger, opened) = open(&path);
    assert_eq!(opened, Opened::default());
    let reader = ledger.reader().unwrap();
    assert_eq!(reader.live_incidents().unwrap(), [incident("i1")]);
    assert_eq!(reader.active_leases().unwrap(), [lease("l1", "i1")]);
    assert_eq!(reader.state("brake").unwrap().as_deref(), Some("{}"));
    assert_eq!(all(&reader), [observation("a", "e", wall(3))]);
    use std::os::unix::fs::PermissionsExt;
    for name in ["ledger.db", "ledger.db-wal", "ledger.db.lock"] {
        let mode = std::fs::metadata(path.with_file_name(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_later_row_takes_the_place_of_an_earlier_one_and_forget_takes_it_out() {
    let directory = place();
    let (ledger, _) = open(&directory.path().join("l.db"));
    let closed = IncidentRow {
        state: "closed".to_owned(),
        resolved: Some(wall(9)),
        live: None,
        ..incident("i1")
    };
    ledger.record(vec![
        Record::Incident(incident("i1")),
        state("a", "1"),
        state("b", "1"),
    ]);
    ledger.record(vec![state("a", "2"), Record::Forget(Key::State("b".to_owned()))]);
    ledger
        .record(vec![Record::Incident(closed.clone())])
        .wait()
        .unwrap();
    let reader = ledger.reader().unwrap();
    assert_eq!(reader.live_incidents().unwrap(), []);
    assert_eq!(reader.incident("i1").unwrap(), Some(closed));
    assert_eq!(reader.state("a").unwrap().as_deref(), Some("2"));
    assert_eq!(reader.state("b").unwrap(), None);
    ledger
        .record(vec![Record::Forget(Key::Incident("i1".to_owned()))])
        .wait()
        .unwrap();
    assert_eq!(reader.incident("i1").unwrap(), None);
}

#[test]
fn incidents_are_found_by_what_they_are_and_page_by_page() {
    let directory = place();
    let (ledger, _) = open(&directory.path().join("l.db"));
    let rows: Vec<Record> = (0..250)
        .map(|i| {
            Record::Incident(IncidentRow {
                agent: Some(format!("agent-{}", i % 5)),
                rule: format!("rule-{}", i % 2),
                // Pairs that were opened in the same moment.
                opened: wall(i / 2),
                ..incident(&format!("i{i:03}"))
            })
        })
        .collect();
    ledger.record(rows).wait().unwrap();
    let reader = ledger.reader().unwrap();
    let mut filter = IncidentFilter {
        rule: Some("rule-1".to_owned()),
        since: Some(wall(10)),
        limit: 7,
        ..IncidentFilter::default()
    };
    let mut seen = Vec::new();
    loop {
        let page = reader.incidents(&filter).unwrap();
        assert!(page.rows.len() <= 7);
        seen.extend(page.rows.into_iter().map(|r| r.id));
        filter.cursor = page.next;
        if filter.cursor.is_none() {
            break;
        }
    }
    let expected: Vec<String> = (20..250)
        .rev()
        .filter(|i| i % 2 == 1)
        .map(|i| format!("i{i:03}"))
        .collect();
    assert_eq!(seen, expected);
    let agent = IncidentFilter {
        agent: Some("agent-3".to_owned()),
        state: Some("enforced".to_owned()),
        ..IncidentFilter::default()
    };
    assert_eq!(reader.incidents(&agent).unwrap().rows.len(), 50);
    assert_eq!(
        reader.incidents(&IncidentFilter::default()).unwrap().rows.len(),
        100
    );
    for cursor in ["", "x", "1", "9999999999999999999.x", ".'; DROP TABLE incidents"] {
        let filter = IncidentFilter {
            cursor: Some(cursor.to_owned()),
            ..IncidentFilter::default()
        };
        assert_eq!(reader.incidents(&filter).unwrap().rows, [], "{cursor}");
    }
}

#[test]
fn observations_come_in_order_of_time_and_by_agent_and_execution() {
    let directory = place();
    let (ledger, _) = open_with(LedgerOptions {
        keep_observations: Duration::from_secs(100 * 365 * 86_400),
        ..LedgerOptions::at(directory.path().join("l.db"))
    });
    let mut sent = Vec::new();
    for i in 0..3_000_i64 {
        // Out of order, many in the same millisecond, some before 1970.
        let at = match i % 1000 {
            0 => Wall::from_unix_millis(-5 - i),
            _ => Wall::from_unix_millis(START + (i * 7_919) % 500),
        };
        let mut o = observation(&format!("a{}", i % 3), &format!("e{}", i % 7), at);
        o.request_id = format!("r{i}").into();
        if i % 11 == 0 {
            o.execution = o.request_id.as_execution();
        }
        assert!(ledger.observe(Box::new(o.clone())));
        sent.push(o);
    }
    ledger.close().unwrap();
    let reader = Reader::open(ledger.path()).unwrap();
    let read = all(&reader);
    let mut expected = sent.clone();
    expected.sort_by_key(|o| o.time.unix_millis().max(0));
    let ids = |all: &[Observation]| all.iter().map(|o| o.request_id.to_string()).collect::<Vec<_>>();
    assert_eq!(ids(&read), ids(&expected));
    assert_eq!(read, expected);
    let by = |filter: ObservationFilter| {
        let found: Result<Vec<_>, _> = reader.observations(filter).collect();
        found.unwrap()
    };
    let of_agent = by(ObservationFilter {
        agent: Some("a1".to_owned()),
        from: Some(Wall::from_unix_millis(START + 100)),
        until: Some(Wall::from_unix_millis(START + 200)),
        ..ObservationFilter::default()
    });
    let wanted: Vec<_> = expected
        .iter()
        .filter(|o| o.agent.as_str() == "a1" && (100..200).contains(&(o.time.unix_millis() - START)))
        .cloned()
        .collect();
    assert!(!wanted.is_empty());
    assert_eq!(of_agent, wanted);
    let of_execution = by(ObservationFilter {
        execution: Some("e2".to_owned()),
        ..ObservationFilter::default()
    });
    assert!(of_execution.len() > 300 && of_execution.iter().all(|o| o.execution.as_str() == "e2"));
}

#[test]
fn sums_by_minute_and_day_add_up_over_batches() {
    let directory = place();
    let path = directory.path().join("l.db");
    let (ledger, _) = open(&path);
    for i in 0..240 {
        if i == 100 {
            ledger.record(vec![state("x", "1")]).wait().unwrap();
        }
        let mut o = observation("a", "e", wall(i));
        if i % 10 == 0 {
            o.status = 500;
            o.error_type = Some("server".to_owned());
        }
        assert!(ledger.observe(Box::new(o)));
    }
    ledger.close().unwrap();
    let reader = Reader::open(&path).unwrap();
    let minutes = reader.sums(Span::Minute, wall(0), wall(10_000)).unwrap();
    assert_eq!(minutes.len(), 4);
    let day = reader.sums(Span::Day, wall(0), wall(10_000)).unwrap();
    assert_eq!(
        day,
        [SumRow {
            span: Span::Day,
            start: wall(0),
            agent: "a".to_owned(),
            model: "gpt-4o-2024".to_owned(),
            upstream: "openai".to_owned(),
            requests: 240,
            errors: 24,
            input_tokens: 240 * 900,
            output_tokens: 240 * 200,
            cached_tokens: 240 * 100,
            cost_nanos: 240 * 4_000_000,
            duration_us: 240 * 1_800_000,
        }]
    );
    assert_eq!(minutes.iter().map(|m| m.requests).collect::<Vec<_>>(), [60; 4]);
}

#[test]
fn absurd_counts_do_not_break_the_sums() {
    let directory = place();
    let path = directory.path().join("l.db");
    for _ in 0..3 {
        let (ledger, _) = open(&path);
        for _ in 0..2_000 {
            let mut o = observation("a", "e", wall(0));
            o.normalised.input_total = Some(u64::MAX);
            o.duration_ms = f64::INFINITY;
            assert!(ledger.observe(Box::new(o)));
        }
        ledger.close().unwrap();
    }
    let sums = Reader::open(&path)
        .unwrap()
        .sums(Span::Day, wall(0), wall(1))
        .unwrap();
    assert_eq!((sums[0].requests, sums[0].input_tokens), (6_000, (1 << 62) - 1));
}

#[test]
fn what_is_old_goes_and_what_is_open_stays() {
    let directory = place();
    let path = directory.path().join("l.db");
    let clock = clock();
    let options = LedgerOptions {
        keep_observations: Duration::from_secs(3_600),
        keep_incidents: Duration::from_secs(7_200),
        ..LedgerOptions::at(&path)
    };
    let (ledger, _) = Ledger::open(options, clock.clone(), Arc::new(Metrics::new(10))).unwrap();
    for i in 0..5_000 {
        assert!(ledger.observe(Box::new(observation("a", "e", wall(i)))));
    }
    let closed = |id: &str, at| {
        Record::Incident(IncidentRow {
            resolved: Some(wall(at)),
            live: None,
            ..incident(id)
        })
    };
    let line = |incident: &str| {
        Record::Timeline(TimelineRow {
            incident: incident.to_owned(),
            seq: 1,
            at: wall(1),
            event: "opened".to_owned(),
            detail: String::new(),
        })
    };
    ledger
        .record(vec![
            closed("old", 100),
            line("old"),
            Record::Lease(lease("old", "old")),
            closed("new", 5_000),
            line("new"),
            Record::Incident(incident("open")),
            line("open"),
        ])
        .wait()
        .unwrap();
    clock.advance(Duration::from_secs(3_600 + 4_000));
    let reader = ledger.reader().unwrap();
    let mut n = 0;
    eventually("old observations go", || {
        n += 1;
        ledger.record(vec![state("tick", &n.to_string())]).wait().unwrap();
        let first = reader
            .observations(ObservationFilter::default())
            .next()
            .unwrap()
            .unwrap();
        first.time == wall(4_000)
    });
    assert_eq!(reader.incident("old").unwrap(), None);
    assert_eq!(
        (reader.timeline("old").unwrap(), reader.leases_of("old").unwrap()),
        (vec![], vec![])
    );
    assert!(reader.incident("new").unwrap().is_some() && reader.timeline("new").unwrap().len() == 1);
    assert!(reader.incident("open").unwrap().is_some() && reader.timeline("open").unwrap().len() == 1);
    assert_eq!(
        reader.sums(Span::Day, wall(0), wall(1)).unwrap()[0].requests,
        5_000
    );
}

#[test]
fn beyond_its_size_the_oldest_observations_go_and_the_file_shrinks() {
    let directory = place();
    let path = directory.path().join("l.db");
    let clock = clock();
    let options = LedgerOptions {
        max_bytes: 1 << 20,
        ..LedgerOptions::at(&path)
    };
    let (ledger, _) = Ledger::open(options, clock.clone(), Arc::new(Metrics::new(10))).unwrap();
    for i in 0..40_000 {
        assert!(ledger.observe(Box::new(observation("a", "e", Wall::from_unix_millis(START + i)))));
    }
    ledger.record(vec![state("x", "1")]).wait().unwrap();
    let before = ledger.reader().unwrap().info().unwrap();
    let mut n = 0;
    eventually("the file shrinks", || {
        n += 1;
        clock.advance(Duration::from_secs(11));
        ledger.record(vec![state("tick", &n.to_string())]).wait().unwrap();
        ledger.reader().unwrap().info().unwrap().bytes < (3 << 20) / 2
    });
    let after = ledger.reader().unwrap().info().unwrap();
    assert!(before.bytes > 2 << 20, "{before:?}");
    let (oldest, newest) = after.observed.unwrap();
    assert!(oldest > Wall::from_unix_millis(START) && newest == Wall::from_unix_millis(START + 39_999));
}

/// Names in memory, of which only short ones have a number.
#[derive(Default)]
struct Book(Vec<Arc<str>>);

impl Numbers for Book {
    fn number(&mut self, name: &str) -> Option<u32> {
        if name.len() > 6 {
            return None;
        }
        if !self.0.iter().any(|n| &**n == name) {
            self.0.push(name.into());
        }
        let at = self.0.iter().position(|n| &**n == name).unwrap();
        Some(at as u32 + 1)
    }
}

impl Names for Book {
    fn name(&mut self, number: u32) -> Option<Arc<str>> {
        self.0.get((number as usize).checked_sub(1)?).cloned()
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-c]{1,3}", ".{0,20}"]
}

fn any_count() -> impl Strategy<Value = Option<u64>> {
    prop::option::of(prop_oneof![0_u64..300, any::<u64>()])
}

fn any_millis() -> impl Strategy<Value = f64> {
    prop_oneof![
        (0_u32..1_000_000).prop_map(|micros| f64::from(micros) / 1e3),
        any::<f64>().prop_filter("a number", |f| !f.is_nan())
    ]
}

prop_compose! {
    fn any_observation()(
        texts in prop::collection::vec(any_text(), 14),
        maybe in prop::collection::vec(any::<bool>(), 9),
        counts in prop::collection::vec(any_count(), 15),
        times in (any_millis(), prop::option::of(any_millis()), prop::option::of(any_millis())),
        at in prop_oneof![START..START + 50, any::<i64>()],
        status in any::<u16>(),
        tools in prop::collection::vec(prop::option::of(any_text()), 0..4),
        outcome in prop::sample::select(vec![Outcome::Complete, Outcome::Truncated, Outcome::ClientAbort, Outcome::Cut, Outcome::Timeout, Outcome::UpstreamError, Outcome::Refused]),
        sources in (0_usize..10, 0_usize..10, 0_usize..4),
        delay in prop::option::of(any::<u64>()),
    ) -> Observation {
        let all = [IdentitySource::Path, IdentitySource::Header, IdentitySource::Baggage, IdentitySource::Body, IdentitySource::Config, IdentitySource::ApiKey, IdentitySource::Trace, IdentitySource::Chain, IdentitySource::Default, IdentitySource::Exchange];
        let usages = [UsageSource::Reported, UsageSource::Partial, UsageSource::Estimated, UsageSource::None];
        let text = |i: usize| texts[i].clone();
        let or_none = |i: usize, j: usize| maybe[i].then(|| text(j));
        Observation {
            request_id: text(0).into(),
            time: Wall::from_unix_millis(at),
            agent: text(1).into(),
            agent_source: all[sources.0],
            agent_version: or_none(0, 2).map(Into::into),
            execution: if maybe[8] { text(0) } else { text(3) }.into(),
            execution_source: all[sources.1],
            upstream: text(4).into(),
            provider: text(5).into(),
            api: text(6).into(),
            model_requested: or_none(1, 7).map(Into::into),
            model_served: or_none(2, 8).map(Into::into),
            status,
            stream: maybe[3],
            outcome,
            usage_source: usages[sources.2],
            usage: Usage {
                input_tokens: counts[0],
                output_tokens: counts[1],
                total_tokens: counts[2],
                cached_input_tokens: counts[3],
                cache_write_tokens: counts[4],
                reasoning_tokens: counts[5],
                input_audio_tokens: counts[6],
                output_audio_tokens: counts[7],
                tool_use_input_tokens: counts[8],
                header_input_tokens: counts[9],
                header_output_tokens: counts[10],
            },
            normalised: Normalised { input_total: counts[11], output_total: counts[12] },
            finish_reason: or_none(4, 9),
            finish_detail: or_none(5, 10),
            error_type: or_none(6, 11),
            error_code: or_none(7, 12),
            tool_calls: tools,
            output_chars: counts[13],
            ttfb_ms: times.1,
            ttft_ms: times.2,
            duration_ms: times.0,
            overhead_us: counts[14].unwrap_or(7),
            cost_usd: counts[0].map(Cost::from_nanos),
            actions: delay.map(|ms| ActionTaken::Delayed { ms }).into_iter().collect(),
            may_continue: maybe[7],
            ended: Mono::ZERO,
        }
    }
}

fn any_record() -> impl Strategy<Value = Record> {
    let id = || "[a-d]";
    let document = || {
        prop_oneof![
            Just("{\"a\": [1,2]}".to_owned()),
            any_text(),
            Just("{".to_owned())
        ]
    };
    // Times that have a text.
    let at = || (0_i64..253_000_000_000_000).prop_map(Wall::from_unix_millis);
    let maybe_at = move || prop::option::of(at());
    prop_oneof![
        (
            id(),
            any_text(),
            prop::option::of(any_text()),
            at(),
            maybe_at(),
            document(),
            prop::option::of(document())
        )
            .prop_map(|(id, text, agent, at, resolved, record, live)| Record::Incident(
                IncidentRow {
                    id,
                    rule: text.clone(),
                    subject_kind: text.clone(),
                    subject: text.clone(),
                    agent,
                    state: text.clone(),
                    severity: text,
                    opened: at,
                    changed: at,
                    resolved,
                    record,
                    live,
                }
            )),
        (id(), 0_u64..4, at(), any_text()).prop_map(|(incident, seq, at, event)| Record::Timeline(
            TimelineRow {
                incident,
                seq,
                at,
                detail: event.clone(),
                event,
            }
        )),
        (id(), any_text(), document(), at(), 0_usize..3).prop_map(|(id, text, order, at, state)| {
            Record::Lease(LeaseRow {
                id,
                incident: text.clone(),
                kind: text.clone(),
                subject: text,
                order,
                since: at,
                expires: at,
                state: LeaseState::ALL[state].0,
            })
        }),
        (
            id(),
            any_text(),
            document(),
            at(),
            maybe_at(),
            prop::option::of(any_text())
        )
            .prop_map(
                |(id, text, document, at, decided, by)| Record::Approval(ApprovalRow {
                    id,
                    incident: text.clone(),
                    step: text.clone(),
                    state: text,
                    requested: at,
                    expires: at,
                    decided,
                    via: by.clone(),
                    reason: by.clone(),
                    by,
                    document,
                })
            ),
        (id(), any_text(), document(), at(), any::<bool>()).prop_map(|(id, by, document, at, ended)| {
            Record::Silence(SilenceRow {
                id,
                document,
                starts: at,
                ends: at,
                comment: by.clone(),
                by,
                ended,
            })
        }),
        (id(), id(), document(), at()).prop_map(|(agent, version, document, at)| Record::Version(
            VersionRow {
                agent,
                version,
                first_seen: at,
                last_seen: at,
                document,
            }
        )),
        (
            id(),
            any_text(),
            document(),
            at(),
            maybe_at(),
            any::<u32>(),
            0_usize..3
        )
            .prop_map(|(id, target, document, created, next_attempt, attempts, state)| {
                Record::Delivery(DeliveryRow {
                    id,
                    incident: Some(target.clone()),
                    last_error: Some(target.clone()),
                    target,
                    created,
                    state: DeliveryState::ALL[state].0,
                    attempts,
                    next_attempt,
                    document,
                })
            }),
        (at(), any_text()).prop_map(|(at, who)| Record::Audit(AuditRow {
            at,
            via: who.clone(),
            what: who.clone(),
            detail: who.clone(),
            who,
        })),
        (id(), document()).prop_map(|(key, document)| Record::State(StateRow { key, document })),
        id().prop_map(|id| Record::Forget(Key::State(id))),
        id().prop_map(|id| Record::Forget(Key::Lease(id))),
        (id(), 0_u64..4).prop_map(|(id, seq)| Record::Forget(Key::Timeline(id, seq))),
    ]
}

/// What a ledger should hold after these records, as export lines.
fn expected(records: &[Record]) -> Vec<String> {
    let mut kept: Vec<&Record> = Vec::new();
    for record in records {
        let key = record.key();
        kept.retain(|r| {
            if key.is_some() {
                r.key() != key
            } else {
                *r != record
            }
        });
        if !matches!(record, Record::Forget(_)) {
            kept.push(record);
        }
    }
    let mut lines: Vec<String> = kept.iter().map(|r| line_of(r)).collect();
    lines.sort();
    lines
}

fn line_of(record: &Record) -> String {
    let text = serde_json::to_string(record).unwrap();
    // {"lease":{…}}
    let (_, row) = text.split_once(':').unwrap();
    row.strip_suffix('}').unwrap().to_owned()
}

/// The rows of an export, without the table's name.
fn exported(path: &Path) -> Vec<String> {
    let mut bytes = Vec::new();
    export(&Reader::open(path).unwrap(), &[], &mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let mut lines: Vec<String> = text
        .lines()
        .filter(|l| !l.starts_with("{\"table\":\"sums\""))
        .map(|l| match l.strip_prefix("{\"table\":\"") {
            Some(rest) => format!("{{{}", rest.split_once("\",").unwrap().1),
            None => l.to_owned(),
        })
        .collect();
    lines.sort();
    lines
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_observation_is_the_same_after_packing(observation in any_observation()) {
        let mut book = Book::default();
        let mut row = Vec::new();
        pack(&observation, false, &mut book, &mut row);
        prop_assert_eq!(&unpack(&row, Wall::default(), &mut book).unwrap(), &observation);
        // Cut or changed anywhere, it is refused or another observation, and nothing worse.
        for at in 0..row.len() {
            unpack(&row[..at], Wall::default(), &mut book).ok();
            let mut changed = row.clone();
            changed[at] ^= 0x55;
            unpack(&changed, Wall::default(), &mut book).ok();
        }
    }

    #[test]
    fn records_are_read_back_and_documents_survive_export(records in prop::collection::vec(any_record(), 0..30), cut in 0_usize..30) {
        let directory = place();
        let path = directory.path().join("l.db");
        let (ledger, _) = open_with(LedgerOptions {
            keep_incidents: Duration::from_secs(100 * 365 * 86_400),
            ..LedgerOptions::at(&path)
        });
        let (first, second) = records.split_at(cut.min(records.len()));
        for part in [first, second] {
            ledger.record(part.to_vec()).wait().unwrap();
        }
        ledger.close().unwrap();
        let lines = exported(&path);
        prop_assert_eq!(&lines, &expected(&records));
        // And from its export a ledger is the same again.
        let copy = directory.path().join("copy.db");
        let mut bytes = Vec::new();
        export(&Reader::open(&path).unwrap(), &[], &mut bytes).unwrap();
        import(&copy, wall(0), &bytes[..]).unwrap();
        prop_assert_eq!(&exported(&copy), &lines);
    }
}
