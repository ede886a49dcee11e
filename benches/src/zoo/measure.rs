//! Reads the clocks of all processes around a workload.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::histogram::Histogram;
use crate::usage::cpu_time;

/// The processes of a cluster, by number.
#[derive(Debug, Clone, Copy)]
pub struct Processes {
    /// KubeZoo; none on the side without it.
    pub zoo: Option<u32>,
    /// kube-apiserver.
    pub apiserver: u32,
    /// KubeBrain, which keeps its objects.
    pub store: u32,
}

impl Processes {
    fn cpu(self) -> Result<[Duration; 4]> {
        let of = |pid: u32, name: &str| cpu_time(pid).with_context(|| format!("{name} has ended"));
        let zoo = self.zoo.map_or(Ok(Duration::ZERO), |pid| of(pid, "KubeZoo"))?;
        let own = of(std::process::id(), "the benchmark")?;
        Ok([zoo, of(self.apiserver, "kube-apiserver")?, of(self.store, "KubeBrain")?, own])
    }
}

/// Processor time, in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Cpu {
    /// KubeZoo's; zero on the side without it.
    pub zoo: f64,
    /// kube-apiserver's.
    pub apiserver: f64,
    /// KubeBrain's.
    pub store: f64,
    /// This program's.
    pub client: f64,
}

/// What a workload cost in one turn.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Requests, or events.
    pub operations: u64,
    /// Time that they took.
    pub wall_seconds: f64,
    /// Processor time.
    pub cpu_seconds: Cpu,
    /// Half of the latencies are at most this.
    pub p50_us: f64,
    /// 99 % of the latencies are at most this.
    pub p99_us: f64,
    /// The longest latency.
    pub max_us: f64,
}

impl Measured {
    /// Processor time of KubeZoo for each operation, in microseconds.
    pub fn zoo_cpu_us(&self) -> f64 {
        self.cpu_seconds.zoo * 1e6 / self.operations as f64
    }

    /// Processor time of kube-apiserver for each operation, in microseconds.
    pub fn apiserver_cpu_us(&self) -> f64 {
        self.cpu_seconds.apiserver * 1e6 / self.operations as f64
    }

    /// Processor time of this program for each operation, in microseconds.
    pub fn client_cpu_us(&self) -> f64 {
        self.cpu_seconds.client * 1e6 / self.operations as f64
    }

    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.operations as f64 / self.wall_seconds
    }

    /// The median of the latencies, in milliseconds.
    pub fn p50_ms(&self) -> f64 {
        self.p50_us / 1e3
    }

    /// The 99th percentile of the latencies, in milliseconds.
    pub fn p99_ms(&self) -> f64 {
        self.p99_us / 1e3
    }
}

/// Reads the clocks around a workload.
#[derive(Debug)]
pub struct Meter {
    processes: Processes,
    cpu: [Duration; 4],
    begun: Instant,
}

impl Meter {
    /// Begins to measure.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn start(processes: Processes) -> Result<Self> {
        Ok(Self { processes, cpu: processes.cpu()?, begun: Instant::now() })
    }

    /// Wall-clock time and processor time so far.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn read(&self) -> Result<(f64, Cpu)> {
        let wall_seconds = self.begun.elapsed().as_secs_f64();
        let now = self.processes.cpu()?;
        let [zoo, apiserver, store, client] = std::array::from_fn(|index| (now[index] - self.cpu[index]).as_secs_f64());
        Ok((wall_seconds, Cpu { zoo, apiserver, store, client }))
    }

    /// Ends it; all answers have come.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn stop(self, operations: u64, latency: &Histogram) -> Result<Measured> {
        let (wall_seconds, cpu_seconds) = self.read()?;
        let us = |duration: Duration| duration.as_secs_f64() * 1e6;
        Ok(Measured {
            operations,
            wall_seconds,
            cpu_seconds,
            p50_us: us(latency.quantile(0.5)),
            p99_us: us(latency.quantile(0.99)),
            max_us: us(latency.max()),
        })
    }
}
