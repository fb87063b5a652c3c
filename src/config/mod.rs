//! The only part that knows the file format: text in, either every problem at once, or compiled types of the parts.

mod at;
mod check;
mod compile;
mod de;
mod defaults;
mod diff;
mod env;
mod file;
mod notes;
mod problem;
mod restart;
mod schema;
mod show;
mod suggest;
mod tree;
mod units;
mod url;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::alert::{AllowedDestinations, Target};
use crate::enforce::policy::{Bind, Listener, Policy};
use crate::incident::engine::Bounds;
use crate::incident::rule::Rulebook;
use crate::store::LedgerOptions;
use crate::telemetry::logs::LogFormat;
use crate::types::secret::Secret;

pub use problem::{ProblemView, Problems};
pub(crate) use show::{show_bind, show_rule};
pub(crate) use units::show_duration;

/// A length of time as the configuration writes it: `500ms`, `2.5s`, `1h30m`; `None` when it is none.
pub fn parse_duration(text: &str) -> Option<Duration> {
    units::duration(text)
}

/// The known word that `word` was probably meant to be, if one is near enough.
pub fn nearest_word<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    suggest::nearest(word, known.iter().copied())
}

/// Everything a configuration says, compiled.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Fixed at start.
    pub wiring: Wiring,
    /// For requests; may change by reload.
    pub policy: Policy,
    /// For the engine; may change by reload.
    pub rulebook: Arc<Rulebook>,
    /// For alerts; may change by reload.
    pub targets: Vec<Target>,
    /// Where requests may have notices sent to; may change by reload.
    pub destinations: AllowedDestinations,
}

/// What is fixed at start: a reload that changes it says so and keeps the old value.
#[derive(Debug, Clone, PartialEq)]
pub struct Wiring {
    /// Where clients are served; never empty.
    pub listeners: Vec<Listener>,
    /// The admin listener.
    pub admin: AdminWiring,
    /// Worker threads; at least 1.
    pub workers: usize,
    /// Where observations are written.
    pub observations: Option<ObservationSink>,
    /// Where the ledger is; `None` keeps everything in memory.
    pub ledger: Option<LedgerOptions>,
    /// How logs look.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: String,
    /// How long a drain may take.
    pub drain_deadline: Duration,
    /// Whether the directory of the configuration file is watched.
    pub watch: bool,
    /// Observations that may wait for the engine.
    pub observation_queue: usize,
    /// Bounds of the engine.
    pub bounds: Bounds,
    /// Agents told apart; the rest share one slot.
    pub max_agents: usize,
    /// Connections at once, all listeners together; more wait to be accepted.
    pub max_connections: usize,
    /// Label combinations kept in metrics.
    pub max_label_sets: usize,
}

/// The admin listener.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminWiring {
    /// Where it listens.
    pub bind: Bind,
    /// The bearer token that every request but probes must bear (or one of `tokens`); one is required beyond loopback.
    /// Who bears it is an operator.
    pub token: Option<Secret>,
    /// Further tokens. Names and digests are unique.
    pub tokens: Vec<AdminToken>,
    /// Host names it may be called by, beside loopback names and its own address.
    pub allowed_hosts: Vec<String>,
    /// Whether `/metrics` is open without the token.
    pub open_metrics: bool,
    /// The URL by which people reach it, without a trailing slash, for links in notices and pages for approvals.
    pub external_url: Option<String>,
    /// The header in which a proxy in front of the admin listener says who is calling, in lower case; trusted only where
    /// it is set.
    pub user_header: Option<String>,
}

impl AdminWiring {
    /// Every token, the single one included (as `token`); none means that no token is asked for.
    pub fn all_tokens(&self) -> Vec<AdminToken> {
        let single = self.token.as_ref().map(|token| AdminToken {
            name: "token".to_owned(),
            role: Role::Operator,
            digest: TokenDigest::of(token.expose()),
        });
        single.into_iter().chain(self.tokens.iter().cloned()).collect()
    }
}

/// A token of the admin API; its text is not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminToken {
    /// Who bears it, for the record.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// What it is known by.
    pub digest: TokenDigest,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// To look.
    Viewer,
    /// To look and to act.
    Operator,
}

/// SHA-256 of a token. Compares in constant time and is never printed.
#[derive(Clone)]
pub struct TokenDigest([u8; 32]);

impl TokenDigest {
    /// The digest of a token.
    pub fn of(token: &str) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(token.as_bytes()).into())
    }

    /// A digest as 64 hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        let mut digits = text.chars().map(|c| c.to_digit(16));
        for byte in &mut bytes {
            let (high, low) = (digits.next()??, digits.next()??);
            *byte = u8::try_from(high * 16 + low).ok()?;
        }
        digits.next().is_none().then_some(Self(bytes))
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenDigest {}

impl std::fmt::Debug for TokenDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[digest]")
    }
}

/// Where observations are written, one JSON line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ObservationSink {
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// What the command line says; wins over the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Overrides {
    /// In place of the file's listeners.
    pub listen: Vec<String>,
    /// In place of `admin.listen`.
    pub admin_listen: Option<String>,
    /// One upstream for every dialect, in place of the file's.
    pub upstream: Option<String>,
    /// In place of `observations.file`.
    pub observations: Option<String>,
    /// In place of `ledger.path`; relative to the working directory.
    pub ledger: Option<String>,
    /// In place of `log.level`.
    pub log_level: Option<String>,
}

/// Reads and compiles the file at `path`; `None` is the built-in default configuration (the three built-in rules on).
///
/// # Errors
/// Every problem found, not only the first.
pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Compiled, Problems> {
    let env = |name: &str| std::env::var(name).ok();
    let Some(path) = path else {
        return compile("built-in configuration", "", overrides, &env);
    };
    let name = path.display().to_string();
    let text = read(path).map_err(|e| {
        let hint =
            "give the path of a YAML file in UTF-8; run without --config for the built-in configuration";
        Problems::whole(&name, format!("cannot be read: {e}"), hint)
    })?;
    compile(&name, &text, overrides, &env)
}

/// The text of a regular file that is not too long.
fn read(path: &Path) -> std::io::Result<String> {
    // Judged before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("no regular file"));
    }
    let mut text = String::new();
    let limit = u64::try_from(tree::MAX_BYTES)
        .unwrap_or(u64::MAX)
        .saturating_add(1);
    std::fs::File::open(path)?.take(limit).read_to_string(&mut text)?;
    // Some editors begin a file with a mark that is no part of its text.
    match text.strip_prefix('\u{feff}') {
        Some(rest) => Ok(rest.to_owned()),
        None => Ok(text),
    }
}

/// Compiles `text`, shown as `name` in problems. `env` looks up environment variables.
///
/// # Errors
/// Every problem found.
pub fn compile(
    name: &str,
    text: &str,
    overrides: &Overrides,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Compiled, Problems> {
    compile::compile(name, text, overrides, env)
}

/// The JSON Schema of the configuration file.
pub fn schema() -> serde_json::Value {
    schema::schema()
}

/// What a good configuration may still get wrong, one line each: plans that cannot be carried out, links that are missing.
pub fn notes(compiled: &Compiled) -> Vec<String> {
    notes::notes(compiled)
}

/// What changed between two compiled configurations: what is in force at once, and what needs a restart.
pub fn diff(old: &Compiled, new: &Compiled) -> Diff {
    diff::diff(old, new)
}

/// The difference between two configurations, in the words of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// In force at once.
    pub changes: Vec<String>,
    /// Needs a restart.
    pub needs_restart: Vec<String>,
}

#[cfg(test)]
mod tests;
