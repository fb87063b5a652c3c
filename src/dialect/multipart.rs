//! Finds the fields of a multipart form by their bytes, files passed over.

use std::ops::Range;

use memchr::memmem;

/// Longest head of one part, in bytes; a longer one is not understood.
const MAX_HEAD: usize = 4096;
/// Parts looked at; the rest is not.
const MAX_PARTS: usize = 128;

/// One part of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// Name of the field.
    pub(super) name: &'a [u8],
    /// It is a file.
    pub(super) file: bool,
    /// Where its content stands in the body.
    pub(super) content: Range<usize>,
}

/// The parts of a form in order. The boundary is taken from the first line of the body, as clients write no preamble.
pub(super) fn parts(body: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let line = memchr::memchr(b'\n', body.get(..200.min(body.len())).unwrap_or_default())
        .and_then(|end| body.get(..end))
        .map(<[u8]>::trim_ascii_end)
        .filter(|line| line.len() > 2 && line.starts_with(b"--"))
        .unwrap_or_default();
    let mut pos = line.len();
    std::iter::from_fn(move || {
        if line.is_empty() {
            return None;
        }
        let start = pos;
        let rest = body.get(start..)?;
        // The delimiter stands at the beginning of a line, which end belongs to it.
        let mut finder = memmem::find_iter(rest, line);
        let end = finder.find(|at| *at > 0 && rest.get(at - 1) == Some(&b'\n'))?;
        pos = start + end + line.len();
        part(body, start, start + end)
    })
    .take(MAX_PARTS)
}

fn part(body: &[u8], start: usize, end: usize) -> Option<Part<'_>> {
    let whole = body.get(start..end)?;
    let head_area = whole.get(..MAX_HEAD.min(whole.len()))?;
    let (head_end, gap) = match memmem::find(head_area, b"\r\n\r\n") {
        Some(at) => (at, 4),
        None => (memmem::find(head_area, b"\n\n")?, 2),
    };
    let head = whole.get(..head_end)?;
    let mut found = Part {
        name: b"",
        file: false,
        content: 0..0,
    };
    for line in head.split(|b| *b == b'\n') {
        let Some(colon) = memchr::memchr(b':', line) else {
            continue;
        };
        let (name, value) = line.split_at_checked(colon)?;
        if !name.trim_ascii().eq_ignore_ascii_case(b"content-disposition") {
            continue;
        }
        for parameter in value.split(|b| *b == b';') {
            let parameter = parameter.trim_ascii();
            if let Some(name) = parameter.strip_prefix(b"name=") {
                found.name = unquoted(name);
            } else if parameter.starts_with(b"filename") {
                found.file = true;
            }
        }
    }
    let mut content_end = end;
    for eol in [b'\n', b'\r'] {
        if content_end > start && body.get(content_end - 1) == Some(&eol) {
            content_end -= 1;
        }
    }
    let content_start = start + head_end + gap;
    found.content = content_start..content_end.max(content_start);
    Some(found)
}

fn unquoted(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\"")
        .and_then(|t| t.strip_suffix(b"\""))
        .unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &[u8] = b"--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
Content-Type: audio/wav\r\n\r\nRI--xyz\r\nFF\r\n--xyz\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper-1\r\n\
--xyz\r\nContent-Disposition: form-data; name=stream\r\n\r\n\r\n--xyz--\r\n";

    #[test]
    fn fields_are_found() {
        let found: Vec<_> = parts(FORM)
            .map(|p| (std::str::from_utf8(p.name).unwrap(), p.file, &FORM[p.content]))
            .collect();
        assert_eq!(
            found,
            [
                ("file", true, &b"RI--xyz\r\nFF"[..]),
                ("model", false, b"whisper-1"),
                ("stream", false, b"")
            ]
        );
    }

    proptest::proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300), cut in 0..FORM.len()) {
            for p in parts(&bytes).chain(parts(&FORM[..cut])) {
                assert!(p.content.start <= p.content.end);
            }
        }
    }
}
