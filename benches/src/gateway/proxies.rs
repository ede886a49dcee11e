//! The programs that are compared, and how each is told to do the same.
//!
//! Both have one thread and a processor of their own; both check clients' certificates, pass the user on, keep HTTP/2 on both sides, check the
//! kube-apiserver's certificate, and write no access log. KubeGateway also has rules and limits to look through; HAProxy knows none of that.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kubewharf_testkit::address::free_port;
use kubewharf_testkit::folder::Folder;
use kubewharf_testkit::process::{self, Process, Spec};
use kubewharf_testkit::store::product;
use kubewharf_testkit::usage::memory;

use super::options::{Options, Side};
use super::tls::{Certificates, HOST};
use crate::https::{Connection, Target};
use crate::tls::Files;
use crate::usage::cpu_time;

const READY_WITHIN: Duration = Duration::from_secs(20);
/// Files that a process has besides its connections, generously.
const FILES_KEPT: usize = 300;

/// Finds the program of a side.
///
/// # Errors
/// When it is missing; the error tells how to get it.
pub fn program(side: Side, options: &Options) -> Result<PathBuf> {
    match side {
        Side::Direct => bail!("no program is between"),
        Side::Gateway => match &options.gateway_program {
            Some(path) => Ok(path.clone()),
            None => Ok(product()?),
        },
        Side::Haproxy => {
            let paths = std::env::var_os("PATH").unwrap_or_default();
            let folders = std::env::split_paths(&paths).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
            let found = folders.map(|folder| folder.join("haproxy")).find(|path| path.is_file());
            found.context("haproxy is missing; on Debian: apt-get install haproxy")
        }
    }
}

