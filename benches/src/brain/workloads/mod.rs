//! What the stores are asked to do, in the order in which it is done.

mod compact;
mod lease;
mod list;
mod load;
mod point;
mod watch;

use std::cell::RefCell;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use kubewharf_etcd_api::Method;
use serde::{Deserialize, Serialize};

use super::keys::{Objects, PREFIX};
use super::measure::{Loop, Measured, Meter, Plan, Turn, run_loop};
use super::options::Scale;
use super::requests::{self, header_revision};
use super::target::Target;
use crate::client::Connection;
use crate::wire::field;

/// A workload. The order is that in which they run: the number of objects is the same for all but creates and deletes.
/// Lists come after a compaction, which a cluster has every five minutes; and the largest come last, because they
/// change a garbage collector's pace for all that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Puts all objects, many to a transaction. Always runs.
    Load,
    /// Reads one object.
    Get,
    /// Changes an object.
    Update,
    /// Makes an object.
    Create,
    /// Deletes what was created.
    Delete,
    /// Changes objects while many watch.
    Watch,
    /// Lists a small resource and begins to watch it.
    ListWatch,
    /// Grants leases.
    LeaseGrant,
    /// Makes objects with leases.
    LeasePut,
    /// Renews leases.
    LeaseKeepAlive,
    /// Compacts at the newest revision, and waits until what that frees is removed.
    Compact,
    /// Lists the resource in pages of 500.
    #[value(name = "list-500")]
    #[serde(rename = "list-500")]
    List500,
    /// Lists the resource in pages of 10,000.
    #[value(name = "list-10000")]
    #[serde(rename = "list-10000")]
    List10000,
    /// Lists the resource with one request.
    ListWhole,
}

impl Workload {
    /// All, in their order.
    pub const ALL: [Self; 14] = [
        Self::Load,
        Self::Get,
        Self::Update,
        Self::Create,
        Self::Delete,
        Self::Watch,
        Self::ListWatch,
        Self::LeaseGrant,
        Self::LeasePut,
        Self::LeaseKeepAlive,
        Self::Compact,
        Self::List500,
        Self::List10000,
        Self::ListWhole,
    ];

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Load => "load, 128 puts a transaction",
            Self::Get => "get",
            Self::Update => "update",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Watch => "watch fan-out",
            Self::ListWatch => "list and watch a namespace",
            Self::LeaseGrant => "lease grant",
            Self::LeasePut => "create with lease",
            Self::LeaseKeepAlive => "lease keep-alive",
            Self::Compact => "compaction",
            Self::List500 => "list, pages of 500",
            Self::List10000 => "list, pages of 10,000",
            Self::ListWhole => "list, whole",
        }
    }

    /// What its cost is divided by.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Load | Self::List500 | Self::List10000 | Self::ListWhole => "key",
            Self::Watch => "event",
            Self::Compact => "revision",
            _ => "operation",
        }
    }

    /// What its latency is the latency of.
    pub fn latency_of(self) -> &'static str {
        match self {
            Self::Load => "transaction",
            Self::Watch => "write to event",
            Self::List500 | Self::List10000 => "page",
            Self::ListWhole => "list",
            Self::Compact => "call",
            Self::ListWatch => "list to watch",
            _ => "operation",
        }
    }
}

/// One side's turn in a round: a store, and what is known of the objects in it.
pub struct Bench {
    scale: Scale,
    target: Target,
    connections: Vec<Connection>,
    objects: RefCell<Objects>,
    /// The leases that were granted.
    leases: RefCell<Vec<i64>>,
}

impl Bench {
    /// Connects to a server that is empty, for so many objects.
    ///
    /// # Errors
    /// When it takes no connection.
    pub async fn new(scale: Scale, target: Target, keys: u64) -> Result<Self> {
        let connections = target.connect(scale.connections).await?;
        let objects = RefCell::new(Objects::new(keys, scale.key_bytes, scale.value_bytes));
        Ok(Self { scale, target, connections, objects, leases: RefCell::default() })
    }

    /// Runs a workload. [`Workload::Load`] must be the first, or [`Bench::fill`] before it.
    ///
    /// # Errors
    /// When the server fails or answers wrongly.
    pub async fn run(&self, workload: Workload) -> Result<Measured> {
        let measured = match workload {
            Workload::Load => self.load().await,
            Workload::Get => self.get().await,
            Workload::Update => self.update().await,
            Workload::Create => self.create().await,
            Workload::Delete => self.delete().await,
            Workload::Watch => self.watch().await,
            Workload::ListWatch => self.list_watch().await,
            Workload::LeaseGrant => self.lease_grant().await,
            Workload::LeasePut => self.lease_put().await,
            Workload::LeaseKeepAlive => self.lease_keep_alive().await,
            Workload::Compact => self.compact().await,
            Workload::List500 => self.list_pages(500).await,
            Workload::List10000 => self.list_pages(10_000).await,
            Workload::ListWhole => self.list_pages(0).await,
        };
        measured.with_context(|| format!("workload: {}", workload.label()))
    }

    fn plan(&self, operations: u64) -> Plan {
        Plan { operations, in_flight: self.scale.in_flight, time_max: self.scale.time_max }
    }

    /// The store's revision.
    async fn revision(&self) -> Result<i64> {
        let reply = self.connections[0].unary(Method::Range, requests::get(PREFIX.into())).await?;
        header_revision(field(&reply, 1)?.context("a reply without a header")?)
    }

    /// Runs a loop and measures it.
    async fn measure(&self, plan: Plan, operation: impl AsyncFn(Turn<'_>) -> Result<u64>) -> Result<(Loop, Measured)> {
        let meter = Meter::start(&self.target)?;
        let done = run_loop(&self.connections, plan, operation).await?;
        let measured = meter.stop(done.operations, done.units, &done.latency).await?;
        Ok((done, measured))
    }
}
