//! Who may call the admin API: the token, and what keeps a web page in somebody's browser from calling it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};

use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode, Uri};

use super::api::{Caller, Right};
use super::error::Problem;
use crate::clock::Clock;
use crate::config::{AdminToken, AdminWiring, Role, TokenDigest};
use crate::control::links::Links;
use crate::enforce::policy::Bind;
use crate::types::ids::ApprovalId;
use crate::types::time::Mono;

/// Paths that a probe asks for: no token, since they tell nothing that is secret.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/healthz"];
const METRICS: &str = "/metrics";

/// Wrong tokens and links that one place may try at once, and one more each second.
const ATTEMPTS: f64 = 50.0;
/// Places that are told apart.
const MAX_PLACES: usize = 1_024;

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// Over TCP.
    Tcp {
        /// To this address of ours.
        local: Option<IpAddr>,
        /// From this one.
        peer: Option<IpAddr>,
    },
    /// Over the Unix socket: the file's permissions have decided, and browsers cannot come this way.
    Unix,
}

/// Decides on every request before it is routed.
#[derive(Debug)]
pub(super) struct Gate {
    tokens: Vec<AdminToken>,
    open_metrics: bool,
    bound: Option<IpAddr>,
    names: Vec<String>,
    /// The origin by which people reach us, as a browser writes it.
    origin: Option<String>,
    links: Links,
    clock: Clock,
    attempts: Mutex<HashMap<Option<IpAddr>, (Mono, f64)>>,
}

impl Gate {
    pub(super) fn new(wiring: &AdminWiring, links: Links, clock: Clock) -> Self {
        let external = wiring.external_url.as_deref().and_then(|u| u.parse::<Uri>().ok());
        let outside = external
            .as_ref()
            .and_then(|u| Some((u.scheme_str()?, u.authority()?)));
        Self {
            origin: outside.map(|(scheme, name)| format!("{scheme}://{name}").to_ascii_lowercase()),
            links,
            clock,
            attempts: Mutex::default(),
            tokens: wiring.all_tokens(),
            open_metrics: wiring.open_metrics,
            bound: match &wiring.bind {
                Bind::Tcp(address) => Some(address.ip().to_canonical()),
                Bind::Unix(_) => None,
            },
            names: wiring
                .allowed_hosts
                .iter()
                .map(|name| normal(name).to_ascii_lowercase())
                .chain(outside.map(|(_, name)| normal(name.host()).to_ascii_lowercase()))
                .collect(),
        }
    }

    /// Lets a request in or says why not: first whether it was meant for us, then whether it may.
    pub(super) fn check(&self, request: &Parts, via: Via) -> Result<Caller, Problem> {
        let host = self.check_host(request, via)?;
        self.check_origin(&request.headers, host.as_ref())?;
        let peer = match via {
            Via::Tcp { peer, .. } => peer,
            Via::Unix => None,
        };
        let right = self.check_right(request, peer)?;
        Ok(Caller { right, peer })
    }

    /// By what right a request comes in; a wrong token or link is an attempt, of which there may be so many.
    fn check_right(&self, request: &Parts, peer: Option<IpAddr>) -> Result<Right, Problem> {
        let link = link_of(request);
        let needs = link.is_some() || !(self.tokens.is_empty() || self.is_open(request));
        if !needs {
            return Ok(Right::Open);
        }
        let given = link.is_some() || request.headers.contains_key(AUTHORIZATION);
        if given && !self.may_try(peer) {
            return Err(Problem::too_many_attempts());
        }
        let checked = match link {
            Some((id, token)) => self.check_link(id, &token),
            None => self.check_token(request),
        };
        if given
            && let Err(wrong) = &checked
            && wrong.is_wrong_credential()
        {
            self.count_attempt(peer);
        }
        checked
    }

    fn check_link(&self, id: ApprovalId, token: &str) -> Result<Right, Problem> {
        if self.links.is_genuine(&id, token) {
            return Ok(Right::Link(id));
        }
        Err(Problem::bad_link())
    }

