//! With no directive in force, what goes in comes out: unknown paths, headers, trailers, compression, byte order.

use std::io::Write;

use crate::support::chance::Cut;
use crate::support::client::Ask;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::upstream::{Framing, Piece, Reply, Upstream};

/// A chat body with odd spacing, odd key order, duplicate and unknown keys, odd numbers and escapes.
const ODD_BODY: &str = "{ \"stream\":false,\t\"zeta\" : 1.0e0,\n \"messages\":[{\"content\":\"\\u00e9\\/ \u{1f600}\",\"role\":\"user\"}],\
    \"x\":12345678901234567890123, \"x\":2,\"model\":\"gpt-4o\" }\n";

async fn pair(reply: impl Fn() -> Reply + Send + Sync + 'static) -> (Upstream, Fusebox) {
    let upstream = Upstream::start(move |_| reply()).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    (upstream, fusebox)
}

#[tokio::test]
async fn unknown_paths_and_queries_pass() {
    let (upstream, fusebox) = pair(|| Reply::new(418, "text/x-odd", "short and stout")).await;
    let targets = [
        "/",
        "/some/where/else",
        "//v1//models",
        "/v1/files/a%2Fb%20c?x=%00&y=1&y=2&&z",
        "/v1/chat/completions?api-version=2024-10-21&a=b%3D",
        "/v1/%E2%9C%93/;p=1/@me:!$'()*+,",
        "/?",
        "/v1/x?a=/../b",
        "/v1/../v1/x",
    ];
    let mut client = fusebox.client().await;
    for target in targets {
        let answer = client.ask(&Ask::get(target)).await;
        assert_eq!(
            (answer.status(), answer.text().as_str()),
            (418, "short and stout"),
            "{target}"
        );
        assert_eq!(answer.header("content-type").as_deref(), Some("text/x-odd"));
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.message.target(), target);
    }
    for observation in fusebox.observed(targets.len()).await {
        if observation["api"] == "other" {
            assert_eq!(observation["usage_source"], "none");
        }
        assert_eq!(observation["outcome"], "complete");
        assert_eq!(observation["status"], 418);
    }
}

#[tokio::test]
async fn every_method_passes() {
    let (upstream, fusebox) = pair(|| Reply::json("{}")).await;
    for method in [
        "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "PROPFIND", "BREW",
    ] {
        let answer = fusebox.ask(&Ask::new(method, "/v1/things/1")).await;
        assert_eq!(answer.status(), 200, "{method}");
        assert_eq!(upstream.seen().pop().unwrap().message.method(), method);
    }
}

#[tokio::test]
async fn bodies_pass_untouched() {
    let answer = "\n\n  {\"usage\":{\"total_tokens\":3,\"completion_tokens\":1,\"prompt_tokens\":2}, \"b\":1,\"a\":2,\"a\":3}";
    let (upstream, fusebox) = pair(move || Reply::json(answer)).await;
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/unknown", "/api/chat"] {
        let got = fusebox.ask(&Ask::post(path, ODD_BODY)).await;
        assert_eq!(got.text(), answer, "{path}");
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(seen.text(), ODD_BODY, "{path}");
        assert_eq!(
            seen.header("content-length").as_deref(),
            Some(ODD_BODY.len().to_string().as_str())
        );
    }
}

