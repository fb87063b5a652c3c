//! One JSON line for each exchange: complete, flushed when it ends, as the schema says, and nothing is lost.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;

use crate::support::client::{Ask, Client};
use crate::support::fusebox::{Config, Fusebox, finished, program};
use crate::support::schema::violations;
use crate::support::upstream::{Piece, Reply, Upstream};
use crate::support::{eventually, soon};

/// Every field that the issue names.
const FIELDS: &[&str] = &[
    "request_id",
    "time",
    "agent",
    "agent_source",
    "agent_version",
    "execution",
    "execution_source",
    "upstream",
    "provider",
    "api",
    "model_requested",
    "model_served",
    "status",
    "stream",
    "outcome",
    "usage_source",
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "input_total",
    "output_total",
    "finish_reason",
    "error_type",
    "error_code",
    "tool_calls",
    "output_chars",
    "ttfb_ms",
    "ttft_ms",
    "duration_ms",
    "overhead_us",
    "cost_usd",
    "actions",
];

const ANSWER: &str = "{\"model\":\"gpt-4o-2024-08-06\",\"choices\":[{\"message\":{\"content\":\"\u{e9}\u{1f600}\",\
    \"tool_calls\":[{\"function\":{\"name\":\"look_up\"}}]},\"finish_reason\":\"tool_calls\"}],\
    \"usage\":{\"prompt_tokens\":100,\"completion_tokens\":20,\"total_tokens\":120,\
    \"prompt_tokens_details\":{\"cached_tokens\":40},\"completion_tokens_details\":{\"reasoning_tokens\":8}}}";

fn schema() -> Value {
    let output = finished(program().args(["schema", "observation"]));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("a JSON Schema")
}

#[tokio::test]
async fn every_line_is_as_the_schema_says() {
    let upstream = Upstream::start(|seen| match seen.header("x-case").unwrap_or_default().as_str() {
        "error" => Reply::json(
            "{\"error\":{\"message\":\"no\",\"type\":\"invalid_request_error\",\"code\":\"bad\"}}",
        )
        .status(400),
        "hang" => Reply::json("").after(Piece::Hang),
        "die" => Reply::events(["data: {}\n\n"]).then(Piece::Close),
        _ => Reply::json(ANSWER),
    })
    .await;
    let config = Config::new(&upstream)
        .upstream("timeouts: {first_byte: 200ms}")
        .with("limits: {max_request_bytes: 1024}");
    let fusebox = Fusebox::start(&config).await;
    let chat = |id: &str| {
        Ask::post("/v1/chat/completions", "{\"model\":\"gpt-4o\",\"messages\":[]}")
            .header("x-request-id", id)
            .header("x-case", id)
    };
    for id in ["good", "error", "hang", "die"] {
        let mut client = fusebox.client().await;
        client.send(&chat(id)).await;
        client.try_answer().await;
        fusebox.observation(id).await;
    }
    let big = Ask::post("/v1/messages", vec![b'x'; 2_000]).header("x-request-id", "big");
    fusebox.ask(&big).await;
    fusebox.ask(&Ask::get("/anything")).await;
    let all = fusebox.observed(6).await;

    let schema = schema();
    for observation in &all {
        let found = violations(&schema, &schema, observation, "");
        assert!(found.is_empty(), "{found:#?}\nin {observation}");
        for field in FIELDS {
            assert!(
                observation.get(*field).is_some(),
                "{field} is missing in {observation}"
            );
        }
        // The schema says what there is: a field that it does not know is a mistake in one of the two.
        for field in observation.as_object().unwrap().keys() {
            let known = schema.pointer(&format!("/properties/{field}")).is_some();
            assert!(known, "{field} is not in the schema");
        }
        let time = observation["time"].as_str().unwrap();
        assert!(
            time.ends_with('Z') && time.len() == "2026-01-01T00:00:00.000Z".len(),
            "{time}"
        );
    }

    let good = fusebox
        .observations()
        .into_iter()
        .rfind(|o| o["request_id"] == "good")
        .unwrap();
    for (name, want) in [
        ("api", Value::from("openai.chat")),
        ("upstream", Value::from("double")),
        ("model_requested", Value::from("gpt-4o")),
        ("model_served", Value::from("gpt-4o-2024-08-06")),
        ("status", Value::from(200)),
        ("outcome", Value::from("complete")),
        ("usage_source", Value::from("reported")),
        ("input_tokens", Value::from(100)),
        ("output_tokens", Value::from(20)),
        ("cached_input_tokens", Value::from(40)),
        ("reasoning_tokens", Value::from(8)),
        ("input_total", Value::from(100)),
        ("output_total", Value::from(20)),
        ("finish_reason", Value::from("tool_calls")),
        ("output_chars", Value::from(2)),
        ("execution_source", Value::from("exchange")),
        ("ttft_ms", Value::Null),
    ] {
        assert_eq!(good[name], want, "{name}");
    }
    assert_eq!(good["tool_calls"], serde_json::json!(["look_up"]));
    assert!(good["cost_usd"].as_f64().is_some_and(|c| c > 0.0), "{good}");
    assert!(
        good["overhead_us"].as_u64().is_some_and(|us| us < 1_000_000),
        "{good}"
    );
    let of = |id: &str| all.iter().find(|o| o["request_id"] == id).unwrap()["outcome"].clone();
    assert_eq!(
        [of("error"), of("big")].map(|o| o.as_str().unwrap_or_default().to_owned()),
        ["complete", "refused"]
    );
}

