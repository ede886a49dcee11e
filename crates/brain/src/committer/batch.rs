//! A batch while it is put together: requests, their answers, the rows and events that they make.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kubewharf_engine::{Batch, Direction, EngineError, Head, Snapshot, Table};

use super::{Responder, Submission, WriteRequest, WriteResponse};
use crate::error::Error;
use crate::lease::{self, Leases};
use crate::limits::{BATCH_BYTES, BATCH_REQUESTS_MAX};
use crate::meta;
use crate::mvcc::{
    Current, Evaluator, Layered, LeaseRecord, Overlay, Position, RecentRows, Refusal, Revisions, Rows, Writer,
    attached_key, lease_key, may_put,
};
use crate::watch::EventsBuilder;

/// Rows that compaction has made useless, found beforehand.
#[derive(Clone, Debug, Default)]
pub struct Trim {
    /// Log rows below the compacted revision.
    pub log: Vec<Position>,
    /// Keys deleted there: their current rows go if they are still the tombstones written at that position.
    pub tombstones: Vec<(Bytes, Position)>,
}

/// What a batch does to the leases in memory once it is confirmed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeaseChange {
    Granted { id: i64, ttl_seconds: i64 },
    Revoked { id: i64 },
    Checkpointed { id: i64, remaining_seconds: i64 },
}

/// An evaluated request that waits for the batch.
pub(super) struct Entry {
    pub(super) submission: Submission,
    pub(super) result: Result<WriteResponse, Error>,
}

impl Entry {
    pub(super) fn answer(self) {
        (self.submission.respond)(self.result);
    }

    pub(super) fn answer_with(self, error: &Error) {
        let respond: Responder = self.submission.respond;
        // A refusal that saw only confirmed state stands whatever becomes of the batch.
        respond(Err(self.result.err().unwrap_or_else(|| error.clone())));
    }
}

/// A batch's content, complete or growing.
pub(super) struct Content {
    pub(super) entries: Vec<Entry>,
    pub(super) bytes: usize,
    pub(super) overlay: Overlay,
    pub(super) events: EventsBuilder,
    pub(super) leases: Vec<LeaseChange>,
    /// The newest and the compacted revision behind the batch.
    pub(super) revisions: Revisions,
}

impl Content {
    pub(super) fn new(revisions: Revisions) -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
            overlay: Overlay::default(),
            events: EventsBuilder::default(),
            leases: Vec::new(),
            revisions,
        }
    }

    /// Whether another request may join.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < BATCH_REQUESTS_MAX && self.overlay.bytes() < BATCH_BYTES
    }

    /// Whether there is anything to commit.
    pub(super) fn writes(&self) -> bool {
        !self.overlay.is_empty()
    }

    /// The engine's batch.
    pub(super) fn to_batch(&self, head: Head) -> Arc<Batch> {
        let next = Head { seq: head.seq + 1, revision: self.revisions.newest, batch_id: head.batch_id + 1, ..head };
        let makes_room = self.entries.iter().all(|entry| makes_room(&entry.submission.request));
        Arc::new(Batch { expected: head, next, operations: self.overlay.to_operations(), makes_room })
    }
}

/// Whether the request must go on when there is no room for growth.
fn makes_room(request: &WriteRequest) -> bool {
    match request {
        WriteRequest::Put(_) | WriteRequest::LeaseGrant { .. } => false,
        WriteRequest::Txn(txn) => !may_put(txn),
        WriteRequest::DeleteRange(_)
        | WriteRequest::LeaseRevoke { .. }
        | WriteRequest::LeaseCheckpoint(_)
        | WriteRequest::Compact { .. }
        | WriteRequest::Trim(_) => true,
    }
}

/// What evaluation needs beside the batch.
pub(super) struct Ground<'a> {
    pub(super) snapshot: &'a dyn Snapshot,
    pub(super) in_flight: Option<&'a Overlay>,
    pub(super) leases: &'a Leases,
    pub(super) changes_max: usize,
}

