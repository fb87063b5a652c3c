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
