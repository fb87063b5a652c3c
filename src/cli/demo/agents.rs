//! The agents: each makes the calls that are planned for it, and one of them can be made to run away.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::client::{Answer, Call, Sdk, Shape, Told};
use super::filler;
use super::plan::{Agent, Planned};
use crate::clock::Clock;
use crate::types::time::Mono;

/// Calls that an agent has under way at once.
const CONCURRENCY: usize = 3;
/// A call that is late by more than this is left out: a busy agent does not take on more work.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the runaway does after an SDK has given up.
const STUBBORN: Duration = Duration::from_millis(500);

/// Something that an agent noticed, as its SDK saw it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Event {
    pub(super) agent: &'static str,
    pub(super) at: Mono,
    pub(super) what: What,
}

/// What it noticed.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum What {
    /// A call was answered, after the retries that it took.
    Answered {
        latency: Duration,
        model: String,
        tokens: u64,
        /// What the proxy says that it did, as `name: value` of its headers.
        notes: Vec<String>,
        /// Which call of its execution, for the runaway.
        turn: Option<u32>,
    },
    /// A try was refused with 429.
    RateLimited { wait: Option<Duration>, message: String },
    /// The SDK raised: out of retries, or no answer at all.
    Raised { status: u16, message: String },
}

/// What all agents share.
#[derive(Clone)]
pub(super) struct World {
    /// Where the proxy listens.
    pub(super) address: String,
    pub(super) clock: Clock,
    pub(super) seed: u64,
    /// Calls that the runaway makes at once: more of them when the models are slow, so that it runs away all the same.
    pub(super) branches: usize,
    /// Where events go; when it is full they are left out.
    pub(super) events: mpsc::Sender<Event>,
}

impl World {
    fn tell(&self, agent: &'static str, what: What) {
        let at = self.clock.mono();
        self.events.try_send(Event { agent, at, what }).ok();
    }

    /// Makes a call as an SDK does, and tells what came of it; the answer if there was one.
    pub(super) async fn call(
        &self,
        agent: &Agent,
        sdk: &mut Sdk,
        call: &Call,
        turn: Option<u32>,
    ) -> Option<Answer> {
        let from = self.clock.mono();
        let told = |Told::RateLimited { wait, message }| {
            self.tell(agent.name, What::RateLimited { wait, message });
        };
        let (status, message) = match sdk.call(call, told).await {
            Ok(answer) if answer.status == 200 => {
                let tokens = answer.input.unwrap_or(0) + answer.output.unwrap_or(0);
                self.tell(
                    agent.name,
                    What::Answered {
                        latency: self.clock.mono().since(from),
                        model: answer.model.clone(),
                        tokens,
                        notes: answer.notes.clone(),
                        turn,
                    },
                );
                return Some(answer);
            }
            Ok(answer) => (answer.status, answer.text),
            Err(why) => (0, why),
        };
        self.tell(agent.name, What::Raised { status, message });
        None
    }

    pub(super) fn sdk(&self, agent: &Agent, number: usize) -> Sdk {
        let number = u64::try_from(number).unwrap_or(0);
        Sdk::new(self.address.clone(), agent.name, self.seed.wrapping_add(number))
    }
}

