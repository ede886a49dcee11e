//! Logs: one line an event, on standard error.

use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt;

/// The form of a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the whole process. `level` is `trace`, `debug`, `info`, `warn` or `error`, or a filter such as `info,h2=debug`.
///
/// # Errors
/// If the level can't be understood, or logging was started before.
pub fn init(level: &str, format: LogFormat) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    init_to(level, format, colours, std::io::stderr)
}

/// As [`init`], but written elsewhere.
///
/// # Errors
/// As [`init`].
pub fn init_to(
    level: &str,
    format: LogFormat,
    colours: bool,
    writer: impl for<'w> fmt::MakeWriter<'w> + Send + Sync + 'static,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(level)?;
    let builder = fmt().with_env_filter(filter).with_writer(writer).with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(colours).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
}
