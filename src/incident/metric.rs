//! Names of metrics, what kind of thing each one is, and how its values are written for people.

use super::rule::{Metric, Statistic};

/// What a metric's numbers count. A rate is told by the metric's name (`…_per_minute`), not by its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Tokens.
    Tokens,
    /// Exchanges.
    Requests,
    /// US dollars.
    Dollars,
    /// Seconds: a configuration may say `2.5s` or `2m`.
    Seconds,
    /// A part of a whole, 0 to 1: a configuration may say `5%`.
    Share,
    /// Tokens a second.
    PerSecond,
}

/// How the values of a metric come about; decides how a window is kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Shape {
    /// One value an exchange; the statistic makes one value of them.
    Sample,
    /// One growing value an execution; the statistic is taken over the executions active in the window.
    Execution,
    /// A sum over the window, for each so many seconds.
    Rate {
        /// Length of the time that the rate is given for, in seconds.
        per_seconds: f64,
    },
    /// One sum over another.
    Ratio,
    /// Time since the subject's last exchange.
    Silence,
}

/// Name, metric, unit, and how it reads behind a value.
#[rustfmt::skip]
const TABLE: [(&str, Metric, Unit, &str); 27] = [
    ("tokens_per_execution", Metric::TokensPerExecution, Unit::Tokens, "tokens per execution"),
    ("input_tokens_per_execution", Metric::InputTokensPerExecution, Unit::Tokens, "input tokens per execution"),
    ("output_tokens_per_execution", Metric::OutputTokensPerExecution, Unit::Tokens, "output tokens per execution"),
    ("tokens_per_request", Metric::TokensPerRequest, Unit::Tokens, "tokens per request"),
    ("input_tokens_per_request", Metric::InputTokensPerRequest, Unit::Tokens, "input tokens per request"),
    ("output_tokens_per_request", Metric::OutputTokensPerRequest, Unit::Tokens, "output tokens per request"),
    ("tokens_per_minute", Metric::TokensPerMinute, Unit::Tokens, "tokens per minute"),
    ("requests_per_minute", Metric::RequestsPerMinute, Unit::Requests, "requests per minute"),
    ("cost_per_minute", Metric::CostPerMinute, Unit::Dollars, "per minute"),
    ("cost_per_hour", Metric::CostPerHour, Unit::Dollars, "per hour"),
    ("cost_per_execution", Metric::CostPerExecution, Unit::Dollars, "per execution"),
    ("requests_per_execution", Metric::RequestsPerExecution, Unit::Requests, "requests per execution"),
    ("response_time", Metric::ResponseTime, Unit::Seconds, "response time"),
    ("time_to_first_token", Metric::TimeToFirstToken, Unit::Seconds, "time to first token"),
    ("output_speed", Metric::OutputSpeed, Unit::PerSecond, "output tokens per second"),
    ("error_rate", Metric::ErrorRate, Unit::Share, "errors"),
    ("timeout_rate", Metric::TimeoutRate, Unit::Share, "timeouts"),
    ("rate_limited_rate", Metric::RateLimitedRate, Unit::Share, "answers of 429 from upstream"),
    ("truncation_rate", Metric::TruncationRate, Unit::Share, "truncated answers"),
    ("refusal_rate", Metric::RefusalRate, Unit::Share, "refused answers"),
    ("empty_rate", Metric::EmptyRate, Unit::Share, "empty answers"),
    ("invalid_output_rate", Metric::InvalidOutputRate, Unit::Share, "invalid answers"),
    ("tool_error_rate", Metric::ToolErrorRate, Unit::Share, "tool errors"),
    ("repetition", Metric::Repetition, Unit::Share, "repeated exchanges"),
    ("semantic_similarity_to_baseline", Metric::SemanticSimilarityToBaseline, Unit::Share, "similarity to the usual output"),
    ("cache_hit_ratio", Metric::CacheHitRatio, Unit::Share, "input tokens from the cache"),
    ("silence", Metric::Silence, Unit::Seconds, "without an exchange"),
];

/// Quantile prefixes that are offered as names; any other `pNN_` is understood as well.
const USUAL_QUANTILES: [f64; 4] = [0.5, 0.9, 0.95, 0.99];

impl Metric {
    /// Reads a name as a configuration gives it: `tokens_per_execution`, `p95_response_time`, `max_tokens_per_request`.
    ///
    /// The statistic is `None` where the name does not say one. `pNN_` is a quantile: two digits are hundredths
    /// (`p95`), three are thousandths (`p999`), up to five. `mean_` (or `avg_`), `max_`, `min_` and `sum_` are the
    /// others. Prefixes are refused where the metric is a share, a rate or a silence: those have one value.
    pub fn parse(name: &str) -> Option<(Self, Option<Statistic>)> {
        if let Some(metric) = by_name(name) {
            return Some((metric, None));
        }
        let (prefix, rest) = name.split_once('_')?;
        let metric = by_name(rest)?;
        let statistic = match prefix {
            "mean" | "avg" => Statistic::Mean,
            "max" => Statistic::Max,
            "min" => Statistic::Min,
            "sum" => Statistic::Sum,
            _ => Statistic::Quantile(parse_quantile(prefix)?),
        };
        metric.takes(statistic).then_some((metric, Some(statistic)))
    }

