//! The story: calm, explosion, incident, throttle, repair, release; told as it happens.

use std::time::Duration;

use tokio::time::{interval, timeout};

use super::super::{FAILED, OK};
use super::chart::si;
use super::ending::{Ending, UNDER_WAY};
use super::figures::{median, per_minute, tokens};
use super::hearing::Heard;
use super::ledger::Bill;
use super::plan::{AGENTS, RUNAWAY};
use super::provider::Provider;
use super::stage::{Agents, Stage};
use super::timeline::{Tag, Timeline};
use super::watch::Watch;
use crate::clock::Clock;
use crate::control::handle::Handle;
use crate::incident::record::IncidentRecord;
use crate::types::time::{Mono, Now, Wall};

/// Ended by Ctrl-C before the end, as shells put it.
const INTERRUPTED: u8 = 130;
/// Calm before the explosion.
const CALM: Duration = Duration::from_secs(15);
/// How long an incident may take to be opened and acted upon.
const DETECT_LIMIT: Duration = Duration::from_secs(30);
/// How long the runaway goes on under the directives, so that their effect is seen.
const UNDER: Duration = Duration::from_secs(24);
/// What is shown after the release.
const AFTERWARDS: Duration = Duration::from_secs(8);
/// The end, whatever happened until then.
const LIMIT: Duration = Duration::from_secs(98);
/// Over how long the rates of the traffic line are taken.
const RECENT: Duration = Duration::from_secs(10);
/// How long a stop may take.
const STOP: Duration = Duration::from_secs(3);

/// Where the story is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Calm,
    Exploding,
    Under,
    Repaired,
    Released,
    Over,
}

/// Why the telling ended.
enum Why {
    Over,
    Interrupted,
    Broken(String),
}

/// When things happened, as far as they did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Times {
    pub(super) exploded: Option<Now>,
    pub(super) acted: Option<Now>,
    pub(super) repaired: Option<Now>,
    pub(super) released: Option<Now>,
}

struct Story {
    clock: Clock,
    timeline: Timeline,
    start: Now,
    phase: Phase,
    times: Times,
    watch: Watch,
    heard: Heard,
    next_line: Mono,
    unheard: bool,
}

/// Tells the story to its end (with `keep_running`: until Ctrl-C) and says how the command ends.
pub(super) async fn tell(stage: Stage, keep_running: bool) -> u8 {
    let Stage {
        clock,
        setup,
        about,
        provider,
        mut fusebox,
        proxy,
        mut agents,
        mut events,
        mut webhooks,
        receiver: _receiver,
    } = stage;
    let mut story = Story::begin(clock.clone());
    let addresses = Addresses {
        provider: provider.addr.to_string(),
        proxy,
        admin: fusebox.admin.clone(),
    };
    story.introduce(&addresses, &about, &setup.rules());
    agents.start();
    let handle = fusebox.handle.clone();
    let mut tick = interval(Duration::from_millis(200));
    let mut summed_up: Option<u8> = None;
    let why = loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => break Why::Interrupted,
            why = fusebox.failed() => break Why::Broken(why),
            Some(event) = events.recv() => story.heard.hear(event, &story.timeline),
            Some(received) = webhooks.recv() => {
                // What it tells of has its own line, before it.
                story.look(&handle).await;
                story.heard.receive(received, &story.timeline);
            }
            _ = tick.tick() => {
                story.look(&handle).await;
                story.go_on(&provider, &agents);
                if story.timeline.is_gone() {
                    break Why::Over;
                }
                if story.phase == Phase::Over && summed_up.is_none() {
                    summed_up = Some(story.sum_up(&provider));
                    if !keep_running {
                        break Why::Over;
                    }
                    story.invite(&addresses);
                    story.timeline.plain("\nEverything keeps running. Ctrl-C ends it.");
                }
            }
        }
    };
    let code = match (why, summed_up) {
        (Why::Over | Why::Interrupted, Some(code)) => code,
        (Why::Over, None) => FAILED,
        (Why::Interrupted, None) => {
            story.timeline.plain("\nStopped before the end of the story.");
            INTERRUPTED
        }
        (Why::Broken(why), _) => {
            story.timeline.plain(&format!("\nfusebox failed: {why}"));
            FAILED
        }
    };
    if summed_up.is_some() && !keep_running {
        story.invite_again(&addresses);
    }
    drop(agents);
    let hurry = async {
        tokio::signal::ctrl_c().await.ok();
    };
    if let Err(why) = fusebox.stop(STOP, hurry).await {
        story
            .timeline
            .plain(&format!("fusebox did not stop cleanly: {why}"));
        return FAILED;
    }
    code
}

