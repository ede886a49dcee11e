//! The engine over PostgreSQL, and over databases that speak its language: several processes may share one store.
//!
//! Job: keep an engine's tables in a schema of a database. A batch is one transaction that replaces the head's row, sent as one round trip; a
//! view is a read-only transaction. Knows nothing of what the rows mean.
//!
//! Invariant: a batch is applied only by a transaction that has replaced the whole head it expects, and is confirmed only when the server has
//! confirmed that transaction as durable. What the server did not say clearly is unknown ([`outcome`]), and sending the batch again settles
//! it, because the head tells.
//!
//! Invariant: a server that restarts, fails over or is away for a while stops nothing for longer than that: connections are replaced, and
//! nothing of the store is remembered in this process.
//!
//! Behind a pooler in transaction mode (pgbouncer) nothing may belong to a session: see [`Options::is_pooled`].

mod commit;
mod error;
mod link;
mod outcome;
mod passfile;
mod pool;
mod restore;
mod schema;
mod size;
mod snapshot;
mod socket;
mod sql;
mod tls;
mod url;
mod wait;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kubewharf_engine::{Batch, CommitError, Engine, EngineError, Head, Limits, Size, Snapshot, Table, dump};
use parking_lot::Mutex;

pub use error::OpenError;

use crate::link::Link;
use crate::pool::{Connector, Pool};
use crate::url::{Environment, Target};

/// A row's key must fit a third of an index page, so there is room; the same bound as the other engines have keeps stores portable.
/// Batches are smaller than the default engine takes, as each is held twice while it is sent, and by the server once more.
const LIMITS: Limits =
    Limits { key_bytes_max: 1980, value_bytes_max: 32 << 20, batch_bytes_max: 64 << 20, batch_operations_max: 1 << 17 };

/// Connections for [`Engine::urgent_snapshot`]: one that looks, one that evaluates.
const URGENT_CONNECTIONS: usize = 2;

/// How a store in a database is opened.
#[derive(Clone)]
pub struct Options {
    /// Where the database is, as libpq takes it: `postgres://user@host1,host2/database?sslmode=verify-full`, or `host=… dbname=…`. A session
    /// that may write is looked for among the hosts. The password may also come from `PGPASSWORD` or a password file.
    pub url: String,
    /// The schema that holds the store; made if it is not there. One store a schema.
    pub schema: String,
    /// Most connections for reads; each view holds one. One more is kept for commits, and two for views that others wait for.
    pub connections: usize,
    /// How long a commit may take before its outcome counts as unknown. Large batches are given a second more for each 8 MiB.
    pub commit_timeout: Duration,
    /// How long a read waits for a connection, and then for each answer.
    pub read_timeout: Duration,
    /// Opens the store although a standby follows that the server does not wait for: what was acknowledged may be lost in a failover.
    pub allow_asynchronous_replication: bool,
    /// A pooler that hands out sessions by the transaction is between; `pgbouncer=true` in the URL says the same. Statements are then not
    /// prepared, and settings are made in each transaction.
    pub is_pooled: bool,
}

impl Options {
    /// The store in the schema `kubebrain` of that database, with everything else by default.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: "kubebrain".to_owned(),
            connections: 8,
            commit_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
            allow_asynchronous_replication: false,
            is_pooled: false,
        }
    }
}

/// Without the URL, which may hold a password.
impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("schema", &self.schema)
            .field("connections", &self.connections)
            .field("commit_timeout", &self.commit_timeout)
            .field("read_timeout", &self.read_timeout)
            .field("allow_asynchronous_replication", &self.allow_asynchronous_replication)
            .field("is_pooled", &self.is_pooled)
            .finish_non_exhaustive()
    }
}

/// A store in a database.
pub struct Postgres {
    options: Options,
    /// The connection of commits; `None` until it is needed.
    writer: Mutex<Option<Link>>,
    pool: Pool,
    /// Connections that views of clients do not take.
    urgent: Pool,
    connector: Connector,
}

impl Postgres {
    /// Opens the store, which is made if it is not there. The head stays as it is: several processes may open the same store, and a
    /// process that wants it for itself begins an epoch by a commit.
    ///
    /// # Errors
    /// When the database can't be reached or used within [`Options::read_timeout`], or its data are not a whole store that this version
    /// knows.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let target = Target::parse(&options.url, Environment::of_process()).map_err(OpenError::Url)?;
        // Files that can't be read at all are an error now, and not a reason to try again.
        target.tls.connector().map_err(OpenError::Url)?;
        let options = Options { is_pooled: options.is_pooled || target.is_pooled, ..options };
        let connector = Connector::new(Arc::new(target), options.is_pooled);
        let (pool, urgent) = (Pool::new(options.connections), Pool::new(URGENT_CONNECTIONS));
        let engine = Self { options, writer: Mutex::new(None), pool, urgent, connector };
        let link = engine.connector.connect(engine.read_deadline())?;
        schema::check_replication(&engine.options, &link)?;
        schema::ensure(&engine.options, &link)?;
        *engine.writer.lock() = Some(link);
        Ok(engine)
    }

    /// Loads a backup into a new store and opens it. The backup may be that of any engine that writes this form ([`dump`]).
    ///
    /// # Errors
    /// As [`Postgres::open`]; when the schema holds a store already; and when the backup is damaged, or can't be loaded to its end: the schema
    /// is then refused by [`Postgres::open`] until it is dropped.
    pub fn restore(options: Options, backup: &Path) -> Result<Self, OpenError> {
        restore::restore(options, backup)
    }

    fn read_deadline(&self) -> Instant {
        Instant::now() + self.options.read_timeout
    }
}

impl Engine for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.snapshot_with(&[])
    }

    fn snapshot_with(&self, wanted: &[(Table, &[u8])]) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        Ok(Box::new(snapshot::View::begin(self, &self.pool, wanted)?))
    }

    fn read(&self, wanted: &[(Table, &[u8])]) -> Result<(Head, Vec<Option<Bytes>>), EngineError> {
        snapshot::read(self, wanted)
    }

    fn urgent_snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        Ok(Box::new(snapshot::View::begin(self, &self.urgent, &[])?))
    }

    fn reconnect(&self) {
        self.pool.renew();
        self.urgent.renew();
    }

    fn commit(&self, batch: &Batch) -> Result<(), CommitError> {
        commit::commit(self, batch)
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    fn size(&self) -> Result<Size, EngineError> {
        size::size(self)
    }

    fn backup(&self, target: &Path) -> Result<(), EngineError> {
        dump::write_file(&*self.snapshot()?, target)
    }

    fn reads_may_wait(&self) -> bool {
        true
    }
}
