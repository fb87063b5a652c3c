//! What an operator orders beside incidents: silences, leases, the brake, stopping an agent, trials of alert targets.

use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use http::{HeaderMap, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::{Api, Caller, via};
use super::body::{Body, By, Length};
use super::error::{Fault, Problem};
use super::handlers::{Answer, Id, in_time, only_parameter, path};
use super::respond::{PlanView, named, plan_view};
use super::{history, plan};
use crate::control::handle::{Handle, Unavailable};
use crate::incident::input::{Acted, OperatorAct, Respond};
use crate::incident::record::{
    ApprovalState, BrakeRecord, IncidentRecord, LeaseRecord, SilenceRecord, VersionRecord,
};
use crate::incident::rule::{Approval, Step, StepKind};
use crate::incident::silence::Matcher;
use crate::types::directive::{Directive, Subject};
use crate::types::ids::{IncidentId, LeaseId, SilenceId};
use crate::types::notice::{Fact, Notice, NoticeEvent, Severity};
use crate::types::time::Wall;

/// The type of an incident that an operator opens by stopping something.
const CONTAIN: &str = "contain";
/// How long what was stopped stays so where the request does not say.
const CONTAINED: Duration = Duration::from_secs(86_400);
/// Acts that are shown where the request does not say.
const ACTS: usize = 100;

/// What is to be kept quiet.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["length"]))]
pub(super) struct NewSilence {
    /// What it covers; empty covers everything.
    matcher: Matcher,
    /// With `true` nothing is opened for what it covers; with `false` only notices are kept back.
    maintenance: bool,
    /// When it begins; now where it is left out.
    starts: Option<Wall>,
    /// How long it lasts, up to 90 days.
    length: Option<Length>,
    /// Who makes it.
    #[schemars(length(max = 200))]
    by: Option<String>,
    /// Why.
    #[schemars(length(max = 2000))]
    comment: Option<String>,
}

/// Whether automation is to stop.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["on"]))]
pub(super) struct BrakeOrder {
    /// On: every step waits for a human.
    on: Option<bool>,
    /// Who orders it.
    #[schemars(length(max = 200))]
    by: Option<String>,
    /// Why.
    #[schemars(length(max = 2000))]
    reason: Option<String>,
}

/// Whether automation is stopped.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct BrakeView {
    /// By an operator.
    #[serde(flatten)]
    record: BrakeRecord,
    /// By the configuration, whatever operators say.
    by_configuration: bool,
}

/// What is to be stopped: exactly one of an agent, one of its executions or versions, or the fleet.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["reason"]))]
pub(super) struct ContainOrder {
    /// The agent.
    agent: Option<String>,
    /// Only this execution of it.
    execution: Option<String>,
    /// Only this version of it.
    version: Option<String>,
    /// Every agent.
    fleet: bool,
    /// Why.
    #[schemars(length(min = 1, max = 2000))]
    reason: Option<String>,
    /// How long at most; a day where it is left out.
    lease: Option<Length>,
    /// Who orders it.
    #[schemars(length(max = 200))]
    by: Option<String>,
}

/// What was stopped.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ContainView {
    /// The incident that owns the order.
    incident: IncidentId,
    /// Whom it binds.
    subject: String,
    /// What is in force: DELETE /leases/{id} lifts it.
    leases: Vec<Directive>,
    /// The steps.
    plan: PlanView,
}

/// What an alert target is sent.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct SentView {
    /// The target.
    target: String,
    /// The notices that were queued; GET /status tells what becomes of them.
    queued: Vec<String>,
}

/// An act of an operator.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ActView {
    /// When.
    at: Wall,
    /// Who.
    who: String,
    /// By which way.
    via: String,
    /// What was done.
    what: String,
    /// More about it, as JSON where it is.
    detail: serde_json::Value,
}

