//! Compiled things as the file spells them, for people.

use std::fmt::Debug;

use super::units::show_duration;
use crate::enforce::policy::Bind;
use crate::incident::metric::Unit;
use crate::incident::rule::{Baseline, Mode, Rule, Statistic, Threshold};

/// A statistic as the file spells it.
pub(super) fn show_statistic(statistic: Statistic) -> String {
    match statistic {
        Statistic::Quantile(q) => format!("p{}", (q * 1e6).round() / 1e4),
        other => word(&other),
    }
}

/// A value in the unit of the rule's metric.
pub(super) fn show_value(value: f64, rule: &Rule) -> String {
    match rule.metric.unit() {
        Unit::Seconds => {
            std::time::Duration::try_from_secs_f64(value).map_or_else(|_| value.to_string(), show_duration)
        }
        _ => value.to_string(),
    }
}

/// What is normal, as the file spells it.
pub(super) fn show_baseline(rule: &Rule) -> String {
    match rule.baseline {
        Baseline::Fixed(v) => show_value(v, rule),
        Baseline::Learned => "learned".to_owned(),
        Baseline::Fleet => "fleet".to_owned(),
    }
}

/// Where a breach begins, as the file spells it.
pub(super) fn show_threshold(threshold: Threshold, rule: &Rule) -> String {
    match threshold {
        Threshold::Fixed(v) => show_value(v, rule),
        Threshold::TimesBaseline(f) => format!("{f}x"),
    }
}

/// One rule in one line: what is compared with what, over how long, and what follows.
pub(crate) fn show_rule(rule: &Rule) -> String {
    let mut out = format!("{} ", rule.metric.name(rule.statistic));
    if !matches!(rule.statistic, Statistic::Quantile(_) | Statistic::Ratio) {
        out = format!("{} of {out}", show_statistic(rule.statistic));
    }
    let mut limits = Vec::new();
    for (sign, threshold) in [(">", rule.threshold_upper), ("<", rule.threshold_lower)] {
        let Some(threshold) = threshold else { continue };
        limits.push(match (threshold, rule.baseline) {
            (Threshold::TimesBaseline(f), Baseline::Fixed(b)) => {
                format!(
                    "{sign} {} ({f} x {})",
                    show_value(b * f, rule),
                    show_value(b, rule)
                )
            }
            (Threshold::TimesBaseline(f), _) => format!("{sign} {f} x {} baseline", show_baseline(rule)),
            (Threshold::Fixed(v), Baseline::Fixed(b)) if b != v => {
                format!(
                    "{sign} {} (baseline {})",
                    show_value(v, rule),
                    show_value(b, rule)
                )
            }
            (Threshold::Fixed(v), _) => format!("{sign} {}", show_value(v, rule)),
        });
    }
    out.push_str(&limits.join(" or "));
    out.push_str(&format!(" over {}", show_duration(rule.window)));
    if !rule.hold.is_zero() {
        out.push_str(&format!(" for {}", show_duration(rule.hold)));
    }
    out.push_str(&format!(", {}+ samples → {}", rule.min_samples, rule.action));
    if rule.mode != Mode::Enforce {
        out.push_str(&format!(" [{}]", word(&rule.mode)));
    }
    out
}

/// An address as the file spells it.
pub(crate) fn show_bind(bind: &Bind) -> String {
    match bind {
        Bind::Tcp(address) => address.to_string(),
        Bind::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// A variant as the file spells it: `PriorKnowledge` is `prior_knowledge`, `Some(3)` is `3`, `None` is `none`.
pub(super) fn word(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let text = text
        .strip_prefix("Some(")
        .and_then(|t| t.strip_suffix(')'))
        .unwrap_or(&text);
    let mut out = String::with_capacity(text.len() + 4);
    let mut before = ' ';
    for c in text.chars() {
        if c.is_ascii_uppercase() && before.is_ascii_lowercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
        before = c;
    }
    out
}
