//! The admin API: every endpoint, who may call it, and what it never says.

use serde_json::{Value, json};

use crate::support::client::{Ask, Client, ask};
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::upstream::{Reply, Upstream};

const ANSWER: &str = "{\"model\":\"gpt-4o\",\"choices\":[{\"message\":{\"content\":\"the content\"},\"finish_reason\":\"stop\"}],\
    \"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}";

/// The rules of the mission, as given.
const RULES: &str = "agent_incident_rules:
  - name: token_explosion_detection
    metric: tokens_per_execution
    baseline: 2500
    threshold_upper: 5000
    window: 5m
    action: throttle_and_alert

  - name: latency_creep
    metric: p95_response_time
    baseline: 2.5s
    threshold_upper: 8s
    window: 15m
    action: escalate_to_on_call

  - name: output_quality_drop
    metric: semantic_similarity_to_baseline
    baseline: 0.87
    threshold_lower: 0.65
    window: 10m
    action: rollback_and_notify
";

async fn traffic() -> (Upstream, Fusebox) {
    let upstream = Upstream::start(|_| Reply::json(ANSWER)).await;
    let fusebox = Fusebox::start(&Config::new(&upstream).rules(RULES)).await;
    let body = "{\"model\":\"gpt-4o\",\"messages\":[{\"role\":\"user\",\"content\":\"a secret question\"}]}";
    for agent in ["billing", "mail"] {
        let ask = Ask::post("/v1/chat/completions", body)
            .header("x-agent-id", agent)
            .header("authorization", "Bearer sk-very-secret");
        assert_eq!(fusebox.ask(&ask).await.status(), 200);
    }
    fusebox.observed(2).await;
    (upstream, fusebox)
}

#[tokio::test]
async fn every_endpoint_answers() {
    let (upstream, fusebox) = traffic().await;
    for probe in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(fusebox.admin(&Ask::get(probe)).await.status(), 200, "{probe}");
    }

    let agents = eventually("both agents are known to the engine", async || {
        let agents = fusebox.admin_json("/agents").await;
        let all = agents.as_array()?;
        (all.len() == 2 && all.iter().all(|a| a["status"].is_object())).then_some(agents)
    })
    .await;
    let names: Vec<&Value> = agents.as_array().unwrap().iter().map(|a| &a["agent"]).collect();
    assert_eq!(names, [&json!("billing"), &json!("mail")]);
    let one = fusebox.admin_json("/agents/billing").await;
    assert_eq!(
        (&one["agent"], &one["totals"]),
        (&json!("billing"), &agents[0]["totals"])
    );
    assert_eq!(fusebox.admin(&Ask::get("/agents/nobody")).await.status(), 404);

    assert_eq!(fusebox.admin_json("/incidents").await, json!([]));
    assert_eq!(fusebox.admin(&Ask::get("/incidents/none")).await.status(), 404);

    let rules = fusebox.admin_json("/rules").await;
    let rules = rules.as_array().unwrap();
    assert_eq!(rules.len(), 3);
    for (rule, name, metric, threshold) in [
        (
            &rules[0],
            "token_explosion_detection",
            "tokens_per_execution",
            json!(5000.0),
        ),
        (&rules[1], "latency_creep", "p95_response_time", json!(8.0)),
        (
            &rules[2],
            "output_quality_drop",
            "semantic_similarity_to_baseline",
            Value::Null,
        ),
    ] {
        assert_eq!(rule["name"], name);
        assert_eq!(rule["metric"], metric);
        assert_eq!(rule["threshold_upper"], threshold);
    }
    assert_eq!(rules[1]["baseline"], json!(2.5));
    assert_eq!(rules[2]["threshold_lower"], json!(0.65));
    assert!(
        rules[2]["evaluation"]
            .as_str()
            .is_some_and(|e| e.starts_with("not yet evaluated")),
        "{}",
        rules[2]
    );
    assert_eq!(
        (&rules[0]["evaluation"], &rules[1]["evaluation"]),
        (&json!("ok"), &json!("ok"))
    );

    let status = fusebox.admin_json("/status").await;
    assert_eq!(status["agents"], 2);
    assert_eq!(status["open_incidents"], 0);
    assert_eq!(status["observations"], 2);
    assert_eq!(status["observations_dropped"], 0);
    assert_eq!(status["upstreams"][0]["name"], "double");
    assert_eq!(
        status["upstreams"][0]["url"]
            .as_str()
            .map(|u| u.trim_end_matches('/').to_owned()),
        Some(upstream.url())
    );
    assert_eq!(status["listeners"], json!(fusebox.listeners));
    assert_eq!(status["degraded"], json!([]), "{status}");
    let text = fusebox
        .admin(&Ask::get("/status").header("accept", "text/plain"))
        .await;
    assert!(
        text.text().contains("billing") && text.text().contains("double"),
        "{}",
        text.text()
    );

    let metrics = fusebox.admin(&Ask::get("/metrics")).await;
    assert!(
        metrics
            .header("content-type")
            .is_some_and(|t| t.starts_with("application/openmetrics-text"))
    );
    let metrics = metrics.text();
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(
        metrics.contains("billing") && metrics.contains("gpt-4o"),
        "{metrics}"
    );

    for (method, path) in [
        ("POST", "/agents"),
        ("DELETE", "/incidents"),
        ("GET", "/-/reload"),
    ] {
        let answer = fusebox.admin(&Ask::new(method, path)).await;
        assert_eq!(answer.status(), 405, "{method} {path}");
    }
    assert_eq!(fusebox.admin(&Ask::get("/no/such/path")).await.status(), 404);
}

