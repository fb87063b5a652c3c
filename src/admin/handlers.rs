//! What each endpoint does: ask the driver, show the answer.

use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, StatusCode};
use tokio::time::timeout;

use super::body::{Body, By};
use super::error::Problem;
use super::view;
use crate::control::handle::{AgentView, Handle, Unavailable};
use crate::incident::record::RuleStatus;

/// How long the driver has for an answer.
const DRIVER_DEADLINE: Duration = Duration::from_secs(5);
/// How long it has when a probe asks: probes are impatient themselves.
const PROBE_DEADLINE: Duration = Duration::from_millis(800);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

pub(super) type Answer<T> = Result<Json<T>, Problem>;
pub(super) type Id = Result<Path<String>, PathRejection>;

pub(super) async fn livez() -> &'static str {
    "ok"
}

pub(super) async fn readyz(State(handle): State<Handle>) -> Result<&'static str, Problem> {
    if handle.is_ready() {
        return Ok("ok");
    }
    Err(Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "not_ready",
        "new requests are not taken",
        "fusebox is starting or draining",
    ))
}

pub(super) async fn healthz(State(handle): State<Handle>) -> Result<Response, Problem> {
    match timeout(PROBE_DEADLINE, handle.status()).await {
        Ok(Ok(status)) => {
            let word = if status.degraded.is_empty() {
                "ok"
            } else {
                "degraded"
            };
            let body = serde_json::json!({"status": word, "reasons": status.degraded});
            Ok(Json(body).into_response())
        }
        Ok(Err(Unavailable)) => Err(unhealthy("the engine is gone")),
        Err(_) => Err(unhealthy("the engine did not answer in time")),
    }
}

fn unhealthy(reason: &'static str) -> Problem {
    Problem::from(Unavailable).because(reason)
}

pub(super) async fn metrics(State(handle): State<Handle>) -> Response {
    with_type(OPENMETRICS, handle.metrics_text())
}

pub(super) async fn status(State(handle): State<Handle>, headers: HeaderMap) -> Result<Response, Problem> {
    let status = in_time(handle.status()).await?;
    if !wants_text(&headers) {
        return Ok(Json(status).into_response());
    }
    let agents = in_time(handle.agents()).await?;
    let incidents = in_time(handle.incidents()).await?;
    Ok(with_type(TEXT, view::screen(&status, &agents, &incidents)))
}

pub(super) async fn agents(State(handle): State<Handle>) -> Answer<Vec<AgentView>> {
    let mut agents = in_time(handle.agents()).await?;
    agents.sort_by(|a, b| a.agent.cmp(&b.agent));
    Ok(Json(agents))
}

pub(super) async fn agent(State(handle): State<Handle>, id: Id) -> Answer<AgentView> {
    let id = path(id)?;
    let agents = in_time(handle.agents()).await?;
    agents
        .into_iter()
        .find(|a| a.agent == id)
        .map(Json)
        .ok_or_else(|| Problem::not_found("agent", &id, "/agents"))
}

pub(super) async fn rules(State(handle): State<Handle>) -> Answer<Vec<RuleStatus>> {
    Ok(Json(in_time(handle.rules()).await?))
}

pub(super) async fn reload(State(handle): State<Handle>, _: Body<By>) -> Result<Response, Problem> {
    let report = handle.reload().await?;
    let status = if report.ok {
        StatusCode::OK
    } else {
        StatusCode::UNPROCESSABLE_ENTITY
    };
    Ok((status, Json(report)).into_response())
}

pub(super) async fn in_time<T>(asked: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Problem> {
    match timeout(DRIVER_DEADLINE, asked).await {
        Ok(answered) => Ok(answered?),
        Err(_) => Err(Unavailable.into()),
    }
}

pub(super) fn with_type(kind: &'static str, body: String) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
}

pub(super) fn path(id: Id) -> Result<String, Problem> {
    match id {
        Ok(Path(id)) => Ok(id),
        Err(_) => Err(Problem::bad_parameter(
            "id",
            "cannot be read",
            "UTF-8, percent-encoded",
        )),
    }
}

/// Text is for those who ask for it by name and do not ask for JSON as well.
fn wants_text(headers: &HeaderMap) -> bool {
    let mut text = false;
    for value in headers.get_all(ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let refused = parts.any(|p| {
                p.strip_prefix("q=")
                    .and_then(|q| q.parse::<f32>().ok())
                    .is_some_and(|q| q <= 0.0)
            });
            if refused {
                continue;
            }
            if kind.eq_ignore_ascii_case("application/json") {
                return false;
            }
            text |= kind.eq_ignore_ascii_case("text/plain");
        }
    }
    text
}

/// The one parameter that a query may have.
pub(super) fn only_parameter(
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    name: &str,
) -> Result<Option<String>, Problem> {
    let Ok(Query(pairs)) = query else {
        return Err(Problem::bad_parameter("?", "the query cannot be read", name));
    };
    let mut found = None;
    for (given, value) in pairs {
        if given != name {
            return Err(Problem::bad_parameter(&given, "is not known", name));
        }
        if found.replace(value).is_some() {
            return Err(Problem::bad_parameter(
                name,
                "is given more than once",
                "each parameter once",
            ));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_for_those_who_ask_for_it() {
        let table = [
            ("text/plain", true),
            ("Text/Plain; charset=utf-8", true),
            ("text/html, text/plain;q=0.5", true),
            ("*/*", false),
            ("application/json", false),
            ("application/json, text/plain", false),
            ("text/plain;q=0", false),
            ("text/plain, application/json;q=0", true),
            ("", false),
        ];
        for (accept, want) in table {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(wants_text(&headers), want, "{accept}");
        }
        assert!(!wants_text(&HeaderMap::new()));
    }
}
