//! The gateway in one process: reads the configuration, serves, follows changes, stops.
//!
//! Invariant: what is served is always one whole snapshot of the configuration that was found good; and a gateway that starts has one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::clock::RealClock;
use kubewharf_foundation::descriptors;
use kubewharf_front::{Addresses, Server, Timeouts};
use kubewharf_upstream::EndpointSettings;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};

use crate::access_log::{AccessLog, AccessLogTarget};
use crate::admin::{self, Admin};
use crate::cluster::{Cluster, Clusters, Common, Defaults, Prepared, Unusable};
use crate::config::{
    ClusterConfig, Discovery, LoadError, Problem, ServingPem, Severity, Snapshot, Source, SourceOptions,
};
use crate::drain::Drain;
use crate::front::Front;
use crate::limits::{CONNECTIONS_MAX, DNS_INTERVAL, OWN_DESCRIPTORS, SPANS_FLUSH_TIMEOUT};
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::proxy_protocol::TrustedPeers;
use crate::trace::{Exporter, TraceError, TraceOptions, Tracer};

/// How a gateway is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder of manifests.
    pub config_dir: PathBuf,
    /// Where clients connect, with TLS. Port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Where administrators and Prometheus connect, without TLS; `None` for nowhere.
    pub admin_listen: Option<SocketAddr>,
    /// The token that the admin listener wants for everything but `/livez` and `/readyz`.
    pub admin_token: Option<String>,
    /// The cluster of clients that name none.
    pub default_cluster: Option<String>,
    /// Certificate and key (PEM files) for clusters that have none of their own.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Whose client certificates are believed by clusters that do not say so themselves (a PEM file).
    pub client_ca: Option<PathBuf>,
    /// How long connections may take to end when the gateway stops. Watches end in the first half of it.
    pub drain_timeout: Duration,
    /// Client connections at once. As many as the system lets this process have, if those are less.
    pub connections_max: usize,
    /// The same from one address, or from one /64 of IPv6; further ones are closed at once. 0 for no limit but that of all.
    pub connections_per_address_max: usize,
    /// How long clients may take.
    pub client_timeouts: Timeouts,
    /// Who may tell by the PROXY protocol whose connection it is.
    pub proxy_protocol_from: TrustedPeers,
    /// The access log.
    pub access_log: AccessLogTarget,
    /// Traces; `None` for none.
    pub traces: Option<TraceOptions>,
}

impl Options {
    /// Options with the default of everything but these.
    #[must_use]
    pub fn new(config_dir: impl Into<PathBuf>, listen: Vec<SocketAddr>) -> Self {
        Self {
            config_dir: config_dir.into(),
            listen,
            admin_listen: None,
            admin_token: None,
            default_cluster: None,
            tls: None,
            client_ca: None,
            drain_timeout: Duration::from_secs(30),
            connections_max: CONNECTIONS_MAX,
            connections_per_address_max: 0,
            client_timeouts: Timeouts::default(),
            proxy_protocol_from: TrustedPeers::default(),
            access_log: AccessLogTarget::Off,
            traces: None,
        }
    }
}

/// Why a gateway can't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration has errors.
    #[error(transparent)]
    Config(#[from] LoadError),
    /// A file that an option names can't be read.
    #[error("{option}: can't read {}: {source}", path.display())]
    File {
        /// The option.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The access log can't be opened.
    #[error("the access log can't be written: {0}")]
    AccessLog(std::io::Error),
    /// Traces can't be sent.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// The admin listener would let everybody in.
    #[error("--admin-listen {0} is not a loopback address: it needs --admin-token-file")]
    AdminOpen(SocketAddr),
    /// A part of the start panicked.
    #[error("a task ended early: {0}")]
    Task(tokio::task::JoinError),
}

/// A gateway that listens and is not served yet.
pub struct Gateway {
    options: Options,
    source: Arc<Source>,
    preparation: Arc<Preparation>,
    proxy: Arc<Proxy>,
    listeners: Vec<TcpListener>,
    admin: Option<TcpListener>,
    exporter: Option<Exporter>,
}

/// Serves until `shutdown`.
///
/// # Errors
/// If it can't start.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), StartError> {
    Gateway::start(options).await?.serve(shutdown).await;
    Ok(())
}

