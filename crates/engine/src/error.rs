//! What can go wrong with an engine, sorted by what a caller may conclude.

use crate::Head;

/// Why an operation failed, for people and for choosing the client's error.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// The disk, the map or the quota has no room for the batch.
    #[error("out of space: {0}")]
    NoSpace(String),
    /// A row or the batch is larger than [`crate::Limits`] allow.
    #[error("over the engine's limit: {0}")]
    TooLarge(String),
    /// Input or output failed.
    #[error("input or output failed: {0}")]
    Io(String),
    /// A stored row fails its checksum or can't be understood.
    #[error("corrupt data: {0}")]
    Corrupt(String),
    /// The engine can't be reached or did not answer in time.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// An earlier failure left the engine's state unknown to this process; it must be opened again.
    #[error("stopped after an earlier failure: {0}")]
    Poisoned(String),
}

impl EngineError {
    /// Whether stored data is damaged: only what needs that very data fails, and the engine goes on.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(self, Self::Failed(Cause::Corrupt(_)))
    }
}

/// A failed read, size, backup or open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The operation failed.
    #[error(transparent)]
    Failed(#[from] Cause),
    /// Another process has the data directory.
    #[error("data directory {path} is in use by process {holder}")]
    Locked {
        /// The data directory.
        path: String,
        /// The holder's process id, or `unknown`.
        holder: String,
    },
    /// The data was written by a version with another format.
    #[error("data directory {path} has format version {found}; this program reads version {supported}")]
    Format {
        /// The data directory.
        path: String,
        /// The version found.
        found: u32,
        /// The version this program reads and writes.
        supported: u32,
    },
}

/// A commit that was not confirmed. The variants differ in what may have happened to the data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Certainly not applied, and never will be; the engine goes on.
    #[error("not applied: {0}")]
    NotApplied(Cause),
    /// May have been applied or may be applied later; only a confirmed successor settles it.
    #[error("outcome unknown: {0}")]
    Unknown(Cause),
    /// The stored head is another than the expected one.
    #[error("fenced: the stored head is {0:?}")]
    Fenced(Head),
    /// May have been applied, and this process can't find out: it must end, and the next one opens what is durable.
    #[error("the engine failed, the process must end: {0}")]
    Fatal(Cause),
}
