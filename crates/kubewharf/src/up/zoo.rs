//! KubeZoo in front of the gateway, and a tenant to try things out in.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kubewharf_zoo::{Administrator, AdministratorError, TenantKubeconfig};

use super::component::{Orphaned, Ready, Spec};
use super::kubectl::Url;
use super::pki::{Pki, write_secret};
use super::{free_port, own_program};

/// The tenant.
const TENANT: &str = "demo";
/// How long its kubeconfig is good for: as long as there is.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Where KubeZoo is.
pub(super) struct Plan {
    /// Where tenants connect.
    pub(super) url: Url,
    admin: Url,
    folder: PathBuf,
}

impl Plan {
    /// Tenants connect at the port after the gateway's, if it is free.
    pub(super) fn new(folder: &Path, gateway_port: u16) -> anyhow::Result<(Self, [TcpListener; 2])> {
        let wanted = match gateway_port.checked_add(1).filter(|_| gateway_port > 0) {
            Some(port) => TcpListener::bind(("127.0.0.1", port)).or_else(|_| free_port()),
            None => free_port(),
        }?;
        let admin = free_port()?;
        let url = |listener: &TcpListener| anyhow::Ok(Url { port: listener.local_addr()?.port() });
        let plan = Self { url: url(&wanted)?, admin: url(&admin)?, folder: folder.to_owned() };
        Ok((plan, [wanted, admin]))
    }

    /// How it is started: as a client of the gateway.
    pub(super) fn spec(&self, pki: &Pki, gateway: Url) -> anyhow::Result<Spec> {
        let kubeconfig = self.folder.join("pki/zoo.kubeconfig");
        pki.write_kubeconfig(&kubeconfig, gateway, &pki.zoo)?;
        Ok(Spec {
            name: "kubezoo",
            program: own_program()?,
            arguments: vec![
                "zoo".to_owned(),
                format!("--upstream-kubeconfig={}", kubeconfig.display()),
                format!("--listen={}", self.url.address()),
                format!("--admin-listen={}", self.admin.address()),
                format!("--data-dir={}", self.folder.join("zoo").display()),
            ],
            environment: Vec::new(),
            owner: None,
            orphaned: Orphaned::Dies,
            ready: Ready::Says("ready to serve tenants"),
        })
    }

    /// Makes the tenant, if it is not there, and writes a kubeconfig of its administrator.
    pub(super) async fn make_tenant(&self, kubeconfig: &Path) -> anyhow::Result<PathBuf> {
        let administrator = Administrator::new(kubeconfig)?;
        match administrator.create(TENANT).await {
            Ok(()) => {}
            Err(AdministratorError::Upstream(error)) if error.status().is_some_and(|status| status == 409) => {}
            Err(error) => return Err(error).context("the demo tenant can't be made"),
        }
        let wanted = TenantKubeconfig {
            tenant: TENANT.to_owned(),
            user: "admin".to_owned(),
            groups: vec!["system:masters".to_owned()],
            lifetime: LIFETIME,
            server: None,
        };
        let text = administrator.kubeconfig(wanted).await.context("the demo tenant gets no kubeconfig")?;
        let path = self.folder.join("demo-tenant.kubeconfig");
        write_secret(&path, &text)?;
        Ok(path)
    }
}
