//! What can go wrong while a real program is found, built, started or watched.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// The error of this crate. Its debug form is its text, because that is what a failed test shows.
#[derive(thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    File {
        /// What was tried, as a verb phrase: "read", "create the folder".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A program could not be started at all.
    #[error("cannot start {program}: {source}")]
    Start {
        /// The program, as it was to be run.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A process ended before it was ready.
    #[error("{name} ended before it was ready ({status}); the end of its log {}:\n{tail}", log.display())]
    EndedEarly {
        /// The name given to the process.
        name: String,
        /// How it ended.
        status: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A process runs, but did not get ready in time.
    #[error("{name} was not ready within {within:?}; the end of its log {}:\n{tail}", log.display())]
    NotReady {
        /// The name given to the process.
        name: String,
        /// How long it was waited for.
        within: Duration,
        /// Its log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// A command that was run to its end failed.
    #[error("`{command}` failed ({status}):\n{stderr}")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// What it said.
        stderr: String,
    },
    /// There is no Go to build a missing program with.
    #[error(
        "{wanted} must be built, and there is no Go to build it with: install Go 1.26 or newer (https://go.dev/dl, or \
         your distribution's package) and run again, or name a folder that holds the programs in KUBEBUILDER_ASSETS"
    )]
    NoGo {
        /// The programs that are missing.
        wanted: String,
    },
    /// `go build` failed.
    #[error(
        "building {wanted} failed ({status}); it needs Go 1.26 or newer and, for the first time, access to the Go \
         modules:\n{output}"
    )]
    Build {
        /// The programs that were to be built.
        wanted: String,
        /// How `go build` ended.
        status: String,
        /// The end of its output.
        output: String,
    },
    /// This is not run from within a checkout, so that nothing can be built.
    #[error(
        "{wanted} was found neither in KUBEBUILDER_ASSETS nor in PATH, and there is no folder tests/tools in {} or above \
         it to build it from", start.display()
    )]
    NoWorkspace {
        /// The programs that are missing.
        wanted: String,
        /// Where the search began.
        start: PathBuf,
    },
    /// The product's own program is not there.
    #[error("{} is not there: build it first with `cargo build -p kubewharf`, or name it in KUBEWHARF_BIN", path.display())]
    NoProduct {
        /// Where it should be.
        path: PathBuf,
    },
    /// There can be no network of the test's own.
    #[error(
        "a network of the test's own can't be made: {why}; it needs the package iproute2, and the right to make network namespaces, as root \
         has it outside of containers (CAP_SYS_ADMIN and CAP_NET_ADMIN)"
    )]
    NoNetwork {
        /// What is missing.
        why: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A request to a server failed.
    #[error("{what}: {why}")]
    Request {
        /// The request.
        what: String,
        /// What went wrong.
        why: String,
    },
}

/// What functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
