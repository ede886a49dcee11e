//! A PostgreSQL in processes of its own.
//!
//! Job: a server with data of its own, on an address of its own, that a test may stop, kill, pause and start again. It syncs to the disk as
//! in production. PostgreSQL refuses to run as root, so a test that does runs it as the user `postgres`, or `nobody`.
//!
//! Invariant: a server that was stopped or killed starts again on the same data and the same address, and nothing of it is left when it is
//! dropped. Its processes have no group in common, so they are found as the children of the first one.

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::address::free_port;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::pki::Identity;
use crate::process::{self, Process, Spec};

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);
const GONE_WITHIN: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What every server is started with. Durability stays as it is in production.
const SETTINGS: [(&str, &str); 8] = [
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "64MB"),
    ("max_connections", "200"),
    ("max_wal_size", "2GB"),
    ("max_prepared_transactions", "0"),
    ("log_line_prefix", "%m [%p] %q%a "),
    ("timezone", "UTC"),
];

/// What is special about a server.
#[derive(Clone, Debug, Default)]
pub struct Setup<'s> {
    /// Settings of `postgresql.conf`.
    pub settings: &'s [(&'s str, &'s str)],
    /// With TLS, under this certificate.
    pub tls: Option<&'s Identity>,
    /// Where it listens, if it is not an address of this process's own.
    pub address: Option<SocketAddr>,
    /// The namespaces of the kernel that it runs in, see [`Spec::inside`]. Its data must be there too.
    pub namespaces: Vec<String>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
    /// More words for `initdb`.
    pub initialization: &'s [&'s str],
}

/// A running server. Dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    spec: Spec,
    address: SocketAddr,
    owner: Option<(u32, u32)>,
    programs: PathBuf,
    is_paused: bool,
    folder: Folder,
}

impl Postgres {
    /// Starts one with an empty database `postgres` and the user `postgres`, who needs no password.
    ///
    /// # Errors
    /// When it does not get ready.
    ///
    /// # Panics
    /// When PostgreSQL is not installed.
    pub fn start() -> Result<Self> {
        Self::start_with(&[], None)
    }

