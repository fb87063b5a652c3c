//! How agents, versions and executions are told apart.

use std::sync::OnceLock;

use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::defaults;
use crate::config::file::{AgentSourceWord, IdentityFile};
use crate::enforce::policy::{AgentSource, IdentityPolicy};
use crate::types::ids::{AgentId, AgentVersion};
use crate::types::secret::Secret;

/// The identity section with the two short forms of the top level.
pub(super) fn identity(
    file: IdentityFile,
    agent: Opt<String>,
    agent_version: Opt<String>,
    check: &mut Check<'_>,
) -> IdentityPolicy {
    let IdentityFile {
        agent_order,
        agent_headers,
        agent_baggage_keys,
        agent_metadata_keys,
        version_headers,
        execution_headers,
        execution_metadata_keys,
        default_agent,
        api_key_salt,
        api_key_salt_file,
        strip_headers,
        max_name_bytes,
    } = file;
    let salt = check.secret("api_key_salt", api_key_salt, api_key_salt_file);
    if let Some(At { value, place }) = &salt
        && value.expose().len() < 16
    {
        check.problem(
            *place,
            "`api_key_salt` is shorter than 16 bytes",
            "a short one lets agent names be traced back to API keys; make one with: openssl rand -base64 32",
        );
    }
    let keys =
        |key: &str, given: Option<Vec<At<String>>>, default: &[&str], check: &mut Check<'_>| match given {
            Some(list) => check.names(key, list),
            None => default.iter().map(|&k| k.to_owned()).collect(),
        };
    IdentityPolicy {
        agent_order: order(agent_order, check),
        agent_headers: check.headers(agent_headers, &defaults::AGENT_HEADERS),
        agent_baggage_keys: keys(
            "agent_baggage_keys",
            agent_baggage_keys,
            &defaults::AGENT_BAGGAGE_KEYS,
            check,
        ),
        agent_metadata_keys: keys(
            "agent_metadata_keys",
            agent_metadata_keys,
            &defaults::AGENT_METADATA_KEYS,
            check,
        ),
        version_headers: check.headers(version_headers, &defaults::VERSION_HEADERS),
        execution_headers: check.headers(execution_headers, &defaults::EXECUTION_HEADERS),
        execution_metadata_keys: keys(
            "execution_metadata_keys",
            execution_metadata_keys,
            &defaults::EXECUTION_METADATA_KEYS,
            check,
        ),
        agent: check.maybe_name("agent", agent).map(AgentId::from),
        agent_version: check
            .maybe_name("agent_version", agent_version)
            .map(AgentVersion::from),
        default_agent: check
            .maybe_name("default_agent", default_agent)
            .map_or_else(|| AgentId::from(defaults::DEFAULT_AGENT), AgentId::from),
        api_key_salt: salt.map_or_else(process_salt, |s| s.value),
        strip_headers: check.headers(strip_headers, &defaults::STRIP_HEADERS),
        max_name_bytes: check.length(
            "max_name_bytes",
            max_name_bytes,
            defaults::MAX_NAME_BYTES,
            8..=4096,
        ),
    }
}

fn order(given: Option<Vec<At<AgentSourceWord>>>, check: &mut Check<'_>) -> Vec<AgentSource> {
    let Some(list) = given else {
        return defaults::AGENT_ORDER.to_vec();
    };
    let mut order = Vec::with_capacity(list.len());
    for At { value, place } in list {
        let source = match value {
            AgentSourceWord::Path => AgentSource::Path,
            AgentSourceWord::Header => AgentSource::Header,
            AgentSourceWord::Baggage => AgentSource::Baggage,
            AgentSourceWord::Metadata => AgentSource::Metadata,
            AgentSourceWord::Config => AgentSource::Config,
            AgentSourceWord::ApiKey => AgentSource::ApiKey,
            AgentSourceWord::Default => AgentSource::Default,
        };
        if order.contains(&source) {
            check.problem(place, "this source is listed twice", "remove one of them");
        } else if order.contains(&AgentSource::Default) {
            check.problem(
                place,
                "nothing is looked for after `default`",
                "move `default` to the end of the list",
            );
        } else {
            order.push(source);
        }
    }
    order
}

/// A salt that is random for each process but stays over reloads, so that agents keep their names.
fn process_salt() -> Secret {
    static SALT: OnceLock<Secret> = OnceLock::new();
    SALT.get_or_init(|| {
        let mut bytes = [0u8; 32];
        if rustls::crypto::ring::default_provider()
            .secure_random
            .fill(&mut bytes)
            .is_err()
        {
            // Without the system's randomness there is still something that differs by process.
            bytes.copy_from_slice(
                &[
                    uuid::Uuid::now_v7().into_bytes(),
                    uuid::Uuid::now_v7().into_bytes(),
                ]
                .concat(),
            );
        }
        Secret::new(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
    })
    .clone()
}
