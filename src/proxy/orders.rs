//! What directives ask of a request, carried out in one fixed order; what is left out is said with its reason.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::arrive::Head;
use super::reply::Problem;
use super::worker::Worker;
use crate::dialect::batch::{Split, split};
use crate::dialect::models::Need;
use crate::dialect::parameters::{self, SAMPLING, Unchanged};
use crate::dialect::request::RequestFacts;
use crate::dialect::rewrite::replace_model;
use crate::dialect::table::Route;
use crate::enforce::policy::Timeouts;
use crate::enforce::snapshot::Snapshot;
use crate::enforce::versions::{KnownVersion, MODEL};
use crate::types::directive::{Directive, Order, Sender};
use crate::types::ids::{AgentId, AgentVersion, IncidentId, RequestId};
use crate::types::observation::ActionTaken;
use crate::types::time::Mono;

/// What was changed in a request, to be named in its answer.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The orders, each once.
    names: Vec<&'static str>,
    incidents: Vec<IncidentId>,
    /// What was asked, and what was sent instead.
    model: Option<(String, String)>,
}

impl Changes {
    /// The model that is asked for instead, where it was changed.
    pub(super) fn model_used(&self) -> Option<&str> {
        self.model.as_ref().map(|(_, to)| to.as_str())
    }
}

/// A request while orders change it.
pub(super) struct Changing<'a> {
    pub(super) head: &'a Head,
    pub(super) facts: &'a mut RequestFacts,
    pub(super) bytes: Bytes,
    /// The path, where it is not the client's.
    pub(super) path: Option<String>,
    pub(super) changes: Changes,
    pub(super) actions: &'a mut Vec<ActionTaken>,
    route: Cow<'a, Route>,
}