    fn may_try(&self, peer: Option<IpAddr>) -> bool {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.mono();
        attempts
            .get(&peer)
            .is_none_or(|(at, left)| refilled(*at, *left, now) >= 1.0)
    }

    fn count_attempt(&self, peer: Option<IpAddr>) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.mono();
        if attempts.len() >= MAX_PLACES && !attempts.contains_key(&peer) {
            attempts.retain(|_, (at, left)| refilled(*at, *left, now) < ATTEMPTS);
        }
        // With no room for its own count, a place shares one with the others.
        let place = if attempts.len() < MAX_PLACES || attempts.contains_key(&peer) {
            peer
        } else {
            None
        };
        let (at, left) = attempts.entry(place).or_insert((now, ATTEMPTS));
        *left = refilled(*at, *left, now) - 1.0;
        *at = now;
    }

    fn is_open(&self, request: &Parts) -> bool {
        let path = request.uri.path();
        PROBES.contains(&path) || (self.open_metrics && path == METRICS)
    }

    /// A name that is not ours means that somebody's DNS leads a browser to us (DNS rebinding).
    fn check_host(&self, request: &Parts, via: Via) -> Result<Option<Authority>, Problem> {
        let header = only(&request.headers, &HOST)?;
        let header = match header {
            Some(text) => Some(authority(text)?),
            None => None,
        };
        if let Via::Tcp { local, .. } = via {
            let absolute = request.uri.authority();
            if header.is_none() && absolute.is_none() {
                return Err(Problem::new(
                    StatusCode::BAD_REQUEST,
                    "no_host",
                    "the request names no host",
                    "send a `host` header",
                ));
            }
            for asked in header.iter().chain(absolute) {
                self.check_name(asked, local)?;
            }
        }
        // A request line with a whole URL wins over the header (RFC 9112, 3.2.2).
        Ok(request.uri.authority().cloned().or(header))
    }

    fn check_name(&self, asked: &Authority, local: Option<IpAddr>) -> Result<(), Problem> {
        let name = normal(asked.host());
        let ours = match address(name) {
            Some(ip) => ip.is_loopback() || Some(ip) == self.bound || Some(ip) == local,
            None => name.eq_ignore_ascii_case("localhost"),
        };
        let whole = asked.as_str();
        let allowed = self
            .names
            .iter()
            .any(|n| n.eq_ignore_ascii_case(name) || n.eq_ignore_ascii_case(whole));
        if (ours || allowed) && !whole.contains('@') {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "host_not_allowed",
            "the admin API is not known by the host name of this request",
            "call it by localhost or by the address it listens on, or add the name to admin.allowed_hosts",
        ))
    }

    fn check_token(&self, request: &Parts) -> Result<Right, Problem> {
        let Some(given) = only(&request.headers, &AUTHORIZATION)? else {
            return Err(Problem::unauthorized(
                "this needs the admin token",
                "Bearer realm=\"fusebox\"",
            ));
        };
        let bearer = given
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| TokenDigest::of(token.trim()));
        // Every one is looked at, so that the time taken tells nothing.
        let found = self.tokens.iter().fold(None, |found, token| {
            let same = bearer.as_ref() == Some(&token.digest);
            if same { Some(token) } else { found }
        });
        let Some(AdminToken { name, role, .. }) = found else {
            return Err(Problem::unauthorized(
                "this is not the admin token",
                "Bearer realm=\"fusebox\", error=\"invalid_token\"",
            ));
        };
        if *role == Role::Viewer && !matches!(request.method, Method::GET | Method::HEAD) {
            return Err(Problem::not_an_operator());
        }
        Ok(Right::Token {
            name: name.clone(),
            role: *role,
        })
    }

    /// A browser says from which page a request comes; ours are the only ones that may call us.
    fn check_origin(&self, headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Problem> {
        let Some(origin) = only(headers, &ORIGIN)? else {
            return Ok(());
        };
        let outside = self.origin.as_deref();
        if is_same(origin, host) || outside.is_some_and(|o| o.eq_ignore_ascii_case(origin)) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::FORBIDDEN,
            "origin_not_allowed",
            "the request comes from a web page of another origin",
            "call the admin API from a page that it serves, or from something that is no browser",
        ))
    }
}

