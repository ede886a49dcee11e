//! What the gateway counts, in Prometheus' text format. KubeGateway's names where the meaning is the same.
//!
//! Invariant: what is counted of a policy is there as long as the policy is, or a request of it, and no longer. Labels come from the
//! configuration, or are some of a few known words.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::limits::POLICY_ANSWER_KINDS_MAX;
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
struct RuleLabels {
    cluster: String,
    policy: String,
    /// Its place among the policy's.
    rule: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    cluster: String,
    policy: String,
    endpoint: String,
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

/// Coarser, as there may be thousands of rules.
#[derive(Clone)]
struct RuleLatencies;

impl MetricConstructor<Histogram> for RuleLatencies {
    fn new_metric(&self) -> Histogram {
        Histogram::new([0.01, 0.1, 1.0, 10.0])
    }
}

/// The policies that are counted for, by cluster and name.
type ByPolicy = HashMap<(Arc<str>, Arc<str>), Weak<PolicyMetrics>>;

/// All that has labels of a policy.
#[derive(Clone)]
struct Families {
    answers: Family<AnswerLabels, Counter>,
    latencies: Family<EndpointLabels, Histogram, Latencies>,
    rules: Family<RuleLabels, Histogram, RuleLatencies>,
    long_running: Family<PolicyLabels, Gauge>,
    broken: Family<EndLabels, Counter>,
    retries: Family<PolicyLabels, Counter>,
    policies: Arc<Mutex<ByPolicy>>,
}

/// All metrics of a gateway.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    in_flight: Gauge,
    connections: Gauge,
    upgraded: Gauge,
    handshakes_failed: Counter,
    connections_refused: Counter,
    spans_dropped: Counter,
    families: Families,
}

/// What is counted for one policy.
pub(crate) struct PolicyMetrics {
    cluster: Arc<str>,
    policy: Arc<str>,
    long_running: Gauge,
    retries: Counter,
    /// By the places of the rules.
    rules: RwLock<Vec<Histogram>>,
    answers: RwLock<HashMap<AnswerKind, Answers>>,
    /// Why answers have ended early.
    broken: Mutex<HashSet<&'static str>>,
    families: Families,
}

/// What is told apart among the answers of a policy.
#[derive(PartialEq, Eq, Hash)]
struct AnswerKind {
    endpoint: Option<Arc<str>>,
    verb: &'static str,
    code: u16,
}

/// How many there were, and the latencies of all answers of the endpoint.
#[derive(Clone)]
struct Answers {
    count: Counter,
    latency: Histogram,
}

impl PolicyMetrics {
    /// A watch, or another request that lasts, has begun (1) or ended (-1).
    pub(crate) fn long_running(&self, change: i64) {
        self.long_running.inc_by(change);
    }

    pub(crate) fn retried(&self) {
        self.retries.inc();
    }

    fn labels(&self) -> PolicyLabels {
        PolicyLabels { cluster: self.cluster.to_string(), policy: self.policy.to_string() }
    }

    fn rule_labels(&self, place: usize) -> RuleLabels {
        let rule = u32::try_from(place).expect("the number of rules is bounded far below");
        RuleLabels { cluster: self.cluster.to_string(), policy: self.policy.to_string(), rule }
    }

    /// The policy has so many rules from now on.
    fn set_rules(&self, count: usize) {
        let mut rules = self.rules.write();
        for place in count..rules.len() {
            self.families.rules.remove(&self.rule_labels(place));
        }
        rules.truncate(count);
        for place in rules.len()..count {
            rules.push(self.families.rules.get_or_create(&self.rule_labels(place)).clone());
        }
    }

    fn answers(&self, kind: AnswerKind) -> Answers {
        if let Some(answers) = self.answers.read().get(&kind) {
            return answers.clone();
        }
        let mut known = self.answers.write();
        if known.len() >= POLICY_ANSWER_KINDS_MAX {
            // Endpoints have come and gone for a long time. A count that begins anew is what Prometheus expects now and then.
            self.forget(&known);
            known.clear();
        }
        let (answers, latency) = self.answer_labels(&kind);
        let made = Answers {
            count: self.families.answers.get_or_create(&answers).clone(),
            latency: self.families.latencies.get_or_create(&latency).clone(),
        };
        known.entry(kind).or_insert(made).clone()
    }

