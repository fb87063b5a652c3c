//! The connections of one worker that can be used again, by upstream; nothing here is shared between threads.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::connect::{ConnectError, connect};
use super::http1::Spare;
use super::link::{Common, Link};
use crate::clock::Clock;
use crate::enforce::policy::{Http2, Upstream};
use crate::types::time::Mono;

/// Connections idle for longer than this are not used again: most servers have closed them by then, and each that
/// they close while a request is on its way is a failed request.
const MAX_IDLE: Duration = Duration::from_secs(50);

/// Most exchanges at once on one HTTP/2 connection, when the upstream allows more: beyond it they share too much of
/// one congestion window, and of one failure.
const MAX_SHARING: usize = 100;

/// The connections of one worker.
pub(crate) struct Pools {
    clock: Clock,
    by_upstream: RefCell<Vec<Rc<Pool>>>,
    spare: Rc<Spare>,
}

struct Pool {
    upstream: Arc<Upstream>,
    idle: RefCell<Vec<(Link, Mono)>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    common: Common,
}

/// An HTTP/2 connection.
struct Shared {
    link: Link,
    /// Exchanges on it at this moment.
    leases: Cell<usize>,
    /// When it was first seen without any, since it last had one.
    idle_since: Cell<Option<Mono>>,
}

/// The place of one exchange on an HTTP/2 connection.
struct Seat(Rc<Shared>);

/// A connection in use by one exchange; goes back to the pool by [`Lease::give_back`] or is closed when dropped.
pub(crate) struct Lease {
    pub(crate) link: Link,
    pool: Rc<Pool>,
    seat: Option<Seat>,
    /// Whether it served an exchange before.
    pub(crate) reused: bool,
}

impl Pools {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            by_upstream: RefCell::default(),
            spare: Rc::default(),
        }
    }

    /// A connection to `upstream` that is ready for a request: one that is there already unless `fresh`, else a new
    /// one.
    pub(crate) async fn lease(&self, upstream: &Arc<Upstream>, fresh: bool) -> Result<Lease, ConnectError> {
        let pool = self.pool(upstream);
        if !fresh {
            if let Some((link, seat)) = pool.seat() {
                return Ok(Lease::new(link, pool, Some(seat), true));
            }
            while let Some(mut link) = pool.take(self.clock.mono()) {
                if link.is_alive().await {
                    return Ok(Lease::new(link, pool, None, true));
                }
            }
        }
        // A TLS handshake holds kilobytes; boxed, only the exchanges that open a connection carry them.
        let link = Box::pin(async {
            let connected = connect(upstream).await?;
            let prior_knowledge = upstream.http2 == Http2::PriorKnowledge;
            Link::handshake(connected, prior_knowledge, &pool.common).await
        })
        .await?;
        let Some(handle) = link.share() else {
            return Ok(Lease::new(link, pool, None, false));
        };
        // Of those who found no place at the same time and all opened a connection, one is enough.
        if !fresh && let Some((link, seat)) = pool.seat() {
            return Ok(Lease::new(link, pool, Some(seat), true));
        }
        let shared = Rc::new(Shared {
            link: handle,
            leases: Cell::new(0),
            idle_since: Cell::new(None),
        });
        let seat = Seat::take(&shared);
        pool.shared.borrow_mut().push(shared);
        Ok(Lease::new(link, pool, Some(seat), false))
    }

    /// Closes what has been idle too long, and all that goes to an upstream which the policy no longer names; called
    /// now and then by the worker.
    pub(crate) fn sweep(&self, upstreams: &[Arc<Upstream>]) {
        let now = self.clock.mono();
        let oldest = now.before(MAX_IDLE);
        let mut pools = self.by_upstream.borrow_mut();
        pools.retain(|pool| upstreams.iter().any(|u| u.name == pool.upstream.name));
        for pool in pools.iter() {
            pool.idle.borrow_mut().retain(|(_, since)| *since >= oldest);
            pool.shared.borrow_mut().retain(|shared| {
                if shared.leases.get() > 0 {
                    return true;
                }
                let since = shared.idle_since.get().unwrap_or(now);
                shared.idle_since.set(Some(since));
                since >= oldest && shared.link.is_idle()
            });
        }
    }

    /// The pool of an upstream. After a reload that changed how the upstream is reached, the old connections are
    /// forgotten.
    fn pool(&self, upstream: &Arc<Upstream>) -> Rc<Pool> {
        let mut all = self.by_upstream.borrow_mut();
        if let Some(pool) = all.iter().find(|p| Arc::ptr_eq(&p.upstream, upstream)) {
            return Rc::clone(pool);
        }
        let old = all.iter().position(|p| p.upstream.name == upstream.name);
        let old = old
            .map(|i| all.swap_remove(i))
            .filter(|old| old.upstream.reached_like(upstream));
        let pool = Rc::new(match old {
            Some(old) => Pool {
                upstream: Arc::clone(upstream),
                idle: RefCell::new(old.idle.take()),
                shared: RefCell::new(old.shared.take()),
                common: old.common.clone(),
            },
            None => Pool {
                upstream: Arc::clone(upstream),
                idle: RefCell::default(),
                shared: RefCell::default(),
                common: Common {
                    spare: Rc::clone(&self.spare),
                    known: Rc::default(),
                },
            },
        });
        all.push(Rc::clone(&pool));
        pool
    }
}