/// The engine can't be read, and here is the submission back.
pub(super) struct Unread {
    pub(super) submission: Submission,
    pub(super) error: EngineError,
}

/// Evaluates `submission` into `content`.
pub(super) fn evaluate(content: &mut Content, ground: &Ground<'_>, submission: Submission) -> Result<(), Box<Unread>> {
    content.overlay.savepoint();
    content.events.savepoint();
    let leases = content.leases.len();
    let before = content.revisions;
    let result = match evaluate_request(content, ground, &submission.request) {
        Ok(response) => Ok(response),
        Err(Failure::Refused(error)) => {
            content.overlay.rollback();
            content.events.rollback();
            content.leases.truncate(leases);
            content.revisions = before;
            Err(error)
        }
        Err(Failure::Engine(error)) => return Err(Box::new(Unread { submission, error })),
    };
    content.bytes += submission.bytes;
    content.entries.push(Entry { submission, result });
    Ok(())
}

enum Failure {
    Refused(Error),
    Engine(EngineError),
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Engine(error) => Self::Engine(error),
            other => Self::Refused(other.into()),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

fn evaluate_request(
    content: &mut Content,
    ground: &Ground<'_>,
    request: &WriteRequest,
) -> Result<WriteResponse, Failure> {
    let revisions = content.revisions;
    let base: &dyn Rows = &RecentRows::new(ground.snapshot);
    match request {
        WriteRequest::Put(put) => write(content, ground, base, |evaluator| evaluator.put(put).map(WriteResponse::Put)),
        WriteRequest::DeleteRange(delete) => {
            write(content, ground, base, |evaluator| evaluator.delete_range(delete).map(WriteResponse::DeleteRange))
        }
        WriteRequest::Txn(txn) => write(content, ground, base, |evaluator| evaluator.txn(txn).map(WriteResponse::Txn)),
        WriteRequest::LeaseGrant { id, ttl_seconds } => {
            let view = Layered::new(base, ground.in_flight, &content.overlay);
            let exists = |id: i64| view.get(Table::Lease, &lease_key(id), &mut |_| {});
            let mut chosen = *id;
            if chosen == 0 {
                chosen = lease::random_id();
                while exists(chosen)? {
                    chosen = lease::random_id();
                }
            } else if exists(chosen)? {
                return Err(Error::LeaseExists.into());
            }
            let ttl_seconds = lease::granted_ttl(*ttl_seconds)?;
            let record = LeaseRecord { ttl_seconds, remaining_seconds: 0 };
            content.overlay.put(Table::Lease, lease_key(chosen), record.encode());
            content.leases.push(LeaseChange::Granted { id: chosen, ttl_seconds });
            Ok(WriteResponse::LeaseGrant { id: chosen, ttl_seconds, revision: revisions.newest })
        }
        WriteRequest::LeaseRevoke { id, only_expired } => revoke(content, ground, base, *id, *only_expired),
        WriteRequest::LeaseCheckpoint(checkpoints) => {
            for &(id, remaining_seconds) in checkpoints {
                // Its time may belong to an earlier lease with this id.
                if remaining_seconds > 0
                    && (lease_changes(content, ground, id) || !ground.leases.expects_checkpoint(id))
                {
                    continue;
                }
                let key = lease_key(id);
                let mut record = None;
                let view = Layered::new(base, ground.in_flight, &content.overlay);
                view.get(Table::Lease, &key, &mut |row| record = Some(LeaseRecord::decode(row)))?;
                // A lease that was revoked meanwhile needs none.
                let Some(record) = record.transpose().map_err(EngineError::from)? else { continue };
                content.overlay.put(Table::Lease, key, LeaseRecord { remaining_seconds, ..record }.encode());
                content.leases.push(LeaseChange::Checkpointed { id, remaining_seconds });
            }
            Ok(WriteResponse::Done { revision: revisions.newest })
        }
        WriteRequest::Compact { revision } => {
            if *revision <= revisions.compacted {
                return Err(Error::Compacted.into());
            }
            if *revision > revisions.newest {
                return Err(Error::FutureRevision.into());
            }
            content.overlay.put(Table::Meta, meta::COMPACTED, meta::encode_revision(*revision));
            content.revisions.compacted = *revision;
            Ok(WriteResponse::Done { revision: revisions.newest })
        }
        WriteRequest::Trim(trim) => {
            for (key, position) in &trim.tombstones {
                let view = Layered::new(base, ground.in_flight, &content.overlay);
                let mut is_that_tombstone = Ok(false);
                view.get(Table::Current, key, &mut |row| {
                    is_that_tombstone =
                        Current::decode(row).map(|current| current.live.is_none() && current.position == *position);
                })?;
                if is_that_tombstone.map_err(EngineError::from)? {
                    content.overlay.delete(Table::Current, key.clone());
                }
            }
            for position in &trim.log {
                content.overlay.delete(Table::Log, Bytes::copy_from_slice(&position.key()));
            }
            Ok(WriteResponse::Done { revision: revisions.newest })
        }
    }
}

fn write<'a>(
    content: &'a mut Content,
    ground: &'a Ground<'_>,
    base: &'a dyn Rows,
    run: impl FnOnce(&mut Evaluator<'_, '_>) -> Result<WriteResponse, Refusal>,
) -> Result<WriteResponse, Failure> {
    let revisions = content.revisions;
    let mut writer =
        Writer::new(base, ground.in_flight, &mut content.overlay, &mut content.events, revisions.newest + 1, now_ms());
    let response = run(&mut Evaluator::writer(&mut writer, revisions, ground.changes_max))?;
    if writer.wrote() {
        content.revisions.newest += 1;
    }
    Ok(response)
}

