//! Certificates and keys of the control plane, made at the first start and kept.
//!
//! There are two authorities: the cluster's, which anyone who may approve certificate requests can have sign a client's
//! certificate, and the store's, which signs two certificates, once, and whose key is not kept. So no user of the
//! cluster can reach past kube-apiserver's authorization into the store. The gateway's own identity may ask who a user is
//! and act as one (see `gateway`), and nothing else.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::gateway;
use super::kubectl::Url;

/// The name of the cluster's authority.
const CLUSTER_AUTHORITY: &str = "kubewharf up";
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
    /// Of all kube-apiservers.
    pub(super) apiserver: Pair,
    /// What they show to kubelets, for logs, exec and the like. The names are those that kubeadm gave it.
    pub(super) kubelet_client: Pair,
    /// What the gateway shows to clients.
    pub(super) gateway: Pair,
    /// What it shows to kube-apiservers.
    pub(super) gateway_client: Pair,
    pub(super) admin: Pair,
    /// What KubeZoo shows to the gateway. It installs, and acts as tenants: it may do everything.
    pub(super) zoo: Pair,
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
            kubelet_client: pair("kube-apiserver-kubelet-client"),
            gateway: pair("kubegateway"),
            gateway_client: pair("kubegateway-client"),
            admin: pair("admin"),
            zoo: pair("kubezoo"),
            controllers: pair("kube-controller-manager"),
            tokens: Pair { certificate: folder.join("tokens.pub"), key: folder.join("tokens.key") },
        };
        fs::create_dir_all(folder).with_context(|| format!("can't make {}", folder.display()))?;
        // The authority is written last, so that what was left half-made is made again.
        if !pki.store_authority.exists() {
            pki.make_stores().context("can't make the store's certificates")?;
        }
        pki.make_clusters(service_address).context("can't make certificates")?;
        Ok(pki)
    }

    fn make_stores(&self) -> anyhow::Result<()> {
        let authority = Authority::new("kubewharf up: the store", KeyPair::generate()?);
        authority.sign(&self.store, "kubebrain", &Purpose::Server(&LOCAL))?;
        authority.sign(&self.store_client, "kube-apiserver", &Purpose::Client("kubebrain-clients"))?;
        write(&self.store_authority, &authority.certificate()?)
    }

    fn make_clusters(&self, service_address: &str) -> anyhow::Result<()> {
        if !self.authority.exists() {
            let key = KeyPair::generate()?;
            write_secret(&self.authority_key, &key.serialize_pem())?;
            // What another authority has signed is of no use.
            for pair in [
                &self.apiserver,
                &self.kubelet_client,
                &self.gateway,
                &self.gateway_client,
                &self.admin,
                &self.zoo,
                &self.controllers,
            ] {
                remove(&pair.certificate)?;
            }
            write(&self.authority, &Authority::new(CLUSTER_AUTHORITY, key).certificate()?)?;
        }
        let key = fs::read_to_string(&self.authority_key)
            .with_context(|| format!("can't read {}", self.authority_key.display()))?;
        let key = KeyPair::from_pem(&key).with_context(|| format!("no key: {}", self.authority_key.display()))?;
        let authority = Authority::new(CLUSTER_AUTHORITY, key);
        let service = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", service_address];
        let server = [&LOCAL[..], &service[..]].concat();
        for (pair, name, purpose) in [
            (&self.apiserver, "kube-apiserver", Purpose::Server(&server)),
            (&self.kubelet_client, "kube-apiserver-kubelet-client", Purpose::Client("system:masters")),
            (&self.gateway, "kubegateway", Purpose::Server(&server)),
            (&self.gateway_client, gateway::USER, Purpose::Client(gateway::GROUP)),
            (&self.admin, "admin", Purpose::Client("system:masters")),
            (&self.zoo, "kubezoo", Purpose::Client("system:masters")),
            (&self.controllers, "system:kube-controller-manager", Purpose::Client("kubewharf")),
        ] {
            if !pair.certificate.exists() {
                authority.sign(pair, name, &purpose)?;
            }
        }
        if !self.tokens.certificate.exists() {
            let tokens = KeyPair::generate()?;
            write_secret(&self.tokens.key, &tokens.serialize_pem())?;
            write(&self.tokens.certificate, &tokens.public_key_pem())?;
        }
        Ok(())
    }

    /// Writes a kubeconfig for the user of `pair`.
    pub(super) fn write_kubeconfig(&self, path: &Path, url: Url, pair: &Pair) -> anyhow::Result<()> {
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

/// Who signs certificates. The same name and key are the same authority.
struct Authority(Issuer<'static, KeyPair>, CertificateParams);

impl Authority {
    fn new(name: &str, key: KeyPair) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        Self(Issuer::new(params.clone(), key), params)
    }

    fn certificate(&self) -> anyhow::Result<String> {
        let Self(issuer, params) = self;
        Ok(params.self_signed(issuer.key())?.pem())
    }

    /// Writes a new certificate and its key, the key first.
    fn sign(&self, pair: &Pair, name: &str, purpose: &Purpose<'_>) -> anyhow::Result<()> {
        let mut params = match purpose {
            Purpose::Server(hosts) => {
                let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
                let mut params = CertificateParams::new(hosts)?;
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
        let certificate = params.signed_by(&key, &self.0)?.pem();
        write_secret(&pair.key, &key.serialize_pem())?;
        write(&pair.certificate, &certificate)
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("can't write {}", path.display()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("can't remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Writes a file that only its owner may read.
pub(super) fn write_secret(path: &Path, text: &str) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_made_where_they_are_missing_and_with_their_authority() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || Pki::open(folder.path(), "10.0.0.1").expect("made");
        let read = |pair: &Pair| [&pair.certificate, &pair.key].map(|path| fs::read(path).expect("a file"));
        let pki = open();
        let first = read(&pki.kubelet_client);
        assert_eq!(read(&open().kubelet_client), first, "kept");
        // As in a folder of an earlier version.
        fs::remove_file(&pki.kubelet_client.certificate).expect("removed");
        let admin = read(&pki.admin);
        let second = read(&open().kubelet_client);
        assert_ne!(second, first);
        assert_eq!(read(&pki.admin), admin, "kept");
        fs::remove_file(&pki.authority).expect("removed");
        let third = read(&open().kubelet_client);
        assert_ne!(third, second);
        assert_ne!(read(&pki.admin), admin);
    }
}
