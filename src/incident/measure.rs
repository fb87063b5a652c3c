//! What one exchange says about each metric, and which exchanges say nothing.
//!
//! - What fusebox refused was no exchange with the upstream: it has no tokens, no time and no error. It counts as a
//!   request that the agent made (`requests_per_minute`) and as a sign of life (`silence`).
//! - A client that left counts with its tokens, not with its times, errors or answers; the same for answers that
//!   fusebox cut.
//! - A time is that of a successful answer, or of a timeout, which is the slowest of all.
//! - What is not reported is not zero: an exchange without token counts is no sample of a token metric.

use super::rule::Metric;
use crate::types::observation::{Observation, Outcome};
use crate::types::usage::UsageSource;

/// The largest value kept of one exchange, in steps of the unit (see `Unit::steps`): more is taken as this much, so
/// that four million of the largest fit into one sum. As tokens 4.4e12, as money 4,398 dollars, as time 50 days.
pub(crate) const LARGEST: u64 = 1 << 42;

/// What one exchange adds to a window, in steps of the metric's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The value; for shares the part.
    pub(crate) value: u64,
    /// For shares the whole; else 1.
    pub(crate) whole: u64,
}

/// What an exchange (or a running stream so far) adds to its execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Spent {
    /// Input tokens.
    pub(crate) input: Option<u64>,
    /// Output tokens.
    pub(crate) output: Option<u64>,
    /// Billionths of a dollar.
    pub(crate) cost: Option<u64>,
}

impl Spent {
    /// What `o` used.
    pub(crate) fn of(o: &Observation) -> Self {
        Self {
            input: o.normalised.input_total.map(|n| n.min(LARGEST)),
            output: o.normalised.output_total.map(|n| n.min(LARGEST)),
            cost: o.cost_usd.map(|c| c.nanos().min(LARGEST)),
        }
    }

    /// What of it an execution's metric counts; `None` when it is not known.
    #[inline]
    pub(crate) fn counted_by(self, metric: Metric) -> Option<u64> {
        match metric {
            Metric::TokensPerExecution => match (self.input, self.output) {
                (None, None) => None,
                (i, o) => Some(i.unwrap_or(0).saturating_add(o.unwrap_or(0)).min(LARGEST)),
            },
            Metric::InputTokensPerExecution => self.input,
            Metric::OutputTokensPerExecution => self.output,
            Metric::CostPerExecution => self.cost,
            Metric::RequestsPerExecution => Some(1),
            _ => None,
        }
    }
}

/// What `o` says about `metric`; `None` when it says nothing. Metrics of executions are not asked here.
#[inline]
pub(crate) fn reading(metric: Metric, o: &Observation) -> Option<Reading> {
    if o.outcome == Outcome::Refused {
        return match metric {
            Metric::RequestsPerMinute | Metric::Silence => Some(Reading::of(1)),
            _ => None,
        };
    }
    match metric {
        Metric::TokensPerRequest | Metric::TokensPerMinute => o.normalised.total().map(Reading::of),
        Metric::InputTokensPerRequest => o.normalised.input_total.map(Reading::of),
        Metric::OutputTokensPerRequest => o.normalised.output_total.map(Reading::of),
        Metric::CostPerMinute | Metric::CostPerHour => o.cost_usd.map(|c| Reading::of(c.nanos())),
        Metric::RequestsPerMinute | Metric::Silence => Some(Reading::of(1)),
        Metric::ResponseTime => timed(o).then(|| Reading::of(micros(o.duration_ms))),
        Metric::TimeToFirstToken => o.ttft_ms.filter(|_| timed(o)).map(|ms| Reading::of(micros(ms))),
        Metric::OutputSpeed => output_speed(o).map(Reading::of),
        Metric::ErrorRate => went_upstream(o).then(|| Reading::share(o.is_error())),
        Metric::TimeoutRate => went_upstream(o).then(|| Reading::share(timed_out(o))),
        Metric::RateLimitedRate => went_upstream(o).then(|| Reading::share(rate_limited(o))),
        Metric::TruncationRate => answered(o).then(|| Reading::share(truncated(o))),
        Metric::RefusalRate => answered(o).then(|| Reading::share(refused(o))),
        Metric::EmptyRate => {
            (answered(o) && o.outcome == Outcome::Complete).then(|| Reading::share(empty(o)))
        }
        Metric::CacheHitRatio => match (o.usage.cached_input_tokens, o.normalised.input_total) {
            (Some(cached), Some(input)) if input > 0 => {
                let whole = input.min(LARGEST);
                Some(Reading {
                    value: cached.min(whole),
                    whole,
                })
            }
            _ => None,
        },
        Metric::TokensPerExecution
        | Metric::InputTokensPerExecution
        | Metric::OutputTokensPerExecution
        | Metric::CostPerExecution
        | Metric::RequestsPerExecution
        | Metric::InvalidOutputRate
        | Metric::ToolErrorRate
        | Metric::Repetition
        | Metric::SemanticSimilarityToBaseline => None,
    }
}

