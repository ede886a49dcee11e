//! Evaluation of Put, DeleteRange and Txn, reads inside transactions included.
//!
//! Behaves as etcd 3.7 does (`server/etcdserver/txn`): all compares of the whole tree of nested transactions look at the state
//! before the transaction; then the chosen branches are checked; then they run in order, each operation seeing the ones before it.
//!
//! Invariant: an error other than an engine's leaves no change behind.

use std::mem::size_of;
use std::ops::ControlFlow;

use bytes::Bytes;
use kubewharf_engine::{Direction, EngineError, Table};
use kubewharf_etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kubewharf_etcd_api::etcdserverpb::range_request::{SortOrder, SortTarget as ApiSortTarget};
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::response_op::Response;
use kubewharf_etcd_api::etcdserverpb::{
    Compare, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, RangeRequest, RangeResponse, RequestOp,
    ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use kubewharf_etcd_api::mvccpb::KeyValue;

use super::range::{KeyRange, RangeQuery, Receiver, SortTarget, range, receive};
use super::record::{LeaseRecord, Version, lease_key};
use super::view::Rows;
use super::writer::Writer;

/// Why a valid request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The requested revision is older than what compaction has kept.
    #[error("the revision is compacted")]
    Compacted,
    /// The requested revision does not exist yet.
    #[error("the revision is in the future")]
    FutureRevision,
    /// A put names a lease that doesn't exist.
    #[error("the lease does not exist")]
    LeaseNotFound,
    /// A put that keeps the value or lease names a key that doesn't exist.
    #[error("the key does not exist")]
    KeyNotFound,
    /// The transaction would change more rows than the engine takes in one batch.
    #[error("the transaction changes more than {keys_max} keys")]
    TooManyChanges {
        /// The most keys that one transaction may change.
        keys_max: usize,
    },
    /// The transaction would write more bytes than the engine takes in one batch.
    #[error("the transaction writes more than {bytes_max} bytes")]
    TooManyBytes {
        /// The most bytes of rows that one transaction may write; a row has what it replaces too.
        bytes_max: usize,
    },
    /// The keys to return would take more memory than there is for them.
    #[error("the response is larger than {bytes_max} bytes")]
    ResponseTooLarge {
        /// The most bytes that one response may take.
        bytes_max: usize,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// The most that one request may change and return.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Keys that it may change.
    pub keys: usize,
    /// Bytes of rows that it may write.
    pub row_bytes: usize,
    /// Bytes of keys that it may return, as they lie in memory.
    pub response_bytes: usize,
}

/// The revisions that a request is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Revisions {
    /// The newest one before the request.
    pub newest: i64,
    /// The compacted one; reads below it are refused. -1 if nothing was ever compacted.
    pub compacted: i64,
}

impl Revisions {
    /// Checks a requested revision and gives the one to read at: 0 and below mean the newest.
    pub fn resolve(self, requested: i64) -> Result<i64, Refusal> {
        if requested > self.newest {
            return Err(Refusal::FutureRevision);
        }
        let revision = if requested <= 0 { self.newest } else { requested };
        if revision < self.compacted { Err(Refusal::Compacted) } else { Ok(revision) }
    }
}

/// What a request reads and writes through, and within which bounds.
pub struct Evaluator<'e, 'w> {
    source: Source<'e, 'w>,
    revisions: Revisions,
    bounds: Bounds,
    response_bytes: usize,
}

enum Source<'e, 'w> {
    Reader(&'e dyn Rows),
    Writer(&'e mut Writer<'w>),
}

impl<'e, 'w> Evaluator<'e, 'w> {
    /// An evaluator of requests that only read and return at most `response_bytes`.
    pub fn reader(rows: &'e dyn Rows, revisions: Revisions, response_bytes: usize) -> Self {
        let bounds = Bounds { keys: 0, row_bytes: 0, response_bytes };
        Self { source: Source::Reader(rows), revisions, bounds, response_bytes: 0 }
    }

    /// An evaluator that writes through `writer`.
    pub fn writer(writer: &'e mut Writer<'w>, revisions: Revisions, bounds: Bounds) -> Self {
        Self { source: Source::Writer(writer), revisions, bounds, response_bytes: 0 }
    }

