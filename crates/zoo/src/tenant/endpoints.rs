//! Where tenants' Service `default/kubernetes` leads: an Endpoints and an EndpointSlice of that name in each tenant, with the addresses of all
//! zoos, as kube-apiservers keep them in their own cluster.
//!
//! The leader makes them with the Service, and writes them anew when zoos come or go. Nobody waits for them.
//!
//! Invariant: only addresses that Kubernetes takes as an endpoint's are written, all of one family and at one port, as one EndpointSlice has them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use kubewharf_foundation::Shutdown;
use kubewharf_foundation::clock::{Clock, RealClock};
use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::limits::OWN_ANSWER_BYTES_MAX;
use crate::upstream::UpstreamError;

use super::presence::{self, Presence, Watcher};
use super::{Tenant, Tenants, lease};

/// Pause between two looks at the zoos.
const LOOK: Duration = Duration::from_secs(5);
/// Pause before what could not be written is tried again.
const AGAIN_MS: u64 = 60_000;
/// The name of the Service and of what belongs to it.
const NAME: &str = "kubernetes";

/// What is known of the addresses.
#[derive(Default)]
pub(super) struct Addresses {
    /// Those that tenants are told.
    told: RwLock<Vec<SocketAddr>>,
    /// Whether some tenant may not have been told them.
    again: AtomicBool,
}

/// One of the two kinds.
struct Kind {
    resource: &'static str,
    object: fn(&[SocketAddr]) -> Value,
    /// The fields that say where the Service leads.
    fields: &'static [&'static str],
}

const KINDS: [Kind; 2] = [
    Kind { resource: "endpoints", object: endpoints, fields: &["subsets"] },
    Kind { resource: "endpointslices", object: slice, fields: &["addressType", "endpoints", "ports"] },
];

impl Kind {
    fn base(&self) -> &'static str {
        if self.resource == "endpoints" { "/api/v1" } else { "/apis/discovery.k8s.io/v1" }
    }
}

/// Whether Kubernetes takes an address as an endpoint's.
///
/// # Errors
/// Why not.
pub(crate) fn check_address(address: IpAddr) -> Result<(), &'static str> {
    let is_link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    match () {
        () if address.is_unspecified() => Err("it is no address of one machine"),
        () if address.is_loopback() => Err("others can't reach a loopback address"),
        () if address.is_multicast() => Err("it is a multicast address"),
        () if is_link_local => Err("it is a link-local address"),
        () => Ok(()),
    }
}

/// Those of the family and the port that most have; of equally many, the lowest.
fn of_one_kind(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut groups: BTreeMap<(bool, u16), Vec<SocketAddr>> = BTreeMap::new();
    for address in addresses {
        groups.entry((address.is_ipv6(), address.port())).or_default().push(*address);
    }
    let mut chosen = Vec::new();
    for group in groups.into_values() {
        if group.len() > chosen.len() {
            chosen = group;
        }
    }
    chosen
}

fn endpoints(addresses: &[SocketAddr]) -> Value {
    let ips: Vec<Value> = addresses.iter().map(|address| json!({ "ip": address.ip().to_string() })).collect();
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        // The host's controller makes no second slice of them.
        "metadata": { "name": NAME, "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{ "addresses": ips, "ports": [port(addresses)] }],
    })
}

fn slice(addresses: &[SocketAddr]) -> Value {
    let of = |address: &SocketAddr| json!({ "addresses": [address.ip().to_string()], "conditions": { "ready": true } });
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": NAME, "labels": { "kubernetes.io/service-name": NAME } },
        "addressType": if addresses[0].is_ipv6() { "IPv6" } else { "IPv4" },
        "endpoints": addresses.iter().map(of).collect::<Vec<_>>(),
        "ports": [port(addresses)],
    })
}

fn port(addresses: &[SocketAddr]) -> Value {
    json!({ "name": "https", "port": addresses[0].port(), "protocol": "TCP" })
}

impl Tenants {
    /// Tells that this zoo is there, and, while it leads, tenants where all zoos are; until the shutdown.
    pub(crate) async fn keep_endpoints(self: Arc<Self>, advertised: Option<SocketAddr>, shutdown: Shutdown) {
        let suffix = self.leadership.me().rsplit('_').next().unwrap_or_default();
        let mut presence = advertised.map(|address| Presence::new(suffix, address));
        let mut watcher = Watcher::default();
        let mut terms = self.leadership.terms();
        let (mut looked_at, mut again_ms) = (0, 0);
        loop {
            if let Some(presence) = &mut presence
                && let Err(error) = presence.tell(&self.upstream).await
            {
                tracing::warn!(%error, "this zoo's own lease can't be written; trying again");
            }
            if self.leadership.leads() {
                // A new term looks at all tenants: the last one may have ended before it had told all.
                let term = *terms.borrow_and_update();
                let is_due = RealClock.monotonic_ms() >= again_ms && self.addresses.again.load(Ordering::Relaxed);
                let is_due = is_due || std::mem::replace(&mut looked_at, term) != term;
                if let Err(error) = self.look_at_zoos(&mut watcher, is_due).await {
                    tracing::warn!(%error, "not all tenants know where the zoos are; trying again");
                    self.addresses.again.store(true, Ordering::Relaxed);
                    again_ms = RealClock.monotonic_ms() + AGAIN_MS;
                }
            }
            tokio::select! {
                () = shutdown.requested() => break,
                () = tokio::time::sleep(LOOK) => {}
                _ = terms.changed() => {}
            }
        }
        if let Some(presence) = &mut presence {
            presence.leave(&self.upstream).await;
        }
    }

