//! A store in a process of its own: KubeBrain, or etcd as its measure. Both take the same flags, so that one test
//! runs on either.
//!
//! Invariant: a store that was stopped or killed starts again on the same data and the same address.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::address::free_port;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::http;
use crate::postgres::Postgres;
use crate::process::{self, Process, Spec};
use crate::tikv::{self, Tikv};
use crate::tools::{self, Tool};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Names the program of the product that tests run; otherwise it is the one beside the test's own.
pub const PRODUCT_VARIABLE: &str = "KUBEWHARF_BIN";

/// Names the store that [`Store::start`] takes: `brain`, `postgres`, `follower`, `tikv` or `etcd`.
pub const STORE_VARIABLE: &str = "KUBEWHARF_TEST_STORE";

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `kubewharf brain` on its own disk.
    Brain,
    /// `kubewharf brain` over a PostgreSQL.
    Postgres,
    /// `kubewharf brain` over a PostgreSQL that another one leads.
    Follower,
    /// `kubewharf brain` over the TiKV cluster that [`tikv::PD_VARIABLE`] names.
    Tikv,
    /// etcd, of the pinned version.
    Etcd,
}

impl Kind {
    /// What [`STORE_VARIABLE`] says; KubeBrain if it says nothing.
    ///
    /// # Panics
    /// When it names no store.
    pub fn from_environment() -> Self {
        match std::env::var(STORE_VARIABLE).as_deref() {
            Err(_) | Ok("" | "brain") => Self::Brain,
            Ok("postgres") => Self::Postgres,
            Ok("follower") => Self::Follower,
            Ok("tikv") => Self::Tikv,
            Ok("etcd") => Self::Etcd,
            Ok(other) => panic!("{STORE_VARIABLE}={other}: must be brain, postgres, follower, tikv or etcd"),
        }
    }

    /// Whether it is the product.
    #[must_use]
    pub fn is_brain(self) -> bool {
        self != Self::Etcd
    }

    /// The program, and the words that come before its flags.
    ///
    /// # Errors
    /// When the program is not there and cannot be built.
    pub fn program(self) -> Result<(PathBuf, &'static [&'static str])> {
        match self {
            Self::Brain | Self::Postgres | Self::Follower | Self::Tikv => Ok((product()?, &["brain"])),
            Self::Etcd => Ok((tools::shared(Tool::Etcd)?.to_owned(), &[])),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Brain => "brain",
            Self::Postgres => "postgres",
            Self::Follower => "follower",
            Self::Tikv => "tikv",
            Self::Etcd => "etcd",
        })
    }
}

/// The product's program: the one that [`PRODUCT_VARIABLE`] names, or the one that cargo built beside the running test.
///
/// # Errors
/// When it is not there.
pub fn product() -> Result<PathBuf> {
    let path = match std::env::var_os(PRODUCT_VARIABLE) {
        Some(path) => PathBuf::from(path),
        None => {
            let test = std::env::current_exe().map_err(|source| Error::Start { program: "this".to_owned(), source })?;
            let folder = test.parent().unwrap_or(Path::new("."));
            // Tests and benchmarks are one folder deeper than programs.
            let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
            folder.join("kubewharf")
        }
    };
    if path.is_file() { Ok(path) } else { Err(Error::NoProduct { path }) }
}

/// A running store with data of its own. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Store {
    // Before the folder, so that it is gone when its files are removed.
    process: Process,
    spec: Spec,
    kind: Kind,
    address: String,
    folder: Folder,
    /// What it needs: the member that leads, if it is not this one, and the database.
    _needs: Option<(Option<Process>, Postgres)>,
}

impl Store {
    /// Starts the store that the environment names ([`Kind::from_environment`]) with these flags added.
    ///
    /// # Errors
    /// When its program is missing or it does not get ready.
    pub fn start<S: AsRef<str>>(flags: &[S]) -> Result<Self> {
        Self::start_kind(Kind::from_environment(), flags)
    }

    /// Starts a KubeBrain with these flags added.
    ///
    /// # Errors
    /// As [`Store::start`].
    pub fn brain<S: AsRef<str>>(flags: &[S]) -> Result<Self> {
        Self::start_kind(Kind::Brain, flags)
    }

    /// Starts an etcd with these flags added.
    ///
    /// # Errors
    /// As [`Store::start`].
    pub fn etcd<S: AsRef<str>>(flags: &[S]) -> Result<Self> {
        Self::start_kind(Kind::Etcd, flags)
    }