    /// Bytes of the keys returned so far, as they lie in memory.
    #[must_use]
    pub fn response_bytes(&self) -> usize {
        self.response_bytes
    }

    /// Evaluates a whole Put request.
    pub fn put(&mut self, request: &PutRequest) -> Result<PutResponse, Refusal> {
        self.check_put(request)?;
        self.execute_put(request)
    }

    /// Evaluates a whole DeleteRange request.
    pub fn delete_range(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Refusal> {
        self.execute_delete_range(request)
    }

    /// Evaluates a whole Txn request.
    pub fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Refusal> {
        let mut path = Vec::with_capacity(1);
        self.choose(request, &mut path)?;
        self.check_txn(request, &mut path.iter().copied())?;
        let mut response = self.execute_txn(request, &mut path.iter().copied())?;
        response.header = Some(header(self.newest()));
        Ok(response)
    }

    /// The newest revision as the running transaction sees it.
    fn newest(&self) -> i64 {
        match &self.source {
            Source::Reader(_) => self.revisions.newest,
            Source::Writer(writer) => self.revisions.newest + i64::from(writer.wrote()),
        }
    }

    fn with_rows<R>(&self, read: impl FnOnce(&dyn Rows) -> R) -> R {
        match &self.source {
            Source::Reader(rows) => read(*rows),
            Source::Writer(writer) => read(&writer.view()),
        }
    }

    /// Evaluates the compares of the transaction and of those nested in its chosen branches, in order.
    fn choose(&self, request: &TxnRequest, path: &mut Vec<bool>) -> Result<(), EngineError> {
        let mut succeeded = true;
        for compare in &request.compare {
            if !self.compare(compare)? {
                succeeded = false;
                break;
            }
        }
        path.push(succeeded);
        for operation in branch(request, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &operation.request {
                self.choose(nested, path)?;
            }
        }
        Ok(())
    }

    fn compare(&self, compare: &Compare) -> Result<bool, EngineError> {
        let keys = KeyRange::from_request(compare.key.clone(), compare.range_end.clone());
        let query = RangeQuery::all(keys, self.newest());
        let mut any = false;
        let mut all = true;
        self.with_rows(|rows| {
            range(rows, &query, &mut |_, version| {
                any = true;
                all = holds(compare, version);
                if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })
        })?;
        if any {
            return Ok(all);
        }
        // A missing key compares as zero in everything but its value, which nothing equals.
        let missing = Version { create_revision: 0, mod_revision: 0, version: 0, lease: 0, value: &[] };
        Ok(compare.target() != CompareTarget::Value && holds(compare, &missing))
    }

    fn check_txn(&self, request: &TxnRequest, path: &mut dyn Iterator<Item = bool>) -> Result<(), Refusal> {
        let succeeded = path.next().expect("`choose` walked the same tree");
        for operation in branch(request, succeeded) {
            match &operation.request {
                Some(Request::RequestRange(range)) if range.revision != 0 => {
                    if range.revision > self.revisions.newest {
                        return Err(Refusal::FutureRevision);
                    }
                    if range.revision < self.revisions.compacted {
                        return Err(Refusal::Compacted);
                    }
                }
                Some(Request::RequestPut(put)) => self.check_put(put)?,
                Some(Request::RequestTxn(nested)) => self.check_txn(nested, path)?,
                Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), Refusal> {
        if request.lease != 0 {
            let mut takes_keys = Ok(false);
            self.with_rows(|rows| {
                rows.get(Table::Lease, &lease_key(request.lease), &mut |row| {
                    takes_keys = LeaseRecord::decode(row).map(|record| !record.is_ending());
                })
            })?;
            if !takes_keys.map_err(EngineError::from)? {
                return Err(Refusal::LeaseNotFound);
            }
        }
        if (request.ignore_value || request.ignore_lease) && self.get(&request.key)?.is_none() {
            return Err(Refusal::KeyNotFound);
        }
        Ok(())
    }

    fn execute_txn(
        &mut self,
        request: &TxnRequest,
        path: &mut dyn Iterator<Item = bool>,
    ) -> Result<TxnResponse, Refusal> {
        let succeeded = path.next().expect("`choose` walked the same tree");
        let operations = branch(request, succeeded);
        let mut responses = Vec::with_capacity(operations.len());
        for operation in operations {
            let response = match &operation.request {
                Some(Request::RequestRange(range)) => Some(Response::ResponseRange(self.execute_range(range)?)),
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(self.execute_put(put)?)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(Response::ResponseDeleteRange(self.execute_delete_range(delete)?))
                }
                Some(Request::RequestTxn(nested)) => Some(Response::ResponseTxn(self.execute_txn(nested, path)?)),
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        // etcd fills the revision of the outermost header only.
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
    }

    fn execute_range(&mut self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        let newest = self.newest();
        let revision = Revisions { newest, ..self.revisions }.resolve(request.revision)?;
        let query = query(request, revision);
        let bytes_max = self.bounds.response_bytes;
        let mut found = Found {
            kvs: Vec::new(),
            bytes: self.response_bytes,
            bytes_max,
            keys_only: request.keys_only,
            omits_lease: omits_lease(request),
        };
        let outcome = self.with_rows(|rows| receive(rows, &query, &mut found))?;
        if outcome.stopped {
            return Err(Refusal::ResponseTooLarge { bytes_max });
        }
        self.response_bytes = found.bytes;
        Ok(RangeResponse { header: Some(header(newest)), kvs: found.kvs, more: outcome.more, count: outcome.count })
    }

    fn execute_put(&mut self, request: &PutRequest) -> Result<PutResponse, Refusal> {
        if self.changes() >= self.bounds.keys {
            return Err(Refusal::TooManyChanges { keys_max: self.bounds.keys });
        }
        let needs_previous = request.prev_kv || request.ignore_value || request.ignore_lease;
        let previous = if needs_previous { self.get(&request.key)? } else { None };
        let value = match &previous {
            Some(previous) if request.ignore_value => &previous.value,
            _ => &request.value,
        };
        let lease = match &previous {
            Some(previous) if request.ignore_lease => previous.lease,
            _ => request.lease,
        };
        let writer = self.writer_mut();
        writer.put(&request.key, value, lease)?;
        let header = Some(header(writer.revision()));
        self.check_row_bytes()?;
        let prev_kv = previous.filter(|_| request.prev_kv);
        self.response_bytes += prev_kv.as_ref().map_or(0, |kv| response_bytes(&kv.key, &kv.value));
        self.check_response_bytes()?;
        Ok(PutResponse { header, prev_kv })
    }

    fn execute_delete_range(&mut self, request: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Refusal> {
        let deleted = KeyRange::from_request(request.key.clone(), request.range_end.clone());
        let mut keys = Vec::new();
        let mut prev_kvs = Vec::new();
        let query = RangeQuery::all(deleted, self.newest());
        let Bounds { keys: keys_max, row_bytes: bytes_max, response_bytes: response_bytes_max } = self.bounds;
        let admitted = keys_max.saturating_sub(self.changes());
        let mut row_bytes = self.row_bytes();
        let mut response_bytes = self.response_bytes;
        let mut refusal = None;
        self.with_rows(|rows| {
            range(rows, &query, &mut |key, version| {
                // Before anything is written: a row of the log holds the value that is deleted.
                row_bytes += 2 * key.len() + version.value.len();
                if request.prev_kv {
                    response_bytes += self::response_bytes(key, version.value);
                }
                if keys.len() == admitted {
                    refusal = Some(Refusal::TooManyChanges { keys_max });
                } else if row_bytes > bytes_max {
                    refusal = Some(Refusal::TooManyBytes { bytes_max });
                } else if response_bytes > response_bytes_max {
                    refusal = Some(Refusal::ResponseTooLarge { bytes_max: response_bytes_max });
                }
                if refusal.is_some() {
                    return ControlFlow::Break(());
                }
                keys.push(Bytes::copy_from_slice(key));
                if request.prev_kv {
                    prev_kvs.push(key_value(key, version));
                }
                ControlFlow::Continue(())
            })
        })?;
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        self.response_bytes = response_bytes;
        for key in &keys {
            self.writer_mut().delete(key)?;
            self.check_row_bytes()?;
        }
        let deleted = i64::try_from(keys.len()).expect("a length fits");
        Ok(DeleteRangeResponse { header: Some(header(self.newest())), deleted, prev_kvs })
    }

    fn changes(&self) -> usize {
        match &self.source {
            Source::Reader(_) => 0,
            Source::Writer(writer) => writer.changes() as usize,
        }
    }

    fn row_bytes(&self) -> usize {
        match &self.source {
            Source::Reader(_) => 0,
            Source::Writer(writer) => writer.bytes(),
        }
    }

    fn check_row_bytes(&self) -> Result<(), Refusal> {
        let bytes_max = self.bounds.row_bytes;
        if self.row_bytes() > bytes_max { Err(Refusal::TooManyBytes { bytes_max }) } else { Ok(()) }
    }

    fn check_response_bytes(&self) -> Result<(), Refusal> {
        let bytes_max = self.bounds.response_bytes;
        if self.response_bytes > bytes_max { Err(Refusal::ResponseTooLarge { bytes_max }) } else { Ok(()) }
    }

    fn writer_mut(&mut self) -> &mut Writer<'w> {
        match &mut self.source {
            Source::Reader(_) => unreachable!("requests that write are given to an evaluator that has a writer"),
            Source::Writer(writer) => writer,
        }
    }

    fn get(&self, key: &Bytes) -> Result<Option<KeyValue>, EngineError> {
        let query =
            RangeQuery::all(KeyRange { start: key.clone(), end: super::range::RangeEnd::Single }, self.newest());
        let mut found = None;
        self.with_rows(|rows| {
            range(rows, &query, &mut |key, version| {
                found = Some(key_value(key, version));
                ControlFlow::Continue(())
            })
        })?;
        Ok(found)
    }
}

/// Whether the request, as etcd judges it, only reads: all operations of both branches are ranges.
#[must_use]
pub fn is_read_only(request: &TxnRequest) -> bool {
    let reads = |operation: &RequestOp| matches!(operation.request, Some(Request::RequestRange(_)));
    request.success.iter().all(reads) && request.failure.iter().all(reads)
}

/// Whether a request that only reads may be answered with what is known here, as etcd judges it: all of its ranges may.
#[must_use]
pub fn is_serializable(request: &TxnRequest) -> bool {
    let may = |operation: &RequestOp| match &operation.request {
        Some(Request::RequestRange(range)) => range.serializable,
        _ => true,
    };
    request.success.iter().all(may) && request.failure.iter().all(may)
}

/// Whether the request may put anything, whichever branches are taken.
#[must_use]
pub fn may_put(request: &TxnRequest) -> bool {
    request.success.iter().chain(&request.failure).any(|operation| match &operation.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => may_put(nested),
        _ => false,
    })
}

/// Adds the keys that the transaction names one by one, in whichever branch.
pub fn single_keys<'r>(request: &'r TxnRequest, keys: &mut Vec<&'r [u8]>) {
    keys.extend(request.compare.iter().filter(|compare| compare.range_end.is_empty()).map(|compare| &compare.key[..]));
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(range)) if range.range_end.is_empty() => keys.push(&range.key),
            Some(Request::RequestPut(put)) => keys.push(&put.key),
            Some(Request::RequestDeleteRange(delete)) if delete.range_end.is_empty() => keys.push(&delete.key),
            Some(Request::RequestTxn(nested)) => single_keys(nested, keys),
            _ => {}
        }
    }
}

