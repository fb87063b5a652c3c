//! Every route of the document, called in every way in which it must not be, and in the one in which it may.

use super::*;
use crate::admin::routes::endpoints;
use crate::config::{AdminToken, Role, TokenDigest};

/// A path with its names filled in.
fn filled(path: &str) -> String {
    path.replace("/agents/{id}", "/agents/quiet")
        .replace("{target}", "ops")
        .replace("{id}", "inc-1")
}

/// Every method and path of the document, and the statuses that it names.
async fn documented(s: &Served, headers: &[&str]) -> Vec<(String, String, Vec<u16>, bool)> {
    let document = s.send("GET", "/openapi.json", headers, "").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let statuses = operation["responses"].as_object().unwrap();
            let statuses = statuses.keys().map(|s| s.parse().unwrap()).collect();
            let open = operation.get("security").is_none();
            all.push((method.to_uppercase(), path.clone(), statuses, open));
        }
    }
    all
}

#[tokio::test]
async fn the_document_is_what_is_there() {
    let s = served(loopback(), true).await;
    let index = s.get("/").await.json();
    let mut listed: Vec<(String, String)> = index["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            ["method", "path"]
                .map(|k| e[k].as_str().unwrap().to_owned())
                .into()
        })
        .collect();
    let documented = documented(&s, &[]).await;
    let mut told: Vec<(String, String)> = documented.iter().map(|d| (d.0.clone(), d.1.clone())).collect();
    listed.sort();
    told.sort();
    assert_eq!(told, listed);
    assert_eq!(told.len(), endpoints().len());
    for (method, path, statuses, _) in documented.iter().filter(|d| d.1 != "/events") {
        let got = s.send(method, &filled(path), &[], "").await;
        assert!(
            statuses.contains(&got.status),
            "{method} {path} is not said to give {got:?}"
        );
        if got.status >= 400 {
            assert_ne!(got.code(), "no_such_path", "{method} {path}");
        }
        assert_ne!(got.status, 405, "{method} {path}");
        if method == "GET" && !path.contains('{') && path != "/audit" {
            assert_eq!(got.status, 200, "{path}: {got:?}");
        }
        assert_eq!(got.header("cache-control"), Some("no-store"));
        assert_eq!(got.header("x-content-type-options"), Some("nosniff"));
    }
}

#[tokio::test]
async fn every_reference_of_the_document_leads_somewhere() {
    let s = served(loopback(), true).await;
    let document = s.get("/openapi.json").await.json();
    let mut todo = vec![&document];
    let mut found = 0;
    while let Some(value) = todo.pop() {
        match value {
            Value::Object(members) => {
                if let Some(to) = members.get("$ref").and_then(Value::as_str) {
                    found += 1;
                    assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
                }
                todo.extend(members.values());
            }
            Value::Array(items) => todo.extend(items),
            _ => {}
        }
    }
    assert!(found > 100, "{found}");
    assert!(
        document
            .pointer("/components/schemas/IncidentRecord/properties/plan")
            .is_some()
    );
}

