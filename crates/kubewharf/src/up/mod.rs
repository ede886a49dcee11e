//! `kubewharf up`: a whole control plane in one command, for trying out and for development.
//!
//! Starts KubeBrain, kube-apiserver and kube-controller-manager as processes of their own, each with a log of its own, talking over mutual
//! TLS on the loopback. Certificates, keys, logs and data stay in one folder, so that the next start finds the same cluster.
//!
//! Invariant: whatever ends this command ends its processes, the last started first.

mod component;
mod lock;
mod pki;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use kubewharf_foundation::Shutdown;
use kubewharf_testkit::tools::{Tool, Tools};

use component::{Component, Orphaned, State};
use lock::FolderLock;
use pki::Pki;

/// How long a component may take to get ready.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The range of the cluster's service addresses, and the first of them, which is kube-apiserver's own.
const SERVICE_RANGE: &str = "10.96.0.0/16";
const SERVICE_ADDRESS: &str = "10.96.0.1";

/// Flags of `kubewharf up`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// The folder of the cluster: data, certificates, logs, kubeconfig.
    #[arg(long, value_name = "DIR", default_value = "kubewharf-data")]
    data_dir: PathBuf,
    /// The port of kube-apiserver on 127.0.0.1; 0 takes a free one.
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    port: u16,
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
    let mut components = Vec::new();
    let result = tokio::select! {
        result = live(options, tools, &folder, &mut components) => result,
        () = shutdown.requested() => {
            if options.check { Err(anyhow!("interrupted before the check was through")) } else { Ok(()) }
        }
    };
    for component in components.iter_mut().rev() {
        component.stop(&shutdown).await;
    }
    result
}

/// Starts everything, and then lives until something ends, or, for a check, until it is proven to work.
async fn live(options: &Options, tools: &Tools, folder: &Path, components: &mut Vec<Component>) -> anyhow::Result<()> {
    let begun = Instant::now();
    let logs = folder.join("logs");
    std::fs::create_dir_all(&logs).with_context(|| format!("can't make {}", logs.display()))?;
    let pki = Pki::open(&folder.join("pki"), SERVICE_ADDRESS)?;
    let port = if options.port == 0 { free_port()? } else { options.port };
    TcpListener::bind(("127.0.0.1", port))
        .with_context(|| format!("port {port} can't be had: choose another with --port"))?;
    let kubeconfig = folder.join("kubeconfig");
    let url = format!("https://127.0.0.1:{port}");
    pki.write_kubeconfig(&kubeconfig, &url, &pki.admin)?;
    let controllers_config = folder.join("pki/controller-manager.kubeconfig");
    pki.write_kubeconfig(&controllers_config, &url, &pki.controllers)?;

    let store = start_store(folder, &logs, &pki, components).await?;
    start_apiserver(tools, &logs, &pki, &store, port, &kubeconfig, components).await?;
    start_controllers(tools, &logs, &pki, &controllers_config, components).await?;

    let kubectl = Kubectl { program: tools.path(Tool::Kubectl), kubeconfig: &kubeconfig };
    println!("ready after {:.1} s", begun.elapsed().as_secs_f64());
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  {} get namespaces", kubectl.program.display());
    println!("logs: {}", logs.display());
    if options.check {
        return check(&kubectl).await;
    }
    println!("Ctrl-C stops everything");
    watch(components).await
}

/// Starts the store; returns its URL.
async fn start_store(folder: &Path, logs: &Path, pki: &Pki, components: &mut Vec<Component>) -> anyhow::Result<String> {
    let url = format!("https://127.0.0.1:{}", free_port()?);
    let own = std::env::current_exe().context("can't find this program's own file")?;
    let arguments = [
        "brain".to_owned(),
        format!("--data-dir={}", folder.join("brain").display()),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--cert-file={}", pki.store.certificate.display()),
        format!("--key-file={}", pki.store.key.display()),
        format!("--trusted-ca-file={}", pki.store_authority.display()),
        "--client-cert-auth".to_owned(),
        // kube-apiserver compacts every five minutes by itself.
        "--log-format=console".to_owned(),
    ];
    let store = Component::start("kubebrain", &own, &arguments, logs, Orphaned::Stops)?;
    components.push(store);
    let store = components.last_mut().expect("just pushed");
    store
        .wait_until_ready(READY_WITHIN, async |log: &Path| log_contains(log, "ready to serve client requests"))
        .await?;
    Ok(url)
}

