//! Counts the text of messages and notices images, audio and documents among them.

use super::json::Visit;
use super::table::{Api, Family};

/// Strings shorter than this are text, whatever they look like.
const SHORT: usize = 128;

/// What messages hold, counted while they are passed over.
#[derive(Debug)]
pub(super) struct Tally {
    /// Bytes of text, as written; base64 data is not counted.
    pub(super) text: u64,
    /// There are images, audio or documents.
    pub(super) media: bool,
    /// Bedrock names the kind of a part by its key.
    named_parts: bool,
    /// Cohere's documents are texts.
    document_is_text: bool,
    look: bool,
    key: Key,
    /// Inside the arguments of a tool call at this depth: what stands there is data, not a part of a message.
    quiet: u32,
}

/// The last key, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Type,
    Images,
    Data,
    Other,
}

impl Tally {
    pub(super) fn new(api: Api) -> Self {
        Self {
            text: 0,
            media: false,
            named_parts: api.family() == Family::Bedrock,
            document_is_text: api.family() == Family::Cohere,
            look: false,
            key: Key::Other,
            quiet: u32::MAX,
        }
    }

    /// Begins with the value of the top-level member `name`; `look`: media are looked for in it.
    pub(super) fn begin(&mut self, name: &[u8], look: bool) {
        self.look = look;
        self.quiet = u32::MAX;
        self.key = match name {
            b"image" | b"images" => Key::Images,
            _ => Key::Other,
        };
    }

    fn is_media_type(&self, raw: &[u8]) -> bool {
        match raw {
            b"text" => false,
            b"image" | b"image_url" | b"input_image" | b"image_file" | b"input_audio" | b"audio"
            | b"input_file" | b"file" | b"video" | b"video_url" | b"audio_url" | b"input_video"
            | b"document_url" => true,
            b"document" => !self.document_is_text,
            _ => false,
        }
    }
}

impl Visit for Tally {
    #[inline]
    fn key(&mut self, raw: &[u8], first: u8, depth: u32) {
        if depth <= self.quiet {
            self.quiet = u32::MAX;
        }
        let holds = matches!(first, b'{' | b'"');
        self.key = match raw {
            b"type" => Key::Type,
            b"data" | b"bytes" | b"file_data" | b"url" | b"signature" | b"encrypted_content"
            | b"thoughtSignature" | b"b64_json" => Key::Data,
            b"images" => Key::Images,
            b"image_url" | b"input_audio" | b"inlineData" | b"inline_data" | b"fileData"
            | b"document_url"
                if holds =>
            {
                self.media |= self.look && self.quiet == u32::MAX;
                Key::Data
            }
            b"image" | b"document" | b"video" if self.named_parts && first == b'{' => {
                self.media |= self.look && self.quiet == u32::MAX;
                Key::Other
            }
            b"input" | b"args" | b"arguments" | b"parameters" | b"response" if first == b'{' => {
                if self.quiet == u32::MAX {
                    self.quiet = depth;
                }
                Key::Other
            }
            _ => Key::Other,
        };
    }

    #[inline]
    fn string(&mut self, raw: &[u8]) {
        match self.key {
            Key::Type => {
                if self.look && self.quiet == u32::MAX && self.is_media_type(raw) {
                    self.media = true;
                }
                return;
            }
            Key::Images => {
                self.media |= self.look && !raw.is_empty();
                if is_encoded(raw) {
                    return;
                }
            }
            Key::Data => {
                if raw.len() >= SHORT && is_encoded(raw) {
                    return;
                }
            }
            Key::Other => {
                if raw.len() >= SHORT && raw.starts_with(b"data:") && is_encoded(raw) {
                    return;
                }
            }
        }
        self.text += raw.len() as u64;
    }

    /// A number inside an input is a token id; others are few.
    fn scalar(&mut self, _raw: &[u8]) {
        self.text += 4;
    }
}

/// Whether a string is base64 (or a `data:` URL of it), judged by its beginning.
fn is_encoded(raw: &[u8]) -> bool {
    let head = raw.get(..96).unwrap_or(raw);
    if head.starts_with(b"data:") {
        return memchr::memmem::find(head, b";base64,").is_some();
    }
    head.iter()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_' | b'\\'))
}
