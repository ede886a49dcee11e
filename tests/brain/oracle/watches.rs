//! Watch: how watches begin and end, what they deliver, and what they say about progress.

use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, TxnRequest, WatchCancelRequest,
    WatchCreateRequest,
};

use super::pair::Pair;
use super::recorder::Recorder;
use super::watching::{WHOLE_STREAM, Watching};
use crate::client::{Operation, compact, delete, delete_range, put};

const NO_PUT: i32 = 0;
const NO_DELETE: i32 = 1;

fn key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..WatchCreateRequest::default() }
}

fn keys(from: &str, end: &str) -> WatchCreateRequest {
    WatchCreateRequest { range_end: end.to_owned().into(), ..key(from) }
}

fn then(success: Vec<kubewharf_etcd_api::etcdserverpb::RequestOp>) -> TxnRequest {
    TxnRequest { success, ..TxnRequest::default() }
}

/// Every kind of change, in 9 revisions.
async fn change(recorder: &mut Recorder) {
    let _ = recorder.grant(LeaseGrantRequest { id: 31, ttl: 1000 }).await;
    let _ = recorder.put(put("a", "1")).await;
    let _ = recorder.put(PutRequest { lease: 31, ..put("b", "1") }).await;
    let _ = recorder.put(put("a", "2")).await;
    let _ = recorder.txn(then(vec![put("a", "3").op(), put("c", "1").op(), delete("b").op()])).await;
    let _ = recorder.delete_range(delete("a")).await;
    let _ = recorder.put(put("a", "4")).await;
    let _ = recorder.put(PutRequest { lease: 31, ..put("c", "2") }).await;
    let _ = recorder.delete_range(delete_range("a", "d")).await;
    let _ = recorder.put(put("d", "1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_begin_and_end_as_in_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("ids", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, key("a")).await;
        watching.create(recorder, key("a")).await;
        watching.create(recorder, WatchCreateRequest { watch_id: 7, ..key("a") }).await;
        watching.create(recorder, WatchCreateRequest { watch_id: 7, ..key("b") }).await;
        watching.create(recorder, WatchCreateRequest { watch_id: 3, ..key("a") }).await;
        watching.create(recorder, WatchCreateRequest { watch_id: -5, ..key("a") }).await;
        watching.create(recorder, WatchCreateRequest { watch_id: i64::MAX, ..key("a") }).await;
        for _ in 0..4 {
            watching.create(recorder, key("b")).await;
        }
        watching.cancel(recorder, 7).await;
        watching.create(recorder, WatchCreateRequest { watch_id: 7, ..key("b") }).await;
        watching.cancel(recorder, 0).await;
        watching.create(recorder, key("b")).await;
        let _ = recorder.put(put("b", "1")).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("two streams have ids of their own", async |recorder| {
        let mut first = Watching::open(recorder);
        let mut second = Watching::open(recorder);
        first.create(recorder, WatchCreateRequest { watch_id: 4, ..key("a") }).await;
        second.create(recorder, WatchCreateRequest { watch_id: 4, ..key("a") }).await;
        second.cancel(recorder, 4).await;
        let _ = recorder.put(put("a", "1")).await;
        first.events(recorder, 4, 1).await;
        first.rest(recorder).await;
        second.create(recorder, key("zz")).await;
        second.rest(recorder).await;
    })
    .await;
    pair.same("cancels of what is not there", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, key("a")).await;
        for watch_id in [1, -1, 99, i64::MIN] {
            watching.send(Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id })));
        }
        watching.rest(recorder).await;
        watching.cancel(recorder, 0).await;
        watching.send(Some(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 })));
        watching.send(None);
        let _ = recorder.put(put("a", "1")).await;
        watching.create(recorder, key("b")).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("ranges that are none, and the empty key", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, keys("b", "a")).await;
        watching.silent(recorder).await;
        for (from, end) in [("a", "\0"), ("b", "b"), ("", ""), ("", "a"), ("", "\0"), ("\0", "\0"), ("b", "b\0")] {
            watching.create(recorder, keys(from, end)).await;
            // etcd takes the empty key for `\0`, the smallest one.
            let _ = recorder.put(put("\0", from)).await;
            let _ = recorder.put(put("b", end)).await;
            watching.rest(recorder).await;
        }
    })
    .await;
    pair.same("revisions to begin at", async |recorder| {
        change(recorder).await;
        let _ = recorder.compact(compact(recorder.at(3))).await;
        let starts = [
            0,
            -1,
            i64::MIN,
            1,
            recorder.at(2),
            recorder.at(3),
            recorder.at(4),
            recorder.at(9),
            recorder.at(10),
            recorder.at(12),
            i64::MAX,
        ];
        for start_revision in starts {
            let mut watching = Watching::open(recorder);
            let request = WatchCreateRequest { start_revision, ..keys("a", "z") };
            let id = watching.create(recorder, request).await;
            if (1..=recorder.at(2)).contains(&start_revision) {
                watching.control(recorder, "the compacted watch's end").await;
            }
            if (recorder.at(3)..=recorder.at(9)).contains(&start_revision) {
                // The first event of a revision that is kept.
                watching.events(recorder, id, 1).await;
            }
            watching.create(recorder, WatchCreateRequest { start_revision, ..key("none") }).await;
            // Neither a stream without watches nor one with a watch that waits for the future tells how far it is.
            if start_revision > recorder.at(9) || (start_revision != 0 && start_revision < recorder.at(3)) {
                watching.silent(recorder).await;
            } else {
                watching.rest(recorder).await;
            }
        }
        let mut watching = Watching::open(recorder);
        let start_revision = recorder.at(12);
        watching.create(recorder, WatchCreateRequest { start_revision, ..keys("a", "z") }).await;
        for value in 0..5 {
            let _ = recorder.put(put("a", value.to_string())).await;
        }
        watching.events(recorder, 0, 3).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("a stream whose client sends nothing more", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, key("a")).await;
        watching.close_requests();
        watching.end(recorder).await;
    })
    .await;
    pair.finish("watches begin");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_deliver_what_etcd_delivers() {
    let mut pair = Pair::start(&[]);
    pair.same("options, live", async |recorder| {
        let mut watching = Watching::open(recorder);
        for filters in [vec![], vec![NO_PUT], vec![NO_DELETE], vec![NO_PUT, NO_DELETE], vec![9], vec![NO_PUT, NO_PUT]] {
            for prev_kv in [false, true] {
                for (from, end) in [("a", ""), ("b", ""), ("a", "c"), ("\0", "\0")] {
                    let request = WatchCreateRequest { filters: filters.clone(), prev_kv, ..keys(from, end) };
                    watching.create(recorder, request).await;
                }
            }
        }
        change(recorder).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("options, from the past", async |recorder| {
        change(recorder).await;
        for filters in [vec![], vec![NO_PUT], vec![NO_DELETE]] {
            for prev_kv in [false, true] {
                for (from, end) in [("a", ""), ("c", ""), ("a", "c"), ("\0", "\0")] {
                    let mut watching = Watching::open(recorder);
                    for writes in 1..=9 {
                        let start_revision = recorder.at(writes);
                        let request =
                            WatchCreateRequest { filters: filters.clone(), prev_kv, start_revision, ..keys(from, end) };
                        watching.create(recorder, request).await;
                    }
                    watching.rest(recorder).await;
                }
            }
        }
    })
    .await;
    pair.same("previous values that are compacted", async |recorder| {
        let _ = recorder.put(put("a", "1")).await;
        let _ = recorder.put(put("b", "1")).await;
        let _ = recorder.put(put("a", "2")).await;
        let _ = recorder.delete_range(delete("b")).await;
        let _ = recorder.put(put("a", "3")).await;
        for writes in 2..=5 {
            let _ = recorder.compact(compact(recorder.at(writes))).await;
            let mut watching = Watching::open(recorder);
            let start_revision = recorder.at(writes);
            let request = WatchCreateRequest { start_revision, prev_kv: true, ..keys("\0", "\0") };
            watching.create(recorder, request).await;
            watching.rest(recorder).await;
        }
    })
    .await;
    pair.same("a transaction is delivered as a whole", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, keys("k", "l")).await;
        let puts = (0..100).map(|number| put(&format!("k{number:03}"), number.to_string()).op()).collect();
        let _ = recorder.txn(then(puts)).await;
        watching.events(recorder, 0, 100).await;
        watching.spread(recorder);
        let _ = recorder.delete_range(delete_range("k", "k050")).await;
        let moves = vec![delete_range("k05", "k06").op(), put("k9", "1").op(), delete_range("k06", "k07").op()];
        let _ = recorder.txn(then(moves)).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("leases that end take their keys with them", async |recorder| {
        let _ = recorder.grant(LeaseGrantRequest { id: 9, ttl: 1000 }).await;
        let mut watching = Watching::open(recorder);
        watching.create(recorder, WatchCreateRequest { prev_kv: true, ..keys("\0", "\0") }).await;
        for name in ["d", "a", "c", "b"] {
            let _ = recorder.put(PutRequest { lease: 9, ..put(name, name) }).await;
        }
        let _ = recorder.lease_revoke(LeaseRevokeRequest { id: 9 }).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("writes that change nothing are not delivered", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, keys("\0", "\0")).await;
        let _ = recorder.delete_range(delete("none")).await;
        let _ = recorder.txn(then(vec![delete("none").op()])).await;
        let _ = recorder.grant(LeaseGrantRequest { id: 9, ttl: 1000 }).await;
        let _ = recorder.lease_revoke(LeaseRevokeRequest { id: 9 }).await;
        let _ = recorder.compact(compact(recorder.at(0))).await;
        let _ = recorder.put(put("a", "1")).await;
        let _ = recorder.put(put("a", "1")).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("a key put and deleted by one transaction", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, WatchCreateRequest { prev_kv: true, ..keys("\0", "\0") }).await;
        let _ = recorder.put(put("b", "1")).await;
        // Only a range end of `\0` lets etcd's own check pass.
        let _ = recorder.txn(then(vec![put("b", "2").op(), delete_range("a", "\0").op()])).await;
        let _ = recorder.txn(then(vec![put("c", "1").op(), delete_range("a", "\0").op()])).await;
        let _ = recorder.txn(then(vec![delete_range("a", "\0").op(), put("b", "3").op()])).await;
        watching.rest(recorder).await;
        for writes in 0..=4 {
            let revision = recorder.at(writes);
            let all = crate::client::range("\0", "\0");
            let _ = recorder.range(kubewharf_etcd_api::etcdserverpb::RangeRequest { revision, ..all }).await;
        }
    })
    .await;
    pair.finish("watches deliver");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_and_fragments_are_those_of_etcd() {
    let mut pair = Pair::start(&["--watch-progress-notify-interval=300ms"]);
    pair.same("progress on request", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, keys("a", "b")).await;
        watching.progress(recorder).await;
        let _ = recorder.put(put("a", "1")).await;
        let _ = recorder.put(put("z", "1")).await;
        watching.progress(recorder).await;
        watching.events(recorder, 0, 1).await;
        watching.create(recorder, keys("z", "\0")).await;
        let _ = recorder.put(put("z", "2")).await;
        watching.rest(recorder).await;
        watching.cancel(recorder, 0).await;
        watching.rest(recorder).await;
    })
    .await;
    pair.same("progress by itself", async |recorder| {
        let mut watching = Watching::open(recorder);
        let id = watching.create(recorder, WatchCreateRequest { progress_notify: true, ..key("a") }).await;
        let quiet = watching.create(recorder, key("a")).await;
        let _ = recorder.put(put("b", "1")).await;
        let told = recorder.at(1);
        watching.told(recorder, id, told).await;
        let _ = recorder.put(put("a", "1")).await;
        watching.events(recorder, quiet, 1).await;
        let told = recorder.at(2);
        watching.told(recorder, id, told).await;
    })
    .await;
    pair.same("fragments", async |recorder| {
        const BYTES: usize = 700 << 10;
        let mut whole = Watching::open(recorder);
        whole.create(recorder, WatchCreateRequest { prev_kv: true, ..keys("k", "l") }).await;
        let mut parts = Watching::open(recorder);
        parts.create(recorder, WatchCreateRequest { prev_kv: true, fragment: true, ..keys("k", "l") }).await;
        for number in 0..8_u8 {
            let _ = recorder.put(put(&format!("k{number}"), vec![b'a' + number; BYTES])).await;
            whole.events(recorder, 0, 1).await;
            parts.events(recorder, 0, 1).await;
        }
        whole.spread(recorder);
        parts.spread(recorder);
        let _ = recorder.delete_range(DeleteRangeRequest { prev_kv: false, ..delete_range("k", "l") }).await;
        whole.events(recorder, 0, 8).await;
        whole.spread(recorder);
        parts.events(recorder, 0, 8).await;
        parts.spread(recorder);
    })
    .await;
    pair.same("a stream of all watches that end", async |recorder| {
        let mut watching = Watching::open(recorder);
        watching.create(recorder, key("a")).await;
        watching.cancel(recorder, 0).await;
        let id = watching.create(recorder, key("a")).await;
        recorder.note("the next id", id);
        assert_ne!(id, WHOLE_STREAM);
        watching.cancel(recorder, id).await;
    })
    .await;
    pair.finish("progress");
}
