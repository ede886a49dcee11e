//! What tests do to a TiKV cluster that is there already: PD's HTTP API, and signals to the cluster's processes.
//!
//! Regions are split and their leaders moved through PD, as operators of a cluster do it. Processes are known by files that name their numbers
//! ([`PD_PIDS_VARIABLE`], [`STORE_PIDS_VARIABLE`]); whoever runs the cluster starts a process that was killed again, and writes its new number.
//!
//! Invariant: a process that was paused goes on when its [`Paused`] is dropped, however the test ends.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::process::send;
use crate::tikv::PD_VARIABLE;

/// Files that hold the process numbers of the cluster's PDs, separated by commas.
pub const PD_PIDS_VARIABLE: &str = "TIKV_PD_PIDS";
/// The same of its stores.
pub const STORE_PIDS_VARIABLE: &str = "TIKV_STORE_PIDS";

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// After what time a split that has not come is ordered once more.
const ORDER_AGAIN: Duration = Duration::from_secs(3);
/// Regions that are listed at most.
const REGIONS_MAX: usize = 1024;
/// Bytes of a key that PD's form of it keeps together.
const GROUP_BYTES: usize = 8;

/// A cluster, as its PDs know it.
#[derive(Debug, Clone)]
pub struct Cluster {
    agent: ureq::Agent,
    bases: Vec<String>,
}

/// A region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// Its number.
    pub id: u64,
    /// The first key, in PD's form and hexadecimal.
    start: String,
    /// The store that its leader is in, if there is a leader.
    pub leader: Option<u64>,
    /// The stores that have a copy.
    pub stores: Vec<u64>,
}

