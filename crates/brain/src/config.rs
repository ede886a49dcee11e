//! The settings of a store process: etcd's flags, environment variables and configuration file, and a few flags of our own.
//!
//! As in etcd: a flag wins over an `ETCD_…` variable's default, a flag and a variable for the same setting are a conflict, and a
//! configuration file (`--config-file`) makes all other flags and variables void. Every flag of etcd 3.6 and 3.7 is accepted; those
//! without meaning here are named in one warning. Settings are read once: a change needs a restart, except for the content of
//! certificate files.
//!
//! Invariant: a [`Config`] that parsing returns is complete and consistent; what can still fail is the outside world.

mod draft;
mod file;
mod flags;
mod values;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use flags::{Invocation, help, parse};
use kubewharf_foundation::listener::ListenUrl;
pub use values::ValueError;

use crate::cluster::PeerTls;

/// A wrong setting. Says where it stands, what is wrong, and how it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}: {problem}")]
pub struct ConfigError {
    /// The flag, variable, or file and key.
    pub source_name: String,
    /// What is wrong with it.
    pub problem: String,
}

impl ConfigError {
    fn new(source_name: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { source_name: source_name.to_string(), problem: problem.to_string() }
    }
}

/// Where the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// LMDB, in the data directory.
    Lmdb,
    /// Memory: everything is gone when the process ends. For tests and trials.
    Memory,
    /// PostgreSQL, or a database that speaks its protocol, which members share.
    Postgres,
    /// A cluster of TiKV, which members share.
    Tikv,
}

impl EngineKind {
    /// Whether several members may share the rows.
    #[must_use]
    pub fn is_shared(self) -> bool {
        matches!(self, Self::Postgres | Self::Tikv)
    }

    /// What `--engine` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Lmdb => "lmdb",
            Self::Memory => "memory",
            Self::Postgres => "postgres",
            Self::Tikv => "tikv",
        }
    }
}

/// When old revisions are compacted without being asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoCompaction {
    /// Keep what was the newest within this time.
    Periodic(Duration),
    /// Keep this many revisions.
    Revision(i64),
}

/// Files of a TLS server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, PEM.
    pub cert_file: PathBuf,
    /// Its private key, PEM.
    pub key_file: PathBuf,
    /// The authorities that may have signed clients' certificates, PEM.
    pub trusted_ca_file: Option<PathBuf>,
    /// Whether clients must have a certificate.
    pub client_cert_auth: bool,
    /// Revoked certificates of clients, PEM or DER.
    pub crl_file: Option<PathBuf>,
    /// Cipher suites to use; empty for all that are safe.
    pub cipher_suites: Vec<String>,
    /// Refuse TLS 1.2.
    pub only_tls13: bool,
    /// Refuse TLS 1.3.
    pub only_tls12: bool,
}

/// How records of the log are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Console,
}

/// What is logged, how, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `debug`, `info`, `warn`, `error`, `panic` or `fatal`.
    pub level: String,
    /// The form of records.
    pub format: LogFormat,
    /// `stderr`, `stdout`, or paths of files to append to.
    pub outputs: Vec<String>,
}

