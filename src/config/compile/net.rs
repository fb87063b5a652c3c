//! Listeners and upstreams.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;

use super::{LONGEST, access, by_flag, failover, value_or};
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::file::{
    AdminFile, FamilyWord, Http2Word, IncludeUsageWord, ListenerFile, ListenerTlsFile, OnClientAbortWord,
    TimeoutsFile, UpstreamFile, UpstreamTlsFile,
};
use crate::config::problem::Place;
use crate::config::{AdminWiring, Overrides, defaults, url};
use crate::dialect::table::Family;
use crate::enforce::failover::ModelMap;
use crate::enforce::policy::{
    Bind, Http2, IncludeUsage, Listener, ListenerTls, OnClientAbort, OutboundProxy, Timeouts, Upstream,
    UpstreamTls, UpstreamUrl,
};
use crate::types::ids::{AgentId, UpstreamName};
use crate::types::secret::Secret;

/// A path of a Unix socket may not be longer, by the kernel's `sockaddr_un`.
const MAX_SOCKET_PATH: usize = 107;

/// The listeners of agents.
pub(super) fn listeners(
    given: Opt<Vec<At<ListenerFile>>>,
    overrides: &Overrides,
    check: &mut Check<'_>,
) -> Vec<Listener> {
    let by_flag = |listen: &String| ListenerFile {
        listen: Some(by_flag("--listen", listen.clone())),
        ..ListenerFile::default()
    };
    let list: Vec<At<ListenerFile>> = match given {
        _ if !overrides.listen.is_empty() => overrides
            .listen
            .iter()
            .map(|l| At {
                value: by_flag(l),
                place: Place::Flag("--listen"),
            })
            .collect(),
        Some(At { value: list, place }) => {
            if list.is_empty() && !check.told_within(place) {
                check.problem(
                    place,
                    "`listeners` is empty",
                    "give at least one, or remove the key",
                );
            }
            list
        }
        None => vec![At {
            value: ListenerFile {
                listen: Some(At {
                    value: defaults::LISTEN.to_owned(),
                    place: Place::Whole,
                }),
                ..ListenerFile::default()
            },
            place: Place::Whole,
        }],
    };
    let mut listeners: Vec<Listener> = Vec::with_capacity(list.len());
    for At { value, place } in list {
        let ListenerFile { listen, tls, agent } = value;
        let tls = tls.and_then(|t| listener_tls(t, check));
        let agent = check.maybe_name("agent", agent).map(AgentId::from);
        let Some(listen) = listen else {
            check.missing(place, "listen", "write HOST:PORT or unix:PATH");
            continue;
        };
        let Some(bind) = bind(&listen, check) else {
            continue;
        };
        if !any_port(&bind) && listeners.iter().any(|l| l.bind == bind) {
            check.problem(
                listen.place,
                "two listeners at one address",
                "give each its own address, or remove one",
            );
        }
        listeners.push(Listener { bind, tls, agent });
    }
    listeners
}

fn listener_tls(given: At<ListenerTlsFile>, check: &mut Check<'_>) -> Option<ListenerTls> {
    let At {
        value: ListenerTlsFile {
            certificate_file,
            key_file,
        },
        place,
    } = given;
    for (key, file) in [("certificate_file", &certificate_file), ("key_file", &key_file)] {
        if file.is_none() {
            check.missing(place, key, "TLS needs certificate_file and key_file, both PEM");
        }
    }
    Some(ListenerTls {
        certificate_file: check.path("certificate_file", &certificate_file?),
        key_file: check.path("key_file", &key_file?),
    })
}

/// The admin listener.
pub(super) fn admin(
    file: AdminFile,
    overrides: &Overrides,
    listeners: &[Listener],
    check: &mut Check<'_>,
) -> AdminWiring {
    let AdminFile {
        listen,
        token,
        token_file,
        tokens,
        allowed_hosts,
        user_header,
        open_metrics,
        max_label_sets: _,
    } = file;
    let token_given = token.is_some() || token_file.is_some() || !tokens.is_empty();
    let token = check.secret("token", token, token_file).map(|t| t.value);
    let tokens = access::tokens(tokens, token.as_ref(), check);
    let listen = overrides
        .admin_listen
        .clone()
        .map(|l| by_flag("--admin-listen", l))
        .or(listen)
        .unwrap_or_else(|| At {
            value: defaults::ADMIN_LISTEN.to_owned(),
            place: Place::Whole,
        });
    let bind = bind(&listen, check).unwrap_or_else(|| Bind::Unix(PathBuf::new()));
    if let Bind::Tcp(address) = &bind
        && !address.ip().is_loopback()
        && !token_given
        && !check.told_about(Place::Whole, &["token", "token_file", "tokens"])
    {
        check.problem(
            listen.place,
            "an admin listener beyond loopback needs a token",
            "set admin.token_file (or admin.token), or listen on 127.0.0.1",
        );
    }
    if !any_port(&bind) && listeners.iter().any(|l| l.bind == bind) {
        check.problem(
            listen.place,
            "the admin listener has the address of a listener for agents",
            "give it another port; the default is 127.0.0.1:4311",
        );
    }
    AdminWiring {
        bind,
        token,
        tokens,
        allowed_hosts: check.names("allowed_hosts", allowed_hosts),
        open_metrics: value_or(open_metrics, true),
        external_url: None,
        user_header: access::user_header(user_header, check),
    }
}

