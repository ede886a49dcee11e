//! The results of a run, as they are kept in JSON: every turn of both sides, nothing that follows from them.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::measure::{Cpu, Measured};
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
    /// What KubeZoo says of its version.
    pub version: String,
    /// What kube-apiserver says of its version.
    pub kubernetes: String,
    /// The flags, with the defaults.
    pub options: Options,
    /// Length of the object that is read, in JSON.
    pub object_bytes: usize,
    /// Length of the list of a namespace, in JSON.
    pub list_bytes: usize,
    /// Turns at requests and events, in the order in which they ran.
    pub turns: Vec<Turn>,
    /// Watches, counted.
    pub watches: Vec<WatchCount>,
    /// New tenants that are used.
    pub creation: Vec<CreationTurn>,
    /// What that takes at least.
    pub by_hand: Vec<HandTurn>,
    /// New tenants, as many as can be.
    pub bulk: Vec<BulkTurn>,
    /// Idle tenants.
    pub memory: Vec<Idle>,
}

/// One side's turn at a workload.
pub type Turn = turns::Turn<Side, Workload, Measured>;

/// The watches that tenants have, and those that they cost the kube-apiserver.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WatchCount {
    /// Whether they are of all namespaces.
    pub is_for_all: bool,
    /// Kinds that each tenant watches.
    pub kinds: usize,
    /// Watches of all tenants.
    pub watches: usize,
    /// Watches that the kube-apiserver counts.
    pub upstream: f64,
    /// Shared watches that KubeZoo counts.
    pub shared: f64,
}

/// Latencies.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Spread {
    /// Half of them are at most this.
    pub p50_ms: f64,
    /// 99 % of them are at most this.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// New tenants, each used once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreationTurn {
    /// Rounds count from 0.
    pub round: u32,
    /// How many.
    pub tenants: usize,
    /// How many at a time.
    pub at_once: usize,
    /// Until the `Tenant` object is made.
    pub made: Spread,
    /// From then until there is a certificate.
    pub credential: Spread,
    /// From then until an object is made by it, through a connection of its own.
    pub first: Spread,
    /// All of it.
    pub whole: Spread,
    /// Until all were used.
    pub wall_seconds: f64,
    /// Processor time, with what was then left to do.
    pub cpu_seconds: Cpu,
}

/// Namespaces that were made usable by hand, at the kube-apiserver itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HandTurn {
    /// Rounds count from 0.
    pub round: u32,
    /// How many.
    pub tenants: usize,
    /// How many at a time.
    pub at_once: usize,
    /// Until an object is made by a new user.
    pub whole: Spread,
    /// Until all were used.
    pub wall_seconds: f64,
    /// Processor time.
    pub cpu_seconds: Cpu,
}

/// New tenants, as many as can be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct BulkTurn {
    /// Rounds count from 0.
    pub round: u32,
    /// How many.
    pub tenants: usize,
    /// Until all namespaces of all were there.
    pub wall_seconds: f64,
    /// Processor time, with what was then left to do.
    pub cpu_seconds: Cpu,
}

impl BulkTurn {
    /// Tenants a second.
    pub fn rate(&self) -> f64 {
        self.tenants as f64 / self.wall_seconds
    }
}

/// Memory with idle tenants.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Idle {
    /// How many there are.
    pub tenants: usize,
    /// How KubeZoo started, if it has just started with these there.
    pub start: Option<Start>,
    /// KubeZoo's resident memory.
    pub resident_bytes: u64,
    /// The most that was ever resident.
    pub resident_peak_bytes: u64,
    /// What of it no file stands behind.
    pub anonymous_bytes: u64,
    /// What of it is its own share.
    pub proportional_bytes: u64,
    /// kube-apiserver's resident memory.
    pub apiserver_resident_bytes: u64,
    /// KubeBrain's resident memory.
    pub store_resident_bytes: u64,
}

/// A start of KubeZoo.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Start {
    /// Until it says that it is ready.
    pub ready_seconds: f64,
    /// Until it knows all tenants.
    pub known_seconds: f64,
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

    /// How much larger KubeZoo's number of a round is than the other side's of the same round, and the median of that over the rounds: what
    /// the machine does meanwhile changes both.
    pub fn added(&self, workload: Workload, number: fn(&Measured) -> f64) -> Option<f64> {
        turns::paired(&self.turns, (Side::Zoo, Side::Direct), workload, number, |zoo, direct| zoo - direct)
    }

    /// The same of what was made by hand.
    pub fn by_hand(&self, at_once: usize, number: impl Fn(&HandTurn) -> f64) -> Option<f64> {
        median(self.by_hand.iter().filter(|turn| turn.at_once == at_once).map(number).collect())
    }

    /// The median over the rounds of a number of new tenants, so many at a time.
    pub fn creation(&self, at_once: usize, number: impl Fn(&CreationTurn) -> f64) -> Option<f64> {
        median(self.creation.iter().filter(|turn| turn.at_once == at_once).map(number).collect())
    }
}