impl Pool {
    /// A place on the first HTTP/2 connection that has one, so that the others may become idle and be closed.
    fn seat(&self) -> Option<(Link, Seat)> {
        let mut all = self.shared.borrow_mut();
        if all.is_empty() {
            return None;
        }
        all.retain(|shared| shared.link.is_idle());
        let shared = all
            .iter()
            .find(|shared| shared.leases.get() < shared.link.allowed().clamp(1, MAX_SHARING))?;
        Some((shared.link.share()?, Seat::take(shared)))
    }

    /// The HTTP/1.1 connection that was used last, so that the others may grow old and be closed.
    fn take(&self, now: Mono) -> Option<Link> {
        let mut idle = self.idle.borrow_mut();
        let (link, since) = idle.pop()?;
        if now.since(since) > MAX_IDLE {
            idle.clear();
            return None;
        }
        Some(link)
    }
}

impl Seat {
    fn take(shared: &Rc<Shared>) -> Self {
        shared.leases.set(shared.leases.get() + 1);
        shared.idle_since.set(None);
        Self(Rc::clone(shared))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.leases.set(self.0.leases.get().saturating_sub(1));
    }
}

impl Lease {
    fn new(link: Link, pool: Rc<Pool>, seat: Option<Seat>, reused: bool) -> Self {
        Self {
            link,
            pool,
            seat,
            reused,
        }
    }

    /// Puts the connection back, if the exchange left it in a state to be used again.
    pub(crate) fn give_back(self, now: Mono) {
        if self.seat.is_some() || !self.link.is_idle() {
            return;
        }
        let mut idle = self.pool.idle.borrow_mut();
        if idle.len() < self.pool.upstream.max_idle_connections {
            idle.push((self.link, now));
        }
    }