/// What is asked of one request: of each kind what is strictest, or what concerns the agent most closely.
#[derive(Default)]
struct Due<'a> {
    restore: Option<(&'a Directive, &'a AgentVersion)>,
    set: Vec<(&'a Directive, &'a str, &'a Value)>,
    downgrade: Option<(&'a Directive, Option<&'a str>)>,
    max_output: Option<(&'a Directive, u32)>,
    max_choices: Option<(&'a Directive, u32)>,
    max_inputs: Option<(&'a Directive, u32)>,
}

impl<'a> Due<'a> {
    fn of(snapshot: &'a Snapshot, sender: Sender<'_>, now: Mono) -> Self {
        fn lower<'a>(best: &mut Option<(&'a Directive, u32)>, directive: &'a Directive, limit: u32) {
            if best.is_none_or(|(_, best)| limit < best) {
                *best = Some((directive, limit));
            }
        }
        let mut due = Self::default();
        // The agent's own come first, so that they go before those of the fleet.
        for directive in snapshot.directives.of(sender, now) {
            match &directive.order {
                Order::RestoreVersion { version } => {
                    due.restore.get_or_insert((directive, version));
                }
                Order::SetParameters { set } => {
                    for (name, value) in set {
                        if due.set.iter().all(|(_, known, _)| known != name) {
                            due.set.push((directive, name, value));
                        }
                    }
                }
                Order::DowngradeModel { to } => {
                    due.downgrade.get_or_insert((directive, to.as_deref()));
                }
                Order::CapOutput { max_tokens, .. } => lower(&mut due.max_output, directive, *max_tokens),
                Order::ReduceBatch {
                    max_inputs,
                    max_choices,
                } => {
                    lower(&mut due.max_inputs, directive, *max_inputs);
                    if let Some(max) = max_choices {
                        lower(&mut due.max_choices, directive, *max);
                    }
                }
                _ => {}
            }
        }
        due
    }
}

/// How long the parts of an exchange may take, where a directive gives them longer than the configuration.
pub(super) fn timeouts(
    snapshot: &Snapshot,
    sender: Sender<'_>,
    now: Mono,
    configured: Timeouts,
    actions: &mut Vec<ActionTaken>,
) -> Timeouts {
    let asked = snapshot.directives.of(sender, now).filter_map(|d| match d.order {
        Order::ExtendTimeouts { percent } => Some(u32::from(percent)),
        _ => None,
    });
    let Some(percent) = asked.max().filter(|p| *p > 100) else {
        return configured;
    };
    actions.push(ActionTaken::TimeoutsExtended {
        percent: percent.into(),
    });
    let longer = |time: Duration| time.saturating_mul(percent) / 100;
    Timeouts {
        connect: configured.connect,
        first_byte: longer(configured.first_byte),
        idle: longer(configured.idle),
        total: configured.total.map(longer),
    }
}

impl<'a> Changing<'a> {
    pub(super) fn new(
        head: &'a Head,
        facts: &'a mut RequestFacts,
        bytes: Bytes,
        actions: &'a mut Vec<ActionTaken>,
    ) -> Self {
        Self {
            route: Cow::Borrowed(&head.route),
            head,
            facts,
            bytes,
            path: None,
            changes: Changes::default(),
            actions,
        }
    }

    /// Carries out what is asked of this request. Returns how it is to be taken apart, if it is.
    pub(super) fn obey(
        &mut self,
        worker: &Worker,
        snapshot: &Snapshot,
        sender: Sender<'_>,
        now: Mono,
    ) -> Result<Option<Split>, Problem> {
        let due = Due::of(snapshot, sender, now);
        let generates = self.route.api.generates();
        let signed = is_signed(self.head);
        if let Some((directive, version)) = due.restore.filter(|_| generates)
            && sender.version != Some(version.as_str())
        {
            let agent = AgentId::from(sender.agent);
            let api = self.route.api.name();
            let wall = worker.shared.clock.wall();
            let known = worker.shared.versions.known(&agent, version, api, wall);
            let done = match known {
                _ if signed => Err(SIGNED.to_owned()),
                None => Err(format!("nothing is known of version {version} at {api}")),
                Some(known) => self.restore(directive, &known),
            };
            if let Err(why) = done {
                self.skipped(directive, why);
            }
        }
        if generates && !due.set.is_empty() {
            self.set_parameters(&due.set, signed);
        }
        if let Some((directive, to)) = due.downgrade.filter(|_| generates) {
            self.downgrade(snapshot, directive, to, signed)?;
        }
        if let Some((directive, max)) = due.max_output.filter(|_| generates) {
            let capped = self.unless(signed, |r| {
                let provider = &r.head.upstream.provider;
                let model = r.facts.decisive_model(&r.route);
                parameters::cap_output(&r.route, provider, model, &r.bytes, max.into())
            });
            match capped {
                Err(why) => self.skipped(directive, why),
                Ok(None) => {}
                Ok(Some(lowered)) => {
                    self.bytes = lowered.body.into();
                    self.actions.push(ActionTaken::OutputCapped {
                        from: lowered.from,
                        to: lowered.to,
                    });
                    self.changes.add(directive);
                }
            }
        }
        if let Some((directive, max)) = due.max_choices {
            let capped = self.unless(signed, |r| {
                parameters::cap_choices(&r.route, &r.bytes, max.into())
            });
            match capped {
                Err(why) => self.skipped(directive, why),
                Ok(None) => {}
                Ok(Some(lowered)) => {
                    self.bytes = lowered.body.into();
                    self.actions.push(ActionTaken::ChoicesReduced {
                        from: lowered.from.unwrap_or(u64::MAX),
                        to: lowered.to,
                    });
                    self.changes.add(directive);
                }
            }
        }
        if let Some((directive, max)) = due.max_inputs {
            let max = usize::try_from(max).unwrap_or(usize::MAX);
            match split(&self.route, &self.bytes, max) {
                Err(why) => self.skipped(directive, why.to_string()),
                Ok(None) => {}
                Ok(Some(split)) => {
                    self.changes.add(directive);
                    return Ok(Some(split));
                }
            }
        }
        Ok(None)
    }

    fn unless<T>(
        &self,
        signed: bool,
        change: impl FnOnce(&Self) -> Result<T, Unchanged>,
    ) -> Result<T, String> {
        if signed {
            return Err(SIGNED.to_owned());
        }
        change(self).map_err(|why| why.to_string())
    }

    /// Gives the request model and sampling parameters of a version: all of them or, where one cannot be given, none.
    /// Parameters that the version did not send are taken out; those that it did not always send alike stay.
    fn restore(&mut self, directive: &Directive, known: &KnownVersion) -> Result<(), String> {
        let before = (self.bytes.clone(), self.path.clone());
        let done = self.give(known);
        match done {
            Ok(false) => {}
            Ok(true) => {
                self.actions.push(ActionTaken::VersionRestored {
                    version: known.version.to_string(),
                });
                self.changes.add(directive);
            }
            Err(why) => {
                (self.bytes, self.path) = before;
                return Err(why);
            }
        }
        Ok(())
    }

    /// Returns whether anything was changed.
    fn give(&mut self, known: &KnownVersion) -> Result<bool, String> {
        let mut changed = false;
        for name in SAMPLING {
            if known.varies.contains(name) {
                continue;
            }
            let new = match known.parameters.get(name) {
                Some(value) => {
                    let provider = &self.head.upstream.provider;
                    parameters::set(&self.route, provider, None, &self.bytes, name, value)
                }
                None => parameters::remove(&self.route, &self.bytes, name),
            };
            if let Some(new) = new.map_err(|why| why.to_string())? {
                self.bytes = new.into();
                changed = true;
            }
        }
        if let Some(model) = known.model.as_deref().filter(|_| !known.varies.contains(MODEL))
            && self.facts.decisive_model(&self.route) != Some(model)
        {
            self.replace(model).map_err(|why| why.to_string())?;
            changed = true;
        }
        Ok(changed)
    }

    fn set_parameters(&mut self, set: &[(&Directive, &str, &Value)], signed: bool) {
        let mut names = Vec::new();
        for (directive, name, value) in set {
            let new = self.unless(signed, |r| {
                let provider = &r.head.upstream.provider;
                let model = r.facts.decisive_model(&r.route);
                parameters::set(&r.route, provider, model, &r.bytes, name, value)
            });
            match new {
                Err(why) => self.skipped(directive, why),
                Ok(None) => {}
                Ok(Some(new)) => {
                    self.bytes = new.into();
                    names.push((*name).to_owned());
                    self.changes.add(directive);
                }
            }
        }
        if !names.is_empty() {
            self.actions.push(ActionTaken::ParametersSet { names });
        }
    }

    fn downgrade(
        &mut self,
        snapshot: &Snapshot,
        directive: &Directive,
        to: Option<&str>,
        signed: bool,
    ) -> Result<(), Problem> {
        let change = match signed {
            // A signature covers what would be changed: such a request is only watched.
            true => Err(SIGNED.to_owned()),
            false => target(snapshot, &self.route, self.facts, to),
        };
        match change {
            Err(why) => self.actions.push(ActionTaken::DowngradeSkipped { why }),
            Ok(None) => {}
            Ok(Some((from, to))) => {
                self.replace(&to)
                    .map_err(|e| Problem::CannotRewrite(e.to_string()))?;
                self.actions.push(ActionTaken::ModelDowngraded { from, to });
                self.changes.add(directive);
            }
        }
        Ok(())
    }

    /// Puts another model into body or path.
    fn replace(&mut self, to: &str) -> Result<(), crate::dialect::rewrite::RewriteError> {
        let path = self.path.as_deref().unwrap_or(self.head.path());
        let new = replace_model(&self.route, self.facts, path, &self.bytes, to)?;
        if let Some(path) = new.path {
            self.path = Some(path);
        }
        if let Some(body) = new.body {
            self.bytes = body.into();
        }
        let from = self
            .facts
            .decisive_model(&self.route)
            .unwrap_or_default()
            .to_owned();
        match &mut self.changes.model {
            Some((_, last)) => to.clone_into(last),
            none => *none = Some((from, to.to_owned())),
        }
        // What comes after this sees the request as it is now.
        self.facts.model = Some(to.to_owned());
        if self.route.path_model.is_some() {
            self.route.to_mut().path_model = Some(to.to_owned());
        }
        Ok(())
    }

    fn skipped(&mut self, directive: &Directive, why: String) {
        self.actions.push(ActionTaken::StepSkipped {
            step: directive.order.name().to_owned(),
            why,
        });
    }
}

impl Changes {
    fn add(&mut self, directive: &Directive) {
        let name = directive.order.name();
        if !self.names.contains(&name) {
            self.names.push(name);
        }
        if !self.incidents.contains(&directive.incident) {
            self.incidents.push(directive.incident.clone());
        }
    }

    /// Whether nothing was changed.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Names all that was changed, so that nobody has to wonder about it.
    pub(super) fn say(&self, headers: &mut HeaderMap, request_id: &RequestId) {
        let incidents: Vec<&str> = self.incidents.iter().map(IncidentId::as_str).collect();
        let mut say = |name, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        say("x-fusebox-action", &self.names.join(", "));
        say("x-fusebox-incident", &incidents.join(", "));
        say("x-fusebox-request-id", request_id.as_str());
        if let Some((from, to)) = &self.model {
            say("x-fusebox-model-requested", from);
            say("x-fusebox-model-used", to);
        }
    }
}

/// Why a signed request stays as it is.
const SIGNED: &str = "it is signed";

/// Which model was asked for and which to use instead. `Ok(None)`: the one that was asked for is cheap enough already.
fn target(
    snapshot: &Snapshot,
    route: &Route,
    facts: &RequestFacts,
    to: Option<&str>,
) -> Result<Option<(String, String)>, String> {
    if let Some(problem) = &facts.model_problem
        && route.path_model.is_none()
    {
        // Not known is not cheap: what cannot be read cannot be let through under a directive.
        return Ok(Some((format!("{problem:?}"), to.unwrap_or_default().to_owned())));
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
    Ok((*to != *from).then(|| (from.to_owned(), to.into_owned())))
}

/// Whether the request's signature covers what would be changed (AWS SigV4).
pub(super) fn is_signed(head: &Head) -> bool {
    head.parts
        .headers
        .get(AUTHORIZATION)
        .is_some_and(|a| a.as_bytes().starts_with(b"AWS4-"))
}
