//! Logs: for people on a terminal, JSON otherwise; no content, no secrets.

use std::io::{self, IsTerminal};

use tracing::level_filters::LevelFilter;
use tracing::{Dispatch, dispatcher};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::{self, MakeWriter};

/// How logs look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Text.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to stderr. `filter` is a level or `tracing` directives, as `info,fusebox::proxy=debug`.
///
/// # Errors
/// When the filter cannot be parsed, or logging was started already.
pub fn start(format: LogFormat, filter: &str) -> Result<(), String> {
    let terminal = io::stderr().is_terminal();
    let json = match format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // https://no-color.org: set and not empty.
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let dispatch = dispatch(json, colour, filter, io::stderr)?;
    dispatcher::set_global_default(dispatch).map_err(|_| "logging was started already".to_owned())
}

fn dispatch<W>(json: bool, colour: bool, filter: &str, writer: W) -> Result<Dispatch, String>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let builder = fmt::fmt()
        .with_env_filter(parse(filter)?)
        // A reader that went away must not end the process: the default would print, and panic when that fails.
        .log_internal_errors(false)
        .with_writer(writer);
    Ok(if json {
        let builder = builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false);
        Dispatch::new(builder.finish())
    } else {
        Dispatch::new(builder.with_ansi(colour).finish())
    })
}

/// A filter; unlike `tracing`, which takes a misspelt level for the name of a target, it refuses what is neither.
fn parse(filter: &str) -> Result<EnvFilter, String> {
    let bad = |why: String| {
        format!(
            "log filter \"{filter}\": {why}; use a level (error, warn, info, debug, trace, off) or directives such as info,fusebox::proxy=debug"
        )
    };
    // Spans have a grammar of their own in their brackets.
    let mut tidy = filter.to_owned();
    if !filter.contains('[') {
        let parts: Vec<_> = filter
            .split(',')
            .map(str::trim)
            .filter(|p| !p.is_empty())
            .collect();
        for part in &parts {
            if !part.contains('=') && part.parse::<LevelFilter>().is_err() {
                return Err(bad(format!("\"{part}\" is no level")));
            }
        }
        tidy = parts.join(",");
    }
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(tidy)
        .map_err(|e| bad(e.to_string()))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool, filter: &str) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let dispatch = dispatch(json, false, filter, move || writer.clone()).unwrap();
        dispatcher::with_default(&dispatch, || {
            tracing::info!(upstream = "u", tokens = 5, "hello\nthere");
            tracing::debug!("not asked for");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_is_one_flat_object_a_line() {
        let text = logged(true, "info");
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["message"], "hello\nthere");
        assert_eq!((&line["upstream"], &line["tokens"]), (&"u".into(), &5.into()));
        assert_eq!(line["level"], "INFO");
        let time = line["timestamp"].as_str().unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok(), "{time}");
    }

    #[test]
    fn text_has_no_colour_unless_asked() {
        let text = logged(false, "info");
        assert!(text.contains("INFO") && text.contains("upstream=\"u\""), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn the_filter_decides() {
        assert_eq!(logged(true, "off"), "");
        assert_eq!(logged(true, "warn"), "");
        assert_eq!(logged(true, "debug").lines().count(), 2);
        assert_eq!(logged(true, "warn,fusebox=info").lines().count(), 1);
        assert_eq!(logged(true, "").lines().count(), 1);
    }

    #[test]
    fn bad_filters_are_refused_with_a_hint() {
        for bad in ["infoo", "warn,verbose", "fusebox=loud", "fusebox=info=debug"] {
            let why = parse(bad).map(drop).unwrap_err();
            assert!(why.contains(bad) && why.contains("use a level"), "{why}");
        }
        for good in [
            "info",
            "INFO",
            "off",
            "info, fusebox::proxy=trace",
            "warn,[span{a}]=debug",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_reader_that_went_away_harms_nothing() {
        let dispatch = dispatch(true, false, "info", || Broken).unwrap();
        dispatcher::with_default(&dispatch, || tracing::info!("unheard"));
    }
}
