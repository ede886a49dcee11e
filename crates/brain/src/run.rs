//! The whole product in one process: opens the store, serves it, and stops it.
//!
//! Invariant: clients are answered only between "ready to serve client requests" and the drain; what was acknowledged before is durable,
//! and what is left of leases is stored, when [`run`] returns `Ok`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubewharf_engine::lmdb::{self, Lmdb};
use kubewharf_engine::memory::Memory;
use kubewharf_engine::{Engine, EngineError};
use kubewharf_engine_postgres::Postgres;
use kubewharf_engine_tikv::Tikv;
use kubewharf_foundation::descriptors;
use kubewharf_foundation::listener::{Bound, ListenUrl};
use kubewharf_foundation::shutdown::Shutdown;
use kubewharf_foundation::systemd;
use kubewharf_foundation::tls::ReloadingTls;
use kubewharf_grpc::{Dispatch, Listener, TlsSource};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::cluster::{Cluster, ClusterOptions};
use crate::config::{Config, EngineKind};
use crate::rpc::{self, Api, GrpcOnly, HttpOnly, PeerApi, ServerOptions};
use crate::{Store, StoreOptions, autocompact, compaction, lease};

mod tls;

/// How long a stopped store waits for its last reader before it leaves the engine to it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a failed store goes on to tell its clients why.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Open files of the process besides clients' connections, at most.
const OWN_DESCRIPTORS: u64 = 64;

