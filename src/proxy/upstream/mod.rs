//! The way to an upstream: addresses, TLS, pooled connections of one worker, and one exchange over them.

mod connect;
mod http1;
mod io;
mod link;
mod pool;
mod tls;

pub(crate) use connect::{ConnectError, connect_http1};
pub(crate) use link::{AnswerBody, LinkError, SendError};
pub(crate) use pool::{Lease, Pools};
pub use tls::{TlsClients, TlsError};