fn bind(listen: &At<String>, check: &mut Check<'_>) -> Option<Bind> {
    let text = listen.value.trim();
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.len() > MAX_SOCKET_PATH {
            check.problem(
                listen.place,
                "not the path of a Unix socket",
                format!("write unix:/run/fusebox.sock; at most {MAX_SOCKET_PATH} bytes"),
            );
            return None;
        }
        return Some(Bind::Unix(PathBuf::from(path)));
    }
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    match numeric.parse::<SocketAddr>() {
        Ok(address) => Some(Bind::Tcp(address)),
        Err(_) => {
            let quoted = check.quote(listen.place, text);
            let port = text.trim_start_matches(':');
            let hint = if port.parse::<u16>().is_ok() {
                format!("write 127.0.0.1:{port} for this host only, or 0.0.0.0:{port} for all interfaces")
            } else {
                "write ADDRESS:PORT as 127.0.0.1:4310 or [::]:4310, or unix:PATH".to_owned()
            };
            check.problem(
                listen.place,
                format!("`{quoted}` is not an address to listen on"),
                hint,
            );
            None
        }
    }
}

const fn any_port(bind: &Bind) -> bool {
    matches!(bind, Bind::Tcp(a) if a.port() == 0)
}

/// The upstreams, and every name that rules may use for one.
pub(super) struct Upstreams {
    /// In the order of the file.
    pub(super) compiled: Vec<Arc<Upstream>>,
    /// Their names; those of the file even when the command line replaced them.
    pub(super) names: Vec<String>,
}

/// The upstreams.
pub(super) fn upstreams(
    given: Opt<Vec<At<UpstreamFile>>>,
    overrides: &Overrides,
    check: &mut Check<'_>,
) -> Upstreams {
    let mut result = Upstreams {
        compiled: Vec::new(),
        names: Vec::new(),
    };
    match given {
        Some(At { value: list, place }) => {
            if list.is_empty() && !check.told_within(place) {
                check.problem(
                    place,
                    "`upstreams` is empty",
                    "give at least one, or remove the key",
                );
            }
            let only = list.len() == 1;
            let mut wanted = Vec::new();
            for mut item in list {
                let failover = std::mem::take(&mut item.value.failover);
                let name = item
                    .value
                    .name
                    .as_ref()
                    .map(|n| UpstreamName::from(n.value.as_str()));
                wanted.extend(name.map(|name| (name, failover)));
                if let Some(upstream) = upstream(item, only, &result, check) {
                    result.names.push(upstream.name.as_str().to_owned());
                    result.compiled.push(Arc::new(upstream));
                }
            }
            // With one that cannot be read a name would be told as unknown that is not.
            if result.compiled.len() == wanted.len() {
                failover::plans(&mut result.compiled, &wanted, check);
            }
        }
        None => {
            for (name, text, families) in defaults::UPSTREAMS {
                if let Ok(url) = url::upstream(text) {
                    let upstream = Upstream {
                        families: families.to_vec(),
                        ..plain(name, name, url)
                    };
                    result.names.push(name.to_owned());
                    result.compiled.push(Arc::new(upstream));
                }
            }
        }
    }
    if let Some(text) = &overrides.upstream {
        match url::upstream(text) {
            Ok(url) => {
                let provider = url::provider(&url.host);
                result.compiled = vec![Arc::new(plain(defaults::UPSTREAM_NAME, provider, url))];
                result.names.push(defaults::UPSTREAM_NAME.to_owned());
            }
            Err((why, hint)) => check.problem(Place::Flag("--upstream"), why, hint),
        }
    }
    result
}

/// An upstream with nothing but a URL.
fn plain(name: &str, provider: &str, url: UpstreamUrl) -> Upstream {
    Upstream {
        name: UpstreamName::from(name),
        provider: provider.into(),
        url,
        families: Vec::new(),
        path_prefix: None,
        include_usage: IncludeUsage::Auto,
        on_client_abort: OnClientAbort::Cancel,
        timeouts: defaults::TIMEOUTS,
        tls: UpstreamTls::default(),
        proxy: None,
        http2: Http2::Auto,
        max_idle_connections: defaults::MAX_IDLE_CONNECTIONS,
        failover: Vec::new(),
        retry_on: defaults::retry_on(),
        breaker: Some(defaults::BREAKER),
        model_map: ModelMap::default(),
        credentials: None,
        tls_client: None,
    }
}

