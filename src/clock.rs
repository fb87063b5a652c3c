//! The only file that reads time: the system's clock, and one that tests drive.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::types::time::{Mono, Now, Wall};

/// What the monotonic clock of the system begins with, in nanoseconds: forty days, so that what another process left
/// behind has a place before it.
const ORIGIN: u64 = 40 * 86_400 * 1_000_000_000;

/// Where the time comes from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    System { origin: Instant },
    Manual(Arc<Manual>),
}

#[derive(Debug)]
struct Manual {
    mono: AtomicU64,
    wall: AtomicI64,
}

impl Clock {
    /// The system's clocks; the monotonic one starts at forty days so that "before the start" can be said.
    #[expect(clippy::disallowed_methods, reason = "this is the file that reads time")]
    pub fn system() -> Self {
        Self(Source::System {
            origin: Instant::now(),
        })
    }

    /// A clock that stands still until [`Clock::advance`] is called.
    pub fn manual(start: Now) -> Self {
        Self(Source::Manual(Arc::new(Manual {
            mono: AtomicU64::new(start.mono.as_nanos()),
            wall: AtomicI64::new(start.wall.unix_millis()),
        })))
    }

    /// Moves a manual clock on; does nothing to the system's.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(m) = &self.0 {
            m.mono
                .fetch_add(u64::try_from(by.as_nanos()).unwrap_or(0), Ordering::SeqCst);
            m.wall
                .fetch_add(i64::try_from(by.as_millis()).unwrap_or(0), Ordering::SeqCst);
        }
    }

    /// The monotonic time.
    #[inline]
    #[expect(clippy::disallowed_methods, reason = "this is the file that reads time")]
    pub fn mono(&self) -> Mono {
        match &self.0 {
            Source::System { origin } => {
                let since = Instant::now().saturating_duration_since(*origin);
                Mono::from_nanos(
                    u64::try_from(since.as_nanos())
                        .unwrap_or(u64::MAX)
                        .saturating_add(ORIGIN),
                )
            }
            Source::Manual(m) => Mono::from_nanos(m.mono.load(Ordering::SeqCst)),
        }
    }

    /// The wall-clock time.
    #[expect(clippy::disallowed_methods, reason = "this is the file that reads time")]
    pub fn wall(&self) -> Wall {
        match &self.0 {
            Source::System { .. } => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Wall::from_unix_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
            Source::Manual(m) => Wall::from_unix_millis(m.wall.load(Ordering::SeqCst)),
        }
    }

    /// Both, one right after the other.
    pub fn now(&self) -> Now {
        Now {
            mono: self.mono(),
            wall: self.wall(),
        }
    }
}
