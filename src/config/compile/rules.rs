//! Rules: names resolved, thresholds in the metric's unit, contradictions told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::alerts::severity;
use super::{builtin, value_or};
use crate::config::at::{At, Opt};
use crate::config::check::Check;
use crate::config::file::{GroupByWord, ModeWord, RuleFile};
use crate::config::problem::Place;
use crate::config::units::{self, Quantity, Scalar, ThresholdText};
use crate::config::{defaults, suggest};
use crate::incident::metric::Unit;
use crate::incident::rule::{Action, Baseline, GroupBy, Metric, Mode, Rule, Statistic, StepKind, Threshold};
use crate::types::ids::{ActionName, RuleName};
use crate::types::notice::Severity;

/// The rules of the file, or the built-in ones.
pub(super) fn rules(
    given: Option<Vec<At<RuleFile>>>,
    actions: &BTreeMap<ActionName, Action>,
    upstreams: &[String],
    check: &mut Check<'_>,
) -> Vec<Rule> {
    let Some(list) = given else {
        let no_env = |_: &str| None;
        let mut of_builtin = Check::new("built-in", defaults::RULES, &no_env, Vec::new());
        let list = builtin(defaults::RULES).agent_incident_rules.unwrap_or_default();
        return list
            .into_iter()
            .filter_map(|r| rule(r, actions, upstreams, &mut of_builtin))
            .collect();
    };
    let mut names: Vec<(String, Place)> = Vec::with_capacity(list.len());
    let mut rules = Vec::with_capacity(list.len());
    for item in list {
        if let Some(name) = &item.value.name {
            if names.iter().any(|(n, _)| *n == name.value) {
                let text = format!("two rules named `{}`", check.quote(name.place, &name.value));
                check.problem(
                    name.place,
                    text,
                    "incidents survive a reload by the rule's name; rename one of them",
                );
            }
            names.push((name.value.clone(), name.place));
        }
        rules.extend(rule(item, actions, upstreams, check));
    }
    rules
}

fn rule(
    item: At<RuleFile>,
    actions: &BTreeMap<ActionName, Action>,
    upstreams: &[String],
    check: &mut Check<'_>,
) -> Option<Rule> {
    let At { value, place } = item;
    let RuleFile {
        name,
        enabled,
        mode,
        severity: given_severity,
        metric,
        statistic,
        baseline,
        threshold_upper,
        threshold_lower,
        window,
        hold,
        min_samples,
        cooldown,
        hysteresis,
        agents,
        models,
        upstreams: of_upstreams,
        group_by,
        act_on_estimates,
        action,
    } = value;
    if name.is_none() {
        check.missing(place, "name", "a short word; incidents survive a reload by it");
    }
    let name = name.filter(|n| check.name("name", n));
    let measured = measured(metric, statistic, place, check);
    let group_by = match value_or(group_by, GroupByWord::Agent) {
        GroupByWord::Agent => GroupBy::Agent,
        GroupByWord::Execution => GroupBy::Execution,
        GroupByWord::Model => GroupBy::Model,
        GroupByWord::Upstream => GroupBy::Upstream,
        GroupByWord::Fleet => GroupBy::Fleet,
    };
    let action = chosen(action, actions, place, check);
    let day = Duration::from_secs(86_400);
    let second = Duration::from_secs(1);
    let window = check.duration("window", window, defaults::WINDOW, second..=day);
    let hold = check.duration("for", hold, Duration::ZERO, Duration::ZERO..=day);
    let cooldown = check.duration("cooldown", cooldown, defaults::COOLDOWN, Duration::ZERO..=7 * day);
    let hysteresis = check.number("hysteresis", hysteresis, defaults::HYSTERESIS, 0.0..=0.9);
    let agents = check.names("agents", agents);
    let models = check.names("models", models);
    let of_upstreams = served(of_upstreams, upstreams, check);
    let given_samples = min_samples.map(|m| check.count("min_samples", Some(m), 1, 1..=1_000_000));
    let levels = match measured {
        Some((metric, _)) => levels(
            metric.unit(),
            baseline,
            threshold_upper,
            threshold_lower,
            place,
            check,
        ),
        None => None,
    };
    let (metric, statistic) = measured?;
    let (baseline, threshold_upper, threshold_lower) = levels?;
    let action = action?;
    let escalates = actions.get(&action).is_some_and(|a| {
        a.steps
            .iter()
            .any(|s| matches!(s.kind, StepKind::Escalate { .. }))
    });
    Some(Rule {
        name: RuleName::from(name?.value),
        enabled: value_or(enabled, true),
        mode: match value_or(mode, ModeWord::Enforce) {
            ModeWord::Shadow => Mode::Shadow,
            ModeWord::Warn => Mode::Warn,
            ModeWord::Approve => Mode::Approve,
            ModeWord::Enforce => Mode::Enforce,
        },
        severity: match given_severity {
            Some(s) => severity(s.value),
            None if escalates => Severity::Critical,
            None => Severity::Warning,
        },
        metric,
        statistic,
        baseline,
        threshold_upper,
        threshold_lower,
        window,
        hold,
        min_samples: given_samples
            .unwrap_or_else(|| defaults::min_samples(metric, statistic, group_by == GroupBy::Execution)),
        cooldown,
        hysteresis,
        agents,
        models,
        upstreams: of_upstreams,
        group_by,
        act_on_estimates: value_or(act_on_estimates, false),
        action,
    })
}

