//! Reads the usage objects of all APIs as they report, and makes their counts comparable (WIRE: accounting differs).

use super::cursor::Cursor;
use super::table::Api;
use crate::types::usage::{Normalised, Usage};

/// Takes what `newer` reports over into `usage`, count by count: the last one that was reported holds.
pub(super) fn merge(usage: &mut Usage, newer: &Usage) {
    let Usage {
        input_tokens,
        output_tokens,
        total_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        input_audio_tokens,
        output_audio_tokens,
        tool_use_input_tokens,
        header_input_tokens,
        header_output_tokens,
    } = newer;
    for (held, new) in [
        (&mut usage.input_tokens, input_tokens),
        (&mut usage.output_tokens, output_tokens),
        (&mut usage.total_tokens, total_tokens),
        (&mut usage.cached_input_tokens, cached_input_tokens),
        (&mut usage.cache_write_tokens, cache_write_tokens),
        (&mut usage.reasoning_tokens, reasoning_tokens),
        (&mut usage.input_audio_tokens, input_audio_tokens),
        (&mut usage.output_audio_tokens, output_audio_tokens),
        (&mut usage.tool_use_input_tokens, tool_use_input_tokens),
        (&mut usage.header_input_tokens, header_input_tokens),
        (&mut usage.header_output_tokens, header_output_tokens),
    ] {
        if new.is_some() {
            *held = *new;
        }
    }
}

/// Whether anything that costs tokens was reported in a body.
pub(super) const fn reported(usage: &Usage) -> bool {
    usage.input_tokens.is_some() || usage.output_tokens.is_some() || usage.total_tokens.is_some()
}

/// An audio or tool count only says something when there was any.
fn some(count: Option<u64>) -> Option<u64> {
    count.filter(|n| *n > 0)
}

/// The usage object of OpenAI's APIs and all who imitate them, and of Anthropic.
pub(super) fn common(cursor: &mut Cursor<'_>) -> Usage {
    let mut usage = Usage::default();
    // The same count under other names, for when it is not where it should be.
    let (mut cached, mut written, mut thought) = ([None; 4], None, None);
    cursor.object(|key, c| match key {
        b"prompt_tokens" | b"input_tokens" => set(&mut usage.input_tokens, c),
        b"completion_tokens" | b"output_tokens" => set(&mut usage.output_tokens, c),
        b"total_tokens" => set(&mut usage.total_tokens, c),
        b"prompt_tokens_details" | b"input_tokens_details" | b"prompt_token_details" => {
            c.object(|key, c| match key {
                b"cached_tokens" => set(&mut usage.cached_input_tokens, c),
                b"cache_write_tokens" => set(&mut usage.cache_write_tokens, c),
                b"audio_tokens" => usage.input_audio_tokens = some(c.count()),
                _ => {}
            });
        }
        b"completion_tokens_details" | b"output_tokens_details" | b"completion_token_details" => {
            c.object(|key, c| match key {
                b"reasoning_tokens" | b"thinking_tokens" => set(&mut usage.reasoning_tokens, c),
                b"audio_tokens" => usage.output_audio_tokens = some(c.count()),
                _ => {}
            });
        }
        b"prompt_cache_hit_tokens" => cached[0] = c.count(),
        b"cached_tokens" => cached[1] = c.count(),
        b"num_cached_tokens" => cached[2] = c.count(),
        b"cache_read_input_tokens" => cached[3] = c.count(),
        b"cache_creation_input_tokens" => written = c.count(),
        b"reasoning_tokens" => thought = c.count(),
        _ => {}
    });
    usage.cached_input_tokens = usage
        .cached_input_tokens
        .or_else(|| cached.into_iter().flatten().next());
    usage.cache_write_tokens = usage.cache_write_tokens.or(written);
    usage.reasoning_tokens = usage.reasoning_tokens.or(thought);
    usage
}

/// Gemini's `usageMetadata`.
pub(super) fn gemini(cursor: &mut Cursor<'_>) -> Usage {
    let mut usage = Usage::default();
    cursor.object(|key, c| match key {
        b"promptTokenCount" => usage.input_tokens = c.count(),
        b"candidatesTokenCount" => usage.output_tokens = c.count(),
        b"totalTokenCount" => usage.total_tokens = c.count(),
        b"cachedContentTokenCount" => usage.cached_input_tokens = c.count(),
        b"thoughtsTokenCount" => usage.reasoning_tokens = c.count(),
        b"toolUsePromptTokenCount" => usage.tool_use_input_tokens = some(c.count()),
        _ => {}
    });
    usage
}

