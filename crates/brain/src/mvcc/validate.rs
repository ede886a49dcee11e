//! Checks of requests that need no state, with etcd's errors.

use std::collections::HashSet;

use bytes::Bytes;
use kubewharf_etcd_api::etcdserverpb::range_request::{SortOrder, SortTarget};
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::error::Invalid;

/// Checks a Range request.
pub fn check_range(request: &RangeRequest) -> Result<(), Invalid> {
    if request.key.is_empty() {
        return Err(Invalid::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(Invalid::SortOption);
    }
    Ok(())
}

/// Checks a Put request; keys longer than `key_bytes_max` are refused alike on every engine.
pub fn check_put(request: &PutRequest, key_bytes_max: usize) -> Result<(), Invalid> {
    if request.key.is_empty() {
        return Err(Invalid::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Invalid::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Invalid::LeaseProvided);
    }
    if request.key.len() > key_bytes_max {
        return Err(Invalid::KeyTooLong { bytes: request.key.len(), bytes_max: key_bytes_max });
    }
    Ok(())
}

/// Checks a DeleteRange request.
pub fn check_delete_range(request: &DeleteRangeRequest) -> Result<(), Invalid> {
    if request.key.is_empty() { Err(Invalid::EmptyKey) } else { Ok(()) }
}

/// Checks a Txn request: its size, each part, and that no key is written twice.
pub fn check_txn(request: &TxnRequest, operations_max: usize, key_bytes_max: usize) -> Result<(), Invalid> {
    check_txn_parts(request, operations_max, operations_max, key_bytes_max)?;
    check_overlaps(&request.success)?;
    check_overlaps(&request.failure)?;
    Ok(())
}

fn check_txn_parts(
    request: &TxnRequest,
    operations_left: usize,
    operations_max: usize,
    key_bytes_max: usize,
) -> Result<(), Invalid> {
    let operations = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = operations_left.checked_sub(operations) else {
        return Err(Invalid::TooManyOperations { operations_max });
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Invalid::EmptyKey);
    }
    for operation in request.success.iter().chain(&request.failure) {
        match &operation.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put, key_bytes_max)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete_range(delete)?,
            Some(Request::RequestTxn(nested)) => check_txn_parts(nested, left, operations_max, key_bytes_max)?,
            None => return Err(Invalid::EmptyOperation),
        }
    }
    Ok(())
}

/// A deletion's interval as etcd compares it here: a range end of `\0` is taken as that very key, not as "no end".
struct Deleted {
    start: Bytes,
    end: Option<Bytes>,
}

impl Deleted {
    fn covers(&self, key: &Bytes) -> bool {
        match &self.end {
            None => self.start == key,
            Some(end) => self.start <= *key && end > key,
        }
    }
}

/// The keys put and deleted by operations that may run together; an error if one key is written twice.
fn check_overlaps(operations: &[RequestOp]) -> Result<(HashSet<Bytes>, Vec<Deleted>), Invalid> {
    let mut deleted: Vec<Deleted> = Vec::new();
    for operation in operations {
        if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
            let end = Some(delete.range_end.clone()).filter(|end| !end.is_empty());
            deleted.push(Deleted { start: delete.key.clone(), end });
        }
    }
    let mut puts: HashSet<Bytes> = HashSet::new();
    for operation in operations {
        let Some(Request::RequestTxn(nested)) = &operation.request else { continue };
        let (then_puts, then_deleted) = check_overlaps(&nested.success)?;
        let (else_puts, else_deleted) = check_overlaps(&nested.failure)?;
        for key in &then_puts {
            if puts.contains(key) || deleted.iter().any(|deleted| deleted.covers(key)) {
                return Err(Invalid::DuplicateKey);
            }
        }
        for key in &else_puts {
            // The two branches exclude each other, so both may put the same key.
            let put_before = puts.contains(key) && !then_puts.contains(key);
            if put_before || deleted.iter().any(|deleted| deleted.covers(key)) {
                return Err(Invalid::DuplicateKey);
            }
        }
        puts.extend(then_puts);
        puts.extend(else_puts);
        deleted.extend(then_deleted);
        deleted.extend(else_deleted);
    }
    for operation in operations {
        if let Some(Request::RequestPut(put)) = &operation.request {
            let again = !puts.insert(put.key.clone());
            if again || deleted.iter().any(|deleted| deleted.covers(&put.key)) {
                return Err(Invalid::DuplicateKey);
            }
        }
    }
    Ok((puts, deleted))
}
