//! What requests read: one immutable snapshot of policy and directives, and the slots that outlive it.

mod budget;
pub mod chains;
pub mod failover;
pub mod gate;
mod limiter;
pub mod policy;
pub mod slots;
pub mod snapshot;
pub mod versions;