pub(super) async fn silences(State(handle): State<Handle>) -> Answer<Vec<SilenceRecord>> {
    Ok(Json(
        in_time(handle.look(|engine, now| engine.silences(now))).await?,
    ))
}

pub(super) async fn silence(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Body(new): Body<NewSilence>,
) -> Result<(StatusCode, Json<SilenceRecord>), Problem> {
    let mut faults = Vec::new();
    let length = match &new.length {
        Some(length) => length.within(1..=90 * 86_400, "/length", &mut faults),
        None => None,
    };
    let by = caller.named(new.by.as_deref())?;
    let Some(length) = length else {
        return Err(Problem::faulty(faults));
    };
    let act = OperatorAct::Silence {
        matcher: new.matcher,
        maintenance: new.maintenance,
        starts: new.starts,
        length,
        by,
        comment: new.comment.unwrap_or_default(),
    };
    let Acted::Silence(id) = in_time(api.handle.operate(act, via(&headers))).await?? else {
        return Err(Unavailable.into());
    };
    let made = in_time(api.handle.look(move |engine, _| engine.silence(&id))).await?;
    let made = made.ok_or_else(|| Problem::from(Unavailable))?;
    Ok((StatusCode::CREATED, Json(made)))
}

pub(super) async fn one_silence(State(handle): State<Handle>, id: Id) -> Answer<SilenceRecord> {
    let id = path(id)?;
    let asked = SilenceId::from(id.as_str());
    in_time(handle.look(move |engine, _| engine.silence(&asked)))
        .await?
        .map(Json)
        .ok_or_else(|| Problem::not_found("silence", &id, "/silences"))
}

pub(super) async fn end_silence(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(By { by }): Body<By>,
) -> Answer<SilenceRecord> {
    let id = SilenceId::from(path(id)?);
    let act = OperatorAct::EndSilence {
        silence: id.clone(),
        by: caller.named(by.as_deref())?,
    };
    in_time(api.handle.operate(act, via(&headers))).await??;
    let ended = in_time(api.handle.look(move |engine, _| engine.silence(&id))).await?;
    ended.map(Json).ok_or_else(|| Problem::from(Unavailable))
}

pub(super) async fn leases(State(handle): State<Handle>) -> Answer<Vec<LeaseRecord>> {
    Ok(Json(in_time(handle.look(|engine, _| engine.leases())).await?))
}

pub(super) async fn lift(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(By { by }): Body<By>,
) -> Answer<LeaseRecord> {
    let id = path(id)?;
    let lease = LeaseId::from(id.as_str());
    let asked = lease.clone();
    let find = move |engine: &crate::incident::engine::Engine, _| {
        engine.leases().into_iter().find(|l| l.directive.lease == asked)
    };
    let lifted = in_time(api.handle.look(find)).await?;
    let lifted = lifted.ok_or_else(|| Problem::not_found("lease", &id, "/leases"))?;
    let act = OperatorAct::Lift {
        lease,
        by: caller.named(by.as_deref())?,
    };
    in_time(api.handle.operate(act, via(&headers))).await??;
    Ok(Json(lifted))
}

pub(super) async fn brake(State(handle): State<Handle>) -> Answer<BrakeView> {
    let view = in_time(handle.look(|engine, _| BrakeView {
        record: engine.brake().clone(),
        by_configuration: engine.rulebook().brake,
    }));
    Ok(Json(view.await?))
}

pub(super) async fn set_brake(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Body(order): Body<BrakeOrder>,
) -> Answer<BrakeView> {
    let act = OperatorAct::Brake {
        on: order.on.unwrap_or_default(),
        by: caller.named(order.by.as_deref())?,
        reason: order.reason,
    };
    in_time(api.handle.operate(act, via(&headers))).await??;
    brake(State(api.handle)).await
}

