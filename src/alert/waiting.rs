//! What waits for one target and what it was told: pure bookkeeping, no I/O.

use std::collections::{HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use super::delivery::{DeadLetter, Delivery, Fate, Settled};
use super::queue::TargetStatus;
use super::refresh::Refresh;
use super::{Grouping, Target, TargetKind};
use crate::types::ids::IncidentId;
use crate::types::notice::{Notice, NoticeEvent};
use crate::types::time::{Mono, Now, Wall};

/// Deliveries and incidents that a target remembers, so that none is told twice and every end is told.
const REMEMBERED: usize = 8192;
/// Dead letters that a target keeps.
const DEAD_MAX: usize = 64;
/// Longest wait that a delivery from before a restart may still have to sit out.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// One delivery in the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) delivery: Delivery,
    taken: Mono,
    /// Its age when it was taken: it may be older than this process.
    age: Duration,
    not_before: Mono,
}

/// Everything that changes about a target.
#[derive(Debug)]
pub(super) struct State {
    pub(super) target: Arc<Target>,
    /// Shortest pauses from now on: there is no later for which to wait.
    pub(super) hurry: bool,
    pub(super) last_error: Option<String>,
    /// What is open, for a receiver that wants to be reminded of it.
    pub(super) refresh: Option<Refresh>,
    room: usize,
    queue: VecDeque<Waiting>,
    in_flight: usize,
    taken: Memory<String>,
    open: Memory<IncidentId>,
    dead: VecDeque<DeadLetter>,
    disabled: Option<String>,
    last_message: Option<Mono>,
    delivered: u64,
    failed_attempts: u64,
    dropped: u64,
    last_delivered: Option<Wall>,
}

/// What to do now.
#[derive(Debug)]
pub(super) enum Next {
    /// Send these as one message.
    Send(Vec<Waiting>, Arc<Target>),
    /// Remind the receiver of what is open.
    Remind(Arc<Target>),
    /// Nothing before this.
    Later(Mono),
    /// Nothing at all.
    Nothing,
}

/// The last so many of something.
#[derive(Debug)]
struct Memory<T> {
    order: VecDeque<T>,
    known: HashSet<T>,
}

impl State {
    pub(super) fn new(target: Target, room: usize) -> Self {
        Self {
            refresh: refresh_for(&target),
            target: Arc::new(target),
            hurry: false,
            last_error: None,
            room,
            queue: VecDeque::new(),
            in_flight: 0,
            taken: Memory::default(),
            open: Memory::default(),
            dead: VecDeque::new(),
            disabled: None,
            last_message: None,
            delivered: 0,
            failed_attempts: 0,
            dropped: 0,
            last_delivered: None,
        }
    }

    /// Other settings; what waits stays.
    pub(super) fn retarget(&mut self, target: Target) {
        match (&mut self.refresh, refresh_for(&target)) {
            (Some(old), Some(new)) => old.every(new.interval()),
            (old, new) => *old = new,
        }
        self.target = Arc::new(target);
        self.disabled = None;
    }

    /// Whether the notice is for this target.
    pub(super) fn wants(&self, notice: &Notice) -> bool {
        let named = notice.targets.is_empty() || notice.targets.contains(&self.target.name);
        if !named || !self.target.kind.understands(notice.event) {
            return false;
        }
        let bad_enough = notice.severity >= self.target.min_severity;
        match notice.event {
            // What another system is asked to do is no news to be weighed.
            NoticeEvent::Test | NoticeEvent::RemediationRequested => true,
            // Who heard of the beginning hears of the rest, whatever the severity is by then.
            NoticeEvent::Resolved | NoticeEvent::Acknowledged | NoticeEvent::ApprovalDecided => {
                bad_enough || self.open.knows(&notice.incident)
            }
            NoticeEvent::Opened
            | NoticeEvent::Updated
            | NoticeEvent::Escalated
            | NoticeEvent::ApprovalRequested
            | NoticeEvent::Reopened => bad_enough,
        }
    }

