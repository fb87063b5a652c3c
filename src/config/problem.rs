//! Problems of a configuration: each with its place, a snippet without secrets, and what to do about it.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

/// Problems kept; a file that has more is not a configuration.
pub(super) const MAX_PROBLEMS: usize = 100;

/// Where something was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file: bytes from `start` to `end`, line and column counted from 1.
    File {
        /// First byte.
        start: usize,
        /// Byte after the last one.
        end: usize,
        /// Line.
        line: u32,
        /// Column in characters.
        column: u32,
    },
    /// On the command line, by this flag.
    Flag(&'static str),
    /// Nowhere in particular: the file as a whole.
    Whole,
}

impl Place {
    /// Whether `self` lies within `outer`.
    pub(super) const fn within(self, outer: Self) -> bool {
        match (self, outer) {
            (Self::File { start, end, .. }, Self::File { start: s, end: e, .. }) => start >= s && end <= e,
            (_, Self::Whole) => true,
            _ => false,
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub(super) struct Problem {
    /// Where.
    pub(super) place: Place,
    /// What, in one line, without any secret.
    pub(super) text: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
    /// The key that it is about, as it should have been written: keeps a second problem ("missing") from being told.
    pub(super) key: Option<String>,
}

/// Every problem of a configuration. `Display` shows each with file, line, column, snippet and hint.
#[derive(Debug, Clone)]
pub struct Problems {
    name: String,
    shown: Vec<Shown>,
    beyond: usize,
}

/// One problem, as it is shown to machines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProblemView<'a> {
    /// The file, or the flag of the command line.
    pub file: &'a str,
    /// Line, counted from 1; null when it is about the whole file or a flag.
    pub line: Option<u32>,
    /// Column in characters, counted from 1.
    pub column: Option<u32>,
    /// What is wrong.
    pub text: &'a str,
    /// What to do about it.
    pub hint: Option<&'a str>,
}

/// A problem together with the one line of the source that it points at, free of secrets.
#[derive(Debug, Clone)]
struct Shown {
    problem: Problem,
    line: Option<(String, Range<usize>)>,
}

impl Problems {
    /// The problems of `source`, in its order. `secrets` are byte ranges of the source that are never shown.
    pub(super) fn new(
        name: &str,
        source: &str,
        mut problems: Vec<Problem>,
        secrets: &[Range<usize>],
    ) -> Self {
        problems.sort_by_key(|p| match p.place {
            Place::Flag(_) => (0, 0, 0),
            Place::Whole => (1, 0, 0),
            Place::File { line, column, .. } => (2, line, column),
        });
        let beyond = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        let shown = problems
            .into_iter()
            .map(|problem| Shown {
                line: pointed_at(source, problem.place, secrets),
                problem,
            })
            .collect();
        Self {
            name: name.to_owned(),
            shown,
            beyond,
        }
    }

    /// One problem about the whole of `name`.
    pub(super) fn whole(name: &str, text: String, hint: &str) -> Self {
        let problem = Problem {
            place: Place::Whole,
            text,
            hint: Some(hint.to_owned()),
            key: None,
        };
        Self::new(name, "", vec![problem], &[])
    }

    /// Each in one line: `file:line:column: text (hint)`.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .iter()
            .map(|p| {
                let mut s = p.file.to_owned();
                if let (Some(line), Some(column)) = (p.line, p.column) {
                    s.push_str(&format!(":{line}:{column}"));
                }
                s.push_str(": ");
                s.push_str(p.text);
                if let Some(hint) = p.hint {
                    s.push_str(&format!(" ({hint})"));
                }
                s
            })
            .collect();
        if self.beyond > 0 {
            lines.push(format!("{}: and {} more problems", self.name, self.beyond));
        }
        lines
    }

    /// Each in its parts.
    pub fn iter(&self) -> impl Iterator<Item = ProblemView<'_>> {
        self.shown.iter().map(|s| {
            let (file, line, column) = match s.problem.place {
                Place::File { line, column, .. } => (self.name.as_str(), Some(line), Some(column)),
                Place::Flag(flag) => (flag, None, None),
                Place::Whole => (self.name.as_str(), None, None),
            };
            ProblemView {
                file,
                line,
                column,
                text: &s.problem.text,
                hint: s.problem.hint.as_deref(),
            }
        })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.shown.len().saturating_add(self.beyond)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let renderer = Renderer::plain();
        for (view, shown) in self.iter().zip(&self.shown) {
            let title = Level::ERROR.primary_title(view.text);
            let mut group = match (&shown.line, view.line) {
                (Some((text, range)), Some(line)) => title.element(
                    Snippet::source(text.as_str())
                        .path(self.name.as_str())
                        .line_start(usize::try_from(line).unwrap_or(usize::MAX))
                        .annotation(AnnotationKind::Primary.span(range.clone())),
                ),
                _ => title.element(annotate_snippets::Origin::path(view.file)),
            };
            if let Some(hint) = view.hint {
                group = group.element(Level::HELP.message(hint));
            }
            writeln!(f, "{}\n", renderer.render(&[group]))?;
        }
        if self.beyond > 0 {
            writeln!(f, "and {} more", self.beyond)?;
        }
        match self.len() {
            1 => write!(f, "1 problem in {}", self.name),
            n => write!(f, "{n} problems in {}", self.name),
        }
    }
}

