//! One row per API: paths, where the model stands, how the answer is read, how an error is spelt.

/// A body family that upstreams may be limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Chat Completions, Responses, Completions, Embeddings and the other `/v1` shapes of OpenAI.
    OpenAi,
    /// Messages and count_tokens.
    Anthropic,
    /// generateContent, interactions and relatives (Gemini and Vertex).
    Gemini,
    /// `/api/chat`, `/api/generate`, `/api/embed`.
    Ollama,
    /// `/v2/chat` and `/v1/chat`.
    Cohere,
    /// Converse and InvokeModel.
    Bedrock,
    /// Everything else.
    Other,
}

/// Which API is spoken, by the shape of its bodies, whoever serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Api {
    /// `…/chat/completions`
    OpenAiChat,
    /// `…/responses`
    OpenAiResponses,
    /// `…/completions`
    OpenAiCompletions,
    /// `…/embeddings`
    OpenAiEmbeddings,
    /// `…/images/…`
    OpenAiImages,
    /// `…/audio/…`
    OpenAiAudio,
    /// `…/moderations`
    OpenAiModerations,
    /// Lists of models, any vendor.
    Models,
    /// `/v1/messages`
    AnthropicMessages,
    /// `/v1/messages/count_tokens`
    AnthropicCountTokens,
    /// `:generateContent`, `:streamGenerateContent`
    GeminiGenerateContent,
    /// `:countTokens`
    GeminiCountTokens,
    /// `:embedContent`, `:batchEmbedContents`
    GeminiEmbed,
    /// `/interactions`
    GeminiInteractions,
    /// `/api/chat`
    OllamaChat,
    /// `/api/generate`
    OllamaGenerate,
    /// `/api/embed`, `/api/embeddings`
    OllamaEmbed,
    /// `/v2/chat`, `/v1/chat`
    CohereChat,
    /// `/model/{id}/converse`, `/converse-stream`
    BedrockConverse,
    /// `/model/{id}/invoke`, `/invoke-with-response-stream`
    BedrockInvoke,
    /// Everything else: passed on, counted, not read.
    Other,
}

impl Api {
    /// The name used in observations and metrics, as `openai.chat`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OpenAiChat => "openai.chat",
            Self::OpenAiResponses => "openai.responses",
            Self::OpenAiCompletions => "openai.completions",
            Self::OpenAiEmbeddings => "openai.embeddings",
            Self::OpenAiImages => "openai.images",
            Self::OpenAiAudio => "openai.audio",
            Self::OpenAiModerations => "openai.moderations",
            Self::Models => "models",
            Self::AnthropicMessages => "anthropic.messages",
            Self::AnthropicCountTokens => "anthropic.count_tokens",
            Self::GeminiGenerateContent => "gemini.generate_content",
            Self::GeminiCountTokens => "gemini.count_tokens",
            Self::GeminiEmbed => "gemini.embed",
            Self::GeminiInteractions => "gemini.interactions",
            Self::OllamaChat => "ollama.chat",
            Self::OllamaGenerate => "ollama.generate",
            Self::OllamaEmbed => "ollama.embed",
            Self::CohereChat => "cohere.chat",
            Self::BedrockConverse => "bedrock.converse",
            Self::BedrockInvoke => "bedrock.invoke",
            Self::Other => "other",
        }
    }

    /// The family that upstreams are told apart by.
    pub const fn family(self) -> Family {
        match self {
            Self::OpenAiChat
            | Self::OpenAiResponses
            | Self::OpenAiCompletions
            | Self::OpenAiEmbeddings
            | Self::OpenAiImages
            | Self::OpenAiAudio
            | Self::OpenAiModerations => Family::OpenAi,
            Self::AnthropicMessages | Self::AnthropicCountTokens => Family::Anthropic,
            Self::GeminiGenerateContent
            | Self::GeminiCountTokens
            | Self::GeminiEmbed
            | Self::GeminiInteractions => Family::Gemini,
            Self::OllamaChat | Self::OllamaGenerate | Self::OllamaEmbed => Family::Ollama,
            Self::CohereChat => Family::Cohere,
            Self::BedrockConverse | Self::BedrockInvoke => Family::Bedrock,
            Self::Models | Self::Other => Family::Other,
        }
    }

    /// Whether it generates (so that a cheaper model can stand in and tokens are spent in quantity).
    pub const fn generates(self) -> bool {
        matches!(
            self,
            Self::OpenAiChat
                | Self::OpenAiResponses
                | Self::OpenAiCompletions
                | Self::AnthropicMessages
                | Self::GeminiGenerateContent
                | Self::GeminiInteractions
                | Self::OllamaChat
                | Self::OllamaGenerate
                | Self::CohereChat
                | Self::BedrockConverse
                | Self::BedrockInvoke
        )
    }
}

