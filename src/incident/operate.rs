//! What an operator does: each act is done whole, or refused with the reason.

use super::approval::Answer;
use super::case::{About, Case, Evidence, Kind, Member, NO_WATCH, NOWHERE, Opening, Outcome};
use super::casebook::Serial;
use super::effect::Effect;
use super::engine::Engine;
use super::gauge::Side;
use super::input::{Acted, NotActed, OperatorAct, Respond};
use super::metric::Unit;
use super::record::{BrakeRecord, IncidentState, Origin, SilenceRecord, Verdict};
use super::recovery;
use super::rule::{GroupBy, Metric};
use crate::types::directive::Subject;
use crate::types::ids::{ApprovalId, IncidentId, LeaseId, RuleName};
use crate::types::notice::Severity;
use crate::types::time::Now;

/// Subjects of one request.
const MAX_SUBJECTS: usize = 1000;

impl Engine {
    /// Does what an operator asks, at `now`. What has to be done about it goes to `out`, as with [`Engine::step`].
    ///
    /// # Errors
    /// Why it is not done; nothing has changed then.
    pub fn operate(&mut self, now: Now, act: OperatorAct, out: &mut Vec<Effect>) -> Result<Acted, NotActed> {
        let now = self.at(now);
        let start = out.len();
        let acted = self.act(act, now, out);
        self.publish(start, out);
        acted
    }

