//! Streams: passed on as they come, ended exactly once, cut when they have to be, metered whatever happens.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::client::Ask;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::upstream::{Framing, Piece, Reply, Upstream};
use crate::support::{eventually, timed};

const FIRST: &str = "data: {\"id\":\"c\",\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Hel\"}}]}\n\n";
const SECOND: &str = "data: {\"id\":\"c\",\"model\":\"gpt-4o\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"lo\"},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"id\":\"c\",\"model\":\"gpt-4o\",\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// A streamed chat request that asks for usage itself, so that nothing is changed on the way.
fn chat(id: &str) -> Ask {
    let body =
        "{\"model\":\"gpt-4o\",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"messages\":[]}";
    Ask::post("/v1/chat/completions", body).header("x-request-id", id)
}

/// A streamed chat request that does not ask for usage.
fn shy_chat(id: &str) -> Ask {
    Ask::post(
        "/v1/chat/completions",
        "{\"model\":\"gpt-4o\",\"stream\":true,\"messages\":[]}",
    )
    .header("x-request-id", id)
}

fn bytes(text: &str) -> Piece {
    Piece::Bytes(text.as_bytes().to_vec())
}

fn stream(pieces: Vec<Piece>) -> Reply {
    Reply::new(200, "text/event-stream", "").chunked().pieces(pieces)
}

