//! What Alertmanager has to be reminded of: it takes an alert for over when it no longer hears of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::types::ids::IncidentId;
use crate::types::notice::{Notice, NoticeEvent, Severity};
use crate::types::time::{Mono, Wall};

/// Incidents of which a receiver is reminded; the one heard of longest ago gives way.
const REMINDED: usize = 1024;
/// How long an end is repeated, for members of a cluster that were away.
const REPEAT_END: Duration = Duration::from_secs(15 * 60);

/// What is open, and what was until lately.
#[derive(Debug)]
pub(super) struct Refresh {
    every: Duration,
    known: BTreeMap<IncidentId, Known>,
    due: Option<Mono>,
}

/// One alert as the receiver is to see it.
#[derive(Debug, Clone)]
pub(super) struct Known {
    /// What it was told last.
    pub(super) notice: Arc<Notice>,
    /// The severity by which it knows the alert: part of its identity.
    pub(super) severity: Severity,
    /// A severity by which it was known before, to be ended.
    pub(super) was: Option<Severity>,
    /// When it began, as far as we know.
    pub(super) began: Wall,
    /// When it ended.
    pub(super) ended: Option<Wall>,
    forget: Mono,
    touched: Mono,
}

impl Refresh {
    pub(super) const fn new(every: Duration) -> Self {
        Self {
            every,
            known: BTreeMap::new(),
            due: None,
        }
    }

    pub(super) const fn interval(&self) -> Duration {
        self.every
    }

    /// Another interval. The next reminder may come sooner for it and not later: what was said last holds for the old
    /// interval only.
    pub(super) fn every(&mut self, every: Duration) {
        self.due = self.due.map(|due| due.min(due.before(self.every).after(every)));
        self.every = every;
    }

    /// When to remind next.
    pub(super) const fn due(&self) -> Option<Mono> {
        self.due
    }

    /// Takes note of what is being told.
    pub(super) fn learn(&mut self, notice: &Arc<Notice>, now: Mono) -> Known {
        let ended = matches!(notice.event, NoticeEvent::Resolved).then_some(notice.at);
        let before = self
            .known
            .get(&notice.incident)
            .filter(|k| k.ended.is_none() || ended.is_some());
        let known = Known {
            notice: Arc::clone(notice),
            severity: match before {
                Some(k) if ended.is_some() => k.severity,
                _ => notice.severity,
            },
            was: before.and_then(|k| match ended {
                Some(_) => k.was,
                None if k.severity != notice.severity => Some(k.severity),
                None => k.was.filter(|w| *w != notice.severity),
            }),
            began: before.map_or(notice.at, |k| k.began.min(notice.at)),
            ended,
            forget: if ended.is_some() {
                now.after(REPEAT_END)
            } else {
                Mono::FAR
            },
            touched: now,
        };
        // A trial is not repeated: nobody would end it.
        if notice.event != NoticeEvent::Test {
            self.known.insert(notice.incident.clone(), known.clone());
            if self.known.len() > REMINDED
                && let Some(oldest) = self.oldest()
            {
                self.known.remove(&oldest);
            }
            self.due.get_or_insert(now.after(self.every));
        }
        known
    }

    fn oldest(&self) -> Option<IncidentId> {
        let oldest = self
            .known
            .iter()
            .min_by_key(|(_, k)| (k.ended.is_none(), k.touched));
        oldest.map(|(id, _)| id.clone())
    }

    /// Everything to remind of; the next time is `every` from now.
    pub(super) fn remind(&mut self, now: Mono) -> Vec<Known> {
        self.known.retain(|_, k| k.forget > now);
        self.due = (!self.known.is_empty()).then(|| now.after(self.every));
        self.known.values().cloned().collect()
    }

    /// A reminder failed: another one soon.
    pub(super) fn again(&mut self, now: Mono, soon: Duration) {
        if self.due.is_some() {
            self.due = Some(now.after(soon.min(self.every)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::tests::notice;

    fn told(refresh: &mut Refresh, event: NoticeEvent, severity: Severity, at: u64) -> Known {
        let mut n = notice("n", event, "inc");
        n.severity = severity;
        n.at = Wall::from_unix_millis(at as i64);
        refresh.learn(&Arc::new(n), Mono::from_millis(at))
    }

    #[test]
    fn reminds_while_open_and_a_while_after_the_end() {
        let mut r = Refresh::new(Duration::from_secs(60));
        assert_eq!(r.due(), None);
        told(&mut r, NoticeEvent::Opened, Severity::Warning, 1_000);
        assert_eq!(r.due(), Some(Mono::from_millis(61_000)));
        let again = r.remind(Mono::from_millis(61_000));
        assert_eq!((again.len(), r.due()), (1, Some(Mono::from_millis(121_000))));
        let worse = told(&mut r, NoticeEvent::Escalated, Severity::Critical, 70_000);
        assert_eq!(
            (worse.severity, worse.was),
            (Severity::Critical, Some(Severity::Warning))
        );
        assert_eq!(worse.began, Wall::from_unix_millis(1_000));
        // An end comes under the identity of the beginning, whatever severity it says.
        let end = told(&mut r, NoticeEvent::Resolved, Severity::Info, 80_000);
        assert_eq!(
            (end.severity, end.was),
            (Severity::Critical, Some(Severity::Warning))
        );
        assert_eq!(end.ended, Some(Wall::from_unix_millis(80_000)));
        assert_eq!(r.remind(Mono::from_millis(121_000)).len(), 1);
        let past = Mono::from_millis(80_000).after(REPEAT_END);
        assert!(r.remind(past).is_empty());
        assert_eq!(r.due(), None);
    }

    #[test]
    fn another_interval_makes_the_next_reminder_come_sooner_and_never_later() {
        let mut r = Refresh::new(Duration::from_secs(60));
        r.every(Duration::from_secs(50));
        assert_eq!(r.due(), None);
        told(&mut r, NoticeEvent::Opened, Severity::Warning, 1_000);
        assert_eq!(r.due(), Some(Mono::from_millis(51_000)));
        r.every(Duration::from_secs(10));
        assert_eq!(r.due(), Some(Mono::from_millis(11_000)));
        r.every(Duration::from_secs(600));
        assert_eq!(r.due(), Some(Mono::from_millis(11_000)));
        r.remind(Mono::from_millis(11_000));
        assert_eq!(r.due(), Some(Mono::from_millis(611_000)));
    }

    #[test]
    fn a_trial_and_a_crowd() {
        let mut r = Refresh::new(Duration::from_secs(60));
        told(&mut r, NoticeEvent::Test, Severity::Info, 1);
        assert_eq!(r.due(), None);
        for i in 0..REMINDED + 10 {
            let n = notice("n", NoticeEvent::Opened, &format!("i{i}"));
            r.learn(&Arc::new(n), Mono::from_millis(i as u64));
        }
        assert_eq!(r.known.len(), REMINDED);
        assert!(!r.known.contains_key("i0"));
    }
}
