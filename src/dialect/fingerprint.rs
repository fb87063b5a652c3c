//! A fingerprint of what an agent is made of: model, system prompt, tools and sampling parameters.

use sha2::{Digest, Sha256};

use super::json::{self, Array, Object};
use super::table::Route;

/// Leading system messages that count; an agent with more has the fingerprint of its first ones.
const MAX_SYSTEM: usize = 8;

/// Members that make up an agent.
const MEMBERS: usize = 20;

/// The place of a member in the order in which they are hashed, whatever their order in the body; `None` for those
/// that change from call to call (messages, seeds, output bounds).
fn place(name: &[u8]) -> Option<usize> {
    Some(match name {
        b"model" => 0,
        b"system" => 1,
        b"instructions" => 2,
        b"systemInstruction" => 3,
        b"system_instruction" => 4,
        b"preamble" => 5,
        b"tools" => 6,
        b"functions" => 7,
        b"toolConfig" => 8,
        b"temperature" => 9,
        b"top_p" => 10,
        b"top_k" => 11,
        b"frequency_penalty" => 12,
        b"presence_penalty" => 13,
        b"reasoning_effort" => 14,
        b"reasoning" => 15,
        b"thinking" => 16,
        b"generationConfig" => 17,
        b"inferenceConfig" => 18,
        b"options" => 19,
        _ => return None,
    })
}

/// The fingerprint of the agent behind a request (16 hex digits after `fp-`), `None` where there is nothing to tell.
pub fn agent_fingerprint(route: &Route, body: &[u8]) -> Option<String> {
    let mut sha = Sha256::new();
    parts(route, body, |tag, part| {
        sha.update([tag]);
        sha.update((part.len() as u64).to_le_bytes());
        sha.update(part);
    })?;
    let mut out = String::with_capacity(19);
    out.push_str("fp-");
    for byte in sha.finalize().iter().take(8) {
        for nibble in [byte >> 4, byte & 15] {
            out.extend(char::from_digit(u32::from(nibble), 16));
        }
    }
    Some(out)
}

/// A cheap key: equal keys mean the same fingerprint, so that it need not be worked out again. Hash of the very bytes
/// that the fingerprint covers. [`super::request::read`] finds it on its way through a body.
pub fn prefix_key(route: &Route, body: &[u8]) -> Option<u64> {
    let mut key = KeyMaker::default();
    let mut object = Object::open(body).filter(|_| route.api.generates())?;
    while let Some(name) = object.key().ok()? {
        let name = json::key_name(name);
        key.member(&name, json::slice(body, object.value(&mut ()).ok()?));
    }
    key.finish(route)
}

/// Makes the key of an agent from the members of a body, one by one, in whatever order they stand.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct KeyMaker {
    /// Of the hashes of all parts: a sum does not depend on their order.
    sum: u64,
    any: bool,
}

impl KeyMaker {
    /// Takes a top-level member.
    #[inline]
    pub(super) fn member(&mut self, name: &[u8], value: &[u8]) {
        if matches!(name, b"messages" | b"input") {
            for (at, message) in (0..).zip(system_messages(value)) {
                self.part(MESSAGE + at, message);
            }
        } else if let Some(at) = place(name) {
            self.part(at as u64, value);
        }
    }

    /// The key, `None` where there is nothing to tell.
    pub(super) fn finish(mut self, route: &Route) -> Option<u64> {
        if !route.api.generates() {
            return None;
        }
        if let Some(model) = &route.path_model {
            self.part(PATH_MODEL, model.as_bytes());
        }
        self.any.then_some(self.sum)
    }

    fn part(&mut self, tag: u64, part: &[u8]) {
        let mut hash = Folded(0x9e37_79b9_7f4a_7c15);
        hash.add(tag, part);
        self.sum = self.sum.wrapping_add(hash.0);
        self.any = true;
    }
}

/// Tags of parts that are no members; each system message has one of its own from [`MESSAGE`] on.
const MESSAGE: u64 = 1 << 8;
const PATH_MODEL: u64 = 1 << 9;

/// Calls `each` with everything that makes up the agent, in an order of its own.
fn parts<'a>(route: &'a Route, body: &'a [u8], mut each: impl FnMut(u8, &'a [u8])) -> Option<()> {
    if !route.api.generates() {
        return None;
    }
    let mut found: [Option<&[u8]>; MEMBERS] = [None; MEMBERS];
    let mut messages = None;
    let mut object = Object::open(body)?;
    while let Some(key) = object.key().ok()? {
        let name = json::key_name(key);
        let value = json::slice(body, object.value(&mut ()).ok()?);
        if matches!(&*name, b"messages" | b"input") {
            messages = Some(value);
        } else if let Some(slot) = place(&name).and_then(|at| found.get_mut(at)) {
            *slot = Some(value);
        }
    }
    let mut any = false;
    if let Some(model) = &route.path_model {
        each(255, model.as_bytes());
        any = true;
    }
    for (tag, part) in (0_u8..).zip(found) {
        if let Some(part) = part {
            each(tag, part);
            any = true;
        }
    }
    for message in messages.into_iter().flat_map(system_messages) {
        each(254, message);
        any = true;
    }
    any.then_some(())
}

/// The messages that the list begins with while their role is `system` or `developer`.
fn system_messages(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut array = Array::open(list);
    std::iter::from_fn(move || {
        let array = array.as_mut()?;
        // The role is looked at before the message is passed over: the first other one may be very long.
        let role = json::member(array.upcoming()?, "role")?;
        if !matches!(role, br#""system""# | br#""developer""#) {
            return None;
        }
        array.element().ok()?
    })
    .take(MAX_SYSTEM)
}