/// All settings of a store process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The member's name.
    pub name: String,
    /// The data directory; `NAME.etcd` if not set.
    pub data_dir: Option<PathBuf>,
    /// Where the rows are.
    pub engine: EngineKind,
    /// Where the shared database or cluster is.
    pub engine_url: Option<String>,
    /// The shared database's schema, or the store's name in a shared cluster.
    pub engine_schema: String,
    /// Use a database that can lose what was acknowledged when a standby is promoted.
    pub engine_allows_asynchronous_replication: bool,
    /// How long a leader over a shared engine may be silent before it is replaced.
    pub election_timeout: Duration,
    /// Where other members over the same engine are served.
    pub listen_peer_urls: Vec<ListenUrl>,
    /// TLS of those URLs.
    pub peer_tls: Option<TlsFiles>,
    /// How this member shows itself to others, and knows them.
    pub peer_client: PeerTls,
    /// Address space set aside for LMDB's file, in bytes: the most that it can grow to.
    pub map_size_bytes: u64,
    /// Where clients are served.
    pub listen_client_urls: Vec<ListenUrl>,
    /// Where clients are served plain HTTP only; if there are any, the client URLs answer gRPC only.
    pub listen_client_http_urls: Vec<ListenUrl>,
    /// Where health and metrics are served besides.
    pub listen_metrics_urls: Vec<ListenUrl>,
    /// URLs that clients are told.
    pub advertise_client_urls: Vec<String>,
    /// URLs that the list of members names.
    pub advertise_peer_urls: Vec<String>,
    /// TLS of the URLs with `https` or `unixs`.
    pub client_tls: Option<TlsFiles>,
    /// Make a certificate if [`Config::client_tls`] has none.
    pub client_auto_tls: bool,
    /// How many years a certificate made here is valid.
    pub self_signed_cert_validity_years: u32,
    /// Compaction without being asked.
    pub auto_compaction: Option<AutoCompaction>,
    /// Time between progress notifications of an idle watch.
    pub watch_progress_notify_interval: Duration,
    /// Largest request, in bytes.
    pub request_bytes_max: usize,
    /// Most operations in a transaction.
    pub txn_operations_max: usize,
    /// Calls that a client may have open on one connection.
    pub concurrent_streams_max: u32,
    /// Size of the database at which writes are refused, in bytes; `None` for the engine's own limit.
    pub quota_bytes: Option<u64>,
    /// A connection from which nothing came for this long is pinged; `None` for never.
    pub grpc_keepalive_interval: Option<Duration>,
    /// A ping that is not answered for this long ends the connection.
    pub grpc_keepalive_timeout: Duration,
    /// Logging.
    pub log: LogConfig,
    /// Memory for recent events that watchers read, in bytes.
    pub watch_ring_bytes: usize,
    /// Memory of all replies to lists together, in bytes.
    pub list_bytes_max: usize,
    /// Open connections, over all URLs.
    pub connections_max: usize,
    /// Time that calls in flight have to end when the process is told to stop.
    pub drain_timeout: Duration,
}

impl Default for Config {
    /// etcd's defaults where etcd has the setting.
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            data_dir: None,
            engine: EngineKind::Lmdb,
            engine_url: None,
            engine_schema: "kubebrain".to_owned(),
            engine_allows_asynchronous_replication: false,
            election_timeout: Duration::from_millis(1000),
            listen_peer_urls: vec!["http://localhost:2380".parse().expect("a correct URL")],
            peer_tls: None,
            peer_client: PeerTls::default(),
            map_size_bytes: 1 << 40,
            listen_client_urls: vec!["http://localhost:2379".parse().expect("a correct URL")],
            listen_client_http_urls: Vec::new(),
            listen_metrics_urls: Vec::new(),
            advertise_client_urls: vec!["http://localhost:2379".to_owned()],
            advertise_peer_urls: vec!["http://localhost:2380".to_owned()],
            client_tls: None,
            client_auto_tls: false,
            self_signed_cert_validity_years: 1,
            auto_compaction: None,
            watch_progress_notify_interval: Duration::from_secs(600),
            request_bytes_max: 1_572_864,
            txn_operations_max: 128,
            concurrent_streams_max: u32::MAX,
            quota_bytes: None,
            grpc_keepalive_interval: Some(Duration::from_secs(2 * 60 * 60)),
            grpc_keepalive_timeout: Duration::from_secs(20),
            log: LogConfig { level: "info".to_owned(), format: LogFormat::Json, outputs: vec!["stderr".to_owned()] },
            watch_ring_bytes: 64 << 20,
            list_bytes_max: 1 << 30,
            connections_max: 16 << 10,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| PathBuf::from(format!("{}.etcd", self.name)))
    }
}

#[cfg(test)]
mod tests;
