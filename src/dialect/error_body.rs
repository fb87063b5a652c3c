//! Refusals in the error shape of the API that was called.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use super::table::{Api, Family};

/// What kind of refusal it is; picks the API's own type and code words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefusalKind {
    /// Too many requests a minute.
    RateRequests,
    /// Too many tokens a minute.
    RateTokens,
    /// Too many at once.
    Concurrency,
    /// A budget is spent: no retry helps.
    Budget,
    /// A human or an incident stopped this agent.
    Contained,
    /// The request cannot be passed on as it is.
    BadRequest,
    /// Nobody serves it.
    NotFound,
    /// The body is too large.
    TooLarge,
    /// fusebox holds too much already.
    Overloaded,
    /// The upstream could not be reached or broke.
    UpstreamUnreachable,
    /// The upstream was silent for too long.
    UpstreamTimeout,
}

/// A refusal, before it has a shape.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Status.
    pub status: u16,
    /// Kind.
    pub kind: RefusalKind,
    /// Stable code of fusebox, as `fusebox_token_rate`.
    pub code: &'static str,
    /// For the caller.
    pub message: String,
    /// The exchange.
    pub request_id: String,
    /// When to come back: clamped to 1 to 60 s for `retry-after`, exact in `retry-after-ms`.
    pub retry_after: Option<Duration>,
    /// The incident behind it.
    pub incident: Option<String>,
    /// The rule behind that.
    pub rule: Option<String>,
    /// The limit.
    pub limit: Option<u64>,
    /// What is left of it.
    pub remaining: Option<u64>,
}

/// A refusal in the shape of an API.
#[derive(Debug, Clone)]
pub struct Rendered {
    /// Status.
    pub status: u16,
    /// Headers, content type included.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Refusal {
    /// A refusal without a limit behind it.
    pub fn new(
        status: u16,
        kind: RefusalKind,
        code: &'static str,
        message: String,
        request_id: &str,
    ) -> Self {
        Self {
            status,
            kind,
            code,
            message,
            request_id: request_id.to_owned(),
            retry_after: None,
            incident: None,
            rule: None,
            limit: None,
            remaining: None,
        }
    }
}

/// Longest wait that official SDKs obey, in milliseconds.
const MAX_WAIT_MS: u64 = 60_000;

/// Gives a refusal the shape of `api`.
///
/// Beside the API's own words every body has an object `fusebox` (Gemini: an `ErrorInfo` detail; Ollama: headers only)
/// with the stable code and what is known of incident, rule and limit. The status is kept, but for Anthropic's own
/// 529 when fusebox is overloaded.
pub fn render(api: Api, azure: bool, refusal: &Refusal) -> Rendered {
    let shape = Shape::of(api, azure);
    let status = match (shape, refusal.kind) {
        (Shape::Anthropic, RefusalKind::Overloaded) => 529,
        _ => refusal.status,
    };
    let message = message(refusal);
    let wait_ms = wait_ms(refusal);
    let body = body(shape, status, &message, wait_ms, refusal);
    Rendered {
        status,
        headers: headers(shape, wait_ms, refusal),
        // Writing to memory cannot fail.
        body: serde_json::to_vec(&body).unwrap_or_default(),
    }
}

/// Families of error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    OpenAi,
    Azure,
    Anthropic,
    Gemini,
    Bedrock,
    Cohere,
    Ollama,
}

impl Shape {
    fn of(api: Api, azure: bool) -> Self {
        match api.family() {
            Family::OpenAi if azure => Self::Azure,
            // What is not known most likely understands OpenAI's.
            Family::OpenAi | Family::Other => Self::OpenAi,
            Family::Anthropic => Self::Anthropic,
            Family::Gemini => Self::Gemini,
            Family::Bedrock => Self::Bedrock,
            Family::Cohere => Self::Cohere,
            Family::Ollama => Self::Ollama,
        }
    }
}

/// The message, with the incident in it.
fn message(refusal: &Refusal) -> String {
    match &refusal.incident {
        Some(incident) if !refusal.message.contains(incident.as_str()) => {
            format!("{} (incident {incident})", refusal.message)
        }
        _ => refusal.message.clone(),
    }
}