/// The line that `place` begins in, with secrets masked, and the marked range within it.
fn pointed_at(source: &str, place: Place, secrets: &[Range<usize>]) -> Option<(String, Range<usize>)> {
    let Place::File { start, end, line, .. } = place else {
        return None;
    };
    let line_start = match line.checked_sub(1)? {
        0 => 0,
        before => {
            source
                .match_indices('\n')
                .nth(usize::try_from(before - 1).ok()?)?
                .0
                + 1
        }
    };
    let rest = source.get(line_start..)?;
    let text = rest.split('\n').next().unwrap_or_default().trim_end_matches('\r');
    let inside = |p: usize| p.saturating_sub(line_start).min(text.len());
    let mut masked: Vec<Range<usize>> = secrets
        .iter()
        .filter(|r| r.start < line_start + text.len() && r.end > line_start)
        .map(|r| inside(r.start)..inside(r.end))
        .chain(guessed_secrets(text))
        .collect();
    masked.sort_by_key(|r| r.start);

    let (mut out, mut at) = (String::with_capacity(text.len()), 0);
    let (mut from, mut to) = (inside(start), inside(end.max(start.saturating_add(1))));
    let (marked_from, marked_to) = (from, to);
    for r in masked {
        let (Some(before), true) = (text.get(at..r.start), r.start >= at) else {
            continue;
        };
        out.push_str(before);
        let replaced_from = out.len();
        out.push_str("[secret]");
        if marked_from >= r.end {
            from = shifted(marked_from, r.end, out.len());
        } else if marked_from >= r.start {
            from = replaced_from;
        }
        if marked_to >= r.end {
            to = shifted(marked_to, r.end, out.len());
        } else if marked_to > r.start {
            to = out.len();
        }
        at = r.end;
    }
    out.push_str(text.get(at..).unwrap_or_default());
    // A mark covers whole characters and lies inside the line, or the renderer could not draw it.
    let from = out.floor_char_boundary(from.min(out.len()));
    let to = out.ceil_char_boundary(to.clamp(from, out.len()));
    Some((out, from..to))
}

/// Where a position behind a masked range comes to lie.
const fn shifted(position: usize, range_end: usize, out_end: usize) -> usize {
    out_end + (position - range_end)
}

