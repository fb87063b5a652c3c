//! Text that looks like an answer, made from a word list and a seed.

/// Characters that one token stands for, on average; the simulated provider counts by it.
pub(super) const CHARS_PER_TOKEN: usize = 4;

const WORDS: &[&str] = &[
    "account", "after", "agent", "already", "amount", "answer", "audit", "balance", "before", "between",
    "branch", "budget", "cache", "change", "check", "column", "commit", "compare", "context", "copy",
    "customer", "daily", "detail", "each", "entry", "error", "every", "export", "field", "figure", "first",
    "follow", "from", "group", "index", "invoice", "item", "known", "latest", "ledger", "limit", "list",
    "match", "method", "month", "never", "note", "open", "order", "page", "part", "payment", "plan",
    "policy", "price", "query", "quarter", "reason", "record", "region", "report", "result", "retry",
    "review", "route", "sample", "schema", "second", "source", "stable", "state", "step", "summary", "table",
    "team", "ticket", "total", "trace", "under", "update", "usage", "value", "version", "week", "which",
    "with", "within", "the", "the", "the", "of", "of", "and", "and", "to", "in", "is", "for", "on", "by",
    "that", "it", "as",
];

/// Tokens of `text`, as the simulated provider counts them: a quarter of its characters, rounded up.
pub(super) fn tokens_of(text: &str) -> u64 {
    tokens_of_chars(text.chars().count())
}

/// Tokens of a text of so many characters.
pub(super) fn tokens_of_chars(chars: usize) -> u64 {
    u64::try_from(chars.div_ceil(CHARS_PER_TOKEN)).unwrap_or(u64::MAX)
}

/// English-looking sentences of exactly `tokens` tokens; the same for the same state of `rng`.
pub(super) fn text(rng: &mut fastrand::Rng, tokens: u64) -> String {
    let chars = usize::try_from(tokens)
        .unwrap_or(usize::MAX)
        .saturating_mul(CHARS_PER_TOKEN);
    let mut out = String::with_capacity(chars.saturating_add(16));
    let mut left_in_sentence = 0_usize;
    while out.len() < chars {
        let word = rng.choice(WORDS).copied().unwrap_or("the");
        if left_in_sentence == 0 {
            if !out.is_empty() {
                out.push_str(". ");
            }
            left_in_sentence = rng.usize(5..14);
            let mut letters = word.chars();
            out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
            out.push_str(letters.as_str());
        } else {
            out.push(' ');
            out.push_str(word);
        }
        left_in_sentence -= 1;
    }
    first_tokens(out, tokens)
}

/// The first `tokens` tokens of a text.
pub(super) fn first_tokens(mut text: String, tokens: u64) -> String {
    let chars = usize::try_from(tokens)
        .unwrap_or(usize::MAX)
        .saturating_mul(CHARS_PER_TOKEN);
    if let Some((at, _)) = text.char_indices().nth(chars) {
        text.truncate(at);
    }
    text
}

/// A number around `median` whose logarithm is spread by `sigma`, as lengths of prompts and answers are.
pub(super) fn lognormal(rng: &mut fastrand::Rng, median: f64, sigma: f64) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    let normal = radius * (std::f64::consts::TAU * rng.f64()).cos();
    median * (sigma * normal).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_the_length_that_was_asked_for() {
        let mut rng = fastrand::Rng::with_seed(3);
        for tokens in [0, 1, 7, 120, 3000] {
            assert_eq!(tokens_of(&text(&mut rng, tokens)), tokens);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        let one = text(&mut fastrand::Rng::with_seed(5), 50);
        assert_eq!(one, text(&mut fastrand::Rng::with_seed(5), 50));
        assert_ne!(one, text(&mut fastrand::Rng::with_seed(6), 50));
    }

    #[test]
    fn cutting_respects_characters() {
        assert_eq!(first_tokens("äöüßéèàç".to_owned(), 1), "äöüß");
        assert_eq!(first_tokens("abc".to_owned(), 9), "abc");
    }

    #[test]
    fn lognormal_is_centred_on_its_median() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut drawn: Vec<f64> = (0..2001).map(|_| lognormal(&mut rng, 1000.0, 0.6)).collect();
        drawn.sort_by(f64::total_cmp);
        assert!((900.0..1100.0).contains(&drawn[1000]), "{}", drawn[1000]);
        assert!(drawn[0] > 0.0 && drawn[2000] < 20_000.0);
    }
}
