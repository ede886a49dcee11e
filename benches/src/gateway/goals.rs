//! What KubeGateway promises. Processor time is a ratio to HAProxy's of the same run, because absolute numbers are the machine's.

use super::workloads::Workload;

/// The largest processor time for each operation, as a share of HAProxy's.
pub fn cpu_ratio_max(workload: Workload) -> Option<f64> {
    match workload {
        Workload::GetSmall | Workload::SteadyGetSmall => Some(1.8),
        Workload::GetLarge | Workload::Post | Workload::SteadyGetLarge | Workload::SteadyPost => Some(1.0),
        _ => None,
    }
}

/// The most that the median of latencies may grow at half load, in milliseconds.
pub const ADDED_P50_MS_MAX: f64 = 0.2;

/// The most resident memory that each may cost, in KiB.
pub fn kib_max(workload: Workload) -> Option<f64> {
    match workload {
        Workload::IdleConnections => Some(40.0),
        Workload::IdleWatches => Some(12.0),
        _ => None,
    }
}

/// The most connections that so many requests in flight may cost a kube-apiserver.
pub fn connections_max(in_flight: usize) -> u64 {
    in_flight.div_ceil(90) as u64 + 4
}
