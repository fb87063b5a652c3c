//! The answer on its way back: every frame is handed on as it came and shown to the meter; it ends exactly once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::alarm::Alarm;
use super::cut::{Limits, Stop};
use super::emit::Account;
use super::forward::Forwarded;
use super::upstream::{AnswerBody, Lease, LinkError};
use super::watched::InFlight;
use crate::dialect::include_usage::Hider;
use crate::dialect::meter::Meter;
use crate::enforce::policy::OnClientAbort;
use crate::types::observation::Outcome;

/// An answer to a client.
pub(crate) enum Answer {
    /// An upstream's, passed on. Shared with the worker, which can stop it however slowly its client reads.
    Relay(Rc<RefCell<Relay>>),
    /// One of fusebox itself.
    Own { body: Full<Bytes>, _in_flight: InFlight },
}

/// An upstream's answer that is passed on.
pub(crate) struct Relay {
    /// `None` once fusebox ended it, and when it is dropped.
    pub(super) parts: Option<Parts>,
    /// What is handed on after fusebox ended it, and whether the connection is broken off then.
    pub(super) rest: VecDeque<Bytes>,
    pub(super) broken: bool,
    pub(super) waker: Option<Waker>,
    _in_flight: InFlight,
}

pub(super) struct Parts {
    incoming: AnswerBody,
    lease: Lease,
    pub(super) account: Box<Account>,
    alarm: Alarm,
    /// Stands between the upstream's bytes and a client that must not see the usage it did not ask for.
    pub(super) hider: Option<Box<Hider>>,
    /// To be handed on before anything else.
    pub(super) ready: VecDeque<Bytes>,
    /// Trailers, which come after whatever the hider held.
    trailers: Option<Frame<Bytes>>,
    /// The upstream's answer was read to its end.
    upstream_ended: bool,
    /// Its length was told, so that nothing can be added to it.
    pub(super) fixed_length: bool,
    /// What a stream is held to, where it is held to anything.
    pub(super) limits: Option<Box<Limits>>,
    /// It is to end with the event that is under way.
    pub(super) stopping: Option<Stop>,
    /// What came together with the event that was too much, and after it.
    held_back: Bytes,
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("upstream broke off its answer: {0}")]
    Upstream(#[source] LinkError),
    #[error("upstream was silent for too long")]
    Timeout,
    #[error("its agent is contained")]
    Contained,
}

impl Relay {
    /// Passes on what is left of `forwarded`, after `prefix`, which was read from it already.
    pub(super) fn new(
        forwarded: Forwarded,
        incoming: AnswerBody,
        mut account: Box<Account>,
        alarm: Alarm,
        hider: Option<Hider>,
        in_flight: InFlight,
    ) -> Rc<RefCell<Self>> {
        let Forwarded {
            lease, prefix, ended, ..
        } = forwarded;
        let limits = Limits::of(&mut account);
        let mut parts = Parts {
            fixed_length: incoming.size_hint().exact().is_some(),
            incoming,
            lease,
            account,
            alarm,
            hider: hider.map(Box::new),
            ready: VecDeque::new(),
            trailers: None,
            upstream_ended: ended,
            limits,
            stopping: None,
            held_back: Bytes::new(),
        };
        if !prefix.is_empty() {
            parts.see(&prefix);
            match &mut parts.hider {
                Some(hider) => hider.push(prefix, &mut |bytes| parts.ready.push_back(bytes)),
                None => parts.ready.push_back(prefix),
            }
        }
        if ended {
            parts.account.ended(Outcome::Complete);
            if let Some(hider) = &mut parts.hider {
                hider.end(&mut |bytes| parts.ready.push_back(bytes));
            }
        }
        Rc::new_cyclic(|relay| {
            if let Some(flight) = &parts.account.flight {
                flight.relays(relay.clone());
            }
            RefCell::new(Self {
                parts: Some(parts),
                rest: VecDeque::new(),
                broken: false,
                waker: None,
                _in_flight: in_flight,
            })
        })
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            let Some(parts) = &mut self.parts else {
                return Poll::Ready(match self.rest.pop_front() {
                    Some(bytes) => Some(Ok(Frame::data(bytes))),
                    None => std::mem::take(&mut self.broken).then_some(Err(Broken::Contained)),
                });
            };
            if parts.stopping.is_some() && parts.ready.is_empty() && parts.is_between_events() {
                self.end_here();
                continue;
            }
            let polled = parts.poll_frame(cx);
            if polled.is_pending() && parts.stopping.is_some() && parts.is_between_events() {
                continue;
            }
            if polled.is_pending() && self.waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
                self.waker = Some(cx.waker().clone());
            }
            return polled;
        }
    }

    /// Whether nothing more will be handed on.
    fn is_done(&self) -> bool {
        match &self.parts {
            Some(parts) => parts.is_done(),
            None => self.rest.is_empty() && !self.broken,
        }
    }
}

