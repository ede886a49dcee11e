//! A cluster as it is served: everything parsed, checked and compiled.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};

pub use super::manifest::{IdentityMode, LimitStrategy};
pub use super::values::Scheme;
use crate::authentication::tls::ServerTlsSettings;
use crate::authentication::x509::ClientTrustSettings;
use crate::policy::{Access, Policies};

/// A cluster, compiled. Shared, and never changed.
#[derive(Debug)]
pub struct ClusterConfig {
    /// Its name, which is a host name too; in lower case.
    pub name: Arc<str>,
    /// The file that it comes from.
    pub file: Arc<Path>,
    /// The line at which it begins there.
    pub line: u32,
    /// Further host names, in lower case; `*.x` stands for one label in front of `x`.
    pub server_names: Box<[Box<str>]>,
    /// What its feature gates switch.
    pub features: Features,
    /// Its endpoints, by discovery from the manifest or from a file. Empty with discovery by DNS.
    pub endpoints: Box<[Arc<Endpoint>]>,
    /// Where the endpoints come from.
    pub discovery: Discovery,
    /// How the gateway speaks to them.
    pub client: Arc<UpstreamClient>,
    /// How clients speak to the gateway.
    pub serving: Arc<Serving>,
    /// How bearer tokens are checked, and whether requests need any.
    pub authentication: Arc<AuthenticationConfig>,
    /// How a kube-apiserver learns who asks.
    pub identity_mode: IdentityMode,
    /// Limits, in the order of the manifest; [`crate::policy::DispatchPolicy::flow_schema`] is a place in it.
    pub flow_schemas: Box<[Arc<FlowSchema>]>,
    /// Which policy takes a request.
    pub policies: Policies,
    /// Who is let in at all.
    pub access: Access,
    /// Changes with anything that the cluster's manifest says, and with the contents of the files that it names.
    pub fingerprint: u128,
}

impl ClusterConfig {
    /// The endpoint with this identity, `scheme://host:port`.
    #[must_use]
    pub fn endpoint(&self, id: &str) -> Option<&Arc<Endpoint>> {
        self.endpoints.iter().find(|endpoint| *endpoint.id == *id)
    }
}

/// Switches in the annotation `proxy.kubegateway.io/feature-gates`. All are off without it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features {
    /// Whether a connection is closed once it has no request.
    pub close_connection_when_idle: bool,
    /// Whether every request is refused.
    pub deny_all_requests: bool,
    /// Whether limits of all gateways together are on.
    pub global_rate_limiter: bool,
    /// Whether requests are traced.
    pub tracing: bool,
}

/// A kube-apiserver.
#[derive(Debug)]
pub struct Endpoint {
    /// `scheme://host:port`, which nothing else in the cluster has.
    pub id: Arc<str>,
    /// How it is spoken to.
    pub scheme: Scheme,
    /// A DNS name in lower case, or an IP address without brackets.
    pub host: Box<str>,
    /// The IP address, if the host is one.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// `host:port`, with brackets around an IPv6 address.
    pub authority: Box<str>,
    /// Whether it must not be used.
    pub disabled: bool,
    /// Its share under the strategy `Weighted`, relative to the other endpoints'.
    pub weight: u32,
    /// Changes with anything that a connection to it depends on: itself, and the client's TLS settings. Not with the
    /// token.
    pub connection_fingerprint: u128,
}

/// Where endpoints come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Discovery {
    /// From the manifest.
    #[default]
    Static,
    /// From DNS: each address of the name is an endpoint.
    Dns {
        /// The name.
        name: Arc<str>,
        /// The port.
        port: u16,
        /// How they are spoken to.
        scheme: Scheme,
    },
    /// From a file, which is read again when it changes.
    File(PathBuf),
}

/// How the gateway speaks to kube-apiservers.
#[derive(Debug)]
pub struct UpstreamClient {
    /// Whether certificates of servers are not checked.
    pub insecure: bool,
    /// The roots of the servers' certificates; `None` if they are not checked, or in clear text.
    pub roots: Option<Arc<RootCertStore>>,
    /// The gateway's client certificate with its key.
    pub certificate: Option<Arc<CertifiedKey>>,
    /// The same as PEM texts.
    pub pem: ClientPem,
    /// The gateway's bearer token.
    pub token: Option<BearerToken>,
    /// What servers' certificates are checked for, and sent as SNI.
    pub server_name: ServerName<'static>,
    /// The most requests of the gateway itself; `None` for no limit.
    pub own_requests: Option<OwnRequests>,
    /// Changes with what TLS depends on.
    pub tls_fingerprint: u128,
    /// Changes with anything above.
    pub fingerprint: u128,
}

