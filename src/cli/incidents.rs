//! `fusebox incidents`: what is going on, and what people decide about it.

use http::Method;
use serde_json::Value;

use super::operate::{Asking, Output, Who, failed, fields, part, plan, print_line, table, text};

/// Arguments of `fusebox incidents`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List incidents, newest first.
    List {
        /// Only in this state.
        #[arg(long, value_parser = ["open", "recovering", "resolved"])]
        state: Option<String>,
        /// Only about this agent.
        #[arg(long)]
        agent: Option<String>,
        /// Only of this rule.
        #[arg(long)]
        rule: Option<String>,
        /// Only those opened then or later, as 2026-11-25T12:00:00Z.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show one incident with its plan and timeline.
    Show {
        /// Its id.
        id: String,
    },
    /// Take charge of an incident.
    Acknowledge {
        /// Its id.
        id: String,
        #[command(flatten)]
        who: Who,
    },
    /// Close an incident and lift what it ordered.
    Resolve {
        /// Its id.
        id: String,
        #[command(flatten)]
        who: Who,
    },
    /// Close an incident: it was none.
    FalseAlarm {
        /// Its id.
        id: String,
        #[command(flatten)]
        who: Who,
    },
    /// Tell the next level of the on-call now.
    Escalate {
        /// Its id.
        id: String,
        #[command(flatten)]
        who: Who,
    },
    /// Print what happened, for those who look back, as Markdown (or JSON with --output json).
    Postmortem {
        /// Its id.
        id: String,
    },
}

const COLUMNS: &[(&str, &str)] = &[
    ("id", "/id"),
    ("state", "/state"),
    ("severity", "/severity"),
    ("subject", "/subject"),
    ("rule", "/rule"),
    ("opened", "/opened"),
];

pub(super) fn run(args: Args) -> u8 {
    let Args { command, asking } = args;
    let decide = |id: &str, verb: &str, who: &Who, takes_reason: bool| {
        let path = format!("/incidents/{}/{verb}", part(id));
        asking.ask(Method::POST, &path, Some(who.body(takes_reason)), |i| {
            format!("{} is {}", text(i, "/id"), text(i, "/state"))
        })
    };
    match command {
        Command::List {
            state,
            agent,
            rule,
            since,
            limit,
        } => {
            let mut path = format!("/incidents?limit={limit}");
            for (name, value) in [
                ("state", state),
                ("agent", agent),
                ("rule", rule),
                ("since", since),
            ] {
                if let Some(value) = value {
                    path.push_str(&format!("&{name}={}", part(&value)));
                }
            }
            asking.ask(Method::GET, &path, None, |all| {
                table(all, COLUMNS, "no incidents")
            })
        }
        Command::Show { id } => asking.ask(Method::GET, &format!("/incidents/{}", part(&id)), None, shown),
        Command::Acknowledge { id, who } => decide(&id, "acknowledge", &who, false),
        Command::Resolve { id, who } => decide(&id, "resolve", &who, false),
        Command::FalseAlarm { id, who } => decide(&id, "false-alarm", &who, true),
        Command::Escalate { id, who } => decide(&id, "escalate", &who, false),
        Command::Postmortem { id } => {
            let format = if asking.output == Output::Json {
                "json"
            } else {
                "md"
            };
            let path = format!("/incidents/{}/postmortem?format={format}", part(&id));
            match asking.admin.ask(Method::GET, &path, "*/*") {
                Ok(answered) if answered.status == 200 => print_line(answered.body),
                Ok(answered) => failed(&answered.problem()),
                Err(why) => failed(&why),
            }
        }
    }
}

fn shown(incident: &Value) -> String {
    let mut out = fields(
        incident,
        &[
            ("incident", "/id"),
            ("state", "/state"),
            ("severity", "/severity"),
            ("rule", "/rule"),
            ("subject", "/subject"),
            ("agents", "/agents"),
            ("metric", "/metric"),
            ("value", "/value"),
            ("worst", "/worst"),
            ("now", "/current"),
            ("normal", "/baseline"),
            ("limit", "/threshold"),
            ("opened", "/opened"),
            ("resolved", "/resolved"),
            ("acknowledged", "/acknowledged_by"),
            ("silenced", "/silenced_by"),
        ],
    );
    out.push_str("plan\n");
    out.push_str(&plan(incident.get("plan")));
    out.push_str("timeline\n");
    for entry in incident
        .get("timeline")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let (at, event) = (text(entry, "/at"), text(entry, "/event"));
        out.push_str(&format!("  {at}  {event:<14} {}\n", text(entry, "/detail")));
    }
    out
}
