//! A gateway, and two kube-apiservers on one KubeBrain behind it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http::Client;
use kubewharf_testkit::kubernetes::{Apiserver, Kubectl, kubeconfig};
use kubewharf_testkit::pki::{Authority, Identity};
use kubewharf_testkit::process::{Process, Spec};
use kubewharf_testkit::store::{Store, product};
use serde_json::Value;

pub(crate) const WITHIN: Duration = Duration::from_secs(60);
/// The cluster's name.
pub(crate) const CLUSTER: &str = "cluster.test";
/// The token of the administrator's listener.
const ADMIN_TOKEN: &str = "admin-of-the-gateway";

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

/// A gateway of one cluster.
pub(crate) struct Gateway {
    // Before the folder, so that it is gone when its files are removed.
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    admin_address: SocketAddr,
    /// What the manifest says whatever the test: who is believed, and what is shown.
    identities: String,
    pub(crate) folder: Folder,
}

impl Gateway {
    /// Starts one in front of these endpoints. The spec is the manifest's `dispatchPolicies` and what is beside them,
    /// indented by two.
    pub(crate) fn start(authority: &Authority, endpoints: &[String], spec: &str) -> Self {
        Self::start_with(authority, endpoints, spec, &[])
    }

    /// The same with further flags.
    pub(crate) fn start_with(authority: &Authority, endpoints: &[String], spec: &str, flags: &[&str]) -> Self {
        let folder = Folder::new("gateway").unwrap();
        let (address, admin_address) = (free_port(), free_port());
        std::fs::create_dir(folder.path().join("config")).unwrap();
        let server = authority.server(&folder, "gateway", &[&address.ip().to_string(), CLUSTER]).unwrap();
        // The name of the gateway itself; it may impersonate, because it may do everything.
        let own = authority.client(&folder, "kubewharf-gateway", "system:masters").unwrap();
        let authority = authority.certificate_path().display();
        let identities = format!(
            "  clientConfig:\n    caFile: {authority}\n    certFile: {}\n    keyFile: {}\n    serverName: localhost\n  \
             secureServing:\n    certFile: {}\n    keyFile: {}\n    clientCAFile: {authority}\n",
            own.certificate_path.display(),
            own.key_path.display(),
            server.certificate_path.display(),
            server.key_path.display(),
        );
        folder.write("config/cluster.yaml", &manifest(endpoints, &identities, spec)).unwrap();
        folder.write("admin-token", ADMIN_TOKEN).unwrap();
        let mut process = Spec::new("gateway", product().unwrap(), folder.path())
            .arg("gateway")
            .arg(format!("--config-dir={}", folder.path().join("config").display()))
            .arg(format!("--listen={address}"))
            .arg(format!("--admin-listen={admin_address}"))
            .arg(format!("--admin-token-file={}", folder.path().join("admin-token").display()))
            .arg(format!("--default-cluster={CLUSTER}"))
            .arg(format!("--access-log={}", folder.path().join("access.log").display()))
            .arg("--drain-timeout=5")
            .args(flags)
            .start()
            .unwrap();
        process.wait_for_log(WITHIN, "ready to serve clients").unwrap();
        Self { process, address, admin_address, identities, folder }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Puts another manifest in the place of the one that is there.
    pub(crate) fn configure(&self, endpoints: &[String], spec: &str) {
        self.replace_manifest(&manifest(endpoints, &self.identities, spec));
    }

    /// The same with any text, at one stroke.
    pub(crate) fn replace_manifest(&self, text: &str) {
        let path = self.folder.write("cluster.yaml.new", text).unwrap();
        std::fs::rename(path, self.folder.path().join("config/cluster.yaml")).unwrap();
    }

    /// What the administrator's listener says at `/status`.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.ask_admin("/status")).unwrap()
    }

    /// What is measured under that name, all labels together.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let text = self.ask_admin("/metrics");
        let values = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with(['{', ' ']).then(|| rest.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        });
        values.sum()
    }

    pub(crate) fn ask_admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin_address).unwrap();
        stream.set_read_timeout(Some(WITHIN)).unwrap();
        let headers = format!("Host: admin\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\nConnection: close\r\n\r\n");
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{headers}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        body.to_owned()
    }

    /// How the endpoints are, in the order of the manifest.
    pub(crate) fn endpoints(&self) -> Vec<Value> {
        self.status()["clusters"][0]["endpoints"].as_array().unwrap().clone()
    }

    /// The lines of the access log so far.
    pub(crate) fn access_log(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("access.log")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn manifest(endpoints: &[String], identities: &str, spec: &str) -> String {
    let servers: String = endpoints.iter().map(|url| format!("  - endpoint: {url}\n")).collect();
    format!(
        "apiVersion: proxy.kubegateway.io/v1alpha1\nkind: UpstreamCluster\nmetadata:\n  name: {CLUSTER}\nspec:\n  \
         servers:\n{servers}{identities}{spec}"
    )
}

/// A cluster behind a gateway.
pub(crate) struct Fixture {
    // In the order in which they must end.
    pub(crate) gateway: Gateway,
    pub(crate) apiservers: Vec<Apiserver>,
    pub(crate) _store: Store,
}

impl Fixture {
    /// Starts everything; for the spec see [`Gateway::start`].
    pub(crate) fn start(spec: &str) -> Self {
        Self::start_with(spec, &[])
    }

    /// The same with further flags of the kube-apiservers.
    pub(crate) fn start_with(spec: &str, flags: &[&str]) -> Self {
        let store = Store::brain::<&str>(&[]).unwrap();
        // The first one ends its watches when it stops; the second one waits for a minute whether they end, as a
        // kube-apiserver does unless it is told otherwise.
        let grace: &[&str] = &["--shutdown-watch-termination-grace-period=2s"];
        let first = Apiserver::start(&store.url(), &[grace, flags].concat()).unwrap();
        let second = first.start_beside(&store.url(), flags).unwrap();
        let endpoints = [first.url(), second.url()];
        let gateway = Gateway::start(first.authority(), &endpoints, spec);
        Self { gateway, apiservers: vec![first, second], _store: store }
    }

    /// A client through the gateway, with the certificate of that user.
    pub(crate) fn client(&self, identity: &Identity) -> Client {
        Client::new(&self.gateway.url(), self.apiservers[0].authority(), identity)
    }

    pub(crate) fn admin(&self) -> Client {
        self.client(self.apiservers[0].admin())
    }

    /// A user known by a certificate.
    pub(crate) fn user(&self, name: &str, group: &str) -> Identity {
        self.apiservers[0].authority().client(&self.gateway.folder, name, group).unwrap()
    }

    /// A kubeconfig of the administrator through the gateway.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let server = &self.apiservers[0];
        let config = kubeconfig(&self.gateway.url(), server.authority(), server.admin());
        self.gateway.folder.write("kubeconfig", &config).unwrap()
    }

    /// kubectl through the gateway.
    pub(crate) fn kubectl(&self) -> Kubectl {
        Kubectl::new(&self.kubeconfig(), &self.gateway.folder).unwrap()
    }

    /// Where the kube-apiservers are.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.apiservers.iter().map(Apiserver::url).collect()
    }
}

/// One test at a time that keeps the machine busy and looks at how long things take.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    // A test that failed leaves nothing behind that another one would meet.
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until it is so.
pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !done() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
