//! Another configuration while requests are in flight: prepared, then in force at once, or nothing changes.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::Semaphore;

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::upstream::{Piece, Reply, Upstream};

async fn named(name: &'static str) -> Upstream {
    Upstream::start(move |_| Reply::json(format!("\"{name}\""))).await
}

async fn answered(fusebox: &Fusebox) -> String {
    fusebox.ask(&Ask::post("/v1/chat/completions", "{}")).await.text()
}

async fn last_reload(fusebox: &Fusebox) -> Option<Value> {
    let status = fusebox.admin_json("/status").await;
    let last = status["last_reload"].clone();
    (!last.is_null()).then_some(last)
}

#[tokio::test]
async fn a_good_file_is_in_force_after_a_signal() {
    let (one, two) = (named("one").await, named("two").await);
    let fusebox = Fusebox::start(&Config::new(&one)).await;
    assert_eq!(answered(&fusebox).await, "\"one\"");
    assert_eq!(last_reload(&fusebox).await, None);
    fusebox.write_config(&Config::new(&two).text(fusebox.directory()));
    assert_eq!(answered(&fusebox).await, "\"one\"", "not before it is asked for");
    fusebox.signal("HUP");
    eventually("the other upstream answers", async || {
        (answered(&fusebox).await == "\"two\"").then_some(())
    })
    .await;
    let last = eventually("the reload is told", async || last_reload(&fusebox).await).await;
    assert_eq!(last["ok"], true, "{last}");
    assert!(
        last["changes"].as_array().is_some_and(|c| !c.is_empty()),
        "{last}"
    );
}

