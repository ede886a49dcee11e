//! What can go wrong in this crate. Each text names the file or value, so that it can be shown as it is.

use std::io;
use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("{what} {}: {source}", path.display())]
    File {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{what} {}: {problem}", path.display())]
    Content {
        /// What the file is for.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// TLS files or settings do not go together.
    #[error("TLS: {0}")]
    Tls(String),
    /// A URL to listen on is malformed.
    #[error("listen URL {url:?}: {problem}")]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// An address could not be listened on.
    #[error("can't listen on {url}: {source}")]
    Listen {
        /// Which one.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// A log level or filter is malformed.
    #[error("log level {level:?}: {problem}")]
    LogLevel {
        /// As it was given.
        level: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Logs were set up already.
    #[error("logging is set up already")]
    LogTwice,
    /// The operating system refused to deliver signals.
    #[error("can't receive signals: {0}")]
    Signals(io::Error),
}
