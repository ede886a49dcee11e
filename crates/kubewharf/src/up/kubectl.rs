//! Kubernetes' command line, as this program uses it: as the administrator, through the gateway or past it.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;

/// The URL of a server with TLS on this machine.
#[derive(Clone, Copy, Debug)]
pub(super) struct Url {
    pub(super) port: u16,
}

impl Url {
    pub(super) fn address(self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "https://{}", self.address())
    }
}

/// kubectl as the user of a kubeconfig.
#[derive(Clone, Debug)]
pub(super) struct Kubectl {
    pub(super) program: PathBuf,
    pub(super) kubeconfig: PathBuf,
    /// Where it keeps what it has found out about servers.
    pub(super) cache: PathBuf,
}

impl Kubectl {
    /// Runs it to its end, and returns what it printed.
    pub(super) async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run_with_input(arguments, "").await
    }

    /// The same with a text as its standard input.
    pub(super) async fn run_with_input(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        let failed = || format!("can't run {}", self.program.display());
        let mut child = Command::new(&self.program)
            .env("KUBECONFIG", &self.kubeconfig)
            .arg("--request-timeout=10s")
            .arg(format!("--cache-dir={}", self.cache.display()))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that ends without reading it says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.with_context(failed)?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Whether a server says that it is ready.
    pub(super) async fn finds_ready(&self, url: Url) -> bool {
        // A process for each question is dear while a server starts: only once somebody listens there.
        TcpStream::connect(url.address()).await.is_ok()
            && self
                .run(&["get", "--raw=/readyz", &format!("--server={url}")])
                .await
                .is_ok_and(|answer| answer.trim() == "ok")
    }
}
