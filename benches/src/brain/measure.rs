//! Keeps requests in flight and counts what they cost.
//!
//! Invariant: what a workload costs the server includes what the server puts off: its processor time is read again
//! some time after the last answer (`SETTLE`).

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use super::target::{Cpu, Target};
use crate::client::Connection;
use crate::histogram::Histogram;
use crate::usage::{AnonymousPeak, cpu_time};

/// Longer than etcd puts off its writes to its database, which is 100 ms.
const SETTLE: Duration = Duration::from_millis(250);
/// How much longer than planned a workload may take before something must be wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a workload cost in one round on one side.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Requests, or what the workload says that it counts.
    pub operations: u64,
    /// What the server's time is divided by: operations, keys or events.
    pub units: u64,
    /// From the first request to the last answer.
    pub wall_seconds: f64,
    /// Processor time of the server, over all members.
    pub server_cpu_seconds: f64,
    /// Processor time of a database outside the server.
    #[serde(default)]
    pub database_cpu_seconds: f64,
    /// Processor time of this program.
    pub client_cpu_seconds: f64,
    /// Half of the latencies are at most this.
    pub p50_us: f64,
    /// 99 % of the latencies are at most this.
    pub p99_us: f64,
    /// The longest latency.
    pub max_us: f64,
    /// The most anonymous memory that the server was seen to have meanwhile.
    pub anonymous_peak_bytes: u64,
}

impl Measured {
    /// Processor time of the server for each unit, in microseconds.
    pub fn server_cpu_us(&self) -> f64 {
        self.server_cpu_seconds * 1e6 / self.units as f64
    }

    /// Processor time of the database for each unit, in microseconds.
    pub fn database_cpu_us(&self) -> f64 {
        self.database_cpu_seconds * 1e6 / self.units as f64
    }

    /// Processor time of this program for each unit, in microseconds.
    pub fn client_cpu_us(&self) -> f64 {
        self.client_cpu_seconds * 1e6 / self.units as f64
    }

    /// Units a second.
    pub fn rate(&self) -> f64 {
        self.units as f64 / self.wall_seconds
    }
}

/// Reads the clocks around a workload.
pub struct Meter<'a> {
    target: &'a Target,
    cpu: Cpu,
    client_cpu: Duration,
    memory: AnonymousPeak,
    begun: Instant,
}

impl<'a> Meter<'a> {
    /// Begins to measure.
    ///
    /// # Errors
    /// When the server has ended.
    pub fn start(target: &'a Target) -> Result<Self> {
        let (cpu, client_cpu) = (target.cpu_time()?, cpu_time(std::process::id())?);
        Ok(Self { target, cpu, client_cpu, memory: AnonymousPeak::of(target.ids()), begun: Instant::now() })
    }

    /// Ends it; all answers have come.
    ///
    /// # Errors
    /// When the server has ended.
    pub async fn stop(self, operations: u64, units: u64, latency: &Histogram) -> Result<Measured> {
        let wall = self.begun.elapsed();
        let client_cpu = cpu_time(std::process::id())? - self.client_cpu;
        tokio::time::sleep(SETTLE).await;
        let cpu = self.target.cpu_time()? - self.cpu;
        let us = |duration: Duration| duration.as_secs_f64() * 1e6;
        Ok(Measured {
            operations,
            units,
            wall_seconds: wall.as_secs_f64(),
            server_cpu_seconds: cpu.store.as_secs_f64(),
            database_cpu_seconds: cpu.database.as_secs_f64(),
            client_cpu_seconds: client_cpu.as_secs_f64(),
            p50_us: us(latency.quantile(0.5)),
            p99_us: us(latency.quantile(0.99)),
            max_us: us(latency.max()),
            anonymous_peak_bytes: self.memory.bytes(),
        })
    }
}

/// How a loop runs: so many operations, or as many as fit into the time.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Operations at most.
    pub operations: u64,
    /// Operations at a time.
    pub in_flight: usize,
    /// No operation begins later than this after the start.
    pub time_max: Duration,
}

/// One operation's place in the loop.
#[derive(Clone, Copy)]
pub struct Turn<'a> {
    /// The connection to use.
    pub connection: &'a Connection,
    /// Which of the loop's workers this is; each does one operation at a time.
    pub worker: usize,
    /// The operations of a loop count from 0.
    pub number: u64,
}

/// What a loop did.
pub struct Loop {
    /// Operations: all numbers below this.
    pub operations: u64,
    /// The sum of what the operations returned.
    pub units: u64,
    /// Time that each took.
    pub latency: Histogram,
}

/// Runs operations, `plan.in_flight` at a time, until the plan is done; all that began have ended then. Each operation
/// returns how many units it was.
///
/// # Errors
/// When an operation fails, or the loop hangs.
pub async fn run_loop(
    connections: &[Connection],
    plan: Plan,
    operation: impl AsyncFn(Turn<'_>) -> Result<u64>,
) -> Result<Loop> {
    let begun = Instant::now();
    let (next, units) = (Cell::new(0), Cell::new(0));
    let latency = RefCell::new(Histogram::default());
    let (next_ref, units_ref, latency_ref, operation) = (&next, &units, &latency, &operation);
    let worker = |worker: usize| async move {
        let connection = &connections[worker % connections.len()];
        loop {
            let (number, start) = (next_ref.get(), Instant::now());
            if number >= plan.operations || start - begun >= plan.time_max {
                return anyhow::Ok(());
            }
            next_ref.set(number + 1);
            let done = operation(Turn { connection, worker, number }).await?;
            latency_ref.borrow_mut().record(start.elapsed());
            units_ref.set(units_ref.get() + done);
        }
    };
    let all = try_join_all((0..plan.in_flight).map(worker));
    tokio::time::timeout(plan.time_max + PATIENCE, all).await.context("requests hang")??;
    Ok(Loop { operations: next.get(), units: units.get(), latency: latency.into_inner() })
}
