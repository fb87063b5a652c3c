//! Durations, sizes, thresholds and other short texts of the file, and how they are written back.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// A scalar that is read further by what it stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Scalar {
    /// A number.
    Number(f64),
    /// Text.
    Text(String),
}

impl Scalar {
    /// The number that it is, or that its text (from the environment, say) spells.
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Number(n) => Some(*n),
            Self::Text(t) => t.trim().parse().ok(),
        }
        .filter(|n| n.is_finite())
    }

    /// As text, without blanks around.
    pub(super) fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Number(n) => Cow::Owned(n.to_string()),
            Self::Text(t) => Cow::Borrowed(t.trim()),
        }
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Scalar;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number or text")
            }

            fn visit_i64<E: Error>(self, v: i64) -> Result<Scalar, E> {
                Ok(Scalar::Number(v as f64))
            }

            fn visit_u64<E: Error>(self, v: u64) -> Result<Scalar, E> {
                Ok(Scalar::Number(v as f64))
            }

            fn visit_f64<E: Error>(self, v: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number(v))
            }

            fn visit_str<E: Error>(self, v: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(v.to_owned()))
            }
        }
        d.deserialize_any(V)
    }
}

macro_rules! scalar {
    ($(#[$doc:meta])* $name:ident, $title:literal, $schema:tt) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Deserialize)]
        pub(super) struct $name(pub(super) Scalar);

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

scalar!(
    /// A duration as `30s`.
    DurationText, "Duration", {
    "description": "A duration: a number with a unit, or several, as 500ms, 2.5s, 15m, 1h30m, 1d. 0 needs no unit.",
    "anyOf": [
        {"type": "string", "pattern": "^\\s*([0-9]+(\\.[0-9]+)?(us|ms|s|m|h|d)\\s*)+$|^0$|\\$\\{"},
        {"const": 0}
    ]
});
scalar!(
    /// A size as `64MiB`.
    SizeText, "Size", {
    "description": "A size: a number of bytes, or a number with a unit as 64KiB, 64MiB, 1GiB, 10MB.",
    "anyOf": [
        {"type": "string", "pattern": "^\\s*[0-9]+(\\.[0-9]+)?\\s*(B|kB|KB|MB|GB|KiB|MiB|GiB)?\\s*$|\\$\\{"},
        {"type": "integer", "minimum": 0}
    ]
});
scalar!(
    /// What is normal: a number, a duration, `learned` or `fleet`.
    BaselineText, "Baseline", {
    "description": "What is normal: a number in the metric's unit (a duration for metrics of time), or learned (from the subject's own past), or fleet (from all subjects).",
    "anyOf": [
        {"type": "number"},
        {"enum": ["learned", "fleet"]},
        {"type": "string", "pattern": "^\\s*([0-9]+(\\.[0-9]+)?(us|ms|s|m|h|d)\\s*)+$|^\\s*[0-9]+(\\.[0-9]+)?\\s*%\\s*$|\\$\\{"}
    ]
});
scalar!(
    /// Where a breach begins: a number, a duration, `2x` or `+40%`.
    ThresholdText, "Threshold", {
    "description": "Where a breach begins: a number in the metric's unit (a duration for metrics of time), or relative to the baseline as 2x, +40% or -30%.",
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": "^\\s*([0-9]+(\\.[0-9]+)?(us|ms|s|m|h|d)\\s*)+$|^\\s*[0-9]+(\\.[0-9]+)?\\s*x\\s*$|^\\s*[+-]?[0-9]+(\\.[0-9]+)?\\s*%\\s*$|\\$\\{"}
    ]
});
scalar!(
    /// A share as `30%` or `0.3`.
    ShareText, "Share", {
    "description": "A share: a percentage as 30%, or a number from 0 to 1 as 0.3.",
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": "^\\s*[0-9]+(\\.[0-9]+)?\\s*%\\s*$|\\$\\{"}
    ]
});

/// A duration: `500ms`, `2.5s`, `1h30m`, `0`; `None` when it is none.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut seconds = 0f64;
    let mut parts = 0;
    while !rest.is_empty() {
        let (number, after) = number_prefix(rest)?;
        let unit_len = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let (unit, more) = after.split_at_checked(unit_len)?;
        seconds += number
            * match unit {
                "us" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3_600.0,
                "d" => 86_400.0,
                _ => return None,
            };
        parts += 1;
        rest = more.trim_start();
    }
    (parts > 0).then_some(())?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A size in bytes: `64MiB`, `10MB`, `1024`; `None` when it is none.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = number_prefix(text.trim())?;
    let factor: f64 = match unit.trim() {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "KiB" => 1024.0,
        "MiB" => 1_048_576.0,
        "GiB" => 1_073_741_824.0,
        _ => return None,
    };
    let bytes = number * factor;
    (bytes.fract() == 0.0 && bytes < 1e15).then_some(bytes as u64)
}

/// How a threshold or baseline was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Quantity {
    /// A bare number.
    Number(f64),
    /// A duration.
    Time(Duration),
    /// `2x`
    Times(f64),
    /// `+40%` or `-30%`, as a factor
    Change(f64),
    /// `5%`, as a share
    Percent(f64),
}

/// A number, a duration, `2x`, `+40%` or `5%`; `None` when it is none of them.
pub(super) fn quantity(scalar: &Scalar) -> Option<Quantity> {
    if let Some(n) = scalar.number() {
        return Some(Quantity::Number(n));
    }
    let text = scalar.text();
    let text = text.as_ref();
    if let Some(t) = duration(text) {
        return Some(Quantity::Time(t));
    }
    if let Some(number) = text.strip_suffix('x') {
        return plain_number(number).map(Quantity::Times);
    }
    let percent = text.strip_suffix('%')?.trim_end();
    if let Some(more) = percent.strip_prefix('+') {
        return plain_number(more).map(|p| Quantity::Change(1.0 + p / 100.0));
    }
    if let Some(less) = percent.strip_prefix(['-', '−']) {
        return plain_number(less).map(|p| Quantity::Change(1.0 - p / 100.0));
    }
    plain_number(percent).map(|p| Quantity::Percent(p / 100.0))
}

fn plain_number(text: &str) -> Option<f64> {
    match number_prefix(text.trim())? {
        (n, "") => Some(n),
        _ => None,
    }
}

/// The decimal number that `text` begins with, and what follows it.
fn number_prefix(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    let number: f64 = digits.parse().ok()?;
    number.is_finite().then_some((number, rest))
}

/// A duration as people write it: `500ms`, `2.5s`, `15m`, `1h30m`.
pub(crate) fn show_duration(d: Duration) -> String {
    let millis = d.as_millis();
    if d.is_zero() {
        return "0s".to_owned();
    }
    if d.subsec_nanos() != 0 || millis < 1_000 {
        return match millis {
            0 => format!("{}us", d.as_micros()),
            1..1_000 => format!("{millis}ms"),
            _ => format!("{}s", d.as_secs_f64()),
        };
    }
    let mut rest = d.as_secs();
    let mut out = String::new();
    for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
        if rest >= seconds {
            out.push_str(&format!("{}{unit}", rest / seconds));
            rest %= seconds;
        }
    }
    out
}