impl Gateway {
    /// Reads the configuration and binds the addresses.
    ///
    /// # Errors
    /// If the configuration has errors, or an address can't be had.
    pub async fn start(options: Options) -> Result<Self, StartError> {
        if let Some(address) = options.admin_listen
            && options.admin_token.is_none()
            && !address.ip().is_loopback()
        {
            return Err(StartError::AdminOpen(address));
        }
        let common = Common {
            defaults: Defaults { serving: default_serving(&options)? },
            clock: Arc::new(RealClock),
            metrics: Metrics::new(),
        };
        let mut listeners = Vec::new();
        for address in &options.listen {
            listeners.push(listen(*address)?);
        }
        let admin = options.admin_listen.map(listen).transpose()?;
        let traces = options.traces.as_ref().map(|traces| Tracer::new(traces, common.metrics.spans_dropped()));
        let (tracer, exporter) = traces.transpose()?.unzip();
        let proxy = Arc::new(Proxy {
            clusters: ArcSwap::from_pointee(Clusters::empty()),
            metrics: common.metrics.clone(),
            access_log: AccessLog::start(&options.access_log).map_err(StartError::AccessLog)?,
            tracer,
            drain: Drain::new(options.drain_timeout),
        });
        let preparation = Arc::new(Preparation::new(common, proxy.clone()));
        let accepts = preparation.clone();
        let source_options = SourceOptions {
            directory: options.config_dir.clone(),
            default_cluster: options.default_cluster.clone(),
            accept: Some(Box::new(move |snapshot| accepts.accept(snapshot))),
        };
        let source =
            tokio::task::spawn_blocking(move || Source::open(source_options)).await.map_err(StartError::Task)??;
        Ok(Self { options, source, preparation, proxy, listeners, admin, exporter })
    }

    /// Where clients are served.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Where administrators are.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref()?.local_addr().ok()
    }

    /// Serves until `shutdown`, then lets connections end.
    pub async fn serve(self, shutdown: Shutdown) {
        let Self { options, source, preparation, proxy, listeners, admin, exporter } = self;
        let clock = preparation.common.clock.clone();
        let mut follower = Follower { preparation, resolvers: HashMap::new() };
        let mut snapshots = source.subscribe();
        follower.follow(&snapshots.borrow_and_update().clone());
        let connections_max = connections_max(options.connections_max);
        let front = Arc::new(Front {
            proxy: proxy.clone(),
            clock,
            proxy_protocol_peers: options.proxy_protocol_from,
            connections: Arc::new(Semaphore::new(connections_max)),
            connections_max,
            per_address: Addresses::new(options.connections_per_address_max),
            server: Server {
                timeouts: options.client_timeouts,
                drain_timeout: options.drain_timeout,
                shutdown: shutdown.clone(),
            },
        });
        let mut background = JoinSet::new();
        background.spawn({
            let source = source.clone();
            async move {
                let Err(error) = source.watch().await;
                tracing::error!(%error, "the configuration is not watched any more");
            }
        });
        background.spawn(async move {
            while snapshots.changed().await.is_ok() {
                let snapshot = snapshots.borrow_and_update().clone();
                follower.follow(&snapshot);
            }
        });
        background.spawn({
            let (proxy, stops) = (proxy.clone(), shutdown.requested());
            async move {
                stops.await;
                proxy.drain.begin();
            }
        });
        if let Some(listener) = admin {
            let admin = Admin { proxy, source, token: options.admin_token, shutdown: shutdown.clone() };
            background.spawn(admin::listen(Arc::new(admin), listener));
        }
        let served = Shutdown::new();
        let exporting = exporter.map(|exporter| tokio::spawn(exporter.run(served.clone())));
        let mut serving = JoinSet::new();
        for listener in listeners {
            serving.spawn(front.clone().listen(listener));
        }
        tracing::info!("ready to serve clients");
        while serving.join_next().await.is_some() {}
        served.request();
        if let Some(mut exporting) = exporting {
            tokio::select! {
                _ = &mut exporting => {}
                () = tokio::time::sleep(SPANS_FLUSH_TIMEOUT) => tracing::warn!("the last spans are not taken in time"),
                () = shutdown.requested_now() => {}
            }
            exporting.abort();
        }
        // The rest has no end of its own.
        background.shutdown().await;
        tracing::info!("stopped");
    }
}

