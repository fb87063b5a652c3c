//! What hostile clients and upstreams cost in memory: many of them at once, each as long and as slow as it may be.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::client::Ask;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::h2::H2Client;
use crate::support::soon;

/// How many hostile connections of a kind there are at once. Those of each kind stay while the next kinds come.
const MANY: usize = 150;

/// What all of it together may take at its peak, in KiB: some 230 KiB for each of a thousand. A connection may hold a
/// head (64 KiB), or what it sent of a body, or what stands between an upstream that does not stop and a client that
/// does not read. Measured: 140 MiB for a build without optimisation, of which 25 are there from the start.
const BOUND_KIB: u64 = 230 << 10;

/// An upstream that reads a head and whatever comes with it, and then never stops to answer.
async fn endless() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = vec![0; 64 << 10];
                if !matches!(stream.read(&mut read).await, Ok(n) if n > 0) {
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

async fn connect(fusebox: &Fusebox, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(fusebox.address()).await.unwrap();
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
    let stream = "{\"model\":\"m\",\"stream\":true}";

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
    // Answers without an end, which nobody reads.
    let unread = format!("{chat}content-length: {}\r\n\r\n{stream}", stream.len());
    for (what, bytes) in [
        ("endless heads", &head),
        ("announced bodies", &announced),
        ("passing bodies", &passing),
        ("crumbs", &crumbs),
        ("deep JSON, its answer unread", &deep),
        ("endless answers, unread", &unread),
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

    // The same over HTTP/2, where one connection has many streams.
    let mut answers = Vec::new();
    let mut client = H2Client::over(TcpStream::connect(fusebox.address()).await.unwrap(), "http").await;
    for _ in 0..MANY.min(100) {
        let json = [("content-type", "application/json")];
        answers.push(client.send("POST", "/v1/chat/completions", &json, stream).await);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    figures.push(format!(
        "HTTP/2, unread {} KiB",
        fusebox.memory_kib().unwrap_or(0)
    ));

    // And answers that are read as fast as they come, for a while.
    let reading: Vec<_> = (0..8)
        .map(|_| {
            let (address, bytes) = (fusebox.address().to_owned(), unread.clone());
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(&address).await.unwrap();
                stream.write_all(bytes.as_bytes()).await.unwrap();
                let mut buffer = vec![0; 256 << 10];
                let mut total = 0_u64;
                let read = async {
                    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                        total += n as u64;
                    }
                };
                tokio::time::timeout(Duration::from_secs(2), read).await.ok();
                total
            })
        })
        .collect();
    let mut passed = 0;
    for task in reading {
        passed += task.await.unwrap();
    }
    let peak = fusebox.memory_peak_kib().unwrap_or(0);
    figures.push(format!("{} MiB read, peak {peak} KiB", passed >> 20));
    println!("{}", figures.join("\n"));
    assert!(peak < BOUND_KIB, "{}", figures.join("\n"));

    // Nobody else notices.
    let mut client = fusebox.client().await;
    client.send(&Ask::get("/v1/x")).await;
    assert_eq!(client.head().await.status(), 200);
}
