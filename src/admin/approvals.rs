//! Questions to humans: the list, one of them, and the ways to answer it.

use std::collections::HashSet;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode};
use schemars::JsonSchema;
use serde::Serialize;

use super::api::{Api, Caller, Right, is_name, via};
use super::body::{Body, ByReason, Form};
use super::error::Problem;
use super::handlers::{Answer, Id, in_time, only_parameter, path};
use super::{history, page};
use crate::control::handle::Handle;
use crate::incident::input::{NotActed, OperatorAct};
use crate::incident::record::{ApprovalRecord, ApprovalState};
use crate::types::ids::ApprovalId;

/// Questions that are shown.
const MOST: usize = 1_000;
/// Longest reason, in bytes.
const MAX_REASON: usize = 2_000;

/// A question to a human, as it is shown.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ApprovalView {
    /// The question.
    #[serde(flatten)]
    record: ApprovalRecord,
    /// The page on which it is answered; only for those who may answer, while it is open, and where `external_url` is
    /// set.
    link: Option<String>,
}

impl ApprovalView {
    fn new(record: ApprovalRecord, handle: &Handle, caller: &Caller) -> Self {
        let shown = caller.may_act() && record.state == ApprovalState::Needed;
        Self {
            link: shown.then(|| handle.links().approval(&record.id)).flatten(),
            record,
        }
    }
}

pub(super) async fn list(
    State(handle): State<Handle>,
    Extension(caller): Extension<Caller>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Answer<Vec<ApprovalView>> {
    let state = only_parameter(query, "state")?;
    if let Some(word) = &state
        && !STATES.iter().any(|s| s.name() == word)
    {
        let words: Vec<&str> = STATES.iter().map(|s| s.name()).collect();
        return Err(Problem::bad_parameter("state", "is no state", &words.join(", ")));
    }
    let mut records = in_time(handle.look(|engine, _| engine.approvals())).await?;
    // What is open is in memory.
    if state.as_deref() != Some(ApprovalState::Needed.name()) {
        let known: HashSet<ApprovalId> = records.iter().map(|r| r.id.clone()).collect();
        let older = history::approvals(&handle).await?;
        records.extend(older.into_iter().filter(|r| !known.contains(&r.id)));
    }
    records.retain(|r| state.as_deref().is_none_or(|s| s == r.state.name()));
    records.sort_by(|a, b| {
        let closed = |r: &ApprovalRecord| r.state != ApprovalState::Needed;
        (closed(a), b.requested, &b.id).cmp(&(closed(b), a.requested, &a.id))
    });
    records.truncate(MOST);
    let views = records
        .into_iter()
        .map(|r| ApprovalView::new(r, &handle, &caller))
        .collect();
    Ok(Json(views))
}

const STATES: [ApprovalState; 5] = [
    ApprovalState::Needed,
    ApprovalState::Given,
    ApprovalState::Denied,
    ApprovalState::Expired,
    ApprovalState::Superseded,
];

/// One question: as JSON, or as a page for whoever came by its link. Looking never decides.
pub(super) async fn one(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
) -> Result<Response, Problem> {
    let id = path(id)?;
    if let Right::Link(asked) = &caller.right {
        return shown(&api, asked, known_user(&api, &headers).as_deref(), None).await;
    }
    let record = find(&api.handle, &id).await?;
    Ok(Json(ApprovalView::new(record, &api.handle, &caller)).into_response())
}

pub(super) async fn approve(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(order): Body<ByReason>,
) -> Answer<ApprovalView> {
    decide(&api, &caller, &headers, id, true, order).await
}

pub(super) async fn deny(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(order): Body<ByReason>,
) -> Answer<ApprovalView> {
    decide(&api, &caller, &headers, id, false, order).await
}

async fn decide(
    api: &Api,
    caller: &Caller,
    headers: &HeaderMap,
    id: Id,
    approve: bool,
    ByReason { by, reason }: ByReason,
) -> Answer<ApprovalView> {
    let id = path(id)?;
    let way = via(headers);
    let act = OperatorAct::Decide {
        approval: id.as_str().into(),
        approve,
        by: caller.named(by.as_deref())?,
        via: way.to_owned(),
        reason,
    };
    match in_time(api.handle.operate(act, way)).await? {
        Ok(_) => {}
        Err(NotActed::Unknown { .. }) => {
            // One that memory has let go is decided.
            let record = find(&api.handle, &id).await?;
            return Err(NotActed::Over {
                what: "approval",
                id,
                state: record.state.name(),
            }
            .into());
        }
        Err(why) => return Err(why.into()),
    }
    let record = find(&api.handle, &id).await?;
    Ok(Json(ApprovalView::new(record, &api.handle, caller)))
}

/// The answer of whoever came by the link.
pub(super) async fn answer(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Form(fields): Form,
) -> Result<Response, Problem> {
    let Right::Link(id) = &caller.right else {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "bad_link",
            "a form is answered by the link of the question only",
            "POST /approvals/{id}/approve or /deny with a token",
        ));
    };
    let field = |name: &str| {
        let value = fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.trim());
        value.filter(|v| !v.is_empty())
    };
    let user = known_user(&api, &headers);
    let approve = match field("decision") {
        Some("approve") => true,
        Some("deny") => false,
        _ => return shown(&api, id, user.as_deref(), Some("Choose one of the two buttons.")).await,
    };
    let by = match (&user, field("name")) {
        (Some(user), _) => user.clone(),
        (None, Some(name)) if is_name(name) => format!("unverified link holder {name}"),
        _ => return shown(&api, id, None, Some("Write your name: it goes into the record.")).await,
    };
    let reason = field("reason").filter(|r| r.len() <= MAX_REASON);
    let act = OperatorAct::Decide {
        approval: id.clone(),
        approve,
        by,
        via: "link".to_owned(),
        reason: reason.map(ToOwned::to_owned),
    };
    let from = caller
        .peer
        .map_or_else(|| "link".to_owned(), |ip| format!("link from {ip}"));
    let said = match in_time(api.handle.operate(act, &from)).await? {
        Ok(_) if approve => "Approved: the step is taken now.".to_owned(),
        Ok(_) => "Denied: the step is not taken.".to_owned(),
        Err(why) => format!("Your answer changes nothing: {why}."),
    };
    shown(&api, id, user.as_deref(), Some(&said)).await
}

/// The page of a question.
async fn shown(
    api: &Api,
    id: &ApprovalId,
    user: Option<&str>,
    said: Option<&str>,
) -> Result<Response, Problem> {
    let record = find(&api.handle, id.as_str()).await?;
    let incident = super::incidents::find(&api.handle, record.incident.as_str())
        .await
        .ok();
    Ok(page::question(&record, incident.as_ref(), user, said))
}

/// Who a trusted proxy says is calling.
fn known_user(api: &Api, headers: &HeaderMap) -> Option<String> {
    let name = headers.get(api.user_header.as_deref()?)?.to_str().ok()?.trim();
    is_name(name).then(|| name.to_owned())
}

async fn find(handle: &Handle, id: &str) -> Result<ApprovalRecord, Problem> {
    let asked = ApprovalId::from(id);
    let known = in_time(handle.look(move |engine, _| engine.approval(&asked))).await?;
    if let Some(record) = known {
        return Ok(record);
    }
    let older = history::approvals(handle).await?;
    older
        .into_iter()
        .find(|r| r.id.as_str() == id)
        .ok_or_else(|| Problem::not_found("approval", id, "/approvals"))
}
