//! What outlives the process: incidents that are open, and what goes on beside them.

use serde::{Deserialize, Serialize};

use super::case::{Case, NO_WATCH, NOWHERE};
use super::casebook::Counts;
use super::effect::Effect;
use super::engine::{AgentSeen, Engine};
use super::record::{BrakeRecord, IncidentRecord, SilenceRecord, VersionRecord};
use super::rule::GroupBy;
use crate::types::ids::IncidentId;
use crate::types::time::{Mono, Now};

/// What another process left behind, as it was written down.
#[derive(Debug, Default)]
pub struct Remains {
    /// [`Engine::kept`], if it was ever written.
    pub kept: Option<String>,
    /// [`Engine::live`] of each incident that was not over, in order of opening.
    pub live: Vec<String>,
    /// Incidents that were over, oldest first.
    pub closed: Vec<IncidentRecord>,
    /// Silences that are not over.
    pub silences: Vec<SilenceRecord>,
    /// Versions of agents.
    pub versions: Vec<VersionRecord>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    counts: Counts,
    brake: Option<BrakeRecord>,
}

impl Engine {
    /// What goes on in another process beside incidents, silences and versions, to be written down.
    pub fn kept(&self) -> String {
        let kept = Kept {
            counts: self.casebook.counts(),
            brake: Some(self.brake.clone()),
        };
        serde_json::to_string(&kept).unwrap_or_default()
    }

    /// An incident that is not over, with all that is needed to go on with it; `None` when it is over or unknown.
    pub fn live(&self, id: &IncidentId) -> Option<String> {
        let case = self.casebook.get(self.casebook.serial_of(id)?)?;
        serde_json::to_string(case).ok()
    }

    /// Goes on with what another process left behind; to be called once, before anything else. What cannot be read is
    /// left out and named in what is given back.
    pub fn restore(&mut self, remains: Remains, now: Now, out: &mut Vec<Effect>) -> Vec<String> {
        let now = self.at(now);
        let start = out.len();
        let mut unreadable = Vec::new();
        if let Some(kept) = remains.kept {
            match serde_json::from_str::<Kept>(&kept) {
                Ok(kept) => {
                    self.casebook.restore(kept.counts, now);
                    self.brake = kept.brake.unwrap_or_default();
                }
                Err(e) => unreadable.push(format!("the engine's counts: {e}")),
            }
        }
        self.silences.restore(remains.silences);
        for record in remains.closed {
            self.leave_in_peace(&record, now);
            self.casebook.shelve_record(record);
        }
        for record in &remains.versions {
            let number = self.agents.number(&record.agent) as usize;
            if self.seen.len() <= number {
                self.seen.resize_with(number + 1, AgentSeen::default);
            }
            if let Some(seen) = self.seen.get_mut(number) {
                seen.versions.restore(record, now);
            }
        }
        for live in remains.live {
            match serde_json::from_str::<Case>(&live) {
                Ok(case) => self.take_up(case, now, out),
                Err(e) => unreadable.push(format!("an open incident: {e}")),
            }
        }
        self.casebook.directives_changed();
        self.publish(start, out);
        unreadable
    }

    /// The subject of an incident that was over is left in peace for as long as it would have been.
    fn leave_in_peace(&mut self, record: &IncidentRecord, now: Now) {
        let watch = self
            .watches
            .iter_mut()
            .find(|w| w.rule.name == record.rule && w.gauge.live);
        let (Some(resolved), Some(watch)) = (record.resolved, watch) else {
            return;
        };
        let number = match watch.group_by() {
            GroupBy::Agent => self.agents.number(&record.subject.as_str().into()),
            GroupBy::Model => self.models.number(&record.subject.as_str().into()),
            GroupBy::Upstream => self.upstreams.number(&record.subject.as_str().into()),
            GroupBy::Fleet => 0,
            GroupBy::Execution => return,
        };
        let ended = Now {
            mono: Mono::ZERO,
            wall: resolved,
        };
        let by_human = record
            .timeline
            .iter()
            .any(|e| e.event == "operator" && e.at == resolved);
        let until = ended.rebased(now).mono.after(watch.pause(by_human));
        if until > now.mono
            && record.merged_into.is_none()
            && let Some((_, subject)) = watch.subject(number, now.mono)
        {
            subject.keep_quiet(until);
        }
    }

    /// Goes on with an incident: it finds its rule and its subjects by their names.
    fn take_up(&mut self, mut case: Case, now: Now, out: &mut Vec<Effect>) {
        case.rebase(now);
        let (serial, _) = self.casebook.next_id(now);
        let was_watched = case.evidence.metric.is_some();
        let index = (0_u16..)
            .zip(&self.watches)
            .find(|(_, w)| w.rule.name == *case.rule() && w.gauge.live)
            .map(|(index, _)| index);
        case.watch = index.filter(|_| was_watched).unwrap_or(NO_WATCH);
        if let Some(watch) = self.watches.get_mut(usize::from(case.watch)) {
            for member in &mut case.members {
                member.number = match watch.group_by() {
                    GroupBy::Agent => self.agents.number(&member.name.as_str().into()),
                    GroupBy::Model => self.models.number(&member.name.as_str().into()),
                    GroupBy::Upstream => self.upstreams.number(&member.name.as_str().into()),
                    GroupBy::Fleet => 0,
                    // Executions are not remembered; what it has used is not known any more.
                    GroupBy::Execution => NOWHERE,
                };
                if member.number != NOWHERE
                    && let Some((_, subject)) = watch.subject(member.number, now.mono)
                {
                    subject.case = Some(serial);
                }
            }
        }
        let gone = was_watched && case.watch == NO_WATCH && case.origin == super::record::Origin::Rule;
        self.casebook.insert(serial, case);
        if gone {
            self.close(serial, "the rule is gone since the last start", None, now, out);
        }
    }
}
