//! The one task that owns the engine: observations in, effects out, questions answered.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, Sleep, interval, sleep};

use super::announce::Announcer;
use super::events::Events;
use super::handle::{AgentView, Ask, ReloadReport, RuleLine, StatusView, UpstreamView};
use super::journal::Journal;
use super::keeper;
use super::links::Links;
use super::outbox::Dropped;
use super::perform::{Audit, Kept, Means, Performer};
use super::recent::Recent;
use super::resume::Memory;
use crate::alert::{Alerts, AllowedDestinations};
use crate::clock::Clock;
use crate::enforce::breaker::Breakers;
use crate::enforce::slots::Slots;
use crate::enforce::snapshot::Publisher;
use crate::enforce::versions::Versions;
use crate::incident::effect::Effect;
use crate::incident::engine::Engine;
use crate::incident::input::{Acted, Input, NotActed, OperatorAct, Trouble};
use crate::incident::record::IncidentState;
use crate::incident::rule::Rulebook;
use crate::store::Health;
use crate::telemetry::metrics::Metrics;
use crate::types::ids::AgentId;
use crate::types::observation::Report;
use crate::types::time::{Mono, Now};

/// How long the driver rests after a batch. While it rests, requests hand over their observations without waking
/// anybody: under load this turns a wake-up for each exchange into two hundred a second.
const REST: Duration = Duration::from_millis(5);

/// How often slots are looked through for agents that are gone.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// How often versions of agents are written to the ledger.
const VERSIONS_EVERY: Duration = Duration::from_secs(60);

/// Observations taken at a time.
const BATCH: usize = 2048;

/// A change of configuration, already in force on the requests' side.
#[derive(Debug)]
pub struct Reloaded {
    /// What came of it.
    pub report: ReloadReport,
    /// The new rules; `None` when the reload failed.
    pub rules: Option<Arc<Rulebook>>,
    /// The upstreams now; `None` when the reload failed.
    pub upstreams: Option<Vec<UpstreamView>>,
    /// Where requests may have notices sent to; `None` when the reload failed.
    pub destinations: Option<AllowedDestinations>,
}

/// What the driver works with.
#[derive(Debug)]
pub struct Parts {
    /// Where the time comes from.
    pub clock: Clock,
    /// The engine.
    pub engine: Engine,
    /// Puts directives in force.
    pub publisher: Arc<Publisher>,
    /// Tells people.
    pub alerts: Alerts,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// What the requests' side knows of each agent.
    pub slots: Arc<Slots>,
    /// Writes observations, if they are to be written.
    pub journal: Option<Journal>,
    /// What is kept beyond the process, if anything is.
    pub memory: Option<Memory>,
    /// Links in notices.
    pub links: Links,
    /// Where requests may have notices sent to.
    pub destinations: AllowedDestinations,
    /// For those who look on.
    pub events: Events,
    /// What versions of agents are made of, as requests show it.
    pub versions: Arc<Versions>,
    /// What is said in the status and does not change.
    pub about: About,
    /// Figures of the requests' side.
    pub gauges: Gauges,
}

/// What is said in the status and does not change but by a reload.
#[derive(Debug, Clone)]
pub struct About {
    /// Where clients are served.
    pub listeners: Vec<String>,
    /// Where requests go.
    pub upstreams: Vec<UpstreamView>,
    /// Where the configuration comes from.
    pub config: String,
}

/// Figures of the requests' side, read once a second.
pub struct Gauges {
    /// Open client connections.
    pub connections: Box<dyn Fn() -> usize + Send>,
    /// Requests that are held back.
    pub waiting: Box<dyn Fn() -> usize + Send>,
    /// What found the queue full.
    pub dropped: Arc<Dropped>,
    /// How well the upstreams do that others stand in for.
    pub breakers: Arc<Breakers>,
}

impl std::fmt::Debug for Gauges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gauges").finish_non_exhaustive()
    }
}

/// Where the driver is told and asked things.
#[derive(Debug)]
pub struct Inbox {
    /// From requests; its end ends the driver.
    pub told: Receiver<Report>,
    /// From the admin side.
    pub asks: Receiver<Ask>,
    /// From reloads.
    pub reloads: Receiver<Reloaded>,
}

struct Driver {
    parts: Parts,
    performer: Performer,
    started: Mono,
    observations: u64,
    unwritten: u64,
    lately: Lately,
    /// When slots were looked through for agents that are gone.
    swept: Mono,
    last_reload: Option<ReloadReport>,
    effects: Vec<Effect>,
    /// What is wrong with the ledger, as far as the engine was told.
    trouble: Option<Arc<str>>,
    /// How often the ledger was begun anew.
    renewals: u64,
    /// When versions were written last.
    versions_written: Now,
}

