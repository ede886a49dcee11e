//! What is measured.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::{self, FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::backend::{Backend, Counts};
use super::measure::{Measured, Meter, closed_loop, open_loop};
use super::options::{Options, Side};
use super::proxies::Proxy;
use super::requests;
use super::results::{ClientsTurn, MemoryTurn};
use crate::histogram::Histogram;
use crate::https::{Connection, Target};

/// Lists in flight: enough to keep a proxy busy.
const LISTS_IN_FLIGHT: usize = 2;
/// Connections that are opened at a time.
const OPENING: usize = 64;
/// Requests that many clients send at the same moment; the next ones follow when these have come. More would only find out how much one core
/// can take at once on behalf of everybody else.
const BEGUN_AT_ONCE: usize = 500;
/// Until what was opened has come to rest.
const SETTLE: Duration = Duration::from_secs(2);
const WITHIN: Duration = Duration::from_secs(60);

/// A workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Reads a small object.
    GetSmall,
    /// Reads a large object.
    GetLarge,
    /// Makes an object.
    Post,
    /// Reads a long list.
    List,
    /// Reads small objects at a steady rate, at which no core is more than about half busy.
    SteadyGetSmall,
    /// Reads large objects at that rate.
    SteadyGetLarge,
    /// Makes objects at that rate.
    SteadyPost,
    /// One write that many watchers hear of.
    FanOut,
    /// Connections that do nothing.
    IdleConnections,
    /// Watches in which nothing happens.
    IdleWatches,
    /// Many clients with a request each at once.
    Clients,
    /// Reads a small object of a real kube-apiserver.
    Apiserver,
}

impl Workload {
    /// Those whose cost is processor time for each operation, with so many in flight.
    pub const CPU: [Self; 4] = [Self::GetSmall, Self::GetLarge, Self::Post, Self::List];

    /// Those whose requests come one by one, as most of a cluster's do, and not as many together as there can be.
    pub const STEADY: [Self; 3] = [Self::SteadyGetSmall, Self::SteadyGetLarge, Self::SteadyPost];

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::GetSmall => "GET, 1 KB",
            Self::GetLarge => "GET, 16 KB",
            Self::Post => "POST, 1 KB both ways",
            Self::List => "LIST",
            Self::SteadyGetSmall => "GET, 1 KB, at half load",
            Self::SteadyGetLarge => "GET, 16 KB, at that rate",
            Self::SteadyPost => "POST, 1 KB, at that rate",
            Self::FanOut => "event of a watch, 1 KB",
            Self::IdleConnections => "idle TLS connection",
            Self::IdleWatches => "idle watch",
            Self::Clients => "clients with a request each at once",
            Self::Apiserver => "GET, 1 KB, of a kube-apiserver",
        }
    }
}

/// A side that runs, and connections to it.
pub struct Running<'a> {
    /// The flags.
    pub options: &'a Options,
    /// Which side.
    pub side: Side,
    /// Its program, if there is one.
    pub proxy: Option<&'a Proxy>,
    /// The process number of the kube-apiserver.
    pub backend: u32,
    /// Where clients connect.
    pub target: Target,
    /// Connections for the workloads that need no more.
    pub connections: Vec<Rc<Connection>>,
    /// The body of a request that makes an object.
    new_object: Bytes,
}

