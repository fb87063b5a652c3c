//! `fusebox run`: serve until a signal says otherwise.

use std::path::PathBuf;

use super::{FAILED, OK, UNUSABLE, say};
use crate::app::signals::{Asked, Signals};
use crate::app::{Source, start};
use crate::clock::Clock;
use crate::config::{self, Compiled, Overrides};
use crate::telemetry::logs;

/// Arguments of `fusebox run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file; without one the built-in defaults hold, with the three built-in rules on.
    #[arg(long, short, value_name = "FILE", env = "FUSEBOX_CONFIG")]
    config: Option<PathBuf>,
    /// Where agents are served: `HOST:PORT` or `unix:PATH`; may be given several times.
    #[arg(long, value_name = "ADDR", env = "FUSEBOX_LISTEN", value_delimiter = ',')]
    listen: Vec<String>,
    /// Where the admin API listens: `HOST:PORT` or `unix:PATH`.
    #[arg(long, value_name = "ADDR", env = "FUSEBOX_ADMIN_LISTEN")]
    admin_listen: Option<String>,
    /// One upstream for every dialect, in place of the file's.
    #[arg(long, value_name = "URL", env = "FUSEBOX_UPSTREAM")]
    upstream: Option<String>,
    /// Append each observation as a JSON line to this file; `-` is standard output.
    #[arg(long, value_name = "PATH|-", env = "FUSEBOX_OBSERVATIONS")]
    observations: Option<String>,
    /// Keep incidents, leases, approvals and observations in this file, over restarts; without one they end with the process.
    #[arg(long, value_name = "PATH", env = "FUSEBOX_LEDGER")]
    ledger: Option<String>,
    /// What to log: a level, or directives such as `info,fusebox::proxy=debug`.
    #[arg(long, value_name = "LEVEL", env = "FUSEBOX_LOG")]
    log_level: Option<String>,
}

pub(super) fn run(args: Args) -> u8 {
    let Args {
        config: path,
        listen,
        admin_listen,
        upstream,
        observations,
        ledger,
        log_level,
    } = args;
    let overrides = Overrides {
        listen,
        admin_listen,
        upstream,
        observations,
        ledger,
        log_level,
    };
    let compiled = match config::load(path.as_deref(), &overrides) {
        Ok(compiled) => compiled,
        Err(problems) => {
            say(&problems.to_string());
            return UNUSABLE;
        }
    };
    if let Err(e) = logs::start(compiled.wiring.log_format, &compiled.wiring.log_filter) {
        say(&format!("error: log level: {e}"));
        return UNUSABLE;
    }
    let source = match path {
        Some(path) => Source::File(path, overrides),
        None => Source::Defaults(overrides),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            say(&format!("error: cannot start: {e}"));
            return FAILED;
        }
    };
    match runtime.block_on(serve(compiled, source)) {
        Ok(()) => OK,
        Err(e) => {
            tracing::error!("{e}");
            FAILED
        }
    }
}

async fn serve(compiled: Compiled, source: Source) -> Result<(), String> {
    let mut signals = Signals::take().map_err(|e| format!("cannot take signals: {e}"))?;
    let deadline = compiled.wiring.drain_deadline;
    let mut running = start(compiled, source, Clock::system()).await?;
    tracing::info!(
        listeners = running.listeners.join(","),
        admin = running.admin,
        version = env!("CARGO_PKG_VERSION"),
        "ready"
    );
    loop {
        let asked = tokio::select! {
            asked = signals.next() => asked,
            why = running.failed() => return Err(why),
        };
        if asked == Asked::Stop {
            return running.stop(deadline, signals.stop()).await;
        }
        let handle = running.handle.clone();
        tokio::spawn(async move { handle.reload().await });
    }
}
