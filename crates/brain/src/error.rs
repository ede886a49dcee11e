//! Everything that a request can end with other than its answer. [`crate::rpc`] gives each its gRPC code and etcd's text.

use kubewharf_engine::{Cause, EngineError};
use kubewharf_etcd_api::EtcdError;

use crate::mvcc::Refusal;

/// A request that is wrong in itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No key.
    #[error("key is not provided")]
    EmptyKey,
    /// A key that engines can't hold.
    #[error("key of {bytes} bytes is longer than {bytes_max} bytes")]
    KeyTooLong {
        /// The key's length.
        bytes: usize,
        /// The longest key.
        bytes_max: usize,
    },
    /// A value together with "keep the value".
    #[error("value is provided")]
    ValueProvided,
    /// A lease together with "keep the lease".
    #[error("lease is provided")]
    LeaseProvided,
    /// An unknown sort order or target.
    #[error("invalid sort option")]
    SortOption,
    /// More operations in a transaction than allowed.
    #[error("more than {operations_max} operations in a transaction (--max-txn-ops)")]
    TooManyOperations {
        /// The limit.
        operations_max: usize,
    },
    /// An operation without content.
    #[error("empty operation")]
    EmptyOperation,
    /// A key written twice by one transaction.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The request is wrong in itself.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The revision is compacted.
    #[error("required revision has been compacted")]
    Compacted,
    /// The revision does not exist yet.
    #[error("required revision is a future revision")]
    FutureRevision,
    /// A kept value or lease of a key that doesn't exist.
    #[error("key not found")]
    KeyNotFound,
    /// No such lease.
    #[error("requested lease not found")]
    LeaseNotFound,
    /// The chosen lease id is taken.
    #[error("lease already exists")]
    LeaseExists,
    /// The lease's time to live is over the limit.
    #[error("too large lease TTL")]
    LeaseTtlTooLarge,
    /// The store has no room.
    #[error("database space exceeded: {0}")]
    NoSpace(String),
    /// The request, or what it changes, is over a limit.
    #[error("request is too large: {0}")]
    TooLarge(String),
    /// The request is larger than allowed.
    #[error("request of {bytes} bytes is larger than {bytes_max} bytes (--max-request-bytes)")]
    RequestTooLarge {
        /// The request's size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A list is larger than all lists together may be.
    #[error("the list is larger than {bytes_max} bytes (--list-bytes-max): read it in pages or with RangeStream")]
    ListTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// Other lists hold the memory of lists.
    #[error("other lists hold the {bytes_max} bytes of memory for lists (--list-bytes-max): try again")]
    ListsBusy {
        /// The limit.
        bytes_max: usize,
    },
    /// What a writing transaction or a deletion would return is over the limit.
    #[error("a write that returns more than {bytes_max} bytes is refused: ask for less, or read in a call of its own")]
    ResponseTooLarge {
        /// The limit, which is fixed.
        bytes_max: usize,
    },
    /// An error that the API has by this very text.
    #[error(transparent)]
    Api(EtcdError),
    /// The call, or this form of it, is not built.
    #[error("{0}")]
    Unimplemented(&'static str),
    /// The queue of writes is full.
    #[error("too many requests: the queue of {limit} is full ({flag})")]
    TooManyRequests {
        /// The limit.
        limit: usize,
        /// The flag that sets it.
        flag: &'static str,
    },
    /// The write may or may not have happened.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(String),
    /// The store is stopping or has failed; nothing was written.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Another member writes; nothing was written here.
    #[error("not leader")]
    NotLeader,
    /// Stored data is damaged.
    #[error("data corruption: {0}")]
    Corrupt(String),
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Compacted => Self::Compacted,
            Refusal::FutureRevision => Self::FutureRevision,
            Refusal::LeaseNotFound => Self::LeaseNotFound,
            Refusal::KeyNotFound => Self::KeyNotFound,
            Refusal::TooManyChanges { keys_max } => {
                Self::TooLarge(format!("one transaction changes at most {keys_max} keys on this engine"))
            }
            Refusal::TooManyBytes { bytes_max } => Self::TooLarge(format!(
                "one transaction writes at most {bytes_max} bytes on this engine, deleted and replaced values included"
            )),
            Refusal::ResponseTooLarge { bytes_max } => Self::ResponseTooLarge { bytes_max },
            Refusal::Engine(error) => error.into(),
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Failed(cause) => cause.into(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::NoSpace(text) => Self::NoSpace(text),
            Cause::TooLarge(text) => Self::TooLarge(text),
            Cause::Corrupt(text) => Self::Corrupt(text),
            Cause::Io(_) | Cause::Unavailable(_) | Cause::Poisoned(_) => Self::Unavailable(cause.to_string()),
        }
    }
}
