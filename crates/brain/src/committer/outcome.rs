//! What becomes of a batch: the pure part of the committer.
//!
//! Invariant: a batch counts as applied only when the engine confirmed it, or confirmed a batch that expects the head that it leaves.
//! A conflict alone can be one's own first attempt, and an old head does not prove that an attempt is dead.

use std::sync::Arc;

use kubewharf_engine::{Batch, Cause, CommitError, Head, Reserve};

use crate::limits::{RESOLVE_BACKOFF_MS_MAX, RESOLVE_BACKOFF_MS_MIN, RESOLVE_MS_MAX};

/// The head that a batch behind `head` leaves, in the same epoch.
pub(crate) fn next_head(head: Head, revision: i64) -> Head {
    Head { seq: head.seq + 1, revision, batch_id: head.batch_id + 1, ..head }
}

/// Follows one batch from its first attempt to its outcome.
#[derive(Debug)]
pub(crate) struct Resolution {
    /// The batch whose outcome is wanted.
    wanted: Arc<Batch>,
    /// What is tried now: `wanted`, or empty batches that can only follow it.
    attempt: Arc<Batch>,
    /// Whether `wanted` is known to be in the engine, though not yet proven durable by a successor.
    seen: bool,
    /// Whether any attempt may still be under way.
    unknown: bool,
    backoff_ms: u64,
    waited_ms: u64,
}

/// What follows from an attempt's result.
#[derive(Debug)]
pub(crate) enum Step {
    /// The batch is applied; the engine's head is now this one.
    Applied(Head),
    /// The batch is not and never will be applied; the head is what it was.
    NotApplied(Cause),
    /// Commit this after a pause.
    Retry {
        /// The batch to commit.
        batch: Arc<Batch>,
        /// The pause, in milliseconds.
        after_ms: u64,
    },
    /// Another writer has taken over. The batch may have been applied before that.
    Deposed(String),
    /// The outcome can't be found out for so long that others may do better.
    GivenUp(String),
    /// The engine has lost data: stop serving.
    Lost(String),
    /// The engine demands that the process ends.
    Fatal(Cause),
}

impl Resolution {
    pub(crate) fn new(batch: Arc<Batch>) -> Self {
        Self {
            wanted: batch.clone(),
            attempt: batch,
            seen: false,
            unknown: false,
            backoff_ms: RESOLVE_BACKOFF_MS_MIN,
            waited_ms: 0,
        }
    }

    /// Whether the batch was applied, if `previous` is the head that a takeover has found: `None` if that does not tell.
    pub(crate) fn was_applied(&self, previous: Head) -> Option<bool> {
        (previous.epoch == self.wanted.next.epoch).then(|| previous.seq >= self.wanted.next.seq)
    }

    /// Takes the result of committing the current attempt.
    pub(crate) fn step(&mut self, result: Result<(), CommitError>) -> Step {
        match result {
            Ok(()) => Step::Applied(self.attempt.next),
            Err(CommitError::NotApplied(cause)) if !self.unknown && !self.seen => Step::NotApplied(cause),
            Err(CommitError::NotApplied(cause)) => self.again(&cause),
            Err(CommitError::Unknown(cause)) => {
                self.unknown = true;
                self.again(&cause)
            }
            Err(CommitError::Fatal(cause)) => Step::Fatal(cause),
            Err(CommitError::Fenced(head)) => self.fenced(head),
        }
    }

    fn fenced(&mut self, head: Head) -> Step {
        if head == self.attempt.next {
            // An earlier attempt of ours is in the engine. Only what is committed behind it proves that it stays there.
            self.seen = true;
            let next = next_head(head, head.revision);
            let reserve = Reserve::Whole;
            self.attempt = Arc::new(Batch { expected: head, next, reserve, ..Batch::default() });
            return Step::Retry { batch: self.attempt.clone(), after_ms: 0 };
        }
        if self.seen && self.is_behind(head) {
            // It was seen there but not confirmed, so nobody was told of it.
            return Step::GivenUp(format!("the engine has undone what it had not confirmed, its head is {head:?}"));
        }
        if head.epoch != self.wanted.expected.epoch {
            return Step::Deposed(format!("another process took the store over, its head is {head:?}"));
        }
        Step::Lost(format!(
            "the engine's head {head:?} is neither {:?} nor {:?}: it has lost acknowledged data",
            self.attempt.expected, self.attempt.next
        ))
    }

    /// Whether this is the last confirmed head, or one that an attempt but the newest has left.
    fn is_behind(&self, head: Head) -> bool {
        let Batch { expected, next, .. } = *self.wanted;
        let is_own = head.epoch == next.epoch && (next.seq..self.attempt.next.seq).contains(&head.seq);
        head == expected || is_own
    }

