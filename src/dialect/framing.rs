//! How the body of an answer is framed, judged from its content type and its first bytes, and read accordingly.

use super::answer::{Facts, Reader};
use super::cursor::Cursor;
use super::documents::{Elements, Lines};
use super::ending::Frame;
use super::sse::{self, Event};
use super::table::{Api, Family};
use super::{eventstream, whole};

/// What a content type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ContentType {
    /// `text/event-stream`
    Events,
    /// One JSON document a line.
    Lines,
    /// `application/vnd.amazon.eventstream`
    Aws,
    /// JSON.
    Json,
    /// Sound, pictures and the like.
    Binary,
    /// Nothing that helps.
    Unknown,
}

impl ContentType {
    pub(super) fn of(headers: &http::HeaderMap) -> Self {
        let value = headers.get(http::header::CONTENT_TYPE);
        // As nearly all answers spell it.
        match value.map(http::HeaderValue::as_bytes) {
            Some(b"application/json") => return Self::Json,
            Some(b"text/event-stream") => return Self::Events,
            _ => {}
        }
        let value = value.and_then(|v| v.to_str().ok());
        let media = value
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .trim();
        let is = |name: &str| media.eq_ignore_ascii_case(name);
        let top = media.split('/').next().unwrap_or_default();
        if is("text/event-stream") {
            Self::Events
        } else if is("application/json") {
            Self::Json
        } else if [
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
            "application/x-jsonlines",
            "application/stream+json",
        ]
        .into_iter()
        .any(is)
        {
            Self::Lines
        } else if is("application/vnd.amazon.eventstream") {
            Self::Aws
        } else if ["audio", "image", "video", "font"]
            .into_iter()
            .any(|t| top.eq_ignore_ascii_case(t))
        {
            Self::Binary
        } else {
            Self::Unknown
        }
    }
}

/// What is known of a body before it begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expected {
    pub(super) api: Api,
    pub(super) content: ContentType,
    /// Its status is one of success.
    pub(super) ok: bool,
    pub(super) stream_asked: bool,
    /// Length of the whole (not encoded) body in bytes, when it was told.
    pub(super) length: Option<usize>,
    /// Bound of a whole body and of one event, in bytes.
    pub(super) limit: usize,
}

/// Where a body is being read.
#[derive(Debug)]
pub(super) enum Framing {
    /// What came so far does not tell.
    Undecided(Vec<u8>),
    Events(sse::Scanner),
    Lines(Lines),
    Elements(Elements),
    Aws(eventstream::Scanner),
    Whole(whole::Body),
    /// A whole body that came, and was read, in one piece.
    Read,
    /// Nothing that can be read.
    Nothing,
}

/// The byte order mark, which says nothing in UTF-8.
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// Most bytes that are needed to tell how a body is framed.
const TELLING: usize = 8;

impl Framing {
    pub(super) fn new(expected: &Expected) -> Self {
        match expected.content {
            ContentType::Binary => Self::Nothing,
            _ if expected.api == Api::Other => Self::Nothing,
            _ => Self::Undecided(Vec::new()),
        }
    }

    /// Whether it is a stream; before the first byte, whether it was announced as one.
    pub(super) fn is_stream(&self, expected: &Expected) -> bool {
        match self {
            Self::Events(_) | Self::Lines(_) | Self::Elements(_) | Self::Aws(_) => true,
            Self::Whole(_) | Self::Read | Self::Nothing => false,
            Self::Undecided(_) => {
                expected.ok
                    && matches!(
                        expected.content,
                        ContentType::Events | ContentType::Lines | ContentType::Aws
                    )
            }
        }
    }

    /// How it is framed, when what came so far ends with an event, so that another one could follow; `None` inside of
    /// one, and where it is no stream.
    pub(super) fn between(&self, expected: &Expected) -> Option<Frame> {
        match self {
            Self::Events(scanner) => scanner.is_between().then_some(Frame::Events),
            Self::Lines(lines) => lines.is_between().then_some(Frame::Lines),
            Self::Elements(elements) => elements
                .between()
                .map(|(any, comma)| Frame::Elements { any, comma }),
            Self::Aws(scanner) => scanner.is_between().then_some(Frame::Aws),
            Self::Undecided(held) if held.is_empty() && expected.ok => match expected.content {
                ContentType::Events => Some(Frame::Events),
                ContentType::Lines => Some(Frame::Lines),
                ContentType::Aws => Some(Frame::Aws),
                _ => None,
            },
            Self::Undecided(_) | Self::Whole(_) | Self::Read | Self::Nothing => None,
        }
    }

    /// Takes a piece of the decoded body.
    pub(super) fn push(&mut self, piece: &[u8], expected: &Expected, reader: &mut Reader, facts: &mut Facts) {
        let limit = expected.limit;
        match self {
            Self::Events(scanner) => {
                let rest = if scanner.is_between_events() {
                    reader.events_alike(piece, limit, facts)
                } else {
                    piece
                };
                scanner.push(rest, limit, &mut |event| reader.event(event, facts));
            }
            Self::Lines(lines) => lines.push(piece, limit, &mut |line| document(line, reader, facts)),
            Self::Elements(elements) => elements.push(piece, limit, &mut |e| document(e, reader, facts)),
            Self::Aws(scanner) => scanner.push(piece, limit, &mut |message| reader.message(message, facts)),
            Self::Whole(body) => body.push(piece, limit),
            Self::Read | Self::Nothing => {}
            Self::Undecided(held) => {
                let held = std::mem::take(held);
                self.first(&held, piece, expected, reader, facts);
            }
        }
    }

