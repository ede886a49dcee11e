//! Reading: LMDB read transactions, kept for reuse, under the rows that are not in LMDB yet.
//!
//! Beginning a read transaction takes a process-wide mutex, a search for a reader slot and an allocation. Between two steps of a merge
//! every reader sees the same state of LMDB, so a transaction that a reader is done with serves the next.
//!
//! Invariant: layers and transaction fit each other. The layers name every row by which a state of LMDB that a reader can meet
//! differs from the one that the layers were laid on: a merge's steps write rows of the frozen delta only, which stays until all of them are
//! visible. A batch that goes to LMDB without having been in a delta is visible there a moment before it is published; a reader
//! that meets it waits for that. A pooled transaction shows LMDB's newest commit; each commit empties the pool, so no idle transaction
//! holds back the reuse of pages.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;
use std::thread;

use heed::{Env, RoTxn, WithoutTls};
use parking_lot::Mutex;

use super::delta::{Delta, Frozen, Layers, in_direction};
use super::{Core, Databases, cause, open, record};
use crate::{Cause, DamageVisitor, Direction, EngineError, Head, Snapshot, Table, Visitor};

/// Idle transactions kept; more concurrent readers than this begin their own.
const IDLE_MAX: usize = 64;

type Txn = RoTxn<'static, WithoutTls>;

/// What readers see from now on.
pub(super) struct Readers {
    newest: Mutex<Newest>,
}

struct Newest {
    layers: Arc<Layers>,
    /// LMDB's id of its newest commit, as far as the layers know.
    txn_id: usize,
    idle: Vec<Txn>,
}

impl Readers {
    pub(super) fn new(layers: Layers, txn_id: usize) -> Self {
        let idle = Vec::with_capacity(IDLE_MAX);
        Self { newest: Mutex::new(Newest { layers: Arc::new(layers), txn_id, idle }) }
    }

    pub(super) fn layers(&self) -> Arc<Layers> {
        self.newest.lock().layers.clone()
    }

    pub(super) fn view<'e>(&self, core: &'e Core) -> Result<View<'e>, EngineError> {
        loop {
            let mut newest = self.newest.lock();
            let txn = match newest.idle.pop() {
                Some(txn) => txn,
                // Under the lock: no merge of other rows than the layers have can begin meanwhile.
                None => begin(&core.env)?,
            };
            if txn.id() == newest.txn_id || newest.layers.frozen.is_some() {
                let layers = newest.layers.clone();
                return Ok(View { core, layers, txn: Some(txn) });
            }
            drop(newest);
            drop(txn);
            thread::yield_now();
        }
    }

    /// Makes a batch visible that the active delta has got. Called by the one that commits.
    pub(super) fn publish(&self, head: Head, active: Delta) {
        self.change(|layers| {
            layers.head = head;
            layers.active = active;
        });
    }

    /// Makes the active delta the frozen one, and `new` the active one. Called by the one that commits, and when there is no frozen one.
    pub(super) fn freeze(&self, next_record: u64, new: Delta) {
        self.change(|layers| {
            let delta = std::mem::replace(&mut layers.active, new);
            layers.frozen = Some(Frozen { delta, head: layers.head, next_record });
        });
    }

    /// Changes what lies over the same state of LMDB.
    fn change(&self, change: impl FnOnce(&mut Layers)) {
        let old = {
            let mut newest = self.newest.lock();
            let mut layers = Layers::clone(&newest.layers);
            change(&mut layers);
            std::mem::replace(&mut newest.layers, Arc::new(layers))
        };
        // Outside the lock: it may be the last one that holds a delta.
        drop(old);
    }

    /// A commit of LMDB's is done; `change` says how the layers differ over it. Called before the commit is reported.
    pub(super) fn advance(&self, txn_id: usize, change: impl FnOnce(&mut Layers)) {
        let stale = {
            let mut newest = self.newest.lock();
            newest.txn_id = txn_id;
            let mut layers = Layers::clone(&newest.layers);
            change(&mut layers);
            let layers = std::mem::replace(&mut newest.layers, Arc::new(layers));
            (std::mem::replace(&mut newest.idle, Vec::with_capacity(IDLE_MAX)), layers)
        };
        drop(stale);
    }

    fn give_back(&self, txn: Txn) {
        let mut newest = self.newest.lock();
        if newest.txn_id == txn.id() && newest.idle.len() < IDLE_MAX {
            newest.idle.push(txn);
        } else {
            // Ended outside the lock.
            drop(newest);
            drop(txn);
        }
    }
}

