//! Idle connections of one worker, by upstream; nothing here is shared between threads.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::connect::{ConnectError, connect};
use super::link::Link;
use crate::clock::Clock;
use crate::enforce::policy::{Http2, Upstream};
use crate::types::time::Mono;

/// Idle HTTP/1.1 connections older than this are not used again: most servers have closed them by then, and each
/// that they close while a request is on its way is a failed request.
const MAX_IDLE: Duration = Duration::from_secs(50);

/// The connections of one worker.
pub(crate) struct Pools {
    clock: Clock,
    by_upstream: RefCell<Vec<Rc<Pool>>>,
}

struct Pool {
    upstream: Arc<Upstream>,
    idle: RefCell<Vec<(Link, Mono)>>,
    shared: RefCell<Option<Link>>,
}

/// A connection in use by one exchange; goes back to the pool by [`Lease::give_back`] or is closed when dropped.
pub(crate) struct Lease {
    pub(crate) link: Link,
    pool: Rc<Pool>,
    /// Whether it served an exchange before.
    pub(crate) reused: bool,
}

impl Pools {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            by_upstream: RefCell::default(),
        }
    }

    /// A connection to `upstream` that is ready for a request: an idle one unless `fresh`, else a new one.
    pub(crate) async fn lease(&self, upstream: &Arc<Upstream>, fresh: bool) -> Result<Lease, ConnectError> {
        let pool = self.pool(upstream);
        if !fresh {
            while let Some(mut link) = pool.take(self.clock.mono()) {
                if link.ready_again().await {
                    return Ok(Lease {
                        link,
                        pool,
                        reused: true,
                    });
                }
            }
        }
        // A TLS handshake holds kilobytes; boxed, only the exchanges that open a connection carry them.
        let link = Box::pin(async {
            let connected = connect(upstream).await?;
            let mut link = Link::handshake(connected, upstream.http2 == Http2::PriorKnowledge).await?;
            if link.is_h2() {
                *pool.shared.borrow_mut() = link.share();
            }
            if link.ready().await {
                Ok(link)
            } else {
                Err(ConnectError::Tcp(std::io::ErrorKind::ConnectionReset.into()))
            }
        })
        .await?;
        Ok(Lease {
            link,
            pool,
            reused: false,
        })
    }

    /// Closes what has been idle too long; called now and then by the worker.
    pub(crate) fn sweep(&self) {
        let oldest = self.clock.mono().before(MAX_IDLE);
        for pool in self.by_upstream.borrow().iter() {
            pool.idle.borrow_mut().retain(|(_, since)| *since >= oldest);
        }
    }

    /// The pool of an upstream. After a reload that changed how the upstream is reached, the old connections are
    /// forgotten.
    fn pool(&self, upstream: &Arc<Upstream>) -> Rc<Pool> {
        let mut all = self.by_upstream.borrow_mut();
        if let Some(pool) = all.iter().find(|p| Arc::ptr_eq(&p.upstream, upstream)) {
            return Rc::clone(pool);
        }
        let same_name = all.iter().position(|p| p.upstream.name == upstream.name);
        if let Some(old) = same_name.map(|i| all.swap_remove(i)) {
            let kept = old.upstream.reached_like(upstream);
            let pool = Rc::new(Pool {
                upstream: Arc::clone(upstream),
                idle: RefCell::new(if kept { old.idle.take() } else { Vec::new() }),
                shared: RefCell::new(if kept { old.shared.take() } else { None }),
            });
            all.push(Rc::clone(&pool));
            return pool;
        }
        let pool = Rc::new(Pool {
            upstream: Arc::clone(upstream),
            idle: RefCell::default(),
            shared: RefCell::default(),
        });
        all.push(Rc::clone(&pool));
        pool
    }
}

impl Pool {
    /// The connection that was used last, so that the others may grow old and be closed.
    fn take(&self, now: Mono) -> Option<Link> {
        let mut shared = self.shared.borrow_mut();
        if let Some(link) = shared.as_ref() {
            if let Link::H2 { send } = link
                && send.is_closed()
            {
                *shared = None;
            } else {
                return link.share();
            }
        }
        let mut idle = self.idle.borrow_mut();
        let (link, since) = idle.pop()?;
        if now.since(since) > MAX_IDLE {
            idle.clear();
            return None;
        }
        Some(link)
    }
}

impl Lease {
    /// Puts the connection back; only after an answer was read to its end.
    pub(crate) fn give_back(self, now: Mono) {
        if self.link.is_h2() {
            return;
        }
        let mut idle = self.pool.idle.borrow_mut();
        if idle.len() < self.pool.upstream.max_idle_connections {
            idle.push((self.link, now));
        }
    }
}
