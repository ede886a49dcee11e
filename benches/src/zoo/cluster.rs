//! What is measured in: a kube-apiserver on a KubeBrain, and KubeZoo in front of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Method, StatusCode};
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::kubernetes::Apiserver;
use kubewharf_testkit::process::{self, Process, Spec};
use kubewharf_testkit::store::{Store, product};
use rustls::ClientConfig;
use serde_json::{Value, json};

use super::measure::Processes;
use super::options::Options;
use crate::https::{Ask, Connection, JSON, Target};
use crate::tls;
use crate::usage::cpu_time;

/// A name in the certificates of both.
pub const HOST: &str = "localhost";
/// Who asks the kube-apiserver directly: one among many, whose rights are looked up as everybody's are.
const USER: &str = "benchmark";
/// How long anything may take to get ready.
pub const WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(20);
/// Time between two tries whether it answers.
const POLL: Duration = Duration::from_millis(2);
/// KubeZoo is idle once it takes less than this share of a core for that long.
const IDLE_SHARE: f64 = 0.02;
const IDLE_FOR: Duration = Duration::from_millis(500);

/// A cluster. Dropping it ends it and removes its data.
pub struct Cluster {
    // In the order in which they end.
    /// KubeZoo.
    pub zoo: Zoo,
    apiserver: Apiserver,
    store: Store,
    /// A connection to the kube-apiserver whose user may do everything.
    pub admin: Rc<Connection>,
    /// Where that goes.
    admin_target: Target,
    /// The kube-apiserver for [`USER`], who may do everything too, but by a rule.
    pub direct: Target,
}

impl Cluster {
    /// Starts it; KubeZoo's files go into a folder below `folder`.
    ///
    /// # Errors
    /// When a program is missing, or does not get ready.
    pub async fn start(options: &Options, folder: &Folder) -> Result<Self> {
        let store = Store::brain::<&str>(&[])?;
        let apiserver = Apiserver::start::<&str>(&store.url(), &[])?;
        let address = apiserver.url().trim_start_matches("https://").parse().context("an address")?;
        let authority = apiserver.authority().certificate();
        let of = |identity: &kubewharf_testkit::pki::Identity| {
            tls::client_of(&identity.certificate, &identity.key, authority)
        };
        let user = apiserver.authority().client(folder, USER, "benchmarks")?;
        let direct = Target::new(address, HOST, of(&user)?);
        let admin_target = Target::new(address, HOST, of(apiserver.admin())?);
        let admin = Rc::new(Connection::open(&admin_target).await?);
        let zoo = Zoo::start(options, folder, &apiserver).await?;
        let cluster = Self { zoo, apiserver, store, admin, admin_target, direct };
        cluster.let_user_in().await?;
        Ok(cluster)
    }

    /// Connects the administrator anew: a kube-apiserver closes connections that were idle for a while.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn reconnect(&mut self) -> Result<()> {
        self.admin = Rc::new(Connection::open(&self.admin_target).await?);
        self.zoo.stop().await?;
        self.zoo.run().await.map(drop)
    }

    async fn let_user_in(&self) -> Result<()> {
        // Not "view" or the like: those are put together by a controller, which does not run here.
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "benchmark"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": USER}],
        });
        self.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await?;
        let user = Connection::open(&self.direct).await?;
        let deadline = Instant::now() + WITHIN;
        // A kube-apiserver takes a moment to know a new rule.
        while let Err(error) = user.get_bytes("/api/v1/namespaces/default").await {
            ensure!(Instant::now() < deadline, "the benchmark's user may not read: {error:#}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Makes an object as the administrator, and returns it.
    ///
    /// # Errors
    /// When the kube-apiserver refuses.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        create(&self.admin, path, object).await
    }

    /// The processes that work for requests to KubeZoo.
    pub fn with_zoo(&self) -> Processes {
        Processes { zoo: self.zoo.id(), ..self.without_zoo() }
    }

    /// The processes that work for requests to the kube-apiserver itself.
    pub fn without_zoo(&self) -> Processes {
        Processes { zoo: None, apiserver: self.apiserver.id(), store: self.store.id() }
    }

    /// The sum of the values that a metric of the kube-apiserver has with these labels.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn apiserver_metric(&self, name: &str, labels: &[String]) -> Result<f64> {
        let text = self.admin.expect(StatusCode::OK, &Ask::get("/metrics")).await?;
        Ok(metric(&String::from_utf8_lossy(&text), name, labels))
    }
}

/// Makes an object, and returns it.
///
/// # Errors
/// When the server refuses.
pub async fn create(connection: &Connection, path: &str, object: &Value) -> Result<Value> {
    let ask = Ask::with(Method::POST, path, JSON, object.to_string().into());
    Ok(serde_json::from_slice(&connection.expect(StatusCode::CREATED, &ask).await?)?)
}

/// The sum of the values that a metric has with these labels, each as `name="value"`.
fn metric(text: &str, name: &str, labels: &[String]) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        let is_whole = rest.starts_with(['{', ' ']);
        let value = rest.rsplit(' ').next()?.parse::<f64>().ok()?;
        (is_whole && labels.iter().all(|label| rest.contains(label.as_str()))).then_some(value)
    };
    text.lines().filter_map(value).sum()
}

