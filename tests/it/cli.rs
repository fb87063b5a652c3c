//! The command line: what it prints where, its exit codes, and errors that help.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::support::fusebox::{Config, Fusebox, finished, program};
use crate::support::schema::violations;
use crate::support::upstream::{Reply, Upstream};

fn run(args: &[&str]) -> Output {
    finished(program().args(args))
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write(directory: &Path, text: &str) -> String {
    let path = directory.join("fusebox.yaml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

/// A file with one mistake on a known line, of many kinds.
const BAD: &str = "listeners:
  - listen: 127.0.0.1:0
upstreams:
  - name: openai
    url: https://api.openai.com
    timeouts:
      first_byte: 5 parsecs
agent_incident_rules:
  - name: a
    metric: tokens_per_execution
    threshold_uper: 5000
    window: 5m
    action: throttle_and_alert
  - name: b
    metric: p95_respons_time
    threshold_upper: 8s
    window: 15m
    action: no_such_action
";

#[test]
fn check_tells_every_problem_with_its_place_and_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let path = write(directory.path(), BAD);
    for args in [vec!["check", &path], vec!["run", "--config", &path]] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        let said = err(&output) + &out(&output);
        for (line, words) in [
            (7, "parsecs"),
            (11, "threshold_upper"),
            (15, "p95_response_time"),
            (18, "no_such_action"),
        ] {
            assert!(
                said.contains(&format!(":{line}:")),
                "{args:?}: no place of line {line} in\n{said}"
            );
            assert!(said.contains(words), "{args:?}: no {words} in\n{said}");
        }
    }
}

#[test]
fn check_passes_what_is_good() {
    let directory = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = "agent_incident_rules:\n  - name: token_explosion_detection\n    metric: tokens_per_execution\n    baseline: 2500\n    threshold_upper: 5000\n    window: 5m\n    action: throttle_and_alert\n";
    let mut files = vec![write(directory.path(), rules)];
    for name in ["config/fusebox.example.yaml", "config/minimal.yaml"] {
        files.push(root.join(name).display().to_string());
    }
    for file in files {
        let output = run(&["check", &file]);
        assert_eq!(output.status.code(), Some(0), "{file}: {}", err(&output));
    }
}

#[test]
fn files_that_are_not_there_are_named() {
    for args in [
        ["check", "/no/such/file.yaml"].as_slice(),
        &["run", "--config", "/no/such/file.yaml"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            err(&output).contains("/no/such/file.yaml"),
            "{args:?}: {}",
            err(&output)
        );
    }
}

#[test]
fn variables_and_secret_files_are_filled_in() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\n").unwrap();
    let text = format!(
        "upstreams:\n  - name: a\n    url: ${{LLM_URL}}\nalerts:\n  - name: hook\n    kind: webhook\n    url: https://example.com/hook\n    secret_file: {}\n",
        secret.display()
    );
    let path = write(directory.path(), &text);
    let output = finished(
        program()
            .args(["check", &path])
            .env("LLM_URL", "https://llm.example/v1"),
    );
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let output = finished(program().args(["check", &path]).env_remove("LLM_URL"));
    assert_eq!(output.status.code(), Some(2));
    assert!(err(&output).contains("LLM_URL"), "{}", err(&output));
    assert!(
        !(err(&output) + &out(&output)).contains("whsec_"),
        "secrets are not shown"
    );
}