    /// Starts one with these settings of `postgresql.conf`, and with TLS if it is given a certificate.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_with(settings: &[(&str, &str)], tls: Option<&Identity>) -> Result<Self> {
        Self::start_in(Folder::new("postgres")?, settings, tls)
    }

    /// As [`Postgres::start_with`], with its data in that folder, which the user that it runs as must be able to reach.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_in(folder: Folder, settings: &[(&str, &str)], tls: Option<&Identity>) -> Result<Self> {
        Setup { settings, tls, ..Setup::default() }.start_in(folder)
    }

    /// Starts a standby of this server that is called `name` there and takes its log as it is written.
    ///
    /// # Errors
    /// When this server gives no copy of its data, or the standby does not get ready.
    pub fn start_standby(&self, name: &str, setup: Setup<'_>) -> Result<Self> {
        let folder = Folder::new("postgres")?;
        let data = folder.path().join("data");
        let installation = Installation { programs: self.programs.clone(), owner: self.owner };
        installation.give(folder.path())?;
        let copy = Spec::new("copy", self.programs.join("pg_basebackup"), folder.path())
            .args(["-U", "postgres", "--checkpoint=fast", "--no-sync", "-h"])
            .arg(self.folder.path())
            .args(["-p", &self.address.port().to_string(), "-D"])
            .arg(&data);
        installation.run(copy, folder.path())?;
        let signal = data.join("standby.signal");
        std::fs::write(&signal, "").map_err(Error::file("write", &signal))?;
        installation.give(&signal)?;
        let primary = format!(
            "host={} port={} user=postgres application_name={name}",
            self.folder.path().display(),
            self.address.port()
        );
        let settings = [setup.settings, &[("primary_conninfo", primary.as_str())]].concat();
        Setup { settings: &settings, ..setup }.launch(installation, folder, data)
    }

    /// Where clients reach it: a URL without parameters.
    pub fn url(&self) -> String {
        format!("postgres://postgres@{}/postgres", self.address)
    }

    /// The number of its first process; the others are its children.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The folder that holds its data, its log and its Unix socket.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Where PostgreSQL's programs are.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The user and the group that the server runs as, where those are not the test's own.
    pub fn owner(&self) -> Option<(u32, u32)> {
        self.owner
    }

    /// Whether it has ended by itself, or was killed.
    pub fn has_ended(&mut self) -> bool {
        self.process.ended().is_some()
    }

    /// Its output so far.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn log_text(&self) -> Result<String> {
        self.process.log_text()
    }

    /// Runs SQL through `psql` and returns what it printed: a line a row, columns separated by `|`.
    ///
    /// # Errors
    /// When the server refuses it or is not there.
    pub fn psql(&self, sql: &str) -> Result<String> {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres"]);
        command.arg("-h").arg(self.folder.path()).args(["-p", &self.address.port().to_string(), "-c", sql]);
        Ok(process::run(&mut command)?.trim_end().to_owned())
    }

    /// Kills all of its processes at once (SIGKILL), as a power cut would as far as they can tell.
    pub fn kill9(&mut self) {
        // A stopped parent makes no more children.
        self.process.pause();
        let children = self.children();
        for &child in &children {
            process::send(child, libc::SIGKILL);
        }
        self.process.kill();
        self.is_paused = false;
        // The next start refuses while one of them is there.
        let deadline = Instant::now() + GONE_WITHIN;
        while children.iter().any(|&child| is_running(child)) && Instant::now() < deadline {
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Stops it in good order: clients are cut off, their transactions rolled back.
    pub fn stop(&mut self) {
        self.resume();
        self.end(libc::SIGINT);
    }

    /// Starts it again, on the same data and address, after [`Postgres::stop`] or [`Postgres::kill9`]; stops it first if it runs.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn restart(&mut self) -> Result<()> {
        if self.process.ended().is_none() {
            self.stop();
        }
        self.process = self.spec.start()?;
        self.wait_until_ready()
    }

    /// Stops the execution of all of its processes (SIGSTOP) until [`Postgres::resume`]: connections stay, and nothing answers.
    pub fn pause(&mut self) {
        self.process.pause();
        for child in self.children() {
            process::send(child, libc::SIGSTOP);
        }
        self.is_paused = true;
    }

    /// Makes a standby a server that takes writes, and waits until it does.
    ///
    /// # Errors
    /// When it is no standby, or does not become one that takes writes in time.
    pub fn promote(&self) -> Result<()> {
        self.psql("SELECT pg_promote()").map(drop)
    }

    /// Lets it go on after [`Postgres::pause`].
    pub fn resume(&mut self) {
        if std::mem::take(&mut self.is_paused) {
            for child in self.children() {
                process::send(child, libc::SIGCONT);
            }
            self.process.resume();
        }
    }

    fn end(&mut self, signal: libc::c_int) {
        self.process.signal(signal);
        if self.process.wait_for_end(STOP_WITHIN).is_none() {
            self.kill9();
        }
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let is_ready = self.programs.join("pg_isready");
        let (folder, port) = (self.folder.path().to_owned(), self.address.port().to_string());
        self.process.wait_until(READY_WITHIN, |_| {
            let mut command = Command::new(&is_ready);
            command.args(["-q", "-d", "postgres", "-U", "postgres", "-p", &port, "-h"]).arg(&folder);
            process::run(&mut command).is_ok()
        })
    }

    /// The processes that serve connections and the background.
    fn children(&self) -> Vec<libc::pid_t> {
        process::children(self.process.id())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.resume();
        // At once and without a checkpoint, but with its shared memory given back.
        self.end(libc::SIGQUIT);
    }
}

