//! `fusebox leases`: what is in force.

use http::Method;
use serde_json::Map;

use super::operate::{Asking, part, put, table, text};

/// Arguments of `fusebox leases`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List what is in force.
    List,
    /// Lift one before its time.
    Lift {
        /// Its id.
        id: String,
        /// Who lifts it, for the record.
        #[arg(long, value_name = "NAME", env = "USER")]
        by: Option<String>,
    },
}

const COLUMNS: &[(&str, &str)] = &[
    ("lease", "/lease"),
    ("order", "/order/kind"),
    ("subject", "/subject"),
    ("incident", "/incident"),
    ("since", "/since"),
    ("expires", "/expires"),
    ("renewed", "/renewed"),
];

pub(super) fn run(args: Args) -> u8 {
    let Args { command, asking } = args;
    match command {
        Command::List => asking.ask(Method::GET, "/leases", None, |all| {
            table(all, COLUMNS, "nothing is in force")
        }),
        Command::Lift { id, by } => {
            let mut body = Map::new();
            put(&mut body, "by", by);
            let path = format!("/leases/{}", part(&id));
            asking.ask(Method::DELETE, &path, Some(body), |l| {
                format!("{} ({}) is lifted", text(l, "/lease"), text(l, "/order/kind"))
            })
        }
    }
}