    /// Queues a delivery; what that costs others, or itself, is told. `None` when it was taken before.
    pub(super) fn take(&mut self, delivery: Delivery, now: Now) -> Option<Vec<Settled>> {
        if !self.taken.remember(delivery.id.clone()) {
            return None;
        }
        self.follow(&delivery.notice);
        if let Some(why) = self.disabled.clone() {
            return Some(vec![self.bury(delivery, why, now.wall)]);
        }
        let mut settled = Vec::new();
        if let Some(lost) = self.make_room(&delivery.notice) {
            settled.push(self.bury(lost, no_room(), now.wall));
        }
        let is_end = delivery.notice.event == NoticeEvent::Resolved;
        // Ends may take more room than there is: that many incidents are remembered at most.
        let room = if is_end {
            self.room.max(REMEMBERED)
        } else {
            self.room
        };
        if self.queue.len() + self.in_flight >= room {
            settled.push(self.bury(delivery, no_room(), now.wall));
            return Some(settled);
        }
        let wait = millis(delivery.next_attempt, now.wall).min(WAIT_MAX);
        let wait = match self.grouping(&delivery.notice) {
            Some(group) if delivery.attempts == 0 => wait.max(group.wait),
            _ => wait,
        };
        self.queue.push_back(Waiting {
            taken: now.mono,
            age: millis(now.wall, delivery.created),
            not_before: now.mono.after(wait),
            delivery,
        });
        Some(settled)
    }

    /// Learns what is open without telling anybody.
    pub(super) fn resume(&mut self, notice: &Arc<Notice>, now: Mono) {
        if self.wants(notice) {
            self.follow(notice);
            if let Some(refresh) = &mut self.refresh {
                refresh.learn(notice, now);
            }
        }
    }

    fn follow(&mut self, notice: &Notice) {
        match notice.event {
            NoticeEvent::Resolved => {
                self.open.forget(&notice.incident);
            }
            NoticeEvent::Test => {}
            _ => {
                self.open.remember(notice.incident.clone());
            }
        }
    }

    /// What to do now. Of those tried least often the oldest is sent, but never before an older one of the same
    /// incident: so a notice that the target chokes on holds up nobody else's.
    pub(super) fn next(&mut self, now: Mono) -> Next {
        let remind = self.refresh.as_ref().and_then(Refresh::due);
        let remind = remind.filter(|_| self.disabled.is_none());
        if remind.is_some_and(|at| at <= now) {
            return Next::Remind(Arc::clone(&self.target));
        }
        let spaced = self
            .last_message
            .map_or(Mono::ZERO, |m| m.after(self.target.spacing));
        let mut seen = HashSet::new();
        let mut chosen: Option<(u32, usize)> = None;
        let mut soonest = remind;
        for (at, waiting) in self.queue.iter().enumerate() {
            if !seen.insert(&waiting.delivery.notice.incident) {
                continue;
            }
            let free = waiting.not_before.max(spaced);
            if free > now && !self.hurry {
                soonest = Some(soonest.map_or(free, |s| s.min(free)));
                continue;
            }
            let attempts = waiting.delivery.attempts;
            if chosen.is_none_or(|(fewest, _)| attempts < fewest) {
                chosen = Some((attempts, at));
            }
            if attempts == 0 {
                break;
            }
        }
        let Some((_, chosen)) = chosen else {
            return soonest.map_or(Next::Nothing, Next::Later);
        };
        let batch = self.together(chosen);
        self.last_message = Some(now);
        self.in_flight += batch.len();
        Next::Send(batch, Arc::clone(&self.target))
    }

    /// The chosen one, with others of its sort when they are many.
    fn together(&mut self, chosen: usize) -> Vec<Waiting> {
        let mut places = vec![chosen];
        if let Some(first) = self.queue.get(chosen).map(|w| Arc::clone(&w.delivery.notice))
            && let Some(group) = self.grouping(&first)
        {
            let mut seen = HashSet::new();
            let mut alike_ones = Vec::new();
            for (at, waiting) in self.queue.iter().enumerate() {
                let notice = &waiting.delivery.notice;
                if seen.insert(&notice.incident) && alike(notice, &first) {
                    alike_ones.push(at);
                }
            }
            let subjects: HashSet<&str> = alike_ones
                .iter()
                .filter_map(|at| self.queue.get(*at))
                .map(|w| w.delivery.notice.subject.as_str())
                .collect();
            if subjects.len() > group.more_than {
                places = alike_ones;
            }
        }
        // From behind, so that places stay true.
        let mut batch: Vec<Waiting> = places
            .iter()
            .rev()
            .filter_map(|&at| self.queue.remove(at))
            .collect();
        batch.reverse();
        batch
    }

