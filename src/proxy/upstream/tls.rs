//! TLS towards upstreams: the system's roots plus extra ones, prepared before a policy is put in force.

use std::sync::Arc;

use rustls::ClientConfig;

use crate::enforce::policy::{Http2, Policy, Upstream, UpstreamTls};
use crate::tls;

/// Client-side TLS settings, one for each distinct set of roots and protocols.
///
/// Kept over reloads, so that sessions can be resumed.
#[derive(Debug, Default)]
pub struct TlsClients {
    made: std::sync::Mutex<Vec<(UpstreamTls, Http2, Arc<ClientConfig>)>>,
}

/// Why the TLS settings of an upstream could not be made.
#[derive(Debug, thiserror::Error)]
#[error("upstream {upstream}: {why}")]
pub struct TlsError {
    /// Which upstream.
    pub upstream: String,
    /// What went wrong.
    #[source]
    pub why: tls::TlsError,
}

impl TlsClients {
    /// Gives every TLS upstream of `policy` its settings. Reads files; call it while preparing a policy, never on
    /// the way of a request.
    ///
    /// # Errors
    /// The first CA file that cannot be used, with the upstream that names it.
    pub fn prepare(&self, policy: &mut Policy) -> Result<(), TlsError> {
        for upstream in &mut policy.upstreams {
            if upstream.url.tls && upstream.tls_client.is_none() {
                let config = self.client_for(upstream)?;
                Arc::make_mut(upstream).tls_client = Some(config);
            }
        }
        Ok(())
    }

    fn client_for(&self, upstream: &Upstream) -> Result<Arc<ClientConfig>, TlsError> {
        let mut made = self
            .made
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        // Extra roots may have been rewritten in place, so only settings without files are shared over reloads.
        if upstream.tls.ca_files.is_empty()
            && let Some((_, _, config)) = made
                .iter()
                .find(|(tls, http2, _)| *tls == upstream.tls && *http2 == upstream.http2)
        {
            return Ok(Arc::clone(config));
        }
        let alpn: &[&[u8]] = match upstream.http2 {
            Http2::Auto => &[b"h2", b"http/1.1"],
            Http2::Never => &[b"http/1.1"],
            Http2::PriorKnowledge => &[b"h2"],
        };
        let config = tls::client(&upstream.tls.ca_files, alpn).map_err(|why| TlsError {
            upstream: upstream.name.to_string(),
            why,
        })?;
        let config = Arc::new(config);
        if upstream.tls.ca_files.is_empty() {
            made.push((upstream.tls.clone(), upstream.http2, Arc::clone(&config)));
        }
        Ok(config)
    }
}
