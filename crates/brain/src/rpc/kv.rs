//! The KV service.
//!
//! Reads are pinned to one revision. A read of one key is answered on the connection's task; ranges run on threads that may block, and
//! their replies grow in chunks out of the lists' budget. Writes go to the committer, whose thread answers them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use kubewharf_engine::Direction;
use kubewharf_etcd_api::encode::{self, KeyValueRef};
use kubewharf_etcd_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest,
};
use kubewharf_grpc::{CallContext, Reply, RequestStream, ResponseSink, Status, UnaryReply};
use prost::Message;

use super::budget::{Exceeded, Grant};
use super::server::Server;
use super::status::{self, status};
use crate::committer::{WriteRequest, WriteResponse};
use crate::error::Error;
use crate::limits::{LIST_CHUNK_BYTES, LIST_WAIT, STREAM_CHUNK_BYTES};
use crate::mvcc::validate;
use crate::mvcc::{
    Evaluator, KeyRange, RangeEnd, RangeQuery, SnapshotRows, SortTarget, Version, is_read_only, omits_lease, query,
    range,
};

/// The most bytes that the fields behind the keys of a reply to Range take: a flag and a varint, each with a tag.
const RANGE_TRAILER_LEN_MAX: usize = 2 + 11;

/// Serves Range.
pub(super) fn serve_range(server: &Arc<Server>, message: Bytes, reply: UnaryReply) {
    let request = match RangeRequest::decode(message) {
        Ok(request) => request,
        Err(error) => return reply.send(Err(status::malformed(&error))),
    };
    if let Err(error) = validate::check_range(&request) {
        return reply.send(Err(status(&error.into())));
    }
    server.metrics.ranges.increment();
    if request.range_end.is_empty() && !server.store.engine().reads_may_wait() {
        return reply.send(get(server, &request).map_err(|error| status(&error)));
    }
    let server = server.clone();
    let runtime = server.runtime.clone();
    runtime.spawn_blocking(move || reply.send(list(&server, &request).map_err(|error| status(&error))));
}

/// Answers a read of one key.
fn get(server: &Server, request: &RangeRequest) -> Result<Reply, Error> {
    let revisions = server.store.revisions();
    let revision = revisions.resolve(request.revision)?;
    let snapshot = server.store.snapshot()?;
    check_kept(server, revision)?;
    let mut body = BytesMut::new();
    let header = server.header(revisions.newest);
    let query = query(request, revision);
    let shape = Shape::of(request);
    let outcome = range(&SnapshotRows(snapshot.as_ref()), &query, &mut |key, version| {
        let kv = shape.apply(key, version);
        body.reserve(encode::header_len(&header) + encode::range_kv_len(&kv) + RANGE_TRAILER_LEN_MAX);
        encode::put_header(&mut body, &header);
        encode::put_range_kv(&mut body, &kv);
        ControlFlow::Continue(())
    })?;
    if body.is_empty() {
        body.reserve(encode::header_len(&header) + RANGE_TRAILER_LEN_MAX);
        encode::put_header(&mut body, &header);
    }
    encode::put_range_trailer(&mut body, outcome.more, outcome.count);
    Ok(body.freeze().into())
}

/// Answers a read of a range.
fn list(server: &Server, request: &RangeRequest) -> Result<Reply, Error> {
    match try_list(server, request, None)? {
        Ok(reply) => Ok(reply),
        Err(_) => {
            let deadline = Instant::now() + LIST_WAIT;
            let lane = server.lists.enter_lane(LIST_WAIT);
            let reply = lane.as_ref().map(|_| try_list(server, request, Some(deadline))).transpose()?;
            match reply {
                Some(Ok(reply)) => Ok(reply),
                Some(Err(Exceeded::TooLarge)) => Err(Error::ListTooLarge { bytes_max: server.lists.bytes_max() }),
                Some(Err(_)) | None => Err(Error::ListsBusy { bytes_max: server.lists.bytes_max() }),
            }
        }
    }
}

