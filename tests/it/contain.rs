//! The kill switch and streams that are ended early: over real sockets, with directives published to the workers.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use ::fusebox::clock::Clock;
use ::fusebox::enforce::failover::StreamLimits;
use ::fusebox::types::directive::{Order, Subject};
use ::fusebox::types::observation::{ActionTaken, Observation, Outcome};
use ::fusebox::types::usage::Cost;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::client::Ask;
use crate::support::http1::Message;
use crate::support::inside::Inside;
use crate::support::upstream::{Piece, Reply, Upstream};
use crate::support::{eventually, timed};

const CHAT: &str = "/v1/chat/completions";

/// How long an upstream may take to feel that its answer is not wanted any more.
const FELT: Duration = Duration::from_millis(250);

fn contain() -> Order {
    Order::Contain {
        reason: "it sends mail to everybody".to_owned(),
    }
}

fn cap(max_tokens: u32) -> Order {
    Order::CapOutput {
        max_tokens,
        cut_streams: true,
    }
}

fn agent(name: &str) -> Subject {
    Subject::Agent(name.into())
}

fn ask(path: &str, body: &Value, who: &str, id: &str) -> Ask {
    Ask::post(path, body.to_string())
        .header("x-agent-id", who)
        .header("x-execution-id", "run")
        .header("x-request-id", id)
}

fn chat(who: &str, id: &str) -> Ask {
    ask(
        CHAT,
        &json!({"model": "gpt-4o", "messages": [], "stream": true}),
        who,
        id,
    )
}

fn bytes(text: impl AsRef<[u8]>) -> Piece {
    Piece::Bytes(text.as_ref().to_vec())
}

/// An event of a chat stream with so much text.
fn said(text: &str) -> String {
    let chunk = json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    format!("data: {chunk}\n\n")
}

/// An upstream that streams `pieces` as `content_type` and then says nothing.
async fn streaming(content_type: &'static str, pieces: Vec<Vec<u8>>) -> Upstream {
    Upstream::start(move |_| {
        let mut steps: Vec<Piece> = pieces.iter().map(bytes).collect();
        steps.push(Piece::Hang);
        Reply::new(200, content_type, "").chunked().pieces(steps)
    })
    .await
}

async fn talking() -> Upstream {
    streaming("text/event-stream", vec![said("Hello").into_bytes()]).await
}

fn contained(o: &Observation) -> bool {
    o.actions
        .iter()
        .any(|a| matches!(a, ActionTaken::Contained { rule } if rule == "rule-0"))
}

fn cut_why(o: &Observation) -> Option<&str> {
    o.actions.iter().find_map(|a| match a {
        ActionTaken::StreamCut { why } => Some(why.as_str()),
        _ => None,
    })
}

/// Waits until the upstream felt `count` clients leave.
async fn left(upstream: &Upstream, count: usize) {
    eventually("the upstream feels it", async || {
        (upstream.left() == count).then_some(())
    })
    .await;
}

/// The data of an event stream.
fn data(text: &str) -> Vec<Value> {
    let lines = text.lines().filter_map(|l| l.strip_prefix("data: "));
    lines
        .map(|l| serde_json::from_str(l).unwrap_or_else(|_| json!(l)))
        .collect()
}

