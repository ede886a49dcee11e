//! What KubeBrain promises where members share a database. Ratios are beside kine, of one round each; absolute numbers are the machine's,
//! but those that a clock in the protocol gives.

use super::failover::Fault;
use super::options::Side;
use super::results::{Cost, Results};
use crate::brain::workloads::Workload;
use crate::turns::paired;

/// What of a workload is compared with kine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Units a second.
    Rate,
    /// Processor time a unit, of the store alone.
    Cpu,
    /// Processor time a unit, with the database's.
    CpuWithDatabase,
}

impl Compared {
    /// All.
    pub const ALL: [Self; 3] = [Self::Rate, Self::Cpu, Self::CpuWithDatabase];

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Rate => "a second",
            Self::Cpu => "CPU of the store",
            Self::CpuWithDatabase => "CPU with PostgreSQL",
        }
    }

    /// The number.
    pub fn number(self) -> fn(&Cost) -> f64 {
        match self {
            Self::Rate => |cost| cost.measured.rate(),
            Self::Cpu => |cost| cost.measured.server_cpu_us(),
            Self::CpuWithDatabase => Cost::cpu_us,
        }
    }

    /// So many times better than kine KubeBrain shall be.
    pub fn goal(self, workload: Workload) -> Option<f64> {
        match (self, workload) {
            (Self::Rate, Workload::Create | Workload::Update) => Some(4.0),
            (Self::Cpu | Self::CpuWithDatabase, Workload::List500 | Workload::List10000) => Some(5.0),
            _ => None,
        }
    }

    /// How many times better than kine the side is.
    pub fn times_better(self, results: &Results, side: Side, workload: Workload) -> Option<f64> {
        let ratio: fn(f64, f64) -> f64 = match self {
            Self::Rate => |kine, brain| brain / kine,
            Self::Cpu | Self::CpuWithDatabase => |kine, brain| kine / brain,
        };
        paired(&results.turns, (Side::Kine, side), workload, self.number(), ratio)
    }
}

/// How long nothing may be acknowledged, in milliseconds, 99 times of 100.
pub fn gap_p99_ms(fault: Fault) -> Option<f64> {
    match fault {
        Fault::Nothing => None,
        Fault::Kill => Some(600.0),
        Fault::Pause => Some(1500.0),
        Fault::HandOver => Some(100.0),
    }
}
