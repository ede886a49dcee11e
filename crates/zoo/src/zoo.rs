//! Zoo as a whole: what it is told, and how it starts.
//!
//! Invariant: clients are served only when what zoo needs upstream is installed there.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use http::Method;
use kubewharf_foundation::tls::{ClientAuth, ReloadingTls, ServerTls};
use kubewharf_foundation::{Error as FoundationError, Shutdown};
use kubewharf_upstream::SettingsError;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::admin::{Admin, AdminClient};
use crate::authz::roles::Kind;
use crate::certificates::{Authority, CertificateError};
use crate::discovery::{self, Discovery};
use crate::front::{Addresses, Front, Timeouts};
use crate::kubeconfig::{Kubeconfig, KubeconfigError};
use crate::limits::{GATHERS_AT_ONCE, OWN_ANSWER_BYTES_MAX};
use crate::list::Sealer;
use crate::metrics::Metrics;
use crate::mounted::Mounted;
use crate::private;
use crate::proxy::{Client, Proxy};
use crate::tenant::mutation::Access;
use crate::tenant::{Tenants, crd, roots};
use crate::tokens::Tokens;
use crate::upstream::{Upstream, UpstreamError};
use crate::watch::Hubs;

/// Where zoo tells, in the host, how it is reached.
pub const INFORMATION_PATH: &str = "/api/v1/namespaces/kube-system/configmaps/kubewharf-zoo";

/// What zoo is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How the apiserver behind is reached, with rights to all that tenants have, to install, and to act as others.
    pub upstream_kubeconfig: PathBuf,
    /// Where tenants' clients connect.
    pub listen: SocketAddr,
    /// Where administrators connect.
    pub admin_listen: SocketAddr,
    /// Where the authority and zoo's own certificate are kept.
    pub data_dir: PathBuf,
    /// What tenants find their API under; the listening address if none.
    pub external_url: Option<String>,
    /// Storage classes of the host that tenants may use; all if none is named.
    pub storage_classes: Vec<String>,
    /// The certificate and key that zoo shows (PEM files), instead of one by its own authority.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Client connections at once from one address, or from one /64 of IPv6; 0: as many as all may be.
    pub connections_per_address_max: usize,
}

