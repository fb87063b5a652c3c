//! Which path leads where, how it is described, and what every request passes first.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::error_handling::HandleErrorLayer;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use axum::{BoxError, Json, Router};
use http::header::{CACHE_CONTROL, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Uri};
use serde_json::Value;
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;

use super::api::Api;
use super::auth::{Gate, Via, link_of};
use super::body::{By, ByReason};
use super::error::Problem;
use super::openapi::{Endpoint, Shape, Who, document, either, index, of};
use super::orders::{ActView, BrakeOrder, BrakeView, ContainOrder, ContainView, NewSilence, SentView};
use super::respond::{IncidentResponse, ResponseView};
use super::{approvals, events, handlers, incidents, orders, page, respond};
use crate::control::handle::{AgentView, ReloadReport, StatusView};
use crate::incident::postmortem::PostMortem;
use crate::incident::record::{
    IncidentRecord, LeaseRecord, RuleStatus, SilenceRecord, TimelineEntry, VersionRecord,
};

/// Requests under way at once, probes apart.
const MAX_REQUESTS: usize = 64;
/// How long a request may take, its body included.
const TIMEOUT: Duration = Duration::from_secs(30);

const MARKDOWN: &str = "text/markdown";
const PLAIN: Shape = Shape::Text("text/plain");
const HTML: &str = "text/html";

/// Routes, each with its description.
pub(super) struct Table {
    router: Router<Api>,
    endpoints: Vec<Endpoint>,
}

impl Table {
    fn new() -> Self {
        Self {
            router: Router::new(),
            endpoints: Vec::new(),
        }
    }

    fn add<H: Handler<T, Api>, T: 'static>(mut self, endpoint: Endpoint, handler: H) -> Self {
        let method = match endpoint.method {
            "POST" => MethodFilter::POST,
            "DELETE" => MethodFilter::DELETE,
            // HEAD is answered as GET without the body.
            _ => MethodFilter::GET.or(MethodFilter::HEAD),
        };
        self.router = self.router.route(endpoint.path, on(method, handler));
        self.endpoints.push(endpoint);
        self
    }
}

fn get(path: &'static str, what: &'static str) -> Endpoint {
    Endpoint::new("GET", path, what, Who::Viewer)
}

fn probe(path: &'static str, what: &'static str) -> Endpoint {
    Endpoint::new("GET", path, what, Who::Anybody)
}

fn post(path: &'static str, what: &'static str) -> Endpoint {
    Endpoint::new("POST", path, what, Who::Operator)
}

fn delete(path: &'static str, what: &'static str) -> Endpoint {
    Endpoint::new("DELETE", path, what, Who::Operator)
}

/// Probes stand apart: they must be answered however busy the rest is.
fn probes() -> Table {
    Table::new()
        .add(
            probe("/livez", "whether the process answers").gives(200, "it does", PLAIN),
            handlers::livez,
        )
        .add(
            probe("/readyz", "whether new requests are taken").gives(200, "they are", PLAIN),
            handlers::readyz,
        )
        .add(
            probe("/healthz", "whether the engine answers").gives(200, "it does", of::<Value>()),
            handlers::healthz,
        )
}

/// What there is to see.
fn views(table: Table) -> Table {
    table
        .add(
            get("/metrics", "metrics, as OpenMetrics text").gives(
                200,
                "all of them",
                Shape::Text("application/openmetrics-text"),
            ),
            handlers::metrics,
        )
        .add(
            get(
                "/status",
                "the whole state in short; `accept: text/plain` for a screen",
            )
            .gives(200, "the state", either::<StatusView>("text/plain")),
            handlers::status,
        )
        .add(
            get("/agents", "all agents").gives(200, "by name", of::<Vec<AgentView>>()),
            handlers::agents,
        )
        .add(
            get(
                "/agents/{id}",
                "one agent: its versions, incidents and what it must obey",
            )
            .gives(200, "the agent", of::<AgentView>()),
            handlers::agent,
        )
        .add(
            get("/rules", "all rules and what they see").gives(200, "all of them", of::<Vec<RuleStatus>>()),
            handlers::rules,
        )
        .add(
            get("/versions", "versions of agents")
                .query(&[("agent", "Only of this one.")])
                .gives(200, "all of them", of::<Vec<VersionRecord>>()),
            orders::versions,
        )
        .add(
            get("/leases", "everything that is in force").gives(200, "all of it", of::<Vec<LeaseRecord>>()),
            orders::leases,
        )
        .add(
            get("/brake", "whether automation is stopped").gives(200, "whether", of::<BrakeView>()),
            orders::brake,
        )
        .add(
            get("/audit", "what operators did, newest first; kept in the ledger")
                .query(&[("limit", "At most so many, 1 to 1000; 100 where it is left out.")])
                .gives(200, "their acts", of::<Vec<ActView>>())
                .refuses(&[(404, "there is no ledger")]),
            orders::audit,
        )
        .add(
            get(
                "/events",
                "what happens, as server-sent events; resumable by `Last-Event-ID`",
            )
            .query(&[(
                "after",
                "In place of the header: the number of the last event seen.",
            )])
            .gives(200, "events without end", Shape::Text("text/event-stream")),
            events::events,
        )
}

