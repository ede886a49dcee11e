//! Watches: what an event costs that is delivered, and how many watches the kube-apiserver has for all of the tenants'.
//!
//! Each tenant has an object, which the benchmark writes at the kube-apiserver itself, and equal watches that hear of it; on the side
//! without KubeZoo the same watches of the same objects go to the kube-apiserver. A watch must tell each write once and in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, ensure};
use futures_util::future::try_join_all;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use h2::RecvStream;
use http::{Method, StatusCode};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::Workload;
use crate::histogram::Histogram;
use crate::https::{Ask, Connection, JSON};
use crate::zoo::cluster::Cluster;
use crate::zoo::measure::{Measured, Meter};
use crate::zoo::objects::{self, LABEL, config_map};
use crate::zoo::options::{Options, Side};
use crate::zoo::results::WatchCount;
use crate::zoo::tenants::{Tenant, each_line, version};

/// What each tenant watches when watches are counted.
const KINDS: [(&str, &str); 6] = [
    ("/api/v1", "configmaps"),
    ("/api/v1", "secrets"),
    ("/api/v1", "services"),
    ("/api/v1", "serviceaccounts"),
    ("/api/v1", "pods"),
    ("/apis/apps/v1", "deployments"),
];
const OBJECT: &str = "watched";
/// Tenants that are made at a time.
const MADE_AT_ONCE: usize = 8;
/// Until the kube-apiserver has counted a watch that has just begun or ended.
const COUNTED_WITHIN: Duration = Duration::from_secs(1);
/// No loss shows itself but by an event that does not come.
const NEXT_EVENT_WITHIN: Duration = Duration::from_secs(60);
const WATCH_SECONDS: u32 = 3600;
/// One part of so many of the writes comes before those that count.
const WARM_UP_PARTS: usize = 5;

/// The tenants that watch.
pub struct Watchers {
    tenants: Vec<Tenant>,
}

impl Watchers {
    /// Makes tenants, each with an object.
    ///
    /// # Errors
    /// When one is refused.
    pub async fn prepare(options: &Options, cluster: &Cluster) -> Result<Self> {
        let make = async |number: usize| {
            let name = of(number);
            let tenant = Tenant::make(cluster, &name).await?;
            let connection = Connection::open(&tenant.target).await?;
            let path = objects::path("default");
            let ask = Ask::with(Method::POST, &path, JSON, config_map(OBJECT, &name, 0));
            connection.expect(StatusCode::CREATED, &ask).await?;
            anyhow::Ok(tenant)
        };
        let tenants = stream::iter(0..options.watching_tenants).map(make).buffered(MADE_AT_ONCE).try_collect().await?;
        Ok(Self { tenants })
    }

    /// One side's turn. The latencies are those from the beginning of a write to each watch that tells it.
    ///
    /// # Errors
    /// When a watch ends, or leaves out a write or tells one twice.
    pub async fn turn(
        &self,
        options: &Options,
        cluster: &mut Cluster,
        side: Side,
        workload: Workload,
    ) -> Result<Measured> {
        begin_anew(cluster, side).await?;
        let cluster = &*cluster;
        let version = version(&cluster.admin, "/api/v1/configmaps").await?;
        let heard = Rc::new(Heard::default());
        let mut tasks = JoinSet::new();
        // They have the watches, and end with this turn.
        let mut connections = Vec::new();
        for (number, tenant) in self.tenants.iter().enumerate() {
            let is_for_all = workload == Workload::WatchAll;
            let (target, path) = match (side, is_for_all) {
                (Side::Zoo, false) => (&tenant.target, objects::path("default") + "?"),
                (Side::Zoo, true) => (&tenant.target, "/api/v1/configmaps?".to_owned()),
                (Side::Direct, false) => (&cluster.direct, objects::path(&tenant.names.inward("default")) + "?"),
                (Side::Direct, true) => {
                    (&cluster.direct, format!("/api/v1/configmaps?labelSelector={LABEL}%3D{}&", of(number)))
                }
            };
            let connection = Connection::open(target).await?;
            for _ in 0..options.watches {
                let stream = connection.watch(&watch(&path, &version)).await?;
                let heard = heard.clone();
                tasks.spawn_local(async move {
                    if let Err(error) = listen(stream, &heard).await {
                        heard.fail(error);
                    }
                });
            }
            connections.push(connection);
        }
        // The first writes find everything cold.
        self.write(options, cluster, &heard, options.writes.div_ceil(WARM_UP_PARTS)).await?;
        heard.latency.take();
        let processes = if side == Side::Zoo { cluster.with_zoo() } else { cluster.without_zoo() };
        let meter = Meter::start(processes)?;
        let events = self.write(options, cluster, &heard, options.writes).await?;
        let measured = meter.stop(events, &heard.latency.take())?;
        tasks.abort_all();
        Ok(measured)
    }