fn refilled(at: Mono, left: f64, now: Mono) -> f64 {
    (left + now.since(at).as_secs_f64()).min(ATTEMPTS)
}

/// The question and the token of a link: `/approvals/ID?t=TOKEN`, shown by GET and answered by POST.
pub(super) fn link_of(request: &Parts) -> Option<(ApprovalId, String)> {
    if !matches!(request.method, Method::GET | Method::HEAD | Method::POST) {
        return None;
    }
    let id = request.uri.path().strip_prefix("/approvals/")?;
    if id.is_empty() || id.contains('/') {
        return None;
    }
    let query = request.uri.query()?;
    let token = query.split('&').find_map(|pair| pair.strip_prefix("t="))?;
    Some((id.into(), token.to_owned()))
}

fn is_same(origin: &str, host: Option<&Authority>) -> bool {
    host.is_some_and(|host| {
        let Some((scheme, page)) = origin.split_once("://") else {
            return false;
        };
        let Ok(page) = page.parse::<Authority>() else {
            return false;
        };
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        let port = |a: &Authority| a.port_u16().unwrap_or(default);
        normal(page.host()).eq_ignore_ascii_case(normal(host.host())) && port(&page) == port(host)
    })
}

/// The one value of a header that must not be there twice.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match value.to_str() {
        Ok(text) if values.next().is_none() => Ok(Some(text)),
        _ => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "bad_header",
            format!("the header `{name}` cannot be read"),
            "send it once, in plain ASCII",
        )),
    }
}

fn authority(text: &str) -> Result<Authority, Problem> {
    text.parse().map_err(|_| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "bad_header",
            "the header `host` cannot be read",
            "send a name or an address, with a port where needed",
        )
    })
}

