//! Broken, foreign, newer, older and locked files.

use std::fs;
use std::path::PathBuf;

use rusqlite::Connection;

use super::*;
use crate::store::schema;

/// A closed ledger with a few rows of each kind; its bytes.
fn small(path: &Path) -> Vec<u8> {
    let (ledger, _) = open(path);
    for i in 0..20 {
        assert!(ledger.observe(Box::new(observation("a", "e", wall(i)))));
    }
    ledger
        .record(vec![
            Record::Incident(incident("i1")),
            Record::Lease(lease("l1", "i1")),
            state("contain", "{}"),
        ])
        .wait()
        .unwrap();
    ledger.close().unwrap();
    fs::read(path).unwrap()
}

fn attempt(path: &Path) -> Result<(Ledger, Opened), LedgerError> {
    Ledger::open(LedgerOptions::at(path), clock(), Arc::new(Metrics::new(10)))
}

/// Opens the bytes as a ledger, reads all, writes to it, and opens it once more. Where the old file went.
fn survive(path: &Path, bytes: &[u8], what: &str) -> Option<PathBuf> {
    fs::write(path, bytes).unwrap();
    let (ledger, opened) = match attempt(path) {
        Ok(opened) => opened,
        Err(LedgerError::Newer { .. } | LedgerError::Foreign { .. }) => {
            assert_eq!(fs::read(path).unwrap(), bytes, "{what}: refused and touched");
            return None;
        }
        Err(e) => panic!("{what}: {e}"),
    };
    assert!(opened.degraded.is_none(), "{what}: {opened:?}");
    let reader = ledger.reader().unwrap();
    for observation in reader.observations(ObservationFilter::default()) {
        drop(observation);
    }
    reader.live_incidents().ok();
    reader.active_leases().ok();
    drop(reader);
    assert!(ledger.observe(Box::new(observation("b", "e", wall(99)))));
    let written = ledger.record(vec![state("after", "1")]).wait();
    match written {
        Ok(()) => {}
        // Found only now; the writer sets it aside by itself.
        Err(NotDurable::Degraded { .. }) => eventually("it recovers", || ledger.health() == Health::Ok),
        Err(e) => panic!("{what}: {e}"),
    }
    assert_eq!(
        ledger.reader().unwrap().state("after").unwrap().as_deref(),
        Some("1"),
        "{what}"
    );
    ledger.close().unwrap_or_else(|e| panic!("{what}: {e}"));
    let reader = Reader::open(path).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(reader.state("after").unwrap().as_deref(), Some("1"), "{what}");
    if let Some(aside) = &opened.set_aside {
        assert_eq!(
            fs::read(aside).unwrap(),
            bytes,
            "{what}: what was set aside is what was there"
        );
    }
    opened.set_aside
}

#[test]
fn a_file_that_is_flipped_anywhere_opens_or_is_set_aside() {
    let directory = place();
    let bytes = small(&directory.path().join("good.db"));
    let mut aside = 0;
    // Every bit of the header and of the first pages' heads, and a sample of the rest.
    let header = 0..100 * 8;
    let sample = (0..bytes.len() * 8).step_by(bytes.len() * 8 / 300 + 1);
    for bit in header.step_by(3).chain(sample) {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let place = place();
        let path = place.path().join("l.db");
        aside += u32::from(survive(&path, &flipped, &format!("bit {bit}")).is_some());
    }
    assert!(aside > 20, "only {aside} were found broken");
}

#[test]
fn a_file_that_is_cut_anywhere_opens_or_is_set_aside() {
    let directory = place();
    let bytes = small(&directory.path().join("good.db"));
    for length in (0..bytes.len())
        .step_by(bytes.len() / 60 + 1)
        .chain([1, 15, 16, 99, 100, 511, 512, 4095, 4096])
    {
        let place = place();
        let aside = survive(
            &place.path().join("l.db"),
            &bytes[..length],
            &format!("cut at {length}"),
        );
        assert_eq!(aside.is_some(), length > 0, "cut at {length}");
    }
}

#[test]
fn garbage_is_set_aside_and_kept() {
    for garbage in [
        &b"this is no database at all, but the notes of somebody"[..],
        &[0; 8192],
    ] {
        let directory = place();
        let path = directory.path().join("ledger.db");
        let aside = survive(&path, garbage, "garbage").unwrap();
        let name = aside.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(name, "ledger.db.corrupt-20260101T000000.000Z");
    }
}