/// Where things are.
struct Addresses {
    provider: String,
    proxy: String,
    admin: String,
}

impl Story {
    fn begin(clock: Clock) -> Self {
        let start = clock.now();
        Self {
            timeline: Timeline::start(clock.clone()),
            clock,
            start,
            phase: Phase::Calm,
            times: Times::default(),
            watch: Watch::default(),
            heard: Heard::default(),
            next_line: start.mono.after(Duration::from_secs(4)),
            unheard: false,
        }
    }

    fn introduce(&self, addresses: &Addresses, about: &str, rules: &str) {
        let t = &self.timeline;
        t.heading("fusebox demo: an agent runs away, is caught, slowed down, and let go again");
        t.plain(
            "Everything happens inside this process: no API key is used, and nothing leaves this machine.",
        );
        t.plain("");
        t.plain(&format!(
            "  agents       {}",
            AGENTS.map(|a| format!("{} ({})", a.name, a.model)).join(", ")
        ));
        t.plain(&format!("  traffic      {about}"));
        t.plain(&format!(
            "  proxy        http://{}/v1  (this is all that an agent needs to know)",
            addresses.proxy
        ));
        t.plain(&format!(
            "  provider     http://{}  (simulated: real wire shapes, made-up text)",
            addresses.provider
        ));
        t.plain(&format!(
            "  admin        http://{}  (/status, /incidents, /agents, /metrics; while this runs)",
            addresses.admin
        ));
        t.plain("");
        t.plain("  The rules are the mission's. Only the first one's times are shortened, so that you need not wait for");
        t.plain("  five minutes, and its action is written out:");
        for line in rules.lines() {
            t.plain(&format!("    {line}"));
        }
        t.plain("");
    }

    /// Asks fusebox for its incidents, and tells what is new.
    async fn look(&mut self, handle: &Handle) {
        match timeout(Duration::from_secs(2), handle.incidents()).await {
            Ok(Ok(records)) => {
                self.take(&records);
                self.unheard = false;
            }
            // Told once, not at every look.
            _ if !self.unheard => {
                self.unheard = true;
                self.timeline
                    .tell(Tag::Story, "fusebox does not say how its incidents are");
            }
            _ => {}
        }
    }

    fn take(&mut self, records: &[IncidentRecord]) {
        for (tag, text) in self.watch.look(records) {
            self.timeline.tell(tag, &text);
        }
    }

    /// Moves the story on when it is time.
    fn go_on(&mut self, provider: &Provider, agents: &Agents) {
        let now = self.clock.now();
        let since = |then: Option<Now>| then.map_or(Duration::ZERO, |then| now.mono.since(then.mono));
        match self.phase {
            Phase::Calm if now.mono.since(self.start.mono) >= CALM => {
                self.times.exploded = Some(now);
                self.timeline.tell(
                    Tag::Story,
                    &format!(
                        "{RUNAWAY} starts to loop: one execution, and each answer goes into its next prompt"
                    ),
                );
                agents.run_away(true);
                self.phase = Phase::Exploding;
            }
            Phase::Exploding if self.watch.case.throttled && self.watch.case.downgraded => {
                self.times.acted = self.watch.case.acted.map(|wall| self.at(wall));
                self.phase = Phase::Under;
            }
            Phase::Exploding if since(self.times.exploded) > DETECT_LIMIT => {
                self.phase = Phase::Over;
            }
            Phase::Under if since(self.times.acted) >= UNDER => {
                self.times.repaired = Some(now);
                self.timeline.tell(
                    Tag::Story,
                    &format!("somebody repairs {RUNAWAY} and restarts it: it works as it did before"),
                );
                agents.run_away(false);
                self.phase = Phase::Repaired;
            }
            Phase::Repaired if self.watch.case.resolved.is_some() => {
                self.times.released = self.watch.case.resolved.map(|wall| self.at(wall));
                self.timeline.tell(
                    Tag::Released,
                    &format!("{RUNAWAY} is free again: nothing of the incident is in force"),
                );
                self.phase = Phase::Released;
            }
            Phase::Released if self.watch.case.resolved.is_none() => {
                self.times.released = None;
                self.phase = Phase::Repaired;
            }
            Phase::Released if since(self.times.released) >= AFTERWARDS => self.phase = Phase::Over,
            _ => {}
        }
        if self.phase != Phase::Over && now.mono.since(self.start.mono) >= LIMIT {
            self.phase = Phase::Over;
        }
        if now.mono >= self.next_line {
            let pause = if self.phase == Phase::Over { 20 } else { 4 };
            self.next_line = now.mono.after(Duration::from_secs(pause));
            self.traffic(provider, now.mono);
        }
    }

