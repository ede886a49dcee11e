//! KubeGateway beside HAProxy and beside nothing: the same requests through each of them in turn.
//!
//! | module | job |
//! |---|---|
//! | [`options`] | the flags |
//! | [`backend`] | a small kube-apiserver, a process of its own |
//! | [`apiserver`] | a real one |
//! | [`proxies`] | starts the programs that are compared |
//! | [`tls`], [`requests`] | who asks for what |
//! | [`measure`] | keeps requests in flight, reads the clocks |
//! | [`workloads`] | what is measured |
//! | [`results`], [`goals`], [`report`] | what came of it |
//!
//! Invariant: only one side works at a time, and each round gives every side its turn right after the others', so that whatever else the
//! machine does meets all of them alike.

pub mod apiserver;
pub mod backend;
pub mod goals;
pub mod measure;
pub mod options;
pub mod proxies;
pub mod report;
pub mod requests;
pub mod results;
pub mod tls;
pub mod workloads;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::process;

use crate::https::Target;
use crate::machine::{self, Machine};
use crate::tls::{Files, client};
use apiserver::RealApiserver;
use backend::Backend;
use measure::Measured;
use options::{Options, Side};
use proxies::{Proxy, Setting};
use results::{ClientsTurn, MemoryTurn, Results, Turn};
use tls::Certificates;
use workloads::{Running, Workload};

/// Rounds of what hardly varies.
const MEMORY_ROUNDS: u32 = 3;

/// Runs the benchmark with files in that folder. `progress` gets a line now and then.
///
/// # Errors
/// When a program is missing or fails, or a request is answered wrongly.
pub async fn run(options: &Options, data: &Path, command: String, progress: &dyn Fn(&str)) -> Result<Results> {
    kubewharf_foundation::descriptors::raise_limit()?;
    let folder = Folder::new_in(data, "gateway")?;
    let machine = Machine::here(data)?;
    let processors = Processors::of(machine.cores);
    processors.take_own()?;
    let certificates = Certificates::new(&folder)?;
    let identity = certificates.proxy(&folder)?;
    let backend = Backend::start(folder.path(), &certificates, options.list_bytes, &processors.backend).await?;
    let bench = Bench { options, folder: &folder, certificates, identity, processors, backend, progress };
    let version = |side| anyhow::Ok((side, proxies::version(side, &proxies::program(side, options)?)?));
    let versions = bench.proxies().map(version).collect::<Result<_>>()?;
    let mut turns = bench.turns().await?;
    turns.extend(bench.apiserver().await?);
    let memory = bench.memory().await?;
    let clients = bench.clients().await?;
    Ok(Results { date: machine::date(), command, machine, versions, options: options.clone(), turns, memory, clients })
}

/// Which processors each part runs on, as `taskset` wants them: the proxy has the last one to itself.
struct Processors {
    proxy: String,
    backend: String,
    client: String,
    /// The part of the most requests a second at which latencies are measured, so that no core is more than about half busy: requests that
    /// come one by one cost all processes two or three times as much as those that come together.
    steady_share: f64,
}

impl Processors {
    fn of(cores: usize) -> Self {
        match cores {
            0 | 1 => Self::new("0", "0", "0", 0.1),
            2 => Self::new("1", "0", "0", 0.2),
            more => Self::new(&(more - 1).to_string(), "0", "1", 0.25),
        }
    }

    fn new(proxy: &str, backend: &str, client: &str, steady_share: f64) -> Self {
        Self { proxy: proxy.to_owned(), backend: backend.to_owned(), client: client.to_owned(), steady_share }
    }

    /// Puts this process where it belongs; threads that begin later are there too.
    fn take_own(&self) -> Result<()> {
        let own = std::process::id().to_string();
        process::run(Command::new("taskset").args(["-a", "-p", "-c", &self.client, &own]))?;
        Ok(())
    }
}

struct Bench<'a> {
    options: &'a Options,
    folder: &'a Folder,
    certificates: Certificates,
    identity: Files,
    processors: Processors,
    backend: Backend,
    progress: &'a dyn Fn(&str),
}