#[test]
fn what_is_whole_of_a_broken_file_is_carried_over() {
    let directory = place();
    let path = directory.path().join("l.db");
    let mut bytes = small(&path);
    // The head of the root page of one table.
    let page: u32 = Connection::open(&path)
        .unwrap()
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'silences'",
            [],
            |r| r.get(0),
        )
        .unwrap();
    let at = (page as usize - 1) * 4096;
    bytes[at..at + 8].fill(0xff);
    fs::write(&path, &bytes).unwrap();
    let (ledger, opened) = attempt(&path).unwrap();
    assert!(
        opened.set_aside.is_some() && opened.carried.contains(&"leases"),
        "{opened:?}"
    );
    assert!(!opened.carried.contains(&"silences"));
    let reader = ledger.reader().unwrap();
    assert_eq!(reader.live_incidents().unwrap(), [incident("i1")]);
    assert_eq!(reader.active_leases().unwrap(), [lease("l1", "i1")]);
    assert!(reader.state("contain").unwrap().is_some());
}

#[test]
fn a_write_ahead_log_that_is_cut_anywhere_keeps_what_came_before() {
    let directory = place();
    let path = directory.path().join("good.db");
    small(&path);
    let (ledger, _) = open(&path);
    // Held open, so that the log is not put into the file.
    let reader = ledger.reader().unwrap();
    for i in 0..10 {
        ledger.record(vec![state(&format!("k{i}"), "{}")]).wait().unwrap();
    }
    assert!(reader.state("k9").unwrap().is_some());
    let (main, wal) = (
        fs::read(&path).unwrap(),
        fs::read(directory.path().join("good.db-wal")).unwrap(),
    );
    for length in (0..wal.len()).step_by(wal.len() / 40 + 1) {
        let place = place();
        let copy = place.path().join("l.db");
        fs::write(&copy, &main).unwrap();
        fs::write(place.path().join("l.db-wal"), &wal[..length]).unwrap();
        let (ledger, opened) = attempt(&copy).unwrap();
        assert_eq!(opened.set_aside, None, "cut at {length}");
        let reader = ledger.reader().unwrap();
        assert_eq!(reader.live_incidents().unwrap(), [incident("i1")]);
        let there: Vec<bool> = (0..10)
            .map(|i| reader.state(&format!("k{i}")).unwrap().is_some())
            .collect();
        assert!(there.is_sorted_by(|a, b| a >= b), "a prefix: {there:?}");
    }
}

#[test]
fn a_newer_a_foreign_and_a_locked_file_are_refused_and_not_touched() {
    let directory = place();
    let path = directory.path().join("l.db");
    small(&path);
    let second = open(&path);
    let refused = attempt(&path).unwrap_err();
    assert!(matches!(refused, LedgerError::InUse { .. }));
    assert!(
        refused.to_string().contains("is in use by another fusebox"),
        "{refused}"
    );
    drop(second);

    Connection::open(&path)
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    let before = fs::read(&path).unwrap();
    let refused = attempt(&path).unwrap_err().to_string();
    assert!(
        refused.contains("has format 99, this fusebox knows up to"),
        "{refused}"
    );
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(matches!(Reader::open(&path), Err(LedgerError::Newer { .. })));

    let other = directory.path().join("other.db");
    Connection::open(&other)
        .unwrap()
        .execute_batch("CREATE TABLE mine (x)")
        .unwrap();
    let before = fs::read(&other).unwrap();
    assert!(matches!(attempt(&other), Err(LedgerError::Foreign { .. })));
    assert_eq!(fs::read(&other).unwrap(), before);

    assert!(
        attempt(directory.path())
            .unwrap_err()
            .to_string()
            .contains("no regular file")
    );
    assert!(matches!(
        Reader::open(&directory.path().join("none")),
        Err(LedgerError::Missing { .. })
    ));
}

