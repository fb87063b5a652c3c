//! Killed at any moment: what was announced is there after the restart, and what was not told is told.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::upstream::{Reply, Upstream};

/// Times that the process is killed; `FUSEBOX_KILLS` for more.
const KILLS: u64 = 25;

const RULES: &str = "agent_incident_rules:\n  - name: explosion\n    metric: tokens_per_execution\n    baseline: 250\n    \
     threshold_upper: 1000\n    window: 10m\n    action: act\n\
     actions:\n  act:\n    steps:\n      - throttle: {requests_per_minute: 6000}\n      - {downgrade_model: {to: gpt-5-nano}, approval: required}\n      - notify\n";

fn config(upstream: &Upstream, hook: &Upstream, ledger: &Path) -> Config {
    Config::new(upstream).rules(RULES).with(&format!(
        "ledger: {{path: {}}}\nalerts:\n  - {{name: hook, kind: webhook, url: \"{}/hook\"}}\nautomation: {{max_actions_per_hour: 100000}}\n",
        ledger.display(),
        hook.url()
    ))
}

async fn upstream() -> Upstream {
    Upstream::start(|_| {
        Reply::json(
            "{\"model\":\"gpt-4o\",\"choices\":[{\"message\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}],\
             \"usage\":{\"prompt_tokens\":4990,\"completion_tokens\":10,\"total_tokens\":5000}}",
        )
    })
    .await
}

fn call(agent: &str) -> Ask {
    Ask::post("/v1/chat/completions", "{\"model\":\"gpt-4o\",\"messages\":[]}")
        .header("x-agent-id", agent)
        .header("x-execution-id", format!("run-of-{agent}"))
}

/// Incidents of which the receiver heard this event.
fn heard(hook: &Upstream, event: &str) -> BTreeSet<String> {
    hook.seen()
        .iter()
        .map(|seen| seen.message.json())
        .filter(|body| body["type"] == event)
        .filter_map(|body| body["data"]["incident"].as_str().map(ToOwned::to_owned))
        .collect()
}

async fn incidents(fusebox: &Fusebox) -> Vec<Value> {
    let all = fusebox.admin_json("/incidents").await;
    all.as_array().cloned().unwrap_or_default()
}

fn ids(incidents: &[Value]) -> BTreeSet<String> {
    incidents
        .iter()
        .filter_map(|i| i["id"].as_str())
        .map(ToOwned::to_owned)
        .collect()
}

#[tokio::test]
async fn nothing_that_was_announced_is_lost() {
    let kills = std::env::var("FUSEBOX_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(KILLS);
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger.db");
    let (upstream, hook) = (upstream().await, Upstream::start(|_| Reply::json("{}")).await);
    let config = config(&upstream, &hook, &ledger);
    let mut agents = 0;
    // Spread over the moments of opening, recording and telling, without a clock or luck: each round kills a little later.
    for round in 0..kills {
        let mut fusebox = Fusebox::start(&config).await;
        let told = heard(&hook, "incident.opened");
        let all = incidents(&fusebox).await;
        let known = ids(&all);
        let lost: Vec<_> = told.difference(&known).collect();
        assert!(lost.is_empty(), "round {round}: told and lost: {lost:?}");
        for incident in all.iter().filter(|i| told.contains(i["id"].as_str().unwrap())) {
            assert_eq!(incident["state"], "open", "{incident}");
            assert_eq!(
                incident["directives"][0]["order"]["kind"], "throttle",
                "{incident}"
            );
            assert_eq!(incident["approvals"][0]["state"], "needed", "{incident}");
        }
        let load = async {
            loop {
                agents += 1;
                let mut client = fusebox.client().await;
                client.send(&call(&format!("agent-{agents}"))).await;
                client.try_answer().await;
            }
        };
        let moment = Duration::from_micros(3_000 + round * 1_700 % 60_000);
        tokio::time::timeout(moment, load).await.ok();
        fusebox.signal("KILL");
        fusebox.ended().await;
    }
    let fusebox = Fusebox::start(&config).await;
    assert!(agents > 20, "{agents} agents are no load");
    let known = ids(&incidents(&fusebox).await);
    assert!(!known.is_empty());
    eventually("everyone was told of every incident", async || {
        known.is_subset(&heard(&hook, "incident.opened")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_was_not_delivered_is_delivered_after_the_restart() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = directory.path().join("ledger.db");
    let upstream = upstream().await;
    let answer = Arc::new(AtomicU16::new(503));
    let hook = {
        let answer = Arc::clone(&answer);
        Upstream::start(move |_| Reply::json("{}").status(answer.load(Ordering::SeqCst))).await
    };
    let config = config(&upstream, &hook, &ledger);
    let mut fusebox = Fusebox::start(&config).await;
    fusebox.ask(&call("a")).await;
    eventually("a first attempt", async || (hook.count() > 0).then_some(())).await;
    let first = hook.seen()[0].header("webhook-id");
    fusebox.signal("KILL");
    fusebox.ended().await;

    let before = hook.count();
    answer.store(200, Ordering::SeqCst);
    let fusebox = Fusebox::start(&config).await;
    let again = eventually("the notice again", async || {
        let all = hook.seen();
        all.get(before..)?
            .iter()
            .find(|s| s.header("webhook-id") == first)
            .map(|s| s.message.json())
    })
    .await;
    assert_eq!(again["type"], "incident.opened");
    let incident = incidents(&fusebox).await.remove(0);
    assert_eq!(incident["id"], again["data"]["incident"]);
    // What it was found by is seen again, so the same incident goes on.
    fusebox.ask(&call("a")).await;
    fusebox.observed(1).await;
    assert_eq!(incidents(&fusebox).await.len(), 1);
    assert_eq!(fusebox.admin_json("/status").await["degraded"], json!([]));
}