    /// The moment of a wall-clock time of this process, on both clocks.
    fn at(&self, wall: Wall) -> Now {
        let ms = wall.unix_millis().saturating_sub(self.start.wall.unix_millis());
        let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        Now {
            mono: self.start.mono.after(since),
            wall,
        }
    }

    fn traffic(&mut self, provider: &Provider, now: Mono) {
        let from = now.before(RECENT).max(self.start.mono);
        let bills = provider.bills(from);
        let minutes = now.since(from).as_secs_f64().max(1.0) / 60.0;
        let all: f64 = bills.iter().map(tokens).sum();
        self.heard.latencies.retain(|(at, _)| *at >= from);
        let latencies = self.heard.latencies.iter().map(|(_, latency)| *latency).collect();
        let p50 = median(latencies).map_or_else(
            || "–".to_owned(),
            |latency| format!("{:.2} s", latency.as_secs_f64()),
        );
        let own: f64 = of_runaway(&bills).map(tokens).sum();
        self.timeline.tell(
            Tag::Traffic,
            &format!(
                "{:.0} calls/min · {} tokens/min · p50 {p50} · {RUNAWAY} {} tokens/min",
                bills.len() as f64 / minutes,
                si(all / minutes),
                si(own / minutes)
            ),
        );
        if let (Phase::Under, Some(exploded), Some(acted)) =
            (self.phase, self.times.exploded, self.times.acted)
            && now.since(acted.mono) >= Duration::from_secs(8)
        {
            let bills = provider.bills(exploded.mono);
            let before = per_minute(of_runaway(&bills), exploded.mono, acted.mono, tokens);
            let under = per_minute(of_runaway(&bills), acted.mono.after(UNDER_WAY), now, tokens);
            self.timeline.tell(
                Tag::Effect,
                &format!(
                    "{RUNAWAY}: {} tokens/min before the throttle, {} since",
                    si(before),
                    si(under)
                ),
            );
        }
    }

    /// Prints the summary and says how the command ends.
    fn sum_up(&self, provider: &Provider) -> u8 {
        let ending = Ending {
            bills: provider.bills(self.start.mono),
            start: self.start,
            end: self.clock.now(),
            times: self.times,
            case: &self.watch.case,
            others: self.watch.others,
            heard: &self.heard,
        };
        ending.print(&self.timeline);
        let missing = ending.missing();
        if missing.is_empty() {
            return OK;
        }
        self.timeline
            .heading("The story did not happen as it should have:");
        for line in missing {
            self.timeline.plain(&format!("  - {line}"));
        }
        FAILED
    }

    fn invite(&self, addresses: &Addresses) {
        let t = &self.timeline;
        t.heading("Have a look");
        let Addresses {
            admin,
            proxy,
            provider: _,
        } = addresses;
        t.plain(&format!("  curl http://{admin}/status"));
        t.plain(&format!("  curl http://{admin}/incidents"));
        t.plain(&format!("  curl http://{admin}/agents/{RUNAWAY}"));
        t.plain(&format!("  curl http://{admin}/metrics"));
        t.plain(&format!(
            "  curl http://{proxy}/v1/chat/completions -H 'content-type: application/json' -H 'x-agent-id: me' \\\n    \
             -d '{{\"model\":\"gpt-4o\",\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'"
        ));
    }

    /// Without `--keep-running` the addresses are gone in a moment: says how to have them.
    fn invite_again(&self, addresses: &Addresses) {
        self.timeline.plain(&format!(
            "\nTo look around at http://{} (/status, /incidents, /agents, /metrics): fusebox demo --keep-running",
            addresses.admin
        ));
    }
}

