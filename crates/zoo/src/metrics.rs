//! What zoo counts, for Prometheus.

use std::sync::Arc;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::tenant::Tenants;
use crate::watch::Hubs;

/// All counts.
pub(crate) struct Metrics {
    registry: Registry,
    tenants: Gauge,
    shared_watches: Gauge,
    leader: Gauge,
    sources: (Arc<Tenants>, Arc<Hubs>),
}

impl Metrics {
    pub(crate) fn new(tenants: Arc<Tenants>, hubs: Arc<Hubs>) -> Self {
        let mut registry = Registry::with_prefix("kubezoo");
        let (tenant_count, shared_watches, leader) = (Gauge::default(), Gauge::default(), Gauge::default());
        registry.register("tenants", "Tenants that are known", tenant_count.clone());
        registry.register(
            "shared_watches",
            "Watches of whole resources upstream, each shared by all tenants",
            shared_watches.clone(),
        );
        registry.register("leader", "1 if this zoo leads those of its host, otherwise 0", leader.clone());
        Self { registry, tenants: tenant_count, shared_watches, leader, sources: (tenants, hubs) }
    }

    /// All of them as text.
    pub(crate) fn render(&self) -> String {
        self.tenants.set(self.sources.0.count() as i64);
        self.shared_watches.set(self.sources.1.count() as i64);
        self.leader.set(i64::from(self.sources.0.leadership().leads()));
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes everything");
        text
    }
}
