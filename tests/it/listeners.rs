//! Where clients come in and how upstreams are reached: HTTP/1.1, HTTP/2, TLS, Unix sockets, an outbound proxy.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::client::{Ask, Client};
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::h2::H2Client;
use crate::support::tls::Authority;
use crate::support::upstream::{Piece, Reply, Upstream};

const CHAT: &str = "/v1/chat/completions";
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

#[tokio::test]
async fn http2_is_spoken_at_once() {
    let upstream = Upstream::start(|seen| Reply::json(seen.text()).header("x-seen", "1")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let stream = TcpStream::connect(fusebox.address()).await.unwrap();
    let mut client = H2Client::over(stream, "http").await;
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", "two"),
        ("x-agent-id", "h2"),
    ];
    let answer = client.ask("POST", CHAT, &headers, "{\"model\":\"m\"}").await;
    assert_eq!(
        (answer.status(), answer.text().as_str()),
        (200, "{\"model\":\"m\"}")
    );
    assert_eq!(answer.header("x-seen").as_deref(), Some("1"));
    let seen = upstream.the_one().await;
    assert_eq!(seen.header("host"), Some(upstream.address.to_string()));
    assert_eq!(seen.message.target(), CHAT);
    let observation = fusebox.observation("two").await;
    assert_eq!(
        (
            observation["agent"].as_str(),
            observation["model_requested"].as_str()
        ),
        (Some("h2"), Some("m"))
    );
}

#[tokio::test]
async fn http2_streams_run_side_by_side() {
    let upstream =
        Upstream::start(|_| Reply::json("{}").after(Piece::Wait(Duration::from_millis(200)))).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let stream = TcpStream::connect(fusebox.address()).await.unwrap();
    let client = H2Client::over(stream, "http").await;
    let mut tasks = Vec::new();
    for _ in 0..20 {
        let mut client = client.clone();
        tasks.push(tokio::spawn(async move {
            client.ask("POST", CHAT, JSON, "{}").await.status()
        }));
    }
    let all = async {
        for task in tasks {
            assert_eq!(task.await.unwrap(), 200);
        }
    };
    let ((), took) = crate::support::timed(all).await;
    assert!(
        took < Duration::from_secs(2),
        "one after another would take four seconds: {took:?}"
    );
}

#[tokio::test]
async fn a_reset_http2_stream_is_felt_upstream() {
    let upstream = Upstream::start(|_| Reply::events(["data: {}\n\n"]).then(Piece::Hang)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let stream = TcpStream::connect(fusebox.address()).await.unwrap();
    let mut client = H2Client::over(stream, "http").await;
    let answer = client
        .send("POST", CHAT, &[("x-request-id", "reset")], "{\"stream\":true}")
        .await;
    drop(answer);
    eventually("the upstream feels it", async || {
        (upstream.left() == 1).then_some(())
    })
    .await;
    assert_eq!(fusebox.observation("reset").await["outcome"], "client_abort");
    // The connection lives on.
    let answer = client.send("GET", "/v1/x", &[], "").await;
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn tls_by_alpn_and_certificates_that_change() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let first = authority.issue(&["localhost"]);
    let (certificate, key) = first.write(directory.path());
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let block = format!(
        "listeners:\n  - listen: 127.0.0.1:0\n    tls:\n      certificate_file: {}\n      key_file: {}\n",
        certificate.display(),
        key.display()
    );
    let fusebox = Fusebox::start(&Config::new(&upstream).listeners(&block)).await;

    for (alpn, want) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let stream = authority
            .connect(fusebox.address(), alpn)
            .await
            .expect("a TLS connection");
        let shown = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        assert_eq!(shown.as_deref(), want, "offered {alpn:?}");
        assert_eq!(
            stream.get_ref().1.peer_certificates().unwrap().first(),
            Some(first.leaf())
        );
        let status = if shown.as_deref() == Some(b"h2") {
            H2Client::over(stream, "https")
                .await
                .ask("POST", CHAT, JSON, "{}")
                .await
                .status()
        } else {
            Client::over(stream).ask(&Ask::post(CHAT, "{}")).await.status()
        };
        assert_eq!(status, 200, "offered {alpn:?}");
    }

    // A connection that is open stays; new ones are shown the new certificate, without a signal.
    let mut old = Client::over(authority.connect(fusebox.address(), &["http/1.1"]).await.unwrap());
    assert_eq!(old.ask(&Ask::get("/v1/x")).await.status(), 200);
    let second = authority.issue(&["localhost"]);
    second.write(directory.path());
    eventually("the new certificate is shown", async || {
        let stream = authority.connect(fusebox.address(), &[]).await.ok()?;
        (stream.get_ref().1.peer_certificates()?.first() == Some(second.leaf())).then_some(())
    })
    .await;
    assert_eq!(old.ask(&Ask::get("/v1/x")).await.status(), 200);

    // Files that cannot be used change nothing.
    std::fs::write(&certificate, "no certificate").unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let stream = authority
        .connect(fusebox.address(), &[])
        .await
        .expect("the old one is still used");
    assert_eq!(
        stream.get_ref().1.peer_certificates().unwrap().first(),
        Some(second.leaf())
    );
}

