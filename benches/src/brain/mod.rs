//! KubeBrain beside etcd: kube-apiserver's requests against both in turn.
//!
//! | module | job |
//! |---|---|
//! | [`options`] | the flags |
//! | [`server`], [`target`] | starts and restarts a store; where it is asked and what it costs |
//! | [`keys`], [`requests`] | what is asked, and what must be answered |
//! | [`measure`] | keeps requests in flight, reads the clocks |
//! | [`workloads`] | what is measured |
//! | [`results`], [`goals`], [`report`] | what came of it |
//!
//! Invariant: the two sides never run at the same time, and get the same requests in the same order.

pub mod goals;
pub mod keys;
pub mod measure;
pub mod options;
pub mod report;
pub mod requests;
pub mod results;
pub mod server;
pub mod target;
pub mod workloads;

use std::path::Path;

use anyhow::{Context as _, Result};
use kubewharf_testkit::usage::memory;

use crate::machine::{self, Machine};
use crate::usage::disk_bytes;
use options::{Options, Side};
use results::{Footprint, Results, SideTurn};
use server::{Program, Server};
use workloads::{Bench, Workload};

/// Runs the benchmark with data in that folder. `progress` gets a line now and then.
///
/// # Errors
/// When a program is missing, fails or answers wrongly.
pub async fn run(options: &Options, data: &Path, command: String, progress: &dyn Fn(&str)) -> Result<Results> {
    let mut programs = Vec::new();
    for side in Side::ALL.into_iter().filter(|side| options.side.is_none_or(|wanted| wanted == *side)) {
        programs.push(Program::find(side, &options.brain_flag)?);
    }
    let versions = programs.iter().map(|program| Ok((program.side(), program.version()?))).collect::<Result<_>>()?;
    let machine = Machine::here(data)?;
    let mut turns = Vec::new();
    for &keys in &options.keys {
        for round in 0..options.rounds {
            for side in options.sides(round) {
                let program = programs.iter().find(|program| program.side() == side).context("not a wanted side")?;
                let turn = side_turn(options, program, data, keys, round, progress).await;
                turns.push(turn.with_context(|| format!("{side:?}, {keys} keys, round {}", round + 1))?);
            }
        }
    }
    Ok(Results { date: machine::date(), command, machine, versions, options: options.clone(), turns })
}

async fn side_turn(
    options: &Options,
    program: &Program,
    data: &Path,
    keys: u64,
    round: u32,
    progress: &dyn Fn(&str),
) -> Result<SideTurn> {
    let side = program.side();
    let mut server = Server::start(program, data).await?;
    progress(&format!("{side:?}, {keys} keys, round {} of {}: process {}", round + 1, options.rounds, server.id()));
    let mut measured = Vec::new();
    let target = server.target();
    let bench = Bench::new(options.scale(), target.clone(), keys).await?;
    let mut after_load = None;
    for workload in Workload::ALL {
        if workload != Workload::Load && !options.wants(workload) {
            continue;
        }
        let result = bench.run(workload).await?;
        progress(&format!("  {}", report::progress(workload, &result)));
        measured.push((workload, result));
        target.wait_until_idle().await?;
        if workload == Workload::Load {
            after_load = Some((memory(server.id())?, disk_bytes(&server.data())?));
        }
    }
    drop(bench);
    let (memory_loaded, disk_after_load_bytes) = after_load.context("every turn begins with the load")?;
    let (memory_end, disk_at_end_bytes) = (memory(server.id())?, disk_bytes(&server.data())?);
    let restart_seconds = server.kill_and_start().await?.as_secs_f64();
    progress(&format!("  restart: {restart_seconds:.2} s"));
    let footprint = Footprint {
        anonymous_after_load_bytes: memory_loaded.anonymous,
        resident_after_load_bytes: memory_loaded.resident,
        mapped_after_load_bytes: memory_loaded.resident - memory_loaded.anonymous,
        anonymous_peak_bytes: measured.iter().map(|(_, workload)| workload.anonymous_peak_bytes).max().unwrap_or(0),
        resident_peak_bytes: memory_end.resident_max,
        disk_after_load_bytes,
        disk_at_end_bytes,
        restart_seconds,
    };
    Ok(SideTurn { side, keys, round, workloads: measured, footprint })
}
