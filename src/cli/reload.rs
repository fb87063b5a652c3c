//! `fusebox reload`: ask a running fusebox to read its configuration again.

use std::fmt::Write;

use serde_json::Value;

use super::admin_client::Admin;
use super::{FAILED, print_bytes, say};

/// Arguments of `fusebox reload`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    /// How to show the outcome.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

pub(super) fn run(args: &Args) -> u8 {
    let answered = match args
        .admin
        .ask(http::Method::POST, "/-/reload", "application/json")
    {
        Ok(answered) => answered,
        Err(why) => {
            say(&format!("error: {why}"));
            return FAILED;
        }
    };
    // 422 is the answer of a reload that was tried and refused; everything else never came to it.
    if !matches!(answered.status, 200 | 422) {
        say(&format!("error: {}", answered.problem()));
        return FAILED;
    }
    let mut shown = match args.output {
        Output::Text => outcome(&answered.body).into_bytes(),
        Output::Json => answered.body,
    };
    if !shown.ends_with(b"\n") {
        shown.push(b'\n');
    }
    let printed = print_bytes(&shown);
    if answered.status == 200 { printed } else { FAILED }
}

/// The report for a person.
fn outcome(report: &[u8]) -> String {
    let report: Value = serde_json::from_slice(report).unwrap_or_default();
    let list = |name: &str| -> Vec<&str> {
        let items = report.get(name).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let (changes, problems, waiting) = (list("changes"), list("problems"), list("needs_restart"));
    let ok = report.get("ok").and_then(Value::as_bool).unwrap_or(false);
    let mut out = String::from(match (ok, changes.is_empty()) {
        (true, true) => "reloaded: nothing changed\n",
        (true, false) => "reloaded:\n",
        (false, _) => "not reloaded, the old configuration stays in force:\n",
    });
    for line in changes.iter().chain(&problems) {
        // Writing to a string cannot fail.
        writeln!(out, "  {line}").ok();
    }
    if !waiting.is_empty() {
        writeln!(
            out,
            "changed, but in force only after a restart: {}",
            waiting.join(", ")
        )
        .ok();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::outcome;

    #[test]
    fn outcomes_read_well() {
        let table = [
            (r#"{"ok":true,"changes":[]}"#, "reloaded: nothing changed\n"),
            (
                r#"{"ok":true,"changes":["rules.a: threshold 1 → 2"],"needs_restart":["listeners","workers"]}"#,
                "reloaded:\n  rules.a: threshold 1 → 2\nchanged, but in force only after a restart: listeners, workers\n",
            ),
            (
                r#"{"ok":false,"problems":["f.yaml:3:5: no (yes)"]}"#,
                "not reloaded, the old configuration stays in force:\n  f.yaml:3:5: no (yes)\n",
            ),
        ];
        for (report, want) in table {
            assert_eq!(outcome(report.as_bytes()), want);
        }
    }
}
