//! Checks of requests that need no state, with etcd's errors.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

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
    for branch in [&request.success, &request.failure] {
        // What nearly all transactions have overlaps with nothing.
        if let [] | [RequestOp { request: Some(Request::RequestPut(_) | Request::RequestRange(_)) }] = branch[..] {
            continue;
        }
        check_overlaps(branch)?;
    }
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

/// What operations that may run together write.
#[derive(Default)]
struct Written<'r> {
    puts: BTreeSet<&'r [u8]>,
    deleted: BTreeSet<&'r [u8]>,
    deleted_ranges: Intervals<'r>,
}

impl<'r> Written<'r> {
    /// Whether a key that `other` puts is put or deleted here too.
    ///
    /// The work is in proportion to the smaller of the two, and so is [`Written::merge`]'s: however deep a key lies, it is looked at a few
    /// times only.
    fn collides(&self, other: &Self) -> bool {
        meet(&self.puts, &other.puts) || meet(&self.deleted, &other.puts) || self.deleted_ranges.meet(&other.puts)
    }

    fn put(&mut self, key: &'r [u8]) -> Result<(), Invalid> {
        let again = !self.puts.insert(key);
        if again || self.deleted.contains(key) || self.deleted_ranges.cover(key) {
            return Err(Invalid::DuplicateKey);
        }
        Ok(())
    }

    fn delete(&mut self, request: &'r DeleteRangeRequest) {
        // Here etcd takes a range end of `\0` as that very key, not as "no end".
        match request.range_end.as_ref() {
            [] => drop(self.deleted.insert(&request.key)),
            end => self.deleted_ranges.insert(&request.key, end),
        }
    }

    fn merge(&mut self, other: Self) {
        merge(&mut self.puts, other.puts);
        merge(&mut self.deleted, other.deleted);
        let mut ranges = other.deleted_ranges;
        if self.deleted_ranges.ends.len() < ranges.ends.len() {
            std::mem::swap(&mut self.deleted_ranges, &mut ranges);
        }
        for (start, end) in ranges.ends {
            self.deleted_ranges.insert(start, end);
        }
    }
}

fn meet(a: &BTreeSet<&[u8]>, b: &BTreeSet<&[u8]>) -> bool {
    let (few, many) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    few.iter().any(|key| many.contains(key))
}

fn merge<'r>(into: &mut BTreeSet<&'r [u8]>, mut keys: BTreeSet<&'r [u8]>) {
    if into.len() < keys.len() {
        std::mem::swap(into, &mut keys);
    }
    into.extend(keys);
}

/// Intervals of keys, joined where they touch.
#[derive(Default)]
struct Intervals<'r> {
    /// The first key behind each interval, by its start.
    ends: BTreeMap<&'r [u8], &'r [u8]>,
}

impl<'r> Intervals<'r> {
    fn insert(&mut self, mut start: &'r [u8], mut end: &'r [u8]) {
        if end <= start {
            return;
        }
        // Those that it touches become one with it, the last of them first.
        while let Some((&other_start, &other_end)) = self.ends.range(..=end).next_back()
            && other_end >= start
        {
            self.ends.remove(other_start);
            start = start.min(other_start);
            end = end.max(other_end);
        }
        self.ends.insert(start, end);
    }

    fn cover(&self, key: &[u8]) -> bool {
        let up_to_key = (Bound::Unbounded, Bound::Included(key));
        self.ends.range::<[u8], _>(up_to_key).next_back().is_some_and(|(_, end)| key < *end)
    }

    fn meet(&self, keys: &BTreeSet<&[u8]>) -> bool {
        if keys.len() <= self.ends.len() {
            return keys.iter().any(|key| self.cover(key));
        }
        self.ends.iter().any(|(start, end)| keys.range(*start..*end).next().is_some())
    }
}

/// The keys put and deleted by operations that may run together; an error if one key is written twice.
fn check_overlaps(operations: &[RequestOp]) -> Result<Written<'_>, Invalid> {
    let mut written = Written::default();
    for operation in operations {
        if let Some(Request::RequestDeleteRange(delete)) = &operation.request {
            written.delete(delete);
        }
    }
    for operation in operations {
        let Some(Request::RequestTxn(nested)) = &operation.request else { continue };
        // The two branches exclude each other, so both may put the same key.
        let branches = [check_overlaps(&nested.success)?, check_overlaps(&nested.failure)?];
        if branches.iter().any(|branch| written.collides(branch)) {
            return Err(Invalid::DuplicateKey);
        }
        branches.into_iter().for_each(|branch| written.merge(branch));
    }
    for operation in operations {
        if let Some(Request::RequestPut(put)) = &operation.request {
            written.put(&put.key)?;
        }
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    /// A deletion's interval.
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

    /// What [`check_overlaps`] finds, as etcd's code goes about it.
    fn model(operations: &[RequestOp]) -> Result<(HashSet<Bytes>, Vec<Deleted>), Invalid> {
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
            let (then_puts, then_deleted) = model(&nested.success)?;
            let (else_puts, else_deleted) = model(&nested.failure)?;
            for key in &then_puts {
                if puts.contains(key) || deleted.iter().any(|deleted| deleted.covers(key)) {
                    return Err(Invalid::DuplicateKey);
                }
            }
            for key in &else_puts {
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

    fn put(key: Vec<u8>) -> RequestOp {
        let put = PutRequest { key: key.into(), ..PutRequest::default() };
        RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn delete(key: Vec<u8>, range_end: Vec<u8>) -> RequestOp {
        let delete = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false };
        RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        let txn = TxnRequest { compare: Vec::new(), success, failure };
        RequestOp { request: Some(Request::RequestTxn(txn)) }
    }

    fn operations() -> impl Strategy<Value = Vec<RequestOp>> {
        let key = || proptest::collection::vec(0_u8..3, 1..4);
        let end = prop_oneof![Just(Vec::new()), Just(vec![0]), key()];
        let leaf = prop_oneof![3 => key().prop_map(put), 1 => (key(), end).prop_map(|(key, end)| delete(key, end))];
        let leaf = leaf.boxed();
        let level = proptest::collection::vec(leaf.clone(), 0..3);
        level.prop_recursive(3, 16, 3, move |inner| {
            let txn = (inner.clone(), inner).prop_map(|(success, failure)| nested(success, failure));
            proptest::collection::vec(prop_oneof![leaf.clone(), txn], 0..4)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn keys_that_are_written_twice_are_found_as_etcd_finds_them(operations in operations()) {
            prop_assert_eq!(check_overlaps(&operations).err(), model(&operations).err());
        }
    }

    #[test]
    fn a_large_transaction_takes_about_as_long_to_check_as_its_keys_to_sort() {
        // Compared each with each, these would take minutes.
        let key = |number: u32| number.to_be_bytes().to_vec();
        let deletes = (0..150_000).map(|number| delete(key(number * 4), key(number * 4 + 1))).collect();
        let points = (0..150_000).map(|number| delete(key(number * 4 + 1), Vec::new())).collect();
        let puts = (0..150_000).map(|number| put(key(number * 4 + 2))).collect();
        let mut deep = vec![put(key(3))];
        for number in 1..60 {
            deep = vec![nested(deep, vec![put(key(number * 4 + 3))])];
        }
        let operations = [nested(deletes, points), nested(puts, deep)];
        assert_eq!(check_overlaps(&operations).err(), None);
        let [deletes, puts] = operations;
        assert_eq!(check_overlaps(&[deletes, puts, put(key(599_996))]).err(), Some(Invalid::DuplicateKey));
    }
}
