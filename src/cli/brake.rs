//! `fusebox brake`: while it is on, every step waits for a human.

use http::Method;
use serde_json::{Value, json};

use super::operate::{Asking, Who, text};

/// Arguments of `fusebox brake`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Stop automation: every step waits for a human.
    On {
        #[command(flatten)]
        who: Who,
    },
    /// Let automation go on.
    Off {
        #[command(flatten)]
        who: Who,
    },
    /// Say whether it is on.
    Status,
}

pub(super) fn run(args: Args) -> u8 {
    let Args { command, asking } = args;
    let (on, who) = match command {
        Command::On { who } => (true, who),
        Command::Off { who } => (false, who),
        Command::Status => return asking.ask(Method::GET, "/brake", None, shown),
    };
    let mut body = who.body(true);
    body.insert("on".to_owned(), json!(on));
    asking.ask(Method::POST, "/brake", Some(body), shown)
}

fn shown(brake: &Value) -> String {
    let is = |name: &str| brake.get(name) == Some(&Value::Bool(true));
    let mut out = match (is("on"), is("by_configuration")) {
        (true, _) => "the brake is on: every step waits for a human".to_owned(),
        (false, true) => "the brake is on by the configuration: every step waits for a human".to_owned(),
        (false, false) => "the brake is off".to_owned(),
    };
    if brake.get("by").is_some_and(Value::is_string) {
        out.push_str(&format!(
            " (by {} at {})",
            text(brake, "/by"),
            text(brake, "/since")
        ));
    }
    out
}
