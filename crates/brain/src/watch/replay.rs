//! Pages of history for watches whose position is before what the hub marks.
//!
//! One page serves all such watches of a stream: ten thousand watches that come back after a reconnect read the history
//! once, not ten thousand times. A page is read from the ring if that has the earliest position, else from the log, by
//! one snapshot.
//!
//! Invariant: a page ends between transactions, its outputs are all events up to there, and a revision that the log
//! lacks without being compacted is an error.

use std::collections::HashMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kubewharf_engine::{Cause, Direction, EngineError, Snapshot, Table};
use kubewharf_etcd_api::encode::put_event;

use super::events::{event_parts, is_create, key_value};
use super::hub::Shared;
use super::index::Index;
use super::ring::Segments;
use super::spec::Spec;
use crate::error::Error;
use crate::limits::{WATCH_PAGE_BYTES, WATCH_PAGE_READ_BYTES, WATCH_PAGE_ROWS};
use crate::meta;
use crate::mvcc::{Change, Position, Previous, Version};
use crate::store::Store;

/// An empty store is at revision 1, so the first change is at this one.
const FIRST_REVISION: i64 = 2;

/// The watches that read history, by serial.
#[derive(Default)]
pub(super) struct Replay {
    watches: HashMap<u64, Reader>,
    index: Index<u64>,
}

struct Reader {
    spec: Arc<Spec>,
    /// The next revision that it needs.
    position: i64,
    out: BytesMut,
    events: u64,
}

/// What watches got of a page.
#[derive(Debug, Default)]
pub(super) struct Page {
    /// Watches with events: their serials, the entries, and how many these are.
    pub(super) outputs: Vec<(u64, Bytes, u64)>,
    /// All watches are now at this revision, or were further.
    pub(super) next: i64,
    /// The compacted revision, and the serials of the watches that are below it; these have left.
    pub(super) compacted: Option<(i64, Vec<u64>)>,
}

impl Replay {
    pub(super) fn is_empty(&self) -> bool {
        self.watches.is_empty()
    }

    pub(super) fn insert(&mut self, serial: u64, spec: Arc<Spec>, position: i64) {
        self.index.insert(&spec.range, serial);
        self.watches.insert(serial, Reader { spec, position, out: BytesMut::new(), events: 0 });
    }

    /// Removes a watch; gives the next revision that it needs.
    pub(super) fn remove(&mut self, serial: u64) -> Option<i64> {
        let reader = self.watches.remove(&serial)?;
        self.index.remove(&reader.spec.range, serial);
        Some(reader.position)
    }

    /// The watches, and the next revision that each needs.
    pub(super) fn positions(&self) -> impl Iterator<Item = (u64, i64)> {
        self.watches.iter().map(|(serial, reader)| (*serial, reader.position))
    }

    /// Reads the next page, up to `last` at most, which must be published. Blocks.
    pub(super) fn read(&mut self, store: &Store, ring: &Shared, last: i64) -> Result<Page, Error> {
        let mut page = Page::default();
        let result = self.read_into(&mut page, store, ring, last);
        for (serial, reader) in &mut self.watches {
            reader.position = reader.position.max(page.next);
            if reader.events > 0 {
                page.outputs.push((*serial, reader.out.split().freeze(), reader.events));
                reader.events = 0;
            }
            // What is left of the buffer's memory is not kept from page to page.
            reader.out = BytesMut::new();
        }
        result.map(|()| page)
    }

    fn read_into(&mut self, page: &mut Page, store: &Store, ring: &Shared, last: i64) -> Result<(), Error> {
        if self.read_ring(page, ring, last, store.revisions().compacted) {
            return Ok(());
        }
        let snapshot = store.snapshot()?;
        let compacted = compacted(snapshot.as_ref())?;
        let gone: Vec<u64> =
            self.watches.iter().filter(|(_, reader)| reader.position < compacted).map(|(serial, _)| *serial).collect();
        if !gone.is_empty() {
            for serial in &gone {
                self.remove(*serial);
            }
            page.compacted = Some((compacted, gone));
        }
        self.read_log(page, snapshot.as_ref(), last, compacted)
    }

    fn first(&self) -> Option<i64> {
        self.watches.values().map(|reader| reader.position).min().map(|first| first.max(FIRST_REVISION))
    }

    /// Reads a page of the ring, if that has what is needed.
    fn read_ring(&mut self, page: &mut Page, ring: &Shared, last: i64, compacted: i64) -> bool {
        let Some(first) = self.first() else { return false };
        let mut segments = Segments::new();
        if ring.read(first, last, segments.inline_size(), &mut segments).is_err() {
            return false;
        }
        page.next = first;
        let mut bytes = 0;
        for segment in &segments {
            debug_assert!(segment.first() <= page.next && segment.last() <= last);
            for event in segment.events() {
                let key = segment.key(event);
                let watches = &mut self.watches;
                self.index.find(key, |serial| {
                    let reader = watches.get_mut(&serial).expect("indexed watches exist");
                    if reader.wants(event.revision, event.is_delete) {
                        let before = reader.out.len();
                        let prev_kv = reader.spec.prev_kv && has_prev_kv(event.revision, compacted);
                        segment.put(event, prev_kv, &mut reader.out);
                        reader.events += 1;
                        bytes += reader.out.len() - before;
                    }
                });
            }
            page.next = segment.last() + 1;
            if bytes >= WATCH_PAGE_BYTES {
                return true;
            }
        }
        // Fewer than asked for: that was all up to `last`.
        if segments.len() < segments.inline_size() {
            page.next = page.next.max(last + 1);
        }
        true
    }

