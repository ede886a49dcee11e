//! A hub with events as upstream would send them.

use std::task::{Context, Poll};

use serde_json::json;

use super::*;
use crate::tenant::TenantObject;

fn hub() -> Hub {
    let kind = Kind::of("", "v1", "ConfigMap").expect("a kind");
    Hub::new(Watched { path: "/api/v1/configmaps".into(), encoding: Encoding::Json, is_namespaced: true, kind })
}

fn tenant() -> Arc<Tenant> {
    let metadata = json!({ "name": "one", "uid": "6d0a9d3e-8d5b-4b6a-9f43-0c1d3a5b7c9e" });
    let object: TenantObject = serde_json::from_value(json!({ "metadata": metadata })).expect("a tenant");
    Arc::new(Tenant::new(&object))
}

fn wish(tenant: &Arc<Tenant>) -> Wish {
    Wish { tenant: tenant.clone(), namespace: None, wants_bookmarks: true }
}

fn take(hub: &Hub, tenant: &Tenant, version: u64, data: &str) {
    let namespace = tenant.names.inward("default");
    let event = json!({ "type": "ADDED", "object": {
        "kind": "ConfigMap", "apiVersion": "v1",
        "metadata": { "name": format!("n{version}"), "namespace": namespace, "resourceVersion": version.to_string() },
        "data": { "a": data },
    }});
    let frame = Bytes::from(format!("{event}\n"));
    let facts = Facts::of(Encoding::Json, &frame).expect("well-formed");
    hub.take(&facts, &frame, |_| None);
}

/// The versions that have come, and whether that was all there will be.
fn versions(joined: &mut Joined) -> (Vec<u64>, bool) {
    let mut text: Vec<u8> = joined.backlog.drain(..).flatten().collect();
    let is_over = loop {
        match joined.events.poll_piece(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(piece)) => text.extend(piece),
            Poll::Ready(None) => break true,
            Poll::Pending => break false,
        }
    };
    let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    (lines.map(|line| Facts::of(Encoding::Json, line).expect("well-formed").version).collect(), is_over)
}

#[test]
fn a_hub_begins_at_what_was_read_and_not_at_what_a_client_has() {
    let (hub, tenant) = (hub(), tenant());
    let join = |version| hub.join(&wish(&tenant), version).err();
    // Nothing that a client says begins it.
    for version in [1, 500_000, 99_999_999_999] {
        assert_eq!(join(version), Some(Apart::Unknown));
    }
    assert!(hub.learn(500_000));
    assert!(!hub.learn(500_001), "it has begun already");
    assert_eq!(join(99_999_999_999), Some(Apart::Unknown));
    assert_eq!(join(1), Some(Apart::Old));
    assert_eq!(join(500_002), Some(Apart::Unknown));
    assert_eq!(join(500_001), None);
    assert_eq!(join(500_000 - HUB_LOOKS_BACK), None);
    assert_eq!(join(500_000 - HUB_LOOKS_BACK - 1), Some(Apart::Old));
    hub.end();
    assert_eq!(join(500_000), Some(Apart::Over));
}

#[test]
fn each_watcher_gets_what_follows_its_version_once_and_in_order() {
    let (hub, tenant) = (hub(), tenant());
    hub.learn(50_000);
    let mut early = hub.join(&wish(&tenant), 49_000).expect("it looks back");
    let mut newest = hub.join(&wish(&tenant), 50_000).expect("it is known");
    for version in [48_000, 49_000, 49_500, 50_000, 50_010, 50_010] {
        take(&hub, &tenant, version, "");
    }
    let mut late = hub.join(&wish(&tenant), 49_500).expect("it is in the ring");
    // Ahead of the hub, at a version that upstream has told.
    assert!(hub.join(&wish(&tenant), 50_030).is_err());
    hub.learn(50_030);
    let mut ahead = hub.join(&wish(&tenant), 50_030).expect("it is known now");
    for version in [50_020, 50_030, 50_040] {
        take(&hub, &tenant, version, "");
    }
    assert_eq!(versions(&mut early), (vec![49_500, 50_000, 50_010, 50_020, 50_030, 50_040], false));
    assert_eq!(versions(&mut newest), (vec![50_010, 50_020, 50_030, 50_040], false));
    assert_eq!(versions(&mut late), (vec![50_000, 50_010, 50_020, 50_030, 50_040], false));
    assert_eq!(versions(&mut ahead), (vec![50_040], false));
}

#[test]
fn a_hub_whose_past_is_forgotten_begins_later_without_those_from_there() {
    let (hub, tenant) = (hub(), tenant());
    hub.learn(50_000);
    let mut old = hub.join(&wish(&tenant), 49_999).expect("it looks back");
    let mut new = hub.join(&wish(&tenant), 50_000).expect("it is known");
    assert!(hub.begin_later());
    assert!(!hub.begin_later(), "it is there already");
    assert_eq!(versions(&mut old), (vec![], true));
    assert_eq!(hub.join(&wish(&tenant), 49_999).err(), Some(Apart::Old));
    take(&hub, &tenant, 50_001, "");
    assert_eq!(versions(&mut new), (vec![50_001], false));
}

#[test]
fn a_watcher_that_does_not_keep_up_ends_after_what_it_has() {
    let (hub, tenant) = (hub(), tenant());
    hub.learn(10);
    let mut slow = hub.join(&wish(&tenant), 10).expect("it is known");
    let data = "x".repeat(1 << 20);
    for version in 11..21 {
        take(&hub, &tenant, version, &data);
    }
    let (got, is_over) = versions(&mut slow);
    assert_eq!((got, is_over), (vec![11, 12, 13], true));
    // It comes back where it was.
    let mut again = hub.join(&wish(&tenant), 13).expect("the ring has it");
    assert_eq!(versions(&mut again).0, (14..21).collect::<Vec<_>>());
}
