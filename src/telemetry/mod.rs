//! What operators see: logs and metrics, closed sets both.

mod exchange;
pub mod failover;
mod histogram;
pub mod ledger;
pub mod logs;
pub mod metrics;
