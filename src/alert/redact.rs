//! Takes out of texts what must not leave: credentials, and all of a URL but its origin.

use crate::types::notice::{Fact, Notice};

/// What stands where a secret stood.
const MARK: &str = "[redacted]";
/// How keys begin that are known by their beginning, with the shortest length that makes them one.
const KEYS: &[(&str, usize)] = &[
    ("sk-", 12),
    ("sk_live_", 12),
    ("sk_test_", 12),
    ("rk_live_", 12),
    ("pk-lf-", 12),
    ("xoxb-", 12),
    ("xoxp-", 12),
    ("xoxa-", 12),
    ("xapp-", 12),
    ("ghp_", 16),
    ("gho_", 16),
    ("ghs_", 16),
    ("github_pat_", 16),
    ("glpat-", 12),
    ("AKIA", 16),
    ("ASIA", 16),
    ("AIza", 20),
    ("ya29.", 16),
    ("hf_", 16),
    ("gsk_", 16),
    ("xai-", 16),
    ("whsec_", 12),
    ("eyJ", 24),
];
/// Words after which a credential follows.
const SCHEMES: &[&str] = &["bearer", "basic"];
/// Names whose value is a credential, as in `api_key=…` or `password: …`.
const NAMES: &[&str] = &[
    "api_key",
    "api-key",
    "apikey",
    "x-api-key",
    "access_token",
    "token",
    "secret",
    "client_secret",
    "password",
    "passwd",
    "pwd",
    "authorization",
    "signature",
    "sig",
];

/// The notice without what must not leave. Its own links stay: they are meant for people and lead to fusebox.
pub(super) fn notice(notice: &Notice) -> Notice {
    let mut clean = notice.clone();
    clean.title = line(&notice.title);
    clean.subject = line(&notice.subject);
    clean.facts = notice
        .facts
        .iter()
        .map(|f| Fact {
            name: line(&f.name),
            value: if is_secret_name(&f.name) {
                MARK.to_owned()
            } else {
                line(&f.value)
            },
        })
        .collect();
    clean.agents = notice.agents.iter().map(|a| line(a.as_str()).into()).collect();
    clean.acknowledged_by = notice.acknowledged_by.as_deref().map(line);
    if let Some(ask) = &mut clean.approval {
        ask.what = line(&ask.what);
        ask.why = line(&ask.why);
    }
    clean
}

/// The same in one line: a name with a line break or an escape sequence in it would pass for a line of ours.
fn line(given: &str) -> String {
    text(given)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// A text without what must not leave.
pub(super) fn text(given: &str) -> String {
    let mut out = String::with_capacity(given.len());
    let mut before = Before::Nothing;
    for piece in given.split_inclusive(is_border) {
        let word = piece.trim_end_matches(is_border);
        let border = piece.strip_prefix(word).unwrap_or_default();
        if word.is_empty() {
            out.push_str(border);
            continue;
        }
        let next = Before::of(word, before);
        let secret = match before {
            Before::Credential => next != Before::Scheme,
            Before::Scheme => is_credential(word),
            Before::Name | Before::Nothing => false,
        };
        if secret {
            out.push_str(MARK);
        } else {
            hide(word, &mut out);
        }
        before = next;
        out.push_str(border);
    }
    out
}

/// What the last word makes of the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    /// The name of a secret: an equals sign may follow.
    Name,
    /// A credential follows, if it looks like one: `basic` is a word too.
    Scheme,
    /// A credential follows.
    Credential,
}

impl Before {
    fn of(word: &str, before: Self) -> Self {
        let name = word.trim_end_matches([':', '=']);
        let scheme = SCHEMES.iter().any(|s| word.eq_ignore_ascii_case(s));
        let assigned = name.len() < word.len();
        match (before, name.is_empty(), is_secret_name(name)) {
            _ if scheme => Self::Scheme,
            (Self::Name, true, _) => Self::Credential,
            (_, false, true) if assigned => Self::Credential,
            (_, false, true) => Self::Name,
            _ => Self::Nothing,
        }
    }
}

/// Whether a word looks made by a machine: not short, and not of small letters alone.
fn is_credential(word: &str) -> bool {
    word.len() >= 6 && !word.chars().all(char::is_lowercase)
}

fn is_border(c: char) -> bool {
    c.is_whitespace()
        || c.is_control()
        || matches!(
            c,
            '"' | '\'' | '`' | '<' | '>' | '(' | ')' | '{' | '}' | ',' | ';' | '|'
        )
}

