//! What the subcommands share that ask a running fusebox to show or do something.

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::admin_client::Admin;
use super::{FAILED, print_bytes, say};

/// How to reach it, and how to show what it says.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Asking {
    #[command(flatten)]
    pub(super) admin: Admin,
    /// How to show the answer.
    #[arg(long, value_enum, default_value_t = Output::Text, global = true)]
    pub(super) output: Output,
}

/// How to show an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// As the admin API gave it.
    Json,
}

/// Who acts, and why.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Who {
    /// Who does it, for the record.
    #[arg(long, value_name = "NAME", env = "USER")]
    by: Option<String>,
    /// Why, for the record.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Who {
    /// As members of a body; the reason only where it is taken.
    pub(super) fn body(&self, takes_reason: bool) -> Map<String, Value> {
        let mut body = Map::new();
        put(&mut body, "by", self.by.clone());
        if takes_reason {
            put(&mut body, "reason", self.reason.clone());
        }
        body
    }
}

/// Puts a member into a body where it is given.
pub(super) fn put(body: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        body.insert(name.to_owned(), value.into());
    }
}

/// A name as a part of a path.
pub(super) fn part(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

impl Asking {
    /// Asks, and shows the answer: as `show` makes it, or as it is.
    pub(super) fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Map<String, Value>>,
        show: impl Fn(&Value) -> String,
    ) -> u8 {
        let body = body.map(|b| Value::Object(b).to_string()).unwrap_or_default();
        self.send(method, path, body, show)
    }

    /// As [`Asking::ask`], with a body as it is.
    pub(super) fn send(
        &self,
        method: Method,
        path: &str,
        body: String,
        show: impl Fn(&Value) -> String,
    ) -> u8 {
        match self.admin.send(method, path, "application/json", body.into()) {
            Ok(answered) if (200..300).contains(&answered.status) => {
                let shown = match serde_json::from_slice(&answered.body) {
                    Ok(answer) if self.output == Output::Text => show(&answer).into_bytes(),
                    _ => answered.body,
                };
                print_line(shown)
            }
            Ok(answered) => failed(&answered.problem()),
            Err(why) => failed(&why),
        }
    }
}

/// Says what went wrong.
pub(super) fn failed(why: &str) -> u8 {
    say(&format!("error: {why}"));
    FAILED
}

/// Prints text with a line end.
pub(super) fn print_line(mut text: Vec<u8>) -> u8 {
    if !text.is_empty() && !text.ends_with(b"\n") {
        text.push(b'\n');
    }
    print_bytes(&text)
}

/// A member as text without control characters: names come from traffic, and a terminal obeys some of them.
pub(super) fn text(value: &Value, pointer: &str) -> String {
    let text = match value.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        // What is named by its kind, as {"agent": "billing"}: the name alone.
        Some(Value::Object(one)) if one.len() == 1 => match one.values().next() {
            Some(Value::String(text)) => text.clone(),
            _ => Value::Object(one.clone()).to_string(),
        },
        Some(other) => other.to_string(),
    };
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A table: names above, one line for each item, columns as wide as they need to be.
pub(super) fn table(answer: &Value, columns: &[(&str, &str)], none: &str) -> String {
    let items = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return none.to_owned();
    }
    let mut rows: Vec<Vec<String>> = vec![columns.iter().map(|(name, _)| name.to_uppercase()).collect()];
    rows.extend(
        items
            .iter()
            .map(|item| columns.iter().map(|(_, at)| text(item, at)).collect()),
    );
    let width = |n: usize| {
        rows.iter()
            .filter_map(|r| r.get(n))
            .map(|c| c.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns.len()).map(|n| width(n).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// The named members of an object, one a line; those that are null are left out.
pub(super) fn fields(answer: &Value, columns: &[(&str, &str)]) -> String {
    let given = columns.iter().filter(|(_, at)| {
        answer
            .pointer(at)
            .is_some_and(|v| !v.is_null() && *v != Value::Array(Vec::new()))
    });
    given
        .map(|(name, at)| format!("{name:<14} {}\n", text(answer, at)))
        .collect()
}

/// A plan, step by step.
pub(super) fn plan(steps: Option<&Value>) -> String {
    let steps = steps
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    steps
        .iter()
        .map(|step| {
            let link = match step.pointer("/approval/link").and_then(Value::as_str) {
                Some(link) => format!("\n      {link}"),
                None => String::new(),
            };
            let asked = step.pointer("/approval/id").and_then(Value::as_str);
            let asked = asked.map_or(String::new(), |id| format!(" · fusebox approvals approve {id}"));
            let why = [text(step, "/what"), text(step, "/why")];
            let why: Vec<&str> = why
                .iter()
                .map(String::as_str)
                .filter(|t| !t.is_empty() && *t != "-")
                .collect();
            format!(
                "  {:<16} {:<10} {}{asked}{link}\n",
                text(step, "/step"),
                text(step, "/state"),
                why.join(": ")
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_terminal_is_not_obeyed() {
        let answer = json!([{"a": "x\u{1b}[2J", "b": 3}, {"a": "longer name", "b": null}]);
        assert_eq!(
            table(&answer, &[("name", "/a"), ("n", "/b")], "none"),
            "NAME         N\nx?[2J        3\nlonger name  -\n"
        );
        assert_eq!(table(&json!([]), &[("name", "/a")], "none"), "none");
        assert_eq!(part("a/b c"), "a%2Fb%20c");
    }
}