/// Incidents and questions.
fn cases(table: Table) -> Table {
    table
        .add(
            get("/incidents", "incidents, newest first, open ones of a page before others; `link` names the next page")
                .query(&[
                    ("state", "open, recovering, resolved"),
                    ("agent", "Only about this agent."),
                    ("rule", "Only of this rule."),
                    ("since", "Only those opened then or later, as 2026-11-25T12:00:00Z."),
                    ("limit", "At most so many, 1 to 1000; 100 where it is left out."),
                    ("cursor", "From the `link` of the page before."),
                ])
                .gives(200, "a page of them", of::<Vec<IncidentRecord>>()),
            incidents::list,
        )
        .add(
            get("/incidents/{id}", "one incident").gives(200, "the incident", of::<IncidentRecord>()),
            incidents::one,
        )
        .add(
            get("/incidents/{id}/timeline", "everything that happened to an incident")
                .gives(200, "oldest first", of::<Vec<TimelineEntry>>()),
            incidents::timeline,
        )
        .add(
            get("/incidents/{id}/postmortem", "an incident for those who look back")
                .query(&[("format", "md or json; md where it is left out")])
                .gives(200, "the whole of it", either::<PostMortem>(MARKDOWN)),
            incidents::postmortem,
        )
        .add(
            decision("/incidents/{id}/acknowledge", "take charge of an incident", of::<By>()),
            incidents::acknowledge,
        )
        .add(
            decision("/incidents/{id}/escalate", "tell the next level of the on-call now", of::<By>()),
            incidents::escalate,
        )
        .add(
            decision("/incidents/{id}/resolve", "close an incident and lift what it ordered", of::<By>()),
            incidents::resolve,
        )
        .add(
            decision("/incidents/{id}/false-alarm", "close an incident: it was none", of::<ByReason>()),
            incidents::false_alarm,
        )
        .add(
            get("/approvals", "questions to humans, open ones first")
                .query(&[("state", "needed, given, denied, expired, superseded")])
                .gives(200, "all of them", of::<Vec<approvals::ApprovalView>>()),
            approvals::list,
        )
        .add(
            get("/approvals/{id}", "one question; with the token of its link (`t`), a page to answer it on. Looking never decides")
                .query(&[("t", "The token of the link, in place of a bearer token.")])
                .gives(200, "the question", either::<approvals::ApprovalView>(HTML)),
            approvals::one,
        )
        .add(
            Endpoint::new("POST", "/approvals/{id}", "the answer of the page of a link; the first one counts", Who::Link)
                .query(&[("t", "The token of the link.")])
                .takes(Shape::Text("application/x-www-form-urlencoded"))
                .gives(200, "the page with what came of it", Shape::Text(HTML)),
            approvals::answer,
        )
        .add(
            answering("/approvals/{id}/approve", "take the step that is asked about"),
            approvals::approve,
        )
        .add(
            answering("/approvals/{id}/deny", "leave the step that is asked about"),
            approvals::deny,
        )
}

fn decision(path: &'static str, what: &'static str, body: Shape) -> Endpoint {
    post(path, what)
        .takes(body)
        .gives(200, "the incident as it is now", of::<IncidentRecord>())
        .refuses(&[(409, "it is over already")])
}

fn answering(path: &'static str, what: &'static str) -> Endpoint {
    post(path, what)
        .takes(of::<ByReason>())
        .gives(200, "the question as it is now", of::<approvals::ApprovalView>())
        .refuses(&[(409, "it was decided already, or is void")])
}