fn upstream(
    item: At<UpstreamFile>,
    only: bool,
    before: &Upstreams,
    check: &mut Check<'_>,
) -> Option<Upstream> {
    let At { value, place } = item;
    let UpstreamFile {
        name,
        url: given_url,
        provider,
        families,
        path_prefix,
        include_usage,
        on_client_abort,
        timeouts,
        tls,
        proxy,
        http2,
        max_idle_connections,
        failover: _,
        retry_on,
        breaker,
        model_map,
        credentials,
    } = value;
    if name.is_none() {
        check.missing(
            place,
            "name",
            "a short word, as openai: it appears in metrics and observations",
        );
    }
    let name = name.filter(|n| check.name("name", n));
    if let Some(n) = name.as_ref().filter(|n| before.names.contains(&n.value)) {
        check.problem(
            n.place,
            format!("two upstreams named `{}`", check.quote(n.place, &n.value)),
            "names are unique; rename one of them",
        );
    }
    let url = match given_url {
        None => {
            check.missing(
                place,
                "url",
                "write https://HOST, https://HOST:PORT or https://HOST/PATH",
            );
            None
        }
        Some(At { value, place }) => match url::upstream(&value) {
            Ok(url) => Some((url, place)),
            Err((why, hint)) => {
                check.problem(place, why, hint);
                None
            }
        },
    };
    let provider = check.maybe_name("provider", provider);
    let http2 = match value_or(http2, Http2Word::Auto) {
        Http2Word::Auto => Http2::Auto,
        Http2Word::Never => Http2::Never,
        Http2Word::PriorKnowledge => Http2::PriorKnowledge,
    };
    let include_usage = match value_or(include_usage, IncludeUsageWord::Auto) {
        IncludeUsageWord::Auto => IncludeUsage::Auto,
        IncludeUsageWord::Never => IncludeUsage::Never,
    };
    let on_client_abort = match on_client_abort {
        None
        | Some(At {
            value: OnClientAbortWord::Cancel,
            ..
        }) => OnClientAbort::Cancel,
        Some(At {
            value: OnClientAbortWord::Drain(limit),
            ..
        }) => {
            let range = Duration::from_secs(1)..=Duration::from_secs(600);
            OnClientAbort::Drain(check.duration("drain", Some(limit), Duration::from_secs(30), range))
        }
    };
    let timeouts = timeouts_of(timeouts, check);
    let UpstreamTlsFile {
        ca_files,
        server_name,
    } = tls;
    let tls = UpstreamTls {
        ca_files: ca_files.iter().map(|f| check.path("ca_files", f)).collect(),
        server_name: server_name.and_then(|n| host_name(n, check)),
    };
    let path_prefix = path_prefix.and_then(|p| prefix(p, before, check));
    let max_idle_connections = check.length(
        "max_idle_connections",
        max_idle_connections,
        defaults::MAX_IDLE_CONNECTIONS,
        0..=10_000,
    );
    let proxy = outbound(proxy, url.as_ref().map(|(u, _)| u), check);
    let retry_on = failover::retry_on(retry_on, check);
    let breaker = failover::breaker(breaker, check);
    let model_map = failover::model_map(model_map, check);
    let by_host = url.as_ref().map_or("unknown", |(u, _)| url::provider(&u.host));
    let provider = provider.unwrap_or_else(|| by_host.to_owned());
    let credentials = failover::credentials(credentials, &provider, check);
    let (url, url_place) = url?;
    if !url.tls && (!tls.ca_files.is_empty() || tls.server_name.is_some()) {
        check.problem(
            url_place,
            "TLS settings for a plain http URL",
            "write https://, or remove `tls`",
        );
    }
    let families = match families {
        Some(list) => list.into_iter().map(|f| family(f.value)).collect(),
        None if only || path_prefix.is_some() => Vec::new(),
        None => defaults::families_of(&provider).to_vec(),
    };
    Some(Upstream {
        families,
        path_prefix,
        include_usage,
        on_client_abort,
        timeouts,
        tls,
        proxy,
        http2,
        max_idle_connections,
        retry_on,
        breaker,
        model_map,
        credentials,
        ..plain(&name?.value, &provider, url)
    })
}

