//! What requests read: one immutable snapshot of policy and directives, and the slots that outlive it.

pub mod policy;