/// What a snapshot needs to be put to work, made while it is judged: what was found good is what is used then, and not made again, when a
/// certificate may have come to its end.
struct Preparation {
    common: Common,
    proxy: Arc<Proxy>,
    /// What is not at work yet, oldest first.
    prepared: Mutex<Vec<PreparedCluster>>,
}

struct PreparedCluster {
    /// The first snapshot that it is for.
    generation: u64,
    config: Arc<ClusterConfig>,
    parts: Prepared,
}

impl Preparation {
    fn new(common: Common, proxy: Arc<Proxy>) -> Self {
        Self { common, proxy, prepared: Mutex::default() }
    }

    /// Prepares the clusters that have changed; what of them can't be put to work refuses the whole snapshot.
    fn accept(&self, snapshot: &Snapshot) -> Vec<Problem> {
        let at_work = self.proxy.clusters.load_full();
        let generation = snapshot.generation();
        let mut all = self.prepared.lock();
        // A snapshot of the same number was refused.
        all.retain(|prepared| prepared.generation < generation);
        let mut problems = Vec::new();
        for config in snapshot.clusters().values() {
            if at_work.has(config) || all.iter().any(|prepared| Arc::ptr_eq(&prepared.config, config)) {
                continue;
            }
            let before = at_work.get(&config.name).map(|before| &**before);
            match Prepared::new(config, before, &self.common) {
                Ok(parts) => all.push(PreparedCluster { generation, config: config.clone(), parts }),
                Err(unusable) => problems.extend(unusable.into_iter().map(|unusable| problem(config, unusable))),
            }
        }
        problems
    }

    /// What was prepared for a snapshot; what was for those before it is forgotten.
    fn take(&self, snapshot: &Snapshot) -> HashMap<Arc<str>, Prepared> {
        let mut all = self.prepared.lock();
        let (due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut *all).into_iter().partition(|prepared| prepared.generation <= snapshot.generation());
        *all = later;
        drop(all);
        let is_used =
            |config: &Arc<ClusterConfig>| snapshot.cluster(&config.name).is_some_and(|used| Arc::ptr_eq(used, config));
        due.into_iter()
            .filter(|prepared| is_used(&prepared.config))
            .map(|prepared| (prepared.config.name.clone(), prepared.parts))
            .collect()
    }
}

fn problem(config: &ClusterConfig, unusable: Unusable) -> Problem {
    Problem {
        severity: Severity::Error,
        file: config.file.to_path_buf(),
        line: config.line,
        field: unusable.field.to_owned(),
        problem: unusable.problem,
        remedy: "correct it; until then the configuration before stays in use".to_owned(),
    }
}

/// Puts each new snapshot to work.
struct Follower {
    preparation: Arc<Preparation>,
    /// Who looks endpoints up in the DNS, by cluster.
    resolvers: HashMap<Arc<str>, (Discovery, AbortHandle)>,
}

impl Follower {
    fn follow(&mut self, snapshot: &Arc<Snapshot>) {
        let Preparation { common, proxy, .. } = &*self.preparation;
        let old = proxy.clusters.load_full();
        let prepared = self.preparation.take(snapshot);
        for (name, config) in snapshot.clusters() {
            if !old.has(config) && !prepared.contains_key(name) {
                // Every snapshot is accepted before it comes here.
                tracing::error!(cluster = %name, "the cluster's new configuration is not prepared; what is at work stays");
            }
        }
        let next = Arc::new(old.next(snapshot.clone(), prepared, common));
        self.resolvers.retain(|name, (discovery, resolver)| {
            let stays = next.get(name).is_some_and(|cluster| cluster.config.discovery == *discovery);
            if !stays {
                resolver.abort();
            }
            stays
        });
        for cluster in next.iter() {
            self.resolve(cluster);
        }
        self.preparation.proxy.clusters.store(next);
    }

