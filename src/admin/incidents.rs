//! Incidents: the list, one of them, what happened to it, and what people decide about it.

use std::collections::HashSet;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::LINK;
use http::{HeaderMap, HeaderValue};

use super::api::{Api, Caller, via};
use super::body::{Body, By, ByReason};
use super::error::Problem;
use super::handlers::{Answer, Id, in_time, path, with_type};
use super::history;
use crate::control::handle::Handle;
use crate::incident::input::{NotActed, OperatorAct};
use crate::incident::postmortem::PostMortem;
use crate::incident::record::{IncidentRecord, IncidentState, TimelineEntry};
use crate::store::IncidentFilter;
use crate::types::ids::IncidentId;
use crate::types::time::Wall;

/// Incidents of a page, where the request does not say, and at most.
const PAGE: usize = 100;
const MOST: usize = 1_000;
const MARKDOWN: &str = "text/markdown; charset=utf-8";

type Pairs = Result<Query<Vec<(String, String)>>, QueryRejection>;

pub(super) async fn list(State(handle): State<Handle>, query: Pairs) -> Result<Response, Problem> {
    let filter = Filter::parse(query)?;
    let memory = in_time(handle.incidents()).await?;
    let known: HashSet<IncidentId> = memory.iter().map(|i| i.id.clone()).collect();
    let mut records: Vec<IncidentRecord> = memory.into_iter().filter(|i| filter.takes(i)).collect();
    let older = history::incidents(&handle, filter.for_ledger()).await?;
    // What is in memory is newer than what was written of it.
    records.extend(older.records.into_iter().filter(|i| !known.contains(&i.id)));
    records.sort_by(|a, b| (b.opened, &b.id).cmp(&(a.opened, &a.id)));
    let more = records.len() > filter.limit;
    records.truncate(filter.limit);
    let next = match records.last() {
        Some(last) if more || older.next.is_some() => {
            Some(format!("{}.{}", last.opened.unix_millis(), last.id))
        }
        _ => older.next,
    };
    // Within the page, what is under way comes first.
    records.sort_by_key(|r| r.state == IncidentState::Resolved);
    let mut response = Json(records).into_response();
    if let Some(next) = next.map(|cursor| filter.link(&cursor))
        && let Ok(next) = HeaderValue::from_str(&next)
    {
        response.headers_mut().insert(LINK, next);
    }
    Ok(response)
}

pub(super) async fn one(State(handle): State<Handle>, id: Id) -> Answer<IncidentRecord> {
    find(&handle, &path(id)?).await.map(Json)
}

pub(super) async fn timeline(State(handle): State<Handle>, id: Id) -> Answer<Vec<TimelineEntry>> {
    let id = path(id)?;
    let record = find(&handle, &id).await?;
    whole_timeline(&handle, &record).await.map(Json)
}

pub(super) async fn postmortem(
    State(handle): State<Handle>,
    id: Id,
    query: Pairs,
) -> Result<Response, Problem> {
    let id = path(id)?;
    let json = match super::handlers::only_parameter(query, "format")?.as_deref() {
        None | Some("md") => false,
        Some("json") => true,
        Some(_) => return Err(Problem::bad_parameter("format", "is not known", "md, json")),
    };
    let mut record = find(&handle, &id).await?;
    record.timeline = whole_timeline(&handle, &record).await?;
    let story = PostMortem::of(record, None);
    Ok(if json {
        Json(story).into_response()
    } else {
        with_type(MARKDOWN, story.to_markdown())
    })
}

pub(super) async fn acknowledge(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(By { by }): Body<By>,
) -> Answer<IncidentRecord> {
    let by = caller.named(by.as_deref())?;
    act(&api, &headers, id, |incident| OperatorAct::Acknowledge {
        incident,
        by,
    })
    .await
}

pub(super) async fn escalate(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(By { by }): Body<By>,
) -> Answer<IncidentRecord> {
    let by = caller.named(by.as_deref())?;
    act(&api, &headers, id, |incident| OperatorAct::Escalate {
        incident,
        by,
    })
    .await
}

pub(super) async fn resolve(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(By { by }): Body<By>,
) -> Answer<IncidentRecord> {
    let by = caller.named(by.as_deref())?;
    act(&api, &headers, id, |incident| OperatorAct::Resolve {
        incident,
        by,
    })
    .await
}

pub(super) async fn false_alarm(
    State(api): State<Api>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    id: Id,
    Body(ByReason { by, reason }): Body<ByReason>,
) -> Answer<IncidentRecord> {
    let by = caller.named(by.as_deref())?;
    act(&api, &headers, id, |incident| OperatorAct::FalseAlarm {
        incident,
        by,
        reason,
    })
    .await
}

async fn act(
    api: &Api,
    headers: &HeaderMap,
    id: Id,
    act: impl FnOnce(IncidentId) -> OperatorAct,
) -> Answer<IncidentRecord> {
    let id = path(id)?;
    let act = act(IncidentId::from(id.as_str()));
    match in_time(api.handle.operate(act, via(headers))).await? {
        Ok(_) => find(&api.handle, &id).await.map(Json),
        // One that memory has let go is over.
        Err(NotActed::Unknown { .. }) => {
            find(&api.handle, &id).await?;
            Err(NotActed::Over {
                what: "incident",
                id,
                state: "resolved",
            }
            .into())
        }
        Err(why) => Err(why.into()),
    }
}

