//! Stories told to the whole engine: what is seen, and what has to come of it.

mod chain;
mod finding;
mod life;
mod limits;
mod properties;

use super::rule::{Metric, Rule};
use super::testing::{rule, tokens};
use crate::types::observation::Observation;

pub(super) const THROTTLED: &str = "throttle to 60 requests/min and 10,000 tokens/min";
pub(super) const SWITCHED: &str = "model switched to a cheaper one by the model table";

pub(super) fn explosion() -> Rule {
    rule("token_explosion_detection", Metric::TokensPerExecution)
}

/// An execution of one call, each second another.
pub(super) fn calm(agent: &str) -> impl FnMut(u64) -> Observation {
    move |second| tokens(agent, &format!("calm-{second}"), 2000)
}

pub(super) fn wild(agent: &str) -> impl FnMut(u64) -> Observation {
    move |second| tokens(agent, &format!("wild-{second}"), 12_000)
}
