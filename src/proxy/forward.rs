//! To the upstream and back with the head of its answer; tried once, and again only when nothing was sent.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_ENCODING, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRAILER};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version, response};

use super::alarm::Alarm;
use super::body::RequestBody;
use super::headers::strip_request;
use super::reply::Problem;
use super::upstream::{AnswerBody, Lease, SendError};
use super::worker::Worker;
use crate::enforce::policy::{Policy, Upstream};

/// The head of a request that can be sent.
#[derive(Clone)]
pub(super) struct Outgoing {
    method: Method,
    target: PathAndQuery,
    headers: HeaderMap,
}

/// The head of an upstream's answer and the connection it came over.
pub(super) struct Forwarded {
    pub(super) head: response::Parts,
    pub(super) lease: Lease,
    /// What was read of the body already.
    pub(super) prefix: Bytes,
    /// Nothing of the body is left to be read.
    pub(super) ended: bool,
}

impl Outgoing {
    /// What goes to the upstream: the same request, less what belongs to the client's hop.
    pub(super) fn new(
        policy: &Policy,
        upstream: &Upstream,
        method: Method,
        path: &str,
        query: Option<&str>,
        mut headers: HeaderMap,
    ) -> Result<Self, Problem> {
        strip_request(&mut headers, &policy.identity.strip_headers);
        headers.insert(HOST, upstream.url.authority.clone());
        let target = target(&upstream.url.base_path, path, query).ok_or(Problem::Path)?;
        Ok(Self {
            method,
            target,
            headers,
        })
    }

    /// Says the length of a body that is not the client's (`changed`), and none where trailers follow. Those are
    /// announced, since what is not may be left out on the way (RFC 9110 §6.6.2).
    pub(super) fn frame(&mut self, body: &RequestBody, changed: bool) {
        if let Some(trailers) = body.trailers() {
            self.headers.remove(CONTENT_LENGTH);
            if !self.headers.contains_key(TRAILER) {
                let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
                if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
                    self.headers.insert(TRAILER, names);
                }
            }
        } else if changed && let Some(length) = body.length() {
            self.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
    }

    /// Asks for an answer that is not compressed.
    pub(super) fn accept_identity(&mut self) {
        self.headers
            .insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }

    /// The request itself, as it is written to an upstream that speaks HTTP/2 or not.
    pub(super) fn request<B>(self, upstream: &Upstream, h2: bool, body: B) -> Request<B> {
        let Self {
            method,
            target,
            headers,
        } = self;
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.headers_mut() = headers;
        if h2 {
            let scheme = if upstream.url.tls { "https" } else { "http" };
            let uri = Uri::builder()
                .scheme(scheme)
                .authority(upstream.url.authority.as_bytes())
                .path_and_query(target)
                .build();
            *request.uri_mut() = uri.unwrap_or_default();
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(HOST);
        } else {
            *request.uri_mut() = Uri::from(target);
        }
        request
    }

    /// What was to be sent, from a request that was not.
    fn again(upstream: &Upstream, unsent: Request<RequestBody>) -> Option<(Self, RequestBody)> {
        let (mut parts, body) = unsent.into_parts();
        parts.headers.insert(HOST, upstream.url.authority.clone());
        let target = parts.uri.into_parts().path_and_query?;
        Some((
            Self {
                method: parts.method,
                target,
                headers: parts.headers,
            },
            body,
        ))
    }
}

