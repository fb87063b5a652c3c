//! An embedding call with many inputs as several calls with fewer, and their answers as one.

use std::ops::Range;

use bytes::Bytes;
use serde_json::Number;

use super::decode::Decoder;
use super::edit::{self, EditError};
use super::json::{self, Array, Fault, Object};
use super::table::{Api, Route};

/// Most calls that one request becomes; one with more inputs than that many calls take is sent in larger parts.
pub const MAX_CALLS: usize = 1024;
/// How deep usage is looked into for numbers.
const USAGE_DEPTH: usize = 3;
/// Most numbers of usage that are added up.
const MAX_SUMS: usize = 32;

/// A call in parts. Holds the client's body, and the parts by where they stand in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    shape: Shape,
    body: Bytes,
    /// The list of inputs, brackets included.
    list: Range<usize>,
    /// Where the inputs of each part stand, and how many they are.
    parts: Vec<(Range<usize>, usize)>,
}

/// Why a call was not taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// Its body is no JSON object with one list of inputs.
    #[error(transparent)]
    Edit(#[from] EditError),
}

/// Why answers were not put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// An answer is not of the shape that the API has.
    #[error("an answer to a part of the batch cannot be read")]
    Unreadable,
    /// There are fewer or more vectors than inputs.
    #[error("an answer to a part of the batch has {got} vectors for {want} inputs")]
    Count {
        /// Vectors in the answer.
        got: usize,
        /// Inputs of the part.
        want: usize,
    },
}

impl From<Fault> for MergeError {
    fn from(_: Fault) -> Self {
        Self::Unreadable
    }
}

/// A body as it is meant, from how it was sent (`content-encoding`). What cannot be decoded gives nothing.
pub fn decoded(encoding: &str, body: Bytes) -> Bytes {
    let Some(mut decoder) = Decoder::for_encoding(encoding) else {
        return body;
    };
    let mut plain = Vec::with_capacity(body.len().saturating_mul(2));
    let mut each = |bytes: &[u8]| plain.extend_from_slice(bytes);
    decoder.push(&body, &mut each);
    decoder.end(&mut each);
    plain.into()
}

/// The names that an API has for the lists, and what is added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    inputs: &'static str,
    outputs: &'static str,
    /// Outputs say their place.
    indexed: bool,
    /// Members with numbers to be added up, at any depth.
    sums: &'static [&'static str],
}

const OPENAI: Shape = Shape {
    inputs: "input",
    outputs: "data",
    indexed: true,
    sums: &["usage"],
};
const GEMINI: Shape = Shape {
    inputs: "requests",
    outputs: "embeddings",
    indexed: false,
    sums: &["usageMetadata"],
};
const OLLAMA: Shape = Shape {
    inputs: "input",
    outputs: "embeddings",
    indexed: false,
    sums: &["total_duration", "load_duration", "prompt_eval_count"],
};

/// Takes a call apart into calls of at most `max` inputs; `Ok(None)` where it has no more than that, or no list.
///
/// A list of numbers is one input (token ids), a list of such lists is many.
///
/// # Errors
/// When the body cannot be read.
pub fn split(route: &Route, body: &Bytes, max: usize) -> Result<Option<Split>, SplitError> {
    let shape = match route.api {
        Api::OpenAiEmbeddings => OPENAI,
        Api::GeminiEmbed => GEMINI,
        Api::OllamaEmbed => OLLAMA,
        _ => return Ok(None),
    };
    let Some(list) = edit::place(body, &[&[shape.inputs]])? else {
        return Ok(None);
    };
    let text = json::slice(body, list.clone());
    let Some(mut inputs) = Array::open(text) else {
        return Ok(None);
    };
    let mut count = 0_usize;
    while let Some(input) = inputs.element().map_err(EditError::from)? {
        if matches!(input.first(), Some(b'-' | b'0'..=b'9')) {
            return Ok(None);
        }
        count += 1;
    }
    let max = max.max(1).max(count.div_ceil(MAX_CALLS));
    if count <= max {
        return Ok(None);
    }
    let mut parts: Vec<(Range<usize>, usize)> = Vec::with_capacity(count.div_ceil(max));
    let mut inputs = Array::open(text).ok_or(EditError::Unreadable)?;
    while let Some(input) = inputs.element_range().map_err(EditError::from)? {
        let (start, end) = (list.start + input.start, list.start + input.end);
        match parts.last_mut() {
            Some((range, n)) if *n < max => {
                range.end = end;
                *n += 1;
            }
            _ => parts.push((start..end, 1)),
        }
    }
    Ok(Some(Split {
        shape,
        body: body.clone(),
        list,
        parts,
    }))
}

