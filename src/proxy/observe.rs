//! The answer on its way back: every frame is handed on as it came and shown to the meter; it ends exactly once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;

use super::alarm::Alarm;
use super::emit::Account;
use super::forward::Forwarded;
use super::upstream::{AnswerBody, Lease, LinkError};
use super::watched::InFlight;
use crate::dialect::include_usage::Hider;
use crate::enforce::policy::OnClientAbort;
use crate::types::observation::Outcome;

/// An answer to a client.
pub(crate) enum Answer {
    /// An upstream's, passed on.
    Relay(Box<Relay>),
    /// One of fusebox itself.
    Own { body: Full<Bytes>, _in_flight: InFlight },
}

/// An upstream's answer that is passed on.
pub(crate) struct Relay {
    /// `None` only after [`Drop`] began.
    parts: Option<Parts>,
    _in_flight: InFlight,
}

struct Parts {
    incoming: AnswerBody,
    lease: Lease,
    account: Box<Account>,
    alarm: Alarm,
    /// Stands between the upstream's bytes and a client that must not see the usage it did not ask for.
    hider: Option<Box<Hider>>,
    /// To be handed on before anything else.
    ready: VecDeque<Bytes>,
    /// Trailers, which come after whatever the hider held.
    trailers: Option<Frame<Bytes>>,
    /// The upstream's answer was read to its end.
    upstream_ended: bool,
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("upstream broke off its answer: {0}")]
    Upstream(#[source] LinkError),
    #[error("upstream was silent for too long")]
    Timeout,
}

impl Relay {
    /// Passes on what is left of `forwarded`, after `prefix`, which was read from it already.
    pub(super) fn new(
        forwarded: Forwarded,
        incoming: AnswerBody,
        account: Box<Account>,
        alarm: Alarm,
        hider: Option<Hider>,
        in_flight: InFlight,
    ) -> Box<Self> {
        let Forwarded {
            lease, prefix, ended, ..
        } = forwarded;
        let mut parts = Parts {
            incoming,
            lease,
            account,
            alarm,
            hider: hider.map(Box::new),
            ready: VecDeque::new(),
            trailers: None,
            upstream_ended: ended,
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
        Box::new(Self {
            parts: Some(parts),
            _in_flight: in_flight,
        })
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
                    self.see(data);
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
            && self.trailers.is_none()
            && (self.upstream_ended || (self.hider.is_none() && self.incoming.is_end_stream()))
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
        let rest = std::future::poll_fn(|cx| {
            loop {
                match std::task::ready!(self.poll_frame(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(()),
                }
            }
        });
        if tokio::time::timeout(limit, rest).await.is_ok() && self.upstream_ended {
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
            Self::Relay(relay) => match &mut relay.parts {
                Some(parts) => parts.poll_frame(cx),
                None => Poll::Ready(None),
            },
            Self::Own { body, .. } => Pin::new(body).poll_frame(cx).map_err(|never| match never {}),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Relay(relay) => relay.parts.as_ref().is_none_or(Parts::is_done),
            Self::Own { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Relay(relay) => match &relay.parts {
                Some(parts) if parts.hider.is_none() && parts.ready.is_empty() => parts.incoming.size_hint(),
                _ => SizeHint::default(),
            },
            Self::Own { body, .. } => body.size_hint(),
        }
    }
}
