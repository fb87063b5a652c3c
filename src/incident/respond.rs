//! From a finding to an incident, and from what its metric says afterwards to its end.

use super::case::{About, Case, Evidence, Kind, Member, NO_WATCH, Opening, Outcome};
use super::casebook::Serial;
use super::detect::{Look, Seen, Watch};
use super::effect::Effect;
use super::engine::Engine;
use super::gauge::Side;
use super::lifecycle::Event;
use super::record::{IncidentState, Origin};
use super::recovery;
use super::rule::GroupBy;
use super::silence::{self, Whom};
use crate::types::ids::AgentId;
use crate::types::notice::NoticeEvent;
use crate::types::time::{Mono, Now};

/// An open incident's metric is looked at this often at most, and at least every five seconds.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
const LOOK_AT_LEAST: std::time::Duration = std::time::Duration::from_secs(5);

impl Engine {
    /// Looks at a subject because time has passed.
    pub(super) fn look(&mut self, index: u16, number: u32, now: Now, out: &mut Vec<Effect>) {
        let Some(watch) = self.watches.get_mut(usize::from(index)) else {
            return;
        };
        if let Look::Finding { side, since } = watch.look(number, now.mono) {
            self.open(index, number, side, since, now, out);
        }
    }

    /// Opens an incident and takes the first steps; or takes the subject into one that there is, or opens one again.
    pub(super) fn open(
        &mut self,
        index: u16,
        number: u32,
        side: Side,
        since: Mono,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(watch) = self.watches.get(usize::from(index)) else {
            return;
        };
        let Some((evidence, rule)) = evidence(watch, number, side, now).zip(Some(watch.rule.clone())) else {
            return;
        };
        let about = self.about(watch, number);
        if self.in_maintenance(&rule.name, &about, rule.severity, now) {
            return;
        }
        let member = Member {
            name: about.name.clone(),
            agent: about.agent.clone(),
            number,
        };
        if let Some(serial) = self.joins(index, &about, now) {
            self.join(serial, index, member, now, out);
            return;
        }
        let mut outcome = Outcome::default();
        let conduct = &self.book.conduct;
        let again = self
            .casebook
            .take_recent(&rule.name, &about.name, conduct.reopen_within, now);
        let (serial, mut case) = match again {
            Some((serial, mut case)) => {
                case.watch = index;
                case.members = vec![member];
                // The rules may have changed while it was over.
                case.adopt(&rule);
                case.flaps_after = conduct.flaps_after;
                case.reopen(evidence, now, &mut outcome);
                (serial, case)
            }
            None => {
                let (serial, id) = self.casebook.next_id(now);
                let opening = Opening {
                    id,
                    origin: Origin::Rule,
                    rule: rule.name.clone(),
                    severity: rule.severity,
                    about,
                    watch: index,
                    members: vec![member],
                    evidence,
                    action: rule.action.clone(),
                    probation: recovery::probation(&rule),
                    targets: Vec::new(),
                    flaps_after: conduct.flaps_after,
                };
                (serial, Case::open(opening, now))
            }
        };
        self.measure_opening(&mut case, since.before(rule.window), now);
        case.plan(self.steps_of(&rule.action), now, &mut outcome);
        self.mark(index, number, Some(serial));
        if let Some(agent) = &case.about.agent {
            self.count_incident(&agent.clone(), now.mono);
        }
        self.advance(&mut case, true, now, &mut outcome);
        self.casebook.insert(serial, case);
        self.settle(serial, outcome, false, now, out);
    }

    /// Tells every open incident what its metric says, judges its steps, and renews what it has ordered.
    pub(super) fn follow_cases(&mut self, now: Now, out: &mut Vec<Effect>) {
        for serial in self.casebook.serials() {
            let mut outcome = Outcome::default();
            self.follow(serial, now, &mut outcome);
            if !outcome.ended {
                self.keep_up(serial, now, &mut outcome);
            }
            self.settle(serial, outcome, false, now, out);
        }
    }

