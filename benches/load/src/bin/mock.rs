//! Mock LLM upstream: hand-written HTTP/1.1 on tokio, one single-threaded runtime per --threads,
//! SO_REUSEPORT. Knobs are read from the request body: `[[mock n=200 d=20000 ts=1 l=0 b=1]]`
//! n content chunks, d µs between events, ts=1 put the send time in the content,
//! l µs of latency before the answer, b events per write.
use fusebox_load::*;
use memchr::memmem;
use std::{net::SocketAddr, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const COMMON: &str = "date: Mon, 23 Nov 2026 19:26:39 GMT\r\nopenai-organization: org-mockmockmock\r\nopenai-processing-ms: 312\r\nopenai-version: 2020-10-01\r\nx-ratelimit-limit-requests: 30000\r\nx-ratelimit-limit-tokens: 150000000\r\nx-ratelimit-remaining-requests: 29999\r\nx-ratelimit-remaining-tokens: 149999871\r\nx-ratelimit-reset-requests: 2ms\r\nx-ratelimit-reset-tokens: 0s\r\nx-request-id: req_4f6d6f636b6d6f636b6d6f636b6d6f63\r\nstrict-transport-security: max-age=31536000; includeSubDomains; preload\r\nx-content-type-options: nosniff\r\n";

struct Pre {
    chat: Vec<u8>,
    emb: Vec<u8>,
    sse_head: Vec<u8>,
    not_found: Vec<u8>,
    /// framed events for the default n, one per entry; the last carries the terminal chunk too
    n: usize,
    events: Vec<Vec<u8>>,
}

fn full(ct: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 200 OK\r\n{COMMON}content-type: {ct}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn framed_events(n: usize) -> Vec<Vec<u8>> {
    let mut v = vec![framed(first_event().as_bytes())];
    for i in 0..n {
        v.push(framed(content_event(i, None).as_bytes()));
    }
    for e in closing_events(n) {
        v.push(framed(e.as_bytes()));
    }
    v.last_mut().unwrap().extend_from_slice(b"0\r\n\r\n");
    v
}

fn knob(body: &[u8], key: &str) -> Option<u64> {
    let at = memmem::find(body, b"[[mock ")?;
    let rest = &body[at + 7..];
    let rest = &rest[..memmem::find(rest, b"]]")?];
    let s = std::str::from_utf8(rest).ok()?;
    s.split(' ')
        .find_map(|p| p.strip_prefix(key)?.strip_prefix('=')?.parse().ok())
}

fn header<'a>(head: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut i = memmem::find(head, b"\r\n")? + 2;
    while i < head.len() {
        let e = i + memmem::find(&head[i..], b"\r\n")?;
        let line = &head[i..e];
        if line.len() > name.len()
            && line[name.len()] == b':'
            && line[..name.len()].eq_ignore_ascii_case(name.as_bytes())
        {
            let mut v = &line[name.len() + 1..];
            while let [b' ', r @ ..] = v {
                v = r
            }
            return Some(v);
        }
        i = e + 2;
    }
    None
}

async fn serve(mut s: TcpStream, pre: &'static Pre) -> std::io::Result<()> {
    s.set_nodelay(true)?;
    let mut buf: Vec<u8> = Vec::with_capacity(4096);
    loop {
        // head
        let head_end = loop {
            if let Some(p) = memmem::find(&buf, b"\r\n\r\n") {
                break p + 4;
            }
            if s.read_buf(&mut buf).await? == 0 {
                return Ok(());
            }
        };
        let clen: Option<usize> = header(&buf[..head_end], "content-length")
            .and_then(|v| std::str::from_utf8(v).ok())
            .and_then(|v| v.trim().parse().ok());
        let chunked = clen.is_none() && header(&buf[..head_end], "transfer-encoding").is_some();
        let close = header(&buf[..head_end], "connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close"));
        if header(&buf[..head_end], "expect").is_some() {
            s.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let end = if chunked {
            loop {
                if let Some(p) = memmem::find(&buf[head_end - 2..], b"\r\n0\r\n\r\n") {
                    break head_end - 2 + p + 7;
                }
                if s.read_buf(&mut buf).await? == 0 {
                    return Ok(());
                }
            }
        } else {
            let end = head_end + clen.unwrap_or(0);
            while buf.len() < end {
                if s.read_buf(&mut buf).await? == 0 {
                    return Ok(());
                }
            }
            end
        };
        let line_end = memmem::find(&buf, b"\r\n").unwrap();
        let line = &buf[..line_end];
        let body = &buf[head_end..end];
        if let Some(l) = knob(body, "l").filter(|l| *l > 0) {
            tokio::time::sleep(Duration::from_micros(l)).await;
        }
        if memmem::find(line, b"/embeddings").is_some() {
            s.write_all(&pre.emb).await?;
        } else if memmem::find(line, b"/chat/completions").is_none() {
            s.write_all(&pre.not_found).await?;
        } else if memmem::find(body, b"\"stream\":true").is_none()
            && memmem::find(body, b"\"stream\": true").is_none()
        {
            s.write_all(&pre.chat).await?;
        } else {
            let n = knob(body, "n").map_or(pre.n, |n| n as usize);
            let d = knob(body, "d").unwrap_or(0);
            let ts = knob(body, "ts").unwrap_or(0) == 1;
            let b = knob(body, "b").unwrap_or(1).max(1) as usize;
            s.write_all(&pre.sse_head).await?;
            if d == 0 && !ts {
                let own;
                let events = if n == pre.n {
                    &pre.events
                } else {
                    own = framed_events(n);
                    &own
                };
                if b == 1 {
                    for e in events {
                        s.write_all(e).await?;
                    }
                } else {
                    for es in events.chunks(b) {
                        s.write_all(&es.concat()).await?;
                    }
                }
            } else {
                // The start is spread so that many streams do not tick together.
                let mut t = tokio::time::Instant::now();
                s.write_all(&framed(first_event().as_bytes())).await?;
                for i in 0..n {
                    t += Duration::from_micros(d);
                    tokio::time::sleep_until(t).await;
                    s.write_all(&framed(content_event(i, ts.then(mono_ns)).as_bytes()))
                        .await?;
                }
                for e in closing_events(n) {
                    s.write_all(&framed(e.as_bytes())).await?;
                }
                s.write_all(b"0\r\n\r\n").await?;
            }
        }
        buf.drain(..end);
        if close {
            return Ok(());
        }
    }
}

fn main() {
    let mut addr: SocketAddr = "127.0.0.1:9100".parse().unwrap();
    let (mut threads, mut n) = (1usize, 200usize);
    let mut a = std::env::args().skip(1);
    while let Some(k) = a.next() {
        let v = a.next().expect("value");
        match k.as_str() {
            "--addr" => addr = v.parse().unwrap(),
            "--threads" => threads = v.parse().unwrap(),
            "--chunks" => n = v.parse().unwrap(),
            _ => panic!("unknown flag {k}"),
        }
    }
    let pre: &'static Pre = Box::leak(Box::new(Pre {
        chat: full("application/json", &chat_body()),
        emb: full("application/json", &embeddings_body()),
        sse_head: format!("HTTP/1.1 200 OK\r\n{COMMON}content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n").into_bytes(),
        not_found: b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
        n,
        events: framed_events(n),
    }));
    eprintln!(
        "mock on {addr}: chat {} B, embeddings {} B, sse {} events {} B",
        chat_body().len(),
        embeddings_body().len(),
        events_in(n),
        sse_body(n).len()
    );
    let hs: Vec<_> = (0..threads)
        .map(|_| {
            std::thread::spawn(move || {
                let rt = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                rt.block_on(async move {
                    let s = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                    s.set_reuse_address(true).unwrap();
                    s.set_reuse_port(true).unwrap();
                    s.set_nonblocking(true).unwrap();
                    s.bind(&addr.into()).unwrap();
                    s.listen(16384).unwrap();
                    let l = TcpListener::from_std(s.into()).unwrap();
                    loop {
                        if let Ok((s, _)) = l.accept().await {
                            tokio::spawn(async move {
                                let _ = serve(s, pre).await;
                            });
                        }
                    }
                })
            })
        })
        .collect();
    for h in hs {
        h.join().unwrap();
    }
}
