//! The page on which a question is answered: plain HTML, no script, nothing from elsewhere.

use std::fmt::{self, Display, Write};

use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::{
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use sha2::Digest;

use super::error::Problem;
use crate::incident::record::{ApprovalRecord, ApprovalState, IncidentRecord};

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const ROBOTS: HeaderName = HeaderName::from_static("x-robots-tag");
/// Agents that are named; of more, the number is told.
const NAMED: usize = 20;

const STYLE: &str = "\
:root{color-scheme:light dark}\
body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.4rem}dt{font-weight:600;margin-top:.6rem}dd{margin:0;overflow-wrap:anywhere}\
.said{border-left:.3rem solid;padding:.4rem .8rem;margin:1rem 0}\
label{display:block;margin-top:.8rem}input,textarea{font:inherit;width:100%;box-sizing:border-box;padding:.4rem}\
button{font:inherit;padding:.5rem 1.2rem;margin:1rem .6rem 0 0;cursor:pointer}";

/// The page of a question; `said` is what is to be told above it.
pub(super) fn question(
    asked: &ApprovalRecord,
    incident: Option<&IncidentRecord>,
    user: Option<&str>,
    said: Option<&str>,
) -> Response {
    let mut body = String::with_capacity(4096);
    // Writing to a string cannot fail.
    write_question(&mut body, asked, incident, user, said).ok();
    whole(StatusCode::OK, "fusebox: approval", &body)
}

/// A refusal, for whoever came by a link.
pub(super) fn refused(problem: &Problem) -> Response {
    let (status, message, hint) = problem.parts();
    let body = format!(
        "<h1>fusebox</h1><p class=\"said\">{}</p><p>{}</p>",
        Text(message),
        Text(hint)
    );
    whole(status, "fusebox", &body)
}

fn write_question(
    out: &mut String,
    asked: &ApprovalRecord,
    incident: Option<&IncidentRecord>,
    user: Option<&str>,
    said: Option<&str>,
) -> fmt::Result {
    write!(out, "<h1>May fusebox do this?</h1>")?;
    if let Some(said) = said {
        write!(out, "<p class=\"said\" role=\"status\">{}</p>", Text(said))?;
    }
    out.push_str("<dl>");
    row(out, "What would be done", &asked.what)?;
    row(out, "To", &asked.subject)?;
    row(out, "Why it is asked", &asked.why)?;
    row(out, "Incident", &format!("{} ({})", asked.incident, asked.rule))?;
    if let Some(i) = incident {
        row(
            out,
            "State",
            &format!("{}, {}", i.state.name(), i.severity.name()),
        )?;
        if !i.metric.is_empty() {
            let normal = i.baseline.map_or(String::new(), |b| format!(", normal {b}"));
            let now = i.current.map_or(String::new(), |c| format!(", now {c}"));
            let evidence = format!(
                "{} was {} (limit {}, worst {}{now}{normal}; {} samples)",
                i.metric, i.value, i.threshold, i.worst, i.samples
            );
            row(out, "Evidence", &evidence)?;
        }
        row(out, "Whom it would bind", &bound(i))?;
        row(out, "Opened", &i.opened.to_string())?;
    }
    row(out, "Asked", &asked.requested.to_string())?;
    row(out, "If nobody answers", &at_timeout(asked))?;
    row(out, "Question", asked.id.as_str())?;
    out.push_str("</dl>");
    if asked.state != ApprovalState::Needed {
        let by = asked
            .by
            .as_deref()
            .map_or(String::new(), |by| format!(" by {by}"));
        let at = asked.decided.map_or(String::new(), |at| format!(" at {at}"));
        return write!(
            out,
            "<p class=\"said\">This question is closed: {}{}{}. Nothing can be answered any more.</p>",
            Text(asked.state.name()),
            Text(&by),
            Text(&at)
        );
    }
    out.push_str("<form method=\"post\" autocomplete=\"off\">");
    match user {
        Some(user) => write!(out, "<p>You are {}.</p>", Text(user))?,
        None => out.push_str(
            "<label>Your name, for the record (it cannot be verified)\
             <input name=\"name\" required maxlength=\"100\"></label>",
        ),
    }
    out.push_str(
        "<label>Reason, if you like<textarea name=\"reason\" rows=\"2\" maxlength=\"1000\"></textarea></label>\
         <button name=\"decision\" value=\"approve\">Approve</button>\
         <button name=\"decision\" value=\"deny\">Deny</button></form>",
    );
    Ok(())
}

fn bound(incident: &IncidentRecord) -> String {
    if incident.agents.is_empty() {
        return match incident.subject_kind.as_str() {
            "fleet" => "every agent".to_owned(),
            kind => format!("{kind} {}", incident.subject),
        };
    }
    let names: Vec<&str> = incident.agents.iter().take(NAMED).map(|a| a.as_str()).collect();
    let more = incident.agents.len().saturating_sub(NAMED);
    let rest = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    format!("{} agents: {}{rest}", incident.agents.len(), names.join(", "))
}

fn at_timeout(asked: &ApprovalRecord) -> String {
    let then = match asked.on_timeout.as_str() {
        "approve" => "the step is taken",
        "keep" => "the question stands and people are told again",
        _ => "the step is not taken",
    };
    format!("{then} at {}", asked.expires)
}

fn row(out: &mut String, name: &str, value: &str) -> fmt::Result {
    write!(out, "<dt>{}</dt><dd>{}</dd>", Text(name), Text(value))
}

fn whole(status: StatusCode, title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{}</title>\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{STYLE}</style></head>\
         <body><main>{body}</main></body></html>",
        Text(title)
    );
    let style = STANDARD.encode(sha2::Sha256::digest(STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    );
    let mut response = (status, html).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HTML);
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    // The link is a key: no other site gets to see it. Our own must, or a browser hides where the form comes from.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(ROBOTS, HeaderValue::from_static("noindex"));
    response
}

/// Text in HTML: no character of it is markup, and none controls anything.
struct Text<'a>(&'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() || is_hidden(c) => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Characters that turn the order of text around, or have no width.
fn is_hidden(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let evil = "<script>alert('1')</script>&\"\u{1b}[2J\u{202e}";
        assert_eq!(
            Text(evil).to_string(),
            "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&quot;\u{fffd}[2J\u{fffd}"
        );
    }
}