/// One incident, from memory or from the ledger.
pub(super) async fn find(handle: &Handle, id: &str) -> Result<IncidentRecord, Problem> {
    if let Some(record) = in_time(handle.incident(IncidentId::from(id))).await? {
        return Ok(record);
    }
    history::incident(handle, id)
        .await?
        .ok_or_else(|| Problem::not_found("incident", id, "/incidents"))
}

/// The record keeps a bounded part of the timeline; the ledger keeps all of it, and may be a moment behind.
async fn whole_timeline(handle: &Handle, record: &IncidentRecord) -> Result<Vec<TimelineEntry>, Problem> {
    let mut all = history::timeline(handle, record.id.as_str()).await?;
    let known = all
        .last()
        .and_then(|last| record.timeline.iter().rposition(|e| e == last));
    let from = known.map_or(0, |at| at + 1);
    if known.is_some() || all.is_empty() {
        all.extend(record.timeline.iter().skip(from).cloned());
    }
    Ok(all)
}

/// Which incidents are asked for.
#[derive(Debug, Default)]
struct Filter {
    state: Option<IncidentState>,
    agent: Option<String>,
    rule: Option<String>,
    since: Option<Wall>,
    limit: usize,
    /// Those before this one, by opening and name.
    before: Option<(Wall, IncidentId)>,
}

impl Filter {
    const NAMES: &str = "state, agent, rule, since, limit, cursor";

    fn parse(query: Pairs) -> Result<Self, Problem> {
        let Ok(Query(pairs)) = query else {
            return Err(Problem::bad_parameter(
                "?",
                "the query cannot be read",
                Self::NAMES,
            ));
        };
        let mut filter = Self::default();
        let mut limit = None;
        for (name, value) in pairs {
            let given_twice = match name.as_str() {
                "state" => filter.state.replace(state(&value)?).is_some(),
                "agent" => filter.agent.replace(value).is_some(),
                "rule" => filter.rule.replace(value).is_some(),
                "since" => filter.since.replace(time(&value)?).is_some(),
                "limit" => limit.replace(self::limit(&value)?).is_some(),
                "cursor" => filter.before.replace(cursor(&value)?).is_some(),
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
        filter.limit = limit.unwrap_or(PAGE);
        Ok(filter)
    }

    fn takes(&self, incident: &IncidentRecord) -> bool {
        let about = |agent: &str| {
            incident
                .agent
                .iter()
                .chain(&incident.agents)
                .any(|a| a.as_str() == agent)
        };
        self.state.is_none_or(|s| s == incident.state)
            && self.agent.as_deref().is_none_or(about)
            && self.rule.as_deref().is_none_or(|r| incident.rule.as_str() == r)
            && self.since.is_none_or(|s| incident.opened >= s)
            && self
                .before
                .as_ref()
                .is_none_or(|(at, id)| (incident.opened, &incident.id) < (*at, id))
    }

    fn for_ledger(&self) -> IncidentFilter {
        IncidentFilter {
            state: self.state.map(|s| s.name().to_owned()),
            agent: self.agent.clone(),
            rule: self.rule.clone(),
            since: self.since,
            limit: self.limit,
            cursor: self
                .before
                .as_ref()
                .map(|(at, id)| format!("{}.{id}", at.unix_millis())),
        }
    }

    /// Where the next page is, as a `link` header (RFC 8288).
    fn link(&self, cursor: &str) -> String {
        let mut query = format!("limit={}&cursor={}", self.limit, encoded(cursor));
        let state = self.state.map(|s| s.name().to_owned());
        let since = self.since.map(|s| s.to_string());
        for (name, value) in [
            ("state", &state),
            ("agent", &self.agent),
            ("rule", &self.rule),
            ("since", &since),
        ] {
            if let Some(value) = value {
                query.push_str(&format!("&{name}={}", encoded(value)));
            }
        }
        format!("</incidents?{query}>; rel=\"next\"")
    }
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
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

fn time(text: &str) -> Result<Wall, Problem> {
    let quoted = serde_json::Value::String(text.to_owned());
    serde_json::from_value(quoted)
        .map_err(|_| Problem::bad_parameter("since", "is no time", "a time as 2026-11-25T12:00:00Z"))
}

fn limit(text: &str) -> Result<usize, Problem> {
    match text.parse() {
        Ok(limit) if (1..=MOST).contains(&limit) => Ok(limit),
        _ => Err(Problem::bad_parameter(
            "limit",
            "is no number of incidents",
            &format!("1 to {MOST}"),
        )),
    }
}

fn cursor(text: &str) -> Result<(Wall, IncidentId), Problem> {
    text.split_once('.')
        .and_then(|(at, id)| Some((Wall::from_unix_millis(at.parse().ok()?), id.into())))
        .ok_or_else(|| {
            Problem::bad_parameter(
                "cursor",
                "is none of ours",
                "what the `link` header of a page names",
            )
        })
}
