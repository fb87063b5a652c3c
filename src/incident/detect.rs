//! One rule at work: its subjects with their windows, and when a breach has lasted long enough to be a finding.

use std::sync::Arc;
use std::time::Duration;

use super::casebook::Serial;
use super::execution::Tally;
use super::gauge::{Followed, Gauge, Judgement, Side};
use super::measure::Reading;
use super::names::Filter;
use super::rule::{GroupBy, Mode, Rule};
use super::window::Window;
use crate::types::time::Mono;

/// A rule at work.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The rule.
    pub(crate) rule: Arc<Rule>,
    /// What it measures.
    pub(crate) gauge: Gauge,
    /// The bucket that is filled now.
    open: Bucket,
    /// Which agents, models and upstreams it covers.
    pub(crate) agents: Filter,
    /// See `agents`.
    pub(crate) models: Filter,
    /// See `agents`.
    pub(crate) upstreams: Filter,
    /// Breaches that lasted, since the start.
    pub(crate) findings: u64,
    /// By the number of the agent, execution, model or upstream; the fleet has number 0.
    slots: Vec<Slot>,
    /// Subjects that time may change, with the bucket before which it does not: those that are not yet due are passed
    /// over without a look at the rest of what is known of them.
    active: Vec<(u32, u64)>,
    /// The bucket at which `active` was walked last.
    walked: u64,
    /// Whether all of them have to be looked at: something was changed from outside.
    revisit: bool,
    /// Subjects in breach that wait for time to pass.
    waiting: Vec<u32>,
}

/// A bucket's number, and the first nanosecond of it and of the one after it: saves a division for each exchange.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    tick: u64,
    from: u64,
    to: u64,
}

#[derive(Debug, Default)]
struct Slot {
    subject: Option<Subject>,
    /// Whether it is in `Watch::active`; stays when the subject goes, since the list is by number.
    listed: bool,
}

/// What a rule knows of one subject.
#[derive(Debug)]
pub(crate) struct Subject {
    /// Everything.
    window: Window,
    /// Without estimates; kept only while there are estimates in the other.
    reported: Option<Box<Window>>,
    /// When and how often it was seen.
    pub(crate) followed: Followed,
    /// The incident about it.
    pub(crate) case: Option<Serial>,
    /// No new incident before.
    pub(crate) quiet_until: Mono,
    breach: Option<Breach>,
}

#[derive(Debug, Clone, Copy)]
struct Breach {
    side: Side,
    since: Mono,
    found: bool,
    /// Whether it is in `Watch::waiting`.
    queued: bool,
}

/// What came of a look at a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing to do, and nothing to wait for.
    Calm,
    /// In breach; time will tell.
    Waiting,
    /// In breach for long enough, since then: an incident is due.
    Finding {
        /// Which side.
        side: Side,
        /// When it began.
        since: Mono,
    },
}

/// What a subject's window says for an open incident.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Seen {
    /// Beyond the threshold, with samples enough.
    Beyond(f64),
    /// Neither beyond nor back.
    Between(Option<f64>),
    /// Back inside the threshold by the hysteresis.
    Back(f64),
    /// No sample is left.
    Nothing,
}

impl Watch {
    /// A rule that has seen nothing.
    pub(crate) fn new(rule: Arc<Rule>) -> Self {
        Self {
            gauge: Gauge::new(&rule),
            open: Bucket::default(),
            agents: Filter::new(&rule.agents),
            models: Filter::new(&rule.models),
            upstreams: Filter::new(&rule.upstreams),
            rule,
            findings: 0,
            slots: Vec::new(),
            active: Vec::new(),
            walked: 0,
            revisit: false,
            waiting: Vec::new(),
        }
    }

    /// Whether what was seen under `old` goes on under the same name as `new`.
    pub(crate) fn goes_on_as(&self, new: &Rule) -> bool {
        let old = &self.rule;
        old.name == new.name
            && old.metric == new.metric
            && old.statistic == new.statistic
            && old.window == new.window
            && old.group_by == new.group_by
    }

