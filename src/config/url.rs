//! URLs of upstreams, proxies and alert targets, taken apart and judged.

use http::uri::{Scheme, Uri};

use crate::enforce::policy::UpstreamUrl;

/// Why a URL cannot be used, and what to do about it. Neither holds any part of the URL.
pub(super) type Unusable = (&'static str, &'static str);

/// The parts of an upstream's URL.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn upstream(text: &str) -> Result<UpstreamUrl, Unusable> {
    let uri = parse(text)?;
    let (tls, host, port) = origin(&uri)?;
    if uri.query().is_some() {
        return Err((
            "an upstream URL cannot have a query",
            "leave out everything from `?` on; the client's own query is passed on",
        ));
    }
    let shown_host = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.clone()
    };
    let authority = match (tls, port) {
        (true, 443) | (false, 80) => shown_host,
        _ => format!("{shown_host}:{port}"),
    };
    let authority = http::HeaderValue::try_from(authority).map_err(|_| NOT_A_URL)?;
    Ok(UpstreamUrl {
        tls,
        host,
        port,
        base_path: uri.path().trim_end_matches('/').to_owned(),
        authority,
    })
}

/// Whether an alert target's URL can be used.
///
/// # Errors
/// Why it cannot.
pub(super) fn target(text: &str) -> Result<(), Unusable> {
    origin(&parse(text)?).map(|_| ())
}

/// Host, port and user part (`user:password`, decoded) of an outbound proxy's URL.
///
/// # Errors
/// Why it cannot be used.
pub(super) fn proxy(text: &str) -> Result<(String, u16, Option<String>), Unusable> {
    let text = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    let uri = parse(&text)?;
    if uri.scheme() == Some(&Scheme::HTTPS) {
        return Err((
            "only plain HTTP proxies are supported",
            "write http://HOST:PORT; what goes through it is still TLS",
        ));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(("a proxy URL has no path", "write http://HOST:PORT"));
    }
    let authority = uri.authority().ok_or(NOT_A_URL)?.as_str();
    let user = authority.rsplit_once('@').map(|(user, _)| {
        percent_encoding::percent_decode_str(user)
            .decode_utf8_lossy()
            .into_owned()
    });
    let host = host(&uri)?;
    Ok((host, uri.port_u16().unwrap_or(80), user))
}

const NOT_A_URL: Unusable = (
    "not a URL",
    "write https://HOST, https://HOST:PORT or https://HOST/PATH",
);

fn parse(text: &str) -> Result<Uri, Unusable> {
    let text = text.trim();
    if !text.contains("://") {
        return Err((
            "a URL needs http:// or https://",
            "write https://HOST, https://HOST:PORT or https://HOST/PATH",
        ));
    }
    let uri: Uri = text.parse().map_err(|_| NOT_A_URL)?;
    match uri.scheme_str() {
        Some("http" | "https") => Ok(uri),
        _ => Err((
            "only http and https are supported",
            "write https://HOST or http://HOST",
        )),
    }
}

fn origin(uri: &Uri) -> Result<(bool, String, u16), Unusable> {
    let authority = uri.authority().ok_or(NOT_A_URL)?;
    if authority.as_str().contains('@') {
        return Err((
            "a URL with a user name or password in it",
            "remove everything up to the @; credentials come from the clients' own headers, or from *_file keys",
        ));
    }
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        // `http` takes a port that is empty or too large for the lack of one.
        None if authority.as_str().ends_with(':') || has_port(authority.as_str()) => return Err(NOT_A_URL),
        None if tls => 443,
        None => 80,
    };
    if port == 0 {
        return Err((
            "port 0 cannot be connected to",
            "write the port that the server listens on",
        ));
    }
    Ok((tls, host(uri)?, port))
}

fn has_port(authority: &str) -> bool {
    let after_address = authority.rsplit_once(']').map_or(authority, |(_, rest)| rest);
    after_address.contains(':')
}

fn host(uri: &Uri) -> Result<String, Unusable> {
    let host = uri.host().unwrap_or_default();
    let host = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    if host.is_empty() {
        return Err((
            "a URL without a host",
            "write https://HOST, https://HOST:PORT or https://HOST/PATH",
        ));
    }
    Ok(host.to_ascii_lowercase())
}

