//! What every method needs.

use std::sync::Arc;

use bytes::Bytes;
use kubewharf_engine::{EngineError, Snapshot};
use kubewharf_etcd_api::etcdserverpb::ResponseHeader;
use kubewharf_foundation::Shutdown;

use super::budget::ListBudget;
use super::counts::Counts;
use super::metrics::Metrics;
use super::quota::Quota;
use crate::cluster::Cluster;
use crate::error::Error;
use crate::limits::KEY_BYTES_MAX;
use crate::mvcc::Revisions;
use crate::store::Store;

/// The operator's settings of the API.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The member's name.
    pub name: String,
    /// URLs under which clients reach this member.
    pub client_urls: Vec<String>,
    /// URLs of this member for other members; here they are only told to clients that ask.
    pub peer_urls: Vec<String>,
    /// Most operations in a transaction.
    pub txn_operations_max: usize,
    /// Largest request, in bytes.
    pub request_bytes_max: usize,
    /// Memory of all replies to lists together, in bytes; also the largest list.
    pub list_bytes_max: usize,
    /// Time between progress notifications of an idle watch.
    pub progress_notify_interval: std::time::Duration,
    /// Size of the database at which writes are refused, in bytes; 0 for none.
    pub quota_bytes: u64,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            client_urls: Vec::new(),
            peer_urls: Vec::new(),
            txn_operations_max: 128,
            request_bytes_max: 1_572_864,
            list_bytes_max: 1 << 30,
            progress_notify_interval: std::time::Duration::from_secs(600),
            quota_bytes: 0,
        }
    }
}

/// The API over a store.
pub struct Server {
    pub(crate) store: Arc<Store>,
    /// The member that this is, if the engine is shared.
    pub(crate) cluster: Option<Arc<Cluster>>,
    pub(crate) options: ServerOptions,
    pub(crate) lists: Arc<ListBudget>,
    pub(crate) counts: Counts,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) quota: Quota,
    pub(crate) runtime: tokio::runtime::Handle,
    /// Ends whatever waits for something else than its client.
    pub(crate) stopping: Shutdown,
    /// Longest key that a put may write.
    pub(crate) key_bytes_max: usize,
}

impl Server {
    /// The API over `store`, whose work runs on the current tokio runtime.
    #[must_use]
    pub fn new(store: Arc<Store>, options: ServerOptions) -> Arc<Self> {
        Self::of_member(store, None, options)
    }

    /// As [`Server::new`], for a member over a shared engine.
    #[must_use]
    pub fn of_member(store: Arc<Store>, cluster: Option<Arc<Cluster>>, options: ServerOptions) -> Arc<Self> {
        let engine_key_bytes = store.engine().limits().key_bytes_max;
        Arc::new(Self {
            lists: ListBudget::new(options.list_bytes_max),
            counts: Counts::default(),
            metrics: Arc::new(Metrics::default()),
            quota: Quota::default(),
            runtime: tokio::runtime::Handle::current(),
            stopping: Shutdown::new(),
            key_bytes_max: KEY_BYTES_MAX.min(engine_key_bytes.saturating_sub(8)),
            store,
            cluster,
            options,
        })
    }

    /// A view for a read, as [`Store::view`] gives it; a linearizable one is read only once watches here show as much. On threads that may block.
    pub(crate) fn view(
        &self,
        wanted: Option<&[u8]>,
        serializable: bool,
    ) -> Result<(Revisions, Box<dyn Snapshot + '_>), EngineError> {
        let (revisions, snapshot) = self.store.view(wanted)?;
        let Some(cluster) = self.cluster.as_ref().filter(|_| !serializable) else { return Ok((revisions, snapshot)) };
        if self.store.published().newest() >= revisions.newest {
            return Ok((revisions, snapshot));
        }
        // Whoever waits holds no view: those who publish need one.
        drop(snapshot);
        self.runtime.block_on(cluster.shows(revisions.newest));
        let (later, snapshot) = self.store.view(wanted)?;
        let shown = self.store.published().newest().max(revisions.newest).max(later.compacted);
        Ok((Revisions { newest: shown.min(later.newest), ..later }, snapshot))
    }

    /// The newest version's row of a key, as [`Store::newest_of`] gives it, once watches here show as much or the read need not be linearizable.
    /// `None` if they do not for too long: [`Server::view`] finds what they show. On threads that may block.
    pub(crate) fn newest_of(
        &self,
        key: &[u8],
        serializable: bool,
    ) -> Result<Option<(Revisions, Option<Bytes>)>, EngineError> {
        let (revisions, row) = self.store.newest_of(key)?;
        if let Some(cluster) = self.cluster.as_ref().filter(|_| !serializable)
            && self.store.published().newest() < revisions.newest
        {
            self.runtime.block_on(cluster.shows(revisions.newest));
            if self.store.published().newest() < revisions.newest {
                return Ok(None);
            }
        }
        Ok(Some((revisions, row)))
    }

    /// How much room the engine uses. May touch the disk.
    pub(crate) fn size(&self) -> Result<kubewharf_engine::Size, Error> {
        match &self.cluster {
            Some(cluster) => Ok(cluster.size()),
            None => Ok(self.store.engine().size()?),
        }
    }

    /// Adds what the gRPC server of the client port counts to the metrics.
    pub fn observe(&self, stats: Arc<kubewharf_grpc::Stats>) {
        // A second server's numbers would be another set; the first is the one that clients use.
        let _ = self.metrics.grpc.set(stats);
    }

    /// The end of this API, which its owner asks for.
    #[must_use]
    pub fn stopping(&self) -> &Shutdown {
        &self.stopping
    }

    /// Waits until a read here shows whatever was confirmed to anybody before.
    pub(crate) async fn linearize(&self) -> Result<(), Error> {
        match &self.cluster {
            Some(cluster) => cluster.linearize().await,
            None => Ok(()),
        }
    }

    /// The epoch in which this process leads, for an answer that rests on that; 0 where nobody else can.
    pub(crate) fn reign(&self) -> Result<u64, Error> {
        if self.cluster.is_none() { Ok(0) } else { self.store.leading_epoch().ok_or(Error::NotLeader) }
    }

    /// Makes sure that [`Server::reign`] has held until now.
    pub(crate) async fn still(&self, reign: u64) -> Result<(), Error> {
        self.linearize().await?;
        if self.reign()? == reign { Ok(()) } else { Err(Error::NotLeader) }
    }

    /// The header of an answer at `revision`.
    #[must_use]
    pub fn header(&self, revision: i64) -> ResponseHeader {
        let identity = self.store.identity();
        ResponseHeader {
            cluster_id: identity.cluster_id,
            member_id: identity.member_id,
            revision,
            raft_term: self.store.epoch(),
        }
    }
}
