//! Certificates and keys of the control plane, made at the first start and kept.
//!
//! There are two authorities: the cluster's, which anyone who may approve certificate requests can have sign a client's
//! certificate, and the store's, which signs two certificates, once, and whose key is not kept. So no user of the
//! cluster can reach past kube-apiserver's authorization into the store.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// Names of servers on this machine.
const LOCAL: [&str; 2] = ["127.0.0.1", "localhost"];

/// A certificate (or public key) and its key, as files.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// Everything that the components need.
pub(super) struct Pki {
    /// The certificate of the cluster's authority.
    pub(super) authority: PathBuf,
    pub(super) authority_key: PathBuf,
    /// The certificate of the authority of the store and its clients.
    pub(super) store_authority: PathBuf,
    pub(super) store: Pair,
    pub(super) store_client: Pair,
    pub(super) apiserver: Pair,
    pub(super) admin: Pair,
    pub(super) controllers: Pair,
    /// The keys of service-account tokens; the "certificate" is the public key.
    pub(super) tokens: Pair,
}

/// What a certificate is for.
enum Purpose<'a> {
    /// A server under these names and addresses.
    Server(&'a [&'a str]),
    /// A client in this group.
    Client(&'a str),
}

impl Pki {
    /// The files in `folder`, which are made if they are not there.
    pub(super) fn open(folder: &Path, service_address: &str) -> anyhow::Result<Self> {
        let pair = |name: &str| Pair {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        let pki = Self {
            authority: folder.join("ca.crt"),
            authority_key: folder.join("ca.key"),
            store_authority: folder.join("kubebrain-ca.crt"),
            store: pair("kubebrain"),
            store_client: pair("kubebrain-client"),
            apiserver: pair("kube-apiserver"),
            admin: pair("admin"),
            controllers: pair("kube-controller-manager"),
            tokens: Pair { certificate: folder.join("tokens.pub"), key: folder.join("tokens.key") },
        };
        // Each authority is written last, so that what was left half-made is made again.
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        if !pki.store_authority.exists() {
            pki.make_stores().context("can't make the store's certificates")?;
        }
        if !pki.authority.exists() {
            pki.make_clusters(service_address).context("can't make certificates")?;
        }
        Ok(pki)
    }

    fn make_stores(&self) -> anyhow::Result<()> {
        let (issuer, certificate, _) = authority("kubewharf up: the store")?;
        sign(&issuer, &self.store, "kubebrain", &Purpose::Server(&LOCAL))?;
        sign(&issuer, &self.store_client, "kube-apiserver", &Purpose::Client("kubebrain-clients"))?;
        write(&self.store_authority, &certificate)
    }

    fn make_clusters(&self, service_address: &str) -> anyhow::Result<()> {
        let (issuer, certificate, key) = authority("kubewharf up")?;
        write_secret(&self.authority_key, &key)?;
        let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", service_address];
        sign(&issuer, &self.apiserver, "kube-apiserver", &Purpose::Server(&[&LOCAL[..], &service[..]].concat()))?;
        sign(&issuer, &self.admin, "admin", &Purpose::Client("system:masters"))?;
        sign(&issuer, &self.controllers, "system:kube-controller-manager", &Purpose::Client("kubewharf"))?;
        let tokens = KeyPair::generate()?;
        write_secret(&self.tokens.key, &tokens.serialize_pem())?;
        write(&self.tokens.certificate, &tokens.public_key_pem())?;
        write(&self.authority, &certificate)
    }

    /// Writes a kubeconfig for the user of `pair`.
    pub(super) fn write_kubeconfig(&self, path: &Path, url: &str, pair: &Pair) -> anyhow::Result<()> {
        let encoded = |path: &Path| -> anyhow::Result<String> {
            let content = fs::read(path).with_context(|| format!("can't read {}", path.display()))?;
            Ok(STANDARD.encode(content))
        };
        let text = format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: kubewharf\n\
             clusters:\n\
             - name: kubewharf\n  cluster:\n    server: {url}\n    certificate-authority-data: {}\n\
             users:\n\
             - name: kubewharf\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n\
             contexts:\n\
             - name: kubewharf\n  context:\n    cluster: kubewharf\n    user: kubewharf\n",
            encoded(&self.authority)?,
            encoded(&pair.certificate)?,
            encoded(&pair.key)?,
        );
        write_secret(path, &text)
    }
}

/// A new authority, its certificate, and its key.
fn authority(name: &str) -> anyhow::Result<(Issuer<'static, KeyPair>, String, String)> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let (certificate, key_text) = (params.self_signed(&key)?.pem(), key.serialize_pem());
    Ok((Issuer::new(params, key), certificate, key_text))
}

fn sign(issuer: &Issuer<'_, KeyPair>, pair: &Pair, name: &str, purpose: &Purpose<'_>) -> anyhow::Result<()> {
    let mut params = match purpose {
        Purpose::Server(hosts) => {
            let mut params = CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())?;
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params
        }
        Purpose::Client(group) => {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::OrganizationName, *group);
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            params
        }
    };
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?.pem();
    write_secret(&pair.key, &key.serialize_pem())?;
    write(&pair.certificate, &certificate)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

/// Writes a file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("can't write {}", path.display()))
}
