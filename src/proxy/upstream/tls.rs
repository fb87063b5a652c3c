//! TLS towards upstreams: the system's roots plus extra ones, prepared before a policy is put in force.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use crate::enforce::policy::{Http2, Policy, Upstream, UpstreamTls};

/// Client-side TLS settings, one for each distinct set of roots and protocols.
///
/// Kept over reloads, so that sessions can be resumed and roots are read once.
#[derive(Debug, Default)]
pub struct TlsClients {
    made: std::sync::Mutex<Vec<(UpstreamTls, Http2, Arc<ClientConfig>)>>,
    system: OnceLock<Arc<RootCertStore>>,
}

/// Why TLS settings could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of roots could not be read.
    #[error("upstream {upstream}: ca_files: cannot read {}: {why}", path.display())]
    CaFile {
        /// The upstream that names it.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// A file of roots held none.
    #[error("upstream {upstream}: ca_files: {} holds no certificate", path.display())]
    Empty {
        /// The upstream that names it.
        upstream: String,
        /// The file.
        path: PathBuf,
    },
    /// The TLS library refused the settings.
    #[error("TLS settings refused: {0}")]
    Rustls(#[from] rustls::Error),
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
        let roots = if upstream.tls.ca_files.is_empty() {
            Arc::clone(self.system_roots())
        } else {
            let mut roots = RootCertStore::clone(self.system_roots());
            for path in &upstream.tls.ca_files {
                add_roots(&mut roots, upstream.name.as_str(), path)?;
            }
            Arc::new(roots)
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match upstream.http2 {
            Http2::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Http2::Never => vec![b"http/1.1".to_vec()],
            Http2::PriorKnowledge => vec![b"h2".to_vec()],
        };
        let config = Arc::new(config);
        if upstream.tls.ca_files.is_empty() {
            made.push((upstream.tls.clone(), upstream.http2, Arc::clone(&config)));
        }
        Ok(config)
    }

    fn system_roots(&self) -> &Arc<RootCertStore> {
        self.system.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            // A broken file among the system's is no reason to stop: what could be read is used, and an empty
            // store fails every handshake with a clear error.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(roots)
        })
    }
}

fn add_roots(roots: &mut RootCertStore, upstream: &str, path: &PathBuf) -> Result<(), TlsError> {
    let refused = |why: String| TlsError::CaFile {
        upstream: upstream.to_owned(),
        path: path.clone(),
        why,
    };
    let mut found = false;
    for cert in CertificateDer::pem_file_iter(path).map_err(|e| refused(e.to_string()))? {
        let cert = cert.map_err(|e| refused(e.to_string()))?;
        roots.add(cert).map_err(|e| refused(e.to_string()))?;
        found = true;
    }
    if found {
        Ok(())
    } else {
        Err(TlsError::Empty {
            upstream: upstream.to_owned(),
            path: path.clone(),
        })
    }
}
