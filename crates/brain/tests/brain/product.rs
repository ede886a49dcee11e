//! The product in this process, over the wire: leases across restarts, health, metrics, the log.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use kubewharf_brain::config::{AutoCompaction, Config, EngineKind};
use kubewharf_brain::run::{Brain, RunError};
use kubewharf_etcd_api::etcdserverpb::kv_client::KvClient;
use kubewharf_etcd_api::etcdserverpb::lease_client::LeaseClient;
use kubewharf_etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use kubewharf_etcd_api::etcdserverpb::{
    AlarmRequest, CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseLeasesRequest, LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest, RangeRequest,
    StatusRequest,
};
use kubewharf_foundation::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

/// A served store.
struct Served {
    clients: SocketAddr,
    metrics: SocketAddr,
    shutdown: Shutdown,
    ended: JoinHandle<Result<(), RunError>>,
    channel: Channel,
}

impl Served {
    async fn start(config: Config) -> Self {
        let config = Config {
            listen_client_urls: vec!["http://127.0.0.1:0".parse().unwrap()],
            listen_metrics_urls: vec!["http://127.0.0.1:0".parse().unwrap()],
            ..config
        };
        let brain = Brain::start(config).await.unwrap();
        let (clients, metrics) = (brain.client_addresses()[0], brain.metrics_addresses()[0]);
        let shutdown = Shutdown::new();
        let ended = tokio::spawn(brain.serve(shutdown.clone()));
        let channel = Channel::from_shared(format!("http://{clients}")).unwrap().connect().await.unwrap();
        Self { clients, metrics, shutdown, ended, channel }
    }

    async fn in_memory() -> Self {
        Self::start(Config { engine: EngineKind::Memory, ..Config::default() }).await
    }

    async fn in_folder(path: &Path) -> Self {
        let map_size_bytes = 64 << 20;
        Self::start(Config { data_dir: Some(path.to_owned()), map_size_bytes, ..Config::default() }).await
    }

