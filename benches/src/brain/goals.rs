//! What KubeBrain promises beside etcd. Ratios of medians of one run: absolute numbers are the machine's.

use super::measure::Measured;
use super::options::Side;
use super::results::{Footprint, Results};
use super::workloads::Workload;

/// A goal: KubeBrain's number is at most this share of etcd's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// The largest ratio that meets it.
    pub ratio_max: f64,
}

impl Goal {
    /// Whether a ratio meets it.
    pub fn is_met(self, ratio: f64) -> bool {
        ratio <= self.ratio_max
    }
}

/// The goal for a workload's processor time a unit.
pub fn cpu(workload: Workload) -> Option<Goal> {
    let ratio_max = match workload {
        Workload::Create | Workload::Update | Workload::Get => 0.3,
        Workload::List500 | Workload::List10000 | Workload::ListWhole | Workload::Watch => 0.125,
        _ => return None,
    };
    Some(Goal { ratio_max })
}

/// The goal for a workload's 99th percentile of latency.
pub fn p99(workload: Workload) -> Option<Goal> {
    (workload == Workload::Create).then_some(Goal { ratio_max: 1.0 })
}

/// The goal for anonymous memory after the load.
pub const ANONYMOUS_MEMORY: Goal = Goal { ratio_max: 0.5 };

/// The goal for anonymous memory is for stores of at least this many keys: below, the program itself is most of it.
pub const ANONYMOUS_MEMORY_KEYS_MIN: u64 = 1_000_000;

/// KubeBrain's median as a share of etcd's, of a workload.
pub fn workload_ratio(results: &Results, keys: u64, workload: Workload, number: fn(&Measured) -> f64) -> Option<f64> {
    let of = |side| results.of_workload(side, keys, workload, number);
    Some(of(Side::Brain)? / of(Side::Etcd)?)
}

/// KubeBrain's median as a share of etcd's, of the footprint.
pub fn footprint_ratio(results: &Results, keys: u64, number: fn(&Footprint) -> f64) -> Option<f64> {
    let of = |side| results.of_footprint(side, keys, number);
    Some(of(Side::Brain)? / of(Side::Etcd)?)
}