/// Stops somebody at once. Whoever orders it has agreed to it, so that nobody is asked again.
pub(super) async fn contain(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Body(order): Body<ContainOrder>,
) -> Answer<ContainView> {
    let mut faults = Vec::new();
    let lease = match &order.lease {
        Some(lease) => lease.within(plan::LEASES, "/lease", &mut faults),
        None => Some(CONTAINED),
    };
    let subject = whom(&order, &mut faults);
    let by = caller.named(order.by.as_deref())?;
    let (Some(lease), Some(subject)) = (lease, subject) else {
        return Err(Problem::faulty(faults));
    };
    let stop = Step {
        approval: Approval::Automatic,
        ..Step::new(StepKind::Contain, lease)
    };
    let tell = Step::new(StepKind::Notify { targets: Vec::new() }, lease);
    let way = via(&headers);
    let respond = Respond {
        incident_type: CONTAIN.to_owned(),
        subjects: vec![subject],
        action: CONTAIN.into(),
        steps: vec![stop, tell],
        targets: Vec::new(),
        by: by.clone(),
        reason: order.reason.clone(),
    };
    let acted = in_time(api.handle.operate(OperatorAct::Respond(respond), way)).await??;
    let id = match acted {
        Acted::Incidents(ids) => ids.into_iter().next(),
        _ => None,
    };
    let id = id.ok_or_else(|| Problem::from(Unavailable))?;
    let mut record = opened(&api.handle, &id).await?;
    // The brake, or the limit on automation, asks about every step; this one was decided by a human.
    let open = record.approvals.iter().find(|a| a.state == ApprovalState::Needed);
    if let Some(asked) = open {
        let act = OperatorAct::Decide {
            approval: asked.id.clone(),
            approve: true,
            by,
            via: way.to_owned(),
            reason: order.reason,
        };
        in_time(api.handle.operate(act, way)).await??;
        record = opened(&api.handle, &id).await?;
    }
    let plan = plan_view(&api.handle, &record, true);
    Ok(Json(ContainView {
        incident: id,
        subject: record.subject,
        leases: record.directives,
        plan,
    }))
}

async fn opened(handle: &Handle, id: &IncidentId) -> Result<IncidentRecord, Problem> {
    in_time(handle.incident(id.clone()))
        .await?
        .ok_or_else(|| Problem::from(Unavailable))
}

fn whom(order: &ContainOrder, faults: &mut Vec<Fault>) -> Option<Subject> {
    let ContainOrder {
        agent,
        execution,
        version,
        fleet,
        ..
    } = order;
    let mut check = |name: &Option<String>, at| name.as_ref().is_none_or(|n| named(n, at, faults));
    let good = check(agent, "/agent") & check(execution, "/execution") & check(version, "/version");
    let name = |n: &String| n.trim().to_owned();
    let subject = match (agent, execution, version, fleet) {
        (Some(agent), None, None, false) => Some(Subject::Agent(name(agent).into())),
        (Some(agent), Some(execution), None, false) => Some(Subject::Execution {
            agent: name(agent).into(),
            execution: name(execution).into(),
        }),
        (Some(agent), None, Some(version), false) => Some(Subject::Version {
            agent: name(agent).into(),
            version: name(version).into(),
        }),
        (None, None, None, true) => Some(Subject::Fleet),
        _ => None,
    };
    if subject.is_none() {
        faults.push(Fault::new(
            "/agent",
            "does not say whom",
            "give `agent`, or `agent` with `execution` or `version`, or `fleet: true` alone",
        ));
    }
    subject.filter(|_| good)
}

