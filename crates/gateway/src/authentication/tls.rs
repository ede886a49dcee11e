//! The TLS server of one cluster: its certificate, and whom it trusts to vouch for clients.
//!
//! Invariant: tickets and sessions belong to one [`ServerTls`]. A client that was let in by one cluster, or by
//! authorities that are not trusted any more, can't resume its way in at another.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::Ticketer;
use rustls::server::ServerSessionMemoryCache;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::x509::{ClientTrust, provider};
use crate::limits::TLS_SESSIONS_MAX;

/// What a cluster's TLS server shows of itself.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerTlsSettings {
    /// PEM: the server's certificate, then those between it and its root.
    pub certificate: Vec<u8>,
    /// PEM: the private key of the certificate.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for ServerTlsSettings {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key is nobody's business.
        formatter.debug_struct("ServerTlsSettings").finish_non_exhaustive()
    }
}

/// Why a TLS server can't be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// The certificate is not what it should be.
    #[error("server certificate: {0}; it must be PEM certificates, the server's own first")]
    Certificate(String),
    /// The key is not what it should be.
    #[error("server key: {0}; it must be a PEM private key (PKCS#8, PKCS#1 or SEC1)")]
    Key(String),
    /// They do not go together.
    #[error("server certificate and key: {0}")]
    Pair(String),
    /// The cryptography failed.
    #[error("TLS: {0}")]
    Other(String),
}

/// The TLS server of one cluster, ready for handshakes.
pub struct ServerTls {
    settings: ServerTlsSettings,
    trust: Option<Arc<ClientTrust>>,
    config: Arc<ServerConfig>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ServerTls").field("trust", &self.trust).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// A server for HTTP/2 and HTTP/1.1. With `trust`, a client may show a certificate, and one that is not accepted
    /// ends the handshake; without, it is not asked for one.
    ///
    /// # Errors
    ///
    /// If certificate and key can't be used.
    pub fn new(settings: ServerTlsSettings, trust: Option<Arc<ClientTrust>>) -> Result<Arc<Self>, TlsError> {
        let config = Arc::new(build(&settings, trust.as_deref())?);
        Ok(Arc::new(Self { settings, trust, config }))
    }

    /// The same server if nothing has changed, so that its clients' tickets stay good; else a new one.
    ///
    /// # Errors
    ///
    /// As [`ServerTls::new`].
    pub fn update(
        self: &Arc<Self>,
        settings: ServerTlsSettings,
        trust: Option<Arc<ClientTrust>>,
    ) -> Result<Arc<Self>, TlsError> {
        let same_trust = match (&self.trust, &trust) {
            (None, None) => true,
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        if same_trust && self.settings == settings {
            return Ok(self.clone());
        }
        Self::new(settings, trust)
    }

    /// What a handshake needs.
    #[must_use]
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Whom the handshake trusts.
    #[must_use]
    pub fn trust(&self) -> Option<&Arc<ClientTrust>> {
        self.trust.as_ref()
    }
}

fn build(settings: &ServerTlsSettings, trust: Option<&ClientTrust>) -> Result<ServerConfig, TlsError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&settings.certificate)
        .collect::<Result<_, _>>()
        .map_err(|error| TlsError::Certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(TlsError::Certificate("there is none in it".into()));
    }
    let key = PrivateKeyDer::from_pem_slice(&settings.key).map_err(|error| TlsError::Key(error.to_string()))?;
    let other = |error: rustls::Error| TlsError::Other(error.to_string());
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().map_err(other)?;
    let builder = match trust {
        Some(trust) => builder.with_client_cert_verifier(trust.verifier()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| TlsError::Pair(error.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new().map_err(other)?;
    // For clients of TLS 1.2 that know no tickets.
    config.session_storage = ServerSessionMemoryCache::new(TLS_SESSIONS_MAX);
    // Connections are few and long: a client has no use for a second ticket.
    config.send_tls13_tickets = 1;
    Ok(config)
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
