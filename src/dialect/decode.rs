//! Decodes a side copy of a compressed body as it passes: gzip, deflate (both kinds), br and zstd, in bounded memory.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use ruzstd::decoding::FrameDecoder;

/// Bytes that are decoded at a time.
const CHUNK: usize = 8 << 10;
/// A body that grows to more than this many bytes …
const BOMB_BYTES: u64 = 64 << 20;
/// … and more than this many times what came in is not read any further.
const BOMB_RATIO: u64 = 200;
/// Largest window of a zstd frame that is kept, in bytes (what RFC 9659 asks of servers).
const ZSTD_WINDOW: u64 = 8 << 20;
/// What must be at hand of a zstd stream for certain progress: a block and its headers, in bytes.
const ZSTD_HELD: usize = (128 << 10) + 64;
/// Longest gzip header that is read, in bytes.
const GZIP_HEADER: usize = 4 << 10;

/// Decodes one body. On an error it goes blind: nothing more comes out of it.
pub(super) struct Decoder {
    state: State,
    came_in: u64,
    came_out: u64,
}

enum State {
    /// gzip: the bytes of a header that is not complete.
    GzipHeader(Vec<u8>),
    Gzip(Box<Inflate>),
    /// gzip: bytes of the trailer still to come.
    GzipTrailer(usize),
    /// gzip, before its first byte.
    GzipStart,
    /// What was announced as gzip and is not.
    Plain,
    /// deflate, before its first two bytes tell which kind it is.
    DeflateHeader(Vec<u8>),
    Deflate(Box<Inflate>),
    Brotli(Box<Brotli>),
    Zstd(Box<Zstd>),
    Blind,
}

struct Inflate(Decompress, [u8; CHUNK]);

type BrotliMachine = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

struct Brotli {
    machine: BrotliMachine,
    total: usize,
    out: [u8; CHUNK],
}

struct Zstd {
    frame: FrameDecoder,
    held: Vec<u8>,
    out: [u8; CHUNK],
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder")
            .field("came_in", &self.came_in)
            .field("came_out", &self.came_out)
            .finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder for a `content-encoding`; `None` when the body is not encoded. One that is not known, or several at
    /// once, give a decoder that is blind.
    pub(super) fn for_encoding(encoding: &str) -> Option<Self> {
        let state = match encoding.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => return None,
            "gzip" | "x-gzip" => State::GzipStart,
            "deflate" => State::DeflateHeader(Vec::new()),
            "br" => State::Brotli(Box::new(Brotli::new())),
            "zstd" => State::Zstd(Box::new(Zstd::new())),
            _ => State::Blind,
        };
        Some(Self {
            state,
            came_in: 0,
            came_out: 0,
        })
    }

    /// Takes a piece as it came and calls `each` with what it holds.
    pub(super) fn push(&mut self, piece: &[u8], each: &mut dyn FnMut(&[u8])) {
        self.came_in += piece.len() as u64;
        let (came_in, came_out) = (self.came_in, &mut self.came_out);
        let mut each = |bytes: &[u8]| {
            *came_out += bytes.len() as u64;
            each(bytes);
            *came_out <= BOMB_BYTES || *came_out / BOMB_RATIO <= came_in
        };
        let mut rest = piece;
        while !rest.is_empty() {
            rest = match self.state.step(rest, &mut each) {
                Some(rest) => rest,
                None => {
                    self.state = State::Blind;
                    return;
                }
            };
        }
    }

    /// The body ended: gives what was waiting for more.
    pub(super) fn end(&mut self, each: &mut dyn FnMut(&[u8])) {
        let came_out = &mut self.came_out;
        if let State::Zstd(zstd) = &mut self.state {
            let mut each = |bytes: &[u8]| {
                *came_out += bytes.len() as u64;
                each(bytes);
                true
            };
            // An error here leaves what came before it.
            if zstd.run(true, &mut each).is_none() {
                self.state = State::Blind;
            }
        }
    }
}

