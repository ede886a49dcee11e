//! The parts of a Kubernetes control plane, as processes of their own on a store of the test's choice.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::address::{self, free_port};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::http::Client;
use crate::pki::{self, Authority, Identity};
use crate::process::{self, Process, Spec};
use crate::tools::{self, Tool};

/// The flag that lets a kube-apiserver give pods their service account, as it does unless it is told otherwise: pods then
/// need an account to be there, so a controller manager too.
pub const SERVICE_ACCOUNTS: &str = "--enable-admission-plugins=ServiceAccount";

const READY_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// A kube-apiserver with certificates of its own. Dropping it kills it and removes its files.
#[derive(Debug)]
pub struct Apiserver {
    // Before the folder, so that it is gone when its files are removed.
    process: Process,
    spec: Spec,
    address: SocketAddr,
    keys: Arc<Keys>,
    kubeconfig: PathBuf,
    folder: Folder,
}

/// What all apiservers of one cluster have in common.
#[derive(Debug)]
struct Keys {
    authority: Authority,
    admin: Identity,
    kubelet_client: Identity,
    signing_key: PathBuf,
    checking_key: PathBuf,
    // The files above are in it.
    folder: Folder,
}

impl Keys {
    fn new() -> Result<Self> {
        let folder = Folder::new("cluster")?;
        let authority = Authority::new(&folder, "authority")?;
        let admin = authority.client(&folder, "admin", "system:masters")?;
        let kubelet_client = authority.client(&folder, "kube-apiserver-kubelet-client", "kube-apiservers")?;
        let (signing_key, checking_key) = pki::signing_keys(&folder, "service-account")?;
        Ok(Self { authority, admin, kubelet_client, signing_key, checking_key, folder })
    }
}

impl Apiserver {
    /// Starts one on the store at that URL, with these flags added, and waits until it is ready.
    ///
    /// Authorization is RBAC; the identity of [`Apiserver::client`] and [`Apiserver::kubectl`] may do everything.
    /// The admission of service accounts is off, so that pods can be made without a kube-controller-manager, unless
    /// [`SERVICE_ACCOUNTS`] is among the flags.
    ///
    /// # Errors
    /// When its program is missing or it does not get ready.
    pub fn start<S: AsRef<str>>(store_url: &str, flags: &[S]) -> Result<Self> {
        Self::start_with(Arc::new(Keys::new()?), store_url, flags)
    }

    /// Starts another one of the same cluster: the same authority, the same keys. The store must be the same too.
    ///
    /// # Errors
    /// As [`Apiserver::start`].
    pub fn start_beside<S: AsRef<str>>(&self, store_url: &str, flags: &[S]) -> Result<Self> {
        Self::start_with(self.keys.clone(), store_url, flags)
    }