/// A size as people write it.
pub(super) fn show_size(bytes: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >= 1 << shift && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("0", Some(0)),
            ("500ms", Some(500)),
            ("2.5s", Some(2_500)),
            ("15m", Some(900_000)),
            ("1h30m", Some(5_400_000)),
            ("1h 30m", Some(5_400_000)),
            ("1d", Some(86_400_000)),
            (" 5s ", Some(5_000)),
            ("5", None),
            ("", None),
            ("s", None),
            ("5 s", None),
            ("-5s", None),
            ("5x", None),
            ("1e3s", None),
            ("5min", None),
            ("9999999999999999999999999d", None),
            ("1.2.3s", None),
        ] {
            assert_eq!(duration(text), want.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn durations_are_written_back_as_they_are_read() {
        for text in ["250us", "500ms", "2.5s", "15m", "1h30m", "1d", "0s", "1m1s"] {
            assert_eq!(show_duration(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes() {
        for (text, want) in [
            ("1024", Some(1024)),
            ("64MiB", Some(64 << 20)),
            ("1.5KiB", Some(1536)),
            ("10 MB", Some(10_000_000)),
            ("0.3B", None),
            ("64M", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(size(text), want, "{text:?}");
        }
        assert_eq!(show_size(64 << 20), "64MiB");
        assert_eq!(show_size(1_500), "1500B");
    }

    #[test]
    fn quantities() {
        let text = |t: &str| quantity(&Scalar::Text(t.to_owned()));
        assert_eq!(text("2x"), Some(Quantity::Times(2.0)));
        assert_eq!(text("1.5 x"), Some(Quantity::Times(1.5)));
        assert_eq!(text("+40%"), Some(Quantity::Change(1.4)));
        assert_eq!(text("-30%"), Some(Quantity::Change(0.7)));
        assert_eq!(text("5%"), Some(Quantity::Percent(0.05)));
        assert_eq!(text("8s"), Some(Quantity::Time(Duration::from_secs(8))));
        assert_eq!(text("12"), Some(Quantity::Number(12.0)));
        assert_eq!(quantity(&Scalar::Number(0.65)), Some(Quantity::Number(0.65)));
        for bad in ["x", "%", "+%", "two", "+4", "inf", "nan", ".nan", "5€"] {
            assert!(
                !matches!(text(bad), Some(q) if q != Quantity::Number(4.0)),
                "{bad}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(text in "(?s).{0,12}") {
            duration(&text);
            size(&text);
            quantity(&Scalar::Text(text));
        }

        #[test]
        fn every_whole_duration_is_read_back(ms in 0u64..10_000_000_000) {
            let d = Duration::from_millis(ms);
            let back = duration(&show_duration(d)).unwrap();
            proptest::prop_assert!(back.abs_diff(d) < Duration::from_millis(1));
        }
    }
}