impl State {
    /// Takes bytes, gives what they decode to and returns the bytes it left; `None` when it can go on no more.
    /// `each` answers whether more is wanted.
    fn step<'p>(&mut self, bytes: &'p [u8], each: &mut dyn FnMut(&[u8]) -> bool) -> Option<&'p [u8]> {
        match self {
            // Some undo an encoding and leave the header that names it.
            Self::GzipStart => {
                let gzip = bytes.first() == Some(&0x1F);
                *self = if gzip {
                    Self::GzipHeader(Vec::new())
                } else {
                    Self::Plain
                };
                Some(bytes)
            }
            Self::Plain => each(bytes).then_some(&[]),
            Self::GzipHeader(held) => {
                let before = held.len();
                held.extend_from_slice(bytes.get(..GZIP_HEADER.min(bytes.len()))?);
                match gzip_header(held)? {
                    Some(length) => {
                        *self = Self::Gzip(Inflate::new(false));
                        bytes.get(length.saturating_sub(before)..)
                    }
                    None if held.len() < GZIP_HEADER => Some(&[]),
                    None => None,
                }
            }
            Self::Gzip(inflate) => {
                let (rest, ended) = inflate.run(bytes, each)?;
                if ended {
                    *self = Self::GzipTrailer(8);
                }
                Some(rest)
            }
            Self::GzipTrailer(left) => {
                let n = bytes.len().min(*left);
                *left -= n;
                if *left == 0 {
                    *self = Self::GzipHeader(Vec::new());
                }
                bytes.get(n..)
            }
            Self::DeflateHeader(held) => {
                let n = bytes.len().min(2 - held.len().min(2));
                let (head, rest) = bytes.split_at(n);
                held.extend_from_slice(head);
                let [a, b] = held[..] else { return Some(rest) };
                let zlib = a & 0x0F == 8 && (u16::from(a) << 8 | u16::from(b)) % 31 == 0;
                let mut inflate = Inflate::new(zlib);
                let started = inflate.run(&[a, b], each).is_some();
                *self = Self::Deflate(inflate);
                started.then_some(rest)
            }
            Self::Deflate(inflate) => {
                let (_, ended) = inflate.run(bytes, each)?;
                if ended {
                    *self = Self::Blind;
                }
                Some(&[])
            }
            Self::Brotli(brotli) => brotli.run(bytes, each).map(|()| [].as_slice()),
            Self::Zstd(zstd) => {
                zstd.held.extend_from_slice(bytes);
                zstd.run(false, each).map(|()| [].as_slice())
            }
            Self::Blind => Some(&[]),
        }
    }
}

impl Inflate {
    fn new(zlib: bool) -> Box<Self> {
        Box::new(Self(Decompress::new(zlib), [0; CHUNK]))
    }

    /// What it left of `bytes`, and whether its stream ended.
    fn run<'p>(
        &mut self,
        mut bytes: &'p [u8],
        each: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Option<(&'p [u8], bool)> {
        let Self(machine, out) = self;
        loop {
            let (read, written) = (machine.total_in(), machine.total_out());
            let status = machine.decompress(bytes, out, FlushDecompress::None);
            let read = usize::try_from(machine.total_in() - read).ok()?;
            let written = usize::try_from(machine.total_out() - written).ok()?;
            if written > 0 && !each(out.get(..written)?) {
                return None;
            }
            bytes = bytes.get(read..)?;
            match status {
                Ok(Status::StreamEnd) => return Some((bytes, true)),
                Ok(_) if written == out.len() || (read + written > 0 && !bytes.is_empty()) => {}
                Ok(_) => return Some((&[], false)),
                Err(_) => return None,
            }
        }
    }
}

impl Brotli {
    fn new() -> Self {
        let mut machine = BrotliMachine::new(
            StandardAlloc::default(),
            StandardAlloc::default(),
            StandardAlloc::default(),
        );
        // The `br` of HTTP has windows of at most 16 MiB; the larger ones are another format.
        machine.large_window = false;
        Self {
            machine,
            total: 0,
            out: [0; CHUNK],
        }
    }