#[tokio::test]
async fn plain_http_on_a_tls_listener_is_dropped() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = authority.issue(&["localhost"]).write(directory.path());
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let block = format!(
        "listeners:\n  - listen: 127.0.0.1:0\n    tls: {{certificate_file: {}, key_file: {}}}\n",
        certificate.display(),
        key.display()
    );
    let fusebox = Fusebox::start(&Config::new(&upstream).listeners(&block)).await;
    let mut client = fusebox.client().await;
    client.write(&Ask::get("/").bytes()).await.unwrap();
    client.gone().await;
    assert_eq!(upstream.count(), 0);
    assert!(
        authority.connect(fusebox.address(), &[]).await.is_ok(),
        "others are served"
    );
}

#[tokio::test]
async fn several_listeners_each_with_its_agent() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agents.sock");
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let block = format!(
        "listeners:\n  - listen: 127.0.0.1:0\n    agent: first\n  - listen: \"[::1]:0\"\n    agent: second\n  - listen: unix:{}\n    agent: third\n",
        socket.display()
    );
    let fusebox = Fusebox::start(&Config::new(&upstream).listeners(&block)).await;
    assert_eq!(fusebox.listeners.len(), 3, "{:?}", fusebox.listeners);
    for (address, agent) in fusebox.listeners.iter().zip(["first", "second"]) {
        let ask = Ask::post(CHAT, "{}").header("x-request-id", agent);
        assert_eq!(Client::connect(address).await.ask(&ask).await.status(), 200);
        let observation = fusebox.observation(agent).await;
        assert_eq!(
            (
                observation["agent"].as_str(),
                observation["agent_source"].as_str()
            ),
            (Some(agent), Some("config"))
        );
    }
    let ask = Ask::post(CHAT, "{}").header("x-request-id", "third");
    assert_eq!(Client::unix(&socket).await.ask(&ask).await.status(), 200);
    assert_eq!(fusebox.observation("third").await["agent"], "third");
}

#[tokio::test]
async fn a_stale_unix_socket_is_replaced_and_a_file_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agents.sock");
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let block = format!("listeners:\n  - listen: unix:{}\n", socket.display());
    let config = Config::new(&upstream).listeners(&block);
    // Killed, it leaves its socket behind.
    drop(Fusebox::start(&config).await);
    assert!(socket.exists());
    let fusebox = Fusebox::start(&config).await;
    assert_eq!(
        Client::unix(&socket).await.ask(&Ask::get("/v1/x")).await.status(),
        200
    );
    drop(fusebox);

    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "somebody's file").unwrap();
    let path = directory.path().join("fusebox.yaml");
    std::fs::write(&path, config.text(directory.path())).unwrap();
    let output = crate::support::fusebox::finished(
        crate::support::fusebox::program()
            .arg("run")
            .arg("--config")
            .arg(&path),
    );
    assert!(!output.status.success());
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "somebody's file");
}

