//! A cluster at work: what its configuration says, joined with what lives on from one configuration to the next.
//!
//! Invariant: a [`Cluster`] never changes. A new configuration makes a new one that shares with the old what keeps its meaning (connections
//! and health, remembered verdicts, counts of limits, TLS sessions), so that a request which began with the old one ends with it, and nothing
//! is forgotten that need not be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kubewharf_foundation::clock::Clock;
use kubewharf_upstream::{
    Address, BearerToken, ClientTls, ClientTlsFiles, EndpointId, EndpointSet, EndpointSettings, RetryBudget,
    RetryBudgetSettings, Upstream, UpstreamSettings,
};
use rustls_pki_types::UnixTime;

use crate::authentication::cache::VerdictTimes;
use crate::authentication::impersonation::Impersonator;
use crate::authentication::jwt::configuration::AuthenticationConfiguration;
use crate::authentication::jwt::{JwtAuthenticators, over_https};
use crate::authentication::tls::ServerTls;
use crate::authentication::x509::ClientTrust;
use crate::authentication::{AnonymousSettings, AuthenticationSettings, Authenticator};
use crate::config::{self, ClusterConfig, Snapshot};
use crate::identity;
use crate::limit::breaker::{Breaker, BreakerKey, BreakerSettings, Breakers};
use crate::limit::{FlowLimit, Limits, Schema, SchemaSettings};
use crate::metrics::Metrics;
use crate::metrics::PolicyMetrics;
use crate::policy;
use crate::reviewer::ClusterReviewer;

/// What the gateway has for all clusters that have none of their own.
#[derive(Clone, Default)]
pub(crate) struct Defaults {
    /// Certificate and authorities for clients of clusters without their own.
    pub(crate) serving: config::ServingPem,
}

/// What every cluster is built with.
pub(crate) struct Common {
    pub(crate) defaults: Defaults,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Common {
    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_millis(self.clock.wall_ms()))
    }
}

/// A policy at work.
pub(crate) struct PolicyAtWork {
    /// Its flow control schema; `None` for no limit.
    pub(crate) schema: Option<Arc<Schema>>,
    pub(crate) breaker: Option<Arc<Breaker>>,
    /// The endpoints of its subset.
    pub(crate) subset: Option<EndpointSet>,
    /// The endpoints of each arm of its weights.
    pub(crate) arms: Vec<EndpointSet>,
    pub(crate) metrics: Arc<PolicyMetrics>,
}

/// A cluster at work.
pub(crate) struct Cluster {
    pub(crate) config: Arc<ClusterConfig>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) authenticator: Authenticator,
    pub(crate) impersonator: Impersonator,
    pub(crate) identity_mode: identity::Mode,
    /// How clients are served with TLS; `None` if there is no certificate for it.
    pub(crate) tls: Option<Arc<ServerTls>>,
    pub(crate) trust: Option<Arc<ClientTrust>>,
    /// By the places of the policies.
    pub(crate) policies: Vec<PolicyAtWork>,
    pub(crate) retries: Arc<RetryBudget>,
    limits: Limits,
    breakers: Breakers,
    jwt: Option<Arc<JwtAuthenticators>>,
}

/// Something in a cluster's configuration that can't be used.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) field: &'static str,
    pub(crate) problem: String,
}

/// What could not be used so far.
struct Problems(Vec<Unusable>);

impl Problems {
    /// What was made, or nothing and its problem noted.
    fn keep<T>(&mut self, field: &'static str, made: Result<T, impl std::fmt::Display>) -> Option<T> {
        made.map_err(|error| self.0.push(Unusable { field, problem: error.to_string() })).ok()
    }
}

fn jwt_of(file: &config::FileContents, common: &Common) -> Result<Arc<JwtAuthenticators>, String> {
    let text = std::str::from_utf8(&file.contents).map_err(|_| "it is not UTF-8".to_owned())?;
    let configuration = AuthenticationConfiguration::parse(text, &file.path.display().to_string())
        .map_err(|error| error.to_string())?;
    JwtAuthenticators::new(&configuration.issuers, common.clock.clone(), &over_https).map_err(|error| error.to_string())
}

/// The parts of a cluster that may be refused, made before anything of the configuration is in use.
pub(crate) struct Prepared {
    trust: Option<Arc<ClientTrust>>,
    tls: Option<Arc<ServerTls>>,
    jwt: Option<Arc<JwtAuthenticators>>,
    client_tls: Option<ClientTls>,
    bearer_token: Option<BearerToken>,
}

