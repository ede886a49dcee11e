//! The unit of change.

use bytes::Bytes;

use crate::{Cause, Head, Limits, Table};

/// One row's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes the row, new or not.
    Put {
        /// The row's table.
        table: Table,
        /// The row's key.
        key: Bytes,
        /// The row's new value.
        value: Bytes,
    },
    /// Removes the row; no error if there is none.
    Delete {
        /// The row's table.
        table: Table,
        /// The row's key.
        key: Bytes,
    },
}

/// How far a batch may go into the room that an engine keeps back, so that a full store can be emptied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reserve {
    /// Not at all: what makes the store grow.
    #[default]
    Untouched,
    /// Down to a floor: deletions, which write rows too, and make room only by way of what may go below.
    ToFloor,
    /// All of it: what makes room by itself.
    Whole,
}

/// An atomic, fenced change: applied whole if the stored head equals `expected`, else not at all.
///
/// Each row is named at most once; engines apply the operations in the given order, which is by table and key for locality.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The head that must be stored.
    pub expected: Head,
    /// The head that replaces it.
    pub next: Head,
    /// The changes.
    pub operations: Vec<Operation>,
    /// How far it may go into the room that the engine keeps back.
    pub reserve: Reserve,
}

impl Operation {
    /// The row's table.
    #[must_use]
    pub fn table(&self) -> Table {
        match self {
            Self::Put { table, .. } | Self::Delete { table, .. } => *table,
        }
    }

    /// The row's key.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// Bytes of the key and the value.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => key.len() + value.len(),
            Self::Delete { key, .. } => key.len(),
        }
    }
}

impl Limits {
    /// Checks a batch; the cause names what is too large.
    pub fn check(&self, batch: &Batch) -> Result<(), Cause> {
        let refuse = |text: String| Err(Cause::TooLarge(text));
        if batch.operations.len() > self.batch_operations_max {
            return refuse(format!("{} operations, at most {}", batch.operations.len(), self.batch_operations_max));
        }
        let mut batch_bytes = 0;
        for operation in &batch.operations {
            let key_bytes = operation.key().len();
            if key_bytes == 0 || key_bytes > self.key_bytes_max {
                return refuse(format!("a key of {key_bytes} bytes, 1 to {} are allowed", self.key_bytes_max));
            }
            let value_bytes = operation.payload_bytes() - key_bytes;
            if value_bytes > self.value_bytes_max {
                return refuse(format!("a value of {value_bytes} bytes, at most {}", self.value_bytes_max));
            }
            batch_bytes += key_bytes + value_bytes;
        }
        if batch_bytes > self.batch_bytes_max {
            return refuse(format!("a batch of {batch_bytes} bytes, at most {}", self.batch_bytes_max));
        }
        Ok(())
    }
}
