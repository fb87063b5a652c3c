//! Humans in the loop: responses asked for, questions answered by link, agents stopped; across ends of the process.

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::client::Ask;
use crate::support::fusebox::{Config, Fusebox, finished, program};
use crate::support::http1::Message;
use crate::support::upstream::{Reply, Upstream};
use crate::support::{eventually, soon};

const ANSWER: &str = "{\"model\":\"m\",\"choices\":[{\"message\":{\"content\":\"x\"},\"finish_reason\":\"stop\"}],\
    \"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2,\"total_tokens\":7}}";

/// The request of the mission, word for word.
const MISSION: &str = r#"{"incident_type": "token_overrun",
 "affected_agents": ["agent-prod-01", "agent-prod-02"],
 "remediation": {"action": "scale_down", "new_model": "gpt-4-mini", "batch_size": 5},
 "notification_webhook": "https://yourslack.webhook"}"#;

const FORM: &str = "application/x-www-form-urlencoded";

async fn upstream() -> Upstream {
    Upstream::start(|_| Reply::json(ANSWER)).await
}

fn config(upstream: &Upstream, keep: &TempDir) -> Config {
    Config::new(upstream)
        .with("external_url: https://fusebox.example/ops\n")
        .with(&format!("ledger:\n  path: {}\n", keep.path().join("ledger.db").display()))
        .with(
            "actions:\n  ask_quickly:\n    steps:\n      - downgrade_model: {to: small}\n        approval: required\n        approval_timeout: 10s\n",
        )
}

fn chat(agent: &str) -> Ask {
    Ask::post(
        "/v1/chat/completions",
        "{\"model\":\"gpt-4\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}",
    )
    .header("x-agent-id", agent)
}

async fn respond(fusebox: &Fusebox, body: &Value) -> Value {
    let answer = fusebox
        .admin(&Ask::post("/agents/incident-response", body.to_string()))
        .await;
    assert_eq!(answer.status(), 202, "{}", answer.text());
    answer.json()
}

/// Asks for a model switch of `agent`; the path of its link.
async fn question(fusebox: &Fusebox, agent: &str, action: &str) -> (String, String) {
    let body = json!({"incident_type": "test", "affected_agents": [agent],
        "remediation": {"action": action, "new_model": "small"}});
    let answer = respond(fusebox, &body).await;
    let asked = &answer["plans"][0]["steps"][0]["approval"];
    let link = asked["link"]
        .as_str()
        .unwrap_or_else(|| panic!("no link in {answer}"));
    let path = link.strip_prefix("https://fusebox.example/ops").expect("our URL");
    (asked["id"].as_str().unwrap().to_owned(), path.to_owned())
}

async fn click(fusebox: &Fusebox, path: &str, form: &str) -> Message {
    // As a browser behind the proxy of `external_url` sends it.
    let ask = Ask::new("POST", path)
        .header("content-type", FORM)
        .header("origin", "https://fusebox.example")
        .body(form.as_bytes());
    fusebox.admin(&ask).await
}

async fn state(fusebox: &Fusebox, id: &str) -> Value {
    fusebox.admin_json(&format!("/approvals/{id}")).await["state"].clone()
}