impl<'a> Running<'a> {
    /// Connects to it.
    ///
    /// # Errors
    /// When it takes no connection.
    pub async fn connect(
        options: &'a Options,
        side: Side,
        proxy: Option<&'a Proxy>,
        backend: u32,
        target: Target,
    ) -> Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..options.connections {
            connections.push(Rc::new(Connection::open(&target).await?));
        }
        let new_object = requests::text(requests::SMALL_BYTES);
        Ok(Self { options, side, proxy, backend, target, connections, new_object })
    }

    fn connection(&self, worker: usize) -> &Rc<Connection> {
        &self.connections[worker % self.connections.len()]
    }

    /// Sends the requests of one of [`Workload::CPU`].
    ///
    /// # Errors
    /// When a request fails.
    pub async fn requests(&self, workload: Workload) -> Result<Measured> {
        let in_flight = if workload == Workload::List { LISTS_IN_FLIGHT } else { self.options.in_flight };
        let operation =
            async |worker: usize, number: u64| self.request(workload, self.connection(worker).clone(), number).await;
        closed_loop(self.proxy, self.backend, in_flight, self.options.turn_time(), operation).await
    }

    /// Waits until the user may read that object: a kube-apiserver takes a moment to know a new rule.
    ///
    /// # Errors
    /// When that does not come.
    pub async fn wait_until_it_may_read(&self, target: &str) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        while let Err(error) = self.connections[0].get_bytes(target).await {
            ensure!(Instant::now() < deadline, "{}: {error:#}", self.side.label());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Reads one object over and over.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn reads_of(&self, target: &str) -> Result<Measured> {
        let operation = async |worker: usize, _| self.connection(worker).get_bytes(target).await.map(drop);
        closed_loop(self.proxy, self.backend, self.options.in_flight, self.options.turn_time(), operation).await
    }

    /// Sends the requests of one of [`Workload::STEADY`] at that rate.
    ///
    /// # Errors
    /// When a request fails.
    pub async fn steady(&self, workload: Workload, rate: f64) -> Result<Measured> {
        let operation = |number: u64| self.request(workload, self.connection(number as usize).clone(), number);
        open_loop(self.proxy, self.backend, rate, self.options.turn_time(), operation).await
    }

    /// One request of a workload.
    fn request(
        &self,
        workload: Workload,
        connection: Rc<Connection>,
        number: u64,
    ) -> impl Future<Output = Result<()>> + use<> {
        let (list_bytes, new_object) = (self.options.list_bytes, self.new_object.clone());
        async move {
            match workload {
                Workload::GetLarge | Workload::SteadyGetLarge => {
                    connection.get(&object(requests::LARGE, number), requests::LARGE_BYTES).await
                }
                Workload::Post | Workload::SteadyPost => connection.post(requests::CREATE, new_object).await,
                Workload::List => connection.get(requests::LIST, list_bytes).await,
                _ => connection.get(&object(requests::SMALL, number), requests::SMALL_BYTES).await,
            }
        }
    }

    /// Opens watches, and lets all of them hear of writes, one after the other. The latencies are those from a write to the last
    /// watcher that hears of it; the operations are the events.
    ///
    /// # Errors
    /// When a watch ends, or does not hear of a write.
    pub async fn fan_out(&self, backend: &Backend) -> Result<Measured> {
        let (watchers, writes) = (self.options.watchers, self.options.writes);
        let connections = open(&self.target, watchers.div_ceil(self.options.watches_per_connection)).await?;
        let heard = Rc::new((Cell::new(0_usize), Notify::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..watchers {
            let mut stream = connections[number % connections.len()].watch(requests::WATCH).await?;
            let heard = heard.clone();
            tasks.spawn_local(async move {
                while let Some(piece) = stream.data().await {
                    let piece = piece?;
                    stream.flow_control().release_capacity(piece.len())?;
                    heard.0.set(heard.0.get() + piece.len());
                    if heard.0.get().is_multiple_of(watchers * requests::EVENT_BYTES) {
                        heard.1.notify_one();
                    }
                }
                anyhow::Ok(())
            });
        }
        let mut latency = Histogram::default();
        let mut meter = None;
        let warm_up = writes.div_ceil(10);
        for write in 1..=warm_up + writes {
            if write == warm_up + 1 {
                meter = Some(Meter::start(self.proxy, self.backend)?);
            }
            let begun = Instant::now();
            backend.write(self.side).await?;
            while heard.0.get() < write * watchers * requests::EVENT_BYTES {
                let more = tokio::time::timeout(WITHIN, heard.1.notified()).await;
                more.with_context(|| format!("write {write}: only {} bytes of events", heard.0.get()))?;
            }
            if write > warm_up {
                latency.record(begun.elapsed());
            }
        }
        let measured = meter.context("no write")?.stop((writes * watchers) as u64, &latency)?;
        tasks.abort_all();
        Ok(measured)
    }
}

fn object(prefix: &str, number: u64) -> String {
    format!("{prefix}object-{:05}", number % 100_000)
}

async fn get_one(connection: &Connection) -> Result<()> {
    connection.get(&object(requests::SMALL, 0), requests::SMALL_BYTES).await
}

/// Opens so many connections.
async fn open(target: &Target, count: usize) -> Result<Vec<Connection>> {
    let connections: Vec<Result<Connection>> =
        stream::iter(0..count).map(|_| Connection::open(target)).buffer_unordered(OPENING).collect().await;
    connections.into_iter().collect()
}

/// The memory that connections cost a fresh proxy that do nothing after a request.
///
/// # Errors
/// When a connection fails.
pub async fn idle_connections(options: &Options, side: Side, proxy: &Proxy, target: &Target) -> Result<MemoryTurn> {
    let first = Connection::open(target).await?;
    get_one(&first).await?;
    tokio::time::sleep(SETTLE).await;
    let before_bytes = proxy.resident()?;
    let connections = open(target, options.idle_connections).await?;
    for some in connections.chunks(OPENING) {
        try_join_all(some.iter().map(get_one)).await?;
    }
    tokio::time::sleep(SETTLE).await;
    let after_bytes = proxy.resident()?;
    let count = connections.len();
    Ok(MemoryTurn { side, workload: Workload::IdleConnections, count, before_bytes, after_bytes })
}

/// The memory that watches cost a fresh proxy, on few connections.
///
/// # Errors
/// When a watch is refused.
pub async fn idle_watches(options: &Options, side: Side, proxy: &Proxy, target: &Target) -> Result<MemoryTurn> {
    let count = options.idle_watches;
    let first = Connection::open(target).await?;
    let mut watches = vec![first.watch(requests::WATCH).await?];
    let connections = open(target, count.div_ceil(options.watches_per_connection)).await?;
    tokio::time::sleep(SETTLE).await;
    let before_bytes = proxy.resident()?;
    for numbers in (1..=count).collect::<Vec<_>>().chunks(OPENING) {
        let open = numbers.iter().map(|number| connections[number % connections.len()].watch(requests::WATCH));
        watches.extend(try_join_all(open).await?);
    }
    tokio::time::sleep(SETTLE).await;
    let after_bytes = proxy.resident()?;
    Ok(MemoryTurn { side, workload: Workload::IdleWatches, count, before_bytes, after_bytes })
}

/// The connections that so many clients cost the kube-apiserver, each with a request that is answered only when all of them are there.
///
/// # Errors
/// When a request fails.
pub async fn clients(backend: &Backend, side: Side, target: &Target, clients: usize) -> Result<ClientsTurn> {
    let connections = open(target, clients).await?;
    backend.reset_counts().await?;
    let begun = Instant::now();
    let request = async |number: usize| {
        connections[number].get(&object(requests::HELD, number as u64), requests::SMALL_BYTES).await
    };
    let mut answers = FuturesUnordered::new();
    let mut counts = Counts::default();
    for first in (0..clients).step_by(BEGUN_AT_ONCE) {
        answers.extend((first..clients.min(first + BEGUN_AT_ONCE)).map(&request));
        let wanted = answers.len() as u64;
        counts = tokio::select! {
            counts = backend.wait(side, WITHIN, |counts| counts.held >= wanted) => counts?,
            Some(answer) = answers.next() => {
                answer?;
                bail!("a request was answered before all were there");
            }
        };
    }
    let all_sent_seconds = begun.elapsed().as_secs_f64();
    backend.release().await?;
    while let Some(answer) = answers.next().await {
        answer?;
    }
    ensure!(counts.open_max > 0, "nobody is connected");
    Ok(ClientsTurn { side, clients, backend_connections: counts.open_max, all_sent_seconds })
}
