//! `fusebox contain`: the kill switch.

use http::Method;
use serde_json::{Map, Value, json};

use super::operate::{Asking, put, text};

/// Arguments of `fusebox contain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The agent.
    #[arg(required_unless_present = "fleet", conflicts_with = "fleet")]
    agent: Option<String>,
    /// Only this execution of it.
    #[arg(long, conflicts_with_all = ["version", "fleet"])]
    execution: Option<String>,
    /// Only this version of it.
    #[arg(long, conflicts_with = "fleet")]
    version: Option<String>,
    /// Every agent.
    #[arg(long)]
    fleet: bool,
    /// Why, for the record and for those who are told.
    #[arg(long, value_name = "TEXT")]
    reason: String,
    /// How long at most, as 2h; a day where it is left out.
    #[arg(long, value_name = "TIME")]
    lease: Option<String>,
    /// Who orders it, for the record.
    #[arg(long, value_name = "NAME", env = "USER")]
    by: Option<String>,
    #[command(flatten)]
    asking: Asking,
}

pub(super) fn run(args: Args) -> u8 {
    let mut body = Map::new();
    put(&mut body, "agent", args.agent);
    put(&mut body, "execution", args.execution);
    put(&mut body, "version", args.version);
    put(&mut body, "lease", args.lease);
    put(&mut body, "by", args.by);
    put(&mut body, "reason", Some(args.reason));
    body.insert("fleet".to_owned(), json!(args.fleet));
    args.asking.ask(Method::POST, "/contain", Some(body), |answer| {
        let mut out = format!(
            "{} is contained ({})\n",
            text(answer, "/subject"),
            text(answer, "/incident")
        );
        for lease in answer
            .get("leases")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let (id, until) = (text(lease, "/lease"), text(lease, "/expires"));
            out.push_str(&format!("  until {until}; `fusebox leases lift {id}` ends it\n"));
        }
        out
    })
}