#[tokio::test]
async fn metrics_are_well_formed() {
    let (_upstream, fusebox) = traffic().await;
    let ask = Ask::post("/v1/chat/completions", "{\"model\":\"odd \\\"\\\\ \\n name\"}")
        .header("x-agent-id", "quo\"te\\d");
    fusebox.ask(&ask).await;
    fusebox.observed(3).await;
    let metrics = fusebox.admin(&Ask::get("/metrics")).await.text();
    let mut families: Vec<String> = Vec::new();
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let name = rest.split(' ').next().unwrap().to_owned();
            assert!(!families.contains(&name), "{name} is declared twice");
            families.push(name);
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).unwrap_or(line.len());
            let name = &line[..end];
            assert!(
                families.last().is_some_and(|f| name.starts_with(f.as_str())),
                "{line} outside its family"
            );
            let value = line.split(" # ").next().unwrap().rsplit(' ').next().unwrap();
            assert!(
                value.parse::<f64>().is_ok() || value == "+Inf" || value == "NaN",
                "{line}"
            );
        }
    }
    assert!(families.iter().any(|f| f.contains("token")), "{families:?}");
}

#[tokio::test]
async fn nothing_secret_is_shown() {
    let (_upstream, fusebox) = traffic().await;
    let mut all = fusebox.log_text();
    for path in ["/status", "/agents", "/rules", "/metrics", "/incidents"] {
        all.push_str(&fusebox.admin(&Ask::get(path)).await.text());
    }
    all.push_str(&std::fs::read_to_string(fusebox.directory().join("observations.jsonl")).unwrap());
    for secret in ["sk-very-secret", "a secret question", "the content"] {
        assert!(!all.contains(secret), "{secret} was shown");
    }
}

