//! The results of a run, as they are kept in JSON: every turn of every side, nothing that follows from them.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::measure::Measured;
use super::options::{Options, Side};
use super::report;
use super::workloads::Workload;
use crate::document::median;
use crate::machine::Machine;
use crate::{program, turns};

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// The day, UTC.
    pub date: String,
    /// How it was started.
    pub command: String,
    /// What it ran on.
    pub machine: Machine,
    /// What the programs say of their versions.
    pub versions: Vec<(Side, String)>,
    /// The flags, with the defaults.
    pub options: Options,
    /// Turns at requests and events, in the order in which they ran.
    pub turns: Vec<Turn>,
    /// Turns at memory.
    pub memory: Vec<MemoryTurn>,
    /// Turns at many clients.
    pub clients: Vec<ClientsTurn>,
}

/// One side's turn at a workload.
pub type Turn = turns::Turn<Side, Workload, Measured>;

/// What a number of connections or watches cost a fresh proxy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemoryTurn {
    /// Which side.
    pub side: Side,
    /// Of what.
    pub workload: Workload,
    /// How many.
    pub count: usize,
    /// Resident memory before.
    pub before_bytes: u64,
    /// Resident memory with them.
    pub after_bytes: u64,
}

impl MemoryTurn {
    /// KiB of each.
    pub fn kib_each(&self) -> f64 {
        self.after_bytes.saturating_sub(self.before_bytes) as f64 / 1024.0 / self.count as f64
    }
}

/// What many clients cost a kube-apiserver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClientsTurn {
    /// Which side.
    pub side: Side,
    /// Connections to it, with a request each in flight at once.
    pub clients: usize,
    /// The most connections that the kube-apiserver had.
    pub backend_connections: u64,
    /// Until all requests had come to the kube-apiserver.
    pub all_sent_seconds: f64,
}

impl program::Results for Results {
    fn text(&self) -> String {
        report::text(self)
    }

    fn put_into(&self, document: &str) -> Result<String> {
        report::put_into(document, self)
    }
}

impl Results {
    /// The median over the rounds of a number of a workload.
    pub fn of(&self, side: Side, workload: Workload, number: fn(&Measured) -> f64) -> Option<f64> {
        turns::of(&self.turns, side, workload, number)
    }

    /// KubeGateway's number of a round combined with another side's of the same round, and the median of that over the rounds: what
    /// the machine does meanwhile changes both.
    pub fn paired(
        &self,
        other: Side,
        workload: Workload,
        number: fn(&Measured) -> f64,
        combine: fn(f64, f64) -> f64,
        side: Side,
    ) -> Option<f64> {
        turns::paired(&self.turns, (side, other), workload, number, combine)
    }

    /// The median of the KiB that each of a thing costs.
    pub fn kib_each(&self, side: Side, workload: Workload) -> Option<f64> {
        let turns = self.memory.iter().filter(|turn| turn.side == side && turn.workload == workload);
        median(turns.map(MemoryTurn::kib_each).collect())
    }

    /// Whether anything was measured of a workload.
    pub fn has(&self, workload: Workload) -> bool {
        self.turns.iter().any(|turn| turn.workload == workload)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::program::Results as _;

    /// A turn in which an operation took the proxy that long, and half of the latencies were at most so long, in microseconds.
    pub(in crate::gateway) fn turn(side: Side, round: u32, workload: Workload, cpu_us: f64, p50_us: f64) -> Turn {
        let measured = Measured {
            operations: 1000,
            wall_seconds: 1.0,
            proxy_cpu_seconds: cpu_us / 1e3,
            backend_cpu_seconds: 0.01,
            client_cpu_seconds: 0.01,
            p50_us,
            p99_us: p50_us * 2.0,
            max_us: p50_us * 3.0,
        };
        Turn { side, round, workload, measured }
    }

    pub(in crate::gateway) fn results(turns: Vec<Turn>) -> Results {
        Results {
            date: "2026-01-01".to_owned(),
            command: "make bench-gateway".to_owned(),
            machine: Machine::example(),
            versions: vec![(Side::Haproxy, "HAProxy 2.6".to_owned()), (Side::Gateway, "kubewharf 0.1".to_owned())],
            options: Options::parse_from(["bench-gateway"]),
            turns,
            memory: vec![MemoryTurn {
                side: Side::Gateway,
                workload: Workload::IdleWatches,
                count: 10,
                before_bytes: 1 << 20,
                after_bytes: (1 << 20) + 10 * 13 * 1024,
            }],
            clients: vec![ClientsTurn {
                side: Side::Gateway,
                clients: 500,
                backend_connections: 10,
                all_sent_seconds: 0.1,
            }],
        }
    }

    #[test]
    fn json_keeps_everything_that_is_told() {
        let json = results(vec![turn(Side::Direct, 0, Workload::SteadyGetSmall, 0.0, 5.0)]).to_json().unwrap();
        assert_eq!(Results::from_json(&json).unwrap().to_json().unwrap(), json);
        assert!(Results::from_json("{}").is_err());
    }
}