/// What went wrong of late.
#[derive(Debug, Default)]
struct Lately {
    dropped: Recent,
    unwritten: Recent,
    overflowed: Recent,
}

/// Runs until the requests' side is gone and everything it said was taken.
pub async fn run(parts: Parts, inbox: Inbox) {
    let Inbox {
        mut told,
        mut asks,
        mut reloads,
    } = inbox;
    let (mut driver, announced) = Driver::new(parts);
    let mut batch = Vec::with_capacity(64);
    // `None` while the driver is ready for the next batch.
    let mut resting: Option<std::pin::Pin<Box<Sleep>>> = None;
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            _ = tick.tick() => driver.tick(),
            Some(ask) = asks.recv() => driver.answer(ask),
            Some(reloaded) = reloads.recv() => driver.reloaded(reloaded),
            () = rest(&mut resting), if resting.is_some() => resting = None,
            count = told.recv_many(&mut batch, BATCH), if resting.is_none() => {
                if count == 0 {
                    break;
                }
                driver.take(&mut batch);
                if count < BATCH {
                    resting = Some(Box::pin(sleep(REST)));
                }
            }
        }
    }
    // What was decided is told before the end.
    drop(driver);
    announced.await.ok();
}

/// Waits for a rest to be over.
async fn rest(resting: &mut Option<std::pin::Pin<Box<Sleep>>>) {
    if let Some(sleep) = resting {
        sleep.as_mut().await;
    }
}

impl Driver {
    fn new(mut parts: Parts) -> (Self, JoinHandle<()>) {
        let (announcer, announced) =
            Announcer::start(parts.alerts.clone(), parts.events.clone(), parts.clock.clone());
        let memory = parts.memory.take();
        let (adhoc, effects, memory) = match memory {
            None => (HashMap::new(), Vec::new(), None),
            Some(memory) => (
                memory.adhoc,
                memory.effects,
                Some(Kept {
                    ledger: memory.ledger,
                    keeper: memory.keeper,
                    deliveries: memory.deliveries,
                }),
            ),
        };
        let mut performer = Performer::new(Means {
            publisher: Arc::clone(&parts.publisher),
            alerts: parts.alerts.clone(),
            metrics: Arc::clone(&parts.metrics),
            announcer,
            links: parts.links.clone(),
            memory,
            destinations: parts.destinations.clone(),
            adhoc,
        });
        for record in parts.engine.incidents() {
            if record.state != IncidentState::Resolved {
                performer.know(&record);
            }
        }
        performer.perform(&parts.engine, effects.into_iter(), None, None, parts.clock.now());
        let driver = Self {
            started: parts.clock.mono(),
            parts,
            performer,
            trouble: None,
            renewals: 0,
            versions_written: Now::default(),
            observations: 0,
            unwritten: 0,
            lately: Lately::default(),
            swept: Mono::ZERO,
            last_reload: None,
            effects: Vec::new(),
        };
        (driver, announced)
    }

    fn take(&mut self, batch: &mut Vec<Report>) {
        for told in batch.drain(..) {
            let input = match told {
                Report::Running(observation) => Input::Progress(observation),
                Report::Ended(observation) => {
                    self.observations += 1;
                    if let Some(journal) = &self.parts.journal
                        && !journal.write(observation.clone())
                    {
                        self.unwritten += 1;
                    }
                    if let Some(kept) = &self.performer.means.memory {
                        // A full queue is counted by the ledger.
                        kept.ledger.observe(observation.clone());
                    }
                    Input::Observation(observation)
                }
            };
            self.step(input);
        }
    }

    fn tick(&mut self) {
        self.step(Input::Tick);
        let now = self.parts.clock.now();
        self.make_room(now);
        self.look_back(now);
        self.look_after_the_ledger(now);
        let gauges = &self.parts.gauges;
        let (connections, waiting) = ((gauges.connections)(), (gauges.waiting)());
        let agents = self.parts.slots.count();
        self.parts.metrics.gauges(
            agents as u64,
            self.performer.directives(),
            connections as u64,
            waiting as u64,
        );
        for breaker in gauges.breakers.view(now.mono) {
            let failover = self.parts.metrics.failover();
            failover.breaker(breaker.upstream.as_str(), breaker.state.level());
        }
    }

