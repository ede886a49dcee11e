//! KubeZoo beside nothing: the same requests to one kube-apiserver, as a tenant through KubeZoo and directly; and what tenants cost.
//!
//! | module | job |
//! |---|---|
//! | [`options`] | the flags |
//! | [`cluster`] | starts the programs |
//! | [`tenants`], [`objects`] | who asks, and for what |
//! | [`measure`] | reads the clocks |
//! | [`workloads`] | what is measured |
//! | [`results`], [`goals`], [`report`] | what came of it |
//!
//! Invariant: only one side works at a time, and each round gives both sides their turn one right after the other, so that whatever else the
//! machine does meets both alike.

pub mod cluster;
pub mod goals;
pub mod measure;
pub mod objects;
pub mod options;
pub mod report;
pub mod results;
pub mod tenants;
pub mod workloads;

use std::path::Path;

use anyhow::{Context as _, Result};
use http::StatusCode;
use kubewharf_testkit::folder::Folder;
use serde_json::Value;

use crate::https::Ask;
use crate::machine::{self, Machine};
use cluster::Cluster;
use options::{Options, Part, Side};
use results::{Results, Turn};
use workloads::requests::Requests;
use workloads::watches::Watchers;
use workloads::{Workload, creation, memory};

/// Runs the benchmark with files in that folder. `progress` gets a line now and then.
///
/// # Errors
/// When a program is missing or fails, or a request is answered wrongly.
pub async fn run(options: &Options, data: &Path, command: String, progress: &dyn Fn(&str)) -> Result<Results> {
    kubewharf_foundation::descriptors::raise_limit()?;
    let folder = Folder::new_in(data, "zoo")?;
    let mut results = Results {
        date: machine::date(),
        command,
        machine: Machine::here(data)?,
        version: cluster::version(options)?,
        kubernetes: String::new(),
        options: options.clone(),
        object_bytes: 0,
        list_bytes: 0,
        turns: Vec::new(),
        watches: Vec::new(),
        creation: Vec::new(),
        by_hand: Vec::new(),
        bulk: Vec::new(),
        memory: Vec::new(),
    };
    let bench = Bench { options, folder: &folder, progress };
    if [Part::Get, Part::List, Part::Write, Part::Watch].into_iter().any(|part| options.wants(part)) {
        bench.requests(&mut results).await?;
    }
    if options.wants(Part::Creation) {
        bench.creation(&mut results).await.context("new tenants")?;
    }
    if options.wants(Part::Memory) {
        bench.memory(&mut results).await.context("idle tenants")?;
    }
    Ok(results)
}

struct Bench<'a> {
    options: &'a Options,
    folder: &'a Folder,
    progress: &'a dyn Fn(&str),
}

impl Bench<'_> {
    /// A cluster for a part of the benchmark: what the other parts have made would count as well.
    async fn start(&self, results: &mut Results) -> Result<Cluster> {
        let cluster = Cluster::start(self.options, self.folder).await?;
        let version = cluster.admin.expect(StatusCode::OK, &Ask::get("/version")).await?;
        let version: Value = serde_json::from_slice(&version)?;
        results.kubernetes = version["gitVersion"].as_str().unwrap_or_default().to_owned();
        let processes = cluster.with_zoo();
        (self.progress)(&format!(
            "KubeZoo: process {}, kube-apiserver {}, KubeBrain {}",
            processes.zoo.unwrap_or_default(),
            processes.apiserver,
            processes.store,
        ));
        Ok(cluster)
    }

    async fn requests(&self, results: &mut Results) -> Result<()> {
        let options = self.options;
        let mut cluster = self.start(results).await?;
        if options.wants(Part::Get) || options.wants(Part::List) || options.wants(Part::Write) {
            let requests = Requests::prepare(options, &cluster).await?;
            (results.object_bytes, results.list_bytes) = requests.lengths().await?;
            // What is made by writes would have to be looked through by the lists of later rounds.
            for parts in [[Part::Get, Part::List].as_slice(), &[Part::Write]] {
                let is_wanted =
                    |workload: &Workload| options.wants(workload.part()) && parts.contains(&workload.part());
                for round in 0..options.rounds {
                    (self.progress)(&format!("round {} of {}", round + 1, options.rounds));
                    for workload in Workload::ALL.into_iter().filter(is_wanted) {
                        for side in Side::of_round(round) {
                            let measured = requests.turn(side, workload, round).await;
                            self.keep(results, side, round, workload, measured)?;
                        }
                    }
                }
            }
        }
        if options.wants(Part::Watch) {
            cluster.reconnect().await?;
            let watchers = Watchers::prepare(options, &cluster).await.context("tenants that watch")?;
            for is_for_all in [false, true] {
                let count = watchers.count(&mut cluster, is_for_all).await.context("counting watches")?;
                (self.progress)(&format!("  {} watches: {} at kube-apiserver", count.watches, count.upstream));
                results.watches.push(count);
            }
            for round in 0..options.rounds {
                (self.progress)(&format!("round {} of {}", round + 1, options.rounds));
                for workload in [Workload::Watch, Workload::WatchAll] {
                    for side in Side::of_round(round) {
                        let measured = watchers.turn(options, &mut cluster, side, workload).await;
                        self.keep(results, side, round, workload, measured)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn keep(
        &self,
        results: &mut Results,
        side: Side,
        round: u32,
        workload: Workload,
        measured: Result<measure::Measured>,
    ) -> Result<()> {
        let measured = measured.with_context(|| format!("{}: {}", side.label(), workload.label()))?;
        (self.progress)(&report::progress(side, workload, &measured));
        results.turns.push(Turn { side, round, workload, measured });
        Ok(())
    }

    async fn creation(&self, results: &mut Results) -> Result<()> {
        let options = self.options;
        let cluster = self.start(results).await?;
        creation::warm_up(&cluster).await?;
        for round in 0..options.creation_rounds {
            (self.progress)(&format!("round {} of {} of new tenants", round + 1, options.creation_rounds));
            for (tenants, at_once) in [(options.single, 1), (options.parallel, options.parallel)] {
                let turn = creation::usable(&cluster, round, tenants, at_once).await?;
                let (p50_ms, p99_ms) = (turn.whole.p50_ms, turn.whole.p99_ms);
                (self.progress)(&format!("  {tenants} tenants, {at_once} at once: p50 {p50_ms:.1} p99 {p99_ms:.1} ms"));
                results.creation.push(turn);
                let turn = creation::by_hand(&cluster, round, tenants, at_once).await?;
                let (p50_ms, p99_ms) = (turn.whole.p50_ms, turn.whole.p99_ms);
                (self.progress)(&format!("  {tenants} by hand, {at_once} at once: p50 {p50_ms:.1} p99 {p99_ms:.1} ms"));
                results.by_hand.push(turn);
            }
            let turn = creation::bulk(&cluster, round, options.bulk).await?;
            (self.progress)(&format!("  {} tenants: {:.0} a second", turn.tenants, turn.rate()));
            results.bulk.push(turn);
        }
        Ok(())
    }

    async fn memory(&self, results: &mut Results) -> Result<()> {
        let mut cluster = self.start(results).await?;
        (self.progress)("idle tenants");
        results.memory = memory::idle_tenants(self.options, &mut cluster, self.progress).await?;
        Ok(())
    }
}