    /// Goes on under a changed rule: subjects stay; thresholds are judged anew.
    pub(crate) fn adopt(&mut self, rule: Arc<Rule>) {
        self.revisit = true;
        let before = self.gauge.marks;
        self.gauge = Gauge::new(&rule);
        self.agents = Filter::new(&rule.agents);
        self.models = Filter::new(&rule.models);
        self.upstreams = Filter::new(&rule.upstreams);
        self.rule = rule;
        if let Some(marks) = self.gauge.marks.filter(|m| Some(*m) != before) {
            for subject in self.slots.iter_mut().filter_map(|s| s.subject.as_mut()) {
                subject.window.remark(marks);
                if let Some(reported) = &mut subject.reported {
                    reported.remark(marks);
                }
            }
        }
        if !self.gauge.tells_estimates_apart {
            for subject in self.slots.iter_mut().filter_map(|s| s.subject.as_mut()) {
                subject.reported = None;
            }
        }
    }

    /// The number of the bucket that is filled at `now`.
    #[inline]
    pub(crate) fn tick(&mut self, now: Mono) -> u64 {
        let nanos = now.as_nanos();
        if nanos < self.open.from || nanos >= self.open.to {
            let tick = self.gauge.span.tick(now);
            let width = u64::try_from(self.gauge.span.width().as_nanos()).unwrap_or(u64::MAX);
            let from = tick.saturating_mul(width);
            let to = from.saturating_add(width);
            self.open = Bucket { tick, from, to };
        }
        self.open.tick
    }

    /// The subject with a number, made when it is not there, and the measure to feed it by.
    #[inline]
    pub(crate) fn subject(&mut self, number: u32, now: Mono) -> Option<(&Gauge, &mut Subject)> {
        let at = number as usize;
        if self.slots.len() <= at {
            self.slots.resize_with(at + 1, Slot::default);
        }
        let slot = self.slots.get_mut(at)?;
        if !slot.listed {
            slot.listed = true;
            self.active.push((number, 0));
        }
        let subject = slot.subject.get_or_insert_with(|| Subject::new(now));
        Some((&self.gauge, subject))
    }

    /// Notes a sign of life of a subject that is known, which is no sample; `None` when it is not known.
    pub(crate) fn hear(&mut self, number: u32, now: Mono) -> Option<()> {
        self.slots
            .get_mut(number as usize)?
            .subject
            .as_mut()?
            .touch(now, 0);
        Some(())
    }

    /// The subject with a number, to be changed from outside.
    pub(crate) fn known_mut(&mut self, number: u32) -> Option<&mut Subject> {
        self.revisit = true;
        self.slots.get_mut(number as usize)?.subject.as_mut()
    }

    /// The subject with a number.
    pub(crate) fn known(&self, number: u32) -> Option<&Subject> {
        self.slots.get(number as usize)?.subject.as_ref()
    }

    /// Forgets a subject; gives back the incident that was about it.
    pub(crate) fn drop_subject(&mut self, number: u32) -> Option<Serial> {
        self.slots.get_mut(number as usize)?.subject.take()?.case
    }

