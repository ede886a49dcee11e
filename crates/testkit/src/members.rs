//! KubeBrains that share one PostgreSQL or one TiKV cluster, each in a process of its own; and a cluster of etcds, as their measure.
//!
//! Invariant: a member that was stopped or killed starts again under the same name, at the same addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::address::free_port;
use crate::error::Result;
use crate::folder::Folder;
use crate::http;
use crate::postgres::Postgres;
use crate::process::{Process, Spec};
use crate::store::Kind;
use crate::tikv::Tikv;

const READY_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The ports of a member that is alone on its host.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// The members, and their database if they have one of their own. Dropping them kills them and removes everything.
#[derive(Debug)]
pub struct Members {
    // Before the database, which they would miss.
    members: Vec<Member>,
    postgres: Option<Postgres>,
    _folder: Folder,
}

/// What is special about how a member runs.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// The host that it is alone on, if it is not on the loopback network.
    pub host: Option<IpAddr>,
    /// The namespaces of the kernel that it runs in, see [`Spec::inside`].
    pub namespaces: Vec<String>,
    /// Variables of its environment.
    pub environment: Vec<(String, String)>,
}

/// One of them.
#[derive(Debug)]
struct Member {
    process: Process,
    spec: Spec,
    address: SocketAddr,
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
        let members = Self::at(&postgres.url(), &vec![Place::default(); count], flags)?;
        Ok(Self { postgres: Some(postgres), ..members })
    }

    /// Starts a member in each of these places over the database at that URL, which is the caller's, with these flags added.
    ///
    /// # Errors
    /// When a program is missing or does not get ready.
    pub fn at<S: AsRef<str>>(url: &str, places: &[Place], flags: &[S]) -> Result<Self> {
        let folder = Folder::new("members")?;
        let of_engine = |spec: Spec, _: &str, _: &str| spec.arg("--engine=postgres").env("ETCD_ENGINE_URL", url);
        let members = start_all(Kind::Brain, &folder, places, flags, of_engine)?;
        Ok(Self { members, postgres: None, _folder: folder })
    }

    /// Starts so many over that TiKV cluster, with these flags added.
    ///
    /// # Errors
    /// When a program is missing or does not get ready.
    pub fn over_tikv<S: AsRef<str>>(tikv: &Tikv, count: usize, flags: &[S]) -> Result<Self> {
        let folder = Folder::new("members")?;
        let members =
            start_all(Kind::Brain, &folder, &vec![Place::default(); count], flags, |spec, _, _| tikv.add_to(spec))?;
        Ok(Self { members, postgres: None, _folder: folder })
    }

    /// Starts a cluster of so many etcds with their data in that folder, with these flags added.
    ///
    /// # Errors
    /// When etcd is missing or does not get ready.
    pub fn etcd<S: AsRef<str>>(folder: Folder, count: usize, flags: &[S]) -> Result<Self> {
        let of_cluster = |spec: Spec, name: &str, cluster: &str| {
            let data = folder.path().join(name).join("data");
            spec.arg(format!("--data-dir={}", data.display())).arg(format!("--initial-cluster={cluster}"))
        };
        let members = start_all(Kind::Etcd, &folder, &vec![Place::default(); count], flags, of_cluster)?;
        Ok(Self { members, postgres: None, _folder: folder })
    }

    /// Where clients reach the members, as URLs.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|member| format!("http://{}", member.address)).collect()
    }

    /// The database.
    ///
    /// # Panics
    /// When they have none.
    pub fn postgres(&mut self) -> &mut Postgres {
        self.postgres.as_mut().expect("members over PostgreSQL have a database")
    }

    /// The database, if they have one.
    #[must_use]
    pub fn database(&self) -> Option<&Postgres> {
        self.postgres.as_ref()
    }

    /// The processes, in their order.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.members.iter().map(|member| &member.process)
    }

    /// Where clients reach the members.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.members.iter().map(|member| member.address).collect()
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
                http::get_plain(&member.address.to_string(), "/metrics")
                    .is_ok_and(|metrics| metrics.contains("\netcd_server_is_leader 1"))
            };
            if let Some(leader) = self.members.iter().position(leads) {
                return leader;
            }
            assert!(begun.elapsed() < READY_WITHIN, "no member leads");
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Whether a member says that it is ready to serve.
    #[must_use]
    pub fn is_ready(&self, number: usize) -> bool {
        is_ready(self.members[number].address)
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

/// Starts the members, each with what `more` adds for its name and the list of all, and waits until they are ready.
fn start_all<S: AsRef<str>>(
    kind: Kind,
    folder: &Folder,
    places: &[Place],
    flags: &[S],
    more: impl Fn(Spec, &str, &str) -> Spec,
) -> Result<Vec<Member>> {
    let (program, words) = kind.program()?;
    let address = |place: &Place, port| place.host.map_or_else(free_port, |host| SocketAddr::new(host, port));
    let names: Vec<(String, String)> = (1..)
        .zip(places)
        .map(|(number, place)| (format!("member-{number}"), format!("http://{}", address(place, PEER_PORT))))
        .collect();
    let cluster: Vec<String> = names.iter().map(|(name, peer)| format!("{name}={peer}")).collect();
    let cluster = cluster.join(",");
    let mut members = Vec::new();
    for ((name, peer), place) in names.iter().zip(places) {
        let address = address(place, CLIENT_PORT);
        let client = format!("http://{address}");
        let spec = Spec::new(name, &program, folder.path())
            .args(words)
            .arg(format!("--name={name}"))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"));
        let mut spec = more(spec, name, &cluster).args(flags.iter().map(AsRef::as_ref));
        for (name, value) in &place.environment {
            spec = spec.env(name, value);
        }
        spec = place.namespaces.iter().fold(spec, Spec::inside);
        members.push(Member { process: spec.start()?, spec, address });
    }
    for member in &mut members {
        member.wait_until_ready()?;
    }
    Ok(members)
}

impl Member {
    fn wait_until_ready(&mut self) -> Result<()> {
        let address = self.address;
        self.process.wait_until(READY_WITHIN, |_| is_ready(address))
    }
}

fn is_ready(address: SocketAddr) -> bool {
    http::get_plain(&address.to_string(), "/readyz").is_ok_and(|answer| answer.contains("200 OK"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Etcdctl;

    #[test]
    fn an_etcd_cluster_goes_on_without_its_leader_and_takes_it_back() {
        let mut members = Members::etcd::<&str>(Folder::new("etcds").unwrap(), 3, &[]).unwrap();
        let etcdctl = Etcdctl::new(&members.urls().join(",")).unwrap();
        let leader = members.leader();
        members.process(leader).kill();
        assert_ne!(members.leader(), leader);
        assert_eq!(etcdctl.run(&["put", "a", "1"]).unwrap(), "OK\n");
        members.start_again(leader).unwrap();
        assert_eq!(etcdctl.run(&["get", "a"]).unwrap(), "a\n1\n");
    }
}
