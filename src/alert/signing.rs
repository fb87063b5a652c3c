//! Signatures as Standard Webhooks define them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The key of Standard Webhooks signatures.
pub(super) struct SigningKey(Vec<u8>);

impl SigningKey {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let key = match text.strip_prefix("whsec_") {
            Some(encoded) => STANDARD.decode(encoded.trim()).map_err(|_| {
                "secret: what follows `whsec_` is no base64; copy it again, or use plain text".to_owned()
            })?,
            None => text.as_bytes().to_vec(),
        };
        if key.is_empty() {
            return Err("secret: is empty; remove it, or set it".to_owned());
        }
        Ok(Self(key))
    }

    /// `v1,` and the signature of `id.seconds.body`.
    pub(super) fn sign(&self, id: &str, seconds: i64, body: &[u8]) -> String {
        // An HMAC takes a key of any length, so there is no error to speak of.
        let Ok(mac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return String::new();
        };
        let mac = mac
            .chain_update(id)
            .chain_update(format!(".{seconds}."))
            .chain_update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_of_the_published_example() {
        let key = SigningKey::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = key.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(format!("{key:?}"), "[secret]");
    }

    #[test]
    fn secrets() {
        assert_eq!(SigningKey::parse("plain text").unwrap().0, b"plain text");
        for bad in ["", "whsec_", "whsec_%%%"] {
            let why = SigningKey::parse(bad).unwrap_err();
            assert!(why.starts_with("secret: "), "{why}");
        }
    }
}
