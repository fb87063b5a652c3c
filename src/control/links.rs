//! Links that are put into notices: to an incident's page, and to a page on which a question is answered.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::types::ids::{ApprovalId, IncidentId};
use crate::types::notice::Notice;
use crate::types::secret::Secret;

/// Bytes of a signature that a link carries; guessing 128 bits is hopeless.
const TOKEN: usize = 16;

/// Makes links, and tells those that it made from others.
#[derive(Debug, Clone)]
pub struct Links {
    /// Where the admin API is reached from outside, without a slash at its end.
    base: Option<String>,
    key: Secret,
}

impl Links {
    /// Links below `base`, signed with `key`. Without a base there are none.
    pub fn new(base: Option<&str>, key: Secret) -> Self {
        Self {
            base: base.map(|b| b.trim_end_matches('/').to_owned()),
            key,
        }
    }

    /// The page of an incident.
    pub fn incident(&self, id: &IncidentId) -> Option<String> {
        self.base.as_ref().map(|base| format!("{base}/incidents/{id}"))
    }

    /// The page on which a question is answered. Whoever has the link may answer, once: it is as good as its signature,
    /// and void when the question is.
    pub fn approval(&self, id: &ApprovalId) -> Option<String> {
        let base = self.base.as_ref()?;
        Some(format!("{base}/approvals/{id}?t={}", self.token(id)))
    }

    /// Whether a token is the one of this question.
    pub fn is_genuine(&self, id: &ApprovalId, token: &str) -> bool {
        self.token(id).as_bytes().ct_eq(token.as_bytes()).into()
    }

    /// Puts links into a notice.
    pub(super) fn put(&self, notice: &mut Notice) {
        notice.link = self.incident(&notice.incident);
        if let Some(ask) = &mut notice.approval {
            ask.link = self.approval(&ask.id.as_str().into());
        }
    }

    fn token(&self, id: &ApprovalId) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.key.expose().as_bytes()) else {
            return String::new();
        };
        mac.update(b"approval\0");
        mac.update(id.as_str().as_bytes());
        let signature = mac.finalize().into_bytes();
        URL_SAFE_NO_PAD.encode(signature.get(..TOKEN).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_for_one_question() {
        let links = Links::new(Some("https://fb.example/"), Secret::new("k"));
        let (one, two): (ApprovalId, ApprovalId) = ("apr-1".into(), "apr-2".into());
        let link = links.approval(&one).expect("a link");
        let token = link
            .strip_prefix("https://fb.example/approvals/apr-1?t=")
            .expect("a token");
        assert_eq!(token.len(), 22);
        assert!(links.is_genuine(&one, token));
        assert!(!links.is_genuine(&two, token));
        assert!(!links.is_genuine(&one, ""));
        assert!(!Links::new(Some("https://fb.example"), Secret::new("l")).is_genuine(&one, token));
        assert_eq!(Links::new(None, Secret::new("k")).approval(&one), None);
    }
}
