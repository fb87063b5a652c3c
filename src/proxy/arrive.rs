//! A request as it arrived: which API it speaks, where it goes, what its body says; refused when it cannot go on.

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Version};
use hyper::body::{Body, Incoming};

use super::body::{ReadError, RequestBody, Seen, read_whole};
use super::hops::Hop;
use super::identify::split_path;
use super::reply::Problem;
use crate::clock::Clock;
use crate::dialect::request::{self, RequestFacts};
use crate::dialect::table::{Api, Family, Route, refine, route};
use crate::enforce::policy::{AgentSource, Policy, Upstream};
use crate::types::time::Mono;

/// A request whose head was read and understood.
pub(super) struct Head {
    pub(super) parts: Parts,
    pub(super) route: Route,
    pub(super) upstream: Arc<Upstream>,
    /// That `upstream` is not the one it was meant for.
    pub(super) hop: Option<Box<Hop>>,
    /// The agent that the path names, as it was sent.
    pub(super) path_agent: Option<String>,
    /// Where in the path that was sent the one for the upstream begins.
    path_start: usize,
}

impl Head {
    /// The path for the upstream, as it was sent: without the agent and without the upstream's prefix.
    pub(super) fn path(&self) -> &str {
        match self.parts.uri.path().get(self.path_start..) {
            None | Some("") => "/",
            Some(path) => path,
        }
    }
}

/// A request's body, as far as it has to be known.
pub(super) struct Content {
    pub(super) body: RequestBody,
    /// The same bytes, when the body was read whole.
    pub(super) bytes: Option<Bytes>,
    pub(super) facts: RequestFacts,
    /// When all of it was there and the work on it began.
    pub(super) complete: Mono,
    /// What became of a body that is passed on.
    pub(super) seen: Option<Rc<Seen>>,
}

/// Reads the head: the API, the upstream and the agent in the path.
pub(super) fn head(policy: &Policy, request: Request<Incoming>) -> (Box<Head>, Incoming, Option<Problem>) {
    let (parts, incoming) = request.into_parts();
    let full = parts.uri.path();
    // Where the path does not tell the agent, `/agents/…` is the upstream's own.
    let named = policy.identity.agent_order.contains(&AgentSource::Path);
    let (path_agent, path) = match split_path(full).filter(|_| named) {
        Some((agent, rest)) => (Some(agent.to_owned()), rest),
        None => (None, full),
    };
    let (upstream, path) = upstream_by_prefix(policy, path);
    let route = route(&parts.method, path, parts.uri.query());
    let family = route.api.family();
    let serving = |family| policy.upstreams.iter().find(|u| u.serves(family));
    let served = upstream.or_else(|| serving(family)).or_else(|| match family {
        // What is not read is not tied to a dialect; the credentials say whose it is, and go to nobody else.
        Family::Other => serving(family_of_credentials(&parts.headers, path)),
        _ => None,
    });
    let problem = fault(&parts).or_else(|| served.is_none().then_some(Problem::NoUpstream));
    // A refusal needs an upstream to be counted under; the first is as good as any.
    let upstream = served
        .or_else(|| policy.upstreams.first())
        .map_or_else(Upstream::nowhere, Arc::clone);
    // It is the end of what was sent; where only a prefix was, the slash that stands for the rest is not a part of it.
    let path_start = match full.strip_suffix(path) {
        Some(before) => before.len(),
        None => full.len(),
    };
    let head = Head {
        parts,
        route,
        upstream,
        hop: None,
        path_agent,
        path_start,
    };
    // It is handed from step to step, and is large.
    (Box::new(head), incoming, problem)
}

/// Reads the body of APIs that are understood; leaves others to be passed on as they come.
pub(super) async fn content(
    policy: &Policy,
    clock: &Clock,
    head: &mut Head,
    mut incoming: Incoming,
) -> Result<Content, Problem> {
    let limits = &policy.limits;
    if incoming.size_hint().lower() > limits.max_request_bytes {
        return Err(Problem::TooLarge {
            limit: limits.max_request_bytes,
        });
    }
    if head.route.api == Api::Other && !incoming.is_end_stream() {
        let (body, seen) = RequestBody::passing(
            incoming,
            limits.max_request_bytes,
            limits.body_idle_timeout,
            clock.clone(),
        );
        return Ok(Content {
            complete: clock.mono(),
            body,
            bytes: None,
            facts: RequestFacts::default(),
            seen: Some(seen),
        });
    }
    let (bytes, trailers) = read_whole(&mut incoming, limits.max_request_bytes, limits.body_idle_timeout)
        .await
        .map_err(|e| match e {
            ReadError::TooLarge => Problem::TooLarge {
                limit: limits.max_request_bytes,
            },
            ReadError::TooSlow => Problem::TooSlow,
            ReadError::Broken => Problem::ClientGone,
        })?;
    let complete = clock.mono();
    let path = match head.route.api {
        Api::CohereChat => head.path().to_owned(),
        _ => String::new(),
    };
    refine(&mut head.route, &path, &bytes);
    let headers = &head.parts.headers;
    let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok());
    // What is compressed is not read: the facts then say that the model is unknown.
    let facts = if headers.contains_key(CONTENT_ENCODING) {
        RequestFacts {
            estimated_input: bytes.len() as u64 / 4,
            ..request::unread(&head.route)
        }
    } else {
        request::read(&head.route, content_type, &bytes)
    };
    Ok(Content {
        complete,
        body: RequestBody::trailed(bytes.clone(), trailers),
        bytes: Some(bytes),
        facts,
        seen: None,
    })
}

/// An upstream whose path prefix the request bears, and the path without it.
fn upstream_by_prefix<'a>(policy: &'a Policy, path: &'a str) -> (Option<&'a Arc<Upstream>>, &'a str) {
    for upstream in &policy.upstreams {
        if let Some(rest) = upstream.path_prefix.as_deref().and_then(|p| path.strip_prefix(p))
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return (Some(upstream), if rest.is_empty() { "/" } else { rest });
        }
    }
    (None, path)
}

/// Whose API a request is for whose path does not say it (lists of models, files, batches).
fn family_of_credentials(headers: &HeaderMap, path: &str) -> Family {
    if headers.contains_key("anthropic-version") || headers.contains_key("x-api-key") {
        Family::Anthropic
    } else if headers.contains_key("x-goog-api-key") || path.starts_with("/v1beta/") {
        Family::Gemini
    } else if path.starts_with("/api/") {
        Family::Ollama
    } else if path.starts_with("/v2/") {
        Family::Cohere
    } else {
        Family::OpenAi
    }
}

/// What makes a head unfit to be passed on.
fn fault(parts: &Parts) -> Option<Problem> {
    if parts.method == Method::CONNECT {
        return Some(Problem::Method);
    }
    if parts.version >= Version::HTTP_10 && parts.version < Version::HTTP_2 {
        let mut hosts = parts.headers.get_all(HOST).iter();
        let (first, second) = (hosts.next(), hosts.next());
        if second.is_some() || (first.is_none() && parts.version == Version::HTTP_11) {
            return Some(Problem::Host);
        }
        if first.is_some_and(|h| !plausible_host(h.as_bytes())) {
            return Some(Problem::Host);
        }
    }
    None
}

fn plausible_host(host: &[u8]) -> bool {
    host.len() <= 255
        && host.iter().all(|b| {
            b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_' | b'%' | b'~')
        })
}
