//! All incidents: open ones in order of opening, closed ones as long as there is room, and the directives of all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::case::{Case, Outcome};
use super::effect::Effect;
use super::record::IncidentRecord;
use crate::types::directive::DirectiveSet;
use crate::types::ids::{Generation, IncidentId};
use crate::types::time::{Mono, Now};

/// The number of an incident within one engine, in order of opening.
pub(crate) type Serial = u64;

const HOUR: Duration = Duration::from_secs(3600);

/// All incidents.
#[derive(Debug)]
pub(crate) struct Casebook {
    open: BTreeMap<Serial, Case>,
    closed: VecDeque<IncidentRecord>,
    max_closed: usize,
    opened: Serial,
    /// When actions were started, within the last hour; never more than the rulebook allows.
    actions: VecDeque<Mono>,
    generation: Generation,
    directives_changed: bool,
}

impl Casebook {
    /// No incident yet.
    pub(crate) fn new(max_closed: usize) -> Self {
        Self {
            open: BTreeMap::new(),
            closed: VecDeque::new(),
            max_closed,
            opened: 0,
            actions: VecDeque::new(),
            generation: Generation::default(),
            directives_changed: false,
        }
    }

    /// The name and the number of the next incident. Names sort by time of opening: `inc-20261125T101500-0001`.
    pub(crate) fn next_id(&mut self, now: Now) -> (Serial, IncidentId) {
        self.opened += 1;
        let time: String = now
            .wall
            .to_string()
            .chars()
            .take_while(|c| *c != '.')
            .filter(|c| c.is_ascii_alphanumeric())
            .collect();
        (self.opened, format!("inc-{time}-{:04}", self.opened).into())
    }

    /// Takes in an incident that was opened.
    pub(crate) fn insert(&mut self, serial: Serial, case: Case) {
        self.open.insert(serial, case);
    }

    /// Takes an open incident out for a moment; [`Casebook::insert`] puts it back.
    pub(crate) fn take(&mut self, serial: Serial) -> Option<Case> {
        self.open.remove(&serial)
    }

    /// An open incident.
    pub(crate) fn get_mut(&mut self, serial: Serial) -> Option<&mut Case> {
        self.open.get_mut(&serial)
    }

    /// Open incidents, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Serial, &Case)> {
        self.open.iter().map(|(serial, case)| (*serial, case))
    }

    /// The number of an open incident by its name.
    pub(crate) fn serial_of(&self, id: &IncidentId) -> Option<Serial> {
        self.iter()
            .find(|(_, case)| case.id == *id)
            .map(|(serial, _)| serial)
    }

    /// Passes on what has changed; a closed incident moves to the closed ones and is given back.
    pub(crate) fn settle(&mut self, serial: Serial, outcome: Outcome, out: &mut Vec<Effect>) -> Option<Case> {
        self.directives_changed |= outcome.directives;
        out.extend(outcome.notices.into_iter().map(|n| Effect::Tell(Box::new(n))));
        if outcome.changed
            && let Some(case) = self.open.get(&serial)
        {
            out.push(Effect::Changed(case.id.clone()));
        }
        if !outcome.ended {
            return None;
        }
        let case = self.open.remove(&serial)?;
        while self.closed.len() >= self.max_closed.max(1) {
            self.closed.pop_front();
        }
        if self.max_closed > 0 {
            self.closed.push_back(case.record());
        }
        Some(case)
    }

    /// Whether one more action may be started within the hour.
    pub(crate) fn may_act(&mut self, now: Mono, per_hour: u32) -> bool {
        while self.actions.front().is_some_and(|at| now.since(*at) >= HOUR) {
            self.actions.pop_front();
        }
        self.actions.len() < per_hour as usize
    }

    /// An action was started.
    pub(crate) fn acted(&mut self, now: Mono) {
        self.actions.push_back(now);
    }

    /// The directives in force, when they are no longer what was published last.
    pub(crate) fn publication(&mut self) -> Option<Arc<DirectiveSet>> {
        if !std::mem::take(&mut self.directives_changed) {
            return None;
        }
        self.generation = self.generation.next();
        let all = self.open.values().flat_map(Case::directives).cloned();
        Some(Arc::new(DirectiveSet::new(self.generation, all)))
    }

    /// All incidents: open ones, then closed ones, newest first.
    pub(crate) fn records(&self) -> Vec<IncidentRecord> {
        let open = self.open.values().rev().map(Case::record);
        open.chain(self.closed.iter().rev().cloned()).collect()
    }

    /// One incident.
    pub(crate) fn record(&self, id: &IncidentId) -> Option<IncidentRecord> {
        let open = self.open.values().find(|c| c.id == *id).map(Case::record);
        open.or_else(|| self.closed.iter().rev().find(|r| r.id == *id).cloned())
    }
}