impl Bench<'_> {
    fn proxies(&self) -> impl Iterator<Item = Side> {
        Side::PROXIES.into_iter().filter(|side| self.options.side.is_none_or(|wanted| wanted == *side))
    }

    async fn start(&self, side: Side) -> Result<Proxy> {
        self.start_with(side, &self.setting(side)).await
    }

    fn setting(&self, side: Side) -> Setting<'_> {
        Setting {
            options: self.options,
            parent: self.folder.path(),
            certificates: &self.certificates,
            processor: &self.processors.proxy,
            backend: self.backend.address(side),
            backend_host: tls::HOST,
            identity: &self.identity,
        }
    }

    async fn start_with(&self, side: Side, setting: &Setting<'_>) -> Result<Proxy> {
        let proxy = Proxy::start(side, setting).await?;
        (self.progress)(&format!("{}: process {}", side.label(), proxy.id()));
        Ok(proxy)
    }

    /// Requests and events, with all sides there at once.
    async fn turns(&self) -> Result<Vec<Turn>> {
        let options = self.options;
        let mut proxies = BTreeMap::new();
        for side in self.proxies() {
            proxies.insert(side, self.start(side).await?);
        }
        let mut sides = BTreeMap::new();
        for side in options.sides(0, &Side::ALL) {
            let proxy = proxies.get(&side);
            let target = match proxy {
                Some(proxy) => proxy.target(&self.certificates)?,
                None => Target::new(self.backend.address(side), tls::HOST, self.certificates.client()?),
            };
            sides.insert(side, Running::connect(options, side, proxy, self.backend.id(), target).await?);
        }
        let mut turns = Vec::new();
        for round in 0..options.rounds {
            (self.progress)(&format!("round {} of {}", round + 1, options.rounds));
            let mut keep = |side, workload, measured: Measured| {
                (self.progress)(&report::progress(side, workload, &measured));
                turns.push(Turn { side, round, workload, measured });
            };
            let mut rate_max = f64::INFINITY;
            for workload in Workload::CPU.into_iter().filter(|workload| options.wants(*workload)) {
                for side in options.sides(round, &Side::ALL) {
                    let measured = sides[&side].requests(workload).await;
                    let measured = measured.with_context(|| format!("{}: {}", side.label(), workload.label()))?;
                    if workload == Workload::GetSmall && side != Side::Direct {
                        rate_max = rate_max.min(measured.rate());
                    }
                    keep(side, workload, measured);
                }
            }
            let steady = Workload::STEADY.into_iter().filter(|workload| options.wants(*workload));
            for workload in steady.take_while(|_| rate_max.is_finite()) {
                for side in options.sides(round, &Side::ALL) {
                    let measured = sides[&side].steady(workload, rate_max * self.processors.steady_share).await;
                    let measured = measured.with_context(|| format!("{}: {}", side.label(), workload.label()))?;
                    keep(side, workload, measured);
                }
            }
            if options.wants(Workload::FanOut) {
                for side in options.sides(round, &Side::ALL) {
                    let measured = sides[&side].fan_out(&self.backend).await;
                    keep(side, Workload::FanOut, measured.with_context(|| format!("{}: watches", side.label()))?);
                }
            }
        }
        Ok(turns)
    }

    /// Requests of a real kube-apiserver.
    async fn apiserver(&self) -> Result<Vec<Turn>> {
        let options = self.options;
        let mut turns = Vec::new();
        if options.no_apiserver || !options.wants(Workload::Apiserver) {
            return Ok(turns);
        }
        let apiserver = RealApiserver::start(self.folder)?;
        let mut proxies = BTreeMap::new();
        for side in self.proxies() {
            let (backend, backend_host, identity) = (apiserver.address()?, apiserver::HOST, &apiserver.files);
            let setting = Setting { backend, backend_host, identity, ..self.setting(side) };
            proxies.insert(side, self.start_with(side, &setting).await?);
        }
        let mut sides = BTreeMap::new();
        for side in options.sides(0, &Side::ALL) {
            let proxy = proxies.get(&side);
            let target = match proxy {
                Some(proxy) => proxy.target(&self.certificates)?,
                None => Target::new(apiserver.address()?, apiserver::HOST, client(&apiserver.files)?),
            };
            let running = Running::connect(options, side, proxy, apiserver.id(), target).await?;
            running.wait_until_it_may_read(apiserver::OBJECT).await?;
            sides.insert(side, running);
        }
        for round in 0..options.rounds {
            for side in options.sides(round, &Side::ALL) {
                let measured = sides[&side].reads_of(apiserver::OBJECT).await.context(side.label())?;
                (self.progress)(&report::progress(side, Workload::Apiserver, &measured));
                turns.push(Turn { side, round, workload: Workload::Apiserver, measured });
            }
        }
        Ok(turns)
    }

    async fn memory(&self) -> Result<Vec<MemoryTurn>> {
        let mut turns = Vec::new();
        for round in 0..self.options.rounds.min(MEMORY_ROUNDS) {
            for side in self.options.sides(round, &Side::PROXIES) {
                for workload in [Workload::IdleConnections, Workload::IdleWatches] {
                    if !self.options.wants(workload) {
                        continue;
                    }
                    let proxy = self.start(side).await?;
                    let target = proxy.target(&self.certificates)?;
                    let turn = match workload {
                        Workload::IdleConnections => {
                            workloads::idle_connections(self.options, side, &proxy, &target).await?
                        }
                        _ => workloads::idle_watches(self.options, side, &proxy, &target).await?,
                    };
                    (self.progress)(&format!("  {}: {:.1} KiB each", workload.label(), turn.kib_each()));
                    turns.push(turn);
                }
            }
        }
        Ok(turns)
    }

    async fn clients(&self) -> Result<Vec<ClientsTurn>> {
        let mut turns = Vec::new();
        if !self.options.wants(Workload::Clients) {
            return Ok(turns);
        }
        for &clients in &self.options.clients {
            for side in self.proxies() {
                let proxy = self.start(side).await?;
                let target = proxy.target(&self.certificates)?;
                let turn =
                    workloads::clients(&self.backend, side, &target, clients.min(proxies::clients_max(side)?)).await?;
                let (connections, seconds) = (turn.backend_connections, turn.all_sent_seconds);
                (self.progress)(&format!("  {} clients: {connections} connections, {seconds:.2} s", turn.clients));
                turns.push(turn);
            }
        }
        Ok(turns)
    }
}
