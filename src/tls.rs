//! TLS settings of a client, for all who connect somewhere: the system's roots, and those of further files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};

/// Trusted roots beside the system's.
#[derive(Debug, Default)]
pub struct ExtraRoots {
    anchors: Vec<TrustAnchor<'static>>,
    digest: [u8; 32],
}

/// Why TLS settings could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of roots could not be read.
    #[error("ca_files: {}: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        why: String,
    },
    /// A file of roots held none.
    #[error("ca_files: {}: holds no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The TLS library refused the settings.
    #[error("TLS settings refused: {0}")]
    Refused(#[from] rustls::Error),
}

impl ExtraRoots {
    /// Those of `ca_files` (PEM). Reads files.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(ca_files: &[PathBuf]) -> Result<Self, TlsError> {
        if ca_files.is_empty() {
            return Ok(Self::default());
        }
        let mut roots = RootCertStore::empty();
        let mut digest = Sha256::new();
        for path in ca_files {
            add_roots(&mut roots, &mut digest, path)?;
        }
        Ok(Self {
            anchors: roots.roots,
            digest: digest.finalize().into(),
        })
    }

    /// The same for the same roots, however their files are written; all zero without any.
    pub const fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

/// Settings that trust the system's roots and `extra` ones, offer the protocols of `alpn` in that order, and show no
/// certificate.
///
/// The system's roots are read once in the life of the process. What of them cannot be read is left out: with none at
/// all every handshake fails with a clear error.
///
/// # Errors
/// When the TLS library refuses them.
pub fn client(extra: ExtraRoots, alpn: &[&[u8]]) -> Result<ClientConfig, TlsError> {
    static SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let mut roots = Arc::clone(SYSTEM.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(roots)
    }));
    if !extra.anchors.is_empty() {
        Arc::make_mut(&mut roots).roots.extend(extra.anchors);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

fn add_roots(roots: &mut RootCertStore, digest: &mut Sha256, path: &Path) -> Result<(), TlsError> {
    let refused = |why: String| TlsError::Unreadable {
        path: path.to_owned(),
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
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (path, words) in [
            (dir.path().join("absent.pem"), "absent.pem: "),
            (
                write("empty.pem", "nothing here"),
                "empty.pem: holds no certificate",
            ),
            (write("bad.pem", bad), "bad.pem: "),
        ] {
            let why = ExtraRoots::read(&[path]).unwrap_err().to_string();
            assert!(why.starts_with("ca_files: ") && why.contains(words), "{why}");
        }
    }

    #[test]
    fn protocols_are_offered_in_order() {
        let config = client(ExtraRoots::default(), &[b"h2", b"http/1.1"]).unwrap();
        assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        assert!(
            client(ExtraRoots::default(), &[])
                .unwrap()
                .alpn_protocols
                .is_empty()
        );
    }
}