    /// Stops it as SIGTERM does.
    async fn stop(self) {
        drop(self.channel);
        self.shutdown.request();
        self.ended.await.unwrap().unwrap();
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone())
    }

    fn leases(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    async fn put(&self, key: &'static str, lease: i64) -> i64 {
        let request = PutRequest { key: key.into(), value: "value".into(), lease, ..PutRequest::default() };
        self.kv().put(request).await.unwrap().into_inner().header.unwrap().revision
    }

    async fn grant(&self, id: i64, ttl: i64) -> i64 {
        self.leases().lease_grant(LeaseGrantRequest { id, ttl }).await.unwrap().into_inner().id
    }

    async fn keep_alive(&self, ids: &[i64]) -> Vec<i64> {
        let requests: Vec<_> = ids.iter().map(|&id| LeaseKeepAliveRequest { id }).collect();
        let requests = futures_util::stream::iter(requests);
        let mut answers = self.leases().lease_keep_alive(requests).await.unwrap().into_inner();
        let mut left = Vec::new();
        for id in ids {
            let answer = answers.message().await.unwrap().unwrap();
            assert_eq!(answer.id, *id, "answers come in the order of the requests");
            left.push(answer.ttl);
        }
        assert!(answers.message().await.unwrap().is_none());
        left
    }

    async fn time_to_live(&self, id: i64) -> LeaseTimeToLiveResponse {
        let request = LeaseTimeToLiveRequest { id, keys: true };
        self.leases().lease_time_to_live(request).await.unwrap().into_inner()
    }

    async fn get(&self, path: &str) -> Answer {
        http(self.clients, "GET", path).await
    }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// A plain HTTP/1.1 request, byte by byte.
async fn http(address: SocketAddr, method: &str, path: &str) -> Answer {
    let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    connection.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_answer_as_etcd_does() {
    let served = Served::in_memory().await;
    let granted = served.leases().lease_grant(LeaseGrantRequest { id: 0, ttl: 0 }).await.unwrap().into_inner();
    assert!(granted.id > 0);
    assert_eq!((granted.ttl, granted.header.unwrap().revision), (2, 1), "a grant writes no revision");
    let again = served.leases().lease_grant(LeaseGrantRequest { id: granted.id, ttl: 60 }).await.unwrap_err();
    assert_eq!((again.code(), again.message()), (Code::FailedPrecondition, "etcdserver: lease already exists"));
    let long = served.leases().lease_grant(LeaseGrantRequest { id: 0, ttl: 9_000_000_001 }).await.unwrap_err();
    assert_eq!((long.code(), long.message()), (Code::OutOfRange, "etcdserver: too large lease TTL"));

    let id = served.grant(77, 60).await;
    assert_eq!(served.keep_alive(&[77, 5, 77]).await, [60, 0, 60], "an unknown lease has no time");
    assert_eq!(served.put("/a", id).await, 2);
    assert_eq!(served.put("/b", id).await, 3);
    let alive = served.time_to_live(id).await;
    assert_eq!((alive.granted_ttl, alive.keys), (60, vec!["/a".into(), "/b".into()]));
    assert!((58..=60).contains(&alive.ttl), "{}", alive.ttl);
    let unknown = served.time_to_live(5).await;
    assert_eq!((unknown.ttl, unknown.granted_ttl), (-1, 0));
    let listed = served.leases().lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner().leases;
    assert_eq!(
        listed.iter().map(|lease| lease.id).collect::<Vec<_>>(),
        [granted.id, 77],
        "the next to end comes first"
    );

    let revoked = served.leases().lease_revoke(LeaseRevokeRequest { id }).await.unwrap().into_inner();
    assert_eq!(revoked.header.unwrap().revision, 4, "both keys go at one revision");
    let gone = served.leases().lease_revoke(LeaseRevokeRequest { id }).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "etcdserver: requested lease not found"));
    let range = RangeRequest { key: "/".into(), range_end: "0".into(), ..RangeRequest::default() };
    assert_eq!(served.kv().range(range).await.unwrap().into_inner().count, 0);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_lease_takes_its_keys_along_soon() {
    let served = Served::in_memory().await;
    let id = served.grant(9, 2).await;
    let granted = Instant::now();
    served.put("/leased", id).await;
    loop {
        let range = RangeRequest { key: "/leased".into(), ..RangeRequest::default() };
        if served.kv().range(range).await.unwrap().into_inner().count == 0 {
            break;
        }
        assert!(granted.elapsed() < Duration::from_secs(10), "the lease never ends");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(granted.elapsed() >= Duration::from_secs(2), "the lease has ended after {:?}", granted.elapsed());
    assert_eq!(served.keep_alive(&[id]).await, [0]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_store_goes_on_with_what_was_left_of_leases() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::in_folder(folder.path()).await;
    let (short, long) = (served.grant(1, 1000).await, served.grant(2, 100_000).await);
    served.put("/leased", long).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    served.stop().await;

    let served = Served::in_folder(folder.path()).await;
    let left = served.time_to_live(short).await;
    assert_eq!(left.granted_ttl, 1000);
    assert!((996..=999).contains(&left.ttl), "{}", left.ttl);
    let left = served.time_to_live(long).await;
    assert!((99_996..=99_999).contains(&left.ttl), "{}", left.ttl);
    assert_eq!(left.keys, ["/leased"]);
    // A renewal clears what is stored before it is answered: even a crash now gives the lease all of its time again.
    assert_eq!(served.keep_alive(&[short]).await, [1000]);
    served.ended.abort();
    assert!(served.ended.await.unwrap_err().is_cancelled());
    drop(served.channel);
    let served = wait_for_release(folder.path()).await;
    let renewed = served.time_to_live(short).await.ttl;
    assert!(renewed >= 999, "{renewed}");
    let not_renewed = served.time_to_live(long).await.ttl;
    assert!((99_996..=99_999).contains(&not_renewed), "{not_renewed}");
    served.stop().await;
}

/// Starts as soon as the threads of an aborted store in this process have let the folder go.
async fn wait_for_release(path: &Path) -> Served {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let config = Config {
            data_dir: Some(path.to_owned()),
            map_size_bytes: 64 << 20,
            listen_client_urls: vec!["http://127.0.0.1:0".parse().unwrap()],
            ..Config::default()
        };
        match Brain::start(config).await {
            Ok(probe) => {
                let shutdown = Shutdown::new();
                shutdown.request();
                probe.serve(shutdown).await.unwrap();
                return Served::in_folder(path).await;
            }
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_version_are_those_of_etcd() {
    let served = Served::in_memory().await;
    let health = served.get("/health").await;
    assert_eq!((health.status, health.body.as_str()), (200, r#"{"health":"true","reason":""}"#));
    assert_eq!(served.get("/health?serializable=true").await.status, 200);
    let refused = http(served.clients, "POST", "/health").await;
    assert_eq!(refused.status, 405);
    assert!(refused.head.contains("allow: get"), "{}", refused.head);
    for path in ["/livez", "/readyz", "/livez/serializable_read", "/readyz/linearizable_read"] {
        assert_eq!(served.get(path).await.body, "ok\n", "{path}");
    }
    let verbose = served.get("/readyz?verbose&exclude=non_learner").await.body;
    assert_eq!(verbose, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\nok\n");
    let version: serde_json::Value = serde_json::from_str(&served.get("/version").await.body).unwrap();
    assert_eq!((&version["etcdserver"], &version["etcdcluster"]), (&"3.7.3".into(), &"3.7.0".into()));
    assert_eq!(served.get("/livez/nothing").await.status, 404);
    assert_eq!(served.get("/").await.body, "404 page not found\n");
    assert_eq!(
        http(served.metrics, "GET", "/version").await.status,
        404,
        "the metrics port has health and metrics only"
    );
    assert_eq!(http(served.metrics, "GET", "/health").await.status, 200);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_etcds_names_and_count() {
    let served = Served::in_memory().await;
    served.put("/a", 0).await;
    served.grant(1, 60).await;
    let range = RangeRequest { key: "/a".into(), ..RangeRequest::default() };
    served.kv().range(range).await.unwrap();
    let answer = http(served.metrics, "GET", "/metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
    let value = |name: &str| {
        let row = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        row.unwrap_or_else(|| panic!("no {name} in {}", answer.body)).to_owned()
    };
    for (name, expected) in [
        ("etcd_server_has_leader", "1"),
        ("etcd_mvcc_put_total", "1"),
        ("etcd_mvcc_range_total", "1"),
        ("etcd_debugging_mvcc_current_revision", "2"),
        ("etcd_debugging_lease_granted_total", "1"),
        ("kubebrain_leases", "1"),
        ("etcd_debugging_mvcc_watcher_total", "0"),
        ("kubebrain_commit_requests_count", "2"),
        ("etcd_disk_backend_commit_duration_seconds_count", "2"),
        ("grpc_server_started_total{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}", "1"),
        (
            "grpc_server_handled_total{grpc_code=\"OK\",grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",\
             grpc_type=\"unary\"}",
            "1",
        ),
    ] {
        assert_eq!(value(name), expected, "{name}");
    }
    assert!(value("process_resident_memory_bytes").parse::<u64>().unwrap() > 1 << 20);
    assert!(value("process_open_fds").parse::<u64>().unwrap() > 3);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_turns_kubernetes_features_on_and_hashes_are_of_the_keys_alone() {
    let served = Served::in_memory().await;
    let status = served.maintenance().status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.version, "3.7.3");
    assert_eq!(status.leader, status.header.as_ref().unwrap().member_id);
    assert!(!status.is_learner && status.errors.is_empty());
    let hash = |revision: i64| {
        let mut maintenance = served.maintenance();
        async move { maintenance.hash_kv(HashKvRequest { revision }).await.map(tonic::Response::into_inner) }
    };
    for key in ["/a", "/b"] {
        served.put(key, 0).await;
    }
    let before = hash(0).await.unwrap();
    assert_eq!((before.hash_revision, before.compact_revision), (3, -1));
    served.put("/c", 0).await;
    assert_ne!(hash(4).await.unwrap().hash, before.hash);
    assert_eq!(hash(3).await.unwrap().hash, before.hash, "the past does not change");
    served.kv().compact(CompactionRequest { revision: 3, physical: true }).await.unwrap();
    assert_eq!(hash(3).await.unwrap().hash, before.hash, "compaction does not change it");
    assert_eq!(hash(2).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(hash(99).await.unwrap_err().code(), Code::OutOfRange);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_the_quota_only_what_needs_room_is_refused_until_there_is_some() {
    let served =
        Served::start(Config { engine: EngineKind::Memory, quota_bytes: Some(100_000), ..Config::default() }).await;
    let fill = |index: usize| PutRequest {
        key: format!("/fill/{index}").into(),
        value: vec![b'x'; 10_000].into(),
        ..PutRequest::default()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let refused = loop {
        if let Err(refused) = served.kv().put(fill(0)).await {
            break refused;
        }
        assert!(Instant::now() < deadline, "the quota is not kept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded")
    );
    let grant = served.leases().lease_grant(LeaseGrantRequest { id: 0, ttl: 60 }).await.unwrap_err();
    assert_eq!(grant.code(), Code::ResourceExhausted);
    assert_eq!(served.get("/health").await.body, "{\"health\":\"false\",\"reason\":\"ALARM NOSPACE\"}\n");
    assert_eq!(served.get("/health?exclude=NOSPACE").await.status, 200);
    let alarms = served.maintenance().alarm(AlarmRequest::default()).await.unwrap().into_inner().alarms;
    assert_eq!(alarms.len(), 1);

    let everything = DeleteRangeRequest { key: "/".into(), range_end: "0".into(), prev_kv: false };
    let deleted = served.kv().delete_range(everything).await.unwrap().into_inner();
    let revision = deleted.header.unwrap().revision;
    served.kv().compact(CompactionRequest { revision, physical: true }).await.unwrap();
    while served.kv().put(fill(1)).await.is_err() {
        assert!(Instant::now() < deadline, "the alarm does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(served.get("/health").await.status, 200);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_served_in_pages_and_waits_for_more() {
    let served = Served::in_memory().await;
    assert_eq!(served.get("/kubebrain/v1/log?from=x").await.status, 400);
    served.put("/a", 0).await;
    let page = served.get("/kubebrain/v1/log").await;
    assert!(page.head.contains("kubebrain-next-revision: 3"), "{}", page.head);
    let line: serde_json::Value = serde_json::from_str(&page.body).unwrap();
    assert_eq!((&line["revision"], &line["ops"][0]["key"]), (&2.into(), &"L2E=".into()));
    let (later, _) = tokio::join!(served.get("/kubebrain/v1/log?from=3&wait=30"), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        served.put("/b", 0).await
    });
    assert!(later.body.starts_with("{\"revision\":3,"), "{}", later.body);
    served.kv().compact(CompactionRequest { revision: 3, physical: false }).await.unwrap();
    let gone = served.get("/kubebrain/v1/log?from=2").await;
    assert_eq!((gone.status, gone.body.as_str()), (410, "revision 2 is compacted: the log begins at revision 3\n"));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_etcd_or_of_another_process_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: Some(folder.path().to_owned()),
        map_size_bytes: 64 << 20,
        listen_client_urls: vec!["http://127.0.0.1:0".parse().unwrap()],
        ..Config::default()
    };
    std::fs::create_dir(folder.path().join("member")).unwrap();
    let refused = Brain::start(config.clone()).await.err().expect("it is etcd's");
    assert!(matches!(refused, RunError::EtcdData { .. }), "{refused}");
    std::fs::remove_dir(folder.path().join("member")).unwrap();

    let first = Brain::start(config.clone()).await.unwrap();
    let refused = Brain::start(config).await.err().expect("it is in use").to_string();
    assert!(refused.contains(&format!("is in use by process {}", std::process::id())), "{refused}");
    drop(first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_made_once_and_served() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: Some(folder.path().to_owned()),
        map_size_bytes: 64 << 20,
        listen_client_urls: vec!["https://127.0.0.1:0".parse().unwrap()],
        client_auto_tls: true,
        ..Config::default()
    };
    let certificate_path = folder.path().join("fixtures/client/cert.pem");
    let mut made = Vec::new();
    for _ in 0..2 {
        let brain = Brain::start(config.clone()).await.unwrap();
        let address = brain.client_addresses()[0];
        let shutdown = Shutdown::new();
        let ended = tokio::spawn(brain.serve(shutdown.clone()));
        let pem = std::fs::read(&certificate_path).unwrap();
        let tls = tonic::transport::ClientTlsConfig::new()
            .ca_certificate(tonic::transport::Certificate::from_pem(&pem))
            .domain_name("127.0.0.1");
        let endpoint = Channel::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        let status = MaintenanceClient::new(endpoint.connect().await.unwrap()).status(StatusRequest {}).await.unwrap();
        assert_eq!(status.into_inner().version, "3.7.3");
        made.push(pem);
        shutdown.request();
        ended.await.unwrap().unwrap();
    }
    assert_eq!(made[0], made[1], "the second start uses the first one's certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_revisions_are_compacted_without_being_asked() {
    let auto_compaction = Some(AutoCompaction::Periodic(Duration::from_millis(200)));
    let served = Served::start(Config { engine: EngineKind::Memory, auto_compaction, ..Config::default() }).await;
    let first = served.put("/a", 0).await;
    served.put("/a", 0).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let past = RangeRequest { key: "/a".into(), revision: first, ..RangeRequest::default() };
        match served.kv().range(past).await {
            Ok(_) => assert!(Instant::now() < deadline, "nothing is compacted"),
            Err(compacted) => {
                assert_eq!(compacted.message(), "etcdserver: mvcc: required revision has been compacted");
                break;
            }
        }
        served.put("/a", 0).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    served.stop().await;
}
