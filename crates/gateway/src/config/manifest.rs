//! The `UpstreamCluster` of `proxy.kubegateway.io/v1alpha1`, as it is written.
//!
//! Every field of the original is here under its name and with its meaning, so its manifests are read unchanged. What
//! the original does not have says so. All fields may be left out; `validate` says which may not.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::values::{ByteSize, Data, DurationText, Percent};
use crate::policy::RuleSpec;

/// The API group and version of the manifests.
pub const API_VERSION: &str = "proxy.kubegateway.io/v1alpha1";
/// The kind of the manifests.
pub const KIND: &str = "UpstreamCluster";
/// The annotation that switches [`super::Features`].
pub const FEATURE_GATES: &str = "proxy.kubegateway.io/feature-gates";

/// One cluster of kube-apiservers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct UpstreamCluster {
    /// [`API_VERSION`].
    pub api_version: String,
    /// [`KIND`].
    pub kind: String,
    /// Name and annotations.
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: ClusterSpec,
    /// Written by a kube-apiserver, and ignored.
    pub status: IgnoredAny,
}

/// What every object of Kubernetes has. What only a kube-apiserver uses is ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Metadata {
    /// The host name by which clients reach the cluster.
    pub name: String,
    /// [`FEATURE_GATES`] is the only one with a meaning.
    pub annotations: BTreeMap<String, String>,
    /// No meaning here.
    pub labels: BTreeMap<String, String>,
    /// Must be left out: clusters are in no namespace.
    pub namespace: String,
    /// Ignored.
    pub generate_name: IgnoredAny,
    /// Ignored.
    pub uid: IgnoredAny,
    /// Ignored.
    pub resource_version: IgnoredAny,
    /// Ignored.
    pub generation: IgnoredAny,
    /// Ignored.
    pub creation_timestamp: IgnoredAny,
    /// Ignored.
    pub deletion_timestamp: IgnoredAny,
    /// Ignored.
    pub deletion_grace_period_seconds: IgnoredAny,
    /// Ignored.
    pub self_link: IgnoredAny,
    /// Ignored.
    pub owner_references: IgnoredAny,
    /// Ignored.
    pub finalizers: IgnoredAny,
    /// Ignored.
    pub managed_fields: IgnoredAny,
    /// Ignored.
    pub cluster_name: IgnoredAny,
}

/// What is wanted of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClusterSpec {
    /// The kube-apiservers.
    pub servers: Vec<Server>,
    /// How the gateway speaks to them, and as whom.
    pub client_config: ClientConfig,
    /// How clients speak to the gateway.
    pub secure_serving: SecureServing,
    /// Limits, by name.
    pub flow_control: FlowControl,
    /// What happens to requests; the first policy wins of which a rule matches.
    pub dispatch_policies: Vec<DispatchPolicySpec>,
    /// Access logs.
    pub logging: Logging,
    /// Who is let in at all. Not in the original.
    pub access: AccessSpec,
    /// Where the list of servers comes from. Not in the original.
    pub discovery: DiscoverySpec,
    /// How a kube-apiserver learns who asks. Not in the original.
    pub identity_mode: IdentityMode,
    /// Whether requests without credentials are let in, as `system:anonymous`. Not in the original, which let them in.
    pub anonymous: bool,
    /// How bearer tokens are checked. Not in the original.
    pub authentication: AuthenticationSpec,
    /// Whether negative values of rules mean what the original's code does. Not in the original.
    pub compat: Compat,
}

/// A kube-apiserver.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Server {
    /// Its URL: `https://host:port`.
    pub endpoint: String,
    /// Whether it must not be used.
    pub disabled: bool,
    /// Its share under the strategy `Weighted`, relative to the other servers' (1); 0 only if nothing else is left. Not
    /// in the original.
    pub weight: Option<u32>,
}

/// How the gateway speaks to kube-apiservers. Data and file of one thing exclude each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClientConfig {
    /// Whether the servers' certificates are not checked. For tests only.
    pub insecure: bool,
    /// The gateway's bearer token.
    pub bearer_token: Data,
    /// PEM: the key of the gateway's client certificate.
    pub key_data: Data,
    /// PEM: the gateway's client certificate.
    pub cert_data: Data,
    /// PEM: the roots of the servers' certificates.
    pub ca_data: Data,
    /// The most requests of the gateway itself (reviews) a second; 0 for no limit.
    pub qps: i32,
    /// The most such requests at once.
    pub burst: i32,
    /// Divides `qps`, for less than one request a second.
    pub qps_divisor: i32,
    /// The name that the servers' certificates are checked for, and that is sent as SNI; the cluster's name if left
    /// out.
    pub server_name: String,
    /// A file instead of `bearerToken`. Not in the original.
    pub token_file: String,
    /// A file instead of `keyData`. Not in the original.
    pub key_file: String,
    /// A file instead of `certData`. Not in the original.
    pub cert_file: String,
    /// A file instead of `caData`. Not in the original.
    pub ca_file: String,
}

