//! The committer's promises on an engine that fails in every way that its contract allows.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kubewharf_brain::committer::{WriteRequest, WriteResponse};
use kubewharf_brain::mvcc::{KeyRange, RangeEnd, RangeQuery, SnapshotRows, range};
use kubewharf_brain::{Error, Store, StoreOptions};
use kubewharf_engine::memory::{Fault, Faulty, Memory};
use kubewharf_engine::{Batch, Cause, CommitError, Engine, EngineError, Limits, Size, Snapshot};
use kubewharf_etcd_api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::{Compare, PutRequest, RequestOp, TxnRequest};

fn put(key: String, value: String) -> PutRequest {
    PutRequest { key: Bytes::from(key), value: Bytes::from(value), ..PutRequest::default() }
}

/// kube-apiserver's create: put the key if it does not exist.
fn create(key: &str, value: &str) -> WriteRequest {
    WriteRequest::Txn(TxnRequest {
        compare: vec![Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: Bytes::copy_from_slice(key.as_bytes()),
            target_union: Some(TargetUnion::ModRevision(0)),
            ..Compare::default()
        }],
        success: vec![RequestOp { request: Some(Request::RequestPut(put(key.to_owned(), value.to_owned()))) }],
        failure: Vec::new(),
    })
}

fn open(engine: Arc<dyn Engine>) -> Arc<Store> {
    Store::open(engine, StoreOptions::default()).unwrap()
}

/// Everything there is: key to value and revision.
fn contents(store: &Store) -> HashMap<String, (String, i64)> {
    let snapshot = store.snapshot().unwrap();
    let all = KeyRange { start: Bytes::from_static(b"\0"), end: RangeEnd::Unbounded };
    let mut found = HashMap::new();
    range(&SnapshotRows(snapshot.as_ref()), &RangeQuery::all(all, store.revisions().newest), &mut |key, version| {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        found.insert(text(key), (text(version.value), version.mod_revision));
        ControlFlow::Continue(())
    })
    .unwrap();
    found
}

