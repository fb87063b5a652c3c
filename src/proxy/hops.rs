//! Where a request goes when it does not go where it was meant for: rerouted by a directive, or sent on after a failure.

use std::hash::Hasher;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, Uri};
use siphasher::sip::SipHasher13;

use super::alarm::Alarm;
use super::arrive::{Content, Head};
use super::body::RequestBody;
use super::emit::Account;
use super::exchange::{Sent, send};
use super::failure::{self, Failure};
use super::keys::put_keys;
use super::orders::{self, Changes, is_signed};
use super::reply::Problem;
use super::rewrite::{Prepared, prepare};
use super::switch;
use super::worker::Worker;
use crate::dialect::bound::bound;
use crate::dialect::request::RequestFacts;
use crate::dialect::rewrite::replace_model;
use crate::dialect::table::Family;
use crate::enforce::breaker::{Health, Unfit};
use crate::enforce::gate::{Verdict, admit};
use crate::enforce::policy::{Policy, Upstream};
use crate::enforce::snapshot::Snapshot;
use crate::telemetry::metrics::ExchangeLabels;
use crate::types::directive::Order;
use crate::types::ids::{IncidentId, UpstreamName};
use crate::types::observation::ActionTaken;
use crate::types::time::Mono;

/// Further upstreams that one request is sent to at most, whatever the policy lists.
const MAX_HOPS: usize = 3;

/// How often the client's library has sent this request before (official SDKs of OpenAI and Anthropic).
const RETRY_COUNT: HeaderName = HeaderName::from_static("x-stainless-retry-count");

/// That a request was sent elsewhere than it was meant for.
pub(super) struct Hop {
    action: &'static str,
    incident: Option<IncidentId>,
}

/// The upstreams that a request may still be sent to, and all that is needed to send it anew.
pub(super) struct Plan {
    /// In the order in which they are tried.
    left: std::vec::IntoIter<Arc<Upstream>>,
    original: Original,
    /// Where it was meant to go: whose the client's key is.
    owner: Arc<Upstream>,
    /// Stands for the execution, so that all of it goes the same way.
    key: u64,
    estimate: u64,
    /// Actions that were noted before anything was prepared.
    noted: usize,
}

/// A request as its client sent it.
struct Original {
    headers: HeaderMap,
    uri: Uri,
    body: Bytes,
    trailers: Option<HeaderMap>,
    facts: RequestFacts,
}

/// Upstreams that were passed over, and why.
type PassedOver = Vec<(UpstreamName, Unfit)>;

/// What came of a request.
pub(super) type Outcome = (Box<Head>, Option<Box<Changes>>, Result<Sent, Problem>);

/// Decides where a request goes: elsewhere when a directive asks for it; and where it may go after that. `None` when no
/// other upstream stands in for the one it goes to, which costs nothing.
pub(super) fn plan(
    worker: &Worker,
    snapshot: &Snapshot,
    account: &mut Account,
    head: &mut Head,
    content: &Content,
    estimate: u64,
) -> Option<Box<Plan>> {
    let directives = !snapshot.directives.is_empty();
    let alone = head.upstream.failover.is_empty() || content.bytes.is_none();
    if !directives && alone && head.upstream.credentials.is_none() {
        return None;
    }
    let meant_for = directives
        .then(|| reroute(worker, snapshot, account, head, content))
        .flatten();
    let owner = meant_for.as_ref().unwrap_or(&head.upstream);
    let plan = Plan::new(&snapshot.policy, account, head, content, estimate, owner);
    if plan.is_some() {
        let count = head.parts.headers.get(RETRY_COUNT);
        let again = count.is_some_and(|c| !matches!(c.as_bytes(), b"" | b"0"));
        let slot = &account.identity.slot;
        slot.attempts.request(again, worker.shared.clock.mono());
    }
    put_keys(head, meant_for.as_deref());
    plan
}

/// Says in the answer where it came from, when that is not where it was asked for.
pub(super) fn say<B>(response: &mut Response<B>, head: &Head) {
    let Some(hop) = &head.hop else { return };
    let headers = response.headers_mut();
    // Beside the word of another action, if there is one.
    headers.append("x-fusebox-action", HeaderValue::from_static(hop.action));
    if let Ok(name) = HeaderValue::from_str(head.upstream.name.as_str()) {
        headers.insert("x-fusebox-upstream", name);
    }
    if let Some(incident) = &hop.incident
        && let Ok(incident) = HeaderValue::from_str(incident.as_str())
    {
        headers.append("x-fusebox-incident", incident);
    }
}

