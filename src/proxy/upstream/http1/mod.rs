//! HTTP/1.1 towards an upstream (RFC 9112), made for passing answers on: no task, no buffer while nothing comes.

mod body;
mod conn;
mod head;
mod known;
mod spare;
#[cfg(test)]
mod tests;
mod write;

use std::io;

pub(crate) use body::Decoder;
pub(super) use conn::{Conn, Failure};
pub(super) use known::Known;
pub(super) use spare::Spare;

use crate::proxy::body::PassError;

/// Why an exchange over HTTP/1.1 failed. The connection is of no use after any of these.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Http1Error {
    #[error("connection failed: {0}")]
    Io(#[source] io::Error),
    #[error("connection was closed before the head of the answer was complete")]
    NoAnswer,
    #[error("head of the answer: {0}")]
    Head(&'static str),
    #[error("head of the answer: {0}")]
    HeadSyntax(#[source] httparse::Error),
    #[error("body of the answer: {0}")]
    Body(&'static str),
    #[error("connection was closed before the body of the answer was complete")]
    Truncated,
    #[error(transparent)]
    Request(PassError),
    #[error("body of the request is not as long as its head says")]
    RequestLength,
}
