//! The flags of the benchmark.

use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use super::workloads::Workload;
use crate::program::{self, Output};

/// One of the two stores that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// etcd.
    Etcd,
    /// KubeBrain.
    Brain,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Etcd, Self::Brain];
}

/// Runs kube-apiserver's requests against KubeBrain and etcd in turn, both with durable writes on the same disk, and
/// compares what they cost.
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "bench-brain")]
pub struct Options {
    /// A short run for development: the smallest number of keys, one round, a third of the operations.
    #[arg(long)]
    pub quick: bool,

    /// How many keys the store holds; one series of rounds for each.
    #[arg(long, value_delimiter = ',', default_value = "20000,1000000")]
    pub keys: Vec<u64>,

    /// Rounds for each number of keys. In each both sides have a turn, in alternating order; medians are told.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,

    /// Connections that the requests are spread over.
    #[arg(long, default_value_t = 4)]
    pub connections: usize,

    /// Requests in flight, over all connections.
    #[arg(long, default_value_t = 64)]
    pub in_flight: usize,

    /// Length of a key, in bytes.
    #[arg(long, default_value_t = 70)]
    pub key_bytes: usize,

    /// Length of a value, in bytes.
    #[arg(long, default_value_t = 512)]
    pub value_bytes: usize,

    /// Gets, updates, creates and deletes, each.
    #[arg(long, default_value_t = 60_000)]
    pub operations: u64,

    /// Keys that each of the list workloads reads.
    #[arg(long, default_value_t = 1_000_000)]
    pub listed_keys: u64,

    /// Watchers of the fan-out.
    #[arg(long, default_value_t = 100)]
    pub watchers: usize,

    /// Events that the fan-out delivers, over all watchers.
    #[arg(long, default_value_t = 1_000_000)]
    pub events: u64,

    /// Longest time of one workload; one that is slower does fewer operations.
    #[arg(long, default_value_t = 60)]
    pub seconds_max: u64,

    /// Runs only these workloads.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Workload>,

    /// Runs only this side; nothing is compared.
    #[arg(long)]
    pub side: Option<Side>,

    /// A flag for KubeBrain, with its dashes; may be given several times.
    #[arg(long, allow_hyphen_values = true)]
    pub brain_flag: Vec<String>,

    /// Where results go.
    #[command(flatten)]
    #[serde(skip)]
    pub output: Output,
}

/// How much of everything the workloads do.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Connections that the requests are spread over.
    pub connections: usize,
    /// Requests in flight, over all connections.
    pub in_flight: usize,
    /// Length of a key, in bytes.
    pub key_bytes: usize,
    /// Length of a value, in bytes.
    pub value_bytes: usize,
    /// Gets, updates, creates and deletes, each.
    pub operations: u64,
    /// Keys that each of the list workloads reads.
    pub listed_keys: u64,
    /// Watchers of the fan-out.
    pub watchers: usize,
    /// Events that the fan-out delivers, over all watchers.
    pub events: u64,
    /// Longest time of one workload.
    pub time_max: Duration,
}

impl Scale {
    /// Refuses what makes no sense with stores of so many keys.
    ///
    /// # Errors
    /// When something does not, as a sentence for the user.
    pub fn check(&self, keys: &[u64]) -> Result<(), String> {
        let positive = [
            ("--connections", self.connections as u64),
            ("--in-flight", self.in_flight as u64),
            ("--operations", self.operations),
            ("--listed-keys", self.listed_keys),
            ("--watchers", self.watchers as u64),
            ("--events", self.events),
            ("--seconds-max", self.time_max.as_secs()),
        ];
        program::check_positive(&positive)?;
        if keys.is_empty() || keys.iter().any(|keys| *keys < self.in_flight as u64) {
            return Err(format!("--keys: at least one number, each at least --in-flight ({})", self.in_flight));
        }
        if !(super::keys::KEY_BYTES_MIN..=1024).contains(&self.key_bytes) {
            let min = super::keys::KEY_BYTES_MIN;
            return Err(format!("--key-bytes {}: must be from {min} to 1024", self.key_bytes));
        }
        if !(super::keys::VALUE_BYTES_MIN..=100_000).contains(&self.value_bytes) {
            let min = super::keys::VALUE_BYTES_MIN;
            return Err(format!("--value-bytes {}: must be from {min} to 100000", self.value_bytes));
        }
        Ok(())
    }
}

impl Options {
    /// The options with what `--quick` means filled in.
    ///
    /// # Errors
    /// When a value makes no sense, as a sentence for the user.
    pub fn settled(mut self) -> Result<Self, String> {
        if self.quick {
            self.keys = self.keys.iter().min().copied().into_iter().collect();
            self.rounds = 1;
            self.operations = self.operations.div_ceil(3);
            self.listed_keys = self.listed_keys.div_ceil(3);
            self.events = self.events.div_ceil(3);
        }
        program::check_positive(&[("--rounds", u64::from(self.rounds))])?;
        self.scale().check(&self.keys)?;
        Ok(self)
    }

    /// How much the workloads do.
    pub fn scale(&self) -> Scale {
        Scale {
            connections: self.connections,
            in_flight: self.in_flight,
            key_bytes: self.key_bytes,
            value_bytes: self.value_bytes,
            operations: self.operations,
            listed_keys: self.listed_keys,
            watchers: self.watchers,
            events: self.events,
            time_max: Duration::from_secs(self.seconds_max),
        }
    }

    /// Whether that workload is wanted.
    pub fn wants(&self, workload: Workload) -> bool {
        self.only.is_empty() || self.only.contains(&workload)
    }

    /// The sides that run in that round (from 0), in their order: who begins alternates.
    pub fn sides(&self, round: u32) -> Vec<Side> {
        let mut sides = Side::ALL.to_vec();
        if round % 2 == 1 {
            sides.reverse();
        }
        sides.retain(|side| self.side.is_none_or(|wanted| wanted == *side));
        sides
    }
}
