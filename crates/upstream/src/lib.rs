//! The kube-apiservers behind a cluster: connections, health, choice.
//!
//! An [`Upstream`] is all endpoints of one cluster. It is told what is configured ([`Upstream::update`]) and keeps
//! everything that an update does not change: connections, loads, health. [`Upstream::pick`] chooses an [`Endpoint`],
//! [`Endpoint::send`] puts a request on one of its connections, and the caller reports what came of it
//! ([`Endpoint::report`]). Whether to try again is the caller's decision; [`SendError`] and [`ExchangeError`] say what
//! is safe, [`RetryBudget`] what is affordable.
//!
//! Invariants:
//! - No stream is ever cut by an update, a removal or a health verdict. Only a connection that is proven dead is cut.
//! - New credentials and new trust hold for every request that begins after the update: connections made with the old
//!   ones take no more streams, and a bearer token, which goes with each request, needs no new connection.
//! - One slow reader, one slow endpoint, one hung connection delays only what is on it.
//!
//! Where things are: `pool` shares connections out, `connection` drives one, `transport` dials, `health` judges,
//! `balance` chooses. [`wire`] is what lies beneath HTTP/2, and [`wakers`] how one event wakes many tasks; both serve
//! the other side of a proxy too, towards its clients.

mod balance;
mod body;
mod budget;
mod connection;
mod endpoint;
mod error;
mod health;
mod limits;
mod pool;
mod resolve;
mod settings;
mod tls;
mod transport;
pub mod wakers;
pub mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};

pub use balance::{EndpointId, EndpointSet, Strategy};
pub use body::read_whole;
pub use budget::{RetryBudget, RetryBudgetSettings};
pub use connection::{Exchange, Lease, Pieces, Response};
pub use endpoint::{Endpoint, EndpointStatus, Upgrade, UpgradeLease};
pub use error::{BodyError, DialError, ExchangeError, Failure, Processed, SendError, SettingsError};
pub use health::{Outcome, State};
pub use resolve::{ResolveError, Source};
pub use settings::{Address, BearerToken, Class, EndpointSettings, HealthSettings, PoolSettings, UpstreamSettings};
pub use tls::{ClientTls, ClientTlsFiles, SYSTEM_ROOTS};

use balance::{Choice, Turn};
use endpoint::Options;

/// The settings in force.
struct InForce {
    settings: UpstreamSettings,
    options: Arc<Options>,
    /// Who may replace the endpoints: the [`Finder`] of this number.
    finder: u64,
}

/// All endpoints of one cluster. Must be made and used on a Tokio runtime.
pub struct Upstream {
    cluster: Arc<str>,
    endpoints: ArcSwap<Vec<Arc<Endpoint>>>,
    turn: Turn,
    /// Held while they are replaced.
    in_force: Mutex<InForce>,
    /// Held while the ranks of the endpoints are written.
    ranking: Mutex<()>,
}