#[tokio::test]
async fn what_needs_a_restart_is_told_again_at_each_reload() {
    let one = named("one").await;
    let fusebox = Fusebox::start(&Config::new(&one)).await;
    let changed = Config::new(&one).with("limits: {max_agents: 7, max_connections: 9, max_waiting: 3}");
    fusebox.write_config(&changed.text(fusebox.directory()));
    let answers = [(); 2].map(|()| Ask::new("POST", "/-/reload").body(b""));
    let mut reports = Vec::new();
    for ask in &answers {
        reports.push(fusebox.admin(ask).await.json());
    }
    for report in &reports {
        let want: Value = ["limits.max_agents", "limits.max_connections"].as_slice().into();
        assert_eq!(report["needs_restart"], want, "{report}");
    }
    assert_eq!(
        reports[0]["changes"].as_array().map(Vec::len),
        Some(1),
        "{}",
        reports[0]
    );
    assert_eq!(
        reports[1]["changes"].as_array().map(Vec::len),
        Some(0),
        "{}",
        reports[1]
    );
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_is_told() {
    let one = named("one").await;
    let mut fusebox = Fusebox::start(&Config::new(&one)).await;
    let good = Config::new(&one).text(fusebox.directory());
    for (what, text, words) in [
        (
            "a misspelt key",
            good.replace("agent_incident_rules", "agent_incident_ruels"),
            "agent_incident_rules",
        ),
        ("no YAML", "listeners: [".to_owned(), "fusebox.yaml:"),
        (
            "a bad rule",
            good.replace(
                "agent_incident_rules: []",
                "agent_incident_rules: [{name: a, metric: nonsense, threshold_upper: 1, action: b}]",
            ),
            "nonsense",
        ),
        ("nothing", String::new(), ""),
    ] {
        fusebox.write_config(&text);
        let answer = fusebox.admin(&Ask::new("POST", "/-/reload").body(b"")).await;
        let report = answer.json();
        if what == "nothing" {
            // An empty file is the defaults, which need a restart for the listeners; either way it is told.
            assert!(report["ok"].is_boolean(), "{report}");
            continue;
        }
        assert_eq!(answer.status(), 422, "{what}: {report}");
        assert_eq!(report["ok"], false, "{what}");
        let problems = report["problems"].to_string();
        assert!(
            problems.contains("fusebox.yaml:") && problems.contains(words),
            "{what}: {problems}"
        );
        assert_eq!(answered(&fusebox).await, "\"one\"", "{what}");
        let status = fusebox.admin_json("/status").await;
        assert_eq!(status["last_reload"]["ok"], false, "{what}");
        assert!(
            !status["degraded"].as_array().unwrap().is_empty(),
            "{what}: {status}"
        );
    }
    fusebox.write_config(&good);
    let answer = fusebox.admin(&Ask::new("POST", "/-/reload").body(b"")).await;
    assert_eq!(
        (answer.status(), &answer.json()["ok"]),
        (200, &Value::Bool(true)),
        "{}",
        answer.text()
    );
    assert!(fusebox.runs());

    fusebox.write_config("listeners: [");
    fusebox.signal("HUP");
    eventually("the bad file is told", async || {
        last_reload(&fusebox).await.filter(|l| l["ok"] == false)
    })
    .await;
    assert_eq!(answered(&fusebox).await, "\"one\"");
    assert!(fusebox.runs());
}

#[tokio::test]
async fn what_needs_a_restart_is_said_and_kept() {
    let one = named("one").await;
    let fusebox = Fusebox::start(&Config::new(&one)).await;
    let text = Config::new(&one)
        .text(fusebox.directory())
        .replace("- listen: 127.0.0.1:0", "- listen: 127.0.0.1:1");
    fusebox.write_config(&text);
    let report = fusebox
        .admin(&Ask::new("POST", "/-/reload").body(b""))
        .await
        .json();
    assert_eq!(report["ok"], true, "{report}");
    assert!(
        report["needs_restart"].to_string().contains("listeners"),
        "{report}"
    );
    assert_eq!(answered(&fusebox).await, "\"one\"", "still where it was");
}

#[tokio::test]
async fn streams_in_flight_survive() {
    let gate = Arc::new(Semaphore::new(0));
    let scripted = Arc::clone(&gate);
    let one = Upstream::start(move |_| {
        let pieces = vec![
            Piece::Bytes(b"data: 1\n\n".to_vec()),
            Piece::Gate(Arc::clone(&scripted)),
            Piece::Bytes(b"data: 2\n\n".to_vec()),
        ];
        Reply::new(200, "text/event-stream", "").chunked().pieces(pieces)
    })
    .await;
    let two = named("two").await;
    let fusebox = Fusebox::start(&Config::new(&one)).await;
    let mut client = fusebox.client().await;
    client
        .send(&Ask::post("/v1/chat/completions", "{\"stream\":true}").header("x-request-id", "long"))
        .await;
    let mut head = client.head().await;
    client.chunk(&mut head).await.unwrap();
    fusebox.write_config(&Config::new(&two).text(fusebox.directory()));
    assert_eq!(
        fusebox
            .admin(&Ask::new("POST", "/-/reload").body(b""))
            .await
            .json()["ok"],
        true
    );
    assert_eq!(answered(&fusebox).await, "\"two\"");
    gate.add_permits(1);
    assert_eq!(
        client.chunk(&mut head).await.unwrap().as_deref(),
        Some(&b"data: 2\n\n"[..])
    );
    assert_eq!(client.chunk(&mut head).await.unwrap(), None);
    assert_eq!(fusebox.observation("long").await["outcome"], "complete");
    // The same connection goes on, under the new configuration.
    assert_eq!(
        client.ask(&Ask::post("/v1/chat/completions", "{}")).await.text(),
        "\"two\""
    );
}

#[tokio::test]
async fn no_request_is_lost_over_many_reloads() {
    let (one, two) = (named("one").await, named("two").await);
    let fusebox = Fusebox::start(&Config::new(&one)).await;
    let texts = [&one, &two].map(|u| Config::new(u).text(fusebox.directory()));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let address = fusebox.address().to_owned();
        tasks.push(tokio::spawn(async move {
            let mut client = crate::support::client::Client::connect(&address).await;
            for _ in 0..100 {
                let answer = client.ask(&Ask::post("/v1/chat/completions", "{}")).await;
                assert_eq!(answer.status(), 200, "{}", answer.text());
            }
        }));
    }
    for n in 0..20 {
        fusebox.write_config(&texts[n % 2]);
        fusebox.signal("HUP");
        tokio::time::sleep(std::time::Duration::from_millis(15)).await;
    }
    for task in tasks {
        task.await.expect("every request is answered");
    }
    assert_eq!(one.count() + two.count(), 400);
}

