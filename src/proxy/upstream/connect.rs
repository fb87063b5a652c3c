//! A new connection to an upstream: every address tried, through an outbound proxy if one is set, TLS on top.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::io::UpstreamIo;
use crate::enforce::policy::{OutboundProxy, Upstream};

/// Pause before the next address is tried beside one that does not answer (RFC 8305 §5 recommends 250 ms).
const STAGGER: Duration = Duration::from_millis(250);

/// Longest answer of an outbound proxy to `CONNECT` that is read.
const MAX_PROXY_HEAD: usize = 8 * 1024;

/// A connection that is ready for HTTP.
pub(super) struct Connected {
    pub(super) io: UpstreamIo,
    /// Whether ALPN chose HTTP/2.
    pub(super) h2: bool,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("name lookup failed: {0}")]
    Lookup(#[source] io::Error),
    #[error("name has no address")]
    NoAddress,
    #[error("connection failed: {0}")]
    Tcp(#[source] io::Error),
    #[error("outbound proxy: {0}")]
    Proxy(String),
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),
    #[error("HTTP handshake failed: {0}")]
    Http(#[source] hyper::Error),
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("not a usable server name")]
    ServerName,
}

/// Opens a connection within the upstream's `connect` timeout.
pub(super) async fn connect(upstream: &Upstream) -> Result<Connected, ConnectError> {
    connect_in_time(upstream, upstream.tls_client.as_ref()).await
}

/// Opens a connection that speaks HTTP/1.1 even where HTTP/2 could be had: what a protocol switch needs.
pub(crate) async fn connect_http1(upstream: &Upstream) -> Result<UpstreamIo, ConnectError> {
    let config = upstream.tls_client.as_deref().map(|config| {
        let mut config = config.clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    });
    Ok(connect_in_time(upstream, config.as_ref()).await?.io)
}

async fn connect_in_time(
    upstream: &Upstream,
    config: Option<&Arc<ClientConfig>>,
) -> Result<Connected, ConnectError> {
    let limit = upstream.timeouts.connect;
    timeout(limit, connect_with(upstream, config))
        .await
        .unwrap_or(Err(ConnectError::Timeout(limit)))
}

async fn connect_with(
    upstream: &Upstream,
    config: Option<&Arc<ClientConfig>>,
) -> Result<Connected, ConnectError> {
    let url = &upstream.url;
    let tcp = match &upstream.proxy {
        // A plain upstream behind a proxy is tunnelled as well: one way to do it, and the proxy sees no content
        // that it would not see anyway.
        Some(proxy) => tunnel(proxy, &url.host, url.port).await?,
        None => tcp(&url.host, url.port).await?,
    };
    let Some(config) = config.filter(|_| url.tls) else {
        if url.tls {
            return Err(ConnectError::Tls(io::Error::other("TLS settings are missing")));
        }
        return Ok(Connected {
            io: UpstreamIo::Left(tcp),
            h2: false,
        });
    };
    let name = upstream
        .tls
        .server_name
        .clone()
        .unwrap_or_else(|| url.host.clone());
    let name = ServerName::try_from(name).map_err(|_| ConnectError::ServerName)?;
    let tls = TlsConnector::from(Arc::clone(config))
        .connect(name, tcp)
        .await
        .map_err(ConnectError::Tls)?;
    let h2 = tls.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Connected {
        io: UpstreamIo::Right(Box::new(tls)),
        h2,
    })
}

/// Tries all addresses of `host`, families interleaved, each joining the race when those before it are silent for
/// [`STAGGER`] or have failed; the first connection wins (RFC 8305).
async fn tcp(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let addresses = interleave(
        lookup_host((host, port))
            .await
            .map_err(ConnectError::Lookup)?
            .collect(),
    );
    let mut waiting = addresses.into_iter();
    let mut racing = JoinSet::new();
    let mut failed = None;
    loop {
        if let Some(address) = waiting.next() {
            racing.spawn_local(async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Ok::<_, io::Error>(stream)
            });
        } else if racing.is_empty() {
            return Err(failed.map_or(ConnectError::NoAddress, ConnectError::Tcp));
        }
        let next = if waiting.len() == 0 {
            racing.join_next().await
        } else {
            match timeout(STAGGER, racing.join_next()).await {
                Ok(next) => next,
                Err(_) => continue,
            }
        };
        match next {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(e))) => failed = Some(e),
            Some(Err(e)) => failed = Some(io::Error::other(e)),
            None => {}
        }
    }
}

/// Alternates IPv6 and IPv4 in the order of the resolver.
fn interleave(all: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_v6 = all.first().is_some_and(SocketAddr::is_ipv6);
    let (a, b): (Vec<_>, Vec<_>) = all.into_iter().partition(|x| x.is_ipv6() == first_v6);
    let mut out = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a.into_iter(), b.into_iter());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return out,
            (x, y) => out.extend(x.into_iter().chain(y)),
        }
    }
}

/// A TCP connection to `host:port` through an outbound proxy, by `CONNECT` (RFC 9110 §9.3.6).
async fn tunnel(proxy: &OutboundProxy, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let mut tcp = tcp(&proxy.host, proxy.port).await?;
    let target = if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    };
    let mut head = format!("CONNECT {target} HTTP/1.1\r\nhost: {target}\r\n");
    if let Some(authorization) = &proxy.authorization {
        head.push_str("proxy-authorization: ");
        head.push_str(authorization.expose());
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    tcp.write_all(head.as_bytes()).await.map_err(ConnectError::Tcp)?;
    // Read byte by byte: what follows the head belongs to the tunnel, and this happens once a connection.
    let mut answer = Vec::with_capacity(256);
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= MAX_PROXY_HEAD {
            return Err(ConnectError::Proxy("answer to CONNECT is too long".to_owned()));
        }
        let byte = tcp.read_u8().await.map_err(ConnectError::Tcp)?;
        answer.push(byte);
    }
    let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    let status = line.split(|b| *b == b' ').nth(1).unwrap_or_default();
    if status.first() == Some(&b'2') && status.len() == 3 {
        Ok(tcp)
    } else {
        Err(ConnectError::Proxy(format!(
            "CONNECT was answered {}",
            String::from_utf8_lossy(status)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::interleave;

    #[test]
    fn families_alternate_in_the_resolvers_order() {
        let all = ["[::1]:1", "[::2]:1", "1.1.1.1:1", "1.1.1.2:1", "1.1.1.3:1"];
        let parsed = all.iter().map(|a| a.parse().unwrap()).collect();
        let got: Vec<String> = interleave(parsed).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "1.1.1.3:1"]);
    }
}
