//! Connections to upstreams: shared, kept, given up; and answers whose framing cannot be trusted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::tls::Authority;
use crate::support::upstream::{Framing, Piece, Reply, Seen, Upstream};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_http2_connection_that_went_silent_is_not_asked_again() {
    let asked = AtomicUsize::new(0);
    let script = Arc::new(move |_: &Seen| match asked.fetch_add(1, Ordering::SeqCst) {
        1 => Reply::json("{}").after(Piece::Hang),
        _ => Reply::json("{}"),
    });
    let upstream = Upstream::start_with(script, None, true).await;
    let config = Config::new(&upstream)
        .upstream("http2: prior_knowledge")
        .upstream("timeouts: {first_byte: 300ms}")
        .with("workers: 1");
    let fusebox = Fusebox::start(&config).await;
    for (status, connections) in [(200, 1), (504, 1), (200, 2), (200, 2)] {
        assert_eq!(fusebox.ask(&Ask::post(CHAT, "{}")).await.status(), status);
        assert_eq!(upstream.connections(), connections);
    }
}

#[tokio::test]
async fn connections_stay_over_a_reload_unless_the_roots_are_others() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let ca = authority.write(directory.path());
    for alpn in ["h2", "http/1.1"] {
        std::fs::remove_file(&ca).unwrap();
        assert_eq!(authority.write(directory.path()), ca);
        let server = authority.issue(&["localhost"]).server(&[alpn]);
        let upstream = Upstream::start_with(Arc::new(|_: &_| Reply::json("{}")), Some(server), false).await;
        let config = Config::new(&upstream)
            .upstream(&format!("tls: {{ca_files: [\"{}\"]}}", ca.display()))
            .with("workers: 1");
        let fusebox = Fusebox::start(&config).await;
        let reload = async |n: usize| {
            let before = fusebox.admin_json("/status").await["last_reload"].clone();
            fusebox.signal("HUP");
            eventually("the reload is told", async || {
                let last = fusebox.admin_json("/status").await["last_reload"].clone();
                (last != before).then_some(())
            })
            .await;
            assert_eq!(fusebox.ask(&Ask::post(CHAT, "{}")).await.status(), 200);
            assert_eq!(upstream.connections(), n, "{alpn}");
        };
        assert_eq!(fusebox.ask(&Ask::post(CHAT, "{}")).await.status(), 200);
        reload(1).await;
        // The same authority and one more.
        let stranger = tempfile::tempdir().unwrap();
        let more = std::fs::read_to_string(Authority::new().write(stranger.path())).unwrap();
        let both = std::fs::read_to_string(&ca).unwrap() + &more;
        std::fs::write(&ca, both).unwrap();
        reload(2).await;
        reload(2).await;
    }
}

#[tokio::test]
async fn answers_with_two_readings_are_not_passed_on() {
    let reply = |headers: &[(&str, &str)], framing| {
        let mut reply = Reply::new(200, "application/json", "abc").framed(framing);
        for (name, value) in headers {
            reply = reply.header(name, value);
        }
        reply
    };
    for (what, bad) in [
        ("two lengths", reply(&[("content-length", "4")], Framing::Length)),
        ("both kinds", reply(&[("content-length", "3")], Framing::Chunked)),
        ("no number", reply(&[("content-length", "3x")], Framing::Close)),
        (
            "a coding",
            reply(&[("transfer-encoding", "gzip")], Framing::Close),
        ),
        (
            "a fold",
            reply(&[("x-a", "b\r\n content-length: 3")], Framing::Close),
        ),
        ("a name", reply(&[("x a", "b")], Framing::Length)),
        ("a switch", reply(&[], Framing::Nothing).status(101)),
        (
            "a large head",
            reply(&[("x-a", &"b".repeat(70_000))], Framing::Length),
        ),
    ] {
        let asked = AtomicUsize::new(0);
        let upstream = Upstream::start(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            1 => bad.clone(),
            _ => Reply::json("{}"),
        })
        .await;
        let fusebox = Fusebox::start(&Config::new(&upstream).with("workers: 1")).await;
        let mut client = fusebox.client().await;
        for (status, connections) in [(200, 1), (502, 1), (200, 2)] {
            let answer = client.ask(&Ask::post(CHAT, "{}")).await;
            assert_eq!(answer.status(), status, "{what}");
            assert_eq!(upstream.connections(), connections, "{what}");
        }
        assert_eq!(upstream.count(), 3, "{what}: nothing was asked twice");
    }
}

#[tokio::test]
async fn lengths_that_agree_pass() {
    let upstream = Upstream::start(|_| {
        Reply::json("abc")
            .header("content-length", "3")
            .header("content-length", "3, 3")
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    assert_eq!(fusebox.ask(&Ask::post(CHAT, "{}")).await.text(), "abc");
}