/// The metric and its statistic.
fn measured(
    metric: Opt<String>,
    statistic: Opt<String>,
    place: Place,
    check: &mut Check<'_>,
) -> Option<(Metric, Statistic)> {
    let wanted = match &statistic {
        Some(s) => Some(statistic_of(s, check)?),
        None => None,
    };
    let Some(At { value, place }) = metric else {
        check.missing(
            place,
            "metric",
            "what is measured, as tokens_per_execution or p95_response_time",
        );
        return None;
    };
    let Some((metric, by_name)) = Metric::parse(value.trim()) else {
        let all = Metric::all_names();
        let quoted = check.quote(place, &value);
        let hint = suggest::hint(value.trim(), all.iter().map(String::as_str)).unwrap_or_default();
        check.problem(place, format!("unknown metric `{quoted}`"), hint);
        return None;
    };
    let usual = metric.default_statistic();
    match (by_name, wanted, statistic) {
        (Some(by_name), Some(wanted), Some(at)) if by_name != wanted => {
            check.problem(
                at.place,
                "the metric's name says another statistic",
                "remove one of the two",
            );
        }
        (None, Some(_), Some(at)) if usual == Statistic::Ratio => {
            check.problem(
                at.place,
                format!(
                    "`{}` is a share or a rate over the whole window already",
                    metric.name(usual)
                ),
                "remove `statistic`",
            );
        }
        _ => {}
    }
    Some((metric, by_name.or(wanted).unwrap_or(usual)))
}

fn statistic_of(given: &At<String>, check: &mut Check<'_>) -> Option<Statistic> {
    const WORDS: [&str; 9] = ["mean", "max", "min", "sum", "median", "p50", "p90", "p95", "p99"];
    let word = given.value.trim();
    let quantile = || {
        let percent: f64 = word.strip_prefix('p')?.parse().ok()?;
        (percent > 0.0 && percent < 100.0).then_some(Statistic::Quantile(percent / 100.0))
    };
    let statistic = match word {
        "mean" => Some(Statistic::Mean),
        "max" => Some(Statistic::Max),
        "min" => Some(Statistic::Min),
        "sum" => Some(Statistic::Sum),
        "median" => Some(Statistic::Quantile(0.5)),
        _ => quantile(),
    };
    if statistic.is_none() {
        let quoted = check.quote(given.place, word);
        let hint = suggest::hint(word, WORDS).unwrap_or_default();
        check.problem(given.place, format!("unknown statistic `{quoted}`"), hint);
    }
    statistic
}

