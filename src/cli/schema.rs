//! `fusebox schema`: the shapes of what fusebox reads and writes, as JSON Schema.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{FAILED, print_bytes, say};
use crate::config;
use crate::types::notice::Notice;
use crate::types::observation::Observation;

/// Arguments of `fusebox schema`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which shape; when left out, that of the configuration file with the others under `$defs`.
    #[arg(value_enum)]
    shape: Option<Shape>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shape {
    /// The configuration file.
    Config,
    /// One line of the observations file.
    Observation,
    /// What is told about an incident.
    Notice,
}

pub(super) fn run(args: &Args) -> u8 {
    let schema = match args.shape {
        None => all(),
        Some(Shape::Config) => config::schema(),
        Some(Shape::Observation) => of::<Observation>(),
        Some(Shape::Notice) => of::<Notice>(),
    };
    match serde_json::to_string_pretty(&schema) {
        Ok(text) => print_bytes(format!("{text}\n").as_bytes()),
        Err(e) => {
            say(&format!("fusebox: the schema cannot be written: {e}"));
            FAILED
        }
    }
}

fn of<T: schemars::JsonSchema>() -> Value {
    SchemaSettings::draft2020_12()
        .into_generator()
        .into_root_schema_for::<T>()
        .to_value()
}

/// The schema of the configuration file, with the other shapes beside its own definitions: one document that validates
/// a file as it is, and holds everything else under `$defs`.
fn all() -> Value {
    let mut all = config::schema();
    for (name, schema) in [("observation", of::<Observation>()), ("notice", of::<Notice>())] {
        all["$defs"][name] = moved(schema, name);
    }
    all
}

/// A schema as a part of another: references to its own definitions lead to where these are now.
fn moved(mut schema: Value, name: &str) -> Value {
    if let Some(root) = schema.as_object_mut() {
        root.remove("$schema");
    }
    relocate(&mut schema, &format!("#/$defs/{name}/$defs/"));
    schema
}

fn relocate(value: &mut Value, to: &str) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match inner {
                    Value::String(text) if key == "$ref" => {
                        if let Some(rest) = text.strip_prefix("#/$defs/") {
                            *text = format!("{to}{rest}");
                        }
                    }
                    _ => relocate(inner, to),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|i| relocate(i, to)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refs<'a>(value: &'a Value, out: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                out.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| refs(v, out));
            }
            Value::Array(items) => items.iter().for_each(|v| refs(v, out)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let all = all();
        for schema in [&all, &config::schema(), &of::<Observation>(), &of::<Notice>()] {
            let mut found = Vec::new();
            refs(schema, &mut found);
            for r in found {
                assert!(schema.pointer(r.strip_prefix('#').unwrap()).is_some(), "{r}");
            }
        }
        assert!(all.pointer("/$defs/observation/properties/request_id").is_some());
        assert!(all.pointer("/properties/agent_incident_rules").is_some());
        assert!(all.pointer("/$defs/notice/properties/severity").is_some());
    }
}
