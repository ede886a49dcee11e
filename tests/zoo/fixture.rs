//! Clusters to compare: a plain one, and one with KubeZoo in front of it and tenants.
//!
//! Invariant: everything here ends with the test program, and its logs stay when a test failed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::http::Client;
use kubewharf_testkit::kubernetes::{Apiserver, Kubectl, SERVICE_ACCOUNTS};
use kubewharf_testkit::pki::Identity;
use kubewharf_testkit::process::{self, Process, Spec};
use kubewharf_testkit::store::{Store, product};
use kubewharf_zoo::names::Names;
use serde_json::Value;

pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// Puts a second plain cluster in the tenant's place when it is `plain`.
const SUBJECT_VARIABLE: &str = "KUBEWHARF_ZOO_SUBJECT";
/// Kubernetes makes no endpoint of an address of the loopback network. Nobody calls this one: it is for documents.
const ADVERTISED: &str = "--advertise-address=192.0.2.1";
/// The same of another KubeZoo.
const ADVERTISED_TOO: &str = "--advertise-address=192.0.2.2";
/// The tenant that the oracle judges.
const TENANT: &str = "judged";

/// A kube-apiserver with all controllers, and without nodes.
pub(crate) struct Cluster {
    // In the order in which they must end.
    _controllers: Process,
    pub(crate) apiserver: Apiserver,
    _store: Store,
}

impl Cluster {
    /// Starts one and waits until it has what each cluster has.
    pub(crate) fn start() -> Self {
        let store = Store::start::<&str>(&[]).unwrap();
        let apiserver = Apiserver::start(&store.url(), &[SERVICE_ACCOUNTS, ADVERTISED]).unwrap();
        let controllers = apiserver.start_controllers(&["*"]).unwrap();
        let cluster = Self { _controllers: controllers, apiserver, _store: store };
        let client = cluster.apiserver.client();
        wait("each namespace has its service account", || {
            ["default", "kube-system", "kube-public", "kube-node-lease"].iter().all(|namespace| {
                let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
                client.get(&path).is_ok_and(|answer| answer.status == 200)
            })
        });
        cluster
    }
}

/// KubeZoo in front of a cluster.
pub(crate) struct Zoo {
    // In the order in which they must end.
    pub(crate) process: Mutex<Process>,
    spec: Spec,
    pub(crate) cluster: Cluster,
    pub(crate) address: SocketAddr,
    pub(crate) admin_address: SocketAddr,
    pub(crate) folder: Folder,
}

/// Another KubeZoo in front of the same cluster.
pub(crate) struct Another {
    pub(crate) process: Process,
    pub(crate) admin_address: SocketAddr,
    _folder: Folder,
}

impl Zoo {
    /// Starts a cluster and KubeZoo, and waits until both are ready.
    pub(crate) fn start() -> Self {
        let cluster = Cluster::start();
        let folder = Folder::new("zoo").unwrap();
        let (address, admin_address) = (free_port(), free_port());
        let spec = spec(&cluster, &folder, address, admin_address, ADVERTISED);
        let process = Mutex::new(spec.start().unwrap());
        let zoo = Self { process, spec, cluster, address, admin_address, folder };
        zoo.wait_until_ready();
        zoo
    }

    /// Starts another one beside it: the same keys, the same port, another address.
    pub(crate) fn start_another(&self) -> Another {
        let folder = Folder::new("another-zoo").unwrap();
        std::fs::create_dir(folder.path().join("data")).unwrap();
        for name in ["ca.crt", "ca.key", "tokens.key"] {
            std::fs::copy(self.folder.path().join("data").join(name), folder.path().join("data").join(name)).unwrap();
        }
        let IpAddr::V4(ip) = self.address.ip() else { panic!("the loopback network is of IPv4") };
        let [first, second, third, fourth] = ip.octets();
        // No process of a test has such an address of its own.
        let address = (Ipv4Addr::new(first, second | 128, third, fourth), self.address.port()).into();
        let admin_address = free_port();
        let mut process = spec(&self.cluster, &folder, address, admin_address, ADVERTISED_TOO).start().unwrap();
        wait_until_ready(&mut process, &folder, admin_address);
        Another { process, admin_address, _folder: folder }
    }

    /// Starts it again after its end, and waits until it is ready.
    pub(crate) fn start_again(&self) {
        *self.process.lock().unwrap() = self.spec.start().unwrap();
        self.wait_until_ready();
    }

    fn wait_until_ready(&self) {
        wait_until_ready(&mut self.process.lock().unwrap(), &self.folder, self.admin_address);
    }

    /// The certificate of the authority that signs for KubeZoo and its tenants.
    pub(crate) fn root(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("data/ca.crt")).unwrap()
    }

    /// The administrator's tool; returns what it prints.
    pub(crate) fn tool(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(product().unwrap());
        command.arg("zoo").args(arguments).arg("--upstream-kubeconfig").arg(self.cluster.apiserver.kubeconfig());
        process::run(&mut command).map_err(|error| error.to_string())
    }

    /// Creates a tenant, and waits for its kubeconfig.
    pub(crate) fn create_tenant(&self, name: &str) -> Tenant {
        self.tool(&["tenant", "create", name]).unwrap();
        self.tenant(name)
    }

    /// A tenant that is there, with a new credential.
    pub(crate) fn tenant(&self, name: &str) -> Tenant {
        let text = self.tool(&["tenant", "kubeconfig", name]).unwrap();
        let path = format!("/apis/tenancy.kubewharf.io/v1/tenants/{name}");
        let object = self.cluster.apiserver.client().get(&path).unwrap().ok().unwrap();
        let names = Names::of_uid(object["metadata"]["uid"].as_str().unwrap());
        Tenant::new(name, &text, names)
    }
}