#[tokio::test]
async fn new_requests_are_refused_before_the_upstream_sees_them() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let inside = Inside::start(&upstream, "", |_| {});
    let version = |v: &str| ask(CHAT, &json!({"model": "m"}), "a", "v").header("x-agent-version", v);
    let execution = |e: &str| {
        Ask::post(CHAT, "{}")
            .header("x-agent-id", "a")
            .header("x-execution-id", e)
    };
    for (subject, hit, missed) in [
        (agent("a"), chat("a", "1"), Some(chat("b", "2"))),
        (
            Subject::Execution {
                agent: "a".into(),
                execution: "e1".into(),
            },
            execution("e1"),
            Some(execution("e2")),
        ),
        (
            Subject::Version {
                agent: "a".into(),
                version: "v1".into(),
            },
            version("v1"),
            Some(version("v2")),
        ),
        (Subject::Fleet, chat("c", "3"), None),
    ] {
        let before = upstream.count();
        inside.publish([(subject.clone(), contain())]);
        let answer = inside.ask(&hit).await;
        assert_eq!(answer.status(), 403, "{subject}");
        assert_eq!(answer.header("x-should-retry").as_deref(), Some("false"));
        assert_eq!(answer.header("x-fusebox-incident").as_deref(), Some("inc-0"));
        assert_eq!(answer.header("x-fusebox-action").as_deref(), Some("contain"));
        assert!(answer.header("retry-after").is_none());
        let error = answer.json()["error"].clone();
        assert_eq!(error["code"], "fusebox_contained");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains("inc-0") && message.contains("mail to everybody"),
            "{message}"
        );
        assert_eq!(upstream.count(), before, "{subject}");
        if let Some(missed) = missed {
            assert_eq!(inside.ask(&missed).await.status(), 200, "{subject}");
        }
        inside.publish([]);
        assert_eq!(inside.ask(&hit).await.status(), 200, "{subject}");
    }
    let refused = inside.observation("1").await;
    assert_eq!((refused.outcome, refused.status), (Outcome::Refused, 403));
    assert!(contained(&refused) && refused.error_code.as_deref() == Some("fusebox_contained"));
    inside.quiet().await;
}