/// The usage of Gemini's Interactions.
pub(super) fn interactions(cursor: &mut Cursor<'_>) -> Usage {
    let mut usage = Usage::default();
    cursor.object(|key, c| match key {
        b"total_input_tokens" => usage.input_tokens = c.count(),
        b"total_output_tokens" => usage.output_tokens = c.count(),
        b"total_tokens" => usage.total_tokens = c.count(),
        b"total_cached_tokens" => usage.cached_input_tokens = c.count(),
        b"total_thought_tokens" => usage.reasoning_tokens = c.count(),
        b"total_tool_use_tokens" => usage.tool_use_input_tokens = some(c.count()),
        _ => {}
    });
    usage
}

/// Converse's usage, and Nova's, which spells the cache counts the older way.
pub(super) fn converse(cursor: &mut Cursor<'_>) -> Usage {
    let mut usage = Usage::default();
    let (mut read, mut written) = (None, None);
    cursor.object(|key, c| match key {
        b"inputTokens" => usage.input_tokens = c.count(),
        b"outputTokens" => usage.output_tokens = c.count(),
        b"totalTokens" => usage.total_tokens = c.count(),
        b"cacheReadInputTokens" => usage.cached_input_tokens = c.count(),
        b"cacheWriteInputTokens" => usage.cache_write_tokens = c.count(),
        b"cacheReadInputTokenCount" => read = c.count(),
        b"cacheWriteInputTokenCount" => written = c.count(),
        _ => {}
    });
    usage.cached_input_tokens = usage.cached_input_tokens.or(read);
    usage.cache_write_tokens = usage.cache_write_tokens.or(written);
    usage
}

/// `amazon-bedrock-invocationMetrics`, Bedrock's own count for any family.
pub(super) fn invocation_metrics(cursor: &mut Cursor<'_>) -> Usage {
    let mut usage = Usage::default();
    cursor.object(|key, c| match key {
        b"inputTokenCount" => usage.input_tokens = c.count(),
        b"outputTokenCount" => usage.output_tokens = c.count(),
        b"cacheReadInputTokenCount" => usage.cached_input_tokens = c.count(),
        b"cacheWriteInputTokenCount" => usage.cache_write_tokens = c.count(),
        _ => {}
    });
    usage
}

/// Cohere's `usage` (v2) or `meta` (v1): all tokens, not those that were billed.
pub(super) fn cohere(cursor: &mut Cursor<'_>) -> Usage {
    let mut usage = Usage::default();
    cursor.object(|key, c| match key {
        b"tokens" => {
            c.object(|key, c| match key {
                b"input_tokens" => usage.input_tokens = c.count(),
                b"output_tokens" => usage.output_tokens = c.count(),
                b"reasoning_tokens" => usage.reasoning_tokens = c.count(),
                _ => {}
            });
        }
        b"cached_tokens" => usage.cached_input_tokens = c.count(),
        _ => {}
    });
    usage
}

fn set(held: &mut Option<u64>, cursor: &mut Cursor<'_>) {
    if let Some(n) = cursor.count() {
        *held = Some(n);
    }
}

/// What differs between APIs in what their counts include.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Accounting {
    /// Input includes cached tokens, output includes reasoning, unless the total says otherwise.
    Inclusive,
    /// Input is what was neither read from nor written to a cache; output includes reasoning.
    CacheApart,
    /// Input includes cached tokens but not those of tool-use prompts; output excludes thoughts.
    ThoughtsApart,
    /// Nothing is spent.
    Free,
}

/// Makes the counts of an API comparable.
pub(super) fn normalise(api: Api, usage: &Usage) -> Normalised {
    match accounting(api, usage) {
        Accounting::Free => Normalised::default(),
        Accounting::CacheApart => {
            let input = usage.input_tokens.or(usage.header_input_tokens);
            Normalised {
                input_total: sum([input, usage.cached_input_tokens, usage.cache_write_tokens]),
                output_total: usage.output_tokens.or(usage.header_output_tokens),
            }
        }
        Accounting::ThoughtsApart => {
            let input_total = sum([usage.input_tokens, usage.tool_use_input_tokens]);
            // A count of zero is left out, so that a prompt count alone means that nothing was put out.
            let none = input_total
                .filter(|_| usage.total_tokens.is_some() && api != Api::GeminiEmbed)
                .map(|_| 0);
            Normalised {
                input_total,
                output_total: sum([usage.output_tokens, usage.reasoning_tokens]).or(none),
            }
        }
        Accounting::Inclusive => inclusive(usage),
    }
}