    async fn look_at_zoos(&self, watcher: &mut Watcher, is_due: bool) -> Result<(), UpstreamError> {
        let leases = presence::all(&self.upstream).await?;
        let (living, dead) = watcher.look(leases, RealClock.monotonic_ms());
        for (name, version) in dead {
            tracing::info!(lease = name, "a zoo has been silent for too long, and is there no more");
            lease::delete(&self.upstream, &name, &version).await?;
        }
        let chosen = of_one_kind(&living);
        let has_changed = *self.addresses.told.read() != chosen;
        if !chosen.is_empty() && (has_changed || is_due) {
            tracing::info!(addresses = ?chosen, "tenants are told where the zoos are");
            self.addresses.again.store(false, Ordering::Relaxed);
            self.addresses.told.write().clone_from(&chosen);
            self.tell_all_tenants(&chosen).await?;
        }
        Ok(())
    }

    /// Writes what is not as it should be, at all tenants that have their Service.
    async fn tell_all_tenants(&self, addresses: &[SocketAddr]) -> Result<(), UpstreamError> {
        let mut problem = None;
        // One by one: who reads all that have this name holds whatever tenants have written there.
        let tenants: Vec<Arc<Tenant>> = self.by_id.read().values().cloned().collect();
        for tenant in tenants.iter().filter(|tenant| !tenant.is_ending && tenant.is_complete()) {
            for kind in &KINDS {
                let _permit = self.provisions.acquire().await.expect("it is never closed");
                self.let_requests_pass().await;
                if !self.leadership.leads() {
                    return Ok(());
                }
                match self.correct(kind, &tenant.names.inward("default"), &(kind.object)(addresses)).await {
                    Ok(()) => {}
                    // One tenant's quota, or whatever else refuses it there, is no matter of the others, and not tried again.
                    Err(error) if error.status().is_some_and(|status| status.is_client_error()) => {
                        tracing::info!(tenant = %tenant.name, %error, "its Service kubernetes does not lead to all zoos");
                    }
                    Err(error) => problem = Some(error),
                }
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Writes an object if it is not as it should be.
    async fn correct(&self, kind: &Kind, namespace: &str, wanted: &Value) -> Result<(), UpstreamError> {
        let path = format!("{}/namespaces/{namespace}/{}/{NAME}", kind.base(), kind.resource);
        let found = self.upstream.own_json::<Value>(Method::GET, &path, &Value::Null, OWN_ANSWER_BYTES_MAX).await;
        let is_right = |found: &Value| kind.fields.iter().all(|field| found.get(field) == wanted.get(field));
        match found {
            Ok(found) if is_right(&found) => Ok(()),
            Err(error) if error.status().is_none_or(|status| status != StatusCode::NOT_FOUND) => Err(error),
            _ => self.write_endpoints(kind, namespace, wanted).await,
        }
    }

    async fn write_endpoints(&self, kind: &Kind, namespace: &str, object: &Value) -> Result<(), UpstreamError> {
        let all = format!("{}/namespaces/{namespace}/{}", kind.base(), kind.resource);
        let made = self.create_endpoints(&all, object).await?;
        if !made {
            let target = format!("{all}/{NAME}?fieldManager=kube-apiserver");
            self.upstream.own(Method::PUT, &target, object, OWN_ANSWER_BYTES_MAX).await?;
        }
        Ok(())
    }

    async fn create_endpoints(&self, path: &str, object: &Value) -> Result<bool, UpstreamError> {
        let target = format!("{path}?fieldManager=kube-apiserver");
        match self.upstream.own(Method::POST, &target, object, OWN_ANSWER_BYTES_MAX).await {
            Ok(_) => Ok(true),
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has all tenants looked at once more: they may have been told by another zoo, or not yet.
    pub(super) fn look_at_endpoints_again(&self) {
        self.addresses.again.store(true, Ordering::Relaxed);
    }

    /// Makes a new tenant's, with its Service. What can't be made now is made later.
    pub(super) async fn make_endpoints(&self, tenant: &Tenant) {
        let addresses = self.addresses.told.read().clone();
        let mut is_done = !addresses.is_empty();
        for kind in KINDS.iter().filter(|_| !addresses.is_empty()) {
            let path = format!("{}/namespaces/{}/{}", kind.base(), tenant.names.inward("default"), kind.resource);
            match self.create_endpoints(&path, &(kind.object)(&addresses)).await {
                Ok(made) => is_done &= made,
                Err(error) => {
                    tracing::warn!(tenant = %tenant.name, %error, "its Service kubernetes has no endpoints yet");
                    is_done = false;
                }
            }
        }
        // They are not known yet, there was something before, or they have changed meanwhile.
        if !is_done || *self.addresses.told.read() != addresses {
            self.look_at_endpoints_again();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_has_one_port_and_one_family() {
        let parsed = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (a, b, c) = (parsed("192.0.2.1:7443"), parsed("192.0.2.2:7443"), parsed("192.0.2.3:7444"));
        let six = parsed("[2001:db8::1]:7443");
        assert_eq!(of_one_kind(&[c, six, b, a]), [b, a]);
        assert_eq!(of_one_kind(&[c, six]), [c]);
        assert_eq!(of_one_kind(&[]), []);
        assert_eq!(slice(&[six])["addressType"], "IPv6");
    }

    #[test]
    fn an_address_that_kubernetes_refuses_is_told() {
        for wrong in ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "::1", "::", "fe80::1", "ff02::1"] {
            assert!(check_address(wrong.parse().expect("an address")).is_err(), "{wrong}");
        }
        for right in ["10.0.0.1", "2001:db8::1"] {
            assert_eq!(check_address(right.parse().expect("an address")), Ok(()), "{right}");
        }
    }
}