/// Whose API stands behind a host name; `unknown` when it does not say.
pub(super) fn provider(host: &str) -> &'static str {
    const EXACT: [(&str, &str); 26] = [
        ("api.openai.com", "openai"),
        ("api.anthropic.com", "anthropic"),
        ("generativelanguage.googleapis.com", "gemini"),
        ("aiplatform.googleapis.com", "vertex"),
        ("openrouter.ai", "openrouter"),
        ("api.groq.com", "groq"),
        ("api.mistral.ai", "mistral"),
        ("codestral.mistral.ai", "mistral"),
        ("api.cohere.com", "cohere"),
        ("api.cohere.ai", "cohere"),
        ("api.deepseek.com", "deepseek"),
        ("api.x.ai", "xai"),
        ("api.together.xyz", "together"),
        ("api.together.ai", "together"),
        ("api.cerebras.ai", "cerebras"),
        ("api.sambanova.ai", "sambanova"),
        ("api.novita.ai", "novita"),
        ("api.venice.ai", "venice"),
        ("api.writer.com", "writer"),
        ("api.z.ai", "zai"),
        ("router.huggingface.co", "huggingface"),
        ("ai-gateway.vercel.sh", "vercel-gateway"),
        ("models.github.ai", "github-models"),
        ("api.githubcopilot.com", "copilot"),
        ("chatgpt.com", "chatgpt"),
        ("api.doubleword.ai", "doubleword"),
    ];
    const SUFFIX: [(&str, &str); 8] = [
        (".openai.azure.com", "azure"),
        (".cognitiveservices.azure.com", "azure"),
        (".services.ai.azure.com", "azure"),
        (".api.openai.com", "openai"),
        ("-aiplatform.googleapis.com", "vertex"),
        (".snowflakecomputing.com", "snowflake"),
        (".cloud.databricks.com", "databricks"),
        (".azuredatabricks.net", "databricks"),
    ];
    let host = host.trim_end_matches('.');
    if let Some((_, provider)) = EXACT.iter().find(|(name, _)| *name == host) {
        return provider;
    }
    if host.ends_with(".amazonaws.com") || host.ends_with(".api.aws") || host.ends_with(".amazonaws.com.cn") {
        return match host {
            h if h.starts_with("bedrock-runtime.") || h.starts_with("bedrock-runtime-fips.") => "bedrock",
            h if h.starts_with("bedrock-mantle.") => "bedrock-mantle",
            _ => "unknown",
        };
    }
    SUFFIX
        .iter()
        .find(|(end, _)| host.ends_with(end))
        .map_or("unknown", |(_, provider)| provider)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams() {
        let u = upstream("https://API.openai.com/v1/").unwrap();
        assert_eq!(
            (u.tls, u.host.as_str(), u.port, u.base_path.as_str()),
            (true, "api.openai.com", 443, "/v1")
        );
        assert_eq!(u.authority, "api.openai.com");
        let u = upstream("http://[::1]:8080").unwrap();
        assert_eq!(
            (u.tls, u.host.as_str(), u.port, u.base_path.as_str()),
            (false, "::1", 8080, "")
        );
        assert_eq!(u.authority, "[::1]:8080");
        assert_eq!(upstream("http://h:80").unwrap().authority, "h");
        assert_eq!(upstream("https://h:80").unwrap().authority, "h:80");
    }

    #[test]
    fn bad_ones_say_why() {
        for (text, why) in [
            ("api.openai.com", "needs http://"),
            ("ftp://h", "only http and https"),
            ("https://user:pw@h/", "user name or password"),
            ("https://", "not a URL"),
            ("https://h/?a=b", "query"),
            ("https://h:99999", "not a URL"),
            ("https://h:0", "port 0"),
            ("https://h o/", "not a URL"),
            ("https://:80", ""),
        ] {
            let (problem, _) = upstream(text).unwrap_err();
            assert!(problem.contains(why), "{text}: {problem}");
        }
        assert!(target("https://hooks.example/T/x?y=1").is_ok());
        assert!(target("hooks.example").is_err());
    }

    #[test]
    fn proxies() {
        assert_eq!(proxy("http://p:3128"), Ok(("p".into(), 3128, None)));
        assert_eq!(proxy("p:3128"), Ok(("p".into(), 3128, None)));
        assert_eq!(
            proxy("http://me:a%40b@p"),
            Ok(("p".into(), 80, Some("me:a@b".into())))
        );
        assert!(proxy("https://p").is_err());
        assert!(proxy("http://p/x").is_err());
    }

    #[test]
    fn providers() {
        for (host, want) in [
            ("api.openai.com", "openai"),
            ("eu.api.openai.com", "openai"),
            ("acme.openai.azure.com", "azure"),
            ("bedrock-runtime.eu-west-1.amazonaws.com", "bedrock"),
            ("europe-west4-aiplatform.googleapis.com", "vertex"),
            ("llm.internal", "unknown"),
            ("evil-api.openai.com.example", "unknown"),
        ] {
            assert_eq!(provider(host), want, "{host}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "(https?://)?(?s).{0,30}") {
            upstream(&text).ok();
            target(&text).ok();
            proxy(&text).ok();
        }
    }
}
