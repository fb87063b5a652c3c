//! What directives would have done to a recorded exchange: let it pass, hold it back, refuse it, or make it cheaper.

use std::collections::HashMap;

use serde::Serialize;

use crate::dialect::models::{ModelTable, Need};
use crate::dialect::price::PriceTable;
use crate::dialect::table::Api;
use crate::enforce::policy::Policy;
use crate::types::directive::{Directive, DirectiveSet, Order, Sender, Subject};
use crate::types::ids::IncidentId;
use crate::types::observation::{Observation, Outcome};
use crate::types::time::Mono;
use crate::types::usage::{Normalised, UsageSource};

/// A budget holds this share of a minute's cells at most, as at the gate.
const REQUESTS_HELD: f64 = 1.0 / 6.0;
const TOKENS_HELD: f64 = 1.0 / 4.0;
/// Exchanges in flight remembered of one subject.
const MOST_IN_FLIGHT: usize = 10_000;

/// What directives did, in all or for one incident.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Done {
    /// Exchanges that were bound by a directive.
    pub(super) bound: u64,
    /// Exchanges refused by a limit or a containment.
    pub(super) refused: u64,
    /// Exchanges held back for a while and then let through.
    pub(super) delayed: u64,
    /// Exchanges answered by a cheaper model.
    pub(super) downgraded: u64,
    /// Exchanges changed otherwise: shorter answers, another upstream, other parameters, another version.
    pub(super) changed: u64,
    /// Tokens that were not used.
    pub(super) tokens_saved: u64,
    /// US dollars that were not spent, where prices are known.
    pub(super) cost_saved_usd: f64,
}

impl Done {
    /// Adds another one.
    pub(super) fn add(&mut self, other: &Self) {
        self.bound += other.bound;
        self.refused += other.refused;
        self.delayed += other.delayed;
        self.downgraded += other.downgraded;
        self.changed += other.changed;
        self.tokens_saved = self.tokens_saved.saturating_add(other.tokens_saved);
        self.cost_saved_usd += other.cost_saved_usd;
    }
}

/// The gate of a replay.
#[derive(Debug)]
pub(super) struct Gate {
    prices: PriceTable,
    models: ModelTable,
    /// How long an exchange may be held back before it is refused, in seconds.
    patience: f64,
    buckets: HashMap<(IncidentId, Subject, bool), Bucket>,
    in_flight: HashMap<Subject, Vec<(Mono, Mono)>>,
    /// By incident.
    pub(super) done: HashMap<IncidentId, Done>,
}

/// A budget that may be overdrawn: what passes is taken whole, and nothing passes while less than one cell is there.
#[derive(Debug)]
struct Bucket {
    level: f64,
    at: Mono,
}

impl Bucket {
    /// Seconds until something may pass.
    fn wait(&mut self, per_minute: u32, held: f64, now: Mono) -> f64 {
        let (rate, most) = (
            f64::from(per_minute) / 60.0,
            (f64::from(per_minute) * held).max(1.0),
        );
        self.level = (self.level + now.since(self.at).as_secs_f64() * rate).min(most);
        self.at = self.at.max(now);
        ((1.0 - self.level) / rate).max(0.0)
    }
}

impl Gate {
    /// A gate with the prices and models of a policy.
    pub(super) fn new(policy: &Policy) -> Self {
        Self {
            prices: policy.prices.clone(),
            models: policy.models.clone(),
            patience: policy.limits.max_admission_wait.as_secs_f64(),
            buckets: HashMap::new(),
            in_flight: HashMap::new(),
            done: HashMap::new(),
        }
    }

    /// Applies what is in force at `now` to an exchange. `Some`: as what the engine would have seen it then.
    pub(super) fn apply(&mut self, set: &DirectiveSet, o: &Observation, now: Mono) -> Option<Observation> {
        if set.is_empty() || o.outcome == Outcome::Refused {
            return None;
        }
        let sender = Sender {
            agent: o.agent.as_str(),
            execution: o.execution.as_str(),
            version: o.agent_version.as_ref().map(|v| v.as_str()),
        };
        let start = now.before(o.duration());
        let mut seen: Option<Observation> = None;
        for directive in set.of(sender, now) {
            let mut done = Done {
                bound: 1,
                ..Done::default()
            };
            let now_o = seen.as_ref().unwrap_or(o);
            let next = self.obey(directive, now_o, start, now, &mut done);
            self.done
                .entry(directive.incident.clone())
                .or_default()
                .add(&done);
            let refused = next.as_ref().is_some_and(|n| n.outcome == Outcome::Refused);
            seen = next.or(seen);
            if refused {
                break;
            }
        }
        seen
    }

