//! Users by client certificate.
//!
//! The TLS layer verifies a certificate when a connection begins ([`super::tls`]). Connections last for days, though,
//! and a resumed one brings a certificate that was verified long ago. So the connection keeps its
//! [`ClientCertificate`], which is asked at each request: that compares two numbers as long as nothing has changed, and
//! verifies the chain again when the cluster's authorities or revocations have, or a certificate of the chain has
//! reached its end.
//!
//! Invariant: no request is served by a certificate that the cluster's present [`ClientTrust`] would not accept now.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use ring::digest::{SHA256, digest};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{HandshakeKind, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::der_parser::oid;
use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME, Oid};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::AttributeTypeAndValue;

use super::{CREDENTIAL_ID, add_authenticated};
use crate::User;

/// The attribute of a subject that is the user's UID, in Kubernetes 1.33 and later.
const UID: Oid<'static> = oid!(1.3.6.1.4.1.57683.2);

/// Whom a cluster trusts to vouch for its users.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientTrustSettings {
    /// PEM: the roots of client certificates.
    pub authorities: Vec<u8>,
    /// PEM or DER: lists of revoked certificates; those of an authority without a list are not revoked.
    pub revocations: Option<Vec<u8>>,
}

/// Why trust can't be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// The client CA is not what it should be.
    #[error("client CA: {0}; it must be one or more PEM certificates")]
    Authorities(String),
    /// All certificates of the client CA have expired.
    #[error("client CA: every certificate has expired; renew it, or remove it to know clients by token only")]
    Expired,
    /// The revocation lists are not what they should be.
    #[error("client CRL: {0}; it must be a DER list, or one or more PEM lists, signed by the client CA")]
    Revocations(String),
}

/// A cluster's authorities for client certificates, ready to verify.
pub struct ClientTrust {
    settings: ClientTrustSettings,
    verifier: Arc<dyn ClientCertVerifier>,
    /// Differs between any two; never 0.
    epoch: u64,
    /// The last second of the first authority to expire.
    until: u64,
}

impl std::fmt::Debug for ClientTrust {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClientTrust").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

static EPOCHS: AtomicU64 = AtomicU64::new(1);

impl ClientTrust {
    /// Reads authorities and revocations. Authorities that have expired by `now` are left out: they would vouch for
    /// ever otherwise, as the verifier looks at the dates of all certificates but theirs.
    ///
    /// # Errors
    ///
    /// If something can't be read, or no authority is left.
    pub fn new(settings: ClientTrustSettings, now: UnixTime) -> Result<Arc<Self>, TrustError> {
        let authorities = |error: &dyn std::fmt::Display| TrustError::Authorities(error.to_string());
        let mut roots = RootCertStore::empty();
        let mut expired = 0;
        let mut until = u64::MAX;
        for certificate in CertificateDer::pem_slice_iter(&settings.authorities) {
            let certificate = certificate.map_err(|error| authorities(&error))?;
            let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|error| authorities(&error))?;
            if ends_at(&parsed) < now.as_secs() {
                tracing::warn!(subject = %parsed.subject(), "a client CA certificate has expired, and is not trusted");
                expired += 1;
                continue;
            }
            until = until.min(ends_at(&parsed));
            roots.add(certificate).map_err(|error| authorities(&error))?;
        }
        if roots.is_empty() {
            return Err(if expired > 0 { TrustError::Expired } else { authorities(&"there is no certificate in it") });
        }
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).allow_unauthenticated();
        if let Some(bytes) = &settings.revocations {
            builder = builder.with_crls(revocations(bytes)?).allow_unknown_revocation_status();
        }
        // What is left to fail here are the revocation lists.
        let verifier = builder.build().map_err(|error| TrustError::Revocations(error.to_string()))?;
        let epoch = EPOCHS.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Self { settings, verifier, epoch, until }))
    }

    /// What it was made of.
    #[must_use]
    pub fn settings(&self) -> &ClientTrustSettings {
        &self.settings
    }

    /// The same trust if nothing has changed, so that certificates need not be verified again; else a new one.
    ///
    /// # Errors
    ///
    /// As [`ClientTrust::new`].
    pub fn update(self: &Arc<Self>, settings: ClientTrustSettings, now: UnixTime) -> Result<Arc<Self>, TrustError> {
        if self.settings == settings && now.as_secs() <= self.until {
            return Ok(self.clone());
        }
        Self::new(settings, now)
    }

    /// The verifier for the TLS layer. A client may show no certificate, but none that is not good.
    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.verifier.clone()
    }
}

