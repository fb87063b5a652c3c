//! `fusebox approvals`: questions to humans, and their answers.

use http::Method;
use serde_json::Value;

use super::operate::{Asking, Who, fields, part, table, text};

/// Arguments of `fusebox approvals`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List questions, open ones first.
    List {
        /// Only in this state.
        #[arg(long, value_parser = ["needed", "given", "denied", "expired", "superseded"])]
        state: Option<String>,
    },
    /// Show one question.
    Show {
        /// Its id.
        id: String,
    },
    /// Have the step taken that is asked about.
    Approve {
        /// Its id.
        id: String,
        #[command(flatten)]
        who: Who,
    },
    /// Have the step left that is asked about.
    Deny {
        /// Its id.
        id: String,
        #[command(flatten)]
        who: Who,
    },
}

const COLUMNS: &[(&str, &str)] = &[
    ("id", "/id"),
    ("state", "/state"),
    ("subject", "/subject"),
    ("what", "/what"),
    ("expires", "/expires"),
    ("by", "/by"),
];

pub(super) fn run(args: Args) -> u8 {
    let Args { command, asking } = args;
    let decide = |id: &str, verb: &str, who: &Who| {
        let path = format!("/approvals/{}/{verb}", part(id));
        asking.ask(Method::POST, &path, Some(who.body(true)), |a| {
            format!(
                "{} is {} ({})",
                text(a, "/id"),
                text(a, "/state"),
                text(a, "/what")
            )
        })
    };
    match command {
        Command::List { state } => {
            let path = state.map_or_else(|| "/approvals".to_owned(), |s| format!("/approvals?state={s}"));
            asking.ask(Method::GET, &path, None, |all| {
                table(all, COLUMNS, "no questions")
            })
        }
        Command::Show { id } => asking.ask(Method::GET, &format!("/approvals/{}", part(&id)), None, shown),
        Command::Approve { id, who } => decide(&id, "approve", &who),
        Command::Deny { id, who } => decide(&id, "deny", &who),
    }
}

fn shown(approval: &Value) -> String {
    fields(
        approval,
        &[
            ("question", "/id"),
            ("state", "/state"),
            ("what", "/what"),
            ("subject", "/subject"),
            ("why", "/why"),
            ("incident", "/incident"),
            ("rule", "/rule"),
            ("requested", "/requested"),
            ("expires", "/expires"),
            ("on timeout", "/on_timeout"),
            ("decided", "/decided"),
            ("by", "/by"),
            ("via", "/via"),
            ("reason", "/reason"),
            ("link", "/link"),
        ],
    )
}
