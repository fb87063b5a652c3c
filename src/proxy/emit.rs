//! The account of one exchange: kept from its head on, settled exactly once when it is dropped.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::flights::Boarded;
use super::identify::Identity;
use super::worker::Worker;
use crate::dialect::meter::{Ended, Measured, Meter};
use crate::dialect::table::Api;
use crate::enforce::gate::Permit;
use crate::enforce::policy::Upstream;
use crate::enforce::snapshot::Snapshot;
use crate::types::ids::RequestId;
use crate::types::observation::{ActionTaken, Observation, Outcome, Report};
use crate::types::time::{Mono, Now};
use crate::types::usage::{Normalised, UsageSource};

/// How often a running stream tells what it used so far.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Characters of text to a token, for streams that have not said yet what they used: the usual figure for English.
const CHARS_PER_TOKEN: u64 = 4;

/// The account of one exchange.
///
/// Whatever happens to an exchange (answered, refused, left by its client, torn down with its connection), its
/// account is dropped once, and dropping it settles the limiter, adds to the totals and emits the observation.
pub(super) struct Account {
    pub(super) worker: Rc<Worker>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) request_id: RequestId,
    pub(super) identity: Identity,
    pub(super) api: Api,
    pub(super) upstream: Arc<Upstream>,
    pub(super) stream_asked: bool,
    /// The client itself asked for usage at the end of the stream.
    pub(super) usage_asked: bool,
    /// Azure's dialect is spoken.
    pub(super) azure: bool,
    /// Its place among the exchanges that can be stopped.
    pub(super) flight: Option<Boarded>,
    /// Tokens of input as far as the body's size tells, for answers that do not say.
    pub(super) estimated_input: u64,
    pub(super) permit: Option<Permit>,
    pub(super) meter: Option<Meter>,
    /// What answers said that came before the one that is metered, where one request became several.
    pub(super) earlier: Option<Box<Measured>>,
    pub(super) status: u16,
    pub(super) outcome: Option<Outcome>,
    pub(super) error: Option<(String, String)>,
    /// The answer said by what a later request names it, and that was remembered.
    pub(super) may_continue: bool,
    pub(super) actions: Vec<ActionTaken>,
    pub(super) times: Times,
}

/// When what happened to an exchange.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// The head was there.
    pub(super) started: Mono,
    /// The request was complete and fusebox began to work on it.
    pub(super) complete: Mono,
    /// Held back on purpose.
    pub(super) held: Duration,
    /// The request went to the upstream.
    pub(super) forwarded: Option<Mono>,
    /// The head of the answer came.
    pub(super) first_byte: Option<Mono>,
    /// The first token came.
    pub(super) first_token: Option<Mono>,
    /// When a stream tells what it used so far; zero before its first part.
    pub(super) next_progress: Mono,
}

impl Account {
    /// Notes how it ended; the first word counts.
    pub(super) fn ended(&mut self, outcome: Outcome) {
        self.outcome.get_or_insert(outcome);
    }

    /// Adds what an answer said that is not the last one to this request.
    pub(super) fn add_earlier(&mut self, measured: Measured) {
        let all = match self.earlier.take() {
            None => measured,
            Some(earlier) => earlier.and(measured),
        };
        self.earlier = Some(Box::new(all));
    }

    fn settle(&mut self) {
        let worker = Rc::clone(&self.worker);
        let shared = &worker.shared;
        let now = shared.clock.now();
        let meter = self.meter.take();
        let outcome = self.outcome.unwrap_or_else(|| {
            // Nobody said how it ended: it was dropped from outside.
            if meter.as_ref().is_some_and(Meter::said_end) {
                Outcome::Complete
            } else if shared.drain.is_over() {
                Outcome::Cut
            } else {
                Outcome::ClientAbort
            }
        });
        let whole = outcome == Outcome::Complete;
        let measured = meter
            .map(|m| m.finish(if whole { Ended::Whole } else { Ended::BrokenOff }))
            .unwrap_or_default();
        let measured = match self.earlier.take() {
            None => measured,
            Some(earlier) => {
                let mut all = earlier.and(measured);
                if !whole {
                    // What was on its way when it ended was used as well.
                    all.usage_source = all.usage_source.with(UsageSource::Partial);
                }
                all
            }
        };
        if let Some(id) = measured.answer_id.as_deref().filter(|_| !self.may_continue) {
            self.may_continue = true;
            self.remember_answer(id, now.mono);
        }
        let actions = std::mem::take(&mut self.actions);
        let observation = self.observation(outcome, measured, actions, now);
        if let Some(mut permit) = self.permit.take() {
            if self.times.forwarded.is_some() {
                permit.settle(observation.normalised.total());
            } else {
                permit.give_back();
            }
        }
        self.identity.slot.totals.add(&observation);
        self.identity.kind.metrics.record(&observation);
        (shared.observer)(Report::Ended(observation));
    }