    /// Writes each tenant's object so often, and waits until all watches have told it. Returns how many events that are.
    async fn write(&self, options: &Options, cluster: &Cluster, heard: &Heard, writes: usize) -> Result<u64> {
        let writer = async |first: usize| {
            for _ in 0..writes {
                for (number, tenant) in self.tenants.iter().enumerate().skip(first).step_by(options.writers) {
                    let target = objects::path(&tenant.names.inward("default")) + "/" + OBJECT;
                    let body = config_map(OBJECT, &of(number), heard.now_ns());
                    let ask = Ask::with(Method::PUT, &target, JSON, body);
                    cluster.admin.expect(StatusCode::OK, &ask).await?;
                }
            }
            anyhow::Ok(())
        };
        let events = (writes * self.tenants.len() * options.watches) as u64;
        let wanted = heard.events.get() + events;
        try_join_all((0..options.writers).map(writer)).await?;
        while heard.events.get() < wanted {
            heard.check()?;
            let before = heard.events.get();
            let more = tokio::time::timeout(NEXT_EVENT_WITHIN, heard.more.notified()).await;
            ensure!(more.is_ok() || heard.events.get() > before, "{} events never came", wanted - before);
        }
        heard.check()?;
        Ok(events)
    }

    /// Counts the watches at the kube-apiserver that watches of several kinds by all tenants lead to.
    ///
    /// # Errors
    /// When a watch is refused.
    pub async fn count(&self, cluster: &mut Cluster, is_for_all: bool) -> Result<WatchCount> {
        begin_anew(cluster, Side::Zoo).await?;
        tokio::time::sleep(COUNTED_WITHIN).await;
        let cluster = &*cluster;
        let before = upstream(cluster).await?;
        let version = version(&cluster.admin, "/api/v1/configmaps").await?;
        let mut open = Vec::new();
        for tenant in &self.tenants {
            let connection = Connection::open(&tenant.target).await?;
            let mut streams = Vec::new();
            for (group, resource) in KINDS {
                let namespace = if is_for_all { "" } else { "/namespaces/default" };
                streams.push(connection.watch(&watch(&format!("{group}{namespace}/{resource}?"), &version)).await?);
            }
            open.push((connection, streams));
        }
        tokio::time::sleep(COUNTED_WITHIN).await;
        Ok(WatchCount {
            is_for_all,
            kinds: KINDS.len(),
            watches: open.iter().map(|(_, streams)| streams.len()).sum(),
            upstream: upstream(cluster).await? - before,
            shared: cluster.zoo.metric("kubezoo_shared_watches").await?,
        })
    }
}

/// The label of a tenant's object, and the tenant's name.
fn of(number: usize) -> String {
    format!("watch-{number}")
}

fn watch(path: &str, version: &str) -> String {
    format!("{path}watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={WATCH_SECONDS}")
}

/// A shared watch goes on for a while when nobody watches any more. So each turn has a KubeZoo that has just begun, or none.
async fn begin_anew(cluster: &mut Cluster, side: Side) -> Result<()> {
    cluster.zoo.stop().await?;
    if side == Side::Zoo {
        cluster.zoo.run().await?;
        cluster.zoo.wait_until_idle().await?;
    }
    Ok(())
}

/// The watches of those kinds that the kube-apiserver has.
async fn upstream(cluster: &Cluster) -> Result<f64> {
    let mut watches = 0.0;
    for (_, resource) in KINDS {
        let labels = [r#"verb="WATCH""#.to_owned(), format!("resource=\"{resource}\"")];
        watches += cluster.apiserver_metric("apiserver_longrunning_requests", &labels).await?;
    }
    Ok(watches)
}

/// What all watches have told.
struct Heard {
    events: Cell<u64>,
    latency: RefCell<Histogram>,
    error: RefCell<Option<Error>>,
    more: Notify,
    begun: Instant,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            events: Cell::default(),
            latency: RefCell::default(),
            error: RefCell::default(),
            more: Notify::new(),
            begun: Instant::now(),
        }
    }
}

impl Heard {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn fail(&self, error: Error) {
        *self.error.borrow_mut() = Some(error);
        self.more.notify_one();
    }

    fn check(&self) -> Result<()> {
        self.error.borrow_mut().take().map_or(Ok(()), Err)
    }
}

async fn listen(mut stream: RecvStream, heard: &Heard) -> Result<()> {
    let (mut part, mut last) = (Vec::new(), None);
    loop {
        let piece = stream.data().await.context("a watch ended")??;
        stream.flow_control().release_capacity(piece.len())?;
        let now = heard.now_ns();
        each_line(&mut part, &piece, |line| {
            if line.starts_with(br#"{"type":"BOOKMARK""#) {
                return Ok(());
            }
            let is_change = line.starts_with(br#"{"type":"MODIFIED""#);
            ensure!(is_change, "not a change: {}", String::from_utf8_lossy(&line[..line.len().min(400)]));
            let sent = objects::count(line)?;
            ensure!(last.is_none_or(|last| last < sent), "a watch tells a write twice, or out of order");
            last = Some(sent);
            heard.latency.borrow_mut().record(Duration::from_nanos(now.saturating_sub(sent)));
            heard.events.set(heard.events.get() + 1);
            Ok(())
        })?;
        heard.more.notify_one();
    }
}
