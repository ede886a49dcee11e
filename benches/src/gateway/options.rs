//! The flags of the benchmark.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

use super::workloads::Workload;
use crate::program::{self, Output};

/// What stands between the clients and the kube-apiserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Nothing.
    Direct,
    /// HAProxy.
    Haproxy,
    /// KubeGateway.
    Gateway,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Haproxy, Self::Gateway];
    /// Those that are programs of their own.
    pub const PROXIES: [Self; 2] = [Self::Haproxy, Self::Gateway];

    /// What the tables call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "HAProxy",
            Self::Gateway => "KubeGateway",
        }
    }
}

/// Sends kube-apiserver's requests through KubeGateway, through HAProxy and directly, in turn, and compares what they cost.
#[derive(Debug, Clone, Parser, Serialize, Deserialize)]
#[command(name = "bench-gateway")]
pub struct Options {
    /// A short run for development: one round, a third of the time and of the connections.
    #[arg(long)]
    pub quick: bool,

    /// Rounds. In each every side has a turn at each workload, in alternating order; medians are told.
    #[arg(long, default_value_t = 7)]
    pub rounds: u32,

    /// Connections that the requests are spread over.
    #[arg(long, default_value_t = 4)]
    pub connections: usize,

    /// Requests in flight, over all connections.
    #[arg(long, default_value_t = 32)]
    pub in_flight: usize,

    /// Time that one side's turn at a workload takes, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,

    /// Length of a list, in bytes.
    #[arg(long, default_value_t = 10_000_000)]
    pub list_bytes: usize,

    /// Idle connections whose memory is measured.
    #[arg(long, default_value_t = 5_000)]
    pub idle_connections: usize,

    /// Idle watches whose memory is measured.
    #[arg(long, default_value_t = 10_000)]
    pub idle_watches: usize,

    /// Watches that share a connection.
    #[arg(long, default_value_t = 100)]
    pub watches_per_connection: usize,

    /// Watchers of the fan-out.
    #[arg(long, default_value_t = 1_000)]
    pub watchers: usize,

    /// Writes that each watcher of the fan-out hears of, in a round.
    #[arg(long, default_value_t = 100)]
    pub writes: usize,

    /// Client connections with a request each in flight at once: how many connections that costs the kube-apiserver.
    #[arg(long, value_delimiter = ',', default_value = "500,10000")]
    pub clients: Vec<usize>,

    /// Runs only these workloads.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Workload>,

    /// Runs only this side; nothing is compared.
    #[arg(long)]
    pub side: Option<Side>,

    /// Leaves out the rounds in front of a real kube-apiserver.
    #[arg(long)]
    pub no_apiserver: bool,

    /// The program that is KubeGateway, if not the one that was built beside this one.
    #[arg(long)]
    #[serde(skip)]
    pub gateway_program: Option<PathBuf>,

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
            self.seconds /= 3.0;
            self.idle_connections = self.idle_connections.div_ceil(3);
            self.idle_watches = self.idle_watches.div_ceil(3);
            self.writes = self.writes.div_ceil(3);
            self.clients
                .iter_mut()
                .filter(|clients| **clients > 500)
                .for_each(|clients| *clients = clients.div_ceil(3));
        }
        let positive = [
            ("--rounds", u64::from(self.rounds)),
            ("--connections", self.connections as u64),
            ("--in-flight", self.in_flight as u64),
            ("--list-bytes", self.list_bytes as u64),
            ("--idle-connections", self.idle_connections as u64),
            ("--idle-watches", self.idle_watches as u64),
            ("--watches-per-connection", self.watches_per_connection as u64),
            ("--watchers", self.watchers as u64),
            ("--writes", self.writes as u64),
        ];
        program::check_positive(&positive)?;
        program::check_seconds(self.seconds)?;
        Ok(self)
    }

    /// Time that one side's turn at a workload takes.
    pub fn turn_time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Whether that workload is wanted.
    pub fn wants(&self, workload: Workload) -> bool {
        self.only.is_empty() || self.only.contains(&workload)
    }

    /// The sides of a workload that run in that round (from 0), in their order: who begins alternates.
    pub fn sides(&self, round: u32, of: &[Side]) -> Vec<Side> {
        let mut sides: Vec<Side> =
            of.iter().copied().filter(|side| self.side.is_none_or(|wanted| wanted == *side)).collect();
        let first = round as usize % sides.len().max(1);
        sides.rotate_left(first);
        sides
    }
}