    /// The canonical name: [`Metric::parse`] gives back this metric, and this statistic where it is said or is the
    /// default one. Quantiles are told to five digits.
    pub fn name(self, statistic: Statistic) -> String {
        let bare = self.bare_name();
        if !self.takes(statistic) || (statistic == self.default_statistic() && statistic == Statistic::Mean) {
            return bare.to_owned();
        }
        match statistic {
            Statistic::Mean => format!("mean_{bare}"),
            Statistic::Max => format!("max_{bare}"),
            Statistic::Min => format!("min_{bare}"),
            Statistic::Sum => format!("sum_{bare}"),
            Statistic::Quantile(q) => format!("{}_{bare}", quantile_prefix(q)),
            Statistic::Ratio => bare.to_owned(),
        }
    }

    /// Every name worth offering: bare ones, and the usual statistics of those that take one.
    pub fn all_names() -> Vec<String> {
        let mut names = Vec::new();
        for (bare, metric, _, _) in TABLE {
            names.push(bare.to_owned());
            for q in USUAL_QUANTILES {
                if metric.takes(Statistic::Quantile(q)) {
                    names.push(format!("{}_{bare}", quantile_prefix(q)));
                }
            }
            for (prefix, statistic) in [
                ("mean", Statistic::Mean),
                ("max", Statistic::Max),
                ("min", Statistic::Min),
                ("sum", Statistic::Sum),
            ] {
                if metric.takes(statistic) {
                    names.push(format!("{prefix}_{bare}"));
                }
            }
        }
        names
    }

    /// What a bare name means: the 95th percentile for times, the mean for other samples and for executions, the one
    /// value there is for shares, rates and silence.
    pub fn default_statistic(self) -> Statistic {
        match (self, self.shape()) {
            (Self::ResponseTime | Self::TimeToFirstToken, _) => Statistic::Quantile(0.95),
            (_, Shape::Sample | Shape::Execution) => Statistic::Mean,
            (_, Shape::Rate { .. } | Shape::Ratio | Shape::Silence) => Statistic::Ratio,
        }
    }

    /// Whether the statistic can be taken of this metric. Quantiles lie strictly between 0 and 1.
    pub fn takes(self, statistic: Statistic) -> bool {
        match self.shape() {
            Shape::Sample | Shape::Execution => match statistic {
                Statistic::Ratio => false,
                Statistic::Quantile(q) => q > 0.0 && q < 1.0,
                Statistic::Mean | Statistic::Max | Statistic::Min | Statistic::Sum => true,
            },
            Shape::Rate { .. } | Shape::Ratio | Shape::Silence => statistic == Statistic::Ratio,
        }
    }

    /// What its numbers count.
    pub fn unit(self) -> Unit {
        TABLE
            .iter()
            .find(|(_, m, _, _)| *m == self)
            .map_or(Unit::Requests, |(_, _, unit, _)| *unit)
    }