    fn obey(
        &mut self,
        d: &Directive,
        o: &Observation,
        start: Mono,
        now: Mono,
        done: &mut Done,
    ) -> Option<Observation> {
        match &d.order {
            Order::Throttle {
                requests_per_minute,
                tokens_per_minute,
            } => {
                let tokens = o.normalised.total().unwrap_or(0) as f64;
                let limits = [
                    (requests_per_minute, true, REQUESTS_HELD, 1.0),
                    (tokens_per_minute, false, TOKENS_HELD, tokens),
                ];
                let mut wait = 0.0_f64;
                for (limit, is_requests, held, _) in limits {
                    let Some(limit) = *limit else { continue };
                    wait = wait.max(
                        self.bucket(d, is_requests, limit, held, now)
                            .wait(limit, held, now),
                    );
                }
                if wait > self.patience {
                    return Some(refused(o, done));
                }
                done.delayed += u64::from(wait > 0.0);
                for (limit, is_requests, held, cells) in limits {
                    if let Some(limit) = *limit {
                        self.bucket(d, is_requests, limit, held, now).level -= cells;
                    }
                }
                None
            }
            Order::CapConcurrency { max_in_flight } => {
                let running = self.in_flight.entry(d.subject.clone()).or_default();
                running.retain(|(_, end)| *end > start);
                let beside = running.iter().filter(|(began, _)| *began <= start).count();
                if beside >= *max_in_flight as usize {
                    return Some(refused(o, done));
                }
                if running.len() < MOST_IN_FLIGHT {
                    running.push((start, now));
                }
                None
            }
            Order::Contain { .. } => Some(refused(o, done)),
            Order::DowngradeModel { to } => self.downgrade(to.as_deref(), o, done),
            Order::CapOutput { max_tokens, .. } => {
                let output = o.normalised.output_total?;
                let saved = output.checked_sub(u64::from(*max_tokens)).filter(|s| *s > 0)?;
                done.changed += 1;
                done.tokens_saved += saved;
                let mut shorter = o.clone();
                shorter.normalised.output_total = Some(output - saved);
                let price = self.price(o)?;
                let dollars = saved as f64 * price.output / 1e6;
                done.cost_saved_usd += dollars;
                Some(shorter)
            }
            Order::ReduceBatch { .. }
            | Order::Reroute { .. }
            | Order::ExtendTimeouts { .. }
            | Order::SetParameters { .. }
            | Order::RestoreVersion { .. } => {
                done.changed += 1;
                None
            }
        }
    }

    fn bucket(&mut self, d: &Directive, is_requests: bool, limit: u32, held: f64, now: Mono) -> &mut Bucket {
        let key = (d.incident.clone(), d.subject.clone(), is_requests);
        self.buckets.entry(key).or_insert_with(|| Bucket {
            level: (f64::from(limit) * held).max(1.0),
            at: now,
        })
    }

    fn downgrade(&self, to: Option<&str>, o: &Observation, done: &mut Done) -> Option<Observation> {
        let from = o.model_requested.as_ref()?.as_str();
        let need = Need {
            tools: !o.tool_calls.is_empty(),
            json_schema: false,
            vision: false,
            context_tokens: o.normalised.input_total.unwrap_or(0),
            max_output: None,
        };
        let to = match to {
            Some(to) => self.models.fits(&self.prices, from, to, &need),
            None => self.models.stand_in(&self.prices, from, &need),
        };
        let to = to.ok().filter(|to| **to != *from)?;
        done.downgraded += 1;
        let (was, cost) = (o.cost_usd?, self.cost(&to, o)?);
        done.cost_saved_usd += was.usd() - cost.usd();
        let mut cheaper = o.clone();
        cheaper.cost_usd = Some(cost);
        cheaper.model_served = Some(to.as_ref().into());
        Some(cheaper)
    }

    fn price(&self, o: &Observation) -> Option<crate::dialect::price::Price> {
        let models = [&o.model_served, &o.model_requested];
        models
            .into_iter()
            .flatten()
            .find_map(|m| self.prices.price(m.as_str()))
    }

    fn cost(&self, model: &str, o: &Observation) -> Option<crate::types::usage::Cost> {
        self.prices
            .cost(Api::OpenAiChat, Some(model), None, &o.usage, &o.normalised)
    }
}

/// As it would have been seen when it was refused.
fn refused(o: &Observation, done: &mut Done) -> Observation {
    done.refused += 1;
    done.tokens_saved += o.normalised.total().unwrap_or(0);
    done.cost_saved_usd += o.cost_usd.map_or(0.0, |c| c.usd());
    let mut refused = o.clone();
    refused.outcome = Outcome::Refused;
    refused.status = 429;
    refused.usage_source = UsageSource::None;
    refused.normalised = Normalised::default();
    refused.cost_usd = None;
    refused
}
