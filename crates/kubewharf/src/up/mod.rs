//! `kubewharf up`: a whole control plane in one command, for trying out and for development.
//!
//! Starts KubeBrain (one on the local disk, or several on a PostgreSQL or a TiKV cluster), two kube-apiservers on it, KubeGateway in front of them, kube-controller-manager, and KubeZoo with a tenant, as processes
//! of their own, each with a log of its own, talking over mutual TLS on the loopback (with a PostgreSQL by a password). Clients, kube-controller-manager and KubeZoo among them,
//! know the gateway only.
//! Certificates, keys, logs and data stay in one folder, so that the next start finds the same cluster.
//!
//! Invariant: whatever ends this command ends its processes, in the order that clients end before what they need: the gateway lets go of
//! its clients before the kube-apiservers stop, and those stop before the store.

mod check;
mod component;
mod gateway;
mod kubectl;
mod lock;
mod pki;
mod stores;
mod zoo;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use futures_util::future::{join_all, select_all, try_join_all};
use kubewharf_foundation::Shutdown;
use kubewharf_testkit::tools::{Tool, Tools};

use component::{Component, Orphaned, Ready, Spec};
use kubectl::{Kubectl, Url};
use lock::FolderLock;
use pki::Pki;

/// How long what must come soon may take.
const EVENTUALLY: Duration = Duration::from_secs(120);
/// How long the gateway's clients may take to end what they have begun.
const DRAIN_SECONDS: u64 = 5;
/// The kube-apiservers.
const APISERVERS: [&str; 2] = ["kube-apiserver-1", "kube-apiserver-2"];
/// The range of the cluster's service addresses, and the first of them, which is kube-apiserver's own.
const SERVICE_RANGE: &str = "10.96.0.0/16";
const SERVICE_ADDRESS: &str = "10.96.0.1";

