//! Recorded traffic replayed through the running program: the client gets what was recorded, byte for byte, and the
//! observation says what the recording's `expect` says.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use serde_json::{Value, json};

use crate::support::chance::{Chance, Cut};
use crate::support::client::{Ask, Client};
use crate::support::eventually;
use crate::support::fusebox::{Config, Fusebox};
use crate::support::http1::Message;
use crate::support::upstream::{Framing, Piece, Reply, Upstream};

/// Connections that replay side by side.
const CONNECTIONS: usize = 16;

/// Differences that are listed.
const LISTED: usize = 20;

/// Largest body that is sent byte by byte.
const MAX_ATOMS: usize = 24 << 10;

/// One recorded exchange, ready to be replayed.
struct Recording {
    id: String,
    api: String,
    method: String,
    target: String,
    request_headers: Vec<(String, String)>,
    request_body: Option<Vec<u8>>,
    /// The body that was recorded; a minimal one was made otherwise.
    request_known: bool,
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    stream: bool,
    sse: bool,
    expect: Value,
}

#[tokio::test]
async fn recorded_exchanges_pass_and_are_read() {
    let Some(recordings) = recordings() else { return };
    // Everything, with nothing asked on the client's behalf: not a byte may differ, in either direction.
    let all: Vec<Arc<Recording>> = recordings.into_iter().map(Arc::new).collect();
    let (mut differences, seen) = replay(&all).await;
    for recording in &all {
        differences.extend(request_differences(recording, seen.get(&recording.id)));
    }
    report("with include_usage: never", &all, &differences);
    assert!(differences.is_empty());
}

#[tokio::test]
async fn usage_that_is_asked_for_is_hidden_again() {
    let Some(recordings) = recordings() else { return };
    let chat = |r: &Recording| {
        matches!(r.api.as_str(), "openai.chat" | "openai.completions")
            && r.sse
            && r.status == 200
            && r.request_known
            && !r.headers.iter().any(|(n, _)| n == "content-encoding")
    };
    let sample: Vec<Arc<Recording>> = recordings.into_iter().filter(chat).map(Arc::new).collect();
    assert!(
        sample.len() > 20,
        "only {} chat streams in the corpus",
        sample.len()
    );
    let (mut differences, seen) = replay_with(
        &sample,
        |upstream| Config::new(upstream).upstream("include_usage: auto"),
        hidden_differences,
    )
    .await;
    let mut asked = 0;
    for recording in &sample {
        let sent: Value =
            serde_json::from_slice(recording.request_body.as_deref().unwrap_or_default()).unwrap();
        let Some(got) = seen.get(&recording.id) else {
            continue;
        };
        let mut got: Value = serde_json::from_slice(&got.body).unwrap_or_default();
        if may_ask(&sent) {
            // `stream_options` is there now, and nothing else changed.
            if got.pointer("/stream_options/include_usage") == Some(&json!(true)) {
                asked += 1;
            } else {
                differences.push(difference(
                    recording,
                    "usage was not asked for",
                    "asked",
                    &got["stream_options"],
                ));
            }
            // The client's own spelling of it, where it had one (`false`, or other options beside it).
            let own = sent.pointer("/stream_options/include_usage").cloned();
            match (sent.get("stream_options"), got.as_object_mut()) {
                (None, Some(got)) => drop(got.remove("stream_options")),
                (Some(Value::Object(_)), Some(got)) => {
                    if let Some(options) = got.get_mut("stream_options").and_then(Value::as_object_mut) {
                        options.remove("include_usage");
                        options.extend(own.map(|own| ("include_usage".to_owned(), own)));
                    }
                }
                (Some(own), Some(got)) => drop(got.insert("stream_options".to_owned(), own.clone())),
                (_, None) => {}
            }
        }
        if got != sent {
            differences.push(difference(recording, "request changed", &sent, &got));
        }
    }
    eprintln!("usage was asked for in {asked} of {} chat streams", sample.len());
    report("with include_usage: auto", &sample, &differences);
    assert!(asked > 0, "no stream was asked for its usage");
    assert!(differences.is_empty());
}

/// Whether fusebox asks for usage in a stream of this request: the client did not ask itself.
fn may_ask(request: &Value) -> bool {
    request["stream"] == json!(true) && request.pointer("/stream_options/include_usage") != Some(&json!(true))
}

type Seen = HashMap<String, Message>;