    fn start_with<S: AsRef<str>>(keys: Arc<Keys>, store_url: &str, flags: &[S]) -> Result<Self> {
        let program = tools::shared(Tool::KubeApiserver)?;
        let folder = Folder::new("apiserver")?;
        let address = free_port();
        let authority = &keys.authority;
        let host = address.ip().to_string();
        let hosts = [host.as_str(), "localhost", "kubernetes.default.svc", "10.0.0.1"];
        let server = authority.server(&folder, "server", &hosts)?;
        let url = format!("https://{address}");
        let kubeconfig = folder.write("kubeconfig", &kubeconfig(&url, authority, &keys.admin))?;
        let spec = Spec::new("kube-apiserver", program, folder.path())
            .arg(format!("--etcd-servers={store_url}"))
            .arg(format!("--bind-address={host}"))
            .arg(format!("--secure-port={}", address.port()))
            // Only told to others; the one that it finds by itself needs a network beside the loopback.
            .arg("--advertise-address=127.0.0.1")
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg(format!("--tls-cert-file={}", server.certificate_path.display()))
            .arg(format!("--tls-private-key-file={}", server.key_path.display()))
            .arg(format!("--client-ca-file={}", authority.certificate_path().display()))
            .arg(format!("--kubelet-certificate-authority={}", authority.certificate_path().display()))
            .arg(format!("--kubelet-client-certificate={}", keys.kubelet_client.certificate_path.display()))
            .arg(format!("--kubelet-client-key={}", keys.kubelet_client.key_path.display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", keys.checking_key.display()))
            .arg(format!("--service-account-signing-key-file={}", keys.signing_key.display()))
            .arg("--authorization-mode=RBAC")
            .args(flags.iter().map(AsRef::as_ref));
        let admits = flags.iter().any(|flag| flag.as_ref() == SERVICE_ACCOUNTS);
        // The two flags exclude each other.
        let spec = if admits { spec } else { spec.arg("--disable-admission-plugins=ServiceAccount") };
        let process = spec.start()?;
        let mut apiserver = Self { process, spec, address, keys, kubeconfig, folder };
        apiserver.wait_until_ready()?;
        Ok(apiserver)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let client = self.client();
        self.process.wait_until(READY_WITHIN, |_| client.get("/readyz").is_ok_and(|answer| answer.status == 200))
    }

    /// Where it listens, as a URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A new client that may do everything.
    pub fn client(&self) -> Client {
        Client::new(&self.url(), &self.keys.authority, &self.keys.admin)
    }

    /// A kubeconfig whose user may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The authority that signed its certificate, and that it believes about clients.
    pub fn authority(&self) -> &Authority {
        &self.keys.authority
    }

    /// The identity that may do everything.
    pub fn admin(&self) -> &Identity {
        &self.keys.admin
    }

    /// The folder of what all apiservers of the cluster have in common.
    pub fn keys_folder(&self) -> &Folder {
        &self.keys.folder
    }

    /// The folder of its files.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process number, for [`crate::usage`].
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Stops it in good order and starts it again at the same address, on the same store.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn stop_and_start(&mut self) -> Result<()> {
        self.process.stop(STOP_WITHIN);
        self.start_again()
    }

    /// Starts it again at the same address, on the same store, after it has ended.
    ///
    /// # Errors
    /// When it does not get ready again.
    pub fn start_again(&mut self) -> Result<()> {
        self.process = self.spec.start()?;
        self.wait_until_ready()
    }

    /// Kubernetes' own command-line client for it.
    ///
    /// # Errors
    /// When it cannot be found or built.
    pub fn kubectl(&self) -> Result<Kubectl> {
        Kubectl::new(&self.kubeconfig, &self.folder)
    }

    /// Starts these controllers of kube-controller-manager for it, such as `namespace-controller`.
    ///
    /// # Errors
    /// When its program is missing or it does not get ready.
    pub fn start_controllers(&self, controllers: &[&str]) -> Result<Process> {
        let program = tools::shared(Tool::KubeControllerManager)?;
        let mut process = Spec::new("kube-controller-manager", program, self.folder.path())
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--controllers={}", controllers.join(",")))
            .arg("--leader-elect=false")
            .arg(format!("--bind-address={}", address::host()))
            .arg(format!("--secure-port={}", free_port().port()))
            .arg(format!("--cert-dir={}", self.folder.path().join("controllers").display()))
            .arg(format!("--service-account-private-key-file={}", self.keys.signing_key.display()))
            .arg(format!("--root-ca-file={}", self.keys.authority.certificate_path().display()))
            // Tests wait for what controllers do: a quick client, and no waiting before a second try.
            .args(["--kube-api-qps=500", "--kube-api-burst=1000", "--v=2"])
            .start()?;
        process.wait_for_log(READY_WITHIN, "Controller starting")?;
        Ok(process)
    }
}

/// A kubeconfig of one cluster and one user.
pub fn kubeconfig(url: &str, authority: &Authority, user: &Identity) -> String {
    // JSON is YAML, and needs no rules of indentation.
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": url,
            "certificate-authority": authority.certificate_path(),
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate": user.certificate_path,
            "client-key": user.key_path,
        }}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
    });
    config.to_string()
}

/// Runs kubectl against one server.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    /// For the server of that kubeconfig; what it caches goes into the folder.
    ///
    /// # Errors
    /// When kubectl cannot be found or built.
    pub fn new(kubeconfig: &Path, folder: &Folder) -> Result<Self> {
        Ok(Self {
            program: tools::shared(Tool::Kubectl)?.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            cache: folder.path().join("kubectl-cache"),
        })
    }

    /// The command, for a test that wants more of it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(self.common()).args(arguments).stdin(Stdio::null());
        command
    }

    fn common(&self) -> [String; 2] {
        [format!("--kubeconfig={}", self.kubeconfig.display()), format!("--cache-dir={}", self.cache.display())]
    }

    /// Runs it, and returns what it printed.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        process::run(&mut self.command(arguments))
    }

    /// Runs it with that text as its standard input: for `apply -f -` and the like.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn run_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let failed = |source| Error::Start { program: self.program.display().to_string(), source };
        let mut file = tempfile::tempfile().map_err(failed)?;
        file.write_all(input.as_bytes()).map_err(failed)?;
        std::io::Seek::rewind(&mut file).map_err(failed)?;
        process::run(self.command(arguments).stdin(file))
    }

    /// Starts it beside the test, for example to watch; its output goes to `name.log` in that folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self, name: &str, folder: &Folder, arguments: &[&str]) -> Result<Process> {
        Spec::new(name, &self.program, folder.path()).args(self.common()).args(arguments).start()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::store::Store;

    #[test]
    fn an_apiserver_on_etcd_tells_its_release_and_obeys_its_admin_only() {
        let store = Store::etcd::<&str>(&[]).unwrap();
        let begun = Instant::now();
        let apiserver = Apiserver::start::<&str>(&store.url(), &[]).unwrap();
        println!("ready after {:?}", begun.elapsed());
        let version = apiserver.client().get("/version").unwrap().ok().unwrap();
        // Without the version that is linked in it would be v0.0.0-master.
        assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.36."), "{version}");

        let admin = apiserver.kubectl().unwrap();
        assert_eq!(admin.run(&["auth", "can-i", "*", "*"]).unwrap(), "yes\n");
        let nobody = apiserver.authority().client(apiserver.folder(), "nobody", "nogroup").unwrap();
        let nobody = Client::new(&apiserver.url(), apiserver.authority(), &nobody);
        assert_eq!(nobody.get("/api/v1/namespaces").unwrap().status, 403);
    }
}
