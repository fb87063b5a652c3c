//! The file → compiled types of the parts. Each section is taken apart completely, so that a new key breaks the build here.

mod access;
mod actions;
mod alerts;
mod conduct;
mod failover;
mod identity;
mod ledger;
mod net;
mod rules;
mod steps;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::at::{At, Opt};
use super::check::Check;
use super::de;
use super::file::{
    AutomationFile, EngineFile, File, LimitsFile, LogFile, LogFormatWord, ModelsFile, ObservationsFile,
    PriceFile,
};
use super::problem::{Place, Problem, Problems};
use super::tree::{self, Node, Value};
use super::{Compiled, ObservationSink, Overrides, Wiring, defaults, env};
use crate::dialect::models::ModelTable;
use crate::dialect::price::{Price, PriceTable};
use crate::enforce::policy::{Limits, Policy};
use crate::incident::engine::Bounds;
use crate::incident::rule::Rulebook;
use crate::telemetry::logs::LogFormat;
use crate::types::ids::Generation;

/// Longest duration that any key takes.
const LONGEST: Duration = Duration::from_secs(7 * 86_400);

/// Compiles `source`; see [`super::compile`].
pub(super) fn compile(
    name: &str,
    source: &str,
    overrides: &Overrides,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<Compiled, Problems> {
    let mut root = tree::parse(source).map_err(|p| Problems::new(name, source, vec![p], &[]))?;
    let mut problems = Vec::new();
    let mut secrets = secret_ranges(&root);
    empty_rules(&root, &mut problems);
    let unset = env::expand(&mut root, lookup, &mut problems);
    let file: File = de::read(&root, unset, &mut problems, &mut secrets);
    let mut check = Check::new(name, source, lookup, problems);
    let compiled = whole(file, overrides, &mut check);
    match check.into_problems() {
        none if none.is_empty() => Ok(compiled),
        problems => Err(Problems::new(name, source, problems, &secrets)),
    }
}

fn whole(file: File, overrides: &Overrides, check: &mut Check<'_>) -> Compiled {
    let File {
        listeners,
        admin,
        external_url,
        upstreams,
        retries,
        streams,
        agent,
        agent_version,
        identity,
        limits,
        metering,
        prices,
        models,
        alerts,
        notification_webhooks,
        observations,
        ledger,
        log,
        drain_deadline,
        workers,
        watch,
        agent_incident_rules,
        actions,
        incidents,
        automation,
        engine,
    } = file;
    let max_label_sets = check.length(
        "max_label_sets",
        admin.max_label_sets,
        defaults::MAX_LABEL_SETS,
        10..=1_000_000,
    );
    let listeners = net::listeners(listeners, overrides, check);
    let mut admin = net::admin(admin, overrides, &listeners, check);
    admin.external_url = access::external_url(external_url, check);
    let upstreams = net::upstreams(upstreams, overrides, check);
    let targets = alerts::targets(alerts, check);
    let destinations = alerts::destinations(notification_webhooks, check);
    let actions = actions::actions(actions, &targets, &upstreams.names, check);
    let rules = rules::rules(agent_incident_rules, &actions, &upstreams.names, check);
    let (log_format, log_filter) = logs(log, overrides, check);
    let (bounds, observation_queue) = bounds(engine, check);
    let max_agents = check.length(
        "max_agents",
        limits.max_agents,
        defaults::MAX_AGENTS,
        1..=1_000_000,
    );
    let max_connections = check.length(
        "max_connections",
        limits.max_connections,
        defaults::MAX_CONNECTIONS,
        1..=10_000_000,
    );
    let AutomationFile {
        max_actions_per_hour,
        brake,
    } = automation;
    let per_hour = defaults::MAX_ACTIONS_PER_HOUR;
    let (max_actions_per_hour, brake) = conduct::automation(max_actions_per_hour, brake, per_hour, check);
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Compiled {
        wiring: Wiring {
            listeners,
            admin,
            workers: match check.length("workers", workers, 0, 0..=1024) {
                0 => cores(),
                n => n,
            },
            observations: sink(observations, overrides, check),
            ledger: ledger::ledger(ledger, overrides, check),
            log_format,
            log_filter,
            drain_deadline: check.duration(
                "drain_deadline",
                drain_deadline,
                defaults::DRAIN_DEADLINE,
                Duration::ZERO..=LONGEST,
            ),
            watch: value_or(watch, false),
            observation_queue,
            bounds,
            max_agents,
            max_connections,
            max_label_sets,
        },
        policy: Policy {
            generation: Generation::default(),
            identity: identity::identity(identity, agent, agent_version, check),
            upstreams: upstreams.compiled,
            limits: limits_of(limits, check),
            prices: price_table(prices, check),
            models: model_table(models, check),
            metering: value_or(metering, true),
            retries: failover::retries(retries, check),
            streams: failover::streams(streams, check),
        },
        rulebook: Arc::new(Rulebook {
            generation: Generation::default(),
            rules: rules.into_iter().map(Arc::new).collect(),
            actions,
            max_actions_per_hour,
            brake,
            conduct: conduct::conduct(incidents, check),
        }),
        targets,
        destinations,
    }
}

/// The value, or `default`.
fn value_or<T>(given: Opt<T>, default: T) -> T {
    given.map_or(default, |at| at.value)
}

/// A value that the command line gives.
fn by_flag<T>(flag: &'static str, value: T) -> At<T> {
    At {
        value,
        place: Place::Flag(flag),
    }
}

fn limits_of(file: LimitsFile, check: &mut Check<'_>) -> Limits {
    let LimitsFile {
        max_request_bytes,
        max_header_bytes,
        max_inspect_bytes,
        max_agents: _,
        max_connections: _,
        header_timeout,
        body_idle_timeout,
        keep_alive_timeout,
        max_admission_wait,
        max_waiting,
    } = file;
    let d = defaults::LIMITS;
    let (instant, hour) = (Duration::from_millis(10), Duration::from_secs(3_600));
    let second = Duration::from_secs(1);
    let length = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    Limits {
        max_request_bytes: check.size(
            "max_request_bytes",
            max_request_bytes,
            d.max_request_bytes,
            1..=4 << 30,
        ),
        max_header_bytes: length(check.size(
            "max_header_bytes",
            max_header_bytes,
            d.max_header_bytes as u64,
            8 << 10..=1 << 20,
        )),
        max_inspect_bytes: length(check.size(
            "max_inspect_bytes",
            max_inspect_bytes,
            d.max_inspect_bytes as u64,
            64 << 10..=1 << 30,
        )),
        header_timeout: check.duration("header_timeout", header_timeout, d.header_timeout, instant..=hour),
        body_idle_timeout: check.duration(
            "body_idle_timeout",
            body_idle_timeout,
            d.body_idle_timeout,
            instant..=hour,
        ),
        keep_alive_timeout: check.duration(
            "keep_alive_timeout",
            keep_alive_timeout,
            d.keep_alive_timeout,
            instant..=24 * hour,
        ),
        max_admission_wait: check.duration(
            "max_admission_wait",
            max_admission_wait,
            d.max_admission_wait,
            Duration::ZERO..=60 * second,
        ),
        max_waiting: check.length("max_waiting", max_waiting, d.max_waiting, 0..=1_000_000),
    }
}

fn bounds(file: EngineFile, check: &mut Check<'_>) -> (Bounds, usize) {
    let EngineFile {
        observation_queue,
        max_subjects,
        max_executions,
        execution_idle,
        max_closed_incidents,
    } = file;
    let d = defaults::BOUNDS;
    let idle = Duration::from_secs(d.execution_idle_seconds);
    let bounds = Bounds {
        max_subjects: check.length("max_subjects", max_subjects, d.max_subjects, 1..=10_000_000),
        max_executions: check.length("max_executions", max_executions, d.max_executions, 1..=10_000_000),
        execution_idle_seconds: check
            .duration(
                "execution_idle",
                execution_idle,
                idle,
                Duration::from_secs(1)..=LONGEST,
            )
            .as_secs(),
        max_closed_incidents: check.length(
            "max_closed_incidents",
            max_closed_incidents,
            d.max_closed_incidents,
            0..=1_000_000,
        ),
    };
    let queue = check.length(
        "observation_queue",
        observation_queue,
        defaults::OBSERVATION_QUEUE,
        1..=10_000_000,
    );
    (bounds, queue)
}

fn logs(file: LogFile, overrides: &Overrides, check: &mut Check<'_>) -> (LogFormat, String) {
    let LogFile { format, level } = file;
    let format = match value_or(format, LogFormatWord::Auto) {
        LogFormatWord::Auto => LogFormat::Auto,
        LogFormatWord::Text => LogFormat::Text,
        LogFormatWord::Json => LogFormat::Json,
    };
    let level = overrides
        .log_level
        .clone()
        .map(|l| by_flag("--log-level", l))
        .or(level);
    let Some(At { value, place }) = level else {
        return (format, defaults::LOG_LEVEL.to_owned());
    };
    // A single word that is no level would be taken for the name of a part, and silence everything else.
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let word = value.trim().to_ascii_lowercase();
    let sound = if word.contains(['=', ',', '[']) {
        tracing_subscriber::EnvFilter::builder()
            .parse(value.trim())
            .is_ok()
    } else {
        LEVELS.contains(&word.as_str())
    };
    if !sound {
        let quoted = check.quote(place, &value);
        let hint = super::suggest::nearest(&word, LEVELS).map_or_else(
            || "one of error, warn, info, debug, trace; or as info,fusebox::proxy=debug".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        check.problem(place, format!("`{quoted}` is not a log level"), hint);
    }
    (format, value.trim().to_owned())
}

fn sink(file: ObservationsFile, overrides: &Overrides, check: &mut Check<'_>) -> Option<ObservationSink> {
    let ObservationsFile { file } = file;
    let At { value, place } = overrides
        .observations
        .clone()
        .map(|o| by_flag("--observations", o))
        .or(file)?;
    match value.trim() {
        "" => {
            check.problem(
                place,
                "the path for observations is empty",
                "write a path, or - for standard output",
            );
            None
        }
        "-" => Some(ObservationSink::Stdout),
        path => Some(ObservationSink::File(PathBuf::from(path))),
    }
}

fn price_table(
    file: std::collections::BTreeMap<At<String>, At<PriceFile>>,
    check: &mut Check<'_>,
) -> PriceTable {
    let mut table = PriceTable::builtin();
    for (model, At { value, place }) in file {
        let PriceFile {
            input,
            output,
            cached_input,
            cache_write,
        } = value;
        let sound = model_pattern(&model, check);
        for (key, given) in [("input", &input), ("output", &output)] {
            if given.is_none() {
                check.missing(
                    place,
                    key,
                    "in US dollars per million tokens; 0 for a model that costs nothing",
                );
            }
        }
        let mut dollars =
            |key: &str, given: Opt<f64>| given.map(|g| check.number(key, Some(g), 0.0, 0.0..=1e6));
        let (input, output) = (dollars("input", input), dollars("output", output));
        let (cached_input, cache_write) = (
            dollars("cached_input", cached_input),
            dollars("cache_write", cache_write),
        );
        if let (Some(input), Some(output), true) = (input, output, sound) {
            table = table.with(
                model.value.trim(),
                Price {
                    input,
                    output,
                    cached_input,
                    cache_write,
                },
            );
        }
    }
    table
}

fn model_table(file: ModelsFile, check: &mut Check<'_>) -> ModelTable {
    let ModelsFile { downgrade } = file;
    let mut table = ModelTable::builtin();
    for (from, to) in downgrade {
        let sound = model_pattern(&from, check) && check.name("model", &to);
        if to.value.contains('*') {
            check.problem(
                to.place,
                "a stand-in is one model, not a pattern",
                "write the name of a model",
            );
        } else if from.value == to.value {
            check.problem(
                to.place,
                "a model cannot stand in for itself",
                "name a cheaper model",
            );
        } else if sound {
            table = table.with_downgrade(from.value.trim(), to.value.trim());
        }
    }
    table
}

/// Whether it is a model's name, or the beginning of one with a `*`.
fn model_pattern(model: &At<String>, check: &mut Check<'_>) -> bool {
    if !check.name("model", model) {
        return false;
    }
    let inner = model.value.strip_suffix('*').unwrap_or(&model.value);
    if inner.contains('*') {
        check.problem(
            model.place,
            "`*` can only stand at the end of a model's name",
            "write gpt-5* for all that begin with gpt-5",
        );
        return false;
    }
    true
}

/// `agent_incident_rules:` with nothing behind it could mean either; it has to be said.
fn empty_rules(root: &Node, problems: &mut Vec<Problem>) {
    let Value::Map(entries) = &root.value else { return };
    for (key, value) in entries {
        if key.text() == Some("agent_incident_rules") && matches!(value.value, Value::Null) {
            problems.push(Problem {
                place: key.place,
                text: "`agent_incident_rules` is empty".to_owned(),
                hint: Some("write [] for no rules, or remove the key for the three built-in ones".to_owned()),
                key: None,
            });
        }
    }
}

/// The bytes of every value that is a secret by its key.
fn secret_ranges(root: &Node) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    root.each_map(&mut Vec::new(), &mut |above, entries| {
        let alerts = above.first() == Some(&"alerts");
        for (key, value) in entries {
            let secret = match key.text().unwrap_or_default() {
                "token" | "token_sha256" | "secret" | "api_key" | "api_key_salt" | "routing_key" => true,
                "tokens" | "credentials" => value.text().is_some(),
                "url" | "urls" => alerts,
                "proxy" => value.text().is_some_and(|t| t.contains('@')),
                _ => alerts && above.last() == Some(&"headers"),
            };
            if let (true, Place::File { start, end, .. }) = (secret, value.place) {
                ranges.push(start..end);
            }
        }
    });
    ranges
}

/// Compiles a built-in text, which has no problems.
fn builtin(source: &'static str) -> File {
    let mut problems = Vec::new();
    match tree::parse(source) {
        Ok(root) => de::read(&root, Vec::new(), &mut problems, &mut Vec::new()),
        Err(_) => File::default(),
    }
}
