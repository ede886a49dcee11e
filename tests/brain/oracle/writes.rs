//! Put, DeleteRange and Compact, and the limits on the size of requests.

use kubewharf_etcd_api::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseTimeToLiveRequest, PutRequest,
    RangeRequest, TxnRequest,
};

use super::pair::Pair;
use super::recorder::Recorder;
use crate::client::{Operation, compact, delete, delete_range, get, put, range};

async fn show_all(recorder: &mut Recorder) {
    let _ = recorder.range(range("\0", "\0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("every option of a put", async |recorder| {
        let _ = recorder.grant(LeaseGrantRequest { id: 5, ttl: 1000 }).await;
        for key in ["new", "old"] {
            for prev_kv in [false, true] {
                for ignore_value in [false, true] {
                    for ignore_lease in [false, true] {
                        for value in ["", "v"] {
                            for lease in [0, 5, 6, -1] {
                                let _ = recorder.put(put("old", "before")).await;
                                let request =
                                    PutRequest { lease, prev_kv, ignore_value, ignore_lease, ..put(key, value) };
                                let _ = recorder.put(request).await;
                                show_all(recorder).await;
                                let _ = recorder.delete_range(delete("new")).await;
                            }
                        }
                    }
                }
            }
        }
    })
    .await;
    pair.same("a lease goes from key to key", async |recorder| {
        for id in [1, 2] {
            let _ = recorder.grant(LeaseGrantRequest { id, ttl: 1000 }).await;
        }
        for request in [
            PutRequest { lease: 1, ..put("a", "1") },
            PutRequest { lease: 1, ..put("b", "1") },
            PutRequest { lease: 2, ..put("a", "2") },
            PutRequest { ignore_lease: true, ..put("a", "3") },
            PutRequest { lease: 1, ignore_value: true, ..put("a", "") },
            put("b", "4"),
            PutRequest { ignore_lease: true, ignore_value: true, prev_kv: true, ..put("a", "") },
            PutRequest { ignore_lease: true, ..put("b", "5") },
        ] {
            let _ = recorder.put(request).await;
            for id in [1, 2] {
                let _ = recorder.lease_time_to_live(LeaseTimeToLiveRequest { id, keys: true }).await;
            }
        }
        show_all(recorder).await;
    })
    .await;
    pair.same("puts of deleted keys", async |recorder| {
        for _ in 0..3 {
            let _ = recorder.put(put("a", "1")).await;
            let _ = recorder.put(PutRequest { prev_kv: true, ..put("a", "1") }).await;
            let _ = recorder.delete_range(delete("a")).await;
            let _ = recorder.delete_range(delete("a")).await;
            let _ = recorder.put(PutRequest { ignore_value: true, ..put("a", "") }).await;
            let _ = recorder.put(PutRequest { ignore_lease: true, ..put("a", "1") }).await;
            let _ = recorder.put(PutRequest { prev_kv: true, ..put("a", "2") }).await;
        }
        for writes in 0..=16 {
            let _ = recorder.range(RangeRequest { revision: recorder.at(writes), ..get("a") }).await;
        }
    })
    .await;
    pair.same("puts that are wrong", async |recorder| {
        for key in ["", "a"] {
            for (ignore_value, ignore_lease) in [(false, false), (true, false), (false, true), (true, true)] {
                let request = PutRequest { lease: 9, ignore_value, ignore_lease, ..put(key, "v") };
                let _ = recorder.put(request.clone()).await;
                let _ = recorder.put(PutRequest { lease: 0, ..request.clone() }).await;
                let _ = recorder.put(PutRequest { value: "".into(), ..request }).await;
            }
        }
        show_all(recorder).await;
    })
    .await;
    pair.finish("puts");
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("forms of deletions", async |recorder| {
        for (key, end) in [
            ("b", ""),
            ("none", ""),
            ("a", "c"),
            ("b", "b"),
            ("c", "a"),
            ("c", "\0"),
            ("\0", "\0"),
            ("z", "\0"),
            ("b", "b\0"),
            ("", ""),
            ("", "z"),
            ("", "\0"),
        ] {
            for prev_kv in [false, true] {
                for key in ["d", "a", "c", "b", "b/x"] {
                    let _ = recorder.put(put(key, key)).await;
                }
                let request = DeleteRangeRequest { prev_kv, ..delete_range(key, end) };
                let _ = recorder.delete_range(request.clone()).await;
                let _ = recorder.delete_range(request).await;
                show_all(recorder).await;
            }
        }
    })
    .await;
    pair.same("deletions and leases", async |recorder| {
        let _ = recorder.grant(LeaseGrantRequest { id: 8, ttl: 1000 }).await;
        for key in ["a", "b", "c"] {
            let _ = recorder.put(PutRequest { lease: 8, ..put(key, "1") }).await;
        }
        let _ = recorder.delete_range(DeleteRangeRequest { prev_kv: true, ..delete_range("a", "c") }).await;
        let _ = recorder.lease_time_to_live(LeaseTimeToLiveRequest { id: 8, keys: true }).await;
        let _ = recorder.put(put("a", "2")).await;
        let _ = recorder.lease_time_to_live(LeaseTimeToLiveRequest { id: 8, keys: true }).await;
    })
    .await;
    pair.finish("deletions");
}