#[tokio::test]
async fn headers_pass_and_those_of_the_hop_do_not() {
    let upstream = Upstream::start(|_| {
        Reply::json("{}")
            .header("Set-Cookie", "a=1")
            .header("set-cookie", "b=2; Path=/")
            .header("x-empty", "")
            .header("x-latin", b"caf\xe9")
            .header("x-ratelimit-remaining-tokens", "42")
            .header("retry-after", "0")
            .header("connection", "keep-alive, x-hop")
            .header("keep-alive", "timeout=5")
            .header("x-hop", "1")
            .header("proxy-authenticate", "Basic")
            .header("date", "Thu, 01 Jan 1970 00:00:00 GMT")
            .header("server", "scripted")
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let ask = Ask::post("/v1/chat/completions", "{}")
        .header("Authorization", "Bearer sk-test")
        .header("x-api-key", "k")
        .header("X-Custom", "one")
        .header("x-custom", "two")
        .header("accept-encoding", "gzip;q=1.0, br")
        .header("x-latin", b"caf\xe9")
        .header("te", "trailers, deflate")
        .header("connection", "keep-alive, X-Mine")
        .header("x-mine", "secret of the hop")
        .header("keep-alive", "timeout=9")
        .header("proxy-connection", "keep-alive")
        .header("proxy-authorization", "Basic eA==")
        .header(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        );
    let answer = fusebox.ask(&ask).await;
    let seen = upstream.the_one().await;

    for (name, value) in [
        ("authorization", "Bearer sk-test"),
        ("x-api-key", "k"),
        ("accept-encoding", "gzip;q=1.0, br"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("content-type", "application/json"),
        ("te", "trailers"),
    ] {
        assert_eq!(seen.message.all(name), [value], "{name} at the upstream");
    }
    assert_eq!(seen.message.all("x-custom"), ["one", "two"]);
    assert_eq!(
        seen.header("host"),
        Some(upstream.address.to_string()),
        "the upstream's own host"
    );
    let raw = |m: &crate::support::http1::Message, n: &str| {
        m.headers.iter().find(|(k, _)| k == n).map(|(_, v)| v.clone())
    };
    assert_eq!(raw(&seen.message, "x-latin"), Some(b"caf\xe9".to_vec()));
    for name in [
        "x-mine",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "transfer-encoding",
        "upgrade",
    ] {
        assert_eq!(seen.header(name), None, "{name} belongs to the client's hop");
    }
    // Nothing is added that says who we are or whom we serve.
    for name in [
        "via",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-real-ip",
        "user-agent",
    ] {
        assert_eq!(seen.header(name), None, "{name} was added");
    }

    assert_eq!(answer.all("set-cookie"), ["a=1", "b=2; Path=/"]);
    assert_eq!(answer.header("x-empty").as_deref(), Some(""));
    assert_eq!(raw(&answer, "x-latin"), Some(b"caf\xe9".to_vec()));
    assert_eq!(
        answer.header("x-ratelimit-remaining-tokens").as_deref(),
        Some("42")
    );
    assert_eq!(answer.header("retry-after").as_deref(), Some("0"));
    assert_eq!(answer.all("date"), ["Thu, 01 Jan 1970 00:00:00 GMT"]);
    assert_eq!(answer.all("server"), ["scripted"]);
    for name in ["x-hop", "keep-alive"] {
        assert_eq!(answer.header(name), None, "{name} belongs to the upstream's hop");
    }
    assert!(
        !answer.headers.iter().any(|(n, _)| n.starts_with("x-fusebox")),
        "{:?}",
        answer.headers
    );
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let upstream = Upstream::start(|_| {
        let mut reply = Reply::new(200, "text/plain", "body")
            .chunked()
            .header("trailer", "x-sum");
        reply.trailers = vec![("x-sum".to_owned(), "abc".to_owned())];
        reply
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let mut client = fusebox.client().await;
    let request = "POST /v1/unknown HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntransfer-encoding: chunked\r\n\
        trailer: x-check\r\n\r\n3\r\nabc\r\n0\r\nx-check: 1\r\n\r\n";
    client.write(request.as_bytes()).await.unwrap();
    let answer = client.answer().await;
    assert_eq!(answer.text(), "body");
    assert_eq!(answer.trailers, [("x-sum".to_owned(), b"abc".to_vec())]);
    let seen = upstream.the_one().await;
    assert_eq!(seen.text(), "abc");
    assert_eq!(seen.message.trailers, [("x-check".to_owned(), b"1".to_vec())]);
}

#[tokio::test]
async fn compressed_bodies_pass_and_are_read_aside() {
    let plain = "{\"model\":\"gpt-4o-2024-08-06\",\"choices\":[{\"message\":{\"content\":\"four\"},\"finish_reason\":\"stop\"}],\
        \"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,\"total_tokens\":9}}";
    for (coding, bytes) in [
        ("gzip", gzip(plain)),
        ("x-gzip", gzip(plain)),
        ("deflate", zlib(plain)),
    ] {
        let sent = bytes.clone();
        let upstream = Upstream::start(move |_| {
            Reply::json(&sent)
                .header("content-encoding", coding)
                .header("vary", "accept-encoding")
                .chunked()
                .cut(Cut::Random(7))
        })
        .await;
        let fusebox = Fusebox::start(&Config::new(&upstream)).await;
        let request = gzip(ODD_BODY);
        let ask = Ask::post("/v1/chat/completions", &request)
            .header("content-encoding", "gzip")
            .header("accept-encoding", "gzip, deflate")
            .header("x-request-id", "compressed");
        let answer = fusebox.ask(&ask).await;
        assert_eq!(answer.body, bytes, "{coding}: the very bytes");
        assert_eq!(answer.header("content-encoding").as_deref(), Some(coding));
        let seen = upstream.the_one().await;
        assert_eq!(seen.message.body, request);
        assert_eq!(seen.header("content-encoding").as_deref(), Some("gzip"));
        let observation = fusebox.observation("compressed").await;
        assert_eq!(observation["total_tokens"], 9, "{coding}: {observation}");
        assert_eq!(observation["output_chars"], 4, "{coding}");
        assert_eq!(observation["finish_reason"], "stop", "{coding}");
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zlib(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn answers_without_a_body_stay_without() {
    let upstream = Upstream::start(|seen| match seen.message.target() {
        "/204" => Reply::new(204, "text/plain", "")
            .framed(Framing::Nothing)
            .pieces(Vec::new()),
        "/304" => Reply::new(304, "text/plain", "")
            .framed(Framing::Nothing)
            .pieces(Vec::new())
            .header("etag", "\"x\""),
        "/empty" => Reply::new(200, "text/plain", "").pieces(Vec::new()),
        _ => Reply::json("0123456789"),
    })
    .await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    // One connection: if a body were invented or a length misread, the next answer would be out of step.
    let mut client = fusebox.client().await;
    let answer = client.ask(&Ask::get("/204")).await;
    assert_eq!((answer.status(), answer.body.len()), (204, 0));
    let answer = client.ask(&Ask::get("/304")).await;
    assert_eq!(
        (answer.status(), answer.header("etag").as_deref()),
        (304, Some("\"x\""))
    );
    let answer = client.ask(&Ask::get("/empty")).await;
    assert_eq!(
        (answer.status(), answer.header("content-length").as_deref()),
        (200, Some("0"))
    );
    let answer = client.ask(&Ask::new("HEAD", "/v1/models/x")).await;
    assert_eq!(
        (answer.status(), answer.header("content-length").as_deref()),
        (200, Some("10"))
    );
    assert_eq!(client.ask(&Ask::get("/v1/x")).await.text(), "0123456789");
    // The first thing that Claude Code does.
    assert_eq!(client.ask(&Ask::new("HEAD", "/")).await.status(), 200);
    assert_eq!(client.ask(&Ask::get("/v1/x")).await.text(), "0123456789");
}

#[tokio::test]
async fn expectations_are_met_before_the_body_is_sent() {
    let (upstream, fusebox) = pair(|| Reply::json("{}")).await;
    for path in ["/v1/chat/completions", "/v1/unknown"] {
        let mut client = fusebox.client().await;
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n");
        client.write(head.as_bytes()).await.unwrap();
        let interim = client.try_answer().await.expect("an interim answer");
        assert_eq!(interim.status(), 100, "{path}");
        client.write(b"{}").await.unwrap();
        assert_eq!(client.answer().await.status(), 200, "{path}");
        assert_eq!(upstream.seen().pop().unwrap().text(), "{}");
    }
}

#[tokio::test]
async fn connections_are_kept_and_reused() {
    let (upstream, fusebox) = pair(|| Reply::json("{}")).await;
    let mut client = fusebox.client().await;
    for _ in 0..20 {
        assert_eq!(
            client
                .ask(&Ask::post("/v1/chat/completions", "{}"))
                .await
                .status(),
            200
        );
    }
    assert_eq!(upstream.count(), 20);
    assert_eq!(upstream.connections(), 1, "one after another over one connection");
}

#[tokio::test]
async fn a_connection_that_went_stale_costs_the_client_nothing() {
    // The upstream ends each connection after its answer, without saying so.
    let (upstream, fusebox) = pair(|| Reply::json("{}").then(Piece::Close)).await;
    let mut client = fusebox.client().await;
    for _ in 0..10 {
        assert_eq!(
            client
                .ask(&Ask::post("/v1/chat/completions", "{}"))
                .await
                .status(),
            200
        );
    }
    assert_eq!(upstream.count(), 10, "every request was sent exactly once");
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let answer: Vec<u8> = (0..=250_u8).cycle().take(12 << 20).collect();
    let sent = answer.clone();
    let upstream = Upstream::start(move |_| Reply::new(200, "application/octet-stream", &sent)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream)).await;
    let body: Vec<u8> = (0..=240_u8).cycle().take(9 << 20).collect();
    for path in ["/v1/files", "/v1/audio/transcriptions", "/v1/chat/completions"] {
        let got = fusebox.ask(&Ask::post(path, &body)).await;
        assert!(got.body == answer, "{path}: {} bytes came", got.body.len());
        assert!(upstream.seen().pop().unwrap().message.body == body, "{path}");
    }
}

#[tokio::test]
async fn a_large_upload_is_passed_on_while_it_comes() {
    let (upstream, fusebox) = pair(|| Reply::json("{}")).await;
    let mut client = fusebox.client().await;
    client
        .write(b"POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await
        .unwrap();
    // The upstream is reached before the body is complete.
    crate::support::eventually("a connection to the upstream", async || {
        (upstream.connections() == 1).then_some(())
    })
    .await;
    client.write(b"4\r\nlast\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(client.answer().await.status(), 200);
    assert_eq!(upstream.the_one().await.text(), "firstlast");
}

#[tokio::test]
async fn agents_in_the_path_are_taken_out_of_it() {
    let (upstream, fusebox) = pair(|| Reply::json("{}")).await;
    for (target, seen, agent, source) in [
        (
            "/agents/billing/v1/chat/completions?a=1",
            "/v1/chat/completions?a=1",
            "billing",
            "path",
        ),
        ("/a/b%20c/v1/messages", "/v1/messages", "b c", "path"),
    ] {
        fusebox
            .ask(&Ask::post(target, "{}").header("x-request-id", agent))
            .await;
        assert_eq!(upstream.seen().pop().unwrap().message.target(), seen);
        let observation = fusebox.observation(agent).await;
        assert_eq!(
            (
                observation["agent"].as_str(),
                observation["agent_source"].as_str()
            ),
            (Some(agent), Some(source))
        );
    }
    let ask = Ask::post("/v1/chat/completions", "{}")
        .header("x-request-id", "h")
        .header("x-agent-id", "mail");
    fusebox
        .ask(
            &ask.header("x-execution-id", "run-7")
                .header("x-agent-version", "v3"),
        )
        .await;
    let observation = fusebox.observation("h").await;
    for (name, want) in [
        ("agent", "mail"),
        ("agent_source", "header"),
        ("execution", "run-7"),
        ("execution_source", "header"),
        ("agent_version", "v3"),
    ] {
        assert_eq!(observation[name], want, "{name}");
    }
}