    fn read_log(&mut self, page: &mut Page, snapshot: &dyn Snapshot, last: i64, compacted: i64) -> Result<(), Error> {
        let Some(first) = self.first() else {
            page.next = last + 1;
            return Ok(());
        };
        page.next = first;
        let (mut rows, mut read_bytes, mut bytes) = (0, 0, 0);
        // The last row seen.
        let mut at = Position { revision: first - 1, sub: 0 };
        let mut failed: Result<(), EngineError> = Ok(());
        let mut ended_early = false;
        let start = Position { revision: first, sub: 0 }.key();
        let bounds = (Bound::Included(&start[..]), Bound::Unbounded);
        snapshot.scan(Table::Log, bounds, Direction::Forward, &mut |key, row| {
            let position = match Position::from_key(key).and_then(|position| follows(at, position)) {
                Ok(position) => position,
                Err(cause) => {
                    failed = Err(cause.into());
                    return ControlFlow::Break(());
                }
            };
            if position.sub == 0 {
                let full = rows >= WATCH_PAGE_ROWS || read_bytes >= WATCH_PAGE_READ_BYTES || bytes >= WATCH_PAGE_BYTES;
                if full || position.revision > last {
                    ended_early = true;
                    return ControlFlow::Break(());
                }
            }
            at = position;
            rows += 1;
            read_bytes += row.len();
            match self.take(snapshot, position, row, compacted) {
                Ok(taken) => bytes += taken,
                Err(error) => {
                    failed = Err(error);
                    return ControlFlow::Break(());
                }
            }
            ControlFlow::Continue(())
        })?;
        failed?;
        if !ended_early && at.revision < last {
            return Err(missing(at.revision + 1).into());
        }
        page.next = at.revision + 1;
        Ok(())
    }

    /// Gives a row's event to the watches that want it; tells how many bytes that made.
    fn take(
        &mut self,
        snapshot: &dyn Snapshot,
        position: Position,
        row: &[u8],
        compacted: i64,
    ) -> Result<usize, EngineError> {
        let change = Change::decode(position, row)?;
        let mut bytes = 0;
        let mut result = Ok(());
        let watches = &mut self.watches;
        self.index.find(change.key, |serial| {
            let reader = watches.get_mut(&serial).expect("indexed watches exist");
            if result.is_err() || !reader.wants(position.revision, change.live.is_none()) {
                return;
            }
            let before = reader.out.len();
            let prev_kv = reader.spec.prev_kv && has_prev_kv(position.revision, compacted) && !is_create(&change);
            result = if prev_kv {
                put_with_prev_kv(snapshot, position, &change, &mut reader.out)
            } else {
                put(position, &change, None, &mut reader.out);
                Ok(())
            };
            reader.events += 1;
            bytes += reader.out.len() - before;
        });
        result.map(|()| bytes)
    }
}

impl Reader {
    fn wants(&self, revision: i64, is_delete: bool) -> bool {
        revision >= self.position && self.spec.admits(is_delete)
    }
}

/// etcd reads the previous key-value at the revision before the event's, and leaves it out if that is compacted.
fn has_prev_kv(revision: i64, compacted: i64) -> bool {
    revision > compacted
}

fn put(position: Position, change: &Change<'_>, before: Option<&Version<'_>>, out: &mut BytesMut) {
    let (kind, kv) = event_parts(position.revision, change);
    put_event(out, kind, &kv, before.map(|before| key_value(change.key, before)).as_ref());
}

/// As [`put`], with the key-value before the transaction: what the transaction itself had written before does not
/// count.
fn put_with_prev_kv(
    snapshot: &dyn Snapshot,
    position: Position,
    change: &Change<'_>,
    out: &mut BytesMut,
) -> Result<(), EngineError> {
    let is_own = |previous: &Previous<'_>| previous.position.revision == position.revision;
    let mut own = match change.previous.as_ref().filter(|previous| is_own(previous)) {
        Some(own) => own.position,
        None => {
            put(position, change, change.previous.and_then(|previous| previous.live).as_ref(), out);
            return Ok(());
        }
    };
    let mut row = Vec::new();
    loop {
        row.clear();
        snapshot.get(Table::Log, &own.key(), &mut |found| row.extend_from_slice(found))?;
        match Change::decode(own, &row)?.previous {
            Some(previous) if is_own(&previous) => own = previous.position,
            previous => {
                put(position, change, previous.and_then(|previous| previous.live).as_ref(), out);
                return Ok(());
            }
        }
    }
}

/// Checks that `position` is what comes after `at`.
fn follows(at: Position, position: Position) -> Result<Position, Cause> {
    let next_change = Position { sub: at.sub + 1, ..at };
    let next_transaction = Position { revision: at.revision + 1, sub: 0 };
    if position == next_change || position == next_transaction { Ok(position) } else { Err(missing(at.revision + 1)) }
}

fn missing(revision: i64) -> Cause {
    Cause::Corrupt(format!("the log has a gap behind revision {}", revision - 1))
}

fn compacted(snapshot: &dyn Snapshot) -> Result<i64, EngineError> {
    let mut compacted = Ok(-1);
    snapshot.get(Table::Meta, &meta::COMPACTED, &mut |row| compacted = meta::decode_revision(row))?;
    Ok(compacted?)
}
