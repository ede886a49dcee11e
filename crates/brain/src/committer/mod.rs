//! The one writer: takes requests in order, evaluates each against everything before it, and makes them durable in batches.
//!
//! While one batch is being committed, the next is evaluated on a snapshot with the first laid over it. An answer that saw a batch, a
//! failed compare included, is given only after that batch is confirmed. The order at confirmation: watchers' events are put into the
//! ring, the revision is published, then the requests are answered.
//!
//! Invariant: what was answered is in the engine, durably; what was not applied is never seen by a reader or a watcher.

mod batch;
mod cache;
mod outcome;
mod run;

use std::collections::VecDeque;

use std::thread::JoinHandle;

use bytes::Bytes;
use kubewharf_etcd_api::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, TxnRequest, TxnResponse,
};
use parking_lot::{Condvar, Mutex};

pub(crate) use batch::LeaseChange;
pub use batch::Trim;
pub(crate) use outcome::{Resolution, Step, next_head};
pub(crate) use run::{Committer, End, EndKind, OnEnd};

use crate::error::Error;
use crate::limits::{QUEUE_BYTES_MAX, QUEUE_REQUESTS_MAX};

/// A write. All but the key-value requests are the store's own.
#[derive(Clone, Debug)]
pub enum WriteRequest {
    /// A validated Put.
    Put(PutRequest),
    /// A validated DeleteRange.
    DeleteRange(DeleteRangeRequest),
    /// A validated Txn.
    Txn(TxnRequest),
    /// Grants a lease.
    LeaseGrant {
        /// The chosen id, 0 to have one chosen.
        id: i64,
        /// The time to live, in seconds.
        ttl_seconds: i64,
    },
    /// Revokes a lease and deletes its keys; to be asked for again if it has more of them than are deleted at once.
    LeaseRevoke {
        /// The lease.
        id: i64,
        /// Only if its time is still up when the request is evaluated.
        only_expired: bool,
    },
    /// Records what is left of leases, in seconds, by id; 0 for "all of it".
    LeaseCheckpoint(Vec<(i64, i64)>),
    /// Makes revisions below this one unreadable.
    Compact {
        /// The new compacted revision.
        revision: i64,
    },
    /// One step of physical compaction.
    Trim(Trim),
    /// Changes nothing, durably: proves that this process still writes.
    Renew,
    /// Writes or removes the row of a member.
    Member {
        /// Its id.
        id: u64,
        /// The row; `None` to remove it.
        row: Option<Bytes>,
    },
}

/// A write's answer, by request.
#[derive(Clone, Debug)]
pub enum WriteResponse {
    /// To [`WriteRequest::Put`].
    Put(PutResponse),
    /// To [`WriteRequest::DeleteRange`].
    DeleteRange(DeleteRangeResponse),
    /// To [`WriteRequest::Txn`].
    Txn(TxnResponse),
    /// To [`WriteRequest::LeaseGrant`].
    LeaseGrant {
        /// The lease.
        id: i64,
        /// What was granted, in seconds.
        ttl_seconds: i64,
        /// The newest revision.
        revision: i64,
    },
    /// To [`WriteRequest::LeaseRevoke`].
    LeaseRevoke {
        /// The newest revision.
        revision: i64,
        /// Whether the lease is gone, or goes on since it was renewed; else it has ended, and keys of it are left.
        is_complete: bool,
    },
    /// To the other requests.
    Done {
        /// The newest revision.
        revision: i64,
    },
}

/// Receives a write's outcome, on the committer's thread: must not block.
pub type Responder = Box<dyn FnOnce(Result<WriteResponse, Error>) + Send>;

/// A write that waits.
pub(crate) struct Submission {
    pub(crate) request: WriteRequest,
    /// Its weight in the queue's bound.
    pub(crate) bytes: usize,
    pub(crate) respond: Responder,
}

/// The bounded queue in front of the committer, and how its threads reach it.
#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<InboxState>,
    arrived: Condvar,
}

#[derive(Default)]
struct InboxState {
    submissions: VecDeque<Submission>,
    /// Submissions queued here or in the committer's hands, and their bytes.
    waiting: usize,
    waiting_bytes: usize,
    result: Option<Result<(), kubewharf_engine::CommitError>>,
    /// How many submissions wake the committer; it is awake if this is `usize::MAX`.
    wake_at: usize,
    closed: Option<Error>,
}

impl Inbox {
    /// Queues a write, or answers at once that it can't.
    pub(crate) fn submit(&self, submission: Submission) {
        let mut state = self.state.lock();
        let refusal = if let Some(error) = &state.closed {
            Some(error.clone())
        } else if state.waiting >= QUEUE_REQUESTS_MAX {
            Some(Error::TooManyRequests { limit: QUEUE_REQUESTS_MAX, flag: "a fixed bound of queued writes" })
        } else if state.waiting_bytes + submission.bytes > QUEUE_BYTES_MAX {
            Some(Error::TooManyRequests { limit: QUEUE_BYTES_MAX, flag: "a fixed bound of queued bytes" })
        } else {
            None
        };
        if let Some(error) = refusal {
            drop(state);
            (submission.respond)(Err(error));
            return;
        }
        state.waiting += 1;
        state.waiting_bytes += submission.bytes;
        state.submissions.push_back(submission);
        let wake = state.submissions.len() >= state.wake_at;
        if wake {
            state.wake_at = usize::MAX;
        }
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
    }

    /// Reports the end of the commit under way.
    fn committed(&self, result: Result<(), kubewharf_engine::CommitError>) {
        let mut state = self.state.lock();
        state.result = Some(result);
        state.wake_at = usize::MAX;
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes note that submissions were answered.
    fn answered(&self, count: usize, bytes: usize) {
        let mut state = self.state.lock();
        state.waiting -= count;
        state.waiting_bytes -= bytes;
    }

    /// Refuses everything from now on, and what is queued.
    pub(crate) fn abandon(&self, error: &Error) {
        self.close(error.clone());
        let submissions = std::mem::take(&mut self.state.lock().submissions);
        for submission in submissions {
            (submission.respond)(Err(error.clone()));
        }
    }

    /// Refuses everything from now on; what is queued is still taken unless `error` says that nothing can be written.
    pub(crate) fn close(&self, error: Error) {
        let mut state = self.state.lock();
        state.closed.get_or_insert(error);
        drop(state);
        self.arrived.notify_one();
    }
}

/// The committer's threads.
pub(crate) struct Threads {
    /// Publishes and answers.
    pub(crate) committer: JoinHandle<()>,
    /// Waits for the engine; ends behind the other one.
    pub(crate) commits: JoinHandle<()>,
}

impl Threads {
    /// Waits for the end of both.
    pub(crate) fn join(self) {
        for thread in [self.committer, self.commits] {
            if thread.join().is_err() {
                tracing::error!("a thread of the committer panicked");
            }
        }
    }

    /// Waits for the end of the one that publishes and answers.
    pub(crate) fn join_committer(self) {
        // If it panicked, it has said so.
        let _ = self.committer.join();
    }
}
