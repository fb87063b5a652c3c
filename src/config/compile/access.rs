//! Who may use the admin listener, and by which URL people reach it.

use super::value_or;
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::file::{AdminTokenFile, RoleWord};
use crate::config::{AdminToken, Role, TokenDigest, url};
use crate::types::secret::Secret;

/// The named tokens; of their text only a digest stays.
pub(super) fn tokens(
    list: Vec<At<AdminTokenFile>>,
    single: Option<&Secret>,
    check: &mut Check<'_>,
) -> Vec<AdminToken> {
    let mut tokens: Vec<AdminToken> = Vec::with_capacity(list.len());
    let single = single.map(|s| TokenDigest::of(s.expose()));
    for At { value, place } in list {
        let AdminTokenFile {
            name,
            role,
            token,
            token_file,
            token_sha256,
        } = value;
        if name.is_none() {
            check.missing(place, "name", "who bears it: the record of what is done says it");
        }
        let name = name.filter(|n| check.name("name", n));
        if let Some(n) = name.as_ref().filter(|n| tokens.iter().any(|t| t.name == n.value)) {
            let text = format!("two tokens named `{}`", check.quote(n.place, &n.value));
            check.problem(n.place, text, "names are unique; rename one of them");
        }
        let digest = match token_sha256 {
            Some(given) => {
                if token.is_some() || token_file.is_some() {
                    check.problem(
                        given.place,
                        "both a token and its digest are given",
                        "keep one of token, token_file and token_sha256",
                    );
                    continue;
                }
                let digest = TokenDigest::from_hex(given.value.trim());
                if digest.is_none() {
                    check.problem(
                        given.place,
                        "`token_sha256` is not a SHA-256 digest",
                        "64 hexadecimal digits, as `printf %s TOKEN | sha256sum` gives",
                    );
                }
                digest.map(|d| At {
                    value: d,
                    place: given.place,
                })
            }
            None => {
                if token.is_none()
                    && token_file.is_none()
                    && !check.told_about(place, &["token", "token_file", "token_sha256"])
                {
                    check.problem(
                        place,
                        "a token without its text",
                        "give one of token, token_file and token_sha256",
                    );
                }
                check.secret("token", token, token_file).map(|t| At {
                    value: TokenDigest::of(t.value.expose()),
                    place: t.place,
                })
            }
        };
        let (Some(name), Some(digest)) = (name, digest) else {
            continue;
        };
        let twice = single.as_ref() == Some(&digest.value) || tokens.iter().any(|t| t.digest == digest.value);
        if twice {
            check.problem(
                digest.place,
                "the same token is given twice",
                "give each bearer a token of its own, so that the record tells them apart",
            );
        }
        tokens.push(AdminToken {
            name: name.value,
            role: match value_or(role, RoleWord::Viewer) {
                RoleWord::Viewer => Role::Viewer,
                RoleWord::Operator => Role::Operator,
            },
            digest: digest.value,
        });
    }
    tokens
}

/// The URL by which people reach the admin listener, without a trailing slash.
pub(super) fn external_url(given: Opt<String>, check: &mut Check<'_>) -> Option<String> {
    let At { value, place } = given?;
    match url::upstream(&value) {
        Ok(_) if value.contains('#') => {
            check.problem(place, "a URL with a fragment", "leave out everything from `#` on");
            None
        }
        Ok(_) => Some(value.trim().trim_end_matches('/').to_owned()),
        Err((why, _)) => {
            check.problem(
                place,
                format!("`external_url`: {why}"),
                "write the URL by which people reach the admin listener, as https://fusebox.example",
            );
            None
        }
    }
}

/// The header in which a proxy in front says who is calling.
pub(super) fn user_header(given: Opt<String>, check: &mut Check<'_>) -> Option<String> {
    let At { value, place } = given?;
    match value.trim().parse::<http::HeaderName>() {
        Ok(name) => Some(name.as_str().to_owned()),
        Err(_) => {
            check.problem(
                place,
                "`user_header` is no name of a header",
                "as x-forwarded-user or x-auth-request-email",
            );
            None
        }
    }
}