    /// Keeps others from using this connection: an upstream that did not answer on it may not answer on it again.
    /// Exchanges that are on it already go on.
    pub(crate) fn avoid(&self) {
        if let Some(Seat(suspect)) = &self.seat {
            let mut shared = self.pool.shared.borrow_mut();
            shared.retain(|shared| !Rc::ptr_eq(shared, suspect));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::Future;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::server::conn::{http1, http2};
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use tokio::net::TcpListener;
    use tokio::runtime::{Builder, LocalOptions};
    use tokio::time::timeout;

    use super::*;
    use crate::enforce::policy::Timeouts;
    use crate::proxy::body::RequestBody;
    use crate::proxy::local::LocalExecutor;
    use crate::types::time::{Now, Wall};

    /// A server whose answers are empty; it allows `most` exchanges at once on an HTTP/2 connection.
    struct Server {
        upstream: Arc<Upstream>,
        opened: Rc<Cell<usize>>,
        open: Rc<Cell<usize>>,
    }

    impl Server {
        async fn start(http2: Http2, most: u32) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut upstream = Upstream::clone(&Upstream::nowhere());
            upstream.url.host = "127.0.0.1".to_owned();
            upstream.url.port = listener.local_addr().unwrap().port();
            upstream.http2 = http2;
            upstream.max_idle_connections = 10;
            upstream.timeouts = Timeouts {
                connect: Duration::from_secs(5),
                first_byte: Duration::from_secs(5),
                idle: Duration::from_secs(5),
                total: None,
            };
            let opened = Rc::new(Cell::new(0));
            let open = Rc::new(Cell::new(0));
            let (count, now) = (Rc::clone(&opened), Rc::clone(&open));
            drop(tokio::task::spawn_local(async move {
                loop {
                    let (io, _) = listener.accept().await.unwrap();
                    count.set(count.get() + 1);
                    now.set(now.get() + 1);
                    let now = Rc::clone(&now);
                    drop(tokio::task::spawn_local(async move {
                        let answer = |_: Request<Incoming>| async {
                            Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
                        };
                        let io = TokioIo::new(io);
                        if http2 == Http2::Never {
                            http1::Builder::new()
                                .serve_connection(io, service_fn(answer))
                                .await
                                .ok();
                        } else {
                            http2::Builder::new(LocalExecutor)
                                .max_concurrent_streams(most)
                                .serve_connection(io, service_fn(answer))
                                .await
                                .ok();
                        }
                        now.set(now.get() - 1);
                    }));
                }
            }));
            Self {
                upstream: Arc::new(upstream),
                opened,
                open,
            }
        }

        async fn has(&self, open: usize) {
            let settled = async {
                while self.open.get() != open {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let settled = timeout(Duration::from_secs(5), settled).await;
            assert!(settled.is_ok(), "{} open, not {open}", self.open.get());
        }
    }

    fn run<F: Future<Output = ()>>(test: impl FnOnce(Pools, Clock) -> F) {
        let clock = Clock::manual(Now {
            mono: Mono::ZERO.after(Duration::from_secs(1000)),
            wall: Wall::default(),
        });
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .unwrap();
        runtime.block_on(test(Pools::new(clock.clone()), clock));
    }

    /// One exchange over `lease`, to its end.
    async fn exchange(lease: &mut Lease) {
        let uri = if lease.link.is_h2() { "http://h/" } else { "/" };
        let request = Request::get(uri).body(RequestBody::Whole(None)).unwrap();
        let answer = lease.link.send(request).await.map_err(|e| e.error).unwrap();
        let mut body = answer.into_body();
        while let Some(frame) = std::future::poll_fn(|cx| lease.link.poll_frame(&mut body, cx)).await {
            frame.unwrap();
        }
    }

    #[test]
    fn an_http1_connection_is_used_again_and_given_up_when_it_is_old() {
        run(async |pools: Pools, clock: Clock| {
            let server = Server::start(Http2::Never, 0).await;
            for round in 0..3 {
                let mut lease = pools.lease(&server.upstream, false).await.unwrap();
                assert_eq!(lease.reused, round > 0);
                exchange(&mut lease).await;
                lease.give_back(clock.mono());
            }
            server.has(1).await;
            pools.sweep(std::slice::from_ref(&server.upstream));
            server.has(1).await;
            clock.advance(MAX_IDLE + Duration::from_secs(1));
            pools.sweep(std::slice::from_ref(&server.upstream));
            server.has(0).await;
            assert!(!pools.lease(&server.upstream, false).await.unwrap().reused);
        });
    }

    #[test]
    fn a_connection_whose_exchange_did_not_end_is_not_kept() {
        run(async |pools: Pools, clock: Clock| {
            let server = Server::start(Http2::Never, 0).await;
            let mut lease = pools.lease(&server.upstream, false).await.unwrap();
            let request = Request::post("/").body(RequestBody::Whole(None)).unwrap();
            let mut sending = Box::pin(lease.link.send(request));
            std::future::poll_fn(|cx| {
                assert!(sending.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            drop(sending);
            lease.give_back(clock.mono());
            server.has(0).await;
        });
    }

    #[test]
    fn an_http2_connection_has_no_more_exchanges_than_its_upstream_allows() {
        run(async |pools: Pools, _| {
            let server = Server::start(Http2::PriorKnowledge, 3).await;
            let mut first = pools.lease(&server.upstream, false).await.unwrap();
            exchange(&mut first).await;
            let mut held = vec![first];
            for n in 2..=7 {
                held.push(pools.lease(&server.upstream, false).await.unwrap());
                exchange(held.last_mut().unwrap()).await;
                assert_eq!(server.opened.get(), usize::div_ceil(n, 3), "for {n} exchanges");
            }
            drop(held.remove(0));
            assert!(pools.lease(&server.upstream, false).await.unwrap().reused);
            assert_eq!(server.opened.get(), 3, "the place that became free was taken");
        });
    }

    #[test]
    fn however_many_are_allowed_there_is_a_bound() {
        run(async |pools: Pools, _| {
            let server = Server::start(Http2::PriorKnowledge, 10_000).await;
            let mut held = Vec::new();
            for n in 1..=2 * MAX_SHARING {
                held.push(pools.lease(&server.upstream, false).await.unwrap());
                exchange(held.last_mut().unwrap()).await;
                assert_eq!(server.opened.get(), n.div_ceil(MAX_SHARING));
            }
        });
    }

    #[test]
    fn an_http2_connection_without_exchanges_is_closed_after_a_while() {
        run(async |pools: Pools, clock: Clock| {
            let server = Server::start(Http2::PriorKnowledge, 3).await;
            let all = std::slice::from_ref(&server.upstream);
            let mut lease = pools.lease(&server.upstream, false).await.unwrap();
            exchange(&mut lease).await;
            for _ in 0..3 {
                pools.sweep(all);
                clock.advance(MAX_IDLE + Duration::from_secs(1));
            }
            server.has(1).await;
            lease.give_back(clock.mono());
            pools.sweep(all);
            clock.advance(MAX_IDLE / 2);
            assert!(pools.lease(&server.upstream, false).await.unwrap().reused);
            pools.sweep(all);
            clock.advance(MAX_IDLE - Duration::from_secs(1));
            pools.sweep(all);
            server.has(1).await;
            clock.advance(Duration::from_secs(2));
            pools.sweep(all);
            server.has(0).await;
        });
    }

    #[test]
    fn a_connection_to_be_avoided_serves_what_it_has_and_nothing_else() {
        run(async |pools: Pools, _| {
            let server = Server::start(Http2::PriorKnowledge, 9).await;
            let silent = pools.lease(&server.upstream, false).await.unwrap();
            let mut beside = pools.lease(&server.upstream, false).await.unwrap();
            silent.avoid();
            assert!(!pools.lease(&server.upstream, false).await.unwrap().reused);
            exchange(&mut beside).await;
            drop((silent, beside));
            server.has(1).await;
        });
    }

    #[test]
    fn connections_of_upstreams_that_are_gone_are_closed() {
        run(async |pools: Pools, clock: Clock| {
            let server = Server::start(Http2::Never, 0).await;
            let mut lease = pools.lease(&server.upstream, false).await.unwrap();
            let mut late = pools.lease(&server.upstream, false).await.unwrap();
            exchange(&mut lease).await;
            lease.give_back(clock.mono());
            // A reload that changes nothing about how the upstream is reached keeps the connection.
            let same = Arc::new(Upstream::clone(&server.upstream));
            let again = pools.lease(&same, false).await.unwrap();
            assert!(again.reused);
            again.give_back(clock.mono());
            let mut other = Upstream::clone(&server.upstream);
            other.name = "other".into();
            pools.sweep(&[Arc::new(other)]);
            server.has(1).await;
            assert!(pools.by_upstream.borrow().is_empty());
            exchange(&mut late).await;
            late.give_back(clock.mono());
            server.has(0).await;
        });
    }

    #[test]
    fn those_who_come_together_share_one_http2_connection() {
        run(async |pools: Pools, _| {
            let server = Server::start(Http2::PriorKnowledge, 50).await;
            let leases = RefCell::new(Vec::new());
            let ask = async || {
                let lease = pools.lease(&server.upstream, false).await.unwrap();
                leases.borrow_mut().push(lease);
            };
            tokio::join!(ask(), ask(), ask(), ask());
            server.has(1).await;
        });
    }
}
