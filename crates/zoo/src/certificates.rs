//! Zoo's own authority: signs what clients show, and what zoo itself shows to them.
//!
//! A client makes its key and asks for a certificate of it; no key of a client is ever seen here. A certificate's common name is the user;
//! its URIs name the groups, and the tenant by the UID of its object. So it is worth nothing once the tenant is gone, even if another one has
//! the same name.
//!
//! Invariant: the authority's key, in a file of the data folder, is the only secret; what else is secret is derived from it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kubewharf_foundation::tls::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

/// What the URI of a tenant in a certificate begins with; the UID of its object follows, a slash, and its name.
const TENANT_URI: &str = "kubewharf-tenant:";
/// What the URI of a group begins with; the group follows.
const GROUP_URI: &str = "kubewharf-group:";
/// How long zoo's own certificate and authority last.
const OWN_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How much earlier than now a certificate begins, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(300);
/// The longest that a tenant's certificate lasts.
pub const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file can't be read or written.
    #[error("{path}: {error}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file or a request holds something else.
    #[error("{0}")]
    Content(String),
}

/// Whom a certificate names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The UID of the tenant's object.
    pub tenant_uid: String,
    /// The tenant's name.
    pub tenant: String,
    /// The user within the tenant.
    pub user: String,
    /// The user's groups within the tenant.
    pub groups: Vec<String>,
}

impl Subject {
    /// Whom a verified certificate names; none if it is not a tenant's.
    #[must_use]
    pub fn of(identity: Identity) -> Option<Self> {
        let mut tenants = identity.uris.iter().filter_map(|uri| uri.strip_prefix(TENANT_URI)?.split_once('/'));
        let (uid, tenant) = tenants.next()?;
        if tenants.next().is_some() || identity.common_name.is_empty() {
            return None;
        }
        Some(Self {
            tenant_uid: uid.to_owned(),
            tenant: tenant.to_owned(),
            user: identity.common_name,
            groups: identity.uris.iter().filter_map(|uri| uri.strip_prefix(GROUP_URI)).map(str::to_owned).collect(),
        })
    }
}

/// The authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    secret: hmac::Key,
}

impl Authority {
    /// The authority whose `ca.crt` and `ca.key` are in the folder; they are made if neither is there.
    ///
    /// # Errors
    /// When the files can't be read, made or used.
    pub fn open(folder: &Path) -> Result<Self, CertificateError> {
        let (certificate_path, key_path) = (folder.join("ca.crt"), folder.join("ca.key"));
        if !certificate_path.exists() {
            // The certificate is written last, so what was left half-made is made again.
            let key = KeyPair::generate().map_err(content)?;
            write(&key_path, &key.serialize_pem(), 0o600)?;
            let certificate = authority_params().self_signed(&key).map_err(content)?;
            write(&certificate_path, &certificate.pem(), 0o644)?;
        }
        let certificate_pem = read(&certificate_path)?;
        let key_pem = read(&key_path)?;
        let wrong =
            |path: &Path, error: rcgen::Error| CertificateError::Content(format!("{}: {error}", path.display()));
        let key = KeyPair::from_pem(&key_pem).map_err(|error| wrong(&key_path, error))?;
        let secret = hmac::Key::new(hmac::HMAC_SHA256, key.serialized_der());
        let issuer =
            Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(|error| wrong(&certificate_path, error))?;
        Ok(Self { issuer, certificate_pem, secret })
    }