    fn grouping(&self, notice: &Notice) -> Option<Grouping> {
        let groupable = matches!(
            notice.event,
            NoticeEvent::Opened
                | NoticeEvent::Updated
                | NoticeEvent::Escalated
                | NoticeEvent::Resolved
                | NoticeEvent::Reopened
        );
        self.target
            .group
            .filter(|g| groupable && self.target.kind.is_chat() && !g.wait.is_zero())
    }

    /// The target took them.
    pub(super) fn delivered(
        &mut self,
        batch: Vec<Waiting>,
        partly: Option<String>,
        at: Wall,
    ) -> Vec<Settled> {
        self.in_flight = self.in_flight.saturating_sub(batch.len());
        self.delivered += batch.len() as u64;
        self.last_delivered = Some(at);
        if partly.is_some() {
            self.last_error = partly;
        }
        batch
            .iter()
            .map(|w| settled(&w.delivery, at, Fate::Delivered))
            .collect()
    }

    /// The target will never take them; `gone` when it will never take any.
    pub(super) fn refused(&mut self, batch: Vec<Waiting>, why: &str, gone: bool, at: Wall) -> Vec<Settled> {
        self.in_flight = self.in_flight.saturating_sub(batch.len());
        self.failed_attempts += 1;
        self.last_error = Some(why.to_owned());
        let mut lost = batch;
        if gone {
            let why = format!(
                "{why}; nothing more is sent there until its settings change or its dead letters are sent again"
            );
            self.disabled = Some(why);
            lost.extend(self.queue.drain(..));
        }
        lost.into_iter()
            .map(|w| self.bury(w.delivery, why.to_owned(), at))
            .collect()
    }

    /// The attempt failed; those that are too old by the next one are given up. They had been the first of their
    /// incidents, so the front is a right place for the rest.
    pub(super) fn failed(
        &mut self,
        batch: Vec<Waiting>,
        why: &str,
        pause: Duration,
        now: Now,
    ) -> Vec<Settled> {
        self.in_flight = self.in_flight.saturating_sub(batch.len());
        self.failed_attempts += 1;
        self.last_error = Some(why.to_owned());
        let next = now.wall.after(pause);
        let mut told = Vec::with_capacity(batch.len());
        for mut waiting in batch.into_iter().rev() {
            let age = waiting.age.saturating_add(now.mono.since(waiting.taken));
            waiting.delivery.attempts = waiting.delivery.attempts.saturating_add(1);
            waiting.delivery.next_attempt = next;
            if age.saturating_add(pause) >= self.target.give_up_after {
                let why = format!("{why}; given up after {} attempts", waiting.delivery.attempts);
                told.push(self.bury(waiting.delivery, why, now.wall));
                continue;
            }
            let fate = Fate::Failed {
                attempts: waiting.delivery.attempts,
                next_attempt: next,
                error: why.to_owned(),
            };
            told.push(settled(&waiting.delivery, now.wall, fate));
            self.queue.push_front(waiting);
        }
        told.reverse();
        told
    }

    fn bury(&mut self, delivery: Delivery, why: String, at: Wall) -> Settled {
        self.dropped += 1;
        self.last_error = Some(why.clone());
        let told = settled(&delivery, at, Fate::Dead { why: why.clone() });
        self.lay(DeadLetter { delivery, why, at });
        told
    }

    /// Keeps a dead letter.
    pub(super) fn lay(&mut self, letter: DeadLetter) {
        self.taken.remember(letter.delivery.id.clone());
        self.dead.push_back(letter);
        if self.dead.len() > DEAD_MAX {
            self.dead.pop_front();
        }
    }