/// What the head of a request says about the API it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which API.
    pub api: Api,
    /// Azure's dialect of OpenAI's APIs (deployment in the path).
    pub azure: bool,
    /// The model or deployment that the path names, decoded, where the path and not the body decides.
    pub path_model: Option<String>,
    /// The path itself asks for a stream (`:streamGenerateContent`, `converse-stream`, …).
    pub path_stream: bool,
}

impl Route {
    fn plain(api: Api) -> Self {
        Self {
            api,
            azure: false,
            path_model: None,
            path_stream: false,
        }
    }
}

/// Tells the API from method, path (without an agent prefix) and query.
///
/// The tail of the path decides, since vendors put it under paths of their own; doubled and trailing slashes do not
/// matter. Only requests that may use tokens are told apart: reading a stored response again is [`Api::Other`].
pub fn route(method: &http::Method, path: &str, query: Option<&str>) -> Route {
    if method == http::Method::GET || method == http::Method::HEAD {
        return Route::plain(if lists_models(path) {
            Api::Models
        } else {
            Api::Other
        });
    }
    if method != http::Method::POST {
        return Route::plain(Api::Other);
    }
    let (api, path_stream) = by_tail(path);
    let mut route = Route::plain(api);
    route.path_stream = path_stream;
    let model = split_model(api, path).map(|split| split.model);
    route.azure = api.family() == Family::OpenAi
        && (names_deployment(path)
            || query.is_some_and(|q| q.split('&').any(|p| p.starts_with("api-version="))));
    route.path_model = model.map(|m| {
        percent_encoding::percent_decode_str(m)
            .decode_utf8_lossy()
            .into_owned()
    });
    route
}

/// Corrects a route by the body where two vendors speak different APIs under one path: `/v1/chat` is Cohere's (with
/// `message`) and also Writer's (with `messages`, in OpenAI's shape).
pub fn refine(route: &mut Route, path: &str, body: &[u8]) {
    if route.api != Api::CohereChat {
        return;
    }
    let mut tail = segments(path);
    tail.next();
    if tail.next() == Some("v1")
        && super::json::member(body, "message").is_none()
        && super::json::member(body, "messages").is_some()
    {
        route.api = Api::OpenAiChat;
    }
}

/// A path taken apart around the model that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SplitPath<'a> {
    pub(super) before: &'a str,
    /// As written: percent-encoded.
    pub(super) model: &'a str,
    pub(super) after: &'a str,
}

/// Finds the model in a path of `api`; `None` where the body names it.
pub(super) fn split_model(api: Api, path: &str) -> Option<SplitPath<'_>> {
    let split = match api.family() {
        Family::Bedrock => {
            let end = path.trim_end_matches('/').rfind('/')?;
            let start = path.find("/model/")? + "/model/".len();
            cut(path, start, end)
        }
        Family::OpenAi if names_deployment(path) => {
            let start = path.find(DEPLOYMENTS)? + DEPLOYMENTS.len();
            let (_, rest) = path.split_at_checked(start)?;
            cut(path, start, start + rest.find('/')?)
        }
        Family::Gemini | Family::Anthropic | Family::OpenAi => {
            let start = path.trim_end_matches('/').rfind('/')? + 1;
            let (_, last) = path.split_at_checked(start)?;
            let colon = last.rfind(':').or_else(|| {
                last.rfind('%')?;
                last.rfind("%3A").or_else(|| last.rfind("%3a"))
            })?;
            cut(path, start, start + colon)
        }
        _ => None,
    }?;
    // Vertex counts Anthropic's tokens under a model of this name; the real one is in the body.
    (!split.model.is_empty() && split.model != "count-tokens").then_some(split)
}

/// Stands before the name of a deployment in Azure's paths.
const DEPLOYMENTS: &str = "/openai/deployments/";

/// Whether a path names a deployment. Hardly any does: one rare letter tells most of them without a search.
fn names_deployment(path: &str) -> bool {
    path.as_bytes().contains(&b'y') && path.contains(DEPLOYMENTS)
}

fn cut(path: &str, start: usize, end: usize) -> Option<SplitPath<'_>> {
    let (before, _) = path.split_at_checked(start)?;
    let (_, after) = path.split_at_checked(end)?;
    let model = path.get(start..end)?.trim_matches('/');
    Some(SplitPath { before, model, after })
}

/// Parts of a path from its end, empty ones left out.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.rsplit('/').filter(|s| !s.is_empty())
}

/// `…/models`, or one of them: `…/models/{id}`, where vendors put slashes into ids.
fn lists_models(path: &str) -> bool {
    segments(path).take(4).any(|s| s == "models")
}

