//! How fast an agent goes: over the last minute, and as it usually did before something went wrong.

use std::collections::VecDeque;

use crate::types::time::Mono;

const SLOTS: u64 = 12;
const SLOT_NANOS: u64 = 5_000_000_000;
const MINUTE_NANOS: u64 = SLOTS * SLOT_NANOS;
/// Minutes with traffic that are remembered.
const MINUTES: usize = 30;

/// Requests and tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Rate {
    /// Requests a minute.
    pub(crate) requests: f64,
    /// Tokens a minute.
    pub(crate) tokens: f64,
}

/// The last minute in twelve slots, and the last thirty minutes in which something happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    slots: [Beat; SLOTS as usize],
    slot: u64,
    minute: u64,
    this_minute: Beat,
    minutes: VecDeque<(u64, Beat)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Beat {
    requests: u32,
    tokens: u64,
}

impl Pace {
    /// One request that used so many tokens.
    #[inline]
    pub(crate) fn add(&mut self, now: Mono, tokens: u64) {
        let slot = now.as_nanos() / SLOT_NANOS;
        if slot != self.slot {
            self.turn(slot);
        }
        if let Some(beat) = self.slots.get_mut((slot % SLOTS) as usize) {
            beat.add(tokens);
        }
        self.this_minute.add(tokens);
    }

    /// The rate over the last minute.
    pub(crate) fn over_last_minute(&self, now: Mono) -> Rate {
        let slot = now.as_nanos() / SLOT_NANOS;
        let mut sum = (0_u64, 0_u64);
        for back in 0..SLOTS {
            let Some(at) = self.slot.checked_sub(back) else {
                break;
            };
            if at.saturating_add(SLOTS) > slot
                && let Some(beat) = self.slots.get((at % SLOTS) as usize)
            {
                sum = (
                    sum.0.saturating_add(u64::from(beat.requests)),
                    sum.1.saturating_add(beat.tokens),
                );
            }
        }
        let covered = (SLOTS - 1) * SLOT_NANOS + now.as_nanos() % SLOT_NANOS;
        let minutes = covered as f64 / MINUTE_NANOS as f64;
        Rate {
            requests: sum.0 as f64 / minutes,
            tokens: sum.1 as f64 / minutes,
        }
    }

    /// A usual minute among those with traffic that ended before a point in time: three in four were not busier, so
    /// that neither a first minute seen in part nor a short outburst says what is usual. `None` when there is none.
    pub(crate) fn before(&self, point: Mono) -> Option<Rate> {
        let ended = |minute: u64| minute.saturating_add(1).saturating_mul(MINUTE_NANOS) <= point.as_nanos();
        let past = self.minutes.iter().copied();
        let (mut requests, mut tokens): (Vec<u32>, Vec<u64>) = past
            .chain([(self.minute, self.this_minute)])
            .filter(|(minute, beat)| ended(*minute) && beat.requests > 0)
            .map(|(_, beat)| (beat.requests, beat.tokens))
            .unzip();
        requests.sort_unstable();
        tokens.sort_unstable();
        let at = (requests.len() * 3).div_ceil(4).checked_sub(1)?;
        Some(Rate {
            requests: f64::from(*requests.get(at)?),
            tokens: *tokens.get(at)? as f64,
        })
    }

    fn turn(&mut self, slot: u64) {
        if slot < self.slot {
            return;
        }
        for empty in 1..=(slot - self.slot).min(SLOTS) {
            let at = self.slot.saturating_add(empty);
            if let Some(beat) = self.slots.get_mut((at % SLOTS) as usize) {
                *beat = Beat::default();
            }
        }
        // A jump over more than a minute clears all; the slot of now is among them.
        self.slot = slot;
        let minute = slot / SLOTS;
        if minute != self.minute {
            if self.this_minute.requests > 0 {
                if self.minutes.len() >= MINUTES {
                    self.minutes.pop_front();
                }
                self.minutes.push_back((self.minute, self.this_minute));
            }
            self.minute = minute;
            self.this_minute = Beat::default();
        }
    }
}

impl Beat {
    fn add(&mut self, tokens: u64) {
        self.requests = self.requests.saturating_add(1);
        self.tokens = self.tokens.saturating_add(tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_agent() {
        let mut pace = Pace::default();
        for second in 0..600 {
            pace.add(Mono::from_millis(second * 1000), 100);
        }
        let rate = pace.over_last_minute(Mono::from_millis(599_900));
        assert!((rate.requests - 60.0).abs() < 1.0, "{rate:?}");
        assert!((rate.tokens - 6000.0).abs() < 100.0, "{rate:?}");
        let usual = pace.before(Mono::from_millis(300_000)).expect("five minutes");
        assert_eq!((usual.requests, usual.tokens), (60.0, 6000.0));
        assert_eq!(pace.before(Mono::from_millis(59_999)), None);
        assert_eq!(pace.over_last_minute(Mono::from_millis(700_000)), Rate::default());
    }

    #[test]
    fn jumps_clear_what_is_old() {
        let mut pace = Pace::default();
        pace.add(Mono::from_millis(1000), u64::MAX);
        pace.add(Mono::from_millis(1000), u64::MAX);
        pace.add(Mono::from_millis(10_000_000), 5);
        let rate = pace.over_last_minute(Mono::from_millis(10_000_000));
        assert!(rate.tokens < 10.0, "{rate:?}");
        pace.add(Mono::FAR, 1);
        assert!(pace.over_last_minute(Mono::FAR).requests >= 1.0);
        assert!(pace.minutes.len() <= MINUTES);
    }
}
