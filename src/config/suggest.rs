//! "Did you mean": the nearest of the known words.

/// The known word that `word` was probably meant to be, if one is near enough.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Longer words cannot be near any of ours, and the distance is quadratic.
    if word.len() > 80 {
        return None;
    }
    let plain = |w: &str| w.to_ascii_lowercase().replace(['-', ' ', '.'], "_");
    let wanted = plain(word);
    let allowed = (wanted.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&wanted, &plain(k)), k))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, k)| k)
}

/// The hint for an unknown word: the nearest one, else all of them when they are few.
pub(super) fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    if let Some(near) = nearest(word, known.clone()) {
        return Some(format!("did you mean `{near}`?"));
    }
    let all: Vec<&str> = known.into_iter().collect();
    (!all.is_empty() && all.len() <= 40).then(|| format!("one of {}", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_near_and_leaves_the_far() {
        let known = ["threshold_upper", "threshold_lower", "window", "name"];
        for (word, want) in [
            ("threshold_uper", Some("threshold_upper")),
            ("threshold-lower", Some("threshold_lower")),
            ("Window", Some("window")),
            ("nmae", Some("name")),
            ("cooldown", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, known), want, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(10_000), known), None);
        assert_eq!(hint("zzz", ["a", "b"]).as_deref(), Some("one of a, b"));
    }
}