/// The chain that a rule names.
fn chosen(
    given: Opt<String>,
    actions: &BTreeMap<ActionName, Action>,
    place: Place,
    check: &mut Check<'_>,
) -> Option<ActionName> {
    let names = || actions.keys().map(ActionName::as_str);
    let Some(At { value, place }) = given else {
        check.missing(
            place,
            "action",
            format!("one of {}", names().collect::<Vec<_>>().join(", ")),
        );
        return None;
    };
    let name = value.trim();
    if actions.contains_key(name) {
        return Some(ActionName::from(name));
    }
    let quoted = check.quote(place, name);
    let hint = match suggest::nearest(name, names()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "define it under `actions`, or use one of {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    };
    check.problem(place, format!("unknown action `{quoted}`"), hint);
    None
}

/// The patterns for upstreams; one without `*` and `?` must be the name of an upstream.
fn served(given: Vec<At<String>>, known: &[String], check: &mut Check<'_>) -> Vec<String> {
    for At { value, place } in &given {
        if !value.contains(['*', '?']) && !known.contains(value) {
            let quoted = check.quote(*place, value);
            let hint = suggest::hint(value, known.iter().map(String::as_str)).unwrap_or_default();
            check.problem(*place, format!("unknown upstream `{quoted}`"), hint);
        }
    }
    check.names("upstreams", given)
}

type Levels = (Baseline, Option<Threshold>, Option<Threshold>);

/// Baseline and thresholds, in the metric's unit and not against each other.
fn levels(
    unit: Unit,
    baseline: Option<At<units::BaselineText>>,
    upper: Option<At<ThresholdText>>,
    lower: Option<At<ThresholdText>>,
    place: Place,
    check: &mut Check<'_>,
) -> Option<Levels> {
    let baseline = match baseline {
        None => None,
        Some(At { value, place }) => Some(At {
            value: baseline_of(&value.0, unit, place, check)?,
            place,
        }),
    };
    if upper.is_none() && lower.is_none() {
        if !check.told_about(place, &["threshold_upper", "threshold_lower"]) {
            check.problem(
                place,
                "a rule without a threshold",
                "give threshold_upper or threshold_lower: without either it finds nothing",
            );
        }
        return None;
    }
    let mut sound = true;
    let mut one = |key: &str, given: Option<At<ThresholdText>>| {
        let given = given?;
        let place = given.place;
        let threshold = threshold_of(key, &given.value.0, unit, place, check);
        sound &= threshold.is_some();
        Some(At {
            value: threshold?,
            place,
        })
    };
    let upper = one("threshold_upper", upper);
    let lower = one("threshold_lower", lower);
    for (key, threshold) in [("threshold_upper", &upper), ("threshold_lower", &lower)] {
        if let (
            Some(At {
                value: Threshold::TimesBaseline(_),
                place,
            }),
            None,
        ) = (threshold, &baseline)
        {
            check.problem(
                *place,
                format!("`{key}` is relative to a baseline that is not given"),
                "give `baseline` a value (or learned), or write the threshold as a value",
            );
            sound = false;
        }
    }
    let normal = match baseline {
        Some(At {
            value: Baseline::Fixed(n),
            ..
        }) => Some(n),
        _ => None,
    };
    let resolved = |t: &Option<At<Threshold>>| {
        t.as_ref().and_then(|t| match t.value {
            Threshold::Fixed(v) => Some(v),
            Threshold::TimesBaseline(f) => normal.map(|n| n * f),
        })
    };
    let (up, low) = (resolved(&upper), resolved(&lower));
    contradictions(&upper, &lower, up, low, normal, check);
    if !sound {
        return None;
    }
    // Without a baseline the threshold itself says what is normal at most.
    let baseline = baseline.map_or_else(|| Baseline::Fixed(up.or(low).unwrap_or_default()), |b| b.value);
    Some((baseline, upper.map(|t| t.value), lower.map(|t| t.value)))
}

fn contradictions(
    upper: &Option<At<Threshold>>,
    lower: &Option<At<Threshold>>,
    up: Option<f64>,
    low: Option<f64>,
    normal: Option<f64>,
    check: &mut Check<'_>,
) {
    if let Some(At { value, place }) = upper {
        let below = match value {
            Threshold::TimesBaseline(f) => *f <= 1.0,
            Threshold::Fixed(v) => normal.is_some_and(|n| *v <= n),
        };
        if below {
            check.problem(
                *place,
                "`threshold_upper` is not above the baseline: what is normal would be a breach",
                "raise it, or use threshold_lower for what must not fall",
            );
        }
    }
    if let Some(At { value, place }) = lower {
        let above = match value {
            Threshold::TimesBaseline(f) => *f >= 1.0,
            Threshold::Fixed(v) => normal.is_some_and(|n| *v >= n),
        };
        if above {
            check.problem(
                *place,
                "`threshold_lower` is not below the baseline: what is normal would be a breach",
                "lower it, or use threshold_upper for what must not rise",
            );
        }
    }
    if let (Some(up), Some(low), Some(At { place, .. })) = (up, low, lower)
        && low >= up
    {
        check.problem(
            *place,
            "`threshold_lower` is not below `threshold_upper`: every value would be a breach",
            "leave room between the two",
        );
    }
}

fn baseline_of(scalar: &Scalar, unit: Unit, place: Place, check: &mut Check<'_>) -> Option<Baseline> {
    let text = scalar.text();
    match text.as_ref() {
        "learned" => return Some(Baseline::Learned),
        "fleet" => return Some(Baseline::Fleet),
        _ => {}
    }
    match units::quantity(scalar) {
        Some(Quantity::Times(_) | Quantity::Change(_)) => {
            check.problem(
                place,
                "a baseline cannot be relative",
                "write a value, learned or fleet",
            );
            None
        }
        Some(quantity) => fixed("baseline", quantity, unit, place, check).map(Baseline::Fixed),
        None => {
            let quoted = check.quote(place, &text);
            let hint = match suggest::nearest(&text, ["learned", "fleet"]) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write {}, learned or fleet", example(unit)),
            };
            check.problem(place, format!("`{quoted}` is not a baseline"), hint);
            None
        }
    }
}

