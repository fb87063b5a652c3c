//! Which URLs a request may have notices sent to: judged when it is named, and again when it is connected to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tower::Service;

use crate::types::secret::Secret;

/// Longest URL that is looked at, in bytes.
const URL_MAX: usize = 2048;

/// Where notices may go that no configured target receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedDestinations {
    /// Hosts that may be used whatever address they have; `*` in a pattern stands for any run of characters.
    pub hosts: Vec<String>,
    /// Whether any other host may be used, as long as its addresses are public.
    pub public: bool,
    /// Schemes that may be used, in lower case.
    pub schemes: Vec<String>,
}

impl Default for AllowedDestinations {
    /// Public addresses over HTTPS.
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            public: true,
            schemes: vec!["https".to_owned()],
        }
    }
}

/// A URL to which notices may be sent, if its host's addresses allow it too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    url: Secret,
    host: String,
    guard: Guard,
}

/// What of a host's addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// All of them: somebody who may configure fusebox named the host.
    Any,
    /// Those of the public internet.
    Public,
}

impl Destination {
    /// Judges a URL without looking its host up.
    ///
    /// # Errors
    /// Why it may not be used, and what would have to be different. Names the host at most.
    pub fn check(url: &str, allowed: &AllowedDestinations) -> Result<Self, String> {
        let text = url.trim();
        if text.len() > URL_MAX {
            return Err(format!("is longer than {URL_MAX} bytes"));
        }
        let uri: Uri = text
            .parse()
            .map_err(|_| "is no URL; write it as https://host/path".to_owned())?;
        let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
        if !["http", "https"].contains(&scheme.as_str()) || !allowed.schemes.contains(&scheme) {
            return Err(format!("must begin with {}", offered(&allowed.schemes)));
        }
        let authority = uri.authority().ok_or("names no host")?.as_str();
        if authority.contains('@') {
            return Err("holds a user name or password; remove everything up to the @".to_owned());
        }
        if authority.ends_with(':') || (uri.port().is_none() && has_port(authority)) {
            return Err("has a port that cannot be read".to_owned());
        }
        let host = plain_host(uri.host().unwrap_or_default());
        if host.is_empty() {
            return Err("names no host".to_owned());
        }
        let guard = if allowed.hosts.iter().any(|p| fits(p, &host)) {
            Guard::Any
        } else if !allowed.public {
            return Err(format!("host {host} is not on the list of allowed hosts"));
        } else {
            Guard::Public
        };
        // A connection to an address asks no resolver.
        if let Ok(address) = host.parse::<IpAddr>()
            && !guard.admits(address)
        {
            return Err(not_public(&host));
        }
        Ok(Self {
            url: Secret::new(text),
            host,
            guard,
        })
    }

    /// The URL.
    pub const fn url(&self) -> &Secret {
        &self.url
    }

    /// The name of the target that is there: `adhoc:HOST#HASH`.
    pub fn target_name(&self) -> String {
        super::delivery::adhoc_name(self)
    }

    /// Its host, in lower case and without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// What of the host's addresses may be connected to.
    pub(super) const fn guard(&self) -> Guard {
        self.guard
    }
}

impl Guard {
    /// Whether this address may be connected to.
    pub(super) fn admits(self, address: IpAddr) -> bool {
        self == Self::Any || is_public(address)
    }
}

/// Looks names up and passes on only what the guard admits, so that what was judged is what is connected to.
#[derive(Clone)]
pub(super) struct GuardedResolver {
    inner: GaiResolver,
    guard: Guard,
}

impl GuardedResolver {
    pub(super) fn new(guard: Guard) -> Self {
        Self {
            inner: GaiResolver::new(),
            guard,
        }
    }
}

impl fmt::Debug for GuardedResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GuardedResolver").field(&self.guard).finish()
    }
}

type Looking = Pin<Box<dyn Future<Output = std::io::Result<std::vec::IntoIter<SocketAddr>>> + Send>>;

impl Service<Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Looking;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Looking {
        let guard = self.guard;
        let host: Arc<str> = name.as_str().into();
        let looking = self.inner.call(name);
        Box::pin(async move {
            let found: Vec<SocketAddr> = looking.await?.collect();
            if found.is_empty() {
                return Err(std::io::Error::other("the host has no address"));
            }
            // One bad address among good ones is an attack or a mistake; neither is worth a connection.
            if found.iter().any(|a| !guard.admits(a.ip())) {
                return Err(std::io::Error::other(not_public(&host)));
            }
            Ok(found.into_iter())
        })
    }
}

fn not_public(host: &str) -> String {
    format!("host {host} is not on the public internet; an operator can put it on the list of allowed hosts")
}

fn offered(schemes: &[String]) -> String {
    let all: Vec<String> = schemes.iter().map(|s| format!("{s}://")).collect();
    all.join(" or ")
}

/// A host without brackets, capitals and the dot at its end.
fn plain_host(host: &str) -> String {
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn has_port(authority: &str) -> bool {
    let after_host = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    after_host.contains(':')
}

/// Whether an address is one of the public internet: what is not known to be is not.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        // Carrier-grade NAT, protocol assignments, relays of 6to4, benchmarks.
        || (a == 100 && (64..128).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || (a, b, c) == (192, 88, 99)
        || (a == 198 && (b == 18 || b == 19)))
}

