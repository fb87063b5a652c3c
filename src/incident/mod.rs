//! The way of an incident: from an observation to what must be obeyed and who must be told; pure.

pub mod effect;
pub mod input;
pub mod rule;