async fn replay(all: &[Arc<Recording>]) -> (Vec<Difference>, Seen) {
    let config = |upstream: &Upstream| Config::new(upstream).upstream("include_usage: never");
    replay_with(all, config, answer_differences).await
}

/// Replays `all` and compares answers (by `compare`) and observations; also gives what the upstream saw, by id.
async fn replay_with(
    all: &[Arc<Recording>],
    config: impl FnOnce(&Upstream) -> Config,
    compare: fn(&Recording, &Message) -> Vec<Difference>,
) -> (Vec<Difference>, Seen) {
    let by_id: HashMap<String, Arc<Recording>> = all.iter().map(|r| (r.id.clone(), Arc::clone(r))).collect();
    let upstream = Upstream::start(move |seen| {
        let id = seen.header("x-replay").unwrap_or_default();
        by_id
            .get(&id)
            .map_or_else(|| Reply::json("{}").status(599), |r| r.reply())
    })
    .await;
    let fusebox = Fusebox::start(&config(&upstream)).await;

    let next = Arc::new(AtomicUsize::new(0));
    let differences = Arc::new(Mutex::new(Vec::new()));
    let mut workers = Vec::new();
    for _ in 0..CONNECTIONS.min(all.len()) {
        let (next, differences) = (Arc::clone(&next), Arc::clone(&differences));
        let (all, address) = (all.to_vec(), fusebox.address().to_owned());
        workers.push(tokio::spawn(async move {
            let mut client = Client::connect(&address).await;
            while let Some(recording) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                client.send(&recording.ask()).await;
                let Some(answer) = client.try_answer().await else {
                    let none = difference(recording, "no answer", &recording.status, "the connection ended");
                    differences.lock().unwrap().push(none);
                    client = Client::connect(&address).await;
                    continue;
                };
                let found = compare(recording, &answer);
                let closes = answer
                    .header("connection")
                    .is_some_and(|c| c.eq_ignore_ascii_case("close"));
                if closes || !answer.complete {
                    client = Client::connect(&address).await;
                }
                differences.lock().unwrap().extend(found);
            }
        }));
    }
    for worker in workers {
        worker.await.expect("a worker that replays");
    }

    let observations = eventually("an observation of every exchange", async || {
        let observations = fusebox.observations();
        (observations.len() >= all.len()).then_some(observations)
    })
    .await;
    let mut differences = std::mem::take(&mut *differences.lock().unwrap());
    let mut by_request: HashMap<String, Vec<Value>> = HashMap::new();
    for observation in observations {
        let id = observation["request_id"].as_str().unwrap_or_default().to_owned();
        by_request.entry(id).or_default().push(observation);
    }
    for recording in all {
        match by_request.get(&recording.id).map(Vec::as_slice) {
            Some([observation]) => differences.extend(observation_differences(recording, observation)),
            other => {
                let count = other.map_or(0, <[Value]>::len);
                differences.push(difference(recording, "observations", &1, &count));
            }
        }
    }
    let seen = upstream.seen();
    let seen = seen
        .into_iter()
        .filter_map(|s| Some((s.header("x-replay")?, s.message)))
        .collect();
    (differences, seen)
}

/// One thing that is not as it was recorded.
struct Difference {
    id: String,
    api: String,
    text: String,
}

fn difference(
    recording: &Recording,
    what: &str,
    want: &(impl std::fmt::Debug + ?Sized),
    got: &(impl std::fmt::Debug + ?Sized),
) -> Difference {
    let short = |text: String| match text.char_indices().nth(300) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    };
    Difference {
        id: recording.id.clone(),
        api: recording.api.clone(),
        text: format!(
            "{what}: want {}, got {}",
            short(format!("{want:?}")),
            short(format!("{got:?}"))
        ),
    }
}

fn report(how: &str, all: &[Arc<Recording>], differences: &[Difference]) {
    let mut wrong: BTreeMap<&str, Vec<&Difference>> = BTreeMap::new();
    for d in differences {
        wrong.entry(&d.id).or_default().push(d);
    }
    let mut apis: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for r in all {
        let (total, bad) = apis.entry(&r.api).or_default();
        *total += 1;
        *bad += usize::from(wrong.contains_key(r.id.as_str()));
    }
    println!(
        "corpus {how}: {} of {} exchanges equal",
        all.len() - wrong.len(),
        all.len()
    );
    for (api, (total, bad)) in &apis {
        println!("  {api:26} {:5} of {total:5}", total - bad);
    }
    for d in differences.iter().take(LISTED) {
        println!("  {} {}: {}", d.id, d.api, d.text);
    }
    if differences.len() > LISTED {
        println!("  … and {} more differences", differences.len() - LISTED);
    }
}