/// What a program says of its version, in one line.
///
/// # Errors
/// When it does not say.
pub fn version(side: Side, program: &Path) -> Result<String> {
    let flag = if side == Side::Haproxy { "-v" } else { "--version" };
    let text = process::run(Command::new(program).arg(flag))?;
    Ok(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// A running proxy. Dropping it kills it.
pub struct Proxy {
    // Before the folder, so that it is gone when its files are removed.
    process: Process,
    side: Side,
    address: SocketAddr,
    _folder: Folder,
}

/// What a proxy is started with.
pub struct Setting<'a> {
    /// The flags.
    pub options: &'a Options,
    /// Where its files go.
    pub parent: &'a Path,
    /// The certificates of the clients.
    pub certificates: &'a Certificates,
    /// The processor that it runs on.
    pub processor: &'a str,
    /// The kube-apiserver behind it.
    pub backend: SocketAddr,
    /// A name in the kube-apiserver's certificate.
    pub backend_host: &'a str,
    /// What it shows to the kube-apiserver, and who has signed what that one shows.
    pub identity: &'a Files,
}

impl Proxy {
    /// Starts the proxy of that side, and waits until it answers.
    ///
    /// # Errors
    /// When its program is missing or it does not get ready.
    pub async fn start(side: Side, setting: &Setting<'_>) -> Result<Self> {
        let folder = Folder::new_in(setting.parent, side.label())?;
        let address = free_port();
        let server = setting.certificates.server(&folder, "proxy", &address.ip().to_string())?;
        let program = program(side, setting.options)?;
        let spec = Spec::new(side.label(), "taskset", folder.path()).args(["-c", setting.processor]).arg(program);
        let spec = match side {
            Side::Haproxy => {
                let text = haproxy_configuration(&folder, address, &server, setting)?;
                let path = folder.write("haproxy.cfg", &text)?;
                spec.arg("-db").arg("-f").arg(path)
            }
            _ => {
                std::fs::create_dir(folder.path().join("config"))?;
                folder.write("config/cluster.yaml", &manifest(&server, setting))?;
                spec.arg("gateway")
                    .arg(format!("--config-dir={}", folder.path().join("config").display()))
                    .arg(format!("--listen={address}"))
                    .arg(format!("--default-cluster={HOST}"))
            }
        };
        let mut proxy = Self { process: spec.start()?, side, address, _folder: folder };
        proxy.wait_until_ready(&proxy.target(setting.certificates)?).await?;
        Ok(proxy)
    }

    /// Where clients connect.
    ///
    /// # Errors
    /// Never: the files are our own.
    pub fn target(&self, certificates: &Certificates) -> Result<Target> {
        Ok(Target::new(self.address, HOST, certificates.client()?))
    }

    /// Processor time that it has used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let log = self.process.log_path().display();
        cpu_time(self.process.id()).with_context(|| format!("{} has ended; its log is {log}", self.side.label()))
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident(&self) -> Result<u64> {
        Ok(memory(self.process.id())?.resident)
    }

    /// The process number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    async fn wait_until_ready(&mut self, target: &Target) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let answer = async { Connection::open(target).await?.get_bytes("/readyz").await };
            let Err(error) = answer.await else { return Ok(()) };
            let log = self.process.log_path().to_owned();
            ensure!(self.process.ended().is_none(), "{} ended; its log is {}", self.side.label(), log.display());
            ensure!(Instant::now() < deadline, "{error:#}; the log is {}", log.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// How many clients a proxy can serve at once, with a request each: HAProxy may need a connection behind it for each client, and the system
/// limits the sum.
///
/// # Errors
/// When the system does not tell its limit.
pub fn clients_max(side: Side) -> Result<usize> {
    let files = usize::try_from(kubewharf_foundation::descriptors::raise_limit()?).unwrap_or(usize::MAX);
    let connections = files.saturating_sub(FILES_KEPT);
    Ok(if side == Side::Haproxy { connections / 2 } else { connections })
}

/// Certificate and key in one file, as HAProxy wants them.
fn joined(folder: &Folder, name: &str, files: &Files) -> Result<PathBuf> {
    let text = std::fs::read_to_string(&files.certificate)? + &std::fs::read_to_string(&files.key)?;
    Ok(folder.write(name, &text)?)
}

fn haproxy_configuration(
    folder: &Folder,
    address: SocketAddr,
    server: &Files,
    setting: &Setting<'_>,
) -> Result<String> {
    let (frontend, backend) =
        (joined(folder, "frontend.pem", server)?, joined(folder, "backend.pem", setting.identity)?);
    let (address_of_backend, host) = (setting.backend, setting.backend_host);
    Ok(format!(
        "global
    nbthread 1
    no strict-limits
    maxconn 50000
    tune.ssl.cachesize 0
defaults
    mode http
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout http-request 30s
    option http-no-delay
frontend clients
    bind {address} ssl crt {} ca-file {} verify required alpn h2 no-tls-tickets
    http-request del-header impersonate- -m beg
    http-request del-header x-remote- -m beg
    http-request set-header X-Remote-User %[ssl_c_s_dn(cn)]
    http-request set-header X-Remote-Group %[ssl_c_s_dn(o)]
    option forwardfor
    default_backend apiservers
backend apiservers
    balance roundrobin
    http-reuse always
    option httpchk
    http-check send meth GET uri /readyz
    server apiserver {address_of_backend} ssl verify required ca-file {} crt {} verifyhost {host} alpn h2 check check-alpn h2 inter 5s
",
        frontend.display(),
        server.authority.display(),
        setting.identity.authority.display(),
        backend.display(),
    ))
}

/// Rules as a cluster has them: the last of several policies takes the benchmark's requests.
fn manifest(server: &Files, setting: &Setting<'_>) -> String {
    format!(
        "apiVersion: proxy.kubegateway.io/v1alpha1
kind: UpstreamCluster
metadata:
  name: {HOST}
spec:
  servers:
  - endpoint: https://{}
  clientConfig:
    serverName: {}
    caFile: {}
    certFile: {}
    keyFile: {}
  secureServing:
    certFile: {}
    keyFile: {}
    clientCAFile: {}
  flowControl:
    flowControlSchemas:
    - name: system
      exempt: {{}}
    - name: events
      tokenBucket: {{qps: 1000, burst: 2000}}
    - name: everybody
      maxRequestsInflight: {{max: 100000}}
  dispatchPolicies:
  - rules:
    - {{verbs: ['*'], apiGroups: ['*'], resources: ['*'], userGroups: ['system:masters']}}
    - {{verbs: ['*'], apiGroups: ['coordination.k8s.io'], resources: ['leases'], userGroups: ['system:nodes']}}
    flowControlSchemaName: system
  - rules:
    - {{verbs: ['create', 'patch'], apiGroups: ['', 'events.k8s.io'], resources: ['events']}}
    flowControlSchemaName: events
  - rules:
    - {{verbs: ['list'], apiGroups: ['*'], resources: ['pods'], users: ['system:kube-*']}}
    - {{verbs: ['*'], apiGroups: ['*'], resources: ['*'], userGroups: ['system:nodes']}}
    flowControlSchemaName: system
  - rules:
    - {{verbs: ['*'], apiGroups: ['*'], resources: ['*']}}
    - {{verbs: ['*'], nonResourceURLs: ['*']}}
    flowControlSchemaName: everybody
",
        setting.backend,
        setting.backend_host,
        setting.identity.authority.display(),
        setting.identity.certificate.display(),
        setting.identity.key.display(),
        server.certificate.display(),
        server.key.display(),
        server.authority.display(),
    )
}