/// The wait in milliseconds, 1 to 60,000; `None` where no retry helps or nothing is known.
fn wait_ms(refusal: &Refusal) -> Option<u64> {
    if is_final(refusal.kind) {
        return None;
    }
    refusal.retry_after.map(|wait| {
        let nanos = wait.as_nanos();
        u64::try_from(nanos.div_ceil(1_000_000))
            .unwrap_or(MAX_WAIT_MS)
            .clamp(1, MAX_WAIT_MS)
    })
}

const fn is_final(kind: RefusalKind) -> bool {
    matches!(kind, RefusalKind::Budget | RefusalKind::Contained)
}

fn body(shape: Shape, status: u16, message: &str, wait_ms: Option<u64>, refusal: &Refusal) -> Value {
    let detail = detail(wait_ms, refusal);
    match shape {
        Shape::OpenAi => json!({"error": {
            "message": message,
            "type": openai_type(refusal.kind),
            "param": null,
            "code": refusal.code,
            "fusebox": detail,
        }}),
        Shape::Azure => {
            let code = if status == 429 { "429" } else { refusal.code };
            json!({"error": {"code": code, "message": message, "fusebox": detail}})
        }
        Shape::Anthropic => json!({
            "type": "error",
            "error": {"type": anthropic_type(refusal.kind), "message": message, "fusebox": detail},
            "request_id": refusal.request_id,
        }),
        Shape::Gemini => {
            let mut details = vec![json!({
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": refusal.code.to_ascii_uppercase(),
                "domain": "fusebox",
                "metadata": as_strings(detail),
            })];
            if let Some(ms) = wait_ms {
                details.push(json!({
                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retryDelay": format!("{}s", ms.div_ceil(1000)),
                }));
            }
            json!({"error": {
                "code": status,
                "message": message,
                "status": google_status(status),
                "details": details,
            }})
        }
        Shape::Bedrock => json!({"message": message, "fusebox": detail}),
        Shape::Cohere => json!({"id": refusal.request_id, "message": message, "fusebox": detail}),
        Shape::Ollama => json!({"error": message}),
    }
}

/// What is known, for programs.
fn detail(wait_ms: Option<u64>, refusal: &Refusal) -> Map<String, Value> {
    let mut detail = Map::new();
    detail.insert("code".into(), refusal.code.into());
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            detail.insert(name.into(), value);
        }
    };
    put("incident", refusal.incident.as_deref().map(Value::from));
    put("rule", refusal.rule.as_deref().map(Value::from));
    put("limit", refusal.limit.map(Value::from));
    put("remaining", refusal.remaining.map(Value::from));
    put("retry_after_ms", wait_ms.map(Value::from));
    put("request_id", Some(refusal.request_id.as_str().into()));
    detail
}

/// Google's metadata are texts.
fn as_strings(detail: Map<String, Value>) -> Map<String, Value> {
    detail
        .into_iter()
        .map(|(k, v)| match v {
            Value::String(_) => (k, v),
            other => (k, Value::String(other.to_string())),
        })
        .collect()
}

const fn openai_type(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::RateRequests | RefusalKind::Concurrency => "requests",
        RefusalKind::RateTokens => "tokens",
        RefusalKind::Budget => "insufficient_quota",
        RefusalKind::Contained => "permission_error",
        RefusalKind::BadRequest | RefusalKind::NotFound | RefusalKind::TooLarge => "invalid_request_error",
        RefusalKind::Overloaded | RefusalKind::UpstreamUnreachable | RefusalKind::UpstreamTimeout => {
            "server_error"
        }
    }
}

const fn anthropic_type(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::RateRequests
        | RefusalKind::RateTokens
        | RefusalKind::Concurrency
        | RefusalKind::Budget => "rate_limit_error",
        RefusalKind::Contained => "permission_error",
        RefusalKind::BadRequest => "invalid_request_error",
        RefusalKind::NotFound => "not_found_error",
        RefusalKind::TooLarge => "request_too_large",
        RefusalKind::Overloaded => "overloaded_error",
        RefusalKind::UpstreamUnreachable => "api_error",
        RefusalKind::UpstreamTimeout => "timeout_error",
    }
}