/// The query that a Range request asks for, at an already resolved revision.
#[must_use]
pub fn query(request: &RangeRequest, revision: i64) -> RangeQuery {
    let target = match request.sort_target() {
        ApiSortTarget::Key => SortTarget::Key,
        ApiSortTarget::Version => SortTarget::Version,
        ApiSortTarget::Create => SortTarget::Create,
        ApiSortTarget::Mod => SortTarget::Mod,
        ApiSortTarget::Value => SortTarget::Value,
    };
    let sort = match request.sort_order() {
        SortOrder::None if target == SortTarget::Key => None,
        SortOrder::None | SortOrder::Ascend => Some((target, Direction::Forward)),
        SortOrder::Descend => Some((target, Direction::Reverse)),
    };
    let query = RangeQuery {
        range: KeyRange::from_request(request.key.clone(), request.range_end.clone()),
        revision,
        limit: u64::try_from(request.limit).unwrap_or(0),
        keys_only: request.keys_only,
        count_only: request.count_only,
        count_all: true,
        sort,
        sort_after_limit: false,
        mod_revisions: (request.min_mod_revision, request.max_mod_revision),
        create_revisions: (request.min_create_revision, request.max_create_revision),
    };
    RangeQuery { sort_after_limit: request.sort_order() == SortOrder::None && !query.filters(), ..query }
}

