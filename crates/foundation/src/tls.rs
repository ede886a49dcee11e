//! TLS server settings from files that may change while the server runs.
//!
//! Invariant: what is served is always one consistent set of files. A set that can't be used (half replaced, expired by a
//! typo, unreadable) is logged with the file's name, and the last good one stays. Connections are never dropped by a
//! change; a new one gets the new files and can't resume a session that was begun with the old.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio::signal::unix::{SignalKind, signal};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;

/// How often the files are looked at. A SIGHUP looks at once.
pub const RELOAD_INTERVAL: Duration = Duration::from_secs(5);

/// Whether clients must show a certificate. Each needs `client_ca`, except `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Clients are not asked.
    #[default]
    None,
    /// A certificate that is shown must be valid.
    Optional,
    /// There is no connection without a valid certificate.
    Required,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2.
    V12,
    /// TLS 1.3.
    V13,
}

/// The files and settings of a TLS server.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM: the server's certificate, then those between it and its root.
    pub certificate: PathBuf,
    /// PEM: the private key of the certificate.
    pub key: PathBuf,
    /// PEM: the roots of client certificates.
    pub client_ca: Option<PathBuf>,
    /// PEM or DER: revoked client certificates.
    pub client_crl: Option<PathBuf>,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
    /// The lowest version.
    pub version_min: TlsVersion,
    /// The highest version.
    pub version_max: TlsVersion,
    /// Names such as `TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256`; none means all that are safe. Those of
    /// [`unsupported_cipher_suites`] are left out. As in Go, TLS 1.3 has all of its own unless some of them are named.
    pub cipher_suites: Vec<String>,
    /// Protocols to offer, in order of preference.
    pub alpn: Vec<Vec<u8>>,
}

impl ServerTls {
    /// A server with these files, for HTTP/2 and HTTP/1.1, without client certificates.
    pub fn new(certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        Self {
            certificate: certificate.into(),
            key: key.into(),
            client_ca: None,
            client_crl: None,
            client_auth: ClientAuth::None,
            version_min: TlsVersion::V12,
            version_max: TlsVersion::V13,
            cipher_suites: Vec::new(),
            alpn: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        }
    }

    fn read(&self) -> Result<Contents, Error> {
        let read = |what, path: &Path| {
            std::fs::read(path).map_err(|source| Error::File { what, path: path.to_owned(), source })
        };
        let optional = |what, path: &Option<PathBuf>| path.as_ref().map(|path| read(what, path)).transpose();
        Ok(Contents {
            certificate: read(CERTIFICATE, &self.certificate)?,
            key: read(KEY, &self.key)?,
            client_ca: optional(CLIENT_CA, &self.client_ca)?,
            client_crl: optional(CLIENT_CRL, &self.client_crl)?,
        })
    }

