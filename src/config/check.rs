//! What every section needs to be judged: the problems found so far, and readers for values with a range.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;

use super::at::{At, Opt};
use super::de::clipped;
use super::problem::{Place, Problem};
use super::units::{self, DurationText, Quantity, Scalar, ShareText, SizeText, show_duration, show_size};
use crate::types::secret::Secret;

/// Longest secret file read, in bytes.
const MAX_SECRET_BYTES: u64 = 64 << 10;
/// Longest name of a rule, an upstream and so on, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// How a number with a unit is read and shown.
struct Measure<T> {
    name: &'static str,
    read: fn(&str) -> Option<T>,
    show: fn(T) -> String,
    /// What to write in place of what cannot be read.
    hint: fn(&Scalar) -> String,
}

const DURATION: Measure<Duration> = Measure {
    name: "duration",
    read: units::duration,
    show: show_duration,
    hint: |written| match written {
        Scalar::Number(n) if *n >= 0.0 => format!("give it a unit, as {n}s or {n}m"),
        _ => "write a number with a unit, as 500ms, 2.5s, 15m or 1h30m".to_owned(),
    },
};

const SIZE: Measure<u64> = Measure {
    name: "size",
    read: units::size,
    show: show_size,
    hint: |_| "write a number of bytes, or one with a unit, as 64KiB, 64MiB or 10MB".to_owned(),
};

/// Judges a file: holds its text, its directory and every problem found so far.
pub(super) struct Check<'a> {
    source: &'a str,
    dir: PathBuf,
    env: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

impl<'a> Check<'a> {
    /// Begins with the problems that reading gave. Files that the text names are looked for beside `name`.
    pub(super) fn new(
        name: &str,
        source: &'a str,
        env: &'a dyn Fn(&str) -> Option<String>,
        problems: Vec<Problem>,
    ) -> Self {
        Self {
            source,
            dir: Path::new(name)
                .parent()
                .map(Path::to_path_buf)
                .unwrap_or_default(),
            env,
            problems,
        }
    }

    /// All problems.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// The value of an environment variable.
    pub(super) fn env(&self, name: &str) -> Option<String> {
        (self.env)(name)
    }

    /// Something is wrong at `place`. Neither text nor hint may hold a secret.
    pub(super) fn problem(&mut self, place: Place, text: impl Into<String>, hint: impl Into<String>) {
        let hint = hint.into();
        self.problems.push(Problem {
            place,
            text: text.into(),
            hint: (!hint.is_empty()).then_some(hint),
            key: None,
        });
    }

    /// A key is missing from the map at `within`; told only if nothing was told about that key already.
    pub(super) fn missing(&mut self, within: Place, key: &str, hint: impl Into<String>) {
        if !self.told_about(within, &[key]) {
            self.problem(within, format!("`{key}` is missing"), hint);
        }
    }

    /// Whether a problem was told about one of these keys (misspelt, of a wrong type) in the map at `within`.
    pub(super) fn told_about(&self, within: Place, keys: &[&str]) -> bool {
        let about =
            |p: &Problem| p.key.as_deref().is_some_and(|k| keys.contains(&k)) && p.place.within(within);
        self.problems.iter().any(about)
    }

    /// Whether a problem was told about anything within `place`.
    pub(super) fn told_within(&self, place: Place) -> bool {
        self.problems.iter().any(|p| p.place.within(place))
    }

    /// How a value was written; what the environment put in stays out.
    pub(super) fn quote(&self, place: Place, value: &str) -> String {
        match place {
            Place::File { start, end, .. } => {
                let written = self.source.get(start..end).unwrap_or_default();
                clipped(
                    written
                        .lines()
                        .next()
                        .unwrap_or_default()
                        .trim_matches(['"', '\'']),
                )
            }
            Place::Flag(_) | Place::Whole => clipped(value),
        }
    }

