//! What hostile or broken clients send: refused before an upstream sees it, or passed on without being understood.

use std::time::Duration;

use serde_json::Value;

use crate::support::client::Ask;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::h2::H2Client;
use crate::support::timed;
use crate::support::upstream::{Reply, Upstream};

/// A second request, hidden where a body is expected.
const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn requests_with_two_readings_are_refused() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let post = |headers: &str, body: &str| format!("POST /v1/x HTTP/1.1\r\nhost: a\r\n{headers}\r\n{body}");
    let hidden = HIDDEN.len();
    let table = [
        (
            "two lengths",
            post(
                &format!("content-length: 0\r\ncontent-length: {hidden}\r\n"),
                HIDDEN,
            ),
        ),
        (
            "a list of lengths",
            post(&format!("content-length: 0, {hidden}\r\n"), HIDDEN),
        ),
        (
            "a signed length",
            post(&format!("content-length: +{hidden}\r\n"), HIDDEN),
        ),
        ("a negative length", post("content-length: -1\r\n", HIDDEN)),
        ("a hexadecimal length", post("content-length: 0x10\r\n", HIDDEN)),
        (
            "a length beyond numbers",
            post("content-length: 99999999999999999999999\r\n", HIDDEN),
        ),
        ("an empty length", post("content-length: \r\n", HIDDEN)),
        (
            "an unknown coding",
            post("transfer-encoding: xchunked\r\n", HIDDEN),
        ),
        (
            "chunked not last",
            post(
                "transfer-encoding: chunked, identity\r\n",
                &format!("0\r\n\r\n{HIDDEN}"),
            ),
        ),
        (
            "a chunk size that is none",
            post("transfer-encoding: chunked\r\n", &format!("zz\r\n{HIDDEN}")),
        ),
        (
            "a signed chunk size",
            post("transfer-encoding: chunked\r\n", "+1\r\na\r\n0\r\n\r\n"),
        ),
        (
            "a chunk size with 0x",
            post("transfer-encoding: chunked\r\n", "0x1\r\na\r\n0\r\n\r\n"),
        ),
        (
            "a chunk size beyond numbers",
            post(
                "transfer-encoding: chunked\r\n",
                "fffffffffffffffff1\r\na\r\n0\r\n\r\n",
            ),
        ),
        (
            "a chunk longer than its size",
            post("transfer-encoding: chunked\r\n", "1\r\nabc\r\n0\r\n\r\n"),
        ),
        (
            "a bare line feed after a chunk size",
            post("transfer-encoding: chunked\r\n", "1\na\r\n0\r\n\r\n"),
        ),
        ("a folded header", post("x-a: 1\r\n  folded\r\n", "")),
        ("space before a colon", post("content-length : 5\r\n", "hello")),
        ("a header without a name", post(": x\r\n", "")),
        ("a header without a colon", post("nonsense\r\n", "")),
        ("a zero byte in a header", post("x-a: a\0b\r\n", "")),
        (
            "a lone carriage return in a header",
            post("x-a: a\rtransfer-encoding: chunked\r\n", ""),
        ),
        (
            "chunks in HTTP/1.0",
            format!("POST /v1/x HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"),
        ),
        ("no host", "GET /v1/x HTTP/1.1\r\n\r\n".to_owned()),
        (
            "two hosts",
            "GET /v1/x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(),
        ),
        (
            "an impossible host",
            "GET /v1/x HTTP/1.1\r\nhost: a/b@c\r\n\r\n".to_owned(),
        ),
        (
            "a space in the target",
            "GET /v1/x y HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        ),
        (
            "a version of the future",
            "GET /v1/x HTTP/3.0\r\nhost: a\r\n\r\n".to_owned(),
        ),
        (
            "no HTTP at all",
            "\u{16}\u{3}\u{1}\u{2}nonsense\r\n\r\n".to_owned(),
        ),
        (
            "a tunnel",
            "CONNECT example.com:443 HTTP/1.1\r\nhost: example.com:443\r\n\r\n".to_owned(),
        ),
    ];
    let mut wrong = Vec::new();
    for (what, bytes) in table {
        let before = upstream.count();
        let mut client = fusebox.client().await;
        client.write(bytes.as_bytes()).await.ok();
        match client.try_answer().await {
            Some(answer) if (400..=599).contains(&answer.status()) && answer.status() != 502 => {}
            Some(answer) => wrong.push(format!("{what}: answered {}", answer.status())),
            None => {}
        }
        let seen = upstream.seen();
        // A chunked body may be found out only after its head was passed on; then the upstream got a broken request.
        let passed: Vec<_> = seen
            .iter()
            .skip(before)
            .map(|s| s.message.start.clone())
            .collect();
        if !passed.is_empty() {
            wrong.push(format!("{what}: the upstream saw {passed:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(
        fusebox.ask(&Ask::get("/v1/x")).await.status(),
        200,
        "others are served"
    );
}

/// RFC 9112 §6.3 leaves two ways: refuse, or go by the chunks alone, say nothing of a length to the next hop, and close
/// the connection. Anything else lets a second request in.
#[tokio::test]
async fn a_length_beside_chunks_hides_nothing() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let length = HIDDEN.len() + 5;
    for headers in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n"),
        "transfer-encoding: chunked\r\ncontent-length: 4\r\n".to_owned(),
        "transfer-encoding: chunked\r\ncontent-length: 0\r\n".to_owned(),
    ] {
        let before = upstream.count();
        let mut client = fusebox.client().await;
        let bytes = format!("POST /v1/x HTTP/1.1\r\nhost: a\r\n{headers}\r\n3\r\nabc\r\n0\r\n\r\n{HIDDEN}");
        client.write(bytes.as_bytes()).await.ok();
        let answer = client.try_answer().await;
        client.gone().await;
        let seen = upstream.seen().split_off(before);
        match answer.map_or(400, |a| a.status()) {
            400 => assert!(seen.is_empty(), "{headers}: {seen:?}"),
            200 => {
                assert_eq!(seen.len(), 1, "{headers}: {seen:?}");
                assert_eq!(seen[0].text(), "abc", "{headers}");
                let framed = ["content-length", "transfer-encoding"].map(|n| seen[0].message.all(n).len());
                assert_eq!(framed.iter().sum::<usize>(), 1, "{headers}: framed once");
            }
            other => panic!("{headers}: {other}"),
        }
        assert!(upstream.seen().iter().all(|s| s.message.target() != "/smuggled"));
    }
}

#[tokio::test]
async fn what_has_one_reading_is_read_so() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    for (what, bytes, body) in [
        (
            "the same length twice",
            "POST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nab",
            "ab",
        ),
        (
            "chunk extensions",
            "POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nab\r\n0\r\n\r\n",
            "ab",
        ),
        (
            "upper case",
            "POST /v1/x HTTP/1.1\r\nHOST: a\r\nTransfer-Encoding: Chunked\r\n\r\n0002\r\nab\r\n0\r\n\r\n",
            "ab",
        ),
        (
            "blank lines before",
            "\r\nPOST /v1/x HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab",
            "ab",
        ),
        (
            "bare line feeds",
            "POST /v1/x HTTP/1.1\nhost: a\ncontent-length: 2\n\nab",
            "ab",
        ),
    ] {
        let before = upstream.count();
        let mut client = fusebox.client().await;
        client.write(bytes.as_bytes()).await.unwrap();
        let answer = client.try_answer().await;
        // Refusing is allowed for all of them; another reading is not.
        if answer.as_ref().is_some_and(|a| a.status() == 200) {
            let seen = upstream.seen();
            assert_eq!(seen.len(), before + 1, "{what}");
            assert_eq!(seen.last().unwrap().text(), body, "{what}");
            assert_eq!(
                seen.last().unwrap().message.all("content-length").len()
                    + seen.last().unwrap().message.all("transfer-encoding").len(),
                1,
                "{what}: framed once"
            );
        } else {
            assert_eq!(upstream.count(), before, "{what}");
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::start(|seen| Reply::json(seen.message.target())).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    let both = [
        Ask::post("/one", "{}").bytes(),
        Ask::get("/two").bytes(),
        Ask::post("/three", "x").bytes(),
    ]
    .concat();
    client.write(&both).await.unwrap();
    for want in ["/one", "/two", "/three"] {
        assert_eq!(client.answer().await.text(), want);
    }
}

#[tokio::test]
async fn bodies_beyond_the_bound_are_refused_in_the_shape_of_the_api() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream).with("limits: {max_request_bytes: 1024}")).await;
    let body = vec![b'x'; 1_025];
    let said =
        |answer: &Value, pointer: &str| answer.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    for (path, kind, message) in [
        ("/v1/chat/completions", "/error/type", "/error/message"),
        ("/v1/responses", "/error/type", "/error/message"),
        ("/v1/messages", "/error/type", "/error/message"),
        (
            "/v1beta/models/gemini-2.5-flash:generateContent",
            "/error/status",
            "/error/message",
        ),
        ("/api/chat", "/error", "/error"),
        ("/v2/chat", "/message", "/message"),
        ("/model/m/converse", "/message", "/message"),
        ("/v1/files", "/error/type", "/error/message"),
    ] {
        // By its length, before a byte of it is sent …
        let mut client = fusebox.client().await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 1025\r\n\r\n"
        );
        client.write(head.as_bytes()).await.unwrap();
        let answer = client
            .try_answer()
            .await
            .unwrap_or_else(|| panic!("{path}: no answer"));
        assert_eq!(answer.status(), 413, "{path}");
        assert_eq!(
            answer
                .header("content-type")
                .map(|t| t.starts_with("application/json")),
            Some(true),
            "{path}"
        );
        let json = answer.json();
        assert!(said(&json, kind).is_some(), "{path}: {json}");
        assert!(
            said(&json, message).is_some_and(|m| m.contains("1024") || m.contains("1,024")),
            "{path}: {json}"
        );
        // … and as it comes, when it does not say its length.
        let mut client = fusebox.client().await;
        let mut bytes =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n401\r\n")
                .into_bytes();
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(b"\r\n0\r\n\r\n");
        client.write(&bytes).await.ok();
        if let Some(answer) = client.try_answer().await {
            assert_eq!(answer.status(), 413, "{path} in chunks");
        }
    }
    let answer = fusebox.ask(&Ask::post("/v1/messages", &body)).await;
    assert_eq!(answer.json()["type"], "error");
    assert_eq!(answer.json()["error"]["type"], "request_too_large");
    assert_eq!(upstream.count(), 0, "nothing of it was sent on");
    assert_eq!(
        fusebox
            .ask(&Ask::post("/v1/chat/completions", &body[..1_024]))
            .await
            .status(),
        200
    );
    let observations = fusebox.observed(17).await;
    assert!(
        observations
            .iter()
            .any(|o| o["status"] == 413 && o["outcome"] == "refused" && o["api"] == "openai.chat")
    );
}

