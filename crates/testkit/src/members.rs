//! KubeBrains that share one PostgreSQL, each in a process of its own.
//!
//! Invariant: a member that was stopped or killed starts again under the same name, at the same addresses.

use std::time::{Duration, Instant};

use crate::address::free_port;
use crate::error::Result;
use crate::folder::Folder;
use crate::http;
use crate::postgres::Postgres;
use crate::process::{Process, Spec};
use crate::store::Kind;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The members and their database. Dropping them kills them and removes everything.
#[derive(Debug)]
pub struct Members {
    // Before the database, which they would miss.
    members: Vec<Member>,
    postgres: Postgres,
    _folder: Folder,
}

/// One of them.
#[derive(Debug)]
struct Member {
    process: Process,
    spec: Spec,
    address: String,
}

impl Members {
    /// Starts so many over a PostgreSQL of their own, with these flags added.
    ///
    /// # Errors
    /// When a program is missing or does not get ready.
    pub fn start<S: AsRef<str>>(count: usize, flags: &[S]) -> Result<Self> {
        Self::over(Postgres::start()?, count, flags)
    }

    /// As [`Members::start`], over that PostgreSQL.
    ///
    /// # Errors
    /// When a program is missing or does not get ready.
    pub fn over<S: AsRef<str>>(postgres: Postgres, count: usize, flags: &[S]) -> Result<Self> {
        let (program, words) = Kind::Brain.program()?;
        let folder = Folder::new("members")?;
        let mut members = Vec::new();
        for number in 1..=count {
            let name = format!("member-{number}");
            let (address, peer) = (free_port().to_string(), format!("http://{}", free_port()));
            let client = format!("http://{address}");
            let spec = Spec::new(&name, &program, folder.path())
                .args(words)
                .arg(format!("--name={name}"))
                .arg("--engine=postgres")
                .env("ETCD_ENGINE_URL", postgres.url())
                .arg(format!("--listen-client-urls={client}"))
                .arg(format!("--advertise-client-urls={client}"))
                .arg(format!("--listen-peer-urls={peer}"))
                .arg(format!("--initial-advertise-peer-urls={peer}"))
                .args(flags.iter().map(AsRef::as_ref));
            members.push(Member { process: spec.start()?, spec, address });
        }
        for member in &mut members {
            member.wait_until_ready()?;
        }
        Ok(Self { members, postgres, _folder: folder })
    }

    /// Where clients reach the members, as URLs.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://{}", member.address)).collect()
    }

    /// The database.
    pub fn postgres(&mut self) -> &mut Postgres {
        &mut self.postgres
    }

    /// A member's process.
    pub fn process(&mut self, number: usize) -> &mut Process {
        &mut self.members[number].process
    }

    /// The process numbers, for [`crate::usage`].
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.members.iter().map(|member| member.process.id()).collect()
    }

    /// Which member leads, by its metrics; waits until one does.
    ///
    /// # Panics
    /// When nobody leads for long.
    #[must_use]
    pub fn leader(&self) -> usize {
        let begun = Instant::now();
        loop {
            let leads = |member: &Member| {
                http::get_plain(&member.address, "/metrics")
                    .is_ok_and(|metrics| metrics.contains("\netcd_server_is_leader 1"))
            };
            if let Some(leader) = self.members.iter().position(leads) {
                return leader;
            }
            assert!(begun.elapsed() < READY_WITHIN, "no member leads");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Starts a member that has ended again, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start_again(&mut self, number: usize) -> Result<()> {
        let member = &mut self.members[number];
        member.process = member.spec.start()?;
        member.wait_until_ready()
    }

    /// Stops a member in good order.
    pub fn stop(&mut self, number: usize) {
        self.members[number].process.stop(STOP_WITHIN);
    }

    /// The end of each member's log.
    ///
    /// # Errors
    /// When a log can't be read.
    pub fn logs(&self) -> Result<Vec<String>> {
        self.members.iter().map(|member| member.process.log_text()).collect()
    }
}

impl Member {
    fn wait_until_ready(&mut self) -> Result<()> {
        let address = self.address.clone();
        self.process.wait_until(READY_WITHIN, |_| {
            http::get_plain(&address, "/readyz").is_ok_and(|answer| answer.contains("200 OK"))
        })
    }
}