async fn start_apiserver(
    tools: &Tools,
    logs: &Path,
    pki: &Pki,
    store: &str,
    port: u16,
    kubeconfig: &Path,
    components: &mut Vec<Component>,
) -> anyhow::Result<()> {
    let arguments = [
        format!("--etcd-servers={store}"),
        format!("--etcd-cafile={}", pki.store_authority.display()),
        format!("--etcd-certfile={}", pki.store_client.certificate.display()),
        format!("--etcd-keyfile={}", pki.store_client.key.display()),
        "--bind-address=127.0.0.1".to_owned(),
        // Only told to others; the one that it finds by itself needs a network beside the loopback.
        "--advertise-address=127.0.0.1".to_owned(),
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--secure-port={port}"),
        format!("--tls-cert-file={}", pki.apiserver.certificate.display()),
        format!("--tls-private-key-file={}", pki.apiserver.key.display()),
        format!("--client-ca-file={}", pki.authority.display()),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", pki.tokens.certificate.display()),
        format!("--service-account-signing-key-file={}", pki.tokens.key.display()),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
    ];
    let program = tools.path(Tool::KubeApiserver);
    let component = Component::start("kube-apiserver", program, &arguments, logs, Orphaned::Dies)?;
    components.push(component);
    let apiserver = components.last_mut().expect("just pushed");
    let kubectl = Kubectl { program: tools.path(Tool::Kubectl), kubeconfig };
    apiserver
        .wait_until_ready(READY_WITHIN, async |_: &Path| {
            kubectl.run(&["get", "--raw=/readyz"]).await.is_ok_and(|answer| answer.trim() == "ok")
        })
        .await
}

async fn start_controllers(
    tools: &Tools,
    logs: &Path,
    pki: &Pki,
    kubeconfig: &Path,
    components: &mut Vec<Component>,
) -> anyhow::Result<()> {
    let arguments = [
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--use-service-account-credentials=true".to_owned(),
        // Nobody asks it for anything.
        "--secure-port=0".to_owned(),
        format!("--service-account-private-key-file={}", pki.tokens.key.display()),
        format!("--root-ca-file={}", pki.authority.display()),
        format!("--cluster-signing-cert-file={}", pki.authority.display()),
        format!("--cluster-signing-key-file={}", pki.authority_key.display()),
        "--v=2".to_owned(),
    ];
    let program = tools.path(Tool::KubeControllerManager);
    components.push(Component::start("kube-controller-manager", program, &arguments, logs, Orphaned::Dies)?);
    let controllers = components.last_mut().expect("just pushed");
    controllers.wait_until_ready(READY_WITHIN, async |log: &Path| log_contains(log, "Controller starting")).await
}

/// Lives as long as all components do.
async fn watch(components: &mut [Component]) -> anyhow::Result<()> {
    loop {
        for component in &mut *components {
            if let State::Ended(how) = component.state()? {
                bail!("{} has ended ({how}); {}", component.name(), component.end_of_log());
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

struct Kubectl<'a> {
    program: &'a Path,
    kubeconfig: &'a Path,
}

impl Kubectl<'_> {
    async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = tokio::process::Command::new(self.program)
            .env("KUBECONFIG", self.kubeconfig)
            .arg("--request-timeout=10s")
            .args(arguments)
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("can't run {}", self.program.display()))?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Proves with kubectl that writes, reads, controllers and deletions work.
async fn check(kubectl: &Kubectl<'_>) -> anyhow::Result<()> {
    let namespace = format!("kubewharf-check-{}", std::process::id());
    let namespace = namespace.as_str();
    kubectl.run(&["create", "namespace", namespace]).await?;
    kubectl.run(&["create", "configmap", "check", "--from-literal=answer=42", "-n", namespace]).await?;
    let value = kubectl.run(&["get", "configmap", "check", "-n", namespace, "-o", "jsonpath={.data.answer}"]).await?;
    if value != "42" {
        bail!("the config map reads {value:?} and not \"42\"");
    }
    println!("checked: a config map is written and read");
    let account = ["get", "serviceaccount", "default", "-n", namespace, "-o", "name"];
    let deadline = Instant::now() + READY_WITHIN;
    while let Err(error) = kubectl.run(&account).await {
        if Instant::now() >= deadline {
            return Err(error.context("the controllers made no service account"));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("checked: the controllers made the namespace's service account");
    kubectl.run(&["delete", "namespace", namespace, "--wait=true", "--timeout=60s"]).await?;
    println!("checked: the namespace and all in it are deleted");
    Ok(())
}

fn log_contains(log: &Path, text: &str) -> bool {
    std::fs::read(log).is_ok_and(|content| String::from_utf8_lossy(&content).contains(text))
}

/// A port that nobody has now.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no free port")?;
    Ok(listener.local_addr().context("no free port")?.port())
}
