//! The words that the way of a request and the way of an incident share; no behaviour beyond their own invariants.

pub mod directive;
pub mod ids;
pub mod notice;
pub mod observation;
pub mod secret;
pub mod time;
pub mod usage;