impl Setup<'_> {
    /// Starts a server that is so, as [`Postgres::start_in`] does.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub fn start_in(self, folder: Folder) -> Result<Postgres> {
        let installation = Installation::find().unwrap_or_else(|| {
            panic!("{}, and its engine is tested with a real one: run `make postgres`", Installation::MISSING)
        });
        let data = folder.path().join("data");
        let words = [&["--auth=trust"][..], self.initialization].concat();
        installation.initialize_with(folder.path(), &data, &words, &self.namespaces)?;
        self.launch(installation, folder, data)
    }

    /// Starts it on data that are there.
    fn launch(self, installation: Installation, folder: Folder, data: PathBuf) -> Result<Postgres> {
        let owned = |path: &Path| installation.give(path);
        let Installation { programs, owner } = installation.clone();
        let address = self.address.unwrap_or_else(free_port);
        let mut spec = Spec::new("postgres", programs.join("postgres"), folder.path())
            .current_folder(folder.path())
            .args(["-D".as_ref(), data.as_os_str(), "-k".as_ref(), folder.path().as_os_str()])
            .arg(format!("--listen_addresses={}", address.ip()))
            .arg(format!("--port={}", address.port()));
        if let Some((user, group)) = owner {
            spec = spec.owner(user, group);
        }
        if let Some(identity) = self.tls {
            for (name, text) in [("server.crt", &identity.certificate), ("server.key", &identity.key)] {
                let path = data.join(name);
                std::fs::write(&path, text).map_err(Error::file("write", &path))?;
                let only_owner = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(&path, only_owner).map_err(Error::file("protect", &path))?;
                owned(&path)?;
            }
            spec = spec.arg("--ssl=on");
        }
        if self.address.is_some() {
            // Whoever comes from elsewhere would be refused.
            let path = data.join("pg_hba.conf");
            let text = "local all all trust\nlocal replication all trust\nhost all all all trust\n";
            std::fs::write(&path, text).map_err(Error::file("write", &path))?;
        }
        for (name, value) in SETTINGS.iter().chain(self.settings) {
            spec = spec.arg(format!("--{name}={value}"));
        }
        for (name, value) in &self.environment {
            spec = spec.env(name, value);
        }
        spec = self.namespaces.into_iter().fold(spec, Spec::inside);
        let process = spec.start()?;
        let mut server = Postgres { process, spec, address, owner, programs, is_paused: false, folder };
        server.wait_until_ready()?;
        Ok(server)
    }
}

/// Where PostgreSQL's programs are, and whom they run as.
#[derive(Clone, Debug)]
pub struct Installation {
    /// The folder of `postgres`, `initdb` and the others.
    pub programs: PathBuf,
    /// The user and the group that a server runs as, where those are not this process's own: PostgreSQL refuses to run as root.
    pub owner: Option<(u32, u32)>,
}

impl Installation {
    /// What to tell where there is none.
    pub const MISSING: &'static str =
        "PostgreSQL is neither in /usr/lib/postgresql nor on the PATH: install the package postgresql";

    /// The newest of Debian's, else what is on the path.
    #[must_use]
    pub fn find() -> Option<Self> {
        programs().map(|programs| Self { programs, owner: owner() })
    }

    /// Makes an empty cluster in `data`, whose user `postgres` needs no password. `folder`, in which that is, is given to the server's user.
    ///
    /// # Errors
    /// When `initdb` fails, as it does if the user can't get there.
    pub fn initialize(&self, folder: &Path, data: &Path) -> Result<()> {
        self.initialize_with(folder, data, &["--auth=trust"], &[])
    }

    /// As [`Installation::initialize`], with a password for the user `postgres`, which is in that file.
    ///
    /// # Errors
    /// As [`Installation::initialize`].
    pub fn initialize_protected(&self, folder: &Path, data: &Path, password: &Path) -> Result<()> {
        self.give(password)?;
        self.initialize_with(folder, data, &["--auth=scram-sha-256", &format!("--pwfile={}", password.display())], &[])
    }

