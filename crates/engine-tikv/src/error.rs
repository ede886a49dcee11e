//! What can go wrong at opening.

use kubewharf_engine::{Cause, EngineError};

/// Why the store in a cluster can't be opened, or a backup not be loaded into it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The URL, the store's name or one of the files can't be used.
    #[error("the TiKV URL: {0}")]
    Url(String),
    /// The data was written by a newer version.
    #[error("the store {schema} has format version {found}; this program reads version {supported}")]
    Format {
        /// The store's name.
        schema: String,
        /// The version found.
        found: u32,
        /// The version this program reads and writes.
        supported: u32,
    },
    /// A backup was being loaded, and the program that did it ended.
    #[error("loading a backup into the store {schema} has not ended: load it into a store of another name")]
    HalfRestored {
        /// The store's name.
        schema: String,
    },
    /// A backup is loaded into a new store only.
    #[error("the store {schema} is there already: a backup is loaded into a store of its own")]
    NotEmpty {
        /// The store's name.
        schema: String,
    },
    /// The cluster failed.
    #[error(transparent)]
    Failed(#[from] EngineError),
}

impl From<Cause> for OpenError {
    fn from(cause: Cause) -> Self {
        Self::Failed(cause.into())
    }
}
