//! An incident from end to end: traffic, finding, directive, effect, notice, release.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::http1::Message;
use crate::support::upstream::{Reply, Seen, Upstream};

/// The signing secret, as `whsec_` and base64.
const KEY: &[u8] = b"a signing key of 32 bytes length";

/// A chat body with the model in the middle and odd spacing.
const BODY: &str = "{\"messages\":[{\"role\":\"user\",\"content\":\"\\u0022model\\u0022: \\\"gpt-4o\\\"\"}],  \"model\" :  \"gpt-4o\", \"n\":1.0,\n\"model_x\":\"gpt-4o\"}";

/// An upstream whose answers say that they used as many tokens as the counter says.
async fn costly(tokens: &Arc<AtomicU64>) -> Upstream {
    let tokens = Arc::clone(tokens);
    Upstream::start(move |_| {
        let used = tokens.load(Ordering::SeqCst);
        Reply::json(format!(
            "{{\"model\":\"gpt-4o-2024-08-06\",\"choices\":[{{\"message\":{{\"content\":\"x\"}},\"finish_reason\":\"stop\"}}],\
             \"usage\":{{\"prompt_tokens\":{},\"completion_tokens\":10,\"total_tokens\":{used}}}}}",
            used - 10
        ))
    })
    .await
}

async fn webhook() -> Upstream {
    Upstream::start(|_| Reply::json("{}")).await
}

fn rule(action: &str) -> String {
    format!(
        "agent_incident_rules:\n  - name: token_explosion_detection\n    metric: tokens_per_execution\n    baseline: 250\n    \
         threshold_upper: 1000\n    window: 2s\n    cooldown: 1s\n    action: {action}\n"
    )
}

fn alerts(hook: &Upstream) -> String {
    let secret = STANDARD.encode(KEY);
    format!(
        "alerts:\n  - name: hook\n    kind: webhook\n    url: {}/hook\n    secret: whsec_{secret}\n",
        hook.url()
    )
}

fn call(agent: &str, execution: &str) -> Ask {
    Ask::post("/v1/chat/completions", BODY)
        .header("x-agent-id", agent)
        .header("x-execution-id", execution)
}

/// Calls until the incident of `agent` is there.
async fn explode(fusebox: &Fusebox, agent: &str) -> Value {
    let mut client = fusebox.client().await;
    eventually("an incident", async || {
        client.ask(&call(agent, "run-1")).await;
        let incidents = fusebox.admin_json("/incidents").await;
        incidents
            .as_array()?
            .iter()
            .find(|i| i["state"] == "open" && i["agent"] == agent)
            .cloned()
    })
    .await
}

