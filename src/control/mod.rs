//! The loops around the pure engine: one task owns it, performs what it asks, and answers what others ask about it.
//!
//! | file | what |
//! |---|---|
//! | `driver.rs` | the one task that owns the engine: observations in, effects out, questions answered |
//! | `outbox.rs` | where requests leave observations; counts those that found no room |
//! | `recent.rs` | what went wrong lately, for the status |
//! | `perform.rs` | makes effects real: directives published, notices queued, events counted and logged |
//! | `handle.rs` | what the admin side may ask |
//! | `announce.rs`, `events.rs` | what is told, in order, once it is durable; to those who look on |
//! | `keeper.rs`, `deliveries.rs`, `resume.rs` | what outlives the process: rows of the ledger, and the start after an end |
//! | `links.rs` | links in notices |
//! | `journal.rs` | the observations file: one thread that writes what it is handed |

mod announce;
pub mod deliveries;
pub mod driver;
pub mod events;
pub mod handle;
pub mod journal;
mod keeper;
pub mod links;
pub mod outbox;
mod perform;
mod recent;
pub mod resume;
