//! An engine whose time is the scenario's, and what it has said to the world.

use std::sync::Arc;

use fusebox::incident::effect::Effect;
use fusebox::incident::engine::{Bounds, Engine};
use fusebox::incident::input::{Acted, Input, OperatorAct, Trouble};
use fusebox::incident::record::{ApprovalState, IncidentState};
use fusebox::incident::restore::Remains;
use fusebox::incident::rule::Rulebook;
use fusebox::types::directive::{DirectiveSet, Sender};
use fusebox::types::ids::SilenceId;
use fusebox::types::notice::{Notice, Severity};
use fusebox::types::observation::{IdentitySource, Observation, Outcome};
use fusebox::types::time::{Mono, Now, Wall};
use fusebox::types::usage::{Cost, Normalised, Usage, UsageSource};
use serde_json::Value;

use super::script::{Doing, Seen};
use super::steps;

/// 2026-11-25T10:00:00Z, a Wednesday.
const START: i64 = 1_795_600_800_000;

/// The engine and its surroundings.
pub(super) struct World {
    book: Arc<Rulebook>,
    /// `None`: the process is down.
    engine: Option<Engine>,
    left: Option<Remains>,
    /// Milliseconds of the scenario.
    at: u64,
    /// Monotonic time of this process at the beginning of the scenario; another one in each process.
    origin: u64,
    set: Arc<DirectiveSet>,
    told: Vec<Notice>,
    silence: Option<SilenceId>,
    exchanges: u64,
    out: Vec<Effect>,
}

impl World {
    pub(super) fn new(config: &str) -> Result<Self, String> {
        let book = steps::rulebook(config)?;
        Ok(Self {
            engine: Some(engine(&book)),
            book,
            left: None,
            at: 0,
            origin: 1_000_000,
            set: Arc::default(),
            told: Vec::new(),
            silence: None,
            exchanges: 0,
            out: Vec::new(),
        })
    }

    pub(super) fn now(&self) -> Now {
        Now {
            mono: Mono::from_millis(self.origin + self.at),
            wall: Wall::from_unix_millis(START + self.at as i64),
        }
    }

    pub(super) fn engine(&self) -> &Engine {
        self.engine
            .as_ref()
            .expect("a scenario looks only while the process runs")
    }

    /// Notices since this was asked last.
    pub(super) fn take_told(&mut self) -> Vec<String> {
        self.told.drain(..).map(|n| shown(&n)).collect()
    }

    pub(super) fn pass_to(&mut self, at: u64) {
        self.at = self.at.max(at);
    }

    pub(super) fn tick(&mut self, at: u64) {
        self.pass_to(at);
        self.step(Input::Tick);
    }

    pub(super) fn does(&mut self, doing: Doing) -> Result<(), String> {
        match doing {
            Doing::Observe(seen, n) => {
                let o = self.observation(&seen, n)?;
                self.step(Input::Observation(Box::new(o)));
            }
            Doing::Progress(seen, n) => {
                let o = self.observation(&seen, n)?;
                self.step(Input::Progress(Box::new(o)));
            }
            Doing::Act(act, refused) => self.act(act, refused)?,
            Doing::Reload(text) => {
                self.book = steps::rulebook(&text)?;
                self.step(Input::Rules(Arc::clone(&self.book)));
            }
            Doing::Stop => self.stop(),
            Doing::Start(config) => {
                if let Some(text) = config {
                    self.book = steps::rulebook(&text)?;
                }
                return self.start();
            }
            Doing::Trouble(trouble) => {
                // The words are those of the program, which are static there.
                let what: &'static str = Box::leak(trouble.what.into_boxed_str());
                self.step(Input::Trouble(Trouble {
                    what,
                    detail: trouble.detail,
                }));
            }
            Doing::Expect(_) => {}
        }
        Ok(())
    }

