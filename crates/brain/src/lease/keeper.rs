//! Ends leases whose time is up, and keeps what is left of the others for a restart.
//!
//! Invariant: a renewal is answered only after nothing that says less is stored for the lease.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::warn;

use super::{Leases, Renewal};
use crate::committer::{WriteRequest, WriteResponse};
use crate::error::Error;
use crate::limits::{LEASE_CHECKPOINTS_PER_WRITE_MAX, LEASE_EXPIRIES_PER_TICK_MAX, LEASE_TICK, LEASE_WRITE_BYTES};
use crate::store::Store;

/// Longest sleep when nothing is due: shorter than the shortest time to live, so that a new lease is never overslept.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// Expires and checkpoints leases until it is dropped.
pub async fn run(store: Arc<Store>) {
    loop {
        let mut busy = expire(&store).await;
        busy |= checkpoint_due(&store).await;
        let due = store.published().leases().next_due().unwrap_or(SLEEP_MAX);
        let pause = if busy { LEASE_TICK } else { due.clamp(Duration::from_millis(1), SLEEP_MAX) };
        tokio::time::sleep(pause).await;
    }
}

/// Writes down what is left of every lease, for a graceful stop: renewals must have ended.
pub async fn checkpoint_all(store: &Store) {
    let leases = store.published().leases();
    for ids in leases.list().chunks(LEASE_CHECKPOINTS_PER_WRITE_MAX) {
        let mut answer = None;
        let remainders = leases.checkpoint(ids, |remainders| answer = Some(submit(store, checkpoint(remainders))));
        if let Some(answer) = answer
            && !settle(leases, &remainders, answer).await
        {
            return;
        }
    }
}

/// Revokes a lease and deletes its keys. Returns the last revision at which some were deleted.
pub(crate) async fn revoke(store: &Store, id: i64) -> Result<i64, Error> {
    let revoked = store.write(WriteRequest::LeaseRevoke { id, only_expired: false }, LEASE_WRITE_BYTES).await?;
    finish(store, id, revoked).await
}

/// Deletes what the answer to a revocation says is left of the lease's keys.
async fn finish(store: &Store, id: i64, mut revoked: WriteResponse) -> Result<i64, Error> {
    loop {
        let WriteResponse::LeaseRevoke { revision, is_complete } = revoked else {
            return Err(Error::Corrupt("a revocation was answered as another write".to_owned()));
        };
        if is_complete {
            return Ok(revision);
        }
        // Only if it is still the lease that has ended: somebody else may finish it too, and its id may be granted anew.
        revoked = match store.write(WriteRequest::LeaseRevoke { id, only_expired: true }, LEASE_WRITE_BYTES).await {
            Err(Error::LeaseNotFound) => return Ok(revision),
            // Not "leader changed": who takes that for "not carried out" and asks again would hear that there is no such lease.
            Err(error) => {
                let problem = format!("the lease has ended, and the rest of its keys is deleted later: {error}");
                return Err(Error::OutcomeUnknown(problem));
            }
            Ok(more) => more,
        };
    }
}

/// Gives a lease all of its time again. Returns its time to live in seconds, or `None` if there is no such lease any more: then its
/// keys are deleted already.
pub(crate) async fn renew(store: &Store, id: i64) -> Result<Option<i64>, Error> {
    loop {
        let write = match store.published().leases().renew(id) {
            Renewal::Renewed { ttl_seconds } => return Ok(Some(ttl_seconds)),
            Renewal::NotFound => return Ok(None),
            Renewal::NotOurs => return Err(Error::NotLeader),
            // Waiting for its end here, instead of for the next tick, keeps the order of the caller's answers. If this is not all of it,
            // the next turn of the loop is.
            Renewal::Expired => WriteRequest::LeaseRevoke { id, only_expired: true },
            Renewal::Checkpointed => checkpoint(&[(id, 0)]),
        };
        match store.write(write, LEASE_WRITE_BYTES).await {
            Ok(_) | Err(Error::LeaseNotFound) => {}
            Err(error) => return Err(error),
        }
    }
}

/// One tick's worth of expired leases; tells whether there are likely more.
async fn expire(store: &Store) -> bool {
    let expired = store.published().leases().take_expired(LEASE_EXPIRIES_PER_TICK_MAX);
    // All are queued before the first is waited for, so that they share commits.
    let answers: Vec<_> =
        expired.iter().map(|&id| (id, submit(store, WriteRequest::LeaseRevoke { id, only_expired: true }))).collect();
    let mut failures = 0_usize;
    let mut first = None;
    for (id, answer) in answers {
        // If there is none, the store has stopped, and says so itself.
        let Ok(answer) = answer.await else { return false };
        let ended = match answer {
            Ok(revoked) => finish(store, id, revoked).await.map(|_| ()),
            Err(Error::LeaseNotFound) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            failures += 1;
            first.get_or_insert((id, error));
        }
    }
    if let Some((id, error)) = first {
        warn!(failures, %error, lease = format!("{id:x}"), "can't end expired leases; trying again");
    }
    expired.len() == LEASE_EXPIRIES_PER_TICK_MAX
}

/// One batch of checkpoints; tells whether there are likely more.
async fn checkpoint_due(store: &Store) -> bool {
    let leases = store.published().leases();
    let mut answer = None;
    let remainders = leases.checkpoint_due(LEASE_CHECKPOINTS_PER_WRITE_MAX, |remainders| {
        answer = Some(submit(store, checkpoint(remainders)));
    });
    let Some(answer) = answer else { return false };
    settle(leases, &remainders, answer).await && remainders.len() == LEASE_CHECKPOINTS_PER_WRITE_MAX
}

async fn settle(
    leases: &Leases,
    remainders: &[(i64, i64)],
    answer: oneshot::Receiver<Result<WriteResponse, Error>>,
) -> bool {
    let settled = Settled { leases, remainders };
    let result = answer.await.unwrap_or_else(|_| Err(Error::Unavailable("the store has stopped".to_owned())));
    drop(settled);
    if let Err(error) = &result {
        warn!(%error, "can't store what is left of leases; after a restart now, some would live longer");
    }
    result.is_ok()
}

/// Tells the leases when the checkpoints are done with.
struct Settled<'a> {
    leases: &'a Leases,
    remainders: &'a [(i64, i64)],
}

impl Drop for Settled<'_> {
    fn drop(&mut self) {
        self.leases.checkpoints_settled(self.remainders);
    }
}

fn checkpoint(remainders: &[(i64, i64)]) -> WriteRequest {
    WriteRequest::LeaseCheckpoint(remainders.to_vec())
}

/// Queues a write without waiting. Its responder takes no lock.
fn submit(store: &Store, request: WriteRequest) -> oneshot::Receiver<Result<WriteResponse, Error>> {
    let bytes = match &request {
        WriteRequest::LeaseCheckpoint(remainders) => remainders.len() * LEASE_WRITE_BYTES,
        _ => LEASE_WRITE_BYTES,
    };
    let (sender, receiver) = oneshot::channel();
    store.submit(request, bytes, Box::new(move |result| drop(sender.send(result))));
    receiver
}