    /// The authority's certificate (PEM).
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A secret for one purpose, which everyone with the same authority derives alike.
    #[must_use]
    pub fn secret(&self, purpose: &str) -> [u8; 32] {
        hmac::sign(&self.secret, purpose.as_bytes()).as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// Signs the key of a PKCS #10 request (PEM), for this subject. What the request says of its subject does not count.
    ///
    /// # Errors
    /// When the request can't be read or is not signed with its own key.
    pub fn sign(&self, request_pem: &str, subject: &Subject, lifetime: Duration) -> Result<String, CertificateError> {
        let request = CertificateSigningRequestParams::from_pem(request_pem).map_err(content)?;
        let mut params = CertificateParams::default();
        let name = &mut params.distinguished_name;
        *name = rcgen::DistinguishedName::new();
        name.push(DnType::CommonName, subject.user.as_str());
        let groups = subject.groups.iter().map(|group| format!("{GROUP_URI}{group}"));
        params.subject_alt_names = groups
            .chain([format!("{TENANT_URI}{}/{}", subject.tenant_uid, subject.tenant)])
            .map(|uri| Ia5String::try_from(uri).map(SanType::URI).map_err(content))
            .collect::<Result<_, _>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        limit(&mut params, lifetime.min(LIFETIME_MAX))?;
        Ok(params.signed_by(&request.public_key, &self.issuer).map_err(content)?.pem())
    }

    /// Writes a certificate for these names and addresses and its key into files, as zoo's own.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn serve_as(&self, names: Vec<String>, certificate: &Path, key: &Path) -> Result<(), CertificateError> {
        let pair = KeyPair::generate().map_err(content)?;
        let mut params = CertificateParams::new(names).map_err(content)?;
        params.distinguished_name.push(DnType::CommonName, "kubezoo");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        limit(&mut params, OWN_LIFETIME)?;
        let signed = params.signed_by(&pair, &self.issuer).map_err(content)?;
        write(key, &pair.serialize_pem(), 0o600)?;
        write(certificate, &signed.pem(), 0o644)
    }
}

/// The private key (PKCS #8, DER) in a file, which is made if it is not there.
///
/// # Errors
/// When the file can't be read, made or used.
pub(crate) fn signing_key(path: &Path) -> Result<Vec<u8>, CertificateError> {
    if !path.exists() {
        write(path, &KeyPair::generate().map_err(content)?.serialize_pem(), 0o600)?;
    }
    let key = KeyPair::from_pem(&read(path)?);
    key.map(|key| key.serialize_der())
        .map_err(|error| CertificateError::Content(format!("{}: {error}", path.display())))
}

/// A new key (PEM) and the request for a certificate of it (PEM): what a client makes.
///
/// # Errors
/// When the system has no randomness.
pub fn request() -> Result<(String, String), CertificateError> {
    let key = KeyPair::generate().map_err(content)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(content)?;
    Ok((key.serialize_pem(), request.pem().map_err(content)?))
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "kubezoo");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + OWN_LIFETIME).into();
    params
}

fn limit(params: &mut CertificateParams, lifetime: Duration) -> Result<(), CertificateError> {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| CertificateError::Content("no randomness".into()))?;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(())
}

fn content(error: impl std::fmt::Display) -> CertificateError {
    CertificateError::Content(error.to_string())
}

fn read(path: &Path) -> Result<String, CertificateError> {
    fs::read_to_string(path).map_err(|error| CertificateError::File { path: path.to_owned(), error })
}

/// Writes a file that is either not there or whole.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertificateError> {
    let half = path.with_extension("new");
    let written = (|| {
        let _ = fs::remove_file(&half);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&half)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&half, path)
    })();
    written.map_err(|error| CertificateError::File { path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use kubewharf_foundation::tls::identity;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn a_certificate_names_whom_it_was_signed_for_and_not_what_the_request_says() {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::open(folder.path()).expect("made");
        let subject = Subject {
            tenant_uid: "3d0c".into(),
            tenant: "blue".into(),
            user: "admin".into(),
            groups: vec!["system:masters".into(), "developers".into()],
        };
        let (_, request) = request().expect("made");
        let pem = authority.sign(&request, &subject, LIFETIME_MAX).expect("signed");
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        assert_eq!(Subject::of(identity(&certificate).expect("readable")), Some(subject));

        let again = Authority::open(folder.path()).expect("there");
        assert_eq!(again.certificate_pem(), authority.certificate_pem());
        assert_eq!(again.secret("a"), authority.secret("a"));
        assert_ne!(again.secret("a"), authority.secret("b"));
    }
}
