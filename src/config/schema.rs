//! The JSON Schema of the file, with the defaults that the example file shows.

use std::collections::BTreeMap;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json};

use super::file::File;
use super::restart;
use super::tree::{self, Node, Value};

/// The file that shows every key at its default.
const EXAMPLE: &str = include_str!("../../config/fusebox.example.yaml");
/// Sections whose keys have one default each. (In lists a default often depends on the entry.)
const SECTIONS: [&str; 9] = [
    "admin",
    "retries",
    "streams",
    "identity",
    "limits",
    "log",
    "incidents",
    "automation",
    "engine",
];
/// Keys of the top level with one default each.
const TOP: [&str; 4] = ["metering", "drain_deadline", "workers", "watch"];

/// JSON Schema, draft 2020-12.
pub(super) fn schema() -> Json {
    let root = SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<File>();
    let mut schema = root.to_value();
    name_plainly(&mut schema);
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), "fusebox configuration".into());
    }
    if let Ok(example) = tree::parse(EXAMPLE) {
        with_defaults(&mut schema, &example);
    }
    for (key, pointer) in keys(&schema) {
        if restart::NEEDED.contains(&key.as_str()) {
            mark(schema.pointer_mut(&pointer));
        }
    }
    schema
}

/// Says of a key that a reload does not change it.
fn mark(property: Option<&mut Json>) {
    if let Some(Json::String(text)) = property.and_then(|p| p.get_mut("description")) {
        text.push_str(" [restart]");
    }
}

/// Every key of the file that holds a value and no further keys, as `section.key`, with the JSON pointer to its
/// description; `[]` stands for an entry of a list, `*` for a name that the user chooses.
pub(super) fn keys(schema: &Json) -> Vec<(String, String)> {
    let mut found = Vec::new();
    find_keys(schema, "", "", &mut Vec::new(), &mut found);
    found.sort_unstable();
    found.dedup();
    found
}

/// Finds the keys below the node at `pointer`; `true` when there are any. `above`: definitions that it is part of.
fn find_keys(
    schema: &Json,
    pointer: &str,
    path: &str,
    above: &mut Vec<String>,
    found: &mut Vec<(String, String)>,
) -> bool {
    let Some(node) = schema.pointer(pointer) else {
        return false;
    };
    if let Some(definition) = node["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
        if above.iter().any(|a| a == definition) {
            return false;
        }
        above.push(definition.to_owned());
        let any = find_keys(schema, definition, path, above, found);
        above.pop();
        return any;
    }
    let mut any = false;
    for key in node["properties"].as_object().into_iter().flat_map(Map::keys) {
        any = true;
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let pointer = format!("{pointer}/properties/{key}");
        if !find_keys(schema, &pointer, &path, above, found) {
            found.push((path, pointer));
        }
    }
    for (inner, step) in [("items", "[]"), ("additionalProperties", ".*")] {
        if node[inner].is_object() {
            any |= find_keys(
                schema,
                &format!("{pointer}/{inner}"),
                &format!("{path}{step}"),
                above,
                found,
            );
        }
    }
    for choice in ["anyOf", "oneOf", "allOf"] {
        for at in 0..node[choice].as_array().map_or(0, Vec::len) {
            any |= find_keys(schema, &format!("{pointer}/{choice}/{at}"), path, above, found);
        }
    }
    any
}

/// Definitions are named for people: `Limits` rather than by the names of our types.
fn name_plainly(schema: &mut Json) {
    let Some(defs) = schema.get_mut("$defs").and_then(Json::as_object_mut) else {
        return;
    };
    let names: BTreeMap<String, String> = defs
        .keys()
        .map(|k| {
            (
                k.clone(),
                k.trim_end_matches("File")
                    .trim_end_matches("Word")
                    .replace("StepMap", "StepSettings"),
            )
        })
        .collect();
    let renamed: Map<String, Json> = std::mem::take(defs)
        .into_iter()
        .map(|(k, v)| (names.get(&k).cloned().unwrap_or(k), v))
        .collect();
    *defs = renamed;
    rename_refs(schema, &names);
}