pub(super) async fn versions(
    State(handle): State<Handle>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Answer<Vec<VersionRecord>> {
    let agent = only_parameter(query, "agent")?;
    let seen = in_time(handle.look(|engine, now| engine.agents(now))).await?;
    let mut all: Vec<VersionRecord> = seen
        .into_iter()
        .filter(|a| agent.as_deref().is_none_or(|wanted| wanted == a.agent.as_str()))
        .flat_map(|a| a.versions)
        .collect();
    let known: HashSet<(String, String)> = all
        .iter()
        .map(|v| (v.agent.to_string(), v.version.to_string()))
        .collect();
    let older = history::versions(&handle, agent).await?;
    all.extend(
        older
            .into_iter()
            .filter(|v| !known.contains(&(v.agent.to_string(), v.version.to_string()))),
    );
    Ok(Json(all))
}

pub(super) async fn audit(
    State(handle): State<Handle>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Answer<Vec<ActView>> {
    let limit = match only_parameter(query, "limit")?.map(|l| l.parse::<usize>()) {
        None => ACTS,
        Some(Ok(limit)) if (1..=1000).contains(&limit) => limit,
        Some(_) => {
            return Err(Problem::bad_parameter(
                "limit",
                "is no number of acts",
                "1 to 1000",
            ));
        }
    };
    let rows = history::read(&handle, move |reader| reader.audit(limit)).await?;
    let rows = rows.ok_or_else(Problem::no_ledger)?;
    let view = |row: crate::store::AuditRow| ActView {
        at: row.at,
        who: row.who,
        via: row.via,
        what: row.what,
        detail: serde_json::from_str(&row.detail).unwrap_or(serde_json::Value::String(row.detail)),
    };
    Ok(Json(rows.into_iter().map(view).collect()))
}

/// Sends a trial notice to one target, by the way that every notice goes.
pub(super) async fn try_target(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    id: Id,
    Body(By { by }): Body<By>,
) -> Result<(StatusCode, Json<SentView>), Problem> {
    let target = path(id)?;
    let by = caller.named(by.as_deref())?;
    let alerts = api.handle.alerts().ok_or_else(|| no_target(&target))?;
    if !alerts.status().iter().any(|t| t.name == target) {
        return Err(no_target(&target));
    }
    let notice = trial(&target, &by, api.clock.wall());
    let deliveries = alerts.route(&notice);
    let queued: Vec<String> = deliveries.iter().map(|d| d.id.clone()).collect();
    if queued.is_empty() {
        return Err(Problem::new(
            StatusCode::CONFLICT,
            "not_wanted",
            format!("`{target}` wants no notice of this kind"),
            "its `severities` or `events` leave trials out: `fusebox notify test` sends one all the same",
        ));
    }
    alerts.deliver(deliveries);
    Ok((StatusCode::ACCEPTED, Json(SentView { target, queued })))
}

/// Sends again what was given up.
pub(super) async fn retry_target(
    State(handle): State<Handle>,
    id: Id,
    Body(By { by: _ }): Body<By>,
) -> Result<(StatusCode, Json<SentView>), Problem> {
    let target = path(id)?;
    let revived = handle.alerts().and_then(|alerts| alerts.retry_dead(&target));
    let revived = revived.ok_or_else(|| no_target(&target))?;
    let queued = revived.iter().map(|d| d.id.clone()).collect();
    Ok((StatusCode::ACCEPTED, Json(SentView { target, queued })))
}

fn no_target(target: &str) -> Problem {
    Problem::not_found("alert target", target, "/status")
}

fn trial(target: &str, by: &str, now: Wall) -> Notice {
    let id = format!("test-{}", now.unix_millis());
    Notice {
        id: format!("{id}-{}", NoticeEvent::Test.wire_name()),
        event: NoticeEvent::Test,
        incident: id.into(),
        rule: "fusebox_test".into(),
        severity: Severity::Critical,
        subject: "fusebox".to_owned(),
        title: "This is a test: alerts of fusebox arrive here".to_owned(),
        facts: vec![Fact {
            name: "Sent by".to_owned(),
            value: by.to_owned(),
        }],
        at: now,
        targets: vec![target.to_owned()],
        agents: Vec::new(),
        link: None,
        approval: None,
        remediation: None,
        level: 0,
        acknowledged_by: None,
    }
}
