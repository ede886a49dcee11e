//! What clients of a kube-apiserver connect with.
//!
//! Invariant: clients use TLS 1.3 with the one cipher suite that Go, and so kube-apiserver and its clients, prefers. Nothing is resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// The files of an identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Files {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority that others are checked against.
    pub authority: PathBuf,
}

impl Files {
    /// The certificate, its key, and the authority.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>, RootCertStore)> {
        let of = |path: &Path| CertificateDer::from_pem_file(path).with_context(|| format!("read {}", path.display()));
        let key = PrivateKeyDer::from_pem_file(&self.key).with_context(|| format!("read {}", self.key.display()))?;
        let mut roots = RootCertStore::empty();
        roots.add(of(&self.authority)?)?;
        Ok((of(&self.certificate)?, key, roots))
    }
}

/// What a client with these files connects with.
///
/// # Errors
/// When they cannot be read.
pub fn client(files: &Files) -> Result<Arc<ClientConfig>> {
    let (certificate, key, roots) = files.read()?;
    client_with(certificate, key, roots)
}

/// What a client with this certificate, key and authority (PEM) connects with.
///
/// # Errors
/// When they are no PEM, or do not belong together.
pub fn client_of(certificate: &str, key: &str, authority: &str) -> Result<Arc<ClientConfig>> {
    let of = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).context("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(of(authority)?)?;
    client_with(of(certificate)?, PrivateKeyDer::from_pem_slice(key.as_bytes()).context("a key")?, roots)
}

fn client_with(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    roots: RootCertStore,
) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The cryptography of both ends, with the one cipher suite.
pub fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}
