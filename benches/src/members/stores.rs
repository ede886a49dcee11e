//! The sides, each with its processes, its data, and its database if it has one outside.
//!
//! All keep their defaults, but for the flags that the benchmark is given. Every PostgreSQL is started alike, with durable commits, and its tables are analyzed once they are filled, as
//! a server that runs for a while does by itself.

use std::ops::Sub;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http;
use kubewharf_testkit::members::Members;
use kubewharf_testkit::postgres::{self, Postgres};
use kubewharf_testkit::process::{self, Spec};
use kubewharf_testkit::tools::{self, Tool};
use serde::{Deserialize, Serialize};

use super::options::{Options, Side};
use crate::brain::options::Side as One;
use crate::brain::server::{Program, Server};
use crate::brain::target::Target;

/// What the sides are started from.
pub struct Programs {
    data: PathBuf,
    kine: Option<PathBuf>,
    one: Vec<Program>,
    brain_flags: Vec<String>,
    kine_flags: Vec<String>,
}

impl Programs {
    /// Finds what the wanted sides need, or builds it.
    ///
    /// # Errors
    /// When something is not there and cannot be built.
    pub fn find(options: &Options, data: &Path) -> Result<Self> {
        let wants = |sides: &[Side]| sides.iter().any(|side| options.wants_side(*side));
        let mut one = Vec::new();
        if wants(&[Side::Brain1, Side::Brain2, Side::Brain3]) {
            one.push(Program::find(One::Brain, &[])?);
        }
        if wants(&[Side::Etcd3]) {
            one.push(Program::find(One::Etcd, &[])?);
        }
        let kine = match &options.kine {
            _ if !wants(&[Side::Kine]) => None,
            Some(path) => Some(path.clone()),
            None => Some(tools::shared(Tool::Kine).context("--kine PATH takes one that is there")?.to_owned()),
        };
        Ok(Self {
            data: data.to_owned(),
            kine,
            one,
            brain_flags: options.brain_flag.clone(),
            kine_flags: options.kine_flag.clone(),
        })
    }

    /// What the programs say of their versions.
    ///
    /// # Errors
    /// When one does not say.
    pub fn versions(&self) -> Result<Vec<(String, String)>> {
        let mut versions = Vec::new();
        for program in &self.one {
            let name = match program.side() {
                One::Brain => "KubeBrain",
                One::Etcd => "etcd",
            };
            versions.push((name.to_owned(), program.version()?));
        }
        let postgres =
            postgres::Installation::find().context(postgres::Installation::MISSING)?.programs.join("postgres");
        for (name, program) in [("kine", self.kine.as_ref()), ("PostgreSQL", Some(&postgres))] {
            if let Some(program) = program {
                let text = process::run(Command::new(program).arg("--version"))?;
                versions.push((name.to_owned(), text.trim().to_owned()));
            }
        }
        Ok(versions)
    }

    fn postgres(&self) -> Result<Postgres> {
        Ok(Postgres::start_in(Folder::new_in(&self.data, "postgres")?, &[], None)?)
    }
}

/// A running side. Dropping it kills it and removes its data.
pub enum Store {
    /// KubeBrains, or etcds.
    Members(Box<Members>),
    /// kine.
    Kine(Box<Kine>),
}

/// A running kine.
pub struct Kine {
    // Before the database, which it would miss.
    server: Server,
    postgres: Postgres,
}

impl Store {
    /// Starts a side with a database of its own.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn start(programs: &Programs, side: Side) -> Result<Self> {
        let members = side.members();
        match side {
            Side::Kine => {
                let (postgres, folder, address) =
                    (programs.postgres()?, Folder::new_in(&programs.data, "kine")?, free_port());
                let spec = Spec::new("kine", programs.kine.as_ref().context("kine is not wanted")?, folder.path())
                    .arg(format!("--listen-address={address}"))
                    .arg(format!("--endpoint={}?sslmode=disable", postgres.url()))
                    .arg("--metrics-bind-address=0")
                    .args(&programs.kine_flags)
                    .current_folder(folder.path());
                let server = Server::start_with(spec, address, folder).await?;
                Ok(Self::Kine(Box::new(Kine { server, postgres })))
            }
            Side::Etcd3 => {
                let folder = Folder::new_in(&programs.data, "etcds")?;
                Ok(Self::Members(Box::new(Members::etcd::<&str>(folder, members, &[])?)))
            }
            Side::Brain1 | Side::Brain2 | Side::Brain3 => {
                let postgres = programs.postgres()?;
                Ok(Self::Members(Box::new(Members::over(postgres, members, &programs.brain_flags)?)))
            }
        }
    }

    /// What workloads ask and measure.
    pub fn target(&self) -> Target {
        let target = match self {
            Self::Members(members) => Target::new(members.addresses(), members.processes()),
            Self::Kine(kine) => kine.server.target(),
        };
        match self.database() {
            Some(postgres) => target.with_database(postgres.id()),
            None => target,
        }
    }

    /// Tells the database's planner what its tables hold.
    ///
    /// # Errors
    /// When the database refuses it.
    pub fn analyze(&self) -> Result<()> {
        if let Some(postgres) = self.database() {
            postgres.psql("VACUUM ANALYZE")?;
        }
        Ok(())
    }

    /// What all members have committed so far, if they tell.
    ///
    /// # Errors
    /// When a member does not answer.
    pub fn commits(&self) -> Result<Option<Commits>> {
        let Self::Members(members) = self else { return Ok(None) };
        let mut all = None;
        for address in members.addresses() {
            let metrics = http::get_plain(&address.to_string(), "/metrics")?;
            if let Some(of_member) = Commits::read(&metrics) {
                let sum = all.get_or_insert(Commits::default());
                sum.commits += of_member.commits;
                sum.requests += of_member.requests;
            }
        }
        Ok(all)
    }

    fn database(&self) -> Option<&Postgres> {
        match self {
            Self::Members(members) => members.database(),
            Self::Kine(kine) => Some(&kine.postgres),
        }
    }
}

/// What KubeBrain has committed. A commit is one round trip to its engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Commits {
    /// Commits.
    pub commits: f64,
    /// Requests in them.
    pub requests: f64,
}

impl Commits {
    fn read(metrics: &str) -> Option<Self> {
        let number = |name: &str| {
            metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
        };
        let [commits, requests] = ["kubebrain_commit_requests_count", "kubebrain_commit_requests_sum"].map(number);
        Some(Self { commits: commits?, requests: requests? })
    }
}

impl Sub for Commits {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self { commits: self.commits - before.commits, requests: self.requests - before.requests }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_are_read_from_metrics() {
        let metrics = "x 1\nkubebrain_commit_requests_bucket{le=\"1\"} 2\nkubebrain_commit_requests_sum 12\n\
                       kubebrain_commit_requests_count 3\n";
        assert_eq!(Commits::read(metrics), Some(Commits { commits: 3.0, requests: 12.0 }));
        assert_eq!(Commits::read("etcd_server_has_leader 1\n"), None);
    }
}
