//! What is changed in a request before it is sent: the model when a directive asks, usage when a stream would not say.

use bytes::Bytes;
use http::header::AUTHORIZATION;

use super::arrive::{Content, Head};
use super::body::RequestBody;
use super::reply::Problem;
use super::worker::Worker;
use crate::dialect::include_usage::inject;
use crate::dialect::models::Need;
use crate::dialect::request::RequestFacts;
use crate::dialect::rewrite::replace_model;
use crate::dialect::table::Route;
use crate::enforce::policy::IncludeUsage;
use crate::enforce::snapshot::Snapshot;
use crate::types::directive::{Directive, Order};
use crate::types::observation::ActionTaken;
use crate::types::time::Mono;

/// A request as it is sent.
pub(super) struct Prepared {
    pub(super) body: RequestBody,
    /// The path, where it is not the client's.
    pub(super) path: Option<String>,
    /// The body is not what the client sent, so its length has to be said anew.
    pub(super) changed: bool,
    /// The client's own body, where usage was asked for on its behalf: sent again if the upstream objects.
    pub(super) without_usage: Option<RequestBody>,
    pub(super) downgraded: Option<Downgraded>,
}

/// A change of model, to be named in the answer.
pub(super) struct Downgraded {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) incident: String,
}

/// Applies what the directives ask, then asks for usage where it would be missing.
pub(super) fn prepare(
    worker: &Worker,
    snapshot: &Snapshot,
    agent: &str,
    now: Mono,
    head: &Head,
    content: Content,
    actions: &mut Vec<ActionTaken>,
) -> Result<Prepared, Problem> {
    let Content {
        body, bytes, facts, ..
    } = content;
    let mut prepared = Prepared {
        body,
        path: None,
        changed: false,
        without_usage: None,
        downgraded: None,
    };
    let Some(mut bytes) = bytes else {
        return Ok(prepared);
    };

    let order = snapshot.directives.of(agent, now).find_map(|d| match &d.order {
        Order::DowngradeModel { to } => Some((d, to.as_deref())),
        Order::Throttle { .. } | Order::CapConcurrency { .. } => None,
    });
    if let Some((directive, to)) = order
        && head.route.api.generates()
    {
        let change = match is_signed(head) {
            // A signature covers what would be changed: such a request is only watched.
            true => Err("it is signed".to_owned()),
            false => target(snapshot, &head.route, &facts, to, directive),
        };
        match change {
            Err(why) => actions.push(ActionTaken::DowngradeSkipped { why }),
            Ok(None) => {}
            Ok(Some(change)) => {
                let rewritten = replace_model(&head.route, &facts, head.path(), &bytes, &change.to)
                    .map_err(|e| Problem::CannotRewrite(e.to_string()))?;
                prepared.path = rewritten.path;
                if let Some(body) = rewritten.body {
                    bytes = Bytes::from(body);
                    prepared.body = prepared.body.holding(bytes.clone());
                    prepared.changed = true;
                }
                actions.push(ActionTaken::ModelDowngraded {
                    from: change.from.clone(),
                    to: change.to.clone(),
                });
                prepared.downgraded = Some(change);
            }
        }
    }

    let upstream = &head.upstream;
    if facts.stream
        && !facts.include_usage
        && upstream.include_usage == IncludeUsage::Auto
        && !worker.shared.unwilling.contains(&upstream.name)
        && !is_signed(head)
        && let Some(asking) = inject(&head.route, &facts, &bytes)
    {
        let asking = prepared.body.holding(Bytes::from(asking));
        prepared.without_usage = Some(std::mem::replace(&mut prepared.body, asking));
        prepared.changed = true;
        actions.push(ActionTaken::UsageRequested);
    }
    Ok(prepared)
}

/// Which model to use instead. `Ok(None)`: the one that was asked for is cheap enough already.
fn target(
    snapshot: &Snapshot,
    route: &Route,
    facts: &RequestFacts,
    to: Option<&str>,
    directive: &Directive,
) -> Result<Option<Downgraded>, String> {
    if let Some(problem) = &facts.model_problem
        && route.path_model.is_none()
    {
        // Not known is not cheap: what cannot be read cannot be let through under a directive.
        return Ok(Some(Downgraded {
            from: format!("{problem:?}"),
            to: to.unwrap_or_default().to_owned(),
            incident: directive.incident.to_string(),
        }));
    }
    if facts.unread {
        // The path names the model, but what the model has to be able to do stands in the body.
        return Err("the request body cannot be read, so what it needs is not known".to_owned());
    }
    let Some(from) = facts.decisive_model(route) else {
        return Err("the request names no model".to_owned());
    };
    let need = Need {
        tools: facts.tools,
        json_schema: facts.json_schema,
        vision: facts.media,
        context_tokens: facts.estimated_input,
        max_output: facts.max_output,
    };
    let policy = &snapshot.policy;
    let to = match to {
        Some(to) => policy.models.fits(&policy.prices, from, to, &need),
        None => policy.models.stand_in(&policy.prices, from, &need),
    }
    .map_err(|skip| skip.to_string())?;
    Ok((*to != *from).then(|| Downgraded {
        from: from.to_owned(),
        to: to.into_owned(),
        incident: directive.incident.to_string(),
    }))
}

/// Whether the request's signature covers what would be changed (AWS SigV4).
fn is_signed(head: &Head) -> bool {
    head.parts
        .headers
        .get(AUTHORIZATION)
        .is_some_and(|a| a.as_bytes().starts_with(b"AWS4-"))
}
