//! Points in time: monotonic for windows and leases, wall-clock for records; both are read in `clock.rs` alone.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A monotonic point in time: nanoseconds since an arbitrary origin of this process (or of a replay).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(u64);

impl Mono {
    /// The origin.
    pub const ZERO: Self = Self(0);
    /// Later than anything a process will see.
    pub const FAR: Self = Self(u64::MAX);

    /// The point `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The point `millis` milliseconds after the origin (saturating).
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to this point; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// This point plus `by`, stopping at [`Mono::FAR`].
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }

    /// This point less `by`, stopping at [`Mono::ZERO`].
    #[must_use]
    pub fn before(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// A wall-clock point in time: milliseconds since 1970-01-01T00:00:00Z. Shown as RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(i64);

impl Wall {
    /// The point `millis` milliseconds after the Unix epoch.
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_millis(self) -> i64 {
        self.0
    }

    /// This point plus `by` (whole milliseconds), stopping at the latest one there is.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)),
        )
    }
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(t) => write!(f, "{t:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl Serialize for Wall {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Wall {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let t: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(t.as_millisecond()))
    }
}

impl schemars::JsonSchema for Wall {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "date-time"})
    }
}

/// Both clocks, read once for one judgement; also a point in time that is to outlive the process.
///
/// Only the wall-clock part is written down: monotonic time means nothing to another process, which gives it its own by
/// [`Now::rebased`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// For windows, leases and waits.
    pub mono: Mono,
    /// For records and people.
    pub wall: Wall,
}

impl Now {
    /// This point, later by `by`.
    #[must_use]
    pub fn after(self, by: Duration) -> Self {
        Self {
            mono: self.mono.after(by),
            wall: self.wall.after(by),
        }
    }

    /// This point with the monotonic time that it has where `now` is now: as far before or after it as by the wall
    /// clock.
    #[must_use]
    pub fn rebased(self, now: Self) -> Self {
        let ahead = self.wall.unix_millis().saturating_sub(now.wall.unix_millis());
        let by = Duration::from_millis(ahead.unsigned_abs());
        Self {
            mono: if ahead >= 0 {
                now.mono.after(by)
            } else {
                now.mono.before(by)
            },
            wall: self.wall,
        }
    }
}

impl Serialize for Now {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.wall.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Now {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self {
            mono: Mono::ZERO,
            wall: Wall::deserialize(d)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_outlives_the_process() {
        let now = Now {
            mono: Mono::from_millis(5_000),
            wall: Wall::from_unix_millis(1_000_000),
        };
        let written = serde_json::to_string(&now.after(Duration::from_secs(60))).expect("text");
        assert_eq!(written, "\"1970-01-01T00:17:40.000Z\"");
        let read: Now = serde_json::from_str(&written).expect("a point");
        let elsewhere = Now {
            mono: Mono::from_millis(100_000),
            wall: Wall::from_unix_millis(1_050_000),
        };
        let table = [(read, 110_000), (now, 50_000), (Now::default(), 0)];
        for (point, millis) in table {
            assert_eq!(
                point.rebased(elsewhere).mono,
                Mono::from_millis(millis),
                "{point:?}"
            );
        }
    }
}
