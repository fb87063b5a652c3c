//! A body that is no stream: kept up to a bound, beyond it only its beginning and its end.

use memchr::memmem;

use super::answer::{Facts, Reader};
use super::cursor::Cursor;

/// How much of the end of a body is kept when it is over the limit, in bytes.
const TAIL: usize = 64 << 10;
/// How much room is made at once for a body whose length was told, in bytes.
const ROOM: usize = 1 << 20;
/// How many places are looked at for usage in the end of a body.
const TRIES: usize = 16;

/// A body so far.
#[derive(Debug, Default)]
pub(super) struct Body {
    head: Vec<u8>,
    /// Its last bytes, once it is over the limit: between [`TAIL`] and twice as many.
    tail: Option<Vec<u8>>,
}

impl Body {
    /// Makes room for a body whose length was told.
    pub(super) fn announce(&mut self, length: Option<usize>, limit: usize) {
        self.head.reserve_exact(length.unwrap_or(0).min(limit).min(ROOM));
    }

    /// Takes a piece of it.
    pub(super) fn push(&mut self, piece: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.head.len());
        let (head, rest) = piece.split_at(room.min(piece.len()));
        self.head.extend_from_slice(head);
        if rest.is_empty() {
            return;
        }
        let tail = self.tail.get_or_insert_default();
        let last = rest.get(rest.len().saturating_sub(TAIL)..).unwrap_or(rest);
        tail.extend_from_slice(last);
        if tail.len() > 2 * TAIL {
            tail.drain(..tail.len() - TAIL);
        }
    }

    /// Whether all of it is there.
    pub(super) const fn is_complete(&self) -> bool {
        self.tail.is_none()
    }

    /// Its beginning.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// Reads what is there of it.
    pub(super) fn read(self, ok: bool, reader: &mut Reader, facts: &mut Facts) {
        reader.whole(&self.head, ok, facts);
        if let Some(tail) = self.tail
            && ok
        {
            // The end may begin within what the limit cut off.
            let start = self.head.len().saturating_sub(TAIL);
            let mut end = self.head.get(start..).unwrap_or_default().to_vec();
            end.extend_from_slice(&tail);
            if let Some(members) = last_members(&end) {
                reader.whole(&members, ok, facts);
            }
        }
    }
}

/// An object of the top-level members that a body ends with, from its usage on.
fn last_members(end: &[u8]) -> Option<Vec<u8>> {
    let finder = memmem::FinderRev::new("\"usage");
    finder.rfind_iter(end).take(TRIES).find_map(|at| {
        let mut members = vec![b'{'];
        members.extend_from_slice(end.get(at..)?.trim_ascii_end());
        // At another depth the object would be closed before the body is.
        let mut cursor = Cursor::new(&members);
        (cursor.object(|_, _| {}) && cursor.at() == members.len()).then_some(members)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::table::Api;

    fn read(json: &str, size: usize, limit: usize) -> Facts {
        let mut body = Body::default();
        for piece in json.as_bytes().chunks(size) {
            body.push(piece, limit);
        }
        let mut facts = Facts::default();
        body.read(true, &mut Reader::for_api(Api::OpenAiChat), &mut facts);
        facts
    }

    #[test]
    fn usage_is_found_at_the_end_of_a_body_over_the_limit() {
        let text = "x".repeat(300_000);
        let json = format!(
            r#"{{"model":"m","choices":[{{"message":{{"content":"{text}"}}}}],"tools":[{{"usage":{{"prompt_tokens":9}}}}],
            "usage":{{"prompt_tokens":3,"completion_tokens":4}},"x":{{"usage":{{"prompt_tokens":8}}}}}}
            "#
        );
        for size in [100, 5000, 1 << 20] {
            let facts = read(&json, size, 10_000);
            assert_eq!(facts.usage.input_tokens, Some(3), "{size}");
            assert_eq!(facts.model.as_deref(), Some("m"));
        }
        // The limit cuts through the usage.
        for cut in 1..120 {
            let facts = read(&json, 1000, json.len() - cut);
            assert_eq!(facts.usage.output_tokens, Some(4), "{cut}");
        }
    }

    #[test]
    fn no_more_is_held_than_said() {
        let mut body = Body::default();
        for _ in 0..1000 {
            body.push(&[b'['; 10_000], 100_000);
        }
        assert!(body.head.capacity() <= 200_000);
        assert!(body.tail.unwrap().capacity() <= 8 * TAIL);
    }
}