#[tokio::test]
async fn upstreams_over_tls_are_trusted_by_their_authority_alone() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let ca = authority.write(directory.path());
    for (alpn, http2, want_h2) in [
        (&["h2", "http/1.1"][..], "auto", true),
        (&["h2", "http/1.1"], "never", false),
        (&["http/1.1"], "auto", false),
        (&[], "auto", false),
    ] {
        let server = authority.issue(&["localhost"]).server(alpn);
        let script = Arc::new(|seen: &crate::support::upstream::Seen| Reply::json(seen.text()));
        let upstream = Upstream::start_with(script, Some(server), false).await;
        let config = Config::new(&upstream)
            .upstream(&format!("http2: {http2}"))
            .upstream(&format!("tls: {{ca_files: [\"{}\"]}}", ca.display()));
        let fusebox = Fusebox::start(&config).await;
        let mut client = fusebox.client().await;
        for n in 0..3 {
            let body = format!("{{\"n\":{n}}}");
            assert_eq!(
                client.ask(&Ask::post(CHAT, &body)).await.text(),
                body,
                "{alpn:?} {http2}"
            );
        }
        let seen = upstream.seen();
        assert!(seen.iter().all(|s| s.h2 == want_h2), "{alpn:?} {http2}: {seen:?}");
        assert_eq!(upstream.connections(), 1, "{alpn:?} {http2}");
    }

    // Without the authority, and with another name, nothing is sent.
    let stranger = Authority::new();
    for (server, tls) in [
        (
            stranger.issue(&["localhost"]).server(&[]),
            format!("tls: {{ca_files: [\"{}\"]}}", ca.display()),
        ),
        (
            authority.issue(&["elsewhere.test"]).server(&[]),
            format!("tls: {{ca_files: [\"{}\"]}}", ca.display()),
        ),
    ] {
        let upstream = Upstream::start_with(Arc::new(|_: &_| Reply::json("{}")), Some(server), false).await;
        let fusebox = Fusebox::start(&Config::new(&upstream).upstream(&tls)).await;
        assert_eq!(fusebox.ask(&Ask::post(CHAT, "{}")).await.status(), 502);
        assert_eq!(upstream.count(), 0);
    }
}

#[tokio::test]
async fn upstreams_that_speak_http2_without_being_asked() {
    let script = Arc::new(|seen: &crate::support::upstream::Seen| {
        let mut reply = Reply::events(["data: {\"a\":1}\n\n", "data: [DONE]\n\n"])
            .header("x-target", seen.message.target());
        reply.trailers = vec![("x-sum".to_owned(), "1".to_owned())];
        reply
    });
    let upstream = Upstream::start_with(script, None, true).await;
    let fusebox = Fusebox::start(&Config::new(&upstream).upstream("http2: prior_knowledge")).await;
    let answer = fusebox
        .ask(&Ask::post("/v1/chat/completions?x=1", "{\"stream\":true}").header("x-request-id", "h2c"))
        .await;
    assert_eq!(answer.text(), "data: {\"a\":1}\n\ndata: [DONE]\n\n");
    assert_eq!(
        answer.header("x-target").as_deref(),
        Some("/v1/chat/completions?x=1")
    );
    let seen = upstream.the_one().await;
    assert!(seen.h2);
    assert_eq!(seen.header(":authority"), Some(upstream.address.to_string()));
    for name in ["connection", "transfer-encoding", "host", "keep-alive"] {
        assert_eq!(seen.header(name), None, "{name} has no place in HTTP/2");
    }
    assert_eq!(fusebox.observation("h2c").await["outcome"], "complete");
}

#[tokio::test]
async fn every_address_of_a_name_is_tried() {
    // `localhost` often is ::1 first; this upstream listens on 127.0.0.1 only.
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let url = format!("http://localhost:{}", upstream.address.port());
    let fusebox = Fusebox::start(&Config::url(&url)).await;
    assert_eq!(fusebox.ask(&Ask::post(CHAT, "{}")).await.status(), 200);
}

/// A `CONNECT` proxy that notes what it was asked for.
async fn outbound_proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
                notes.lock().unwrap().push(head);
                let Ok(mut other) = TcpStream::connect(&target).await else {
                    return;
                };
                stream
                    .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    .await
                    .ok();
                tokio::io::copy_bidirectional(&mut stream, &mut other).await.ok();
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn an_outbound_proxy_is_gone_through() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let ca = authority.write(directory.path());
    let server = authority.issue(&["localhost"]).server(&["http/1.1"]);
    let upstream =
        Upstream::start_with(Arc::new(|_: &_| Reply::json("{\"a\":1}")), Some(server), false).await;
    let (proxy, asked) = outbound_proxy().await;
    let config = Config::new(&upstream)
        .upstream(&format!("tls: {{ca_files: [\"{}\"]}}", ca.display()))
        .upstream(&format!("proxy: http://user:pass@{proxy}"));
    let fusebox = Fusebox::start(&config).await;
    assert_eq!(
        fusebox
            .ask(&Ask::post(CHAT, "{}").header("x-secret", "s"))
            .await
            .text(),
        "{\"a\":1}"
    );
    let asked = asked.lock().unwrap().clone();
    let head = asked.first().expect("the proxy was asked");
    assert!(
        head.starts_with(&format!(
            "CONNECT localhost:{} HTTP/1.1\r\n",
            upstream.address.port()
        )),
        "{head}"
    );
    assert!(
        head.to_ascii_lowercase()
            .contains("proxy-authorization: basic dxnlcjpwyxnz"),
        "{head}"
    );
    assert!(!head.contains("x-secret"), "{head}");
}

