//! All incidents: open ones in order of opening, closed ones as long as there is room, and the directives of all.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::case::{Case, Member};
use super::record::{ApprovalRecord, ApprovalState, IncidentRecord};
use crate::types::directive::DirectiveSet;
use crate::types::ids::{ApprovalId, Generation, IncidentId, LeaseId, RuleName};
use crate::types::time::{Now, Wall};

/// The number of an incident within one engine, in order of opening.
pub(crate) type Serial = u64;

const HOUR: Duration = Duration::from_secs(3600);
/// Incidents that may come back, at most.
const MAX_RECENT: usize = 256;

/// All incidents.
#[derive(Debug)]
pub(crate) struct Casebook {
    open: BTreeMap<Serial, Case>,
    /// Those that were over a short while ago and may come back, oldest first; they are among `closed` too.
    recent: VecDeque<(Serial, Case)>,
    closed: VecDeque<IncidentRecord>,
    max_closed: usize,
    opened: Serial,
    /// When actions were started, within the last hour; never more than the rulebook allows.
    actions: VecDeque<Now>,
    generation: Generation,
    directives_changed: bool,
}

/// What goes on in another process beside the incidents themselves.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    opened: Serial,
    actions: VecDeque<Now>,
    generation: Generation,
}

impl Casebook {
    /// No incident yet.
    pub(crate) fn new(max_closed: usize) -> Self {
        Self {
            open: BTreeMap::new(),
            recent: VecDeque::new(),
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
        (
            self.opened,
            format!("inc-{}-{:04}", stamp(now.wall), self.opened).into(),
        )
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
    pub(crate) fn get(&self, serial: Serial) -> Option<&Case> {
        self.open.get(&serial)
    }

    /// An open incident.
    pub(crate) fn get_mut(&mut self, serial: Serial) -> Option<&mut Case> {
        self.open.get_mut(&serial)
    }

    /// Open incidents, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Serial, &Case)> {
        self.open.iter().map(|(serial, case)| (*serial, case))
    }

    /// Numbers of the open incidents, oldest first.
    pub(crate) fn serials(&self) -> Vec<Serial> {
        self.open.keys().copied().collect()
    }

    /// The number of an open incident by its name.
    pub(crate) fn serial_of(&self, id: &IncidentId) -> Option<Serial> {
        self.iter()
            .find(|(_, case)| case.id == *id)
            .map(|(serial, _)| serial)
    }

    /// The number of the open incident that a question belongs to.
    pub(crate) fn serial_of_approval(&self, id: &ApprovalId) -> Option<Serial> {
        self.iter()
            .find(|(_, case)| case.approval(id).is_some())
            .map(|(serial, _)| serial)
    }

    /// The number of the open incident that gave a lease.
    pub(crate) fn serial_of_lease(&self, id: &LeaseId) -> Option<Serial> {
        self.iter()
            .find(|(_, case)| case.directives().any(|d| d.lease == *id))
            .map(|(serial, _)| serial)
    }

    /// An incident that was over less than `within` ago, of a rule about a subject; taken out to be opened again. One
    /// that a human closed is not.
    pub(crate) fn take_recent(
        &mut self,
        rule: &RuleName,
        subject: &str,
        within: Duration,
        now: Now,
    ) -> Option<(Serial, Case)> {
        self.recent
            .retain(|(_, case)| case.resolved().is_some_and(|at| now.mono.since(at.mono) < within));
        let at = self
            .recent
            .iter()
            .rposition(|(_, c)| c.rule() == rule && c.about.name == subject)?;
        let (serial, case) = self.recent.remove(at)?;
        self.closed.retain(|r| r.id != case.id);
        Some((serial, case))
    }

    /// The directives in force are no longer what was published last.
    pub(crate) fn directives_changed(&mut self) {
        self.directives_changed = true;
    }

    /// Moves an incident that is over to the closed ones; with `may_return` it may be opened again. Gives back what it
    /// was about.
    pub(crate) fn shelve(&mut self, serial: Serial, may_return: bool) -> Option<(u16, Vec<Member>)> {
        let case = self.open.remove(&serial)?;
        let was_about = (case.watch, case.members.clone());
        self.shelve_record(case.record());
        if may_return {
            if self.recent.len() >= MAX_RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back((serial, case));
        }
        Some(was_about)
    }

    /// Takes in an incident that was over in another process.
    pub(crate) fn shelve_record(&mut self, record: IncidentRecord) {
        while self.closed.len() >= self.max_closed.max(1) {
            self.closed.pop_front();
        }
        if self.max_closed > 0 {
            self.closed.push_back(record);
        }
    }

    /// Changes an incident that is over, and gives it back.
    pub(crate) fn amend(&mut self, id: &IncidentId, change: impl FnOnce(&mut IncidentRecord)) -> bool {
        let Some(record) = self.closed.iter_mut().find(|r| r.id == *id) else {
            return false;
        };
        change(record);
        self.recent.retain(|(_, case)| case.id != *id);
        true
    }

    /// Whether one more action may be started within the hour.
    pub(crate) fn may_act(&mut self, now: Now, per_hour: u32) -> bool {
        while self
            .actions
            .front()
            .is_some_and(|at| now.mono.since(at.mono) >= HOUR)
        {
            self.actions.pop_front();
        }
        self.actions.len() < per_hour as usize
    }

    /// An action was started.
    pub(crate) fn acted(&mut self, now: Now) {
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

    /// All questions: open ones first, then newest first.
    pub(crate) fn approvals(&self) -> Vec<ApprovalRecord> {
        let open = self.open.values().rev().flat_map(|c| c.record().approvals);
        let closed = self.closed.iter().rev().flat_map(|r| r.approvals.iter().cloned());
        let mut all: Vec<ApprovalRecord> = open.chain(closed).collect();
        all.sort_by_key(|a| a.state != ApprovalState::Needed);
        all
    }

    /// One question.
    pub(crate) fn approval(&self, id: &ApprovalId) -> Option<ApprovalRecord> {
        let open = self.open.values().find_map(|c| c.approval(id));
        let closed = || {
            let mut all = self.closed.iter().rev().flat_map(|r| r.approvals.iter());
            all.find(|a| a.id == *id).cloned()
        };
        open.or_else(closed)
    }

    /// What goes on in another process.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            opened: self.opened,
            actions: self.actions.clone(),
            generation: self.generation,
        }
    }

    /// Goes on from what another process had.
    pub(crate) fn restore(&mut self, counts: Counts, now: Now) {
        self.opened = self.opened.max(counts.opened);
        self.generation = self.generation.max(counts.generation);
        self.actions = counts.actions.into_iter().map(|at| at.rebased(now)).collect();
    }
}

/// A time as part of a name: `20261125T101500`.
pub(crate) fn stamp(at: Wall) -> String {
    at.to_string()
        .chars()
        .take_while(|c| *c != '.')
        .filter(char::is_ascii_alphanumeric)
        .collect()
}