fn by_tail(path: &str) -> (Api, bool) {
    let mut back = segments(path);
    let last = back.next().unwrap_or_default();
    let before = back.next().unwrap_or_default();
    let api = match (before, last) {
        ("chat" | "agents", "completions") => Api::OpenAiChat,
        (_, "completions") => Api::OpenAiCompletions,
        (_, "responses") => Api::OpenAiResponses,
        ("api", "embed" | "embeddings") => Api::OllamaEmbed,
        (_, "embeddings") => Api::OpenAiEmbeddings,
        ("images", "generations" | "edits" | "variations") => Api::OpenAiImages,
        ("audio", "transcriptions" | "translations" | "speech") => Api::OpenAiAudio,
        (_, "moderations") => Api::OpenAiModerations,
        ("messages", "count_tokens") => Api::AnthropicCountTokens,
        // Messages of OpenAI's threads are stored things.
        (_, "messages") if !path.contains("/threads/") => Api::AnthropicMessages,
        (_, "interactions") => Api::GeminiInteractions,
        ("api", "chat") => Api::OllamaChat,
        ("api", "generate") => Api::OllamaGenerate,
        ("v1" | "v2" | "cohere", "chat") => Api::CohereChat,
        _ => return by_verb(path, last),
    };
    (api, false)
}