    /// Sees to it that a request that goes on from this answer is of this execution, as soon as the answer said its id:
    /// a client need not wait for the end of a stream.
    pub(super) fn learn_answer(&mut self, now: Mono) {
        if !self.may_continue
            && let Some(id) = self.meter.as_ref().and_then(Meter::answer_id)
        {
            self.may_continue = true;
            self.remember_answer(id, now);
        }
    }

    fn remember_answer(&self, id: &str, now: Mono) {
        let Identity { agent, execution, .. } = &self.identity;
        self.worker.shared.chains.remember(agent, id, execution, now);
    }

    /// Tells what a stream used so far, now and then, so that a runaway is seen before it ends.
    pub(super) fn progress(&mut self, now: Mono) {
        if now < self.times.next_progress {
            return;
        }
        let first = self.times.next_progress == Mono::ZERO;
        self.times.next_progress = now.after(PROGRESS_EVERY);
        let Some(meter) = self.meter.as_ref().filter(|m| !first && m.is_stream()) else {
            return;
        };
        let output_total = Some(meter.output_so_far().div_ceil(CHARS_PER_TOKEN));
        let measured = Measured {
            stream: true,
            usage_source: UsageSource::Estimated,
            normalised: Normalised {
                input_total: None,
                output_total,
            },
            ..Measured::default()
        };
        let shared = Rc::clone(&self.worker);
        let now = shared.shared.clock.now();
        let observation = self.observation(Outcome::Complete, measured, self.actions.clone(), now);
        (shared.shared.observer)(Report::Running(observation));
    }

    fn observation(
        &mut self,
        outcome: Outcome,
        measured: Measured,
        actions: Vec<ActionTaken>,
        now: Now,
    ) -> Box<Observation> {
        let Now { mono: now, wall } = now;
        let times = self.times;
        let millis = |to: Mono| to.since(times.started).as_secs_f64() * 1e3;
        let working = times
            .forwarded
            .unwrap_or(now)
            .since(times.complete)
            .saturating_sub(times.held);
        let mut normalised = measured.normalised;
        if measured.usage_source == UsageSource::Estimated && normalised.input_total.is_none() {
            normalised.input_total = Some(self.estimated_input);
        }
        let kind = &self.identity.kind;
        let (model_served, price) = kind.served(&self.snapshot.policy, measured.model_served);
        let cost_usd = price.and_then(|price| price.cost(&measured.usage, &normalised));
        let (error_type, error_code) = match self.error.take() {
            Some((kind, code)) => (Some(kind), Some(code)),
            None => (measured.error_type, measured.error_code),
        };
        let identity = &self.identity;
        Box::new(Observation {
            request_id: self.request_id.clone(),
            time: wall,
            agent: identity.agent.clone(),
            agent_source: identity.agent_source,
            agent_version: identity.version.clone(),
            execution: identity.execution.clone(),
            execution_source: identity.execution_source,
            upstream: self.upstream.name.clone(),
            provider: self.upstream.provider.clone(),
            api: self.api.name().into(),
            model_requested: identity.kind.model.clone(),
            model_served,
            status: self.status,
            stream: measured.stream || (self.stream_asked && times.first_byte.is_none()),
            outcome,
            usage_source: measured.usage_source,
            usage: measured.usage,
            normalised,
            finish_reason: measured.finish_reason,
            finish_detail: measured.finish_detail,
            error_type,
            error_code,
            tool_calls: measured.tool_calls,
            output_chars: measured.output_chars,
            ttfb_ms: times.first_byte.map(millis),
            ttft_ms: times.first_token.map(millis),
            duration_ms: millis(now),
            overhead_us: u64::try_from(working.as_micros()).unwrap_or(u64::MAX),
            cost_usd,
            may_continue: self.may_continue,
            actions,
            ended: now,
        })
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle();
    }
}
