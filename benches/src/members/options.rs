//! The flags of the benchmark.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use super::failover::Fault;
use crate::brain::options::Scale;
use crate::brain::workloads::Workload;
use crate::program::{self, Output};

/// One of the stores that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// kine on a PostgreSQL.
    Kine,
    /// One KubeBrain on a PostgreSQL.
    #[value(name = "brain-1")]
    #[serde(rename = "brain-1")]
    Brain1,
    /// Two that share it; only for what grows with their number.
    #[value(name = "brain-2")]
    #[serde(rename = "brain-2")]
    Brain2,
    /// Three.
    #[value(name = "brain-3")]
    #[serde(rename = "brain-3")]
    Brain3,
    /// A cluster of three etcds.
    #[value(name = "etcd-3")]
    #[serde(rename = "etcd-3")]
    Etcd3,
}

impl Side {
    /// All.
    pub const ALL: [Self; 5] = [Self::Kine, Self::Brain1, Self::Brain2, Self::Brain3, Self::Etcd3];

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Kine => "kine",
            Self::Brain1 => "KubeBrain, 1 member",
            Self::Brain2 => "KubeBrain, 2 members",
            Self::Brain3 => "KubeBrain, 3 members",
            Self::Etcd3 => "etcd, 3 members",
        }
    }

    /// How many processes it has, beside its database's.
    pub fn members(self) -> usize {
        match self {
            Self::Kine | Self::Brain1 => 1,
            Self::Brain2 => 2,
            Self::Brain3 | Self::Etcd3 => 3,
        }
    }
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Reads of an object.
    Get,
    /// Writes of an object.
    Write,
    /// Watches.
    Watch,
    /// Reads of many objects.
    List,
    /// Leaders that are killed, paused and stopped.
    Failover,
}

/// Runs kube-apiserver's requests against KubeBrains that share one PostgreSQL, a cluster of etcds, and kine, in turn, and compares what
/// they cost; and measures how long nothing is written when a leader goes.
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "bench-members")]
pub struct Options {
    /// A short run for development: one round, a tenth of everything.
    #[arg(long)]
    pub quick: bool,

    /// How many keys the store holds. They are created one by one: kine takes no larger transactions.
    #[arg(long, default_value_t = 20_000)]
    pub keys: u64,

    /// Rounds. In each all sides have a turn, in alternating order; medians are told.
    #[arg(long, default_value_t = 3)]
    pub rounds: u32,

    /// Connections that the requests are spread over; they are spread over the members.
    #[arg(long, default_value_t = 12)]
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

    /// Gets, updates and creates, each.
    #[arg(long, default_value_t = 30_000)]
    pub operations: u64,

    /// Keys that each of the list workloads reads.
    #[arg(long, default_value_t = 500_000)]
    pub listed_keys: u64,

    /// Watchers of the fan-out.
    #[arg(long, default_value_t = 60)]
    pub watchers: usize,

    /// Events that the fan-out delivers, over all watchers.
    #[arg(long, default_value_t = 300_000)]
    pub events: u64,

    /// Longest time of one workload; one that is slower does fewer operations.
    #[arg(long, default_value_t = 30)]
    pub seconds_max: u64,

    /// How often a leader is killed, over all rounds.
    #[arg(long, default_value_t = 50)]
    pub kills: u32,

    /// How often a leader is paused, over all rounds.
    #[arg(long, default_value_t = 20)]
    pub pauses: u32,

    /// How long a paused leader stands still, in milliseconds.
    #[arg(long, default_value_t = 2000)]
    pub pause_ms: u64,

    /// How often a leader is told to stop, over all rounds.
    #[arg(long, default_value_t = 20)]
    pub hand_overs: u32,

    /// Meanwhile a write begins at each member so often, in milliseconds, whatever became of those before.
    #[arg(long, default_value_t = 5)]
    pub write_interval_ms: u64,

    /// Runs only these parts.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Part>,

    /// Runs only these sides.
    #[arg(long, value_delimiter = ',')]
    pub side: Vec<Side>,

    /// A flag for KubeBrain, with its dashes; may be given several times.
    #[arg(long, allow_hyphen_values = true)]
    pub brain_flag: Vec<String>,

    /// A flag for kine, with its dashes; may be given several times. By itself kine keeps 20 connections to its database, and opens and
    /// closes the others that requests in flight need.
    #[arg(long, allow_hyphen_values = true, default_value = "--datastore-max-idle-connections=64")]
    pub kine_flag: Vec<String>,

    /// The program kine [default: the pinned version, built if it is missing].
    #[arg(long)]
    #[serde(skip)]
    pub kine: Option<PathBuf>,

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
            for number in [&mut self.keys, &mut self.operations, &mut self.listed_keys, &mut self.events] {
                *number = number.div_ceil(10);
            }
            for number in [&mut self.kills, &mut self.pauses, &mut self.hand_overs] {
                *number = number.div_ceil(10);
            }
        }
        let positive = [
            ("--rounds", u64::from(self.rounds)),
            ("--pause-ms", self.pause_ms),
            ("--write-interval-ms", self.write_interval_ms),
        ];
        program::check_positive(&positive)?;
        self.scale().check(&[self.keys])?;
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

    /// Whether that side is wanted.
    pub fn wants_side(&self, side: Side) -> bool {
        self.side.is_empty() || self.side.contains(&side)
    }

    /// The sides that run in that round (from 0), in their order: every other round goes backwards.
    pub fn sides(&self, round: u32) -> Vec<Side> {
        let mut sides = Side::ALL.to_vec();
        if round % 2 == 1 {
            sides.reverse();
        }
        sides.retain(|side| self.wants_side(*side));
        sides
    }

    /// Whether that workload is wanted of that side. Lists come after a compaction, as in a cluster, which has one every few minutes.
    pub fn wants(&self, side: Side, workload: Workload) -> bool {
        let part = match workload {
            Workload::Get => Part::Get,
            Workload::Update | Workload::Create => Part::Write,
            Workload::Watch => Part::Watch,
            Workload::Compact | Workload::List500 | Workload::List10000 => Part::List,
            _ => return false,
        };
        let grows = matches!(part, Part::Get | Part::Watch);
        self.wants_part(part) && (side != Side::Brain2 || grows)
    }

    /// What happens to leaders of that side in that round: this round's share of all.
    pub fn faults(&self, side: Side, round: u32) -> Vec<Fault> {
        if !self.wants_part(Part::Failover) || !matches!(side, Side::Brain3 | Side::Etcd3) {
            return Vec::new();
        }
        let share = |all: u32| (all / self.rounds + u32::from(round < all % self.rounds)) as usize;
        let times = |fault: Fault| match fault {
            Fault::Nothing | Fault::HandOver => share(self.hand_overs),
            Fault::Kill => share(self.kills),
            Fault::Pause => share(self.pauses),
        };
        Fault::ALL.into_iter().flat_map(|fault| std::iter::repeat_n(fault, times(fault))).collect()
    }

    fn wants_part(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rounds_share_all_faults() {
        let options = Options::parse_from(["bench-members", "--kills=50", "--pauses=1", "--hand-overs=0"]);
        let all: Vec<Fault> = (0..options.rounds).flat_map(|round| options.faults(Side::Etcd3, round)).collect();
        let count = |fault| all.iter().filter(|found| **found == fault).count();
        assert_eq!(Fault::ALL.map(count), [0, 50, 1, 0]);
        assert!(options.faults(Side::Kine, 0).is_empty());
    }
}