impl Split {
    /// Inputs of the whole call.
    pub fn inputs(&self) -> usize {
        self.parts.iter().map(|(_, n)| n).sum()
    }

    /// How many calls it becomes.
    pub fn calls(&self) -> usize {
        self.parts.len()
    }

    /// The body of one of them: the client's with a part of the inputs, all else as it was.
    pub fn part(&self, at: usize) -> Option<Bytes> {
        let (range, _) = self.parts.get(at)?;
        let mut with = Vec::with_capacity(range.len() + 2);
        with.push(b'[');
        with.extend_from_slice(json::slice(&self.body, range.clone()));
        with.push(b']');
        Some(json::splice(&self.body, self.list.clone(), &with).into())
    }

    /// Puts their answers together.
    pub fn merge(&self) -> Merge<'_> {
        Merge {
            split: self,
            frame: Vec::new(),
            outputs: Vec::new(),
            sums: Vec::new(),
            merged: 0,
        }
    }
}

/// Answers put together so far.
#[derive(Debug)]
pub struct Merge<'a> {
    split: &'a Split,
    /// The first answer without its outputs.
    frame: Vec<u8>,
    /// All outputs, with commas between them.
    outputs: Vec<u8>,
    /// By the keys that lead there.
    sums: Vec<(Vec<String>, Sum)>,
    merged: usize,
}

#[derive(Debug, Clone, Copy)]
enum Sum {
    Whole(u64),
    Broken(f64),
}

impl Merge<'_> {
    /// Takes the answer to the next part.
    ///
    /// # Errors
    /// When it is not what the API answers.
    pub fn add(&mut self, answer: &[u8]) -> Result<(), MergeError> {
        let shape = self.split.shape;
        let (_, want) = self.split.parts.get(self.merged).ok_or(MergeError::Unreadable)?;
        let before: usize = self.split.parts.iter().take(self.merged).map(|(_, n)| n).sum();
        let list = edit::place(answer, &[&[shape.outputs]])
            .ok()
            .flatten()
            .ok_or(MergeError::Unreadable)?;
        self.outputs.reserve(list.len());
        let text = json::slice(answer, list.clone());
        let mut outputs = Array::open(text).ok_or(MergeError::Unreadable)?;
        let mut got = 0;
        while let Some(output) = outputs.element()? {
            if !self.outputs.is_empty() {
                self.outputs.push(b',');
            }
            if shape.indexed && before > 0 {
                renumbered(&mut self.outputs, output, before)?;
            } else {
                self.outputs.extend_from_slice(output);
            }
            got += 1;
        }
        if got != *want {
            return Err(MergeError::Count { got, want: *want });
        }
        if self.merged == 0 {
            self.frame = json::splice(answer, list, b"[]");
            let mut sums = Vec::new();
            for name in shape.sums {
                if let Some(value) = json::member(&self.frame, name) {
                    numbers(value, &mut vec![(*name).to_owned()], &mut sums);
                }
            }
            self.sums = sums;
        } else {
            for (path, sum) in &mut self.sums {
                let more = path
                    .iter()
                    .try_fold(answer, |object, key| json::member(object, key));
                *sum = sum.and(more.and_then(Sum::read));
            }
        }
        self.merged += 1;
        Ok(())
    }

    /// The bytes that are held.
    pub fn held(&self) -> usize {
        self.frame.len() + self.outputs.len()
    }

    /// The answer to the whole call: the first one, with all outputs and the sums in their places.
    ///
    /// # Errors
    /// When no answer was added.
    pub fn finish(self) -> Result<Vec<u8>, MergeError> {
        let mut frame = self.frame;
        for (path, sum) in &self.sums {
            let keys: Vec<&str> = path.iter().map(String::as_str).collect();
            let path: Vec<&[&str]> = keys.iter().map(std::slice::from_ref).collect();
            // What stands twice stays as the first answer said it.
            if let (Some(written), Ok(Some(place))) = (sum.written(), edit::place(&frame, &path)) {
                frame = json::splice(&frame, place, written.as_bytes());
            }
        }
        let list = edit::place(&frame, &[&[self.split.shape.outputs]])
            .ok()
            .flatten()
            .ok_or(MergeError::Unreadable)?;
        let inside = list.start + 1..list.end.saturating_sub(1);
        Ok(json::splice(&frame, inside, &self.outputs))
    }
}

