//! What a leader knows of an engine's rows without asking: for engines behind a network.
//!
//! Invariant: a row in here is the row as of everything confirmed, present or not. It belongs to one reign: nothing is taken over.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use kubewharf_engine::{
    Cause, DamageVisitor, Direction, Engine, EngineError, Head, Operation, Snapshot, Table, Visitor,
};
use parking_lot::Mutex;

use crate::mvcc::Overlay;

/// What a row costs beyond its key and value. An estimate.
const OVERHEAD_BYTES: usize = 160;

type Key = (Table, Bytes);

/// Rows by table and key, in two generations: when the younger one is full, the older one is forgotten.
pub(super) struct RowCache {
    bytes_max: usize,
    young: Generation,
    old: Generation,
    hits: u64,
    misses: u64,
}

#[derive(Default)]
struct Generation {
    rows: HashMap<Key, Option<Bytes>>,
    bytes: usize,
}

impl Generation {
    fn put(&mut self, key: Key, row: Option<Bytes>) {
        let weight = |key: &Key, row: &Option<Bytes>| key.1.len() + row.as_ref().map_or(0, Bytes::len) + OVERHEAD_BYTES;
        self.bytes += weight(&key, &row);
        let lookup = key.clone();
        if let Some(before) = self.rows.insert(key, row) {
            self.bytes -= weight(&lookup, &before);
        }
    }
}

impl RowCache {
    /// Keeps rows of about `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        let (young, old) = (Generation::default(), Generation::default());
        Self { bytes_max, young, old, hits: 0, misses: 0 }
    }

    /// The row, if it is known here.
    fn get(&mut self, table: Table, key: &[u8]) -> Option<Option<Bytes>> {
        let key = (table, Bytes::copy_from_slice(key));
        if let Some(row) = self.young.rows.get(&key) {
            self.hits += 1;
            return Some(row.clone());
        }
        let Some(row) = self.old.rows.get(&key).cloned() else {
            self.misses += 1;
            return None;
        };
        self.hits += 1;
        // What is asked for stays.
        self.put(key, row.clone());
        Some(row)
    }

    /// Whether the row has to be asked for.
    fn lacks(&self, table: Table, key: &[u8]) -> bool {
        let key = (table, Bytes::copy_from_slice(key));
        !self.young.rows.contains_key(&key) && !self.old.rows.contains_key(&key)
    }

    fn put(&mut self, key: Key, row: Option<Bytes>) {
        if self.young.bytes >= self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.put(key, row);
    }

    /// Takes in what a confirmed batch has changed.
    pub(super) fn confirmed(&mut self, changes: &Overlay) {
        for operation in changes.to_operations() {
            let table = operation.table();
            // The log is written and hardly read.
            if is_kept(table) {
                match operation {
                    Operation::Put { key, value, .. } => self.put((table, key), Some(value)),
                    Operation::Delete { key, .. } => self.put((table, key), None),
                }
            }
        }
    }

    /// Rows found and not found here since the last call.
    pub(super) fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.hits), std::mem::take(&mut self.misses))
    }
}

fn is_kept(table: Table) -> bool {
    matches!(table, Table::Current | Table::Lease)
}

/// A view for evaluation over an engine that is shared: rows that the cache knows, and an engine's snapshot for the others, which is taken when
/// the first is needed.
pub(super) struct View<'e> {
    engine: &'e dyn Engine,
    epoch: u64,
    cache: Arc<Mutex<RowCache>>,
    /// The batch in flight: the snapshot may show it or not, so what it changes is not kept from there.
    below: Option<Arc<Overlay>>,
    snapshot: OnceCell<Box<dyn Snapshot + 'e>>,
    /// The epoch of another writer, if there is one.
    deposed_by: Arc<AtomicU64>,
}

impl<'e> View<'e> {
    /// A view as of everything confirmed, with `below` or without.
    pub(super) fn new(
        engine: &'e dyn Engine,
        epoch: u64,
        cache: Arc<Mutex<RowCache>>,
        below: Option<Arc<Overlay>>,
        deposed_by: Arc<AtomicU64>,
    ) -> Self {
        Self { engine, epoch, cache, below, snapshot: OnceCell::new(), deposed_by }
    }

    fn snapshot(&self) -> Result<&(dyn Snapshot + 'e), EngineError> {
        if let Some(snapshot) = self.snapshot.get() {
            return Ok(snapshot.as_ref());
        }
        let snapshot = self.engine.urgent_snapshot()?;
        let found = snapshot.head()?.epoch;
        if found != self.epoch {
            self.deposed_by.store(found, Ordering::Relaxed);
            return Err(Cause::Unavailable(format!("another process writes, in epoch {found}")).into());
        }
        Ok(self.snapshot.get_or_init(|| snapshot).as_ref())
    }

    fn keep(&self, table: Table, key: &[u8], row: Option<&[u8]>) {
        if is_kept(table) && self.below.as_ref().is_none_or(|below| !below.changes(table, key)) {
            self.cache.lock().put((table, Bytes::copy_from_slice(key)), row.map(Bytes::copy_from_slice));
        }
    }
}

impl Snapshot for View<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        let known = if is_kept(table) { self.cache.lock().get(table, key) } else { None };
        if let Some(row) = known {
            if let Some(row) = &row {
                visit(row);
            }
            return Ok(row.is_some());
        }
        let mut row = None;
        self.snapshot()?.get(table, key, &mut |found| {
            row = Some(Bytes::copy_from_slice(found));
            visit(found);
        })?;
        self.keep(table, key, row.as_deref());
        Ok(row.is_some())
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.snapshot()?.scan(table, range, direction, visit)
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        self.snapshot()?.scan_past_damage(table, range, visit)
    }

    fn head(&self) -> Result<Head, EngineError> {
        self.snapshot()?.head()
    }

    /// Of what is about to be asked for, only what is not known here is.
    fn prefetch(&self, table: Table, keys: &[&[u8]]) -> Result<(), EngineError> {
        let unknown: Vec<&[u8]> = {
            let cache = self.cache.lock();
            keys.iter().copied().filter(|key| cache.lacks(table, key)).collect()
        };
        if unknown.len() > 1 { self.snapshot()?.prefetch(table, &unknown) } else { Ok(()) }
    }
}
