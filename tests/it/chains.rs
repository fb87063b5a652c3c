//! Requests that go on from an answer (`previous_response_id`) are one execution with it, from end to end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::http1::Message;
use crate::support::upstream::{Piece, Reply, Upstream};

const USAGE: &str = "{\"input_tokens\":390,\"output_tokens\":10,\"total_tokens\":400}";

/// Answers are `resp_1`, `resp_2`, … and use 400 tokens each; a stream stays open before its end until the gate opens.
async fn upstream(gate: &Arc<Semaphore>) -> Upstream {
    let count = AtomicU64::new(0);
    let gate = Arc::clone(gate);
    Upstream::start(move |seen| {
        let n = count.fetch_add(1, Ordering::SeqCst) + 1;
        if !seen.text().contains("\"stream\":true") {
            return Reply::json(format!(
                "{{\"id\":\"resp_{n}\",\"object\":\"response\",\"status\":\"completed\",\"model\":\"gpt-4o\",\"output\":[],\"usage\":{USAGE}}}"
            ));
        }
        Reply::events([format!(
            "event: response.created\ndata: {{\"type\":\"response.created\",\"response\":{{\"id\":\"resp_{n}\",\"status\":\"in_progress\",\"model\":\"gpt-4o\"}}}}\n\n"
        )])
        .then(Piece::Gate(Arc::clone(&gate)))
        .then(Piece::Bytes(
            format!(
                "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{{\"id\":\"resp_{n}\",\"status\":\"completed\",\"model\":\"gpt-4o\",\"output\":[],\"usage\":{USAGE}}}}}\n\n"
            )
            .into_bytes(),
        ))
    })
    .await
}

fn ask(name: &str, agent: &str, previous: Option<&str>, stream: bool) -> Ask {
    let mut body = json!({"model": "gpt-4o", "input": "x"});
    if let Some(id) = previous {
        body["previous_response_id"] = id.into();
    }
    if stream {
        body["stream"] = true.into();
    }
    Ask::post("/v1/responses", body.to_string())
        .header("x-request-id", name)
        .header("x-agent-id", agent)
}

fn whose(o: &Value) -> (&str, &str) {
    (
        o["execution"].as_str().unwrap(),
        o["execution_source"].as_str().unwrap(),
    )
}

#[tokio::test]
async fn a_chain_of_answers_is_one_execution_and_its_tokens_add_up() {
    let gate = Arc::new(Semaphore::new(0));
    let upstream = upstream(&gate).await;
    let rules = "agent_incident_rules:\n  - {name: r, metric: tokens_per_execution, threshold_upper: 1000, window: 5m, action: notify_only}\n";
    let fusebox = Fusebox::start(&Config::new(&upstream).rules(rules).with("workers: 2")).await;

    // Each over a connection of its own: who serves it does not matter.
    let first: Message = fusebox.ask(&ask("one", "a", None, false)).await;
    assert_eq!(first.json()["id"], "resp_1");
    // The second one streams, and is gone on from before it ends.
    let mut second = fusebox.client().await;
    second.send(&ask("two", "a", Some("resp_1"), true)).await;
    let mut answer = second.head().await;
    let created = second.chunk(&mut answer).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&created).contains("resp_2"));
    fusebox.ask(&ask("three", "a", Some("resp_2"), false)).await;
    // Neither another agent's, nor one that nobody knows, is of this chain.
    fusebox.ask(&ask("other", "b", Some("resp_1"), false)).await;
    fusebox
        .ask(&ask("unknown", "c", Some("resp_before"), false))
        .await;
    fusebox
        .ask(&ask("after-unknown", "c", Some("resp_5"), false))
        .await;
    gate.add_permits(1);
    while second.chunk(&mut answer).await.unwrap().is_some() {}

    for (name, want) in [
        ("one", ("one", "exchange")),
        ("two", ("one", "chain")),
        ("three", ("one", "chain")),
        ("other", ("resp_1", "chain")),
        ("unknown", ("resp_before", "chain")),
        ("after-unknown", ("resp_before", "chain")),
    ] {
        let observation = fusebox.observation(name).await;
        assert_eq!(whose(&observation), want, "{name}");
        assert_eq!(observation["may_continue"], true);
    }
    let incident = eventually("an incident", async || {
        let incidents = fusebox.admin_json("/incidents").await;
        incidents.as_array()?.first().cloned()
    })
    .await;
    assert_eq!(
        (&incident["agent"], &incident["value"]),
        (&"a".into(), &1200.0.into())
    );
}

#[tokio::test]
async fn a_chain_keeps_the_execution_that_its_first_request_named() {
    let upstream = upstream(&Arc::new(Semaphore::new(0))).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    fusebox
        .ask(&ask("one", "a", None, false).header("x-execution-id", "run-7"))
        .await;
    fusebox.ask(&ask("two", "a", Some("resp_1"), false)).await;
    assert_eq!(whose(&fusebox.observation("two").await), ("run-7", "chain"));
    // A name in the request goes before what it goes on from.
    fusebox
        .ask(&ask("three", "a", Some("resp_2"), false).header("x-execution-id", "run-8"))
        .await;
    assert_eq!(whose(&fusebox.observation("three").await), ("run-8", "header"));
}