/// The request arrived as it was sent.
fn request_differences(recording: &Recording, seen: Option<&Message>) -> Vec<Difference> {
    let Some(seen) = seen else {
        return vec![difference(recording, "request", "to arrive", "nothing")];
    };
    let mut found = Vec::new();
    if seen.target() != recording.target {
        found.push(difference(recording, "target", &recording.target, seen.target()));
    }
    if seen.body != recording.request_body.as_deref().unwrap_or_default() {
        found.push(difference(
            recording,
            "request body",
            &recording.request_body.as_ref().map(Vec::len),
            &seen.body.len(),
        ));
    }
    for (name, value) in &recording.request_headers {
        if !seen.all(name).iter().any(|v| v == value) {
            found.push(difference(
                recording,
                &format!("request header {name}"),
                value,
                &seen.all(name),
            ));
        }
    }
    found
}

/// The answer is byte for byte what was recorded.
fn answer_differences(recording: &Recording, answer: &Message) -> Vec<Difference> {
    let mut found = head_differences(recording, answer);
    if answer.body != recording.body {
        let at = answer
            .body
            .iter()
            .zip(&recording.body)
            .take_while(|(a, b)| a == b)
            .count();
        let around = |body: &[u8]| {
            let part = &body[at.saturating_sub(20).min(body.len())..(at + 60).min(body.len())];
            format!("{} bytes, at {at}: {}", body.len(), String::from_utf8_lossy(part))
        };
        found.push(difference(
            recording,
            "body",
            &around(&recording.body),
            &around(&answer.body),
        ));
    }
    found
}

fn head_differences(recording: &Recording, answer: &Message) -> Vec<Difference> {
    let mut found = Vec::new();
    if answer.status() != recording.status {
        found.push(difference(
            recording,
            "status",
            &recording.status,
            &answer.status(),
        ));
    }
    if !answer.complete {
        found.push(difference(recording, "answer", "complete", "broken off"));
    }
    let mut want: Vec<(String, String)> = recording.headers.clone();
    let framing = |n: &str| matches!(n, "content-length" | "transfer-encoding" | "connection");
    let headers = answer.headers.iter().filter(|(n, _)| !framing(n));
    let mut got: Vec<(String, String)> = headers
        .map(|(n, v)| (n.clone(), String::from_utf8_lossy(v).into_owned()))
        .collect();
    want.sort();
    got.sort();
    if want != got {
        let missing: Vec<_> = want.iter().filter(|h| !got.contains(h)).collect();
        let extra: Vec<_> = got.iter().filter(|h| !want.contains(h)).collect();
        found.push(difference(recording, "headers", &missing, &extra));
    }
    found
}

/// The answer, where usage may have been asked for: events of usage alone are gone, and `"usage":null` with them;
/// everything else is as it was recorded.
fn hidden_differences(recording: &Recording, answer: &Message) -> Vec<Difference> {
    let request: Value =
        serde_json::from_slice(recording.request_body.as_deref().unwrap_or_default()).unwrap_or_default();
    if !may_ask(&request) {
        return answer_differences(recording, answer);
    }
    let mut found = head_differences(recording, answer);
    let want: Vec<Vec<String>> = events(&recording.body)
        .into_iter()
        .filter_map(without_usage)
        .collect();
    let got: Vec<Vec<String>> = events(&answer.body)
        .into_iter()
        .filter_map(normal_event)
        .collect();
    if want != got {
        let at = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
        found.push(difference(
            recording,
            &format!("event {at}"),
            &want.get(at),
            &got.get(at),
        ));
    }
    found
}