#[tokio::test]
async fn who_waits_is_refused_at_once() {
    let throttle = |n| Order::Throttle {
        requests_per_minute: Some(n),
        tokens_per_minute: None,
    };
    let gate = Arc::new(Semaphore::new(0));
    let upstream = Upstream::start({
        let gate = Arc::clone(&gate);
        move |_| Reply::json("{}").after(Piece::Gate(Arc::clone(&gate)))
    })
    .await;
    let inside = Inside::start(&upstream, "limits: {max_admission_wait: 50s}\n", |_| {});
    let concurrency = Order::CapConcurrency { max_in_flight: 1 };
    inside.publish([(agent("a"), throttle(6)), (agent("b"), concurrency)]);
    gate.add_permits(1);
    assert_eq!(inside.ask(&chat("a", "first")).await.status(), 200);
    // One waits for its rate, one for a place, and one for an answer.
    let mut waiting = Vec::new();
    for (who, id) in [("a", "rate"), ("b", "answer"), ("b", "place")] {
        let mut client = inside.client().await;
        client.send(&chat(who, id)).await;
        if id == "answer" {
            eventually("it is at the upstream", async || {
                (upstream.count() == 2).then_some(())
            })
            .await;
        }
        waiting.push((id, client));
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(upstream.count(), 2, "two are held back");
    inside.publish([(Subject::Fleet, contain())]);
    let all = async {
        for (id, client) in &mut waiting {
            let answer = client.answer().await;
            assert_eq!(answer.status(), 403, "{id}");
            assert_eq!(answer.json()["error"]["code"], "fusebox_contained", "{id}");
        }
        left(&upstream, 1).await;
    };
    let ((), took) = timed(all).await;
    assert!(took < FELT, "{took:?}");
    for id in ["rate", "answer", "place"] {
        let o = inside.observation(id).await;
        assert!(o.outcome == Outcome::Refused && contained(&o), "{o:?}");
    }
    assert_eq!(upstream.count(), 2, "nothing more was sent");
    inside.quiet().await;
}

/// A stream of an API: path, what is asked, content type, first pieces.
type Streamed = (&'static str, Value, &'static str, Vec<Vec<u8>>);

fn aws(name: &str, payload: &str) -> Vec<u8> {
    let mut head = Vec::new();
    for (key, value) in [(":event-type", name), (":message-type", "event")] {
        head.push(u8::try_from(key.len()).unwrap());
        head.extend_from_slice(key.as_bytes());
        head.push(7);
        head.extend_from_slice(&u16::try_from(value.len()).unwrap().to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let mut out = u32::try_from(16 + head.len() + payload.len())
        .unwrap()
        .to_be_bytes()
        .to_vec();
    out.extend_from_slice(&u32::try_from(head.len()).unwrap().to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&head);
    out.extend_from_slice(payload.as_bytes());
    out.extend_from_slice(&[0; 4]);
    out
}

/// One stream of each API, each with eight characters of text: two tokens.
fn every_api() -> Vec<Streamed> {
    let sse = "text/event-stream";
    let stream = json!({"model": "m", "stream": true, "messages": []});
    let named = |name: &str, data: Value| format!("event: {name}\ndata: {data}\n\n").into_bytes();
    let part = json!({"candidates": [{"content": {"parts": [{"text": "abcdefgh"}], "role": "model"}}], "modelVersion": "g"});
    let response = json!({"id": "resp", "object": "response", "created_at": 1, "status": "in_progress", "model": "m", "output": []});
    vec![
        (CHAT, stream.clone(), sse, vec![said("abcdefgh").into_bytes()]),
        ("/v1/completions", json!({"model": "m", "stream": true, "prompt": "x"}), sse, vec![
            format!("data: {}\n\n", json!({"id": "c", "choices": [{"text": "abcdefgh", "index": 0, "finish_reason": null}]})).into_bytes(),
        ]),
        ("/v1/responses", json!({"model": "m", "stream": true, "input": "x"}), sse, vec![
            named("response.created", json!({"type": "response.created", "sequence_number": 0, "response": response})),
            named("response.output_item.added", json!({"type": "response.output_item.added", "sequence_number": 1, "output_index": 0,
                "item": {"id": "i", "type": "message", "role": "assistant", "status": "in_progress", "content": []}})),
            named("response.content_part.added", json!({"type": "response.content_part.added", "sequence_number": 2, "output_index": 0,
                "content_index": 0, "item_id": "i", "part": {"type": "output_text", "text": "", "annotations": []}})),
            named("response.output_text.delta", json!({"type": "response.output_text.delta", "sequence_number": 3, "output_index": 0,
                "content_index": 0, "item_id": "i", "delta": "abcdefgh"})),
        ]),
        ("/v1/messages", json!({"model": "m", "stream": true, "max_tokens": 99, "messages": []}), sse, vec![
            named("message_start", json!({"type": "message_start", "message": {"id": "x", "type": "message", "role": "assistant", "model": "m",
                "content": [], "usage": {"input_tokens": 3, "output_tokens": 1}}})),
            named("content_block_start", json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})),
            named("content_block_delta", json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "abcdefgh"}})),
        ]),
        ("/v1beta/models/g:streamGenerateContent?alt=sse", json!({"contents": []}), sse, vec![format!("data: {part}\r\n\r\n").into_bytes()]),
        ("/v1beta/models/g:streamGenerateContent", json!({"contents": []}), "application/json", vec![format!("[{part}\n").into_bytes()]),
        ("/api/chat", json!({"model": "m", "messages": []}), "application/x-ndjson", vec![
            format!("{}\n", json!({"model": "m", "created_at": "2026-01-01T00:00:00Z", "message": {"role": "assistant", "content": "abcdefgh"}, "done": false})).into_bytes(),
        ]),
        ("/v2/chat", stream, sse, vec![
            named("message-start", json!({"type": "message-start", "id": "x"})),
            named("content-start", json!({"type": "content-start", "index": 0, "delta": {"message": {"content": {"type": "text", "text": ""}}}})),
            named("content-delta", json!({"type": "content-delta", "index": 0, "delta": {"message": {"content": {"text": "abcdefgh"}}}})),
        ]),
        ("/model/x/converse-stream", json!({"messages": []}), "application/vnd.amazon.eventstream", vec![
            aws("messageStart", "{\"role\":\"assistant\"}"),
            aws("contentBlockDelta", "{\"contentBlockIndex\":0,\"delta\":{\"text\":\"abcdefgh\"}}"),
        ]),
    ]
}