impl Sum {
    fn read(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        match text.parse() {
            Ok(whole) => Some(Self::Whole(whole)),
            Err(_) => text.parse().ok().map(Self::Broken),
        }
    }

    /// What one answer leaves out counts as nothing.
    fn and(self, more: Option<Self>) -> Self {
        match (self, more) {
            (sum, None) => sum,
            (Self::Whole(a), Some(Self::Whole(b))) => Self::Whole(a.saturating_add(b)),
            (a, Some(b)) => Self::Broken(a.broken() + b.broken()),
        }
    }

    fn broken(self) -> f64 {
        match self {
            Self::Whole(n) => n as f64,
            Self::Broken(n) => n,
        }
    }

    fn written(self) -> Option<String> {
        match self {
            Self::Whole(n) => Some(n.to_string()),
            Self::Broken(n) => Number::from_f64(n).map(|n| n.to_string()),
        }
    }
}

/// An output whose `index` is that of the whole call; one without an index stays as it is.
fn renumbered(out: &mut Vec<u8>, output: &[u8], before: usize) -> Result<(), MergeError> {
    let mut object = Object::open(output).ok_or(MergeError::Unreadable)?;
    let mut from = 0;
    while let Some(key) = object.key()? {
        let found = *json::key_name(key) == *b"index";
        let range = object.value(&mut ())?;
        if found {
            let index = json::as_u64(json::slice(output, range.clone())).ok_or(MergeError::Unreadable)?;
            out.extend_from_slice(json::slice(output, from..range.start));
            out.extend_from_slice(index.saturating_add(before as u64).to_string().as_bytes());
            from = range.end;
        }
    }
    out.extend_from_slice(json::slice(output, from..output.len()));
    Ok(())
}