    fn again(&mut self, cause: &Cause) -> Step {
        if self.waited_ms >= RESOLVE_MS_MAX {
            return Step::GivenUp(format!("no answer from the engine in {} ms: {cause}", self.waited_ms));
        }
        let after_ms = self.backoff_ms;
        self.waited_ms += after_ms;
        self.backoff_ms = (self.backoff_ms * 2).min(RESOLVE_BACKOFF_MS_MAX);
        Step::Retry { batch: self.attempt.clone(), after_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Arc<Batch> {
        let expected = Head { epoch: 3, seq: 7, revision: 10, batch_id: 70 };
        let next = Head { epoch: 3, seq: 8, revision: 11, batch_id: 71 };
        Arc::new(Batch { expected, next, ..Batch::default() })
    }

    fn unknown() -> Result<(), CommitError> {
        Err(CommitError::Unknown(Cause::Unavailable("gone".to_owned())))
    }

    #[test]
    fn an_old_head_after_an_unknown_attempt_is_not_taken_for_not_applied() {
        let mut resolution = Resolution::new(batch());
        assert!(matches!(resolution.step(unknown()), Step::Retry { .. }));
        let cause = Cause::Unavailable("refused".to_owned());
        assert!(matches!(resolution.step(Err(CommitError::NotApplied(cause))), Step::Retry { .. }));
        assert!(matches!(resolution.step(Ok(())), Step::Applied(head) if head.seq == 8));
    }

    #[test]
    fn ones_own_first_attempt_is_acknowledged_only_behind_a_confirmed_successor() {
        let batch = batch();
        let mut resolution = Resolution::new(batch.clone());
        assert!(matches!(resolution.step(unknown()), Step::Retry { .. }));
        let Step::Retry { batch: successor, .. } = resolution.step(Err(CommitError::Fenced(batch.next))) else {
            panic!("a successor is committed first");
        };
        assert_eq!(successor.expected, batch.next);
        assert!(successor.operations.is_empty());
        assert!(matches!(resolution.step(unknown()), Step::Retry { .. }));
        // The successor itself came through: one more follows.
        let Step::Retry { batch: second, .. } = resolution.step(Err(CommitError::Fenced(successor.next))) else {
            panic!("the successor's outcome is unknown as well");
        };
        assert!(matches!(resolution.step(Ok(())), Step::Applied(head) if head == second.next));
    }

    #[test]
    fn what_an_engine_undoes_before_it_was_confirmed_is_not_called_lost() {
        let batch = batch();
        let seen = |times: u64| {
            let mut resolution = Resolution::new(batch.clone());
            for seq in 0..times {
                let head = Head { seq: 8 + seq, batch_id: 71 + u128::from(seq), ..batch.next };
                assert!(matches!(resolution.step(unknown()), Step::Retry { .. }));
                assert!(matches!(resolution.step(Err(CommitError::Fenced(head))), Step::Retry { .. }));
            }
            resolution
        };
        assert!(matches!(seen(1).step(Err(CommitError::Fenced(batch.expected))), Step::GivenUp(_)));
        assert!(matches!(seen(2).step(Err(CommitError::Fenced(batch.next))), Step::GivenUp(_)));
        let confirmed = Head { seq: 6, batch_id: 69, ..batch.expected };
        assert!(matches!(seen(1).step(Err(CommitError::Fenced(confirmed))), Step::Lost(_)));
    }

    #[test]
    fn each_foreign_head_ends_the_reign() {
        let other_epoch = Head { epoch: 4, ..batch().next };
        assert!(matches!(Resolution::new(batch()).step(Err(CommitError::Fenced(other_epoch))), Step::Deposed(_)));
        let rolled_back = Head { seq: 6, ..batch().expected };
        assert!(matches!(Resolution::new(batch()).step(Err(CommitError::Fenced(rolled_back))), Step::Lost(_)));
    }

    #[test]
    fn the_head_that_a_takeover_found_tells_what_became_of_the_last_batch() {
        let resolution = Resolution::new(batch());
        assert_eq!(resolution.was_applied(batch().next), Some(true));
        assert_eq!(resolution.was_applied(Head { seq: 9, ..batch().next }), Some(true), "a successor was applied too");
        assert_eq!(resolution.was_applied(batch().expected), Some(false));
        assert_eq!(resolution.was_applied(Head { epoch: 4, ..batch().next }), None, "it was taken over twice");
    }

    #[test]
    fn an_engine_that_never_answers_is_given_up() {
        let mut resolution = Resolution::new(batch());
        let mut waited_ms = 0;
        loop {
            match resolution.step(unknown()) {
                Step::Retry { after_ms, .. } => waited_ms += after_ms,
                Step::GivenUp(_) => break,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!((RESOLVE_MS_MAX..RESOLVE_MS_MAX + RESOLVE_BACKOFF_MS_MAX).contains(&waited_ms));
    }
}
