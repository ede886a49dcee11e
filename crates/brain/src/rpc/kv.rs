//! The KV service.
//!
//! Reads are pinned to one revision. A read of one key is answered on the connection's task; ranges, and transactions that only read, run
//! on threads that may block and take their memory from the lists' budget. Writes go to the committer, whose thread answers them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use kubewharf_engine::Table;
use kubewharf_etcd_api::encode;
use kubewharf_etcd_api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest,
};
use kubewharf_grpc::{Reply, UnaryReply};
use prost::Message;

use super::budget::{Exceeded, Grant};
use super::list::{List, RANGE_TRAILER_LEN_MAX, Shape};
use super::server::Server;
use super::status::{self, status};
use super::work::{self, Caller, Step, Work, refusal};
use crate::committer::{WriteRequest, WriteResponse};
use crate::error::Error;
use crate::limits::{LIST_LOOK, PREFETCH_READS_MAX, READ_TXN_BYTES_MIN, READ_TXN_BYTES_STEP_MAX, TXN_INLINE_BYTES_MAX};
use crate::mvcc::{
    Evaluator, OneRow, Refusal, Revisions, Rows, SnapshotRows, is_read_only, query, range, single_keys, validate,
};

/// Serves Range.
pub(super) fn serve_range(server: &Arc<Server>, deadline: Option<Instant>, message: Bytes, reply: UnaryReply) {
    let request = match RangeRequest::decode(message) {
        Ok(request) => request,
        Err(error) => return reply.send(Err(status::malformed(&error))),
    };
    if let Err(error) = validate::check_range(&request) {
        return reply.send(Err(status(&error.into())));
    }
    server.metrics.ranges.increment();
    if request.range_end.is_empty() && !server.store.engine().reads_may_wait() {
        let get = || {
            let (revisions, snapshot) = server.store.view(Some(&request.key))?;
            get(server, &request, revisions, &SnapshotRows(snapshot.as_ref()))
        };
        return reply.send(get().map_err(|error| status(&error)));
    }
    let caller = Caller { reply, deadline };
    if request.range_end.is_empty() {
        work::start(server, Box::new(Get { request, grant: server.lists.grant() }), caller);
    } else {
        work::start(server, Box::new(List::whole(server, request)), caller);
    }
}

/// A read of one key of an engine that is behind a network.
struct Get {
    request: RangeRequest,
    /// Of which nothing is taken, as by the other reads of one key.
    grant: Grant,
}

impl Work for Get {
    fn page(&mut self, server: &Server) -> Result<Step, Error> {
        let request = &self.request;
        if request.revision <= 0
            && let Some((revisions, row)) = server.newest_of(&request.key, request.serializable)?
        {
            let row = OneRow { key: &request.key, row: row.as_deref() };
            return get(server, request, revisions, &row).map(Step::Done);
        }
        let (revisions, snapshot) = server.view(Some(&request.key), request.serializable)?;
        get(server, request, revisions, &SnapshotRows(snapshot.as_ref())).map(Step::Done)
    }

    fn grant(&mut self) -> &mut Grant {
        &mut self.grant
    }

    fn restart(&mut self) {}
}