fn spec(cluster: &Cluster, folder: &Folder, address: SocketAddr, admin_address: SocketAddr, advertised: &str) -> Spec {
    Spec::new("zoo", product().unwrap(), folder.path())
        .arg("zoo")
        .arg(format!("--upstream-kubeconfig={}", cluster.apiserver.kubeconfig().display()))
        .arg(format!("--listen={address}"))
        .arg(format!("--admin-listen={admin_address}"))
        .arg(format!("--data-dir={}", folder.path().join("data").display()))
        .arg(advertised)
}

fn wait_until_ready(process: &mut Process, folder: &Folder, admin_address: SocketAddr) {
    let ca = folder.path().join("data/ca.crt");
    let ready = |_: &Process| {
        let Ok(root) = std::fs::read_to_string(&ca) else { return false };
        let client = Client::with_root(&format!("https://{admin_address}"), &root, None);
        client.get("/readyz").is_ok_and(|answer| answer.status == 200)
    };
    process.wait_until(WITHIN, ready).unwrap();
}

/// A tenant, and the credential of its administrator.
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) kubeconfig: PathBuf,
    /// What its names are upstream.
    pub(crate) names: Names,
    /// The server's URL.
    pub(crate) server: String,
    /// The certificate of the server's authority.
    pub(crate) root: String,
    pub(crate) identity: Identity,
    pub(crate) folder: Folder,
}

impl Tenant {
    fn new(name: &str, text: &str, names: Names) -> Self {
        let folder = Folder::new("tenant").unwrap();
        let kubeconfig = folder.write("kubeconfig", text).unwrap();
        let read =
            Kubectl::new(&kubeconfig, &folder).unwrap().run(&["config", "view", "--raw", "--flatten", "-o=json"]);
        let config: Value = serde_json::from_str(&read.unwrap()).unwrap();
        let server = config["clusters"][0]["cluster"]["server"].as_str().unwrap().to_owned();
        let root = decoded(&config["clusters"][0]["cluster"]["certificate-authority-data"]);
        let certificate = decoded(&config["users"][0]["user"]["client-certificate-data"]);
        let key = decoded(&config["users"][0]["user"]["client-key-data"]);
        let identity = Identity {
            certificate_path: folder.write("admin.crt", &certificate).unwrap(),
            key_path: folder.write("admin.key", &key).unwrap(),
            certificate,
            key,
        };
        Self { name: name.to_owned(), kubeconfig, names, server, root, identity, folder }
    }

    pub(crate) fn client(&self) -> Client {
        Client::with_root(&self.server, &self.root, Some(&self.identity))
    }
}

fn decoded(data: &Value) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(data.as_str().unwrap()).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// What stands in the tenant's place.
pub(crate) enum Subject {
    Tenant(Box<Tenant>),
    Plain(Box<Cluster>),
}

/// What all tests share, started when it is needed first.
pub(crate) struct World {
    zoo: OnceLock<Zoo>,
    oracle: OnceLock<Cluster>,
    subject: OnceLock<Subject>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { zoo: OnceLock::new(), oracle: OnceLock::new(), subject: OnceLock::new() }
    }

    /// Whether there is a tenant to judge, not a second plain cluster to judge the comparison by.
    pub(crate) fn judges_a_tenant() -> bool {
        match std::env::var(SUBJECT_VARIABLE).as_deref() {
            Err(_) | Ok("" | "tenant") => true,
            Ok("plain") => false,
            Ok(other) => panic!("{SUBJECT_VARIABLE}={other}: must be tenant or plain"),
        }
    }

    pub(crate) fn zoo(&self) -> &Zoo {
        self.zoo.get_or_init(Zoo::start)
    }

    /// The plain cluster, and what is compared with it.
    pub(crate) fn pair(&self) -> (&Cluster, &Subject) {
        std::thread::scope(|scope| {
            let oracle = scope.spawn(|| self.oracle.get_or_init(Cluster::start));
            let subject = self.subject.get_or_init(|| {
                if Self::judges_a_tenant() {
                    Subject::Tenant(Box::new(self.zoo().create_tenant(TENANT)))
                } else {
                    Subject::Plain(Box::new(Cluster::start()))
                }
            });
            (oracle.join().unwrap(), subject)
        })
    }
}

impl Subject {
    /// How a client reaches it as its administrator.
    pub(crate) fn kubeconfig(&self) -> &Path {
        match self {
            Self::Tenant(tenant) => &tenant.kubeconfig,
            Self::Plain(cluster) => cluster.apiserver.kubeconfig(),
        }
    }

    pub(crate) fn server(&self) -> String {
        match self {
            Self::Tenant(tenant) => tenant.server.clone(),
            Self::Plain(cluster) => cluster.apiserver.url(),
        }
    }

    /// What no answer may hold: the tenant's names upstream, and what it is made from.
    pub(crate) fn secrets(&self) -> Vec<String> {
        match self {
            Self::Tenant(tenant) => vec![tenant.names.id().to_string(), tenant.names.uid().to_owned()],
            Self::Plain(_) => Vec::new(),
        }
    }
}

/// Waits until it is so.
pub(crate) fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !done() {
        assert!(Instant::now() < deadline, "never came: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