async fn orders(fusebox: &Fusebox) -> Vec<String> {
    let leases = fusebox.admin_json("/leases").await;
    let all = leases.as_array().unwrap();
    all.iter()
        .map(|l| l["order"]["kind"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn the_request_of_the_mission_is_answered() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let fusebox = Fusebox::start(&config(&upstream, &keep)).await;
    let answer = fusebox
        .admin(&Ask::post("/agents/incident-response", MISSION).header("idempotency-key", "one"))
        .await;
    assert_eq!(answer.status(), 202, "{}", answer.text());
    let first = answer.json();
    println!("{}", answer.text());
    assert_eq!(first["incidents"].as_array().unwrap().len(), 2);
    for (n, agent) in ["agent-prod-01", "agent-prod-02"].iter().enumerate() {
        let plan = &first["plans"][n];
        assert_eq!(plan["subject"], *agent);
        let steps: Vec<(&str, &str)> = plan["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| (s["step"].as_str().unwrap(), s["outcome"].as_str().unwrap()))
            .collect();
        assert_eq!(
            steps[..2],
            [("reduce_batch", "applied"), ("downgrade_model", "waiting")],
            "{plan}"
        );
        assert!(plan["steps"][1]["approval"]["link"].is_string(), "{plan}");
        assert_eq!(first["agents"][n]["state"], "standing_order");
        assert_eq!(first["agents"][n]["directives"][0]["order"]["max_inputs"], 5);
    }
    // The same again is the same; another body under the same key is not.
    let again = fusebox
        .admin(&Ask::post("/agents/incident-response", MISSION).header("idempotency-key", "one"))
        .await;
    assert_eq!((again.status(), again.json()), (202, first.clone()));
    assert_eq!(again.header("idempotency-replayed").as_deref(), Some("true"));
    let other = Ask::post("/agents/incident-response", "{}").header("idempotency-key", "one");
    assert_eq!(fusebox.admin(&other).await.status(), 422);
    assert_eq!(
        fusebox.admin_json("/incidents").await.as_array().unwrap().len(),
        2
    );

    // It works for others of the same kind, and everything that is wrong is told.
    let bad = json!({"incident_typ": "x", "affected_agents": ["", "b"], "fleet": 1,
        "remediation": {"action": "scale_dwon", "batch_size": 0},
        "notification_webhook": "http://169.254.169.254/latest"});
    let answer = fusebox
        .admin(&Ask::post("/agents/incident-response", bad.to_string()))
        .await;
    assert_eq!(answer.status(), 422);
    let problems = answer.json()["problems"].clone();
    let at: Vec<&str> = problems
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["pointer"].as_str().unwrap())
        .collect();
    for place in [
        "/incident_typ",
        "/incident_type",
        "/affected_agents/0",
        "/fleet",
        "/remediation/action",
        "/remediation/batch_size",
        "/notification_webhook",
    ] {
        assert!(at.contains(&place), "{place} in {problems}");
    }
}

#[tokio::test]
async fn looking_at_a_link_decides_nothing_and_answering_does() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let fusebox = Fusebox::start(&config(&upstream, &keep)).await;
    let (id, path) = question(&fusebox, "a<b>", "downgrade_model").await;
    for _ in 0..3 {
        let page = fusebox.admin(&Ask::get(&path)).await;
        assert_eq!(page.status(), 200);
        let text = page.text();
        assert!(text.contains("a&lt;b&gt;") && !text.contains("a<b>"), "{text}");
        assert!(
            text.contains("model switched to small") && text.contains("the step is not taken"),
            "{text}"
        );
        let policy = page.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        assert!(!text.contains("<script"));
    }
    assert_eq!(state(&fusebox, &id).await, "needed");
    let nameless = click(&fusebox, &path, "decision=approve&name=").await;
    assert!(nameless.text().contains("Write your name"), "{}", nameless.text());
    let foreign = Ask::new("POST", &path)
        .header("content-type", FORM)
        .header("origin", "https://evil.example")
        .body(b"decision=approve&name=eve");
    assert_eq!(fusebox.admin(&foreign).await.status(), 403);
    assert_eq!(state(&fusebox, &id).await, "needed");
    assert!(orders(&fusebox).await.is_empty());

    let done = click(&fusebox, &path, "decision=approve&name=Ada+L.&reason=go").await;
    assert!(
        done.text().contains("Approved: the step is taken now."),
        "{}",
        done.text()
    );
    assert_eq!(orders(&fusebox).await, ["downgrade_model"]);
    let record = fusebox.admin_json(&format!("/approvals/{id}")).await;
    assert_eq!(
        (&record["state"], &record["by"], &record["via"], &record["link"]),
        (
            &json!("given"),
            &json!("unverified link holder Ada L."),
            &json!("link"),
            &Value::Null
        )
    );
    assert_eq!(fusebox.ask(&chat("a<b>")).await.status(), 200);
    let seen = upstream.seen().last().expect("a request").message.json();
    assert_eq!(seen["model"], "small");
    // Once is enough.
    let late = click(&fusebox, &path, "decision=deny&name=Eve").await;
    assert!(late.text().contains("changes nothing"), "{}", late.text());
    assert_eq!(state(&fusebox, &id).await, "given");
    let audit = fusebox.admin_json("/audit").await;
    let acts = audit.as_array().unwrap();
    assert!(
        acts.iter()
            .any(|a| a["what"] == "approve"
                && a["via"].as_str().is_some_and(|v| v.starts_with("link from 127."))),
        "{audit}"
    );
}

#[tokio::test]
async fn denied_and_expired_are_two_things() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let fusebox = Fusebox::start(&config(&upstream, &keep)).await;
    let (denied, _) = question(&fusebox, "a", "downgrade_model").await;
    let (expired, path) = question(&fusebox, "b", "ask_quickly").await;
    let no = Ask::post(
        &format!("/approvals/{denied}/deny"),
        "{\"by\":\"ann\",\"reason\":\"no\"}",
    );
    assert_eq!(fusebox.admin(&no).await.json()["state"], "denied");
    assert_eq!(fusebox.admin(&no).await.status(), 409);
    eventually("the question expires", async || {
        (state(&fusebox, &expired).await == "expired").then_some(())
    })
    .await;
    assert!(
        click(&fusebox, &path, "decision=approve&name=x")
            .await
            .text()
            .contains("changes nothing")
    );
    assert!(orders(&fusebox).await.is_empty());
    let listed = fusebox.admin_json("/approvals?state=expired").await;
    assert_eq!(listed[0]["id"], json!(expired));
    let shown = finished(program().args(["approvals", "list", "--admin", &fusebox.admin]));
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains(&denied) && shown.contains("expired"), "{shown}");
}

