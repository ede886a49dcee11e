//! Certificates for both ends of every connection, and what both ends agree on.
//!
//! Invariant: all connections of all sides use TLS 1.3 with the one cipher suite that Go, and so kube-apiserver and its clients,
//! prefers: the clients and the kube-apiserver of the benchmark know no other. Nothing is resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::{Authority, Identity};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// The user who asks.
pub const USER: &str = "system:serviceaccount:team:controller";
/// A group of that user.
pub const GROUP: &str = "benchmark:clients";
/// The name that the certificates of the benchmark's servers have.
pub const HOST: &str = "cluster.test";

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

/// Everybody's certificates.
#[derive(Debug)]
pub struct Certificates {
    authority: Authority,
    client: Identity,
}

impl Certificates {
    /// New ones, with files in that folder.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn new(folder: &Folder) -> Result<Self> {
        let authority = Authority::new(folder, "authority")?;
        let client = authority.client(folder, USER, GROUP)?;
        Ok(Self { authority, client })
    }

    /// For a server at that host.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn server(&self, folder: &Folder, name: &str, host: &str) -> Result<Files> {
        Ok(self.files(self.authority.server(folder, name, &[host, HOST])?))
    }

    /// For a proxy as a client of the kube-apiserver.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn proxy(&self, folder: &Folder) -> Result<Files> {
        Ok(self.files(self.authority.client(folder, "proxy", "system:masters")?))
    }

    /// What a client connects with.
    ///
    /// # Errors
    /// Never: the files are our own.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        client(&self.files(self.client.clone()))
    }

    fn files(&self, identity: Identity) -> Files {
        let Identity { certificate_path: certificate, key_path: key, .. } = identity;
        Files { certificate, key, authority: self.authority.certificate_path().to_owned() }
    }
}

/// What a client with these files connects with.
///
/// # Errors
/// When they cannot be read.
pub fn client(files: &Files) -> Result<Arc<ClientConfig>> {
    let (chain, key, roots) = read(files)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// What a server with these files accepts: clients with a certificate of the authority.
///
/// # Errors
/// When they cannot be read.
pub fn server(files: &Files) -> Result<Arc<ServerConfig>> {
    let (chain, key, roots) = read(files)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![ring::cipher_suite::TLS13_AES_128_GCM_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..ring::default_provider() })
}

type Read = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>, RootCertStore);

fn read(files: &Files) -> Result<Read> {
    let of = |path: &Path| CertificateDer::from_pem_file(path).with_context(|| format!("read {}", path.display()));
    let key = PrivateKeyDer::from_pem_file(&files.key).with_context(|| format!("read {}", files.key.display()))?;
    let mut roots = RootCertStore::empty();
    roots.add(of(&files.authority)?)?;
    Ok((vec![of(&files.certificate)?], key, roots))
}
