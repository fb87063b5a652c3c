//! TLS towards upstreams: the system's roots plus extra ones, prepared before a policy is put in force.

use std::sync::Arc;

use rustls::ClientConfig;

use crate::enforce::policy::{Http2, Policy, Upstream, UpstreamTls};
use crate::tls::{self, ExtraRoots};

/// Client-side TLS settings, one for each distinct set of roots and protocols.
///
/// Kept over reloads as long as the files say the same, so that sessions can be resumed and connections stay.
#[derive(Debug, Default)]
pub struct TlsClients {
    made: std::sync::Mutex<Vec<Made>>,
}

#[derive(Debug)]
struct Made {
    tls: UpstreamTls,
    http2: Http2,
    /// Of the extra roots; all zero without any.
    digest: [u8; 32],
    config: Arc<ClientConfig>,
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
        let refused = |why| TlsError {
            upstream: upstream.name.to_string(),
            why,
        };
        let mut made = self.made();
        let extra = ExtraRoots::read(&upstream.tls.ca_files).map_err(refused)?;
        let digest = extra.digest();
        let like = |m: &Made| m.tls == upstream.tls && m.http2 == upstream.http2;
        if let Some(made) = made.iter().find(|m| like(m) && m.digest == digest) {
            return Ok(Arc::clone(&made.config));
        }
        let alpn: &[&[u8]] = match upstream.http2 {
            Http2::Auto => &[b"h2", b"http/1.1"],
            Http2::Never => &[b"http/1.1"],
            Http2::PriorKnowledge => &[b"h2"],
        };
        let config = Arc::new(tls::client(extra, alpn).map_err(refused)?);
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
