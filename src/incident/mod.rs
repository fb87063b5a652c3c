//! The way of an incident: from an observation to what must be obeyed and who must be told; pure.
//!
//! The steps in order, and where each is:
//!
//! 1. an exchange is taken in ([`input`], `observe`): its agent (`names`, `pace`) and its execution (`execution`);
//! 2. what it says about each metric (`metric`, `measure`) goes into the windows of the rules that cover it (`window`,
//!    `sketch`);
//! 3. each rule ([`rule`]) judges its subject (`gauge`), and a breach that lasts is a finding (`detect`);
//! 4. a finding opens an incident (`respond`, `case`, `casebook`) or joins one (`correlate`), unless a maintenance window
//!    covers it ([`silence`]);
//! 5. its action becomes a plan, step by step (`advance`, `plan`): taken, asked about (`approval`), judged on what was seen
//!    since, followed by the next; `version` knows which version of an agent was good;
//! 6. the incident lives (`lifecycle`) and recovers (`recovery`) by what its metric says, by what an operator does
//!    (`operate`), or ends by a change of rules (`reload`);
//! 7. what has to be done is an [`effect`]; what there is to be seen is a [`record`] (`view`, `tell`); what outlives the
//!    process is written down by [`restore`]; the whole story of one is told by [`postmortem`].
//!
//! [`engine`] holds it all and is the only thing that changes.

pub mod effect;
pub mod engine;
pub mod input;
pub mod metric;
pub mod postmortem;
pub mod record;
pub mod restore;
pub mod rule;
pub mod silence;

mod advance;
mod approval;
mod case;
mod casebook;
mod correlate;
mod detect;
mod execution;
mod gauge;
mod glob;
mod lifecycle;
mod measure;
mod names;
mod observe;
mod operate;
mod pace;
mod plan;
mod recovery;
mod reload;
mod respond;
mod sketch;
mod tell;
mod trouble;
mod version;
mod view;
mod window;

#[cfg(test)]
mod scenarios;
#[cfg(test)]
mod testing;
