//! Uploads that pass through: as long as they move they are let be, and what stalls is ended by the right clock.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::support::client::Ask;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::timed;
use crate::support::upstream::{Piece, Reply, Upstream};

/// The head of an upload of `length` bytes to a path that is not read.
fn head(id: &str, length: usize) -> String {
    format!("POST /v1/files HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\ncontent-length: {length}\r\n\r\n")
}

async fn upstreams() -> [(&'static str, Upstream, &'static str); 2] {
    let answer = |seen: &crate::support::upstream::Seen| {
        let reply = Reply::json("{}");
        if seen.text().starts_with("hang") {
            reply.after(Piece::Hang)
        } else {
            reply
        }
    };
    [
        ("HTTP/1.1", Upstream::start(answer).await, "auto"),
        (
            "HTTP/2",
            Upstream::start_with(Arc::new(answer), None, true).await,
            "prior_knowledge",
        ),
    ]
}

#[tokio::test]
async fn an_upload_that_moves_is_not_ended() {
    for (what, upstream, http2) in upstreams().await {
        let config = Config::new(&upstream)
            .upstream(&format!("http2: {http2}"))
            .upstream("timeouts: {first_byte: 500ms, idle: 1s}");
        let fusebox = Fusebox::start(&config).await;
        let mut client = fusebox.client().await;
        client.write(head("moves", 20).as_bytes()).await.unwrap();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.write(b"x").await.unwrap();
        }
        let answer = client.answer().await;
        assert_eq!(answer.status(), 200, "{what}: {}", answer.text());
        assert_eq!(upstream.the_one().await.text(), "x".repeat(20), "{what}");
    }
}

#[tokio::test]
async fn the_time_to_answer_begins_when_the_upload_ends() {
    for (what, upstream, http2) in upstreams().await {
        let config = Config::new(&upstream)
            .upstream(&format!("http2: {http2}"))
            .upstream("timeouts: {first_byte: 500ms, idle: 30s}");
        let fusebox = Fusebox::start(&config).await;
        let mut client = fusebox.client().await;
        client.write(head("hangs", 8).as_bytes()).await.unwrap();
        for piece in [b"hang", b"hang"] {
            tokio::time::sleep(Duration::from_millis(300)).await;
            client.write(piece).await.unwrap();
        }
        let (answer, took) = timed(client.answer()).await;
        assert_eq!(answer.status(), 504, "{what}");
        assert!(
            answer.text().contains("timeouts.first_byte"),
            "{what}: {}",
            answer.text()
        );
        assert!(
            took >= Duration::from_millis(400) && took < Duration::from_secs(5),
            "{what}: {took:?}"
        );
    }
}

#[tokio::test]
async fn an_upload_that_the_upstream_does_not_take_is_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let config = Config::url(&url).upstream("timeouts: {first_byte: 60s, idle: 700ms}");
    let fusebox = Fusebox::start(&config).await;
    let mut client = fusebox.client().await;
    client.write(head("stalls", 60 << 20).as_bytes()).await.unwrap();
    let writing = async {
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..(60 << 4) {
            if client.write(&piece).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), writing).await.ok();
    let observation = fusebox.observation("stalls").await;
    assert_eq!(
        (
            &observation["status"],
            &observation["outcome"],
            &observation["error_code"]
        ),
        (&504.into(), &"timeout".into(), &"fusebox_upload_stalled".into()),
        "{observation}"
    );
}

#[tokio::test]
async fn a_client_that_pauses_is_told_so() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let config = Config::new(&upstream)
        .upstream("timeouts: {first_byte: 300ms, idle: 300ms}")
        .with("limits: {body_idle_timeout: 1s}");
    let fusebox = Fusebox::start(&config).await;
    let mut client = fusebox.client().await;
    client.write(head("pauses", 10).as_bytes()).await.unwrap();
    client.write(b"abc").await.unwrap();
    let (answer, took) = timed(client.try_answer()).await;
    assert_eq!(answer.map(|a| a.status()), Some(408));
    assert!(took >= Duration::from_millis(900), "{took:?}");
    assert_eq!(fusebox.ask(&Ask::get("/v1/x")).await.status(), 200);
}