    /// Why no exchange can say anything about it in this version; `None` when it is measured.
    pub fn not_measured(self) -> Option<&'static str> {
        match self {
            Self::SemanticSimilarityToBaseline => Some("outputs are not compared with a baseline yet"),
            Self::Repetition => {
                Some("observations do not tell yet whether an exchange repeats the one before")
            }
            Self::InvalidOutputRate => {
                Some("observations do not tell yet whether an output is what was asked for")
            }
            Self::ToolErrorRate => Some("observations do not tell yet whether a tool call failed"),
            _ => None,
        }
    }

    /// A value with unit and meaning, as `9,812 tokens per execution` or `p95 response time 9.3 s`.
    pub(crate) fn describe(self, statistic: Statistic, value: f64) -> String {
        let reading = self.reading();
        let value = self.unit().format(value);
        let of = match statistic {
            Statistic::Mean if self.default_statistic() == Statistic::Mean => String::new(),
            Statistic::Mean => "mean ".to_owned(),
            Statistic::Max => "max ".to_owned(),
            Statistic::Min => "min ".to_owned(),
            Statistic::Sum => "sum ".to_owned(),
            Statistic::Quantile(q) => format!("{} ", quantile_prefix(q)),
            Statistic::Ratio => String::new(),
        };
        match self.unit() {
            Unit::Tokens | Unit::Requests | Unit::PerSecond => {
                let value = value.split_once(' ').map_or(value.as_str(), |(number, _)| number);
                format!("{of}{value} {reading}")
            }
            Unit::Dollars | Unit::Share => format!("{of}{value} {reading}"),
            Unit::Seconds if self == Self::Silence => format!("{value} {reading}"),
            Unit::Seconds => format!("{of}{reading} {value}"),
        }
    }

    /// How values come about.
    pub(crate) fn shape(self) -> Shape {
        match self {
            Self::TokensPerExecution
            | Self::InputTokensPerExecution
            | Self::OutputTokensPerExecution
            | Self::CostPerExecution
            | Self::RequestsPerExecution => Shape::Execution,
            Self::TokensPerRequest
            | Self::InputTokensPerRequest
            | Self::OutputTokensPerRequest
            | Self::ResponseTime
            | Self::TimeToFirstToken
            | Self::OutputSpeed
            | Self::SemanticSimilarityToBaseline => Shape::Sample,
            Self::TokensPerMinute | Self::RequestsPerMinute | Self::CostPerMinute => {
                Shape::Rate { per_seconds: 60.0 }
            }
            Self::CostPerHour => Shape::Rate { per_seconds: 3600.0 },
            Self::ErrorRate
            | Self::TimeoutRate
            | Self::RateLimitedRate
            | Self::TruncationRate
            | Self::RefusalRate
            | Self::EmptyRate
            | Self::InvalidOutputRate
            | Self::ToolErrorRate
            | Self::Repetition
            | Self::CacheHitRatio => Shape::Ratio,
            Self::Silence => Shape::Silence,
        }
    }

    /// Whether its values come from token counts (or from money, which follows from them), and so may be estimates.
    pub(crate) fn counts_tokens(self) -> bool {
        matches!(self.unit(), Unit::Tokens | Unit::Dollars)
            || matches!(self, Self::OutputSpeed | Self::CacheHitRatio)
    }

    fn bare_name(self) -> &'static str {
        TABLE
            .iter()
            .find(|(_, m, _, _)| *m == self)
            .map_or("", |(name, _, _, _)| name)
    }

    fn reading(self) -> &'static str {
        TABLE
            .iter()
            .find(|(_, m, _, _)| *m == self)
            .map_or("", |(_, _, _, reading)| reading)
    }
}

impl Unit {
    /// A value with its unit, as `5,000 tokens`, `8 s`, `$1.25`, `41.2 %`.
    pub fn format(self, value: f64) -> String {
        match self {
            Self::Tokens => format!("{} tokens", number(value)),
            Self::Requests => format!("{} requests", number(value)),
            Self::PerSecond => format!("{} tokens/s", number(value)),
            Self::Dollars if value.abs() < 1.0 => format!("${}", trimmed(value, 6)),
            Self::Dollars => format!("${}", thousands(value, 2)),
            Self::Seconds if value.abs() < 1.0 => format!("{} ms", trimmed(value * 1e3, 1)),
            Self::Seconds => format!("{} s", trimmed(value, 2)),
            Self::Share => format!("{} %", trimmed(value * 100.0, 1)),
        }
    }

    /// Integer steps to one of the unit: windows add whole numbers, so that what is added can be taken off exactly.
    pub(crate) fn steps(self) -> f64 {
        match self {
            Self::Tokens | Self::Requests | Self::Share => 1.0,
            Self::Dollars => 1e9,
            Self::Seconds => 1e6,
            Self::PerSecond => 1e3,
        }
    }
}

/// A number for people: whole from 100 on, with thousands apart.
pub(crate) fn number(value: f64) -> String {
    if value.abs() >= 100.0 {
        thousands(value, 0)
    } else {
        trimmed(value, 2)
    }
}

fn by_name(name: &str) -> Option<Metric> {
    TABLE
        .iter()
        .find(|(n, _, _, _)| *n == name)
        .map(|(_, m, _, _)| *m)
}

fn parse_quantile(prefix: &str) -> Option<f64> {
    let digits = prefix.strip_prefix('p')?;
    if digits.is_empty() || digits.len() > 5 || digits == "100" || !digits.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let scale = 10_u32.pow(u32::try_from(digits.len().max(2)).ok()?);
    let n: u32 = digits.parse().ok()?;
    (n > 0).then(|| f64::from(n) / f64::from(scale))
}

fn quantile_prefix(q: f64) -> String {
    for digits in 2..=5_u32 {
        let scale = f64::from(10_u32.pow(digits));
        let n = (q * scale).round();
        if digits == 5 || (n / scale - q).abs() < 1e-9 {
            let n = n.clamp(1.0, scale - 1.0);
            return format!("p{n:0width$}", width = digits as usize);
        }
    }
    String::new()
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        text
    }
}