    /// All subjects with their numbers.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = (u32, &Subject)> {
        (0_u32..)
            .zip(&self.slots)
            .filter_map(|(n, slot)| Some((n, slot.subject.as_ref()?)))
    }

    /// Subjects that have changed by time alone since this was asked last: those whose samples go out now, and all
    /// whose value moves without that. Subjects that time can no longer change leave the list.
    pub(crate) fn due(&mut self, now: Mono, due: &mut Vec<u32>) {
        let tick = self.gauge.span.tick(now);
        if tick == self.walked || !self.gauge.live {
            return;
        }
        self.walked = tick;
        let slots = &mut self.slots;
        let stays = self.gauge.moves_without_traffic();
        let all = std::mem::take(&mut self.revisit) || self.gauge.moves_between_samples();
        self.active.retain_mut(|(number, not_before)| {
            if *not_before > tick && !all {
                return true;
            }
            let Some(slot) = slots.get_mut(*number as usize) else {
                return false;
            };
            let keep = slot
                .subject
                .as_ref()
                .is_some_and(|s| stays || s.breach.is_some() || !s.window.is_empty());
            slot.listed = keep;
            if keep {
                let expires = slot.subject.as_ref().map_or(0, |s| s.window.expires());
                // An empty window may be filled at any time.
                *not_before = if expires == Window::NEVER { 0 } else { expires };
                if all || expires <= tick {
                    due.push(*number);
                    *not_before = 0;
                }
            }
            keep
        });
    }

    /// Adds the subjects that wait for time to pass, each once; [`Watch::look`] puts them on the list again.
    pub(crate) fn take_waiting(&mut self, waiting: &mut Vec<u32>) {
        self.waiting.sort_unstable();
        self.waiting.dedup();
        for number in self.waiting.drain(..) {
            let slot = self.slots.get_mut(number as usize);
            if let Some(breach) = slot.and_then(|s| s.subject.as_mut()?.breach.as_mut()) {
                breach.queued = false;
                waiting.push(number);
            }
        }
    }

    /// Looks at a subject: its window is rolled to `now` and judged.
    #[inline]
    pub(crate) fn look(&mut self, number: u32, now: Mono) -> Look {
        let tick = self.tick(now);
        let Some(subject) = self
            .slots
            .get_mut(number as usize)
            .and_then(|s| s.subject.as_mut())
        else {
            return Look::Calm;
        };
        subject.roll(tick);
        if subject.case.is_some() {
            return Look::Calm;
        }
        let judgement = self.gauge.judge(subject.window.totals(), &subject.followed, now);
        let Judgement::Beyond(side) = judgement else {
            subject.breach = None;
            return Look::Calm;
        };
        let breach = match &mut subject.breach {
            Some(b) if b.side == side => b,
            other => other.insert(Breach {
                side,
                since: now,
                found: false,
                queued: false,
            }),
        };
        if !breach.queued {
            breach.queued = true;
            self.waiting.push(number);
        }
        if now.since(breach.since) < self.rule.hold {
            return Look::Waiting;
        }
        if !breach.found {
            breach.found = true;
            self.findings = self.findings.saturating_add(1);
        }
        if self.rule.mode == Mode::Shadow || now < subject.quiet_until {
            return Look::Waiting;
        }
        Look::Finding {
            side,
            since: breach.since,
        }
    }

    /// What a subject's window says for an open incident on `side`.
    pub(crate) fn seen(&mut self, number: u32, side: Side, now: Mono) -> Seen {
        let tick = self.gauge.span.tick(now);
        let Some(subject) = self
            .slots
            .get_mut(number as usize)
            .and_then(|s| s.subject.as_mut())
        else {
            return Seen::Nothing;
        };
        subject.roll(tick);
        let gauge = &self.gauge;
        let judgement = gauge.judge(subject.window.totals(), &subject.followed, now);
        let value = gauge.value(&subject.window, &subject.followed, now);
        match (judgement, value) {
            (Judgement::Nothing, _) | (_, None) => Seen::Nothing,
            (Judgement::Beyond(at), Some(value)) if at == side => Seen::Beyond(value),
            (_, Some(value)) if gauge.is_back(value, side) => Seen::Back(value),
            (_, value) => Seen::Between(value),
        }
    }

    /// What a subject's window says of the time since `since`; see [`Gauge::value_since`].
    pub(crate) fn seen_since(
        &mut self,
        number: u32,
        side: Side,
        since: Mono,
        now: Mono,
    ) -> Option<(f64, bool)> {
        let tick = self.gauge.span.tick(now);
        let subject = self
            .slots
            .get_mut(number as usize)
            .and_then(|s| s.subject.as_mut())?;
        subject.roll(tick);
        self.gauge
            .value_since(&subject.window, &subject.followed, side, since, now)
    }

    /// Whether a subject's breach would be one on the counts that the upstream reported alone.
    pub(crate) fn holds_on_reported(&self, number: u32, side: Side, now: Mono) -> bool {
        if !self.gauge.tells_estimates_apart {
            return true;
        }
        let Some(subject) = self.known(number) else {
            return true;
        };
        let Some(reported) = &subject.reported else {
            return true;
        };
        let totals = reported.totals_at(self.gauge.span.tick(now));
        self.gauge.judge(&totals, &subject.followed, now) == Judgement::Beyond(side)
    }

    /// The value of a subject and the samples behind it.
    pub(crate) fn value_of(&self, subject: &Subject, now: Mono) -> (Option<f64>, u64) {
        let totals = subject.window.totals_at(self.gauge.span.tick(now));
        (
            self.gauge.value(&subject.window, &subject.followed, now),
            totals.samples,
        )
    }

    /// How a subject stands without changing anything: the judgement, and how near it is to a threshold.
    pub(crate) fn standing(&self, subject: &Subject, now: Mono) -> (Judgement, f64) {
        let totals = subject.window.totals_at(self.gauge.span.tick(now));
        let judgement = self.gauge.judge(&totals, &subject.followed, now);
        (judgement, self.gauge.closeness(&totals, &subject.followed, now))
    }

    /// What a subject in breach without an incident waits for.
    pub(crate) fn waiting_on(&self, subject: &Subject, now: Mono) -> Option<String> {
        if subject.case.is_some() {
            return None;
        }
        let lasted = subject.breach.map_or(Some(self.rule.hold), |b| {
            self.rule
                .hold
                .checked_sub(now.since(b.since))
                .filter(|left| !left.is_zero())
        });
        if let Some(left) = lasted {
            return Some(format!("for: {} s more", left.as_secs_f64().ceil()));
        }
        if self.rule.mode == Mode::Shadow {
            return Some("mode shadow".to_owned());
        }
        let left = subject.quiet_until.since(now);
        (!left.is_zero()).then(|| format!("cooldown: {} s more", left.as_secs_f64().ceil()))
    }

    /// How long a subject is left in peace after its incident. What an operator closed must not be opened again by the
    /// same samples.
    pub(crate) fn pause(&self, by_human: bool) -> Duration {
        if by_human {
            self.rule.cooldown.max(self.rule.window)
        } else {
            self.rule.cooldown
        }
    }

    /// Whether the subjects are agents, executions and so on.
    pub(crate) fn group_by(&self) -> GroupBy {
        self.rule.group_by
    }
}

