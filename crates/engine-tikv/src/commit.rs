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

use kubewharf_engine::{Batch, Cause, CommitError, Engine, Head, Operation};
use tikv_client::transaction::HeartbeatOption;
use tikv_client::{
    Backoff, CheckLevel, Error, ProtoLockInfo, Timestamp, TimestampExt, Transaction, TransactionOptions,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::clients::{ATTEMPT_TIMEOUT, PAUSE_MAX, PAUSE_MIN, Use, no_answer};
use crate::outcome::{self, Verdict, verdict};
use crate::{Shared, Tikv, key};

/// What a commit gets beyond its time for each second's worth of bytes. Large batches take more messages, each of which names all keys.
const BYTES_PER_SECOND: usize = 1 << 20;
/// What an operation counts for beside its bytes.
const OPERATION_BYTES: usize = 100;

/// Commits a batch. See [`Engine::commit`].
pub(crate) fn commit(engine: &Tikv, batch: &Batch) -> Result<(), CommitError> {
    engine.limits().check(batch).map_err(CommitError::NotApplied)?;
    apply(engine, batch, None)
}

/// Commits a batch of any size, and with it what the store says of itself.
pub(crate) fn apply(engine: &Tikv, batch: &Batch, about: Option<Vec<u8>>) -> Result<(), CommitError> {
    let bytes: usize = batch.operations.iter().map(|operation| operation.payload_bytes() + OPERATION_BYTES).sum();
    let options = &engine.shared.options;
    let time = options.commit_timeout + Duration::from_secs((bytes / BYTES_PER_SECOND) as u64);
    let deadline = Instant::now() + time;
    let settle_deadline = deadline + options.read_timeout;
    let job = Job {
        shared: engine.shared.clone(),
        // Its bytes are shared and not copied.
        batch: batch.clone(),
        about,
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

struct Job {
    shared: Arc<Shared>,
    batch: Batch,
    about: Option<Vec<u8>>,
    /// Until when it is tried.
    deadline: Instant,
    /// Until when its outcome is asked for.
    settle_deadline: Instant,
}

/// How far an attempt came.
enum Attempt {
    /// Its outcome is known.
    Over(Verdict),
    /// It was sent and failed.
    Failed {
        /// The transaction.
        timestamp: Timestamp,
        cause: Cause,
        /// The cluster would not take it as one message.
        needs_two_phases: bool,
    },
}

impl Job {
    async fn run(self) -> Verdict {
        let mut pause = PAUSE_MIN;
        let mut is_one_message = self.shared.allows_one_phase;
        loop {
            let outcome = match self.send(is_one_message).await {
                Attempt::Over(verdict) => verdict,
                Attempt::Failed { timestamp, cause, needs_two_phases } => {
                    is_one_message &= !needs_two_phases;
                    self.settle(timestamp, cause).await
                }
            };
            match outcome {
                Verdict::NotApplied(cause)
                    if !outcome::is_permanent(&cause) && Instant::now() + pause < self.deadline =>
                {
                    tracing::debug!(%cause, "a batch is sent to TiKV again");
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                outcome => return outcome,
            }
        }
    }

    /// Sends the batch once, if the head is the expected one.
    async fn send(&self, is_one_message: bool) -> Attempt {
        let loan = match self.shared.clients.take(Use::Urgent, self.deadline).await {
            Ok(loan) => loan,
            Err(cause) => return Attempt::Over(Verdict::NotApplied(cause)),
        };
        let mut options = TransactionOptions::new_optimistic()
            .drop_check(CheckLevel::None)
            .heartbeat_option(HeartbeatOption::NoHeartbeat);
        if is_one_message {
            options = options.try_one_pc();
        }
        let head_key = self.shared.keys.head();
        let begin = async {
            let mut transaction = loan.client.begin_with_options(options).await?;
            let head = transaction.get(head_key.clone()).await?;
            Ok::<_, Error>((transaction, head))
        };
        let begun = timeout_at(self.deadline.min(Instant::now() + ATTEMPT_TIMEOUT), begin).await;
        let (mut transaction, head) = match begun {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => {
                loan.failed();
                return Attempt::Over(Verdict::NotApplied(outcome::cause(&error)));
            }
            Err(_) => {
                loan.failed();
                return Attempt::Over(Verdict::NotApplied(no_answer()));
            }
        };
        match stored_head(head) {
            Ok(head) if head == self.batch.expected => {}
            Ok(head) => {
                loan.succeeded();
                return Attempt::Over(Verdict::Fenced(head));
            }
            Err(cause) => return Attempt::Over(Verdict::NotApplied(cause)),
        }
        if let Err(error) = self.write(&mut transaction, head_key).await {
            return Attempt::Over(Verdict::NotApplied(outcome::cause(&error)));
        }
        let timestamp = transaction.start_timestamp();
        let (cause, needs_two_phases) = match timeout_at(self.deadline, transaction.commit()).await {
            Ok(Ok(_)) => {
                loan.succeeded();
                return Attempt::Over(Verdict::Applied);
            }
            Ok(Err(error)) => (outcome::cause(&error), matches!(error, Error::OnePcFailure)),
            Err(_) => (no_answer(), false),
        };
        loan.failed();
        Attempt::Failed { timestamp, cause, needs_two_phases }
    }

    /// Hands the library what is to be written; nothing is sent yet. The first row becomes the primary.
    async fn write(&self, transaction: &mut Transaction, head_key: Vec<u8>) -> Result<(), Error> {
        let keys = &self.shared.keys;
        transaction.put(head_key, key::stored(&self.batch.next.encode())).await?;
        if let Some(about) = &self.about {
            transaction.put(keys.store(), about.clone()).await?;
        }
        for operation in &self.batch.operations {
            let row = keys.row(operation.table(), operation.key());
            match operation {
                Operation::Put { value, .. } => transaction.put(row, key::stored(value)).await?,
                Operation::Delete { .. } => transaction.delete(row).await?,
            }
        }
        Ok(())
    }

    /// Finds out what became of a transaction that failed.
    async fn settle(&self, timestamp: Timestamp, failure: Cause) -> Verdict {
        let clients = &self.shared.clients;
        let head_key = self.shared.keys.head();
        // A lock without time to live, as the cluster itself reports one that is to be resolved whatever its owner may be doing: the primary is
        // found committed, or is rolled back, or is marked so that it can't be written by that transaction any more.
        let lock = ProtoLockInfo {
            primary_lock: head_key.clone(),
            key: head_key.clone(),
            lock_version: timestamp.version(),
            lock_ttl: 0,
            ..ProtoLockInfo::default()
        };
        let mut is_settled = false;
        let mut pause = PAUSE_MIN;
        loop {
            let loan = match clients.take(Use::Urgent, self.settle_deadline).await {
                Ok(loan) => loan,
                Err(_) => return Verdict::Unknown(failure),
            };
            if !is_settled {
                let resolve = loan.client.resolve_locks(vec![lock.clone()], timestamp.clone(), Backoff::no_backoff());
                match timeout_at(self.attempt_deadline(), resolve).await {
                    Ok(Ok(live)) => is_settled = live.is_empty(),
                    Ok(Err(error)) => tracing::debug!(error = outcome::describe(&error), "not settled yet"),
                    Err(_) => tracing::debug!("not settled yet, and no answer"),
                }
            }
            let read = async {
                let now = loan.client.current_timestamp().await?;
                loan.client.snapshot(now, read_options()).get(head_key.clone()).await
            };
            let found = match timeout_at(self.attempt_deadline(), read).await {
                Ok(Ok(row)) => stored_head(row).ok(),
                _ => None,
            };
            if found.is_some() {
                loan.succeeded()
            } else {
                loan.failed()
            }
            let verdict = verdict(&self.batch, failure.clone(), is_settled, found);
            let is_known = !matches!(verdict, Verdict::Unknown(_)) || (is_settled && found.is_some());
            if is_known || Instant::now() + pause >= self.settle_deadline {
                return verdict;
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn attempt_deadline(&self) -> Instant {
        self.settle_deadline.min(Instant::now() + ATTEMPT_TIMEOUT)
    }
}

/// For reads at a timestamp.
pub(crate) fn read_options() -> TransactionOptions {
    TransactionOptions::new_optimistic().drop_check(CheckLevel::None).heartbeat_option(HeartbeatOption::NoHeartbeat)
}

/// The head of its row.
pub(crate) fn stored_head(row: Option<Vec<u8>>) -> Result<Head, Cause> {
    let damaged = || Cause::Corrupt("TiKV: the head's row is missing or damaged".to_owned());
    let row = row.ok_or_else(damaged)?;
    key::value(&row)?.and_then(Head::decode).ok_or_else(damaged)
}
