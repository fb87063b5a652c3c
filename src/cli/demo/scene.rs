//! Plays a scenario: providers, fusebox and agents in this process, and what happens told on the timeline.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use super::super::{FAILED, OK};
use super::agents::{Event, What, World, planned_call};
use super::hearing::Heard;
use super::plan::{AGENTS, Agent, Planned};
use super::provider::Provider;
use super::receiver::Receiver;
use super::scenario::{Act, DEPLOYED, LOOPING, Scene, Version, WRONG_MODEL};
use super::setup::SECRET;
use super::timeline::{Tag, Timeline};
use super::watch::Watch;
use crate::app::{self, Source};
use crate::clock::Clock;
use crate::config::{self, Compiled, Overrides};
use crate::control::handle::Handle;
use crate::incident::record::{IncidentRecord, IncidentState};
use crate::types::time::{Now, Wall};

/// Ended by Ctrl-C before the end, as shells put it.
const INTERRUPTED: u8 = 130;
/// The end, whatever happened until then.
const LIMIT: Duration = Duration::from_secs(105);
/// What is shown after the end of the last incident.
const AFTERWARDS: Duration = Duration::from_secs(4);
/// Between two calls of an agent.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a stop may take.
const STOP: Duration = Duration::from_secs(3);

/// The broken version and the mended one, as [`Mood`] holds them.
const BROKEN: u8 = 1;
const MENDED: u8 = 2;

/// What is wrong with agents.
#[derive(Debug, Default)]
struct Mood {
    looping: AtomicBool,
    /// 0 for v1.
    deployed: AtomicU8,
}

/// What was counted between two lines of traffic, or over all.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    answered: u64,
    backup: u64,
    failed: u64,
    latency: Duration,
}

/// Plays a scene to its end (with `keep_running`: until Ctrl-C) and says how the command ends.
///
/// # Errors
/// One line for a person, when it cannot begin.
pub(super) async fn play(
    scene: &'static Scene,
    seed: u64,
    speed: f64,
    keep_running: bool,
) -> Result<u8, String> {
    let clock = Clock::system();
    let main = Provider::start(seed, speed, clock.clone()).await?;
    let backup = Provider::start(seed ^ 0xb0b, speed, clock.clone()).await?;
    let (arrived, mut webhooks) = mpsc::channel(64);
    let receiver = Receiver::start(SECRET, arrived).await?;
    let hosts = [main.addr, backup.addr, receiver.addr].map(|a| a.to_string());
    let mut fusebox = app::start(compile(scene, &hosts)?, Source::Fixed, clock.clone()).await?;
    let proxy = fusebox
        .listeners
        .first()
        .cloned()
        .ok_or("fusebox listens nowhere")?;
    let timeline = Timeline::start(clock.clone());
    introduce(&timeline, scene, &hosts, &proxy, &fusebox.admin);
    let (told, mut events) = mpsc::channel(1024);
    let mood = Arc::new(Mood::default());
    let world = World {
        address: proxy,
        clock: clock.clone(),
        seed,
        branches: 1,
        events: told,
    };
    let mut agents = JoinSet::new();
    for (number, agent) in AGENTS.iter().enumerate() {
        agents.spawn(work(world.clone(), *agent, number, Arc::clone(&mood)));
    }
    let mut show = Show {
        scene,
        timeline,
        start: clock.now(),
        clock,
        acts: scene.acts.iter(),
        next: None,
        began: None,
        watch: Watch::default(),
        heard: Heard::default(),
        records: Vec::new(),
        recent: Count::default(),
        total: Count::default(),
        told: BTreeSet::new(),
        raised: 0,
        line: 4,
        calm: None,
    };
    show.next = show.acts.next();
    let handle = fusebox.handle.clone();
    let mut tick = interval(Duration::from_millis(200));
    let mut summed_up = None;
    let code = loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => break summed_up.unwrap_or(INTERRUPTED),
            why = fusebox.failed() => {
                show.timeline.plain(&format!("\nfusebox failed: {why}"));
                break FAILED;
            }
            Some(event) = events.recv() => show.hear(event),
            Some(received) = webhooks.recv() => {
                // What it tells of has its own line, before it.
                show.look(&handle).await;
                show.heard.receive(received, &show.timeline);
            }
            _ = tick.tick() => {
                show.look(&handle).await;
                let over = show.go_on(&main, &mood);
                if show.timeline.is_gone() {
                    break FAILED;
                }
                if over && summed_up.is_none() {
                    let code = show.sum_up(&main, &backup);
                    summed_up = Some(code);
                    if !keep_running {
                        break code;
                    }
                    show.timeline.plain("\nEverything keeps running. Ctrl-C ends it.");
                }
            }
        }
    };
    drop(agents);
    let hurry = async {
        tokio::signal::ctrl_c().await.ok();
    };
    if let Err(why) = fusebox.stop(STOP, hurry).await {
        show.timeline
            .plain(&format!("fusebox did not stop cleanly: {why}"));
        return Ok(FAILED);
    }
    Ok(code)
}