/// Eight writers at once, each creating its keys one after the other; gives the acknowledged keys with their revisions.
async fn storm(store: &Arc<Store>, round: &str, keys: usize) -> HashMap<String, i64> {
    let acknowledged = Arc::new(Mutex::new(HashMap::new()));
    let mut writers = Vec::new();
    for writer in 0..8 {
        let (store, acknowledged, round) = (store.clone(), acknowledged.clone(), round.to_owned());
        writers.push(tokio::spawn(async move {
            for number in 0..keys {
                let key = format!("{round}/{writer}/{number}");
                match store.write(create(&key, &key), 100).await {
                    Ok(WriteResponse::Txn(response)) => {
                        assert!(response.succeeded, "{key} is created once");
                        acknowledged.lock().unwrap().insert(key, response.header.unwrap().revision);
                    }
                    Ok(other) => panic!("unexpected {other:?}"),
                    Err(_) => {}
                }
            }
        }));
    }
    for writer in writers {
        writer.await.unwrap();
    }
    Arc::into_inner(acknowledged).unwrap().into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_stand_once_at_their_revision_whatever_the_engine_does() {
    for seed in 1..=12 {
        let engine = Arc::new(Faulty::seeded(Memory::new(), seed, 30));
        // Taking the store over must not meet a fault; the storm must.
        engine.script([Fault::None]);
        let store = open(engine.clone());
        let acknowledged = storm(&store, "a", 40).await;
        engine.deliver_postponed();
        assert!(store.failure().is_none(), "seed {seed}: {:?}", store.failure());
        let contents = contents(&store);
        let newest = store.revisions().newest;
        let mut revisions: Vec<i64> = contents.values().map(|(_, revision)| *revision).collect();
        revisions.sort_unstable();
        let dense: Vec<i64> = (2..=newest).collect();
        assert_eq!(revisions, dense, "seed {seed}: each revision is one created key");
        assert!(acknowledged.len() > 100, "seed {seed}: {} acknowledged", acknowledged.len());
        for (key, revision) in &acknowledged {
            assert_eq!(contents.get(key), Some(&(key.clone(), *revision)), "seed {seed}");
        }
        store.close();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_refused_write_takes_no_other_with_it() {
    let engine = Arc::new(Faulty::new(Memory::new()));
    let store = open(engine.clone());
    // The first commit is slow, so that the next batch has several writes; that one is refused whole, then one by one.
    engine.script([
        Fault::Delay(std::time::Duration::from_millis(50)),
        Fault::Refuse(Cause::TooLarge("batch".to_owned())),
        Fault::Refuse(Cause::NoSpace("row".to_owned())),
        Fault::None,
    ]);
    let refused = Arc::new(AtomicUsize::new(0));
    let mut writes = vec![tokio::spawn({
        let store = store.clone();
        async move { assert!(store.write(create("first", ""), 1).await.is_ok()) }
    })];
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    for number in 0..4 {
        let (store, refused) = (store.clone(), refused.clone());
        writes.push(tokio::spawn(async move {
            match store.write(create(&format!("key{number}"), ""), 1).await {
                Ok(_) => {}
                Err(Error::NoSpace(_)) => {
                    refused.fetch_add(1, Ordering::SeqCst);
                }
                Err(other) => panic!("unexpected {other}"),
            }
        }));
    }
    for write in writes {
        write.await.unwrap();
    }
    assert_eq!(refused.load(Ordering::SeqCst), 1);
    assert_eq!(contents(&store).len(), 4);
    assert_eq!(store.revisions().newest, 5);
    store.close();
}

/// Queues writes at once, behind a slow one, so that they share a batch; gives their outcomes.
async fn together(
    store: &Arc<Store>,
    writes: impl IntoIterator<Item = WriteRequest>,
) -> Vec<Result<WriteResponse, Error>> {
    let slow = tokio::spawn({
        let store = store.clone();
        async move { store.write(create("slow", ""), 1).await }
    });
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    let answers: Vec<_> = writes
        .into_iter()
        .map(|write| {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            store.submit(write, 1, Box::new(move |result| drop(sender.send(result))));
            receiver
        })
        .collect();
    slow.await.unwrap().unwrap();
    let mut outcomes = Vec::new();
    for answer in answers {
        outcomes.push(answer.await.unwrap());
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_rests_on_what_may_not_have_happened_is_not_given() {
    let engine = Arc::new(Faulty::new(Memory::new()));
    let store = open(engine.clone());
    store.write(WriteRequest::LeaseGrant { id: 7, ttl_seconds: 60 }, 1).await.unwrap();
    engine.script([Fault::Delay(std::time::Duration::from_millis(50)), Fault::Die(Cause::Io("simulated".to_owned()))]);
    let leased = |lease| WriteRequest::Put(PutRequest { lease, ..put("key".to_owned(), String::new()) });
    let revoke = WriteRequest::LeaseRevoke { id: 7, only_expired: false };
    let outcomes = together(&store, [revoke, leased(7)]).await;
    assert!(matches!(outcomes[0], Err(Error::OutcomeUnknown(_))), "{:?}", outcomes[0]);
    // Nothing was put, but whether there is no lease is not known.
    assert!(matches!(outcomes[1], Err(Error::Unavailable(_))), "{:?}", outcomes[1]);
    store.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_in_the_engine_stops_the_store_and_answers_everyone() {
    let engine = Arc::new(Faulty::new(Memory::new()));
    let store = open(engine.clone());
    engine.script([Fault::Delay(std::time::Duration::from_millis(50)), Fault::Panic]);
    for outcome in together(&store, [create("a", ""), create("b", "")]).await {
        assert!(matches!(outcome, Err(Error::OutcomeUnknown(_))), "{outcome:?}");
    }
    assert!(store.failed().await.contains("the engine panicked"));
    assert!(matches!(store.write(create("later", ""), 1).await, Err(Error::Unavailable(_))));
    store.close();
}

/// An engine whose batches are small.
struct Tight(Memory);

impl Engine for Tight {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.0.snapshot()
    }
    fn commit(&self, batch: &Batch) -> Result<(), CommitError> {
        self.limits().check(batch).map_err(CommitError::NotApplied)?;
        self.0.commit(batch)
    }
    fn limits(&self) -> Limits {
        Limits { batch_operations_max: 40, ..self.0.limits() }
    }
    fn size(&self) -> Result<Size, EngineError> {
        self.0.size()
    }
    fn backup(&self, target: &std::path::Path) -> Result<(), EngineError> {
        self.0.backup(target)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_with_more_keys_than_a_batch_takes_ends_in_parts_and_never_lives_with_some_of_them() {
    let engine = Arc::new(Tight(Memory::new()));
    let store = open(engine.clone());
    store.write(WriteRequest::LeaseGrant { id: 7, ttl_seconds: 1000 }, 1).await.unwrap();
    let leased =
        |number: usize| WriteRequest::Put(PutRequest { lease: 7, ..put(format!("leased{number:02}"), String::new()) });
    for number in 0..25 {
        store.write(leased(number), 1).await.unwrap();
    }
    store.write(create("other", ""), 1).await.unwrap();
    let revoke = |only_expired| WriteRequest::LeaseRevoke { id: 7, only_expired };
    let part = |outcome| match outcome {
        Ok(WriteResponse::LeaseRevoke { is_complete, .. }) => is_complete,
        other => panic!("unexpected {other:?}"),
    };
    assert!(part(store.write(revoke(true), 1).await), "it has not expired");
    assert_eq!(contents(&store).len(), 26);
    assert!(!part(store.write(revoke(false), 1).await));
    assert_eq!(contents(&store).len(), 16);
    assert!(matches!(store.write(leased(99), 1).await, Err(Error::LeaseNotFound)), "it takes no keys any more");
    // Also in the next process.
    let next = open(engine);
    let lease = next.published().leases().time_to_live(7).unwrap();
    assert_eq!((lease.remaining_seconds, lease.granted_seconds), (0, 1000));
    assert!(matches!(next.write(leased(99), 1).await, Err(Error::LeaseNotFound)));
    let granted = next.write(WriteRequest::LeaseGrant { id: 7, ttl_seconds: 60 }, 1).await;
    assert!(matches!(granted, Err(Error::LeaseExists)), "{granted:?}");
    assert!(!part(next.write(revoke(true), 1).await));
    assert!(part(next.write(revoke(true), 1).await));
    assert_eq!(contents(&next).into_keys().collect::<Vec<_>>(), ["other"]);
    assert_eq!(next.revisions().newest, 1 + 26 + 3);
    assert!(matches!(next.write(revoke(true), 1).await, Err(Error::LeaseNotFound)));
    store.close();
    next.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_lost_acknowledged_data_stops_the_store() {
    let engine = Arc::new(Memory::with_history(8));
    let store = open(engine.clone());
    for number in 0..4 {
        store.write(create(&format!("key{number}"), ""), 1).await.unwrap();
    }
    engine.roll_back(2).unwrap();
    let error = store.write(create("next", ""), 1).await.unwrap_err();
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert!(store.failed().await.contains("lost acknowledged data"));
    assert!(matches!(store.write(create("later", ""), 1).await, Err(Error::Unavailable(_))));
    store.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_was_taken_over_writes_no_more() {
    let engine = Arc::new(Memory::new());
    let old = open(engine.clone());
    old.write(create("before", "old"), 1).await.unwrap();
    let new = open(engine.clone());
    new.write(create("contested", "new"), 1).await.unwrap();
    assert!(old.write(create("contested", "old"), 1).await.is_err());
    assert!(old.failed().await.contains("took the store over"));
    let contents = contents(&new);
    assert_eq!(contents["contested"].0, "new");
    assert_eq!(contents["before"].0, "old");
    assert_eq!(new.revisions().newest, 3);
    old.close();
    new.close();
}
