//! TLS towards endpoints.
//!
//! Invariant: a [`ClientTls`] is complete and consistent once it exists; two are equal exactly if they trust and show
//! the same, so that an update with the same files changes nothing.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use ring::digest;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::error::SettingsError;

/// Where Linux distributions keep the roots that the machine trusts; the first that exists is used, as Go does.
pub const SYSTEM_ROOTS: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What [`ClientTls`] is made of.
#[derive(Clone, Copy, Default)]
pub struct ClientTlsFiles<'a> {
    /// PEM: the roots of the endpoints' certificates. `None`: those that the machine trusts.
    pub ca_pem: Option<&'a [u8]>,
    /// PEM: the client certificate, then those between it and its root.
    pub certificate_pem: Option<&'a [u8]>,
    /// PEM: the key of the client certificate.
    pub key_pem: Option<&'a [u8]>,
    /// The name that the endpoints' certificates must have. `None`: the host of each endpoint's URL.
    pub server_name: Option<&'a str>,
    /// True: any certificate will do. Whoever is on the way can then read and change everything.
    pub insecure: bool,
}

/// How https endpoints are trusted, and what they are shown. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    inner: Arc<Inner>,
}

struct Inner {
    http2: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
    fingerprint: digest::Digest,
}

impl ClientTls {
    /// Reads and checks everything. An error names what is wrong.
    pub fn new(files: &ClientTlsFiles<'_>) -> Result<Self, SettingsError> {
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier: Arc<dyn ServerCertVerifier> = if files.insecure {
            Arc::new(AcceptAnything { algorithms: provider.signature_verification_algorithms })
        } else {
            verifier(files.ca_pem, &provider)?
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("TLS", error))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut http2 = match (files.certificate_pem, files.key_pem) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let chain = certificates("client certificate", certificate)?;
                let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong("client key", error))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| wrong("client certificate with its key", error))?
            }
            (Some(_), None) => return Err(wrong("client key", "it is missing; the certificate needs it")),
            (None, Some(_)) => {
                return Err(wrong("client certificate", "it is missing; the key needs it"));
            }
        };
        let server_name = files
            .server_name
            .map(|name| ServerName::try_from(name.to_owned()))
            .transpose()
            .map_err(|error| wrong("server name", error))?;
        let mut http1 = http2.clone();
        http2.alpn_protocols = vec![b"h2".to_vec()];
        http1.alpn_protocols = vec![b"http/1.1".to_vec()];
        let fingerprint = fingerprint(files);
        Ok(Self { inner: Arc::new(Inner { http2: Arc::new(http2), http1: Arc::new(http1), server_name, fingerprint }) })
    }

    /// For connections that speak HTTP/2.
    pub(crate) fn http2(&self) -> Arc<ClientConfig> {
        self.inner.http2.clone()
    }

    /// For connections that speak HTTP/1.1: upgrades.
    pub(crate) fn http1(&self) -> Arc<ClientConfig> {
        self.inner.http1.clone()
    }

    pub(crate) fn server_name(&self) -> Option<&ServerName<'static>> {
        self.inner.server_name.as_ref()
    }
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.inner.fingerprint.as_ref() == other.inner.fingerprint.as_ref()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClientTls").field("server_name", &self.inner.server_name).finish_non_exhaustive()
    }
}

fn wrong(field: &'static str, problem: impl fmt::Display) -> SettingsError {
    SettingsError::Tls { field, problem: problem.to_string() }
}

fn fingerprint(files: &ClientTlsFiles<'_>) -> digest::Digest {
    let mut context = digest::Context::new(&digest::SHA256);
    for field in [files.ca_pem, files.certificate_pem, files.key_pem, files.server_name.map(str::as_bytes)] {
        // Length first, and absent is not empty: no two settings run together to the same bytes.
        context.update(&field.map_or(u64::MAX, |bytes| bytes.len() as u64).to_be_bytes());
        context.update(field.unwrap_or_default());
    }
    context.update(&[u8::from(files.insecure)]);
    context.finish()
}

fn certificates(field: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SettingsError> {
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|error| wrong(field, error))?;
    if certificates.is_empty() {
        return Err(wrong(field, "it has no PEM certificate"));
    }
    Ok(certificates)
}

fn verifier(
    ca_pem: Option<&[u8]>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, SettingsError> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = ca_pem {
        for certificate in certificates("certificate authority", pem)? {
            roots.add(certificate).map_err(|error| wrong("certificate authority", error))?;
        }
    } else {
        // Machines trust some odd certificates; those that can't be used are left out.
        let pem = SYSTEM_ROOTS.iter().find_map(|path| std::fs::read(Path::new(path)).ok()).unwrap_or_default();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
        if roots.is_empty() {
            return Err(wrong("certificate authority", "it is missing, and this machine trusts no roots; give one"));
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| wrong("certificate authority", error))?;
    Ok(verifier)
}

/// For [`ClientTlsFiles::insecure`]. The handshake itself is still checked, so the peer does own the certificate that it shows.
#[derive(Debug)]
struct AcceptAnything {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AcceptAnything {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(vec!["client".to_owned()]).expect("a certificate");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn equal_means_the_same_trust_and_the_same_identity() {
        let (certificate, key) = pair();
        let (other, _) = pair();
        let files = ClientTlsFiles {
            ca_pem: Some(certificate.as_bytes()),
            certificate_pem: Some(certificate.as_bytes()),
            key_pem: Some(key.as_bytes()),
            server_name: Some("apiserver"),
            insecure: false,
        };
        let tls = ClientTls::new(&files).expect("usable");
        assert_eq!(tls, ClientTls::new(&files).expect("usable"));
        for changed in [
            ClientTlsFiles { ca_pem: Some(other.as_bytes()), ..files },
            ClientTlsFiles { certificate_pem: None, key_pem: None, ..files },
            ClientTlsFiles { server_name: None, ..files },
            ClientTlsFiles { server_name: Some("apiserver2"), ..files },
            ClientTlsFiles { insecure: true, ..files },
        ] {
            assert_ne!(tls, ClientTls::new(&changed).expect("usable"));
        }
    }

    #[test]
    fn wrong_files_are_named() {
        let (certificate, key) = pair();
        let (_, other_key) = pair();
        let good = ClientTlsFiles {
            ca_pem: Some(certificate.as_bytes()),
            certificate_pem: Some(certificate.as_bytes()),
            key_pem: Some(key.as_bytes()),
            ..ClientTlsFiles::default()
        };
        for (files, named) in [
            (ClientTlsFiles { ca_pem: Some(b"nothing"), ..good }, "certificate authority:"),
            (ClientTlsFiles { certificate_pem: Some(b""), ..good }, "client certificate:"),
            (ClientTlsFiles { key_pem: Some(b"x"), ..good }, "client key:"),
            (ClientTlsFiles { key_pem: None, ..good }, "client key:"),
            (ClientTlsFiles { certificate_pem: None, ..good }, "client certificate:"),
            (ClientTlsFiles { key_pem: Some(other_key.as_bytes()), ..good }, "client certificate with its key:"),
            (ClientTlsFiles { server_name: Some("a b"), ..good }, "server name:"),
        ] {
            let text = ClientTls::new(&files).map(|_| ()).expect_err(named).to_string();
            assert!(text.starts_with(named), "{text}");
        }
    }
}