fn inclusive(usage: &Usage) -> Normalised {
    let input = usage.input_tokens.or(usage.header_input_tokens);
    let output = usage.output_tokens.or(usage.header_output_tokens);
    let (Some(total), Some(i)) = (usage.total_tokens, input) else {
        // An embedding may report its total alone.
        let alone = if input.is_none() && output.is_none() {
            usage.total_tokens
        } else {
            None
        };
        return Normalised {
            input_total: input.or(alone),
            output_total: output,
        };
    };
    let rest = total.saturating_sub(i.saturating_add(output.unwrap_or(0)));
    let reasoning = usage.reasoning_tokens.unwrap_or(0);
    let audio = usage.input_audio_tokens.unwrap_or(0);
    let cached = usage.cached_input_tokens.unwrap_or(0);
    let cache = cached.saturating_add(usage.cache_write_tokens.unwrap_or(0));
    // xAI counts reasoning, and Mistral audio, beside what it is part of elsewhere; the total gives it away. Gemini
    // does not say at all what it thought when it is asked in OpenAI's shape, but its total includes it.
    let (more_in, more_out) = if rest == 0 {
        (0, 0)
    } else if rest == reasoning {
        (0, reasoning)
    } else if [audio, cached, cache].contains(&rest) {
        (rest, 0)
    } else if rest == audio.saturating_add(reasoning) {
        (audio, reasoning)
    } else if output.is_some() {
        (0, rest)
    } else {
        (0, 0)
    };
    Normalised {
        input_total: Some(i.saturating_add(more_in)),
        output_total: match output {
            None if more_out == 0 => None,
            n => Some(n.unwrap_or(0).saturating_add(more_out)),
        },
    }
}

fn accounting(api: Api, usage: &Usage) -> Accounting {
    match api {
        Api::AnthropicMessages | Api::BedrockConverse => Accounting::CacheApart,
        // Of the families, those with prompt caches (Anthropic, Nova) count as Converse does. A total that leaves no
        // room for the cached tokens beside the input tells of the OpenAI shape.
        Api::BedrockInvoke => {
            let apart = match (usage.total_tokens, usage.input_tokens, usage.output_tokens) {
                (Some(t), Some(i), Some(o)) => {
                    i.saturating_add(o) != t || usage.cached_input_tokens.unwrap_or(0) == 0
                }
                _ => true,
            };
            if apart {
                Accounting::CacheApart
            } else {
                Accounting::Inclusive
            }
        }
        Api::GeminiGenerateContent | Api::GeminiInteractions | Api::GeminiEmbed => Accounting::ThoughtsApart,
        Api::AnthropicCountTokens | Api::GeminiCountTokens => Accounting::Free,
        Api::OpenAiChat
        | Api::OpenAiResponses
        | Api::OpenAiCompletions
        | Api::OpenAiEmbeddings
        | Api::OpenAiImages
        | Api::OpenAiAudio
        | Api::OpenAiModerations
        | Api::Models
        | Api::OllamaChat
        | Api::OllamaGenerate
        | Api::OllamaEmbed
        | Api::CohereChat
        | Api::Other => Accounting::Inclusive,
    }
}

