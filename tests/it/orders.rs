//! What orders do to requests on their way, in each of the main APIs: one value changes, the rest stays, and it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use fusebox::types::directive::{Directive, Order, Subject};
use fusebox::types::ids::AgentId;
use fusebox::types::observation::{ActionTaken, Observation, Outcome};
use fusebox::types::time::{Mono, Wall};
use fusebox::types::usage::UsageSource;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::client::Ask;
use crate::support::path::Path;
use crate::support::upstream::{Piece, Reply, Seen, Upstream};
use crate::support::{eventually, timed};

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const GEMINI: &str = "/v1beta/models/gemini-2.5-pro:generateContent";
const EMBEDDINGS: &str = "/v1/embeddings";

async fn quiet() -> Upstream {
    Upstream::start(|_| Reply::json("{}")).await
}

fn set(pairs: &[(&str, Value)]) -> Order {
    let set: BTreeMap<String, Value> = pairs.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    Order::SetParameters { set }
}

const CAP: Order = Order::CapOutput {
    max_tokens: 100,
    cut_streams: false,
};

/// Sends `body` and gives what the upstream got of it, the answer's headers for it, and the observation.
async fn sent(
    path: &Path,
    upstream: &Upstream,
    target: &str,
    body: &str,
) -> (String, Option<String>, Observation) {
    let before = upstream.count();
    let answer = path.ask(target, body).await;
    let seen = upstream.seen().split_off(before);
    assert_eq!(seen.len(), 1, "one call for {target}");
    let said = answer.header("x-fusebox-action");
    assert_eq!(said.is_some(), answer.header("x-fusebox-incident").is_some());
    (seen[0].text(), said, path.observation(before + 1).await)
}

