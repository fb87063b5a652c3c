//! What is done about an incident next: its steps as far as they can be taken, and what became of those that were.

use super::case::{Case, Effect as StepEffect, Kind, Outcome};
use super::casebook::Serial;
use super::engine::Engine;
use super::gauge::Side;
use super::pace::Rate;
use super::plan::{self, Circumstances, Decision};
use super::record::{IncidentState, Origin, PaceRecord};
use super::rule::{Mode, Step};
use crate::types::directive::Subject;
use crate::types::ids::{ActionName, AgentId};
use crate::types::time::{Mono, Now};

impl Engine {
    /// The steps of a chain; none where there is no such chain.
    pub(super) fn steps_of(&self, action: &ActionName) -> &[Step] {
        self.book.actions.get(action).map_or(&[], |a| &a.steps)
    }

    /// Takes every step whose turn has come, then tells those whom these steps name.
    pub(super) fn advance(&mut self, case: &mut Case, opening: bool, now: Now, outcome: &mut Outcome) {
        case.restless = false;
        let mut acted = false;
        while let Some(at) = case.next_step() {
            let Some(run) = case.step(at) else { break };
            let (step, cleared) = (run.step.clone(), run.cleared);
            let circumstances = self.circumstances(case, now);
            let decision = plan::decide(&step, cleared, &circumstances);
            acted |= !cleared && matches!(decision, Decision::Order { .. } | Decision::Call { .. });
            case.take(at, decision, now, outcome);
        }
        if acted {
            self.casebook.acted(now);
        }
        case.tell_taken(opening, now, outcome);
    }

    /// What time makes of an open incident: questions and leases that end, steps to be judged, people to be told again.
    pub(super) fn keep_up(&mut self, serial: Serial, now: Now, outcome: &mut Outcome) {
        let Some(mut case) = self.casebook.take(serial) else {
            return;
        };
        case.pass_time(now, outcome);
        if case.state() == IncidentState::Open {
            for (at, since) in case.due_steps(now) {
                let effect = self.effect(&case, at, since.mono, now);
                case.judge(at, effect, now, outcome);
            }
            if case.restless {
                self.advance(&mut case, false, now, outcome);
            }
        }
        if case.state() == IncidentState::Recovering {
            // The version that was bound is gone, and what runs in its place does well.
            for (lease, agent, version) in case.bound_versions() {
                let runs = self.version_in_use(&agent).filter(|v| *v != version);
                if let Some(runs) = runs.filter(|v| self.is_good(&agent, v)) {
                    case.lift_one(&lease, &format!("version {runs}, which does well"), now, outcome);
                }
            }
        }
        case.keep_telling(now, outcome);
        if case.origin == Origin::Request && case.is_spent() {
            self.measure_close(&mut case, now);
            case.close(
                "what was asked for is done and no longer in force",
                None,
                now,
                outcome,
            );
        }
        self.casebook.insert(serial, case);
    }

    /// What was held back as an estimate has been reported: the plan is carried out now.
    pub(super) fn act_late(&mut self, serial: Serial, now: Now, outcome: &mut Outcome) {
        let Some(mut case) = self.casebook.take(serial) else {
            return;
        };
        case.take_up_again();
        self.advance(&mut case, false, now, outcome);
        case.tell_update(now, outcome);
        self.casebook.insert(serial, case);
    }

    /// How the agent went before the incident and goes now.
    pub(super) fn measure_opening(&self, case: &mut Case, before: Mono, now: Now) {
        let (pace, usual) = self.pace_of(case.about.agent.as_ref(), before, now.mono);
        case.usual = usual;
        case.measures.at_opening = Some(shown(pace));
        case.measures.usual = usual.map(shown);
    }

    /// How the agent goes at the end.
    pub(super) fn measure_close(&self, case: &mut Case, now: Now) {
        let (pace, _) = self.pace_of(case.about.agent.as_ref(), now.mono, now.mono);
        case.measures.at_close = Some(shown(pace));
    }

    fn effect(&mut self, case: &Case, at: usize, since: Mono, now: Now) -> StepEffect {
        if let Some(version) = case.step(at).and_then(|run| run.awaits.as_ref()) {
            let agent = case.about.agent.as_ref();
            let runs = agent.and_then(|a| self.version_of(a, since));
            return match runs {
                Some(running) if running == *version => StepEffect::Worked(None),
                Some(_) => StepEffect::Failed(None),
                None => StepEffect::Unknown,
            };
        }
        let Some(watch) = self.watches.get_mut(usize::from(case.watch)) else {
            return StepEffect::Unknown;
        };
        let side = case.evidence.side;
        let worst = case
            .members
            .iter()
            .filter_map(|m| watch.seen_since(m.number, side, since, now.mono))
            .reduce(|a, b| {
                let first = match side {
                    Side::Upper => a.0 >= b.0,
                    Side::Lower => a.0 <= b.0,
                };
                if first { a } else { b }
            });
        case.effect(at, worst)
    }

