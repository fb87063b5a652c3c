//! Text made fit for a receiver: harmless in its markup and no longer than it takes.

/// What characters mean to the receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Markup {
    /// Nothing.
    None,
    /// `&`, `<` and `>` begin and end mentions and links.
    Slack,
    /// The same, and there is formatting by `*`, `_`, `~` and backticks.
    SlackFormatted,
    /// Markdown, mentions, and addresses that become links.
    Discord,
    /// `{{` begins a function of the card.
    Card,
}

/// The parts in one, made harmless, cut to `max` UTF-16 units between two characters and never inside an escape.
/// Receivers refuse an empty text, so there is always something.
pub(super) fn fitted(markup: Markup, parts: &[&str], max: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    let mut end_of_room = 0;
    let mut piece = String::with_capacity(8);
    let mut before = ' ';
    for c in parts.iter().flat_map(|p| p.chars()) {
        piece.clear();
        write(markup, before, c, &mut piece);
        before = c;
        let size: usize = piece.chars().map(char::len_utf16).sum();
        if used + size > max {
            out.truncate(end_of_room);
            out.push('…');
            return out;
        }
        out.push_str(&piece);
        used += size;
        if used < max {
            // Up to here there is room left for the ellipsis.
            end_of_room = out.len();
        }
    }
    if out.trim().is_empty() {
        out.push('–');
    }
    out
}

fn write(markup: Markup, before: char, c: char, out: &mut String) {
    if c != '\n' && (c.is_control() || is_direction(c)) {
        out.push(' ');
        return;
    }
    match (markup, c) {
        (Markup::Slack | Markup::SlackFormatted, '&') => out.push_str("&amp;"),
        (Markup::Slack | Markup::SlackFormatted, '<') => out.push_str("&lt;"),
        (Markup::Slack | Markup::SlackFormatted, '>') => out.push_str("&gt;"),
        // Slack knows no escape: what cannot be seen keeps the mark from beginning a word, which is where it counts.
        (Markup::SlackFormatted, '*' | '~' | '`' | '_') if !before.is_alphanumeric() => {
            out.push('\u{200b}');
            out.push(c);
        }
        (Markup::Discord, '@') => out.push_str("@\u{200b}"),
        (
            Markup::Discord,
            '\\' | '*' | '_' | '~' | '`' | '|' | '<' | '>' | '#' | '[' | ']' | '(' | ')' | ':' | '-',
        ) => {
            out.push('\\');
            out.push(c);
        }
        (Markup::Card, '{') => out.push_str("{\u{200b}"),
        _ => out.push(c),
    }
}

/// Marks that turn the direction of writing: with them a text shows as another.
const fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_leaves_whole_escapes() {
        use Markup::{Card, Discord, None, Slack, SlackFormatted};
        let cases = [
            (Slack, "abc", 3, "abc"),
            (Slack, "abcd", 3, "ab…"),
            (Slack, "a&b", 4, "a…"),
            (Slack, "a&b", 7, "a&amp;b"),
            (Slack, "&", 4, "…"),
            (Slack, "🔴🔴", 4, "🔴🔴"),
            (Slack, "🔴🔴", 3, "🔴…"),
            (Slack, "", 5, "–"),
            (Slack, "\u{1b}[31m", 9, " [31m"),
            (SlackFormatted, "a_b *c* <!d>", 40, "a_b \u{200b}*c* &lt;!d&gt;"),
            (None, "a<b>&\u{202e}c\u{7}", 20, "a<b>& c "),
            (
                Discord,
                "**@everyone** [x](y)",
                60,
                "\\*\\*@\u{200b}everyone\\*\\* \\[x\\]\\(y\\)",
            ),
            (Discord, "a*", 2, "a…"),
            (Card, "{{DATE(1)}}", 20, "{\u{200b}{\u{200b}DATE(1)}}"),
            (Card, "a\nb", 3, "a\nb"),
        ];
        for (markup, text, max, want) in cases {
            assert_eq!(fitted(markup, &[text], max), want, "{text:?} in {max}");
        }
    }
}