#[tokio::test]
async fn output_is_capped_in_each_api() {
    let upstream = quiet().await;
    let path = Path::start(&upstream, &[]);
    path.order([CAP]);
    for (target, body, want, from) in [
        (
            CHAT,
            r#"{ "model":"m", "max_tokens" : 4000 , "x":1.0}"#,
            r#"{ "model":"m", "max_tokens" : 100 , "x":1.0}"#,
            Some(4000),
        ),
        (
            CHAT,
            r#"{"model":"m"}"#,
            r#"{"model":"m","max_tokens":100}"#,
            None,
        ),
        (
            RESPONSES,
            r#"{"model":"m","input":"x"}"#,
            r#"{"model":"m","input":"x","max_output_tokens":100}"#,
            None,
        ),
        (
            MESSAGES,
            r#"{"model":"m","max_tokens":4096}"#,
            r#"{"model":"m","max_tokens":100}"#,
            Some(4096),
        ),
        (
            GEMINI,
            r#"{"contents":[],"generationConfig":{"maxOutputTokens":800}}"#,
            r#"{"contents":[],"generationConfig":{"maxOutputTokens":100}}"#,
            Some(800),
        ),
        (
            "/model/m/converse",
            "{}",
            r#"{"inferenceConfig":{"maxTokens":100}}"#,
            None,
        ),
    ] {
        let (got, said, observation) = sent(&path, &upstream, target, body).await;
        assert_eq!(got, want, "{target}");
        assert_eq!(said.as_deref(), Some("cap_output"), "{target}");
        assert_eq!(
            observation.actions,
            [ActionTaken::OutputCapped { from, to: 100 }],
            "{target}"
        );
    }
    // What asks for less, and what puts out nothing, is left alone and says nothing.
    for (target, body) in [(CHAT, r#"{"max_tokens":7}"#), (EMBEDDINGS, r#"{"input":"x"}"#)] {
        let (got, said, observation) = sent(&path, &upstream, target, body).await;
        assert_eq!((got.as_str(), said), (body, None));
        assert!(observation.actions.is_empty(), "{observation:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_changed_goes_on_and_says_why() {
    let upstream = quiet().await;
    let path = Path::start(&upstream, &[]);
    path.order([CAP, set(&[("seed", json!(1))])]);
    let skipped = |step: &str, why: &str| ActionTaken::StepSkipped {
        step: step.to_owned(),
        why: why.to_owned(),
    };
    let (got, said, observation) = sent(&path, &upstream, CHAT, "nonsense").await;
    assert_eq!((got.as_str(), said), ("nonsense", None));
    let why = "its body cannot be read";
    assert_eq!(
        observation.actions,
        [skipped("set_parameters", why), skipped("cap_output", why)]
    );

    let (got, said, observation) = sent(&path, &upstream, MESSAGES, r#"{"max_tokens":900}"#).await;
    assert_eq!(
        (got.as_str(), said.as_deref()),
        (r#"{"max_tokens":100}"#, Some("cap_output"))
    );
    assert_eq!(
        observation.actions[0],
        skipped("set_parameters", "anthropic.messages has no seed")
    );

    let ask = Ask::post("/model/m/converse", "{}")
        .header("x-agent-id", "a")
        .header("authorization", "AWS4-HMAC-SHA256 Credential=x");
    path.client().await.ask(&ask).await;
    assert_eq!(upstream.seen().pop().unwrap().text(), "{}");
    let why = "it is signed";
    assert_eq!(
        path.observation(3).await.actions,
        [skipped("set_parameters", why), skipped("cap_output", why)]
    );
}

#[tokio::test]
async fn parameters_are_set_in_each_api_and_the_agent_goes_before_the_fleet() {
    let upstream = quiet().await;
    let path = Path::start(&upstream, &[]);
    let directive = |subject, order| Directive {
        lease: "l".into(),
        incident: "inc".into(),
        rule: "r".into(),
        subject,
        order,
        since: Wall::default(),
        expires: Wall::default(),
        until: Mono::FAR,
    };
    path.direct([
        directive(
            Subject::Fleet,
            set(&[("temperature", json!(1)), ("top_p", json!(0.9))]),
        ),
        directive(
            Subject::Agent(AgentId::from("a")),
            set(&[("temperature", json!(0.2))]),
        ),
    ]);
    for (target, body, want) in [
        (
            CHAT,
            r#"{"temperature":1.7,"model":"m"}"#,
            r#"{"temperature":0.2,"model":"m","top_p":0.9}"#,
        ),
        (
            RESPONSES,
            r#"{"model":"m"}"#,
            r#"{"model":"m","temperature":0.2,"top_p":0.9}"#,
        ),
        (
            MESSAGES,
            r#"{"top_p" : 1}"#,
            r#"{"top_p" : 0.9,"temperature":0.2}"#,
        ),
        (
            GEMINI,
            r#"{"contents":[]}"#,
            r#"{"contents":[],"generationConfig":{"temperature":0.2,"topP":0.9}}"#,
        ),
    ] {
        let (got, said, observation) = sent(&path, &upstream, target, body).await;
        assert_eq!(
            serde_json::from_str::<Value>(&got).unwrap(),
            serde_json::from_str::<Value>(want).unwrap()
        );
        assert_eq!(got.len(), want.len(), "{got}");
        assert_eq!(said.as_deref(), Some("set_parameters"));
        let names = vec!["temperature".to_owned(), "top_p".to_owned()];
        assert_eq!(observation.actions, [ActionTaken::ParametersSet { names }]);
    }
}

#[tokio::test]
async fn all_that_was_changed_is_named_in_order() {
    let upstream = quiet().await;
    let path = Path::start(&upstream, &[]);
    path.order([
        Order::ReduceBatch {
            max_inputs: 9,
            max_choices: Some(1),
        },
        CAP,
        Order::DowngradeModel {
            to: Some("gpt-4o-mini".to_owned()),
        },
        set(&[("temperature", json!(0))]),
    ]);
    let answer = path
        .ask(CHAT, r#"{"model":"gpt-4o","n":3,"max_tokens":500}"#)
        .await;
    let want = r#"{"model":"gpt-4o-mini","n":1,"max_tokens":100,"temperature":0}"#;
    assert_eq!(upstream.the_one().await.text(), want);
    let header = |name| answer.header(name);
    assert_eq!(
        header("x-fusebox-action").as_deref(),
        Some("set_parameters, downgrade_model, cap_output, reduce_batch")
    );
    assert_eq!(
        header("x-fusebox-incident").as_deref(),
        Some("inc-3, inc-2, inc-1, inc-0")
    );
    assert_eq!(header("x-fusebox-model-requested").as_deref(), Some("gpt-4o"));
    assert_eq!(header("x-fusebox-model-used").as_deref(), Some("gpt-4o-mini"));
    let kinds: Vec<Value> = path
        .observation(1)
        .await
        .actions
        .iter()
        .map(|a| json!(a)["kind"].clone())
        .collect();
    assert_eq!(
        kinds,
        [
            "parameters_set",
            "model_downgraded",
            "output_capped",
            "choices_reduced"
        ]
    );
}

#[tokio::test]
async fn choices_are_reduced_in_each_api_that_has_them() {
    let upstream = quiet().await;
    let path = Path::start(&upstream, &[]);
    path.order([Order::ReduceBatch {
        max_inputs: 1,
        max_choices: Some(2),
    }]);
    for (target, body, want) in [
        (CHAT, r#"{"n": 8}"#, r#"{"n": 2}"#),
        (
            GEMINI,
            r#"{"generationConfig":{"candidateCount":3}}"#,
            r#"{"generationConfig":{"candidateCount":2}}"#,
        ),
        (CHAT, r#"{"n":2}"#, r#"{"n":2}"#),
        (MESSAGES, r#"{"max_tokens":1}"#, r#"{"max_tokens":1}"#),
        (RESPONSES, r#"{"input":["a","b"]}"#, r#"{"input":["a","b"]}"#),
    ] {
        let (got, said, _) = sent(&path, &upstream, target, body).await;
        assert_eq!(got, want);
        assert_eq!(said.is_some(), body != want);
    }
}

/// Answers embeddings as OpenAI does: each vector is its input, base64 or not.
fn embed(seen: &Seen) -> Value {
    let body: Value = serde_json::from_str(&seen.text()).unwrap();
    let inputs = body["input"].as_array().unwrap();
    let data: Vec<Value> = inputs
        .iter()
        .enumerate()
        .map(|(index, input)| json!({"object": "embedding", "index": index, "embedding": input}))
        .collect();
    json!({
        "object": "list", "data": data, "model": "text-embedding-3-small",
        "usage": {"prompt_tokens": 10 * inputs.len(), "total_tokens": 10 * inputs.len()},
    })
}

fn batch(max_inputs: u32) -> Order {
    Order::ReduceBatch {
        max_inputs,
        max_choices: None,
    }
}

fn inputs(n: usize) -> String {
    let texts: Vec<String> = (0..n).map(|i| format!("text {i}")).collect();
    json!({"model": "text-embedding-3-small", "input": texts, "encoding_format": "base64"}).to_string()
}

#[tokio::test]
async fn a_batch_in_parts_is_answered_as_one() {
    let count = Arc::new(AtomicUsize::new(0));
    let calls = Arc::clone(&count);
    let upstream = Upstream::start(move |seen| {
        let n = calls.fetch_add(1, Ordering::SeqCst) + 1;
        Reply::json(embed(seen).to_string())
            .header("x-request-id", format!("call-{n}"))
            .header("x-ratelimit-remaining-requests", format!("{}", 100 - n))
    })
    .await;
    let path = Path::start(&upstream, &[]);
    let whole = path.ask(EMBEDDINGS, &inputs(7)).await;
    path.order([
        batch(3),
        Order::Throttle {
            requests_per_minute: None,
            tokens_per_minute: Some(10_000),
        },
    ]);
    let ask = Ask::post(EMBEDDINGS, inputs(7))
        .header("x-agent-id", "a")
        .header("accept-encoding", "gzip, br")
        .header("authorization", "Bearer k");
    let answer = path.client().await.ask(&ask).await;

    assert_eq!(answer.status(), 200);
    assert_eq!(answer.text(), whole.text());
    assert_eq!(
        answer.header("content-length"),
        Some(whole.text().len().to_string())
    );
    assert_eq!(answer.header("content-type").as_deref(), Some("application/json"));
    assert_eq!(answer.header("x-request-id").as_deref(), Some("call-2"));
    assert_eq!(
        answer.header("x-ratelimit-remaining-requests").as_deref(),
        Some("96")
    );
    assert_eq!(answer.header("x-fusebox-action").as_deref(), Some("reduce_batch"));
    let seen = upstream.seen().split_off(1);
    let sizes: Vec<usize> = seen.iter().map(|s| s.text().matches("text ").count()).collect();
    assert_eq!(sizes, [3, 3, 1]);
    for part in &seen {
        assert_eq!(part.header("content-length"), Some(part.text().len().to_string()));
        assert_eq!(part.header("authorization").as_deref(), Some("Bearer k"));
        assert_eq!(part.header("accept-encoding").as_deref(), Some("identity"));
        assert!(
            part.text().ends_with(r#""model":"text-embedding-3-small"}"#),
            "{}",
            part.text()
        );
    }
    let observation = path.observation(2).await;
    assert_eq!(
        observation.actions,
        [ActionTaken::BatchSplit { inputs: 7, calls: 3 }]
    );
    assert_eq!(observation.normalised.total(), Some(70));
    assert_eq!(
        (observation.usage_source, observation.outcome),
        (UsageSource::Reported, Outcome::Complete)
    );
    assert_eq!(
        observation.model_served.as_ref().map(|m| m.as_str()),
        Some("text-embedding-3-small")
    );
    assert!(observation.ttfb_ms.is_some());
    // One connection served all parts.
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn the_limiter_is_settled_with_the_sum() {
    let upstream = Upstream::start(|seen| {
        let mut answer = embed(seen);
        answer["usage"] = json!({"prompt_tokens": 1000, "total_tokens": 1000});
        Reply::json(answer.to_string())
    })
    .await;
    let path = Path::start(&upstream, &[]);
    // 1500 tokens at once: one part would leave room for another request, three do not.
    let throttle = Order::Throttle {
        requests_per_minute: None,
        tokens_per_minute: Some(6000),
    };
    path.order([batch(1), throttle]);
    assert_eq!(path.ask(EMBEDDINGS, &inputs(3)).await.status(), 200);
    assert_eq!(path.observation(1).await.normalised.total(), Some(3000));
    let refused = path.ask(CHAT, r#"{"model":"m","max_tokens":1}"#).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(upstream.count(), 3);
}

#[tokio::test]
async fn lists_of_tokens_and_other_apis_are_split_too() {
    let upstream = Upstream::start(|seen| {
        if seen.message.target().contains("batchEmbedContents") {
            let body: Value = serde_json::from_str(&seen.text()).unwrap();
            let vectors: Vec<Value> = body["requests"]
                .as_array()
                .unwrap()
                .iter()
                .map(|r| json!({"values": r["v"]}))
                .collect();
            Reply::json(
                json!({"embeddings": vectors, "usageMetadata": {"promptTokenCount": vectors.len()}})
                    .to_string(),
            )
        } else {
            Reply::json(embed(seen).to_string())
        }
    })
    .await;
    let path = Path::start(&upstream, &[]);
    path.order([batch(2)]);
    let answer = path
        .ask(EMBEDDINGS, r#"{"input":[[1,2],[3],[4,5,6]]}"#)
        .await
        .json();
    assert_eq!(
        answer["data"][2],
        json!({"object": "embedding", "index": 2, "embedding": [4, 5, 6]})
    );
    assert_eq!(upstream.count(), 2);
    // One input of three tokens.
    path.ask(EMBEDDINGS, r#"{"input":[1,2,3]}"#).await;
    assert_eq!(upstream.count(), 3);
    let target = "/v1beta/models/gemini-embedding-001:batchEmbedContents";
    let answer = path
        .ask(target, r#"{"requests":[{"v":[1]},{"v":[2]},{"v":[3]}]}"#)
        .await
        .json();
    assert_eq!(
        answer,
        json!({"embeddings": [{"values": [1]}, {"values": [2]}, {"values": [3]}], "usageMetadata": {"promptTokenCount": 3}})
    );
    assert_eq!(path.observation(3).await.normalised.input_total, Some(3));
}

#[tokio::test]
async fn an_error_in_a_part_is_the_answer_and_what_was_used_counts() {
    let count = AtomicUsize::new(0);
    let upstream = Upstream::start(move |seen| match count.fetch_add(1, Ordering::SeqCst) {
        2 => Reply::json(r#"{"error":{"type":"tokens","code":"rate_limit_exceeded","message":"slow down"}}"#)
            .status(429)
            .header("retry-after", "7"),
        _ => Reply::json(embed(seen).to_string()),
    })
    .await;
    let path = Path::start(&upstream, &[]);
    path.order([batch(2)]);
    let answer = path.ask(EMBEDDINGS, &inputs(9)).await;
    assert_eq!(answer.status(), 429);
    assert_eq!(answer.header("retry-after").as_deref(), Some("7"));
    assert_eq!(answer.json()["error"]["message"], "slow down");
    assert_eq!(upstream.count(), 3, "nothing is sent after an error");
    let observation = path.observation(1).await;
    assert_eq!(
        (observation.status, observation.error_code.as_deref()),
        (429, Some("rate_limit_exceeded"))
    );
    assert_eq!(observation.normalised.total(), Some(40));
    assert_eq!(
        observation.actions,
        [ActionTaken::BatchSplit { inputs: 9, calls: 3 }]
    );
}

#[tokio::test]
async fn answers_that_do_not_make_one_are_an_error() {
    for bad in [r#"{"data":[]}"#, "<html>"] {
        let count = AtomicUsize::new(0);
        let upstream = Upstream::start(move |seen| match count.fetch_add(1, Ordering::SeqCst) {
            1 => Reply::json(bad),
            _ => Reply::json(embed(seen).to_string()),
        })
        .await;
        let path = Path::start(&upstream, &[]);
        path.order([batch(2)]);
        let answer = path.ask(EMBEDDINGS, &inputs(5)).await;
        assert_eq!(answer.status(), 502);
        assert_eq!(answer.json()["error"]["code"], "fusebox_cannot_merge");
        let observation = path.observation(1).await;
        assert_eq!(observation.outcome, Outcome::UpstreamError);
        assert_eq!(observation.normalised.total(), Some(20));
    }
}

#[tokio::test]
async fn compressed_answers_are_put_together_as_well() {
    let upstream = Upstream::start(|seen| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, embed(seen).to_string().as_bytes()).unwrap();
        Reply::json(gzip.finish().unwrap()).header("content-encoding", "gzip")
    })
    .await;
    let path = Path::start(&upstream, &[]);
    path.order([batch(1)]);
    let answer = path.ask(EMBEDDINGS, &inputs(3)).await;
    assert_eq!(answer.header("content-encoding"), None);
    assert_eq!(answer.json()["data"][2]["embedding"], "text 2");
    assert_eq!(path.observation(1).await.normalised.total(), Some(30));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_the_rest() {
    let gate = Arc::new(Semaphore::new(1));
    let opened = Arc::clone(&gate);
    let upstream = Upstream::start(move |seen| {
        Reply::json(embed(seen).to_string()).after(Piece::Gate(Arc::clone(&opened)))
    })
    .await;
    let path = Path::start(&upstream, &[]);
    path.order([batch(1)]);
    let mut client = path.client().await;
    client
        .send(&Ask::post(EMBEDDINGS, inputs(4)).header("x-agent-id", "a"))
        .await;
    eventually("the second part", async || (upstream.count() == 2).then_some(())).await;
    drop(client);
    let observation = path.observation(1).await;
    assert_eq!(observation.outcome, Outcome::ClientAbort);
    assert_eq!(observation.normalised.total(), Some(10));
    assert_eq!(observation.usage_source, UsageSource::Partial);
    assert_eq!(
        observation.actions,
        [ActionTaken::BatchSplit { inputs: 4, calls: 2 }]
    );
    gate.add_permits(10);
    eventually("the upstream is left", async || {
        (upstream.left() == 1).then_some(())
    })
    .await;
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn timeouts_are_extended() {
    let upstream = Upstream::start(|_| {
        Reply::json(r#"{"model":"m"}"#)
            .after(Piece::Wait(Duration::from_millis(300)))
            .chunked()
            .pieces(vec![
                Piece::Bytes(b"{\"a\":".to_vec()),
                Piece::Wait(Duration::from_millis(300)),
                Piece::Bytes(b"1}".to_vec()),
            ])
    })
    .await;
    let lines = ["timeouts: {connect: 100ms, first_byte: 100ms, idle: 100ms, total: 250ms}"];
    let path = Path::start(&upstream, &lines);
    let (answer, took) = timed(path.ask(CHAT, "{}")).await;
    assert_eq!(answer.status(), 504);
    assert!(took < Duration::from_millis(290), "{took:?}");
    path.order([Order::ExtendTimeouts { percent: 900 }]);
    let answer = path.ask(CHAT, "{}").await;
    assert_eq!((answer.status(), answer.text().as_str()), (200, "{\"a\":1}"));
    // Nothing of the request was changed.
    assert_eq!(answer.header("x-fusebox-action"), None);
    let observation = path.observation(2).await;
    assert_eq!(
        observation.actions,
        [ActionTaken::TimeoutsExtended { percent: 900 }]
    );
    // An order of less than was configured shortens nothing.
    path.order([Order::ExtendTimeouts { percent: 50 }]);
    path.ask(CHAT, "{}").await;
    assert!(path.observation(3).await.actions.is_empty());
}

#[tokio::test]
async fn a_good_version_is_restored_in_each_api() {
    let upstream = quiet().await;
    let path = Path::start(&upstream, &[]);
    let ask = |target: &str, version: &str, body: &str| {
        Ask::post(target, body)
            .header("x-agent-id", "a")
            .header("x-agent-version", version)
    };
    let cases = [
        (
            CHAT,
            r#"{"model":"good","temperature":0.2,"messages":[]}"#,
            CHAT,
            r#"{"messages":[{"role":"user"}],"top_p":0.5,"model":"bad","temperature":1.9}"#,
            CHAT,
            r#"{"messages":[{"role":"user"}],"model":"good","temperature":0.2}"#,
        ),
        (
            RESPONSES,
            r#"{"model":"good","reasoning":{"effort":"low"}}"#,
            RESPONSES,
            r#"{"model":"bad","reasoning":{"effort":"high","summary":"auto"},"input":"x"}"#,
            RESPONSES,
            r#"{"model":"good","reasoning":{"effort":"low","summary":"auto"},"input":"x"}"#,
        ),
        (
            MESSAGES,
            r#"{"model":"good","max_tokens":10}"#,
            MESSAGES,
            r#"{"model":"bad","max_tokens":99,"temperature":1}"#,
            MESSAGES,
            r#"{"model":"good","max_tokens":99}"#,
        ),
        (
            "/v1beta/models/good:generateContent",
            r#"{"generationConfig":{"topK":4}}"#,
            "/v1beta/models/bad:generateContent",
            r#"{"generationConfig":{"topK":40,"maxOutputTokens":5}}"#,
            "/v1beta/models/good:generateContent",
            r#"{"generationConfig":{"topK":4,"maxOutputTokens":5}}"#,
        ),
    ];
    for (target, body, ..) in &cases {
        path.client().await.ask(&ask(target, "v1", body)).await;
    }
    path.order([Order::RestoreVersion { version: "v1".into() }]);
    for (n, (good, body, target, bad, want_target, want)) in cases.iter().enumerate() {
        let answer = path.client().await.ask(&ask(target, "v2", bad)).await;
        let seen = upstream.seen().pop().unwrap();
        assert_eq!(
            (seen.message.target(), seen.text().as_str()),
            (*want_target, *want)
        );
        assert_eq!(answer.header("x-fusebox-action").as_deref(), Some("rollback"));
        assert_eq!(answer.header("x-fusebox-model-used").as_deref(), Some("good"));
        assert_eq!(answer.header("x-fusebox-model-requested").as_deref(), Some("bad"));
        let restored = ActionTaken::VersionRestored {
            version: "v1".to_owned(),
        };
        assert_eq!(path.observation(2 * n + 5).await.actions, [restored]);
        // The good version itself is left alone.
        let answer = path.client().await.ask(&ask(good, "v1", body)).await;
        assert_eq!(answer.header("x-fusebox-action"), None);
        path.observation(2 * n + 6).await;
        assert_eq!(upstream.seen().pop().unwrap().text(), *body);
    }
    // An API at which that version was never seen.
    let body = r#"{"model":"m","prompt":"x"}"#;
    path.client().await.ask(&ask("/v1/completions", "v2", body)).await;
    assert_eq!(upstream.seen().pop().unwrap().text(), body);
    let why = "nothing is known of version v1 at openai.completions".to_owned();
    let skipped = ActionTaken::StepSkipped {
        step: "rollback".to_owned(),
        why,
    };
    assert_eq!(path.observation(13).await.actions, [skipped]);
    assert!(path.versions.export().len() >= 8);
}

#[tokio::test]
async fn what_a_good_version_did_not_always_send_alike_stays() {
    let upstream = quiet().await;
    let path = Path::start(&upstream, &[]);
    let ask = |version: &str, body: &str| {
        Ask::post(CHAT, body)
            .header("x-agent-id", "a")
            .header("x-agent-version", version)
    };
    for body in [
        r#"{"model":"small","temperature":0,"top_p":0.9}"#,
        r#"{"model":"large","temperature":1,"top_p":0.9}"#,
    ] {
        path.client().await.ask(&ask("v1", body)).await;
    }
    path.order([Order::RestoreVersion { version: "v1".into() }]);
    path.client()
        .await
        .ask(&ask("v2", r#"{"model":"huge","temperature":2,"top_p":0.1}"#))
        .await;
    let want = r#"{"model":"huge","temperature":2,"top_p":0.9}"#;
    assert_eq!(upstream.seen().pop().unwrap().text(), want);
}