/// Whether the counts of `o` are estimates. Partial counts are a lower bound that the upstream did report: no estimate.
#[inline]
pub(crate) fn is_estimate(o: &Observation) -> bool {
    o.usage_source == UsageSource::Estimated
}

impl Reading {
    /// One value.
    pub(crate) fn of(value: u64) -> Self {
        Self {
            value: value.min(LARGEST),
            whole: 1,
        }
    }

    fn share(part: bool) -> Self {
        Self {
            value: u64::from(part),
            whole: 1,
        }
    }
}

fn timed(o: &Observation) -> bool {
    match o.outcome {
        Outcome::Complete => !o.is_error(),
        Outcome::Timeout => true,
        _ => false,
    }
}

fn went_upstream(o: &Observation) -> bool {
    match o.outcome {
        Outcome::Complete | Outcome::Truncated | Outcome::Timeout | Outcome::UpstreamError => true,
        Outcome::ClientAbort | Outcome::Cut | Outcome::Refused => false,
    }
}

fn timed_out(o: &Observation) -> bool {
    o.outcome == Outcome::Timeout || (o.outcome == Outcome::Complete && matches!(o.status, 408 | 504))
}

fn rate_limited(o: &Observation) -> bool {
    let says = |text: &Option<String>| text.as_deref().is_some_and(|t| t.starts_with("rate_limit"));
    o.status == 429 || (o.status < 400 && (says(&o.error_type) || says(&o.error_code)))
}

/// Whether a model answered with text (or was about to).
fn answered(o: &Observation) -> bool {
    let reached = match o.outcome {
        Outcome::Complete => !o.is_error(),
        Outcome::Truncated => true,
        _ => false,
    };
    reached && makes_text(&o.api)
}

fn makes_text(api: &str) -> bool {
    matches!(
        api,
        "openai.chat"
            | "openai.responses"
            | "openai.completions"
            | "anthropic.messages"
            | "gemini.generate_content"
            | "gemini.interactions"
            | "ollama.chat"
            | "ollama.generate"
            | "cohere.chat"
            | "bedrock.converse"
            | "bedrock.invoke"
    )
}

fn truncated(o: &Observation) -> bool {
    const LENGTH: [&str; 5] = [
        "length",
        "max_tokens",
        "max_output_tokens",
        "max_completion_tokens",
        "model_context_window_exceeded",
    ];
    o.outcome == Outcome::Truncated || stopped_by(o, &LENGTH)
}

fn refused(o: &Observation) -> bool {
    const FILTERED: [&str; 12] = [
        "content_filter",
        "content_filtered",
        "refusal",
        "safety",
        "recitation",
        "prohibited_content",
        "blocklist",
        "spii",
        "image_safety",
        "model_armor",
        "guardrail_intervened",
        "error_toxic",
    ];
    stopped_by(o, &FILTERED)
}