    /// The upstreams, with how their breakers stand.
    fn upstreams(&self, now: Mono) -> Vec<UpstreamView> {
        let breakers = self.parts.gauges.breakers.view(now);
        let state = |name: &str| breakers.iter().find(|b| b.upstream.as_str() == name);
        let mut all = self.parts.about.upstreams.clone();
        for view in &mut all {
            view.breaker = state(&view.name).map(|b| b.state.name().to_owned());
        }
        all
    }

    /// Agents that are long gone leave their slots to others.
    fn make_room(&mut self, now: Now) {
        if now.mono.since(self.swept) < SWEEP_EVERY {
            return;
        }
        self.swept = now.mono;
        let directives = self.performer.in_force();
        let is_bound = |agent: &AgentId| directives.binds(agent, now.mono);
        let freed = self.parts.slots.make_room(now.mono, is_bound);
        if freed > 0 {
            tracing::debug!(freed, "agents that were silent for an hour made room");
        }
    }

    /// Sees what went wrong since it was looked last.
    fn look_back(&mut self, now: Now) {
        let Parts { slots, gauges, .. } = &self.parts;
        let lately = &mut self.lately;
        lately.dropped.update(gauges.dropped.observations(), now);
        lately.unwritten.update(self.unwritten, now);
        lately.overflowed.update(slots.overflowed(), now);
        if !lately.overflowed.is_recent() && slots.turned_away() > 0 {
            slots.forget_turned_away();
        }
        self.parts
            .metrics
            .overflow(slots.turned_away() as u64, slots.overflowed());
    }

    /// Trouble with the ledger is an incident; a ledger that was begun anew gets everything again; versions in use are
    /// written now and then.
    fn look_after_the_ledger(&mut self, now: Now) {
        let Some(kept) = &self.performer.means.memory else {
            return;
        };
        let (health, renewals) = (kept.ledger.health(), kept.ledger.renewals());
        let why = match health {
            Health::Ok => None,
            Health::Degraded { why, .. } => Some(why),
        };
        if why.is_some() != self.trouble.is_some() {
            self.step(Input::Trouble(Trouble {
                what: "ledger",
                detail: why
                    .as_ref()
                    .map(|why| format!("the ledger cannot be written: {why}")),
            }));
        }
        self.trouble = why;
        if renewals != self.renewals {
            self.renewals = renewals;
            self.performer.write_again(&self.parts.engine, now);
        }
        if now.mono.since(self.versions_written.mono) >= VERSIONS_EVERY {
            let since = std::mem::replace(&mut self.versions_written, now).wall;
            if let Some(kept) = &self.performer.means.memory {
                let mut rows = keeper::versions(&self.parts.engine, since, now);
                if !rows.is_empty() {
                    rows.push(keeper::known(&self.parts.versions.export()));
                    drop(kept.ledger.record(rows));
                }
            }
        }
    }

    fn step(&mut self, input: Input) {
        let now = self.parts.clock.now();
        self.parts.engine.step(now, input, &mut self.effects);
        if !self.effects.is_empty() {
            let Self {
                performer,
                parts,
                effects,
                ..
            } = self;
            performer.perform(&parts.engine, effects.drain(..), None, None, now);
        }
    }

    /// Does what an operator asks; the answer is given once it is durable.
    fn operate(&mut self, act: OperatorAct, via: &str, to: oneshot::Sender<Result<Acted, NotActed>>) {
        let now = self.parts.clock.now();
        let audit = Audit {
            by: act.by().to_owned(),
            via: via.to_owned(),
            what: act.name().to_owned(),
            detail: serde_json::to_string(&act).unwrap_or_default(),
        };
        let acted = self.parts.engine.operate(now, act, &mut self.effects);
        let audit = acted.is_ok().then_some(audit);
        let Self {
            performer,
            parts,
            effects,
            ..
        } = self;
        let then = Box::new(move || reply(to, acted));
        performer.perform(&parts.engine, effects.drain(..), audit, Some(then), now);
    }

    fn reloaded(&mut self, reloaded: Reloaded) {
        let Reloaded {
            report,
            rules,
            upstreams,
            destinations,
        } = reloaded;
        self.parts.metrics.reloaded(report.ok);
        self.last_reload = Some(report);
        if let Some(upstreams) = upstreams {
            self.parts.about.upstreams = upstreams;
        }
        if let Some(destinations) = destinations {
            self.performer.means.destinations = destinations;
        }
        if let Some(rules) = rules {
            self.step(Input::Rules(rules));
        }
    }