    fn build(&self, contents: &Contents) -> Result<ServerConfig, Error> {
        let provider = Arc::new(self.provider()?);
        let chain = certificates(CERTIFICATE, &self.certificate, &contents.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&contents.key)
            .map_err(|error| content(KEY, &self.key, format!("no usable private key: {error}")))?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&self.versions()?)
            .map_err(|error| Error::Tls(error.to_string()))?;
        let builder = match self.client_verifier(contents, provider)? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| {
            let problem = format!("{error} (with the key {})", self.key.display());
            content(CERTIFICATE, &self.certificate, problem)
        })?;
        config.alpn_protocols.clone_from(&self.alpn);
        Ok(config)
    }

    fn client_verifier(
        &self,
        contents: &Contents,
        provider: Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, Error> {
        if self.client_auth == ClientAuth::None {
            return Ok(None);
        }
        let (Some(path), Some(pem)) = (&self.client_ca, &contents.client_ca) else {
            return Err(Error::Tls("client certificates can't be verified without a client CA file".into()));
        };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(CLIENT_CA, path, pem)? {
            roots.add(certificate).map_err(|error| content(CLIENT_CA, path, error.to_string()))?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if self.client_auth == ClientAuth::Optional {
            builder = builder.allow_unauthenticated();
        }
        if let (Some(path), Some(bytes)) = (&self.client_crl, &contents.client_crl) {
            // As etcd does: the list says which certificates are bad, and the others are good.
            builder = builder
                .with_crls(revocations(path, bytes)?)
                .only_check_end_entity_revocation()
                .allow_unknown_revocation_status();
        }
        // What is left to fail here is the revocation list.
        let blamed = self.client_crl.as_ref().map_or((CLIENT_CA, path), |crl| (CLIENT_CRL, crl));
        builder.build().map(Some).map_err(|error| content(blamed.0, blamed.1, error.to_string()))
    }

    fn provider(&self) -> Result<CryptoProvider, Error> {
        let mut provider = ring::default_provider();
        if self.cipher_suites.is_empty() {
            return Ok(provider);
        }
        let all = std::mem::take(&mut provider.cipher_suites);
        for name in &self.cipher_suites {
            provider.cipher_suites.extend(cipher_suite(name)?);
        }
        let is_v13 = |suite: &SupportedCipherSuite| suite.version() == &rustls::version::TLS13;
        // As in Go, names of TLS 1.2's suites say nothing about TLS 1.3.
        if !provider.cipher_suites.iter().any(is_v13) {
            provider.cipher_suites.extend(all.into_iter().filter(is_v13));
        }
        let versions = self.versions()?;
        provider.cipher_suites.retain(|suite| versions.contains(&suite.version()));
        if provider.cipher_suites.is_empty() {
            let problem = "can be used with the versions of TLS that are asked for";
            return Err(Error::Tls(format!("none of the cipher suites {} {problem}", self.cipher_suites.join(", "))));
        }
        Ok(provider)
    }

    fn versions(&self) -> Result<Vec<&'static SupportedProtocolVersion>, Error> {
        let all = [(TlsVersion::V13, &rustls::version::TLS13), (TlsVersion::V12, &rustls::version::TLS12)];
        let wanted = self.version_min..=self.version_max;
        let versions: Vec<_> = all.iter().filter(|(version, _)| wanted.contains(version)).map(|(_, it)| *it).collect();
        if versions.is_empty() {
            return Err(Error::Tls("the lowest version is above the highest".into()));
        }
        Ok(versions)
    }
}

/// Cipher suites that Go's TLS has and this one has not: RC4, 3DES, CBC, and RSA for the exchange of keys.
const NOT_SUPPORTED: [&str; 16] = [
    "TLS_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
];

/// The names among these of cipher suites that exist and that no server of ours can use. [`ServerTls`] leaves them out.
///
/// # Errors
/// If a name is nobody's.
pub fn unsupported_cipher_suites(names: &[String]) -> Result<Vec<&str>, Error> {
    let mut unsupported = Vec::new();
    for name in names {
        if cipher_suite(name)?.is_none() {
            unsupported.push(name.as_str());
        }
    }
    Ok(unsupported)
}

/// The cipher suite with this name; `None` if it is not supported.
fn cipher_suite(name: &str) -> Result<Option<SupportedCipherSuite>, Error> {
    // etcd takes these two also without what other suites' names end with.
    let full = match name {
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305" => "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        name => name,
    };
    let named = |suite: &&SupportedCipherSuite| {
        // TLS 1.3's own names begin with TLS13 here, and with TLS everywhere else.
        let name = format!("{:?}", suite.suite());
        name == full || name.replacen("TLS13_", "TLS_", 1) == full
    };
    match ring::ALL_CIPHER_SUITES.iter().find(named) {
        Some(suite) => Ok(Some(*suite)),
        None if NOT_SUPPORTED.contains(&full) => Ok(None),
        None => Err(Error::Tls(format!("cipher suite {name:?} is unknown"))),
    }
}

const CERTIFICATE: &str = "certificate file";
const KEY: &str = "key file";
const CLIENT_CA: &str = "client CA file";
const CLIENT_CRL: &str = "client CRL file";

/// What the files hold at one moment.
#[derive(Hash)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
    client_crl: Option<Vec<u8>>,
}

impl Contents {
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

fn content(what: &'static str, path: &Path, problem: String) -> Error {
    Error::Content { what, path: path.to_owned(), problem }
}

fn certificates(what: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(what, path, error.to_string()))?;
    if certificates.is_empty() {
        return Err(content(what, path, "it has no PEM certificate".into()));
    }
    Ok(certificates)
}