/// Sends a request and waits for the head of its answer.
///
/// An idle connection may have been closed by the upstream just as the request set out. When nothing of the request
/// was sent, and only then, it is sent once more over a new connection.
pub(super) async fn forward(
    worker: &Worker,
    upstream: &Arc<Upstream>,
    outgoing: Outgoing,
    body: RequestBody,
    alarm: &mut Alarm,
) -> Result<(Forwarded, AnswerBody), Problem> {
    let (mut outgoing, mut body) = (outgoing, body);
    let mut fresh = false;
    loop {
        let mut lease = worker
            .pools
            .lease(upstream, fresh)
            .await
            .map_err(Problem::Connect)?;
        let h2 = lease.link.is_h2();
        let request = outgoing.request(upstream, h2, body);
        alarm.heard();
        let sent = {
            let mut answer = pin!(lease.link.send(request));
            poll_fn(|cx| match answer.as_mut().poll(cx) {
                Poll::Ready(sent) => Poll::Ready(Some(sent)),
                Poll::Pending => alarm.poll(cx).map(|()| None),
            })
            .await
        };
        match sent {
            None => {
                lease.avoid();
                return Err(alarm.problem());
            }
            Some(Ok(response)) => {
                let (head, incoming) = response.into_parts();
                return Ok((
                    Forwarded {
                        head,
                        lease,
                        prefix: Bytes::new(),
                        ended: false,
                    },
                    incoming,
                ));
            }
            Some(Err(SendError { error, unsent })) => match unsent {
                Some(unsent) if lease.reused && !fresh => {
                    let again = Outgoing::again(upstream, *unsent);
                    (outgoing, body) = again.ok_or(Problem::Upstream(error))?;
                    fresh = true;
                }
                _ => return Err(Problem::Upstream(error)),
            },
        }
    }
}

/// Reads the body of an answer as far as `max` bytes go, to look at it before it is passed on.
pub(super) async fn peek(
    forwarded: &mut Forwarded,
    incoming: &mut AnswerBody,
    max: usize,
    alarm: &mut Alarm,
    silence: Duration,
) -> Result<(), Problem> {
    let mut read = BytesMut::new();
    while !forwarded.ended && read.len() < max {
        let frame = poll_fn(|cx| match forwarded.lease.link.poll_frame(incoming, cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => alarm.poll(cx).map(Err),
        })
        .await;
        match frame {
            Err(()) => return Err(Problem::UpstreamSilent(silence)),
            Ok(None) => forwarded.ended = true,
            Ok(Some(Err(e))) => return Err(Problem::Upstream(e)),
            Ok(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    read.extend_from_slice(data);
                }
            }
        }
    }
    forwarded.prefix = read.freeze();
    Ok(())
}

/// The upstream's base path, the client's path and its query. When both base and path begin with the same version
/// (`https://host/v1` and `/v1/chat`), it is said once.
fn target(base: &str, path: &str, query: Option<&str>) -> Option<PathAndQuery> {
    if base.is_empty() && query.is_none() {
        return PathAndQuery::try_from(path).ok();
    }
    let version = base
        .rsplit('/')
        .next()
        .filter(|v| is_version(v))
        .unwrap_or_default();
    let path = match path.strip_prefix('/').and_then(|p| p.strip_prefix(version)) {
        Some(rest) if !version.is_empty() && rest.starts_with('/') => rest,
        _ => path,
    };
    let mut all = String::with_capacity(base.len() + path.len() + query.map_or(0, |q| q.len() + 1));
    all.push_str(base);
    all.push_str(path);
    if let Some(query) = query {
        all.push('?');
        all.push_str(query);
    }
    PathAndQuery::try_from(all).ok()
}

fn is_version(segment: &str) -> bool {
    segment
        .strip_prefix('v')
        .is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::target;

    #[test]
    fn a_version_is_said_once() {
        for (base, path, query, want) in [
            ("", "/v1/chat/completions", None, "/v1/chat/completions"),
            ("/v1", "/v1/chat/completions", None, "/v1/chat/completions"),
            (
                "/openai/v1",
                "/v1/models",
                Some("a=%20"),
                "/openai/v1/models?a=%20",
            ),
            ("/openai", "/v1/models", None, "/openai/v1/models"),
            ("/v1", "/v1beta/models", None, "/v1/v1beta/models"),
            ("/v1", "/chat", None, "/v1/chat"),
            ("", "//v1//x", Some(""), "//v1//x?"),
        ] {
            assert_eq!(target(base, path, query).unwrap().as_str(), want);
        }
    }
}
