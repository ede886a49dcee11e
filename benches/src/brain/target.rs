//! Where a store is asked, and which processes its answers cost.
//!
//! Invariant: processor time that was counted once stays counted, also that of processes of the database which have ended since.

use std::net::SocketAddr;
use std::ops::Sub;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kubewharf_testkit::process::{Process, children};
use kubewharf_testkit::usage::cpu_time_of_ended_children;

use crate::client::Connection;
use crate::usage::cpu_time;

/// A store is idle once each of its processes takes less than this share of a core for that long.
const IDLE_SHARE: f64 = 0.03;
const IDLE_FOR: Duration = Duration::from_millis(500);
/// Removing what a compaction freed is paced on both sides, and takes minutes in a large store.
const IDLE_WITHIN: Duration = Duration::from_secs(600);

/// A store of one member or several, and its database if it is outside.
#[derive(Debug, Clone)]
pub struct Target {
    addresses: Vec<SocketAddr>,
    processes: Vec<(u32, PathBuf)>,
    database: Option<u32>,
}

/// Processor time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu {
    /// Of the store's own processes.
    pub store: Duration,
    /// Of the database outside, all its processes.
    pub database: Duration,
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        // The kernel counts the database's ended processes in ticks, so its time may seem to go back by less than one.
        Self { store: self.store - before.store, database: self.database.saturating_sub(before.database) }
    }
}

impl Target {
    /// These processes, that are asked at those addresses.
    pub fn new<'a>(addresses: Vec<SocketAddr>, processes: impl IntoIterator<Item = &'a Process>) -> Self {
        let processes = processes.into_iter().map(|process| (process.id(), process.log_path().to_owned())).collect();
        Self { addresses, processes, database: None }
    }

    /// With a database, told by the number of its first process; the others are its children.
    pub fn with_database(self, database: u32) -> Self {
        Self { database: Some(database), ..self }
    }

    /// The store's processes.
    pub fn ids(&self) -> Vec<u32> {
        self.processes.iter().map(|(id, _)| *id).collect()
    }

    /// Opens that many connections, spread evenly.
    ///
    /// # Errors
    /// When the store takes none.
    pub async fn connect(&self, connections: usize) -> Result<Vec<Connection>> {
        let mut open = Vec::new();
        for index in 0..connections {
            open.push(Connection::open(self.addresses[index % self.addresses.len()]).await?);
        }
        Ok(open)
    }

    /// Processor time used so far.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn cpu_time(&self) -> Result<Cpu> {
        let mut cpu = Cpu::default();
        for (id, log) in &self.processes {
            let log = log.display();
            cpu.store += cpu_time(*id).with_context(|| format!("the server has ended; its log is {log}"))?;
        }
        if let Some(first) = self.database {
            let ended = "the database has ended";
            cpu.database = cpu_time_of_ended_children(first).context(ended)? + cpu_time(first).context(ended)?;
            // One that ends meanwhile is counted with the ended ones the next time.
            let running = children(first).into_iter().filter_map(|child| cpu_time(child.cast_unsigned()).ok());
            cpu.database += running.sum::<Duration>();
        }
        Ok(cpu)
    }

    /// Waits until it does nothing any more: work that it has put off is done then.
    ///
    /// # Errors
    /// When it has ended, or never comes to rest.
    pub async fn wait_until_idle(&self) -> Result<()> {
        let deadline = Instant::now() + IDLE_WITHIN;
        let share_max = IDLE_SHARE * (self.processes.len() + usize::from(self.database.is_some())) as f64;
        loop {
            let before = self.cpu_time()?;
            tokio::time::sleep(IDLE_FOR).await;
            let used = self.cpu_time()? - before;
            if (used.store + used.database).as_secs_f64() / IDLE_FOR.as_secs_f64() < share_max {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the server is still busy {IDLE_WITHIN:?} after its last request");
        }
    }
}
