//! What is changed in a request before it is sent: what directives ask, and usage when a stream would not say.

use bytes::Bytes;

use super::arrive::{Content, Head};
use super::body::RequestBody;
use super::hops;
use super::orders::{Changes, Changing, is_signed};
use super::reply::Problem;
use super::worker::Worker;
use crate::dialect::batch::Split;
use crate::dialect::include_usage::inject;
use crate::enforce::policy::IncludeUsage;
use crate::enforce::snapshot::Snapshot;
use crate::types::directive::Sender;
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
    /// What directives changed, if anything.
    pub(super) changes: Option<Box<Changes>>,
    /// It is sent in parts.
    pub(super) split: Option<Box<Split>>,
}

/// Applies what the directives ask, then asks for usage where it would be missing.
pub(super) fn prepare(
    worker: &Worker,
    snapshot: &Snapshot,
    sender: Sender<'_>,
    now: Mono,
    head: &Head,
    content: Content,
    actions: &mut Vec<ActionTaken>,
) -> Result<Prepared, Problem> {
    let Content {
        body,
        bytes,
        mut facts,
        ..
    } = content;
    let mut prepared = Prepared {
        body,
        path: None,
        changed: false,
        without_usage: None,
        changes: None,
        split: None,
    };
    let Some(mut bytes) = bytes else {
        return Ok(prepared);
    };

    if !snapshot.directives.is_empty() {
        let client = bytes.as_ptr();
        let mut request = Changing::new(head, &mut facts, bytes, actions);
        prepared.split = request.obey(worker, snapshot, sender, now)?.map(Box::new);
        let Changing {
            bytes: changed,
            path,
            changes,
            ..
        } = request;
        bytes = changed;
        prepared.path = path;
        if bytes.as_ptr() != client {
            prepared.body = prepared.body.holding(bytes.clone());
            prepared.changed = true;
        }
        prepared.changes = (!changes.is_empty()).then(|| Box::new(changes));
    }

    hops::map_model(head, &facts, &mut bytes, &mut prepared)?;

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