#[tokio::test]
async fn of_a_hundred_clicks_one_counts() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let fusebox = std::sync::Arc::new(Fusebox::start(&config(&upstream, &keep)).await);
    let (id, path) = question(&fusebox, "a", "downgrade_model").await;
    let mut clicks = tokio::task::JoinSet::new();
    for n in 0..100 {
        let (fusebox, path) = (std::sync::Arc::clone(&fusebox), path.clone());
        let decision = if n % 2 == 0 { "approve" } else { "deny" };
        clicks.spawn(async move {
            // Beyond so many at once, the others are asked to try again.
            loop {
                let answer = click(&fusebox, &path, &format!("decision={decision}&name=p{n}")).await;
                if answer.status() == 503 {
                    continue;
                }
                let text = answer.text();
                return (
                    text.contains("Approved:") || text.contains("Denied:"),
                    text.contains("changes nothing"),
                );
            }
        });
    }
    let answers = soon("a hundred answers", clicks.join_all()).await;
    assert_eq!(answers.iter().filter(|a| a.0).count(), 1);
    assert_eq!(answers.iter().filter(|a| a.1).count(), 99);
    assert!(["given", "denied"].contains(&state(&fusebox, &id).await.as_str().unwrap()));
}

#[tokio::test]
async fn a_question_and_its_link_outlive_the_process() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let config = config(&upstream, &keep);
    let fusebox = Fusebox::start(&config).await;
    let (id, path) = question(&fusebox, "a", "downgrade_model").await;
    drop(fusebox);
    let fusebox = Fusebox::start(&config).await;
    assert_eq!(state(&fusebox, &id).await, "needed");
    assert_eq!(fusebox.admin(&Ask::get(&path)).await.status(), 200);
    let done = click(&fusebox, &path, "decision=approve&name=Ada").await;
    assert!(done.text().contains("Approved:"), "{}", done.text());
    assert_eq!(orders(&fusebox).await, ["downgrade_model"]);
}

#[tokio::test]
async fn what_is_stopped_stays_stopped() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let config = config(&upstream, &keep);
    let fusebox = Fusebox::start(&config).await;
    // Even while the brake is on: it is a human who orders it.
    let brake = Ask::post("/brake", "{\"on\":true,\"by\":\"ann\"}");
    assert_eq!(fusebox.admin(&brake).await.json()["on"], true);
    let order = Ask::post(
        "/contain",
        "{\"agent\":\"bad\",\"reason\":\"it spends\",\"by\":\"ann\"}",
    );
    let answer = fusebox.admin(&order).await;
    assert_eq!(answer.status(), 200, "{}", answer.text());
    let lease = answer.json()["leases"][0]["lease"]
        .as_str()
        .expect("a lease")
        .to_owned();
    assert_eq!(orders(&fusebox).await, ["contain"]);
    drop(fusebox);
    let fusebox = Fusebox::start(&config).await;
    assert_eq!(orders(&fusebox).await, ["contain"]);
    assert_eq!(fusebox.admin_json("/leases").await[0]["subject"]["agent"], "bad");
    assert_eq!(fusebox.admin_json("/brake").await["on"], true);
    let lifted = finished(program().args(["leases", "lift", &lease, "--admin", &fusebox.admin]));
    assert!(lifted.status.success(), "{lifted:?}");
    assert!(orders(&fusebox).await.is_empty());
    assert_eq!(fusebox.ask(&chat("bad")).await.status(), 200);
    for (body, at) in [
        ("{\"agent\":\"a\",\"fleet\":true,\"reason\":\"x\"}", "/agent"),
        ("{\"agent\":\"a\"}", "/reason"),
    ] {
        let refused = fusebox.admin(&Ask::post("/contain", body)).await;
        assert_eq!(refused.status(), 422);
        assert_eq!(refused.json()["problems"][0]["pointer"], at);
    }
}

