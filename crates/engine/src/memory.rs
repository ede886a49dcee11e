//! An engine in memory, and faults for any engine.
//!
//! Job: a store for tests and trials that keeps the contract but for durability ([`Memory`]), and a layer that makes an engine fail as
//! a remote one does ([`Faulty`]).

mod faults;
mod tree;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::path::Path;

use parking_lot::RwLock;

pub use faults::{Delivery, Fault, Faulty};
use tree::Tree;

use crate::{
    Batch, CommitError, Direction, Engine, EngineError, Head, Limits, Operation, Size, Snapshot, Table, Visitor, dump,
};

/// The same limits as the default engine has on 4 KiB pages, so that tests over memory meet them too.
const LIMITS: Limits = Limits {
    key_bytes_max: 1980,
    value_bytes_max: 32 << 20,
    batch_bytes_max: 256 << 20,
    batch_operations_max: 1 << 19,
};

/// What a row costs beyond its key and value: the node and the counts of shared references. An estimate.
const ROW_OVERHEAD_BYTES: u64 = 112;

/// An engine in memory: nothing survives it but its backups.
pub struct Memory {
    store: RwLock<Store>,
    history_commits: usize,
}

struct Store {
    now: State,
    /// The states before the newest commits, the newest last.
    history: VecDeque<State>,
}

#[derive(Clone)]
struct State {
    head: Head,
    tables: [Tree; Table::ALL.len()],
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty store at epoch 1, seq 1, revision 1.
    #[must_use]
    pub fn new() -> Self {
        Self::with_history(0)
    }

    /// Like [`Memory::new`], and keeps the states before the newest `commits` commits for [`Memory::roll_back`].
    #[must_use]
    pub fn with_history(commits: usize) -> Self {
        let incarnation = u128::from(RandomState::new().hash_one(0)) << 64;
        let head = Head { epoch: 1, seq: 1, revision: 1, batch_id: incarnation | 1 };
        Self::from_state(State { head, tables: Default::default() }, commits)
    }

    fn from_state(now: State, history_commits: usize) -> Self {
        Self { store: RwLock::new(Store { now, history: VecDeque::new() }), history_commits }
    }

    /// Forgets the newest `commits` commits although they were confirmed, as a failover to a lagging replica does; returns the head
    /// that is left. `None`, and nothing happens, if the history does not reach that far.
    pub fn roll_back(&self, commits: usize) -> Option<Head> {
        let mut store = self.store.write();
        if commits > 0 {
            let target = store.history.len().checked_sub(commits)?;
            store.now = store.history[target].clone();
            store.history.truncate(target);
        }
        Some(store.now.head)
    }

    /// A store with the rows and the head of a backup.
    pub fn restore(backup: &Path) -> Result<Self, EngineError> {
        let mut reader = dump::Reader::open(backup)?;
        let mut state = State { head: reader.head(), tables: Default::default() };
        while let Some(row) = reader.next()? {
            state.tables[usize::from(row.table.number())].put(row.key, row.value);
        }
        Ok(Self::from_state(state, 0))
    }
}

impl Engine for Memory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        Ok(Box::new(self.store.read().now.clone()))
    }

    fn commit(&self, batch: &Batch) -> Result<(), CommitError> {
        LIMITS.check(batch).map_err(CommitError::NotApplied)?;
        let mut store = self.store.write();
        if store.now.head != batch.expected {
            return Err(CommitError::Fenced(store.now.head));
        }
        if self.history_commits > 0 {
            if store.history.len() == self.history_commits {
                store.history.pop_front();
            }
            let before = store.now.clone();
            store.history.push_back(before);
        }
        // Nothing below can fail, and no reader gets in between.
        for operation in &batch.operations {
            let rows = &mut store.now.tables[usize::from(operation.table().number())];
            match operation {
                Operation::Put { key, value, .. } => rows.put(key.clone(), value.clone()),
                Operation::Delete { key, .. } => rows.delete(key),
            }
        }
        store.now.head = batch.next;
        Ok(())
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn size(&self) -> Result<Size, EngineError> {
        let store = self.store.read();
        let bytes = store.now.tables.iter().map(|rows| rows.payload_bytes() + rows.rows() * ROW_OVERHEAD_BYTES).sum();
        Ok(Size { allocated_bytes: bytes, in_use_bytes: bytes, capacity_bytes: None })
    }

    fn backup(&self, target: &Path) -> Result<(), EngineError> {
        let state = self.store.read().now.clone();
        dump::write_file(&state, target)
    }
}

impl Snapshot for State {
    fn get(&self, table: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        match self.tables[usize::from(table.number())].get(key) {
            Some(value) => {
                visit(value);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn scan(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        visit: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        self.tables[usize::from(table.number())].scan(range, direction, visit);
        Ok(())
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(self.head)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use bytes::Bytes;

    use super::*;

    fn put(memory: &Memory, key: &'static str) {
        let head = memory.snapshot().unwrap().head().unwrap();
        let batch = Batch {
            expected: head,
            next: Head { seq: head.seq + 1, batch_id: head.batch_id + 1, ..head },
            operations: vec![Operation::Put { table: Table::Log, key: key.into(), value: Bytes::new() }],
            reserve: crate::Reserve::Untouched,
        };
        memory.commit(&batch).unwrap();
    }

    fn keys(memory: &Memory) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        let all = (Bound::Unbounded, Bound::Unbounded);
        let mut visit = |key: &[u8], _: &[u8]| {
            keys.push(key.to_vec());
            ControlFlow::Continue(())
        };
        memory.snapshot().unwrap().scan(Table::Log, all, Direction::Forward, &mut visit).unwrap();
        keys
    }

    #[test]
    fn a_roll_back_forgets_the_newest_commits_and_no_more_than_are_kept() {
        let memory = Memory::with_history(2);
        for key in ["a", "b", "c"] {
            put(&memory, key);
        }
        assert_eq!(memory.roll_back(3), None);
        assert_eq!(keys(&memory), [b"a", b"b", b"c"]);
        let head = memory.roll_back(2).unwrap();
        assert_eq!(head.seq, 2);
        assert_eq!(keys(&memory), [b"a"]);
        assert_eq!(memory.snapshot().unwrap().head().unwrap(), head);
    }
}