    pub(super) fn act(
        &mut self,
        act: OperatorAct,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<Acted, NotActed> {
        match act {
            OperatorAct::Resolve { incident, by } => {
                let serial = self.open_incident(&incident)?;
                self.close(serial, "closed by an operator", Some(&by), now, out);
            }
            OperatorAct::FalseAlarm { incident, by, reason } => {
                self.false_alarm(&incident, &by, reason.as_deref(), now, out)?;
            }
            OperatorAct::Acknowledge { incident, by } => {
                self.change(&incident, now, out, |case, outcome| {
                    case.acknowledge(&by, now, outcome)
                })?;
            }
            OperatorAct::Escalate { incident, by } => {
                self.change(&incident, now, out, |case, outcome| {
                    case.escalate(&by, now, outcome)
                })?;
            }
            OperatorAct::Decide {
                approval,
                approve,
                by,
                via,
                reason,
            } => {
                let answer = Answer {
                    at: now,
                    by,
                    via,
                    reason,
                };
                self.decide(&approval, approve, answer, now, out)?;
            }
            OperatorAct::Lift { lease, by } => self.lift(&lease, &by, now, out)?,
            OperatorAct::Silence {
                matcher,
                maintenance,
                starts,
                length,
                by,
                comment,
            } => {
                let make = |id, starts, ends| SilenceRecord {
                    id,
                    matcher,
                    maintenance,
                    starts,
                    ends,
                    by,
                    comment,
                };
                let made = self.silences.add(make, starts, length, now);
                let id = made.map_err(NotActed::Refused)?;
                out.push(Effect::Silenced(id.clone()));
                return Ok(Acted::Silence(id));
            }
            OperatorAct::EndSilence { silence, .. } => {
                let id = silence.to_string();
                self.silences.end(&silence, now).map_err(|state| match state {
                    None => NotActed::Unknown { what: "silence", id },
                    Some(state) => NotActed::Over {
                        what: "silence",
                        id,
                        state,
                    },
                })?;
                out.push(Effect::Silenced(silence));
            }
            OperatorAct::Brake { on: false, .. } if self.book.brake && !self.brake.on => {
                return Err(NotActed::Refused(
                    "the brake is on by the configuration: set automation.brake to false and reload"
                        .to_owned(),
                ));
            }
            OperatorAct::Brake { on, by, reason } => {
                self.brake = BrakeRecord {
                    on,
                    by: Some(by),
                    reason,
                    since: Some(now.wall),
                };
                out.push(Effect::Kept);
            }
            OperatorAct::Respond(respond) => return self.respond(respond, now, out),
            OperatorAct::Forget { agent } => self.forget(&agent, now, out),
        }
        Ok(Acted::Done)
    }

    fn open_incident(&self, id: &IncidentId) -> Result<Serial, NotActed> {
        self.casebook.serial_of(id).ok_or_else(|| {
            let id = id.to_string();
            if self.casebook.record(&id.as_str().into()).is_some() {
                NotActed::Over {
                    what: "incident",
                    id,
                    state: "resolved",
                }
            } else {
                NotActed::Unknown { what: "incident", id }
            }
        })
    }

    fn change(
        &mut self,
        id: &IncidentId,
        now: Now,
        out: &mut Vec<Effect>,
        change: impl FnOnce(&mut Case, &mut Outcome),
    ) -> Result<(), NotActed> {
        let serial = self.open_incident(id)?;
        let mut outcome = Outcome::default();
        if let Some(case) = self.casebook.get_mut(serial) {
            change(case, &mut outcome);
        }
        self.settle(serial, outcome, false, now, out);
        Ok(())
    }

    /// An open incident is closed; one that is over gets its verdict all the same.
    fn false_alarm(
        &mut self,
        id: &IncidentId,
        by: &str,
        reason: Option<&str>,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<(), NotActed> {
        match self.open_incident(id) {
            Ok(serial) => {
                if let Some(case) = self.casebook.get_mut(serial) {
                    case.judge_by_human(Verdict::FalseAlarm, by, reason, now);
                }
                self.close(serial, "it was a false alarm", Some(by), now, out);
                Ok(())
            }
            Err(NotActed::Over { .. }) => {
                self.casebook.amend(id, |r| r.verdict = Some(Verdict::FalseAlarm));
                out.push(Effect::Changed(id.clone()));
                Ok(())
            }
            Err(other) => Err(other),
        }
    }

    fn decide(
        &mut self,
        id: &ApprovalId,
        approve: bool,
        answer: Answer,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> Result<(), NotActed> {
        let over = |state: &'static str| NotActed::Over {
            what: "approval",
            id: id.to_string(),
            state,
        };
        let Some(serial) = self.casebook.serial_of_approval(id) else {
            return Err(match self.casebook.approval(id) {
                Some(known) => over(known.state.name()),
                None => NotActed::Unknown {
                    what: "approval",
                    id: id.to_string(),
                },
            });
        };
        let Some(mut case) = self.casebook.take(serial) else {
            return Ok(());
        };
        let mut outcome = Outcome::default();
        let decided = case.decide(id, approve, answer, now, &mut outcome);
        if decided.is_ok() && case.state() != IncidentState::Resolved {
            self.advance(&mut case, false, now, &mut outcome);
        }
        self.casebook.insert(serial, case);
        self.settle(serial, outcome, false, now, out);
        decided.map_err(|state| over(state.name()))
    }

    fn lift(&mut self, lease: &LeaseId, by: &str, now: Now, out: &mut Vec<Effect>) -> Result<(), NotActed> {
        let unknown = || NotActed::Unknown {
            what: "lease",
            id: lease.to_string(),
        };
        let serial = self.casebook.serial_of_lease(lease).ok_or_else(unknown)?;
        let mut outcome = Outcome::default();
        if let Some(case) = self.casebook.get_mut(serial) {
            case.lift_one(lease, by, now, &mut outcome);
        }
        self.settle(serial, outcome, false, now, out);
        Ok(())
    }

    /// One incident for each subject: a new one, or the open one of that rule and subject with a new plan.
    fn respond(&mut self, respond: Respond, now: Now, out: &mut Vec<Effect>) -> Result<Acted, NotActed> {
        if respond.subjects.is_empty() || respond.subjects.len() > MAX_SUBJECTS {
            return Err(NotActed::Refused(format!(
                "an incident response names between 1 and {MAX_SUBJECTS} subjects"
            )));
        }
        if respond.steps.is_empty() {
            return Err(NotActed::Refused(format!(
                "the action {} has no steps",
                respond.action
            )));
        }
        let mut subjects = respond.subjects.clone();
        subjects.sort_by_key(ToString::to_string);
        subjects.dedup();
        let watch = self.watch_for(&respond.incident_type);
        let mut ids = Vec::with_capacity(subjects.len());
        for subject in subjects {
            ids.push(self.respond_to(&respond, subject, watch, now, out));
        }
        Ok(Acted::Incidents(ids))
    }

    fn respond_to(
        &mut self,
        respond: &Respond,
        subject: Subject,
        watch: Option<u16>,
        now: Now,
        out: &mut Vec<Effect>,
    ) -> IncidentId {
        let mut outcome = Outcome::default();
        let name = subject.to_string();
        // The rule's subject is an agent; what is narrower than that is not measured by it.
        let followed = match &subject {
            Subject::Agent(agent) => watch.and_then(|w| {
                let number = self.agents.known(agent.as_str())?;
                let watch = self.watches.get(usize::from(w))?;
                watch.known(number)?;
                Some((w, number, watch.rule.clone()))
            }),
            _ => None,
        };
        let rule = RuleName::from(respond.incident_type.as_str());
        let open = self.casebook.iter().find_map(|(serial, case)| {
            let same_rule = *case.rule() == rule || followed.as_ref().is_some_and(|(w, ..)| case.watch == *w);
            let same_subject = case
                .bound
                .as_ref()
                .map_or(case.about.name == name, |b| *b == subject);
            (same_rule && same_subject).then_some(serial)
        });
        let (serial, mut case, opening) = match open.and_then(|s| Some((s, self.casebook.take(s)?))) {
            Some((serial, mut case)) => {
                case.lift_all("another response was asked for", now, &mut outcome);
                (serial, case, false)
            }
            None => {
                let (serial, id) = self.casebook.next_id(now);
                let case = self.open_on_request(id, respond, &subject, followed, now);
                (serial, case, true)
            }
        };
        let reason = respond
            .reason
            .as_ref()
            .map_or(String::new(), |r| format!(": {r}"));
        let asked = format!("{} asks for {}{reason}", respond.by, respond.action);
        case.note(now, "operator", asked);
        case.ask_for(respond, subject);
        case.plan(&respond.steps, now, &mut outcome);
        self.advance(&mut case, opening, now, &mut outcome);
        if !opening {
            case.tell_update(now, &mut outcome);
        }
        let id = case.id.clone();
        self.casebook.insert(serial, case);
        self.settle(serial, outcome, false, now, out);
        id
    }

    fn open_on_request(
        &mut self,
        id: IncidentId,
        respond: &Respond,
        subject: &Subject,
        followed: Option<(u16, u32, std::sync::Arc<super::rule::Rule>)>,
        now: Now,
    ) -> Case {
        let agent = subject.agent().cloned();
        let about = About {
            kind: match subject {
                Subject::Agent(_) | Subject::Version { .. } => Kind::Agent,
                Subject::Execution { .. } => Kind::Execution,
                Subject::Fleet => Kind::Fleet,
            },
            name: match subject {
                Subject::Execution { execution, .. } => execution.to_string(),
                Subject::Fleet => "fleet".to_owned(),
                Subject::Agent(agent) | Subject::Version { agent, .. } => agent.to_string(),
            },
            agent: agent.clone(),
        };
        let free = followed.filter(|(w, number, _)| {
            let subject = self.watches.get(usize::from(*w)).and_then(|w| w.known(*number));
            subject.is_some_and(|s| s.case.is_none())
        });
        let words = format!("{} reported by {}", respond.incident_type, respond.by);
        let measured = free.as_ref().and_then(|(w, number, rule)| {
            let watch = self.watches.get(usize::from(*w))?;
            let (value, samples) = watch.value_of(watch.known(*number)?, now.mono);
            let side = if watch.gauge.upper.is_some() {
                Side::Upper
            } else {
                Side::Lower
            };
            Some(Evidence {
                metric: Some((watch.gauge.metric, watch.gauge.statistic)),
                window: rule.window,
                side,
                value: value?,
                threshold: watch.gauge.threshold(side)?,
                baseline: watch.gauge.baseline,
                samples,
                words: words.clone(),
            })
        });
        let place = free.as_ref().filter(|_| measured.is_some());
        let (watch, number) = place.map_or((NO_WATCH, NOWHERE), |(w, n, _)| (*w, *n));
        let opening = Opening {
            id,
            origin: Origin::Request,
            rule: RuleName::from(respond.incident_type.as_str()),
            severity: place.map_or(Severity::Warning, |(_, _, rule)| rule.severity),
            members: vec![Member {
                name: about.name.clone(),
                agent,
                number,
            }],
            about,
            watch,
            evidence: measured.unwrap_or_else(|| Evidence::in_words(words)),
            action: respond.action.clone(),
            probation: place.map_or(std::time::Duration::from_secs(60), |(_, _, rule)| {
                recovery::probation(rule)
            }),
            targets: respond.targets.clone(),
            flaps_after: self.book.conduct.flaps_after,
        };
        let mut case = Case::open(opening, now);
        self.measure_opening(
            &mut case,
            now.mono.before(std::time::Duration::from_secs(60)),
            now,
        );
        case
    }

    /// The rule that an incident type means: by its name, else the first one about agents that measures what the words
    /// say (`token_overrun`, `latency_spike`, `error_burst`, `cost_overrun`, `quality_drop`).
    fn watch_for(&self, incident_type: &str) -> Option<u16> {
        let of_agents = || {
            (0_u16..)
                .zip(&self.watches)
                .filter(|(_, w)| w.gauge.live && w.group_by() == GroupBy::Agent)
        };
        let by_name = of_agents().find(|(_, w)| w.rule.name.as_str() == incident_type);
        let measures = |metric: Metric| match metric.unit() {
            Unit::Tokens => incident_type.contains("token"),
            Unit::Dollars => incident_type.contains("cost") || incident_type.contains("budget"),
            Unit::Seconds if metric != Metric::Silence => {
                incident_type.contains("latency")
                    || incident_type.contains("slow")
                    || incident_type.contains("timeout")
            }
            Unit::Share => match metric {
                Metric::SemanticSimilarityToBaseline => incident_type.contains("quality"),
                Metric::ErrorRate => incident_type.contains("error") || incident_type.contains("outage"),
                _ => false,
            },
            _ => false,
        };
        by_name
            .or_else(|| of_agents().find(|(_, w)| measures(w.gauge.metric)))
            .map(|(index, _)| index)
    }
}