/// PEM texts of [`UpstreamClient`], which have been checked. Never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ClientPem {
    /// The roots of the servers' certificates.
    pub ca: Option<Box<[u8]>>,
    /// The gateway's client certificate.
    pub certificate: Option<Box<[u8]>>,
    /// Its key.
    pub key: Option<Box<[u8]>>,
}

impl fmt::Debug for ClientPem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("ClientPem")
    }
}

/// A limit of the gateway's own requests (reviews) to a cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OwnRequests {
    /// Requests a second.
    pub per_second: f64,
    /// The most at once after a pause.
    pub burst: u32,
}

/// A bearer token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(Box<str>);

impl BearerToken {
    /// `None` if the token has characters that no header may have, or none at all.
    pub(super) fn new(token: &str) -> Option<Self> {
        if token.is_empty() || token.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return None;
        }
        Some(Self(token.into()))
    }

    /// The token alone. Secret.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("BearerToken")
    }
}

/// How clients speak to the gateway about one cluster.
#[derive(Debug)]
pub struct Serving {
    /// The certificate with its key; `None` for the gateway's own.
    pub certificate: Option<Arc<CertifiedKey>>,
    /// Whose client certificates are believed; `None` for the gateway's own.
    pub client_trust: Option<Arc<ClientTrust>>,
    /// The same as PEM texts.
    pub pem: ServingPem,
    /// Changes with anything above.
    pub fingerprint: u128,
}

/// What a TLS server of the gateway is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServingPem {
    /// The certificate with its key; `None` for the gateway's own.
    pub certificate: Option<ServerTlsSettings>,
    /// Whose client certificates are believed; `None` for the gateway's own.
    pub client_trust: Option<ClientTrustSettings>,
}

impl ServingPem {
    /// These, and the others' where there is none.
    #[must_use]
    pub fn or(&self, others: &Self) -> Self {
        Self {
            certificate: self.certificate.as_ref().or(others.certificate.as_ref()).cloned(),
            client_trust: self.client_trust.as_ref().or(others.client_trust.as_ref()).cloned(),
        }
    }
}

/// Whose client certificates are believed.
#[derive(Debug)]
pub struct ClientTrust {
    /// The roots.
    pub roots: Arc<RootCertStore>,
    /// The roots' certificates, for the hint that a client gets.
    pub certificates: Vec<CertificateDer<'static>>,
    /// Lists of revoked certificates.
    pub revocations: Vec<CertificateRevocationListDer<'static>>,
    /// Changes with anything above: a chain that was believed before must be checked again.
    pub fingerprint: u128,
}

/// How bearer tokens are checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AuthenticationConfig {
    /// By the cluster itself; `None` if it is not asked.
    pub token_review: Option<TokenReviewConfig>,
    /// The `AuthenticationConfiguration` of Kubernetes, unread.
    pub configuration: Option<FileContents>,
    /// Whether requests without credentials are let in.
    pub anonymous: bool,
}

/// A file with what was in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileContents {
    /// Its path.
    pub path: PathBuf,
    /// What was in it.
    pub contents: Arc<[u8]>,
}

/// How a cluster is asked about tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenReviewConfig {
    /// For how long a yes is believed.
    pub cache: Duration,
    /// For how long a no is believed.
    pub failure_cache: Duration,
    /// How long an answer is waited for.
    pub timeout: Duration,
    /// Audiences that a token may be meant for; none means the cluster's own.
    pub audiences: Vec<String>,
}

/// A limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlowSchema {
    /// Its name.
    pub name: Arc<str>,
    /// What this gateway lets through.
    pub limit: Limit,
    /// What all gateways together let through; they do not count together yet.
    pub global: Option<Limit>,
    /// Whose limit counts.
    pub strategy: LimitStrategy,
    /// What each user may have besides.
    pub per_user: Option<PerUserLimit>,
    /// Changes with anything above.
    pub fingerprint: u128,
}

/// How much is let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Everything.
    Exempt,
    /// So many requests at once.
    MaxRequestsInflight(u32),
    /// So many requests a second.
    TokenBucket(TokenBucket),
}

/// Requests a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenBucket {
    /// Requests a second; at least 1.
    pub per_second: u32,
    /// The most at once after a pause; not less.
    pub burst: u32,
}

/// What each user may have. One of the two is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PerUserLimit {
    /// Requests at once.
    pub inflight_max: Option<u32>,
    /// Requests a second.
    pub token_bucket: Option<TokenBucket>,
}