fn threshold_of(
    key: &str,
    scalar: &Scalar,
    unit: Unit,
    place: Place,
    check: &mut Check<'_>,
) -> Option<Threshold> {
    match units::quantity(scalar) {
        Some(Quantity::Times(f) | Quantity::Change(f)) if f > 0.0 && f <= 1e6 => {
            Some(Threshold::TimesBaseline(f))
        }
        Some(Quantity::Times(_) | Quantity::Change(_)) => {
            check.problem(
                place,
                format!("`{key}` leaves nothing of the baseline"),
                "write it as 2x, +40% or -30%",
            );
            None
        }
        Some(quantity) => fixed(key, quantity, unit, place, check).map(Threshold::Fixed),
        None => {
            let quoted = check.quote(place, &scalar.text());
            let hint = format!(
                "write {}, or relative to the baseline as 2x, +40% or -30%",
                example(unit)
            );
            check.problem(place, format!("`{quoted}` is not a threshold"), hint);
            None
        }
    }
}

/// A value in the metric's unit.
fn fixed(key: &str, quantity: Quantity, unit: Unit, place: Place, check: &mut Check<'_>) -> Option<f64> {
    let value = match (quantity, unit) {
        (Quantity::Time(t), Unit::Seconds) => t.as_secs_f64(),
        (Quantity::Time(t), _) if t.is_zero() => 0.0,
        (Quantity::Time(_), _) => {
            let text = format!(
                "`{key}` is a duration, but the metric is counted in {}",
                counted_in(unit)
            );
            check.problem(place, text, format!("write {}", example(unit)));
            return None;
        }
        (Quantity::Number(n), Unit::Seconds) if n != 0.0 => {
            let text = format!("`{key}` needs a unit, since the metric is a time");
            check.problem(place, text, format!("write {n}s or {n}ms"));
            return None;
        }
        (Quantity::Percent(p), Unit::Share) => p,
        (Quantity::Percent(_), _) => {
            let text = format!(
                "`{key}` is a share, but the metric is counted in {}",
                counted_in(unit)
            );
            check.problem(
                place,
                text,
                format!(
                    "write {}; for a change of the baseline +40% or -30%",
                    example(unit)
                ),
            );
            return None;
        }
        (Quantity::Number(n), _) => n,
        (Quantity::Times(_) | Quantity::Change(_), _) => return None,
    };
    let range = if unit == Unit::Share {
        0.0..=1.0
    } else {
        0.0..=1e15
    };
    if !range.contains(&value) {
        let hint = match unit {
            Unit::Share => "a share is from 0 to 1 (or from 0% to 100%)".to_owned(),
            _ => "a number from 0 up".to_owned(),
        };
        check.problem(place, format!("`{key}` is out of range"), hint);
        return None;
    }
    Some(value)
}

const fn counted_in(unit: Unit) -> &'static str {
    match unit {
        Unit::Tokens => "tokens",
        Unit::Requests => "requests",
        Unit::Dollars => "US dollars",
        Unit::Seconds => "seconds",
        Unit::Share => "shares from 0 to 1",
        Unit::PerSecond => "tokens a second",
    }
}

const fn example(unit: Unit) -> &'static str {
    match unit {
        Unit::Tokens => "a number of tokens, as 5000",
        Unit::Requests => "a number of requests, as 60",
        Unit::Dollars => "a number of US dollars, as 2.50",
        Unit::Seconds => "a duration, as 8s or 500ms",
        Unit::Share => "a share, as 0.65 or 5%",
        Unit::PerSecond => "a number a second, as 20",
    }
}