    /// Closes an incident whatever its metric says.
    pub(super) fn close(
        &mut self,
        serial: Serial,
        why: &str,
        by: Option<&str>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(mut case) = self.casebook.take(serial) else {
            return;
        };
        let mut outcome = Outcome::default();
        self.measure_close(&mut case, now);
        case.close(why, by, now, &mut outcome);
        self.casebook.insert(serial, case);
        self.settle(serial, outcome, by.is_some(), now, out);
    }

    /// An execution is over, or makes room: so are the incidents about it.
    pub(super) fn drop_execution(&mut self, number: u32, now: Now, out: &mut Vec<Effect>) {
        let about_it: Vec<Serial> = self
            .watches
            .iter_mut()
            .filter(|w| w.group_by() == GroupBy::Execution)
            .filter_map(|w| w.drop_subject(number))
            .collect();
        for serial in about_it {
            self.close(serial, "the execution is over", None, now, out);
        }
        self.executions.remove(number);
    }

    /// Whom a subject's number stands for.
    pub(super) fn about(&self, watch: &Watch, number: u32) -> About {
        let named = |kind, name: Option<&str>| About {
            kind,
            name: name.unwrap_or_default().to_owned(),
            agent: None,
        };
        match watch.group_by() {
            GroupBy::Agent => {
                let agent = self.agents.name(number).cloned();
                About {
                    agent: agent.clone(),
                    ..named(Kind::Agent, agent.as_ref().map(AgentId::as_str))
                }
            }
            GroupBy::Execution => {
                let execution = self.executions.get(number);
                About {
                    agent: execution.and_then(|e| self.agents.name(e.agent)).cloned(),
                    ..named(Kind::Execution, execution.map(|e| e.id.as_str()))
                }
            }
            GroupBy::Model => named(Kind::Model, self.models.name(number).map(|m| m.as_str())),
            GroupBy::Upstream => named(Kind::Upstream, self.upstreams.name(number).map(|u| u.as_str())),
            GroupBy::Fleet => named(Kind::Fleet, Some("fleet")),
        }
    }

    /// Passes on what has changed; the subjects of an incident that ended are left in peace for a while.
    pub(super) fn settle(
        &mut self,
        serial: Serial,
        mut outcome: Outcome,
        by_human: bool,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(case) = self.casebook.get_mut(serial) else {
            return;
        };
        let notices = std::mem::take(&mut outcome.notices);
        let agents = case.agents();
        let whom = Whom {
            rule: case.rule().as_str(),
            subject: &case.about.name,
            agents: &agents,
            severity: case.severity(),
        };
        let silence = self.silences.covering(false, whom, now).cloned();
        if !notices.is_empty() || outcome.changed {
            outcome.changed |= case.silence(silence.as_ref(), now);
        }
        let mut tell = Vec::with_capacity(notices.len());
        for notice in notices {
            // The end is always told: whoever was told of the opening must be able to put it away.
            if silence.is_some() && notice.event != NoticeEvent::Resolved {
                continue;
            }
            let to = if notice.targets.is_empty() {
                "all targets".to_owned()
            } else {
                notice.targets.join(", ")
            };
            case.note(now, "told", format!("{} to {to}", notice.event.wire_name()));
            tell.push(notice);
        }
        if outcome.directives {
            self.casebook.directives_changed();
        }
        if outcome.changed
            && let Some(case) = self.casebook.get(serial)
        {
            out.push(Effect::Changed(case.id.clone()));
        }
        out.extend(outcome.asked.into_iter().map(Effect::Asked));
        out.extend(tell.into_iter().map(|n| Effect::Tell(Box::new(n))));
        if outcome.ended {
            self.bury(serial, by_human, now);
        }
    }

    /// The subject of a rule is taken in by an incident, or by none.
    pub(super) fn mark(&mut self, index: u16, number: u32, serial: Option<Serial>) {
        let watch = self.watches.get_mut(usize::from(index));
        if let Some(subject) = watch.and_then(|w| w.known_mut(number)) {
            subject.case = serial;
        }
    }

