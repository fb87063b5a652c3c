//! A checker for the part of JSON Schema that `fusebox schema` uses. An unknown keyword is an error, not a pass.

use serde_json::Value;

/// Every way in which `value` breaks `schema`; references are looked up in `root`.
pub(crate) fn violations(root: &Value, schema: &Value, value: &Value, at: &str) -> Vec<String> {
    let schema = match schema {
        Value::Bool(true) => return Vec::new(),
        Value::Bool(false) => return vec![format!("{at}: not allowed")],
        Value::Object(map) => map,
        other => return vec![format!("{at}: no schema: {other}")],
    };
    let mut found = Vec::new();
    for (keyword, rule) in schema {
        match keyword.as_str() {
            "$schema" | "$id" | "$defs" | "definitions" | "title" | "description" | "default"
            | "examples" | "deprecated" | "$comment" | "format" | "readOnly" | "writeOnly" => {}
            "$ref" => {
                let pointer = rule
                    .as_str()
                    .and_then(|r| r.strip_prefix('#'))
                    .unwrap_or_default();
                match root.pointer(pointer) {
                    Some(target) => found.extend(violations(root, target, value, at)),
                    None => found.push(format!("{at}: nothing at {rule}")),
                }
            }
            "type" => {
                let names: Vec<&str> = match rule {
                    Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
                    name => name.as_str().into_iter().collect(),
                };
                if !names.iter().any(|n| is(value, n)) {
                    found.push(format!("{at}: {value} is not of type {rule}"));
                }
            }
            "enum" => {
                if !rule.as_array().is_some_and(|all| all.contains(value)) {
                    found.push(format!("{at}: {value} is none of {rule}"));
                }
            }
            "const" => {
                if rule != value {
                    found.push(format!("{at}: {value} is not {rule}"));
                }
            }
            "required" => {
                for name in rule.as_array().into_iter().flatten().filter_map(Value::as_str) {
                    if value.is_object() && value.get(name).is_none() {
                        found.push(format!("{at}: {name} is missing"));
                    }
                }
            }
            "properties" => {
                for (name, part) in rule.as_object().into_iter().flatten() {
                    if let Some(inner) = value.get(name) {
                        found.extend(violations(root, part, inner, &format!("{at}/{name}")));
                    }
                }
            }
            "additionalProperties" | "unevaluatedProperties" => {
                let known = schema.get("properties").and_then(Value::as_object);
                let patterns = schema.contains_key("patternProperties");
                let others = value.as_object().into_iter().flatten();
                for (name, inner) in others.filter(|(n, _)| !known.is_some_and(|k| k.contains_key(*n))) {
                    if !patterns {
                        found.extend(violations(root, rule, inner, &format!("{at}/{name}")));
                    }
                }
            }
            "items" => {
                for (i, inner) in value.as_array().into_iter().flatten().enumerate() {
                    found.extend(violations(root, rule, inner, &format!("{at}/{i}")));
                }
            }
            "allOf" => {
                for part in rule.as_array().into_iter().flatten() {
                    found.extend(violations(root, part, value, at));
                }
            }
            "anyOf" | "oneOf" => {
                let all: Vec<_> = rule
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|p| violations(root, p, value, at))
                    .collect();
                let fitting = all.iter().filter(|v| v.is_empty()).count();
                if fitting == 0 || (keyword == "oneOf" && fitting > 1) {
                    found.push(format!("{at}: {value} fits {fitting} of {} ({all:?})", all.len()));
                }
            }
            "minimum" => {
                if value
                    .as_f64()
                    .zip(rule.as_f64())
                    .is_some_and(|(v, least)| v < least)
                {
                    found.push(format!("{at}: {value} is below {rule}"));
                }
            }
            "maximum" => {
                if value
                    .as_f64()
                    .zip(rule.as_f64())
                    .is_some_and(|(v, most)| v > most)
                {
                    found.push(format!("{at}: {value} is above {rule}"));
                }
            }
            "pattern" => {
                // ASCII alone is meant by `\s`; Unicode's tables are not compiled in.
                let pattern = format!("(?-u){}", rule.as_str().unwrap_or_default());
                match (regex::Regex::new(&pattern), value.as_str()) {
                    (Ok(pattern), Some(text)) if !pattern.is_match(text) => {
                        found.push(format!("{at}: {text:?} is not of the form {rule}"));
                    }
                    (Err(e), _) => found.push(format!("{at}: {e}")),
                    _ => {}
                }
            }
            "minLength" | "maxLength" => {
                let len = value.as_str().map(|s| s.chars().count() as u64);
                let bad = len.zip(rule.as_u64()).is_some_and(|(len, bound)| {
                    if keyword == "minLength" {
                        len < bound
                    } else {
                        len > bound
                    }
                });
                if bad {
                    found.push(format!("{at}: length of {value} against {keyword} {rule}"));
                }
            }
            other => found.push(format!("{at}: this checker does not know the keyword {other}")),
        }
    }
    found
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64() || value.as_f64().is_some_and(|f| f.fract() == 0.0),
        _ => false,
    }
}

#[test]
fn violations_are_found() {
    let schema: Value = serde_json::json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"type": ["string", "null"]}, "c": {"oneOf": [{"const": "x"}, {"enum": ["y"]}]}},
        "$defs": {"n": {"type": "integer", "minimum": 0}},
    });
    let count = |v: Value| violations(&schema, &schema, &v, "").len();
    assert_eq!(count(serde_json::json!({"a": 1, "b": null, "c": "y"})), 0);
    assert_eq!(count(serde_json::json!({})), 1);
    assert_eq!(count(serde_json::json!({"a": -1})), 1);
    assert_eq!(count(serde_json::json!({"a": 1, "b": 2})), 1);
    assert_eq!(count(serde_json::json!({"a": 1, "z": 2})), 1);
    assert_eq!(count(serde_json::json!({"a": 1, "c": "z"})), 1);
}
