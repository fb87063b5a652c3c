//! Text that arrives in deltas: counted in Unicode scalar values, and kept where it is wanted.

use crate::dialect::cursor::{Piece, Str, scalars};

/// A text so far.
#[derive(Debug, Default)]
pub(in crate::dialect) struct Text {
    chars: u64,
    /// The first half of a surrogate pair whose other half may come with the next delta; 0 for none. It is counted.
    high: u16,
    kept: String,
}

impl Text {
    /// Adds a delta; up to `keep` bytes of the text are kept.
    #[inline]
    pub(super) fn push(&mut self, delta: Str<'_>, keep: usize) {
        if keep == 0 {
            if let Some(plain) = delta.plain() {
                if !plain.is_empty() {
                    self.count(Piece::Plain(plain));
                }
                return;
            }
            delta.pieces(|piece| self.count(piece));
        } else {
            delta.pieces(|piece| self.add(piece, keep));
        }
    }

    /// Unicode scalar values so far.
    pub(in crate::dialect) const fn chars(&self) -> u64 {
        self.chars
    }

    /// What was kept of it.
    pub(in crate::dialect) fn into_kept(mut self) -> String {
        if self.high != 0 {
            self.kept.push(char::REPLACEMENT_CHARACTER);
        }
        self.kept
    }

    #[inline]
    fn count(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Plain(bytes) => {
                self.chars += scalars(bytes);
                self.high = 0;
            }
            Piece::Unit(unit) => {
                let second = self.high != 0 && (0xDC00..0xE000).contains(&unit);
                self.chars += u64::from(!second);
                self.high = if (0xD800..0xDC00).contains(&unit) { unit } else { 0 };
            }
        }
    }

    fn add(&mut self, piece: Piece<'_>, keep: usize) {
        let high = self.high;
        self.count(piece);
        let room = keep.saturating_sub(self.kept.len());
        match piece {
            Piece::Plain(bytes) => {
                if high != 0 {
                    self.kept.push(char::REPLACEMENT_CHARACTER);
                }
                let bytes = bytes.get(..room).unwrap_or(bytes);
                self.kept.push_str(&String::from_utf8_lossy(bytes));
            }
            Piece::Unit(_) if room == 0 => {}
            Piece::Unit(unit) => {
                let pair = [high, unit];
                // A first half waits for what follows it.
                let done = if self.high != 0 {
                    pair.get(..1)
                } else {
                    pair.get(..)
                };
                let done = done.unwrap_or_default();
                let done = if high == 0 {
                    done.get(1..).unwrap_or_default()
                } else {
                    done
                };
                let decoded = char::decode_utf16(done.iter().copied());
                self.kept
                    .extend(decoded.map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dialect::cursor::Cursor;

    fn text(deltas: &[&str], keep: usize) -> (u64, String) {
        let mut text = Text::default();
        for delta in deltas {
            let json = format!("\"{delta}\"");
            text.push(Cursor::new(json.as_bytes()).string().unwrap(), keep);
        }
        (text.chars(), text.into_kept())
    }

    #[test]
    fn a_pair_may_be_split_over_deltas() {
        assert_eq!(text(&[r"a\ud83d", r"\ude00b"], 100), (3, "a😀b".to_owned()));
        assert_eq!(text(&[r"a\ud83d", r"", r"\ude00b"], 0).0, 3);
        assert_eq!(text(&[r"\ud83d", "b"], 100), (2, "\u{FFFD}b".to_owned()));
        assert_eq!(
            text(&[r"\ude00", r"\ud83d"], 100),
            (2, "\u{FFFD}\u{FFFD}".to_owned())
        );
        assert_eq!(text(&[r"\ud83d\ud83d\ude00"], 100), (2, "\u{FFFD}😀".to_owned()));
    }

    #[test]
    fn no_more_is_kept_than_asked() {
        let (chars, kept) = text(&["0123456789", "0123456789"], 12);
        assert_eq!((chars, kept.as_str()), (20, "012345678901"));
    }

    proptest! {
        #[test]
        fn any_text_in_any_deltas(parts in proptest::collection::vec(any::<String>(), 0..8)) {
            let whole: String = parts.concat();
            let spelt: Vec<String> = parts
                .iter()
                .map(|p| serde_json::to_string(p).unwrap())
                .map(|p| p.strip_prefix('"').and_then(|p| p.strip_suffix('"')).unwrap().to_owned())
                .collect();
            let spelt: Vec<&str> = spelt.iter().map(String::as_str).collect();
            let n = whole.chars().count() as u64;
            prop_assert_eq!(text(&spelt, usize::MAX), (n, whole));
            prop_assert_eq!(text(&spelt, 0).0, n);
        }
    }
}
