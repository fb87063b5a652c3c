//! Ends answers that are on their way: with an error when their sender is contained, well-formed when they are too long.

use std::sync::Arc;

use bytes::Bytes;

use super::emit::Account;
use super::observe::{Parts, Relay};
use super::reply::{CONTAINED, containment};
use crate::dialect::ending::Spent;
use crate::dialect::meter::Meter;
use crate::enforce::gate::containing;
use crate::types::directive::{Directive, DirectiveSet, Order};
use crate::types::observation::{ActionTaken, Outcome};
use crate::types::time::Mono;
use crate::types::usage::{Cost, Normalised};

/// Output tokens that have to come before a stream's cost is reckoned again.
const COST_EVERY: u64 = 32;

/// What a running stream is held to.
pub(super) struct Limits {
    /// By directive: output tokens, and why.
    ordered: Option<(u64, Arc<Directive>)>,
    max_tokens: Option<u64>,
    max_cost: Option<Cost>,
    repetition: bool,
    /// Output tokens when its cost was reckoned last.
    reckoned: u64,
}

/// Why an answer is ended.
pub(super) enum Stop {
    /// This directive contains its sender.
    Contained(Arc<Directive>),
    /// It is too long: why, for people.
    Cut(String),
}

impl Limits {
    /// What the answer of `account` is held to by the snapshot of its request, if it is held to anything.
    pub(super) fn of(account: &mut Account) -> Option<Box<Self>> {
        let streams = account.snapshot.policy.streams;
        let directives = &account.snapshot.directives;
        let ordered = if directives.is_empty() {
            None
        } else {
            let now = account.worker.shared.clock.mono();
            shortest(directives, account, now)
        };
        if ordered.is_none()
            && !streams.cut_repetition
            && streams.max_output_tokens.is_none()
            && streams.max_cost.is_none()
        {
            return None;
        }
        account.meter.as_mut()?.watch(streams.cut_repetition);
        Some(Box::new(Self {
            ordered,
            max_tokens: streams.max_output_tokens,
            max_cost: streams.max_cost,
            repetition: streams.cut_repetition,
            reckoned: 0,
        }))
    }

    /// Whether so many bytes more might be too much: then they are looked at event by event.
    pub(super) fn are_near(&self, meter: &Meter, bytes: usize) -> bool {
        let ordered = self.ordered.as_ref().map(|(max, _)| *max);
        let Some(max) = [ordered, self.max_tokens].into_iter().flatten().min() else {
            return false;
        };
        meter.output_tokens_so_far().saturating_add(bytes as u64 / 4) >= max && meter.is_open_stream()
    }

    /// Why the answer has to end now, if it has.
    pub(super) fn exceeded(&mut self, account: &Account) -> Option<String> {
        let meter = account.meter.as_ref()?;
        let tokens = meter.output_tokens_so_far();
        if let Some((max, by)) = &self.ordered
            && tokens > *max
        {
            return Some(format!(
                "more than {max} output tokens (incident {}, rule {})",
                by.incident, by.rule
            ));
        }
        if let Some(max) = self.max_tokens.filter(|max| tokens > *max) {
            return Some(format!(
                "more than {max} output tokens (streams.max_output_tokens)"
            ));
        }
        if self.repetition && meter.repeats() {
            return Some("its output goes round in circles (streams.cut_repetition)".to_owned());
        }
        let max = self.max_cost?;
        if tokens < self.reckoned.saturating_add(COST_EVERY) {
            return None;
        }
        self.reckoned = tokens;
        (cost(account, meter, tokens)? > max).then(|| format!("costs more than {max} (streams.max_cost_usd)"))
    }
}

/// What an answer costs so far.
fn cost(account: &Account, meter: &Meter, output: u64) -> Option<Cost> {
    let normalised = Normalised {
        input_total: Some(meter.input_tokens_so_far().unwrap_or(account.estimated_input)),
        output_total: Some(output),
    };
    let mut usage = *meter.usage_so_far();
    // As far as it is reported it is not what there is by now.
    usage.output_tokens = None;
    let asked = account.identity.kind.model.as_ref().map(|m| m.as_str());
    let prices = &account.snapshot.policy.prices;
    prices.cost(account.api, meter.model_so_far(), asked, &usage, &normalised)
}

/// The shortest output that directives allow the streams of an exchange.
fn shortest(directives: &DirectiveSet, account: &Account, now: Mono) -> Option<(u64, Arc<Directive>)> {
    directives
        .of(account.identity.sender(), now)
        .filter_map(|d| match d.order {
            Order::CapOutput {
                max_tokens,
                cut_streams: true,
            } => Some((u64::from(max_tokens.max(1)), d)),
            _ => None,
        })
        .min_by_key(|(max, _)| *max)
        .map(|(max, d)| (max, Arc::clone(d)))
}

