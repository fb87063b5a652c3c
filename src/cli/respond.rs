//! `fusebox respond`: an incident response from a file.

use std::io::Read;
use std::path::PathBuf;

use http::Method;
use serde_json::Value;

use super::operate::{Asking, failed, plan, text};

/// Largest body, in bytes.
const MAX_BODY: u64 = 1 << 20;

/// Arguments of `fusebox respond`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A JSON file with the body of POST /agents/incident-response; `-` is standard input.
    #[arg(value_name = "FILE|-")]
    file: PathBuf,
    #[command(flatten)]
    asking: Asking,
}

pub(super) fn run(args: &Args) -> u8 {
    let mut body = String::new();
    let read = if args.file.as_os_str() == "-" {
        std::io::stdin().lock().take(MAX_BODY).read_to_string(&mut body)
    } else {
        std::fs::File::open(&args.file).and_then(|file| file.take(MAX_BODY).read_to_string(&mut body))
    };
    if let Err(e) = read {
        return failed(&format!("cannot read {}: {e}", args.file.display()));
    }
    args.asking
        .send(Method::POST, "/agents/incident-response", body, shown)
}

fn shown(answer: &Value) -> String {
    let list = |name: &str| {
        answer
            .get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let mut out = String::new();
    for one in list("plans") {
        out.push_str(&format!(
            "{} about {}\n",
            text(&one, "/incident"),
            text(&one, "/subject")
        ));
        out.push_str(&plan(one.get("steps")));
    }
    for one in list("left_out") {
        out.push_str(&format!(
            "left out: {} ({})\n",
            text(&one, "/step"),
            text(&one, "/why")
        ));
    }
    for one in list("agents") {
        out.push_str(&format!(
            "agent {}: {}\n",
            text(&one, "/agent"),
            text(&one, "/state")
        ));
    }
    out
}
