//! The engine over TiKV, a cluster of servers that shards and replicates: several processes may share one store.
//!
//! Job: keep an engine's tables as keys of a cluster. A batch is one optimistic transaction whose primary is the head's row; a view is a
//! timestamp. Knows nothing of what the rows mean.
//!
//! Invariant: a batch is applied only by a transaction that has read the head it expects and replaces it, and is confirmed only when the cluster has
//! confirmed that transaction. What is not clear is found out by asking for the transaction's primary, or is unknown ([`outcome`]); sending
//! the batch again settles it, because the head tells.
//!
//! Invariant: every call has a deadline, until which it is tried again, and nothing of the store is remembered in this process: servers that restart,
//! regions that move or split, and PDs that are away for a while are not to stop anything for longer than that. How the cluster is spoken to is left to
//! [`client`].

mod client;
mod commit;
mod error;
mod gc;
#[rustfmt::skip]
#[allow(unreachable_pub, dead_code, clippy::enum_variant_names, reason = "it is generated")]
mod generated {
    pub mod errorpb;
    pub mod keyspacepb;
    pub mod kvrpcpb;
    pub mod metapb;
    pub mod pdpb;
}
mod key;
mod outcome;
mod restore;
mod size;
mod snapshot;
mod store;
mod url;
mod wait;

use std::iter;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kubewharf_engine::{Batch, Cause, CommitError, Engine, EngineError, Limits, Size, Snapshot, Table, dump};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use error::OpenError;

use crate::client::{Client, Use, unavailable};
use crate::key::Keys;
use crate::url::Target;

/// A row is one entry of Raft's log, which TiKV limits to 8 MiB by default; a key has the other engines' bound, which keeps stores portable. A batch
/// is held twice while it is sent. What it deletes is stepped over by scans until the cluster cleans it up, so there is a bound to that as well.
const LIMITS: Limits =
    Limits { key_bytes_max: 1980, value_bytes_max: 6 << 20, batch_bytes_max: 32 << 20, batch_operations_max: 1 << 15 };

/// Beyond a call's deadline, for its task to say so itself.
const GRACE: Duration = Duration::from_millis(500);
const THREADS: usize = 2;

/// How a store in a cluster is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the cluster is: `tikv://host:port,host:port?name=value&…`, the addresses of its PDs and parameters. These are `ca`, a PEM file,
    /// for TLS, with `cert` and `key` where servers ask for a certificate; `keyspace`, one of the cluster's that the store is kept in; `gc_life_time`, how long the cluster keeps what was
    /// overwritten (10m by default), as views must not be older; `gc=true`, to tell the cluster to clean up what is older, where
    /// nobody else does; and `one_phase=false`, for servers whose commits in one phase are not to be trusted.
    pub url: String,
    /// The store's name, with which its keys begin; made if it is not there. Up to 64 bytes, none of them zero.
    pub schema: String,
    /// Connections for views, to each of the cluster's servers. One more is kept for commits and for views that others wait for.
    pub connections: usize,
    /// How long a commit is tried. Large batches are given a second more for each MiB.
    pub commit_timeout: Duration,
    /// How long a read is tried, and how long the outcome of a commit that failed is asked for.
    pub read_timeout: Duration,
}

impl Options {
    /// The store `kubebrain` of that cluster, with everything else by default.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            schema: "kubebrain".to_owned(),
            connections: 2,
            commit_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
        }
    }
}

/// A store in a cluster.
pub struct Tikv {
    shared: Arc<Shared>,
    measure: Mutex<size::Measure>,
    /// Runs the client. `None` only while this is dropped.
    runtime: Option<Runtime>,
}

/// What tasks need of the engine.
struct Shared {
    options: Options,
    keys: Keys,
    client: Arc<Client>,
    /// Views that are older may show less than there was.
    view_age_max: Duration,
    allows_one_phase: bool,
}