/// Finds the numbers of a value and in the objects inside it.
fn numbers(value: &[u8], path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Sum)>) {
    if let Some(mut object) = Object::open(value) {
        if path.len() > USAGE_DEPTH {
            return;
        }
        while let Ok(Some(key)) = object.key() {
            let Ok(range) = object.value(&mut ()) else { return };
            let Ok(name) = String::from_utf8(json::key_name(key).into_owned()) else {
                continue;
            };
            path.push(name);
            numbers(json::slice(value, range), path, found);
            path.pop();
        }
    } else if matches!(value.first(), Some(b'-' | b'0'..=b'9'))
        && found.len() < MAX_SUMS
        && let Some(sum) = Sum::read(value)
    {
        found.push((path.clone(), sum));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::dialect::table::route;

    const OPENAI_PATH: &str = "/v1/embeddings";
    const GEMINI_PATH: &str = "/v1beta/models/e:batchEmbedContents";
    const OLLAMA_PATH: &str = "/api/embed";

    fn split_at(path: &str, body: &str, max: usize) -> Result<Option<Split>, SplitError> {
        let route = route(&http::Method::POST, path, None);
        split(&route, &Bytes::copy_from_slice(body.as_bytes()), max)
    }

    fn parts(path: &str, body: &str, max: usize) -> Option<Vec<String>> {
        let split = split_at(path, body, max).unwrap()?;
        let part = |i| String::from_utf8(split.part(i).unwrap().to_vec()).unwrap();
        Some((0..split.calls()).map(part).collect())
    }

    #[test]
    fn inputs_are_dealt_out_in_order() {
        for (path, body, want) in [
            (
                OPENAI_PATH,
                r#"{ "model":"m", "input" : ["a" , "b,]", "c"] , "encoding_format":"base64"}"#,
                Some(vec![
                    r#"{ "model":"m", "input" : ["a" , "b,]"] , "encoding_format":"base64"}"#,
                    r#"{ "model":"m", "input" : ["c"] , "encoding_format":"base64"}"#,
                ]),
            ),
            (
                OPENAI_PATH,
                r#"{"input":[[1,2],[3],[4]]}"#,
                Some(vec![r#"{"input":[[1,2],[3]]}"#, r#"{"input":[[4]]}"#]),
            ),
            (
                GEMINI_PATH,
                r#"{"requests":[{"a":1},{"a":2},{"a":3},{"a":4}]}"#,
                Some(vec![
                    r#"{"requests":[{"a":1},{"a":2}]}"#,
                    r#"{"requests":[{"a":3},{"a":4}]}"#,
                ]),
            ),
            (
                OLLAMA_PATH,
                r#"{"input":["a","b","c"]}"#,
                Some(vec![r#"{"input":["a","b"]}"#, r#"{"input":["c"]}"#]),
            ),
            (OPENAI_PATH, r#"{"input":[1,2,3,4]}"#, None),
            (OPENAI_PATH, r#"{"input":"text"}"#, None),
            (OPENAI_PATH, r#"{"input":["a","b"]}"#, None),
            (OPENAI_PATH, r#"{"input":[]}"#, None),
            (OPENAI_PATH, "{}", None),
            ("/v1beta/models/e:embedContent", r#"{"content":{}}"#, None),
            ("/v1/chat/completions", r#"{"input":["a","b","c"]}"#, None),
        ] {
            assert_eq!(
                parts(path, body, 2).as_deref(),
                want.map(|w| w.into_iter().map(str::to_owned).collect::<Vec<_>>())
                    .as_deref(),
                "{path} {body}"
            );
        }
        for body in [
            "nonsense",
            r#"{"input":["a","b","c""#,
            r#"{"input":["a"],"input":["b"]}"#,
        ] {
            assert!(split_at(OPENAI_PATH, body, 1).is_err(), "{body}");
        }
    }

    #[test]
    fn there_are_never_too_many_calls() {
        let body = json!({"input": vec!["x"; 5000]}).to_string();
        let split = split_at(OPENAI_PATH, &body, 1).unwrap().unwrap();
        assert_eq!((split.inputs(), split.calls()), (5000, 1000));
    }

    fn merged(path: &str, body: &str, max: usize, answers: &[&str]) -> Result<String, MergeError> {
        let split = split_at(path, body, max).unwrap().unwrap();
        let mut merge = split.merge();
        for answer in answers {
            merge.add(answer.as_bytes())?;
        }
        merge.finish().map(|b| String::from_utf8(b).unwrap())
    }

    #[test]
    fn answers_become_one() {
        let three = r#"{"input":["a","b","c"]}"#;
        assert_eq!(
            merged(
                OPENAI_PATH,
                three,
                2,
                &[
                    r#"{ "object":"list","data":[{"object":"embedding","index":0,"embedding":"AAA="}, {"index":1,"embedding":"BBB="}],"model":"m-1","usage":{"prompt_tokens":5,"total_tokens":5,"d":{"x":1,"cost":0.25}}}"#,
                    r#"{"model":"m-2","usage":{"total_tokens":2,"prompt_tokens":2,"d":{"cost":0.5}},"data":[ {"embedding":[-1e-3,2],"index": 0 ,"object":"embedding"} ]}"#,
                ]
            )
            .as_deref(),
            Ok(
                r#"{ "object":"list","data":[{"object":"embedding","index":0,"embedding":"AAA="},{"index":1,"embedding":"BBB="},{"embedding":[-1e-3,2],"index": 2 ,"object":"embedding"}],"model":"m-1","usage":{"prompt_tokens":7,"total_tokens":7,"d":{"x":1,"cost":0.75}}}"#
            )
        );
        assert_eq!(
            merged(
                GEMINI_PATH,
                r#"{"requests":[{},{},{}]}"#,
                2,
                &[
                    r#"{"embeddings":[{"values":[1]},{"values":[2]}],"usageMetadata":{"promptTokenCount":4}}"#,
                    r#"{"embeddings":[{"values":[3]}],"usageMetadata":{"promptTokenCount":3}}"#,
                ]
            )
            .as_deref(),
            Ok(r#"{"embeddings":[{"values":[1]},{"values":[2]},{"values":[3]}],"usageMetadata":{"promptTokenCount":7}}"#)
        );
        assert_eq!(
            merged(
                OLLAMA_PATH,
                three,
                1,
                &[
                    r#"{"model":"m","embeddings":[[1,2]],"total_duration":10,"prompt_eval_count":1}"#,
                    r#"{"model":"m","embeddings":[[3]],"total_duration":20,"prompt_eval_count":2}"#,
                    r#"{"model":"m","embeddings":[[4]],"total_duration":30}"#,
                ]
            )
            .as_deref(),
            Ok(r#"{"model":"m","embeddings":[[1,2],[3],[4]],"total_duration":60,"prompt_eval_count":3}"#)
        );
    }

    #[test]
    fn what_does_not_fit_is_not_put_together() {
        let three = r#"{"input":["a","b","c"]}"#;
        let good = r#"{"data":[{"index":0},{"index":1}]}"#;
        for (second, want) in [
            (r#"{"data":[]}"#, MergeError::Count { got: 0, want: 1 }),
            (good, MergeError::Count { got: 2, want: 1 }),
            ("{}", MergeError::Unreadable),
            (r#"{"data":{}}"#, MergeError::Unreadable),
            (r#"{"data":[{"index":"x"}]}"#, MergeError::Unreadable),
            ("<html>", MergeError::Unreadable),
            (r#"{"data":[{"index":0}"#, MergeError::Unreadable),
        ] {
            assert_eq!(
                merged(OPENAI_PATH, three, 2, &[good, second]),
                Err(want),
                "{second}"
            );
        }
        assert_eq!(merged(OPENAI_PATH, three, 2, &[]), Err(MergeError::Unreadable));
    }

    /// What an upstream answers: each input's own text as its vector.
    fn answer(body: &[u8]) -> String {
        let body: Value = serde_json::from_slice(body).unwrap();
        let inputs = body["input"].as_array().unwrap();
        let data: Vec<Value> = inputs
            .iter()
            .enumerate()
            .map(|(i, input)| json!({"object": "embedding", "index": i, "embedding": input}))
            .collect();
        let tokens: usize = inputs.iter().map(|i| i.to_string().len()).sum();
        json!({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
            .to_string()
    }

    proptest! {
        #[test]
        fn a_client_cannot_tell(inputs in proptest::collection::vec(r#"[a-z"\\\[\], é]{0,12}"#, 0..40), max in 1usize..10) {
            let body = json!({"model": "m", "input": inputs, "dimensions": 3}).to_string();
            let whole = answer(body.as_bytes());
            let Some(split) = split_at(OPENAI_PATH, &body, max).unwrap() else {
                prop_assert!(inputs.len() <= max);
                return Ok(());
            };
            prop_assert_eq!(split.inputs(), inputs.len());
            prop_assert_eq!(split.calls(), inputs.len().div_ceil(max));
            let mut merge = split.merge();
            for at in 0..split.calls() {
                merge.add(answer(&split.part(at).unwrap()).as_bytes()).unwrap();
            }
            prop_assert_eq!(split.part(split.calls()), None);
            prop_assert_eq!(String::from_utf8(merge.finish().unwrap()).unwrap(), whole);
        }

        #[test]
        fn nothing_panics(body in r#"\{"(input|data)":[\[\]{}",:a1 ]{0,30}\}?"#, answer in r#"\{"data":[\[\]{}",:a1 ]{0,30}\}?"#) {
            if let Ok(Some(split)) = split_at(OPENAI_PATH, &body, 1) {
                let mut merge = split.merge();
                merge.add(answer.as_bytes()).ok();
                merge.finish().ok();
            }
        }
    }
}