/// The cryptography of all TLS of this crate.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn revocations(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, TrustError> {
    // A DER sequence.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| TrustError::Revocations(error.to_string()))?;
    if lists.is_empty() {
        return Err(TrustError::Revocations("there is no list in it".into()));
    }
    Ok(lists)
}

/// Why a certificate says nothing of a user, or not any more. The text is for logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It can't be read.
    #[error("the client certificate can't be read: {0}")]
    Malformed(Arc<str>),
    /// A name in it can't be read.
    #[error("the client certificate's subject has a {0} that is no text in a known encoding")]
    Name(&'static str),
    /// It has several UIDs, or an empty one.
    #[error("the client certificate's subject must have one UID that is not empty, or none")]
    Uid,
    /// The cluster does not accept it: it is expired, revoked, or of an unknown authority.
    #[error("the client certificate is not accepted: {0}")]
    NotAccepted(Arc<str>),
}

/// Whether a chain, the client's own certificate first, is accepted now.
///
/// # Errors
///
/// If it is not, and why.
pub fn still_valid(chain: &[CertificateDer<'_>], trust: &ClientTrust, now: UnixTime) -> Result<(), CertificateError> {
    let not_accepted = |error: &dyn std::fmt::Display| CertificateError::NotAccepted(error.to_string().into());
    let (leaf, intermediates) = chain.split_first().ok_or_else(|| not_accepted(&"there is none"))?;
    match trust.verifier.verify_client_cert(leaf, intermediates, now) {
        Ok(_) => Ok(()),
        Err(error) => Err(not_accepted(&error)),
    }
}

/// The certificate of one connection, its user, and whether it was found good.
pub struct ClientCertificate {
    chain: Box<[CertificateDer<'static>]>,
    user: Result<Option<Arc<User>>, CertificateError>,
    /// The last seconds of the certificates of the chain, earliest first.
    ends: Box<[u64]>,
    checked: Mutex<Checked>,
}

/// What the last check found, and what it is worth.
struct Checked {
    /// Of the trust that it was checked against; 0 before the first check.
    epoch: u64,
    /// The last second at which the finding holds.
    until: u64,
    finding: Result<(), CertificateError>,
}

impl std::fmt::Debug for ClientCertificate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ClientCertificate").field("user", &self.user).finish_non_exhaustive()
    }
}

