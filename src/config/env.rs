//! `${NAME}` and `${NAME:-default}` in values.

use super::problem::Problem;
use super::tree::{Node, Value};

/// Puts the values of environment variables into every text of the tree; `$$` stands for one `$`.
/// Each variable that is not set and has no default is a problem; the nodes of such are returned, to be left out.
pub(super) fn expand(
    root: &mut Node,
    env: &dyn Fn(&str) -> Option<String>,
    problems: &mut Vec<Problem>,
) -> Vec<usize> {
    let mut unset = Vec::new();
    root.each_value(None, &mut |key, node| {
        let Value::Text(text) = &node.value else { return };
        if !text.contains('$') {
            return;
        }
        let mut bad = None;
        match expanded(text, env, &mut bad) {
            Some(new) if bad.is_none() => node.value = Value::FromEnv(new),
            _ => {}
        }
        if let Some((text, hint)) = bad {
            unset.push(node.id);
            problems.push(Problem {
                place: node.place,
                text,
                hint: Some(hint),
                key: key.map(str::to_owned),
            });
        }
    });
    unset
}

/// The text with its variables replaced; `None` when there is nothing to replace. What is wrong goes to `bad`.
fn expanded(
    text: &str,
    env: &dyn Fn(&str) -> Option<String>,
    bad: &mut Option<(String, String)>,
) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut changed = false;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(more) = after.strip_prefix('$') {
            changed = true;
            out.push('$');
            rest = more;
        } else if let Some(more) = after.strip_prefix('{') {
            changed = true;
            let Some((inner, more)) = more.split_once('}') else {
                *bad = Some((
                    "`${` without `}`".to_owned(),
                    "write ${NAME} or ${NAME:-default}; a plain dollar sign before a brace is written $$"
                        .to_owned(),
                ));
                return None;
            };
            let (name, default) = match inner.split_once(":-") {
                Some((name, default)) => (name, Some(default)),
                None => (inner, None),
            };
            let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name {
                *bad = Some((
                    "not the name of an environment variable".to_owned(),
                    "write ${NAME} or ${NAME:-default}, with letters, digits and _".to_owned(),
                ));
                return None;
            }
            // As in a shell, `:-` also stands in for a variable that is set to nothing.
            match (
                env(name).filter(|v| !(v.is_empty() && default.is_some())),
                default,
            ) {
                (Some(value), _) => out.push_str(&value),
                (None, Some(default)) => out.push_str(default),
                (None, None) => {
                    *bad = Some((
                        format!("the environment variable {name} is not set"),
                        format!("set it, or write ${{{name}:-default}}"),
                    ));
                    return None;
                }
            }
            rest = more;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    changed.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let env = |n: &str| match n {
            "A" => Some("1".to_owned()),
            "E" => Some(String::new()),
            _ => None,
        };
        for (text, want) in [
            ("x${A}y${A}", Some("x1y1")),
            ("${B:-2}", Some("2")),
            ("${E:-2}", Some("2")),
            ("${E}", Some("")),
            ("${B:-}", Some("")),
            ("a$b", None),
            ("$${A}", Some("${A}")),
            ("cost $", None),
        ] {
            let mut bad = None;
            assert_eq!(expanded(text, &env, &mut bad).as_deref(), want, "{text}");
            assert_eq!(bad, None);
        }
        for (text, why) in [
            ("${B}", "B is not set"),
            ("${A", "without"),
            ("${}", "not the name"),
            ("${A B}", "not the name"),
        ] {
            let mut bad = None;
            expanded(text, &env, &mut bad);
            assert!(bad.as_ref().unwrap().0.contains(why), "{text}: {bad:?}");
        }
    }
}
