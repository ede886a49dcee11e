//! Certificates for both ends of every connection, and what servers accept.
//!
//! Invariant: all connections of all sides use TLS 1.3 with one cipher suite: the clients and the kube-apiserver of the benchmark know no
//! other (see [`crate::tls`]). Nothing is resumed.

use std::sync::Arc;

use anyhow::Result;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::pki::{Authority, Identity};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ServerConfig};

use crate::tls::{Files, client, provider};

/// The user who asks.
pub const USER: &str = "system:serviceaccount:team:controller";
/// A group of that user.
pub const GROUP: &str = "benchmark:clients";
/// The name that the certificates of the benchmark's servers have.
pub const HOST: &str = "cluster.test";

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

/// What a server with these files accepts: clients with a certificate of the authority.
///
/// # Errors
/// When they cannot be read.
pub fn server(files: &Files) -> Result<Arc<ServerConfig>> {
    let (certificate, key, roots) = files.read()?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}