    fn answer(&mut self, ask: Ask) {
        self.look_back(self.parts.clock.now());
        let engine = &self.parts.engine;
        match ask {
            Ask::Incidents(to) => reply(to, engine.incidents()),
            Ask::Incident(id, to) => reply(to, engine.incident(&id)),
            Ask::Rules(to) => reply(to, engine.rules(self.parts.clock.now())),
            Ask::Agents(to) => reply(to, self.agents()),
            Ask::Status(to) => reply(to, self.status()),
            Ask::Look(look) => look(engine, self.parts.clock.now()),
            Ask::Operate { act, via, to } => self.operate(act, &via, to),
            Ask::Target(url, to) => reply(to, self.performer.remember_target(&url)),
        }
    }

    fn agents(&self) -> Vec<AgentView> {
        let seen = self.parts.engine.agents(self.parts.clock.now());
        let mut seen: HashMap<String, _> = seen
            .into_iter()
            .map(|a| (a.agent.as_str().to_owned(), a))
            .collect();
        let mut views: Vec<AgentView> = self
            .parts
            .slots
            .all()
            .into_iter()
            .map(|slot| {
                let agent = slot.agent().as_str().to_owned();
                AgentView {
                    status: seen.remove(&agent),
                    totals: slot.view(),
                    agent,
                }
            })
            .collect();
        views.sort_by(|a, b| a.agent.cmp(&b.agent));
        views
    }

    fn status(&self) -> StatusView {
        let parts = &self.parts;
        let now = parts.clock.now();
        let rules = parts.engine.rules(now);
        let mut degraded = Vec::new();
        if let Some(report) = self.last_reload.as_ref().filter(|r| !r.ok) {
            degraded.push(format!(
                "last reload: failed with {} problem(s); the configuration before it stays in force",
                report.problems.len()
            ));
        }
        if parts.journal.as_ref().is_some_and(Journal::is_failing) {
            degraded.push("observations cannot be written".to_owned());
        }
        let lately = &self.lately;
        if let Some(told) = lately.unwritten.tell("observations were not written") {
            degraded.push(format!("{told}: the writer was too slow"));
        }
        if let Some(told) = lately.dropped.tell("observations were dropped") {
            let kept = "the engine's queue was full; what they used is in the totals";
            degraded.push(format!("{told}: {kept}"));
        }
        let turned_away = parts.slots.turned_away() as u64;
        if lately.overflowed.is_recent() {
            degraded.push(format!(
                "{turned_away} agent(s) found no slot of their own and share `{}`, where only what is ordered for the \
                 fleet binds them: raise limits.max_agents and restart",
                AgentId::OVERFLOW
            ));
        }
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.mono.since(self.started).as_secs_f64(),
            listeners: parts.about.listeners.clone(),
            upstreams: self.upstreams(now.mono),
            config: parts.about.config.clone(),
            last_reload: self.last_reload.clone(),
            agents: parts.slots.count() as u64,
            agents_turned_away: turned_away,
            open_incidents: parts.engine.open_incidents() as u64,
            directives: self.performer.directives(),
            observations: self.observations,
            observations_dropped: parts.gauges.dropped.observations(),
            observations_unwritten: self.unwritten,
            progress_reports_dropped: parts.gauges.dropped.progress(),
            totals: parts.slots.totals(),
            alerts: parts.alerts.status(),
            rules: rules
                .into_iter()
                .map(|r| RuleLine {
                    name: r.name.as_str().to_owned(),
                    evaluation: if r.enabled { r.evaluation } else { "off".to_owned() },
                    open_incidents: r.open_incidents,
                })
                .collect(),
            degraded,
        }
    }
}