/// The lines of each event.
fn events(body: &[u8]) -> Vec<Vec<String>> {
    let text = String::from_utf8_lossy(body).replace("\r\n", "\n");
    let blocks = text.split("\n\n").map(|b| {
        b.lines()
            .filter(|l| !l.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    blocks.filter(|b| !b.is_empty()).collect()
}

/// What a client that did not ask for usage gets of an event.
fn without_usage(event: Vec<String>) -> Option<Vec<String>> {
    let data = event.iter().find_map(|l| l.strip_prefix("data:"));
    let parsed = data.and_then(|d| serde_json::from_str::<Value>(d.trim()).ok());
    if let Some(parsed) = parsed {
        let no_choices = parsed["choices"].as_array().is_some_and(Vec::is_empty);
        if no_choices && parsed["usage"].is_object() {
            return None;
        }
    }
    normal_event(event)
}

/// An event with its JSON in one spelling and without `"usage":null`.
fn normal_event(event: Vec<String>) -> Option<Vec<String>> {
    let line = |l: String| {
        let Some(data) = l.strip_prefix("data:") else {
            return l;
        };
        let Ok(mut parsed) = serde_json::from_str::<Value>(data.trim()) else {
            return l;
        };
        if parsed["usage"].is_null()
            && let Some(object) = parsed.as_object_mut()
        {
            object.remove("usage");
        }
        format!("data: {parsed}")
    };
    Some(event.into_iter().map(line).collect())
}

/// The observation says what the recording's `expect` says.
fn observation_differences(recording: &Recording, observation: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    let expect = &recording.expect;
    let check = |name: &str, want: &Value| {
        (*want != observation[name]).then(|| difference(recording, name, want, &observation[name]))
    };
    found.extend(check("status", &json!(recording.status)));
    found.extend(check("outcome", &json!("complete")));
    if recording.api == "other" {
        return found;
    }
    found.extend(check("api", &json!(recording.api)));
    found.extend(check("stream", &json!(recording.stream)));
    for name in [
        "model_requested",
        "model_served",
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "finish_reason",
        "finish_detail",
        "error_type",
        "error_code",
    ] {
        found.extend(check(name, &expect[name]));
    }
    // `expect` has these only when they say something: zero and absent are the same here.
    for name in [
        "input_audio_tokens",
        "output_audio_tokens",
        "tool_use_input_tokens",
        "header_input_tokens",
        "header_output_tokens",
    ] {
        let silent = expect[name].is_null() && observation[name].as_u64().is_none_or(|n| n == 0);
        if !silent && expect[name] != observation[name] {
            found.push(difference(recording, name, &expect[name], &observation[name]));
        }
    }
    let tools = if expect["tool_calls"].is_null() {
        json!([])
    } else {
        expect["tool_calls"].clone()
    };
    found.extend(check("tool_calls", &tools));
    let want = expect["output_text"]
        .as_str()
        .map_or(0, |t| t.chars().count() as u64);
    // No text is `null` in an observation; `""` and null of `expect` are the same to it.
    let got = &observation["output_chars"];
    if got.as_u64().unwrap_or(0) != want || !(got.is_null() || got.is_u64()) {
        found.push(difference(recording, "output_chars", &want, got));
    }
    found
}

impl Recording {
    fn read(line: &str) -> Self {
        let record: Value = serde_json::from_str(line).expect("a line of the corpus is JSON");
        let (request, response) = (&record["request"], &record["response"]);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let expect = record["expect"].clone();
        let stream = response["stream"] == json!(true);
        let (path, query) = (
            escaped(&text(&request["path"])),
            escaped(&text(&request["query"])),
        );
        let method = text(&request["method"]);
        let recorded = body(request);
        let request_known = recorded.is_some();
        let request_body =
            recorded.or_else(|| (method == "POST").then(|| minimal_body(&expect, &path, stream)));
        Self {
            id: text(&record["id"]),
            api: text(&record["api"]),
            target: if query.is_empty() {
                path
            } else {
                format!("{path}?{query}")
            },
            // The replay's own request ids take the place of recorded ones.
            request_headers: headers(&request["headers"])
                .into_iter()
                .filter(|(n, _)| n != "x-request-id")
                .collect(),
            request_body,
            request_known,
            status: response["status"]
                .as_u64()
                .and_then(|s| u16::try_from(s).ok())
                .unwrap_or(0),
            headers: headers(&response["headers"]),
            body: body(response).unwrap_or_default(),
            stream,
            sse: response["framing"] == json!("sse"),
            expect,
            method,
        }
    }

    fn ask(&self) -> Ask {
        let mut ask = Ask::new(&self.method, &self.target);
        for (name, value) in &self.request_headers {
            ask = ask.header(name, value);
        }
        ask = ask.header("x-request-id", &self.id).header("x-replay", &self.id);
        match &self.request_body {
            Some(body) => ask.body(body),
            None => ask,
        }
    }

    /// The recorded answer, cut and framed by chance (the same chance for the same recording).
    fn reply(&self) -> Reply {
        let mut chance = Chance::named(&self.id);
        let every_byte = chance.below(24) == 0 && self.body.len() <= MAX_ATOMS;
        let how = match chance.below(8) {
            _ if every_byte => Cut::EveryByte,
            0 => Cut::Whole,
            _ => Cut::Random(chance.next()),
        };
        let framing = match chance.below(3) {
            _ if matches!(self.status, 204 | 304) => Framing::Nothing,
            _ if every_byte || self.stream => Framing::Chunked,
            0 => Framing::Chunked,
            _ => Framing::Length,
        };
        let mut reply = Reply::new(self.status, "", &self.body).framed(framing).cut(how);
        let headers = self.headers.iter();
        reply.headers = headers
            .map(|(n, v)| (n.clone(), v.clone().into_bytes()))
            .collect();
        if framing == Framing::Nothing {
            reply.pieces = Vec::<Piece>::new();
        }
        reply
    }
}

/// Every recording there is; `None`, said loudly, when there is none.
fn recordings() -> Option<Vec<Recording>> {
    let (directory, told) = match std::env::var_os("FUSEBOX_CORPUS") {
        Some(directory) => (PathBuf::from(directory), true),
        None => (
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus"),
            false,
        ),
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            name.starts_with("traffic-") && (name.ends_with(".jsonl") || name.ends_with(".jsonl.gz"))
        })
        .collect();
    files.sort();
    if files.is_empty() {
        let directory = directory.display();
        assert!(
            !told,
            "FUSEBOX_CORPUS is {directory}, but there is no traffic-*.jsonl[.gz] in it"
        );
        println!("SKIPPED: no recorded traffic in {directory}; set FUSEBOX_CORPUS to replay some");
        eprintln!("SKIPPED: no recorded traffic in {directory}; set FUSEBOX_CORPUS to replay some");
        return None;
    }
    let mut all = Vec::new();
    for file in files {
        let bytes = std::fs::read(&file).expect("the corpus can be read");
        let mut text = String::new();
        if file.extension().is_some_and(|e| e == "gz") {
            flate2::read::MultiGzDecoder::new(&bytes[..])
                .read_to_string(&mut text)
                .expect("valid gzip");
        } else {
            text = String::from_utf8(bytes).expect("the corpus is UTF-8");
        }
        all.extend(text.lines().filter(|l| !l.trim().is_empty()).map(Recording::read));
    }
    Some(all)
}

/// Headers that a replay passes on: what belongs to one hop or frames the body is left out.
fn headers(recorded: &Value) -> Vec<(String, String)> {
    let hop = |name: &str| {
        matches!(
            name,
            "host"
                | "content-length"
                | "transfer-encoding"
                | "connection"
                | "keep-alive"
                | "te"
                | "trailer"
                | "upgrade"
                | "expect"
                | "proxy-connection"
                | "proxy-authorization"
        )
    };
    let mut all = Vec::new();
    for (name, value) in recorded.as_object().into_iter().flatten() {
        let values: Vec<&Value> = value
            .as_array()
            .map_or_else(|| vec![value], |all| all.iter().collect());
        for value in values.into_iter().filter_map(Value::as_str) {
            // A few recorders ran two headers together.
            let value = value.lines().next().unwrap_or_default().trim();
            if !hop(name) {
                all.push((name.to_ascii_lowercase(), value.to_owned()));
            }
        }
    }
    all
}

/// A recorded body, decoded from base64 where it is binary.
fn body(side: &Value) -> Option<Vec<u8>> {
    if let Some(text) = side["body_text"].as_str() {
        return Some(text.as_bytes().to_vec());
    }
    let encoded = side["body_b64"].as_str()?;
    Some(
        base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .expect("valid base64"),
    )
}

/// A body for a request that was not recorded: the model, where the path does not say it, and whether to stream.
fn minimal_body(expect: &Value, path: &str, stream: bool) -> Vec<u8> {
    let mut body = serde_json::Map::new();
    if let Some(model) = expect["model_requested"].as_str()
        && !path.contains(model)
    {
        body.insert("model".to_owned(), json!(model));
    }
    if stream {
        body.insert("stream".to_owned(), json!(true));
    }
    Value::Object(body).to_string().into_bytes()
}

/// What may not stand in a request target, percent-encoded.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if matches!(
            c,
            ' ' | '"' | '<' | '>' | '#' | '\\' | '^' | '`' | '{' | '|' | '}'
        ) || !c.is_ascii_graphic()
        {
            let mut buffer = [0; 4];
            for byte in c.encode_utf8(&mut buffer).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        } else {
            out.push(c);
        }
    }
    out
}