/// Bills of the runaway agent.
pub(super) fn of_runaway(bills: &[Bill]) -> impl Iterator<Item = &Bill> {
    bills.iter().filter(|b| b.account == RUNAWAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::watch::sample;
    use crate::incident::record::IncidentState;
    use crate::types::directive::Order;

    fn start() -> Now {
        Now {
            mono: Mono::from_millis(5_000),
            wall: Wall::from_unix_millis(1_000_000),
        }
    }

    #[test]
    fn wall_clock_times_are_placed_on_the_story() {
        let story = Story::begin(Clock::manual(start()));
        let at = story.at(Wall::from_unix_millis(1_002_500));
        assert_eq!(at.mono, Mono::from_millis(7_500));
        assert_eq!(story.at(Wall::from_unix_millis(1)).mono, Mono::from_millis(5_000));
    }

    /// A story with everything that it needs, on a clock that is moved by hand.
    struct Played {
        clock: Clock,
        story: Story,
        provider: Provider,
        agents: Agents,
    }

    impl Played {
        async fn new() -> Self {
            let clock = Clock::manual(start());
            let mut story = Story::begin(clock.clone());
            story.timeline = Timeline::silent(clock.clone());
            Self {
                story,
                provider: Provider::start(1, 1.0, clock.clone()).await.unwrap(),
                agents: Agents::idle(clock.clone()),
                clock,
            }
        }

        fn after(&mut self, seconds: u64) -> Phase {
            self.clock.advance(Duration::from_secs(seconds));
            self.story.go_on(&self.provider, &self.agents);
            self.story.phase
        }
    }

    fn run<T>(test: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test)
    }

    #[test]
    fn the_story_goes_its_way() {
        run(async {
            let mut played = Played::new().await;
            assert_eq!(played.after(14), Phase::Calm);
            assert_eq!(played.after(1), Phase::Exploding);
            assert!(played.agents.is_away());
            let mut record = sample::record("i1", RUNAWAY, IncidentState::Open, &["opened"]);
            played.story.take(std::slice::from_ref(&record));
            assert_eq!(played.after(1), Phase::Exploding, "nothing is in force yet");
            record.directives = vec![
                sample::directive(Order::Throttle {
                    requests_per_minute: None,
                    tokens_per_minute: Some(1),
                }),
                sample::directive(Order::DowngradeModel { to: None }),
            ];
            for directive in &mut record.directives {
                directive.since = played.clock.wall();
            }
            played.story.take(std::slice::from_ref(&record));
            assert_eq!(played.after(1), Phase::Under);
            assert_eq!(played.after(22), Phase::Under);
            assert_eq!(played.after(2), Phase::Repaired);
            assert!(!played.agents.is_away());
            record.state = IncidentState::Resolved;
            record.resolved = Some(played.clock.wall());
            played.story.take(std::slice::from_ref(&record));
            assert_eq!(played.after(1), Phase::Repaired, "something is still in force");
            record.directives.clear();
            played.story.take(std::slice::from_ref(&record));
            assert_eq!(played.after(1), Phase::Released);
            assert_eq!(played.after(8), Phase::Over);
        });
    }

    #[test]
    fn a_story_without_an_incident_ends_and_says_so() {
        run(async {
            let mut played = Played::new().await;
            assert_eq!(played.after(15), Phase::Exploding);
            assert_eq!(played.after(31), Phase::Over);
            assert_eq!(played.story.sum_up(&played.provider), FAILED);
        });
    }

    #[test]
    fn no_story_goes_on_for_ever() {
        run(async {
            let mut played = Played::new().await;
            let mut record = sample::record("i1", RUNAWAY, IncidentState::Open, &["opened"]);
            record.directives = vec![
                sample::directive(Order::Throttle {
                    requests_per_minute: None,
                    tokens_per_minute: Some(1),
                }),
                sample::directive(Order::DowngradeModel { to: None }),
            ];
            played.after(15);
            played.story.take(&[record]);
            let mut seconds = 15;
            while played.after(1) != Phase::Over {
                seconds += 1;
                assert!(seconds < 100);
            }
            assert_eq!(played.story.sum_up(&played.provider), FAILED);
        });
    }
}