#[tokio::test(flavor = "multi_thread")]
async fn compactions_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("an empty store", async |recorder| {
        // Before anything else on these stores, but for what each scenario begins with.
        let _ = recorder.compact(compact(0)).await;
        let _ = recorder.compact(compact(-1)).await;
        let _ = recorder.compact(compact(recorder.at(1))).await;
        let _ = recorder.range(RangeRequest { revision: recorder.at(0), ..range("\0", "\0") }).await;
    })
    .await;
    pair.same("compactions up and down", async |recorder| {
        for value in 0..10 {
            let _ = recorder.put(put("a", value.to_string())).await;
            let _ = recorder.put(put(&format!("b{value}"), "1")).await;
        }
        let _ = recorder.delete_range(delete_range("b", "b5")).await;
        for (writes, physical) in
            [(4, false), (4, false), (3, true), (8, true), (8, true), (7, false), (20, false), (22, false), (21, true)]
        {
            let request = CompactionRequest { revision: recorder.at(writes), physical };
            let _ = recorder.compact(request).await;
            for writes in [3, 4, 7, 8, 19, 20, 21, 22] {
                let _ = recorder.range(RangeRequest { revision: recorder.at(writes), ..range("a", "z") }).await;
                let _ = recorder.range(RangeRequest { revision: recorder.at(writes), ..get("b1") }).await;
            }
            show_all(recorder).await;
        }
        let _ = recorder.compact(compact(i64::MAX)).await;
    })
    .await;
    pair.same("keys live through compaction", async |recorder| {
        let _ = recorder.put(put("kept", "1")).await;
        let _ = recorder.put(put("changed", "1")).await;
        let _ = recorder.put(put("deleted", "1")).await;
        let _ = recorder.put(put("again", "1")).await;
        let _ = recorder.put(put("changed", "2")).await;
        let _ = recorder.delete_range(delete("deleted")).await;
        let _ = recorder.delete_range(delete("again")).await;
        let _ = recorder.put(put("again", "2")).await;
        for writes in 1..=8 {
            let request = CompactionRequest { revision: recorder.at(writes), physical: true };
            let _ = recorder.compact(request).await;
            for read in writes..=8 {
                let _ = recorder.range(RangeRequest { revision: recorder.at(read), ..range("\0", "\0") }).await;
            }
        }
        let _ = recorder.put(put("deleted", "3")).await;
        show_all(recorder).await;
    })
    .await;
    pair.same("hashes of revisions", async |recorder| {
        for value in 0..6 {
            let _ = recorder.put(put("a", value.to_string())).await;
        }
        let compaction = CompactionRequest { revision: recorder.at(3), physical: true };
        let _ = recorder.compact(compaction).await;
        for revision in [0, -1, recorder.at(2), recorder.at(4), recorder.at(6), recorder.at(7)] {
            let _ = recorder.hash_kv(HashKvRequest { revision }).await;
        }
    })
    .await;
    pair.same("the hash of the compacted revision", async |recorder| {
        let _ = recorder.put(put("a", "1")).await;
        let compaction = CompactionRequest { revision: recorder.at(1), physical: true };
        let _ = recorder.compact(compaction).await;
        let _ = recorder.hash_kv(HashKvRequest { revision: recorder.at(1) }).await;
    })
    .await;
    pair.finish("compactions");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_requests_are_answered_as_by_etcd() {
    const MIB: usize = 1 << 20;
    let mut pair = Pair::start(&[]);
    pair.same("values around the largest", async |recorder| {
        for bytes in [MIB, 3 * MIB / 2 - 1000, 3 * MIB / 2 + 1000, 2 * MIB - 1000, 2 * MIB + 1000, 5 * MIB] {
            let _ = recorder.put(put("a", vec![b'x'; bytes])).await;
            let _ = recorder.range(RangeRequest { keys_only: true, ..get("a") }).await;
        }
    })
    .await;
    pair.same("reads and watches are not limited", async |recorder| {
        for number in 0..8 {
            let _ = recorder.put(put(&format!("k{number}"), vec![b'a' + number; MIB])).await;
        }
        let _ = recorder.range(range("k", "l")).await;
        let _ = recorder.range_stream(range("k", "l")).await;
        let _ = recorder.delete_range(DeleteRangeRequest { prev_kv: true, ..delete_range("k", "l") }).await;
    })
    .await;
    pair.finish("large");
    let mut pair = Pair::start(&["--max-request-bytes=10000", "--max-txn-ops=3"]);
    pair.same("a smaller limit", async |recorder| {
        for bytes in [9_000, 11_000, 500_000, 540_000] {
            let _ = recorder.put(put("a", vec![b'x'; bytes])).await;
        }
        for count in [3, 4] {
            let success = (0..count).map(|number| put(&format!("k{number}"), "1").op()).collect();
            let _ = recorder.txn(TxnRequest { success, ..TxnRequest::default() }).await;
        }
    })
    .await;
    pair.finish("large, with flags");
}
