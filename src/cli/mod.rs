//! The command line: one file for each subcommand, all of them thin.

mod admin_client;
mod check;
pub mod demo;
mod ledger;
mod notify;
mod reload;
mod run;
mod schema;
mod status;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A command did what it was asked for.
const OK: u8 = 0;
/// A command failed.
const FAILED: u8 = 1;
/// The configuration or the arguments cannot be used.
const UNUSABLE: u8 = 2;

/// Incident response on LLM traffic: a sidecar reverse proxy between AI agents and LLM APIs.
#[derive(Debug, Parser)]
#[command(name = "fusebox", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: forward, meter, detect and act.
    Run(run::Args),
    /// Check a configuration file without starting anything; every problem is told.
    Check(check::Args),
    /// Print the JSON Schema of the configuration, of an observation line, or of the alert body.
    Schema(schema::Args),
    /// Ask a running fusebox to read its configuration again, and say what came of it.
    Reload(reload::Args),
    /// Show what a running fusebox is doing.
    Status(status::Args),
    /// Look into a ledger, or move its content to and from JSON lines.
    Ledger(ledger::Args),
    /// Try out an alert target.
    Notify(notify::Args),
    /// Watch an incident happen and end, on a simulated provider inside this process.
    Demo(demo::Args),
    /// Print a completion script for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let code = match Cli::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(&args),
        Command::Schema(args) => schema::run(&args),
        Command::Reload(args) => reload::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Ledger(args) => ledger::run(&args),
        Command::Notify(args) => notify::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "fusebox", &mut script);
            print_bytes(&script)
        }
    };
    ExitCode::from(code)
}

/// Writes data to stdout. A reader that left (`fusebox schema | head`) is no failure.
fn print_bytes(data: &[u8]) -> u8 {
    let mut out = std::io::stdout().lock();
    match out.write_all(data).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => FAILED,
        _ => OK,
    }
}

/// Writes a line for people to stderr; when that is closed there is nobody to tell.
fn say(line: &str) {
    writeln!(std::io::stderr().lock(), "{line}").ok();
}
