//! From a finding to an incident, and from what its metric says afterwards to its end.

use super::case::{About, Case, Evidence, Outcome};
use super::casebook::Serial;
use super::detect::{Look, Seen, Watch};
use super::effect::Effect;
use super::engine::Engine;
use super::gauge::Side;
use super::lifecycle::Event;
use super::pace::Rate;
use super::plan::{self, Circumstances, Decision, Planned};
use super::rule::{Action, GroupBy};
use crate::types::directive::Subject;
use crate::types::ids::{AgentId, IncidentId};
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

    /// Opens an incident and carries out its plan.
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
        let (serial, id) = self.casebook.next_id(now);
        let mut case = Case::open(id, &rule, about, (index, number), evidence, now);
        let planned = self.plan(&mut case, since, now);
        let mut outcome = Outcome::default();
        case.carry_out(&planned, true, now, &mut outcome);
        self.count_action(&planned, now);
        self.casebook.insert(serial, case);
        if let Some(subject) = self
            .watches
            .get_mut(usize::from(index))
            .and_then(|w| w.known_mut(number))
        {
            subject.case = Some(serial);
        }
        self.casebook.settle(serial, outcome, out);
    }

    /// Tells every open incident what its metric says, and renews what it has ordered.
    pub(super) fn follow_cases(&mut self, now: Now, out: &mut Vec<Effect>) {
        let serials: Vec<Serial> = self.casebook.iter().map(|(serial, _)| serial).collect();
        for serial in serials {
            let mut outcome = Outcome::default();
            self.follow(serial, now, &mut outcome);
            if let Some(case) = self.casebook.get_mut(serial)
                && !outcome.ended
            {
                case.keep_up(now, &mut outcome);
            }
            self.settle(serial, outcome, None, now, out);
        }
    }

    /// An operator closes an incident.
    pub(super) fn resolve(&mut self, id: &IncidentId, by: &str, now: Now, out: &mut Vec<Effect>) {
        let Some(serial) = self.casebook.serial_of(id) else {
            return;
        };
        self.close(serial, "closed by an operator", Some(by), now, out);
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
        let Some(case) = self.casebook.get_mut(serial) else {
            return;
        };
        let mut outcome = Outcome::default();
        case.close(why, by, now, &mut outcome);
        self.settle(serial, outcome, by, now, out);
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

    /// The plan of a case as things stand; says to the case whether it is held back by what may change.
    pub(super) fn plan(&mut self, case: &mut Case, since: Mono, now: Now) -> Vec<Planned> {
        let Some(watch) = self.watches.get(usize::from(case.watch)) else {
            return Vec::new();
        };
        let rule = watch.rule.clone();
        let gauge = &watch.gauge;
        let estimates = !watch.holds_on_reported(case.subject, case.evidence.side, now.mono);
        let (pace, usual) = self.pace_of(&case.about, since.before(rule.window), now.mono);
        let normal = case.evidence.baseline.unwrap_or(case.evidence.threshold);
        let circumstances = Circumstances {
            mode: rule.mode,
            binds: binds(&case.about),
            held_back: if estimates {
                Some("the counts are estimates, and the rule acts on reported counts only".to_owned())
            } else if self.casebook.may_act(now.mono, self.book.max_actions_per_hour) {
                None
            } else {
                Some(format!(
                    "automation has reached its limit of {} actions in one hour",
                    self.book.max_actions_per_hour
                ))
            },
            pace,
            usual,
            unit: gauge.metric.unit(),
            excess: match case.evidence.side {
                Side::Upper if normal > 0.0 => case.evidence.value / normal,
                _ => f64::NAN,
            },
        };
        case.held_back = estimates;
        let nothing = Action::default();
        let action = self.book.actions.get(&rule.action).unwrap_or(&nothing);
        plan::plan(action, &circumstances)
    }

    /// Counts a plan that orders something as an action of this hour.
    pub(super) fn count_action(&mut self, planned: &[Planned], now: Now) {
        if planned
            .iter()
            .any(|p| matches!(p.decision, Decision::Order { .. }))
        {
            self.casebook.acted(now.mono);
        }
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
                    ..named("agent", agent.as_ref().map(AgentId::as_str))
                }
            }
            GroupBy::Execution => {
                let execution = self.executions.get(number);
                About {
                    agent: execution.and_then(|e| self.agents.name(e.agent)).cloned(),
                    ..named("execution", execution.map(|e| e.id.as_str()))
                }
            }
            GroupBy::Model => named("model", self.models.name(number).map(|m| m.as_str())),
            GroupBy::Upstream => named("upstream", self.upstreams.name(number).map(|u| u.as_str())),
            GroupBy::Fleet => named("fleet", Some("fleet")),
        }
    }

    /// Passes on what has changed; the subject of an incident that ended is left in peace for a while.
    pub(super) fn settle(
        &mut self,
        serial: Serial,
        outcome: Outcome,
        by: Option<&str>,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(case) = self.casebook.settle(serial, outcome, out) else {
            return;
        };
        let Some(watch) = self.watches.get_mut(usize::from(case.watch)) else {
            return;
        };
        // What an operator closed must not be opened again by the same samples.
        let pause = if by.is_some() {
            watch.rule.cooldown.max(watch.rule.window)
        } else {
            watch.rule.cooldown
        };
        if let Some(subject) = watch.known_mut(case.subject)
            && subject.case == Some(serial)
        {
            subject.keep_quiet(now.mono.after(pause));
        }
    }

    fn follow(&mut self, serial: Serial, now: Now, outcome: &mut Outcome) {
        let Some(case) = self.casebook.get_mut(serial) else {
            return;
        };
        if now.mono < case.next_look {
            return;
        }
        let (subject, side) = (case.subject, case.evidence.side);
        let Some(watch) = self.watches.get_mut(usize::from(case.watch)) else {
            return;
        };
        case.next_look = now
            .mono
            .after(watch.gauge.span.width().clamp(LOOK_EVERY, LOOK_AT_LEAST));
        let (event, value) = match watch.seen(subject, side, now.mono) {
            Seen::Beyond(value) => (Event::Beyond, Some(value)),
            Seen::Between(value) => (Event::Between, value),
            Seen::Back(value) => (Event::Back, Some(value)),
            Seen::Nothing => (Event::NoTraffic, None),
        };
        case.on(event, value, now, outcome);
        let now_reported =
            case.held_back && event == Event::Beyond && watch.holds_on_reported(subject, side, now.mono);
        if now_reported {
            self.act_late(serial, now, outcome);
        }
    }

    /// What was held back as an estimate has been reported: the plan is carried out now.
    fn act_late(&mut self, serial: Serial, now: Now, outcome: &mut Outcome) {
        let Some(mut case) = self.casebook.take(serial) else {
            return;
        };
        let planned = self.plan(&mut case, now.mono, now);
        case.carry_out(&planned, false, now, outcome);
        case.tell_update(now, outcome);
        self.count_action(&planned, now);
        self.casebook.insert(serial, case);
    }

    /// How fast the agent goes and usually went; for the fleet, one agent of it on average.
    fn pace_of(&self, about: &About, before: Mono, now: Mono) -> (Rate, Option<Rate>) {
        let number = about.agent.as_ref().and_then(|a| self.agents.known(a.as_str()));
        if let Some(seen) = number.and_then(|n| self.seen.get(n as usize)) {
            return (seen.pace.over_last_minute(now), seen.pace.before(before));
        }
        let mut sum = Rate::default();
        let mut agents = 0_u32;
        for seen in &self.seen {
            let rate = seen.pace.over_last_minute(now);
            if rate.requests > 0.0 {
                agents += 1;
                sum.requests += rate.requests;
                sum.tokens += rate.tokens;
            }
        }
        let agents = f64::from(agents.max(1));
        sum.requests /= agents;
        sum.tokens /= agents;
        (sum, None)
    }
}

fn evidence(watch: &Watch, number: u32, side: Side, now: Now) -> Option<Evidence> {
    let subject = watch.known(number)?;
    let (value, samples) = watch.value_of(subject, now.mono);
    Some(Evidence {
        side,
        value: value?,
        threshold: watch.gauge.threshold(side)?,
        baseline: watch.gauge.baseline,
        samples,
    })
}

/// Whom the directives of an incident bind, or why nobody.
fn binds(about: &About) -> Result<Subject, &'static str> {
    match (&about.agent, about.kind) {
        (Some(agent), _) if agent.as_str() == AgentId::OVERFLOW => {
            Err("the subject stands for all agents beyond the bound; none of them is to blame alone")
        }
        (Some(agent), _) => Ok(Subject::Agent(agent.clone())),
        (None, "fleet") => Ok(Subject::Fleet),
        (None, _) => Err("directives bind an agent or the fleet, and this incident is about neither"),
    }
}
