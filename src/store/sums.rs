//! What was used, added up by minute and by day for each agent, model and upstream.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use crate::types::ids::{AgentId, ModelName, UpstreamName};
use crate::types::observation::Observation;
use crate::types::time::Wall;

/// Combinations of agent, model and upstream told apart in one day; names come from clients.
const COMBINATIONS: usize = 20_000;
/// The agent and model of what is beyond.
const OVERFLOW: &str = "overflow";
/// No sum passes this, so that no addition does.
pub(super) const MOST: i64 = (1 << 62) - 1;

/// Over how long a sum goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// From a full minute to the next.
    Minute,
    /// A day of UTC.
    Day,
}

impl Span {
    /// In seconds; the `span` column.
    pub(super) const fn seconds(self) -> i64 {
        match self {
            Self::Minute => 60,
            Self::Day => 86_400,
        }
    }

    pub(super) const fn of(seconds: i64) -> Option<Self> {
        match seconds {
            60 => Some(Self::Minute),
            86_400 => Some(Self::Day),
            _ => None,
        }
    }

    fn start_of(self, time: Wall) -> i64 {
        let length = self.seconds() * 1000;
        time.unix_millis().div_euclid(length).saturating_mul(length)
    }
}

/// What one agent used of one model at one upstream in one minute or day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumRow {
    /// Over how long.
    pub span: Span,
    /// From when.
    pub start: Wall,
    /// Whose.
    pub agent: String,
    /// The model that served, else the one asked for; empty when neither is known.
    pub model: String,
    /// Where.
    pub upstream: String,
    /// Exchanges.
    pub requests: u64,
    /// Of these, errors of the upstream or of the way to it.
    pub errors: u64,
    /// Input tokens, cached ones included.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Input tokens read from a cache.
    pub cached_tokens: u64,
    /// Billionths of a dollar.
    pub cost_nanos: u64,
    /// Microseconds of all exchanges together.
    pub duration_us: u64,
}

/// The sums of one batch, and the combinations of the day.
#[derive(Debug, Default)]
pub(super) struct Sums {
    minutes: HashMap<Place, [i64; 7]>,
    day: i64,
    known: HashSet<(AgentId, ModelName, UpstreamName)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Place {
    start: i64,
    agent: AgentId,
    model: ModelName,
    upstream: UpstreamName,
}

impl Sums {
    pub(super) fn add(&mut self, observation: &Observation) {
        let served = observation.model_served.as_ref();
        let model = served.or(observation.model_requested.as_ref());
        let place = self.place(observation, model);
        let sum = self.minutes.entry(place).or_default();
        let most = |n: u64| i64::try_from(n).unwrap_or(i64::MAX).min(MOST >> 8);
        let values = [
            1,
            i64::from(observation.is_error()),
            most(observation.normalised.input_total.unwrap_or(0)),
            most(observation.normalised.output_total.unwrap_or(0)),
            most(observation.usage.cached_input_tokens.unwrap_or(0)),
            most(observation.cost_usd.map_or(0, |c| c.nanos())),
            most(u64::try_from(observation.duration().as_micros()).unwrap_or(u64::MAX)),
        ];
        for (sum, value) in sum.iter_mut().zip(values) {
            *sum = sum.saturating_add(value).min(MOST);
        }
    }

    fn place(&mut self, observation: &Observation, model: Option<&ModelName>) -> Place {
        let day = Span::Day.start_of(observation.time);
        if day != self.day {
            self.day = day;
            self.known.clear();
        }
        let model = model.cloned().unwrap_or_else(|| ModelName::from(""));
        let start = Span::Minute.start_of(observation.time);
        let key = (observation.agent.clone(), model, observation.upstream.clone());
        if self.known.contains(&key) || (self.known.len() < COMBINATIONS && self.known.insert(key.clone())) {
            let (agent, model, upstream) = key;
            return Place {
                start,
                agent,
                model,
                upstream,
            };
        }
        Place {
            start,
            agent: OVERFLOW.into(),
            model: OVERFLOW.into(),
            upstream: key.2,
        }
    }

    /// Adds what was collected to the tables, inside the transaction of the batch.
    pub(super) fn write(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let mut days: HashMap<Place, [i64; 7]> = HashMap::new();
        for (place, sum) in &self.minutes {
            add(connection, Span::Minute, place, sum)?;
            let start = Span::Day.start_of(Wall::from_unix_millis(place.start));
            let day = days
                .entry(Place {
                    start,
                    ..place.clone()
                })
                .or_default();
            for (day, minute) in day.iter_mut().zip(sum) {
                *day = day.saturating_add(*minute).min(MOST);
            }
        }
        for (place, sum) in &days {
            add(connection, Span::Day, place, sum)?;
        }
        Ok(())
    }

    /// Forgets what was collected: it was written, or will be collected again.
    pub(super) fn clear(&mut self) {
        self.minutes.clear();
    }
}

/// `agg` is how an old and a new value become one.
pub(super) fn upsert_sql(agg: impl Fn(&str) -> String) -> String {
    let set: Vec<String> = VALUES.iter().map(|v| format!("{v} = {}", agg(v))).collect();
    format!(
        "INSERT INTO sums (span, start, agent, model, upstream, {}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (span, start, agent, model, upstream) DO UPDATE SET {}",
        VALUES.join(", "),
        set.join(", ")
    )
}

pub(super) const VALUES: [&str; 7] = [
    "requests",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_nanos",
    "duration_us",
];

fn add(connection: &Connection, span: Span, place: &Place, sum: &[i64; 7]) -> rusqlite::Result<()> {
    // Two of at most 2^62 fit.
    let sql = upsert_sql(|v| format!("min({MOST}, {v} + excluded.{v})"));
    let [requests, errors, input, output, cached, cost, duration] = sum;
    connection.prepare_cached(&sql)?.execute(params![
        span.seconds(),
        place.start,
        place.agent.as_str(),
        place.model.as_str(),
        place.upstream.as_str(),
        requests,
        errors,
        input,
        output,
        cached,
        cost,
        duration,
    ])?;
    Ok(())
}