/// Flags of `kubewharf up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The folder of the cluster: data, certificates, logs, kubeconfig.
    #[arg(long, value_name = "DIR", default_value = "kubewharf-data")]
    data_dir: PathBuf,
    /// The port of the gateway on 127.0.0.1, which is what clients connect to; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    port: u16,
    /// Where the store's rows are.
    #[arg(long, value_enum, default_value = "lmdb")]
    engine: stores::Engine,
    /// The PostgreSQL or the TiKV cluster that KubeBrains share, as a URL. A PostgreSQL is started in the folder if this is not given.
    #[arg(long, value_name = "URL", env = "KUBEWHARF_ENGINE_URL", hide_env_values = true)]
    engine_url: Option<String>,
    /// The database's schema or, with TiKV, the store's name there; one for each control plane.
    #[arg(long, value_name = "NAME")]
    engine_schema: Option<String>,
    /// How many KubeBrains there are; more than one needs an engine that they can share.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    brains: u8,
    /// Bring everything up, prove with kubectl that it works, and stop.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let tools = match Tools::find_or_build(Tool::CLUSTER, &mut |line| eprintln!("{line}")) {
        Ok(tools) => tools,
        Err(error) => {
            eprintln!("kubewharf up: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("kubewharf up: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(up(options, &tools)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kubewharf up: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn up(options: &Options, tools: &Tools) -> anyhow::Result<()> {
    let shutdown = Shutdown::new();
    shutdown.on_signals()?;
    std::fs::create_dir_all(&options.data_dir)
        .with_context(|| format!("can't make the folder {} (--data-dir)", options.data_dir.display()))?;
    let folder = options.data_dir.canonicalize().context("can't find the folder of the cluster")?;
    let _lock = FolderLock::acquire(&folder)?;
    let plan = Plan::new(options, tools, folder)?;
    let mut stages = Vec::new();
    let result = tokio::select! {
        result = plan.live(options.check, &mut stages) => result,
        () = shutdown.requested() => {
            if options.check { Err(anyhow!("interrupted before the check was through")) } else { Ok(()) }
        }
    };
    for stage in stages.iter_mut().rev() {
        join_all(stage.iter_mut().map(|component| component.stop(&shutdown))).await;
    }
    result
}

/// Components that start together, after those of the stage before, and end together.
type Stage = Vec<Component>;

/// Where everything is.
struct Plan<'a> {
    tools: &'a Tools,
    folder: PathBuf,
    logs: PathBuf,
    pki: Pki,
    /// Where clients connect.
    gateway: Url,
    apiservers: [Url; APISERVERS.len()],
    stores: stores::Plan,
    gateway_admin_port: u16,
    kubectl: Kubectl,
    zoo: zoo::Plan,
}

impl<'a> Plan<'a> {
    fn new(options: &Options, tools: &'a Tools, folder: PathBuf) -> anyhow::Result<Self> {
        let logs = folder.join("logs");
        std::fs::create_dir_all(&logs).with_context(|| format!("can't make {}", logs.display()))?;
        let pki = Pki::open(&folder.join("pki"), SERVICE_ADDRESS)?;
        // All are held until each is found, so that they differ.
        let wanted = TcpListener::bind(("127.0.0.1", options.port))
            .with_context(|| format!("port {} can't be had: choose another with --port", options.port))?;
        let (first, second, admin) = (free_port()?, free_port()?, free_port()?);
        let (stores, _store_ports) = stores::Plan::new(options, &folder)?;
        let url = |listener: &TcpListener| anyhow::Ok(Url { port: listener.local_addr()?.port() });
        let (zoo, _zoo_ports) = zoo::Plan::new(&folder, options.port)?;
        let gateway = url(&wanted)?;
        let kubeconfig = folder.join("kubeconfig");
        pki.write_kubeconfig(&kubeconfig, gateway, &pki.admin)?;
        let kubectl =
            Kubectl { program: tools.path(Tool::Kubectl).to_owned(), kubeconfig, cache: folder.join("kubectl-cache") };
        Ok(Self {
            tools,
            logs,
            pki,
            gateway,
            apiservers: [url(&first)?, url(&second)?],
            stores,
            gateway_admin_port: url(&admin)?.port,
            kubectl,
            zoo,
            folder,
        })
    }

    /// Starts everything, and then lives until something ends, or, for a check, until it is proven to work.
    async fn live(&self, check: bool, stages: &mut Vec<Stage>) -> anyhow::Result<()> {
        let begun = Instant::now();
        if let Some(database) = self.stores.database()? {
            self.start(vec![database], stages).await?;
        }
        self.start(self.stores.brains(&self.pki)?, stages).await?;
        self.start((0..APISERVERS.len()).map(|number| self.apiserver(number)).collect(), stages).await?;
        gateway::authorize(&self.kubectl, &self.apiservers).await?;
        let config = gateway::configure(&self.folder, &self.pki, &self.apiservers)?;
        self.start(vec![self.kubegateway(&config)?], stages).await?;
        self.start(vec![self.controllers()?], stages).await?;
        self.start(vec![self.zoo.spec(&self.pki, self.gateway)?], stages).await?;
        let tenant = self.zoo.make_tenant(&self.kubectl.kubeconfig).await?;

        println!("ready after {:.1} s", begun.elapsed().as_secs_f64());
        println!("  export KUBECONFIG={}", self.kubectl.kubeconfig.display());
        println!("  {} get namespaces", self.kubectl.program.display());
        println!("gateway: {}, configured by {}", self.gateway, config.display());
        println!("gateway's status and metrics: {}", self.admin_url(""));
        println!("logs: {}", self.logs.display());
        println!("a tenant's own cluster, demo, at {}:", self.zoo.url);
        println!("  export KUBECONFIG={}", tenant.display());
        println!("  {} get namespaces", self.kubectl.program.display());
        println!("  {} create deployment web --image=nginx", self.kubectl.program.display());
        println!("  {} api-resources", self.kubectl.program.display());
        if check {
            return check::check(self, tenant).await;
        }
        println!("Ctrl-C stops everything");
        self.keep(stages).await
    }

    /// Starts a stage, and waits until all of it is ready.
    async fn start(&self, specs: Vec<Spec>, stages: &mut Vec<Stage>) -> anyhow::Result<()> {
        stages.push(Stage::new());
        let stage = stages.last_mut().expect("just pushed");
        for spec in specs {
            stage.push(Component::start(spec, &self.logs)?);
        }
        try_join_all(stage.iter_mut().map(|component| component.wait_until_ready(&self.kubectl))).await?;
        Ok(())
    }

    fn apiserver(&self, number: usize) -> Spec {
        let (pki, url) = (&self.pki, self.apiservers[number]);
        Spec {
            name: APISERVERS[number],
            program: self.tools.path(Tool::KubeApiserver).to_owned(),
            arguments: vec![
                format!("--etcd-servers={}", self.stores.urls()),
                format!("--etcd-cafile={}", pki.store_authority.display()),
                format!("--etcd-certfile={}", pki.store_client.certificate.display()),
                format!("--etcd-keyfile={}", pki.store_client.key.display()),
                "--bind-address=127.0.0.1".to_owned(),
                // Only told to others; the one that it finds by itself needs a network beside the loopback.
                "--advertise-address=127.0.0.1".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                format!("--secure-port={}", url.port),
                format!("--tls-cert-file={}", pki.apiserver.certificate.display()),
                format!("--tls-private-key-file={}", pki.apiserver.key.display()),
                format!("--client-ca-file={}", pki.authority.display()),
                format!("--kubelet-client-certificate={}", pki.kubelet_client.certificate.display()),
                format!("--kubelet-client-key={}", pki.kubelet_client.key.display()),
                format!("--service-cluster-ip-range={SERVICE_RANGE}"),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", pki.tokens.certificate.display()),
                format!("--service-account-signing-key-file={}", pki.tokens.key.display()),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--allow-privileged=true".to_owned(),
            ],
            environment: Vec::new(),
            owner: None,
            orphaned: Orphaned::Dies,
            ready: Ready::Serves(url),
        }
    }

    fn kubegateway(&self, config: &Path) -> anyhow::Result<Spec> {
        let access_log = self.logs.join("kubegateway-access.log");
        std::fs::write(&access_log, "").with_context(|| format!("can't write {}", access_log.display()))?;
        Ok(Spec {
            name: "kubegateway",
            program: own_program()?,
            arguments: vec![
                "gateway".to_owned(),
                format!("--config-dir={}", config.display()),
                format!("--listen={}", self.gateway.address()),
                format!("--admin-listen=127.0.0.1:{}", self.gateway_admin_port),
                format!("--default-cluster={}", gateway::CLUSTER),
                format!("--access-log={}", access_log.display()),
                format!("--drain-timeout={DRAIN_SECONDS}"),
            ],
            environment: Vec::new(),
            owner: None,
            orphaned: Orphaned::Dies,
            ready: Ready::Serves(self.gateway),
        })
    }

    fn controllers(&self) -> anyhow::Result<Spec> {
        let pki = &self.pki;
        let kubeconfig = self.folder.join("pki/controller-manager.kubeconfig");
        pki.write_kubeconfig(&kubeconfig, self.gateway, &pki.controllers)?;
        Ok(Spec {
            name: "kube-controller-manager",
            program: self.tools.path(Tool::KubeControllerManager).to_owned(),
            arguments: vec![
                format!("--kubeconfig={}", kubeconfig.display()),
                "--leader-elect=false".to_owned(),
                "--use-service-account-credentials=true".to_owned(),
                // Nobody asks it for anything.
                "--secure-port=0".to_owned(),
                format!("--service-account-private-key-file={}", pki.tokens.key.display()),
                format!("--root-ca-file={}", pki.authority.display()),
                format!("--cluster-signing-cert-file={}", pki.authority.display()),
                format!("--cluster-signing-key-file={}", pki.authority_key.display()),
                // By itself it asks 20 times a second, which makes it take seconds to start.
                "--kube-api-qps=500".to_owned(),
                "--kube-api-burst=1000".to_owned(),
                "--v=2".to_owned(),
            ],
            environment: Vec::new(),
            owner: None,
            orphaned: Orphaned::Dies,
            ready: Ready::Says("Controller starting"),
        })
    }

    /// Lives as long as all components do.
    async fn keep(&self, stages: &mut [Stage]) -> anyhow::Result<()> {
        let lives = stages.iter_mut().flatten().map(|component| Box::pin(self.keep_one(component)));
        select_all(lives).await.0
    }

    /// Waits for the end of a component, and starts it again if there are others that do the same: meanwhile clients have those.
    async fn keep_one(&self, component: &mut Component) -> anyhow::Result<()> {
        loop {
            let how = component.ended().await?;
            let name = component.name();
            if !APISERVERS.contains(&name) && !self.stores.is_one_of_several(name) {
                bail!("{name} has ended ({how}); {}", component.end_of_log());
            }
            println!("{name:<24} has ended ({how}), and is started again");
            component.start_again()?;
            component.wait_until_ready(&self.kubectl).await?;
        }
    }

    /// A page of the gateway's for administrators.
    fn admin_url(&self, page: &str) -> String {
        format!("http://127.0.0.1:{}/{page}", self.gateway_admin_port)
    }
}

fn own_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("can't find this program's own file")
}

/// Tries until it works, or for too long.
async fn eventually<T>(attempt: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + EVENTUALLY;
    loop {
        match attempt().await {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(Duration::from_millis(100)).await,
            result => return result,
        }
    }
}

/// A port that nobody has as long as the listener lives.
fn free_port() -> anyhow::Result<TcpListener> {
    TcpListener::bind(("127.0.0.1", 0)).context("no free port")
}