    /// Queues all dead letters again, as if they were new, and lets a target that was gone try once more.
    pub(super) fn revive(&mut self, now: Now) -> Vec<Delivery> {
        self.disabled = None;
        let mut revived = Vec::new();
        while self.queue.len() + self.in_flight < self.room
            && let Some(DeadLetter { mut delivery, .. }) = self.dead.pop_front()
        {
            delivery.created = now.wall;
            delivery.next_attempt = now.wall;
            delivery.attempts = 0;
            self.queue.push_back(Waiting {
                delivery: delivery.clone(),
                taken: now.mono,
                age: Duration::ZERO,
                not_before: now.mono,
            });
            revived.push(delivery);
        }
        revived
    }

    /// Ends for good: what waits is dead.
    pub(super) fn abandon(&mut self, why: &str, at: Wall) -> Vec<Settled> {
        let queue = std::mem::take(&mut self.queue);
        queue
            .into_iter()
            .map(|w| self.bury(w.delivery, why.to_owned(), at))
            .collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight == 0
    }

    pub(super) fn status(&self) -> TargetStatus {
        TargetStatus {
            name: self.target.name.clone(),
            kind: self.target.kind.name().to_owned(),
            queued: (self.queue.len() + self.in_flight) as u64,
            delivered: self.delivered,
            failed_attempts: self.failed_attempts,
            dropped: self.dropped,
            last_error: self.last_error.clone(),
            last_delivered: self.last_delivered,
            disabled: self.disabled.clone(),
            dead_letters: self.dead.iter().map(DeadLetter::view).collect(),
        }
    }

    /// Makes room for `new` when there is none: the oldest that is no end goes, and nothing goes for want of one.
    fn make_room(&mut self, new: &Notice) -> Option<Delivery> {
        if self.queue.len() + self.in_flight < self.room {
            return None;
        }
        // What the end makes needless goes first.
        let same = (new.event == NoticeEvent::Resolved)
            .then(|| {
                self.queue
                    .iter()
                    .position(|w| w.delivery.notice.incident == new.incident)
            })
            .flatten();
        let at = same.or_else(|| {
            self.queue
                .iter()
                .position(|w| w.delivery.notice.event != NoticeEvent::Resolved)
        })?;
        self.queue.remove(at).map(|w| w.delivery)
    }
}

impl TargetKind {
    /// Whether there is something in the receiver's own terms that the event can be told by.
    const fn understands(&self, event: NoticeEvent) -> bool {
        !matches!(
            (self, event),
            (Self::PagerDuty { .. }, NoticeEvent::ApprovalDecided)
                | (Self::Alertmanager { .. }, NoticeEvent::Acknowledged)
        )
    }
}

fn refresh_for(target: &Target) -> Option<Refresh> {
    match target.kind {
        TargetKind::Alertmanager { resend_every, .. } => Some(Refresh::new(resend_every)),
        _ => None,
    }
}

fn alike(one: &Notice, other: &Notice) -> bool {
    one.rule == other.rule && one.event == other.event
}

fn no_room() -> String {
    "no room: too many notices wait for this target".to_owned()
}

fn settled(delivery: &Delivery, at: Wall, fate: Fate) -> Settled {
    Settled {
        id: delivery.id.clone(),
        target: delivery.target.clone(),
        at,
        fate,
    }
}

/// How long `later` is after `earlier`; zero when it is not.
fn millis(later: Wall, earlier: Wall) -> Duration {
    let millis = later.unix_millis().saturating_sub(earlier.unix_millis());
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

impl<T> Default for Memory<T> {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            known: HashSet::new(),
        }
    }
}

impl<T: Clone + Eq + Hash> Memory<T> {
    /// `false` when it was known.
    fn remember(&mut self, item: T) -> bool {
        if !self.known.insert(item.clone()) {
            return false;
        }
        self.order.push_back(item);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }

    fn knows(&self, item: &T) -> bool {
        self.known.contains(item)
    }

    /// `true` when it was known.
    fn forget(&mut self, item: &T) -> bool {
        let known = self.known.remove(item);
        if known {
            self.order.retain(|i| i != item);
        }
        known
    }
}
