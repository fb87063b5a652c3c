//! A connection to an upstream, plain or TLS, as one type.

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// A connection to an upstream. The TLS one is boxed: a session is a kilobyte that plain connections need not carry.
pub(crate) type UpstreamIo = Either<TcpStream, Box<TlsStream<TcpStream>>>;
