//! Damaged rows on a real disk: each fails what needs it, and nothing else.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kubewharf_brain::committer::{WriteRequest, WriteResponse};
use kubewharf_brain::{Error, Store, StoreOptions, compaction};
use kubewharf_engine::lmdb::{Lmdb, Options};
use kubewharf_etcd_api::etcdserverpb::compare::CompareTarget;
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};

fn open(directory: &Path) -> Arc<Store> {
    let engine = Lmdb::open(Options { map_size_bytes: 64 << 20, ..Options::new(directory) }).unwrap();
    Store::open(Arc::new(engine), StoreOptions::default()).unwrap()
}

fn put(key: &str, value: &str, lease: i64) -> PutRequest {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    PutRequest { key, value, lease, prev_kv: true, ..PutRequest::default() }
}

fn delete(key: &'static str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() }
}

async fn write(store: &Store, request: WriteRequest) -> Result<WriteResponse, Error> {
    store.write(request, 1).await
}

/// Changes a byte of each place where a closed store's file has these values.
fn damage(directory: &Path, values: &[&str]) {
    let path = directory.join("data.mdb");
    let mut content = fs::read(&path).unwrap();
    for value in values {
        let places: Vec<usize> = (0..content.len() - value.len())
            .filter(|at| content[*at] == value.as_bytes()[0] && content[*at..].starts_with(value.as_bytes()))
            .collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|at| content[at] ^= 0x20);
    }
    fs::write(&path, content).unwrap();
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>, key: &str) {
    match outcome {
        Err(Error::Corrupt(text)) => assert!(text.contains(&format!("{key:?}")), "{text}"),
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_fails_what_needs_it_alone_and_its_key_can_be_deleted() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    write(&store, WriteRequest::LeaseGrant { id: 7, ttl_seconds: 1000 }).await.unwrap();
    for number in 0..8 {
        write(&store, WriteRequest::Put(put("busy", &format!("busy value {number}"), 0))).await.unwrap();
    }
    for (key, lease) in [("bad", 0), ("good", 0), ("leased", 7), ("tombstone", 0)] {
        write(&store, WriteRequest::Put(put(key, &format!("value of {key}"), lease))).await.unwrap();
    }
    write(&store, WriteRequest::DeleteRange(delete("tombstone"))).await.unwrap();
    store.close();
    drop(store);
    // Of the last key only rows of the log are left, and of the busy one all but the newest is there only.
    let busy: Vec<String> = (0..7).map(|number| format!("busy value {number}")).collect();
    let damaged =
        ["value of bad", "value of leased", "value of tombstone"].into_iter().chain(busy.iter().map(String::as_str));
    damage(directory.path(), &damaged.collect::<Vec<_>>());

    let store = open(directory.path());
    refused(write(&store, WriteRequest::Put(put("bad", "new", 0))).await, "bad");
    let compare = Compare { key: "bad".into(), target: CompareTarget::Mod.into(), ..Compare::default() };
    let success = vec![RequestOp { request: Some(Request::RequestPut(put("good", "new", 0))) }];
    let txn = TxnRequest { compare: vec![compare], success, failure: Vec::new() };
    refused(write(&store, WriteRequest::Txn(txn)).await, "bad");
    refused(
        write(&store, WriteRequest::DeleteRange(DeleteRangeRequest { prev_kv: true, ..delete("bad") })).await,
        "bad",
    );
    let everything = DeleteRangeRequest { range_end: "z".into(), ..delete("a") };
    refused(write(&store, WriteRequest::DeleteRange(everything)).await, "bad");
    // Others go on, also those whose past is damaged.
    for (key, value) in [("good", "value of good"), ("busy", "busy value 7")] {
        match write(&store, WriteRequest::Put(put(key, "new", 0))).await {
            Ok(WriteResponse::Put(response)) => assert_eq!(response.prev_kv.unwrap().value, value),
            other => panic!("unexpected {other:?}"),
        }
    }
    let newest = store.revisions().newest;
    match write(&store, WriteRequest::DeleteRange(delete("bad"))).await {
        Ok(WriteResponse::DeleteRange(response)) => {
            assert_eq!((response.deleted, response.header.unwrap().revision), (1, newest + 1));
        }
        other => panic!("unexpected {other:?}"),
    }
    match write(&store, WriteRequest::Put(put("bad", "new", 0))).await {
        Ok(WriteResponse::Put(response)) => assert_eq!(response.prev_kv, None),
        other => panic!("unexpected {other:?}"),
    }
    let revoked = write(&store, WriteRequest::LeaseRevoke { id: 7, only_expired: false }).await;
    assert!(matches!(revoked, Ok(WriteResponse::LeaseRevoke { is_complete: true, .. })), "{revoked:?}");
    match write(&store, WriteRequest::DeleteRange(DeleteRangeRequest { prev_kv: true, ..delete("leased") })).await {
        Ok(WriteResponse::DeleteRange(response)) => assert_eq!(response.deleted, 0, "it went with its lease"),
        other => panic!("unexpected {other:?}"),
    }

    let newest = store.revisions().newest;
    write(&store, WriteRequest::Compact { revision: newest }).await.unwrap();
    let trimming = tokio::spawn(compaction::run(store.clone()));
    let trimmed = tokio::time::timeout(Duration::from_secs(20), store.published().wait_trimmed(newest)).await;
    trimmed.expect("damaged rows of the log go with the others");
    trimming.abort();
    assert_eq!(store.failure(), None);
    store.close();
}

/// The damage may be in the row's checksum, or in the key that it names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_although_a_row_that_attaches_a_key_to_it_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let keys = ["held-a", "held-m", "held-z"];
    for lease in [7, 8] {
        write(&store, WriteRequest::LeaseGrant { id: lease, ttl_seconds: 1000 }).await.unwrap();
        for key in keys {
            write(&store, WriteRequest::Put(put(&format!("{key}-of-{lease}"), "value", lease))).await.unwrap();
        }
    }
    store.close();
    drop(store);
    let path = directory.path().join("data.mdb");
    let mut content = fs::read(&path).unwrap();
    // LMDB's key, which ends with the number of the part; the checksum is the value's beginning.
    let mut change = |lease: i64, key: &str, at: usize| {
        let row = [&lease.to_be_bytes()[..], key.as_bytes(), &[0, 0]].concat();
        let places: Vec<usize> = (0..content.len() - row.len()).filter(|at| content[*at..].starts_with(&row)).collect();
        assert!(!places.is_empty());
        places.into_iter().for_each(|place| content[place + at] ^= 1);
    };
    change(7, "held-m-of-7", 8 + "held-m-of-7".len() + 2);
    // It names "held-l" now.
    change(8, "held-m-of-8", 8 + "held-".len());
    fs::write(&path, content).unwrap();

    let store = open(directory.path());
    for (lease, deleted) in [(7, 3), (8, 2)] {
        let revoked = write(&store, WriteRequest::LeaseRevoke { id: lease, only_expired: false }).await;
        assert!(matches!(revoked, Ok(WriteResponse::LeaseRevoke { is_complete: true, .. })), "{revoked:?}");
        let mut found = 0;
        for key in keys {
            let key = Bytes::from(format!("{key}-of-{lease}"));
            let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
            match write(&store, WriteRequest::DeleteRange(delete)).await {
                Ok(WriteResponse::DeleteRange(response)) => found += response.deleted,
                other => panic!("unexpected {other:?}"),
            }
        }
        assert_eq!(found, keys.len() as i64 - deleted, "lease {lease}");
        let again = write(&store, WriteRequest::LeaseRevoke { id: lease, only_expired: false }).await;
        assert!(matches!(again, Err(Error::LeaseNotFound)), "{again:?}");
    }
    assert_eq!(store.published().leases().counters().damaged_attachments(), 2);
    assert_eq!(store.failure(), None);
    store.close();
}