impl Parts {
    /// Whether an event of ours could follow what was handed on so far.
    pub(super) fn is_between_events(&self) -> bool {
        match &self.hider {
            Some(hider) => hider.is_between_events(),
            None => self.account.meter.as_ref().is_some_and(Meter::is_between_events),
        }
    }
}

impl Relay {
    /// Holds the answer to other directives.
    pub(super) fn obey(&mut self, directives: &DirectiveSet, now: Mono) {
        let Some(parts) = &mut self.parts else { return };
        let account = &mut parts.account;
        if let Some(by) = containing(directives.of(account.identity.sender(), now)) {
            return self.contain(by);
        }
        let ordered = shortest(directives, account, now);
        match (&mut parts.limits, ordered) {
            (Some(limits), ordered) => limits.ordered = ordered,
            (None, None) => {}
            (None, Some(ordered)) => {
                if let Some(meter) = &mut account.meter {
                    meter.watch(false);
                    parts.limits = Some(Box::new(Limits {
                        ordered: Some(ordered),
                        max_tokens: None,
                        max_cost: None,
                        repetition: false,
                        reckoned: 0,
                    }));
                }
            }
        }
    }

    /// Ends the answer with an error; at once where that can be, else with the event that is under way.
    fn contain(&mut self, by: Arc<Directive>) {
        let Some(parts) = &mut self.parts else { return };
        if parts.account.outcome.is_some() || parts.account.meter.as_ref().is_some_and(Meter::said_end) {
            // All of it is there; its client only has to take it.
            return;
        }
        let open = !parts.fixed_length && parts.account.meter.as_ref().is_some_and(Meter::is_open_stream);
        parts.stopping = Some(Stop::Contained(by));
        if !open {
            self.break_off();
        } else if parts.is_between_events() {
            self.end_here();
        }
        self.wake();
    }

    /// Whether it is contained and goes on until the event that is under way ends.
    pub(super) fn is_stopping(&self) -> bool {
        let stopping = self.parts.as_ref().and_then(|p| p.stopping.as_ref());
        matches!(stopping, Some(Stop::Contained(_)))
    }

    /// Ends what is contained without a word, by breaking off its connection.
    pub(super) fn break_off(&mut self) {
        if !self.is_stopping() {
            return;
        }
        if let Some(mut parts) = self.parts.take() {
            if let Some(Stop::Contained(by)) = parts.stopping.take() {
                note_contained(&mut parts.account, &by);
            }
            self.rest = std::mem::take(&mut parts.ready);
        }
        self.broken = true;
        self.wake();
    }

    /// Ends what is to be stopped, between two events.
    pub(super) fn end_here(&mut self) {
        let Some(mut parts) = self.parts.take() else {
            return;
        };
        let account = &mut parts.account;
        let bytes = match parts.stopping.take() {
            None => return self.parts = Some(parts),
            Some(Stop::Contained(by)) => {
                let refusal = containment(&by, &account.request_id);
                let azure = account.azure;
                let event = account
                    .meter
                    .as_ref()
                    .and_then(|m| m.interruption(azure, &refusal));
                note_contained(account, &by);
                self.broken = event.is_none();
                event
            }
            Some(Stop::Cut(why)) => {
                let now = account.worker.shared.clock.wall();
                let spent = Spent {
                    input: account.estimated_input,
                    output: 0,
                    asked: account.usage_asked,
                    began: u64::try_from(now.unix_millis() / 1000).unwrap_or(0),
                };
                let end = account.meter.as_mut().and_then(|m| m.end_early(spent));
                if end.is_none() {
                    parts.go_on();
                    self.parts = Some(parts);
                    return;
                }
                let (agent, upstream) = (&account.identity.agent, &account.upstream.name);
                tracing::info!(%agent, %upstream, why, "stream cut");
                account.actions.push(ActionTaken::StreamCut { why });
                account.ended(Outcome::Cut);
                end
            }
        };
        self.rest = std::mem::take(&mut parts.ready);
        self.rest.extend(bytes.map(Bytes::from));
        // What is left of the parts is dropped here: that settles the account and closes the upstream's side.
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Notes that an answer was stopped in the middle.
pub(super) fn note_contained(account: &mut Account, by: &Directive) {
    let (agent, upstream, incident) = (&account.identity.agent, &account.upstream.name, &by.incident);
    tracing::debug!(%agent, %upstream, %incident, "answer stopped: its sender is contained");
    account.actions.push(ActionTaken::Contained {
        rule: by.rule.to_string(),
    });
    account.error = Some(("fusebox".to_owned(), CONTAINED.to_owned()));
    account.ended(Outcome::Cut);
}
