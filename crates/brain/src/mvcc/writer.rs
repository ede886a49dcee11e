//! Writes of a transaction: each put or delete becomes rows of the current table, the log and the lease attachments.
//!
//! Invariant: whatever was written, the current row of a key and its newest log row name the same position.

use bytes::Bytes;
use kubewharf_engine::{EngineError, Table};

use super::history::{CurrentRow, next_ladder};
use super::record::{self, Change, Current, Ladder, Position, Previous, Version};
use super::view::{Layered, Overlay, Rows};

/// Receives the changes of a transaction as they happen, for the watchers.
pub trait ChangeSink {
    /// One change, at its position.
    fn change(&mut self, position: Position, change: &Change<'_>);
}

/// Writes one transaction into a batch's overlay.
pub struct Writer<'a> {
    base: &'a dyn Rows,
    in_flight: Option<&'a Overlay>,
    overlay: &'a mut Overlay,
    changes: &'a mut dyn ChangeSink,
    next: Position,
    time_ms: u64,
}

impl<'a> Writer<'a> {
    /// A writer of the transaction that gets `revision` if it changes anything.
    pub fn new(
        base: &'a dyn Rows,
        in_flight: Option<&'a Overlay>,
        overlay: &'a mut Overlay,
        changes: &'a mut dyn ChangeSink,
        revision: i64,
        time_ms: u64,
    ) -> Self {
        Self { base, in_flight, overlay, changes, next: Position { revision, sub: 0 }, time_ms }
    }

    /// What the transaction sees: everything before it and its own writes.
    #[must_use]
    pub fn view(&self) -> Layered<'_> {
        Layered::new(self.base, self.in_flight, self.overlay)
    }

    /// Whether the transaction has changed anything.
    #[must_use]
    pub fn wrote(&self) -> bool {
        self.next.sub > 0
    }

    /// How many changes the transaction has made.
    #[must_use]
    pub fn changes(&self) -> u32 {
        self.next.sub
    }

    /// The revision of the transaction's writes.
    #[must_use]
    pub fn revision(&self) -> i64 {
        self.next.revision
    }

    /// Writes `value` to `key` and attaches it to `lease`, which must exist, or to none if that is 0.
    pub fn put(&mut self, key: &Bytes, value: &[u8], lease: i64) -> Result<(), EngineError> {
        let row = CurrentRow::read(&self.view(), key)?;
        let current = row.as_ref().map(CurrentRow::decode).transpose()?;
        let before = current.as_ref().and_then(|current| current.live);
        let revision = self.next.revision;
        let live = Version {
            create_revision: before.map_or(revision, |before| before.create_revision),
            mod_revision: revision,
            version: before.map_or(1, |before| before.version + 1),
            lease,
            value,
        };
        self.attach(key, before.map_or(0, |before| before.lease), lease);
        self.write(key, current.as_ref(), Some(live))
    }

    /// Deletes `key`; tells whether it existed.
    pub fn delete(&mut self, key: &Bytes) -> Result<bool, EngineError> {
        let row = CurrentRow::read(&self.view(), key)?;
        let current = row.as_ref().map(CurrentRow::decode).transpose()?;
        let Some(before) = current.as_ref().and_then(|current| current.live) else {
            return Ok(false);
        };
        self.attach(key, before.lease, 0);
        self.write(key, current.as_ref(), None)?;
        Ok(true)
    }

    fn attach(&mut self, key: &Bytes, old: i64, new: i64) {
        if old == new {
            return;
        }
        if old != 0 {
            self.overlay.delete(Table::LeaseKey, record::attachment_key(old, key));
        }
        if new != 0 {
            self.overlay.put(Table::LeaseKey, record::attachment_key(new, key), Bytes::new());
        }
    }

    fn write(
        &mut self,
        key: &Bytes,
        before: Option<&Current<'_>>,
        live: Option<Version<'_>>,
    ) -> Result<(), EngineError> {
        let position = self.next;
        let ladder = before.map_or(Ok(Ladder::default()), |before| next_ladder(&self.view(), before))?;
        let previous = before.map(|before| Previous { position: before.position, live: before.live });
        let change = Change { time_ms: self.time_ms, key, live, previous, ladder };
        self.changes.change(position, &change);
        self.overlay.put(Table::Log, Bytes::copy_from_slice(&position.key()), change.encode());
        self.overlay.put(Table::Current, key.clone(), Current { position, ladder, live }.encode());
        self.next.sub += 1;
        Ok(())
    }
}
