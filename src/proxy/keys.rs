//! Whose key a request carries: the upstream's own where it has one, the client's only to whom it was meant for.

use std::sync::Arc;

use http::header::HeaderName;

use super::arrive::Head;
use super::orders::is_signed;
use crate::dialect::table::{Family, Route};
use crate::enforce::failover::Credentials;
use crate::enforce::policy::Upstream;

/// Headers that name an account of the client's, of no use beside another's key.
const OF_ACCOUNTS: [HeaderName; 3] = [
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    HeaderName::from_static("cookie"),
];

/// Puts the upstream's own key in the place of the client's, where it has one. Else the client's own goes on, but not to
/// another provider than the one it was meant for (`from`): a key goes to nobody but whose it is.
pub(super) fn put_keys(head: &mut Head, from: Option<&Upstream>) {
    let upstream = Arc::clone(&head.upstream);
    match &upstream.credentials {
        Some(_) if is_signed(head) => {}
        Some(credentials) => {
            remove_keys(head);
            let (name, value) = credentials.header(key_family(&head.route, &upstream));
            head.parts.headers.insert(name, value);
        }
        None if from.is_some_and(|from| from.provider != upstream.provider) => remove_keys(head),
        None => {}
    }
}

fn remove_keys(head: &mut Head) {
    for name in Credentials::OF_CLIENTS.iter().chain(&OF_ACCOUNTS) {
        head.parts.headers.remove(name);
    }
    // Gemini takes a key in the query as well.
    let uri = &head.parts.uri;
    if let Some(query) = uri.query()
        && query.split('&').any(|p| p.starts_with("key="))
    {
        let rest: Vec<&str> = query.split('&').filter(|p| !p.starts_with("key=")).collect();
        let path = uri.path();
        let target = if rest.is_empty() {
            path.to_owned()
        } else {
            format!("{path}?{}", rest.join("&"))
        };
        head.parts.uri = target.parse().unwrap_or_default();
    }
}

/// Whose way of telling a key an upstream expects, also where the path does not say whose API it is.
fn key_family(route: &Route, upstream: &Upstream) -> Family {
    match (route.api.family(), upstream.families.as_slice()) {
        (Family::Other, [only]) => *only,
        (Family::Other, _) => match &*upstream.provider {
            "anthropic" => Family::Anthropic,
            "gemini" => Family::Gemini,
            _ => Family::Other,
        },
        (family, _) => family,
    }
}