#[tokio::test]
async fn a_stream_of_each_api_ends_with_its_own_error() {
    for (n, (path, body, content_type, pieces)) in every_api().into_iter().enumerate() {
        let sent = pieces.concat();
        let upstream = streaming(content_type, pieces).await;
        let inside = Inside::start(&upstream, "", |_| {});
        let mut client = inside.client().await;
        client.send(&ask(path, &body, "a", &format!("s{n}"))).await;
        let mut head = client.head().await;
        let mut got = Vec::new();
        while got.len() < sent.len() {
            got.extend(client.chunk(&mut head).await.unwrap().expect("more of it"));
        }
        assert_eq!(got, sent, "{path}");
        inside.publish([(agent("a"), contain())]);
        let rest = async {
            let mut rest = Vec::new();
            while let Some(more) = client
                .chunk(&mut head)
                .await
                .unwrap_or_else(|e| panic!("{path}: {e}"))
            {
                rest.extend(more);
            }
            rest
        };
        let (rest, took) = timed(rest).await;
        assert!(took < FELT, "{path}: {took:?}");
        let rest = String::from_utf8_lossy(&rest).into_owned();
        assert!(rest.contains("inc-0"), "{path}: {rest}");
        for end in [
            "[DONE]",
            "message_stop",
            "response.completed",
            "response.incomplete",
            "messageStop",
        ] {
            assert!(!rest.contains(end), "{path}: {rest}");
        }
        left(&upstream, 1).await;
        let o = inside.observation(&format!("s{n}")).await;
        assert!(
            o.outcome == Outcome::Cut && contained(&o) && !o.is_error(),
            "{path}: {o:?}"
        );
        assert_eq!(o.error_code.as_deref(), Some("fusebox_contained"), "{path}");
        inside.quiet().await;
    }
}

/// Reads to the end of an answer: what came, and whether it ended well.
async fn to_the_end(
    client: &mut crate::support::client::Client<tokio::net::TcpStream>,
    head: &mut Message,
) -> (String, bool) {
    let mut all = Vec::new();
    let well = loop {
        match client.chunk(head).await {
            Ok(Some(more)) => all.extend(more),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    (String::from_utf8_lossy(&all).into_owned(), well)
}

#[tokio::test]
async fn an_event_that_is_under_way_is_ended_first() {
    let (begin, end) = (
        "data: {\"choices\":[{\"delta\":{\"con",
        "tent\":\"x\"}}]}\n\ndata: {\"never\":1}\n\n",
    );
    for (what, comes) in [("its end comes", true), ("its end does not come", false)] {
        let gate = Arc::new(Semaphore::new(0));
        let script = Arc::clone(&gate);
        let upstream = Upstream::start(move |_| {
            let steps = vec![
                bytes(said("a")),
                bytes(begin),
                Piece::Gate(Arc::clone(&script)),
                bytes(end),
                Piece::Hang,
            ];
            Reply::new(200, "text/event-stream", "").chunked().pieces(steps)
        })
        .await;
        let inside = Inside::start(&upstream, "", |_| {});
        let mut client = inside.client().await;
        let asks = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}});
        client.send(&ask(CHAT, &asks, "a", "mid")).await;
        let mut head = client.head().await;
        let mut got = String::new();
        while !got.ends_with(begin) {
            got += &String::from_utf8(client.chunk(&mut head).await.unwrap().unwrap()).unwrap();
        }
        inside.publish([(agent("a"), contain())]);
        tokio::time::sleep(Duration::from_millis(20)).await;
        if comes {
            gate.add_permits(1);
        }
        let (rest, well) = to_the_end(&mut client, &mut head).await;
        assert_eq!(well, comes, "{what}: {rest}");
        if comes {
            let events = data(&(got + &rest));
            assert_eq!(events[1]["choices"][0]["delta"]["content"], "x", "{rest}");
            assert_eq!(events[2]["error"]["code"], "fusebox_contained");
            assert_eq!(events.len(), 3);
        } else {
            assert_eq!(rest, "", "{what}");
        }
        left(&upstream, 1).await;
        assert_eq!(inside.observation("mid").await.outcome, Outcome::Cut);
        inside.quiet().await;
    }
}