/// How clients speak to the gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct SecureServing {
    /// PEM: the key of the certificate.
    pub key_data: Data,
    /// PEM: the certificate that clients see. The gateway's own if left out.
    pub cert_data: Data,
    /// PEM: the roots of client certificates.
    #[serde(rename = "clientCAData")]
    pub client_ca_data: Data,
    /// Further host names of the cluster. `*.x` stands for one label in front of `x` (not in the original).
    pub server_names: Vec<String>,
    /// A file instead of `keyData`. Not in the original.
    pub key_file: String,
    /// A file instead of `certData`. Not in the original.
    pub cert_file: String,
    /// A file instead of `clientCAData`. Not in the original.
    #[serde(rename = "clientCAFile")]
    pub client_ca_file: String,
    /// PEM or DER: revoked client certificates. Not in the original.
    pub crl_file: String,
}

/// Limits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FlowControl {
    /// Limits, by name.
    pub flow_control_schemas: Vec<FlowControlSchema>,
}

/// One limit, of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FlowControlSchema {
    /// Its name.
    pub name: String,
    /// No limit.
    pub exempt: Option<Exempt>,
    /// Requests at once.
    pub max_requests_inflight: Option<MaxRequestsInflight>,
    /// Requests a second.
    pub token_bucket: Option<TokenBucketSpec>,
    /// Requests at once, through all gateways together.
    pub global_max_requests_inflight: Option<MaxRequestsInflight>,
    /// Requests a second, through all gateways together.
    pub global_token_bucket: Option<TokenBucketSpec>,
    /// Whether the limit is this gateway's or that of all.
    pub strategy: LimitStrategy,
    /// What each user has besides. Not in the original.
    pub per_user: Option<PerUserSpec>,
}

/// No limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exempt {}

/// A limit of requests at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct MaxRequestsInflight {
    /// The most.
    pub max: i32,
}

/// A limit of requests a second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TokenBucketSpec {
    /// Requests a second.
    pub qps: i32,
    /// The most requests at once after a pause; not less than `qps`.
    pub burst: i32,
}

/// A limit of each user by itself, of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct PerUserSpec {
    /// Requests at once.
    pub max_requests_inflight: Option<MaxRequestsInflight>,
    /// Requests a second.
    pub token_bucket: Option<TokenBucketSpec>,
}

/// Whose limit it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum LimitStrategy {
    /// This gateway's.
    #[default]
    #[serde(rename = "local", alias = "")]
    Local,
    /// That of all gateways, which get shares of it.
    #[serde(rename = "globalAllocate")]
    GlobalAllocate,
    /// That of all gateways, counted in one place.
    #[serde(rename = "globalCount")]
    GlobalCount,
}

/// What happens to requests that one of the rules matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DispatchPolicySpec {
    /// How an endpoint is chosen.
    pub strategy: StrategySpec,
    /// The endpoints to choose from, of `servers`; all if left out.
    pub upstream_subset: Vec<String>,
    /// How the original's documentation spells `upstreamSubset`; its code ignores it.
    pub upsteam_subset: Vec<String>,
    /// The rules.
    pub rules: Vec<RuleSpec>,
    /// The limit; none if left out.
    pub flow_control_schema_name: String,
    /// Access logs.
    pub log_mode: LogMode,
    /// A name for logs and metrics. Not in the original.
    pub name: String,
    /// Which endpoints which share of the users has, instead of `upstreamSubset`. Not in the original.
    pub weights: Vec<WeightSpec>,
    /// Deadlines. Not in the original.
    pub timeouts: TimeoutsSpec,
    /// The longest body of a request. Not in the original.
    pub max_body_bytes: Option<ByteSize>,
    /// A static answer. Not in the original.
    pub degradation: Option<DegradationSpec>,
    /// When endpoints are not asked for a while. Not in the original.
    pub circuit_breaker: Option<CircuitBreakerSpec>,
}

/// How an endpoint is chosen. All but the first are not in the original.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum StrategySpec {
    /// One after another.
    #[default]
    #[serde(alias = "")]
    RoundRobin,
    /// The one with the least work in flight.
    LeastWork,
    /// The one that answers fastest.
    Latency,
    /// In proportion to the servers' `weight`.
    Weighted,
    /// The same for all requests of a user.
    Rendezvous,
}

/// A share of the users, for gray release: each user stays with its endpoints, among which the strategy chooses. While
/// the share of the first entry grows, no user leaves it; so what is new belongs first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WeightSpec {
    /// One endpoint, of `servers`.
    pub endpoint: String,
    /// Or several.
    pub subset: Vec<String>,
    /// The share; all together are 100.
    pub percent: Percent,
}

/// Deadlines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TimeoutsSpec {
    /// Of a request as a whole, from its head to the end of its answer. Not of watches, logs and upgrades.
    pub request: Option<DurationText>,
    /// Until one endpoint that has the whole request begins to answer.
    pub per_try: Option<DurationText>,
    /// Without a byte of an answer, or without a client reading it.
    pub idle: Option<DurationText>,
}

