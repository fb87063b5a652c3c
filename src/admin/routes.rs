//! Which path leads where, and what every request passes first.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{BoxError, Json, Router};
use http::header::{CACHE_CONTROL, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Uri};
use serde::Serialize;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;

use super::auth::{Gate, Via};
use super::error::Problem;
use super::handlers;
use crate::control::handle::Handle;

/// Requests under way at once, probes apart.
const MAX_REQUESTS: usize = 64;
/// How long a request may take, its body included.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One way to call the API.
#[derive(Debug, Serialize)]
pub(super) struct Endpoint {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    what: &'static str,
}

/// Everything there is, as `GET /` lists it.
pub(super) const ENDPOINTS: &[Endpoint] = &[
    endpoint("GET", "/livez", "whether the process answers"),
    endpoint("GET", "/readyz", "whether new requests are taken"),
    endpoint("GET", "/healthz", "whether the engine answers"),
    endpoint("GET", "/metrics", "metrics, as OpenMetrics text"),
    endpoint(
        "GET",
        "/status",
        "the whole state in short; `accept: text/plain` for a screen",
    ),
    endpoint("GET", "/agents", "all agents"),
    endpoint("GET", "/agents/{id}", "one agent"),
    endpoint(
        "GET",
        "/incidents",
        "all incidents, open ones first; ?state= ?agent= ?rule=",
    ),
    endpoint("GET", "/incidents/{id}", "one incident with its timeline"),
    endpoint("GET", "/rules", "all rules and what they see"),
    endpoint(
        "POST",
        "/incidents/{id}/resolve",
        "close an incident and lift what it ordered; {\"by\": \"name\"}",
    ),
    endpoint("POST", "/-/reload", "read the configuration again"),
];

const fn endpoint(method: &'static str, path: &'static str, what: &'static str) -> Endpoint {
    Endpoint { method, path, what }
}

/// The whole API.
pub(super) fn router(gate: Gate, handle: Handle) -> Router {
    // Probes stand apart: they must be answered however busy the rest is.
    let probes = Router::new()
        .route("/livez", get(handlers::livez))
        .route("/readyz", get(handlers::readyz))
        .route("/healthz", get(handlers::healthz));
    let bounded = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(refused))
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(MAX_REQUESTS))
        .timeout(TIMEOUT);
    let rest = Router::new()
        .route("/", get(index))
        .route("/metrics", get(handlers::metrics))
        .route("/status", get(handlers::status))
        .route("/agents", get(handlers::agents))
        .route("/agents/{id}", get(handlers::agent))
        .route("/incidents", get(handlers::incidents))
        .route("/incidents/{id}", get(handlers::incident))
        .route("/incidents/{id}/resolve", post(handlers::resolve))
        .route("/rules", get(handlers::rules))
        .route("/-/reload", post(handlers::reload))
        .layer(bounded);
    probes
        .merge(rest)
        .fallback(async |uri: Uri| Problem::no_such_path(&uri))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| Problem::wrong_method(&method, &uri))
        .with_state(handle)
        .layer(from_fn_with_state(Arc::new(gate), guard))
}

/// Before and after everything else: may it come in, and how may the answer be used.
async fn guard(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Result<Response, Infallible> {
    // Without knowledge of the connection, only loopback names and configured ones are ours.
    let via = request.extensions().get().copied().unwrap_or(Via::Tcp(None));
    let (parts, body) = request.into_parts();
    let mut response = match gate.check(&parts, via) {
        Ok(()) => next.run(Request::from_parts(parts, body)).await,
        Err(problem) => problem.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn refused(error: BoxError) -> Problem {
    if error.is::<tower::timeout::error::Elapsed>() {
        Problem::too_slow()
    } else {
        Problem::overloaded()
    }
}

async fn index() -> Json<serde_json::Value> {
    Json(serde_json::json!({
        "name": "fusebox",
        "version": env!("CARGO_PKG_VERSION"),
        "endpoints": ENDPOINTS,
    }))
}