#[tokio::test]
async fn pieces_pass_as_they_come() {
    let gate = Arc::new(Semaphore::new(0));
    let scripted = Arc::clone(&gate);
    let upstream = Upstream::start(move |_| {
        let wait = || Piece::Gate(Arc::clone(&scripted));
        stream(vec![
            bytes(FIRST),
            wait(),
            bytes(SECOND),
            wait(),
            bytes(USAGE),
            bytes(DONE),
        ])
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    client.send(&chat("paced")).await;
    let mut head = client.head().await;
    assert_eq!(head.status(), 200);
    // The second piece is not sent before the first has come through.
    assert_eq!(
        client.chunk(&mut head).await.unwrap().as_deref(),
        Some(FIRST.as_bytes())
    );
    gate.add_permits(1);
    assert_eq!(
        client.chunk(&mut head).await.unwrap().as_deref(),
        Some(SECOND.as_bytes())
    );
    gate.add_permits(1);
    let mut rest = Vec::new();
    while let Some(chunk) = client.chunk(&mut head).await.unwrap() {
        rest.extend_from_slice(&chunk);
    }
    assert_eq!(rest, format!("{USAGE}{DONE}").into_bytes());
    let observation = fusebox.observation("paced").await;
    assert_eq!(observation["stream"], true);
    assert_eq!(observation["outcome"], "complete");
    assert_eq!(observation["usage_source"], "reported");
    assert_eq!(
        (&observation["input_total"], &observation["output_total"]),
        (&json!(5), &json!(2))
    );
    assert_eq!(observation["output_chars"], 5);
    let ms = |name: &str| {
        observation[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name} in {observation}"))
    };
    assert!(
        ms("ttfb_ms") <= ms("ttft_ms") && ms("ttft_ms") <= ms("duration_ms"),
        "{observation}"
    );
}

#[tokio::test]
async fn the_head_of_a_stream_does_not_wait_for_its_body() {
    let gate = Arc::new(Semaphore::new(0));
    let scripted = Arc::clone(&gate);
    let upstream =
        Upstream::start(move |_| stream(vec![Piece::Gate(Arc::clone(&scripted)), bytes(DONE)])).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    client.send(&chat("head")).await;
    let mut head = client.head().await;
    assert_eq!(head.header("content-type").as_deref(), Some("text/event-stream"));
    gate.add_permits(1);
    assert_eq!(
        client.chunk(&mut head).await.unwrap().as_deref(),
        Some(DONE.as_bytes())
    );
}

#[tokio::test]
async fn a_client_that_leaves_is_felt_upstream_within_a_second() {
    let upstream = Upstream::start(|_| stream(vec![bytes(FIRST), Piece::Hang])).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    client.send(&chat("left")).await;
    let mut head = client.head().await;
    client.chunk(&mut head).await.unwrap();
    drop(client);
    let left = eventually("the upstream feels it", async || {
        (upstream.left() == 1).then_some(())
    });
    let ((), took) = timed(left).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    let observation = fusebox.observation("left").await;
    assert_eq!(observation["outcome"], "client_abort");
    assert_eq!(
        observation["output_chars"], 3,
        "what came before counts: {observation}"
    );
    assert_ne!(observation["usage_source"], "reported");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_answer_is_felt_too() {
    let upstream = Upstream::start(|_| Reply::json("{}").after(Piece::Hang)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    client.send(&chat("early")).await;
    upstream.the_one().await;
    drop(client);
    let left = eventually("the upstream feels it", async || {
        (upstream.left() == 1).then_some(())
    });
    let ((), took) = timed(left).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(fusebox.observation("early").await["outcome"], "client_abort");
}

#[tokio::test]
async fn a_client_that_leaves_can_be_drained_for_its_usage() {
    let gate = Arc::new(Semaphore::new(0));
    let scripted = Arc::clone(&gate);
    let upstream = Upstream::start(move |_| {
        stream(vec![
            bytes(FIRST),
            Piece::Gate(Arc::clone(&scripted)),
            bytes(SECOND),
            bytes(USAGE),
            bytes(DONE),
        ])
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream).upstream("on_client_abort: {drain: 10s}")).await;
    let mut client = fusebox.client().await;
    client.send(&chat("drained")).await;
    let mut head = client.head().await;
    client.chunk(&mut head).await.unwrap();
    drop(client);
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.add_permits(1);
    let observation = fusebox.observation("drained").await;
    assert_eq!(observation["outcome"], "client_abort");
    assert_eq!(observation["total_tokens"], 7, "{observation}");
    assert_eq!(upstream.left(), 0);
}

#[tokio::test]
async fn leaving_after_the_end_was_said_is_no_abort() {
    let upstream =
        Upstream::start(|_| stream(vec![bytes(FIRST), bytes(USAGE), bytes(DONE), Piece::Hang])).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    client.send(&chat("done")).await;
    let mut head = client.head().await;
    let mut got = Vec::new();
    while !got.ends_with(DONE.as_bytes()) {
        got.extend(
            client
                .chunk(&mut head)
                .await
                .unwrap()
                .expect("the end was not said"),
        );
    }
    drop(client);
    let observation = fusebox.observation("done").await;
    assert_eq!(observation["outcome"], "complete");
    assert_eq!(observation["usage_source"], "reported");
}

#[tokio::test]
async fn an_upstream_that_dies_truncates() {
    for (id, reply) in [
        ("chunked", stream(vec![bytes(FIRST), Piece::Close])),
        (
            "length",
            Reply::new(200, "application/json", "{\"choices\":[")
                .then(Piece::Close)
                .then(bytes("]}")),
        ),
    ] {
        let script = reply.clone();
        let upstream = Upstream::start(move |_| script.clone()).await;
        let fusebox = Fusebox::start(&Config::new(&upstream)).await;
        let mut client = fusebox.client().await;
        client.send(&chat(id)).await;
        let answer = client.try_answer().await;
        // The client must be able to tell: an answer that broke off does not look complete.
        assert!(answer.is_none_or(|a| !a.complete), "{id}: no end was invented");
        let observation = fusebox.observation(id).await;
        assert_eq!(observation["outcome"], "truncated", "{id}");
        assert_eq!(observation["status"], 200, "{id}");
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_before_it_answers_is_a_bad_gateway() {
    let upstream = Upstream::start(|_| Reply::json("{}").after(Piece::Close)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let answer = fusebox.ask(&chat("broke")).await;
    assert_eq!(answer.status(), 502);
    assert!(answer.json()["error"]["message"].is_string(), "{}", answer.text());
    assert_eq!(fusebox.observation("broke").await["outcome"], "upstream_error");
    assert_eq!(
        upstream.count(),
        1,
        "a request that may have been worked on is not sent again"
    );
}

#[tokio::test]
async fn nobody_there_is_a_bad_gateway() {
    let fusebox = Fusebox::start(&Config::url("http://127.0.0.1:1")).await;
    let answer = fusebox.ask(&chat("nobody")).await;
    assert_eq!(answer.status(), 502);
    let observation = fusebox.observation("nobody").await;
    assert_eq!(observation["outcome"], "upstream_error");
    assert_eq!(observation["status"], 502);
}

#[tokio::test]
async fn silence_before_the_first_byte_is_a_gateway_timeout() {
    let upstream = Upstream::start(|_| Reply::json("{}").after(Piece::Hang)).await;
    let config = Config::new(&upstream).upstream("timeouts: {first_byte: 300ms}");
    let fusebox = Fusebox::start(&config).await;
    let (answer, took) = timed(fusebox.ask(&chat("silent"))).await;
    assert_eq!(answer.status(), 504);
    assert!(answer.json()["error"]["message"].is_string(), "{}", answer.text());
    assert!(
        took >= Duration::from_millis(290) && took < Duration::from_secs(3),
        "{took:?}"
    );
    let observation = fusebox.observation("silent").await;
    assert_eq!(
        (&observation["outcome"], &observation["status"]),
        (&json!("timeout"), &json!(504))
    );
    eventually("the upstream is let go", async || {
        (upstream.left() == 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn silence_inside_a_stream_ends_it() {
    let upstream = Upstream::start(|_| stream(vec![bytes(FIRST), Piece::Hang])).await;
    let config = Config::new(&upstream).upstream("timeouts: {idle: 300ms}");
    let fusebox = Fusebox::start(&config).await;
    let mut client = fusebox.client().await;
    client.send(&chat("idle")).await;
    assert!(client.try_answer().await.is_none_or(|a| !a.complete));
    let observation = fusebox.observation("idle").await;
    assert_eq!(
        (&observation["outcome"], &observation["status"]),
        (&json!("timeout"), &json!(200))
    );
    assert_eq!(observation["output_chars"], 3);
}

#[tokio::test]
async fn a_stream_that_drips_for_too_long_is_ended() {
    let drip = || {
        (0..100)
            .flat_map(|_| [bytes(": drip\n\n"), Piece::Wait(Duration::from_millis(50))])
            .collect()
    };
    let upstream = Upstream::start(move |_| stream(drip())).await;
    let config = Config::new(&upstream)
        .upstream("timeouts: {connect: 300ms, first_byte: 400ms, idle: 300ms, total: 600ms}");
    let fusebox = Fusebox::start(&config).await;
    let mut client = fusebox.client().await;
    client.send(&chat("drip")).await;
    let (answer, took) = timed(client.try_answer()).await;
    assert!(answer.is_none_or(|a| !a.complete));
    assert!(
        took >= Duration::from_millis(500) && took < Duration::from_secs(4),
        "{took:?}"
    );
    assert_eq!(fusebox.observation("drip").await["outcome"], "timeout");
}

#[tokio::test]
async fn a_stream_that_only_drips_is_kept_by_the_idle_timeout() {
    let drip = || {
        (0..12)
            .flat_map(|_| [bytes(": drip\n\n"), Piece::Wait(Duration::from_millis(50))])
            .collect()
    };
    let upstream = Upstream::start(move |_| stream(drip())).await;
    let fusebox = Fusebox::start(&Config::new(&upstream).upstream("timeouts: {idle: 400ms}")).await;
    let answer = fusebox.ask(&chat("kept")).await;
    assert!(answer.complete);
    assert_eq!(answer.text(), ": drip\n\n".repeat(12));
}

#[tokio::test]
async fn a_body_without_a_length_ends_with_the_connection() {
    let upstream =
        Upstream::start(|_| Reply::json("{\"usage\":{\"total_tokens\":4}}").framed(Framing::Close)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let answer = fusebox.ask(&chat("close")).await;
    assert_eq!(answer.text(), "{\"usage\":{\"total_tokens\":4}}");
    let observation = fusebox.observation("close").await;
    assert_eq!(
        (&observation["outcome"], &observation["total_tokens"]),
        (&json!("complete"), &json!(4))
    );
}

#[tokio::test]
async fn a_drain_lets_streams_end_and_takes_no_more() {
    let gate = Arc::new(Semaphore::new(0));
    let scripted = Arc::clone(&gate);
    let upstream = Upstream::start(move |_| {
        stream(vec![
            bytes(FIRST),
            Piece::Gate(Arc::clone(&scripted)),
            bytes(SECOND),
            bytes(USAGE),
            bytes(DONE),
        ])
    })
    .await;
    let mut fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    client.send(&chat("in-flight")).await;
    let mut head = client.head().await;
    client.chunk(&mut head).await.unwrap();
    fusebox.signal("TERM");
    let address = fusebox.address().to_owned();
    eventually("nobody is let in any more", async || {
        tokio::net::TcpStream::connect(&address).await.err()
    })
    .await;
    assert!(fusebox.runs());
    gate.add_permits(1);
    let mut rest = Vec::new();
    while let Some(chunk) = client.chunk(&mut head).await.unwrap() {
        rest.extend_from_slice(&chunk);
    }
    assert!(rest.ends_with(DONE.as_bytes()));
    assert!(fusebox.ended().await.success());
    let observation = fusebox.observation("in-flight").await;
    assert_eq!(
        observation["outcome"], "complete",
        "observed even though it was the end"
    );
}

#[tokio::test]
async fn a_drain_has_a_deadline() {
    let upstream = Upstream::start(|_| stream(vec![bytes(FIRST), Piece::Hang])).await;
    let mut fusebox = Fusebox::start(&Config::new(&upstream).with("drain_deadline: 500ms")).await;
    let mut client = fusebox.client().await;
    client.send(&chat("cut")).await;
    let mut head = client.head().await;
    client.chunk(&mut head).await.unwrap();
    fusebox.signal("TERM");
    let (_, took) = timed(fusebox.ended()).await;
    assert!(
        took >= Duration::from_millis(400) && took < Duration::from_secs(5),
        "{took:?}"
    );
    client.gone().await;
    assert_eq!(fusebox.observation("cut").await["outcome"], "cut");
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let upstream = Upstream::start(|_| stream(vec![bytes(FIRST), Piece::Hang])).await;
    let mut fusebox = Fusebox::start(&Config::new(&upstream).with("drain_deadline: 60s")).await;
    let mut client = fusebox.client().await;
    client.send(&chat("twice")).await;
    let mut head = client.head().await;
    client.chunk(&mut head).await.unwrap();
    fusebox.signal("TERM");
    let address = fusebox.address().to_owned();
    eventually("the drain begins", async || {
        tokio::net::TcpStream::connect(&address).await.err()
    })
    .await;
    fusebox.signal("INT");
    let (_, took) = timed(fusebox.ended()).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn usage_is_asked_for_and_hidden() {
    let null = FIRST.replace("}]}", "}],\"usage\":null}");
    let scripted = null.clone();
    let upstream =
        Upstream::start(move |_| stream(vec![bytes(&scripted), bytes(SECOND), bytes(USAGE), bytes(DONE)]))
            .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let answer = fusebox.ask(&shy_chat("shy")).await;
    assert_eq!(
        answer.text(),
        format!("{FIRST}{SECOND}{DONE}"),
        "as if nobody had asked"
    );
    let seen = upstream.the_one().await;
    let sent: Value = seen.message.json();
    assert_eq!(sent["stream_options"]["include_usage"], true);
    assert_eq!(
        seen.header("content-length"),
        Some(seen.message.body.len().to_string())
    );
    let observation = fusebox.observation("shy").await;
    assert_eq!(
        (&observation["total_tokens"], &observation["usage_source"]),
        (&json!(7), &json!("reported"))
    );
    assert_eq!(observation["actions"], json!([{"kind": "usage_requested"}]));

    // Who asks gets it all.
    let answer = fusebox.ask(&chat("bold")).await;
    assert_eq!(answer.text(), format!("{null}{SECOND}{USAGE}{DONE}"));
    assert_eq!(fusebox.observation("bold").await["actions"], json!([]));
}

#[tokio::test]
async fn a_stream_that_is_called_json_is_told_by_its_first_byte() {
    let document = "{\"choices\":[],\"usage\":{\"total_tokens\":7}}";
    for (pieces, want) in [
        (
            vec![bytes(FIRST), bytes(USAGE), bytes(DONE)],
            format!("{FIRST}{DONE}"),
        ),
        (vec![bytes(document)], document.to_owned()),
        (vec![bytes("\n"), bytes(document)], format!("\n{document}")),
        (vec![], String::new()),
    ] {
        let upstream = Upstream::start(move |_| {
            Reply::new(200, "application/json", "")
                .chunked()
                .pieces(pieces.clone())
        })
        .await;
        let fusebox = Fusebox::start(&Config::new(&upstream)).await;
        let answer = fusebox.ask(&shy_chat("called-json")).await;
        assert_eq!(answer.text(), want);
        let observation = fusebox.observation("called-json").await;
        assert_eq!(observation["actions"], json!([{"kind": "usage_requested"}]));
    }
}

#[tokio::test]
async fn an_upstream_that_refuses_to_tell_usage_is_not_asked_again() {
    let refusal = "{\"error\":{\"message\":\"Unrecognized request argument supplied: stream_options\",\"type\":\"invalid_request_error\",\"param\":null,\"code\":null}}";
    let upstream = Upstream::start(move |seen| {
        if seen.text().contains("stream_options") {
            Reply::json(refusal).status(400)
        } else {
            stream(vec![bytes(FIRST), bytes(SECOND), bytes(DONE)])
        }
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let answer = fusebox.ask(&shy_chat("first")).await;
    assert_eq!(
        (answer.status(), answer.text()),
        (200, format!("{FIRST}{SECOND}{DONE}")),
        "no error of our making"
    );
    assert_eq!(upstream.count(), 2);
    let answer = fusebox.ask(&shy_chat("second")).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(upstream.count(), 3, "asked once, not again");
    assert_eq!(fusebox.observation("second").await["actions"], json!([]));
    // A client's own wish is passed on, and so is the refusal.
    let answer = fusebox.ask(&chat("own")).await;
    assert_eq!((answer.status(), answer.text().as_str()), (400, refusal));
}

#[tokio::test]
async fn an_error_that_is_not_about_usage_is_the_clients() {
    let error = "{\"error\":{\"message\":\"max_tokens is too large\",\"type\":\"invalid_request_error\",\"param\":\"max_tokens\",\"code\":null}}";
    let upstream = Upstream::start(move |_| Reply::json(error).status(400)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let answer = fusebox.ask(&shy_chat("bad")).await;
    assert_eq!((answer.status(), answer.text().as_str()), (400, error));
    assert_eq!(upstream.count(), 1);
    let observation = fusebox.observation("bad").await;
    assert_eq!(observation["error_type"], "invalid_request_error");
    assert_eq!(observation["stream"], false);
}

#[tokio::test]
async fn errors_inside_a_stream_are_seen() {
    let error = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n";
    let start = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-x\",\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n";
    let upstream = Upstream::start(move |_| stream(vec![bytes(start), bytes(error)])).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let ask =
        Ask::post("/v1/messages", "{\"model\":\"claude-x\",\"stream\":true}").header("x-request-id", "mid");
    assert_eq!(fusebox.ask(&ask).await.text(), format!("{start}{error}"));
    let observation = fusebox.observation("mid").await;
    assert_eq!(observation["error_type"], "overloaded_error");
    assert_eq!(observation["input_tokens"], 9);
    assert_eq!(observation["status"], 200);
}
