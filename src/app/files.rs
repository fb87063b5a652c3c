//! Open files: as many as the system lets us have, and a word when that is too few for the connections allowed.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for everything that is not a connection: listeners, runtimes, logs, certificates, the admin API.
const SPARE: u64 = 512;

/// Raises the limit on open files to what the system allows, and warns when `max_connections` may not fit into it.
///
/// Many systems start a program with 1024, for the sake of old ones that count on small numbers, and leave it to each
/// to ask for more.
pub(super) fn make_room(max_connections: usize) {
    let needed = needed(max_connections);
    let limit = getrlimit(Resource::Nofile);
    let mut allowed = limit.current;
    if limit.current != limit.maximum {
        // Some systems name a maximum that they do not grant; there, what is needed will do.
        let wanted = [limit.maximum, Some(needed)];
        let raised = wanted.into_iter().find(|&current| {
            let maximum = limit.maximum;
            setrlimit(Resource::Nofile, Rlimit { current, maximum }).is_ok()
        });
        allowed = raised.unwrap_or(allowed);
    }
    // No limit at all is the other way to have enough.
    if let Some(allowed) = allowed.filter(|allowed| *allowed < needed) {
        tracing::warn!(
            allowed,
            needed,
            max_connections,
            "too few open files are allowed for limits.max_connections; raise the limit (ulimit -n, LimitNOFILE) or lower that"
        );
    }
}

/// A connection of a client has one to an upstream behind it.
fn needed(max_connections: usize) -> u64 {
    (max_connections as u64).saturating_mul(2).saturating_add(SPARE)
}

#[cfg(test)]
mod tests {
    use super::needed;

    #[test]
    fn each_client_needs_two() {
        assert_eq!(needed(10_000), 20_512);
        assert_eq!(needed(usize::MAX), u64::MAX);
    }
}
