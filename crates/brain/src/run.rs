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
use kubewharf_foundation::listener::{Bound, ListenUrl};
use kubewharf_foundation::shutdown::Shutdown;
use kubewharf_foundation::systemd;
use kubewharf_foundation::tls::ReloadingTls;
use kubewharf_grpc::{Dispatch, Listener, TlsSource};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::config::{Config, EngineKind};
use crate::rpc::{self, Api, GrpcOnly, HttpOnly, ServerOptions};
use crate::{Store, StoreOptions, autocompact, compaction, lease};

mod tls;

/// How long a stopped store waits for its last reader before it leaves the engine to it.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

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
    server: Arc<rpc::Server>,
    clients: Vec<(ListenUrl, Bound)>,
    client_http: Vec<(ListenUrl, Bound)>,
    metrics: Vec<(ListenUrl, Bound)>,
    tls: Option<Arc<ReloadingTls>>,
}

/// Opens the store and serves it until `shutdown`.
///
/// # Errors
/// If it can't be started, or fails while it serves: then nothing that was acknowledged is lost, and a new start finds out the rest.
pub async fn run(config: Config, shutdown: Shutdown) -> Result<(), RunError> {
    Brain::start(config).await?.serve(shutdown).await
}

impl Brain {
    /// Binds the URLs and opens the store.
    ///
    /// # Errors
    /// If an address, a certificate or the data directory can't be used.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let tls = tls::load(&config)?;
        let clients = bind(&config.listen_client_urls).await?;
        let client_http = bind(&config.listen_client_http_urls).await?;
        let metrics = bind(&config.listen_metrics_urls).await?;
        let opening = config.clone();
        let store = tokio::task::spawn_blocking(move || open(&opening)).await.map_err(RunError::Task)??;
        let server = rpc::Server::new(
            store.clone(),
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
        Ok(Self { config, store, server, clients, client_http, metrics, tls })
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
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
        let Self { config, store, server, clients, client_http, metrics, tls } = self;
        let api = Api(server.clone());
        let dispatch: Arc<dyn Dispatch> = if client_http.is_empty() { Arc::new(api) } else { Arc::new(GrpcOnly(api)) };
        let options = grpc_options(&config);
        let grpc = kubewharf_grpc::Server::new(dispatch, options.clone());
        server.observe(grpc.stats());
        let http_only = kubewharf_grpc::Server::new(Arc::new(HttpOnly::client(server.clone())), options.clone());
        let health_only = kubewharf_grpc::Server::new(Arc::new(HttpOnly::metrics(server.clone())), options);

        let mut listening = JoinSet::new();
        let urls = [(clients, grpc), (client_http, http_only), (metrics, health_only)];
        let mut served = Vec::new();
        for (bound, with) in urls {
            for (url, bound) in bound {
                served.push(url.to_string());
                let tls = tls.clone().filter(|_| url.is_tls()).map(|tls| Arc::new(move || tls.current()) as TlsSource);
                let (with, shutdown) = (with.clone(), shutdown.clone());
                let listener = match bound {
                    Bound::Tcp(listener) => Listener::Tcp(listener),
                    Bound::Unix(listener) => Listener::Unix(listener),
                };
                listening.spawn(async move { with.serve(listener, tls, shutdown.requested()).await });
            }
        }
        let mut tasks = JoinSet::new();
        if let Some(tls) = tls {
            tasks.spawn(async move {
                let Err(error) = tls.watch().await;
                warn!(%error, "changed certificates will not be noticed");
            });
        }
        tasks.spawn(lease::keeper::run(store.clone()));
        tasks.spawn(compaction::run(store.clone()));
        tasks.spawn(rpc::quota::run(server.clone()));
        if let Some(mode) = config.auto_compaction {
            tasks.spawn(autocompact::run(store.clone(), mode));
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
        if let Some(why) = failed {
            store.published().hub().close(&why);
            // Dropping the servers closes the connections: clients go on when the next process has the store.
            return Err(RunError::StoreFailed(why));
        }
        info!("draining");
        tokio::select! {
            () = async { while listening.join_next().await.is_some() {} } => {}
            () = shutdown.requested_now() => listening.abort_all(),
        }
        tasks.shutdown().await;
        lease::keeper::checkpoint_all(&store).await;
        drop(server);
        close(store).await
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

fn open(config: &Config) -> Result<Arc<Store>, RunError> {
    let begun = Instant::now();
    let engine: Arc<dyn Engine> = match config.engine {
        EngineKind::Memory => {
            warn!("the store is in memory: nothing is kept when this process ends");
            Arc::new(Memory::new())
        }
        EngineKind::Lmdb => {
            let path = config.data_dir();
            prepare_data_dir(&path)?;
            Arc::new(Lmdb::open(lmdb::Options { map_size_bytes: config.map_size_bytes, ..lmdb::Options::new(&path) })?)
        }
    };
    let store = Store::open(engine, StoreOptions { ring_bytes: config.watch_ring_bytes })?;
    info!(ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), "the store is open");
    Ok(store)
}

/// Makes the directory, for its owner only as etcd does, and refuses one that etcd has filled: an empty store in its place would look
/// to kube-apiserver as if everything had been deleted.
fn prepare_data_dir(path: &Path) -> Result<(), RunError> {
    use std::os::unix::fs::DirBuilderExt;
    if path.join("member").is_dir() {
        return Err(RunError::EtcdData { path: path.to_owned() });
    }
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| RunError::DataDir { path: path.to_owned(), error })
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
