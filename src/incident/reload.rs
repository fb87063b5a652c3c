//! A change of rules: what goes on under the same name stays, what does not ends with a reason.

use std::sync::Arc;

use super::case::{NO_WATCH, Outcome};
use super::casebook::Serial;
use super::detect::Watch;
use super::effect::Effect;
use super::engine::{Engine, Needs, watches};
use super::record::{IncidentState, Origin};
use super::rule::{GroupBy, Mode, Rulebook};
use crate::types::time::Now;

/// What becomes of an incident when the rules change.
enum Fate {
    /// It goes on, and what it ordered stays.
    Stays,
    /// It goes on; its plan is made anew.
    Replanned,
    /// It ends.
    Ends(&'static str),
}

impl Engine {
    /// Takes over a new rulebook.
    pub(super) fn adopt(&mut self, book: Arc<Rulebook>, now: Now, out: &mut Vec<Effect>) {
        let old_book = std::mem::replace(&mut self.book, Arc::clone(&book));
        let mut old: Vec<Option<Watch>> = std::mem::take(&mut self.watches).into_iter().map(Some).collect();
        let mut new_number: Vec<Option<u16>> = vec![None; old.len()];
        let mut new = watches(&book);
        let mut replanned: Vec<bool> = vec![false; new.len()];
        for (index, place) in (0_u16..).zip(&mut new) {
            let rule = Arc::clone(&place.rule);
            let goes_on = old
                .iter()
                .position(|w| w.as_ref().is_some_and(|w| w.goes_on_as(&rule)));
            let Some((at, mut watch)) = goes_on.and_then(|at| Some((at, old.get_mut(at)?.take()?))) else {
                continue;
            };
            if let Some(number) = new_number.get_mut(at) {
                *number = Some(index);
            }
            if let Some(replanned) = replanned.get_mut(usize::from(index)) {
                *replanned = watch.rule.mode != rule.mode
                    || watch.rule.action != rule.action
                    || old_book.actions.get(&rule.action) != book.actions.get(&rule.action);
            }
            watch.adopt(rule);
            *place = watch;
        }
        self.watches = new;
        self.needs = Needs::of(&self.watches);
        for seen in &mut self.seen {
            seen.rules = None;
        }
        self.executions.renumber_rules(&new_number);
        self.drop_what_is_not_covered();
        let serials: Vec<Serial> = self.casebook.iter().map(|(serial, _)| serial).collect();
        for serial in serials {
            match self.fate(serial, &new_number, &replanned) {
                Fate::Stays => {}
                Fate::Replanned => self.replan(serial, now, out),
                Fate::Ends(why) => self.close(serial, why, None, now, out),
            }
        }
    }

    fn fate(&mut self, serial: Serial, new_number: &[Option<u16>], replanned: &[bool]) -> Fate {
        let Some(case) = self.casebook.get_mut(serial) else {
            return Fate::Stays;
        };
        case.flaps_after = self.book.conduct.flaps_after;
        if case.watch == NO_WATCH {
            return Fate::Stays;
        }
        let Some(Some(number)) = new_number.get(usize::from(case.watch)) else {
            // Its number means another rule now, or none: nothing of that one may be touched.
            case.watch = NO_WATCH;
            return Fate::Ends("the rule was removed, or measures something else now");
        };
        case.watch = *number;
        let asked_for = case.origin == Origin::Request;
        let Some(watch) = self.watches.get(usize::from(*number)) else {
            return Fate::Ends("the rule was removed");
        };
        if asked_for {
            // People asked for it: what the rule may do is another matter.
            return Fate::Stays;
        }
        case.adopt(&watch.rule);
        if !watch.rule.enabled {
            return Fate::Ends("the rule was turned off");
        }
        if watch.rule.mode == Mode::Shadow {
            return Fate::Ends("the rule is in mode shadow now");
        }
        if case.members.iter().all(|m| watch.known(m.number).is_none()) {
            return Fate::Ends("the rule no longer covers the subject");
        }
        match watch.gauge.threshold(case.evidence.side) {
            Some(threshold) => case.evidence.threshold = threshold,
            None => return Fate::Ends("the rule no longer has this threshold"),
        }
        case.evidence.baseline = watch.gauge.baseline;
        if replanned.get(usize::from(*number)).copied().unwrap_or(false) {
            Fate::Replanned
        } else {
            Fate::Stays
        }
    }

    /// Lifts what was ordered and, while the incident is open, orders what the rule orders now.
    fn replan(&mut self, serial: Serial, now: Now, out: &mut Vec<Effect>) {
        let Some(mut case) = self.casebook.take(serial) else {
            return;
        };
        let mut outcome = Outcome::default();
        case.lift_all("the rule's action or mode has changed", now, &mut outcome);
        if case.state() == IncidentState::Open {
            let watch = self.watches.get(usize::from(case.watch));
            let steps = watch.map_or(&[][..], |w| self.steps_of(&w.rule.action));
            case.plan(steps, now, &mut outcome);
            self.advance(&mut case, false, now, &mut outcome);
        }
        self.casebook.insert(serial, case);
        self.settle(serial, outcome, false, now, out);
    }

    /// Drops the subjects that a rule's filters no longer let in; their incidents end when their turn comes.
    fn drop_what_is_not_covered(&mut self) {
        for watch in &mut self.watches {
            let numbers: Vec<u32> = watch.subjects().map(|(number, _)| number).collect();
            for number in numbers {
                let covered = match watch.group_by() {
                    GroupBy::Agent => {
                        let name = self.agents.name(number);
                        name.is_none_or(|n| watch.agents.wants(number, n.as_str()))
                    }
                    GroupBy::Execution => {
                        let agent = self.executions.get(number).map(|e| e.agent);
                        agent.is_none_or(|a| {
                            let name = self.agents.name(a);
                            name.is_none_or(|n| watch.agents.wants(a, n.as_str()))
                        })
                    }
                    GroupBy::Model => {
                        let name = self.models.name(number);
                        name.is_none_or(|n| watch.models.wants(number, n.as_str()))
                    }
                    GroupBy::Upstream => {
                        let name = self.upstreams.name(number);
                        name.is_none_or(|n| watch.upstreams.wants(number, n.as_str()))
                    }
                    GroupBy::Fleet => true,
                };
                if !covered {
                    watch.drop_subject(number);
                }
            }
        }
    }
}