/// The scene's configuration, compiled as that of a user.
fn compile(scene: &Scene, [main, backup, receiver]: &[String; 3]) -> Result<Compiled, String> {
    let more = if scene.upstream.is_empty() {
        String::new()
    } else {
        format!(", {}", scene.upstream)
    };
    let yaml = format!(
        "\
upstreams:
  - {{name: main, url: \"http://{main}\", provider: openai, families: []{more}}}
  - {{name: backup, url: \"http://{backup}\", provider: openai, families: []}}
alerts:
  - {{name: on-call, kind: webhook, url: \"http://{receiver}/on-call\", secret: {SECRET}}}
workers: 1
{}",
        scene.yaml
    );
    let overrides = Overrides {
        listen: vec!["127.0.0.1:0".to_owned()],
        admin_listen: Some("127.0.0.1:0".to_owned()),
        ..Overrides::default()
    };
    config::compile("demo", &yaml, &overrides, &|_| None)
        .map_err(|problems| format!("the demo's own configuration has problems:\n{problems}"))
}

fn introduce(t: &Timeline, scene: &Scene, [main, backup, _]: &[String; 3], proxy: &str, admin: &str) {
    t.heading(&format!("fusebox demo: {}", scene.title));
    t.plain("Everything happens inside this process: no API key is used, and nothing leaves this machine.");
    t.plain("");
    t.plain(&format!("  agents       {}", AGENTS.map(|a| a.name).join(", ")));
    t.plain(&format!("  proxy        http://{proxy}/v1"));
    t.plain(&format!(
        "  providers    main http://{main}, backup http://{backup}  (simulated)"
    ));
    t.plain(&format!(
        "  admin        http://{admin}  (/status, /incidents, /agents, /metrics; while this runs)"
    ));
    t.plain("");
    t.plain("  The configuration, with times short enough to be watched:");
    if !scene.upstream.is_empty() {
        t.plain(&format!(
            "    upstreams: [{{name: main, …, {}}}, {{name: backup, …}}]",
            scene.upstream
        ));
    }
    for line in scene.yaml.lines() {
        t.plain(&format!("    {line}"));
    }
    t.plain("");
}

/// One agent: small executions of three calls, one after the other, until dropped.
async fn work(world: World, agent: Agent, number: usize, mood: Arc<Mood>) {
    let mut sdk = world.sdk(&agent, number);
    let mut rng = fastrand::Rng::with_seed(world.seed.wrapping_add(u64::try_from(number).unwrap_or(0)));
    let mut stopped = false;
    tokio::time::sleep(Duration::from_millis(50 * u64::try_from(number).unwrap_or(0))).await;
    for turn in 0_u32.. {
        let planned = Planned {
            at: Duration::ZERO,
            execution: turn / 3 + 1,
            input: rng.u64(60..200),
            output: rng.u64(15..40),
        };
        let mut call = planned_call(&agent, &planned, 0, &mut rng);
        let looping = agent.name == LOOPING && !stopped && mood.looping.load(Ordering::Relaxed);
        if looping {
            call.execution = format!("{LOOPING}-loop");
        }
        let deployed = if agent.name == DEPLOYED {
            mood.deployed.load(Ordering::Relaxed)
        } else {
            0
        };
        sdk.version = Some(match deployed {
            0 => "v1",
            BROKEN => "v2",
            _ => "v3",
        });
        if deployed == BROKEN {
            WRONG_MODEL.clone_into(&mut call.model);
        }
        let answer = world.call(&agent, &mut sdk, &call, None).await;
        // A loop that is stopped ends, as a program does whose call raises what it does not expect.
        stopped |= looping && sdk.last_status == 403;
        tokio::time::sleep(if looping && answer.is_some() {
            PAUSE / 5
        } else {
            PAUSE
        })
        .await;
    }
}

struct Show {
    scene: &'static Scene,
    timeline: Timeline,
    clock: Clock,
    start: Now,
    acts: std::slice::Iter<'static, (u64, Act, &'static str)>,
    next: Option<&'static (u64, Act, &'static str)>,
    /// When the first act was.
    began: Option<Now>,
    watch: Watch,
    heard: Heard,
    records: Vec<IncidentRecord>,
    recent: Count,
    total: Count,
    /// What the proxy said that it did; each told once.
    told: BTreeSet<String>,
    raised: u64,
    /// Second of the next line of traffic.
    line: u64,
    /// Since when all that must happen has happened.
    calm: Option<Now>,
}

impl Show {
    async fn look(&mut self, handle: &Handle) {
        if let Ok(Ok(records)) = timeout(Duration::from_secs(2), handle.incidents()).await {
            for (tag, text) in self.watch.look(&records) {
                self.timeline.tell(tag, &text);
            }
            self.records = records;
        }
    }

    fn hear(&mut self, event: Event) {
        match event.what {
            What::Answered { latency, notes, .. } => {
                let backup = notes.iter().any(|n| n.ends_with("upstream: backup"));
                for count in [&mut self.recent, &mut self.total] {
                    count.answered += 1;
                    count.backup += u64::from(backup);
                    count.latency += latency;
                }
                let did: Vec<&str> = notes
                    .iter()
                    .filter(|n| n.contains("-action: ") || n.contains("-upstream: "))
                    .map(String::as_str)
                    .collect();
                let did = did.join(", ");
                if !did.is_empty() && self.told.len() < 16 && self.told.insert(did.clone()) {
                    self.timeline
                        .tell(Tag::Effect, &format!("{} is answered; {did}", event.agent));
                }
            }
            What::RateLimited { .. } => self.heard.hear(event, &self.timeline),
            What::Raised { status, message } => {
                self.recent.failed += 1;
                self.total.failed += 1;
                self.raised += 1;
                if self.raised <= 4 || status == 403 {
                    let message: String = message.chars().take(140).collect();
                    self.timeline.tell(
                        Tag::Agent,
                        &format!("{}'s SDK raises an error {status}: {message}", event.agent),
                    );
                }
            }
        }
    }

    /// Does what is due, and says whether the scene is over.
    fn go_on(&mut self, main: &Provider, mood: &Mood) -> bool {
        let now = self.clock.now();
        let passed = now.mono.since(self.start.mono);
        while let Some((_, act, words)) = self.next.filter(|(at, _, _)| passed.as_secs() >= *at) {
            self.began.get_or_insert(now);
            self.timeline.tell(Tag::Story, words);
            match *act {
                Act::Fail(on) => main.weather().fail(on),
                Act::Slow(factor) => main.weather().slow(factor),
                Act::Loop => mood.looping.store(true, Ordering::Relaxed),
                Act::Deploy(Version::Broken) => mood.deployed.store(BROKEN, Ordering::Relaxed),
                Act::Deploy(Version::Mended) => mood.deployed.store(MENDED, Ordering::Relaxed),
            }
            self.next = self.acts.next();
        }
        if passed.as_secs() >= self.line {
            self.line += 4;
            let Count {
                answered,
                backup,
                failed,
                latency,
            } = std::mem::take(&mut self.recent);
            let mean = latency.as_secs_f64() / (answered.max(1)) as f64;
            self.timeline.tell(
                Tag::Traffic,
                &format!("4 s: {answered} calls answered in {mean:.2} s on average, {backup} of them by the backup; {failed} failed"),
            );
        }
        if self.next.is_none() && self.missing().is_empty() {
            let since = *self.calm.get_or_insert(now);
            now.mono.since(since.mono) >= AFTERWARDS
        } else {
            self.calm = None;
            passed >= LIMIT
        }
    }

    /// What did not happen, for people.
    fn missing(&self) -> Vec<String> {
        let mut missing: Vec<String> = self
            .scene
            .must
            .iter()
            .filter(|must| !self.events().any(|(_, event, _)| event == **must))
            .map(|must| format!("no incident has “{}” in its timeline", must.replace('_', " ")))
            .collect();
        let subject = self.scene.subject;
        let about = |r: &IncidentRecord| format!("{} {}", r.subject_kind, r.subject) == subject;
        if !self.records.iter().any(about) {
            missing.push(format!("no incident is about {subject}"));
        }
        let open = self.records.iter().filter(|r| r.state != IncidentState::Resolved);
        missing.extend(open.map(|r| format!("the incident about {} is not over", r.subject)));
        missing
    }

    /// When, what and its words, of all incidents.
    fn events(&self) -> impl Iterator<Item = (Wall, &str, &str)> {
        self.records
            .iter()
            .flat_map(|r| &r.timeline)
            .map(|e| (e.at, e.event.as_str(), e.detail.as_str()))
    }

    fn sum_up(&self, main: &Provider, backup: &Provider) -> u8 {
        let t = &self.timeline;
        t.heading("Summary");
        let from = self.began.unwrap_or(self.start).wall.unix_millis();
        let mut events: Vec<_> = self
            .events()
            .filter(|(_, event, _)| {
                *event == "opened" || *event == "merged" || *event == "resolved" || event.starts_with("step_")
            })
            .collect();
        events.sort_by_key(|(at, _, _)| *at);
        for (at, event, detail) in events.iter().take(24) {
            let after = (at.unix_millis() - from) as f64 / 1e3;
            t.plain(&format!(
                "  {after:6.1} s after it began  {:<14} {detail}",
                event.replace('_', " ")
            ));
        }
        let Count {
            answered,
            backup: carried,
            failed,
            ..
        } = self.total;
        t.plain(&format!(
            "  agents       {answered} calls answered, {carried} of them by the backup; {failed} given up"
        ));
        t.plain(&format!(
            "  providers    main got {} requests, backup {}",
            main.requests(),
            backup.requests()
        ));
        let missing = self.missing();
        for what in &missing {
            t.plain(&format!("  missing      {what}"));
        }
        if missing.is_empty() { OK } else { FAILED }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::scenario::Scenario;

    #[test]
    fn the_configurations_have_no_problems() {
        let hosts = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(str::to_owned);
        for name in ["upstream-outage", "runaway-loop", "latency-creep", "bad-deploy"] {
            let scene = Scenario::parse(name).unwrap().scene().unwrap();
            let compiled = compile(scene, &hosts).unwrap_or_else(|why| panic!("{name}: {why}"));
            assert_eq!(compiled.rulebook.rules.len(), 1, "{name}");
        }
    }
}
