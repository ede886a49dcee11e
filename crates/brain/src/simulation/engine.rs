//! The shared engine: one head, the rows that members keep in it, and the log.
//!
//! Invariant, unless a bug is asked for: a batch is applied whole if the head is the expected one, else not at all, and a view shows
//! what is durable. A batch whose answer got lost may be visible to later batches and be gone after a crash of the engine, until a batch
//! behind it was confirmed, or some time has passed.

use std::ops::Bound;

use bytes::Bytes;
use kubewharf_engine::{Batch, CommitError, Direction, EngineError, Head, Operation, Snapshot, Table, Visitor};

use super::{Bug, KEYS, OpId};
use crate::meta;
use crate::mvcc::Position;

/// What a key holds: the revision of its last change, 0 for none, and a value that tells of all changes before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) modified: i64,
    pub(super) value: u64,
}

/// A change of a key: a row of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) revision: i64,
    pub(super) id: OpId,
    pub(super) key: usize,
    pub(super) value: u64,
}

impl Event {
    pub(super) fn operation(&self) -> Operation {
        let mut row = [0; 13];
        row[..4].copy_from_slice(&self.id.to_le_bytes());
        row[4] = self.key as u8;
        row[5..].copy_from_slice(&self.value.to_le_bytes());
        let key = Position { revision: self.revision, sub: 0 }.key();
        Operation::Put { table: Table::Log, key: Bytes::copy_from_slice(&key), value: Bytes::copy_from_slice(&row) }
    }

    fn decode(key: &[u8], row: &[u8]) -> Self {
        let revision = Position::from_key(key).expect("written by `operation`").revision;
        let id = OpId::from_le_bytes(row[..4].try_into().expect("4 bytes"));
        Self {
            revision,
            id,
            key: usize::from(row[4]),
            value: u64::from_le_bytes(row[5..].try_into().expect("8 bytes")),
        }
    }
}

/// A write that moves no revision, as the grant of a lease is one.
pub(super) fn grant(id: OpId) -> Operation {
    let id = Bytes::copy_from_slice(&id.to_le_bytes());
    Operation::Put { table: Table::Lease, key: id.clone(), value: id }
}

#[derive(Clone, Debug)]
struct State {
    head: Head,
    leader: Bytes,
    previous: Bytes,
    rows: [Row; KEYS],
    events: usize,
    grants: usize,
}

/// The engine.
pub(super) struct Engine {
    bug: Option<Bug>,
    visible: State,
    /// What a crash leaves, if that is less than what is visible.
    durable: Option<State>,
    log: Vec<Event>,
    grants: Vec<OpId>,
    /// What is wrong with what was written.
    pub(super) broken: Option<String>,
}

/// What a look shows.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) head: Head,
    leader: Bytes,
    previous: Bytes,
    pub(super) rows: [Row; KEYS],
    /// The log behind the revision that was asked for.
    pub(super) events: Vec<Event>,
}

impl Engine {
    pub(super) fn new(bug: Option<Bug>) -> Self {
        let visible = State {
            head: Head { revision: 1, ..Head::default() },
            leader: Bytes::new(),
            previous: Bytes::new(),
            rows: [Row::default(); KEYS],
            events: 0,
            grants: 0,
        };
        Self { bug, visible, durable: None, log: Vec::new(), grants: Vec::new(), broken: None }
    }

    fn matches(&self, expected: Head) -> bool {
        let head = self.visible.head;
        match self.bug {
            Some(Bug::ComparesRevision) => head.revision == expected.revision,
            Some(Bug::ComparesEpochAndRevision) => (head.epoch, head.revision) == (expected.epoch, expected.revision),
            _ => head == expected,
        }
    }

    /// Applies a batch or refuses it. With `loosely` it may be undone by a crash, until a batch behind it is confirmed.
    pub(super) fn commit(&mut self, batch: &Batch, loosely: bool) -> Result<(), CommitError> {
        if !self.matches(batch.expected) {
            return Err(CommitError::Fenced(self.visible.head));
        }
        if !loosely {
            self.durable = None;
        } else if self.durable.is_none() {
            self.durable = Some(self.visible.clone());
        }
        for operation in &batch.operations {
            let Operation::Put { table, key, value } = operation else { continue };
            match table {
                Table::Log => self.append(Event::decode(key, value)),
                Table::Lease => self.grants.push(OpId::from_le_bytes(value[..].try_into().expect("4 bytes"))),
                _ if *key == meta::LEADER => self.visible.leader = value.clone(),
                _ => self.visible.previous = value.clone(),
            }
        }
        self.visible.head = batch.next;
        self.visible.events = self.log.len();
        self.visible.grants = self.grants.len();
        let newest = self.log.last().map_or(1, |event| event.revision);
        if newest != batch.next.revision {
            self.broken = Some(format!("the head says revision {}, the log {newest}", batch.next.revision));
        }
        Ok(())
    }

    fn append(&mut self, event: Event) {
        let dense = self.log.len() as i64 + 2;
        if event.revision != dense {
            self.broken = Some(format!("revision {} is written where {dense} is next", event.revision));
        }
        self.visible.rows[event.key] = Row { modified: event.revision, value: event.value };
        self.log.push(event);
    }

    /// Makes durable what is visible.
    pub(super) fn sync(&mut self) {
        self.durable = None;
    }

    /// Whether a crash would undo something.
    pub(super) fn may_lose(&self) -> bool {
        self.durable.is_some()
    }

    /// Loses what is not durable; tells whether that was something.
    pub(super) fn crash(&mut self) -> bool {
        let may_lose = self.may_lose();
        if let Some(durable) = self.durable.take() {
            self.log.truncate(durable.events);
            self.grants.truncate(durable.grants);
            self.visible = durable;
        }
        may_lose
    }

    /// A view, with the log behind `after`.
    pub(super) fn view(&self, after: i64) -> View {
        let shown = match (&self.durable, self.bug) {
            (Some(durable), bug) if bug != Some(Bug::ShowsUnsynced) => durable,
            _ => &self.visible,
        };
        let begin = usize::try_from(after - 1).unwrap_or(0).min(shown.events);
        View {
            head: shown.head,
            leader: shown.leader.clone(),
            previous: shown.previous.clone(),
            rows: shown.rows,
            events: self.log[begin..shown.events].to_vec(),
        }
    }

    pub(super) fn head(&self) -> Head {
        self.visible.head
    }

    /// Everything that is visible, in order; the first has revision 2.
    pub(super) fn log(&self) -> &[Event] {
        &self.log
    }

    pub(super) fn grants(&self) -> &[OpId] {
        &self.grants
    }
}

impl View {
    /// The head that the newest takeover has found.
    pub(super) fn previous(&self) -> Option<Head> {
        Head::decode(&self.previous)
    }
}

/// As far as the members' own rows go.
impl Snapshot for View {
    fn get(&self, _: Table, key: &[u8], visit: &mut dyn FnMut(&[u8])) -> Result<bool, EngineError> {
        let row = if key == &meta::LEADER[..] { &self.leader } else { &self.previous };
        if !row.is_empty() {
            visit(row);
        }
        Ok(!row.is_empty())
    }

    fn scan(
        &self,
        _: Table,
        _: (Bound<&[u8]>, Bound<&[u8]>),
        _: Direction,
        _: &mut Visitor<'_>,
    ) -> Result<(), EngineError> {
        unreachable!("only rows of one key are read")
    }

    fn head(&self) -> Result<Head, EngineError> {
        Ok(self.head)
    }
}
