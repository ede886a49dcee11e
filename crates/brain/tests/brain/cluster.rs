//! Members over one engine, each with its ports, in one process: the engine is in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kubewharf_brain::cluster::{Cluster, RecoverError, recover};
use kubewharf_brain::config::{Config, EngineKind};
use kubewharf_brain::run::{Brain, RunError};
use kubewharf_engine::Engine;
use kubewharf_engine::memory::Memory;
use kubewharf_etcd_api::etcdserverpb::cluster_client::ClusterClient;
use kubewharf_etcd_api::etcdserverpb::kv_client::KvClient;
use kubewharf_etcd_api::etcdserverpb::lease_client::LeaseClient;
use kubewharf_etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use kubewharf_etcd_api::etcdserverpb::watch_client::WatchClient;
use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
use kubewharf_etcd_api::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, MemberListRequest, MoveLeaderRequest, PutRequest, RangeRequest,
    StatusRequest, WatchCreateRequest, WatchRequest,
};
use kubewharf_foundation::shutdown::Shutdown;
use tokio::task::JoinHandle;
use tonic::transport::Channel;

struct Member {
    cluster: Arc<Cluster>,
    channel: Channel,
    shutdown: Shutdown,
    served: JoinHandle<Result<(), RunError>>,
}

async fn start(engine: &Arc<dyn Engine>, name: &str) -> Member {
    let config = Config {
        name: name.to_owned(),
        engine: EngineKind::Postgres,
        listen_client_urls: vec!["http://127.0.0.1:0".parse().unwrap()],
        listen_peer_urls: vec!["http://127.0.0.1:0".parse().unwrap()],
        advertise_peer_urls: vec!["http://127.0.0.1:0".to_owned()],
        election_timeout: Duration::from_millis(500),
        drain_timeout: Duration::from_secs(1),
        ..Config::default()
    };
    let engine = engine.clone();
    let brain = Brain::over(config, move || Ok(engine)).await.unwrap();
    let address = brain.client_addresses()[0];
    let cluster = brain.cluster().unwrap().clone();
    let shutdown = Shutdown::new();
    let served = tokio::spawn(brain.serve(shutdown.clone()));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    Member { cluster, channel, shutdown, served }
}

async fn three() -> (Arc<dyn Engine>, Vec<Member>) {
    let engine: Arc<dyn Engine> = Arc::new(Memory::new());
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        members.push(start(&engine, name).await);
    }
    for member in &members {
        leader_of(member, |leader| leader != 0).await;
    }
    (engine, members)
}