#[tokio::test]
async fn upstreams_are_told_apart_by_dialect_and_prefix() {
    let openai = Upstream::start(|_| Reply::json("\"openai\"")).await;
    let anthropic = Upstream::start(|_| Reply::json("\"anthropic\"")).await;
    let groq = Upstream::start(|_| Reply::json("\"groq\"")).await;
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "listeners: [{{listen: \"127.0.0.1:0\"}}]\nadmin: {{listen: \"127.0.0.1:0\"}}\nagent_incident_rules: []\nupstreams:\n\
         \x20 - {{name: groq, url: \"{}/openai/v1\", path_prefix: /groq}}\n\
         \x20 - {{name: openai, url: \"{}/v1\", families: [openai]}}\n\
         \x20 - {{name: anthropic, url: \"{}\", families: [anthropic]}}\n",
        groq.url(),
        openai.url(),
        anthropic.url()
    );
    let path = directory.path().join("fusebox.yaml");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    let fusebox = Fusebox::start_args(directory, &["--config", &path], &[]).await;
    for (target, want, seen) in [
        ("/v1/chat/completions", "\"openai\"", "/v1/chat/completions"),
        ("/v1/messages", "\"anthropic\"", "/v1/messages"),
        (
            "/groq/v1/chat/completions",
            "\"groq\"",
            "/openai/v1/chat/completions",
        ),
    ] {
        let answer = fusebox.ask(&Ask::post(target, "{}")).await;
        assert_eq!(answer.text(), want, "{target}");
        let all = [&openai, &anthropic, &groq].map(Upstream::seen).concat();
        assert!(
            all.iter().any(|s| s.message.target() == seen),
            "{target} should arrive as {seen}"
        );
    }
    let answer = fusebox.ask(&Ask::post("/v2/chat", "{}")).await;
    assert_eq!(
        answer.status(),
        404,
        "nobody serves this dialect: {}",
        answer.text()
    );
}

/// An upstream that switches to whatever is asked for and echoes every byte.
async fn echo() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                notes
                    .lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&head).to_ascii_lowercase());
                let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                    sec-websocket-accept: x\r\n\r\n";
                stream.write_all(switch.as_bytes()).await.ok();
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    (url, heads)
}

#[tokio::test]
async fn websockets_are_relayed_unread() {
    let (url, heads) = echo().await;
    let fusebox = Fusebox::start(&Config::url(&url)).await;
    let mut stream = TcpStream::connect(fusebox.address()).await.unwrap();
    let ask = Ask::get("/v1/realtime?model=x")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==")
        .header("x-request-id", "ws");
    stream.write_all(&ask.bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(
            crate::support::soon("the switch", stream.read_u8())
                .await
                .expect("an answer"),
        );
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    let sent = heads
        .lock()
        .unwrap()
        .first()
        .cloned()
        .expect("the upstream was asked");
    for line in [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key:",
    ] {
        assert!(sent.contains(line), "{line} in {sent}");
    }
    for frame in [&b"\x81\x05hello"[..], b"\x89\x00", &[0, 255, 13, 10, 128]] {
        stream.write_all(frame).await.unwrap();
        let mut back = vec![0; frame.len()];
        crate::support::soon("an echo", stream.read_exact(&mut back))
            .await
            .expect("an echo");
        assert_eq!(back, frame);
    }
    drop(stream);
    let observation = fusebox.observation("ws").await;
    assert_eq!(
        (observation["status"].as_u64(), observation["upstream"].as_str()),
        (Some(101), Some("double"))
    );
}

#[tokio::test]
async fn a_switch_that_the_upstream_declines_is_an_ordinary_answer() {
    let upstream = Upstream::start(|_| Reply::json("{\"error\":\"no\"}").status(403)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    let ask = Ask::get("/v1/realtime")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket");
    let ask = ask
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    assert_eq!(client.ask(&ask).await.status(), 403);
    assert_eq!(
        fusebox.ask(&Ask::get("/v1/x")).await.status(),
        403,
        "others are served"
    );
}
