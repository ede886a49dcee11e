//! A batch while it is put together: requests, their answers, the rows and events that they make.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kubewharf_engine::{Batch, EngineError, Head, Reserve, Snapshot, Table};
use kubewharf_etcd_api::etcdserverpb::{DeleteRangeResponse, ResponseHeader};
use tracing::{error, warn};

use super::{Submission, WriteRequest, WriteResponse, next_head};
use crate::error::Error;
use crate::lease::{self, Leases};
use crate::limits::{BATCH_BYTES, BATCH_REQUESTS_MAX, LEASE_TTL_SECONDS_MIN};
use crate::meta;
use crate::mvcc::{
    Bounds, Current, Evaluator, Layered, LeaseRecord, Overlay, Position, RecentRows, Refusal, Revisions, Rows, Writer,
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
    Granted {
        id: i64,
        ttl_seconds: i64,
    },
    /// Some of its keys are deleted, the others follow.
    Ending {
        id: i64,
    },
    Revoked {
        id: i64,
    },
    Checkpointed {
        id: i64,
        remaining_seconds: i64,
    },
}

/// An evaluated request that waits for the batch.
pub(super) struct Entry {
    pub(super) submission: Submission,
    pub(super) result: Result<WriteResponse, Error>,
    /// Whether the result rests on confirmed state alone.
    is_firm: bool,
}

impl Entry {
    pub(super) fn answer(self) {
        (self.submission.respond)(self.result);
    }

    /// Answers although the batch is not confirmed: with `error` what it did, with `undone` what it refused.
    pub(super) fn answer_unconfirmed(self, error: &Error, undone: &Error) {
        (self.submission.respond)(Err(match self.result {
            Ok(_) => error.clone(),
            Err(refusal) if self.is_firm => refusal,
            // What it was refused for may not be so.
            Err(_) => undone.clone(),
        }));
    }
}

/// A batch's content, complete or growing.
pub(super) struct Content {
    pub(super) entries: Vec<Entry>,
    pub(super) bytes: usize,
    pub(super) overlay: Overlay,
    /// Memory of the keys in the responses.
    response_bytes: usize,
    pub(super) events: EventsBuilder,
    pub(super) leases: Vec<LeaseChange>,
    /// The newest and the compacted revision behind the batch.
    pub(super) revisions: Revisions,
    /// Whether it is to be committed even if it changes nothing.
    renews: bool,
}

impl Content {
    pub(super) fn new(revisions: Revisions) -> Self {
        Self {
            entries: Vec::new(),
            bytes: 0,
            overlay: Overlay::default(),
            response_bytes: 0,
            events: EventsBuilder::default(),
            leases: Vec::new(),
            revisions,
            renews: false,
        }
    }

    /// Whether another request may join.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < BATCH_REQUESTS_MAX && self.overlay.bytes() + self.response_bytes < BATCH_BYTES
    }

    /// Whether there is anything to commit.
    pub(super) fn writes(&self) -> bool {
        self.renews || !self.overlay.is_empty()
    }

    /// The engine's batch.
    pub(super) fn to_batch(&self, head: Head) -> Arc<Batch> {
        let next = next_head(head, self.revisions.newest);
        let reserve = self.entries.iter().map(|entry| reserve(&entry.submission.request)).min().unwrap_or_default();
        Arc::new(Batch { expected: head, next, operations: self.overlay.to_operations(), reserve })
    }
}

/// How the request goes on when there is no room for growth.
fn reserve(request: &WriteRequest) -> Reserve {
    match request {
        WriteRequest::Txn(txn) if !may_put(txn) => Reserve::ToFloor,
        WriteRequest::Put(_) | WriteRequest::Txn(_) | WriteRequest::LeaseGrant { .. } => Reserve::Untouched,
        // A deletion puts what it deletes into the log, and it is compaction that makes room.
        WriteRequest::DeleteRange(_) | WriteRequest::LeaseRevoke { .. } | WriteRequest::LeaseCheckpoint(_) => {
            Reserve::ToFloor
        }
        WriteRequest::Compact { .. } | WriteRequest::Trim(_) | WriteRequest::Renew | WriteRequest::Member { .. } => {
            Reserve::Whole
        }
    }
}