/// Whether the reply leaves leases out: etcd 3.7 answers a request for keys alone from its index, which has no leases.
#[must_use]
pub fn omits_lease(request: &RangeRequest) -> bool {
    request.keys_only && request.sort_target() != ApiSortTarget::Value
}

fn branch(request: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn header(revision: i64) -> ResponseHeader {
    ResponseHeader { revision, ..ResponseHeader::default() }
}

/// Memory of a key in a response, in bytes.
fn response_bytes(key: &[u8], value: &[u8]) -> usize {
    size_of::<KeyValue>() + key.len() + value.len()
}

/// The keys of a range for a response, within its bound.
struct Found {
    kvs: Vec<KeyValue>,
    bytes: usize,
    bytes_max: usize,
    keys_only: bool,
    omits_lease: bool,
}

impl Receiver for Found {
    fn key(&mut self, key: &[u8], version: &Version<'_>) -> ControlFlow<()> {
        let version = Version {
            value: if self.keys_only { &[] } else { version.value },
            lease: if self.omits_lease { 0 } else { version.lease },
            ..*version
        };
        self.hold(response_bytes(key, version.value))?;
        self.kvs.push(key_value(key, &version));
        ControlFlow::Continue(())
    }

    fn hold(&mut self, bytes: usize) -> ControlFlow<()> {
        if self.bytes + bytes > self.bytes_max {
            return ControlFlow::Break(());
        }
        self.bytes += bytes;
        ControlFlow::Continue(())
    }

    fn release(&mut self, bytes: usize) {
        self.bytes -= bytes;
    }
}

fn key_value(key: &[u8], version: &Version<'_>) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(key),
        create_revision: version.create_revision,
        mod_revision: version.mod_revision,
        version: version.version,
        value: Bytes::copy_from_slice(version.value),
        lease: version.lease,
    }
}

