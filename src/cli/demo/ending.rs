//! The end of the story: a chart, a table, and whether everything happened that should have.

use std::time::Duration;

use super::chart::{Mark, draw, si};
use super::figures::{Money, by_model, columns, per_minute, tokens};
use super::hearing::Heard;
use super::ledger::Bill;
use super::plan::RUNAWAY;
use super::story::{Times, of_runaway};
use super::timeline::Timeline;
use super::watch::Case;
use crate::dialect::price::PriceTable;
use crate::types::time::{Mono, Now};

/// Columns of the chart, at most, so that it fits into eighty with its scale.
const COLUMNS: f64 = 71.0;
/// The effect counts as measured when less than this share of the rate is left.
const EFFECT: f64 = 0.5;
/// An answer that was under way when the directives came is not their fault: the rate under them is taken from here on.
pub(super) const UNDER_WAY: Duration = Duration::from_secs(2);

/// What is known at the end.
pub(super) struct Ending<'a> {
    pub(super) bills: Vec<Bill>,
    pub(super) start: Now,
    pub(super) end: Now,
    pub(super) times: Times,
    pub(super) case: &'a Case,
    /// Incidents that had nothing to do with the story.
    pub(super) others: u64,
    pub(super) heard: &'a Heard,
}

/// Tokens a minute of the runaway, part by part.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rates {
    before: f64,
    exploding: Option<f64>,
    under: Option<f64>,
    after: Option<f64>,
}