/// Only global unicast, and nothing in it that leads on to an IPv4 address or to nowhere.
fn is_public_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        // Teredo and its neighbours, documentation, 6to4, documentation again.
        [0x2001, s, ..] if s < 0x200 => false,
        [0x2001, 0xdb8, ..] | [0x2002, ..] => false,
        [0x3fff, s, ..] if s < 0x1000 => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

/// Whether a host fits a pattern in which `*` stands for any run of characters.
fn fits(pattern: &str, host: &str) -> bool {
    let pattern = plain_host(pattern.trim());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| host.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(hosts: &[&str], public: bool, schemes: &[&str]) -> AllowedDestinations {
        AllowedDestinations {
            hosts: hosts.iter().map(|&h| h.to_owned()).collect(),
            public,
            schemes: schemes.iter().map(|&s| s.to_owned()).collect(),
        }
    }

    #[test]
    fn addresses_that_are_not_public() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.8.8.8",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.255.255",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2001:4860:4860::8888",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn urls_are_judged_before_anything_is_looked_up() {
        let public = AllowedDestinations::default();
        for (url, why) in [
            ("", "no URL"),
            ("hooks.example/x", "no URL"),
            ("http://hooks.example/x", "must begin with https://"),
            ("file:///etc/passwd", ""),
            ("gopher://h/x", "must begin with https://"),
            ("https://u:pw@hooks.example/x", "user name"),
            ("https://hooks.example@127.0.0.1/x", "user name"),
            ("https://127.0.0.1/x", "not on the public internet"),
            ("https://127.0.0.1.:443/x", "not on the public internet"),
            ("https://[::1]/x", "not on the public internet"),
            (
                "https://[::ffff:169.254.169.254]/latest/meta-data",
                "not on the public internet",
            ),
            ("https://10.1.2.3:8443/x", "not on the public internet"),
            ("https://h:99999/", "port"),
            ("https://", ""),
            ("https:///x", ""),
        ] {
            let said = Destination::check(url, &public).unwrap_err();
            assert!(said.contains(why) && !said.contains("pw"), "{url}: {said}");
        }
        let good = Destination::check(" https://HOOKS.example.:8443/x?t=1 ", &public).unwrap();
        assert_eq!((good.host(), good.guard()), ("hooks.example", Guard::Public));
        assert_eq!(format!("{:?}", good.url()), "[secret]");
        assert!(Destination::check(&format!("https://h/{}", "a".repeat(3000)), &public).is_err());
    }

    #[test]
    fn a_list_of_hosts_opens_and_closes() {
        let only = allowed(
            &["hooks.slack.com", "*.corp.example", "10.0.0.7"],
            false,
            &["https", "http"],
        );
        for (url, good) in [
            ("https://hooks.slack.com/x", true),
            ("http://a.b.corp.example/x", true),
            ("https://corp.example/x", false),
            ("https://corp.example.evil.example/x", false),
            ("http://10.0.0.7/x", true),
            ("http://10.0.0.8/x", false),
            ("https://other.example/", false),
        ] {
            assert_eq!(Destination::check(url, &only).is_ok(), good, "{url}");
        }
    }

    #[test]
    fn patterns() {
        for (pattern, host, want) in [
            ("a.b", "a.b", true),
            ("A.B.", "a.b", true),
            ("a.b", "a.bc", false),
            ("*", "anything", true),
            ("*.b", "a.b", true),
            ("*.b", "b", false),
            ("a*c*e", "abcde", true),
            ("a*c*e", "ace", true),
            ("a*c*e", "aec", false),
            ("hooks-*", "hooks-7", true),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, host), want, "{pattern} {host}");
        }
    }

    #[tokio::test]
    async fn what_names_lead_to_is_judged_too() {
        // Spellings of loopback that are no address to us but one to the resolver.
        for name in ["localhost", "127.1", "2130706433", "0x7f000001", "017700000001"] {
            let mut guarded = GuardedResolver::new(Guard::Public);
            if let Ok(found) = guarded.call(name.parse().unwrap()).await {
                panic!("{name} led to {found:?}");
            }
        }
        let mut open = GuardedResolver::new(Guard::Any);
        assert!(open.call("localhost".parse().unwrap()).await.unwrap().count() > 0);
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_never_admits_a_private_address(
            text in "(https?://)?[a-z0-9.:@\\[\\]/?#*%-]{0,40}", bits in proptest::prelude::any::<u32>(),
        ) {
            let public = AllowedDestinations::default();
            Destination::check(&text, &public).ok();
            fits(&text, "host.example");
            let v4 = Ipv4Addr::from(bits);
            for url in [format!("https://{v4}/"), format!("https://[{}]/", v4.to_ipv6_mapped())] {
                let taken = Destination::check(&url, &public).is_ok();
                proptest::prop_assert!(!taken || is_public_v4(v4), "{}", url);
            }
        }
    }
}
