//! The results of a run, as they are kept in JSON: every round of both sides, nothing that follows from them.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::measure::Measured;
use super::options::{Options, Side};
use super::report;
use super::workloads::Workload;
use crate::document::median;
use crate::machine::Machine;
use crate::program;

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
    /// Each side's turns, in the order in which they ran.
    pub turns: Vec<SideTurn>,
}

/// One side's turn in one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SideTurn {
    /// Which side.
    pub side: Side,
    /// How many keys were loaded.
    pub keys: u64,
    /// The rounds of a number of keys count from 0.
    pub round: u32,
    /// What was measured.
    pub workloads: Vec<(Workload, Measured)>,
    /// Memory, disk and restart.
    pub footprint: Footprint,
}

/// What a store takes beside processor time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Footprint {
    /// Anonymous memory after the load, at rest.
    pub anonymous_after_load_bytes: u64,
    /// All resident memory then, with mapped files.
    pub resident_after_load_bytes: u64,
    /// Mapped files in it.
    pub mapped_after_load_bytes: u64,
    /// The most anonymous memory from the load to the last workload.
    pub anonymous_peak_bytes: u64,
    /// The most resident memory (`VmHWM`).
    pub resident_peak_bytes: u64,
    /// Disk that the data took after the load.
    pub disk_after_load_bytes: u64,
    /// Disk that the data took after the last workload.
    pub disk_at_end_bytes: u64,
    /// From the start after a kill to the first answer to a linearizable read.
    pub restart_seconds: f64,
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
    /// The median over the rounds of a number that a workload gave.
    pub fn of_workload(&self, side: Side, keys: u64, workload: Workload, number: fn(&Measured) -> f64) -> Option<f64> {
        let of_turn = |turn: &SideTurn| {
            let found = turn.workloads.iter().find(|(name, _)| *name == workload);
            found.map(|(_, measured)| number(measured))
        };
        median(self.turns_of(side, keys).filter_map(of_turn).collect())
    }

    /// The median over the rounds of a number of the footprint.
    pub fn of_footprint(&self, side: Side, keys: u64, number: fn(&Footprint) -> f64) -> Option<f64> {
        median(self.turns_of(side, keys).map(|turn| number(&turn.footprint)).collect())
    }

    /// The workloads that were run with that many keys, in their order.
    pub fn workloads(&self, keys: u64) -> Vec<Workload> {
        let of_keys = self.turns.iter().filter(|turn| turn.keys == keys);
        let ran: Vec<Workload> = of_keys.flat_map(|turn| turn.workloads.iter().map(|(name, _)| *name)).collect();
        Workload::ALL.into_iter().filter(|workload| ran.contains(workload)).collect()
    }

    fn turns_of(&self, side: Side, keys: u64) -> impl Iterator<Item = &SideTurn> {
        self.turns.iter().filter(move |turn| turn.side == side && turn.keys == keys)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::program::Results as _;

    /// A round in which a create took that much processor time and had that 99th percentile, in microseconds.
    pub(in crate::brain) fn turn(side: Side, round: u32, cpu_us: f64, p99_us: f64, anonymous_mib: u64) -> SideTurn {
        let measured = Measured {
            operations: 1000,
            units: 1000,
            wall_seconds: 0.5,
            server_cpu_seconds: cpu_us / 1000.0,
            database_cpu_seconds: 0.0,
            client_cpu_seconds: 0.01,
            p50_us: p99_us / 2.0,
            p99_us,
            max_us: p99_us * 2.0,
            anonymous_peak_bytes: anonymous_mib << 20,
        };
        let footprint = Footprint {
            anonymous_after_load_bytes: anonymous_mib << 20,
            resident_after_load_bytes: anonymous_mib << 21,
            mapped_after_load_bytes: anonymous_mib << 20,
            anonymous_peak_bytes: anonymous_mib << 20,
            resident_peak_bytes: anonymous_mib << 21,
            disk_after_load_bytes: 1 << 20,
            disk_at_end_bytes: 1 << 20,
            restart_seconds: 1.0,
        };
        SideTurn { side, keys: 1000, round, workloads: vec![(Workload::Create, measured)], footprint }
    }

    pub(in crate::brain) fn results(turns: Vec<SideTurn>) -> Results {
        Results {
            date: "2026-01-01".to_owned(),
            command: "make bench-brain".to_owned(),
            machine: Machine::example(),
            versions: vec![(Side::Etcd, "etcd 3.7".to_owned()), (Side::Brain, "kubewharf 0.1".to_owned())],
            options: Options::parse_from(["bench-brain", "--keys=1000"]),
            turns,
        }
    }

    #[test]
    fn medians_are_over_the_rounds_of_one_side() {
        let mut turns: Vec<_> = [30.0, 10.0, 20.0].map(|cpu| turn(Side::Brain, 0, cpu, 5.0, 1)).into();
        turns.push(turn(Side::Etcd, 0, 99.0, 5.0, 1));
        let results = results(turns);
        let cpu = |side| results.of_workload(side, 1000, Workload::Create, Measured::server_cpu_us);
        assert_eq!(cpu(Side::Brain).map(f64::round), Some(20.0));
        assert_eq!(cpu(Side::Etcd).map(f64::round), Some(99.0));
        assert_eq!(results.of_workload(Side::Etcd, 1000, Workload::Get, Measured::rate), None);
        assert_eq!(results.workloads(1000), [Workload::Create]);
        assert_eq!(median(vec![1.0, 4.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn json_keeps_everything_that_is_told() {
        let results = results(vec![turn(Side::Etcd, 0, 99.0, 5.0, 1)]);
        let json = results.to_json().unwrap();
        let again = Results::from_json(&json).unwrap();
        assert_eq!(again.to_json().unwrap(), json);
        assert!(Results::from_json("{}").is_err());
    }
}
