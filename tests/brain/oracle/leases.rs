//! Leases: grants, renewals, what is told about them, and how they end.

use std::time::{Duration, Instant};

use kubewharf_etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, PutRequest, WatchCreateRequest,
};

use super::pair::Pair;
use super::recorder::Recorder;
use super::watching::Watching;
use crate::client::{delete, delete_range, put, range};

async fn show(recorder: &mut Recorder, id: i64) {
    for keys in [false, true] {
        let _ = recorder.lease_time_to_live(LeaseTimeToLiveRequest { id, keys }).await;
    }
}

async fn show_all(recorder: &mut Recorder) {
    let _ = recorder.lease_leases(LeaseLeasesRequest {}).await;
    let _ = recorder.range(range("\0", "\0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_are_answered_as_by_etcd() {
    let mut pair = Pair::start(&[]);
    pair.same("grants", async |recorder| {
        for ttl in [100, 1, 2, 3, 0, -1, i64::MIN, 9_000_000_000, 9_000_000_001, i64::MAX] {
            for id in [0, 40, -40, i64::MAX, i64::MIN] {
                let granted = recorder.grant(LeaseGrantRequest { id, ttl }).await;
                if let Ok(granted) = granted {
                    recorder.note("the id is positive if the store chose it", id != 0 || granted.id > 0);
                    if granted.ttl > 60 {
                        show(recorder, granted.id).await;
                    }
                    let _ = recorder.grant(LeaseGrantRequest { id: granted.id, ttl: 5 }).await;
                    let _ = recorder.lease_revoke(LeaseRevokeRequest { id: granted.id }).await;
                }
            }
        }
        show_all(recorder).await;
    })
    .await;
    pair.same("what is not there", async |recorder| {
        for id in [0, 5, -5, i64::MAX] {
            let _ = recorder.lease_revoke(LeaseRevokeRequest { id }).await;
            let _ = recorder.keep_alive(id).await;
            show(recorder, id).await;
        }
        show_all(recorder).await;
    })
    .await;
    pair.same("keys come and go", async |recorder| {
        for id in [1, 2] {
            let _ = recorder.grant(LeaseGrantRequest { id, ttl: 200 * id }).await;
        }
        show_all(recorder).await;
        for request in [
            PutRequest { lease: 1, ..put("c", "1") },
            PutRequest { lease: 1, ..put("a", "1") },
            PutRequest { lease: 2, ..put("b", "1") },
            PutRequest { lease: 1, ..put("a", "2") },
            PutRequest { lease: 2, ..put("a", "3") },
            put("c", "2"),
            PutRequest { ignore_lease: true, ..put("b", "2") },
        ] {
            let _ = recorder.put(request).await;
            show(recorder, 1).await;
            show(recorder, 2).await;
        }
        let _ = recorder.delete_range(delete("b")).await;
        show(recorder, 2).await;
        let _ = recorder.put(put("b", "3")).await;
        show(recorder, 2).await;
        let _ = recorder.lease_revoke(LeaseRevokeRequest { id: 1 }).await;
        show_all(recorder).await;
        let _ = recorder.lease_revoke(LeaseRevokeRequest { id: 2 }).await;
        let _ = recorder.lease_revoke(LeaseRevokeRequest { id: 2 }).await;
        show_all(recorder).await;
        // The same id again knows nothing of the keys it once had.
        let _ = recorder.grant(LeaseGrantRequest { id: 2, ttl: 500 }).await;
        show(recorder, 2).await;
    })
    .await;
    pair.same("a lease with many keys ends at one revision", async |recorder| {
        let _ = recorder.grant(LeaseGrantRequest { id: 6, ttl: 100 }).await;
        for number in (0..60).rev() {
            let _ = recorder.put(PutRequest { lease: 6, ..put(&format!("k{number:02}"), "1") }).await;
        }
        let _ = recorder.delete_range(delete_range("k10", "k20")).await;
        show(recorder, 6).await;
        let mut watching = Watching::open(recorder);
        let all = WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..WatchCreateRequest::default() };
        watching.create(recorder, WatchCreateRequest { prev_kv: true, ..all }).await;
        let _ = recorder.lease_revoke(LeaseRevokeRequest { id: 6 }).await;
        watching.events(recorder, 0, 50).await;
        watching.spread(recorder);
        show_all(recorder).await;
    })
    .await;
    pair.same("renewals", async |recorder| {
        for (id, ttl) in [(1, 200), (2, 400), (3, 600)] {
            let _ = recorder.grant(LeaseGrantRequest { id, ttl }).await;
        }
        show_all(recorder).await;
        for id in [1, 3, 2, 3, 4, 1] {
            let _ = recorder.keep_alive(id).await;
        }
        show_all(recorder).await;
    })
    .await;
    pair.finish("leases");
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_end_by_themselves_as_in_etcd() {
    const TTL: i64 = 3;
    let mut pair = Pair::start(&[]);
    pair.same("a lease ends, another is renewed", async |recorder| {
        let mut watching = Watching::open(recorder);
        let all = WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..WatchCreateRequest::default() };
        watching.create(recorder, WatchCreateRequest { prev_kv: true, ..all }).await;
        for (id, key) in [(1, "b"), (2, "x"), (1, "a"), (1, "c")] {
            let _ = recorder.grant(LeaseGrantRequest { id, ttl: TTL }).await;
            let _ = recorder.put(PutRequest { lease: id, ..put(key, key) }).await;
        }
        let begun = Instant::now();
        watching.events(recorder, 0, 4).await;
        // Renewed for longer than it lives.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            let _ = recorder.keep_alive(2).await;
        }
        watching.events(recorder, 0, 3).await;
        watching.spread(recorder);
        let lived = begun.elapsed();
        recorder.note("not before its time", lived >= Duration::from_secs(TTL as u64) - Duration::from_millis(200));
        show_all(recorder).await;
        show(recorder, 1).await;
        let _ = recorder.keep_alive(1).await;
        let _ = recorder.put(PutRequest { lease: 1, ..put("a", "1") }).await;
        watching.events(recorder, 0, 1).await;
        recorder.note("not long after its time", begun.elapsed() < Duration::from_secs(12));
        show_all(recorder).await;
        let _ = recorder.delete_range(delete("x")).await;
    })
    .await;
    pair.finish("leases that end");
}
