//! The admin API: probes, metrics, status, and what an operator may do; its own listener, loopback unless told otherwise.

mod api;
mod approvals;
mod auth;
mod body;
mod error;
mod events;
#[cfg(test)]
mod fixture;
mod handlers;
mod history;
mod incidents;
mod openapi;
mod orders;
mod page;
mod plan;
mod respond;
mod routes;
#[cfg(test)]
mod tests;
mod view;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use crate::clock::Clock;
use crate::config::AdminWiring;
use crate::control::handle::Handle;
use crate::enforce::policy::Bind;
use api::Api;
use auth::{Gate, Via};

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 256;
const BACKLOG: i32 = 128;
/// How long a request's head may take, and how long a connection may lie idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a connection may live: so that none that neither reads nor ends is kept for ever.
const MAX_AGE: Duration = Duration::from_secs(600);
/// How long what is under way may take when the connection has to end.
const GRACE: Duration = Duration::from_secs(5);
/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 64 << 10;
/// The longest pause after a failure to accept; the first is 50 ms, and each is twice the one before.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Serves the admin API on `listener` until `stop` is ready; what is under way then has five seconds to end.
///
/// A listener that cannot accept is tried again and again: whatever happens here, traffic goes on.
pub async fn serve(listener: AdminListener, wiring: AdminWiring, handle: Handle, stop: CancellationToken) {
    let clock = Clock::system();
    let gate = Gate::new(&wiring, handle.links().clone(), clock.clone());
    let api = Api::new(handle, clock, wiring.user_header.as_deref(), stop.clone());
    let router = routes::router(gate, api);
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let open = TaskTracker::new();
    loop {
        let permit = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            permit = Arc::clone(&connections).acquire_owned() => permit,
        };
        let (stream, via) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = patiently(|| listener.accept(), sleep) => accepted,
        };
        let router = router.clone();
        let stop = stop.clone();
        open.spawn(async move {
            let _held = permit;
            converse(stream, via, router, stop).await;
        });
    }
    open.close();
    open.wait().await;
}

/// Tries until it succeeds, with a `pause` after each failure that grows up to [`MAX_PAUSE`].
async fn patiently<T, A, P>(accept: impl Fn() -> A, pause: impl Fn(Duration) -> P) -> T
where
    A: Future<Output = io::Result<T>>,
    P: Future<Output = ()>,
{
    let mut failures: u32 = 0;
    loop {
        match accept().await {
            Ok(accepted) => return accepted,
            Err(e) => {
                // Out of descriptors, most likely: a pause keeps us from spinning, and the log from being flooded.
                if failures.saturating_add(1).is_power_of_two() {
                    tracing::warn!(error = %e, "the admin listener cannot accept a connection; trying again");
                }
                let wait = Duration::from_millis(50).saturating_mul(1 << failures.min(8));
                failures = failures.saturating_add(1);
                pause(wait.min(MAX_PAUSE)).await;
            }
        }
    }
}

/// A bound admin listener.
#[derive(Debug)]
pub enum AdminListener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

impl AdminListener {
    /// Binds it, and says at which address when it is TCP. A Unix socket is for its owner only (mode 0600), and a
    /// stale one is replaced.
    ///
    /// # Errors
    /// When the address is taken or not allowed, when a path is taken by something that is not a stale socket, or
    /// when an address beyond loopback comes without a token.
    pub async fn bind(wiring: &AdminWiring) -> io::Result<(Self, Option<SocketAddr>)> {
        match &wiring.bind {
            Bind::Tcp(address) => {
                if wiring.all_tokens().is_empty() && !address.ip().to_canonical().is_loopback() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!(
                            "{address} can be reached from outside: set admin.token, or listen on 127.0.0.1"
                        ),
                    ));
                }
                let listener = TcpListener::bind(address).await?;
                let bound = listener.local_addr()?;
                Ok((Self::Tcp(listener), Some(bound)))
            }
            Bind::Unix(path) => Ok((Self::Unix(bind_unix(path)?), None)),
        }
    }

    async fn accept(&self) -> io::Result<(Either<TcpStream, UnixStream>, Via)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true).ok();
                let local = stream.local_addr().ok().map(|a| a.ip().to_canonical());
                let peer = Some(peer.ip().to_canonical());
                Ok((Either::Left(stream), Via::Tcp { local, peer }))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Either::Right(stream), Via::Unix))
            }
        }
    }
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    if let Ok(meta) = std::fs::symlink_metadata(path) {
        if !meta.file_type().is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} exists and is no socket", path.display()),
            ));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is served by another process", path.display()),
            ));
        }
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Between bind and listen nobody can connect, so nobody slips in before the mode is set.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(socket.into())
}

/// Serves one connection to its end.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    via: Via,
    router: Router,
    stop: CancellationToken,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(via);
        router.clone().oneshot(request)
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = stop.cancelled() => None,
        () = sleep(MAX_AGE) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(e) = ended {
        tracing::debug!(error = %e, "an admin connection broke off");
    }
}

#[cfg(test)]
mod accepting {
    use std::cell::{Cell, RefCell};

    use super::{MAX_PAUSE, patiently};

    #[tokio::test]
    async fn a_listener_that_fails_long_is_not_given_up() {
        let (left, pauses) = (Cell::new(10_000_u32), RefCell::new(Vec::new()));
        let accept = || {
            std::future::ready(match left.replace(left.get().saturating_sub(1)) {
                0 => Ok(()),
                _ => Err(std::io::Error::from(std::io::ErrorKind::Other)),
            })
        };
        let pause = |pause| {
            pauses.borrow_mut().push(pause);
            std::future::ready(())
        };
        patiently(accept, pause).await;
        let pauses = pauses.into_inner();
        assert_eq!(pauses.len(), 10_000);
        assert_eq!(pauses[0].as_millis(), 50);
        assert!(
            pauses.is_sorted() && pauses.last() == Some(&MAX_PAUSE),
            "{:?}",
            pauses.last()
        );
    }
}
