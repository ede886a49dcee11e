//! kube-apiserver's requests, and the checks of their answers.
//!
//! The shapes are those of etcd's Go client for Kubernetes (`client/v3/kubernetes`, 3.6) and of the storage layer of
//! kube-apiserver 1.36.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use kubewharf_etcd_api::etcdserverpb::compare::{CompareTarget, TargetUnion};
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, RangeRequest,
    RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
};

use super::keys::prefix_end;
use crate::client::framed;
use crate::wire::{Fields, Value, field};

/// Reads one key.
pub fn get(key: Bytes) -> Bytes {
    framed(&RangeRequest { key, limit: 1, ..RangeRequest::default() })
}

/// Lists a prefix: from `start` in it, so many keys at most, as of a revision; 0 is no limit, and now.
pub fn list(prefix: &[u8], start: Bytes, limit: i64, revision: i64) -> Bytes {
    framed(&RangeRequest { key: start, range_end: prefix_end(prefix), limit, revision, ..RangeRequest::default() })
}

/// Makes an object if there is none of that key.
pub fn create(key: Bytes, value: Bytes, lease: i64) -> Bytes {
    txn(key.clone(), 0, put(key, value, lease), None)
}

/// Changes an object if its last change is that of the revision; else reads it.
pub fn update(key: Bytes, value: Bytes, revision: i64) -> Bytes {
    txn(key.clone(), revision, put(key.clone(), value, 0), Some(key))
}

/// Deletes an object if its last change is that of the revision; else reads it.
pub fn delete(key: Bytes, revision: i64) -> Bytes {
    let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
    txn(key.clone(), revision, Request::RequestDeleteRange(delete), Some(key))
}

/// Puts many objects at one revision. kube-apiserver sends no such thing: it is for loading.
pub fn put_all(objects: impl Iterator<Item = (Bytes, Bytes)>) -> Bytes {
    let success = objects.map(|(key, value)| op(put(key, value, 0))).collect();
    framed(&TxnRequest { success, ..TxnRequest::default() })
}

/// Watches a prefix from a revision on, with the values before each change.
pub fn watch(prefix: &[u8], start_revision: i64) -> Bytes {
    let create = WatchCreateRequest {
        key: Bytes::copy_from_slice(prefix),
        range_end: prefix_end(prefix),
        start_revision,
        prev_kv: true,
        progress_notify: true,
        ..WatchCreateRequest::default()
    };
    framed(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) })
}

/// Compacts at a revision.
pub fn compact(revision: i64) -> Bytes {
    framed(&CompactionRequest { revision, ..CompactionRequest::default() })
}

/// Grants a lease of that time to live, in seconds; the server chooses its number.
pub fn lease_grant(ttl_seconds: i64) -> Bytes {
    framed(&LeaseGrantRequest { ttl: ttl_seconds, ..LeaseGrantRequest::default() })
}

/// Renews a lease.
pub fn lease_keep_alive(id: i64) -> Bytes {
    framed(&LeaseKeepAliveRequest { id })
}

fn txn(key: Bytes, revision: i64, then: Request, else_get: Option<Bytes>) -> Bytes {
    let compare = Compare {
        target: CompareTarget::Mod as i32,
        key,
        target_union: Some(TargetUnion::ModRevision(revision)),
        ..Compare::default()
    };
    let get = |key| op(Request::RequestRange(RangeRequest { key, ..RangeRequest::default() }));
    let failure = else_get.map(get).into_iter().collect();
    framed(&TxnRequest { compare: vec![compare], success: vec![op(then)], failure })
}

fn put(key: Bytes, value: Bytes, lease: i64) -> Request {
    Request::RequestPut(PutRequest { key, value, lease, ..PutRequest::default() })
}

fn op(request: Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

/// Checks that a transaction took its first branch with that many answers in it; returns its revision.
///
/// # Errors
/// When it did not, or the answer is no transaction's.
pub fn check_txn(reply: &[u8], answers: usize) -> Result<i64> {
    let (mut revision, mut succeeded, mut found) = (0, false, 0);
    let mut fields = Fields::of(reply);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => revision = header_revision(value)?,
            2 => succeeded = value.number()? == 1,
            3 => found += 1,
            _ => {}
        }
    }
    ensure!(succeeded, "a compare failed at revision {revision}, although nobody else writes");
    ensure!(found == answers, "{found} answers in a transaction of {answers}");
    ensure!(revision > 0, "a transaction without a revision");
    Ok(revision)
}

/// Checks that a delete deleted one object.
///
/// # Errors
/// When it did not.
pub fn check_delete(reply: &[u8]) -> Result<i64> {
    let revision = check_txn(reply, 1)?;
    let answer = field(reply, 3)?.context("a transaction without an answer")?.bytes()?;
    let deleted = field(answer, 3)?.context("another answer than a delete's")?.bytes()?;
    let count = field(deleted, 2)?.map_or(Ok(0), Value::number)?;
    ensure!(count == 1, "{count} objects were deleted, not one");
    Ok(revision)
}

/// The revision of a response header.
///
/// # Errors
/// When the field is no header.
pub fn header_revision(header: Value<'_>) -> Result<i64> {
    field(header.bytes()?, 3)?.map_or(Ok(0), Value::signed)
}

/// A key with its value, as in lists and events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KeyValue<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The revision of its last change.
    pub mod_revision: i64,
    /// The value.
    pub value: &'a [u8],
}

impl<'a> KeyValue<'a> {
    /// Reads the message.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(message: Value<'a>) -> Result<Self> {
        let mut found = Self::default();
        let mut fields = Fields::of(message.bytes()?);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => found.key = value.bytes()?,
                3 => found.mod_revision = value.signed()?,
                5 => found.value = value.bytes()?,
                _ => {}
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use kubewharf_etcd_api::etcdserverpb::response_op::Response;
    use kubewharf_etcd_api::etcdserverpb::{
        DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, ResponseOp, TxnResponse,
    };
    use prost::Message as _;

    use super::*;

    fn answer(succeeded: bool, response: Response) -> Vec<u8> {
        let header = Some(ResponseHeader { revision: 12, ..ResponseHeader::default() });
        TxnResponse { header, succeeded, responses: vec![ResponseOp { response: Some(response) }] }.encode_to_vec()
    }

    #[test]
    fn only_an_answer_to_what_was_asked_passes() {
        let put = answer(true, Response::ResponsePut(PutResponse::default()));
        assert_eq!(check_txn(&put, 1).unwrap(), 12);
        assert!(check_txn(&put, 2).is_err());
        assert!(check_txn(&answer(false, Response::ResponseRange(RangeResponse::default())), 1).is_err());
        assert!(check_delete(&put).is_err());
        let deleted = |deleted| {
            answer(true, Response::ResponseDeleteRange(DeleteRangeResponse { deleted, ..Default::default() }))
        };
        assert_eq!(check_delete(&deleted(1)).unwrap(), 12);
        assert!(check_delete(&deleted(0)).is_err());
    }

    #[test]
    fn a_create_compares_with_revision_0_and_reads_nothing() {
        let bytes = create(Bytes::from_static(b"k"), Bytes::from_static(b"v"), 0);
        let txn = TxnRequest::decode(&bytes[5..]).unwrap();
        assert_eq!(txn.compare[0].target_union, Some(TargetUnion::ModRevision(0)));
        assert_eq!((txn.success.len(), txn.failure.len()), (1, 0));
        let bytes = delete(Bytes::from_static(b"k"), 7);
        let txn = TxnRequest::decode(&bytes[5..]).unwrap();
        assert_eq!((txn.success.len(), txn.failure.len()), (1, 1));
    }
}
