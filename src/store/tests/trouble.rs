//! A disk that is full or away: traffic goes on, records are kept, and written as soon as they can be.

use std::fs;
use std::time::{Duration, Instant};

use super::*;

/// A ledger whose directory cannot be made, since a file is in its way.
fn in_the_way() -> (tempfile::TempDir, std::path::PathBuf) {
    let directory = place();
    fs::write(directory.path().join("way"), "").unwrap();
    let path = directory.path().join("way/ledger.db");
    (directory, path)
}

#[test]
fn a_ledger_that_cannot_be_written_keeps_records_and_writes_them_within_five_seconds() {
    let (directory, path) = in_the_way();
    let (ledger, opened) = open(&path);
    assert!(
        opened.degraded.is_some_and(|why| why.contains("cannot make")),
        "says why"
    );
    for i in 0..1_000 {
        let said = ledger.record(vec![
            state("same", &i.to_string()),
            state(&format!("k{}", i % 10), "{}"),
        ]);
        assert!(matches!(said.wait(), Err(NotDurable::Degraded { .. })), "at once");
    }
    assert!(ledger.observe(Box::new(observation("a", "e", wall(0)))));
    eventually(
        "it counts what it keeps",
        || matches!(ledger.health(), Health::Degraded { since, kept: 11, .. } if since == wall(0)),
    );
    assert!(ledger.reader().is_err());
    fs::remove_file(directory.path().join("way")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "measures the promise")]
    let start = Instant::now();
    eventually("it recovers", || ledger.health() == Health::Ok);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let reader = ledger.reader().unwrap();
    assert_eq!(reader.state("same").unwrap().as_deref(), Some("999"));
    assert_eq!(reader.states("k").unwrap().len(), 10);
    assert_eq!(all(&reader).len(), 1);
    ledger.record(vec![state("now", "1")]).wait().unwrap();
}

#[test]
fn closing_in_trouble_says_what_stays_unwritten() {
    let (_directory, path) = in_the_way();
    let (ledger, _) = open(&path);
    ledger.record(vec![state("a", "1"), state("b", "1")]);
    let error = ledger.close().unwrap_err().to_string();
    assert!(
        error.starts_with("the ledger was closed with 2 records unwritten: "),
        "{error}"
    );
}

#[test]
fn a_file_that_is_taken_away_is_begun_anew_and_told() {
    let directory = place();
    let path = directory.path().join("l.db");
    let (ledger, _) = open(&path);
    ledger.record(vec![state("a", "1")]).wait().unwrap();
    assert_eq!(ledger.renewals(), 0);
    for entry in fs::read_dir(directory.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    ledger.record(vec![state("b", "1")]).wait().unwrap();
    assert_eq!(ledger.renewals(), 1);
    assert_eq!(ledger.reader().unwrap().state("b").unwrap().as_deref(), Some("1"));
}

#[test]
fn a_file_that_breaks_while_it_is_used_is_set_aside() {
    let directory = place();
    let path = directory.path().join("l.db");
    let (ledger, _) = open(&path);
    ledger.record(vec![state("a", "1")]).wait().unwrap();
    drop(ledger);
    let (ledger, _) = open(&path);
    let length = fs::metadata(&path).unwrap().len() as usize;
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&vec![0xa5; length - 4096], 4096).unwrap();
    ledger
        .record(vec![state("b", "1"), Record::Lease(lease("l", "i"))])
        .wait()
        .ok();
    eventually("it recovers", || ledger.health() == Health::Ok);
    ledger.record(vec![state("c", "1")]).wait().unwrap();
    let reader = ledger.reader().unwrap();
    assert!(reader.state("b").unwrap().is_some() && reader.state("c").unwrap().is_some());
    assert_eq!(reader.active_leases().unwrap().len(), 1);
    let aside = fs::read_dir(directory.path()).unwrap().filter(|e| {
        let name = e.as_ref().unwrap().file_name().to_string_lossy().into_owned();
        name.contains(".corrupt-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    });
    assert_eq!((aside.count(), ledger.renewals()), (1, 1));
}

#[test]
fn what_is_kept_is_bounded_and_history_goes_before_what_is_in_force() {
    use crate::store::pending::Pending;
    let mut pending = Pending::default();
    let audit = |n: i64| {
        Record::Audit(AuditRow {
            at: wall(n),
            who: String::new(),
            via: String::new(),
            what: String::new(),
            detail: "x".repeat(10_000),
        })
    };
    let mut taken = 0;
    for n in 0..20_000 {
        taken += i64::from(pending.push(audit(n)));
    }
    assert!((5_000..8_000).contains(&taken), "{taken}");
    assert!(pending.push(Record::Lease(lease("l", "i"))));
    assert!(pending.push(state("a", &"x".repeat(60 << 20))));
    assert!(!pending.push(state("b", &"x".repeat(60 << 20))));
    assert!(pending.push(state("a", "x")), "a smaller one in its place");
}