    fn initialize_with(&self, folder: &Path, data: &Path, words: &[&str], namespaces: &[String]) -> Result<()> {
        self.give(folder)?;
        let spec = Spec::new("initdb", self.programs.join("initdb"), folder)
            .args(words)
            .args(["--no-sync", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D"])
            .arg(data);
        self.run(namespaces.iter().cloned().fold(spec, Spec::inside), folder)
    }

    /// Runs a program to its end as the server's user.
    fn run(&self, spec: Spec, folder: &Path) -> Result<()> {
        let spec = spec.current_folder(folder);
        let spec = if let Some((user, group)) = self.owner { spec.owner(user, group) } else { spec };
        process::run(&mut spec.command()).map(drop)
    }

    fn give(&self, path: &Path) -> Result<()> {
        match self.owner {
            Some((user, group)) => chown(path, Some(user), Some(group)).map_err(Error::file("give away", path)),
            None => Ok(()),
        }
    }
}

fn is_running(number: libc::pid_t) -> bool {
    process::stat(number).is_some_and(|(state, _)| state != "Z")
}

/// Where PostgreSQL's programs are: the newest of Debian's, else those on the path.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let debian = versions.map(|version| version.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = debian.chain(std::env::split_paths(&path)).filter(|at| has_programs(at)).collect();
    let version = |folder: &PathBuf| -> Option<u32> { folder.parent()?.file_name()?.to_str()?.parse().ok() };
    found.sort_by_key(version);
    found.pop()
}

fn has_programs(folder: &Path) -> bool {
    ["initdb", "postgres", "pg_isready", "psql"].iter().all(|name| folder.join(name).is_file())
}

/// Whom to run the server as, if this process is root.
fn owner() -> Option<(u32, u32)> {
    let own = std::fs::metadata("/proc/self").ok().map(|it| std::os::unix::fs::MetadataExt::uid(&it));
    if own != Some(0) {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let find = |name: &str| {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let is_it = fields.next() == Some(name);
            let (user, group) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            is_it.then_some((user, group))
        })
    };
    find("postgres").or_else(|| find("nobody"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_server_starts_again_with_what_it_has_committed() {
        let mut server = Postgres::start().unwrap();
        server.psql("CREATE TABLE t (n int); INSERT INTO t VALUES (7)").unwrap();
        let url = server.url();
        server.kill9();
        assert!(server.psql("SELECT 1").is_err());
        server.restart().unwrap();
        assert_eq!(server.psql("SELECT n FROM t").unwrap(), "7");
        server.restart().unwrap();
        assert_eq!(server.psql("SELECT n FROM t").unwrap(), "7");
        assert_eq!(server.url(), url);
    }

    #[test]
    fn a_paused_server_answers_when_it_is_resumed() {
        let mut server = Postgres::start().unwrap();
        server.pause();
        std::thread::scope(|scope| {
            let answer = scope.spawn(|| {
                let mut command = Command::new(server.programs.join("psql"));
                command.args(["-X", "-A", "-t", "-c", "SELECT 1", &server.url()]);
                process::run(&mut command)
            });
            std::thread::sleep(Duration::from_millis(300));
            assert!(!answer.is_finished());
            for child in server.children() {
                process::send(child, libc::SIGCONT);
            }
            process::send(libc::pid_t::try_from(server.process.id()).unwrap(), libc::SIGCONT);
            assert_eq!(answer.join().unwrap().unwrap(), "1\n");
        });
    }

    #[test]
    fn nothing_is_left_of_a_dropped_server() {
        let server = Postgres::start().unwrap();
        let children = server.children();
        let folder = server.folder.path().to_owned();
        assert!(!children.is_empty());
        drop(server);
        assert!(!children.iter().any(|&child| is_running(child)));
        assert!(!folder.exists());
    }
}