impl Ending<'_> {
    fn rates(&self) -> Rates {
        let own: Vec<&Bill> = of_runaway(&self.bills).collect();
        let rate = |from: Mono, to: Mono| per_minute(own.iter().copied(), from, to, tokens);
        let Times {
            exploded,
            acted,
            repaired,
            released,
        } = self.times;
        let end = self.end.mono;
        let mono = |now: Option<Now>| now.map(|n| n.mono);
        let calm_end = mono(exploded).unwrap_or(end);
        Rates {
            // The first seconds, when everything starts, are left out.
            before: rate(self.start.mono.after(UNDER_WAY), calm_end),
            exploding: mono(exploded).map(|from| rate(from, mono(acted).unwrap_or(end))),
            under: mono(acted).map(|from| rate(from.after(UNDER_WAY), mono(repaired).unwrap_or(end))),
            after: mono(repaired)
                .filter(|_| released.is_some())
                .map(|from| rate(from.after(UNDER_WAY), end)),
        }
    }

    /// What should have happened and did not.
    pub(super) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let mut need = |happened: bool, what: String| {
            if !happened {
                missing.push(what);
            }
        };
        let heard = self.heard;
        let told = |event: &str| heard.webhooks.iter().any(|w| w.event == event && w.signed);
        let case = self.case;
        need(
            case.incident.is_some(),
            format!("no incident was opened for {RUNAWAY}"),
        );
        if case.incident.is_none() {
            return missing;
        }
        need(case.throttled, format!("{RUNAWAY} was not throttled"));
        need(case.downgraded, "no cheaper model was ordered".to_owned());
        need(
            heard.downgraded > 0,
            "no answer came from a cheaper model".to_owned(),
        );
        let rates = self.rates();
        let measured = match (rates.exploding, rates.under) {
            (Some(exploding), Some(under)) => under <= exploding * EFFECT,
            _ => false,
        };
        need(
            measured,
            format!("the throttle did not halve the tokens a minute of {RUNAWAY}"),
        );
        need(
            told("incident.opened"),
            "the webhook did not tell of the opening (signed)".to_owned(),
        );
        need(
            self.times.released.is_some(),
            "the incident was not resolved, or something of it is still in force".to_owned(),
        );
        if self.times.released.is_some() {
            need(
                told("incident.resolved"),
                "the webhook did not tell of the end (signed)".to_owned(),
            );
        }
        missing
    }

    pub(super) fn print(&self, timeline: &Timeline) {
        timeline.heading(&format!(
            "Tokens a minute of {RUNAWAY}, as billed by the simulated provider"
        ));
        for line in self.chart() {
            timeline.plain(&line);
        }
        timeline.heading("Summary");
        for (name, value) in self.table() {
            timeline.plain(&format!("  {name:<18} {value}"));
        }
    }

    fn chart(&self) -> Vec<String> {
        let own: Vec<Bill> = of_runaway(&self.bills).cloned().collect();
        let whole = self.end.mono.since(self.start.mono).as_secs_f64();
        let step = [1.0, 1.5, 2.0, 3.0]
            .into_iter()
            .find(|step| whole <= step * COLUMNS)
            .unwrap_or(whole / COLUMNS);
        let values = columns(
            &own,
            self.start.mono,
            self.end.mono,
            Duration::from_secs_f64(step),
            3,
        );
        let mark = |at: Option<Now>, text: &str| {
            let seconds = at?.mono.since(self.start.mono).as_secs_f64();
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "seconds of a short story"
            )]
            let column = (seconds / step) as usize;
            Some(Mark {
                column,
                text: format!("{seconds:.0} s {text}"),
            })
        };
        let marks: Vec<Mark> = [
            mark(self.times.exploded, "the loop starts"),
            mark(self.times.acted, "throttled, and on a cheaper model"),
            mark(self.times.repaired, "repaired"),
            mark(self.times.released, "released"),
        ]
        .into_iter()
        .flatten()
        .collect();
        draw(&values, step, &marks)
    }

    fn table(&self) -> Vec<(&'static str, String)> {
        let rates = self.rates();
        let shown = |rate: Option<f64>| rate.map_or_else(|| "–".to_owned(), si);
        let between = |from: Option<i64>, to: Option<i64>| match (from, to) {
            (Some(from), Some(to)) => format!("{:.1} s", (to - from).max(0) as f64 / 1e3),
            _ => "–".to_owned(),
        };
        let wall = |now: Option<Now>| now.map(|n| n.wall.unix_millis());
        let case = self.case;
        let opened = case.opened.map(|w| w.unix_millis());
        let acted = case.acted.map(|w| w.unix_millis());
        let mut table = vec![
            (
                "tokens a minute",
                format!(
                    "{} before · {} exploding · {} throttled · {} after the repair",
                    si(rates.before),
                    shown(rates.exploding),
                    shown(rates.under),
                    shown(rates.after)
                ),
            ),
            (
                "time to detect",
                format!(
                    "{} from the start of the loop to the incident",
                    between(wall(self.times.exploded), opened)
                ),
            ),
            (
                "time to act",
                format!(
                    "{} from the incident to its directives in force",
                    between(opened, acted)
                ),
            ),
            (
                "time to release",
                format!(
                    "{} from the repair to the end of the directives",
                    between(wall(self.times.repaired), wall(self.times.released))
                ),
            ),
        ];
        table.push((
            "refusals",
            format!(
                "{} × 429 seen by {RUNAWAY}'s SDK, {} call(s) given up; {} by all other agents",
                self.heard.refused, self.heard.raised, self.heard.others
            ),
        ));
        if let (Some(acted), Some(repaired)) = (self.times.acted, self.times.repaired) {
            let under = of_runaway(&self.bills).filter(|b| b.from >= acted.mono && b.from < repaired.mono);
            let models: Vec<String> = by_model(under)
                .into_iter()
                .map(|(model, calls)| format!("{calls} × {model}"))
                .collect();
            table.push(("models under it", models.join(", ")));
        }
        table.push((
            "webhooks",
            format!(
                "{} received, {} with a good signature",
                self.heard.webhooks.len(),
                self.heard.webhooks.iter().filter(|w| w.signed).count()
            ),
        ));
        if self.others > 0 {
            table.push(("other incidents", self.others.to_string()));
        }
        table.extend(self.money());
        table
    }

    fn money(&self) -> Vec<(&'static str, String)> {
        let (Some(exploded), Some(acted), Some(repaired)) =
            (self.times.exploded, self.times.acted, self.times.repaired)
        else {
            return Vec::new();
        };
        let own: Vec<Bill> = of_runaway(&self.bills).cloned().collect();
        let prices = PriceTable::builtin();
        let money = Money::compare(&prices, &own, exploded.mono, acted.mono, repaired.mono);
        vec![
            (
                "saved (estimate)",
                format!(
                    "${:.2} in {:.0} s, which is ${:.0} an hour",
                    money.saved(),
                    money.minutes * 60.0,
                    (money.rate_before - money.rate_under).max(0.0) * 60.0
                ),
            ),
            (
                "",
                format!(
                    "= (${:.3} − ${:.3} a minute, before and under the throttle) × {:.2} min, at list prices of {}",
                    money.rate_before,
                    money.rate_under,
                    money.minutes,
                    PriceTable::builtin_date()
                ),
            ),
            (
                "",
                "  (that the loop would have grown further is not counted)".to_owned(),
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::receiver::Received;
    use crate::types::ids::IncidentId;
    use crate::types::time::Wall;

    fn at(ms: u64) -> Now {
        Now {
            mono: Mono::from_millis(ms),
            wall: Wall::from_unix_millis(i64::try_from(ms).unwrap()),
        }
    }

    fn bill(from: u64, to: u64, tokens: u64) -> Bill {
        Bill {
            from: Mono::from_millis(from),
            to: Mono::from_millis(to),
            account: RUNAWAY.to_owned(),
            model: "gpt-4o".to_owned(),
            input: tokens,
            output: 0,
        }
    }

    fn told(event: &str) -> Received {
        Received {
            event: event.to_owned(),
            title: String::new(),
            severity: "error".to_owned(),
            signed: true,
        }
    }

    fn happened() -> (Case, Heard, Times, Vec<Bill>) {
        let wall = |ms| Some(Wall::from_unix_millis(ms));
        let case = Case {
            incident: Some(IncidentId::from("i")),
            opened: wall(20_000),
            acted: wall(20_100),
            throttled: true,
            downgraded: true,
            resolved: wall(60_000),
        };
        let heard = Heard {
            downgraded: 2,
            webhooks: vec![told("incident.opened"), told("incident.resolved")],
            ..Heard::default()
        };
        let times = Times {
            exploded: Some(at(15_000)),
            acted: Some(at(20_100)),
            repaired: Some(at(44_000)),
            released: Some(at(60_000)),
        };
        let bills = vec![
            bill(2_000, 15_000, 10_000),
            bill(15_000, 20_000, 50_000),
            bill(23_000, 44_000, 20_000),
            bill(46_000, 68_000, 15_000),
        ];
        (case, heard, times, bills)
    }

    fn missing(case: &Case, heard: &Heard, times: Times, bills: Vec<Bill>) -> Vec<String> {
        let ending = Ending {
            bills,
            start: at(0),
            end: at(68_000),
            times,
            case,
            others: 0,
            heard,
        };
        ending.missing()
    }

    #[test]
    fn a_story_that_happened_misses_nothing() {
        let (case, heard, times, bills) = happened();
        assert_eq!(missing(&case, &heard, times, bills), Vec::<String>::new());
    }

    #[test]
    fn everything_that_did_not_happen_is_named() {
        let (case, heard, times, bills) = happened();
        let none = missing(&Case::default(), &heard, times, bills.clone());
        assert_eq!(none, ["no incident was opened for research"]);

        let other = Case {
            throttled: false,
            downgraded: false,
            ..case.clone()
        };
        assert_eq!(missing(&other, &heard, times, bills.clone()).len(), 2);

        let still = Times {
            released: None,
            ..times
        };
        assert!(missing(&case, &heard, still, bills.clone())[0].contains("not resolved"));

        let mut dearer = bills.clone();
        dearer.push(bill(23_000, 44_000, 200_000));
        assert!(missing(&case, &heard, times, dearer)[0].contains("did not halve"));

        let mut unsigned = Heard {
            downgraded: 0,
            webhooks: heard.webhooks.clone(),
            ..Heard::default()
        };
        unsigned.webhooks[0].signed = false;
        assert_eq!(missing(&case, &unsigned, times, bills).len(), 2);
    }

    #[test]
    fn rates_are_taken_between_the_right_points() {
        let (case, heard, times, bills) = happened();
        let ending = Ending {
            bills,
            start: at(0),
            end: at(68_000),
            times,
            case: &case,
            others: 0,
            heard: &heard,
        };
        let rates = ending.rates();
        assert!((rates.before - 10_000.0 * 60.0 / 13.0).abs() < 1.0);
        assert!((rates.exploding.unwrap() - 50_000.0 * 60.0 / 5.1).abs() < 1.0);
        assert!((rates.under.unwrap() - 20_000.0 * 60.0 / 21.9).abs() < 1.0);
        assert!((rates.after.unwrap() - 15_000.0 * 60.0 / 22.0).abs() < 1.0);
        let chart = ending.chart();
        assert!(
            chart
                .iter()
                .any(|l| l.ends_with("▲ 20 s throttled, and on a cheaper model"))
        );
    }
}