#[test]
fn schemas_are_schemas_and_fit() {
    for (args, has) in [
        (&["schema"][..], "/properties/agent_incident_rules"),
        (&["schema", "config"], "/properties/upstreams"),
        (&["schema", "observation"], "/properties/request_id"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", err(&output));
        let schema: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"));
        assert!(schema.pointer(has).is_some(), "{args:?}: no {has}");
        assert!(
            schema["$schema"]
                .as_str()
                .is_some_and(|s| s.contains("json-schema.org")),
            "{args:?}"
        );
    }
    // The schema takes what the program takes, and knows a misspelt key.
    let schema: Value = serde_json::from_slice(&run(&["schema", "config"]).stdout).unwrap();
    let good = serde_json::json!({
        "upstreams": [{"name": "a", "url": "https://a.example", "timeouts": {"connect": "5s"}}],
        "agent_incident_rules": [{"name": "r", "metric": "tokens_per_execution", "threshold_upper": 5000, "window": "5m", "action": "throttle_and_alert"}],
    });
    let found = violations(&schema, &schema, &good, "");
    assert!(found.is_empty(), "{found:#?}");
    let bad = serde_json::json!({"upstreems": []});
    assert!(!violations(&schema, &schema, &bad, "").is_empty());
}

#[test]
fn completions_are_made_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(out(&output).contains("fusebox"), "{shell}");
    }
    let output = run(&["completions", "cmd"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn help_and_version_go_to_stdout() {
    let output = run(&["--version"]);
    assert_eq!(
        (output.status.code(), out(&output).trim()),
        (Some(0), concat!("fusebox ", env!("CARGO_PKG_VERSION")))
    );
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for word in [
        "run",
        "check",
        "schema",
        "reload",
        "status",
        "demo",
        "completions",
    ] {
        assert!(out(&help).contains(word), "{word}");
        let output = run(&[word, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{word} --help");
        assert!(out(&output).contains("Usage:"), "{word} --help");
    }
    let wrong = run(&["rum"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(err(&wrong).contains("run"), "did you mean: {}", err(&wrong));
}

#[test]
fn flags_that_cannot_be_used_are_named() {
    for (args, words) in [
        (&["run", "--listen", "nonsense"][..], "nonsense"),
        (&["run", "--upstream", "ftp://a.example"], "--upstream"),
        (&["run", "--upstream", "not a url"], "--upstream"),
        (&["run", "--admin-listen", "0.0.0.0:0"], "token"),
        (&["run", "--log-level", "fusebox=loud,["], "log"),
    ] {
        let mut args = args.to_vec();
        if !args.contains(&"--listen") {
            args.extend(["--listen", "127.0.0.1:0"]);
        }
        let output = finished(program().args(&args));
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(words), "{args:?}: {}", err(&output));
    }
}

#[test]
fn scenarios_of_the_demo_that_cannot_be_played_are_refused() {
    for (args, words) in [
        (
            &["--scenario", "quality-drop"][..],
            "not measured by this version",
        ),
        (&["--scenario", "nonsense"], "runaway-loop"),
        (&["--scenario", "bad-deploy", "--trace", "t.csv"], "--trace"),
    ] {
        let output = finished(program().arg("demo").args(args));
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(err(&output).contains(words), "{args:?}: {}", err(&output));
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let first = Fusebox::start(&Config::new(&upstream)).await;
    for (listen, admin) in [
        (first.address(), "127.0.0.1:0"),
        ("127.0.0.1:0", first.admin.as_str()),
    ] {
        let output = run(&[
            "run",
            "--upstream",
            "http://127.0.0.1:1",
            "--listen",
            listen,
            "--admin-listen",
            admin,
        ]);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{}", err(&output));
        let taken = if listen == first.address() { listen } else { admin };
        assert!(err(&output).contains(taken), "{taken} in {}", err(&output));
    }
}

#[tokio::test]
async fn status_and_reload_speak_to_a_running_program() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let admin = fusebox.admin.clone();
    let here = move |args: &[&str]| {
        let args: Vec<String> = args
            .iter()
            .map(|a| (*a).to_owned())
            .chain(["--admin".to_owned(), admin.clone()])
            .collect();
        async move {
            tokio::task::spawn_blocking(move || finished(program().args(&args)))
                .await
                .unwrap()
        }
    };
    let output = here(&["status"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(out(&output).contains("double"), "{}", out(&output));
    let output = here(&["status", "--output", "json"]).await;
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["upstreams"][0]["name"], "double");

    let output = here(&["reload"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    fusebox.write_config("upstreams: [");
    let output = here(&["reload"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    assert!(
        (out(&output) + &err(&output)).contains("fusebox.yaml:"),
        "{}",
        out(&output)
    );

    // Nobody there: one line that says what to do.
    for command in ["status", "reload"] {
        let output = run(&[command, "--admin", "127.0.0.1:1"]);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            err(&output).contains("127.0.0.1:1") && err(&output).lines().count() <= 3,
            "{}",
            err(&output)
        );
    }
}

#[tokio::test]
async fn starting_is_quick() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let (_fusebox, took) = crate::support::timed(Fusebox::start(&Config::new(&upstream))).await;
    // The target is 0.2 s for a release build on a quiet machine; this is a debug build beside other tests.
    assert!(took < std::time::Duration::from_secs(5), "{took:?}");
}