    fn circumstances(&mut self, case: &mut Case, now: Now) -> Circumstances {
        let watch = self.watches.get(usize::from(case.watch));
        let own = case.members.first().map_or(0, |m| m.number);
        let estimates = watch.is_some_and(|w| !w.holds_on_reported(own, case.evidence.side, now.mono));
        // What people ask for is not weighed by what a rule may do.
        let mode = match (case.origin, watch) {
            (Origin::Rule, Some(watch)) => watch.rule.mode,
            (Origin::Rule, None) => Mode::Warn,
            (Origin::Request | Origin::Fusebox, _) => Mode::Enforce,
        };
        let of_rule = case.origin == Origin::Rule;
        case.held_back = estimates && of_rule;
        let (pace, _) = self.pace_of(case.about.agent.as_ref(), now.mono, now.mono);
        let normal = case.evidence.baseline.unwrap_or(case.evidence.threshold);
        let excess = case.evidence.value / normal;
        let version = case.about.agent.as_ref().and_then(|a| self.version_in_use(a));
        Circumstances {
            mode,
            binds: binds(case),
            held_back: case.held_back.then(|| plan::ESTIMATES.to_owned()),
            must_ask: self.must_ask(now),
            pace,
            usual: case.usual,
            unit: case.unit(),
            excess: match case.evidence.side {
                Side::Upper if normal > 0.0 => excess,
                _ => f64::NAN,
            },
            renews: case.evidence.metric.is_some(),
            reason: case.reason.clone(),
            agents: self.agents_seen(now.mono),
            bound: self.bound_by_kind(),
            good_version: self.good_version(case.about.agent.as_ref(), version.as_ref()),
            version,
        }
    }

    /// Why automation has to ask, whatever the step.
    pub(super) fn must_ask(&mut self, now: Now) -> Option<String> {
        if self.brake.on {
            let by = self.brake.by.as_deref().unwrap_or("an operator");
            return Some(format!(
                "the brake is on (by {by}): no step is taken without a human"
            ));
        }
        if self.book.brake {
            return Some(
                "the brake is on (by the configuration): no step is taken without a human".to_owned(),
            );
        }
        let limit = self.book.max_actions_per_hour;
        (!self.casebook.may_act(now, limit))
            .then(|| format!("automation has reached its limit of {limit} actions in one hour"))
    }

    /// Agents that are bound, by the kind of order.
    pub(super) fn bound_by_kind(&self) -> Vec<(&'static str, AgentId)> {
        let directives = self.casebook.iter().flat_map(|(_, case)| case.directives());
        directives
            .filter_map(|d| Some((d.order.name(), d.subject.agent()?.clone())))
            .collect()
    }

    /// How fast the agent goes and usually went; for the fleet, one agent of it on average.
    fn pace_of(&self, agent: Option<&AgentId>, before: Mono, now: Mono) -> (Rate, Option<Rate>) {
        if let Some(agent) = agent {
            let number = self.agents.known(agent.as_str());
            let seen = number.and_then(|n| self.seen.get(n as usize));
            return seen.map_or((Rate::default(), None), |seen| {
                (seen.pace.over_last_minute(now), seen.pace.before(before))
            });
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

fn shown(rate: Rate) -> PaceRecord {
    PaceRecord {
        requests_per_minute: rate.requests,
        tokens_per_minute: rate.tokens,
    }
}

/// Whom the directives of an incident bind, or why nobody.
fn binds(case: &Case) -> Result<Vec<Subject>, &'static str> {
    if let Some(subject) = &case.bound {
        return Ok(vec![subject.clone()]);
    }
    let agents = case.agents();
    match (agents.first(), case.about.kind) {
        (Some(agent), _) if agent.as_str() == AgentId::OVERFLOW => {
            Err("the subject stands for all agents beyond the bound; none of them is to blame alone")
        }
        // What another run of the agent does is not to blame.
        (Some(agent), Kind::Execution) => Ok(vec![Subject::Execution {
            agent: agent.clone(),
            execution: case.about.name.as_str().into(),
        }]),
        (Some(_), _) => Ok(agents.into_iter().map(Subject::Agent).collect()),
        (None, Kind::Fleet) => Ok(vec![Subject::Fleet]),
        (None, _) => Err("directives bind an agent or the fleet, and this incident is about neither"),
    }
}