    /// What binds a sender, in the order of the set.
    pub(super) fn orders(&self, whom: &str) -> Vec<String> {
        let (agent, version) = whom.split_once('@').map_or((whom, None), |(a, v)| (a, Some(v)));
        let (agent, execution) = agent.split_once('/').unwrap_or((agent, ""));
        let sender = Sender {
            agent,
            execution,
            version,
        };
        let orders = self.set.of(sender, self.now().mono);
        orders
            .map(|d| {
                let order = serde_json::to_value(&d.order).unwrap_or_default();
                let settings = order.as_object().into_iter().flatten();
                let settings = settings.filter(|(k, v)| !v.is_null() && *k != "kind" && *k != "reason");
                settings.fold(d.order.name().to_owned(), |text, (k, v)| {
                    let v = v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned);
                    format!("{text} {k}={v}")
                })
            })
            .collect()
    }

    /// Everything there is, for whoever has to find out what went wrong.
    pub(super) fn picture(&self) -> String {
        let Some(engine) = &self.engine else {
            return "  (the process is down)".to_owned();
        };
        let mut all = engine.incidents();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        let mut text = String::from("  what there is:\n");
        for i in all {
            let steps: Vec<String> = i
                .plan
                .iter()
                .map(|s| {
                    format!(
                        "{} {}{}",
                        s.step,
                        s.state.name(),
                        if s.why.is_empty() {
                            String::new()
                        } else {
                            format!(" ({})", s.why)
                        }
                    )
                })
                .collect();
            text += &format!(
                "    {:?} {} of {} {} [{}], value {} worst {} now {:?}\n      steps: {}\n",
                i.state,
                i.rule,
                i.subject_kind,
                i.subject,
                i.severity.name(),
                i.value,
                i.worst,
                i.current,
                steps.join("; ")
            );
            for entry in i.timeline.iter().rev().take(14).rev() {
                let at = (entry.at.unix_millis() - START) as f64 / 1000.0;
                text += &format!("      {at:>6} s {:<16} {}\n", entry.event, entry.detail);
            }
        }
        let told: Vec<String> = self.told.iter().map(shown).collect();
        text + &format!("    told, not yet asked about: {told:?}\n")
    }

    fn step(&mut self, input: Input) {
        let now = self.now();
        if let Some(engine) = &mut self.engine {
            engine.step(now, input, &mut self.out);
            self.perform();
        }
    }

    fn perform(&mut self) {
        for effect in self.out.drain(..) {
            match effect {
                Effect::Publish(set) => {
                    assert!(set.generation() > self.set.generation(), "publications count up");
                    self.set = set;
                }
                Effect::Tell(notice) => self.told.push(*notice),
                _ => {}
            }
        }
    }

    fn stop(&mut self) {
        let now = self.now();
        let Some(engine) = self.engine.take() else { return };
        let (mut live, mut closed) = (Vec::new(), Vec::new());
        let mut all = engine.incidents();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        for incident in all {
            match engine.live(&incident.id) {
                Some(text) => live.push(text),
                None => closed.push(incident),
            }
        }
        let agents = engine.agents(now);
        self.left = Some(Remains {
            kept: Some(engine.kept()),
            live,
            closed,
            silences: engine.silences(now),
            versions: agents.into_iter().flat_map(|a| a.versions).collect(),
        });
    }

    fn start(&mut self) -> Result<(), String> {
        // Another process has another monotonic clock.
        self.origin += 77_000_000;
        let mut engine = engine(&self.book);
        let unreadable = engine.restore(self.left.take().unwrap_or_default(), self.now(), &mut self.out);
        self.engine = Some(engine);
        self.perform();
        if unreadable.is_empty() {
            return Ok(());
        }
        Err(format!("cannot be taken up again: {unreadable:?}"))
    }

    fn act(&mut self, mut act: Value, refused: Option<String>) -> Result<(), String> {
        self.resolve(&mut act)?;
        let act: OperatorAct =
            serde_json::from_value(act).map_err(|e| format!("an act that there is not: {e}"))?;
        let now = self.now();
        let Some(engine) = &mut self.engine else {
            return Err("nobody is there to act upon".to_owned());
        };
        let acted = engine.operate(now, act, &mut self.out);
        self.perform();
        match (acted, refused) {
            (Ok(Acted::Silence(id)), None) => self.silence = Some(id),
            (Ok(_), None) => {}
            (Ok(_), Some(why)) => return Err(format!("the act was done, though `{why}` was expected")),
            (Err(e), Some(why)) if e.to_string().contains(&why) => {}
            (Err(e), why) => return Err(format!("the act was refused with `{e}`, expected {why:?}")),
        }
        Ok(())
    }

    /// Puts names in the place of `$incident`, `$approval`, `$lease`, `$silence`, and reads lengths and steps.
    fn resolve(&self, act: &mut Value) -> Result<(), String> {
        let object = act.as_object_mut().ok_or("an act is a mapping")?;
        let respond = object.get("act").is_some_and(|a| a == "respond");
        if respond && !object.contains_key("steps") {
            let name = object.get("action").and_then(Value::as_str).unwrap_or_default();
            let action = self
                .book
                .actions
                .get(name)
                .ok_or_else(|| format!("there is no action {name}"))?;
            object.insert(
                "steps".to_owned(),
                serde_json::to_value(&action.steps).unwrap_or_default(),
            );
        } else if let Some(Value::Array(given)) = object.get_mut("steps") {
            for place in given {
                *place = serde_json::to_value(steps::step(place)?).unwrap_or_default();
            }
        }
        if let Some(length) = object.get_mut("length") {
            *length = serde_json::to_value(steps::time(length)?).unwrap_or_default();
        }
        for value in object.values_mut() {
            let Some(name) = value.as_str().filter(|v| v.starts_with('$')) else {
                continue;
            };
            let (what, of) = name.split_once(' ').unwrap_or((name, ""));
            let engine = self.engine();
            let found: Option<String> = match what {
                // The newest one, of a subject where that is said.
                "$incident" => {
                    let mut all = engine.incidents();
                    all.retain(|i| of.is_empty() || i.subject == of);
                    all.iter().map(|i| i.id.to_string()).max()
                }
                "$approval" => {
                    let mut all = engine.approvals();
                    all.retain(|a| of.is_empty() || a.subject == of);
                    let open = all.iter().find(|a| a.state == ApprovalState::Needed);
                    open.or(all.last()).map(|a| a.id.to_string())
                }
                "$lease" => {
                    let leases = engine.leases();
                    let mut leases = leases.iter().map(|l| &l.directive);
                    let lease = leases.find(|d| of.is_empty() || d.order.name() == of);
                    lease.map(|d| d.lease.to_string())
                }
                "$silence" => self.silence.as_ref().map(ToString::to_string),
                _ => None,
            };
            *value = found
                .ok_or_else(|| format!("there is nothing that {name} could mean"))?
                .into();
        }
        Ok(())
    }

    fn observation(&mut self, seen: &Seen, n: u64) -> Result<Observation, String> {
        self.exchanges += 1;
        let numbered = |text: &str| text.replace("{n}", &n.to_string());
        let agent = match &seen.agent {
            Some(Value::Array(list)) if !list.is_empty() => {
                list.get(n as usize % list.len()).and_then(Value::as_str)
            }
            Some(value) => value.as_str(),
            None => Some("a"),
        };
        let agent = numbered(agent.ok_or("an agent is a name, or a list of names")?);
        let read = |v: &Option<Value>, usual: Value| v.clone().unwrap_or(usual);
        let status = seen.status.unwrap_or(200);
        let outcome = read(
            &seen.outcome,
            if status >= 500 {
                "upstream_error".into()
            } else {
                "complete".into()
            },
        );
        let outcome: Outcome = serde_json::from_value(outcome).map_err(|e| e.to_string())?;
        let source: UsageSource =
            serde_json::from_value(read(&seen.usage, "reported".into())).map_err(|e| e.to_string())?;
        let request = seen
            .request
            .as_deref()
            .map_or_else(|| format!("r-{}", self.exchanges), numbered);
        let duration = seen.duration_ms.unwrap_or(1000.0);
        Ok(Observation {
            request_id: request.as_str().into(),
            time: self.now().wall,
            agent: agent.as_str().into(),
            agent_source: IdentitySource::Header,
            agent_version: seen.version.as_deref().map(|v| numbered(v).as_str().into()),
            execution: seen
                .execution
                .as_deref()
                .map_or_else(|| request.clone(), numbered)
                .as_str()
                .into(),
            execution_source: match &seen.execution {
                Some(_) => IdentitySource::Header,
                None => IdentitySource::Exchange,
            },
            upstream: seen.upstream.as_deref().unwrap_or("openai").into(),
            provider: "openai".into(),
            api: "openai.chat".into(),
            model_requested: Some(seen.model.as_deref().unwrap_or("gpt-5").into()),
            model_served: None,
            status,
            stream: true,
            outcome,
            usage_source: source,
            usage: Usage::default(),
            normalised: Normalised {
                input_total: Some(seen.input.unwrap_or(100)),
                output_total: Some(seen.output.unwrap_or(50)),
            },
            finish_reason: Some(seen.finish_reason.clone().unwrap_or("stop".into())),
            finish_detail: None,
            error_type: None,
            error_code: None,
            tool_calls: seen.tool_calls.iter().flatten().cloned().map(Some).collect(),
            output_chars: Some(200),
            ttfb_ms: Some(seen.ttft_ms.unwrap_or(200.0).min(150.0)),
            ttft_ms: Some(seen.ttft_ms.unwrap_or(200.0)),
            duration_ms: duration,
            overhead_us: 50,
            cost_usd: seen.cost_usd.map(|usd| Cost::from_nanos((usd * 1e9) as u64)),
            may_continue: false,
            actions: Vec::new(),
            ended: self.now().mono,
        })
    }
}

/// How many are not over.
pub(super) fn open(engine: &Engine) -> usize {
    let all = engine.incidents();
    all.iter().filter(|i| i.state != IncidentState::Resolved).count()
}

fn engine(book: &Arc<Rulebook>) -> Engine {
    let bounds = Bounds {
        max_subjects: 1000,
        max_executions: 1000,
        execution_idle_seconds: 600,
        max_closed_incidents: 100,
    };
    Engine::new(Arc::clone(book), bounds)
}

fn shown(notice: &Notice) -> String {
    let event = notice.event.wire_name();
    let event = match event.split_once('.') {
        Some(("incident", event)) => event.to_owned(),
        _ => event.replace('.', "_"),
    };
    let targets = if notice.targets.is_empty() {
        "all".to_owned()
    } else {
        notice.targets.join("+")
    };
    let critical = if notice.severity == Severity::Critical {
        " (critical)"
    } else {
        ""
    };
    format!("{event} {targets}{critical}")
}
