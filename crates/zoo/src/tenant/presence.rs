//! Which zoos there are: each has a Lease of its own in the host's kube-system that says where it is reached, and renews it while it lives.
//!
//! Whether one still lives, the leader finds out as in the election: by its own clock, from when it last saw the lease change.
//!
//! Invariant: an address counts from when its zoo has told it, and no longer than [`SILENCE_MS`] after its zoo's last word was seen.

use std::collections::HashMap;
use std::net::SocketAddr;

use http::Method;
use kubewharf_foundation::clock::{Clock, RealClock};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::upstream::{Upstream, UpstreamError};

use super::lease::{self, LEASES_PATH, Lease, LeaseSpec, micro_time};

/// How long a zoo may be silent.
const SILENCE_MS: u64 = 15_000;
/// The label of the leases.
const LABEL: &str = "tenancy.kubewharf.io/zoo";

/// This zoo's own lease.
pub(super) struct Presence {
    name: String,
    address: SocketAddr,
    /// Its version, if it was made.
    version: Option<String>,
    acquire_time: String,
}

impl Presence {
    /// Of the zoo with this suffix of its name.
    pub(super) fn new(suffix: &str, address: SocketAddr) -> Self {
        let acquire_time = micro_time(RealClock.wall_ms());
        Self { name: format!("kubewharf-zoo-{suffix}"), address, version: None, acquire_time }
    }

    /// Tells that this zoo is there.
    ///
    /// # Errors
    /// When the apiserver refuses, or can't be asked.
    pub(super) async fn tell(&mut self, upstream: &Upstream) -> Result<(), UpstreamError> {
        let spec = LeaseSpec {
            holder_identity: Some(self.address.to_string()),
            lease_duration_seconds: (SILENCE_MS / 1000) as u32,
            acquire_time: self.acquire_time.clone(),
            renew_time: micro_time(RealClock.wall_ms()),
            lease_transitions: 0,
        };
        let written = match self.version.take() {
            Some(version) => lease::update(upstream, &self.name, &version, &spec).await?,
            None => None,
        };
        let written = match written {
            Some(lease) => Some(lease),
            // It is not there, or has changed.
            None => match lease::create(upstream, &self.name, &json!({ LABEL: "" }), &spec).await? {
                Some(lease) => Some(lease),
                None => lease::read(upstream, &self.name).await?,
            },
        };
        self.version = written.map(|lease| lease.metadata.resource_version);
        Ok(())
    }

    /// Tells that it is there no more.
    pub(super) async fn leave(&mut self, upstream: &Upstream) {
        let Some(version) = self.version.take() else { return };
        if let Err(error) = lease::delete(upstream, &self.name, &version).await {
            tracing::warn!(%error, "this zoo's own lease could not be deleted; it runs out");
        }
    }
}

#[derive(Deserialize)]
struct Leases {
    items: Vec<Lease>,
}

/// All zoos' leases.
///
/// # Errors
/// When the apiserver can't be asked.
pub(super) async fn all(upstream: &Upstream) -> Result<Vec<Lease>, UpstreamError> {
    let target = format!("{LEASES_PATH}?labelSelector={}", LABEL.replace('/', "%2F"));
    let leases: Leases = upstream.own_json(Method::GET, &target, &Value::Null, OWN_ANSWER_BYTES_MAX).await?;
    Ok(leases.items)
}

/// What the leader knows of all zoos.
#[derive(Default)]
pub(super) struct Watcher {
    /// The version of each lease as it was seen last, and since when.
    seen: HashMap<String, (String, u64)>,
}

impl Watcher {
    /// The addresses of those that live, in order; and the leases of those that don't, with their version.
    pub(super) fn look(&mut self, leases: Vec<Lease>, now_ms: u64) -> (Vec<SocketAddr>, Vec<(String, String)>) {
        let (mut living, mut dead) = (Vec::new(), Vec::new());
        let mut seen = HashMap::new();
        for Lease { metadata, spec } in leases {
            let (name, version) = (metadata.name, metadata.resource_version);
            let since_ms = match self.seen.remove(&name) {
                Some((known, since_ms)) if known == version => since_ms,
                _ => now_ms,
            };
            if now_ms < since_ms + SILENCE_MS {
                living.extend(spec.holder_identity.and_then(|address| address.parse::<SocketAddr>().ok()));
            } else {
                dead.push((name.clone(), version.clone()));
            }
            seen.insert(name, (version, since_ms));
        }
        self.seen = seen;
        living.sort_unstable();
        living.dedup();
        (living, dead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(name: &str, version: u32, address: &str) -> Lease {
        let mut lease = Lease::default();
        lease.metadata.name = name.into();
        lease.metadata.resource_version = version.to_string();
        lease.spec.holder_identity = Some(address.into());
        lease
    }

    #[test]
    fn a_zoo_is_there_while_its_lease_changes() {
        let (a, b) = ("192.0.2.1:7443", "192.0.2.2:7443");
        let parsed = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let mut watcher = Watcher::default();
        let (living, dead) = watcher.look(vec![lease("b", 1, b), lease("a", 1, a), lease("c", 1, "nowhere")], 5_000);
        assert_eq!((living, dead.len()), (vec![parsed(a), parsed(b)], 0));
        // One is silent, one comes back with its old address under a new name, whatever its clock says.
        let (living, _) = watcher.look(vec![lease("a", 1, a), lease("b", 7, b)], 19_999);
        assert_eq!(living, [parsed(a), parsed(b)]);
        let (living, dead) = watcher.look(vec![lease("a", 1, a), lease("b", 7, b), lease("d", 1, b)], 20_000);
        assert_eq!((living, dead), (vec![parsed(b)], vec![("a".to_owned(), "1".to_owned())]));
        let (living, dead) = watcher.look(vec![lease("a", 2, a)], 90_000);
        assert_eq!((living, dead.len()), (vec![parsed(a)], 0));
    }
}