const fn bedrock_type(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::RateRequests | RefusalKind::RateTokens | RefusalKind::Concurrency => {
            "ThrottlingException"
        }
        RefusalKind::Budget => "ServiceQuotaExceededException",
        RefusalKind::Contained => "AccessDeniedException",
        RefusalKind::BadRequest | RefusalKind::TooLarge => "ValidationException",
        RefusalKind::NotFound => "ResourceNotFoundException",
        RefusalKind::Overloaded => "ServiceUnavailableException",
        RefusalKind::UpstreamUnreachable => "InternalServerException",
        RefusalKind::UpstreamTimeout => "ModelTimeoutException",
    }
}

const fn google_status(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        408 | 504 => "DEADLINE_EXCEEDED",
        429 => "RESOURCE_EXHAUSTED",
        500 => "INTERNAL",
        502 | 503 => "UNAVAILABLE",
        _ => "INVALID_ARGUMENT",
    }
}

/// What fusebox does to the agent, where an order is behind the refusal.
const fn action(kind: RefusalKind) -> Option<&'static str> {
    match kind {
        RefusalKind::RateRequests | RefusalKind::RateTokens => Some("throttle"),
        RefusalKind::Concurrency => Some("cap_concurrency"),
        RefusalKind::Budget => Some("budget"),
        RefusalKind::Contained => Some("contain"),
        _ => None,
    }
}

fn headers(shape: Shape, wait_ms: Option<u64>, refusal: &Refusal) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::with_capacity(12);
    let mut put = |name: &'static str, value: &str| {
        // A value that cannot stand in a header is left out; it is in the body.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
            headers.push((HeaderName::from_static(name), value));
        }
    };
    put("content-type", "application/json");
    put("x-request-id", &refusal.request_id);
    match shape {
        Shape::Anthropic => put("request-id", &refusal.request_id),
        Shape::Bedrock => {
            put("x-amzn-requestid", &refusal.request_id);
            put("x-amzn-errortype", bedrock_type(refusal.kind));
        }
        _ => {}
    }
    if let Some(ms) = wait_ms {
        put("retry-after", &ms.div_ceil(1000).to_string());
        put("retry-after-ms", &ms.to_string());
    }
    if is_final(refusal.kind) {
        put("x-should-retry", "false");
    }
    put("x-fusebox-code", refusal.code);
    if let Some(incident) = &refusal.incident {
        put("x-fusebox-incident", incident);
    }
    if let Some(rule) = &refusal.rule {
        put("x-fusebox-rule", rule);
    }
    if let Some(action) = action(refusal.kind) {
        put("x-fusebox-action", action);
    }
    if let Some([limit, remaining, reset]) = limit_headers(shape, refusal.kind) {
        if let Some(value) = refusal.limit {
            put(limit, &value.to_string());
        }
        if let Some(value) = refusal.remaining {
            put(remaining, &value.to_string());
        }
        if let Some(ms) = wait_ms.filter(|_| !reset.is_empty()) {
            put(reset, &reset_text(shape, ms));
        }
    }
    headers
}

/// Names of the limit headers: limit, what is left, and when it is whole again (none where that is a point in time).
const fn limit_headers(shape: Shape, kind: RefusalKind) -> Option<[&'static str; 3]> {
    match (shape, kind) {
        (Shape::OpenAi | Shape::Azure, RefusalKind::RateRequests) => Some([
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        ]),
        (Shape::OpenAi | Shape::Azure, RefusalKind::RateTokens) => Some([
            "x-ratelimit-limit-tokens",
            "x-ratelimit-remaining-tokens",
            "x-ratelimit-reset-tokens",
        ]),
        (Shape::Anthropic, RefusalKind::RateRequests) => Some([
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
            "",
        ]),
        (Shape::Anthropic, RefusalKind::RateTokens) => Some([
            "anthropic-ratelimit-tokens-limit",
            "anthropic-ratelimit-tokens-remaining",
            "",
        ]),
        _ => None,
    }
}

