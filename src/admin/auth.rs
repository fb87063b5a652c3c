//! Who may call the admin API: the token, and what keeps a web page in somebody's browser from calling it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, StatusCode};

use super::error::Problem;
use crate::config::{AdminToken, AdminWiring, Role, TokenDigest};
use crate::enforce::policy::Bind;

/// Paths that a probe asks for: no token, since they tell nothing that is secret.
const PROBES: [&str; 3] = ["/livez", "/readyz", "/healthz"];
const METRICS: &str = "/metrics";

/// How a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// Over TCP, to this address of ours.
    Tcp(Option<IpAddr>),
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
}

impl Gate {
    pub(super) fn new(wiring: &AdminWiring) -> Self {
        Self {
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
                .collect(),
        }
    }

    /// Lets a request in or says why not: first whether it was meant for us, then whether it may.
    pub(super) fn check(&self, request: &Parts, via: Via) -> Result<(), Problem> {
        let host = self.check_host(request, via)?;
        check_origin(&request.headers, host.as_ref())?;
        self.check_token(request)
    }

    /// A name that is not ours means that somebody's DNS leads a browser to us (DNS rebinding).
    fn check_host(&self, request: &Parts, via: Via) -> Result<Option<Authority>, Problem> {
        let header = only(&request.headers, &HOST)?;
        let header = match header {
            Some(text) => Some(authority(text)?),
            None => None,
        };
        if let Via::Tcp(local) = via {
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

    fn check_token(&self, request: &Parts) -> Result<(), Problem> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let path = request.uri.path();
        if PROBES.contains(&path) || (self.open_metrics && path == METRICS) {
            return Ok(());
        }
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
        let role = self.tokens.iter().fold(None, |found, token| {
            let same = bearer.as_ref() == Some(&token.digest);
            if same { Some(token.role) } else { found }
        });
        match role {
            Some(Role::Operator) => Ok(()),
            Some(Role::Viewer) if matches!(request.method, Method::GET | Method::HEAD) => Ok(()),
            Some(Role::Viewer) => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "not_an_operator",
                "this token allows to look, not to act",
                "use a token whose role is operator",
            )),
            None => Err(Problem::unauthorized(
                "this is not the admin token",
                "Bearer realm=\"fusebox\", error=\"invalid_token\"",
            )),
        }
    }
}

/// A browser says from which page a request comes; ours are the only ones that may call us.
fn check_origin(headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Problem> {
    let Some(origin) = only(headers, &ORIGIN)? else {
        return Ok(());
    };
    let same = host.is_some_and(|host| {
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
    });
    if same {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::FORBIDDEN,
        "origin_not_allowed",
        "the request comes from a web page of another origin",
        "call the admin API from a page that it serves, or from something that is no browser",
    ))
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
                code(gate.check(&parts, Via::Tcp(None))),
                want,
                "{token} {}",
                parts.method
            );
        }
    }

    fn gate(token: Option<&str>) -> Gate {
        Gate::new(&AdminWiring {
            bind: Bind::Tcp("10.1.2.3:4311".parse().unwrap()),
            token: token.map(Secret::new),
            tokens: Vec::new(),
            allowed_hosts: vec!["Fusebox.ops.example".to_owned(), "proxy.example:8443".to_owned()],
            open_metrics: true,
            external_url: None,
        })
    }

    fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn code(checked: Result<(), Problem>) -> String {
        match checked {
            Ok(()) => "ok".to_owned(),
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
        let local = Via::Tcp(Some("192.168.7.9".parse().unwrap()));
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
            for via in [Via::Tcp(None), Via::Unix] {
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
            let got = gate(Some("right")).check(&parts(path, &headers), Via::Tcp(None));
            assert_eq!(code(got), want, "{path} {header:?}");
        }
        let mut closed = gate(Some("right"));
        closed.open_metrics = false;
        let got = closed.check(&parts("/metrics", &[("host", "localhost")]), Via::Tcp(None));
        assert_eq!(code(got), "unauthorized");
    }
}
