//! `POST /agents/incident-response`: somebody found an incident and says what to do about it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::api::{Api, Caller, Known as Remembered, via};
use super::body::{Raw, Read, read};
use super::error::{Fault, Problem};
use super::handlers::in_time;
use super::plan::{Known, Planned, Remediation, plan};
use crate::control::handle::Handle;
use crate::incident::input::{Acted, OperatorAct, Respond};
use crate::incident::record::{AgentStatus, IncidentRecord, StepRecord, StepState};
use crate::types::directive::{Directive, Subject};
use crate::types::ids::{ApprovalId, IncidentId};
use crate::types::time::Wall;

/// Longest name of an agent, an execution or a version, in bytes.
const MAX_NAME: usize = 256;
/// Subjects of one request.
const MAX_SUBJECTS: usize = 1_000;
/// Longest `Idempotency-Key`, in bytes.
const MAX_KEY: usize = 255;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// An incident that somebody found, and what to do about it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["incident_type", "remediation"]))]
pub(super) struct IncidentResponse {
    /// The type of incident, in the words of whoever asks. Where it names a rule, or says what one measures (as
    /// `token_overrun`), the incident is followed by that rule's metric.
    #[schemars(length(min = 1, max = 100))]
    incident_type: Option<String>,
    /// The agents that it is about. One that was not seen yet is bound from its first request.
    #[schemars(length(min = 1, max = 1000))]
    affected_agents: Option<Vec<String>>,
    /// Single executions.
    #[schemars(length(max = 1000))]
    executions: Vec<ExecutionRef>,
    /// Single versions of agents.
    #[schemars(length(max = 1000))]
    versions: Vec<VersionRef>,
    /// Every agent.
    fleet: bool,
    /// What is to be done.
    remediation: Option<Remediation>,
    /// A URL that is told of it; only where `notification_webhooks` allows it.
    #[schemars(length(max = 2000))]
    notification_webhook: Option<String>,
    /// Why, for the record.
    #[schemars(length(max = 2000))]
    reason: Option<String>,
    /// Who asks, for the record.
    #[schemars(length(max = 200))]
    requested_by: Option<String>,
}

/// One run of an agent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExecutionRef {
    /// The agent.
    agent: String,
    /// Its execution.
    execution: String,
}

/// One version of an agent.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VersionRef {
    /// The agent.
    agent: String,
    /// Its version.
    version: String,
}

/// What came of an incident response.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ResponseView {
    /// As it was asked for.
    incident_type: String,
    /// As it was asked for.
    action: String,
    /// The incidents: one for each subject.
    incidents: Vec<IncidentId>,
    /// What is done for each of them.
    plans: Vec<PlanView>,
    /// Steps of the chain that are in no plan.
    left_out: Vec<LeftOut>,
    /// How each agent is now.
    agents: Vec<AgentState>,
    /// Where `notification_webhook` is told: its name among the alert targets.
    notification: Option<String>,
}

/// The plan of one incident.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct PlanView {
    /// The incident.
    pub(super) incident: IncidentId,
    /// Whom it binds.
    pub(super) subject: String,
    /// Its steps, in order.
    pub(super) steps: Vec<StepView>,
}

/// One step of a plan.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StepView {
    /// Its kind.
    step: String,
    /// In one word: `applied`, `told`, `waiting`, `later`, `skipped`.
    outcome: &'static str,
    /// In full.
    state: StepState,
    /// What it does.
    what: String,
    /// Why it is so.
    why: String,
    /// Until when it holds, where it is in force.
    until: Option<Wall>,
    /// The question to a human, where there is one.
    approval: Option<AskView>,
}

/// A question to a human.
#[derive(Debug, Serialize, JsonSchema)]
struct AskView {
    /// Its name.
    id: ApprovalId,
    /// When it is void.
    expires: Option<Wall>,
    /// What happens then: `deny`, `approve`, `keep`.
    on_timeout: Option<String>,
    /// The page on which it is answered, where `external_url` is set.
    link: Option<String>,
}