/// One word without what must not leave.
fn hide(word: &str, out: &mut String) {
    if let Some((before, rest)) = word.split_once("://") {
        let scheme_at = before
            .rfind(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.'))
            .map_or(0, |at| {
                at + before
                    .get(at..)
                    .and_then(|s| s.chars().next())
                    .map_or(1, char::len_utf8)
            });
        let (ahead, scheme) = before.split_at_checked(scheme_at).unwrap_or((before, ""));
        hide_assigned(ahead, out);
        out.push_str(scheme);
        out.push_str("://");
        origin(rest, out);
        return;
    }
    hide_assigned(word, out);
}

/// Host and port of what follows `://`; a path, a query and credentials are told to have been there at most.
fn origin(rest: &str, out: &mut String) {
    let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(end).unwrap_or((rest, ""));
    let host = match authority.rsplit_once('@') {
        Some((_, host)) => {
            out.push_str(MARK);
            out.push('@');
            host
        }
        None => authority,
    };
    hide_keys(host, out);
    if path.len() > 1 {
        out.push('/');
        out.push_str(MARK);
    } else {
        out.push_str(path);
    }
}

/// `name=value` with a secret's name loses the value; all else loses keys.
fn hide_assigned(word: &str, out: &mut String) {
    let mut first = true;
    for part in word.split('&') {
        if !first {
            out.push('&');
        }
        first = false;
        match part.split_once(['=', ':']) {
            Some((name, value)) if !value.is_empty() && is_secret_name(name) => {
                out.push_str(name);
                out.push_str(part.get(name.len()..=name.len()).unwrap_or("="));
                out.push_str(MARK);
            }
            _ => hide_keys(part, out),
        }
    }
}

fn is_secret_name(name: &str) -> bool {
    let name = name.rsplit(['?', '.', '[']).next().unwrap_or(name);
    NAMES.iter().any(|n| name.eq_ignore_ascii_case(n))
}

/// The text without keys that are known by how they begin, wherever a word begins in it.
fn hide_keys(word: &str, out: &mut String) {
    let mut rest = word;
    let mut before = None;
    while let Some(c) = rest.chars().next() {
        let begins = !before.is_some_and(|b: char| b.is_alphanumeric());
        let key = begins
            .then(|| {
                KEYS.iter()
                    .find(|(start, min)| rest.starts_with(start) && key_length(rest) >= *min)
            })
            .flatten();
        if key.is_some() {
            out.push_str(MARK);
            let (_, after) = rest.split_at_checked(key_length(rest)).unwrap_or((rest, ""));
            rest = after;
            before = None;
        } else {
            out.push(c);
            before = Some(c);
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
    }
}

/// How many bytes from the beginning could be of one key.
fn key_length(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.' | '/' | '+' | '=' | '~'))
        .unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alert::tests;
    use crate::types::notice::NoticeEvent;

    #[test]
    fn what_leaves_and_what_does_not() {
        for (given, want) in [
            (
                "agent-prod-01 at 9,812 tokens per execution (limit 5,000)",
                "agent-prod-01 at 9,812 tokens per execution (limit 5,000)",
            ),
            ("risk-assessor and task-runner", "risk-assessor and task-runner"),
            ("key sk-proj-abcdefghijklmnop here", "key [redacted] here"),
            ("(sk-ant-api03-abcdefghijklmnop)", "([redacted])"),
            ("agent:sk-ant-api03-abcdefghijklmnop", "agent:[redacted]"),
            ("sk-short", "sk-short"),
            (
                "Authorization: Bearer abc.def",
                "Authorization: Bearer [redacted]",
            ),
            ("authorization: abc", "authorization: [redacted]"),
            ("bearer  two-blanks", "bearer  [redacted]"),
            (
                "https://user:pw@host.example:8443/a/b?token=x",
                "https://[redacted]@host.example:8443/[redacted]",
            ),
            (
                "https://hooks.slack.com/services/T0/B0/xyz failed",
                "https://hooks.slack.com/[redacted] failed",
            ),
            ("see https://host.example/ now", "see https://host.example/ now"),
            (
                "url=postgres://u:p@db/x",
                "url=postgres://[redacted]@db/[redacted]",
            ),
            ("api_key=abc&x=1", "api_key=[redacted]&x=1"),
            ("\"password\":\"hunter2\"", "\"password\":\"[redacted]\""),
            ("a basic agent exceeded", "a basic agent exceeded"),
            ("Basic dXNlcjpwdw==", "Basic [redacted]"),
            ("tokens: 12", "tokens: 12"),
            ("password = hunter2", "password = [redacted]"),
            ("the token is spent", "the token is spent"),
            ("token: abc", "token: [redacted]"),
            ("AKIAIOSFODNN7EXAMPLE", "[redacted]"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.sig", "[redacted]"),
            ("ä://ö@ü/ß", "ä://[redacted]@ü/[redacted]"),
            ("", ""),
        ] {
            assert_eq!(text(given), want, "{given}");
        }
    }

    #[test]
    fn every_text_of_a_notice_is_looked_at() {
        let canary = "sk-canary-0123456789abcdef";
        let mut n = tests::notice("n", NoticeEvent::Opened, "inc");
        n.title = format!("title {canary}");
        n.subject = canary.to_owned();
        n.agents = vec![canary.into()];
        n.acknowledged_by = Some(format!("me {canary}"));
        n.facts = vec![
            Fact {
                name: format!("a {canary}"),
                value: canary.to_owned(),
            },
            Fact {
                name: "password".to_owned(),
                value: "canary-0123456789abcdef".to_owned(),
            },
        ];
        n.approval = Some(tests::approval());
        if let Some(ask) = &mut n.approval {
            ask.what = canary.to_owned();
            ask.why = canary.to_owned();
        }
        let clean = serde_json::to_string(&notice(&n)).unwrap();
        assert!(!clean.contains("canary-0123456789abcdef"), "{clean}");
    }

    #[test]
    fn a_name_is_one_line() {
        let mut n = tests::notice("n", NoticeEvent::Opened, "inc");
        n.subject = "a\nSeverity: info\u{1b}[31m".to_owned();
        assert_eq!(notice(&n).subject, "a Severity: info [31m");
    }

    proptest::proptest! {
        #[test]
        fn never_panics_and_says_the_same_twice(given in "(?s)[a-z:/@?=&\"ä sk-]{0,60}|.{0,40}") {
            let once = text(&given);
            proptest::prop_assert_eq!(text(&once), once);
        }

        #[test]
        fn a_key_is_found_wherever_it_stands(before in "[ ,:;(\"]{0,3}", after in "[ ,;)\"]{0,3}") {
            let all = text(&format!("{before}sk-abcdefghijklmnopqrstuvwx{after}"));
            proptest::prop_assert!(!all.contains("abcdefghijklmnop"), "{}", all);
        }
    }
}
