//! Keeps the design: who may name whom, what pure parts may hold, and how files look. Lists all offences at once.
//!
//! It reads the source text, not the compiled program. It does not see paths that macros build, nor an edge that is
//! smuggled through a re-export; both are visible in review. What stands under `#[cfg(test)]`, whole files included,
//! is held only to the rules about form: unit tests may reach further than the code they test.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::string_slice,
    reason = "a test that cannot read the source has to say so loudly"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// DESIGN §3, low to high: each part and what it may name. A name must stand above its user, so there is no cycle.
const TABLE: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("clock", &["types"]),
    ("tls", &[]),
    ("dialect", &["types"]),
    ("incident", &["types"]),
    ("telemetry", &["types"]),
    ("enforce", &["types", "clock", "dialect"]),
    (
        "proxy",
        &["types", "clock", "tls", "dialect", "telemetry", "enforce"],
    ),
    ("alert", &["types", "clock", "tls", "telemetry"]),
    ("store", &["types", "clock", "telemetry"]),
    (
        "control",
        &[
            "types",
            "clock",
            "incident",
            "telemetry",
            "enforce",
            "alert",
            "store",
        ],
    ),
    (
        "config",
        &[
            "types",
            "clock",
            "tls",
            "dialect",
            "incident",
            "telemetry",
            "enforce",
            "proxy",
            "alert",
            "store",
            "control",
        ],
    ),
    (
        "admin",
        &[
            "types",
            "clock",
            "incident",
            "telemetry",
            "enforce",
            "alert",
            "store",
            "control",
            "config",
        ],
    ),
    (
        "app",
        &[
            "types",
            "clock",
            "tls",
            "dialect",
            "incident",
            "telemetry",
            "enforce",
            "proxy",
            "alert",
            "store",
            "control",
            "config",
            "admin",
        ],
    ),
    (
        "cli",
        &[
            "types",
            "clock",
            "tls",
            "dialect",
            "incident",
            "telemetry",
            "enforce",
            "proxy",
            "alert",
            "store",
            "control",
            "config",
            "admin",
            "app",
        ],
    ),
];

/// Edges that are open for some names only: user, used, and what of it may be named.
const NARROW: &[(&str, &str, &[&str])] = &[
    ("enforce", "dialect", &["models", "price", "table"]),
    (
        "admin",
        "incident",
        &["engine", "input", "postmortem", "record", "rule", "silence"],
    ),
    ("admin", "alert", &["TargetStatus"]),
];

/// Parts that think and do nothing else.
const PURE: &[&str] = &["types", "dialect", "incident"];

/// Paths that a pure part does not name, with what they stand for.
const IMPURE: &[(&str, &str)] = &[
    ("tokio", "a runtime"),
    ("tokio_util", "a runtime"),
    ("tokio_rustls", "a runtime"),
    ("futures", "a runtime"),
    ("hyper", "I/O"),
    ("hyper_util", "I/O"),
    ("hyper_rustls", "I/O"),
    ("tower", "I/O"),
    ("axum", "I/O"),
    ("socket2", "I/O"),
    ("notify", "I/O"),
    ("std::fs", "files"),
    ("std::net", "the network"),
    ("std::env", "the environment"),
    ("std::process", "processes"),
    ("std::thread", "threads"),
    ("std::io::stdin", "I/O"),
    ("std::io::stdout", "I/O"),
    ("std::io::stderr", "I/O"),
    ("std::time::Instant", "a clock"),
    ("std::time::SystemTime", "a clock"),
    ("tracing", "logs"),
    ("tracing_subscriber", "logs"),
    ("rand", "randomness"),
    ("fastrand", "randomness"),
    ("getrandom", "randomness"),
    ("uuid", "randomness"),
    ("std::hash::RandomState", "randomness"),
    ("std::collections::hash_map::RandomState", "randomness"),
];

/// Types whose `now` reads the time.
const CLOCKS: &[&str] = &[
    "Instant",
    "SystemTime",
    "Timestamp",
    "Zoned",
    "Utc",
    "Local",
    "OffsetDateTime",
];

/// Most lines of code in a file. Blank lines, lines of comment alone and `#[cfg(test)]` items are not counted.
const MAX_LINES: usize = 600;