/// A duration as OpenAI writes it (`12ms`, `1.5s`); Azure writes whole seconds.
fn reset_text(shape: Shape, ms: u64) -> String {
    if shape == Shape::Azure {
        return ms.div_ceil(1000).to_string();
    }
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (whole, part) = (ms / 1000, ms % 1000);
    let fraction = format!("{part:03}");
    match fraction.trim_end_matches('0') {
        "" => format!("{whole}s"),
        digits => format!("{whole}.{digits}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const APIS: [(Api, bool); 8] = [
        (Api::OpenAiChat, false),
        (Api::OpenAiChat, true),
        (Api::OpenAiResponses, false),
        (Api::AnthropicMessages, false),
        (Api::GeminiGenerateContent, false),
        (Api::BedrockConverse, false),
        (Api::CohereChat, false),
        (Api::OllamaChat, false),
    ];

    fn throttled() -> Refusal {
        let mut refusal = Refusal::new(
            429,
            RefusalKind::RateTokens,
            "fusebox_token_rate",
            "held to 100 \"tokens\"".into(),
            "req-1",
        );
        refusal.retry_after = Some(Duration::from_micros(1_500_001));
        refusal.incident = Some("inc-7".into());
        refusal.rule = Some("règle".into());
        refusal.limit = Some(100);
        refusal.remaining = Some(0);
        refusal
    }

    fn header<'a>(rendered: &'a Rendered, name: &str) -> Option<&'a str> {
        let mut found = rendered.headers.iter().filter(|(k, _)| k == name);
        let value = found
            .next()
            .map(|(_, v)| std::str::from_utf8(v.as_bytes()).unwrap());
        assert!(found.next().is_none(), "{name} twice");
        value
    }

    #[test]
    fn each_api_gets_its_own_shape() {
        let message = "held to 100 \"tokens\" (incident inc-7)";
        for ((api, azure), pointers) in APIS.into_iter().zip([
            vec![
                ("/error/message", json!(message)),
                ("/error/type", json!("tokens")),
                ("/error/param", Value::Null),
                ("/error/code", json!("fusebox_token_rate")),
                ("/error/fusebox/limit", json!(100)),
            ],
            vec![("/error/code", json!("429")), ("/error/message", json!(message))],
            vec![("/error/type", json!("tokens"))],
            vec![
                ("/type", json!("error")),
                ("/error/type", json!("rate_limit_error")),
                ("/error/message", json!(message)),
                ("/request_id", json!("req-1")),
            ],
            vec![
                ("/error/code", json!(429)),
                ("/error/status", json!("RESOURCE_EXHAUSTED")),
                ("/error/details/0/reason", json!("FUSEBOX_TOKEN_RATE")),
                ("/error/details/0/metadata/limit", json!("100")),
                ("/error/details/1/retryDelay", json!("2s")),
            ],
            vec![
                ("/message", json!(message)),
                ("/fusebox/code", json!("fusebox_token_rate")),
            ],
            vec![("/message", json!(message)), ("/id", json!("req-1"))],
            vec![("/error", json!(message))],
        ]) {
            let rendered = render(api, azure, &throttled());
            let body: Value = serde_json::from_slice(&rendered.body).unwrap();
            for (pointer, want) in pointers {
                assert_eq!(body.pointer(pointer), Some(&want), "{api:?} {pointer} in {body}");
            }
            assert_eq!(rendered.status, 429);
            for (name, want) in [
                ("content-type", "application/json"),
                ("x-request-id", "req-1"),
                ("retry-after", "2"),
                ("retry-after-ms", "1501"),
                ("x-fusebox-incident", "inc-7"),
                ("x-fusebox-rule", "règle"),
                ("x-fusebox-action", "throttle"),
            ] {
                assert_eq!(header(&rendered, name), Some(want), "{api:?}");
            }
            assert_eq!(header(&rendered, "x-should-retry"), None);
        }
    }

    #[test]
    fn limits_are_said_in_the_apis_own_headers() {
        let openai = render(Api::OpenAiChat, false, &throttled());
        assert_eq!(header(&openai, "x-ratelimit-limit-tokens"), Some("100"));
        assert_eq!(header(&openai, "x-ratelimit-remaining-tokens"), Some("0"));
        assert_eq!(header(&openai, "x-ratelimit-reset-tokens"), Some("1.501s"));
        let azure = render(Api::OpenAiChat, true, &throttled());
        assert_eq!(header(&azure, "x-ratelimit-reset-tokens"), Some("2"));
        let anthropic = render(Api::AnthropicMessages, false, &throttled());
        assert_eq!(
            header(&anthropic, "anthropic-ratelimit-tokens-limit"),
            Some("100")
        );
        assert_eq!(header(&anthropic, "request-id"), Some("req-1"));
        let bedrock = render(Api::BedrockInvoke, false, &throttled());
        assert_eq!(header(&bedrock, "x-amzn-errortype"), Some("ThrottlingException"));
        assert_eq!(header(&bedrock, "x-amzn-requestid"), Some("req-1"));
        for (ms, want) in [(7, "7ms"), (1000, "1s"), (60_000, "60s"), (1050, "1.05s")] {
            assert_eq!(reset_text(Shape::OpenAi, ms), want);
        }
    }

    #[test]
    fn where_no_retry_helps_none_is_advised() {
        for kind in [RefusalKind::Budget, RefusalKind::Contained] {
            for (api, azure) in APIS {
                let mut refusal = throttled();
                refusal.kind = kind;
                let rendered = render(api, azure, &refusal);
                assert_eq!(header(&rendered, "x-should-retry"), Some("false"));
                assert_eq!(header(&rendered, "retry-after"), None);
                assert_eq!(header(&rendered, "retry-after-ms"), None);
                assert!(!String::from_utf8(rendered.body).unwrap().contains("RetryInfo"));
            }
        }
    }

    #[test]
    fn words_fit_the_kind() {
        let render = |api, kind, status| {
            let refusal = Refusal::new(status, kind, "fusebox_x", "m".into(), "r");
            let rendered = super::render(api, false, &refusal);
            (rendered.status, String::from_utf8(rendered.body).unwrap())
        };
        for (api, kind, status, want_status, word) in [
            (
                Api::OpenAiChat,
                RefusalKind::Budget,
                429,
                429,
                "insufficient_quota",
            ),
            (
                Api::OpenAiChat,
                RefusalKind::TooLarge,
                413,
                413,
                "invalid_request_error",
            ),
            (
                Api::AnthropicMessages,
                RefusalKind::Overloaded,
                503,
                529,
                "overloaded_error",
            ),
            (
                Api::AnthropicMessages,
                RefusalKind::TooLarge,
                413,
                413,
                "request_too_large",
            ),
            (
                Api::GeminiEmbed,
                RefusalKind::UpstreamTimeout,
                504,
                504,
                "DEADLINE_EXCEEDED",
            ),
            (
                Api::GeminiEmbed,
                RefusalKind::Contained,
                403,
                403,
                "PERMISSION_DENIED",
            ),
            (
                Api::Other,
                RefusalKind::NotFound,
                404,
                404,
                "invalid_request_error",
            ),
        ] {
            let (status, body) = render(api, kind, status);
            assert_eq!(status, want_status);
            assert!(body.contains(word), "{body}");
        }
    }

    proptest! {
        #[test]
        fn waits_never_contradict_and_anything_may_be_said(
            nanos in prop_oneof![0u64..3_000_000, any::<u64>()],
            message in ".{0,60}",
            incident in proptest::option::of("\\PC{0,20}|[\\x00-\\x20]{0,5}"),
            api in 0..APIS.len(),
        ) {
            let mut refusal = throttled();
            refusal.retry_after = Some(Duration::from_nanos(nanos));
            refusal.message = message;
            refusal.incident = incident;
            let (api, azure) = APIS[api];
            let rendered = render(api, azure, &refusal);
            prop_assert!(serde_json::from_slice::<Value>(&rendered.body).is_ok());
            let seconds: u64 = header(&rendered, "retry-after").unwrap().parse().unwrap();
            let ms: u64 = header(&rendered, "retry-after-ms").unwrap().parse().unwrap();
            prop_assert!((1..=60).contains(&seconds) && ms > 0);
            prop_assert_eq!(seconds, ms.div_ceil(1000));
        }
    }
}