/// Puts `text` in place as Kubernetes does: a new directory, then `..data` swapped over to it.
fn publish(mount: &Path, version: &str, text: &str) {
    let data = mount.join(version);
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("fusebox.yaml"), text).unwrap();
    let new = mount.join("..data_tmp");
    symlink(version, &new).unwrap();
    std::fs::rename(&new, mount.join("..data")).unwrap();
}

#[tokio::test]
async fn a_config_map_that_is_swapped_is_read() {
    let (one, two, three) = (named("one").await, named("two").await, named("three").await);
    let directory = tempfile::tempdir().unwrap();
    let mount = directory.path().join("etc");
    std::fs::create_dir(&mount).unwrap();
    let text = |u: &Upstream| Config::new(u).with("watch: true").text(directory.path());
    let texts = [&one, &two, &three].map(text);
    publish(&mount, "..2026_01", &texts[0]);
    symlink("..data/fusebox.yaml", mount.join("fusebox.yaml")).unwrap();
    let path = mount.join("fusebox.yaml").display().to_string();
    let fusebox = Fusebox::start_args(directory, &["--config", &path], &[]).await;
    assert_eq!(answered(&fusebox).await, "\"one\"");
    for (version, text, want) in [
        ("..2026_02", &texts[1], "\"two\""),
        ("..2026_03", &texts[2], "\"three\""),
    ] {
        publish(&mount, version, text);
        eventually(want, async || (answered(&fusebox).await == want).then_some(())).await;
    }
    publish(&mount, "..2026_04", "listeners: [");
    eventually("the bad file is told", async || {
        last_reload(&fusebox).await.filter(|l| l["ok"] == false)
    })
    .await;
    assert_eq!(answered(&fusebox).await, "\"three\"");
}

#[tokio::test]
async fn a_file_that_is_missing_for_a_moment_is_waited_for() {
    let (one, two) = (named("one").await, named("two").await);
    let fusebox = Fusebox::start(&Config::new(&one).with("watch: true")).await;
    let new = Config::new(&two).with("watch: true").text(fusebox.directory());
    std::fs::remove_file(fusebox.config_path()).unwrap();
    // Longer than a directory has to be quiet, so that the file is looked for while it is away.
    tokio::time::sleep(Duration::from_millis(700)).await;
    fusebox.write_config(&new);
    eventually("the new file is in force", async || {
        (answered(&fusebox).await == "\"two\"").then_some(())
    })
    .await;
    let log = fusebox.log_text();
    assert!(!log.contains("not reloaded"), "{log}");
    // One that stays away is told.
    std::fs::remove_file(fusebox.config_path()).unwrap();
    eventually("the missing file is told", async || {
        last_reload(&fusebox).await.filter(|l| l["ok"] == false)
    })
    .await;
    assert_eq!(answered(&fusebox).await, "\"two\"");
}

#[tokio::test]
async fn totals_survive() {
    let one = Upstream::start(|_| {
        Reply::json("{\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}")
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&one)).await;
    let ask = Ask::post("/v1/chat/completions", "{}").header("x-agent-id", "kept");
    fusebox.ask(&ask).await;
    let totals = async || fusebox.admin_json("/agents/kept").await["totals"].clone();
    fusebox.observed(1).await;
    let before = totals().await;
    let text = Config::new(&one)
        .with("limits: {max_waiting: 7}")
        .text(fusebox.directory());
    fusebox.write_config(&text);
    assert_eq!(
        fusebox
            .admin(&Ask::new("POST", "/-/reload").body(b""))
            .await
            .json()["ok"],
        true
    );
    assert_eq!(totals().await, before);
    assert!(
        before.to_string().contains('7') || before.to_string().contains('5'),
        "{before}"
    );
}