#[tokio::test]
async fn heads_beyond_the_bound_are_refused() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream).with("limits: {max_header_bytes: 16384}")).await;
    for what in ["one long header", "many headers", "a long target"] {
        let ask = match what {
            "one long header" => Ask::get("/v1/x").header("x-long", "a".repeat(40_000)),
            "many headers" => (0..4_000).fold(Ask::get("/v1/x"), |ask, n| {
                ask.header(&format!("x-{n}"), "aaaaaaaa")
            }),
            _ => Ask::get(&format!("/v1/{}", "a".repeat(70_000))),
        };
        let mut client = fusebox.client().await;
        client.write(&ask.bytes()).await.ok();
        if let Some(answer) = client.try_answer().await {
            assert!(
                matches!(answer.status(), 400 | 414 | 431),
                "{what}: {}",
                answer.status()
            );
        }
        assert_eq!(upstream.count(), 0, "{what}");
    }
    // Endless, too, and without ever completing a line.
    let mut client = fusebox.client().await;
    client.write(b"GET /v1/x HTTP/1.1\r\nx-endless: ").await.unwrap();
    let endless = async { while client.write(&[b'a'; 4096]).await.is_ok() {} };
    crate::support::soon("an endless header is cut off", endless).await;
    let ask = Ask::get("/v1/x").header("x-long", "a".repeat(8_000));
    assert_eq!(
        fusebox.ask(&ask).await.status(),
        200,
        "what is within the bound passes"
    );
}

