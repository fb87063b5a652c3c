//! Lines with their time on stdout, coloured when a person looks at them.

use std::cell::Cell;
use std::io::{IsTerminal, Write};

use crate::clock::Clock;
use crate::types::time::Mono;

/// What a line is about; picks its label and colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Traffic,
    Story,
    Incident,
    Directive,
    Webhook,
    Agent,
    Effect,
    Released,
}

impl Tag {
    const fn label(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::Story => "story",
            Self::Incident => "incident",
            Self::Directive => "directive",
            Self::Webhook => "webhook",
            Self::Agent => "agent",
            Self::Effect => "effect",
            Self::Released => "released",
        }
    }

    /// The number of a colour in the SGR escape sequence.
    const fn colour(self) -> &'static str {
        match self {
            Self::Traffic => "2",
            Self::Story => "1",
            Self::Incident => "1;31",
            Self::Directive => "33",
            Self::Webhook => "35",
            Self::Agent => "36",
            Self::Effect => "34",
            Self::Released => "32",
        }
    }
}

/// Where the story is told.
pub(super) struct Timeline {
    clock: Clock,
    start: Mono,
    coloured: bool,
    gone: Cell<bool>,
}

impl Timeline {
    /// Starts now. Colours only on a terminal, and not when `NO_COLOR` is set.
    pub(super) fn start(clock: Clock) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let coloured = !plain && std::io::stdout().is_terminal();
        Self {
            start: clock.mono(),
            clock,
            coloured,
            gone: Cell::new(false),
        }
    }

    /// One that nobody reads.
    #[cfg(test)]
    pub(super) fn silent(clock: Clock) -> Self {
        let timeline = Self::start(clock);
        timeline.gone.set(true);
        timeline
    }

    /// Seconds since the start.
    pub(super) fn elapsed(&self) -> f64 {
        self.clock.mono().since(self.start).as_secs_f64()
    }

    /// Whether nobody reads any more (`fusebox demo | head`).
    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// A line with time and label.
    pub(super) fn tell(&self, tag: Tag, text: &str) {
        self.write(&line(self.elapsed(), tag, text, self.coloured));
    }

    /// A line as it is.
    pub(super) fn plain(&self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// A line that stands out.
    pub(super) fn heading(&self, text: &str) {
        if self.coloured {
            self.write(&format!("\n\u{1b}[1m{text}\u{1b}[0m\n"));
        } else {
            self.write(&format!("\n{text}\n"));
        }
    }

    fn write(&self, text: &str) {
        if self.gone.get() {
            return;
        }
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            self.gone.set(true);
        }
    }
}

fn line(elapsed: f64, tag: Tag, text: &str, coloured: bool) -> String {
    let label = tag.label();
    // Text of the wire may be in here: no control characters reach the terminal.
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if coloured {
        let colour = tag.colour();
        format!("\u{1b}[2m{elapsed:6.1}s\u{1b}[0m  \u{1b}[{colour}m{label:<10}\u{1b}[0m {text}\n")
    } else {
        format!("{elapsed:6.1}s  {label:<10} {text}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_plain_unless_coloured() {
        let plain = line(3.24, Tag::Webhook, "told", false);
        assert_eq!(plain, "   3.2s  webhook    told\n");
        let coloured = line(3.24, Tag::Webhook, "told", true);
        assert!(coloured.contains("\u{1b}[35m") && coloured.ends_with("told\n"));
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        let shown = line(0.0, Tag::Agent, "a\u{1b}[2Jb\nc", false);
        assert_eq!(shown, "   0.0s  agent      a [2Jb c\n");
    }
}