impl Prepared {
    /// Makes them; what `old` has and what has not changed is taken from there.
    pub(crate) fn new(config: &ClusterConfig, old: Option<&Cluster>, common: &Common) -> Result<Self, Vec<Unusable>> {
        let mut problems = Problems(Vec::new());
        let serving = config.serving.pem.or(&common.defaults.serving);
        let trust = serving.client_trust.and_then(|settings| {
            let made = match old.and_then(|old| old.trust.as_ref()) {
                Some(old) => old.update(settings, common.now()),
                None => ClientTrust::new(settings, common.now()),
            };
            problems.keep("spec.secureServing.clientCAData", made)
        });
        let tls = serving.certificate.and_then(|settings| {
            let made = match old.and_then(|old| old.tls.as_ref()) {
                Some(old) => old.update(settings, trust.clone()),
                None => ServerTls::new(settings, trust.clone()),
            };
            problems.keep("spec.secureServing", made)
        });
        let jwt = config.authentication.configuration.as_ref().and_then(|file| {
            let same = old.filter(|old| old.config.authentication.configuration.as_ref() == Some(file));
            if let Some(jwt) = same.and_then(|old| old.jwt.clone()) {
                return Some(jwt);
            }
            problems.keep("spec.authentication.configurationFile", jwt_of(file, common))
        });
        let client = &config.client;
        let files = ClientTlsFiles {
            ca_pem: client.pem.ca.as_deref(),
            certificate_pem: client.pem.certificate.as_deref(),
            key_pem: client.pem.key.as_deref(),
            server_name: Some(&client.server_name.to_str()),
            insecure: client.insecure,
        };
        let client_tls = problems.keep("spec.clientConfig", ClientTls::new(&files));
        let bearer_token = client
            .token
            .as_ref()
            .and_then(|token| problems.keep("spec.clientConfig.bearerToken", BearerToken::new(token.reveal())));
        let Problems(problems) = problems;
        if problems.is_empty() { Ok(Self { trust, tls, jwt, client_tls, bearer_token }) } else { Err(problems) }
    }
}

impl Cluster {
    /// The cluster of this configuration, which goes on from `old`, the one before it.
    pub(crate) fn new(
        config: Arc<ClusterConfig>,
        prepared: Prepared,
        old: Option<&Cluster>,
        common: &Common,
    ) -> Arc<Self> {
        let Prepared { trust, tls, jwt, client_tls, bearer_token } = prepared;
        let settings = UpstreamSettings {
            tls: client_tls,
            bearer_token,
            endpoints: config.endpoints.iter().map(|endpoint| endpoint_settings(endpoint)).collect(),
            ..UpstreamSettings::new(&*config.name)
        };
        let upstream = match old {
            Some(old) => {
                match config.discovery {
                    // What DNS has found stays until it says something else.
                    config::Discovery::Dns { .. } if old.config.discovery == config.discovery => {
                        old.upstream.update_all_but_endpoints(settings);
                    }
                    _ => old.upstream.update(settings),
                }
                old.upstream.clone()
            }
            None => Upstream::new(settings),
        };
        let reviewer = Arc::new(ClusterReviewer::new(upstream.clone(), config.client.own_requests));
        let authentication = authentication_settings(&config.authentication);
        let timeout = authentication.review_timeout;
        let authenticator = match old {
            Some(old) => old.authenticator.update(authentication, trust.clone(), jwt.clone(), reviewer.clone()),
            None => {
                Authenticator::new(authentication, trust.clone(), jwt.clone(), reviewer.clone(), common.clock.clone())
            }
        };
        let times = VerdictTimes::default();
        let impersonator = match old {
            Some(old) => old.impersonator.update(times, timeout, reviewer, common.clock.clone()),
            None => Impersonator::new(times, timeout, reviewer, common.clock.clone()),
        };
        let schemas: Vec<_> = config.flow_schemas.iter().map(|schema| schema_settings(schema)).collect();
        let limits = match old {
            Some(old) => old.limits.update(&schemas),
            None => Limits::new(&schemas),
        };
        let policies = config.policies.policies();
        let wanted = policies.iter().filter_map(|policy| {
            let settings = breaker_settings(policy.circuit_breaker.as_ref()?);
            Some((BreakerKey { policy: policy.name.to_string(), endpoint: None }, settings))
        });
        let breakers = match old {
            Some(old) => old.breakers.update(wanted),
            None => Breakers::new(wanted),
        };
        let policies = policies
            .iter()
            .map(|policy| PolicyAtWork {
                schema: policy
                    .flow_schema
                    .and_then(|place| config.flow_schemas.get(place))
                    .and_then(|schema| limits.schema(&schema.name).cloned()),
                breaker: breakers.get(&BreakerKey { policy: policy.name.to_string(), endpoint: None }).cloned(),
                subset: policy.subset.as_deref().map(endpoint_set),
                arms: policy
                    .weights
                    .iter()
                    .flat_map(policy::Weights::arms)
                    .map(|arm| endpoint_set(&arm.endpoints))
                    .collect(),
                metrics: common.metrics.policy(&config.name, &policy.name, config.policies.rules(policy.place).len()),
            })
            .collect();
        let retries = match old {
            Some(old) => old.retries.clone(),
            None => Arc::new(RetryBudget::new(RetryBudgetSettings::default())),
        };
        let identity_mode = match config.identity_mode {
            config::IdentityMode::Impersonate => identity::Mode::Impersonate,
            config::IdentityMode::RequestHeader => identity::Mode::RequestHeader,
        };
        Arc::new(Self {
            config,
            upstream,
            authenticator,
            impersonator,
            identity_mode,
            tls,
            trust,
            policies,
            retries,
            limits,
            breakers,
            jwt,
        })
    }

