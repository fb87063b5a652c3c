//! What is wrong with fusebox itself: an incident of its own, so that it is told like any other.

use std::time::Duration;

use super::case::{About, Case, Evidence, Kind, NO_WATCH, Opening, Outcome};
use super::effect::Effect;
use super::engine::Engine;
use super::input::Trouble;
use super::record::Origin;
use crate::types::ids::RuleName;
use crate::types::notice::Severity;
use crate::types::time::Now;

impl Engine {
    /// Something is wrong, or no longer.
    pub(super) fn trouble(&mut self, trouble: Trouble, now: Now, out: &mut Vec<Effect>) {
        let rule = RuleName::from(format!("fusebox_{}", trouble.what));
        let open = self
            .casebook
            .iter()
            .find(|(_, c)| c.origin == Origin::Fusebox && *c.rule() == rule)
            .map(|(serial, _)| serial);
        match (open, trouble.detail) {
            (Some(serial), None) => self.close(serial, "it is well again", None, now, out),
            (Some(_), Some(_)) | (None, None) => {}
            (None, Some(words)) => {
                let (serial, id) = self.casebook.next_id(now);
                let opening = Opening {
                    id,
                    origin: Origin::Fusebox,
                    rule,
                    severity: Severity::Error,
                    about: About {
                        kind: Kind::Fusebox,
                        name: trouble.what.to_owned(),
                        agent: None,
                    },
                    watch: NO_WATCH,
                    members: Vec::new(),
                    evidence: Evidence::in_words(words),
                    action: "notify".into(),
                    probation: Duration::ZERO,
                    targets: Vec::new(),
                    flaps_after: self.book.conduct.flaps_after,
                };
                let mut case = Case::open(opening, now);
                let mut outcome = Outcome {
                    changed: true,
                    ..Outcome::default()
                };
                case.tell_taken(true, now, &mut outcome);
                self.casebook.insert(serial, case);
                self.settle(serial, outcome, false, now, out);
            }
        }
    }
}
