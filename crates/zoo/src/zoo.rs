//! Zoo as a whole: what it is told, and how it starts.
//!
//! Invariant: clients are served only when what zoo needs upstream is installed there.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use kubewharf_foundation::tls::{ClientAuth, ReloadingTls, ServerTls};
use kubewharf_foundation::{Error as FoundationError, Shutdown};
use kubewharf_front::{Addresses, Server, Timeouts};
use kubewharf_upstream::SettingsError;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::admin::{Admin, AdminClient};
use crate::authz::roles::Kind;
use crate::certificates::{Authority, CertificateError};
use crate::discovery::{self, Discovery};
use crate::front::Front;
use crate::kubeconfig::{Kubeconfig, KubeconfigError};
use crate::limits::{DRAIN_TIMEOUT, GATHERS_AT_ONCE, OWN_ANSWER_BYTES_MAX};
use crate::list::Sealer;
use crate::metrics::Metrics;
use crate::mounted::Mounted;
use crate::private;
use crate::proxy::{Client, Proxy};
use crate::tenant::mutation::Access;
use crate::tenant::{Tenants, check_address, crd, roots};
use crate::tokens::Tokens;
use crate::upstream::{Upstream, UpstreamError};
use crate::watch::Hubs;

/// Where zoo tells, in the host, how it is reached.
pub const INFORMATION_PATH: &str = "/api/v1/namespaces/kube-system/configmaps/kubewharf-zoo";

/// How long the end of this zoo may take after its clients' connections have ended.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// The address at which others reach this zoo at its listener's port, such as pods; found out if none.
    pub advertise_address: Option<IpAddr>,
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
    /// An address can't be told to others.
    #[error("--advertise-address={address}: {problem}")]
    Advertise {
        /// Which.
        address: IpAddr,
        /// Why not.
        problem: &'static str,
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
    let listener = bind(options.listen)?;
    let admin_listener = bind(options.admin_listen)?;
    let (address, admin_address) = (local(&listener)?, local(&admin_listener)?);
    let advertised = find_advertised(options.advertise_address, address, &kubeconfig.server).await?;
    let server = options.external_url.clone().unwrap_or_else(|| format!("https://{address}"));
    let (certificate, key) = match &options.tls {
        Some(pair) => pair.clone(),
        None => {
            let pair = (options.data_dir.join("zoo.crt"), options.data_dir.join("zoo.key"));
            authority.serve_as(own_names(address, admin_address, advertised, &server), &pair.0, &pair.1)?;
            pair
        }
    };
    let (host, port) = place_for_pods(options.external_url.as_deref(), advertised.unwrap_or(address));
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

    let tenants = Tenants::new(upstream.clone(), address.port(), own_identity());
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
    let election = {
        let (leadership, upstream, shutdown) = (tenants.leadership().clone(), upstream.clone(), shutdown.clone());
        tokio::spawn(async move { leadership.stand(&upstream, &shutdown).await })
    };
    let endpoints = tokio::spawn(tenants.clone().keep_endpoints(advertised, shutdown.clone()));
    let upstream_of_roots = upstream.clone();
    let admin = Arc::new(Admin { tenants: tenants.clone(), upstream, authority, metrics, server: server.clone() });
    let addresses = Addresses::new(options.connections_per_address_max);
    let server_of_clients =
        Arc::new(Server { timeouts: Timeouts::default(), drain_timeout: DRAIN_TIMEOUT, shutdown: shutdown.clone() });
    let front = Arc::new(Front {
        connect: Box::new(move |identity, stay| Arc::new(Client::new(proxy.clone(), identity, stay))),
        tls: tenants_tls.clone(),
        addresses: addresses.clone(),
        server: server_of_clients.clone(),
    });
    let admin_front = Arc::new(Front {
        connect: Box::new(move |identity, stay| {
            Arc::new(AdminClient { admin: admin.clone(), identity, address: stay.address })
        }),
        tls: admin_tls.clone(),
        addresses,
        server: server_of_clients,
    });
    let of_kubezoo = tenants.clone();
    let background = [
        tokio::spawn(async move { match of_kubezoo.follow_kubezoo().await {} }),
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
    // They say farewell to the other zoos. Clients' connections take longer to end, as a rule.
    if tokio::time::timeout(FAREWELL_TIMEOUT, async { tokio::join!(election, endpoints) }).await.is_err() {
        tracing::warn!("the other zoos could not be told that this one ends");
    }
    Ok(())
}

fn report(ended: Result<std::convert::Infallible, FoundationError>) {
    let Err(error) = ended;
    tracing::error!(%error, "certificates are not looked at any more");
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    kubewharf_front::listen(address).map_err(|error| StartError::Listen { address, error })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Listen { address: ([0, 0, 0, 0], 0).into(), error })
}

/// A name that no other zoo has: of its machine, and of this run.
fn own_identity() -> String {
    let mut random = [0u8; 8];
    // Without, the number of the process still tells zoos of one machine apart.
    if SystemRandom::new().fill(&mut random).is_err() {
        random[..4].copy_from_slice(&std::process::id().to_be_bytes());
    }
    let run = random.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{run}", if machine.trim().is_empty() { "zoo" } else { machine.trim() })
}

/// Where others reach this zoo: as told; or where it listens, if that is one address of this machine; or by the address from which this machine
/// reaches the apiserver behind. None if that is one which nobody else can reach.
async fn find_advertised(
    told: Option<IpAddr>,
    listens: SocketAddr,
    upstream: &str,
) -> Result<Option<SocketAddr>, StartError> {
    if let Some(address) = told {
        check_address(address).map_err(|problem| StartError::Advertise { address, problem })?;
        return Ok(Some(SocketAddr::new(address, listens.port())));
    }
    let found = if listens.ip().is_unspecified() { route_to(upstream).await } else { Some(listens.ip()) };
    let usable = found.filter(|address| check_address(*address).is_ok());
    if usable.is_none() {
        tracing::info!(
            ?found,
            "the Service kubernetes of tenants does not lead to this zoo: no --advertise-address is set, and none is found that others reach"
        );
    }
    Ok(usable.map(|address| SocketAddr::new(address, listens.port())))
}

/// The address from which this machine reaches that of a URL. Nothing is sent.
async fn route_to(url: &str) -> Option<IpAddr> {
    let url: http::Uri = url.parse().ok()?;
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    for target in tokio::net::lookup_host((host, url.port_u16().unwrap_or(443))).await.ok()? {
        let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let Ok(socket) = tokio::net::UdpSocket::bind(any).await else { continue };
        if socket.connect(target).await.is_ok() {
            return Some(socket.local_addr().ok()?.ip());
        }
    }
    None
}

/// The host and port at which pods find their tenant's API: as all clients do, or where this zoo is if clients are told no URL.
fn place_for_pods(external_url: Option<&str>, here: SocketAddr) -> (String, u16) {
    let url = external_url.and_then(|url| url.parse::<http::Uri>().ok());
    match url.as_ref().and_then(|url| Some((url.host()?, url.port_u16().unwrap_or(443)))) {
        Some((host, port)) => (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port),
        None => (here.ip().to_string(), here.port()),
    }
}

/// What zoo's own certificate must name.
fn own_names(address: SocketAddr, admin: SocketAddr, advertised: Option<SocketAddr>, server: &str) -> Vec<String> {
    let mut names = vec![
        "localhost".to_owned(),
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
    ];
    names
        .extend([Some(address), Some(admin), advertised].into_iter().flatten().map(|address| address.ip().to_string()));
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
