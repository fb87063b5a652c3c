//! Tells from the end of an output whether a model goes round in circles: the same short cycle, over and over.

/// How much of the end of an output has to be one cycle, in bytes as they are spelt in JSON: some 700 tokens.
const RUN: usize = 3072;
/// Longest cycle, in bytes: what is repeated is seen at least twelve times.
const LONGEST: usize = 256;
/// How many bytes have to come before the end is looked at again.
const STRIDE: usize = 512;

/// Words that data are full of.
const DATA: [&[u8]; 7] = [b"null", b"true", b"false", b"nan", b"none", b"na", b"inf"];

/// The end of an output.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// Its last bytes: at most twice [`RUN`] of them.
    bytes: Vec<u8>,
    fresh: usize,
    circles: bool,
}

impl Tail {
    /// Takes the next piece of the output, as it is spelt between the quotes of JSON.
    pub(super) fn push(&mut self, piece: &[u8]) {
        let piece = piece.get(piece.len().saturating_sub(RUN)..).unwrap_or(piece);
        self.bytes.extend_from_slice(piece);
        self.fresh = self.fresh.saturating_add(piece.len());
        if self.bytes.len() > 2 * RUN {
            self.bytes.drain(..self.bytes.len() - RUN);
        }
        if self.fresh < STRIDE || self.bytes.len() < RUN {
            return;
        }
        self.fresh = 0;
        let run = self.bytes.get(self.bytes.len() - RUN..).unwrap_or_default();
        self.circles = period(run)
            .and_then(|p| run.get(RUN - p..))
            .is_some_and(is_speech);
    }

    /// Whether the output was going round in circles when it was looked at last.
    pub(super) const fn circles(&self) -> bool {
        self.circles
    }
}

/// The length of the shortest cycle that all of `run` is made of, if there is a short one.
fn period(run: &[u8]) -> Option<usize> {
    // Knuth, Morris, Pratt: how much of the beginning the end is like, for each prefix.
    let mut border = Vec::with_capacity(run.len());
    border.push(0_usize);
    let mut k = 0;
    for &byte in run.get(1..)? {
        while k > 0 && run.get(k) != Some(&byte) {
            k = *border.get(k - 1)?;
        }
        k += usize::from(run.get(k) == Some(&byte));
        border.push(k);
    }
    let period = run.len() - k;
    (period <= LONGEST).then_some(period)
}

