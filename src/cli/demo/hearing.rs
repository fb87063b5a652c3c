//! What the agents' SDKs and the on-call notice, counted, and told where it is worth a line.

use std::collections::VecDeque;
use std::time::Duration;

use super::agents::{Event, What};
use super::chart::si;
use super::plan::{AGENTS, RUNAWAY};
use super::receiver::Received;
use super::timeline::{Tag, Timeline};
use crate::types::time::Mono;

/// What agents and on-call noticed.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// 429s that the runaway's SDK saw.
    pub(super) refused: u64,
    /// Calls of it that were given up.
    pub(super) raised: u64,
    /// 429s and calls given up of all other agents.
    pub(super) others: u64,
    /// Answers to it by another model than it asked for.
    pub(super) downgraded: u64,
    pub(super) webhooks: Vec<Received>,
    /// When calls were answered, and how long each took; the last ones.
    pub(super) latencies: VecDeque<(Mono, Duration)>,
}

impl Heard {
    /// An event of an agent; what is worth a line is told to `timeline`.
    pub(super) fn hear(&mut self, event: Event, timeline: &Timeline) {
        let runaway = event.agent == RUNAWAY;
        match event.what {
            What::Answered {
                latency,
                model,
                tokens,
                notes,
                turn,
            } => {
                self.latencies.push_back((event.at, latency));
                if self.latencies.len() > 4096 {
                    self.latencies.pop_front();
                }
                let asked = AGENTS.iter().find(|a| a.name == event.agent).map(|a| a.model);
                let other = asked.is_some_and(|asked| !is_model(&model, asked));
                if runaway && other {
                    self.downgraded += 1;
                }
                if runaway && other && self.downgraded == 1 {
                    let notes: Vec<String> = notes
                        .into_iter()
                        .filter(|n| n.contains("-action: ") || n.contains("-model-used: "))
                        .collect();
                    let notes = if notes.is_empty() {
                        String::new()
                    } else {
                        format!(" ({})", notes.join(", "))
                    };
                    tell(
                        timeline,
                        &format!(
                            "{RUNAWAY} asked for {} and was answered by {model}{notes}",
                            asked.unwrap_or_default()
                        ),
                    );
                } else if let Some(turn) = turn
                    && (turn <= 6 || turn % 4 == 0)
                {
                    tell(
                        timeline,
                        &format!(
                            "{RUNAWAY}'s loop, turn {turn}: {} tokens in {:.1} s by {model}",
                            si(tokens as f64),
                            latency.as_secs_f64()
                        ),
                    );
                }
            }
            What::RateLimited { wait, message } => {
                let count = if runaway {
                    &mut self.refused
                } else {
                    &mut self.others
                };
                *count += 1;
                if *count <= 2 {
                    let then = wait.map_or_else(
                        || "and has no retry left".to_owned(),
                        |wait| format!("and tries again after {:.1} s", wait.as_secs_f64()),
                    );
                    let message: String = message.chars().take(160).collect();
                    let agent = event.agent;
                    tell(timeline, &format!("{agent}'s SDK gets 429 {then}: “{message}”"));
                }
            }
            What::Raised { status, message } => {
                let count = if runaway {
                    &mut self.raised
                } else {
                    &mut self.others
                };
                *count += 1;
                if *count <= 2 {
                    let error = match status {
                        // Its message was told when it came.
                        429 => "RateLimitError".to_owned(),
                        0 => format!("a connection error: {message}"),
                        status => format!("an error {status}: {message}"),
                    };
                    let error: String = error.chars().take(160).collect();
                    let agent = event.agent;
                    tell(
                        timeline,
                        &format!("{agent}'s SDK is out of retries and raises {error}"),
                    );
                }
            }
        }
    }

    /// A notice that the on-call got.
    pub(super) fn receive(&mut self, received: Received, timeline: &Timeline) {
        let signature = if received.signed {
            "signature verified"
        } else {
            "SIGNATURE WRONG"
        };
        timeline.tell(
            Tag::Webhook,
            &format!(
                "on-call got {} ({}, {signature}): {}",
                received.event, received.severity, received.title
            ),
        );
        if self.webhooks.len() < 100 {
            self.webhooks.push(received);
        }
    }
}

fn tell(timeline: &Timeline, text: &str) {
    timeline.tell(Tag::Agent, text);
}

/// Whether `served` is the model `asked` or a dated version of it.
fn is_model(served: &str, asked: &str) -> bool {
    served.strip_prefix(asked).is_some_and(|rest| {
        rest.is_empty()
            || rest
                .strip_prefix('-')
                .is_some_and(|d| d.starts_with(|c: char| c.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dated_names_are_the_same_model() {
        for (served, asked, same) in [
            ("gpt-4o", "gpt-4o", true),
            ("gpt-4o-2024-08-06", "gpt-4o", true),
            ("gpt-4o-mini-2024-07-18", "gpt-4o", false),
            ("gpt-4.1", "gpt-4o", false),
            ("", "gpt-4o", false),
        ] {
            assert_eq!(is_model(served, asked), same, "{served}");
        }
    }
}