/// What evaluation needs beside the batch.
pub(super) struct Ground<'a> {
    pub(super) snapshot: &'a dyn Snapshot,
    pub(super) in_flight: Option<&'a Overlay>,
    pub(super) leases: &'a Leases,
    pub(super) bounds: Bounds,
    /// Whether others may write: what is read may be old then, and only what is confirmed is certain.
    pub(super) is_shared: bool,
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
    let is_firm = !content.writes() && ground.in_flight.is_none() && !ground.is_shared;
    let result = match evaluate_request(content, ground, &submission.request) {
        Ok(response) => Ok(response),
        Err(Failure::Engine(error)) if !error.is_corrupt() => return Err(Box::new(Unread { submission, error })),
        Err(failure) => {
            content.overlay.rollback();
            content.events.rollback();
            content.leases.truncate(leases);
            content.revisions = before;
            Err(match failure {
                Failure::Refused(error) => error,
                Failure::Engine(error) => {
                    warn!(%error, "a write that needs damaged data is refused");
                    error.into()
                }
            })
        }
    };
    content.bytes += submission.bytes;
    content.entries.push(Entry { submission, result, is_firm });
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
            let run =
                |evaluator: &mut Evaluator<'_, '_>| evaluator.delete_range(delete).map(WriteResponse::DeleteRange);
            match write(content, ground, base, run) {
                // The way out for a key whose row is damaged, for those who name the key and don't ask what it was.
                Err(Failure::Engine(error)) if error.is_corrupt() && delete.range_end.is_empty() && !delete.prev_kv => {
                    warn!(%error, "a key is deleted whose row is damaged");
                    let (overlay, events) = (&mut content.overlay, &mut content.events);
                    Writer::new(base, ground.in_flight, overlay, events, revisions, now_ms())
                        .delete_unread(&delete.key);
                    content.revisions.newest += 1;
                    let header = ResponseHeader { revision: content.revisions.newest, ..ResponseHeader::default() };
                    let response = DeleteRangeResponse { header: Some(header), deleted: 1, prev_kvs: Vec::new() };
                    Ok(WriteResponse::DeleteRange(response))
                }
                other => other,
            }
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
                past_damage(view.get(Table::Lease, &key, &mut |row| record = LeaseRecord::decode(row).ok()))?;
                // A lease that was revoked meanwhile needs none, nor does one that has ended or whose row can't be read.
                let Some(record) = record.filter(|record| !record.is_ending()) else { continue };
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
        WriteRequest::Renew => {
            content.renews = true;
            Ok(WriteResponse::Done { revision: revisions.newest })
        }
        WriteRequest::Member { id, row } => {
            let key = meta::member_key(*id);
            match row {
                Some(row) => content.overlay.put(Table::Meta, key, row.clone()),
                None => content.overlay.delete(Table::Meta, key),
            }
            Ok(WriteResponse::Done { revision: revisions.newest })
        }
        WriteRequest::Trim(trim) => {
            for (key, position) in &trim.tombstones {
                let view = Layered::new(base, ground.in_flight, &content.overlay);
                let mut is_that_tombstone = false;
                // A damaged row stays until somebody deletes the key.
                past_damage(view.get(Table::Current, key, &mut |row| {
                    is_that_tombstone = Current::decode(row)
                        .is_ok_and(|current| current.live.is_none() && current.position == *position);
                }))?;
                if is_that_tombstone {
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
        Writer::new(base, ground.in_flight, &mut content.overlay, &mut content.events, revisions, now_ms());
    let mut evaluator = Evaluator::writer(&mut writer, revisions, ground.bounds);
    let response = run(&mut evaluator)?;
    content.response_bytes += evaluator.response_bytes();
    if writer.wrote() {
        content.revisions.newest += 1;
    }
    Ok(response)
}

/// Ends a lease: deletes its keys at one revision, or, if they are more than one batch takes, as many as that.
fn revoke(
    content: &mut Content,
    ground: &Ground<'_>,
    base: &dyn Rows,
    id: i64,
    only_expired: bool,
) -> Result<WriteResponse, Failure> {
    let Bounds { keys: keys_max, row_bytes: bytes_max, .. } = ground.bounds;
    // The next key may have the largest value that there is, which is far smaller than the rest.
    let bytes_max = bytes_max / 4 * 3;
    let revisions = content.revisions;
    let mut record = None;
    let mut keys = Vec::new();
    {
        let view = Layered::new(base, ground.in_flight, &content.overlay);
        let exists = view.get(Table::Lease, &lease_key(id), &mut |row| record = LeaseRecord::decode(row).ok());
        // One whose row is damaged is ended too.
        if !past_damage(exists)?.unwrap_or(true) {
            return Err(Error::LeaseNotFound.into());
        }
        // What has begun to end does so. The leases in memory know nothing yet of a lease granted under the same id on the way.
        let is_ending = record.is_some_and(|record| record.is_ending());
        if only_expired && !is_ending && (lease_changes(content, ground, id) || !ground.leases.begin_expiry(id)) {
            // It was renewed since.
            return Ok(WriteResponse::LeaseRevoke { revision: revisions.newest, is_complete: true });
        }
        let (start, end) = lease::attachment_bounds(id);
        let mut failed = Ok(());
        let range = (std::ops::Bound::Included(&start[..]), end.as_ref().map(|end| &end[..]));
        view.scan_past_damage(Table::LeaseKey, range, &mut |row_key, value| {
            if value.is_none() {
                // All of it is in its key. If that is what is damaged, it names no key of this lease, and nothing is deleted for it.
                let (lease, row) = (format!("{id:x}"), row_key.escape_ascii().to_string());
                error!(lease, row, "a row that attaches a key to a lease is damaged: a key that it hides stays");
                ground.leases.counters().count_damaged_attachment();
            }
            match attached_key(row_key) {
                Ok(key) => keys.push(Bytes::copy_from_slice(key)),
                Err(cause) => failed = Err(cause),
            }
            if keys.len() <= keys_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        failed.map_err(EngineError::from)?;
    }
    let mut writer =
        Writer::new(base, ground.in_flight, &mut content.overlay, &mut content.events, revisions, now_ms());
    let mut deleted = 0;
    while deleted < keys.len().min(keys_max) && writer.bytes() < bytes_max {
        writer.delete_leased(&keys[deleted], id)?;
        deleted += 1;
    }
    if writer.wrote() {
        content.revisions.newest += 1;
    }
    let is_complete = deleted == keys.len();
    if is_complete {
        content.overlay.delete(Table::Lease, lease_key(id));
        content.leases.push(LeaseChange::Revoked { id });
    } else {
        // From here on it is never renewed and takes no keys, in the next process neither: whoever relies on it must not see it live with a
        // part of its keys.
        let ttl_seconds = record.map_or(LEASE_TTL_SECONDS_MIN, |record| record.ttl_seconds);
        let ending = LeaseRecord { ttl_seconds, remaining_seconds: LeaseRecord::ENDING };
        content.overlay.put(Table::Lease, lease_key(id), ending.encode());
        content.leases.push(LeaseChange::Ending { id });
    }
    Ok(WriteResponse::LeaseRevoke { revision: content.revisions.newest, is_complete })
}

/// What was read, or `None` for data that is damaged.
fn past_damage<T>(read: Result<T, EngineError>) -> Result<Option<T>, EngineError> {
    match read {
        Err(error) if error.is_corrupt() => Ok(None),
        other => other.map(Some),
    }
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