fn sum<const N: usize>(counts: [Option<u64>; N]) -> Option<u64> {
    counts.into_iter().flatten().reduce(u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(given: [u64; 6]) -> Usage {
        let [input, output, total, cached, written, reasoning] = given.map(|n| (n != u64::MAX).then_some(n));
        Usage {
            input_tokens: input,
            output_tokens: output,
            total_tokens: total,
            cached_input_tokens: cached,
            cache_write_tokens: written,
            reasoning_tokens: reasoning,
            ..Usage::default()
        }
    }

    const NO: u64 = u64::MAX;

    #[test]
    fn accounting_of_every_api() {
        // input, output, total, cached, written, reasoning → all input, all output
        let table = [
            (
                "OpenAI: cached and reasoning are inside",
                Api::OpenAiChat,
                [100, 50, 150, 80, NO, 30],
                Some(100),
                Some(50),
            ),
            (
                "xAI chat: reasoning is outside",
                Api::OpenAiChat,
                [100, 50, 450, 80, NO, 300],
                Some(100),
                Some(350),
            ),
            (
                "xAI Responses: inside",
                Api::OpenAiResponses,
                [100, 350, 450, 80, NO, 300],
                Some(100),
                Some(350),
            ),
            (
                "Gemini in OpenAI's shape: only the total says",
                Api::OpenAiChat,
                [35, 12, 109, NO, NO, NO],
                Some(35),
                Some(74),
            ),
            (
                "a gateway that leaves the cache beside",
                Api::OpenAiChat,
                [4, 50, 154, 60, 40, NO],
                Some(104),
                Some(50),
            ),
            (
                "no total: as it says",
                Api::OpenAiChat,
                [100, 50, NO, NO, NO, 300],
                Some(100),
                Some(50),
            ),
            (
                "Anthropic: three parts",
                Api::AnthropicMessages,
                [4, 50, NO, 18_000, 200, 10],
                Some(18_204),
                Some(50),
            ),
            (
                "Converse: three parts",
                Api::BedrockConverse,
                [433, 16, 3201, 2752, 0, NO],
                Some(3185),
                Some(16),
            ),
            (
                "Nova",
                Api::BedrockInvoke,
                [566, 60, 626, 0, 0, NO],
                Some(566),
                Some(60),
            ),
            (
                "Gemini: thoughts are outside",
                Api::GeminiGenerateContent,
                [100, 50, 450, 80, NO, 300],
                Some(100),
                Some(350),
            ),
            (
                "Gemini: zero is left out",
                Api::GeminiGenerateContent,
                [100, NO, 100, NO, NO, NO],
                Some(100),
                Some(0),
            ),
            (
                "Gemini: only thoughts",
                Api::GeminiGenerateContent,
                [100, NO, 120, NO, NO, 20],
                Some(100),
                Some(20),
            ),
            (
                "Interactions",
                Api::GeminiInteractions,
                [53, 15, 133, 0, NO, 65],
                Some(53),
                Some(80),
            ),
            (
                "Cohere: cached is inside",
                Api::CohereChat,
                [1533, 77, NO, 448, NO, NO],
                Some(1533),
                Some(77),
            ),
            (
                "Ollama",
                Api::OllamaChat,
                [26, 10, NO, NO, NO, NO],
                Some(26),
                Some(10),
            ),
            (
                "embeddings",
                Api::OpenAiEmbeddings,
                [8, NO, 8, NO, NO, NO],
                Some(8),
                None,
            ),
            (
                "Voyage: the total alone",
                Api::OpenAiEmbeddings,
                [NO, NO, 8, NO, NO, NO],
                Some(8),
                None,
            ),
            (
                "Gemini embeddings",
                Api::GeminiEmbed,
                [8, NO, NO, NO, NO, NO],
                Some(8),
                None,
            ),
            (
                "count_tokens is no use",
                Api::AnthropicCountTokens,
                [43, NO, NO, NO, NO, NO],
                None,
                None,
            ),
            (
                "nor is countTokens",
                Api::GeminiCountTokens,
                [NO, NO, 7, NO, NO, NO],
                None,
                None,
            ),
            ("nothing", Api::OpenAiChat, [NO; 6], None, None),
        ];
        for (name, api, given, input_total, output_total) in table {
            let expected = Normalised {
                input_total,
                output_total,
            };
            assert_eq!(normalise(api, &counts(given)), expected, "{name}");
        }
    }

    #[test]
    fn audio_tool_and_header_counts() {
        let voxtral = Usage {
            input_audio_tokens: Some(375),
            ..counts([3, 11, 389, 0, NO, NO])
        };
        assert_eq!(normalise(Api::OpenAiAudio, &voxtral).input_total, Some(378));
        let gpt_audio = Usage {
            input_audio_tokens: Some(25),
            ..counts([42, 10, 52, 0, NO, 0])
        };
        assert_eq!(normalise(Api::OpenAiChat, &gpt_audio).input_total, Some(42));
        let gemini = Usage {
            tool_use_input_tokens: Some(118),
            ..counts([27, 56, 374, NO, NO, 173])
        };
        let n = normalise(Api::GeminiGenerateContent, &gemini);
        assert_eq!(
            n,
            Normalised {
                input_total: Some(145),
                output_total: Some(229)
            }
        );
        let invoke = Usage {
            header_input_tokens: Some(6),
            header_output_tokens: Some(10),
            ..Usage::default()
        };
        let n = normalise(Api::BedrockInvoke, &invoke);
        assert_eq!(
            n,
            Normalised {
                input_total: Some(6),
                output_total: Some(10)
            }
        );
    }

    #[test]
    fn sums_do_not_overflow() {
        let most = counts([u64::MAX - 1; 6]);
        for api in [
            Api::OpenAiChat,
            Api::AnthropicMessages,
            Api::GeminiGenerateContent,
            Api::BedrockInvoke,
        ] {
            assert!(normalise(api, &most).total().is_some());
        }
    }

    #[test]
    fn the_last_reported_count_holds() {
        let mut usage = counts([1128, 1, NO, 5, NO, NO]);
        merge(&mut usage, &counts([2411, 145, NO, NO, 7, NO]));
        assert_eq!(usage, counts([2411, 145, NO, 5, 7, NO]));
    }

    #[test]
    fn the_same_key_at_another_depth_is_not_read() {
        let json = br#"{"input_tokens":null,"iterations":[{"input_tokens":9}],"output_tokens":3,
            "input_tokens_details":null,"cached_tokens":4,"context_details":{"input_tokens":8}}"#;
        let usage = common(&mut Cursor::new(json));
        assert_eq!(usage, counts([NO, 3, NO, 4, NO, NO]));
    }
}
