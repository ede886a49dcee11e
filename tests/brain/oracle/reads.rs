//! Range and RangeStream: every option alone, and those together that meet in a server's code.

use kubewharf_etcd_api::etcdserverpb::{LeaseGrantRequest, PutRequest, RangeRequest};

use super::pair::Pair;
use super::recorder::Recorder;
use crate::client::{compact, delete, get, put, range};

/// Single key, ranges, the forms with `\0`, ranges that are empty or upside down.
const FORMS: &[(&str, &str)] = &[
    ("k/b", ""),
    ("k/none", ""),
    ("k/gone", ""),
    ("k/", "k0"),
    ("k/b", "k/d"),
    ("k/b\0", "k/d"),
    ("k/b", "k/b"),
    ("k/d", "k/b"),
    ("k/c", "\0"),
    ("\0", "\0"),
    ("\0", "k/b"),
    ("z", "\0"),
    ("k/b", "k/b\0"),
    ("k/b", "\0\0"),
];

/// Keys with versions, revisions of creation and of change, and values that each sort in another way; one deleted, one
/// deleted and created again, one with a lease. Takes 14 revisions.
async fn fill(recorder: &mut Recorder) {
    let _ = recorder.grant(LeaseGrantRequest { id: 77, ttl: 1000 }).await;
    for (key, value) in [
        ("k/d", "4"),
        ("k/a", "9"),
        ("k/c", ""),
        ("k/gone", "x"),
        ("k/b", "1"),
        ("k/d", "2"),
        ("k/a", "22"),
        ("k/d", "1"),
        ("k/f", "\u{1}"),
    ] {
        let _ = recorder.put(put(key, value)).await;
    }
    let _ = recorder.put(PutRequest { lease: 77, ..put("k/e", "5") }).await;
    let _ = recorder.delete_range(delete("k/gone")).await;
    let _ = recorder.delete_range(delete("k/f")).await;
    let _ = recorder.put(put("k/f", "9")).await;
    let _ = recorder.put(put("j", "before the others")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("forms, orders and limits", async |recorder| {
        fill(recorder).await;
        for &(key, end) in FORMS {
            for sort_target in 0..=4 {
                for sort_order in 0..=2 {
                    for limit in [0, 1, 3, 6, 7, -1] {
                        let request = RangeRequest { sort_target, sort_order, limit, ..range(key, end) };
                        let _ = recorder.range(request).await;
                    }
                }
            }
        }
    })
    .await;
    pair.same("forms at each revision", async |recorder| {
        fill(recorder).await;
        for &(key, end) in FORMS {
            for writes in 0..=15 {
                let request = RangeRequest { revision: recorder.at(writes), ..range(key, end) };
                let _ = recorder.range(request.clone()).await;
                let _ = recorder.range(RangeRequest { limit: 2, ..request.clone() }).await;
                let _ = recorder.range(RangeRequest { count_only: true, ..request.clone() }).await;
                let _ = recorder.range(RangeRequest { serializable: true, keys_only: true, ..request }).await;
            }
        }
    })
    .await;
    pair.same("keys only and count only", async |recorder| {
        fill(recorder).await;
        for &(key, end) in FORMS {
            for limit in [0, 2, 100] {
                for sort_target in [0, 1, 4] {
                    for (keys_only, count_only) in [(true, false), (false, true), (true, true)] {
                        for serializable in [false, true] {
                            let request = RangeRequest {
                                keys_only,
                                count_only,
                                limit,
                                sort_target,
                                serializable,
                                ..range(key, end)
                            };
                            let _ = recorder.range(request).await;
                        }
                    }
                }
            }
        }
    })
    .await;
    pair.same("bounds of revisions", async |recorder| {
        fill(recorder).await;
        let bounds = [0, recorder.at(2), recorder.at(6), recorder.at(8), recorder.at(100), -1];
        for min in bounds {
            for max in bounds {
                for limit in [0, 1, 2] {
                    let all = RangeRequest { limit, ..range("k/", "k0") };
                    let by_mod = RangeRequest { min_mod_revision: min, max_mod_revision: max, ..all.clone() };
                    let _ = recorder.range(by_mod.clone()).await;
                    let _ = recorder.range(RangeRequest { count_only: true, ..by_mod.clone() }).await;
                    let _ = recorder.range(RangeRequest { sort_target: 3, sort_order: 2, ..by_mod.clone() }).await;
                    let _ = recorder.range(RangeRequest { key: "k/a".into(), range_end: "".into(), ..by_mod }).await;
                    let by_create = RangeRequest { min_create_revision: min, max_create_revision: max, ..all.clone() };
                    let _ = recorder.range(by_create.clone()).await;
                    let _ = recorder.range(RangeRequest { keys_only: true, ..by_create }).await;
                    let both = RangeRequest { min_mod_revision: min, max_create_revision: max, ..all };
                    let _ = recorder.range(both).await;
                }
            }
        }
    })
    .await;
    pair.same("revisions that are none", async |recorder| {
        fill(recorder).await;
        for revision in [-1, i64::MIN, recorder.at(15), i64::MAX] {
            for request in [get("k/a"), get("k/none"), range("k/", "k0"), range("k/d", "k/b")] {
                for serializable in [false, true] {
                    let request = RangeRequest { revision, serializable, ..request.clone() };
                    let _ = recorder.range(RangeRequest { count_only: true, ..request.clone() }).await;
                    let _ = recorder.range(RangeRequest { keys_only: true, ..request.clone() }).await;
                    let _ = recorder.range(request).await;
                }
            }
        }
    })
    .await;
    pair.same("compacted revisions", async |recorder| {
        fill(recorder).await;
        let _ = recorder.compact(compact(recorder.at(6))).await;
        for writes in 0..=8 {
            for request in [get("k/a"), get("k/none"), range("k/", "k0"), range("k/d", "k/b")] {
                let request = RangeRequest { revision: recorder.at(writes), ..request };
                let _ = recorder.range(RangeRequest { count_only: true, ..request.clone() }).await;
                let _ = recorder.range(request).await;
            }
        }
    })
    .await;
    pair.same("requests that are wrong", async |recorder| {
        let _ = recorder.range(get("")).await;
        let _ = recorder.range(range("", "z")).await;
        for unknown in [-1, 3, 99] {
            let _ = recorder.range(RangeRequest { sort_order: unknown, ..get("a") }).await;
            let _ = recorder.range(RangeRequest { sort_target: unknown + 2, ..get("a") }).await;
            let _ = recorder.range(RangeRequest { sort_order: unknown, ..get("") }).await;
        }
        let _ = recorder.range(RangeRequest { limit: i64::MAX, ..range("a", "z") }).await;
        let _ = recorder.range(RangeRequest { limit: i64::MIN, ..range("a", "z") }).await;
    })
    .await;
    pair.same("keys and values of any bytes", async |recorder| {
        let keys: [&[u8]; 8] = [b"\0", b"\0\0", b"\0\x01", b"a\0", b"a\0\0b", b"\xff", b"\xff\xff", b"\xfe\xff\0"];
        for key in keys {
            let request = PutRequest { key: key.to_vec().into(), value: key.to_vec().into(), ..PutRequest::default() };
            let _ = recorder.put(request).await;
        }
        for key in keys {
            for end in [b"".as_slice(), b"\0", b"\xff", b"\xff\xff", b"a\0\0"] {
                let request = RangeRequest {
                    key: key.to_vec().into(),
                    range_end: end.to_vec().into(),
                    ..RangeRequest::default()
                };
                let _ = recorder.range(RangeRequest { sort_order: 2, ..request.clone() }).await;
                let _ = recorder.range(request).await;
            }
        }
    })
    .await;
    pair.finish("reads");
}

#[tokio::test(flavor = "multi_thread")]
async fn streamed_ranges_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("forms and limits of streams", async |recorder| {
        fill(recorder).await;
        for &(key, end) in FORMS {
            for limit in [0, 1, 3, 6, 7, -1, i64::MAX] {
                for revision in [0, recorder.at(6), recorder.at(14)] {
                    let request = RangeRequest { limit, revision, ..range(key, end) };
                    let _ = recorder.range_stream(request.clone()).await;
                    let _ = recorder.range_stream(RangeRequest { keys_only: true, ..request.clone() }).await;
                    let _ = recorder.range_stream(RangeRequest { serializable: true, ..request.clone() }).await;
                    let _ = recorder.range_stream(RangeRequest { count_only: true, ..request }).await;
                }
            }
        }
    })
    .await;
    pair.same("streams that are refused", async |recorder| {
        fill(recorder).await;
        let _ = recorder.compact(compact(recorder.at(6))).await;
        let all = range("k/", "k0");
        let _ = recorder.range_stream(get("")).await;
        let _ = recorder.range_stream(RangeRequest { sort_order: 7, ..all.clone() }).await;
        for sort_target in 0..=4 {
            for sort_order in 0..=2 {
                let _ = recorder.range_stream(RangeRequest { sort_target, sort_order, ..all.clone() }).await;
            }
        }
        let _ = recorder.range_stream(RangeRequest { min_mod_revision: 1, ..all.clone() }).await;
        let _ = recorder.range_stream(RangeRequest { max_mod_revision: 1, ..all.clone() }).await;
        let _ = recorder.range_stream(RangeRequest { min_create_revision: 1, ..all.clone() }).await;
        let _ = recorder.range_stream(RangeRequest { max_create_revision: 1, ..all.clone() }).await;
        for revision in [recorder.at(5), recorder.at(6), recorder.at(15), -1, i64::MAX] {
            let _ = recorder.range_stream(RangeRequest { revision, ..all.clone() }).await;
            let _ = recorder.range_stream(RangeRequest { revision, ..get("k/none") }).await;
        }
    })
    .await;
    pair.same("a list of many parts", async |recorder| {
        for number in 0..700 {
            let _ = recorder.put(put(&format!("k/{number:03}"), vec![b'x'; 5000])).await;
        }
        for limit in [0, 1, 10, 500, 699, 700, 701] {
            let _ = recorder.range_stream(RangeRequest { limit, ..range("k/", "k0") }).await;
            let _ = recorder.range(RangeRequest { limit, ..range("k/", "k0") }).await;
        }
        let _ = recorder.range_stream(RangeRequest { revision: recorder.at(300), ..range("k/", "k0") }).await;
    })
    .await;
    pair.finish("streams");
}