/// Waits until nothing is open or recovering any more; a window, a hold and a cooldown may have to pass.
async fn resolved(fusebox: &Fusebox) -> Value {
    for _ in 0..4 {
        let done = tokio::time::timeout(Duration::from_secs(12), async {
            loop {
                let incidents = fusebox.admin_json("/incidents").await;
                let all = incidents.as_array().cloned().unwrap_or_default();
                if !all.is_empty() && all.iter().all(|i| i["state"] == "resolved") {
                    return incidents;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        if let Ok(incidents) = done.await {
            return incidents;
        }
    }
    panic!("not resolved: {}", fusebox.admin_json("/incidents").await);
}

/// Verifies a notice as Standard Webhooks say and gives its body.
fn verified(seen: &Seen) -> Value {
    let header = |name: &str| {
        seen.header(name)
            .unwrap_or_else(|| panic!("no {name} in {seen:?}"))
    };
    let (id, time) = (header("webhook-id"), header("webhook-timestamp"));
    assert!(time.parse::<u64>().is_ok(), "{time} is no time");
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(KEY).unwrap();
    mac.update(format!("{id}.{time}.").as_bytes());
    mac.update(&seen.message.body);
    let want = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    assert!(
        header("webhook-signature").split(' ').any(|s| s == want),
        "the signature does not fit"
    );
    let body = seen.message.json();
    assert_eq!(
        body["data"]["id"].as_str(),
        Some(id.as_str()),
        "the id is that of the notice"
    );
    body
}

/// The observation of a request that fits, once it is there.
async fn last_with(fusebox: &Fusebox, id: &str, fits: impl Fn(&Value) -> bool) -> Value {
    eventually(&format!("the observation of {id}"), async || {
        let all = fusebox.observations().into_iter();
        all.filter(|o| o["request_id"] == id).find(|o| fits(o))
    })
    .await
}

async fn notice(hook: &Upstream, event: &str) -> Value {
    eventually(&format!("a notice {event}"), async || {
        hook.seen().iter().map(verified).find(|n| n["type"] == event)
    })
    .await
}

#[tokio::test]
async fn an_explosion_is_throttled_told_and_released() {
    let tokens = Arc::new(AtomicU64::new(50));
    let (upstream, hook) = (costly(&tokens).await, webhook().await);
    let actions =
        "actions:\n  calm_down:\n    steps:\n      - throttle: {requests_per_minute: 2}\n      - notify\n";
    let config = Config::new(&upstream)
        .rules(&rule("calm_down"))
        .with(actions)
        .with(&alerts(&hook))
        .with("limits: {max_admission_wait: 10ms}");
    let fusebox = Fusebox::start(&config).await;

    // A quiet agent is left alone.
    for _ in 0..3 {
        assert_eq!(fusebox.ask(&call("quiet", "q")).await.status(), 200);
    }
    fusebox.observed(3).await;
    assert_eq!(fusebox.admin_json("/incidents").await, json!([]));

    tokens.store(400, Ordering::SeqCst);
    let incident = explode(&fusebox, "loud").await;
    let id = incident["id"].as_str().expect("an id").to_owned();
    assert_eq!(incident["rule"], "token_explosion_detection");
    assert_eq!(incident["metric"], "tokens_per_execution");
    assert!(
        incident["value"].as_f64().is_some_and(|v| v > 1_000.0),
        "{incident}"
    );
    assert_eq!(incident["threshold"], json!(1000.0));

    // The effect: refused in the shape of the API, with everything that clients go by.
    let refused = eventually("a refusal", async || {
        let answer = fusebox
            .ask(&call("loud", "run-1").header("x-request-id", "refused"))
            .await;
        (answer.status() == 429).then_some(answer)
    })
    .await;
    check_refusal(&refused, &id, "/error/type");
    assert_eq!(refused.json()["error"]["param"], Value::Null);
    let observation = last_with(&fusebox, "refused", |o| o["status"] == 429).await;
    assert_eq!(
        (&observation["outcome"], &observation["status"]),
        (&json!("refused"), &json!(429))
    );
    assert_eq!(observation["actions"][0]["kind"], "throttled");
    assert_eq!(observation["actions"][0]["rule"], "token_explosion_detection");
    for (path, pointer) in [
        ("/v1/messages", "/error/type"),
        ("/v1beta/models/g:generateContent", "/error/status"),
    ] {
        let ask = Ask::post(path, "{\"model\":\"m\"}")
            .header("x-agent-id", "loud")
            .header("x-execution-id", "run-1");
        let answer = eventually("a refusal", async || {
            let answer = fusebox.ask(&ask).await;
            (answer.status() == 429).then_some(answer)
        })
        .await;
        check_refusal(&answer, &id, pointer);
    }
    // Others are not held to it.
    for n in 0..5 {
        assert_eq!(fusebox.ask(&call("quiet", &format!("q{n}"))).await.status(), 200);
    }

    // A human is told, once.
    let opened = notice(&hook, "incident.opened").await;
    assert_eq!(opened["data"]["incident"].as_str(), Some(id.as_str()));
    assert_eq!(opened["data"]["rule"], "token_explosion_detection");

    let agent = fusebox.admin_json("/agents/loud").await;
    assert_eq!(
        agent["status"]["directives"][0]["order"]["kind"], "throttle",
        "{agent}"
    );

    // The agent keeps calling, within what it is let: its runs are small again.
    tokens.store(20, Ordering::SeqCst);
    let incidents = resolved(&fusebox).await;
    assert_eq!(
        incidents.as_array().map(Vec::len),
        Some(1),
        "one incident, not many: {incidents}"
    );
    assert_eq!(incidents[0]["directives"], json!([]));
    let events: Vec<&str> = incidents[0]["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["event"].as_str())
        .collect();
    assert_eq!(events.first(), Some(&"opened"), "{events:?}");
    assert_eq!(
        events.iter().filter(|e| **e == "resolved").count(),
        1,
        "{events:?}"
    );
    for _ in 0..10 {
        assert_eq!(fusebox.ask(&call("loud", "run-2")).await.status(), 200, "let go");
    }
    assert_eq!(
        notice(&hook, "incident.resolved").await["data"]["incident"].as_str(),
        Some(id.as_str())
    );
    let opened = hook
        .seen()
        .iter()
        .map(verified)
        .filter(|n| n["type"] == "incident.opened")
        .count();
    assert_eq!(opened, 1, "told once");
    let agent = fusebox.admin_json("/agents/loud").await;
    assert_eq!(agent["status"]["directives"], json!([]));

    let metrics = fusebox.admin(&Ask::get("/metrics")).await.text();
    assert!(metrics.contains("incident"), "{metrics}");
    let log = fusebox.log_text();
    assert!(
        !log.contains("whsec") && !log.contains(&STANDARD.encode(KEY)),
        "the secret was logged"
    );
}

fn check_refusal(answer: &Message, incident: &str, kind: &str) {
    assert_eq!(answer.status(), 429);
    let json = answer.json();
    assert!(json.pointer(kind).is_some_and(Value::is_string), "{json}");
    assert!(answer.text().contains(incident), "the incident is named: {json}");
    let number = |name: &str| {
        let value = answer
            .header(name)
            .unwrap_or_else(|| panic!("no {name} in {:?}", answer.headers));
        value.parse::<f64>().unwrap_or_else(|_| panic!("{name}: {value}"))
    };
    let (seconds, ms) = (number("retry-after"), number("retry-after-ms"));
    assert!(
        (1.0..=60.0).contains(&seconds) && seconds.fract() == 0.0,
        "retry-after {seconds}"
    );
    assert!(
        ms > 0.0 && ms / 1_000.0 <= seconds,
        "retry-after {seconds} s, -ms {ms}"
    );
    assert!(
        answer
            .header("content-type")
            .is_some_and(|t| t.starts_with("application/json"))
    );
    assert_eq!(
        answer.header("x-fusebox-incident").as_deref(),
        Some(incident),
        "{:?}",
        answer.headers
    );
    let id = answer
        .header("x-request-id")
        .or_else(|| answer.header("request-id"));
    assert!(id.is_some(), "a request id: {:?}", answer.headers);
    assert!(answer.header("x-should-retry").is_none_or(|v| v == "true"));
}

#[tokio::test]
async fn a_model_is_downgraded_in_place_and_said_so() {
    let tokens = Arc::new(AtomicU64::new(400));
    let upstream = costly(&tokens).await;
    let actions = "actions:\n  cheaper:\n    steps:\n      - downgrade_model: {to: gpt-4o-mini}\n        approval: automatic\n";
    let fusebox = Fusebox::start(&Config::new(&upstream).rules(&rule("cheaper")).with(actions)).await;
    let incident = explode(&fusebox, "loud").await;
    let answer = eventually("a downgrade", async || {
        let answer = fusebox
            .ask(&call("loud", "run-1").header("x-request-id", "cheap"))
            .await;
        answer.header("x-fusebox-model-used").is_some().then_some(answer)
    })
    .await;
    assert_eq!(answer.status(), 200);
    assert_eq!(
        answer.header("x-fusebox-model-requested").as_deref(),
        Some("gpt-4o")
    );
    assert_eq!(
        answer.header("x-fusebox-model-used").as_deref(),
        Some("gpt-4o-mini")
    );
    assert_eq!(
        answer.header("x-fusebox-action").as_deref(),
        Some("downgrade_model")
    );
    assert_eq!(
        answer.header("x-fusebox-incident").as_deref(),
        incident["id"].as_str()
    );
    let seen = upstream.seen().pop().unwrap();
    let want = BODY.replace("\"model\" :  \"gpt-4o\"", "\"model\" :  \"gpt-4o-mini\"");
    assert_eq!(seen.text(), want, "one value changed, everything else as it was");
    assert_eq!(seen.header("content-length"), Some(want.len().to_string()));
    let observation = last_with(&fusebox, "cheap", |o| o["actions"] != json!([])).await;
    assert_eq!(observation["model_requested"], "gpt-4o");
    assert_eq!(
        observation["actions"],
        json!([{"kind": "model_downgraded", "from": "gpt-4o", "to": "gpt-4o-mini"}])
    );

    // Under this directive, a model that cannot be told for certain is refused.
    for body in [
        "{\"model\":\"gpt-4o\",\"model\":\"gpt-4o\"}",
        "{\"model\":7}",
        "{\"model\":\"gpt-4o\"",
        "\u{1}",
    ] {
        let before = upstream.count();
        let ask = Ask::post("/v1/chat/completions", body)
            .header("x-agent-id", "loud")
            .header("x-execution-id", "run-1");
        let answer = fusebox.ask(&ask).await;
        assert_eq!(answer.status(), 400, "{body}: {}", answer.text());
        assert!(answer.json()["error"]["message"].is_string());
        assert_eq!(upstream.count(), before, "{body}");
    }
    // Where the path names the model, what the request needs still stands in the body: one that cannot be read keeps
    // its model.
    let path = "/openai/deployments/gpt-4o/chat/completions";
    for (id, body, kind) in [
        ("compressed", "\u{1f}packed", "downgrade_skipped"),
        ("unreadable", "{\"messages\"", "downgrade_skipped"),
        ("plain", "{\"messages\":[]}", "model_downgraded"),
    ] {
        let mut ask = Ask::post(path, body)
            .header("x-agent-id", "loud")
            .header("x-execution-id", "run-1")
            .header("x-request-id", id);
        if id == "compressed" {
            ask = ask.header("content-encoding", "gzip");
        }
        assert_eq!(fusebox.ask(&ask).await.status(), 200, "{id}");
        let skipped = kind == "downgrade_skipped";
        let target = upstream.seen().pop().unwrap().message.target().to_owned();
        assert_eq!(target == path, skipped, "{id}: {target}");
        let observation = last_with(&fusebox, id, |o| o["actions"] != json!([])).await;
        assert_eq!(observation["actions"][0]["kind"], kind, "{observation}");
        let why = observation["actions"].to_string();
        assert_eq!(why.contains("cannot be read"), skipped, "{why}");
    }
    // Others are not touched.
    fusebox.ask(&call("quiet", "q")).await;
    assert_eq!(upstream.seen().pop().unwrap().text(), BODY);

    tokens.store(20, Ordering::SeqCst);
    resolved(&fusebox).await;
    let answer = fusebox.ask(&call("loud", "run-2")).await;
    assert_eq!(answer.header("x-fusebox-model-used"), None);
    assert_eq!(upstream.seen().pop().unwrap().text(), BODY, "its own model again");
}

#[tokio::test]
async fn an_operator_can_end_it() {
    let tokens = Arc::new(AtomicU64::new(400));
    let upstream = costly(&tokens).await;
    let actions =
        "actions:\n  slow:\n    steps:\n      - throttle: {requests_per_minute: 1}\n        lease: 5m\n";
    let rules = rule("slow").replace("cooldown: 1s", "cooldown: 5m");
    let config = Config::new(&upstream)
        .rules(&rules)
        .with(actions)
        .with("limits: {max_admission_wait: 10ms}");
    let fusebox = Fusebox::start(&config).await;
    let incident = explode(&fusebox, "loud").await;
    let id = incident["id"].as_str().unwrap();
    tokens.store(20, Ordering::SeqCst);
    let ask = Ask::post(&format!("/incidents/{id}/resolve"), "{\"by\":\"ada\"}");
    let answer = fusebox.admin(&ask).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    eventually("the throttle is lifted", async || {
        let mut all = true;
        for _ in 0..5 {
            all &= fusebox.ask(&call("loud", "run-2")).await.status() == 200;
        }
        all.then_some(())
    })
    .await;
    let incident = fusebox.admin_json(&format!("/incidents/{id}")).await;
    assert_eq!(incident["state"], "resolved");
    assert!(incident["timeline"].to_string().contains("ada"), "{incident}");
    assert_eq!(fusebox.admin(&ask).await.status(), 409, "it is over already");
}

#[tokio::test]
async fn the_built_in_rules_hold_without_a_file() {
    let tokens = Arc::new(AtomicU64::new(3_000));
    let upstream = costly(&tokens).await;
    let directory = tempfile::tempdir().unwrap();
    let observations = directory.path().join("observations.jsonl").display().to_string();
    let args = [
        "--upstream",
        &upstream.url(),
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--observations",
        &observations,
    ];
    let fusebox = Fusebox::start_args(directory, &args, &[]).await;
    let rules = fusebox.admin_json("/rules").await;
    let names: Vec<&str> = rules
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "token_explosion_detection",
            "latency_creep",
            "output_quality_drop"
        ]
    );
    let quality = rules
        .as_array()
        .unwrap()
        .iter()
        .find(|r| r["name"] == "output_quality_drop")
        .unwrap();
    assert!(
        quality["evaluation"]
            .as_str()
            .is_some_and(|e| e.starts_with("not yet evaluated")),
        "{quality}"
    );
    let incident = explode(&fusebox, "loud").await;
    assert_eq!(incident["rule"], "token_explosion_detection");
    assert_eq!(incident["action"], "throttle_and_alert");
}

#[tokio::test]
async fn shadow_rules_touch_nobody() {
    let tokens = Arc::new(AtomicU64::new(2_000));
    let (upstream, hook) = (costly(&tokens).await, webhook().await);
    let rules = format!("{}    mode: shadow\n", rule("throttle_and_alert"));
    let fusebox = Fusebox::start(&Config::new(&upstream).rules(&rules).with(&alerts(&hook))).await;
    for _ in 0..20 {
        assert_eq!(fusebox.ask(&call("loud", "run-1")).await.status(), 200);
    }
    eventually("the finding is counted", async || {
        let rules = fusebox.admin_json("/rules").await;
        (rules[0]["findings"].as_u64()? > 0).then_some(())
    })
    .await;
    assert_eq!(fusebox.ask(&call("loud", "run-1")).await.status(), 200);
    assert_eq!(hook.count(), 0, "{:?}", hook.seen());
}

#[tokio::test]
async fn concurrency_is_capped() {
    let tokens = Arc::new(AtomicU64::new(400));
    let counter = Arc::clone(&tokens);
    let upstream = Upstream::start(move |seen| {
        let used = counter.load(Ordering::SeqCst);
        let reply = Reply::json(format!(
            "{{\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":{used},\"total_tokens\":{}}}}}",
            used + 1
        ));
        if seen.header("x-slow").is_some() {
            reply.after(crate::support::upstream::Piece::Wait(Duration::from_millis(700)))
        } else {
            reply
        }
    })
    .await;
    let actions = "actions:\n  narrow:\n    steps:\n      - cap_concurrency: {max_in_flight: 2}\n";
    let config = Config::new(&upstream)
        .rules(&rule("narrow"))
        .with(actions)
        .with("limits: {max_admission_wait: 10ms}");
    let fusebox = Fusebox::start(&config).await;
    explode(&fusebox, "loud").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let address = fusebox.address().to_owned();
        tasks.push(tokio::spawn(async move {
            crate::support::client::ask(&address, &call("loud", "run-1").header("x-slow", "1"))
                .await
                .status()
        }));
    }
    let mut statuses = Vec::new();
    for task in tasks {
        statuses.push(task.await.unwrap());
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 429, 429, 429, 429]);
}

#[tokio::test]
async fn a_change_of_model_waits_for_a_human_unless_told_otherwise() {
    let tokens = Arc::new(AtomicU64::new(400));
    let upstream = costly(&tokens).await;
    let actions = "actions:\n  cheaper:\n    steps:\n      - downgrade_model: {to: gpt-4o-mini}\n";
    let fusebox = Fusebox::start(&Config::new(&upstream).rules(&rule("cheaper")).with(actions)).await;
    let incident = explode(&fusebox, "loud").await;
    let waits = incident["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .any(|e| e["event"] == "step_waiting");
    assert!(waits, "{incident}");
    for _ in 0..5 {
        fusebox.ask(&call("loud", "run-1")).await;
        assert_eq!(upstream.seen().pop().unwrap().text(), BODY);
    }
}