/// A hash by folded multiplication, 16 bytes at a time: system prompts and tools run to many kilobytes, and the
/// standard library's hasher is too slow for them. No defence against made collisions: a client could only mistake
/// its own version.
struct Folded(u64);

impl Folded {
    fn add(&mut self, tag: u64, bytes: &[u8]) {
        self.mix(tag, bytes.len() as u64);
        let mut rest = bytes;
        while let Some((low, tail)) = rest.split_first_chunk::<8>()
            && let Some((high, tail)) = tail.split_first_chunk::<8>()
        {
            self.mix(u64::from_le_bytes(*low), u64::from_le_bytes(*high));
            rest = tail;
        }
        // Less than 16 bytes are left; with the length that went before, every ending has a value of its own.
        let mut low = 0;
        if let Some((word, tail)) = rest.split_first_chunk::<8>() {
            low = u64::from_le_bytes(*word);
            rest = tail;
        }
        let high = rest.iter().fold(0, |all, b| all << 8 | u64::from(*b));
        self.mix(low, high);
    }

    fn mix(&mut self, a: u64, b: u64) {
        let left = self.0 ^ a ^ 0x2d35_8dcc_aa6c_78a5;
        let right = self.0.rotate_left(32) ^ b ^ 0x8bb8_4b93_962e_acc9;
        let product = u128::from(left) * u128::from(right);
        // Both halves of the product.
        let folded = product as u64 ^ (product >> 64) as u64;
        self.0 = self.0.rotate_left(23).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ folded;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::table::route;
    use proptest::prelude::*;

    fn of(path: &str, body: &str) -> (Option<String>, Option<u64>) {
        let route = route(&http::Method::POST, path, None);
        (
            agent_fingerprint(&route, body.as_bytes()),
            prefix_key(&route, body.as_bytes()),
        )
    }

    const CHAT: &str = "/v1/chat/completions";
    const BASE: &str = r#"{"model":"m","tools":[{"a":1}],"temperature":0.5,"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]}"#;

    #[test]
    fn it_has_a_shape() {
        let print = of(CHAT, BASE).0.unwrap();
        let hex = print.strip_prefix("fp-").unwrap();
        assert!(
            hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit()),
            "{print}"
        );
    }

    #[test]
    fn it_is_that_of_the_agent_and_not_of_the_call() {
        let same = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"other"},{"role":"system","content":"late"}],"temperature":0.5,"model":"m","tools":[{"a":1}],"stream":true,"max_tokens":9}"#;
        assert_eq!(of(CHAT, same), of(CHAT, BASE));
        for (from, to) in [
            (r#""m""#, r#""n""#),
            (r#""a":1"#, r#""a":2"#),
            ("0.5", "0.6"),
            (r#""s""#, r#""t""#),
            ("\"system\"", "\"developer\""),
        ] {
            let other = BASE.replace(from, to);
            assert_ne!(of(CHAT, &other).0, of(CHAT, BASE).0, "{other}");
            assert_ne!(of(CHAT, &other).1, of(CHAT, BASE).1, "{other}");
        }
    }

    #[test]
    fn every_api_has_its_words_for_a_system_prompt() {
        for (path, body) in [
            ("/v1/messages", r#"{"system":"S"}"#),
            ("/v1/responses", r#"{"instructions":"S"}"#),
            (
                "/v1/responses",
                r#"{"input":[{"role":"developer","content":"S"}]}"#,
            ),
            (
                "/v1beta/models/g:generateContent",
                r#"{"systemInstruction":{"parts":[{"text":"S"}]}}"#,
            ),
            ("/model/m/converse", r#"{"system":[{"text":"S"}]}"#),
            ("/v1/chat", r#"{"message":"x","preamble":"S"}"#),
        ] {
            assert_ne!(of(path, body), of(path, &body.replace('S', "T")), "{path}");
        }
        assert_ne!(of("/model/a/converse", "{}"), of("/model/b/converse", "{}"));
    }

    #[test]
    fn there_may_be_nothing_to_tell() {
        for (path, body) in [
            (CHAT, "{}"),
            (CHAT, "nonsense"),
            (CHAT, r#"{"messages":[{"role":"user"}]}"#),
            ("/v1/embeddings", r#"{"model":"m"}"#),
            ("/x", r#"{"model":"m"}"#),
        ] {
            assert_eq!(of(path, body), (None, None), "{path} {body}");
        }
    }

    proptest! {
        #[test]
        fn keys_tell_what_fingerprints_tell(a in "[a-c]{0,40}", b in "[a-c]{0,40}", c in "[a-c]{0,3}") {
            let body = |s: &str| format!(r#"{{"model":"{c}","system":"{s}"}}"#);
            let (one, two) = (of("/v1/messages", &body(&a)), of("/v1/messages", &body(&b)));
            prop_assert_eq!(one.0 == two.0, one.1 == two.1);
            prop_assert_eq!(one.0 == two.0, a == b);
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100), text in r#"[{}\[\]",:a1]{0,60}"#) {
            let route = route(&http::Method::POST, CHAT, None);
            for body in [&bytes[..], text.as_bytes()] {
                prop_assert_eq!(agent_fingerprint(&route, body).is_some(), prefix_key(&route, body).is_some());
            }
        }
    }
}