#[test]
fn the_source_keeps_the_design() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &root, &mut files);
    files.sort();
    assert!(
        files.len() > 30,
        "only {} files found: wrong directory?",
        files.len()
    );
    let offences = judge(&files);
    assert!(
        offences.is_empty(),
        "{} offences against the design:\n{}",
        offences.len(),
        offences.join("\n")
    );
    eprintln!("{} files keep the design", files.len());
}

fn collect(root: &Path, at: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(at).expect("src can be read") {
        let path = entry.expect("src can be read").path();
        if path.is_dir() {
            collect(root, &path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            files.push((name, fs::read_to_string(&path).expect("source is UTF-8")));
        }
    }
}

/// Every offence in `files` (path below `src`, text), as `src/path:line: what`.
fn judge(files: &[(String, String)]) -> Vec<String> {
    let mut offences = Vec::new();
    check_table(files, &mut offences);
    let tests = test_files(files);
    for (path, text) in files {
        let mut file = File::read(path, text);
        file.is_test = tests.contains(path);
        file.check_form(text);
        if !file.is_test {
            file.check_edges();
            file.check_purity();
            file.check_conduct();
        }
        offences.append(&mut file.offences);
    }
    offences
}

fn check_table(files: &[(String, String)], offences: &mut Vec<String>) {
    let mut above = BTreeSet::new();
    for (part, may) in TABLE {
        for used in *may {
            if !above.contains(used) {
                offences.push(format!(
                    "the table: {part} names {used}, which does not stand above it"
                ));
            }
        }
        above.insert(part);
        if !files.is_empty() && !files.iter().any(|(path, _)| part_of(path) == Some(part)) {
            offences.push(format!("the table: there is no part {part} in src"));
        }
    }
    let parts: BTreeSet<&str> = files.iter().filter_map(|(path, _)| part_of(path)).collect();
    for part in parts {
        if !above.contains(&part) {
            offences.push(format!("src/{part}: a part that the table does not list"));
        }
    }
}

/// Files of modules that are declared under `#[cfg(test)]`, those below them included.
fn test_files(files: &[(String, String)]) -> BTreeSet<String> {
    let mut roots = Vec::new();
    for (path, text) in files {
        let directory = match path.strip_suffix("mod.rs") {
            Some(directory) => directory.to_owned(),
            None if path == "lib.rs" || path == "main.rs" => String::new(),
            None => format!("{}/", path.trim_end_matches(".rs")),
        };
        let all = tokens(text);
        let text = |i: usize| all.get(i).map_or("", |t| t.text.as_str());
        for i in 0..all.len() {
            let marked = ["#", "[", "cfg", "(", "test", ")", "]"];
            if !marked.iter().enumerate().all(|(n, want)| text(i + n) == *want) {
                continue;
            }
            let mut at = i + marked.len();
            if text(at) == "pub" {
                at += 1;
                if text(at) == "(" {
                    at = balanced(&all, at);
                }
            }
            if text(at) == "mod" && text(at + 2) == ";" {
                roots.push(format!("{directory}{}", text(at + 1)));
            }
        }
    }
    let below = |path: &str| {
        roots.iter().any(|root| {
            let rest = path.strip_prefix(root.as_str());
            rest.is_some_and(|r| r == ".rs" || r.starts_with('/'))
        })
    };
    let paths = files.iter().map(|(path, _)| path.clone());
    paths.filter(|path| below(path)).collect()
}

/// The part that a file belongs to; `main.rs` and `lib.rs` belong to none.
fn part_of(path: &str) -> Option<&str> {
    let first = path.split('/').next()?;
    let part = first.strip_suffix(".rs").unwrap_or(first);
    (part != "main" && part != "lib").then_some(part)
}

struct File<'a> {
    path: &'a str,
    part: Option<&'a str>,
    /// Tokens outside of `#[cfg(test)]`.
    code: Vec<Token>,
    /// All tokens.
    all: Vec<Token>,
    is_test: bool,
    offences: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
struct Token {
    line: usize,
    text: String,
}

impl<'a> File<'a> {
    fn read(path: &'a str, text: &str) -> Self {
        let all = tokens(text);
        Self {
            path,
            part: part_of(path),
            code: without_tests(&all),
            all,
            is_test: false,
            offences: Vec::new(),
        }
    }

    fn say(&mut self, line: usize, what: &str) {
        self.offences.push(format!("src/{}:{line}: {what}", self.path));
    }

    fn check_form(&mut self, text: &str) {
        let head: Vec<&str> = text.lines().map_while(|l| l.strip_prefix("//! ")).collect();
        let length: usize = head.iter().map(|l| l.len()).sum();
        if length < 10 || !head.iter().any(|l| l.ends_with(['.', ':'])) {
            self.say(
                1,
                "does not start with one `//!` sentence that says what the file holds",
            );
        }
        let lines: BTreeSet<usize> = self.code.iter().map(|t| t.line).collect();
        if lines.len() > MAX_LINES && !self.is_test {
            let what = format!("{} lines of code; at most {MAX_LINES}: split it", lines.len());
            self.say(1, &what);
        }
        for (line, path) in paths(&self.all) {
            if path == ["crate", "*"] {
                self.say(line, "`use crate::*` hides who is used");
            }
        }
    }

    fn check_edges(&mut self) {
        let Some(part) = self.part else { return };
        let Some((_, may)) = TABLE.iter().find(|(name, _)| *name == part) else {
            return;
        };
        // The module that the file is, from the crate's root.
        let mut module: Vec<&str> = self.path.trim_end_matches(".rs").split('/').collect();
        if module.last() == Some(&"mod") {
            module.pop();
        }
        for (line, path) in paths(&self.code) {
            let absolute: Vec<&str> = match path.first().map(String::as_str) {
                Some("crate") => path.iter().skip(1).map(String::as_str).collect(),
                Some("super") => {
                    let up = path.iter().take_while(|s| *s == "super").count();
                    let kept = module.len().saturating_sub(up);
                    let rest = path.iter().skip(up).map(String::as_str);
                    module.iter().take(kept).copied().chain(rest).collect()
                }
                _ => continue,
            };
            let Some(used) = absolute.first().copied() else {
                continue;
            };
            if used == part || used == "*" {
                continue;
            }
            if !TABLE.iter().any(|(name, _)| *name == used) {
                self.say(line, &format!("`{used}` at the crate's root is no part"));
            } else if !may.contains(&used) {
                self.say(line, &format!("{part} may not name {used}"));
            } else if let Some((_, _, open)) = NARROW.iter().find(|(a, b, _)| *a == part && *b == used) {
                let named = absolute.get(1).copied().unwrap_or_default();
                if !open.contains(&named) {
                    let open = open.join(", ");
                    self.say(
                        line,
                        &format!("{part} may name only {open} of {used}, not {named}"),
                    );
                }
            }
        }
    }

    fn check_purity(&mut self) {
        let Some(part) = self.part.filter(|p| PURE.contains(p)) else {
            return;
        };
        for (line, path) in paths(&self.code) {
            let path = path.join("::");
            for (banned, what) in IMPURE {
                let hit = path
                    .strip_prefix(banned)
                    .is_some_and(|r| r.is_empty() || r.starts_with("::"));
                if hit {
                    self.say(line, &format!("{part} is pure and names {what} (`{banned}`)"));
                }
            }
        }
        let words: Vec<Token> = self.code.clone();
        for (i, token) in words.iter().enumerate() {
            let next = words.get(i + 1).map_or("", |t| t.text.as_str());
            match token.text.as_str() {
                "async" | "await" => self.say(
                    token.line,
                    &format!("{part} is pure and waits (`{}`)", token.text),
                ),
                "RandomState" => self.say(token.line, &format!("{part} is pure and names randomness")),
                "static" if next == "mut" => {
                    self.say(token.line, &format!("{part} is pure and has `static mut`"))
                }
                "println" | "eprintln" | "print" | "eprint" if next == "!" => {
                    self.say(token.line, &format!("{part} is pure and prints"));
                }
                _ => {}
            }
        }
    }

    fn check_conduct(&mut self) {
        let code = self.code.clone();
        let text = |i: usize| code.get(i).map_or("", |t| t.text.as_str());
        let std_mpsc = paths(&code)
            .iter()
            .any(|(_, p)| p.join("::").starts_with("std::sync::mpsc"));
        for (i, token) in code.iter().enumerate() {
            let (one, two, three) = (text(i + 1), text(i + 2), text(i + 3));
            let reads_time = CLOCKS.contains(&token.text.as_str()) && one == "::" && two == "now";
            if reads_time && self.path != "clock.rs" {
                self.say(token.line, "reads the time; only clock.rs does");
            }
            match token.text.as_str() {
                "unbounded_channel" | "unbounded" if one == "(" || one == "::" => {
                    self.say(token.line, "a channel without a bound");
                }
                "mpsc" if std_mpsc && one == "::" && two == "channel" => {
                    self.say(token.line, "a channel without a bound (use sync_channel)");
                }
                "." if one == "unwrap" && two == "(" && three == ")" => {
                    self.say(token.line, "`unwrap()` outside of tests");
                }
                // With anything but a text in it, it is another method of that name.
                "." if one == "expect" && two == "(" && matches!(three, "\"\"" | "&" | "concat") => {
                    self.say(token.line, "`expect()` outside of tests");
                }
                _ => {}
            }
        }
    }
}

/// Words and punctuation with their lines; comments and what literals hold are left out.
fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
    let mut out: Vec<Token> = Vec::new();
    let (mut i, mut line) = (0, 1);
    let push = |out: &mut Vec<Token>, line: usize, text: &str| {
        out.push(Token {
            line,
            text: text.to_owned(),
        });
    };
    while i < bytes.len() {
        let start = i;
        match at(i) {
            b'\n' => {
                line += 1;
                i += 1;
            }
            b if b.is_ascii_whitespace() => i += 1,
            b'/' if at(i + 1) == b'/' => {
                while i < bytes.len() && at(i) != b'\n' {
                    i += 1;
                }
            }
            b'/' if at(i + 1) == b'*' => {
                let mut depth = 0;
                while i < bytes.len() {
                    match (at(i), at(i + 1)) {
                        (b'/', b'*') => (depth, i) = (depth + 1, i + 2),
                        (b'*', b'/') => (depth, i) = (depth - 1, i + 2),
                        (b, _) => {
                            line += usize::from(b == b'\n');
                            i += 1;
                        }
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            b'"' => {
                i = skip_string(bytes, i, &mut line);
                push(&mut out, line, "\"\"");
            }
            b'\'' => {
                // A lifetime has no closing quote right after one character.
                let escaped = at(i + 1) == b'\\';
                let len = text[i + 1..].chars().next().map_or(1, char::len_utf8);
                if escaped || at(i + 1 + len) == b'\'' {
                    i += if escaped { 3 } else { 1 + len };
                    while i < bytes.len() && at(i) != b'\'' {
                        i += 1;
                    }
                    i += 1;
                    push(&mut out, line, "''");
                } else {
                    i += 1;
                    while word(at(i)) {
                        i += 1;
                    }
                }
            }
            b if word(b) => {
                while word(at(i)) {
                    i += 1;
                }
                let found = &text[start..i];
                let prefix = matches!(found, "r" | "b" | "br" | "c" | "cr");
                if prefix && at(i) == b'"' && !found.contains('r') {
                    i = skip_string(bytes, i, &mut line);
                } else if prefix && found.contains('r') && matches!(at(i), b'"' | b'#') && is_raw(bytes, i) {
                    i = skip_raw(bytes, i, &mut line);
                } else if found == "r" && at(i) == b'#' {
                    i += 1;
                    let name = i;
                    while word(at(i)) {
                        i += 1;
                    }
                    push(&mut out, line, &text[name..i]);
                } else if found == "b" && at(i) == b'\'' {
                    // The quote is read next, as a character.
                } else {
                    push(&mut out, line, found);
                }
            }
            b':' if at(i + 1) == b':' => {
                push(&mut out, line, "::");
                i += 2;
            }
            _ => {
                push(&mut out, line, &text[i..=i]);
                i += 1;
            }
        }
    }
    out
}

fn skip_string(bytes: &[u8], mut i: usize, line: &mut usize) -> usize {
    i += 1;
    while let Some(b) = bytes.get(i) {
        match b {
            b'\\' => i += 1,
            b'"' => return i + 1,
            _ => {}
        }
        *line += usize::from(bytes.get(i) == Some(&b'\n'));
        i += 1;
    }
    i
}

fn is_raw(bytes: &[u8], mut i: usize) -> bool {
    while bytes.get(i) == Some(&b'#') {
        i += 1;
    }
    bytes.get(i) == Some(&b'"')
}

fn skip_raw(bytes: &[u8], mut i: usize, line: &mut usize) -> usize {
    let mut hashes = 0;
    while bytes.get(i) == Some(&b'#') {
        (hashes, i) = (hashes + 1, i + 1);
    }
    i += 1;
    while let Some(b) = bytes.get(i) {
        *line += usize::from(*b == b'\n');
        i += 1;
        let closed = *b == b'"' && (0..hashes).all(|n| bytes.get(i + n) == Some(&b'#'));
        if closed {
            return i + hashes;
        }
    }
    i
}

/// The tokens that do not stand under `#[cfg(test)]`.
fn without_tests(all: &[Token]) -> Vec<Token> {
    let text = |i: usize| all.get(i).map_or("", |t| t.text.as_str());
    let mut out = Vec::new();
    let mut i = 0;
    while i < all.len() {
        if text(i) == "#" && text(i + 1) == "[" && text(i + 2) == "cfg" {
            let end = balanced(all, i + 1);
            let inside = &all[i + 3..end];
            let has = |w: &str| inside.iter().any(|t| t.text == w);
            if has("test") && !has("not") {
                i = end;
                // Further attributes, then one item: to its `;` or to the end of its braces.
                while i < all.len() && text(i) != ";" && text(i) != "{" {
                    i = if matches!(text(i), "[" | "(") {
                        balanced(all, i)
                    } else {
                        i + 1
                    };
                }
                i = if text(i) == "{" { balanced(all, i) } else { i + 1 };
                continue;
            }
        }
        out.push(all[i].clone());
        i += 1;
    }
    out
}

/// The index after the bracket that closes the one at `open`.
fn balanced(all: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in all.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" | "[" | "(" => depth += 1,
            "}" | "]" | ")" => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return i + 1;
                }
            }
            _ => {}
        }
    }
    all.len()
}

/// Every path in the code with its line; a group in a `use` gives one path for each of its leaves.
fn paths(code: &[Token]) -> Vec<(usize, Vec<String>)> {
    let mut out = Vec::new();
    let mut i = 0;
    while i < code.len() {
        let starts = is_word(&code[i]) && code.get(i + 1).is_some_and(|t| t.text == "::");
        let fresh = i == 0 || code[i - 1].text != "::";
        if starts && fresh {
            i = path(code, i, Vec::new(), &mut out);
        } else {
            // `use tokio;` and `use {tokio as t, …}` name a crate without a path.
            if is_word(&code[i]) && i > 0 && matches!(code[i - 1].text.as_str(), "use") {
                out.push((code[i].line, vec![code[i].text.clone()]));
            }
            i += 1;
        }
    }
    out
}

fn is_word(token: &Token) -> bool {
    token.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Reads one path (or group) from `i` on, below `prefix`; returns the index after it.
fn path(code: &[Token], mut i: usize, mut prefix: Vec<String>, out: &mut Vec<(usize, Vec<String>)>) -> usize {
    while let Some(token) = code.get(i) {
        if token.text == "{" {
            i += 1;
            while let Some(t) = code.get(i) {
                match t.text.as_str() {
                    "}" => return i + 1,
                    "," => i += 1,
                    _ => i = path(code, i, prefix.clone(), out).max(i + 1),
                }
            }
            return i;
        }
        if !is_word(token) && token.text != "*" {
            // A turbofish or a generic list ends what is named here.
            break;
        }
        prefix.push(token.text.clone());
        i += 1;
        if code.get(i).is_some_and(|t| t.text == "::") {
            i += 1;
            continue;
        }
        out.push((token.line, prefix));
        // `as other`
        if code.get(i).is_some_and(|t| t.text == "as") {
            i += 2;
        }
        return i;
    }
    if let Some(last) = code.get(i.saturating_sub(1)) {
        out.push((last.line, prefix));
    }
    i
}

mod tests {
    use super::judge;

    /// Offences of one snippet at `path`; the table's own offences (parts that are missing here) are left out.
    fn offences(path: &str, code: &str) -> Vec<String> {
        let text = format!("//! A file of the test.\n{code}");
        judge(&[(path.to_owned(), text)])
            .into_iter()
            .filter(|o| !o.starts_with("the table"))
            .collect()
    }

    #[test]
    fn planted_offences_are_found() {
        for (path, code, want) in [
            (
                "incident/engine.rs",
                "use crate::control::driver;",
                "incident may not name control",
            ),
            (
                "incident/engine.rs",
                "use crate::{types::ids, enforce::slots};",
                "incident may not name enforce",
            ),
            (
                "incident/a/b.rs",
                "use super::super::super::proxy::x;",
                "incident may not name proxy",
            ),
            (
                "incident/mod.rs",
                "fn f() { super::proxy::x(); }",
                "incident may not name proxy",
            ),
            (
                "proxy/emit.rs",
                "fn f(x: crate::incident::rule::Rule) {}",
                "proxy may not name incident",
            ),
            (
                "types/mod.rs",
                "use crate::clock::Clock;",
                "types may not name clock",
            ),
            (
                "enforce/gate.rs",
                "use crate::dialect::meter::Meter;",
                "only models, price, table of dialect, not meter",
            ),
            (
                "admin/view.rs",
                "use crate::incident::plan::decide;",
                "of incident, not plan",
            ),
            (
                "admin/view.rs",
                "use crate::alert::{TargetStatus, Alerts};",
                "not Alerts",
            ),
            (
                "alert/queue.rs",
                "use crate::Everything;",
                "`Everything` at the crate's root is no part",
            ),
            ("alert/queue.rs", "use crate::*;", "`use crate::*`"),
            ("novel/mod.rs", "", "a part that the table does not list"),
            (
                "dialect/sse.rs",
                "use tokio::net::TcpStream;",
                "names a runtime (`tokio`)",
            ),
            (
                "dialect/sse.rs",
                "use std::{collections::HashMap, fs};",
                "names files (`std::fs`)",
            ),
            (
                "dialect/sse.rs",
                "fn f() { std::env::var(\"A\"); }",
                "names the environment",
            ),
            ("dialect/sse.rs", "async fn f() {}", "waits (`async`)"),
            (
                "dialect/sse.rs",
                "fn f() { tracing::info!(\"a\"); }",
                "names logs",
            ),
            (
                "incident/window.rs",
                "use std::time::{Duration, Instant};",
                "names a clock",
            ),
            ("incident/window.rs", "use uuid::Uuid;", "names randomness"),
            ("incident/window.rs", "static mut X: u8 = 0;", "`static mut`"),
            ("incident/window.rs", "fn f() { println!(\"a\"); }", "prints"),
            (
                "control/driver.rs",
                "fn f() { let t = Instant::now(); }",
                "reads the time",
            ),
            (
                "control/driver.rs",
                "fn f() { let t = jiff::Timestamp::now(); }",
                "reads the time",
            ),
            (
                "control/driver.rs",
                "fn f() { tokio::sync::mpsc::unbounded_channel::<u8>(); }",
                "without a bound",
            ),
            (
                "control/driver.rs",
                "use std::sync::mpsc;\nfn f() { mpsc::channel::<u8>(); }",
                "without a bound",
            ),
            (
                "control/driver.rs",
                "fn f(x: Option<u8>) { x.unwrap(); }",
                "`unwrap()` outside",
            ),
            (
                "control/driver.rs",
                "fn f(x: Option<u8>) { x\n  .expect(\"why\"); }",
                "`expect()` outside",
            ),
            (
                "control/driver.rs",
                "fn f(a: &'static str) { let c = '\\''; x.unwrap() }",
                "`unwrap()` outside",
            ),
            (
                "control/driver.rs",
                "fn f() { let s = r#\"a\"b\"#; x.unwrap() }",
                "`unwrap()` outside",
            ),
            (
                "control/driver.rs",
                "#[cfg(not(test))]\nfn f() { x.unwrap() }",
                "`unwrap()` outside",
            ),
            (
                "control/driver.rs",
                "#[cfg(test)]\nuse a::{b};\nfn f() { x.unwrap() }",
                "`unwrap()` outside",
            ),
        ] {
            let found = offences(path, code);
            assert!(
                found.iter().any(|o| o.contains(want)),
                "{path}: `{code}` should be found as `{want}`, found {found:?}"
            );
        }
    }

    #[test]
    fn what_is_allowed_passes() {
        for (path, code) in [
            (
                "proxy/emit.rs",
                "use crate::{clock::Clock, types::{ids, time::Mono}};\nuse super::exchange;",
            ),
            (
                "proxy/upstream/pool.rs",
                "use super::super::worker::Worker;\nuse super::link::Link;",
            ),
            ("enforce/policy.rs", "use crate::dialect::price::PriceTable;"),
            ("admin/view.rs", "use crate::incident::record::IncidentRecord;"),
            ("clock.rs", "fn f() { Instant::now(); }"),
            (
                "dialect/json.rs",
                "// tokio::spawn(async {})\n/* x.unwrap() /* nested */ std::fs */\nfn f() {}",
            ),
            (
                "dialect/json.rs",
                "const S: &str = \"crate::proxy async \\\" .unwrap()\";",
            ),
            (
                "dialect/json.rs",
                "const C: [u8; 2] = [b'\"', b'\\''];\nconst D: char = '\"';",
            ),
            (
                "dialect/json.rs",
                "fn asynchronous<'a>(x: &'a str) -> &'a str { x.unwrap_or_default() }",
            ),
            (
                "alert/queue.rs",
                "use tokio::sync::mpsc;\nfn f() { mpsc::channel::<u8>(1); }",
            ),
            (
                "alert/queue.rs",
                "#[cfg(test)]\nmod tests { use crate::config::x; fn f() { x.unwrap(); } }",
            ),
            (
                "alert/queue.rs",
                "#[expect(clippy::unwrap_used, reason = \"a\")]\nfn f() {}",
            ),
            ("cli/run.rs", "use crate::app;\nuse crate::proxy::Drain;"),
        ] {
            assert_eq!(offences(path, code), Vec::<String>::new(), "{path}: `{code}`");
        }
    }

    #[test]
    fn files_of_tests_are_free() {
        let file = |path: &str, text: &str| (path.to_owned(), format!("//! A file of the test.\n{text}"));
        let free = "use crate::config::x;\nfn f() { x.unwrap(); }";
        let judged = judge(&[
            file("alert/mod.rs", "mod lane;\n#[cfg(test)]\npub(super) mod tests;"),
            file("alert/tests.rs", free),
            file("alert/tests/more.rs", free),
            file("alert/lane.rs", "#[cfg(test)]\nmod trial;"),
            file("alert/lane/trial.rs", free),
            file("alert/other.rs", free),
        ]);
        let judged: Vec<_> = judged.iter().filter(|o| o.starts_with("src/")).collect();
        assert!(
            judged.iter().all(|o| o.starts_with("src/alert/other.rs:")),
            "{judged:?}"
        );
        assert_eq!(judged.len(), 2);
    }

    #[test]
    fn form_is_held() {
        let judge_one = |text: &str| judge(&[("proxy/a.rs".to_owned(), text.to_owned())]);
        let found = |text: &str, want: &str| judge_one(text).iter().any(|o| o.contains(want));
        assert!(found("use std::fmt;\n", "does not start with one `//!` sentence"));
        assert!(found(
            "//! Words without end\n",
            "does not start with one `//!` sentence"
        ));
        assert!(!found("//! What this holds.\n", "does not start with"));
        assert!(!found(
            "//! What this holds,\n//! over two lines.\n",
            "does not start with"
        ));
        let body = |n: usize| {
            format!(
                "//! What this holds.\n{}",
                "const A: u8 = 0;\n\n// why\n".repeat(n)
            )
        };
        assert!(found(&body(601), "601 lines of code"));
        assert!(!found(&body(600), "lines of code"));
        let test = format!(
            "{}#[cfg(test)]\nmod tests {{\n{}}}\n",
            body(590),
            "fn f() {}\n".repeat(99)
        );
        assert!(!found(&test, "lines of code"));
    }
}