    /// Starts a store of that kind with these flags added.
    ///
    /// # Errors
    /// As [`Store::start`].
    ///
    /// # Panics
    /// When it is one over TiKV, and the environment names no cluster.
    pub fn start_kind<S: AsRef<str>>(kind: Kind, flags: &[S]) -> Result<Self> {
        let (program, words) = kind.program()?;
        let folder = Folder::new(&kind.to_string())?;
        let postgres = match kind {
            Kind::Postgres | Kind::Follower => Some(Postgres::start()?),
            Kind::Brain | Kind::Tikv | Kind::Etcd => None,
        };
        let tikv = (kind == Kind::Tikv).then(|| {
            Tikv::from_environment().unwrap_or_else(|| panic!("a store over TiKV needs {}", tikv::PD_VARIABLE))
        });
        let spec_of = |name: &str, address: &str| {
            let client = format!("http://{address}");
            let peer = format!("http://{}", free_port());
            let spec = Spec::new(name, &program, folder.path())
                .args(words)
                .arg(format!("--data-dir={}", folder.path().join("data").display()))
                .arg(format!("--listen-client-urls={client}"))
                .arg(format!("--advertise-client-urls={client}"))
                .arg(format!("--listen-peer-urls={peer}"))
                .arg(format!("--initial-advertise-peer-urls={peer}"))
                .arg(format!("--initial-cluster=default={peer}"))
                .args(flags.iter().map(AsRef::as_ref));
            match (&postgres, &tikv) {
                (Some(postgres), _) => spec.arg("--engine=postgres").env("ETCD_ENGINE_URL", postgres.url()),
                (None, Some(tikv)) => tikv.add_to(spec),
                (None, None) => spec,
            }
        };
        // The first one leads.
        let leader = match kind {
            Kind::Follower => {
                let address = free_port().to_string();
                Some(start_and_wait(&spec_of("leader", &address), &address)?)
            }
            Kind::Brain | Kind::Postgres | Kind::Tikv | Kind::Etcd => None,
        };
        let address = free_port().to_string();
        let spec = spec_of(&kind.to_string(), &address);
        let process = start_and_wait(&spec, &address)?;
        let needs = postgres.map(|postgres| (leader, postgres));
        Ok(Self { process, spec, kind, address, folder, _needs: needs })
    }

    /// Which store this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Where clients reach it, as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where clients reach it, as host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The folder of its data.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process number, for [`crate::usage`].
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills it and starts it again on the same data and address.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn kill_and_start(&mut self) -> Result<()> {
        self.process.kill();
        self.start_again()
    }

    /// Stops it in good order and starts it again on the same data and address.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn stop_and_start(&mut self) -> Result<()> {
        self.process.stop(STOP_WITHIN);
        self.start_again()
    }

    /// Starts it again on the same data and address after it has ended.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = start_and_wait(&self.spec, &self.address)?;
        Ok(())
    }

    /// etcd's own command-line client for this store.
    ///
    /// # Errors
    /// When it cannot be found or built.
    pub fn etcdctl(&self) -> Result<Etcdctl> {
        Etcdctl::new(&self.url())
    }
}

fn start_and_wait(spec: &Spec, address: &str) -> Result<Process> {
    let mut process = spec.start()?;
    process.wait_until(READY_WITHIN, |_| {
        http::get_plain(address, "/health").is_ok_and(|answer| answer.contains(r#""health":"true""#))
    })?;
    Ok(process)
}

/// Runs etcdctl against one store.
#[derive(Debug, Clone)]
pub struct Etcdctl {
    program: PathBuf,
    endpoints: String,
}

impl Etcdctl {
    /// For the store at these endpoints, separated by commas.
    ///
    /// # Errors
    /// When etcdctl cannot be found or built.
    pub fn new(endpoints: &str) -> Result<Self> {
        Ok(Self { program: tools::shared(Tool::Etcdctl)?.to_owned(), endpoints: endpoints.to_owned() })
    }

    /// Runs it, and returns what it printed.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        process::run(&mut self.command(arguments))
    }

    /// The command, for a test that wants more of it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(format!("--endpoints={}", self.endpoints)).args(arguments);
        command
    }

    /// Starts it beside the test, for example to watch; its output goes to `name.log` in that folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, folder: &Folder, arguments: &[&str]) -> Result<Process> {
        Spec::new(name, &self.program, folder.path())
            .arg(format!("--endpoints={}", self.endpoints))
            .args(arguments)
            .start()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_store_starts_again_with_its_data_and_address() {
        let mut store = Store::etcd::<&str>(&[]).unwrap();
        let url = store.url();
        let etcdctl = store.etcdctl().unwrap();
        assert_eq!(etcdctl.run(&["put", "a", "1"]).unwrap(), "OK\n");
        let first = store.id();
        store.kill_and_start().unwrap();
        assert_ne!(store.id(), first);
        assert_eq!(store.url(), url);
        assert_eq!(etcdctl.run(&["get", "a"]).unwrap(), "a\n1\n");
        store.stop_and_start().unwrap();
        assert_eq!(etcdctl.run(&["get", "a"]).unwrap(), "a\n1\n");
    }

    #[test]
    fn a_store_that_refuses_its_flags_is_an_error_that_shows_its_log() {
        let error = Store::etcd(&["--no-such-flag"]).unwrap_err().to_string();
        assert!(error.contains("etcd ended before it was ready") && error.contains("no-such-flag"), "{error}");
    }
}
