//! `fusebox silences`: what is kept quiet.

use http::Method;
use serde_json::{Map, Value, json};

use super::operate::{Asking, part, put, table, text};

/// Arguments of `fusebox silences`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List silences that are not over.
    List,
    /// Make one: a silence keeps notices back, a maintenance window opens nothing.
    Add {
        /// How long it lasts, as 2h.
        length: String,
        /// Only these rules (`*` and `?` match); may be given several times.
        #[arg(long = "rule", value_name = "NAME")]
        rules: Vec<String>,
        /// Only these agents or other subjects (`*` and `?` match); may be given several times.
        #[arg(long = "agent", value_name = "NAME")]
        agents: Vec<String>,
        /// Only what is not worse than this.
        #[arg(long, value_parser = ["info", "warning", "error", "critical"])]
        max_severity: Option<String>,
        /// Open nothing for what it covers.
        #[arg(long)]
        maintenance: bool,
        /// When it begins, as 2026-11-25T22:00:00Z; now where it is left out.
        #[arg(long, value_name = "TIME")]
        starts: Option<String>,
        /// Who makes it, for the record.
        #[arg(long, value_name = "NAME", env = "USER")]
        by: Option<String>,
        /// Why.
        #[arg(long, value_name = "TEXT")]
        comment: Option<String>,
    },
    /// End one before its time.
    End {
        /// Its id.
        id: String,
        /// Who ends it, for the record.
        #[arg(long, value_name = "NAME", env = "USER")]
        by: Option<String>,
    },
}

const COLUMNS: &[(&str, &str)] = &[
    ("id", "/id"),
    ("rules", "/matcher/rules"),
    ("agents", "/matcher/agents"),
    ("maintenance", "/maintenance"),
    ("starts", "/starts"),
    ("ends", "/ends"),
    ("by", "/by"),
    ("comment", "/comment"),
];

pub(super) fn run(args: Args) -> u8 {
    let Args { command, asking } = args;
    let until = |s: &Value| {
        format!(
            "{} from {} to {}",
            text(s, "/id"),
            text(s, "/starts"),
            text(s, "/ends")
        )
    };
    match command {
        Command::List => asking.ask(Method::GET, "/silences", None, |all| {
            table(all, COLUMNS, "no silences")
        }),
        Command::Add {
            length,
            rules,
            agents,
            max_severity,
            maintenance,
            starts,
            by,
            comment,
        } => {
            let mut matcher = Map::new();
            matcher.insert("rules".to_owned(), json!(rules));
            matcher.insert("agents".to_owned(), json!(agents));
            put(&mut matcher, "max_severity", max_severity);
            let mut body = Map::new();
            body.insert("matcher".to_owned(), Value::Object(matcher));
            body.insert("length".to_owned(), json!(length));
            body.insert("maintenance".to_owned(), json!(maintenance));
            put(&mut body, "starts", starts);
            put(&mut body, "by", by);
            put(&mut body, "comment", comment);
            asking.ask(Method::POST, "/silences", Some(body), until)
        }
        Command::End { id, by } => {
            let mut body = Map::new();
            put(&mut body, "by", by);
            asking.ask(
                Method::DELETE,
                &format!("/silences/{}", part(&id)),
                Some(body),
                until,
            )
        }
    }
}