/// Answers a read of one key.
fn get(server: &Server, request: &RangeRequest, revisions: Revisions, rows: &dyn Rows) -> Result<Reply, Error> {
    let revision = revisions.resolve(request.revision)?;
    let mut body = BytesMut::new();
    let header = server.header(revisions.newest);
    let query = query(request, revision);
    let shape = Shape::of(request);
    let outcome = range(rows, &query, &mut |key, version| {
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
pub(super) fn serve_txn(server: &Arc<Server>, deadline: Option<Instant>, message: Bytes, reply: UnaryReply) {
    server.metrics.txns.increment();
    if message.len() <= TXN_INLINE_BYTES_MAX {
        return begin_txn(server, deadline, message, reply);
    }
    // It may have so many parts that other calls of the connection would wait for it.
    let server = server.clone();
    let runtime = server.runtime.clone();
    runtime.spawn_blocking(move || begin_txn(&server, deadline, message, reply));
}

fn begin_txn(server: &Arc<Server>, deadline: Option<Instant>, message: Bytes, reply: UnaryReply) {
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
        let bytes = READ_TXN_BYTES_MIN.min(server.lists.bytes_max());
        let txn = ReadTxn { request, grant: server.lists.grant(), bytes };
        return work::start(server, Box::new(txn), Caller { reply, deadline });
    }
    match check_size(server, bytes).and_then(|()| server.quota.check_txn(&request)) {
        Ok(()) => submit(server, WriteRequest::Txn(request), bytes, reply),
        Err(error) => reply.send(Err(status(&error))),
    }
}

/// A transaction that only reads. It sees one snapshot, so it is evaluated in one go, and once more with more memory if that was not
/// enough.
struct ReadTxn {
    request: TxnRequest,
    grant: Grant,
    /// Memory for the response and its encoded form.
    bytes: usize,
}

impl Work for ReadTxn {
    fn page(&mut self, server: &Server) -> Result<Step, Error> {
        match self.grant.take(self.bytes) {
            Ok(()) => {}
            Err(Exceeded::NotNow) => return Ok(Step::Short(self.bytes)),
            Err(Exceeded::TooLarge) => return Err(refusal(server, &Exceeded::TooLarge)),
        }
        let (revisions, snapshot) = server.view(None, false)?;
        let mut keys = Vec::new();
        single_keys(&self.request, &mut keys);
        if (2..=PREFETCH_READS_MAX).contains(&keys.len()) {
            snapshot.prefetch(Table::Current, &keys)?;
        }
        // Encoded, nothing takes more than it does now.
        let response_bytes = self.bytes / 2;
        let evaluated =
            Evaluator::reader(&SnapshotRows(snapshot.as_ref()), revisions, response_bytes).txn(&self.request);
        drop(snapshot);
        let mut response = match evaluated {
            Ok(response) => response,
            Err(Refusal::ResponseTooLarge { .. }) => {
                self.grant.release(self.bytes);
                let more = (self.bytes * 3).min(READ_TXN_BYTES_STEP_MAX);
                // The last attempt is with all there is.
                let bytes_max = server.lists.bytes_max().max(self.bytes + 1);
                self.bytes = (self.bytes + more).min(bytes_max);
                return Ok(Step::Page);
            }
            Err(refusal) => return Err(refusal.into()),
        };
        response.header = Some(server.header(revisions.newest));
        let body = Bytes::from(response.encode_to_vec());
        drop(response);
        self.grant.release(self.bytes - body.len().min(self.bytes));
        self.grant.trim();
        let grant = std::mem::replace(&mut self.grant, server.lists.grant());
        Ok(Step::Done(Reply::from(body).with_guard(grant)))
    }

    fn grant(&mut self) -> &mut Grant {
        &mut self.grant
    }

    fn restart(&mut self) {
        self.grant = self.grant.another();
    }
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
    let store = &server.store;
    let reign = server.reign()?;
    store.write(WriteRequest::Compact { revision: request.revision }, 64).await?;
    if request.physical {
        let interrupted = tokio::select! {
            biased;
            () = store.published().wait_trimmed(request.revision) => None,
            why = store.failed() => Some(why),
            () = server.stopping.requested() => Some("the store is stopping".to_owned()),
            () = deposed(&server, reign) => Some("another member leads now, and goes on".to_owned()),
        };
        if let Some(why) = interrupted {
            return Err(Error::Unavailable(format!("compacted, but some rows are left for the next start: {why}")));
        }
    }
    Ok(CompactionResponse { header: Some(server.header(store.revisions().newest)) })
}

/// Waits until another member leads.
async fn deposed(server: &Server, reign: u64) {
    while server.reign().is_ok_and(|epoch| epoch == reign) {
        tokio::time::sleep(LIST_LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubewharf_engine::Cause;
    use kubewharf_engine::memory::{Fault, Faulty, Memory};

    use super::*;
    use crate::rpc::ServerOptions;
    use crate::{Store, StoreOptions};

    #[tokio::test]
    async fn a_wait_for_physical_compaction_ends_when_the_server_stops_or_the_store_fails() {
        for stops in [true, false] {
            let engine = Arc::new(Faulty::new(Memory::new()));
            let store = Store::open(engine.clone(), StoreOptions::default()).unwrap();
            let server = Server::new(store.clone(), ServerOptions::default());
            for _ in 0..2 {
                let put = PutRequest { key: "a".into(), ..PutRequest::default() };
                store.write(WriteRequest::Put(put), 1).await.unwrap();
            }
            // Nothing trims here.
            let compacting = tokio::spawn(compact(server.clone(), CompactionRequest { revision: 3, physical: true }));
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!compacting.is_finished());
            if stops {
                server.stopping().request();
            } else {
                engine.script([Fault::Die(Cause::Io("disk".to_owned()))]);
                let put = PutRequest { key: "a".into(), ..PutRequest::default() };
                store.write(WriteRequest::Put(put), 1).await.unwrap_err();
            }
            let ended = tokio::time::timeout(Duration::from_secs(20), compacting).await.expect("it ends").unwrap();
            assert!(matches!(ended, Err(Error::Unavailable(_))), "{ended:?}");
            store.close();
        }
    }
}
