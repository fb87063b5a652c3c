//! Export and import.

use super::*;

fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    export(&Reader::open(path).unwrap(), &[], &mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn filled(path: &Path) {
    let (ledger, _) = open(path);
    for i in 0..300 {
        // Every third is there twice.
        let times = if i % 3 == 0 { 2 } else { 1 };
        for _ in 0..times {
            assert!(ledger.observe(Box::new(observation("a", "e", wall(i)))));
        }
    }
    ledger
        .record(vec![
            Record::Incident(incident("i1")),
            Record::Lease(lease("l1", "i1")),
            state("plain", "text"),
            state("object", r#"{"a": 1,  "b":[]}"#),
        ])
        .wait()
        .unwrap();
    ledger.close().unwrap();
}

#[test]
fn an_export_reads_well_and_makes_the_same_ledger() {
    let directory = place();
    let (one, two) = (directory.path().join("one.db"), directory.path().join("two.db"));
    filled(&one);
    let exported = text(&one);
    for line in [
        r#"{"table":"incidents","id":"i1","rule":"token_explosion","subject_kind":"agent","subject":"billing","agent":"billing","state":"enforced","severity":"warning","opened":"2026-01-01T00:00:01.000Z","changed":"2026-01-01T00:00:02.000Z","resolved":null,"record":{"id":1},"live":{"step": 2}}"#,
        r#"{"table":"state","key":"object","document":{"a": 1,  "b":[]}}"#,
        r#"{"table":"state","key":"plain","document":"text"}"#,
    ] {
        assert!(exported.lines().any(|l| l == line), "{line}\n{exported}");
    }
    let observed = serde_json::to_string(&observation("a", "e", wall(1))).unwrap();
    assert!(exported.lines().any(|l| l == observed));

    let done = import(&two, wall(0), exported.as_bytes()).unwrap();
    assert_eq!((done.observations, done.known), (400, 0));
    assert_eq!(text(&two), exported);
    // Twice is once.
    let done = import(&two, wall(0), exported.as_bytes()).unwrap();
    assert_eq!((done.observations, done.known), (0, 400));
    assert_eq!(text(&two), exported);
    assert_eq!(Reader::open(&two).unwrap().check().unwrap(), [""; 0]);
}

#[test]
fn a_file_of_observations_alone_builds_the_sums() {
    let directory = place();
    let path = directory.path().join("l.db");
    let lines: String = (0..90)
        .map(|i| serde_json::to_string(&observation("a", "e", wall(i))).unwrap() + "\n")
        .collect();
    for _ in 0..2 {
        import(&path, wall(0), lines.as_bytes()).unwrap();
    }
    let sums = Reader::open(&path)
        .unwrap()
        .sums(Span::Minute, wall(0), wall(1000))
        .unwrap();
    assert_eq!(sums.iter().map(|s| s.requests).collect::<Vec<_>>(), [60, 30]);
}

#[test]
fn a_bad_line_is_named_and_nothing_is_imported() {
    let directory = place();
    let path = directory.path().join("l.db");
    filled(&path);
    let before = text(&path);
    let good = serde_json::to_string(&observation("new", "e", wall(1))).unwrap();
    for (bad, why) in [
        ("{", "EOF"),
        (r#"{"table":"nonsense"}"#, "there is no table `nonsense`"),
        (r#"{"table":"leases","id":"x"}"#, "missing field `incident`"),
        (
            r#"{"table":"state","key":"k","document":7}"#,
            "a document is an object or a string",
        ),
        (r#"{"agent":"x"}"#, "missing field"),
        ("[]", "invalid length"),
        ("\u{0}", "expected value"),
    ] {
        let lines =
            format!("{good}\n{{\"table\":\"state\",\"key\":\"new\",\"document\":\"x\"}}\n\n{bad}\n{good}\n");
        let error = import(&path, wall(0), lines.as_bytes()).unwrap_err().to_string();
        assert!(
            error.starts_with("line 4: ") && error.contains(why),
            "{bad}: {error}"
        );
        assert!(error.ends_with("; nothing was imported"), "{error}");
        assert_eq!(text(&path), before);
    }
    let error = import(&path, wall(0), &b"\xff\n"[..]).unwrap_err().to_string();
    assert!(error.starts_with("line 1: is not UTF-8"), "{error}");
}

#[test]
fn no_import_into_a_ledger_that_is_in_use() {
    let directory = place();
    let path = directory.path().join("l.db");
    let (ledger, _) = open(&path);
    let refused = import(&path, wall(0), &b""[..]);
    assert!(matches!(refused, Err(LedgerError::InUse { .. })), "{refused:?}");
    drop(ledger);
    import(&path, wall(0), &b""[..]).unwrap();
}
