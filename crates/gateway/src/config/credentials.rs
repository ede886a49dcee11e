//! PEM texts made into what rustls takes.
//!
//! Errors say what is wrong, never what the text is.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("has a malformed certificate ({error})"))?;
    if certificates.is_empty() {
        return Err("has no PEM certificate".to_owned());
    }
    Ok(certificates)
}

pub(super) fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| format!("has no usable PEM private key ({error})"))
}

/// A certificate chain with its key, which must belong to it.
pub(super) fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, String> {
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(|error| format!("and its key can't be used together ({error})"))
}

pub(super) fn roots(certificates: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone()).map_err(|error| format!("has a certificate that can't be a root ({error})"))?;
    }
    Ok(Arc::new(roots))
}

/// PEM, or one list as DER.
pub(super) fn revocations(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    const DER_SEQUENCE: u8 = 0x30;
    if bytes.first() == Some(&DER_SEQUENCE) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("has a malformed revocation list ({error})"))?;
    if lists.is_empty() {
        return Err("has no PEM revocation list".to_owned());
    }
    Ok(lists)
}

/// What is wrong with the time of one of these certificates, if anything is.
pub(super) fn time_problem(certificates: &[CertificateDer<'static>], now: SystemTime) -> Option<String> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs();
    let now = i64::try_from(now).ok()?;
    certificates.iter().find_map(|certificate| {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        let subject = certificate.subject();
        if validity.not_after.timestamp() < now {
            Some(format!("has a certificate ({subject}) that expired at {}", validity.not_after))
        } else if validity.not_before.timestamp() > now {
            Some(format!("has a certificate ({subject}) that is not valid before {}", validity.not_before))
        } else {
            None
        }
    })
}
