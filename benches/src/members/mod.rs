//! KubeBrains that share one PostgreSQL, beside a cluster of etcds, and beside kine, which is the usual way to a database.
//!
//! | module | job |
//! |---|---|
//! | [`options`] | the flags |
//! | [`stores`] | starts the sides |
//! | [`failover`] | what happens to leaders, and for how long nothing is acknowledged then |
//! | [`results`], [`goals`], [`report`] | what came of it |
//!
//! What is asked, and how the answers are checked, is the same as of one KubeBrain: [`crate::brain::workloads`].
//!
//! Invariant: the sides never run at the same time, and get the same requests in the same order.

pub mod failover;
pub mod goals;
pub mod options;
pub mod report;
pub mod results;
pub mod stores;

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::brain::workloads::{Bench, Workload};
use crate::machine::{self, Machine};
use crate::turns::Turn;
use failover::Fault;
use options::{Options, Side};
use results::{Cost, Gap, Results};
use stores::{Programs, Store};

/// Runs the benchmark with data in that folder. `progress` gets a line now and then.
///
/// # Errors
/// When a program is missing, fails or answers wrongly.
pub async fn run(options: &Options, data: &Path, command: String, progress: &dyn Fn(&str)) -> Result<Results> {
    let programs = Programs::find(options, data)?;
    let mut results = Results {
        date: machine::date(),
        command,
        machine: Machine::here(data)?,
        versions: programs.versions()?,
        options: options.clone(),
        turns: Vec::new(),
        gaps: Vec::new(),
    };
    for round in 0..options.rounds {
        for side in options.sides(round) {
            let what = || format!("{}, round {} of {}", side.label(), round + 1, options.rounds);
            progress(&what());
            let turn = workloads_turn(options, &programs, side, round, progress).await;
            results.turns.extend(turn.with_context(what)?);
            let faults = options.faults(side, round);
            if !faults.is_empty() {
                let turn = failover_turn(options, &programs, side, round, &faults, progress).await;
                results.gaps.extend(turn.with_context(what)?);
            }
        }
    }
    Ok(results)
}

async fn workloads_turn(
    options: &Options,
    programs: &Programs,
    side: Side,
    round: u32,
    progress: &dyn Fn(&str),
) -> Result<Vec<Turn<Side, Workload, Cost>>> {
    let wanted: Vec<Workload> = Workload::ALL.into_iter().filter(|workload| options.wants(side, *workload)).collect();
    let mut turns = Vec::new();
    if wanted.is_empty() {
        return Ok(turns);
    }
    let store = Store::start(programs, side).await?;
    let target = store.target();
    let bench = Bench::new(options.scale(), target.clone(), options.keys).await?;
    bench.fill().await?;
    store.analyze()?;
    target.wait_until_idle().await?;
    for workload in wanted {
        if workload == Workload::Compact {
            // After writes that came at once, kine may take an older revision for its newest until one comes alone.
            bench.update_alone().await?;
        }
        let before = store.commits()?;
        let measured = bench.run(workload).await?;
        let commits = before.zip(store.commits()?).map(|(before, after)| after - before);
        let commits = commits.filter(|commits| commits.requests >= 1.0);
        let turn = Turn { side, round, workload, measured: Cost { measured, commits } };
        progress(&format!("  {}", report::progress(&turn)));
        turns.push(turn);
        target.wait_until_idle().await?;
    }
    Ok(turns)
}

async fn failover_turn(
    options: &Options,
    programs: &Programs,
    side: Side,
    round: u32,
    faults: &[Fault],
    progress: &dyn Fn(&str),
) -> Result<Vec<Gap>> {
    let Store::Members(members) = Store::start(programs, side).await? else { return Ok(Vec::new()) };
    let measured = failover::run(*members, faults, options).await?;
    let gaps: Vec<Gap> =
        measured.into_iter().map(|(fault, gap)| Gap { side, round, fault, ms: gap.as_secs_f64() * 1e3 }).collect();
    for fault in Fault::ALL {
        let of: Vec<String> =
            gaps.iter().filter(|gap| gap.fault == fault).map(|gap| format!("{:.0}", gap.ms)).collect();
        if !of.is_empty() {
            progress(&format!("  {}: {} ms", fault.label(), of.join(", ")));
        }
    }
    Ok(gaps)
}