/// Answers a list within the budget, or says how it does not suffice.
fn try_list(
    server: &Server,
    request: &RangeRequest,
    deadline: Option<Instant>,
) -> Result<Result<Reply, Exceeded>, Error> {
    let revisions = server.store.revisions();
    let revision = revisions.resolve(request.revision)?;
    let snapshot = server.store.snapshot()?;
    check_kept(server, revision)?;
    let shape = Shape::of(request);
    let mut chunks = Chunks::new(server.lists.grant(), deadline);
    let header = server.header(revisions.newest);
    chunks.reserve(encode::header_len(&header));
    encode::put_header(&mut chunks.current, &header);
    let mut query = query(request, revision);
    let counted = server.counts.get(&query);
    query.count_all = counted.is_none();
    let mut last_key = Vec::new();
    let mut passed: i64 = 0;
    let outcome = range(&SnapshotRows(snapshot.as_ref()), &query, &mut |key, version| {
        let kv = shape.apply(key, version);
        passed += 1;
        if query.limit != 0 && u64::try_from(passed).is_ok_and(|passed| passed == query.limit) {
            last_key.extend_from_slice(key);
        }
        if !chunks.reserve(encode::range_kv_len(&kv)) {
            return ControlFlow::Break(());
        }
        encode::put_range_kv(&mut chunks.current, &kv);
        ControlFlow::Continue(())
    })?;
    drop(snapshot);
    if let Some(exceeded) = chunks.exceeded {
        return Ok(Err(exceeded));
    }
    let count = counted.unwrap_or(outcome.count);
    let in_key_order = matches!(query.sort, None | Some((SortTarget::Key, Direction::Forward)));
    if outcome.more && in_key_order && !query.filters() {
        server.counts.put(&query, &last_key, count - passed);
    }
    if !chunks.reserve(RANGE_TRAILER_LEN_MAX) {
        return Ok(Err(chunks.exceeded.unwrap_or(Exceeded::NotNow)));
    }
    encode::put_range_trailer(&mut chunks.current, outcome.more, count);
    Ok(Ok(chunks.finish()))
}

/// Refuses a revision that was compacted before the snapshot in hand was taken: its rows may be gone from it.
fn check_kept(server: &Server, revision: i64) -> Result<(), Error> {
    if revision < server.store.revisions().compacted { Err(Error::Compacted) } else { Ok(()) }
}

/// What a reply leaves out of each key.
#[derive(Clone, Copy)]
struct Shape {
    keys_only: bool,
    omits_lease: bool,
}

impl Shape {
    fn of(request: &RangeRequest) -> Self {
        Self { keys_only: request.keys_only, omits_lease: omits_lease(request) }
    }

    #[inline]
    fn apply<'a>(self, key: &'a [u8], version: &Version<'a>) -> KeyValueRef<'a> {
        KeyValueRef {
            key,
            create_revision: version.create_revision,
            mod_revision: version.mod_revision,
            version: version.version,
            value: if self.keys_only { &[] } else { version.value },
            lease: if self.omits_lease { 0 } else { version.lease },
        }
    }
}

/// A reply that grows in chunks, so that it is never copied as a whole, out of the lists' budget.
struct Chunks {
    full: Vec<Bytes>,
    current: BytesMut,
    grant: Grant,
    deadline: Option<Instant>,
    exceeded: Option<Exceeded>,
}

impl Chunks {
    fn new(grant: Grant, deadline: Option<Instant>) -> Self {
        Self { full: Vec::new(), current: BytesMut::new(), grant, deadline, exceeded: None }
    }

    /// Makes room for `bytes` more; false if the budget has none.
    #[inline]
    fn reserve(&mut self, bytes: usize) -> bool {
        self.current.capacity() - self.current.len() >= bytes || self.next_chunk(bytes)
    }

    fn next_chunk(&mut self, bytes: usize) -> bool {
        // Small at first: most lists are.
        let size = (self.current.capacity() * 4).clamp(4096, LIST_CHUNK_BYTES).max(bytes);
        if let Err(exceeded) = self.grant.grow(size, self.deadline) {
            self.exceeded = Some(exceeded);
            return false;
        }
        let full = std::mem::replace(&mut self.current, BytesMut::with_capacity(size));
        if !full.is_empty() {
            self.full.push(full.freeze());
        }
        true
    }

    fn finish(self) -> Reply {
        let Self { mut full, current, grant, .. } = self;
        full.push(current.freeze());
        Reply::from_pieces(full).with_guard(grant)
    }
}

/// Serves RangeStream: the parts of one list, pinned to one revision, each on a snapshot of its own.
pub(super) async fn range_stream(
    server: Arc<Server>,
    _context: CallContext,
    mut requests: RequestStream,
    responses: ResponseSink,
) {
    let result = match requests.next().await {
        Some(Ok(message)) => stream_parts(&server, message, &responses).await,
        Some(Err(status)) => Err(status),
        None => Err(Status::internal("the request is missing")),
    };
    responses.finish(result.err().unwrap_or_else(Status::ok));
}

