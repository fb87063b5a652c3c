//! What happens, as it happens, for whoever looks on: numbered, so that one who was away can go on where it was.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;

use crate::types::time::Wall;

/// Events that are kept for those who come back.
const KEPT: usize = 1_024;

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// Counts events of this process, from 1.
    pub seq: u64,
    /// When.
    pub at: Wall,
    /// `incident`, `approval`, `silence`, `brake`, `directives`, `reload`.
    pub kind: &'static str,
    /// What it is about, as JSON.
    pub document: Arc<str>,
}

/// Tells events to whoever listens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    kept: Mutex<Kept>,
    tell: broadcast::Sender<Event>,
}

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<Event>,
}

/// What a listener gets.
#[derive(Debug)]
pub struct Listening {
    /// What happened since it was there last, as far as it is kept.
    pub missed: Vec<Event>,
    /// Whether something between is no longer kept.
    pub gap: bool,
    /// What happens from now on.
    pub next: broadcast::Receiver<Event>,
}

impl Events {
    /// Nothing has happened yet.
    pub fn new() -> Self {
        let (tell, _) = broadcast::channel(KEPT);
        Self {
            shared: Arc::new(Shared {
                kept: Mutex::default(),
                tell,
            }),
        }
    }

    /// Something has happened.
    pub fn tell(&self, at: Wall, kind: &'static str, about: &impl Serialize) {
        let Ok(document) = serde_json::to_string(about) else {
            return;
        };
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let event = Event {
            seq: kept.last,
            at,
            kind,
            document: document.into(),
        };
        if kept.events.len() >= KEPT {
            kept.events.pop_front();
        }
        kept.events.push_back(event.clone());
        // Told under the lock, so that a listener misses nothing and hears nothing twice. Nobody may be listening.
        self.shared.tell.send(event).ok();
    }

    /// Listens from `after` on; `None`: from now on.
    pub fn listen(&self, after: Option<u64>) -> Listening {
        let kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let next = self.shared.tell.subscribe();
        let Some(after) = after else {
            return Listening {
                missed: Vec::new(),
                gap: false,
                next,
            };
        };
        // A number that was never told is one of another process.
        let foreign = after > kept.last;
        let first = kept.events.front().map_or(kept.last + 1, |e| e.seq);
        let missed = kept
            .events
            .iter()
            .filter(|e| foreign || e.seq > after)
            .cloned()
            .collect();
        Listening {
            missed,
            gap: foreign || after + 1 < first,
            next,
        }
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_back_goes_on_where_it_was() {
        let events = Events::new();
        for n in 0..5 {
            events.tell(Wall::default(), "incident", &n);
        }
        let numbers = |l: &Listening| l.missed.iter().map(|e| e.seq).collect::<Vec<_>>();
        assert_eq!(numbers(&events.listen(None)), [0_u64; 0]);
        let mut since = events.listen(Some(3));
        assert_eq!((numbers(&since), since.gap), (vec![4, 5], false));
        events.tell(Wall::default(), "approval", &"x");
        let next = since.next.try_recv().expect("told");
        assert_eq!((next.seq, next.kind, &*next.document), (6, "approval", "\"x\""));
        let other = events.listen(Some(99));
        assert_eq!((numbers(&other).len(), other.gap), (6, true));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let events = Events::new();
        for n in 0..KEPT + 10 {
            events.tell(Wall::default(), "incident", &n);
        }
        let all = events.listen(Some(1));
        assert_eq!((all.missed.len(), all.gap), (KEPT, true));
        assert!(!events.listen(Some(10)).gap);
    }
}