const fn family(word: FamilyWord) -> Family {
    match word {
        FamilyWord::OpenAi => Family::OpenAi,
        FamilyWord::Anthropic => Family::Anthropic,
        FamilyWord::Gemini => Family::Gemini,
        FamilyWord::Ollama => Family::Ollama,
        FamilyWord::Cohere => Family::Cohere,
        FamilyWord::Bedrock => Family::Bedrock,
        FamilyWord::Other => Family::Other,
    }
}

fn timeouts_of(file: TimeoutsFile, check: &mut Check<'_>) -> Timeouts {
    let TimeoutsFile {
        connect,
        first_byte,
        idle,
        total,
    } = file;
    let range = Duration::from_millis(10)..=LONGEST;
    let d = defaults::TIMEOUTS;
    let timeouts = Timeouts {
        connect: check.duration("connect", connect, d.connect, range.clone()),
        first_byte: check.duration("first_byte", first_byte, d.first_byte, range.clone()),
        idle: check.duration("idle", idle, d.idle, range.clone()),
        total: total
            .as_ref()
            .map(|t| check.duration("total", Some(t.clone()), LONGEST, range)),
    };
    if let (Some(total), Some(At { place, .. })) = (timeouts.total, total)
        && total < timeouts.connect
    {
        check.problem(
            place,
            "`total` is shorter than `connect`",
            "make it the longest of all",
        );
    }
    timeouts
}

fn host_name(given: At<String>, check: &mut Check<'_>) -> Option<String> {
    let name = given.value.trim();
    if rustls_pki_types::ServerName::try_from(name).is_ok() {
        return Some(name.to_owned());
    }
    let quoted = check.quote(given.place, name);
    check.problem(
        given.place,
        format!("`{quoted}` is not a host name"),
        "write the name that the certificate holds",
    );
    None
}

fn prefix(given: At<String>, before: &Upstreams, check: &mut Check<'_>) -> Option<String> {
    let prefix = given.value.trim().trim_end_matches('/');
    let quoted = check.quote(given.place, prefix);
    let clean = prefix
        .bytes()
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%'));
    if !prefix.starts_with('/') || prefix.contains("//") || !clean {
        check.problem(
            given.place,
            format!("`{quoted}` is not a path prefix"),
            "write /NAME, as /eu; not / alone",
        );
        return None;
    }
    if let Some(other) = before
        .compiled
        .iter()
        .find(|u| u.path_prefix.as_deref() == Some(prefix))
    {
        let text = format!("upstream `{}` has the same path prefix", other.name);
        check.problem(given.place, text, "give each its own prefix");
        return None;
    }
    Some(prefix.to_owned())
}

fn outbound(given: Opt<String>, url: Option<&UpstreamUrl>, check: &mut Check<'_>) -> Option<OutboundProxy> {
    let At { value, place } = given?;
    let (text, source) = match value.trim() {
        "" | "none" => return None,
        "environment" => {
            let url = url?;
            let names: &[&str] = if url.tls {
                &["HTTPS_PROXY", "https_proxy"]
            } else {
                &["http_proxy", "HTTP_PROXY"]
            };
            let set = |names: &[&str]| {
                names
                    .iter()
                    .find_map(|n| check.env(n).filter(|v| !v.trim().is_empty()))
            };
            if set(&["NO_PROXY", "no_proxy"]).is_some_and(|list| exempt(&list, &url.host)) {
                return None;
            }
            (set(names)?, "the proxy that the environment names: ")
        }
        text => (text.to_owned(), ""),
    };
    match url::proxy(text.trim()) {
        Ok((host, port, user)) => Some(OutboundProxy {
            host,
            port,
            authorization: user.map(|u| {
                Secret::new(format!(
                    "Basic {}",
                    base64::engine::general_purpose::STANDARD.encode(u)
                ))
            }),
        }),
        Err((why, hint)) => {
            check.problem(
                place,
                format!("{source}{why}"),
                format!("none, environment, or a URL: {hint}"),
            );
            None
        }
    }
}

/// Whether a `NO_PROXY` list names the host: exactly, as the end of its name, or by `*`.
fn exempt(list: &str, host: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .any(|entry| {
            let entry = entry.to_ascii_lowercase();
            let name = entry.trim_start_matches('*').trim_start_matches('.');
            entry == "*"
                || (!name.is_empty()
                    && (host == name || host.strip_suffix(name).is_some_and(|h| h.ends_with('.'))))
        })
}

#[cfg(test)]
mod tests {
    use super::exempt;

    #[test]
    fn no_proxy_lists() {
        for (list, host, want) in [
            ("", "a.b", false),
            ("*", "a.b", true),
            ("b", "a.b", true),
            (".b", "a.b", true),
            ("x, A.B", "a.b", true),
            ("b", "ab", false),
            ("*.b", "a.b", true),
            (".", "a.b", false),
        ] {
            assert_eq!(exempt(list, host), want, "{list} {host}");
        }
    }
}