impl Cluster {
    /// The cluster that the environment names; `None` if it names none.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let addresses = std::env::var(PD_VARIABLE).ok().filter(|addresses| !addresses.trim().is_empty())?;
        let addresses = addresses.split('?').next().unwrap_or_default();
        let bases = addresses.split(',').map(|address| format!("http://{}/pd/api/v1", address.trim())).collect();
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .build();
        Some(Self { agent: config.new_agent(), bases })
    }

    /// The regions that hold the keys from `start` up to `end`, in their order.
    ///
    /// # Errors
    /// When no PD answers.
    pub fn regions(&self, start: &[u8], end: &[u8]) -> Result<Vec<Region>> {
        let (start, end) = (percent(&encoded(start)), percent(&encoded(end)));
        let path = format!("/regions/key?key={start}&end_key={end}&limit={REGIONS_MAX}");
        let answer = self.get(&path)?;
        let regions = answer["regions"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(regions.iter().filter_map(region).collect())
    }

    /// Asks for a region to begin at that key, and waits until one does.
    ///
    /// # Errors
    /// When that is not so within the time.
    pub fn split(&self, key: &[u8], within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        let start = hexadecimal(&encoded(key));
        let behind = [key, b"\0"].concat();
        let mut ordered = None::<Instant>;
        let mut last = String::new();
        loop {
            match self.regions(key, &behind) {
                Ok(regions) => match regions.first() {
                    Some(region) if region.start == start => return Ok(()),
                    // An order for a region that has just been split so is never done, and is in the way of others until it is withdrawn.
                    Some(region) if ordered.is_none_or(|ordered| ordered.elapsed() > ORDER_AGAIN) => {
                        let order = self.order_split(region, &start).or_else(|_| {
                            self.withdraw(region)?;
                            self.order_split(region, &start)
                        });
                        match order {
                            Ok(()) => ordered = Some(Instant::now()),
                            Err(error) => last = error.to_string(),
                        }
                    }
                    Some(_) => {}
                    None => "there is no region".clone_into(&mut last),
                },
                Err(error) => last = error.to_string(),
            }
            if Instant::now() >= deadline {
                return Err(Error::Request { what: format!("splitting at {start}"), why: last });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    fn order_split(&self, region: &Region, start: &str) -> Result<()> {
        let keys = [start];
        self.post(
            "/operators",
            &json!({"name": "split-region", "region_id": region.id, "policy": "usekey", "keys": keys}),
        )
    }

    /// Takes back what was ordered of a region and is not done yet.
    fn withdraw(&self, region: &Region) -> Result<()> {
        self.ask(&format!("/operators/{}", region.id), |agent, url| agent.delete(url).call()).map(drop)
    }

    /// Asks for a region's leader to be in that store, and does not wait for it.
    ///
    /// # Errors
    /// When no PD answers, or refuses it.
    pub fn move_leader(&self, region: &Region, store: u64) -> Result<()> {
        let order = json!({"name": "transfer-leader", "region_id": region.id, "to_store_id": store});
        self.post("/operators", &order)
    }

    /// The timestamp before which the cluster may clean up what was overwritten.
    ///
    /// # Errors
    /// When no PD tells it.
    pub fn safe_point(&self) -> Result<u64> {
        let answer = self.get("/gc/safepoint")?;
        answer["gc_safe_point"]
            .as_u64()
            .ok_or_else(|| Error::Request { what: "asking for the safe point".to_owned(), why: answer.to_string() })
    }

    fn get(&self, path: &str) -> Result<Value> {
        self.ask(path, |agent, url| agent.get(url).call())
    }

    fn post(&self, path: &str, body: &Value) -> Result<()> {
        let text = body.to_string();
        let send = |agent: &ureq::Agent, url: &str| agent.post(url).content_type("application/json").send(&text);
        self.ask(path, send).map(drop)
    }

    /// The answer of the first PD that gives one.
    fn ask(
        &self,
        path: &str,
        send: impl Fn(&ureq::Agent, &str) -> std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<Value> {
        let mut last = "there is no PD".to_owned();
        for base in &self.bases {
            let answer = send(&self.agent, &format!("{base}{path}")).and_then(|mut response| {
                let text = response.body_mut().with_config().limit(u64::MAX).read_to_string()?;
                Ok((response.status(), text))
            });
            match answer {
                Ok((status, text)) if status.is_success() => {
                    return Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)));
                }
                Ok((status, text)) => last = format!("status {status}: {}", text.trim()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(Error::Request { what: path.to_owned(), why: last })
    }
}

/// A region as PD describes it.
fn region(value: &Value) -> Option<Region> {
    let peers = value["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    Some(Region {
        id: value["id"].as_u64()?,
        start: value["start_key"].as_str().unwrap_or_default().to_owned(),
        leader: value["leader"]["store_id"].as_u64(),
        stores: peers.iter().filter_map(|peer| peer["store_id"].as_u64()).collect(),
    })
}

/// A key in the form that regions are cut by: groups of eight bytes, each followed by how full it is (TiKV's "memcomparable" format).
fn encoded(key: &[u8]) -> Vec<u8> {
    let mut form = Vec::with_capacity((key.len() / GROUP_BYTES + 1) * (GROUP_BYTES + 1));
    // A key of whole groups has an empty one at its end.
    for at in (0..=key.len()).step_by(GROUP_BYTES) {
        let group = &key[at..key.len().min(at + GROUP_BYTES)];
        let missing = GROUP_BYTES - group.len();
        form.extend_from_slice(group);
        form.resize(form.len() + missing, 0);
        form.push(u8::MAX - missing as u8);
    }
    form
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

fn percent(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

/// One of the cluster's processes.
#[derive(Debug, Clone)]
pub struct Server {
    pid_file: PathBuf,
}

/// A process that stands still until this is dropped.
#[derive(Debug)]
pub struct Paused {
    pid: libc::pid_t,
}

impl Drop for Paused {
    fn drop(&mut self) {
        send(self.pid, libc::SIGCONT);
    }
}

impl Server {
    /// Those whose files that variable names: none if it is not set.
    #[must_use]
    pub fn from_environment(variable: &str) -> Vec<Self> {
        let files = std::env::var(variable).unwrap_or_default();
        let files = files.split(',').map(str::trim).filter(|file| !file.is_empty());
        files.map(|file| Self { pid_file: file.into() }).collect()
    }

    /// Its process number.
    ///
    /// # Errors
    /// When its file does not name one.
    pub fn pid(&self) -> Result<libc::pid_t> {
        let text = std::fs::read_to_string(&self.pid_file).map_err(Error::file("read", &self.pid_file))?;
        // Not 0 or less, which means more than one process to the kernel.
        text.trim().parse().ok().filter(|pid| *pid > 0).ok_or_else(|| Error::Request {
            what: format!("the process number in {}", self.pid_file.display()),
            why: format!("{text:?} is none"),
        })
    }

    /// Makes it stand still.
    ///
    /// # Errors
    /// When its process is not known.
    pub fn pause(&self) -> Result<Paused> {
        let pid = self.pid()?;
        send(pid, libc::SIGSTOP);
        Ok(Paused { pid })
    }

    /// Kills it, and waits until whoever runs the cluster has started it again.
    ///
    /// # Errors
    /// When that is not so within the time.
    pub fn kill(&self, within: Duration) -> Result<()> {
        let killed = self.pid()?;
        send(killed, libc::SIGKILL);
        let deadline = Instant::now() + within;
        while self.pid().is_ok_and(|pid| pid == killed) {
            if Instant::now() >= deadline {
                let what = format!("waiting for {} to name another process", self.pid_file.display());
                return Err(Error::Request { what, why: format!("it does not within {within:?}") });
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_regions_are_cut_by() {
        assert_eq!(hexadecimal(&encoded(b"")), "0000000000000000F7");
        assert_eq!(hexadecimal(&encoded(b"abc")), "6162630000000000FA");
        assert_eq!(hexadecimal(&encoded(b"12345678")), "3132333435363738FF0000000000000000F7");
        assert_eq!(percent(b"a\0"), "%61%00");
    }

    #[test]
    fn a_server_that_was_killed_is_there_when_its_file_names_another() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let start = || std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let mut first = start();
        std::fs::write(&pid_file, format!("{}\n", first.id())).unwrap();
        let server = Server { pid_file: pid_file.clone() };
        drop(server.pause().unwrap());
        let mut second = start();
        let runner = std::thread::spawn(move || {
            first.wait().unwrap();
            std::fs::write(&pid_file, second.id().to_string()).unwrap();
            second
        });
        server.kill(Duration::from_secs(30)).unwrap();
        second = runner.join().unwrap();
        assert_eq!(server.pid().unwrap(), second.id() as libc::pid_t);
        second.kill().unwrap();
        second.wait().unwrap();
        std::fs::write(&server.pid_file, "0").unwrap();
        assert!(server.pid().is_err());
    }
}
