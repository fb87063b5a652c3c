//! The admin listener and who may use it, as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::config::at::{At, Opt};

/// The admin listener.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct AdminFile {
    /// HOST:PORT or unix:PATH. Beyond loopback a token is needed.
    pub(in crate::config) listen: Opt<String>,
    /// Bearer token that every request but health probes must bear; who bears it is an operator.
    pub(in crate::config) token: Opt<String>,
    /// File that holds the token.
    pub(in crate::config) token_file: Opt<String>,
    /// Further tokens, each with a name for the record and a role.
    pub(in crate::config) tokens: Vec<At<AdminTokenFile>>,
    /// Host names it may be called by, beside loopback names and its own address.
    pub(in crate::config) allowed_hosts: Vec<At<String>>,
    /// Header in which a proxy in front says who is calling, as X-Forwarded-User: trusted for the name of whoever answers
    /// a question by its link. Set it only when nothing but that proxy reaches the admin listener.
    pub(in crate::config) user_header: Opt<String>,
    /// Whether /metrics is open without the token.
    pub(in crate::config) open_metrics: Opt<bool>,
    /// Label combinations that /metrics keeps; the rest share one.
    #[schemars(range(min = 10, max = 1_000_000))]
    pub(in crate::config) max_label_sets: Opt<u64>,
}

/// A token of the admin API: exactly one of token, token_file and token_sha256.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(extend("required" = ["name"]))]
pub(in crate::config) struct AdminTokenFile {
    /// Who bears it, for the record.
    pub(in crate::config) name: Opt<String>,
    /// What it allows. Default: viewer.
    pub(in crate::config) role: Opt<RoleWord>,
    /// The token.
    pub(in crate::config) token: Opt<String>,
    /// File that holds the token.
    pub(in crate::config) token_file: Opt<String>,
    /// SHA-256 of the token, as 64 hexadecimal digits (printf %s TOKEN | sha256sum).
    #[schemars(extend("pattern" = "^\\s*[0-9a-fA-F]{64}\\s*$|\\$\\{"))]
    pub(in crate::config) token_sha256: Opt<String>,
}

/// What a token allows.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in crate::config) enum RoleWord {
    /// To look.
    Viewer,
    /// To look and to act.
    Operator,
}