impl Upstream {
    /// Begins to probe the endpoints, which also opens a first connection to each.
    #[must_use]
    pub fn new(settings: UpstreamSettings) -> Arc<Self> {
        let options = Arc::new(options(&settings, 0));
        let empty = UpstreamSettings { endpoints: Vec::new(), ..settings.clone() };
        let upstream = Arc::new(Self {
            cluster: settings.cluster.as_str().into(),
            endpoints: ArcSwap::default(),
            turn: Turn::default(),
            in_force: Mutex::new(InForce { settings: empty, options, finder: 0 }),
            ranking: Mutex::new(()),
        });
        upstream.update(settings);
        upstream
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> UpstreamSettings {
        self.in_force.lock().settings.clone()
    }

    /// Takes over new settings. Endpoints that stay keep their connections and their health; those that are gone end
    /// with their last stream. Settings of connections hold for connections that are opened from now on; if TLS or
    /// windows have changed, connections that were opened before get no further streams.
    ///
    /// A [`Finder`] that was there before finds nothing for it any more.
    pub fn update(self: &Arc<Self>, new: UpstreamSettings) {
        self.replace(self.in_force.lock(), new, true);
    }

    /// The same, but for the endpoints: those that discovery has found stay, and it goes on.
    pub fn update_all_but_endpoints(self: &Arc<Self>, new: UpstreamSettings) {
        let in_force = self.in_force.lock();
        let endpoints = in_force.settings.endpoints.clone();
        self.replace(in_force, UpstreamSettings { endpoints, ..new }, false);
    }

    /// For discovery, which finds endpoints and knows nothing of the rest.
    #[must_use]
    pub fn finder(self: &Arc<Self>) -> Finder {
        Finder { upstream: Arc::downgrade(self), number: self.in_force.lock().finder }
    }

    fn replace(
        self: &Arc<Self>,
        mut in_force: MutexGuard<'_, InForce>,
        new: UpstreamSettings,
        has_another_finder: bool,
    ) {
        in_force.finder += u64::from(has_another_finder);
        let old = &in_force.settings;
        if *old == new {
            return;
        }
        let renewed = old.tls != new.tls || !same_windows(&old.pool, &new.pool);
        let options = Arc::new(options(&new, in_force.options.generation + u64::from(renewed)));
        let before = self.endpoints.load_full();
        let mut gone: HashMap<&Address, &Arc<Endpoint>> =
            before.iter().map(|endpoint| (endpoint.address(), endpoint)).collect();
        let mut after: Vec<Arc<Endpoint>> = Vec::with_capacity(new.endpoints.len());
        let mut begun = Vec::new();
        for settings in &new.endpoints {
            if after.iter().any(|endpoint| endpoint.address() == &settings.address) {
                continue;
            }
            after.push(match gone.remove(&settings.address) {
                Some(endpoint) => {
                    endpoint.update(settings, options.clone());
                    endpoint.clone()
                }
                None => {
                    let weak = Arc::downgrade(self);
                    let endpoint = Endpoint::new(settings, self.cluster.clone(), weak, options.clone());
                    begun.push(endpoint.clone());
                    endpoint
                }
            });
        }
        // First the list, then the ends: who picks from now on gets none that is gone.
        self.endpoints.store(Arc::new(after));
        for endpoint in gone.into_values() {
            endpoint.retire();
        }
        in_force.settings = new;
        in_force.options = options;
        drop(in_force);
        self.rerank();
        for endpoint in begun {
            tokio::spawn(endpoint.keep_health());
        }
    }

    /// An endpoint for a request: one of `filter`, if there is one, and none of `exclude`, which are those that were
    /// tried already.
    ///
    /// If none of these is in rotation ([`Endpoint::is_available`]), the least bad of them; the caller may rather drop
    /// the filter. `None` only if none of them exists and is enabled. `key` is for [`Strategy::Rendezvous`].
    #[must_use]
    pub fn pick(
        &self,
        strategy: Strategy,
        filter: Option<&EndpointSet>,
        exclude: &[EndpointId],
        key: &str,
    ) -> Option<Arc<Endpoint>> {
        let endpoints = self.endpoints.load();
        Choice { endpoints: &endpoints, filter, exclude, turn: &self.turn }.pick(strategy, key).cloned()
    }

    /// Whether an endpoint is in rotation that is one of `filter`, if there is one, and none of `exclude`.
    #[must_use]
    pub fn has_another(&self, filter: Option<&EndpointSet>, exclude: &[EndpointId]) -> bool {
        self.endpoints.load().iter().any(|endpoint| {
            let id = endpoint.id();
            endpoint.is_available() && !exclude.contains(&id) && filter.is_none_or(|filter| filter.contains(id))
        })
    }

    /// How the endpoints are, in the order of the configuration.
    #[must_use]
    pub fn status(&self) -> Vec<EndpointStatus> {
        self.endpoints.load().iter().map(|endpoint| endpoint.status()).collect()
    }

    /// The endpoints, in the order of the configuration.
    #[must_use]
    pub fn endpoints(&self) -> Arc<Vec<Arc<Endpoint>>> {
        self.endpoints.load_full()
    }

    /// Decides who is in rotation: all that are well; and if these are less than half, the least bad of those that at
    /// least answer, up to half.
    fn rerank(&self) {
        let _ranking = self.ranking.lock();
        let endpoints = self.endpoints.load();
        let enabled: Vec<_> = endpoints.iter().filter(|endpoint| !endpoint.is_disabled()).collect();
        let mut unwell = Vec::new();
        let mut well = 0;
        for endpoint in &enabled {
            let (state, badness) = endpoint.health();
            if state.is_up() {
                well += 1;
                endpoint.set_rank(0);
            } else {
                unwell.push((badness, state, endpoint));
            }
        }
        unwell.sort_by_key(|(badness, ..)| *badness);
        let mut missing = enabled.len().div_ceil(2).saturating_sub(well);
        for (badness, state, endpoint) in unwell {
            let stays = missing > 0 && !state.is_away();
            missing -= usize::from(stays);
            endpoint.set_rank(if stays { 0 } else { badness });
        }
    }
}

/// Tells an [`Upstream`] what endpoints it has from now on, until it is configured with others.
///
/// Whoever looks endpoints up may be in the midst of it while the configuration changes, and must then not bring back
/// what was found for the one before.
#[derive(Clone, Debug)]
pub struct Finder {
    upstream: Weak<Upstream>,
    number: u64,
}

impl Finder {
    /// Replaces the endpoints, and leaves all else as it is.
    pub fn found(&self, endpoints: Vec<EndpointSettings>) {
        let Some(upstream) = self.upstream.upgrade() else { return };
        let in_force = upstream.in_force.lock();
        if in_force.finder == self.number {
            let settings = UpstreamSettings { endpoints, ..in_force.settings.clone() };
            upstream.replace(in_force, settings, false);
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        for endpoint in self.endpoints.load().iter() {
            endpoint.retire();
        }
    }
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Upstream").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

fn options(settings: &UpstreamSettings, generation: u64) -> Options {
    Options {
        tls: settings.tls.clone(),
        bearer_token: settings.bearer_token.clone(),
        pool: settings.pool.clone(),
        health: settings.health.clone(),
        slow_start: settings.slow_start,
        generation,
    }
}

fn same_windows(one: &PoolSettings, other: &PoolSettings) -> bool {
    one.streams_max == other.streams_max
        && Class::ALL.iter().all(|class| one.window_bytes(*class) == other.window_bytes(*class))
}
