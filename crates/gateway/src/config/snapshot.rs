//! The configuration at one moment.
//!
//! Invariant: a snapshot never changes, and whoever has begun with one may keep it. What a reload has not changed is
//! the very same object in the next snapshot, so that whatever hangs on it (connections, sessions, counters) can stay.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::cluster::ClusterConfig;
use super::problem::{Problem, Problems, Severity};
use super::values::split_port;

/// The longest DNS name.
const HOST_BYTES_MAX: usize = 253;

/// All clusters, and which host name is whose.
#[derive(Debug, Default)]
pub struct Snapshot {
    generation: u64,
    clusters: BTreeMap<Arc<str>, Arc<ClusterConfig>>,
    hosts: HashMap<Box<str>, Arc<ClusterConfig>>,
    /// By what is behind the wildcard's `*.`.
    wildcards: HashMap<Box<str>, Arc<ClusterConfig>>,
    default: Option<Arc<ClusterConfig>>,
}

/// Which clusters differ between two snapshots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Clusters that were not there before.
    pub added: Vec<Arc<str>>,
    /// Clusters of which something has changed.
    pub changed: Vec<Arc<str>>,
    /// Clusters that are gone.
    pub removed: Vec<Arc<str>>,
}

impl Changes {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

impl Snapshot {
    /// Puts clusters together. What two of them claim is told.
    pub(super) fn new(clusters: Vec<ClusterConfig>, previous: &Snapshot, problems: &mut Problems) -> Self {
        let mut snapshot = Self { generation: previous.generation + 1, ..Self::default() };
        for cluster in clusters {
            let cluster = shared(cluster, previous);
            if let Some(other) = snapshot.clusters.get(&cluster.name) {
                let problem = format!(
                    "{} is the name of the cluster at {}:{} too",
                    cluster.name,
                    other.file.display(),
                    other.line
                );
                problems.add(conflict(&cluster, "metadata.name", problem, "give each cluster a name of its own"));
                continue;
            }
            snapshot.clusters.insert(cluster.name.clone(), cluster.clone());
            snapshot.claim(&cluster.name, &cluster, "metadata.name", problems);
            for name in &cluster.server_names {
                snapshot.claim(name, &cluster, "spec.secureServing.serverNames", problems);
            }
        }
        snapshot
    }

    fn claim(&mut self, name: &str, cluster: &Arc<ClusterConfig>, field: &str, problems: &mut Problems) {
        let (names, key) = match name.strip_prefix("*.") {
            Some(parent) => (&mut self.wildcards, parent),
            None => (&mut self.hosts, name),
        };
        if let Some(other) = names.get(key) {
            if !Arc::ptr_eq(other, cluster) {
                let problem = format!(
                    "{name} is a host name of cluster {} too, at {}:{}",
                    other.name,
                    other.file.display(),
                    other.line
                );
                problems.add(conflict(
                    cluster,
                    field,
                    problem,
                    "a host name belongs to one cluster: remove it from one of them",
                ));
            }
            return;
        }
        names.insert(key.into(), cluster.clone());
    }

    /// Chooses the cluster for clients that name none. False if there is no such cluster.
    pub(super) fn set_default(&mut self, name: &str) -> bool {
        self.default = self.clusters.get(name).cloned();
        self.default.is_some()
    }

    /// Counts the snapshots that were in use: the first is 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// All clusters, by name.
    #[must_use]
    pub fn clusters(&self) -> &BTreeMap<Arc<str>, Arc<ClusterConfig>> {
        &self.clusters
    }

    /// The cluster of this name.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&Arc<ClusterConfig>> {
        self.clusters.get(name)
    }

    /// The cluster of clients that name none, by neither SNI nor host.
    #[must_use]
    pub fn default_cluster(&self) -> Option<&Arc<ClusterConfig>> {
        self.default.as_ref()
    }