    fn resolve(&mut self, cluster: &Arc<Cluster>) {
        let config = &cluster.config;
        let Discovery::Dns { name, port, scheme } = &config.discovery else { return };
        if self.resolvers.contains_key(&config.name) {
            return;
        }
        let source = kubewharf_upstream::Source::Dns {
            https: *scheme == crate::config::Scheme::Https,
            host: name.to_string(),
            port: *port,
        };
        let finder = cluster.upstream.finder();
        let task = tokio::spawn(source.follow(DNS_INTERVAL, move |addresses| {
            finder.found(addresses.into_iter().map(EndpointSettings::new).collect());
        }));
        self.resolvers.insert(config.name.clone(), (config.discovery.clone(), task.abort_handle()));
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.resolvers.values().for_each(|(_, resolver)| resolver.abort());
    }
}

/// Sees to it that as many connections as wanted can be open, or else takes less, so that clients can't use up what connections to
/// kube-apiservers need.
fn connections_max(wanted: usize) -> usize {
    let limit = match descriptors::raise_limit() {
        Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files can't be raised");
            return wanted;
        }
    };
    let possible = limit.saturating_sub(OWN_DESCRIPTORS).max(limit / 2);
    if possible < wanted {
        tracing::warn!(
            limit,
            possible,
            wanted,
            "fewer files may be open (ulimit -n) than connections are allowed (--max-connections): further clients will wait"
        );
    }
    possible.min(wanted)
}

fn default_serving(options: &Options) -> Result<ServingPem, StartError> {
    let read = |option, path: &PathBuf| {
        std::fs::read(path).map_err(|source| StartError::File { option, path: path.clone(), source })
    };
    let mut serving = ServingPem::default();
    if let Some((certificate, key)) = &options.tls {
        serving.certificate = Some(crate::authentication::tls::ServerTlsSettings {
            certificate: read("--tls-cert", certificate)?,
            key: read("--tls-key", key)?,
        });
    }
    if let Some(path) = &options.client_ca {
        serving.client_trust = Some(crate::authentication::x509::ClientTrustSettings {
            authorities: read("--client-ca", path)?,
            revocations: None,
        });
    }
    Ok(serving)
}

fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    kubewharf_front::listen(address).map_err(|source| StartError::Listen { address, source })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kubewharf_foundation::clock::ManualClock;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};

    use super::*;
    use crate::config::Reload;

    /// A folder of manifests, and what follows it.
    struct Following {
        folder: tempfile::TempDir,
        clock: ManualClock,
        source: Arc<Source>,
        follower: Follower,
    }

    /// Writes the manifest of a cluster whose clients an authority vouches for that is trusted until 2040.
    fn write(folder: &Path, name: &str, policy: &str) {
        let manifest = format!(
            "apiVersion: proxy.kubegateway.io/v1alpha1\nkind: UpstreamCluster\nmetadata:\n  name: {name}\nspec:\n  \
             servers:\n  - endpoint: http://127.0.0.1:1\n  secureServing:\n    clientCAFile: {}\n  dispatchPolicies:\n  \
             - name: {policy}\n    rules:\n    - {{verbs: ['*'], apiGroups: ['*'], resources: ['*']}}\n",
            folder.join("ca.pem").display(),
        );
        std::fs::write(folder.join(format!("{name}.yaml")), manifest).unwrap();
    }

    fn write_authority(folder: &Path) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(2040, 1, 1);
        let authority = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    }

    fn year(year: i32) -> u64 {
        u64::try_from(date_time_ymd(year, 1, 1).unix_timestamp()).unwrap() * 1000
    }

    impl Following {
        /// Begins with the cluster `a.test` and its policy `first`, in the year 2030.
        fn start() -> Self {
            let folder = tempfile::tempdir().unwrap();
            write_authority(folder.path());
            write(folder.path(), "a.test", "first");
            let clock = ManualClock::new(0, year(2030));
            let common =
                Common { defaults: Defaults::default(), clock: Arc::new(clock.clone()), metrics: Metrics::new() };
            let proxy = Arc::new(Proxy {
                clusters: ArcSwap::from_pointee(Clusters::empty()),
                metrics: common.metrics.clone(),
                access_log: AccessLog::start(&AccessLogTarget::Off).unwrap(),
                tracer: None,
                drain: Drain::new(Duration::ZERO),
            });
            let preparation = Arc::new(Preparation::new(common, proxy));
            let accepts = preparation.clone();
            let source = Source::open(SourceOptions {
                directory: folder.path().to_path_buf(),
                default_cluster: None,
                accept: Some(Box::new(move |snapshot| accepts.accept(snapshot))),
            });
            let mut follower = Follower { preparation, resolvers: HashMap::new() };
            let source = source.unwrap();
            follower.follow(&source.current());
            Self { folder, clock, source, follower }
        }

        fn write(&self, name: &str, policy: &str) {
            write(self.folder.path(), name, policy);
        }

        fn follow(&mut self) {
            self.follower.follow(&self.source.current());
        }

        /// The policy of a cluster that is at work.
        fn policy(&self, name: &str) -> Option<String> {
            let clusters = self.follower.preparation.proxy.clusters.load();
            Some(clusters.get(name)?.config.policies.policies()[0].name.to_string())
        }
    }

    #[tokio::test]
    async fn what_was_found_good_is_put_to_work_whatever_happens_meanwhile() {
        let mut following = Following::start();
        assert_eq!(following.policy("a.test").as_deref(), Some("first"));
        following.write("a.test", "second");
        write_authority(following.folder.path());
        assert!(matches!(following.source.reload(), Reload::Published(_)));
        following.clock.set_wall_ms(year(2041));
        following.follow();
        assert_eq!(following.policy("a.test").as_deref(), Some("second"));
    }

    #[tokio::test]
    async fn a_cluster_that_cannot_be_put_to_work_refuses_the_new_configuration_as_a_whole() {
        let mut following = Following::start();
        following.clock.set_wall_ms(year(2041));
        following.write("a.test", "second");
        following.write("b.test", "first");
        write_authority(following.folder.path());
        assert_eq!(following.source.reload(), Reload::Refused);
        let errors = following.source.status().errors.clone();
        assert!(errors.iter().any(|error| error.to_string().contains("every certificate has expired")), "{errors:?}");
        following.follow();
        assert_eq!((following.policy("a.test").as_deref(), following.policy("b.test")), (Some("first"), None));
        // A new generation of the same number is another one.
        following.clock.set_wall_ms(year(2031));
        assert!(matches!(following.source.reload(), Reload::Published(_)));
        following.follow();
        let both = [following.policy("a.test"), following.policy("b.test")];
        assert_eq!(both, [Some("second".to_owned()), Some("first".to_owned())]);
    }

    #[tokio::test]
    async fn what_has_not_changed_is_not_judged_again() {
        let mut following = Following::start();
        following.clock.set_wall_ms(year(2041));
        std::fs::write(
            following.folder.path().join("b.test.yaml"),
            "apiVersion: proxy.kubegateway.io/v1alpha1\nkind: UpstreamCluster\nmetadata: {name: b.test}\nspec:\n  \
             servers: [{endpoint: 'http://127.0.0.1:1'}]\n  dispatchPolicies:\n  - name: first\n    rules:\n    \
             - {verbs: ['*'], apiGroups: ['*'], resources: ['*']}\n",
        )
        .unwrap();
        assert!(matches!(following.source.reload(), Reload::Published(_)));
        following.follow();
        let both = [following.policy("a.test"), following.policy("b.test")];
        assert_eq!(both, [Some("first".to_owned()), Some("first".to_owned())]);
    }

    #[tokio::test]
    async fn configurations_that_come_quickly_after_one_another_are_put_to_work_together() {
        let mut following = Following::start();
        following.write("a.test", "second");
        assert!(matches!(following.source.reload(), Reload::Published(_)));
        following.write("b.test", "first");
        assert!(matches!(following.source.reload(), Reload::Published(_)));
        following.write("a.test", "third");
        std::fs::write(following.folder.path().join("c.yaml"), "kind: [").unwrap();
        assert_eq!(following.source.reload(), Reload::Refused);
        following.follow();
        let both = [following.policy("a.test"), following.policy("b.test")];
        assert_eq!(both, [Some("second".to_owned()), Some("first".to_owned())]);
        assert!(following.follower.preparation.prepared.lock().is_empty());
    }
}