    fn run(&mut self, bytes: &[u8], each: &mut dyn FnMut(&[u8]) -> bool) -> Option<()> {
        let mut left = bytes.len();
        let mut at = 0;
        loop {
            let mut room = self.out.len();
            let mut written = 0;
            let result = BrotliDecompressStream(
                &mut left,
                &mut at,
                bytes,
                &mut room,
                &mut written,
                &mut self.out,
                &mut self.total,
                &mut self.machine,
            );
            if written > 0 && !each(self.out.get(..written)?) {
                return None;
            }
            match result {
                BrotliResult::NeedsMoreOutput => {}
                BrotliResult::NeedsMoreInput | BrotliResult::ResultSuccess => return Some(()),
                BrotliResult::ResultFailure => return None,
            }
        }
    }
}

impl Zstd {
    fn new() -> Self {
        let mut frame = FrameDecoder::new();
        frame.set_max_window_size(ZSTD_WINDOW);
        Self {
            frame,
            held: Vec::new(),
            out: [0; CHUNK],
        }
    }

    /// Decodes what is held as far as it goes. `last`: no more will come.
    fn run(&mut self, last: bool, each: &mut dyn FnMut(&[u8]) -> bool) -> Option<()> {
        let mut used = 0;
        let mut started = self.frame.blocks_decoded() > 0 || self.frame.bytes_read_from_source() > 0;
        loop {
            let source = self.held.get(used..)?;
            // The header of a frame (up to 18 bytes) cannot be continued: it is begun when it is all there.
            if !started && (source.is_empty() || (source.len() < 18 && !last)) {
                break;
            }
            let (read, written) = self.frame.decode_from_to(source, &mut self.out).ok()?;
            started = true;
            used += read.min(source.len());
            if written > 0 && !each(self.out.get(..written)?) {
                return None;
            }
            if read == 0 && written == 0 {
                if !self.frame.is_finished() || self.frame.can_collect() > 0 {
                    break;
                }
                // Another frame may follow.
                self.frame = FrameDecoder::new();
                self.frame.set_max_window_size(ZSTD_WINDOW);
                started = false;
            }
        }
        self.held.drain(..used);
        (self.held.len() <= ZSTD_HELD + CHUNK * 64).then_some(())
    }
}

