//! Promises to clients: each head is looked at, nobody hangs at the bounds, and what is wrong is named.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::client::{Ask, Client};
use crate::support::fusebox::{Config, Fusebox};
use crate::support::tls::Authority;
use crate::support::upstream::{Reply, Upstream};
use crate::support::{eventually, soon, timed};

const CHAT: &str = "/v1/chat/completions";

const TWO_LENGTHS: &str =
    "POST /v1/bad HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";

#[tokio::test]
async fn two_lengths_are_refused_in_every_head() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let get = "GET /v1/x HTTP/1.1\r\nhost: a\r\n\r\n";
    let sized = "POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 7\r\n\r\na\r\n\r\nbc";
    let read = "POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}";
    let chunked = "POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n\
         3;x=y\r\nabc\r\n0\r\nx-t: 1\r\n\r\n";
    let mut wrong = Vec::new();
    for (what, before) in [
        ("first", vec![]),
        ("after blank lines", vec!["\r\n\r\n"]),
        ("after a request without a body", vec![get]),
        ("after a body with a length", vec![sized]),
        ("after a body that is read", vec![read]),
        ("after chunks and trailers", vec![chunked]),
        ("after them all", vec![get, chunked, "\r\n", sized, read, get]),
    ] {
        let requests = before.iter().filter(|m| !m.trim().is_empty()).count();
        let bytes = before.concat() + TWO_LENGTHS;
        for together in [true, false] {
            let mut client = fusebox.client().await;
            if together {
                client.write(bytes.as_bytes()).await.unwrap();
            } else {
                for piece in before.iter().chain([&TWO_LENGTHS]) {
                    client.write(piece.as_bytes()).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            let mut statuses = Vec::new();
            while let Some(answer) = client.try_answer().await {
                statuses.push(answer.status());
            }
            let want: Vec<u16> = std::iter::repeat_n(200, requests).chain([400]).collect();
            if statuses != want {
                wrong.push(format!("{what}, together: {together}: {statuses:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let bad = upstream
        .seen()
        .iter()
        .filter(|s| s.message.target() == "/v1/bad")
        .count();
    assert_eq!(bad, 0, "none of it was sent on");
}

#[tokio::test]
async fn trailers_of_what_is_read_go_on() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    for (what, announced, body) in [
        ("as it is", "trailer: x-check\r\n", "{\"model\":\"m\"}"),
        ("not announced", "", "{\"model\":\"m\"}"),
        (
            "changed on the way",
            "trailer: x-check\r\n",
            "{\"model\":\"m\",\"stream\":true}",
        ),
    ] {
        let request = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\n{announced}\r\n\
             {:x}\r\n{body}\r\n0\r\nx-check: 1\r\n\r\n",
            body.len()
        );
        let mut client = fusebox.client().await;
        client.write(request.as_bytes()).await.unwrap();
        assert_eq!(client.answer().await.status(), 200, "{what}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(
            seen.message.trailers,
            [("x-check".to_owned(), b"1".to_vec())],
            "{what}"
        );
        assert_eq!(seen.message.json()["model"], "m", "{what}");
        assert_eq!(seen.text() != body, what == "changed on the way", "{what}");
    }
}

#[tokio::test]
async fn trailers_of_an_answer_come_after_all_of_it() {
    let first = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}],\"usage\":null}\n\n";
    // The last event is not ended by a blank line: it is held until it is clear that nothing more comes.
    let last = "data: [DONE]";
    let upstream = Upstream::start(move |_| {
        let mut reply = Reply::events([first, last]).header("trailer", "x-sum");
        reply.trailers = vec![("x-sum".to_owned(), "abc".to_owned())];
        reply
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let ask = Ask::post(CHAT, "{\"model\":\"m\",\"stream\":true}").header("te", "trailers");
    let answer = fusebox.ask(&ask).await;
    let want = first.replace(",\"usage\":null", "") + last;
    assert_eq!(answer.text(), want);
    assert_eq!(answer.trailers, [("x-sum".to_owned(), b"abc".to_vec())]);
}

#[tokio::test]
async fn a_client_that_leaves_its_body_has_no_status() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    let half =
        format!("POST {CHAT} HTTP/1.1\r\nhost: a\r\nx-request-id: gone\r\ncontent-length: 10\r\n\r\n{{\"a");
    client.write(half.as_bytes()).await.unwrap();
    drop(client);
    let observation = fusebox.observation("gone").await;
    assert_eq!(
        (&observation["status"], &observation["outcome"]),
        (&0.into(), &"client_abort".into())
    );
}

#[tokio::test]
async fn a_path_that_does_not_tell_the_agent_is_the_upstreams() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let order = "identity: {agent_order: [header, default]}";
    let fusebox = Fusebox::start(&Config::new(&upstream).with(order)).await;
    for target in ["/agents/x/v1/messages?a=1", "/a/x/v1/chat/completions"] {
        let ask = Ask::post(target, "{}").header("x-request-id", target);
        assert_eq!(fusebox.ask(&ask).await.status(), 200);
        assert_eq!(upstream.seen().pop().unwrap().message.target(), target);
        assert_eq!(fusebox.observation(target).await["agent"], "default");
    }
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let upstream = Upstream::start(|_| Reply::new(200, "text/plain", vec![b'x'; 2 << 20])).await;
    let config = Config::url(&format!("{}/a/base/path", upstream.url()));
    let fusebox = Fusebox::start(&config.with("limits: {max_header_bytes: 131072}")).await;
    let answer = fusebox.ask(&Ask::get(&format!("/{}", "a".repeat(65_530)))).await;
    assert_eq!(answer.status(), 400);
    assert!(
        answer.text().contains("path") && !answer.text().contains("incident"),
        "{}",
        answer.text()
    );

    let switch = Ask::get("/v1/realtime")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("x-request-id", "switch");
    let answer = fusebox.ask(&switch).await;
    assert_eq!(answer.status(), 502);
    assert!(
        answer.text().contains("switch") && !answer.text().contains("incident"),
        "{}",
        answer.text()
    );
    assert_eq!(fusebox.observation("switch").await["outcome"], "upstream_error");
}

#[tokio::test]
async fn fewer_connections_than_listeners_serve_everybody() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let listeners = "listeners:\n  - listen: 127.0.0.1:0\n  - listen: 127.0.0.1:0\n";
    let config = Config::new(&upstream).listeners(listeners);
    let fusebox = Fusebox::start(&config.with("workers: 3\nlimits: {max_connections: 1}")).await;
    for _ in 0..15 {
        for address in &fusebox.listeners {
            let mut client = Client::connect(address).await;
            assert_eq!(client.ask(&Ask::get("/v1/x")).await.status(), 200);
        }
    }
    // Beyond the bound a client waits, and is served when another leaves.
    let mut first = fusebox.client().await;
    assert_eq!(first.ask(&Ask::get("/v1/x")).await.status(), 200);
    let mut second = fusebox.client().await;
    second.send(&Ask::get("/v1/x")).await;
    let early = tokio::time::timeout(Duration::from_millis(300), second.head()).await;
    assert!(early.is_err(), "the bound holds");
    drop(first);
    assert_eq!(second.answer().await.status(), 200);
    assert!(
        fusebox.log_text().contains("limits.max_connections"),
        "the operator is told"
    );
}

#[tokio::test]
async fn a_drain_does_not_wait_for_handshakes() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue(&["localhost"]).write(directory.path());
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let block = format!(
        "listeners:\n  - listen: 127.0.0.1:0\n    tls: {{certificate_file: {}, key_file: {}}}\n",
        certificate.display(),
        key.display()
    );
    let mut fusebox = Fusebox::start(&Config::new(&upstream).listeners(&block)).await;
    let mut silent = Vec::new();
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(fusebox.address()).await.unwrap();
        stream.write_all(begun).await.unwrap();
        silent.push(stream);
    }
    // And those who have shaken hands and asked for nothing yet.
    let mut quiet = Vec::new();
    for alpn in [&["h2"][..], &["http/1.1"], &[]] {
        quiet.push(authority.connect(fusebox.address(), alpn).await.unwrap());
    }
    eventually("the handshakes are under way", async || {
        let metrics = fusebox.admin(&Ask::get("/metrics")).await.text();
        metrics
            .lines()
            .any(|l| l == "fusebox_connections 5")
            .then_some(())
    })
    .await;
    fusebox.signal("TERM");
    let (status, took) = timed(soon("the program ends", fusebox.ended())).await;
    assert!(
        status.success() && took < Duration::from_secs(5),
        "{status} after {took:?}"
    );
}

#[tokio::test]
async fn open_files_are_allowed_as_many_as_may_be() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let start = async |limit: &str| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fusebox.yaml");
        std::fs::write(&path, Config::new(&upstream).text(directory.path())).unwrap();
        let path = path.display().to_string();
        Fusebox::start_after(directory, limit, &["--config", &path]).await
    };
    let fusebox = start("ulimit -S -n 100 && ulimit -H -n 400").await;
    if let Some(limits) = fusebox.told("limits", "Max open files") {
        let numbers: Vec<&str> = limits
            .split_whitespace()
            .filter(|w| w.parse::<u64>().is_ok())
            .collect();
        assert_eq!(numbers, ["400", "400"], "{limits}");
    }
    let log = fusebox.log_text();
    assert!(
        log.contains("too few open files") && log.contains("20512"),
        "{log}"
    );
    assert_eq!(fusebox.ask(&Ask::get("/v1/x")).await.status(), 200);
}
