//! Logs: one line an event, to standard error, as text or JSON.
//!
//! Invariant: the level can be changed while the process runs.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

use crate::Error;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Libraries that write a line for every frame they see, and warn of what a peer does wrong as often as it does; a plain level means the
/// products' own lines.
const CHATTY: [&str; 5] = ["h2", "hyper", "rustls", "tokio", "tonic"];

/// Changes the log level.
#[derive(Clone)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl fmt::Debug for LogLevel {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("LogLevel").finish_non_exhaustive()
    }
}

impl LogLevel {
    /// Sets the level from now on. See [`init`] for what it may be.
    pub fn set(&self, level: &str) -> Result<(), Error> {
        let filter = filter(level)?;
        self.handle.reload(filter).expect("the subscriber lives as long as the process");
        Ok(())
    }
}

/// Sends the process's logs to standard error.
///
/// `level` is `error`, `warn`, `info`, `debug` or `trace`, or a list of directives such as
/// `info,kubewharf_brain::watch=debug`.
pub fn init(format: LogFormat, level: &str) -> Result<LogLevel, Error> {
    init_to(format, level, io::stderr().is_terminal(), io::stderr)
}

/// As [`init`], to another place, with or without colours.
pub fn init_to<W>(format: LogFormat, level: &str, colours: bool, writer: W) -> Result<LogLevel, Error>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let lines = lines(format, colours, writer);
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(|_| Error::LogTwice)?;
    Ok(LogLevel { handle })
}

fn lines<W, S>(format: LogFormat, colours: bool, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
    S: tracing::Subscriber + for<'lookup> tracing_subscriber::registry::LookupSpan<'lookup>,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => layer.with_ansi(colours).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_ansi(false).boxed(),
    }
}

fn filter(level: &str) -> Result<EnvFilter, Error> {
    let plain = matches!(level.to_ascii_lowercase().as_str(), "warn" | "info" | "debug" | "trace");
    let mut directives = level.to_owned();
    if plain {
        for library in CHATTY {
            directives.push_str(&format!(",{library}=error"));
        }
    }
    EnvFilter::builder()
        .parse(&directives)
        .map_err(|error| Error::LogLevel { level: level.to_owned(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_has_the_fields_at_the_top_and_the_level_can_change() {
        let captured = Captured::default();
        let writer = captured.clone();
        let (filter, handle) = reload::Layer::new(filter("warn").expect("a level"));
        let level = LogLevel { handle };
        let subscriber =
            tracing_subscriber::registry().with(filter).with(lines(LogFormat::Json, false, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("not yet");
            level.set("info").expect("a level");
            tracing::info!(revision = 7, "now");
        });
        let text = String::from_utf8(captured.0.lock().expect("no panic").clone()).expect("text");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("\"revision\":7") && text.contains("\"message\":\"now\""), "{text}");
    }

    #[test]
    fn a_peer_can_not_make_libraries_write_lines_unless_somebody_wants_them() {
        for (level, expected) in [("info", 1), ("warn", 1), ("trace", 1), ("info,h2=warn", 2)] {
            let captured = Captured::default();
            let writer = captured.clone();
            let subscriber = tracing_subscriber::registry().with(filter(level).expect("a level")).with(lines(
                LogFormat::Text,
                false,
                move || writer.clone(),
            ));
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(target: "h2::proto::ping_pong", "recv PING ack that we never sent");
                tracing::error!(target: "h2::proto", "something is wrong with us");
            });
            let text = String::from_utf8(captured.0.lock().expect("no panic").clone()).expect("text");
            assert_eq!(text.lines().count(), expected, "{level}: {text}");
        }
    }

    #[test]
    fn a_wrong_level_is_named() {
        let error = filter("info,x=loud").expect_err("not a level");
        assert!(error.to_string().contains("info,x=loud"), "{error}");
    }
}
