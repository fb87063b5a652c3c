//! `fusebox backtest`: recorded exchanges through the engine of production, by the rules of one file or of two.

mod line;
mod obey;
mod replay;
mod report;
mod source;
mod text;

#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{Scope, ScopedJoinHandle};

use indicatif::{ProgressBar, ProgressStyle};

use self::replay::Replay;
use self::report::{Comparison, Record, Report, Run};
use self::source::{Batch, Source, Wanted};
use super::{FAILED, OK, UNUSABLE, print_bytes, say};
use crate::config::{self, Compiled, Overrides};
use crate::types::time::Wall;

/// Batches that wait for a replay.
const WAITING: usize = 4;

/// Arguments of `fusebox backtest`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A ledger, an observations file, or an export of a ledger; `-` is standard input.
    #[arg(value_name = "LEDGER|NDJSON")]
    record: PathBuf,
    /// The configuration whose rules are tried.
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    /// Another configuration to compare with.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Only exchanges that ended then or later, as 2026-11-25 or 2026-11-25T10:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    from: Option<Wall>,
    /// Only exchanges that ended before.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Wall>,
    /// Only exchanges of this agent.
    #[arg(long)]
    agent: Option<String>,
    /// Answer every question with yes, at once; without it nobody answers.
    #[arg(long)]
    approve: bool,
    /// When to end with exit code 1.
    #[arg(long, value_enum, value_name = "WHEN")]
    fail_on: Option<FailOn>,
    /// How the outcome is told.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FailOn {
    /// There is any incident with --rules.
    Incidents,
    /// There are more incidents with --rules than with --against.
    MoreIncidents,
    /// There are more minutes under incident with --rules than with --against.
    MoreMinutes,
    /// More requests are refused with --rules than with --against.
    MoreRefused,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// One JSON object on stdout.
    Json,
}

pub(super) fn run(args: &Args) -> u8 {
    let report = match backtest(args) {
        Ok(report) => report,
        Err(why) => {
            say(&format!("error: {why}"));
            return UNUSABLE;
        }
    };
    let text = match args.output {
        Output::Text => text::shown(&report),
        Output::Json => match serde_json::to_string_pretty(&report) {
            Ok(json) => json + "\n",
            Err(e) => {
                say(&format!("error: the report cannot be written: {e}"));
                return FAILED;
            }
        },
    };
    let written = print_bytes(text.as_bytes());
    written.max(verdict(&report, args.fail_on))
}

fn verdict(report: &Report, fail_on: Option<FailOn>) -> u8 {
    let (rules, other) = (&report.rules.totals, report.against.as_ref().map(|a| &a.totals));
    let fails = match (fail_on, other) {
        (Some(FailOn::Incidents), _) => rules.incidents > 0,
        (Some(FailOn::MoreIncidents), Some(other)) => rules.incidents > other.incidents,
        (Some(FailOn::MoreMinutes), Some(other)) => rules.minutes > other.minutes,
        (Some(FailOn::MoreRefused), Some(other)) => rules.done.refused > other.done.refused,
        _ => false,
    };
    if fails { FAILED } else { OK }
}

fn backtest(args: &Args) -> Result<Report, String> {
    if args.against.is_none() && !matches!(args.fail_on, None | Some(FailOn::Incidents)) {
        return Err(
            "--fail-on more-… compares two rule files: give the other one with --against FILE".to_owned(),
        );
    }
    if args
        .from
        .zip(args.until)
        .is_some_and(|(from, until)| from >= until)
    {
        return Err("--from is not before --until: nothing could be replayed".to_owned());
    }
    let rules = load(&args.rules)?;
    let against = args.against.as_deref().map(load).transpose()?;
    let source = Source::of(&args.record)?;
    let bar = progress(&source);
    let wanted = Wanted {
        from: args.from,
        until: args.until,
        agent: args.agent.clone(),
    };
    let (first, second) = std::thread::scope(|scope| {
        let (to, replay) = begin(&rules, args.approve, scope);
        let other = against.as_ref().map(|c| begin(c, args.approve, scope));
        let mut outcome = Ok(());
        for batch in source.read(wanted, scope) {
            let batch = match batch {
                Ok(batch) => Arc::new(batch),
                Err(why) => {
                    outcome = Err(why);
                    break;
                }
            };
            bar.inc(batch.read);
            let all = std::iter::once(&to).chain(other.as_ref().map(|(to, _)| to));
            // A replay that has ended early is told of when it is waited for.
            all.for_each(|to| drop(to.send(Arc::clone(&batch))));
        }
        drop(to);
        let first = wait(replay);
        let second = other.map(|(to, replay)| {
            drop(to);
            wait(replay)
        });
        outcome?;
        Ok::<_, String>((first?, second.transpose()?))
    })?;
    bar.finish_and_clear();
    let Some((from, until)) = first.span() else {
        return Err(format!(
            "{}: there is no exchange to replay; look at --from, --until and --agent",
            args.record.display()
        ));
    };
    let run = Run::of(args.rules.display().to_string(), &first);
    let other = args.against.as_ref().zip(second.as_ref());
    let other = other.map(|(file, replay)| Run::of(file.display().to_string(), replay));
    let seen = &first.seen;
    Ok(Report {
        record: Record {
            path: args.record.display().to_string(),
            from: Some(from),
            until: Some(until),
            exchanges: seen.exchanges,
            agents: seen.agents.len() as u64,
            tokens: seen.tokens,
            cost_usd: seen.cost_usd,
            refused_then: seen.refused_then,
            out_of_order: seen.out_of_order,
        },
        comparison: other.as_ref().map(|other| Comparison::of(&run, other)),
        rules: run,
        against: other,
    })
}

/// A replay on a thread of its own, and the way to it.
fn begin<'scope>(
    compiled: &Compiled,
    approve: bool,
    scope: &'scope Scope<'scope, '_>,
) -> (SyncSender<Arc<Batch>>, ScopedJoinHandle<'scope, Replay>) {
    let (to, from) = sync_channel::<Arc<Batch>>(WAITING);
    let mut replay = Replay::new(compiled, approve);
    let handle = scope.spawn(move || {
        for batch in from {
            batch.observations.iter().for_each(|o| replay.take(o));
        }
        replay
    });
    (to, handle)
}

fn wait(replay: ScopedJoinHandle<'_, Replay>) -> Result<Replay, String> {
    replay
        .join()
        .map_err(|_| "the replay broke off; this is a bug of fusebox".to_owned())
}

fn load(file: &Path) -> Result<Compiled, String> {
    config::load(Some(file), &Overrides::default()).map_err(|problems| problems.to_string())
}

/// A bar on a terminal, and nothing elsewhere.
fn progress(source: &Source) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, size) = match source.size() {
        Some(size) => (ProgressBar::new(size), "{wide_bar} {percent:>3} %, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed}"),
    };
    match ProgressStyle::with_template(&format!("replay {size}")) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// A time, or the beginning of a day.
fn time(text: &str) -> Result<Wall, String> {
    let whole = || format!("{text}T00:00:00Z").parse::<jiff::Timestamp>();
    let time = text.parse::<jiff::Timestamp>().or_else(|_| whole());
    time.map(|t| Wall::from_unix_millis(t.as_millisecond()))
        .map_err(|_| "write it as 2026-11-25 or 2026-11-25T10:00:00Z".to_owned())
}