/// A static answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DegradationSpec {
    /// When it is given.
    pub mode: DegradationModeSpec,
    /// Its status; 503 if left out.
    pub status: Option<u16>,
    /// Its body.
    pub body: String,
    /// Its media type; `text/plain; charset=utf-8` if left out.
    pub content_type: String,
}

/// When a static answer is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DegradationModeSpec {
    /// While no endpoint can take the request.
    #[default]
    UpstreamDown,
    /// To every request.
    Always,
}

/// When endpoints are not asked for a while. What is left out is as in the parentheses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CircuitBreakerSpec {
    /// The share of failed requests (50).
    pub error_percent: Option<u8>,
    /// Requests within the window below which nothing happens (20).
    pub min_requests: Option<u32>,
    /// The window (10s).
    pub window: Option<DurationText>,
    /// For how long (5s).
    pub open_for: Option<DurationText>,
}

/// Access logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Logging {
    /// Of the whole cluster.
    pub mode: LogMode,
}

/// Whether there are access logs: `off` on either level wins, and then `on`; neither is off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum LogMode {
    /// As the other level says.
    #[default]
    #[serde(rename = "")]
    Unset,
    /// On.
    #[serde(rename = "on")]
    On,
    /// Off.
    #[serde(rename = "off")]
    Off,
}

/// Who is let in at all: a request that a `deny` rule matches is refused; if there are `allow` rules, so is one that
/// none matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AccessSpec {
    /// Who is let in; everyone if left out, nobody if empty.
    pub allow: Option<Vec<RuleSpec>>,
    /// Who is not.
    pub deny: Vec<RuleSpec>,
}

/// Where the list of servers comes from: one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DiscoverySpec {
    /// From `servers`, as without this field.
    #[serde(rename = "static")]
    pub from_servers: Option<StaticDiscovery>,
    /// From DNS.
    pub dns: Option<DnsDiscovery>,
    /// From a file.
    pub file: Option<FileDiscovery>,
}

/// The servers of the manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StaticDiscovery {}

/// The addresses of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DnsDiscovery {
    /// The name.
    pub name: String,
    /// The port.
    pub port: u16,
    /// How the servers are spoken to; with TLS if left out.
    pub scheme: SchemeSpec,
}

/// How servers are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SchemeSpec {
    /// With TLS.
    #[default]
    Https,
    /// In clear text.
    Http,
}

/// A file with a YAML list of servers, each as in `servers` or its URL alone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FileDiscovery {
    /// The file.
    pub path: String,
}

/// How a kube-apiserver learns who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IdentityMode {
    /// By impersonation: the gateway needs the right to impersonate, and no other.
    #[default]
    #[serde(alias = "")]
    Impersonate,
    /// By the front proxy's headers (`X-Remote-User`, …): cheaper for the kube-apiserver, but the gateway's key is as
    /// good as root.
    RequestHeader,
}

/// How bearer tokens are checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct AuthenticationSpec {
    /// By the cluster itself.
    pub token_review: TokenReviewSpec,
    /// The path of an `AuthenticationConfiguration` of Kubernetes: tokens of its issuers are checked here.
    pub configuration_file: String,
}

/// How a cluster is asked about tokens. What is left out is as in the parentheses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TokenReviewSpec {
    /// Whether it is not asked at all (false).
    pub disabled: bool,
    /// For how long a yes is believed, in seconds (10); 0 asks each time.
    pub cache_seconds: Option<u32>,
    /// For how long a no is believed, in seconds (10); 0 asks each time.
    pub failure_cache_seconds: Option<u32>,
    /// How long an answer is waited for, in seconds (2).
    pub timeout_seconds: Option<u32>,
    /// Audiences that a token may be meant for; the cluster's own if left out.
    pub audiences: Vec<String>,
}

/// Which behaviour of the original is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
pub enum Compat {
    /// What its documentation says.
    #[default]
    #[serde(rename = "")]
    Documented,
    /// What its code does.
    #[serde(rename = "kubegateway")]
    KubeGateway,
}

/// A server in a file of [`FileDiscovery`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DiscoveredServer(pub(super) Server);

impl<'de> Deserialize<'de> for DiscoveredServer {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> serde::de::Visitor<'de> for Either {
            type Value = DiscoveredServer;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a URL, or a mapping with an endpoint")
            }

            fn visit_str<E>(self, endpoint: &str) -> Result<DiscoveredServer, E> {
                Ok(DiscoveredServer(Server { endpoint: endpoint.to_owned(), ..Server::default() }))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, fields: A) -> Result<DiscoveredServer, A::Error> {
                Server::deserialize(serde::de::value::MapAccessDeserializer::new(fields)).map(DiscoveredServer)
            }
        }
        deserializer.deserialize_any(Either)
    }
}