    /// The body ended; gives whether it was a stream after all.
    pub(super) fn end(&mut self, expected: &Expected, reader: &mut Reader, facts: &mut Facts) -> bool {
        let limit = expected.limit;
        if let Self::Undecided(held) = self {
            let held = std::mem::take(held);
            if let Some(framing) = decide(&held, true, expected) {
                *self = framing;
                self.push(&held, expected, reader, facts);
            }
        }
        match self {
            Self::Events(scanner) => scanner.end(limit, &mut |event| reader.event(event, facts)),
            Self::Lines(lines) => lines.end(&mut |line| document(line, reader, facts)),
            Self::Whole(body) => {
                let body = std::mem::take(body);
                if body.is_complete() && expected.ok && holds_lines(expected.api, body.head()) {
                    let mut lines = Lines::default();
                    lines.push(body.head(), limit, &mut |line| document(line, reader, facts));
                    lines.end(&mut |line| document(line, reader, facts));
                    return true;
                }
                body.read(expected.ok, reader, facts);
            }
            _ => {}
        }
        self.is_stream(expected)
    }

    fn first(
        &mut self,
        held: &[u8],
        piece: &[u8],
        expected: &Expected,
        reader: &mut Reader,
        facts: &mut Facts,
    ) {
        let joined: Vec<u8>;
        let bytes = if held.is_empty() {
            piece
        } else {
            joined = [held, piece].concat();
            &joined
        };
        // OpenRouter, and others, keep a connection alive with blanks before the JSON.
        let mut start = bytes.trim_ascii_start();
        while let Some(rest) = start.strip_prefix(BOM) {
            start = rest.trim_ascii_start();
        }
        let start = if expected.content == ContentType::Aws {
            bytes
        } else {
            start
        };
        match decide(start, false, expected) {
            None => *self = Self::Undecided(start.to_vec()),
            Some(Self::Whole(_)) if held.is_empty() && expected.length == Some(piece.len()) => {
                *self = if expected.ok && holds_lines(expected.api, start) {
                    let mut whole = whole::Body::default();
                    whole.push(start, expected.limit);
                    Self::Whole(whole)
                } else {
                    reader.whole(start, expected.ok, facts);
                    Self::Read
                };
            }
            Some(mut framing) => {
                if let Self::Whole(body) = &mut framing {
                    body.announce(expected.length, expected.limit);
                }
                *self = framing;
                self.push(start, expected, reader, facts);
            }
        }
    }
}

fn document(bytes: &[u8], reader: &mut Reader, facts: &mut Facts) {
    let event = Event {
        data: bytes.trim_ascii(),
        error: false,
    };
    if !event.data.is_empty() {
        reader.event(event, facts);
    }
}

/// Whether a body that was not announced as lines consists of several documents.
fn holds_lines(api: Api, body: &[u8]) -> bool {
    let mut cursor = Cursor::new(body);
    matches!(api.family(), Family::Ollama | Family::Cohere)
        && cursor.object(|_, _| {})
        && cursor.peek() == b'{'
}

/// The framing that the first bytes (blanks apart) tell of; `None` when more are needed. `all`: there are no more.
fn decide(start: &[u8], all: bool, expected: &Expected) -> Option<Framing> {
    let first = *start.first()?;
    if !all && BOM.starts_with(start) && expected.content != ContentType::Aws {
        return None;
    }
    let events = || Framing::Events(sse::Scanner::default());
    Some(match first {
        b'{' if lines(expected) => Framing::Lines(Lines::default()),
        b'[' if expected.ok && expected.api == Api::GeminiGenerateContent => {
            Framing::Elements(Elements::default())
        }
        b'{' | b'[' => Framing::Whole(whole::Body::default()),
        b':' => events(),
        _ if expected.api.family() == Family::Bedrock
            && (first == 0 || expected.content == ContentType::Aws) =>
        {
            Framing::Aws(eventstream::Scanner::default())
        }
        b'<' => Framing::Nothing,
        _ if expected.content == ContentType::Events => events(),
        _ => {
            let fields: [&[u8]; 4] = [b"data:", b"event:", b"id:", b"retry:"];
            if fields.iter().any(|f| start.starts_with(f)) {
                events()
            } else if !all && start.len() < TELLING && fields.iter().any(|f| f.starts_with(start)) {
                return None;
            } else {
                Framing::Nothing
            }
        }
    })
}

/// Whether a body that begins with an object is one of lines.
fn lines(expected: &Expected) -> bool {
    match expected.content {
        ContentType::Lines => true,
        ContentType::Unknown => {
            expected.ok
                && expected.stream_asked
                && matches!(
                    expected.api,
                    Api::OllamaChat | Api::OllamaGenerate | Api::CohereChat
                )
        }
        _ => false,
    }
}