/// Puts the name that the model has at an upstream into a request that was sent there from elsewhere.
pub(super) fn map_model(
    head: &Head,
    facts: &RequestFacts,
    bytes: &mut Bytes,
    prepared: &mut Prepared,
) -> Result<(), Problem> {
    if head.hop.is_none() || head.upstream.model_map.is_empty() {
        return Ok(());
    }
    let changed = prepared.changes.as_deref().and_then(Changes::model_used);
    let asked = changed.or_else(|| facts.decisive_model(&head.route));
    let Some(to) = asked.and_then(|asked| head.upstream.model_map.get(asked).filter(|to| *to != asked))
    else {
        return Ok(());
    };
    let path = prepared.path.as_deref().unwrap_or(head.path());
    let rewritten = replace_model(&head.route, facts, path, bytes, to)
        .map_err(|e| Problem::CannotRewrite(e.to_string()))?;
    if let Some(path) = rewritten.path {
        prepared.path = Some(path);
    }
    if let Some(body) = rewritten.body {
        *bytes = Bytes::from(body);
        prepared.body = prepared.body.holding(bytes.clone());
        prepared.changed = true;
    }
    Ok(())
}

/// Sends the request elsewhere when a directive asks for it and nothing stands in the way; returns where it was meant to
/// go.
fn reroute(
    worker: &Worker,
    snapshot: &Snapshot,
    account: &mut Account,
    head: &mut Head,
    content: &Content,
) -> Option<Arc<Upstream>> {
    let now = worker.shared.clock.mono();
    let found = snapshot
        .directives
        .of(account.identity.sender(), now)
        .find_map(|d| match &d.order {
            Order::Reroute { to, share_percent } => Some((d, to, *share_percent)),
            _ => None,
        });
    let (directive, to, share) = found?;
    if *to == head.upstream.name || !is_of_share(key(account), share) {
        return None;
    }
    let to = match find(&snapshot.policy, to) {
        None => Err(format!("there is no upstream `{to}`")),
        Some(_) if switch::is_asked(head) => Err("it is a protocol switch".to_owned()),
        Some(to) => stays(head, &head.upstream, content.bytes.as_ref(), &content.facts, to)
            .map_or(Ok(Arc::clone(to)), |why| Err(why.to_owned())),
    };
    match to {
        Err(why) => {
            account.actions.push(ActionTaken::StepSkipped {
                step: "reroute".to_owned(),
                why,
            });
            None
        }
        Ok(to) => {
            account.actions.push(ActionTaken::Rerouted {
                from: head.upstream.name.to_string(),
                to: to.name.to_string(),
            });
            let (from, to_name) = (head.upstream.name.as_str(), to.name.as_str());
            worker.shared.metrics.failover().rerouted(from, to_name);
            let from = std::mem::replace(&mut head.upstream, to);
            head.hop = Some(Box::new(Hop {
                action: "reroute",
                incident: Some(directive.incident.clone()),
            }));
            goes_to(worker, account, head);
            Some(from)
        }
    }
}

/// Why a request that was meant for `owner` may not go to `to`; `None` when it may.
fn stays(
    head: &Head,
    owner: &Upstream,
    body: Option<&Bytes>,
    facts: &RequestFacts,
    to: &Upstream,
) -> Option<&'static str> {
    let family = head.route.api.family();
    if is_signed(head) {
        return Some("it is signed for where it was meant to go");
    }
    // Paths that are not known, and lists of what an upstream keeps.
    if family == Family::Other {
        return bound(&head.route, &[], false);
    }
    if !(to.families.is_empty() || to.families.contains(&family)) {
        return Some("the other upstream does not serve this API");
    }
    let Some(body) = body else {
        return Some("its body was not kept");
    };
    if facts.unread {
        return Some("its body cannot be read");
    }
    if !to.model_map.is_empty() && facts.decisive_model(&head.route).is_none() {
        return Some("its model cannot be read, and models are called differently there");
    }
    let renamed = facts
        .decisive_model(&head.route)
        .and_then(|m| to.model_map.get(m).filter(|to| *to != m));
    let stranger = to.provider != owner.provider || to.credentials.is_some() || renamed.is_some();
    bound(&head.route, body, stranger)
}