    fn answer_labels(&self, kind: &AnswerKind) -> (AnswerLabels, EndpointLabels) {
        let (cluster, policy) = (self.cluster.to_string(), self.policy.to_string());
        let endpoint = kind.endpoint.as_deref().unwrap_or_default().to_owned();
        let latency = EndpointLabels { cluster: cluster.clone(), policy: policy.clone(), endpoint: endpoint.clone() };
        (AnswerLabels { cluster, policy, endpoint, verb: kind.verb, code: kind.code }, latency)
    }

    fn forget(&self, answers: &HashMap<AnswerKind, Answers>) {
        for kind in answers.keys() {
            let (answers, latency) = self.answer_labels(kind);
            self.families.answers.remove(&answers);
            self.families.latencies.remove(&latency);
        }
    }

    fn broke(&self, reason: &'static str) {
        self.broken.lock().insert(reason);
        self.families.broken.get_or_create(&self.end_labels(reason)).inc();
    }

    fn end_labels(&self, reason: &'static str) -> EndLabels {
        EndLabels { cluster: self.cluster.to_string(), policy: self.policy.to_string(), reason }
    }
}

impl Drop for PolicyMetrics {
    fn drop(&mut self) {
        let mut policies = self.families.policies.lock();
        let key = (self.cluster.clone(), self.policy.clone());
        // If the policy has come back this very moment, its labels are the new one's.
        if policies.get(&key).is_some_and(|counted| std::ptr::eq(counted.as_ptr(), self)) {
            policies.remove(&key);
            self.set_rules(0);
            self.forget(&self.answers.read());
            for reason in &*self.broken.lock() {
                self.families.broken.remove(&self.end_labels(reason));
            }
            let labels = self.labels();
            self.families.long_running.remove(&labels);
            self.families.retries.remove(&labels);
        }
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
            connections_refused: Counter::default(),
            spans_dropped: Counter::default(),
            families: Families {
                answers: Family::default(),
                latencies: Family::new_with_constructor(Latencies),
                rules: Family::new_with_constructor(RuleLatencies),
                long_running: Family::default(),
                broken: Family::default(),
                retries: Family::default(),
                policies: Arc::default(),
            },
        };
        {
            let registry = &mut *metrics.registry.lock();
            let registry = registry.sub_registry_with_prefix("kubegateway_proxy");
            let families = &metrics.families;
            registry.register("http_request_inflight", "Requests that are being answered", metrics.in_flight.clone());
            registry.register("connections", "Client connections", metrics.connections.clone());
            registry.register("upgraded_connections", "Upgraded connections", metrics.upgraded.clone());
            registry.register("handshakes_failed", "Failed TLS handshakes", metrics.handshakes_failed.clone());
            registry.register(
                "connections_refused",
                "Client connections that were closed because their address had as many as it may",
                metrics.connections_refused.clone(),
            );
            registry.register(
                "spans_dropped",
                "Spans of requests that the collector of traces did not take, or not in time",
                metrics.spans_dropped.clone(),
            );
            registry.register("apiserver_request", "Answered requests", families.answers.clone());
            registry.register(
                "apiserver_request_duration_seconds",
                "Time from a request to the end of its answer, of requests that do not last, by endpoint",
                families.latencies.clone(),
            );
            registry.register(
                "rule_request_duration_seconds",
                "The same by the place of the rule that took the request",
                families.rules.clone(),
            );
            registry.register(
                "registered_watchers",
                "Watches and other requests that last",
                families.long_running.clone(),
            );
            registry.register("apiserver_request_terminations", "Answers that ended early", families.broken.clone());
            registry.register("retries", "Further tries of requests", families.retries.clone());
        }
        Arc::new(metrics)
    }

    /// The counters of a policy with so many rules: those that there are, if it is counted for already.
    pub(crate) fn policy(&self, cluster: &Arc<str>, policy: &Arc<str>, rules: usize) -> Arc<PolicyMetrics> {
        let mut policies = self.families.policies.lock();
        let key = (cluster.clone(), policy.clone());
        let counted = policies.get(&key).and_then(Weak::upgrade);
        let counted = counted.unwrap_or_else(|| {
            let labels = PolicyLabels { cluster: cluster.to_string(), policy: policy.to_string() };
            let new = Arc::new(PolicyMetrics {
                cluster: cluster.clone(),
                policy: policy.clone(),
                long_running: self.families.long_running.get_or_create(&labels).clone(),
                retries: self.families.retries.get_or_create(&labels).clone(),
                rules: RwLock::default(),
                answers: RwLock::default(),
                broken: Mutex::default(),
                families: self.families.clone(),
            });
            policies.insert(key, Arc::downgrade(&new));
            new
        });
        // Not when it is dropped here, which would lock again: it is returned.
        counted.set_rules(rules);
        counted
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

    pub(crate) fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// What counts the spans that are lost.
    pub(crate) fn spans_dropped(&self) -> Counter {
        self.spans_dropped.clone()
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
            self.families.answers.get_or_create(&labels).inc();
            return;
        };
        let kind = AnswerKind { endpoint: record.endpoint.clone(), verb: record.verb, code: record.status };
        let answers = policy.answers(kind);
        answers.count.inc();
        if record.is_long_running {
            policy.long_running(-1);
        } else {
            let seconds = Instant::now().duration_since(record.begun).as_secs_f64();
            answers.latency.observe(seconds);
            // The rule may be gone since.
            if let Some(rule) = policy.rules.read().get(record.rule) {
                rule.observe(seconds);
            }
        }
        if record.end() != "finished" {
            policy.broke(record.end());
        }
    }

    /// All of them as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry.lock()).expect("a string takes all text");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access_log::{AccessLog, AccessLogTarget};

    fn request(metrics: &Arc<Metrics>, policy: &Arc<PolicyMetrics>, rule: usize, endpoint: &str) {
        let mut record = Record::new(metrics.clone(), AccessLog::start(&AccessLogTarget::Off).unwrap());
        record.policy = Some(policy.clone());
        record.rule = rule;
        record.endpoint = Some(endpoint.into());
        record.verb = "get";
        record.status = 200;
    }

    #[test]
    fn requests_are_counted_by_rule_and_endpoint_and_a_policy_that_is_gone_is_forgotten() {
        let metrics = Metrics::new();
        let cluster: Arc<str> = "a.test".into();
        let policy = metrics.policy(&cluster, &"reads".into(), 2);
        let other = metrics.policy(&cluster, &"others".into(), 1);
        for endpoint in ["https://a:1", "https://b:1", "https://a:1"] {
            request(&metrics, &policy, 1, endpoint);
        }
        request(&metrics, &other, 0, "https://a:1");
        let text = metrics.text();
        for line in [
            r#"kubegateway_proxy_apiserver_request_total{cluster="a.test",policy="reads",endpoint="https://a:1",verb="get",code="200"} 2"#,
            r#"kubegateway_proxy_apiserver_request_duration_seconds_count{cluster="a.test",policy="reads",endpoint="https://b:1"} 1"#,
            r#"kubegateway_proxy_rule_request_duration_seconds_count{cluster="a.test",policy="reads",rule="0"} 0"#,
            r#"kubegateway_proxy_rule_request_duration_seconds_count{cluster="a.test",policy="reads",rule="1"} 3"#,
            r#"kubegateway_proxy_apiserver_request_terminations_total{cluster="a.test",policy="reads",reason="abandoned"} 3"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        // A further configuration goes on counting.
        let again = metrics.policy(&cluster, &"reads".into(), 1);
        assert!(Arc::ptr_eq(&policy, &again) && !metrics.text().contains(r#"policy="reads",rule="1""#));
        drop(policy);
        assert!(metrics.text().contains("reads"));
        drop(again);
        assert!(!metrics.text().contains("reads") && metrics.text().contains("others"), "{}", metrics.text());
    }

    #[test]
    fn endpoints_that_come_and_go_do_not_add_up_for_ever() {
        let metrics = Metrics::new();
        let policy = metrics.policy(&"a.test".into(), &"all".into(), 1);
        for number in 0..POLICY_ANSWER_KINDS_MAX + 10 {
            request(&metrics, &policy, 0, &format!("https://10.0.0.1:{number}"));
        }
        let text = metrics.text();
        assert_eq!(
            text.lines().filter(|line| line.starts_with("kubegateway_proxy_apiserver_request_total")).count(),
            10
        );
    }
}
