//! Bodies of requests: JSON that is held to the schema of its type, with every problem told by its place.

use std::error::Error;

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http::{HeaderValue, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::{Fault, Problem};
use crate::config::nearest_word;

/// Largest body of a request, in bytes.
const MAX_BODY: usize = 1 << 20;
/// Problems that are told at once.
const MAX_FAULTS: usize = 100;

/// A body that fits its type; an empty one is an empty object.
pub(super) struct Body<T>(pub(super) T);

/// A body as it came, said to be JSON; for whoever reads it in more than one way.
pub(super) struct Raw(pub(super) Bytes);

/// The fields of a form.
pub(super) struct Form(pub(super) Vec<(String, String)>);

/// Who gives an order.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct By {
    /// Who gives the order, for the record.
    #[schemars(length(max = 200))]
    pub(super) by: Option<String>,
}

/// Who gives an order, and why.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ByReason {
    /// Who gives the order, for the record.
    #[schemars(length(max = 200))]
    pub(super) by: Option<String>,
    /// Why, for the record.
    #[schemars(length(max = 2000))]
    pub(super) reason: Option<String>,
}

/// A length of time: `90s`, `15m`, `2h`, `1d`, or a number of seconds.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Length {
    /// Seconds.
    Seconds(f64),
    /// With its unit.
    Text(String),
}

impl Length {
    /// The time, when it is one and within `bounds` (seconds).
    pub(super) fn within(
        &self,
        bounds: std::ops::RangeInclusive<u64>,
        at: &str,
        faults: &mut Vec<Fault>,
    ) -> Option<std::time::Duration> {
        let length = match self {
            Self::Seconds(seconds) => std::time::Duration::try_from_secs_f64(*seconds).ok(),
            Self::Text(text) => crate::config::parse_duration(text),
        };
        let Some(length) = length else {
            faults.push(Fault::new(
                at,
                "is no length of time",
                "write it as 90s, 15m, 2h or 1d, or as a number of seconds",
            ));
            return None;
        };
        if bounds.contains(&length.as_secs()) {
            return Some(length);
        }
        let show = |seconds| crate::config::show_duration(std::time::Duration::from_secs(seconds));
        faults.push(Fault::new(
            at,
            format!(
                "must be from {} to {}",
                show(*bounds.start()),
                show(*bounds.end())
            ),
            "choose a length within these bounds",
        ));
        None
    }
}

/// What could be read of a JSON body: every fault in it, and the value as far as the rest allows.
pub(super) struct Read<T> {
    pub(super) value: Option<T>,
    pub(super) faults: Vec<Fault>,
}

/// Reads a body against the schema of `T`. What is faulty is left out of the value, so that the rest can be judged too.
pub(super) fn read<T: DeserializeOwned + JsonSchema>(body: &[u8]) -> Result<Read<T>, Problem> {
    let mut value: Value = if body.is_empty() {
        Value::Object(Map::new())
    } else {
        serde_json::from_slice(body).map_err(|e| {
            Problem::bad_body(
                format!("the body is not JSON: {e}"),
                "send one JSON object, as GET /openapi.json describes it",
            )
        })?
    };
    let schema = schemars::schema_for!(T).to_value();
    let mut faults = Vec::new();
    judge(&schema, &schema, &value, "", &mut faults);
    faults.truncate(MAX_FAULTS);
    for fault in faults.iter().rev() {
        prune(&mut value, &fault.pointer);
    }
    let read = serde_json::from_value(value);
    if faults.is_empty()
        && let Err(e) = &read
    {
        faults.push(Fault::new("", e.to_string(), "see GET /openapi.json"));
    }
    Ok(Read {
        value: read.ok(),
        faults,
    })
}

impl<S: Sync, T: DeserializeOwned + JsonSchema> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Raw(body) = Raw::from_request(request, state).await?;
        let Read { value, faults } = read(&body)?;
        match value {
            Some(value) if faults.is_empty() => Ok(Self(value)),
            _ => Err(Problem::faulty(faults)),
        }
    }
}

impl<S: Sync> FromRequest<S> for Raw {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let kind = kind(request.headers());
        if kind.as_deref().is_some_and(|k| k != "application/json") {
            return Err(not_json());
        }
        let body = whole(request).await?;
        if kind.is_none() && !body.is_empty() {
            return Err(not_json());
        }
        Ok(Self(body))
    }
}