/// KubeZoo, as a process of its own. Dropping it kills it.
pub struct Zoo {
    process: Option<Running>,
    spec: Spec,
    /// Where tenants connect.
    pub address: SocketAddr,
    admin_address: SocketAddr,
    authority: PathBuf,
    /// The certificate and key (PEM) that the kube-apiserver's administrator has.
    identity: (String, String),
    // After the process, so that it is gone when its files are removed.
    _folder: Folder,
}

struct Running {
    process: Process,
    admin: Rc<Connection>,
}

impl Zoo {
    async fn start(options: &Options, parent: &Folder, apiserver: &Apiserver) -> Result<Self> {
        let folder = Folder::new_in(parent.path(), "zoo")?;
        let (address, admin_address) = (free_port(), free_port());
        let data = folder.path().join("data");
        let spec = Spec::new("zoo", program(options)?, folder.path())
            .arg("zoo")
            .arg(format!("--upstream-kubeconfig={}", apiserver.kubeconfig().display()))
            .arg(format!("--listen={address}"))
            .arg(format!("--admin-listen={admin_address}"))
            .arg(format!("--data-dir={}", data.display()))
            .arg("--log-level=warn");
        let admin = apiserver.admin();
        let mut zoo = Self {
            process: None,
            spec,
            address,
            admin_address,
            authority: data.join("ca.crt"),
            identity: (admin.certificate.clone(), admin.key.clone()),
            _folder: folder,
        };
        zoo.run().await?;
        Ok(zoo)
    }

    /// Starts the program if it does not run; returns the time until it answers that it is ready.
    ///
    /// # Errors
    /// When it does not get ready.
    pub async fn run(&mut self) -> Result<Duration> {
        let begun = Instant::now();
        if self.process.is_some() {
            return Ok(Duration::ZERO);
        }
        let mut process = self.spec.start()?;
        loop {
            let error = match self.ready().await {
                Ok(admin) => {
                    self.process = Some(Running { process, admin: Rc::new(admin) });
                    return Ok(begun.elapsed());
                }
                Err(error) => error,
            };
            let log = process.log_path().to_owned();
            ensure!(process.ended().is_none(), "KubeZoo ended; its log is {}", log.display());
            ensure!(begun.elapsed() < WITHIN, "{error:#}; the log is {}", log.display());
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ready(&self) -> Result<Connection> {
        let (certificate, key) = &self.identity;
        let config = tls::client_of(certificate, key, &self.root()?)?;
        let admin = Connection::open(&Target::new(self.admin_address, HOST, config)).await?;
        admin.get_bytes("/readyz").await?;
        Ok(admin)
    }

    /// Stops the program in good order. It waits for its clients, which end meanwhile.
    ///
    /// # Errors
    /// Never: stopping can only last.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(Running { mut process, admin }) = self.process.take() {
            drop(admin);
            tokio::task::spawn_blocking(move || process.stop(STOP_WITHIN)).await?;
        }
        Ok(())
    }

    /// The process number, if it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(|running| running.process.id())
    }

    /// The connection of an administrator.
    ///
    /// # Errors
    /// When it does not run.
    pub fn admin(&self) -> Result<Rc<Connection>> {
        Ok(self.process.as_ref().context("KubeZoo does not run")?.admin.clone())
    }

    /// The certificate (PEM) of its authority.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn root(&self) -> Result<String> {
        std::fs::read_to_string(&self.authority).with_context(|| format!("read {}", self.authority.display()))
    }

    /// Where a tenant's clients connect.
    pub fn target(&self, config: Arc<ClientConfig>) -> Target {
        Target::new(self.address, HOST, config)
    }

    /// The value of a metric.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text: Bytes = self.admin()?.get_bytes("/metrics").await?;
        Ok(metric(&String::from_utf8_lossy(&text), name, &[]))
    }

    /// Waits until it does nothing any more.
    ///
    /// # Errors
    /// When it does not run, or never comes to rest.
    pub async fn wait_until_idle(&self) -> Result<()> {
        let deadline = Instant::now() + WITHIN;
        let pid = self.id().context("KubeZoo does not run")?;
        loop {
            let before = cpu_time(pid)?;
            tokio::time::sleep(IDLE_FOR).await;
            if (cpu_time(pid)? - before).as_secs_f64() < IDLE_SHARE * IDLE_FOR.as_secs_f64() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "KubeZoo is still busy after {WITHIN:?}");
        }
    }
}

/// The program that is KubeZoo.
///
/// # Errors
/// When it is missing.
pub fn program(options: &Options) -> Result<PathBuf> {
    match &options.zoo_program {
        Some(path) => Ok(path.clone()),
        None => Ok(product()?),
    }
}

/// What the program says of its version, in one line.
///
/// # Errors
/// When it does not say.
pub fn version(options: &Options) -> Result<String> {
    let text = process::run(std::process::Command::new(program(options)?).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_the_sum_of_what_has_the_labels() {
        let text = "# TYPE watches gauge\nwatches{verb=\"WATCH\",resource=\"pods\"} 3\n\
                    watches{verb=\"WATCH\",resource=\"nodes\"} 4\nwatches_total{verb=\"WATCH\"} 9\nplain 7\n";
        assert!((metric(text, "watches", &["verb=\"WATCH\"".to_owned()]) - 7.0).abs() < 1e-9);
        assert!((metric(text, "watches", &["resource=\"pods\"".to_owned()]) - 3.0).abs() < 1e-9);
        assert!((metric(text, "plain", &[]) - 7.0).abs() < 1e-9);
        assert!(metric(text, "none", &[]).abs() < 1e-9);
    }
}
