//! TLS towards upstreams: the system's roots plus extra ones, prepared before a policy is put in force.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};

use crate::enforce::policy::{Http2, Policy, Upstream, UpstreamTls};

/// Client-side TLS settings, one for each distinct set of roots and protocols.
///
/// Kept over reloads as long as the files say the same, so that sessions can be resumed and connections stay.
#[derive(Debug, Default)]
pub struct TlsClients {
    made: std::sync::Mutex<Vec<Made>>,
    system: OnceLock<Arc<RootCertStore>>,
}

#[derive(Debug)]
struct Made {
    tls: UpstreamTls,
    http2: Http2,
    /// Of the extra roots; all zero without any.
    digest: [u8; 32],
    config: Arc<ClientConfig>,
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
        self.prepare_all(&mut policy.upstreams)
    }

    fn prepare_all(&self, upstreams: &mut [Arc<Upstream>]) -> Result<(), TlsError> {
        for upstream in upstreams {
            if upstream.url.tls && upstream.tls_client.is_none() {
                let config = self.client_for(upstream)?;
                Arc::make_mut(upstream).tls_client = Some(config);
            }
        }
        // What no policy names any more, such as what was made of files that were rewritten since.
        self.made().retain(|m| Arc::strong_count(&m.config) > 1);
        Ok(())
    }

    fn client_for(&self, upstream: &Upstream) -> Result<Arc<ClientConfig>, TlsError> {
        let mut made = self.made();
        let (extra, digest) = extra_roots(upstream)?;
        let like = |m: &Made| m.tls == upstream.tls && m.http2 == upstream.http2;
        if let Some(made) = made.iter().find(|m| like(m) && m.digest == digest) {
            return Ok(Arc::clone(&made.config));
        }
        let roots = if extra.is_empty() {
            Arc::clone(self.system_roots())
        } else {
            let mut roots = RootCertStore::clone(self.system_roots());
            roots.roots.extend(extra);
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
        made.push(Made {
            tls: upstream.tls.clone(),
            http2: upstream.http2,
            digest,
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Vec<Made>> {
        self.made
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
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

/// The extra roots of an upstream, and a digest of them.
fn extra_roots(upstream: &Upstream) -> Result<(Vec<TrustAnchor<'static>>, [u8; 32]), TlsError> {
    let files = &upstream.tls.ca_files;
    if files.is_empty() {
        return Ok((Vec::new(), [0; 32]));
    }
    let mut roots = RootCertStore::empty();
    let mut digest = Sha256::new();
    for path in files {
        add_roots(&mut roots, &mut digest, upstream.name.as_str(), path)?;
    }
    Ok((roots.roots, digest.finalize().into()))
}

fn add_roots(
    roots: &mut RootCertStore,
    digest: &mut Sha256,
    upstream: &str,
    path: &PathBuf,
) -> Result<(), TlsError> {
    let refused = |why: String| TlsError::CaFile {
        upstream: upstream.to_owned(),
        path: path.clone(),
        why,
    };
    let mut found = false;
    for cert in CertificateDer::pem_file_iter(path).map_err(|e| refused(e.to_string()))? {
        let cert = cert.map_err(|e| refused(e.to_string()))?;
        digest.update((cert.len() as u64).to_be_bytes());
        digest.update(&cert);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn the_same_roots_are_the_same_settings() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (one, two) = (certificate(), certificate());
        let clients = TlsClients::default();
        let mut upstream = Upstream::clone(&Upstream::nowhere());
        upstream.url.tls = true;
        upstream.tls.ca_files = vec![file.path().to_owned()];
        let prepare = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let mut one = [Arc::new(upstream.clone())];
            clients.prepare_all(&mut one).unwrap();
            let [one] = one;
            one
        };
        let first = prepare(&one);
        let again = prepare(&format!("# a remark\n{one}"));
        assert!(first.reached_like(&again));
        let other = prepare(&two);
        assert!(!first.reached_like(&other), "other roots, other trust");
        assert_eq!(clients.made().len(), 2, "the first is in use still");
        drop((first, again));
        let both = prepare(&format!("{one}{two}"));
        assert!(!other.reached_like(&both));
        assert_eq!(clients.made().len(), 2, "the first was let go of");
    }
}
