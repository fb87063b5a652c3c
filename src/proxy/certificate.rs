//! A listener's certificate and key, read again when their files change.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use crate::enforce::policy::ListenerTls;

/// The TLS identity of a listener.
pub struct Certificate {
    files: ListenerTls,
    current: ArcSwap<Loaded>,
}

struct Loaded {
    config: Arc<ServerConfig>,
    digest: [u8; 32],
}

/// Why a certificate could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file could not be read or parsed.
    #[error("{}: {why}", file)]
    File {
        /// Which file.
        file: String,
        /// What went wrong.
        why: String,
    },
    /// The pair does not work.
    #[error("certificate and key cannot be used together: {0}")]
    Pair(#[from] rustls::Error),
}

impl Certificate {
    /// Reads the files.
    ///
    /// # Errors
    /// When a file is missing or unreadable, holds no certificate or key, or the two do not belong together.
    pub fn load(files: ListenerTls) -> Result<Self, CertificateError> {
        let loaded = read(&files)?;
        Ok(Self {
            files,
            current: ArcSwap::from_pointee(loaded),
        })
    }

    /// Reads the files again; `true` when they changed and the new ones are in use from now on. Connections that
    /// are open keep theirs.
    ///
    /// # Errors
    /// As [`Certificate::load`]; the certificate in use stays.
    pub fn refresh(&self) -> Result<bool, CertificateError> {
        let loaded = read(&self.files)?;
        let changed = loaded.digest != self.current.load().digest;
        if changed {
            self.current.store(Arc::new(loaded));
        }
        Ok(changed)
    }

    pub(super) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn read(files: &ListenerTls) -> Result<Loaded, CertificateError> {
    let refused = |file: &Path, why: String| CertificateError::File {
        file: file.display().to_string(),
        why,
    };
    let text = |file: &Path| std::fs::read(file).map_err(|e| refused(file, e.to_string()));
    let chain_pem = text(&files.certificate_file)?;
    let key_pem = text(&files.key_file)?;
    let chain = CertificateDer::pem_slice_iter(&chain_pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| refused(&files.certificate_file, e.to_string()))?;
    if chain.is_empty() {
        return Err(refused(
            &files.certificate_file,
            "holds no certificate".to_owned(),
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|e| refused(&files.key_file, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let digest = Sha256::new()
        .chain_update(&chain_pem)
        .chain_update(&key_pem)
        .finalize()
        .into();
    Ok(Loaded {
        config: Arc::new(config),
        digest,
    })
}
