//! Many agents, one cause: agents that fail at the same upstream at the same time become one incident about it.

use std::time::Duration;

use super::case::{About, Case, Kind, Member, Opening, Outcome};
use super::casebook::Serial;
use super::effect::Effect;
use super::engine::Engine;
use super::plan;
use super::record::{IncidentState, Origin};
use super::recovery;
use super::rule::{GroupBy, Metric, Step};
use crate::types::directive::Subject;
use crate::types::ids::{AgentId, UpstreamName};
use crate::types::time::Now;

/// What begins within this time of each other is taken to have one cause.
const TOGETHER: Duration = Duration::from_secs(300);

impl Engine {
    /// The open incident that a subject belongs into, by its agent's upstream.
    pub(super) fn joins(&self, index: u16, about: &About, now: Now) -> Option<Serial> {
        let watch = self.watches.get(usize::from(index))?;
        let metric = watch.gauge.metric;
        if !self.book.conduct.correlate || watch.group_by() != GroupBy::Agent || !is_of_upstreams(metric) {
            return None;
        }
        let upstream = self.upstream_of(about.agent.as_ref()?, metric)?;
        let together = |case: &Case| {
            let since = case.opened_at();
            now.mono.since(since.mono) < TOGETHER.max(case.evidence.window)
        };
        self.casebook
            .iter()
            .filter(|(_, c)| c.watch == index && c.state() == IncidentState::Open)
            .find(|(_, case)| match case.about.kind {
                Kind::Upstream => case.about.name == upstream.as_str(),
                Kind::Agent => {
                    let other = case.about.agent.as_ref();
                    together(case)
                        && other.is_some_and(|o| {
                            Some(o) != about.agent.as_ref() && self.upstream_of(o, metric) == Some(upstream)
                        })
                }
                _ => false,
            })
            .map(|(serial, _)| serial)
    }

    /// Takes a subject into an open incident; where that is about an agent, both go on as one about their upstream.
    pub(super) fn join(
        &mut self,
        serial: Serial,
        index: u16,
        member: Member,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let Some(mut first) = self.casebook.take(serial) else {
            return;
        };
        if first.about.kind == Kind::Upstream {
            let number = member.number;
            let mut outcome = Outcome::default();
            let must_ask = self.must_ask(now);
            // The incident is not among the others while it is held.
            let mut bound = self.bound_by_kind();
            bound.extend(
                first
                    .directives()
                    .filter_map(|d| Some((d.order.name(), d.subject.agent()?.clone()))),
            );
            let known = self.agents_seen(now.mono);
            let may_bind = |step: &Step, agent: &AgentId| {
                let joins = [Subject::Agent(agent.clone())];
                must_ask
                    .clone()
                    .or_else(|| plan::beyond_radius(step, &joins, &bound, known))
            };
            first.join(member, may_bind, now, &mut outcome);
            self.casebook.insert(serial, first);
            self.mark(index, number, Some(serial));
            self.settle(serial, outcome, false, now, out);
            return;
        }
        let Some((upstream, rule)) = member
            .agent
            .as_ref()
            .zip(self.watches.get(usize::from(index)))
            .and_then(|(a, w)| self.upstream_of(a, w.gauge.metric))
            .cloned()
            .zip(self.watches.get(usize::from(index)).map(|w| w.rule.clone()))
        else {
            self.casebook.insert(serial, first);
            return;
        };
        let (parent_serial, id) = self.casebook.next_id(now);
        let mut members = first.members.clone();
        members.push(member);
        let mut parent = Case::open(
            Opening {
                id,
                origin: Origin::Rule,
                rule: rule.name.clone(),
                severity: rule.severity,
                about: About {
                    kind: Kind::Upstream,
                    name: upstream.to_string(),
                    agent: None,
                },
                watch: index,
                members: members.clone(),
                evidence: first.evidence.clone(),
                action: rule.action.clone(),
                probation: recovery::probation(&rule),
                targets: Vec::new(),
                flaps_after: self.book.conduct.flaps_after,
            },
            now,
        );
        let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        parent.note(
            now,
            "joined",
            format!("agents that fail at it: {}", names.join(", ")),
        );
        let mut of_first = Outcome::default();
        self.measure_close(&mut first, now);
        first.merge_into(&parent.id, now, &mut of_first);
        self.casebook.insert(serial, first);
        self.settle(serial, of_first, false, now, out);
        let mut outcome = Outcome::default();
        self.measure_opening(&mut parent, now.mono.before(rule.window), now);
        parent.plan(self.steps_of(&rule.action), now, &mut outcome);
        for member in &members {
            self.mark(index, member.number, Some(parent_serial));
        }
        self.advance(&mut parent, true, now, &mut outcome);
        self.casebook.insert(parent_serial, parent);
        self.settle(parent_serial, outcome, false, now, out);
    }

    /// The upstream that an agent used last; for failures the one at which it failed last.
    fn upstream_of(&self, agent: &AgentId, metric: Metric) -> Option<&UpstreamName> {
        let number = self.agents.known(agent.as_str())?;
        let seen = self.seen.get(number as usize)?;
        let failed_at = seen.failed_at.as_ref().filter(|_| metric == Metric::ErrorRate);
        failed_at.or(seen.upstream.as_ref())
    }
}

/// Whether what a metric says of an agent may well be its upstream's doing.
fn is_of_upstreams(metric: Metric) -> bool {
    matches!(
        metric,
        Metric::ErrorRate
            | Metric::TimeoutRate
            | Metric::RateLimitedRate
            | Metric::TruncationRate
            | Metric::ResponseTime
            | Metric::TimeToFirstToken
            | Metric::OutputSpeed
    )
}
