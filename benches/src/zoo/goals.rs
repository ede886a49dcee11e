//! What KubeZoo promises. Each has a bound, which must hold, and a goal below it.

use super::options::Part;
use super::workloads::Workload;

/// A bound and a goal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Goal {
    /// Must not be exceeded.
    pub bound: f64,
    /// Shall not be exceeded.
    pub goal: f64,
}

impl Goal {
    const fn new(bound: f64, goal: f64) -> Self {
        Self { bound, goal }
    }
}

/// Processor time of KubeZoo for each operation, in microseconds.
pub fn cpu_us(workload: Workload) -> Option<Goal> {
    match workload.part() {
        Part::Get => Some(Goal::new(150.0, 100.0)),
        Part::List => Some(Goal::new(10_000.0, 5_000.0)),
        Part::Watch => Some(Goal::new(15.0, 10.0)),
        _ => None,
    }
}

/// What the median of latencies may grow by, in milliseconds.
pub fn added_p50_ms(workload: Workload) -> Option<Goal> {
    matches!(workload, Workload::GetJson | Workload::GetProtobuf).then_some(Goal::new(0.5, 0.3))
}

/// From a new tenant to its first object: the 99th percentile of those that are made at the same time, in milliseconds.
pub const USABLE_P99_MS: Goal = Goal::new(100.0, 50.0);

/// New tenants a second.
pub const BULK_RATE_MIN: f64 = 500.0;

/// Resident memory without tenants, in MiB.
pub const EMPTY_MIB: f64 = 40.0;

/// Resident memory that so many idle tenants add, in MiB. Of a few, other things count for more.
pub fn added_mib(tenants: usize) -> Option<f64> {
    (tenants >= 1000).then_some(100.0 * tenants as f64 / 10_000.0)
}
