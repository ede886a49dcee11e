//! The commit that begins an epoch, followed to its outcome: the pure part of a takeover, and of letting go.
//!
//! Invariant: an epoch has begun only when the engine confirmed its first batch, or a batch right behind that. The same commit keeps the
//! head that it replaces, so that a deposed leader can learn what became of its last batch.

use std::sync::Arc;

use bytes::Bytes;
use kubewharf_engine::{Batch, CommitError, Head, Operation, Reserve, Table};

use super::rows::{self, Leadership};
use crate::committer::{Resolution, Step};
use crate::meta;
use crate::store::new_reign;

/// The beginning of an epoch.
#[derive(Debug)]
pub(crate) struct Takeover {
    resolution: Resolution,
    attempt: Arc<Batch>,
}

/// What follows from an attempt's result.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The epoch has begun, and the engine's head is this one.
    Begun(Head),
    /// Commit [`Takeover::attempt`], which may be another batch now, after a pause.
    Again {
        /// The pause, in milliseconds.
        after_ms: u64,
    },
    /// The old leader has written once more, another member was faster, or nobody knows. The epoch may yet begin.
    Failed(String),
}

impl Takeover {
    /// Begins the epoch of `leadership`, right behind that of `expected`. `incarnation` is a random number, `more` a row to write with it.
    pub(crate) fn new(expected: Head, incarnation: u64, leadership: &Leadership, more: Option<Operation>) -> Self {
        debug_assert_eq!(leadership.epoch, expected.epoch + 1);
        let put = |key: Bytes, value: Bytes| Operation::Put { table: Table::Meta, key, value };
        let mut operations = vec![
            put(meta::LEADER, rows::encode(leadership)),
            put(meta::PREVIOUS, Bytes::copy_from_slice(&expected.encode())),
        ];
        operations.extend(more);
        let next = new_reign(expected, incarnation);
        let attempt = Arc::new(Batch { expected, next, operations, reserve: Reserve::Whole });
        Self { resolution: Resolution::new(attempt.clone()), attempt }
    }

    /// What is to be committed now.
    pub(crate) fn attempt(&self) -> &Arc<Batch> {
        &self.attempt
    }

    /// Takes the result of committing [`Takeover::attempt`].
    pub(crate) fn step(&mut self, result: Result<(), CommitError>) -> Progress {
        match self.resolution.step(result) {
            Step::Applied(head) => Progress::Begun(head),
            Step::Retry { batch, after_ms } => {
                self.attempt = batch;
                Progress::Again { after_ms }
            }
            Step::NotApplied(cause) | Step::Fatal(cause) => Progress::Failed(cause.to_string()),
            Step::Deposed(why) | Step::Lost(why) | Step::GivenUp(why) => Progress::Failed(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use kubewharf_engine::Cause;

    use super::*;

    const FOUND: Head = Head { epoch: 3, seq: 7, revision: 10, batch_id: 70 };

    fn takeover() -> Takeover {
        Takeover::new(FOUND, 5, &Leadership { epoch: 4, ..Leadership::default() }, None)
    }

    #[test]
    fn a_takeover_keeps_the_head_that_it_replaces() {
        let takeover = takeover();
        let batch = takeover.attempt();
        assert_eq!((batch.expected, batch.next.epoch, batch.next.seq, batch.next.revision), (FOUND, 4, 8, 10));
        let previous = Bytes::copy_from_slice(&FOUND.encode());
        assert!(batch.operations.contains(&Operation::Put {
            table: Table::Meta,
            key: meta::PREVIOUS,
            value: previous
        }));
    }

    #[test]
    fn an_epoch_whose_first_batch_was_only_seen_begins_with_the_next_one() {
        let mut takeover = takeover();
        let first = takeover.attempt().clone();
        let unknown = CommitError::Unknown(Cause::Unavailable("gone".to_owned()));
        assert!(matches!(takeover.step(Err(unknown)), Progress::Again { .. }));
        assert!(matches!(takeover.step(Err(CommitError::Fenced(first.next))), Progress::Again { after_ms: 0 }));
        assert_eq!(takeover.attempt().expected, first.next);
        let last = takeover.attempt().next;
        assert!(matches!(takeover.step(Ok(())), Progress::Begun(head) if head == last));
    }

    #[test]
    fn a_leader_that_has_written_once_more_is_not_replaced() {
        let written = Head { seq: 8, batch_id: 71, ..FOUND };
        assert!(matches!(takeover().step(Err(CommitError::Fenced(written))), Progress::Failed(_)));
        let faster = Head { epoch: 4, seq: 8, revision: 10, batch_id: 1 };
        assert!(matches!(takeover().step(Err(CommitError::Fenced(faster))), Progress::Failed(_)));
    }
}
