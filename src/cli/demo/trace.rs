//! When which agent calls, with how many tokens: from a recorded trace, or from one of our own making.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use super::filler::lognormal;

/// Most rows that are read of a trace file.
const MAX_ROWS: usize = 2_000_000;
/// Most bytes that are read of it, unpacked.
const MAX_BYTES: u64 = 256 << 20;
/// Longest prompt that is replayed; longer ones are cut to this.
const MAX_INPUT: u64 = 32_000;
/// Longest answer that is replayed.
const MAX_OUTPUT: u64 = 4_000;

/// One call of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Row {
    /// Since the first call.
    pub(super) at: Duration,
    /// Tokens of the prompt.
    pub(super) input: u64,
    /// Tokens of the answer.
    pub(super) output: u64,
}

/// Reads a trace file: CSV, packed with gzip or not.
///
/// The first line names the columns: `t_ms,input_tokens,output_tokens` (milliseconds since the first call), or
/// `TIMESTAMP,ContextTokens,GeneratedTokens` as in the published Azure traces.
///
/// # Errors
/// The file and line at fault, and what is expected there.
pub(super) fn load(path: &Path) -> Result<Vec<Row>, String> {
    let shown = path.display();
    let mut file = std::fs::File::open(path).map_err(|e| format!("cannot open the trace {shown}: {e}"))?;
    let mut magic = Vec::with_capacity(2);
    Read::by_ref(&mut file)
        .take(2)
        .read_to_end(&mut magic)
        .map_err(|e| format!("cannot read the trace {shown}: {e}"))?;
    let packed = magic == [0x1f, 0x8b];
    let bytes = std::io::Cursor::new(magic).chain(file);
    let rows = if packed {
        read(BufReader::new(
            flate2::read::MultiGzDecoder::new(bytes).take(MAX_BYTES),
        ))
    } else {
        read(BufReader::new(bytes.take(MAX_BYTES)))
    };
    rows.map_err(|(line, why)| format!("{shown}:{line}: {why}"))
}

/// Reads the text of a trace; an error names the line, counted from 1.
fn read(text: impl BufRead) -> Result<Vec<Row>, (usize, String)> {
    let mut rows: Vec<Row> = Vec::new();
    let mut columns: Option<Columns> = None;
    let mut first = None;
    for (number, line) in (1..).zip(text.lines()) {
        let fail = |why: String| (number, why);
        let line = line.map_err(|e| fail(format!("cannot be read: {e}")))?;
        let line = line.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        let Some(columns) = &columns else {
            columns = Some(Columns::of(line).map_err(fail)?);
            continue;
        };
        let (ms, input, output) = columns.read(line).map_err(fail)?;
        let first = *first.get_or_insert(ms);
        let since = ms
            .checked_sub(first)
            .and_then(|ms| u64::try_from(ms).ok())
            .ok_or_else(|| fail("is earlier than the first row; sort the rows by time".to_owned()))?;
        let at = Duration::from_millis(since);
        if rows.last().is_some_and(|last| last.at > at) {
            return Err(fail(
                "is earlier than the row before; sort the rows by time".to_owned(),
            ));
        }
        if rows.len() >= MAX_ROWS {
            return Err(fail(format!("has more than {MAX_ROWS} rows; cut it")));
        }
        rows.push(Row {
            at,
            input: input.clamp(1, MAX_INPUT),
            output: output.clamp(1, MAX_OUTPUT),
        });
    }
    if rows.len() < 2 {
        return Err((1, format!("needs at least two rows below the line `{NAMES}`")));
    }
    Ok(rows)
}

const NAMES: &str = "t_ms,input_tokens,output_tokens";

/// Where the columns stand, and how the time is written.
#[derive(Debug)]
struct Columns {
    time: usize,
    input: usize,
    output: usize,
    stamped: bool,
}

impl Columns {
    fn of(head: &str) -> Result<Self, String> {
        let names: Vec<String> = head.split(',').map(|n| n.trim().to_ascii_lowercase()).collect();
        let find = |wanted: &[&str]| names.iter().position(|n| wanted.contains(&n.as_str()));
        let millis = find(&["t_ms"]);
        let stamp = find(&["timestamp"]);
        match (
            millis.or(stamp),
            find(&["input_tokens", "contexttokens"]),
            find(&["output_tokens", "generatedtokens"]),
        ) {
            (Some(time), Some(input), Some(output)) => Ok(Self {
                time,
                input,
                output,
                stamped: millis.is_none(),
            }),
            _ => Err(format!(
                "names the columns `{}`; expected `{NAMES}` or `TIMESTAMP,ContextTokens,GeneratedTokens`",
                head.chars().take(80).collect::<String>()
            )),
        }
    }

