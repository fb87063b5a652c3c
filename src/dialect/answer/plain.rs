//! APIs that put out no chat: embeddings, images, audio, moderations, lists of models, token counts.

use super::{Facts, error};
use crate::dialect::cursor::{Cursor, Str};
use crate::dialect::table::Api;
use crate::dialect::usage;
use crate::types::usage::Usage;

/// Reads a whole body.
pub(super) fn whole(api: Api, cursor: &mut Cursor<'_>, facts: &mut Facts) {
    if matches!(api, Api::Models | Api::Other) {
        return;
    }
    let mut usage = Usage::default();
    cursor.object(|key, c| match (api, key) {
        (Api::AnthropicCountTokens, b"input_tokens") => usage.input_tokens = c.count(),
        (Api::GeminiCountTokens, b"totalTokens") => usage.total_tokens = c.count(),
        (Api::GeminiCountTokens, b"cachedContentTokenCount") => usage.cached_input_tokens = c.count(),
        (Api::GeminiEmbed, b"usageMetadata") => usage = usage::gemini(c),
        (Api::GeminiEmbed, b"modelVersion") => facts.model(c.string()),
        (Api::OllamaEmbed, b"prompt_eval_count") => usage.input_tokens = c.count(),
        (
            Api::OllamaEmbed
            | Api::OpenAiEmbeddings
            | Api::OpenAiAudio
            | Api::OpenAiImages
            | Api::OpenAiModerations,
            b"model",
        ) => {
            facts.model(c.string());
        }
        (Api::OpenAiEmbeddings | Api::OpenAiAudio | Api::OpenAiImages | Api::OpenAiModerations, b"usage") => {
            usage = usage::common(c);
        }
        (Api::OpenAiAudio, b"text") => facts.text(c.string()),
        (_, b"error") if c.peek() == b'{' => error::error(c, facts),
        _ => {}
    });
    facts.usage(&usage);
}

/// Reads an event of a stream (images, transcriptions, speech).
pub(super) fn event(api: Api, cursor: &mut Cursor<'_>, facts: &mut Facts) {
    if !matches!(api, Api::OpenAiAudio | Api::OpenAiImages) {
        return;
    }
    let mut kind: Option<Str<'_>> = None;
    let mut delta = None;
    cursor.object(|key, c| match key {
        b"type" => kind = c.string(),
        b"delta" => delta = c.string(),
        b"usage" if c.peek() == b'{' => facts.usage(&usage::common(c)),
        b"error" if c.peek() == b'{' => error::error(c, facts),
        _ => {}
    });
    let Some(kind) = kind else { return };
    match kind.raw() {
        b"transcript.text.delta" => facts.text(delta),
        b"transcript.text.done"
        | b"speech.audio.done"
        | b"image_generation.completed"
        | b"image_edit.completed" => facts.said_end = true,
        _ => {}
    }
}