/// Whether a cycle is speech. Tables, code, blanks, rows of numbers and JSON repeat themselves for good reason.
fn is_speech(cycle: &[u8]) -> bool {
    let mut word = Vec::new();
    let (mut first_letter, mut letters_differ, mut speech) = (None, false, false);
    // Where in a word the cycle begins is chance: only what comes after a first blank is looked at.
    let (mut begun, mut escaped) = (false, false);
    for &byte in cycle.iter().chain(cycle) {
        let letter = match byte {
            b'"' if escaped => return false,
            b'\\' if !escaped => {
                escaped = true;
                continue;
            }
            b'{' | b'}' | b'[' | b']' | b'<' | b'>' | b'|' | b';' | b'=' | b'/' | b'`' | b'_' => {
                return false;
            }
            b => !std::mem::take(&mut escaped) && (b.is_ascii_alphanumeric() || !b.is_ascii()),
        };
        if letter {
            word.push(byte.to_ascii_lowercase());
            if begun && !byte.is_ascii_digit() {
                let first = *first_letter.get_or_insert(byte);
                letters_differ |= first != byte;
            }
            continue;
        }
        let digits = word.iter().all(u8::is_ascii_digit);
        speech |= begun && !digits && !DATA.contains(&word.as_slice());
        begun = true;
        word.clear();
    }
    if begun {
        return letters_differ && speech;
    }
    // One endless word.
    let first = cycle.first();
    let data = DATA.iter().any(|d| {
        let twice = d.repeat(2);
        twice.len() >= cycle.len()
            && memchr::memmem::find(&twice, word.get(..cycle.len()).unwrap_or_default()).is_some()
    });
    !data && cycle.iter().any(|b| Some(b) != first) && !cycle.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether it is found, whatever pieces it comes in.
    fn found(text: &str) -> bool {
        let spelt = serde_json::to_string(text).unwrap();
        let raw = &spelt.as_bytes()[1..spelt.len() - 1];
        let results: Vec<bool> = [1, 3, 16, 700, 100_000]
            .into_iter()
            .map(|size| {
                let mut tail = Tail::default();
                let mut ever = false;
                for piece in raw.chunks(size) {
                    tail.push(piece);
                    ever |= tail.circles();
                    assert!(tail.bytes.capacity() <= 8 * RUN);
                }
                ever
            })
            .collect();
        assert!(
            results.iter().all(|r| *r == results[0]),
            "{results:?} for {text:.60}"
        );
        results[0]
    }

    #[test]
    fn circles_are_found() {
        for cycle in [
            "I am sorry, I cannot do that. ",
            "The answer is 42.\n",
            "ha",
            "très bien, ",
            "もう一度。",
            "Let me check again:\n\n- first\n- second\n",
            "and the cat sat on the mat, while the dog looked at it and the bird sang of it; no: "
                .trim_end_matches("; no: "),
        ] {
            let long = cycle.repeat(2 * RUN / cycle.len() + 2);
            assert!(found(&long), "{cycle}");
            assert!(found(&format!("Something else first. {long}")), "{cycle}");
            // A short run is a manner of speaking.
            assert!(!found(&cycle.repeat(RUN / 2 / cycle.len())), "{cycle}");
        }
    }

    #[test]
    fn what_repeats_itself_for_good_reason_is_left_alone() {
        for cycle in [
            " ",
            "\n",
            "\t",
            "    \n",
            "-",
            "=",
            "a",
            "AAAA",
            "!",
            "*",
            "0, ",
            "0.0, 1.0, ",
            "1 0 1 0\n",
            "|---",
            "| yes | no |\n",
            "{\"a\": null}, ",
            "[0, 1], ",
            "\"x\", ",
            "null, ",
            "true, false, ",
            "NaN ",
            "<td>x</td>\n",
            "    pass;\n",
            "x = 1\n",
            "    }\n",
            "null",
            "a/b ",
            "`x` ",
            "foo_bar ",
            "1999\n",
            "A\n",
            "b, ",
            "nan nan ",
            "12, 13, 14\n",
        ] {
            let long = cycle.repeat(4 * RUN / cycle.len());
            assert!(!found(&long), "{cycle:?}");
        }
    }

    #[test]
    fn what_changes_is_no_circle() {
        let counted: String = (0..2000).map(|i| format!("This is line number {i}.\n")).collect();
        assert!(!found(&counted));
        let wide = format!("{}\n", "abc def ghi ".repeat(30).replace("ghi abc", "ghi. Abc"));
        let wide: String = (0..30).map(|i| wide.replace("def", &format!("def{i}"))).collect();
        assert!(!found(&wide));
    }

    #[test]
    fn a_way_out_of_the_circle_is_seen() {
        let mut tail = Tail::default();
        tail.push("go on. ".repeat(1000).as_bytes());
        assert!(tail.circles());
        tail.push(
            "And then something else happened, which took some words to tell. "
                .repeat(9)
                .as_bytes(),
        );
        assert!(!tail.circles());
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..900), 0..20)) {
            let mut tail = Tail::default();
            for piece in &pieces {
                tail.push(piece);
            }
        }

        #[test]
        fn the_period_is_the_shortest(cycle in "[a-c]{1,9}") {
            let run = cycle.repeat(60);
            let p = period(run.as_bytes()).unwrap();
            prop_assert!(p <= cycle.len());
            prop_assert!(run.as_bytes().iter().zip(&run.as_bytes()[p..]).all(|(a, b)| a == b));
        }
    }
}