    /// A duration within `range`, or `default`.
    pub(super) fn duration(
        &mut self,
        key: &str,
        given: Opt<DurationText>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Duration {
        let given = given.map(|at| at.map(|DurationText(scalar)| scalar));
        self.measure(key, given, range, &DURATION).unwrap_or(default)
    }

    /// A size in bytes within `range`, or `default`.
    pub(super) fn size(
        &mut self,
        key: &str,
        given: Opt<SizeText>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let given = given.map(|at| at.map(|SizeText(scalar)| scalar));
        self.measure(key, given, range, &SIZE).unwrap_or(default)
    }

    /// A number with a unit, within `range`; `None`, and told why, when it is not.
    fn measure<T: PartialOrd + Copy>(
        &mut self,
        key: &str,
        given: Opt<Scalar>,
        range: RangeInclusive<T>,
        kind: &Measure<T>,
    ) -> Option<T> {
        let At { value, place } = given?;
        let written = value.text();
        match (kind.read)(&written) {
            Some(amount) if range.contains(&amount) => return Some(amount),
            Some(_) => {
                let hint = format!(
                    "from {} to {}",
                    (kind.show)(*range.start()),
                    (kind.show)(*range.end())
                );
                self.problem(place, format!("`{key}` is out of range"), hint);
            }
            None => {
                let quoted = self.quote(place, &written);
                self.problem(
                    place,
                    format!("`{quoted}` is not a {}", kind.name),
                    (kind.hint)(&value),
                );
            }
        }
        None
    }

    /// A whole number within `range`, or `default`.
    pub(super) fn count(
        &mut self,
        key: &str,
        given: Opt<u64>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        match given {
            Some(At { value, .. }) if range.contains(&value) => value,
            Some(At { place, .. }) => {
                let hint = format!("from {} to {}", range.start(), range.end());
                self.problem(place, format!("`{key}` is out of range"), hint);
                default
            }
            None => default,
        }
    }

    /// As [`Check::count`], for what is counted in memory.
    pub(super) fn length(
        &mut self,
        key: &str,
        given: Opt<u64>,
        default: usize,
        range: RangeInclusive<u64>,
    ) -> usize {
        usize::try_from(self.count(key, given, default as u64, range)).unwrap_or(usize::MAX)
    }

    /// A number within `range`, or `default`.
    pub(super) fn number(
        &mut self,
        key: &str,
        given: Opt<f64>,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> f64 {
        match given {
            Some(At { value, .. }) if range.contains(&value) => value,
            Some(At { place, .. }) => {
                let hint = format!("from {} to {}", range.start(), range.end());
                self.problem(place, format!("`{key}` is out of range"), hint);
                default
            }
            None => default,
        }
    }

    /// A share within `range` (0 to 1), or `default`.
    pub(super) fn share(
        &mut self,
        key: &str,
        given: Opt<ShareText>,
        default: f64,
        range: RangeInclusive<f64>,
    ) -> f64 {
        let Some(At {
            value: ShareText(scalar),
            place,
        }) = given
        else {
            return default;
        };
        match units::quantity(&scalar) {
            Some(Quantity::Number(n) | Quantity::Percent(n)) if range.contains(&n) => n,
            Some(Quantity::Number(_) | Quantity::Percent(_)) => {
                let hint = format!("from {}% to {}%", range.start() * 100.0, range.end() * 100.0);
                self.problem(place, format!("`{key}` is out of range"), hint);
                default
            }
            _ => {
                let quoted = self.quote(place, &scalar.text());
                self.problem(
                    place,
                    format!("`{quoted}` is not a share"),
                    "write a percentage as 30%, or a number from 0 to 1 as 0.3",
                );
                default
            }
        }
    }

    /// One of the names in `known`; told if it is not.
    pub(super) fn known(&mut self, what: &str, section: &str, name: &At<String>, known: &[&str]) -> bool {
        if known.contains(&name.value.as_str()) {
            return true;
        }
        let quoted = self.quote(name.place, &name.value);
        let hint = if known.is_empty() {
            format!("define it under `{section}`")
        } else {
            super::suggest::hint(&name.value, known.iter().copied()).unwrap_or_default()
        };
        self.problem(name.place, format!("unknown {what} `{quoted}`"), hint);
        false
    }

    /// Whether `name` can be a name: told if not.
    pub(super) fn name(&mut self, key: &str, name: &At<String>) -> bool {
        let fault = if name.value.trim().is_empty() {
            format!("`{key}` is empty")
        } else if name.value.len() > MAX_NAME_BYTES {
            format!("`{key}` is longer than {MAX_NAME_BYTES} bytes")
        } else if name.value.chars().any(char::is_control) || name.value.trim() != name.value {
            format!("`{key}` holds blanks around it or control characters")
        } else {
            return true;
        };
        self.problem(
            name.place,
            fault,
            "write a short word, as letters, digits, - and _",
        );
        false
    }

    /// The names of a list that are names.
    pub(super) fn names(&mut self, key: &str, list: Vec<At<String>>) -> Vec<String> {
        list.into_iter()
            .filter_map(|n| self.name(key, &n).then_some(n.value))
            .collect()
    }

    /// A name that may be left out.
    pub(super) fn maybe_name(&mut self, key: &str, given: Opt<String>) -> Option<String> {
        given.filter(|n| self.name(key, n)).map(|n| n.value)
    }

    /// Header names in lower case, or the default ones.
    pub(super) fn headers(
        &mut self,
        given: Option<Vec<At<String>>>,
        default: &[&'static str],
    ) -> Vec<HeaderName> {
        let Some(list) = given else {
            return default.iter().map(|n| HeaderName::from_static(n)).collect();
        };
        let mut headers = Vec::with_capacity(list.len());
        for At { value, place } in list {
            match value.to_ascii_lowercase().parse::<HeaderName>() {
                Ok(name) if headers.contains(&name) => {
                    self.problem(
                        place,
                        format!("`{}` is listed twice", self.quote(place, &value)),
                        "remove one of them",
                    );
                }
                Ok(name) => headers.push(name),
                Err(_) => {
                    let quoted = self.quote(place, &value);
                    self.problem(
                        place,
                        format!("`{quoted}` is not the name of a header"),
                        "letters, digits and - only, as x-agent-id",
                    );
                }
            }
        }
        headers
    }

    /// A file that is named in this one; relative paths start at the directory of this file.
    pub(super) fn path(&mut self, key: &str, given: &At<String>) -> PathBuf {
        if given.value.trim().is_empty() {
            self.problem(
                given.place,
                format!("`{key}` is empty"),
                "write the path of a file",
            );
        }
        self.dir.join(given.value.trim())
    }

    /// A secret that is given as text or in a file; `key` is the name of the former.
    pub(super) fn secret(&mut self, key: &str, text: Opt<String>, file: Opt<String>) -> Option<At<Secret>> {
        let At { value, place } = match (text, file) {
            (Some(_), Some(file)) => {
                self.problem(
                    file.place,
                    format!("both `{key}` and `{key}_file` are given"),
                    "keep one of them",
                );
                return None;
            }
            (Some(text), None) => {
                if text.value.trim().is_empty() {
                    self.problem(
                        text.place,
                        format!("`{key}` is empty"),
                        "remove the key, or give it a value",
                    );
                    return None;
                }
                At {
                    value: text.value.trim().to_owned(),
                    place: text.place,
                }
            }
            (None, Some(file)) => {
                let path = self.path(&format!("{key}_file"), &file);
                match read_secret(&path) {
                    Ok(value) => At {
                        value,
                        place: file.place,
                    },
                    Err(why) => {
                        self.problem(
                            file.place,
                            format!("`{key}_file` {why}"),
                            format!(
                                "{} must be a readable file that holds the value and nothing else",
                                path.display()
                            ),
                        );
                        return None;
                    }
                }
            }
            (None, None) => return None,
        };
        Some(At {
            value: Secret::new(value),
            place,
        })
    }
}

fn read_secret(path: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut text = String::new();
    // Judged before it is opened: opening a pipe would wait for its writer.
    std::fs::metadata(path)
        .and_then(|m| {
            if m.is_file() {
                std::fs::File::open(path)
            } else {
                Err(std::io::Error::other("no regular file"))
            }
        })
        .and_then(|f| f.take(MAX_SECRET_BYTES).read_to_string(&mut text))
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::InvalidData => "is not text".to_owned(),
            _ => format!("cannot be read: {e}"),
        })?;
    match text.trim() {
        "" => Err("is empty".to_owned()),
        secret => Ok(secret.to_owned()),
    }
}
