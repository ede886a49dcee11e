//! Lists over the wire: their memory, their waiting, and the revision that they show.

use std::time::Duration;

use kubewharf_brain::config::{Config, EngineKind};
use kubewharf_etcd_api::etcdserverpb::request_op::Request;
use kubewharf_etcd_api::etcdserverpb::{
    CompactionRequest, HashKvRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
};
use tonic::{Code, Status};

use crate::product::Served;

const SOON: Duration = Duration::from_secs(20);
/// More than a client's HTTP/2 layer takes from a stream that is not read.
const UNREAD_KEYS: usize = 60;

async fn serve(list_bytes_max: usize) -> Served {
    let drain_timeout = Duration::from_secs(300);
    Served::start(Config { engine: EngineKind::Memory, list_bytes_max, drain_timeout, ..Config::default() }).await
}

/// Puts this many keys with values of 100 kB.
async fn fill(served: &Served, keys: usize) {
    for number in 0..keys {
        let put = PutRequest {
            key: format!("/{number:03}").into(),
            value: vec![b'x'; 100_000].into(),
            ..PutRequest::default()
        };
        served.kv().put(put).await.unwrap();
    }
}

fn all() -> RangeRequest {
    RangeRequest { key: "/".into(), range_end: "0".into(), ..RangeRequest::default() }
}

async fn list(served: &Served, request: RangeRequest) -> Result<RangeResponse, Status> {
    served.kv().range(request).await.map(tonic::Response::into_inner)
}

/// A transaction that reads a range several times.
async fn read_txn(served: &Served, request: RangeRequest, times: usize) -> Result<TxnResponse, Status> {
    let read = RequestOp { request: Some(Request::RequestRange(request)) };
    let txn = TxnRequest { success: vec![read; times], ..TxnRequest::default() };
    served.kv().max_decoding_message_size(usize::MAX).txn(txn).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_more_memory_than_all_lists_may_is_refused_and_leaves_none_taken() {
    let served = serve(1 << 20).await;
    fill(&served, 20).await;
    let by_revision = RangeRequest { sort_target: 3, sort_order: 2, ..all() };
    for _ in 0..3 {
        for too_large in [list(&served, all()).await, list(&served, by_revision.clone()).await] {
            let refused = too_large.unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted);
            assert!(refused.message().contains("--list-bytes-max"), "{}", refused.message());
        }
        let refused = read_txn(&served, all(), 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("--list-bytes-max"), "{}", refused.message());
        let refused = read_txn(&served, RangeRequest { limit: 1, ..all() }, 100).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);

        let page = list(&served, RangeRequest { limit: 4, ..all() }).await.unwrap();
        assert_eq!((page.kvs.len(), page.count, page.more), (4, 20, true));
        let newest = list(&served, RangeRequest { limit: 2, ..by_revision.clone() }).await.unwrap();
        assert_eq!(newest.kvs.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"/019", b"/018"]);
        assert_eq!((newest.count, newest.more), (20, true));
        let read = read_txn(&served, RangeRequest { limit: 1, ..all() }, 4).await.unwrap();
        assert_eq!(read.responses.len(), 4);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_wait_without_threads_for_memory_that_a_client_leaves_unread() {
    let served = serve(1_100_000).await;
    fill(&served, UNREAD_KEYS).await;
    // A part takes nearly all.
    let unread = served.kv().range_stream(all()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut lists = Vec::new();
    for number in 0..600 {
        let mut kv = served.kv();
        lists.push(tokio::spawn(async move {
            let request = RangeRequest { limit: 3, ..all() };
            if number % 4 != 0 {
                return kv.range(request).await.map(|list| list.into_inner().kvs.len());
            }
            let read = RequestOp { request: Some(Request::RequestRange(request)) };
            let txn = TxnRequest { success: vec![read], ..TxnRequest::default() };
            kv.txn(txn).await.map(|txn| 2 + txn.into_inner().responses.len())
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(lists.iter().all(|list| !list.is_finished()), "there is no memory");
    // This needs a thread that may block.
    let mut maintenance = served.maintenance();
    let hash = maintenance.hash_kv(HashKvRequest { revision: 0 });
    tokio::time::timeout(SOON, hash).await.expect("threads are left").unwrap();
    let later = PutRequest { key: "/".into(), ..PutRequest::default() };
    served.kv().put(later).await.unwrap();
    drop(unread);
    for list in lists {
        let keys = tokio::time::timeout(SOON, list).await.expect("memory was given back").unwrap().unwrap();
        assert_eq!(keys, 3);
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_that_wait_for_memory_are_told_at_once_that_the_store_stops() {
    let served = serve(1_100_000).await;
    fill(&served, UNREAD_KEYS).await;
    let unread = served.kv().range_stream(all()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut kv = served.kv();
    let list = tokio::spawn(async move { kv.range(RangeRequest { limit: 3, ..all() }).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let stopping = tokio::spawn(served.stop());
    let refused = tokio::time::timeout(SOON, list).await.expect("it is told").unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    drop(unread);
    stopping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_newest_revision_is_never_compacted() {
    // Enough for a list of several pages.
    const KEYS: usize = 40_000;
    let served = Served::in_memory().await;
    for first in (0..KEYS).step_by(100) {
        let puts = (first..first + 100).map(|number| {
            let put = PutRequest { key: format!("/{number}").into(), ..PutRequest::default() };
            RequestOp { request: Some(Request::RequestPut(put)) }
        });
        served.kv().txn(TxnRequest { success: puts.collect(), ..TxnRequest::default() }).await.unwrap();
    }
    let mut kv = served.kv();
    let writer = tokio::spawn(async move {
        loop {
            let put = PutRequest { key: "/0".into(), ..PutRequest::default() };
            let revision = kv.put(put).await.unwrap().into_inner().header.unwrap().revision;
            kv.compact(CompactionRequest { revision, physical: false }).await.unwrap();
        }
    });
    for _ in 0..20 {
        let read = tokio::join!(
            list(&served, RangeRequest { keys_only: true, ..all() }),
            list(&served, RangeRequest { count_only: true, ..all() }),
            list(&served, RangeRequest { limit: 1, ..all() }),
            list(&served, RangeRequest { key: "/0".into(), ..RangeRequest::default() }),
            read_txn(&served, RangeRequest { count_only: true, ..all() }, 1),
        );
        let (keys, count, page, get) = (read.0.unwrap(), read.1.unwrap(), read.2.unwrap(), read.3.unwrap());
        assert_eq!(keys.kvs.len(), KEYS);
        assert_eq!((keys.count, count.count, page.count, get.count), (40_000, 40_000, 40_000, 1));
        // One revision, that of the header.
        let newest = keys.kvs.iter().map(|kv| kv.mod_revision).max();
        assert_eq!(newest, Some(keys.header.unwrap().revision));
        read.4.unwrap();
    }
    writer.abort();
    served.stop().await;
}