impl Tikv {
    /// Opens the store, which is made if it is not there. The head stays as it is: several processes may open the same store, and a
    /// process that wants it for itself begins an epoch by a commit.
    ///
    /// # Errors
    /// When the cluster can't be reached or used within [`Options::read_timeout`], or its data are not a whole store that this version
    /// knows.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let target = Target::parse(&options.url).map_err(OpenError::Url)?;
        if let Some(tls) = &target.tls {
            // Files that can't be read at all are an error now, and not a reason to try again.
            let identity = tls.identity.iter().flat_map(|(cert, key)| [("cert", cert), ("key", key)]);
            for (name, path) in iter::once(("ca", &tls.ca)).chain(identity) {
                let unreadable = |error| OpenError::Url(format!("{name} {}: {error}", path.display()));
                std::fs::read(path).map_err(unreadable)?;
            }
        }
        let keys = Keys::new(&options.schema).map_err(OpenError::Url)?;
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("tikv").enable_all().build();
        let runtime = runtime.map_err(|error| Cause::Io(format!("can't start a thread: {error}")))?;
        let Target { gc_life_time: life_time, collects_garbage, allows_one_phase, .. } = target.clone();
        // Not all of it: the cluster's clock and this one count from different moments.
        let view_age_max = life_time - life_time / 10;
        let client = {
            let _guard = runtime.enter();
            Arc::new(Client::new(&target, options.connections))
        };
        let deadline = Instant::now() + options.read_timeout;
        let keyspace = block_on(&runtime, deadline, {
            let client = client.clone();
            async move { client.enter(target.keyspace.as_deref(), deadline).await }
        })?;
        let keys = keys.within(keyspace);
        let shared = Arc::new(Shared { options, keys, client, view_age_max, allows_one_phase });
        let engine = Self { shared, measure: Mutex::default(), runtime: Some(runtime) };
        store::ensure(&engine)?;
        if collects_garbage && let Some(runtime) = &engine.runtime {
            runtime.spawn(gc::run(engine.shared.clone(), life_time));
        }
        Ok(engine)
    }

    /// Loads a backup into a new store and opens it. The backup may be that of any engine that writes this form ([`dump`]).
    ///
    /// # Errors
    /// As [`Tikv::open`]; when there is a store of that name already; and when the backup is damaged, or can't be loaded to its end: the store
    /// is then refused by [`Tikv::open`].
    pub fn restore(options: Options, backup: &Path) -> Result<Self, OpenError> {
        restore::restore(options, backup)
    }

    fn read_deadline(&self) -> Instant {
        Instant::now() + self.shared.options.read_timeout
    }

    /// Waits for a task that keeps to that deadline by itself.
    fn run<T: Send + 'static>(
        &self,
        deadline: Instant,
        task: impl Future<Output = Result<T, Cause>> + Send + 'static,
    ) -> Result<T, Cause> {
        block_on(self.runtime(), deadline, task)
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("there is a runtime until the engine is dropped")
    }
}

/// Runs a task on the runtime's own threads, where its sockets and timers are, and waits for it.
fn block_on<T: Send + 'static>(
    runtime: &Runtime,
    deadline: Instant,
    task: impl Future<Output = Result<T, Cause>> + Send + 'static,
) -> Result<T, Cause> {
    wait_for(deadline, runtime.spawn(task))
}

/// Waits for a task that keeps to that deadline by itself.
fn wait_for<T>(deadline: Instant, mut task: JoinHandle<Result<T, Cause>>) -> Result<T, Cause> {
    match wait::until((deadline + GRACE).into_std(), &mut task) {
        Some(Ok(answer)) => answer,
        Some(Err(error)) => Err(unavailable(format!("a task has failed: {error}"))),
        None => {
            task.abort();
            Err(unavailable("no answer in time"))
        }
    }
}

impl Engine for Tikv {
    fn name(&self) -> &'static str {
        "tikv"
    }

    fn snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        self.snapshot_with(&[])
    }

    fn snapshot_with(&self, wanted: &[(Table, &[u8])]) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        Ok(Box::new(snapshot::View::begin(self, Use::Views, wanted)?))
    }

    fn urgent_snapshot(&self) -> Result<Box<dyn Snapshot + '_>, EngineError> {
        Ok(Box::new(snapshot::View::begin(self, Use::Urgent, &[])?))
    }

    fn reconnect(&self) {
        self.shared.client.renew();
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

impl Drop for Tikv {
    fn drop(&mut self) {
        // Not waited for: that is not allowed on a runtime's thread, and nothing is lost by it.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