/// Answers a question. Whoever asked may have left; that is no concern of ours.
fn reply<T>(to: oneshot::Sender<T>, answer: T) {
    to.send(answer).ok();
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::alert::Options;
    use crate::config::{Overrides, compile};
    use crate::control::outbox::Outbox;
    use crate::types::observation::Observation;
    use crate::types::secret::Secret;
    use crate::types::time::Wall;

    fn observation() -> Box<Observation> {
        let value = json!({
            "request_id": "r", "time": "2026-01-01T00:00:00Z", "agent": "a", "agent_source": "header",
            "agent_version": null, "execution": "e", "execution_source": "exchange", "upstream": "u",
            "provider": "openai", "api": "openai.chat", "model_requested": null, "model_served": null,
            "status": 200, "stream": false, "outcome": "complete", "usage_source": "none",
            "finish_reason": null, "error_type": null, "error_code": null, "tool_calls": [],
            "output_chars": null, "ttfb_ms": null, "ttft_ms": null, "duration_ms": 1.0, "overhead_us": 1,
            "cost_usd": null
        });
        serde_json::from_value(value).unwrap()
    }

    /// A driver on a clock that stands still, with room for two agents, and its outbox with room for one report.
    fn driver() -> (Driver, Outbox, mpsc::Receiver<Report>) {
        let compiled = compile("t", "", &Overrides::default(), &|_| None).unwrap();
        let clock = Clock::manual(Now {
            mono: Mono::from_millis(1000),
            wall: Wall::default(),
        });
        let metrics = Arc::new(Metrics::new(10));
        let (queue, told) = mpsc::channel(1);
        let (outbox, dropped) = Outbox::new(queue, Arc::clone(&metrics));
        let publisher = Arc::new(Publisher::new(Arc::new(compiled.policy)).0);
        let alerts = Alerts::start(
            Vec::new(),
            Options {
                clock: clock.clone(),
                metrics: Arc::clone(&metrics),
                settled: None,
                destinations: AllowedDestinations::default(),
            },
        );
        let parts = Parts {
            engine: Engine::new(compiled.rulebook, compiled.wiring.bounds),
            publisher,
            alerts,
            metrics,
            slots: Arc::new(Slots::new(2)),
            journal: None,
            memory: None,
            links: Links::new(None, Secret::new("k")),
            destinations: AllowedDestinations::default(),
            events: Events::new(),
            versions: Arc::new(Versions::new(2)),
            about: About {
                listeners: Vec::new(),
                upstreams: Vec::new(),
                config: String::new(),
            },
            gauges: Gauges {
                connections: Box::new(|| 0),
                waiting: Box::new(|| 0),
                dropped,
                breakers: Arc::default(),
            },
            clock,
        };
        (Driver::new(parts).0, outbox, told)
    }

    fn degraded(driver: &mut Driver) -> Vec<String> {
        driver.tick();
        driver.status().degraded
    }

    #[tokio::test]
    async fn a_loss_is_told_for_five_minutes_and_counted_for_good() {
        let (mut driver, outbox, _told) = driver();
        outbox.leave(Report::Ended(observation()));
        outbox.leave(Report::Running(observation()));
        assert_eq!(degraded(&mut driver), [""; 0], "progress is no loss");
        outbox.leave(Report::Ended(observation()));
        driver.unwritten = 2;
        let told = degraded(&mut driver);
        assert!(told[0].starts_with("2 observations were not written in the last 5 min (last at 1970-"));
        assert!(
            told[1].starts_with("1 observations were dropped in the last 5 min"),
            "{told:?}"
        );
        driver.parts.clock.advance(Duration::from_secs(301));
        assert_eq!(degraded(&mut driver), [""; 0]);
        let status = driver.status();
        assert_eq!(
            (
                status.observations_dropped,
                status.observations_unwritten,
                status.progress_reports_dropped
            ),
            (1, 2, 1)
        );
    }

    #[tokio::test]
    async fn agents_without_a_slot_are_told_until_there_is_room() {
        let (mut driver, _outbox, _told) = driver();
        let use_slot = |driver: &Driver, agent: &str| {
            let mut o = observation();
            o.ended = driver.parts.clock.mono();
            driver.parts.slots.slot(&AgentId::from(agent)).totals.add(&o);
        };
        for agent in ["a", "b"] {
            use_slot(&driver, agent);
        }
        assert_eq!(degraded(&mut driver), [""; 0]);
        for agent in ["c", "d", "c"] {
            use_slot(&driver, agent);
        }
        let told = degraded(&mut driver);
        assert!(
            told[0].starts_with("2 agent(s) found no slot of their own"),
            "{told:?}"
        );
        let status = driver.status();
        assert_eq!((status.agents, status.agents_turned_away), (2, 2));
        let text = driver.parts.metrics.encode();
        for line in [
            "fusebox_agents_turned_away 2\n",
            "fusebox_agent_overflow_total 3\n",
        ] {
            assert!(text.contains(line), "{text}");
        }
        driver.parts.clock.advance(Duration::from_secs(3601));
        assert_eq!(degraded(&mut driver), [""; 0]);
        let status = driver.status();
        assert_eq!((status.agents, status.agents_turned_away), (0, 0));
        assert_eq!(status.totals.requests, 5, "what they used stays");
        assert!(
            driver
                .parts
                .metrics
                .encode()
                .contains("fusebox_agents_turned_away 0\n")
        );
    }
}