/// The first format as it was, with a row in each table that was there.
const FIRST: &str = r#"
    PRAGMA auto_vacuum = INCREMENTAL;
    CREATE TABLE incidents (
        id TEXT NOT NULL PRIMARY KEY, rule TEXT NOT NULL, subject_kind TEXT NOT NULL, subject TEXT NOT NULL,
        agent TEXT, state TEXT NOT NULL, severity TEXT NOT NULL, opened INTEGER NOT NULL, changed INTEGER NOT NULL,
        resolved INTEGER, record TEXT NOT NULL, live TEXT
    ) STRICT;
    CREATE TABLE timeline (
        incident TEXT NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, detail TEXT NOT NULL,
        PRIMARY KEY (incident, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE leases (
        id TEXT NOT NULL PRIMARY KEY, incident TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
        "order" TEXT NOT NULL, since INTEGER NOT NULL, expires INTEGER NOT NULL, state TEXT NOT NULL
    ) STRICT;
    CREATE TABLE approvals (
        id TEXT NOT NULL PRIMARY KEY, incident TEXT NOT NULL, step TEXT NOT NULL, state TEXT NOT NULL,
        requested INTEGER NOT NULL, expires INTEGER NOT NULL, decided INTEGER, "by" TEXT, via TEXT, reason TEXT,
        document TEXT NOT NULL
    ) STRICT;
    CREATE TABLE silences (
        id TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL, starts INTEGER NOT NULL, ends INTEGER NOT NULL,
        "by" TEXT NOT NULL, comment TEXT NOT NULL, ended INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE versions (
        agent TEXT NOT NULL, version TEXT NOT NULL, first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL,
        document TEXT NOT NULL, PRIMARY KEY (agent, version)
    ) STRICT;
    CREATE TABLE deliveries (
        id TEXT NOT NULL PRIMARY KEY, target TEXT NOT NULL, incident TEXT, created INTEGER NOT NULL,
        state TEXT NOT NULL, attempts INTEGER NOT NULL, next_attempt INTEGER, document TEXT NOT NULL, last_error TEXT
    ) STRICT;
    CREATE TABLE audit (
        at INTEGER NOT NULL, who TEXT NOT NULL, via TEXT NOT NULL, what TEXT NOT NULL, detail TEXT NOT NULL,
        PRIMARY KEY (at, who, via, what, detail)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE state (key TEXT NOT NULL PRIMARY KEY, document TEXT NOT NULL) STRICT;
    INSERT INTO incidents VALUES ('i1', 'token_explosion', 'agent', 'billing', 'billing', 'enforced', 'warning',
        1767225601000, 1767225602000, NULL, '{"id":1}', '{"step": 2}');
    INSERT INTO timeline VALUES ('i1', 0, 1767225601000, 'opened', 'why');
    INSERT INTO leases VALUES ('l1', 'i1', 'throttle', 'billing', '{}', 1767225601000, 1767226200000, 'active');
    INSERT INTO approvals VALUES ('a1', 'i1', 'downgrade', 'needed', 1, 2, NULL, NULL, NULL, NULL, '{}');
    INSERT INTO silences VALUES ('s1', '{}', 1, 2, 'me', 'why', 1);
    INSERT INTO versions VALUES ('billing', 'v1', 1, 2, '{}');
    INSERT INTO deliveries VALUES ('d1', 'slack', 'i1', 1, 'queued', 3, 2, '{}', 'refused');
    INSERT INTO audit VALUES (1, 'me', 'cli', 'brake', 'on');
    INSERT INTO state VALUES ('brake', '{}');
    PRAGMA application_id = 0x66757365;
    PRAGMA user_version = 1;
"#;

#[test]
fn a_ledger_of_the_first_format_is_brought_to_the_latest_with_all_its_rows() {
    let directory = place();
    let path = directory.path().join("l.db");
    Connection::open(&path).unwrap().execute_batch(FIRST).unwrap();
    let (ledger, opened) = attempt(&path).unwrap();
    assert_eq!(
        (opened.migrated_from, opened.fresh, &opened.set_aside),
        (Some(1), false, &None)
    );
    let reader = ledger.reader().unwrap();
    assert_eq!(reader.live_incidents().unwrap(), [incident("i1")]);
    assert_eq!(reader.active_leases().unwrap(), [lease("l1", "i1")]);
    assert_eq!(reader.timeline("i1").unwrap().len(), 1);
    assert_eq!(reader.approvals(Some("needed")).unwrap().len(), 1);
    assert!(reader.silences().unwrap()[0].ended);
    assert_eq!(reader.versions(Some("billing")).unwrap().len(), 1);
    assert_eq!(reader.queued_deliveries().unwrap()[0].attempts, 3);
    assert_eq!(reader.audit(10).unwrap()[0].what, "brake");
    assert_eq!(reader.info().unwrap().format, schema::LATEST);
    assert!(ledger.observe(Box::new(observation("a", "e", wall(1)))));
    ledger.close().unwrap();
    assert_eq!(all(&Reader::open(&path).unwrap()).len(), 1);
    assert_eq!(attempt(&path).unwrap().1, Opened::default());
}

#[test]
fn the_tables_have_the_columns_of_the_rows() {
    use crate::store::row::Row;
    fn check<R: Row>(connection: &Connection) {
        let mut info = connection
            .prepare("SELECT name FROM pragma_table_info(?)")
            .unwrap();
        let names: Vec<String> = info
            .query_map([R::TABLE], |r| r.get(0))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        let rows: Vec<String> = R::COLUMNS.iter().map(|c| (*c).to_owned()).collect();
        // In any order but for `carry over`, which needs none.
        assert_eq!(
            {
                let mut n = names;
                n.sort();
                n
            },
            {
                let mut r = rows;
                r.sort();
                r
            },
            "{}",
            R::TABLE
        );
    }
    let directory = place();
    let path = directory.path().join("l.db");
    small(&path);
    let c = Connection::open(&path).unwrap();
    check::<IncidentRow>(&c);
    check::<TimelineRow>(&c);
    check::<LeaseRow>(&c);
    check::<ApprovalRow>(&c);
    check::<SilenceRow>(&c);
    check::<VersionRow>(&c);
    check::<DeliveryRow>(&c);
    check::<AuditRow>(&c);
    check::<StateRow>(&c);
}
