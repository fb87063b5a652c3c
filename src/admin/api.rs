//! What every endpoint works with, and who is calling it.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::FromRef;
use http::HeaderMap;
use http::header::USER_AGENT;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::error::{Fault, Problem};
use crate::clock::Clock;
use crate::config::Role;
use crate::control::handle::Handle;
use crate::types::ids::ApprovalId;
use crate::types::time::Mono;

/// Longest name of a person, in bytes.
pub(super) const MAX_BY: usize = 200;
/// Answers that are remembered for a repeated request, and for how long.
const MAX_REMEMBERED: usize = 1_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(86_400);
/// Those who may follow events at once.
const MAX_LISTENERS: usize = 32;

/// What every endpoint works with. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Api {
    pub(super) handle: Handle,
    pub(super) clock: Clock,
    /// Cancelled when fusebox stops: what would go on for ever ends.
    pub(super) stop: CancellationToken,
    pub(super) listeners: Arc<Semaphore>,
    pub(super) answered: Arc<Answered>,
    /// The header in which a proxy in front says who is calling; only where the configuration trusts it.
    pub(super) user_header: Option<Arc<str>>,
}

impl Api {
    pub(super) fn new(
        handle: Handle,
        clock: Clock,
        user_header: Option<&str>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            handle,
            clock,
            stop,
            listeners: Arc::new(Semaphore::new(MAX_LISTENERS)),
            answered: Arc::default(),
            user_header: user_header.map(Into::into),
        }
    }
}

impl FromRef<Api> for Handle {
    fn from_ref(api: &Api) -> Self {
        api.handle.clone()
    }
}

/// Who is calling.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// By what right.
    pub(super) right: Right,
    /// From where, where that is known.
    pub(super) peer: Option<IpAddr>,
}

/// By what right somebody calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Right {
    /// No token is configured, or none is needed.
    Open,
    /// A token.
    Token {
        /// Its name.
        name: String,
        /// What it allows.
        role: Role,
    },
    /// The link to this question.
    Link(ApprovalId),
}

impl Caller {
    /// Whether the caller may act, and see what lets others act.
    pub(super) fn may_act(&self) -> bool {
        match &self.right {
            Right::Open => true,
            Right::Token { role, .. } => *role == Role::Operator,
            Right::Link(_) => false,
        }
    }

    /// Who it is, for the record: the name that was given, with the token that vouches for it.
    pub(super) fn named(&self, given: Option<&str>) -> Result<String, Problem> {
        let given = given.map(str::trim);
        if let Some(name) = given
            && !is_name(name)
        {
            return Err(Problem::faulty(vec![Fault::new(
                "/by",
                format!("must be a name of 1 to {MAX_BY} bytes without control characters"),
                "send {\"by\": \"your name\"}, or leave it out",
            )]));
        }
        Ok(match (&self.right, given) {
            // The token of `admin.token` has no name of its own.
            (Right::Token { name, .. }, Some(given)) if name != "token" && name != given => {
                format!("{given} (token {name})")
            }
            (_, Some(given)) => given.to_owned(),
            (Right::Token { name, .. }, None) if name != "token" => name.clone(),
            _ => "operator".to_owned(),
        })
    }
}

/// By which way a request came, for the record: our own command line says so.
pub(super) fn via(headers: &HeaderMap) -> &'static str {
    let agent = headers.get(USER_AGENT).and_then(|v| v.to_str().ok());
    if agent.is_some_and(|a| a.starts_with("fusebox-cli/")) {
        "cli"
    } else {
        "api"
    }
}

/// Whether a text may be a person's name.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_BY && !text.contains(char::is_control)
}

/// Answers to requests that bore an `Idempotency-Key`, for when they come again.
#[derive(Debug, Default)]
pub(super) struct Answered {
    all: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    by_key: HashMap<String, (u64, Option<Arc<str>>, Mono)>,
    order: VecDeque<String>,
}

/// What is known of a key.
#[derive(Debug, PartialEq)]
pub(super) enum Known {
    /// Nothing: go on, and say what came of it.
    New,
    /// The same request was answered so.
    Answered(Arc<str>),
    /// The same request is under way.
    UnderWay,
    /// It was used for another request.
    Other,
}

impl Answered {
    /// Takes a key for a request with this fingerprint.
    pub(super) fn begin(&self, key: &str, fingerprint: u64, now: Mono) -> Known {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let Remembered { by_key, order } = &mut *all;
        while let Some(oldest) = order.front() {
            let old = by_key
                .get(oldest)
                .is_none_or(|(_, _, at)| now.since(*at) >= REMEMBERED_FOR);
            if !old && order.len() < MAX_REMEMBERED {
                break;
            }
            by_key.remove(oldest);
            order.pop_front();
        }
        match by_key.get(key) {
            Some((same, Some(answer), _)) if *same == fingerprint => Known::Answered(answer.clone()),
            Some((same, None, _)) if *same == fingerprint => Known::UnderWay,
            Some(_) => Known::Other,
            None => {
                by_key.insert(key.to_owned(), (fingerprint, None, now));
                order.push_back(key.to_owned());
                Known::New
            }
        }
    }

    /// What came of a request; `None`: nothing, it may be tried again.
    pub(super) fn end(&self, key: &str, answer: Option<Arc<str>>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Some(answer) => {
                if let Some(known) = all.by_key.get_mut(key) {
                    known.1 = Some(answer);
                }
            }
            None => {
                all.by_key.remove(key);
                all.order.retain(|k| k != key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_good_for_one_request_and_a_day() {
        let answered = Answered::default();
        let at = |seconds: u64| Mono::from_millis(seconds * 1000);
        assert_eq!(answered.begin("k", 1, at(0)), Known::New);
        assert_eq!(answered.begin("k", 1, at(1)), Known::UnderWay);
        answered.end("k", Some("done".into()));
        assert_eq!(answered.begin("k", 1, at(2)), Known::Answered("done".into()));
        assert_eq!(answered.begin("k", 2, at(3)), Known::Other);
        assert_eq!(answered.begin("k", 2, at(86_401)), Known::New);
        answered.end("k", None);
        assert_eq!(answered.begin("k", 3, at(86_402)), Known::New);
        for n in 0..2 * MAX_REMEMBERED {
            answered.begin(&format!("other-{n}"), 1, at(86_403));
        }
        let all = answered.all.lock().unwrap();
        assert!(all.by_key.len() <= MAX_REMEMBERED && all.order.len() == all.by_key.len());
    }
}