/// What looks like a credential in a line, whatever the rest of the file is: the value of a telling key, and the user
/// part of a URL. Used beside the ranges that the parsed file gives, since a file with a syntax error gives none.
fn guessed_secrets(line: &str) -> Vec<Range<usize>> {
    const TELLING: [&str; 8] = [
        "token",
        "secret",
        "salt",
        "authorization",
        "passw",
        "api_key",
        "apikey",
        "credential",
    ];
    let mut found = Vec::new();
    // Every key of the line, since a map may stand in one line.
    for (at, _) in line.match_indices(':') {
        let (before, value) = line.split_at_checked(at).unwrap_or_default();
        let value = value.get(1..).unwrap_or_default();
        let before = before.trim_end().trim_end_matches(['"', '\'']);
        let word = before
            .rsplit(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-')))
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        let value_at = line.len() - value.trim_start().len();
        let is_count = word.contains("tokens_")
            || word.ends_with("_tokens")
            || value
                .trim()
                .trim_end_matches(['}', ']', ','])
                .parse::<f64>()
                .is_ok();
        let telling = TELLING.iter().any(|t| word.contains(t)) && !word.ends_with("_file");
        if telling && !is_count && !value.trim().is_empty() {
            found.push(value_at..line.len());
            break;
        }
    }
    for (scheme, _) in line.match_indices("://") {
        let from = scheme + 3;
        let rest = line.get(from..).unwrap_or_default();
        let authority = rest.split(['/', ' ', '"', '\'']).next().unwrap_or_default();
        if let Some(user) = authority.rfind('@') {
            found.push(from..from + user);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(source: &str, needle: &str) -> Place {
        let start = source.find(needle).unwrap();
        let before = source.get(..start).unwrap();
        Place::File {
            start,
            end: start + needle.len(),
            line: u32::try_from(before.matches('\n').count() + 1).unwrap(),
            column: u32::try_from(before.rsplit('\n').next().unwrap().chars().count() + 1).unwrap(),
        }
    }

    fn problem(place: Place) -> Problem {
        Problem {
            place,
            text: "this is wrong".into(),
            hint: Some("do that".into()),
            key: None,
        }
    }

    #[test]
    fn shows_place_snippet_caret_and_hint() {
        let source = "a: 1\nünder: [x, bad]\n";
        let p = Problems::new("f.yaml", source, vec![problem(at(source, "bad"))], &[]);
        let text = p.to_string();
        assert!(text.contains("error: this is wrong"), "{text}");
        assert!(text.contains("f.yaml:2:12"), "{text}");
        assert!(text.contains("2 | ünder: [x, bad]"), "{text}");
        assert!(text.contains("|            ^^^"), "{text}");
        assert!(text.contains("help: do that"), "{text}");
        assert_eq!(p.lines(), ["f.yaml:2:12: this is wrong (do that)"]);
    }

    #[test]
    fn masks_secrets_and_keeps_the_mark_in_place() {
        let source = "headers: {a: topsecret, b: oops}\n";
        let start = source.find("topsecret").unwrap();
        let p = Problems::new(
            "f",
            source,
            vec![problem(at(source, "oops"))],
            std::slice::from_ref(&(start..start + 9)),
        );
        let text = p.to_string();
        assert!(!text.contains("topsecret"), "{text}");
        assert!(text.contains("headers: {a: [secret], b: oops}"), "{text}");
        let lines: Vec<&str> = text.lines().collect();
        let source_line = lines.iter().find(|l| l.contains("oops")).unwrap();
        let caret_line = lines.iter().find(|l| l.contains("^^^^")).unwrap();
        assert_eq!(source_line.find("oops"), caret_line.find('^'));
    }

    #[test]
    fn masks_what_looks_like_a_credential() {
        for (line, gone) in [
            ("token: abc", "abc"),
            ("  - secret: \"abc", "abc"),
            ("url: https://me:abc@host/x", "abc"),
            ("  api_key_salt: abc", "abc"),
        ] {
            let p = Problems::new("f", line, vec![problem(at(line, "e"))], &[]);
            assert!(!p.to_string().contains(gone), "{p}");
        }
        for kept in ["tokens_per_minute: 500x", "token_file: /run/token", "token: 5"] {
            let p = Problems::new("f", kept, vec![problem(at(kept, ":"))], &[]);
            assert!(p.to_string().contains(kept), "{p}");
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(source in "(?s).{0,80}", start in 0usize..100, len in 0usize..50, line in 0u32..9, s in 0usize..90, e in 0usize..90) {
            let place = Place::File { start, end: start + len, line, column: 1 };
            let secret = s.min(e)..s.max(e);
            Problems::new("f", &source, vec![problem(place)], std::slice::from_ref(&secret)).to_string();
        }
    }
}