/// Why a store could not be started, or ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The data directory has another program's data.
    #[error(
        "{path} has data of etcd in it (the folder `member`), which this store can't use: choose an empty --data-dir"
    )]
    EtcdData {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory can't be made.
    #[error("can't make the data directory {path}: {error}")]
    DataDir {
        /// The data directory.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The engine can't be opened.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The shared database can't be used.
    #[error(transparent)]
    Database(#[from] kubewharf_engine_postgres::OpenError),
    /// The shared cluster can't be used.
    #[error(transparent)]
    Cluster(#[from] kubewharf_engine_tikv::OpenError),
    /// A URL can't be listened at, or certificates can't be used; the text names it or the file.
    #[error(transparent)]
    Outside(#[from] kubewharf_foundation::Error),
    /// A part of the start or the end panicked.
    #[error("a task ended early: {0}")]
    Task(tokio::task::JoinError),
    /// A certificate can't be made.
    #[error("--auto-tls: can't make a certificate in {path}: {problem}")]
    AutoTls {
        /// The folder for it.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The store failed while it was serving.
    #[error("the store has failed: {0}")]
    StoreFailed(String),
}

/// A store that listens and is not served yet.
pub struct Brain {
    config: Config,
    store: Arc<Store>,
    /// The member that this is, if the engine is shared.
    cluster: Option<Arc<Cluster>>,
    server: Arc<rpc::Server>,
    clients: Vec<(ListenUrl, Bound)>,
    client_http: Vec<(ListenUrl, Bound)>,
    metrics: Vec<(ListenUrl, Bound)>,
    tls: Option<Arc<ReloadingTls>>,
    peers: Vec<(ListenUrl, Bound)>,
    peer_tls: Option<Arc<ReloadingTls>>,
}

/// Opens the store and serves it until `shutdown`.
///
/// # Errors
/// If it can't be started, or fails while it serves: then nothing that was acknowledged is lost, and a new start finds out the rest.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    raise_descriptor_limit(config.connections_max);
    Brain::start(config).await?.serve(shutdown).await
}

impl Brain {
    /// Binds the URLs and opens the store.
    ///
    /// # Errors
    /// If an address, a certificate or the data directory can't be used.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let opening = config.clone();
        let engine = move || open(&opening);
        Self::over(config, engine).await
    }

    /// As [`Brain::start`], over an engine that `open` opens; shared with others or not, as the settings say.
    ///
    /// # Errors
    /// If an address, a certificate or the engine can't be used.
    pub async fn over(
        config: Config,
        open: impl FnOnce() -> Result<Arc<dyn Engine>, RunError> + Send + 'static,
    ) -> Result<Self, RunError> {
        let tls = tls::load(&config)?;
        let clients = bind(&config.listen_client_urls).await?;
        let client_http = bind(&config.listen_client_http_urls).await?;
        let metrics = bind(&config.listen_metrics_urls).await?;
        let is_shared = config.engine.is_shared();
        let (peers, peer_tls) = if is_shared { peer_port(&config).await? } else { (Vec::new(), None) };
        let peer_urls = advertised(&config.advertise_peer_urls, &peers);
        let member = format!("{}\n{}", config.name, peer_urls.join(","));
        let options = StoreOptions { ring_bytes: config.watch_ring_bytes, ..StoreOptions::default() };
        let opening = move || {
            let begun = Instant::now();
            let engine = open()?;
            let store = if is_shared { Store::join(engine, options, &member)? } else { Store::open(engine, options)? };
            info!(ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), "the store is open");
            Ok::<_, RunError>(store)
        };
        let store = tokio::task::spawn_blocking(opening).await.map_err(RunError::Task)??;
        let cluster = is_shared.then(|| {
            let options = ClusterOptions {
                name: config.name.clone(),
                peer_urls,
                client_urls: config.advertise_client_urls.clone(),
                ttl: config.election_timeout,
                tls: config.peer_client.clone(),
                auto_compaction: config.auto_compaction,
            };
            Cluster::start(store.clone(), options)
        });
        let server = rpc::Server::of_member(
            store.clone(),
            cluster.clone(),
            ServerOptions {
                name: config.name.clone(),
                client_urls: config.advertise_client_urls.clone(),
                peer_urls: config.advertise_peer_urls.clone(),
                txn_operations_max: config.txn_operations_max,
                request_bytes_max: config.request_bytes_max,
                list_bytes_max: config.list_bytes_max,
                progress_notify_interval: config.watch_progress_notify_interval,
                quota_bytes: config.quota_bytes.unwrap_or(0),
            },
        );
        Ok(Self { config, store, cluster, server, clients, client_http, metrics, tls, peers, peer_tls })
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The member that this is, if the engine is shared.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.cluster.as_ref()
    }

    /// The TCP addresses that clients are served at.
    #[must_use]
    pub fn client_addresses(&self) -> Vec<SocketAddr> {
        addresses(&self.clients)
    }

    /// The TCP addresses that metrics are served at.
    #[must_use]
    pub fn metrics_addresses(&self) -> Vec<SocketAddr> {
        addresses(&self.metrics)
    }

    /// Serves until `shutdown`, then drains and closes the store.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn serve(self, shutdown: Shutdown) -> Result<(), RunError> {
        let Self { config, store, cluster, server, clients, client_http, metrics, tls, peers, peer_tls } = self;
        let api = Api(server.clone());
        let dispatch: Arc<dyn Dispatch> = if client_http.is_empty() { Arc::new(api) } else { Arc::new(GrpcOnly(api)) };
        let options = grpc_options(&config);
        let grpc = kubewharf_grpc::Server::new(dispatch, options.clone());
        server.observe(grpc.stats());
        let http_only = kubewharf_grpc::Server::new(Arc::new(HttpOnly::client(server.clone())), options.clone());
        let health_only = kubewharf_grpc::Server::new(Arc::new(HttpOnly::metrics(server.clone())), options.clone());
        let for_peers = kubewharf_grpc::Server::new(Arc::new(PeerApi(server.clone())), options);

        let stopping = server.stopping().clone();
        let mut listening = JoinSet::new();
        let urls = [
            (clients, grpc, &tls),
            (client_http, http_only, &tls),
            (metrics, health_only, &tls),
            (peers, for_peers, &peer_tls),
        ];
        let mut served = Vec::new();
        for (bound, with, tls) in urls {
            for (url, bound) in bound {
                served.push(url.to_string());
                let tls = tls.clone().filter(|_| url.is_tls()).map(|tls| Arc::new(move || tls.current()) as TlsSource);
                let (with, stopped) = (with.clone(), stopping.requested());
                let listener = match bound {
                    Bound::Tcp(listener) => Listener::Tcp(listener),
                    Bound::Unix(listener) => Listener::Unix(listener),
                };
                listening.spawn(async move { with.serve(listener, tls, stopped).await });
            }
        }
        let mut tasks = JoinSet::new();
        for tls in [tls, peer_tls].into_iter().flatten() {
            tasks.spawn(async move {
                let Err(error) = tls.watch().await;
                warn!(%error, "changed certificates will not be noticed");
            });
        }
        tasks.spawn(rpc::quota::run(server.clone()));
        // Where the engine is shared, the leader does this.
        if cluster.is_none() {
            tasks.spawn(lease::keeper::run(store.clone()));
            tasks.spawn(compaction::run(store.clone()));
            if let Some(mode) = config.auto_compaction {
                tasks.spawn(autocompact::run(store.clone(), mode));
            }
        }

        let revisions = store.revisions();
        info!(
            name = config.name,
            urls = served.join(","),
            engine = store.engine().name(),
            cluster_id = format!("{:x}", store.identity().cluster_id),
            member_id = format!("{:x}", store.identity().member_id),
            revision = revisions.newest,
            compacted = revisions.compacted,
            leases = store.published().leases().len(),
            "ready to serve client requests"
        );
        systemd::ready();

        let failed = tokio::select! {
            why = store.failed() => Some(why),
            () = shutdown.requested() => None,
        };
        systemd::stopping();
        // Before the drain, which ends watches too: they are to know why.
        if let Some(why) = &failed {
            store.published().hub().close(why);
        }
        // Others write on while clients leave.
        if let Some(cluster) = cluster.as_ref().filter(|_| failed.is_none()) {
            cluster.retire().await;
        }
        stopping.request();
        let drained = async { while listening.join_next().await.is_some() {} };
        if let Some(why) = failed {
            // What is still open then is closed with the servers: clients go on when the next process has the store.
            let _ = tokio::time::timeout(FAREWELL_TIMEOUT, drained).await;
            return Err(RunError::StoreFailed(why));
        }
        info!("draining");
        tokio::select! {
            () = drained => {}
            () = shutdown.requested_now() => listening.abort_all(),
        }
        tasks.shutdown().await;
        lease::keeper::checkpoint_all(&store).await;
        if let Some(cluster) = &cluster {
            cluster.stop();
        }
        drop((server, cluster));
        close(store).await
    }
}

/// Sees to it that as many connections as allowed can be open, or says that they can't.
fn raise_descriptor_limit(connections_max: usize) {
    match descriptors::raise_limit() {
        Ok(limit) if limit.saturating_sub(OWN_DESCRIPTORS) < connections_max as u64 => warn!(
            limit,
            connections_max,
            "fewer files may be open (ulimit -n) than connections are allowed (--max-connections): others will wait"
        ),
        Ok(_) => {}
        Err(error) => warn!(%error, "the limit of open files can't be raised"),
    }
}

async fn bind(urls: &[ListenUrl]) -> Result<Vec<(ListenUrl, Bound)>, RunError> {
    let mut bound = Vec::with_capacity(urls.len());
    for url in urls {
        bound.push((url.clone(), url.bind().await?));
    }
    Ok(bound)
}

fn addresses(bound: &[(ListenUrl, Bound)]) -> Vec<SocketAddr> {
    bound.iter().filter_map(|(_, bound)| bound.address()).collect()
}

/// The port for other members, and its certificates.
async fn peer_port(config: &Config) -> Result<(Vec<(ListenUrl, Bound)>, Option<Arc<ReloadingTls>>), RunError> {
    let tls = config.peer_tls.as_ref().map(|files| ReloadingTls::load(tls::of_files(files))).transpose()?;
    Ok((bind(&config.listen_peer_urls).await?, tls))
}

/// The URLs that others are told, with the port that was chosen where one says 0.
fn advertised(urls: &[String], bound: &[(ListenUrl, Bound)]) -> Vec<String> {
    let port = addresses(bound).first().map_or(0, SocketAddr::port);
    urls.iter().map(|url| url.strip_suffix(":0").map_or_else(|| url.clone(), |url| format!("{url}:{port}"))).collect()
}

fn open(config: &Config) -> Result<Arc<dyn Engine>, RunError> {
    Ok(match config.engine {
        EngineKind::Memory => {
            warn!("the store is in memory: nothing is kept when this process ends");
            Arc::new(Memory::new())
        }
        EngineKind::Postgres => {
            let options = kubewharf_engine_postgres::Options {
                schema: config.engine_schema.clone(),
                allow_asynchronous_replication: config.engine_allows_asynchronous_replication,
                ..kubewharf_engine_postgres::Options::new(config.engine_url.as_deref().unwrap_or_default())
            };
            Arc::new(Postgres::open(options)?)
        }
        EngineKind::Tikv => {
            let options = kubewharf_engine_tikv::Options {
                schema: config.engine_schema.clone(),
                ..kubewharf_engine_tikv::Options::new(config.engine_url.as_deref().unwrap_or_default())
            };
            Arc::new(Tikv::open(options)?)
        }
        EngineKind::Lmdb => {
            let path = config.data_dir();
            prepare_data_dir(&path)?;
            Arc::new(Lmdb::open(lmdb::Options { map_size_bytes: config.map_size_bytes, ..lmdb::Options::new(&path) })?)
        }
    })
}

/// Makes the directory, for its owner only as etcd does, so that it is still there after a loss of power, and refuses one that etcd has
/// filled: an empty store in its place would look to kube-apiserver as if everything had been deleted.
fn prepare_data_dir(path: &Path) -> Result<(), RunError> {
    if path.join("member").is_dir() {
        return Err(RunError::EtcdData { path: path.to_owned() });
    }
    kubewharf_engine::make_directory(path).map_err(|error| RunError::DataDir { path: path.to_owned(), error })
}

fn grpc_options(config: &Config) -> kubewharf_grpc::ServerOptions {
    /// What a request may have around its largest value; etcd's allowance.
    const OVERHEAD_BYTES: usize = 512 << 10;
    let mut options = kubewharf_grpc::ServerOptions::default();
    options.request_bytes_max = config.request_bytes_max + OVERHEAD_BYTES;
    options.streams_per_connection_max = config.concurrent_streams_max.min(options.streams_per_connection_max);
    options.connections_max = config.connections_max;
    options.drain_timeout = config.drain_timeout;
    options.keepalive_timeout = config.grpc_keepalive_timeout;
    // "Never" is longer than any connection lives.
    options.keepalive_interval = config.grpc_keepalive_interval.unwrap_or(Duration::from_secs(u64::from(u32::MAX)));
    options
}

/// Ends the committer, and gives the engine back as soon as nobody reads it any more.
async fn close(store: Arc<Store>) -> Result<(), RunError> {
    let failure = store.failure();
    let closing = store.clone();
    tokio::task::spawn_blocking(move || closing.close()).await.map_err(RunError::Task)?;
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    while Arc::strong_count(&store) > 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    info!("stopped");
    failure.or_else(|| store.failure()).map_or(Ok(()), |why| Err(RunError::StoreFailed(why)))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use kubewharf_etcd_api::etcdserverpb::watch_client::WatchClient;
    use kubewharf_etcd_api::etcdserverpb::watch_request::RequestUnion;
    use kubewharf_etcd_api::etcdserverpb::{WatchCreateRequest, WatchRequest};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn watchers_of_a_store_that_fails_are_told_why() {
        let config = Config {
            engine: EngineKind::Memory,
            listen_client_urls: vec!["http://127.0.0.1:0".parse().unwrap()],
            ..Config::default()
        };
        let brain = Brain::start(config).await.unwrap();
        let (store, address) = (brain.store().clone(), brain.client_addresses()[0]);
        let ended = tokio::spawn(brain.serve(Shutdown::new()));
        let create = WatchCreateRequest { key: "k".into(), ..WatchCreateRequest::default() };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests = futures_util::stream::iter([request]).chain(futures_util::stream::pending());
        let mut client = WatchClient::connect(format!("http://{address}")).await.unwrap();
        let mut responses = client.watch(requests).await.unwrap().into_inner();
        assert!(responses.message().await.unwrap().unwrap().created);

        store.published().failed("the disk is gone");
        let status = responses.message().await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert!(status.message().contains("the disk is gone"), "{status}");
        let ended = ended.await.unwrap();
        assert!(matches!(&ended, Err(RunError::StoreFailed(why)) if why == "the disk is gone"), "{ended:?}");
    }
}