fn thousands(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, part) = text.split_once('.').unwrap_or((&text, ""));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |w| ("-", w));
    let mut out = String::with_capacity(text.len() + text.len() / 3);
    out.push_str(sign);
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    if !part.is_empty() {
        out.push('.');
        out.push_str(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_mission() {
        let table = [
            ("tokens_per_execution", Metric::TokensPerExecution, None),
            (
                "p95_response_time",
                Metric::ResponseTime,
                Some(Statistic::Quantile(0.95)),
            ),
            (
                "semantic_similarity_to_baseline",
                Metric::SemanticSimilarityToBaseline,
                None,
            ),
            (
                "p50_time_to_first_token",
                Metric::TimeToFirstToken,
                Some(Statistic::Quantile(0.5)),
            ),
            (
                "p99_tokens_per_request",
                Metric::TokensPerRequest,
                Some(Statistic::Quantile(0.99)),
            ),
            (
                "p999_response_time",
                Metric::ResponseTime,
                Some(Statistic::Quantile(0.999)),
            ),
            (
                "p5_output_speed",
                Metric::OutputSpeed,
                Some(Statistic::Quantile(0.05)),
            ),
            (
                "max_tokens_per_request",
                Metric::TokensPerRequest,
                Some(Statistic::Max),
            ),
            ("mean_response_time", Metric::ResponseTime, Some(Statistic::Mean)),
            ("avg_response_time", Metric::ResponseTime, Some(Statistic::Mean)),
            ("silence", Metric::Silence, None),
        ];
        for (name, metric, statistic) in table {
            assert_eq!(Metric::parse(name), Some((metric, statistic)), "{name}");
        }
    }

    #[test]
    fn what_is_no_name() {
        for name in [
            "",
            "_",
            "p95",
            "p_response_time",
            "p0_response_time",
            "p00_response_time",
            "p100_response_time",
            "p999999_response_time",
            "p9x_response_time",
            "p+5_response_time",
            "p95_error_rate",
            "max_silence",
            "mean_tokens_per_minute",
            "response_time_p95",
            "Response_Time",
        ] {
            assert_eq!(Metric::parse(name), None, "{name}");
        }
    }

    #[test]
    fn parse_and_name_are_inverse() {
        let mut statistics = vec![
            Statistic::Mean,
            Statistic::Max,
            Statistic::Min,
            Statistic::Sum,
            Statistic::Ratio,
        ];
        statistics
            .extend([0.001, 0.005, 0.05, 0.1, 0.5, 0.95, 0.975, 0.999, 0.9999].map(Statistic::Quantile));
        for (_, metric, _, _) in TABLE {
            for &statistic in statistics.iter().filter(|s| metric.takes(**s)) {
                let name = metric.name(statistic);
                let (back, said) = Metric::parse(&name).expect("a name of ours");
                assert_eq!(
                    (back, said.unwrap_or(back.default_statistic())),
                    (metric, statistic),
                    "{name}"
                );
            }
        }
        for name in Metric::all_names() {
            assert!(Metric::parse(&name).is_some(), "{name}");
        }
        assert_eq!(
            Metric::ResponseTime.name(Statistic::Quantile(0.95)),
            "p95_response_time"
        );
        assert_eq!(
            Metric::TokensPerExecution.name(Statistic::Mean),
            "tokens_per_execution"
        );
    }

    #[test]
    fn values_for_people() {
        let table = [
            (
                Metric::TokensPerExecution,
                Statistic::Mean,
                9812.4,
                "9,812 tokens per execution",
            ),
            (
                Metric::ResponseTime,
                Statistic::Quantile(0.95),
                9.3,
                "p95 response time 9.3 s",
            ),
            (Metric::ErrorRate, Statistic::Ratio, 0.4123, "41.2 % errors"),
            (
                Metric::CostPerMinute,
                Statistic::Ratio,
                1234.5,
                "$1,234.50 per minute",
            ),
            (
                Metric::CostPerExecution,
                Statistic::Max,
                0.012,
                "max $0.012 per execution",
            ),
            (
                Metric::OutputSpeed,
                Statistic::Mean,
                31.25,
                "31.25 output tokens per second",
            ),
            (
                Metric::Silence,
                Statistic::Ratio,
                600.0,
                "600 s without an exchange",
            ),
            (
                Metric::RequestsPerMinute,
                Statistic::Ratio,
                1e6,
                "1,000,000 requests per minute",
            ),
        ];
        for (metric, statistic, value, text) in table {
            assert_eq!(metric.describe(statistic, value), text);
        }
        assert_eq!(Unit::Tokens.format(5000.0), "5,000 tokens");
        assert_eq!(Unit::Seconds.format(0.25), "250 ms");
        assert_eq!(Unit::Tokens.format(-1234.0), "-1,234 tokens");
    }
}