    fn bury(&mut self, serial: Serial, by_human: bool, now: Now) {
        let Some((watch, members)) = self.casebook.shelve(serial, !by_human) else {
            return;
        };
        let Some(watch) = self.watches.get_mut(usize::from(watch)) else {
            return;
        };
        let pause = watch.pause(by_human);
        for member in members {
            if let Some(subject) = watch.known_mut(member.number)
                && subject.case == Some(serial)
            {
                subject.keep_quiet(now.mono.after(pause));
            }
        }
    }

    fn follow(&mut self, serial: Serial, now: Now, outcome: &mut Outcome) {
        let Some(case) = self.casebook.get_mut(serial) else {
            return;
        };
        if now.mono < case.next_look || case.watch == NO_WATCH {
            return;
        }
        let Some(watch) = self.watches.get_mut(usize::from(case.watch)) else {
            return;
        };
        case.next_look = now
            .mono
            .after(watch.gauge.span.width().clamp(LOOK_EVERY, LOOK_AT_LEAST));
        let side = case.evidence.side;
        let seen = case
            .members
            .iter()
            .map(|m| watch.seen(m.number, side, now.mono))
            .reduce(|a, b| worse(a, b, side));
        let (event, value) = match seen.unwrap_or(Seen::Nothing) {
            Seen::Beyond(value) => (Event::Beyond, Some(value)),
            Seen::Between(value) => (Event::Between, value),
            Seen::Back(value) => (Event::Back, Some(value)),
            // Right after a start nothing was seen yet: that says nothing of what was.
            Seen::Nothing if now.mono < case.blind_until => (Event::Between, None),
            Seen::Nothing => (Event::NoTraffic, None),
        };
        let reported = || {
            let own = case.members.first().map_or(0, |m| m.number);
            watch.holds_on_reported(own, side, now.mono)
        };
        let now_reported = case.held_back && event == Event::Beyond && reported();
        let before = case.state();
        case.on(event, value, now, outcome);
        if before != case.state() && case.state() == IncidentState::Resolved {
            let Some(mut case) = self.casebook.take(serial) else {
                return;
            };
            self.measure_close(&mut case, now);
            self.casebook.insert(serial, case);
        } else if now_reported {
            self.act_late(serial, now, outcome);
        }
    }

    fn in_maintenance(
        &self,
        rule: &crate::types::ids::RuleName,
        about: &About,
        severity: crate::types::notice::Severity,
        now: Now,
    ) -> bool {
        let agents: Vec<AgentId> = about.agent.iter().cloned().collect();
        let whom = Whom {
            rule: rule.as_str(),
            subject: &about.name,
            agents: &agents,
            severity,
        };
        self.silences.covering(true, whom, now).is_some()
            || silence::weekly(&self.book.conduct.maintenance, whom, now.wall).is_some()
    }
}

/// The worse of what two subjects say.
fn worse(a: Seen, b: Seen, side: Side) -> Seen {
    let rank = |seen: &Seen| match seen {
        Seen::Beyond(_) => 3,
        Seen::Between(_) => 2,
        Seen::Back(_) => 1,
        Seen::Nothing => 0,
    };
    let value = |seen: &Seen| match seen {
        Seen::Beyond(v) | Seen::Back(v) => Some(*v),
        Seen::Between(v) => *v,
        Seen::Nothing => None,
    };
    match rank(&a).cmp(&rank(&b)) {
        std::cmp::Ordering::Greater => a,
        std::cmp::Ordering::Less => b,
        std::cmp::Ordering::Equal => {
            let first = match (value(&a), value(&b), side) {
                (Some(x), Some(y), Side::Upper) => x >= y,
                (Some(x), Some(y), Side::Lower) => x <= y,
                (x, _, _) => x.is_some(),
            };
            if first { a } else { b }
        }
    }
}

fn evidence(watch: &Watch, number: u32, side: Side, now: Now) -> Option<Evidence> {
    let subject = watch.known(number)?;
    let (value, samples) = watch.value_of(subject, now.mono);
    Some(Evidence {
        metric: Some((watch.gauge.metric, watch.gauge.statistic)),
        window: watch.rule.window,
        side,
        value: value?,
        threshold: watch.gauge.threshold(side)?,
        baseline: watch.gauge.baseline,
        samples,
        words: String::new(),
    })
}