fn rename_refs(value: &mut Json, names: &BTreeMap<String, String>) {
    match value {
        Json::Object(map) => {
            for (key, inner) in map {
                match inner {
                    Json::String(text) if key == "$ref" => {
                        if let Some(new) = text.strip_prefix("#/$defs/").and_then(|old| names.get(old)) {
                            *text = format!("#/$defs/{new}");
                        }
                    }
                    _ => rename_refs(inner, names),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|i| rename_refs(i, names)),
        _ => {}
    }
}

fn with_defaults(schema: &mut Json, example: &Node) {
    let Value::Map(entries) = &example.value else {
        return;
    };
    for (key, value) in entries {
        let key = key.text().unwrap_or_default();
        if TOP.contains(&key) {
            set_default(schema.pointer_mut(&format!("/properties/{key}")), value);
        }
        let Value::Map(section) = &value.value else {
            continue;
        };
        if !SECTIONS.contains(&key) {
            continue;
        }
        let reference = schema
            .pointer(&format!("/properties/{key}/$ref"))
            .and_then(Json::as_str);
        let Some(at) = reference.and_then(|r| r.strip_prefix('#')).map(str::to_owned) else {
            continue;
        };
        for (key, value) in section {
            let key = key.text().unwrap_or_default();
            set_default(schema.pointer_mut(&format!("{at}/properties/{key}")), value);
        }
    }
}

fn set_default(property: Option<&mut Json>, value: &Node) {
    let (Some(Json::Object(property)), Some(default)) = (property, json(value)) else {
        return;
    };
    property.insert("default".to_owned(), default);
}

fn json(node: &Node) -> Option<Json> {
    Some(match &node.value {
        Value::Bool(b, _) => (*b).into(),
        Value::Int(i, _) => i64::try_from(*i).ok()?.into(),
        Value::Float(f, _) => serde_json::Number::from_f64(*f)?.into(),
        Value::Text(t) => t.as_str().into(),
        Value::List(items) => Json::Array(items.iter().map(json).collect::<Option<_>>()?),
        Value::Null | Value::FromEnv(_) | Value::Map(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn as_json(node: &Node) -> Json {
        match &node.value {
            Value::Null => Json::Null,
            Value::Map(entries) => Json::Object(
                entries
                    .iter()
                    .map(|(k, v)| (k.text().unwrap().to_owned(), as_json(v)))
                    .collect(),
            ),
            Value::List(items) => items.iter().map(as_json).collect(),
            _ => json(node).unwrap(),
        }
    }

    #[test]
    fn the_files_that_come_with_fusebox_obey_it() {
        let schema = schema();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        for text in [
            EXAMPLE,
            include_str!("../../config/minimal.yaml"),
            super::super::defaults::RULES,
            super::super::defaults::ACTIONS,
            "actions: {a: {steps: [contain, {set_parameters: {temperature: 0, stop: x, logprobs: false}}]}}",
            "upstreams: [{name: a, url: 'https://a', retry_on: [429, connect_error], credentials: {api_key: k}}]",
            "admin: {tokens: [{name: a, token: t}]}",
            "{}",
        ] {
            let instance = as_json(&tree::parse(text).unwrap());
            let faults: Vec<String> = validator
                .iter_errors(&instance)
                .map(|e| format!("{}: {e}", e.instance_path()))
                .collect();
            assert!(faults.is_empty(), "{faults:#?}");
        }
        for bad in [
            "workers: two",
            "unknown: 1",
            "drain_deadline: 30",
            "upstreams: [{name: a}]",
            "agent_incident_rules: [{name: a, metric: nope, action: b}]",
            "agent_incident_rules: [{name: a, metric: error_rate, action: b, threshold_upper: lots}]",
            "actions: {a: {steps: [throtle]}}",
            "limits: {max_request_bytes: 64M}",
            "actions: {a: {steps: [{set_parameters: {stop: [x]}}]}}",
            "actions: {a: {steps: [{rollback: {by: magic}}]}}",
            "actions: {a: {steps: [{throttle: {}, success: {improved_by: lots}}]}}",
            "actions: {a: {steps: [{cap_output: {}}]}}",
            "incidents: {maintenance: [{name: a, from: '24:00', lasts: 4h}]}",
            "incidents: {maintenance: [{name: a}]}",
            "admin: {tokens: [{name: a, role: admin}]}",
            "upstreams: [{name: a, url: 'https://a', retry_on: [200]}]",
        ] {
            assert!(!validator.is_valid(&as_json(&tree::parse(bad).unwrap())), "{bad}");
        }
    }

    #[test]
    fn every_key_is_described_and_defaults_are_told() {
        let schema = schema();
        let mut bare = Vec::new();
        for (name, def) in schema["$defs"].as_object().unwrap() {
            for (key, property) in def["properties"].as_object().into_iter().flatten() {
                if property.get("description").is_none() {
                    bare.push(format!("{name}.{key}"));
                }
            }
            assert!(!name.ends_with("File") && !name.ends_with("Word"), "{name}");
        }
        assert!(bare.is_empty(), "{bare:?}");
        assert_eq!(schema["properties"]["drain_deadline"]["default"], "30s");
        let described = |pointer: &str| schema.pointer(pointer).unwrap()["description"].to_string();
        for (key, pointer) in keys(&schema) {
            let marked = described(&pointer).contains("[restart]");
            assert_eq!(marked, restart::NEEDED.contains(&key.as_str()), "{key}");
        }
        assert_eq!(
            schema["$defs"]["Limits"]["properties"]["max_waiting"]["default"],
            1024
        );
        assert_eq!(
            schema["$defs"]["Rule"]["required"],
            serde_json::json!(["name", "metric", "action"])
        );
        assert_eq!(schema["$defs"]["Rule"]["additionalProperties"], false);
    }
}
