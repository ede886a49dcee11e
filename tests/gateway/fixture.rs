//! Two kube-apiservers on one KubeBrain, and a gateway in front of them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http::Client;
use kubewharf_testkit::kubernetes::{Apiserver, Kubectl, kubeconfig};
use kubewharf_testkit::pki::Identity;
use kubewharf_testkit::process::{Process, Spec};
use kubewharf_testkit::store::{Store, product};

pub(crate) const WITHIN: Duration = Duration::from_secs(60);
/// The cluster's name.
pub(crate) const CLUSTER: &str = "cluster.test";
/// The token of the administrator's listener.
const ADMIN_TOKEN: &str = "admin-of-the-gateway";

/// A cluster behind a gateway.
pub(crate) struct Fixture {
    // In the order in which they must end.
    pub(crate) _gateway: Process,
    pub(crate) apiservers: Vec<Apiserver>,
    pub(crate) _store: Store,
    pub(crate) address: SocketAddr,
    pub(crate) folder: Folder,
}

impl Fixture {
    /// Starts everything. The policies are those of the manifest's `dispatchPolicies` and what is beside them, indented by two.
    pub(crate) fn start(spec: &str) -> Self {
        let folder = Folder::new("gateway").unwrap();
        let store = Store::brain::<&str>(&[]).unwrap();
        let first = Apiserver::start::<&str>(&store.url(), &[]).unwrap();
        let second = first.start_beside::<&str>(&store.url(), &[]).unwrap();
        let apiservers = vec![first, second];
        let (address, admin_address) = (free_port(), free_port());
        std::fs::create_dir(folder.path().join("config")).unwrap();
        let authority = apiservers[0].authority();
        let server = authority.server(&folder, "gateway", &[&address.ip().to_string(), CLUSTER]).unwrap();
        // The name of the gateway itself; it may impersonate, because it may do everything.
        let own = authority.client(&folder, "kubewharf-gateway", "system:masters").unwrap();
        let manifest = manifest(&apiservers, &server, &own, spec);
        folder.write("config/cluster.yaml", &manifest).unwrap();
        folder.write("admin-token", ADMIN_TOKEN).unwrap();
        let mut gateway = Spec::new("gateway", product().unwrap(), folder.path())
            .arg("gateway")
            .arg(format!("--config-dir={}", folder.path().join("config").display()))
            .arg(format!("--listen={address}"))
            .arg(format!("--admin-listen={admin_address}"))
            .arg(format!("--admin-token-file={}", folder.path().join("admin-token").display()))
            .arg(format!("--default-cluster={CLUSTER}"))
            .arg(format!("--access-log={}", folder.path().join("access.log").display()))
            .arg("--drain-timeout=5")
            .start()
            .unwrap();
        gateway.wait_for_log(WITHIN, "ready to serve clients").unwrap();
        Self { _gateway: gateway, apiservers, _store: store, address, folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A client through the gateway, with the certificate of that user.
    pub(crate) fn client(&self, identity: &Identity) -> Client {
        Client::new(&self.url(), self.apiservers[0].authority(), identity)
    }

    pub(crate) fn admin(&self) -> Client {
        self.client(self.apiservers[0].admin())
    }

    /// A user known by a certificate.
    pub(crate) fn user(&self, name: &str, group: &str) -> Identity {
        self.apiservers[0].authority().client(&self.folder, name, group).unwrap()
    }

    /// kubectl through the gateway.
    pub(crate) fn kubectl(&self) -> Kubectl {
        let server = &self.apiservers[0];
        let config = kubeconfig(&self.url(), server.authority(), server.admin());
        let path: PathBuf = self.folder.write("kubeconfig", &config).unwrap();
        Kubectl::new(&path, &self.folder).unwrap()
    }

    /// The lines of the access log so far.
    pub(crate) fn access_log(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn manifest(apiservers: &[Apiserver], server: &Identity, own: &Identity, spec: &str) -> String {
    let servers: Vec<_> = apiservers.iter().map(|server| format!("  - endpoint: {}\n", server.url())).collect();
    let authority = apiservers[0].authority().certificate_path().display().to_string();
    format!(
        "apiVersion: proxy.kubegateway.io/v1alpha1\nkind: UpstreamCluster\nmetadata:\n  name: {CLUSTER}\nspec:\n  servers:\n{}  \
         clientConfig:\n    caFile: {authority}\n    certFile: {}\n    keyFile: {}\n    serverName: localhost\n  \
         secureServing:\n    certFile: {}\n    keyFile: {}\n    clientCAFile: {authority}\n{spec}",
        servers.concat(),
        own.certificate_path.display(),
        own.key_path.display(),
        server.certificate_path.display(),
        server.key_path.display(),
    )
}

/// One policy that takes everything.
pub(crate) const EVERYTHING: &str = "  logging:
    mode: 'on'
  dispatchPolicies:
  - rules:
    - verbs: ['*']
      apiGroups: ['*']
      resources: ['*']
    - verbs: ['*']
      nonResourceURLs: ['*']
";