impl ClientCertificate {
    /// The certificate chain of a handshake; `None` if the client showed none. It is verified at the first request, as
    /// the handshake of a resumed connection did not.
    #[must_use]
    pub fn new(chain: Option<&[CertificateDer<'static>]>) -> Option<Self> {
        let chain: Box<[_]> = chain?.into();
        let leaf = chain.first()?;
        let user = user_of(leaf).map(|user| user.map(Arc::new));
        let mut ends: Box<[u64]> = chain
            .iter()
            .filter_map(|certificate| X509Certificate::from_der(certificate).ok())
            .map(|(_, certificate)| ends_at(&certificate))
            .collect();
        ends.sort_unstable();
        let checked = Mutex::new(Checked { epoch: 0, until: 0, finding: Ok(()) });
        Some(Self { chain, user, ends, checked })
    }

    /// Like [`ClientCertificate::new`], of a handshake that was a full one: its verification against `trust` counts.
    #[must_use]
    pub fn verified(chain: Option<&[CertificateDer<'static>]>, trust: &ClientTrust, now: UnixTime) -> Option<Self> {
        let mut certificate = Self::new(chain)?;
        *certificate.checked.get_mut() =
            Checked { epoch: trust.epoch, until: certificate.next_end(now), finding: Ok(()) };
        Some(certificate)
    }

    /// That of a connection whose handshake is done; `None` if the client showed none. The handshake's verification
    /// counts if it was a full one, against this trust.
    #[must_use]
    pub fn of_connection(
        connection: &rustls::ServerConnection,
        trust: Option<&ClientTrust>,
        now: UnixTime,
    ) -> Option<Self> {
        let chain = connection.peer_certificates();
        match (trust, connection.handshake_kind()) {
            (Some(trust), Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest)) => {
                Self::verified(chain, trust, now)
            }
            _ => Self::new(chain),
        }
    }

    /// The user, if the certificate is accepted now. `None` if it names nobody, as one without a common name does.
    ///
    /// # Errors
    ///
    /// If it is not accepted any more, or its subject can't be read.
    pub fn user(&self, trust: &ClientTrust, now: UnixTime) -> Result<Option<Arc<User>>, CertificateError> {
        let mut checked = self.checked.lock();
        if checked.epoch != trust.epoch || now.as_secs() > checked.until {
            // Under the lock: the requests of this one connection wait, instead of checking the same again.
            let finding = still_valid(&self.chain, trust, now);
            *checked = Checked { epoch: trust.epoch, until: self.next_end(now), finding };
        }
        checked.finding.clone()?;
        drop(checked);
        self.user.clone()
    }

    /// The last second before a certificate of the chain ends. Not each must be needed for the chain to be good, so an
    /// end is an occasion to check and no finding.
    fn next_end(&self, now: UnixTime) -> u64 {
        self.ends.iter().copied().find(|end| *end >= now.as_secs()).unwrap_or(u64::MAX)
    }
}

/// The last second of a certificate's life, since 1970.
fn ends_at(certificate: &X509Certificate<'_>) -> u64 {
    u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0)
}

/// The user that a certificate names, as in kube-apiserver: the last common name is the name, organizations are groups.
fn user_of(leaf: &CertificateDer<'_>) -> Result<Option<User>, CertificateError> {
    let (_, certificate) =
        X509Certificate::from_der(leaf).map_err(|error| CertificateError::Malformed(error.to_string().into()))?;
    let mut user = User::default();
    let mut uid: Option<String> = None;
    for attribute in certificate.subject().iter_attributes() {
        let kind = attribute.attr_type();
        if *kind == OID_X509_COMMON_NAME {
            user.name = text(attribute, "common name")?;
        } else if *kind == OID_X509_ORGANIZATION_NAME {
            user.groups.push(text(attribute, "organization")?);
        } else if *kind == UID {
            let value = text(attribute, "UID")?;
            if value.is_empty() || uid.is_some() {
                return Err(CertificateError::Uid);
            }
            uid = Some(value);
        }
    }
    if user.name.is_empty() {
        return Ok(None);
    }
    user.uid = uid.unwrap_or_default();
    user.extra.push((CREDENTIAL_ID.to_owned(), vec![credential_id(leaf)]));
    add_authenticated(&mut user);
    Ok(Some(user))
}

fn text(attribute: &AttributeTypeAndValue<'_>, what: &'static str) -> Result<String, CertificateError> {
    attribute.as_str().map(str::to_owned).map_err(|_| CertificateError::Name(what))
}

fn credential_id(leaf: &CertificateDer<'_>) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let hash = digest(&SHA256, leaf);
    let digits = hash.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]);
    "X509SHA256=".chars().chain(digits.map(|digit| char::from(DIGITS[usize::from(digit)]))).collect()
}

#[cfg(test)]
#[path = "x509_tests.rs"]
mod tests;
