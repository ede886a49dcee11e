//! The results of a run, as they are kept in JSON: every round of all sides, nothing that follows from them.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::failover::Fault;
use super::options::{Options, Side};
use super::report;
use super::stores::Commits;
use crate::brain::measure::Measured;
use crate::brain::workloads::Workload;
use crate::machine::Machine;
use crate::program;
use crate::turns::{self, Turn};

/// A run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// The day, UTC.
    pub date: String,
    /// How it was started.
    pub command: String,
    /// What it ran on.
    pub machine: Machine,
    /// The programs, and what they say of their versions.
    pub versions: Vec<(String, String)>,
    /// The flags, with the defaults.
    pub options: Options,
    /// What was measured, in its order.
    pub turns: Vec<Turn<Side, Workload, Cost>>,
    /// What happened to leaders, in its order.
    pub gaps: Vec<Gap>,
}

/// What a workload cost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cost {
    /// Time and processor time.
    #[serde(flatten)]
    pub measured: Measured,
    /// What KubeBrain committed meanwhile.
    pub commits: Option<Commits>,
}

impl Cost {
    /// Processor time of the store and its database for each unit, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        self.measured.server_cpu_us() + self.measured.database_cpu_us()
    }
}

/// A fault.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Gap {
    /// Whose leader.
    pub side: Side,
    /// Rounds count from 0.
    pub round: u32,
    /// What happened to it.
    pub fault: Fault,
    /// How long no write was acknowledged, in milliseconds.
    pub ms: f64,
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
    pub fn of(&self, side: Side, workload: Workload, number: fn(&Cost) -> f64) -> Option<f64> {
        turns::of(&self.turns, side, workload, number)
    }

    /// The workloads that were run, in their order.
    pub fn workloads(&self) -> Vec<Workload> {
        let ran = |workload: &Workload| self.turns.iter().any(|turn| turn.workload == *workload);
        Workload::ALL.into_iter().filter(ran).collect()
    }

    /// The gaps of a side's faults, the shortest first.
    pub fn gaps(&self, side: Side, fault: Fault) -> Vec<f64> {
        let of = self.gaps.iter().filter(|gap| gap.side == side && gap.fault == fault);
        let mut gaps: Vec<f64> = of.map(|gap| gap.ms).collect();
        gaps.sort_by(f64::total_cmp);
        gaps
    }
}

/// What this share (0 to 1) of the numbers does not exceed; they are in order.
pub fn quantile(numbers: &[f64], share: f64) -> Option<f64> {
    let wanted = ((numbers.len() as f64 * share).ceil() as usize).max(1);
    numbers.get(wanted - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_numbers() {
        let numbers: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| quantile(&numbers, share)), [1.0, 25.0, 50.0, 50.0].map(Some));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
