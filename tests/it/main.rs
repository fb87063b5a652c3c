//! The one integration binary: the real program over real sockets and signals, on port 0, waiting on conditions.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::let_underscore_must_use,
    reason = "a test ends where it cannot go on"
)]

mod support;

mod admin;
mod bad_input;
mod chains;
mod cli;
mod clients;
mod contain;
mod corpus;
mod dialects;
mod failover;
mod hostile;
mod humans;
mod incident;
mod ledger;
mod listeners;
mod observations;
mod orders;
mod recovery;
mod reload;
mod scenarios;
mod streams;
mod transparent;
mod uploads;
mod upstreams;