#[tokio::test]
async fn clients_that_dawdle_are_let_go() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let limits = "limits: {header_timeout: 1s, body_idle_timeout: 1s, keep_alive_timeout: 1s}";
    let fusebox = Fusebox::start(&Config::new(&upstream).with(limits)).await;
    for (what, bytes) in [
        ("nothing at all", ""),
        ("half a request line", "GET /v1/"),
        (
            "half a head",
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-",
        ),
        ("half a preface", "PRI * HTTP/2.0\r\n\r\nS"),
        (
            "half a body",
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{\"a",
        ),
        (
            "half a body that is passed on",
            "POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{\"a",
        ),
        (
            "one request, then silence",
            "GET /v1/x HTTP/1.1\r\nhost: a\r\n\r\n",
        ),
    ] {
        let mut client = fusebox.client().await;
        client.write(bytes.as_bytes()).await.unwrap();
        let ((), took) = timed(client.gone()).await;
        assert!(took < Duration::from_secs(5), "{what}: {took:?}");
        assert!(took > Duration::from_millis(500), "{what}: {took:?}");
    }
    assert!(
        upstream.seen().iter().all(|s| s.message.target() == "/v1/x"),
        "{:?}",
        upstream.seen()
    );
}

#[tokio::test]
async fn a_head_that_drips_does_not_buy_time() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream).with("limits: {header_timeout: 1s}")).await;
    let mut client = fusebox.client().await;
    let drip = async {
        client
            .write(b"GET /v1/x HTTP/1.1\r\nhost: a\r\nx-slow: ")
            .await
            .ok();
        while client.write(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ((), took) = timed(crate::support::soon("a dripping head is cut off", drip)).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_passed_on() {
    let upstream = Upstream::start(|_| Reply::json("{\"model\":\"served\"}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let deep = format!("{{\"model\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_beside = format!(
        "{{\"x\":{}{},\"model\":\"m\"}}",
        "[".repeat(50_000),
        "]".repeat(50_000)
    );
    let table: Vec<(&str, Vec<u8>, Option<&str>)> = vec![
        ("deep", deep.into_bytes(), None),
        ("unclosed", "[".repeat(200_000).into_bytes(), None),
        ("twice", b"{\"model\":\"a\",\"model\":\"b\"}".to_vec(), None),
        (
            "twice-escaped",
            b"{\"model\":\"a\",\"mod\\u0065l\":\"b\"}".to_vec(),
            None,
        ),
        ("number", b"{\"model\":5}".to_vec(), None),
        ("null", b"{\"model\":null}".to_vec(), None),
        ("object", b"{\"model\":{\"model\":\"inner\"}}".to_vec(), None),
        ("list", b"[{\"model\":\"inner\"}]".to_vec(), None),
        (
            "nested-only",
            b"{\"tools\":[{\"model\":\"inner\"}]}".to_vec(),
            None,
        ),
        ("utf8", b"{\"model\":\"a\xff\xfe\"}".to_vec(), None),
        ("utf8-elsewhere", b"{\"x\":\"\xff\",\"y\":[1,2".to_vec(), None),
        ("half", b"{\"model\":\"a".to_vec(), None),
        ("text", b"hello".to_vec(), None),
        ("empty", Vec::new(), None),
        ("bom", b"\xef\xbb\xbf{\"model\":\"m\"}".to_vec(), None),
        (
            "good",
            b" {\"a\":{\"model\":\"inner\"},\"model\" : \"m\"}".to_vec(),
            Some("m"),
        ),
    ];
    let count = table.len();
    for (id, body, model) in table {
        for path in ["/v1/chat/completions", "/v1/messages"] {
            let request_id = format!("{id}{path}");
            let answer = fusebox
                .ask(&Ask::post(path, &body).header("x-request-id", &request_id))
                .await;
            assert_eq!(answer.status(), 200, "{id} {path}: {}", answer.text());
            assert!(
                upstream.seen().pop().unwrap().message.body == body,
                "{id} {path}: passed on as it is"
            );
            let observation = fusebox.observation(&request_id).await;
            let got = observation["model_requested"]
                .as_str()
                .filter(|m| *m != "unknown");
            if id != "bom" {
                assert_eq!(got, model, "{id} {path}: {observation}");
            }
        }
    }
    fusebox
        .ask(&Ask::post("/v1/chat/completions", &deep_beside).header("x-request-id", "beside"))
        .await;
    let observation = fusebox.observation("beside").await;
    assert!(observation["model_requested"].is_null() || observation["model_requested"] == "m");
    assert_eq!(upstream.count(), 2 * count + 1);
}

#[tokio::test]
async fn answers_that_cannot_be_read_are_passed_on() {
    let deep = format!("{{\"usage\":{}", "[".repeat(300_000));
    let events =
        format!("data: {deep}\n\ndata: \u{fffd}\n\nevent\ndata\n\n:\n\ndata: {{\"usage\":7}}\n\ndata:[DONE]");
    let table: Vec<(&str, &str, Vec<u8>)> = vec![
        ("deep", "application/json", deep.clone().into_bytes()),
        ("html", "application/json", b"<html>".to_vec()),
        ("utf8", "application/json", b"{\"model\":\"\xff\"}".to_vec()),
        ("events", "text/event-stream", events.into_bytes()),
        ("long-line", "text/event-stream", vec![b'a'; 6 << 20]),
        ("no-gzip", "application/json; gzip", b"not gzip at all".to_vec()),
        (
            "negative",
            "application/json",
            b"{\"usage\":{\"prompt_tokens\":-1,\"completion_tokens\":1e30,\"total_tokens\":\"9\"}}".to_vec(),
        ),
    ];
    let script = table.clone();
    let upstream = Upstream::start(move |seen| {
        let id = seen.header("x-request-id").unwrap_or_default();
        let (_, kind, body) = script.iter().find(|(n, _, _)| *n == id).unwrap();
        let reply = Reply::new(200, kind, body);
        if kind.contains("gzip") {
            reply.header("content-encoding", "gzip")
        } else {
            reply
        }
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    for (id, _, body) in table {
        let answer = fusebox
            .ask(&Ask::post("/v1/chat/completions", "{\"stream\":true}").header("x-request-id", id))
            .await;
        assert!(
            answer.body == body,
            "{id}: {} bytes of {}",
            answer.body.len(),
            body.len()
        );
        let observation = fusebox.observation(id).await;
        assert_eq!(observation["outcome"], "complete", "{id}");
        assert!(observation["input_tokens"].is_null(), "{id}: {observation}");
    }
}

#[tokio::test]
async fn a_decompression_bomb_is_not_unpacked() {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..512 {
        encoder.write_all(&zeros).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let size = bomb.len();
    let upstream = Upstream::start(move |_| Reply::json(&bomb).header("content-encoding", "gzip")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let answer = fusebox
        .ask(&Ask::post("/v1/chat/completions", "{}").header("x-request-id", "bomb"))
        .await;
    assert_eq!(answer.body.len(), size);
    assert_eq!(fusebox.observation("bomb").await["outcome"], "complete");
    let status = fusebox.memory_peak_kib();
    assert!(
        status.is_none_or(|kib| kib < 200 << 10),
        "peak memory {status:?} KiB for half a gigabyte of blanks"
    );
}

#[tokio::test]
async fn http2_frames_that_make_no_sense_end_the_connection_alone() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    client.write(&[0xff; 100]).await.unwrap();
    client.gone().await;
    let stream = tokio::net::TcpStream::connect(fusebox.address()).await.unwrap();
    assert_eq!(
        H2Client::over(stream, "http")
            .await
            .ask("GET", "/v1/x", &[], "")
            .await
            .status(),
        200
    );
}