    /// Milliseconds (of an origin of its own), input and output tokens of a row.
    fn read(&self, line: &str) -> Result<(i64, u64, u64), String> {
        let cells: Vec<&str> = line.split(',').map(str::trim).collect();
        let cell = |at: usize, name: &str| {
            cells
                .get(at)
                .copied()
                .ok_or_else(|| format!("has {} column(s), and none for {name}", cells.len()))
        };
        let count = |at: usize, name: &str| {
            let text = cell(at, name)?;
            text.parse::<u64>()
                .map_err(|_| format!("has `{}` for {name}; expected a whole number", short(text)))
        };
        let time = cell(self.time, "the time")?;
        let ms = if self.stamped {
            // Without a zone in the file, any zone will do: only differences count.
            format!("{time}Z")
                .parse::<jiff::Timestamp>()
                .or_else(|_| time.parse())
                .map(jiff::Timestamp::as_millisecond)
                .map_err(|_| {
                    format!(
                        "has `{}` for the time; expected as in 2023-11-16 18:17:03.97",
                        short(time)
                    )
                })?
        } else {
            let ms = time.parse::<f64>().ok().filter(|ms| (0.0..9e15).contains(ms));
            #[expect(clippy::cast_possible_truncation, reason = "checked to be below 2^53")]
            ms.map(|ms| ms as i64)
                .ok_or_else(|| format!("has `{}` for the time; expected milliseconds", short(time)))?
        };
        Ok((
            ms,
            count(self.input, "input tokens")?,
            count(self.output, "output tokens")?,
        ))
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// A trace of our own making, `length` long with about `per_minute` calls in a minute.
///
/// Its shape follows what the publishers of the Azure LLM inference traces say of them: calls come in bursts (the gaps
/// vary more than those of a Poisson process); a chat service has prompts of about a thousand tokens in the median and
/// answers of a hundred or two, a coding service longer prompts and much shorter answers; lengths are spread like a
/// lognormal. No figure of theirs is in here.
pub(super) fn invented(seed: u64, length: Duration, per_minute: f64) -> Vec<Row> {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x7ace);
    let mean_gap = 60.0 / per_minute.max(1.0);
    let mut rows = Vec::new();
    let mut at = 0.0;
    while at < length.as_secs_f64() && rows.len() < MAX_ROWS {
        let coding = rng.f64() < 0.3;
        let (input, output) = if coding {
            (lognormal(&mut rng, 1400.0, 0.5), lognormal(&mut rng, 24.0, 0.7))
        } else {
            (lognormal(&mut rng, 950.0, 0.45), lognormal(&mut rng, 130.0, 0.6))
        };
        rows.push(Row {
            at: Duration::from_secs_f64(at),
            // The rule is about executions of more than 5000 tokens: none of the calm ones shall come near.
            input: whole(input.clamp(60.0, 2_600.0)),
            output: whole(output.clamp(4.0, 500.0)),
        });
        // Two kinds of gaps, short inside a burst and long between bursts; their mean is about `mean_gap`. Very long
        // ones are cut, since nobody wants to watch nothing.
        let scale = if rng.f64() < 0.6 { 0.35 } else { 1.975 };
        at += (-(1.0 - rng.f64()).ln() * scale).min(5.0) * mean_gap;
    }
    rows
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to a small positive range"
)]
fn whole(x: f64) -> u64 {
    x.clamp(0.0, 1e9) as u64
}

/// A recorded trace as it fits a demo: every so-manieth call, so that there are at most `calls` of them, and time
/// scaled so that they take `length`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fitted {
    pub(super) rows: Vec<Row>,
    /// One call of so many is replayed.
    pub(super) every: usize,
    /// How many times faster than recorded.
    pub(super) faster: f64,
}