#[tokio::test]
async fn names_and_origins_are_checked() {
    let (_upstream, fusebox) = traffic().await;
    let get = |host: &str| Ask::get("/status").header("host", host);
    let port = fusebox.admin.rsplit(':').next().unwrap().to_owned();
    for host in [
        fusebox.admin.as_str(),
        "localhost",
        &format!("localhost:{port}"),
        &format!("127.0.0.1:{port}"),
    ] {
        assert_eq!(ask(&fusebox.admin, &get(host)).await.status(), 200, "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        &format!("evil.example:{port}"),
    ] {
        let answer = ask(&fusebox.admin, &get(host)).await;
        assert!(
            matches!(answer.status(), 400 | 403 | 421),
            "{host}: {}",
            answer.status()
        );
        assert!(!answer.text().contains("billing"));
    }
    for (origin, fine) in [
        (format!("http://{}", fusebox.admin), true),
        ("http://evil.example".to_owned(), false),
        ("null".to_owned(), false),
        (format!("https://evil.example:{port}"), false),
    ] {
        for ask in [Ask::get("/agents"), Ask::new("POST", "/-/reload").body(b"")] {
            let answer = fusebox.admin(&ask.header("origin", &origin)).await;
            assert_eq!(answer.status() == 403, !fine, "{origin}: {}", answer.status());
        }
    }
    // What a form of a web page could send.
    let form = Ask::new("POST", "/-/reload")
        .header("content-type", "text/plain")
        .body(b"{}");
    assert_eq!(fusebox.admin(&form).await.status(), 415);
}

#[tokio::test]
async fn beyond_loopback_there_is_a_token() {
    let upstream = Upstream::start(|_| Reply::json(ANSWER)).await;
    let config = Config::new(&upstream).with("admin:\n  listen: 127.0.0.1:0\n  token: ${ADMIN_TOKEN}\n");
    let directory = tempfile::tempdir().unwrap();
    let fusebox = Fusebox::start_in(directory, &config, &[("ADMIN_TOKEN", "tok-123456")]).await;
    for probe in ["/livez", "/readyz", "/healthz"] {
        assert_eq!(
            fusebox.admin(&Ask::get(probe)).await.status(),
            200,
            "{probe} is open"
        );
    }
    for path in ["/status", "/agents", "/incidents", "/rules", "/no/such/path"] {
        let answer = fusebox.admin(&Ask::get(path)).await;
        assert_eq!(answer.status(), 401, "{path}");
        assert!(answer.header("www-authenticate").is_some(), "{path}");
        for wrong in [
            "Bearer tok-12345",
            "Bearer tok-1234567",
            "Basic tok-123456",
            "tok-123456",
        ] {
            assert_eq!(
                fusebox
                    .admin(&Ask::get(path).header("authorization", wrong))
                    .await
                    .status(),
                401,
                "{path} {wrong}"
            );
        }
    }
    let right = Ask::get("/status").header("authorization", "Bearer tok-123456");
    assert_eq!(fusebox.admin(&right).await.status(), 200);
    assert_eq!(
        fusebox
            .admin(&Ask::new("POST", "/-/reload").body(b""))
            .await
            .status(),
        401
    );
    assert!(!fusebox.log_text().contains("tok-123456"));

    // Beyond loopback it is required.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("fusebox.yaml");
    let config = Config::new(&upstream).with("admin:\n  listen: 0.0.0.0:0\n");
    std::fs::write(&path, config.text(directory.path())).unwrap();
    let output =
        crate::support::fusebox::finished(crate::support::fusebox::program().arg("check").arg(&path));
    assert_eq!(output.status.code(), Some(2));
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("token"), "{said}");
}

#[tokio::test]
async fn the_admin_api_is_not_on_the_agents_side() {
    let (upstream, fusebox) = traffic().await;
    let before = upstream.count();
    assert_eq!(
        fusebox.ask(&Ask::get("/status")).await.text(),
        ANSWER,
        "passed on like everything else"
    );
    assert_eq!(upstream.count(), before + 1);
    // And the other way round: no traffic is forwarded from the admin side.
    let answer = fusebox.admin(&Ask::post("/v1/chat/completions", "{}")).await;
    assert_eq!(answer.status(), 404);
    assert_eq!(upstream.count(), before + 1);
}

#[tokio::test]
async fn readiness_ends_with_the_drain() {
    let (_upstream, fusebox) = traffic().await;
    let mut slow = fusebox.client().await;
    slow.write(b"POST /v1/files HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n")
        .await
        .unwrap();
    let mut admin = Client::connect(&fusebox.admin).await;
    let probe = Ask::get("/readyz").header("host", &fusebox.admin);
    assert_eq!(admin.ask(&probe).await.status(), 200);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    fusebox.signal("TERM");
    eventually("not ready any more", async || {
        let mut admin = Client::connect(&fusebox.admin).await;
        admin.send(&probe).await;
        admin.try_answer().await.filter(|a| a.status() == 503)
    })
    .await;
}