#[tokio::test]
async fn what_cannot_be_told_is_broken_off() {
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(said("Hello").as_bytes()).unwrap();
    zip.flush().unwrap();
    let zipped = zip.get_ref().clone();
    let whole = || Reply::json("{\"a\":1,").then(Piece::Hang).chunked();
    let gzip = move || {
        Reply::new(200, "text/event-stream", "")
            .chunked()
            .header("content-encoding", "gzip")
            .pieces(vec![bytes(&zipped), Piece::Hang])
    };
    let unknown = || {
        Reply::new(200, "text/event-stream", "")
            .chunked()
            .pieces(vec![bytes("data: x\n\n"), Piece::Hang])
    };
    type Make = Box<dyn Fn() -> Reply + Send + Sync>;
    let table: [(&str, &'static str, Make); 3] = [
        ("whole", CHAT, Box::new(whole)),
        ("gzip", CHAT, Box::new(gzip)),
        ("unknown", "/v9/other", Box::new(unknown)),
    ];
    for (what, path, reply) in table {
        let upstream = Upstream::start(move |_| reply()).await;
        let inside = Inside::start(&upstream, "", |_| {});
        let mut client = inside.client().await;
        client.send(&ask(path, &json!({"model": "m"}), "a", what)).await;
        let mut head = client.head().await;
        client.chunk(&mut head).await.unwrap();
        inside.publish([(agent("a"), contain())]);
        let ((rest, well), took) = timed(to_the_end(&mut client, &mut head)).await;
        assert!(
            rest.is_empty() && !well && took < FELT,
            "{what}: {rest:?}, {well}, {took:?}"
        );
        left(&upstream, 1).await;
        let o = inside.observation(what).await;
        assert!(o.outcome == Outcome::Cut && contained(&o), "{what}: {o:?}");
        inside.quiet().await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_keep_its_upstream() {
    let piece = said(&"x".repeat(60_000));
    let upstream = streaming("text/event-stream", vec![piece.into_bytes(); 200]).await;
    let inside = Inside::start(&upstream, "", |_| {});
    let mut client = inside.client().await;
    client.send(&chat("a", "stalled")).await;
    client.head().await;
    // Every buffer on the way fills up.
    let mut before = 0;
    eventually("nothing moves any more", async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = inside.slots.get("a").map_or(0, |s| s.view().in_flight);
        before += now;
        (before >= 5).then_some(())
    })
    .await;
    inside.publish([(agent("a"), contain())]);
    let ((), took) = timed(left(&upstream, 1)).await;
    assert!(took < FELT, "{took:?}");
    let o = inside.observation("stalled").await;
    assert!(o.outcome == Outcome::Cut && contained(&o), "{o:?}");
    inside.quiet().await;
}

#[tokio::test]
async fn switched_connections_are_closed_too() {
    let upstream = Upstream::start(|_| {
        Reply::new(101, "text/plain", "")
            .framed(crate::support::upstream::Framing::Nothing)
            .header("upgrade", "websocket")
            .header("connection", "upgrade")
            .pieces(vec![bytes("hello"), Piece::Hang])
    })
    .await;
    let inside = Inside::start(&upstream, "", |_| {});
    let mut client = inside.client().await;
    let switch = Ask::get("/v1/realtime?model=m")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("x-agent-id", "a")
        .header("x-request-id", "ws");
    client.send(&switch).await;
    assert_eq!(client.head().await.status(), 101);
    inside.publish([(agent("b"), contain())]);
    assert_eq!(inside.ended().len(), 0, "another agent's");
    inside.publish([(agent("a"), contain())]);
    let ((), took) = timed(client.gone()).await;
    assert!(took < FELT, "{took:?}");
    left(&upstream, 1).await;
    let o = inside.observation("ws").await;
    assert!(o.outcome == Outcome::Cut && contained(&o), "{o:?}");
    assert_eq!(inside.ask(&switch).await.status(), 403);
    inside.quiet().await;
}

#[tokio::test]
async fn a_thousand_streams_end_within_a_second() {
    const MANY: usize = 1000;
    let upstream = talking().await;
    let inside = Arc::new(Inside::start(&upstream, "", |_| {}));
    let clock = Clock::system();
    let mut reading = Vec::with_capacity(MANY);
    for i in 0..MANY {
        let mut client = inside.client().await;
        client.send(&chat("many", &format!("m{i}"))).await;
        let mut head = client.head().await;
        client.chunk(&mut head).await.unwrap().unwrap();
        let clock = clock.clone();
        reading.push(tokio::spawn(async move {
            let (rest, well) = to_the_end(&mut client, &mut head).await;
            assert!(well && rest.contains("fusebox_contained"), "{rest}");
            clock.mono()
        }));
    }
    let bystander = {
        let mut client = inside.client().await;
        client.send(&chat("other", "bystander")).await;
        let mut head = client.head().await;
        client.chunk(&mut head).await.unwrap().unwrap();
        (client, head)
    };
    assert_eq!(upstream.count(), MANY + 1);
    let published = clock.mono();
    inside.publish([(agent("many"), contain())]);
    let mut took: Vec<Duration> = Vec::with_capacity(MANY);
    for one in reading {
        took.push(one.await.unwrap().since(published));
    }
    left(&upstream, MANY).await;
    let cancelled = clock.mono().since(published);
    took.sort();
    println!(
        "1,000 streams contained: p50 {:?}, p99 {:?}, last {:?}; the upstream felt the last after {cancelled:?}",
        took[MANY / 2],
        took[MANY * 99 / 100],
        took[MANY - 1]
    );
    assert!(took[MANY - 1] < Duration::from_secs(1), "{:?}", took[MANY - 1]);
    eventually("all are accounted for", async || {
        (inside.ended().len() == MANY).then_some(())
    })
    .await;
    assert!(
        inside
            .ended()
            .iter()
            .all(|o| o.outcome == Outcome::Cut && contained(o))
    );
    assert_eq!(inside.slots.get("many").unwrap().view().in_flight, 0);
    assert_eq!(inside.slots.get("other").unwrap().view().in_flight, 1);
    drop(bystander);
    inside.quiet().await;
}

#[tokio::test]
async fn a_stop_is_a_stop() {
    let upstream = Upstream::start(|_| Reply::json("{}")).await;
    let inside = Inside::start(&upstream, "", |_| {});
    let clock = Clock::system();
    let mut took = Vec::new();
    let mut client = inside.client().await;
    let call = ask(CHAT, &json!({"model": "m"}), "a", "x");
    for _ in 0..200 {
        inside.publish([]);
        assert_eq!(client.ask(&call).await.status(), 200);
        let seen = upstream.count();
        let published = clock.mono();
        inside.publish([(agent("a"), contain())]);
        assert_eq!(client.ask(&call).await.status(), 403);
        took.push(clock.mono().since(published));
        assert_eq!(upstream.count(), seen, "the very next request is not sent");
    }
    took.sort();
    println!(
        "directive to refusal: p50 {:?}, p99 {:?}, most {:?}",
        took[100], took[198], took[199]
    );
    assert!(took[198] < Duration::from_millis(50), "{:?}", took[198]);
}

#[tokio::test]
async fn streams_over_their_cap_end_as_if_the_model_had_stopped() {
    for (n, (path, body, content_type, pieces)) in every_api().into_iter().enumerate() {
        let upstream = streaming(content_type, pieces).await;
        let inside = Inside::start(&upstream, "", |_| {});
        inside.publish([(agent("a"), cap(1))]);
        let id = format!("c{n}");
        let (answer, took) = timed(inside.ask(&ask(path, &body, "a", &id))).await;
        assert!(answer.complete && answer.status() == 200, "{path}");
        assert!(took < Duration::from_secs(2), "{path}: {took:?}");
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let words = [
            "\"finish_reason\":\"length\"",
            "\"stop_reason\":\"max_tokens\"",
            "MAX_TOKENS",
            "\"done_reason\":\"length\"",
            "\"max_output_tokens\"",
            "\"stopReason\":\"max_tokens\"",
        ];
        assert!(words.iter().any(|w| text.contains(w)), "{path}: {text}");
        assert!(text.contains("abcdefgh"), "{path}: nothing that was said is lost");
        assert_eq!(
            text.contains("[DONE]"),
            matches!(path, CHAT | "/v1/completions"),
            "{path}"
        );
        left(&upstream, 1).await;
        let o = inside.observation(&id).await;
        assert_eq!(o.outcome, Outcome::Cut, "{path}");
        assert_eq!(
            cut_why(&o),
            Some("more than 1 output tokens (incident inc-0, rule rule-0)"),
            "{path}"
        );
        assert!(
            o.finish_reason.is_some() && o.normalised.output_total == Some(2) || path == "/v1/messages",
            "{path}: {o:?}"
        );
        inside.quiet().await;
    }
}

#[tokio::test]
async fn a_cap_reaches_streams_that_run_already_and_can_be_lifted() {
    let gate = Arc::new(Semaphore::new(0));
    let script = Arc::clone(&gate);
    let upstream = Upstream::start(move |_| {
        let mut steps = Vec::new();
        for _ in 0..20 {
            steps.push(bytes(said("eight ch")));
            steps.push(Piece::Gate(Arc::clone(&script)));
        }
        Reply::new(200, "text/event-stream", "").chunked().pieces(steps)
    })
    .await;
    let inside = Inside::start(&upstream, "", |_| {});
    let mut client = inside.client().await;
    client.send(&chat("a", "running")).await;
    let mut head = client.head().await;
    client.chunk(&mut head).await.unwrap();
    // Lifted before it was reached.
    inside.publish([(agent("a"), cap(3))]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    inside.publish([]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.add_permits(3);
    let mut events = 0;
    while events < 3 {
        let piece = client.chunk(&mut head).await.unwrap().unwrap();
        events += data(&String::from_utf8(piece).unwrap()).len();
    }
    inside.publish([(agent("a"), cap(9))]);
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.add_permits(5);
    let (rest, well) = to_the_end(&mut client, &mut head).await;
    assert!(well && rest.ends_with("data: [DONE]\n\n"), "{rest}");
    let events = data(&rest);
    assert_eq!(events.len(), 3, "{rest}");
    assert_eq!(events[1]["choices"][0]["finish_reason"], "length");
    assert_eq!(events[1]["id"], "c");
    let o = inside.observation("running").await;
    assert_eq!(
        (o.outcome, o.finish_reason.as_deref()),
        (Outcome::Cut, Some("length"))
    );
    left(&upstream, 1).await;
}

#[tokio::test]
async fn policy_cuts_circles_length_and_cost_and_only_what_it_can_end() {
    let circle = "I cannot stop saying this. ";
    let pieces: Vec<Vec<u8>> = (0..400).map(|_| said(circle).into_bytes()).collect();
    let upstream = streaming("text/event-stream", pieces).await;
    let off = StreamLimits::default();
    for (what, limits, why) in [
        (
            "circles",
            StreamLimits {
                cut_repetition: true,
                ..off
            },
            "its output goes round in circles (streams.cut_repetition)",
        ),
        (
            "length",
            StreamLimits {
                max_output_tokens: Some(100),
                ..off
            },
            "more than 100 output tokens (streams.max_output_tokens)",
        ),
        (
            "cost",
            StreamLimits {
                max_cost: Some(Cost::from_nanos(1_000_000)),
                ..off
            },
            "costs more than $0.001000 (streams.max_cost_usd)",
        ),
    ] {
        let inside = Inside::start(&upstream, "", |policy| policy.streams = limits);
        let asked = json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "stream": true, "stream_options": {"include_usage": true}});
        let answer = inside.ask(&ask(CHAT, &asked, "a", what)).await;
        let events = data(&answer.text());
        let [.., finish, usage, done] = events.as_slice() else {
            panic!("{what}")
        };
        assert_eq!(finish["choices"][0]["finish_reason"], "length", "{what}");
        assert_eq!(usage["choices"], json!([]), "{what}");
        let told = usage["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(done, "[DONE]");
        let o = inside.observation(what).await;
        assert_eq!(cut_why(&o), Some(why), "{what}");
        assert_eq!(o.normalised.output_total, Some(told), "{what}");
        assert!(told < 2000, "{what}: {told}");
        if what == "length" {
            assert!((101..=107).contains(&told), "{told}");
        }
        inside.quiet().await;
    }
    // A stream that nobody knows how to end goes on.
    let endless = format!(
        "event: step.delta\ndata: {}\n\n",
        json!({"event_type": "step.delta", "delta": {"type": "text", "text": "x".repeat(4000)}})
    );
    let upstream =
        Upstream::start(move |_| Reply::events([endless.clone(), "data: [DONE]\n\n".to_owned()])).await;
    let inside = Inside::start(&upstream, "", |policy| policy.streams.max_output_tokens = Some(1));
    let answer = inside
        .ask(&ask(
            "/v1beta/interactions",
            &json!({"model": "g", "stream": true}),
            "a",
            "unknown",
        ))
        .await;
    assert!(answer.complete && answer.text().ends_with("data: [DONE]\n\n"));
    assert_eq!(inside.observation("unknown").await.outcome, Outcome::Complete);
    // Nor is one that ends by itself in the piece that is too much, and nothing of that piece is lost.
    let last = format!(
        "data: {}\n\n",
        json!({"id": "c", "choices": [{"index": 0, "delta": {"content": "x".repeat(99)}, "finish_reason": "stop"}]})
    );
    let all = last
        + "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":9}}\n\ndata: [DONE]\n\n";
    let sent = all.clone();
    let upstream = Upstream::start(move |_| Reply::events([sent.clone()])).await;
    let inside = Inside::start(&upstream, "", |policy| policy.streams.max_output_tokens = Some(1));
    let asked = json!({"model": "m", "stream": true, "stream_options": {"include_usage": true}});
    let answer = inside.ask(&ask(CHAT, &asked, "a", "done")).await;
    assert_eq!(answer.text(), all);
    assert_eq!(inside.observation("done").await.outcome, Outcome::Complete);
    // A compressed one passes as it is.
    let mut zip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    zip.write_all(all.replace("\"stop\"", "null").as_bytes()).unwrap();
    let zipped = zip.finish().unwrap();
    let sent = zipped.clone();
    let upstream =
        Upstream::start(move |_| Reply::events([sent.clone()]).header("content-encoding", "gzip")).await;
    let inside = Inside::start(&upstream, "", |policy| policy.streams.max_output_tokens = Some(1));
    let answer = inside.ask(&ask(CHAT, &asked, "a", "zip")).await;
    assert!(answer.complete && answer.body == zipped);
}