/// Waits until the member knows a leader that will do.
async fn leader_of(member: &Member, will_do: impl Fn(u64) -> bool) -> u64 {
    let begun = Instant::now();
    loop {
        let leader = member.cluster.leader_id();
        if will_do(leader) {
            return leader;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "no leader that will do: {leader:x}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn put(member: &Member, key: &str, value: &str) -> Result<i64, tonic::Status> {
    let request = PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
    let response = KvClient::new(member.channel.clone()).put(request).await?.into_inner();
    Ok(response.header.unwrap().revision)
}

async fn get(member: &Member, key: &str) -> Option<String> {
    let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
    let response = KvClient::new(member.channel.clone()).range(request).await.unwrap().into_inner();
    response.kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// The values that a watch of everything from `revision` on gets, as they come.
fn watch(member: &Member, revision: i64) -> tokio::sync::mpsc::UnboundedReceiver<(i64, String)> {
    let (events, received) = tokio::sync::mpsc::unbounded_channel();
    let channel = member.channel.clone();
    tokio::spawn(async move {
        let create = WatchCreateRequest {
            key: vec![0].into(),
            range_end: vec![0].into(),
            start_revision: revision,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests =
            futures_util::StreamExt::chain(futures_util::stream::iter([request]), futures_util::stream::pending());
        let mut responses = WatchClient::new(channel).watch(requests).await.unwrap().into_inner();
        while let Ok(Some(response)) = responses.message().await {
            assert!(!response.canceled, "{response:?}");
            for event in response.events {
                let kv = event.kv.unwrap();
                let _ = events.send((kv.mod_revision, String::from_utf8(kv.value.to_vec()).unwrap()));
            }
        }
    });
    received
}

async fn stop(member: Member) {
    member.shutdown.request();
    drop(member.channel);
    tokio::time::timeout(Duration::from_secs(30), member.served).await.expect("it stops").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_member_answers_everything() {
    let (_engine, members) = three().await;
    let mut watches: Vec<_> = members.iter().map(|member| watch(member, 2)).collect();
    for round in 0..30 {
        let value = round.to_string();
        let revision = put(&members[round % 3], "k", &value).await.unwrap();
        assert_eq!(revision, i64::try_from(round).unwrap() + 2, "revisions are dense");
        for member in &members {
            assert_eq!(get(member, "k").await.as_deref(), Some(&value[..]), "what was acknowledged is read anywhere");
        }
    }
    for events in &mut watches {
        for round in 0..30 {
            assert_eq!(events.recv().await.unwrap(), (round + 2, round.to_string()));
        }
    }
    for member in &members {
        let mut leases = LeaseClient::new(member.channel.clone());
        let lease = leases.lease_grant(LeaseGrantRequest { id: 0, ttl: 100 }).await.unwrap().into_inner();
        let renewals = futures_util::stream::iter([LeaseKeepAliveRequest { id: lease.id }]);
        let mut answers = leases.lease_keep_alive(renewals).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap().unwrap().ttl, 100);
        let status = MaintenanceClient::new(member.channel.clone()).status(StatusRequest {}).await.unwrap();
        assert_eq!(status.into_inner().leader, members[0].cluster.leader_id());
        let listed = ClusterClient::new(member.channel.clone());
        let listed = { listed }.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
        let mut names: Vec<_> = listed.members.iter().map(|member| &member.name[..]).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "b", "c"]);
    }
    for member in members {
        stop(member).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_and_no_write_fails() {
    let (_engine, mut members) = three().await;
    let mut events = watch(&members[2], 2);
    let mut written = 0_usize;
    for _ in 0..2 {
        let leader = members[0].cluster.leader_id();
        let at = members.iter().position(|member| member.cluster.member_id() == leader).unwrap();
        // The watcher's member stays to the end.
        if at == members.len() - 1 {
            let target_id = members[0].cluster.member_id();
            let mut client = MaintenanceClient::new(members[at].channel.clone());
            client.move_leader(MoveLeaderRequest { target_id }).await.unwrap();
            leader_of(&members[0], |leader| leader == target_id).await;
            continue;
        }
        let stopping = tokio::spawn(stop(members.remove(at)));
        while !stopping.is_finished() {
            put(&members[0], "k", &written.to_string()).await.unwrap();
            written += 1;
        }
        stopping.await.unwrap();
        if members.len() == 1 {
            break;
        }
    }
    assert!(written > 0);
    for expected in 0..written {
        let (revision, value) = events.recv().await.unwrap();
        assert_eq!((revision, value), (i64::try_from(expected).unwrap() + 2, expected.to_string()));
    }
    for member in members {
        stop(member).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_comes_later_has_everything_and_one_alone_leads_at_once() {
    let engine: Arc<dyn Engine> = Arc::new(Memory::new());
    let first = start(&engine, "first").await;
    leader_of(&first, |leader| leader == first.cluster.member_id()).await;
    for round in 0..10 {
        put(&first, "k", &round.to_string()).await.unwrap();
    }
    let second = start(&engine, "second").await;
    assert_eq!(get(&second, "k").await.as_deref(), Some("9"));
    let mut events = watch(&second, 2);
    for round in 0..10 {
        assert_eq!(events.recv().await.unwrap(), (round + 2, round.to_string()));
    }
    stop(first).await;
    put(&second, "k", "10").await.unwrap();
    assert_eq!(events.recv().await.unwrap(), (12, "10".to_owned()));
    stop(second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_loses_data_stops_all_members_until_an_operator_recovers_it() {
    let memory = Arc::new(Memory::with_history(1000));
    let engine: Arc<dyn Engine> = memory.clone();
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        members.push(start(&engine, name).await);
    }
    for member in &members {
        leader_of(member, |leader| leader != 0).await;
    }
    let mut last = 0;
    for round in 0..20 {
        last = put(&members[round % 3], &format!("k{round}"), "v").await.unwrap();
    }
    assert!(memory.roll_back(8).is_some());
    for member in members {
        drop(member.channel);
        let ended = tokio::time::timeout(Duration::from_secs(30), member.served).await.expect("it stops").unwrap();
        let why = ended.expect_err("it fails").to_string();
        assert!(why.contains("lost acknowledged data") && why.contains("kubewharf brain recover"), "{why}");
    }
    // A process that knows nothing of what was there before is told.
    let config = Config { engine: EngineKind::Postgres, ..Config::default() };
    let again = engine.clone();
    let Err(refused) = Brain::over(config, move || Ok(again)).await else { panic!("a member starts") };
    assert!(refused.to_string().contains("lost acknowledged data"), "{refused}");

    let revision = recover(engine.as_ref()).unwrap();
    assert!(revision > last + 1_000_000);
    assert!(matches!(recover(engine.as_ref()), Err(RecoverError::NotHalted)));
    let member = start(&engine, "a").await;
    leader_of(&member, |leader| leader != 0).await;
    assert_eq!(get(&member, "k0").await.as_deref(), Some("v"));
    assert_eq!(get(&member, "k19").await, None, "what is lost is lost");
    assert_eq!(put(&member, "k19", "w").await.unwrap(), revision + 1);
    let mut events = watch(&member, revision);
    assert_eq!(events.recv().await.unwrap().0, revision);
    assert_eq!(events.recv().await.unwrap(), (revision + 1, "w".to_owned()));
    let old = RangeRequest { key: "k0".into(), revision: last, ..RangeRequest::default() };
    let compacted = KvClient::new(member.channel.clone()).range(old).await.unwrap_err();
    assert!(compacted.message().contains("has been compacted"), "{compacted}");
    stop(member).await;
}
