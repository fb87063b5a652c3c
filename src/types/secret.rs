//! Text that must not be printed: credentials, signing keys, tokens.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A secret: wiped when dropped, shown as `[secret]` by everything that prints.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes charge of `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// The text itself; every call is a place to look at in review.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn prints_nothing() {
        let s = Secret::new("sk-live-1");
        assert_eq!(format!("{s:?} {s}"), "[secret] [secret]");
        assert_eq!(s.expose(), "sk-live-1");
    }
}
