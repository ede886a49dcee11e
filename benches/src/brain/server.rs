//! A store that is measured, in a process of its own with its data.
//!
//! Both sides get the same flags and, but for the quota, their defaults; etcd's own is below what a million objects
//! take. Both make each write durable before they answer it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kubewharf_etcd_api::Method;
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::process::{self, Process, Spec};
use kubewharf_testkit::store::Kind;

use super::options::Side;
use super::requests;
use super::target::Target;
use crate::client::Connection;

/// What Kubernetes' documentation sets for large clusters.
const QUOTA_BYTES: u64 = 8 << 30;
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Time between two tries whether a store answers.
const READY_POLL: Duration = Duration::from_millis(5);
/// Tries at a time.
const READY_ATTEMPTS_MAX: usize = 32;

/// A program that can be measured.
#[derive(Debug, Clone)]
pub struct Program {
    side: Side,
    path: PathBuf,
    words: &'static [&'static str],
    flags: Vec<String>,
}

impl Program {
    /// Finds the program of that side, or builds it if it is an etcd.
    ///
    /// # Errors
    /// When it is not there and cannot be built.
    pub fn find(side: Side, brain_flags: &[String]) -> Result<Self> {
        let kind = match side {
            Side::Etcd => Kind::Etcd,
            Side::Brain => Kind::Brain,
        };
        let (path, words) = kind.program()?;
        let flags = if side == Side::Brain { brain_flags.to_vec() } else { Vec::new() };
        Ok(Self { side, path, words, flags })
    }

    /// Which side it is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// What it says of its version and what it was built with, in one line.
    ///
    /// # Errors
    /// When it does not say.
    pub fn version(&self) -> Result<String> {
        let text = process::run(std::process::Command::new(&self.path).args(self.words).arg("--version"))?;
        Ok(text.lines().filter(|line| line.contains("Version")).collect::<Vec<_>>().join(", "))
    }
}

/// A running store. Dropping it kills it and removes its data.
pub struct Server {
    // Before the folder, so that it is gone when its files are removed.
    process: Process,
    spec: Spec,
    address: SocketAddr,
    folder: Folder,
}

impl Server {
    /// Starts the program with data of its own in a folder below `parent`, and waits until it answers.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start(program: &Program, parent: &Path) -> Result<Self> {
        let name = match program.side {
            Side::Etcd => "etcd",
            Side::Brain => "brain",
        };
        let folder = Folder::new_in(parent, name)?;
        let address = free_port();
        let (client, peer) = (format!("http://{address}"), format!("http://{}", free_port()));
        let spec = Spec::new(name, &program.path, folder.path())
            .args(program.words)
            .arg(format!("--data-dir={}", folder.path().join("data").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"))
            .arg(format!("--quota-backend-bytes={QUOTA_BYTES}"))
            .args(&program.flags);
        Self::start_with(spec, address, folder).await
    }

    /// Starts what listens at that address and keeps its files in that folder, and waits until it answers.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start_with(spec: Spec, address: SocketAddr, folder: Folder) -> Result<Self> {
        let mut server = Self { process: spec.start()?, spec, address, folder };
        server.wait_until_it_reads().await?;
        Ok(server)
    }

    /// The process number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The folder of the data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What workloads ask and measure.
    pub fn target(&self) -> Target {
        Target::new(vec![self.address], [&self.process])
    }

    /// Kills it and starts it again; returns the time from its start to its first answer to a linearizable read.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub async fn kill_and_start(&mut self) -> Result<Duration> {
        self.process.kill();
        let begun = Instant::now();
        self.process = self.spec.start()?;
        self.wait_until_it_reads().await?;
        Ok(begun.elapsed())
    }

    /// Tries again and again, without waiting for the tries before: a store that has no leader yet may hold a read for
    /// seconds, when one that came later would have been answered at once.
    async fn wait_until_it_reads(&mut self) -> Result<()> {
        let address = self.address;
        let attempt = async || {
            let connection = Connection::open(address).await?;
            connection.unary(Method::Range, requests::get("/ready".into())).await
        };
        let deadline = Instant::now() + READY_WITHIN;
        let mut attempts = FuturesUnordered::new();
        let mut last_error = None;
        loop {
            if attempts.len() < READY_ATTEMPTS_MAX {
                attempts.push(attempt());
            }
            let answer = async {
                while let Some(answer) = attempts.next().await {
                    match answer {
                        Ok(_) => return,
                        Err(error) => last_error = Some(error),
                    }
                }
                std::future::pending().await
            };
            if tokio::time::timeout(READY_POLL, answer).await.is_ok() {
                return Ok(());
            }
            let log = self.process.log_path().to_owned();
            let log = log.display();
            ensure!(self.process.ended().is_none(), "the server ended before it was ready; its log is {log}");
            ensure!(Instant::now() < deadline, "not ready within {READY_WITHIN:?}, log {log}, error {last_error:?}");
        }
    }
}
