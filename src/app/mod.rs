//! The composition root: builds every part from the configuration and starts it; the only part that knows all others.
//!
//! ```text
//! listeners ─→ workers (a thread each) ──reports──→ driver (owns the engine) ──→ publisher ──snapshot──→ workers
//!                                                     │    ▲                └──→ alerts, journal, metrics
//!                                 reload ──rules──────┘    └──asks── admin
//! ```
//!
//! Stopping goes the same way: accept, streams, reports, effects, alerts.

mod files;
mod reload;
pub mod signals;
mod start;
mod watch;

pub use start::{Running, start};

use std::path::PathBuf;

use crate::config::Overrides;

/// Where the configuration came from, so that a reload can read it again.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file, with what the command line says on top.
    File(PathBuf, Overrides),
    /// No file: the built-in defaults and what the command line says.
    Defaults(Overrides),
    /// Given by the program itself; there is nothing to read again.
    Fixed,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path, _) => write!(f, "{}", path.display()),
            Self::Defaults(_) => f.write_str("built-in defaults"),
            Self::Fixed => f.write_str("built in"),
        }
    }
}
