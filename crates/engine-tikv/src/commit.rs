//! A batch as one optimistic transaction.
//!
//! The transaction takes a timestamp, reads the head and compares it, and writes the head and the rows. The cluster refuses it if anything that it
//! writes was written since that timestamp, and each batch writes the head: so it is applied only on the head that was read. The head is the
//! first row that is written, and so the primary: what becomes of it becomes of the batch. Where all of it is small and in one region it
//! is one message, and no locks are left by a process that dies.
//!
//! Invariant: a batch that may be on its way to the cluster is `NotApplied` only after its primary was settled; see [`crate::outcome`]. What was
//! not sent, or was settled, is tried again here until the deadline.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kubewharf_engine::{Batch, Cause, CommitError, Engine, Head, Operation};
use tokio::time::Instant;

use crate::client::{Backoff, Mutations, Status, Transaction};
use crate::generated::kvrpcpb::{Mutation, Op};
use crate::key::Keys;
use crate::outcome::{self, Verdict, verdict};
use crate::{Shared, Tikv, key, store};

/// What a commit gets beyond its time for each second's worth of bytes.
const BYTES_PER_SECOND: usize = 1 << 20;
/// What an operation counts for beside its bytes.
const OPERATION_BYTES: usize = 100;

/// Commits a batch. See [`Engine::commit`].
pub(crate) fn commit(engine: &Tikv, batch: &Batch) -> Result<(), CommitError> {
    engine.limits().check(batch).map_err(CommitError::NotApplied)?;
    apply(engine, batch, None)
}

/// Commits a batch of any size, and with it what the store says of itself.
pub(crate) fn apply(engine: &Tikv, batch: &Batch, about: Option<Bytes>) -> Result<(), CommitError> {
    let bytes: usize = batch.operations.iter().map(|operation| operation.payload_bytes() + OPERATION_BYTES).sum();
    let options = &engine.shared.options;
    let time = options.commit_timeout + Duration::from_secs((bytes / BYTES_PER_SECOND) as u64);
    let deadline = Instant::now() + time;
    let settle_deadline = deadline + options.read_timeout;
    let job = Job {
        mutations: mutations(&engine.shared.keys, batch, about),
        shared: engine.shared.clone(),
        batch: Batch { operations: Vec::new(), ..*batch },
        deadline,
        settle_deadline,
    };
    let verdict = engine.run(settle_deadline, async move { Ok(Box::pin(job.run()).await) });
    match verdict.unwrap_or_else(Verdict::Unknown) {
        Verdict::Applied => Ok(()),
        Verdict::Fenced(head) => Err(CommitError::Fenced(head)),
        Verdict::NotApplied(cause) => Err(CommitError::NotApplied(cause)),
        Verdict::Unknown(cause) => Err(CommitError::Unknown(cause)),
    }
}

/// What the batch writes, by key. The head's comes first, and so is the primary.
fn mutations(keys: &Keys, batch: &Batch, about: Option<Bytes>) -> Mutations {
    let mut mutations = vec![put(keys.head(), key::stored(&batch.next.encode()))];
    mutations.extend(about.map(|about| put(keys.store(), about)));
    mutations.extend(batch.operations.iter().map(|operation| {
        let row = keys.row(operation.table(), operation.key());
        match operation {
            Operation::Put { value, .. } => put(row, key::stored(value)),
            Operation::Delete { .. } => Mutation { op: Op::Del.into(), key: row, value: Bytes::new() },
        }
    }));
    mutations.sort_unstable_by(|one, other| one.key.cmp(&other.key));
    debug_assert_eq!(mutations[0].key, keys.head(), "the head's key is the lowest of all");
    mutations.into()
}

pub(crate) fn put(key: Bytes, value: Bytes) -> Mutation {
    Mutation { op: Op::Put.into(), key, value }
}

struct Job {
    shared: Arc<Shared>,
    mutations: Mutations,
    /// Without its operations.
    batch: Batch,
    /// Until when it is tried.
    deadline: Instant,
    /// Until when its outcome is asked for.
    settle_deadline: Instant,
}

impl Job {
    async fn run(self) -> Verdict {
        let mut backoff = Backoff::new(self.deadline);
        loop {
            match self.send().await {
                Verdict::NotApplied(cause) if !outcome::is_permanent(&cause) => {
                    if let Err(cause) = backoff.wait(Duration::ZERO, cause).await {
                        return Verdict::NotApplied(cause);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends the batch once, if the head is the expected one, and finds out what became of it.
    async fn send(&self) -> Verdict {
        let (client, mutations) = (self.shared.client.clone(), self.mutations.clone());
        let begun = async {
            let transaction = Transaction::begin(client, mutations, self.deadline).await?;
            let head = transaction.reader().get(&[self.shared.keys.head()], self.deadline).await?.pop();
            Ok::<_, Cause>((transaction, stored_head(head)?))
        };
        let (transaction, head) = match begun.await {
            Ok(begun) => begun,
            Err(cause) => return Verdict::NotApplied(cause),
        };
        if head != self.batch.expected {
            return Verdict::Fenced(head);
        }
        match Box::pin(transaction.commit(self.shared.allows_one_phase, self.deadline)).await {
            Ok(()) => Verdict::Applied,
            Err(failure) => self.settle(&transaction, failure).await,
        }
    }

    /// Finds out what became of a transaction that failed.
    async fn settle(&self, transaction: &Transaction, failure: Cause) -> Verdict {
        let status = transaction.settle(self.settle_deadline).await;
        let is_settled = match status {
            // By this one: whatever came since, it was applied.
            Ok(Status::Committed(_)) => return Verdict::Applied,
            Ok(status) => status == Status::RolledBack,
            Err(cause) => {
                tracing::debug!(%cause, "what became of a batch is not known");
                false
            }
        };
        let found = store::read_head(&self.shared, self.settle_deadline).await.ok();
        verdict(&self.batch, failure, is_settled, found)
    }
}

/// The head of its row.
pub(crate) fn stored_head(row: Option<(Bytes, Bytes)>) -> Result<Head, Cause> {
    let damaged = || Cause::Corrupt("TiKV: the head's row is missing or damaged".to_owned());
    let (_, row) = row.ok_or_else(damaged)?;
    key::value(&row)?.and_then(Head::decode).ok_or_else(damaged)
}

#[cfg(test)]
mod tests {
    use kubewharf_engine::Table;

    use super::*;

    #[test]
    fn the_head_is_the_primary_and_rows_are_in_order() {
        let keys = Keys::new("s").unwrap();
        let delete = |table, key: &'static str| Operation::Delete { table, key: key.into() };
        let operations = vec![delete(Table::Log, "b"), delete(Table::Meta, "z"), delete(Table::Log, "a")];
        let batch = Batch { operations, ..Batch::default() };
        let written: Vec<Bytes> =
            mutations(&keys, &batch, Some("x".into())).iter().map(|mutation| mutation.key.clone()).collect();
        let row = |table, key: &str| keys.row(table, key.as_bytes());
        let expected = [keys.head(), keys.store(), row(Table::Meta, "z"), row(Table::Log, "a"), row(Table::Log, "b")];
        assert_eq!(written, expected);
    }
}
