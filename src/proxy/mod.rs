//! The way of a request, in order: accept, connection, exchange (identify, admit, rewrite, forward, observe, emit).
//!
//! | step | file | takes | gives |
//! |---|---|---|---|
//! | accept | `accept.rs` | a bound listener | a connection, TLS done |
//! | connection | `connection.rs` | a connection | its requests, one by one or side by side |
//! | exchange | `exchange.rs` | a request | its answer; the only file that knows the order of the steps below |
//! | arrive | `arrive.rs` | head and body | `Arrived`: which API, what the body says |
//! | identify | `identify.rs` | `Arrived` | who it is, which version, which execution |
//! | admit | `admit.rs` | who, directives | a permit, or a refusal |
//! | hops | `hops.rs` | directives, policy | where it goes instead, and where it may go on to when that fails (`failure.rs`) |
//! | rewrite | `rewrite.rs`, `orders.rs` | body, directives | `Prepared`: what is sent |
//! | forward | `forward.rs` | `Prepared` | the head of an answer |
//! | observe | `observe.rs` | an answer's body | the same bytes, metered |
//! | emit | `emit.rs` | the end | one observation, totals, settled limits |
//!
//! An embedding call that a directive splits leaves it after `rewrite`: `batch.rs` sends its parts through `forward`.
//! What a directive stops on its way is found through `flights.rs` and ended by `cut.rs`.
//! A WebSocket leaves this way after `admit`: `switch.rs` relays its bytes. Answers of fusebox itself are made in `reply.rs`.
//! What `watched.rs` sees of a connection's bytes is told to the clocks, and to `framing.rs`, which looks for two lengths.

mod accept;
mod admit;
mod alarm;
mod arrive;
mod batch;
mod body;
mod certificate;
mod connection;
mod cut;
mod drain;
mod emit;
mod exchange;
mod failure;
mod flights;
mod forward;
mod framing;
mod headers;
mod hops;
mod identify;
mod keys;
mod local;
mod noted;
mod observe;
mod orders;
mod reply;
mod rewrite;
mod run;
mod switch;
mod upstream;
mod watched;
mod worker;

pub use accept::{Listening, bind};
pub use certificate::{Certificate, CertificateError};
pub use drain::Drain;
pub use run::run_worker;
pub use upstream::{TlsClients, TlsError};
pub use worker::{RequestIds, Shared, Unwilling};