/// Reads the stream of events until `until` is in it.
async fn events(fusebox: &Fusebox, last: Option<&str>, until: &str) -> String {
    let mut stream = TcpStream::connect(&fusebox.admin).await.unwrap();
    let resume = last.map_or(String::new(), |id| format!("last-event-id: {id}\r\n"));
    let head = format!("GET /events HTTP/1.1\r\nhost: localhost\r\n{resume}\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon(&format!("{until} among the events"), async {
        let mut some = [0; 4096];
        while !text.contains(until) {
            let read = stream.read(&mut some).await.unwrap();
            assert!(read > 0, "the stream ended: {text}");
            text.push_str(&String::from_utf8_lossy(&some[..read]));
        }
    })
    .await;
    text
}

#[tokio::test]
async fn events_go_on_where_their_reader_was() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let fusebox = Fusebox::start(&config(&upstream, &keep)).await;
    for on in [true, false, true] {
        let order = json!({"on": on, "by": "ann"}).to_string();
        assert_eq!(fusebox.admin(&Ask::post("/brake", order)).await.status(), 200);
    }
    let all = events(&fusebox, Some("0"), "id: 3").await;
    assert!(
        all.contains("content-type: text/event-stream") && all.contains("event: brake"),
        "{all}"
    );
    let rest = events(&fusebox, Some("2"), "id: 3").await;
    assert!(!rest.contains("id: 2") && !rest.contains("event: gap"), "{rest}");
    // A number of another process: everything that is kept, and word of the gap.
    let other = events(&fusebox, Some("4000"), "id: 3").await;
    assert!(other.contains("event: gap") && other.contains("id: 1"), "{other}");
    let output = finished(program().args([
        "events",
        "--after",
        "0",
        "--count",
        "2",
        "--admin",
        &fusebox.admin,
    ]));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        (output.status.code(), text.lines().count()),
        (Some(0), 2),
        "{text}"
    );
}

#[tokio::test]
async fn the_command_line_does_it_all() {
    let (upstream, keep) = (upstream().await, tempfile::tempdir().unwrap());
    let fusebox = Fusebox::start(&config(&upstream, &keep)).await;
    let file = keep.path().join("mission.json");
    std::fs::write(&file, MISSION).unwrap();
    let run = |args: &[&str]| {
        let output = finished(program().args(args).args(["--admin", &fusebox.admin]));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {output:?}");
        said
    };
    let said = run(&["respond", &file.display().to_string()]);
    assert!(
        said.contains("reduce_batch") && said.contains("agent agent-prod-02: standing_order"),
        "{said}"
    );
    let listed: Value = serde_json::from_str(&run(&["incidents", "list", "--output", "json"])).unwrap();
    let id = listed[0]["id"].as_str().unwrap();
    assert!(run(&["incidents", "show", id]).contains("downgrade_model"));
    assert!(run(&["incidents", "acknowledge", id, "--by", "ann"]).contains("open"));
    assert_eq!(
        fusebox.admin_json(&format!("/incidents/{id}")).await["acknowledged_by"],
        "ann"
    );
    assert!(run(&["incidents", "postmortem", id]).starts_with("# "));
    assert!(run(&["incidents", "false-alarm", id, "--reason", "a test"]).contains("resolved"));
    let made = run(&[
        "silences",
        "add",
        "2h",
        "--agent",
        "agent-*",
        "--comment",
        "night",
    ]);
    let silence = made.split(' ').next().unwrap();
    assert!(run(&["silences", "list"]).contains(silence));
    run(&["silences", "end", silence]);
    assert!(run(&["brake", "on", "--reason", "x"]).contains("is on"));
    assert!(run(&["brake", "off"]).contains("is off"));
    assert!(run(&["contain", "worse", "--reason", "x"]).contains("is contained"));
    assert!(run(&["leases", "list"]).contains("contain"));
    let pages = fusebox.admin(&Ask::get("/incidents?limit=1")).await;
    let next = pages.header("link").expect("another page");
    let next = next.split(['<', '>']).nth(1).unwrap().to_owned();
    assert_eq!(fusebox.admin_json(&next).await.as_array().unwrap().len(), 1);
}