/// A host name without the dot that may end it.
fn normal(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// The address that a host name spells out.
fn address(name: &str) -> Option<IpAddr> {
    match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(v6) => v6
            .parse::<Ipv6Addr>()
            .ok()
            .map(|ip| IpAddr::V6(ip).to_canonical()),
        None => name.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::types::secret::Secret;

    #[test]
    fn viewers_look_and_operators_act() {
        let mut gate = gate(Some("root"));
        gate.tokens.extend(
            [("see", Role::Viewer), ("do", Role::Operator)].map(|(token, role)| AdminToken {
                name: token.to_owned(),
                role,
                digest: TokenDigest::of(token),
            }),
        );
        for (token, method, want) in [
            ("root", Method::POST, "ok"),
            ("do", Method::POST, "ok"),
            ("see", Method::GET, "ok"),
            ("see", Method::HEAD, "ok"),
            ("see", Method::POST, "not_an_operator"),
            ("see", Method::DELETE, "not_an_operator"),
            ("other", Method::GET, "unauthorized"),
        ] {
            let bearer = format!("Bearer {token}");
            let mut parts = parts("/agents", &[("host", "localhost"), ("authorization", &bearer)]);
            parts.method = method;
            assert_eq!(
                code(gate.check(&parts, tcp(None))),
                want,
                "{token} {}",
                parts.method
            );
        }
    }

    fn gate(token: Option<&str>) -> Gate {
        let wiring = AdminWiring {
            bind: Bind::Tcp("10.1.2.3:4311".parse().unwrap()),
            token: token.map(Secret::new),
            tokens: Vec::new(),
            allowed_hosts: vec!["Fusebox.ops.example".to_owned(), "proxy.example:8443".to_owned()],
            open_metrics: true,
            external_url: None,
            user_header: None,
        };
        Gate::new(&wiring, Links::new(None, Secret::new("k")), Clock::system())
    }

    fn tcp(local: Option<IpAddr>) -> Via {
        Via::Tcp { local, peer: None }
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn code(checked: Result<Caller, Problem>) -> String {
        match checked {
            Ok(_) => "ok".to_owned(),
            Err(p) => format!("{p:?}")
                .split("code: \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .unwrap()
                .to_owned(),
        }
    }

    #[test]
    fn hosts() {
        let local = tcp(Some("192.168.7.9".parse().unwrap()));
        let table = [
            ("localhost", "ok"),
            ("LOCALHOST.:4311", "ok"),
            ("127.0.0.1:4311", "ok"),
            ("127.9.9.9", "ok"),
            ("[::1]:4311", "ok"),
            ("[::ffff:127.0.0.1]", "ok"),
            ("10.1.2.3:9", "ok"),
            ("192.168.7.9:4311", "ok"),
            ("fusebox.OPS.example", "ok"),
            ("fusebox.ops.example:80", "ok"),
            ("proxy.example:8443", "ok"),
            ("proxy.example", "host_not_allowed"),
            ("10.1.2.4", "host_not_allowed"),
            ("evil.example", "host_not_allowed"),
            ("localhost.evil.example", "host_not_allowed"),
            ("evil.localhost", "host_not_allowed"),
            ("user@localhost", "host_not_allowed"),
            ("0.0.0.0", "host_not_allowed"),
            ("a b", "bad_header"),
        ];
        for (host, want) in table {
            let got = gate(None).check(&parts("/agents", &[("host", host)]), local);
            assert_eq!(code(got), want, "{host}");
        }
        assert_eq!(code(gate(None).check(&parts("/", &[]), local)), "no_host");
        let both = parts("http://evil.example/", &[("host", "localhost")]);
        assert_eq!(code(gate(None).check(&both, local)), "host_not_allowed");
        let twice = parts("/", &[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(code(gate(None).check(&twice, local)), "bad_header");
        let unix = parts("/", &[("host", "evil.example")]);
        assert_eq!(code(gate(None).check(&unix, Via::Unix)), "ok");
        assert_eq!(code(gate(None).check(&parts("/", &[]), Via::Unix)), "ok");
    }

    #[test]
    fn origins() {
        let table = [
            ("localhost:4311", "http://localhost:4311", "ok"),
            ("localhost", "http://LOCALHOST:80", "ok"),
            ("fusebox.ops.example", "https://fusebox.ops.example", "ok"),
            ("localhost:4311", "http://localhost:8080", "origin_not_allowed"),
            ("localhost:4311", "http://127.0.0.1:4311", "origin_not_allowed"),
            ("localhost:4311", "http://evil.example", "origin_not_allowed"),
            ("localhost:4311", "null", "origin_not_allowed"),
            ("localhost:4311", "file://", "origin_not_allowed"),
            ("localhost:4311", "", "origin_not_allowed"),
        ];
        for (host, origin, want) in table {
            let request = parts("/agents", &[("host", host), ("origin", origin)]);
            for via in [tcp(None), Via::Unix] {
                assert_eq!(code(gate(None).check(&request, via)), want, "{host} {origin}");
            }
        }
    }

    #[test]
    fn tokens() {
        let table = [
            ("/agents", Some("Bearer right"), "ok"),
            ("/agents", Some("bearer  right"), "ok"),
            ("/agents", Some("Bearer wrong"), "unauthorized"),
            ("/agents", Some("Bearer righ"), "unauthorized"),
            ("/agents", Some("Basic right"), "unauthorized"),
            ("/agents", Some("right"), "unauthorized"),
            ("/agents", None, "unauthorized"),
            ("/no/such/path", None, "unauthorized"),
            ("/livez", None, "ok"),
            ("/readyz", None, "ok"),
            ("/healthz", None, "ok"),
            ("/healthz/", None, "unauthorized"),
            ("/metrics", None, "ok"),
        ];
        for (path, header, want) in table {
            let mut headers = vec![("host", "localhost")];
            headers.extend(header.map(|h| ("authorization", h)));
            let got = gate(Some("right")).check(&parts(path, &headers), tcp(None));
            assert_eq!(code(got), want, "{path} {header:?}");
        }
        let mut closed = gate(Some("right"));
        closed.open_metrics = false;
        let got = closed.check(&parts("/metrics", &[("host", "localhost")]), tcp(None));
        assert_eq!(code(got), "unauthorized");
    }
}
