//! Reading: LMDB read transactions, kept for reuse as long as they show the newest state.
//!
//! Beginning a read transaction takes a process-wide mutex, a search for a reader slot and an allocation. Between two commits every
//! reader sees the same state, so a transaction that a reader is done with serves the next.
//!
//! Invariant: a pooled transaction shows the newest commit that has returned; each commit empties the pool before it returns, so no idle
//! transaction holds back the reuse of pages.

use std::ops::Bound;

use heed::{Env, RoTxn, WithoutTls};
use parking_lot::Mutex;

use super::{Databases, Lmdb, cause, open, record};
use crate::{Cause, DamageVisitor, Direction, EngineError, Head, Snapshot, Table, Visitor};

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
        Ok(self.engine.databases.rows(table).get(self.txn(), key, visit)?)
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        Ok(self.engine.databases.rows(table).scan(self.txn(), range, direction, visit)?)
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        Ok(self.engine.databases.rows(table).scan_past_damage(self.txn(), range, visit)?)
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(read_head(&self.engine.databases, self.txn())?)
    }
}

/// The head as of a transaction.
pub(super) fn read_head(databases: &Databases, txn: &RoTxn<'_>) -> Result<Head, Cause> {
    let stored = databases.engine.get(txn, open::HEAD_KEY).map_err(|e| cause(&e, "read the head"))?;
    let stored = stored.ok_or_else(|| Cause::Corrupt("there is no head row".into()))?;
    let row = record::decode_engine_row(open::HEAD_KEY, stored)?;
    Head::decode(row).ok_or_else(|| Cause::Corrupt(format!("the head row has {} bytes", row.len())))
}
