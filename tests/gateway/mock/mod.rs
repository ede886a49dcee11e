//! Kube-apiservers that fail as they are told, and take more load than real ones: a gateway in front of some of them,
//! and clients of it.
//!
//! What they know is one revision, which goes up when a test says so, as if something were written to their one etcd. A
//! watch sees each revision above the one that it begins with as one event.

pub(crate) mod apiserver;
pub(crate) mod client;
pub(crate) mod informers;
pub(crate) mod requests;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::{Authority, Identity};
use tokio::runtime::{Builder, Runtime};

use self::apiserver::{Apiserver, Etcd};
use self::client::Connector;
use crate::fixture::{Gateway, alone, wait};

/// A gateway in front of mock apiservers.
pub(crate) struct Mock {
    // In the order in which they must end.
    pub(crate) gateway: Gateway,
    pub(crate) apiservers: Vec<Apiserver>,
    pub(crate) runtime: Runtime,
    pub(crate) etcd: Etcd,
    pub(crate) authority: Authority,
    alice: Identity,
    _folder: Folder,
    _alone: MutexGuard<'static, ()>,
}

impl Mock {
    /// Starts that many, and a gateway of which everything but the endpoints is told by `spec`, as for
    /// [`Gateway::start`].
    pub(crate) fn start(count: usize, spec: &str) -> Self {
        Self::start_beside(&[], count, true, spec)
    }

    /// The same behind further endpoints of the gateway, with TLS or all without.
    pub(crate) fn start_beside(others: &[String], count: usize, has_tls: bool, spec: &str) -> Self {
        let alone = alone();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = Folder::new("mock").unwrap();
        let authority = Authority::new(&folder, "authority").unwrap();
        let alice = authority.client(&folder, "alice", "developers").unwrap();
        let server = authority.server(&folder, "apiserver", &["localhost"]).unwrap();
        let etcd = Etcd::new();
        let apiservers: Vec<Apiserver> =
            (0..count).map(|_| Apiserver::start(&runtime, &etcd, has_tls.then_some(&server))).collect();
        let endpoints: Vec<String> = others.iter().cloned().chain(apiservers.iter().map(Apiserver::url)).collect();
        let gateway = Gateway::start(&authority, &endpoints, spec);
        let mock = Self { gateway, apiservers, runtime, etcd, authority, alice, _folder: folder, _alone: alone };
        mock.wait_until_all_are_well();
        mock
    }

    /// What opens connections to the gateway for the user alice.
    pub(crate) fn connector(&self) -> Connector {
        Connector::new(self.gateway.address, &self.authority, Some(&self.alice))
    }

    /// Where the apiservers are.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.apiservers.iter().map(Apiserver::url).collect()
    }

    /// Waits until every apiserver gets its full share of the requests.
    pub(crate) fn wait_until_all_are_well(&self) {
        wait("all are in rotation", || {
            self.gateway.endpoints().iter().all(|endpoint| endpoint["in_rotation"] == true && endpoint["state"] == "up")
        });
    }

    /// Waits until the gateway gives that apiserver no requests any more; how long after `since` it began to.
    pub(crate) fn wait_until_known(&self, place: usize, since: Instant) -> Duration {
        let after = Cell::new(Duration::ZERO);
        wait("the gateway knows", || {
            let endpoint = &self.gateway.endpoints()[place];
            // By the gateway's own clock, whenever this is asked.
            let age = Duration::from_secs_f64(endpoint["state_seconds"].as_f64().unwrap());
            after.set(since.elapsed().saturating_sub(age));
            endpoint["in_rotation"] == false
        });
        after.get()
    }
}

/// How often each of some texts came.
#[derive(Debug, Default)]
pub(crate) struct Texts(Mutex<BTreeMap<String, u64>>);

impl Texts {
    pub(crate) fn add(&self, text: impl Into<String>) {
        *self.0.lock().unwrap().entry(text.into()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.0.lock().unwrap().clone()
    }
}