/// A step of the chain that is in no plan.
#[derive(Debug, Serialize, JsonSchema)]
struct LeftOut {
    /// Its kind.
    step: &'static str,
    /// Why.
    why: &'static str,
}

/// How an agent is now.
#[derive(Debug, Serialize, JsonSchema)]
struct AgentState {
    /// Its name.
    agent: String,
    /// `seen`, or `standing_order`: not seen yet, bound from its first request.
    state: &'static str,
    /// When it was seen last.
    last_seen: Option<Wall>,
    /// Over the last minute.
    requests_per_minute: Option<f64>,
    /// Over the last minute.
    tokens_per_minute: Option<f64>,
    /// What it must obey.
    directives: Vec<Directive>,
}

/// Everything that was checked.
struct Checked {
    respond: Respond,
    planned: Vec<(&'static str, &'static str)>,
    webhook: Option<String>,
}

pub(super) async fn incident_response(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Raw(body): Raw,
) -> Result<Response, Problem> {
    let Some(key) = key(&headers)? else {
        let answer = respond(&api, &caller, &headers, &body).await?;
        return Ok(accepted(answer));
    };
    // Keys of different callers are different keys.
    let key = format!("{:?} {key}", caller.right);
    let mut fingerprint = DefaultHasher::new();
    body.hash(&mut fingerprint);
    match api.answered.begin(&key, fingerprint.finish(), api.clock.mono()) {
        Remembered::New => {
            let forget = Forget {
                api: &api,
                key: Some(&key),
            };
            let answer = respond(&api, &caller, &headers, &body).await?;
            forget.keep(&answer);
            Ok(accepted(answer))
        }
        Remembered::Answered(answer) => {
            let mut response = accepted(answer);
            response
                .headers_mut()
                .insert(REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        Remembered::UnderWay => Err(Problem::new(
            StatusCode::CONFLICT,
            "under_way",
            "a request with this idempotency-key is under way",
            "wait for its answer, or ask again in a moment",
        )),
        Remembered::Other => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "key_reused",
            "this idempotency-key was used for another body",
            "use a new key for a new request",
        )),
    }
}

/// Gives the key back when the request comes to nothing, also when its client leaves.
struct Forget<'a> {
    api: &'a Api,
    key: Option<&'a str>,
}

impl Forget<'_> {
    fn keep(mut self, answer: &str) {
        if let Some(key) = self.key.take() {
            self.api.answered.end(key, Some(answer.into()));
        }
    }
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.api.answered.end(key, None);
        }
    }
}

fn accepted(answer: impl AsRef<str>) -> Response {
    let json = HeaderValue::from_static("application/json");
    let body = answer.as_ref().to_owned();
    (StatusCode::ACCEPTED, [(CONTENT_TYPE, json)], body).into_response()
}

fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    match value.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() && key.len() <= MAX_KEY => Ok(Some(key)),
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "bad_header",
            "the header `idempotency-key` cannot be read",
            "send 1 to 255 characters of plain ASCII, as a UUID",
        )),
    }
}

async fn respond(api: &Api, caller: &Caller, headers: &HeaderMap, body: &[u8]) -> Result<String, Problem> {
    let handle = &api.handle;
    let Checked {
        respond,
        planned,
        webhook,
    } = check(handle, caller, read(body)?).await?;
    let (incident_type, action) = (respond.incident_type.clone(), respond.action.to_string());
    let subjects = respond.subjects.clone();
    let acted = in_time(handle.operate(OperatorAct::Respond(respond), via(headers))).await??;
    let Acted::Incidents(ids) = acted else {
        return Err(crate::control::handle::Unavailable.into());
    };
    let (records, seen) = {
        let ids = ids.clone();
        let look = handle.look(move |engine, now| {
            let records: Vec<IncidentRecord> = ids.iter().filter_map(|id| engine.incident(id)).collect();
            (records, engine.agents(now))
        });
        in_time(look).await?
    };
    let show_links = caller.may_act();
    let view = ResponseView {
        incident_type,
        action,
        incidents: ids,
        plans: records
            .iter()
            .map(|record| plan_view(handle, record, show_links))
            .collect(),
        left_out: planned
            .into_iter()
            .map(|(step, why)| LeftOut { step, why })
            .collect(),
        agents: states(&subjects, &records, &seen),
        notification: webhook,
    };
    serde_json::to_string(&view).map_err(|e| {
        Problem::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "not_shown",
            format!("it was done, but cannot be shown: {e}"),
            "GET /incidents shows it",
        )
    })
}

