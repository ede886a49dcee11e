//! The flags of the benchmark.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::program::{self, Output};

/// What stands between the clients and the kube-apiserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Nothing.
    Direct,
    /// KubeZoo.
    Zoo,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Zoo];

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Zoo => "KubeZoo",
        }
    }

    /// Both, in the order of that round (from 0): who begins alternates.
    pub fn of_round(round: u32) -> [Self; 2] {
        let mut sides = Self::ALL;
        sides.rotate_left(round as usize % 2);
        sides
    }
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Reads of an object.
    Get,
    /// Reads of many objects.
    List,
    /// Writes of an object.
    Write,
    /// Watches.
    Watch,
    /// New tenants.
    Creation,
    /// What idle tenants cost.
    Memory,
}

/// Sends kube-apiserver's requests through KubeZoo and directly to the same kube-apiserver, in turn, and compares what they cost; makes
/// tenants, and measures what they cost when they do nothing.
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "bench-zoo")]
pub struct Options {
    /// A short run for development: one round, a fifth of the time, a tenth of the new tenants, a fiftieth of the idle ones.
    #[arg(long)]
    pub quick: bool,

    /// Rounds. In each both sides have a turn at each workload, in alternating order; medians are told.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,

    /// Time that one side's turn at reads or writes takes, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,

    /// Requests in flight in the rows that have several.
    #[arg(long, default_value_t = 8)]
    pub in_flight: usize,

    /// Connections that these are spread over.
    #[arg(long, default_value_t = 4)]
    pub connections: usize,

    /// Objects of a list.
    #[arg(long, default_value_t = 1000)]
    pub objects: usize,

    /// Namespaces that a list of all namespaces has these objects in.
    #[arg(long, default_value_t = 5)]
    pub namespaces: usize,

    /// Tenants that watch.
    #[arg(long, default_value_t = 50)]
    pub watching_tenants: usize,

    /// Equal watches of each.
    #[arg(long, default_value_t = 5)]
    pub watches: usize,

    /// Writes that each tenant's watches hear of, in a turn.
    #[arg(long, default_value_t = 40)]
    pub writes: usize,

    /// Writes in flight meanwhile.
    #[arg(long, default_value_t = 2)]
    pub writers: usize,

    /// Rounds of new tenants.
    #[arg(long, default_value_t = 3)]
    pub creation_rounds: u32,

    /// New tenants one after the other, in a round.
    #[arg(long, default_value_t = 20)]
    pub single: usize,

    /// New tenants at the same time.
    #[arg(long, default_value_t = 50)]
    pub parallel: usize,

    /// New tenants as fast as they can be made.
    #[arg(long, default_value_t = 500)]
    pub bulk: usize,

    /// Idle tenants whose memory is measured.
    #[arg(long, default_value_t = 10_000)]
    pub tenants: usize,

    /// Runs only these parts.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Part>,

    /// The program that is KubeZoo, if not the one that was built beside this one.
    #[arg(long)]
    #[serde(skip)]
    pub zoo_program: Option<PathBuf>,

    /// Where results go.
    #[command(flatten)]
    #[serde(skip)]
    pub output: Output,
}

impl Options {
    /// The options with what `--quick` means filled in.
    ///
    /// # Errors
    /// When a value makes no sense, as a sentence for the user.
    pub fn settled(mut self) -> Result<Self, String> {
        if self.quick {
            self.rounds = 1;
            self.creation_rounds = 1;
            self.seconds /= 5.0;
            for count in [&mut self.watching_tenants, &mut self.writes, &mut self.single] {
                *count = count.div_ceil(5);
            }
            for count in [&mut self.bulk, &mut self.parallel] {
                *count = count.div_ceil(10);
            }
            self.tenants = self.tenants.div_ceil(50);
        }
        let positive = [
            ("--rounds", u64::from(self.rounds)),
            ("--in-flight", self.in_flight as u64),
            ("--connections", self.connections as u64),
            ("--objects", self.objects as u64),
            ("--namespaces", self.namespaces as u64),
            ("--watching-tenants", self.watching_tenants as u64),
            ("--watches", self.watches as u64),
            ("--writes", self.writes as u64),
            ("--writers", self.writers as u64),
            ("--creation-rounds", u64::from(self.creation_rounds)),
            ("--single", self.single as u64),
            ("--parallel", self.parallel as u64),
            ("--bulk", self.bulk as u64),
            ("--tenants", self.tenants as u64),
        ];
        program::check_positive(&positive)?;
        if !self.objects.is_multiple_of(self.namespaces) {
            let (objects, namespaces) = (self.objects, self.namespaces);
            return Err(format!("--objects {objects}: must be a multiple of --namespaces ({namespaces})"));
        }
        program::check_seconds(self.seconds)?;
        Ok(self)
    }

    /// Time that one side's turn at reads or writes takes.
    pub fn turn_time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Whether that part is wanted.
    pub fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// The numbers of idle tenants whose memory is measured, besides none.
    pub fn tenant_counts(&self) -> Vec<usize> {
        let mut counts = vec![self.tenants.div_ceil(10), self.tenants];
        counts.dedup();
        counts
    }
}
