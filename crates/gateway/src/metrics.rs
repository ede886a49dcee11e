//! What the gateway counts, in Prometheus' text format. KubeGateway's names where the meaning is the same.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::record::Record;

/// Labels of answers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    cluster: String,
    policy: String,
    endpoint: String,
    verb: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabels {
    cluster: String,
    policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    cluster: String,
    policy: String,
    reason: &'static str,
}

#[derive(Clone)]
struct Latencies;

impl MetricConstructor<Histogram> for Latencies {
    fn new_metric(&self) -> Histogram {
        Histogram::new([
            0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
        ])
    }
}

/// All metrics of a gateway.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    in_flight: Gauge,
    connections: Gauge,
    upgraded: Gauge,
    handshakes_failed: Counter,
    answers: Family<AnswerLabels, Counter>,
    latencies: Family<PolicyLabels, Histogram, Latencies>,
    long_running: Family<PolicyLabels, Gauge>,
    broken: Family<EndLabels, Counter>,
    retries: Family<PolicyLabels, Counter>,
}

/// What is counted for one policy.
#[derive(Clone)]
pub(crate) struct PolicyMetrics {
    cluster: Arc<str>,
    policy: Arc<str>,
    latency: Histogram,
    long_running: Gauge,
    retries: Counter,
    /// The labels that were counted last and their counter: mostly the next are the same.
    last: Arc<Mutex<Option<LastCounted>>>,
}

struct LastCounted {
    endpoint: Option<Arc<str>>,
    verb: &'static str,
    code: u16,
    counter: Counter,
}

impl PolicyMetrics {
    /// A watch, or another request that lasts, has begun (1) or ended (-1).
    pub(crate) fn long_running(&self, change: i64) {
        self.long_running.inc_by(change);
    }

    pub(crate) fn retried(&self) {
        self.retries.inc();
    }
}

impl Metrics {
    pub(crate) fn new() -> Arc<Self> {
        let metrics = Self {
            registry: Mutex::new(Registry::default()),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            upgraded: Gauge::default(),
            handshakes_failed: Counter::default(),
            answers: Family::default(),
            latencies: Family::new_with_constructor(Latencies),
            long_running: Family::default(),
            broken: Family::default(),
            retries: Family::default(),
        };
        {
            let registry = &mut *metrics.registry.lock();
            let registry = registry.sub_registry_with_prefix("kubegateway_proxy");
            registry.register("http_request_inflight", "Requests that are being answered", metrics.in_flight.clone());
            registry.register("connections", "Client connections", metrics.connections.clone());
            registry.register("upgraded_connections", "Upgraded connections", metrics.upgraded.clone());
            registry.register("handshakes_failed", "Failed TLS handshakes", metrics.handshakes_failed.clone());
            registry.register("apiserver_request", "Answered requests", metrics.answers.clone());
            registry.register(
                "apiserver_request_duration_seconds",
                "Time from a request to the end of its answer, of requests that do not last",
                metrics.latencies.clone(),
            );
            registry.register(
                "registered_watchers",
                "Watches and other requests that last",
                metrics.long_running.clone(),
            );
            registry.register("apiserver_request_terminations", "Answers that ended early", metrics.broken.clone());
            registry.register("retries", "Further tries of requests", metrics.retries.clone());
        }
        Arc::new(metrics)
    }

    /// The counters of a policy.
    pub(crate) fn policy(&self, cluster: &str, policy: &str) -> PolicyMetrics {
        let labels = PolicyLabels { cluster: cluster.to_owned(), policy: policy.to_owned() };
        PolicyMetrics {
            cluster: cluster.into(),
            policy: policy.into(),
            latency: self.latencies.get_or_create(&labels).clone(),
            long_running: self.long_running.get_or_create(&labels).clone(),
            retries: self.retries.get_or_create(&labels).clone(),
            last: Arc::default(),
        }
    }

    pub(crate) fn connection(&self, change: i64) {
        self.connections.inc_by(change);
    }

    pub(crate) fn upgraded(&self, change: i64) {
        self.upgraded.inc_by(change);
    }

    pub(crate) fn handshake_failed(&self) {
        self.handshakes_failed.inc();
    }

    pub(crate) fn request_begun(&self) {
        self.in_flight.inc();
    }

    pub(crate) fn request_ended(&self, record: &Record) {
        self.in_flight.dec();
        let Some(policy) = &record.policy else {
            let labels = AnswerLabels {
                cluster: String::new(),
                policy: String::new(),
                endpoint: String::new(),
                verb: record.verb,
                code: record.status,
            };
            self.answers.get_or_create(&labels).inc();
            return;
        };
        self.count(policy, record);
        if record.is_long_running {
            policy.long_running(-1);
        } else {
            policy.latency.observe(Instant::now().duration_since(record.begun).as_secs_f64());
        }
        if record.end() != "finished" {
            let labels = EndLabels {
                cluster: policy.cluster.to_string(),
                policy: policy.policy.to_string(),
                reason: record.end(),
            };
            self.broken.get_or_create(&labels).inc();
        }
    }

    fn count(&self, policy: &PolicyMetrics, record: &Record) {
        let mut last = policy.last.lock();
        if let Some(last) = &*last
            && last.endpoint == record.endpoint
            && last.verb == record.verb
            && last.code == record.status
        {
            last.counter.inc();
            return;
        }
        let labels = AnswerLabels {
            cluster: policy.cluster.to_string(),
            policy: policy.policy.to_string(),
            endpoint: record.endpoint.as_deref().unwrap_or_default().to_owned(),
            verb: record.verb,
            code: record.status,
        };
        let counter = self.answers.get_or_create(&labels).clone();
        counter.inc();
        *last =
            Some(LastCounted { endpoint: record.endpoint.clone(), verb: record.verb, code: record.status, counter });
    }

    /// All of them as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock()).expect("a string takes all text");
        text
    }
}