/// Google's `model:verb` and Bedrock's `model/{id}/verb`.
fn by_verb(path: &str, last: &str) -> (Api, bool) {
    if path.contains("/model/") {
        match last {
            "converse" => return (Api::BedrockConverse, false),
            "converse-stream" => return (Api::BedrockConverse, true),
            "invoke" => return (Api::BedrockInvoke, false),
            "invoke-with-response-stream" => return (Api::BedrockInvoke, true),
            _ => {}
        }
    }
    let Some((model, verb)) = last
        .rsplit_once(':')
        .or_else(|| last.rsplit_once("%3A"))
        .or_else(|| last.rsplit_once("%3a"))
    else {
        return (Api::Other, false);
    };
    match verb {
        "generateContent" => (Api::GeminiGenerateContent, false),
        "streamGenerateContent" => (Api::GeminiGenerateContent, true),
        "countTokens" => (Api::GeminiCountTokens, false),
        "embedContent" | "batchEmbedContents" => (Api::GeminiEmbed, false),
        // Vertex passes other vendors' bodies on as they are.
        "rawPredict" | "streamRawPredict" => {
            let stream = verb == "streamRawPredict";
            if path.contains("/publishers/anthropic/") {
                let api = if model == "count-tokens" {
                    Api::AnthropicCountTokens
                } else {
                    Api::AnthropicMessages
                };
                (api, stream)
            } else if path.contains("/publishers/mistralai/") {
                (Api::OpenAiChat, stream)
            } else {
                (Api::Other, false)
            }
        }
        _ => (Api::Other, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn post(path: &str) -> Route {
        let (path, query) = path.split_once('?').map_or((path, None), |(p, q)| (p, Some(q)));
        route(&Method::POST, path, query)
    }

    #[test]
    fn the_tail_of_the_path_decides() {
        for (path, want) in [
            ("/v1/chat/completions", "openai.chat"),
            ("/chat/completions", "openai.chat"),
            ("//chat/completions/", "openai.chat"),
            ("/v1//chat//completions", "openai.chat"),
            ("/openai/v1/chat/completions", "openai.chat"),
            ("/api/coding/paas/v4/chat/completions", "openai.chat"),
            ("/hf/models/a/b/v1/chat/completions", "openai.chat"),
            ("/v1/agents/completions", "openai.chat"),
            ("/v1/completions", "openai.completions"),
            ("/v1/fim/completions", "openai.completions"),
            ("/v1/responses", "openai.responses"),
            ("/backend-api/codex/responses", "openai.responses"),
            ("/v1/responses/resp_1/cancel", "other"),
            ("/v1/responses/input_tokens", "other"),
            ("/v1/embeddings", "openai.embeddings"),
            ("/api/v1/embeddings", "openai.embeddings"),
            ("/v1/images/edits", "openai.images"),
            ("/v1/audio/speech", "openai.audio"),
            ("/v1/moderations", "openai.moderations"),
            ("/v1/messages", "anthropic.messages"),
            ("/messages", "anthropic.messages"),
            ("/v1/v1/messages", "anthropic.messages"),
            ("/v1/messages/count_tokens", "anthropic.count_tokens"),
            ("/v1/messages/batches", "other"),
            ("/v1/threads/thread_1/messages", "other"),
            ("/v1beta/interactions", "gemini.interactions"),
            ("/api/chat", "ollama.chat"),
            ("/api/generate", "ollama.generate"),
            ("/api/embed", "ollama.embed"),
            ("/api/embeddings", "ollama.embed"),
            ("/v2/chat", "cohere.chat"),
            ("/v1/chat", "cohere.chat"),
            ("/chat", "other"),
            ("/v1/complete", "other"),
            ("/v1/rerank", "other"),
            ("/", "other"),
            ("", "other"),
        ] {
            let route = post(path);
            assert_eq!(route.api.name(), want, "{path}");
            assert_eq!((route.path_model, route.path_stream), (None, false), "{path}");
        }
    }

    #[test]
    fn paths_name_models() {
        let vertex = "/v1/projects/p/locations/l/publishers";
        for (path, api, model, stream) in [
            (
                "/v1beta/models/gemini-2.5-pro:generateContent",
                "gemini.generate_content",
                "gemini-2.5-pro",
                false,
            ),
            (
                "/v1beta/models/g:streamGenerateContent?alt=sse",
                "gemini.generate_content",
                "g",
                true,
            ),
            (
                "/v1beta/tunedModels/mine%3AgenerateContent",
                "gemini.generate_content",
                "mine",
                false,
            ),
            ("/v1beta/models/g:countTokens", "gemini.count_tokens", "g", false),
            ("/v1beta/models/e:batchEmbedContents", "gemini.embed", "e", false),
            (
                &format!("{vertex}/anthropic/models/claude-3-7-sonnet@20250219:streamRawPredict"),
                "anthropic.messages",
                "claude-3-7-sonnet@20250219",
                true,
            ),
            (
                &format!("{vertex}/mistralai/models/m:rawPredict"),
                "openai.chat",
                "m",
                false,
            ),
            (
                "/model/anthropic.claude-v2%3A1/converse",
                "bedrock.converse",
                "anthropic.claude-v2:1",
                false,
            ),
            (
                "/model/a.b-v1:0/converse-stream",
                "bedrock.converse",
                "a.b-v1:0",
                true,
            ),
            (
                "/bedrock/model/arn%3Aaws%3Abedrock%3Ax%2Fy/invoke",
                "bedrock.invoke",
                "arn:aws:bedrock:x/y",
                false,
            ),
            (
                "/model/m/invoke-with-response-stream",
                "bedrock.invoke",
                "m",
                true,
            ),
            (
                "//openai/deployments/my%20gpt/chat/completions",
                "openai.chat",
                "my gpt",
                false,
            ),
            (
                "/openai/deployments/d/embeddings?api-version=1",
                "openai.embeddings",
                "d",
                false,
            ),
        ] {
            let route = post(path);
            assert_eq!(route.api.name(), api, "{path}");
            assert_eq!(route.path_model.as_deref(), Some(model), "{path}");
            assert_eq!(route.path_stream, stream, "{path}");
            assert_eq!(route.azure, path.contains("/deployments/"), "{path}");
        }
        let count = post(&format!("{vertex}/anthropic/models/count-tokens:rawPredict"));
        assert_eq!((count.api, count.path_model), (Api::AnthropicCountTokens, None));
        assert_eq!(post("/v1beta/models/imagen:predict").api, Api::Other);
        assert_eq!(post("/model/m/count-tokens").api, Api::Other);
        assert_eq!(post("/model/converse").path_model, None);
    }

    #[test]
    fn azure_is_told_by_its_marks() {
        assert!(post("/openai/v1/chat/completions?api-version=preview").azure);
        assert!(post("/models/chat/completions?x=1&api-version=2024-05-01-preview").azure);
        assert!(!post("/openai/v1/chat/completions").azure);
        assert!(!post("/v1/messages?api-version=1").azure);
    }

    #[test]
    fn the_method_matters() {
        for (method, path, want) in [
            (Method::GET, "/v1/models", Api::Models),
            (Method::GET, "/api/v1/models/", Api::Models),
            (Method::GET, "/v1/models/openai/gpt-4o", Api::Models),
            (Method::HEAD, "/v1/models", Api::Models),
            (Method::GET, "/v1/responses/resp_1", Api::Other),
            (Method::GET, "/v1/chat/completions", Api::Other),
            (Method::HEAD, "/", Api::Other),
            (Method::DELETE, "/v1/models/ft", Api::Other),
            (Method::OPTIONS, "/v1/messages", Api::Other),
        ] {
            assert_eq!(route(&method, path, None).api, want, "{method} {path}");
        }
    }

    #[test]
    fn one_path_of_two_vendors_is_told_apart_by_the_body() {
        for (path, body, want) in [
            (
                "/v1/chat",
                r#"{"model":"palmyra","messages":[]}"#,
                Api::OpenAiChat,
            ),
            ("/v1/chat", r#"{"message":"hi"}"#, Api::CohereChat),
            ("/v1/chat", "not json", Api::CohereChat),
            ("/v2/chat", r#"{"messages":[]}"#, Api::CohereChat),
            ("/v1/messages", r#"{"messages":[]}"#, Api::AnthropicMessages),
        ] {
            let mut route = post(path);
            refine(&mut route, path, body.as_bytes());
            assert_eq!(route.api, want, "{path} {body}");
        }
    }
}
