//! What each endpoint does: ask the driver, show the answer.

use std::error::Error;
use std::future::Future;
use std::time::Duration;

use axum::Json;
use axum::body::{Bytes, to_bytes};
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use tokio::time::timeout;

use super::error::Problem;
use super::view;
use crate::control::handle::{AgentView, Handle, Unavailable};
use crate::incident::input::OperatorAct;
use crate::incident::record::{IncidentRecord, IncidentState, RuleStatus};
use crate::types::ids::IncidentId;

/// How long the driver has for an answer.
const DRIVER_DEADLINE: Duration = Duration::from_secs(5);
/// How long it has when a probe asks: probes are impatient themselves.
const PROBE_DEADLINE: Duration = Duration::from_millis(800);
/// Largest body of a request, in bytes.
const MAX_BODY: usize = 1 << 20;
/// Longest name of an operator, in bytes.
const MAX_BY: usize = 200;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

type Answer<T> = Result<Json<T>, Problem>;
type Id = Result<Path<String>, PathRejection>;

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

pub(super) async fn incidents(
    State(handle): State<Handle>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Answer<Vec<IncidentRecord>> {
    let filter = Filter::parse(query)?;
    let mut incidents = in_time(handle.incidents()).await?;
    incidents.retain(|i| filter.takes(i));
    Ok(Json(incidents))
}

pub(super) async fn incident(State(handle): State<Handle>, id: Id) -> Answer<IncidentRecord> {
    let id = path(id)?;
    find(&handle, &id).await.map(Json)
}

pub(super) async fn rules(State(handle): State<Handle>) -> Answer<Vec<RuleStatus>> {
    Ok(Json(in_time(handle.rules()).await?))
}

pub(super) async fn resolve(State(handle): State<Handle>, id: Id, order: Order) -> Answer<IncidentRecord> {
    let id = path(id)?;
    let by = order.by()?;
    let act = OperatorAct::Resolve {
        incident: IncidentId::from(id.as_str()),
        by,
    };
    let acted = in_time(handle.operate(act, "api")).await?;
    let incident = find(&handle, &id).await?;
    if acted.is_ok() {
        return Ok(Json(incident));
    }
    Err(Problem::new(
        StatusCode::CONFLICT,
        "not_open",
        format!("incident `{id}` is over already"),
        "nothing is left to do",
    ))
}

pub(super) async fn reload(State(handle): State<Handle>, _: Order) -> Result<Response, Problem> {
    let report = handle.reload().await?;
    let status = if report.ok {
        StatusCode::OK
    } else {
        StatusCode::UNPROCESSABLE_ENTITY
    };
    Ok((status, Json(report)).into_response())
}

async fn find(handle: &Handle, id: &str) -> Result<IncidentRecord, Problem> {
    in_time(handle.incident(IncidentId::from(id)))
        .await?
        .ok_or_else(|| Problem::not_found("incident", id, "/incidents"))
}

async fn in_time<T>(asked: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Problem> {
    match timeout(DRIVER_DEADLINE, asked).await {
        Ok(answered) => Ok(answered?),
        Err(_) => Err(Unavailable.into()),
    }
}

fn with_type(kind: &'static str, body: String) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response()
}

fn path(id: Id) -> Result<String, Problem> {
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

/// Which incidents are asked for.
#[derive(Debug, Default)]
struct Filter {
    state: Option<IncidentState>,
    agent: Option<String>,
    rule: Option<String>,
}

impl Filter {
    const NAMES: &str = "state, agent, rule";

    fn parse(query: Result<Query<Vec<(String, String)>>, QueryRejection>) -> Result<Self, Problem> {
        let Ok(Query(pairs)) = query else {
            return Err(Problem::bad_parameter(
                "?",
                "the query cannot be read",
                Self::NAMES,
            ));
        };
        let mut filter = Self::default();
        for (name, value) in pairs {
            let given_twice = match name.as_str() {
                "state" => filter.state.replace(state(&value)?).is_some(),
                "agent" => filter.agent.replace(value).is_some(),
                "rule" => filter.rule.replace(value).is_some(),
                _ => return Err(Problem::bad_parameter(&name, "is not known", Self::NAMES)),
            };
            if given_twice {
                return Err(Problem::bad_parameter(
                    &name,
                    "is given more than once",
                    "each parameter once",
                ));
            }
        }
        Ok(filter)
    }

    fn takes(&self, incident: &IncidentRecord) -> bool {
        self.state.is_none_or(|s| s == incident.state)
            && self
                .agent
                .as_deref()
                .is_none_or(|a| incident.agent.as_ref().is_some_and(|i| i.as_str() == a))
            && self.rule.as_deref().is_none_or(|r| incident.rule.as_str() == r)
    }
}

fn state(word: &str) -> Result<IncidentState, Problem> {
    match word {
        "open" => Ok(IncidentState::Open),
        "recovering" => Ok(IncidentState::Recovering),
        "resolved" => Ok(IncidentState::Resolved),
        _ => Err(Problem::bad_parameter(
            "state",
            &format!("`{word}` is no state"),
            "open, recovering, resolved",
        )),
    }
}

/// The body of a request that changes something: empty, or JSON that says so. A form of a web page can say neither
/// `application/json` nor ask for leave to.
pub(super) struct Order(Bytes);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct By {
    by: Option<String>,
}

impl Order {
    /// Who gives the order.
    fn by(&self) -> Result<String, Problem> {
        const HINT: &str = "send {\"by\": \"your name\"}, or nothing";
        if self.0.is_empty() {
            return Ok("operator".to_owned());
        }
        let By { by } = serde_json::from_slice(&self.0)
            .map_err(|e| Problem::bad_body(format!("the body cannot be read: {e}"), HINT))?;
        let by = by.unwrap_or_else(|| "operator".to_owned());
        if by.trim().is_empty() || by.len() > MAX_BY || by.contains(char::is_control) {
            return Err(Problem::bad_body(
                format!("`by` must be a name of 1 to {MAX_BY} bytes without control characters"),
                HINT,
            ));
        }
        Ok(by.trim().to_owned())
    }
}

impl<S: Sync> FromRequest<S> for Order {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let headers = request.headers();
        let kind = headers.get(CONTENT_TYPE).cloned();
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse::<u64>().ok())
            .unwrap_or(0);
        if kind.as_ref().is_some_and(|k| !is_json(k)) {
            return Err(wrong_type());
        }
        if announced > MAX_BODY as u64 {
            return Err(too_large());
        }
        let body = to_bytes(request.into_body(), MAX_BODY).await.map_err(|e| {
            if e.source()
                .is_some_and(|s| s.is::<http_body_util::LengthLimitError>())
            {
                too_large()
            } else {
                Problem::bad_body("the body broke off", "send all of it")
            }
        })?;
        if kind.is_none() && !body.is_empty() {
            return Err(wrong_type());
        }
        Ok(Self(body))
    }
}

fn is_json(kind: &HeaderValue) -> bool {
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

fn wrong_type() -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "not_json",
        "the body is not said to be JSON",
        "send `content-type: application/json`, or no body at all",
    )
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!("the body is larger than {MAX_BODY} bytes"),
        "send less",
    )
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