impl Plan {
    fn new(
        policy: &Policy,
        account: &Account,
        head: &Head,
        content: &Content,
        estimate: u64,
        owner: &Arc<Upstream>,
    ) -> Option<Box<Self>> {
        let family = head.route.api.family();
        let body = content.bytes.as_ref()?;
        if head.upstream.failover.is_empty() || family == Family::Other {
            return None;
        }
        let serves = |u: &Upstream| u.families.is_empty() || u.families.contains(&family);
        let left: Vec<Arc<Upstream>> = head
            .upstream
            .failover
            .iter()
            .filter_map(|name| find(policy, name))
            .filter(|u| serves(u) && u.name != head.upstream.name)
            .take(MAX_HOPS)
            .cloned()
            .collect();
        if left.is_empty() || is_signed(head) || switch::is_asked(head) {
            return None;
        }
        Some(Box::new(Self {
            left: left.into_iter(),
            original: Original {
                headers: head.parts.headers.clone(),
                uri: head.parts.uri.clone(),
                body: body.clone(),
                trailers: content.body.trailers().cloned(),
                facts: content.facts.clone(),
            },
            owner: Arc::clone(owner),
            key: key(account),
            estimate,
            noted: account.actions.len(),
        }))
    }

    /// Sends what was prepared, and sends it on for as long as it fails and there is somewhere else to go.
    pub(super) async fn send(
        mut self: Box<Self>,
        worker: &Worker,
        snapshot: &mut Arc<Snapshot>,
        account: &mut Account,
        mut head: Box<Head>,
        mut prepared: Prepared,
        alarm: &mut Alarm,
    ) -> Outcome {
        let clock = &worker.shared.clock;
        loop {
            let health = worker.shared.breakers.of(&head.upstream.name);
            let permit = match health.ask(clock.mono(), self.key) {
                Ok(permit) => permit,
                Err(unfit) => {
                    let failure = Failure::Unfit(unfit);
                    match self.go_on(worker, snapshot, account, &mut head, &failure) {
                        Some(next) => {
                            prepared = next;
                            continue;
                        }
                        None => health.last_resort(),
                    }
                }
            };
            let upstream = Arc::clone(&head.upstream);
            let more = !self.left.as_slice().is_empty();
            let sender = account.identity.sender();
            // What was noted of it stands already.
            let timeouts =
                orders::timeouts(snapshot, sender, clock.mono(), upstream.timeouts, &mut Vec::new());
            let first_byte = timeouts.first_byte;
            let within = upstream.retry_on.first_byte_within.filter(|_| more);
            alarm.allow(within.map_or(first_byte, |w| w.min(first_byte)));
            let begun = alarm.last_heard();
            let (back, changes, mut sent) = send(worker, snapshot, head, prepared, alarm).await;
            head = back;
            let failure = match &mut sent {
                Ok(answer) => {
                    alarm.heard();
                    account.times.first_byte = Some(alarm.last_heard());
                    failure::of_answer(&upstream, account, answer, more, alarm).await
                }
                Err(problem) => failure::of_problem(&upstream.retry_on, problem).map(|f| (f, None)),
            };
            let now = clock.mono();
            let Some((failure, problem)) = failure else {
                if sent.is_ok() {
                    permit.succeeded(upstream.breaker.as_ref(), now);
                }
                return (head, changes, sent);
            };
            self.failed(worker, &health, &upstream, &failure, sent.as_ref().ok(), now);
            permit.failed(upstream.breaker.as_ref(), now);
            tracing::warn!(
                agent = %account.identity.agent,
                upstream = %upstream.name,
                why = %failure,
                after_ms = now.since(begun).as_millis(),
                "an attempt failed"
            );
            let next = match alarm.is_over() {
                true => None,
                false => self.go_on(worker, snapshot, account, &mut head, &failure),
            };
            match next {
                Some(next) => prepared = next,
                None => {
                    let sent = match problem {
                        Some(problem) => Err(problem),
                        None => sent,
                    };
                    return (head, changes, sent);
                }
            }
            account.times.first_byte = None;
        }
    }