fn stopped_by(o: &Observation, words: &[&str]) -> bool {
    let is = |text: &Option<String>| {
        text.as_deref()
            .is_some_and(|t| words.iter().any(|w| w.eq_ignore_ascii_case(t)))
    };
    is(&o.finish_reason) || is(&o.finish_detail)
}

fn empty(o: &Observation) -> bool {
    o.output_chars.unwrap_or(0) == 0 && o.tool_calls.is_empty() && !refused(o)
}

/// Thousandths of tokens a second after the first token; only where there are enough of both to say so.
fn output_speed(o: &Observation) -> Option<u64> {
    const FEW_TOKENS: u64 = 10;
    const SHORT_MS: f64 = 1.0;
    let tokens = o.normalised.output_total.filter(|n| *n >= FEW_TOKENS)?;
    let span = o.duration_ms - o.ttft_ms?;
    if o.outcome != Outcome::Complete || o.is_error() || span.is_nan() || span < SHORT_MS {
        return None;
    }
    Some(bounded((tokens - 1) as f64 * 1e6 / span))
}

fn micros(ms: f64) -> u64 {
    bounded(ms * 1e3)
}

/// A float as whole steps: what is no number or negative is zero, what is huge is [`LARGEST`].
fn bounded(value: f64) -> u64 {
    if value > 0.0 {
        (value.round() as u64).min(LARGEST)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::incident::testing::observation;
    use crate::types::usage::Cost;

    /// Name, metric, change to an ordinary exchange, part and whole.
    type Row = (&'static str, Metric, fn(&mut Observation), Option<(u64, u64)>);

    #[test]
    fn what_an_exchange_says() {
        const NOTHING: Option<(u64, u64)> = None;
        #[rustfmt::skip]
        let table: &[Row] = &[
            ("tokens", Metric::TokensPerRequest, |_| {}, Some((150, 1))),
            ("tokens unknown", Metric::TokensPerRequest, |o| o.normalised = Default::default(), NOTHING),
            ("only output known", Metric::TokensPerRequest, |o| o.normalised.input_total = None, Some((50, 1))),
            ("input unknown", Metric::InputTokensPerRequest, |o| o.normalised.input_total = None, NOTHING),
            ("absurd", Metric::TokensPerMinute, |o| o.normalised.input_total = Some(u64::MAX), Some((LARGEST, 1))),
            ("no price", Metric::CostPerMinute, |o| o.cost_usd = None, NOTHING),
            ("price", Metric::CostPerHour, |o| o.cost_usd = Some(Cost::from_nanos(7)), Some((7, 1))),
            ("time", Metric::ResponseTime, |_| {}, Some((1_000_000, 1))),
            ("time of an abort", Metric::ResponseTime, |o| o.outcome = Outcome::ClientAbort, NOTHING),
            ("tokens of an abort", Metric::TokensPerRequest, |o| o.outcome = Outcome::ClientAbort, Some((150, 1))),
            ("time of a refusal", Metric::ResponseTime, |o| o.outcome = Outcome::Refused, NOTHING),
            ("time of a timeout", Metric::ResponseTime, |o| o.outcome = Outcome::Timeout, Some((1_000_000, 1))),
            ("time of an error", Metric::ResponseTime, |o| o.status = 500, NOTHING),
            ("time that is none", Metric::ResponseTime, |o| o.duration_ms = f64::NAN, Some((0, 1))),
            ("endless time", Metric::ResponseTime, |o| o.duration_ms = f64::INFINITY, Some((LARGEST, 1))),
            ("first token", Metric::TimeToFirstToken, |_| {}, Some((200_000, 1))),
            ("no stream", Metric::TimeToFirstToken, |o| o.ttft_ms = None, NOTHING),
            ("speed", Metric::OutputSpeed, |_| {}, Some((61_250, 1))),
            ("speed of little", Metric::OutputSpeed, |o| o.normalised.output_total = Some(3), NOTHING),
            ("fine", Metric::ErrorRate, |_| {}, Some((0, 1))),
            ("status 500", Metric::ErrorRate, |o| o.status = 500, Some((1, 1))),
            ("broken off", Metric::ErrorRate, |o| o.outcome = Outcome::Truncated, Some((1, 1))),
            ("our refusal is no error", Metric::ErrorRate, |o| o.outcome = Outcome::Refused, NOTHING),
            ("an abort is no error", Metric::ErrorRate, |o| o.outcome = Outcome::ClientAbort, NOTHING),
            ("timeout", Metric::TimeoutRate, |o| o.outcome = Outcome::Timeout, Some((1, 1))),
            ("gateway timeout", Metric::TimeoutRate, |o| o.status = 504, Some((1, 1))),
            ("429", Metric::RateLimitedRate, |o| o.status = 429, Some((1, 1))),
            ("our 429", Metric::RateLimitedRate, |o| { o.status = 429; o.outcome = Outcome::Refused; }, NOTHING),
            ("429 inside a stream", Metric::RateLimitedRate, |o| o.error_type = Some("rate_limit_error".into()), Some((1, 1))),
            ("length", Metric::TruncationRate, |o| o.finish_reason = Some("MAX_TOKENS".into()), Some((1, 1))),
            ("length, in detail", Metric::TruncationRate, |o| o.finish_detail = Some("max_output_tokens".into()), Some((1, 1))),
            ("broken off is cut off", Metric::TruncationRate, |o| o.outcome = Outcome::Truncated, Some((1, 1))),
            ("no answer, no length", Metric::TruncationRate, |o| o.status = 500, NOTHING),
            ("filtered", Metric::RefusalRate, |o| o.finish_reason = Some("SAFETY".into()), Some((1, 1))),
            ("text", Metric::EmptyRate, |_| {}, Some((0, 1))),
            ("no text", Metric::EmptyRate, |o| o.output_chars = Some(0), Some((1, 1))),
            ("a tool call is an answer", Metric::EmptyRate, |o| { o.output_chars = None; o.tool_calls = vec![Some("search".into())]; }, Some((0, 1))),
            ("embeddings have no text", Metric::EmptyRate, |o| o.api = "openai.embeddings".into(), NOTHING),
            ("cache", Metric::CacheHitRatio, |o| o.usage.cached_input_tokens = Some(40), Some((40, 100))),
            ("cache not told", Metric::CacheHitRatio, |_| {}, NOTHING),
            ("more from the cache than there is", Metric::CacheHitRatio, |o| o.usage.cached_input_tokens = Some(u64::MAX), Some((100, 100))),
            ("a request", Metric::RequestsPerMinute, |o| o.outcome = Outcome::Refused, Some((1, 1))),
            ("life", Metric::Silence, |o| o.outcome = Outcome::Refused, Some((1, 1))),
        ];
        for (name, metric, change, expected) in table {
            let mut o = observation("a", "e");
            change(&mut o);
            let got = reading(*metric, &o).map(|r| (r.value, r.whole));
            assert_eq!(got, *expected, "{name}");
        }
    }

    #[test]
    fn what_an_exchange_adds_to_its_execution() {
        let o = observation("a", "e");
        let spent = Spent::of(&o);
        assert_eq!(spent.counted_by(Metric::TokensPerExecution), Some(150));
        assert_eq!(spent.counted_by(Metric::InputTokensPerExecution), Some(100));
        assert_eq!(spent.counted_by(Metric::OutputTokensPerExecution), Some(50));
        assert_eq!(spent.counted_by(Metric::RequestsPerExecution), Some(1));
        assert_eq!(spent.counted_by(Metric::CostPerExecution), None);
        assert_eq!(spent.counted_by(Metric::ResponseTime), None);
        assert_eq!(Spent::default().counted_by(Metric::TokensPerExecution), None);
    }
}