/// Makes the planned calls, over and over every `cycle`, until dropped. While `runaway` says so, the agent does
/// something else: it runs away.
pub(super) async fn live(
    world: World,
    agent: Agent,
    plan: Vec<Planned>,
    cycle: Duration,
    scale: f64,
    mut runaway: watch::Receiver<bool>,
) {
    if plan.is_empty() {
        // Nothing to do; but the runaway has its own work.
        while runaway.changed().await.is_ok() {
            if *runaway.borrow_and_update() {
                run_away(&world, &agent, scale, &mut runaway).await;
            }
        }
        return;
    }
    let mut rng =
        fastrand::Rng::with_seed(world.seed ^ u64::from(agent.name.as_bytes().first().copied().unwrap_or(0)));
    let (give_back, mut idle) = mpsc::channel(CONCURRENCY);
    for number in 0..CONCURRENCY {
        give_back.try_send(world.sdk(&agent, number)).ok();
    }
    let mut calls = JoinSet::new();
    let start = world.clock.mono();
    let world = Arc::new(world);
    let mut round = 0_u32;
    loop {
        for planned in &plan {
            let due = start.after(cycle.saturating_mul(round)).after(planned.at);
            tokio::select! {
                () = tokio::time::sleep(due.since(world.clock.mono())) => {}
                Ok(()) = runaway.changed() => {}
            }
            if *runaway.borrow_and_update() {
                calls.abort_all();
                run_away(&world, &agent, scale, &mut runaway).await;
                // The process was restarted: its clients are new.
                while calls.join_next().await.is_some() {}
                while idle.try_recv().is_ok() {}
                for number in 0..CONCURRENCY {
                    give_back.try_send(world.sdk(&agent, number)).ok();
                }
            }
            while calls.try_join_next().is_some() {}
            let Some(mut sdk) = idle.recv().await else {
                return;
            };
            if world.clock.mono().since(due) > PATIENCE {
                give_back.try_send(sdk).ok();
                continue;
            }
            let call = planned_call(&agent, planned, round, &mut rng);
            let (world, give_back) = (Arc::clone(&world), give_back.clone());
            calls.spawn(async move {
                world.call(&agent, &mut sdk, &call, None).await;
                give_back.try_send(sdk).ok();
            });
        }
        round = round.saturating_add(1);
        if cycle < Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

pub(super) fn planned_call(agent: &Agent, planned: &Planned, round: u32, rng: &mut fastrand::Rng) -> Call {
    let wish = if agent.shape == Shape::Embeddings {
        String::new()
    } else {
        wish(planned.output)
    };
    let tail = filler::tokens_of(&wish);
    let mut prompt = filler::text(rng, planned.input.saturating_sub(tail));
    prompt.push_str(&wish);
    Call {
        shape: agent.shape,
        model: agent.model.to_owned(),
        prompt,
        max_output: planned.output.saturating_mul(2).saturating_add(64),
        stream: agent.stream,
        execution: format!("{}-{}-{}", agent.name, round + 1, planned.execution),
    }
}

/// The end of a prompt, which the simulated model obeys.
fn wish(output: u64) -> String {
    format!(" Answer in about {output} tokens.")
}

/// One execution without an end: every answer and a large tool result go into the next prompt. Ends when `runaway`
/// says so, whatever is under way then.
async fn run_away(world: &World, agent: &Agent, scale: f64, runaway: &mut watch::Receiver<bool>) {
    let mut branches = JoinSet::new();
    for branch in 0..world.branches {
        branches.spawn(loop_for_ever(world.clone(), *agent, scale, branch));
    }
    tokio::select! {
        _ = branches.join_next() => {}
        // An error means that the demo is over.
        _ = runaway.wait_for(|on| !on) => {}
    }
}

async fn loop_for_ever(world: World, agent: Agent, scale: f64, branch: usize) {
    let mut sdk = world.sdk(&agent, 99 + branch);
    let mut rng = fastrand::Rng::with_seed(world.seed ^ 0xf1a3);
    let size = |tokens: f64| tokens_of_f64(tokens * scale);
    let mut context = filler::text(&mut rng, size(1_600.0));
    for turn in 1_u32.. {
        let call = Call {
            shape: agent.shape,
            model: agent.model.to_owned(),
            prompt: format!("{context}{}", wish(180)),
            max_output: 1_000,
            stream: agent.stream,
            execution: format!("{}-runaway", agent.name),
        };
        match world.call(&agent, &mut sdk, &call, Some(turn)).await {
            Some(answer) if filler::tokens_of(&context) < size(7_000.0) => {
                context.push_str(&answer.text);
                context.push_str(&filler::text(&mut rng, size(900.0)));
            }
            Some(_) => {}
            None => tokio::time::sleep(STUBBORN).await,
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to a small positive range"
)]
fn tokens_of_f64(tokens: f64) -> u64 {
    tokens.clamp(0.0, 1e6) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::plan::{AGENTS, RUNAWAY};
    use crate::cli::demo::provider::Provider;

    #[test]
    fn a_planned_call_has_the_planned_length() {
        let mut rng = fastrand::Rng::with_seed(1);
        let planned = Planned {
            at: Duration::ZERO,
            execution: 4,
            input: 900,
            output: 70,
        };
        for agent in &AGENTS {
            let call = planned_call(agent, &planned, 0, &mut rng);
            let tokens = filler::tokens_of(&call.prompt);
            assert!((898..=902).contains(&tokens), "{tokens}");
            assert_eq!(call.execution, format!("{}-1-4", agent.name));
        }
    }

    #[test]
    fn an_agent_works_runs_away_and_comes_back() {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let clock = Clock::system();
                let provider = Provider::start(1, 1000.0, clock.clone()).await.unwrap();
                let (events, mut heard) = mpsc::channel(4096);
                let world = World {
                    address: provider.addr.to_string(),
                    clock,
                    seed: 1,
                    branches: 2,
                    events,
                };
                let plan = (0..50)
                    .map(|i| Planned {
                        at: Duration::from_millis(20 * i),
                        execution: 1,
                        input: 100,
                        output: 10,
                    })
                    .collect();
                let agent = AGENTS.iter().find(|a| a.name == RUNAWAY).copied().unwrap();
                let (mood, hears) = watch::channel(false);
                let living = tokio::spawn(live(world, agent, plan, Duration::from_secs(1), 1.0, hears));
                let mut until = async |calm: bool| {
                    let limit = Duration::from_secs(20);
                    tokio::time::timeout(limit, async {
                        while let Some(event) = heard.recv().await {
                            if let What::Answered { turn, tokens, .. } = event.what
                                && (turn.is_none() == calm)
                                && (calm || tokens > 5_000)
                            {
                                return;
                            }
                        }
                        panic!("the agent ended");
                    })
                    .await
                    .unwrap();
                };
                until(true).await;
                mood.send(true).unwrap();
                until(false).await;
                mood.send(false).unwrap();
                until(true).await;
                living.abort();
                let accounts = provider.bills(Mono::ZERO);
                assert!(accounts.iter().all(|b| b.account == RUNAWAY));
            });
    }
}
