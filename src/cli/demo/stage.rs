//! What the story is played on: provider, fusebox, receiver and agents, all in this process.

use std::path::Path;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::agents::{Event, World, live};
use super::plan::{AGENTS, Bounds, MISSION, Planned, RUNAWAY, share};
use super::provider::Provider;
use super::receiver::{Received, Receiver};
use super::setup::{SECRET, Setup, throttle_for};
use super::trace::{fit, invented, load};
use crate::app::{self, Running, Source};
use crate::clock::Clock;

/// How long the planned traffic is before it starts over.
const CYCLE: Duration = Duration::from_secs(100);
/// Calls in a minute of the trace of our own.
const CALLS_PER_MINUTE: f64 = 110.0;
/// Most calls of a recorded trace that are made in one cycle.
const TRACE_CALLS: usize = 200;

/// The background traffic, and the rule's numbers for it.
#[derive(Debug)]
pub(super) struct Traffic {
    plans: [Vec<Planned>; 5],
    pub(super) bounds: Bounds,
    /// Where it comes from, for people.
    pub(super) about: String,
}

impl Traffic {
    /// From a recorded trace, or of our own making.
    ///
    /// # Errors
    /// What is wrong with the trace, with its line.
    pub(super) fn new(trace: Option<&Path>, seed: u64) -> Result<Self, String> {
        let Some(path) = trace else {
            let plans = share(&invented(seed, CYCLE, CALLS_PER_MINUTE), seed);
            return Ok(Self {
                plans,
                bounds: MISSION,
                about: "bursty, with lengths like those of published LLM workload traces".to_owned(),
            });
        };
        let rows = load(path)?;
        let fitted = fit(&rows, CYCLE, TRACE_CALLS);
        let plans = share(&fitted.rows, seed);
        Ok(Self {
            bounds: Bounds::around(&plans),
            plans,
            about: format!(
                "{}: {} calls, one in {} of them replayed, time {:.1} × as fast",
                path.display(),
                rows.len(),
                fitted.every,
                fitted.faster
            ),
        })
    }
}

/// Everything that runs.
pub(super) struct Stage {
    pub(super) clock: Clock,
    pub(super) setup: Setup,
    pub(super) about: String,
    pub(super) provider: Provider,
    pub(super) fusebox: Running,
    /// Where agents call.
    pub(super) proxy: String,
    pub(super) agents: Agents,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) webhooks: mpsc::Receiver<Received>,
    pub(super) receiver: Receiver,
}

/// The agents, once they are started; they stop when dropped.
pub(super) struct Agents {
    world: World,
    plans: [Vec<Planned>; 5],
    scale: f64,
    runaway: watch::Sender<bool>,
    living: JoinSet<()>,
}

impl Stage {
    /// Builds and starts all of it but the agents.
    ///
    /// # Errors
    /// One line for a person.
    pub(super) async fn build(traffic: Traffic, seed: u64, speed: f64) -> Result<Self, String> {
        let clock = Clock::system();
        let provider = Provider::start(seed, speed, clock.clone()).await?;
        let (arrived, webhooks) = mpsc::channel(64);
        let receiver = Receiver::start(SECRET, arrived).await?;
        let setup = Setup {
            bounds: traffic.bounds,
            tokens_per_minute: throttle_for(
                &traffic.plans,
                CYCLE.as_secs_f64() / 60.0,
                traffic.bounds.scale(),
            ),
            provider: provider.addr,
            receiver: receiver.addr,
        };
        let fusebox = app::start(setup.compile()?, Source::Fixed, clock.clone()).await?;
        let proxy = fusebox
            .listeners
            .first()
            .cloned()
            .ok_or("fusebox listens nowhere")?;
        let (told, events) = mpsc::channel(1024);
        let (runaway, _) = watch::channel(false);
        let agents = Agents {
            world: World {
                address: proxy.clone(),
                clock: clock.clone(),
                seed,
                branches: branches(speed),
                events: told,
            },
            plans: traffic.plans,
            scale: traffic.bounds.scale(),
            runaway,
            living: JoinSet::new(),
        };
        Ok(Self {
            clock,
            setup,
            about: traffic.about,
            provider,
            fusebox,
            proxy,
            agents,
            events,
            webhooks,
            receiver,
        })
    }
}

impl Agents {
    /// Agents that are never started.
    #[cfg(test)]
    pub(super) fn idle(clock: Clock) -> Self {
        Self {
            world: World {
                address: String::new(),
                clock,
                seed: 1,
                branches: 1,
                events: mpsc::channel(1).0,
            },
            plans: Default::default(),
            scale: 1.0,
            runaway: watch::channel(false).0,
            living: JoinSet::new(),
        }
    }

    /// Whether one of them was told to run away.
    #[cfg(test)]
    pub(super) fn is_away(&self) -> bool {
        *self.runaway.borrow()
    }

    /// Starts their work.
    pub(super) fn start(&mut self) {
        for (agent, plan) in AGENTS.iter().zip(std::mem::take(&mut self.plans)) {
            let runaway = if agent.name == RUNAWAY {
                self.runaway.subscribe()
            } else {
                watch::channel(false).1
            };
            self.living
                .spawn(live(self.world.clone(), *agent, plan, CYCLE, self.scale, runaway));
        }
    }

    /// Makes one agent run away, or come back.
    pub(super) fn run_away(&self, on: bool) {
        self.runaway.send_replace(on);
    }
}

/// One loop at four times the speed of real models; more when they are slower.
fn branches(speed: f64) -> usize {
    [(1.2, 4), (2.0, 3), (3.5, 2)]
        .into_iter()
        .find_map(|(below, branches)| (speed < below).then_some(branches))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_traffic_is_judged_by_the_missions_numbers() {
        let traffic = Traffic::new(None, 1).unwrap();
        assert_eq!(traffic.bounds, MISSION);
        assert!(traffic.plans.iter().all(|p| !p.is_empty()));
    }

    #[test]
    fn a_recorded_trace_is_fitted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.csv");
        let rows: String = (0..4000)
            .map(|i| format!("{},{},60\n", i * 500, 100 + i % 900))
            .collect();
        std::fs::write(&path, format!("t_ms,input_tokens,output_tokens\n{rows}")).unwrap();
        let traffic = Traffic::new(Some(&path), 1).unwrap();
        assert_eq!(traffic.plans.iter().map(Vec::len).sum::<usize>(), TRACE_CALLS);
        assert!(
            traffic.about.contains("4000 calls, one in 20"),
            "{}",
            traffic.about
        );
        assert!(Traffic::new(Some(dir.path()), 1).is_err());
    }
}