/// Whether a version fulfils a compare. Numbers that name no target or no result are taken as etcd takes them: everything
/// is equal, and holds.
fn holds(compare: &Compare, version: &Version<'_>) -> bool {
    let union = compare.target_union.as_ref();
    let number = |stored: i64, given: Option<i64>| stored.cmp(&given.unwrap_or(0));
    let ordering = match (CompareTarget::try_from(compare.target), union) {
        (Ok(CompareTarget::Version), Some(TargetUnion::Version(given))) => number(version.version, Some(*given)),
        (Ok(CompareTarget::Version), _) => number(version.version, None),
        (Ok(CompareTarget::Create), Some(TargetUnion::CreateRevision(given))) => {
            number(version.create_revision, Some(*given))
        }
        (Ok(CompareTarget::Create), _) => number(version.create_revision, None),
        (Ok(CompareTarget::Mod), Some(TargetUnion::ModRevision(given))) => number(version.mod_revision, Some(*given)),
        (Ok(CompareTarget::Mod), _) => number(version.mod_revision, None),
        (Ok(CompareTarget::Value), Some(TargetUnion::Value(given))) => version.value.cmp(given.as_ref()),
        (Ok(CompareTarget::Value), _) => version.value.cmp(&[][..]),
        (Ok(CompareTarget::Lease), Some(TargetUnion::Lease(given))) => number(version.lease, Some(*given)),
        (Ok(CompareTarget::Lease), _) => number(version.lease, None),
        (Err(_), _) => std::cmp::Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Err(_) => true,
    }
}
