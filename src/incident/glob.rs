//! Patterns over names: `*` stands for any run of characters, `?` for one.

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob {
    pattern: Box<[char]>,
}

impl Glob {
    /// Compiles a pattern; every text is one.
    pub(crate) fn new(pattern: &str) -> Self {
        Self {
            pattern: pattern.chars().collect(),
        }
    }

    /// Whether the whole name fits. Takes at most (length of name) × (length of pattern) steps.
    pub(crate) fn matches(&self, name: &str) -> bool {
        let name: Vec<char> = name.chars().collect();
        let (mut at, mut in_name) = (0, 0);
        // Where to go on when what follows the last star does not fit: one more character goes to the star.
        let mut retry: Option<(usize, usize)> = None;
        while in_name < name.len() {
            match self.pattern.get(at) {
                Some('*') => {
                    retry = Some((at + 1, in_name));
                    at += 1;
                    continue;
                }
                Some('?') => {
                    at += 1;
                    in_name += 1;
                    continue;
                }
                Some(c) if name.get(in_name) == Some(c) => {
                    at += 1;
                    in_name += 1;
                    continue;
                }
                _ => {}
            }
            let Some((after_star, taken)) = retry else {
                return false;
            };
            at = after_star;
            in_name = taken + 1;
            retry = Some((after_star, in_name));
        }
        self.pattern.iter().skip(at).all(|c| *c == '*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits() {
        let table = [
            ("agent-1", "agent-1", true),
            ("agent-1", "agent-11", false),
            ("*", "", true),
            ("*", "anything", true),
            ("", "", true),
            ("", "a", false),
            ("?", "ä", true),
            ("?", "", false),
            ("agent-*", "agent-", true),
            ("agent-*-prod", "agent-a-b-prod", true),
            ("agent-*-prod", "agent-a-b-prodx", false),
            ("*a*b*c", "xxaxxbxxbc", true),
            ("gpt-?o*", "gpt-4o-mini", true),
            ("gpt-?o*", "gpt-4.1", false),
            ("**", "x", true),
        ];
        for (pattern, name, fits) in table {
            assert_eq!(Glob::new(pattern).matches(name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn a_hostile_pattern_ends() {
        let glob = Glob::new(&"*a".repeat(50));
        assert!(!glob.matches(&"a".repeat(49)));
        assert!(!glob.matches(&format!("{}b", "a".repeat(2000))));
    }
}
