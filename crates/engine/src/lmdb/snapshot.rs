//! Reading: LMDB read transactions, kept for reuse as long as they show the newest state.
//!
//! Beginning a read transaction takes a process-wide mutex, a search for a reader slot and an allocation. Between two commits every
//! reader sees the same state, so a transaction that a reader is done with serves the next.
//!
//! Invariant: a pooled transaction shows the newest commit that has returned; each commit empties the pool before it returns, so no idle
//! transaction holds back the reuse of pages.

use std::ops::{Bound, ControlFlow};

use heed::{Env, RoTxn, WithoutTls};
use parking_lot::Mutex;

use super::record::{self, ENGINE_TABLE};
use super::{Lmdb, cause, open};
use crate::{Cause, Direction, EngineError, Head, Snapshot, Table, Visitor};

/// Idle transactions kept; more concurrent readers than this begin their own.
const IDLE_MAX: usize = 64;

type Txn = RoTxn<'static, WithoutTls>;

/// The idle read transactions.
pub(super) struct ReaderPool {
    idle: Mutex<Idle>,
}

struct Idle {
    /// LMDB's id of the newest commit that has returned or is about to.
    newest: usize,
    txns: Vec<Txn>,
}

impl ReaderPool {
    pub(super) fn new(newest: usize) -> Self {
        Self { idle: Mutex::new(Idle { newest, txns: Vec::with_capacity(IDLE_MAX) }) }
    }

    pub(super) fn view<'e>(&self, engine: &'e Lmdb) -> Result<View<'e>, EngineError> {
        let pooled = self.idle.lock().txns.pop();
        let txn = match pooled {
            Some(txn) => txn,
            None => begin(&engine.env)?,
        };
        Ok(View { engine, txn: Some(txn) })
    }

    /// Makes `newest` what readers see from now on. Called by a commit before it returns.
    pub(super) fn advance(&self, newest: usize) {
        let stale = {
            let mut idle = self.idle.lock();
            idle.newest = newest;
            std::mem::replace(&mut idle.txns, Vec::with_capacity(IDLE_MAX))
        };
        drop(stale);
    }

    fn give_back(&self, txn: Txn) {
        let id = txn.id();
        let mut idle = self.idle.lock();
        if idle.newest == id && idle.txns.len() < IDLE_MAX {
            idle.txns.push(txn);
        } else {
            // Ended outside the lock.
            drop(idle);
            drop(txn);
        }
    }
}

fn begin(env: &Env<WithoutTls>) -> Result<Txn, Cause> {
    env.clone().static_read_txn().map_err(|e| cause(&e, "begin a read"))
}

/// A snapshot of the whole store.
pub(super) struct View<'e> {
    engine: &'e Lmdb,
    /// `None` only while dropping.
    txn: Option<Txn>,
}

impl View<'_> {
    pub(super) fn txn(&self) -> &Txn {
        self.txn.as_ref().expect("taken only by drop")
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Some(txn) = self.txn.take() {
            self.engine.readers.give_back(txn);
        }
    }
}

impl Snapshot for View<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        // LMDB has no empty keys and calls one an error.
        if key.is_empty() {
            return Ok(false);
        }
        let stored = self.engine.rows.table(table).get(self.txn(), key).map_err(|e| cause(&e, "read a row"))?;
        let Some(stored) = stored else { return Ok(false) };
        visit(record::verify(table.number(), table.name(), key, stored)?);
        Ok(true)
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        let Some(range) = without_empty_keys(range) else {
            return Ok(());
        };
        let rows = self.engine.rows.table(table);
        let failed = |e| cause(&e, "read a range");
        let mut each = |row: heed::Result<(&[u8], &[u8])>| -> Result<ControlFlow<()>, Cause> {
            let (key, stored) = row.map_err(failed)?;
            Ok(visit(key, record::verify(table.number(), table.name(), key, stored)?))
        };
        match direction {
            Direction::Forward => {
                for row in rows.range(self.txn(), &range).map_err(failed)? {
                    if each(row)?.is_break() {
                        break;
                    }
                }
            }
            Direction::Reverse => {
                for row in rows.rev_range(self.txn(), &range).map_err(failed)? {
                    if each(row)?.is_break() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(read_head(&self.engine.rows, self.txn())?)
    }
}

/// The head as of a transaction.
pub(super) fn read_head(rows: &super::Rows, txn: &RoTxn<'_>) -> Result<Head, Cause> {
    let stored = rows.engine.get(txn, open::HEAD_KEY).map_err(|e| cause(&e, "read the head"))?;
    let stored = stored.ok_or_else(|| Cause::Corrupt("there is no head row".into()))?;
    let row = record::verify(ENGINE_TABLE, "engine", open::HEAD_KEY, stored)?;
    Head::decode(row).ok_or_else(|| Cause::Corrupt(format!("the head row has {} bytes", row.len())))
}

type KeyRange<'k> = (Bound<&'k [u8]>, Bound<&'k [u8]>);

/// The same set of rows without an empty key as a bound, which LMDB refuses; `None` if no row can be in it.
fn without_empty_keys((start, end): KeyRange<'_>) -> Option<KeyRange<'_>> {
    let start = match start {
        Bound::Included(key) | Bound::Excluded(key) if key.is_empty() => Bound::Unbounded,
        other => other,
    };
    match end {
        Bound::Included(key) | Bound::Excluded(key) if key.is_empty() => return None,
        _ => {}
    }
    Some((start, end))
}