async fn stream_parts(server: &Arc<Server>, message: Bytes, responses: &ResponseSink) -> Result<(), Status> {
    let request = RangeRequest::decode(message).map_err(|error| status::malformed(&error))?;
    validate::check_range(&request).map_err(|error| status(&error.into()))?;
    let mut part = Part::begin(server, request).map_err(|error| status(&error))?;
    loop {
        let reader = server.clone();
        let (next, encoded) = tokio::task::spawn_blocking(move || {
            let encoded = part.read(&reader);
            (part, encoded)
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
        part = next;
        let body = encoded.map_err(|error| status(&error))?;
        if responses.send(body.into()).await.is_err() || part.done {
            return Ok(());
        }
    }
}

/// Where a streamed list stands.
struct Part {
    query: RangeQuery,
    shape: Shape,
    newest: i64,
    /// Keys still admitted by the limit.
    left: u64,
    passed: i64,
    done: bool,
}

impl Part {
    fn begin(server: &Server, request: RangeRequest) -> Result<Self, Error> {
        let shape = Shape::of(&request);
        let revisions = server.store.revisions();
        let revision = revisions.resolve(request.revision)?;
        let query = query(&request, revision);
        if !matches!(query.sort, None | Some((SortTarget::Key, Direction::Forward))) {
            return Err(Error::Unimplemented("RangeStream does not support custom sort orders"));
        }
        if query.filters() {
            return Err(Error::Unimplemented("RangeStream does not support revision filters"));
        }
        let left = if query.limit == 0 { u64::MAX } else { query.limit };
        Ok(Self { query, shape, newest: revisions.newest, left, passed: 0, done: false })
    }

    /// Encodes the next part; the last one bears the header and the count.
    fn read(&mut self, server: &Server) -> Result<Bytes, Error> {
        let snapshot = server.store.snapshot()?;
        check_kept(server, self.query.revision)?;
        let rows = SnapshotRows(snapshot.as_ref());
        let mut part = BytesMut::new();
        if self.query.count_only {
            let outcome = range(&rows, &self.query, &mut |_, _| ControlFlow::Continue(()))?;
            self.done = true;
            return Ok(self.encode(server, part, Some((false, outcome.count))));
        }
        let mut next_key = None;
        let mut more = false;
        let query = RangeQuery { limit: 0, count_all: false, ..self.query.clone() };
        range(&rows, &query, &mut |key, version| {
            if self.left == 0 || part.len() >= STREAM_CHUNK_BYTES {
                more = self.left == 0;
                next_key = Some(Bytes::copy_from_slice(key));
                return ControlFlow::Break(());
            }
            self.left -= 1;
            self.passed += 1;
            let kv = self.shape.apply(key, version);
            part.reserve(encode::range_kv_len(&kv));
            encode::put_range_kv(&mut part, &kv);
            ControlFlow::Continue(())
        })?;
        let Some(next_key) = next_key else {
            self.done = true;
            return Ok(self.encode(server, part, Some((false, self.passed))));
        };
        self.query.range = match &self.query.range.end {
            RangeEnd::Single => unreachable!("one key never needs a second part"),
            end => KeyRange { start: next_key, end: end.clone() },
        };
        if !more {
            return Ok(self.encode(server, part, None));
        }
        self.done = true;
        let rest = RangeQuery { count_only: true, ..self.query.clone() };
        let beyond = range(&rows, &rest, &mut |_, _| ControlFlow::Continue(()))?.count;
        Ok(self.encode(server, part, Some((true, self.passed + beyond))))
    }

    fn encode(&self, server: &Server, kvs: BytesMut, end: Option<(bool, i64)>) -> Bytes {
        let mut tail = BytesMut::new();
        if let Some((more, count)) = end {
            let header = server.header(self.newest);
            tail.reserve(encode::header_len(&header) + RANGE_TRAILER_LEN_MAX);
            encode::put_header(&mut tail, &header);
            encode::put_range_trailer(&mut tail, more, count);
        }
        let len = kvs.len() + tail.len();
        let mut body = BytesMut::with_capacity(encode::range_stream_head_len(len) + len);
        encode::put_range_stream_head(&mut body, len);
        body.extend_from_slice(&kvs);
        body.extend_from_slice(&tail);
        body.freeze()
    }
}

/// Serves Put.
pub(super) fn serve_put(server: &Arc<Server>, message: Bytes, reply: UnaryReply) {
    server.metrics.puts.increment();
    let bytes = message.len();
    let request = match PutRequest::decode(message) {
        Ok(request) => request,
        Err(error) => return reply.send(Err(status::malformed(&error))),
    };
    let checked = check_size(server, bytes)
        .and_then(|()| Ok(validate::check_put(&request, server.key_bytes_max)?))
        .and_then(|()| server.quota.check());
    match checked {
        Ok(()) => submit(server, WriteRequest::Put(request), bytes, reply),
        Err(error) => reply.send(Err(status(&error))),
    }
}

/// Serves DeleteRange.
pub(super) fn serve_delete_range(server: &Arc<Server>, message: Bytes, reply: UnaryReply) {
    server.metrics.deletes.increment();
    let bytes = message.len();
    let request = match DeleteRangeRequest::decode(message) {
        Ok(request) => request,
        Err(error) => return reply.send(Err(status::malformed(&error))),
    };
    match check_size(server, bytes).and_then(|()| Ok(validate::check_delete_range(&request)?)) {
        Ok(()) => submit(server, WriteRequest::DeleteRange(request), bytes, reply),
        Err(error) => reply.send(Err(status(&error))),
    }
}

/// Serves Txn.
pub(super) fn serve_txn(server: &Arc<Server>, message: Bytes, reply: UnaryReply) {
    server.metrics.txns.increment();
    let bytes = message.len();
    let request = match TxnRequest::decode(message) {
        Ok(request) => request,
        Err(error) => return reply.send(Err(status::malformed(&error))),
    };
    let operations_max = server.options.txn_operations_max;
    if let Err(error) = validate::check_txn(&request, operations_max, server.key_bytes_max) {
        return reply.send(Err(status(&error.into())));
    }
    if is_read_only(&request) {
        let server = server.clone();
        let runtime = server.runtime.clone();
        runtime.spawn_blocking(move || reply.send(read_txn(&server, &request).map_err(|error| status(&error))));
        return;
    }
    match check_size(server, bytes).and_then(|()| server.quota.check_txn(&request)) {
        Ok(()) => submit(server, WriteRequest::Txn(request), bytes, reply),
        Err(error) => reply.send(Err(status(&error))),
    }
}

fn read_txn(server: &Server, request: &TxnRequest) -> Result<Reply, Error> {
    let revisions = server.store.revisions();
    let snapshot = server.store.snapshot()?;
    let revisions = crate::mvcc::Revisions { compacted: server.store.revisions().compacted, ..revisions };
    let mut response = Evaluator::reader(&SnapshotRows(snapshot.as_ref()), revisions).txn(request)?;
    response.header = Some(server.header(revisions.newest));
    Ok(Bytes::from(response.encode_to_vec()).into())
}

/// etcd refuses a write whose encoded form is over the limit.
fn check_size(server: &Server, bytes: usize) -> Result<(), Error> {
    let bytes_max = server.options.request_bytes_max;
    if bytes > bytes_max { Err(Error::RequestTooLarge { bytes, bytes_max }) } else { Ok(()) }
}

fn submit(server: &Arc<Server>, request: WriteRequest, bytes: usize, reply: UnaryReply) {
    let answering = server.clone();
    server.store.submit(
        request,
        bytes,
        Box::new(move |result| {
            reply.send(result.map(|response| answer(&answering, response)).map_err(|error| status(&error)));
        }),
    );
}

fn answer(server: &Server, response: WriteResponse) -> Reply {
    let fill = |header: &mut Option<kubewharf_etcd_api::etcdserverpb::ResponseHeader>| {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(server.header(revision));
    };
    let body = match response {
        WriteResponse::Put(mut response) => {
            fill(&mut response.header);
            response.encode_to_vec()
        }
        WriteResponse::DeleteRange(mut response) => {
            fill(&mut response.header);
            response.encode_to_vec()
        }
        WriteResponse::Txn(mut response) => {
            fill(&mut response.header);
            response.encode_to_vec()
        }
        WriteResponse::LeaseGrant { .. } | WriteResponse::LeaseRevoke { .. } | WriteResponse::Done { .. } => {
            unreachable!("the committer answers a request with its own kind")
        }
    };
    Bytes::from(body).into()
}

/// Compacts; with `physical` the answer waits until the rows are gone.
pub(super) async fn compact(server: Arc<Server>, request: CompactionRequest) -> Result<CompactionResponse, Error> {
    server.store.write(WriteRequest::Compact { revision: request.revision }, 64).await?;
    if request.physical {
        server.store.published().wait_trimmed(request.revision).await;
    }
    Ok(CompactionResponse { header: Some(server.header(server.store.revisions().newest)) })
}
