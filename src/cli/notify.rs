//! `fusebox notify test`: sends a trial notice to an alert target of a configuration file.

use std::path::PathBuf;

use super::{FAILED, OK, UNUSABLE, say};
use crate::alert::{Target, send_once};
use crate::clock::Clock;
use crate::config::{self, Overrides};
use crate::types::notice::{Fact, Notice, NoticeEvent, Severity};
use crate::types::time::Wall;

/// Arguments of `fusebox notify`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Send a trial notice to an alert target, from this process, and say what came of it.
    Test(TestArgs),
}

#[derive(Debug, clap::Args)]
struct TestArgs {
    /// Name of the target in the configuration; all of them when left out.
    target: Option<String>,
    /// The configuration file.
    #[arg(long, short, env = "FUSEBOX_CONFIG")]
    config: PathBuf,
}

pub(super) fn run(args: &Args) -> u8 {
    let Command::Test(args) = &args.command;
    let compiled = match config::load(Some(&args.config), &Overrides::default()) {
        Ok(compiled) => compiled,
        Err(problems) => {
            say(&problems.to_string());
            return UNUSABLE;
        }
    };
    let named = |t: &&Target| args.target.as_ref().is_none_or(|name| *name == t.name);
    let chosen: Vec<&Target> = compiled.targets.iter().filter(named).collect();
    if chosen.is_empty() {
        let known: Vec<&str> = compiled.targets.iter().map(|t| t.name.as_str()).collect();
        let known = if known.is_empty() {
            "the file has none: define one under `alerts`".to_owned()
        } else {
            format!("the file has {}", known.join(", "))
        };
        let wanted = args.target.as_deref().unwrap_or("any name");
        say(&format!("error: there is no alert target `{wanted}`; {known}"));
        return UNUSABLE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            say(&format!("error: cannot start: {e}"));
            return FAILED;
        }
    };
    let clock = Clock::system();
    let mut code = OK;
    for target in chosen {
        match runtime.block_on(try_out(target, &clock)) {
            Ok(()) => say(&format!("{} ({}): delivered", target.name, target.kind.name())),
            Err(why) => {
                say(&format!("error: {} ({}): {why}", target.name, target.kind.name()));
                code = FAILED;
            }
        }
    }
    code
}

/// Sends the trial, and its end where the receiver would otherwise keep it open.
async fn try_out(target: &Target, clock: &Clock) -> Result<(), String> {
    let begun = clock.wall();
    send_once(target, &trial(NoticeEvent::Test, begun, begun), begun).await?;
    if target.kind.keeps_state() {
        let now = clock.wall();
        send_once(target, &trial(NoticeEvent::Resolved, begun, now), now).await?;
    }
    Ok(())
}

fn trial(event: NoticeEvent, begun: Wall, now: Wall) -> Notice {
    let id = format!("test-{}", begun.unix_millis());
    Notice {
        id: format!("{id}-{}", event.wire_name()),
        event,
        incident: id.into(),
        rule: "fusebox_test".into(),
        severity: Severity::Info,
        subject: "fusebox".to_owned(),
        title: "This is a test: alerts of fusebox arrive here".to_owned(),
        facts: vec![Fact {
            name: "Sent by".to_owned(),
            value: "fusebox notify test".to_owned(),
        }],
        at: now,
        targets: Vec::new(),
        agents: Vec::new(),
        link: None,
        approval: None,
        remediation: None,
        level: 0,
        acknowledged_by: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(text: &str, target: Option<&str>) -> u8 {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f.yaml");
        std::fs::write(&file, text).unwrap();
        run(&Args {
            command: Command::Test(TestArgs {
                target: target.map(str::to_owned),
                config: file,
            }),
        })
    }

    #[test]
    fn says_what_cannot_be_tried() {
        assert_eq!(test("", None), UNUSABLE);
        assert_eq!(test("workers: x", None), UNUSABLE);
        let one = "alerts: [{name: a, url: 'http://127.0.0.1:1/x'}]";
        assert_eq!(test(one, Some("b")), UNUSABLE);
        assert_eq!(test(one, Some("a")), FAILED);
    }
}