/// What operators order.
fn acts(table: Table) -> Table {
    table
        .add(
            post(
                "/agents/incident-response",
                "respond to an incident that somebody found",
            )
            .takes(of::<IncidentResponse>())
            .gives(
                202,
                "what is done now, and what waits for a human",
                of::<ResponseView>(),
            )
            .refuses(&[(409, "a request with this Idempotency-Key is under way")]),
            respond::incident_response,
        )
        .add(
            post(
                "/contain",
                "stop an agent, an execution, a version or the fleet at once",
            )
            .takes(of::<ContainOrder>())
            .gives(200, "what is in force", of::<ContainView>()),
            orders::contain,
        )
        .add(
            delete("/leases/{id}", "lift what is in force before its time")
                .takes(of::<By>())
                .gives(200, "what was in force", of::<LeaseRecord>()),
            orders::lift,
        )
        .add(
            post("/brake", "stop automation, or let it go on")
                .takes(of::<BrakeOrder>())
                .gives(200, "as it is now", of::<BrakeView>()),
            orders::set_brake,
        )
        .add(
            get("/silences", "silences that are not over").gives(
                200,
                "all of them",
                of::<Vec<SilenceRecord>>(),
            ),
            orders::silences,
        )
        .add(
            post("/silences", "keep notices back, or open nothing, for a while")
                .takes(of::<NewSilence>())
                .gives(201, "the silence", of::<SilenceRecord>()),
            orders::silence,
        )
        .add(
            get("/silences/{id}", "one silence").gives(200, "the silence", of::<SilenceRecord>()),
            orders::one_silence,
        )
        .add(
            delete("/silences/{id}", "end a silence before its time")
                .takes(of::<By>())
                .gives(200, "the silence", of::<SilenceRecord>())
                .refuses(&[(409, "it is over already")]),
            orders::end_silence,
        )
        .add(
            post("/alerts/{target}/test", "send a trial notice to an alert target")
                .takes(of::<By>())
                .gives(202, "it is queued", of::<SentView>())
                .refuses(&[(409, "the target wants no trials")]),
            orders::try_target,
        )
        .add(
            post("/alerts/{target}/retry", "send again what was given up")
                .takes(of::<By>())
                .gives(202, "it is queued", of::<SentView>()),
            orders::retry_target,
        )
        .add(
            post("/-/reload", "read the configuration again")
                .takes(of::<By>())
                .gives(200, "the new one is in force", of::<ReloadReport>())
                .gives(422, "the old one stays", of::<ReloadReport>()),
            handlers::reload,
        )
}

/// Everything there is.
pub(super) fn endpoints() -> Vec<Endpoint> {
    let mut all = probes().endpoints;
    all.extend(rest().endpoints);
    all
}

fn rest() -> Table {
    let table = Table::new()
        .add(
            get("/", "what there is").gives(200, "all endpoints", of::<Value>()),
            async || Json(index(&endpoints())),
        )
        .add(
            get("/openapi.json", "this API, as OpenAPI 3.1").gives(200, "the document", of::<Value>()),
            async || Json(document(&endpoints())),
        );
    acts(cases(views(table)))
}

/// The whole API.
pub(super) fn router(gate: Gate, api: Api) -> Router {
    let bounded = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(refused))
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(MAX_REQUESTS))
        .timeout(TIMEOUT);
    probes()
        .router
        .merge(rest().router.layer(bounded))
        .fallback(async |uri: Uri| Problem::no_such_path(&uri))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| Problem::wrong_method(&method, &uri))
        .with_state(api)
        .layer(from_fn_with_state(Arc::new(gate), guard))
}

/// Before and after everything else: may it come in, and how may the answer be used.
async fn guard(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Result<Response, Infallible> {
    // Without knowledge of the connection, only loopback names and configured ones are ours.
    let unknown = Via::Tcp {
        local: None,
        peer: None,
    };
    let via = request.extensions().get().copied().unwrap_or(unknown);
    let (mut parts, body) = request.into_parts();
    let mut response = match gate.check(&parts, via) {
        Ok(caller) => {
            parts.extensions.insert(caller);
            next.run(Request::from_parts(parts, body)).await
        }
        // Whoever follows a link looks at a page.
        Err(problem) if link_of(&parts).is_some() => page::refused(&problem),
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