    /// All flow control schemas, for the administrator.
    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }
}

fn endpoint_settings(endpoint: &config::Endpoint) -> EndpointSettings {
    EndpointSettings {
        address: Address {
            https: endpoint.scheme == config::Scheme::Https,
            host: endpoint.host.to_string(),
            port: endpoint.port,
        },
        disabled: endpoint.disabled,
        weight: endpoint.weight,
    }
}

fn endpoint_set(urls: &[Arc<str>]) -> EndpointSet {
    EndpointSet::new(urls.iter().map(|url| EndpointId::of_url(url)))
}

fn authentication_settings(config: &config::AuthenticationConfig) -> AuthenticationSettings {
    let mut settings = AuthenticationSettings {
        anonymous: AnonymousSettings { enabled: config.anonymous, paths: Vec::new() },
        ..AuthenticationSettings::default()
    };
    if let Some(review) = &config.token_review {
        settings.audiences.clone_from(&review.audiences);
        settings.tokens.success_ttl = review.cache;
        settings.tokens.failure_ttl = review.failure_cache;
        settings.review_timeout = review.timeout;
    }
    settings
}

fn schema_settings(schema: &config::FlowSchema) -> SchemaSettings {
    let per_user = match schema.per_user {
        None => FlowLimit::Exempt,
        Some(config::PerUserLimit { inflight_max: Some(max), .. }) => FlowLimit::MaxRequestsInflight { max },
        Some(config::PerUserLimit { token_bucket: Some(bucket), .. }) => {
            FlowLimit::TokenBucket { qps: bucket.per_second, burst: bucket.burst }
        }
        Some(config::PerUserLimit { inflight_max: None, token_bucket: None }) => FlowLimit::Exempt,
    };
    SchemaSettings { name: schema.name.to_string(), limit: flow_limit(schema.limit), per_user }
}

fn flow_limit(limit: config::Limit) -> FlowLimit {
    match limit {
        config::Limit::Exempt => FlowLimit::Exempt,
        config::Limit::MaxRequestsInflight(max) => FlowLimit::MaxRequestsInflight { max },
        config::Limit::TokenBucket(bucket) => FlowLimit::TokenBucket { qps: bucket.per_second, burst: bucket.burst },
    }
}

fn breaker_settings(breaker: &policy::CircuitBreaker) -> BreakerSettings {
    BreakerSettings {
        failure_percent: u32::from(breaker.error_percent),
        requests_min: breaker.requests_min,
        window: breaker.window,
        open: breaker.open,
        ..BreakerSettings::default()
    }
}

/// All clusters at work, for one snapshot of the configuration.
pub(crate) struct Clusters {
    pub(crate) snapshot: Arc<Snapshot>,
    clusters: HashMap<Arc<str>, Arc<Cluster>>,
}

impl Clusters {
    /// None.
    pub(crate) fn empty() -> Self {
        Self { snapshot: Arc::default(), clusters: HashMap::new() }
    }

    /// The clusters of a snapshot, which go on from these. What of it has changed must be among the prepared.
    pub(crate) fn next(
        &self,
        snapshot: Arc<Snapshot>,
        mut prepared: HashMap<Arc<str>, Prepared>,
        common: &Common,
    ) -> Self {
        let clusters = snapshot.clusters().iter().filter_map(|(name, config)| {
            let old = self.clusters.get(name);
            let cluster = match (old, prepared.remove(name)) {
                (_, Some(prepared)) => Cluster::new(config.clone(), prepared, old.map(|old| &**old), common),
                // As it is; and what is not prepared after all must not cost the cluster that is at work.
                (Some(old), None) => old.clone(),
                (None, None) => return None,
            };
            Some((name.clone(), cluster))
        });
        let clusters = clusters.collect();
        Self { snapshot, clusters }
    }

    /// The cluster at work of a configuration.
    pub(crate) fn of(&self, config: &ClusterConfig) -> Option<&Arc<Cluster>> {
        self.clusters.get(&config.name)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// Whether exactly this configuration is at work.
    pub(crate) fn has(&self, config: &Arc<ClusterConfig>) -> bool {
        self.of(config).is_some_and(|cluster| Arc::ptr_eq(&cluster.config, config))
    }

    /// All of them, by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Cluster>> {
        self.snapshot.clusters().keys().filter_map(|name| self.clusters.get(name))
    }
}
