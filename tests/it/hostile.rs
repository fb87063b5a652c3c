//! What hostile clients and upstreams cost in memory: many of them at once, each as long and as slow as it may be.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::client::Ask;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::h2::H2Client;
use crate::support::{eventually, soon};

/// How many hostile connections of a kind there are at once. Those of each kind stay while the next kinds come.
const MANY: usize = 150;

/// What all of it together may take at its peak, in KiB, for some 925 connections and 100 streams: each may hold a head
/// (64 KiB), or what it sent of a body, or what stands between an upstream that does not stop and a client that does not
/// read. Measured: 94 to 142 MiB for a build without optimisation, of which 25 are there from the start.
const BOUND_KIB: u64 = 192 << 10;

/// An upstream that never stops to answer those who ask for a stream, and never begins to answer others.
async fn endless() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // What the kernel keeps for us is not what is measured, and takes long to fill.
            socket2::SockRef::from(&stream)
                .set_send_buffer_size(64 << 10)
                .ok();
            tokio::spawn(async move {
                let mut read = vec![0; 64 << 10];
                let n = stream.read(&mut read).await.unwrap_or(0);
                if !String::from_utf8_lossy(&read[..n]).contains("\"stream\":true") {
                    while matches!(stream.read(&mut read).await, Ok(1..)) {}
                    return;
                }
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                let event = format!(
                    "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
                    "x".repeat(4_000)
                );
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                if stream.write_all(head.as_bytes()).await.is_ok() {
                    while stream.write_all(chunk.as_bytes()).await.is_ok() {}
                }
            });
        }
    });
    url
}

/// A connection that takes little ahead of who reads it.
async fn narrow(fusebox: &Fusebox) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 << 10).unwrap();
    socket.connect(fusebox.address().parse().unwrap()).await.unwrap()
}

async fn connect(fusebox: &Fusebox, bytes: &[u8]) -> TcpStream {
    let mut stream = narrow(fusebox).await;
    soon("bytes are taken", stream.write_all(bytes)).await.ok();
    stream
}

#[tokio::test]
async fn many_hostile_connections_take_bounded_memory() {
    let fusebox = Fusebox::start(&Config::url(&endless().await)).await;
    let Some(idle) = fusebox.memory_kib() else {
        return;
    };
    let files = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: files.maximum,
        ..files
    };
    setrlimit(Resource::Nofile, all).unwrap();
    let mut held = Vec::new();
    let mut figures = vec![format!("idle {idle} KiB")];
    let chat = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n";
    let body = "{\"model\":\"m\",\"stream\":true}";

    // Heads without an end, just below the bound.
    let head = format!(
        "GET /v1/x HTTP/1.1\r\nhost: a\r\nx-endless: {}",
        "a".repeat(60 << 10)
    );
    // Bodies of 64 MiB that are announced and begin in two pieces.
    let announced = format!("{chat}content-length: {}\r\n\r\n{{\"a\":\"", 64 << 20);
    let passing = format!(
        "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\nab",
        64 << 20
    );
    // Chunks of one byte, whose lengths are five times what they carry.
    let crumbs = format!(
        "{chat}transfer-encoding: chunked\r\n\r\n{}",
        "1\r\n[\r\n".repeat(8 << 10)
    );
    // JSON that is nothing but depth, and is whole.
    let deep = format!(
        "{chat}content-length: {}\r\n\r\n{}",
        128 << 10,
        "[".repeat(128 << 10)
    );
    for (what, bytes) in [
        ("endless heads", &head),
        ("announced bodies", &announced),
        ("passing bodies", &passing),
        ("crumbs", &crumbs),
        ("deep JSON", &deep),
    ] {
        let mut kind = Vec::new();
        for _ in 0..MANY {
            kind.push(connect(&fusebox, bytes.as_bytes()).await);
        }
        if what == "announced bodies" {
            // The second piece makes room for the rest of what was announced.
            for stream in &mut kind {
                tokio::time::sleep(Duration::from_millis(1)).await;
                stream.write_all(b"b").await.ok();
            }
        }
        held.extend(kind);
        tokio::time::sleep(Duration::from_millis(300)).await;
        figures.push(format!("{what} {} KiB", fusebox.memory_kib().unwrap_or(0)));
    }

    // Answers without an end that nobody reads: streams of one connection, then connections.
    let mut answers = Vec::new();
    let stream = TcpStream::connect(fusebox.address()).await.unwrap();
    let mut client = H2Client::over(stream, "http").await;
    for _ in 0..MANY.min(100) {
        let json = [("content-type", "application/json")];
        answers.push(client.send("POST", "/v1/chat/completions", &json, body).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    figures.push(format!(
        "HTTP/2, unread {} KiB",
        fusebox.memory_kib().unwrap_or(0)
    ));
    let endless = format!("{chat}content-length: {}\r\n\r\n{body}", body.len());
    for _ in 0..MANY / 2 {
        held.push(connect(&fusebox, endless.as_bytes()).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    figures.push(format!("unread {} KiB", fusebox.memory_kib().unwrap_or(0)));
    let peak = fusebox.memory_peak_kib().unwrap_or(0);
    figures.push(format!("peak {peak} KiB"));
    println!("{}", figures.join("\n"));
    assert!(peak < BOUND_KIB, "{}", figures.join("\n"));

    // What they held is given back when they leave, and others are served.
    drop((held, answers, client));
    eventually("an answer to somebody else", async || {
        let mut client = fusebox.client().await;
        client.send(&Ask::post("/v1/chat/completions", body)).await;
        (client.head().await.status() == 200).then_some(())
    })
    .await;
}
