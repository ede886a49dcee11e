//! Certificates of one test: an authority that nobody else knows, and what it signs.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::error::Result;
use crate::folder::Folder;

/// A certificate and its key, as PEM text and as files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// The file that holds the certificate.
    pub certificate_path: PathBuf,
    /// The file that holds the key.
    pub key_path: PathBuf,
}

/// An authority that signs certificates and writes them into one folder.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    certificate_path: PathBuf,
}

impl Authority {
    /// A new authority; its certificate becomes `name.crt` in that folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn new(folder: &Folder, name: &str) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        let certificate_path = folder.write(&format!("{name}.crt"), &certificate)?;
        Ok(Self { issuer: Issuer::new(params, key), certificate, certificate_path })
    }

    /// Its certificate, as PEM text.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The file that holds its certificate.
    pub fn certificate_path(&self) -> &Path {
        &self.certificate_path
    }

    /// Signs a certificate for a server that is reached by these names and addresses: `name.crt` and `name.key`.
    ///
    /// # Errors
    /// When a file cannot be written or a host is no name.
    pub fn server(&self, folder: &Folder, name: &str, hosts: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::new(hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(folder, name, &params)
    }

    /// Signs a certificate for a client: Kubernetes takes the common name for the user and the organization for its
    /// group. The files are `user.crt` and `user.key`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn client(&self, folder: &Folder, user: &str, group: &str) -> Result<Identity> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(folder, user, &params)
    }

    fn sign(&self, folder: &Folder, name: &str, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let key = key.serialize_pem();
        Ok(Identity {
            certificate_path: folder.write(&format!("{name}.crt"), &certificate)?,
            key_path: folder.write(&format!("{name}.key"), &key)?,
            certificate,
            key,
        })
    }
}

/// A request for a client's certificate, as PEM text.
///
/// # Errors
/// When there is no new key.
pub fn certificate_request(user: &str, group: &str) -> Result<String> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    Ok(params.serialize_request(&KeyPair::generate()?)?.pem()?)
}

/// Writes a new pair of keys for signing and checking service-account tokens, and returns the files: first the private
/// key, then the public one.
///
/// # Errors
/// When a file cannot be written.
pub fn signing_keys(folder: &Folder, name: &str) -> Result<(PathBuf, PathBuf)> {
    let pair = KeyPair::generate()?;
    let private = folder.write(&format!("{name}.key"), &pair.serialize_pem())?;
    let public = folder.write(&format!("{name}.pub"), &pair.public_key_pem())?;
    Ok((private, public))
}
