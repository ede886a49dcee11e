//! Writes of a transaction: each put or delete becomes rows of the current table, the log and the lease attachments.
//!
//! Invariant: whatever was written, the current row of a key and its newest log row name the same position.

use bytes::Bytes;
use kubewharf_engine::{EngineError, Table};

use super::history::{CurrentRow, next_ladder};
use super::record::{self, Change, Current, Ladder, Position, Previous, Rungs, Version};
use super::txn::Revisions;
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
    compacted: i64,
    time_ms: u64,
}

impl<'a> Writer<'a> {
    /// A writer of the transaction that gets the revision behind the newest one if it changes anything.
    pub fn new(
        base: &'a dyn Rows,
        in_flight: Option<&'a Overlay>,
        overlay: &'a mut Overlay,
        changes: &'a mut dyn ChangeSink,
        Revisions { newest, compacted }: Revisions,
        time_ms: u64,
    ) -> Self {
        let next = Position { revision: newest + 1, sub: 0 };
        Self { base, in_flight, overlay, changes, next, compacted, time_ms }
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

    /// Bytes of the rows that the transaction has written: the batch's savepoint is where it began.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.overlay.bytes_since_savepoint()
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
        self.write(key, current.as_ref(), Some(live));
        Ok(())
    }

    /// Deletes `key`; tells whether it existed.
    pub fn delete(&mut self, key: &Bytes) -> Result<bool, EngineError> {
        let row = CurrentRow::read(&self.view(), key)?;
        let current = row.as_ref().map(CurrentRow::decode).transpose()?;
        let Some(before) = current.as_ref().and_then(|current| current.live) else {
            return Ok(false);
        };
        self.attach(key, before.lease, 0);
        self.write(key, current.as_ref(), None);
        Ok(true)
    }

    /// Deletes `key` because `lease`, to which a row attaches it, has ended. That its own row is damaged doesn't keep it.
    pub fn delete_leased(&mut self, key: &Bytes, lease: i64) -> Result<(), EngineError> {
        // The row that attaches it goes in any case, as the lease does.
        self.attach(key, lease, 0);
        match CurrentRow::read(&self.view(), key) {
            Err(error) if error.is_corrupt() => self.delete_unread(key),
            Err(error) => return Err(error),
            Ok(row) => {
                let current = row.as_ref().map(CurrentRow::decode).transpose()?;
                let live = current.as_ref().and_then(|current| current.live);
                // A damaged row that was deleted unread may have left its attachment behind.
                if live.is_some_and(|live| live.lease == lease) {
                    self.write(key, current.as_ref(), None);
                }
            }
        }
        Ok(())
    }

    /// Deletes `key`, whose row is damaged: nothing is known of what it was, and the history of the key begins here.
    pub fn delete_unread(&mut self, key: &Bytes) {
        let current = Current { position: self.next, ladder: Ladder::default(), rungs: Rungs::default(), live: None };
        self.record(key, current, Some(Previous::LOST));
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

    fn write(&mut self, key: &Bytes, before: Option<&Current<'_>>, live: Option<Version<'_>>) {
        let (ladder, rungs) = before.map(|before| next_ladder(before, self.compacted)).unwrap_or_default();
        let previous = before.map(|before| Previous { position: before.position, live: before.live });
        let position = self.next;
        self.record(key, Current { position, ladder, rungs: Rungs::new(&rungs), live }, previous);
    }

    fn record(&mut self, key: &Bytes, current: Current<'_>, previous: Option<Previous<'_>>) {
        let Current { position, ladder, live, .. } = current;
        let change = Change { time_ms: self.time_ms, key, live, previous, ladder };
        self.changes.change(position, &change);
        self.overlay.put(Table::Log, Bytes::copy_from_slice(&position.key()), change.encode());
        self.overlay.put(Table::Current, key.clone(), current.encode());
        self.next.sub += 1;
    }
}