/// Why zoo does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The kubeconfig can't be used.
    #[error("--upstream-kubeconfig: {0}")]
    Kubeconfig(#[from] KubeconfigError),
    /// What it says can't be used.
    #[error("--upstream-kubeconfig: {0}")]
    Upstream(#[from] SettingsError),
    /// The folder can't be used.
    #[error("--data-dir: {0}")]
    Authority(#[from] CertificateError),
    /// A certificate can't be used.
    #[error(transparent)]
    Tls(#[from] FoundationError),
    /// An address can't be had.
    #[error("can't listen at {address}: {error}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// What is needed upstream can't be installed.
    #[error("the apiserver behind: {0}")]
    Install(#[from] UpstreamError),
}

#[derive(Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: std::collections::HashMap<String, String>,
}

/// Serves until the shutdown.
///
/// # Errors
/// When it can't start.
pub async fn run(options: Options, shutdown: Shutdown) -> Result<(), StartError> {
    let kubeconfig = Kubeconfig::read(&options.upstream_kubeconfig)?;
    let upstream = Arc::new(Upstream::new(&kubeconfig)?);
    std::fs::create_dir_all(&options.data_dir)
        .map_err(|error| CertificateError::File { path: options.data_dir.clone(), error })?;
    let authority = Arc::new(Authority::open(&options.data_dir)?);
    let listener = bind(options.listen).await?;
    let admin_listener = bind(options.admin_listen).await?;
    let (address, admin_address) = (local(&listener)?, local(&admin_listener)?);
    let server = options.external_url.clone().unwrap_or_else(|| format!("https://{address}"));
    let (certificate, key) = match &options.tls {
        Some(pair) => pair.clone(),
        None => {
            let pair = (options.data_dir.join("zoo.crt"), options.data_dir.join("zoo.key"));
            authority.serve_as(own_names(address, admin_address, &server), &pair.0, &pair.1)?;
            pair
        }
    };
    let (host, port) = advertised(&server, address);
    let access = Access { host, port, authority: authority.certificate_pem().to_owned() };
    crd::install(&upstream, &options.storage_classes, &access).await?;
    let client_ca = options.data_dir.join("upstream-client-ca.crt");
    let administrators = find_administrators(&upstream).await?;
    let has_client_ca = administrators.is_some();
    if let Some(pem) = administrators {
        std::fs::write(&client_ca, pem).map_err(|error| CertificateError::File { path: client_ca.clone(), error })?;
    }
    let tls = |client_ca: Option<PathBuf>| {
        let mut settings = ServerTls::new(&certificate, &key);
        settings.client_auth = if client_ca.is_some() { ClientAuth::Optional } else { ClientAuth::None };
        settings.client_ca = client_ca;
        ReloadingTls::load(settings)
    };
    let tenants_tls = tls(Some(options.data_dir.join("ca.crt")))?;
    let admin_tls = tls(has_client_ca.then_some(client_ca))?;
    publish(&upstream, &server, &format!("https://{admin_address}"), authority.certificate_pem()).await?;

    let tenants = Tenants::new(upstream.clone(), address.port());
    let hubs = Hubs::new(upstream.clone(), tenants.clone());
    let metrics = Arc::new(Metrics::new(tenants.clone(), hubs.clone()));
    let sealer = Sealer::new(&authority.secret("continue tokens"));
    let public_address = server.split_once("://").map_or(server.as_str(), |(_, address)| address).trim_end_matches('/');
    let discovery = Discovery::new(upstream.clone(), discovery::Settings::new(public_address));
    let columns = Default::default();
    let tokens = Tokens::open(&options.data_dir.join("tokens.key"))?;
    let proxy = Arc::new(Proxy {
        tenants: tenants.clone(),
        upstream: upstream.clone(),
        sealer,
        hubs,
        discovery,
        columns,
        tokens,
        mounted: Mounted::new(),
        server: server.clone(),
        gathers: Semaphore::new(GATHERS_AT_ONCE),
    });
    let followers = Kind::ALL.map(|kind| tokio::spawn(private::follow(kind, upstream.clone(), tenants.clone())));
    let upstream_of_roots = upstream.clone();
    let admin = Arc::new(Admin { tenants: tenants.clone(), upstream, authority, metrics, server: server.clone() });
    let addresses = Addresses::new(options.connections_per_address_max);
    let front = Arc::new(Front {
        connect: Box::new(move |identity, address| Arc::new(Client::new(proxy.clone(), identity, address))),
        tls: tenants_tls.clone(),
        addresses: addresses.clone(),
        timeouts: Timeouts::default(),
        shutdown: shutdown.clone(),
    });
    let admin_front = Arc::new(Front {
        connect: Box::new(move |identity, address| Arc::new(AdminClient { admin: admin.clone(), identity, address })),
        tls: admin_tls.clone(),
        addresses,
        timeouts: Timeouts::default(),
        shutdown: shutdown.clone(),
    });
    let background = [
        tokio::spawn(async move { match tenants.follow().await {} }),
        tokio::spawn(async move { roots::renew(&upstream_of_roots, &access.authority).await }),
        tokio::spawn(async move { report(tenants_tls.watch().await) }),
        tokio::spawn(async move { report(admin_tls.watch().await) }),
    ];
    tracing::info!(%server, admin = %admin_address, "ready to serve tenants");
    kubewharf_foundation::systemd::ready();
    tokio::join!(front.listen(listener), admin_front.listen(admin_listener));
    for task in background {
        task.abort();
    }
    for task in followers {
        task.abort();
    }
    Ok(())
}

fn report(ended: Result<std::convert::Infallible, FoundationError>) {
    let Err(error) = ended;
    tracing::error!(%error, "certificates are not looked at any more");
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Listen { address, error })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Listen { address: ([0, 0, 0, 0], 0).into(), error })
}

/// The host and port at which pods find their tenant's API: as all clients do.
fn advertised(server: &str, address: SocketAddr) -> (String, u16) {
    let uri = server.parse::<http::Uri>().ok();
    match uri.as_ref().and_then(|uri| Some((uri.host()?, uri.port_u16().unwrap_or(443)))) {
        Some((host, port)) => (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port),
        None => (address.ip().to_string(), address.port()),
    }
}

/// What zoo's own certificate must name.
fn own_names(address: SocketAddr, admin: SocketAddr, server: &str) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
    ];
    names.extend([address, admin].map(|address| address.ip().to_string()));
    if let Some(host) = server.parse::<http::Uri>().ok().as_ref().and_then(http::Uri::host) {
        names.push(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    }
    names.sort();
    names.dedup();
    names
}

/// The authority of the clients that the apiserver behind knows by certificate, as it tells its extensions.
async fn find_administrators(upstream: &Upstream) -> Result<Option<String>, UpstreamError> {
    let path = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication";
    match upstream.own_json::<ConfigMap>(Method::GET, path, &Value::Null, OWN_ANSWER_BYTES_MAX).await {
        Ok(mut map) => Ok(map.data.remove("client-ca-file")),
        Err(error) if error.status() == Some(http::StatusCode::NOT_FOUND) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells, in the host, where zoo is.
async fn publish(upstream: &Upstream, server: &str, admin: &str, authorities: &str) -> Result<(), UpstreamError> {
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "kubewharf-zoo", "namespace": "kube-system" },
        "data": { "server": server, "admin": admin, "ca.crt": authorities },
    });
    crd::apply(upstream, INFORMATION_PATH, &map).await
}