fn revocations(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Error> {
    if !bytes.starts_with(b"-----") && bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| content(CLIENT_CRL, path, error.to_string()))?;
    if lists.is_empty() {
        return Err(content(CLIENT_CRL, path, "it has no revocation list".into()));
    }
    Ok(lists)
}

/// The configuration of a TLS server, as new as its files.
pub struct ReloadingTls {
    settings: ServerTls,
    current: ArcSwap<ServerConfig>,
    /// Fingerprint of the last files that were looked at, used or not: each state is used, or complained about, once.
    seen: Mutex<Option<u64>>,
}

impl fmt::Debug for ReloadingTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ReloadingTls").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl ReloadingTls {
    /// Loads the files. Nothing is reloaded until [`ReloadingTls::watch`] runs.
    pub fn load(settings: ServerTls) -> Result<Arc<Self>, Error> {
        let contents = settings.read()?;
        let config = settings.build(&contents)?;
        Ok(Arc::new(Self {
            current: ArcSwap::from_pointee(config),
            seen: Mutex::new(Some(contents.fingerprint())),
            settings,
        }))
    }

    /// The configuration for the next connection.
    pub fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Looks at the files now. True if they have changed and are in use; an error if they have changed and can't be
    /// used. The same bad files are an error once.
    pub fn reload(&self) -> Result<bool, Error> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let contents = match self.settings.read() {
            Ok(contents) => contents,
            // A missing file is complained about once too.
            Err(error) => return if seen.take().is_some() { Err(error) } else { Ok(false) },
        };
        let fingerprint = Some(contents.fingerprint());
        if *seen == fingerprint {
            return Ok(false);
        }
        *seen = fingerprint;
        self.current.store(Arc::new(self.settings.build(&contents)?));
        Ok(true)
    }

    /// Reloads every [`RELOAD_INTERVAL`] and at each SIGHUP. Never ends: drop it, or abort its task.
    pub async fn watch(self: Arc<Self>) -> Result<std::convert::Infallible, Error> {
        let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
        loop {
            tokio::select! {
                () = tokio::time::sleep(RELOAD_INTERVAL) => {}
                _ = hangup.recv() => {}
            }
            let this = self.clone();
            match tokio::task::spawn_blocking(move || this.reload()).await {
                Ok(Ok(true)) => {
                    tracing::info!(certificate = %self.settings.certificate.display(), "TLS files were reloaded");
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => tracing::error!(%error, "new TLS files are not used; the last good ones stay"),
                Err(error) => tracing::error!(%error, "the reload of TLS files failed"),
            }
        }
    }
}

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The subject's common name; empty if it has none.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// DNS names among the alternative names.
    pub dns_names: Vec<String>,
    /// URIs among the alternative names.
    pub uris: Vec<String>,
    /// IP addresses among the alternative names.
    pub addresses: Vec<std::net::IpAddr>,
    /// All of the certificate (DER).
    pub der: Vec<u8>,
}

/// Reads the names in a certificate that a handshake has verified.
pub fn identity(certificate: &CertificateDer<'_>) -> Result<Identity, Error> {
    let broken = |error: &dyn fmt::Display| Error::Tls(format!("a client certificate can't be read: {error}"));
    let der = certificate.to_vec();
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| broken(&error))?;
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).map_err(|error| broken(&error))
    };
    let mut identity = Identity {
        common_name: subject.iter_common_name().next().map(text).transpose()?.unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect::<Result<_, _>>()?,
        der,
        ..Identity::default()
    };
    let names = certificate.subject_alternative_name().map_err(|error| broken(&error))?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => identity.dns_names.push((*name).to_owned()),
            GeneralName::URI(uri) => identity.uris.push((*uri).to_owned()),
            GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
                Ok(bytes) => identity.addresses.push(bytes.into()),
                Err(_) => {
                    if let Ok(bytes) = <[u8; 16]>::try_from(*bytes) {
                        identity.addresses.push(bytes.into());
                    }
                }
            },
            _ => {}
        }
    }
    Ok(identity)
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