/// Fits a recorded trace into a demo.
pub(super) fn fit(rows: &[Row], length: Duration, calls: usize) -> Fitted {
    let every = rows.len().div_ceil(calls.max(1)).max(1);
    let recorded = rows.last().map_or(Duration::ZERO, |r| r.at);
    let faster = (recorded.as_secs_f64() / length.as_secs_f64().max(1.0)).max(1e-3);
    let rows = rows
        .iter()
        .step_by(every)
        .map(|row| Row {
            at: row.at.div_f64(faster),
            ..*row
        })
        .collect();
    Fitted { rows, every, faster }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn row(ms: u64, input: u64, output: u64) -> Row {
        Row {
            at: Duration::from_millis(ms),
            input,
            output,
        }
    }

    #[test]
    fn both_formats_are_read() {
        let expected = vec![row(0, 374, 44), row(4314, 396, 109)];
        for text in [
            "t_ms,input_tokens,output_tokens\n0,374,44\n4314,396,109\n",
            "\u{feff}t_ms,input_tokens,output_tokens\r\n0,374,44\r\n\r\n4314,396,109",
            "output_tokens, input_tokens, more, t_ms\n44,374,x,1000.0\n109,396,y,5314.2\n",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\n\
             2023-11-16 18:17:08.2939600,396,109\n",
        ] {
            assert_eq!(read(text.as_bytes()).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let head = "t_ms,input_tokens,output_tokens\n0,1,1\n";
        for (text, line, needle) in [
            (String::new(), 1, "at least two rows"),
            (head.to_owned(), 1, "at least two rows"),
            ("a,b,c\n1,2,3\n".to_owned(), 1, "names the columns `a,b,c`"),
            (format!("{head}5,x,1\n"), 3, "`x` for input tokens"),
            (format!("{head}5,1,-1\n"), 3, "`-1` for output tokens"),
            (format!("{head}5,1\n"), 3, "has 2 column(s)"),
            (format!("{head}\n\nnoon,1,1\n"), 5, "`noon` for the time"),
            (format!("{head}nan,1,1\n"), 3, "`nan` for the time"),
            (format!("{head}9,1,1\n5,1,1\n"), 4, "earlier than the row before"),
            (
                "timestamp,contexttokens,generatedtokens\nyesterday,1,1\n".to_owned(),
                2,
                "expected as in 2023",
            ),
        ] {
            let (at, why) = read(text.as_bytes()).unwrap_err();
            assert_eq!(at, line, "{text}: {why}");
            assert!(why.contains(needle), "{why}");
        }
        let (at, why) = read(&b"t_ms,input_tokens,output_tokens\n\xff\xfe,1,1\n"[..]).unwrap_err();
        assert_eq!(at, 2);
        assert!(why.contains("cannot be read"), "{why}");
    }

    #[test]
    fn files_may_be_packed() {
        let text = b"t_ms,input_tokens,output_tokens\n0,10,1\n10,20,2\n";
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("a.csv");
        std::fs::write(&plain, text).unwrap();
        // Told by its content, not by its name.
        let packed = dir.path().join("b.csv");
        let mut encoder = flate2::write::GzEncoder::new(
            std::fs::File::create(&packed).unwrap(),
            flate2::Compression::fast(),
        );
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap();
        assert_eq!(load(&plain).unwrap(), vec![row(0, 10, 1), row(10, 20, 2)]);
        assert_eq!(load(&packed).unwrap(), load(&plain).unwrap());
        let missing = load(&dir.path().join("none.csv")).unwrap_err();
        assert!(
            missing.contains("none.csv") && missing.contains("cannot open"),
            "{missing}"
        );
        std::fs::write(&plain, b"x").unwrap();
        assert!(load(&plain).unwrap_err().contains("a.csv:1:"));
        let mut broken = std::fs::read(&packed).unwrap();
        broken.truncate(broken.len() - 12);
        std::fs::write(&packed, broken).unwrap();
        assert!(load(&packed).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn lengths_are_bounded() {
        let text = "t_ms,input_tokens,output_tokens\n0,99999999,0\n1,0,99999999\n";
        assert_eq!(
            read(text.as_bytes()).unwrap(),
            vec![row(0, MAX_INPUT, 1), row(1, 1, MAX_OUTPUT)]
        );
    }

    #[test]
    fn a_long_trace_is_thinned_and_sped_up() {
        let rows: Vec<Row> = (0..1000).map(|i| row(i * 1000, i, 1)).collect();
        let fitted = fit(&rows, Duration::from_secs(100), 50);
        assert_eq!((fitted.every, fitted.rows.len()), (20, 50));
        assert!((fitted.faster - 9.99).abs() < 0.001);
        assert_eq!(fitted.rows[1].input, 20);
        assert!(fitted.rows[49].at <= Duration::from_secs(100));
        // A short one is stretched, and nothing of it is left out.
        let fitted = fit(&rows[..3], Duration::from_secs(100), 50);
        assert_eq!((fitted.every, fitted.rows.len()), (1, 3));
        assert_eq!(fitted.rows[2].at, Duration::from_secs(100));
    }

    #[test]
    fn the_invented_trace_has_the_shape_that_it_claims() {
        let rows = invented(1, Duration::from_secs(600), 120.0);
        assert!((1000..1400).contains(&rows.len()), "{}", rows.len());
        assert!(rows.is_sorted_by_key(|r| r.at));
        let mut inputs: Vec<u64> = rows.iter().map(|r| r.input).collect();
        inputs.sort_unstable();
        assert!((850..1250).contains(&inputs[inputs.len() / 2]));
        let gaps: Vec<f64> = rows
            .iter()
            .zip(rows.iter().skip(1))
            .map(|(a, b)| (b.at - a.at).as_secs_f64())
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!(variance.sqrt() / mean > 1.2, "as even as a Poisson process");
        assert_eq!(rows, invented(1, Duration::from_secs(600), 120.0));
        assert_ne!(rows, invented(2, Duration::from_secs(600), 120.0));
    }
}
