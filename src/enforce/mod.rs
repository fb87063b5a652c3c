//! What requests read: one immutable snapshot of policy and directives, and the slots that outlive it.

pub mod breaker;
mod budget;
pub mod chains;
pub mod failover;
pub mod gate;
mod limiter;
pub mod policy;
pub mod retry;
pub mod slots;
pub mod snapshot;
pub mod versions;