/// The plan of an incident as it stands.
pub(super) fn plan_view(handle: &Handle, record: &IncidentRecord, show_links: bool) -> PlanView {
    let step = |step: &StepRecord| {
        let asked = step.approval.as_ref();
        let question = asked.and_then(|id| record.approvals.iter().find(|a| a.id == *id));
        StepView {
            step: step.step.clone(),
            outcome: match step.state {
                StepState::InForce | StepState::Worked | StepState::Inconclusive => "applied",
                StepState::Told => "told",
                StepState::Waiting => "waiting",
                StepState::Pending => "later",
                _ => "skipped",
            },
            state: step.state,
            what: step.what.clone(),
            why: if step.why.is_empty() && step.state == StepState::InForce {
                "nobody has to agree to it".to_owned()
            } else {
                step.why.clone()
            },
            until: record
                .directives
                .iter()
                .filter(|d| d.order.name() == step.step)
                .map(|d| d.expires)
                .max(),
            approval: asked.map(|id| AskView {
                id: id.clone(),
                expires: question.map(|q| q.expires),
                on_timeout: question.map(|q| q.on_timeout.clone()),
                link: show_links.then(|| handle.links().approval(id)).flatten(),
            }),
        }
    };
    PlanView {
        incident: record.id.clone(),
        subject: record.subject.clone(),
        steps: record.plan.iter().map(step).collect(),
    }
}

fn states(subjects: &[Subject], records: &[IncidentRecord], seen: &[AgentStatus]) -> Vec<AgentState> {
    let mut names: Vec<&str> = subjects
        .iter()
        .filter_map(|s| s.agent().map(|a| a.as_str()))
        .collect();
    names.sort_unstable();
    names.dedup();
    let state = |name: &str| match seen.iter().find(|s| s.agent.as_str() == name) {
        Some(status) => AgentState {
            agent: name.to_owned(),
            state: "seen",
            last_seen: Some(status.last_seen),
            requests_per_minute: Some(status.requests_per_minute),
            tokens_per_minute: Some(status.tokens_per_minute),
            directives: status.directives.clone(),
        },
        None => AgentState {
            agent: name.to_owned(),
            state: "standing_order",
            last_seen: None,
            requests_per_minute: None,
            tokens_per_minute: None,
            directives: records
                .iter()
                .flat_map(|r| &r.directives)
                .filter(|d| d.subject.agent().is_some_and(|a| a.as_str() == name))
                .cloned()
                .collect(),
        },
    };
    names.into_iter().map(state).collect()
}

