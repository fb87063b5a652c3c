//! Listeners: bound once for each worker, a task for each connection, TLS before HTTP, never more than allowed.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, TryAcquireError};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use super::certificate::Certificate;
use super::connection::{Client, serve};
use super::worker::Worker;
use crate::enforce::policy::{Bind, Listener};
use crate::types::ids::AgentId;
use crate::types::time::Mono;

/// Pending connections that the kernel keeps for us.
const BACKLOG: i32 = 4096;

/// How often each listener of a worker says that there are too many clients.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// A client connection.
pub(super) type ClientIo = Either<Either<TcpStream, UnixStream>, Box<TlsStream<TcpStream>>>;

/// A bound listener of one worker.
#[derive(Debug)]
pub struct Listening {
    socket: Sock,
    tls: Option<Arc<Certificate>>,
    agent: Option<AgentId>,
}

#[derive(Debug)]
enum Sock {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// Binds a listener once for each of `workers` workers and says where it listens. A port 0 becomes one free port
/// for all of them; a Unix socket is served by the first worker alone.
///
/// # Errors
/// When the address cannot be bound, or a path is taken by something that is not a stale socket.
pub fn bind(
    listener: &Listener,
    workers: usize,
    tls: Option<&Arc<Certificate>>,
) -> io::Result<(String, Vec<Listening>)> {
    let listening = |socket| Listening {
        socket,
        tls: tls.map(Arc::clone),
        agent: listener.agent.clone(),
    };
    match &listener.bind {
        Bind::Tcp(address) => {
            // Sockets that share a port (one for each worker) would share it with another process as well, and each
            // would get part of the other's clients. One that does not share tells whether the port is free; it does not
            // listen, so that no client is turned away when it is closed.
            let address = tcp(*address, false)?
                .local_addr()?
                .as_socket()
                .unwrap_or(*address);
            let mut bound = Vec::with_capacity(workers);
            for _ in 0..workers.max(1) {
                let socket = tcp(address, workers > 1)?;
                socket.listen(BACKLOG)?;
                bound.push(listening(Sock::Tcp(socket.into())));
            }
            Ok((address.to_string(), bound))
        }
        Bind::Unix(path) => {
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
            let socket = std::os::unix::net::UnixListener::bind(path)?;
            socket.set_nonblocking(true)?;
            Ok((
                format!("unix:{}", path.display()),
                vec![listening(Sock::Unix(socket))],
            ))
        }
    }
}

/// A bound socket that does not listen yet.
fn tcp(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Accepts connections until the drain begins.
pub(super) async fn run(worker: Rc<Worker>, listening: Listening) -> io::Result<()> {
    let Listening { socket, tls, agent } = listening;
    match socket {
        Sock::Tcp(socket) => {
            let socket = TcpListener::from_std(socket)?;
            accept_loop(worker, tls, agent, async || {
                let (stream, _) = socket.accept().await?;
                // A client that is gone already is found out when it is read from.
                stream.set_nodelay(true).ok();
                Ok(Either::Left(stream))
            })
            .await;
        }
        Sock::Unix(socket) => {
            let socket = UnixListener::from_std(socket)?;
            accept_loop(worker, tls, agent, async || {
                Ok(Either::Right(socket.accept().await?.0))
            })
            .await;
        }
    }
    Ok(())
}

async fn accept_loop(
    worker: Rc<Worker>,
    tls: Option<Arc<Certificate>>,
    agent: Option<AgentId>,
    accept: impl AsyncFn() -> io::Result<Either<TcpStream, UnixStream>>,
) {
    let agent = agent.map(Rc::new);
    let drain = worker.shared.drain.clone();
    let mut failures: u32 = 0;
    let mut told = None;
    loop {
        let stream = tokio::select! {
            biased;
            () = drain.begun() => return,
            stream = accept() => stream,
        };
        let stream = match stream {
            Ok(stream) => stream,
            Err(e) if left_at_once(&e) => continue,
            Err(e) => {
                failures = failures.saturating_add(1);
                if failures.is_power_of_two() {
                    tracing::warn!(error = %e, failures, "cannot accept a connection");
                }
                // Out of descriptors, most likely. A pause keeps us from spinning.
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        failures = 0;
        let Some(permit) = permit(&worker, &mut told).await else {
            return;
        };
        let worker = Rc::clone(&worker);
        let agent = agent.clone();
        let tls = tls.clone();
        let open = drain.open();
        drop(tokio::task::spawn_local(async move {
            let _held = (permit, open);
            // Boxed, so that a plain connection does not hold room for a handshake for all its life.
            if let Some(client) = Box::pin(secure(&worker, stream, tls.as_deref())).await {
                serve(worker, client, agent).await;
            }
        }));
    }
}

/// Leave for one more connection; `None` when the drain begins first.
///
/// It is asked for when there is a client, never ahead: a listener that nobody calls must not keep others from being
/// served. Beyond the bound each listener of each worker holds the one client that it has accepted, and the rest wait
/// in the kernel's queue, which is bounded and costs us nothing.
async fn permit(worker: &Worker, told: &mut Option<Mono>) -> Option<OwnedSemaphorePermit> {
    let connections = &worker.shared.connections;
    match Arc::clone(connections).try_acquire_owned() {
        Ok(permit) => return Some(permit),
        Err(TryAcquireError::Closed) => return None,
        Err(TryAcquireError::NoPermits) => {}
    }
    let now = worker.shared.clock.mono();
    if told.is_none_or(|at| now.since(at) >= TELL_EVERY) {
        *told = Some(now);
        tracing::warn!("limits.max_connections is reached; clients wait until others leave");
    }
    tokio::select! {
        biased;
        () = worker.shared.drain.begun() => None,
        permit = Arc::clone(connections).acquire_owned() => permit.ok(),
    }
}

/// Whether it was the client that failed, and not the listener.
fn left_at_once(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    )
}

/// The TLS handshake, if this listener has one. A client that fails it is dropped.
async fn secure(
    worker: &Worker,
    stream: Either<TcpStream, UnixStream>,
    tls: Option<&Certificate>,
) -> Option<Client> {
    let Some(certificate) = tls else {
        return Some(Client {
            io: Either::Left(stream),
            h2: None,
        });
    };
    let Either::Left(stream) = stream else {
        return Some(Client {
            io: Either::Left(stream),
            h2: None,
        });
    };
    let limit = worker.snapshot().policy.limits.header_timeout;
    let acceptor = TlsAcceptor::from(certificate.server_config());
    let handshake = timeout(limit, acceptor.accept(stream));
    let accepted = tokio::select! {
        biased;
        // Nobody has asked for anything yet, so there is nothing to finish.
        () = worker.shared.drain.begun() => return None,
        accepted = handshake => accepted,
    };
    match accepted {
        Ok(Ok(stream)) => {
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            Some(Client {
                io: Either::Right(Box::new(stream)),
                h2: Some(h2),
            })
        }
        Ok(Err(e)) => {
            tracing::debug!(error = %e, "TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("TLS handshake took too long");
            None
        }
    }
}