    fn failed(
        &self,
        worker: &Worker,
        health: &Health,
        upstream: &Upstream,
        failure: &Failure,
        answer: Option<&Sent>,
        now: Mono,
    ) {
        let metrics = worker.shared.metrics.failover();
        metrics.failed(upstream.name.as_str(), failure.kind());
        if let Some(wait) = answer.and_then(|a| failure::retry_after(a, worker.shared.clock.wall())) {
            health.wait(wait, now);
        }
    }

    /// Prepares the request for the next upstream that may be asked; `None` when there is none, or it may not go.
    fn go_on(
        &mut self,
        worker: &Worker,
        snapshot: &mut Arc<Snapshot>,
        account: &mut Account,
        head: &mut Head,
        failure: &Failure,
    ) -> Option<Prepared> {
        let mut over = PassedOver::new();
        let mut stays_for = None;
        let next = loop {
            let Some(next) = self.next(worker, head, &mut over) else {
                break None;
            };
            let Original { body, facts, .. } = &self.original;
            match stays(head, &self.owner, Some(body), facts, &next) {
                None => break Some(next),
                Some(why) => stays_for = Some(why),
            }
        };
        let refused = match (&next, stays_for, failure) {
            (None, why, _) => Some(("bound", why?)),
            // Nothing was sent, so nothing is sent again.
            (Some(_), _, Failure::Unfit(_)) => None,
            (Some(_), _, _) => self.may_repeat(worker, snapshot, account, failure),
        };
        if let Some((kind, why)) = refused {
            worker.shared.metrics.failover().refused(kind);
            account.actions.push(ActionTaken::StepSkipped {
                step: "failover".to_owned(),
                why: why.to_owned(),
            });
            self.left = Vec::new().into_iter();
            return None;
        }
        self.hop(worker, snapshot, account, head, next?, failure, over)
    }

    /// The next upstream that is fit to be asked; the last one is, whatever its state. Those before it are noted.
    fn next(&mut self, worker: &Worker, head: &Head, over: &mut PassedOver) -> Option<Arc<Upstream>> {
        let now = worker.shared.clock.mono();
        loop {
            let next = self.left.next()?;
            if next.name == head.upstream.name {
                continue;
            }
            let health = worker.shared.breakers.of(&next.name);
            // Only looked at: the permit is asked for when it is sent.
            match health.ask(now, self.key) {
                Err(unfit) if !self.left.as_slice().is_empty() => over.push((next.name.clone(), unfit)),
                _ => return Some(next),
            }
        }
    }