#[tokio::test]
async fn a_request_without_an_id_is_given_one() {
    let upstream = Upstream::start(|_| Reply::json(ANSWER)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    for _ in 0..3 {
        fusebox.ask(&Ask::post("/v1/chat/completions", "{}")).await;
    }
    let mut ids: Vec<String> = fusebox
        .observed(3)
        .await
        .iter()
        .map(|o| o["request_id"].as_str().unwrap().to_owned())
        .collect();
    assert!(ids.iter().all(|id| id.len() >= 8));
    ids.dedup();
    assert_eq!(ids.len(), 3);
    assert!(
        upstream.seen().iter().all(|s| s.header("x-request-id").is_none()),
        "none is added to the request"
    );
}

/// Requests of one test, by each of eight clients.
const EACH: usize = 150;

async fn load(fusebox: &Fusebox) {
    let mut tasks = Vec::new();
    for n in 0..8 {
        let address = fusebox.address().to_owned();
        tasks.push(tokio::spawn(async move {
            let mut client = Client::connect(&address).await;
            for i in 0..EACH {
                let ask = Ask::post("/v1/chat/completions", "{}").header("x-agent-id", "one");
                client.ask(&ask.header("x-request-id", format!("{n}-{i}"))).await;
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

/// The agent's totals hold every token, whatever became of the observations.
async fn totals_are_whole(fusebox: &Fusebox) {
    let agent = fusebox.admin_json("/agents/one").await;
    let totals = agent["totals"].to_string();
    let input = (8 * EACH * 100).to_string();
    assert!(
        totals.contains(&input),
        "{totals} should hold {input} input tokens"
    );
}

#[tokio::test]
async fn nothing_is_lost_under_load_or_at_the_end() {
    let upstream = Upstream::start(|_| Reply::json(ANSWER)).await;
    let mut fusebox = Fusebox::start(&Config::new(&upstream)).await;
    load(&fusebox).await;
    totals_are_whole(&fusebox).await;
    fusebox.signal("TERM");
    assert!(fusebox.ended().await.success());
    let all = fusebox.observations();
    let mut ids: Vec<&str> = all.iter().filter_map(|o| o["request_id"].as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((all.len(), ids.len()), (8 * EACH, 8 * EACH));
}

#[tokio::test]
async fn a_queue_that_is_too_short_is_told_and_loses_no_tokens() {
    let upstream = Upstream::start(|_| Reply::json(ANSWER)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream).with("engine: {observation_queue: 16}")).await;
    load(&fusebox).await;
    totals_are_whole(&fusebox).await;
    eventually("every observation is a line or counted as dropped", async || {
        let status = fusebox.admin_json("/status").await;
        let dropped = usize::try_from(status["observations_dropped"].as_u64()?).ok()?;
        (fusebox.observations().len() + dropped == 8 * EACH).then_some(())
    })
    .await;
}

#[tokio::test]
async fn standard_output_holds_lines_and_nothing_else() {
    let upstream = Upstream::start(|_| Reply::json(ANSWER)).await;
    let mut child = program()
        .args([
            "run",
            "--upstream",
            &upstream.url(),
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
        ])
        .args(["--observations", "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (lines, mut came) = tokio::sync::mpsc::channel::<(bool, String)>(1_000);
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let err_lines = lines.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            err_lines.blocking_send((false, line)).ok();
        }
    });
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            lines.blocking_send((true, line)).ok();
        }
    });
    let address = soon("ready", async {
        loop {
            let (_, line) = came.recv().await.expect("the program ends before it is ready");
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            let fields = if line["fields"].is_object() {
                &line["fields"]
            } else {
                &line
            };
            if fields["message"] == "ready" {
                break fields["listeners"].as_str().unwrap().to_owned();
            }
        }
    })
    .await;
    for id in ["a", "b"] {
        let ask = Ask::post("/v1/chat/completions", "{}").header("x-request-id", id);
        crate::support::client::ask(&address, &ask).await;
        // The line is there without another exchange pushing it out.
        let line = soon("a line on stdout", async {
            loop {
                match came.recv().await {
                    Some((true, line)) => break line,
                    Some(_) => {}
                    None => panic!("the program ended"),
                }
            }
        })
        .await;
        let line: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(line["request_id"], id);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn lines_are_appended_to_a_file_that_is_there() {
    let upstream = Upstream::start(|_| Reply::json(ANSWER)).await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("observations.jsonl");
    std::fs::write(&file, "{\"request_id\":\"old\"}\n").unwrap();
    let fusebox = Fusebox::start_in(directory, &Config::new(&upstream), &[]).await;
    fusebox
        .ask(&Ask::get("/v1/models").header("x-request-id", "new"))
        .await;
    eventually("both lines", async || {
        let ids: Vec<Value> = fusebox
            .observations()
            .iter()
            .map(|o| o["request_id"].clone())
            .collect();
        (ids == ["old", "new"]).then_some(())
    })
    .await;
}
