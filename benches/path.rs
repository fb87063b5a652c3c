//! The whole way of a request over loopback: one client, one connection, one request after the other; beside it the
//! same client without fusebox, so that the difference is what fusebox adds to a lone request.
#![expect(
    clippy::expect_used,
    reason = "a benchmark that cannot be set up has nothing to measure"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;

use criterion::{Criterion, criterion_group, criterion_main};
use fusebox::app::{Source, start};
use fusebox::clock::Clock;
use fusebox::config::{self, Overrides};

const BODY: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"the proxy counts tokens while bytes flow through"},"finish_reason":"stop"}],"usage":{"prompt_tokens":129,"completion_tokens":112,"total_tokens":241}}"#;

/// An upstream that answers every request of a known length with the same bytes.
fn upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(mut stream), answer) = (stream, answer.clone()) else {
                return;
            };
            thread::spawn(move || {
                stream.set_nodelay(true).ok();
                let mut buffer = [0; 8192];
                let mut held = Vec::new();
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    held.extend_from_slice(&buffer[..n]);
                    if held.ends_with(b"}]}") {
                        held.clear();
                        if stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    address
}

/// Starts fusebox before `upstream` on a thread of its own, for as long as the process lives.
fn fusebox_before(upstream: &str) -> String {
    let text = format!(
        "listeners: [{{listen: '127.0.0.1:0'}}]\nadmin: {{listen: '127.0.0.1:0'}}\nworkers: 1\nupstreams: [{{name: up, url: 'http://{upstream}'}}]\n"
    );
    let (tell, told) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let compiled = config::compile("bench", &text, &Overrides::default(), &|_| None).expect("valid");
            let running = start(compiled, Source::Fixed, Clock::system())
                .await
                .expect("started");
            tell.send(running.listeners[0].clone()).expect("awaited");
            std::future::pending::<()>().await;
        });
    });
    told.recv().expect("fusebox starts")
}

fn ask(stream: &mut TcpStream, request: &[u8], buffer: &mut [u8]) {
    stream.write_all(request).expect("written");
    let mut got = 0;
    while !buffer[..got].ends_with(BODY.as_bytes()) {
        got += stream.read(&mut buffer[got..]).expect("read");
    }
}

fn path(c: &mut Criterion) {
    let upstream = upstream();
    let fusebox = fusebox_before(&upstream);
    let messages =
        r#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"Explain how tokens are counted."}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\nauthorization: Bearer x\r\nx-agent-id: bench\r\ncontent-length: {}\r\n\r\n{messages}",
        messages.len()
    );
    let mut group = c.benchmark_group("whole path");
    for (name, address) in [("direct", upstream.clone()), ("through fusebox", fusebox)] {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream.set_nodelay(true).expect("set");
        let mut buffer = vec![0; 64 * 1024];
        group.bench_function(name, |b| {
            b.iter(|| ask(&mut stream, request.as_bytes(), &mut buffer))
        });
    }
    group.finish();
}

criterion_group!(benches, path);
criterion_main!(benches);