    /// Whether a request that was sent may be sent again: within the agent's retry budget, and within what the
    /// directives of this moment allow. Says why not.
    fn may_repeat(
        &self,
        worker: &Worker,
        snapshot: &mut Arc<Snapshot>,
        account: &mut Account,
        failure: &Failure,
    ) -> Option<(&'static str, &'static str)> {
        let clock = &worker.shared.clock;
        let slot = Arc::clone(&account.identity.slot);
        if !slot.attempts.take(&snapshot.policy.retries, clock.mono()) {
            return Some(("budget", "the retry budget of the agent is spent"));
        }
        // What was taken for the first attempt: it may have cost something, unless it did not get anywhere.
        if let Some(mut permit) = account.permit.take() {
            if failure.may_have_cost() {
                permit.settle(None);
            } else {
                permit.give_back();
            }
        }
        *snapshot = worker.snapshot();
        account.snapshot = Arc::clone(snapshot);
        let directives = snapshot.directives.of(account.identity.sender(), clock.mono());
        match admit(&slot, directives, clock, self.estimate) {
            Verdict::Open(permit) => {
                account.permit = Some(permit);
                None
            }
            _ => Some(("limited", "the limits of the agent do not allow another attempt")),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what changes hands here is one exchange"
    )]
    fn hop(
        &mut self,
        worker: &Worker,
        snapshot: &Snapshot,
        account: &mut Account,
        head: &mut Head,
        next: Arc<Upstream>,
        failure: &Failure,
        over: PassedOver,
    ) -> Option<Prepared> {
        let Original {
            headers,
            uri,
            body,
            trailers,
            facts,
        } = &self.original;
        let from = std::mem::replace(&mut head.upstream, next);
        let hop = head.hop.replace(Box::new(Hop {
            action: "failover",
            incident: None,
        }));
        head.parts.headers = headers.clone();
        head.parts.uri = uri.clone();
        put_keys(head, Some(&self.owner));
        // What was done for the one before is undone; where the request went stays.
        let was = account.actions.split_off(self.noted.min(account.actions.len()));
        let went = was.iter().filter(|a| matches!(a, ActionTaken::FailedOver { .. }));
        account.actions.extend(went.cloned());
        let to = head.upstream.name.to_string();
        let mut at = from.name.to_string();
        let mut note = |from: &mut String, to: &str, why: String| {
            account.actions.push(ActionTaken::FailedOver {
                from: std::mem::replace(from, to.to_owned()),
                to: to.to_owned(),
                why,
            });
        };
        let mut why = failure.to_string();
        for (name, unfit) in over {
            note(
                &mut at,
                name.as_str(),
                std::mem::replace(&mut why, unfit.words().to_owned()),
            );
        }
        note(&mut at, &to, why);
        let content = Content {
            body: RequestBody::trailed(body.clone(), trailers.clone()),
            bytes: Some(body.clone()),
            facts: facts.clone(),
            complete: account.times.complete,
            seen: None,
        };
        let sender = account.identity.sender();
        let now = worker.shared.clock.mono();
        match prepare(worker, snapshot, sender, now, head, content, &mut account.actions) {
            Ok(prepared) => {
                let metrics = worker.shared.metrics.failover();
                metrics.failed_over(from.name.as_str(), &to, failure.kind());
                goes_to(worker, account, head);
                Some(prepared)
            }
            Err(_) => {
                account.actions.truncate(self.noted);
                account.actions.extend(was);
                head.upstream = from;
                head.hop = hop;
                None
            }
        }
    }
}

/// The account is now of an exchange with the upstream in the head.
fn goes_to(worker: &Worker, account: &mut Account, head: &Head) {
    account.upstream = Arc::clone(&head.upstream);
    let metrics = worker.shared.metrics.handles(&ExchangeLabels {
        agent: account.identity.agent.as_str(),
        model: account.identity.kind.model.as_ref().map(|m| m.as_str()),
        provider: &head.upstream.provider,
        api: head.route.api.name(),
        upstream: head.upstream.name.as_str(),
    });
    account.identity.kind = account.identity.kind.at(&head.upstream, metrics);
}

fn find<'a>(policy: &'a Policy, name: &UpstreamName) -> Option<&'a Arc<Upstream>> {
    policy.upstreams.iter().find(|u| u.name == *name)
}

/// Stands for an execution: the same in every process, so that it goes the same way after a restart.
fn key(account: &Account) -> u64 {
    let identity = &account.identity;
    key_of(identity.agent.as_str(), identity.execution.as_str())
}

fn key_of(agent: &str, execution: &str) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x6675_7365, 0x626f_7821);
    hasher.write(agent.as_bytes());
    hasher.write(&[0]);
    hasher.write(execution.as_bytes());
    hasher.finish()
}

/// Whether an execution is among so many in a hundred; those of a smaller share are among a larger one too.
const fn is_of_share(key: u64, percent: u8) -> bool {
    key % 100 < percent as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_stays_where_it_was_sent_first_while_the_share_falls() {
        let keys: Vec<u64> = (0..10_000)
            .map(|n| key_of("agent", &format!("run-{n}")))
            .collect();
        let of = |share| keys.iter().filter(|k| is_of_share(**k, share)).count();
        assert_eq!((of(100), of(0)), (10_000, 0));
        for share in [1_u8, 12, 50, 99] {
            let (have, want) = (of(share), usize::from(share) * 100);
            assert!(have.abs_diff(want) < 250, "{have} at {share} %");
            let smaller = keys.iter().filter(|k| is_of_share(**k, share - 1));
            assert!(smaller.clone().all(|k| is_of_share(*k, share)));
        }
        assert_ne!(key_of("a", "bc"), key_of("ab", "c"));
    }
}