impl<S: Sync> FromRequest<S> for Form {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        if kind(request.headers()).as_deref() != Some("application/x-www-form-urlencoded") {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not_a_form",
                "the body is not said to be a form",
                "answer on the page itself, or by POST /approvals/{id}/approve with a token",
            ));
        }
        let body = whole(request).await?;
        let uri = format!("/?{}", String::from_utf8_lossy(&body));
        let fields = uri
            .parse()
            .ok()
            .and_then(|uri| axum::extract::Query::<Vec<(String, String)>>::try_from_uri(&uri).ok());
        match fields {
            Some(axum::extract::Query(fields)) => Ok(Self(fields)),
            None => Err(Problem::bad_body("the form cannot be read", "send it again")),
        }
    }
}

fn kind(headers: &HeaderMap) -> Option<String> {
    let kind: &HeaderValue = headers.get(CONTENT_TYPE)?;
    let kind = kind.to_str().unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default();
    Some(kind.trim().to_ascii_lowercase())
}

async fn whole(request: Request) -> Result<Bytes, Problem> {
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or(0);
    if announced > MAX_BODY as u64 {
        return Err(too_large());
    }
    to_bytes(request.into_body(), MAX_BODY).await.map_err(|e| {
        if e.source()
            .is_some_and(|s| s.is::<http_body_util::LengthLimitError>())
        {
            too_large()
        } else {
            Problem::bad_body("the body broke off", "send all of it")
        }
    })
}

fn not_json() -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "not_json",
        "the body is not said to be JSON",
        "send `content-type: application/json`, or no body at all",
    )
}

fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body_too_large",
        format!("the body is larger than {MAX_BODY} bytes"),
        "send less",
    )
}

