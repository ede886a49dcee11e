//! What clients of a store did and saw, as the checker reads it.

use std::collections::BTreeMap;
use std::time::Instant;

/// What a transaction does to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Writes it.
    Put { value: Vec<u8>, lease: i64 },
    /// Removes it.
    Delete,
}

/// What a transaction does; it writes no key twice.
pub(crate) type Changes = BTreeMap<String, Change>;

/// What became of a write, as far as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was acknowledged at this revision.
    Applied { revision: i64 },
    /// Its condition did not hold, at this revision.
    Refused { revision: i64 },
    /// The answer did not come: it may or may not have been applied, or may be yet.
    Unknown,
}

/// A write that a client tried.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    /// Who tried it, and their how manieth it was.
    pub(crate) name: String,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// The key and revision of its last change that the write asks for; 0 asks for a key that is not there.
    pub(crate) condition: Option<(String, i64)>,
    pub(crate) changes: Changes,
    pub(crate) outcome: Outcome,
}

/// A key as a client read it.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) key: String,
    /// The revision that the store said it read at.
    pub(crate) revision: i64,
    pub(crate) found: Option<Version>,
}

/// A key's value and numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) value: Vec<u8>,
    pub(crate) lease: i64,
    pub(crate) create_revision: i64,
    pub(crate) mod_revision: i64,
    pub(crate) version: i64,
}

/// A transaction as a watch delivered it: keys with their new versions, `None` for deleted ones.
#[derive(Clone, Debug)]
pub(crate) struct Transaction {
    pub(crate) revision: i64,
    pub(crate) arrived: Instant,
    pub(crate) changes: BTreeMap<String, Option<Version>>,
}

/// All that a watcher got, over all its connections.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// It watched the keys that begin with this.
    pub(crate) prefix: String,
    /// In the order of arrival.
    pub(crate) transactions: Vec<Transaction>,
}

/// A lease that a client asked for.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) id: i64,
    pub(crate) ttl_seconds: u64,
    /// When the grant was asked for.
    pub(crate) asked: Instant,
    /// Whether the grant was answered.
    pub(crate) granted: bool,
    /// When a renewal was asked for, and when it was answered.
    pub(crate) renewals: Vec<(Instant, Instant)>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) reads: Vec<Read>,
    /// The first one watched all keys from the store's beginning.
    pub(crate) watched: Vec<Watched>,
    pub(crate) leases: Vec<Lease>,
}