fn revoke(
    content: &mut Content,
    ground: &Ground<'_>,
    base: &dyn Rows,
    id: i64,
    only_expired: bool,
) -> Result<WriteResponse, Failure> {
    let revisions = content.revisions;
    let mut keys = Vec::new();
    {
        let view = Layered::new(base, ground.in_flight, &content.overlay);
        if !view.get(Table::Lease, &lease_key(id), &mut |_| {})? {
            return Err(Error::LeaseNotFound.into());
        }
        // The leases in memory know nothing yet of a lease granted under the same id on the way.
        if only_expired && (lease_changes(content, ground, id) || !ground.leases.begin_expiry(id)) {
            // It was renewed since.
            return Ok(WriteResponse::Done { revision: revisions.newest });
        }
        let (start, end) = lease::attachment_bounds(id);
        let mut failed = Ok(());
        let range = (std::ops::Bound::Included(&start[..]), end.as_ref().map(|end| &end[..]));
        view.scan(Table::LeaseKey, range, Direction::Forward, &mut |row_key, _| {
            match attached_key(row_key) {
                Ok(key) => keys.push(Bytes::copy_from_slice(key)),
                Err(cause) => failed = Err(cause),
            }
            std::ops::ControlFlow::Continue(())
        })?;
        failed.map_err(EngineError::from)?;
    }
    if keys.len() > ground.changes_max {
        return Err(Refusal::TooManyChanges { keys_max: ground.changes_max }.into());
    }
    let mut writer =
        Writer::new(base, ground.in_flight, &mut content.overlay, &mut content.events, revisions.newest + 1, now_ms());
    for key in &keys {
        writer.delete(key)?;
    }
    if writer.wrote() {
        content.revisions.newest += 1;
    }
    content.overlay.delete(Table::Lease, lease_key(id));
    content.leases.push(LeaseChange::Revoked { id });
    Ok(WriteResponse::Done { revision: content.revisions.newest })
}

/// Whether a change of the lease's row is not confirmed yet.
fn lease_changes(content: &Content, ground: &Ground<'_>, id: i64) -> bool {
    let key = lease_key(id);
    let changes = |overlay: &Overlay| overlay.changes(Table::Lease, &key);
    changes(&content.overlay) || ground.in_flight.is_some_and(changes)
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