/// Holds a value to a schema: the words that schemas of our own types use.
fn judge(schema: &Value, root: &Value, value: &Value, at: &str, faults: &mut Vec<Fault>) {
    if faults.len() >= MAX_FAULTS {
        return;
    }
    if let Some(to) = schema.get("$ref").and_then(Value::as_str) {
        if let Some(target) = to.strip_prefix('#').and_then(|p| root.pointer(p)) {
            judge(target, root, value, at, faults);
        }
        return;
    }
    if let Some(options) = schema
        .get("anyOf")
        .or_else(|| schema.get("oneOf"))
        .and_then(Value::as_array)
    {
        let tried = options.iter().map(|option| {
            let mut faults = Vec::new();
            judge(option, root, value, at, &mut faults);
            faults
        });
        // Of several that do not fit, the one that goes furthest says most; `null` says nothing.
        let mut best: Option<Vec<Fault>> = None;
        for (option, tried) in options.iter().zip(tried) {
            if tried.is_empty() {
                return;
            }
            let null = option.get("type").and_then(Value::as_str) == Some("null");
            let deeper = |of: &[Fault]| of.iter().map(|f| f.pointer.len()).max();
            if !null && best.as_ref().is_none_or(|b| deeper(&tried) > deeper(b)) {
                best = Some(tried);
            }
        }
        faults.extend(best.unwrap_or_default());
        return;
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array)
        && !words.contains(value)
    {
        let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        let near = value.as_str().and_then(|v| nearest_word(v, &words));
        let hint = near.map_or_else(
            || format!("one of {}", words.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        faults.push(Fault::new(at, format!("{} is not known", shown(value)), hint));
        return;
    }
    if let Some(kinds) = schema.get("type")
        && !fits(kinds, value)
    {
        let wanted = match kinds {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|k| *k != "null"),
            one => one.as_str(),
        };
        faults.push(Fault::new(
            at,
            format!(
                "must be {}, not {}",
                article(wanted.unwrap_or("null")),
                kind_of(value)
            ),
            "see GET /openapi.json",
        ));
        return;
    }
    bounds(schema, value, at, faults);
    match value {
        Value::Object(members) => object(schema, root, members, at, faults),
        Value::Array(items) => {
            if let Some(each) = schema.get("items") {
                for (n, item) in items.iter().enumerate() {
                    judge(each, root, item, &format!("{at}/{n}"), faults);
                }
            }
        }
        _ => {}
    }
}

fn object(schema: &Value, root: &Value, members: &Map<String, Value>, at: &str, faults: &mut Vec<Fault>) {
    let known = schema.get("properties").and_then(Value::as_object);
    let closed = schema.get("additionalProperties") == Some(&Value::Bool(false));
    for (name, value) in members {
        let place = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
        match known.and_then(|k| k.get(name)) {
            Some(of) => judge(of, root, value, &place, faults),
            None if closed => {
                let names: Vec<&str> = known.into_iter().flatten().map(|(k, _)| k.as_str()).collect();
                let hint = nearest_word(name, &names).map_or_else(
                    || format!("known here: {}", names.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                faults.push(Fault::new(&place, "is not a known field", hint));
            }
            None => {}
        }
    }
    let required = schema.get("required").and_then(Value::as_array);
    for name in required.into_iter().flatten().filter_map(Value::as_str) {
        if members.get(name).is_none_or(Value::is_null) {
            faults.push(Fault::new(
                &format!("{at}/{name}"),
                "is missing",
                "see GET /openapi.json",
            ));
        }
    }
}

fn bounds(schema: &Value, value: &Value, at: &str, faults: &mut Vec<Fault>) {
    let limit = |word: &str| schema.get(word).and_then(Value::as_f64);
    let measured = match value {
        Value::Number(n) => n.as_f64().map(|n| (n, "minimum", "maximum", "")),
        Value::String(text) => Some((
            text.chars().count() as f64,
            "minLength",
            "maxLength",
            " characters",
        )),
        Value::Array(items) => Some((items.len() as f64, "minItems", "maxItems", " items")),
        Value::Object(members) => Some((members.len() as f64, "minProperties", "maxProperties", " members")),
        _ => None,
    };
    let Some((size, least, most, of)) = measured else {
        return;
    };
    let (least, most) = (limit(least), limit(most));
    if least.is_none_or(|l| size >= l) && most.is_none_or(|m| size <= m) {
        return;
    }
    let text = match (least, most) {
        (Some(least), Some(most)) => format!("must be from {least} to {most}{of}, not {size}"),
        (Some(least), None) => format!("must be at least {least}{of}, not {size}"),
        (None, most) => format!("must be at most {}{of}, not {size}", most.unwrap_or_default()),
    };
    faults.push(Fault::new(at, text, "choose a value within these bounds"));
}

fn fits(kinds: &Value, value: &Value) -> bool {
    let one = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    match kinds {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).any(one),
        kind => kind.as_str().is_some_and(one),
    }
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Number(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn article(kind: &str) -> String {
    match kind {
        "integer" => "a whole number".to_owned(),
        "array" | "object" => format!("an {kind}"),
        "null" => "null".to_owned(),
        other => format!("a {other}"),
    }
}

fn shown(value: &Value) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), ToOwned::to_owned);
    let short: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    format!("`{short}`")
}

/// Takes out what a pointer points to.
fn prune(value: &mut Value, pointer: &str) {
    let Some((parent, name)) = pointer.rsplit_once('/') else {
        return;
    };
    match value.pointer_mut(parent) {
        Some(Value::Object(members)) => {
            members.remove(&name.replace("~1", "/").replace("~0", "~"));
        }
        Some(Value::Array(items)) => {
            if let Ok(at) = name.parse::<usize>()
                && at < items.len()
            {
                items.remove(at);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    #[schemars(extend("required" = ["name"]))]
    struct Sample {
        #[schemars(length(min = 1, max = 5))]
        name: Option<String>,
        #[schemars(range(min = 1, max = 10))]
        size: Option<u32>,
        #[schemars(length(max = 2))]
        list: Vec<Inner>,
        lease: Option<Length>,
        free: Option<BTreeMap<String, Value>>,
        on: Option<bool>,
    }

    #[derive(Debug, Default, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Inner {
        agent: String,
    }

    fn faults(body: &str) -> Vec<String> {
        let read = read::<Sample>(body.as_bytes()).unwrap();
        read.faults
            .iter()
            .map(|f| format!("{} {} ({})", f.pointer, f.message, f.hint))
            .collect()
    }

    #[test]
    fn every_problem_is_told_by_its_place() {
        assert_eq!(
            faults(r#"{"name":"a","size":3,"lease":"5m","free":{"x":[1]},"on":null}"#),
            [""; 0]
        );
        let told = faults(
            r#"{"nmae":"a","size":11,"list":[{"agent":1},{"agnet":"a"},{}],"lease":true,"on":"yes","a/b~c":1}"#,
        );
        let starts = [
            "/a~1b~0c is not a known field",
            "/lease must be a number, not true",
            "/list must be at most 2 items, not 3",
            "/list/0/agent must be a string, not 1",
            "/list/1/agnet is not a known field (did you mean `agent`?)",
            "/name is missing",
            "/nmae is not a known field (did you mean `name`?)",
            "/on must be a boolean, not a string",
            "/size must be from 1 to 10, not 11",
        ];
        let mut sorted = told.clone();
        sorted.sort();
        assert_eq!(sorted.len(), starts.len(), "{sorted:#?}");
        for (told, start) in sorted.iter().zip(starts) {
            assert!(told.starts_with(start), "{told} / {start}");
        }
        assert!(faults("[]")[0].starts_with(" must be an object"));
        assert!(read::<Sample>(b"{").is_err());
        let rest = read::<Sample>(br#"{"name":"a","size":"x","on":true}"#).unwrap();
        assert_eq!(
            rest.value.map(|v| (v.name.is_some(), v.on)),
            Some((true, Some(true)))
        );
    }
}