/// How long the gzip header is that `bytes` begin with; `Some(None)` when it is not all there, `None` when it is none.
fn gzip_header(bytes: &[u8]) -> Option<Option<usize>> {
    for (i, magic) in [0x1F, 0x8B, 8].into_iter().enumerate() {
        if bytes.get(i).is_some_and(|b| *b != magic) {
            return None;
        }
    }
    let Some(flags) = bytes.get(3) else {
        return Some(None);
    };
    let mut at = 10;
    if flags & 4 != 0 {
        let (Some(a), Some(b)) = (bytes.get(at), bytes.get(at + 1)) else {
            return Some(None);
        };
        at += 2 + usize::from(u16::from_le_bytes([*a, *b]));
    }
    for text in [8, 16] {
        if flags & text != 0 {
            match bytes.get(at..).and_then(|rest| memchr::memchr(0, rest)) {
                Some(n) => at += n + 1,
                None => return Some(None),
            }
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    Some((bytes.len() >= at).then_some(at))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

    use super::*;

    fn text() -> Vec<u8> {
        (0..3000_u32)
            .flat_map(|i| format!("data: {{\"n\":{}}}\n\n", i.wrapping_mul(2_654_435_761)).into_bytes())
            .collect()
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = GzEncoder::new(Vec::new(), Compression::fast());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    fn deflate(bytes: &[u8], zlib: bool) -> Vec<u8> {
        if zlib {
            let mut e = ZlibEncoder::new(Vec::new(), Compression::fast());
            e.write_all(bytes).unwrap();
            e.finish().unwrap()
        } else {
            let mut e = DeflateEncoder::new(Vec::new(), Compression::fast());
            e.write_all(bytes).unwrap();
            e.finish().unwrap()
        }
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn decoded(encoding: &str, body: &[u8], size: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut decoder = Decoder::for_encoding(encoding).unwrap();
        for piece in body.chunks(size) {
            decoder.push(piece, &mut |b| out.extend_from_slice(b));
        }
        decoder.end(&mut |b| out.extend_from_slice(b));
        out
    }

    /// `{"usage":{"prompt_tokens":7}}` as the reference encoder packs it.
    const BR: &[u8] = &[
        11, 14, 128, 123, 34, 117, 115, 97, 103, 101, 34, 58, 123, 34, 112, 114, 111, 109, 112, 116, 95, 116,
        111, 107, 101, 110, 115, 34, 58, 55, 125, 125, 3,
    ];

    #[test]
    fn every_encoding_in_pieces_of_any_size() {
        let text = text();
        let mut two = gzip(&text[..1000]);
        two.extend(gzip(&text[1000..]));
        let mut frames = zstd(&text[..1000]);
        frames.extend(zstd(&text[1000..]));
        let cases = [
            ("gzip", gzip(&text)),
            ("GZIP", two),
            ("deflate", deflate(&text, true)),
            ("deflate", deflate(&text, false)),
            ("zstd", zstd(&text)),
            ("zstd", frames),
        ];
        for (encoding, body) in cases {
            for size in [1, 2, 17, 1000, usize::MAX] {
                assert!(
                    decoded(encoding, &body, size.min(body.len())) == text,
                    "{encoding} in pieces of {size}"
                );
            }
        }
        assert_eq!(decoded("gzip", b"{1:2}", 3), b"{1:2}");
        for size in [1, 5, 100] {
            assert_eq!(
                String::from_utf8_lossy(&decoded("br", BR, size)),
                r#"{"usage":{"prompt_tokens":7}}"#
            );
        }
    }

    #[test]
    fn what_was_flushed_is_there_at_once() {
        let mut e = GzEncoder::new(Vec::new(), Compression::fast());
        let mut decoder = Decoder::for_encoding("gzip").unwrap();
        for i in 0..20 {
            let event = format!("data: {i}\n\n");
            e.write_all(event.as_bytes()).unwrap();
            e.flush().unwrap();
            let mut out = Vec::new();
            decoder.push(&std::mem::take(e.get_mut()), &mut |b| out.extend_from_slice(b));
            assert_eq!(String::from_utf8_lossy(&out), event);
        }
    }

    #[test]
    fn a_gzip_header_with_everything() {
        let plain = gzip(b"hello");
        let mut body = vec![0x1F, 0x8B, 8, 2 | 4 | 8 | 16, 0, 0, 0, 0, 0, 3, 3, 0, 1, 2, 3];
        body.extend(b"name\0comment\0\x12\x34");
        body.extend(&plain[10..]);
        for size in [1, 3, 1000] {
            assert_eq!(decoded("gzip", &body, size), b"hello");
        }
    }

    #[test]
    fn nonsense_and_bombs_blind_it() {
        for encoding in ["gzip", "deflate", "br", "zstd", "compress", "gzip, br"] {
            for seed in 0..50_u8 {
                let noise: Vec<u8> = (0..2000_u32)
                    .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed)
                    .collect();
                decoded(encoding, &noise, 100);
            }
        }
        let bomb = gzip(&vec![0; 100 << 20]);
        let mut seen = 0;
        let mut decoder = Decoder::for_encoding("gzip").unwrap();
        decoder.push(&bomb, &mut |b| seen += b.len());
        let most = BOMB_BYTES.max(bomb.len() as u64 * BOMB_RATIO);
        assert!(seen as u64 <= most + CHUNK as u64, "{seen}");
        assert!(matches!(decoder.state, State::Blind));
        assert!(Decoder::for_encoding("identity").is_none());
    }
}
