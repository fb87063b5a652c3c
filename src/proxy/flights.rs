//! The exchanges of one worker that are on their way, so that those which are contained can be stopped at once.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::observe::Relay;
use super::reply::Problem;
use super::worker::Worker;
use crate::enforce::gate::containing;
use crate::enforce::snapshot::Changes;
use crate::types::directive::{Directive, Order, Sender};

/// How long an event that is under way may take to end when its stream is contained; then the connection is broken off.
const EVENT_PATIENCE: Duration = Duration::from_millis(150);

/// All exchanges of one worker.
#[derive(Default)]
pub(super) struct Flights {
    /// Places are used again, so that an exchange costs no memory of its own.
    places: RefCell<Vec<Rc<Flight>>>,
    free: RefCell<Vec<usize>>,
    /// How often directives that contain somebody were published.
    alarms: Cell<u64>,
}

/// One exchange: whom to wake, and what to stop.
#[derive(Default)]
struct Flight {
    waker: RefCell<Option<Waker>>,
    stream: RefCell<Option<Weak<RefCell<Relay>>>>,
}

/// The place of an exchange among the flights until dropped.
pub(super) struct Boarded {
    flights: Rc<Flights>,
    flight: Rc<Flight>,
    place: usize,
}

impl Flights {
    /// Takes a place.
    pub(super) fn board(self: &Rc<Self>) -> Boarded {
        let mut places = self.places.borrow_mut();
        let place = self.free.borrow_mut().pop().unwrap_or_else(|| {
            places.push(Rc::default());
            places.len() - 1
        });
        let flight = places.get(place).map(Rc::clone).unwrap_or_default();
        Boarded {
            flights: Rc::clone(self),
            flight,
            place,
        }
    }

    /// Exchanges that have a place.
    #[cfg(test)]
    fn count(&self) -> usize {
        self.places.borrow().len() - self.free.borrow().len()
    }

    /// Wakes those who wait for an answer, so that they look at the directives themselves.
    fn wake_all(&self) {
        self.alarms.set(self.alarms.get() + 1);
        // Nobody who is woken runs before this is over.
        for flight in self.places.borrow().iter() {
            if let Some(waker) = flight.waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// The answers that are on their way.
    fn streams(&self) -> Vec<Rc<RefCell<Relay>>> {
        let places = self.places.borrow();
        let held = places
            .iter()
            .filter_map(|f| f.stream.borrow().as_ref().and_then(Weak::upgrade));
        held.collect()
    }
}

impl Boarded {
    /// From now on the answer is on its way.
    pub(super) fn relays(&self, stream: Weak<RefCell<Relay>>) {
        *self.flight.stream.borrow_mut() = Some(stream);
    }

    /// Does `work` unless its sender is contained, now or while it goes on: then it is dropped where it stands.
    ///
    /// # Errors
    /// [`Problem::Contained`].
    pub(super) async fn unless_contained<F: Future>(
        &self,
        worker: &Worker,
        sender: Sender<'_>,
        work: F,
    ) -> Result<F::Output, Problem> {
        let mut work = pin!(work);
        let mut seen = 0;
        poll_fn(|cx| {
            let alarms = self.flights.alarms.get();
            if alarms != seen {
                seen = alarms;
                if let Some(by) = contained(worker, sender) {
                    return Poll::Ready(Err(Problem::Contained(by)));
                }
            }
            match work.as_mut().poll(cx) {
                Poll::Ready(done) => Poll::Ready(Ok(done)),
                Poll::Pending => {
                    self.wake_with(cx);
                    Poll::Pending
                }
            }
        })
        .await
    }

    fn wake_with(&self, cx: &Context<'_>) {
        let mut waker = self.flight.waker.borrow_mut();
        if waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }
}

impl Drop for Boarded {
    fn drop(&mut self) {
        self.flight.waker.take();
        self.flight.stream.take();
        self.flights.free.borrow_mut().push(self.place);
    }
}

/// The directive that contains `sender` now.
fn contained(worker: &Worker, sender: Sender<'_>) -> Option<Arc<Directive>> {
    let snapshot = worker.snapshot();
    let directives = &snapshot.directives;
    if !directives.contains_anyone() {
        return None;
    }
    containing(directives.of(sender, worker.shared.clock.mono()))
}

/// Carries out what is published to exchanges that are on their way, for as long as there are publications.
pub(super) async fn watch(worker: Rc<Worker>, mut changes: Changes) {
    let mut held_before = false;
    while changes.next().await {
        let snapshot = worker.snapshot();
        let directives = &snapshot.directives;
        let contains = directives.contains_anyone();
        let cuts = directives.iter().any(|d| {
            matches!(
                d.order,
                Order::CapOutput {
                    cut_streams: true,
                    ..
                }
            )
        });
        if contains {
            worker.flights.wake_all();
        }
        // What is lifted has to be told as well.
        let lifted = std::mem::replace(&mut held_before, cuts);
        if !contains && !cuts && !lifted {
            continue;
        }
        let now = worker.shared.clock.mono();
        let mut unfinished = Vec::new();
        for stream in worker.flights.streams() {
            let mut held = stream.borrow_mut();
            held.obey(directives, now);
            if held.is_stopping() {
                drop(held);
                unfinished.push(Rc::downgrade(&stream));
            }
        }
        if !unfinished.is_empty() {
            drop(tokio::task::spawn_local(async move {
                tokio::time::sleep(EVENT_PATIENCE).await;
                for stream in unfinished.iter().filter_map(Weak::upgrade) {
                    stream.borrow_mut().break_off();
                }
            }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_used_again() {
        let flights = Rc::new(Flights::default());
        for _ in 0..100 {
            let all: Vec<Boarded> = (0..10).map(|_| flights.board()).collect();
            assert_eq!(flights.count(), 10);
            drop(all);
            assert_eq!(flights.count(), 0);
        }
        assert_eq!(flights.places.borrow().len(), 10);
    }
}