#[tokio::test]
async fn no_route_lets_anyone_slip_in() {
    let mut w = loopback();
    w.open_metrics = false;
    w.tokens = [("see", Role::Viewer), ("do", Role::Operator)]
        .map(|(name, role)| AdminToken {
            name: name.to_owned(),
            role,
            digest: TokenDigest::of(name),
        })
        .into();
    let s = served(w, true).await;
    let (see, act) = ("authorization: Bearer see", "authorization: Bearer do");
    let json = "content-type: application/json";
    let documented = documented(&s, &[see]).await;
    let paths: Vec<&String> = documented.iter().map(|d| &d.1).collect();
    assert!(documented.len() > 30, "{}", documented.len());
    for (method, path, _, open) in &documented {
        let at = filled(path);
        let (changes, body) = (method != "GET", if method == "GET" { "" } else { "{}" });
        let link = path == "/approvals/{id}" && changes;
        let nobody = s.send(method, &at, &[json], body).await;
        assert_eq!(
            nobody.status == 401,
            !open,
            "{method} {path} without a token: {nobody:?}"
        );
        let wrong = s
            .send(method, &at, &[json, "authorization: Bearer dO"], body)
            .await;
        assert_eq!(
            wrong.status == 401,
            !open,
            "{method} {path} with a wrong token: {wrong:?}"
        );
        for evil in ["host: evil.example", "host: localhost.evil.example"] {
            let got = s.send(method, &at, &[json, act, evil], body).await;
            assert_eq!(
                (got.status, got.code().as_str()),
                (421, "host_not_allowed"),
                "{method} {path}"
            );
        }
        for evil in ["origin: http://evil.example", "origin: null"] {
            let got = s.send(method, &at, &[json, act, evil], body).await;
            assert_eq!(
                (got.status, got.code().as_str()),
                (403, "origin_not_allowed"),
                "{method} {path}"
            );
        }
        if !changes {
            continue;
        }
        let viewer = s.send(method, &at, &[json, see], body).await;
        assert_eq!(
            (viewer.status, viewer.code().as_str()),
            (403, "not_an_operator"),
            "{method} {path}"
        );
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
        ] {
            if link && kind == "application/x-www-form-urlencoded" {
                let got = s
                    .send(
                        method,
                        &at,
                        &[&format!("content-type: {kind}"), act],
                        "decision=approve&name=a",
                    )
                    .await;
                assert_eq!((got.status, got.code().as_str()), (403, "bad_link"));
                continue;
            }
            let got = s
                .send(method, &at, &[&format!("content-type: {kind}"), act], "a=b")
                .await;
            assert_eq!(got.status, 415, "{method} {path} with {kind}: {got:?}");
        }
        if !paths
            .iter()
            .any(|p| *p == path && documented.iter().any(|d| d.0 == "GET" && d.1 == **p))
        {
            let got = s.send("GET", &at, &[act], "").await;
            // Some of these look like the name of something: then there is none of that name.
            assert!(matches!(got.status, 404 | 405), "GET {path}: {got:?}");
        }
    }
}

#[tokio::test]
async fn a_link_opens_one_question_and_nothing_else() {
    let mut w = loopback();
    w.token = Some(Secret::new("right"));
    let s = served(w, true).await;
    let link = s.handle.links().approval(&"apr-1".into()).unwrap();
    let path = link.strip_prefix("https://fusebox.example").unwrap();
    // Genuine; but the engine of these tests has asked nothing.
    let got = s.get(path).await;
    assert_eq!((got.status, got.code().as_str()), (404, "not_found"));
    let form = "content-type: application/x-www-form-urlencoded";
    let token = path.split("t=").nth(1).unwrap();
    for (method, path) in [
        ("GET", format!("/approvals/apr-2?t={token}")),
        ("GET", "/approvals/apr-1?t=".to_owned()),
        ("POST", format!("/approvals/apr-2?t={token}")),
    ] {
        let got = s.send(method, &path, &[form], "").await;
        assert_eq!(got.status, 403, "{method} {path}: {got:?}");
        assert!(got.header("content-type").unwrap().starts_with("text/html"));
        assert!(
            got.header("content-security-policy")
                .unwrap()
                .starts_with("default-src 'none'")
        );
        assert!(!got.body.contains("<script"), "{got:?}");
    }
    for (method, path) in [
        ("GET", format!("/incidents?t={token}")),
        ("GET", format!("/approvals?t={token}")),
        ("POST", format!("/approvals/apr-1/approve?t={token}")),
        ("POST", format!("/brake?t={token}")),
        ("DELETE", format!("/approvals/apr-1?t={token}")),
    ] {
        let got = s.send(method, &path, &[], "").await;
        assert_eq!(got.status, 401, "{method} {path}: {got:?}");
    }
}

#[tokio::test]
async fn attempts_are_limited() {
    let mut w = loopback();
    w.token = Some(Secret::new("right"));
    let s = served(w, true).await;
    let mut last = 0;
    for _ in 0..60 {
        last = s
            .send("GET", "/agents", &["authorization: Bearer wrong"], "")
            .await
            .status;
        assert!(matches!(last, 401 | 429));
    }
    assert_eq!(last, 429);
    let told = s
        .send("GET", "/agents", &["authorization: Bearer wrong"], "")
        .await;
    assert_eq!(
        (told.code().as_str(), told.header("retry-after")),
        ("too_many_attempts", Some("5"))
    );
    assert_eq!(s.get("/livez").await.status, 200);
}
