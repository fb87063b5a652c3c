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
