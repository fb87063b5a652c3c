//! What the engine shows of its rules and agents.

use std::collections::BTreeMap;

use super::detect::{Subject, Watch};
use super::engine::Engine;
use super::gauge::Judgement;
use super::record::{AgentStatus, RuleStatus, SubjectStatus};
use super::rule::Mode;
use crate::types::directive::Directive;
use crate::types::ids::{AgentId, IncidentId};
use crate::types::time::Mono;

/// Subjects shown of a rule.
const SHOWN: usize = 10;

impl Engine {
    pub(super) fn rule_views(&self, now: Mono) -> Vec<RuleStatus> {
        (0_u16..)
            .zip(&self.watches)
            .map(|(index, watch)| {
                let mut near: Vec<(f64, u32, &Subject, Judgement)> = watch
                    .subjects()
                    .map(|(number, subject)| {
                        let (judgement, closeness) = watch.standing(subject, now);
                        (closeness, number, subject, judgement)
                    })
                    .collect();
                let subjects = near.len() as u64;
                near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
                near.truncate(SHOWN);
                RuleStatus {
                    name: watch.rule.name.clone(),
                    enabled: watch.rule.enabled,
                    mode: mode_name(watch.rule.mode).to_owned(),
                    metric: watch.gauge.metric.name(watch.gauge.statistic),
                    evaluation: watch.gauge.evaluation.clone(),
                    baseline: watch.gauge.baseline,
                    threshold_upper: watch.gauge.upper,
                    threshold_lower: watch.gauge.lower,
                    window_seconds: watch.rule.window.as_secs_f64(),
                    subjects,
                    findings: watch.findings,
                    open_incidents: self.casebook.iter().filter(|(_, c)| c.watch == index).count() as u64,
                    worst: near
                        .into_iter()
                        .map(|(_, number, subject, judgement)| {
                            self.subject_view(watch, number, subject, judgement, now)
                        })
                        .collect(),
                }
            })
            .collect()
    }

    pub(super) fn agent_views(&self, now: Mono) -> Vec<AgentStatus> {
        let mut incidents: BTreeMap<&AgentId, Vec<IncidentId>> = BTreeMap::new();
        let mut directives: BTreeMap<&AgentId, Vec<Directive>> = BTreeMap::new();
        let mut everyone: Vec<Directive> = Vec::new();
        for (_, case) in self.casebook.iter() {
            for agent in case.members.iter().filter_map(|m| m.agent.as_ref()) {
                incidents.entry(agent).or_default().push(case.id.clone());
            }
            for directive in case.directives().filter(|d| d.until > now) {
                match directive.subject.agent() {
                    Some(agent) => {
                        directives
                            .entry(agent)
                            .or_default()
                            .push(Directive::clone(directive));
                    }
                    None => everyone.push(Directive::clone(directive)),
                }
            }
        }
        let mut agents: Vec<AgentStatus> = self
            .agents
            .iter()
            .filter_map(|(number, agent)| {
                let seen = self.seen.get(number as usize)?;
                let (_, last_seen) = seen.last?;
                let rate = seen.pace.over_last_minute(now);
                let mut obeys = directives.get(agent).cloned().unwrap_or_default();
                obeys.extend(everyone.iter().cloned());
                Some(AgentStatus {
                    agent: agent.clone(),
                    last_seen,
                    tokens_per_minute: rate.tokens,
                    requests_per_minute: rate.requests,
                    incidents: incidents.get(agent).cloned().unwrap_or_default(),
                    directives: obeys,
                    version: seen.versions.in_use().map(ToString::to_string),
                    versions: seen.versions.records(agent, &self.book.conduct.good_version),
                })
            })
            .collect();
        agents.sort_by(|a, b| a.agent.cmp(&b.agent));
        agents
    }

    fn subject_view(
        &self,
        watch: &Watch,
        number: u32,
        subject: &Subject,
        judgement: Judgement,
        now: Mono,
    ) -> SubjectStatus {
        let (value, samples) = watch.value_of(subject, now);
        let breach = matches!(judgement, Judgement::Beyond(_));
        let judged = !matches!(judgement, Judgement::Nothing | Judgement::TooFew);
        SubjectStatus {
            subject: self.about(watch, number).name,
            value: value.filter(|_| judged),
            samples,
            breach,
            waiting_on: breach.then(|| watch.waiting_on(subject, now)).flatten(),
        }
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Shadow => "shadow",
        Mode::Warn => "warn",
        Mode::Approve => "approve",
        Mode::Enforce => "enforce",
    }
}