/// Every problem at once; else what the engine is asked to do.
async fn check(
    handle: &Handle,
    caller: &Caller,
    Read { value, mut faults }: Read<IncidentResponse>,
) -> Result<Checked, Problem> {
    let Some(wanted) = value else {
        return Err(Problem::faulty(faults));
    };
    let incident_type = text(wanted.incident_type.as_deref(), "/incident_type", &mut faults);
    let reason = text(wanted.reason.as_deref(), "/reason", &mut faults);
    let by = match caller.named(wanted.requested_by.as_deref()) {
        Ok(by) => by,
        Err(_) => {
            faults.push(bad_name("/requested_by"));
            String::new()
        }
    };
    let subjects = subjects(&wanted, &mut faults);
    let book = in_time(handle.look(|engine, _| Arc::clone(engine.rulebook()))).await?;
    let upstreams = in_time(handle.status()).await?.upstreams;
    let upstreams: Vec<String> = upstreams.into_iter().map(|u| u.name).collect();
    let known = Known {
        actions: &book.actions,
        upstreams: &upstreams,
    };
    let remediation = wanted.remediation.unwrap_or_default();
    let planned = plan(&remediation, known, &mut faults);
    let mut webhook = None;
    if let Some(url) = wanted.notification_webhook {
        match in_time(handle.target(url)).await? {
            Ok(name) => webhook = Some(name),
            Err(why) => faults.push(Fault::new(
                "/notification_webhook",
                why,
                "`notification_webhooks` in the configuration says where notices may go",
            )),
        }
    }
    match (planned, incident_type, remediation.action) {
        (Some(Planned { steps, left_out }), Some(incident_type), Some(action)) if faults.is_empty() => {
            Ok(Checked {
                respond: Respond {
                    incident_type,
                    subjects,
                    action: action.into(),
                    steps,
                    targets: webhook.iter().cloned().collect(),
                    by,
                    reason,
                },
                planned: left_out,
                webhook,
            })
        }
        _ => Err(Problem::faulty(faults)),
    }
}

fn subjects(wanted: &IncidentResponse, faults: &mut Vec<Fault>) -> Vec<Subject> {
    let mut subjects = Vec::new();
    for (n, agent) in wanted.affected_agents.iter().flatten().enumerate() {
        if named(agent, &format!("/affected_agents/{n}"), faults) {
            subjects.push(Subject::Agent(agent.trim().into()));
        }
    }
    for (n, one) in wanted.executions.iter().enumerate() {
        let agent = named(&one.agent, &format!("/executions/{n}/agent"), faults);
        if named(&one.execution, &format!("/executions/{n}/execution"), faults) && agent {
            subjects.push(Subject::Execution {
                agent: one.agent.trim().into(),
                execution: one.execution.trim().into(),
            });
        }
    }
    for (n, one) in wanted.versions.iter().enumerate() {
        let agent = named(&one.agent, &format!("/versions/{n}/agent"), faults);
        if named(&one.version, &format!("/versions/{n}/version"), faults) && agent {
            subjects.push(Subject::Version {
                agent: one.agent.trim().into(),
                version: one.version.trim().into(),
            });
        }
    }
    if wanted.fleet {
        subjects.push(Subject::Fleet);
    }
    if subjects.is_empty() && faults.is_empty() {
        faults.push(Fault::new(
            "/affected_agents",
            "is missing",
            "name 1 to 1000 agents, or `executions`, `versions` or `fleet: true`",
        ));
    }
    if subjects.len() > MAX_SUBJECTS {
        faults.push(Fault::new(
            "/affected_agents",
            format!("{} subjects are named in all", subjects.len()),
            format!("at most {MAX_SUBJECTS}; ask for the others in another request"),
        ));
    }
    subjects
}

/// Whether a text may be the name of something that traffic names.
pub(super) fn named(name: &str, at: &str, faults: &mut Vec<Fault>) -> bool {
    let trimmed = name.trim();
    let good = !trimmed.is_empty() && trimmed.len() <= MAX_NAME && !trimmed.contains(char::is_control);
    if !good {
        faults.push(bad_name(at));
    }
    good
}

fn bad_name(at: &str) -> Fault {
    Fault::new(
        at,
        format!("must be a name of 1 to {MAX_NAME} bytes without control characters"),
        "use the name by which the traffic calls it",
    )
}

fn text(given: Option<&str>, at: &str, faults: &mut Vec<Fault>) -> Option<String> {
    let trimmed = given?.trim();
    if trimmed.is_empty() || trimmed.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
        faults.push(Fault::new(
            at,
            "must be text without control characters",
            "say it in words",
        ));
        return None;
    }
    Some(trimmed.to_owned())
}
