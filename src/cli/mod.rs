//! The command line: one file for each subcommand, all of them thin.

mod admin_client;
mod approvals;
mod backtest;
mod brake;
mod check;
mod contain;
pub mod demo;
mod drill;
mod events;
mod incidents;
mod leases;
mod ledger;
mod notify;
mod operate;
mod reload;
mod respond;
mod run;
mod schema;
mod silences;
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
    /// Look at incidents and decide about them.
    Incidents(incidents::Args),
    /// Look at questions to humans and answer them.
    Approvals(approvals::Args),
    /// Keep notices back, or open nothing, for a while.
    Silences(silences::Args),
    /// Look at what is in force, and lift it.
    Leases(leases::Args),
    /// Stop automation, or let it go on.
    Brake(brake::Args),
    /// Stop an agent, an execution, a version or the fleet at once.
    Contain(contain::Args),
    /// Follow what happens.
    Events(events::Args),
    /// Respond to an incident: send a file as POST /agents/incident-response.
    Respond(respond::Args),
    /// Look into a ledger, or move its content to and from JSON lines.
    Ledger(ledger::Args),
    /// Prove that a failover list or a reroute action can trigger, on doubles of its upstreams.
    Drill(drill::Args),
    /// Replay recorded exchanges through a rules file: what would have fired, been refused and been saved.
    Backtest(backtest::Args),
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
        Command::Incidents(args) => incidents::run(args),
        Command::Approvals(args) => approvals::run(args),
        Command::Silences(args) => silences::run(args),
        Command::Leases(args) => leases::run(args),
        Command::Brake(args) => brake::run(args),
        Command::Contain(args) => contain::run(args),
        Command::Events(args) => events::run(&args),
        Command::Respond(args) => respond::run(&args),
        Command::Ledger(args) => ledger::run(&args),
        Command::Drill(args) => drill::run(&args),
        Command::Backtest(args) => backtest::run(&args),
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