impl Parts {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if let Some(trailers) = self.trailers.take() {
                return Poll::Ready(Some(Ok(trailers)));
            }
            if self.upstream_ended {
                return Poll::Ready(None);
            }
            match self.lease.link.poll_frame(&mut self.incoming, cx) {
                Poll::Pending => {
                    return if self.alarm.poll(cx).is_ready() {
                        self.account.ended(Outcome::Timeout);
                        Poll::Ready(Some(Err(Broken::Timeout)))
                    } else {
                        Poll::Pending
                    };
                }
                Poll::Ready(Some(Ok(frame))) => {
                    self.alarm.heard();
                    let Some(data) = frame.data_ref() else {
                        let Some(hider) = &mut self.hider else {
                            return Poll::Ready(Some(Ok(frame)));
                        };
                        hider.end(&mut |bytes| self.ready.push_back(bytes));
                        self.trailers = Some(frame);
                        continue;
                    };
                    if self.stopping.is_some() && self.hider.is_none() {
                        let Ok(data) = frame.into_data() else { continue };
                        return Poll::Ready(Some(Ok(Frame::data(self.see_event_end(data)))));
                    }
                    let frame = if self.limits.is_some() && self.stopping.is_none() {
                        let Ok(data) = frame.into_data() else { continue };
                        Frame::data(self.see_within_limits(data))
                    } else {
                        self.see(data);
                        frame
                    };
                    let Some(hider) = &mut self.hider else {
                        return Poll::Ready(Some(Ok(frame)));
                    };
                    let Ok(data) = frame.into_data() else { continue };
                    hider.push(data, &mut |bytes| self.ready.push_back(bytes));
                }
                Poll::Ready(Some(Err(e))) => {
                    // A stream that said its end is complete, however its connection ended.
                    let said = self
                        .account
                        .meter
                        .as_ref()
                        .is_some_and(|m| m.said_end() && m.is_stream());
                    self.account.ended(if said {
                        Outcome::Complete
                    } else {
                        Outcome::Truncated
                    });
                    return Poll::Ready(Some(Err(Broken::Upstream(e))));
                }
                Poll::Ready(None) => {
                    self.upstream_ended = true;
                    self.account.ended(Outcome::Complete);
                    if let Some(hider) = &mut self.hider {
                        hider.end(&mut |bytes| self.ready.push_back(bytes));
                    }
                }
            }
        }
    }

    /// Whether nothing more will be handed on.
    fn is_done(&self) -> bool {
        self.ready.is_empty()
            && self.stopping.is_none()
            && self.trailers.is_none()
            && (self.upstream_ended || (self.hider.is_none() && self.incoming.is_end_stream()))
    }

    /// Sees a piece of a stream that is held to limits; what comes after the event that is too much is held back.
    fn see_within_limits(&mut self, mut data: Bytes) -> Bytes {
        let near = match (&self.limits, &self.account.meter) {
            (Some(limits), Some(meter)) => limits.are_near(meter, data.len()),
            _ => false,
        };
        let mut seen = 0;
        while near && self.stopping.is_none() {
            let rest = data.get(seen..).unwrap_or_default();
            let Some(end) = self.account.meter.as_mut().and_then(|m| m.see_event_end(rest)) else {
                seen = data.len();
                break;
            };
            seen += end;
            self.look_at_limits();
        }
        if near && self.stopping.is_some() {
            self.held_back = data.split_off(seen);
        }
        self.see(data.get(seen..).unwrap_or_default());
        if !near {
            self.look_at_limits();
        }
        data
    }

    fn look_at_limits(&mut self) {
        if let Some(limits) = &mut self.limits {
            self.stopping = limits.exceeded(&self.account).map(Stop::Cut);
            let open = self.account.meter.as_ref().is_some_and(Meter::is_open_stream);
            if self.stopping.is_some() && (!open || self.fixed_length) {
                // Half an ending is worse than none.
                (self.limits, self.stopping) = (None, None);
            }
        }
    }

    /// Goes on with a stream that has no end of ours after all, and does not try it again.
    pub(super) fn go_on(&mut self) {
        (self.limits, self.stopping) = (None, None);
        let rest = std::mem::take(&mut self.held_back);
        if rest.is_empty() {
            return;
        }
        self.see(&rest);
        match &mut self.hider {
            Some(hider) => hider.push(rest, &mut |bytes| self.ready.push_back(bytes)),
            None => self.ready.push_back(rest),
        }
    }

    fn see(&mut self, data: &[u8]) {
        let account = &mut self.account;
        if let Some(meter) = &mut account.meter {
            let seen = meter.see(data);
            if seen.first_token && account.times.first_token.is_none() {
                self.alarm.read_clock();
                account.times.first_token = Some(self.alarm.last_heard());
            }
            account.learn_answer(self.alarm.last_heard());
            account.progress(self.alarm.last_heard());
        }
    }

    /// What of a piece belongs to the event that is under way.
    fn see_event_end(&mut self, mut data: Bytes) -> Bytes {
        if let Some(end) = self.account.meter.as_mut().and_then(|m| m.see_event_end(&data)) {
            data.truncate(end);
        }
        data
    }

    /// Called when nobody wants the answer any more: it ended, or its client left.
    fn close(mut self) {
        if self.upstream_ended || self.incoming.is_end_stream() {
            self.account.ended(Outcome::Complete);
            let now = self.alarm.last_heard();
            self.lease.give_back(now);
            return;
        }
        let OnClientAbort::Drain(limit) = self.account.upstream.on_client_abort else {
            return;
        };
        if self.account.outcome.is_none() && !self.account.worker.shared.drain.is_begun() {
            self.account.ended(Outcome::ClientAbort);
            drop(tokio::task::spawn_local(self.read_on(limit)));
        }
    }

    /// Reads the rest of an answer that its client left, for its usage alone.
    async fn read_on(mut self, limit: Duration) {
        self.hider = None;
        self.go_on();
        let flight = self.account.flight.take();
        let worker = Rc::clone(&self.account.worker);
        let who = self.account.identity.names();
        let rest = std::future::poll_fn(|cx| {
            loop {
                match std::task::ready!(self.poll_frame(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(()),
                }
            }
        });
        let rest = tokio::time::timeout(limit, rest);
        let read = match &flight {
            Some(flight) => flight.unless_contained(&worker, who.sender(), rest).await.ok(),
            None => Some(rest.await),
        };
        if read.is_some_and(|r| r.is_ok()) && self.upstream_ended {
            let now = self.alarm.last_heard();
            self.lease.give_back(now);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(parts) = self.parts.take() {
            parts.close();
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::Relay(relay) => relay.borrow_mut().poll_frame(cx),
            Self::Own { body, .. } => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Relay(relay) => relay.borrow().is_done(),
            Self::Own { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Relay(relay) => match &relay.borrow().parts {
                Some(parts) if parts.hider.is_none() && parts.ready.is_empty() => parts.incoming.size_hint(),
                _ => SizeHint::default(),
            },
            Self::Own { body, .. } => body.size_hint(),
        }
    }
}
