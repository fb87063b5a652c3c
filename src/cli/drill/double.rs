//! A double of an upstream: an HTTP/1.1 server in this process that answers, or fails in one way.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use super::run::Way;
use super::sample;
use crate::dialect::table::Family;

/// A running double; it stops when dropped.
pub(super) struct Double {
    pub(super) address: SocketAddr,
    asked: Arc<AtomicU64>,
    accepting: Option<AbortHandle>,
}

impl Double {
    /// Starts one that fails in this way, or answers.
    ///
    /// # Errors
    /// One line for a person when it cannot listen.
    pub(super) async fn start(fails: Option<Way>, family: Family) -> Result<Self, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(|e| format!("a double cannot listen on 127.0.0.1: {e}"))?;
        let address = listener
            .local_addr()
            .map_err(|e| format!("a double has no address: {e}"))?;
        let asked = Arc::new(AtomicU64::new(0));
        // Nobody listens where no connection is to be had.
        let accepting = match fails {
            Some(Way::Connect) => None,
            fails => Some(tokio::spawn(serve(listener, fails, family, Arc::clone(&asked))).abort_handle()),
        };
        Ok(Self {
            address,
            asked,
            accepting,
        })
    }

    /// How many requests came.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

async fn serve(listener: TcpListener, fails: Option<Way>, family: Family, asked: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    while let Ok((io, _)) = listener.accept().await {
        let asked = Arc::clone(&asked);
        connections.spawn(async move {
            let answer = service_fn(move |request: Request<Incoming>| {
                let asked = Arc::clone(&asked);
                async move {
                    discard(request.into_body()).await.ok();
                    asked.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Infallible>(answer(fails, family).await)
                }
            });
            http1::Builder::new()
                .serve_connection(TokioIo::new(io), answer)
                .await
                .ok();
        });
    }
}

/// Reads a body to its end and keeps nothing of it.
pub(super) async fn discard(mut body: Incoming) -> Result<(), hyper::Error> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(())
}

async fn answer(fails: Option<Way>, family: Family) -> Response<Full<Bytes>> {
    let events = |text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        let kind = HeaderValue::from_static("text/event-stream");
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    };
    match fails {
        Some(Way::FirstByte) => std::future::pending().await,
        Some(Way::FirstEvent) => events(sample::error(family)),
        Some(Way::Status(status)) => {
            let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
            *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            response
        }
        Some(Way::Connect) | None => events(sample::answer(family)),
    }
}