fn begin(env: &Env<WithoutTls>) -> Result<Txn, Cause> {
    env.clone().static_read_txn().map_err(|e| cause(&e, "begin a read"))
}

/// A snapshot of the whole store.
pub(super) struct View<'e> {
    core: &'e Core,
    layers: Arc<Layers>,
    /// `None` only while dropping.
    txn: Option<Txn>,
}

impl View<'_> {
    fn txn(&self) -> &Txn {
        self.txn.as_ref().expect("taken only by drop")
    }

    /// Visits the rows of LMDB that no layer names, and the changes of the layers, in one order.
    fn overlaid(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut DamageVisitor<'_>,
        is_damage_shown: bool,
    ) -> Result<(), Cause> {
        let rows = self.core.databases.rows(table);
        let Some(mut changes) = self.layers.changes(table, range, direction) else {
            return rows.walk(self.txn(), range, direction, |row| row.show(is_damage_shown, visit));
        };
        let mut pending = changes.next();
        let mut is_stopped = false;
        rows.walk(self.txn(), range, direction, |row| {
            while let Some((key, value)) = pending {
                let order = in_direction(key.cmp(row.key()), direction);
                if order.is_gt() {
                    break;
                }
                pending = changes.next();
                is_stopped = value.is_some_and(|value| visit(key, Some(value)).is_break());
                if is_stopped {
                    return Ok(ControlFlow::Break(()));
                }
                if order.is_eq() {
                    return Ok(ControlFlow::Continue(()));
                }
            }
            let flow = row.show(is_damage_shown, visit)?;
            is_stopped = flow.is_break();
            Ok(flow)
        })?;
        while let Some((key, value)) = pending.filter(|_| !is_stopped) {
            is_stopped = value.is_some_and(|value| visit(key, Some(value)).is_break());
            pending = changes.next();
        }
        Ok(())
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        if let Some(txn) = self.txn.take() {
            self.core.readers.give_back(txn);
        }
    }
}

impl Snapshot for View<'_> {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        match self.layers.get(table, key) {
            Some(Some(value)) => {
                visit(value);
                Ok(true)
            }
            Some(None) => Ok(false),
            None => Ok(self.core.databases.rows(table).get(self.txn(), key, visit)?),
        }
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        // Damage is an error, so there always is a value.
        let visit = &mut |key: &[u8], value: Option<&[u8]>| value.map_or(ControlFlow::Continue(()), |v| visit(key, v));
        Ok(self.overlaid(table, range, direction, visit, false)?)
    }

    fn scan_past_damage(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        visit: &mut DamageVisitor<'_>,
    ) -> Result<(), EngineError> {
        Ok(self.overlaid(table, range, Direction::Forward, visit, true)?)
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(self.layers.head)
    }
}

/// The head as of a transaction, which is that of the newest batch in LMDB.
pub(super) fn read_head(databases: &Databases, txn: &RoTxn<'_>) -> Result<Head, Cause> {
    let stored = databases.engine.get(txn, open::HEAD_KEY).map_err(|e| cause(&e, "read the head"))?;
    let stored = stored.ok_or_else(|| Cause::Corrupt("there is no head row".into()))?;
    let row = record::decode_engine_row(open::HEAD_KEY, stored)?;
    Head::decode(row).ok_or_else(|| Cause::Corrupt(format!("the head row has {} bytes", row.len())))
}