    /// The cluster that a host name belongs to, in any case, with or without a port. `None` if it is nobody's.
    #[must_use]
    pub fn cluster_of_host(&self, host: &str) -> Option<&Arc<ClusterConfig>> {
        let (host, _) = split_port(host)?;
        let host = host.strip_suffix('.').unwrap_or(host);
        if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return self.cluster_of_lower(host);
        }
        let mut lower = [0; HOST_BYTES_MAX];
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        self.cluster_of_lower(std::str::from_utf8(lower).expect("another case of ASCII letters leaves UTF-8 valid"))
    }

    fn cluster_of_lower(&self, host: &str) -> Option<&Arc<ClusterConfig>> {
        self.hosts.get(host).or_else(|| {
            let (label, parent) = host.split_once('.')?;
            // An empty label is in no name.
            if label.is_empty() { None } else { self.wildcards.get(parent) }
        })
    }

    /// The cluster of a request by its `Host` or `:authority`: that of the name; the default one if there is no host,
    /// or if it is an IP address that is nobody's name. `None` for a foreign name.
    #[must_use]
    pub fn cluster_of_authority(&self, authority: &str) -> Option<&Arc<ClusterConfig>> {
        if let Some(cluster) = self.cluster_of_host(authority) {
            return Some(cluster);
        }
        let is_address =
            split_port(authority).is_some_and(|(host, _)| host.is_empty() || host.parse::<IpAddr>().is_ok());
        if is_address { self.default.as_ref() } else { None }
    }

    /// What has changed since another snapshot.
    #[must_use]
    pub fn changes_since(&self, before: &Snapshot) -> Changes {
        let mut changes = Changes::default();
        for (name, cluster) in &self.clusters {
            match before.clusters.get(name) {
                None => changes.added.push(name.clone()),
                Some(old) if old.fingerprint != cluster.fingerprint => changes.changed.push(name.clone()),
                Some(_) => {}
            }
        }
        changes.removed = before.clusters.keys().filter(|name| !self.clusters.contains_key(*name)).cloned().collect();
        changes
    }

    /// Whether another snapshot says the same.
    pub(super) fn is_same(&self, other: &Snapshot) -> bool {
        let name = |snapshot: &Snapshot| snapshot.default.as_ref().map(|cluster| cluster.name.clone());
        self.changes_since(other).is_empty() && name(self) == name(other)
    }
}

fn conflict(cluster: &ClusterConfig, field: &str, problem: String, remedy: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        file: cluster.file.to_path_buf(),
        line: cluster.line,
        field: field.to_owned(),
        problem,
        remedy: remedy.to_owned(),
    }
}

/// The cluster as it was before, if it is the same; if not, its parts that are.
fn shared(mut cluster: ClusterConfig, previous: &Snapshot) -> Arc<ClusterConfig> {
    let Some(old) = previous.clusters.get(&cluster.name) else { return Arc::new(cluster) };
    if old.fingerprint == cluster.fingerprint && old.file == cluster.file && old.line == cluster.line {
        return old.clone();
    }
    if old.client.fingerprint == cluster.client.fingerprint {
        cluster.client = old.client.clone();
    }
    if old.serving.fingerprint == cluster.serving.fingerprint {
        cluster.serving = old.serving.clone();
    }
    if old.authentication == cluster.authentication {
        cluster.authentication = old.authentication.clone();
    }
    for endpoint in &mut cluster.endpoints {
        if let Some(old) = old.endpoint(&endpoint.id)
            && old.connection_fingerprint == endpoint.connection_fingerprint
            && (old.disabled, old.weight) == (endpoint.disabled, endpoint.weight)
        {
            *endpoint = old.clone();
        }
    }
    for schema in &mut cluster.flow_schemas {
        if let Some(old) =
            old.flow_schemas.iter().find(|old| old.name == schema.name && old.fingerprint == schema.fingerprint)
        {
            *schema = old.clone();
        }
    }
    Arc::new(cluster)
}