impl Subject {
    fn new(now: Mono) -> Self {
        Self {
            window: Window::default(),
            reported: None,
            followed: Followed {
                first: now,
                last: now,
                seen: 0,
            },
            case: None,
            quiet_until: Mono::ZERO,
            breach: None,
        }
    }

    /// It was seen.
    #[inline]
    pub(crate) fn touch(&mut self, now: Mono, samples: u64) {
        self.followed.last = now;
        self.followed.seen = self.followed.seen.saturating_add(samples);
    }

    /// One more value.
    #[inline]
    pub(crate) fn add(&mut self, gauge: &Gauge, tick: u64, reading: Reading, estimate: bool) {
        self.roll(tick);
        let apart = gauge.tells_estimates_apart;
        if apart && estimate && self.reported.is_none() {
            self.reported = Some(Box::new(self.window.clone()));
        }
        if let Some(reported) = &mut self.reported
            && !estimate
        {
            reported.add(tick, reading, 1, gauge.marks);
        }
        self.window.add(tick, reading, 1, gauge.marks);
    }

    /// The value of an execution has changed, from what stood in bucket `old.0`.
    pub(crate) fn replace(
        &mut self,
        gauge: &Gauge,
        tick: u64,
        old: (u64, Tally, Tally),
        new: (Tally, Tally),
    ) {
        self.roll(tick);
        let (at, old_all, old_reported) = old;
        let (all, reported) = new;
        if gauge.tells_estimates_apart && all != reported && self.reported.is_none() {
            self.reported = Some(Box::new(self.window.clone()));
        }
        if let Some(window) = &mut self.reported {
            put(window, gauge, tick, (at, old_reported), reported);
        }
        put(&mut self.window, gauge, tick, (at, old_all), all);
    }

    /// The breach that there is now is not to be found again.
    pub(crate) fn keep_quiet(&mut self, until: Mono) {
        self.case = None;
        self.breach = None;
        self.quiet_until = self.quiet_until.max(until);
    }

    /// Forgets all samples, not the incident.
    pub(crate) fn clear(&mut self, now: Mono) {
        *self = Self {
            case: self.case,
            quiet_until: self.quiet_until,
            ..Self::new(now)
        };
    }

    #[inline]
    fn roll(&mut self, tick: u64) {
        self.window.roll(tick);
        if let Some(reported) = &mut self.reported {
            reported.roll(tick);
            if reported.totals() == self.window.totals() {
                self.reported = None;
            }
        }
    }
}

fn put(window: &mut Window, gauge: &Gauge, tick: u64, old: (u64, Tally), new: Tally) {
    let (at, old) = old;
    let value = |tally: Tally| Reading {
        value: tally.value,
        whole: 1,
    };
    if old.samples > 0 {
        window.remove(at, value(old), old.samples, gauge.marks);
    }
    if new.samples > 0 {
        window.add(tick, value(new), new.samples, gauge.marks);
    }
}
