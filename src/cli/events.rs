//! `fusebox events`: what happens, as it happens.

use std::time::Duration;

use super::operate::{Asking, Output, failed, print_line, text};
use super::{OK, say};

/// Arguments of `fusebox events`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Go on after this event.
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    /// Stop after so many events.
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

/// How long to wait before a stream that ended is opened again.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) fn run(args: &Args) -> u8 {
    let mut last = args.after;
    let mut left = args.count;
    let mut connected = false;
    loop {
        let path = last.map_or_else(|| "/events".to_owned(), |n| format!("/events?after={n}"));
        let followed = args.asking.admin.follow(&path, |block| {
            connected = true;
            let Some(event) = Event::read(block) else {
                return true;
            };
            last = event.id.or(last);
            if print_line(event.shown(args.asking.output).into_bytes()) != OK {
                return false;
            }
            if let Some(left) = &mut left {
                *left = left.saturating_sub(1);
            }
            left != Some(0)
        });
        match followed {
            Ok(()) if left == Some(0) => return OK,
            // A stream ends now and then; one that never began is a mistake.
            Ok(()) if connected => {}
            Ok(()) => return failed("the stream ended before it began"),
            Err(why) if connected => say(&format!("{why}; trying again")),
            Err(why) => return failed(&why),
        }
        std::thread::sleep(PAUSE);
    }
}

struct Event<'a> {
    id: Option<u64>,
    kind: &'a str,
    data: serde_json::Value,
}

impl<'a> Event<'a> {
    fn read(block: &'a str) -> Option<Self> {
        let field = |name: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        Some(Self {
            id: field("id").and_then(|n| n.parse().ok()),
            kind: field("event")?,
            data: serde_json::from_str(field("data")?).ok()?,
        })
    }

    fn shown(&self, output: Output) -> String {
        if output == Output::Json {
            return serde_json::json!({"id": self.id, "event": self.kind, "data": self.data}).to_string();
        }
        let at = text(&self.data, "/at");
        let about = |name: &str| text(&self.data, &format!("/{}/{name}", self.kind));
        let what = match self.kind {
            "incident" => {
                let last = self
                    .data
                    .pointer("/incident/timeline")
                    .and_then(|t| t.as_array())
                    .and_then(|t| t.last())
                    .map_or_else(String::new, |e| {
                        format!("{}: {}", text(e, "/event"), text(e, "/detail"))
                    });
                format!("{} {} {} · {last}", about("id"), about("state"), about("subject"))
            }
            "approval" => format!(
                "{} {} {}: {}",
                about("id"),
                about("state"),
                about("subject"),
                about("what")
            ),
            "silence" => format!("{} until {}", about("id"), about("ends")),
            "brake" => format!("on: {}", about("on")),
            "directives" => {
                let count = self
                    .data
                    .pointer("/directives")
                    .and_then(|d| d.as_array())
                    .map_or(0, Vec::len);
                format!("{count} in force")
            }
            _ => self.data.to_string(),
        };
        let id = self.id.map_or_else(|| "-".to_owned(), |n| n.to_string());
        format!("{id:>6}  {at}  {:<10} {what}", self.kind)
    }
}
