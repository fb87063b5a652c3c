//! Looks at the first requests of each version of an agent, and at one now and then, so that what it is made of is known.

use std::cell::RefCell;
use std::time::Duration;

use super::identify::Identity;
use super::worker::Shared;
use crate::dialect::parameters::sampling;
use crate::dialect::request::RequestFacts;
use crate::dialect::table::Route;
use crate::enforce::versions::Sighting;
use crate::types::time::Mono;

/// Requests of a version that each worker looks at, one after the other.
const FIRST: u8 = 16;
/// How often one is looked at after that.
const EVERY: Duration = Duration::from_secs(60);
/// Versions that a worker remembers; one takes the place of another by chance. A power of two.
const PLACES: usize = 256;

/// What one worker looked at lately. A look costs a pass over the body; to find that none is due costs a hash.
pub(super) struct Noted(RefCell<[Place; PLACES]>);

#[derive(Clone, Copy)]
struct Place {
    key: u64,
    looks: u8,
    next: Mono,
}

impl Default for Noted {
    fn default() -> Self {
        Self(RefCell::new(
            [Place {
                key: 0,
                looks: 0,
                next: Mono::ZERO,
            }; PLACES],
        ))
    }
}

impl Noted {
    /// Looks at a request as its agent sent it, when that is due.
    #[inline]
    pub(super) fn look(
        &self,
        shared: &Shared,
        identity: &Identity,
        route: &Route,
        facts: &RequestFacts,
        body: Option<&[u8]>,
        now: Mono,
    ) {
        let (Some(version), Some(body)) = (&identity.version, body) else {
            return;
        };
        if !route.api.generates() {
            return;
        }
        let api = route.api.name();
        if !self.is_due(shared.versions.key(&identity.agent, version, api), now) {
            return;
        }
        // What cannot be read is nothing to be like.
        let Some(parameters) = sampling(route, body).filter(|_| facts.model_problem.is_none()) else {
            return;
        };
        let model = facts.decisive_model(route).map(str::to_owned);
        let sighting = Sighting {
            api,
            model,
            parameters,
        };
        shared
            .versions
            .note(&identity.agent, version, sighting, shared.clock.wall());
    }

    fn is_due(&self, key: u64, now: Mono) -> bool {
        let mut places = self.0.borrow_mut();
        let Some(place) = places.get_mut((key % PLACES as u64) as usize) else {
            return false;
        };
        if place.key != key {
            *place = Place {
                key,
                looks: 0,
                next: Mono::ZERO,
            };
        }
        if place.looks >= FIRST && now < place.next {
            return false;
        }
        place.looks = place.looks.saturating_add(1);
        place.next = now.after(EVERY);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ones_are_looked_at_and_then_one_a_minute() {
        let noted = Noted::default();
        let at = |seconds: u64| Mono::from_millis(seconds * 1000);
        let due = |key, seconds, times| (0..times).filter(|_| noted.is_due(key, at(seconds))).count();
        assert_eq!(due(7, 1, 100), 16);
        assert_eq!(due(7, 60, 10), 0);
        assert_eq!(due(7, 61, 10), 1);
        // Another version in its place.
        assert_eq!(due(7 + PLACES as u64, 61, 100), 16);
        assert_eq!(due(7, 61, 1), 1);
    }
}
